"""Regions of random networks, found, rewritten and run: equal bit for bit on whole numbers."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

from dilrewrite.forms.fragment import Fragment, Node
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.sites import Site
from dilrewrite.sites.chains import region_sites
from dilrewrite.sites.scopes import scopes
from dilrewrite.splice.rewrite import rewrite
from tests.random_chains import Flat, Net

BLOCKS = ((2, 2), (4, 4), (2, 4), (3, 2), (2, 1))


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def regions(model: ModelProto, strategy: str, block: tuple[int, ...]) -> list[tuple[Site, Fragment]]:
    """Return the regions of a model that the strategy takes, each with its fragment."""
    edits = []
    for scope in scopes(model, infer_shapes(model)):
        for site in region_sites(scope, block):
            fragment = region_forms()[strategy].fragment(site.meaning, site.opset)
            if not isinstance(fragment, Refusal):
                fragment.check()
                edits.append((site, fragment))
    return edits


def compared(net: Net, size: int, strategy: str, block: tuple[int, ...], *, unknown: bool) -> Counter[str]:
    """Rewrite a random network; count its regions, their nodes and masks, and whether the outputs differ."""
    model = net.model(size, unknown=unknown)
    edits = regions(model, strategy, block)
    if not edits:
        return Counter()
    rewritten = rewrite(model, edits, (), numpy_helper.to_array).proto
    onnx.checker.check_model(rewritten)
    feeds = net.feeds(model)
    pairs = zip(run(model, feeds), run(rewritten, feeds), strict=True)
    steps = [step for _, fragment in edits for step in fragment.steps]
    return Counter(
        networks=1,
        regions=len(edits),
        nodes=sum(len(site.nodes) for site, _ in edits),
        masks=sum(isinstance(step, Node) and step.op == "Where" for step in steps),
        wrong=any(not np.array_equal(before, after) for before, after in pairs),
    )


@pytest.mark.parametrize("start", range(0, 3000, 100))
def test_a_lifted_region_computes_the_same(start: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(start, start + 100):
        total += compared(Net(seed), 6 + seed % 25, "lift_region", (), unknown=seed % 3 == 0)
    assert total["wrong"] == 0
    assert total["networks"] > 40


@pytest.mark.parametrize("start", range(0, 3000, 100))
def test_a_region_of_phases_computes_the_same(start: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(start, start + 100):
        total += compared(Flat(seed), 6 + seed % 25, "phase_region", BLOCKS[seed % 5], unknown=False)
    assert total["wrong"] == 0
    assert total["networks"] > 30
    assert total["masks"] > 15


def test_without_masks_it_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dilrewrite.forms.regions.phase_region._clean", lambda _: True)
    total: Counter[str] = Counter()
    for seed in range(100):
        total += compared(Flat(seed), 6 + seed % 25, "phase_region", BLOCKS[seed % 5], unknown=False)
    assert total["wrong"] > 10
