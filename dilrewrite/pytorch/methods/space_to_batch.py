"""space_to_batch: phases in the batch, by reshape and permute."""

from __future__ import annotations

from dilrewrite.pytorch.methods import Method
from dilrewrite.pytorch.methods._strategy import FromStrategy

METHOD: Method = FromStrategy("space_to_batch", original="Batchroll DCD")
