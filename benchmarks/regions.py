"""Regions against single Convs: chains of dilated Convs as they are, rewritten Conv by Conv, and as regions.

Run `python benchmarks/regions.py [MODEL.onnx ...] [--models LIST.json] [--backend NAME] [--only TEXT] [--seconds S]`:
the chains of `_chains.py` and the stage in models/, or the models given (LIST as for models.py), timed on one thread as
`bench` times whole models. Results go to benchmarks/results/regions-BACKEND.json and .md, and the short table into
docs/performance.md; of models given, and of a part (--only), to the screen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _chains import CHAINS
from _common import circumstances, heading, into_docs, marked, table, taken, write
from _versions import Version, region_versions, versions

from dilrewrite.choice.original import Original
from dilrewrite.errors import DilrewriteError
from dilrewrite.model.load import load
from dilrewrite.model.tensors import Model
from dilrewrite.options import Proving
from dilrewrite.proof import trial
from dilrewrite.proof.compare import Tolerance, compare
from dilrewrite.runtimes import Array, Options, RuntimeFailure, TimedBackend, timed_backend
from dilrewrite.sites.find import find
from dilrewrite.timing.agreement import allowed
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import open_cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.speed import between, speed

STAGE = Path(__file__).parents[1] / "models" / "resnet_stage_os8.onnx"
SITE_FORMS = {1: ("space_to_batch", "lift", "space_to_axis"), 2: ("space_to_batch", "tap_zones")}
"""What is put at every Conv, by the number of spatial axes; the last holds for more."""

SHOWN = ("onnxruntime_cpu", "opencv_dnn")
"""The backends whose tables docs/performance.md has."""

DIFFERS = "†: outputs differ by more than models may, `optimize` would not take it."


def entries(options: argparse.Namespace) -> Iterator[tuple[str, Model, tuple[str, ...]]]:
    """Name, model, and the sizes of its inputs where they are given."""
    given = [{"path": path} for path in options.paths]
    if options.models:
        given += json.loads(options.models.read_text(encoding="utf-8"))
    for entry in given:
        words = list(entry.get("arguments", []))
        shapes = tuple(words[i + 1] for i, word in enumerate(words) if word == "--shape")
        yield Path(entry["path"]).stem, load(entry["path"]), shapes
    if given:
        return
    for name, make in CHAINS.items():
        if options.only in name:
            yield name, Model(proto=make(), path=None, folder=Path.cwd(), external_files=(), file_bytes=0), ()
    if options.only in STAGE.stem:
        yield STAGE.stem, load(STAGE), ()


def every_version(model: Model, refused: dict[str, str], layout: str) -> Iterator[Version]:
    """The versions that are timed, with phases made in the way of `layout`."""
    found = find(model.proto)
    rank = max((len(site.geometry.kernel) for site in found.sites), default=1)
    forms = SITE_FORMS[min(rank, 2)]
    some: dict[str, str] = {}
    yield from (version for version in versions(model, found, some, layout) if version.name in forms)
    refused.update((form, why) for form, why in some.items() if form in forms)
    yield from region_versions(model, refused, layout)


def measured(
    name: str, model: Model, shapes: tuple[str, ...], backend: TimedBackend, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one model."""
    sessions = Options(threads=options.threads)
    settings = trial.settings(model, Proving(shapes=shapes, threads=options.threads))
    meter = Meter.on(backend, open_cache(None, none=True), Budget(options.seconds), sessions)
    tolerance = allowed(model.proto, backend.rounds_to(sessions), None, None)
    found = find(model.proto)
    original = Original(model, found, trial.runnable(model, model.proto, backend), settings)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    try:
        original.choose_inputs(meter)
        for version in every_version(model, refused, backend.layout):
            row = {
                "model": name,
                "sites": len(found.sites),
                "version": version.name,
                "rewritten": version.rewritten,
                "regions": version.regions,
                "left": len(find(version.proto).sites),
            }
            try:
                row |= timed(meter, original, version, options.seconds, tolerance)
            except RuntimeFailure as error:
                row["not_run"] = str(error)
            print(name, version.name, _speed(row), flush=True)
            rows.append(row)
    except (RuntimeFailure, DilrewriteError) as error:
        rows.append({"model": name, "sites": len(found.sites), "version": "original", "not_run": str(error)})
    finally:
        meter.close()
    rows += [{"model": name, "version": form, "not_run": f"refuses: {why}"} for form, why in refused.items()]
    return rows


