"""What a board sends is data: whatever else it sends is a failure of the board, and nothing of it is run."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dilrewrite import devices
from dilrewrite.devices import _arrays, _bundle, _frames


def framed(text: bytes) -> io.BytesIO:
    return io.BytesIO(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'touch x'\ntR.",  # a pickle
        b"[]",
        b"{}",
        b'{"sizes": 1}',
        b'{"sizes": [-1]}',
        b'{"sizes": [true]}',
        b'{"sizes": [1e3]}',
        b'{"sizes": [5]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message(text: bytes) -> None:
    with pytest.raises(EOFError):
        _frames.read(framed(text))


def test_a_message_that_is_too_large_is_not_read() -> None:
    with pytest.raises(EOFError, match="no message"):
        _frames.read(io.BytesIO((2**60).to_bytes(8, "little")))


def test_a_message_goes_and_comes() -> None:
    held = io.BytesIO()
    size = _frames.write(held, {"do": "x", "é": [1, None]}, [b"ab", b""])
    held.seek(0)
    message, blobs, read = _frames.read(held)
    assert (message["é"], blobs, read) == ([1, None], [b"ab", b""], size)
    with pytest.raises(EOFError):
        _frames.read(held)


@pytest.mark.parametrize(
    "plain",
    [
        [],
        None,
        {"y": 1},
        {"y": {"type": "object", "shape": [1], "bytes": 0}},
        {"y": {"type": "float32", "shape": [3], "bytes": 0}},
        {"y": {"type": "float32", "shape": [1], "bytes": 7}},
        {"y": {"type": "float32", "shape": [1], "bytes": "../x"}},
        {"y": {"texts": ["a"], "shape": [2]}},
    ],
)
def test_what_is_no_value(plain: Any) -> None:
    with pytest.raises(TypeError):
        _arrays.unpack(plain, _arrays.blobs_of([b"\0\0\0\0"]))


def test_values_go_and_come() -> None:
    blobs: list[bytes] = []
    values = {"a": np.arange(6, dtype=">i4").reshape(2, 3), "b": [np.float16(1)], "c": np.array("t", object)}
    plain = _arrays.pack(values, lambda data: blobs.append(data) or len(blobs) - 1)  # type: ignore[func-returns-value]
    got = _arrays.unpack(json.loads(json.dumps(plain)), _arrays.blobs_of(blobs))
    np.testing.assert_array_equal(got["a"], values["a"])
    assert (got["b"][0].dtype, got["b"][0].shape, got["c"].tolist()) == (np.float16, (), "t")


def test_nothing_here_unpickles() -> None:
    for place in Path(devices.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(place.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve"} & set(names), place


def test_what_goes_there_needs_nothing_but_numpy(tmp_path: Path) -> None:
    """The zip is small, and all of it is imported without onnx, ml_dtypes or typing_extensions."""
    data = _bundle.bundle(("onnxruntime_cpu",))
    assert len(data) < 60_000
    place = tmp_path / "runner.zip"
    place.write_bytes(data)
    names = [name for name in zipfile.ZipFile(place).namelist() if not name.endswith("__init__.py")]
    modules = [name.removesuffix(".py").replace("/", ".") for name in names]
    code = (
        "import sys, importlib\n"
        f"sys.path.insert(0, {str(place)!r})\n"
        "for gone in ('onnx', 'ml_dtypes', 'typing_extensions', 'google', 'typer', 'rich'): sys.modules[gone] = None\n"
        "from dilrewrite.devices import _runner\n"
        "for gone in ('ml_dtypes', 'typing_extensions'): del sys.modules[gone]\n"
        "real = importlib.import_module\n"
        "def without(name, *more):\n"
        "    if name in ('ml_dtypes', 'typing_extensions'): raise ImportError(name=name)\n"
        "    return real(name, *more)\n"
        "importlib.import_module = without\n"
        "_runner.stand_in()\n"
        f"for name in {modules!r}: real(name)\n"
        "own = [module for name, module in sys.modules.items() if name.startswith('dilrewrite.')]\n"
        "assert all(module.__file__.startswith(sys.path[0]) for module in own)\n"
    )
    environment = {"PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
