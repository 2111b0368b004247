"""The documents say what the code does: commands, examples and lists in them are run or compared."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

import dilrewrite
from dilrewrite.cli import main
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import BACK_TO_FLOAT, PLAIN_CONV, Refusal, plan, strategies
from dilrewrite.pytorch import convbench
from dilrewrite.pytorch import formats as of_convbench
from dilrewrite.reports.formats import console, written
from dilrewrite.reports.reasons import OUTCOMES, WORDS
from dilrewrite.reports.report import EXIT_CODES
from dilrewrite.runtimes import backends
from dilrewrite.tensorrt.bindings import installed
from dilrewrite.timing.speed import speed
from tests import models_for_tests as tiny
from tests.integers import Integers, build
from tests.plug_ins import EXAMPLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["main", "tests"])
def test_ci_runs_the_commands_of_the_readme(name: str) -> None:
    """The very lines: cut out by the same shell function that CI uses."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^command_of\(\) \{\n.*?^\}", script, flags=re.MULTILINE | re.DOTALL)
    assert function is not None
    found = subprocess.run(
        ["bash", "-c", f"{function.group()}\ncommand_of {name}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    shown = re.search(rf"^<!-- {name} -->\n```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert found == shown.group(1)
    assert found.startswith("python3 -m venv .venv && ")


def test_the_main_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the installation, in a folder with the models alone."""
    (command,) = (line for line in README.splitlines() if "bin/dilrewrite optimize" in line)
    arguments = shlex.split(command.partition(".venv/bin/dilrewrite ")[2])
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--budget", "0"]) == 0
    assert (tmp_path / "faster.onnx").is_file()
    reports = {path.name for path in (tmp_path / "faster.report").iterdir()}
    assert reports == set(written())
    assert len(dilrewrite.inspect("faster.onnx").sites) == 6


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks(README, "python")
    shutil.copy(ROOT / "models" / "causal_tcn.onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec", dont_inherit=True), {})
    assert capsys.readouterr().out.startswith("kept 1.0 [('keep', ")
    assert (tmp_path / "decisions.json").is_file()


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
def test_the_commands_for_tensorrt_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that need a GPU say what is missing where there is none; all others are done."""
    page = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    commands = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert len(commands) == 7
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    ready = {name: found.missing() is None for name, found in backends().items()}
    for command in commands:
        line, _, remark = command.partition("#")
        arguments = shlex.split(line)[1:]
        wanted = 0
        if remark:
            assert remark.strip() == "needs a GPU"
            wanted = 0 if ready["tensorrt" if "tensorrt" in arguments else "tensorrt_rtx"] else 4
        assert main(arguments) == wanted, (command, capsys.readouterr().err)
        error = capsys.readouterr().err
        assert len(error.splitlines()) == bool(wanted), error
    assert (tmp_path / "splice.engine.json").is_file()


def test_the_layers_of_the_forms_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    shown = re.search(r"^<!-- layers -->\n(.*?)^<!-- /layers -->", page, flags=re.MULTILINE | re.DOTALL)
    results = (ROOT / "benchmarks" / "results" / "engines-tensorrt_rtx.md").read_text(encoding="utf-8")
    assert shown is not None
    assert shown[1] in results, f"docs/backends.md: {TABLES['docs/backends.md', 'form']}"
    assert "FAILED" not in shown[1]


COPIED = [
    ("backends.md", "engines-regions-tensorrt_rtx", "regions"),
    ("performance.md", "regions-onnxruntime_cpu", "regions: onnxruntime_cpu"),
    ("performance.md", "regions-opencv_dnn", "regions: opencv_dnn"),
    ("devices.md", "targets", "models by target"),
    ("devices.md", "targets", "forms by target"),
    ("devices.md", "ethos_u", "ethos-u models"),
]


@pytest.mark.parametrize(("page", "results", "mark"), COPIED, ids=[f"{results}, {mark}" for _, results, mark in COPIED])
def test_tables_are_those_of_the_results(page: str, results: str, mark: str) -> None:
    marks = rf"^<!-- {mark} -->\n(\|.*?)^<!-- /{mark} -->"
    shown, made = (
        re.search(marks, path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for path in (ROOT / "docs" / page, ROOT / "benchmarks" / "results" / f"{results}.md")
    )
    assert shown is not None
    assert made is not None
    assert shown[1] == made[1], f"docs/{page}: copy the table from benchmarks/results/{results}.md"
    assert "FAILED" not in shown[1]


def outside(path: Path) -> ModuleType:
    """A module that is no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    return outside(ROOT / "benchmarks" / "convbench_summary.py")


def test_the_tables_of_training_are_those_of_the_results(summary: ModuleType) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, text in summary.tables().items():
        found = summary.shown(page, name)
        assert found is not None, f"docs/training.md has no markers of the table {name}"
        assert found.group() == text, f"docs/training.md, {name}: run `python benchmarks/convbench_summary.py`"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_example_of_subclasses_says_what_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    _, example = blocks(text, "python")
    exec(compile(example, "net.py", "exec", dont_inherit=True), {"__name__": "net"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["'causal'", "'circular'", "''"]
    assert f"{lines[-1]}\n" in blocks(text, "text")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_training_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example, _ = blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "python")
    assert example.count("budget=10") == 1
    exec(compile(example.replace("budget=10", "budget=1"), "training.md", "exec", dont_inherit=True), {})
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0].startswith("1 ")


def test_the_commands_of_convbench_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(configurations: Any, setting: Any, **_: Any) -> Any:
        ran.append((configurations, setting))
        return SimpleNamespace()

    monkeypatch.setattr(convbench, "run", run)
    for form in of_convbench.FORMATS:
        monkeypatch.setitem(of_convbench.FORMATS, form, lambda _result: "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    commands = [
        line.partition("#")[0]
        for text in (README, (ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
        for block in blocks(text, "sh")
        for line in block.splitlines()
        if line.startswith("dilrewrite convbench")
    ]
    assert len(commands) == 5
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert len(ran) == 4, "one lists only"


TABLES = {
    ("docs/backends.md", "name"): "write by hand: | `NAME` | what it times on | when it is ready | never |",
    ("docs/backends.md", "form"): (
        "run `python benchmarks/engines.py`, then copy the table from benchmarks/results/engines-tensorrt_rtx.md"
    ),
    ("docs/training.md", "method"): "run `DILREWRITE_UPDATE_GOLDEN=1 pytest tests/pytorch/test_methods.py -k matrix`",
}
"""How a plug-in gets its row: by page and the head of the table's first column."""


def rows(page: str, head: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the name in the first one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    table = re.search(rf"^\| {head} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)*)", text, flags=re.MULTILINE)
    assert table is not None, f"{page}: no table whose first column is {head}"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()]
    return {first.strip("`"): [first, *others] for first, *others in cells}


def row(page: str, head: str, name: str) -> list[str]:
    """The row of a plug-in; where there is none, the message says how it is made."""
    found = rows(page, head).get(name)
    assert found is not None, f"{page}: the table with the column {head} has no row of {name}: {TABLES[page, head]}"
    return found


@pytest.mark.parametrize(("page", "head"), TABLES)
def test_a_missing_row_is_told_with_what_makes_it(page: str, head: str) -> None:
    with pytest.raises(AssertionError, match=f"^{page}: .* {head} has no row of their_own: (write by hand|run `)"):
        row(page, head, "their_own")


@pytest.mark.parametrize("name", backends())
def test_every_backend_says_whether_it_met_hardware(name: str) -> None:
    met = row("docs/backends.md", "name", name)[3]
    assert re.search(r"never|\d{4}-\d\d-\d\d|needs none", met), f"docs/backends.md: {name} met hardware: {met}"


OWN = sorted(path.stem for path in (ROOT / "dilrewrite" / "forms" / "strategies").glob("[!_]*.py"))
"""The strategies that come with the package."""


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_has_its_own_rows(name: str) -> None:
    """Where what makes them is installed, in the tables of layers and of PyTorch's methods."""
    if name not in strategies():  # only by name and for a device
        return
    if installed("tensorrt-rtx") and name not in ("keep", "tap_prune"):  # what all is compared with, and no case in it
        row("docs/backends.md", "form", name)
    if importlib.util.find_spec("torch") is not None:
        row("docs/training.md", "method", name)


def test_every_form_of_a_region_has_its_row_and_no_row_is_left_over() -> None:
    regional = {path.stem for path in (ROOT / "dilrewrite" / "forms" / "regions").glob("[!_]*.py")}
    overview = (ROOT / "docs" / "forms" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[`(\w+)`\]", overview, re.MULTILINE)) == {*OWN, *regional, BACK_TO_FLOAT}


def test_every_option_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        word
        for line in README.splitlines()
        if "pip install" not in line
        for word in re.findall(r"--[a-z][a-z-]*", line)
    }
    shown = set()
    for command in (
        [],
        ["inspect"],
        ["optimize"],
        ["bench"],
        ["verify"],
        ["build"],
        ["convbench"],
        ["backends"],
        ["demo"],
    ):
        assert main([*command, "--help"]) == 0
        shown |= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert named <= shown


def test_the_exit_codes_are_those_of_the_readme() -> None:
    line = README[README.index("- Exit codes:") :].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"\b\d+\b", line)} == {*EXIT_CODES.values(), 2, 4, 130}


