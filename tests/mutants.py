"""Wrong versions of the package, one context manager each: every one of them must be caught.

A mutant replaces functions of dilrewrite while it is entered and leaves the files alone, so it acts on whatever calls
them: the contract check, or a whole run of the command line in the same process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
from onnx import ModelProto, TensorProto

from dilrewrite.forms import builder, cells, fragment, geometry, grid, lift
from dilrewrite.forms.builder import INFER, Builder, Cut, Tensor
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import CoreConv, Fragment, Node
from dilrewrite.forms.layout import Layout
from dilrewrite.forms.regions import _layers, lift_region, phase_region
from dilrewrite.forms.strategies import Refusal, _phases, every_strategy
from dilrewrite.splice import floats, region
from dilrewrite.splice.operands import StepOperands
from dilrewrite.splice.writer import Writer
from tests.region_models import between, ints, whole

Context = contextlib.AbstractContextManager[None]

MUTANTS: dict[str, Callable[[], Context]] = {}
"""Every mutant by name; `with MUTANTS[name](): ...`."""

PHASES = ("phases_apart", "slice_to_batch", "space_to_axis", "space_to_batch", "space_to_group")

ASKED_FOR = ("equal_dilations", "gather_im2col", "pad_out", "pad_to_multiple")

TARGETS: dict[str, tuple[str, ...]] = {}
"""The strategies that a mutant makes wrong."""


def mutant(*targets: str) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Context]]:
    """Register a mutant that makes `targets` wrong, as far as they are there."""

    def register(function: Callable[[], Iterator[None]]) -> Callable[[], Context]:
        made = contextlib.contextmanager(function)
        there = tuple(name for name in targets if name in every_strategy())
        if there:
            MUTANTS[function.__name__], TARGETS[function.__name__] = made, there
        return made

    return register


@contextlib.contextmanager
def _everywhere(original: Any, wrong: Any) -> Iterator[None]:
    """Replace a function in every module of the package that imported it."""
    with contextlib.ExitStack() as stack:
        for name, module in sorted(sys.modules.items()):
            if name.startswith("dilrewrite") and module is not None:
                for key, value in list(vars(module).items()):
                    if value is original:
                        stack.enter_context(mock.patch.object(module, key, wrong))
        yield


@mutant(*PHASES)
def front_pad_dropped() -> Iterator[None]:
    """The zeros that belong in front of the phases stand at the end."""

    right = _phases.plan_axis

    def wrong(build: Builder, *given: Any) -> Any:
        enter, pads, leave = right(build, *given)
        return dataclasses.replace(enter, front=0, back=enter.back + enter.front), pads, leave

    with _everywhere(right, wrong):
        yield


@mutant("keep", "im2col", "pad_out", "gather_im2col", "tap_prune", "tap_zones", "zero_fill", *PHASES)
def end_pad_off_by_one() -> Iterator[None]:
    """One zero too few at the end; behind a stride nobody may notice."""
    right = geometry.ConvGeometry.normal

    def wrong(self: geometry.ConvGeometry) -> geometry.ConvGeometry:
        normal = right(self)
        ends = tuple(None if pad is None else max(pad - 1, 0) for pad in normal.pads_end)
        return dataclasses.replace(normal, pads_end=ends)

    with mock.patch.object(geometry.ConvGeometry, "normal", wrong):
        yield


@mutant(*PHASES)
def not_cut_to_ho() -> Iterator[None]:
    """What the zeros at the end made stays in the output."""

    def wrong(_: Builder, y: Tensor, __: Layout) -> Tensor:
        return y

    with _everywhere(_phases.crop, wrong):
        yield


@mutant("keep", "im2col", *ASKED_FOR, "tap_prune", "tap_sum", "tap_zones", "zero_fill", *PHASES)
def begin_and_end_pads_swapped() -> Iterator[None]:
    """Asymmetric pads the wrong way round."""
    right = geometry.ConvGeometry.static_pads.fget

    def wrong(self: geometry.ConvGeometry) -> Any:
        begin, end = right(self)
        return end, begin

    with mock.patch.object(geometry.ConvGeometry, "static_pads", property(wrong)):
        yield


@mutant(*PHASES)
def unequal_dilations_swapped() -> Iterator[None]:
    """The last axis is split by the first one's dilation and the other way round."""
    right = _phases.plan_phases

    def wrong(build: Builder, given: geometry.ConvGeometry, max_dilation: int) -> Any:
        return right(build, dataclasses.replace(given, dilations=given.dilations[::-1]), max_dilation)

    with _everywhere(right, wrong):
        yield


