"""Profiles against their judges: every rule at its limit and beyond, and what the vendor's compiler said of that."""

from __future__ import annotations

import collections

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.runtimes import CannotLoad
from dilrewrite.runtimes import _rknn as kit
from dilrewrite.targets import Fit, judge, profiles
from tests.targets import limits
from tests.targets.disagreements import DISAGREEMENTS, UNASKED
from tests.targets.limits import BEYOND, JUDGED, WITHIN, Case, Said, ask, cases, model, recorded, words, written

EVERY = pytest.mark.parametrize("name", JUDGED)
AGREE = {Fit.NATIVE: {"native"}, Fit.HOST: {"host"}, Fit.OUT: {"refused", "host"}}
"""What a judge says where a profile is right. What is out of limits is refused, or left to the host."""


def fit(name: str, case: Case) -> Fit:
    try:
        return judge(model(profiles()[name], case), profiles()[name]).fit
    except UsageError:  # sizes that are not fixed
        return Fit.OUT


def agrees(name: str, case: Case, said: Said) -> bool:
    """Say whether the profile says of a case what its judge says; unknown claims nothing."""
    given = fit(name, case)
    return said.fit == "not asked" or given is Fit.UNKNOWN or said.fit in AGREE[given]


@EVERY
def test_every_rule_has_its_cases(name: str) -> None:
    """Both sides of each limit, and one model of an operator; what cannot be asked has its reason."""
    sides = collections.defaultdict(set)
    for case in cases(profiles()[name]):
        sides[case.rule].add(case.side)
    wanted = {words(rule): {"is"} if rule.test == "is" else {WITHIN, BEYOND} for rule in profiles()[name].rules()}
    unasked = UNASKED.get(name, {})
    assert unasked.keys() <= wanted.keys()
    wanted |= {rule: {WITHIN, BEYOND} for rule in wanted if rule == "tensors.static: required"}
    assert {rule for rule, both in wanted.items() if sides[rule] != both} == unasked.keys()
    assert {case.name for case in cases(profiles()[name])} == recorded(name).keys()


@EVERY
def test_a_case_breaks_its_own_rule(name: str) -> None:
    """Within its limit a model is native, or not known; beyond it is neither."""
    for case in cases(profiles()[name]):
        found = fit(name, case)
        if case.side == WITHIN:
            assert found in (Fit.NATIVE, Fit.UNKNOWN), case.name
        if case.side == BEYOND:
            assert found is not Fit.NATIVE, case.name


@EVERY
def test_the_profile_says_what_its_judge_says(name: str) -> None:
    """Or the disagreement is written down, with its reason, and is one."""
    found = {case.name for case in cases(profiles()[name]) if not agrees(name, case, recorded(name)[case.name])}
    assert found == DISAGREEMENTS[name].keys()


@EVERY
def test_what_is_on_record_was_asked_about_these_files(name: str) -> None:
    """With the judge's version and command; what is not written as TFLite is so today, for the same reason."""
    profile = profiles()[name]
    for case in cases(profile):
        said = recorded(name)[case.name]
        digest, refused = "", ""
        try:
            digest = kit.digest(written(profile, case))
        except CannotLoad as error:
            refused = str(error)
        if said.fit == "not asked":
            assert said.why == refused, case.name
            continue
        assert said.digest == digest, f"{case.name}: scripts/record_judges.py {name} asks anew"
        assert said.version == JUDGED[name].version
        assert said.command


LIVE = {
    "ethos-u-vela-3.10": ("conv.stride: at most 3 (depthwise)", "operators.SpaceToDepth.where: host"),
    "ethos-u-vela-5.2": ("conv.stride: at most 3 (depthwise)", "operators.SpaceToDepth.where: host"),
    "rknn-2.3.2": ("conv.pads: at most 15", "operators.SpaceToDepth.where: host"),
    "rknn-2.5.0": ("operators.Slice.steps: at most 1", "operators.SpaceToDepth.where: host"),
}
"""Rules of which the judge is asked once more where it is installed."""


@EVERY
def test_the_judge_says_what_it_said(name: str) -> None:
    missing = JUDGED[name].missing()
    if missing is not None:
        pytest.skip(missing)
    profile = profiles()[name]
    asked = [case for case in cases(profile) if case.rule in LIVE[name]]
    assert len(asked) == 3
    for case in asked:
        assert ask(profile, case) == recorded(name)[case.name]
    assert limits.TIMEOUT_S > 0
