"""rewrite: rewritten models compute the same, and everything that is not rewritten stays byte for byte."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import parse, plan, strategies
from dilrewrite.model.walk import resolve, subgraphs
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.names import Names
from dilrewrite.splice.rewrite import VERIFICATION_KEY, Rewritten, mark, rewrite
from dilrewrite.splice.writer import STRATEGY_KEY
from tests.contract import PROMISES, there
from tests.proto_diff import Change, diff

FORMS = (
    *strategies(),
    *there(
        "slice_to_batch:max_dilation=3",
        "space_to_axis:max_dilation=2",
        "space_to_batch:max_dilation=2",
        "space_to_group:max_dilation=3",
        "tap_zones:axes=last",
    ),
)
"""Every strategy as it is, and some with settings, as `--strategy` takes them."""

Array = NDArray[Any]


# -- models --------------------------------------------------------------------------------------------------------

CONV = "Conv <dilations=[6], pads=[12,12]>"  # of the kernel's 5 taps, both outer ones see only padding: all forms apply
X = "float[1,2,12] x"


def tensor(*dims: int, kind: str = "float", name: str = "", step: int = 7) -> str:
    """Return a literal (an initializer with `name`) of small whole numbers; above 0 where `kind` is unsigned."""
    low = 0 if kind.startswith("u") or kind == "bool" else -5
    values = ",".join(str((place * step + 3) % 11 + low) for place in range(int(np.prod(dims))))
    return f"{kind}[{','.join(map(str, dims))}] {name + ' = ' if name else ''}{{{values}}}"


def scalar(kind: str, value: str, name: str) -> str:
    """Return an initializer without axes."""
    return f"{kind} {name} = {{{value}}}"


W = tensor(2, 2, 5, name="w")
B = tensor(2, name="b", step=5)


def model(
    body: str,
    *,
    inputs: str = X,
    outputs: str = "float[n,o,m] y",
    values: str = f"{W}, {B}",
    ir: int = 8,
    opset: int = 17,
    functions: str = "",
) -> ModelProto:
    """Return the model whose main graph is `body`, in ONNX's text form."""
    held = f"<{values}>" if values else ""
    imports = f'"": {opset}, "local": 1, "custom": 1' if functions or "custom." in body else f'"": {opset}'
    return parser.parse_model(
        f"<ir_version: {ir}, opset_import: [{imports}]>\ng ({inputs}) => ({outputs}) {held} {{ {body} }}\n{functions}"
    )


def as_inputs(source: ModelProto, *names: str) -> ModelProto:
    """Make initializers inputs too (all of them without names)."""
    for held in source.graph.initializer:
        if held.name in names or not names:
            source.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, list(held.dims)))
    return source


def sparse(source: ModelProto, name: str) -> ModelProto:
    """Make an initializer a sparse one."""
    (place,) = [i for i, held in enumerate(source.graph.initializer) if held.name == name]
    dense = numpy_helper.to_array(source.graph.initializer[place])
    del source.graph.initializer[place]
    where = np.flatnonzero(dense)
    source.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(dense.reshape(-1)[where], name),
            numpy_helper.from_array(where, f"{name}_indices"),
            list(dense.shape),
        )
    )
    return source


def backwards(source: ModelProto) -> ModelProto:
    """Turn the order of the nodes."""
    nodes = list(reversed(source.graph.node))
    turned = ModelProto()
    turned.CopyFrom(source)
    turned.graph.ClearField("node")
    turned.graph.node.extend(nodes)
    return turned


def in_if(body: str, result: str, name: str = "", dims: str = "n,o,m") -> str:
    """Return an If whose branches hold `body` and a Neg of the input."""
    other = f"other{name} () => (float[{dims}] alt{name}) {{ alt{name} = Neg (x) }}"
    branch = f"then{name} () => (float[{dims}] {result}) {{ {body} }}"
    return f"[if{name}] y{name} = If (c) <then_branch = {branch}, else_branch = {other}>"


def in_loop(body: str, result: str, name: str = "") -> str:
    """Return a Loop around `body`, which may read `xi{name}`: the input plus the iteration's number."""
    go = f"go{name} = Constant <value = bool {{1}}> ()"
    head = f"(int64 i{name}, bool ci{name}) => (bool co{name}, float[n,o,m] {result})"
    start = f"co{name} = Identity (ci{name}) f{name} = Cast <to=1> (i{name}) xi{name} = Add (x, f{name})"
    return f"{go} [loop{name}] y{name} = Loop (trips, go{name}) <body = body{name} {head} {{ {start} {body} }}>"


# DequantizeLinear's scales are powers of two: every product and sum is exact
Q = ", ".join(
    (
        tensor(2, 2, 5, kind="int8", name="q"),
        scalar("float", "0.5", "s"),
        scalar("int8", "2", "z"),
        "float[2] ss = {0.5, 2}",
        "int8[2] zz = {1, -2}",
        "float[1] s1 = {0.5}",
        "int8[1] z1 = {2}",
        "uint8[1] u1 = {3}",
        scalar("uint8", "3", "u"),
        tensor(2, kind="int32", name="bq"),
    )
)
ENTRY = "xq = QuantizeLinear (x, s, u) xd = DequantizeLinear (xq, s, u)"

CALL = "one = local.f (x) two = local.f (one) y = Add (one, two)"
LOCAL = '<domain: "local", opset_import: ["": 17]>'
CONSTANT = f"k = Constant <value = {tensor(2, 2, 5, step=1)}> ()"

