"""What computes the convolution of a rewritten Conv: the methods chosen for it, each for inputs of some sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dilrewrite.errors import MissingError, UsageError
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import Form, geometry_of, prepare

if TYPE_CHECKING:
    from torch import Tensor

NATIVE = "keep"

ATTRIBUTE = "_conv_forward"
"""What is set on a Conv."""

Bucket = tuple[int, ...]


def bucket(shape: Sequence[int]) -> Bucket:
    """Return what inputs are held for alike: batch and every extent rounded up to a power of two."""
    sizes = (shape[0], *shape[2:])
    return tuple(1 << math.ceil(math.log2(size)) if size > 1 else 1 for size in sizes)


def each(setting: Any, rank: int) -> Any:
    """Return a Conv's stride, padding or dilation with a number for each axis: PyTorch takes one for all, and lists."""
    if isinstance(setting, str):
        return setting
    numbers = tuple(setting) if isinstance(setting, list | tuple) else (setting,)
    return numbers * rank if len(numbers) == 1 else numbers


class Settings(NamedTuple):
    """How a Conv is set: `padding` is "same", "valid", or a number for each axis, as stride and dilation are.

    `mode`: its `padding_mode`; where that is not "zeros", `margins` are what it pads before it convolves, as
    `torch.nn.functional.pad` takes them, and the convolution itself has `padding` 0.
    """

    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    mode: str = "zeros"
    margins: tuple[int, ...] = ()

    @staticmethod
    def of(layer: Any, rank: int) -> Settings:
        """Return the settings of a Conv as it is now."""
        stride, dilation = each(layer.stride, rank), each(layer.dilation, rank)
        if layer.padding_mode == "zeros":
            return Settings(stride, each(layer.padding, rank), dilation, layer.groups)
        margins = tuple(layer._reversed_padding_repeated_twice)
        return Settings(stride, (0,) * rank, dilation, layer.groups, layer.padding_mode, margins)

    def padded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape [N, C, *extents] of an input when its margins are there."""
        ends = [(0, 0)] * (len(shape) - len(self.margins) // 2)
        ends += reversed([*zip(self.margins[::2], self.margins[1::2], strict=True)])
        return tuple(size + begin + end for size, (begin, end) in zip(shape, ends, strict=True))

    def pads(self, kernel: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the (begin, end) pads; padding='same' puts the odd one at the end, as PyTorch does."""
        if self.padding == "valid":
            return ((0, 0),) * len(kernel)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((int(pad), int(pad)) for pad in self.padding)

    def geometry(self, x: Sequence[int], weight: Sequence[int], *, bias: bool) -> ConvGeometry:
        """Return the geometry of the convolution on an input and with a weight of these shapes, the margins added."""
        return geometry_of(
            self.padded(x),
            weight,
            stride=self.stride,
            padding=self.pads(weight[2:]),
            dilation=self.dilation,
            groups=self.groups,
            bias=bias,
        )


@dataclass
class Chosen:
    """Computes a Conv's convolution: by the method chosen for the input's sizes, by PyTorch's own for all others.

    Holds the settings that the methods were chosen for, no parameters, so that copies and pickles of the Conv are
    independent of it. `real`: the weights were of a floating type, whichever, and not complex or integers. `layer` is
    the Conv: what is set on it now decides on every call.
    """

    layer: Any = field(repr=False, compare=False)
    settings: Settings
    weight_shape: tuple[int, ...]
    real: bool
    choices: dict[Bucket, str]

    @staticmethod
    def of(layer: Any, choices: Mapping[Bucket, str]) -> Chosen:
        """Return what computes the convolution of a Conv."""
        weight_shape = tuple(layer.weight.shape)
        return Chosen(
            layer=layer,
            settings=Settings.of(layer, len(weight_shape) - 2),
            weight_shape=weight_shape,
            real=layer.weight.is_floating_point(),
            choices=dict(choices),
        )

    def __post_init__(self) -> None:
        known_to_compiler()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled or copied."""
        self.__dict__.update(state)
        known_to_compiler()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for an input with or without a batch."""
        import torch

        rank = len(self.weight_shape) - 2
        batched = x.dim() == rank + 2
        name = NATIVE
        # An exported graph serves all sizes: there the native form stays.
        jit: Any = torch.jit
        exported = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or jit.is_tracing()
        if not exported and x.dim() in (rank + 1, rank + 2) and self.fits(weight):
            name = self.choice((*x.shape,) if batched else (1, *x.shape))
        if name == NATIVE:
            y: Tensor = type(self.layer)._conv_forward(self.layer, x, weight, bias)
            return y
        if self.settings.margins:
            x = torch.nn.functional.pad(x, self.settings.margins, mode=self.settings.mode)
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = _cast(x, kind), _cast(weight, kind), bias if bias is None else _cast(bias, kind)
        if not batched:
            x = x.unsqueeze(0)
        y = _formed(x, weight, bias, name, self.settings)
        return y if batched else y.squeeze(0)

    def fits(self, weight: Tensor) -> bool:
        """Say whether the Conv, with this weight, is still set as when the methods were chosen."""
        return (
            Settings.of(self.layer, len(self.weight_shape) - 2) == self.settings
            and weight.shape == self.weight_shape
            and weight.is_floating_point() == self.real
        )

    def choice(self, shape: Sequence[int]) -> str:
        """Return the method for an input of this shape."""
        sizes = (shape[0], *shape[2:])
        # Compared, not looked up: a compiled graph is then good for all sizes of a bucket, or for all outside.
        for ends, name in self.choices.items():
            if all(end // 2 < size <= end for size, end in zip(sizes, ends, strict=True)):
                return name
        return NATIVE


def _cast(x: Tensor, kind: Any) -> Tensor:
    """Return a tensor as autocast gives it to PyTorch's own convolution: float64 stays."""
    import torch

    return x.to(kind) if x.is_floating_point() and x.dtype != torch.float64 else x


def _formed(x: Tensor, weight: Tensor, bias: Tensor | None, name: str, settings: Settings) -> Tensor:
    """Return the output by a method, laid out in memory as PyTorch's own; by that where the method does not apply.

    The input has its margins.
    """
    plain = settings._replace(margins=())
    geometry = plain.geometry(tuple(map(int, x.shape)), tuple(weight.shape), bias=bias is not None)
    # Where channels or types do not fit together, the error is to be PyTorch's.
    fits = x.shape[1] == weight.shape[1] * settings.groups and x.dtype == weight.dtype
    fits = fits and (bias is None or bias.dtype == weight.dtype)
    form = _form(name, geometry) if fits else None
    if form is not None:
        return _laid_out(form(x, weight, bias), x, weight)
    from torch.nn import functional

    run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(settings.stride) - 1]
    y: Tensor = run(x, weight, bias, settings.stride, settings.padding, settings.dilation, settings.groups)
    return y


