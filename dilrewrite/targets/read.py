"""Reads profiles: the package's own by name, a user's by path; the only file that knows how they are written.

A file that is wrong is a `UsageError` which names the file and the field: a field that is not known, a rule without a
source, an expression that is none.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib
import json
import keyword
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dilrewrite.errors import UsageError, choices, folded, meant, shown
from dilrewrite.targets.expressions import FUNCTIONS, Expression, parse
from dilrewrite.targets.profile import (
    FLAGS,
    LIKE_EXPRESSION,
    OPEN,
    TESTS,
    WHERE,
    Lowering,
    Profile,
    Refold,
    Rule,
    Rules,
    Source,
    Toolchain,
    newest,
)
from dilrewrite.targets.vocabulary import (
    CONV,
    CONV_FIELDS,
    OF_OPERATORS,
    TENSOR,
    TENSOR_FIELDS,
    TEXTS,
    Fields,
    operator_facts,
    operator_fields,
)

FOLDER = Path(__file__).parent / "profiles"
STATUSES = ("documented", "run", "reverse-engineered")
WORDS = {
    "where": (*WHERE,),
    "static": ("required", "batch_may_vary", "not_required", "unknown"),
    "quantised": ("required", "not_required", "unknown"),
}
"""What `is` may be in some fields; in the others `OPEN`."""
FACTS = {*CONV, *TENSOR, *(fact for own in OF_OPERATORS.values() for fact in own)}
"""What names stand for in rules."""
RULE_KEYS = (*TESTS, "expr", "when", "otherwise", "source", "note")
MOST_PARAMETER = 10**9


@functools.cache
def profiles() -> Mapping[str, Profile]:
    """Return the package's own profiles by name, in sorted order."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}


def find(text: str) -> Profile:
    """Return the profile that `NAME[:key=value,...]` says; NAME is a target, its family (the newest), or a path.

    Raises `UsageError` for a name that is unknown, a file that is wrong, and a parameter that there is none of.
    """
    name, _, settings = text.partition(":")
    if "/" in name or Path(name).suffix in (".json", ".toml"):
        profile = read(Path(name))
    else:
        known = {folded(one): profile for one, profile in profiles().items()}
        versions = [profile for profile in profiles().values() if folded(profile.family) == folded(name)]
        found = known.get(folded(name)) or (newest(versions) if versions else None)
        if found is None:
            names = sorted({*profiles(), *(one.family for one in profiles().values())})
            raise UsageError(f"there is no target {name!r}", hint=f"{choices(name, names)}; or the path of a file")
        profile = found
    return dataclasses.replace(profile, parameters={**profile.parameters, **_given(profile, text, settings)})


def _given(profile: Profile, text: str, settings: str) -> dict[str, int]:
    """Return the parameters that were set."""
    given: dict[str, int] = {}
    for part in filter(None, settings.split(",")):
        key, _, value = part.partition("=")
        if key not in profile.parameters:
            listed = ", ".join(f"{one}={number}" for one, number in profile.parameters.items()) or "none"
            raise UsageError(
                f"--target {text}: {profile.name} has no parameter {key!r}", hint=f"its parameters: {listed}"
            )
        if not (value.isascii() and value.isdigit() and 1 <= len(value) <= 9 and 1 <= int(value) <= MOST_PARAMETER):
            raise UsageError(f"--target {text}: {key}={value!r} is no whole number from 1 to {MOST_PARAMETER}")
        given[key] = int(value)
    return given


def read(path: Path) -> Profile:
    """Return the profile in a JSON file, or in a TOML file where Python reads it (3.11 and later)."""
    return _Reader(shown(path), path.stem).profile(_plain(path))


def _plain(path: Path) -> Any:
    """Return what a file holds."""
    where = f"target {shown(path)}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: no such file" if not path.exists() else f"{where}: cannot be read") from error
    try:
        if path.suffix == ".toml":
            return importlib.import_module("tomllib").loads(data.decode("utf-8"))
        return json.loads(data, object_pairs_hook=functools.partial(_once, where))
    except ModuleNotFoundError as error:
        raise UsageError(f"{where}: Python 3.11 is the first that reads TOML", hint="write it as JSON") from error
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise UsageError(f"{where}: no {kind} file: {error}", hint="docs/devices.md has an example") from error


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; a field that is there twice would be lost without a word."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"{where}: {name!r} is there twice in one object", hint="leave one of them out")
        found[name] = value
    return found


