"""Says which dilated convolutions of a module can be rewritten and how an example calls them, or why they cannot be."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dilrewrite.errors import UsageError
from dilrewrite.pytorch.chosen import ATTRIBUTE, Call, Chosen, each, torch_module

if TYPE_CHECKING:
    from torch import nn

_DILATIONS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), 5),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 7),
}
"""PyTorch's functions that convolve, and the place of `dilation` among their arguments."""

_GIVEN = "arguments are a tuple, those by name are kwargs={...}"


@dataclass(frozen=True, slots=True)
class Example:
    """What a module is called with: arguments by place and by name."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    @staticmethod
    def of(module: nn.Module, given: Any, named: Mapping[str, Any] | None) -> Example:
        """Return the example that a user gave: a tuple is all arguments by place, anything else is the only one.

        Raises `UsageError` where the module's `forward` does not take such arguments.
        """
        found = Example(given if isinstance(given, tuple) else (given,), dict(named or {}))
        try:
            signature = inspect.signature(module.forward)
        except (TypeError, ValueError):  # a scripted module has none that Python can read
            return found
        try:
            signature.bind(*found.arguments, **found.named)
        except TypeError as error:
            message = f"the example does not fit {type(module).__name__}.forward: {error}"
            raise UsageError(message, hint=_GIVEN) from error
        return found

    def run(self, module: nn.Module) -> Any:
        """Return what the module makes of it."""
        return module(*self.arguments, **self.named)


# -- what there is ---------------------------------------------------------------------------------------------------


def dilated(module: nn.Module) -> dict[str, tuple[Any, str]]:
    """Return every module with a dilation by its name, and why it is left alone: empty where it can be rewritten."""
    found: dict[str, tuple[Any, str]] = {}
    compiled: list[str] = []
    scripted: list[str] = []
    for name, layer in module.named_modules():
        if _within(name, scripted):
            continue
        if isinstance(layer, torch_module().jit.ScriptModule):
            scripted.append(name)
            if any(map(_is_scripted_conv, layer.modules())):
                found[name] = (layer, "it is scripted or traced: rewrite the module that it was made from")
            continue
        if getattr(layer, "_orig_mod", None) is not None or getattr(layer, "_compiled_call_impl", None) is not None:
            compiled.append(name)
        if _is_dilated(layer):
            why = "it is compiled: call rewrite_module before torch.compile" if _within(name, compiled) else ""
            found[name] = (layer, why or _left_alone(layer))
    return found


def _within(name: str, outer: Sequence[str]) -> bool:
    return any(name == one or not one or name.startswith(f"{one}.") for one in outer)


def _convs() -> tuple[Any, ...]:
    nn = torch_module().nn
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _transposed() -> tuple[Any, ...]:
    nn = torch_module().nn
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _is_dilated(layer: Any) -> bool:
    kinds: Any = (*_convs(), *_transposed())
    if not isinstance(layer, kinds):
        return False
    kernel = tuple(layer.kernel_size) if _is_lazy(layer) else layer.weight.shape[2:]
    return _spreads(layer.dilation, kernel)


def _spreads(dilation: Any, kernel: Sequence[int]) -> bool:
    """Say whether a dilation moves any tap of a kernel."""
    return any(d > 1 and k > 1 for d, k in zip(each(dilation, len(kernel)), kernel, strict=False))


def _is_lazy(layer: Any) -> bool:
    return isinstance(layer, torch_module().nn.modules.lazy.LazyModuleMixin)


def _is_scripted_conv(layer: Any) -> bool:
    """Say whether a part of a scripted module is a Conv with a dilation; one that was traced hides its dilation."""
    if "Conv" not in str(getattr(layer, "original_name", "")) or any(True for _ in layer.children()):
        return False
    dilation, kernel = (getattr(layer, name, None) for name in ("dilation", "kernel_size"))
    return dilation is None or kernel is None or _spreads(dilation, kernel)


def _left_alone(layer: Any) -> str:
    """Return why a Conv is not to be rewritten, and what to do; empty where it can be."""
    kind = type(layer)
    if torch_module().nn.utils.parametrize.is_parametrized(layer):
        kind = kind.__bases__[0]
    if isinstance(layer, _transposed()):
        return f"it is a {kind.__name__}: only Conv1d, Conv2d and Conv3d are rewritten"
    if _is_lazy(layer):
        return "it is lazy, and its sizes are not known: run the module once before"
    if kind._conv_forward not in [conv._conv_forward for conv in _convs()]:
        return f"{kind.__name__} has a _conv_forward of its own: do that in forward, and call super().forward(x) there"
    own = layer.__dict__.get(ATTRIBUTE)
    if own is not None and not isinstance(own, Chosen):
        return "something else has set its _conv_forward: delete that attribute before"
    return ""


# -- how it is called ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Survey:
    """What an example's run showed.

    `calls`: how each Conv was called, by its `id`, the first call counts. `missed`: why a Conv has none, and what to
    do. `functions`: the name of the module that called a convolution with a dilation as a function, and what to do.
    """

    calls: dict[int, Call] = field(default_factory=dict)
    missed: dict[int, str] = field(default_factory=dict)
    functions: list[tuple[str, str]] = field(default_factory=list)


def survey(module: nn.Module, example: Example, layers: Sequence[Any], alone: Sequence[Any]) -> Survey:
    """Run the module once, and return how each of these Convs was called; `alone` are those that are left as they are.

    A Conv is watched where it convolves: what its class does before and after, such as padding, is its own.
    """
    found = Survey()
    own = {id(layer): layer.__dict__.get(ATTRIBUTE) for layer in layers}
    ran: set[int] = set()
    handles = [layer.register_forward_pre_hook(lambda layer, _: ran.add(id(layer))) for layer in layers]
    watch = _Watch(found, {id(part): name for name, part in module.named_modules()}, layers, alone)
    try:
        for layer in layers:
            inner = own[id(layer)] or functools.partial(type(layer)._conv_forward, layer)
            layer.__dict__[ATTRIBUTE] = functools.partial(watch.convolve, layer, inner)
        with _eager(), watch.functions():
            example.run(module)
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.__dict__.pop(ATTRIBUTE)
            if own[id(layer)] is not None:
                layer.__dict__[ATTRIBUTE] = own[id(layer)]
    for layer in layers:
        if id(layer) not in found.calls and id(layer) not in found.missed:
            found.missed[id(layer)] = (
                f"the forward of {type(layer).__name__} does not convolve here: call super().forward(x) there"
                if id(layer) in ran
                else "it did not run on the example: take one that reaches it"
            )
    return found


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Let parts that are compiled run as they were written, where torch can (from 2.6 on)."""
    stance = getattr(torch_module().compiler, "set_stance", None)
    context: contextlib.AbstractContextManager[Any] = stance("force_eager") if stance else contextlib.nullcontext()
    return context


