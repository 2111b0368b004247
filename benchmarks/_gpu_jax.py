"""The part of a GPU run with JAX: the dilated Conv as XLA runs it, without its dilation, and in every form.

As a script it is the worker (see `_gpu_plan`). An item is a form of a geometry, compiled for each of its three passes.
Times are the host's, around as many runs as fill a millisecond, on inputs that take turns.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _convs import Conv
from _gpu_plan import Row, serve
from _gpu_rows import APART, compared, judged
from _gpu_torch import PASSES, UNDILATED, convs, geometry_of, named, refusal

from dilrewrite.forms.fragment import (
    AddAxis,
    AddKernelAxis,
    CoreConv,
    CoreFill,
    Fragment,
    Node,
    RepeatOutputs,
    SpreadTaps,
    TakeTaps,
    TapsToInputs,
)
from dilrewrite.forms.strategies import plan, strategies, with_layout
from dilrewrite.pytorch.fragments import OPSET
from dilrewrite.timing.stopwatch import turns

PRECISIONS = {"tf32": "float32", "fp16": "float16"}

FIRST = ("keep", UNDILATED, "space_to_batch", "space_to_axis", "lift", "tap_sum")
"""What is run first of a geometry: compiling takes most of the time."""

SAMPLE_S = 1e-3
PAIRS = 10
TURNS_BYTES = 256 << 20
"""Inputs take turns until so many bytes went by, sixteen at most."""


def unready() -> str | None:
    """What is missing, or None."""
    return None if importlib.util.find_spec("jax") else "jax is not installed"


def rounds(options: Row) -> tuple[list[Row], list[Row]]:
    """The items, every network once before one comes again, and the rows of what does not apply."""
    items: list[Row] = []
    refused: list[Row] = []
    names = [*FIRST, *(name for name in strategies() if name not in FIRST)]
    for precision in PRECISIONS:
        for conv in convs(options):
            for name in names:
                why = None if name == UNDILATED else refusal(conv, name)
                row = {"part": "jax", **named(conv), "precision": precision, "form": name}
                if why is None:
                    items.append(row)
                elif precision == "tf32":
                    refused.append({**row, "not_run": why})
    return items, refused


# -- a form in JAX ---------------------------------------------------------------------------------------------------


def form_of(conv: Conv, name: str) -> Callable[[Any, Any], Any]:
    """What computes a Conv by a form, from input and weight. Raises NotImplementedError for what is not known here."""
    geometry = geometry_of(conv)
    if name in ("keep", UNDILATED):
        dilations = geometry.dilations if name == "keep" else (1,) * geometry.rank
        outs = [int(extent or 0) for extent in geometry.out_extents]
        whole = [
            out + d * (k - 1) - extent
            for out, d, k, extent in zip(outs, dilations, conv.kernel, conv.extents, strict=True)
        ]
        begins = conv.pads[0] if name == "keep" else [pad // 2 for pad in whole]
        pads = [(begin, all_ - begin) for begin, all_ in zip(begins, whole, strict=True)]
        return lambda x, weight: convolution(x, weight, (1,) * geometry.rank, pads, dilations, conv.group)
    fragment = plan(name, with_layout(strategies()[name], "reshape"), geometry, OPSET)
    if not isinstance(fragment, Fragment):
        raise NotImplementedError(str(fragment))
    return functools.partial(_run, fragment)


def convolution(x: Any, weight: Any, strides: Any, pads: Any, dilations: Any, group: int) -> Any:
    """XLA's convolution."""
    from jax import lax

    return lax.conv_general_dilated(x, weight, strides, pads, rhs_dilation=dilations, feature_group_count=group)


