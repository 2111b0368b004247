"""Every form against keep on geometries of real networks, each in a neighbourhood as networks have it.

Run `python benchmarks/geometries.py [--backend NAME] [--threads N] [--only TEXT] [--seconds S]`; results go to
benchmarks/results/geometries-BACKEND.json and .md. Each Conv stands between a 1x1 Conv and an activation (with a 1x1
Conv behind it in 2-D), and is timed as `dilrewrite optimize` times it: paired, after the Conv against itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _common import circumstances, heading, table, write
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.choice import choose
from dilrewrite.forms.strategies import strategies
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.runtimes import Options, timed_backend
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.timing import neighbourhood
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.measure import Form, Meter
from dilrewrite.timing.profiling import Profiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv:
    """A dilated Conv of a network: `padding` is same, causal or valid."""

    network: str
    channels: tuple[int, int]
    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int = 1
    padding: str = "same"
    activation: str = "Relu"

    @property
    def label(self) -> str:
        """The geometry in short."""

        def short(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        group = f" g{self.group}" if self.group > 1 else ""
        extents = "x".join(map(str, self.extents))
        return (
            f"{len(self.extents)}-D k{short(self.kernel)} d{short(self.dilation)}{group} "
            f"{self.channels[0]}->{self.channels[1]} at {extents}"
            + (f" {self.padding}" if self.padding != "same" else "")
        )


def _aspp(network: str, size: int, channels: int, rates: tuple[int, ...]) -> list[Conv]:
    return [
        Conv(network=network, channels=(channels, 256), extents=(size, size), kernel=(3, 3), dilation=(rate, rate))
        for rate in rates
    ]


def _line(network: str, channels: int, length: int, kernel: int, rates: tuple[int, ...], **more: Any) -> list[Conv]:
    return [
        Conv(
            network=network,
            channels=(channels, more.pop("out", channels)) if "out" in more else (channels, channels),
            extents=(length,),
            kernel=(kernel,),
            dilation=(rate,),
            **more,
        )
        for rate in rates
    ]


CONVS: list[Conv] = [
    *_aspp("DeepLabV3 ASPP, output stride 8, 224", 28, 320, (12, 24, 36)),
    *_aspp("DeepLabV3 ASPP, output stride 16, 513", 33, 320, (6, 12, 18)),
    *_aspp("DeepLabV3 ASPP, output stride 8, 513", 65, 320, (12, 24, 36)),
    Conv(network="DeepLabV3 ASPP, ResNet", channels=(2048, 256), extents=(28, 28), kernel=(3, 3), dilation=(12, 12)),
    Conv(
        network="ResNet layer 3, output stride 8", channels=(256, 256), extents=(28, 28), kernel=(3, 3), dilation=(2, 2)
    ),
    Conv(
        network="ResNet layer 4, output stride 8", channels=(512, 512), extents=(28, 28), kernel=(3, 3), dilation=(4, 4)
    ),
    *[
        Conv(network="U2Net RSU-4F", channels=(256, 256), extents=(20, 20), kernel=(3, 3), dilation=(d, d))
        for d in (2, 4, 8)
    ],
    Conv(network="U2NetP RSU-4F", channels=(16, 16), extents=(20, 20), kernel=(3, 3), dilation=(4, 4)),
    *[Conv(network="ERFNet", channels=(128, 128), extents=(64, 128), kernel=(3, 1), dilation=(d, 1)) for d in (2, 8)],
    *[Conv(network="ERFNet", channels=(128, 128), extents=(64, 128), kernel=(1, 3), dilation=(1, d)) for d in (4, 16)],
    Conv(
        network="LR-ASPP MobileNetV3",
        channels=(672, 672),
        extents=(14, 14),
        kernel=(5, 5),
        dilation=(2, 2),
        group=672,
        activation="HardSwish",
    ),
    Conv(
        network="LR-ASPP MobileNetV3",
        channels=(960, 960),
        extents=(14, 14),
        kernel=(5, 5),
        dilation=(2, 2),
        group=960,
        activation="HardSwish",
    ),
    *_line("ConvTasNet", 512, 3200, 3, (2, 16, 128), group=512, activation="PRelu"),
    *_line("WaveNet", 64, 16000, 2, (2, 64, 512), padding="causal", activation="Tanh"),
    *_line("DiffWave", 64, 16000, 3, (2, 64, 512), activation="Tanh"),
    *_line("causal TCN", 64, 4000, 3, (2, 16), padding="causal"),
    *_line("HiFi-GAN", 256, 2752, 3, (3,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 256, 2752, 11, (5,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 128, 5504, 7, (3,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 32, 22016, 11, (5,), activation="LeakyRelu"),
    *_line("Piper", 128, 840, 3, (2,), activation="LeakyRelu"),
    *_line("Piper", 64, 6720, 7, (12,), activation="LeakyRelu"),
    *_line("Piper, duration predictor", 192, 50, 3, (9,), group=192),
    *_line("SpliceAI", 32, 15000, 11, (4,)),
    *_line("SpliceAI", 32, 15000, 21, (10,)),
    *_line("SpliceAI", 32, 15000, 41, (25,)),
    *[
        Conv(network="MeshNet", channels=(21, 21), extents=(64, 64, 64), kernel=(3, 3, 3), dilation=(d, d, d))
        for d in (2, 8)
    ],
    *[
        Conv(network="HighRes3DNet", channels=(c, c), extents=(48, 48, 48), kernel=(3, 3, 3), dilation=(d, d, d))
        for c, d in ((32, 2), (64, 4))
    ],
]


def model(conv: Conv) -> ModelProto:
    """The Conv, its activation, and a 1x1 Conv, as a model."""
    rng = np.random.default_rng(0)
    channels, outputs = conv.channels
    weight = rng.standard_normal((outputs, channels // conv.group, *conv.kernel), dtype=np.float32)
    tail = rng.standard_normal((16, outputs, *(1,) * len(conv.extents)), dtype=np.float32)
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    begins = {"same": [span // 2 for span in spans], "causal": spans, "valid": [0] * len(spans)}[conv.padding]
    ends = {"same": [s - b for s, b in zip(spans, begins, strict=True)]}.get(conv.padding, [0] * len(spans))
    tensors = [
        numpy_helper.from_array(weight / math.sqrt(weight[0].size), "w"),
        numpy_helper.from_array(np.zeros(outputs, np.float32), "b"),
        numpy_helper.from_array(tail / outputs, "tail"),
        numpy_helper.from_array(np.full((outputs, *(1,) * len(conv.extents)), 0.2, np.float32), "slope"),
    ]
    inputs = ["c", "slope"] if conv.activation == "PRelu" else ["c"]
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["c"],
            name="conv",
            dilations=conv.dilation,
            pads=[*begins, *ends],
            kernel_shape=conv.kernel,
            group=conv.group,
        ),
        helper.make_node(conv.activation, inputs, ["a"], name="activation"),
        helper.make_node("Conv", ["a", "tail"], ["y"], name="tail"),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *conv.extents])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", help="geometries whose network or label contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="for one form, about")
    options = parser.parse_args()
    backend = timed_backend(options.backend)
    about = circumstances(backend, options.threads)
    prover = Prover()
    rows: list[dict[str, Any]] = []
    for number, conv in enumerate(CONVS, 1):
        if options.only not in f"{conv.network} {conv.label}":
            continue
        start = time.monotonic()
        rows.append({"network": conv.network, "geometry": conv.label, **measured(conv, backend, prover, options)})
        row = rows[-1]
        best = min(((f["ratio"], name) for name, f in row["forms"].items() if f["ratio"]), default=(math.nan, "none"))
        print(
            f"{number:>2}/{len(CONVS)} {conv.network}: {conv.label}: keep {row['keep_ms']:.3f} ms, "
            f"best {best[1]} {best[0]:.2f}x ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    data = {"about": about, "rows": rows}
    names = [name for name in strategies() if name not in ("keep",)]
    page = heading("Forms against the dilated Conv", about)
    page += [
        "Time of a form as a multiple of the dilated Conv's (below 1: faster), both with their neighbours; **bold**: "
        "faster beyond margin, noise and interval. `-`: the form does not apply, or comes to the same as tap_prune. "
        "Forms that lost every one of the first six pairs by more than 1.15x were not timed further. One run of "
        f"`python benchmarks/geometries.py --backend {backend.name}`.",
        "",
    ]
    page += table(
        ("network", "geometry", "#keep, ms", "#noise, %", *(f"#{name}" for name in names)),
        [
            (
                row["network"],
                row["geometry"],
                f"{row['keep_ms']:.3g}",
                row["noise"],
                *(_cell(row["forms"].get(name)) for name in names),
            )
            for row in rows
        ],
    )
    if not options.only:
        write(f"geometries-{backend.name}", data, page)
    else:
        print("\n".join(page))


def _cell(form: dict[str, Any] | None) -> str:
    if form is None:
        return "-"
    if form["ratio"] is None:
        return "fails"
    text = f"{form['ratio']:.2f}" if form["ratio"] < 10 else f"{form['ratio']:.0f}"
    return f"**{text}**" if form["faster"] else text


def measured(conv: Conv, backend: Any, prover: Prover, options: argparse.Namespace) -> dict[str, Any]:
    """Time every form of one geometry."""
    proto = model(conv)
    source, (site,) = Source(proto), find(proto).sites
    offered, _ = choose.candidates(site, strategies())
    wanted = choose.distinct([candidate for candidate in offered if candidate.strategy != "keep"])
    profiled = Profiled(seconds=0.0, sites={}, tensors={})

    def ask(bare: bool) -> neighbourhood.Question:
        return neighbourhood.ask(
            source, site, profiled, lambda tensor: numpy_helper.to_array(tensor), backend.layout_ranks, bare=bare
        )

    meter = Meter.on(backend, Cache(None), Budget(1e6), Options(threads=options.threads))
    meter.budget.begin()
    forms = [Form(strategy=c.strategy, fragment=c.fragment, prove=_proof(prover, source, site, c)) for c in wanted]
    try:
        answer = meter.answer(ask(False), lambda: ask(True), forms, options.seconds, must_go=False)
    finally:
        meter.close()
    timed = {name: form.timing for name, form in answer.forms.items()}
    first = next((timing.first.median_s for timing in timed.values() if timing is not None), math.nan)
    noise = next((timing.noise for timing in timed.values() if timing is not None), None)
    return {
        "keep_ms": first * 1e3,
        "noise": "-" if noise is None else f"{100 * noise:.1f}",
        "forms": {
            name: {
                "outcome": str(answer.forms[name].outcome),
                "ratio": None if timing is None else timing.ratio,
                "low": None if timing is None else timing.low,
                "high": None if timing is None else timing.high,
                "pairs": None if timing is None else timing.pairs,
                "mode": None if timing is None else timing.mode,
                "keep_ms": None if timing is None else timing.first.median_s * 1e3,
                "form_ms": None if timing is None else timing.second.median_s * 1e3,
                "faster": timing is not None and timing.faster,
            }
            for name, timing in timed.items()
        },
    }


def _proof(prover: Prover, source: Source, site: Site, candidate: choose.Candidate) -> Any:
    return lambda: prover.prove(source, site, candidate.fragment).failure


if __name__ == "__main__":
    main()
