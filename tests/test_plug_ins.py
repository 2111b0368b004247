"""Plug-ins of somebody else's package, the examples for contributors, go through every test that goes through all."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import models_for_tests as tiny
from tests.plug_ins import EXAMPLES, PAGE, ROOT, passed
from tests.test_docs import blocks

STRATEGIES = (
    *("forms", "splice", "pytorch/test_methods.py", "pytorch/test_fragments.py", "pytorch/test_rewriting.py"),
    *("proof/test_prove.py", "cli/test_optimize.py", "tensorrt/test_make.py"),
)
ITERATING = (
    "cli/test_inspect.py",
    "choice/test_choose.py::test_every_form_applies_or_refuses",
    "model/test_stale_shapes.py::test_demo_models_keep_their_forms",
)
"""Tests that go through the strategies inside, and have no name of one in their own."""

REGISTRIES = {
    "strategy": "dilrewrite.forms.strategies:strategies",
    "region form": "dilrewrite.forms.regions:region_forms",
    "finder": "dilrewrite.sites.finders:finders",
    "operator": "dilrewrite.sites.operators:operators",
    "runtime": "dilrewrite.runtimes:timed_backends",
    "report format": "dilrewrite.reports.formats:formats",
}


def test_there_is_an_example_of_each_kind_and_no_other() -> None:
    assert EXAMPLES.keys() == REGISTRIES.keys()
    own = [example for example in EXAMPLES.values() if f"# {example.folder}{example.name}.py" in PAGE]
    assert len(blocks(PAGE, "python")) == len(own) == len(EXAMPLES) - 1, "the runtime's stands in docs/backends.md"
    (toml,) = blocks(PAGE, "toml")
    assert f'."{EXAMPLES["strategy"].group}"]\n{EXAMPLES["strategy"].name} = ' in toml
    assert toml.endswith(f':{EXAMPLES["strategy"].constant}"\n')


@pytest.mark.parametrize("kind", EXAMPLES)
def test_one_is_found_where_the_page_says(kind: str, tmp_path: Path) -> None:
    """As an entry point: by its name, after those of the package."""
    EXAMPLES[kind].install(tmp_path)
    module, function = REGISTRIES[kind].split(":")
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function}; print(*{function}())"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert EXAMPLES[kind].name in done.stdout.split()
    assert not done.stderr


@pytest.mark.parametrize("kind", EXAMPLES)
def test_one_is_a_file_that_the_package_could_have(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file of its folder, in this process."""
    module, function = REGISTRIES[kind].split(":")
    with EXAMPLES[kind].dropped(tmp_path / "folder", monkeypatch):
        assert EXAMPLES[kind].name in getattr(sys.modules[module], function)()


def test_a_strategy_is_held_to_all_that_strategies_promise(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    full = pytestconfig.option.full
    EXAMPLES["strategy"].install(tmp_path)
    grid = ["--full"] if full else []
    assert passed(tmp_path, *STRATEGIES, *grid, "-k", EXAMPLES["strategy"].name) > (1000 if full else 100)
    assert passed(tmp_path, *ITERATING, *([] if full else ["-k", "not profile"])) > 10


def test_a_strategy_that_emits_a_malformed_fragment_is_named_with_the_step(tmp_path: Path) -> None:
    right = "return builder.plain_conv(geometry)"
    wrong = "builder.plain_conv(geometry); return Tensor('nowhere', builder.x.shape)"
    example = EXAMPLES["strategy"]
    assert right in example.source
    replace(example, source=example.source.replace(right, wrong)).install(tmp_path)
    model = tiny.save(tiny.conv1d(), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "dilrewrite", "optimize", str(model), "-o", str(tmp_path / "out.onnx"), "--eliminate"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"the strategy {example.name} is broken: no step of {example.name} makes its output 'nowhere'" in line
    assert "tell its author" in line


def test_a_runtime_is_held_to_its_contract(tmp_path: Path) -> None:
    EXAMPLES["runtime"].install(tmp_path)
    assert passed(tmp_path, "runtimes/test_contract.py", "-k", EXAMPLES["runtime"].name) > 10
    assert passed(tmp_path, "runtimes/test_backends.py", "cli/test_backends.py") > 5


def test_a_report_format_is_held_to_what_formats_promise(tmp_path: Path) -> None:
    EXAMPLES["report format"].install(tmp_path)
    known_again = "reports/test_write_reports.py::test_a_report_of_before_is_known_and_replaced_and_another_file_is_not"
    own = f"{known_again}[{EXAMPLES['report format'].name}]"
    assert passed(tmp_path, own, "reports/test_write_reports.py", "cli/test_report_format.py") > 20


def test_finders_and_operators_are_in_nobodys_way(tmp_path: Path) -> None:
    """With both installed, what is found, proved and spliced of other models stays what it was."""
    for kind in ("finder", "operator"):
        EXAMPLES[kind].install(tmp_path)
    assert passed(tmp_path, "sites/test_find.py", "proof/test_exact.py", "proof/test_carve.py") > 100
