"""Profiles: every dilated Conv's share of the time and the shapes it ran with, wherever in the model it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, parser

from dilrewrite.model.walk import ScopePath, resolve, scopes
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    NodeRun,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimedOut,
    timed_backend,
)
from dilrewrite.runtimes._onnxruntime import plain_name
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.timing.profiling import (
    FEWEST_RUNS,
    MOST_RUNS,
    PARTS,
    Place,
    Profiled,
    SiteRun,
    digest,
    profile,
    runs,
    traced,
)
from tests import models_for_tests as tiny
from tests.models_for_tests import build, conv1d, conv2d, conv_node, values
from tests.proto_diff import diff

Shapes = tuple[tuple[int, ...], ...]

OPTIONS = Options(threads=1)
HALF: dict[str, Any] = {"dtype": np.float16, "element": TensorProto.FLOAT16}
ISOLATED = "dilrewrite.timing.profiling.profiled"


# -- models --------------------------------------------------------------------------------------------------------


def weights(*dims: int, name: str = "w") -> str:
    numbers = ",".join(str((place * 7 + 3) % 11 - 5) for place in range(int(np.prod(dims))))
    return f"float[{','.join(map(str, dims))}] {name} = {{{numbers}}}"


def text(
    body: str,
    inputs: str = "float[1,2,t] x",
    outputs: str = "float[1,2,u] y",
    held: str = weights(2, 2, 3),
    functions: str = "",
) -> ModelProto:
    domains = '"": 17, "local": 1' if functions else '"": 17'
    head = f"<ir_version: 8, opset_import: [{domains}]> g ({inputs}) => ({outputs}) <{held}>"
    return parser.parse_model(f"{head} {{ {body} }}\n{functions}")


def conv(rate: int, *, rank: int = 1, pads: Sequence[int] = (), kernel: int | None = None) -> str:
    more = f", kernel_shape={[kernel] * rank}" if kernel else ""
    return f"Conv <dilations={[rate] * rank}, pads={list(pads) or [rate] * 2 * rank}{more}>"


def loop(body: str) -> ModelProto:
    """`body` makes r of v, trip after trip."""
    return text(
        "y = Loop (trips, go, x) <body = b (int64 i, bool k, float[1,2,n] v) => (bool k2, float[1,2,o] r) "
        f"{{ {body} k2 = Identity (k) }}>",
        "float[1,2,t] x, int64 trips, bool go",
    )


def if_both(*, channels: int = 2, size: str = "12") -> ModelProto:
    """A Conv in each branch, both with the same output name."""
    rank = size.count(",") + 1
    dims = f"float[1,{channels},{size}]"
    return text(
        f"y = If (go) <then_branch = a () => ({dims} r) {{ r = {conv(2, rank=rank)} (x, w) }}, "
        f"else_branch = b () => ({dims} r) {{ r = {conv(4, rank=rank)} (x, w) }}>",
        f"{dims} x, bool go",
        f"{dims} y",
        weights(channels, channels, *(3,) * rank),
    )


def scan() -> ModelProto:
    return text(
        "y, z = Scan <num_scan_inputs=1, body = b (float[1,2,n] v, float[1,2,n] e) => (float[1,2,n] r, float[1,2,n] q) "
        f"{{ q = {conv(2)} (e, w) r = Add (v, q) }}> (x, s)",
        "float[1,2,12] x, float[5,1,2,12] s",
        "float[1,2,12] y, float[5,1,2,12] z",
    )


def functions(*, channels: int = 2, size: str = "20") -> ModelProto:
    """`inner` is called by the main graph and, twice, by `outer`."""
    rank = size.count(",") + 1
    inner, outer = conv(2, rank=rank, kernel=3), conv(4, rank=rank, kernel=3)
    return text(
        "a = local.outer (x, w) b = local.inner (a, w) y = local.outer (b, w)",
        f"float[1,{channels},{size}] x",
        f"float[1,{channels},{size}] y",
        weights(channels, channels, *(3,) * rank),
        f'<domain: "local", opset_import: ["": 17]> inner (p, q) => (r) {{ t = {inner} (p, q) r = Relu (t) }}\n'
        f'<domain: "local", opset_import: ["": 17, "local": 1]> '
        f"outer (p, q) => (r) {{ s = {outer} (p, q) r = local.inner (s, q) }}",
    )


def conv3d() -> ModelProto:
    return build(
        [conv_node(dilations=[2] * 3, pads=[2] * 6)],
        {"x": [1, 2, 6, 5, 4]},
        {"y": [1, 2, None, None, None]},
        {"w": values(2, 2, 3, 3, 3)},
    )


def residual(*, channels: int = 16) -> ModelProto:
    """Conv, BatchNormalization, Add, Relu: what a runtime fuses."""
    c = channels
    return build(
        [
            conv_node("x", "c", dilations=[2, 2], pads=[2] * 4),
            helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
            helper.make_node("Add", ["n", "x"], ["a"]),
            helper.make_node("Relu", ["a"], ["y"]),
        ],
        {"x": [1, c, 12, 12]},
        {"y": [1, c, 12, 12]},
        {
            "w": values(c, c, 3, 3),
            **{name: np.ones(c, np.float32) for name in ("scale", "shift", "mean", "variance")},
        },
    )


def padded() -> ModelProto:
    """A Pad that the runtime makes the Conv's own."""
    return build(
        [helper.make_node("Pad", ["x", "p"], ["xp"]), conv_node("xp", "y", dilations=[2, 2])],
        {"x": [1, 16, 12, 12]},
        {"y": [1, 16, 12, 12]},
        {"w": values(16, 16, 3, 3), "p": np.array([0, 0, 2, 2, 0, 0, 2, 2])},
    )