@mutant("phases_apart", "slice_to_batch", "space_to_batch", "space_to_group")
def unequal_blocks_joined_in_the_wrong_order() -> Iterator[None]:
    """The phases of the first and the last split axis trade places on the way back, with the same sizes."""
    right = _phases.join_phases

    def wrong(
        build: Builder, y: Tensor, layout: Layout, lengths: Any, outputs: Any, *how: str, **where: bool
    ) -> Tensor:
        blocks, start = layout.blocks[:: 1 if where.get("in_batch", True) else -1], 0 if where.get("batch_last") else 1
        if len(blocks) > 1:
            apart = build.reshape(y, [*[INFER][:start], *blocks, *[INFER][start:], outputs, *lengths])
            order = list(range(len(apart.shape)))
            order[start : start + len(blocks)] = order[start : start + len(blocks)][::-1]
            y = Tensor(build.transpose(apart, order).name, y.shape)
        return right(build, y, layout, lengths, outputs, *how, **where)

    with _everywhere(right, wrong):
        yield


@mutant("space_to_group")
def group_tiling_transposed() -> Iterator[None]:
    """Each output channel is repeated in place, not the whole set."""

    def wrong(self: fragment.RepeatOutputs, weight: Any, _: Any) -> Any:
        return np.repeat(weight, self.times, axis=0)

    with mock.patch.object(fragment.RepeatOutputs, "apply", wrong):
        yield


@mutant("phases_apart", "space_to_batch", "space_to_group")
def crd_for_dcr() -> Iterator[None]:
    """DepthToSpace reads the channels in the other order."""
    right = Builder.depth_to_space

    def wrong(self: Builder, tensor: Tensor, block: int) -> Tensor:
        made = right(self, tensor, block)
        node = self._nodes[-1]
        assert isinstance(node, fragment.Node)
        assert node.op == "DepthToSpace"
        if "mode" in node.attributes:
            self._nodes[-1] = dataclasses.replace(node, attributes={**node.attributes, "mode": "CRD"})
        return made

    with mock.patch.object(Builder, "depth_to_space", wrong):
        yield


@mutant(*PHASES)
def right_only_at_divisible_lengths() -> Iterator[None]:
    """The samples beyond the last whole block are lost."""

    def wrong(build: Builder, layout: Layout) -> Tensor:
        x = build.x
        sides = {place + 2: (axis.front, axis.back) for place, axis in enumerate(layout.axes)}
        cuts = {}
        for place, axis in enumerate(layout.axes):
            if axis.idle:
                continue
            step = axis.block * axis.grain
            extent = build.extent(x, place + 2)
            whole = extent // step * step
            cuts[place + 2] = Cut(0, whole)
            sides[place + 2] = (axis.front, axis.back + (extent - whole))
        return build.pad(build.slice(x, cuts), sides)

    with _everywhere(_phases.pad_axes, wrong):
        yield


@mutant(*PHASES, "im2col", "pad_out", "pad_to_multiple", "gather_im2col")
def zero_instead_of_the_zero_point() -> Iterator[None]:
    """A quantised input is padded with 0, which is not the number 0."""
    with mock.patch.object(region.Region, "_fill_value", return_value=""):
        yield


