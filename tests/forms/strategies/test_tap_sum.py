"""tap_sum alone: its partial sums stay out of the quantised domain."""

from __future__ import annotations

import pytest

from dilrewrite.forms.strategies import Refusal, plan, strategies
from tests.contract import pruned_kernel
from tests.quantized import Quantized, original, quantized_cases


@pytest.mark.parametrize("q", quantized_cases(), ids=lambda q: q.name)
def test_tap_sum_refuses_in_words(q: Quantized) -> None:
    if pruned_kernel(q.case) is None:
        return  # the bias alone has no partial sums
    site = original(q)[1].sites[0]
    made = plan("tap_sum", strategies()["tap_sum"], site.geometry, q.case.opset, storage=site.storage)
    assert isinstance(made, Refusal)
    assert q.case.unknown or "quantized" in made.reason or "quantised" in made.reason
