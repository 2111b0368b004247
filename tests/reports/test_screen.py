"""What the command line prints without -v: one screen, which begins and ends with the answer."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace

import pytest
from rich.cells import cell_len

from dilrewrite.reports.content.answer import verdict
from dilrewrite.reports.formats import console, formats
from dilrewrite.reports.report import Report
from tests.reports.examples import (
    BEFORE,
    CHECK,
    ENGINE,
    ENGINE_ON_GPU,
    EQUAL,
    MEASURED,
    REPORTS,
    check_golden,
    conv,
    kept,
    lost,
    region,
    site,
    target_node,
    versus,
    won,
)

KINDS = (
    *("measured", "measured-kept", "measured-inconclusive", "measured-eliminate", "differs", "not-valid"),
    *("dilation-left", "regions", "inspected", "inspected-target", "for-target", "fits-not", "bench", "equal", "built"),
)
"""A report of each kind; the golden file shows them all."""
FILES = ("models/x.dilrewrite.report/report.html", "models/x.dilrewrite.report/report.json")


def rows(text: str, width: int = 80) -> int:
    """How many lines of a terminal a text takes: one that is too long goes on in the next."""
    return sum(max(-(-cell_len(line) // width), 1) for line in text.splitlines())


def flat(text: str) -> str:
    return " ".join(text.split())


def crowd(report: Report) -> Report:
    """A report with more of everything: names, reasons, doubts, notes and failures of any length."""
    words = "because of something that takes many words to say, and still more of them, until it is long enough"
    return replace(
        report,
        sites=(
            *report.sites,
            *(
                make(f"a/rather/long/module/path/of/some/exporter/{i}/conv", geometry=conv(group=i + 1), reason=reason)
                for i in range(40)
                for make, reason in ((won, f"for reason {'x' * i}: {words}"), (lost, f"for reason {'y' * i}: {words}"))
            ),
        ),
        regions=(*report.regions, *(region(f"stem{i}", reason=f"{'z' * i} {words}") for i in range(1, 9))),
        remaining=tuple(f"main/{i}: {words}" for i in range(9)) if report.status == "dilation left" else (),
        notes=tuple(f"note {i}: {words}" for i in range(9)),
        measurement=None
        if report.options.get("target")  # nothing is timed then
        else replace(report.measurement or MEASURED, doubts=tuple(f"doubt {i}: {words}" for i in range(9))),
        before=replace(
            report.before, inputs=BEFORE.inputs * 9, outputs=BEFORE.outputs * 9, path=f"models/{'long/' * 20}x.onnx"
        ),
        verdict=replace(report.verdict or EQUAL, failures=() if not report.verdict else report.verdict.failures * 30),
        files=tuple(f"models/{'long/' * 20}{file}" for file in FILES),
        target=report.target
        and replace(
            report.target,
            remarks=(words,),
            nodes=tuple(
                target_node(
                    f"some/long/path/{i}/{fit}", op="Conv" * (i % 9 + 1), fit=fit, reasons=(f"{'w' * i}: {words}",)
                )
                for i in range(40)
                for fit in ("out of limits", "unknown", "host", "native")
            ),
        ),
        output=report.output and f"models/{'long/' * 20}x.onnx",
    )


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("bench-one", {}, "memory  peak 28.1 MiB"),
        ("bench", {"after": replace(BEFORE, peak_bytes=14_749_696)}, "memory  peak 28.1 MiB -> 14.1 MiB (-50.0 %)"),
        ("bench", {"after": replace(BEFORE, peak_bytes=None)}, "memory  peak 28.1 MiB -> not measured"),
        ("bench-one", {"before": replace(BEFORE, peak_bytes=None)}, None),
        ("measured", {}, None),
    ],
)
def test_peak_memory_of_bench(name, change, line):
    found = [
        row.rstrip() for row in console.on_screen(replace(REPORTS[name], **change), 80).splitlines() if "memory" in row
    ]
    assert found == ([line] if line else [])


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("change", [lambda report: report, lambda report: replace(report, files=FILES), crowd])
def test_one_screen(name, change):
    """At 80 columns no more than 24 lines, and the last of them hold the path of the report and the answer."""
    report = change(REPORTS[name])
    text = console.on_screen(report, 80)
    assert rows(text) <= 24, text
    answer = verdict(report)[:7]
    lines = text.splitlines()
    last = next(place for place, line in enumerate(lines) if line.startswith("report"))
    assert (report.files[0] if report.files else "--report DIR") in lines[last]
    top, bottom = lines[: lines.index("")], lines[last + 1 :]
    assert top == bottom
    assert top[0].startswith(answer)
    assert 1 <= len(top) <= console.ANSWER_LINES


@pytest.mark.parametrize("width", [40, 72, 80, 100, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_no_word_is_broken(name, width):
    """What a line ends with and the next begins with are words of the text, unless one fits no line."""
    words = {word.rstrip(",;:(") for word in console.on_screen(REPORTS[name], 10**6).split()}
    more = r"\band \d+ more \(-v shows all\)"
    for word in re.sub(more, "", console.on_screen(REPORTS[name], width)).split():
        assert word.rstrip(",;:(") in words or "..." in word, word


def test_golden():
    told = "".join(f"$ {name}\n{console.on_screen(replace(REPORTS[name], files=FILES))}\n" for name in KINDS)
    check_golden("screens.txt", told)


@pytest.mark.parametrize("number", [1, 5, 60])
def test_every_doubt_is_shown_or_counted(number):
    doubts = tuple(f"doubt {i} is this one" for i in range(number))
    report = replace(REPORTS["measured"], measurement=replace(MEASURED, doubts=doubts))
    text = console.on_screen(report)
    shown = [line for line in text.splitlines() if line.startswith("! ")]
    more = re.search(r"and (\d+) more \(-v shows all\)", text)
    assert all(f"doubt {i} is" in line for i, line in enumerate(shown))
    assert len(shown) + (int(more[1]) if more else 0) == number
    assert len(shown) == number or number > 5


def test_the_ratio_has_one_direction():
    for name in REPORTS:
        text = flat(console.on_screen(REPORTS[name]))
        assert not re.findall(r"\b\d+\.\d+x(?! (?:slower|faster))", text), text


def test_equal_convs_are_one_line():
    sites = tuple(kept(f"stage{i}/conv") for i in range(24))
    text = console.on_screen(replace(REPORTS["inspected"], sites=(*sites, site("other", geometry=conv(group=2)))))
    assert "24x 3x3 d12 s1 g1 256->256 28x28 p12: stage0/conv, stage1/conv and 22 more" in flat(text)
    assert text.count("3x3 d12") == 2


def test_inspect_shows_inputs_outputs_and_sizes_first():
    lines = console.on_screen(REPORTS["inspected"]).partition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["inputs", "outputs", "model", "work"]
    assert flat(lines[0]) == "inputs image float32 [1, 3, H, W]"
    assert "1.10 MiB" in lines[2]


def test_groups_name_their_nodes_and_why():
    text = flat(console.on_screen(REPORTS["measured"]))
    assert "5 Convs (stage0, stage1 and 3 more, 50.5 % of the time): 1.52x faster than the dilated Conv" in text
    assert "2 Convs (head/a, head/b, 2.4 % of the time): the best other form, tap_zones, is 1.31x slower" in text
    assert "onnxruntime_cpu (onnxruntime 1.24.0), Some Processor 9000, threads 8, image:1x3x224x224" in text


def test_kept_sites_that_differ_in_numbers_and_forms_are_one_group():
    text = flat(console.on_screen(REPORTS["kept"]))
    assert "8 Convs (stage0/conv, stage1/conv and 6 more): " in text
    assert "is 1.64 to 3.00x slower" in text


def test_an_engine():
    for engine in (ENGINE, ENGINE_ON_GPU):
        text = console.on_screen(engine)
        assert rows(text) <= 24
        assert text.splitlines()[0].startswith("x.engine: ")
        assert engine.sha256 not in text
        assert engine.sha256 in console.to_text(engine)


def test_results_that_differ_say_where():
    text = console.on_screen(REPORTS["differs"])
    assert "! output 'scores' on first: NaN or Inf in other places" in flat(text)


def test_unverified_is_loud():
    assert "UNVERIFIED" in console.on_screen(REPORTS["unverified"]).splitlines()[0]


def test_an_output_that_could_not_be_compared_is_not_equal():
    cases = (replace(EQUAL.cases[0], outputs=(CHECK, replace(CHECK, name="b", comparable=False))),)
    report = replace(REPORTS["rewritten"], verdict=replace(EQUAL, cases=cases, deterministic=False))
    assert "equal on 1 input set in 1 of 2 outputs" in flat(console.on_screen(report))


def test_a_loss_is_a_loss():
    report = replace(REPORTS["measured"], measurement=replace(MEASURED, final=versus(10.0, 13.7, 0.01)))
    assert "1.37x slower (10.0 ms -> 13.7 ms)" in console.on_screen(report).splitlines()[0]
    report = replace(REPORTS["measured"], measurement=replace(MEASURED, final=versus(12.6, 10.0, 0.01)))
    assert "1.26x faster (12.6 ms -> 10.0 ms)" in console.on_screen(report).splitlines()[0]


def test_it_is_what_is_shown_by_default(capsys, monkeypatch):
    console.show(REPORTS["measured"])
    assert capsys.readouterr().out == console.on_screen(REPORTS["measured"])
    console.show(REPORTS["measured"], verbose=True)
    assert capsys.readouterr().out == console.to_text(REPORTS["measured"])
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert formats()["console"].render(REPORTS["kept"]) == console.on_screen(REPORTS["kept"])


def test_forms_that_were_proved_and_not_taken_are_not_counted():
    sites = (*REPORTS["rewritten"].sites, replace(site("spare"), action="kept", strategy="keep"))
    text = flat(console.on_screen(replace(REPORTS["rewritten"], sites=sites)))
    assert "proved 2 of 2 forms bit for bit" in text


def in_memory(report, **more):
    """The report of a model in memory, as a caller from Python gets it."""
    before = replace(report.before, path="the model in memory")
    return replace(report, before=before, **{"output": None, "files": (), **more})


@pytest.mark.parametrize("name", [name for name in REPORTS if REPORTS[name].command != "build"])
def test_of_a_model_in_memory_it_speaks_python(name):
    shown = console.on_screen(in_memory(REPORTS[name]), 400)
    assert "dilrewrite optimize" not in shown
    assert "dilrewrite bench" not in shown
    assert not re.search(r"(?<![\w-])(--[a-z]|-v\b)", shown), shown


def test_the_next_call_in_python():
    report = REPORTS["inspected"]
    opened = replace(report.before.inputs[0], name="x", shape="[1, n]")
    before = replace(report.before, inputs=(opened,))
    shown = console.on_screen(in_memory(replace(report, before=before)), 400)
    assert "dilrewrite.optimize(model, shapes=['x:SIZES']): times every form, and makes the fastest model" in shown
    first, second = (replace(report.before, path=f"the {which} model in memory") for which in ("first", "second"))
    equal = replace(REPORTS["equal"], before=first, after=second)
    assert "dilrewrite.bench(first, second): which one is faster" in console.on_screen(equal, 400)


def test_nodes_that_stay_for_one_reason_are_one_line() -> None:
    nodes = ("a (Conv): not ONNX's; export it again", "b (Conv): not ONNX's; export it again", "c: no form applies")
    lines = re.sub(r"\s+", " ", console.on_screen(replace(REPORTS["dilation-left"], remaining=nodes), 200))
    assert "a (Conv), b (Conv): not ONNX's; export it again" in lines
    assert "c: no form applies" in lines
    assert lines.count("export it again") == 1


@pytest.mark.parametrize("name", ["inspected", "equal"])
def test_the_next_command_can_be_typed(name):
    """A shell reads the paths in it as they are."""
    report = REPORTS[name]
    before, after = replace(report.before, path="my model [1].onnx"), replace(BEFORE, path="$other's.onnx")
    shown = console.on_screen(replace(report, before=before, after=after), 400)
    words = shlex.split(re.search(r"dilrewrite (?:optimize|bench) [^:]*(?::SIZES)?(?=: )", shown)[0])
    assert words[2] == before.path
    assert name == "inspected" or words[3] == after.path
