"""The process in which one method of the convolution benchmark runs; prints a line of JSON for each pass."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dilrewrite import record
from dilrewrite.errors import one_line
from dilrewrite.pytorch.configurations import Configuration
from dilrewrite.pytorch.convbench import PASSES
from dilrewrite.pytorch.methods import prepare
from dilrewrite.pytorch.probing import Probe, TorchBench, Work, work_of
from dilrewrite.pytorch.setting import Setting
from dilrewrite.runtimes import Pace
from dilrewrite.timing.stopwatch import Stopwatch

PROFILED_RUNS = 5

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def main() -> None:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.read())
    import torch

    setting = Setting(**question["setting"])
    kept = keep_memory()
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    if sys.argv[1] == "environment":
        number = int(setting.device.partition(":")[2] or 0)
        cuda = torch.cuda.is_available() and number < torch.cuda.device_count()
        name = torch.cuda.get_device_name(setting.device) if cuda and setting.device != "cpu" else "cpu"
        say({"torch": torch.__version__, "cuda": cuda, "device": name, "keeps_memory": kept})
        return
    configuration = record.read(Configuration, question["configuration"], "configuration")
    torch.backends.cudnn.deterministic = setting.deterministic
    for one in PASSES:
        try:
            say({one: answer(configuration, question["method"], one, setting)})
        except (torch.cuda.OutOfMemoryError, MemoryError):
            say({one: {"failure": "out of memory"}})
        except Exception as error:  # the other passes still have their turn
            text = one_line(error) or type(error).__name__
            say({one: {"failure": "out of memory" if "can't allocate memory" in text else text[:200]}})


def keep_memory() -> bool:
    """Let glibc keep what is freed for the next run; return whether it does.

    It would give large tensors back to the system, or not, by what happened before: a run that takes all its pages
    anew takes up to six times as long as one that does not, and which form meets that is chance.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def say(message: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps(message), flush=True)


def answer(configuration: Configuration, name: str, direction: str, setting: Setting) -> dict[str, Any]:
    """Measure one pass of one method: peak memory first, by itself, then times in pairs with the native form."""

    def working(one: str) -> Work:
        return work(configuration, one, direction, setting)

    found: dict[str, Any] = {"peak_bytes": _peak(lambda: working(name), setting)}
    if setting.profile:
        found["shares"] = shares(working(name), setting)
    native, own = (Probe(lambda _passes, one=one: working(one), setting.device) for one in ("keep", name))  # type: ignore[misc]
    bench = TorchBench({"native": native, "own": own}, (direction,), setting.steps)
    watch = Stopwatch(bench, pace=Pace(pairs=setting.repeats, warm_s=setting.warmup))
    found["comparison"] = dataclasses.asdict(watch.compare("native", "own", setting.seconds))
    return found


def work(configuration: Configuration, name: str, direction: str, setting: Setting) -> Work:
    """Return the work of one pass: backward by input asks for dx alone, by weight for dw alone."""
    import torch

    form: Callable[..., Any] = prepare(name, configuration.geometry(element=setting.element))
    if setting.compiled:
        form = torch.compile(form)
    kind = getattr(torch, setting.element)
    torch.manual_seed(0)
    x = torch.randn(configuration.x_shape, device=setting.device).to(kind)
    weight = torch.randn(configuration.weight_shape, device=setting.device).to(kind)
    if setting.channels_last and x.dim() > 3:
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x, weight = x.to(memory_format=layout), weight.to(memory_format=layout)
    x.requires_grad_(direction == "backward by input")
    weight.requires_grad_(direction == "backward by weight")
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    passes = ("forward",) if direction == "forward" else ("backward",)

    def upstream(y: Any) -> Any:
        return torch.randn(y.shape, device=y.device).to(y.dtype)

    return work_of(lambda: form(x, weight, None), wanted, passes, upstream)


# -- memory ----------------------------------------------------------------------------------------------------------


def _peak(make: Callable[[], Work], setting: Setting) -> int | None:
    """Return how far memory rises above what it is without tensors: input, weight, graph and one run."""
    import torch

    make().run()  # what is loaded or compiled once does not count
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make().run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what another pass has freed
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        make().run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, LookupError):
        return None


def _resident(word: str) -> int:
    """Return a figure of Linux' status of this process, in bytes; raises OSError or LookupError where there is none."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[word].split()[0]) * 1024


# -- where the time goes ---------------------------------------------------------------------------------------------

KINDS = ("convolution", "layout", "padding", "rest", "freeing", "outside")
"""`rest`: of other operators; `freeing`: the time between two operators in which memory is given back; `outside`: of
nothing of these, as Python."""

_CONVOLUTION = re.compile(r"convolution|conv_?(transpose)?[123]d|(add|b|badd)?(mm|bmm)|matmul|einsum")
_PADDING = re.compile("(constant)?pad(nd)?")
_LAYOUT = re.compile(
    "asstrided|cat|clone|contiguous|copy|expand(as)?|flatten|indexput|movedim|narrow|newzeros|permute|repeat|"
    "reshape(alias)?|select(backward)?|slice(backward)?|split|squeeze|stack|to(copy)?|transpose|unsafeview|unsqueeze|"
    "view|zeros?"
)
"""Padding and layout: of names without underscores, as those of autograd's nodes are."""


def shares(made: Work, setting: Setting) -> dict[str, float]:
    """Return the share of the wall time by kind of operator; the outermost operator that has a kind decides.

    Kinds are `KINDS`; the operators account for what is not "outside".
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        made.run()
    cuda = setting.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, profile_memory=not cuda) as profiler:
        start = time.perf_counter()
        for _ in range(PROFILED_RUNS):
            made.run()
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    seconds = dict.fromkeys(KINDS, 0.0)
    events = list(profiler.events() or ())
    for event in events:
        if event.device_type.name != "CPU" or event.name == FREED:  # a kernel: its time is its operator's too
            continue
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind, outer = None, event
        while outer is not None:
            kind = kind_of(outer.name) or kind
            outer = outer.cpu_parent
        seconds[kind or "rest"] += max(0.0, own) / 1e6
    seconds["freeing"] = 0.0 if cuda else freeing(events)
    seconds["outside"] = max(0.0, wall - sum(seconds.values()))
    return {name: value / wall for name, value in seconds.items()}


FREED = "[memory]"
"""The profiler's mark where memory was given back outside of all operators."""


def freeing(events: Sequence[Any]) -> float:
    """Return the seconds between operators in which memory was given back: large tensors go to the system at once."""
    marks = sorted(event.time_range.start for event in events if event.name == FREED)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.cpu_parent is None and event.name != FREED
    )
    total, end = 0.0, None
    for start, stop in spans:
        if end is not None and start > end:
            place = bisect.bisect_left(marks, end)
            if place < len(marks) and marks[place] <= start:
                total += start - end
        end = stop if end is None else max(end, stop)
    return total / 1e6


def kind_of(name: str) -> str | None:
    """Return the kind of an operator, or of an autograd node, by its name; None for one that tells nothing of itself.

    What autograd does around a node, as adding gradients up, is the rest.
    """
    if ": " in name:
        return None
    plain = re.sub(r"Backward\d+$", "", name.rpartition("::")[2]).lower()
    if _CONVOLUTION.search(plain):
        return "convolution"
    plain = plain.replace("_", "")
    if _PADDING.fullmatch(plain):
        return "padding"
    return "layout" if _LAYOUT.fullmatch(plain) else None


if __name__ == "__main__":
    main()