@mutant("zero_fill")
def zero_weights_instead_of_their_zero_point() -> Iterator[None]:
    """The zeros between the taps of a quantised kernel are 0, which is not the number 0."""
    right = fragment.SpreadTaps.apply

    def wrong(self: fragment.SpreadTaps, weight: Any, zero: Any) -> Any:
        return right(self, weight, np.zeros_like(zero))

    with mock.patch.object(fragment.SpreadTaps, "apply", wrong):
        yield


@mutant("im2col")
def taps_to_inputs_channel_major() -> Iterator[None]:
    """The taps are folded behind the channels, the slices are joined the other way."""

    def wrong(_: fragment.TapsToInputs, weight: Any, _zero: Any) -> Any:
        return weight.reshape(len(weight), -1, *(1,) * (weight.ndim - 2))

    with mock.patch.object(fragment.TapsToInputs, "apply", wrong):
        yield


@mutant("im2col", *ASKED_FOR, "tap_prune", "tap_sum", "tap_zones", "zero_fill", *PHASES)
def pruned_weights_at_the_wrong_end() -> Iterator[None]:
    """As many taps as are dead in front are cut off at the back."""
    right = fragment.TakeTaps.apply

    def wrong(self: fragment.TakeTaps, weight: Any, zero: Any) -> Any:
        size = weight.shape[self.axis + 2]
        return right(dataclasses.replace(self, start=size - self.stop, stop=size - self.start), weight, zero)

    with mock.patch.object(fragment.TakeTaps, "apply", wrong):
        yield


@mutant("pad_to_multiple")
def outputs_beyond_the_extent_stay() -> Iterator[None]:
    """What the zeros at the end made is not cut off."""
    with mock.patch.object(Builder, "slice", lambda _self, tensor, _cuts: tensor):
        yield


@mutant("gather_im2col")
def places_of_the_taps_before_those_of_the_outputs() -> Iterator[None]:
    """The Gather lays all inputs of a tap side by side, not all taps of an output."""
    right = Builder.gather

    def wrong(self: Builder, tensor: Tensor, axis: int, places: Any) -> Tensor:
        return right(self, tensor, axis, sorted(places))

    with mock.patch.object(Builder, "gather", wrong):
        yield


@mutant("equal_dilations")
def idle_dilation_on_every_axis_but_its_own() -> Iterator[None]:
    """The dilation stands on the axis with one tap, and nowhere else."""
    right = Builder.conv

    def wrong(self: Builder, tensor: Tensor, window: geometry.Window, **settings: Any) -> Tensor:
        idle = settings.get("idle_dilation", 1)
        undilated = dataclasses.replace(window, dilations=(1,) * len(window.kernel)) if idle > 1 else window
        return right(self, tensor, undilated, **settings)

    with mock.patch.object(Builder, "conv", wrong):
        yield


@mutant("tap_sum")
def bias_added_with_every_tap() -> Iterator[None]:
    """Each partial sum has its own bias."""
    right = Builder.conv

    def wrong(self: Builder, tensor: Tensor, window: geometry.Window, **settings: Any) -> Tensor:
        return right(self, tensor, window, **{**settings, "bias_times": 1})

    with mock.patch.object(Builder, "conv", wrong):
        yield


@mutant("tap_prune", "tap_sum", "tap_zones", "im2col", *ASKED_FOR, "zero_fill", *PHASES)
def one_live_tap_pruned() -> Iterator[None]:
    """The last output that a tap reaches is overlooked, so a tap can seem dead."""
    right = geometry.ConvGeometry.taps

    def wrong(self: geometry.ConvGeometry, axis: int) -> geometry.Taps | None:
        taps = right(self, axis)
        return None if taps is None else geometry.Taps(taps.lo, tuple(hi - 1 for hi in taps.hi))

    with mock.patch.object(geometry.ConvGeometry, "taps", wrong):
        yield


@mutant("keep", "im2col", "tap_zones", "zero_fill", *PHASES)
def same_pads_the_other_way() -> Iterator[None]:
    """SAME_UPPER puts the odd zero in front."""
    right = geometry.ConvGeometry.explicit

    def wrong(self: geometry.ConvGeometry) -> geometry.ConvGeometry:
        found = right(self)
        if not self.auto_pad.startswith("SAME"):
            return found
        return dataclasses.replace(found, pads_begin=found.pads_end, pads_end=found.pads_begin)

    with mock.patch.object(geometry.ConvGeometry, "explicit", wrong):
        yield


