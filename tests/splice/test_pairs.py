"""Quantised data but uint8: each Conv of a form stands between its own pairs, which ONNX Runtime fuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.forms import builder
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.proof import prove
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.reports.content.sites import shape
from dilrewrite.sites.find import find
from dilrewrite.splice import region
from dilrewrite.splice.region import Region
from dilrewrite.splice.rewrite import rewrite
from tests import models_for_tests as tiny
from tests import naive

CONTRIB = "com.microsoft"
SCALE, OUT_SCALE = 2.0**-4, 2.0**3
ZEROS = {np.int8: -19, np.uint8: 140, np.int16: -3001, np.uint16: 30000}


def model(
    kind: Any, *, domain: str = "", opset: int = 21, size: int | str = 14, rank: int = 1, relu: bool = True,
    rounded: bool = True,
) -> ModelProto:  # fmt: skip
    """x -> QuantizeLinear -> DequantizeLinear -> dilated Conv -> Relu -> QuantizeLinear -> DequantizeLinear -> y."""
    rng, channels, zero = np.random.default_rng(3), 8, np.array(ZEROS[kind], kind)
    constants = {
        "xs": np.float32(SCALE),
        "z": zero,
        "ys": np.float32(OUT_SCALE),
        "ws": (2.0 ** -rng.integers(0, 3, channels)).astype(np.float32),
        "w": rng.integers(-60, 61, (channels, channels, *[3] * rank)).astype(np.int8),
    }

    def node(op: str, inputs: list[str], output: str, **more: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output, domain=domain if "Linear" in op else "", **more)

    nodes = [
        node("QuantizeLinear", ["x", "xs", "z"], "xq"),
        node("DequantizeLinear", ["xq", "xs", "z"], "xd"),
        node("DequantizeLinear", ["w", "ws"], "wd", axis=0),
        node("Conv", ["xd", "wd"], "c", dilations=[3] * rank, pads=[3] * rank + [2] * rank),
        node("Relu", ["c"], "r" if rounded else "y"),
        node("QuantizeLinear", ["r" if relu else "c", "ys", "z"], "yq"),
        node("DequantizeLinear", ["yq", "ys", "z"], "y"),
    ]
    return tiny.build(
        [node for place, node in enumerate(nodes) if (relu or place != 4) and (rounded or place < 5)],
        {"x": ["n", channels, *[size] * rank]},
        {"y": ["n", channels, *["o"] * rank]},
        {name: np.asarray(value) for name, value in constants.items()},
        opset=opset,
        ir=10,
        domains=[domain] if domain else [],
    )


def truth(proto: ModelProto, kind: Any, x: np.ndarray[Any, Any], *, rounded: bool) -> np.ndarray[Any, Any]:
    """What comes out, in whole numbers; all scales are powers of two."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    info, zero, rank = np.iinfo(kind), ZEROS[kind], x.ndim - 2
    codes = np.clip(np.rint(x / SCALE) + zero, info.min, info.max).astype(np.int64)
    sums = naive.conv(
        codes - zero, held["w"], strides=(1,) * rank, dilations=(3,) * rank, begin=(3,) * rank, end=(2,) * rank
    )
    reals = np.maximum(sums * (SCALE * held["ws"].astype(np.float64)).reshape(-1, *[1] * rank), 0)
    if not rounded:
        return reals
    return (np.clip(np.rint(reals / OUT_SCALE) + zero, info.min, info.max) - zero) * OUT_SCALE


def forms(proto: ModelProto) -> dict[str, ModelProto]:
    """The model in every form that applies."""
    found = find(proto)
    (site,) = found.sites
    planned = {
        name: plan(name, one, site.meaning, site.opset, storage=site.storage) for name, one in strategies().items()
    }
    return {
        name: rewrite(proto, [(site, form)], found.normalisations, numpy_helper.to_array).proto
        for name, form in planned.items()
        if isinstance(form, Fragment)
    }


