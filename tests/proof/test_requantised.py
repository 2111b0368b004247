"""The error of integers in float32: its bound for every input, and the inputs that it is measured on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import BACK_TO_FLOAT, parse, plan
from dilrewrite.proof import requantised
from dilrewrite.proof.carve import Source
from dilrewrite.proof.disturb import disturb
from dilrewrite.proof.prove import Proof, Prover
from dilrewrite.proof.requantised import Errors, Own
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.integers import Array, Integers, build, held
from tests.sites.test_integers import GRID, KINDS, SUMS, U8, outputs

LARGE = replace(GRID[0], shape=(1, 400, 24), outputs=2, **KINDS["sums u8 x u8"])


def own_of(model: ModelProto, read: Any = numpy_helper.to_array) -> Own:
    source = Source(model)
    (site,) = find(model).sites
    rng, element = np.random.default_rng(0), site.geometry.element
    return Own(source=source, site=site, element=element, rng=rng, read=read)


def proved(model: ModelProto, spelling: str = BACK_TO_FLOAT) -> tuple[Site, Proof]:
    (site,) = find(model).sites
    form = plan(*parse(spelling), site.meaning, site.opset, storage=site.storage)
    assert isinstance(form, Fragment)
    return site, Prover().prove(Source(model), site, form)


def set_to(model: ModelProto, **values: Array) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model


def filled(q: Integers, weight: int) -> ModelProto:
    """A ConvInteger whose weights all lie `weight` from their zero point."""
    model, w = build(q), held(q)["w"]
    return set_to(model, w=np.full_like(w, int(q.weight_zero or 0) + weight))


def test_sums_below_2_24_are_exact_and_one_above_is_not() -> None:
    """The border is where it has to be: 255 - 77 = 178 is the farthest from the zero point."""
    channels = 2**24 // 178 // 2  # of two taps each: one more leaves what float32 counts
    below, above = (replace(LARGE, shape=(1, channels + more, 8), kernel=(2,), weight_zero=0) for more in (0, 1))
    for q, exact in ((below, True), (above, False)):
        own = own_of(filled(q, 1))
        limit, largest, refused = requantised.bound(own)
        assert q.shape[1] is not None
        assert largest == 2 * q.shape[1] * 178
        assert (limit == 0, largest < 2**24, refused) == (exact, exact, "")
        assert limit == (0 if exact else 2), "two additions may pass 2**24, where numbers are 2 apart"


@pytest.mark.parametrize("size", [1.01, 1.6, 5.0])
def test_no_order_of_adding_is_off_by_more(size: float) -> None:
    """One after the other in four orders, and in pairs; the bound is no wide one, as the worst order comes near it."""
    rng = np.random.default_rng(0)
    whole = np.sort(rng.integers(1, 2 * int(size * 2**24) // 2999, 2999) | 1)[::-1].astype(np.float64)
    (most,) = requantised.off_by(whole[None])
    errors = []
    for order in (whole, whole[::-1], rng.permutation(whole), np.roll(whole, 1500)):
        errors.append(abs(float(np.cumsum(order.astype(np.float32))[-1]) - order.sum()))
        pairs = order.astype(np.float32)
        while len(pairs) > 1:
            pairs = np.append(pairs, np.zeros(len(pairs) % 2, np.float32)).reshape(-1, 2).sum(axis=1)
        errors.append(abs(float(pairs[0]) - order.sum()))
    assert whole.sum() > 2**24
    assert 0 < max(errors) <= most
    assert most <= 2999 * whole.sum() * 2.0**-24


def test_sums_that_wrap_are_refused() -> None:
    q = replace(LARGE, shape=(1, 50_000, 4), kernel=(2,), outputs=1, weight_zero=0)
    limit, largest, refused = requantised.bound(own_of(filled(q, 255)))
    assert (limit, largest) == (np.inf, 100_000 * 178 * 255)
    assert refused == "its sums may reach 4.54e+09, beyond int32, where they wrap around"


def test_a_quantum_that_floats_may_miss_is_refused() -> None:
    """With a scale of the output so small that the error of large sums is more than a quantum; it is no wrong form."""
    q = replace(LARGE, **U8, out_zero=100, bias=False, per_channel=False, shape=(1, 600, 24), scale=2.0**-12)
    _, proof = proved(build(q))
    assert proof.failure is not None
    assert proof.failure.endswith("quanta in float32")
    assert not proof.passed
    assert not proof.wrong
    _, proof = proved(build(replace(q, scale=2.0**12)))
    assert proof.passed
    assert proof.requantised is not None
    assert proof.requantised.largest_sum > 2**24
    assert proof.requantised.max_error <= proof.requantised.limit == 1


@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan, -1.0])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    _, proof = proved(build(replace(GRID[0], scale=scale)))
    assert proof.failure == "its scales are not all above 0 and finite"
    assert not proof.wrong


@pytest.mark.parametrize("sums", [True, False])
def test_the_inputs_reach_the_largest_sum_and_both_ends(sums: bool) -> None:
    """Of either sign, with a zero point that is not in the middle: so something is held against the bound."""
    q = replace(GRID[0], name="reached", shape=(1, 6, 40), group=2, zero=200, **(SUMS if sums else {}))
    model = build(q)
    own, (site,) = own_of(model), find(model).sites
    data = list(requantised.inputs(own, [(1, 6, 40)], site.geometry))
    assert all(x.dtype == np.uint8 for x in data)
    assert set(range(256)) <= set(np.concatenate([x.ravel() for x in data]).tolist())
    results = np.concatenate([y.ravel() for y in outputs(model, data, runs=True)])
    if sums:
        whole = held(q)["w"].astype(int).reshape(4, -1)
        ends = [[sum(w * (255 - 200 if (w > 0) == up else -200) for w in row) for row in whole] for up in (True, False)]
        best = int(np.argmax(np.abs(whole).sum(axis=1)))
        assert {ends[0][best], ends[1][best]} <= set(results.tolist())
    else:
        assert {0, 255} <= set(results.tolist())


def test_every_zero_point_that_may_come_is_counted() -> None:
    """One that is computed may be any number: the bound stands on the farthest, and both ends are run."""
    q = replace(GRID[0], zero=100, **SUMS)
    fixed, free = build(q), build(q)
    free.graph.initializer.remove(next(tensor for tensor in free.graph.initializer if tensor.name == "xz"))
    free.graph.input.append(helper.make_tensor_value_info("xz", onnx.TensorProto.UINT8, []))
    assert own_of(fixed).zeros == [100]
    zeros = own_of(free).zeros
    assert (zeros[0], zeros[-1]) == (0, 255)
    assert not {0, 128, 255} >= set(zeros)
    sums = [own_of(model).largest_sums() for model in (fixed, free)]
    np.testing.assert_array_equal(sums[0] / 155, sums[1] / 255)
    _, proof = proved(free)
    assert proof.passed
    assert proof.requantised is not None
    assert proof.requantised.exact
    assert proof.requantised.elements == 3 * proved(fixed)[1].requantised.elements  # type: ignore[union-attr]


def test_two_sites_of_one_geometry_have_errors_of_their_own() -> None:
    """The weights count, so no proof stands for another site's."""
    q = replace(GRID[0], **SUMS)
    models = [filled(q, weight) for weight in (3, 100)]
    prover, found = Prover(), []
    for number, model in enumerate(models):
        model.graph.node[0].output[0] = model.graph.output[0].name = f"y{number}"
        (site,) = find(model).sites
        form = plan(*parse(BACK_TO_FLOAT), site.meaning, site.opset, storage=site.storage)
        assert isinstance(form, Fragment)
        found.append(prover.prove(Source(model), site, form).requantised)
    assert [error.largest_sum for error in found if error is not None] == [178 * 9 * 3, 178 * 9 * 100]


