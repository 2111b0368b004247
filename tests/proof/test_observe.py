"""What enters the regions of a model is what the whole model makes, in the cases that a verification would take."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.model.load import load
from dilrewrite.model.walk import ScopePath
from dilrewrite.options import Proving
from dilrewrite.proof import observe
from dilrewrite.proof.observe import Observer, telling
from dilrewrite.proof.trial import settings
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.models_for_tests import MODELS, build, conv_node, save, save_external, values


def tower(length: int | str = "L") -> ModelProto:
    """Return two dilated Convs behind an operator that no region takes, with an Add of what it makes."""
    nodes = [
        helper.make_node("Einsum", ["x"], ["in"], equation="ncl->ncl"),
        conv_node("in", "a", "w", name="first", dilations=[2], pads=[2, 2]),
        helper.make_node("Tanh", ["a"], ["b"]),
        conv_node("b", "c", "w", name="second", dilations=[4], pads=[4, 4]),
        helper.make_node("Add", ["c", "in"], ["y"]),
    ]
    weights = {"w": values(4, 4, 3) / 3}
    return build(nodes, {"x": ("N", 4, length)}, {"y": ("N", 4, length)}, weights)


def observer(path: Path, **proving: Any) -> tuple[Observer, tuple[Site, ...]]:
    model = load(path)
    regions = find(model.proto, regions=True).regions
    return Observer(model, regions, settings(model, Proving(**proving))), regions


def run(model: ModelProto, feeds: Mapping[str, Any], names: list[str]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(telling(model, names, {}).SerializeToString(), options)
    return [np.asarray(each) for each in session.run(names, feeds)]


def test_the_users_data_are_what_enters(tmp_path: Path) -> None:
    x = values(2, 4, 21, seed=7)
    np.savez(tmp_path / "x.npz", x=x)
    seen, (region, *_) = observer(save(tower(), tmp_path / "m.onnx"), inputs=tmp_path / "x.npz")
    assert region.inputs == ("in",)
    (case,) = seen.of(region)
    assert np.array_equal(case["in"], x)


def test_the_values_are_those_of_the_whole_model(tmp_path: Path) -> None:
    model = load(MODELS / "aspp_segmentation.onnx")
    x = values(*(size.dim_value for size in model.proto.graph.input[0].type.tensor_type.shape.dim))
    np.savez(tmp_path / "x.npz", **{model.proto.graph.input[0].name: x})
    seen, regions = observer(MODELS / "aspp_segmentation.onnx", inputs=tmp_path / "x.npz")
    assert len(regions) > 1
    for region in regions:
        (case,) = seen.of(region)
        wanted = run(model.proto, {model.proto.graph.input[0].name: x}, list(region.inputs))
        assert list(case) == list(region.inputs)
        for got, own in zip(case.values(), wanted, strict=True):
            assert np.array_equal(got, own)


def test_sizes_that_are_unknown_come_in_several(tmp_path: Path) -> None:
    seen, (region, *_) = observer(save(tower(), tmp_path / "m.onnx"))
    shapes = [case["in"].shape for case in seen.of(region)]
    assert len({shape[0] for shape in shapes}) >= 2
    lengths = {shape[2] for shape in shapes}
    assert any(length % 4 == 0 for length in lengths)
    assert any(length % 4 for length in lengths)
    assert 1 in lengths


def test_a_shape_that_is_given_is_kept(tmp_path: Path) -> None:
    seen, (region, *_) = observer(save(tower(), tmp_path / "m.onnx"), shapes=("x:3x4x17",))
    assert [case["in"].shape for case in seen.of(region)] == [(3, 4, 17)]


def test_all_regions_are_seen_in_one_set_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, regions = observer(MODELS / "aspp_segmentation.onnx")
    opened = []
    backend = type(settings(load(MODELS / "aspp_segmentation.onnx"), Proving()).backend)
    own = backend.session
    monkeypatch.setattr(backend, "session", lambda *given: opened.append(1) or own(*given))
    assert opened == []
    for region in (*regions, *regions):
        assert seen.of(region)
    assert len(opened) == 1


def test_weights_in_other_files(tmp_path: Path) -> None:
    seen, (region, *_) = observer(save_external(tower(), tmp_path / "m.onnx"))
    assert seen.of(region)


def test_nothing_is_seen_where_the_model_does_not_run(tmp_path: Path) -> None:
    model = tower()
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "seven"], ["other"]))
    model.graph.initializer.add(name="seven", data_type=7, dims=[1], int64_data=[7])
    model.graph.output.add(name="other")
    seen, (region, *_) = observer(save(model, tmp_path / "m.onnx"))
    assert seen.of(region) == []


def looped(turns: int, source: str = "m") -> ModelProto:
    """Return a Loop whose body holds a region that reads a tensor from outside, and a state or what the body makes."""
    body = onnx.parser.parse_graph(
        "body (int64 i, bool go, float[2, 4, L] s) => (bool on, float[2, 4, L] t) {"
        ' on = Identity (go) m = Einsum <equation = "ncl->ncl"> (s) a = Conv <dilations = [2], pads = [2, 2]>'
        f" ({source}, w) b = Tanh (a) e = Add (b, x) c = Conv <dilations = [4], pads = [4, 4]> (e, w)"
        ' t = Einsum <equation = "ncl->ncl"> (c) }'
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> loops (float[2, 4, L] x) => (float[2, 4, L] y)'
        f" <int64 n = {{{turns}}}> {{ }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(values(4, 4, 3) / 3, "w"))
    model.graph.node.append(helper.make_node("Loop", ["n", "", "x"], ["y"], body=body))
    return model


@pytest.mark.parametrize("source", ["m", "s"])
def test_in_a_loop_the_first_turn_is_seen(tmp_path: Path, source: str) -> None:
    x = values(2, 4, 21, seed=7)
    np.savez(tmp_path / "x.npz", x=x)
    seen, (region, *_) = observer(save(looped(3, source), tmp_path / "m.onnx"), inputs=tmp_path / "x.npz")
    assert region.scope.steps
    assert set(region.inputs) == {source, "x"}
    (case,) = seen.of(region)
    assert all(np.array_equal(value, x) for value in case.values())


def test_a_loop_without_turns_shows_nothing(tmp_path: Path) -> None:
    seen, (region, *_) = observer(save(looped(0), tmp_path / "m.onnx"))
    assert seen.of(region) == []


def test_nothing_is_seen_in_another_subgraph(tmp_path: Path) -> None:
    seen, (region, *_) = observer(save(tower(), tmp_path / "m.onnx"))
    for steps in (((0, "then_branch", 0),), ((0, "body", 0), (1, "body", 0))):
        assert seen.of(replace(region, scope=ScopePath(None, steps))) == ()


def test_no_more_is_kept_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tower(), tmp_path / "m.onnx")
    seen, (region, *_) = observer(path)
    cases = seen.of(region)
    monkeypatch.setattr(observe, "MOST_BYTES", cases[0]["in"].nbytes + cases[1]["in"].nbytes)
    seen, (region, *_) = observer(path)
    assert len(cases) > 2
    assert len(seen.of(region)) == 2
