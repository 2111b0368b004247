"""dilrewrite bench: one model against itself or another, in pairs; what the numbers are is the clock's business."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

import dilrewrite
from dilrewrite.choice.tune import Tuning
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.proof.verdict import Subject
from dilrewrite.reports.units import size
from dilrewrite.runtimes import _worker
from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from tests import models_for_tests as tiny
from tests.models_for_tests import Outcome, cli, conv1d, conv2d, conv_node, listing, save, save_external, values

pytestmark = [pytest.mark.measures, pytest.mark.usefixtures("in_process")]

Capsys = pytest.CaptureFixture[str]
Data = dict[str, Any]


def bench(capsys: Capsys, *arguments: object, budget: float = 0.3) -> Outcome:
    return cli(capsys, "bench", *arguments, "--budget", budget, "--json")


def check(report: Data) -> None:
    """What is there fits together."""
    assert (report["command"], report["status"], report["exit_code"]) == ("bench", "measured", 0)
    found = report["measurement"]
    assert found["backend"] == "onnxruntime_cpu"
    final = found["final"]
    assert 0 < final["low"] <= final["ratio"] <= final["high"]
    assert final["pairs"] >= 6
    for side in (final["first"], final["second"]):
        assert 0 < side["p20_s"] <= side["median_s"] <= side["p80_s"]
    if found["noise"] is not None:
        assert found["noise"]["low"] <= found["noise"]["ratio"] <= found["noise"]["high"]
        level = max(found["noise"]["high"], 1 / found["noise"]["low"]) - 1
        assert final["noise"] == pytest.approx(level)
    assert (found["measured"], found["recalled"], found["profiled_s"]) == (1, 0, None)
    assert found["spent_s"] > 0
    assert report["sites"] == report["remaining"] == []
    assert report["verdict"] is report["output"] is None


def test_one_model(capsys: Capsys, tmp_path: Path) -> None:
    """Against itself: so its noise is told."""
    path = save(conv2d(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = bench(capsys, path, budget=2)
    assert (outcome.code, outcome.err) == (0, "")
    check(outcome.report)
    assert outcome.report["measurement"]["noise"] is not None
    assert outcome.report["after"] is None
    assert outcome.report["before"]["dilated"] == 1
    assert outcome.report["measurement"]["inputs"] == {"x": [1, 2, 12, 12]}
    assert listing(tmp_path) == before


def test_the_memory_is_on_the_screen(capsys: Capsys, tmp_path: Path) -> None:
    """Of one model and of two, as the JSON has it; where it was not measured there is no line."""
    path = save(conv2d(), tmp_path / "m.onnx")
    for models in ([path], [path, path]):
        folder = tmp_path / f"told{len(models)}"
        outcome = cli(capsys, "bench", *models, "--budget", 3, "--report", folder)
        peak = json.loads((folder / "report.json").read_text(encoding="utf-8"))["before"]["peak_bytes"]
        lines = [line for line in outcome.out.splitlines() if line.startswith("memory")]
        if peak is None:
            assert lines == []
            continue
        assert [line.split("->")[0].split(" (")[0].rstrip() for line in lines] == [f"memory  peak {size(peak)}"]
        assert f"Peak memory: {size(peak)}." in (folder / "report.md").read_text(encoding="utf-8") or len(models) > 1


def test_a_model_against_itself(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    report = bench(capsys, path, path).report
    check(report)
    for side in ("before", "after"):
        report[side].pop("peak_bytes")  # measured for each
    assert report["after"] == report["before"]


def test_a_model_against_another(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "--strategy", "space_to_batch", "--budget", 0, "--no-report").code == 0
    report = bench(capsys, path, tmp_path / "m.dilrewrite.onnx").report
    check(report)
    assert (report["before"]["dilated"], report["after"]["dilated"]) == (1, 0)
    assert report["after"]["nodes"] > report["before"]["nodes"]


def test_a_person_reads_the_answer_first(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "bench", path, path, "--budget", 0.3)
    assert (outcome.code, outcome.err) == (0, "")
    first = outcome.out.splitlines()[0]
    assert "the second model" in first
    assert " ms" in first
    assert str(path) in outcome.out
    assert "interval" in outcome.out
    quiet = cli(capsys, "bench", path, "--budget", 0, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_reports(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = bench(capsys, path, path, "--report", tmp_path / "told")
    files = {"m.onnx", "told", *(f"told/report.{kind}" for kind in ("html", "json", "md"))}
    assert set(listing(tmp_path)) == files
    assert json.loads((tmp_path / "told" / "report.json").read_text()) == outcome.report


def test_no_budget_is_the_least(capsys: Capsys, tmp_path: Path) -> None:
    """As few pairs as give an interval, and no noise of the model itself."""
    report = bench(capsys, save(conv1d(), tmp_path / "m.onnx"), budget=0).report
    check(report)
    assert report["measurement"]["final"]["pairs"] == 6
    assert report["measurement"]["noise"] is report["measurement"]["final"]["noise"] is None


def test_the_default_budget(monkeypatch: pytest.MonkeyPatch, capsys: Capsys, tmp_path: Path) -> None:
    """20 seconds, whatever that of optimize is."""
    budgets = []
    real = Tuning.time_against

    def spy(self: Tuning, other: Any) -> None:
        budgets.append(self.meter.budget.seconds)
        self.meter.budget.seconds = 0
        real(self, other)

    monkeypatch.setattr(Tuning, "time_against", spy)
    assert cli(capsys, "bench", save(conv1d(), tmp_path / "m.onnx"), "--quiet").code == 0
    assert budgets == [20]


@pytest.mark.parametrize("picky", [False, True])
def test_what_the_timed_runtime_refuses_is_made_explicit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picky: bool
) -> None:
    """In both models, whatever ONNX Runtime takes as it is."""
    subjects = []

    class Timed(OnnxRuntimeCpu):  # type: ignore[misc]
        def refuses(self, geometry: ConvGeometry) -> str | None:
            return "it takes no SAME_* pads" if picky and geometry.auto_pad.startswith("SAME") else None

    def spy(tuning: Tuning, subject: Subject) -> None:
        subjects.extend([tuning.original.baseline, subject.proto])
        raise RuntimeError("enough")

    monkeypatch.setattr(OnnxRuntimeCpu, "refuses", lambda *_: None)
    monkeypatch.setattr("dilrewrite.devices.timed_backend", lambda _: Timed())
    monkeypatch.setattr(Tuning, "time_against", spy)
    proto = conv2d()
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.extend(conv_node("x", "c", auto_pad="SAME_UPPER", dilations=[3, 3]).attribute)
    path = save(proto, tmp_path / "m.onnx")
    with pytest.raises(RuntimeError, match="enough"):
        dilrewrite.bench(path, path)
    for subject in subjects:
        spelled = [a.s for node in subject.graph.node for a in node.attribute if a.name == "auto_pad"]
        assert (b"SAME_UPPER" in spelled) is not picky
    assert len(subjects) == 2


def test_nothing_is_cached(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "timings.sqlite"
    monkeypatch.setenv("DILREWRITE_CACHE", str(place))
    path = save(conv1d(), tmp_path / "m.onnx")
    for _ in range(2):
        check(bench(capsys, path, budget=0).report)
    assert not place.exists()


# -- what it runs on -----------------------------------------------------------------------------------------------


def test_shapes(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(batch="batch", length="time"), tmp_path / "m.onnx")
    report = bench(capsys, path, "--shape", "x:3x2x17", budget=0).report
    assert report["measurement"]["inputs"] == {"x": [3, 2, 17]}
    assert report["notes"] == []
    report = bench(capsys, path, budget=0).report
    assert report["measurement"]["inputs"]["x"][:2] == [1, 2]
    assert report["measurement"]["made_up"]


def test_inputs(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.gather(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", index=np.array([0]), x=values(1, 2, 16))
    outcome = bench(capsys, path, "--inputs", tmp_path / "data.npz", budget=0)
    assert outcome.code == 0
    check(outcome.report)
    outcome = bench(capsys, path, budget=0)
    assert (outcome.code, outcome.out) == (2, "")
    assert "'index'" in outcome.err
    assert "--inputs" in outcome.err


def test_threads_are_told(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    report = bench(capsys, path, "--threads", 1, budget=0).report
    assert report["measurement"]["settings"]["intra_op_num_threads"] == "1"
    assert report["environment"]["threads"] == 1


OTHERS: dict[str, Callable[[], ModelProto]] = {
    "nothing dilated": tiny.plain,
    "SAME pads, which the runtime takes as explicit ones": tiny.same_upper,
    "no inputs": tiny.no_inputs,
    "strings": tiny.string_input,
    "a sequence": tiny.sequence_output,
    "two inputs": tiny.shared_symbols,
    "quantised": tiny.quantized,
    "random": tiny.random_branch,
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_every_kind(capsys: Capsys, tmp_path: Path, name: str) -> None:
    path = save(OTHERS[name](), tmp_path / "m.onnx")
    outcome = bench(capsys, path, path, budget=0)
    assert (outcome.code, outcome.err) == (0, "")
    check(outcome.report)


def test_external_data(capsys: Capsys, tmp_path: Path) -> None:
    a = save_external(conv1d(channels=8), tmp_path / "a.onnx")
    b = save(conv1d(channels=8), tmp_path / "b.onnx")
    check(bench(capsys, a, b, budget=0).report)
    check(bench(capsys, b, a, budget=0).report)


def test_from_python(tmp_path: Path) -> None:
    path = save(conv1d(batch="batch"), tmp_path / "m.onnx")
    report = dilrewrite.bench(str(path), path, budget=0, shapes=["x:2x2x16"])
    check(json.loads(json.dumps(report.as_dict())))
    assert report.measurement is not None
    assert report.measurement.inputs == {"x": (2, 2, 16)}


# -- what cannot be timed ------------------------------------------------------------------------------------------


def renamed_input() -> ModelProto:
    model = conv1d()
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    return model


def wider() -> ModelProto:
    return conv1d(channels=4)


def longer() -> ModelProto:
    return conv1d(length=17)


def in_float64() -> ModelProto:
    return conv1d(dtype=np.float64, element=TensorProto.DOUBLE)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (renamed_input, ["its inputs are 'z', not 'x'"]),
        (tiny.shared_symbols, ["its inputs are 'a', 'b', not 'x'"]),
        (tiny.gather, ["its inputs are 'x', 'index', not 'x'"]),
        (tiny.no_inputs, ["its inputs are none, not 'x'"]),
        (conv2d, ["its input 'x' is float 1x2x12x12, not float 1x2x16"]),
        (wider, ["its input 'x' is float 1x4x16, not float 1x2x16"]),
        (longer, ["its input 'x' is float 1x2x17, not float 1x2x16"]),
        (in_float64, ["its input 'x' is double 1x2x16, not float 1x2x16"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_take_something_else(
    capsys: Capsys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[[], ModelProto],
    words: list[str],
) -> None:
    """Told before anything is run, in one line."""
    monkeypatch.setattr(Tuning, "time_against", lambda *_: pytest.fail("something was timed"))
    a, b = save(conv1d(), tmp_path / "a.onnx"), save(other(), tmp_path / "b.onnx")
    outcome = bench(capsys, a, b)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    for word in (*words, str(b), "take the same inputs"):
        assert word in outcome.err


def test_unknown_sizes_fit_known_ones(capsys: Capsys, tmp_path: Path) -> None:
    fixed = save(conv1d(), tmp_path / "fixed.onnx")
    free = save(conv1d(batch="batch", length="time"), tmp_path / "free.onnx")
    report = bench(capsys, fixed, free, budget=0).report
    check(report)
    assert report["measurement"]["inputs"] == {"x": [1, 2, 16]}
    report = bench(capsys, free, fixed, "--shape", "x:1x2x16", budget=0).report
    check(report)


def test_a_size_that_the_other_does_not_take(capsys: Capsys, tmp_path: Path) -> None:
    free = save(conv1d(batch="batch", length="time"), tmp_path / "free.onnx")
    fixed = save(conv1d(), tmp_path / "fixed.onnx")
    outcome = bench(capsys, free, fixed, "--shape", "x:1x2x99", budget=0)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "cannot time the models" in outcome.err
    outcome = bench(capsys, free, fixed, budget=0)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.endswith("; give sizes that both take with --shape\n")


@pytest.mark.parametrize("second", [False, True], ids=["the first", "the second"])
def test_a_model_that_does_not_run(capsys: Capsys, tmp_path: Path, second: bool) -> None:
    good, bad = save(conv1d(), tmp_path / "good.onnx"), save(tiny.custom_operator(), tmp_path / "bad.onnx")
    outcome = bench(capsys, *([good, bad] if second else [bad]), budget=0)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "onnxruntime_cpu cannot time the models: " in outcome.err
    assert "Mystery" in outcome.err


def test_a_crash(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Any, *_: Any) -> None:
        self._child.process.kill()
        self._child.ask("drop", "nothing")

    monkeypatch.setattr(_worker.IsolatedBench, "open", crash)
    outcome = bench(capsys, save(conv1d(), tmp_path / "m.onnx"), budget=0)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "killed by SIGKILL" in outcome.err


def missing(folder: Path) -> list[object]:
    return [folder / "nowhere.onnx"]


def second_missing(folder: Path) -> list[object]:
    return [folder / "m.onnx", folder / "nowhere.onnx"]


def no_model(folder: Path) -> list[object]:
    (folder / "text.onnx").write_text("a letter, not a model\n" * 9)
    return [folder / "m.onnx", folder / "text.onnx"]


def unknown_shape(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--shape", "z:1x2"]


def wrong_shape(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--shape", "x:1x2"]


def no_data(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--inputs", folder / "nowhere.npz"]


def no_library(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--custom-op-library", folder / "nowhere.so"]


def report_at_the_model(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--report", folder / "m.onnx"]


def report_in_no_folder(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--report", folder / "nowhere" / "told"]


def three(folder: Path) -> list[object]:
    return [folder / "m.onnx"] * 3


def no_threads(folder: Path) -> list[object]:
    return [folder / "m.onnx", "--threads", 0]


@pytest.mark.parametrize(
    "arguments",
    [
        missing,
        second_missing,
        no_model,
        unknown_shape,
        wrong_shape,
        no_data,
        no_library,
        report_at_the_model,
        report_in_no_folder,
        three,
        no_threads,
    ],
    ids=lambda value: value.__name__,
)
def test_wrong_usage(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Callable[[Path], list[object]]
) -> None:
    """One line, exit code 2, before anything is timed."""
    monkeypatch.setattr(_worker, "IsolatedBench", lambda *_: pytest.fail("something was timed"))
    save(conv1d(), tmp_path / "m.onnx")
    given = arguments(tmp_path)
    before = listing(tmp_path)
    outcome = bench(capsys, *given)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("dilrewrite: ")
    assert len(outcome.err.splitlines()) == 1
    assert listing(tmp_path) == before
