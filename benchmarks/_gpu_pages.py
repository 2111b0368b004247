"""Writes what a GPU run found, and is the only file that does: it takes no number of a CPU into a table of a GPU."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _gpu_plan import Row

RESULTS = Path(__file__).parent / "results"

PASSES = ("forward", "backward by input", "backward by weight")

NO_FORM = ("keep", "keep, not deterministic", "(no dilation)")


class CpuNumberError(ValueError):
    """A number that was not taken on a GPU was to stand in a table of one."""


def write(folder: Path, data: Mapping[str, Any]) -> Path:
    """Write the results, whole or not at all; return where the page is.

    Raises CpuNumberError for a row that ran and was not run on a GPU, where it is no dry run; and for a dry run that
    would stand beside real results.
    """
    ran = [row for row in data["rows"] if "not_run" not in row]
    if data["dry_run"]:
        if folder.resolve() == RESULTS.resolve():
            raise CpuNumberError("a dry run does not go into benchmarks/results: name another folder")
    else:
        wrong = next((row for row in ran if row.get("source") != "gpu"), None)
        if wrong is not None:
            raise CpuNumberError(f"a number of {wrong.get('source') or 'nothing known'} in a table of a GPU: {wrong}")
    first = next((about for about in data["parts"].values() if about.get("driver")), None)
    if first is None and not data["dry_run"] and ran:
        raise CpuNumberError("rows that ran, and no GPU with a driver that they ran on")
    device = "dry-run" if data["dry_run"] else slug(first["device"]) if first else "none"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"gpu-{device}-{data['date']}.md"
    head = json.dumps({**data, "rows": []}, ensure_ascii=False, allow_nan=False, indent=1)
    rows = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in gathered(data["rows"]))
    body = head.rstrip()[: -len('"rows": []\n}')] + f'"rows": [\n{rows}\n]\n}}\n'
    try:
        lines = page(data)
    except Exception as error:  # the rows are worth more than their tables
        lines = [f"# There is no page: {type(error).__name__}: {error}", "", "The rows are in the JSON."]
    texts = {place.with_suffix(".json"): body, place: "\n".join(lines).rstrip("\n") + "\n"}
    for path, text in texts.items():
        new = path.with_name(f"{path.name}.part")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    return place


def slug(device: str) -> str:
    """A device's name as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.partition(",")[0].lower()).strip("-") or "unknown"


def gathered(rows: Iterable[Row]) -> list[Row]:
    """Rows, with those that were not run for the same reason and differ in the form alone as one: `forms`."""
    found: dict[str, Row] = {}
    for number, row in enumerate(rows):
        if "not_run" not in row or "form" not in row:
            found[str(number)] = row
            continue
        rest = {name: value for name, value in row.items() if name != "form"}
        found.setdefault(json.dumps(rest, sort_keys=True), {**rest, "forms": []})["forms"].append(row["form"])
    return list(found.values())


# -- the page --------------------------------------------------------------------------------------------------------


def page(data: Mapping[str, Any]) -> list[str]:
    """The page of results."""
    from _common import table

    title = "Dry run: nothing here was measured on a GPU" if data["dry_run"] else "On the GPU"
    lines = [
        f"# {title}",
        "",
        f"{data['date']}; {data['processor']}; {data['minutes']:g} minutes, {data['spent_s']:.0f} s of them spent. "
        "What was not run is counted in the tables, and is in the JSON with the reason.",
        "",
    ]
    parts = [
        (
            part,
            about.get("device", "-"),
            about.get("driver", "-"),
            _versions(about),
            _clocks(about),
            f"{about['spent_s']:.0f}",
            str(about.get("deaths", 0)),
            about.get("not_run", "-"),
        )
        for part, about in data["parts"].items()
    ]
    columns = ("part", "device", "driver", "versions", "clocks before and after", "#s", "#crashes", "not run")
    lines += table(columns, [tuple(text.replace("|", "\\|") for text in part) for part in parts])
    rows = data["rows"]
    wrong = [row for row in rows if row.get("passed") is False]
    lines += [f"**WRONG**: {_label(row)}" for row in wrong] + ([""] if wrong else [])
    lines += _checks([row for row in rows if row["part"] == "checks"])
    for part, title in (("torch", "PyTorch: every form on cuDNN"), ("jax", "JAX: every form through XLA")):
        lines += _forms(title, [row for row in rows if row["part"] == part])
    lines += _gaps([row for row in rows if row.get("form") == "keep, not deterministic"])
    lines += _chains([row for row in rows if row["part"] == "chains"])
    runtimes = data["parts"].get("runtimes", {})
    if runtimes.get("backends") or runtimes.get("not_ready"):
        import _gpu_runtimes

        lines += _gpu_runtimes.page({**runtimes, "rows": rows})
    return lines


