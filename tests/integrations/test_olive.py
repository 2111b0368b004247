"""The pass for Olive, run by Olive's own workflows. `bash scripts/integrations.sh` installs Olive and runs this."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

import dilrewrite
from tests import models_for_tests as tiny

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("olive", reason="olive-ai is not installed")
    from olive.exception import OlivePassError
    from olive.hardware import AcceleratorSpec, Device
    from olive.model import HfModelHandler, ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.workflows import run

    from dilrewrite.integrations.olive import BACKENDS, DilatedConvPass, package_config
    from dilrewrite.runtimes import backends

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a workflow of this pass alone in an empty folder, and returns what Olive returns."""
    monkeypatch.chdir(tmp_path)

    def call(model: str, before: dict[str, Any] | None = None, **options: Any) -> Any:
        passes = {**(before or {}), "dilation": {"type": "DilatedConvPass", **options}}
        config = {"input_model": {"type": "ONNXModel", "model_path": model}, "passes": passes, "output_dir": "out"}
        Path("workflow.json").write_text(json.dumps(config))
        return run("workflow.json", package_config=package_config())

    return call


def attributes(output: Any) -> dict[str, Any]:
    found: dict[str, Any] = output.get_best_candidate().model_config["model_attributes"]["dilrewrite"]
    return found


def test_a_workflow_rewrites_a_model(workflow: Callable[..., Any], tmp_path: Path) -> None:
    """Beside a pass of Olive's own, with options of each kind."""
    tiny.save(tiny.two_convs(), tmp_path / "m.onnx")
    script = {"optimise": {"type": "OnnxPeepholeOptimizer", "onnxoptimizer_optimize": False}}
    output = workflow("m.onnx", script, strategy="im2col", only="early", shapes=["x:1x2x20"], atol=1, report="told")
    assert attributes(output) == {"status": "rewritten", "rewritten": 1, "speedup": None}
    assert [site.name for site in dilrewrite.inspect("out/model.onnx").sites] == ["late"]
    verdict = dilrewrite.verify("m.onnx", "out/model.onnx").verdict
    assert verdict is not None
    assert verdict.failures == ("metadata differ",), "Olive writes its version"
    assert (tmp_path / "told" / "report.html").is_file()


