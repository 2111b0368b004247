"""The documents say what the code does: commands, examples and lists in them are run or compared."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import dilrewrite
from dilrewrite.cli import main
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal, plan
from dilrewrite.pytorch import convbench, formats
from dilrewrite.reports.formats import written
from dilrewrite.reports.report import EXIT_CODES
from dilrewrite.runtimes import backends
from dilrewrite.tensorrt.bindings import installed
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
    assert capsys.readouterr().out.startswith("kept 0 [('keep', ")
    assert (tmp_path / "decisions.json").is_file()


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
def test_the_commands_for_tensorrt_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that need a GPU say what is missing where there is none; all others are done."""
    section = README[README.index("## TensorRT") :].partition("\n## ")[0]
    commands = [line for block in blocks(section, "sh") for line in block.splitlines()]
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


REGIONS = [
    ("backends.md", "engines-regions-tensorrt_rtx", "regions"),
    ("performance.md", "regions-onnxruntime_cpu", "regions: onnxruntime_cpu"),
    ("performance.md", "regions-opencv_dnn", "regions: opencv_dnn"),
]


@pytest.mark.parametrize(("page", "results", "mark"), REGIONS, ids=[results for _, results, _ in REGIONS])
def test_the_tables_of_regions_are_those_of_the_results(page: str, results: str, mark: str) -> None:
    marks = rf"^<!-- {mark} -->\n(\|.*?)^<!-- /{mark} -->"
    shown, made = (
        re.search(marks, path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for path in (ROOT / "docs" / page, ROOT / "benchmarks" / "results" / f"{results}.md")
    )
    assert shown is not None
    assert made is not None
    assert shown[1] == made[1], f"docs/{page}: copy the table from benchmarks/results/{results}.md"
    assert "FAILED" not in shown[1]


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    """benchmarks/convbench_summary.py, which is no part of the package."""
    path = ROOT / "benchmarks" / "convbench_summary.py"
    spec = importlib.util.spec_from_file_location("convbench_summary", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_training_are_those_of_the_results(summary: ModuleType) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, text in summary.tables().items():
        found = summary.shown(page, name)
        assert found is not None, f"docs/training.md has no markers of the table {name}"
        assert found.group() == text, f"docs/training.md, {name}: run `python benchmarks/convbench_summary.py`"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_training_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "python")
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
    for form in formats.FORMATS:
        monkeypatch.setitem(formats.FORMATS, form, lambda _result: "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    commands = [
        line.partition("#")[0]
        for text in (README, (ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
        for block in blocks(text, "sh")
        for line in block.splitlines()
        if line.startswith("dilrewrite convbench")
    ]
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert len(ran) == 5, "one lists only"


TABLES = {
    ("README.md", "`--strategy`"): "write by hand: | `NAME` | what it does |",
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
    """In the README and, where what makes them is installed, in the tables of layers and of PyTorch's methods."""
    row("README.md", "`--strategy`", name)
    if installed("tensorrt-rtx") and name not in ("keep", "tap_prune"):  # what all is compared with, and no case in it
        row("docs/backends.md", "form", name)
    if importlib.util.find_spec("torch") is not None:
        row("docs/training.md", "method", name)


def test_every_form_of_a_region_has_its_row_and_no_row_is_left_over() -> None:
    regional = {path.stem for path in (ROOT / "dilrewrite" / "forms" / "regions").glob("[!_]*.py")}
    assert regional <= set(rows("README.md", "`--strategy`")) <= {*OWN, *regional}


def test_every_option_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        word
        for line in README.splitlines()
        if "pip install" not in line
        for word in re.findall(r"--[a-z][a-z-]*", line)
    }
    shown = set()
    for command in ([], ["inspect"], ["optimize"], ["bench"], ["verify"], ["build"], ["convbench"], ["backends"]):
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


def test_links_lead_somewhere() -> None:
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "models" / "README.md",
    ):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
