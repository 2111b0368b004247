"""Tuning one model: what it runs on, which sites matter, which are one question, and what the whole model says."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.choice.confirm import Confirmed
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.original import TIMED_LENGTHS, Original
from dilrewrite.choice.reason import Reason, Why, not_measured
from dilrewrite.choice.tune import NEGLIGIBLE, Tuning
from dilrewrite.commands import run
from dilrewrite.errors import UsageError
from dilrewrite.model.load import load
from dilrewrite.options import CommandOptions
from dilrewrite.proof import trial
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import Subject
from dilrewrite.reports import reasons
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Profile,
    Runnable,
    TimedOut,
    onnxruntime_cpu,
    timed_backend,
)
from dilrewrite.sites.find import find
from dilrewrite.timing import measure
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import Cache, open_cache
from dilrewrite.timing.measure import Answer, Form, Meter
from dilrewrite.timing.measurement import Attempt
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.profiling import UNSEEN, Profiled, SiteRun
from dilrewrite.timing.stopwatch import MARGIN, Comparison, Noise, Timing
from tests import models_for_tests as tiny
from tests.forms_for_tests import INEXACT
from tests.models_for_tests import build, conv1d, conv2d, conv_node, values
from tests.splice.test_rewrite import KINDS, Q
from tests.splice.test_rewrite import model as spelled
from tests.timing.test_profiling import conv, loop, text
from tests.words import words

Made = Callable[[], ModelProto]

X20 = {"x": (1, 2, 20)}


# -- tunings -------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("in_process", "profiled_in_process")


@pytest.fixture
def tuning(tmp_path: Path) -> Callable[..., Tuning]:
    """Makes the tuning of a model; further arguments are options of `optimize`."""

    def made(
        model: ModelProto | Path,
        *,
        budget_s: float = 30.0,
        shapes: Mapping[str, Sequence[int]] | None = None,
        **more: Any,
    ) -> Tuning:
        path = model if isinstance(model, Path) else tiny.save(model, tmp_path / "m.onnx")
        sizes = tuple(f"{name}:{'x'.join(map(str, shape))}" for name, shape in (shapes or {}).items())
        options = CommandOptions.of(budget=budget_s, shapes=sizes, **more)
        loaded = load(path)
        original = Original(
            model=loaded,
            found=find(loaded.proto),
            baseline=trial.runnable(loaded, loaded.proto),
            settings=trial.settings(loaded, options.proving),
        )
        meter = Meter.on(
            timed_backend("onnxruntime_cpu"),
            Cache(None),
            Budget(budget_s),
            Options(threads=options.proving.threads),
        )
        decider = Decider(options.scope, options.proving, Source(loaded.proto))
        return Tuning(original=original, meter=meter, decider=decider)

    return made


def instead(one: Tuning, entry: Considered) -> Why | None:
    """Why timings decide nothing about a site."""
    return one.of(entry).why


def failure(one: Tuning) -> str:
    return run.failure(one)


def considered(one: Tuning) -> list[Considered]:
    return [one.decider.consider(site) for site in one.original.found.sites]


# -- what it runs on -----------------------------------------------------------------------------------------------


def shapes_of(one: Tuning) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in one.original.feeds.items()}


def unknown_3d() -> ModelProto:
    return build(
        [conv_node(dilations=[2] * 3, pads=[2] * 6)],
        {"x": ["n", 1, "a", "b", "c"]},
        {"y": None},
        {"w": values(1, 1, 2, 2, 2)},
    )


def test_known_sizes(tuning: Callable[..., Tuning]) -> None:
    one = tuning(tiny.two_convs())
    assert one.start()
    assert shapes_of(one) == X20
    assert not one.original.made_up
    assert one.failure is None
    assert one.original.profiled is not None
    assert one.original.profiled.seconds > 0
    assert one.meter.budget.run_s == one.original.profiled.seconds == one.run_s
    assert run.notes_of(one) == []
    assert [one.run_of(site).shapes for site in one.original.found.sites] == [((1, 2, 20),)] * 2


@pytest.mark.parametrize(
    ("made", "axes"),
    [(lambda: conv1d(length=None, batch=None), 1), (lambda: conv2d(size=None), 2), (unknown_3d, 3)],
    ids=["1-D", "2-D", "3-D"],
)
def test_unknown_sizes_are_made_up(tuning: Callable[..., Tuning], made: Made, axes: int) -> None:
    one = tuning(made())
    assert one.start()
    shape = shapes_of(one)["x"]
    assert shape[0] == 1
    assert shape[2:] == (TIMED_LENGTHS[axes][0],) * axes
    assert one.measurement().made_up


def waveform() -> ModelProto:
    """A bare waveform: time is the first axis."""
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["a"]), conv_node("a", "y")]
    return build(nodes, {"x": ["t"]}, {"y": None}, {"axes": np.array([0, 1]), "w": values(1, 1, 3)})


def test_time_may_be_the_first_axis(tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shape inference tells it; no profile is asked."""
    monkeypatch.setattr("dilrewrite.choice.original.FEW", 0)
    one = tuning(waveform())
    assert one.start()
    assert shapes_of(one) == {"x": (TIMED_LENGTHS[1][0],)}
    assert one.original.made_up


def in_a_loop() -> ModelProto:
    """The waveform goes around a Loop, whose Conv's extent shape inference does not know."""
    kinds = {"again": TensorProto.BOOL, "last": TensorProto.BOOL, "turn": TensorProto.INT64}
    ports = [
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), [] if name in kinds else None)
            for name in names
        ]
        for names in (("turn", "again", "state"), ("last", "next"))
    ]
    nodes = [helper.make_node("Identity", ["again"], ["last"]), conv_node("state", "next")]
    body = helper.make_graph(nodes, "body", *ports)
    model = waveform()
    loop = helper.make_node("Loop", ["count", "", "a"], ["y"], body=body)
    model.graph.node[1].CopyFrom(loop)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "count"))
    return model


def test_a_profile_tells_what_inference_cannot(tuning: Callable[..., Tuning]) -> None:
    one = tuning(in_a_loop())
    assert one.start()
    assert shapes_of(one) == {"x": (TIMED_LENGTHS[1][0],)}
    assert one.original.made_up