def timed(meter: Meter, original: Original, version: Version, seconds: float, tolerance: Tolerance) -> dict[str, Any]:
    """Time a version against the original, and compare what they give; raises RuntimeFailure.

    The first of a model takes longer, for the original against itself.
    """
    run_s = meter.budget.run_s
    meter.budget = Budget(seconds if meter.noise else 1.5 * seconds, run_s=run_s)
    meter.begin()
    after, _ = original.version(trial.runnable(original.model, version.proto, meter.backend))
    comparison = meter.whole(original.runnable(), after, ("", version.name), original.feeds, run_s=run_s)
    meter.budget.run_s = comparison.first.median_s
    bench = meter.worker()
    before, after = bench.outputs("before"), bench.outputs("after")
    checks = [compare(name, before[name], after.get(name), tolerance) for name in before]
    return {
        **dataclasses.asdict(comparison),
        "faster": comparison.faster,
        "differs": "; ".join(str(check.note) for check in checks if not check.passed) or None,
        "difference": max(difference(before[name], after[name]) for name in before),
    }


def difference(before: Array, after: Array) -> float:
    """The largest difference of two outputs, as a share of the largest value."""
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-30))


# -- the page --------------------------------------------------------------------------------------------------------


def _speed(row: Mapping[str, Any]) -> str:
    if "ratio" not in row:
        return f"not run: {row['not_run']}".replace("|", "\\|").replace("\n", " ")[:200]
    text = f"{speed(row['ratio'])} ({between(row['low'], row['high'])})"
    return (f"**{text}**" if row["faster"] else text) + (" †" if row["differs"] else "")


def _ms(timing: Mapping[str, float]) -> str:
    value = timing["median_s"] * 1e3
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    first = row.get("first")
    return (
        row["model"],
        f"`{row['version']}`",
        f"{row['rewritten']} of {row['sites']}" if row.get("rewritten") else "-",
        str(row.get("left", "-")),
        _ms(first) if first else "-",
        _speed(row),
        f"{row['difference']:.1e}" if "difference" in row else "-",
    )


def short(rows: Sequence[Mapping[str, Any]], backend: str) -> list[str]:
    """The best of each kind by model, as docs/performance.md has it."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name and "ratio" in row]
        regions = [row for row in own if "_region" in row["version"]]
        lifted = [row for row in regions if row["version"] == "lift_region"]
        phases = [row for row in regions if row not in lifted]
        kinds = (
            [row for row in own if row not in regions],
            lifted,
            [row for row in phases if row["left"]],
            [row for row in phases if not row["left"]],
        )
        native = _ms(own[0]["first"]) if own else "-"
        lines.append((name, native, *(_best(kind) for kind in kinds)))
    columns = (f"{backend}, one thread", "#ms", "Conv by Conv", "lifted", "phases, dilation left", "phases, none left")
    return table(columns, lines)


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "-"
    best = min(rows, key=lambda row: float(row["ratio"]))
    form = f" `{best['version']}`" if "_region" not in best["version"] else ""
    return f"{_speed(best)}{form}"


def page(rows: Sequence[Mapping[str, Any]], about: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """The page of results."""
    lines = heading("Regions against single Convs", about)
    lines += [
        "How fast a version of the model is against the original, with its 95 % interval, in pairs, "
        f"{options.threads} thread{'s' if options.threads > 1 else ''}; **bold**: faster beyond margin, noise and "
        "interval. A form's name: at every Conv that it does not refuse. `phase_region 2x2 + 2x2`: in phases of "
        "2x2, and the rest of the dilation in there once more; `+ space_to_batch`: at the Convs that no region "
        "takes. *Left*: dilated Convs in the version. *Difference*: the largest one of the outputs on this runtime, as "
        "a share of the largest value; " + DIFFERS + " "
        f"One run of `python benchmarks/regions.py --backend {about['backend']}`.",
        "",
    ]
    columns = ("model", "version", "#Convs", "#left", "#original, ms", "#speed", "#difference")
    lines += table(columns, [_row(row) for row in rows])
    lines += ["The best of each kind, for docs/performance.md:", ""]
    told = f"{taken(about)} {DIFFERS}" if any(row.get("differs") for row in rows) else taken(about)
    return [*lines, *marked(f"regions: {about['backend']}", [*short(rows, about["backend"]), told])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--models", type=Path, metavar="LIST.json", help="a list as models.py takes it")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="chains whose name contains this")
    parser.add_argument("--seconds", type=float, default=8.0, help="for one version, about")
    options = parser.parse_args()
    backend = timed_backend(options.backend)
    about = circumstances(backend, options.threads)
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    for name, model, shapes in entries(options):
        rows += measured(name, model, shapes, backend, options)
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    lines = page(rows, about, options)
    if options.only or options.paths or options.models:
        print("\n".join(lines))
    else:
        name = f"regions-{backend.name}"
        write(name, {"about": about, "seconds": options.seconds, "rows": rows}, lines)
        if backend.name in SHOWN:
            into_docs("performance.md", f"{name}.md", f"regions: {backend.name}")


if __name__ == "__main__":
    main()
