"""find: which dilated Convs it sees and where, what it knows of their operands, and its reasons for the others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from dilrewrite.errors import UsageError
from dilrewrite.model.light import without_weights
from dilrewrite.model.walk import ScopePath, resolve
from dilrewrite.sites import Found, Normalisation, Operand, Site
from dilrewrite.sites.find import find
from dilrewrite.sites.known import UNARY
from dilrewrite.sites.scopes import module_of
from tests import models_for_tests as tiny

CONV = "Conv <dilations=[2], pads=[2,2]>"


def tensor(*dims: int, kind: str = "float") -> str:
    """Return a tensor literal with small values."""
    count = 1
    for dim in dims:
        count *= dim
    return f"{kind}[{','.join(map(str, dims))}] {{{','.join(str(i % 5 + 1) for i in range(count))}}}"


def initial(name: str, *dims: int, kind: str = "float") -> str:
    """Return an initializer named `name`."""
    return tensor(*dims, kind=kind).replace("]", f"] {name} =", 1) if dims else f"{kind} {name} = {{1}}"


W = initial("w", 2, 2, 3)
X = "float[1,2,12] x"


def model(
    body: str,
    *,
    inputs: str = X,
    outputs: str = "float[1,2,m] y",
    values: str = W,
    ir: int = 8,
    opset: int = 17,
    functions: str = "",
) -> onnx.ModelProto:
    """Return the model whose main graph is `body`, in ONNX's text form."""
    held = f"<{values}>" if values else ""
    imports = f'"": {opset}, "local": 1, "custom": 1'
    return parser.parse_model(
        f"<ir_version: {ir}, opset_import: [{imports}]>\ng ({inputs}) => ({outputs}) {held} {{ {body} }}\n{functions}"
    )


def one(found: Found) -> Site:
    """Return the only site; nothing is skipped."""
    assert found.skipped == ()
    (site,) = found.sites
    return site


def reason(found: Found) -> str:
    """Return why the only dilated node is skipped."""
    assert found.sites == ()
    (skipped,) = found.skipped
    return skipped.reason


# -- where ---------------------------------------------------------------------------------------------------------


def inside(kind: str, body: str, result: str, *, level: int) -> tuple[str, str]:
    """Return (node text, its output) of an If, Loop or Scan named `kind_level` around `body`, which makes `result`."""
    out = f"y_{kind}_{level}"
    name = f"[{kind}_{level}]"
    value = f"float[1,2,m] {result}"
    if kind == "if":
        other = f"e_{level} () => (float[1,2,n] alt_{level}) {{ alt_{level} = Identity (x) }}"
        text = f"{name} {out} = If (c) <then_branch = t_{level} () => ({value}) {{ {body} }}, else_branch = {other}>"
    elif kind == "loop":
        head = f"(int64 i_{level}, bool ci_{level}) => (bool co_{level}, {value})"
        keep = f"co_{level} = Identity (ci_{level})"
        text = f"{name} {out} = Loop (trips, c) <body = b_{level} {head} {{ {keep} {body} }}>"
    else:
        head = f"(float[1,2,12] xs_{level}) => ({value})"
        text = f"{name} {out} = Scan (xs) <num_scan_inputs = 1, body = s_{level} {head} {{ {body} }}>"
    return text, out


ATTRIBUTE = {"if": "then_branch", "loop": "body", "scan": "body"}
NESTS = [(a,) for a in ATTRIBUTE] + [(a, b) for a in ATTRIBUTE for b in ATTRIBUTE]


@pytest.mark.parametrize("nest", NESTS, ids="-".join)
def test_conv_in_a_subgraph(nest: tuple[str, ...]) -> None:
    text, out = f"[deep] a = {CONV} (x, w)", "a"
    for level, kind in reversed(list(enumerate(nest))):
        text, out = inside(kind, text, out, level=level)
    source = model(
        text, inputs=f"{X}, bool c, int64 trips, float[3,1,2,12] xs", outputs=f"float[?,?,?] {out}".replace("?", "p")
    )
    site = one(find(source))
    where = "main" + "".join(f"/{kind}_{level}.{ATTRIBUTE[kind]}" for level, kind in enumerate(nest))
    assert (site.where, site.name, site.output, site.key) == (where, "deep", "a", f"{where}/a")
    assert len(site.scope.steps) == len(nest)
    assert resolve(source, site.scope).node[site.part.index].name == "deep"
    assert site.geometry.extents == (12,)
    assert site.part.weight == Operand(
        kind="initializer", name="w", shape=(2, 2, 3), element="float32", scope=ScopePath(), index=None
    )


def test_main_graph_then_subgraphs_then_functions() -> None:
    inner, _ = inside("if", f"[in_if] a = {CONV} (x, w)", "a", level=0)
    body = f"{inner} [first] p = {CONV} (x, w) [call] q = local.f (x, w) y = Sum (y_if_0, p, q)"
    conv = f"[in_f] Y = {CONV[:-1]}, kernel_shape=[3]> (X, W)"
    function = f'<domain: "local", opset_import: ["": 13]> f (X, W) => (Y) {{ {conv} }}'
    found = find(model(body, inputs=f"{X}, bool c", functions=function))
    assert [site.key for site in found.sites] == ["main/p", "main/if_0.then_branch/a", "function local:f/Y"]
    assert [site.opset for site in found.sites] == [17, 17, 13]


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_both_branches_of_an_if(branch: str) -> None:
    text = (
        f"y = If (c) <then_branch = t () => (float[1,2,12] a) {{ a = {CONV} (x, w) }}, "
        f"else_branch = e () => (float[1,2,12] b) {{ b = {CONV} (x, w) }}>"
    )
    found = find(model(text, inputs=f"{X}, bool c"))
    assert [site.where for site in found.sites] == ["main/If#0.then_branch", "main/If#0.else_branch"]
    site = next(site for site in found.sites if site.where.endswith(branch))
    assert site.output == branch[0].replace("t", "a").replace("e", "b")


FUNCTION = '<domain: "local", opset_import: ["": {opset}]> f {attributes} (X{more}) => (Y) {{ {body} }}'


