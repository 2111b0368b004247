"""Ethos-U by Vela's estimate: what Vela answered is on record, and asked anew where it is installed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.judges import Judge
from dilrewrite.reports.formats import console
from dilrewrite.runtimes import (
    CannotLoad,
    Options,
    Runnable,
    TimeKind,
    TimeUnit,
    ethos_u,
    prepared,
    timed_backend,
)
from dilrewrite.runtimes import _vela as vela
from dilrewrite.tflite import convert
from dilrewrite.tflite.source import attributes
from tests.runtimes import judged, judged_target
from tests.runtimes.judged import ACCELERATORS, ASKED, MODELS, NEW, OLD, dilated, form, recorded
from tests.tflite.models import conv

U55 = ACCELERATORS[0]


def answer(name: str, accelerator: str = U55, version: str = NEW) -> vela.Answer:
    return recorded()[vela.digest(MODELS[name]()), accelerator, version]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Vela as it was recorded, and the accelerators that it was asked about."""
    seen: list[str] = []

    def ask(judge: Judge, model: bytes, accelerator: str, timeout_s: float) -> vela.Answer:
        assert timeout_s > 0
        seen.append(accelerator)
        return recorded()[vela.digest(model), accelerator, judge.version]

    monkeypatch.setattr(vela, "ask", ask)
    monkeypatch.setattr(convert, "tflite", judged.tflite)
    monkeypatch.setattr(Judge, "missing", lambda _: None)
    ethos_u._asked.cache_clear()
    return seen


def test_what_is_on_record_was_asked_of_these_versions() -> None:
    """Of each model and accelerator, with the command, the version and the digest of what is written today."""
    wanted = {(vela.digest(make()), accelerator, version) for make in MODELS.values() for version, accelerator in ASKED}
    assert wanted == set(recorded()), (
        "another file is written than Vela was asked about: scripts/record_judges.py asks anew"
    )
    for (_, accelerator, _), one in recorded().items():
        assert one.command == f"vela model.tflite {' '.join(vela.options(accelerator, one.version))}"


@pytest.mark.parametrize(("version", "accelerator"), ASKED)
def test_vela_answers_as_it_did(version: str, accelerator: str) -> None:
    judge = ethos_u.COMPILERS[version]
    missing = judge.missing()
    if missing is not None:
        pytest.skip(missing)
    for name, make in MODELS.items():
        assert vela.ask(judge, make(), accelerator, 120.0) == answer(name, accelerator, version), name


def test_what_the_answers_say() -> None:
    """An odd dilation is dear, d=2 is free, phases gain, and SpaceToDepth goes to the CPU without cycles."""
    assert answer("d=2").cycles < 1.1 * answer("undilated").cycles
    assert answer("d=5").cycles > 8 * answer("undilated").cycles
    assert answer("d=5, phases apart").cycles < answer("d=5").cycles / 1.5
    assert answer("d=8, phases apart leaving 2").cycles < answer("d=8").cycles / 2 < answer("d=8, phases apart").cycles
    assert answer("d=5, phases apart").hosted == ()
    assert set(answer("d=5, space to batch").hosted) == {"SpaceToDepth", "DepthToSpace"}
    assert all(one.cycles == 0 for one in answer("d=5, space to batch").operators if one.target != vela.NPU)


def test_what_the_older_one_says() -> None:
    """A dilation is dear there, too; what is on the CPU comes from its words, and more is: batches are."""
    old = {name: answer(name, version=OLD) for name in MODELS}
    assert old["d=2"].cycles < 1.1 * old["undilated"].cycles
    assert old["d=5"].cycles > 8 * old["undilated"].cycles
    assert old["d=8, phases apart"].hosted == ()
    assert sorted(old["d=5, space to batch"].hosted) == ["Conv2DBias", "DepthToSpace", "SpaceToDepth"]
    for one in old.values():
        assert sum(each.cycles for each in one.operators) == one.cycles
        assert {each.target for each in one.operators if each.cycles} == {vela.NPU}


def runnable(proto: onnx.ModelProto) -> Runnable:
    return Runnable(model=proto.SerializeToString())


FEEDS: Mapping[str, Any] = {"x": np.zeros((1, 16, 32, 32), np.int8)}