def renamed(model: ModelProto, name: str) -> ModelProto:
    for node in model.graph.node:
        node.name = name
    return model


# -- real runs -----------------------------------------------------------------------------------------------------


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, SiteRun]:
    """Profile a model; how each site ran, by its key."""
    sites = find(model).sites
    found = profile(timed_backend("onnxruntime_cpu"), Subject(model, Path()), sites, OPTIONS, feeds)
    assert found.seconds > 0
    assert len(found.sites) == len(sites)
    return {site.key: found.sites[site.key] for site in sites}


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a profile must say of a model: (shapes, times) by site, and the sites whose share it may leave open."""

    model: Callable[[], ModelProto]
    feeds: Mapping[str, Array]
    sites: Mapping[str, tuple[Shapes, int]]
    open: frozenset[str] = frozenset()


X20 = ones(1, 2, 20)
TRIPS = {"x": X20, "go": np.array(True)}
TWICE = loop(f"a = {conv(2)} (v, w) r = {conv(4)} (a, w)").SerializeToString()
BLOCKED = {"x": ones(1, 16, 12, 12)}

CASES: dict[str, Ran] = {
    "1-D": Ran(model=conv1d, feeds={"x": ones(1, 2, 16)}, sites={"main/y": (((1, 2, 16),), 1)}),
    "two sites": Ran(
        model=tiny.two_convs, feeds={"x": X20}, sites={"main/a": (((1, 2, 20),), 1), "main/y": (((1, 2, 20),), 1)}
    ),
    "2-D": Ran(model=conv2d, feeds={"x": ones(1, 2, 12, 12)}, sites={"main/c": (((1, 2, 12, 12),), 1)}),
    "2-D in blocks": Ran(model=lambda: conv2d(channels=16), feeds=BLOCKED, sites={"main/c": (((1, 16, 12, 12),), 1)}),
    "unknown extents": Ran(
        model=lambda: conv2d(channels=16, size=None, batch=None),
        feeds={"x": ones(3, 16, 13, 11)},
        sites={"main/c": (((3, 16, 13, 11),), 1)},
    ),
    "unknown rank": Ran(
        model=lambda: text(f"y = {conv(2)} (x, w)", "float[] x"),
        feeds={"x": ones(1, 2, 9)},
        sites={"main/y": (((1, 2, 9),), 1)},
    ),
    "3-D": Ran(model=conv3d, feeds={"x": ones(1, 2, 6, 5, 4)}, sites={"main/y": (((1, 2, 6, 5, 4),), 1)}),
    "loop": Ran(
        model=lambda: ModelProto.FromString(TWICE),
        feeds={**TRIPS, "trips": np.array(3)},
        sites={"main/Loop#0.body/a": (((1, 2, 20),), 3), "main/Loop#0.body/r": (((1, 2, 20),), 3)},
    ),
    "loop without a trip": Ran(
        model=lambda: ModelProto.FromString(TWICE),
        feeds={**TRIPS, "trips": np.array(0)},
        sites={"main/Loop#0.body/a": ((), 0), "main/Loop#0.body/r": ((), 0)},
    ),
    "loop that grows": Ran(
        model=lambda: loop(f"r = {conv(2, pads=(3, 2))} (v, w)"),
        feeds={**TRIPS, "trips": np.array(3)},
        sites={"main/Loop#0.body/r": (((1, 2, 20), (1, 2, 21), (1, 2, 22)), 3)},
    ),
    "then": Ran(
        model=if_both,
        feeds={"x": ones(1, 2, 12), "go": np.array(True)},
        sites={"main/If#0.then_branch/r": (((1, 2, 12),), 1), "main/If#0.else_branch/r": ((), 0)},
    ),
    "else": Ran(
        model=if_both,
        feeds={"x": ones(1, 2, 12), "go": np.array(False)},
        sites={"main/If#0.then_branch/r": ((), 0), "main/If#0.else_branch/r": (((1, 2, 12),), 1)},
    ),
    "branches in blocks": Ran(
        model=lambda: if_both(channels=16, size="12,12"),
        feeds={**BLOCKED, "go": np.array(True)},
        sites={"main/If#0.then_branch/r": (((1, 16, 12, 12),), 1), "main/If#0.else_branch/r": ((), 0)},
        open=frozenset({"main/If#0.then_branch/r"}),
    ),
    "scan": Ran(
        model=scan,
        feeds={"x": ones(1, 2, 12), "s": ones(5, 1, 2, 12)},
        sites={"main/Scan#0.body/q": (((1, 2, 12),), 5)},
    ),
    "functions": Ran(
        model=functions,
        feeds={"x": X20},
        sites={"function local:inner/t": (((1, 2, 20),), 3), "function local:outer/s": (((1, 2, 20),), 2)},
    ),
    "functions in blocks": Ran(
        model=lambda: functions(channels=16, size="12,12"),
        feeds=BLOCKED,
        sites={
            "function local:inner/t": (((1, 16, 12, 12),), 3),
            "function local:outer/s": (((1, 16, 12, 12),), 2),
        },
        open=frozenset({"function local:inner/t", "function local:outer/s"}),
    ),
    "equal names": Ran(
        model=lambda: renamed(tiny.two_convs(), "same"),
        feeds={"x": X20},
        sites={"main/a": (((1, 2, 20),), 1), "main/y": (((1, 2, 20),), 1)},
    ),
    "no names": Ran(
        model=lambda: renamed(tiny.two_convs(), ""),
        feeds={"x": X20},
        sites={"main/a": (((1, 2, 20),), 1), "main/y": (((1, 2, 20),), 1)},
    ),
    "names of this tool": Ran(
        model=lambda: renamed(tiny.two_convs(), "dilrewrite_0_"),
        feeds={"x": X20},
        sites={"main/a": (((1, 2, 20),), 1), "main/y": (((1, 2, 20),), 1)},
    ),
    "fused": Ran(model=residual, feeds=BLOCKED, sites={"main/c": (((1, 16, 12, 12),), 1)}),
    "fused, no blocks": Ran(
        model=lambda: residual(channels=3),
        feeds={"x": ones(1, 3, 12, 12)},
        sites={"main/c": (((1, 3, 12, 12),), 1)},
    ),
    "float16": Ran(
        model=lambda: conv1d(**HALF),
        feeds={"x": ones(1, 2, 16, dtype=np.float16)},
        sites={"main/y": (((1, 2, 16),), 1)},
    ),
    "float16 in blocks": Ran(
        model=lambda: conv2d(channels=16, **HALF),
        feeds={"x": ones(1, 16, 12, 12, dtype=np.float16)},
        sites={"main/c": (((1, 16, 12, 12),), 1)},
    ),
    "quantised": Ran(model=tiny.quantized, feeds={"x": ones(1, 2, 16)}, sites={"main/c": (((1, 2, 16),), 1)}),
    "pad taken in": Ran(model=padded, feeds=BLOCKED, sites={"main/y": (((1, 16, 16, 16),), 1)}),
    "empty batch": Ran(model=tiny.no_batch, feeds={"x": ones(0, 2, 16)}, sites={"main/y": (((0, 2, 16),), 1)}),
}


@pytest.mark.usefixtures("profiled_in_process")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_site_tells_how_it_ran(case: Ran) -> None:
    found = run(case.model(), case.feeds)
    assert {key: (ran.shapes, ran.times) for key, ran in found.items()} == case.sites
    for key, ran in found.items():
        if ran.share is None:
            assert key in case.open
        else:
            assert 0 <= ran.share <= 1
        if not ran.times:
            assert ran.share == 0
    assert sum(ran.share or 0 for ran in found.values()) <= 1.2, (
        "a node's time is part of the model's, but for rounding"
    )


def test_in_a_child_process() -> None:
    found = run(tiny.two_convs(), {"x": X20})
    assert {key: ran.shapes for key, ran in found.items()} == {"main/a": ((1, 2, 20),), "main/y": ((1, 2, 20),)}
    assert all(ran.share is not None and 0 <= ran.share <= 1 for ran in found.values())


@pytest.mark.usefixtures("profiled_in_process")
def test_tensors_of_all_scopes_have_their_shapes() -> None:
    model = loop(f"a = {conv(2)} (v, w) b = Add (a, x) r = {conv(4)} (b, w)")
    sites = find(model).sites
    feeds = {**TRIPS, "trips": np.array(2)}
    found = profile(timed_backend("onnxruntime_cpu"), Subject(model, Path()), sites, OPTIONS, feeds)
    body = sites[0].scope
    assert found.tensors[body, "x"] == (1, 2, 20), "of an outer graph, as the body reads it"
    assert found.tensors[body, "w"] == (2, 2, 3)
    assert found.tensors[body, "a"] == found.tensors[body, "b"] == (1, 2, 20)
    assert found.tensors[ScopePath(), "y"] == (1, 2, 20)
    assert (ScopePath(), "a") not in found.tensors


@pytest.mark.usefixtures("profiled_in_process")
def test_a_twin_of_the_name_takes_no_share() -> None:
    """An undilated Conv of the main graph makes a tensor that has the name of a site's output in a function."""
    model = text(
        "s = Conv <pads=[1,1,1,1]> (x, w) y = local.f (s, w)",
        "float[1,16,12,12] x",
        "float[1,16,12,12] y",
        weights(16, 16, 3, 3),
        '<domain: "local", opset_import: ["": 17]> '
        f"f (p, q) => (r) {{ s = {conv(2, rank=2, kernel=3)} (p, q) r = Neg (s) }}",
    )
    assert run(model, BLOCKED) == {"function local:f/s": SiteRun(share=None, shapes=((1, 16, 12, 12),), times=1)}


