"""The way from a model to an engine: prepare, hold the conversion to float32, build, read back, check, write.

The only file that puts the parts of `engine` together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from dilrewrite.errors import DiffersError, FailedError, MissingError, UsageError, shown
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import all_nodes, copied
from dilrewrite.options import Building
from dilrewrite.proof.compare import OutputCheck, Tolerance, compare
from dilrewrite.proof.inputs import Case, Chooser
from dilrewrite.proof.verdict import CaseCheck, Settings, Verdict
from dilrewrite.runtimes import Array, CannotLoad, Options, Runnable, RuntimeFailure, backends
from dilrewrite.staging import Staging, is_file
from dilrewrite.tensorrt import bindings, cuda, fidelity, profiles, sidecar
from dilrewrite.tensorrt.convert import BF16_STAYS
from dilrewrite.tensorrt.layers import parsed_name
from dilrewrite.tensorrt.make import CURRENT, Built, Progress, build
from dilrewrite.tensorrt.precision import ROUNDS_TO, Prepared, prepare, refuse
from dilrewrite.tensorrt.profiles import Asked, Profile
from dilrewrite.tensorrt.sidecar import EngineReport, OnnxSource, PrecisionReport

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What to build, checked against the model before long work: the flavour that builds, and the sizes asked for."""

    model: Model
    building: Building
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


