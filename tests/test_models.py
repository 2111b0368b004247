"""The demo models of `models/`: sound, small, anonymous, and what `scripts/export_models.py` says they are."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
README = MODELS / "README.md"

# file -> number of Conv nodes, and of those with each dilation above 1
CONVS = {
    "aspp_segmentation": (19, {2: 4, 12: 1, 24: 1, 36: 1}),
    "causal_tcn": (12, {2: 2, 4: 2, 8: 2, 16: 2}),
    "hifigan_vocoder": (56, {3: 9, 5: 9}),
    "meshnet3d": (8, {2: 1, 4: 1, 8: 1}),
    "resnet_stage_os8": (9, {2: 4, 4: 4}),
    "splice_sites": (15, {4: 2, 10: 2, 25: 2}),
}
# (model, input shape, output shape); the dynamic ones at two odd lengths
RUNS = [
    ("aspp_segmentation", (1, 3, 224, 224), (1, 21, 224, 224)),
    ("causal_tcn", (1, 88, 5), (1, 88, 5)),
    ("causal_tcn", (3, 88, 101), (3, 88, 101)),
    ("hifigan_vocoder", (1, 80, 7), (1, 1, 7 * 256)),
    ("hifigan_vocoder", (3, 80, 19), (3, 1, 19 * 256)),
    ("meshnet3d", (1, 1, 32, 32, 32), (1, 3, 32, 32, 32)),
    ("resnet_stage_os8", (1, 64, 64, 64), (1, 96, 64, 64)),
    ("splice_sites", (1, 4, 37), (1, 3, 37)),
    ("splice_sites", (2, 4, 1203), (2, 3, 1203)),
]

every_model = pytest.mark.parametrize("name", sorted(CONVS))


def load(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"{name}.onnx", load_external_data=False)


def attribute(node: onnx.NodeProto, name: str) -> list[int]:
    return next(list(a.ints) for a in node.attribute if a.name == name)


def run(name: str, value: np.ndarray) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 2
    session = runtime.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: value})
    return result


def test_every_file_is_known() -> None:
    assert {path.stem for path in MODELS.glob("*.onnx")} == set(CONVS)


@every_model
def test_file_is_sound_and_small(name: str) -> None:
    model = load(name)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert (MODELS / f"{name}.onnx").stat().st_size < 2_000_000


@every_model
def test_file_tells_nothing_about_its_maker(name: str) -> None:
    model = load(name)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # random weights may spell anything
    text = model.SerializeToString()
    found = [word for word in (b"/home", b"/root", b"/work", b"/tmp", b"/usr", b".py", b"stack_trace") if word in text]
    assert not found


@every_model
def test_dilated_convs(name: str) -> None:
    convs = [node for node in load(name).graph.node if node.op_type == "Conv"]
    dilations = [attribute(node, "dilations") for node in convs]
    assert all(len(set(d)) == 1 for d in dilations)  # the same along every axis
    count, dilated = CONVS[name]
    assert len(convs) == count
    assert Counter(d[0] for d in dilations if d[0] > 1) == dilated


@every_model
def test_readme_has_the_numbers(name: str) -> None:
    (row,) = [line for line in README.read_text().splitlines() if line.startswith(f"| `{name}.onnx`")]
    count, dilated = CONVS[name]
    size_kb = round((MODELS / f"{name}.onnx").stat().st_size / 1000)
    listed = ", ".join(f"{d} (×{n})" if n > 1 else str(d) for d, n in dilated.items())
    assert f"| {count} | {sum(dilated.values())}: {listed} | {size_kb} kB |" in row


@pytest.mark.parametrize(("name", "shape", "expected"), RUNS, ids=[f"{n}-{'x'.join(map(str, s))}" for n, s, _ in RUNS])
def test_runs(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    result = run(name, np.random.default_rng(0).random(shape, dtype=np.float32))
    assert result.shape == expected
    assert np.isfinite(result).all()
    assert result.std() > 0.01


def test_tcn_pads_only_the_past() -> None:
    for node in load("causal_tcn").graph.node:
        if node.op_type == "Conv":
            (tap,), (kernel,) = attribute(node, "dilations"), attribute(node, "kernel_shape")
            assert attribute(node, "pads") == [tap * (kernel - 1), 0], node.name


def test_tcn_output_does_not_see_the_future() -> None:
    roll = np.random.default_rng(0).random((1, 88, 60), dtype=np.float32)
    changed = roll.copy()
    changed[..., 40:] = 0
    before, after = run("causal_tcn", roll), run("causal_tcn", changed)
    scale = np.abs(before).max()
    np.testing.assert_allclose(after[..., :40], before[..., :40], rtol=0, atol=8 * np.finfo(np.float32).eps * scale)
    assert np.abs(after[..., 40:] - before[..., 40:]).max() > 0.1 * scale


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/export_models.py` as a module; scripts are not on the path."""
    pytest.importorskip("torch")
    name = "_export_models_script"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "export_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@every_model
def test_matches_torch(name: str, script: ModuleType) -> None:
    import torch

    demo = script.DEMOS[name]
    module, example = demo.build(), demo.example()
    with torch.no_grad():
        single = module(example).numpy()
        exact = module.double()(example.double()).numpy()
    # torch's own error in float32 is the measure; the floor is for a torch that happens to be nearly exact
    own = np.abs(single - exact).max()
    allowed = 8 * max(own, np.finfo(np.float32).eps * np.abs(exact).max())
    error = np.abs(run(name, example.numpy()) - exact).max()
    assert error <= allowed, f"{name}: error {error:.2e}, torch's own {own:.2e}, allowed {allowed:.2e}"


def test_script_draws_the_same_weights_and_leaves_the_generator_alone(script: ModuleType) -> None:
    import torch

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (script.DEMOS["causal_tcn"].build().state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_strip_reaches_nested_messages(script: ModuleType) -> None:
    model = load("meshnet3d")
    model.metadata_props.add(key="where", value="/home/me")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/net.py")
    model.graph.node[0].attribute[0].doc_string = "/home/me/net.py"
    model.graph.initializer[0].doc_string = "/home/me/net.py"
    script.strip(model)
    assert model == load("meshnet3d")
