"""dilrewrite optimize, from the command line to the written files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from dilrewrite.choice.reason import Reason
from dilrewrite.forms.strategies import every_strategy
from dilrewrite.reports.formats import written
from dilrewrite.splice.rewrite import VERIFICATION_KEY
from tests import models_for_tests as tiny
from tests.models_for_tests import (
    DEMOS,
    MODELS,
    aspp,
    cli,
    conv1d,
    conv2d,
    dilations,
    listing,
    save,
    save_external,
    two_convs,
    values,
)
from tests.words import words

pytestmark = pytest.mark.usefixtures("in_process")

PHASES = ("--strategy", "space_to_batch")
Capsys = pytest.CaptureFixture[str]


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work from a folder that has nothing to do with the models."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)


def close(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=1e-4, atol=1e-5 * float(np.abs(value).max(initial=0)))


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


# -- every strategy ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, np.ndarray[Any, Any]]]]:
    folder = tmp_path_factory.mktemp("subjects")
    tcn = Path(shutil.copy(MODELS / "causal_tcn.onnx", folder))
    return {
        "causal_tcn": (tcn, {"roll": values(2, 88, 37)}),
        "aspp": (save(aspp(size=14, rate=6), folder / "aspp.onnx"), {"x": values(1, 4, 14, 14)}),
    }


@pytest.mark.parametrize("strategy", every_strategy())
@pytest.mark.parametrize("subject", ["causal_tcn", "aspp"])
@pytest.mark.grid(2)
def test_every_strategy(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subjects: Any, subject: str, strategy: str
) -> None:
    path, feeds = subjects[subject]
    written = tmp_path / "o.onnx"
    outcome = cli(capsys, "optimize", path, "-o", written, "--strategy", strategy, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    report = outcome.report
    kept = [site for site in report["sites"] if site["action"] == "kept"]
    rewritten = [site for site in report["sites"] if site["action"] == "rewritten"]
    assert all(site["strategy"] == strategy and site["proof"]["failure"] is None for site in rewritten)
    assert all(site["proof"]["native_ran"] and site["proof"]["elements"] > 0 for site in rewritten)
    if strategy != "keep":
        assert all("refuses: " in site["reason"] for site in kept)
    assert report["status"] == ("rewritten" if rewritten else "kept")
    if not rewritten:
        assert written.read_bytes() == path.read_bytes()
    onnx.checker.check_model(str(written), full_check=True)
    elsewhere(monkeypatch, tmp_path / "elsewhere")
    close(tiny.run(path, feeds), tiny.run(written, feeds))


def test_settings_of_a_strategy(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(length=32, dilations=[8], pads=[8, 8]), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--strategy", "space_to_batch:max_dilation=4", "--json")
    assert (outcome.code, outcome.report["sites"][0]["max_dilation_left"]) == (0, 4)
    assert dilations(tmp_path / "m.dilrewrite.onnx") == [4]
    path = save(conv1d(length=32, dilations=[8], pads=[8, 8]), tmp_path / "n.onnx")
    site = cli(capsys, "optimize", path, "--strategy", "tap_sum:limit_nodes=2", "--json").report["sites"][0]
    assert "limit_nodes=2" in site["reason"]


# -- eliminate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.grid(2)
def test_eliminate_leaves_no_dilation(capsys: Capsys, tmp_path: Path, name: str) -> None:
    outcome = cli(capsys, "optimize", MODELS / f"{name}.onnx", "-o", tmp_path / "o.onnx", "--eliminate", "--json")
    assert outcome.code == 0
    report = outcome.report
    assert (report["status"], report["remaining"], report["after"]["dilated"]) == ("rewritten", [], 0)
    assert report["rewritten"] == report["before"]["dilated"] == len(report["sites"])
    assert report["verdict"]["passed"]
    assert report["verdict"]["cases"], "the whole model was run"
    assert max(dilations(tmp_path / "o.onnx")) == 1
    assert max(dilations(MODELS / f"{name}.onnx")) > 1


@pytest.mark.parametrize("name", DEMOS)
def test_eliminate_above_a_limit(capsys: Capsys, tmp_path: Path, name: str) -> None:
    options = ["--eliminate", "--max-dilation", "2", "--verify", "sites", "--json"]
    outcome = cli(capsys, "optimize", MODELS / f"{name}.onnx", "-o", tmp_path / "o.onnx", *options)
    assert outcome.code == 0
    assert max(dilations(tmp_path / "o.onnx")) <= 2
    alone = [site for site in outcome.report["sites"] if site["region"] is None]
    small = [site for site in alone if max(site["geometry"]["dilations"]) <= 2]
    assert all(site["action"] == "kept" and "at most 2" in site["reason"] for site in small)


def test_eliminate_fails_when_something_is_left(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.transposed(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--eliminate", "--json")
    assert (outcome.code, outcome.report["status"]) == (1, "dilation left")
    assert len(outcome.report["remaining"]) == 1
    assert "spread (ConvTranspose)" in outcome.report["remaining"][0]
    assert outcome.report["output"] is outcome.report["after"] is None
    assert list(listing(tmp_path)) == ["m.onnx"], "no model, and no report that was not asked for"
    assert cli(capsys, "optimize", path, "--eliminate", "--report", tmp_path / "why").code == 1
    assert set(listing(tmp_path)) == {"m.onnx", "why", *(f"why/report.{kind}" for kind in ("html", "json", "md"))}


@pytest.mark.parametrize("options", [(), ("--strategy", "space_to_batch")])
def test_a_conv_that_no_form_fits_is_kept(capsys: Capsys, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Opset 9 spells neither a computed Pad nor a computed Slice: these SAME_* pads can only stay."""
    path = save(tiny.same_upper(length="length", stride=2, dilation=3, opset=9, ir=4), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, *options, "--json")
    assert (outcome.code, outcome.report["status"]) == (0, "kept")
    assert (tmp_path / "m.dilrewrite.onnx").read_bytes() == path.read_bytes()