def with_function(body: str, *, call: str = "local.f (x)", attributes: str = "", more: str = "") -> onnx.ModelProto:
    """Return a model that calls the function `local.f` with the given body."""
    text = FUNCTION.format(opset=18, body=body, attributes=attributes, more=more)
    return model(f"y = {call}", functions=text)


def test_conv_in_a_function_has_its_own_opset_and_no_shapes() -> None:
    source = with_function(f"k = Constant <value = {tensor(2, 2, 3)}> () Y = {CONV} (X, k)")
    site = one(find(source))
    assert (site.where, site.opset, site.scope) == ("function local:f", 18, ScopePath(0))
    assert (site.part.weight.kind, site.part.weight.scope, site.part.weight.index) == ("constant", ScopePath(0), 0)
    assert site.geometry.extents == (None,)
    assert site.geometry.in_channels == 2


def test_conv_in_a_subgraph_of_a_function() -> None:
    text, _ = inside("if", f"a = {CONV} (X, k)", "a", level=0)
    text = text.replace("Identity (x)", "Identity (X)").replace("y_if_0 =", "Y =")
    source = with_function(f"k = Constant <value = {tensor(2, 2, 3)}> () c = Constant <value = bool {{1}}> () {text}")
    site = one(find(source))
    assert site.scope == ScopePath(0, ((2, "then_branch", 0),))
    assert (site.part.weight.kind, site.part.weight.scope) == ("constant", ScopePath(0))


@pytest.mark.parametrize("attribute", ["dilations", "pads", "strides", "group"])
def test_attribute_reference_in_a_function_is_a_reason(attribute: str) -> None:
    kind = "int" if attribute == "group" else "ints"
    fixed = "" if attribute == "dilations" else ", dilations=[2]"
    conv = f"Y = Conv <{attribute}: {kind} = @given{fixed}, kernel_shape=[3]> (X, W)"
    value = "1" if attribute == "group" else "[1,1]" if attribute == "pads" else "[1]"
    source = with_function(conv, call=f"local.f <given={value}> (x, w)", attributes="<given>", more=", W")
    told = reason(find(source))
    assert told.startswith(f"its {attribute} is an attribute of the function (given); inline it first")


def test_undilated_conv_with_attribute_reference_is_no_finding() -> None:
    conv = "Y = Conv <pads: ints = @given> (X, W)"
    assert find(with_function(conv, call="local.f <given=[1,1]> (x, w)", attributes="<given>", more=", W")) == Found()


def test_function_weights_without_shape_or_kernel_are_a_reason() -> None:
    source = with_function(f"Y = {CONV} (X, W)", call="local.f (x, w)", more=", W")
    told = reason(find(source))
    assert told.startswith("its weights are computed and have no known shape, and it has no kernel_shape; inline it")


def test_function_overloads_are_told_apart() -> None:
    source = with_function(f"k = Constant <value = {tensor(2, 2, 3)}> () Y = {CONV} (X, k)")
    source.functions.add().CopyFrom(source.functions[0])
    source.functions[1].overload = "other"
    assert [site.key for site in find(source).sites] == ["function local:f/Y", "function local:f[other]/Y"]


# -- operands ------------------------------------------------------------------------------------------------------


def test_weight_is_an_initializer() -> None:
    site = one(find(model(f"y = {CONV} (x, w)")))
    assert (site.part.weight.kind, site.part.weight.index, site.part.weight.is_constant) == ("initializer", None, True)


def test_weight_is_a_constant_node_of_the_same_scope() -> None:
    site = one(find(model(f"k = Constant <value = {tensor(2, 2, 3)}> () y = {CONV} (x, k)")))
    assert (site.part.weight.kind, site.part.weight.name, site.part.weight.index) == ("constant", "k", 0)
    assert (site.part.weight.shape, site.part.weight.element) == ((2, 2, 3), "float32")


def test_weight_is_a_constant_node_of_an_outer_scope() -> None:
    text, _ = inside("if", f"a = {CONV} (x, k)", "a", level=0)
    body = f"k = Constant <value = {tensor(2, 2, 3)}> () {text} y = Identity (y_if_0)"
    site = one(find(model(body, inputs=f"{X}, bool c")))
    assert (site.part.weight.kind, site.part.weight.scope, site.part.weight.index) == ("constant", ScopePath(), 0)
    assert len(site.scope.steps) == 1


@pytest.mark.parametrize(("ir", "kind"), [(3, "initializer"), (4, "computed"), (8, "computed")])
def test_initializer_that_is_also_an_input(ir: int, kind: str) -> None:
    source = model(f"y = {CONV} (x, w)", inputs=f"{X}, float[2,2,3] w", values="", ir=ir, opset=9)
    source.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2, 2, 3], [1.0] * 12))
    site = one(find(source))
    assert (site.part.weight.kind, site.part.weight.shape) == (kind, (2, 2, 3))


def test_computed_weight_with_inferred_shape() -> None:
    site = one(find(model(f"v = Relu (w) y = {CONV} (x, v)")))
    assert (site.part.weight.kind, site.part.weight.shape, site.part.weight.index) == ("computed", (2, 2, 3), 0)
    assert site.geometry.out_channels == 2


@pytest.mark.parametrize("shape", ["[]", "[o,i,n]"])
def test_computed_weight_of_unknown_shape_with_kernel_shape(shape: str) -> None:
    site = one(find(model(f"y = {CONV[:-1]}, kernel_shape=[3]> (x, v)", inputs=f"{X}, float{shape} v")))
    assert (site.part.weight.kind, site.part.weight.shape) == ("computed", None)
    assert (site.geometry.kernel, site.geometry.out_channels) == ((3,), None)


def test_computed_weight_of_unknown_kernel_is_a_reason() -> None:
    found = find(model(f"y = {CONV} (x, v)", inputs=f"{X}, float[o,i,n] v"))
    assert reason(found) == "its weights are computed and have no known shape, and it has no kernel_shape"


def test_weight_from_nowhere_is_a_reason() -> None:
    assert "no known shape" in reason(find(model(f"y = {CONV} (x, missing)")))


