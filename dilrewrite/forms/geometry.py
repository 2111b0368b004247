"""The integer maths of a Conv: extents, taps, phases. No ONNX here; the symbols are those of docs/maths.md."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

MAX_RANK = 3
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def ceil_div(a: int, b: int) -> int:
    """Return ceil(a / b) for b > 0."""
    return -(-a // b)


def product(values: Iterable[int]) -> int:
    """Return the product, 1 for no value."""
    return math.prod(values)


def acting_dilation(kernel: Sequence[int], dilations: Sequence[int]) -> int:
    """Return the largest dilation that acts on a kernel axis longer than 1; 1 without one."""
    return max((d for k, d in zip(kernel, dilations, strict=True) if k > 1), default=1)


Limit = int | tuple[int, ...]
"""Which dilations may stay: those up to a number, or these; 1 always may."""


def allows(limit: Limit, dilation: int) -> bool:
    """Say whether a dilation may stay."""
    return dilation == 1 or (dilation <= limit if isinstance(limit, int) else dilation in limit)


def divisors(n: int) -> list[int]:
    """Return the divisors of n in rising order, in about sqrt(n) steps."""
    small = [b for b in range(1, math.isqrt(n) + 1) if n % b == 0]
    return sorted({*small, *(n // b for b in small)})


def least_divisor(n: int, limit: Limit) -> int:
    """Return the smallest divisor of n that leaves a quotient which may stay."""
    return next(b for b in divisors(n) if allows(limit, n // b))


@dataclass(frozen=True, slots=True)
class Taps:
    """On one axis with known extents: tap t touches data for the outputs `lo[t] <= o < hi[t]` and padding elsewhere."""

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    def live(self, tap: int) -> bool:
        """Say whether the tap ever touches data."""
        return self.lo[tap] < self.hi[tap]

    def touching(self) -> int:
        """Return the number of (output, tap) pairs that touch data."""
        return sum(max(0, hi - lo) for lo, hi in zip(self.lo, self.hi, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """How one axis is split (docs/maths.md, family 1); `block` 1 means that it is not.

    The outputs o = r + q*block form phase r. Phase r reads the padded input xp at `r*stride_in + j*grain*block`,
    j = 0, 1, ..., and is a Conv with `stride` and `dilation` over those samples. `grain` is gcd(s, d).
    """

    grain: int
    block: int
    stride: int
    dilation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a Conv slides over its input, per spatial axis: kernel, strides, dilations, pads at its begin and end."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @staticmethod
    def point(strides: tuple[int, ...]) -> Window:
        """Return the window of a single tap without pads."""
        ones, zeros = (1,) * len(strides), (0,) * len(strides)
        return Window(kernel=ones, strides=strides, dilations=ones, begin=zeros, end=zeros)

    def with_axis(self, place: int) -> Window:
        """Return the window with one more axis before axis `place`, along which it has a single tap."""
        sides = {
            name: (*getattr(self, name)[:place], int(name not in ("begin", "end")), *getattr(self, name)[place:])
            for name in ("kernel", "strides", "dilations", "begin", "end")
        }
        return Window(**sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transposed:
    """What a ConvTranspose has besides the Conv that it is read as. Source: ONNX specification, ConvTranspose."""

    strides: tuple[int, ...]
    """Its stride per axis: so far apart the values of the input are spread."""
    output_padding: tuple[int, ...]
    """Its output_padding per axis, which `pads_end` holds too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Everything about a Conv that decides how it can be rewritten; `None` stands for what is known at run time only.

    Spatial tuples have `rank` entries, and pads count as ONNX counts them. Source: ONNX operator specification, Conv
    versions 1, 11 and 22.
    """

    batch: int | None
    """Batch size."""
    in_channels: int | None
    """Input channels of all groups."""
    out_channels: int | None
    """Output channels of all groups."""
    group: int
    """Groups."""
    extents: tuple[int | None, ...]
    """Input extent per axis."""
    kernel: tuple[int, ...]
    """Taps per axis."""
    strides: tuple[int, ...]
    """Stride per axis."""
    dilations: tuple[int, ...]
    """Dilation per axis."""
    pads_begin: tuple[int | None, ...]
    """Padding before each axis, negative for a crop; `None` where SAME_* depends on an unknown extent."""
    pads_end: tuple[int | None, ...]
    """Padding after each axis, likewise."""
    auto_pad: str = "NOTSET"
    """`NOTSET`, `VALID`, `SAME_UPPER` or `SAME_LOWER`."""
    bias: bool = False
    """Whether there is a bias."""
    element: str = "float32"
    """Element type that the Conv computes in, e.g. `float32`; of QLinearConv and ConvInteger, that of the output."""
    quantized: bool = False
    """Whether it stands between DequantizeLinear and QuantizeLinear, or is a QLinearConv or ConvInteger."""
    cut: tuple[tuple[int, int], ...] = ()
    """Taps cut off at the front and the back of each axis; empty for a site of the model."""
    transposed: Transposed | None = None
    """Set for a ConvTranspose, read as a Conv of stride 1 over an input whose values its own strides have spread."""

    @property
    def rank(self) -> int:
        """Return the number of spatial axes."""
        return len(self.kernel)

    @property
    def axes(self) -> range:
        """Return the spatial axes, counted from 0."""
        return range(self.rank)

    @property
    def unknown(self) -> tuple[int, ...]:
        """Return the spatial axes whose extent is known at run time only."""
        return tuple(axis for axis in self.axes if self.extents[axis] is None)

    @property
    def spread(self) -> tuple[int, ...]:
        """Return how far apart the values of the input stand along each axis, with zeros between; 1 in a Conv."""
        return self.transposed.strides if self.transposed is not None else (1,) * self.rank

    @property
    def own_pads(self) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Return the (begin, end) pads of the node itself, of which those of a ConvTranspose crop its output."""
        if self.transposed is None:
            return self.pads_begin, self.pads_end
        begin, end = self.static_pads
        reach, more = [self.span(axis) - 1 for axis in self.axes], self.transposed.output_padding
        first = (r - pad for r, pad in zip(reach, begin, strict=True))
        return tuple(first), tuple(r - pad + a for r, pad, a in zip(reach, end, more, strict=True))

    @property
    def dilated(self) -> bool:
        """Say whether a dilation above 1 acts on a kernel axis longer than 1."""
        return self.max_dilation > 1

    @property
    def max_dilation(self) -> int:
        """Return the largest dilation that acts on a kernel axis longer than 1."""
        return acting_dilation(self.kernel, self.dilations)

    @property
    def weight_bytes(self) -> int | None:
        """Return the size of the weights in bytes, `None` when a channel count is unknown."""
        if self.in_channels is None or self.out_channels is None:
            return None
        count = self.out_channels * self.in_channels // self.group * product(self.kernel)
        if self.quantized and self.element == "int32":  # of ConvInteger, which makes int32 of 8 bits
            return count
        return count * int("".join(filter(str.isdigit, self.element))) // 8

    def span(self, axis: int) -> int:
        """Return the extent that the dilated kernel covers."""
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1

    def padded(self, axis: int) -> int | None:
        """Return the extent, spread where that is due, with its pads."""
        extent, begin, end = self.extents[axis], self.pads_begin[axis], self.pads_end[axis]
        if extent is None or begin is None or end is None:
            return None
        return (extent - 1) * self.spread[axis] + 1 + begin + end

    def out_extent(self, axis: int) -> int | None:
        """Return Ho = floor((H + p0 + p1 - d(k-1) - 1) / s) + 1, `None` when unknown."""
        padded = self.padded(axis)
        return None if padded is None else (padded - self.span(axis)) // self.strides[axis] + 1

    @property
    def out_extents(self) -> tuple[int | None, ...]:
        """Return Ho of every axis."""
        return tuple(self.out_extent(axis) for axis in self.axes)

    def malformed(self) -> str | None:
        """Return which attribute no Conv can have, whatever its input is, or `None`."""
        if self.group < 1:
            return f"group is {self.group}, not at least 1"
        if any(v < 1 for v in (*self.kernel, *self.strides, *self.dilations)):
            return f"kernel {self.kernel}, strides {self.strides} and dilations {self.dilations} must all be at least 1"
        if self.in_channels is not None and self.in_channels % self.group:
            return f"{self.in_channels} input channels are not divisible by group {self.group}"
        if self.out_channels is not None and self.out_channels % self.group:
            return f"{self.out_channels} output channels are not divisible by group {self.group}"
        if self.auto_pad not in AUTO_PADS:
            return f"auto_pad is {self.auto_pad!r}, not one of {', '.join(AUTO_PADS)}"
        return None

    def invalid(self) -> str | None:
        """Return why this is no valid Conv, or `None`; `auto_pad` is to be explicit."""
        reason = self.malformed()
        if reason:
            return reason
        for axis in self.axes:
            out = self.out_extent(axis)
            if out is not None and out < 1:
                return (
                    f"spatial axis {axis}: extent {self.extents[axis]} with pads ({self.pads_begin[axis]}, "
                    f"{self.pads_end[axis]}) is {self.padded(axis)}, less than the dilated kernel's {self.span(axis)}"
                )
            begin, end, extent = self.pads_begin[axis], self.pads_end[axis], self.extents[axis]
            crop = min(begin or 0, 0) + min(end or 0, 0)
            if extent is not None and (extent - 1) * self.spread[axis] + 1 + crop < 0:
                return f"spatial axis {axis}: pads ({begin}, {end}) crop more than the extent {extent}"
        return None

    # -- auto_pad ------------------------------------------------------------------------------------------------

    def explicit(self) -> ConvGeometry:
        """Return the geometry with `auto_pad` resolved to explicit pads on every axis whose pads are static.

        VALID is zero. SAME_* pads so that Ho = ceil(H / s), from the dilated kernel's span; with stride 1 that does not
        depend on H. An axis with stride above 1 and unknown H keeps `None` pads, and `auto_pad` stays to tell how they
        are computed at run time.
        """
        if self.auto_pad == "NOTSET":
            return self
        pads = [self._auto_pads(axis) for axis in self.axes]
        begin, end = tuple(begin for begin, _ in pads), tuple(end for _, end in pads)
        return replace(self, pads_begin=begin, pads_end=end, auto_pad=self.auto_pad if None in begin else "NOTSET")

    def _auto_pads(self, axis: int) -> tuple[int | None, int | None]:
        extent, stride = self.extents[axis], self.strides[axis]
        if self.auto_pad == "VALID":
            return 0, 0
        if stride == 1:
            total = self.span(axis) - 1
        elif extent is None:
            return None, None
        else:
            total = max((ceil_div(extent, stride) - 1) * stride + self.span(axis) - extent, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    # -- taps ----------------------------------------------------------------------------------------------------

    def taps(self, axis: int) -> Taps | None:
        """Return where each tap touches data, `None` when extent or pads are unknown or the input is spread."""
        extent, begin, out = self.extents[axis], self.pads_begin[axis], self.out_extent(axis)
        if extent is None or begin is None or out is None or self.spread[axis] > 1:
            return None
        s, d = self.strides[axis], self.dilations[axis]
        lo = tuple(max(0, ceil_div(begin - t * d, s)) for t in range(self.kernel[axis]))
        hi = tuple(min(out, (extent - 1 + begin - t * d) // s + 1) for t in range(self.kernel[axis]))
        return Taps(lo, hi)

    def multiply_adds(self) -> int | None:
        """Return the multiply-adds of one run, `None` when a size is unknown."""
        sliding = self.extents if self.transposed is not None else self.out_extents
        sizes = (self.batch, self.in_channels, self.out_channels, *sliding)
        known = [size for size in sizes if size is not None]
        return product(known) * product(self.kernel) // self.group if len(known) == len(sizes) else None

    def data_share(self) -> float | None:
        """Return the share of the multiply-adds that touch data, not padding; `None`: no output, or unknown.

        Of a ConvTranspose, which adds each product to an output or drops it: 1.
        """
        share = 1.0
        if self.transposed is not None:
            return None if self.unknown else share
        for axis in self.axes:
            taps, out = self.taps(axis), self.out_extent(axis)
            if taps is None or out is None or out < 1:
                return None
            share *= taps.touching() / (self.kernel[axis] * out)
        return share

    @property
    def dead(self) -> bool:
        """Say whether no tap touches data at all: the output is the bias."""
        return any(
            (taps := self.taps(axis)) is not None and not any(map(taps.live, range(self.kernel[axis])))
            for axis in self.axes
        )

    def pruned(self) -> ConvGeometry:
        """Return the geometry without the dead taps at either end of each axis; `cut` says how many went.

        Dead taps between live ones stay (they exist with strides). An axis with unknown extent or pads is left alone,
        and so is everything when no tap is live (see `dead`). The pads change with the taps: p0 by -d per tap cut in
        front, p1 by -d per tap cut at the back, so either may become negative, and Ho stays.
        """
        cut = tuple(map(self._dead_ends, self.axes))
        kernel = tuple(k - front - back for k, (front, back) in zip(self.kernel, cut, strict=True))
        fronts, backs = ([d * taps[side] for d, taps in zip(self.dilations, cut, strict=True)] for side in (0, 1))
        return replace(
            self,
            kernel=kernel,
            dilations=tuple(d if k > 1 else 1 for d, k in zip(self.dilations, kernel, strict=True)),
            pads_begin=tuple(p if p is None else p - gone for p, gone in zip(self.pads_begin, fronts, strict=True)),
            pads_end=tuple(p if p is None else p - gone for p, gone in zip(self.pads_end, backs, strict=True)),
            cut=cut,
        )

    def _dead_ends(self, axis: int) -> tuple[int, int]:
        """Return how many taps go at the front and the back of an axis."""
        taps = None if self.dead else self.taps(axis)
        live = [] if taps is None else [t for t in range(self.kernel[axis]) if taps.live(t)]
        return (live[0], self.kernel[axis] - 1 - live[-1]) if live else (0, 0)

    def normal(self) -> ConvGeometry:
        """Return the geometry behind the entry of a fragment: no `auto_pad`, no negative pad.

        Negative pads have become a Slice of the input, SAME_* pads that depend on an unknown extent an explicit Pad.
        """
        extents = tuple(
            None if extent is None or begin is None or end is None else extent + min(begin, 0) + min(end, 0)
            for extent, begin, end in zip(self.extents, self.pads_begin, self.pads_end, strict=True)
        )
        return replace(
            self,
            extents=extents,
            pads_begin=tuple(max(pad or 0, 0) for pad in self.pads_begin),
            pads_end=tuple(max(pad or 0, 0) for pad in self.pads_end),
            auto_pad="NOTSET",
        )

    @property
    def static_pads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (begin, end) pads of a normal geometry as integers."""
        begin = tuple(pad for pad in self.pads_begin if pad is not None)
        end = tuple(pad for pad in self.pads_end if pad is not None)
        assert len(begin) == len(end) == self.rank, "only a normal geometry has static pads"
        return begin, end

    @property
    def window(self) -> Window:
        """Return the window of a normal geometry."""
        begin, end = self.static_pads
        return Window(kernel=self.kernel, strides=self.strides, dilations=self.dilations, begin=begin, end=end)

    # -- phases --------------------------------------------------------------------------------------------------

    def phases(self, axis: int, limit: Limit = 1) -> Phases:
        """Return how `axis` is split so that no dilation remains but those that `limit` allows.

        With g = gcd(s, d), s' = s/g, d' = d/g: the samples are thinned by g, and the block is the smallest divisor b of
        d' whose residual dilation d'/b may stay.
        """
        s, d = self.strides[axis], self.dilations[axis]
        if self.kernel[axis] == 1 or allows(limit, d):
            return Phases(grain=1, block=1, stride=s, dilation=d)
        grain = math.gcd(s, d)
        rest = d // grain
        block = least_divisor(rest, limit)
        return Phases(grain=grain, block=block, stride=s // grain, dilation=rest // block)

    def overlapping(self, limit: Limit = 1) -> int | None:
        """Return the first axis whose phases are not disjoint (s' > 1 with a block above 1), or `None`."""
        phases = [self.phases(axis, limit) for axis in self.axes]
        return next((axis for axis, phase in enumerate(phases) if phase.stride > 1 and phase.block > 1), None)

    # -- zones ---------------------------------------------------------------------------------------------------

    def zones(self, axis: int) -> tuple[tuple[int, int, int, int], ...]:
        """Return `(start, stop, first tap, tap after the last)` of each run of outputs with the same live taps.

        The zones cover 0..Ho in order. A zone without live tap has first == after. Needs a known extent.
        """
        taps, out = self.taps(axis), self.out_extent(axis)
        assert taps is not None, "zones need a known extent"
        assert out is not None
        live = [t for t in range(self.kernel[axis]) if taps.live(t)]
        edges = sorted({0, out, *(taps.lo[t] for t in live), *(taps.hi[t] for t in live)})
        zones: list[tuple[int, int, int, int]] = []
        for start, stop in itertools.pairwise(edges):
            # Both ends fall from tap to tap, so the taps that touch data here are neighbours.
            front = bisect.bisect_left(live, -start, key=lambda t: -taps.lo[t])
            back = bisect.bisect_right(live, -stop, key=lambda t: -taps.hi[t])
            first, after = (live[front], live[back - 1] + 1) if front < back else (0, 0)
            zones.append((start, stop, first, after))
        return tuple(zones)
