"""Finds plug-ins: a folder of a package -> {file name: the constant that the file defines}, and entry points."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from types import ModuleType


def discover(package: ModuleType, constant: str, group: str = "", needs: tuple[str, ...] = ()) -> dict[str, object]:
    """Return `{module name: module.constant}` for every module of `package`, in sorted order, then those of `group`.

    A module whose name starts with an underscore is a helper and is left out. Nothing disappears quietly: a module
    that cannot be imported raises its own error, one without `constant` raises `AttributeError` naming the file.
    `group` is of entry points of installed distributions, whose objects stand under their names. One that is broken,
    lacks an attribute that it `needs`, or has the name of another plug-in, is left out and said in a line on standard
    error.
    """
    found: dict[str, object] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{name}")
        if not hasattr(module, constant):
            raise AttributeError(f"{module.__file__} defines no {constant}")
        found[name] = getattr(module, constant)
    return {**found, **_foreign(group, tuple(found), needs)} if group else found


@functools.cache
def _foreign(group: str, taken: tuple[str, ...], needs: tuple[str, ...]) -> dict[str, object]:
    """Return what installed distributions offer in a group besides the names that are `taken`, in sorted order."""
    offered: dict[str, tuple[str, object]] = {}
    for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown distribution"
        plugin = f"dilrewrite: {entry.value}, a plug-in of {owner}, is left out:"
        if entry.name in taken or entry.name in offered:
            other = offered[entry.name][0] if entry.name in offered else "dilrewrite itself"
            print(f"{plugin} {group} has {entry.name!r} of {other} already", file=sys.stderr)
            continue
        try:
            loaded = entry.load()
            if missing := [name for name in needs if not hasattr(loaded, name)]:
                raise TypeError(f"{loaded!r} has no {', '.join(missing)}")
            offered[entry.name] = owner, loaded
        except (Exception, SystemExit) as error:  # whatever its code raises
            reason = " ".join(str(error).split())
            print(f"{plugin} it cannot be loaded: {type(error).__name__}: {reason}", file=sys.stderr)
    return {name: plugin for name, (_, plugin) in offered.items()}