def test_the_strategy_in_ten_lines_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example for contributors is a strategy: it plans, and refuses in words."""
    EXAMPLES["strategy"].install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    strategy = importlib.import_module("their_swap_demo").STRATEGY
    one = ConvGeometry(
        batch=1,
        in_channels=2,
        out_channels=2,
        group=1,
        extents=(9,),
        kernel=(3,),
        strides=(1,),
        dilations=(2,),
        pads_begin=(2,),
        pads_end=(2,),
    )
    two = ConvGeometry(
        batch=1,
        in_channels=2,
        out_channels=2,
        group=1,
        extents=(9, 9),
        kernel=(3, 3),
        strides=(1, 1),
        dilations=(2, 2),
        pads_begin=(2, 2),
        pads_end=(2, 2),
    )
    assert isinstance(plan("swap_demo", strategy, one, 17), Fragment)
    refusal = plan("swap_demo", strategy, two, 17)
    assert isinstance(refusal, Refusal)
    assert "rank 2" in refusal.reason


MADE = ("tutorial/report.html",)
"""What scripts/docs_hooks.py adds to the site."""

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, ROOT / "models" / "README.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
            place = (path.parent / target).resolve()
            assert place.exists() or place in [ROOT / "docs" / made for made in MADE], f"{path.name}: {target}"


REGIONAL = sorted(path.stem for path in (ROOT / "dilrewrite" / "forms" / "regions").glob("[!_]*.py"))
PLUG_INS = [
    *(("forms", name) for name in (*OWN, *REGIONAL, BACK_TO_FLOAT, PLAIN_CONV)),
    *(("finders", path.stem) for path in (ROOT / "dilrewrite" / "sites" / "finders").glob("[!_]*.py")),
    *(("runtimes", path.stem) for path in (ROOT / "dilrewrite" / "runtimes").glob("[!_]*.py")),
    *(("reports", path.stem) for path in (ROOT / "dilrewrite" / "reports" / "formats").glob("[!_]*.py")),
]
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]


@pytest.mark.parametrize(("folder", "name"), PLUG_INS)
def test_every_plug_in_has_a_page(folder: str, name: str) -> None:
    page = ROOT / "docs" / folder / f"{name}.md"
    assert page.is_file(), f"write docs/{folder}/{name}.md, and add it to mkdocs.yml"
    assert len(page.read_text(encoding="utf-8").splitlines()) > 8
    if folder == "forms":
        overview = (ROOT / "docs" / "forms" / "index.md").read_text(encoding="utf-8")
        assert f"[`{name}`]({name}.md)" in overview, f"docs/forms/index.md: the table has no row of {name}"


def test_no_page_is_left_over_and_every_page_is_in_the_navigation() -> None:
    known = {f"{folder}/{name}.md" for folder, name in PLUG_INS} | {"forms/index.md"}
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert {page for page in pages if "/" in page} == known
    assert sorted(re.findall(r": (\S+\.md)$", NAVIGATION, re.MULTILINE)) == sorted(pages)


def shown(page: Path, mark: str, text: str) -> None:
    """Compare a block of a page with what it has to be; with DILREWRITE_UPDATE_GOLDEN=1 write it."""
    content = page.read_text(encoding="utf-8")
    wanted = f"<!-- {mark} -->\n```text\n{text.rstrip()}\n```\n<!-- /{mark} -->"
    changed, places = re.subn(rf"<!-- {mark} -->\n.*?<!-- /{mark} -->", lambda _: wanted, content, flags=re.DOTALL)
    assert places == 1, f"{page.name} has no place marked {mark}"
    if os.environ.get("DILREWRITE_UPDATE_GOLDEN"):
        page.write_text(changed, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == changed, (
        f"docs/{page.name}, {mark}: run DILREWRITE_UPDATE_GOLDEN=1 pytest tests/test_docs.py -k shows"
    )


def conv(channels: int, *extents: int, kernel: int = 3, stride: int = 1, dilation: int, pad: int) -> onnx.ModelProto:
    """A model of one Conv, the same along each axis."""
    rank = len(extents)
    sizes = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank}
    node = tiny.conv_node("x", "y", "w", **sizes, dilations=[dilation] * rank, pads=[pad] * 2 * rank)
    weight = tiny.values(channels, channels, *[kernel] * rank)
    return tiny.build([node], {"x": (1, channels, *extents)}, {"y": None}, {"w": weight})


def chain(*extents: int, bias: bool) -> onnx.ModelProto:
    """Two dilated Convs with a Relu between them."""
    rank, weights = len(extents), {"w": tiny.values(8, 8, *[3] * len(extents)), "b": tiny.values(8)}
    sizes = {"kernel_shape": [3] * rank, "dilations": [2] * rank, "pads": [2] * 2 * rank}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"][: 2 + bias], ["first"], "first", **sizes),
        onnx.helper.make_node("Relu", ["first"], ["relu"], "relu"),
        onnx.helper.make_node("Conv", ["relu", "w"], ["y"], "second", **sizes),
    ]
    return tiny.build(nodes, {"x": (1, 8, *extents)}, {"y": None}, weights)


WRITES = {
    "lift": conv(8, 20, dilation=4, pad=4),
    "space_to_batch": conv(8, 10, 10, dilation=2, pad=2),
    "slice_to_batch": conv(8, 12, stride=2, dilation=3, pad=3),
    "space_to_axis": conv(8, 12, dilation=4, pad=4),
    "phases_apart": conv(8, 10, 10, dilation=2, pad=2),
    "space_to_group": conv(8, 10, 10, dilation=2, pad=2),
    "im2col": conv(8, 6, dilation=2, pad=2),
    "tap_sum": conv(8, 6, dilation=2, pad=2),
    "tap_zones": conv(8, 6, dilation=4, pad=4),
    "tap_prune": conv(8, 6, dilation=8, pad=8),
    "zero_fill": conv(8, 20, dilation=2, pad=2),
    "pad_out": conv(8, 10, 10, dilation=2, pad=2),
    "pad_to_multiple": conv(8, 10, 10, dilation=4, pad=4),
    "gather_im2col": conv(8, 6, 6, dilation=2, pad=2),
    "equal_dilations": conv(8, 20, dilation=4, pad=4),
    "lift_region": chain(20, bias=True),
    "phase_region": chain(9, 9, bias=True),
    BACK_TO_FLOAT: build(Integers(name="page", shape=(1, 8, 12), outputs=8, dilations=(4,), pads=(4, 4))),
}
"""What the page of a form shows before and after."""


def listed(model: onnx.ModelProto) -> str:
    """The nodes of a model, a line each: operator, what of a Conv or a Slice matters, and the shape that it makes."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: "[" + ", ".join(str(size.dim_value) for size in value.type.tensor_type.shape.dim) + "]"
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    lines = [f"{'':41}{sizes['x']}"]
    for node in graph.node:
        if node.op_type != "Constant":
            told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            facts = [f"kernel {'x'.join(map(str, told['kernel_shape']))}"] if "kernel_shape" in told else []
            facts += [f"dilation {max(told['dilations'])}"] if max(told.get("dilations", [1])) > 1 else []
            facts += [f"group {told['group']}"] if told.get("group", 1) > 1 else []
            line = f"{node.op_type:14} {', '.join(facts)}"
            lines.append(f"{line:40} {', '.join(sizes[one] for one in node.output)}")
    return "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize("name", [name for name in (*OWN, *REGIONAL, BACK_TO_FLOAT) if name != "keep"])