KINDS: dict[str, Callable[[], ModelProto]] = {
    # how weights come
    "initializer": lambda: model(f"y = {CONV} (x, w, b)"),
    "raw-data": lambda: raw(model(f"y = {CONV} (x, w, b)")),
    "constant": lambda: model(f"{CONSTANT} y = {CONV} (x, k, b)"),
    "overridable": lambda: as_inputs(model(f"y = {CONV} (x, w, b)")),
    "ir3": lambda: as_inputs(model(f"y = {CONV} (x, w, b)", ir=3, opset=7)),
    "ir3-opset-10": lambda: as_inputs(model(f"y = {CONV} (x, w, b)", ir=3, opset=10)),
    "relu-of-initializer": lambda: model(f"v = Relu (w) y = {CONV} (x, v, b)"),
    "identity-of-overridable": lambda: as_inputs(model(f"v = Identity (w) y = {CONV} (x, v, b)")),
    "graph-input": lambda: model(f"y = {CONV} (x, w)", inputs=f"{X}, float[2,2,5] w", values=""),
    "graph-input-of-unknown-shape": lambda: model(
        f"y = {CONV[:-1]}, kernel_shape=[5]> (x, v)", inputs=f"{X}, float[o,i,k] v", values=""
    ),
    "sparse": lambda: sparse(model(f"y = {CONV} (x, w, b)"), "w"),
    "float16": lambda: half(
        model(f"y = {CONV} (x, w, b)", inputs="float16[1,2,12] x", outputs="float16[n,o,m] y", values=f"{W}, {B}")
    ),
    "float16-2d": lambda: half(
        model(
            "y = Conv <dilations=[6,6], pads=[12,12,12,12]> (x, w)",
            inputs="float16[1,2,12,12] x",
            outputs="float16[n,o,m,l] y",
            values=tensor(2, 2, 5, 5, name="w"),
        )
    ),
    "float16-dead": lambda: half(
        model(
            "y = Conv <dilations=[20], pads=[10,10]> (x, w)",
            inputs="float16[2,2,3] x",
            outputs="float16[n,o,m] y",
            values=tensor(2, 2, 2, name="w"),
        )
    ),
    "input-is-its-own-weight": lambda: model(f"y = {CONV} (w, w)", inputs="float unused", values=W),
    # biases
    "no-bias": lambda: model(f"y = {CONV} (x, w)", values=W),
    "empty-bias": lambda: renamed_inputs(model(f"y = {CONV} (x, w)", values=W), ["x", "w", ""]),
    "constant-bias": lambda: model(f"k = Constant <value = {tensor(2)}> () y = {CONV} (x, w, k)", values=W),
    "overridable-bias": lambda: as_inputs(model(f"y = {CONV} (x, w, b)"), "b"),
    "computed-bias": lambda: model(f"v = Relu (b) y = {CONV} (x, w, v)"),
    # quantised
    "dq-tensor": lambda: model(f"d = DequantizeLinear (q, s, z) y = {CONV} (x, d)", values=Q),
    "dq-one-element": lambda: model(f"d = DequantizeLinear (q, s1, z1) y = {CONV} (x, d)", values=Q),
    "dq-no-zero-point": lambda: model(f"d = DequantizeLinear (q, s) y = {CONV} (x, d)", values=Q),
    "dq-axis-0": lambda: model(f"d = DequantizeLinear <axis=0> (q, ss, zz) y = {CONV} (x, d)", values=Q),
    "dq-axis-1": lambda: model(f"d = DequantizeLinear <axis=1> (q, ss, zz) y = {CONV} (x, d)", values=Q),
    "dq-axis-minus-3": lambda: model(f"d = DequantizeLinear <axis=-3> (q, ss, zz) y = {CONV} (x, d)", values=Q),
    "dq-overridable": lambda: as_inputs(model(f"d = DequantizeLinear (q, s, z) y = {CONV} (x, d)", values=Q), "q", "s"),
    "dq-constant-nodes": lambda: model(
        f"k = Constant <value = {tensor(2, 2, 5, kind='int8')}> () d = DequantizeLinear (k, s, z) y = {CONV} (x, d)",
        values=Q,
    ),
    "dq-bias": lambda: model(
        f"d = DequantizeLinear <axis=0> (q, ss, zz) e = DequantizeLinear <axis=0> (bq, ss) y = {CONV} (x, d, e)",
        values=Q,
    ),
    "qdq": lambda: model(
        f"{ENTRY} d = DequantizeLinear <axis=0> (q, ss, zz) e = DequantizeLinear (bq, s) v = {CONV} (xd, d, e) "
        "r = Relu (v) o = QuantizeLinear (r, s, u) y = DequantizeLinear (o, s, u)",
        values=Q,
    ),
    "qdq-one-element": lambda: model(
        f"xq = QuantizeLinear (x, s1, u1) xd = DequantizeLinear (xq, s1, u1) d = DequantizeLinear (q, s1, z1) "
        f"v = {CONV} (xd, d) o = QuantizeLinear (v, s1, u1) y = DequantizeLinear (o, s1, u1)",
        values=Q,
    ),
    "qdq-overridable-zero-point": lambda: as_inputs(
        model(
            f"xq = QuantizeLinear (x, s1, u1) xd = DequantizeLinear (xq, s1, u1) y = {CONV} (xd, w)",
            values=f"{Q}, {W}",
        ),
        "u1",
    ),
    "dq-one-weight-two-zero-points": lambda: model(
        f"d = DequantizeLinear (q, s, z) e = DequantizeLinear (q, s) "
        f"v1 = {CONV} (x, d) v2 = {CONV} (x, e) y = Add (v1, v2)",
        values=Q,
    ),
    "dq-one-weight-two-scales": lambda: model(
        f"d = DequantizeLinear (q, s, z) e = DequantizeLinear <axis=0> (q, ss, zz) "
        f"v1 = {CONV} (x, d) v2 = {CONV} (x, e) y = Add (v1, v2)",
        values=Q,
    ),
    "qdq-chain": lambda: model(
        f"{ENTRY} d = DequantizeLinear (q, s, z) v = {CONV} (xd, d) r = Relu (v) o = QuantizeLinear (r, s, u) "
        f"od = DequantizeLinear (o, s, u) v2 = {CONV} (od, d) o2 = QuantizeLinear (v2, s1, u1) "
        "y = DequantizeLinear (o2, s1, u1)",
        values=Q,
    ),
    "qdq-2d": lambda: model(
        "xq = QuantizeLinear (x, s, u) xd = DequantizeLinear (xq, s, u) d = DequantizeLinear (q2, s, z) "
        "v = Conv <dilations=[3,3], pads=[3,3,3,3]> (xd, d) r = Relu (v) o = QuantizeLinear (r, s, u) "
        "y = DequantizeLinear (o, s, u)",
        inputs="float[1,2,8,8] x",
        outputs="float[n,o,m,l] y",
        values=f"{Q}, {tensor(2, 2, 3, 3, kind='int8', name='q2')}",
    ),
    "qdq-2d-int8": lambda: model(
        "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z) d = DequantizeLinear (q2, s, z) "
        "y = Conv <dilations=[2,2], pads=[3,3,3,3]> (xd, d)",
        inputs="float[1,2,8,8] x",
        outputs="float[n,o,m,l] y",
        values=f"{Q}, {tensor(2, 2, 3, 3, kind='int8', name='q2')}",
    ),
    "qdq-in-loop": lambda: model(
        f"{ENTRY} "
        + in_loop(
            f"xiq = QuantizeLinear (xi, s, u) xid = DequantizeLinear (xiq, s, u) d = DequantizeLinear (q, s, z) "
            f"v = {CONV} (xid, d) w0 = {CONV} (xd, d) a = Add (v, w0)",
            "a",
        ),
        inputs=f"{X}, int64 trips",
        outputs="float[t,n,o,m] y",
        values=Q,
    ),
    "dq-outside-loop": lambda: model(
        "d = DequantizeLinear <axis=0> (q, ss, zz) " + in_loop(f"a = {CONV} (xi, d)", "a"),
        inputs=f"{X}, int64 trips",
        outputs="float[t,n,o,m] y",
        values=Q,
    ),
    "qdq-float-weight": lambda: model(f"{ENTRY} y = {CONV} (xd, w, b)", values=f"{Q}, {W}, {B}"),
    # geometries
    "relu": lambda: model(f"v = {CONV} (x, w, b) y = Relu (v)"),
    "clip": lambda: model(
        f"v = {CONV} (x, w, b) y = Clip (v, lo, hi)",
        values=f"{W}, {B}, {scalar('float', '-9', 'lo')}, {scalar('float', '20', 'hi')}",
    ),
    "2d": lambda: model(
        "v = Conv <dilations=[6,6], pads=[12,12,12,12]> (x, w, b) y = Relu (v)",
        inputs="float[1,2,12,12] x",
        outputs="float[n,o,m,l] y",
        values=f"{tensor(2, 2, 5, 5, name='w')}, {B}",
    ),
    "2d-overridable": lambda: as_inputs(
        model(
            "v = Conv <dilations=[6,4], pads=[12,4,12,4]> (x, w, b) y = Relu (v)",
            inputs="float[1,2,12,9] x",
            outputs="float[n,o,m,l] y",
            values=f"{tensor(2, 2, 5, 3, name='w')}, {B}",
        )
    ),
    "3d": lambda: model(
        "v = Conv <dilations=[2,1,3], pads=[2,0,3,2,0,3]> (x, w, b) y = Relu (v)",
        inputs="float[1,2,5,4,6] x",
        outputs="float[n,o,m,l,k] y",
        values=f"{tensor(2, 2, 3, 2, 3, name='w')}, {B}",
    ),
    "grouped": lambda: model(
        f"y = {CONV[:-1]}, group=2> (x, w, b)", values=f"{tensor(4, 1, 5, name='w')}, {tensor(4, name='b')}"
    ),
    "strided": lambda: model(f"y = {CONV[:-1]}, strides=[4]> (x, w, b)"),
    "unknown-extents": lambda: model(f"v = {CONV} (x, w, b) y = Relu (v)", inputs="float[n,2,l] x"),
    "unknown-extents-overridable": lambda: as_inputs(model(f"y = {CONV} (x, w, b)", inputs="float[n,2,l] x")),
    "unknown-rank": lambda: model(f"v = {CONV} (x, w, b) y = Relu (v)", inputs="float[] x"),
    "negative-pads": lambda: model("y = Conv <dilations=[2], pads=[-1,-2]> (x, w, b)"),
    "same-upper": lambda: model('y = Conv <dilations=[6], auto_pad="SAME_UPPER"> (x, w, b)'),
    "same-lower-strided": lambda: model('y = Conv <dilations=[3], strides=[2], auto_pad="SAME_LOWER"> (x, w, b)'),
    "dead": lambda: model(
        "v = Conv <dilations=[20], pads=[10,10]> (x, w, b) y = Relu (v)",
        inputs="float[2,2,3] x",
        values=f"{tensor(2, 2, 2, name='w')}, {B}",
    ),
    "dead-no-bias": lambda: model(
        "y = Conv <dilations=[20], pads=[10,10]> (x, w)", inputs="float[2,2,3] x", values=tensor(2, 2, 2, name="w")
    ),
    "dead-overridable": lambda: as_inputs(
        model(
            "y = Conv <dilations=[20], pads=[10,10]> (x, w, b)",
            inputs="float[2,2,3] x",
            values=f"{tensor(2, 2, 2, name='w')}, {B}",
        )
    ),
    # places
    "reversed-nodes": lambda: backwards(
        model(f"v = Relu (w) [c] a = {CONV} (x, v, b) r = Relu (a) d = {CONV} (r, w) y = Neg (d)")
    ),
    "shared-weights": lambda: model(f"v = {CONV} (x, w, b) r = Relu (v) u = {CONV} (r, w) y = Add (u, v)"),
    "if": lambda: model(
        f"y = If (c) <then_branch = t () => (float[n,o,m] p) {{ p = {CONV} (x, w, b) }}, "
        f"else_branch = e () => (float[n,o,m] q) {{ {CONSTANT} v = {CONV} (x, k, b) q = Relu (v) }}>",
        inputs=f"{X}, bool c",
    ),
    "if-own-initializer": lambda: model(
        f"y = If (c) <"
        f"then_branch = t () => (float[n,o,m] p) <{tensor(2, 2, 5, name='own')}> {{ p = {CONV} (x, own) }}, "
        f"else_branch = e () => (float[n,o,m] q) <{tensor(2, 2, 5, name='own', step=1)}> {{ q = {CONV} (x, own) }}>",
        inputs=f"{X}, bool c",
    ),
    "if-outer-constant": lambda: model(f"{CONSTANT} {in_if(f'a = {CONV} (x, k, b)', 'a')}", inputs=f"{X}, bool c"),
    "if-overridable": lambda: as_inputs(model(in_if(f"a = {CONV} (x, w, b)", "a"), inputs=f"{X}, bool c"), "w"),
    "if-computed-outside": lambda: model(f"v = Relu (w) {in_if(f'a = {CONV} (x, v, b)', 'a')}", inputs=f"{X}, bool c"),
    "if-ir3": lambda: as_inputs(
        model(in_if(f"a = {CONV} (x, w, b)", "a"), inputs=f"{X}, bool c", ir=3, opset=10), "w", "b"
    ),
    "loop": lambda: model(
        in_loop(f"v = {CONV} (xi, w, b) a = Relu (v)", "a"), inputs=f"{X}, int64 trips", outputs="float[t,n,o,m] y"
    ),
    "loop-computed-inside": lambda: model(
        in_loop(f"wi = Add (w, f) a = {CONV[:-1]}, kernel_shape=[5]> (x, wi, b)", "a"),
        inputs=f"{X}, int64 trips",
        outputs="float[t,n,o,m] y",
    ),
    "loop-initializer-read-in-if": lambda: model(
        in_loop(in_if(f"p = {CONV} (xi, own)", "p", "1"), "y1").replace(
            "float[n,o,m] y1)", f"float[n,o,m] y1) <{tensor(2, 2, 5, name='own')}>"
        ),
        inputs=f"{X}, int64 trips, bool c",
        outputs="float[t,n,o,m] y",
    ),
    "every-level": lambda: model(
        f"x0 = {CONV} (x, w, b) "
        + in_loop(
            f"x1 = {CONV} (xi, w, b) r1 = Relu (x1) "
            + in_if(f"v = {CONV} (xi, w, b) v2 = Add (v, r1) p = Add (v2, x0)", "p", "1")
            + f" z1 = {CONV} (y1, ones)",
            "z1",
        ),
        inputs=f"{X}, int64 trips, bool c",
        outputs="float[t,n,o,m] y",
        values=f"{W}, {B}, float[1,2,3] ones = {{1,1,1,1,1,1}}",
    ),
    "if-in-loop": lambda: model(
        in_loop(in_if(f"v = {CONV} (xi, w, b) p = Relu (v)", "p", "1"), "y1"),
        inputs=f"{X}, int64 trips, bool c",
        outputs="float[t,n,o,m] y",
    ),
    "loop-in-if": lambda: model(
        in_if(in_loop(f"a = {CONV} (xi1, w, b)", "a", "1"), "y1", dims="t,n,o,m"),
        inputs=f"{X}, int64 trips, bool c",
        outputs="float[t,n,o,m] y",
    ),
    "scan": lambda: model(
        f"y = Scan (xs) <num_scan_inputs = 1, body = s (float[1,2,12] xi) => (float[n,o,m] a) "
        f"{{ v = {CONV} (xi, w, b) a = Relu (v) }}>",
        inputs="float[3,1,2,12] xs",
        outputs="float[t,n,o,m] y",
    ),
    "function": lambda: model(
        CALL, functions=f"{LOCAL} f (X) => (Y) {{ {CONSTANT} v = {CONV} (X, k) s = Relu (v) Y = Neg (s) }}", values=""
    ),
    "function-inputs": lambda: model(
        "one = local.f (x, w) y = local.f (one, u)",
        functions=f"{LOCAL} f (X, V) => (Y) {{ Y = {CONV[:-1]}, kernel_shape=[5]> (X, V) }}",
        values=f"{W}, {tensor(2, 2, 5, name='u', step=3)}",
    ),
    "function-if": lambda: model(
        CALL.replace("(x)", "(x, c)").replace("(one)", "(one, c)"),
        inputs=f"{X}, bool c",
        functions=f"{LOCAL} f (X, c) => (Y) {{ {CONSTANT} "
        + in_if(f"a = {CONV} (X, k)", "a").replace("Neg (x)", "Neg (X)").replace("y =", "Y =")
        + " }",
        values="",
    ),
    "function-ir10": lambda: model(
        CALL,
        functions=f"{LOCAL.replace('17', '21')} f (X) => (Y) {{ {CONSTANT} v = {CONV} (X, k) Y = Relu (v) }}",
        values="",
        ir=10,
        opset=21,
    ),
}


