"""RKNN by its toolkit's estimate: what the toolkit answered is on record, and asked anew where it is installed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.judges import Judge
from dilrewrite.runtimes import (
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    TimedOut,
    TimeKind,
    TimeUnit,
    prepared,
    rknn,
    timed_backend,
)
from dilrewrite.runtimes import _rknn as kit
from tests.models_for_tests import build
from tests.runtimes import judged_rknn
from tests.runtimes.judged_rknn import MODELS, PLATFORMS, dilated, form, recorded

NEW, OLD = "2.5.0", "2.3.2"
FEEDS: Mapping[str, Any] = {"x": np.zeros((1, 16, 48, 48), np.float32)}


def answer(name: str, platform: str = "rk3588", version: str = NEW) -> kit.Answer:
    said = recorded()[kit.digest(MODELS[name][0]()), platform, version]
    assert isinstance(said, kit.Answer), said
    return said


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The toolkit as it was recorded, and the platforms that it was asked about."""
    seen: list[str] = []

    def ask(judge: Judge, model: bytes, platform: str, timeout_s: float) -> kit.Answer:
        assert timeout_s > 0
        seen.append(f"{platform} {judge.version}")
        said = recorded()[kit.digest(model), platform, judge.version]
        if isinstance(said, str):
            raise CannotLoad(said)
        return said

    monkeypatch.setattr(kit, "ask", ask)
    monkeypatch.setattr(Judge, "missing", lambda _: None)
    rknn._asked.cache_clear()
    return seen


def test_what_is_on_record_was_asked_of_these_versions() -> None:
    """Of each model, platform and version, with the command and the digest of what is written today."""
    wanted = {
        (kit.digest(make()), platform, version)
        for make, platforms in MODELS.values()
        for platform in platforms
        for version in rknn.TOOLKITS
    }
    assert wanted == set(recorded()), (
        "another model is written than was asked about: scripts/record_judges.py asks anew"
    )
    for (_, platform, version), one in recorded().items():
        if isinstance(one, kit.Answer):
            assert (one.version, one.command) == (version, kit.command(platform))


@pytest.mark.parametrize("version", rknn.TOOLKITS)
def test_the_toolkit_answers_as_it_did(version: str) -> None:
    judge = rknn.TOOLKITS[version]
    missing = judge.missing()
    if missing is not None:
        pytest.skip(missing)
    for name in ("d=4", "d=4, space to batch"):
        assert kit.ask(judge, MODELS[name][0](), "rk3588", 120.0) == answer(name, version=version), name
    with pytest.raises(CannotLoad, match=r"^RKNN-Toolkit2 does not compile it: [^\n]+$"):
        kit.ask(judge, MODELS["unheard"][0](), "rk3588", 120.0)


def test_what_the_answers_say() -> None:
    """2.5.0 cuts some Convs in two; layout operators have no cycles, strided Slice and SpaceToDepth are on the CPU."""
    assert answer("d=4").hosted == answer("d=4, im2col").hosted == ()
    assert set(answer("d=4, slice to batch").hosted) == {"Slice"}
    assert "SpaceToDepth" in answer("d=4, space to batch").hosted
    assert answer("d=4, im2col").uncounted_kb > 10 * answer("d=4").uncounted_kb
    assert all(one.cycles == 0 for one in answer("d=4, space to batch").operators if one.target != kit.NPU)
    assert "Gather" in {one.operator for one in answer("depthwise, d=40").operators}
    assert all(
        isinstance(recorded()[kit.digest(MODELS["unheard"][0]()), "rk3588", version], str) for version in (NEW, OLD)
    )


def test_the_cycles_of_a_kb_are_those_that_the_toolkit_counts() -> None:
    """For what Convs read and write, on every platform, by both versions; int8 where float16 is refused."""
    for platform in PLATFORMS:
        for version in rknn.TOOLKITS:
            (row,) = answer("quantised" if platform.startswith("rv110") else "undilated", platform, version).operators
            rate = row.memory_cycles / row.moved_kb  # the table rounds the KB
            assert rate == pytest.approx(kit.CYCLES_PER_KB[platform], rel=0.02), platform


def runnable(proto: onnx.ModelProto) -> Runnable:
    return Runnable(model=proto.SerializeToString())


