"""OpenCV's engines: the one that is asked for runs, and what OpenCV 5's new one computes wrongly is not taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.errors import MissingError
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Options, Runnable, TimedBackend, profiled, timed_backend
from dilrewrite.timing.ledger import Ledger
from dilrewrite.timing.outcome import Outcome
from tests.models_for_tests import MODELS, conv2d, values
from tests.wrapped_runtime import plugged

OPTIONS = Options(threads=1, timeout_s=120)
NEW = "opencv_dnn:engine=new"
CALLED = {"classic": "Convolution", "new": "Conv2"}


def ready(name: str) -> TimedBackend:
    try:
        return timed_backend(name)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("engine", CALLED)
def test_the_engine_that_is_asked_for_runs(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a variable says that OpenCV reads."""
    monkeypatch.setenv("OPENCV_FORCE_DNN_ENGINE", "1" if engine == "new" else "2")
    runtime = ready(f"opencv_dnn:engine={engine}")
    runnable = Runnable(model=conv2d().SerializeToString())
    found = profiled(runtime, runnable, OPTIONS, {"x": values(1, 2, 12, 12)}, 1)
    assert {node.op for node in found.nodes} & set(CALLED.values()) == {CALLED[engine]}


def test_the_engine_is_part_of_what_timings_are_known_by() -> None:
    classic = ready("opencv_dnn")
    assert classic.settings(OPTIONS) == {"threads": "1", "winograd": "on", "engine": "classic"}
    new = ready(NEW)
    assert new.settings(OPTIONS)["engine"] == "new"
    keys = [Ledger(runtime, OPTIONS, None).circumstances for runtime in (classic, new)]  # type: ignore[arg-type]
    assert keys[0] != keys[1]


# -- the ASPP model on OpenCV 5's new engine -----------------------------------------------------------------------


def aspp(folder: Path, **more: Any) -> Report:
    folder.mkdir(exist_ok=True)
    path = shutil.copy(MODELS / "aspp_segmentation.onnx", folder)
    return dilrewrite.optimize(path, no_cache=True, report=None, **more)


@pytest.mark.measures
def test_no_wrong_model_is_chosen_on_the_new_engine(tmp_path: Path) -> None:
    """On a clock by which every form is fast: only what it computes can keep one out.

    OpenCV 5.0.0 reads memory there that it never wrote, in the original too.
    """
    ready(NEW)
    with plugged(tmp_path / "plug-ins"):
        report = aspp(tmp_path / "here", backend=f"wrapped:of={NEW}", budget=20)
    assert (report.exit_code, report.status) == (0, "kept")
    assert report.measurement is not None
    assert "the original itself computes something else on wrapped than on" in report.measurement.doubts[0]


@pytest.mark.measures
@pytest.mark.parametrize("strategy", ["space_to_batch", "tap_sum"])
def test_a_wrong_form_that_was_asked_for_differs_on_the_new_engine(tmp_path: Path, strategy: str) -> None:
    ready(NEW)
    report = aspp(tmp_path / "here", backend=NEW, strategy=strategy, budget=2)
    assert (report.exit_code, report.status) == (3, "differs")
    assert report.verdict is not None
    assert "the rewritten model computes something else on opencv_dnn: output" in report.verdict.failures[0]
    assert not (tmp_path / "here" / "aspp_segmentation.dilrewrite.onnx").exists()


@pytest.mark.measures
def test_the_classic_engine_computes_forms_right(tmp_path: Path) -> None:
    ready("opencv_dnn")
    with plugged(tmp_path / "plug-ins"):
        report = aspp(tmp_path / "here", backend="wrapped:of=opencv_dnn", budget=20)
    assert report.exit_code == 0
    assert report.measurement is not None
    assert not report.measurement.doubts
    outcomes = {form.outcome for site in report.sites for form in site.candidates}
    assert Outcome.WON in outcomes
    assert Outcome.WRONG not in outcomes
