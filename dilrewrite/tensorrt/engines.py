"""The way from a model to an engine: prepare, hold the conversion to float32, build, read back, check, write.

The only file that puts the parts of `engine` together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from dilrewrite.errors import DiffersError, FailedError, MissingError, UsageError, shown
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import all_nodes
from dilrewrite.proof.compare import OutputCheck, Tolerance, compare
from dilrewrite.proof.inputs import Case, Chooser
from dilrewrite.proof.verdict import CaseCheck, Settings, Verdict
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    TimedOut,
    backends,
)
from dilrewrite.staging import Staging, check_destination, is_file, same_file
from dilrewrite.tensorrt import bindings, cuda, fidelity, profiles, sidecar
from dilrewrite.tensorrt.convert import BF16_STAYS
from dilrewrite.tensorrt.layers import parsed_name
from dilrewrite.tensorrt.make import CURRENT, BuildOptions, Built, build
from dilrewrite.tensorrt.precision import PRECISIONS, Prepared, prepare, refuse
from dilrewrite.tensorrt.profiles import Asked, Profile
from dilrewrite.tensorrt.sidecar import EngineReport, OnnxSource, PrecisionReport

ENGINE_TOLERANCES = {
    "fp32": FLOATS["float32"].tolerance,
    "tf32": FLOATS["float16"].tolerance,  # a fraction of 10 bits, as float16 has
    "fp16": FLOATS["float16"].tolerance,
    "bf16": FLOATS["bfloat16"].tolerance,
    "int8-qdq": FLOATS["bfloat16"].tolerance,
}
"""What an engine's outputs are held to against ONNX Runtime's, by precision: as for models."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What engine to build: the flavour, how, and for which sizes (`NAME:1x3x224x224`)."""

    flavour: str = "auto"
    build: BuildOptions
    minima: Sequence[str] = ()
    optima: Sequence[str] = ()
    maxima: Sequence[str] = ()

    def plain(self) -> dict[str, object]:
        """Return what was asked for as plain data for a report."""
        asked = {**dataclasses.asdict(self.build), "min": self.minima, "opt": self.optima, "max": self.maxima}
        given = {key: value for key, value in asked.items() if said(value)}
        return {
            "flavour": self.flavour,
            **{
                key: [str(one) for one in value] if isinstance(value, tuple | list) else value
                for key, value in given.items()
            },
        }

    def check(self) -> None:
        """Raise `UsageError` for what is wrong whatever the model is."""
        self.build.check()
        profiles.parse(self.minima, self.optima, self.maxima)
        if self.build.precision is not None and self.build.precision not in PRECISIONS:
            raise UsageError(f"--precision {self.build.precision}: not one of {', '.join(PRECISIONS)}")


def said(value: object) -> bool:
    """Say whether an option was given: 0 is a level and a device, and not `False`."""
    return value is not None and value is not False and value not in ((), [])


