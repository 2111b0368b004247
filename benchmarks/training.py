"""Training steps of five nets before and after `rewrite_module`, as `scripts/train_step.py` times them.

Run `python benchmarks/training.py [--budget S] [--seconds S]`; results go to benchmarks/results/training-cpu.json and
.md. Each net twice: with the C library's memory as it is, which gives large tensors back to the system after each use,
and keeping it, as CUDA's allocator, jemalloc and tcmalloc do. About fifteen minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _common import heading, table, write

from dilrewrite import machine

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_step.py"

NETS = {
    "convtasnet": "ConvTasNet-like: 1-D, depthwise, dilations 1 to 64, 2 x 32,000 samples",
    "highres3d": "HighRes3DNet-like: 3-D, dilations 1, 2, 4, 32 x 32 x 32",
    "aspp16": "depthwise separable ASPP, output stride 16: 2-D, dilations 6, 12, 18, 4 x 33 x 33",
    "aspp8": "depthwise separable ASPP, output stride 8: 2-D, dilations 12, 24, 36, 2 x 65 x 65",
    "plain2d": "plain 2-D: 128 channels, dilations 2 and 4, 2 x 64 x 64",
}

MEMORY = {
    "as it is": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)},
}
"""Of glibc; see mallopt(3)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every net with every memory and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for probing")
    parser.add_argument("--seconds", type=float, default=20.0, help="for timing the steps")
    given = parser.parse_args(arguments)
    load = machine.load()
    about = {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "device": f"{machine.processor()}, {machine.cores()} cores",
        "backend": "PyTorch",
        "versions": {"torch": version("torch")},
        "load_before": None if load is None else round(load, 2),
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for net in NETS:
            for memory, settings in MEMORY.items():
                print(f"{net}, memory {memory}", file=sys.stderr)
                file = Path(folder) / f"{net}.json"
                options = ["--net", net, "--budget", str(given.budget), "--seconds", str(given.seconds)]
                subprocess.run(
                    [sys.executable, SCRIPT, *options, "--json", file], check=True, env={**os.environ, **settings}
                )
                found.append({"memory": memory, **json.loads(file.read_text())})
    page = heading("Training steps before and after rewrite_module", about)
    page += ["Ratio: time of a step, rewritten / original, in pairs, with its 95 % interval.", ""]
    columns = ("net", "memory", "#layers rewritten", "forms", "#ms before", "#ms after", "#ratio", "#interval")
    columns += ("#noise", "#probing, s", "#paid back after steps", "#losses apart")
    rows = []
    for one in found:
        step, methods = one["step"], [layer["method"] for layer in one["layers"]]
        taken = sorted({name for name in methods if name != "keep"})
        rows.append(
            (
                NETS[one["net"]],
                one["memory"],
                f"{sum(name != 'keep' for name in methods)} of {len(methods)}",
                ", ".join(f"{methods.count(name)} {name}" for name in taken) or "-",
                f"{step['first']['median_s'] * 1e3:.3g}",
                f"{step['second']['median_s'] * 1e3:.3g}",
                f"{step['ratio']:.3f}",
                f"{step['low']:.3f} to {step['high']:.3f}",
                f"{100 * step['noise']:.1f} %" if step["noise"] is not None else "-",
                f"{one['probe_s']:.0f}",
                str(one["break_even_steps"] or "-"),
                f"{one['losses_apart']:.1e}",
            )
        )
    page += table(columns, rows)
    write("training-cpu", {**about, "nets": found}, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
