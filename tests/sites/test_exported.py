"""A Conv of a model that PyTorch exported is called by its module's path, in every table and for --only and --skip."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest

import dilrewrite
from dilrewrite.reports.formats import console, formats

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript", reason="torch.onnx needs it")

NAMES = ["layers.1.conv", "layers.2.conv", "shared.conv/node_conv1d_4", "shared.conv/node_conv1d_5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net with dilated Convs in a Sequential, and one that runs twice."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 8, 3, padding=dilation, dilation=dilation)

        def forward(self, x: Any) -> Any:
            return x + torch.relu(self.conv(x))

    class Net(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(4, 8, 1)
            self.layers = nn.Sequential(*map(Block, (1, 2, 4)))
            self.shared = Block(8)

        def forward(self, x: Any) -> Any:
            return self.shared(self.shared(self.layers(self.stem(x))))

    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        program = torch.onnx.export(Net().eval(), (torch.zeros(1, 4, 64),), dynamo=True, verbose=False)
    onnx.save(program.model_proto, path)
    return path


def test_the_module_is_the_name_in_every_table(model: Path) -> None:
    report = dilrewrite.inspect(model)
    assert [site.name for site in report.sites] == NAMES
    assert [site.node for site in report.sites] == [f"node_conv1d_{number}" for number in (2, 3, 4, 5)]
    for text in (console.on_screen(report), console.to_text(report), formats()["markdown"].render(report)):
        assert "layers.1.conv" in text
        assert "main/layers" not in text
        assert "node_conv1d_2" not in text.replace("shared.conv/node_conv1d_", "")


@pytest.mark.parametrize(
    ("only", "places"),
    [
        (r"^layers\.2\.conv$", [1]),
        (r"^shared\.conv", [2, 3]),
        (r"^node_conv1d_3$", [1]),
        (r"^main/layers\.1\.conv$", [0]),
        ("^conv1d_2$", [0]),
    ],
)
def test_only_and_skip_take_the_module_and_the_node(model: Path, only: str, places: list[int], tmp_path: Path) -> None:
    done = dilrewrite.optimize(model, tmp_path / "a.onnx", only=only, strategy="im2col", verify="none")
    assert [place for place, site in enumerate(done.sites) if site.action == "rewritten"] == places
    left = dilrewrite.optimize(model, tmp_path / "b.onnx", skip=only, strategy="im2col", verify="none")
    assert [place for place, site in enumerate(left.sites) if site.action == "kept"] == places
    new = [node for node in onnx.load(tmp_path / "a.onnx").graph.node if "/im2col/" in node.name]
    assert {node.name.partition("/im2col/")[0] for node in new} == {NAMES[place] for place in places}