def test_a_model_is_asked_about_once(asked: list[str]) -> None:
    for _ in range(3):
        prepared(timed_backend("rknn"), runnable(dilated(4)), FEEDS)
    prepared(timed_backend(f"rknn:toolkit={OLD}"), runnable(dilated(4)), FEEDS)
    assert asked == [f"rk3588 {NEW}", f"rk3588 {OLD}"]


@pytest.mark.usefixtures("asked")
def test_a_form_on_the_cpu_is_objected_to() -> None:
    """Fewer cycles are no gain where operators went to the CPU, which has none."""
    backend = timed_backend("rknn")
    bench = backend.bench(Options())
    for key, proto in {
        "keep": dilated(4),
        "batch": form(dilated(4), "space_to_batch"),
        "im2col": form(dilated(4), "im2col"),
    }.items():
        bench.add(key, prepared(backend, runnable(proto), FEEDS), FEEDS)
    said = bench.objection("keep", "batch")
    assert said is not None
    assert said.startswith("RKNN-Toolkit2 moves operators to the CPU, which has no cycles in its estimate: ")
    assert "1 SpaceToDepth" in said
    assert bench.objection("batch", "keep") is None
    assert bench.objection("keep", "im2col") is None
    assert bench.peak_bytes("keep") == round(answer("d=4").memory_kb * 1024) > 0
    with pytest.raises(CannotRun, match="runs nothing"):
        bench.outputs("keep")


@pytest.mark.usefixtures("asked")
def test_what_has_no_cycles_counts_what_it_moves() -> None:
    """The toolkit counts none for copies: im2col would win by that alone."""
    backend = timed_backend("rknn")
    bench = backend.bench(Options())
    bench.add("form", prepared(backend, runnable(form(dilated(4), "im2col")), FEEDS), FEEDS)
    (seconds,) = bench.run(["form"])
    one = answer("d=4, im2col")
    assert seconds * 1e9 == pytest.approx(one.cycles + one.uncounted_kb * kit.CYCLES_PER_KB["rk3588"])
    profile = bench.profile("form", 1)
    assert sum(node.seconds for node in profile.nodes) == pytest.approx(seconds)
    assert {node.provider for node in profile.nodes} == {"NPU"}


@pytest.mark.usefixtures("asked")
def test_a_refusal_is_the_reason() -> None:
    with pytest.raises(CannotLoad, match=r"."):
        prepared(timed_backend("rknn"), runnable(judged_rknn.unheard()), {"x": np.zeros((1, 2), np.float32)})


def test_an_error_that_the_toolkit_passes_over_is_an_objection() -> None:
    bench = rknn._Answers(1.0)
    good = answer("d=4")
    bench._held = {"keep": good, "form": dataclasses.replace(good, doubts=("Unkown op target: 0",))}
    assert bench.objection("keep", "form") == "RKNN-Toolkit2 reports an error, and goes on: Unkown op target: 0"
    assert bench.warnings() == ("Unkown op target: 0",)
    assert bench.objection("form", "keep") is None


TABLE = """\
\x1b[1;33mW\x1b[0m \x1b[1;33mload_onnx: something\x1b[0m
D RKNN: [16:24:56.710] ID   OpType             DataType Target InputShape            OutputShape      Cycles(DDR/NPU/Total)    SparseRatio  RW(KB)       FullName
D RKNN: [16:24:56.710] 0    InputOperator      FLOAT16  CPU    \\                     (1,32,96,96)     0/0/0                                 0            InputOperator:x
D RKNN: [16:24:56.710] 1    Split              FLOAT16  NPU    (1,32,96,96),(2)      (1,16,96,96),... 0/0/0                                 576          Split:x_split
D RKNN: [16:24:56.710] 2    ConvAdd            INT8     NPU    (1,16,96,96),...      (1,32,96,96)     62729/165888/165888      0%           873          Conv:site_ConvAdd
D RKNN: [16:24:56.710] 3    Slice              FLOAT16  CPU    (1,32,96,96)          (1,32,48,96)     0/0/0                                 576          Slice:s
E RKNN: [16:24:56.710] Unkown op target: 0
D RKNN: [16:24:56.710] Total Internal Memory Size: 1728KB
D RKNN: [16:24:56.710] Total Weight Memory Size: 20.0625KB
"""  # noqa: E501 - as the toolkit writes it


