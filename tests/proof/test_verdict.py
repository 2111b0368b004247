"""Comparing outputs and models: what passes, what fails, and what is said."""

from __future__ import annotations

import importlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from dilrewrite.model.elements import FLOATS
from dilrewrite.proof.compare import Tolerance, compare, tolerance_of
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Crashed, Io, Options, Runnable
from tests import models_for_tests as tiny
from tests.models_for_tests import build, conv1d, conv2d, values

verify = importlib.import_module("dilrewrite.proof.verdict")

STRICT = Tolerance(0.0, 0.0, 0.0)


def array(*numbers: Any, dtype: Any = np.float32) -> Array:
    return np.array(numbers, dtype=dtype)


# -- compare: the formula ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "difference", "passed"),
    [
        (Tolerance(0.5, 0.0, 0.0), 0.5, True),
        (Tolerance(0.5, 0.0, 0.0), 0.75, False),
        (Tolerance(0.0, 0.5, 0.0), 4.0, True),  # half of the largest value, 8
        (Tolerance(0.0, 0.5, 0.0), 4.5, False),
        (Tolerance(0.0, 0.0, 0.25), 0.25, True),
        (Tolerance(0.0, 0.0, 0.25), -0.5, False),
        (Tolerance(0.5, 0.25, 0.5), 3.0, True),
        (Tolerance(0.5, 0.25, 0.5), -3.0, True),
        (Tolerance(0.5, 0.25, 0.5), 3.25, False),
        (STRICT, 0.0, True),
    ],
)
def test_formula(tolerance: Any, difference: float, passed: bool) -> None:
    before = array(1.0, -8.0, dtype=np.float64)
    check = compare("y", before, before + array(difference, 0.0, dtype=np.float64), tolerance)
    assert check.passed is passed
    assert check.max_abs == abs(difference)
    assert bool(check.note) is not passed


def test_every_figure() -> None:
    before, after = array(1.0, 2.0, -4.0, 0.0), array(1.5, 2.0, -4.0, 0.25)
    check = compare("y", before, after, Tolerance(0.0, 0.0, 1.0))
    assert check.max_abs == 0.5
    assert check.max_rel == 0.5, "where the value is not 0"
    assert check.rms == pytest.approx(math.sqrt((0.25 + 0.0625) / 4))
    assert check.cosine == pytest.approx(float(before @ after / np.linalg.norm(before) / np.linalg.norm(after)))
    assert check.ulp == pytest.approx(0.25 / float(np.spacing(np.float32(0))), rel=1e-3)
    assert (check.element, check.shape, check.argmax_agreement) == ("float32", (4,), None)


def test_ulp() -> None:
    one = array(1.0)
    assert compare("y", one, np.nextafter(one, array(2.0)), Tolerance(1, 0, 0)).ulp == 1
    half = array(1.0, dtype=np.float16)
    assert compare("y", half, np.nextafter(half, array(2.0, dtype=np.float16)), Tolerance(1, 0, 0)).ulp == 1


def test_argmax_agreement() -> None:
    before = np.zeros((1, 3, 2, 2), np.float32)
    before[0, 1] = 1
    after = before.copy()
    after[0, 2, 0, 0] = 2
    assert compare("y", before, after, Tolerance(9, 9, 9)).argmax_agreement == 0.75
    assert compare("y", before[:, :1], after[:, :1], STRICT).argmax_agreement is None, "one channel"


def test_the_worst_element_decides() -> None:
    before = values(1000)
    after = before.copy()
    after[417] += 1
    check = compare("y", before, after, Tolerance(1e-4, 1e-5, 0))
    assert not check.passed
    assert "1 of 1000 values differ by up to 1 " in check.note


# -- compare: noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "passed"), [(None, False), (0.0, False), (0.4, False), (0.5, True), (9.0, True)])
def test_noise_floor(noise: float | None, passed: bool) -> None:
    check = compare("y", array(1.0), array(1.5), STRICT, noise=noise)
    assert (check.passed, check.noise) == (passed, noise)


