"""What the tests of `pytorch/` share."""

from __future__ import annotations

from typing import Any

import pytest

from dilrewrite.pytorch import chosen


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that computed something; the native form is not among them."""
    found: list[str] = []
    form_of = chosen._form

    def watched(name: str, geometry: Any) -> Any:
        form = form_of(name, geometry)
        found.append(name if form is not None else f"{name} does not apply")
        return form

    monkeypatch.setattr(chosen, "_form", watched)
    return found
