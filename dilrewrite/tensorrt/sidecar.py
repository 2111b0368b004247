"""What is known of an engine, in a JSON file beside it: written by `dilrewrite build`, read instead of the engine.

An engine tells nothing without the library, the GPU and the version that it was built for; the side-car does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dilrewrite import record
from dilrewrite._compat import sha256_of
from dilrewrite._version import __version__
from dilrewrite.errors import FAULTS, FailedError, UsageError, shown
from dilrewrite.options import PRECISIONS, Building
from dilrewrite.staging import is_file
from dilrewrite.tensorrt.bindings import FLAVOURS
from dilrewrite.tensorrt.fidelity import Fidelity
from dilrewrite.tensorrt.layers import Layer, Layers, entry_of
from dilrewrite.tensorrt.make import Tensor
from dilrewrite.tensorrt.precision import DATATYPES, Prepared
from dilrewrite.tensorrt.profiles import KINDS, Profile, text

SCHEMA_VERSION = 1

SUFFIX = ".json"

ENDINGS = (".engine", ".plan", ".trt")
"""What the names of engines end with."""


def place(engine: Path) -> Path:
    """Return where an engine's side-car lies: `model.engine.json` for `model.engine`."""
    return engine.with_name(engine.name + SUFFIX)


def is_engine(path: Path) -> bool:
    """Say whether an argument names an engine rather than a model: by its name, or by how its content begins."""
    if path.suffix not in ENDINGS:
        with contextlib.suppress(OSError):
            if is_file(path):
                with path.open("rb") as file:
                    return file.read(4) in (b"ptrt", b"vtrt", b"ftrt")
    return path.suffix in ENDINGS


def check_precision(
    prepared: Prepared, layers: Layers, names: Sequence[str], where: str, *, stays: Collection[str] = ()
) -> dict[str, int]:
    """Return how many convolutions of an engine read data of each type, as its layer list says.

    `names`: what TensorRT calls the ONNX nodes that are convolutions; `stays`: those of them that the conversion left
    in float32, and said so. Raises FailedError for an engine that computes others in another type than was asked for:
    never a silent float32 engine.
    """
    kinds = layers.datatypes(names)
    if not names:
        return kinds
    if not kinds:
        raise FailedError(
            f"{where}: no layer of the engine is known for a convolution, so its precision cannot be told",
            hint=f"{FAULTS} says how to report it, with the layers of --verbose",
        )
    wanted = DATATYPES[prepared.precision]
    right = any(kind in wanted for kind in kinds)
    told_of = [layer for layer in layers.convolutions(names) if not layer.hides_types(names)]
    if not told_of:  # an engine is strongly typed, so the model's types are its own
        return kinds
    strict = [layer for layer in told_of if not any(entry_of(node, stays) for node in layer.nodes)]
    told = ", ".join(f"{count} in {kind}" for kind, count in kinds.items())
    if prepared.precision == "int8-qdq":
        if not right:
            raise FailedError(
                f"{where}: built from a QDQ model, and no convolution runs in int8 ({told})",
                hint="Q/DQ must stand on the inputs and the weights of the convolutions",
            )
    elif prepared.converted and any(layer.reads(names) not in wanted for layer in strict):
        raise FailedError(f"{where}: {prepared.precision} was asked for, and the engine's convolutions are {told}")
    elif not right:
        raise FailedError(f"{where}: the model is in {prepared.precision}, and the engine's convolutions are {told}")
    return kinds


