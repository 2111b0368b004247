"""The words of profiles: which facts there are of Convs, operators and tensors, and which field is about which."""

from __future__ import annotations

from dilrewrite.targets.expressions import Expression, parse

COMMON = ("N", "N0", "C", "H", "W", "rank", "x")
"""Batch; batch of the model's input; channels, height, width; number of axes; extents (what follows N and C)."""

WINDOW = (
    *("k", "d", "s", "p", "p_begin", "p_end", "kernel", "dilated_kernel"),
    *(f"{what}{axis}" for what in "kds" for axis in "dhw"),
    *("dilated", "auto_pad"),
)
"""Kernel, dilation, stride, the larger pad of each axis, pads; the same by name and by axis (`kd`, `kh`, `kw`, ...)."""

CONV = (*COMMON, *WINDOW, "y", "Cin", "Cout", "group", "depthwise", "grouped", "weights", "input_dtype", "output_dtype")
"""Facts of a Conv. `y`: its output's extents; `depthwise`: a group for each channel; `grouped`: other groups."""

TEXTS = ("auto_pad", "weights", "input_dtype", "output_dtype", "dtype", "mode")
"""Facts that are texts: there is no larger and smaller one of them."""

LATER = "not quantised yet"
"""The element type of real numbers in a model that is not quantised: the toolchain quantises it, so no rule acts."""

TENSOR = (*COMMON, "D", "elements", "bytes", "non_singleton", "dtype")

OF_OPERATORS = {
    "Slice": ("steps", "axes"),
    "Concat": ("axis", "axis_from_end", "inputs"),
    "Split": ("axis", "axis_from_end"),
    "Gather": ("axis", "axis_from_end"),
    "Softmax": ("axis", "axis_from_end"),
    "SpaceToDepth": ("blocks", "mode"),
    "DepthToSpace": ("blocks", "mode"),
    "Transpose": ("perm", "moves_batch"),
    "Reshape": ("rank_in", "rank_out"),
    "Pad": ("axes", "amounts", "mode", "constant", "value", "axes_input"),
    "Sum": ("inputs",),
    "Resize": ("mode",),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "ConvTranspose"), WINDOW),
}
"""Facts of one operator, beside the common ones."""
OF_OPERATORS["ConvTranspose"] = CONV

_CONV_FIELDS = {
    "ranks": "rank", "kernel": "k", "dilation": "d", "stride": "s", "pads": "p", "groups": "group", "batch": "N",
    "channels": "Cin", "out_channels": "Cout", "extents": "x", "auto_pad": "auto_pad", "weights": "weights",
    "input_dtype": "input_dtype", "output_dtype": "output_dtype", "products": "",
}  # fmt: skip
_TENSOR_FIELDS = {
    "max_rank": "rank", "max_non_singleton": "non_singleton", "dtypes": "dtype", "batch": "N", "channels": "C",
    "extents": "x", "elements": "elements", "bytes": "bytes", "products": "", "static": "", "quantised": "",
}  # fmt: skip
_OPERATOR_FIELDS = {"where": "", "batch": "N", "max_rank": "rank", "channels": "C", "extents": "x", "products": ""}
_WINDOW_FIELDS = {"kernel": "k", "dilation": "d", "stride": "s", "pads": "p", "auto_pad": "auto_pad"}

Fields = dict[str, Expression | None]
"""What each field is about; `None`: the rule says it (`products`), or there is nothing to compute."""


def _parsed(fields: dict[str, str], names: tuple[str, ...]) -> Fields:
    return {name: parse(text, names) if text else None for name, text in fields.items()}


CONV_FIELDS = _parsed(_CONV_FIELDS, CONV)
TENSOR_FIELDS = _parsed(_TENSOR_FIELDS, TENSOR)


def operator_facts(op: str) -> tuple[str, ...]:
    """Return the facts that there are of an operator."""
    return (*dict.fromkeys((*COMMON, *OF_OPERATORS.get(op, ()))),)


def operator_fields(op: str) -> Fields:
    """Return the fields that rules of an operator may have."""
    own = OF_OPERATORS.get(op, ())
    fields = dict(_OPERATOR_FIELDS)
    fields |= _CONV_FIELDS if op == "ConvTranspose" else _WINDOW_FIELDS if own == WINDOW else {one: one for one in own}
    return _parsed(fields, operator_facts(op))


ASKED = {
    name: parse(text, CONV)
    for name, text in {
        "ranks": "rank > 0", "kernel": "max(k) > 1", "dilation": "dilated", "stride": "max(s) > 1",
        "pads": "max(p) > 0", "groups": "group > 1", "batch": "N != 1",
    }.items()
}  # fmt: skip
"""What every Conv asks of a profile, and of which Convs that matters. What a profile does not say of it is unknown."""