# -- one of the two runs fails -------------------------------------------------------------------------------------

REASONS = (CannotLoad("no"), CannotRun("no"), Crashed("no"), TimedOut("no"))
NAMES = [type(error).__name__ for error in REASONS]


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Options], Exception | None]) -> list[tuple[bool, int]]:
    """Let runs fail; (optimised, runs) of each as they come."""
    asked: list[tuple[bool, int]] = []

    def here(
        backend: TimedBackend, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int
    ) -> Profile:
        asked.append((options.optimize, runs))
        assert options.threads == 1
        error = fails(options)
        if error is not None:
            raise error
        return backend.profile(runnable, options, feeds, runs)

    monkeypatch.setattr(ISOLATED, here)
    return asked


def test_one_run_for_shapes_and_some_for_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda _: None)
    run(conv1d(), {"x": ones(1, 2, 16)})
    assert [(optimize, runs > 0) for optimize, runs in asked] == [(False, False), (True, False), (True, True)]
    assert FEWEST_RUNS <= asked[-1][1] <= MOST_RUNS


@pytest.mark.parametrize("late", [False, True], ids=["seconds", "timeout"])
def test_slow_profiling_keeps_to_the_budget(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that runs but slowly under the profiler, one run is enough; so is one where more take too long."""
    asked = []

    def slow(
        backend: TimedBackend, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int
    ) -> Profile:
        asked.append(runs)
        if late and runs:
            raise TimedOut("no answer within 60 s")
        found = backend.profile(runnable, options, feeds, runs)
        return found if late else replace(found, seconds=(16.0,) * found.runs)

    monkeypatch.setattr(ISOLATED, slow)
    model = conv1d()
    (site,) = find(model).sites
    backend = timed_backend("onnxruntime_cpu")
    found = profile(backend, Subject(model, Path()), [site], OPTIONS, {"x": ones(1, 2, 16)}, within_s=60.0)
    assert [runs > 0 for runs in asked] == [False, False, *[True] * late]
    assert found.sites[site.key].share is not None
    assert late or found.seconds == 16.0


@pytest.mark.parametrize("error", REASONS, ids=NAMES)
def test_shapes_stay_unknown_where_only_the_plain_run_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A runtime may run a model only with its optimisations: then the shares are known, and no site seems idle."""
    failing(monkeypatch, lambda options: None if options.optimize else error)
    found = run(tiny.two_convs(), {"x": X20})
    for ran in found.values():
        assert ran.shapes == ()
        assert ran.times == 0
        assert ran.share is not None


@pytest.mark.parametrize("error", REASONS, ids=NAMES)
def test_the_reason_is_told_where_the_timed_run_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, lambda options: error if options.optimize else None)
    with pytest.raises(type(error), match="no"):
        run(conv1d(), {"x": ones(1, 2, 16)})


