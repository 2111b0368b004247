"""scripts/gpu_kit.py: parts that join byte for byte, what did not arrive, and a run of the kit on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "gpu_kit.py"

LIMIT = 200_000
"""Bytes of a part in these tests."""


@pytest.fixture(scope="module")
def kit_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, size: int) -> Path:
    """A wheel with a module that holds bytes which do not compress."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
        archive.writestr(f"{name}/data.bin", np.random.default_rng(0).bytes(size))
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return path


@pytest.fixture
def packed(tmp_path: Path, kit_script: ModuleType, capsys: pytest.CaptureFixture[str]) -> tuple[Path, list[Path], str]:
    """A kit in small parts: where, its wheels, and what was said."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    made = [wheel(wheels, name, size) for name, size in (("onnxruntime_gpu", 500_000), ("dilrewrite_stub", 1000))]
    kit = tmp_path / "kit"
    assert kit_script.main(["pack", str(kit), "--limit", str(LIMIT / (1 << 20)), "--wheels", str(wheels)]) == 0
    return kit, made, capsys.readouterr().out


def test_parts_are_small_and_join_byte_for_byte(
    packed: tuple[Path, list[Path], str], kit_script: ModuleType, tmp_path: Path
) -> None:
    kit, wheels, said = packed
    parts = sorted(kit.iterdir())
    assert len(parts) > 3
    assert all(sum(file.stat().st_size for file in part.iterdir()) <= LIMIT for part in parts)
    manifest = json.loads((kit / "part-01" / "kit.json").read_text(encoding="utf-8"))
    files = {file["name"]: file for file in manifest["files"]}
    assert [*files] == ["source.zip", "dilrewrite_stub-1.0-py3-none-any.whl", "onnxruntime_gpu-1.0-py3-none-any.whl"]
    there = tmp_path / "there"  # parts arrive in any order
    for part in reversed(parts):
        shutil.copytree(part, there / part.name)
    for path in wheels:
        assert kit_script.join(files[path.name], there).read_bytes() == path.read_bytes()
        assert f"MiB  {path.name}" in said
    assert all(part.name in said for part in parts)


def test_what_did_not_arrive_is_told_and_what_did_is_ready(
    packed: tuple[Path, list[Path], str], kit_script: ModuleType
) -> None:
    kit, _, _ = packed
    manifest = json.loads((kit / "part-01" / "kit.json").read_text(encoding="utf-8"))
    small, large = (
        next(f for f in manifest["files"] if f["name"].startswith(n)) for n in ("dilrewrite", "onnxruntime")
    )
    *_, before, last = large["pieces"]
    (kit / last["name"]).rename(kit / "elsewhere")
    assert kit_script.unpack(large, kit) == f"not ready: {last['name']} did not arrive"
    assert kit_script.unpack(small, kit) == "ready"
    (kit / "elsewhere").rename(kit / last["name"])
    whole = (kit / before["name"]).read_bytes()
    (kit / before["name"]).write_bytes(whole[:-1])
    assert kit_script.unpack(large, kit) == f"not ready: {before['name']} did not arrive whole: carry it again"
    (kit / before["name"]).write_bytes(whole)
    assert kit_script.unpack(large, kit) == kit_script.unpack(large, kit) == "ready"
    assert (kit / "site" / "onnxruntime_gpu" / "data.bin").stat().st_size == 500_000


@pytest.mark.parametrize(
    ("limit", "said"),
    [("65", "--limit 65: a part has more than 0 and at most 64 MiB"), ("0.01", "take a larger --limit")],
)
def test_limits(
    kit_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, said: str
) -> None:
    wheel(tmp_path, "one", 10)
    assert kit_script.main(["pack", str(tmp_path / "kit"), "--limit", limit, "--wheels", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


@pytest.mark.measures
def test_one_command_there_and_a_folder_of_results_back(packed: tuple[Path, list[Path], str], tmp_path: Path) -> None:
    """On a machine that the kit's parts are all that arrived, but for what a machine with PyTorch has."""
    kit, _, _ = packed
    last = max(kit.iterdir())
    shutil.rmtree(last)
    command = [sys.executable, str(kit / "part-01" / "gpu_kit.py"), "run", str(kit), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--minutes", "0.5", "chains", "--dry-run", "--only", "TCN", "--slice", "0.0001"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 4), done.stderr  # 4: the machine was too busy for a single row
    report = json.loads((tmp_path / "out" / "kit.json").read_text(encoding="utf-8"))
    assert report["exit_code"] == done.returncode
    assert report["files"]["source.zip"] == "ready"
    assert report["files"]["onnxruntime_gpu-1.0-py3-none-any.whl"].startswith(f"not ready: {last.name}/")
    (results,) = (tmp_path / "out").glob("gpu-dry-run-*.json")
    assert json.loads(results.read_text(encoding="utf-8"))["dry_run"]


def test_without_the_first_part_there_is_a_reason(kit_script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    assert kit_script.main(["run", str(tmp_path / "kit"), "--out", str(tmp_path / "out")]) == 1
    report = json.loads((tmp_path / "out" / "kit.json").read_text(encoding="utf-8"))
    assert report["failure"].endswith("kit.json is not there: carry part-01 first")
