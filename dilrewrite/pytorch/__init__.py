"""The 2016 benchmark in PyTorch, forward and backward, and module rewriting for training. Loads torch when used.

>>> from dilrewrite.pytorch import rewrite_module
>>> print(rewrite_module(module, example_input).rewritten)  # doctest: +SKIP
7
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dilrewrite.pytorch import methods
    from dilrewrite.pytorch.rewriting import LayerChoice, Rewriting, restore_module, rewrite_module

_OF_REWRITING = ("LayerChoice", "Rewriting", "restore_module", "rewrite_module")


def __getattr__(name: str) -> object:
    """Load what is asked for."""
    if name == "methods":  # the folder of methods; `methods.methods()` lists them
        return importlib.import_module("dilrewrite.pytorch.methods")
    if name in _OF_REWRITING:
        return getattr(importlib.import_module("dilrewrite.pytorch.rewriting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LayerChoice", "Rewriting", "methods", "restore_module", "rewrite_module"]
