"""im2col: one shifted slice per tap, joined on the channels, and a product with the weights as a matrix."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("im2col", original="im2col DCD")
