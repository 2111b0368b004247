"""The part of a GPU run that needs PyTorch with CUDA and nothing else: every form on cuDNN, forward and both gradients.

`rounds` says what is run, in the order of its worth; as a script it is the worker that runs it (see `_gpu_plan`). An
item is a form of a geometry in a setting, with its three passes; or, of the checks, a form of a small geometry in all
settings, on whole numbers, against float64 on the CPU.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _convs import CONVS, Conv, in_turn
from _gpu_plan import Row, serve, wanted
from _gpu_rows import APART, judged

from dilrewrite.forms.fragment import Refusal
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import plan, strategies, with_layout
from dilrewrite.pytorch.fragments import OPSET
from dilrewrite.pytorch.methods import method, methods, prepare

PASSES = ("forward", "backward by input", "backward by weight")

PRECISIONS = ("tf32", "fp16", "bf16", "fp32")

MOST_WORK = 16
"""A form whose multiply-adds are more than this many times the Conv's is not run."""

UNDILATED = "(no dilation)"
"""Not a form: the same Conv with dilation 1, for what the dilation costs."""

_WHOLE: dict[str, Any] = {"network": "whole numbers", "channels": (4, 4)}

SMALL = (
    Conv(**_WHOLE, extents=(30,), kernel=(3,), dilation=(4,)),
    Conv(**_WHOLE, extents=(12, 14), kernel=(3, 3), dilation=(3, 3)),
    Conv(**_WHOLE, extents=(8, 8, 9), kernel=(3, 3, 3), dilation=(2, 2, 2)),
    Conv(**_WHOLE, extents=(10, 10), kernel=(3, 3), dilation=(12, 12)),
    Conv(**_WHOLE, extents=(30,), kernel=(3,), dilation=(4,), group=4, padding="causal"),
)
"""Sums of whole numbers below 256: every precision holds them exactly, bfloat16 too. The fourth has dead taps."""

# -- what is run -----------------------------------------------------------------------------------------------------


def shrunk(conv: Conv) -> Conv:
    """A smaller geometry of the same kind, for dry runs."""
    few = tuple(min(count, 8) for count in conv.channels)
    edge = {1: 400, 2: 24, 3: 12}[len(conv.extents)]
    extents = tuple(min(extent, edge) for extent in conv.extents)
    return dataclasses.replace(conv, channels=few, extents=extents, group=few[0] if conv.group > 1 else 1)


def convs(options: Row) -> list[Conv]:
    """The geometries of a run, every network once before one comes again."""
    some = [conv for conv in in_turn(CONVS) if wanted(options["only"], f"{conv.network} {conv.label}")]
    return [shrunk(conv) for conv in some] if options["dry_run"] else some


def settings(options: Row) -> list[list[Row]]:
    """The settings in rounds: those of one round are run geometry by geometry. Few of the last ones in a dry run."""

    def one(precision: str, layout: str, batch: int, *, deterministic: bool = False, autotuned: bool = False) -> Row:
        return {
            "precision": precision,
            "layout": layout,
            "batch": batch,
            "deterministic": deterministic,
            "autotuned": autotuned,
        }

    first = [one("tf32", "first", 1), one("fp16", "last", 8), one("tf32", "first", 8, deterministic=True)]
    rest = [one("tf32", "first", 1, autotuned=True), one("fp16", "last", 8, autotuned=True)]
    for deterministic in (False, True):
        for precision in PRECISIONS:
            for layout in ("first", "last"):
                other = one(precision, layout, 8, deterministic=deterministic)
                if other not in first:
                    rest.append(other)
    return [*([some] for some in first), rest[:2] if options["dry_run"] else rest]


def rounds(options: Row) -> tuple[list[Row], list[Row]]:
    """The items of a run in the order of their worth, and the rows of what does not apply."""
    chosen = convs(options)
    refused: list[Row] = []
    forms: dict[Conv, list[str]] = {}
    for conv in [*SMALL, *chosen]:
        forms[conv] = []
        for name in methods():
            why = refusal(conv, name)
            if why is None:
                forms[conv].append(name)
            elif conv not in SMALL:
                refused.append({"part": "torch", **named(conv), "form": name, "not_run": why})
    items: list[Row] = [
        {"part": "checks", **named(conv), "form": name} for conv in SMALL for name in forms[conv]
    ]  # right first
    for some in settings(options):
        for conv in chosen:
            items += [
                {"part": "torch", **named(conv), **one, "form": name}
                for one in some
                if not (one["layout"] == "last" and len(conv.extents) == 1)
                for name in [*forms[conv], UNDILATED]
            ]
    if chosen and any(len(conv.extents) == 1 for conv in chosen):
        why = "PyTorch has no channels last for the three axes of a 1-D Conv"
        refused.append({"part": "torch", "geometry": "every 1-D geometry", "layout": "last", "not_run": why})
    return items, refused


def named(conv: Conv) -> Row:
    """How rows name a geometry."""
    return {"network": conv.network, "geometry": conv.label}


