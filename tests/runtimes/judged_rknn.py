"""What RKNN-Toolkit2 is asked about in tests, and what it answered: `scripts/record_judges.py rknn` asks it anew."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import parse, plan
from dilrewrite.runtimes import _rknn as kit
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests.models_for_tests import build, values
from tests.runtimes import judged

RECORDED = Path(__file__).parent / "judges" / "rknn.json"
PLATFORMS = tuple(kit.CYCLES_PER_KB)


def dilated(d: int, *, channels: int = 16, size: int = 48, group: int = 1, opset: int = 17) -> ModelProto:
    """A 3x3 Conv with dilation `d`, SAME; its node is `site`."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="site", dilations=[d, d], pads=[d] * 4, group=group)
    shape = [1, channels, size, size]
    weight = values(channels, channels // group, 3, 3).round(2)
    return build([node], {"x": shape}, {"y": shape}, {"w": weight}, opset=opset)


def form(proto: ModelProto, text: str) -> ModelProto:
    """The model with a form in the place of its Conv."""
    found, (name, strategy) = find(proto), parse(text)
    (site,) = found.sites
    fragment = plan(name, strategy, site.geometry, site.opset)
    assert isinstance(fragment, Fragment), fragment
    return rewrite(proto, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto


def quantised() -> ModelProto:
    """A quantised Conv, of an opset that the toolkit reads, with every zero point that there may be."""
    proto = judged.dilated(5)
    proto.opset_import[0].version = 19
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(16, np.int32), "bz"))
    next(node for node in proto.graph.node if node.name == "b_real").input.append("bz")
    return proto


def unheard() -> ModelProto:
    """An operator that no toolkit knows."""
    nodes = [helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")]
    return build(nodes, {"x": [1, 2]}, {"y": None}, domains=["nowhere"], element=TensorProto.FLOAT)


Made = tuple[Callable[[], bytes], tuple[str, ...]]
ONE = ("rk3588",)


def made(make: Callable[[], ModelProto]) -> Callable[[], bytes]:
    return lambda: kit.readable(make())


MODELS: dict[str, Made] = {
    "undilated": (made(lambda: dilated(1)), PLATFORMS),
    "quantised": (made(quantised), PLATFORMS),
    "d=4": (made(lambda: dilated(4)), ONE),
    "d=4, space to batch": (made(lambda: form(dilated(4), "space_to_batch")), ONE),
    "d=4, slice to batch": (made(lambda: form(dilated(4), "slice_to_batch")), ONE),
    "d=4, im2col": (made(lambda: form(dilated(4), "im2col")), ONE),
    "d=16": (made(lambda: dilated(16)), ONE),
    "d=16, tap zones": (made(lambda: form(dilated(16), "tap_zones")), ONE),
    "depthwise, d=40": (made(lambda: dilated(40, group=16)), ONE),
    "unheard": (made(unheard), ONE),
}
"""Models, and the platforms that they are compiled for."""


@functools.cache
def recorded() -> dict[tuple[str, str, str], kit.Answer | str]:
    """What the toolkit answered, or why it refused, by the digest of the model, the platform and the version."""
    answers: dict[tuple[str, str, str], kit.Answer | str] = {}
    for one in json.loads(RECORDED.read_text(encoding="utf-8")):
        plain: dict[str, Any] = {name: value for name, value in one.items() if name not in ("model", "platform")}
        key = (one["digest"], one["platform"], one["version"])
        answers[key] = one["refused"] if "refused" in one else kit.Answer.read(json.dumps(plain))
    return answers
