"""The meter: what is timed within a budget, what the cache knows, what a failure becomes. On a simulated machine."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite import record
from dilrewrite.choice.confirm import Confirmed, search
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.proof.carve import Source
from dilrewrite.proof.compare import Tolerance
from dilrewrite.proof.verdict import Subject
from dilrewrite.reports.content.forms import said as in_words
from dilrewrite.runtimes import (
    Array,
    Artifact,
    CannotLoad,
    CannotRun,
    Crashed,
    Opened,
    Options,
    Pace,
    Runnable,
    TimedBackend,
    TimedOut,
    timed_backend,
    warmed,
)
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.writer import STRATEGY_KEY
from dilrewrite.timing import ledger, measure
from dilrewrite.timing.budget import CONFIRMATION, FEWEST_S, MOST_S, OVERHEAD_S, Budget, estimated_s
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.ledger import feeds_digest
from dilrewrite.timing.measure import WHOLE_ROUNDS, Answer, Form, Meter
from dilrewrite.timing.measurement import Attempt
from dilrewrite.timing.neighbourhood import Question, ask
from dilrewrite.timing.outcome import FormTiming, Outcome, outcome
from dilrewrite.timing.profiling import Profiled, SiteRun
from dilrewrite.timing.stopwatch import HOPELESS, MAX_PAIRS, MIN_PAIRS, SCREEN_PAIRS, VISIBLE, Comparison, Noise, Timing
from tests import models_for_tests as tiny
from tests.models_for_tests import build, conv_node, values

MS = 1e-3
BUDGET = "not measured: budget"
Failure = Exception | None


# -- a simulated machine -------------------------------------------------------------------------------------------


def strategy_of(model: bytes) -> str:
    """The form that a question's model holds: its nodes carry the name."""
    proto = ModelProto.FromString(model)
    names = {entry.value for node in proto.graph.node for entry in node.metadata_props if entry.key == STRATEGY_KEY}
    assert len(names) < 2
    return names.pop() if names else "keep"


