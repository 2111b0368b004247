"""What judges are asked about in tests, as TFLite, and what they answered: `scripts/record_judges.py` asks them anew.

The models are quantised by hand, with scales that no machine rounds otherwise, and what forms call their nodes is left
out: the files are the same everywhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import parse, plan
from dilrewrite.runtimes import _vela as vela
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.tflite import convert

RECORDED = Path(__file__).parent / "judges" / "ethos_u.json"
ACCELERATORS = ("ethos-u55-128", "ethos-u65-512", "ethos-u85-512")


def dilated(d: int, *, channels: int = 16, size: int = 32, group: int = 1) -> ModelProto:
    """A quantised 3x3 Conv with dilation `d`, SAME; its node is `site`."""
    rng = np.random.default_rng(d)
    shape = [1, channels, size, size]
    held = {
        "w": rng.integers(-127, 128, (channels, channels // group, 3, 3)).astype(np.int8),
        "ws": np.full(channels, 2.0**-7, np.float32),
        "wz": np.zeros(channels, np.int8),
        "b": np.zeros(channels, np.int32),
        "bs": np.full(channels, 2.0**-11, np.float32),
        "s": np.float32(2.0**-4),
        "z": np.int8(3),
        "t": np.float32(0.5),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"], name="x_real"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["k"], name="w_real", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["c"], name="b_real", axis=0),
        helper.make_node("Conv", ["d", "k", "c"], ["a"], name="site", dilations=[d, d], pads=[d] * 4, group=group),
        helper.make_node("QuantizeLinear", ["a", "t", "z"], ["y"], name="y_whole"),
    ]
    graph = helper.make_graph(
        nodes,
        "dilated",
        [helper.make_tensor_value_info("x", TensorProto.INT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def form(proto: ModelProto, text: str) -> ModelProto:
    """The model with a form in the place of its Conv."""
    found, (name, strategy) = find(proto), parse(text)
    (site,) = found.sites
    fragment = plan(name, strategy, site.geometry, site.opset, storage=site.storage)
    assert isinstance(fragment, Fragment), fragment
    return rewrite(proto, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto


CONVERT = convert.tflite


def tflite(proto: ModelProto) -> bytes:
    """A model as TFLite, whose names hold nothing of the nodes' names."""
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    return CONVERT(proto)


MODELS: dict[str, Callable[[], bytes]] = {
    "undilated": lambda: tflite(dilated(1)),
    "d=2": lambda: tflite(dilated(2)),
    "d=5": lambda: tflite(dilated(5)),
    "d=5, phases apart": lambda: tflite(form(dilated(5), "phases_apart:limit_phases=64")),
    "d=5, space to batch": lambda: tflite(form(dilated(5), "space_to_batch")),
    "d=8": lambda: tflite(dilated(8)),
    "d=8, phases apart": lambda: tflite(form(dilated(8), "phases_apart:limit_phases=64")),
    "d=8, phases apart leaving 2": lambda: tflite(form(dilated(8), "phases_apart:max_dilation=2,limit_phases=64")),
    "depthwise, d=5": lambda: tflite(dilated(5, group=16)),
}


@functools.cache
def recorded() -> dict[tuple[str, str], vela.Answer]:
    """What Vela answered, by the digest of the model and the accelerator."""
    answers = [vela.Answer.read(json.dumps(one)) for one in json.loads(RECORDED.read_text(encoding="utf-8"))]
    return {(one.digest, one.command.split("--accelerator-config ")[1].split()[0]): one for one in answers}
