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

from dilrewrite.errors import UsageError, one_line
from dilrewrite.forms.strategies import strategies
from dilrewrite.pytorch.chosen import (
    ATTRIBUTE,
    NATIVE,
    Bucket,
    Call,
    Chosen,
    added,
    bucket,
    choices_of,
    known_to_compiler,
    torch_module,
)
from dilrewrite.pytorch.methods import method, methods
from dilrewrite.pytorch.probing import PASSES, Probe, preserved, step_timings
from dilrewrite.pytorch.survey import Example, Survey, dilated, survey
from dilrewrite.timing.speed import speed
from dilrewrite.timing.stopwatch import Comparison

if TYPE_CHECKING:
    from torch import nn

DEFAULT_BUDGET_S = 60.0

_ORDER = ("space_to_axis", "space_to_batch", "space_to_group", "tap_sum", "im2col", "slice_to_batch", "weight_gradient")
"""What is probed first: the forms that move least; a method that is not named here comes after them."""

# -- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """One convolution with a dilation: the name of its module, what computes it now, and why.

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

    def __repr__(self) -> str:
        """Return what became of each Conv; the timings are in `layers`."""
        methods = ", ".join(f"{layer.name or 'itself'}: {layer.method}" for layer in self.layers)
        return f"<dilrewrite.pytorch.Rewriting {self.rewritten} of {len(self.layers)}{methods and f' ({methods})'}>"


# -- rewriting -------------------------------------------------------------------------------------------------------


def rewrite_module(
    module: nn.Module,
    example_input: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    passes: Sequence[str] = PASSES,
    budget: float = DEFAULT_BUDGET_S,
    only: Sequence[str] | None = None,
    timings: Callable[..., Comparison] | None = None,
) -> Rewriting:
    """Let every Conv with a dilation be computed by the form that is fastest on the example's shapes, where one wins.

    `example_input`: what the module is called with, an argument or a tuple of arguments; `kwargs`: arguments by name.
    It is run once, as the module is used now (training mode, autocast, device). `passes`: what is to be fast, of
    "forward" and "backward". `budget`: seconds for probing, a third of them for the whole module; 0 changes nothing.
    `only`: names of methods to probe. Each form is timed in pairs against PyTorch's own, which keeps ties; then the
    module as a whole, and where that is not faster everything is as before. Choices hold for inputs of about the
    example's sizes; a further call with another example adds to them. Returns what was chosen and why.
    `restore_module` undoes it.
    Left alone, each with a line that says why and what to do: convolutions that are called as functions, and scripted,
    compiled, lazy and transposed ones.
    Raises `UsageError` for unknown passes or methods, an example that `forward` does not take, and the backward pass
    while gradients are off; `MissingError` without torch.
    """
    _check(module, passes, only, budget)
    known_to_compiler()  # loads much when it is first called, and is no probing
    start = time.perf_counter()
    with preserved(module):  # from the first look at a weight on: spectral_norm counts looks
        convs = dilated(module)
        if not budget:
            idle = [_kept(name, why or "not probed: budget 0") for name, (_, why) in convs.items()]
            return Rewriting(layers=tuple(idle), passes=tuple(passes), probe_s=0.0)
        example = Example.of(module, example_input, kwargs)
        candidates = [(name, layer) for name, (layer, why) in convs.items() if not why]
        probing = _Probing(tuple(passes), _offered(only), timings or step_timings)
        before = {id(layer): choices_of(layer) for _, layer in candidates}
        try:
            seen = survey(module, example, [layer for _, layer in candidates], [layer for layer, _ in convs.values()])
            chosen, whole = _rewrite(module, example, candidates, seen, probing, start + budget)
        except BaseException:
            _set_all([layer for _, layer in candidates], before)
            raise
    probe_s = time.perf_counter() - start
    gained = whole.first.median_s - whole.second.median_s if whole is not None and whole.faster else 0.0
    by_name = {choice.name: choice for choice in chosen}
    layers = [by_name.get(name) or _kept(name, why) for name, (_, why) in convs.items()]
    return Rewriting(
        layers=(*layers, *(_kept(name, why) for name, why in seen.functions)),
        passes=tuple(passes),
        probe_s=probe_s,
        whole=whole,
        break_even_steps=math.ceil(probe_s / gained) if gained > 0 else None,
    )