@dataclass
class Machine:
    """A clock, and what every model takes on it: `base` by form, 1 ms unless told. `fails` says what goes wrong.

    `factor`: what a run takes the more, by the model's key and the number of the run.
    """

    base: dict[str, float] = field(default_factory=dict)
    opening_s: float = 0.01
    now: float = 100.0
    name: Callable[[bytes], str] = strategy_of
    fails: Callable[[str, str, bytes], Failure] = lambda *_: None
    factor: Callable[[str, int], float] = lambda *_: 1.0
    computes: Callable[[str], float] = lambda _: 1.0
    said: tuple[str, ...] = ()
    peaks: dict[str, int] = field(default_factory=dict)
    workers: list[Bench] = field(default_factory=list)
    loaded: list[tuple[float, str, str]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def worker(self) -> Bench:
        self.workers.append(Bench(self))
        return self.workers[-1]

    @property
    def forms(self) -> list[str]:
        """The forms that were timed, in order."""
        return list(dict.fromkeys(name for _, key, name in self.loaded if key == "form"))


class Bench:
    """A worker on the simulated machine; holds its callers to the rules of a `Bench`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.models: dict[str, bytes] = {}
        self.live: set[str] = set()
        self.ran: Counter[str] = Counter()
        self.dead = self.closed = False

    def _check(self, step: str, key: str) -> None:
        assert not self.closed, "closed"
        assert not self.dead, "after a crash it is of no use"
        model = self.models.get(key, b"")
        error = self.machine.fails(step, key, model)
        if error is not None:
            self.dead = isinstance(error, Crashed | TimedOut)
            raise error

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        assert feeds
        self.live.discard(key)
        self.models[key], _ = artifact.content()
        self._check("add", key)

    def drop(self, key: str) -> None:
        assert not self.dead
        self.live.discard(key)
        self.models.pop(key, None)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        self.live.clear()
        for key in keys:
            self._check("open", key)
            self.machine.now += self.machine.opening_s
            self.machine.loaded.append((self.machine.now, key, self.machine.name(self.models[key])))
            self.live.add(key)
        return [
            Opened(run_s=warmed(lambda times, key=key: self.run([key] * times), warm_s, runs, self.machine.clock))  # type: ignore[misc]
            for key in keys
        ]

    def shut(self) -> None:
        self.live.clear()

    def run(self, order: Sequence[str]) -> list[float]:
        found = []
        for key in order:
            assert key in self.live
            self._check("run", key)
            base = self.machine.base.get(self.machine.name(self.models[key]), MS)
            found.append(base * self.machine.factor(key, self.ran[key]))
            self.ran[key] += 1
        self.machine.now += sum(found)
        return found

    def outputs(self, key: str) -> dict[str, Array]:
        self._check("outputs", key)
        return {"y": np.full(4, self.machine.computes(self.machine.name(self.models[key])), np.float32)}

    def peak_bytes(self, key: str) -> int | None:
        self.live.clear()
        self._check("peak_bytes", key)
        return self.machine.peaks.get(self.machine.name(self.models[key]))

    def warnings(self) -> tuple[str, ...]:
        return self.machine.said

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Backend(TimedBackend):
    """What a meter asks a backend; it takes the Convs that ONNX Runtime takes."""

    name: str = "fake"  # type: ignore[misc]
    version: str = "1.0"
    place: str = "a machine"
    setting: str = "usual"
    pace: Pace = field(default_factory=Pace)  # type: ignore[misc]

    def versions(self) -> dict[str, str]:
        return {"fake": self.version}

    def device(self) -> str:
        return self.place

    def settings(self, options: Options) -> dict[str, str]:
        return {"threads": str(options.threads), "setting": self.setting}

    def refuses(self, geometry: ConvGeometry) -> str | None:
        return BACKEND.refuses(geometry)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine on which the meters of a test time."""
    made = Machine()

    def worker(self: Meter) -> Any:
        if self._bench is None:
            self._bench = made.worker()
        return self._bench

    monkeypatch.setattr(Meter, "worker", worker)
    monkeypatch.setattr(Backend, "bench", lambda *_: made.worker())
    return made


def meter(
    machine: Machine, cache: Cache | None = None, *, budget_s: float = 60.0, backend: Any = None, **more: Any
) -> Meter:
    """A meter whose clock runs; `more` goes to its sessions, or else to its budget."""
    sessions = {name: more.pop(name) for name in ("threads", "custom_op_library") if name in more}
    budget = Budget(budget_s, clock=machine.clock, **more)
    made = Meter.on(backend or Backend(), cache if cache is not None else Cache(None), budget, Options(**sessions))
    budget.begin()
    return made


# -- questions and forms -------------------------------------------------------------------------------------------

FORMS = ("space_to_batch", "im2col", "tap_sum", "slice_to_batch")
NOTHING_KNOWN = Profiled(seconds=1.0, sites={}, tensors={})


def followed(*, follower: str = "Relu", **attributes: Any) -> ModelProto:
    """A dilated Conv and what follows it, as newest models store it."""
    return build(
        [
            conv_node("x", "c", name="site", **(attributes or {"dilations": [2], "pads": [2, 2]})),
            helper.make_node(follower, ["c"], ["y"], name="next"),
        ],
        {"x": [1, 2, 16]},
        {"y": None},
        {"w": values(2, 2, 3)},
        opset=21,
        ir=10,
    )


def followed_by(channels: int) -> ModelProto:
    """The same with so many channels."""
    return build(
        [
            conv_node("x", "c", name="site", dilations=[2], pads=[2, 2]),
            helper.make_node("Relu", ["c"], ["y"], name="next"),
        ],
        {"x": [1, channels, 16]},
        {"y": None},
        {"w": values(channels, channels, 3)},
        opset=21,
        ir=10,
    )


def asked(model: ModelProto | None = None, *, bare: bool = False) -> Question:
    model = model or followed()
    (site,) = find(model).sites
    return ask(Source(model), site, NOTHING_KNOWN, numpy_helper.to_array, (), bare=bare)


def plain() -> Question:
    return asked(bare=True)


def never() -> Question:
    raise AssertionError("the question without neighbours was asked")


def fragment(name: str, site: Site) -> Fragment:
    made = plan(name, strategies()[name], site.geometry, site.opset, storage=site.storage)
    assert isinstance(made, Fragment)
    return made


def forms(
    *names: str, prove: Callable[[str], str | None] = lambda _: None, model: ModelProto | None = None
) -> list[Form]:
    (site,) = find(model or followed()).sites
    return [
        Form(strategy=name, fragment=fragment(name, site), prove=lambda name=name: prove(name))  # type: ignore[misc]
        for name in names or FORMS
    ]


def answer(one: Meter, *names: str, question: Question | None = None, **more: Any) -> Answer:
    options: dict[str, Any] = {"must_go": False, "plain": never, **more}
    slice_s = options.pop("slice_s", 0.5)
    given = options.pop("given", None) or forms(*names)
    return one.answer(question or asked(), options.pop("plain"), given, slice_s, **options)


def words(found: Answer) -> dict[str, str]:
    return {name: in_words(timing) for name, timing in found.forms.items()}


def ratio(found: Answer, name: str) -> float:
    timing = found.forms[name].timing
    assert timing is not None
    return timing.ratio


# -- the budget ----------------------------------------------------------------------------------------------------


def test_the_clock(machine: Machine) -> None:
    one = Budget(9.0, clock=machine.clock)
    assert one.now() == 0, "it has not begun"
    one.begin()
    machine.now += 3
    assert one.now() == 3


@pytest.mark.parametrize(
    ("winner", "run_s", "until"),
    [
        (False, 0.0, 59.0),
        (False, 0.1, 60 - 4 * MIN_PAIRS * 0.1 - 1),
        (False, 5.0, 40.0),
        (True, 0.0, 40.0),
        (True, 0.1, 40.0),
    ],
    ids=["no winner", "the model takes a while", "the model takes long", "a winner", "a winner of a while"],
)
def test_how_long_forms_are_timed(machine: Machine, winner: bool, run_s: float, until: float) -> None:
    """Two thirds, once there is something to confirm; before that, all but the least that a confirmation takes."""
    one = meter(machine, winner=winner, run_s=run_s)
    assert one.budget.forms_until_s == pytest.approx(until)
    assert one.budget.forms_until_s >= one.budget.seconds * (1 - CONFIRMATION) - 1e-9


@pytest.mark.parametrize(("comparisons", "slice_s"), [(1, MOST_S), (60, 59 / 60 - OVERHEAD_S), (1000, FEWEST_S)])
def test_a_slice_is_a_share_of_what_is_left(machine: Machine, comparisons: int, slice_s: float) -> None:
    one = meter(machine)
    assert one.budget.slice_s(comparisons) == pytest.approx(slice_s)
    machine.now += 200
    assert one.budget.slice_s(comparisons) == FEWEST_S
    assert one.budget.slice_s(0) == FEWEST_S


def test_nothing_begins_when_the_time_for_forms_is_over(machine: Machine) -> None:
    machine.opening_s = 0.5
    one = meter(machine, budget_s=9.0)
    found = answer(one)
    said = words(found)
    timed = [name for name in FORMS if said[name] != BUDGET]
    assert 0 < len(timed) < len(FORMS)
    assert tuple(timed) == FORMS[: len(timed)], "the first are timed first"
    assert machine.forms == timed, "the others are not even loaded"
    assert {name: found.forms[name].timing for name in FORMS if name not in timed} == dict.fromkeys(
        FORMS[len(timed) :], None
    )
    begins = [when - machine.opening_s - 100 for when, key, _ in machine.loaded if key == "form"]
    assert max(begins) < 9.0
    assert words(answer(one, question=plain())) == dict.fromkeys(FORMS, BUDGET)
    assert (one.ledger.measured, one.ledger.recalled) == (len(timed), 0), "what was not measured is not kept"


@pytest.mark.parametrize("budget_s", [0.0, OVERHEAD_S / 2])
def test_no_budget(machine: Machine, budget_s: float) -> None:
    one = meter(machine, budget_s=budget_s)
    proved: list[str] = []
    found = answer(one, given=forms(prove=lambda name: proved.append(name)))  # type: ignore[func-returns-value]
    assert words(found) == dict.fromkeys(FORMS, BUDGET)
    assert found.failure is None
    assert machine.workers == []
    assert proved == []


def test_a_third_stays_once_there_is_a_winner(machine: Machine) -> None:
    machine.base = {"space_to_batch": 0.5 * MS}
    machine.opening_s = 0.4
    one = meter(machine, budget_s=12.0)
    said = words(answer(one))
    assert one.budget.winner
    assert said["space_to_batch"] == "won: 2.00x faster"
    assert one.budget.forms_until_s == pytest.approx(8.0)
    assert one.budget.now() < 8.0
    without = meter(machine, budget_s=12.0)
    machine.base = {}
    assert BUDGET not in words(answer(without)).values(), "the same, with nothing to confirm"
    assert not without.budget.winner


def test_proofs_run_on_the_clock(machine: Machine) -> None:
    """A user waits for them as well; what has been proved is not timed for longer than is left."""

    def prove(_: str) -> str | None:
        machine.now += 1000
        return None

    machine.base = {"space_to_batch": 0.5 * MS}
    one = meter(machine)
    found = words(answer(one, given=forms(prove=prove)))
    assert found == {name: "won: 2.00x faster" if name == "space_to_batch" else BUDGET for name in FORMS}
    assert 1000 < one.budget.now() < 1010


@pytest.mark.parametrize("budget_s", [0.5, 3.0, 10.0, 60.0])
@pytest.mark.parametrize("run_s", [0.01, 0.3, 5.0, 100.0])
@pytest.mark.parametrize("unsteady", [False, True])
def test_one_message_at_most_begins_after_the_deadline(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, budget_s: float, run_s: float, unsteady: bool
) -> None:
    """Whatever a Conv takes, and in whatever step time is up."""
    messages: list[float] = []
    under_way: list[str] = []

    def noted(name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        def sent(*arguments: Any, **options: Any) -> Any:
            if not under_way:  # what warms a session up is no message of its own
                messages.append(machine.now)
            under_way.append(name)
            result = send(*arguments, **options)
            under_way.pop()
            return result

        return sent

    for name in ("open", "run"):
        monkeypatch.setattr(Bench, name, noted(name, getattr(Bench, name)))
    machine.base = dict.fromkeys(("keep", *FORMS), run_s)
    machine.factor = lambda key, run: 1.2 if unsteady and key != "keep" and run % 3 else 1.0
    one = meter(machine, budget_s=budget_s)
    began_s = machine.now
    found = answer(one)
    assert not one.budget.winner
    assert sum(message - began_s >= one.budget.forms_until_s for message in messages) <= 1
    if run_s * 2 * SCREEN_PAIRS > budget_s:
        assert words(found) == dict.fromkeys(FORMS, BUDGET)


def test_progress_stays_within_the_budget(machine: Machine) -> None:
    seen: list[tuple[str, int, int]] = []
    machine.base = dict.fromkeys(("keep", *FORMS), 0.5)
    one = meter(machine, budget_s=7.5, progress=lambda *step: seen.append(step))
    answer(one)
    assert one.budget.now() > 8, "what has begun gets its pairs"
    assert seen
    assert {(step, total) for step, _, total in seen} == {("measure", 8)}
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 8


# -- forms ---------------------------------------------------------------------------------------------------------


def test_every_form_is_timed_against_the_conv_as_it_is(machine: Machine) -> None:
    machine.base = {"keep": MS, "space_to_batch": 0.5 * MS, "im2col": 2 * MS, "tap_sum": 0.99 * MS}
    one = meter(machine)
    found = answer(one)
    assert found.failure is None
    assert words(found) == {
        "space_to_batch": "won: 2.00x faster",
        "im2col": "lost: 2.00x slower",
        "tap_sum": "given up early, another is faster: 1.010x faster",
        "slice_to_batch": "given up early, another is faster: as fast",
    }
    assert machine.forms == list(FORMS)
    assert ratio(found, "im2col") == pytest.approx(2)
    for timing in found.forms.values():
        assert timing.timing is not None
        assert timing.timing.first.median_s == pytest.approx(MS)
        assert timing.timing.noise == pytest.approx(0, abs=1e-9), "the Conv against itself"
        assert timing.timing.pairs >= MIN_PAIRS or timing.timing.pairs == SCREEN_PAIRS
    assert (one.ledger.measured, one.ledger.recalled) == (4, 0)
    assert len(machine.workers) == 1
    assert machine.workers[0].live == set()


def pairs(found: Answer) -> dict[str, int]:
    return {name: timing.timing.pairs for name, timing in found.forms.items() if timing.timing is not None}


def test_a_hopeless_form_is_left_early(machine: Machine) -> None:
    machine.base = {"im2col": (HOPELESS + 0.1) * MS, "tap_sum": (HOPELESS - 0.1) * MS}
    found = pairs(answer(meter(machine)))
    assert found["im2col"] == SCREEN_PAIRS
    assert min(found["tap_sum"], found["space_to_batch"]) > MIN_PAIRS
    assert max(found.values()) <= MAX_PAIRS + 4


@pytest.mark.parametrize("must_go", [False, True])
def test_a_form_that_another_clearly_beats_is_left_early(machine: Machine, must_go: bool) -> None:
    """Where the Conv has to go, all forms may be slower than it, and only the best of them is a measure."""
    machine.base = {
        name: base * MS * (4 if must_go else 1) for name, base in zip(FORMS, (0.9, 0.5, 0.7, 0.52), strict=True)
    }
    found = answer(meter(machine), must_go=must_go)
    assert [count > SCREEN_PAIRS for count in pairs(found).values()] == [True, True, False, True]
    assert found.forms["tap_sum"].outcome is (Outcome.LOST if must_go else Outcome.OUTRUN)


def test_only_a_form_that_won_is_proved(machine: Machine) -> None:
    machine.base = {"space_to_batch": 0.9 * MS, "im2col": 2 * MS, "tap_sum": 0.8 * MS}
    proved: list[str] = []

    def prove(name: str) -> str | None:
        proved.append(name)
        return "differs" if name == "tap_sum" else None

    one = meter(machine)
    found = answer(one, given=forms(prove=prove))
    assert proved == ["space_to_batch", "tap_sum"]
    assert words(found)["tap_sum"] == "not proved: differs"
    assert found.forms["tap_sum"].timing is None
    assert words(found)["slice_to_batch"] == "no faster beyond noise: as fast", "what is not proved is no measure"
    assert one.ledger.measured == 3
    answer(one)
    assert one.ledger.measured == 4, "it is tried again when it is asked again"


def test_noise_in_which_nothing_can_be_seen(machine: Machine) -> None:
    """It is measured once more, and then told: a loss by less says nothing, one by more does, and a win is a win."""
    machine.factor = lambda key, _: 1.3 if key == "twin" else 1.0
    machine.base = {"space_to_batch": 1.02 * MS, "im2col": 2 * MS, "tap_sum": 0.4 * MS}
    one = meter(machine)
    found = answer(one)
    assert [found.forms[name].outcome for name in FORMS[:3]] == [Outcome.INCONCLUSIVE, Outcome.LOST, Outcome.WON]
    assert one.form_noise > VISIBLE
    opened = [key for _, key, _ in machine.loaded if key == "twin"]
    assert len(opened) >= 2 * measure.FORM_ROUNDS


def test_a_conv_that_the_runtime_takes_with_explicit_pads_alone(machine: Machine) -> None:
    """SAME_* with dilation: the original is timed as the tool would leave it."""
    model = followed(dilations=[3], auto_pad="SAME_UPPER", kernel_shape=[3])
    seen: dict[str, ModelProto] = {}

    def look(step: str, key: str, model: bytes) -> Failure:
        if step == "add":
            seen[key] = ModelProto.FromString(model)
        return None

    machine.fails = look
    machine.name = lambda _: "any"
    answer(meter(machine), question=asked(model), given=forms(model=model))
    assert set(seen) == {"keep", "twin", "form"}
    for key in ("keep", "twin"):
        (conv,) = [node for node in seen[key].graph.node if node.op_type == "Conv"]
        attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
        assert attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        assert attributes["dilations"] == [3]


def test_the_memory_of_what_was_timed(machine: Machine, tmp_path: Path) -> None:
    """Beside its time, and as lasting; a form without a time has none, and what is not told is None."""
    machine.peaks = {"keep": 5000, "space_to_batch": 7000, "im2col": 9000}
    machine.base = {"im2col": 2 * MS}
    machine.fails = lambda step, _, model: (
        CannotLoad("no") if (step, strategy_of(model)) == ("open", "tap_sum") else None
    )
    for _ in ("measured", "recalled"):
        one = meter(machine, Cache(tmp_path / "c.sqlite"))
        found = answer(one).forms
        assert {name: (form.keep_peak_bytes, form.peak_bytes) for name, form in found.items()} == {
            "space_to_batch": (5000, 7000),
            "im2col": (5000, 9000),
            "tap_sum": (None, None),
            "slice_to_batch": (5000, None),
        }
    assert one.ledger.recalled == len(FORMS)


def test_memory_that_would_overrun_the_budget_is_not_measured(machine: Machine) -> None:
    """It takes another session, as long as opening took; the timing stays."""
    machine.peaks = {"keep": 5000, "im2col": 9000}
    machine.opening_s = 1.0
    one = meter(machine)
    one.budget.winner = True
    machine.now += one.budget.forms_until_s - one.budget.now() - 10
    (form,) = answer(one, given=[each for each in forms() if each.strategy == "im2col"]).forms.values()
    assert form.timing is not None
    assert (form.keep_peak_bytes, form.peak_bytes) == (5000, None)


def test_only_what_is_compared_is_held(machine: Machine) -> None:
    one = meter(machine)
    answer(one)
    (worker,) = machine.workers
    assert set(worker.models) == {"keep", "form"}
    machine.name = lambda _: "keep"
    one.whole(Runnable(model=b"keep"), Runnable(model=b"b"), ("1", "2"), {"x": values(1)}, run_s=MS)
    assert set(worker.models) == {"before", "after"}


# -- what goes wrong -----------------------------------------------------------------------------------------------


def failing_form(name: str, error: Exception, step: str = "open") -> Callable[[str, str, bytes], Failure]:
    def fails(what: str, key: str, model: bytes) -> Failure:
        return error if what == step and key == "form" and strategy_of(model) == name else None

    return fails


@pytest.mark.parametrize("step", ["add", "open", "run"])
@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_form_that_fails(machine: Machine, kind: type[Exception], step: str) -> None:
    """It is out, and the others go on; what killed the worker gets a new one."""
    machine.fails = failing_form("im2col", kind("it broke"), step)
    one = meter(machine)
    found = answer(one)
    assert words(found)["im2col"] == "failed: it broke"
    assert found.forms["im2col"].timing is None
    assert all(found.forms[name].timing is not None for name in FORMS if name != "im2col")
    deadly = kind in (Crashed, TimedOut)
    assert [worker.closed for worker in machine.workers] == ([True, False] if deadly else [False])
    assert one.ledger.measured == 3 + (kind is not TimedOut), "a form that took too long once may do better another day"
    machine.fails = lambda *_: None
    again = words(answer(one))
    assert again["im2col"] == ("no faster beyond noise: as fast" if kind is TimedOut else "failed: it broke")
    kinds = {Crashed: Outcome.CRASHED, TimedOut: Outcome.TIMED_OUT}
    assert found.forms["im2col"].outcome is kinds.get(kind, Outcome.FAILED)


STRICT = Tolerance(1e-4, 1e-4, 0.0)


def test_a_form_that_computes_something_else_here_is_out(machine: Machine) -> None:
    """Whatever proofs on another runtime say; and the others go on."""
    machine.base = {"im2col": 0.2 * MS, "tap_sum": 0.5 * MS}
    machine.computes = lambda name: 1.5 if name == "im2col" else 1 + 1e-6
    one = meter(machine)
    one.tolerance = STRICT
    found = answer(one)
    assert found.forms["im2col"].outcome is Outcome.WRONG
    assert words(found)["im2col"].startswith("wrong: output 'y': ")
    assert found.forms["tap_sum"].outcome is Outcome.WON
    assert [bench.closed for bench in machine.workers] == [False]
    assert answer(one).forms["im2col"].outcome is Outcome.WRONG, "known from now on"


def with_neighbours(model: bytes) -> bool:
    return any(node.op_type == "Relu" for node in ModelProto.FromString(model).graph.node)


@pytest.mark.parametrize("step", ["add", "open", "run"])
@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_question_that_fails_is_asked_without_neighbours(machine: Machine, kind: type[Exception], step: str) -> None:
    machine.fails = lambda what, _, model: kind("no Relu here") if what == step and with_neighbours(model) else None
    one = meter(machine)
    found = answer(one, plain=plain)
    assert found.failure is None
    assert all(timing.timing is not None for timing in found.forms.values())
    assert [worker.closed for worker in machine.workers[:-1]] == [True] * (kind in (Crashed, TimedOut))


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_conv_that_does_not_run_at_all(machine: Machine, kind: type[Exception]) -> None:
    machine.fails = lambda what, *_: kind("no such kernel") if what == "open" else None
    one = meter(machine)
    found = answer(one, plain=plain)
    assert found.failure == "no such kernel"
    assert words(found) == dict.fromkeys(FORMS, f"not measured: {found.failure}")
    assert (one.ledger.measured, one.ledger.recalled) == (0, 0)
    assert answer(one, question=plain()).failure == found.failure, "nothing to fall back to, and nothing asked"


def test_no_question_without_neighbours(machine: Machine) -> None:
    machine.fails = lambda what, _, model: CannotRun("no") if what == "open" and with_neighbours(model) else None

    def unknown() -> Question:
        raise LookupError("its sizes are not known")

    assert answer(meter(machine), plain=unknown).failure == "its sizes are not known"


def test_a_conv_without_a_runnable_form(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise CannotRun("it has no runnable form: no Pad")

    monkeypatch.setattr(measure, "baseline", refuse)
    found = answer(meter(machine), plain=plain)
    assert found.failure == "it has no runnable form: no Pad"
    assert machine.workers == []


def test_closing_keeps_the_doubts(machine: Machine) -> None:
    machine.said = ("it copies", "it waits")
    one = meter(machine)
    answer(one)
    assert one.doubts == {}
    one.close()
    one.close()
    assert list(one.doubts) == ["it copies", "it waits"]
    assert machine.workers[0].closed
    answer(one, question=plain())
    one.close()
    assert list(one.doubts) == ["it copies", "it waits"]
    assert len(machine.workers) == 2


# -- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "timings.sqlite")


def test_what_was_timed_is_not_timed_again(machine: Machine, cache: Cache) -> None:
    machine.base = {"im2col": 2 * MS, "space_to_batch": 0.5 * MS}
    machine.fails = failing_form("tap_sum", CannotLoad("it broke"))
    first = answer(meter(machine, cache))
    count = len(machine.workers)
    later = meter(machine, cache, budget_s=0.0)
    second = answer(later)
    assert second == first
    assert (later.ledger.measured, later.ledger.recalled) == (0, len(FORMS))
    assert len(machine.workers) == count
    assert later.budget.winner, "a third of the budget stays for the whole model"


def test_what_a_noisy_machine_told_is_timed_again(machine: Machine, cache: Cache) -> None:
    """Whatever it told; on a quiet machine it is kept, and recalled with its noise."""
    machine.base = {"space_to_batch": 0.3 * MS, "im2col": 3 * MS}
    machine.factor = lambda key, _: 1.3 if key == "twin" else 1.0
    noisy = meter(machine, cache)
    assert answer(noisy).forms["space_to_batch"].outcome is Outcome.WON
    assert noisy.ledger.measured == len(FORMS)
    machine.factor = lambda key, _: 1.03 if key == "twin" else 1.0
    quiet = meter(machine, cache)
    answer(quiet)
    assert (quiet.ledger.measured, quiet.ledger.recalled) == (len(FORMS), 0)
    later = meter(machine, cache)
    answer(later)
    assert (later.ledger.measured, later.ledger.recalled) == (0, len(FORMS))
    assert later.form_noise == pytest.approx(quiet.form_noise)


def test_only_what_is_new_is_timed(machine: Machine, cache: Cache) -> None:
    answer(meter(machine, cache), "im2col", "tap_sum")
    machine.loaded.clear()
    later = meter(machine, cache)
    answer(later)
    assert machine.forms == ["space_to_batch", "slice_to_batch"]
    assert (later.ledger.measured, later.ledger.recalled) == (2, 2)


def test_equal_questions_of_other_models_are_known(machine: Machine, cache: Cache) -> None:
    model = followed()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    model.graph.node[0].name = "another"
    answer(meter(machine, cache))
    later = meter(machine, cache)
    answer(later, question=asked(model))
    assert (later.ledger.measured, later.ledger.recalled) == (0, len(FORMS))


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": Backend(name="other")},
        {"backend": Backend(version="2.0")},
        {"backend": Backend(place="another machine")},
        {"backend": Backend(setting="unusual")},
        {"threads": 3},
    ],
    ids=["backend", "version", "device", "setting", "threads"],
)
def test_other_circumstances(machine: Machine, cache: Cache, changes: dict[str, Any]) -> None:
    answer(meter(machine, cache))
    other = meter(machine, cache, **changes)
    answer(other)
    assert (other.ledger.measured, other.ledger.recalled) == (len(FORMS), 0)


def test_another_custom_operator_library(machine: Machine, cache: Cache, tmp_path: Path) -> None:
    library = tmp_path / "operators.so"
    library.write_bytes(b"one")
    answer(meter(machine, cache, custom_op_library=(library,)))
    same = meter(machine, cache, custom_op_library=(library,))
    answer(same)
    assert same.ledger.recalled == len(FORMS)
    library.write_bytes(b"two")
    other = meter(machine, cache, custom_op_library=(library,))
    answer(other)
    assert other.ledger.recalled == 0


def test_other_questions(machine: Machine, cache: Cache) -> None:
    answer(meter(machine, cache))
    for question in (asked(followed(follower="Tanh")), plain()):
        other = meter(machine, cache)
        answer(other, question=question)
        assert (other.ledger.measured, other.ledger.recalled) == (len(FORMS), 0)


def test_a_new_version_of_timings_begins_anew(machine: Machine, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(meter(machine, cache))
    monkeypatch.setattr(ledger, "CACHE_VERSION", ledger.CACHE_VERSION + 1)
    later = meter(machine, cache)
    answer(later)
    assert later.ledger.recalled == 0


NONSENSE: dict[str, Any] = {
    "empty": {},
    "no outcome": {"timing": None, "cause": ""},
    "another outcome": {"outcome": "won: 1.41x faster", "timing": None, "cause": ""},
    "no timing": {"outcome": "won", "cause": ""},
    "text": {"outcome": "won", "cause": "", "timing": "fast"},
    "list": {"outcome": "won", "cause": "", "timing": [1, 2]},
    "number": {"outcome": "won", "cause": "", "timing": 3},
    "half": {"outcome": "won", "cause": "", "timing": {"ratio": 1.0}},
    "no numbers": {"outcome": "won", "cause": "", "timing": {"first": {}, "second": {}, "ratio": None}},
    "endless": {
        "outcome": "won",
        "cause": "",
        "timing": {
            "first": {"median_s": 1, "p20_s": 1, "p80_s": 1, "runs": math.inf},
            "second": {"median_s": 1, "p20_s": 1, "p80_s": 1, "runs": 6},
            "ratio": 1,
            "low": 1,
            "high": 1,
            "pairs": 6,
            "noise": None,
            "mode": "interleaved",
        },
    },
}


def overwrite(cache: Cache, value: Any) -> None:
    """Put the same under every key of the cache's file."""
    assert cache._path is not None
    with sqlite3.connect(cache._path) as file:
        file.execute("UPDATE timings SET value = ?", (json.dumps(value),))
    file.close()


@pytest.mark.parametrize("value", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_in_the_cache_is_measured_again(machine: Machine, cache: Cache, value: Any) -> None:
    first = answer(meter(machine, cache))
    overwrite(cache, value)
    later = meter(machine, cache)
    assert answer(later) == first
    assert (later.ledger.measured, later.ledger.recalled) == (len(FORMS), 0)


TIMING = Timing(median_s=0.1, p20_s=1 / 3, p80_s=1e-9, runs=7)
COMPARED = Comparison(
    first=TIMING, second=TIMING, ratio=0.7, low=0.6999999999999, high=math.inf, pairs=6, noise=0.01, mode="blocks"
)


@pytest.mark.parametrize("compared", [COMPARED, replace(COMPARED, noise=None, mode="interleaved"), None])
def test_a_timing_comes_back_as_it_was(compared: Comparison | None) -> None:
    timing = FormTiming(outcome=Outcome.CRASHED, timing=compared, cause="it broke")
    assert record.read(FormTiming, json.loads(json.dumps(dataclasses.asdict(timing))), "") == timing


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"ratio": 0.5, "low": 0.4, "high": 0.6, "noise": 0.11}, False),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6, "noise": 0.09}, True),
        ({"ratio": 0.95, "low": 0.7, "high": 1.2, "noise": 0.01}, False),
        ({"ratio": 1.0, "low": 0.98, "high": 1.02, "noise": None}, True),
    ],
)
def test_which_timings_last(changes: dict[str, Any], kept: bool) -> None:
    assert ledger.lasting(replace(COMPARED, **changes)) is kept


