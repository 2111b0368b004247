"""Finds what may be rewritten in a model, in subgraphs and functions too, and says why other dilated nodes stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from dilrewrite.errors import UsageError
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.elements import NAMED
from dilrewrite.model.light import UNKNOWN, Typed, graph_shapes, value_shape, with_inputs
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import DEFAULT_DOMAINS, ScopePath, reads
from dilrewrite.sites import Found, Normalisation, Site, Skipped, Unfolded
from dilrewrite.sites.chains import every_region
from dilrewrite.sites.finders import finders
from dilrewrite.sites.known import SAVED, saved_by_runtime, skip_reason
from dilrewrite.sites.operators import dilations_of, operator_of, skipped
from dilrewrite.sites.sandwiches import every_sandwich
from dilrewrite.sites.scopes import Scope, scopes


def find(proto: ModelProto, *, regions: bool = False, lift_all: bool = False, sandwiches: bool = False) -> Found:
    """Return what the finders see in `proto`, and with the reason why not every other node with a dilation.

    Sites are in the order of the node lists, subgraphs after the graph that holds them, functions last. `regions`: find
    these too; `lift_all`: also those of 1-D Convs without dilation; `sandwiches`: find space-to-batch sandwiches too.
    Raises `UsageError` naming the node for an invalid dilated Conv.
    """
    inferred = infer_shapes(proto)
    misled = _misled(proto.graph, inferred.graph)
    lists = list(scopes(proto, inferred))
    nodes = ((scope, index) for scope in lists for index in range(len(scope.nodes)))
    items = [item for scope, index in nodes for item in _at(scope, index, misled)]
    _check_sizes(inferred)
    folds = _folds(proto, lists) if sandwiches else []
    around, unread = _regions(lists, misled, lift_all=lift_all) if regions else ((), ())
    sites = [item for item in items if isinstance(item, Site)]
    return Found(
        sites=tuple(site for site in sites if not isinstance(site.meaning, PoolGeometry)),
        pools=tuple(site for site in sites if isinstance(site.meaning, PoolGeometry)),
        regions=around,
        normalisations=tuple(item for item in items if isinstance(item, Normalisation)),
        skipped=tuple(item for item in items if isinstance(item, Skipped)),
        remarks=(*_remarks(proto), *unread),
        sandwiches=tuple(item for item in folds if isinstance(item, Site) and not _misled_site(misled, item)),
        unfolded=tuple(item for item in folds if isinstance(item, Unfolded)),
    )


MOST_ROUNDS = 64
"""How often sizes are inferred anew from what sandwiches are known to make."""


def _folds(proto: ModelProto, lists: Sequence[Scope]) -> list[Site | Unfolded]:
    """Return the sandwiches of node lists, and what looks like one.

    Shape inference loses the sizes in sandwiches whose shapes are computed, and behind them. What one makes is known
    once it is found, so the next may be found then.
    """
    known: set[str] = set()
    twin = proto
    for _ in range(MOST_ROUNDS):
        found = [item for scope in lists for item in every_sandwich(scope)]
        new = {
            item.output: (NAMED[item.part.geometry.element].number, item.meaning.makes)
            for item in found
            if isinstance(item, Site) and isinstance(item.meaning, Sandwich) and not item.meaning.quantizes
            if item.scope == ScopePath() and item.output not in known
            if lists[0].shape_of(item.output)[1] != item.meaning.makes
        }
        if not new:
            break
        known |= new.keys()
        twin = with_inputs(twin, new)
        lists = list(scopes(proto, infer_shapes(twin)))
    return found


def _misled_site(misled: Mapping[int, str], site: Site) -> bool:
    return _misleading(misled, site.scope, site.nodes) is not None


def _at(scope: Scope, index: int, misled: Mapping[int, str]) -> Iterator[Site | Normalisation | Skipped]:
    node = scope.nodes[index]
    for finder in finders().values():
        for item in finder.at(scope, index):
            source = _misleading(misled, scope.path, item.nodes) if isinstance(item, Site) else None
            yield item if source is None else skipped(scope, node, _MISLEADING.format(source))
            if source is None and isinstance(item, Site) and isinstance(item.meaning, PoolGeometry):
                yield skipped(scope, node, POOL.format(node.op_type))
    if operator_of(node) is None and max(dilations_of(node)[0], default=1) > 1 and _acts(node):
        yield skipped(scope, node, skip_reason(node))


POOL = "a dilated {} stays as it is; --eliminate rewrites it, and so does --strategy phase_pools"
"""Of a pooling that has a form."""


def with_pools(found: Found) -> Found:
    """Return what was found with the poolings among the sites."""
    told = {POOL.format(op) for op in ("MaxPool", "AveragePool", "LpPool")}
    rest = tuple(skipped for skipped in found.skipped if skipped.reason not in told)
    return replace(found, sites=(*found.sites, *found.pools), skipped=rest)


def _regions(
    lists: Sequence[Scope], misled: Mapping[int, str], *, lift_all: bool
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Return the regions of node lists, and why some were not looked for: a node that breaks its operator's rules."""
    sites, unread = [], []
    for scope in lists:
        try:
            found = list(every_region(scope, lift_all=lift_all))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            unread.append(f"{scope.where}: no regions were looked for: {type(error).__name__}: {error}")
            continue
        sites += [site for site in found if site.outputs and _misleading(misled, scope.path, site.nodes) is None]
    return tuple(sites), tuple(unread)