def test_the_page_of_a_form_shows_what_it_writes(name: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(WRITES[name], before)
    report = dilrewrite.optimize(before, after, strategy=name, verify="none", allow_requantised=name == BACK_TO_FLOAT)
    assert report.status == "rewritten"
    both = f"{listed(WRITES[name])}\n\n{name}:\n\n{listed(onnx.load(after))}"
    shown(ROOT / "docs" / "forms" / f"{name}.md", "writes", both)


TUTORIAL = ROOT / "docs" / "tutorial.md"


def test_the_readme_shows_a_screen_and_fits_a_few() -> None:
    """That of the tutorial's run; one command, one picture, and under 120 lines."""
    shown(ROOT / "README.md", "report", console.on_screen(outside(ROOT / "scripts" / "tutorial.py").recorded("report")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert len(re.findall(r"^!\[[^\]]+\]\(docs/[a-z]+\.svg\)$", text, re.MULTILINE)) == 1


WINS = {
    "splice_sites": "SpliceAI-like net",
    "pytorch_tcn_causal_dyn": "pytorch-tcn",
    "causal_tcn": "causal TCN",
    "Piper (joe, medium)": "Piper voice",
    "hifigan_vocoder": r"HiFi-GAN (?:vocoder|\(models/\))",
}
"""Models of the results, as the README and docs/performance.md begin their rows."""


@pytest.mark.parametrize("name", WINS)
@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_wins_are_those_of_the_results(name: str, page: str) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "models-onnxruntime_cpu.json").read_text(encoding="utf-8"))
    runs = [row for row in results["rows"] if row["name"] == name and row["mode"] == "default"]
    rows = rf"^\| {WINS[name]}(?!:).*(?:faster|inconclusive).*$"
    (line,) = re.findall(rows, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    told = re.findall(r"[\d.]+x \w+(?=\*\*)|inconclusive", line)
    assert told == [speed(row["fresh"]["final"]["ratio"]) if row.get("fresh") else row["status"] for row in runs]


@pytest.mark.parametrize("name", ["inspect", "report", "bench"])
def test_the_tutorial_shows_its_reports(name: str) -> None:
    """Those of its run, which are kept beside it, as one screen says them today."""
    shown(TUTORIAL, name, console.on_screen(outside(ROOT / "scripts" / "tutorial.py").recorded(name)))


def test_the_notebook_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells:
        assert not cell.get("outputs"), "clear the outputs: they are of one machine"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec", dont_inherit=True), names)
    printed = capsys.readouterr().out.splitlines()
    assert "kept 0" in printed, "nothing is measured in tests"
    assert printed[-1] == "equal"


def test_the_tutorial_was_recorded_with_its_own_commands() -> None:
    commands = [
        shlex.split(line) for block in blocks(TUTORIAL.read_text(encoding="utf-8"), "sh") for line in block.splitlines()
    ]
    for command in outside(ROOT / "scripts" / "tutorial.py").RECORDED.values():
        assert ["dilrewrite", *(word for word in command if word not in ("--force", "--no-cache"))] in commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_the_options_of_commands_in_pages_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            if line.startswith("dilrewrite "):
                command, *words = shlex.split(line.partition("#")[0])[1:]
                assert main([command, "--help"]) == 0
                known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
                used = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
                assert used <= known, f"{page.name}: {line}"


def test_the_worked_example_of_a_decision_computes_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "decision.md").read_text(encoding="utf-8")
    (example,) = blocks(page, "python")
    table = page.partition("## 2. ")[2].partition("\n## ")[0]
    for name, column in (("conv", 0), ("form", 1)):
        times = [re.findall(r"([\d.]+) ms", row)[column] for row in table.splitlines() if " ms " in row]
        assert f"{name} = [{', '.join(times)}]" in example
    exec(compile(example, "decision.md", "exec", dont_inherit=True), {})
    printed = capsys.readouterr().out.strip()
    assert f"It prints `{printed}`" in page
    assert "ratio {}, from {} to {}".format(*re.findall(r"[\d.]+", printed)) in page


def test_the_page_about_kept_models_has_the_words_of_reports() -> None:
    page = (ROOT / "docs" / "kept.md").read_text(encoding="utf-8")
    table = page.partition("## 2. Read the reason")[2].partition("\n## ")[0]
    phrases = [
        phrase
        for first in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for phrase in re.findall(r"`(.+?)`", first)
    ]
    assert len(phrases) > 10
    for phrase in phrases:
        assert any(phrase in words for words in [*WORDS.values(), *OUTCOMES.values()]), f"no reason says {phrase!r}"


def test_the_example_for_onnx_ir_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    example = re.search(r"^<!-- onnx-ir -->\n```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert example is not None
    shutil.copy(ROOT / "models" / "causal_tcn.onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(example[1].replace("budget=60", "eliminate=True, budget=0"), "integrations.md", "exec"), {})
    assert capsys.readouterr().out.startswith("True rewrote 8 of 8 dilated Convs")
    assert dilrewrite.verify("model.onnx", "faster.onnx").status == "equal"
