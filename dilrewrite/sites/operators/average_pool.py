"""AveragePool: [N, C, *H] -> [N, C, *Ho], the mean of each window. ONNX, versions 19 and 22."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.fragment import AttributeValue, CoreConv
from dilrewrite.sites import Part
from dilrewrite.sites.operators import Operands, _pooling
from dilrewrite.sites.scopes import Scope


@final
@dataclass(frozen=True, slots=True)
class AveragePool:
    """A window over each channel, read as a Conv with as many groups as channels and no weights."""

    op: str = "AveragePool"

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node with its geometry; raises `Refused` where no form may take it."""
        return _pooling.read(scope, index, "average_pool", kind="mean", since=19)

    def check(self, scope: Scope, index: int) -> None:
        """Let a node without dilation be."""

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the input and attributes of the node for a step of a fragment."""
        return _pooling.write(part, core, operands)


OPERATOR = AveragePool()