def _versions(about: Mapping[str, Any]) -> str:
    names = ("torch", "cuda", "cudnn", "jax", "jaxlib")
    return ", ".join(f"{name} {about[name]}" for name in names if about.get(name)) or "-"


def _clocks(about: Mapping[str, Any]) -> str:
    states = [about.get(name) or {} for name in ("state", "state_after")]
    if not any(states):
        return "-"
    return "; ".join(
        ", ".join(f"{name.removesuffix('_mhz').replace('_', ' ')} {value:g}" for name, value in state.items())
        for state in states
    )


def _label(row: Mapping[str, Any]) -> str:
    words = ("part", "backend", "model", "network", "geometry", "precision", "layout", "pass", "form")
    return ", ".join(str(row[word]) for word in words if word in row)


def setting_of(row: Mapping[str, Any]) -> str:
    """The setting of a row in words."""
    words = [str(row["precision"])]
    if row["part"] == "torch":
        words += [f"channels {row['layout']}", f"batch {row['batch']}"]
    return ", ".join([*words, *(name for name in ("deterministic", "autotuned") if row.get(name))])


def _checks(rows: Sequence[Row]) -> list[str]:
    from _common import table

    if not any("outcome" in row for row in rows):
        return []
    lines = [
        "## Results against float64 on the CPU",
        "",
        "Whole numbers whose sums every precision holds exactly; five small geometries, three passes, both layouts, "
        "the deterministic mode on and off. `equal`: to the last bit; `rounds`: by less than 0.5; how many runs.",
        "",
    ]
    made = []
    precisions = list(dict.fromkeys(row["precision"] for row in rows if "precision" in row))
    for form in dict.fromkeys(row["form"] for row in rows):
        cells = []
        for precision in precisions:
            own = [row for row in rows if row["form"] == form and row.get("precision") == precision]
            ran = [row for row in own if "not_run" not in row]
            worst = max((("equal", "rounds", "WRONG").index(row["outcome"]) for row in ran), default=None)
            word = "?" if worst is None else ("equal", "rounds", "**WRONG**")[worst]
            failed = f", {len(own) - len(ran)} fail" if len(own) > len(ran) else ""
            cells.append(f"{word} ({sum(row['runs'] for row in ran)}{failed})")
        made.append((f"`{form}`", *cells))
    return [*lines, *table(("form", *precisions), made)]


