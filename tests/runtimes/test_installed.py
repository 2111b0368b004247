"""What is wrong with a runtime, its packages or its settings is told in one line, and nothing is left behind."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from onnx import helper

from dilrewrite.errors import MissingError
from dilrewrite.runtimes import timed_backend
from dilrewrite.runtimes._installed import Package, numbers
from tests.models_for_tests import build, cli, conv1d, conv_node, listing, save, values
from tests.wrapped_runtime import plugged

PACKAGE = Package(module="ours", distributions=("ours", "ours-extra"), install="pip install ours", least=(1, 4))


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str], str], None]:
    """A function that has distributions of a package installed, in these versions, and no other ones of it."""
    version, find_spec = importlib.metadata.version, importlib.util.find_spec

    def have(installed: Mapping[str, str], module: str = "ours") -> None:
        def told(name: str) -> str:
            if name in installed:
                return installed[name]
            if name.split("-")[0] in (module, "opencv"):
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        def spec(name: str) -> object:
            return find_spec(name) if name != module else SimpleNamespace() if installed else None

        monkeypatch.setattr(importlib.metadata, "version", told)
        monkeypatch.setattr(importlib.util, "find_spec", spec)

    return have


@pytest.mark.parametrize(
    ("installed", "below", "told"),
    [
        ({}, (), "ours is not installed: pip install ours"),
        ({"ours": "1.3.9"}, (), "ours is 1.3.9, and 1.4 or later is needed: pip install ours"),
        ({"ours-extra": "2.0"}, (2,), "ours-extra is 2.0, and 1.4 or later, below 2, is needed: pip install ours"),
        ({"ours": "1.4"}, (2,), None),
        ({"ours": "1.10.0rc1"}, (2,), None),
        (
            {"ours": "1.4", "ours-extra": "1.4"},
            (),
            "ours and ours-extra are installed and overwrite each other: pip uninstall -y ours ours-extra, "
            "then only one of them: pip install ours",
        ),
    ],
)
def test_a_package(
    have: Callable[[Mapping[str, str]], None],
    installed: Mapping[str, str],
    below: tuple[int, ...],
    told: str | None,
) -> None:
    have(installed)
    package = Package(
        module="ours", distributions=PACKAGE.distributions, install=PACKAGE.install, least=(1, 4), below=below
    )
    assert package.missing() == told
    assert package.conflict() == (told if len(installed) > 1 else None)


def test_a_version_without_numbers() -> None:
    assert [numbers(text) for text in ("5.0.0.93", "4.6.0+dfsg", "dev")] == [(5, 0, 0, 93), (4, 6, 0), ()]


def cv2(version: str, *has: str) -> ModuleType:
    """A module that looks like OpenCV."""
    module = ModuleType("cv2")
    vars(module).update(__version__=version, **{name: SimpleNamespace() for name in has})
    return module


HEADLESS, BOTH = (
    {"opencv-python-headless": "4.14.0.94"},
    {"opencv-python-headless": "4.14.0.94", "opencv-python": "4.14.0.90"},
)
CASES: dict[str, tuple[str, Mapping[str, str], ModuleType | None, int, str]] = {
    "no package": ("opencv", {}, None, 4, "opencv-python-headless is not installed: pip install 'dilrewrite[opencv]'"),
    "too old": (
        "opencv",
        {"opencv-python": "4.6.0.66"},
        cv2("4.6.0", "dnn"),
        4,
        "opencv-python is 4.6.0.66, and 4.14 or ",
    ),
    "two of one name": (
        "opencv",
        BOTH,
        cv2("4.14.0", "dnn"),
        2,
        "pip uninstall -y opencv-python-headless opencv-python",
    ),
    "without its module": ("opencv", HEADLESS, cv2("4.14.0"), 4, "cv2 4.14.0 was built without its dnn module"),
    "broken": ("opencv", HEADLESS, None, 4, "cv2 cannot be imported: "),
    "not what was installed": ("opencv", HEADLESS, cv2("4.6.0", "dnn"), 4, "cv2 is 4.6.0, and 4.14 or later"),
    "no such engine": ("opencv:engine=new", HEADLESS, cv2("4.14.0", "dnn"), 4, "OpenCV 4.14.0 has no engine=new: pip"),
    "an unknown engine": ("opencv:engine=auto", HEADLESS, None, 2, "engine=auto is neither classic nor new"),
    "an unknown setting": ("opencv:threads=2", {}, None, 2, "no setting 'threads'; its settings: winograd=on, engine="),
    "no openvino": ("openvino", {}, None, 4, "openvino is not installed: pip install 'dilrewrite[openvino]'"),
    "an old openvino": ("openvino", {"openvino": "2024.6.0"}, None, 4, "openvino is 2024.6.0, and 2025.4 or later is"),
    "an unknown precision": ("openvino:precision=int8", {}, None, 2, "precision=int8 is not one of f32, bf16, f16"),
    "no tract": ("tract", {}, None, 4, "tract is not installed: pip install 'dilrewrite[tract]'"),
    "an old tract": ("tract", {"tract": "0.22.1"}, None, 4, "tract is 0.22.1, and 0.23 or later is needed: pip"),
    "a setting of none": ("tract:threads=2", {}, None, 2, "tract has no setting 'threads'; its settings: none"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["optimize", "bench"])
def test_what_is_installed(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    have: Callable[[Mapping[str, str], str], None],
    command: str,
    case: str,
) -> None:
    backend, installed, module, code, words = CASES[case]
    have(installed, {"opencv": "cv2"}.get(backend.partition(":")[0], backend.partition(":")[0]))
    monkeypatch.setitem(sys.modules, "cv2", module)
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, command, path, "--backend", backend)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(listing(tmp_path)) == ["m.onnx"]


@pytest.mark.measures
@pytest.mark.parametrize(("fails", "words"), [("sizes", "no more than 2 channels"), ("crash", "killed by SIGSEGV")])
def test_a_runtime_that_does_not_run_the_original(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: str, words: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    path = save(conv1d(), folder / "m.onnx")
    with plugged(tmp_path / "plug-ins"):
        outcome = cli(capsys, "optimize", path, "--backend", f"wrapped:fails={fails}", "--no-cache")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{path}: the model does not run on wrapped: " in outcome.err
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(listing(folder)) == ["m.onnx"]


@pytest.mark.measures
@pytest.mark.parametrize("name", ["opencv_dnn", "openvino_cpu", "tract"])
def test_an_operator_that_a_runtime_does_not_take(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    try:
        timed_backend(name)
    except MissingError as error:
        pytest.skip(str(error))
    nodes = [conv_node("x", "c"), helper.make_node("Binarizer", ["c"], ["y"], domain="ai.onnx.ml", threshold=0.5)]
    proto = build(nodes, {"x": [1, 2, 16]}, {"y": None}, {"w": values(2, 2, 3)}, domains=["ai.onnx.ml"])
    path = save(proto, tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--backend", name, "--no-cache")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{path}: the model does not run on {name}: " in outcome.err
    assert "Binarizer" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(listing(tmp_path)) == ["m.onnx"]