@pytest.mark.usefixtures("profiled_in_process")
def test_what_does_not_run_at_all() -> None:
    with pytest.raises((CannotLoad, CannotRun), match="Dilation not supported"):
        run(tiny.same_upper(), {"x": ones(1, 2, 15)})
    with pytest.raises(CannotRun):
        run(conv1d(), {"x": ones(1, 2, 17)})


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [case.model for case in CASES.values()], ids=CASES.keys())
def test_only_names_are_given(made: Callable[[], ModelProto]) -> None:
    model = made()
    before = model.SerializeToString()
    copy, places = traced(model)
    assert model.SerializeToString() == before, "the original stays"
    assert all(change.path.endswith("].name") and ".node[" in change.path for change in diff(model, copy))
    names = [node.name for _, container in scopes(copy) for node in container.node]
    assert len(set(names)) == len(names) == len(places)
    for number, (scope, index) in enumerate(places):
        node = resolve(copy, scope).node[index]
        assert node.name == f"dilrewrite_{number}_"
        assert node.op_type == resolve(model, scope).node[index].op_type


def test_every_graph_and_function_is_a_scope() -> None:
    nested = loop(
        f"z = If (k) <then_branch = t () => (float[1,2,n] p) {{ p = {conv(2)} (v, w) }}, "
        "else_branch = e () => (float[1,2,n] q) { q = Neg (v) }> r = Identity (z)"
    )
    nested.functions.append(functions().functions[0])
    assert [path for path, _ in scopes(nested)] == [
        ScopePath(),
        ScopePath(None, ((0, "body", 0),)),
        ScopePath(None, ((0, "body", 0), (0, "then_branch", 0))),
        ScopePath(None, ((0, "body", 0), (0, "else_branch", 0))),
        ScopePath(0),
    ]


