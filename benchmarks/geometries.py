"""Every form against keep on geometries of real networks, each in a neighbourhood as networks have it.

Run `python benchmarks/geometries.py [--backend NAME] [--threads N] [--only TEXT] [--seconds S]`; results go to
benchmarks/results/geometries-BACKEND.json and .md. Each Conv stands between a 1x1 Conv and an activation (with a 1x1
Conv behind it in 2-D), and is timed as `dilrewrite optimize` times it: paired, after the Conv against itself.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _common import circumstances, heading, table, write
from _convs import CONVS, Conv
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


def model(conv: Conv) -> ModelProto:
    """The Conv, its activation, and a 1x1 Conv, as a model."""
    rng = np.random.default_rng(0)
    channels, outputs = conv.channels
    weight = rng.standard_normal((outputs, channels // conv.group, *conv.kernel), dtype=np.float32)
    tail = rng.standard_normal((16, outputs, *(1,) * len(conv.extents)), dtype=np.float32)
    begins, ends = conv.pads
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