def test_a_model_is_asked_about_once(asked: list[str]) -> None:
    backend = timed_backend("ethos_u")
    for _ in range(3):
        prepared(backend, runnable(dilated(5)), FEEDS)
    prepared(timed_backend(f"ethos_u:accelerator={ACCELERATORS[1]}"), runnable(dilated(5)), FEEDS)
    prepared(timed_backend(f"ethos_u:compiler={OLD}"), runnable(dilated(5)), FEEDS)
    assert asked == [*ACCELERATORS[:2], U55]


@pytest.mark.usefixtures("asked")
def test_a_form_on_the_cpu_is_objected_to() -> None:
    """Fewer cycles are no gain where operators went to the CPU, which has none."""
    backend = timed_backend("ethos_u")
    bench = backend.bench(Options())
    bench.add("keep", prepared(backend, runnable(dilated(5)), FEEDS), FEEDS)
    bench.add("form", prepared(backend, runnable(form(dilated(5), "space_to_batch")), FEEDS), FEEDS)
    keep, fast = bench.run(["keep", "form"])
    assert fast < keep
    assert keep == answer("d=5").cycles / 1e9
    said = bench.objection("keep", "form")
    assert (
        said == "Vela moves operators to the CPU, which has no cycles in its estimate: 1 DepthToSpace, 1 SpaceToDepth"
    )
    assert bench.objection("form", "keep") is None
    assert bench.peak_bytes("keep") == answer("d=5").memory_bytes > 0


OF_RUNS = r"% interval|\bnoise [\d.]+ %|beyond noise|\d to [\d.]+x faster|20 to 80 %|\bpairs?\b"