class _Reader:
    """Turns the plain data of one file into a profile."""

    def __init__(self, file: str, name: str) -> None:
        self._file, self._name = file, name
        self._sources: Collection[str] = ()
        self._parameters: dict[str, int] = {}

    def wrong(self, place: str, problem: str, hint: str = "") -> UsageError:
        """Return the error of a field."""
        return UsageError(": ".join(filter(None, (f"target {self._file}", place, problem))), hint=hint)

    def fields(self, value: Any, place: str, known: Collection[str]) -> dict[str, Any]:
        """Return an object whose fields are known."""
        if not isinstance(value, dict):
            raise self.wrong(place, "an object is needed")
        for name in value:
            if name not in known:
                near = meant(name, known)
                hint = f"did you mean {near!r}?" if near else f"its fields: {', '.join(known)}"
                raise self.wrong(f"{place}.{name}".lstrip("."), "there is no such field", hint)
        return value

    def text(self, value: Any, place: str) -> str:
        """Return a text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.wrong(place, "a text is needed")
        return value

    def texts(self, value: Any, place: str) -> tuple[str, ...]:
        """Return a list of texts."""
        if not isinstance(value, list):
            raise self.wrong(place, "a list of texts is needed")
        return tuple(self.text(one, place) for one in value)

    def record(self, kind: type, value: Any, place: str) -> Any:
        """Return a dataclass of texts."""
        own = dataclasses.fields(kind)
        data = self.fields(value, place, [one.name for one in own])
        for one in own:
            if one.default is dataclasses.MISSING and one.name not in data:
                raise self.wrong(f"{place}.{one.name}", "it is missing")
        return kind(**{name: self.text(text, f"{place}.{name}") for name, text in data.items()})

    def source(self, value: Any, place: str) -> Source:
        """Return a source, whose day is one."""
        source: Source = self.record(Source, value, place)
        try:
            datetime.date.fromisoformat(source.read_on)
        except ValueError as error:
            raise self.wrong(f"{place}.read_on", f"{source.read_on!r} is no day", "write it as 2026-11-28") from error
        return source

    def profile(self, value: Any) -> Profile:
        """Return the profile."""
        known = [
            one.name for one in dataclasses.fields(Profile) if one.name not in ("name", "file", "lowers", "refolds")
        ]
        data = self.fields(value, "", [*known, "compiler"])
        for name in ("title", "sources"):
            if name not in data:
                raise self.wrong(name, "it is missing", "docs/devices.md says what a profile needs")
        sources = {name: self.source(one, f"sources.{name}") for name, one in self.object(data, "sources").items()}
        if not sources:
            raise self.wrong("sources", "at least one is needed")
        self._sources = sources
        self._parameters = {
            self.parameter(name): self.whole(one, f"parameters.{name}")
            for name, one in self.object(data, "parameters").items()
        }
        compiler = self.fields(data.get("compiler", {}), "compiler", ("lowers", "refolds"))
        check = self.fields(data.get("check", {}), "check", ("pip", "command"))
        return Profile(
            name=self._name,
            family=self.text(data.get("family", self._name), "family"),
            title=self.text(data["title"], "title"),
            vendor=self.text(data.get("vendor", "-"), "vendor"),
            status=self.word(data.get("status", "documented"), "status", STATUSES),
            toolchain=self.record(Toolchain, data.get("toolchain", {"name": "-"}), "toolchain"),
            sources=sources,
            devices=self.texts(data.get("devices", []), "devices"),
            parameters=self._parameters,
            unit_axis_dilation=self.word(data.get("unit_axis_dilation", "one"), "unit_axis_dilation", ("one", "match")),
            conv=self.section(self.object(data, "conv"), "conv", CONV_FIELDS, CONV),
            tensors=self.section(self.object(data, "tensors"), "tensors", TENSOR_FIELDS, TENSOR),
            operators=self.operators(self.object(data, "operators")),
            lowers=tuple(
                self.lowering(one, f"compiler.lowers[{place}]")
                for place, one in enumerate(self.array(compiler.get("lowers", []), "compiler.lowers"))
            ),
            refolds=tuple(
                self.refold(one, f"compiler.refolds[{place}]")
                for place, one in enumerate(self.array(compiler.get("refolds", []), "compiler.refolds"))
            ),
            check={name: self.text(one, f"check.{name}") for name, one in check.items()},
            file=self._file,
        )

    def object(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return an object among the fields, empty where there is none."""
        value = data.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object is needed")
        return value

    def array(self, value: Any, place: str) -> list[Any]:
        """Return a list."""
        if not isinstance(value, list):
            raise self.wrong(place, "a list is needed")
        return value

    def whole(self, value: Any, place: str) -> int:
        """Return a whole number above 0."""
        if type(value) is not int or not 1 <= value <= MOST_PARAMETER:
            raise self.wrong(place, f"a whole number from 1 to {MOST_PARAMETER} is needed")
        return value

    def parameter(self, name: str) -> str:
        """Return the name of a parameter, which expressions and `--target NAME:key=value` can say."""
        if not name.isidentifier() or keyword.iskeyword(name):
            raise self.wrong(f"parameters.{name}", "it is no name", "letters, digits and _ make one")
        if name in FACTS or name in FUNCTIONS:
            raise self.wrong(f"parameters.{name}", "it means something else in rules", "give it another name")
        return name

    def word(self, value: Any, place: str, known: Collection[str]) -> str:
        """Return one of the words."""
        if not isinstance(value, str) or value not in known:
            raise self.wrong(place, f"{value!r} is none of {', '.join(known)}")
        return value

    def operators(self, data: Mapping[str, Any]) -> dict[str, Rules]:
        """Return the rules by operator; a field may name several operators, with blanks between them."""
        found: dict[str, Rules] = {}
        for names, rules in data.items():
            for name in names.split():
                place = f"operators.{name}"
                if name in found:
                    raise self.wrong(place, "it is there twice", "leave one of them out")
                found[name] = self.section(
                    self.fields(rules, place, [*operator_fields(name)]),
                    place,
                    operator_fields(name),
                    operator_facts(name),
                )
        return found

    def section(self, data: Mapping[str, Any], place: str, fields: Fields, names: Collection[str]) -> Rules:
        """Return the rules of a section by field."""
        found = {}
        for field, value in self.fields(data, place, [*fields]).items():
            inside = f"{place}.{field}"
            rules = value if isinstance(value, list) else [value]
            found[field] = tuple(rule for one in rules for rule in self.rules(one, inside, fields[field], names))
        return found

    def rules(self, data: Any, place: str, fact: Expression | None, names: Collection[str]) -> list[Rule]:
        """Return the rules that one object is: one for each test in it."""
        field = place.rpartition(".")[2]
        self.fields(data, place, RULE_KEYS)
        tests = [name for name in TESTS if name in data]
        if not tests:
            raise self.wrong(place, "it asks for nothing", f"say one of {', '.join(TESTS)}")
        if "source" not in data:
            raise self.wrong(place, "the rule has no source", "name one of the profile's sources")
        source = self.word(data["source"], f"{place}.source", self._sources)
        if field == "products" and "expr" in data:
            fact = self.expression(data["expr"], f"{place}.expr", names)
        elif "expr" in data:
            raise self.wrong(f"{place}.expr", "only products have one")
        elif fact is None and tests != ["is"] and tests != ["holds"]:
            raise self.wrong(place, "it needs an expr" if field == "products" else "only 'is' can be said of it")
        ordered = [name for name in tests if name not in ("is", "set", "holds")]
        if ordered and fact is not None and fact.text in TEXTS:
            raise self.wrong(f"{place}.{ordered[0]}", f"{fact.text} is a text", "say 'set', or 'holds'")
        when = self.expression(data["when"], f"{place}.when", names) if "when" in data else None
        known = ("none", "host", "unknown") if place.startswith("operators.") else ("none", "unknown")
        otherwise = self.word(data.get("otherwise", "none"), f"{place}.otherwise", known)
        note = self.text(data["note"], f"{place}.note") if "note" in data else ""
        if "holds" in data and not note:
            raise self.wrong(place, "a rule with 'holds' has no note", "say in words what has to be")
        return [
            Rule(
                place=place, fact=fact or parse("0", ()), test=test, source=source, when=when, note=note,
                limit=self.limit(data[test], f"{place}.{test}", test, field, names), otherwise=WHERE[otherwise],
            )
            for test in tests
        ]  # fmt: skip

    def limit(self, value: Any, place: str, test: str, field: str, names: Collection[str]) -> Any:
        """Return what a fact is held to."""
        if test == "is":
            return self.word(value, place, WORDS.get(field, OPEN))
        if test == "set":
            plain = isinstance(value, list) and all(type(one) in (int, str, bool, list) for one in value)
            if not plain:
                raise self.wrong(place, "a list of numbers or texts is needed")
            return tuple(tuple(one) if isinstance(one, list) else one for one in value)
        if test in FLAGS:
            if value is not True:
                raise self.wrong(place, "only true can be said of it", "leave the rule out otherwise")
            return True
        assert test in LIKE_EXPRESSION, test
        return self.expression(value, place, names)

    def expression(self, value: Any, place: str, names: Collection[str]) -> Expression:
        """Return a number or a text as an expression."""
        if type(value) is not int and not isinstance(value, str):
            raise self.wrong(place, "a whole number or an expression is needed")
        try:
            return parse(str(value), [*names, *self._parameters])
        except ValueError as error:
            raise self.wrong(place, f"{str(value)[:60]!r}: {error}") from error

    def lowering(self, value: Any, place: str) -> Lowering:
        """Return what a compiler makes of a Conv."""
        data = self.fields(value, place, [one.name for one in dataclasses.fields(Lowering)])
        for name in ("when", "to", "cost", "source"):
            if name not in data:
                raise self.wrong(f"{place}.{name}", "it is missing")
        return Lowering(
            when=self.expression(data["when"], f"{place}.when", CONV),
            to=self.word(data["to"], f"{place}.to", ("zero_fill", "taps", "gather")),
            cost=self.expression(data["cost"], f"{place}.cost", CONV),
            source=self.word(data["source"], f"{place}.source", self._sources),
            note=self.text(data["note"], f"{place}.note") if "note" in data else "",
        )

    def refold(self, value: Any, place: str) -> Refold:
        """Return what a compiler folds back."""
        refold: Refold = self.record(Refold, value, place)
        self.word(refold.source, f"{place}.source", self._sources)
        self.word(refold.pattern, f"{place}.pattern", ("space_to_batch",))
        return refold