def test_weight_is_a_sparse_initializer() -> None:
    source = model(f"y = {CONV} (x, s)", values="")
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("s_indices", TensorProto.INT64, [2], [0, 7])
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2, 3]))
    site = one(find(source))
    assert (site.part.weight.kind, site.part.weight.shape, site.geometry.kernel) == ("computed", (2, 2, 3), (3,))


@pytest.mark.parametrize(
    ("given", "bias"),
    [("x, w", None), ("x, w, ", None), ("x, w, b", "initializer"), ("x, w, k", "constant"), ("x, w, r", "computed")],
    ids=["none", "empty-name", "initializer", "constant", "computed"],
)
def test_bias(given: str, bias: str | None) -> None:
    body = f"k = Constant <value = {tensor(2)}> () r = Relu (b) y = {CONV} ({given})"
    source = model(body, values=f"{W}, {initial('b', 2)}")
    if given.endswith(", "):
        source.graph.node[-1].input[:] = ["x", "w", ""]
    site = one(find(source))
    assert (site.part.bias.kind if site.part.bias else None) == bias
    assert site.geometry.bias == (bias is not None)


Q_VALUES = {
    "tensor": (initial("s"), initial("z", kind="int8"), ""),
    "one-element": (initial("s", 1), initial("z", 1, kind="int8"), ""),
    "axis0": (initial("s", 2), initial("z", 2, kind="int8"), "<axis=0>"),
    "axis1": (initial("s", 2), initial("z", 2, kind="int8"), "<axis=1>"),
    "axis-default": (initial("s", 2), initial("z", 2, kind="int8"), ""),
}


def dequantized(form: str, *, zero: bool = True, opset: int = 17) -> onnx.ModelProto:
    """Return a Conv whose weight stands behind a DequantizeLinear."""
    scale, zero_point, axis = Q_VALUES[form]
    given = "q, s, z" if zero else "q, s"
    values = f"{initial('q', 2, 2, 3, kind='int8')}, {scale}, {zero_point}"
    return model(f"d = DequantizeLinear {axis} ({given}) y = {CONV} (x, d)", values=values, opset=opset)


@pytest.mark.parametrize("zero", [True, False], ids=["zero-point", "no-zero-point"])
@pytest.mark.parametrize(("form", "axis"), [("tensor", None), ("one-element", None), ("axis0", 0)])
def test_weight_behind_dequantize_linear(form: str, axis: int | None, zero: bool) -> None:
    site = one(find(dequantized(form, zero=zero)))
    quantization = site.part.weight_quantization
    assert quantization is not None
    assert (site.part.weight.name, site.part.weight.kind, site.part.weight.element) == ("q", "initializer", "int8")
    assert (quantization.axis, quantization.index, quantization.scale.name) == (axis, 0, "s")
    assert (quantization.zero_point.name if quantization.zero_point else None) == ("z" if zero else None)
    assert (site.geometry.element, site.geometry.quantized, site.storage) == ("float32", False, None)


def test_weight_is_an_initializer_of_the_subgraph_itself() -> None:
    branches = ", ".join(
        f"{name}_branch = {name} () => (float[1,2,m] {out}) <{initial('k', 2, 2, width)}> {{ {out} = {CONV} (x, k) }}"
        for name, out, width in (("then", "p", 3), ("else", "q", 5))
    )
    first, second = find(model(f"y = If (c) <{branches}>", inputs=f"{X}, bool c")).sites
    assert (first.part.weight.kind, second.part.weight.kind) == ("initializer", "initializer")
    assert (first.part.weight.shape, second.part.weight.shape) == ((2, 2, 3), (2, 2, 5))
    assert (first.part.weight.scope, second.part.weight.scope) == (first.scope, second.scope)


