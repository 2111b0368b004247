"""tap_sum: one product per tap that sees data, summed."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("tap_sum")
