"""Every reason has words, and no word is more than that: nothing is looked up, kept or decided by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.choice.reason import Condition, Reason, Why
from dilrewrite.forms.strategies import Refusal
from dilrewrite.reports import reasons
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.stopwatch import Comparison
from tests import models_for_tests as tiny
from tests.choice.test_choose import timed
from tests.reports.examples import check_golden

FORM = FormTiming(outcome=Outcome.CRASHED, cause="it broke")


def compared(ratio: float) -> Comparison:
    """A comparison that gave this ratio, give or take a hundredth."""
    comparison: Comparison = timed(ratio).timing
    return comparison


def filled(reason: Reason) -> Why:
    """A reason with all facts that there may be."""
    return Why(
        reason=reason,
        strategy="im2col",
        timing=compared(0.75),
        whole=compared(1.25),
        number=3,
        total=7,
        share=0.002,
        said="a runtime's words",
        forms=(FORM,),
        refusals=(Refusal("tap_sum", "not today"),),
        because=Why(reason=Reason.BUDGET),
    )


def test_every_reason_has_its_own_words() -> None:
    told = {reason: reasons.words(filled(reason), "cpu") for reason in Reason}
    said = {reason for reason, words in told.items() if words == "a runtime's words"}
    assert said == {Reason.TOO_NEW, Reason.NO_QUESTION, Reason.NO_DATA}
    others = [words for reason, words in told.items() if reason not in said]
    assert all(others)
    assert len(set(others)) == len(others)


BARE = {
    "one form": Why(reason=Reason.PLANNED, number=1),
    "all timed": Why(reason=Reason.SLOWER, strategy="im2col", timing=compared(1.25)),
    "braces": Why(reason=Reason.NO_DATA, said="{it} has {braces}"),
    **{
        f"a share of {share:.6f}": Why(reason=Reason.CANNOT_MATTER, share=share)
        for share in (0.0123, 0.005, 0.0001, 0.00005, 0.00004, 0.0)
    },
}
"""Facts that are told in another way, or left out."""


def test_the_words_of_every_reason() -> None:
    """The only test that holds them: all others compare facts, or ask `reports.reasons` for the words."""
    told = {reason.name: filled(reason) for reason in Reason} | BARE
    check_golden("reasons.txt", "".join(f"{name}: {reasons.words(why, 'cpu')}\n" for name, why in told.items()))


def test_every_outcome_and_condition_has_words() -> None:
    assert set(reasons.WORDS) == set(Reason)
    assert set(reasons.OUTCOMES) == set(Outcome)
    assert set(reasons.CONDITIONS) == set(Condition)
    assert reasons.untimed(FORM) == "failed: it broke"


def optimized(path: Path, folder: Path, name: str) -> Any:
    return dilrewrite.optimize(
        path, folder / name, budget=10, cache=folder / "timings.sqlite", strategy=None, report=folder / f"{name}.r"
    )


@pytest.mark.measures
@pytest.mark.usefixtures("in_process", "profiled_in_process")
def test_other_words_miss_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they change what is decided; only what is read."""
    tiny.quick(monkeypatch)
    path = tiny.save(tiny.conv1d(length=64), tmp_path / "m.onnx")
    first = optimized(path, tmp_path, "one.onnx")
    for table in ("OUTCOMES", "WORDS", "CONDITIONS"):
        monkeypatch.setattr(reasons, table, dict.fromkeys(getattr(reasons, table), "other words"))
    for name in ("speed", "interval", "small", "cause"):
        monkeypatch.setattr(reasons, name, lambda *_: "other words")
    second = optimized(path, tmp_path, "two.onnx")
    assert (second.measurement.measured, second.measurement.recalled) == (0, first.measurement.measured)
    assert first.measurement.measured > 0
    assert [site.strategy for site in second.sites] == [site.strategy for site in first.sites]
    assert [site.reason for site in second.sites] != [site.reason for site in first.sites]
