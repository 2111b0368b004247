"""What a target takes, as data: `Profile`, its rules and their sources, and how a rule is held to facts of a node.

A fact is a number, a text or a tuple with a value for each axis; `docs/devices.md` lists them. Whatever a rule needs
and is not known makes it undecided: nothing unknown counts as native.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dilrewrite import judges
from dilrewrite._compat import StrEnum
from dilrewrite.judges import Judge
from dilrewrite.targets.expressions import Expression, Value, truth
from dilrewrite.targets.vocabulary import ASKED, LATER

Facts = Mapping[str, Value]
"""What is known of a node or a tensor, by name."""


class Fit(StrEnum):
    """How a target takes a node, best first; `rank` orders them."""

    NATIVE = "native"
    HOST = "host"
    UNKNOWN = "unknown"
    OUT = "out of limits"

    @property
    def rank(self) -> int:
        """Return its place: a smaller one is better."""
        return [*Fit].index(self)


def worst(fits: Iterable[Fit]) -> Fit:
    """Return the worst of several; native where there is none."""
    return max(fits, key=lambda fit: fit.rank, default=Fit.NATIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rules were read: a public page, a file of a repository, or the tool itself."""

    url: str
    title: str
    read_on: str
    """The day on which it was read, as YYYY-MM-DD."""
    version: str = ""
    dated: str = ""
    lines: str = ""

    def days(self, today: datetime.date | None = None) -> int:
        """Return how many days ago it was read."""
        return ((today or datetime.date.today()) - datetime.date.fromisoformat(self.read_on)).days


LIKE_SET, LIKE_EXPRESSION, FLAGS = ("set",), ("max", "min", "less_than", "multiple_of", "holds"), (
    "power_of_two",
    "equal_axes",
    "symmetric",
)  # fmt: skip
TESTS = ("is", *LIKE_SET, *LIKE_EXPRESSION, *FLAGS)
"""What a rule may ask of a fact."""

OPEN = ("unlimited", "unknown")
WHERE = {"native": Fit.NATIVE, "host": Fit.HOST, "none": Fit.OUT, "unknown": Fit.UNKNOWN}
"""What `where` of an operator may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One condition of a profile.

    `place`: where it stands, such as `conv.dilation`. `fact`: what it is about, a name or, for `products`, an
    expression. `test`: one of `TESTS`; `limit`: what it is held to, by `test`: a word (`is`), a tuple (`set`), an
    expression, or True. `when`: the rule is for nodes of which this is true. `otherwise`: what becomes of a node that
    breaks it. `source`: a name in the profile's `sources`. `note`: more of it, in words.
    """

    place: str
    fact: Expression
    test: str
    limit: Any
    source: str
    when: Expression | None = None
    otherwise: Fit = Fit.OUT
    note: str = ""

    @property
    def field(self) -> str:
        """Return the last part of its place."""
        return self.place.rpartition(".")[2]

    def applies(self, facts: Facts) -> bool | None:
        """Say whether it is for a node of these facts; `None` where that is not known."""
        return True if self.when is None else self.when.holds(facts)

    def fit(self, facts: Facts) -> Fit:
        """Return what it says of a node that it applies to."""
        if self.test == "is":
            known = {**WHERE, "unlimited": Fit.NATIVE, "required": Fit.NATIVE, "not_required": Fit.NATIVE}
            return known.get(self.limit, Fit.UNKNOWN)
        if self.test != "holds" and self.fact.value(facts) == LATER:
            return Fit.NATIVE
        met = truth(self._met(facts))
        return Fit.UNKNOWN if met is None else Fit.NATIVE if met else self.otherwise

    def _met(self, facts: Facts) -> Value:
        if self.test == "holds":
            return self.limit.value(facts)
        value = self.fact.value(facts)
        if value is None:
            return None
        values = value if isinstance(value, tuple) else (value,)
        if self.test == "symmetric":
            begin, end = facts.get("p_begin"), facts.get("p_end")
            return None if begin is None or end is None else begin == end
        if None in values:
            return None
        if self.test == "equal_axes":
            return len(set(values)) <= 1
        if self.test == "set":
            return all(one in self.limit for one in values)
        if not _numbers(values):
            return None
        if self.test == "power_of_two":
            return all(one > 0 and one.denominator == 1 and int(one) & (int(one) - 1) == 0 for one in values)
        limit = self.limit.value(facts)
        if limit is None or (isinstance(limit, tuple) and None in limit):
            return None
        limits = limit if isinstance(limit, tuple) else (limit,) * len(values)
        if len(limits) != len(values) or not _numbers(limits) or (self.test == "multiple_of" and 0 in limits):
            return None
        return all(map(_COMPARED[self.test], values, limits))

    def text(self) -> str:
        """Return the condition in words: `at most 31`."""
        limit = self.limit.text if isinstance(self.limit, Expression) else self.limit
        if self.test == "holds":
            return self.note
        if self.test == "is":
            return str(limit).replace("_", " ")
        if self.test == "set":
            return f"one of {', '.join(map(str, limit))}" if len(limit) > 1 else f"only {limit[0]}" if limit else "none"
        return {"max": f"at most {limit}", "min": f"at least {limit}", "less_than": f"below {limit}",
                "multiple_of": f"a multiple of {limit}", "power_of_two": "a power of two",
                "equal_axes": "the same on all axes", "symmetric": "the same at both ends"}[self.test]  # fmt: skip

    def says(self, facts: Facts) -> str:
        """Return in words how a node stands to it: `dilation 12 is not one of 1, 2, 4, 8`."""
        if self.test == "is":
            return self.note or f"{self.field}: {self.text()}"
        name = self.fact.text if self.field == "products" else self.field
        value = self.fact.value(facts) if self.test != "holds" else None
        if self.test == "holds":
            return f"{name}: {self.note}"
        if self._met(facts) is None:
            return f"{name} has to be {self.text()}, and is not known"
        broken = f"{name} {_shown(value)} is not {self.text()}"
        return f"{broken}, and no source says more" if self.otherwise is Fit.UNKNOWN else broken


