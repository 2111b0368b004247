"""slice_to_batch: phases in the batch, by strided slices and concatenation."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("slice_to_batch", original="BatchStack DCD")
