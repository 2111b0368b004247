"""TensorRT for RTX, which builds engines without a GPU: the library, and the marker of tests that need it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from onnx import ModelProto

from dilrewrite.options import Building
from dilrewrite.tensorrt import bindings
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.make import Built, build
from dilrewrite.tensorrt.profiles import Profile

FLAVOUR = "tensorrt-rtx"

MISSING = bindings.missing(FLAVOUR)

needs_rtx = pytest.mark.skipif(MISSING is not None, reason=MISSING or "it is there")


def library() -> Library:
    """The library with a log of its own."""
    return bindings.load(FLAVOUR)


def built(model: ModelProto, profiles: Mapping[str, Profile] | None = None, *, using: Library | None = None) -> Built:
    """An engine of a model, with all options at their defaults."""
    return build(using or library(), model, Building(), profiles=profiles)