def test_the_table_of_the_toolkit() -> None:
    lines = [kit._plain(line) for line in TABLE.splitlines()]
    operators = tuple(kit._operators(lines))
    assert operators == (
        kit.Placed(name="x_split", operator="Split", target="NPU", cycles=0, memory_cycles=0, moved_kb=1152.0),
        kit.Placed(
            name="site_ConvAdd",
            operator="ConvAdd",
            target="NPU",
            cycles=165888,
            memory_cycles=62729,
            moved_kb=873 + 288,
        ),
        kit.Placed(name="s", operator="Slice", target="CPU", cycles=0, memory_cycles=0, moved_kb=576 + 288),
    )
    found = kit.told(lines, operators, "rk3576", NEW, "d")
    assert (found.cycles, found.uncounted_kb, found.hosted) == (165888, 1152.0, ("Slice",))
    assert (found.memory_kb, found.doubts) == (1748.0625, ("Unkown op target: 0",))
    assert kit.Answer.read(found.text()) == found


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes a program stand for the toolkit's Python; the judge that it is of."""

    def make(program: str) -> Judge:
        file = tmp_path / "python"
        file.write_text(f"#!{sys.executable}\n{program}\n", encoding="utf-8")
        file.chmod(0o755)
        monkeypatch.setattr(Judge, "python", property(lambda _: file))
        return rknn.TOOLKITS[NEW]

    return make


SAYS = """
import pathlib, sys
for line in sys.stdin:
    pathlib.Path(line.split()[1], "said.txt").write_text({0!r})
    print({1}, flush=True)
"""


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        (SAYS.format("", -11), Crashed, "RKNN-Toolkit2 ended with SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", Crashed, "RKNN-Toolkit2 ended with SIGKILL"),
        ("import time; time.sleep(60)", TimedOut, "RKNN-Toolkit2 has no answer within 2 s"),
        ("import subprocess; subprocess.run(['sleep', '60'])", TimedOut, "RKNN-Toolkit2 has no answer within 2 s"),
        ("import nothing_of_this_name", CannotLoad, "RKNN-Toolkit2 cannot be started: ModuleNotFoundError: No module "),
        (SAYS.format("", 0), CannotLoad, "RKNN-Toolkit2 does not compile it: no word"),
        (
            SAYS.format("\033[1;31mE\033[0m build: not support do_quantization = False!", 1),
            CannotLoad,
            "RKNN-Toolkit2 does not compile it: build: not support do_quantization = False!",
        ),
        (
            SAYS.format("E build: Traceback (most recent call last):\nValueError: Unsupport onnx opset 21", 1),
            CannotLoad,
            "RKNN-Toolkit2 does not compile it: ValueError: Unsupport onnx opset 21",
        ),
    ],
)
def test_how_a_compiler_fails(child: Any, program: str, error: type[Exception], said: str) -> None:
    """It crashes, hangs (with a process of its own), cannot start, or says why in colours; the next one starts anew."""
    for _ in range(2):
        with pytest.raises(error) as raised:
            kit.ask(child(program), b"", "rk3588", 2.0)
        assert str(raised.value).startswith(said)
    kit._close()