def _rewrite(
    module: Any, example: Example, candidates: Sequence[tuple[str, Any]], seen: Survey, probing: _Probing, end: float
) -> tuple[list[LayerChoice], Comparison | None]:
    """Probe the Convs and the whole module until the clock shows about `end`, and set what wins."""
    layers = [layer for _, layer in candidates]
    before = {id(layer): choices_of(layer) for layer in layers}
    start = time.perf_counter()
    calls = seen.calls
    chosen = _probe_all(candidates, seen, probing, start + (end - start) * 2 / 3)
    # What was chosen for these sizes before is chosen anew.
    plain, fast = dict(before), {}
    for layer, choice in zip(layers, chosen, strict=True):
        if id(layer) in calls:
            plain[id(layer)] = _without(before[id(layer)], bucket(calls[id(layer)].shape))
        fast[id(layer)] = plain[id(layer)]
        if choice.method != NATIVE:
            fast[id(layer)] = added(layer, plain[id(layer)], calls[id(layer)].shape, choice.method)
    whole: Comparison | None = None
    if any(choice.method != NATIVE for choice in chosen):
        states = [functools.partial(_set_all, layers, state) for state in (plain, fast)]
        run = functools.partial(example.run, module)
        first, second = (Probe.of_module(module, run, prepare=state) for state in states)
        whole, why = probing.whole(first, second, max(end - time.perf_counter(), 0.5))
        if why:
            fast, chosen = plain, [_not_confirmed(choice, why) for choice in chosen]
    _set_all(layers, fast)
    return chosen, whole


def restore_module(module: nn.Module) -> int:
    """Let PyTorch compute every Conv of a module again; return how many were rewritten."""
    layers = [layer for layer in module.modules() if isinstance(layer.__dict__.get(ATTRIBUTE), Chosen)]
    for layer in layers:
        del layer.__dict__[ATTRIBUTE]
    return len(layers)


# -- parts -----------------------------------------------------------------------------------------------------------


def _kept(name: str, reason: str) -> LayerChoice:
    return LayerChoice(name=name, method=NATIVE, reason=reason)


def _check(module: Any, passes: Sequence[str], only: Sequence[str] | None, budget: float) -> None:
    torch = torch_module()
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"a {type(module).__name__} is not a torch.nn.Module", hint="pass the module itself")
    wrong = [name for name in passes if name not in PASSES]
    if wrong or not passes:
        raise UsageError(f"passes {', '.join(wrong) or 'are empty'}: not some of {', '.join(PASSES)}")
    if "backward" in passes and not torch.is_grad_enabled():
        message = "gradients are off (torch.no_grad or inference_mode), and passes has backward"
        raise UsageError(message, hint='pass passes=("forward",)')
    for name in only or ():
        method(name)
    if not 0 <= budget < math.inf:
        raise UsageError(f"budget {budget}: a finite number of seconds of at least 0 is needed")


def _offered(only: Sequence[str] | None) -> tuple[str, ...]:
    """Return the methods to probe, in order; without `only` all but those that are exact for finite inputs alone."""
    left_out = {name for name, strategy in strategies().items() if strategy.finite_inputs_only}
    names = dict.fromkeys(name for name in (*_ORDER, *methods()) if name in methods() and name != NATIVE)
    return tuple(name for name in names if (name in only if only is not None else name not in left_out))


