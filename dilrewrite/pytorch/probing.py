"""Times forms and modules in PyTorch, in pairs: on a GPU by CUDA events, else by the clock."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from dilrewrite.pytorch.chosen import NATIVE, Call, Chosen, bucket
from dilrewrite.runtimes import Opened, warmed
from dilrewrite.timing.stopwatch import HOPELESS, MIN_PAIRS, Comparison, Noise, Stopwatch

PASSES = ("forward", "backward")
"""What a training step consists of."""

FEWEST_RUNS = 2 * (3 + MIN_PAIRS)
"""Runs of a comparison that is as short as it may be: both are warmed up, and run in the fewest pairs."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: `run` once is a sample; `prepare` goes before it, outside of the clock."""

    run: Callable[[], None]
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to time for some passes; `device` is torch's name of where it runs, `name` is a method's or empty."""

    make: Callable[[tuple[str, ...]], Work]
    device: str = "cpu"
    name: str = ""

    @staticmethod
    def of_conv(layer: Any, call: Call, name: str) -> Probe:
        """Return a Conv's convolution by a method, on random data of the shape and type that it was called with."""
        return Probe(lambda passes: _conv_work(layer, call, name, passes), call.device, name)

    @staticmethod
    def of_module(module: Any, run: Callable[[], Any], prepare: Callable[[], None]) -> Probe:
        """Return a module as a whole, which `run` calls; `prepare` brings it into the state that is timed."""
        device = next((str(parameter.device) for parameter in module.parameters()), "cpu")
        return Probe(lambda passes: _module_work(module, run, prepare, passes), device)


def work_of(
    forward: Callable[[], Any], inputs: Sequence[Any], passes: Sequence[str], upstream: Callable[[Any], Any]
) -> Work:
    """Return the work of some passes: `forward` makes outputs, of which gradients for the tensors `inputs` are asked.

    Backward alone is on a retained graph: the forward is outside of the clock.
    """
    import torch

    if "backward" not in passes or not inputs:

        def run() -> None:
            with torch.no_grad():
                forward()

    elif "forward" in passes:

        def run() -> None:
            outputs = forward()
            torch.autograd.grad(outputs, inputs, upstream(outputs), allow_unused=True)

    else:
        y = forward()
        gradient = upstream(y)

        def run() -> None:
            torch.autograd.grad(y, inputs, gradient, retain_graph=True, allow_unused=True)

    return Work(run)


def _conv_work(layer: Any, call: Call, name: str, passes: tuple[str, ...]) -> Work:
    import torch

    generator = torch.Generator(device=call.device).manual_seed(0)
    x = torch.randn(call.shape, dtype=torch.float32, device=call.device, generator=generator)
    x = x.to(getattr(torch, call.element))
    if call.channels_last:
        x = x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    x.requires_grad_(call.needs_grad)
    weight, bias = (_own(tensor, getattr(torch, call.weight_element)) for tensor in (layer.weight, layer.bias))
    native = functools.partial(type(layer)._conv_forward, layer)
    form = native if name == NATIVE else Chosen.of(layer, {bucket(call.shape): name})
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None and tensor.requires_grad]
    gradients: list[Any] = []

    def upstream(y: Any) -> Any:
        if not gradients:
            gradients.append(torch.randn(y.shape, device=y.device, generator=generator).to(y.dtype))
        return gradients[0]

    def forward() -> Any:
        kind = None if call.autocast is None else getattr(torch, call.autocast)
        # Without the cache of weights: every form converts them in every step, as training does.
        with torch.autocast(x.device.type, dtype=kind, enabled=kind is not None, cache_enabled=False):
            return form(x, weight, bias)

    return work_of(forward, inputs, passes, upstream)


def _own(tensor: Any, element: Any) -> Any:
    """Return a copy of an element type that wants a gradient where the tensor does."""
    return tensor if tensor is None else tensor.detach().to(element, copy=True).requires_grad_(tensor.requires_grad)


