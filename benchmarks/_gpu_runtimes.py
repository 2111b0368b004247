"""The part of a GPU run with runtimes of ONNX models: results, times of forms and models, where nodes run.

On every backend that is ready: the results of every strategy against ONNX Runtime on the CPU, the geometries of
_convs.py in fp32, tf32 and fp16, the models of this repository, and the providers that ONNX Runtime gives their nodes
to. The time is shared out; what it does not reach is a row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _common import retyped, table
from _convs import CONVS, Conv, in_turn
from _gpu_plan import Row, wanted
from _versions import AT_ONCE, forms_by, versions
from geometries import model as geometry_model
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.choice import choose
from dilrewrite.choice.choose import BROKEN
from dilrewrite.errors import DilrewriteError
from dilrewrite.forms.strategies import strategies
from dilrewrite.model.load import load
from dilrewrite.proof.carve import Source
from dilrewrite.proof.inputs import Chooser, parse_shapes
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    TimedBackend,
    TimedOut,
    TimeKind,
    backends,
    profiled,
    timed_backends,
)
from dilrewrite.runtimes._nvidia import driver_version
from dilrewrite.runtimes._worker import Child
from dilrewrite.sites import Found
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.timing import neighbourhood
from dilrewrite.timing.budget import CONFIRMATION, Budget
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.measure import Form, Meter
from dilrewrite.timing.profiling import Profiled
from dilrewrite.timing.stopwatch import Comparison
from models import OWN

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt")

PRECISIONS = ("tf32", "fp16", "fp32")
"""In the order in which the time that there is goes to them: what is used most comes first."""

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""A variable that CUDA's libraries heed when they are loaded; 0 keeps them from TF32."""

SHARES = {"correctness": 0.2, "geometries": 0.42, "models": 0.33, "placement": 0.05}
"""Of a backend's time. What a part leaves goes to the next one."""

SPARE = 0.92
"""The share of the minutes that is planned with: something always takes longer."""

GRACE = 0.25
"""How far a part may run over its share before it is cut off, as a share of its share."""

MOST_WORK = 16
"""A form whose multiply-adds are more than this many times the Conv's is not built for a geometry."""

MOST_BUDGET_S = 600.0
"""A budget that nothing here exceeds; a run may take twice as long before it counts as hanging."""

CHOICE = 0.4
"""The share of a model's time that `optimize` has."""

CHOSEN = "chosen.onnx"

LEAST_CHOICE_S = 2.0
"""`optimize` is not asked with a smaller budget."""

BUDGET = "budget"

FAILURES = (CannotLoad, CannotRun, Crashed, TimedOut)


# -- time ------------------------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """A part was cut off. Only `work_off` catches it: what is under way is over."""


