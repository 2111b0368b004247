"""Importing the package loads no torch, nor does asking for its names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "program",
    [
        "import dilrewrite.pytorch",
        "from dilrewrite.pytorch import LayerChoice, Rewriting, restore_module, rewrite_module",
        "from dilrewrite.pytorch import methods; methods.methods()",
        "import dilrewrite.pytorch\nfor _ in range(2): dilrewrite.pytorch.methods.methods()",
    ],
)
def test_torch_is_not_loaded(program: str) -> None:
    program += "\nimport json, sys; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is False
