"""Nothing heavy is loaded before it is needed, and the package's names stay what they are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import UnionType

import pytest

import dilrewrite

PACKAGE = Path(str(dilrewrite.__file__)).parent
HEAVY = frozenset(
    {"ml_dtypes", "numpy", "onnx", "onnx_graphsurgeon", "onnxruntime", "tensorrt", "tensorrt_rtx", "torch"}
)


def heavy(modules: Iterable[str]) -> set[str]:
    """The heavy packages among loaded modules."""
    return {name.partition(".")[0] for name in modules} & HEAVY


def loaded_by(program: str) -> list[str]:
    """The modules that a fresh Python has loaded when `program` ends."""
    watched = "import atexit, json, sys\natexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n"
    done = subprocess.run(
        [sys.executable, "-c", watched + program], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


LIGHT = {
    "import dilrewrite": "import dilrewrite",
    "--help": "from dilrewrite.cli import main; assert main(['--help']) == 0",
    "--version": "from dilrewrite.cli import main; assert main(['--version']) == 0",
    "optimize --help": "from dilrewrite.cli import main; assert main(['optimize', '--help']) == 0",
    "wrong usage": "from dilrewrite.cli import main; assert main(['optimize', '--nonsense']) == 2",
}


@pytest.mark.parametrize("program", LIGHT.values(), ids=LIGHT.keys())
def test_light(program: str) -> None:
    modules = loaded_by(program)
    assert "dilrewrite" in modules
    assert heavy(modules) == set()


def test_the_installed_command_is_light(tmp_path: Path) -> None:
    """The console script itself, with an import hook that forbids what is heavy."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {sorted(HEAVY)!r}:\n"
        "            raise SystemExit('forbidden: ' + name)\n"
        "sys.meta_path.insert(0, Forbid())\n"
    )
    script = Path(sys.executable).parent / "dilrewrite"
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments in (["--help"], ["optimize", "--help"], ["--version"]):
        done = subprocess.run(
            [script, *arguments], capture_output=True, text=True, check=False, timeout=60, env=environment
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [script, "backends"], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert "forbidden: " in done.stderr, "the hook does forbid"


def test_the_check_notices() -> None:
    """The test of the test: what loads onnx is called heavy, by name and in a real process."""
    assert heavy(["dilrewrite", "onnx.helper"]) == {"onnx"}
    assert heavy(["dilrewrite", "onnxruntime", "numpy._core"]) == {"onnxruntime", "numpy"}
    assert heavy(["dilrewrite", "onnxish", "my.onnx"]) == set()
    assert {"onnx", "numpy"} <= heavy(loaded_by("import dilrewrite.commands.optimize"))


def test_a_command_loads_no_runtime() -> None:
    assert heavy(
        loaded_by("import dilrewrite.commands.optimize; from dilrewrite.reports.formats import formats; formats()")
    ) <= {
        "ml_dtypes",
        "numpy",
        "onnx",
    }


def test_strategies_load_no_onnx() -> None:
    assert "onnx" not in heavy(loaded_by("from dilrewrite.forms.strategies import strategies; strategies()"))


def imports(path: Path) -> set[str]:
    """The packages that a file imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    "file", sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")), ids=str
)
def test_what_a_file_may_import(file: str) -> None:
    found = imports(PACKAGE / file)
    assert not found & {"onnxruntime", "tensorrt", "tensorrt_rtx", "torch", "onnx_graphsurgeon"}
    if file == "forms/geometry.py":
        assert found <= set(sys.stdlib_module_names)
    if file.startswith("forms/") or file == "choice/choose.py":
        assert "onnx" not in found


# -- the package's names -------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    for name in dilrewrite.__all__:
        assert getattr(dilrewrite, name) is not None
    for name in dilrewrite._LAZY:
        assert isinstance(getattr(dilrewrite, name), type | UnionType)
        assert name in dir(dilrewrite)
    with pytest.raises(AttributeError, match="no_such_name"):
        dilrewrite.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ["inspect", "optimize", "verify"])
def test_functions_stay_functions(name: str) -> None:
    """Importing a module of the same name must not take the function's place."""
    program = f"import dilrewrite, dilrewrite.commands.optimize\nassert callable(dilrewrite.{name}), dilrewrite.{name}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
