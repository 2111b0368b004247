"""cmd: what programs print, what they must not do, and that an estimate is nowhere called measured."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

import dilrewrite
from dilrewrite.devices import cmd, device
from dilrewrite.errors import MissingError, UsageError
from dilrewrite.runtimes import CannotRun, Options, Runnable, TimedBackend, TimedOut, TimeKind, TimeUnit, prepared
from tests.models_for_tests import cli, conv1d, custom_operator, listing, save, values

FEEDS = {"x": values(1, 2, 16)}

TOOL = """
import json, sys
model, runs, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = open(model, "rb").read()
ms = 5.0 if b"Transpose" in data or b"DepthToSpace" in data else 20.0
print("a line of a log")
print(json.dumps({
    "measured": {"ms": [ms] * runs, "device": "Board X", "version": "1.2"},
    "estimated": {"ms": ms, "estimated": True, "device": "Board X", "version": "1.2"},
    "cycles": {"cycles": ms * 1e6},
}[how]))
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A program in a folder with a space in its name: models with layout operators are fast."""
    path = tmp_path / "a tool" / "to ol.py"
    path.parent.mkdir()
    path.write_text(TOOL)
    return path


def on(tool: Path, how: str) -> str:
    return f"cmd:{shlex.quote(sys.executable)} -S {shlex.quote(str(tool))} {{model}} {{runs}} {how}"


def backend(text: str) -> TimedBackend:
    return device(text).backend("auto")


# -- what is printed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds", "about"),
    [
        ("12.5", (0.0125,), ("measured", "seconds", "", "")),
        ("[1, 2.5]", (0.001, 0.0025), ("measured", "seconds", "", "")),
        ('{"ms": 3, "other": null}', (0.003,), ("measured", "seconds", "", "")),
        ('{"ms": [3, 4], "device": "N 1", "version": "2"}', (0.003, 0.004), ("measured", "seconds", "N 1", "2")),
        ('{"ms": 3, "estimated": true}', (0.003,), ("estimated", "seconds", "", "")),
        ('{"cycles": 5000000}', (0.005,), ("estimated", "cycles", "", "")),
        ('loading\n12 % done\n{"ms": 7}\n\n', (0.007,), ("measured", "seconds", "", "")),
        ('{\n  "ms": 7\n}', (0.007,), ("measured", "seconds", "", "")),
    ],
)
def test_what_programs_may_print(text: str, seconds: tuple[float, ...], about: tuple[str, ...]) -> None:
    answer = cmd.read(text)
    assert answer.seconds == pytest.approx(seconds)
    assert tuple(map(str, answer.about)) == about


@pytest.mark.parametrize(
    "text",
    [
        *("", "done in 5 ms", "0", "-1", "null", "true", '"5"', "[]", "[1, 0]", "[1, null]", "{}", "NaN", "Infinity"),
        *('{"ms": 1, "cycles": 2}', '{"ms": 1, "estimated": "no"}', '{"cycles": 1, "estimated": false}'),
        *('{"ms": 1, "device": 5}', "1e-320", '{"ms": 1e-320}', '{"ms": [1, 1e400]}'),
        f'{{"cycles": 1{"0" * 400}}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(CannotRun, match="it printed "):
        cmd.read(text)


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cmd:", r"no \{model\} is in it"),
        ("cmd:tool --runs {runs}", r"no \{model\} is in it; as --on 'cmd:tool"),
        ("cmd:tool {model} {size}", r"\{size\} stands for nothing"),
        ("cmd:tool {model} {}", r"\{\} stands for nothing"),
        ("cmd:tool {model!r}", r"\{model!r\} stands for nothing"),
        ("cmd:tool {model} {runs:q}", r"\{runs:q\} stands for nothing"),
        ("cmd:tool {model:{a}}", r"\{model:\{a\}\} stands for nothing"),
        ("cmd:tool '{model}", "no closing quotation"),
        ("cmd:tool {model", "expected '}'"),
    ],
)
def test_templates_that_run_nothing(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        device(text)


def test_arguments_are_no_shell() -> None:
    """A space in a path makes no two arguments of it, and what a shell would run is text."""
    template = cmd.Template.of("cmd:  tool '--in={model}' {runs} ; rm '$HOME' --json='{{\"a\": 1}}'")
    place = Path("/a b/m'.onnx")
    assert template.words(place, 7) == [
        *("tool", "--in=/a b/m'.onnx", "7", ";", "rm", "$HOME", '--json={"a": 1}'),
    ]


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(MissingError, match="no-such-program is no program here"):
        backend("cmd:no-such-program {model}")
    with pytest.raises(UsageError, match="the command says what runs"):
        device("cmd:sh {model}").backend("cpu")


# -- calls -------------------------------------------------------------------------------------------------------------


def test_each_time_is_a_call_and_an_estimate_is_one(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Sequence[str]] = []
    monkeypatch.setattr(cmd, "_printed", lambda words, _: calls.append(words) or answer(words))

    def answer(words: Sequence[str]) -> str:
        assert Path(words[-3]).read_bytes()
        return json.dumps({"ms": [2.0] * int(words[-2]), "estimated": words[-1] == "estimated"})

    for how, expected in (("measured", [3, 100, 100, 100]), ("estimated", [3])):
        calls.clear()
        one = backend(on(tool, how))
        bench = one.bench(Options())
        bench.add("a", prepared(one, Runnable(model=conv1d().SerializeToString()), FEEDS), FEEDS)
        bench.open(["a"], 0.0, 3)
        assert bench.run(["a", "a", "a"]) == [0.002] * 3
        assert [int(words[-2]) for words in calls] == expected
        places = {Path(words[-3]) for words in calls}
        bench.close()
        assert [place for place in places if place.parent.exists()] == []
        assert (one.source, one.unit) == (TimeKind(how), TimeUnit.SECONDS)


def test_the_models_have_the_sizes_that_are_timed(tool: Path) -> None:
    one = backend(on(tool, "measured"))
    content, _ = prepared(one, Runnable(model=conv1d(length="n").SerializeToString()), FEEDS).content()
    (size,) = (value.type.tensor_type.shape.dim[2].dim_value for value in onnx.load_from_string(content).graph.input)
    assert size == 16


def test_answers_of_two_kinds(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["1", '{"ms": 1, "estimated": true}'])
    monkeypatch.setattr(cmd, "_printed", lambda _words, _timeout: next(said))
    one = backend(on(tool, "measured"))
    bench = one.bench(Options())
    bench.add("a", prepared(one, Runnable(model=conv1d().SerializeToString()), FEEDS), FEEDS)
    bench.profile("a", 0)
    with pytest.raises(CannotRun, match="first measured seconds, then estimated seconds"):
        bench.run(["a"])
    bench.close()


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    one = backend(f"cmd:sh -c 'sleep 100 & echo $! > {mark}; wait' {{model}}")
    bench = one.bench(Options(timeout_s=1.0))
    bench.add("a", prepared(one, Runnable(model=conv1d().SerializeToString()), FEEDS), FEEDS)
    with pytest.raises(TimedOut, match="sh gave no answer within 1 s"):
        bench.run(["a"])
    pid, until = mark.read_text().strip(), time.monotonic() + 10
    while (state := _state(pid)) not in ("", "Z") and time.monotonic() < until:
        time.sleep(0.02)
    assert state in ("", "Z")
    with pytest.raises(CannotRun, match="gave no answer"):
        bench.profile("a", 0)
    bench.close()


def _state(pid: str) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout[:1]


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.mark.measures
@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("sh -c 'echo fine' {model}", 2, "it printed no JSON; its last line is 'fine'"),
        ("sh -c 'echo no such board >&2; exit 7' {model}", 2, "ended with exit code 7: no such board"),
        ("sh -c 'kill -9 $$' {model}", 2, "ended with exit code -9"),
        ("no-such-program {model}", 4, "no-such-program is no program here"),
        ("tool", 2, "no {model} is in it"),
    ],
)
def test_what_goes_wrong_is_one_line(
    program: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--on", f"cmd:{program}", "--budget", 3, "--no-cache", "--quiet")
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    ran = "{model}" in program and code == 2
    assert outcome.err.endswith("; try the command by hand on the model, or --budget 0 to measure nothing\n") == ran
    assert sorted(listing(tmp_path)) == ["m.onnx"]


@pytest.mark.measures
def test_a_model_that_runs_on_no_runtime_here(tool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data are found here: another backend there is no help."""
    path = save(custom_operator(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--on", on(tool, "measured"), "--budget", 3, "--no-cache", "--quiet")
    assert (outcome.code, outcome.out) == (2, "")
    assert "its inputs cannot be tried: the model does not run on onnxruntime_cpu here: " in outcome.err
    assert outcome.err.endswith("; say with --shape or --inputs what to run it on, or --budget 0 to measure nothing\n")


@pytest.mark.measures
@pytest.mark.parametrize("how", ["estimated", "cycles"])
def test_an_estimate_is_nowhere_called_measured(
    how: str, tool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the whole run: both screens, every file, and of the JSON every sentence."""
    path = save(conv1d(), tmp_path / "m.onnx")
    given = ["--on", on(tool, how), "--budget", 20, "--no-cache", "--report", tmp_path / "r"]
    formats = [part for name in ("json", "markdown", "html", "csv", "junit") for part in ("--report-format", name)]
    screen = cli(capsys, "optimize", path, *given, *formats, "-o", tmp_path / "o.onnx")
    assert screen.code == 0, screen.err
    whole = cli(capsys, "optimize", path, *given, "--force", "-v", "-o", tmp_path / "o.onnx")
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (report["status"], report["measurement"]["source"]) == ("rewritten", "estimated")
    assert report["measurement"]["final"]["ratio"] == pytest.approx(0.25)
    texts = {place.name: place.read_text() for place in (tmp_path / "r").iterdir() if place.suffix != ".json"}
    texts |= {"screen": screen.out, "-v": whole.out}
    assert len(texts) == 6
    assert "with the same --on" in screen.out  # and not: on the machine that will run it
    for name, text in texts.items():
        text = " ".join(re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL).split())
        assert re.findall(r"(?i)(?<!not )\bmeasur(?:ed|ing)\b|\btim(?:ed|ings?)\b", text) == [], name
        assert not re.search(r"\d ms\b(?! by estimate)", text), name
        if name not in ("report.csv", "report.junit.xml"):
            assert re.search("NOT MEASURED: estimated, in |estimated, in [a-z]+: NOT MEASURED", text), name
            assert "not compared there" in text or name == "screen"
    sentences = [word for word in _texts(report) if re.search(r"(?i)(?<!not )\bmeasured\b|\btim(ed|ings?)\b", word)]
    assert sentences == []


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.measures
def test_a_choice_by_a_program(tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it measures decides; the cache knows it by the template and the files in it; outputs are not compared."""
    path, calls = save(conv1d(), tmp_path / "m.onnx"), []

    def printed(words: Sequence[str], _: float | None) -> str:
        calls.append(Path(words[-3]).name)
        fast = any(name in Path(words[-3]).read_bytes() for name in (b"Transpose", b"DepthToSpace"))
        return json.dumps({"ms": [5.0 if fast else 20.0] * int(words[-2]), "device": "Board X", "version": "1.2"})

    monkeypatch.setattr(cmd, "_printed", printed)

    def optimized(how: str = "measured") -> tuple[dilrewrite.Report, int]:
        calls.clear()
        cache = tmp_path / "timings.sqlite"
        report = dilrewrite.optimize(path, tmp_path / "o.onnx", on=on(tool, how), budget=8, cache=cache, force=True)
        return report, len(calls)

    first, asked = optimized()
    measurement = first.measurement
    assert measurement is not None
    assert (first.status, measurement.device, measurement.source) == ("rewritten", "Board X", TimeKind.MEASURED)
    assert measurement.settings["outputs"] == "not compared there"
    assert measurement.others == ()  # what is ready here is not ready there
    assert list(measurement.versions.values()) == ["1.2"]
    assert first.speedup == pytest.approx(4.0)
    assert asked > 24
    again, few = optimized()
    assert again.status == "rewritten"
    assert again.measurement is not None
    assert again.measurement.recalled >= 2
    assert few < asked  # one is asked anew: it says what the answers are
    tool.write_text(TOOL + "# edited")
    edited, _ = optimized()
    assert (edited.measurement and edited.measurement.recalled) == 0
    assert dilrewrite.bench(path, tmp_path / "o.onnx", on=on(tool, "measured"), budget=3).speedup == pytest.approx(4.0)
    inspected = dilrewrite.inspect(path, profile=True, on=on(tool, "measured"))
    assert inspected.measurement is not None
    assert inspected.measurement.profiled_s == pytest.approx(0.02)
