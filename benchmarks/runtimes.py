"""What `optimize` makes of geometries of real networks and of whole models on runtimes, one row after the other.

Run `python benchmarks/runtimes.py RUNTIME [RUNTIME ...] [--only TEXT] [--folder DIR] [--list LIST.json]`. A runtime is
what `--backend` takes, such as `opencv_dnn:engine=new`. Rows are the geometries of geometries.py, each a small model
(the Conv, its activation, a 1x1 Conv), then the models of this repository, those in the folders given, and those of
lists as models.py takes them. A row is `dilrewrite optimize` on one thread, then a fresh `dilrewrite bench` of the
result against the original; what is kept is the original, byte for byte, and is not timed again.

After each row benchmarks/results/runtimes-RUNTIME.json and .md are written. A second call goes on where the first one
stopped, if the machine, the versions and the budgets are the same; `--again` begins anew. `--until S` begins no row
after S seconds. `--more N` measures again, with N times the budget, the rows without an answer: their budget was too
short for any, or noise hid it.
`--table` measures nothing and writes the table of all runtimes that have results, also into docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import RESULTS, circumstances, heading, into_docs, marked, table, taken, write
from geometries import CONVS, model

from dilrewrite.errors import DilrewriteError
from dilrewrite.runtimes import Options, TimedBackend, spelled, timed_backend
from models import OWN, run

ROOT = Path(__file__).parents[1]
CIRCUMSTANCES = ("device", "versions", "settings", "budgets", "threads")
"""What rows of one file have in common."""


def entries(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows to be: `key` names one, `kind` is geometry or model, the rest is as models.py takes it."""
    for conv in CONVS:
        key = f"{conv.network}: {conv.label}"
        if options.only in key:
            yield {"key": key, "kind": "geometry", "name": "geometry", "conv": conv}
    given: list[dict[str, Any]] = [{**entry, "path": str(ROOT / str(entry["path"]))} for entry in OWN]
    for place in options.folder:
        given += [{"name": path.stem, "path": str(path)} for path in sorted(place.rglob("*.onnx"))]
    for place in options.list:
        given += json.loads(place.read_text(encoding="utf-8"))
    for entry in given:
        if options.only in entry["name"]:
            yield {**entry, "key": entry["name"], "kind": "model"}


def row_of(
    entry: Mapping[str, Any], backend: TimedBackend, options: argparse.Namespace, folder: Path, more: float = 1.0
) -> dict[str, Any]:
    """Optimize one model and time the result afresh, with `more` times the budget; a failure is a row too."""
    start = time.monotonic()
    geometry, path = entry["kind"] == "geometry", entry.get("path", str(folder / "geometry.onnx"))
    if geometry:
        Path(path).write_bytes(model(entry["conv"]).SerializeToString())
    asked = argparse.Namespace(
        backend=spelled(backend),
        budget=more * (options.seconds if geometry else options.model_seconds),
        bench=options.bench if geometry else options.model_bench,
        limit=options.limit if geometry else options.model_limit,
    )
    row = {"key": entry["key"], "kind": entry["kind"], **({"times_budget": more} if more != 1 else {})}
    try:
        found = run({**entry, "path": path}, "default", str(options.threads), asked, folder)
    except RuntimeError as error:
        failed = str(error).rpartition("dilrewrite: ")[2].replace(path, entry["name"])
        return {**row, "status": "failed", "error": failed, "took_s": round(time.monotonic() - start, 1)}
    measuring, fresh = found["measuring"] or {}, found.get("fresh") or {}
    final = fresh.get("final")
    return {
        **row,
        "status": found["status"],
        "forms": found["strategies"],
        "sites": found["sites"],
        "rewritten": found["rewritten"] if isinstance(found["rewritten"], int) else len(found["rewritten"]),
        "share": found["share"],
        "before_ms": None if final is None else final["first"]["median_s"] * 1e3,
        **{name: None if final is None else final[name] for name in ("ratio", "low", "high")},
        "noise": (fresh or measuring).get("noise"),
        "doubts": measuring.get("doubts", []),
        "reasons": found["reasons"],
        "took_s": round(time.monotonic() - start, 1),
    }


