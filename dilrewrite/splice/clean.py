"""Clears up behind the fragments: what only the replaced nodes used goes."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import GraphProto

from dilrewrite.model.walk import Container, ScopePath, graphs_in, names_in_training, names_read, rearrange, resolve
from dilrewrite.splice.editor import Editor

MADE_FROM_CONSTANTS = ("Constant", "DequantizeLinear")
"""Nodes that go with their last reader."""


def clean(editor: Editor) -> tuple[str, ...]:
    """Remove what only the replaced nodes used, and the descriptions of tensors that are gone; return their names."""
    nodes, names = _unused(editor)
    removed: list[str] = []
    for path, gone in names.items():
        container = editor.containers[path]
        _retain(container.node, [i not in nodes[path] for i in range(len(container.node))])
        if isinstance(container, GraphProto):
            removed.extend(tensor.name for tensor in container.initializer if tensor.name in gone)
            _retain(container.initializer, [tensor.name not in gone for tensor in container.initializer])
            _retain(
                container.quantization_annotation,
                [annotation.tensor_name not in gone for annotation in container.quantization_annotation],
            )
        _retain(container.value_info, [value.name not in gone for value in container.value_info])
    return tuple(removed)


def _unused(editor: Editor) -> tuple[Mapping[ScopePath, set[int]], Mapping[ScopePath, set[str]]]:
    """Return the nodes and the names that nothing uses any more, by node list."""
    counted: dict[int | None, Counter[str]] = {}
    for path in editor.containers:
        if path.function not in counted:
            counted[path.function] = _uses(resolve(editor.edited, ScopePath(path.function)))
            if path.function is None:
                counted[None].update(names_in_training(editor.edited))
    makers: dict[ScopePath, dict[str, int]] = {}
    nodes: dict[ScopePath, set[int]] = defaultdict(set)
    names: dict[ScopePath, set[str]] = defaultdict(set)
    queue = deque(dict.fromkeys(editor.suspects))
    while queue:
        path, name = queue.popleft()
        uses = counted[path.function]
        if uses[name] or name in names[path]:
            continue
        container = editor.containers[path]
        if path not in makers:
            makers[path] = {name: i for i, node in enumerate(container.node) for name in node.output}
        maker = makers[path].get(name)
        if maker is not None:
            node = container.node[maker]
            if node.op_type not in MADE_FROM_CONSTANTS:
                continue
            nodes[path].add(maker)
            for other in filter(None, node.input):
                uses[other] -= 1
                queue.append((editor.home(path, other), other))
        elif name in [value.name if isinstance(container, GraphProto) else value for value in container.input]:
            continue
        names[path].add(name)
    return nodes, names


def _uses(root: Container) -> Counter[str]:
    """Count how often each name is used in a graph or function and all graphs inside it."""
    uses = names_read(root)
    for container in (root, *graphs_in(root.node)):
        for annotation in container.quantization_annotation if isinstance(container, GraphProto) else ():
            uses.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return uses


def _retain(repeated: Any, keep: Sequence[bool]) -> None:
    if not all(keep):
        rearrange(repeated, [index if kept else None for index, kept in enumerate(keep)])
