"""Damaged models end in a result or in one line: no traceback, no hang, no crash.

With --full 2,000 mutations of the demo models are inspected and 150 optimized, by default a sample of them; with
DILREWRITE_MUTATIONS=2000 in the environment as many are optimized.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests import mutations
from tests.models_for_tests import DEMOS, MODELS

INSPECTED = 2000
OPTIMIZED = int(os.environ.get("DILREWRITE_MUTATIONS", "150"))
PARTS = 8
PATHS = [MODELS / f"{name}.onnx" for name in DEMOS]
FORCED = ("--strategy", "STRATEGY", "--only", "SITE")
OPTIMIZE = ("optimize", "MODEL", "-o", "OUT", *FORCED, "--quiet", "--no-report", "--budget", "0", "--threads", "1")


def check(seeds: Sequence[int], command: Sequence[str], *, seconds: int = mutations.SECONDS) -> None:
    outcomes = mutations.run(PATHS, seeds, command, seconds=seconds)
    problems = [f"{each.model}, seed {each.seed}: {each.problem}" for each in outcomes if each.problem]
    assert not problems, "\n\n".join(problems)
    assert [each.seed for each in outcomes] == list(seeds)
    loaded = sum(each.loaded for each in outcomes)
    assert loaded >= 0.2 * len(outcomes), f"only {loaded} of {len(outcomes)} files can still be read"


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.grid(8)
def test_inspect(part: int) -> None:
    check(range(part, INSPECTED, PARTS), ["inspect", "MODEL", "--quiet"])


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.grid(8)
def test_optimize(part: int) -> None:
    slow = 5 if OPTIMIZED > 150 else 1  # some run on the reference backend alone
    check(range(part, OPTIMIZED, PARTS), OPTIMIZE, seconds=slow * mutations.SECONDS)


# -- the test itself -----------------------------------------------------------------------------------------------


def test_weights_are_left_alone() -> None:
    """What is flipped lies outside of the weights, which are most of the file, and everything else is covered."""
    data = PATHS[0].read_bytes()
    parts = sorted((start, stop) for start, stop, _ in mutations.outside(data))
    outside = set().union(*(range(start, stop) for start, stop in parts))
    weights = len(data) - len(outside)
    assert weights == sum(len(tensor.raw_data) for tensor in mutations._parsed(data).graph.initializer)
    assert weights > 0.9 * len(data)


def test_a_seed_is_a_mutation() -> None:
    data = PATHS[1].read_bytes()
    once, again = ([mutations.mutated(data, seed) for seed in range(40)] for _ in range(2))
    assert once == again
    assert len({*once, data}) > 35


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise KeyError(1)", "KeyError"),
        ("os.abort()", "died or hung"),
        ("os._exit(9)", "died or hung"),
        ("[None for _ in iter(int, 1)]", "died or hung"),
        ("time.sleep(60)", "died or hung"),
        ("return 130", "exit code 130"),
        ("return 2", "not one line"),
    ],
)
def test_every_kind_of_failure_is_seen(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that fails at one seed is told with that seed, and the others are run all the same."""
    broken = f"""
import os, time
import dilrewrite.cli
calls = []
def main(arguments):
    calls.append(arguments)
    if arguments[1] == "1":
        {code}
    return 0
dilrewrite.cli.main = main
"""
    monkeypatch.setattr(mutations, "BEFORE", broken)
    monkeypatch.setattr(mutations, "HANGS", 2)
    outcomes = mutations.run(PATHS[:1], range(3), ["inspect", "SEED"], seconds=1)
    assert [each.seed for each in outcomes] == [0, 1, 2]
    assert [bool(each.problem) for each in outcomes] == [False, True, False]
    assert words in outcomes[1].problem
