"""The same choice with `--on` as without: `dilrewrite optimize` of a model both ways, with nothing in the cache.

Run `python benchmarks/on.py [NAMES...] [--on ssh://...] [--times 2] [--budget S]`; names are of models.OWN. Without
`--on` the board is an OpenSSH server on this machine under another user, with a virtual environment (as root, as the
tests make it): both ways measure the same processor. benchmarks/results/on.json and .md are written after each run, and
the table in docs/on-device.md at the end; a second call does what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from _common import RESULTS, circumstances, heading, into_docs, marked, table, taken, write

from dilrewrite.devices._line import LOG
from dilrewrite.runtimes import timed_backend
from dilrewrite.timing.speed import between, speed
from models import OWN, cli

WAYS = "here", "there"


@contextmanager
def loopback() -> Iterator[str]:
    """A board on this machine; yields the text of `--on`."""
    from tests.devices.board import Board, configure, lacking

    if why := lacking():
        raise SystemExit(f"no board on this machine: {why}")
    with tempfile.TemporaryDirectory(prefix="dilrewrite-bench-") as folder:
        board = Board(Path(folder) / "board", "loopback")
        board.make()
        board.start()
        os.environ |= configure(Path(folder) / "ssh_config", board.configuration())
        try:
            yield board.on
        finally:
            board.stop()


def run(entry: Mapping[str, Any], on: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Optimize a model; what was chosen, by what timings, and what went over the line."""
    with tempfile.TemporaryDirectory(prefix="dilrewrite-bench-") as folder:
        after, log = Path(folder) / "after.onnx", Path(folder) / "log"
        log.touch()
        os.environ[LOG] = str(log)
        arguments = ["optimize", entry["path"], "-o", str(after), "--no-report", "--no-cache"]
        arguments += [
            "--backend",
            "onnxruntime_cpu",
            "--threads",
            str(options.threads),
            "--budget",
            str(options.budget),
        ]
        report = cli(*arguments, *entry.get("arguments", []), *(["--on", on] if on else []))
        messages = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        places, measured = (*report["sites"], *report["regions"]), report["measurement"]
        return {
            "status": report["status"],
            "forms": {one["key"]: one["strategy"] for one in places},
            "timings": {
                one["key"]: {form["strategy"]: form["timing"] for form in one["candidates"] if form["timing"]}
                for one in places
            },
            "sha256": hashlib.sha256(after.read_bytes()).hexdigest(),
            **{name: measured[name] for name in ("final", "noise", "attempts", "spent_s", "device", "settings")},
            "messages": len(messages),
            "sent": sum(one["sent"] for one in messages),
        }


def page(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page of results."""
    flags = f"--budget {about['budget']:g} --threads {about['environment']['threads']} --no-cache"
    lines = [f"`optimize {flags}`; {about['board']}. {taken(dict(about))}", ""]
    cells = []
    for row in rows:
        forms = Counter(form for key, form in row["forms"].items() if "@" not in key)  # else it is a region
        timing = row["final"] or (row["attempts"][-1]["timing"] if row["attempts"] else None)
        cells.append(
            (
                f"{row['model']}, {'with' if row['way'] == 'there' else 'without'}",
                ", ".join(f"{number} x `{form}`" for form, number in sorted(forms.items())),
                f"{speed(timing['ratio'])} ({between(timing['low'], timing['high'])})" if timing else "-",
                f"{timing['first']['median_s'] * 1e3:.4g}" if timing else "-",
                f"`{row['sha256'][:8]}`",
                f"{row['messages']}, {row['sent'] / 1e6:.1f} MB" if row["messages"] else "-",
            )
        )
    columns = ("model, --on", "forms of the Convs", "speed", "#before, ms", "SHA-256 after", "#messages")
    lines += table(columns, cells)
    return [*heading("The same choice with --on as without", dict(about)), *marked("on", lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["splice_sites", "causal_tcn"])
    parser.add_argument("--on", help="a board that has the same processor; by default one on this machine")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--budget", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    place = RESULTS / "on.json"
    board = "the board is this machine, under another user" if options.on is None else f"the board is {options.on}"
    about = circumstances(timed_backend("onnxruntime_cpu"), options.threads)
    about |= {"budget": options.budget, "board": board}
    rows: list[dict[str, Any]] = []
    if place.exists():
        held = json.loads(place.read_text(encoding="utf-8"))
        if any(held["about"][name] != about[name] for name in ("device", "versions", "budget", "board", "environment")):
            raise SystemExit(f"{place} was measured otherwise: move it away")
        about, rows = held["about"], held["rows"]
    wanted = [
        (name, way, number)
        for number in range(options.times)
        for name in options.names
        for way in (WAYS if number % 2 == 0 else WAYS[::-1])
    ]
    missing = [key for key in wanted if key not in {(row["model"], row["way"], row["number"]) for row in rows}]
    with ExitStack() as stack:
        on = options.on or (stack.enter_context(loopback()) if missing else None)
        for name, way, number in missing:
            entry = next(one for one in OWN if one["name"] == name)
            row = run(entry, on if way == "there" else None, options)
            rows.append({"model": name, "way": way, "number": number, **row})
            rows.sort(key=lambda one: (one["model"], one["number"], one["way"]))
            write("on", {"about": about, "rows": rows}, page(about, rows))
            print(name, way, number, row["status"], row["sha256"][:8], flush=True)
    write("on", {"about": about, "rows": rows}, page(about, rows))
    into_docs("on-device.md", "on.md", "on")


if __name__ == "__main__":
    main()