# -- profiles made by hand -----------------------------------------------------------------------------------------

HERE = ScopePath()


def node(
    name: str, seconds: float = 0.0, inputs: Sequence[Any] = (), outputs: Sequence[Any] = (), run: int = 0
) -> NodeRun:
    return NodeRun(
        name=name,
        op="Conv",
        seconds=seconds,
        stands_for=plain_name(name),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        run=run,
    )


def made(*nodes: NodeRun, seconds: Sequence[float] = (1.0,)) -> Profile:
    return Profile(seconds=tuple(seconds), nodes=nodes)


def digested(model: ModelProto, plain: Profile, timed: Profile) -> tuple[Profiled, tuple[Site, ...]]:
    copy, places = traced(model)
    sites = find(model).sites
    return digest(copy, places, sites, plain, timed), sites


def only(found: Profiled) -> SiteRun:
    (ran,) = found.sites.values()
    return ran


def ran(share: float) -> SiteRun:
    """A site that ran once, and had the same share in all parts of the runs."""
    return SiteRun(share=share, shapes=(SHAPE,), times=1, interval=(share, share))


SHAPE = (1, 2, 16)
PLAIN = made(node("dilrewrite_0_", inputs=[SHAPE, (2, 2, 3)], outputs=[SHAPE]))
NOTHING = made()


