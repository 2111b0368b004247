"""The tables of docs/training.md, from the results of `benchmarks/convbench.py` and `benchmarks/training.py`.

Run `python benchmarks/convbench_summary.py`; it rewrites what stands between the markers of the page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import RESULTS, table

from dilrewrite.pytorch.convbench import PASSES
from dilrewrite.pytorch.formats import figure, percent

PAGE = Path(__file__).parent.parent / "docs" / "training.md"

KEEP = "keep"

READINGS = (
    ("1-D depthwise, k3 d64", "convtasnet-depthwise", "forward", "space_to_axis", "19.8 to 4.5"),
    ("1-D depthwise, k3 d64", "convtasnet-depthwise", "backward by input", "space_to_axis", "25.7 to 4.5"),
    ("3-D, 32 channels, d2", "highresnet3d", "backward by weight", "space_to_batch", "29.6 to 5.7"),
    ("2-D depthwise, d4", "i128x65x65,k128x3x3,b2,d4x4,g128", "backward by weight", "space_to_batch", "4.3 to 1.2"),
    ("2-D, 128 channels", "i128x65x65,k128x3x3,b2,d4x4", "forward", "", "no gain"),
    ("2-D, 128 channels", "i128x65x65,k128x3x3,b2,d4x4", "backward by input", "", "no gain"),
    ("2-D, 128 channels", "i128x65x65,k128x3x3,b2,d4x4", "backward by weight", "", "no gain"),
)
"""What, configuration, pass, form, and the milliseconds that a first reading had, of a geometry of this kind."""

PROFILED = ("original-64", "deeplab-aspp", "convtasnet-depthwise", "depthwise-aspp")

Result = Mapping[str, Any]


def load(group: str) -> list[Result]:
    """The results of a group of the convolution benchmark."""
    data = json.loads((RESULTS / f"convbench-{group}-cpu.json").read_text(encoding="utf-8"))
    found = data["results"]
    assert isinstance(found, list)
    return found


def name_of(configuration: Mapping[str, Any]) -> str:
    """The name of a configuration, or its text."""
    return str(configuration["name"] or configuration["text"])


def rows(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """Rows that have a time: (configuration, pass) -> method -> row."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        names = {one["text"]: name_of(one) for one in result["configurations"]}
        for row in result["rows"]:
            if row["comparison"] is not None:
                found.setdefault((names[row["configuration"]], row["direction"]), {})[row["method"]] = row
    return found


def native_ms(of: Mapping[str, Mapping[str, Any]]) -> str:
    """The native form's median."""
    return figure(of[KEEP]["comparison"]["second"]["median_s"] * 1e3)


def best(of: Mapping[str, Mapping[str, Any]]) -> str:
    """The form with the smallest ratio, in bold when it is faster with its whole interval."""
    name = min((name for name in of if name != KEEP), key=lambda name: of[name]["comparison"]["ratio"])
    found = of[name]["comparison"]
    told = f"`{name}` {figure(found['ratio'])} ({figure(found['low'])} to {figure(found['high'])})"
    return f"**{told}**" if found["high"] < 1 else told


def best_table(results: Sequence[Result]) -> list[str]:
    """For each configuration and pass: the native time, and the best other form."""
    found = rows(results)
    lines = []
    for result in results:
        for one in result["configurations"]:
            cells = []
            for direction in PASSES:
                of = found[name_of(one), direction]
                cells.append(f"{native_ms(of)} ms; {best(of)}")
            title = f"{one['name']}: `{one['text']}`" if one["name"] else f"`{one['text']}`"
            lines.append((title, *cells))
    return table(("configuration", *PASSES), lines)


def settings_table(results: Sequence[Result]) -> list[str]:
    """The same for each setting."""
    lines = []
    for result in results:
        setting, found = result["setting"], rows([result])
        told = [setting["element"]] if setting["element"] != "float32" else []
        told += ["channels last"] if setting["channels_last"] else []
        told += ["torch.compile"] if setting["compiled"] else []
        told += ["deterministic"] if setting["deterministic"] else []
        for one in result["configurations"]:
            kind = "depthwise" if one["groups"] > 1 else "dense"
            ofs = [found[name_of(one), direction] for direction in PASSES]
            lines.append((", ".join(told) or "float32", kind, *(f"{native_ms(of)} ms; {best(of)}" for of in ofs)))
    return table(("setting", "kind", *PASSES), lines)


def layout_table(results: Sequence[Result]) -> list[str]:
    """What the layers that move data take of a form's own time, with what padding takes."""
    found = rows(results)
    lines = []
    for name in PROFILED:
        for form in ("space_to_axis", "space_to_batch", "slice_to_batch"):
            shares = [found[name, direction][form]["shares"] for direction in PASSES]
            moved = [f"{percent(one['layout'] + one['padding'])} / {percent(one['convolution'])}" for one in shares]
            lines.append((name, f"`{form}`", *moved))
    return table(("configuration", "form", *(f"#{one}" for one in PASSES)), lines)


def readings_table(results: Sequence[Result]) -> list[str]:
    """What was told before, and what is measured here."""
    found = rows(results)
    lines = []
    for what, configuration, direction, form, before in READINGS:
        of = found[configuration, direction]
        form = form or min((name for name in of if name != KEEP), key=lambda name: of[name]["comparison"]["ratio"])
        one = of[form]["comparison"]
        now = f"{figure(one['first']['median_s'] * 1e3)} to {figure(one['second']['median_s'] * 1e3)}"
        ratio = f"{figure(one['ratio'])} ({figure(one['low'])} to {figure(one['high'])})"
        lines.append((what, direction, before, f"`{form}`", now, ratio))
    return table(("what", "pass", "first reading, ms", "form", "#here, ms", "#ratio"), lines)


def training_table() -> list[str]:
    """The table of the page of training steps."""
    page = (RESULTS / "training-cpu.md").read_text(encoding="utf-8")
    return [*(line for line in page.splitlines() if line.startswith("|")), ""]


def tables() -> dict[str, str]:
    """Every table of the page, by its marker."""
    original, today, readings, settings = (load(group) for group in ("original", "today", "readings", "settings"))
    made = {
        "best": best_table([*original, *today, *readings]),
        "settings": settings_table(settings),
        "layout": layout_table([*original, *today]),
        "readings": readings_table([*today, *readings]),
        "steps": training_table(),
    }
    return {name: "\n".join(lines).rstrip("\n") + "\n" for name, lines in made.items()}


def shown(page: str, name: str) -> re.Match[str] | None:
    """What stands between the markers of a table."""
    return re.search(rf"(?<=^<!-- {name} -->\n).*?(?=^<!-- /{name} -->)", page, flags=re.MULTILINE | re.DOTALL)


def main() -> int:
    """Write the tables into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables().items():
        place = shown(page, name)
        if place is None:
            print(f"{PAGE.name} has no place for {name}", file=sys.stderr)
            return 1
        page = page[: place.start()] + text + page[place.end() :]
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
