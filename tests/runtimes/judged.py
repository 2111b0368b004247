"""What judges are asked about in tests, as TFLite, and what they answered: `scripts/record_judges.py` asks them anew.

The models are quantised by hand, with scales that no machine rounds otherwise, and what forms call their nodes is left
out: the files are the same everywhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import parse, plan
from dilrewrite.judges import Judge
from dilrewrite.runtimes import Artifact, Runnable, artifact, ethos_u, fixed
from dilrewrite.runtimes import _vela as vela
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.tflite import convert, quantize
from dilrewrite.tflite.source import Source

RECORDED = Path(__file__).parent / "judges" / "ethos_u.json"
ACCELERATORS = ("ethos-u55-128", "ethos-u65-512", "ethos-u85-512")
NEW, OLD = "5.2.0", "3.10.0"
ASKED = (*((NEW, accelerator) for accelerator in ACCELERATORS), (OLD, ACCELERATORS[0]))
"""Versions of Vela, and the accelerators that each was asked about."""


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
def recorded() -> dict[tuple[str, str, str], vela.Answer]:
    """What Vela answered, by the digest of the model, the accelerator and the version."""
    answers = [vela.Answer.read(json.dumps(one)) for one in json.loads(RECORDED.read_text(encoding="utf-8"))]
    accelerators = [one.command.split("--accelerator-config ")[1].split()[0] for one in answers]
    return {(one.digest, at, one.version): one for one, at in zip(answers, accelerators, strict=True)}


Work = Callable[[int, int], float]


def zeros(kernel: int, d: int) -> float:
    """The taps of a dilated axis as Vela counts them: zeros are written into the kernel but for a factor of 2."""
    return 1 + (kernel - 1) * (d if d % 2 else d // 2)


def estimate(backend: ethos_u.EthosU, given: ethos_u._Asked, work: Work = zeros) -> vela.Answer:
    """A stand-in for Vela: an axis of a kernel is so much `work`, and SpaceToDepth is on the CPU."""
    proto = fixed(given.model, given.shapes)
    graph = convert.written(Source(proto if quantize.is_quantised(proto) else quantize.quantised(proto)))
    operators = []
    for kind, operator in zip(graph.kinds(), graph.operators, strict=True):
        made = graph.tensors[operator.fields["outputs"][0]].fields
        cycles = float(np.prod(made["shape"]))
        if kind == "CONV_2D":
            kernel = graph.tensors[operator.fields["inputs"][1]].fields["shape"]
            d = operator.fields["builtin_options"].fields["dilation_h_factor"]
            cycles *= kernel[3] * work(kernel[1], d) ** 2
        hosted = kind in ("SPACE_TO_DEPTH", "DEPTH_TO_SPACE")
        target = "CPU" if hosted else vela.NPU
        operators.append(vela.Placed(name=made["name"], operator=kind, target=target, cycles=0 if hosted else cycles))
    return vela.Answer(
        cycles=sum(one.cycles for one in operators), clock_hz=1.0, memory_bytes=1, operators=tuple(operators),
        command=f"estimate {backend.accelerator}", version="0", digest="",
    )  # fmt: skip


def stand_in(monkeypatch: pytest.MonkeyPatch, work: Work = zeros) -> None:
    """Put it in the place of Vela, as if that was installed."""

    def prepare(self: ethos_u.EthosU, model: Runnable, shapes: Any) -> Artifact:
        answer = estimate(self, ethos_u._Asked(model, shapes), work)
        return artifact(Runnable(model=answer.text().encode(), engine=True))

    monkeypatch.setattr(ethos_u.EthosU, "prepare", prepare)
    monkeypatch.setattr(Judge, "missing", lambda _: None)
