"""Clears up behind the fragments: what only the replaced nodes used goes."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from onnx import GraphProto

from dilrewrite.model import walk
from dilrewrite.model.walk import Container, ScopePath
from dilrewrite.sites.formulas import COMPUTING
from dilrewrite.splice.editor import Editor

MADE_FROM_CONSTANTS = ("Constant", "DequantizeLinear")
"""Nodes that go with their last reader."""


def clean(editor: Editor) -> tuple[str, ...]:
    """Remove what only the replaced nodes used, and the descriptions of tensors that are gone; return their names."""
    removed: list[str] = []
    for path, gone in _unused(editor).items():
        container = editor.containers[path]
        _drop(container.node, gone, lambda node: node.output[0])
        if isinstance(container, GraphProto):
            removed += (tensor.name for tensor in container.initializer if tensor.name in gone)
            _drop(container.initializer, gone)
            _drop(container.quantization_annotation, gone, lambda annotation: annotation.tensor_name)
        _drop(container.value_info, gone)
    return tuple(removed)


def _unused(editor: Editor) -> Mapping[ScopePath, set[str]]:
    """Return the names that nothing uses any more, by node list."""
    counted: dict[int | None, Counter[str]] = {}
    for function in {path.function for path in editor.containers}:
        counted[function] = _uses(walk.resolve(editor.edited, ScopePath(function)))
        if function is None:
            counted[None].update(walk.names_in_training(editor.edited))
    makers: dict[ScopePath, dict[str, int]] = {}
    names: dict[ScopePath, set[str]] = defaultdict(set)
    queue = deque(dict.fromkeys(editor.suspects))
    while queue:
        path, name = queue.popleft()
        uses, container = counted[path.function], editor.containers[path]
        if uses[name] or name in names[path]:
            continue
        if path not in makers:
            makers[path] = {name: i for i, node in enumerate(container.node) for name in node.output}
        maker = makers[path].get(name)
        if maker is not None:
            node = container.node[maker]
            sizes = name in editor.sizes and node.op_type in COMPUTING
            if node.op_type not in MADE_FROM_CONSTANTS and not sizes:
                continue
            editor.sizes |= {*node.input} if sizes else set()
            for other in filter(None, node.input):
                uses[other] -= 1
                queue.append((editor.home(path, other), other))
        elif name in walk.ends(container)[0]:
            continue
        names[path].add(name)
    return names


def _uses(root: Container) -> Counter[str]:
    """Count how often each name is used in a graph or function and all graphs inside it."""
    uses = walk.names_read(root)
    for container in (root, *walk.graphs_in(root.node)):
        for annotation in container.quantization_annotation if isinstance(container, GraphProto) else ():
            uses.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return uses


def _drop(repeated: Any, gone: set[str], name: Callable[[Any], str] = lambda each: each.name) -> None:
    """Remove what makes or describes a name that is gone."""
    if any(name(each) in gone for each in repeated):
        walk.rearrange(repeated, [None if name(each) in gone else place for place, each in enumerate(repeated)])
