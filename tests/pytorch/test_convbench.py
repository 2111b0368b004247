"""The 2016 benchmark in PyTorch: what is timed, what one method's end does to the others, how it is told."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dilrewrite.errors import MissingError, UsageError
from dilrewrite.pytorch import _child, convbench, formats, probing
from dilrewrite.pytorch.configurations import Configuration, parse
from dilrewrite.pytorch.convbench import PASSES, Result, Row
from dilrewrite.pytorch.methods import methods
from dilrewrite.pytorch.probing import Probe, TorchBench, Work, timed
from dilrewrite.pytorch.setting import Setting
from dilrewrite.timing.stopwatch import Comparison, Timing
from tests.models_for_tests import cli
from tests.reports.examples import check_golden

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

TINY = ("i2x40,k2x3,b1,s1,d4", "i2x8x6,k2x3x3,b1,s1x1,d2x2")
QUICK = Setting(seconds=0.05, threads=1)


def others(*kept: str) -> list[str]:
    """Return what to skip so that these are left."""
    return [name for name in methods() if name not in kept]


# -- real runs ---------------------------------------------------------------------------------------------------------


HUGE = "i100000x999999999,k100000x1,b9,d1"
"""A batch that no address space holds."""


@pytest.fixture(scope="module")
def measured() -> Result:
    setting = replace(QUICK, profile=True)
    return convbench.run([parse(HUGE), parse(TINY[0])], setting, skip=others("keep"))


@needs_torch
@pytest.mark.measures
def test_out_of_memory_is_a_row(measured: Result) -> None:
    assert [row.failure for row in measured.rows] == ["out of memory"] * 3 + [""] * 3
    for row in measured.rows[3:]:
        assert row.timing is not None
        assert row.comparison is not None
        assert tuple(row.shares) == _child.KINDS


@needs_torch
@pytest.mark.measures
def test_every_form_of_a_real_result(measured: Result) -> None:
    for form in formats.FORMATS.values():
        text = form(measured)
        for configuration in measured.configurations:
            assert configuration.text in text
        assert text.endswith("\n")


def applying(configuration: Configuration) -> list[str]:
    """Return the methods that take it."""
    return [name for name, one in methods().items() if one.refusal(configuration.geometry()) is None]


@needs_torch
@pytest.mark.measures
@pytest.mark.grid(8)
@pytest.mark.parametrize("one", PASSES)
@pytest.mark.parametrize(("text", "name"), [(text, name) for text in TINY for name in applying(parse(text))])
def test_a_pass_of_a_method(text: str, name: str, one: str) -> None:
    """As its process measures it: peak, times in pairs, and a profile that accounts for the wall time."""
    answer = _child.answer(parse(text), name, one, replace(QUICK, profile=True))
    comparison = convbench._comparison(answer["comparison"])
    assert comparison.pairs >= 6
    assert 0 < comparison.low <= comparison.ratio <= comparison.high
    assert 0 < comparison.second.p20_s <= comparison.second.median_s <= comparison.second.p80_s
    assert answer["peak_bytes"] is None or answer["peak_bytes"] >= 0
    shares = answer["shares"]
    assert tuple(shares) == _child.KINDS
    assert all(0 <= share <= 1.05 for share in shares.values())
    assert sum(shares.values()) <= 1.05
    assert shares["convolution"] > 0
    if name == "keep":
        assert shares["layout"] == shares["padding"] == 0
    if name in ("im2col", "phases_apart", "slice_to_batch", "space_to_batch", "space_to_group"):
        assert shares["layout"] > 0
    if name == "im2col" and one != "backward by weight":
        assert shares["padding"] > 0


LARGER = parse("i128x32x32,k128x3x3,b4,d4x4")


@needs_torch
@pytest.mark.measures
@pytest.mark.grid(8)
@pytest.mark.parametrize("one", PASSES)
@pytest.mark.parametrize("name", applying(LARGER))
def test_operators_account_for_nine_tenths_of_the_wall_time(name: str, one: str) -> None:
    """Of a size where Python does not count: what no operator explains is told apart, and is little."""
    work = _child.work(LARGER, name, one, QUICK)
    explained = 0.0
    for _ in range(10):  # a machine that does something else in between may take some
        found = _child.shares(work, QUICK)
        explained = max(explained, sum(share for kind, share in found.items() if kind != "outside"))
        if explained >= 0.9:
            break
    assert 0.9 <= explained <= 1.05, found


@needs_torch
@pytest.mark.measures
@pytest.mark.parametrize("one", PASSES)
def test_the_fewest_runs(one: str) -> None:
    answer = _child.answer(parse(TINY[0]), "keep", one, replace(QUICK, repeats=9, seconds=0.001))
    assert answer["comparison"]["second"]["runs"] >= 9


@needs_torch
@pytest.mark.parametrize("steps", [1, 7])
def test_the_mean_of_the_steps_of_a_run_counts(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    done: list[int] = []

    def run() -> None:
        done.append(1)
        now[0] += 3_000_000

    monkeypatch.setattr(probing, "time", SimpleNamespace(perf_counter_ns=lambda: now[0]))
    bench = TorchBench({"a": Probe(lambda _passes: Work(run))}, ("forward",), steps)
    bench.open(["a"], runs=1)
    done.clear()
    assert bench.run(["a", "a"]) == pytest.approx([0.003, 0.003])
    assert len(done) == 2 * steps


@needs_torch
@pytest.mark.measures
def test_the_peak_is_of_all_tensors_of_the_pass() -> None:
    """Input, weight and output of the forward; the backward passes hold the output's gradient, and the graph, too."""
    configuration = parse("i16x256x256,k16x3x3,b1,d2x2")
    tensor = 16 * 256 * 256 * 4
    result = convbench.run([configuration], QUICK, skip=others("keep", "tap_sum"))
    peaks = {(row.method, row.direction): row.peak_bytes for row in result.rows}
    if None in peaks.values():
        pytest.skip("this system tells no peak")
    for one in PASSES:
        kept, summed = peaks["keep", one], peaks["tap_sum", one]
        assert kept is not None
        assert summed is not None
        assert (2 if one == "forward" else 3) * tensor <= kept <= 10 * tensor, "with oneDNN's copies in its own layout"
        assert summed >= kept + 3 * tensor, "a tap's cut, its result, and the sum"


