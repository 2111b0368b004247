"""Compares a model's engine with that of a version of it, layer by layer."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto

from dilrewrite.choice.original import Original
from dilrewrite.model.walk import all_nodes
from dilrewrite.runtimes import NodeRun, profiled
from dilrewrite.sites.known import CONVOLVES
from dilrewrite.tensorrt.layers import entry_of, parsed_name
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.measurement import LayerComparison, LayerTime

LAYER_RUNS = 20
"""How many runs the times of layers are the medians of."""


def compare_layers(meter: Meter, original: Original, proto: ModelProto) -> LayerComparison:
    """Profile the original and a version of it, in a pass of its own: profiling slows an engine down.

    Raises what `profiled` does.
    """
    profiles = [
        profiled(meter.backend, runnable, meter.options, original.feeds, LAYER_RUNS)
        for runnable in (original.runnable(), original.version(proto)[0])
    ]
    known = {parsed_name(node) for node in all_nodes(original.baseline)}
    both = (*all_nodes(original.baseline), *all_nodes(proto))
    convolutions = {parsed_name(node) for node in both if node.op_type in CONVOLVES}
    first, second = (tuple(_layer_time(run, known, convolutions) for run in profile.nodes) for profile in profiles)
    return LayerComparison(runs=LAYER_RUNS, first=first, second=second)


def _layer_time(run: NodeRun, known: Collection[str], convolutions: Collection[str]) -> LayerTime:
    """Return a layer's time and role. What stands for nodes of which the original has none is layout of the rewrite."""
    nodes = tuple(run.name.split(" + "))
    named = [node for node in nodes if node != run.provider]
    if any(entry_of(node, convolutions) for node in named):
        role = "convolution"
    elif named and not any(entry_of(node, known) for node in named):
        role = "layout"
    else:
        role = "other"
    return LayerTime(name=run.provider or run.name, kind=run.op, nodes=tuple(named), seconds=run.seconds, role=role)
