"""One word for each concept: what people read has the words of docs/glossary.md, and none of those it replaces."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dilrewrite.cli import main
from dilrewrite.reports.formats import console, formats
from dilrewrite.reports.reasons import CONDITIONS, OUTCOMES, WORDS
from tests.reports.examples import ENGINE, ENGINE_ON_GPU, REPORTS

ROOT = Path(__file__).parents[1]
COMMANDS = ("", "inspect", "optimize", "sweep", "bench", "verify", "build", "convbench", "backends", "demo")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "models/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

NATIVE = "kernel|form|one|dilated|error|ran|not run|Conv|backward|forward|gradient|time"
FORBIDDEN: Mapping[str, tuple[str, str]] = {
    # a synonym: its right word, and an example that must be caught
    r"(?<![-.\w])strateg(y|ies)\b(?!\.)": ("form", "the strategy that wins"),
    r"\bvariants?\b": ("form", "the fastest variant"),
    rf"\bnative(ly)? ({NATIVE})|\dx native|\(native ": (
        "keep, or the dilated Conv",
        "rounding 1.2x native",
    ),
    r"\bbaselines?\b": ("keep, or the original", "against the baseline"),
    r"\bspeed-?ups?\b(?!`|\")": ("faster", "a speed-up of 1.2"),
    r"\bjitter\b": ("noise", "much jitter"),
    r"\berror bars?\b": ("interval", "with error bars"),
    r"\bexecution providers?\b": ("runtime", "an execution provider"),
    r"\bpolyphase|\bsub-?pixel components?\b": ("phase", "polyphase components"),
    r"\brate \d": ("dilation", "2-D, rate 36"),
    r"\bspatial sizes?\b": ("extent", "the spatial size"),
    r"\bkernel elements?\b": ("tap", "nine kernel elements"),
    r"\bafter / before\b": ("speed, in words", "| model | after / before |"),
    r"\bratio to (keep|it)\b|\bbelow 1 is faster|\bform / keep\b": (
        "speed against keep",
        "Ratio: form / keep, below 1 is faster",
    ),
    r"\d(\.\d+)?x the time\b": ("faster, slower", "takes 0.97x the time"),
    r"\b(lost|won) by \d": ("faster, slower", "lost by 1.31x"),
    r"\b(won|lost|actual): \d\.\d+x(?! (faster|slower))": ("faster, slower", "won: 0.66x"),
    r"\btakes 0\.\d+ of\b": ("faster", "takes 0.79 of the time"),
}
"""Words for a concept that has another one in the glossary."""

NOT_ENGLISH = {
    r"\b(is|are|was|were) told\b": "what the caller is told",
    r"\btold as\b": "told as it is",
    r"\b(has|have|had) met\b": "what it has met",
    r"\bwhat is left\b": "this is what is left",
    r"\d+(\.\d+)?x is left\b|\bform is left\b": "by more than 1.15x is left.",
    r"\b(did|does|do) not reach\b": "What the budget did not reach is kept",
    r"\bnobody has thrown\b": "a switch that nobody has thrown here",
    r"\basked (what|about|never)\b": "are asked what they can do, never for their version",
    r"\bruns a block, in the same order\b": "one session at a time is loaded and runs a block, in the same order",
    r"\bof those gains\b": "and of those gains",
    r"\bwhatever (else )?was found\b|\b(the|a|its|this) found\b": "the found goes on",
    r"\bloses each of the first\b": "A form that loses each of the first six pairs",
    r"\bratio is told\b": "and their ratio is told",
    r"\bin the report as a doubt\b": "is in the report as a doubt",
    r"\bthe tool had chosen none\b": "and the tool had chosen none",
    r"\bthe clock does not see\b": "What a run counts that the clock does not see",
    r"\blayout of the rewrite\b": "is layout of the rewrite",
    r"\bis not the other's\b": "what a step inside another takes is not the other's",
    r"\bmet hardware\b": "whether it met hardware",
}
"""What no one says, and an example of each."""

QUOTED = (
    "A form that loses each of the first six pairs by more than 1.15x is left.",
    "Above 2 % noise one session at a time is loaded and runs a block, in the same order, if that fits into the time.",
    "Forced and `--eliminate` results are timed too, and their ratio is told as it is.",
    "What the budget did not reach is kept, with the reason",
    "TensorRT 10, 11 and TensorRT for RTX 1 are asked what they can do, never for their version.",
    "The warning of a Conv that runs in cuDNN's fallback mode, and of nodes that ran, is in the report as a doubt.",
    "cuDNN's deterministic mode is a switch that nobody has thrown here.",
    "in 2016 the largest gains were in the backward passes, and of those gains this is what is left.",
    "For four of the five, no form won for any group, and the tool had chosen none.",
    "What stands for nodes of which the original has none is layout of the rewrite.",
    "What a run counts that the clock does not see.",
    "what a step inside another takes is not the other's.",
)
"""Sentences that once stood here; nobody but their writer understood them."""

PATTERNS = (*FORBIDDEN, *NOT_ENGLISH)


def caught(text: str, patterns: tuple[str, ...] = PATTERNS) -> list[str]:
    """The places of a text with a word that is not wanted, and what it should be."""
    flat = " ".join(text.split())
    return [
        f"...{flat[max(found.start() - 40, 0) : found.end() + 20]}... ({FORBIDDEN.get(words, ('plain English',))[0]})"
        for words in patterns
        for found in re.finditer(words, flat, re.IGNORECASE)
    ]


def prose(markdown: str) -> str:
    """Markdown without code: a name in the code is not a word."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", " ", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", " ", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)|--[a-z][a-z-]*", " ", text)