def test_a_batch_of_unknown_role_stays_one(tuning: Callable[..., Tuning]) -> None:
    """It reaches no convolution."""
    model = conv1d()
    model.graph.input.append(helper.make_tensor_value_info("beside", TensorProto.FLOAT, ["m", 3]))
    model.graph.node.append(helper.make_node("Relu", ["beside"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["m", 3]))
    one = tuning(model)
    assert one.start()
    assert shapes_of(one)["beside"] == (1, 3)
    assert not one.original.made_up


def test_one_sample_is_timed(tuning: Callable[..., Tuning]) -> None:
    one = tuning(conv1d(batch="n"))
    assert one.start()
    assert shapes_of(one) == {"x": (1, 2, 16)}
    assert not one.original.made_up


def test_a_model_that_needs_more_samples(tuning: Callable[..., Tuning]) -> None:
    nodes = [
        helper.make_node("Slice", ["x", "start", "end"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
    ]
    model = build(
        [*nodes, conv_node("b", "y")],
        {"x": ["n", 2, 16]},
        {"y": None},
        {"w": values(2, 2, 3), "start": np.array([0]), "end": np.array([4]), "shape": np.array([4, 2, 16])},
    )
    one = tuning(model)
    assert one.start()
    assert shapes_of(one) == {"x": (4, 2, 16)}
    assert one.original.made_up


def only_some_length(length: int) -> ModelProto:
    return build(
        [helper.make_node("Add", ["x", "k"], ["a"]), conv_node("a", "y")],
        {"x": [1, 2, "t"]},
        {"y": None},
        {"w": values(2, 2, 3), "k": values(1, 2, length)},
    )


def test_the_first_length_that_runs(tuning: Callable[..., Tuning]) -> None:
    one = tuning(only_some_length(100))
    assert one.start()
    assert shapes_of(one) == {"x": (1, 2, 100)}


@pytest.mark.parametrize("axes", TIMED_LENGTHS)
def test_lengths_to_time_with(axes: int) -> None:
    lengths = TIMED_LENGTHS[axes]
    assert len(set(lengths)) == len(lengths)
    assert 1 in lengths
    assert min(lengths) > 0
    assert lengths[0] ** axes <= 2**17, "a run of a model of that size is no matter of minutes"


def test_given_shapes(tuning: Callable[..., Tuning]) -> None:
    one = tuning(conv1d(length=None, batch=None), shapes={"x": (3, 2, 33)})
    assert one.start()
    assert shapes_of(one) == {"x": (3, 2, 33)}
    assert not one.original.made_up
    assert one.run_of(one.original.found.sites[0]).shapes == ((3, 2, 33),)


def test_given_data(tuning: Callable[..., Tuning], tmp_path: Path) -> None:
    given = values(1, 2, 21, seed=4)
    np.savez(tmp_path / "data.npz", x=given)
    one = tuning(conv1d(length=None), inputs=tmp_path / "data.npz")
    assert one.start()
    assert np.array_equal(one.original.feeds["x"], given)
    assert not one.original.made_up


def test_equal_seeds_give_equal_data(tuning: Callable[..., Tuning]) -> None:
    made = [tuning(conv1d(), seed=seed) for seed in (0, 0, 1)]
    assert all(one.start() for one in made)
    data = [one.original.feeds["x"].tobytes() for one in made]
    assert data[0] == data[1] != data[2]


def test_no_data_can_be_made_up(tuning: Callable[..., Tuning]) -> None:
    model = only_some_length(77)
    model.graph.node[0].op_type = "Reshape"
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([1, 2, 77]), "k"))
    with pytest.raises(UsageError, match="does not run"):
        tuning(model).start()


def test_it_shows_that_it_is_at_work(tuning: Callable[..., Tuning]) -> None:
    seen: list[tuple[str, int, int]] = []
    one = tuning(conv1d(), budget_s=12.0)
    one.meter.budget.progress = lambda *step: seen.append(step)
    one.start()
    assert seen[0] == ("measure", 0, 1)
    assert all(step == "measure" and 0 <= done <= total for step, done, total in seen)


def test_a_model_that_the_runtime_does_not_know(tuning: Callable[..., Tuning]) -> None:
    one = tuning(tiny.custom_operator())
    assert not one.start()
    assert one.failure is not None
    assert one.failure.reason is Reason.MODEL_FAILED
    assert "Mystery" in failure(one)
    assert run.notes_of(one) == [failure(one)]
    sites = considered(one)
    one.measure(sites)
    assert [instead(one, entry) for entry in sites] == [not_measured(one.failure)] * len(sites)
    assert one.run_of(one.original.found.sites[0]) == SiteRun(share=None, shapes=(), times=0)
    assert one.run_s == 0
    assert one.gain(one.original.found.sites[0], "im2col") is None
    one.compare(one.original.model.proto, ())
    assert one.final is None


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
@pytest.mark.parametrize("where", ["session", "profile"])
def test_a_model_that_fails(
    tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch, kind: type[Exception], where: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise kind("it broke")

    if where == "session":
        monkeypatch.setattr(onnxruntime_cpu.OnnxRuntimeCpu, "session", fail)
    else:
        monkeypatch.setattr("dilrewrite.timing.profiling.profile", fail)
    one = tuning(conv1d())
    assert not one.start()
    slow = where == "profile" and kind is TimedOut
    assert one.failure == Why(reason=Reason.PROFILE_SLOW if slow else Reason.MODEL_FAILED, said="it broke")
    assert one.original.profiled is None


def test_slow_profiling_is_told_as_that(tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model runs, so it is not said to do no such thing."""

    def slow(*given: Any) -> Profile:
        assert given[2].timeout_s == 60.0
        raise TimedOut("no answer within 60 s")

    monkeypatch.setattr("dilrewrite.timing.profiling.profiled", slow)
    one = tuning(conv1d(), budget_s=40.0)
    assert not one.start()
    assert one.failure == Why(reason=Reason.PROFILE_SLOW, said="no answer within 60 s")
    assert one.original.profiled is None


# -- the name of the original --------------------------------------------------------------------------------------


def test_a_model_is_named_by_its_content(tuning: Callable[..., Tuning]) -> None:
    names = [tuning(made).original.digest for made in (conv1d(), conv1d(), conv1d(dilations=[3], pads=[3, 3]))]
    assert names[0] == names[1] != names[2]


def test_data_files_are_part_of_the_name(tuning: Callable[..., Tuning], tmp_path: Path) -> None:
    path = tiny.save_external(conv1d(), tmp_path / "m.onnx")
    first = tuning(path).original.digest
    assert tuning(path).original.digest == first
    assert first != tuning(conv1d()).original.digest
    path = tiny.save_external(conv1d(), tmp_path / "m.onnx")
    data = next(tmp_path.glob("*.bin"))
    os.utime(data, ns=(1, 1))
    assert tuning(path).original.digest != first


def test_a_profile_is_recalled(tuning: Callable[..., Tuning], tmp_path: Path) -> None:
    cache = Cache(tmp_path / "timings.sqlite")
    found = []
    for _ in range(2):
        one = tuning(tiny.two_convs())
        one.meter.ledger.cache = cache
        assert one.start()
        found.append(one)
    assert found[0].original.profiled == found[1].original.profiled
    assert [one.meter.ledger.recalled for one in found] == [0, 1]


# -- Convs that the runtime takes with explicit pads only ----------------------------------------------------------

SAME = 'Conv <dilations=[3], strides=[2], auto_pad="SAME_UPPER", kernel_shape=[3]>'
GROWS = conv(2, pads=(3, 2))


def before_a_loop(*, name: str = "") -> ModelProto:
    """A SAME_* Conv, whose explicit form is some nodes more, before a Loop that is known by its place."""
    return text(
        f"a = {SAME} (x, w) z = Relu (a) {name} y = Loop (trips, go, z) <"
        "body = b (int64 i, bool k, float[1,2,n] v) => (bool k2, float[1,2,o] r) "
        f"{{ r = {GROWS} (v, w) k2 = Identity (k) }}>",
        "float[1,2,t] x, int64 trips, bool go",
    )


def quantised(attributes: str) -> ModelProto:
    return spelled(
        "xq = QuantizeLinear (x, s, u) xd = DequantizeLinear (xq, s, u) d = DequantizeLinear <axis=0> (q, ss, zz) "
        f"v = Conv <{attributes}> (xd, d) r = Relu (v) o = QuantizeLinear (r, s, u) y = DequantizeLinear (o, s, u)",
        values=Q,
        inputs="float[n,2,l] x",
    )


@dataclass(frozen=True, kw_only=True)
class Awkward:
    """What the sites of a model that does not run as it is must tell: (shapes, times), in order."""

    made: Made
    shapes: Mapping[str, Sequence[int]]
    ran: list[tuple[tuple[tuple[int, ...], ...], int]]
    trips: int = 1


ONCE = (((1, 2, 20),), 1)
AWKWARD = {
    "SAME": Awkward(made=tiny.same_upper, shapes={}, ran=[(((1, 2, 15),), 1)]),
    "SAME of unknown length": Awkward(
        made=tiny.same_upper_of_unknown_length, shapes={"x": (1, 2, 33)}, ran=[(((1, 2, 33),), 1)]
    ),
    "negative pads": Awkward(made=KINDS["negative-pads"], shapes={}, ran=[(((1, 2, 12),), 1)]),
    "beside another": Awkward(
        made=lambda: text(f"a = {SAME} (x, w) b = {conv(2)} (x, w) y = Concat <axis=2> (a, b)"),
        shapes=X20,
        ran=[ONCE, ONCE],
    ),
    "before a loop": Awkward(
        made=before_a_loop,
        shapes=X20,
        ran=[ONCE, (((1, 2, 10), (1, 2, 11), (1, 2, 12)), 3)],
        trips=3,
    ),
    "before a loop with a name": Awkward(
        made=lambda: before_a_loop(name="[loop]"),
        shapes=X20,
        ran=[ONCE, (((1, 2, 10),), 1)],
        trips=1,
    ),
    "in a loop": Awkward(
        made=lambda: loop(f"a = {SAME} (v, w) c = {GROWS} (v, w) r = {conv(2)} (c, w)"),
        shapes=X20,
        ran=[(((1, 2, 20),), 2), (((1, 2, 20), (1, 2, 21)), 2), (((1, 2, 21), (1, 2, 22)), 2)],
        trips=2,
    ),
    "in a loop without a trip": Awkward(
        made=lambda: loop(f"a = {SAME} (v, w) r = {GROWS} (v, w)"), shapes=X20, ran=[((), 0), ((), 0)], trips=0
    ),
    "in a branch": Awkward(
        made=lambda: text(
            f"y = If (go) <then_branch = a () => (float[1,2,m] p) {{ p = {SAME} (x, w) }}, "
            f"else_branch = b () => (float[1,2,m] q) {{ q = {SAME} (x, w) }}>",
            "float[1,2,t] x, bool go",
        ),
        shapes=X20,
        ran=[ONCE, ((), 0)],
    ),
    "in a function": Awkward(
        made=lambda: text(
            "a = local.f (x, w) y = local.f (a, w)",
            "float[1,2,20] x",
            functions=f'<domain: "local", opset_import: ["": 17]> f (p, q) => (r) {{ s = {SAME} (p, q) r = Neg (s) }}',
        ),
        shapes={},
        ran=[(((1, 2, 20),), 2)],
    ),
    "quantised": Awkward(
        made=lambda: quantised('dilations=[3], strides=[2], auto_pad="SAME_LOWER"'),
        shapes={"x": (1, 2, 31)},
        ran=[(((1, 2, 31),), 1)],
    ),
    "quantised, negative pads": Awkward(
        made=lambda: quantised("dilations=[3], pads=[-1,9]"), shapes={"x": (1, 2, 31)}, ran=[(((1, 2, 31),), 1)]
    ),
}


@pytest.mark.parametrize("case", AWKWARD.values(), ids=AWKWARD.keys())
def test_sites_of_a_model_that_runs_with_explicit_pads(
    tuning: Callable[..., Tuning], case: Awkward, tmp_path: Path
) -> None:
    """They tell the shapes of the original's tensors, in the original's places."""
    model = case.made()
    given: dict[str, Array] = {"go": np.array(True), "trips": np.array(case.trips)}
    np.savez(tmp_path / "data.npz", **{v.name: given[v.name] for v in model.graph.input if v.name in given})
    one = tuning(model, shapes=case.shapes, inputs=tmp_path / "data.npz")
    assert one.original.baseline is not one.original.model.proto
    assert one.start(), failure(one)
    found = [one.run_of(site) for site in one.original.found.sites]
    assert [(ran.shapes, ran.times) for ran in found] == case.ran
    assert all(ran.share is not None for ran in found)
    for site, ran in zip(one.original.found.sites, found, strict=True):
        if ran.shapes:
            question = one.question(site, bare=False)
            assert question.site.geometry == site.geometry


# -- which sites are asked about -----------------------------------------------------------------------------------

TIMING = Timing(median_s=0.01, p20_s=0.01, p80_s=0.01, runs=6)


def compared(ratio: float, *, noise: float | None = 0.0, seconds: float = 0.01) -> Comparison:
    timed = replace(TIMING, median_s=seconds)
    return Comparison(
        first=timed,
        second=timed,
        ratio=ratio,
        low=ratio - 0.001,
        high=ratio + 0.001,
        pairs=6,
        noise=noise,
        mode="interleaved",
    )


@dataclass
class Asked:
    """A question that came to the meter."""

    question: Question
    plain: Callable[[], Question]
    forms: Sequence[Form]
    slice_s: float
    must_go: bool


def won(ratio: float, seconds: float = 0.01) -> FormTiming:
    return FormTiming(outcome=Outcome.WON, timing=compared(ratio, seconds=seconds))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Questions are collected; every form takes half of the time."""
    found: list[Asked] = []

    def answer(
        _: Meter,
        question: Question,
        plain: Callable[[], Question],
        forms: Sequence[Form],
        slice_s: float,
        *,
        must_go: bool,
    ) -> Answer:
        found.append(Asked(question, plain, forms, slice_s, must_go))
        return Answer(forms={form.strategy: won(0.5) for form in forms})

    monkeypatch.setattr(Meter, "answer", answer)
    return found


def ran(one: Tuning, *shares: float | None, seconds: float = 1.0, times: int = 1) -> Tuning:
    """Pretend that the model was profiled: the share of each site, in order; 0 for one that did not run."""
    one.meter.budget.begin()
    runs = {
        site.key: SiteRun(share=share, shapes=() if share == 0 else ((1, 2, 20),), times=0 if share == 0 else times)
        for site, share in zip(one.original.found.sites, shares, strict=True)
    }
    one.original.profiled = Profiled(seconds=seconds, sites=runs, tensors={})
    return one


def chain(*rates: int) -> ModelProto:
    """Dilated Convs one after the other, a Relu behind each."""
    nodes = []
    for number, rate in enumerate(rates):
        nodes += [
            conv_node(
                f"x{number}" if number else "x", f"c{number}", name=f"conv{number}", dilations=[rate], pads=[rate] * 2
            ),
            helper.make_node("Relu", [f"c{number}"], [f"x{number + 1}"]),
        ]
    return build(nodes, {"x": [1, 2, 20]}, {f"x{len(rates)}": None}, {"w": values(2, 2, 3)})


def test_equal_sites_are_one_question(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 4, 2, 2)), 0.1, 0.5, 0.1, 0.1)
    sites = considered(one)
    one.measure(sites)
    assert [len({form.strategy for form in question.forms}) for question in asked] == [
        len(sites[1].wanted),
        len(sites[0].wanted),
    ]
    assert asked[0].question.site.geometry == sites[1].site.geometry, "the one that takes more time comes first"
    numbers = [one.of(entry).question for entry in sites]
    assert numbers == [2, 1, 2, 2]
    assert len(set(numbers)) == len(one.answers) == 2
    assert [dict(one.of(entry).timings) for entry in sites][::2] == [list(one.answers.values())[1].forms] * 2
    assert all(instead(one, entry) is None for entry in sites)


def test_shares_of_equal_sites_count_together(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 4, 2, 2)), 0.2, 0.5, 0.2, 0.2)
    sites = considered(one)
    one.measure(sites)
    assert asked[0].question.site.geometry == sites[0].site.geometry


