"""A model against itself, again and again: how often the interval of `dilrewrite bench M M` holds 1.

Run `python benchmarks/same.py [--times 20] [--budget S]`; results go to benchmarks/results/same-BACKEND.json and .md.
Every run is a process of its own. Three sizes of the models of this repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _common import circumstances, heading, table, write

from dilrewrite.runtimes import timed_backend
from models import cli

SIZES = [
    ("small", "models/causal_tcn.onnx", ["--shape", "roll:1x88x120"]),
    ("medium", "models/aspp_segmentation.onnx", []),
    ("large", "models/meshnet3d.onnx", []),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--budget", type=float, default=6.0)
    options = parser.parse_args()
    backend = timed_backend(options.backend)
    about = circumstances(backend, None)
    rows = []
    for size, path, more in SIZES:
        for number in range(options.times):
            report = cli("bench", path, path, "--budget", str(options.budget), "--backend", backend.name, *more)
            final, noise = report["measurement"]["final"], report["measurement"]["noise"]
            holds = final["low"] <= 1 <= final["high"]
            rows.append({"size": size, "model": path, "holds": holds, "final": final, "noise": noise})
            print(
                f"{size} {number + 1}: {final['ratio']:.4f} ({final['low']:.4f} to {final['high']:.4f}) {holds}",
                flush=True,
            )
    page = heading("A model against itself", about)
    page += [
        f"`dilrewrite bench M M --budget {options.budget:g}`, {options.times} times per size, each in a new process.",
        "",
    ]
    summary = []
    for size, path, more in SIZES:
        found = [row for row in rows if row["size"] == size]
        ratios = sorted(row["final"]["ratio"] for row in found)
        widths = sorted(row["final"]["high"] / row["final"]["low"] - 1 for row in found)
        summary.append(
            (
                size,
                f"`{path} {' '.join(more)}`".replace(" `", "`"),
                f"{1e3 * found[0]['final']['first']['median_s']:.3g}",
                f"{sum(row['holds'] for row in found)} of {len(found)}",
                f"{ratios[0]:.4f} to {ratios[-1]:.4f}",
                f"{100 * widths[len(widths) // 2]:.2f} %",
            )
        )
    page += table(("size", "model", "#ms", "#interval holds 1", "ratios", "#median width"), summary)
    page += ["Every run:", ""]
    page += table(
        ("size", "#ratio", "interval", "#noise", "#pairs", "mode"),
        [
            (
                row["size"],
                f"{row['final']['ratio']:.4f}",
                f"{row['final']['low']:.4f} to {row['final']['high']:.4f}"
                + ("" if row["holds"] else " (does not hold 1)"),
                f"{100 * (row['final']['noise'] or 0):.2f} %",
                str(row["final"]["pairs"]),
                row["final"]["mode"],
            )
            for row in rows
        ],
    )
    write(f"same-{backend.name}", {"about": about, "rows": rows}, page)


if __name__ == "__main__":
    main()