def read(page: Path) -> str:
    text = prose(page.read_text(encoding="utf-8"))
    if page.name == "CONTRIBUTING.md":  # the table of folders names them as the code does
        text = text.replace("| a strategy |", "|")
    if page.name == "glossary.md":  # the last column has the words that are not ours
        text = re.sub(r"\|[^|\n]*\|$", "|", text, flags=re.MULTILINE)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages(page: Path) -> None:
    patterns = tuple(NOT_ENGLISH) if page.name in ("report-schema.md", "options.md") else PATTERNS
    assert not caught(read(page), patterns)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [command]), "--help"]) == 0
    assert not caught(re.sub(r"--[a-z][a-z-]*", " ", capsys.readouterr().out))


def text_of(page: str) -> str:
    """What an HTML page says, without its style."""
    return html.unescape(re.sub(r"<(style|script).*?</\1>|<wbr>|<[^>]+>", " ", page, flags=re.DOTALL))


WAYS: Mapping[str, Callable[..., str]] = {
    "screen": console.on_screen,
    "tables": console.to_text,
    "narrow tables": functools.partial(console.to_text, width=80),
    "markdown": lambda report: prose(formats()["markdown"].render(report)),
    "html": lambda report: text_of(formats()["html"].render(report)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in REPORTS if "odd-names" not in name])
def test_reports(name: str, way: str) -> None:
    text = re.sub(r"--[a-z][a-z-]*|\bstrategy (None|null)\b", " ", WAYS[way](REPORTS[name]))
    assert not caught(re.sub(r"strategy[:\s]+\S+", " ", text) if "strategy" in REPORTS[name].options else text)


def test_engines() -> None:
    assert not caught(console.to_text(ENGINE) + console.on_screen(ENGINE_ON_GPU))


def test_reasons() -> None:
    texts = [*WORDS.values(), *OUTCOMES.values(), *CONDITIONS.values()]
    assert not caught(re.sub(r"\{[^}]*\}|--[a-z-]+", " ", "; ".join(texts)))


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_sentence_that_was_quoted_is_caught(quoted: str) -> None:
    assert caught(prose(quoted), tuple(NOT_ENGLISH))


@pytest.mark.parametrize("words", PATTERNS)
def test_one_that_is_put_back_is_caught(words: str) -> None:
    example = FORBIDDEN[words][1] if words in FORBIDDEN else NOT_ENGLISH[words]
    page = (ROOT / "docs" / "kept.md").read_text(encoding="utf-8")
    assert not caught(prose(page), (words,))
    assert caught(prose(f"{page}\nAnd {example} here.\n"), (words,))


def test_every_word_that_is_not_ours_stands_beside_its_word() -> None:
    """The glossary names the synonyms that the list forbids, each beside the word to use."""
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    beside = "\n".join(re.findall(r"\|([^|\n]*)\|$", glossary, re.MULTILINE))
    for word in (
        "strategy",
        "variant",
        "native",
        "baseline",
        "speed-up",
        "jitter",
        "error bar",
        "execution provider",
        "rate",
    ):
        assert re.search(rf"\b{word}\b", beside), word
        assert caught(f"the {FORBIDDEN[next(p for p in FORBIDDEN if word[:5] in p)][1]}")