def stalled(share: float, stalls: Mapping[int, tuple[float, float]], count: int = 15) -> Profiled:
    """The profile of a Conv with that share of a second; `stalls`: further seconds of Conv and rest, by run."""
    nodes, seconds = [], []
    for number in range(count):
        own, rest = stalls.get(number, (0.0, 0.0))
        nodes += [node("dilrewrite_0_", (share + own) / 2, run=number)] * 2
        nodes.append(node("other", (1 - share) / 2 + rest, run=number))
        seconds.append(1.0 + own + rest)
    return digested(conv1d(), PLAIN, made(*nodes, seconds=seconds))[0]


@pytest.mark.parametrize("held_up", [0, 1, 2])
def test_a_run_that_was_held_up_tells_nothing(held_up: int) -> None:
    """Neither when the site itself waited, nor when the rest of the model did."""
    for stall in ((7.0, 0.0), (0.0, 8.0)):
        found = stalled(0.25, {held_up: stall}, 6)
        assert only(found) == ran(0.25)
        assert found.seconds == 1.0


@pytest.mark.parametrize("share", [0.004, 0.4])
def test_a_share_repeats_under_load(share: float) -> None:
    """Of every three runs two are held up, somewhere: a median run would tell anything."""
    shares = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        stalls = {
            n: (float(rng.exponential(0.5)), float(rng.exponential(0.5))) for n in range(15) if rng.random() < 0.66
        }
        one = only(stalled(share, stalls))
        assert one.share is not None
        assert one.interval is not None
        assert one.interval[0] <= one.share <= one.interval[1]
        shares.append(one.share)
    assert shares == pytest.approx([share] * 10)


def test_the_spread_of_a_share_is_what_its_parts_tell() -> None:
    """All runs of one part were held up: in the site, in the rest."""
    own = only(stalled(0.25, dict.fromkeys((1, 4), (0.25, 0.0)), 6))
    assert (own.share, own.interval) == (0.25, (pytest.approx(0.2), 0.5))
    rest = only(stalled(0.25, dict.fromkeys((1, 4), (0.0, 1.0)), 6))
    assert (rest.share, rest.interval) == (0.25, (0.125, 0.25))


def test_a_node_that_holds_graphs_has_no_time_of_its_own() -> None:
    """A runtime's time of a Loop is that of the nodes in its body, which are there as well."""
    model = loop(f"r = {conv(2)} (v, w)")
    found, sites = digested(model, made(), made(node("dilrewrite_0_", 0.9), node("dilrewrite_1_", 0.5)))
    assert found.sites[sites[0].key].share == 0.5


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.0, 3), (1e-9, 30), (0.09, 30), (0.101, 27), (0.3, 9), (0.6, 3), (60.0, 3), (math.inf, 3)],
)
def test_quick_models_run_more_often(seconds: float, wanted: int) -> None:
    assert runs(seconds) == wanted
    assert runs(seconds) % PARTS == 0, "as many in each part"
    assert FEWEST_RUNS <= runs(seconds) <= MOST_RUNS
    assert runs(seconds, 10**6) == FEWEST_RUNS, "of many nodes"


def test_tensors_of_a_profile() -> None:
    found, _ = digested(conv1d(), PLAIN, made(node("dilrewrite_0_", 0.5)))
    assert found.tensors == {(HERE, "x"): SHAPE, (HERE, "w"): (2, 2, 3), (HERE, "y"): SHAPE}


def test_a_share_is_at_most_all() -> None:
    """Nodes that run side by side take more time than the run."""
    found, _ = digested(conv1d(), PLAIN, made(node("dilrewrite_0_", 5.0)))
    assert only(found).share == 1.0