def test_unknown_shares_come_first(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 4, 2, 3)), 0.0002, 0.9, None, 0.05)
    sites = considered(one)
    one.measure(sites)
    geometries = [question.question.site.geometry for question in asked]
    assert geometries == [sites[0].site.geometry, sites[1].site.geometry, sites[3].site.geometry]


def test_what_a_question_comes_with(
    tuning: Callable[..., Tuning], asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ran(tuning(chain(2, 4)), 0.5, 0.25)
    sites = considered(one)
    slices: list[int] = []
    monkeypatch.setattr(Budget, "slice_s", lambda _, count: slices.append(count) or 0.25)
    one.measure(sites)
    assert [question.slice_s for question in asked] == [0.25, 0.25]
    assert slices == sorted(slices, reverse=True), "less is left for each as there are more"
    assert slices[-1] >= len(sites[1].wanted)
    for question, entry in zip(asked, sites, strict=True):
        assert not question.must_go
        assert [form.strategy for form in question.forms] == [candidate.strategy for candidate in entry.wanted]
        assert [form.fragment for form in question.forms] == [candidate.fragment for candidate in entry.wanted]
        assert question.question.neighbours == ("Relu",)
        assert question.plain().neighbours == ()
        assert question.plain().site.geometry == entry.site.geometry


def test_a_proof_comes_with_each_form(
    tuning: Callable[..., Tuning], asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ran(tuning(chain(2)), 0.5)
    proof = Proof(shapes=(), elements=0, backend="", native_ran=True, rounding=None, failure="it differs")
    answers: list[Proof | None] = [proof, replace(proof, failure=None), None]
    monkeypatch.setattr(Decider, "prove", lambda *_: answers.pop(0))
    one.measure(considered(one))
    assert [asked[0].forms[0].prove() for _ in range(3)] == ["it differs", None, None]


@pytest.mark.parametrize(
    ("proof", "wrong"),
    [
        (Proof(shapes=(), elements=1, backend="", native_ran=True, rounding=None, failure="it differs"), True),
        (Proof(shapes=(), elements=0, backend="", native_ran=True, rounding=None, failure="no", ran=False), False),
        (Proof(shapes=(), elements=1, backend="", native_ran=True, rounding=None), False),
    ],
    ids=["wrong", "did not run", "right"],
)
def test_a_form_that_is_wrong(
    tuning: Callable[..., Tuning], asked: list[Asked], monkeypatch: pytest.MonkeyPatch, proof: Proof, wrong: bool
) -> None:
    """It is no matter of time: that a form computes something else ends in an error, not in another form."""
    one = ran(tuning(chain(2)), 0.5)
    (entry,) = considered(one)
    monkeypatch.setattr(Decider, "prove", lambda *_: proof)
    collect = Meter.answer

    def proving(
        meter: Meter, question: Question, plain: Any, forms: Sequence[Form], *more: Any, **other: Any
    ) -> Answer:
        assert forms[0].prove() == proof.failure
        return collect(meter, question, plain, forms, *more, **other)

    monkeypatch.setattr(Meter, "answer", proving)
    one.measure([entry])
    form = asked[0].forms[0]
    said = one.of(entry).wrong
    assert said == ((form.strategy, proof) if wrong else None)
    if wrong:
        decision = one.decider.settle(entry, one.of(entry))
        assert reasons.wrong(decision) == f"{entry.site.key}: {form.strategy} is wrong: it differs"


def test_a_site_that_did_not_run(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 4)), 0.0, 0.5)
    sites = considered(one)
    one.measure(sites)
    assert instead(one, sites[0]) == not_measured(Reason.DID_NOT_RUN)
    assert len(asked) == 1