def refusal(conv: Conv, name: str) -> str | None:
    """Why a form is not run at a geometry, or None."""
    geometry = geometry_of(conv)
    why = method(name).refusal(geometry)
    if why is not None:
        return f"refuses: {why}"
    fragment = plan(name, with_layout(strategies()[name], "reshape"), geometry, OPSET) if name in strategies() else None
    work, own = geometry.multiply_adds(), None
    if fragment is not None and not isinstance(fragment, Refusal):
        own = fragment.multiply_adds
    if work and own and own > MOST_WORK * work:
        return f"{own / work:.0f} times the Conv's multiply-adds, and {MOST_WORK} are tried here"
    return None


def geometry_of(conv: Conv, batch: int = 1, element: str = "float32") -> ConvGeometry:
    """The geometry of a Conv without a bias."""
    begins, ends = conv.pads
    return ConvGeometry(
        batch=batch, in_channels=conv.channels[0], out_channels=conv.channels[1], group=conv.group,
        extents=conv.extents, kernel=conv.kernel, strides=(1,) * len(conv.extents), dilations=conv.dilation,
        pads_begin=begins, pads_end=ends, bias=False, element=element,
    )  # fmt: skip


# -- the worker ------------------------------------------------------------------------------------------------------


def begin(options: Row) -> tuple[Row, Callable[[Row], Iterator[Row]]]:
    """The device, and what does an item."""
    import gc

    import _gpu_time

    device, about = _gpu_time.begin(options["dry_run"])
    clock = _gpu_time.Clock(device, options["seconds"])
    known = {(conv.network, conv.label): conv for conv in (*SMALL, *convs(options))}
    ready = functools.lru_cache(maxsize=1)(lambda conv, setting: _Keep(clock, conv, setting))
    gc.freeze()

    def work(item: Row) -> Iterator[Row]:
        conv = known[item["network"], item["geometry"]]
        if item["part"] == "checks":
            return checked(conv, item["form"], device)
        names = {field.name for field in dataclasses.fields(_gpu_time.Setting)}
        setting = _gpu_time.Setting(**{name: value for name, value in item.items() if name in names})
        return _timed(ready(conv, setting), item["form"])

    return about, work