def raw(source: ModelProto) -> ModelProto:
    """Write every initializer as raw_data."""
    for held in source.graph.initializer:
        held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held), held.name))
    return source


def half(source: ModelProto) -> ModelProto:
    """Turn every initializer into float16."""
    for held in source.graph.initializer:
        held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held).astype(np.float16), held.name))
    return source


def renamed_inputs(source: ModelProto, names: list[str]) -> ModelProto:
    """Set the inputs of the last node."""
    source.graph.node[-1].input[:] = names
    return source


@dataclass(frozen=True, slots=True)
class Known:
    """A model with what `find` says of it."""

    proto: ModelProto
    found: Found


@functools.cache
def known(kind: str) -> Known:
    """Return the model of a kind, which nobody may change."""
    proto = KINDS[kind]()
    found = find(proto)
    assert found.sites, kind
    assert found.skipped == (), kind
    return Known(proto, found)


def fragment(site: Site, form: str) -> Fragment | None:
    """Return the fragment of a form, `None` when it refuses."""
    planned = plan(*parse(form), site.geometry, site.opset, storage=site.storage)
    return planned if isinstance(planned, Fragment) else None


def edits(sites: Sequence[Site], form: str) -> list[tuple[Site, Fragment]]:
    """Return (site, fragment) wherever the form applies."""
    return [(site, made) for site in sites if (made := fragment(site, form)) is not None]


def chosen_edits(sites: Sequence[Site], form: str, least: int | None = None) -> list[tuple[Site, Fragment]]:
    """Return where a form applies: everywhere, or at `least` so many; one that promised nothing may refuse."""
    chosen, wanted = edits(sites, form), len(sites) if least is None else least
    if len(chosen) < wanted and parse(form)[0] not in PROMISES:
        pytest.skip(f"{form} refuses")
    assert len(chosen) >= wanted > 0, f"{form} refuses"
    return chosen


def with_form(proto: ModelProto, form: str) -> Rewritten:
    """Rewrite every site by a form that applies to all of them."""
    found = find(proto)
    return rewrite(proto, chosen_edits(found.sites, form), found.normalisations, numpy_helper.to_array)


def pairs(*kinds: str) -> list[Any]:
    """Return (kind, form) for every form that applies to the kind's sites."""
    return [
        pytest.param(kind, form, id=f"{kind}-{form}")
        for kind in kinds or KINDS
        for form in FORMS
        if len(edits(known(kind).found.sites, form)) == len(known(kind).found.sites)
    ]


# -- looking at models ---------------------------------------------------------------------------------------------


def containers(proto: ModelProto) -> Iterator[Any]:
    """Yield every graph and function."""

    def below(container: Any) -> Iterator[Any]:
        yield container
        for node in container.node:
            for _, _, graph in subgraphs(node):
                yield from below(graph)

    yield from below(proto.graph)
    for function in proto.functions:
        yield from below(function)


def nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield every node at any depth."""
    for container in containers(proto):
        yield from container.node


def values(proto: ModelProto) -> Counter[str]:
    """Count the definitions of each value over all scopes."""
    count: Counter[str] = Counter()
    for container in containers(proto):
        for node in container.node:
            count.update(name for name in node.output if name)
        if isinstance(container, GraphProto):
            inputs = [value.name for value in container.input]
            count.update(inputs)
            count.update(held.name for held in container.initializer if held.name not in inputs)
            count.update(held.values.name for held in container.sparse_initializer)
        else:
            count.update(container.input)
    return count


def strategy_of(node: NodeProto) -> str | None:
    """Return the strategy written into a node."""
    found = [entry.value for entry in node.metadata_props if entry.key == STRATEGY_KEY]
    assert len(found) <= 1, f"{node.name}: {found}"
    return found[0] if found else None


def named(proto: ModelProto, name: str) -> TensorProto:
    """Return an initializer of the main graph."""
    (found,) = [held for held in proto.graph.initializer if held.name == name]
    return found


# -- running them --------------------------------------------------------------------------------------------------

DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
}


def feeds(proto: ModelProto, condition: bool, *, defaults: bool = True) -> dict[str, Array]:
    """Return seeded whole numbers for every input, but not for initializers' (without `defaults`: for these too)."""
    rng = np.random.default_rng(3)
    held = {t.name for t in proto.graph.initializer} if defaults else set()
    made: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name in held:
            continue
        kind = value.type.tensor_type
        if value.name == "x" and not kind.HasField("shape"):
            kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 2, 13]).tensor_type
        sizes = {"n": 2, "l": 13, "o": 2, "i": 2, "k": 5}
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.BOOL:
            made[value.name] = np.array(condition)
        elif kind.elem_type == TensorProto.INT64:
            made[value.name] = np.array(3, np.int64)
        else:
            low = 4 if kind.elem_type == TensorProto.UINT8 else -8
            made[value.name] = rng.integers(low, 9, shape).astype(DTYPES[kind.elem_type])
    return made