_MISLEADING = (
    "it follows from the output {!r}, whose declared shape is not known to be right; runtimes would believe it: "
    "correct or remove that shape"
)


def _check_sizes(inferred: ModelProto) -> None:
    """Raise `UsageError` when inference finds a negative size: a model that nothing can run.

    onnx's own inference dies of such a size where a Slice reads it, and rewritten models have Slices.
    """
    for value in inferred.graph.value_info:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if min(sizes, default=0) < 0:
            hint = "the node that makes it does not fit its input: export the model again or correct the node"
            raise UsageError(f"main: the tensor {value.name!r} would have the sizes {sizes}", hint=hint)


def _remarks(proto: ModelProto) -> tuple[str, ...]:
    """Return what a reader should know of the file as a whole."""
    newest = too_new(next((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), 0))
    saved = saved_by_runtime(proto)
    remarks = (newest, f"{SAVED} ({saved}): start from the exported model" if saved else None)
    return tuple(remark for remark in remarks if remark)


def too_new(opset: int) -> str | None:
    """Return why nothing is known of an opset, None for one that the installed onnx knows."""
    newest = onnx.defs.onnx_opset_version()
    if opset <= newest:
        return None
    todo = "update onnx and onnxruntime, or export the model with an older opset"
    return f"opset {opset} is newer than {newest}, the newest that onnx {onnx.__version__} knows: {todo}"


def _misled(graph: GraphProto, twin: GraphProto) -> dict[int, str]:
    """Return the main graph's nodes that follow from an output of it with a size that is not believed: {place: output}.

    A fragment asks for sizes at run time. ONNX Runtime answers from the declared shape of an output where its own
    inference does not contradict, and the declaration is the model's interface: it is not for us to change.
    """
    shapes = graph_shapes(twin)
    doubtful = [value for value in graph.output if not _holds(value_shape(value), shapes.get(value.name, UNKNOWN))]
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node) if doubtful else ():
        for name in reads(node):
            readers.setdefault(name, []).append(index)
    misled: dict[int, str] = {}
    for value in doubtful:
        queue = [value.name]
        while queue:
            for index in readers.get(queue.pop(), ()):
                if index not in misled:
                    misled[index] = value.name
                    queue += filter(None, graph.node[index].output)
    return misled


def _holds(declared: Typed, known: Typed) -> bool:
    """Say whether every size that is declared is known to be so."""
    sizes, shape = declared[1] or (), known[1]
    if shape is None or len(shape) != len(sizes):
        shape = (None,) * len(sizes)
    return all(size in (None, inferred) for size, inferred in zip(sizes, shape, strict=True))


def _misleading(misled: Mapping[int, str], path: ScopePath, nodes: Sequence[int]) -> str | None:
    """Return the output that nodes of a scope follow from, if any; a function's may be called from anywhere."""
    if path.function is not None:
        return next(iter(misled.values()), None)
    outer = [path.steps[0][0]] if path.steps else nodes
    return next((misled[index] for index in outer if index in misled), None)


def _acts(node: NodeProto) -> bool:
    dilations, _ = dilations_of(node)
    kernel = next((a.ints for a in node.attribute if a.name == "kernel_shape"), ())
    return len(kernel) != len(dilations) or any(d > 1 and k > 1 for d, k in zip(dilations, kernel, strict=True))
