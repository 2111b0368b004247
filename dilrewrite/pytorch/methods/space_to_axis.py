"""space_to_axis: phases in one more axis, so that a 2-D convolution is a 3-D one with kernel (1, k, k)."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("space_to_axis", original="Subpixel DCD")
