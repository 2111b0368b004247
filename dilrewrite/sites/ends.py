"""What a region ends at: the operators next to it that could not go along, or need not, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dilrewrite.forms import grid, lift
from dilrewrite.forms.chain import Chain
from dilrewrite.sites.scopes import Scope

UNKNOWN, ODD, CHEAPER = "not known to keep the layout", "does not keep the layout as it stands", "costs less outside"


def ends(
    scope: Scope,
    whole: Chain,
    reads: Sequence[object],
    places: Collection[int],
    enters: Sequence[str],
    leaves: Sequence[str],
) -> Iterator[str]:
    """Yield what stands on the other side of each tensor that enters or leaves, and why.

    `whole` is the chain of the node list, `reads` is None for each link that cannot be inside, `places` are those of
    the links that are.
    """
    rules = grid.ROWS if whole.block else lift.ROWS

    def node(place: int) -> str:
        why = CHEAPER if reads[place] is not None else ODD if whole.links[place].op in rules else UNKNOWN
        return f"{scope.nodes[place].op_type} {scope.label(scope.nodes[place])!r}: {why}"

    for name in enters:
        maker = scope.producers.get(name)
        yield node(maker) if maker is not None else f"{name!r}: enters the node list"
    for name in leaves:
        if name in scope.outputs:
            yield f"{name!r}: leaves the node list"
        if scope.captured[name]:
            yield f"{name!r}: read by a graph inside a node"
        yield from (node(place) for place in scope.consumers.get(name, ()) if place not in places)