@contextlib.contextmanager
def cut_off(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside after so many seconds, where the system can."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A piece of work: what its rows have in common, how they are made until a deadline, and how to begin afresh."""

    common: Row
    run: Callable[[float, list[Row]], None]
    reset: Callable[[], None] = lambda: None


def work_off(tasks: Sequence[Task], deadline: float, last: float, rows: list[Row], *, fair: bool) -> None:
    """Do the tasks in turn; after `deadline` (on the monotonic clock) none begins, after `last` one is cut off.

    `fair`: each gets as much of the time that is left as those after it, otherwise all of it.
    """
    for number, task in enumerate(tasks):
        left = deadline - time.monotonic()
        if left <= 0:
            rows.append({**task.common, "not_run": BUDGET})
            continue
        until = deadline - left * (1 - 1 / (len(tasks) - number)) if fair else deadline
        made: list[Row] = []
        try:
            with cut_off(last - time.monotonic()):
                task.run(until, made)
        except OutOfTime:
            task.reset()
            made.append({"not_run": f"{BUDGET}: cut off"})
        rows.extend({**task.common, **row} for row in made)


# -- backends --------------------------------------------------------------------------------------------------------


def trusted(backend: TimedBackend) -> TimedBackend:
    """The backend; raises ValueError for one whose times are not measured: they must reach no results."""
    if backend.source is not TimeKind.MEASURED:
        raise ValueError(f"{backend.name}: its times are {backend.source}, not measured: refused")
    return backend


def unready(backend: TimedBackend) -> str | None:
    """Why a backend cannot be used here, or None."""
    return backend.conflict() or backend.missing()


def driver_of(backend: TimedBackend) -> str:
    """The version of the device's driver."""
    if backend.name not in GPU_BACKENDS:
        return "none: a processor"
    return driver_version() or "not told: nvidia-ml-py is not installed"


@contextlib.contextmanager
def precision_set(backend: TimedBackend, precision: str) -> Iterator[str | None]:
    """Set what worker processes heed, and give `Options.precision`; raises LookupError for what a backend lacks.

    Models of fp16 are in float16 themselves. Engines are built without TF32 for fp32; ONNX Runtime's libraries are
    kept from it by their own variable.
    """
    builds = hasattr(backend, "flavour")
    if precision == "tf32" and backend.name not in GPU_BACKENDS:
        raise LookupError(f"{backend.name} has no TF32")
    before = os.environ.get(TF32_OVERRIDE)
    if precision == "fp32" and backend.name in GPU_BACKENDS and not builds:
        os.environ[TF32_OVERRIDE] = "0"
    try:
        yield precision if builds and precision != "fp16" else None
    finally:
        os.environ.pop(TF32_OVERRIDE, None)
        if before is not None:
            os.environ[TF32_OVERRIDE] = before


def samples(comparison: Comparison) -> Row:
    """A comparison as a row has it: how often was run, and what came out."""
    return {
        "runs": comparison.first.runs + comparison.second.runs,
        "pairs": comparison.pairs,
        "ratio": comparison.ratio,
        "low": comparison.low,
        "high": comparison.high,
        "noise": comparison.noise,
        "mode": comparison.mode,
        "faster": comparison.faster,
        "native_ms": comparison.first.median_s * 1e3,
        "form_ms": comparison.second.median_s * 1e3,
        "variation": max(comparison.first.variation, comparison.second.variation),
    }


# -- (a) results -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
    """A small dilated Conv with weights of -1, 0, 1: no sum is above 256, so fp16 and TF32 hold every one exactly."""

    label: str
    channels: int
    extents: tuple[int, ...]
    dilation: int
    group: int = 1
    pads: tuple[int, int] = (0, 0)

    def model(self) -> ModelProto:
        """The Conv alone."""
        rng = np.random.default_rng(0)
        rank = len(self.extents)
        weight = rng.integers(-1, 2, (self.channels, self.channels // self.group, *[3] * rank)).astype(np.float32)
        bias = rng.integers(-5, 6, self.channels).astype(np.float32)
        node = helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["y"],
            name="conv",
            dilations=[self.dilation] * rank,
            pads=[self.pads[0]] * rank + [self.pads[1]] * rank,
            kernel_shape=[3] * rank,
            group=self.group,
        )
        graph = helper.make_graph(
            [node],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, self.channels, *self.extents])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def x(self) -> Array:
        """The input: whole numbers of -2 to 2."""
        return np.random.default_rng(1).integers(-2, 3, (2, self.channels, *self.extents)).astype(np.float32)


SMALL = (
    Small(label="1-D k3 d4 4->4 at 30", channels=4, extents=(30,), dilation=4, pads=(4, 4)),
    Small(label="2-D k3 d3 4->4 at 12x14", channels=4, extents=(12, 14), dilation=3, pads=(3, 3)),
    Small(label="3-D k3 d2 4->4 at 8x8x9", channels=4, extents=(8, 8, 9), dilation=2, pads=(2, 2)),
    Small(label="2-D k3 d12 4->4 at 10x10, dead taps", channels=4, extents=(10, 10), dilation=12, pads=(12, 12)),
    Small(label="1-D k3 d4 g4 4->4 at 30 causal", channels=4, extents=(30,), dilation=4, group=4, pads=(8, 0)),
)


class Sessions:
    """Sessions one after the other in one child process, which is started anew when it dies."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def run(
        self, backend: TimedBackend, proto: ModelProto, options: Options, feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The outputs of a model. Raises one of FAILURES."""
        load = "load", pickle.dumps(backend), Runnable(model=proto.SerializeToString()), options
        try:
            if self._child is None:
                self._child = Child(options.timeout_s, *load)
            else:
                self._child.ask(*load)
            found: dict[str, Array] = self._child.ask("infer", dict(feeds), None)
        except (Crashed, TimedOut):
            self.close()
            raise
        return found

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None


def correctness(backend: TimedBackend, stack: contextlib.ExitStack, scratch: Path) -> Iterator[Task]:
    """The tasks of part (a). Precisions that need nothing else of the environment share a process."""
    shared: dict[str | None, Sessions] = {}
    for precision in PRECISIONS:
        try:
            with precision_set(backend, precision) as asked:
                options = Options(isolated=False, timeout_s=120, scratch=scratch)
                sessions = shared.setdefault(os.environ.get(TF32_OVERRIDE), Sessions())
                runtime = backend.building(asked)
        except LookupError as error:
            yield Task(
                common={"part": "correctness", "precision": precision},
                run=lambda _, rows, error=error: rows.append({"not_run": str(error)}),
            )
            continue
        stack.callback(sessions.close)
        for small in SMALL:

            def run(
                until: float,
                rows: list[Row],
                one: Small = small,
                precision: str = precision,
                sessions: Sessions = sessions,
                options: Options = options,
                runtime: TimedBackend = runtime,
            ) -> None:
                with precision_set(backend, precision):
                    check(one, precision, functools.partial(sessions.run, runtime), options, until, rows)

            common = {"part": "correctness", "precision": precision, "geometry": small.label}
            yield Task(common=common, run=run, reset=sessions.close)


def check(
    small: Small,
    precision: str,
    outputs: Callable[[ModelProto, Options, Mapping[str, Array]], dict[str, Array]],
    options: Options,
    until: float,
    rows: list[Row],
) -> None:
    """Compare the Conv as it is and every form of it with the Conv on the CPU."""
    proto, x = small.model(), small.x()
    runnable = Runnable(model=proto.SerializeToString())
    with backends()["onnxruntime_cpu"].session(runnable, Options(isolated=False)) as session:
        wanted = session.run({"x": x})["y"].astype(np.float64)
    assert np.max(np.abs(wanted)) <= 256
    if precision == "fp16":
        proto, x = retyped(proto, "float16"), x.astype(np.float16)
    found = find(proto)
    (site,) = found.sites
    offered, refused = choose.candidates(site, forms_by(AT_ONCE))
    rows += [{"form": one.strategy, "not_run": f"refuses: {one.reason}"} for one in refused]
    for one in sorted(offered, key=lambda one: one.strategy != "keep"):
        name, made = one.strategy, proto
        if name != "keep":
            if time.monotonic() >= until:
                rows.append({"form": name, "not_run": BUDGET})
                continue
            made = rewrite(proto, [(site, one.fragment)], found.normalisations, numpy_helper.to_array).proto
        try:
            got = outputs(made, options, {"x": x})["y"].astype(np.float64)
        except FAILURES as error:
            rows.append({"form": name, "not_run": str(error), "failed": True})
            continue
        difference = float(np.max(np.abs(got - wanted))) if got.shape == wanted.shape else math.inf
        passed = difference < 0.5  # a wrong formula is wrong by a whole number
        rows.append(
            {
                "form": name,
                "difference": difference if math.isfinite(difference) else None,
                "outcome": ("equal" if difference == 0 else "rounds") if passed else "WRONG",
                "passed": passed,
                "elements": int(wanted.size),
                "runs": 1,
                "pairs": 0,
            }
        )


# -- (b) geometries --------------------------------------------------------------------------------------------------


def geometries(
    backend: TimedBackend, stack: contextlib.ExitStack, scratch: Path, doubts: list[str], only: str, seconds: float
) -> Iterator[Task]:
    """The tasks of part (b): each geometry in each precision."""
    meters: dict[str, Meter] = {}
    refused: dict[str, str] = {}
    for precision in PRECISIONS:
        try:
            with precision_set(backend, precision) as asked:
                sessions = Options(scratch=scratch)
                meters[precision] = Meter.on(backend.building(asked), Cache(None), Budget(MOST_BUDGET_S), sessions)
        except LookupError as error:
            refused[precision] = str(error)
            continue
        stack.callback(_close, meters[precision], f"geometries in {precision}", doubts)
    for conv in in_turn(CONVS):
        if not wanted(only, f"{conv.network} {conv.label}"):
            continue
        for precision in PRECISIONS:
            common = {
                "part": "geometries",
                "precision": precision,
                "network": conv.network,
                "geometry": conv.label,
            }
            if precision in refused:
                why = refused[precision]
                yield Task(common=common, run=lambda _, rows, why=why: rows.append({"not_run": why}))
                continue
            meter = meters[precision]

            def run(
                until: float, rows: list[Row], conv: Conv = conv, precision: str = precision, meter: Meter = meter
            ) -> None:
                with precision_set(backend, precision):
                    sweep(conv, precision, meter, until, seconds, rows)

            yield Task(common=common, run=run, reset=meter.close)


def _close(meter: Meter, what: str, doubts: list[str]) -> None:
    """End a meter, and keep what makes its times doubtful."""
    meter.close()
    doubts.extend(f"{what}: {doubt}" for doubt in meter.doubts)


def sweep(conv: Conv, precision: str, meter: Meter, until: float, seconds: float, rows: list[Row]) -> None:
    """Time every form of one geometry against the Conv, in its neighbourhood, until the deadline."""
    proto = geometry_model(conv)
    if precision == "fp16":
        proto = retyped(proto, "float16")
    (site,) = find(proto).sites
    offered, refused = choose.candidates(site, forms_by(AT_ONCE))
    work = next((one.multiply_adds for one in offered if one.strategy == "keep"), 0)
    wanted = choose.distinct([one for one in offered if one.strategy != "keep"])
    forms = []
    for one in wanted:
        if work and one.multiply_adds > MOST_WORK * work:
            times = f"{one.multiply_adds / work:.0f} times the Conv's multiply-adds, and {MOST_WORK} are tried here"
            rows.append({"form": one.strategy, "not_run": times})
        else:
            forms.append(Form(strategy=one.strategy, fragment=one.fragment, prove=lambda: None))
    rows += [{"form": one.strategy, "not_run": f"refuses: {one.reason}"} for one in refused]
    profiled = Profiled(seconds=0.0, sites={}, tensors={})

    def ask(bare: bool) -> neighbourhood.Question:
        source, ranks = Source(proto), meter.backend.layout_ranks
        return neighbourhood.ask(source, site, profiled, numpy_helper.to_array, ranks, bare=bare)

    budget = meter.budget
    if budget.now() == 0:
        budget.begin()
    # The meter keeps a part of its budget for the whole model, of which there is none here.
    budget.winner = True
    budget.seconds = (budget.now() + max(until - time.monotonic(), 0.0)) / (1 - CONFIRMATION)
    answer = meter.answer(ask(False), lambda: ask(True), forms, seconds, must_go=False)
    for name, form in answer.forms.items():
        if form.timing is None:
            failed = {"failed": True} if form.outcome in BROKEN else {}
            rows.append({"form": name, "not_run": form.cause or BUDGET, **failed})
        else:
            rows.append({"form": name, **samples(form.timing)})


# -- (c) models ------------------------------------------------------------------------------------------------------


def entries() -> list[tuple[Path, list[str]]]:
    """The models of this repository, each with the sizes of its inputs."""
    found = []
    for entry in OWN:
        words: Sequence[str] = entry.get("arguments", ())  # type: ignore[assignment]
        shapes = [words[i + 1] for i, word in enumerate(words) if word == "--shape"]
        found.append((ROOT / str(entry["path"]), shapes))
    return found


def feeds_of(path: Path, shapes: Sequence[str]) -> dict[str, Array]:
    """Seeded data that the model runs on."""
    with backends()["onnxruntime_cpu"].session(Runnable(model=path), Options()) as session:
        given = parse_shapes(shapes, [io.name for io in session.inputs])
        case, _ = Chooser(session.inputs, given=given, user={}, seed=0).first(session.run)
    return dict(case.feeds)


def models(backend: TimedBackend, stack: contextlib.ExitStack, doubts: list[str]) -> Iterator[Task]:
    """The tasks of part (c): each model, in its own precision."""
    for path, shapes in entries():
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dilrewrite-")))

        def run(
            until: float, rows: list[Row], path: Path = path, shapes: Sequence[str] = shapes, scratch: Path = scratch
        ) -> None:
            whole_model(backend, path, shapes, scratch, until, rows, doubts)

        yield Task(common={"part": "models", "model": path.stem}, run=run)


def whole_model(
    backend: TimedBackend,
    path: Path,
    shapes: Sequence[str],
    scratch: Path,
    until: float,
    rows: list[Row],
    doubts: list[str],
) -> None:
    """Time `optimize`'s choice and every strategy at all sites against the model as it is, cheapest estimate first."""

    def left() -> float:
        return until - time.monotonic()

    feeds = feeds_of(path, shapes)
    choice = _choice(backend, path, shapes, scratch, CHOICE * left())
    if "chosen" not in choice:
        rows.append(choice)
    model = load(path)
    found = find(model.proto)
    tasks = [(choice, Runnable(model=scratch / CHOSEN))] if "chosen" in choice else []
    for one in sorted(versions(model, found, {}, AT_ONCE), key=lambda one: _estimate(found, one.name)):
        if one.name != "original":
            row = {"form": one.name, "sites": len(found.sites), "rewritten": one.rewritten}
            tasks.append((row, Runnable(model=one.proto.SerializeToString())))
    meter = Meter.on(backend, Cache(None), Budget(MOST_BUDGET_S), Options(scratch=scratch))
    budget = meter.budget
    budget.begin()
    try:
        for number, (row, runnable) in enumerate(tasks):
            if left() <= 0:
                rows.append({**row, "not_run": BUDGET})
                continue
            budget.seconds = budget.now() + left()
            share, digests = 1 / (len(tasks) - number), ("original", str(row["form"]))
            try:
                compared = meter.whole(Runnable(model=path), runnable, digests, feeds, run_s=budget.run_s, share=share)
            except FAILURES as error:
                meter.close()
                rows.append({**row, "not_run": str(error), "failed": True})
                continue
            rows.append({**row, **samples(compared), "first_s": dict(meter.first_s)})
    finally:
        _close(meter, path.stem, doubts)


def _estimate(found: Found, name: str) -> tuple[bool, float]:
    """The order in which strategies are timed: those for finite inputs only last, the cheapest by estimate first."""
    costs = 0.0
    for site in found.sites:
        offered = {one.strategy: one.cost for one in choose.candidates(site, forms_by(AT_ONCE))[0]}
        costs += offered.get(name, offered.get("keep", 0.0))
    return name in strategies() and strategies()[name].finite_inputs_only, costs


def _choice(backend: TimedBackend, path: Path, shapes: Sequence[str], scratch: Path, budget_s: float) -> Row:
    """What `optimize` makes of a model, in `scratch`; with the key "chosen" where there is something to time."""
    row: Row = {"form": "optimize"}
    if budget_s < LEAST_CHOICE_S:
        return {**row, "not_run": BUDGET}
    try:
        report = dilrewrite.optimize(
            path,
            scratch / CHOSEN,
            backend=backend.name,
            budget=budget_s,
            shapes=shapes,
            verify="sites",
            no_cache=True,
        )
    except DilrewriteError as error:
        return {**row, "not_run": error.message, "failed": True}
    row |= {"sites": len(report.sites), "rewritten": report.rewritten}
    if report.status != "rewritten":
        reasons = "; ".join(dict.fromkeys(site.reason for site in report.sites))
        return {**row, "not_run": f"{report.status}: nothing to time against the model ({reasons})"}
    return {**row, "chosen": sorted({site.strategy for site in report.sites if site.action == "rewritten"})}


# -- (d) placement ---------------------------------------------------------------------------------------------------


def placements(backend: TimedBackend) -> Iterator[Task]:
    """The tasks of part (d): which providers run the nodes of each model and its rewritten versions."""
    if backend.name != "onnxruntime_tensorrt":
        return
    for path, shapes in entries():

        def run(until: float, rows: list[Row], path: Path = path, shapes: Sequence[str] = shapes) -> None:
            from dilrewrite.runtimes.onnxruntime_tensorrt import placement

            feeds = feeds_of(path, shapes)
            model = load(path)
            for one in versions(model, find(model.proto), {}, AT_ONCE):
                if time.monotonic() >= until:
                    rows.append({"form": one.name, "not_run": BUDGET})
                    continue
                runnable = Runnable(model=one.proto.SerializeToString())
                options = Options(timeout_s=120, isolated=False)
                try:
                    found = profiled(backend, runnable, options, feeds, 1)
                except FAILURES as error:
                    rows.append({"form": one.name, "not_run": str(error), "failed": True})
                    continue
                rows.append({"form": one.name, "placed": placement(found), "runs": max(found.runs, 1), "pairs": 0})

        yield Task(common={"part": "placement", "model": path.stem}, run=run)


# -- all of it -------------------------------------------------------------------------------------------------------


def collect(
    chosen: Mapping[str, TimedBackend],
    seconds: float,
    *,
    only: str = "",
    slice_s: float = 0.3,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure on every backend of `chosen` that is ready, for about so many seconds; all rows and what they are of.

    `keep` has what there is so far, again and again: parts that are not done say so in a row.
    Raises ValueError for a backend whose times are not measured.
    """
    start = time.monotonic()
    for backend in chosen.values():
        trusted(backend)
    rows: list[Row] = []
    about: list[dict[str, Any]] = []
    why = {name: unready(backend) for name, backend in chosen.items()}
    ready = [backend for name, backend in chosen.items() if why[name] is None]
    for name, reason in why.items():
        if reason is not None:
            rows += [{"part": part, "backend": name, "not_run": reason} for part in parts_of(name)]
            print(f"{name}: not ready: {reason}", flush=True)
    waiting = [(backend.name, part) for backend in ready for part in parts_of(backend.name)]

    def found() -> dict[str, Any]:
        late = [{"part": part, "backend": name, "not_run": "not reached"} for name, part in waiting]
        not_ready = {name: reason for name, reason in why.items() if reason is not None}
        return {"backends": about, "not_ready": not_ready, "rows": [*rows, *late]}

    def told(name: str, part: str) -> None:
        waiting.remove((name, part))
        keep(found())

    keep(found())
    begin = time.monotonic()
    for number, backend in enumerate(ready):
        end = begin + (start + seconds * SPARE - begin) * (number + 1) / len(ready)
        _on(backend, end, start + seconds, rows, about, only=only, slice_s=slice_s, told=told)
    return found()


def parts_of(name: str) -> list[str]:
    """The parts that a backend has."""
    return [part for part in SHARES if part != "placement" or name == "onnxruntime_tensorrt"]


def _on(
    backend: TimedBackend,
    end: float,
    last: float,
    rows: list[Row],
    abouts: list[dict[str, Any]],
    *,
    only: str,
    slice_s: float,
    told: Callable[[str, str], None],
) -> None:
    """Measure on one backend: its rows go to `rows`, what it is to `abouts`; `told` is called after each part."""
    device, driver = backend.device(), driver_of(backend)
    source = "gpu" if backend.name in GPU_BACKENDS else "cpu"
    states: list[dict[str, Any]] = []
    doubts: list[str] = []
    settings = {}
    for precision in PRECISIONS:
        with contextlib.suppress(LookupError), precision_set(backend, precision) as asked:
            settings[precision] = backend.building(asked).settings(Options())
    abouts.append(
        {
            "backend": backend.name,
            "device": device,
            "driver": driver,
            "versions": backend.versions(),
            "settings": settings,
            "pace": dataclasses.asdict(backend.pace),
            "states": states,
            "doubts": doubts,
        }
    )
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dilrewrite-")))
        parts = {
            "correctness": list(correctness(backend, stack, scratch)),
            "geometries": list(geometries(backend, stack, scratch, doubts, only, slice_s)),
            "models": list(models(backend, stack, doubts)),
            "placement": list(placements(backend)),
        }
        shares = {part: SHARES[part] / sum(SHARES[some] for some in parts if parts[some]) for part in parts}
        done = 0.0
        for part, tasks in parts.items():
            if not tasks:
                continue
            done += shares[part]
            deadline = start + (end - start) * done
            cut = min(deadline + GRACE * shares[part] * (end - start), last)
            made: list[Row] = []
            states.append({"part": part, "when": "before", **backend.state()})
            began = time.monotonic()
            work_off(tasks, deadline, cut, made, fair=part != "geometries")
            states.append({"part": part, "when": "after", **backend.state()})
            common = {"backend": backend.name, "device": device, "driver": driver}
            rows += [{**common, **({} if "not_run" in row else {"source": source}), **row} for row in made]
            measured = sum("not_run" not in row for row in made)
            print(
                f"{backend.name}: {part}: {measured} of {len(made)} rows measured ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            told(backend.name, part)


# -- the page --------------------------------------------------------------------------------------------------------


def page(data: Mapping[str, Any]) -> list[str]:
    """The sections of a page of results: `backends` and `not_ready` as `collect` makes them, and `rows`."""
    lines = []
    for name, reason in data["not_ready"].items():
        lines.append(f"- `{name}`: not run: {reason}")
    lines += [""] if data["not_ready"] else []
    for about in data["backends"]:
        own = [row for row in data["rows"] if row.get("backend") == about["backend"]]
        rows = [row for row in own if set(row) != {"part", "backend", "not_run"}]
        late = [f"{row['part']}: {row['not_run']}" for row in own if row not in rows]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        lines += [
            f"## {about['backend']}",
            "",
            f"Device: {about['device']}; driver: {about['driver']}; {versions}. Forms of geometries and models were "
            "not proved on the way: tests and `optimize` do that.",
            "",
            *_state_page(about["states"]),
            *([f"Doubts: {'; '.join(about['doubts'])}.", ""] if about["doubts"] else []),
            *([f"Not run: {'; '.join(late)}.", ""] if late else []),
            *_correctness_page([row for row in rows if row["part"] == "correctness"]),
            *_geometries_page([row for row in rows if row["part"] == "geometries"]),
            *_models_page([row for row in rows if row["part"] == "models"]),
            *_placement_page([row for row in rows if row["part"] == "placement"]),
        ]
    return lines


def _state_page(states: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [state for state in states if len(state) > 2]
    if not told:
        return ["Clocks, power and temperature: not told.", ""]
    keys = list(dict.fromkeys(key for state in told for key in state))
    rows = [[str(state.get(key, "-")) for key in keys] for state in told]
    return table([key if key in ("part", "when") else f"#{key}" for key in keys], rows)


def _said(row: Mapping[str, Any]) -> str:
    return f"not run: {row['not_run']}".replace("|", "\\|")[:200]


def _refuses(row: Mapping[str, Any]) -> bool:
    return str(row.get("not_run", "")).startswith("refuses: ")


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by precision, network and geometry."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = (row["precision"], row.get("network", ""), row.get("geometry", "every geometry"))
        groups.setdefault(key, []).append(row)
    return groups


def _correctness_page(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "### Results against ONNX Runtime on the CPU",
        "",
        "Largest difference on whole numbers, whose sums every precision holds exactly: 0 is equal bit for bit, less "
        "than 0.5 a kernel's rounding, anything else WRONG. `-`: refuses; `?`: not run (the JSON says why). One run "
        "each, of as many elements as stated.",
        "",
    ]
    names = ["keep", *(name for name in strategies() if name != "keep")]
    made = []
    for (precision, _, geometry), group in _grouped(rows).items():
        known = {row["form"]: row for row in group if "form" in row}
        ran = [str(row["elements"]) for row in group if "elements" in row]
        elements = (ran or [_said(row) for row in group if "not_run" in row and not _refuses(row)] or ["-"])[0]
        made.append((precision, geometry, elements, *(_checked(known.get(name)) for name in names)))
    return [*lines, *table(("precision", "geometry", "#elements", *(f"#{name}" for name in names)), made)]


def _checked(row: Mapping[str, Any] | None) -> str:
    if row is None or "not_run" in row:
        return "-" if row is not None and _refuses(row) else "fails" if row is not None and row.get("failed") else "?"
    return f"{row['difference']:.2g}" if row["passed"] else f"**WRONG** ({row['difference']})"


def _geometries_page(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "### Forms against the dilated Conv",
        "",
        "Time of a form as a multiple of the dilated Conv's, with their neighbours; **bold**: faster beyond margin, "
        "noise and interval; `-`: does not apply; `?`: not run (the JSON says why). Pairs: fewest to most of the row.",
        "",
    ]
    names = [name for name in strategies() if name != "keep"]
    timed = []
    unreached: dict[tuple[str, str, str], list[str]] = {}
    for (precision, network, geometry), group in _grouped(rows).items():
        some = [row for row in group if "ratio" in row]
        if not some:
            reason = next((_said(row) for row in group if not _refuses(row)), "not run: no form applies")
            unreached.setdefault((network, geometry, reason), []).append(precision)
            continue
        known = {row["form"]: row for row in group if "form" in row}
        pairs = sorted(row["pairs"] for row in some)
        noise = some[0]["noise"]
        timed.append(
            (
                precision,
                network,
                geometry,
                f"{some[0]['native_ms']:.3g}",
                "-" if noise is None else f"{100 * noise:.1f}",
                f"{pairs[0]}" if pairs[0] == pairs[-1] else f"{pairs[0]} to {pairs[-1]}",
                *(_cell(known.get(name)) for name in names),
            )
        )
    lines += table(
        ("precision", "network", "geometry", "#Conv, ms", "#noise, %", "#pairs", *(f"#{name}" for name in names)), timed
    )
    if unreached:
        lines += ["Geometries without a timing:", ""]
        why = [(network, geometry, ", ".join(some), reason) for (network, geometry, reason), some in unreached.items()]
        lines += table(("network", "geometry", "precision", "why"), why)
    return lines


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or _refuses(row):
        return "-"
    if "not_run" in row:
        return "fails" if row.get("failed") else "?"
    text = f"{row['ratio']:.2f}" if row["ratio"] < 10 else f"{row['ratio']:.0f}"
    return f"**{text}**" if row["faster"] else text


def _models_page(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "### Whole models",
        "",
        "Each strategy at all sites of a model that it does not refuse, and what `optimize` chose, against the model "
        "as it is, in its own precision.",
        "",
    ]
    made = []
    for row in rows:
        name = row.get("form", "all")
        form = f"optimize: {', '.join(row['chosen'])}" if "chosen" in row else name
        sites = f"{row['rewritten']} of {row['sites']}" if "sites" in row else "-"
        if "not_run" in row:
            made.append((row["model"], form, sites, "-", "-", _said(row), "-", "-"))
            continue
        made.append(
            (
                row["model"],
                form,
                sites,
                f"{row['native_ms']:.3g}",
                f"**{row['ratio']:.3f}**" if row["faster"] else f"{row['ratio']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                str(row["pairs"]),
                str(row["runs"]),
            )
        )
    columns = ("model", "version", "sites", "#model, ms", "#after / before", "interval, or why not", "#pairs", "#runs")
    return [*lines, *table(columns, made)]


def _placement_page(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["### Where nodes run", "", "Node runs of one run by provider; an engine of TensorRT is one node.", ""]
    made = [
        (
            row["model"],
            row.get("form", "all"),
            ", ".join(f"{count} {name}" for name, count in row["placed"].items()) if "placed" in row else _said(row),
            str(row.get("runs", 0)),
        )
        for row in rows
    ]
    return [*lines, *table(("model", "version", "providers", "#runs"), made)]


# -- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and keep in a file what there is after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", required=True, help="by commas")
    parser.add_argument("--until", type=float, required=True, help="when all is to be over, on the monotonic clock")
    parser.add_argument("--seconds", type=float, required=True, help="for one form")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args()
    known = timed_backends()

    def keep(data: dict[str, Any]) -> None:
        place = options.keep.with_suffix(".part")
        place.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
        place.replace(options.keep)

    chosen = {name: known[name] for name in options.backends.split(",")}
    left = max(options.until - time.monotonic(), 1.0)
    keep(collect(chosen, left, only=options.only, slice_s=options.seconds, keep=keep))


if __name__ == "__main__":
    main()
