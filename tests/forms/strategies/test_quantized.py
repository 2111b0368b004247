"""Every strategy on QDQ models: equal bit for bit, and layout operators stand on the integers."""

from __future__ import annotations

import onnx
import pytest

from dilrewrite.forms.strategies import every_strategy
from tests.contract import ContractError
from tests.quantized import Quantized, check_elements, check_quantized, quantized_cases

GRID = [pytest.param(q, id=q.name) for q in quantized_cases()]


def test_the_quantized_grid_covers_what_it_should() -> None:
    grid = quantized_cases()
    assert len(grid) >= 30
    assert {q.case.opset for q in grid} == {10, 11, 13, 17, 21}
    assert {q.case.rank for q in grid} == {1, 2, 3}
    assert all(q.zero != 0 for q in grid)
    assert not any(q.per_channel for q in grid if q.case.opset < 13)
    assert min(sum(q.signed for q in grid), sum(not q.signed for q in grid)) >= 10
    assert min(sum(q.per_channel for q in grid), sum(q.relu for q in grid), sum(q.case.bias for q in grid)) >= 8
    assert sum(q.weight_zero != 0 for q in grid) >= 5


@pytest.mark.parametrize("q", GRID)
@pytest.mark.parametrize("name", sorted(every_strategy()))
@pytest.mark.grid(3)
def test_quantized_contract(name: str, q: Quantized) -> None:
    check_quantized(name, every_strategy()[name], q)


def test_layout_operators_on_reals_are_caught() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 2] x) => (float[2, 1] y) { y = Transpose <perm = [1, 0]> (x) }
    """)
    with pytest.raises(ContractError, match="FLOAT"):
        check_elements(model)