@pytest.mark.parametrize("noise", [Noise(ratio=1.01, low=0.99, high=1.02, pairs=8), None])
def test_noise_comes_back_as_it_was(noise: Noise | None) -> None:
    whole = ledger.WholeRecord(timing=COMPARED, noise=noise)
    assert record.read(ledger.WholeRecord, json.loads(json.dumps(dataclasses.asdict(whole))), "") == whole


# -- profiles ------------------------------------------------------------------------------------------------------


def profile_of(model: ModelProto) -> tuple[Sequence[Site], Profiled]:
    sites = find(model).sites
    runs = [
        SiteRun(share=0.25, shapes=((1, 2, 20), (1, 2, 21)), times=3, interval=(0.2, 0.3)),
        SiteRun(share=None, shapes=(), times=0),
    ]
    return sites, Profiled(
        seconds=0.125,
        sites={site.key: ran for site, ran in zip(sites, runs, strict=True)},
        tensors={(sites[0].scope, "a"): (1, 2, 20), (sites[0].scope, "s"): ()},
    )


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> list[str]:
    """Makes profiles by hand, each in 2 s; the backends that were asked."""
    asked: list[str] = []

    def fake(backend: Any, *others: Any) -> Profiled:
        asked.append(backend.name)
        assert others[-1] == 60.0, "how often it runs depends on the budget"
        machine.now += 2
        return profile_of(tiny.two_convs())[1]

    monkeypatch.setattr("dilrewrite.timing.profiling.profile", fake)
    return asked


