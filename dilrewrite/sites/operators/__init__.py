"""How operators with weights are read and written, one file each; the file's name is a `Part`'s `operator`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from onnx import AttributeProto, NodeProto

from dilrewrite.discover import discover
from dilrewrite.forms.fragment import AttributeValue, CoreConv, WeightEdit
from dilrewrite.model.walk import DEFAULT_DOMAINS
from dilrewrite.sites import Operand, Part, Skipped
from dilrewrite.sites.scopes import Scope

INLINE = "inline it first, by onnx.inliner.inline_local_functions"
"""What a user can do about a function whose calls could not be written out (`splice/inline.py`)."""


class Refused(Exception):  # noqa: N818 - becomes a Skipped
    """Why a valid node is left alone."""


class Operands(Protocol):
    """What a node of a fragment reads, each made in the model when it is asked for; "" is left out."""

    def source(self) -> str:
        """Return the data."""

    def weight(self, edits: Sequence[WeightEdit] | None = None) -> str:
        """Return the edited weights; `edits`: those to make in place of the step's."""

    def bias(self) -> str:
        """Return the bias, repeated as the step says."""

    def repeated(self, operand: Operand, times: int, word: str) -> str:
        """Return a constant with one value per output channel, repeated; a new one's name ends in `word`."""


class Operator(Protocol):
    """One operator of ONNX's own domain."""

    @property
    def op(self) -> str:
        """Return its name in ONNX."""

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node as a part of a site; raises `Refused`, and ValueError for a node that nothing can run."""

    def check(self, scope: Scope, index: int) -> None:
        """Raise ValueError for a node without dilation that has an attribute of a wrong length."""

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of the node for a step of a fragment that computes `part`."""


@functools.cache
def operators() -> dict[str, Operator]:
    """Return every operator by the name of its file."""
    return cast(
        "dict[str, Operator]",
        discover(sys.modules[__name__], "OPERATOR", "dilrewrite.operators", ("op", "read", "write")),
    )


def operator_of(node: NodeProto) -> str | None:
    """Return the name of the file that knows a node, if one does; of two that do the later, so a plug-in goes first."""
    if node.domain not in DEFAULT_DOMAINS:
        return None
    return next((name for name, operator in reversed(operators().items()) if operator.op == node.op_type), None)


def dilations_of(node: NodeProto) -> tuple[tuple[int, ...], bool]:
    """Return the dilations that a node has, and whether they are an attribute of its function."""
    dilations = next((attribute for attribute in node.attribute if attribute.name == "dilations"), AttributeProto())
    return tuple(dilations.ints), bool(dilations.ref_attr_name)


def label_of(node: NodeProto) -> str:
    """Return what a node is called in messages."""
    return node.name or (node.output[0] if node.output else node.op_type)


def skipped(scope: Scope, node: NodeProto, reason: str) -> Skipped:
    """Return that a node is left alone."""
    dilations = dilations_of(node)[0]
    return Skipped(
        where=scope.where, name=scope.label(node), op=node.op_type, dilations=dilations, reason=reason, node=node.name
    )
