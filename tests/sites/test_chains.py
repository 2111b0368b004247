"""Regions of random networks, found, rewritten and run: equal bit for bit on whole numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment, Node
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.sites import Site
from dilrewrite.sites.chains import View, chain_of, lifted_view, parts_of, region_sites
from dilrewrite.sites.find import find
from dilrewrite.sites.scopes import scopes
from dilrewrite.splice.rewrite import rewrite
from tests.random_chains import Net


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def regions(model: ModelProto, strategy: str, block: tuple[int, ...]) -> list[tuple[Site, Fragment]]:
    """Return the regions of a model that the strategy takes, each with its fragment."""
    edits = []
    for site in sites_of(model, block):
        fragment = region_forms()[strategy].fragment(site.meaning, site.opset)
        if not isinstance(fragment, Refusal):
            fragment.check()
            edits.append((site, fragment))
    return edits


def sites_of(model: ModelProto, block: tuple[int, ...]) -> Iterator[Site]:
    """Yield the regions of a model: to lift as `find` has them, in phases of any block the largest, split once."""
    if not block:
        yield from (site for site in find(model, regions=True).regions if not site.meaning.block)
        return
    for scope in scopes(model, infer_shapes(model)):
        parts = parts_of(scope)
        sites = [each for each in region_sites(scope, chain_of(scope, parts), parts, block) if not each.meaning.nests]
        taken: set[int] = set()
        for site in sites:
            if taken.isdisjoint(site.nodes):
                taken.update(site.nodes)
                yield site


def spliced(model: ModelProto, sites: Sequence[Site], strategy: str = "lift_region") -> ModelProto:
    """Return the model with regions rewritten, which the strategy takes."""
    edits = []
    for site in sites:
        fragment = region_forms()[strategy].fragment(site.meaning, site.opset)
        assert isinstance(fragment, Fragment), fragment
        fragment.check()
        edits.append((site, fragment))
    rewritten = rewrite(model, edits, (), numpy_helper.to_array).proto
    onnx.checker.check_model(rewritten)
    return rewritten


def compared(
    net: Net, size: int, strategy: str, block: tuple[int, ...], *, unknown: bool, within: bool = False
) -> Counter[str]:
    """Rewrite a random network; count its regions, their nodes and masks, and whether the outputs differ."""
    model = net.model(size, unknown=unknown)
    if within:
        model = net.within(model)
    edits = regions(model, strategy, block)
    if not edits:
        return Counter()
    rewritten = rewrite(model, edits, (), numpy_helper.to_array).proto
    onnx.checker.check_model(rewritten)
    feeds = net.feeds(model)
    pairs = zip(run(model, feeds), run(rewritten, feeds), strict=True)
    steps = [step for _, fragment in edits for step in fragment.steps]
    return Counter(
        networks=1,
        regions=len(edits),
        nodes=sum(len(site.nodes) for site, _ in edits),
        masks=sum(isinstance(step, Node) and step.op == "Where" for step in steps),
        wrong=any(not np.array_equal(before, after) for before, after in pairs),
    )


def widest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all that can be lifted into the regions, whatever that costs."""

    def view(chain: Chain) -> View:
        found = lifted_view(chain)
        return replace(found, wanted=frozenset(place for place, each in enumerate(found.reads) if each is not None))

    monkeypatch.setattr("dilrewrite.sites.chains.lifted_view", view)


