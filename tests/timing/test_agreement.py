"""What a runtime computes otherwise is seen on every kind of output, and what rounding alone decides is let pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.forms.strategies import strategies
from dilrewrite.proof.compare import Tolerance
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Array, Bench, Options, Runnable, artifact, backends
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND
from dilrewrite.timing.agreement import Differs, check, may_draw, nudge
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.outcome import Outcome
from tests.models_for_tests import build, conv2d, conv_node, save, values
from tests.wrapped_runtime import plugged

TOLERANCE = Tolerance(1e-4, 1e-5, 0.0)
X = {"x": values(1, 8, 64)}
SCALE = {"s": np.float32(0.01), "z": np.uint8(128)}
ENDS: dict[str, tuple[list[Any], int, dict[str, Any]]] = {
    "float32": ([helper.make_node("Relu", ["c"], ["y"])], TensorProto.FLOAT, {}),
    "int64": ([helper.make_node("ArgMax", ["c"], ["y"], axis=1)], TensorProto.INT64, {}),
    "bool": ([helper.make_node("Greater", ["c", "h"], ["y"])], TensorProto.BOOL, {"h": np.float32(0.1)}),
    "uint8": ([helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"])], TensorProto.UINT8, SCALE),
}


def model(kind: str) -> ModelProto:
    """A dilated Conv whose results become an output of this kind."""
    nodes, element, constants = ENDS[kind]
    conv = conv_node("x", "c", dilations=[2], pads=[2, 2])
    proto = build([conv, *nodes], {"x": [1, 8, 64]}, {"y": None}, {"w": values(8, 8, 3, seed=1), **constants})
    proto.graph.output[0].type.tensor_type.elem_type = element
    return proto


class Other:
    """A bench on which the model "other" is the original, with `change` made to its outputs."""

    def __init__(self, bench: Bench, change: Callable[[Array], Array]) -> None:
        self.bench, self.change = bench, change

    def outputs(self, key: str) -> dict[str, Array]:
        found = self.bench.outputs("original")
        return {name: self.change(value) for name, value in found.items()} if key == "other" else found


@contextlib.contextmanager
def benches(kind: str) -> Iterator[tuple[Bench, Callable[[Mapping[str, Array]], Mapping[str, Array]]]]:
    whole = artifact(Runnable(model=model(kind).SerializeToString()))
    with contextlib.closing(BACKEND.bench(Options(threads=1, timeout_s=60))) as bench:
        bench.add("original", whole, X)

        def anew(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            bench.add("anew", whole, feeds)
            return bench.outputs("anew")

        yield bench, anew


def other_values(value: Array) -> Array:
    """Other values at one place in eight, as a kernel does that is wrong at borders."""
    changed = value.copy()
    flat = changed.reshape(-1)[::8]
    flat[:] = ~flat if value.dtype == bool else flat[::-1] + np.ones((), value.dtype)
    return changed


@pytest.mark.parametrize("kind", ENDS)
def test_what_is_wrong_differs(kind: str) -> None:
    with benches(kind) as (bench, anew):
        check(cast("Bench", Other(bench, np.copy)), "original", "other", TOLERANCE, X, anew)
        with pytest.raises(Differs, match=r"^output 'y': \d+ of \d+ values differ by up to "):
            check(cast("Bench", Other(bench, other_values)), "original", "other", TOLERANCE, X, anew)


@pytest.mark.parametrize("kind", ENDS)
def test_an_output_that_is_gone_or_another_differs(kind: str) -> None:
    with benches(kind) as (bench, anew):
        for change in (lambda value: value[..., :-1], lambda value: value.astype(np.int16)):
            with pytest.raises(Differs, match=r"^output 'y': is "):
                check(cast("Bench", Other(bench, change)), "original", "other", TOLERANCE, X, anew)


@pytest.mark.parametrize(("kind", "step"), [("int64", 3), ("bool", True), ("uint8", 1), ("float32", 0.1)])
def test_what_the_last_digits_decide_is_let_pass(kind: str, step: Any) -> None:
    """At as many places as the original's own outputs change with its inputs, and by as much: not at one more."""
    size = 64 if kind == "int64" else 512

    def flip(places: int) -> Callable[[str], dict[str, Array]]:
        def outputs(key: str) -> dict[str, Array]:
            value = np.zeros(size, kind)
            value[: 0 if key == "original" else places] = step
            return {"y": value}

        return outputs

    for places, passes in ((2, True), (3, False)):
        bench = type("Bench", (), {"outputs": staticmethod(flip(places))})
        with contextlib.nullcontext() if passes else pytest.raises(Differs, match="own only 2 by "):
            check(
                cast("Bench", bench),
                "original",
                "other",
                TOLERANCE,
                X,
                lambda feeds: flip(0 if feeds is X else 2)("other"),
                rounded=kind == "float32",
            )