def trtexec(
    flavour: str, onnx: str, engine: str, options: Building, prepared: Prepared, profiles: Mapping[str, Profile]
) -> str:
    """Return the command of TensorRT's own tool that builds about the same engine of the same ONNX file."""
    rtx, cache, workspace = flavour == "tensorrt-rtx", options.timing_cache, options.workspace_mib
    shapes = {
        kind: ",".join(f"{n}:{text(getattr(profile, kind))}" for n, profile in profiles.items()) for kind in KINDS
    }
    arguments: dict[str, object] = {  # switches that are on, and values that are not None
        "--onnx": onnx,
        "--saveEngine": engine,
        "--stronglyTyped": not rtx,
        **{f"--{kind}Shapes": given or None for kind, given in shapes.items()},
        "--profilingVerbosity": "detailed",
        "--noTF32": prepared.precision == "fp32",
        "--memPoolSize": None if workspace is None else f"workspace:{workspace}M",
        "--builderOptimizationLevel": options.optimization_level,
        "--timingCacheFile": None if cache is None or rtx else shown(Path(cache.name)),
        "--computeCapabilities": ",".join(options.compute_capabilities) or None,
        "--device": options.device,
        **{f"--dynamicPlugins={shown(Path(plugin.name))}": True for plugin in options.plugins},
        "--refit": options.refit,
        "--stripWeights": options.strip_plan,
        "--versionCompatible": options.version_compatible,
        "--allowWeightStreaming": options.weight_streaming,
    }
    parts = ["tensorrt_rtx" if rtx else "trtexec"]
    for name, value in arguments.items():
        if value is not None and value is not False:
            parts.append(name if value is True else f"{name}={value}")
    return shlex.join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSource:
    """The model that an engine was built from.

    The two digests differ where the model was converted, or its weights put in place, on the way.
    """

    file: str
    """Path of the ONNX file; empty when the model was only in memory."""
    sha256: str
    """Of that file, in hexadecimal."""
    built_sha256: str
    """Of the model as TensorRT got it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """What an engine computes in."""

    asked: str | None
    """The precision asked for: `fp32`, `tf32`, `fp16`, `bf16` or `int8-qdq`; `None` for the model's own types."""
    built: str
    """The precision it was built in."""
    converted: bool
    """Whether the model was converted for it."""
    changes: tuple[str, ...]
    """What else was changed for it."""
    convolutions: Mapping[str, int]
    """Number of convolutions by the element type that they read, from the layers; `unknown` where no layer tells it;
    empty where there are none.
    """
    fidelity: Fidelity | None
    """How far the converted model is from the float32 one; `None` when it was not converted to `fp16` or `bf16`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """All that is known of an engine. The side-car `ENGINE.json` and `inspect ENGINE --json` are this object."""

    schema_version: int = SCHEMA_VERSION
    """Version of this object, 1; the rules above hold for it."""
    dilrewrite: str = __version__
    """Version that built it."""
    file: str
    """Name of the engine's file, without its folder."""
    bytes: int
    """Its size in bytes."""
    sha256: str
    """Of the engine's file, in hexadecimal."""
    flavour: str
    """`tensorrt` or `tensorrt-rtx`."""
    version: str
    """Version of that library."""
    onnx: OnnxSource
    """The model it was built from."""
    precision: PrecisionReport
    """What it computes in."""
    chosen_on: str
    """The runtime whose timings chose the forms in it, for people; it says so where that was not TensorRT."""
    checked: str
    """Whether its outputs were compared with ONNX Runtime's and how, or why not, for people."""
    device: str | None
    """The GPU that it was built and ran on; `None` where it could not run."""
    inputs: tuple[Tensor, ...]
    """Its inputs."""
    outputs: tuple[Tensor, ...]
    """Its outputs."""
    profiles: Mapping[str, Profile]
    """The sizes it was built for, by input whose sizes the model leaves open."""
    flags: Mapping[str, Any]
    """The builder's settings: switches are booleans, by TensorRT's names; limits are numbers or lists, by the options'
    names.
    """
    build_seconds: float
    """Seconds that TensorRT took to read the model and to build."""
    memory: Mapping[str, int]
    """Bytes that the builder says the engine needs, by what for; empty where it does not say."""
    layers_from: str
    """Where the layers were read: `build log` or `engine inspector`."""
    layer_types: Mapping[str, int]
    """Number of layers by type."""
    layers: tuple[Layer, ...]
    """Its layers, in their order."""
    warnings: tuple[str, ...]
    """What the builder warned of."""
    trtexec: str
    """The command of TensorRT's own tool that builds about the same engine of the same ONNX file."""


def render(report: EngineReport) -> str:
    """Return the side-car's text."""
    return json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def layer_information(report: EngineReport) -> str:
    """Return the layers as trtexec's --exportLayerInfo has them: `{"Layers": [...], "Bindings": [...]}`."""
    layers = [
        {
            "Name": layer.name,
            "LayerType": layer.kind,
            "Inputs": [{"Datatype": kind} for kind in layer.inputs],
            "Outputs": [{"Datatype": kind} for kind in layer.outputs],
            "TacticName": layer.tactic,
            "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in layer.nodes),
        }
        for layer in report.layers
    ]
    bindings = [tensor.name for tensor in (*report.inputs, *report.outputs)]
    return json.dumps({"Layers": layers, "Bindings": bindings}, indent=2, ensure_ascii=False) + "\n"


def read(engine: Path) -> EngineReport:
    """Return the side-car of an engine; raises `UsageError` where there is none, or it is of something else."""
    if not is_file(engine):
        raise UsageError(f"{shown(engine)} does not exist", hint="check the path")
    file = place(engine)
    hint = "build the engine again with `dilrewrite build`, which writes it"
    try:
        if file.exists() and not is_file(file):
            raise UsageError(f"{shown(file)} is not a regular file", hint=hint)
        plain = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()  # what cannot be written is damaged
    except FileNotFoundError as error:
        raise UsageError(f"{shown(engine)}: its side-car {shown(file)} is not there", hint=hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{shown(file)} cannot be read: {error}", hint=hint) from error
    if not isinstance(plain, dict) or plain.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{shown(file)} is no side-car of an engine that this version knows", hint=hint)
    try:
        report: EngineReport = record.read(EngineReport, plain, "the file")
    except TypeError as error:
        raise UsageError(f"{shown(file)} is no side-car of an engine: {error}", hint=hint) from error
    flavour, precision = report.flavour, report.precision.built
    for word, value, known in (("flavour", flavour, FLAVOURS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise UsageError(f"{shown(file)}: the {word} {value!r} is none of {', '.join(known)}", hint=hint)
    try:
        with engine.open("rb") as data:
            same = engine.stat().st_size == report.bytes
            same = same and sha256_of(data).hexdigest() == report.sha256
    except OSError as error:
        raise UsageError(f"{shown(engine)} cannot be read: {error}", hint="check the file") from error
    if not same:
        raise UsageError(f"{shown(file)} is of another engine than {shown(engine)}", hint=hint)
    return report