@pytest.mark.parametrize(
    ("noise", "passed"), [(None, False), (0.0, False), (0.5, False), (1.0, True), (2.0, True), (np.nan, False)]
)
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8])
def test_noise_excuses_integers(noise: float | None, passed: bool, dtype: Any) -> None:
    """A float that is rounded to an integer falls to either side, by one; no tolerance holds for that."""
    check = compare("y", array(1, 5, dtype=dtype), array(2, 5, dtype=dtype), Tolerance(9, 9, 9), noise=noise)
    assert check.passed is passed
    if passed:
        assert check.note == f"1 of 2 integers differ by one, and the original from itself by up to {noise:g}"
    far = compare("y", array(1, 5, dtype=dtype), array(3, 5, dtype=dtype), Tolerance(9, 9, 9), noise=noise)
    assert not far.passed, "an index that is another one is no rounding"


def test_noise_does_not_excuse_flags_and_very_large_integers() -> None:
    assert not compare("y", array(True, dtype=bool), array(False, dtype=bool), STRICT, noise=9.0).passed
    assert not compare("y", array(2**62, dtype=np.int64), array(2**62 + 1, dtype=np.int64), STRICT, noise=9.0).passed


def test_noise_does_not_excuse_nan() -> None:
    assert not compare("y", array(1.0), array(np.nan), Tolerance(9, 9, 9), noise=math.inf).passed


# -- compare: not finite -------------------------------------------------------------------------------------------

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        ((NAN, 1), (NAN, 1), True),
        ((NAN, 1), (1, NAN), False),
        ((NAN, 1), (1, 1), False),
        ((1, 1), (NAN, 1), False),
        ((INF, 1), (INF, 1), True),
        ((-INF, INF), (-INF, INF), True),
        ((INF, 1), (-INF, 1), False),
        ((INF, 1), (NAN, 1), False),
        ((1, 1), (INF, 1), False),
        ((INF, 1), (3e38, 1), False),
        ((NAN, INF, -INF), (NAN, INF, -INF), True),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_nan_and_inf_stand_in_the_same_places(before: Any, after: Any, passed: bool, dtype: Any) -> None:
    with np.errstate(over="ignore"):
        a, b = array(*before).astype(dtype), array(*after).astype(dtype)
    if 3e38 in after and dtype is np.float16:
        pytest.skip("that is Inf")
    check = compare("y", a, b, Tolerance(9, 9, 9))
    assert check.passed is passed
    if not passed:
        assert "NaN or Inf in other places" in check.note
    assert check.nan == (int(np.isnan(np.float64(before)).sum()), int(np.isnan(np.float64(after)).sum()))


def test_finite_values_beside_inf_are_compared() -> None:
    """The largest value that scales the tolerance is a finite one."""
    assert not compare("y", array(INF, 1.0), array(INF, 1.5), Tolerance(0, 0.1, 0)).passed
    assert compare("y", array(INF, 1.0), array(INF, 1.05), Tolerance(0, 0.1, 0)).passed
    assert not compare("y", array(NAN, 1.0), array(NAN, 1.5), Tolerance(0.1, 0.1, 0)).passed


def test_a_tolerance_that_is_no_number_passes_nothing() -> None:
    assert not compare("y", array(1.0), array(2.0), Tolerance(NAN, 0.0, 0.0)).passed


# -- compare: other types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint8, np.uint64, np.bool_, ml_dtypes.int4])
def test_whole_numbers_are_equal_or_differ(dtype: Any) -> None:
    a, b = array(0, 1, dtype=dtype), array(1, 1, dtype=dtype)
    assert compare("y", a, a.copy(), STRICT).passed
    assert not compare("y", a, b, Tolerance(9, 9, 9)).passed


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_whole_numbers(dtype: Any) -> None:
    """2**53 and 2**53 + 1 are the same in float64."""
    assert not compare("y", array(2**53, dtype=dtype), array(2**53 + 1, dtype=dtype), STRICT).passed
    assert compare("y", array(2**53 + 1, dtype=dtype), array(2**53 + 1, dtype=dtype), STRICT).passed


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex(dtype: Any) -> None:
    a = array(1 + 2j, dtype=dtype)
    assert compare("y", a, a.copy(), Tolerance(1e-4, 1e-5, 0)).passed
    assert not compare("y", a, array(1 + 3j, dtype=dtype), Tolerance(1e-4, 1e-5, 0)).passed


def test_bfloat16() -> None:
    a, b = array(1.0, 2.0).astype(ml_dtypes.bfloat16), array(1.0, 2.0625).astype(ml_dtypes.bfloat16)
    check = compare("y", a, b, Tolerance(0.05, 0, 0))
    assert (check.passed, check.element, check.ulp, check.max_abs) == (True, "bfloat16", None, 0.0625)
    assert not compare("y", a, b, Tolerance(0.01, 0, 0)).passed