def test_weight_is_a_sparse_constant() -> None:
    source = model(f"y = {CONV} (x, k)")
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 7])
    sparse = helper.make_sparse_tensor(values, indices, [2, 2, 3])
    source.graph.node.insert(0, helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    site = one(find(source))
    assert (site.part.weight.kind, site.part.weight.shape) == ("computed", (2, 2, 3))


@pytest.mark.parametrize("form", ["axis1", "axis-default"])
def test_weight_quantised_along_its_inputs_counts_as_computed(form: str) -> None:
    site = one(find(dequantized(form)))
    assert site.part.weight_quantization is None
    assert (site.part.weight.kind, site.part.weight.name, site.part.weight.shape) == ("computed", "d", (2, 2, 3))


def test_weight_quantised_in_blocks_counts_as_computed() -> None:
    source = model(
        f"d = DequantizeLinear <axis=1, block_size=2> (q, s) y = {CONV} (x, d)",
        values=f"{initial('q', 2, 2, 3, kind='int8')}, {initial('s', 2, 1, 3)}",
        opset=21,
        ir=10,
    )
    site = one(find(source))
    assert (site.part.weight_quantization, site.part.weight.kind) == (None, "computed")


@pytest.mark.parametrize("part", ["q", "s", "z"])
def test_quantised_weight_that_a_caller_may_override_counts_as_computed(part: str) -> None:
    source = dequantized("tensor")
    held = next(t for t in source.graph.initializer if t.name == part)
    source.graph.input.append(helper.make_tensor_value_info(part, held.data_type, list(held.dims)))
    site = one(find(source))
    assert (site.part.weight_quantization, site.part.weight.kind, site.part.weight.name) == (None, "computed", "d")


QDQ = f"""
xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z)  wd = DequantizeLinear (q, s, z)
bd = DequantizeLinear (b, s)  v = {CONV} (xd, wd, bd)
"""
QDQ_VALUES = f"{initial('q', 2, 2, 3, kind='int8')}, {initial('s')}, {initial('z', kind='int8')}, " + initial(
    "b", 2, kind="int32"
)


def test_quantised_site() -> None:
    site = one(
        find(
            model(
                f"{QDQ} r = Relu (v) y = QuantizeLinear (r, s, z)",
                values=QDQ_VALUES,
                outputs="int8[?] y".replace("?", "m"),
            )
        )
    )
    assert site.input_quantization is not None
    assert (site.input_quantization.source.name, site.input_quantization.source.kind) == ("xq", "computed")
    assert site.part.bias_quantization is not None
    assert (site.part.bias.name if site.part.bias else None) == "b"
    assert (site.geometry.quantized, site.storage, site.geometry.element) == (True, "int8", "float32")
    assert site.follow == (5, 6)


def test_input_quantised_per_channel_is_not_a_quantised_site() -> None:
    values = f"{W}, {initial('s', 2)}, {initial('z', 2, kind='int8')}"
    source = model(f"xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z) y = {CONV} (xd, w)", values=values)
    site = one(find(source))
    assert (site.input_quantization, site.geometry.quantized) == (None, False)


# -- nodes ---------------------------------------------------------------------------------------------------------


def test_nodes_in_reversed_order() -> None:
    source = model(f"[k] v = Relu (w) [c] a = {CONV} (x, v) [r] y = LeakyRelu (a)")
    backwards = onnx.ModelProto()
    backwards.CopyFrom(source)
    backwards.graph.ClearField("node")
    backwards.graph.node.extend(reversed(source.graph.node))
    site = one(find(backwards))
    assert (site.part.index, site.follow, site.part.weight.index, site.name) == (1, (0,), 2, "c")
    assert site.geometry.extents == (12,)


def test_unnamed_node_is_called_by_its_output() -> None:
    assert one(find(model(f"y = {CONV} (x, w)"))).name == "y"


def test_ai_onnx_is_the_default_domain() -> None:
    source = model(f"y = {CONV} (x, w)")
    source.graph.node[0].domain = "ai.onnx"
    assert len(find(source).sites) == 1


def test_conv_of_a_custom_domain_is_not_a_site() -> None:
    found = find(model(f"y = custom.{CONV} (x, w)"))
    assert found.sites == ()
    assert found.normalisations == ()


@pytest.mark.parametrize(
    ("domain", "op"), [("com.microsoft", "FusedConv"), ("custom", "Conv")], ids=["fused", "custom"]
)
def test_dilated_node_of_another_domain_is_listed(domain: str, op: str) -> None:
    source = model(f"y = {CONV} (x, w)")
    source.graph.node[0].domain, source.graph.node[0].op_type = domain, op
    assert op in reason(find(source))


@pytest.mark.parametrize(
    ("domain", "op", "saved"),
    [
        ("com.microsoft", "FusedConv", True),
        ("com.microsoft", "NhwcFusedConv", True),
        ("com.microsoft", "QLinearConv", True),
        ("com.microsoft.nchwc", "Conv", True),
        ("com.ms.internal.nhwc", "Conv", True),
        ("com.microsoft", "GridSample", False),
        ("custom", "FusedConv", False),
        ("", "MaxPool", False),
    ],
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_file_that_onnx_runtime_saved(domain: str, op: str, saved: bool, dilation: int) -> None:
    """Told of the file, whether such a node has a dilation or not, and of each one with a dilation."""
    source = model(f"y = Conv <dilations=[{dilation}]> (x, w)")
    source.graph.node[0].domain, source.graph.node[0].op_type = domain, op
    found = find(source)
    words = f"ONNX Runtime saved this file with its own operators (1 {domain}:{op}): start from the exported model"
    assert found.remarks == ((words,) if saved else ())
    told = [node.reason for node in found.skipped if "start from the exported model" in node.reason]
    assert len(told) == (saved and dilation == 2)


def test_an_opset_that_is_not_known_yet() -> None:
    newest = onnx.defs.onnx_opset_version()
    source = model(f"y = {CONV} (x, w)")
    source.opset_import[0].version = newest
    assert find(source).remarks == ()
    source.opset_import[0].version = newest + 1
    (remark,) = find(source).remarks
    assert remark.startswith(f"opset {newest + 1} is newer than {newest}, the newest that onnx ")
    assert "export the model with an older opset" in remark


def test_undilated_convs_are_no_finding() -> None:
    assert find(model("a = Conv (x, w) y = Conv <dilations=[1]> (a, w)")) == Found()


OTHERS = {
    "ConvTranspose": ("ConvTranspose <dilations=[2], output_shape=[99]> (x, w)", True),
    "DeformConv": ("DeformConv <dilations=[2]> (x, w, x)", True),
    "MaxPool": ("MaxPool <dilations=[2], kernel_shape=[3]> (x)", False),
    "AveragePool": ("AveragePool <dilations=[2], kernel_shape=[3]> (x)", False),
    "LpPool": ("LpPool <dilations=[2], kernel_shape=[3]> (x)", False),
}


@pytest.mark.parametrize("op", OTHERS)
def test_other_dilated_nodes_are_listed(op: str) -> None:
    text, convolution = OTHERS[op]
    values = f"{W}, {initial('q', 2, 2, 3, kind='int8')}, {initial('s')}, {initial('z', kind='int8')}"
    found = find(model(f"[node] y = {text}", inputs=f"{X}, int8[1,2,12] x8", values=values, opset=19))
    assert op in reason(found) or (op == "ConvTranspose" and "output_shape [99]" in reason(found))
    (skipped,) = found.skipped
    assert (skipped.where, skipped.name, skipped.op, skipped.dilations) == ("main", "node", op, (2,))
    assert skipped.convolution == convolution


@pytest.mark.parametrize(
    "text", ["MaxPool <dilations=[2], kernel_shape=[1]> (x)", "MaxPool <dilations=[1], kernel_shape=[3]> (x)"]
)
def test_pooling_without_effective_dilation_is_no_finding(text: str) -> None:
    assert find(model(f"y = {text}")) == Found()


def test_four_spatial_axes_are_a_reason() -> None:
    body = "y = Conv <dilations=[1,1,1,2]> (x, w)"
    found = find(model(body, inputs="float[1,1,5,5,5,5] x", values=initial("w", 1, 1, 1, 1, 1, 2)))
    assert reason(found) == "it has 4 spatial axes; 1 to 3 are covered"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_to_three_spatial_axes(rank: int) -> None:
    dims = ",".join(["1", "1"] + ["9"] * rank)
    body = f"y = Conv <dilations=[{','.join(['2'] * rank)}]> (x, w)"
    site = one(find(model(body, inputs=f"float[{dims}] x", values=initial("w", 1, 1, *[2] * rank))))
    assert (site.geometry.rank, site.geometry.extents) == (rank, (9,) * rank)


# -- normalisations ------------------------------------------------------------------------------------------------

X2 = "float[1,1,9,9] x"


def two_d(attributes: str, kernel: tuple[int, int], x: str = X2) -> Found:
    """Return what is found for a 2-D Conv."""
    return find(model(f"[c] y = Conv <{attributes}> (x, w)", inputs=x, values=initial("w", 1, 1, *kernel)))


def change(found: Found) -> Normalisation:
    """Return the only normalisation."""
    (normalisation,) = found.normalisations
    assert (normalisation.where, normalisation.name, normalisation.index) == ("main", "c", 0)
    return normalisation


def test_dilation_of_a_kernel_of_one_is_only_normalised() -> None:
    found = two_d("dilations=[4,2]", (1, 1))
    assert (found.sites, found.skipped) == ((), ())
    assert (change(found).dilations, change(found).pads) == ((1, 1), None)


@pytest.mark.parametrize(
    ("dilations", "kernel", "wanted"), [("4,2", (1, 3), (1, 2)), ("2,4", (3, 1), (2, 1))], ids=["rows", "columns"]
)
def test_dilation_of_a_kernel_of_one_beside_a_real_one(
    dilations: str, kernel: tuple[int, int], wanted: tuple[int, int]
) -> None:
    found = two_d(f"dilations=[{dilations}]", kernel)
    one(found)
    assert (change(found).dilations, change(found).pads) == (wanted, None)


def test_real_dilation_is_not_normalised() -> None:
    assert two_d("dilations=[2,2]", (3, 3)).normalisations == ()


def test_dilation_of_a_computed_kernel_of_one() -> None:
    found = find(model("[c] y = Conv <dilations=[3], kernel_shape=[1]> (x, v)", inputs=f"{X}, float[o,i,n] v"))
    assert (found.sites, change(found).dilations) == ((), (1,))


SAME = {
    # spans 5 and 7 on 9 x 9: totals 4 and 6; with stride 2, outputs 5 x 5: totals 8 + 5 - 9 = 4 and 8 + 7 - 9 = 6
    "upper-odd": ('auto_pad="SAME_UPPER", dilations=[3,2]', (2, 2), (1, 1, 2, 1)),
    "lower-odd": ('auto_pad="SAME_LOWER", dilations=[3,2]', (2, 2), (2, 1, 1, 1)),
    "upper-even": ('auto_pad="SAME_UPPER", dilations=[2,3]', (3, 3), (2, 3, 2, 3)),
    "upper-stride-2": ('auto_pad="SAME_UPPER", dilations=[2,3], strides=[2,2]', (3, 3), (2, 3, 2, 3)),
    "lower-stride-4": ('auto_pad="SAME_LOWER", dilations=[2,2], strides=[4,1]', (2, 2), (1, 1, 1, 1)),
    "upper-stride-8": ('auto_pad="SAME_UPPER", dilations=[2,2], strides=[8,8]', (2, 2), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", SAME)
def test_same_pads_of_known_extents_become_explicit(case: str) -> None:
    attributes, kernel, pads = SAME[case]
    found = two_d(attributes, kernel)
    one(found)
    assert (change(found).dilations, change(found).pads) == (None, pads)


def test_same_pads_at_stride_one_need_no_extent() -> None:
    found = two_d('auto_pad="SAME_UPPER", dilations=[3,2]', (2, 2), x="float[1,1,h,w_] x")
    assert one(found).geometry.extents == (None, None)
    assert change(found).pads == (1, 1, 2, 1)


@pytest.mark.parametrize("extents", ["h,w_", "9,w_", "h,9"])
def test_same_pads_at_stride_two_stay_where_an_extent_is_unknown(extents: str) -> None:
    found = two_d('auto_pad="SAME_LOWER", dilations=[3,2], strides=[2,2]', (2, 2), x=f"float[1,1,{extents}] x")
    assert one(found).geometry.auto_pad == "SAME_LOWER"
    assert found.normalisations == ()


def test_valid_has_no_pads_and_stays() -> None:
    found = two_d('auto_pad="VALID", dilations=[2,2]', (3, 3))
    assert one(found).geometry.explicit().static_pads == ((0, 0), (0, 0))
    assert found.normalisations == ()


def test_same_pads_and_a_kernel_of_one_change_together() -> None:
    found = two_d('auto_pad="SAME_UPPER", dilations=[2,4]', (3, 1))
    assert (change(found).dilations, change(found).pads) == ((2, 1), (2, 0, 2, 0))


# -- invalid Convs -------------------------------------------------------------------------------------------------

INVALID = {
    "pads-length": ("Conv <dilations=[2], pads=[2]> (x, w)", "pads has 1 values, not 2"),
    "strides-length": ("Conv <dilations=[2], strides=[1,1]> (x, w)", "strides has 2 values, not 1"),
    "dilations-length": ("Conv <dilations=[2,2]> (x, w)", "dilations has 2 values, not 1"),
    "group-inputs": ("Conv <dilations=[2], group=2> (x, w)", "[2, 2, 3] with group 2 need 4"),
    "group-outputs": ("Conv <dilations=[2], group=2> (x, odd)", "3 output channels are not divisible by group 2"),
    "group-zero": ("Conv <dilations=[2], group=0> (x, w)", "group 0"),
    "kernel-shape": ("Conv <dilations=[2], kernel_shape=[5]> (x, w)", "kernel_shape [5] does not fit"),
    "kernel-rank": ("Conv <dilations=[2], kernel_shape=[3,3]> (x, w)", "kernel_shape [3, 3] does not fit"),
    "kernel-too-large": ("Conv <dilations=[6]> (x, w)", "extent 12 with pads (0, 0) is 12, "),
    "kernel-larger-than-padded": (
        "Conv <dilations=[9], pads=[3,3]> (x, w)",
        "with pads (3, 3) is 18, ",
    ),
    "crop": ("Conv <dilations=[2], pads=[-10,-10]> (x, w)", "spatial axis 0"),
    "stride-zero": ("Conv <dilations=[2], strides=[0]> (x, w)", "strides (0,)"),
    "stride-negative": ("Conv <dilations=[2], strides=[-1]> (x, w)", "strides (-1,)"),
    "channels": (
        "Conv <dilations=[2]> (x, wide)",
        "its input has 2 channels, its weights [2, 4, 3] with group 1 need 4",
    ),
    "rank": ("Conv <dilations=[2,2]> (x, square)", "its input has 3 axes, its kernel [3, 3] needs 4"),
    "auto-pad": ('Conv <dilations=[2], auto_pad="SAME"> (x, w)', "auto_pad is 'SAME'"),
    "no-weights": ("Conv <dilations=[2]> (x)", "no weights"),
}


@pytest.mark.parametrize("name", ["conv_7", ""], ids=["named", "unnamed"])
@pytest.mark.parametrize("case", INVALID)
def test_invalid_conv_is_an_error_with_name_and_numbers(case: str, name: str) -> None:
    text, numbers = INVALID[case]
    values = ", ".join([W, initial("odd", 3, 1, 3), initial("wide", 2, 4, 3), initial("square", 2, 2, 3, 3)])
    source = model(f"a = Relu (x) {f'[{name}]' if name else ''} y = {text.replace('(x', '(a')}", values=values)
    with pytest.raises(UsageError) as caught:
        find(source)
    assert caught.value.message.startswith(f"main: Conv {name or 'y'!r} is invalid: ")
    assert numbers in caught.value.message
    assert caught.value.hint


def test_sizes_below_zero_are_an_error_with_the_tensor() -> None:
    """A kernel that is larger than its input; onnx's inference dies of it where a Slice follows."""
    source = model(
        "a = Conv (x, long) b = Relu (a) y = Conv <dilations=[2]> (b, w)", values=f"{W}, {initial('long', 2, 2, 40)}"
    )
    with pytest.raises(UsageError, match=r"the tensor 'a' would have the sizes \[1, 2, -27\]"):
        find(source)


def test_sizes_below_zero_that_only_the_model_declares_are_none() -> None:
    source = model("a = Relu (x) y = Conv <dilations=[2], pads=[2,2]> (a, w)")
    source.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value")
    source.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2, -4]))
    assert len(find(source).sites) == 1


@pytest.mark.parametrize("dilations", ["0,2", "2,-1"])
def test_dilation_below_one_is_an_error(dilations: str) -> None:
    with pytest.raises(UsageError, match=r"dilations .* must all be at least 1"):
        two_d(f"dilations=[{dilations}]", (3, 3))


WRONG_TYPE = {
    "strides": "strides=2",
    "group": "group=[1]",
    "pads-of-floats": "pads=[1.0,1.0]",
    "auto-pad": "auto_pad=1",
    "kernel-shape": "kernel_shape=3",
}


@pytest.mark.parametrize("case", WRONG_TYPE)
def test_attribute_of_the_wrong_type_is_an_error(case: str) -> None:
    with pytest.raises(UsageError, match="'conv_7'"):
        find(model(f"[conv_7] y = Conv <dilations=[2], {WRONG_TYPE[case]}> (x, w)"))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        pytest.param(["x"], ["y"], id="no-weight"),
        pytest.param(["x", ""], ["y"], id="empty-weight"),
        pytest.param(["", "w"], ["y"], id="empty-input"),
        pytest.param(["x", "w"], [""], id="empty-output"),
    ],
)
def test_conv_without_an_operand_is_an_error(inputs: list[str], outputs: list[str]) -> None:
    source = model("[conv_7] y = Conv <dilations=[2], kernel_shape=[3]> (x, w)")
    source.graph.node[0].input[:], source.graph.node[0].output[:] = inputs, outputs
    with pytest.raises(UsageError, match="'conv_7'"):
        find(source)