def test_what_is_no_number_is_not_let_pass_where_a_model_rounds() -> None:
    y = np.zeros(512, np.float32)
    for wrong in (np.nan, np.inf):
        outputs = {"original": {"y": y}, "other": {"y": np.where(np.arange(512) < 2, np.float32(wrong), y)}}
        bench = type("Bench", (), {"outputs": staticmethod(outputs.__getitem__)})
        with pytest.raises(Differs, match="'y'"):
            check(cast("Bench", bench), "original", "other", TOLERANCE, X, lambda _: {"y": y}, rounded=True)


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_what_is_drawn_at_random_is_not_judged(kind: str) -> None:
    """Two runs of the original differ there; beside it, what does not is judged as ever."""
    draws = np.random.default_rng(0)

    def outputs(key: str) -> dict[str, Array]:
        return {"y": draws.integers(0, 1000, 64).astype(kind), "z": np.full(4, 1.0 if key == "original" else off)}

    bench = cast("Bench", type("Bench", (), {"outputs": staticmethod(outputs)}))
    off = 1.0
    check(bench, "original", "other", TOLERANCE, X, lambda _: outputs("original"), draws=True)
    # Where nothing is drawn, a runtime's results may not differ from run to run.
    with contextlib.nullcontext() if kind == "int64" else pytest.raises(Differs, match=r"^output 'y'"):
        check(bench, "original", "other", TOLERANCE, X, lambda _: outputs("original"))
    off = 2.0
    with pytest.raises(Differs, match=r"^output 'z'"):
        check(bench, "original", "other", TOLERANCE, X, lambda _: outputs("original"), draws=True)


def test_which_models_may_draw() -> None:
    draw = helper.make_node("RandomNormalLike", ["x"], ["y"])
    body = helper.make_node("Relu", ["x"], ["y"])
    for node, inner, known, expected in (
        (body, body, False, False),
        (draw, body, False, True),
        (helper.make_node("Ours", ["x"], ["y"], domain="ours"), body, False, True),
        (helper.make_node("Ours", ["x"], ["y"], domain="ours"), body, True, False),
        (helper.make_node("Ours", ["x"], ["y"], domain="ours"), draw, True, True),
    ):
        function = helper.make_function("ours", "Ours", ["x"], ["y"], [inner], [helper.make_opsetid("", 17)])
        proto = build([node], {"x": [4]}, {"y": [4]}, functions=[function] if known else [])
        assert may_draw(proto) is expected


@pytest.mark.measures
def test_a_model_that_draws_is_rewritten(tmp_path: Path) -> None:
    """ONNX Runtime draws by process and by the place of the node: the rewritten model draws other numbers."""
    conv = conv_node("x", "c", dilations=[2], pads=[2, 2])
    draw = helper.make_node("RandomNormalLike", ["c"], ["r"])
    nodes = [conv, draw, helper.make_node("Add", ["c", "r"], ["y"])]
    proto = build(nodes, {"x": [1, 8, 64]}, {"y": [1, 8, 64]}, {"w": values(8, 8, 3)})
    report = dilrewrite.optimize(save(proto, tmp_path / "m.onnx"), strategy="im2col", budget=1, report=None)
    assert (report.exit_code, report.status) == (0, "rewritten")