def run(proto: ModelProto, given: Mapping[str, Array], *, optimise: bool = True) -> list[Array]:
    """Return the outputs on ONNX Runtime's CPU."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(given)))


def same(before: list[Array], after: list[Array]) -> None:
    """Assert equal bits (and types and shapes)."""
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        np.testing.assert_array_equal(new, old)


def conditions(proto: ModelProto) -> tuple[bool, ...]:
    """Return the values of `c` to try."""
    return (True, False) if any(value.name == "c" for value in proto.graph.input) else (True,)


INSTEAD = {
    "negative-pads": lambda: model(
        "s = Slice (x, from, to, axes) y = Conv <dilations=[2]> (s, w, b)",
        values=f"{W}, {B}, int64[1] from = {{1}}, int64[1] to = {{-2}}, int64[1] axes = {{2}}",
    )
}
"""What ONNX Runtime runs instead of models that it refuses."""


@functools.cache
def expected(kind: str, condition: bool) -> list[Array]:
    """Return the outputs of the kind's model (with explicit pads: ONNX Runtime runs no SAME_* with dilations)."""
    source = known(kind)
    plain = (
        INSTEAD[kind]()
        if kind in INSTEAD
        else rewrite(source.proto, [], source.found.normalisations, numpy_helper.to_array).proto
    )
    return run(plain, feeds(plain, condition), optimise="dq" not in kind)


@pytest.mark.parametrize(("kind", "form"), pairs())
@pytest.mark.grid(8)
def test_rewritten_model_computes_the_same(kind: str, form: str) -> None:
    source = known(kind).proto
    before = source.SerializeToString()
    after = with_form(source, form).proto
    assert source.SerializeToString() == before
    for condition in conditions(source):
        same(expected(kind, condition), run(after, feeds(source, condition), optimise="dq" not in kind))


@pytest.mark.parametrize(("kind", "form"), pairs())
@pytest.mark.grid(4)
def test_rewritten_model_is_sound(kind: str, form: str) -> None:
    source = known(kind).proto
    rewritten = with_form(source, form)
    after = rewritten.proto
    if kind not in ("reversed-nodes", "unknown-rank"):  # ONNX's checker takes neither
        onnx.checker.check_model(after)
    assert diff(as_interface(source), as_interface(after)) == []
    old, new = values(source), values(after)
    added = {name for name in new if name not in old}
    assert all(new[name] == 1 for name in added)
    assert all(new[name] <= old[name] for name in new if name not in added)
    labels = Counter(node.name for node in nodes(after) if node.name)
    assert max(labels.values()) == 1, labels
    assert set(rewritten.added_tensors) <= added
    read = readers(after)
    assert [name for name in rewritten.added_tensors if not read[name]] == []
    assert [name for name in rewritten.removed_tensors if read[name] and old[name] == 1] == []
    made = {output for node in nodes(after) for output in node.output}
    assert sorted(name for name in added if name in made and not read[name]) == []


def as_interface(proto: ModelProto) -> ModelProto:
    """Return the model without what happens inside: versions, imports, inputs, outputs and metadata."""
    kept = ModelProto()
    kept.CopyFrom(proto)
    for field in ("node", "initializer", "value_info", "quantization_annotation"):
        kept.graph.ClearField(field)
    for function in kept.functions:
        function.ClearField("node")
    return kept


def readers(proto: ModelProto) -> Counter[str]:
    """Count who reads each name, graph outputs among them."""
    count: Counter[str] = Counter()
    for container in containers(proto):
        for node in container.node:
            count.update(node.input)
        is_graph = isinstance(container, GraphProto)
        count.update([value.name for value in container.output] if is_graph else container.output)
    return count


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_a_case(form: str) -> None:
    assert chosen_edits(known("initializer").found.sites, form)


# -- weights that a caller overrides -------------------------------------------------------------------------------

OVERRIDABLE = [kind for kind in KINDS if "overridable" in kind or kind.startswith("graph-input")]


@pytest.mark.parametrize(("kind", "form"), pairs(*OVERRIDABLE))
@pytest.mark.grid(3)
def test_weights_that_the_caller_gives_are_used(kind: str, form: str) -> None:
    source = known(kind).proto
    after = with_form(source, form).proto
    given = feeds(source, True, defaults=False)
    optimise = "dq" not in kind
    before = run(source, given, optimise=optimise)
    same(before, run(after, given, optimise=optimise))
    if len(given) > len(feeds(source, True)):
        assert not np.array_equal(before[0], expected(kind, True)[0])


# -- what is not rewritten stays -----------------------------------------------------------------------------------

UNKNOWN_FIELD = b"\xc2\x3e\x03abc"  # field 1000, as a later schema might have it