def test_errors_are_counted_as_they_are() -> None:
    errors, right = Errors(), np.array([0, 10, 255, 200], np.uint8)
    assert errors.add(np.array([0, 11, 254, 200], np.uint8), right) is None
    assert (errors.most, errors.differing, errors.elements, errors.low, errors.high) == (1, 2, 4, 1, 1)
    assert errors.relative == 1 / 255
    assert errors.add(right.astype(np.int8), right) == "output int8 [4] instead of uint8 [4]"
    assert errors.add(right[:2], right) == "output uint8 [2] instead of uint8 [4]"


def test_more_than_the_bound_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of two quanta is no matter of rounding: the form computes something else."""
    model = build(replace(GRID[0], scale=0.731 * 2**5))
    right = requantised.exact
    monkeypatch.setattr(requantised, "exact", lambda *given: np.clip(right(*given), 0, 253) + 2)
    _, proof = proved(model)
    assert proof.wrong
    assert "outputs differ by up to 2, above 1" in (proof.failure or "")


def test_integers_are_disturbed_by_whole_numbers() -> None:
    """By one quantum at most, by that much somewhere, and within the range of the type."""
    q = replace(GRID[0], name="saturates", shape=(2, 8, 200), scale=2.0**7)
    model = build(q)
    (site,) = find(model).sites
    noisy = disturb(model, [(site, 1.0)], 0)
    onnx.checker.check_model(noisy)
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 200)).astype(np.uint8)
    before, after = (outputs(one, [x], runs=True)[0] for one in (model, noisy))
    assert after.dtype == np.uint8
    change = after.astype(int) - before.astype(int)
    assert set(change.ravel().tolist()) == {-1, 0, 1}
    assert {0, 255} <= set(after.ravel().tolist())
