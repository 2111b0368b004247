"""How a target takes a model: rows of a screen, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.units import count, joined
from dilrewrite.targets.report import TargetNode, TargetReport

NAMES = 2  # so many nodes of a group are named
NAME_LENGTH = 32  # a longer name loses its middle
LOWERED = {
    "zero_fill": "zeros into the kernel",
    "taps": "a Conv for each tap",
    "gather": "a Gather for each axis",
}
TONES = {"out of limits": "bad", "unknown": "warn", "host": "warn"}


def summary(target: TargetReport) -> str:
    """Return the answer: `on rknn-2.3.2 5 native, 2 out of limits`."""
    convs = ", ".join(f"{number} {fit}" for fit, number in target.convs.items())
    if convs:
        return f"on {target.name} {convs}"
    others = sum(target.fits.values()) - target.fits.get("native", 0)
    if not others:
        return f"on {target.name} every node is native"
    return f"on {target.name} {count(others, 'node')} {'is' if others == 1 else 'are'} not native"


def rows(target: TargetReport, *, found: bool = True) -> Iterator[doc.Rows]:
    """Yield the rows of a screen: which target, its dilated Convs, and what else falls off.

    Where the native ones were not just `found`, the screen names them elsewhere.
    """
    yield doc.Rows("target", (about(target),))
    told = {
        fit: [_told(alike) for alike in units.groups([one for one in target.nodes if one.fit == fit], _kind)]
        for fit in ("out of limits", "unknown", "host", "native")
    }
    native = f"{count(target.fits.get('native', 0), 'node')} of {sum(target.fits.values())} in all"
    told["native"] = [*(told["native"] if found else ()), native]
    if not found:
        others = tuple(f"{fit}: {one}" for fit in TONES for one in told.pop(fit))
        yield doc.Rows("not native", others, "warn")
    for fit, items in told.items():
        yield doc.Rows(fit, tuple(items), TONES.get(fit, ""))


def about(target: TargetReport) -> str:
    """Return which target it is, and how sure its rules are."""
    own = units.pairs(target.parameters.items())
    return joined(f"{target.name}: {target.title}", target.toolchain, own, f"{target.status}, read {target.read_on}")


def _kind(node: TargetNode) -> tuple[object, ...]:
    first = node.reasons[0] if node.reasons else ""
    return node.op, node.dilation > 1, units.numberless(first), node.lowered


def _told(some: Sequence[TargetNode]) -> str:
    """Return nodes that are alike: `2 dilated Convs (a, b): pads 16 to 24 is not at most 15`."""
    first = some[0]
    names = [units.shorten(units.clean(one.name), NAME_LENGTH) for one in some]
    what = count(len(some), "dilated Conv") if first.dilation > 1 else f"{len(some)} {first.op}"
    reasons = [text for text, _ in units.merged([one.reasons[0] for one in some if one.reasons])]
    text = joined(*reasons, lowering(some), by="; ")
    return f"{what} ({units.listed(names, NAMES)}){': ' if text else ''}{units.clean(text)}"


def lowering(some: Sequence[TargetNode]) -> str:
    """Return what the target's compiler makes of dilated Convs."""
    costs = sorted({f"{one.cost:.3g}" for one in some if one.cost is not None}, key=float)
    if not some[0].lowered:
        return ""
    much = f", {' to '.join(dict.fromkeys((costs[0], costs[-1])))} times the work" if costs else ""
    return f"its compiler writes {LOWERED[some[0].lowered]}{much}"


def blocks(target: TargetReport) -> Iterator[doc.Block]:
    """Yield what the full report says: every dilated Conv, and what else is not native."""
    yield doc.Paragraph(about(target))
    yield doc.table(
        "Nodes on the target",
        target.nodes,
        ("node", lambda node: (doc.code(node.name), f" ({node.op})")),
        ("#dilation", lambda node: units.left(node.dilation)),
        ("on the target", lambda node: doc.Span({"out of limits": "bad"}.get(node.fit, "strong"), node.fit)),
        ("~because", lambda node: joined(*node.reasons, lowering([node]), by="; ")),
        ("source", lambda node: joined(*dict.fromkeys(filter(None, node.sources)))),
    )
    if target.remarks:
        yield doc.Bullets(target.remarks)