@pytest.mark.parametrize("dilation", [0, -2])
def test_only_dilation_below_one_is_an_error(dilation: int) -> None:
    with pytest.raises(UsageError, match=r"dilations .* must all be at least 1"):
        find(model(f"y = Conv <dilations=[{dilation}]> (x, w)"))


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param("9,9"),
        "h,w_",
    ],
)
def test_stride_zero_with_same_pads_is_an_error(extents: str) -> None:
    with pytest.raises(UsageError, match="strides"):
        two_d('auto_pad="SAME_UPPER", dilations=[2,2], strides=[0,1]', (3, 3), x=f"float[1,1,{extents}] x")


def test_invalid_conv_in_a_subgraph_names_the_scope() -> None:
    text, _ = inside("if", "[bad] a = Conv <dilations=[2], pads=[2]> (x, w)", "a", level=0)
    with pytest.raises(UsageError, match=r"^main/if_0.then_branch: Conv 'bad' is invalid: pads has 1 values, not 2"):
        find(model(text, inputs=f"{X}, bool c", outputs="float[m] y_if_0"))


def test_invalid_conv_whose_dilation_has_no_effect_is_an_error() -> None:
    with pytest.raises(UsageError, match="pads has 3 values, not 4"):
        two_d("dilations=[2,2], pads=[0,0,0]", (1, 1))


