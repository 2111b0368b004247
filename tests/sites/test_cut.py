"""The minimum cut, against every cut there is on small graphs and against networkx on larger ones."""

import itertools
import random
from collections.abc import Callable, Collection, Sequence

import pytest

from dilrewrite.sites.cut import OUTSIDE, Flow, inside

Make = Callable[[random.Random, int], tuple[list[Flow], set[int], set[int]]]


def cost(flows: Sequence[Flow], chosen: Collection[int]) -> int:
    """Return what a cut moves."""
    return sum(
        flow.weight for flow in flows if any((reader in chosen) != (flow.maker in chosen) for reader in flow.readers)
    )


def graph(rng: random.Random, nodes: int) -> tuple[list[Flow], set[int], set[int]]:
    """Return a random node list in order, with the nodes that are wanted and allowed inside."""
    flows = []
    for maker in range(OUTSIDE, nodes):
        later = range(maker + 1, nodes)
        readers = rng.sample(later, min(len(later), rng.choice((0, 1, 1, 1, 2, 3))))
        if rng.random() < 0.15:
            readers.append(OUTSIDE)
        flows.append(Flow(maker, tuple(readers), rng.randint(1, 9)))
    kinds = [rng.choice(("wanted", "allowed", "allowed", "blocked")) for _ in range(nodes)]
    wanted = {place for place, kind in enumerate(kinds) if kind == "wanted"}
    return flows, wanted, {place for place, kind in enumerate(kinds) if kind != "blocked"}


def tangled(rng: random.Random, nodes: int) -> tuple[list[Flow], set[int], set[int]]:
    """Return the same with many tensors of one node and from outside, read twice by a node, weights alike or far apart.

    Wanted nodes need not be allowed.
    """
    flows, wanted, allowed = graph(rng, nodes)
    weights = rng.choice([(1,), (1, 2), (3, 2**40)])
    for _ in range(rng.randint(0, nodes)):
        maker = rng.choice((OUTSIDE, rng.randrange(nodes)))
        readers = rng.choices(range(maker, nodes), k=rng.randint(1, 4))
        flows.append(Flow(maker, tuple(reader for reader in readers if reader != maker), 1))
    rng.shuffle(flows)
    flows = [Flow(flow.maker, flow.readers, rng.choice(weights)) for flow in flows]
    return flows, wanted | {place for place in range(nodes) if rng.random() < 0.1}, allowed


@pytest.mark.parametrize("make", [graph, tangled])
@pytest.mark.parametrize("seed", range(200))
def test_no_other_cut_moves_less(seed: int, make: Make) -> None:
    rng = random.Random(seed)
    flows, wanted, allowed = make(rng, rng.randint(1, 9))
    chosen = inside(flows, wanted, allowed)
    assert wanted <= chosen <= allowed | wanted
    free = sorted(allowed - wanted)
    cuts = [wanted.union(more) for count in range(len(free) + 1) for more in itertools.combinations(free, count)]
    least = min(cost(flows, cut) for cut in cuts)
    assert cost(flows, chosen) == least
    assert len(chosen) == min(len(cut) for cut in cuts if cost(flows, cut) == least)


def test_a_bottleneck_is_entered_once() -> None:
    """A wide residual around narrow Convs: staying inside for the whole stage moves it twice, not at every block."""
    flows = [Flow(OUTSIDE, (0, 3), 100)]  # the wide tensor
    for block in range(3):
        first = 4 * block
        flows += [Flow(first, (first + 1,), 25), Flow(first + 1, (first + 2,), 25), Flow(first + 2, (first + 3,), 100)]
        flows.append(Flow(first + 3, (first + 4, first + 7) if block < 2 else (OUTSIDE,), 100))
    assert inside(flows, {1, 5, 9}, range(12)) == {1, 5, 9}  # 6 x 25 by themselves, 200 in one
    thick = [Flow(flow.maker, flow.readers, 40 if flow.weight == 25 else 100) for flow in flows]
    assert inside(thick, {1, 5, 9}, range(12)) == set(range(12))


def test_without_anything_wanted_nothing_is_inside() -> None:
    assert inside([Flow(OUTSIDE, (0, 1), 1), Flow(0, (1,), 1), Flow(1, (OUTSIDE,), 1)], (), (0, 1)) == set()
    assert inside([], {3}, ()) == {3}


@pytest.mark.parametrize(("make", "seed"), [(graph, 1), (tangled, 2), (tangled, 3), (tangled, 4)])
def test_a_large_graph_is_cut_as_networkx_cuts_it(make: Make, seed: int) -> None:
    networkx = pytest.importorskip("networkx")
    flows, wanted, allowed = make(random.Random(seed), 2000)
    network = networkx.DiGraph()
    for place in wanted:
        network.add_edge("s", place)
    for place in [OUTSIDE, *set(range(2000)) - allowed - wanted]:
        network.add_edge(place, "t")
    for number, flow in enumerate(flows):
        network.add_edge(flow.maker, (number, "leaves"), capacity=flow.weight)
        network.add_edge((number, "enters"), flow.maker, capacity=flow.weight)
        for reader in flow.readers:
            network.add_edge((number, "leaves"), reader)
            network.add_edge(reader, (number, "enters"))
    value, _ = networkx.minimum_cut(network, "s", "t")
    assert cost(flows, inside(flows, wanted, allowed)) == value