def optimised(proto: ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of a model, counted."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("size", [14, "l"], ids=["known", "unknown"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("opset", [13, 20])
def test_int8_still_runs_as_qlinear_conv(tmp_path: Path, opset: int, rank: int, size: int | str) -> None:
    """All Convs of a form, but one zone of `tap_zones` that reads all of the input, which the other zones read too."""
    proto = model(np.int8, rank=rank, size=size, relu=False, opset=opset)
    assert optimised(proto, tmp_path)["QLinearConv"] == 1
    for name, after in forms(proto).items():
        count = optimised(after, tmp_path)
        assert count["QLinearConv"] + count["Conv"] == sum(node.op_type == "Conv" for node in after.graph.node), name
        assert count["Conv"] == (name == "tap_zones"), name


KINDS = {
    "int8": (np.int8, "", 13), "uint8": (np.uint8, "", 13), "int16": (np.int16, "", 21), "uint16": (np.uint16, "", 21),
    "int16 of ONNX Runtime": (np.int16, CONTRIB, 13), "uint16 of ONNX Runtime": (np.uint16, CONTRIB, 17),
    "uint8 of ONNX Runtime": (np.uint8, CONTRIB, 17),
}  # fmt: skip


@pytest.mark.parametrize("rounded", [True, False], ids=["rounded", "real"])
@pytest.mark.parametrize("word", KINDS)
def test_every_form_gives_the_same_numbers(word: str, rounded: bool) -> None:
    kind, domain, opset = KINDS[word]
    proto = model(kind, domain=domain, opset=opset, rounded=rounded)
    (site,) = find(proto).sites
    assert (site.storage, site.quantizes_output) == (np.dtype(kind).name, rounded)
    # some beyond what the integers hold, on both sides
    x = np.random.default_rng(0).standard_normal((2, 8, 14)) * np.iinfo(kind).max * SCALE
    x = (np.rint(x / SCALE) * SCALE).astype(np.float32)
    made = forms(proto)
    assert len(made) >= 6
    for name, after in {"original": proto, **made}.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(after.SerializeToString(), options, ["CPUExecutionProvider"])
        np.testing.assert_array_equal(
            session.run(None, {"x": x})[0], truth(proto, kind, x, rounded=rounded), err_msg=name
        )


@pytest.mark.parametrize("word", KINDS)
def test_every_form_is_proved(word: str) -> None:
    kind, domain, opset = KINDS[word]
    proto = model(kind, domain=domain, opset=opset)
    (site,) = find(proto).sites
    for name, one in strategies().items():
        form = plan(name, one, site.meaning, site.opset, storage=site.storage)
        if isinstance(form, Fragment):
            proof = Prover().prove(Source(proto), site, form)
            assert (proof.failure, proof.native_ran) == (None, True), name


@pytest.mark.parametrize("kind", [np.int8, np.uint16], ids=["int8", "uint16"])
def test_integers_come_back_from_their_products(kind: Any) -> None:
    """QuantizeLinear undoes DequantizeLinear, whatever the scale: for every integer, on ONNX Runtime."""
    info, rng = np.iinfo(kind), np.random.default_rng(0)
    every = np.arange(info.min, info.max + 1).astype(kind)
    name = TensorProto.DataType.Value(np.dtype(kind).name.upper())
    proto = tiny.build(
        [
            helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"]),
            helper.make_node("QuantizeLinear", ["d", "s", "z"], ["y"]),
        ],
        {"x": [len(every)], "s": [], "z": []},
        {"y": [len(every)]},
        types={"x": name, "y": name, "z": name},
        opset=21,
        ir=10,
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for scale in np.exp(rng.uniform(-20, 5, 50)).astype(np.float32):
        zero = rng.integers(info.min, info.max + 1)
        (got,) = session.run(None, {"x": every, "s": np.asarray(scale), "z": np.array(zero, kind)})
        np.testing.assert_array_equal(got, every, err_msg=f"{scale} {zero}")


def test_16_bits_in_float16_are_laid_out_behind_the_unit() -> None:
    """There the integers do not come back, so the Conv counts as one on reals."""
    proto = model(np.uint16, opset=21)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    (site,) = find(proto).sites
    assert site.storage is None


def test_another_zero_point_in_a_pair_is_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Region._codes

    def wrong(self: Region, before: onnx.NodeProto, source: str, word: str) -> str:
        other = onnx.NodeProto()
        other.CopyFrom(before)
        other.input[2] = self.writer.constant("zero_point", np.zeros((), np.int8), TensorProto.INT8)
        return right(self, other, source, word)

    monkeypatch.setattr(Region, "_codes", wrong)
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(np.int8, opset=17), path)
    report = dilrewrite.optimize(path, output, strategy="space_to_batch", budget=0)
    assert report.exit_code == 3
    assert not output.exists()


def test_a_form_that_no_longer_loads_with_optimisations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime breaks pairs of int8 from opset 21 on while it optimises; proofs run without."""
    for where in (builder, region):
        monkeypatch.setattr(where, "in_pairs", lambda *_: True)
    proto = model(np.int8, rank=2, relu=False)
    (site,) = find(proto).sites
    form = plan("space_to_batch", strategies()["space_to_batch"], site.meaning, site.opset, storage=site.storage)
    assert isinstance(form, Fragment)
    proof = Prover().prove(Source(proto), site, form)
    if onnxruntime.__version__.startswith("1.3"):  # later ones may be mended
        assert not proof.ran
        assert str(proof.failure).startswith("with graph optimisations on: ")


def test_a_model_that_no_longer_loads_with_optimisations_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the proof of the site alone does not show it, the whole model does."""
    for where in (builder, region):
        monkeypatch.setattr(where, "in_pairs", lambda *_: True)
    monkeypatch.setattr(prove.Trial, "unloadable", lambda *_: "")
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(np.int8, rank=2, relu=False), path)
    report = dilrewrite.optimize(path, output, strategy="space_to_batch", budget=0)
    if onnxruntime.__version__.startswith("1.3"):
        assert report.exit_code == 3
        assert report.verdict is not None
        assert "does not load with graph optimisations on" in str(report.verdict.failures)
        assert not output.exists()


def test_where_it_leaves_the_quantised_domain_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for rounded, told in ((True, ()), (False, ("the output 'y'",))):
        onnx.save(model(np.uint8, rounded=rounded), path)
        report = dilrewrite.inspect(path)
        (site,) = report.sites
        assert site.ends == told
        assert ("leaves the quantised domain at the output 'y'" in shape(site)) == (not rounded)


def test_what_reads_its_real_numbers_is_named() -> None:
    proto = model(np.uint8, rounded=False)
    proto.graph.node.append(helper.make_node("Neg", ["y"], ["z_out"], name="negated"))
    proto.graph.output[0].name = "z_out"
    (site,) = find(proto).sites
    assert site.ends == ("Neg 'negated'",)
