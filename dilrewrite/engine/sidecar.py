"""What is known of an engine, in a JSON file beside it: written by `dilrewrite build`, read instead of the engine.

An engine tells nothing without the library, the GPU and the version that it was built for; the side-car does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dilrewrite._version import __version__
from dilrewrite.engine.bindings import FLAVOURS
from dilrewrite.engine.layers import Layers
from dilrewrite.engine.make import BuildOptions, Built
from dilrewrite.engine.precision import DATATYPES, Prepared
from dilrewrite.engine.profiles import Profile
from dilrewrite.errors import FailedError, UsageError, shown

SCHEMA_VERSION = 1

SUFFIX = ".json"

ENDINGS = (".engine", ".plan", ".trt")
"""What the names of engines end with."""


def place(engine: Path) -> Path:
    """Return where an engine's side-car lies: `model.engine.json` for `model.engine`."""
    return engine.with_name(engine.name + SUFFIX)


def is_engine(path: Path) -> bool:
    """Say whether an argument names an engine rather than a model: by its name, or by how its content begins."""
    if path.suffix in ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"ptrt", b"vtrt", b"ftrt")
    except OSError:
        return False


def check_precision(prepared: Prepared, layers: Layers, names: Sequence[str], where: str) -> dict[str, int]:
    """Return how many convolution layers of an engine read data of each type, as its layer list says.

    `names`: the ONNX nodes that are convolutions. Raises FailedError for an engine that computes them in another type
    than was asked for: never a silent float32 engine.
    """
    found = layers.datatypes(names)
    if not names:
        return found
    if not found:
        raise FailedError(
            f"{where}: no layer of the engine is known for a convolution, so its precision cannot be told",
            hint="report this with the layers of --verbose",
        )
    wanted = DATATYPES[prepared.precision]
    right = sum(count for kind, count in found.items() if kind in wanted)
    others = {kind: count for kind, count in found.items() if kind not in wanted}
    told = ", ".join(f"{count} in {kind}" for kind, count in found.items())
    if prepared.precision == "int8-qdq":
        if not right:
            raise FailedError(
                f"{where}: built from a QDQ model, and no convolution runs in int8 ({told})",
                hint="Q/DQ must stand on the inputs and the weights of the convolutions",
            )
    elif others and prepared.converted:
        raise FailedError(f"{where}: {prepared.precision} was asked for, and the engine's convolutions are {told}")
    elif not right:
        raise FailedError(f"{where}: the model is in {prepared.precision}, and the engine's convolutions are {told}")
    return found


def trtexec(
    flavour: str, onnx: str, engine: str, options: BuildOptions, prepared: Prepared, profiles: Mapping[str, Profile]
) -> str:
    """Return the command of TensorRT's own tool that builds about the same engine of the same ONNX file."""
    parts = ["tensorrt_rtx" if flavour == "tensorrt-rtx" else "trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
    if flavour == "tensorrt":
        parts.append("--stronglyTyped")
    for kind in ("min", "opt", "max"):
        shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(p, kind)))}" for name, p in profiles.items())
        if shapes:
            parts.append(f"--{kind}Shapes={shapes}")
    parts.append("--profilingVerbosity=detailed")
    if prepared.precision == "fp32":
        parts.append("--noTF32")
    if options.workspace_mib is not None:
        parts.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.optimization_level is not None:
        parts.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.timing_cache is not None and flavour == "tensorrt":
        parts.append(f"--timingCacheFile={options.timing_cache.name}")
    if options.compute_capabilities:
        parts.append(f"--computeCapabilities={','.join(options.compute_capabilities)}")
    if options.device is not None:
        parts.append(f"--device={options.device}")
    parts += [f"--dynamicPlugins={plugin.name}" for plugin in options.plugins]
    switches = {
        "--refit": options.refit,
        "--stripWeights": options.strip_plan,
        "--versionCompatible": options.version_compatible,
        "--allowWeightStreaming": options.weight_streaming,
    }
    parts += [switch for switch, on in switches.items() if on]
    return " ".join(parts)


def layer_entries(layers: Layers) -> list[dict[str, Any]]:
    """Return the layers as plain data."""
    return [
        {
            "name": layer.name,
            "type": layer.kind,
            "inputs": list(layer.inputs),
            "outputs": list(layer.outputs),
            "onnx": list(layer.nodes),
            "tactic": layer.tactic,
        }
        for layer in layers.layers
    ]


def describe(
    *,
    engine: Path,
    built: Built,
    flavour: str,
    version: str,
    options: BuildOptions,
    prepared: Prepared,
    datatypes: Mapping[str, int],
    profiles: Mapping[str, Profile],
    onnx: Mapping[str, Any],
    chosen_on: str,
    checked: str,
    fidelity: Mapping[str, Any] | None,
    device: str | None,
    command: str,
) -> dict[str, Any]:
    """Return the side-car as plain data; docs/report-schema.md describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dilrewrite": __version__,
        "flavour": flavour,
        "version": version,
        "engine": {"file": engine.name, "bytes": len(built.plan), "sha256": built.digest},
        "onnx": dict(onnx),
        "precision": {
            "asked": options.precision,
            "built": prepared.precision,
            "converted": prepared.converted,
            "changes": list(prepared.changes),
            "convolutions": dict(datatypes),
            "fidelity": dict(fidelity) if fidelity is not None else None,
        },
        "chosen_on": chosen_on,
        "checked": checked,
        "device": device,
        "inputs": [_tensor(tensor) for tensor in built.inputs],
        "outputs": [_tensor(tensor) for tensor in built.outputs],
        "profiles": {
            name: {"min": list(profile.min), "opt": list(profile.opt), "max": list(profile.max)}
            for name, profile in profiles.items()
        },
        "flags": dict(built.flags),
        "build_seconds": round(built.seconds, 3),
        "memory": dict(built.layers.memory),
        "layers_from": built.layers.source,
        "layer_types": built.layers.kinds(),
        "layers": layer_entries(built.layers),
        "warnings": list(built.warnings),
        "trtexec": command,
    }


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def render(sidecar: Mapping[str, Any]) -> str:
    """Return the side-car's text."""
    return json.dumps(sidecar, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(engine: Path) -> dict[str, Any]:
    """Return the side-car of an engine; raises `UsageError` where there is none, or it is of something else."""
    if not engine.is_file():
        raise UsageError(f"{shown(engine)} does not exist", hint="check the path")
    file = place(engine)
    hint = "build the engine again with `dilrewrite build`, which writes it"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{shown(engine)}: its side-car {shown(file)} is not there", hint=hint) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(file)} cannot be read: {error}", hint=hint) from error
    known = isinstance(found, dict) and isinstance(found.get("engine"), dict) and found.get("flavour") in FLAVOURS
    if not known or found.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{shown(file)} is no side-car of an engine that this version knows", hint=hint)
    if found["engine"].get("bytes") != engine.stat().st_size:
        raise UsageError(f"{shown(file)} is of another engine: {shown(engine)} has another size", hint=hint)
    result: dict[str, Any] = found
    return result
