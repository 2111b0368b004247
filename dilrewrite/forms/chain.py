"""A chain of operators as data: what a site of many nodes means. No ONNX library here."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.forms.geometry import ConvGeometry

T = TypeVar("T")

Size = tuple[str, int]
"""An extent: that of a name, which stands for an unknown size, plus so many; the name is empty for a known extent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An operator of the default domain: its type, the names it reads (empty: left out) and makes, its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Operators in their order, the tensors that enter and leave, and what is known of all of them.

    `constants` stay the same in every run; of those that hold a few integers (axes, pads) the `integers` are here, in
    the order of memory. `shapes` are there where the number of axes is known. `convs`: what the Convs among the links
    compute, by the link's place; they are the parts of the site, in this order.
    `block`: of each spatial axis, for phases; none for a chain to lift. `elements`: the element types that are known.
    `extents`: of tensors with unknown extents, which of those are equal but for a number. `batches`: where inputs have
    unknown batches that may differ, from which of them each tensor's comes. `nests`: links that are split into phases
    again inside of these, each time fewer and by a block of their own. `gone`: links that are done by the `convs`
    before them (see `forms.chomp`); they are written as Identity.
    """

    links: tuple[Link, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]]
    constants: frozenset[str]
    integers: Mapping[str, tuple[int, ...]]
    opset: int
    convs: Mapping[int, ConvGeometry] = field(default_factory=dict)
    block: tuple[int, ...] = ()
    elements: Mapping[str, str] = field(default_factory=dict)
    extents: Mapping[str, tuple[Size, ...]] = field(default_factory=dict)
    batches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nests: tuple[tuple[tuple[int, ...], frozenset[int]], ...] = ()
    gone: frozenset[int] = frozenset()

    def renamed(self) -> Chain:
        """Return the chain with names by place, and of what it knows only what it reads and makes.

        Equal chains are equal then, wherever they stand.
        """
        names = {"": ""}
        for name in (*self.inputs, *(name for link in self.links for name in (*link.inputs, *link.outputs))):
            names.setdefault(name, f"t{len(names)}")

        def mine(values: Mapping[str, T]) -> dict[str, T]:
            return {new: values[name] for name, new in names.items() if name in values}

        roots = {"": ""}
        extents, batches = mine(self.extents), mine(self.batches)
        samples = {root: f"batch{place}" for place, root in enumerate(dict.fromkeys(sum(batches.values(), ())))}
        for root, _ in (size for sizes in extents.values() for size in sizes):
            roots.setdefault(root, f"size{len(roots)}")
        links = tuple(
            replace(
                link,
                inputs=tuple(names[name] for name in link.inputs),
                outputs=tuple(names[name] for name in link.outputs),
            )
            for link in self.links
        )
        return replace(
            self,
            links=links,
            inputs=tuple(names[name] for name in self.inputs),
            outputs=tuple(names[name] for name in self.outputs),
            shapes=mine(self.shapes),
            constants=frozenset(names[name] for name in self.constants if name in names),
            integers=mine(self.integers),
            elements=mine(self.elements),
            batches={name: tuple(sorted(samples[root] for root in own)) for name, own in batches.items()},
            extents={name: tuple((roots[root], more) for root, more in sizes) for name, sizes in extents.items()},
        )

    def __hash__(self) -> int:
        """Return a hash of what the chain does."""
        return hash((tuple((link.op, link.inputs, link.outputs) for link in self.links), self.inputs, self.outputs))

    def text(self) -> str:
        """Return all that the chain says as text, the same for equal chains and in every process."""
        return repr(_ordered(self))

    def rank(self, name: str) -> int | None:
        """Return the number of axes of a tensor."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)


def _ordered(value: object) -> object:
    """Return a value with sets and mappings in sorted order: theirs differs from process to process."""
    if isinstance(value, Chain | Link):
        return tuple((each.name, _ordered(getattr(value, each.name))) for each in fields(value))
    if isinstance(value, Mapping):
        return tuple((key, _ordered(value[key])) for key in sorted(value))
    if isinstance(value, Set):
        return tuple(sorted(value))
    return tuple(map(_ordered, value)) if isinstance(value, tuple) else value