def test_inputs_are_nudged_within_the_tolerance() -> None:
    feeds: dict[str, Any] = {
        **X,
        "h": values(4, 4).astype(np.float16),
        "u": np.array([0, 7, 255], np.uint8),
        "ids": np.arange(3),
        "text": np.array(["a"], object),
    }
    found = nudge(feeds, Tolerance(0.0, 1e-2, 0.0))
    assert all(found[name] is feeds[name] for name in ("ids", "text"))
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in feeds.items()}
    change = np.abs(found["x"] - X["x"])
    assert 0 < change.max() <= 1.01e-2 * np.abs(X["x"]).max()
    assert np.abs(found["u"].astype(int) - feeds["u"]).max() <= 1


# -- a runtime that is wrong ---------------------------------------------------------------------------------------


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in, and few forms to time on it."""
    for name in strategies().keys() - {"keep", "space_to_batch", "im2col"}:
        monkeypatch.delitem(strategies(), name)
    with plugged(tmp_path / "plug-ins"):
        yield


def chosen(folder: Path, wrong: str) -> Report:
    """What is chosen for a model on ONNX Runtime, wrapped: everything but dilation is fast there."""
    path = save(conv2d(), folder / "m.onnx")
    return dilrewrite.optimize(path, backend=f"wrapped:wrong={wrong}", budget=30, no_cache=True, report=None)


@pytest.mark.measures
@pytest.mark.usefixtures("wrapped")
def test_a_form_that_a_runtime_computes_wrongly_fails_with_the_proof(tmp_path: Path) -> None:
    """It is the fastest by far, and another one is taken."""
    report = chosen(tmp_path, "space_to_batch")
    assert (report.exit_code, report.status) == (0, "rewritten")
    (site,) = report.sites
    forms = {form.strategy: form for form in site.candidates}
    assert forms["space_to_batch"].outcome is Outcome.WRONG
    assert re.match(r"output '\w+': \d+ of \d+ values differ by up to \S+ where", forms["space_to_batch"].cause)
    assert (site.strategy, forms["im2col"].outcome) == ("im2col", Outcome.WON)
    assert report.verdict is not None
    assert report.verdict.passed
    assert report.measurement is not None
    assert not report.measurement.doubts
    names = "".join(node.name for node in onnx.load(tmp_path / "m.dilrewrite.onnx").graph.node)
    assert "im2col" in names
    assert "space_to_batch" not in names


@pytest.mark.measures
@pytest.mark.usefixtures("wrapped")
@pytest.mark.parametrize(("wrong", "status", "outcome"), [("all", "rewritten", "won"), ("dilated", "kept", "wrong")])
def test_an_original_that_a_runtime_computes_wrongly_is_said(
    tmp_path: Path, wrong: str, status: str, outcome: str
) -> None:
    """Forms are held to what the runtime makes of it: what is right where that is wrong is another model."""
    report = chosen(tmp_path, wrong)
    assert (report.exit_code, report.status) == (0, status)
    assert report.measurement is not None
    (doubt,) = report.measurement.doubts
    assert doubt.startswith(
        "the original itself computes something else on wrapped than on onnxruntime_cpu: output 'y'"
    )
    assert {form.strategy: form.outcome for form in report.sites[0].candidates}["im2col"] == outcome


def test_the_original_is_compared_once(tmp_path: Path) -> None:
    """As long as the runtimes, the model, its inputs and the tolerance are the same."""
    whole, trial = Runnable(model=model("float32").SerializeToString()), backends()["reference"]
    with BACKEND.session(whole, Options(threads=1)) as session:
        twice = {name: 2 * value for name, value in session.run(X).items()}
    said = []
    for tolerance in (TOLERANCE, TOLERANCE, None, Tolerance(1e-4, 2e-5, 0.0)):
        one = Meter.on(BACKEND, Cache(tmp_path / "c.sqlite"), Budget(10), Options(threads=1))
        one.tolerance = tolerance
        with contextlib.closing(one):
            said.append((one.disagreement(trial, twice, whole, "m", X), one.ledger.measured, one.ledger.recalled))
    words = said[0][0]
    assert words is not None
    assert re.match(r"output 'y': \d+ of 512 values differ", words)
    assert said == [(words, 1, 0), (words, 0, 1), (None, 0, 0), (words, 1, 0)]
