"""A strategy of somebody else's package, CONTRIBUTING's example, goes through every test that goes through all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_discover import installed
from tests.test_docs import blocks

ROOT = Path(__file__).resolve().parents[3]

FOLDERS = ("forms", "splice", "pytorch/test_methods.py", "pytorch/test_fragments.py", "pytorch/test_rewriting.py")
FILES = ("proof/test_prove.py", "cli/test_optimize.py", "tensorrt/test_make.py")
ITERATING = (
    "cli/test_inspect.py",
    "choice/test_choose.py::test_every_form_applies_or_refuses",
    "model/test_stale_shapes.py::test_demo_models_keep_their_forms",
)
"""Tests that go through the strategies inside, and have no name of one in their own."""


def passed(folder: Path, *arguments: str) -> int:
    """How many tests of these pass with what is in the folder; none fails."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    given["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
        env=given,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (count,) = re.findall(r"(\d+) passed", done.stdout)
    return int(count)


def test_a_strategy_dropped_into_a_folder_is_held_to_all_that_strategies_promise(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    full = pytestconfig.option.full
    (example,) = blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python")
    (tmp_path / "their_strategy.py").write_text(example, encoding="utf-8")
    installed(tmp_path, "their-strategies", "dilrewrite.strategies", {"swap_demo": "their_strategy:STRATEGY"})
    grid = ["--full"] if full else []
    assert passed(tmp_path, *FOLDERS, *FILES, *grid, "-k", "swap_demo") > (1000 if full else 300)
    assert passed(tmp_path, *ITERATING) > 10