class _Watch:
    """Watches what convolves while an example runs, and writes it into a survey."""

    def __init__(self, found: Survey, names: Mapping[int, str], layers: Sequence[Any], alone: Sequence[Any]) -> None:
        self._found = found
        self._names = names
        self._layers = {id(layer): layer for layer in layers}
        self._alone = {id(layer) for layer in alone}
        self._inside = False

    def convolve(self, layer: Any, inner: Callable[..., Any], x: Any, weight: Any, bias: Any) -> Any:
        """Stand for a Conv's convolution: note the call, and compute it as before."""
        if weight.shape == layer.weight.shape:
            self._found.calls.setdefault(id(layer), call_of(layer, x, weight))
        else:
            shapes = " instead of ".join(str(tuple(one.shape)) for one in (weight, layer.weight))
            self._found.missed[id(layer)] = f"it convolves with a weight of shape {shapes}: keep the shape"
        self._inside = True
        try:
            return inner(x, weight, bias)
        finally:
            self._inside = False

    @contextlib.contextmanager
    def functions(self) -> Iterator[None]:
        """See the convolutions that are called as functions."""
        from torch.overrides import TorchFunctionMode

        watch = self

        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                watch.called(str(getattr(func, "__name__", "")).split(".")[0], args, kwargs or {})
                return func(*args, **(kwargs or {}))

        with Mode():
            yield

    def called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note a convolution with a dilation that no Conv module makes."""
        place = _DILATIONS.get(name)
        if place is None or self._inside:
            return
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        dilation = args[place] if len(args) > place else kwargs.get("dilation", 1)
        if not _spreads(dilation, weight.shape[2:]):
            return
        owner, line = _caller(self._names)
        holders = (one for one in self._layers.values() if one._parameters.get("weight") is weight)
        layer = next(holders, self._layers.get(id(owner)))
        if layer is not None:
            self._found.missed.setdefault(id(layer), f"{name} is called as a function at {line}: {_METHODS}")
        elif id(owner) not in self._alone:
            said = (self._names.get(id(owner), ""), f"{name} is called as a function at {line}: {_MODULES}")
            if said not in self._found.functions:
                self._found.functions.append(said)


_METHODS = "call super().forward(x), or self._conv_forward(x, self.weight, self.bias)"
_MODULES = "only modules are rewritten, such as torch.nn.Conv1d"


def _caller(names: Mapping[int, str]) -> tuple[Any, str]:
    """Return the module in whose method a function of torch was called, and the file's name and line."""
    torch = str(Path(torch_module().__file__).parent)
    frame: FrameType | None = sys._getframe(3)  # above this, `called` and the mode
    line = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not line and not file.startswith(torch):
            line = f"{Path(file).name}:{frame.f_lineno}"
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            return owner, line or f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return None, line


def call_of(layer: Any, x: Any, weight: Any) -> Call:
    """Return how a Conv's convolution is called with this input and this weight."""
    torch = torch_module()
    batched = x.dim() == len(layer.kernel_size) + 2
    kind = x.device.type
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim()) if batched else None
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return Call(
        shape=tuple(x.shape) if batched else (1, *x.shape),
        element=str(x.dtype).removeprefix("torch."),
        weight_element=str(weight.dtype).removeprefix("torch."),
        needs_grad=bool(x.requires_grad),
        device=str(x.device),
        autocast=str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if casts else None,
        channels_last=last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous(),
    )
