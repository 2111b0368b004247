"""How near the choice comes to the best one: every form forced on every group of equal sites, in the whole model.

Run `python benchmarks/oracle.py LIST.json [--budget S] [--slice S]` with a list as of models.py (without it: the models
of this repository). For each group of equal sites, each form that is not hopeless there is put into the whole model
alone and timed against the original; the best of them all together are the oracle's model. It is timed against the
model that `optimize` chooses. Results go to benchmarks/results/oracle-BACKEND.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import circumstances, heading, table, write
from onnx import ModelProto

from dilrewrite.choice import whole
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.decision import Considered
from dilrewrite.forms.fragment import Fragment
from dilrewrite.model.load import load
from dilrewrite.model.tensors import read_tensor
from dilrewrite.options import CommandOptions
from dilrewrite.proof import trial
from dilrewrite.proof.carve import Source
from dilrewrite.runtimes import artifact, timed_backend
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.timing.stopwatch import Comparison
from models import OWN

HOPELESS = 1.2
"""A form that takes more than this share of the Conv's time in its neighbourhood is not tried in the whole model."""


def run(entry: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Compare the choice with the oracle's on one model."""
    path = Path(entry["path"])
    arguments = entry.get("arguments", [])
    shapes = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--shape"]
    inputs = next((Path(arguments[i + 1]) for i, word in enumerate(arguments) if word == "--inputs"), None)
    settings = CommandOptions.of(
        backend=options.backend, budget=options.budget, shapes=shapes, inputs=inputs, no_cache=True
    )
    model = load(path)
    found = find(model.proto)
    decider = Decider(settings.scope, settings.proving, Source(model.proto))
    considered = [decider.consider(site) for site in found.sites]
    tuning = whole.tuning(model, found, decider, trial.settings(model, settings.proving), settings.measuring)

    def made(choice: Mapping[str, Fragment]) -> ModelProto:
        edits = [(entry.site, choice[entry.site.key]) for entry in considered if entry.site.key in choice]
        return rewrite(model.proto, edits, found.normalisations, lambda t: read_tensor(model, t)).proto

    try:
        if not tuning.start():
            raise RuntimeError(tuning.failure)
        tuning.measure(considered)
        settled = [decider.settle(one, tuning.of(one)) for one in considered]
        winners = {d.site.key: d for d in settled if d.fragment is not None}
        stay: set[str] = set()
        if winners:
            kept = tuning.confirm(
                list(winners.values()),
                lambda keys: made({k: d.fragment for k, d in winners.items() if k in keys and d.fragment}),
            )
            stay = {key for key in winners if key not in kept}
        chosen = {key: d.fragment for key, d in winners.items() if key in stay and d.fragment is not None}
        names_chosen = {key: winners[key].strategy for key in chosen}
        oracle, names_oracle, tried = _oracle(considered, tuning, made, options)
        same = chosen == oracle
        final = None if same else _compare(tuning, made(oracle), made(chosen), options.slice * 4)
    finally:
        tuning.close()
    return {
        "name": entry["name"],
        "chosen": names_chosen,
        "oracle": names_oracle,
        "tried": tried,
        "same": same,
        "chosen_over_oracle": None if final is None else dataclasses.asdict(final),
    }


def _compare(tuning: Any, before: ModelProto, after: ModelProto, slice_s: float) -> Comparison:
    """Time one version of a model against another, with A/A first."""
    worker = tuning.meter.worker()
    watch = tuning.meter.watch(float("inf"))
    runnables = {
        "before": tuning.original.version(before)[0],
        "twin": tuning.original.version(before)[0],
        "after": tuning.original.version(after)[0],
    }
    for key, runnable in runnables.items():
        worker.add(key, artifact(runnable), tuning.original.feeds)
    noise, mode = watch.noise("before", "twin", slice_s)
    found: Comparison = watch.compare("before", "after", slice_s, noise=noise, mode=mode, rounds=3)
    return found


def _oracle(
    considered: list[Considered], tuning: Any, made: Any, options: argparse.Namespace
) -> tuple[dict[str, Fragment], dict[str, str], list[dict[str, Any]]]:
    """Force every form on every group of equal sites; return the best of each that wins, and all that was tried."""
    best: dict[str, Fragment] = {}
    names: dict[str, str] = {}
    tried = []
    groups: dict[int, list[Considered]] = {}
    for one in considered:
        question = tuning.of(one).question
        if question is not None:
            groups.setdefault(question, []).append(one)
    for group in groups.values():
        timings = tuning.of(group[0]).timings
        results = []
        for candidate in group[0].wanted:
            timed = timings.get(candidate.strategy)
            if timed is None or timed.timing is None or timed.timing.ratio > HOPELESS:
                continue
            forced = {
                one.site.key: next(c.fragment for c in one.wanted if c.strategy == candidate.strategy) for one in group
            }
            whole = _compare(tuning, made({}), made(forced), options.slice)
            results.append((whole, candidate.strategy, forced))
            tried.append(
                {
                    "sites": [one.site.key for one in group],
                    "strategy": candidate.strategy,
                    "alone": timed.timing.ratio,
                    "whole": [whole.ratio, whole.low, whole.high],
                }
            )
            print(f"  {len(group)} sites, {candidate.strategy}: whole {whole.ratio:.4f}", flush=True)
        results.sort(key=lambda found: found[0].ratio)
        if results and results[0][0].high < 1:
            best.update(results[0][2])
            names.update(dict.fromkeys(results[0][2], results[0][1]))
    return best, names, tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", nargs="?", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--slice", type=float, default=3.0, help="seconds for one form in the whole model")
    options = parser.parse_args()
    entries = json.loads(options.list.read_text(encoding="utf-8")) if options.list else OWN
    backend = timed_backend(options.backend)
    options.backend = backend.name
    about = circumstances(backend, None)
    rows = []
    for entry in entries:
        print(entry["name"], flush=True)
        rows.append(run(entry, options))
        print(f"  chosen {rows[-1]['chosen']}, oracle {rows[-1]['oracle']}", flush=True)
    page = heading("The choice against the best forced forms", about)
    page += [
        "The oracle forces every form that is not hopeless on each group of equal sites, in the whole model, and takes "
        "for each group the one with the lowest time whose interval is below 1."
        " Time of the chosen model / time of the oracle's, paired.",
        "",
    ]
    page += table(
        ("model", "forms tried", "#sites rewritten: chosen", "#oracle", "#chosen / oracle", "interval"),
        [
            (
                row["name"],
                str(len(row["tried"])),
                _forms(row["chosen"]),
                _forms(row["oracle"]),
                "the same" if row["same"] else f"{row['chosen_over_oracle']['ratio']:.3f}",
                "-"
                if row["same"]
                else f"{row['chosen_over_oracle']['low']:.3f} to {row['chosen_over_oracle']['high']:.3f}",
            )
            for row in rows
        ],
    )
    write(f"oracle-{backend.name}", {"about": about, "rows": rows}, page)


def _forms(names: Mapping[str, str]) -> str:
    kinds = sorted(set(names.values()))
    return f"{len(names)}{' (' + ', '.join(kinds) + ')' if kinds else ''}"


if __name__ == "__main__":
    main()
