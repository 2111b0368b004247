"""What the command line prints: the answer first, everything below it, no markup taken from names."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from dilrewrite.reports import content, units
from dilrewrite.reports.content.answer import answer as answered
from dilrewrite.reports.formats import console, formats, markdown
from dilrewrite.reports.report import Report
from tests.reports.examples import (
    BEFORE,
    CHECK,
    ENGINE,
    ENGINE_MODEL,
    ENGINE_OF_REWRITTEN,
    ENGINE_ON_GPU,
    EQUAL,
    LAYERS,
    LOOP,
    MEASURED,
    ODD,
    REPORTS,
    check_golden,
    conv,
    kept,
    lost,
    site,
    timed,
    timing,
    versus,
    won,
)

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def head(text: str) -> str:
    """The answer at the top, in one line."""
    return " ".join(text.partition("\n\n")[0].split())


def first(name: str) -> str:
    return head(console.to_text(REPORTS[name]))


def flat(text: str) -> str:
    """Return the text without what wrapping and boxes put in."""
    return re.sub(r"[\s│]+", "", text)


@pytest.mark.parametrize("name", ["measured", "inspected", "differs", "regions", "regions-inspected"])
def test_golden(name):
    check_golden(f"{name}.txt", console.to_text(REPORTS[name]))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [10, 72, 100, 200])
def test_fits(name, width):
    lines = console.to_text(REPORTS[name], width).splitlines()
    assert max(map(cell_len, lines)) <= max(width, console.MIN_WIDTH)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", [name for name in REPORTS if "odd-names" not in name])
@pytest.mark.parametrize("width", [72, 80, 100])
def test_no_word_is_broken_in_tables(name, width):
    """Every word is one of the whole text; names over numbers may break behind a hyphen."""
    whole = console.to_text(REPORTS[name], 10**6)
    known = {part.rstrip(",;:") for word in whole.split() for part in (word, *re.split(r"(?<=-)", word))}
    labels = {"type", "shape", "dilated", "key", "result", "rel"}  # of columns that a list names one by one
    for word in re.sub(r"[^\w\s]*[─│][^\w\s]*", " ", console.to_text(REPORTS[name], width)).split():
        assert word.rstrip(",;:") in known | labels or "..." in word, word


def test_what_fits_no_table_is_a_list():
    names = [f"{i}" * 30 for i in range(4)]
    report = replace(REPORTS["measured"], sites=tuple(won(name, question=i) for i, name in enumerate(names)))
    text = console.to_text(report, 72)
    assert all(f"{name}" in text for name in names)
    name = "a_module." * 30
    assert re.search(
        r"a_module\.[\w.]*\.\.\.[\w.]*a_module\.", console.to_text(replace(report, sites=(won(name),)), 72)
    )


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [72, 80, 100])
def test_tables_are_not_cut_off(name, width):
    lines = console.to_text(REPORTS[name], width).splitlines()
    ends = {"╭": "╮", "│": "│", "├": "┤", "╰": "╯"}
    assert all(line.endswith(ends[line[0]]) for line in lines if line[:1] in ends)


# -- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("rewritten", "rewrote 2 of 5 dilated Convs; equal on 1 input set; models/x.dilrewrite.onnx"),
        ("many-equal", "rewrote 24 of 24 dilated Convs; equal on 1 input set; models/x.dilrewrite.onnx"),
        ("dry-run", "would rewrite 2 of 5 dilated Convs; equal on 1 input set; dry run: nothing written"),
        (
            "kept",
            "kept all 8: the best other form, space_to_batch or zero_fill, is 1.64 to 3.00x "
            "slower; models/x.dilrewrite.onnx is a byte-identical copy",
        ),
        ("nothing-to-rewrite", "nothing to rewrite: no dilated Conv; the output is a byte-identical copy"),
        ("differs", "RESULTS DIFFER: no model written"),
        ("verify-differs", "RESULTS DIFFER: models/x.dilrewrite.onnx does not compute what models/x.onnx does"),
        ("dilation-left", "DILATION LEFT: 2 of 3 dilated Convs keep a dilation above 2; no model written"),
        ("inspected-nothing", "no dilated Conv in models/x.onnx"),
        ("equal", "equal on 2 input sets: models/x.onnx and models/x.dilrewrite.onnx"),
        ("unverified", "rewrote 2 of 5 dilated Convs; UNVERIFIED; models/x.dilrewrite.onnx"),
        (
            "whole-model-skipped",
            "rewrote 2 of 5 dilated Convs; every form proved, whole model not run: onnxruntime_cpu does not load the "
            "original: no kernel for com.example.Magic; models/x.dilrewrite.onnx",
        ),
        (
            "measured",
            "rewrote 5 of 7 dilated Convs: 1.21x faster on onnxruntime_cpu (14.2 ms -> 11.7 ms, 95 % interval 1.18 to "
            "1.24x faster); equal on 1 input set; models/x.dilrewrite.onnx",
        ),
        (
            "measured-same",
            "rewrote 5 of 7 dilated Convs: no difference beyond noise on onnxruntime_cpu (14.2 ms -> 14.1 ms, "
            "95 % interval 1.018x slower to 1.032x faster); equal on 1 input set; models/x.dilrewrite.onnx",
        ),
        (
            "measured-eliminate",
            "rewrote 2 of 2 dilated Convs: 1.31x slower on onnxruntime_cpu (11.7 ms -> 15.3 ms, 95 % interval 1.28 to "
            "1.34x slower); equal on 1 input set; models/x.dilrewrite.onnx",
        ),
        (
            "measured-kept-all",
            "kept all 3: nothing beats the dilated Convs on onnxruntime_cpu (3 sites measured in 14.1 s); "
            "models/x.dilrewrite.onnx is a byte-identical copy",
        ),
        (
            "measured-kept",
            "kept all 10: nothing measured beats the dilated Convs on onnxruntime_cpu (3 of 10 sites measured in "
            "14.1 s); the others: cannot matter: 0.02 to 0.05 % of the time (4 of 7); not measured: budget (1 of 7); "
            "failed: the process was killed by SIGSEGV (1 of 7); other reasons below; models/x.dilrewrite.onnx is a "
            "byte-identical copy",
        ),
        (
            "measured-no-version-wins",
            "kept all 2: no rewritten model beats the original on onnxruntime_cpu (1 rewritten version timed, 2 sites "
            "measured in 14.1 s); models/x.dilrewrite.onnx is a byte-identical copy",
        ),
        (
            "measured-dry-run",
            "4 dilated Convs: measuring their forms would take about 11.7 s on onnxruntime_cpu; dry run: nothing "
            "written",
        ),
        (
            "measured-inspected",
            "2 dilated Convs in models/x.onnx; 20.2 % of its time on onnxruntime_cpu; 509 M multiply-adds, 10.2 % of "
            "them on padding only",
        ),
        (
            "bench",
            "models/y.onnx is 1.031x slower than models/x.onnx on onnxruntime_cpu (14.2 ms -> 14.6 ms, 95 % interval "
            "1.023 to 1.039x slower)",
        ),
        (
            "bench-same",
            "no difference beyond noise between models/x.onnx and models/y.onnx on onnxruntime_cpu "
            "(14.2 ms -> 14.2 ms, 95 % interval 1.005x slower to 1.009x faster)",
        ),
        (
            "bench-one",
            "models/x.onnx takes 14.2 ms on onnxruntime_cpu (20 to 80 % of 40 runs: 13.9 to 14.6 ms; noise 0.9 %)",
        ),
        (
            "built",
            "built models/x.engine: tensorrt-rtx 1.7.1.116, fp16 (19 convolutions in Half), 34 layers, 1.31 MiB in "
            "0.35 s; not run: tensorrt-rtx builds engines here and runs none: there is no NVIDIA driver: "
            "libcuda.so.1: not found",
        ),
        (
            "built-on-gpu",
            "built models/x.engine: tensorrt 10.13.3.9, tf32 (3 convolutions: 2 in Float, 1 in Half), 4 layers, "
            "2.61 MiB in 41.2 s; equal to ONNX Runtime within 0.005 |value| + 0.001 max|values| on NVIDIA Some GPU",
        ),
        (
            "engine-of-rewritten",
            "rewrote 5 of 7 dilated Convs: 1.21x faster on onnxruntime_cpu (14.2 ms -> 11.7 ms, 95 % interval 1.18 to "
            "1.24x faster); equal on 1 input set; models/x.dilrewrite.onnx; engine x.dilrewrite.engine (tensorrt-rtx "
            "1.7.1.116, bf16, chosen on onnxruntime_cpu, not measured on TensorRT)",
        ),
        ("verify-engine", "equal on 1 input set: models/x.onnx and models/x.engine"),
    ],
)
def test_answer(name, answer):
    assert first(name) == answer


def test_never_says_equal_when_nothing_was_compared():
    outputs = (replace(CHECK, comparable=False),)
    cases = (replace(EQUAL.cases[0], outputs=outputs),)
    for verdict in (
        None,
        replace(EQUAL, cases=()),
        replace(EQUAL, cases=cases, deterministic=False),
        replace(EQUAL, cases=(replace(EQUAL.cases[0], outputs=()),)),
        replace(EQUAL, level="none", cases=()),
        replace(EQUAL, level="sites", skipped="--verify sites: the whole model was not run", cases=()),
        replace(EQUAL, passed=False),
    ):
        report = replace(REPORTS["rewritten"], verdict=verdict)
        assert "equal" not in answered(report), verdict
        report = replace(REPORTS["equal"], verdict=verdict)
        assert "equal" not in answered(report), verdict


def test_not_every_form_proved():
    report = REPORTS["whole-model-skipped"]
    report = replace(report, sites=(site("a"), site("b", proof=None)))
    assert "every form proved" not in answered(report)


def test_one_kept():
    report = replace(REPORTS["kept"], sites=(kept("a"),))
    assert answered(report).startswith("kept the only dilated Conv: the best other form, space_to_batch, is")


def test_kept_among_others_that_cannot_be_rewritten():
    report = replace(REPORTS["kept"], sites=(kept("a"),), skipped=REPORTS["rewritten"].skipped)
    assert answered(report).startswith("kept all 3 (2 of them cannot be rewritten): the best")


def test_nothing_that_can_be_rewritten():
    report = replace(REPORTS["nothing-to-rewrite"], skipped=REPORTS["rewritten"].skipped)
    assert answered(report).startswith("nothing to rewrite: none of 2 dilated Convs can be rewritten; the output")


def test_nothing_to_rewrite_but_attributes():
    report = REPORTS["nothing-to-rewrite"]
    assert report.after is not None
    report = replace(report, after=replace(report.after, sha256="other"), verdict=EQUAL)
    assert answered(report).endswith("; the output differs in attributes only; equal on 1 input set")


def test_failures_come_first():
    lines = console.to_text(REPORTS["differs"]).splitlines()
    assert lines[2:5] == [
        "failures",
        "- output 'scores' on first: NaN or Inf in other places",
        "- metadata differ",
    ]


def test_remaining_nodes_come_with_their_reasons():
    lines = console.to_text(REPORTS["dilation-left"]).splitlines()
    assert lines[3:5] == [
        "- b: no other form applies",
        "- up (ConvTranspose): ConvTranspose is not rewritten",
    ]


# -- what must be there ----------------------------------------------------------------------------------------------


def test_equal_sites_are_one_row():
    text = console.to_text(REPORTS["many-equal"])
    assert "and 21 more" in text
    assert text.count("3x3 d12 s1 g1 256->256 28x28 p12") == 1


@pytest.mark.parametrize("name", ["inspected", "kept", "differs", "dilation-left"])
def test_every_refusal_is_there(name):
    text = flat(console.to_text(REPORTS[name]))
    for reported in REPORTS[name].sites:
        for refusal in reported.refused:
            assert flat(refusal.reason) in text


def test_inspect_shows_every_form_with_its_estimate():
    text = console.to_text(REPORTS["inspected"])
    assert re.search(r"tap_zones +│ +236 M │ +395 k │ +21 │ +12 ", text)
    assert re.search(r"\(assumed │.*\n.*sizes\)", text)


def test_outputs_that_differ_are_never_left_out():
    outputs = (*(replace(CHECK, name=f"o{i}") for i in range(60)), replace(CHECK, name="wrong", passed=False))
    cases = (replace(EQUAL.cases[0], outputs=outputs),)
    text = console.to_text(replace(REPORTS["rewritten"], verdict=replace(EQUAL, cases=cases)))
    assert "wrong" in text
    assert f"and {61 - content.models.BRIEF_OUTPUTS} more, all equal" in text


def test_unverified_is_loud():
    text = console.to_text(REPORTS["unverified"])
    assert "UNVERIFIED: nothing was proved or run" in text
    assert "not proved" in text


# -- measured --------------------------------------------------------------------------------------------------------


def measured(report: Report, **changes: object) -> Report:
    """Return the report with another measurement."""
    assert report.measurement is not None
    return replace(report, measurement=replace(report.measurement, **changes))


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.measurement is None])
def test_nothing_of_measuring_without_a_measurement(name):
    text = console.to_text(REPORTS[name])
    assert not [word for word in ("measuring\n", "share of", "% interval", "timed forms") if word in text]


def test_a_speed_up_turns_the_ratio_and_its_interval_over():
    faster = versus(20.0, 10.0, ratio=0.5, low=0.4, high=0.625)
    assert units.versus(faster) == "2.00x faster (20.0 ms -> 10.0 ms, 95 % interval 1.60 to 2.50x faster)"
    slower = versus(10.0, 20.0, ratio=2.0, low=1.6, high=2.5)
    assert units.versus(slower, " here") == "2.00x slower here (10.0 ms -> 20.0 ms, 95 % interval 1.60 to 2.50x slower)"
    assert units.difference(faster) == "2.00x faster"
    assert units.difference(slower) == "2.00x slower"


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (1.0, 1.2), (0.9, 1.1)])
def test_an_interval_that_includes_1_is_no_difference(low, high):
    found = versus(20.0, 19.0, ratio=0.99, low=low, high=high)
    assert units.difference(found) == "no difference"
    assert units.versus(found).startswith("no difference beyond noise (20.0 ms -> 19.0 ms, 95 %")


def test_an_interval_down_to_0():
    assert units.versus(versus(2.0, 1.0, low=0.0, high=0.8)).endswith("95 % interval 1.25 to infx faster)")


def test_a_faster_second_model_is_faster():
    report = measured(REPORTS["bench"], final=versus(20.0, 10.0))
    assert answered(report).startswith("models/y.onnx is 2.00x faster than models/x.onnx on onnxruntime_cpu (20.0")


def test_a_bench_without_a_time():
    assert answered(measured(REPORTS["bench"], final=None)) == (
        "not timed: models/x.onnx and models/y.onnx on onnxruntime_cpu"
    )
    assert answered(measured(REPORTS["bench-one"], final=None)) == "not timed: models/x.onnx on onnxruntime_cpu"


def test_one_model_against_itself_is_its_noise():
    final = versus(14.2, 14.2, ratio=1.01, low=0.98, high=1.03, noise=None)
    report = measured(REPORTS["bench-one"], noise=None, final=final)
    assert answered(report).endswith("13.9 to 14.6 ms; noise 3.0 %)")
    assert dict(content.timing.measuring(report))["noise"] == (
        "3.0 %: the model against itself is 1.010x slower (95 % interval 1.030x slower to 1.020x faster, 40 pairs)"
    )
    assert content.timing.own_noise(measured(REPORTS["bench"], noise=None)) is None
    assert content.timing.own_noise(REPORTS["rewritten"]) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"final": None}, ": 1.23x faster expected on onnxruntime_cpu, not timed as a whole; "),
        ({"final": None, "predicted_ratio": 1.5}, ": 1.50x slower expected on onnxruntime_cpu, not timed as a whole; "),
        (
            {"final": None, "predicted_ratio": 1.0},
            ": as fast expected on onnxruntime_cpu, not timed as a whole; ",
        ),
        ({"final": None, "predicted_ratio": None}, ": not timed as a whole on onnxruntime_cpu; "),
        ({"final": None, "estimated_s": 4.0}, ": measuring would take about 4.00 s on onnxruntime_cpu; "),
    ],
)
def test_rewritten_and_not_timed(changes, said):
    assert said in answered(measured(REPORTS["measured"], **changes))


def test_kept_by_the_cache():
    report = measured(REPORTS["measured-kept-all"], measured=0, recalled=9)
    assert "(3 sites measured earlier, recalled from the cache); " in answered(report)


def test_kept_the_only_one():
    report = replace(REPORTS["measured-kept-all"], sites=(lost("a"),))
    assert answered(report).startswith(
        "kept the only dilated Conv: nothing beats the dilated Conv on onnxruntime_cpu (1 site measured in 14.1 s); mod"
    )


def test_kept_and_one_not_measured():
    report = REPORTS["measured-kept"]
    report = replace(report, sites=(report.sites[0], report.sites[-1]))
    assert "(1 of 2 sites measured in 14.1 s); the other: named by --skip; models" in answered(report)


def test_kept_with_nothing_measured():
    report = replace(REPORTS["measured-kept"], sites=REPORTS["measured-kept"].sites[3:7])
    assert answered(report).startswith("kept all 4: cannot matter: 0.02 to 0.05 % of the time; models/x")


def test_kept_and_timed_as_a_whole():
    report = measured(REPORTS["measured-kept-all"], final=versus(14.2, 14.2))
    assert "measured in 14.1 s); no difference beyond noise (14.2 ms" in answered(report)


def test_a_dry_run_with_nothing_to_measure():
    report = replace(REPORTS["measured-dry-run"], sites=REPORTS["measured-kept"].sites[3:5])
    report = measured(report, estimated_s=0.0)
    assert answered(report).startswith("kept all 2: cannot matter: 0.02 to 0.03 %")
    assert dict(content.timing.measuring(report))["time"] == "nothing to measure"


def test_a_dry_run_knows_no_inputs():
    assert "inputs" not in dict(content.timing.measuring(REPORTS["measured-dry-run"]))


def test_no_budget_where_nothing_limits():
    assert dict(content.timing.measuring(REPORTS["measured-inspected"]))["time"] == "took 0.60 s"
    assert dict(content.timing.measuring(REPORTS["bench-same"]))["time"] == "took 14.1 s"


def test_slower_is_not_green():
    assert content.answer.tone(REPORTS["measured"]) == "good"
    assert content.answer.tone(REPORTS["measured-kept"]) == "good"
    assert content.answer.tone(REPORTS["measured-eliminate"]) == "warn"


def test_sites_that_differ_in_numbers_only_are_one_row():
    text = console.to_text(REPORTS["measured"])
    assert re.search(r"rounding 1.1 to +│\n.* 1.5x keep +│", text)
    assert text.count("stage0 ") == 1
    assert re.search(r"│ 5 │ stage0 +│ +50.5 % │", text)
    assert re.search(r"│   │ stage1 +│ +\+18.0 % │", text)


def test_forms_have_a_time_or_a_reason():
    text = console.to_text(REPORTS["measured"])
    assert re.search(r"│ keep +│ +│ +2.31 │ +│ +6.02 MiB │\n│ +│ +│ 2.26 to 2.38 │ +│ +│", text)
    assert re.search(
        r"│ tap_zones +│ won +│ +1.52 │ +1.52x faster │.*\n│ +│ +│ 1.49 to 1.57 │ 1.50 to 1.54x faster │", text
    )
    assert "and 2 more: tap_sum, slice_to_batch: not measured: budget" in text


def test_a_timed_keep_is_shown_as_it_is():
    candidates = timed({"keep": ("no faster", versus(2.0, 2.1)), "tap_zones": ("lost", versus(2.0, 3.0))})
    text = console.to_text(replace(REPORTS["measured"], sites=(won("a", candidates=candidates),)))
    assert len(re.findall(r"\n│ keep +│", text)) == 1
    assert re.search(r"│ keep +│ no faster beyond noise +│ +2.10 │", text)


def test_what_is_said_of_keep_is_in_its_row():
    candidates = timed({"keep": ("won", None), "tap_zones": ("lost", versus(2.0, 3.0))})
    text = console.to_text(replace(REPORTS["measured"], sites=(won("a", candidates=candidates),)))
    assert re.search(r"│ keep +│ won +│ +2.00 │ +│\n│ +│ +│ 1.96 to 2.06 │ +│", text)
    assert "forms without a time" not in text


def test_many_groups_of_timed_forms():
    sites = tuple(won(f"s{i}", question=i, share=(20 - i) / 1000) for i in range(15))
    text = console.to_text(replace(REPORTS["measured"], sites=(*sites, won("more", question=14, share=0.006))))
    assert text.count("median ms │") == content.forms.BRIEF_GROUPS
    assert "and 12 groups more (13 sites, 14.4 % of the time)" in text


def test_the_budget_and_why_it_was_not_kept():
    assert "took 31.2 s, more than the budget of 5.00 s: what is always done" in (
        console.to_text(REPORTS["measured-over-budget"])
    )
    report = measured(REPORTS["measured-over-budget"], floor_s=0.0)
    assert "took 31.2 s, more than the budget of 5.00 s\n" in console.to_text(report)


def test_what_is_not_known_is_said_first() -> None:
    """In the first line, by figures; then what to do about it."""
    report = REPORTS["measured-inconclusive"]
    text = console.to_text(report)
    lines = text.splitlines()
    assert head(text).startswith(
        "INCONCLUSIVE, kept all 3: a gain of 10 % could have been missed at 1 of 3 sites on onnxruntime_cpu, "
        "at a noise of 52.0 % and a load of 20 on 8 cores; "
    )
    assert content.answer.tone(report) == "warn"
    steps = content.answer.next_steps(report)
    assert len(steps) == 4
    for word, step in zip(
        ("--threads", "1 of 3 sites was not measured", "--shape", "onnxruntime_cuda"), steps, strict=True
    ):
        assert word in step
    assert "--budget 42 would do" in steps[1]
    for page in (lines, markdown.REPORT.render(report).splitlines()):
        assert any("what next" in line.lower() for line in page)
    assert content.sites.share(report.sites[0]) == "21.0 % (17.0 to 26.0 %)"


def test_a_rewritten_model_tells_what_else_is_not_known() -> None:
    report = REPORTS["measured"]
    unclear = REPORTS["measured-inconclusive"].sites[1]
    assert "inconclusive" not in answered(report)
    assert "; inconclusive for 1 site; " in answered(replace(report, sites=(*report.sites, unclear)))
    loud = measured(report, form_noise=0.15)
    forced = replace(loud, options={"strategy": "im2col"})
    assert "inconclusive" not in answered(forced), "its form was not chosen by measuring"
    assert "; inconclusive for what else may be gained; " in answered(loud)


@pytest.mark.parametrize(
    ("backend", "said"),
    [("auto", []), ("ethos_u", ["nothing was estimated: without --budget 0 the target's compiler is asked"])],
)
def test_a_budget_times_nothing_for_a_device_that_is_not_here(backend: str, said: list[str]) -> None:
    report = replace(REPORTS["for-target"], options={"target": "rknn", "budget": 0.0, "backend": backend})
    assert report.measurement is None
    assert content.answer.next_steps(report) == said


def test_a_model_that_fits_its_target_is_not_to_be_rewritten_for_it() -> None:
    inspected = REPORTS["inspected-target"]
    assert inspected.target is not None
    native = replace(inspected.target.nodes[0], fit="native", reasons=(), sources=(), lowered="", cost=None)
    fits = replace(inspected, target=replace(inspected.target, fits={"native": 3}, nodes=(native,)))
    slow = replace(fits, target=replace(inspected.target, fits={"native": 3}, nodes=(replace(native, cost=13.4),)))
    said = [" ".join(console.on_screen(one).split()) for one in (inspected, fits, slow)]
    assert ["makes a model that it takes" in one for one in said] == [True, False, True]


@pytest.mark.parametrize("name", ["measured-kept", "measured-kept-all", "measured-no-version-wins"])
def test_what_is_kept_says_what_next(name: str) -> None:
    assert content.answer.next_steps(REPORTS[name])
    steps = content.answer.next_steps(measured(REPORTS[name], others=("tensorrt",)))
    assert steps[-1].endswith("tensorrt (--backend NAME)")


def test_doubts_come_before_the_figures():
    text = console.to_text(REPORTS["measured-over-budget"])
    load = "- before measuring began, 9.5 processes wanted a core, and there are 8 cores"
    doubts = ["what makes the timings doubtful", load, "- 2 of 3 Convs run on another device"]
    assert text.partition("\n\n")[2].splitlines()[:3] == doubts


def test_sizes_that_a_run_told_are_known():
    text = console.to_text(REPORTS["measured-loop"])
    assert flat("ran on 1x88x64x64, 1x88x32x32 and 1 more") in flat(text)
    assert re.search(r"│ +285 M │", text)
    assert "│ ? │" not in re.sub(r" +", " ", text)


def test_shapes_that_do_not_fit_are_only_shown():
    found = site("a", geometry=LOOP, ran=((1, 88),))
    assert content.sites.ran(found) == "ran on 1x88"
    assert content.sites.work(found) == (None, None)


def test_a_known_geometry_needs_no_shapes():
    assert content.sites.ran(site("a", ran=((1, 256, 28, 28),))) == ""


# -- engines ---------------------------------------------------------------------------------------------------------


def section(text: str, title: str) -> str:
    """Return what stands below a heading."""
    lines = text.splitlines()
    start = lines.index(title) + 1
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return "\n".join(lines[start:end])


ENGINES = [name for name, report in REPORTS.items() if report.engine is not None]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("width", [10, 72, 100, 200])
def test_an_engine_alone_reads_as_in_its_report(name, width):
    report = REPORTS[name]
    assert report.engine is not None
    text = console.to_text(report.engine, width)
    wanted = units.clean(f"{report.engine.file}: {content.engine.short(report.engine)}")
    assert re.sub(r"\s", "", head(text)) == re.sub(r"\s", "", wanted)
    assert section(text, "engine") == section(console.to_text(report, width), "engine")
    assert max(map(cell_len, text.splitlines())) <= max(width, console.MIN_WIDTH)


def test_an_engine_is_shown_as_text(capsys):
    console.show(ENGINE, verbose=True)
    assert capsys.readouterr().out == console.to_text(ENGINE)
    file = Ascii()
    console.show(replace(ENGINE, file=ODD), file, verbose=True)
    assert file.getvalue().isascii()


@pytest.mark.usefixtures("plain_environment")
def test_an_engine_is_shown_in_colour_on_a_terminal():
    file = Terminal()
    console.show(ENGINE, file, verbose=True)
    assert ANSI.search(file.getvalue())


def test_all_that_is_known_of_an_engine():
    rows = dict(content.engine.rows(ENGINE))
    assert rows["file"] == "x.engine, 1.31 MiB (1370716 bytes)"
    assert rows["built by"] == "tensorrt-rtx 1.7.1.116, dilrewrite 0.1.0, in 0.35 s"
    assert rows["precision"] == "fp16: as asked, converted from float32"
    assert rows["convolutions"] == "19 in Half"
    assert rows["conversion"] == (
        "differs from float32 by 0.000435 of the outputs' size, at most 0.00552 is allowed, on image 1x3x224x224"
    )
    assert rows["forms chosen on"] == "the model as it was given, not measured on TensorRT"
    assert rows["checked"] == ENGINE.checked
    assert rows["GPU"] == "none to run it on"
    assert rows["inputs"] == "image FLOAT 1x3x224x224"
    assert rows["flags"] == "TF32 on"
    assert rows["limits"] == "optimization_level 3"
    assert rows["memory"] == "max scratch memory 31.6 MiB, total weights memory 657 KiB"
    assert rows["layers"] == "34: 19 correlation, 6 wait, 5 kgen, 4 signal (from the build log)"
    assert {name: rows[name] for name in content.engine.VERBATIM} == {
        content.engine.COMMAND: ENGINE.trtexec,
        content.engine.ENGINE_DIGEST: ENGINE.sha256,
        content.engine.ONNX_DIGEST: ENGINE.onnx.sha256,
        content.engine.BUILT_DIGEST: ENGINE.onnx.built_sha256,
    }
    assert not {"profile", "warning", "warnings", "changed for it"} & set(rows)


def test_all_that_is_known_of_an_engine_with_open_sizes():
    rows = content.engine.rows(ENGINE_ON_GPU, 3)
    assert [text for what, text in rows if what.startswith("warning")] == [
        *(f"weight {i} is a subnormal number" for i in range(3)),
        "2 more",
    ]
    assert len([what for what, _ in content.engine.rows(ENGINE_ON_GPU) if what == "warning"]) == 5
    found = dict(rows)
    assert found["inputs"] == "image FLOAT ?x3x?x?; scale INT64 scalar"
    assert found["profile"] == "image min 1x3x64x64, opt 1x3x224x224, max 8x3x512x512; scale 1 only"
    assert found["flags"] == "TF32, REFIT on"
    assert found["limits"] == "optimization_level 5, workspace_mib 256, plugins libmine.so libyours.so"
    assert (found["precision"], found["convolutions"]) == ("tf32: the model's own types", "2 in Float, 1 in Half")
    assert found["GPU"] == "NVIDIA Some GPU"
    assert "conversion" not in found
    assert "memory" not in found


def test_a_conversion_that_could_not_be_compared():
    rows = dict(content.engine.rows(ENGINE_OF_REWRITTEN))
    assert rows["conversion"] == "not compared: no kernel for Magic; at most 0.0442 is allowed"
    assert rows["changed for it"] == "2 Resize stay in float32; 1 Range stay in float32"


def test_an_engine_without_convolutions():
    engine = replace(ENGINE, precision=replace(ENGINE.precision, convolutions={}))
    assert content.engine.short(engine) == "tensorrt-rtx 1.7.1.116, fp16, 34 layers, 1.31 MiB"
    assert dict(content.engine.rows(engine))["convolutions"] == "none"
    one = replace(ENGINE, precision=replace(ENGINE.precision, convolutions={"Half": 1}))
    assert "fp16 (1 convolution in Half)" in content.engine.short(one)


def test_an_engine_alone_has_no_empty_sections():
    headings = [line for line in console.to_text(REPORTS["built"]).splitlines() if line and line[0].islower()]
    found = [line for line in headings if line in ("engine", "model", "dilated Convs", "measuring", "layers", "notes")]
    assert found == ["engine", "model"]


def test_layers_are_counted_not_listed():
    text = console.to_text(REPORTS["built"])
    assert "19 correlation" in text
    assert "__myl_" not in text


def test_engines_are_not_compared_with_models():
    assert content.models.figure_rows(BEFORE, ENGINE_MODEL) == content.models.operator_rows(BEFORE, ENGINE_MODEL) == []
    assert content.models.figure_rows(ENGINE_MODEL, replace(ENGINE_MODEL, nodes=30)) == [
        ("layers", "34", "30", "-4"),
        ("file size", "1.31 MiB", "1.31 MiB", "0"),
    ]
    assert content.models.model_line(ENGINE_MODEL) == "models/x.engine: 34 layers, 1.31 MiB, by tensorrt-rtx 1.7.1.116"


# -- layers and readings ---------------------------------------------------------------------------------------------


def test_what_the_reshapes_cost():
    assert content.engine.sums(LAYERS) == [
        ("convolutions", "39.0", "99.0 %", "29.0", "97.6 %", "-10.0"),
        ("data moved for a form (pads, slices, reshapes)", "0.00", "0 %", "0.310", "1.0 %", "+0.310"),
        ("all others", "0.400", "1.0 %", "0.400", "1.3 %", "0.00"),
        ("all layers", "39.4", "100 %", "29.7", "100 %", "-9.69"),
    ]
    assert "these times are shares of a run, and no timings" in content.engine.how(LAYERS)


def test_every_role_has_a_name():
    assert {layer.role for layer in (*LAYERS.first, *LAYERS.second)} == set(content.engine.ROLES)


def test_the_slowest_layers():
    found = content.engine.slowest(LAYERS.first)
    assert len(found) == content.engine.SLOWEST
    assert [layer.seconds for layer, _, _ in found] == sorted((n.seconds for n in LAYERS.first), reverse=True)[:15]
    assert found[0][1:] == ("2.90", "7.4 %")
    assert content.engine.slowest([replace(LAYERS.first[0], seconds=0.0)])[0][1:] == ("0.00", units.NOTHING)


def test_no_layers_no_section():
    report = measured(REPORTS["measured-layers"], layers=None)
    assert "\nlayers\n" in console.to_text(REPORTS["measured-layers"])
    assert "\nlayers\n" not in console.to_text(report)


def test_readings_of_a_gpu():
    report = measured(REPORTS["measured-layers"], state_after={"sm_clock_mhz": 1965.4, "power_w": 240, "other": 1.0})
    assert dict(content.timing.measuring(report))["GPU before/after"] == "1980/1965 MHz, 231/240 W, 41/- °C"
    report = measured(report, state_before={}, state_after={})
    assert "GPU before/after" not in dict(content.timing.measuring(report))


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0, ""),
        (1, ""),
        (0x4, "held back by software power cap"),
        (0x48, "held back by hardware slowdown and hardware thermal slowdown"),
    ],
)
def test_what_held_a_gpu_back(bits, said):
    report = measured(REPORTS["measured-layers"], state_before={"throttle_reasons": float(bits)}, state_after={})
    assert dict(content.timing.measuring(report)).get("GPU before/after", "") == said


def test_the_slowest_runs_where_they_are_known():
    rows = dict(content.timing.measuring(REPORTS["measured-layers"]))
    assert rows["slowest runs"] == "99th percentile 17.0 ms -> 14.0 ms; coefficient of variation 3.5 % -> 3.5 %"
    assert rows["first run"] == "2.31 s -> 11.4 s, with loading and all that is done once"
    assert dict(content.timing.measuring(REPORTS["bench-engine"]))["slowest runs"] == (
        "99th percentile 17.0 ms; coefficient of variation 3.5 %"
    )
    unknown = set(dict(content.timing.measuring(REPORTS["measured"])))
    assert not {"slowest runs", "first run", "GPU before/after"} & unknown


# -- odd text --------------------------------------------------------------------------------------------------------


def test_names_are_no_markup_and_no_control_codes():
    text = console.to_text(REPORTS["odd-names"])
    assert "[bold]x[/bold]" in text
    assert ":smile:" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert flat(units.clean(ODD)) in flat(text)


def test_names_of_a_measured_report_are_no_markup_and_no_control_codes():
    text = console.to_text(REPORTS["measured-odd-names"])
    assert not {"\x1b", "\u202e"} & set(text)
    assert flat(text).count(flat(units.clean(ODD))) >= 10


def test_names_in_an_engine_are_no_markup_and_no_control_codes():
    for name in ("built-odd-names", "measured-layers-odd-names"):
        text = console.to_text(REPORTS[name], 400)
        assert not {"\x1b", "\u202e"} & set(text)
        assert flat(units.clean(ODD)) in flat(text)


def test_odd_failures():
    text = console.to_text(replace(REPORTS["differs"], verdict=replace(EQUAL, passed=False, failures=(ODD,))))
    assert flat(units.clean(ODD)) in flat(text)


# -- terminals and files ---------------------------------------------------------------------------------------------


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "COLORTERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(
        "shutil.get_terminal_size", lambda fallback=(80, 24): os.terminal_size((fallback[0], fallback[1]))
    )


@pytest.mark.usefixtures("plain_environment")
def test_colour_on_a_terminal_only(monkeypatch):
    colourful, plain = Terminal(), io.StringIO()
    console.show(REPORTS["rewritten"], colourful, verbose=True)
    console.show(REPORTS["rewritten"], plain, verbose=True)
    assert ANSI.search(colourful.getvalue())
    bare = [line.rstrip() for line in ANSI.sub("", colourful.getvalue()).splitlines()]
    assert bare == plain.getvalue().splitlines()
    assert plain.getvalue() == console.to_text(REPORTS["rewritten"], 100)
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain = io.StringIO()
    console.show(REPORTS["rewritten"], plain, verbose=True)
    assert not ANSI.search(plain.getvalue())


@pytest.mark.usefixtures("plain_environment")
def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    console.show(REPORTS["rewritten"], file, verbose=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", file.getvalue())


@pytest.mark.parametrize(("columns", "width"), [(20, console.MIN_WIDTH), (90, 90), (200, 200)])
def test_width_of_the_terminal(monkeypatch, columns, width):
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback=(80, 24): os.terminal_size((columns, fallback[1])))
    monkeypatch.setattr("sys.stdout", Terminal())
    assert formats()["console"].render(REPORTS["kept"]) == console.on_screen(REPORTS["kept"], width)


def test_width_of_a_file(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert formats()["console"].render(REPORTS["kept"]) == console.on_screen(REPORTS["kept"], 80)


def test_default_is_standard_output(capsys):
    console.show(REPORTS["kept"], verbose=True)
    assert capsys.readouterr().out == console.to_text(REPORTS["kept"])


def test_what_the_encoding_lacks_is_escaped():
    file = Ascii()
    console.show(REPORTS["odd-names"], file, verbose=True)
    assert file.getvalue().isascii()
    assert "\\u65e5" in file.getvalue()


def test_is_only_shown():
    assert formats()["console"].filename is None


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "?"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (21_676_032, "21.7 M"),
        (999_999, "1.00 M"),
        (10**18, "1000 P"),
    ],
)
def test_amount(number, text):
    assert units.amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1_030_000, "1006 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (1_153_009, "1.10 MiB"),
        (3 * 2**30, "3.00 GiB"),
        (2**41, "2.00 TiB"),
    ],
)
def test_size(number, text):
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "?"),
        (0, "0 %"),
        (1, "100 %"),
        (0.0001, "<0.1 %"),
        (0.99999, ">99.9 %"),
        (0.093, "9.3 %"),
        (float("nan"), "nan %"),
        (float("inf"), "inf %"),
    ],
)
def test_percent(share, text):
    assert units.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00"),
        (1.5e-7, "0.000150"),
        (0.000123, "0.123"),
        (0.0142, "14.2"),
        (0.1, "100"),
        (0.9996, "1000"),
        (12.3456, "12346"),
    ],
)
def test_milliseconds(seconds, text):
    assert units.milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("ratios", "texts"),
    [
        ((1.214, 1.18, 1.24), ["1.21", "1.18", "1.24"]),
        ((1.0312, 1.0004, 1.0624), ["1.031", "1.000", "1.062"]),
        ((1.031, 1.021, 1.041), ["1.031", "1.021", "1.041"]),
        ((0.5, 0.25, 0.75), ["0.500", "0.250", "0.750"]),
        ((12.34, 1.0, 123.4), ["12.3", "1.000", "123"]),
    ],
)
def test_factors(ratios, texts):
    assert units.factors(*ratios) == texts


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.0, "about 0"), (-0.0004, "about 0"), (0.034, "+3.4 %"), (-0.12, "-12.0 %")]
)
def test_gain(share, text):
    assert units.gain(share) == text


def test_spread():
    assert units.spread(timing(1.0)) == "0.980 to 1.03"


def test_every_row_of_measuring_says_something():
    empty = replace(MEASURED, device="", settings={}, inputs={}, versions={}, measured=0, recalled=0, profiled_s=None)
    rows = dict(content.timing.measuring(replace(REPORTS["bench"], measurement=empty)))
    assert set(rows) == {"runtime", "inputs", "time", "noise", "mode", "load", "predicted", "whole model"}
    assert rows["inputs"] == "none"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "3x3 d12 s1 g1 256->256 28x28 p12"),
        ({"dilations": (2, 4)}, "3x3 d2x4 s1 g1 256->256 28x28 p12"),
        ({"pads_begin": (0, 1), "pads_end": (2, 2)}, "3x3 d12 s1 g1 256->256 28x28 p0x1:2"),
        ({"batch": None, "extents": (None, 28)}, "3x3 d12 s1 g1 256->256 ?x28 p12 n?"),
        ({"auto_pad": "VALID"}, "3x3 d12 s1 g1 256->256 28x28 VALID"),
        ({"element": "float16", "group": 256}, "3x3 d12 s1 g256 256->256 28x28 p12 float16"),
        ({"in_channels": None, "quantized": True}, "3x3 d12 s1 g1 ?->256 28x28 p12 quantised"),
    ],
)
def test_geometry(changes, text):
    assert content.sites.geometry(conv(**changes)) == text


def test_geometry_of_one_axis():
    one = conv(
        extents=(None,), kernel=(3,), strides=(1,), dilations=(16,), pads_begin=(32,), pads_end=(0,), in_channels=88
    )
    assert content.sites.geometry(one) == "3 d16 s1 g1 88->256 ? p32:0"


def test_merged_reasons():
    reasons = ["a_form is at 1.50x of 3", "other is at 2x of 3", "conv_12 is 1", "conv_13 is 1", "stays"]
    assert units.merged(reasons, {"a_form", "other"}) == [
        ("a_form or other is at 1.50 to 2x of 3", 2),
        ("conv_12 is 1", 1),
        ("conv_13 is 1", 1),
        ("stays", 1),
    ]


@pytest.mark.parametrize("length", [10, 11, 50])
def test_shorten(length):
    text = units.shorten("abcdefghijklmnopqrstuvwxyz", length)
    assert len(text) == min(length, 26)
    assert text.startswith("abc")
    assert text.endswith("xyz")