def test_a_branch_that_is_not_taken(tuning: Callable[..., Tuning], asked: list[Asked], tmp_path: Path) -> None:
    model = text(
        f"y = If (go) <then_branch = a () => (float[1,2,m] p) {{ p = {conv(2)} (x, w) }}, "
        f"else_branch = b () => (float[1,2,m] q) {{ q = {conv(4)} (x, w) }}>",
        "float[1,2,t] x, bool go",
    )
    np.savez(tmp_path / "data.npz", go=np.array(False))
    one = tuning(model, shapes=X20, inputs=tmp_path / "data.npz")
    assert one.start()
    sites = considered(one)
    one.measure(sites)
    assert instead(one, sites[0]) == not_measured(Reason.DID_NOT_RUN)
    assert one.of(sites[0]).run == SiteRun(share=0.0, shapes=(), times=0, interval=(0.0, 0.0))
    assert one.of(sites[0]).question is None
    assert [question.question.site.geometry.dilations for question in asked] == [(4,)]


def test_sizes_that_nobody_knows(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    """The run without optimisations, which tells the shapes, may fail."""
    one = tuning(conv1d(length=None))
    (site,) = one.original.found.sites
    one.meter.budget.begin()
    unseen = SiteRun(share=0.5, shapes=(), times=0)
    one.original.profiled = Profiled(seconds=1.0, sites={site.key: unseen}, tensors={})
    (entry,) = considered(one)
    one.measure([entry])
    assert instead(one, entry) == not_measured(Reason.NO_QUESTION, "its sizes are not known")
    assert asked == []


def test_sites_that_timings_do_not_decide_about(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 4), only="conv1"), 0.5, 0.5)
    sites = considered(one)
    one.measure(sites)
    assert [question.question.site.geometry.dilations for question in asked] == [(4,)]
    assert instead(one, sites[0]) is None
    assert one.of(sites[0]).timings == {}


