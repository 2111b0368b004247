"""The document that all formats spell: golden files of it, full for every example, brief for some."""

from __future__ import annotations

import pytest

from dilrewrite.reports.content import document, engine_document
from tests.reports.examples import ENGINE_ON_GPU, REPORTS, check_golden
from tests.reports.html_examples import EXAMPLES
from tests.reports.serialized import serialized

FULL = {**REPORTS, **{name: EXAMPLES[name] for name in ("charts", "charts-undecided")}}
BRIEF = (
    "kept",
    "differs",
    "many-equal",
    "inspected",
    "measured",
    "measured-kept",
    "measured-layers",
    "bench-one",
    "regions",
    "regions-inspected",
)


@pytest.mark.parametrize("name", FULL)
def test_full(name):
    check_golden(f"documents/{name}.txt", serialized(document(FULL[name])))


@pytest.mark.parametrize("name", BRIEF)
def test_brief(name):
    check_golden(f"documents/{name}.brief.txt", serialized(document(REPORTS[name], brief=True)))


def test_engine():
    check_golden("documents/engine.brief.txt", serialized(engine_document(ENGINE_ON_GPU)))