def test_freed_memory_is_kept_for_the_next_run() -> None:
    """By the pages that the system hands out: none when the same size comes again."""
    program = """
import resource, sys
from dilrewrite.pytorch import _child

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(1 << 27)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if not _child.keep_memory():
    sys.exit("not glibc")
print(pages(), pages())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    if "not glibc" in done.stderr:
        pytest.skip("not glibc")
    first, again = map(int, done.stdout.split())
    assert first > 50 * again


# -- what is inside of the clock ---------------------------------------------------------------------------------------


@needs_torch
def test_a_slow_forward_is_in_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _child.prepare

    def slow(name: str, geometry: Any) -> Callable[..., Any]:
        form = real(name, geometry)

        def run(*tensors: Any) -> Any:
            time.sleep(0.05)
            return form(*tensors)

        return run

    monkeypatch.setattr(_child, "prepare", slow)
    seconds = {}
    for one in PASSES:
        work = _child.work(parse(TINY[0]), "keep", one, QUICK)
        seconds[one] = min(timed(work.run, "cpu") for _ in range(5))
    assert seconds["forward"] >= 0.05
    assert seconds["backward by input"] < 0.04
    assert seconds["backward by weight"] < 0.04


@needs_torch
@pytest.mark.parametrize("one", PASSES)
def test_what_a_pass_asks_for(monkeypatch: pytest.MonkeyPatch, one: str) -> None:
    """The input's gradient alone or the weight's alone, by one upstream gradient, on one graph."""
    import torch

    asked: list[tuple[tuple[int, ...], ...]] = []
    upstream: list[int] = []
    real = torch.autograd.grad

    def spy(y: Any, wanted: Any, gradient: Any, **options: Any) -> Any:
        asked.append(tuple(tuple(tensor.shape) for tensor in wanted))
        upstream.append(id(gradient))
        found = real(y, wanted, gradient, **options)
        assert all(tensor is not None for tensor in found)
        return found

    monkeypatch.setattr(torch.autograd, "grad", spy)
    configuration = parse("i2x40,k4x3,b1,s1,d4")
    work = _child.work(configuration, "im2col", one, QUICK)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: pytest.fail("random data were made inside of the clock"))
    work.run()
    work.run()
    shape = {"backward by input": configuration.x_shape, "backward by weight": configuration.weight_shape}.get(one)
    assert asked == ([] if shape is None else [(shape,)] * 2)
    assert len(set(upstream)) == (0 if shape is None else 1)


# -- where the time goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::conv1d", "convolution"),
        ("aten::conv_transpose2d", "convolution"),
        ("aten::_convolution", "convolution"),
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::_slow_conv2d_backward", "convolution"),
        ("aten::thnn_conv2d", "convolution"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::convolution_overrideable", "convolution"),
        ("aten::_convolution_double_backward", "convolution"),
        ("ConvolutionBackward0", "convolution"),
        ("ConvolutionBackwardBackward0", "convolution"),
        ("aten::addmm", "convolution"),
        ("aten::bmm", "convolution"),
        ("aten::pad", "padding"),
        ("aten::constant_pad_nd", "padding"),
        ("ConstantPadNdBackward0", "padding"),
        ("aten::cat", "layout"),
        ("CatBackward0", "layout"),
        ("aten::slice", "layout"),
        ("aten::slice_backward", "layout"),
        ("SliceBackward0", "layout"),
        ("aten::permute", "layout"),
        ("aten::copy_", "layout"),
        ("aten::_to_copy", "layout"),
        ("aten::_unsafe_view", "layout"),
        ("UnsafeViewBackward0", "layout"),
        ("ReshapeAliasBackward0", "layout"),
        ("aten::add", None),
        ("aten::add_", None),
        ("aten::sum", None),
        ("aten::empty", None),
        ("aten::resize_", None),
        ("autograd::engine::evaluate_function: SliceBackward0", None),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", None),
        ("Torch-Compiled Region: 0/0", None),
    ],
)
def test_the_kind_of_an_operator(name: str, kind: str | None) -> None:
    assert _child.kind_of(name) == kind


@needs_torch
@pytest.mark.measures
def test_the_outermost_operator_decides() -> None:
    """The copy that padding makes is padding, the one that a slice's copy makes is layout; sleep is outside."""
    import torch

    x = torch.ones(1 << 18)
    pad, copy = (lambda: torch.nn.functional.pad(x, (1, 1))), (lambda: x[1:].clone())
    found = _child.shares(Work(lambda: [pad() for _ in range(20)] and None), QUICK)
    assert found["padding"] > 0.5
    assert found["layout"] == found["convolution"] == 0
    found = _child.shares(Work(lambda: [copy() for _ in range(20)] and None), QUICK)
    assert found["layout"] > 0.5
    assert found["padding"] == found["convolution"] == 0
    found = _child.shares(Work(lambda: time.sleep(0.02)), QUICK)
    assert found["outside"] > 0.9


