"""Benchmarks of the tool itself: start-up, structural rewriting of large models, memory with large weights and sites.

Run `python benchmarks/tool.py [--piper FILE]`; results go to benchmarks/results/tool.json and tool.md with machine and
date. Every figure is of a whole process, from start to exit: the median of `--runs` runs, and the largest peak of
resident memory. `--piper` adds a real model (63 MB, 2,755 nodes) to the synthetic ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RESULTS = Path(__file__).parent / "results"


def conv_chain(path: Path, *, nodes: int, dilated: int, channels: int, weight_bytes: int = 0) -> None:
    """A 1-D chain of Conv and Relu with unknown length; `weight_bytes` of extra weights spread over plain Convs."""
    rng = np.random.default_rng(0)
    made, tensors = [], []
    name = "x"
    every = nodes // dilated
    plain = rng.standard_normal((channels, channels, 1)).astype(np.float32) / channels
    tensors.append(numpy_helper.from_array(plain, "plain"))
    extra = weight_bytes // max(1, nodes - dilated) // (4 * channels * channels)
    for index in range(nodes):
        out = f"t{index}"
        if index % every == 0:
            weight = (rng.standard_normal((channels, channels, 3)) / channels).astype(np.float32)
            tensors.append(numpy_helper.from_array(weight, f"w{index}"))
            d = 2 + index // every % 7
            made.append(
                helper.make_node("Conv", [name, f"w{index}"], [out], name=f"conv{index}", dilations=[d], pads=[d, d])
            )
        elif extra and index % 2:
            weight = (rng.standard_normal((channels, channels, extra | 1)) / channels).astype(np.float32)
            tensors.append(numpy_helper.from_array(weight, f"w{index}"))
            half = (extra | 1) // 2
            made.append(helper.make_node("Conv", [name, f"w{index}"], [out], name=f"conv{index}", pads=[half, half]))
        else:
            made.append(helper.make_node("Relu", [name], [out], name=f"relu{index}"))
        name = out
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "t"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def inline_chain(path: Path, *, layers: int, channels: int, taps: int) -> None:
    """A 1-D chain of dilated Convs, `layers * channels**2 * taps * 4` bytes of weights inline."""
    made, tensors = [], []
    for index in range(layers):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[channels, channels, taps])
        tensor.raw_data = np.random.default_rng(index).bytes(channels * channels * taps * 4)
        tensors.append(tensor)
        ends = [f"t{index}", f"w{index}"], [f"t{index + 1}"]
        made.append(helper.make_node("Conv", *ends, name=f"c{index}", dilations=[2], pads=[taps - 1] * 2))
    shape = [1, channels, None]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("t0", f"t{layers}")]
    graph = helper.make_graph(made, "inline", values[:1], values[1:])
    graph.initializer.extend(tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def volume(path: Path, *, channels: int, extent: int) -> None:
    """One dilated 3-D Conv on a large volume."""
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3, 3), dtype=np.float32)
    shape = [1, channels, extent, extent, extent]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", dilations=[2] * 3, pads=[2] * 6)],
        "volume",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def external_chain(path: Path, *, layers: int, channels: int) -> None:
    """A 1-D chain of dilated Convs, weights in one external file of `layers * channels**2 * 12` bytes."""
    rng = np.random.default_rng(0)
    made, tensors = [], []
    name, offset = "x", 0
    with path.with_suffix(".bin").open("wb") as file:
        for index in range(layers):
            weight = (rng.standard_normal((channels, channels, 3), dtype=np.float32) / channels).astype(np.float32)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": path.with_suffix(".bin").name, "offset": offset, "length": weight.nbytes}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += weight.nbytes
            file.write(weight.tobytes())
            d = 2 << index % 3
            made.append(
                helper.make_node(
                    "Conv", [name, f"w{index}"], [f"t{index}"], name=f"c{index}", dilations=[d], pads=[d, d]
                )
            )
            name = f"t{index}"
    graph = helper.make_graph(
        made,
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, "t"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def measure(command: Sequence[str], runs: int) -> dict[str, float | int | list[float]]:
    """Run a command `runs` times; median wall seconds and the largest peak of resident memory in MiB."""
    walls, peaks = [], []
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{' '.join(command)} failed: {errors.decode()}")
    return {"median_s": statistics.median(walls), "runs_s": walls, "peak_mib": max(peaks)}


def main() -> None:
    from dilrewrite.forms.strategies import strategies
    from dilrewrite.reports.report import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--piper", type=Path, help="a Piper voice, as a real 63 MB model of 2,755 nodes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.4, help="size of the external data")
    options = parser.parse_args()
    cli = [sys.executable, "-m", "dilrewrite"]
    structural = ["--strategy", "space_to_axis", "--verify", "none", "--force", "--no-report", "--quiet"]
    rows: list[tuple[str, str, dict[str, float | int | list[float]]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = str(folder / "out.onnx")

        def add(title: str, aim: str, command: Sequence[str], runs: int = options.runs) -> None:
            rows.append((title, aim, measure(command, runs)))
            print(f"{title}: {rows[-1][2]['median_s']:.2f} s, {rows[-1][2]['peak_mib']:.0f} MiB", flush=True)

        add("`dilrewrite --help`", "", [*cli, "--help"])
        add("`dilrewrite optimize --help`", "", [*cli, "optimize", "--help"])
        models: list[tuple[str, str, Path]] = []
        if options.piper:
            models.append(("Piper voice, 63 MB, 2,755 nodes, 23 dilated", "below 2 s", options.piper))
        conv_chain(folder / "m63.onnx", nodes=2755, dilated=23, channels=64, weight_bytes=63 * 10**6)
        models.append(("synthetic, 63 MB, 2,755 nodes, 23 dilated", "below 2 s", folder / "m63.onnx"))
        for count in (2500, 5000, 10000):
            path = folder / f"n{count}.onnx"
            conv_chain(path, nodes=count, dilated=count // 10, channels=8)
            models.append((f"{count:,} nodes, {count // 10:,} dilated", "below 10 s at 10,000, linear", path))
        for title, aim, path in models:
            add(f"structural rewrite: {title}", aim, [*cli, "optimize", str(path), "-o", out, *structural])
        sites = ["--strategy", "space_to_batch", "--verify", "sites", "--force", "--no-report", "--quiet"]
        for channels in (1024, 2048):
            layers = max(1, round(options.gigabytes * 1e9 / (channels * channels * 12)))
            external_chain(folder / "big.onnx", layers=layers, channels=channels)
            size = (folder / "big.bin").stat().st_size / 1e9
            add(
                f"{size:.1f} GB of external data in {layers} dilated Convs of {channels} channels, `--verify sites`",
                "below 300 MiB",
                [*cli, "optimize", str(folder / "big.onnx"), "-o", out, "--external-data", "reference", *sites],
                1,
            )
        with ProcessPoolExecutor(1) as pool:  # a process starts with the peak of the one that started it
            pool.submit(inline_chain, folder / "inline.onnx", layers=16, channels=64, taps=4096).result()
        add("`inspect`, 1 GiB of inline weights", "below 1.3 GiB", [*cli, "inspect", str(folder / "inline.onnx")], 1)
        volume(folder / "volume.onnx", channels=16, extent=256)
        forms = [name for name in strategies() if name not in ("keep", "tap_prune", "lift", "space_to_axis")]
        for form in forms:  # the site's proof alone: one such tensor of the whole model is 1 GiB
            command = ["--strategy", form, "--verify", "sites", "--force", "--no-report", "--quiet", "--budget", "0"]
            add(
                f"proof of `{form}` on 16 x 256^3, `--verify sites`",
                "below 2 GiB",
                [*cli, "optimize", str(folder / "volume.onnx"), "-o", out, *command],
                1,
            )
    machine = environment(None)
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    content = {
        "date": date,
        "environment": dataclasses.asdict(machine),
        "runs": options.runs,
        "rows": [{"what": title, "aim": aim, **figures} for title, aim, figures in rows],
    }
    (RESULTS / "tool.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# The tool itself",
        "",
        f"{date}; {machine.processor}, {machine.cores} cores; Python {machine.python}; "
        + ", ".join(f"{package} {version}" for package, version in machine.packages.items()),
        "",
        "Whole processes, start to exit: median, smallest and largest of the runs, largest peak of resident memory.",
        "",
        "| what | aim | median s | min - max s | peak MiB |",
        "|---|---|---:|---:|---:|",
    ]
    for title, aim, figures in rows:
        walls = figures["runs_s"]
        assert isinstance(walls, list)
        lines.append(
            f"| {title} | {aim} | {figures['median_s']:.2f} | {min(walls):.2f} - {max(walls):.2f} "
            f"| {figures['peak_mib']:.0f} |"
        )
    (RESULTS / "tool.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
