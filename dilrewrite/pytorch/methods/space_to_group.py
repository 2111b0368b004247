"""space_to_group: phases in channel groups, weights repeated."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("space_to_group")