@pytest.mark.parametrize(
    ("plain", "timed", "share"),
    [
        (PLAIN, NOTHING, None),
        (PLAIN, made(node("dilrewrite_0_", 0.5), seconds=()), None),
        (PLAIN, made(node("dilrewrite_0_", 0.0)), 0.0),
        (NOTHING, NOTHING, None),
        (NOTHING, made(node("dilrewrite_0_", 0.5)), 0.5),
        (made(node("dilrewrite_77_")), made(node("dilrewrite_0_", 0.5)), 0.0),
        (made(node("dilrewrite_77_")), NOTHING, 0.0),
    ],
    ids=[
        "not seen in time",
        "no time",
        "too short to see",
        "nothing known",
        "no shapes",
        "did not run for shapes",
        "did not run",
    ],
)
def test_shares_that_are_unknown_or_zero(plain: Profile, timed: Profile, share: float | None) -> None:
    found, _ = digested(conv1d(), plain, timed)
    assert only(found).share == share


def test_junk_among_the_events() -> None:
    junk = [
        node("", 0.03125),
        node("ReorderInput", 0.03125),
        node("dilrewrite_", 0.03125),
        node("dilrewrite_x_", 0.03125),
        node("dilrewrite_99_", 0.03125, [SHAPE]),
        node("dilrewrite_123456789012345678901234567890_", 0.03125),
        node("_nchwc", 0.03125),
        node("other_nchwc", 0.03125),
        node("InsertedPrecisionFreeCast_", 0.03125),
        node("x", 0.03125),
    ]
    found, _ = digested(conv1d(), made(*junk, *PLAIN.nodes), made(*junk, node("dilrewrite_0_", 0.5)))
    assert only(found) == ran(0.5)


def test_numbers_are_read_whole() -> None:
    model = build(
        [
            *(helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(12)),
            conv_node("x12", "y", name="last"),
        ],
        {"x0": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3)},
    )
    timed = made(
        node("dilrewrite_1_", 0.25), node("dilrewrite_12_", 0.5), node("_inlfunc_f_dilrewrite_12__token_1", 0.125)
    )
    found, _ = digested(model, made(node("dilrewrite_12_", inputs=[SHAPE])), timed)
    assert only(found) == ran(0.625)


@pytest.mark.parametrize(
    ("inputs", "outputs", "tensors", "shapes"),
    [
        ([SHAPE, (2, 2, 3), (2,)], [SHAPE], {"x": SHAPE, "w": (2, 2, 3), "b": (2,), "y": SHAPE}, (SHAPE,)),
        ([SHAPE, (2, 2, 3)], [SHAPE], {"y": SHAPE}, (SHAPE,)),
        ([SHAPE, (2, 2, 3), (2,), (1,)], [], {}, (SHAPE,)),
        ([SHAPE, None, (2,)], [None], {"x": SHAPE, "b": (2,)}, (SHAPE,)),
        ([None, (2, 2, 3), (2,)], [SHAPE], {"w": (2, 2, 3), "b": (2,), "y": SHAPE}, ()),
        ([], [], {}, ()),
    ],
    ids=["all", "an input missing", "one too many", "no tensors among them", "no shape of the input", "none told"],
)
def test_shapes_that_are_told(inputs: list[Any], outputs: list[Any], tensors: dict[str, Any], shapes: Shapes) -> None:
    model = tiny.asymmetric()
    found, _ = digested(model, made(node("dilrewrite_0_", inputs=inputs, outputs=outputs)), NOTHING)
    assert found.tensors == {(HERE, name): shape for name, shape in tensors.items()}
    assert only(found).shapes == shapes


def test_inputs_left_out_have_no_shape() -> None:
    """A runtime lists the shapes of inputs that are there: the places of the others are empty names."""
    model = build(
        [
            helper.make_node("Clip", ["x", "", "high"], ["a"]),
            helper.make_node("Conv", ["a", "w", ""], ["y"], dilations=[2], pads=[2, 2]),
        ],
        {"x": list(SHAPE)},
        {"y": list(SHAPE)},
        {"w": values(2, 2, 3), "high": np.array(1, np.float32)},
    )
    plain = made(
        node("dilrewrite_0_", inputs=[SHAPE, ()], outputs=[SHAPE]),
        node("dilrewrite_1_", inputs=[SHAPE, (2, 2, 3)], outputs=[SHAPE]),
    )
    found, _ = digested(model, plain, NOTHING)
    assert found.tensors == {
        (HERE, "x"): SHAPE,
        (HERE, "high"): (),
        (HERE, "a"): SHAPE,
        (HERE, "w"): (2, 2, 3),
        (HERE, "y"): SHAPE,
    }


