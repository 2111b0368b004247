"""Which nodes stand inside a region so that the least data enters and leaves: a minimum cut.

A node list is cut in two, inside and outside. A tensor costs its weight once as soon as one of its readers stands on
another side than its maker. The cut is exact: max-flow min-cut (Ford and Fulkerson 1956), the flow by Dinic (1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

OUTSIDE = -1
"""The maker of a tensor that enters the node list, and the reader of one that leaves it."""

SOURCE, SINK, ENDLESS = 0, 1, 2**62


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor between nodes: who makes it, who reads it (places, or `OUTSIDE`), and what it costs to move (> 0)."""

    maker: int
    readers: tuple[int, ...]
    weight: int


def inside(flows: Iterable[Flow], wanted: Collection[int], allowed: Collection[int]) -> frozenset[int]:
    """Return the places of the nodes inside: all `wanted`, of others only `allowed`, for the least sum of weights.

    Of several such cuts it is the one with the fewest nodes, so a node that no flow ties to a wanted one is outside.
    """
    network = _Network()
    places = dict.fromkeys(wanted, SOURCE)
    for place in set(allowed).difference(places):
        places[place] = network.vertex()
    for flow in flows:
        maker = places.get(flow.maker, SINK)
        readers = {places.get(place, SINK) for place in flow.readers} - {maker}
        if len(readers) == 1:
            network.join(maker, min(readers), flow.weight, flow.weight)
        if len(readers) < 2:
            continue
        leaves, enters = network.vertex(), network.vertex()  # a reader stands outside; a reader stands inside
        network.join(maker, leaves, flow.weight)
        network.join(enters, maker, flow.weight)
        for reader in readers:
            network.join(leaves, reader, ENDLESS)
            network.join(reader, enters, ENDLESS)
    network.saturate()
    return frozenset(place for place, vertex in places.items() if network.level[vertex] >= 0)


@dataclass
class _Network:
    """Vertices with their edges; edge e and e ^ 1 are each other's reverse, `room` is what still fits through."""

    edges: list[list[int]] = field(default_factory=lambda: [[], []])
    head: list[int] = field(default_factory=list)
    room: list[int] = field(default_factory=list)
    level: list[int] = field(default_factory=list)

    def vertex(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def join(self, tail: int, head: int, room: int, back: int = 0) -> None:
        if not back and (tail == SINK or head == SOURCE):
            return  # no flow needs it
        for start, end, fits in ((tail, head, room), (head, tail, back)):
            self.edges[start].append(len(self.head))
            self.head.append(end)
            self.room.append(fits)

    def saturate(self) -> None:
        """Send all flow from source to sink; afterwards `level` is -1 beyond the cut."""
        while self._levels():
            self._block()

    def _levels(self) -> bool:
        """Number the vertices by their distance from the source; say whether the sink is reached."""
        self.level = [-1] * len(self.edges)
        self.level[SOURCE] = 0
        queue = deque([SOURCE])
        while queue:
            tail = queue.popleft()
            for edge in self.edges[tail]:
                head = self.head[edge]
                if self.room[edge] and self.level[head] < 0:
                    self.level[head] = self.level[tail] + 1
                    queue.append(head)
        return self.level[SINK] >= 0

    def _block(self) -> None:
        """Fill every path that goes one level further with each edge."""
        todo = [iter(edges) for edges in self.edges]
        path: list[int] = []
        while True:
            tail = self.head[path[-1]] if path else SOURCE
            if tail == SINK:
                fits = min(self.room[edge] for edge in path)
                for edge in path:
                    self.room[edge] -= fits
                    self.room[edge ^ 1] += fits
                full = next(place for place, edge in enumerate(path) if not self.room[edge])
                del path[full:]
                continue
            for edge in todo[tail]:
                if self.room[edge] and self.level[self.head[edge]] == self.level[tail] + 1:
                    path.append(edge)
                    break
            else:
                if not path:
                    return
                path.pop()