def test_strings() -> None:
    a = np.array(["a", "b"], object)
    assert compare("y", a, a.copy(), STRICT).passed
    assert compare("y", a, np.array(["a", "c"], object), Tolerance(9, 9, 9)).note == "the strings differ"


def test_sequences() -> None:
    a = [array(1.0), array(2.0, 3.0)]
    assert compare("y", a, [x.copy() for x in a], STRICT).passed
    assert not compare("y", a, a[:1], STRICT).passed
    assert not compare("y", a, [array(1.0), array(2.0, 4.0)], STRICT).passed
    assert not compare("y", a, None, STRICT).passed


@pytest.mark.parametrize(
    ("after", "note"),
    [
        (None, "is missing, was float32 [2]"),
        (array(1.0, 2.0, 3.0), "is float32 [3], was float32 [2]"),
        (array(1.0, 2.0, dtype=np.float64), "is float64 [2], was float32 [2]"),
        (array(1.0, 2.0).reshape(1, 2), "is float32 [1, 2], was float32 [2]"),
    ],
    ids=["missing", "length", "dtype", "rank"],
)
def test_shape_and_dtype(after: Any, note: str) -> None:
    check = compare("y", array(1.0, 2.0), after, Tolerance(9, 9, 9), noise=9.0)
    assert not check.passed
    assert check.note == note


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_empty_and_scalar(shape: tuple[int, ...], dtype: Any) -> None:
    a = np.ones(shape, dtype)
    check = compare("y", a, a.copy(), STRICT)
    assert check.passed
    assert (check.max_abs, check.max_rel, check.rms, check.shape) == (0, 0, 0, shape)


# -- tolerances ----------------------------------------------------------------------------------------------------


def settings(**more: Any) -> Any:
    return verify.Settings(**{"backend": None, "shapes": {}, "inputs": {}, **more})


@pytest.mark.parametrize(
    ("elements", "wanted"),
    [
        (["float32"], "float32"),
        (["float64"], "float64"),
        (["float64", "float32"], "float32"),
        (["float32", "float16"], "float16"),
        (["float16", "bfloat16"], "bfloat16"),
        (["int8"], "float32"),
        ([], "float32"),
    ],
)
def test_tolerance_is_of_the_coarsest_type(elements: list[str], wanted: str) -> None:
    types = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "int8": np.int8}
    weights = {f"w{i}": np.ones(1, types.get(e, ml_dtypes.bfloat16)) for i, e in enumerate(elements)}
    read = [helper.make_node("Cast", [name], [f"{name}f"], to=TensorProto.FLOAT) for name in weights]
    add = helper.make_node("Sum", ["x", *(f"{name}f" for name in weights)], ["y"])
    model = build([*read, add], {"x": [1]}, {"y": None}, weights)
    model.graph.output[0].type.tensor_type.elem_type = 0
    found = tolerance_of(model)
    assert (found.rtol, found.share, found.atol) == (*FLOATS[wanted].tolerance, 0.0)


HALF = np.ones(1, np.float16)


def unused() -> list[Any]:
    constant = helper.make_node("Constant", [], ["k"], value=helper.make_tensor("k", TensorProto.FLOAT16, [1], [1]))
    return [constant, helper.make_node("Add", ["k", "h"], ["n"])]


def within_a_branch() -> Any:
    kind = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    cast = helper.make_node("Cast", ["h"], ["b"], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "branch", [], [kind])
    return helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([helper.make_node("Add", ["x", "w"], ["y"])], "float32"),
        ([*unused(), helper.make_node("Add", ["x", "w"], ["y"])], "float32"),
        ([helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)], "float16"),
        ([within_a_branch()], "float16"),
    ],
    ids=["unread", "read for nothing", "read", "read in a branch"],
)
def test_tolerance_is_not_of_what_is_not_used(nodes: Any, wanted: str) -> None:
    model = build(nodes, {"x": [1]}, {"y": [1]}, {"w": np.ones(1, np.float32), "h": HALF})
    assert tolerance_of(model).rtol == FLOATS[wanted].tolerance[0]
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert tolerance_of(model).rtol == FLOATS["float16"].tolerance[0]