def profile(one: Meter, digest: str = "model", feeds: Mapping[str, Array] | None = None) -> Profiled:
    model = tiny.two_convs()
    given = feeds if feeds is not None else {"x": values(1, 2, 20)}
    return one.profile(Subject(model, Path()), digest, find(model).sites, given)


def test_a_profile_is_made_once(machine: Machine, cache: Cache, profiles: list[str]) -> None:
    wanted = profile_of(tiny.two_convs())[1]
    one = meter(machine, cache)
    assert profile(one) == wanted
    other = meter(machine, cache)
    assert profile(other) == wanted
    assert profiles == ["fake"]
    assert (one.ledger.measured, one.ledger.recalled, other.ledger.measured, other.ledger.recalled) == (1, 0, 0, 1)
    assert one.budget.run_s == other.budget.run_s == 0.125
    assert (one.budget.floor_s, other.budget.floor_s) == (2, 0), "it runs whatever the budget"
    assert (one.budget.until_s - one.budget.seconds, other.budget.until_s - other.budget.seconds) == (2, 0), (
        "the budget is for what comes after"
    )


@pytest.mark.parametrize("what", ["model", "data", "threads"])
def test_another_profile(machine: Machine, cache: Cache, profiles: list[str], what: str) -> None:
    profile(meter(machine, cache))
    if what == "model":
        profile(meter(machine, cache), "another")
    elif what == "data":
        profile(meter(machine, cache), feeds={"x": values(1, 2, 20, seed=9)})
    else:
        profile(meter(machine, cache, threads=2))
    assert len(profiles) == 2


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"seconds": 1, "sites": [], "tensors": []},
        {"seconds": 1, "sites": [{}, {}], "tensors": []},
        {"seconds": "soon", "sites": [{"share": None, "shapes": [], "times": 1}] * 2, "tensors": []},
        {"seconds": 1, "sites": [{"share": None, "shapes": [], "times": 1}] * 3, "tensors": []},
        {"seconds": 1, "sites": [{"share": None, "shapes": 5, "times": 1}] * 2, "tensors": []},
        {"seconds": 1, "sites": [{"share": None, "shapes": [], "times": 1}] * 2, "tensors": [[7, "a", [1]]]},
        {"seconds": 1, "sites": [{"share": None, "shapes": [], "times": 1}] * 2, "tensors": 3},
        {"seconds": 1, "sites": "no", "tensors": []},
        {"seconds": 1, "sites": [{"share": None, "shapes": [[math.inf]], "times": 1}] * 2, "tensors": []},
    ],
)
def test_nonsense_for_a_profile(machine: Machine, cache: Cache, profiles: list[str], value: Any) -> None:
    wanted = profile(meter(machine, cache))
    overwrite(cache, value)
    assert profile(meter(machine, cache)) == wanted
    assert len(profiles) == 2


