"""Builds engines on a board: TensorRT and onnx have to be there."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilrewrite import record
from dilrewrite.options import Building
from dilrewrite.tensorrt import bindings


def on_flavour(_folder: Path, name: str) -> tuple[list[str], Sequence[bytes]]:
    """Return the flavour of TensorRT that is meant there, and its version."""
    known = bindings.choose(name)
    importlib.import_module("onnx")  # an error before long work
    return [known, bindings.load(known).version], ()


def on_build(
    folder: Path, flavour: str, model: str, options: dict[str, Any], profiles: dict[str, Any], tf32: bool
) -> tuple[dict[str, Any], Sequence[bytes]]:
    """Build an engine of a model that is in the folder; return what is known of it, and the engine."""
    import onnx

    from dilrewrite.tensorrt import make
    from dilrewrite.tensorrt.profiles import Profile

    sizes = {name: record.read(Profile, one, name) for name, one in profiles.items()}
    proto = onnx.load_model_from_string((folder / "blobs" / model).read_bytes())
    built = make.build(bindings.load(flavour), proto, Building.of(options), profiles=sizes, tf32=tf32)
    plain = dataclasses.asdict(dataclasses.replace(built, plan=b"", timing_cache=None))
    return {name: value for name, value in plain.items() if name != "plan"}, [built.plan]
