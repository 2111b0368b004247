"""Which operators run the same with one more axis of size 1, and how each is spelled then.

A tensor [N, C, L] is lifted to [N, C, 1, L]. In general a lifted tensor has an axis of size 1 with `right` axes behind
it: 1 in [N, C, 1, L], 2 behind a transposition to [N, 1, L, C]. Counted from the right, for NumPy's broadcasting aligns
there: an operand that broadcasts against a lifted tensor gets the axis when it has more than `right` axes.

Every operator commutes with the new axis under the condition of its row in `ROWS`; one without a row stays outside.
Operators as in ONNX, opsets 7 to 24.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import AttributeValue


class As(Enum):
    """How a lifted operator reads an input."""

    IS = "as it is"
    LIFTED = "in the layout"


@dataclass(frozen=True, slots=True)
class Insert:
    """The input with a new axis of size 1 at `axis`."""

    axis: int


@dataclass(frozen=True, slots=True)
class Entry:
    """The input, a constant with a value per axis, with a 1 at `place`: an edit."""

    place: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the longer list."""
        return np.insert(weight, self.place, 1)


Input = As | Insert | Entry | tuple[int, ...]
"""What stands for an input of the user's operator; integers are a new constant."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """An operator on lifted tensors: what it reads, which attributes it has in place of its own, its outputs' axis."""

    inputs: tuple[Input, ...]
    right: int
    attributes: Mapping[str, AttributeValue] | None = None


class Row(Protocol):
    """The condition under which an operator commutes with a new axis that has `right` axes behind it."""

    def __call__(self, link: Link, right: int, chain: Chain) -> Lifted | None:
        """Return the lifted operator, None where it does not commute, or not enough is known."""
        ...


def shifted(axis: int, rank: int, right: int) -> int:
    """Return where an axis of a tensor with `rank` axes stands when that is lifted."""
    axis += rank if axis < 0 else 0
    return axis if axis < rank - right else axis + 1


def _first(link: Link) -> tuple[Input, ...]:
    return As.LIFTED, *(As.IS for _ in link.inputs[1:])


def elementwise(link: Link, right: int, chain: Chain) -> Lifted | None:  # noqa: ARG001
    """Anything that computes each element of its first input by itself."""
    return Lifted(_first(link), right) if len(link.outputs) == 1 else None


def broadcast(link: Link, right: int, chain: Chain) -> Lifted | None:
    """All inputs against each other, NumPy's way."""
    ranks = [chain.rank(name) if name else 0 for name in link.inputs]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks):
        return None
    inputs: list[Input] = []
    for name, rank in zip(link.inputs, known, strict=True):
        aligned = rank > right or rank == right == max(known)
        inputs.append(As.IS if not aligned else Insert(rank - right) if name in chain.constants else As.LIFTED)
    return Lifted(tuple(inputs), right)


@dataclass(frozen=True)
class Along:
    """One axis, an attribute: `default` where it is not written; `every`: all inputs are data."""

    default: int | None
    every: bool = False
    operands: bool = False

    def __call__(self, link: Link, right: int, chain: Chain) -> Lifted | None:
        """Return the operator with its axis moved."""
        rank, axis = chain.rank(link.inputs[0]), link.attributes.get("axis", self.default)
        if rank is None or not isinstance(axis, int) or (self.operands and len(link.outputs) > 1):
            return None
        inputs = broadcast(link, right, chain) if self.every or self.operands else Lifted(_first(link), right)
        return inputs and Lifted(inputs.inputs, right, {"axis": shifted(axis, rank, right)})