def odd() -> ModelProto:
    """Return a model with everything that graph libraries have been seen to lose (it is no model to run)."""
    branches = (
        f"then_branch = t () => (float[n,o,m] p) {{ [in_if] p = {CONV} (x, w2) }}, "
        f"else_branch = e () => (float[n,o,m] q) <{tensor(2, 2, 5, name='own')}> "
        f"{{ q0 = {CONV} (x, own) q = Relu (q0) }}"
    )
    loop = in_loop(f"lv = {CONV} (xi_in, w2, b1) la = Relu (lv)", "la", "_in")
    scan = (
        "scanned = Scan (xs) <num_scan_inputs = 1, body = s (float[1,2,12] xt) => (float[n,o,m] st) { st = Neg (xt) }>"
    )
    body = f"""
        [tail] y = Neg (r)
        [first] a = {CONV} (x, w1, b1)
        r = Relu (a)
        v = {CONV} (x, w2)
        [reads] t = custom.Thing (w2, x)
        [choice] chosen = If (c) <{branches}>
        {loop}
        [walk] {scan}
        [drop] d, dropped = Dropout (x)
        [item] item = SequenceAt (seq, trips)
        [open] opened = OptionalGetElement (opt)
        [call_one] one = local.f (x)
        [call_two] two = local.f (x)
        [same] same_out = Conv <auto_pad="SAME_UPPER", dilations=[2]> (x, w2)
        [both] both_out = Conv <auto_pad="SAME_LOWER", dilations=[2], pads=[0,0], kernel_shape=[5]> (x, w2)
        [point] point_out = Conv <dilations=[3]> (x, wp)
    """
    function = (
        f"{LOCAL} f (X) => (Y) {{ {CONSTANT} fv = {CONV} (X, k) [in_f] fr = Relu (fv) Y = custom.Thing (fr) }}"
    ).replace('"": 17', '"": 22, "custom": 1')
    values = [
        W.replace(" w ", " w1 "),
        B.replace(" b ", " b1 "),
        tensor(2, 2, 5, name="w2"),
        tensor(2, 2, 1, name="wp"),
        tensor(3, name="unused"),
        tensor(3, name="also_input"),
        scalar("float", "0.5", "w1_scale"),
        "float[n,o,m] a",
        "float[n,o,m] r",
        "float[n,o,m] v",
        "float[2,2,5] w1",
        "float[2,2,5] w2",
    ]
    proto = model(
        body,
        inputs="float[batch,2,12] x, bool c, int64 trips, float[3,1,2,12] xs, float[3] also_input",
        values=", ".join(values),
        ir=11,
        opset=22,
        functions=function,
    )
    graph = proto.graph
    proto.domain, proto.model_version, proto.doc_string = "ai.example", 7, "model"
    proto.producer_name, proto.producer_version = "tests", "1.0"
    proto.metadata_props.add(key="author", value="nobody")
    proto.configuration.add(name="c0", num_devices=2, device=["a", "b"])
    proto.training_info.add().algorithm.name = "empty"
    graph.doc_string = "graph"
    graph.metadata_props.add(key="graph", value="1")
    # nodes
    at = {node.name: node for node in graph.node if node.name}
    for node in (at["tail"], at["reads"], at["same"]):
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="origin", value=node.name)
        placed = node.device_configurations.add(configuration_id="c0", pipeline_stage=1)
        placed.sharding_spec.add(tensor_name="x", device=[0])
    at["reads"].attribute.append(helper.make_attribute("bytes", b"\xff\xfe\x80"))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, "n"])
    at["reads"].attribute.append(helper.make_attribute("type", kind))
    at["reads"].attribute.append(helper.make_attribute("types", [kind, kind]))
    at["drop"].output[:] = ["d", ""]
    # functions that differ in their overload
    proto.functions.add().CopyFrom(proto.functions[0])
    for held, overload in zip(proto.functions, ("one", "two"), strict=True):
        held.overload, held.doc_string = overload, "function"
        held.metadata_props.add(key="function", value=overload)
        held.value_info.add(name="fv", doc_string="of the Conv")
        held.value_info.add(name="fr", doc_string="of the Relu")
    at["call_one"].overload, at["call_two"].overload = "one", "two"
    # inputs and values
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2]))
    graph.input.append(helper.make_value_info("seq", sequence))
    graph.input.append(helper.make_value_info("opt", helper.make_optional_type_proto(sequence)))
    graph.input[0].doc_string, graph.input[0].type.denotation = "the signal", "AUDIO"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.input[0].metadata_props.add(key="input", value="1")
    for value in graph.value_info:
        value.doc_string, value.type.denotation = f"doc of {value.name}", "TENSOR"
        value.metadata_props.add(key="value", value=value.name)
    # tensors
    for name, data_type in (("i4", TensorProto.INT4), ("u4", TensorProto.UINT4), ("bf", TensorProto.BFLOAT16)):
        graph.initializer.append(helper.make_tensor(name, data_type, [3], [1, 2, 3]))
    graph.initializer.append(helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [3], [1.0, 2.0, 3.0]))
    graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"\xff"]))
    graph.initializer.append(helper.make_tensor("c64", TensorProto.COMPLEX64, [2], [1 + 2j, 3j]))
    graph.initializer.append(numpy_helper.from_array(np.array([0.0, -0.0, np.nan], np.float32), "raw"))
    named(proto, "unused").doc_string = "kept"
    named(proto, "unused").metadata_props.add(key="tensor", value="unused")
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "4096"), ("length", "16"), ("checksum", "00")):
        outside.external_data.add(key=key, value=text)
    graph.initializer.append(outside)
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("thin", TensorProto.FLOAT, [1], [2.0]),
            helper.make_tensor("thin_indices", TensorProto.INT64, [1], [3]),
            [5],
        )
    )
    for name in ("w1", "a", "x"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w1_scale")
    # what this version of the schema does not know
    for message in (at["tail"], graph.input[1], named(proto, "raw"), graph.value_info[0]):
        message.MergeFromString(UNKNOWN_FIELD)
    return ModelProto.FromString(proto.SerializeToString() + UNKNOWN_FIELD)


def absorbed(site: Site, made: Fragment) -> tuple[int, ...]:
    """Return the places of the nodes that a fragment takes in: what follows goes along where there is an exit."""
    return site.follow if made.exit and not made.partial else ()


def without_replaced(source: ModelProto, chosen: list[tuple[Site, Fragment]], after: ModelProto) -> ModelProto:
    """Return the source without the replaced nodes and what only they read or made."""
    kept = ModelProto()
    kept.CopyFrom(source)
    inputs = {value.name for value in source.graph.input}
    read = readers(after)
    touched: set[str] = set()
    places: list[tuple[Any, list[int]]] = []
    for path in {site.scope for site, _ in chosen}:
        container = resolve(kept, path)
        indices = [i for site, made in chosen if site.scope == path for i in (site.part.index, *absorbed(site, made))]
        for index in indices:
            touched.update((*container.node[index].input, *container.node[index].output))
        places.append((container, indices))
    made = {name for node in nodes(without_constants(after)) for name in node.output}
    gone = {name for name in touched if name and not read[name] and name not in inputs and name not in made}
    held = list(containers(kept))
    for container, indices in places:
        for index in sorted(indices, reverse=True):
            del container.node[index]
    for container in held:
        drop(container.node, lambda node: node.op_type == "Constant" and node.output[0] in gone)
        drop(container.value_info, lambda value: value.name in gone)
        if isinstance(container, GraphProto):
            drop(container.initializer, lambda tensor: tensor.name in gone)
            drop(container.quantization_annotation, lambda annotation: annotation.tensor_name in gone)
    return kept


def without_constants(proto: ModelProto) -> ModelProto:
    """Return the model without its Constant nodes."""
    kept = ModelProto()
    kept.CopyFrom(proto)
    for container in list(containers(kept)):
        drop(container.node, lambda node: node.op_type == "Constant")
    return kept


def without_added(rewritten: Rewritten) -> ModelProto:
    """Return the rewritten model without what was added."""
    kept = ModelProto()
    kept.CopyFrom(rewritten.proto)
    for container in list(containers(kept)):
        drop(container.node, lambda node: strategy_of(node) is not None)
        if isinstance(container, GraphProto):
            drop(container.initializer, lambda tensor: tensor.name in rewritten.added_tensors)
    return kept


def drop(repeated: Any, unwanted: Callable[[Any], bool]) -> None:
    """Delete the unwanted entries of a repeated field."""
    for place in reversed(range(len(repeated))):
        if unwanted(repeated[place]):
            del repeated[place]


def exact(message: Any) -> bytes:
    """Return the bytes of a message."""
    return bytes(message.SerializeToString(deterministic=True))


@pytest.mark.parametrize("form", FORMS)
def test_everything_else_stays_byte_for_byte(form: str) -> None:
    source = odd()
    before = exact(source)
    chosen = chosen_edits(find(source).sites, form, least=4)
    rewritten = rewrite(source, chosen, (), numpy_helper.to_array)
    assert exact(source) == before
    assert exact(rewritten.proto) != before
    kept = without_replaced(source, chosen, rewritten.proto)
    assert diff(kept, without_added(rewritten)) == []
    assert exact(kept) == exact(without_added(rewritten))


@pytest.mark.parametrize("form", FORMS)
def test_new_nodes_stand_where_the_old_ones_stood(form: str) -> None:
    source = odd()
    chosen = chosen_edits([site for site in find(source).sites if site.name == "first"], form)
    ((site, made),) = chosen
    after = rewrite(source, chosen, (), numpy_helper.to_array).proto
    new = [place for place, node in enumerate(after.graph.node) if strategy_of(node)]
    assert new == list(range(new[0], new[0] + len(new)))
    last = max(site.part.index, *absorbed(site, made), 0)
    assert [exact(node) for node in after.graph.node[new[-1] + 1 :]] == [
        exact(node) for node in source.graph.node[last + 1 :]
    ]


def test_no_edit_is_byte_identical() -> None:
    source = odd()
    rewritten = rewrite(source, [], [], numpy_helper.to_array)
    assert rewritten.proto.SerializeToString() == source.SerializeToString()
    assert (rewritten.added_tensors, rewritten.removed_tensors) == ((), ())
    assert rewritten.proto is not source


def test_normalisations_change_their_attributes_and_nothing_else() -> None:
    source = odd()
    before = exact(source)
    changes = find(source).normalisations
    after = rewrite(source, [], changes, numpy_helper.to_array).proto
    assert exact(source) == before
    place = {node.name: i for i, node in enumerate(source.graph.node)}
    same_, both, point = (f"graph.node[{place[name]}].attribute" for name in ("same", "both", "point"))
    changed = diff(source, after)
    assert [(change.path, change.before, change.after) for change in changed if change.path != f"{same_}[2]"] == [
        (f"{same_}[0].s", b"SAME_UPPER", b"NOTSET"),
        (f"{both}[0].s", b"SAME_LOWER", b"NOTSET"),
        (f"{both}[2].ints[0]", 0, 4),
        (f"{both}[2].ints[1]", 0, 4),
        (f"{point}[0].ints[0]", 3, 1),
    ]
    (added,) = [change.after for change in changed if change.path == f"{same_}[2]"]
    assert (added.name, list(added.ints)) == ("pads", [4, 4])


def test_normalisations_are_for_convs_that_stay() -> None:
    source = odd()
    found = find(source)
    chosen = [edit for edit in edits(found.sites, "slice_to_batch") if edit[0].name == "same"]
    after = rewrite(source, chosen, found.normalisations, numpy_helper.to_array).proto
    at = {node.name: node for node in after.graph.node if node.name}
    assert next(a.s for a in at["both"].attribute if a.name == "auto_pad") == b"NOTSET"
    assert next(list(a.ints) for a in at["point"].attribute if a.name == "dilations") == [1]
    assert [a.name for a in at["same"].attribute] == ["dilations", "group", "kernel_shape", "pads", "strides"]


def test_diff_tells_every_kind_of_change() -> None:
    before = odd()
    after = odd()
    assert diff(before, after) == []
    after.doc_string = ""
    after.ClearField("domain")
    after.graph.node[0].op_type = "Relu"
    after.graph.node.add(op_type="New")
    del after.metadata_props[:]
    named(after, "unused").float_data[0] = -0.0
    after.graph.input[1].MergeFromString(b"\xc2\x3e\x01z")
    paths = {change.path for change in diff(before, after)}
    count, place = len(before.graph.node), [t.name for t in before.graph.initializer].index("unused")
    assert paths == {
        "doc_string",
        "domain",
        "graph.node[0].op_type",
        f"graph.node[{count}]",
        "metadata_props[0]",
        f"graph.initializer[{place}].float_data[0]",
        "graph.input[1].?",
    }
    assert Change("graph.node[0].op_type", "Neg", "Relu") in diff(before, after)


# -- weights and what belongs to them ------------------------------------------------------------------------------

EDITING = there("im2col", "tap_prune", "zero_fill", "space_to_group", "tap_sum", "tap_zones")
"""Forms that edit the weights in every case here."""


def only(proto: ModelProto, form: str, *outputs: str) -> Rewritten:
    """Rewrite the sites that make `outputs`."""
    found = find(proto)
    chosen = [edit for edit in edits(found.sites, form) if edit[0].output in outputs]
    assert len(chosen) == len(outputs)
    return rewrite(proto, chosen, (), numpy_helper.to_array)


SHARED = {
    "other-conv": f"a = {CONV} (x, w) p = {CONV} (x, w) y = Add (a, p)",
    "other-node": f"a = {CONV} (x, w) p = MatMul (a, v) v = Reshape (w, shape) y = Identity (a)",
    "subgraph": f"a = {CONV} (x, w) y = If (c) <then_branch = t () => (float[n,o,m] p) {{ p = {CONV} (x, w) }}, "
    "else_branch = e () => (float[n,o,m] q) { q = Neg (a) }>",
    "deep-subgraph-output": f"a = {CONV} (x, w) y = If (c) <then_branch = t () => (float[n,o,m] p) {{ "
    "p = If (c) <then_branch = t2 () => (float[n,o,m] p2) { p2 = Identity (w) }, "
    "else_branch = e2 () => (float[n,o,m] q2) { q2 = Neg (a) }> }, "
    "else_branch = e () => (float[n,o,m] q) { q = Neg (a) }>",
    "call": f"a = {CONV} (x, w) y = local.f (a, w)",
    "bias-and-weight-of-others": f"a = {CONV} (x, w, b) p = {CONV} (x, w, b) y = Add (a, p)",
}


@pytest.mark.parametrize("form", EDITING)
@pytest.mark.parametrize("case", SHARED)
def test_shared_weights_stay(case: str, form: str) -> None:
    function = f"{LOCAL} f (X, w) => (Y) {{ Y = Add (X, w) }}"
    source = model(
        SHARED[case],
        inputs=f"{X}, bool c",
        values=f"{W}, {B}, int64[2] shape = {{5, 4}}",
        functions=function,
    )
    rewritten = only(source, form, "a")
    assert "w" not in rewritten.removed_tensors
    assert exact(named(rewritten.proto, "w")) == exact(named(source, "w"))
    kept = {exact(node) for node in nodes(rewritten.proto)}
    others = [node for node in source.graph.node if node.output[0] != "a"]
    assert all(exact(node) in kept for node in others)


@pytest.mark.parametrize("form", EDITING)
def test_weights_without_other_reader_go(form: str) -> None:
    rewritten = only(model(f"y = {CONV} (x, w)", values=f"{W}, {tensor(2, name='unused')}"), form, "y")
    assert rewritten.removed_tensors == ("w",)
    assert {held.name for held in rewritten.proto.graph.initializer} == {"unused", *rewritten.added_tensors}


@pytest.mark.parametrize("form", ["keep", "slice_to_batch", "space_to_batch"])
def test_weights_that_a_form_reads_as_they_are_stay(form: str) -> None:
    source = model("y = Conv <dilations=[2], pads=[2,2]> (x, w, b)", values=f"{tensor(2, 2, 3, name='w')}, {B}")
    rewritten = only(source, form, "y")
    assert rewritten.removed_tensors == ()
    assert exact(named(rewritten.proto, "w")) == exact(named(source, "w"))


def test_bias_that_no_core_reads_goes() -> None:
    source = model(f"y = {CONV[:-1]}, group=1> (x, w, b)")
    assert set(only(source, "space_to_group", "y").removed_tensors) == {"w", "b"}


@pytest.mark.parametrize("form", EDITING)
@pytest.mark.parametrize("ir", [3, 8])
def test_weights_that_are_graph_inputs_stay(form: str, ir: int) -> None:
    source = as_inputs(model(f"y = {CONV} (x, w)", values=W, ir=ir, opset=10))
    rewritten = only(source, form, "y")
    assert rewritten.removed_tensors == ()
    assert exact(named(rewritten.proto, "w")) == exact(named(source, "w"))
    assert [exact(value) for value in rewritten.proto.graph.input] == [exact(value) for value in source.graph.input]


@pytest.mark.parametrize("form", EDITING)
def test_weights_that_are_graph_outputs_stay(form: str) -> None:
    source = model(f"y = {CONV} (x, w)", values=W, outputs="float[n,o,m] y, float[2,2,5] w")
    assert only(source, form, "y").removed_tensors == ()


@pytest.mark.parametrize("form", ["im2col", "zero_fill", "space_to_group"])
def test_equal_edits_of_one_weight_are_made_once(form: str) -> None:
    source = model(f"a = {CONV} (x, w, b) p = {CONV} (a, w, b) y = Relu (p)")
    after = only(source, form, "a", "p").proto
    (first, second) = [node for node in after.graph.node if node.op_type == "Conv"]
    assert first.input[1:] == second.input[1:]
    assert "w" not in {held.name for held in after.graph.initializer}


def test_different_edits_of_one_weight_are_made_apart() -> None:
    conv = "Conv <dilations=[3], pads=[6,6]>"
    source = model(f"a = {CONV} (x, w) p = {conv} (a, w) y = Relu (p)", values=W)
    after = only(source, "zero_fill", "a", "p").proto
    (first, second) = [node for node in after.graph.node if node.op_type == "Conv"]
    assert first.input[1] != second.input[1]


@pytest.mark.parametrize("form", EDITING)
def test_outer_weights_that_only_a_subgraph_read_go(form: str) -> None:
    source = model(in_if(f"a = {CONV} (x, w)", "a"), inputs=f"{X}, bool c", values=W)
    rewritten = only(source, form, "a")
    assert rewritten.removed_tensors == ("w",)
    assert "w" not in {held.name for held in rewritten.proto.graph.initializer}


@pytest.mark.parametrize("place", ["same-scope", "outer-scope", "function"])
def test_constant_node_without_reader_goes(place: str) -> None:
    if place == "function":
        source = known("function").proto
    elif place == "outer-scope":
        source = known("if-outer-constant").proto
    else:
        source = known("constant").proto
    after = with_form(source, "zero_fill").proto
    assert not any("k" in node.output for node in nodes(after))


def test_constant_node_with_another_reader_stays() -> None:
    source = model(f"{CONSTANT} y = {CONV} (x, k) v = Relu (k)", values="")
    after = only(source, "zero_fill", "y").proto
    assert exact(after.graph.node[0]) == exact(source.graph.node[0])


def test_descriptions_of_removed_tensors_go() -> None:
    source = odd()
    after = only(source, "zero_fill", "a").proto
    assert {value.name for value in after.graph.value_info} == {"a", "r", "v", "w2"}
    assert [note.tensor_name for note in after.graph.quantization_annotation] == ["a", "x"]
    after = only(source, "space_to_batch", "a").proto  # takes the Relu in: its own output goes, r is the result
    assert "a" not in {value.name for value in after.graph.value_info}
    assert "r" in {value.name for value in after.graph.value_info}
    assert "a" not in [note.tensor_name for note in after.graph.quantization_annotation]


@pytest.mark.parametrize("name", ["w", "b"])
def test_weight_goes_though_an_unrelated_scope_has_its_name(name: str) -> None:
    source = model(
        f"a = {CONV} (x, w, b) y = local.f (a)",
        functions=f"{LOCAL} f (X) => (Y) {{ {name} = Neg (X) Y = Neg ({name}) }}",
    )
    assert name in only(source, "space_to_group", "a").removed_tensors


def dq_nodes(proto: ModelProto) -> list[str]:
    """Return the outputs of the DequantizeLinear nodes that were there before."""
    return [
        node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and "/" not in node.output[0]
    ]


@pytest.mark.parametrize("form", ["im2col", "zero_fill", "space_to_group"])
def test_dequantize_linear_without_reader_goes_with_its_tensors(form: str) -> None:
    source = model(
        f"d = DequantizeLinear (q, s, z) y = {CONV} (x, d)",
        values=Q.replace("float s ", "float[2] other = {1,2}, float s "),
    )
    rewritten = only(source, form, "y")
    assert dq_nodes(rewritten.proto) == []
    assert rewritten.removed_tensors == ("q",)  # the new DequantizeLinear reads the old scale and zero point
    source = model(f"d = DequantizeLinear <axis=0> (q, ss, zz) y = {CONV} (x, d)", values=Q)
    gone = ("q", "ss", "zz") if form == "space_to_group" else ("q",)
    assert only(source, form, "y").removed_tensors == gone


@pytest.mark.parametrize("form", ["im2col", "zero_fill", "space_to_group"])
def test_shared_dequantize_linear_stays(form: str) -> None:
    source = model(f"d = DequantizeLinear (q, s, z) y = {CONV} (x, d) v = Relu (d)", values=Q)
    rewritten = only(source, form, "y")
    assert dq_nodes(rewritten.proto) == ["d"]
    assert rewritten.removed_tensors == ()


@pytest.mark.parametrize(("more", "left"), [("", ["y"]), ("v = Relu (xd)", ["xd", "y"])], ids=["alone", "shared"])
def test_dequantize_linear_of_the_input(more: str, left: list[str]) -> None:
    body = f"{ENTRY} v0 = {CONV} (xd, w) o = QuantizeLinear (v0, s, u) y = DequantizeLinear (o, s, u) {more}"
    source = model(body, values=f"{Q}, {W}")
    after = only(source, "space_to_batch", "v0").proto
    assert dq_nodes(after) == left
    assert any(node.output[0] == "xq" for node in after.graph.node)


def test_layout_operators_of_a_quantised_site_stand_on_the_integers() -> None:
    after = with_form(known("qdq").proto, "space_to_batch").proto
    maker = {output: node for node in after.graph.node for output in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in after.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    (conv,) = [node for node in after.graph.node if node.op_type == "Conv"]
    assert [maker[name].op_type for name in conv.input] == ["DequantizeLinear"] * 3
    (relu,) = users[conv.output[0]]
    (quantize,) = users[relu.output[0]]
    assert (relu.op_type, quantize.op_type) == ("Relu", "QuantizeLinear")
    assert maker["o"].op_type not in ("QuantizeLinear", "Conv")
    (pad,) = [node for node in after.graph.node if node.op_type == "Pad"] or [None]
    assert pad is None or pad.input[2] == "u"


def test_only_edited_weights_are_read() -> None:
    source = model(f"a = {CONV} (x, w, b) p = {CONV} (a, w, b) y = Relu (p)")
    read: list[str] = []

    def reader(held: TensorProto) -> Array:
        read.append(held.name)
        return numpy_helper.to_array(held)

    found = find(source)
    rewrite(source, edits(found.sites, "keep"), (), reader)
    assert read == []
    rewrite(source, edits(found.sites, "zero_fill"), (), reader)
    assert read == ["w"]


def test_external_weights_come_from_the_reader_and_stay_inside() -> None:
    inside = model(f"y = {CONV} (x, w)", values=W)
    weights = numpy_helper.to_array(named(inside, "w"))
    source = ModelProto()
    source.CopyFrom(inside)
    held = named(source, "w")
    held.ClearField("float_data")
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value="nowhere.bin")
    found = find(source)
    after = rewrite(source, edits(found.sites, "zero_fill"), (), lambda _: weights).proto
    assert exact(after) == exact(with_form(inside, "zero_fill").proto)


# -- IR, functions, metadata ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), pairs("ir3", "ir3-opset-10", "if-ir3"))
def test_before_ir_4_new_constants_are_nodes(kind: str, form: str) -> None:
    source = known(kind).proto
    rewritten = with_form(source, form)
    assert rewritten.added_tensors == ()
    assert [exact(held) for held in rewritten.proto.graph.initializer] == [exact(h) for h in source.graph.initializer]
    assert all(not c.initializer for c in list(containers(rewritten.proto))[1:])


@pytest.mark.parametrize(("kind", "form"), pairs("function", "function-inputs", "function-if", "function-ir10"))
def test_functions_and_graphs_in_them_get_no_initializers(kind: str, form: str) -> None:
    rewritten = with_form(known(kind).proto, form)
    assert rewritten.added_tensors == ()
    source = known(kind).proto
    assert exact(rewritten.proto.graph) == exact(source.graph)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ir", [9, 10, 11])
def test_new_nodes_carry_the_strategy_where_the_ir_has_room(form: str, ir: int) -> None:
    source = model(f"[c] a = {CONV} (x, w, b) [r] v = Relu (a) y = Neg (v)", ir=ir, opset=19)
    old = {exact(node) for node in source.graph.node}
    new = [node for node in with_form(source, form).proto.graph.node if exact(node) not in old]
    assert new
    assert {strategy_of(node) for node in new} == {parse(form)[0] if ir >= 10 else None}


def test_metadata_and_doc_string_of_followers_stay() -> None:
    source = model(f"[c] a = {CONV} (x, w, b) [r] y = Relu (a)", ir=10, opset=21)
    for node in source.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="origin", value=node.name)
    after = with_form(source, "space_to_batch").proto
    (relu,) = [node for node in after.graph.node if node.op_type == "Relu"]
    (conv,) = [node for node in after.graph.node if node.op_type == "Conv"]
    assert (relu.doc_string, conv.doc_string) == ("doc of r", "doc of c")
    assert [(e.key, e.value) for e in relu.metadata_props] == [("origin", "r"), (STRATEGY_KEY, "space_to_batch")]