_COMPARED = {
    "max": lambda value, limit: value <= limit,
    "min": lambda value, limit: value >= limit,
    "less_than": lambda value, limit: value < limit,
    "multiple_of": lambda value, limit: value % limit == 0,
}


def _numbers(values: Iterable[Value]) -> bool:
    """Say whether all are numbers: an expression may come to a text as well."""
    return all(isinstance(one, int | Fraction) for one in values)


def _shown(value: Value) -> str:
    values = value if isinstance(value, tuple) else (value,)
    same = len(set(values)) == 1
    return str(values[0]) if same else "x".join(map(str, values)) if all(isinstance(one, int) for one in values) else (
        ", ".join(map(str, values))
    )  # fmt: skip


Rules = Mapping[str, tuple[Rule, ...]]
"""Rules by field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says of one node. `rule`: `None` where the profile has none: it is unknown then."""

    fit: Fit
    text: str
    rule: Rule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """What the target's compiler makes of a dilated Conv by itself.

    `when`: of which Convs; `to`: `zero_fill`, `taps` or `gather`; `cost`: how many times the work of the same Conv
    without dilation, as an expression over its facts.
    """

    when: Expression
    to: str
    cost: Expression
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refold:
    """A pattern that the target's compiler turns back into a dilated Conv; `pattern`: `space_to_batch`."""

    pattern: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """The compiler that the rules are of."""

    name: str
    version_min: str = ""
    version_max: str = ""

    def __str__(self) -> str:
        """Return it with its versions."""
        both = dict.fromkeys(filter(None, (self.version_min, self.version_max)))
        return " ".join([self.name, " to ".join(both)]).strip()

    def includes(self, version: str) -> bool:
        """Say whether a version of the compiler is one of these."""
        least, most = self.version_min, self.version_max
        after = bool(version) and (not least or _version(version) >= _version(least))
        return after and (not most or _version(version) <= _version(most))

    @property
    def judge(self) -> Judge | None:
        """Return who can be asked what the compiler makes of a model, installed or not; `None` where nobody can."""
        return next((one for version, one in judges.versions(self.name).items() if self.includes(version)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A target with a version of its toolchain, as its file says.

    `family`: what its versions have in common, which is a name of the newest one. `status`: `documented`, `run` (held
    to the vendor's compiler) or `reverse-engineered`. `conv`, `tensors`: rules of every Conv and of every tensor.
    `operators`: rules by operator. `unit_axis_dilation`: what to write as the dilation of an axis on which the kernel
    is 1: `one`, or `match`, which is that of the other axes. `parameters`: numbers that rules use.
    """

    name: str
    family: str
    title: str
    vendor: str
    status: str
    toolchain: Toolchain
    sources: Mapping[str, Source]
    devices: tuple[str, ...] = ()
    parameters: Mapping[str, int] = field(default_factory=dict)
    unit_axis_dilation: str = "one"
    conv: Rules = field(default_factory=dict)
    tensors: Rules = field(default_factory=dict)
    operators: Mapping[str, Rules] = field(default_factory=dict)
    lowers: tuple[Lowering, ...] = ()
    refolds: tuple[Refold, ...] = ()
    check: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def rules(self) -> Iterator[Rule]:
        """Yield every rule."""
        for section in (self.tensors, self.conv, *self.operators.values()):
            for rules in section.values():
                yield from rules

    def conv_findings(self, facts: Facts) -> list[Finding]:
        """Return what the rules say of a Conv of these facts (see `facts.conv`) where that is not native."""
        asked = [name for name, acts in ASKED.items() if truth(acts.value(facts)) is not False]
        found = held(self.conv, {**self.parameters, **facts})
        for name in asked:
            known = [rule for rule in self.conv.get(name, ()) if rule.applies({**self.parameters, **facts})]
            if not known:
                text = f"no source says which {name} it takes"
                found.append(Finding(fit=Fit.UNKNOWN, text=text))
        return found

    def operator_findings(self, op: str, facts: Facts) -> list[Finding]:
        """Return what the rules say of a node of an operator where that is not native (facts: see `facts.node`)."""
        rules = self.operators.get(op, {})
        found = held(rules, {**self.parameters, **facts})
        if "where" not in rules:
            found.append(Finding(fit=Fit.UNKNOWN, text=f"no source says whether it runs {op}"))
        return found

    def tensor_findings(self, facts: Facts) -> list[Finding]:
        """Return what the rules say of a tensor where that is not native (facts: see `facts.tensor`)."""
        rules = {name: some for name, some in self.tensors.items() if name not in OF_THE_MODEL}
        return held(rules, {**self.parameters, **facts})

    def lowering(self, facts: Facts) -> tuple[Lowering, float] | None:
        """Return what its compiler makes of a Conv of these facts, and how many times the work that is."""
        for one in self.lowers:
            if one.when.holds(facts):
                cost = one.cost.value(facts)
                return (one, float(cost)) if cost is not None else None
        return None

    def read_on(self) -> str:
        """Return the day on which the oldest of its sources was read."""
        return min(source.read_on for source in self.sources.values())


OF_THE_MODEL = ("static", "quantised")
"""Fields of `tensors` that are about the whole model."""


def held(rules: Rules, facts: Facts) -> list[Finding]:
    """Return what rules say of facts where that is not native."""
    found = []
    for rule in (one for some in rules.values() for one in some):
        applies = rule.applies(facts)
        fit = rule.fit(facts) if applies else Fit.NATIVE
        if applies is None:
            fit = Fit.NATIVE if rule.fit(facts) is Fit.NATIVE else Fit.UNKNOWN
        if fit is not Fit.NATIVE:
            found.append(Finding(fit=fit, text=rule.says(facts), rule=rule))
    return found


def newest(profiles: Sequence[Profile]) -> Profile:
    """Return the one of the latest toolchain."""
    return max(profiles, key=lambda one: _version(one.toolchain.version_max or one.toolchain.version_min))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))