def test_given_tolerances_replace_it() -> None:
    assert tolerance_of(conv1d(), rtol=0.5) == Tolerance(0.5, 0.0, 0.0)
    assert tolerance_of(conv1d(), atol=0.5) == Tolerance(0.0, 0.0, 0.5)
    assert tolerance_of(conv1d(), rtol=0.0, atol=0.0) == STRICT
    assert str(Tolerance(1e-4, 1e-5, 0.5)) == "0.0001 |value| + 1e-05 max|values| + 0.5"


# -- interface -----------------------------------------------------------------------------------------------------


def changed(edit: Callable[[ModelProto], Any]) -> list[str]:
    after = conv2d(batch="batch")
    edit(after)
    found = verify.interface_changes(conv2d(batch="batch"), after)
    assert isinstance(found, list)
    return found


def test_nothing_changed() -> None:
    assert changed(lambda model: None) == []  # noqa: ARG005
    assert changed(lambda model: helper.set_model_props(model, {"dilrewrite.verification": "unverified"})) == []
    assert changed(lambda model: model.graph.node.pop()) == [], "nodes are no interface"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.graph.input.pop(), r"inputs are \[\], were \['x'\]"),
        (lambda m: m.graph.output.add(name="z"), r"outputs are \['y', 'z'\], were \['y'\]"),
        (lambda m: setattr(m.graph.output[0], "name", "z"), r"outputs are \['z'\]"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "input 'x' changed"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n"), "input 'x' changed"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 9), "output 'y' changed"),
        (lambda m: setattr(m, "ir_version", 9), "IR version is 9, was 8"),
        (lambda m: setattr(m.opset_import[0], "version", 18), "opsets are"),
        (lambda m: m.opset_import.add(domain="my.ops", version=1), "opsets are"),
        (lambda m: helper.set_model_props(m, {"author": "me"}), "metadata differ"),
    ],
)
def test_something_changed(edit: Callable[[ModelProto], Any], message: str) -> None:
    (found,) = changed(edit)
    assert re.search(message, found)


def subject(model: ModelProto) -> Any:
    return verify.Subject(model, Path("/nowhere"))


# -- whole models, with runtimes made up ---------------------------------------------------------------------------


class Fake:
    """A backend whose sessions answer as told: by the graph's name, and by how often it was loaded."""

    name = "fake"

    def __init__(self, answers: Mapping[str, Sequence[Any]]) -> None:
        self.answers = {name: list(given) for name, given in answers.items()}
        self.options: list[Options] = []

    def missing(self) -> None:
        return None

    def versions(self) -> dict[str, str]:
        return {}

    def session(self, runnable: Runnable, options: Options) -> Any:
        assert isinstance(runnable.model, bytes)
        name = ModelProto.FromString(runnable.model).graph.name
        self.options.append(options)
        given = self.answers[name]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception) and not isinstance(answer, CannotRun):
            raise answer
        return FakeSession(answer)


class FakeSession:
    inputs = (Io(name="x", element="float32", shape=(1, 2)),)
    outputs = ()

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run(self, feeds: Mapping[str, Array], outputs: Any = None) -> dict[str, Array]:  # noqa: ARG002
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)

    def peak_bytes(self) -> int:
        return 7

    def close(self) -> None: ...

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None: ...


def named(name: str) -> Any:
    model = build([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 2]}, {"y": [1, 2]})
    model.graph.name = name
    return subject(model)


def judged(before: Sequence[Any], after: Sequence[Any], *, fallback: Any = None) -> Any:
    """The verdict when `before` and `after` are what sessions of the two models give, one after the other."""
    fake = Fake({"before": before, "after": after})
    return verify.verify(named("before"), named("after"), settings(backend=fake, fallback=fallback))


SAME, OTHER = {"y": array(1.0, 2.0)}, {"y": array(1.0, 3.0)}


def test_equal() -> None:
    verdict = judged([SAME], [SAME])
    assert verdict.passed
    assert (verdict.deterministic, verdict.skipped, verdict.peak_bytes, verdict.backend) == (True, None, (7, 7), "fake")
    assert verdict.noise_sources == ("graph optimisations on/off",)


def test_different() -> None:
    verdict = judged([SAME], [OTHER])
    assert not verdict.passed
    assert "output 'y' on first: x [1, 2]: 1 of 2 values differ by up to 1" in verdict.failures[0]


