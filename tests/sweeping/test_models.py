"""Which models are meant, and what their outputs are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.sweeping import models
from tests.models_for_tests import conv1d, save, save_external


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.onnx", "a.onnx", "deep/er/a.ONNX", "a.dilrewrite.onnx", "notes.txt", "with space/c.onnx"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    return tmp_path


def shown(found: list[Path], tree: Path) -> list[str]:
    return [path.relative_to(tree).as_posix() for path in found]


def test_a_folder_means_all_below_but_no_outputs(tree: Path) -> None:
    assert shown(models.named([tree]), tree) == ["a.onnx", "b.onnx", "deep/er/a.ONNX", "with space/c.onnx"]
    assert shown(models.named([tree / "a.dilrewrite.onnx"]), tree) == ["a.dilrewrite.onnx"]


def test_a_model_counts_once_however_it_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link.onnx").symlink_to(tree / "b.onnx")
    monkeypatch.chdir(tree)
    found = models.named(["b.onnx", tree / "b.onnx", "link.onnx", "deep/../b.onnx", "*.onnx"])
    assert shown(found, tree) == ["b.onnx", "a.dilrewrite.onnx", "a.onnx"]


def test_a_pattern(tree: Path) -> None:
    assert shown(models.named([f"{tree}/**/[ac].[oO]*"]), tree) == ["a.onnx", "deep/er/a.ONNX", "with space/c.onnx"]


def test_a_name_with_magic_characters_is_the_file_of_that_name(tree: Path) -> None:
    (tree / "[ab].onnx").write_bytes(b"")
    assert shown(models.named([tree / "[ab].onnx"]), tree) == ["[ab].onnx"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("no.onnx", "no such file or folder"), ("x*.onnx", "matches no file"), ("empty", "no .onnx file is in this")],
)
def test_what_means_no_model(text: str, words: str, tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match=words):
        models.named([tree / text])


def test_names_are_no_two_alike() -> None:
    paths = ["/x/a/net.onnx", "/x/b/net.onnx", "/x/c/Net.onnx", "/x/c/other.onnx", "/y/a/net.onnx"]
    assert models.names(list(map(Path, paths))) == ["x-a-net", "b-net", "c-Net", "other", "y-a-net"]
    assert models.names([Path("/a/b-c.onnx"), Path("/a-b/c.onnx"), Path("/q/c.onnx")]) == ["b-c", "a-b-c", "q-c"]
    assert models.names([Path("/n.onnx"), Path("/n.ONNX")]) == ["n-0", "n-1"]


def test_the_key_follows_the_content_with_its_data_files(tmp_path: Path) -> None:
    path = save_external(conv1d(), tmp_path / "m.onnx")
    (data,) = (file for file in tmp_path.iterdir() if file != path)
    first = models.key(path, {"eliminate": True}, [])
    assert models.key(path, {"eliminate": True}, []) == first
    assert models.key(path, {"eliminate": False}, []) != first
    assert models.key(path, {"eliminate": True}, ["ssh://a"]) != first
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert models.key(path, {"eliminate": True}, []) != first


def test_files_are_those_that_another_machine_needs(tmp_path: Path) -> None:
    path = save_external(conv1d(), tmp_path / "m.onnx")
    sent = models.files(path)
    assert sent == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(sent) == 2
    assert list(models.files(save(conv1d(), tmp_path / "n.onnx"))) == ["n.onnx"]
