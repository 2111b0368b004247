"""The way from a model to an engine: prepare, hold the conversion to float32, build, read back, check, write.

The only file that puts the parts of `tensorrt/` together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from dilrewrite.errors import FAULTS, DiffersError, FailedError, MissingError, UsageError, shown
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import all_nodes
from dilrewrite.options import Building
from dilrewrite.proof.compare import Tolerance, compare
from dilrewrite.proof.verdict import CaseCheck, Settings, Verdict
from dilrewrite.runtimes import CannotLoad, Options, Runnable, RuntimeFailure, backends, contained
from dilrewrite.sites.known import CONVOLVES
from dilrewrite.staging import Staging, is_file
from dilrewrite.tensorrt import bindings, cuda, fidelity, profiles, sidecar
from dilrewrite.tensorrt.convert import BF16_STAYS
from dilrewrite.tensorrt.fidelity import Fidelity
from dilrewrite.tensorrt.layers import parsed_name
from dilrewrite.tensorrt.make import CURRENT, Built, build
from dilrewrite.tensorrt.precision import ROUNDS_TO, Prepared, needs_values, prepare, refuse
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import EngineReport, OnnxSource, PrecisionReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What to build, checked against the model before long work: the flavour that builds, and the sizes asked for."""

    model: Model
    building: Building
    flavour: str
    asked: profiles.Asked
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Another machine that builds: its name, the flavour and version there, and what does it of a model by sizes."""

    on: str
    flavour: str
    version: str
    build: Callable[[ModelProto, Mapping[str, Profile], bool], Built]


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


def start(
    model: Model,
    building: Building,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Started:
    """Check all that can be before any long work. `shapes` stand for the sizes of inputs of which none are given.

    `elsewhere`: the machine that builds, where it is another one.

    Raises `MissingError` where the flavour is not installed, `UsageError` for a model that TensorRT cannot take.
    """
    building.check()
    flavour = elsewhere.flavour if elsewhere is not None else bindings.choose(building.flavour)
    where = _where(model)
    refuse(_loaded(model, model.proto, building.precision), where)
    asked = profiles.parse(building.minima, building.optima, building.maxima, list(profiles.declared(model.proto)))
    given = set().union(*asked.values())
    asked["opt"].update((name, shape) for name, shape in (shapes or {}).items() if name not in given)
    profiles.settle(model.proto, asked, where)
    return Started(model=model, building=building, flavour=flavour, asked=asked, elsewhere=elsewhere)


def measured_sizes(started: Started, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return what to time the model with: the sizes given, and of other inputs those that the engine is to be fast at.

    Raises `UsageError` for given sizes or data that the engine will not take.
    """
    sizes = profiles.settle(started.model.proto, started.asked, _where(started.model))
    given = {**{name: tuple(value.shape) for name, value in settings.inputs.items()}, **settings.shapes}
    for name, shape in given.items():
        profile = sizes.get(name)
        if profile is not None and not profile.holds(shape):
            low, high = profiles.text(profile.min), profiles.text(profile.max)
            raise UsageError(
                f"input {name!r}: {profiles.text(shape)} is outside of the engine's profile, {low} to {high}",
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
    where = shown(source) if source is not None else _where(model)
    prepared = prepare(_loaded(model, proto, building.precision), building.precision, where)
    sizes = profiles.settle(prepared.proto, started.asked, where)
    profiles.check(prepared.proto, sizes, where)
    ready = _Ready(started=started, prepared=prepared, sizes=sizes, file=source or model.path, where=where)
    conversion = _compare_conversion(ready, proto, settings, progress or silent)
    timings, tf32 = _timings(building.timing_cache), prepared.precision != "fp32"
    if started.elsewhere is not None:
        version = started.elsewhere.version
        built = started.elsewhere.build(_inside(model, prepared.proto), sizes, tf32)
    else:
        library = bindings.load(started.flavour, tell=tell)
        version = library.version
        built = build(
            library,
            prepared.proto,
            building,
            profiles=sizes,
            folder=model.folder,
            tf32=tf32,
            timing_cache=timings,
            progress=progress,
        )
    precision = _precision(ready, built, conversion)
    checked, device, verdict = _check(ready, proto, built, settings)
    keeps, warnings = _kept_timings(building.timing_cache, timings, built)
    report = _report(
        ready,
        replace(built, warnings=warnings),
        file=_name(engine),
        version=version,
        sha256=model.file_digest if source is None else _digest(proto),
        precision=precision,
        chosen_on=chosen_on,
        checked=checked,
        device=device,
    )
    return Engine(built=built, prepared=prepared, report=report, timing_cache=keeps, check=verdict)


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

    @property
    def best(self) -> dict[str, tuple[int, ...]]:
        """The sizes that the engine is to be fast at."""
        return {name: size.opt for name, size in self.sizes.items()}


def _compare_conversion(ready: _Ready, proto: ModelProto, settings: Settings, progress: Progress) -> Fidelity | None:
    """Compare a converted model with the float32 one; `None` where nothing was converted."""
    if not ready.prepared.converted:
        return None
    progress("compare with float32", 0, 1)
    settings = replace(settings, shapes={**ready.best, **settings.shapes})
    answer = fidelity.compare(proto, ready.prepared, ready.started.model.folder, settings, ready.where)
    progress("compare with float32", 1, 1)
    return answer


def _precision(ready: _Ready, built: Built, conversion: Fidelity | None) -> PrecisionReport:
    """Return what an engine computes in; raises FailedError where that is not what was asked for."""
    prepared = ready.prepared
    nodes = list(all_nodes(prepared.proto))
    names = [parsed_name(node) for node in nodes if node.op_type in CONVOLVES]
    stays = [parsed_name(node) for node in nodes if prepared.changes and node.op_type in BF16_STAYS]
    return PrecisionReport(
        asked=ready.started.building.precision,
        built=prepared.precision,
        converted=prepared.converted,
        changes=prepared.changes,
        convolutions=sidecar.check_precision(prepared, built.layers, names, ready.where, stays=stays),
        fidelity=conversion,
    )


def _report(ready: _Ready, built: Built, *, file: str, sha256: str, **more: Any) -> EngineReport:
    """Return what is known of the engine `file`; `sha256`: of the ONNX file, `more`: further fields."""
    prepared, onnx, flavour = ready.prepared, ready.file, ready.started.flavour
    name = _name(onnx) if onnx is not None else ""
    if onnx is not None and (prepared.converted or prepared.changes):  # as `--save-onnx` may name it
        name = shown(Path(f"{onnx.stem}.{prepared.precision}.onnx"))
    return EngineReport(
        file=file,
        bytes=len(built.plan),
        sha256=hashlib.sha256(built.plan).hexdigest(),
        flavour=flavour,
        onnx=OnnxSource(
            file=shown(onnx) if onnx is not None else "", sha256=sha256, built_sha256=_digest(prepared.proto)
        ),
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=ready.sizes,
        flags=built.flags,
        build_seconds=round(built.seconds, 3),
        memory=built.layers.memory,
        layers_from=built.layers.source,
        layer_types=built.layers.kinds(),
        layers=built.layers.layers,
        warnings=built.warnings,
        trtexec=sidecar.trtexec(flavour, name, file, ready.started.building, prepared, ready.sizes),
        **more,
    )


def _where(model: Model) -> str:
    return shown(model.path) if model.path is not None else "the model"


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


def _kept_timings(place: Path | None, before: bytes, built: Built) -> tuple[Path | None, tuple[str, ...]]:
    """Return where the timings of a build go, and its warnings; nowhere where the file holds another TensorRT's.

    Timings begin with the tag of TensorRT's archives: a content without it is refused with "magicTagRead ==
    kMAGIC_TAG failed" (NVIDIA/TensorRT issue 3566).
    """
    if place is None or built.timing_cache is None or not before or before[:4] == built.timing_cache[:4]:
        return place, built.warnings
    left = f"--timing-cache {_name(place)}: holds no timings of this TensorRT and was left as it is; name another file"
    return None, (left, *built.warnings)


def _loaded(model: Model, proto: ModelProto, precision: str | None) -> ModelProto:
    """Return the model with its external weights in memory, where they are converted.

    Raises `UsageError` when they are too large for that.
    """
    return _inside(model, proto) if needs_values(proto, precision) else proto


def _inside(model: Model, proto: ModelProto) -> ModelProto:
    """Return the model with its external weights in memory. Raises `UsageError` when they are too large for that."""
    if not model.external_files:
        return proto
    if model.file_bytes > 2**31 - 1:
        raise UsageError(
            f"{_where(model)}: has {model.file_bytes / 2**30:.1f} GiB of weights: it is wanted in memory, and "
            "2 GiB are the most that fit into a message",
            hint="convert it with another tool, and build from that",
        )
    return contained(Runnable(model=proto.SerializeToString(), folder=model.folder))


# -- on the GPU ------------------------------------------------------------------------------------------------------


class NoAnswer(Exception):  # noqa: N818 - it reads as what it says
    """ONNX Runtime does not run the model, so there is nothing to compare an engine with; the reason is one line."""


def _check(
    ready: _Ready, proto: ModelProto, built: Built, settings: Settings
) -> tuple[str, str | None, Verdict | None]:
    """Compare the engine with ONNX Runtime where there is a GPU. Raises DiffersError when they differ.

    Returns in words what came of it, on which device, and the verdict where it ran.
    """
    flavour, building = ready.started.flavour, ready.started.building
    if ready.started.elsewhere is not None:
        return f"not run: it was built on {ready.started.elsewhere.on}, and this machine does not run it", None, None
    gpu = backends()[bindings.module_name(flavour)]
    why = gpu.missing()
    if why is not None:
        return f"not run: {why}", None, None
    device = str(gpu.device())  # type: ignore[attr-defined]
    if building.strip_plan:
        return "not run: it has no weights (--strip-plan)", device, None
    model = Runnable(model=proto.SerializeToString(), folder=ready.started.model.folder)
    engine = Runnable(model=built.plan, engine=True)
    try:
        verdict = outputs_agree(model, engine, flavour, ready.prepared.precision, ready.best, settings)
    except NoAnswer as error:
        return f"not run: {error}", device, None
    except RuntimeFailure as error:
        elsewhere = ", ".join(building.compute_capabilities)
        if isinstance(error, CannotLoad) and elsewhere not in ("", CURRENT):
            return f"not run: it is for {elsewhere}, and {device} does not load it: {error}", device, None
        raise FailedError(f"the engine was built and does not run: {error}") from error
    if not verdict.passed:
        raise DiffersError(
            f"{ready.where}: the engine does not compute what the model does: {verdict.failures[0]}",
            hint=f"build with --precision fp32; {FAULTS} says how to report it",
        )
    return f"equal to ONNX Runtime within {verdict.tolerance} on {device}", device, verdict


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
    try:
        with settings.backend.session(model, options) as session:
            case = fidelity.first_case(session, replace(settings, shapes={**shapes, **settings.shapes}))
            expected = session.run(case.feeds)
    except RuntimeFailure as error:
        raise NoAnswer(f"{settings.backend.name} does not run the model: {error}") from error
    gpu = backends()[bindings.module_name(flavour)]
    with gpu.session(engine, options) as session:
        elements = {io.name: io.element for io in session.inputs}
        feeds = {name: value.astype(dtype(elements[name])) for name, value in case.feeds.items() if name in elements}
        outputs = session.run(feeds)
    # TensorRT has types of its own for some outputs.
    typed = {name: outputs[name].astype(value.dtype) for name, value in expected.items() if name in outputs}
    checks = tuple(compare(name, value, typed.get(name), tolerance) for name, value in expected.items())
    failures = tuple(f"output {check.name!r}: {check.note}" for check in checks if not check.passed)
    return Verdict(
        level="full",
        passed=not failures,
        backend=f"{settings.backend.name}, {gpu.name}",
        cases=(CaseCheck(name=case.name, shapes=case.shapes, outputs=checks),),
        failures=failures,
        tolerance=str(tolerance),
    )
