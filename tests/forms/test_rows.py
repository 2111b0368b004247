"""Without its row an operator stays outside, and all results stay right: for every row of the lift table."""

import functools

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from dilrewrite.forms import lift
from dilrewrite.splice.rewrite import rewrite
from tests.forms.regions.test_lift_region import INSIDE
from tests.random_chains import Net
from tests.region_models import between, feeds, ints, whole
from tests.sites.test_chains import regions, run, sites_of, widest

C = {"c": whole(4, 1)}
TESTED = "t = Greater (a, c)"
AXES = {"e": ints(1)}
SMALL: dict[str, ModelProto] = {
    **{op: between(f"{TESTED} u = {op} (t, t) b = Where (u, a, c)", C) for op in ("And", "Or", "Xor")},
    "Not": between(f"{TESTED} u = Not (t) b = Where (u, a, c)", C),
    **{
        op: between(f"t = {op} (a, c) b = Where (t, a, c)", C)
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    **{op: between(f"t = {op} (a) b = Where (t, c, a)", C) for op in ("IsInf", "IsNaN")},
    **{op: between(f"b = {op} (a, c)", C) for op in ("Div", "Pow", "Mean", "Sum", "CastLike")},
    "Mod": between("b = Mod <fmod = 1> (a, c)", C),
    **{
        op: between(f"i = Cast <to = 2> (a) j = {op} (i, i) b = Cast <to = 1> (j)", opset=18)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    },
    "BitwiseNot": between("i = Cast <to = 6> (a) j = BitwiseNot (i) b = Cast <to = 1> (j)", opset=18),
    "BitShift": between(
        'k = Abs (a) i = Cast <to = 2> (k) j = BitShift <direction = "LEFT"> (i, i) b = Cast <to = 1> (j)'
    ),
    **{
        f"Reduce{kind}": between(f"r = Reduce{kind} (a, e) b = Add (a, r)", AXES, opset=18)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    **{op: between(f"b = {op} <kernel_shape = [2]> (a)") for op in ("AveragePool", "LpPool")},
    **{
        op: between(f"p = {op} (a) b = Add (a, p)")
        for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
    },
    "BatchNormalization": between(
        "b = BatchNormalization (a, m, m, m, v)", {"m": whole(4), "v": np.ones(4, np.float32)}
    ),
    "InstanceNormalization": between("b = InstanceNormalization (a, m, m)", {"m": whole(4)}),
    "GroupNormalization": between("b = GroupNormalization <num_groups = 2> (a, m, m)", {"m": whole(4)}, opset=21),
    "RMSNormalization": between("b = RMSNormalization (a, m)", {"m": whole(9)}, opset=23),
    "LpNormalization": between("b = LpNormalization <axis = 1> (a)"),
    "MeanVarianceNormalization": between("b = MeanVarianceNormalization <axes = [1]> (a)"),
    **{op: between(f"b = {op} <axis = 1> (a)") for op in ("Softmax", "LogSoftmax")},
    "ArgMin": between("i = ArgMin <axis = 1> (a) j = Cast <to = 1> (i) b = Add (a, j)"),
    "Upsample": between("b = Upsample (a, f)", {"f": np.array([1, 1, 2], np.float32)}, opset=9),
    "Squeeze": between("r = ReduceMax <axes = [1]> (a) s = Squeeze (r, e) u = Unsqueeze (s, e) b = Add (a, u)", AXES),
    "Gelu": between("b = Gelu (a)", opset=20),
    "HardSwish": between("b = HardSwish (a)", opset=14),
    "Mish": between("b = Mish (a)", opset=18),
    "Swish": between("b = Swish (a)", opset=24),
}  # fmt: skip


@functools.cache
def nets() -> list[tuple[Net, ModelProto]]:
    return [(net := Net(seed), net.model(16, unknown=False)) for seed in range(30)]


def holding(op: str) -> list[tuple[ModelProto, dict[str, object]]]:
    """Return up to three models with an operator, and what to feed them."""
    models = [SMALL[op]] if op in SMALL else [model for model in INSIDE.values() if _has(model, op)]
    found = [(model, feeds(model)) for model in models[:1]]
    found += [(model, net.feeds(model)) for net, model in nets() if _has(model, op)][:4]
    return found or [(between(f"b = {op} (a)"), feeds(between(f"b = {op} (a)")))]


def _has(model: ModelProto, op: str) -> bool:
    return any(node.op_type == op for node in model.graph.node)


def taken(model: ModelProto) -> list[str]:
    """Return the operators inside regions."""
    return [link.op for site in sites_of(model, ()) for link in site.meaning.links]  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", lift.ROWS)
def test_an_operator_without_its_row_stays_outside(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widest(monkeypatch)
    models = holding(op)
    before = [taken(model) for model, _ in models]
    assert any(op in ops for ops in before)
    monkeypatch.delitem(lift.ROWS, op)  # type: ignore[arg-type]
    for (model, given), ops in zip(models, before, strict=True):
        assert op not in taken(model)
        assert len(taken(model)) <= len(ops)
        rewritten = rewrite(model, regions(model, "lift_region", ()), (), numpy_helper.to_array).proto
        for wanted, got in zip(run(model, given), run(rewritten, given), strict=True):
            np.testing.assert_array_equal(wanted, got)
