"""One rewrite of one model: the edited copy, its names, and what several fragments share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from dilrewrite.model.walk import Container, ScopePath, ends, resolve
from dilrewrite.sites import Operand
from dilrewrite.splice.names import Names

Reader = Callable[[TensorProto], NDArray[np.generic]]


@dataclass
class Editor:
    """One call of `rewrite`. Containers of the edited model are looked up before the first change, by original path.

    `added` are the initializers made, `suspects` tensors that may have lost their last user, `shared` the constants
    that more than one site reads, `sizes` the suspects that hold sizes, whose nodes go with their last reader.
    """

    source: ModelProto
    edited: ModelProto
    read: Reader
    names: Names = field(init=False)
    added: list[str] = field(default_factory=list)
    suspects: list[tuple[ScopePath, str]] = field(default_factory=list)
    shared: dict[tuple[object, ...], str] = field(default_factory=dict)
    sizes: set[str] = field(default_factory=set)
    containers: dict[ScopePath, Container] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.source)

    def open(self, paths: Iterable[ScopePath]) -> None:
        """Look up the containers at `paths` and around them."""
        for path in paths:
            for depth in range(len(path.steps) + 1):
                outer = ScopePath(path.function, path.steps[:depth])
                if outer not in self.containers:
                    self.containers[outer] = resolve(self.edited, outer)

    def constants_as_nodes(self, path: ScopePath) -> bool:
        """Say whether constants of this scope must be Constant nodes: in functions, and before IR 4."""
        return path.function is not None or self.edited.ir_version < 4

    def tensor(self, operand: Operand) -> TensorProto:
        """Return the original tensor behind a constant operand."""
        container = resolve(self.source, operand.scope)
        tensors: Iterable[TensorProto] = ()
        if operand.kind == "constant" and operand.index is not None:
            tensors = (a.t for a in container.node[operand.index].attribute if a.name == "value")
        elif isinstance(container, GraphProto):
            tensors = (tensor for tensor in container.initializer if tensor.name == operand.name)
        return next(iter(tensors))

    def home(self, path: ScopePath, name: str) -> ScopePath:
        """Return the node list, of those around `path`, in which a tensor is made."""
        for depth in range(len(path.steps), 0, -1):
            outer = ScopePath(path.function, path.steps[:depth])
            container = self.containers[outer]
            tensors = container.initializer if isinstance(container, GraphProto) else ()
            made = (ends(container)[0], (tensor.name for tensor in tensors), *(node.output for node in container.node))
            if name in itertools.chain(*made):
                return outer
        return ScopePath(path.function)
