"""Regions of random networks in phases, and the cases where a rule of docs/maths.md decides; bit for bit the same."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from dilrewrite.forms.fragment import Fragment, Node
from dilrewrite.forms.regions.phase_region import PhaseRegion
from dilrewrite.forms.strategies._phases import LAYOUTS
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests.random_chains import Flat
from tests.sites.test_chains import run

SIZES = {1: 30, 2: 30, 3: 16}


def planned(model: ModelProto, layout: str = "depth") -> dict[tuple[object, ...], list[tuple[Site, Fragment]]]:
    """Return the regions of phases of a model with their fragments, by block and by the blocks inside."""
    plans: dict[tuple[object, ...], list[tuple[Site, Fragment]]] = {}
    for site in find(model, regions=True).regions:
        chain = site.meaning
        if not chain.block:
            continue
        fragment = PhaseRegion(layout=layout).fragment(chain, site.opset)
        if isinstance(fragment, Fragment):
            fragment.check()
            plans.setdefault((chain.block, *(block for block, _ in chain.nests)), []).append((site, fragment))
    return plans


def compared(net: Flat, size: int, *, unknown: bool, layout: str = "depth") -> Counter[str]:
    """Rewrite a random network in every way that is found; count its chains, and whether outputs differ."""
    model = net.model(size, unknown=unknown)
    feeds = net.feeds(model)
    wanted = run(model, feeds)
    total: Counter[str] = Counter()
    for way, edits in planned(model, layout).items():
        while edits:  # nested regions of one way may be over the same nodes
            taken: list[tuple[Site, Fragment]] = []
            for site, fragment in edits:
                if not any(set(site.nodes) & set(other.nodes) for other, _ in taken):
                    taken.append((site, fragment))
            edits = [edit for edit in edits if edit not in taken]
            rewritten = rewrite(model, taken, (), numpy_helper.to_array).proto
            onnx.checker.check_model(rewritten)
            got = run(rewritten, feeds)
            steps = [{step.op for step in fragment.steps if isinstance(step, Node)} for _, fragment in taken]
            total["chains"] += len(taken)
            total["masked"] += sum("Where" in ops for ops in steps)
            total["repeated"] += sum("Tile" in ops for ops in steps)
            total["nested"] += len(taken) * (len(way) > 1)
            total["unknown"] += len(taken) * unknown
            total["wrong"] += any(not np.array_equal(*pair) for pair in zip(wanted, got, strict=True))
    return total


def grown(seed: int) -> Counter[str]:
    rank = (1, 2, 2, 3)[seed % 4]
    return compared(Flat(seed, rank), 8 + seed % SIZES[rank], unknown=seed % 3 == 0, layout=LAYOUTS[seed // 3 % 3])


@pytest.mark.grid(8)
@pytest.mark.parametrize("start", range(0, 3200, 100))
def test_a_region_of_phases_computes_the_same(start: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(start, start + 100):
        one = grown(seed)
        assert not one["wrong"], f"seed {seed}"
        total += one
    assert total["chains"] > 80
    assert total["masked"] > 0.3 * total["chains"]
    assert total["nested"] > 5
    assert total["unknown"] > 10
    assert total["repeated"] > 0


@pytest.mark.parametrize("seed", [874, 1210])
def test_a_slice_that_only_moves_the_data_is_none_of_the_layer_inside(seed: int) -> None:
    total = grown(seed)
    assert total["nested"] > 0
    assert total["wrong"] == 0


def test_without_zeros_around_the_data_it_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dilrewrite.forms.regions._layers.Layers.full", lambda *_: True)
    total: Counter[str] = Counter()
    for seed in range(100):
        total += grown(seed)
    assert total["masked"] == 0
    assert total["wrong"] > 20
