"""`scripts/train_step.py`: the steps are timed, and the losses of the rewritten net are those of the original."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dilrewrite.pytorch.chosen import choose

torch = pytest.importorskip("torch", reason="torch is not installed: the script trains in it")

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_step.py"
TINY = ["--size", "tiny", "--seconds", "0.2", "--budget", "0.2"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; scripts are not on the path."""
    torch.set_num_threads(1)
    name = "_train_step_script"
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("net", ["convtasnet", "highres3d", "aspp16", "aspp8", "plain2d"])
def test_it_tells_steps_and_losses(
    net: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert script.main(["--net", net, *TINY, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "steps per second" in out
    assert "losses of 20 steps in float64" in out
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["net"] == net
    assert figures["losses_apart"] <= 1e-9
    assert figures["step"]["low"] <= figures["step"]["ratio"] <= figures["step"]["high"]
    assert figures["layers"]


@pytest.mark.parametrize("net", ["convtasnet", "highres3d", "aspp16", "aspp8", "plain2d"])
@pytest.mark.parametrize("method", ["tap_sum", "space_to_batch"])
def test_the_losses_of_every_net_are_the_same(net: str, method: str, script: ModuleType) -> None:
    """With a form in place of every Conv with a dilation, whatever timings would say."""
    case = script.CASES["tiny"][net]
    torch.manual_seed(1)
    original, rewritten = case.make(), case.make()
    rewritten.load_state_dict(original.state_dict())
    x = torch.randn(case.shape)
    seen: dict[str, Any] = {}
    for name, layer in rewritten.named_modules():
        if getattr(layer, "dilation", None) and max(layer.dilation) > 1:
            layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].shape}))
    target = torch.zeros_like(rewritten.eval()(x))
    rewritten.train()
    for name, shape in seen.items():
        layer = rewritten.get_submodule(name)
        choose(layer, shape, method)
        assert layer._conv_forward.choice(shape) == method
    assert seen
    before, after = (script.losses(module, x, target) for module in (original, rewritten))
    assert len(before) == 20
    assert len(set(before)) == 20, "it learns"
    assert script.furthest(before, after) <= 1e-9


def test_other_losses_are_noticed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = iter([[1.0] * 20, [1.0] * 19 + [1.0 + 1e-8]])
    monkeypatch.setattr(script, "losses", lambda *_: next(curves))
    assert script.main(["--net", "plain2d", *TINY]) == 1