@pytest.mark.measures
def test_optimize_takes_what_has_fewer_cycles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The form with the fewest cycles of those that stay on the NPU: phases that leave the d=2 that costs nothing."""

    judged.stand_in(monkeypatch)
    proto = dilated(8)
    onnx.save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(
        tmp_path / "m.onnx",
        tmp_path / "n.onnx",
        backend="ethos_u",
        budget=60,
        report=tmp_path / "reports",
        no_cache=True,
    )
    assert report.measurement is not None
    assert (report.measurement.source, report.measurement.unit) == (TimeKind.ESTIMATED, TimeUnit.CYCLES)
    (site,) = report.sites
    assert site.strategy == "phases_apart", site.reason
    left = {
        value for node in onnx.load(tmp_path / "n.onnx").graph.node for value in attributes(node).get("dilations", ())
    }
    assert left == {2}
    assert report.measurement.final is not None
    assert re.search(r"by estimate \([\d.]+ M cycles -> [\d.]+ M cycles", report.summary)
    assert report.speedup is None, "an estimate is no speed-up"
    tried = {one.strategy: one.max_dilation for one in site.candidates if one.outcome is not None}
    assert (tried["phases_apart"], tried["phases_apart:limit_phases=256"]) == (2, 1), "both kinds of phases"
    assert json.loads((tmp_path / "reports" / "report.json").read_text())["measurement"]["unit"] == "cycles"
    for name in ("report.md", "report.html"):
        text = (tmp_path / "reports" / name).read_text(encoding="utf-8")
        assert "estimated" in text
        assert "M cycles" in text
        assert not re.search(r"\d ms\b|milliseconds", text)
        assert not re.search(OF_RUNS, text.partition("Environment")[0]), re.search(rf".*({OF_RUNS}).*", text)
    said = " ".join(console.render(report).split())
    assert not re.search(OF_RUNS, f"{said} {report.summary} {site.reason}"), said


@pytest.mark.measures
@pytest.mark.parametrize("d", judged_target.DILATIONS)
def test_a_conv_on_its_target_needs_a_fifth_of_the_cycles(d: int, tmp_path: Path) -> None:
    """The profile knows that SpaceToDepth is on the CPU; phases that are joined without it are no dearer."""
    report, before, after = judged_target.optimized(d, tmp_path, judged_target.replayed)
    assert report.exit_code == 0
    assert before.cycles >= 5 * after.cycles, report.summary
    assert before.hosted == after.hosted == ()
    made = {node.op_type for node in onnx.load(tmp_path / "after.onnx").graph.node}
    assert not made & {"SpaceToDepth", "DepthToSpace"}


@pytest.mark.measures
def test_vela_answers_on_a_target_as_it_did(tmp_path: Path) -> None:
    missing = ethos_u.COMPILERS["5.2.0"].missing()
    if missing is not None:
        pytest.skip(missing)

    def ask(judge: Judge, model: bytes, accelerator: str, timeout_s: float) -> vela.Answer:
        answer = judged_target.real(judge, model, accelerator, timeout_s)
        assert judged_target.brief(answer, 5) == judged_target.recorded()[answer.digest]
        return answer

    judged_target.optimized(5, tmp_path, ask)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ethos_u:accelerator=u55", "accelerator=u55 is not one of ethos-u55-32, "),
        ("ethos_u:compiler=4.0", "compiler=4.0 is not one of 5.2.0, 3.10.0"),
        ("ethos_u:compiler=3.10.0,accelerator=ethos-u85-512", r"is not one of .*ethos-u65-512$"),
    ],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        timed_backend(text)
    assert re.search(said, str(raised.value)), str(raised.value)


def test_without_vela_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DILREWRITE_JUDGES", str(tmp_path))
    assert (
        ethos_u.BACKEND.missing()
        == "ethos-u-vela 5.2.0 is not installed: dilrewrite targets install-judge ethos-u-vela"
    )
    old = "ethos-u-vela 3.10.0 is not installed: dilrewrite targets install-judge ethos-u-vela-3.10.0"
    assert ethos_u.EthosU(compiler=OLD).missing() == old


@pytest.mark.usefixtures("asked")
def test_what_tflite_cannot_say_is_the_reason() -> None:
    proto = conv([3, 3, 3], shape=(1, 2, 5, 5, 5), out=2, pads=[1] * 6)
    with pytest.raises(CannotLoad, match=r"Conv '.*': 3 spatial axes"):
        prepared(timed_backend("ethos_u"), runnable(proto), {"x": np.zeros((1, 2, 5, 5, 5), np.float32)})


SUMMARY = {
    "cycles_total": "10.0", "core_clock": "5e8", "sram_memory_used": "2.0", "dram_memory_used": "1.0",
}  # fmt: skip


def test_the_tables_of_vela() -> None:
    """Memory is in KiB there; an operator on the CPU has no cycles."""
    row = {"Name": "a", "Original Operator": "Conv2D", "Target": "NPU", "Op Cycles": "10"}
    host = {"Name": "b", "Original Operator": "SpaceToDepth", "Target": "CPU", "Op Cycles": "0"}
    found = vela.told(SUMMARY, (vela._placed(row), vela._placed(host)), "vela", "5.2.0", "d")
    assert (found.cycles, found.clock_hz, found.memory_bytes, found.hosted) == (10.0, 5e8, 3072, ("SpaceToDepth",))
    assert vela.Answer.read(found.text()) == found


PARTS = """\
TFLite_operator,NNG Operator,SRAM Usage,Peak%,Op Cycles,Network%,NPU,MAC Count,Network%,Util%,Name
PAD,AvgPool,35984,91.8,8368.0,8.47,8368.0,16384,21.8,1.5,node_2_main
TFLite_operator,NNG Operator,SRAM Usage,Peak%,Op Cycles,Network%,NPU,MAC Count,Network%,Util%,Name
RESHAPE,Memcpy,19600,50.0,0.0,0.0,0.0,0,0.0,100.0,node_6/reshape
"""
SAID = """\
CPU operators = 2 (27.3%)
   CPU: SpaceToDepth = node_3 (inputs [1, 35, 35, 16], outputs [1, 7, 7, 400])
   CPU: Conv2DBias = node_6 + node_7 (inputs [25, 7, 7, 16] [3, 3, 16, 16] [16], outputs [25, 7, 7, 16])
NPU operators = 1 (72.7%)
   NPU: AvgPool = node_2_main (inputs [1, 32, 32, 16], outputs [1, 35, 35, 16])
"""


def test_the_tables_of_vela_3(tmp_path: Path) -> None:
    """Its table of layers has the head once for each part on the NPU, and nothing of the CPU, which it lists itself."""
    (tmp_path / "layers.csv").write_text(PARTS, encoding="utf-8")
    rows = vela._rows(tmp_path / "layers.csv")
    assert [(one.name, one.operator, one.target, one.cycles) for one in map(vela._placed, rows)] == [
        ("node_2_main", "PAD", "NPU", 8368.0),
        ("node_6/reshape", "RESHAPE", "NPU", 0.0),
    ]
    assert [(one.name, one.operator, one.target, one.cycles) for one in vela._on_the_cpu(SAID)] == [
        ("node_3", "SpaceToDepth", "CPU", 0.0),
        ("node_6 + node_7", "Conv2DBias", "CPU", 0.0),
    ]