def _module_work(module: Any, run: Callable[[], Any], prepare: Callable[[], None], passes: tuple[str, ...]) -> Work:
    import torch

    def ready() -> None:
        prepare()
        torch.clear_autocast_cache()  # it would hold what a step has to convert

    ready()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    steps = work_of(lambda: _loss(run()), parameters, passes, lambda loss: torch.ones_like(loss))
    return Work(steps.run, ready)


@contextlib.contextmanager
def preserved(module: Any) -> Iterator[None]:
    """Leave a module's buffers (statistics of batch normalisation) and torch's random state as they are before."""
    import torch

    held = [
        (owner, name, buffer, None if buffer is None else buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if not torch.nn.parameter.is_lazy(buffer)
    ]
    devices = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers()) if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        torch.clear_autocast_cache()  # weights that were converted without gradients
        with torch.no_grad():
            for owner, name, buffer, value in held:
                owner._buffers[name] = buffer
                if value is not None:
                    buffer.copy_(value)


def _loss(result: Any) -> Any:
    """Return a number that depends on every floating-point tensor of a module's result."""
    import torch

    if isinstance(result, torch.Tensor):
        return result.float().square().mean() if result.is_floating_point() else torch.zeros(())
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, list | tuple) else ()
    return sum((_loss(part) for part in parts), start=torch.zeros(()))


# -- the clock -------------------------------------------------------------------------------------------------------


@final
class TorchBench:
    """A stopwatch's bench of works in this process; its clock is the GPU's where they run on one.

    `steps`: how often a work is done in a run, of which the mean counts.
    """

    def __init__(self, probes: Mapping[str, Probe], passes: tuple[str, ...], steps: int = 1) -> None:
        self._probes = dict(probes)
        self._steps = steps
        self._passes = passes
        self._works: dict[str, Work] = {}

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        """Make the tensors of these probes and of no others, and warm each up."""
        self.shut()
        for key in keys:
            self._works[key] = self._probes[key].make(self._passes)

        def repeat(key: str, times: int) -> list[float]:
            return self.run([key] * times)

        return [Opened(run_s=warmed(functools.partial(repeat, key), warm_s, runs)) for key in keys]

    def run(self, order: Sequence[str]) -> list[float]:
        """Return the seconds of each run."""
        seconds: list[float] = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for key in order:
                work = self._works[key]
                if work.prepare is not None:
                    work.prepare()
                seconds.append(timed(work.run, self._probes[key].device, self._steps))
        finally:
            if collecting:
                gc.enable()
        return seconds

    def shut(self) -> None:
        """Free all tensors."""
        self._works.clear()


def timed(run: Callable[[], None], device: str, steps: int = 1) -> float:
    """Return the mean seconds of so many steps: the GPU's, between CUDA events, for a CUDA device, else the clock's."""
    if not device.startswith("cuda"):
        start = time.perf_counter_ns()
        for _ in range(steps):
            run()
        return (time.perf_counter_ns() - start) / 1e9 / steps
    import torch

    cuda: Any = torch.cuda
    before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    before.record()
    for _ in range(steps):
        run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3 / steps


def step_timings(
    first: Probe, second: Probe, passes: tuple[str, ...], seconds: float, *, whole: bool = False
) -> Comparison:
    """Time `second` against `first` for about so many seconds; a `whole` module against itself before, if time allows.

    What is no whole module, and clearly loses, is left after its first pairs.
    """
    bench = TorchBench({"first": first, "twin": first, "second": second}, passes)
    watch = Stopwatch(bench, deadline_s=time.monotonic() + seconds)
    noise: Noise | None = None
    try:
        if whole and seconds >= 2 * FEWEST_RUNS * _once(bench, "first"):
            noise, _ = watch.noise("first", "twin", seconds / 3)
            seconds *= 2 / 3
        return watch.compare("first", "second", seconds, noise=noise, hopeless=math.inf if whole else HOPELESS)
    finally:
        bench.shut()


def _once(bench: TorchBench, key: str) -> float:
    """Return the seconds of one run, after a first one."""
    return bench.open([key], runs=2)[0].run_s