def start(model: Model, building: Building, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Started:
    """Check all that can be before any long work. `shapes` stand for the sizes of inputs of which none are given.

    Raises `MissingError` where the flavour is not installed, `UsageError` for a model that TensorRT cannot take.
    """
    building.check()
    flavour = bindings.choose(building.flavour)
    where = _where(model)
    refuse(_in_memory(model, model.proto) if _needs_weights(model, building.precision) else model.proto, where)
    asked = profiles.parse(building.minima, building.optima, building.maxima)
    given = {*asked.min, *asked.opt, *asked.max}
    more = {name: shape for name, shape in (shapes or {}).items() if name not in given}
    asked = Asked(min=asked.min, opt={**asked.opt, **more}, max=asked.max)
    profiles.settle(model.proto, asked, where)
    return Started(model=model, building=building, flavour=flavour, asked=asked)


def measured_sizes(started: Started, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return what to time the model with: the sizes given, and of other inputs those that the engine is to be fast at.

    Raises `UsageError` for given sizes or data that the engine will not take.
    """
    sizes = profiles.settle(started.model.proto, started.asked, _where(started.model))
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


def make(
    started: Started,
    proto: ModelProto,
    engine: Path,
    settings: Settings,
    *,
    chosen_on: str,
    source: Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Engine:
    """Build the engine of `proto`, which is the model or what became of it, for the file `engine`.

    `source`: the ONNX file that holds `proto`, when it is not the model's own. `chosen_on`: whose timings chose.
    Raises `UsageError`, `FailedError`, `MissingError`, and `DiffersError` when the conversion to a lower precision, or
    the engine on the GPU, does not compute what the model does.
    """
    model, building = started.model, started.building
    ready = _ready(started, proto, source)
    conversion = _compare_conversion(ready, proto, settings, progress)
    library = bindings.load(started.flavour, tell=tell)
    timings = _timings(building.timing_cache)
    built = build(
        library,
        ready.prepared.proto,
        building,
        profiles=ready.sizes,
        folder=model.folder,
        tf32=ready.prepared.precision != "fp32",
        timing_cache=timings,
        progress=progress,
    )
    precision = _precision(ready, built, conversion)
    check = _check(ready, proto, built, settings)
    keeps, warnings = _kept_timings(building.timing_cache, timings, built)
    report = _report(
        ready,
        built,
        file=_name(engine),
        version=library.version,
        onnx=OnnxSource(
            file=shown(ready.file) if ready.file is not None else "",
            sha256=model.file_digest if source is None else _digest(proto),
            built_sha256=_digest(ready.prepared.proto),
        ),
        precision=precision,
        chosen_on=chosen_on,
        checked=check.words,
        device=check.device,
        warnings=warnings,
    )
    return Engine(built=built, prepared=ready.prepared, report=report, timing_cache=keeps, check=check.verdict)


def _kept_timings(place: Path | None, before: bytes, built: Built) -> tuple[Path | None, tuple[str, ...]]:
    """Return where the timings of a build go, and its warnings; nowhere where the file holds another TensorRT's."""
    if place is None or built.timing_cache is None or not _foreign(before, built.timing_cache):
        return place, built.warnings
    left = f"--timing-cache {_name(place)}: holds no timings of this TensorRT and was left as it is; name another file"
    return None, (left, *built.warnings)


def stage(engine: Engine, place: Path, staging: Staging) -> None:
    """Stage the engine, its side-car, and the timing cache where one is kept."""
    staging.add_bytes(place, engine.built.plan)
    staging.add_text(sidecar.place(place), sidecar.render(engine.report))
    if engine.timing_cache is not None and engine.built.timing_cache is not None:
        staging.add_chunks(engine.timing_cache, [engine.built.timing_cache], force=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A model as it is built, of the ONNX `file` that messages call `where`, and the sizes that it is built for."""

    started: Started
    prepared: Prepared
    sizes: Mapping[str, Profile]
    file: Path | None
    where: str


def _ready(started: Started, proto: ModelProto, source: Path | None) -> _Ready:
    """Return a model in the precision that is asked for, for sizes that it takes."""
    model, precision = started.model, started.building.precision
    where = shown(source) if source is not None else _where(model)
    prepared = prepare(_in_memory(model, proto) if _needs_weights(model, precision) else proto, precision, where)
    sizes = profiles.settle(prepared.proto, started.asked, where)
    profiles.check(prepared.proto, sizes, where)
    file = source if source is not None else model.path
    return _Ready(started=started, prepared=prepared, sizes=sizes, file=file, where=where)


def _compare_conversion(
    ready: _Ready, proto: ModelProto, settings: Settings, progress: Progress | None
) -> fidelity.Fidelity | None:
    """Compare a converted model with the float32 one; `None` where nothing was converted."""
    if not ready.prepared.converted or ready.prepared.precision not in fidelity.UNIT_ROUNDOFF:
        return None
    if progress is not None:
        progress("compare with float32", 0, 1)
    shapes = {**{name: size.opt for name, size in ready.sizes.items()}, **settings.shapes}
    given = {name: shape for name, shape in shapes.items() if name not in settings.inputs}
    answer = fidelity.compare(
        proto, ready.prepared, ready.started.model.folder, replace(settings, shapes=given), ready.where
    )
    if progress is not None:
        progress("compare with float32", 1, 1)
    return answer


def _precision(ready: _Ready, built: Built, conversion: fidelity.Fidelity | None) -> PrecisionReport:
    """Return what an engine computes in; raises FailedError where that is not what was asked for."""
    prepared = ready.prepared
    nodes = list(all_nodes(prepared.proto))
    names = [parsed_name(node) for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    stays = [parsed_name(node) for node in nodes if prepared.changes and node.op_type in BF16_STAYS]
    return PrecisionReport(
        asked=ready.started.building.precision,
        built=prepared.precision,
        converted=prepared.converted,
        changes=prepared.changes,
        convolutions=sidecar.check_precision(prepared, built.layers, names, ready.where, stays=stays),
        fidelity=conversion,
    )


def _report(ready: _Ready, built: Built, *, file: str, **more: Any) -> EngineReport:
    """Return what is known of an engine; `more` are further fields."""
    started, prepared = ready.started, ready.prepared
    return EngineReport(
        file=file,
        bytes=len(built.plan),
        sha256=built.digest,
        flavour=started.flavour,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=ready.sizes,
        flags=built.flags,
        build_seconds=round(built.seconds, 3),
        memory=built.layers.memory,
        layers_from=built.layers.source,
        layer_types=built.layers.kinds(),
        layers=built.layers.layers,
        trtexec=sidecar.trtexec(
            started.flavour, _onnx_name(ready.file, prepared), file, started.building, prepared, ready.sizes
        ),
        **more,
    )


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
    made = copied(proto)
    onnx.external_data_helper.load_external_data_for_model(made, str(model.folder))
    return made


# -- on the GPU ------------------------------------------------------------------------------------------------------


class NoAnswer(Exception):  # noqa: N818 - it reads as what it says
    """ONNX Runtime does not run the model, so there is nothing to compare an engine with; the reason is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What comparing an engine with ONNX Runtime gave: in words, on which device, and the verdict where it ran."""

    words: str
    device: str | None = None
    verdict: Verdict | None = None


def _check(ready: _Ready, proto: ModelProto, built: Built, settings: Settings) -> _Checked:
    """Compare the engine with ONNX Runtime where there is a GPU. Raises DiffersError when they differ."""
    flavour, building = ready.started.flavour, ready.started.building
    gpu = backends()[bindings.module_name(flavour)]
    why = gpu.missing()
    if why is not None:
        return _Checked(words=f"not run: {why}")
    device = str(gpu.device())  # type: ignore[attr-defined]
    if building.strip_plan:
        return _Checked(words="not run: it has no weights (--strip-plan)", device=device)
    try:
        verdict = outputs_agree(
            Runnable(model=proto.SerializeToString(), folder=ready.started.model.folder),
            Runnable(model=built.plan, engine=True),
            flavour,
            ready.prepared.precision,
            {name: size.opt for name, size in ready.sizes.items()},
            settings,
        )
    except NoAnswer as error:
        return _Checked(words=f"not run: {error}", device=device)
    except RuntimeFailure as error:
        elsewhere = ", ".join(building.compute_capabilities)
        if isinstance(error, CannotLoad) and elsewhere not in ("", CURRENT):
            words = f"not run: it is for {elsewhere}, and {device} does not load it: {error}"
            return _Checked(words=words, device=device)
        raise FailedError(f"the engine was built and does not run: {error}") from error
    if not verdict.passed:
        raise DiffersError(
            f"{ready.where}: the engine does not compute what the model does: {verdict.failures[0]}",
            hint="build with --precision fp32, and report it",
        )
    words = f"equal to ONNX Runtime within {verdict.tolerance} on {device}"
    return _Checked(words=words, device=device, verdict=verdict)


def check_runs(path: Path, engine: EngineReport) -> None:
    """Raise `MissingError` where an engine cannot run here."""
    why = backends()[bindings.module_name(engine.flavour)].missing()
    if why is not None:
        raise MissingError(f"{shown(path)} cannot run here: {why}")


def built_for(engine: EngineReport) -> str:
    """Return where an engine was built, for the case that it is another place."""
    place = f" on {engine.device}" if engine.device is not None else ""
    return f"it was built by {engine.flavour} {engine.version}{place}; build it again for this GPU"


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
    rtol, share = FLOATS[ROUNDS_TO[precision]].tolerance
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
    except RuntimeFailure as error:
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
