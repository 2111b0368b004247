"""The exact forms of a chain of operators, one file each; `plan` of `forms.strategies` plans them too.

The file's name is the form's name on the command line, in reports and in test ids.
"""

from __future__ import annotations

import functools
import sys
from typing import ClassVar, Protocol, cast

from dilrewrite.discover import discover
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment, Refusal


class RegionForm(Protocol):
    """One exact form of a region. A frozen dataclass; its fields are its settings (`--strategy NAME:field=value`)."""

    takes: ClassVar[tuple[type, ...]] = (Chain,)

    def fragment(self, meaning: Chain, opset: int) -> Fragment | Refusal:
        """Return the form of a chain, in operators of `opset`, or why there is none."""
        ...


@functools.cache
def region_forms() -> dict[str, RegionForm]:
    """Return every form of a region with its default settings, by name, in sorted order."""
    found = discover(sys.modules[__name__], "FORM", "dilrewrite.regions", ("takes", "fragment"))
    return cast("dict[str, RegionForm]", found)