def test_freeing_is_the_gap_with_a_mark() -> None:
    """Of gaps between the outermost operators only; overlapping ones leave none."""

    def event(name: str, start: float, end: float, parent: object = None) -> SimpleNamespace:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), cpu_parent=parent)

    events = [
        event("a", 0, 10),
        event("inside of a", 2, 3, parent="a"),
        event(_child.FREED, 15, 15),
        event("b", 20, 60),
        event("c", 30, 50),
        event(_child.FREED, 55, 55),
        event("d", 100, 110),
        event(_child.FREED, 120, 120),
    ]
    assert _child.freeing(events) == pytest.approx(10e-6)
    assert _child.freeing(events[:2]) == _child.freeing([]) == 0


@needs_torch
@pytest.mark.measures
def test_large_tensors_take_time_to_free() -> None:
    import torch

    found = _child.shares(Work(lambda: [torch.empty(1 << 25).fill_(1.0) for _ in range(2)] and None), QUICK)
    assert found["freeing"] > found["outside"]


# -- what one method's end does to the others --------------------------------------------------------------------------

STAND_IN = """#!{python} -S
import json, os, signal, sys, time

if sys.argv[-1] == "environment":
    print(json.dumps({{"torch": "2.13.0", "cuda": False, "device": "cpu"}}))
    sys.exit()
question = json.load(sys.stdin)
timing = dict(median_s=0.002, p20_s=0.001, p80_s=0.003, runs=6)
told = dict(first=timing, second=timing, ratio=1, low=0.9, high=1.1, pairs=6, noise=None, mode="interleaved")
for one in ("forward", "backward by input", "backward by weight"):
    if question["method"] == "tap_sum" and one == "backward by weight":
        {end}
    print(json.dumps({{one: {{"peak_bytes": 4096, "comparison": told}}}}), flush=True)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Let each method's process be one that answers at once, tap_sum's after two passes as `end` says."""
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, end=end))
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "out of memory (the process was killed)"),
        ("time.sleep(60)", "no answer within 2.3 s"),
        ("sys.exit('first line\\nlast line')", "the process ended with 1: last line"),
        ("os.abort()", "killed by SIGABRT"),
        ('print(\'{{"backward by we\', end="", flush=True); os.kill(os.getpid(), signal.SIGKILL)', "out of memory"),
        ("continue", "no answer"),
        ("told = None; print(json.dumps({{one: {{'failure': 'broken'}}}})); continue", "broken"),
    ],
    ids=["killed", "too long", "ended", "aborted", "cut", "silent", "failed"],
)
def test_the_end_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, failure: str) -> None:
    """Only what it did not answer is missing."""
    stand_in(tmp_path, monkeypatch, end.replace("{{", "{").replace("}}", "}"))
    result = convbench.run([parse(text) for text in TINY], replace(QUICK, timeout_s=2))
    assert len(result.rows) == len(TINY) * len(methods()) * len(PASSES)
    for row in result.rows:
        if row.method == "tap_sum" and row.direction == "backward by weight":
            assert row.comparison is None
            assert row.failure.startswith(failure)
            assert not row.refused
        elif not row.refused:
            assert row.failure == ""
            assert row.timing is not None
            assert row.peak_bytes == 4096
    text = formats.original(result)
    assert text.count("FAILED ") == sum(row.comparison is None for row in result.rows)


