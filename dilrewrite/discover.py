"""Finds plug-ins: a folder of a package -> {file name: the constant that the file defines}."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover(package: ModuleType, constant: str) -> dict[str, object]:
    """Return `{module name: module.constant}` for every module of `package`, in sorted order.

    A module whose name starts with an underscore is a helper and is left out. Nothing disappears quietly: a module
    that cannot be imported raises its own error, one without `constant` raises `AttributeError` naming the file.
    """
    found: dict[str, object] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{name}")
        if not hasattr(module, constant):
            raise AttributeError(f"{module.__file__} defines no {constant}")
        found[name] = getattr(module, constant)
    return found