def test_tensors_of_scopes_without_a_site_are_not_kept() -> None:
    """A model has many tensors; those around its sites are of use."""
    sites, found = profile_of(tiny.two_convs())
    elsewhere = replace(sites[0].scope, function=3)
    more = replace(found, tensors={**found.tensors, (elsewhere, "a"): (5,)})
    plain = json.loads(json.dumps(dataclasses.asdict(ledger.ProfileRecord.of(more, sites))))
    kept = record.read(ledger.ProfileRecord, plain, "")
    assert kept.fits(sites)
    assert kept.profile(sites) == found


# -- whole models --------------------------------------------------------------------------------------------------

FEEDS = {"x": values(1, 2)}


def whole(one: Meter, after: str = "after", **more: Any) -> Comparison:
    return one.whole(
        Runnable(model=b"before"), Runnable(model=after.encode()), ("b", after), FEEDS, **{"run_s": MS, **more}
    )


@pytest.fixture
def models(machine: Machine) -> Machine:
    """The machine, with whole models that are named by their bytes."""
    machine.name = lambda model: model.decode()
    return machine


def test_a_whole_model(models: Machine) -> None:
    models.base = {"after": 0.5 * MS}
    one = meter(models)
    found = whole(one)
    assert found.ratio == pytest.approx(0.5)
    assert found.pairs > MIN_PAIRS
    assert one.noise is not None
    assert one.noise.ratio == pytest.approx(1)
    assert found.noise == pytest.approx(one.noise.level)
    assert {key for _, key, _ in models.loaded} == {"before", "twin", "after"}
    assert one.ledger.measured == 1
    assert one.budget.now() <= 60
    assert one.budget.floor_s == 0