def test_the_only_form_is_not_timed(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    """Where dilation has to go, one form is the answer; where it may stay, the form must win."""
    for eliminate in (True, False):
        asked.clear()
        one = ran(tuning(chain(2), eliminate=eliminate), 0.5)
        (entry,) = considered(one)
        alone = replace(entry, wanted=entry.wanted[:1])
        one.measure([alone])
        assert len(asked) == (not eliminate)
        assert instead(one, alone) == (Why(reason=Reason.ONLY_FORM) if eliminate else None)


def test_elimination_times_its_forms_too(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    """But not those that are exact for some inputs only: they come last, however fast."""
    one = ran(tuning(chain(2), eliminate=True), 0.5)
    (entry,) = considered(one)
    one.measure([entry])
    wanted = [candidate.strategy for candidate in entry.wanted]
    assert "zero_fill" in wanted
    assert [form.strategy for form in asked[0].forms] == [name for name in wanted if name not in INEXACT]
    assert all(candidate.fragment.max_dilation == 1 for candidate in entry.wanted)


@pytest.mark.parametrize(
    ("shares", "left"),
    [
        ([0.5, 0.009, 0.0009, 0.00009], [0]),
        ([0.5, 0.009, 0.009, 0.001], [0, 1]),
        ([NEGLIGIBLE, 0.5, 0.5, 0.5], [1, 2, 3]),
        ([NEGLIGIBLE * 1.01, 0.5, 0.5, 0.5], [0, 1, 2, 3]),
        ([0.001, 0.002, 0.003, 0.004], []),
        ([0.001, 0.002, 0.003, 0.005], [3]),
        ([None, 0.001, 0.001, 0.001], [0]),
        ([None, None, None, None], [0, 1, 2, 3]),
        ([0.0001, 0.9, None, 0.5], [1, 2, 3]),
    ],
)
def test_sites_that_cannot_matter(
    tuning: Callable[..., Tuning], asked: list[Asked], shares: list[float | None], left: list[int]
) -> None:
    """The least ones, as long as all of them together take no more than one hundredth of the time."""
    one = ran(tuning(chain(2, 3, 4, 5)), *shares)
    sites = considered(one)
    one.measure(sites)
    timed = [entry.site.geometry for entry in sites if one.of(entry).question is not None]
    assert timed == [sites[number].site.geometry for number in left]
    assert len(asked) == len(left)
    for number, entry in enumerate(sites):
        why = instead(one, entry)
        assert (why is not None and why.reason is Reason.CANNOT_MATTER) == (number not in left)
        assert one.of(entry).run.share == shares[number]
        if number not in left:
            assert one.of(entry).timings == {}


@pytest.mark.parametrize(("most", "asks"), [(NEGLIGIBLE * 1.01, True), (NEGLIGIBLE * 0.99, False)])
def test_a_site_may_matter_as_long_as_its_share_may_be_larger(
    tuning: Callable[..., Tuning], asked: list[Asked], most: float, asks: bool
) -> None:
    """The profile told a small share, and could not rule out a larger one."""
    one = ran(tuning(chain(2)), 0.004)
    assert one.original.profiled is not None
    sites = {place: replace(run, interval=(0.001, most)) for place, run in one.original.profiled.sites.items()}
    one.original.profiled = replace(one.original.profiled, sites=sites)
    (entry,) = considered(one)
    one.measure([entry])
    assert len(asked) == asks
    assert instead(one, entry) == (None if asks else Why(reason=Reason.CANNOT_MATTER, share=0.004))


def test_what_the_budget_did_not_reach(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    """Not even its question is made, and the report says about how much more time it would take."""
    one = ran(tuning(chain(2, 4), budget_s=9.0), 0.5, 0.25)
    first, second = considered(one)
    answer = Meter.answer

    def slow(meter: Meter, *given: Any, **more: Any) -> Answer:
        meter.budget.forms_s, meter.budget.forms_timed = 5.0, len(first.wanted)
        meter.budget.seconds = 0.0
        return answer(meter, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "answer", slow)
        one.measure([first, second])
    assert len(asked) == 1
    assert instead(one, second) == not_measured(Reason.BUDGET)
    assert {form.outcome for form in one.of(second).timings.values()} == {Outcome.NO_TIME}
    assert one.untimed == len(second.wanted)
    assert one.measurement().needed_s == pytest.approx((5.0 + 5.0 * len(second.wanted) / len(first.wanted)) * 1.5)


def test_equal_sites_matter_together(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    one = ran(tuning(chain(2, 2, 2, 4)), 0.004, 0.004, 0.004, 0.009)
    sites = considered(one)
    one.measure(sites)
    assert [instead(one, entry) for entry in sites] == [None, None, None, Why(reason=Reason.CANNOT_MATTER, share=0.009)]
    assert len(asked) == 1


def test_a_site_too_small_to_see(tuning: Callable[..., Tuning], asked: list[Asked]) -> None:
    """It ran, in less time than the profiler's clock tells."""
    one = ran(tuning(chain(2)), 0.5)
    assert one.original.profiled is not None
    (site,) = one.original.found.sites
    one.original.profiled = replace(
        one.original.profiled, sites={site.key: SiteRun(share=0.0, shapes=((1, 2, 20),), times=1)}
    )
    (entry,) = considered(one)
    one.measure([entry])
    assert instead(one, entry) == Why(reason=Reason.CANNOT_MATTER, share=0.0)
    assert asked == []


# -- what it says of a site ----------------------------------------------------------------------------------------


def test_a_question_that_failed(tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Answer(forms={"im2col": FormTiming(outcome=Outcome.NOT_MEASURED, cause="no")}, failure="no")
    monkeypatch.setattr(Meter, "answer", lambda *_, **__: failed)
    one = ran(tuning(chain(2)), 0.5)
    (entry,) = considered(one)
    one.measure([entry])
    said = one.of(entry)
    assert instead(one, entry) == not_measured(Reason.CONV_FAILED, "no")
    assert said.timings == failed.forms


def test_before_anything_is_measured(tuning: Callable[..., Tuning]) -> None:
    one = tuning(chain(2, 4), only="conv1")
    first, second = considered(one)
    assert instead(one, first) is None, "it is not for timings to decide"
    assert instead(one, second) == not_measured(Reason.BUDGET)
    assert (one.of(second).run, one.of(second).question) == (UNSEEN, None)
    one.failure = Why(reason=Reason.NO_DATA, said="it does not run")
    assert instead(one, second) == not_measured(Reason.NO_DATA, "it does not run")
    measured = SiteMeasurement(timings={second.wanted[0].strategy: won(0.5)})
    assert one.decider.settle(second, measured).fragment is not None
    slower = Why(reason=Reason.VERSION_FAILED, strategy="im2col", timing=compared(0.5), said="too large")
    assert one.decider.settle(second, measured, slower).why == slower


# -- gains ---------------------------------------------------------------------------------------------------------


def answered(one: Tuning, *groups: Mapping[str, FormTiming], of: Sequence[int]) -> None:
    """Pretend that the sites were measured: site i by answer `of[i]`."""
    one.sites = {
        site.key: SiteMeasurement(timings=groups[number], question=number + 1)
        for site, number in zip(one.original.found.sites, of, strict=False)
    }


def test_what_a_form_saves(tuning: Callable[..., Tuning]) -> None:
    one = ran(tuning(chain(2, 4)), 0.5, 0.5, seconds=0.1)
    answered(
        one,
        {"im2col": won(0.5, 0.02), "tap_sum": won(1.25, 0.02), "lift": FormTiming(outcome=Outcome.NO_TIME)},
        {"im2col": won(0.75, 0.04)},
        of=[0, 1],
    )
    first, second = one.original.found.sites
    assert one.gain(first, "im2col") == pytest.approx(0.02 * 0.5 / 0.1)
    assert one.gain(first, "tap_sum") == pytest.approx(-0.02 * 0.25 / 0.1)
    assert one.gain(first, "lift") is None
    assert one.gain(first, "space_to_batch") is None
    assert one.gain(second, "im2col") == pytest.approx(0.04 * 0.25 / 0.1)
    one.sites.clear()
    assert one.gain(first, "im2col") is None


def test_a_form_saves_in_every_trip(tuning: Callable[..., Tuning]) -> None:
    one = ran(tuning(chain(2)), 0.5, seconds=0.1, times=3)
    answered(one, {"im2col": won(0.5, 0.02)}, of=[0])
    assert one.gain(one.original.found.sites[0], "im2col") == pytest.approx(0.3)


def test_a_run_takes_what_it_was_timed_with(tuning: Callable[..., Tuning]) -> None:
    """The profiler slows a model down."""
    one = ran(tuning(chain(2)), 0.5, seconds=0.1)
    assert one.run_s == 0.1
    one.attempts = (Attempt(sites=(), timing=compared(1.0, seconds=0.08)),)
    assert one.run_s == 0.08
    one.final = compared(1.0, seconds=0.05)
    assert one.run_s == 0.05
    answered(one, {"im2col": won(0.5, 0.02)}, of=[0])
    assert one.gain(one.original.found.sites[0], "im2col") == pytest.approx(0.2)


def test_no_gain_without_a_time(tuning: Callable[..., Tuning]) -> None:
    one = ran(tuning(chain(2)), 0.5, seconds=0.0)
    answered(one, {"im2col": won(0.5, 0.02)}, of=[0])
    assert one.gain(one.original.found.sites[0], "im2col") is None


# -- the whole model -----------------------------------------------------------------------------------------------


@dataclass
class Confirming:
    """What came to the meter, and the versions that it had made."""

    groups: tuple[int, ...]
    digest: str
    run_s: float
    made: list[tuple[ModelProto, str]]


@pytest.fixture
def confirming(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Confirming]]:
    """Lets some groups be confirmed, after all together and each alone were tried."""

    def accept(*accepted: int) -> list[Confirming]:
        seen: list[Confirming] = []

        def whole(
            _: Meter,
            before: Runnable,
            after: Runnable,
            digests: tuple[str, str],
            feeds: Any,
            **options: float,
        ) -> Comparison:
            assert before.model
            assert feeds
            assert options["share"] == 0.8
            assert isinstance(after.model, bytes)
            seen[-1].made.append((ModelProto.FromString(after.model), digests[1]))
            seen[-1] = replace(seen[-1], digest=digests[0], run_s=options["run_s"])
            return compared(1 - 0.1 * len(seen[-1].made[-1][0].doc_string.split(",")))

        def search(
            groups: Sequence[Sequence[str]], timed: Callable[..., Comparison], budget: Budget, **options: Any
        ) -> Confirmed:
            seen.append(Confirming(tuple(range(len(groups))), "", 0.0, []))
            tried = [tuple(itertools.chain(*groups)), *map(tuple, groups)]
            attempts = tuple(Attempt(sites=some, timing=timed(some, 0.8)) for some in tried)
            assert options == {"run_s": seen[-1].run_s, "min_gain": MARGIN}
            assert budget.seconds > 0
            taken = tuple(itertools.chain(*(groups[number] for number in accepted)))
            return Confirmed(sites=taken, attempts=attempts, final=compared(0.8) if accepted else None)

        monkeypatch.setattr(Meter, "whole", whole)
        monkeypatch.setattr("dilrewrite.choice.tune.search", search)
        return seen

    return accept


def winner(one: Tuning, entry: Considered) -> Decision:
    """The site gets im2col by its timings."""
    (candidate,) = [candidate for candidate in entry.wanted if candidate.strategy == "im2col"]
    return Decision(considered=entry, measured=one.of(entry), why=Why(reason=Reason.TIMED), candidate=candidate)


def confirmed(one: Tuning, *sites: int) -> set[str]:
    """The keys of the winning sites, all or these, that stay when the whole model was asked."""
    entries = considered(one)
    winners = [winner(one, entries[number]) for number in sites or range(len(entries))]
    kept = one.confirm(winners, named)
    assert all(why.reason is Reason.NOT_CONFIRMED and why.strategy == "im2col" for why in kept.values())
    assert all(why.timing is not None and why.whole == one.attempts[0].timing for why in kept.values())
    return {decision.site.key for decision in winners} - kept.keys()


def three(tuning: Callable[..., Tuning]) -> Tuning:
    """Sites 0 and 2 are one question, and gain less together than site 1."""
    one = ran(tuning(chain(2, 4, 2)), 0.2, 0.5, 0.2)
    one.original.feeds = {"x": values(1, 2, 20)}
    answered(one, {"im2col": won(0.5, 0.1)}, {"im2col": won(0.5, 0.5)}, of=[0, 1, 0])
    return one


def named(keys: set[str]) -> ModelProto:
    model = conv1d()
    model.doc_string = ",".join(sorted(keys))
    return model


def test_questions_are_confirmed_by_gain(tuning: Callable[..., Tuning], confirming: Callable[..., Any]) -> None:
    seen = confirming(0)
    one = three(tuning)
    first, second, third = (site.key for site in one.original.found.sites)
    assert confirmed(one) == {second}
    (came,) = seen
    assert came.groups == (0, 1)
    assert came.digest == one.original.digest
    assert came.run_s == 1.0
    assert [model.doc_string for model, _ in came.made] == [
        ",".join(sorted([first, second, third])),
        second,
        ",".join(sorted([first, third])),
    ], "equal sites go together"
    assert len({name for _, name in came.made}) == 3
    assert [attempt.sites for attempt in one.attempts] == [(second, first, third), (second,), (first, third)]
    assert one.final == compared(0.8)


def test_all_or_none_confirmed(tuning: Callable[..., Tuning], confirming: Callable[..., Any]) -> None:
    for accepted, wanted in (((0, 1), {0, 1, 2}), ((), set()), ((1,), {0, 2})):
        confirming(*accepted)
        one = three(tuning)
        keys = [site.key for site in one.original.found.sites]
        assert confirmed(one) == {keys[number] for number in wanted}


def test_only_the_winners_are_confirmed(tuning: Callable[..., Tuning], confirming: Callable[..., Any]) -> None:
    seen = confirming(0)
    one = three(tuning)
    assert confirmed(one, 1) == {one.original.found.sites[1].key}
    assert seen[0].groups == (0,)


def test_what_was_in_no_version_that_ran_tells_how_the_version_failed(
    tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together failed, half of them is faster and the other was never timed: its words are not the first half's."""

    def search(groups: Sequence[Sequence[str]], *_: Any, **__: Any) -> Confirmed:
        (first, *_) = groups
        best = Attempt(sites=tuple(first), timing=compared(0.8))
        return Confirmed(sites=best.sites, attempts=(best,), final=best.timing, failure="other numbers")

    monkeypatch.setattr("dilrewrite.choice.tune.search", search)
    one = three(tuning)
    entries = considered(one)
    kept = one.confirm([winner(one, entry) for entry in entries], named)
    assert kept.keys() == {entries[0].site.key, entries[2].site.key}
    assert all((why.reason, why.whole) == (Reason.VERSION_FAILED, None) for why in kept.values())
    assert all(why.said == "other numbers" for why in kept.values())


Whole = Callable[[Comparison | Exception], None]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Whole:
    """Give all comparisons of whole models one result."""

    def given(result: Comparison | Exception) -> None:
        def fake(*_: Any, **__: Any) -> Comparison:
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(Meter, "whole", fake)

    return given


def test_a_version_that_stands_in_any_case(tuning: Callable[..., Tuning], whole: Whole) -> None:
    whole(compared(1.3))
    one = ran(tuning(chain(2)), 0.5)
    one.compare(one.original.model.proto, ["main/c0"])
    assert one.final == compared(1.3)
    assert [attempt.sites for attempt in one.attempts] == [("main/c0",)]
    assert run.notes_of(one) == []


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_version_that_cannot_be_timed(tuning: Callable[..., Tuning], whole: Whole, kind: type[Exception]) -> None:
    whole(kind("it broke"))
    one = ran(tuning(chain(2)), 0.5)
    one.compare(one.original.model.proto, ["main/c0"])
    assert one.final is None
    assert run.notes_of(one) == [words(Reason.WHOLE_FAILED, said="it broke")]


def test_against_another_model(tuning: Callable[..., Tuning], whole: Whole) -> None:
    whole(compared(1.1))
    one = tuning(conv1d())
    one.time_against(Subject(conv1d(), Path()))
    assert one.final == compared(1.1)
    assert shapes_of(one) == {"x": (1, 2, 16)}


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_another_model_that_does_not_run(tuning: Callable[..., Tuning], whole: Whole, kind: type[Exception]) -> None:
    whole(kind("it broke"))
    with pytest.raises(UsageError, match="onnxruntime_cpu cannot time the models: it broke"):
        tuning(conv1d()).time_against(Subject(conv1d(), Path()))


def test_the_original_for_the_worker(tuning: Callable[..., Tuning], tmp_path: Path) -> None:
    """A file is left to the runtime, which may map it; what was changed goes as bytes, with the folder of its data."""
    path = tiny.save_external(conv1d(), tmp_path / "m.onnx")
    one = tuning(path)
    assert one.original.runnable() == Runnable(model=path)
    after, name = one.original.version(one.original.model.proto)
    assert isinstance(after.model, bytes)
    assert after.folder == tmp_path
    assert len(name) == 64
    explicit = tuning(tiny.same_upper())
    assert isinstance(explicit.original.runnable().model, bytes)
    nodes = ModelProto.FromString(explicit.original.runnable().model).graph.node
    assert not any(attribute.name == "auto_pad" for node in nodes for attribute in node.attribute)


# -- the report ----------------------------------------------------------------------------------------------------


def test_a_plan(tuning: Callable[..., Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run measures nothing and runs nothing; equal sites count once."""
    monkeypatch.setattr(onnxruntime_cpu.OnnxRuntimeCpu, "session", lambda *_: pytest.fail("it ran"))
    estimates = []
    for model in (chain(2), chain(2, 2), chain(2, 3, 4)):
        one = tuning(model, budget_s=60.0)
        sites = considered(one)
        plan = one.planned(sites)
        assert plan.estimated_s is not None
        estimates.append(plan.estimated_s)
        assert plan.spent_s == plan.floor_s == plan.measured == plan.recalled == 0
        assert plan.inputs == {}
        assert plan.final is None
        for entry in sites:
            said = one.of(entry)
            assert instead(one, entry) == Why(reason=Reason.PLANNED, number=len(entry.wanted))
            assert {timing.outcome for timing in said.timings.values()} == {Outcome.PLANNED}
            assert list(said.timings) == [candidate.strategy for candidate in entry.wanted]
    assert estimates[0] == estimates[1] < estimates[2] <= 60
    one = tuning(chain(2, 4), only="conv1")
    sites = considered(one)
    one.planned(sites)
    assert instead(one, sites[0]) is None


def test_what_the_report_says(tuning: Callable[..., Tuning], whole: Whole) -> None:
    whole(compared(0.7))
    one = tuning(conv1d(length=None), budget_s=12.5, shapes={"x": (1, 2, 40)}, threads=1)
    assert one.start()
    one.meter.noise = Noise(ratio=1.0, low=0.99, high=1.01, pairs=8)
    one.meter.budget.floor_s = 0.12345
    one.meter.doubts = {"copies": None}
    one.compare(one.original.model.proto, ["main/y"])
    said = one.measurement(predicted_ratio=0.75)
    assert said.backend == "onnxruntime_cpu"
    assert said.device == one.meter.backend.device()
    assert list(said.versions) == ["onnxruntime"]
    assert said.settings["intra_op_num_threads"] == "1"
    assert said.settings["session.force_spinning_stop"] == "1"
    assert said.inputs == {"x": (1, 2, 40)}
    assert (said.budget_s, said.floor_s) == (12.5, 0.123)
    assert 0 < said.spent_s < 12.5
    assert (said.measured, said.recalled) == (1, 0)
    assert said.profiled_s == one.original.profiled.seconds if one.original.profiled is not None else None
    assert said.noise == one.meter.noise
    assert said.final == compared(0.7)
    assert [attempt.timing for attempt in said.attempts] == [said.final]
    assert said.predicted_ratio == 0.75
    assert said.estimated_s is None
    assert said.load is None or said.load >= 0
    assert said.doubts == ("copies",)


def test_notes_in_order(tuning: Callable[..., Tuning], tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").mkdir()
    one = tuning(conv1d(length=None))
    one.meter.ledger.cache = Cache(tmp_path / "cache.sqlite")
    assert one.start()
    one.failure = Why(reason=Reason.WHOLE_FAILED, said="no")
    cache, told = run.notes_of(one)
    assert "cache.sqlite" in cache
    assert told == words(Reason.WHOLE_FAILED, said="no")


def test_sequences_have_no_shape(tuning: Callable[..., Tuning]) -> None:
    one = tuning(conv1d())
    one.original.feeds = {"x": values(1, 2, 16), "s": [values(1)]}  # type: ignore[dict-item]
    assert one.measurement().inputs == {"x": (1, 2, 16), "s": ()}


# -- the place of the cache ----------------------------------------------------------------------------------------


def test_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = open_cache(tmp_path / "given.sqlite", none=True)
    cache.put({"a": 1}, {"b": 2})
    assert cache.get({"a": 1}) == {"b": 2}
    assert list(tmp_path.iterdir()) == []


def test_a_cache_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DILREWRITE_CACHE", str(tmp_path / "usual.sqlite"))
    for path in (tmp_path / "given.sqlite", tmp_path / "given.bin", None):
        open_cache(path, none=False).put({"a": 1}, {"b": 2})
        assert (path or tmp_path / "usual.sqlite").is_file()
        assert open_cache(path, none=False).get({"a": 1}) == {"b": 2}


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    """It is not taken for a damaged cache and set aside. An empty one may be used."""
    other = tmp_path / "notes.txt"
    other.write_text("not to be lost")
    with pytest.raises(UsageError, match=r"notes\.txt: is no cache of timings"):
        open_cache(other, none=False)
    assert other.read_text() == "not to be lost"
    empty = tmp_path / "empty"
    empty.touch()
    open_cache(empty, none=False).put({"a": 1}, {"b": 2})
    assert open_cache(empty, none=False).get({"a": 1}) == {"b": 2}


# -- on the runtime ------------------------------------------------------------------------------------------------


def denoiser() -> ModelProto:
    """A Loop whose body has four dilated Convs on lengths given at run time, as diffusion models have."""
    body = " ".join(
        f"c{number} = {conv(rate)} ({source}, w) r{number} = Relu (c{number})"
        for number, (rate, source) in enumerate([(1, "v"), (2, "r0"), (4, "r1"), (8, "r2"), (16, "r3")])
    )
    return loop(f"{body} r = Add (r4, v)")


@pytest.mark.measures
@pytest.mark.parametrize("length", [40, 33])
def test_sites_in_a_loop_of_unknown_length(tmp_path: Path, length: int) -> None:
    path = tiny.save(denoiser(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", trips=np.array(2), go=np.array(True))
    report = dilrewrite.optimize(
        path,
        shapes=[f"x:1x2x{length}"],
        inputs=tmp_path / "data.npz",
        budget_s=2.0,
        no_cache=True,
        verify="sites",
        threads=1,
    )
    assert len(report.sites) == 4
    assert [site.geometry.dilations for site in report.sites] == [(2,), (4,), (8,), (16,)]
    for site in report.sites:
        assert site.where == "main/Loop#0.body"
        assert site.ran == ((1, 2, length),)
        assert site.share is not None
        assert 0 <= site.share <= 1
    assert report.measurement is not None
    assert report.measurement.inputs["x"] == (1, 2, length)


@pytest.mark.measures
def test_a_model_from_the_start_to_the_report(tuning: Callable[..., Tuning]) -> None:
    """Every form of both sites gets a timing or a reason, within the budget or about."""
    one = tuning(chain(2, 4), budget_s=6.0, threads=1)
    try:
        assert one.start()
        sites = considered(one)
        one.measure(sites)
        for entry in sites:
            said = one.of(entry)
            if said.why is not None:
                continue
            assert set(said.timings) == {candidate.strategy for candidate in entry.wanted}
            assert any(timing.timing is not None for timing in said.timings.values())
            for timing in said.timings.values():
                assert (timing.timing is None) == (timing.outcome in (Outcome.NO_TIME, Outcome.UNPROVED))
        one.compare(one.original.model.proto, ())
        assert one.final is not None
        assert one.final.pairs >= measure.MIN_PAIRS
    finally:
        one.close()
