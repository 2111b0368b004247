"""`--keep-micro`: every measured or rewritten site and region as a model, before and after each form, with its data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.commands import micro
from dilrewrite.errors import FailedError, UsageError
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import CannotRun
from dilrewrite.timing.measure import Answer, Form, Meter
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.stopwatch import Comparison
from tests import models_for_tests as tiny
from tests.choice.test_tune import chain, compared
from tests.models_for_tests import build, cli, conv1d, conv_node, dilations, listing, save, two_convs, values
from tests.sandwiches import Sandwich, image
from tests.sandwiches import build as sandwiched

pytestmark = pytest.mark.usefixtures("in_process", "profiled_in_process")

Capsys = pytest.CaptureFixture[str]
Outcomes = dict[str, FormTiming]

DATA = "inputs.npz"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    """Nothing is timed: a form becomes what this says by its name, and is slower where it says nothing."""
    script: Outcomes = {}

    def answer(_: Meter, __: Question, ___: object, forms: Sequence[Form], _slice_s: float, *, must_go: bool) -> Answer:
        del must_go
        slower = FormTiming(outcome=Outcome.LOST, timing=compared(1.5), keep_peak_bytes=2**20, peak_bytes=2**21)
        return Answer(forms={form.strategy: script.get(form.strategy, slower) for form in forms})

    def whole(*_: object, **__: object) -> Comparison:
        return compared(0.7)

    monkeypatch.setattr(Meter, "answer", answer)
    monkeypatch.setattr(Meter, "whole", whole)
    return script


def kept(model: ModelProto, folder: Path, **options: Any) -> tuple[Report, Path]:
    """The report, and the folder that was asked for."""
    path = save(model, folder / "m.onnx")
    place = folder / "micro"
    return dilrewrite.optimize(path, folder / "o.onnx", keep_micro=place, no_cache=True, **options), place


def names(folder: Path) -> dict[str, list[str]]:
    """The files by folder, without what lies beside the folders."""
    return {one.name: sorted(file.name for file in one.iterdir()) for one in sorted(folder.iterdir()) if one.is_dir()}


def strategies(files: Sequence[str]) -> list[str]:
    """The forms that files are of, in order."""
    assert files[0] == "00-before.onnx"
    assert files[-1] == DATA
    found = [re.fullmatch(r"(\d\d)-(\w+)\.onnx", name) for name in files[1:-1]]
    assert [match[1] for match in found if match] == [f"{number:02d}" for number in range(1, len(files) - 1)]
    return [match[2] for match in found if match]


def check(folder: Path) -> None:
    """Every model of a folder runs on its data, and computes what the original does; the forms have less dilation."""
    data = dict(np.load(folder / DATA))
    results = {}
    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(path, full_check=True)
        results[path.name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, data)
    before = results.pop("00-before.onnx")
    assert results
    assert all(np.abs(y).max() > 0 for y in before)
    for outputs in results.values():
        for y, expected in zip(outputs, before, strict=True):
            np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.measures
def test_every_form_that_was_measured(tmp_path: Path, scripted: Outcomes) -> None:
    """Of regions and of sites, those that are one question once; also where nothing won."""
    report, place = kept(chain(2, 4, 2), tmp_path)
    assert report.status == "kept"
    found = names(place)
    assert list(found) == ["region-001-conv0", "site-001-conv0", "site-002-conv1"]
    asked = {form.strategy for form in report.sites[0].candidates if form.timing is not None}
    assert set(strategies(found["site-001-conv0"])) == asked
    assert len(asked) > 3
    assert strategies(found["region-001-conv0"]) == ["lift_region"]
    for folder in found:
        check(place / folder)
        assert max(dilations(place / folder / "00-before.onnx")) > 1
    text = (place / "README.txt").read_text()
    assert "stands for: main/c0, main/c2\n" in text
    assert "1.50x slower" in text
    assert "peak memory 1.00 MiB -> 2.00 MiB" in text
    assert scripted == {}


@pytest.mark.measures
def test_a_form_that_failed_and_one_that_was_not_reached(tmp_path: Path, scripted: Outcomes) -> None:
    scripted["im2col"] = FormTiming(outcome=Outcome.CRASHED, cause="the process was killed by SIGSEGV")
    scripted["tap_sum"] = FormTiming(outcome=Outcome.NO_TIME)
    _, place = kept(conv1d(dilations=[2], pads=[2, 2]), tmp_path)
    (folder,) = [name for name in names(place) if name.startswith("site")]
    found = strategies(names(place)[folder])
    assert "im2col" in found
    assert "tap_sum" not in found
    assert "im2col.onnx: failed: the process was killed by SIGSEGV\n" in (place / "README.txt").read_text()


@pytest.mark.measures
def test_the_question_without_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Outcomes) -> None:
    """What is kept is what was measured: here the runtime does not take the neighbours."""
    del scripted
    scripted_answer = Meter.answer

    def bare(self: Meter, question: Question, *given: Any, **more: Any) -> Answer:
        return Answer(forms=scripted_answer(self, question, *given, **more).forms, bare=True)

    _, with_them = kept(two_convs(), tmp_path)
    monkeypatch.setattr(Meter, "answer", bare)
    (tmp_path / "other").mkdir()
    _, without = kept(two_convs(), tmp_path / "other")
    for place, operators in ((with_them, ["Conv", "Relu"]), (without, ["Conv"])):
        nodes = onnx.load(place / "site-001-early" / "00-before.onnx").graph.node
        assert [node.op_type for node in nodes] == operators
        check(place / "site-001-early")


@pytest.mark.parametrize("how", ["strategy", "eliminate", "decisions"])
def test_what_was_rewritten_without_measuring(tmp_path: Path, how: str) -> None:
    """The sizes that the model leaves open are then looked up in a run."""
    model = conv1d(length=None, dilations=[2], pads=[2, 2])
    given: dict[str, Any] = {"strategy": "im2col"} if how == "strategy" else {"eliminate": True}
    if how == "decisions":
        saved = tmp_path / "d.json"
        dilrewrite.optimize(save(model, tmp_path / "m.onnx"), strategy="im2col", save_decisions=saved)
        given = {"decisions": saved}
    report, place = kept(model, tmp_path, shapes=["x:1x2x30"], **given)
    (site,) = report.sites
    (files,) = names(place).values()
    assert strategies(files) == [site.strategy]
    (folder,) = names(place)
    assert np.load(place / folder / DATA)["x"].shape[-1] == 30
    check(place / folder)
    assert f"{site.strategy}.onnx: not timed\n" in (place / "README.txt").read_text()


SANDWICHES = {
    "known sizes": Sandwich(batch=1),
    "computed, channels last": Sandwich(how="computed", known=False, last=True, chain=("Mul", "Relu")),
    "1-D": Sandwich(extents=(11,), kernel=(3,), block=(2,), begin=(2,), end=(2,)),
    "a chain behind the Conv": Sandwich(chain=("BatchNormalization", "Relu")),
}


@pytest.mark.parametrize("name", SANDWICHES)
def test_a_sandwich_that_was_folded(tmp_path: Path, name: str) -> None:
    report, place = kept(sandwiched(SANDWICHES[name]), tmp_path, strategy="fold", shapes=sizes_of(SANDWICHES[name]))
    assert (report.status, report.rewritten) == ("rewritten", 1)
    ((folder, files),) = names(place).items()
    assert strategies(files) == ["fold"]
    check(place / folder)
    assert max(dilations(place / folder / "00-before.onnx"), default=1) == 1
    assert 2 in dilations(place / folder / "01-fold.onnx")
    assert report.sites[0].key in (place / "README.txt").read_text()


@pytest.mark.measures
def test_every_form_of_a_sandwich_that_was_measured(tmp_path: Path, scripted: Outcomes) -> None:
    s = SANDWICHES["computed, channels last"]
    report, place = kept(sandwiched(s), tmp_path, shapes=sizes_of(s))
    assert report.status == "kept"
    ((folder, files),) = names(place).items()
    asked = {form.strategy for form in report.sites[0].candidates if form.timing is not None}
    assert set(strategies(files)) == asked
    assert asked >= {"fold", "im2col", "space_to_batch"}
    check(place / folder)
    assert scripted == {}


def sizes_of(s: Sandwich) -> list[str]:
    return ["x:" + "x".join(map(str, image(s).shape))]


def test_a_forced_region(tmp_path: Path) -> None:
    report, place = kept(chain(2, 4), tmp_path, strategy="phase_region")
    assert report.rewritten == 2
    assert [strategies(files) for files in names(place).values()] == [["phase_region"]]
    (folder,) = names(place)
    check(place / folder)


def test_where_results_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is written, and a report of the bug needs its models most."""
    tiny.spoil(monkeypatch, lambda graph: graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(
        2 * onnx.numpy_helper.to_array(graph.initializer[0]), graph.initializer[0].name)))  # fmt: skip
    report, place = kept(two_convs(), tmp_path, strategy="im2col")
    assert (report.status, (tmp_path / "o.onnx").exists()) == ("differs", False)
    assert len(names(place)) == 2


