"""A Slice behind a Conv goes into its pads where these allow it: exact on all inputs, Inf and NaN among them."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.fragment import Node
from dilrewrite.forms.regions import region_forms
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.sites.test_chains import run, spliced

RNG = np.random.default_rng(0)


def stack(
    *,
    pads: int = 4,
    cut: tuple[int, int] = (0, -4),
    size: Any = "T",
    stride: int = 1,
    read_twice: bool = False,
    more: list[int] | None = None,
    opset: int = 17,
) -> ModelProto:
    """Return three blocks as in a TCN: a Conv of kernel 3 and dilation 2, a Slice, Relu."""
    ints = {
        "start": [cut[0]],
        "end": [cut[1]],
        "axis": [2],
        "step": [1],
        "one": [1],
        **({"step": more} if more else {}),
    }
    tensors = {name: np.array(each, np.int64) for name, each in ints.items()}
    nodes, x = [], "x"
    for place in range(3):
        tensors[f"w{place}"] = RNG.integers(-1, 2, (4, 4, 3)).astype(np.float32)
        window = {"dilations": [2], "pads": [pads, pads], "strides": [stride]}
        nodes.append(helper.make_node("Conv", [x, f"w{place}"], [f"c{place}"], **window))
        inputs = [f"c{place}", "start", "end", "axis", *(["step"] if more else [])]
        given = {} if opset >= 10 else {"starts": [cut[0]], "ends": [cut[1]], "axes": [2]}
        nodes.append(helper.make_node("Slice", inputs if opset >= 10 else inputs[:1], [f"s{place}"], **given))
        nodes.append(helper.make_node("Relu", [f"s{place}"], [f"y{place}"]))
        x = f"y{place}"
    outputs = ["y2", *(["c0"] if read_twice else [])]
    graph = helper.make_graph(
        nodes, "tcn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, None]) for name in outputs],
        [numpy_helper.from_array(each, name) for name, each in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def region(model: ModelProto, block: tuple[int, ...] = ()) -> Site:
    (site,) = (site for site in find(model, regions=True).regions if site.meaning.block == block)  # type: ignore[attr-defined]
    return site


def pads(site: Site) -> list[tuple[int, int]]:
    return [(g.pads_begin[0], g.pads_end[0]) for g in site.meaning.convs.values()]  # type: ignore[attr-defined]


def x(length: int) -> dict[str, Any]:
    values = RNG.integers(-2, 3, (2, 4, length)).astype(np.float32)
    values[0, 1, -1], values[1, 2, length // 2] = np.inf, np.nan
    return {"x": values}


@pytest.mark.parametrize("opset", [8, 17])
@pytest.mark.parametrize("size", ["T", 23])
@pytest.mark.parametrize(
    ("cut", "left"), [((0, -4), (4, 0)), ((0, -1), (4, 3)), ((3, 2**63 - 1), (1, 4)), ((2, -2), (2, 2))]
)
def test_a_slice_goes_into_the_pads(cut: tuple[int, int], left: tuple[int, int], size: Any, opset: int) -> None:
    model = stack(cut=cut, size=size, opset=opset)
    site = region(model)
    assert pads(site) == [left] * 3
    rewritten = spliced(model, [site])
    assert "Slice" not in {node.op_type for node in rewritten.graph.node}
    for length in (23,) if size == 23 else (1, 2, 5, 23):
        feeds = x(length)
        np.testing.assert_array_equal(run(model, feeds)[0], run(rewritten, feeds)[0])


@pytest.mark.parametrize("size", [22, 23, 24, 25])
@pytest.mark.parametrize("cut", [(0, -2), (1, -1), (2, 2**31 - 1)])
def test_each_sample_of_a_strided_conv_takes_its_stride_of_the_pads(size: int, cut: tuple[int, int]) -> None:
    model = stack(stride=2, cut=cut, size=size)
    site = region(model)
    front, back = cut[0], -cut[1] if cut[1] < 0 else 0
    assert pads(site) == [(4 - 2 * front, 4 - 2 * back)] * 3
    feeds = x(size)
    np.testing.assert_array_equal(run(model, feeds)[0], run(spliced(model, [site]), feeds)[0])


@pytest.mark.parametrize(
    "given",
    [
        {"cut": (0, -5)}, {"cut": (5, -1)}, {"cut": (-6, -4)}, {"cut": (0, 6)}, {"more": [2]},
        {"more": [-1], "cut": (-1, 0)}, {"pads": 1, "cut": (0, -1)}, {"stride": 2, "cut": (0, -3), "size": 40},
    ],
)  # fmt: skip
def test_another_slice_stays(given: dict[str, Any]) -> None:
    model = stack(**given)
    for site in find(model, regions=True).regions:
        assert not site.meaning.gone  # type: ignore[attr-defined]
        if not site.meaning.block:  # type: ignore[attr-defined]
            feeds = x(40 if given.get("size") == 40 else 23)
            np.testing.assert_array_equal(run(model, feeds)[0], run(spliced(model, [site]), feeds)[0])


def test_a_slice_of_what_is_also_read_elsewhere_stays() -> None:
    model = stack(read_twice=True)
    site = region(model)
    assert pads(site) == [(4, 4), (4, 0), (4, 0)]
    feeds = x(23)
    for before, after in zip(run(model, feeds), run(spliced(model, [site]), feeds), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("size", ["T", 23])
def test_in_phases_a_causal_conv_needs_no_mask_then(size: Any) -> None:
    model = stack(size=size)
    site = region(model, (2,))
    assert len(site.nodes) == 8
    fragment = region_forms()["phase_region"].fragment(site.meaning, site.opset)  # type: ignore[arg-type]
    assert "Where" not in {step.op for step in fragment.steps if isinstance(step, Node)}  # type: ignore[union-attr]
    rewritten = spliced(model, [site], "phase_region")
    for length in (23,) if size == 23 else (3, 22, 23):
        feeds = x(length)
        np.testing.assert_array_equal(run(model, feeds)[0], run(rewritten, feeds)[0])