@pytest.mark.parametrize("error", [CannotLoad("no"), CannotRun("no"), Crashed("no")])
def test_what_does_not_run_after_rewriting_fails(error: Exception) -> None:
    verdict = judged([SAME], [error])
    assert not verdict.passed
    assert "the rewritten model does not " in verdict.failures[0]
    assert not verdict.cases


def test_not_deterministic() -> None:
    """The second run of the original differs: that output cannot be compared, and says so."""
    steady = array(5.0)
    verdict = judged(
        [{"y": array(1.0), "s": steady}, {"y": array(2.0), "s": steady}, {"y": array(1.0), "s": steady}],
        [{"y": array(3.0), "s": steady}],
    )
    assert verdict.passed
    assert verdict.deterministic is False
    found = {check.name: check for check in verdict.cases[0].outputs}
    assert (found["y"].comparable, found["y"].note) == (False, "two runs of the original differ")
    assert (found["s"].comparable, found["s"].passed) == (True, True)


def test_the_steady_output_of_a_random_model_still_counts() -> None:
    verdict = judged(
        [{"y": array(1.0), "s": array(5.0)}, {"y": array(2.0), "s": array(5.0)}],
        [{"y": array(3.0), "s": array(6.0)}],
    )
    assert not verdict.passed


@pytest.mark.parametrize(
    "after", [{}, {"y": array(1.0, 2.0)}, {"y": array(1.0, dtype=np.float64)}], ids=["missing", "shape", "dtype"]
)
def test_a_random_output_keeps_its_shape_and_dtype(after: dict[str, Array]) -> None:
    assert not judged([{"y": array(1.0)}, {"y": array(2.0)}], [after]).passed


@pytest.mark.parametrize("error", [Crashed("no"), CannotLoad("no"), CannotRun("no")])
def test_a_failing_second_run_excuses_nothing(error: Exception) -> None:
    """Whether the original is deterministic is not known then; a wrong result stays wrong."""
    assert not judged([SAME, error, SAME], [OTHER]).passed


def test_noise_is_measured_and_allowed() -> None:
    """With other optimisations the original itself differs by as much."""
    near = {"y": array(1.0, 2.5)}
    assert not judged([SAME], [near]).passed
    verdict = judged([SAME, SAME, near], [near])
    assert verdict.passed
    assert verdict.cases[0].outputs[0].noise == 0.5
    assert not judged([SAME, SAME, near], [OTHER]).passed


def test_a_variant_that_does_not_run_is_no_noise() -> None:
    verdict = judged([SAME, SAME, CannotRun("no")], [SAME])
    assert verdict.passed
    assert verdict.noise_sources == ()


def test_noise_of_an_infinite_output_is_quiet() -> None:
    """Inf minus Inf is no reason to warn a user."""
    infinite = {"y": array(np.inf, np.nan, 1.0)}
    verdict = judged([infinite], [infinite])
    assert verdict.passed
    assert verdict.cases[0].outputs[0].noise == 0


def test_integers_within_the_noise_of_the_original_are_equal() -> None:
    one, two, four = ({"y": array(number, dtype=np.int32)} for number in (1, 2, 4))
    assert judged([one, one, two], [two]).passed
    assert not judged([one, one, two], [four]).passed
    assert not judged([one], [two]).passed


@pytest.mark.parametrize("value", [NAN, INF])
def test_an_output_without_numbers_is_told(value: float) -> None:
    same = {"y": array(value, value), "z": array(value, 1.0)}
    verdict = judged([same], [same])
    assert verdict.passed
    (note,) = verdict.notes
    assert "output 'y' is NaN or Inf throughout on every input set" in note
    assert judged([SAME], [SAME]).notes == ()
    empty = {"y": np.zeros(0, np.float32)}
    assert judged([empty], [empty]).notes == ()


class OfOneSample(FakeSession):
    inputs = (Io(name="x", element="float32", shape=("n", 2)),)

    def run(self, feeds: Mapping[str, Array], outputs: Any = None) -> dict[str, Array]:  # noqa: ARG002
        if feeds["x"].shape[0] != 1 and self.answer["only"]:
            raise CannotRun("one sample")
        return {"y": array(1.0)}


