"""What a report tells of a target and of how a model stands to it, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dilrewrite.targets.judge import Judgement, NodeFit
from dilrewrite.targets.profile import Fit, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetNode:
    """A dilated Conv, or another node that the target does not run natively."""

    where: str
    """The graph it is in, as of a site."""
    name: str
    """Its name, or its output's when it has none."""
    output: str
    """Its first output."""
    op: str
    """Operator, with its domain unless that is the default one."""
    dilation: int
    """The largest that acts; 1 for none."""
    fit: str
    """`native`, `host` (the target's host runs it), `unknown` or `out of limits`."""
    reasons: tuple[str, ...] = ()
    """What rules say of it, those that decide first; empty where it is native."""
    sources: tuple[str, ...] = ()
    """The source of each reason, by its name in the profile; empty text where the profile says nothing."""
    lowered: str = ""
    """What the target's compiler makes of the dilation: `zero_fill`, `taps` or `gather`; empty for nothing."""
    cost: float | None = None
    """How many times the work of the same Conv without dilation that is; `None` where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """How a target takes a model."""

    name: str
    """The profile."""
    title: str
    """What it is."""
    toolchain: str
    """The compiler that its rules are of, with versions."""
    status: str
    """`documented`, `run` (held to the vendor's compiler) or `reverse-engineered`."""
    read_on: str
    """The day on which the oldest of its sources was read."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """The numbers that its rules were used with."""
    fits: Mapping[str, int] = field(default_factory=dict)
    """Number of nodes by `fit`."""
    convs: Mapping[str, int] = field(default_factory=dict)
    """Number of dilated Convs among them by `fit`."""
    folded: int = 0
    """Nodes of constants and known sizes, which no target runs."""
    nodes: tuple[TargetNode, ...] = ()
    """The dilated Convs, and what else is not native, in the model's order."""
    remarks: tuple[str, ...] = ()
    """What to know besides."""


def report(profile: Profile, judgement: Judgement) -> TargetReport:
    """Return what a report tells of a judgement."""
    told = [one for one in judgement.nodes if one.dilation > 1 or one.fit is not Fit.NATIVE]
    return TargetReport(
        name=profile.name,
        title=profile.title,
        toolchain=str(profile.toolchain),
        status=profile.status,
        read_on=profile.read_on(),
        parameters=profile.parameters,
        fits=_counted(one.fit for one in judgement.nodes),
        convs=_counted(one.fit for one in judgement.nodes if one.is_conv and one.dilation > 1),
        folded=judgement.folded,
        nodes=tuple(map(_node, told)),
        remarks=judgement.remarks,
    )


def _counted(fits: object) -> dict[str, int]:
    counts = Counter(fits)  # type: ignore[call-overload]
    return {str(fit): counts[fit] for fit in Fit if counts[fit]}


def _node(node: NodeFit) -> TargetNode:
    findings = sorted(node.findings, key=lambda one: -one.fit.rank)
    return TargetNode(
        where=node.where,
        name=node.name,
        output=node.output,
        op=node.op,
        dilation=node.dilation if node.is_conv else 1,
        fit=str(node.fit),
        reasons=tuple(one.text for one in findings),
        sources=tuple(one.rule.source if one.rule is not None else "" for one in findings),
        lowered=node.lowered,
        cost=node.cost,
    )