def test_a_newer_opset_is_made_older() -> None:
    old = onnx.load_model_from_string(kit.readable(dilated(4, opset=21)))
    assert (old.opset_import[0].version, old.ir_version) == (19, 8)
    assert [node.name for node in old.graph.node] == ["site"]
    newest = build([onnx.helper.make_node("Gelu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, opset=20)
    with pytest.raises(CannotLoad, match="it takes opset 19, this model has 20: "):
        kit.readable(newest)


def test_an_empty_torch_is_imported() -> None:
    """Where PyTorch is not installed: classes to inherit from, decorators that do nothing, arrays that say it."""
    code = """
import runpy, sys
child = runpy.run_path(sys.argv[1], run_name="child")
sys.meta_path.insert(0, child["_Empty"])
import torch, torch.nn.functional as F
from torch.utils.data import Dataset
class Own(torch.nn.Module): pass
@torch.no_grad()
def three(): return 3
print(three(), torch.__spec__.loader.__class__.__name__)
try: torch.from_numpy(3).reshape(1)
except ImportError as error: print(error)
"""
    file = Path(kit.__file__).with_name("_rknn_child.py")
    done = subprocess.run([sys.executable, "-I", "-c", code, file], capture_output=True, text=True, check=False)
    said = "the toolkit needs PyTorch for this model: install torch in its environment"
    assert (done.stdout, done.stderr) == (f"3 _Empty\n{said}\n", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rknn:platform=rk1", "platform=rk1 is not one of rk3588, "),
        ("rknn:dtype=bf16", "dtype=bf16 is not one of fp16, int8"),
        ("rknn:toolkit=1.0", "toolkit=1.0 is not one of 2.5.0, 2.3.2"),
    ],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        timed_backend(text)


def test_without_the_toolkit_the_command_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DILREWRITE_JUDGES", str(tmp_path))
    said = "rknn-toolkit2 2.5.0 is not installed: dilrewrite targets install-judge rknn-toolkit2"
    assert rknn.BACKEND.missing() == said
    assert rknn.Rknn(toolkit=OLD).missing() == (
        "rknn-toolkit2 2.3.2 is not installed: dilrewrite targets install-judge rknn-toolkit2-2.3.2"
    )


def test_optimize_keeps_what_no_form_beats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a stand-in for the toolkit: a tap costs as much as a copy of the input, SpaceToDepth is on the CPU."""

    def ask(judge: Judge, model: bytes, platform: str, timeout_s: float) -> kit.Answer:
        assert timeout_s > 0
        placed = []
        for node in onnx.load_model_from_string(model).graph.node:
            hosted = node.op_type in ("SpaceToDepth", "DepthToSpace", "Slice")
            dear = any(each.name == "dilations" and max(each.ints) > 1 for each in node.attribute)
            cycles = (900 if dear else 100) if node.op_type == "Conv" else 0
            moved = 2.0 if node.op_type != "Conv" else 0.0
            target = "CPU" if hosted else "NPU"
            placed.append(
                kit.Placed(
                    name=node.name, operator=node.op_type, target=target, cycles=cycles, memory_cycles=0, moved_kb=moved
                )
            )
        return kit.Answer(
            operators=tuple(placed), memory_kb=1.0, command=kit.command(platform), version=judge.version, digest=""
        )

    monkeypatch.setattr(kit, "ask", ask)
    monkeypatch.setattr(Judge, "missing", lambda _: None)
    onnx.save(dilated(4), tmp_path / "m.onnx")
    report = dilrewrite.optimize(
        tmp_path / "m.onnx", tmp_path / "n.onnx", backend="rknn", budget=60, report=tmp_path / "reports", no_cache=True
    )
    assert report.measurement is not None
    assert (report.measurement.source, report.measurement.unit) == (TimeKind.ESTIMATED, TimeUnit.CYCLES)
    (site,) = report.sites
    made = {node.op_type for node in onnx.load(tmp_path / "n.onnx").graph.node}
    assert not made & {"SpaceToDepth", "DepthToSpace", "Slice"}, "a form on the CPU was taken"
    (batch,) = (one for one in site.candidates if one.strategy == "space_to_batch")
    assert "RKNN-Toolkit2 moves operators to the CPU" in f"{batch.outcome} {batch.cause}"
    text = (tmp_path / "reports" / "report.md").read_text(encoding="utf-8")
    assert "RKNN-Toolkit2's estimate" in text
    assert json.loads((tmp_path / "reports" / "report.json").read_text())["measurement"]["unit"] == "cycles"


def test_no_model_on_record_got_worse() -> None:
    """As docs/devices.md says: no operator more on the CPU, no more cycles, without copies and with them."""
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "rknn.json"
    rows = [row for row in json.loads(file.read_text(encoding="utf-8"))["models"] if "after" in row]
    assert {row["model"] for row in rows} >= {path.stem for path in (file.parents[2] / "models").glob("*.onnx")}
    for row in rows:
        before, after = row["before"], row["after"]
        assert not Counter(after["on_the_cpu"]) - Counter(before["on_the_cpu"]), row["model"]
        assert after["cycles"] <= before["cycles"], row["model"]
        assert after["estimate"] <= before["estimate"], row["model"]
        assert set(after["doubts"]) <= set(before["doubts"]), row["model"]