def test_metadata_of_the_conv_stays() -> None:
    source = model(f"[c] y = {CONV} (x, w, b)", ir=10, opset=21)
    source.graph.node[0].metadata_props.add(key="origin", value="c")
    (conv,) = [node for node in with_form(source, "space_to_batch").proto.graph.node if node.op_type == "Conv"]
    assert ("origin", "c") in [(entry.key, entry.value) for entry in conv.metadata_props]


def test_a_rewritten_model_can_be_rewritten_again() -> None:
    source = model(f"[c] a = {CONV} (x, w, b) [r] y = Relu (a)", ir=10, opset=21)
    once = with_form(source, "space_to_batch:max_dilation=2").proto
    twice = with_form(once, "slice_to_batch").proto
    onnx.checker.check_model(twice)
    assert find(twice).sites == ()
    assert max(Counter(node.name for node in nodes(twice)).values()) == 1
    same(run(source, feeds(source, True)), run(twice, feeds(source, True)))


def test_strategy_is_written_once_into_a_node_rewritten_twice() -> None:
    source = model(f"[c] a = {CONV} (x, w, b) [r] y = Relu (a)", ir=10, opset=21)
    twice = with_form(with_form(source, "space_to_batch:max_dilation=2").proto, "slice_to_batch").proto
    for node in twice.graph.node:
        assert Counter(entry.key for entry in node.metadata_props)[STRATEGY_KEY] <= 1