@mutant("keep", "im2col", "zero_fill", *PHASES)
def computed_same_pads_the_other_way() -> Iterator[None]:
    """As `same_pads_the_other_way`, where the pads are computed in the graph."""
    right = builder.Builder.pad

    def wrong(self: Builder, tensor: Tensor, sides: Mapping[int, tuple[Any, Any]]) -> Tensor:
        computed = any(isinstance(begin, builder.Symbol) for begin, _ in sides.values())
        turned = {axis: (end, begin) for axis, (begin, end) in sides.items()}
        return right(self, tensor, turned if computed else sides)

    with mock.patch.object(builder.Builder, "pad", wrong):
        yield


# -- integers in float32 ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfIntegers:
    """A wrong version of `back_to_float`: how it is entered, and the kind of operator that it shows on."""

    enter: Callable[[], Context]
    kind: str


INTEGER_MUTANTS: dict[str, OfIntegers] = {}
"""Every mutant of `back_to_float` by name."""


def of_integers(kind: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Register a mutant; it shows on this kind of QLinearConv or ConvInteger (tests/sites/test_integers.py)."""

    def register(function: Callable[[], Iterator[None]]) -> None:
        INTEGER_MUTANTS[function.__name__] = OfIntegers(contextlib.contextmanager(function), kind)

    return register


def _node(change: Callable[[Any, str, list[str], list[str], dict[str, Any]], Any]) -> Any:
    """Change how nodes are written; `change` gets what writes them as they are."""
    right = Writer.node

    def wrong(self: Writer, op: str, inputs: Any, outputs: Any, attributes: Any, *, name: str = "") -> Any:
        write = functools.partial(right, self)
        return change(write, op, [*inputs], [*outputs], {**attributes}) or write(
            op, inputs, outputs, attributes, name=name
        )

    return mock.patch.object(Writer, "node", wrong)


def _without_zero_point(of: str) -> Any:
    """Leave the zero point out where this operator is written."""
    return _node(lambda write, op, inputs, *given: write(op, inputs[:2], *given) if op == of else None)


@of_integers("u8 x u8")
def zero_point_left_out() -> Iterator[None]:
    """The data are taken as they are."""
    with _without_zero_point("DequantizeLinear"):
        yield


@of_integers("sums u8 x u8")
def zero_point_of_sums_left_out() -> Iterator[None]:
    """As `zero_point_left_out`, of a ConvInteger."""
    with _without_zero_point("DequantizeLinear"):
        yield


@of_integers("sums u8 x u8")
def zero_point_of_the_weights_left_out() -> Iterator[None]:
    """The weights are taken as they are."""
    right = StepOperands._float

    def wrong(self: StepOperands, operand: Any, zero: Any, edits: Any, word: str) -> str:  # noqa: ARG001
        return right(self, operand, None, edits, word)

    with mock.patch.object(StepOperands, "_float", wrong):
        yield


@of_integers("u8 x s8")
def zero_point_of_the_output_left_out() -> Iterator[None]:
    """Quotients are rounded to integers around 0."""
    with _without_zero_point("QuantizeLinear"):
        yield


@of_integers("u8 x s8")
def wrong_scale() -> Iterator[None]:
    """A quantum is one percent too large."""
    right = floats.steps
    with mock.patch.object(floats, "steps", lambda part, read: 1.01 * right(part, read)):
        yield


@of_integers("u8 x s8")
def one_scale_for_all_channels() -> Iterator[None]:
    """The scale of the first output channel is that of all."""
    right = floats.steps
    with mock.patch.object(floats, "steps", lambda part, read: right(part, read)[:1]):
        yield


@of_integers("u8 x s8")
def no_saturation() -> Iterator[None]:
    """What is beyond the ends of uint8 wraps around."""

    def change(write: Any, op: str, inputs: list[str], outputs: list[str], _: dict[str, Any]) -> Any:
        if op != "QuantizeLinear":
            return None
        whole, wide, zero, both = (f"{outputs[0]}/{word}" for word in ("whole", "wide", "zero", "both"))
        write("Round", inputs[:1], [whole], {})
        write("Cast", [whole], [wide], {"to": int(TensorProto.INT32)})
        write("Cast", inputs[2:], [zero], {"to": int(TensorProto.INT32)})
        write("Add", [wide, zero], [both], {})
        return write("Cast", [both], outputs, {"to": int(TensorProto.UINT8)})

    with _node(change):
        yield


@of_integers("sums u8 x s8")
def unsigned_read_as_signed() -> Iterator[None]:
    """Data above 127 are taken for negative numbers."""

    def change(write: Any, op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> Any:
        if op != "DequantizeLinear":
            return None
        signed = [f"{outputs[0]}/{word}" for word in ("data", "zero")]
        write("Cast", inputs[:1], signed[:1], {"to": int(TensorProto.INT8)})
        write("Cast", inputs[2:], signed[1:], {"to": int(TensorProto.INT8)})
        return write(op, [signed[0], inputs[1], signed[1]], outputs, attributes)

    with _node(change):
        yield


# -- regions -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfRegions:
    """A wrong version of a form of regions: how it is entered, and a model with a region on which it shows.

    `block`: how the region is split into phases.
    """

    enter: Callable[[], Context]
    form: str
    model: Callable[[], ModelProto]
    block: tuple[int, ...] = ()


REGION_MUTANTS: dict[str, OfRegions] = {}
"""Every mutant of a form of regions by name; `with REGION_MUTANTS[name].enter(): ...`."""

NESTED_MUTANTS: dict[str, OfRegions] = {}
"""Those that are wrong only where phases are split again."""

Made = Callable[[Callable[[], Iterator[None]]], None]


def lifted(middle: str, weights: Mapping[str, Any] | None = None, channels: int = 4) -> Made:
    """Register a mutant of `lift_region`; it shows on a model with this between two Convs."""

    def register(function: Callable[[], Iterator[None]]) -> None:
        model = functools.partial(between, middle, weights, channels=channels)
        REGION_MUTANTS[function.__name__] = OfRegions(contextlib.contextmanager(function), "lift_region", model)

    return register


def phased(middle: str, weights: Mapping[str, Any] | None = None, given: str = "", size: int = 9) -> Made:
    """Register a mutant of `phase_region`; the model has two images, `size` by `size`."""

    def register(function: Callable[[], Iterator[None]]) -> None:
        model = functools.partial(between, middle, weights, shape=(2, 4, size, size), given=given)
        made = contextlib.contextmanager(function)
        REGION_MUTANTS[function.__name__] = OfRegions(made, "phase_region", model, (2, 2))

    return register


def _row(op: str, change: Callable[[Link, lift.Lifted, int], lift.Lifted]) -> Context:
    """Change what an operator is lifted to."""
    right = lift.ROWS[op]

    def wrong(link: Link, behind: int, chain: Chain) -> lift.Lifted | None:
        made = right(link, behind, chain)
        return made and change(link, made, behind)

    return mock.patch.dict(lift.ROWS, {op: wrong})  # type: ignore[arg-type]


def _fragment(form: type, change: Callable[[Fragment], Fragment]) -> Any:
    """Change the fragments of a form of regions."""
    right = form.fragment  # type: ignore[attr-defined]

    def wrong(self: Any, chain: Chain, opset: int) -> Fragment | Refusal:
        made = right(self, chain, opset)
        return change(made) if isinstance(made, Fragment) else made

    return mock.patch.object(form, "fragment", wrong)


@lifted("b = Relu (a)")
def squeezed_along_the_wrong_axis() -> Iterator[None]:
    """What leaves a lifted region loses its first axis."""

    def wrong(made: Fragment) -> Fragment:
        steps = (
            dataclasses.replace(step, inputs=(step.inputs[0], "first"))
            if isinstance(step, Node) and step.op == "Squeeze"
            else step
            for step in made.steps
        )
        return dataclasses.replace(made, steps=tuple(steps), constants={**made.constants, "first": (0,)})

    with _fragment(lift_region.LiftRegion, wrong):
        yield


@lifted("b = Relu (a)")
def lifted_behind_the_data() -> Iterator[None]:
    """The new axis stands behind the data and not before them."""

    def wrong(made: Fragment) -> Fragment:
        return dataclasses.replace(made, constants={**made.constants, "axis_2": (3,)})

    with _fragment(lift_region.LiftRegion, wrong):
        yield


@lifted("b = PRelu (a, c)", {"c": whole(4, 1)})
def slope_as_it_was() -> Iterator[None]:
    """A slope per channel gets no new axis."""
    with _row("PRelu", lambda _, made, __: dataclasses.replace(made, inputs=(lift.As.LIFTED, lift.As.IS))):
        yield


@lifted("b = Concat <axis = 1> (a, a)", channels=8)
def joined_along_the_axis_in_front() -> Iterator[None]:
    """The axis of a Concat moves the wrong way."""
    with _row("Concat", lambda _, made, __: dataclasses.replace(made, attributes={"axis": 0})):
        yield


@lifted("b = Concat <axis = 2> (a, a)")
def joined_along_the_new_axis() -> Iterator[None]:
    """The axis of a Concat stays, though it stands behind the new one."""
    with _row("Concat", lambda link, made, _: dataclasses.replace(made, attributes=link.attributes)):
        yield


@lifted("b = Pad (a, p)", {"p": ints(0, 0, 1, 0, 0, 1)})
def padded_along_the_new_axis() -> Iterator[None]:
    """The pads of a Pad stay where they were, and the new axis has none at the end of the list."""

    def wrong(_: Link, made: lift.Lifted, __: int) -> lift.Lifted:
        pads = made.inputs[1]
        assert isinstance(pads, tuple)
        half = len(pads) // 2
        begins, ends = (*pads[:2], pads[3], 0), (*pads[half : half + 2], pads[half + 3], 0)
        return dataclasses.replace(made, inputs=(made.inputs[0], begins + ends, *made.inputs[2:]))

    with _row("Pad", wrong):
        yield


@lifted("b = Slice (a, s, e, c, t)", {"s": ints(0), "e": ints(9), "c": ints(-1), "t": ints(2)})
def cut_along_the_new_axis() -> Iterator[None]:
    """The axis of a Slice stays, though it stands behind the new one."""
    with _row(
        "Slice", lambda _, made, __: dataclasses.replace(made, inputs=(*made.inputs[:3], (2,), *made.inputs[4:]))
    ):
        yield


@phased("b = Exp (a)")
def mask_dropped() -> Iterator[None]:
    """No zeros are written around the data."""
    with mock.patch.object(_layers.Layers, "full", return_value=True):
        yield


@phased("b = Exp (a)")
def mask_behind_the_conv() -> Iterator[None]:
    """The zeros are written around the output of the Conv that needs them, not around its input."""

    def wrong(made: Fragment) -> Fragment:
        masks = {step.outputs[0]: step for step in made.steps if isinstance(step, Node) and step.op == "Where"}
        steps: list[fragment.Step] = []
        for step in made.steps:
            if isinstance(step, CoreConv) and step.source in masks:
                where, data, zero = masks[step.source].inputs
                steps.append(dataclasses.replace(step, source=data, output=f"{step.output}_bare"))
                steps.append(Node("Where", (where, f"{step.output}_bare", zero), (step.output,), {}))
            else:
                steps.append(step)
        return dataclasses.replace(made, steps=tuple(steps))

    with _fragment(phase_region.PhaseRegion, wrong):
        yield


def _axes_behind_convs(change: Callable[[cells.Axis], cells.Axis]) -> Context:
    """Change how the outputs of Convs are taken to lie."""
    right = grid.conv

    def wrong(*given: Any) -> cells.Phased | None:
        made = right(*given)
        axes = made.axes if made is not None else ()
        return made and dataclasses.replace(made, axes=tuple(change(axis) if axis.block > 1 else axis for axis in axes))

    return _everywhere(right, wrong)


@phased("b = Relu (a)")
def front_off_by_one() -> Iterator[None]:
    """The data are thought to stand one cell further behind a Conv."""
    with _axes_behind_convs(lambda axis: dataclasses.replace(axis, front=axis.front + 1)):
        yield


@phased("b = Relu (a)")
def samples_off_by_one() -> Iterator[None]:
    """Extents that the block does not divide have a sample too few."""
    right = cells.Axis.becomes

    def wrong(self: cells.Axis, extent: int, front: int) -> tuple[cells.Axis, int]:
        axis, more = right(self, extent, front)
        if axis.block == 1 or (front + extent) % axis.block == 0:
            return axis, more
        return dataclasses.replace(axis, cells=axis.cells - axis.block), more - 1

    with mock.patch.object(cells.Axis, "becomes", wrong):
        yield


def _reversed_phases(wrong: Callable[[_layers.Layers, str, cells.Axes], bool]) -> Context:
    """Read the phases of each image from the last to the first on the way out of a layout, where `wrong` says so."""
    right = _layers.Layers._leave

    def leave(self: _layers.Layers, name: str, tensor: Tensor, axes: cells.Axes) -> Tensor:
        if wrong(self, name, axes):
            batch, phases = tensor.shape[0], int(np.prod([axis.block for axis in axes]))
            assert isinstance(batch, int)
            order = np.arange(batch).reshape(-1, phases)[:, ::-1].ravel().tolist()
            tensor = self.node("Gather", [tensor.name, self.builder.constant(order)], tensor.shape, axis=0)
        return right(self, name, tensor, axes)

    return mock.patch.object(_layers.Layers, "_leave", leave)  # type: ignore[return-value]


@phased("b = Relu (a)", size=8)
def phases_in_reverse() -> Iterator[None]:
    """The phases of each image stand in the wrong order behind a region."""
    with _reversed_phases(lambda *_: True):
        yield


@contextlib.contextmanager
def inner_phases_in_reverse() -> Iterator[None]:
    """The phases of phases stand in the wrong order behind the inner layout."""
    with _reversed_phases(lambda self, name, axes: len(self.layers) > 2 and axes == self.layers[2].grid.axes.get(name)):
        yield


NESTED_MUTANTS["inner_phases_in_reverse"] = OfRegions(
    inner_phases_in_reverse,
    "phase_region",
    functools.partial(
        between,
        "c = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (a, w1) d = Relu (c)"
        "b = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (d, w1)",
        shape=(2, 4, 9, 9),
    ),
    (2, 2),
)


@phased("m = ReduceSum (a, e) b = Add (m, a)", {"e": ints(2, 3)})
def border_dropped() -> Iterator[None]:
    """A reduction over space counts the cells around the data."""

    def wrong(self: Any, name: str, level: int, _: str) -> Tensor:
        made: Tensor = self.layers.at(name, level).tensor
        return made

    with mock.patch.object(phase_region._Writer, "_bordered", wrong):
        yield


@phased("b = Mul (c, a)", given=", float[2, 4, 1, 1] c")
def images_repeated_in_turn() -> Iterator[None]:
    """An operand with values of its own for each image is repeated as a whole."""

    def wrong(self: _layers.Layers, name: str, level: int) -> Tensor:
        tensor = self.at(name, 0).tensor
        times = int(np.prod([block for layer in self.layers[1 : level + 1] for block in layer.block]))
        repeats = self.builder.constant([times, *[1] * (len(tensor.shape) - 1)])
        return self.node("Tile", [tensor.name, repeats], (None, *tensor.shape[1:]))

    with mock.patch.object(_layers.Layers, "repeated", wrong):
        yield
