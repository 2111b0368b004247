"""dilrewrite targets: the devices that are known by name; show NAME: what one takes; install-judge NAME: a compiler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from dilrewrite.cli._options import command
from dilrewrite.errors import UsageError
from dilrewrite.options import Option

if TYPE_CHECKING:
    from dilrewrite.targets import Profile, Rule, Source

EXAMPLES = [
    ("the devices that are known by name", "targets"),
    ("what one of them takes, and who says so", "targets show rknn-2.3.2"),
    ("the same for programs", "targets --json"),
    ("Arm's compiler for Ethos-U, which estimates cycles", "targets install-judge ethos-u-vela"),
]

SHOW, INSTALL = "show", "install-judge"
ACTION = Option(
    "", "`show` for one of them, `install-judge` for a compiler that is asked; all without it.", "[ACTION]",
    kind=str | None, default=None,
)  # fmt: skip
NAME = Option("", "A target, the path of a file of your own, or a judge.", "[NAME]", kind=str | None, default=None)


@command("action name as_json", EXAMPLES, {"action": ACTION, "name": NAME})
def run(action: str | None, name: str | None, *, as_json: bool) -> int:
    """List the devices that are known by name, show the rules of one with their sources, or install a compiler."""
    from dilrewrite.targets import find, profiles

    if action not in (None, SHOW, INSTALL):
        raise UsageError(f"targets {action}: not known", hint=f"did you mean dilrewrite targets {SHOW} {action}?")
    if action is not None and name is None:
        from dilrewrite.judges import JUDGES

        hint = "dilrewrite targets lists them" if action == SHOW else f"known are {', '.join(JUDGES)}"
        raise UsageError(f"targets {action} needs a name", hint=hint)
    if action == INSTALL and name is not None:
        from dilrewrite.judges import install

        install(name, typer.echo)
        return 0
    found = [find(name)] if name is not None else [*profiles().values()]
    if as_json:
        told = [_plain(one, rules=name is not None) for one in found]
        typer.echo(json.dumps(told[0] if name is not None else told, indent=2))
        return 0
    for line in _shown(found[0]) if name is not None else map(_line, found):
        typer.echo(line)
    return 0


def age(source: Source) -> str:
    """Return how long ago a source was read."""
    days = source.days()
    return "today" if days < 1 else f"{days} day{'s' if days > 1 else ''} ago"


def _oldest(profile: Profile) -> Source:
    return min(profile.sources.values(), key=lambda source: source.read_on)


def _line(profile: Profile) -> str:
    what = f"{profile.title}; {profile.toolchain}; {profile.status}, read {age(_oldest(profile))}"
    return f"{profile.name:<18} {what}"


def _shown(profile: Profile) -> list[str]:
    """Return the rules of a profile, with the names of their sources, and the sources."""
    from dilrewrite.errors import clean

    lines = [_line(profile), f"devices: {', '.join(profile.devices) or 'not said'}"]
    judge = profile.toolchain.judge
    lines += [f"judge: --backend {judge.backend} asks the compiler; {judge.command} installs it"] if judge else []
    lines += [f"parameter {name}={value}" for name, value in profile.parameters.items()]
    alike: dict[str, list[str]] = {}
    for rule in profile.rules():
        section, *middle, field = rule.place.split(".")
        alike.setdefault(f"{field}{_rule(rule)}", []).append(".".join([section, *middle]))
    lines += [_together(places, text) for text, places in alike.items()]
    for one in profile.lowers:
        lines.append(f"compiler, where {one.when.text}: {one.to}, {one.cost.text} times the work [{one.source}]")
    lines += [f"compiler folds back: {one.pattern} [{one.source}]" for one in profile.refolds]
    lines += [f"unit_axis_dilation: {profile.unit_axis_dilation}"] if profile.unit_axis_dilation != "one" else []
    for name, source in profile.sources.items():
        version = f" {source.version}" if source.version else ""
        lines.append(f"[{name}] {source.title}{version}, read {source.read_on} ({age(source)}): {source.url}")
    return [clean(line) for line in lines]


def _rule(rule: Rule) -> str:
    """Return what a rule asks, of which nodes, and who says so."""
    expr = f" {rule.fact.text}" if rule.field == "products" and rule.test != "holds" else ""
    when = f", where {rule.when.text}" if rule.when is not None else ""
    other = f" (else: {rule.otherwise})" if rule.test != "is" and rule.otherwise != "out of limits" else ""
    note = f" ({rule.note})" if rule.note and rule.test != "holds" else ""
    return f"{expr}: {rule.text()}{when}{other}{note} [{rule.source}]"


def _together(places: list[str], text: str) -> str:
    """Return a line for a rule that several operators have."""
    sections = dict.fromkeys(place.partition(".")[0] for place in places)
    names = dict.fromkeys(place.partition(".")[2] for place in places)
    return f"{' and '.join(sections)}{'.' if any(names) else ''}{', '.join(filter(None, names))}.{text}"


def _plain(profile: Profile, *, rules: bool) -> dict[str, Any]:
    """Return a profile as plain data."""
    import dataclasses

    judge = profile.toolchain.judge
    told: dict[str, Any] = {
        "name": profile.name,
        "title": profile.title,
        "vendor": profile.vendor,
        "toolchain": str(profile.toolchain),
        "status": profile.status,
        "read_on": profile.read_on(),
        "days": _oldest(profile).days(),
        "judge": {"backend": judge.backend, "install": judge.command} if judge is not None else None,
    }
    if not rules:
        return told
    told |= {
        "devices": [*profile.devices],
        "parameters": dict(profile.parameters),
        "unit_axis_dilation": profile.unit_axis_dilation,
        "sources": {name: dataclasses.asdict(source) for name, source in profile.sources.items()},
    }
    told["rules"] = [
        {
            "place": rule.place,
            "about": rule.fact.text if rule.field == "products" else rule.field,
            "is": rule.text(),
            "when": rule.when.text if rule.when is not None else "",
            "otherwise": str(rule.otherwise),
            "note": rule.note,
            "source": rule.source,
        }
        for rule in profile.rules()
    ]
    return told