@pytest.mark.parametrize(("path", "passed"), [(None, True), (Path("after.onnx"), False)])
def test_a_model_made_here_may_run_on_more(monkeypatch: pytest.MonkeyPatch, path: Any, passed: bool) -> None:
    fake = Fake({"before": [{"only": True}], "after": [{"only": False}]})
    monkeypatch.setattr(verify.Subject, "runnable", lambda self: Runnable(model=self.proto.SerializeToString()))
    monkeypatch.setitem(globals(), "FakeSession", OfOneSample)
    after = verify.Subject(named("after").proto, Path("/nowhere"), path)
    verdict = verify.verify(named("before"), after, settings(backend=fake))
    more = "the rewritten model runs on batch: x [2, 2], where the original does not"
    assert verdict.passed is passed
    assert (more in verdict.notes, more in verdict.failures) == (passed, not passed)


@pytest.mark.parametrize(("seconds", "runs"), [(30.0, 1), (12.0, 2), (6.0, 4)])
def test_a_slow_fallback_is_given_up(monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int) -> None:
    """After 20 seconds of runs nothing more is run."""
    now = [0.0]
    made: list[float] = []

    def run(_self: Any, _feeds: Any, _outputs: Any = None) -> dict[str, Array]:
        now[0] += seconds
        made.append(now[0])
        return dict(SAME)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(FakeSession, "run", run)
    verdict = judged([CannotLoad("no kernel")], [SAME], fallback=Fake({"before": [SAME], "after": [SAME]}))
    assert len(made) == runs
    if runs == 1:
        assert verdict.skipped == "the rewritten model: runs take more than 20 s"
        assert not verdict.failures
    else:
        assert (verdict.skipped, verdict.passed) == (None, True)


def test_one_run_of_the_fallback_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not end is in a process of its own."""
    reference = importlib.import_module("dilrewrite.runtimes.reference").BACKEND
    monkeypatch.setattr("dilrewrite.proof.hurried.FALLBACK_S", 2.0)
    kinds = {"i": TensorProto.INT64, "c": TensorProto.BOOL, "d": TensorProto.BOOL, "v": 1, "u": 1}
    i, c, d, v, u = (helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items())
    turn = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["v"], ["u"])]
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=helper.make_graph(turn, "turn", [i, c, v], [d, u]))
    model = build([loop], {"x": [1, 2]}, {"y": None}, {"n": np.array(10**12)})
    start = time.monotonic()
    fake = Fake({"tiny": [CannotLoad("no kernel")]})
    verdict = verify.verify(subject(model), subject(model), settings(backend=fake, fallback=reference))
    assert verdict.skipped is not None
    assert "runs take more than 2 s" in verdict.skipped
    assert time.monotonic() - start < 30


def test_fallback() -> None:
    fallback = Fake({"before": [SAME], "after": [OTHER]})
    fallback.name = "other"  # type: ignore[misc]
    verdict = judged([CannotLoad("no kernel")], [SAME], fallback=fallback)
    assert not verdict.passed, "both models run on the same backend"
    assert (verdict.backend, verdict.notes) == ("other", ("fake: no kernel",))


def test_nobody_runs_it() -> None:
    fallback = Fake({"before": [CannotLoad("neither")], "after": [SAME]})
    verdict = judged([CannotLoad("no kernel")], [SAME], fallback=fallback)
    assert verdict.skipped == "fake: no kernel; fake: neither"


def test_interface_fails_before_anything_runs() -> None:
    other = named("after")
    other.proto.ir_version = 9
    fake = Fake({"before": [SAME], "after": [SAME]})
    verdict = verify.verify(named("before"), other, settings(backend=fake))
    assert not verdict.passed
    assert verdict.failures == ("IR version is 9, was 8",)


def test_quantized_models_run_unoptimized() -> None:
    model = tiny.quantized()
    fake = Fake({"tiny": [{"y": array(1.0)}]})
    FakeSession.inputs = (Io(name="x", element="float32", shape=(1, 2, 16)),)
    try:
        verdict = verify.verify(subject(model), subject(model), settings(backend=fake))
    finally:
        FakeSession.inputs = (Io(name="x", element="float32", shape=(1, 2)),)
    assert verdict.optimized is False
    assert [options.optimize for options in fake.options[:2]] == [False, False]


# -- operators nobody knows ----------------------------------------------------------------------------------------


def test_unknown_operators() -> None:
    assert verify.unknown_operators(tiny.custom_operator()) == ["my.ops.Mystery"]
    assert verify.unknown_operators(tiny.function_with_attribute()) == [], "the model defines it"
    assert verify.unknown_operators(conv2d()) == []