def _laid_out(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the output, in memory as that of PyTorch's own convolution is: what follows may take `y.view(...)`.

    It is channels last where input or weight is, but for types that its kernels for this do not take: on the CPU in
    3-D those of oneDNN, which take float16 on some processors only.
    """
    import torch

    on_cpu = x.device.type == "cpu"
    without = _not_by_onednn() if on_cpu and x.dim() == 5 else () if on_cpu else (torch.float64,)
    if x.dim() < 4 or x.dtype in without or not (_is_channels_last(x) or _is_channels_last(weight)):
        return y.contiguous()
    return y.movedim(1, -1).contiguous().movedim(-1, 1)  # torch.vmap knows no other way


@functools.lru_cache(maxsize=1)
def _not_by_onednn() -> tuple[object, ...]:
    """Return the real types of which oneDNN runs no convolution on this processor."""
    import torch

    half = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return (torch.float64,) if half else (torch.float64, torch.float16)


def _is_channels_last(x: Tensor) -> bool:
    """Say whether strides are those of channels last, as PyTorch decides it; they may have gaps."""
    least, strides = 0, x.stride()
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        if not strides[axis] or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(x.shape[axis], 1)
    return True


@functools.lru_cache(maxsize=4096)
def _form(name: str, geometry: ConvGeometry) -> Form | None:
    """Return what computes a convolution of this geometry by a method, or None where it does not apply."""
    try:
        return prepare(name, geometry)
    except UsageError:
        return None


@functools.cache
def known_to_compiler() -> None:
    """Let torch.compile take `_formed` as a whole: planning is not to be compiled, what it comes to is."""
    torch_module().compiler.allow_in_graph(_formed)


def torch_module() -> Any:
    """Return torch; raises `MissingError` without it."""
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"torch is not installed: {error}", hint="pip install 'dilrewrite[torch]'") from error
    return torch


@dataclass(frozen=True, slots=True)
class Call:
    """How a Conv's convolution was called.

    The input's shape [N, C, *extents] before margins, its element type and the weight's, whether it wants a gradient,
    device and autocast.
    """

    shape: tuple[int, ...]
    element: str
    weight_element: str
    needs_grad: bool
    device: str
    autocast: str | None
    channels_last: bool

    def geometry(self, layer: Any) -> ConvGeometry:
        """Return the geometry of the Conv on this input."""
        weight = tuple(layer.weight.shape)
        return Settings.of(layer, len(weight) - 2).geometry(self.shape, weight, bias=layer.bias is not None)


def choices_of(layer: Any) -> Chosen | None:
    """Return what was chosen for a Conv as it is set now, if anything."""
    own = layer.__dict__.get(ATTRIBUTE)
    return own if isinstance(own, Chosen) and own.layer is layer and own.fits(layer.weight) else None


def added(layer: Any, old: Chosen | None, shape: Sequence[int], name: str) -> Chosen:
    """Return what was chosen for a Conv, and a method for inputs of about this shape."""
    return Chosen.of(layer, {**(old.choices if old is not None else {}), bucket(shape): name})


def choose(layer: Any, shape: Sequence[int], name: str) -> None:
    """Let inputs of about this shape be computed by a method, beside what was chosen for others."""
    layer.__dict__[ATTRIBUTE] = added(layer, choices_of(layer), shape, name)