# -- what follows --------------------------------------------------------------------------------------------------


def follow(body: str, **how: str) -> tuple[int, ...]:
    """Return the `follow` of the Conv that is the first node and makes `a`."""
    return one(find(model(f"a = {CONV} (x, w) {body}", opset=24, ir=12, **how))).follow


@pytest.mark.parametrize("op", sorted(UNARY))
def test_unary_operator_with_one_consumer_follows(op: str) -> None:
    assert follow(f"y = {op} (a)") == (1,)


@pytest.mark.parametrize("op", ["Neg", "Identity", "Softmax", "custom.Relu", "GlobalAveragePool", "Cast <to=10>"])
def test_other_operators_do_not_follow(op: str) -> None:
    assert follow(f"y = {op} (a)") == ()


def test_only_one_unary_operator_follows() -> None:
    assert follow("b = Relu (a) y = Sigmoid (b)") == (1,)


NOT_ALONE = {
    "two-consumers": ("y = Relu (a) z = Neg (a)", "float[m] y, float[m] z"),
    "graph-output": ("y = Relu (a)", "float[m] y, float[m] a"),
    "read-twice-by-one": ("y = Add (a, a)", "float[m] y"),
    "nothing": ("y = Neg (x)", "float[m] y"),
    "capture": (
        "y = Relu (a) z = If (c) <then_branch = t () => (float[m] p) { p = Neg (a) }, "
        "else_branch = e () => (float[m] q) { q = Neg (x) }>",
        "float[m] y, float[m] z",
    ),
    "capture-as-branch-output": (
        "y = Relu (a) z = If (c) <then_branch = t () => (float[m] a) { }, "
        "else_branch = e () => (float[m] q) { q = Neg (x) }>",
        "float[m] y, float[m] z",
    ),
    "deep-capture": (
        "y = Relu (a) z = If (c) <then_branch = t () => (float[m] p) { p = If (c) "
        "<then_branch = u () => (float[m] r) { r = Neg (a) }, else_branch = v () => (float[m] s) { s = Neg (x) }> }, "
        "else_branch = e () => (float[m] q) { q = Neg (x) }>",
        "float[m] y, float[m] z",
    ),
}