def test_mark_writes_one_entry() -> None:
    source = odd()
    before = list(source.metadata_props)
    mark(source, "first")
    mark(source, "second")
    assert [(entry.key, entry.value) for entry in source.metadata_props] == [
        *((entry.key, entry.value) for entry in before),
        (VERIFICATION_KEY, "second"),
    ]


# -- names ---------------------------------------------------------------------------------------------------------

TWO_SCOPES = (
    f"[c] a = {CONV} (x, w, b) [r] v = Relu (a) "
    + in_loop(f"[c] la = {CONV} (xi_in, w, b) [lr] lv = Relu (la)", "lv", "_in")
    + " y = Neg (v)"
)


def two_scopes() -> ModelProto:
    """Return a model with a site in the main graph and one in a Loop body, both nodes called `c`."""
    source = model(TWO_SCOPES, inputs=f"{X}, int64 trips", outputs="float[n,o,m] y, float[t,n,o,m] y_in")
    source.functions.add().CopyFrom(parser.parse_function(f"{LOCAL} helper (X) => (Y) {{ Y = Neg (X) }}"))
    source.opset_import.append(helper.make_opsetid("local", 1))
    return source


@functools.cache
def chosen_names(form: str) -> tuple[str, ...]:
    """Return all names that a rewrite of `two_scopes` makes: of values, nodes and initializers."""
    source = two_scopes()
    after = with_some(source, form)
    return tuple(sorted(all_names(after) - all_names(source)))


def with_some(source: ModelProto, form: str) -> ModelProto:
    """Rewrite the sites that the form applies to."""
    return rewrite(source, chosen_edits(find(source).sites, form, least=1), (), numpy_helper.to_array).proto


def all_names(proto: ModelProto) -> set[str]:
    """Return the names of all nodes and values."""
    return {node.name for node in nodes(proto)} | set(values(proto)) - {""}