def test_eliminate_says_why_no_form_fits(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.same_upper(length="length", stride=2, dilation=3, opset=9, ir=4), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--eliminate", "--json")
    assert (outcome.code, outcome.report["status"]) == (1, "dilation left")
    (left,) = outcome.report["remaining"]
    assert "no form leaves it without" in left
    assert "opset 9 has no Pad" in left
    assert list(listing(tmp_path)) == ["m.onnx"]


@pytest.mark.parametrize("skip", ["spread", "^main/spread$", "sp.*d"])
def test_eliminate_passes_with_an_excuse(capsys: Capsys, tmp_path: Path, skip: str) -> None:
    path = save(tiny.transposed(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--eliminate", "--skip", skip, "--json")
    assert (outcome.code, outcome.report["status"], outcome.report["after"]["dilated"]) == (0, "rewritten", 1)


def test_eliminate_passes_when_only_others_are_named(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.transposed(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "--eliminate", "--only", "conv", "--json").code == 0


def test_eliminate_names_what_a_function_hides(capsys: Capsys, tmp_path: Path) -> None:
    proto = tiny.function_with_attribute()
    proto.functions[0].opset_import[0].version = 16  # the graph of another opset cannot hold its nodes
    path = save(proto, tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "-o", tmp_path / "kept.onnx", "--json").code == 0
    outcome = cli(capsys, "optimize", path, "--eliminate", "--no-report", "--json")
    assert outcome.code == 1
    assert "inner" in outcome.report["remaining"][0]


def test_eliminate_with_a_strategy_goes_on_where_it_refuses(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(length=64, strides=[2], dilations=[3], pads=[3, 3]), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--eliminate", *PHASES, "--json")
    assert outcome.code == 0
    assert outcome.report["sites"][0]["strategy"] not in ("keep", "space_to_batch")
    assert max(dilations(tmp_path / "m.dilrewrite.onnx")) == 1


# -- only, skip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rewritten"),
    [
        ([], ["early", "late"]),
        (["--only", "late"], ["late"]),
        (["--skip", "late"], ["early"]),
        (["--only", "^main/early$"], ["early"]),
        (["--only", "^a$"], ["early"]),
        (["--only", "ea|la", "--skip", "rly"], ["late"]),
        (["--skip", "."], []),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else None,
)
def test_only_and_skip(capsys: Capsys, tmp_path: Path, options: list[str], rewritten: list[str]) -> None:
    path = save(two_convs(), tmp_path / "m.onnx")
    report = cli(capsys, "optimize", path, *PHASES, *options, "--json").report
    assert [site["name"] for site in report["sites"] if site["action"] == "rewritten"] == rewritten
    for site in report["sites"]:
        if site["action"] == "kept":
            assert site["reason"] in (words(Reason.SKIPPED), words(Reason.NOT_NAMED))
    if not rewritten:
        assert (tmp_path / "m.dilrewrite.onnx").read_bytes() == path.read_bytes()


# -- kept ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [tiny.plain, conv1d, conv2d], ids=lambda made: made.__name__)
def test_what_is_kept_is_copied_byte_for_byte(capsys: Capsys, tmp_path: Path, made: Callable[[], ModelProto]) -> None:
    path = save(made(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--json")
    assert outcome.code == 0
    assert outcome.report["status"] == ("nothing to rewrite" if made is tiny.plain else "kept")
    assert (tmp_path / "m.dilrewrite.onnx").read_bytes() == path.read_bytes()
    assert outcome.report["after"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for site in outcome.report["sites"]:
        assert site["reason"] == words(Reason.NOT_MEASURED, Reason.NO_BUDGET), "it says why"


def test_bytes_that_onnx_would_write_otherwise_are_kept(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    path.write_bytes(b"\x08\x07" + path.read_bytes())  # the IR version twice: the last one counts
    assert onnx.load(path).ir_version == 8
    assert cli(capsys, "optimize", path, "--json").code == 0
    assert (tmp_path / "m.dilrewrite.onnx").read_bytes() == path.read_bytes()


# -- places --------------------------------------------------------------------------------------------------------


def test_default_places(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "a.b.onnx")
    report = cli(capsys, "optimize", path, *PHASES, "--json").report
    assert set(listing(tmp_path)) == {
        "a.b.onnx",
        "a.b.dilrewrite.onnx",
        "a.b.dilrewrite.report",
        *(f"a.b.dilrewrite.report/{name}" for name in written()),
    }
    assert report["output"] == str(tmp_path / "a.b.dilrewrite.onnx")
    assert json.loads((tmp_path / "a.b.dilrewrite.report" / "report.json").read_text())["status"] == "rewritten"


def test_relative_paths(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_external(conv1d(channels=8), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    outcome = cli(capsys, "optimize", "m.onnx", *PHASES, "--verify", "sites", "--json")
    assert outcome.code == 0
    assert Path("m.dilrewrite.onnx").exists()
    assert Path("m.dilrewrite.report/report.json").exists()


def test_force_replaces(capsys: Capsys, tmp_path: Path) -> None:
    path, target = save(conv1d(), tmp_path / "m.onnx"), tmp_path / "o.onnx"
    target.write_text("old")
    assert cli(capsys, "optimize", path, "-o", target, *PHASES, "--force", "--json").code == 0
    onnx.checker.check_model(str(target))
    before = path.read_bytes()
    assert cli(capsys, "optimize", path, "-o", path, *PHASES, "--force", "--json").code == 0
    assert path.read_bytes() != before
    assert dilations(path) == [1]


def test_dry_run_writes_nothing(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    (tmp_path / "m.dilrewrite.onnx").write_text("mine")
    before = listing(tmp_path)
    outcome = cli(capsys, "optimize", path, *PHASES, "--dry-run", "--report", tmp_path / "told", "--json")
    assert outcome.code == 0
    assert outcome.report["status"] == "rewritten"
    assert outcome.report["output"] is None
    assert outcome.report["verdict"]["cases"], "everything was done but the writing"
    assert listing(tmp_path) == before


def test_report_folder(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, *PHASES, "--report", tmp_path / "told", "--json")
    written = json.loads((tmp_path / "told" / "report.json").read_text())
    assert written.keys() == outcome.report.keys()
    for name in written.keys() - {"seconds"}:
        assert written[name] == outcome.report[name]
    assert not (tmp_path / "m.dilrewrite.report").exists()


def test_no_report(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, *PHASES, "--no-report", "--json").code == 0
    assert sorted(listing(tmp_path)) == ["m.dilrewrite.onnx", "m.onnx"]


def test_reports_and_model_appear_together_or_not_at_all(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last report cannot be written: the model and the other reports do not appear either."""
    from dilrewrite.errors import FailedError
    from dilrewrite.reports import formats

    class Failing:
        filename = "zzz.txt"
        default = True
        opening = ""

        def render(self, report: Any) -> str:  # noqa: ARG002
            raise FailedError("no ink")

    plug_ins = {**formats.formats(), "zzz": Failing()}
    monkeypatch.setattr(formats, "formats", lambda: plug_ins)
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, *PHASES, "--json")
    assert (outcome.code, outcome.err) == (1, "dilrewrite: no ink\n")
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_two_runs_give_the_same(capsys: Capsys, tmp_path: Path) -> None:
    path = save(aspp(size=14, rate=6), tmp_path / "m.onnx")
    reports = []
    for name in ("one", "two"):
        report = cli(capsys, "optimize", path, "-o", tmp_path / f"{name}.onnx", "--eliminate", "--json").report
        report["after"].pop("path")
        for key in ("date", "seconds", "output", "files"):
            report.pop(key)
        reports.append(report)
    assert reports[0] == reports[1]
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


# -- how much is proved --------------------------------------------------------------------------------------------


def test_verify_none_says_so(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    monkeypatch.setattr(OnnxRuntimeCpu, "session", lambda *_: pytest.fail("something was run"))
    path = save(conv1d(), tmp_path / "m.onnx")
    report = cli(capsys, "optimize", path, *PHASES, "--verify", "none", "--json").report
    assert report["verdict"]["level"] == "none"
    assert "unverified" in report["verdict"]["skipped"]
    assert report["sites"][0]["proof"] is None
    assert metadata(tmp_path / "m.dilrewrite.onnx") == {VERIFICATION_KEY: "unverified"}


def test_verify_none_marks_nothing_that_is_kept(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "--strategy", "keep", "--verify", "none", "--json").code == 0
    assert (tmp_path / "m.dilrewrite.onnx").read_bytes() == path.read_bytes()


def test_verify_sites_runs_no_whole_model(capsys: Capsys, tmp_path: Path) -> None:
    """The model cannot be run on random data: nobody notices, the sites are proved."""
    path = save(tiny.gather(), tmp_path / "m.onnx")
    report = cli(capsys, "optimize", path, *PHASES, "--verify", "sites", "--json").report
    assert (report["verdict"]["level"], report["verdict"]["cases"]) == ("sites", [])
    assert report["sites"][0]["proof"]["failure"] is None
    assert VERIFICATION_KEY not in metadata(tmp_path / "m.dilrewrite.onnx")


def test_verify_full_leaves_no_mark(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, *PHASES, "--json").code == 0
    assert metadata(tmp_path / "m.dilrewrite.onnx") == {}


# -- external data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("mode", ["auto", "copy", "reference"])
@pytest.mark.parametrize("where", ["same folder", "another folder"])
@pytest.mark.parametrize("strategy", ["space_to_batch", "space_to_group"])
def test_external_data(
    capsys: Capsys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    mode: str,
    where: str,
    strategy: str,
) -> None:
    source, target = tmp_path / "source", tmp_path / ("source" if where == "same folder" else "target")
    source.mkdir()
    target.mkdir(exist_ok=True)
    path = save_external(aspp(size=14, rate=6, channels=8), source / "m.onnx", files=files)
    before = listing(tmp_path)
    given = ["-o", target / "o.onnx", "--strategy", strategy, "--external-data", mode, "--verify", "sites"]
    outcome = cli(capsys, "optimize", path, *given, "--json")
    if (mode, where) == ("reference", "another folder"):
        assert outcome.code == 2
        assert "m.0.bin" in outcome.err
        assert listing(tmp_path) == before
        return
    assert outcome.code == 0, outcome.err
    assert {name: content for name, content in listing(tmp_path).items() if name in before} == before
    onnx.checker.check_model(str(target / "o.onnx"))
    elsewhere(monkeypatch, tmp_path / "elsewhere")
    feeds = {"x": values(1, 8, 14, 14)}
    close(tiny.run(path, feeds), tiny.run(target / "o.onnx", feeds))
    if mode == "copy" or where == "another folder":
        shutil.rmtree(source) if where == "another folder" else [f.unlink() for f in source.glob("m.*.bin")]
        assert tiny.run(target / "o.onnx", feeds), "it has its own copies"


@pytest.mark.parametrize("saver", [save, save_external])
@pytest.mark.parametrize("strategy", ["space_to_batch", "keep"])
def test_report_names_the_bytes_that_were_written(capsys: Capsys, tmp_path: Path, saver: Any, strategy: str) -> None:
    path = saver(conv2d(channels=8), tmp_path / "m.onnx")
    report = cli(capsys, "optimize", path, "--verify", "sites", "--json", "--strategy", strategy).report
    written = (tmp_path / "m.dilrewrite.onnx").read_bytes()
    assert report["after"]["sha256"] == hashlib.sha256(written).hexdigest()
    assert report["before"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sizes_count_external_data(capsys: Capsys, tmp_path: Path) -> None:
    path = save_external(conv2d(channels=8), tmp_path / "m.onnx")
    report = cli(capsys, "optimize", path, *PHASES, "--verify", "sites", "--no-report", "--json").report
    data = (tmp_path / "m.0.bin").stat().st_size
    assert report["before"]["bytes"] == path.stat().st_size + data
    assert report["after"]["bytes"] == (tmp_path / "m.dilrewrite.onnx").stat().st_size + data


@pytest.mark.parametrize("files", [1, 2])
def test_external_data_with_full_verification(capsys: Capsys, tmp_path: Path, files: int) -> None:
    path = save_external(aspp(size=14, rate=6, channels=8), tmp_path / "m.onnx", files=files)
    outcome = cli(capsys, "optimize", path, *PHASES, "--json")
    assert outcome.code == 0, outcome.report["verdict"]["failures"]
    assert outcome.report["verdict"]["cases"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_model_behind_a_link(capsys: Capsys, tmp_path: Path) -> None:
    real = tmp_path / "blobs"
    real.mkdir()
    save_external(conv1d(channels=8), real / "m.onnx")
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("m.onnx", "m.0.bin"):
        (cache / name).symlink_to(real / name)
    options = ["-o", tmp_path / "o.onnx", *PHASES, "--verify", "sites", "--json"]
    outcome = cli(capsys, "optimize", cache / "m.onnx", *options)
    assert outcome.code == 0, outcome.err
    close(tiny.run(real / "m.onnx", {"x": values(1, 8, 16)}), tiny.run(tmp_path / "o.onnx", {"x": values(1, 8, 16)}))


# -- as users run it -----------------------------------------------------------------------------------------------


def test_isolated(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with every whole model in a process of its own: memory is measured, and nothing is left running."""
    monkeypatch.undo()
    path = save(conv2d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, *PHASES, "--json")
    assert outcome.code == 0
    assert outcome.report["verdict"]["backend"] == "onnxruntime_cpu"
    assert set(outcome.report["verdict"]["noise_sources"]) == {
        "graph optimisations on/off",
        "rewritten Convs disturbed by their per-site error",
    }