def test_a_failing_pass_leaves_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    import dataclasses
    import io

    failures = {
        "forward": RuntimeError("one\n two"),
        "backward by input": MemoryError(),
        "backward by weight": KeyError(),
    }

    def fail(_configuration: Any, _name: str, one: str, _setting: Setting) -> dict[str, Any]:
        raise failures[one]

    monkeypatch.setattr(_child, "answer", fail)
    question = {
        "configuration": dataclasses.asdict(parse(TINY[0])),
        "method": "keep",
        "setting": dataclasses.asdict(replace(QUICK, threads=None)),
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(question)))
    monkeypatch.setattr(sys, "argv", ["_child", "rows"])
    _child.main()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        {"forward": {"failure": "one two"}},
        {"backward by input": {"failure": "out of memory"}},
        {"backward by weight": {"failure": "KeyError"}},
    ]


def test_refusals_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that does not apply says why in each pass: here no tap touches data."""
    stand_in(tmp_path, monkeypatch, "pass")
    configuration = parse("i2x9,k2x2,b1,s1,d40")
    refusing = set(methods()) - set(applying(configuration))
    assert refusing
    result = convbench.run([configuration], QUICK)
    assert {row.method for row in result.rows if row.refused} == refusing
    assert [(row.method, row.direction) for row in result.rows] == list(itertools.product(methods(), PASSES))
    assert result.rows[0].method == "keep"
    for row in result.rows:
        assert (row.comparison is None) == row.refused == bool(row.failure)


def test_the_same_configuration_twice_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "pass")
    result = convbench.run([parse("1"), parse("2"), parse("original-64"), parse("1")], QUICK)
    assert [one.name for one in result.configurations] == ["original-64", "original-32"]
    every = itertools.product((one.text for one in result.configurations), methods(), PASSES)
    assert [(row.configuration, row.method, row.direction) for row in result.rows] == list(every)


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "pass")
    seen: list[tuple[str, int, int]] = []
    convbench.run([parse(TINY[0])], QUICK, skip=others("keep", "im2col"), progress=lambda *step: seen.append(step))
    assert seen == [("convbench", 0, 2), ("convbench", 1, 2), ("convbench", 2, 2)]


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "variable", "left_out"),
    [
        (["im2col"], "", {"im2col"}),
        ([], "im2col", {"im2col"}),
        (["im2col", "tap_sum"], "im2col", {"im2col", "tap_sum"}),
        ([], "im2col tap_sum", {"im2col", "tap_sum"}),
        (["im2col,tap_sum"], "", {"im2col", "tap_sum"}),
        ([], "", set()),
    ],
)
def test_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], variable: str, left_out: set[str]
) -> None:
    """The option and the variable agree."""
    stand_in(tmp_path, monkeypatch, "pass")
    monkeypatch.setenv("SKIP", variable)
    result = convbench.run([parse(TINY[0])], QUICK, skip=given)
    assert {row.method for row in result.rows} == set(methods()) - left_out


def test_an_unknown_method(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, variable in ((["magic"], ""), ([], "magic")):
        monkeypatch.setenv("SKIP", variable)
        with pytest.raises(UsageError, match="there is no method 'magic'; known are keep, im2col, "):
            convbench.run([parse(TINY[0])], QUICK, skip=given)


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable} -S\nraise ModuleNotFoundError(\"No module named 'torch'\")\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    with pytest.raises(MissingError, match=r"torch is not installed; pip install 'dilrewrite\[torch\]'"):
        convbench.run([parse(TINY[0])], QUICK)


def test_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "pass")
    with pytest.raises(
        MissingError, match=r"--device cuda:1: torch 2\.13\.0 reaches no CUDA device; leave --device out"
    ):
        convbench.run([parse(TINY[0])], replace(QUICK, device="cuda:1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"element": "float8"}, "--dtype float8: not one of float32, bfloat16, float16"),
        ({"seconds": 0.0}, "--seconds 0.0: more than 0 is needed"),
        ({"seconds": float("nan")}, "--seconds nan: more than 0 is needed"),
        ({"warmup": -1.0}, "--warmup -1.0: 0 or more is needed"),
        ({"device": "tpu"}, "--device tpu: not one of cpu, cuda, cuda:N"),
        ({"device": "cudax"}, "--device cudax: not one of"),
        ({"device": "cuda:"}, "--device cuda:: not one of"),
        ({"device": "cuda:-1"}, "--device cuda:-1: not one of"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(QUICK, **change).check()
    assert words in str(caught.value)


# -- how it is told ----------------------------------------------------------------------------------------------------


def row(text: str, name: str, direction: str, native_s: float, own_s: float, **more: Any) -> Row:
    first, second = (
        Timing(median_s=median, p20_s=0.9 * median, p80_s=1.2 * median, runs=20) for median in (native_s, own_s)
    )
    ratio = own_s / native_s
    found = Comparison(
        first=first,
        second=second,
        ratio=ratio,
        low=0.98 * ratio,
        high=1.03 * ratio,
        pairs=20,
        noise=None,
        mode="interleaved",
    )
    return Row(configuration=text, method=name, direction=direction, comparison=found, **more)


def example() -> Result:
    """Two configurations: times, a refusal, a method that ran out of memory, and one that failed in one pass."""
    first, second = parse("original-64"), parse(TINY[0])
    shares = {"convolution": 0.712, "layout": 0.204, "padding": 0.05, "rest": 0.014, "freeing": 0.01, "outside": 0.01}
    rows = [
        row(first.text, "keep", PASSES[0], 0.1234, 0.1232, peak_bytes=5 << 20, shares=shares),
        row(first.text, "keep", PASSES[1], 1.2345, 1.2345, peak_bytes=12_345_678, shares=shares),
        row(first.text, "keep", PASSES[2], 0.3, 0.2996, shares=shares),
        row(first.text, "space_to_batch", PASSES[0], 0.1234, 0.0456, peak_bytes=0, shares=shares),
        row(first.text, "space_to_batch", PASSES[1], 1.2345, 12.345, peak_bytes=3 << 30, shares=shares),
        Row(configuration=first.text, method="space_to_batch", direction=PASSES[2], failure="[bold] a | b"),
    ]
    for name, failure, refused in (
        ("im2col", "out of memory (the process was killed)", False),
        ("space_to_group", "no axis is dilated", True),
    ):
        rows += [
            Row(configuration=first.text, method=name, direction=one, failure=failure, refused=refused)
            for one in PASSES
        ]
    rows += [row(second.text, "keep", one, 0.000012345, 0.00001234) for one in PASSES]
    return Result(
        rows=tuple(rows),
        configurations=(first, second),
        setting=Setting(channels_last=True, deterministic=True, profile=True),
        device="Some Processor 9000, 8 threads",
        versions={"torch": "2.13.0"},
        date="2026-01-02",
        minutes=3.25,
        keeps_memory=True,
    )


@pytest.mark.parametrize(
    ("form", "name"),
    [("original", "convbench-original.txt"), ("table", "convbench-table.txt"), ("markdown", "convbench-markdown.md")],
)
def test_golden(form: str, name: str) -> None:
    check_golden(name, formats.FORMATS[form](example()))


def test_json() -> None:
    told = json.loads(formats.as_json(example()))
    assert [one["name"] for one in told["configurations"]] == ["original-64", ""]
    assert told["setting"]["channels_last"] is True
    assert told["versions"] == {"torch": "2.13.0"}
    assert len(told["rows"]) == len(example().rows)
    first, failed = told["rows"][0], told["rows"][5]
    assert (first["method"], first["direction"], first["peak_bytes"]) == ("keep", "forward", 5 << 20)
    assert first["comparison"]["second"]["median_s"] == 0.1232
    assert first["shares"]["layout"] == 0.204
    assert (failed["comparison"], failed["failure"], failed["refused"]) == (None, "[bold] a | b", False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.00"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (123.4, "123"),
        (9.996, "10.0"),
        (999.6, "1000"),
        (1234.5, "1230"),
        (1e9, "1000000000"),
        (0.0999, "0.0999"),
        (0.000012345, "0.0000123"),
        (1.5e-12, "0.00000000000150"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert formats.figure(value) == text


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, whose methods' processes answer at once, with torch or without."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, monkeypatch, "pass")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if name == "torch" else name))


@pytest.mark.usefixtures("instant")
def test_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli(capsys, "convbench", TINY[0], "--format", "original", "--skip", "im2col")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"CONFIG: {TINY[0]}"
    assert lines[1] == "keep                 ==> fprop          ==> 2 ms"
    assert "im2col DCD" not in outcome.out
    assert json.loads(cli(capsys, "convbench", "3", "--format", "json").out)["configurations"][0]["name"]
    assert "| keep | forward | 2.00 |" in cli(capsys, "convbench", "3", "--format", "markdown").out
    assert "where the time goes" not in cli(capsys, "convbench", "3").out
    quiet = cli(capsys, "convbench", "3", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.usefixtures("instant")
def test_without_configurations_the_original_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = cli(capsys, "convbench", "--format", "json", "--repeats", 20, "--warmup", 0.5).report
    assert [one["name"] for one in report["configurations"]] == ["original-64", "original-32", "original-16"]
    assert (report["setting"]["repeats"], report["setting"]["warmup"]) == (20, 0.5)


@pytest.mark.usefixtures("instant")
def test_the_output(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "told.json"
    arguments = ("convbench", TINY[0], "--format", "json", "--output", place)
    outcome = cli(capsys, *arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    written = place.read_text()
    assert json.loads(written)["rows"]
    with monkeypatch.context() as patch:
        patch.setattr(convbench, "run", lambda *_, **__: pytest.fail("something was timed"))
        refused = cli(capsys, *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert str(place) in refused.err
    assert len(refused.err.splitlines()) == 1
    assert place.read_text() == written
    assert cli(capsys, *arguments, "--force").code == 0