@pytest.mark.parametrize(("budget_s", "memory"), [(60.0, True), (60.0, False), (0.0, True)])
def test_the_memory_of_whole_models(models: Machine, budget_s: float, memory: bool) -> None:
    """Where it is asked for, and time is left."""
    models.peaks = {"before": 5000, "after": 7000}
    one = meter(models, budget_s=budget_s)
    whole(one, memory=memory)
    told = models.peaks if budget_s else dict.fromkeys(models.peaks)
    assert one.peak_bytes == (told if memory else {})


def test_the_original_is_timed_against_itself_once(models: Machine) -> None:
    one = meter(models)
    whole(one, "one")
    whole(one, "two")
    assert sum(key == "twin" for _, key, _ in models.loaded) <= WHOLE_ROUNDS, "the rounds of one calibration"
    first = [key for _, key, _ in models.loaded].index("after")
    assert "twin" not in [key for _, key, _ in models.loaded][first:]


@pytest.mark.parametrize("budget_s", [0.0, 0.05])
def test_a_whole_model_without_time_for_calibration(models: Machine, budget_s: float) -> None:
    """The fewest pairs run in any case; without the noise, the margin decides."""
    models.base = {"after": 0.5 * MS}
    one = meter(models, budget_s=budget_s)
    found = whole(one, run_s=10 * MS)
    assert one.noise is None
    assert found.noise is None
    assert found.pairs >= MIN_PAIRS
    assert {key for _, key, _ in models.loaded} == {"before", "after"}
    assert found.gains(0.02)


def test_what_is_done_whatever_the_budget(models: Machine) -> None:
    models.base = {"before": 1.0, "after": 1.0}
    one = meter(models, budget_s=1.0)
    whole(one, run_s=1.0)
    assert one.budget.now() > 1.0
    assert 0 < one.budget.floor_s <= one.budget.now()


def test_a_whole_model_takes_no_more_than_is_left(models: Machine) -> None:
    models.base = {"before": 0.01, "after": 0.01}
    one = meter(models, budget_s=10.0)
    models.now += 4
    whole(one, run_s=0.01)
    assert one.budget.now() <= 10.5
    shared = meter(models, budget_s=10.0)
    whole(shared, "again", run_s=0.01, share=0.5)
    assert shared.budget.now() <= 6


def test_whole_models_are_known_again(models: Machine, cache: Cache) -> None:
    first = meter(models, cache)
    found = whole(first)
    count = len(models.workers)
    later = meter(models, cache)
    assert whole(later) == found
    assert later.noise == first.noise
    assert (later.ledger.measured, later.ledger.recalled) == (0, 1)
    assert len(models.workers) == count
    whole(later, "other")
    later.whole(Runnable(model=b"before"), Runnable(model=b"after"), ("c", "after"), FEEDS, run_s=MS)
    later.whole(Runnable(model=b"before"), Runnable(model=b"after"), ("b", "after"), {"x": values(2, 2)}, run_s=MS)
    assert (later.ledger.measured, later.ledger.recalled) == (3, 1)