def take_initializers(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.graph.initializer.extend(helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in names)


def take_inputs(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names)


def take_values(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.graph.node.extend(helper.make_node("Identity", ["x"], [name]) for name in names)


def take_node_names(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.graph.node.extend(helper.make_node("Identity", ["x"], [f"taken{i}"], name) for i, name in enumerate(names))


def body_of(proto: ModelProto) -> GraphProto:
    return next(a.g for node in proto.graph.node for a in node.attribute if a.name == "body")


def take_loop_values(proto: ModelProto, names: tuple[str, ...]) -> None:
    body_of(proto).node.extend(helper.make_node("Identity", ["x"], [name]) for name in names)


def take_loop_node_names(proto: ModelProto, names: tuple[str, ...]) -> None:
    body = body_of(proto)
    body.node.extend(helper.make_node("Identity", ["x"], [f"taken{i}"], name) for i, name in enumerate(names))


def take_loop_initializers(proto: ModelProto, names: tuple[str, ...]) -> None:
    body_of(proto).initializer.extend(helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in names)


def take_function_values(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.functions[0].node.extend(helper.make_node("Identity", ["X"], [name], name) for name in names)


def take_sparse(proto: ModelProto, names: tuple[str, ...]) -> None:
    for name in names:
        held = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("", TensorProto.INT64, [1], [0])
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(held, indices, [2]))


def take_value_infos(proto: ModelProto, names: tuple[str, ...]) -> None:
    proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names)


def take_annotations(proto: ModelProto, names: tuple[str, ...]) -> None:
    for name in names:
        annotation = proto.graph.quantization_annotation.add(tensor_name="x")
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=name)


TAKEN = {
    "initializers": take_initializers,
    "inputs": take_inputs,
    "outer-values": take_values,
    "outer-node-names": take_node_names,
    "loop-values": take_loop_values,
    "loop-node-names": take_loop_node_names,
    "loop-initializers": take_loop_initializers,
    "function-values": take_function_values,
    "sparse-initializers": take_sparse,
    "value-infos": take_value_infos,
    "annotations": take_annotations,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", TAKEN)
@pytest.mark.grid(4)
def test_names_in_use_are_not_taken(where: str, form: str) -> None:
    source = two_scopes()
    names = chosen_names(form)
    assert names or form == "keep"
    TAKEN[where](source, names)
    after = with_some(source, form)
    old = all_names(source) | set(names)
    fresh = values(after)
    assert not {name for name in fresh if name in names and values(source)[name] != fresh[name]}
    made = Counter(node.name for node in nodes(after) if node.name not in old)
    made.update(name for name in fresh.elements() if name not in old)
    assert all(count == 1 for count in made.values()), made
    onnx.checker.check_model(after)
    if where not in ("inputs", "sparse-initializers"):
        same(run(source, feeds(source, True)), run(after, feeds(source, True)))


@pytest.mark.parametrize("form", FORMS)
def test_sites_with_equal_node_names_share_no_new_name(form: str) -> None:
    source = two_scopes()
    after = with_some(source, form)
    labels = Counter(node.name for node in nodes(after) if node.name)
    assert {name for name, count in labels.items() if count > 1} <= {"c"}
    assert all(count == 1 for count in values(after).values())


@pytest.mark.parametrize("form", FORMS)
def test_names_start_with_the_site(form: str) -> None:
    source = model(f"[c] a = {CONV} (x, w, b) r = Relu (a) v = {CONV} (x, w, b) y = Add (r, v)")
    added = all_names(with_form(source, form).proto) - all_names(source)
    name = parse(form)[0]
    assert all(text.startswith((f"c/{name}/", f"v/{name}/")) for text in added)
    assert form == "keep" or {text.split("/")[0] for text in added} == {"c", "v"}


@pytest.mark.parametrize("form", FORMS)
def test_output_keeps_its_name_and_the_core_its_nodes(form: str) -> None:
    source = model(f"[c] a = {CONV} (x, w, b) [r] y = Relu (a)")
    after = with_form(source, form).proto
    assert sum("y" in node.output for node in after.graph.node) == 1
    assert [node.op_type for node in after.graph.node if node.name == "c"] == ["Conv"]


def test_names_are_stable() -> None:
    first, second = (exact(with_some(two_scopes(), "slice_to_batch")) for _ in range(2))
    assert first == second


def test_names_counts_up() -> None:
    names = Names(model("[n] y = Neg (x)", values=""))
    assert [names.make(wanted) for wanted in ("x", "x", "n", "free", "free", "")] == [
        "x_2",
        "x_3",
        "n_2",
        "free",
        "free_2",
        "_2",
    ]


# -- what follows the Conv -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), pairs("relu", "clip", "2d", "3d", "unknown-extents", "dead", "scan", "loop"))
def test_activation_stays_right_after_the_core(kind: str, form: str) -> None:
    source = known(kind)
    (site,) = source.found.sites
    made = fragment(site, form)
    assert made is not None
    (old,) = [resolve(source.proto, site.scope).node[index] for index in site.follow]
    container = resolve(with_form(source.proto, form).proto, site.scope)
    new = [node for node in container.node if node.op_type == old.op_type]
    users = Counter(name for node in container.node for name in node.input)
    convs = [node for node in container.node if node.op_type == "Conv"]
    if made.exit and not made.partial:
        # one copy behind each part of the core, which has no other reader
        assert len(new) == len(made.core)
        assert {node.output[0] for node in convs} <= {node.input[0] for node in new}
        assert all(users[node.input[0]] == 1 for node in new)
        assert all([*node.input[1:]] == [*old.input[1:]] for node in new)
        assert all(list(node.attribute) == list(old.attribute) for node in new)
    else:
        assert [exact(node) for node in new] == [exact(old)]
        assert made.partial or [node.output[0] for node in convs] in ([old.input[0]], [])


# -- size ----------------------------------------------------------------------------------------------------------


def test_a_long_model_stays_sorted() -> None:
    count, rest = 200, 9
    made: list[NodeProto] = []
    last = "x"
    for number in range(count):
        made.append(
            helper.make_node("Conv", [last, "w", "b"], [f"a{number}"], f"conv{number}", dilations=[6], pads=[12, 12])
        )
        last = f"a{number}"
        for place in range(rest):
            op = ("Relu", "Neg", "Sigmoid")[(number + place) % 3]
            made.append(helper.make_node(op, [last], [f"v{number}_{place}"]))
            last = f"v{number}_{place}"
    source = model(f"y = Neg ({last})")
    source.graph.node.extend(made)
    source.graph.node.append(source.graph.node[0])
    del source.graph.node[0]
    found = find(source)
    assert (len(found.sites), len(source.graph.node)) == (count, count * (rest + 1) + 1)
    forms = [form for form in FORMS if edits(found.sites[:1], form)]
    chosen = [edit for i, site in enumerate(found.sites) for edit in chosen_edits([site], forms[i % len(forms)])]
    after = rewrite(source, chosen, found.normalisations, numpy_helper.to_array).proto
    onnx.checker.check_model(after, full_check=True)
    assert max(values(after).values()) == 1


# -- training ------------------------------------------------------------------------------------------------------


def trained(source: ModelProto, reads: str, updates: str = "", made: str = "new") -> ModelProto:
    """Return the model with a training step that reads one tensor of it, makes one and updates one."""
    step = source.training_info.add()
    step.algorithm.name = "step"
    step.algorithm.node.add(op_type="Identity", input=[reads], output=[made])
    if updates:
        step.update_binding.add(key=updates, value=made)
    return source


@pytest.mark.parametrize("form", EDITING)
def test_weights_that_training_reads_stay(form: str) -> None:
    rewritten = only(trained(model(f"y = {CONV} (x, w)", values=W), "w"), form, "y")
    assert rewritten.removed_tensors == ()
    assert "w" in {held.name for held in rewritten.proto.graph.initializer}
    onnx.checker.check_model(rewritten.proto)


def test_weights_that_training_updates_are_edited_at_run_time() -> None:
    source = trained(model(f"y = {CONV} (x, w)", values=W), "w", updates="w")
    (site,) = find(source).sites
    assert site.part.weight.kind == "computed"
    rewritten = only(source, "zero_fill", "y")
    assert (rewritten.removed_tensors, "w" in readers(rewritten.proto)) == ((), True)


def test_tensors_that_training_reads_are_still_made() -> None:
    body = f"v = {CONV} (x, w) y = Relu (v)"
    assert find(model(body, values=W)).sites[0].follow == (1,)
    source = trained(model(body, values=W), "v")
    assert find(source).sites[0].follow == ()
    after = only(source, "space_to_batch", "v").proto
    assert "v" in {name for node in after.graph.node for name in node.output}


def test_names_of_training_are_not_taken() -> None:
    def source() -> ModelProto:
        return model(f"y = {CONV} (x, w)", values=W)

    fresh = {name for node in only(source(), "space_to_batch", "y").proto.graph.node for name in node.output} - {"y"}
    for name in fresh:
        after = only(trained(source(), "x", made=name), "space_to_batch", "y").proto
        assert name not in {output for node in after.graph.node for output in node.output}