def operands(conv: Conv, batch: int, draw: Callable[[tuple[int, ...]], Any]) -> tuple[Any, Any, Any]:
    """Input, weight and the gradient of the output, in float32 on the CPU; drawn anew from a seed."""
    geometry = geometry_of(conv, batch)
    outs = (batch, conv.channels[1], *(int(extent or 0) for extent in geometry.out_extents))
    weight = (conv.channels[1], conv.channels[0] // conv.group, *conv.kernel)
    return draw((batch, conv.channels[0], *conv.extents)), draw(weight), draw(outs)


def pass_of(form: Callable[..., Any], one: str, x: Any, weight: Any, upstream: Any) -> Callable[[], Any]:
    """What computes one pass; backward is on a graph whose forward is done before."""
    import torch

    if one == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return form(x, weight, None)

        return forward
    by_input = one == "backward by input"
    x, weight = x.detach().requires_grad_(by_input), weight.detach().requires_grad_(not by_input)
    wanted, y = x if by_input else weight, form(x, weight, None)
    return lambda: torch.autograd.grad(y, wanted, upstream, retain_graph=True)[0]


class _Keep:
    """The dilated Conv of a geometry in a setting: its three passes, ready to run, and its noise."""

    def __init__(self, clock: Any, conv: Conv, setting: Any) -> None:
        import torch
        from _gpu_time import PRECISIONS as TYPES
        from _gpu_time import cudnn

        self.clock, self.conv, self.setting, self.cudnn = clock, conv, setting, cudnn
        generator = torch.Generator().manual_seed(0)
        drawn = operands(conv, setting.batch, lambda shape: torch.randn(shape, generator=generator))
        x, weight, upstream = drawn
        weight = weight / max(1.0, weight[0].numel()) ** 0.5
        self.tensors = tuple(setting.put(tensor, clock.device) for tensor in (x, weight, upstream))
        element = str(TYPES[setting.precision]).removeprefix("torch.")
        self.geometry = geometry_of(conv, setting.batch, element)
        with cudnn(setting):
            self.runs = {one: self.prepared(prepare("keep", self.geometry), one) for one in PASSES}
        self.noise: dict[str, float] = {}

    def prepared(self, form: Callable[..., Any], one: str) -> Any:
        """A pass of a form, ready to run."""
        return self.clock.prepare(pass_of(form, one, *self.tensors))


def _timed(keep: _Keep, name: str) -> Iterator[Row]:
    """The three passes of a form against the dilated Conv; of this itself, its noise, or what determinism costs it."""
    import _gpu_time

    setting = keep.setting
    for one in PASSES:
        native = keep.runs[one]
        with keep.cudnn(setting):
            try:
                if name == "keep":
                    twin = keep.prepared(prepare("keep", keep.geometry), one)
                    row = keep.clock.compare(native, twin)
                    keep.noise[one] = max(row["high"], 1 / row["low"]) - 1
                    yield {"pass": one, **row}
                    if setting.deterministic:
                        yield {"pass": one, "form": "keep, not deterministic", **_gap(keep, native, one)}
                    continue
                form = prepare(name, keep.geometry) if name != UNDILATED else undilated(keep.geometry)
                run = keep.prepared(form, one)
                apart = _gpu_time.apart(native.output, run.output) if name != UNDILATED else None
                row = keep.clock.compare(native, run, keep.noise.get(one))
            except Exception as error:
                if not _gpu_time.healthy():
                    raise
                yield {"pass": one, "not_run": " ".join(str(error).split())[:200], "failed": True}
                continue
        yield {"pass": one, **row, **judged(apart, APART[setting.precision])}


def _gap(keep: _Keep, native: Any, one: str) -> Row:
    """The Conv with cuDNN's deterministic mode off against the mode on."""
    loose = dataclasses.replace(keep.setting, deterministic=False)
    with keep.cudnn(loose):
        run = keep.prepared(prepare("keep", keep.geometry), one)
    return dict(keep.clock.compare(native, run, keep.noise.get(one)))


def undilated(geometry: ConvGeometry) -> Callable[..., Any]:
    """The Conv of the same kernel and output without a dilation."""
    from torch.nn import functional

    run = (functional.conv1d, functional.conv2d, functional.conv3d)[geometry.rank - 1]
    outs = [int(extent or 0) for extent in geometry.out_extents]
    ends = [out + k - 1 - int(e or 0) for out, k, e in zip(outs, geometry.kernel, geometry.extents, strict=True)]
    half = [max(0, end) // 2 for end in ends]
    cut = any(end != 2 * pad for end, pad in zip(ends, half, strict=True))
    pads = [pad for end, front in reversed([*zip(ends, half, strict=True)]) for pad in (front, end - front)]

    def conv(x: Any, weight: Any, bias: Any) -> Any:
        x = functional.pad(x, pads) if cut else x
        return run(x, weight, bias, geometry.strides, 0 if cut else half, 1, geometry.group)

    return conv


# -- the checks ------------------------------------------------------------------------------------------------------


def whole(shape: Sequence[int], seed: int, *, few: bool = False) -> Any:
    """Numbers of -1, 0, 1; `few`: at most a hundred of each channel are not zero, so that no sum passes 256."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(-1, 2, tuple(shape), generator=generator).float()
    if few:
        positions = found[:, 0].numel()
        found *= torch.rand(tuple(shape), generator=generator) < 100 / positions
    return found


def checked(conv: Conv, name: str, device: str) -> Iterator[Row]:
    """A form on whole numbers in every setting against the Conv in float64 on the CPU: the worst of each precision."""
    import _gpu_time

    batch = 2
    x, weight, upstream = operands(conv, batch, lambda shape: whole(shape, len(shape)))
    upstream = whole(upstream.shape, 9, few=True)
    keep = prepare("keep", geometry_of(conv, batch, "float64"))
    exact = [tensor.double() for tensor in (x, weight, upstream)]
    reference = {one: pass_of(keep, one, *exact)() for one in PASSES}
    assert all(float(value.abs().max()) <= 256 for value in reference.values())
    for precision in PRECISIONS:
        for one in PASSES:
            worst, failure, ran = 0.0, None, 0
            for layout in ("first", "last")[: 1 if len(conv.extents) == 1 else 2]:
                for deterministic in (False, True):
                    setting = _gpu_time.Setting(precision=precision, layout=layout, deterministic=deterministic)
                    tensors = [setting.put(tensor, device) for tensor in (x, weight, upstream)]
                    element = str(tensors[0].dtype).removeprefix("torch.")
                    form = prepare(name, geometry_of(conv, batch, element))
                    try:
                        with _gpu_time.cudnn(setting):
                            found = pass_of(form, one, *tensors)().double().cpu()
                    except Exception as error:
                        if not _gpu_time.healthy():
                            raise
                        failure = " ".join(str(error).split())[:200]
                        continue
                    ran += 1
                    same = found.shape == reference[one].shape
                    difference = float((found - reference[one]).abs().max()) if same else float("inf")
                    worst = max(worst, difference if difference == difference else float("inf"))
            common = {"pass": one, "precision": precision}
            if not ran:
                yield {**common, "not_run": failure, "failed": True}
                continue
            outcome = "equal" if worst == 0 else "rounds" if worst < 0.5 else "WRONG"
            yield {
                **common,
                "source": "gpu" if device == "cuda" else "cpu",
                "difference": worst if worst != float("inf") else None,
                "outcome": outcome,
                "passed": outcome != "WRONG",
                "elements": int(reference[one].numel()),
                "runs": ran,
                "pairs": 0,
                **({"failure": failure} if failure else {}),
            }


def main() -> None:
    """Be the worker."""

    def healthy() -> bool:
        import _gpu_time

        return _gpu_time.healthy()

    serve(begin, healthy)


if __name__ == "__main__":
    main()
