"""dilrewrite backends: what is ready and how to install what is not."""

from __future__ import annotations

import json

import onnxruntime
import pytest

from dilrewrite.runtimes import backends
from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from tests.models_for_tests import cli, uninstalled


def test_lists_every_backend_with_versions(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli(capsys, "backends", "--json")
    found = {entry["name"]: entry for entry in json.loads(outcome.out)}
    assert list(found) == list(backends())
    assert found["onnxruntime_cpu"]["missing"] is None
    assert found["onnxruntime_cpu"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert set(found["reference"]["versions"]) == {"onnx", "numpy"}


def test_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cli(capsys, "backends").out.splitlines()
    assert [line.split()[0] for line in lines] == list(backends())
    assert f"ready: onnxruntime {onnxruntime.__version__}" in next(line for line in lines if "onnxruntime_cpu" in line)


def test_tells_how_to_install_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeCpu, "versions", lambda self: pytest.fail("it loads what is missing"))  # noqa: ARG005
    uninstalled(monkeypatch, "onnxruntime")
    outcome = cli(capsys, "backends")
    assert outcome.code == 0
    assert "onnxruntime is not installed: pip install 'dilrewrite[cpu]'" in outcome.out
    entry = next(e for e in json.loads(cli(capsys, "backends", "--json").out) if e["name"] == "onnxruntime_cpu")
    assert entry["versions"] == {}
    assert "pip install" in entry["missing"]