def softmax(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Along one axis; before opset 13 over all axes from one on, where size 1 does not count."""
    return Along(-1 if chain.opset >= 13 else 1)(link, right, chain)


def channelwise(link: Link, right: int, chain: Chain) -> Lifted | None:
    """[N, C, ...] with operands [C]; the new axis is a spatial one. Opset 7 has a norm of every sample by itself."""
    rank = chain.rank(link.inputs[0])
    fits = rank is not None and rank - right >= 2 and len(link.outputs) == 1 and link.attributes.get("spatial", 1)
    return Lifted(_first(link), right) if fits else None


WINDOW = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0, "output_shape": 1}


def window(link: Link, right: int, chain: Chain) -> Lifted | None:
    """A window that slides along L of [N, C, L], with weights or without."""
    if right != 1 or chain.rank(link.inputs[0]) != 3 or len(link.outputs) > 1:
        return None
    attributes: dict[str, AttributeValue] = {}
    for name, value in link.attributes.items():
        if name in WINDOW:
            assert isinstance(value, tuple)
            attributes[name] = (WINDOW[name], *value)
        elif name == "pads":
            assert isinstance(value, tuple)
            attributes[name] = (0, value[0], 0, value[1])
    inputs: list[Input] = [*_first(link)]
    if len(inputs) > 1:
        inputs[1] = Insert(2) if link.inputs[1] in chain.constants else As.LIFTED
    return Lifted(tuple(inputs), right, attributes)


def integers(link: Link, chain: Chain, name: str, place: int) -> tuple[int, ...] | None:
    """Return integers that are an attribute in one opset and a constant input in another."""
    value = link.attributes.get(name)
    if isinstance(value, tuple):
        return tuple(each for each in value if isinstance(each, int))
    return chain.integers.get(link.inputs[place]) if len(link.inputs) > place and link.inputs[place] else None


def _spelled(
    link: Link, right: int, values: tuple[int, ...], name: str, place: int, inputs: tuple[Input, ...] | None = None
) -> Lifted:
    """Return the operator with other integers, where they stood."""
    inputs = inputs or _first(link)
    if name in link.attributes:
        return Lifted(inputs, right, {name: values})
    return Lifted((*inputs[:place], values, *inputs[place + 1 :]), right)


def reduction(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Over axes that are known; without keepdims those behind the new axis go."""
    rank, axes = chain.rank(link.inputs[0]), integers(link, chain, "axes", 1)
    if rank is None or not axes:
        return None
    moved = tuple(shifted(axis, rank, right) for axis in axes)
    kept = link.attributes.get("keepdims", 1)
    behind = right if kept else right - sum(axis > rank - right for axis in moved)
    return _spelled(link, behind, moved, "axes", 1)


def extreme(link: Link, right: int, chain: Chain) -> Lifted | None:
    """ArgMax and ArgMin: places along one axis."""
    lifted = Along(0)(link, right, chain)
    if lifted is None or lifted.attributes is None:
        return None
    axis, rank = lifted.attributes["axis"], chain.rank(link.inputs[0]) or 0
    assert isinstance(axis, int)
    gone = not link.attributes.get("keepdims", 1) and axis > rank - right
    return Lifted(lifted.inputs, right - gone, lifted.attributes)


def transpose(link: Link, right: int, chain: Chain) -> Lifted | None:
    """The new axis goes with the axis behind it."""
    rank = chain.rank(link.inputs[0])
    if rank is None:
        return None
    order = link.attributes.get("perm", tuple(reversed(range(rank))))
    assert isinstance(order, tuple)
    new = rank - right
    places = [axis for axis in order if isinstance(axis, int)]
    at = places.index(new) if new < rank else rank
    moved = [shifted(axis, rank, right) for axis in places]
    return Lifted(_first(link), rank - at, {"perm": (*moved[:at], new, *moved[at:])})


def squeeze(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Axes that are known go."""
    rank, axes = chain.rank(link.inputs[0]), integers(link, chain, "axes", 1)
    if rank is None or not axes:
        return None
    moved = tuple(shifted(axis, rank, right) for axis in axes)
    return _spelled(link, right - sum(axis > rank - right for axis in moved), moved, "axes", 1)


def unsqueeze(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Axes that are known come; the new axis stays before the one behind it, or before those that come last."""
    rank, axes = chain.rank(link.inputs[0]), integers(link, chain, "axes", 1)
    if rank is None or not axes:
        return None
    whole = rank + len(axes)
    come = {axis % whole for axis in axes}
    stay = [axis for axis in range(whole) if axis not in come]
    behind = whole - (stay[rank - right] if right else max(stay, default=-1) + 1)
    return _spelled(link, behind, tuple(shifted(axis, whole, behind) for axis in axes), "axes", 1)


def pad(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Pads that are known, for all axes or those of the fourth input."""
    rank, pads = chain.rank(link.inputs[0]), integers(link, chain, "pads", 1)
    if rank is None or pads is None:
        return None
    inputs = _first(link)
    if len(link.inputs) > 3 and link.inputs[3]:
        axes = chain.integers.get(link.inputs[3])
        return Lifted((*inputs[:3], tuple(shifted(axis, rank, right) for axis in axes)), right) if axes else None
    new = rank - right
    begins, ends = pads[:rank], pads[rank:]
    values = (*begins[:new], 0, *begins[new:], *ends[:new], 0, *ends[new:])
    return _spelled(link, right, values, "pads", 1, inputs)


def cut(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Slice: the axes that it names, or the first ones."""
    rank, starts = chain.rank(link.inputs[0]), integers(link, chain, "starts", 1)
    axes = integers(link, chain, "axes", 3)
    named = "axes" in link.attributes or (len(link.inputs) > 3 and link.inputs[3] != "")
    if rank is None or (axes is None and (named or starts is None)):
        return None
    axes = axes if axes is not None else tuple(range(len(starts or ())))
    moved = tuple(shifted(axis, rank, right) for axis in axes)
    if "starts" in link.attributes:
        return Lifted(_first(link), right, {"axes": moved})
    inputs = (*_first(link), As.IS)[: max(len(link.inputs), 4)]
    return Lifted((*inputs[:3], moved, *inputs[4:]), right)


def cumulate(link: Link, right: int, chain: Chain) -> Lifted | None:
    """CumSum: the axis is a constant."""
    rank, axis = chain.rank(link.inputs[0]), chain.integers.get(link.inputs[1])
    return Lifted((As.LIFTED, (shifted(axis[0], rank, right),)), right) if rank is not None and axis else None


def matrices(link: Link, right: int, chain: Chain) -> Lifted | None:
    """MatMul of [..., M, K] with [K, M']: the new axis is one of the batch."""
    ranks = [chain.rank(name) for name in link.inputs]
    fits = right >= 2 and ranks[0] is not None and ranks[0] >= right and ranks[1] == 2
    return Lifted(_first(link), right) if fits else None


def quantization(link: Link, right: int, chain: Chain) -> Lifted | None:
    """QuantizeLinear and DequantizeLinear, per tensor or along one axis."""
    scale = chain.rank(link.inputs[1])
    if scale is None or scale > 1 or link.attributes.get("block_size"):
        return None
    per_axis = scale == 1 and chain.opset >= 13
    return Along(1)(link, right, chain) if per_axis else Lifted(_first(link), right)


def gather(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Places along one axis; the axes of the indices come in its stead."""
    lifted, places = Along(0)(link, right, chain), chain.rank(link.inputs[1])
    if lifted is None or lifted.attributes is None or places is None:
        return None
    axis, rank = lifted.attributes["axis"], chain.rank(link.inputs[0]) or 0
    assert isinstance(axis, int)
    return Lifted(lifted.inputs, right + (places - 1 if axis > rank - right else 0), lifted.attributes)


def expand(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Sizes that are known, against those of the data."""
    sizes = chain.integers.get(link.inputs[1])
    if sizes is None or chain.rank(link.inputs[0]) is None:
        return None
    new = len(sizes) - right
    return Lifted((As.LIFTED, (*sizes[:new], 1, *sizes[new:]) if new > 0 else As.IS), right)


def tile(link: Link, right: int, chain: Chain) -> Lifted | None:
    """Times that are known, for each axis."""
    times, rank = chain.integers.get(link.inputs[1]), chain.rank(link.inputs[0])
    if times is None or rank is None:
        return None
    return Lifted((As.LIFTED, (*times[: rank - right], 1, *times[rank - right :])), right)


def reshape(link: Link, right: int, chain: Chain) -> Lifted | None:
    """To sizes that are known: those behind the new axis stay, and before it stays the number of elements."""
    shape, sizes = chain.shapes.get(link.inputs[0]), chain.integers.get(link.inputs[1])
    if shape is None or sizes is None or link.attributes.get("allowzero") or len(sizes) < right:
        return None
    new, at = len(shape) - right, len(sizes) - right
    kept = [place for place in range(at) if sizes[place] == 0]
    before = [size for place, size in enumerate(shape[:new]) if place not in kept]
    after = [size for size in sizes[:at] if size]
    if max(kept, default=-1) >= new or None in before or min(after, default=1) < 0:
        return None
    if math.prod(filter(None, before)) != math.prod(after) or (right > 1 and shape[new:] != sizes[at:]):
        return None
    behind = sizes[at:] if min(sizes[at:], default=1) > 0 else (-1,)
    return Lifted((As.LIFTED, (*sizes[:at], 1, *behind)), right)


def resize(link: Link, right: int, chain: Chain) -> Lifted | None:
    """[N, C, L] by factors or to sizes that are constants; others from opset 18 on, which names the axes."""
    given, rest = link.attributes, 1 if link.op == "Upsample" or chain.opset < 11 else 2
    odd = given.get("coordinate_transformation_mode") == "tf_crop_and_resize" or given.get("antialias")
    if (
        right != 1
        or chain.rank(link.inputs[0]) != 3
        or odd
        or given.get("mode", "nearest") not in ("nearest", "linear")
    ):
        return None
    inputs = list(_first(link))
    values = [place for place in range(rest, len(inputs)) if chain.shapes.get(link.inputs[place], (0,)) != (0,)]
    if not values:
        return None  # opset 7 has the factors in an attribute
    for place in values:
        sizes = chain.integers.get(link.inputs[place])
        inputs[place] = Entry(2) if sizes is None else (*sizes[:2], 1, *sizes[2:])
    apart = given.get("axes") or given.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    if not apart and all(link.inputs[place] in chain.constants for place in values):
        return Lifted(tuple(inputs), right)
    axes = given.get("axes", (0, 1, 2))
    assert isinstance(axes, tuple)
    moved = tuple(shifted(axis, 3, right) for axis in axes if isinstance(axis, int))
    return Lifted(_first(link), right, {"axes": moved}) if chain.opset >= 18 else None


_ELEMENTWISE = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf
Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""
_BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max
Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor"""
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

ELEMENTWISE, BROADCAST = _ELEMENTWISE.split(), _BROADCAST.split()

ROWS: Mapping[str, Callable[[Link, int, Chain], Lifted | None]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(BROADCAST, broadcast),
    **{f"Reduce{name}": reduction for name in _REDUCTIONS.split()},
    **dict.fromkeys(("Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool"), window),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), channelwise),
    **dict.fromkeys(("BatchNormalization", "GroupNormalization", "InstanceNormalization"), channelwise),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), extreme),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantization),
    "Concat": Along(None, every=True),
    "CumSum": cumulate,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), Along(-1, operands=True)),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Expand": expand,
    "Gather": gather,
    "LpNormalization": Along(-1),
    "MatMul": matrices,
    "MeanVarianceNormalization": reduction,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": cut,
    "Split": Along(0),
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""{operator: its row}."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Of each tensor that can be lifted: how many axes stand behind the new one; of each link: how it is lifted."""

    right: Mapping[str, int]
    links: tuple[Lifted | None, ...]


def spread(chain: Chain) -> Labels:
    """Return how far the layout goes, both ways, from the data and outputs of 1-D convolutions."""
    right: dict[str, int] = {}
    links: list[Lifted | None] = [None] * len(chain.links)
    touching: dict[str, list[int]] = {}
    queue: deque[int] = deque()
    for place, link in enumerate(chain.links):
        if link.op not in ROWS:
            continue
        for name in (*link.inputs, *link.outputs):
            touching.setdefault(name, []).append(place)
        if link.op in SEEDS and chain.rank(link.inputs[0]) == 3:
            queue.append(place)
    while queue:
        place = queue.popleft()
        if links[place] is not None:
            continue
        link = chain.links[place]
        begin = next((right[name] for name in link.inputs if name in right), None)
        end = next((right[name] for name in link.outputs if name in right), None)
        if begin is None and end is None:
            begin = 1  # a seed
        choices = [begin] if begin is not None else [end, *range((chain.rank(link.inputs[0]) or 0) + 1)]
        for choice in choices:
            lifted = ROWS[link.op](link, choice, chain) if choice is not None else None
            if lifted is None or (end is not None and lifted.right != end):
                continue
            data = [name for name, how in zip(link.inputs, lifted.inputs, strict=False) if how is As.LIFTED]
            if any(right.get(name, choice) != choice or not _liftable(name, choice, chain) for name in data):
                continue
            if not all(_liftable(name, lifted.right, chain) for name in link.outputs):
                continue
            links[place] = lifted
            for names, label in ((data, choice), (link.outputs, lifted.right)):
                for name in filter(None, names):
                    if name not in right:
                        right[name] = label
                        queue.extend(touching[name])
            break
    return Labels(right, tuple(links))


def _liftable(name: str, right: int, chain: Chain) -> bool:
    """Say whether a tensor can have an axis with so many behind it: not a constant, which has no maker to lift it."""
    rank = chain.rank(name)
    return not name or (rank is not None and rank >= right and name not in chain.constants)


SEEDS = ("Conv", "ConvTranspose")
