"""Element types other than float32: float16 on ONNX Runtime, float64 and bfloat16 on the reference evaluator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dilrewrite.forms.strategies import Refusal, every_strategy, plan, with_max_dilation
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests.cases import Case, cases
from tests.contract import build, check_structure, equal, image, may_refuse, run, session, truth


@dataclass(frozen=True, slots=True)
class Element:
    """A type, the bound below which it holds whole numbers exactly, and the first opset whose operators all take it."""

    name: str
    kind: int
    most: int
    opset: int


FLOAT16 = Element("float16", TensorProto.FLOAT16, 2**11, 13)
FLOAT64 = Element("float64", TensorProto.DOUBLE, 2**24, 13)
BFLOAT16 = Element("bfloat16", TensorProto.BFLOAT16, 2**8, 22)


def tiny(topic: str, rank: int, *, dynamic: bool = False, **changes: object) -> Case:
    case = Case(
        topic=topic,
        extents=(7, 5, 3)[:rank],
        kernel=(3, 2, 2)[:rank],
        strides=(1,) * rank,
        dilations=(2,) * rank,
        begin=(2, 1, 1)[:rank],
        end=(1, 1, 1)[:rank],
        outputs=2,
        unknown=tuple(range(rank)) if dynamic else (),
        unknown_batch=dynamic,
        opset=22,
        ir=10,
    )
    return replace(case, **changes)


TINY = [
    tiny("1d", 1),
    tiny("1d_dynamic", 1, dynamic=True),
    tiny("1d_overlap", 1, strides=(2,), dilations=(3,), begin=(3,)),
    tiny("1d_grain", 1, strides=(2,), dilations=(4,), begin=(4,), end=(4,), dynamic=True),
    tiny("1d_dead", 1, extents=(1,), kernel=(2,), dilations=(4,), begin=(2,), end=(2,)),
    tiny("1d_part_dead", 1, extents=(3,), dilations=(4,), begin=(4,), end=(4,)),
    tiny("2d_square", 2),
    tiny("2d_square_dynamic", 2, dynamic=True),
    tiny("2d_unequal", 2, dilations=(2, 3)),
    tiny("2d_depthwise", 2, group=2),
    tiny("2d_negative", 2, begin=(-1, 2)),
    tiny("3d", 3),
]


def holds(element: Element, name: str, case: Case, *, on_ort: bool) -> None:
    """Emit, check the structure, run, and compare with the naive convolution; or an allowed refusal."""
    model = build(case, element=element.kind, most=element.most)
    found = find(model)
    site = found.sites[0]
    assert site.geometry.element == element.name
    strategy = with_max_dilation(every_strategy()[name], case.max_dilation)
    fragment = plan(name, strategy, site.geometry, case.opset)
    if isinstance(fragment, Refusal):
        assert may_refuse(name, strategy, case), fragment.reason
        return
    after = rewrite(model, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto
    check_structure(name, strategy, case, model, after)
    kinds = {tensor.data_type for tensor in after.graph.initializer}
    assert kinds <= {element.kind, TensorProto.INT64}, kinds
    x = image(case, case.batch, case.extents, most=element.most)
    wanted = truth(case, x, most=element.most)
    dtype = helper.tensor_dtype_to_np_dtype(element.kind)
    assert int(np.abs(wanted).max()) < element.most
    y = run(session(after), x.astype(dtype)) if on_ort else _reference(after, x.astype(dtype))
    equal(y, wanted.astype(dtype), element.name)


def _reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


FLOAT16_GRID = [
    pytest.param(case, id=case.name)
    for case in cases()
    if case.opset >= FLOAT16.opset and case.weights == "initializer" and not case.activation
][::6]


@pytest.mark.parametrize("case", FLOAT16_GRID)
@pytest.mark.parametrize("name", sorted(every_strategy()))
@pytest.mark.grid(3)
def test_float16_on_the_runtime(name: str, case: Case) -> None:
    holds(FLOAT16, name, case, on_ort=True)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.topic) for case in TINY])
@pytest.mark.parametrize("name", sorted(every_strategy()))
@pytest.mark.parametrize("element", [FLOAT16, FLOAT64, BFLOAT16], ids=lambda element: element.name)
@pytest.mark.grid(3)
def test_on_the_reference_evaluator(element: Element, name: str, case: Case) -> None:
    holds(element, name, case, on_ort=False)
