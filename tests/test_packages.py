"""What is packed and said about it: metadata, the wheel's and sdist's content, floors, the image, the recipe for CI."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper
from packaging.requirements import Requirement

from dilrewrite.cli import main
from tests.models_for_tests import conv1d, save

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOL = PYPROJECT["project"], PYPROJECT["tool"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

RELATIVE = re.compile(r"\]\((?!https?://|#)[^)]*\)")


def index_readme(text: str) -> str:
    """The README as a package index shows it."""
    for change in TOOL["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text


def test_no_link_is_broken_on_a_package_index() -> None:
    assert RELATIVE.search(README), "the README has links into the repository, which work in a clone"
    assert not RELATIVE.search(index_readme(README))
    assert set(re.findall(r"\]\((https?://[^)]*)\)", README)) == set(
        re.findall(r"\]\((https?://[^)]*)\)", index_readme(README))
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[docs/way.md](docs/way.md)", "`docs/way.md`"),
        ("[`way`](docs/way.md#a)", "`way`"),
        ("![a picture](docs/a.svg)", "`a picture`"),
        ("[here](https://example.org/a.md)", "[here](https://example.org/a.md)"),
        ("[above](#start)", "[above](#start)"),
        ("`[keep]` (and more)", "`[keep]` (and more)"),
    ],
)
def test_a_link_into_the_repository_becomes_its_text(text: str, shown: str) -> None:
    assert index_readme(text) == shown


def test_the_pythons_agree() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert named == [f"3.{minor}" for minor in range(int(oldest[2:]), 14)]
    assert TOOL["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert TOOL["mypy"]["python_version"] == oldest
    assert f"Python {oldest} to {named[-1]}" in README


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (ROOT / PROJECT["license-files"][0]).read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert f"Copyright 2026 {PROJECT['authors'][0]['name']}\n" in text


def sources() -> set[str]:
    """The files that git knows, where this is a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(listed.splitlines())


def test_the_sdist_has_every_file() -> None:
    """All but what only a clone needs."""
    globs = [pattern.removeprefix("/") for pattern in TOOL["hatch"]["build"]["targets"]["sdist"]["include"]]
    always = {"pyproject.toml", "LICENSE", ".gitignore"}  # hatchling adds these itself
    carried = {path for path in sources() for glob in globs if path.startswith(f"{glob}/") or Path(path).match(glob)}
    assert sources() - carried - always == set()


def test_the_image_has_what_the_wheel_is_made_of() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE) for word in line.split()}
    wheel = TOOL["hatch"]["build"]["targets"]["wheel"]
    assert copied == {
        "pyproject.toml",
        "README.md",
        *PROJECT["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert all((ROOT / name).exists() for name in copied)


def test_every_requirement_has_a_floor_that_ci_installs() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^floors\(\) \{\n.*?^\}", script, flags=re.MULTILINE | re.DOTALL)
    assert function is not None
    printed = subprocess.run(
        ["bash", "-c", f"{function.group()}\nfloors"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    needed = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"])]
    floors = {one.name: min(str(part) for part in one.specifier if part.operator == ">=") for one in needed}
    assert {f"{name}{floor.replace('>=', '==')}" for name, floor in floors.items()} <= set(printed)


# -- docs/ci.md ------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def commands(mark: str) -> list[list[str]]:
    found = re.search(rf"^<!-- {mark} -->\n```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return [shlex.split(line)[1:] for line in found[1].splitlines()]


def checked() -> int:
    """The exit code of the first command that fails, as in CI, or 0."""
    return next((code for command in commands("check") if (code := main(command))), 0)


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a model, its rewritten one and the decisions; one form is forced, as nothing is measured."""
    monkeypatch.chdir(tmp_path)
    save(conv1d(), tmp_path / "model.onnx")
    (make,) = commands("make")
    assert main([*make, "--strategy", "im2col"]) == 0
    assert "im2col" in (tmp_path / "decisions.json").read_text()
    return tmp_path


@pytest.mark.usefixtures("in_process")
class TestRecipe:
    def test_nothing_drifted(self, deployed: Path) -> None:
        assert checked() == 0
        assert (deployed / "fresh.onnx").read_bytes() == (deployed / "faster.onnx").read_bytes()
        assert checked() == 0, "a second time, with the files of the first"

    @pytest.mark.parametrize(("name", "code"), [("model", 3), ("faster", 3)])
    def test_other_weights(self, deployed: Path, name: str, code: int) -> None:
        path = deployed / f"{name}.onnx"
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
        onnx.save(model, path)
        assert checked() == code

    def test_another_dilation(self, deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = onnx.load(deployed / "model.onnx")
        (values,) = (a for node in model.graph.node for a in node.attribute if a.name == "dilations")
        values.ints[0] += 1
        onnx.save(model, deployed / "model.onnx")
        assert checked() == 2
        assert "decide again" in capsys.readouterr().err