def file_of(backend: TimedBackend) -> str:
    """The name of the files of a runtime's results."""
    return "runtimes-" + re.sub(r"\W+", "-", spelled(backend))


def rows_until_now(name: str, about: Mapping[str, Any], again: bool) -> list[dict[str, Any]]:
    """The rows that an earlier call wrote. Raises SystemExit when they were taken under other circumstances."""
    path = RESULTS / f"{name}.json"
    if again or not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in CIRCUMSTANCES if data["about"].get(key) != json.loads(json.dumps(about[key]))]
    if other:
        raise SystemExit(f"{path} was measured with other {', '.join(other)}: move it away, or begin anew with --again")
    rows: list[dict[str, Any]] = data["rows"]
    return rows


def short(row: Mapping[str, Any]) -> bool:
    """Whether the budget was over before anything was compared."""
    return row["status"] != "rewritten" and {*row.get("reasons", ())} == {"not measured: budget"}


def said(row: Mapping[str, Any]) -> str:
    """What a row comes to: how long it takes as a multiple of before, with its interval and its forms, or why not."""
    if row["status"] == "failed":
        return "fails"
    if row["ratio"] is None:
        return "budget too short" if short(row) else "kept" if row["status"] == "kept" else str(row["status"])
    text = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    text = f"**{text}**" if row["high"] < 1 else f"{text} slower" if row["low"] > 1 else text
    return f"{text} {', '.join(f'`{form}`' for form in row['forms'])}"


def wrong(row: Mapping[str, Any]) -> bool:
    """Whether the runtime computes something else of the original than ONNX Runtime does."""
    return any("the original itself" in doubt for doubt in row.get("doubts", ()))