@pytest.mark.parametrize("case", NOT_ALONE)
def test_output_that_others_read_is_not_followed(case: str) -> None:
    body, outputs = NOT_ALONE[case]
    assert follow(body, inputs=f"{X}, bool c", outputs=outputs) == ()


def test_only_consumer_in_a_subgraph_does_not_follow() -> None:
    branches = "then_branch = t () => (float[m] p) { p = Relu (a) }, else_branch = e () => (float[m] q) { q = Neg (x) }"
    body = f"y = If (c) <{branches}>"
    assert follow(body, inputs=f"{X}, bool c") == ()


def test_conv_without_reader_has_no_follow() -> None:
    assert follow("y = Relu (x)") == ()


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        ("Clip (a, lo, hi)", (1,)),
        ("Clip (a, , hi)", (1,)),
        ("Clip (a, lo)", (1,)),
        ("Clip (a, one, hi)", (1,)),
        ("Clip (a, lo, two)", ()),
        ("Clip (x, a, hi)", ()),
        ("Clip (a, a, hi)", ()),
        ("Clip (a, given)", ()),
    ],
    ids=["bounds", "max-only", "min-only", "one-element", "two-elements", "as-bound", "as-both", "unknown-shape"],
)
def test_clip_follows_with_scalar_bounds(clip: str, found: tuple[int, ...]) -> None:
    values = ", ".join([W, initial("lo"), initial("hi"), initial("one", 1), initial("two", 2)])
    assert follow(f"y = {clip}", values=values, inputs=f"{X}, float[] given" if "given" in clip else X) == found


def test_clip_of_opset_six_follows() -> None:
    source = model(f"a = {CONV} (x, w) y = Clip <min = 0.0, max = 6.0> (a)", opset=10, ir=5)
    assert one(find(source)).follow == (1,)


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ("y = QuantizeLinear (v, s, z)", (5,)),
        ("r = Relu (v) y = QuantizeLinear (r, s, z)", (5, 6)),
        ("y = QuantizeLinear (v, ss, zz)", ()),
        ("r = Relu (v) y = QuantizeLinear (r, ss, zz)", (5,)),
        ("r = Add (v, v) y = QuantizeLinear (r, s, z)", ()),
        ("r = Relu (v) y = QuantizeLinear (r, s, z) t = QuantizeLinear (r, s, z)", (5,)),
        ("r = QuantizeLinear (v, s, z) y = Relu (r)", (5,)),
    ],
    ids=["q", "relu-q", "q-per-channel", "relu-q-per-channel", "add-q", "two-qs", "q-then-relu"],
)
def test_quantize_linear_follows_a_quantised_site(after: str, found: tuple[int, ...]) -> None:
    values = f"{QDQ_VALUES}, {initial('ss', 2)}, {initial('zz', 2, kind='int8')}"
    assert one(find(model(f"{QDQ} {after}", values=values, outputs="int8[m] y"))).follow == found


def test_quantize_linear_does_not_follow_a_float_site() -> None:
    values = f"{W}, {initial('s')}, {initial('z', kind='int8')}"
    assert follow("r = Relu (a) y = QuantizeLinear (r, s, z)", values=values, outputs="int8[m] y") == (1,)


def test_follow_inside_a_function() -> None:
    source = with_function(f"k = Constant <value = {tensor(2, 2, 3)}> () a = {CONV} (X, k) Y = Relu (a)")
    assert one(find(source)).follow == (2,)


# -- shapes --------------------------------------------------------------------------------------------------------


def test_extents_come_from_inference() -> None:
    site = one(find(model(f"v = MaxPool <kernel_shape=[2], strides=[2]> (x) y = {CONV} (v, w)")))
    assert (site.geometry.batch, site.geometry.in_channels, site.geometry.extents) == (1, 2, (6,))


def test_extents_that_only_value_info_says_are_not_believed() -> None:
    body = f"v = custom.Unknown (x) y = {CONV} (v, w)"
    assert one(find(model(body))).geometry.extents == (None,)
    geometry = one(find(model(body, values=f"{W}, float[3,2,7] v"))).geometry
    assert (geometry.batch, geometry.in_channels, geometry.extents) == (None, 2, (None,))


def test_extents_that_value_info_contradicts_are_not_believed() -> None:
    body = f"v = Neg (x) u = Neg (v) y = {CONV} (u, w)"
    assert one(find(model(body, values=f"{W}, float[1,2,12] v"))).geometry.extents == (12,)
    geometry = one(find(model(body, values=f"{W}, float[1,2,7] v"))).geometry
    assert (geometry.batch, geometry.extents) == (1, (None,))
    assert one(find(model(body, values=f"{W}, float[2,7] v"))).geometry.batch is None