def order(
    *,
    flavour: str = "auto",
    precision: str | None = None,
    minima: Sequence[str] = (),
    optima: Sequence[str] = (),
    maxima: Sequence[str] = (),
    timing_cache: str | os.PathLike[str] | None = None,
    compute_capabilities: Sequence[str] = (),
    plugins: Sequence[str | os.PathLike[str]] = (),
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    device: int | None = None,
    refit: bool = False,
    strip_plan: bool = False,
    version_compatible: bool = False,
    weight_streaming: bool = False,
) -> Order:
    """Return what `dilrewrite.build` is asked for."""
    return Order(
        flavour=flavour,
        minima=tuple(minima),
        optima=tuple(optima),
        maxima=tuple(maxima),
        build=BuildOptions(
            precision=precision,
            workspace_mib=workspace_mib,
            timing_cache=Path(timing_cache) if timing_cache is not None else None,
            optimization_level=optimization_level,
            compute_capabilities=tuple(compute_capabilities),
            device=device,
            plugins=tuple(Path(plugin) for plugin in plugins),
            refit=refit,
            strip_plan=strip_plan,
            version_compatible=version_compatible,
            weight_streaming=weight_streaming,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """An order that was checked against a model before long work: the flavour that builds, and its sizes."""

    order: Order
    flavour: str
    asked: Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that was built, and what is known of it. `check`: the comparison with ONNX Runtime, where it ran."""

    built: Built
    prepared: Prepared
    report: EngineReport
    timing_cache: Path | None
    check: Verdict | None = None


@contextlib.contextmanager
def on_device(device: int | None) -> Iterator[None]:
    """Let this process and its children see one GPU only, by `CUDA_VISIBLE_DEVICES`: it must not use CUDA already.

    `device` counts those that the variable shows. Raises `MissingError` when there is no such GPU.
    """
    if device is None:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [name.strip() for name in before.split(",") if name.strip()] if before is not None else None
    if visible is not None and device >= len(visible):
        raise MissingError(
            f"--device {device}: CUDA_VISIBLE_DEVICES is {before!r}, which shows {len(visible)}",
            hint="leave one of them out",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[device] if visible is not None else str(device)
    try:
        why = cuda.missing()
        if why is not None:
            raise MissingError(f"--device {device}: {why}", hint="leave it out, or name a GPU that nvidia-smi lists")
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def start(model: Model, order: Order, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Started:
    """Check all that can be before any long work. `shapes` stand for the sizes of inputs of which none are given.

    Raises `MissingError` where the flavour is not installed, `UsageError` for a model that TensorRT cannot take.
    """
    order.check()
    flavour = bindings.choose(order.flavour)
    where = _where(model)
    refuse(_in_memory(model, model.proto) if _needs_weights(model, order.build.precision) else model.proto, where)
    asked = profiles.parse(order.minima, order.optima, order.maxima)
    given = {*asked.min, *asked.opt, *asked.max}
    more = {name: shape for name, shape in (shapes or {}).items() if name not in given}
    asked = Asked(min=asked.min, opt={**asked.opt, **more}, max=asked.max)
    profiles.settle(model.proto, asked, where)
    return Started(order=order, flavour=flavour, asked=asked)


def measured_sizes(started: Started, model: Model, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return what to time the model with: the sizes given, and of other inputs those that the engine is to be fast at.

    Raises `UsageError` for given sizes or data that the engine will not take.
    """
    sizes = profiles.settle(model.proto, started.asked, _where(model))
    given = {**{name: tuple(value.shape) for name, value in settings.inputs.items()}, **settings.shapes}
    for name, shape in given.items():
        profile = sizes.get(name)
        if profile is not None and not profile.holds(shape):
            low, high = ("x".join(map(str, some)) for some in (profile.min, profile.max))
            raise UsageError(
                f"input {name!r}: {'x'.join(map(str, shape))} is outside of the engine's profile, {low} to {high}",
                hint="give --min, --opt and --max that hold it",
            )
    return {**{name: size.opt for name, size in sizes.items() if name not in given}, **settings.shapes}


def same_place(a: Path, b: Path) -> bool:
    """Say whether two paths lead to one file, which need not exist yet."""
    return same_file(a, b) or (a.name == b.name and same_file(a.parent, b.parent))


def check_places(engine: Path, *, force: bool, others: Sequence[Path], timing_cache: Path | None) -> None:
    """Raise `UsageError` for places that an engine and its side-car may not be written to."""
    for place in (engine, sidecar.place(engine)):
        if any(same_place(place, other) for other in others):
            raise UsageError(f"{shown(place)}: is a place for something else", hint="name another file")
        check_destination(place, force=force, source=None)
    if timing_cache is not None:
        if any(same_place(timing_cache, other) for other in (engine, sidecar.place(engine), *others)):
            raise UsageError(
                f"--timing-cache {shown(timing_cache)}: is a place for something else", hint="name another file"
            )
        check_destination(timing_cache, force=True, source=None)


def make(
    model: Model,
    proto: ModelProto,
    started: Started,
    engine: Path,
    settings: Settings,
    *,
    chosen_on: str,
    source: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Engine:
    """Build the engine of `proto`, which is `model` or what became of it, for the file `engine`.

    `source`: the ONNX file that holds `proto`, when it is not the model's own. `chosen_on`: whose timings chose.
    Raises `UsageError`, `FailedError`, `MissingError`, and `DiffersError` when the conversion to a lower precision, or
    the engine on the GPU, does not compute what the model does.
    """
    order = started.order
    where = shown(source) if source is not None else _where(model)
    found = _in_memory(model, proto) if _needs_weights(model, order.build.precision) else proto
    prepared = prepare(found, order.build.precision, where)
    sizes = profiles.settle(prepared.proto, started.asked, where)
    profiles.check(prepared.proto, sizes, where)
    faithful = None
    if prepared.converted and prepared.precision in fidelity.UNIT_ROUNDOFF:
        if progress is not None:
            progress("compare with float32", 0, 1)
        shapes = {**{name: size.opt for name, size in sizes.items()}, **settings.shapes}
        faithful = fidelity.compare(
            proto,
            prepared,
            model.folder,
            settings.backend,
            where,
            shapes={name: shape for name, shape in shapes.items() if name not in settings.inputs},
            inputs=settings.inputs,
            seed=settings.seed,
            threads=settings.threads,
        )
        if progress is not None:
            progress("compare with float32", 1, 1)
    library = bindings.load(started.flavour, tell=tell)
    timings = _timings(order.build.timing_cache)
    built = build(
        library,
        prepared.proto,
        order.build,
        profiles=sizes,
        folder=model.folder,
        tf32=prepared.precision != "fp32",
        timing_cache=timings,
        progress=progress,
    )
    nodes = list(all_nodes(prepared.proto))
    names = [parsed_name(node) for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    stays = [parsed_name(node) for node in nodes if prepared.changes and node.op_type in BF16_STAYS]
    datatypes = sidecar.check_precision(prepared, built.layers, names, where, stays=stays)
    checked, device, verdict = _check(proto, model, built, started, prepared, sizes, settings)
    if verdict is not None and not verdict.passed:
        raise DiffersError(
            f"{where}: the engine does not compute what the model does: {verdict.failures[0]}",
            hint="build with --precision fp32, and report it",
        )
    file = source if source is not None else model.path
    keeps, warnings = order.build.timing_cache, built.warnings
    if keeps is not None and built.timing_cache is not None and _foreign(timings, built.timing_cache):
        left = (
            f"--timing-cache {_name(keeps)}: holds no timings of this TensorRT and was left as it is; name another file"
        )
        warnings = (left, *warnings)
        keeps = None
    report = EngineReport(
        file=_name(engine),
        bytes=len(built.plan),
        sha256=built.digest,
        flavour=started.flavour,
        version=library.version,
        onnx=OnnxSource(
            file=shown(file) if file is not None else "",
            sha256=model.file_digest if source is None else _digest(proto),
            built_sha256=_digest(prepared.proto),
        ),
        precision=PrecisionReport(
            asked=order.build.precision,
            built=prepared.precision,
            converted=prepared.converted,
            changes=prepared.changes,
            convolutions=datatypes,
            fidelity=faithful,
        ),
        chosen_on=chosen_on,
        checked=checked,
        device=device,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=sizes,
        flags=built.flags,
        build_seconds=round(built.seconds, 3),
        memory=built.layers.memory,
        layers_from=built.layers.source,
        layer_types=built.layers.kinds(),
        layers=built.layers.layers,
        warnings=warnings,
        trtexec=sidecar.trtexec(
            started.flavour, _onnx_name(file, prepared), _name(engine), order.build, prepared, sizes
        ),
    )
    return Engine(built=built, prepared=prepared, report=report, timing_cache=keeps, check=verdict)


def stage(engine: Engine, place: Path, staging: Staging) -> None:
    """Stage the engine, its side-car, and the timing cache where one is kept."""
    staging.add_bytes(place, engine.built.plan)
    staging.add_text(sidecar.place(place), sidecar.render(engine.report))
    if engine.timing_cache is not None and engine.built.timing_cache is not None:
        staging.add_chunks(engine.timing_cache, [engine.built.timing_cache], force=True)


# -- parts -----------------------------------------------------------------------------------------------------------


def _where(model: Model) -> str:
    return shown(model.path) if model.path is not None else "the model"


def _onnx_name(file: Path | None, prepared: Prepared) -> str:
    """Return the name of the ONNX file that an engine is built from; of a changed one, as `--save-onnx` may name it."""
    if file is None:
        return ""
    changed = prepared.converted or prepared.changes
    return _name(file.with_name(f"{file.stem}.{prepared.precision}.onnx") if changed else file)


def _name(path: Path) -> str:
    return shown(Path(path.name))


def _digest(proto: ModelProto) -> str:
    return hashlib.sha256(proto.SerializeToString()).hexdigest()


def _timings(path: Path | None) -> bytes:
    if path is None or not is_file(path):
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--timing-cache {shown(path)} cannot be read: {error}") from error


def _foreign(old: bytes, new: bytes) -> bool:
    """Say whether a file's content is no cache of timings: each of them begins with the tag of TensorRT's archives.

    A content without it is refused with "magicTagRead == kMAGIC_TAG failed" (NVIDIA/TensorRT issue 3566).
    """
    return bool(old) and old[:4] != new[:4]


def _needs_weights(model: Model, precision: str | None) -> bool:
    if not model.external_files:
        return False
    quantized = any(node.op_type == "DequantizeLinear" for node in all_nodes(model.proto))
    return quantized or precision in ("fp16", "bf16")


def _in_memory(model: Model, proto: ModelProto) -> ModelProto:
    """Return the model with its external weights in memory; raises `UsageError` when they are too large for that."""
    if model.file_bytes > 2**31 - 1:
        raise UsageError(
            f"{_where(model)}: has {model.file_bytes / 2**30:.1f} GiB of weights: a model is converted in memory, and "
            "2 GiB are the most that fit into a message",
            hint="convert it with another tool, and build from that",
        )
    made = ModelProto()
    made.CopyFrom(proto)
    onnx.external_data_helper.load_external_data_for_model(made, str(model.folder))
    return made


# -- on the GPU ------------------------------------------------------------------------------------------------------


class NoAnswer(Exception):  # noqa: N818 - it reads as what it says
    """ONNX Runtime does not run the model, so there is nothing to compare an engine with; the reason is one line."""


def _check(
    proto: ModelProto,
    model: Model,
    built: Built,
    started: Started,
    prepared: Prepared,
    sizes: Mapping[str, Profile],
    settings: Settings,
) -> tuple[str, str | None, Verdict | None]:
    """Compare the engine with ONNX Runtime where there is a GPU; say in words what was done, and on which device."""
    flavour, options = started.flavour, started.order.build
    gpu = backends()[bindings.module_name(flavour)]
    why = gpu.missing()
    if why is not None:
        return f"not run: {why}", None, None
    device = str(gpu.device())  # type: ignore[attr-defined]
    if options.strip_plan:
        return "not run: it has no weights (--strip-plan)", device, None
    try:
        verdict = outputs_agree(
            Runnable(model=proto.SerializeToString(), folder=model.folder),
            Runnable(model=built.plan, engine=True),
            flavour,
            prepared.precision,
            {name: size.opt for name, size in sizes.items()},
            settings,
        )
    except NoAnswer as error:
        return f"not run: {error}", device, None
    except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
        elsewhere = ", ".join(options.compute_capabilities)
        if isinstance(error, CannotLoad) and elsewhere not in ("", CURRENT):
            return f"not run: it is for {elsewhere}, and {device} does not load it: {error}", device, None
        raise FailedError(f"the engine was built and does not run: {error}") from error
    return f"equal to ONNX Runtime within {verdict.tolerance} on {device}", device, verdict


def outputs_agree(
    model: Runnable,
    engine: Runnable,
    flavour: str,
    precision: str,
    shapes: Mapping[str, tuple[int, ...]],
    settings: Settings,
) -> Verdict:
    """Compare an engine's outputs with those of its model on ONNX Runtime, on seeded or given data.

    Raises NoAnswer when the model does not run, CannotLoad, CannotRun, Crashed or TimedOut when the engine does not.
    """
    rtol, share = ENGINE_TOLERANCES[precision]
    tolerance = Tolerance(rtol, share, 0.0)
    if settings.rtol is not None or settings.atol is not None:
        tolerance = Tolerance(settings.rtol or 0.0, 0.0, settings.atol or 0.0)
    options = Options(
        threads=settings.threads,
        optimize=precision != "int8-qdq",
        custom_op_library=settings.custom_op_library,
        timeout_s=settings.timeout_s,
    )
    given = {**shapes, **settings.shapes}
    try:
        with settings.backend.session(model, options) as session:
            chooser = Chooser(
                session.inputs,
                given={name: shape for name, shape in given.items() if name not in settings.inputs},
                user=settings.inputs,
                seed=settings.seed,
            )
            case, _ = chooser.first(session.run)
            wanted = session.run(case.feeds)
    except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
        raise NoAnswer(f"{settings.backend.name} does not run the model: {error}") from error
    gpu = backends()[bindings.module_name(flavour)]
    with gpu.session(engine, options) as session:
        elements = {io.name: io.element for io in session.inputs}
        feeds = {name: value.astype(dtype(elements[name])) for name, value in case.feeds.items() if name in elements}
        got = session.run(feeds)
    checks = tuple(compare(name, values, _typed(got.get(name), values), tolerance) for name, values in wanted.items())
    failures = tuple(f"output {check.name!r}: {check.note}" for check in checks if not check.passed)
    return Verdict(
        level="full",
        passed=not failures,
        backend=f"{settings.backend.name}, {gpu.name}",
        cases=(_case(case, checks),),
        failures=failures,
        tolerance=str(tolerance),
    )


def _typed(values: Array | None, like: Array) -> Array | None:
    """Return an engine's output in the model's type: TensorRT has its own for some."""
    return None if values is None else values.astype(like.dtype)


def _case(case: Case, checks: tuple[OutputCheck, ...]) -> CaseCheck:
    return CaseCheck(name=case.name, shapes=case.shapes, outputs=checks)
