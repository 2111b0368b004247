"""`dilrewrite convbench` over its built-in configurations and its settings, written down.

Run `python benchmarks/convbench.py [original] [today] [readings] [settings] [--device cpu|cuda] [--seconds S]`;
results go to benchmarks/results/convbench-GROUP-DEVICE.json and .md. About ten minutes for a group on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import write

from dilrewrite import machine
from dilrewrite.cli._common import progress
from dilrewrite.pytorch import convbench, formats
from dilrewrite.pytorch.configurations import parse
from dilrewrite.pytorch.setting import Setting

PLAIN: dict[str, Any] = {"profile": True}

SMALL = ("i64x65x65,k64x3x3,b2,d4x4", "i128x65x65,k128x3x3,b2,d4x4,g128")
"""Dense and depthwise, small enough for what has no fast kernel."""

GROUPS: dict[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
    "original": [(("1", "2", "3"), PLAIN)],
    "today": [(("4", "5", "6", "7", "8"), PLAIN)],
    "readings": [((SMALL[1], "i128x65x65,k128x3x3,b2,d4x4"), PLAIN)],
    "settings": [
        (SMALL, {}),
        (SMALL, {"channels_last": True}),
        (SMALL, {"element": "bfloat16"}),
        (SMALL, {"element": "float16"}),
        (SMALL, {"compiled": True}),
        (SMALL, {"deterministic": True}),
    ],
}
"""What each group runs: configurations, and the settings that are not the usual ones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups and write each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each method and pass")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.groups if name not in GROUPS]
    if unknown:
        parser.error(f"there is no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    for name in given.groups or GROUPS:
        load = machine.load()
        results = []
        for texts, changes in GROUPS[name]:
            if given.device == "cpu" and changes.get("deterministic"):
                continue  # cuDNN's; nothing changes here
            setting = Setting(device=given.device, seconds=given.seconds, **changes)
            setting.check()
            with progress(hidden=False) as show:
                results.append(convbench.run([parse(text) for text in texts], setting, progress=show))
        minutes = formats.figure(sum(result.minutes for result in results))
        page = [f"# The convolution benchmark: {name}", "", formats.LEGEND, ""]
        page += [f"In all {minutes} minutes; load before: {'unknown' if load is None else round(load, 2)}.", ""]
        for result in results:
            page += formats.markdown(result, heading=False).splitlines()
        data = {"load_before": load, "results": [dataclasses.asdict(result) for result in results]}
        write(f"convbench-{name}-{given.device.partition(':')[0]}", data, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