def test_extents_that_only_value_info_of_a_subgraph_says_are_not_believed() -> None:
    text, _ = inside("if", f"v = custom.Unknown (x) a = {CONV} (v, w)", "a", level=0)
    source = model(text, inputs=f"{X}, bool c", outputs="float[m] y_if_0")
    branch = next(a.g for a in source.graph.node[0].attribute if a.name == "then_branch")
    branch.value_info.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 2, 8]))
    assert one(find(source)).geometry.extents == (None,)


def test_a_site_behind_an_output_of_doubtful_shape_stays() -> None:
    source = model(f"v = Neg (x) u = Neg (v) y = {CONV} (u, w)", inputs="float[n,2,l] x", outputs="float[m] y")
    source.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 2, "l"]))
    assert one(find(source)).output == "y"
    source.graph.output[1].CopyFrom(helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 2, "l"]))
    found = find(source)
    (left,) = found.skipped
    assert found.sites == ()
    assert left.convolution
    assert "'v'" in left.reason


def test_extents_survive_large_weights_on_the_way() -> None:
    source = model(f"v = Conv (x, big) y = {CONV} (v, w)", inputs="float[1,2,600] x", values=W)
    source.graph.initializer.append(helper.make_tensor("big", TensorProto.FLOAT, [2, 2, 501], [0.0] * 2004))
    before = source.SerializeToString()
    assert one(find(source)).geometry.extents == (100,)
    assert source.SerializeToString() == before


def test_unknown_dimensions_are_none() -> None:
    site = one(find(model(f"y = {CONV} (x, w)", inputs="float[n,2,length] x")))
    assert (site.geometry.batch, site.geometry.extents) == (None, (None,))


def test_unknown_rank_is_allowed() -> None:
    site = one(find(model(f"y = {CONV} (x, w)", inputs="float[] x")))
    assert (site.geometry.batch, site.geometry.in_channels, site.geometry.extents) == (None, 2, (None,))


def test_opset_that_onnx_does_not_know_is_read_all_the_same() -> None:
    source = model(f"y = {CONV} (x, w)")
    source.opset_import[0].version = 999
    site = one(find(source))
    assert (site.opset, site.geometry.extents) == (999, (12,))


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16", "double"])
def test_element_type(kind: str) -> None:
    source = model(f"y = {CONV} (x, w)", inputs=f"{kind}[1,2,12] x", values="", opset=22, ir=10)
    data_type = source.graph.input[0].type.tensor_type.elem_type
    source.graph.initializer.append(helper.make_tensor("w", data_type, [2, 2, 3], [1.0] * 12))
    wanted = {"float": "float32", "double": "float64"}.get(kind, kind)
    assert one(find(source)).geometry.element == wanted


# -- keys ----------------------------------------------------------------------------------------------------------


def many() -> onnx.ModelProto:
    """Return a model with sites in several scopes; all nodes share one name."""
    inner, _ = inside("if", f"[n] a = {CONV} (x, w) [n] a2 = {CONV} (a, w)", "a2", level=0)
    loop, _ = inside("loop", f"[n] b = {CONV} (x, w)", "b", level=1)
    body = f"[n] p = {CONV} (x, w) [n] p2 = {CONV} (p, w) {inner} {loop} y = Neg (p2)"
    return model(body, inputs=f"{X}, bool c, int64 trips")


def test_keys_are_unique_and_stable() -> None:
    keys = [site.key for site in find(many()).sites]
    assert keys == ["main/p", "main/p2", "main/if_0.then_branch/a", "main/if_0.then_branch/a2", "main/loop_1.body/b"]
    assert keys == [site.key for site in find(many()).sites]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="unnamed"),
        pytest.param("[same]", id="same-name"),
    ],
)
def test_keys_of_equal_outputs_in_sibling_subgraphs_are_unique(name: str) -> None:
    branch = f"(float[1,2,12] a) {{ a = {CONV} (x, w) }}"
    body = " ".join(
        f"{name} y{i} = If (c) <then_branch = t{i} () => {branch}, else_branch = e{i} () => {branch}>" for i in range(2)
    )
    sites = find(model(f"{body} y = Add (y0, y1)", inputs=f"{X}, bool c")).sites
    assert len({site.key for site in sites}) == len(sites) == 4


def test_find_changes_nothing() -> None:
    source = many()
    before = source.SerializeToString()
    find(source)
    assert source.SerializeToString() == before


@pytest.mark.parametrize("whose", ["model", "graph", "node", "attribute", "tensor"])
def test_comments_that_are_not_utf8_are_left_out(whose: str) -> None:
    model = tiny.conv1d()
    value = onnx.numpy_helper.from_array(np.zeros(1))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["one"], value=value))
    node = model.graph.node[0]
    owners = {"model": model, "graph": model.graph, "node": node, "attribute": node.attribute[0]}
    owners.get(whose, node.attribute[0].t).doc_string = "Beschreibung"
    damaged = onnx.load_from_string(model.SerializeToString().replace(b"Beschreibung", b"Beschreib\xfcng"))
    assert without_weights(damaged).graph.node[1] == model.graph.node[1]


def exported(node: onnx.NodeProto, scopes: str, namespace: str = "") -> onnx.NodeProto:
    """A node with the metadata of an exporter."""
    for key, value in (("pkg.torch.onnx.name_scopes", scopes), ("namespace", namespace)):
        if value:
            node.metadata_props.add(key=key, value=value)
    return node


@pytest.mark.parametrize(
    ("scopes", "namespace", "path"),
    [
        ("['', 'layers', 'layers.1.conv', 'conv1d_2']", "", "layers.1.conv"),
        ("['', 'stem', 'conv1d']", ": Other/other: Conv1d/conv: aten.conv1d.default", "stem"),
        (
            "",
            ": __main__.Net/layers.0.conv: torch.nn.modules.conv.Conv1d/conv1d_1: aten.conv1d.default",
            "layers.0.conv",
        ),
        ("['', 'conv1d_6']", ": __main__.Net/conv1d_6: aten.conv1d.default", ""),
        ("", "", ""),
        ("[", "/", ""),
        ("not a list", "conv", ""),
    ],
)
def test_the_module_that_a_node_comes_from(scopes: str, namespace: str, path: str) -> None:
    assert module_of(exported(onnx.NodeProto(op_type="Conv"), scopes, namespace)) == path
