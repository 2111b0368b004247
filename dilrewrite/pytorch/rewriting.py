"""Rewrites the dilated Convs of a module for training: probes the forms on an example, and takes those that win.

A Conv stays the object that it is, with its parameters, hooks and type; only what computes the convolution is set on
it (`_conv_forward`, which `torch.nn.Conv1d`, `Conv2d` and `Conv3d` call). Optimizers, state_dict keys, shared weights
and parametrizations go on as before, and copies, pickles and replicas carry the choice along. A Conv whose settings
are no longer those that a form was chosen for is computed by PyTorch, as they are now.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dilrewrite.errors import MissingError, UsageError, one_line
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import Form, geometry_of, method, methods, prepare
from dilrewrite.pytorch.probing import PASSES, Probe, preserved, step_timings
from dilrewrite.timing.stopwatch import Comparison

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_BUDGET_S = 60.0

NATIVE = "keep"

_ATTRIBUTE = "_conv_forward"

_ORDER = ("space_to_axis", "space_to_batch", "space_to_group", "tap_sum", "im2col", "slice_to_batch", "weight_gradient")
"""What is probed first: the forms that move least; a method that is not named here comes after them."""

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


@dataclass
class Chosen:
    """Computes a Conv's convolution: by the method chosen for the input's sizes, by PyTorch's own for all others.

    Holds the settings that the methods were chosen for, no parameters, so that copies and pickles of the Conv are
    independent of it. `padding`: "same", "valid", or a number for each axis; `real`: the weights were of a floating
    type, whichever, and not complex or integers. `layer` is the Conv: what is set on it now decides on every call.
    """

    layer: Any = field(repr=False, compare=False)
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    weight_shape: tuple[int, ...]
    real: bool
    choices: dict[Bucket, str]

    @staticmethod
    def of(layer: Any, choices: Mapping[Bucket, str]) -> Chosen:
        """Return what computes the convolution of a Conv."""
        weight_shape = tuple(layer.weight.shape)
        rank = len(weight_shape) - 2
        return Chosen(
            layer=layer,
            stride=each(layer.stride, rank),
            padding=each(layer.padding, rank),
            dilation=each(layer.dilation, rank),
            groups=layer.groups,
            weight_shape=weight_shape,
            real=layer.weight.is_floating_point(),
            choices=dict(choices),
        )

    def __post_init__(self) -> None:
        _known_to_compiler()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled or copied."""
        self.__dict__.update(state)
        _known_to_compiler()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for an input with or without a batch."""
        import torch

        rank = len(self.stride)
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
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = _cast(x, kind), _cast(weight, kind), bias if bias is None else _cast(bias, kind)
        if not batched:
            x = x.unsqueeze(0)
        y = _formed(x, weight, bias, name, self.stride, self.padding, self.dilation, self.groups)
        return y if batched else y.squeeze(0)

    def fits(self, weight: Tensor) -> bool:
        """Say whether the Conv, with this weight, is still set as when the methods were chosen."""
        layer, rank = self.layer, len(self.stride)
        return (
            layer.padding_mode == "zeros"
            and each(layer.stride, rank) == self.stride
            and each(layer.padding, rank) == self.padding
            and each(layer.dilation, rank) == self.dilation
            and layer.groups == self.groups
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


def _native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    from torch.nn import functional

    run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(stride) - 1]
    y: Tensor = run(x, weight, bias, stride, padding, dilation, groups)
    return y


def _formed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    name: str,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return the output by a method; by PyTorch's own where it does not apply to the very sizes."""
    geometry = geometry_of(
        tuple(map(int, x.shape)),
        tuple(weight.shape),
        stride=stride,
        padding=spelled_out(padding, tuple(weight.shape[2:]), dilation),
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    # Where channels or types do not fit together, the error is to be PyTorch's.
    fits = x.shape[1] == weight.shape[1] * groups and x.dtype == weight.dtype
    fits = fits and (bias is None or bias.dtype == weight.dtype)
    form = _form(name, geometry) if fits else None
    return _native(x, weight, bias, stride, padding, dilation, groups) if form is None else form(x, weight, bias)


@functools.lru_cache(maxsize=4096)
def _form(name: str, geometry: ConvGeometry) -> Form | None:
    """Return what computes a convolution of this geometry by a method, or None where it does not apply."""
    try:
        return prepare(name, geometry)
    except UsageError:
        return None


@functools.cache
def _known_to_compiler() -> None:
    """Let torch.compile take `_formed` as a whole: planning is not to be compiled, what it comes to is."""
    _torch().compiler.allow_in_graph(_formed)


# -- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """One Conv with a dilation: its name, what computes it now, and why.

    `forms`: each form's time against the native one for the passes asked for; `refused`: forms that do not apply.
    """

    name: str
    method: str
    reason: str
    shape: tuple[int, ...] = ()
    element: str = ""
    forms: Mapping[str, Comparison] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """What `rewrite_module` did. `probe_s`: seconds it took; `whole`: the module before (first) and after (second).

    `break_even_steps`: after so many steps the probing is paid back; `None` when nothing was gained.
    """

    layers: tuple[LayerChoice, ...]
    passes: tuple[str, ...]
    probe_s: float
    whole: Comparison | None = None
    break_even_steps: int | None = None

    @property
    def rewritten(self) -> int:
        """Return the number of Convs that another form computes now."""
        return sum(layer.method != NATIVE for layer in self.layers)


# -- rewriting -------------------------------------------------------------------------------------------------------


def rewrite_module(
    module: nn.Module,
    example_input: Any,
    *,
    passes: Sequence[str] = PASSES,
    budget: float = DEFAULT_BUDGET_S,
    only: Sequence[str] | None = None,
    timings: Callable[..., Comparison] | None = None,
) -> Rewriting:
    """Let every Conv with a dilation be computed by the form that is fastest on the example's shapes, where one wins.

    `example_input`: what the module is called with, a tensor or a tuple of arguments; it is run once, as the module is
    used now (training mode, autocast, device). `passes`: what is to be fast, of "forward" and "backward". `budget`:
    seconds for probing, a third of them for the whole module; 0 changes nothing. `only`: names of methods to probe.
    Each form is timed in pairs against PyTorch's own, which keeps ties; then the module as a whole, and where that is
    not faster everything is as before. Choices hold for inputs of about the example's sizes; a further call with
    another example adds to them. Returns what was chosen and why. `restore_module` undoes it.
    Raises `UsageError` for unknown passes or methods, `MissingError` without torch.
    """
    _torch()
    wrong = [name for name in passes if name not in PASSES]
    if wrong or not passes:
        raise UsageError(f"passes {', '.join(wrong) or 'are empty'}: not some of {', '.join(PASSES)}")
    for name in only or ():
        method(name)
    if not 0 <= budget < math.inf:
        raise UsageError(f"budget {budget}: a finite number of seconds of at least 0 is needed")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    found: list[LayerChoice] = []
    dilated = [(name, layer) for name, layer in module.named_modules() if _is_dilated(layer)]
    order = {name: place for place, (name, _) in enumerate(dilated)}
    candidates = []
    for name, layer in dilated:
        why = _left_alone(layer)
        if why is not None:
            found.append(LayerChoice(name=name, method=NATIVE, reason=why))
        else:
            candidates.append((name, layer))
    if budget == 0:
        found += [LayerChoice(name=name, method=NATIVE, reason="not probed: budget 0") for name, _ in candidates]
    if budget == 0 or not candidates:
        found.sort(key=lambda choice: order[choice.name])
        return Rewriting(layers=tuple(found), passes=tuple(passes), probe_s=0.0)
    _known_to_compiler()  # loads much when it is first called, and is no probing
    start = time.perf_counter()
    compare = timings or step_timings
    offered = [name for name in _ORDER if name in methods() and (only is None or name in only)]
    offered += [name for name in methods() if name not in (*_ORDER, NATIVE) and (only is None or name in only)]
    before = {id(layer): _choices(layer) for _, layer in candidates}
    whole: Comparison | None = None
    try:
        with preserved(module):
            seen = _shapes(module, arguments, [layer for _, layer in candidates])
            chosen = _probe_all(candidates, seen, offered, tuple(passes), start + budget * 2 / 3, compare)
            # What was chosen for these sizes before is chosen anew.
            plain = {key: _without(old, seen.get(key)) for key, old in before.items()}
            fast = {
                id(layer): _with(layer, plain[id(layer)], seen.get(id(layer)), choice)
                for (_, layer), choice in zip(candidates, chosen, strict=True)
            }
            layers = [layer for _, layer in candidates]
            if any(choice.method != NATIVE for choice in chosen):
                why = "not timed"
                try:
                    whole = compare(
                        Probe.of_module(module, arguments, prepare=lambda: _set_all(layers, plain)),
                        Probe.of_module(module, arguments, prepare=lambda: _set_all(layers, fast)),
                        tuple(passes),
                        max(start + budget - time.perf_counter(), 0.5),
                        whole=True,
                    )
                    why = f"the whole module takes {whole.ratio:.2f} with it, not faster beyond noise"
                except RuntimeError as error:  # out of memory, or no gradient to ask for
                    why = f"the whole module could not be timed: {_line(error)}"
                if whole is None or not whole.faster:
                    fast = plain
                    chosen = [_not_confirmed(choice, why) for choice in chosen]
            _set_all(layers, fast)
    except BaseException:
        _set_all([layer for _, layer in candidates], before)
        raise
    found += chosen
    found.sort(key=lambda choice: order[choice.name])
    probe_s = time.perf_counter() - start
    gained = whole.first.median_s - whole.second.median_s if whole is not None and whole.faster else 0.0
    return Rewriting(
        layers=tuple(found),
        passes=tuple(passes),
        probe_s=probe_s,
        whole=whole,
        break_even_steps=math.ceil(probe_s / gained) if gained > 0 else None,
    )


def restore_module(module: nn.Module) -> int:
    """Let PyTorch compute every Conv of a module again; return how many were rewritten."""
    count = 0
    for layer in module.modules():
        if isinstance(layer.__dict__.get(_ATTRIBUTE), Chosen):
            del layer.__dict__[_ATTRIBUTE]
            count += 1
    return count


# -- parts -----------------------------------------------------------------------------------------------------------


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"torch is not installed: {error}", hint="pip install 'dilrewrite[torch]'") from error
    return torch


def _is_dilated(layer: Any) -> bool:
    nn = _torch().nn
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    kernel = tuple(layer.kernel_size) if _is_lazy(layer) else layer.weight.shape[2:]
    return any(d > 1 and k > 1 for d, k in zip(each(layer.dilation, len(kernel)), kernel, strict=False))


def _is_lazy(layer: Any) -> bool:
    return isinstance(layer, _torch().nn.modules.lazy.LazyModuleMixin)


def _left_alone(layer: Any) -> str | None:
    """Return why a Conv is not to be rewritten, or None."""
    torch = _torch()
    nn = torch.nn
    kind = type(layer)
    if _is_lazy(layer):
        return "it is lazy, and its sizes are not known: run it once before"
    if torch.nn.utils.parametrize.is_parametrized(layer):
        kind = kind.__bases__[0]
    if kind not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return f"it is a {kind.__name__}, which may compute something else"
    if layer.padding_mode != "zeros":
        return f"padding_mode is {layer.padding_mode!r}, not 'zeros'"
    own = layer.__dict__.get(_ATTRIBUTE)
    if own is not None and not isinstance(own, Chosen):
        return "something else computes its convolution already"
    return None


def spelled_out(
    padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the (begin, end) pads of a Conv; padding='same' puts the odd one at the end, as PyTorch does."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((int(pad), int(pad)) for pad in padding)


@dataclass(frozen=True, slots=True)
class Call:
    """How a Conv was called: the input's shape and element type, whether it wants a gradient, device and autocast."""

    shape: tuple[int, ...]
    element: str
    needs_grad: bool
    device: str
    autocast: str | None
    channels_last: bool

    def geometry(self, layer: Any) -> ConvGeometry:
        """Return the geometry of the Conv on this input."""
        shape = tuple(layer.weight.shape)
        settings = (layer.stride, layer.padding, layer.dilation)
        stride, padding, dilation = (each(setting, len(shape) - 2) for setting in settings)
        return geometry_of(
            self.shape,
            shape,
            stride=stride,
            padding=spelled_out(padding, shape[2:], dilation),
            dilation=dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
        )


def _shapes(module: Any, arguments: tuple[Any, ...], layers: Sequence[Any]) -> dict[int, Call]:
    """Run the module once and return how each Conv was called; the first call counts."""
    torch = _torch()
    found: dict[int, Call] = {}

    def seen(layer: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        x = inputs[0] if inputs else named["input"]
        batched = x.dim() == len(layer.kernel_size) + 2
        kind = x.device.type
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim()) if batched else None
        casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
        found.setdefault(
            id(layer),
            Call(
                shape=tuple(x.shape) if batched else (1, *x.shape),
                element=str(x.dtype).removeprefix("torch."),
                needs_grad=bool(x.requires_grad),
                device=str(x.device),
                autocast=str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if casts else None,
                channels_last=last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous(),
            ),
        )

    handles = [layer.register_forward_pre_hook(seen, with_kwargs=True) for layer in layers]
    try:
        module(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _probe_all(
    candidates: Sequence[tuple[str, Any]],
    seen: Mapping[int, Call],
    offered: Sequence[str],
    passes: tuple[str, ...],
    until: float,
    compare: Callable[..., Comparison],
) -> list[LayerChoice]:
    """Probe every Conv until the clock shows `until`; what is alike is probed once."""
    known: dict[object, LayerChoice] = {}
    chosen = []
    for number, (name, layer) in enumerate(candidates):
        call = seen.get(id(layer))
        if call is None:
            chosen.append(LayerChoice(name=name, method=NATIVE, reason="it did not run on the example"))
            continue
        key = (call.geometry(layer), call, layer.weight.requires_grad)
        if key not in known:
            left = max(until - time.perf_counter(), 0.0) / (len(candidates) - number)
            known[key] = _probe(name, layer, call, offered, passes, left, compare)
        chosen.append(replace(known[key], name=name))
    return chosen


def _probe(
    name: str,
    layer: Any,
    call: Call,
    offered: Sequence[str],
    passes: tuple[str, ...],
    seconds: float,
    compare: Callable[..., Comparison],
) -> LayerChoice:
    """Time every form against the native one; the fastest that wins is taken."""
    geometry = call.geometry(layer)
    refused = {}
    forms: dict[str, Comparison] = {}
    wanted = []
    for candidate in offered:
        why = method(candidate).refusal(geometry)
        if why is not None:
            refused[candidate] = why
        else:
            wanted.append(candidate)
    failed: dict[str, str] = {}
    until = time.perf_counter() + seconds
    for place, candidate in enumerate(wanted):
        left = (until - time.perf_counter()) / (len(wanted) - place)
        if left <= 0.02:
            failed[candidate] = "not probed: budget"
            continue
        try:
            forms[candidate] = compare(
                Probe.of_conv(layer, call, NATIVE), Probe.of_conv(layer, call, candidate), passes, left
            )
        except RuntimeError as error:  # out of memory, or an operator that the device does not have
            failed[candidate] = f"failed: {_line(error)}"
    winners = [candidate for candidate, timing in forms.items() if timing.faster]
    best = min(winners, key=lambda candidate: forms[candidate].ratio, default=NATIVE)
    if best != NATIVE:
        reason = f"{best} takes {forms[best].ratio:.2f} of the native time"
    elif forms:
        nearest = min(forms, key=lambda candidate: forms[candidate].ratio)
        reason = f"no form is faster beyond noise: {nearest} takes {forms[nearest].ratio:.2f} of the native time"
    elif failed:
        reason = next(iter(failed.values()))
    else:
        reason = "no form applies"
    return LayerChoice(
        name=name,
        method=best,
        reason=reason,
        shape=call.shape,
        element=call.autocast or call.element,
        forms=forms,
        refused={**refused, **failed},
    )


def _choices(layer: Any) -> Chosen | None:
    """Return what was chosen for a Conv as it is set now, if anything."""
    found = layer.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Chosen) and found.layer is layer and found.fits(layer.weight) else None


def choose(layer: Any, shape: Sequence[int], name: str) -> None:
    """Let inputs of about this shape be computed by a method, beside what was chosen for others."""
    old = _choices(layer)
    choices = old.choices if old is not None else {}
    layer.__dict__[_ATTRIBUTE] = Chosen.of(layer, {**choices, bucket(shape): name})


def _without(old: Chosen | None, call: Call | None) -> Chosen | None:
    """Return what was chosen before, without what was for inputs like this call's; None when nothing is left."""
    if old is None or call is None:
        return old
    choices = {sizes: name for sizes, name in old.choices.items() if sizes != bucket(call.shape)}
    return replace(old, choices=choices) if choices else None


def _with(layer: Any, old: Chosen | None, call: Call | None, choice: LayerChoice) -> Chosen | None:
    """Return what was chosen before, and what is chosen now."""
    if call is None or choice.method == NATIVE:
        return old
    return Chosen.of(layer, {**(old.choices if old is not None else {}), bucket(call.shape): choice.method})


def _set_all(layers: Sequence[Any], wanted: Mapping[int, Chosen | None]) -> None:
    for layer in layers:
        chosen = wanted[id(layer)]
        if chosen is None:
            layer.__dict__.pop(_ATTRIBUTE, None)
        else:
            layer.__dict__[_ATTRIBUTE] = chosen


def _not_confirmed(choice: LayerChoice, why: str) -> LayerChoice:
    if choice.method == NATIVE:
        return choice
    return replace(choice, method=NATIVE, reason=f"{choice.reason}, but {why}")


def _line(error: Exception) -> str:
    return one_line(error)[:200]
