"""What looks for sites in a model, one file per kind of site; the file's name is the kind's name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Protocol, cast

from dilrewrite.discover import discover
from dilrewrite.sites import Normalisation, Site, Skipped
from dilrewrite.sites.scopes import Scope


class Finder(Protocol):
    """Looks for one kind of site."""

    def at(self, scope: Scope, index: int) -> Iterable[Site | Normalisation | Skipped]:
        """Return the sites whose last node stands at `index` of `scope`, and what else is to say of that node.

        Called for every node of every node list in their order. Raises `UsageError` naming a node that is invalid.
        """


@functools.cache
def finders() -> dict[str, Finder]:
    """Return every finder by the name of its file."""
    return cast("dict[str, Finder]", discover(sys.modules[__name__], "FINDER", "dilrewrite.finders", ("at",)))