def marks(row: Mapping[str, Any]) -> str:
    """What stands behind a row."""
    return (" †" if wrong(row) else "") + (f" ({row['times_budget']:g} x budget)" if "times_budget" in row else "")


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows became faster, how much at the median, and how many are slower or failed."""
    timed = [row for row in rows if row.get("ratio") is not None]
    faster = sorted(float(row["ratio"]) for row in timed if row["high"] < 1)
    slower = [row["key"] for row in timed if row["low"] > 1]
    failed = sum(row["status"] == "failed" for row in rows)
    middle = f", {faster[len(faster) // 2]:.2f} in the middle, {faster[0]:.2f} at best" if faster else ""
    worse = f"; slower: {', '.join(slower)}" if slower else "; none slower"
    return f"{len(rows)} rows: {len(faster)} faster{middle}{worse}; {failed} failed."


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[str]:
    """The page of results."""
    budgets = about["budgets"]
    lines = heading(f"What `optimize` makes of geometries and models on {about['runtime']}", dict(about))
    lines += [
        "Time after / time before with the 95 % interval, from a `bench` of its own; **bold**: the whole interval is "
        "below 1. Kept: the original, byte for byte, not timed again. Inconclusive: kept, and a gain of 10 % could "
        "have been missed. Budget too short: kept, and nothing was compared. †: the runtime computes something else "
        "of the original than ONNX Runtime. Threads: "
        f"{about['threads']}; budgets: {budgets['geometry']} for a geometry and {budgets['model']} for a model "
        f"(optimize + bench). One run of `python benchmarks/runtimes.py {about['runtime']}`.",
        "",
        summary(rows),
        "",
    ]
    for kind, title in (("geometry", "Geometries"), ("model", "Models")):
        some = [row for row in rows if row["kind"] == kind]
        if some:
            cells = [
                (
                    row["key"] + marks(row),
                    "-" if row.get("before_ms") is None else f"{row['before_ms']:.3g}",
                    said(row) if row["status"] != "failed" else f"fails: {row['error']}",
                    f"{row['took_s']:.0f}",
                )
                for row in some
            ]
            lines += [f"## {title}", "", *table((kind, "#before, ms", "after / before", "#took, s"), cells)]
    return lines


def measure(backend: TimedBackend, options: argparse.Namespace) -> None:
    """Measure what is not measured yet on one runtime."""
    name = file_of(backend)
    now = circumstances(backend, options.threads)
    now |= {
        "runtime": spelled(backend),
        "threads": options.threads,
        "settings": backend.settings(Options(threads=options.threads)),
        "budgets": {
            "geometry": f"{options.seconds:g} + {options.bench:g} s",
            "model": f"{options.model_seconds:g} + {options.model_bench:g} s",
        },
    }
    rows = rows_until_now(name, now, options.again)
    about = now if not rows else {**json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["about"]}
    places = {row["key"]: place for place, row in enumerate(rows)}
    again = {row["key"] for row in rows if options.more != 1 and (short(row) or row["status"] == "inconclusive")}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dilrewrite-bench-") as folder:
        todo = [entry for entry in entries(options) if entry["key"] not in places or entry["key"] in again]
        while todo and time.monotonic() - began <= options.until:
            entry = todo.pop(0)
            if (key := entry["key"]) in places:
                row = rows[places[key]] = row_of(entry, backend, options, Path(folder), options.more)
            else:
                rows.append(row := row_of(entry, backend, options, Path(folder)))
            write(name, {"about": about, "rows": rows}, page(rows, about))
            print(f"{spelled(backend)}: {row['key']}: {said(row)} ({row['took_s']:.0f} s)", flush=True)
    print(f"{spelled(backend)}: {summary(rows)}{f' {len(todo)} left: call it again.' if todo else ''}", flush=True)


def compact() -> list[str]:
    """The table of all runtimes with results, for docs/performance.md: one row for a geometry or model."""
    data = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("runtimes-*.json"))]
    keys = list(dict.fromkeys((row["kind"], row["key"]) for one in data for row in one["rows"]))
    cells = [{row["key"]: said(row) + marks(row) for row in one["rows"]} for one in data]
    columns = [one["about"]["runtime"] for one in data]
    lines: list[str] = []
    for kind in ("geometry", "model"):
        some = [(key, *(of.get(key, "-") for of in cells)) for its, key in keys if its == kind]
        lines += table((kind, *columns), some) if some else []
    told = [f"{one['about']['runtime']}: {taken(one['about'])} {summary(one['rows'])}" for one in data]
    return marked("runtimes", [*lines, *itertools.chain.from_iterable(("", line) for line in told)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a folder of models, with those below")
    parser.add_argument("--list", type=Path, action="append", default=[], metavar="LIST.json")
    parser.add_argument("--seconds", type=float, default=12.0, help="the budget of a geometry")
    parser.add_argument("--bench", type=float, default=3.0, help="seconds for the fresh timing of a geometry")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that a command may take on a geometry")
    parser.add_argument("--model-seconds", type=float, default=60.0, help="the budget of a model")
    parser.add_argument("--model-bench", type=float, default=10.0, help="seconds for the fresh timing of a model")
    parser.add_argument("--model-limit", type=float, default=300.0, help="seconds that a command may take on a model")
    parser.add_argument("--until", type=float, default=math.inf, help="begin no row after so many seconds on a runtime")
    parser.add_argument("--again", action="store_true", help="forget the rows of earlier calls")
    parser.add_argument(
        "--more", type=float, default=1.0, metavar="N", help="rows without an answer: N times the budget"
    )
    parser.add_argument("--table", action="store_true", help="write the table of all runtimes, and measure nothing")
    options = parser.parse_args()
    if options.table:
        text = "\n".join(["# What `optimize` makes of geometries and models on runtimes", "", *compact()]) + "\n"
        (RESULTS / "runtimes.md").write_text(text, encoding="utf-8")
        into_docs("performance.md", "runtimes.md", "runtimes")
        return 0
    code = 0
    for text in options.runtimes:
        try:
            backend = timed_backend(text)
        except DilrewriteError as error:
            print(f"{text}: not measured: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
            continue
        measure(backend, options)
    return code


if __name__ == "__main__":
    sys.exit(main())
