"""What the command line prints: the answer first, everything below it, no markup taken from names."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from dilrewrite.reports import _words as words
from dilrewrite.reports import console, formats
from tests.reports.examples import CHECK, EQUAL, ODD, REPORTS, check_golden, conv, kept, site

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def first(name: str) -> str:
    return console.to_text(REPORTS[name]).splitlines()[0]


def flat(text: str) -> str:
    """Return the text without what wrapping and boxes put in."""
    return re.sub(r"[\s│]+", "", text)


@pytest.mark.parametrize("name", REPORTS)
def test_golden(name):
    check_golden(f"{name}.txt", console.to_text(REPORTS[name]))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [10, 72, 100, 200])
def test_fits(name, width):
    """Tables fit the width; only the answer may be longer, so that it can be found with grep."""
    answer, *rest = console.to_text(REPORTS[name], width).splitlines()
    assert answer == words.outcome(REPORTS[name])
    assert max(map(cell_len, rest)) <= max(width, console.MIN_WIDTH)
    assert all(line == line.rstrip() for line in rest)


# -- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("rewritten", "rewrote 2 of 5 dilated Convs; equal on 1 input set; models/x.dilrewrite.onnx"),
        ("many-equal", "rewrote 24 of 24 dilated Convs; equal on 1 input set; models/x.dilrewrite.onnx"),
        ("dry-run", "would rewrite 2 of 5 dilated Convs; equal on 1 input set; dry run: nothing written"),
        (
            "kept",
            "kept all 8: the cheapest other form, space_to_batch or zero_fill, is estimated at 1.64 to 3.00x; not "
            "measured; models/x.dilrewrite.onnx is a byte-identical copy",
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
        assert "equal" not in words.outcome(report), verdict
        report = replace(REPORTS["equal"], verdict=verdict)
        assert "equal" not in words.outcome(report), verdict


def test_not_every_form_proved():
    report = REPORTS["whole-model-skipped"]
    report = replace(report, sites=(site("a"), site("b", proof=None)))
    assert "every form proved" not in words.outcome(report)


def test_one_kept():
    report = replace(REPORTS["kept"], sites=(kept("a"),))
    assert words.outcome(report).startswith("kept the only dilated Conv: the cheapest other form, space_to_batch, is")


def test_kept_among_others_that_cannot_be_rewritten():
    report = replace(REPORTS["kept"], sites=(kept("a"),), skipped=REPORTS["rewritten"].skipped)
    assert words.outcome(report).startswith("kept all 3 (2 of them cannot be rewritten): the cheapest")


def test_nothing_that_can_be_rewritten():
    report = replace(REPORTS["nothing-to-rewrite"], skipped=REPORTS["rewritten"].skipped)
    assert words.outcome(report).startswith("nothing to rewrite: none of 2 dilated Convs can be rewritten; the output")


def test_nothing_to_rewrite_but_attributes():
    report = REPORTS["nothing-to-rewrite"]
    assert report.after is not None
    report = replace(report, after=replace(report.after, sha256="other"), verdict=EQUAL)
    assert words.outcome(report).endswith("; the output differs in attributes only; equal on 1 input set")


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
        "- main/b: no other form applies",
        "- main/up (ConvTranspose): ConvTranspose is not rewritten",
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
    assert "(assumed sizes)" in text


def test_outputs_that_differ_are_never_left_out():
    outputs = (*(replace(CHECK, name=f"o{i}") for i in range(60)), replace(CHECK, name="wrong", passed=False))
    cases = (replace(EQUAL.cases[0], outputs=outputs),)
    text = console.to_text(replace(REPORTS["rewritten"], verdict=replace(EQUAL, cases=cases)))
    assert "wrong" in text
    assert f"and {61 - console.OUTPUT_ROWS} more, all equal" in text


def test_unverified_is_loud():
    text = console.to_text(REPORTS["unverified"])
    assert "UNVERIFIED: nothing was proved or run" in text
    assert "not proved" in text


# -- odd text --------------------------------------------------------------------------------------------------------


def test_names_are_no_markup_and_no_control_codes():
    text = console.to_text(REPORTS["odd-names"])
    assert "[bold]x[/bold]" in text
    assert ":smile:" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert flat(words.clean(ODD)) in flat(text)


def test_odd_failures():
    text = console.to_text(replace(REPORTS["differs"], verdict=replace(EQUAL, passed=False, failures=(ODD,))))
    assert flat(words.clean(ODD)) in flat(text)


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
    console.show(REPORTS["rewritten"], colourful)
    console.show(REPORTS["rewritten"], plain)
    assert ANSI.search(colourful.getvalue())
    bare = [line.rstrip() for line in ANSI.sub("", colourful.getvalue()).splitlines()]
    assert bare == plain.getvalue().splitlines()
    assert plain.getvalue() == console.to_text(REPORTS["rewritten"], 100)
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain = io.StringIO()
    console.show(REPORTS["rewritten"], plain)
    assert not ANSI.search(plain.getvalue())


@pytest.mark.usefixtures("plain_environment")
def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    console.show(REPORTS["rewritten"], file)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", file.getvalue())


@pytest.mark.parametrize(("columns", "width"), [(20, console.MIN_WIDTH), (90, 90), (200, 200)])
def test_width_of_the_terminal(monkeypatch, columns, width):
    monkeypatch.setattr("shutil.get_terminal_size", lambda _fallback=(80, 24): os.terminal_size((columns, 24)))
    monkeypatch.setattr("sys.stdout", Terminal())
    assert formats()["console"].render(REPORTS["kept"]) == console.to_text(REPORTS["kept"], width)


def test_width_of_a_file(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert formats()["console"].render(REPORTS["kept"]) == console.to_text(REPORTS["kept"], 100)


def test_default_is_standard_output(capsys):
    console.show(REPORTS["kept"])
    assert capsys.readouterr().out == console.to_text(REPORTS["kept"])


def test_what_the_encoding_lacks_is_escaped():
    file = Ascii()
    console.show(REPORTS["odd-names"], file)
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
    assert words.amount(number) == text


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
    assert words.size(number) == text


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
    assert words.percent(share) == text


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
    assert words.geometry(conv(**changes)) == text


def test_geometry_of_one_axis():
    one = conv(
        extents=(None,), kernel=(3,), strides=(1,), dilations=(16,), pads_begin=(32,), pads_end=(0,), in_channels=88
    )
    assert words.geometry(one) == "3 d16 s1 g1 88->256 ? p32:0"


def test_merged_reasons():
    reasons = ["a_form is at 1.50x of 3", "other is at 2x of 3", "conv_12 is 1", "conv_13 is 1", "stays"]
    assert words.merged(reasons, {"a_form", "other"}) == [
        ("a_form or other is at 1.50 to 2x of 3", 2),
        ("conv_12 is 1", 1),
        ("conv_13 is 1", 1),
        ("stays", 1),
    ]


@pytest.mark.parametrize("length", [10, 11, 50])
def test_shorten(length):
    text = words.shorten("abcdefghijklmnopqrstuvwxyz", length)
    assert len(text) == min(length, 26)
    assert text.startswith("abc")
    assert text.endswith("xyz")