def _run(fragment: Fragment, x: Any, weight: Any) -> Any:
    tensors: dict[str, Any] = {"x": x}
    waiting = list(fragment.steps)
    while waiting:  # sums stand behind what they add, which may come later
        step = waiting.pop(0)
        if isinstance(step, CoreConv):
            kernel = weight
            for edit in step.weight:
                kernel = _edited(edit, kernel)
            rank = len(step.kernel)
            pads = [*zip(step.pads[:rank], step.pads[rank:], strict=True)]
            tensors[step.output] = convolution(
                tensors[step.source], kernel, step.strides, pads, step.dilations, step.group
            )
        elif isinstance(step, CoreFill):
            import jax.numpy as jnp

            repeats = fragment.constants[step.repeats]
            tensors[step.output] = jnp.zeros((repeats[0], weight.shape[0], *repeats[2:]), x.dtype)
        elif isinstance(step, Node):
            if any(name and name not in tensors and name not in fragment.constants for name in step.inputs):
                waiting.append(step)
                continue
            tensors[step.outputs[0]] = _node(step, fragment, tensors)
        else:
            raise NotImplementedError(f"{type(step).__name__} is not known here")
    return tensors[fragment.results[0]]


def _node(node: Node, fragment: Fragment, tensors: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    given: list[Any] = [tensors[name] if name in tensors else fragment.constants.get(name) for name in node.inputs]
    x = given[0]
    match node.op:
        case "Add":
            return x + given[1]
        case "Reshape":
            return x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(given[1])])
        case "Transpose":
            return x.transpose(node.attributes["perm"])
        case "Concat":
            return jnp.concatenate(given, axis=node.attributes["axis"])
        case "Pad":
            half = len(given[1]) // 2
            return jnp.pad(x, [*zip(given[1][:half], given[1][half:], strict=True)])
        case "Slice":
            starts, ends, axes, *steps = given[1:]
            strides = steps[0] if steps else [1] * len(starts)
            cuts = {axis: slice(a, b, c) for axis, a, b, c in zip(axes, starts, ends, strides, strict=True)}
            return x[tuple(cuts.get(axis, slice(None)) for axis in range(x.ndim))]
        case "SpaceToDepth":
            block = int(node.attributes["blocksize"])  # type: ignore[arg-type]
            n, c, h, w = x.shape
            split = x.reshape(n, c, h // block, block, w // block, block)
            return split.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)
        case "DepthToSpace":
            block = int(node.attributes["blocksize"])  # type: ignore[arg-type]
            n, c, h, w = x.shape
            split = x.reshape(n, block, block, c // (block * block), h, w)
            return split.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)
    raise NotImplementedError(f"{node.op} is not known here")


def _edited(edit: Any, weight: Any) -> Any:
    import jax.numpy as jnp

    match edit:
        case TakeTaps(axis, start, stop):
            return weight[(slice(None),) * (axis + 2) + (slice(start, stop),)]
        case RepeatOutputs(times):
            return jnp.tile(weight, (times, *(1,) * (weight.ndim - 1)))
        case AddAxis(axis):
            return jnp.expand_dims(weight, axis)
        case AddKernelAxis(axis):
            return jnp.expand_dims(weight, axis + 2)
        case TapsToInputs():
            return jnp.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1, *(1,) * (weight.ndim - 2))
        case SpreadTaps(dilations):
            kernel = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
            index = (slice(None), slice(None), *(slice(None, None, d) for d in dilations))
            return jnp.zeros((*weight.shape[:2], *kernel), weight.dtype).at[index].set(weight)
    raise NotImplementedError(f"a weight edit {type(edit).__name__} is not known here")


# -- the worker ------------------------------------------------------------------------------------------------------


