"""Space-to-batch sandwiches: what became of them, and what looks like one and is none."""

from __future__ import annotations

from dilrewrite.reports import units
from dilrewrite.reports.report import Report, SiteReport

COMMAND = "fold"


def of(report: Report) -> list[SiteReport]:
    """Return the sandwiches of a report."""
    return [site for site in report.sites if site.sandwich]


def many(number: int) -> str:
    """Return `1 sandwich`, `2 sandwiches`."""
    return "1 sandwich" if number == 1 else f"{number} sandwiches"


def beside(report: Report) -> str:
    """Return how many sandwiches were rewritten beside dilated Convs; empty where there is none."""
    some = of(report)
    done = sum(site.action == "rewritten" for site in some)
    return f"{done} of {many(len(some))}" if some else ""


def told(report: Report) -> bool:
    """Say whether a report tells what `fold` did."""
    return report.command == COMMAND and report.status in ("rewritten", "kept", "nothing to rewrite")


def answer(report: Report, equality: str, *more: str) -> str:
    """Return what `fold` did, whether the models are equal, and more."""
    return units.joined(_done(report), equality if report.verdict is not None else "", *more, by="; ")


def _done(report: Report) -> str:
    some = of(report)
    done, none = sum(site.action == "rewritten" for site in some), len(report.unfolded)
    others = f"; {none} more {'looks' if none == 1 else 'look'} like one and {'is' if none == 1 else 'are'} left alone"
    left = others if none else ""
    if not some:
        return f"nothing to fold: no space-to-batch sandwich{left.replace(' more', '')}"
    verb = "would fold" if report.options.get("dry_run") else "folded"
    whole = f"{done} of {len(some)} space-to-batch {'sandwich' if len(some) == 1 else 'sandwiches'}"
    return f"{verb if done else 'kept, folded'} {whole} into {'a dilated Conv' if done == 1 else 'dilated Convs'}{left}"


def unfolded(report: Report, *, brief: bool) -> list[str]:
    """Return what looks like a sandwich and is none, in brief those alike together."""
    groups = units.groups(report.unfolded, lambda one: one.reason) if brief else [[one] for one in report.unfolded]
    named = [(units.listed([f"{one.where}/{one.name}" for one in some], 3), some[0].reason) for some in groups]
    return [f"{names}: {reason}" for names, reason in named]