@pytest.mark.parametrize("value", [{}, {"timing": None, "noise": None}, {"timing": 1, "noise": 2}])
def test_nonsense_for_a_whole_model(models: Machine, cache: Cache, value: Any) -> None:
    found = whole(meter(models, cache))
    overwrite(cache, value)
    later = meter(models, cache)
    assert whole(later) == found
    assert later.ledger.recalled == 0


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_whole_model_that_fails(models: Machine, kind: type[Exception]) -> None:
    models.fails = lambda what, key, _: kind("no") if (what, key) == ("open", "after") else None
    one = meter(models)
    with pytest.raises(kind, match="no"):
        whole(one)
    assert one.ledger.measured == 0


# -- confirming ----------------------------------------------------------------------------------------------------


def confirm(
    one: Meter,
    machine: Machine,
    effects: Sequence[float],
    *,
    run_s: float = 0.01,
    together: float = 1.0,
    making_s: float = 0.0,
) -> tuple[Confirmed, list[tuple[int, ...]]]:
    """Confirm groups that save these shares of the time; all at once they take `together` times what they should."""
    made: list[tuple[int, ...]] = []

    def timed(sites: Sequence[str], share: float) -> Comparison:
        groups = tuple(map(int, sites))
        made.append(groups)
        machine.now += making_s
        name = ",".join(sites)
        saved = 1 - sum(effects[group] for group in groups)
        machine.base[name] = run_s * saved * (together if len(groups) == len(effects) else 1)
        models = Runnable(model=b"before"), Runnable(model=name.encode())
        return one.whole(*models, ("b", name), FEEDS, run_s=run_s, share=share)

    machine.base["before"] = run_s
    return search([[str(group)] for group in range(len(effects))], timed, one.budget, run_s=run_s), made


def test_all_at_once(models: Machine) -> None:
    found, made = confirm(meter(models), models, [0.2, 0.1, -0.05])
    assert made == [(0, 1, 2)]
    assert found.sites == ("0", "1", "2")
    assert found.failure is None
    assert found.attempts == (Attempt(sites=("0", "1", "2"), timing=found.attempts[0].timing),)
    assert found.final == found.attempts[0].timing
    assert found.final is not None
    assert found.final.ratio == pytest.approx(0.75)


def test_one_alone(models: Machine) -> None:
    found, made = confirm(meter(models), models, [-0.1])
    assert made == [(0,)]
    assert found.sites == ()
    assert found.final is None
    assert found.failure is None


def test_a_half_that_wins(models: Machine) -> None:
    found, made = confirm(meter(models), models, [0.2, 0.1, -0.5, 0.1])
    assert made[:3] == [(0, 1, 2, 3), (0, 1), (2, 3)]
    assert found.sites == ("0", "1")
    assert [tuple(map(int, attempt.sites)) for attempt in found.attempts] == made
    assert found.final == found.attempts[1].timing


def test_versions_that_compute_something_else_are_left_and_the_rest_is_searched(models: Machine) -> None:
    models.computes = lambda name: 1.5 if "2" in name else 1.0
    one = meter(models)
    one.tolerance = STRICT
    found, made = confirm(one, models, [0.2, 0.1, 0.5, 0.1])
    assert made[:3] == [(0, 1, 2, 3), (0, 1), (2, 3)]
    assert found.sites == ("0", "1")
    assert str(found.failure).startswith("output 'y': ")


def test_a_quarter_that_wins(models: Machine) -> None:
    found, made = confirm(meter(models), models, [-0.3, -0.3, -0.3, 0.2, -0.3])
    assert made == [(0, 1, 2, 3, 4), (0, 1, 2), (3, 4), (0, 1), (2,), (3,), (4,), (0,), (1,)]
    assert found.sites == ("3",)


def test_the_better_half(models: Machine) -> None:
    """Both win alone and lose together."""
    found, made = confirm(meter(models), models, [0.1, 0.3], together=2.0)
    assert made == [(0, 1), (0,), (1,)]
    assert found.sites == ("1",)
    assert found.final is not None
    assert found.final.ratio == pytest.approx(0.7)


def test_nothing_wins(models: Machine) -> None:
    found, made = confirm(meter(models), models, [0.0, -0.1, 0.0])
    assert made == [(0, 1, 2), (0, 1), (2,), (0,), (1,)]
    assert found.sites == ()
    assert found.final is None
    assert len(found.attempts) == len(made)
    assert found.failure is None


def test_the_search_ends_with_the_budget(models: Machine) -> None:
    one = meter(models, budget_s=3.0)
    found, made = confirm(one, models, [-0.3] * 8, run_s=0.1)
    assert 1 <= len(made) < 5
    assert found.sites == ()
    over = meter(models, budget_s=3.0)
    models.now += 100
    found, made = confirm(over, models, [0.3, 0.3], run_s=0.1)
    assert made == [(0, 1)], "one attempt in any case"
    assert found.sites == ("0", "1")
    assert found.attempts[0].timing.pairs >= MIN_PAIRS


def test_making_versions_is_on_the_clock(models: Machine) -> None:
    one = meter(models, budget_s=30.0)
    _, made = confirm(one, models, [0.0, 0.0], making_s=500.0)
    assert len(made) == 1, "what has begun gets its pairs, and no other version is made"
    assert one.budget.now() < 510