def test_a_model_that_is_kept_keeps_its_bytes(workflow: Callable[..., Any], tmp_path: Path) -> None:
    path = tiny.save(tiny.conv1d(), tmp_path / "m.onnx")
    assert attributes(workflow("m.onnx", budget=0)) == {"status": "kept", "rewritten": 0, "speedup": 1.0}
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", [{"eliminate": True}, {"budget": 0}], ids=["rewritten", "kept"])
def test_external_data_go_along(options: dict[str, Any], workflow: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tiny.save_external(tiny.two_convs(), tmp_path / "in" / "m.onnx", files=2)
    before = tiny.listing(tmp_path / "in")
    workflow("in/m.onnx", **options)
    (made,) = (tmp_path / "out").glob("**/*.onnx")
    tensors = onnx.load(made, load_external_data=False).graph.initializer
    assert any(tensor.external_data for tensor in tensors) or options != {"budget": 0}
    assert dilrewrite.verify("in/m.onnx", made).status == "equal"
    assert tiny.listing(tmp_path / "in") == before


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "nonsense"}, 'strategy="nonsense": no '),
        ({"budget": -1}, "budget=-1"),
        ({"budget": "long"}, "budget"),
        ({"only": "no such node"}, "no dilated node"),
        ({"backend": "nonsense"}, "nonsense"),
    ],
    ids=str,
)
def test_wrong_options_end_the_workflow(
    options: dict[str, Any], said: str, workflow: Callable[..., Any], tmp_path: Path
) -> None:
    tiny.save(tiny.conv1d(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=said):
        workflow("m.onnx", **options)


def rewriting(target: AcceleratorSpec | None = None, **options: Any) -> Any:
    return create_pass_from_dict(DilatedConvPass, options, accelerator_spec=target)


def handler(proto: ModelProto, path: Path, **more: Any) -> ONNXModelHandler:
    return ONNXModelHandler(model_path=str(tiny.save(proto, path)), **more)


def test_dilation_that_is_left_is_an_error_of_the_pass(tmp_path: Path) -> None:
    with pytest.raises(OlivePassError, match="ConvTranspose"):
        rewriting(eliminate=True).run(handler(tiny.transposed(), tmp_path / "m.onnx"), str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_results_that_differ_are_an_error_of_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def double(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))

    tiny.spoil(monkeypatch, double)
    with pytest.raises(OlivePassError, match=r"(?i)differ"):
        rewriting(strategy="im2col").run(handler(tiny.conv1d(), tmp_path / "m.onnx"), str(tmp_path / "out"))


def test_models_that_this_pass_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HfModelHandler is no ONNX model; put OnnxConversion before"):
        rewriting()._run_for_config(HfModelHandler.__new__(HfModelHandler), rewriting().config, str(tmp_path))
    old = tiny.conv1d()
    old.opset_import[0].version = 6
    with pytest.raises(ValueError, match="opset 6 is not supported"):
        rewriting().run(handler(old, tmp_path / "m.onnx"), str(tmp_path / "out"))
    (tmp_path / "w.npz").write_bytes(b"")
    split = handler(tiny.conv1d(), tmp_path / "n.onnx")
    split.external_initializers_file_name = "w.npz"
    with pytest.raises(ValueError, match="split off as inputs"):
        rewriting().run(split, str(tmp_path / "out"))


# -- what it offers --------------------------------------------------------------------------------------------------


def test_parameters_and_defaults_are_those_of_optimize() -> None:
    own = DilatedConvPass.default_config(AcceleratorSpec(Device.CPU))
    theirs = inspect.signature(dilrewrite.optimize).parameters
    assert {name: one.default_value for name, one in own.items()} == {
        name: list(theirs[name].default) if isinstance(theirs[name].default, tuple) else theirs[name].default
        for name in own
    }
    assert {*theirs} - {*own} == {
        *("model", "output", "force", "dry_run", "external_data"),  # of places, which Olive decides
        *("build_engine", "engine", "progress"),
    }
    assert all(one.description and "--" not in one.description for one in own.values())


def test_the_target_says_what_to_time_on(tmp_path: Path) -> None:
    assert set(BACKENDS.values()) <= set(backends())
    model = handler(tiny.conv1d(), tmp_path / "m.onnx")
    phone = AcceleratorSpec(Device.NPU, "QNNExecutionProvider")
    with pytest.raises(ValueError, match="nothing here can time models for QNNExecutionProvider; name a backend"):
        rewriting(phone).run(model, str(tmp_path / "a"))
    for number, more in enumerate(
        [{"strategy": "im2col"}, {"eliminate": True}, {"budget": 0}, {"backend": "onnxruntime_cpu"}]
    ):
        made = rewriting(phone, **{"budget": 0, **more}).run(model, str(tmp_path / str(number)))
        assert made.model_attributes["dilrewrite"]["status"] in ("kept", "rewritten")
    assert not DilatedConvPass.is_accelerator_agnostic(phone)


def test_settings_of_the_model_stay(tmp_path: Path) -> None:
    settings = {"session_options": {"intra_op_num_threads": 1}}
    model = handler(tiny.conv1d(), tmp_path / "m.onnx", inference_settings=settings, model_attributes={"mine": 1})
    made = rewriting(strategy="im2col").run(model, str(tmp_path / "out"))
    assert made.inference_settings == settings
    assert made.model_attributes["mine"] == 1


def test_the_package_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("dilrewrite.integrations.olive", run_name="__main__")
    printed = json.loads(capsys.readouterr().out)
    assert printed == package_config()
    assert {"OnnxConversion", "DilatedConvPass"} <= set(printed["passes"])


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "integrations.md").read_text(encoding="utf-8")
    example = re.search(r"^<!-- olive -->\n```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert example is not None
    shutil.copy(root / "models" / "causal_tcn.onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    Path("workflow.json").write_text(example[1].replace('"budget": 60', '"eliminate": true, "budget": 0'))
    run("workflow.json", package_config=package_config())
    assert dilrewrite.verify("model.onnx", "faster/model.onnx").status == "equal"
    assert (tmp_path / "told" / "report.html").is_file()
