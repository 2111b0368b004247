"""The rewritten place that reports draw: its nodes are those of the models, before and after."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import dilrewrite
from dilrewrite.reports import document as doc
from dilrewrite.reports.content import drawing, example
from dilrewrite.reports.report import RegionNode, Report

MODELS = Path(__file__).parents[2] / "models"
STRATEGIES = ("space_to_batch", "slice_to_batch", "space_to_axis", "space_to_group", "im2col", "tap_sum", "tap_zones")


def rewritten(model: str, folder: Path, **options: object) -> Report:
    report = dilrewrite.optimize(MODELS / model, folder / "out.onnx", budget=0, verify="sites", **options)  # type: ignore[arg-type]
    assert report.status == "rewritten"
    return report


def drawn(report: Report) -> doc.Change:
    (change,) = (block for block in example.example_blocks(report) if isinstance(block, doc.Change))
    return change


def check_reads(nodes: tuple[RegionNode, ...]) -> None:
    for place, node in enumerate(nodes):
        assert all(source < place for source in node.reads)
        assert node.reads, f"{node.op} reads something"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_form_is_told_node_by_node(strategy: str, tmp_path: Path) -> None:
    report = rewritten("aspp_segmentation.onnx", tmp_path, strategy=strategy, only="conv1.0", skip="4")
    (site,) = (one for one in report.sites if one.action == "rewritten")
    told = report.example
    assert told is not None
    assert (told.key, site.strategy) == (site.key, strategy)
    assert told.before == (RegionNode(op="Conv", dilation=2, reads=(-1,), kernel=(3, 3)),)
    check_reads(told.after)
    before, after = (Counter(node.op_type for node in onnx.load(path).graph.node) for path in model_paths(tmp_path))
    after.subtract(before)
    after["Conv"] += 1
    after["Relu"] = 0  # what follows the Conv is not told
    assert Counter(node.op for node in told.after) == +after
    assert max(node.dilation for node in told.after) == site.max_dilation_left
    assert len(list(drawing.kinds(drawn(report).after))) <= example.MOST_BOXES


def model_paths(folder: Path) -> tuple[Path, Path]:
    return MODELS / "aspp_segmentation.onnx", folder / "out.onnx"


def test_a_region_is_told_node_by_node(tmp_path: Path) -> None:
    report = rewritten("causal_tcn.onnx", tmp_path, strategy="lift_region")
    told = report.example
    assert told is not None
    region = next(one for one in report.regions if one.key == told.key)
    assert Counter(node.op for node in told.before) == region.operators
    check_reads(told.before)
    assert {"Conv"} <= {node.op for node in told.after}
    assert all(len(node.kernel) == 1 for node in told.before if node.op == "Conv")
    assert all(len(node.kernel) == 2 for node in told.after if node.op == "Conv")
    for side in (drawn(report).before, drawn(report).after):
        assert 1 < len(list(drawing.kinds(side))) <= example.MOST_BOXES


def test_nothing_is_drawn_of_what_was_not_rewritten(tmp_path: Path) -> None:
    report = dilrewrite.optimize(MODELS / "causal_tcn.onnx", tmp_path / "out.onnx", budget=0)
    assert (report.status, report.example) == ("kept", None)
    assert list(example.example_blocks(report)) == []


def test_nodes_that_compute_sizes_are_not_drawn() -> None:
    nodes = [("Shape", (-1,)), ("Gather", (0,)), ("Pad", (-1, 1)), ("Conv", (2,)), ("Reshape", (3, 1))]
    data, sizes = example.data([RegionNode(op=op, dilation=1, reads=reads) for op, reads in nodes])
    assert ([(node.op, node.reads) for node in data], sizes) == ([("Pad", (-1,)), ("Conv", (0,)), ("Reshape", (1,))], 2)


def test_nothing_is_drawn_where_no_tap_touches_data(tmp_path: Path) -> None:
    attributes = {"dilations": [4], "pads": [1, 12], "strides": [3]}
    node = helper.make_node("ConvInteger", ["x", "w", "zero"], ["y"], name="c", **attributes)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 1, 1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 3, 2])
    w, zero = numpy_helper.from_array(np.ones((3, 1, 3), np.int8), "w"), numpy_helper.from_array(np.uint8(7), "zero")
    graph = helper.make_graph([node], "g", [x], [y], [w, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    report = dilrewrite.optimize(
        tmp_path / "m.onnx", tmp_path / "out.onnx", budget=0, eliminate=True, report=tmp_path / "told"
    )
    assert (report.status, report.example is None) == ("rewritten", False)
    assert list(example.example_blocks(report)) == []
    assert (tmp_path / "told/report.html").is_file()


def test_a_chain_of_sums_is_one() -> None:
    nodes = [("Exp", (-1,)), ("Abs", (-1,)), ("Neg", (-1,)), ("Add", (0, 1)), ("Add", (3, 2)), ("Relu", (4,))]
    summed = example.summed([RegionNode(op=op, dilation=1, reads=reads) for op, reads in nodes])
    assert [(node.op, node.reads) for node in summed[3:]] == [("Add", (0, 1, 2)), ("Relu", (3,))]
    twice = example.summed([RegionNode(op=op, dilation=1, reads=reads) for op, reads in [*nodes, ("Mul", (3, 5))]])
    assert Counter(node.op for node in twice)["Add"] == 2
