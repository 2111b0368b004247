"""How nodes fit a target, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dilrewrite.targets import Fit, NodeFit, Profile, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """How nodes fit a target: as the worst of them. `host`: how many its host runs; `because`: the rule, in words.

    `work`: the largest number of times the work of the same Conv without dilation that its compiler makes of a Conv.
    """

    fit: Fit
    host: int = 0
    because: str = ""
    work: float = 1.0

    @property
    def order(self) -> tuple[int, int]:
        """Return the sorting key, the best first."""
        return self.fit.rank, self.host


def fitted(nodes: Sequence[NodeFit], profile: Profile) -> Fitted:
    """Return how nodes fit as a whole."""
    fit = worst(node.fit for node in nodes)
    first = next((node for node in nodes if node.fit is fit), None)
    finding = first.because if first is not None and fit is not Fit.NATIVE else None
    source = profile.sources[finding.rule.source].title if finding is not None and finding.rule is not None else ""
    said = f"{first.op}: {finding.text}" if first is not None and finding is not None else ""
    return Fitted(
        fit=fit,
        host=sum(node.fit is Fit.HOST for node in nodes),
        because=f"{said} ({source})" if source else said,
        work=max((node.cost for node in nodes if node.cost is not None), default=1.0),
    )