@pytest.mark.grid(6)
@pytest.mark.parametrize("start", range(0, 3000, 100))
def test_a_lifted_region_computes_the_same(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if start % 200:
        widest(monkeypatch)
    total: Counter[str] = Counter()
    for seed in range(start, start + 100):
        total += compared(Net(seed), 6 + seed % 25, "lift_region", (), unknown=seed % 3 == 0, within=seed % 7 == 0)
    assert total["wrong"] == 0
    assert total["networks"] > 50


def stacks(convs: int) -> ModelProto:
    """Return two stacks, 1-D and 2-D, of `convs` gated residual blocks each, an Einsum behind every tenth."""
    nodes, weights, values = [], {}, []
    for rank in (1, 2):
        size, x = [1, 4, *[64] * rank], f"x{rank}"
        values.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, size))
        weights[f"wide{rank}"] = np.ones((8, 4, *[3] * rank), np.float32)
        weights[f"point{rank}"] = np.ones((4, 4, *[1] * rank), np.float32)
        for place in range(convs):
            d = (2, 4, 8, 3, 6)[place % 5 if rank == 1 else place // 20 % 5]
            block = f"{rank}_{place}"
            given = {"dilations": [d] * rank, "pads": [d] * 2 * rank}
            nodes += [
                helper.make_node("Conv", [x, f"wide{rank}"], [f"{block}w"], **given),
                helper.make_node("Split", [f"{block}w"], [f"{block}a", f"{block}b"], axis=1, num_outputs=2),
                helper.make_node("Tanh", [f"{block}a"], [f"{block}t"]),
                helper.make_node("Sigmoid", [f"{block}b"], [f"{block}s"]),
                helper.make_node("Mul", [f"{block}t", f"{block}s"], [f"{block}g"]),
                helper.make_node("Conv", [f"{block}g", f"point{rank}"], [f"{block}p"]),
                helper.make_node("LeakyRelu", [f"{block}p"], [f"{block}l"]),
                helper.make_node("Add", [x, f"{block}l"], [f"{block}r"]),
                helper.make_node("Relu", [f"{block}r"], [f"{block}y"]),
            ]
            x = f"{block}y"
            if place % 10 == 9:
                nodes.append(helper.make_node("Einsum", [x], [f"{block}z"], equation="...->..."))
                x = f"{block}z"
        nodes.append(helper.make_node("Identity", [x], [f"y{rank}"]))
    outputs = [onnx.ValueInfoProto(name=f"y{rank}") for rank in (1, 2)]
    tensors = [numpy_helper.from_array(each, name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "stacks", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_thousand_dilated_convs_among_ten_thousand_nodes() -> None:
    model = stacks(550)
    found = find(model, regions=True)
    assert len(model.graph.node) > 10_000
    assert len(found.sites) == 1100
    blocks = Counter(site.meaning.block for site in found.regions)
    assert blocks[()] == 55
    assert {len(block) for block in blocks} == {0, 1, 2}
    lifted = [site for site in found.regions if not site.meaning.block]
    assert sum(part.geometry.dilated for site in lifted for part in site.parts) == 550


def test_phases_also_end_where_dilation_would_be_left() -> None:
    """The stage of a DeepLab by its own dilation, and not only with the head, whose dilations are multiples of it."""
    found = find(onnx.load("models/aspp_segmentation.onnx"), regions=True).regions
    assert len({site.key for site in found}) == len(found)
    stage, head = (2, 2), {12, 24, 36}
    dilations = [
        sorted(part.geometry.dilations[0] for part in site.parts if part.geometry.dilated)
        for site in found
        if site.meaning.block == stage and not site.meaning.nests
    ]
    assert dilations == [[2, 2, 2, 2, *sorted(head)], [2, 2, 2, 2]]


@pytest.mark.parametrize("gap", ["", "d = Einsum <equation = '...->...'> (c)"])
def test_of_phases_that_leave_no_dilation_there_is_one_region(gap: str) -> None:
    nodes = [
        helper.make_node("Conv", [before, "w"], [after], dilations=[d, d], pads=[d] * 4)
        for before, after, d in (("x", "a", 2), ("a", "b", 2), ("b", "c", 4), ("d" if gap else "c", "z", 4))
    ]
    if gap:
        nodes.insert(3, helper.make_node("Einsum", ["c"], ["d"], equation="...->..."))
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 16, 16]) for name in "xz")
    weights = numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph(nodes, "steps", [x], [z], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found = [
        (site.meaning.block[0], len(site.parts)) for site in find(model, regions=True).regions if not site.meaning.nests
    ]
    assert sorted(found) == ([(2, 2), (2, 3)] if gap else [(2, 2), (2, 4), (4, 2)])


def test_a_region_without_dilation_is_found_only_when_asked_for() -> None:
    net = Net(0)
    net.live = {"x": (4, 20)}
    x = net.node("Conv", ["x", net.whole(4, 4, 3)], 4, 20, pads=[1, 1])
    net.node("Conv", [net.node("Relu", [x], 4, 20), net.whole(4, 4, 3)], 4, 18)
    model = net.finished({"x": (4, 20)}, unknown=True)
    assert find(model, regions=True).regions == ()
    (site,) = find(model, regions=True, lift_all=True).regions
    assert site.nodes == (0, 1, 2)
    rewritten = spliced(model, [site])
    assert [node.op_type for node in rewritten.graph.node] == ["Unsqueeze", "Conv", "Relu", "Conv", "Squeeze"]
    feeds = net.feeds(model)
    np.testing.assert_array_equal(run(model, feeds)[0], run(rewritten, feeds)[0])


@pytest.mark.parametrize(
    ("first", "second", "convs"),
    [("N", "N", {3}), ("N", "M", set()), (None, None, set()), ("N", 2, set()), (2, 2, {3})],
    ids=str,
)
def test_batches_that_may_differ_do_not_meet_in_phases(
    first: str | int | None, second: str | int | None, convs: set[int]
) -> None:
    """One sample beside several is stretched along the batch, where the phases lie too."""
    same = {"dilations": [2, 2], "pads": [2, 2, 2, 2]}
    weights = numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], **same),
        helper.make_node("Conv", ["y", "w"], ["b"], **same),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["z"], **same),
    ]
    x, y, z = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4, 16, 16])
        for name, size in (("x", first), ("y", second), ("z", None))
    )
    graph = helper.make_graph(nodes, "two", [x, y], [z], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert {len(site.parts) for site in find(model, regions=True).regions if len(site.parts) > 1} == convs
