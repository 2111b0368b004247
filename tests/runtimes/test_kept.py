"""What runtimes built is found again by all that it depends on, by later commands too, and does not grow for ever."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from dilrewrite.runtimes import Runnable, timed_backends
from dilrewrite.runtimes._kept import folder, get, place, store, trim
from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from tests.models_for_tests import conv1d

DATA = conv1d().SerializeToString()


def test_a_place_is_of_the_model_and_of_what_else_it_depends_on(tmp_path: Path) -> None:
    first = place(tmp_path, Runnable(model=DATA), ["fp16", [["x", [1, 2]]]])
    assert first == place(tmp_path, Runnable(model=DATA), ["fp16", [["x", [1, 2]]]])
    others = [
        place(tmp_path, Runnable(model=DATA), ["fp16", [["x", [1, 3]]]]),
        place(tmp_path, Runnable(model=conv1d(kernel=5).SerializeToString()), ["fp16", [["x", [1, 2]]]]),
        place(tmp_path, Runnable(model=b"no model"), ["fp16", [["x", [1, 2]]]]),
    ]
    assert len({first, *others}) == 4
    assert first.parent == tmp_path


@pytest.mark.parametrize("by_path", [False, True])
def test_weights_in_a_file_that_changed_are_another_model(tmp_path: Path, by_path: bool) -> None:
    file = tmp_path / "m.onnx"
    onnx.save_model(conv1d(), file, save_as_external_data=True, location="w.bin", size_threshold=0)
    runnable = Runnable(model=file) if by_path else Runnable(model=file.read_bytes(), folder=tmp_path)
    first = place(tmp_path, runnable, "a")
    assert place(tmp_path, runnable, "a") == first
    os.utime(tmp_path / "w.bin", ns=(1, 1))
    assert place(tmp_path, runnable, "a") != first


def test_another_installation_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = timed_backends()["onnxruntime_cpu"]
    first = folder(tmp_path, runtime)
    assert first.name.startswith("onnxruntime_cpu-")
    monkeypatch.setattr(OnnxRuntimeCpu, "versions", lambda _: {"onnxruntime": "99"})
    second = folder(tmp_path, runtime)
    monkeypatch.setattr(OnnxRuntimeCpu, "device", lambda _: "another")
    assert len({first, second, folder(tmp_path, runtime)}) == 3


def test_what_is_put_is_there_and_what_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"
    assert get(path) is None
    store(path, b"built")
    assert get(path) == b"built"
    assert [file.name for file in path.parent.iterdir()] == ["down"]
    store(path / "below", b"no folder")
    assert get(path) == b"built"


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        store(tmp_path / name, bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    get(tmp_path / "old")  # used now
    trim(tmp_path, 250)
    assert {file.name for file in tmp_path.iterdir()} == {"new", "old"}
    trim(tmp_path, 50)
    assert list(tmp_path.iterdir()) == []
    trim(tmp_path / "nowhere")