def test_the_most_frequent_shape_comes_first() -> None:
    lengths = [5, 7, 7, 6, 7, 6]
    plain = made(*(node("dilrewrite_0_", inputs=[(1, 2, n), (2, 2, 3)], outputs=[(1, 2, n)]) for n in lengths))
    found, _ = digested(conv1d(length=None), plain, NOTHING)
    assert only(found).shapes == ((1, 2, 7), (1, 2, 6), (1, 2, 5))
    assert only(found).times == 6
    assert found.tensors[HERE, "x"] == found.tensors[HERE, "y"] == (1, 2, 7)


@pytest.mark.parametrize(
    "name",
    [
        "c_nchwc",
        "c_bn_nchwc",
        "n_bn_nchwc",
        "a_nchwc",
        "y_nchwc",
        "InsertedPrecisionFreeCast_y_nchwc",
        "InsertedPrecisionFreeCast_InsertedPrecisionFreeCast_c_nchwc_token_3",
        "c",
    ],
)
def test_a_conv_that_is_named_after_an_output(name: str) -> None:
    """Its own, or that of what is fused into it."""
    found, sites = digested(residual(), NOTHING, made(node(name, 0.5)))
    assert found.sites[sites[0].key].share == 0.5


def test_names_go_on_to_the_next_conv_or_fork() -> None:
    model = build(
        [
            conv_node("x", "c"),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Neg", ["r"], ["one"]),
            helper.make_node("Abs", ["r"], ["two"]),
            conv_node("one", "d", name="plain", dilations=[1], pads=[1, 1]),
        ],
        {"x": list(SHAPE)},
        {"d": list(SHAPE), "two": list(SHAPE)},
        {"w": values(2, 2, 3)},
    )
    shares = {
        name: only(digested(model, NOTHING, made(node(f"{name}_nchwc", 0.5)))[0]).share
        for name in ("c", "r", "one", "two", "d")
    }
    assert shares == {"c": 0.5, "r": 0.5, "one": None, "two": None, "d": None}


def test_a_name_that_two_could_have_stands_for_neither() -> None:
    model = build(
        [
            conv_node("x", "a", name="left"),
            conv_node("x", "b", name="right", dilations=[4], pads=[4, 4]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"x": list(SHAPE)},
        {"y": list(SHAPE)},
        {"w": values(2, 2, 3)},
    )
    found, _ = digested(model, NOTHING, made(node("y_nchwc", 0.5), node("a_nchwc", 0.25)))
    assert [ran.share for ran in found.sites.values()] == [0.25, None]


def test_a_name_that_is_made_twice_stands_for_nothing() -> None:
    """`r` is the site's output in a branch, and another tensor in the other branch."""
    model = text(
        f"y = If (go) <then_branch = a () => (float[1,2,12] r) {{ r = {conv(2)} (x, w) }}, "
        "else_branch = b () => (float[1,2,12] r) { r = Conv (x, one) }>",
        "float[1,2,12] x, bool go",
        held=f"{weights(2, 2, 3)}, {weights(2, 2, 1, name='one')}",
    )
    found, _ = digested(model, NOTHING, made(node("r_nchwc", 0.5)))
    assert only(found).share is None


def test_places_of_other_scopes_are_not_confused() -> None:
    model = if_both()
    copy, places = traced(model)
    sites = find(model).sites
    numbers: dict[Place, int] = {place: number for number, place in enumerate(places)}
    names = [f"dilrewrite_{numbers[site.scope, site.part.index]}_" for site in sites]
    plain = made(*(node(name, inputs=[(1, 2, n)]) for n, name in enumerate(names, 3)))
    found = digest(copy, places, sites, plain, made(node(names[1], 0.25)))
    assert [ran.shapes for ran in found.sites.values()] == [((1, 2, 3),), ((1, 2, 4),)]
    assert [ran.share for ran in found.sites.values()] == [None, 0.25]