@dataclass(frozen=True, slots=True)
class _Probing:
    """What is to be fast, the methods to probe, and what times them in pairs against the native form."""

    passes: tuple[str, ...]
    offered: tuple[str, ...]
    compare: Callable[..., Comparison]

    def whole(self, first: Probe, second: Probe, seconds: float) -> tuple[Comparison | None, str]:
        """Time a module as a whole; also returns why it is not faster, empty when it is."""
        try:
            whole = self.compare(first, second, self.passes, seconds, whole=True)
        except RuntimeError as error:  # out of memory, or no gradient to ask for
            return None, f"the whole module could not be timed: {one_line(error)[:200]}"
        slow = f"the whole module is {speed(whole.ratio)} with it, not faster beyond noise"
        return whole, "" if whole.faster else slow


def _probe_all(
    candidates: Sequence[tuple[str, Any]], seen: Survey, probing: _Probing, until: float
) -> list[LayerChoice]:
    """Probe every Conv until the clock shows `until`; what is alike is probed once."""
    alike: dict[object, LayerChoice] = {}
    chosen = []
    for number, (name, layer) in enumerate(candidates):
        call = seen.calls.get(id(layer))
        if call is None:
            chosen.append(_kept(name, seen.missed[id(layer)]))
            continue
        key = (call.geometry(layer), call, layer.weight.requires_grad)
        if key not in alike:
            left = max(until - time.perf_counter(), 0.0) / (len(candidates) - number)
            alike[key] = _probe(name, layer, call, probing, left)
        chosen.append(replace(alike[key], name=name))
    return chosen


def _probe(name: str, layer: Any, call: Call, probing: _Probing, seconds: float) -> LayerChoice:
    """Time every form against the native one; the fastest that wins is taken."""
    geometry = call.geometry(layer)
    reasons = {candidate: method(candidate).refusal(geometry) for candidate in probing.offered}
    refused = {candidate: why for candidate, why in reasons.items() if why is not None}
    takers = [candidate for candidate, why in reasons.items() if why is None]
    forms: dict[str, Comparison] = {}
    failed: dict[str, str] = {}
    until = time.perf_counter() + seconds
    for place, candidate in enumerate(takers):
        left = (until - time.perf_counter()) / (len(takers) - place)
        if left <= 0.02:
            failed[candidate] = "not probed: budget"
            continue
        first, second = (Probe.of_conv(layer, call, one) for one in (NATIVE, candidate))
        try:
            forms[candidate] = probing.compare(first, second, probing.passes, left)
        except RuntimeError as error:  # out of memory, or an operator that the device does not have
            failed[candidate] = f"failed: {one_line(error)[:200]}"
    winners = [candidate for candidate, timing in forms.items() if timing.faster]
    best = min(winners, key=lambda candidate: forms[candidate].ratio, default=NATIVE)
    if best != NATIVE:
        reason = f"{best} is {speed(forms[best].ratio)} than PyTorch's own form"
    elif forms:
        nearest = min(forms, key=lambda candidate: forms[candidate].ratio)
        reason = f"no form is faster beyond noise: the best, {nearest}, is {speed(forms[nearest].ratio)}"
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


def _without(old: Chosen | None, sizes: Bucket) -> Chosen | None:
    """Return what was chosen before for inputs of other sizes; None when nothing is left."""
    choices = {} if old is None else {ends: name for ends, name in old.choices.items() if ends != sizes}
    return replace(old, choices=choices) if old is not None and choices else None


def _set_all(layers: Sequence[Any], state: Mapping[int, Chosen | None]) -> None:
    for layer in layers:
        chosen = state[id(layer)]
        if chosen is None:
            layer.__dict__.pop(ATTRIBUTE, None)
        else:
            layer.__dict__[ATTRIBUTE] = chosen


def _not_confirmed(choice: LayerChoice, why: str) -> LayerChoice:
    reason = f"{choice.reason}, but {why}"
    return choice if choice.method == NATIVE else replace(choice, method=NATIVE, reason=reason)
