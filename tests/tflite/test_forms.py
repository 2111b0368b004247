"""Every form of quantised sites as TFLite, held to whole numbers: it computes the dilated Conv within one quantum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.runtimes import CannotLoad, Runnable, fixed
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.tflite import convert, quantize
from tests.quantized import Quantized, image, original, quantized_cases, truth
from tests.tflite.models import laid, on_tflite

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: scripts/runtimes.sh has it")

SITES = [
    dataclasses.replace(q, weight_zero=0, out_zero=min(q.out_zero, 20) if q.signed else q.out_zero)
    for q in quantized_cases()
    if q.case.rank < 3
]


@pytest.mark.parametrize("name", [name for name in strategies() if name != "space_to_axis"])
@pytest.mark.parametrize("q", SITES, ids=lambda q: q.name)
def test_a_form_computes_the_same_as_tflite(name: str, q: Quantized) -> None:
    model, found = original(q)
    (site,) = found.sites
    fragment = plan(name, strategies()[name], site.geometry, q.case.opset, storage=site.storage)
    if not isinstance(fragment, Fragment):
        pytest.skip(fragment.reason)
    proto = rewrite(model, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto
    x = image(q, q.case.batch, q.case.extents)
    proto = fixed(Runnable(model=proto.SerializeToString()), {"x": x.shape})
    try:
        file = convert.tflite(quantize.folded(proto, {"x": x}))
    except CannotLoad as error:
        pytest.skip(str(error))
    shift = 0 if q.signed else 128
    (y,) = on_tflite(file, [laid((x.astype(np.int16) - shift).astype(np.int8))])
    wanted = laid(truth(q, x).astype(np.int16) - shift)
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max(initial=0) <= 1
