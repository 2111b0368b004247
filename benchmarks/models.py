"""Whole models: `dilrewrite optimize` as it comes, then a fresh `dilrewrite bench` of the result against the original.

Run `python benchmarks/models.py LIST.json [--budget S] [--modes default,eliminate]`; LIST holds
`[{"name": ..., "path": ..., "arguments": ["--shape", "x:1x1x4000"]}, ...]`. Results go to
benchmarks/results/models-BACKEND.json and .md (models-eliminate-BACKEND for that mode alone). Without LIST the models
of this repository are taken. What is kept is the original, byte for byte, and is not timed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import circumstances, heading, table, write

from dilrewrite.runtimes import timed_backend

OWN = [
    {"name": "splice_sites", "path": "models/splice_sites.onnx", "arguments": ["--shape", "sequence:1x4x10000"]},
    {"name": "aspp_segmentation", "path": "models/aspp_segmentation.onnx"},
    {"name": "causal_tcn", "path": "models/causal_tcn.onnx", "arguments": ["--shape", "roll:1x88x4000"]},
    {"name": "hifigan_vocoder", "path": "models/hifigan_vocoder.onnx", "arguments": ["--shape", "mel:1x80x200"]},
    {"name": "meshnet3d", "path": "models/meshnet3d.onnx"},
    {"name": "resnet_stage_os8", "path": "models/resnet_stage_os8.onnx"},
]


def cli(*arguments: str, limit: float | None = None) -> dict[str, Any]:
    """The report of a run of the tool in a process of its own, which may take `limit` seconds."""
    command = [sys.executable, "-m", "dilrewrite", *arguments, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{arguments[0]} took longer than {limit:g} s") from error
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(entry: dict[str, Any], mode: str, threads: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Optimize one model in one mode, and time the result afresh."""
    path, more = entry["path"], [*entry.get("arguments", []), "--threads", threads]
    after = folder / f"{entry['name']}.{mode}.onnx"
    flags = ["--eliminate"] if mode == "eliminate" else []
    flags += list(entry.get("flags", [])) if mode != "default" else []
    backend = ["--backend", options.backend]
    report = cli(
        "optimize",
        path,
        "-o",
        str(after),
        "--no-report",
        "--no-cache",
        "--force",
        "--budget",
        str(options.budget),
        *flags,
        *more,
        *backend,
        limit=options.limit,
    )
    result: dict[str, Any] = {
        "name": entry["name"],
        "mode": mode,
        "threads": threads,
        "status": report["status"],
        "identical": after.exists() and after.read_bytes() == Path(path).read_bytes(),
        "regions": sum(region["action"] == "rewritten" for region in report["regions"]),
        "sites": len(report["sites"]),
        "rewritten": report["rewritten"],
        "strategies": sorted({s["strategy"] for s in report["sites"] if s["action"] == "rewritten"}),
        "share": sum(s["share"] or 0 for s in report["sites"]),
        "measuring": report["measurement"],
        "reasons": sorted({s["reason"] for s in report["sites"]}),
        "seconds": sum(report["seconds"].values()),
    }
    if report["output"] is not None and not result["identical"]:
        timed = ("bench", path, str(after), "--budget", str(options.bench), *more, *backend)
        fresh = cli(*timed, limit=options.limit)["measurement"]
        result["fresh"] = fresh
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", nargs="?", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--bench", type=float, default=20.0, help="seconds for the fresh timing of the result")
    parser.add_argument("--modes", default="default,eliminate")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas between")
    parser.add_argument("--limit", type=float, help="seconds that one command may take")
    options = parser.parse_args()
    entries = json.loads(options.list.read_text(encoding="utf-8")) if options.list else OWN
    backend = timed_backend(options.backend)
    options.backend = backend.name
    about = circumstances(backend, None)
    rows = []
    with tempfile.TemporaryDirectory(prefix="dilrewrite-bench-") as folder:
        for entry in entries:
            for mode, threads in itertools.product(options.modes.split(","), options.threads.split(",")):
                try:
                    rows.append(run(entry, mode, threads, options, Path(folder)))
                except RuntimeError as error:
                    rows.append({"name": entry["name"], "mode": mode, "threads": threads, "status": "failed"})
                    rows[-1]["error"] = str(error)
                print(entry["name"], mode, threads, rows[-1]["status"], _fresh(rows[-1]), flush=True)
    page = heading("Whole models", about)
    page += [
        "`optimize`, then `bench` of its result against the original: time after / time before with the 95 % interval, "
        f"from sessions of their own (budgets {options.budget:g} s and {options.bench:g} s). The share is that of the "
        "dilated Convs in the original's time. `eliminate` leaves no dilation, whatever it costs. What was kept is the "
        "original, byte for byte, and was not timed again. With regions, Conv by Conv: whole models that `optimize` "
        "timed to choose between, as multiples of the original's time.",
        "",
    ]
    page += table(
        (
            "model",
            "mode",
            "#threads",
            "#sites",
            "#share",
            "#rewritten",
            "forms",
            "#before, ms",
            "#after / before",
            "interval",
            "#with regions",
            "#Conv by Conv",
            "#took, s",
        ),
        [_row(row) for row in rows],
    )
    kind = "models" if "default" in options.modes else f"models-{options.modes}"
    write(f"{kind}-{backend.name}", {"about": about, "rows": rows}, page)


def _fresh(row: dict[str, Any]) -> str:
    final = (row.get("fresh") or {}).get("final")
    return f"{final['ratio']:.3f} ({final['low']:.3f} to {final['high']:.3f})" if final else "-"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    if row["status"] == "failed":
        return (row["name"], row["mode"], row["threads"], "-", "-", "-", f"failed: {row['error']}", *"------")
    final = (row.get("fresh") or {}).get("final")
    attempts = (row["measuring"] or {"attempts": []})["attempts"]
    tried = {any("@" in site for site in one["sites"]): one["timing"] for one in attempts}
    told = [f"{tried[kind]['ratio']:.3f}" if kind in tried else "-" for kind in (True, False)]
    return (
        row["name"],
        row["mode"],
        row["threads"],
        str(row["sites"]),
        f"{100 * row['share']:.1f} %",
        str(row["rewritten"]),
        ", ".join(row["strategies"]) or row["status"],
        f"{final['first']['median_s'] * 1e3:.3g}" if final else "-",
        f"{final['ratio']:.3f}" if final else "-",
        f"{final['low']:.3f} to {final['high']:.3f}" if final else "-",
        *told,
        f"{row['seconds']:.0f}",
    )


if __name__ == "__main__":
    main()