@pytest.mark.parametrize("made", [lambda: build([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, {})])
def test_nothing_to_keep(tmp_path: Path, made: Callable[[], ModelProto]) -> None:
    report, place = kept(made(), tmp_path)
    assert (report.status, place.exists()) == ("nothing to rewrite", False)
    assert [note for note in report.notes if "nothing was measured or rewritten" in note]


def test_a_model_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise CannotRun("no memory for that")

    monkeypatch.setattr("dilrewrite.choice.original.Original.profile", fails)
    report, place = kept(two_convs(), tmp_path, strategy="im2col")
    assert (report.status, place.exists()) == ("rewritten", False)
    assert [note for note in report.notes if "no memory for that" in note and "nothing was kept" in note]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    kept(two_convs(), tmp_path, strategy="im2col", dry_run=True)
    assert list(listing(tmp_path)) == ["m.onnx"]


# -- names, and how to run them ----------------------------------------------------------------------------------------


def test_names_are_safe_and_sort(tmp_path: Path) -> None:
    odd = ["../../evil", "con", "a/b:c\n*", "", "ünïcödé", "n" * 300]
    nodes = [
        conv_node(f"x{i}" if i else "x", f"x{i + 1}", name=name, dilations=[2 + i], pads=[2 + i] * 2)
        for i, name in enumerate(odd)
    ]
    model = build(nodes, {"x": [1, 2, 40]}, {f"x{len(odd)}": None}, {"w": values(2, 2, 3)})
    _, place = kept(model, tmp_path, strategy="im2col")
    found = list(names(place))
    assert len(found) == len(odd)
    for number, name in enumerate(found, 1):
        assert re.fullmatch(rf"site-{number:03d}(-[A-Za-z0-9_.-]{{1,40}})?", name), name
        assert not name.endswith((".", "-"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "micro", "o.onnx"]


def test_the_readme_runs(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, and its command that compares."""
    _, place = kept(two_convs(), tmp_path, strategy="im2col")
    monkeypatch.chdir(place)
    text = Path("README.txt").read_text()
    assert str(tmp_path) not in text, "it goes to strangers"
    block = text.partition("    import pathlib")[2].partition("\n\nTime two")[0]
    exec("\n".join(line.removeprefix("    ") for line in f"    import pathlib{block}".splitlines()), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["00-before.onnx", "01-im2col.onnx"]
    (command,) = re.findall(r"^ +dilrewrite (verify .*)$", text, re.MULTILINE)
    outcome = cli(capsys, *command.split())
    assert (outcome.code, "equal" in outcome.out) == (0, True)
    (command,) = re.findall(r"^ +dilrewrite (bench .*)$", text, re.MULTILINE)
    assert all(Path(word).is_file() for word in command.split() if "/" in word)


def test_two_runs_write_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _, place = kept(two_convs(), tmp_path / name, strategy="im2col")
        found.append({file: data for file, data in listing(place).items() if file != "README.txt"})
    assert found[0] == found[1]


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = micro.rewritten, 0

    def full(*given: Any) -> ModelProto:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise FailedError("the disk is full")
        return real(*given)

    monkeypatch.setattr(micro, "rewritten", full)
    with pytest.raises(FailedError, match="full"):
        kept(two_convs(), tmp_path, strategy="im2col", report=tmp_path / "told")
    assert calls == 2
    assert list(listing(tmp_path)) == ["m.onnx"]


def taken_by_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def not_empty(folder: Path) -> Path:
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine")
    return folder / "full"


def in_no_folder(folder: Path) -> Path:
    return folder / "nowhere" / "micro"


def at_the_output(folder: Path) -> Path:
    return folder / "o.onnx"


def at_the_reports(folder: Path) -> Path:
    return folder / "told"


def where_the_decisions_go(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (taken_by_a_file, "is not a folder"),
        (not_empty, "holds files already"),
        (in_no_folder, "is not a folder"),
        (at_the_output, "is a place for something else"),
        (at_the_reports, "told"),
        (where_the_decisions_go, "another file goes into it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_folders(tmp_path: Path, place: Callable[[Path], Path], word: str) -> None:
    """Before anything is run, whatever is forced."""
    folder = place(tmp_path)
    more = {"save_decisions": folder / "d.json"} if place is where_the_decisions_go else {}
    save(two_convs(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=word):
        dilrewrite.optimize(
            tmp_path / "m.onnx", tmp_path / "o.onnx", keep_micro=folder, report=tmp_path / "told", force=True, **more
        )
    assert listing(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "micro").mkdir()
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--strategy", "im2col", "--keep-micro", tmp_path / "micro", "--no-report")
    assert outcome.code == 0, outcome.err
    assert list(names(tmp_path / "micro")) == ["site-001-early", "site-002-late"]
