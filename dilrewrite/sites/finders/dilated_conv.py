"""A dilated convolution by itself: one node of an operator that `sites/operators/` knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from onnx import NodeProto

from dilrewrite.errors import UsageError
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.sites import Normalisation, Part, Site, Skipped
from dilrewrite.sites.operators import Refused, dilations_of, label_of, operator_of, operators, skipped
from dilrewrite.sites.scopes import Scope

MOST_WEIGHTS = 2**31
"""More weights fit into no model; only computed ones can have a shape that says so."""


@final
@dataclass(frozen=True, slots=True)
class DilatedConv:
    """Every node whose dilation has an effect is a site; of others the attributes may become plainer."""

    def at(self, scope: Scope, index: int) -> Iterator[Site | Normalisation | Skipped]:
        """Yield the node as a site, or why it is none."""
        node = scope.nodes[index]
        name = operator_of(node)
        if name is None:
            return
        operator, (dilations, of_function) = operators()[name], dilations_of(node)
        try:
            if not of_function and all(dilation == 1 for dilation in dilations):
                operator.check(scope, index)
                return
            part = operator.read(scope, index)
            if part.geometry.dilated:
                _check_weights(part.geometry)
        except Refused as refused:
            yield skipped(scope, node, str(refused))
            return
        except ValueError as error:
            problem = f"{scope.where}: {node.op_type} {label_of(node)!r} is invalid: {error}"
            raise UsageError(problem, hint="export the model again or correct the node") from error
        plain, pads = _plain_dilations(part.geometry), _static_pads(part.geometry)
        if (plain or pads) and not isinstance(part.geometry, PoolGeometry):
            name = scope.label(node)
            yield Normalisation(scope=scope.path, where=scope.where, index=index, name=name, dilations=plain, pads=pads)
        if part.geometry.dilated:
            yield site_of(scope, part, node)


FINDER = DilatedConv()


def site_of(scope: Scope, part: Part, node: NodeProto) -> Site:
    """Return the site of one node."""
    quantized = part.input_quantization is not None
    alone = part.on_integers or isinstance(part.geometry, PoolGeometry)
    follow = () if alone else scope.follow(node.output[0], quantized=quantized)
    last = scope.nodes[follow[-1] if follow else part.index]
    rounded = bool(follow) and last.op_type == "QuantizeLinear"
    return Site(
        scope=scope.path,
        where=scope.where,
        name=scope.label(node),
        node=node.name,
        nodes=(part.index,),
        inputs=(node.input[0],),
        outputs=(node.output[0],),
        meaning=part.geometry,
        parts=(part,),
        opset=scope.opset,
        ir_version=scope.ir_version,
        follow=follow,
        quantizes_output=rounded,
        ends=tuple(_real_readers(scope, last.output[0])) if quantized and not rounded else (),
    )


def _real_readers(scope: Scope, name: str) -> Iterator[str]:
    """Yield what reads a tensor that no QuantizeLinear follows."""
    if name in scope.outputs:
        yield f"the output {name!r}"
    if scope.captured[name]:
        yield f"a graph inside a node, which reads {name!r}"
    for reader in dict.fromkeys(scope.consumers.get(name, ())):
        yield f"{scope.nodes[reader].op_type} {label_of(scope.nodes[reader])!r}"


def _check_weights(geometry: ConvGeometry) -> None:
    outputs, inputs = geometry.out_channels or geometry.group, geometry.in_channels or geometry.group
    elements = outputs * (inputs // geometry.group) * product(geometry.kernel)
    if elements > MOST_WEIGHTS:
        raise Refused(f"its weights have {elements} elements; up to {MOST_WEIGHTS} are covered")


def _plain_dilations(geometry: ConvGeometry) -> tuple[int, ...] | None:
    """Return the dilations with 1 wherever the kernel is 1, `None` when they are so already."""
    plain = tuple(1 if k == 1 else d for k, d in zip(geometry.kernel, geometry.dilations, strict=True))
    return plain if plain != geometry.dilations else None


def _static_pads(geometry: ConvGeometry) -> tuple[int, ...] | None:
    """Return the explicit pads of a dilated SAME_* Conv, `None` when they depend on an unknown extent."""
    explicit = geometry.explicit()
    if not geometry.dilated or not geometry.auto_pad.startswith("SAME") or explicit.auto_pad != "NOTSET":
        return None
    begin, end = explicit.static_pads
    return *begin, *end
