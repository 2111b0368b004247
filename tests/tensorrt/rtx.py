"""TensorRT for RTX, which builds engines without a GPU: the library, and the marker of tests that need it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from onnx import ModelProto

from dilrewrite.options import Building
from dilrewrite.tensorrt import bindings, cuda
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.make import Built, build
from dilrewrite.tensorrt.profiles import Profile
from tests.models_for_tests import in_process

FLAVOUR = "tensorrt-rtx"

MISSING = bindings.missing(FLAVOUR)

needs_rtx = pytest.mark.skipif(MISSING is not None, reason=MISSING or "it is there")


NO_GPU = "there is no NVIDIA driver"


def without_gpu(patch: pytest.MonkeyPatch) -> None:
    """No GPU, whatever this machine has; whole models run in this process."""
    in_process(patch)
    patch.setattr(cuda, "missing", lambda: NO_GPU)


def only(patch: pytest.MonkeyPatch, flavour: str) -> None:
    """This flavour is there and no other, whatever is installed."""
    patch.setattr(bindings, "missing", lambda name: None if name == flavour else "gone")
    patch.setattr(bindings, "installed", lambda name: name == flavour)


def library() -> Library:
    """The library with a log of its own."""
    return bindings.load(FLAVOUR)


def built(model: ModelProto, profiles: Mapping[str, Profile] | None = None, *, using: Library | None = None) -> Built:
    """An engine of a model, with all options at their defaults."""
    return build(using or library(), model, Building(), profiles=profiles)