def _forms(title: str, rows: Sequence[Row]) -> list[str]:
    """For each setting: the dilated Conv's time, and the best form's share of it, in each pass."""
    from _common import table

    timed = [row for row in rows if "ratio" in row]
    if not timed:
        return []
    lines = [
        f"## {title}",
        "",
        "Time of the best form as a multiple of the dilated Conv's, with its 95 % interval and the number of pairs; "
        "**bold**: faster beyond margin, noise and interval. `no dilation`: the same Conv with dilation 1.",
        "",
    ]
    settings = list(dict.fromkeys(setting_of(row) for row in rows if "precision" in row))
    summary = []
    for setting in settings:
        for one in PASSES:
            own = [row for row in timed if setting_of(row) == setting and row["pass"] == one]
            places = list(dict.fromkeys((row["network"], row["geometry"]) for row in own))
            best = [row for place in places if (row := _best(own, place)) is not None]
            if best:
                wins = [row for row in best if row["faster"]]
                top = min(best, key=lambda row: float(row["ratio"]))
                middle = statistics.median(float(row["ratio"]) for row in best)
                summary.append(
                    (
                        setting,
                        one,
                        str(len(places)),
                        str(len(wins)),
                        f"{middle:.2f}",
                        f"{top['ratio']:.2f} `{top['form']}`",
                    )
                )
    lines += table(("setting", "pass", "#geometries", "#with a win", "#median of the best", "best of all"), summary)
    for setting in settings:
        own = [row for row in timed if setting_of(row) == setting]
        late = sum("not_run" in row and "precision" in row and setting_of(row) == setting for row in rows)
        if not own:
            continue
        made = []
        for place in dict.fromkeys((row["network"], row["geometry"]) for row in own):
            cells: list[str] = []
            for one in PASSES:
                here = [row for row in own if row["pass"] == one]
                known = {row["form"]: row for row in here if (row["network"], row["geometry"]) == place}
                first = next(iter(known.values()), None)
                none, best = known.get("(no dilation)"), _best(here, place)
                cells += [
                    f"{first['native_ms']:.3g}" if first else "-",
                    f"{none['ratio']:.2f}" if none else "-",
                    _cell(best) if best else "-",
                ]
            made.append((*place, *cells))
        heads = [head for one in PASSES for head in (f"#{one}, ms", "#no dilation", "best form")]
        lines += [f"### {setting}", "", f"Rows that were not run: {late}.", ""]
        lines += table(("network", "geometry", *heads), made)
    return lines


def _best(rows: Sequence[Row], place: tuple[str, str]) -> Row | None:
    own = [row for row in rows if (row["network"], row["geometry"]) == place and row["form"] not in NO_FORM]
    return min((row for row in own if row.get("passed", True)), key=lambda row: float(row["ratio"]), default=None)


def _cell(row: Mapping[str, Any]) -> str:
    text = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}), {row['pairs']}"
    return f"`{row['form']}` " + (f"**{text}**" if row["faster"] else text)


def _gaps(rows: Sequence[Row]) -> list[str]:
    from _common import table

    timed = [row for row in rows if "ratio" in row]
    if not timed:
        return []
    lines = ["## What cuDNN's deterministic mode costs the dilated Conv", ""]
    lines += ["Its time with the mode on as a multiple of that with the mode off, with the interval.", ""]
    made = []
    for place in dict.fromkeys((row["network"], row["geometry"]) for row in timed):
        cells = []
        for one in PASSES:
            row = next((r for r in timed if (r["network"], r["geometry"]) == place and r["pass"] == one), None)
            cells.append(f"{1 / row['ratio']:.2f} ({1 / row['high']:.2f} to {1 / row['low']:.2f})" if row else "-")
        made.append((*place, *cells))
    return [*lines, *table(("network", "geometry", *(f"#{one}" for one in PASSES)), made)]


def _chains(rows: Sequence[Row]) -> list[str]:
    from _common import table

    if not any("ratio" in row for row in rows):
        return []
    lines = [
        "## Whole chains in PyTorch",
        "",
        "A version's time as a multiple of the chain's as it is; `apart`: from float64 on the CPU, as a share of its "
        "norm. **Bold**: faster beyond margin, noise and interval.",
        "",
    ]
    made = []
    for row in rows:
        common = (str(row["model"]), setting_of(row), f"`{row.get('form', 'every version')}`")
        if "ratio" not in row:
            made.append((*common, "-", "-", f"not run: {row['not_run']}".replace("|", "\\|")[:120], "-", "-"))
            continue
        ratio = f"{row['ratio']:.3f}"
        made.append(
            (
                *common,
                f"{row['native_ms']:.3g}",
                f"**{ratio}**" if row["faster"] else ratio,
                f"{row['low']:.3f} to {row['high']:.3f}",
                str(row["pairs"]),
                "-" if row["apart"] is None else f"{row['apart']:.1e}",
            )
        )
    columns = (
        "chain",
        "setting",
        "version",
        "#chain, ms",
        "#version / chain",
        "interval, or why not",
        "#pairs",
        "#apart",
    )
    return [*lines, *table(columns, made)]