def begin(options: Row) -> tuple[Row, Callable[[Row], Iterator[Row]]]:
    """The device, and what does an item."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options["dry_run"]:
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from dilrewrite.runtimes._nvidia import driver_version, state

    device = jax.devices()[0]
    about: Row = {"jax": jax.__version__, "jaxlib": version("jaxlib"), "device": device.device_kind}
    source = "gpu" if device.platform in ("gpu", "cuda") else "cpu"
    if source == "gpu":
        about |= {"driver": driver_version() or "not told", "state": state()}
    elif not options["dry_run"]:
        raise RuntimeError(f"jax {jax.__version__} reaches no GPU: its device is {device.device_kind}")
    known = {(conv.network, conv.label): conv for conv in convs(options)}
    ready = functools.lru_cache(maxsize=1)(lambda conv, precision: _Keep(conv, precision))

    def work(item: Row) -> Iterator[Row]:
        keep = ready(known[item["network"], item["geometry"]], item["precision"])
        for row in _timed(keep, item["form"], options["seconds"]):
            yield row if "not_run" in row else {"source": source, **row}

    return about, work


class _Keep:
    """The dilated Conv of a geometry in a precision, compiled: its passes, and its outputs."""

    def __init__(self, conv: Conv, precision: str) -> None:
        import jax.numpy as jnp

        self.conv, self.precision = conv, precision
        rng = np.random.default_rng(0)
        weight = (conv.channels[1], conv.channels[0] // conv.group, *conv.kernel)
        outs = (1, conv.channels[1], *(int(extent or 0) for extent in geometry_of(conv).out_extents))
        shapes = ((1, conv.channels[0], *conv.extents), weight, outs)
        kind = PRECISIONS[precision]
        bytes_ = sum(math.prod(shape) for shape in shapes) * np.dtype(kind).itemsize
        count = min(16, max(2, -(-TURNS_BYTES // bytes_)))
        scales = (1.0, 1 / math.sqrt(math.prod(weight[1:])), 1.0)
        self.inputs = [
            tuple(jnp.asarray(rng.standard_normal(s) * scale, kind) for s, scale in zip(shapes, scales, strict=True))
            for _ in range(count)
        ]
        self.runs = self.compiled(form_of(conv, "keep"))

    def compiled(self, form: Callable[[Any, Any], Any]) -> dict[str, Any]:
        """The passes of a form, compiled and run once: functions of input, weight and upstream gradient."""
        import jax

        passes = {
            PASSES[0]: lambda x, weight, _: form(x, weight),
            PASSES[1]: lambda x, weight, up: jax.vjp(lambda a: form(a, weight), x)[1](up)[0],
            PASSES[2]: lambda x, weight, up: jax.vjp(lambda b: form(x, b), weight)[1](up)[0],
        }
        return {one: jax.jit(function) for one, function in passes.items()}


def _timed(keep: _Keep, name: str, seconds: float) -> Iterator[Row]:
    runs = keep.compiled(form_of(keep.conv, name))
    for one in PASSES:
        first, second = keep.runs[one], runs[one]
        start = time.monotonic()
        try:
            a, b = (np.asarray(run(*keep.inputs[0]), np.float64) for run in (first, second))
        except Exception as error:
            yield {"pass": one, "not_run": " ".join(str(error).split())[:200], "failed": True}
            continue
        compiled_s = time.monotonic() - start
        apart = float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30)) if name != UNDILATED else None
        times = max(1, math.ceil(SAMPLE_S / max(max(_seconds(run, keep.inputs, 1) for run in (first, second)), 1e-6)))
        samples: tuple[list[float], list[float]] = ([], [])
        began = time.monotonic()
        while not samples[0] or (time.monotonic() - began < seconds and len(samples[0]) < 5 * PAIRS):
            for turn in turns(PAIRS):
                for who in turn:
                    samples[who].append(_seconds((first, second)[who], keep.inputs, times))
        row = {"pass": one, "how": f"the host's clock around {times} runs", "l2": "inputs take turns"}
        more = {"compiled_s": round(compiled_s, 2), **judged(apart, APART[keep.precision])}
        yield {**row, **compared(samples), **more}


def _seconds(run: Callable[..., Any], inputs: Sequence[Any], times: int) -> float:
    import jax

    start = time.perf_counter()
    for number in range(times):
        found = run(*inputs[number % len(inputs)])
    jax.block_until_ready(found)
    return max((time.perf_counter() - start) / times, 1e-9)


if __name__ == "__main__":
    serve(begin)
