"""docs/devices.md: the table of targets is that of the profiles, and the example of a chip of one's own works."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dilrewrite.targets import Fit, Profile, find, profiles
from dilrewrite.targets import vocabulary as words
from tests.models_for_tests import MODELS, cli

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAYOUT = ("SpaceToDepth", "DepthToSpace", "Reshape", "Transpose", "Slice", "Concat", "Split", "Pad")
WHERE = {"host": "host", "none": "refused", "unknown": "unknown"}


def limits(profile: Profile, field: str) -> str:
    """The rules of a field of a Conv in a cell."""
    told = []
    for rule in profile.conv.get(field, ()):
        if rule.test != "min":
            told.append(rule.text() + (f" ({rule.when.text})" if rule.when is not None else ""))
    if field == "dilation":
        products = [rule for rule in profile.conv.get("products", ()) if re.search(r"\bd[hw]?\b", rule.fact.text)]
        told += [f"{rule.fact.text} {rule.text()}" for rule in products]
        told += [f"{one.to.replace('_', ' ')} by the compiler ({one.when.text})" for one in profile.lowers]
    return "; ".join(dict.fromkeys(told)) or "unknown"


def layout(profile: Profile) -> str:
    """Where layout operators run that do not run on the device."""
    if not profile.operators:
        return "unknown"
    parts = []
    for where, word in WHERE.items():
        ops = [op for op in LAYOUT if any(rule.limit == where for rule in profile.operators[op].get("where", ()))]
        if profile.operators and ops:
            parts.append(f"{word}: {', '.join(ops)}")
    return "; ".join(parts) or "on the device"


def table() -> str:
    rows = [
        f"| `{name}` | {profile.title} | {profile.toolchain}, {profile.status} | {limits(profile, 'dilation')} | "
        f"{limits(profile, 'pads')} | {limits(profile, 'batch')} | {layout(profile)} |"
        for name, profile in profiles().items()
    ]
    head = "| name | device | toolchain, how it is known | dilation | pads | batch | layout |"
    return "\n".join([head, "|---" * 7 + "|", *rows])


def test_the_table_is_that_of_the_profiles() -> None:
    """DILREWRITE_UPDATE_GOLDEN=1 writes it."""
    wanted = f"<!-- targets -->\n{table()}\n<!-- /targets -->"
    changed = re.sub(r"<!-- targets -->\n.*?<!-- /targets -->", lambda _: wanted, TEXT, flags=re.DOTALL)
    if os.environ.get("DILREWRITE_UPDATE_GOLDEN"):
        PAGE.write_text(changed, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == changed


@pytest.fixture
def mychip(tmp_path: Path) -> Path:
    (example,) = re.findall(r"<!-- mychip -->\n```json\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "mychip.json"
    path.write_text(example, encoding="utf-8")
    return path


def test_the_example_is_a_profile(mychip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = find(f"{mychip}:lanes=32")
    assert {*words.ASKED} <= profile.conv.keys(), "the example answers what every Conv asks"
    assert cli(capsys, "targets", "show", mychip).code == 0
    model = MODELS / "resnet_stage_os8.onnx"
    told = cli(capsys, "inspect", model, "--target", mychip, "--json").report["target"]
    assert told["convs"] == {"native": 8}
    assert told["fits"] == {str(Fit.NATIVE): 21}
    wide = cli(capsys, "inspect", MODELS / "aspp_segmentation.onnx", "--target", mychip, "--json").report["target"]
    assert wide["convs"] == {"native": 4, "out of limits": 3}
    assert {one["reasons"][0] for one in wide["nodes"] if one["op"] == "Resize"} == {
        "no source says whether it runs Resize"
    }


def test_every_word_of_profiles_is_explained() -> None:
    fields = TEXT.partition("### Fields")[2]
    known = {
        *words.CONV_FIELDS,
        *words.TENSOR_FIELDS,
        *(one for op in words.OF_OPERATORS for one in words.operator_fields(op)),
    }
    names = {
        *words.TENSOR,
        *words.COMMON,
        "Cin",
        "Cout",
        "group",
        "depthwise",
        "grouped",
        "dilated",
        "k",
        "d",
        "s",
        "p",
    }
    told = set(re.findall(r"`([A-Za-z_0-9]+)`", fields))
    assert known - told == set()
    assert names - told == set()
