"""Profiles are read strictly: what is wrong in a file is one line that names the file and the field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.targets import find, profiles, read
from dilrewrite.targets.facts import conv
from dilrewrite.targets.profile import Fit

SOURCE = {"url": "https://example.org", "title": "list", "read_on": "2026-11-28"}
MINE: dict[str, Any] = {
    "title": "My chip",
    "sources": {"list": SOURCE},
    "parameters": {"lanes": 4},
    "conv": {"dilation": {"max": 8, "source": "list"}},
    "operators": {"Slice": {"where": {"is": "native", "source": "list"}}},
}


def written(folder: Path, content: Any, name: str = "mychip.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changed(**sections: Any) -> dict[str, Any]:
    return {**MINE, **sections}


WRONG = {
    "a misspelt section": (changed(cnov={}), "cnov: there is no such field; did you mean 'conv'?"),
    "a misspelt field": (changed(conv={"dilatoin": {"max": 8, "source": "list"}}), "conv.dilatoin: there is no such"),
    "a misspelt test": (changed(conv={"dilation": {"mx": 8, "source": "list"}}), "conv.dilation.mx: there is no such"),
    "a field of another operator": (
        changed(operators={"Relu": {"steps": {"max": 1, "source": "list"}}}),
        "operators.Relu.steps: there is no such field",
    ),
    "a rule without a source": (changed(conv={"kernel": {"max": 3}}), "conv.kernel: the rule has no source"),
    "a source that is not there": (changed(conv={"kernel": {"max": 3, "source": "pdf"}}), "conv.kernel.source: 'pdf'"),
    "no sources": (changed(sources={}), "sources: at least one is needed"),
    "a source without a day": (changed(sources={"list": {**SOURCE, "read_on": "today"}}), "sources.list.read_on"),
    "a rule that asks nothing": (changed(conv={"kernel": {"source": "list"}}), "conv.kernel: it asks for nothing"),
    "a word": (changed(conv={"kernel": {"is": "any", "source": "list"}}), "conv.kernel.is: 'any' is none of"),
    "a place": (changed(operators={"Slice": {"where": {"is": "cpu", "source": "list"}}}), "operators.Slice.where.is"),
    "an unknown form": (changed(conv={"kernel": {"max": "k**2", "source": "list"}}), "conv.kernel.max: 'k**2': "),
    "a call": (
        changed(conv={"kernel": {"max": "__import__('os')", "source": "list"}}),
        "conv.kernel.max: \"__import__('os')\": ",
    ),
    "an attribute": (changed(conv={"kernel": {"max": "k.real", "source": "list"}}), "conv.kernel.max: 'k.real': "),
    "an unknown name": (changed(conv={"kernel": {"max": "K", "source": "list"}}), "conv.kernel.max: 'K': it has 'K'"),
    "no number": (changed(conv={"kernel": {"max": 1.5, "source": "list"}}), "conv.kernel.max: a whole number or"),
    "a flag": (changed(conv={"kernel": {"equal_axes": False, "source": "list"}}), "conv.kernel.equal_axes: only true"),
    "no words": (changed(conv={"kernel": {"holds": "kh == 1", "source": "list"}}), "conv.kernel: a rule with 'holds'"),
    "no product": (changed(conv={"products": {"max": 8, "source": "list"}}), "conv.products: it needs an expr"),
    "a status": (changed(status="guessed"), "status: 'guessed' is none of"),
    "a parameter": (changed(parameters={"lanes": 0}), "parameters.lanes: a whole number from 1"),
    "a lowering": (changed(compiler={"lowers": [{"when": "dilated"}]}), "compiler.lowers[0].to: it is missing"),
    "a check": (changed(check={"pypi": "x"}), "check.pypi: there is no such field"),
    "the host for a Conv": (
        changed(conv={"kernel": {"max": 3, "otherwise": "host", "source": "list"}}),
        "conv.kernel.otherwise: 'host' is none of none, unknown",
    ),
    "a parameter named as a fact": (changed(parameters={"d": 3}), "parameters.d: it means something else in rules"),
    "a parameter named as a function": (changed(parameters={"max": 3}), "parameters.max: it means something else"),
    "a parameter that no rule can name": (changed(parameters={"my lanes": 3}), "parameters.my lanes: it is no name"),
    "a parameter named as a word of Python": (changed(parameters={"not": 3}), "parameters.not: it is no name"),
    "several sources in one": (
        changed(conv={"kernel": {"max": 3, "source": ["list"]}}),
        "conv.kernel.source: ['list']",
    ),
    "a limit of a text": (
        changed(conv={"weights": {"max": 3, "source": "list"}}),
        "conv.weights.max: weights is a text; say 'set', or 'holds'",
    ),
    "a flag of a text": (
        changed(conv={"input_dtype": {"power_of_two": True, "source": "list"}}),
        "conv.input_dtype.power_of_two: input_dtype is a text",
    ),
    "no title": ({key: value for key, value in MINE.items() if key != "title"}, "title: it is missing"),
    "no object": ([], "mychip.json: an object is needed"),
    "no JSON": ("{", "no JSON file"),
    "a field twice": ('{"title": "a", "title": "b"}', "'title' is there twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    content, said = WRONG[case]
    with pytest.raises(UsageError) as error:
        read(written(tmp_path, content))
    assert said in error.value.typed
    assert "mychip.json" in error.value.typed
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("rule", "fit"),
    [
        ({"dilation": {"multiple_of": 0}}, Fit.UNKNOWN),
        ({"dilation": {"multiple_of": "k-3"}}, Fit.UNKNOWN),
        ({"dilation": {"max": "weights"}}, Fit.UNKNOWN),
        ({"products": {"expr": "max(weights)", "max": 3}}, Fit.UNKNOWN),
        ({"products": {"expr": "max(d)/5", "power_of_two": True}}, Fit.OUT),
        ({"products": {"expr": "max(d)/3", "power_of_two": True}}, Fit.NATIVE),
    ],
)
def test_a_rule_that_cannot_be_computed_is_undecided(tmp_path: Path, rule: dict[str, Any], fit: Fit) -> None:
    ((name, asked),) = rule.items()
    profile = read(written(tmp_path, changed(conv={name: {**asked, "source": "list"}})))
    (only,) = profile.conv[name]
    assert only.fit(conv(kernel=(3, 3), dilations=(12, 12), weights="constant")) is fit
    assert only.says(conv(kernel=(3, 3), dilations=(12, 12), weights="constant"))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no such file"):
        find("./nothing.json")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = find(f"{written(tmp_path, MINE)}:lanes=16")
    assert (profile.name, profile.parameters) == ("mychip", {"lanes": 16})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 is the first that reads TOML")
def test_toml(tmp_path: Path) -> None:
    text = 'title = "My chip"\n[sources.list]\nurl = "u"\ntitle = "t"\nread_on = "2026-11-28"\n'
    rules = '[conv]\ndilation = {max = 8, source = "list"}\n'
    assert [rule.place for rule in find(str(written(tmp_path, text + rules, "my.toml"))).rules()] == ["conv.dilation"]
    with pytest.raises(UsageError, match="no TOML file"):
        find(str(written(tmp_path, "a = ", "my.toml")))


def test_python_without_toml_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(UsageError, match="write it as JSON"):
        find(str(written(tmp_path, "", "my.toml")))


def test_names() -> None:
    assert find("rknn-2.3.2") is not None
    assert find("RKNN_2.3.2").name == "rknn-2.3.2"
    assert find("ethos-u").name == "ethos-u-vela-5.2"
    with pytest.raises(UsageError, match=r"there is no target 'rkn'; did you mean rknn"):
        find("rkn")


@pytest.mark.parametrize(
    ("text", "said"), [("rknn-2.3.2:a=1", "has no parameter 'a'"), ("mine:lanes=0", "is no whole number")]
)
def test_parameters_that_are_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = str(written(tmp_path, MINE))
    with pytest.raises(UsageError, match=said):
        find(text.replace("mine", path))


@pytest.mark.parametrize("name", profiles())
def test_every_profile_says_where_it_is_from(name: str) -> None:
    profile = profiles()[name]
    assert profile.vendor != "-"
    assert profile.devices
    assert profile.toolchain.name != "-"
    assert {rule.source for rule in profile.rules()} | {one.source for one in profile.lowers} <= profile.sources.keys()
    used = {rule.source for rule in profile.rules()} | {one.source for one in (*profile.lowers, *profile.refolds)}
    assert used == profile.sources.keys(), "a source that no rule names"
    assert all(source.url.startswith("https://") for source in profile.sources.values())
    assert name.startswith(profile.family)