@pytest.mark.parametrize("kind", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_a_version_that_fails(models: Machine, kind: type[Exception]) -> None:
    """The others are tried; a version without what fails may win."""
    models.fails = lambda what, _, model: kind("too large") if what == "open" and b"1" in model else None
    one = meter(models)
    found, made = confirm(one, models, [0.2, 0.2, 0.2, 0.2])
    assert made == [(0, 1, 2, 3), (0, 1), (2, 3), (0,), (1,)]
    assert found.sites == ("2", "3")
    assert [attempt.sites for attempt in found.attempts] == [("2", "3"), ("0",)]
    assert all(worker.closed for worker in models.workers[:-1])


def test_every_version_fails(models: Machine) -> None:
    models.fails = lambda what, key, _: CannotLoad("too large") if (what, key) == ("open", "after") else None
    found, made = confirm(meter(models), models, [0.2, 0.2])
    assert len(made) == 3
    assert found == Confirmed(sites=(), attempts=(), final=None, failure="too large")


@pytest.mark.parametrize(
    ("changes", "yes"),
    [
        ({"ratio": 0.99, "high": 0.995, "noise": 0.001}, False),
        ({"ratio": 0.97, "high": 0.99, "noise": 0.001}, True),
        ({"ratio": 0.8, "high": 0.9, "noise": 0.5}, False),
        ({"ratio": 0.33, "high": 0.4, "noise": 0.5}, True),
        ({"ratio": 0.9, "high": 1.0, "noise": 0.001}, False),
        ({"ratio": 0.9, "high": 1.01, "noise": 0.001}, False),
        ({"ratio": 0.99, "high": 0.995, "noise": None}, False),
        ({"ratio": 0.97, "high": 0.99, "noise": None}, True),
        ({"ratio": 0.97, "high": 1.0, "noise": None}, False),
    ],
)
def test_when_a_whole_model_is_faster(changes: dict[str, Any], yes: bool) -> None:
    """By more than what was asked for and more than the noise, with its whole interval."""
    assert replace(COMPARED, **changes).gains(0.02) is yes


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"ratio": 0.714, "low": 0.7, "high": 0.73}, Outcome.WON),
        ({"ratio": 0.99, "low": 0.98, "high": 0.995}, Outcome.TIE),
        ({"ratio": 0.9, "low": 0.8, "high": 1.1}, Outcome.INCONCLUSIVE),
        ({"ratio": 0.99, "low": 0.91, "high": 1.1}, Outcome.TIE),
        ({"ratio": 0.99, "low": 0.95, "high": 1.1, "noise": 0.1}, Outcome.INCONCLUSIVE),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3}, Outcome.LOST),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3, "noise": 0.5}, Outcome.INCONCLUSIVE),
        ({"ratio": 3.0, "low": 2.0, "high": 4.0, "noise": 0.5}, Outcome.LOST),
        ({"ratio": 1.2, "low": 0.95, "high": 1.3}, Outcome.TIE),
        ({"ratio": 0.33, "low": 0.3, "high": 0.4, "noise": 0.15}, Outcome.WON),
        ({"ratio": 0.7, "low": 0.6, "high": 0.8, "pairs": 3}, Outcome.INCONCLUSIVE),
    ],
)
def test_what_a_comparison_says_of_a_form(changes: dict[str, Any], found: Outcome) -> None:
    assert outcome(replace(COMPARED, **changes)) is found


# -- estimates and digests -----------------------------------------------------------------------------------------


def test_an_estimate_grows_with_the_forms_and_ends_at_the_budget() -> None:
    found = [estimated_s([8] * count, 60.0) for count in (0, 1, 3, 10, 100)]
    assert found == sorted(found)
    assert found[0] < 5
    assert found[-1] == pytest.approx(60)
    assert estimated_s([1], 60.0) < estimated_s([8], 60.0)
    assert estimated_s([8] * 100, 0.0) == 0


ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_digests_of_equal_data() -> None:
    assert feeds_digest({"a": ARRAY, "b": ARRAY + 1}) == feeds_digest({"b": ARRAY + 1, "a": ARRAY.copy()})
    assert feeds_digest({"a": ARRAY}) == feeds_digest({"a": np.asfortranarray(ARRAY)}), "where it lies does not matter"
    assert feeds_digest({"a": ARRAY[:, ::2]}) == feeds_digest({"a": ARRAY[:, ::2].copy()})
    assert feeds_digest({"a": np.array(["x", "yy"], object)}) == feeds_digest({"a": np.array(["x", "yy"], object)})


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"b": ARRAY},
        {"a": ARRAY, "b": ARRAY},
        {"a": ARRAY.astype(np.float64)},
        {"a": ARRAY.view(np.int32)},
        {"a": ARRAY.reshape(3, 2)},
        {"a": ARRAY[:1]},
        {"a": ARRAY + 1},
        {"a": ARRAY.astype(object)},
        {"a": [ARRAY]},
        {"a": np.array(["x"], object)},
    ],
    ids=["none", "name", "more", "wider", "same bytes", "shape", "less", "values", "objects", "sequence", "text"],
)
def test_digests_of_other_data(feeds: Mapping[str, Any]) -> None:
    assert feeds_digest(feeds) != feeds_digest({"a": ARRAY})


def test_digests_of_text() -> None:
    one, other = (feeds_digest({"a": np.array(words, object)}) for words in (["x", "y"], ["x", "z"]))
    assert one != other


# -- a real runtime ------------------------------------------------------------------------------------------------


@pytest.mark.measures
def test_on_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "lasting", lambda _: True)  # on a busy machine no timing is quiet
    backend = timed_backend("onnxruntime_cpu")

    def made() -> Meter:
        return Meter.on(backend, Cache(tmp_path / "timings.sqlite"), Budget(20.0), Options(threads=1))

    first, later = made(), made()
    try:
        first.budget.begin()
        found = answer(first, "space_to_batch", "im2col", slice_s=0.1)
        assert found.failure is None
        for timing in found.forms.values():
            assert timing.timing is not None
            assert timing.timing.pairs >= SCREEN_PAIRS
            assert timing.timing.ratio > 0
            assert 0 < timing.timing.low <= timing.timing.ratio <= timing.timing.high
            assert timing.outcome == outcome(timing.timing)
        model = Runnable(model=followed().SerializeToString())
        compared = first.whole(model, model, ("a", "b"), {"x": values(1, 2, 16)}, run_s=1e-4, share=0.05)
        assert compared.pairs >= MIN_PAIRS
        assert first.noise is not None
        json.dumps(first.ledger.circumstances)
        later.budget.begin()
        assert answer(later, "space_to_batch", "im2col", slice_s=0.1) == found
        assert (later.ledger.measured, later.ledger.recalled) == (0, 2)
        assert later._bench is None
    finally:
        first.close()
        later.close()


# -- a bench that is far away ---------------------------------------------------------------------------------------


class Far:
    """A bench to which each message takes 40 ms."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.messages = 0

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self.bench, name)

        def message(*arguments: Any, **more: Any) -> Any:
            self.messages += 1
            self.bench.machine.now += 40 * MS
            return ask(*arguments, **more)

        return message

    def drop(self, key: str) -> None:
        """Send nothing for what is not there."""
        if key in self.bench.models:
            self.__getattr__("drop")(key)


def answered(machine: Machine, budget_s: float, run_s: float) -> int:
    """How many forms of one question after another are timed within a budget."""
    machine.base = dict.fromkeys(("keep", *FORMS), run_s)
    one = meter(machine, budget_s=budget_s)
    timed = 0
    for channels in range(2, 100):
        model = followed_by(channels)
        forms_left = 4 * (40 - channels)
        found = answer(one, question=asked(model), given=forms(model=model), slice_s=one.budget.slice_s(forms_left))
        timed += sum(form.timing is not None for form in found.forms.values())
        if one.budget.now() > one.budget.forms_until_s:
            break
    return timed


@pytest.mark.parametrize("run_s", [1 * MS, 10 * MS, 50 * MS])
def test_a_bench_that_is_far_away_answers_half_as_many_questions_at_least(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, run_s: float
) -> None:
    """Pairs of runs are timed where the model runs: a message is a block of them."""
    near = answered(machine, 60.0, run_s)
    far: list[Far] = []

    def worker(self: Meter) -> Any:
        if self._bench is None:
            far.append(Far(machine.worker()))
            self._bench = far[-1]  # type: ignore[assignment]
        return self._bench

    monkeypatch.setattr(Meter, "worker", worker)
    machine.now = 100.0
    count = answered(machine, 60.0, run_s)
    assert near > 20
    assert count >= near / 2
    assert sum(bench.messages for bench in far) <= 14 * (count + 1)
