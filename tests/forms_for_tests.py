"""Strategies as tests speak of them: by what they declare, or by a name that a test cannot do without."""

from __future__ import annotations

import pytest

from dilrewrite.forms.strategies import strategies

INEXACT = {name for name, strategy in strategies().items() if strategy.finite_inputs_only}
"""Forms that are exact for finite inputs only."""


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark what tells its story with the forms of these names: it is skipped where one of them is gone."""
    gone = ", ".join(name for name in names if name not in strategies())
    return pytest.mark.skipif(bool(gone), reason=f"it tells of {gone}, which is not there")
