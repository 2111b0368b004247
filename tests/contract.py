"""What every strategy promises, as one function: `check(name, strategy, case)` raises `ContractError` where it fails.

Nothing here asks dilrewrite what is right: values come from `naive.conv`, refusals from the table in the design.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from dilrewrite.forms.strategies import Refusal, Strategy, every_strategy, plan, with_max_dilation
from dilrewrite.sites import Found
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests import naive
from tests.cases import Case, Ints

Array = NDArray[Any]

EXACT = 2**24  # whole numbers up to here are exact in float32
BANNED = {"If", "ScatterND", "Neg", "Sum"}
RUN_ERRORS = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
OPERATOR = re.compile(r"\b(Pad|Slice|Conv|Concat|Sum|SpaceToDepth|DepthToSpace|Reshape|Transpose|Tile|Where)\b")

onnxruntime.set_default_logger_severity(4)


class ContractError(AssertionError):
    """A strategy broke its promise; the text says which and where."""


def require(holds: object, text: str) -> None:
    if not holds:
        raise ContractError(text)


# -- models and numbers ------------------------------------------------------------------------------------------


def distinct(rng: np.random.Generator, shape: Sequence[int], limit: int) -> NDArray[np.int64]:
    """Whole numbers of both signs, none of them 0, all different where `limit` leaves room."""
    size = math.prod(shape)
    half = (size + 1) // 2
    if half <= limit:
        values = np.concatenate([np.arange(1, half + 1), -np.arange(1, half + 1)])[: max(size, 0)]
        return rng.permutation(values).reshape(shape)
    return (rng.integers(1, limit + 1, shape) * rng.choice([-1, 1], shape)).astype(np.int64)


def weights(case: Case, *, most: int = EXACT) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """The weights and the bias, for sums below `most`."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    terms = case.channels * math.prod(case.kernel)
    w = distinct(rng, case.weight_shape, max(2, math.isqrt(most // terms) // 4))
    b = distinct(rng, (case.out_channels,), max(1, most // 16)) * max(1, min(7, most // 512)) if case.bias else None
    return w, b


def image(case: Case, batch: int, extents: Ints, *, most: int = EXACT) -> NDArray[np.int64]:
    """An input so small that every partial sum stays below `most`."""
    rng = np.random.default_rng([batch, *extents])
    w, b = weights(case, most=most)
    per_output = int(np.abs(w).reshape(len(w), -1).sum(axis=1).max())
    room = most - 1 - (int(np.abs(b).max()) if b is not None else 0)
    return distinct(rng, (batch, case.in_channels, *extents), max(1, room // per_output))


def truth(case: Case, x: Array, *, most: int = EXACT) -> NDArray[np.int64]:
    """The Conv's output in whole numbers."""
    w, b = weights(case, most=most)
    return naive.conv(
        x,
        w,
        b,
        strides=case.strides,
        dilations=case.dilations,
        begin=case.begin,
        end=case.end,
        auto_pad=case.auto_pad,
        group=case.group,
    )


@functools.lru_cache(maxsize=4096)
def _reference(case: Case, batch: int, extents: Ints) -> tuple[Array, Array]:
    x = image(case, batch, extents)
    y = truth(case, x)
    assert int(np.abs(y).max(initial=0)) < EXACT
    wanted = y.astype(np.float32)
    if case.activation:
        wanted = np.where(wanted < 0, wanted * np.float32(0.5), wanted)
    return x.astype(np.float32), wanted


def conv_attributes(case: Case) -> dict[str, Any]:
    """The node's attributes as a file would hold them."""
    attributes: dict[str, Any] = {
        "dilations": list(case.dilations),
        "strides": list(case.strides),
        "group": case.group,
        "kernel_shape": list(case.kernel),
    }
    if case.auto_pad == "NOTSET":
        attributes["pads"] = [*case.begin, *case.end]
    else:
        attributes["auto_pad"] = case.auto_pad
    return attributes


def declared(case: Case, *, output: bool = False) -> list[int | str | None]:
    """The dims of the graph's input or output as declared: names for what is dynamic."""
    outs = case.outs()
    batch: int | str = "n" if case.unknown_batch else case.batch
    if output:
        return [batch, case.out_channels, *(None if a in case.unknown else outs[a] for a in range(case.rank))]
    return [batch, case.in_channels, *(f"h{a}" if a in case.unknown else case.extents[a] for a in range(case.rank))]


def build(case: Case, *, element: int = TensorProto.FLOAT, most: int = EXACT) -> onnx.ModelProto:
    """The model of a case: x -> Conv -> (LeakyRelu ->) y."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    w, b = weights(case, most=most)
    tensors = [numpy_helper.from_array(w.astype(dtype), "w")]
    if b is not None:
        tensors.append(numpy_helper.from_array(b.astype(dtype), "b"))
    nodes = []
    inputs = [helper.make_tensor_value_info("x", element, declared(case))]
    if case.weights == "constant":
        nodes += [helper.make_node("Constant", [], [t.name], value=t, name=f"constant_{t.name}") for t in tensors]
        tensors = []
    elif case.weights == "computed":
        for tensor in tensors:
            given = f"given_{tensor.name}"
            nodes.append(helper.make_node("Neg", [given], [tensor.name], name=f"compute_{tensor.name}"))
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), given))
    if case.weights == "overridable" or case.ir < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    last = "c" if case.activation else "y"
    operands = ["x", "w", "b"] if case.bias else ["x", "w"]
    nodes.append(helper.make_node("Conv", operands, [last], name="site", **conv_attributes(case)))
    if case.activation:
        nodes.append(helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.5, name="activation"))
    y = helper.make_tensor_value_info("y", element, declared(case, output=True))
    graph = helper.make_graph(nodes, "case", inputs, [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=case.ir)


@functools.lru_cache(maxsize=4096)
def original(case: Case) -> tuple[onnx.ModelProto, Found]:
    """The model of a case and what was found in it: one site."""
    model = build(case)
    found = find(model)
    assert len(found.sites) == 1, found
    return model, found


def session(model: onnx.ModelProto, *, optimised: bool = True, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# -- what may be refused -----------------------------------------------------------------------------------------


def pruned_kernel(case: Case) -> Ints | None:
    """The kernel without its dead ends, `None` when the output is nothing but the bias.

    That needs every extent: without one the output's size is not known beforehand, and all taps stay, dead or not.
    """
    live = [case.live(axis) for axis in range(case.rank)]
    if not all(live):
        return case.kernel if case.unknown else None
    return tuple(taps[-1] - taps[0] + 1 for taps in live)


def split(case: Case, axis: int, kernel: int) -> int:
    """The number of phases of an axis: the least divisor of d' that leaves no dilation above the allowed one."""
    d = case.dilations[axis]
    if kernel == 1 or d <= case.max_dilation:
        return 1
    rest = d // math.gcd(d, case.strides[axis])
    return min(b for b in range(1, rest + 1) if rest % b == 0 and rest // b <= case.max_dilation)


def zone_count(case: Case, axis: int) -> int:
    """The runs of outputs that see the same taps."""
    s, d, h, p0 = case.strides[axis], case.dilations[axis], case.extents[axis], case.pads()[0][axis]
    seen = [tuple(t for t in range(case.kernel[axis]) if 0 <= o * s + t * d - p0 < h) for o in range(case.outs()[axis])]
    return 1 + sum(a != b for a, b in itertools.pairwise(seen))


def may_refuse(name: str, strategy: Any, case: Case) -> str | None:
    """Why the design lets a strategy refuse a case; `None` where it has to emit.

    The table first, then what an opset below 10 cannot compute.
    """
    if name not in PROMISES:
        return "not in the table"
    kernel = case.kernel if name == "keep" else pruned_kernel(case)
    if kernel is None:
        return None  # the bias, in every form
    reason = PROMISES[name].refuses(strategy, case, kernel)
    if reason or case.opset >= 10:
        return reason
    if any(case.auto_pad.startswith("SAME") and case.strides[axis] > 1 for axis in case.unknown):
        return "opset: pads computed in the graph"
    if PROMISES[name].phases and any(
        kernel[axis] > 1 and case.dilations[axis] > case.max_dilation for axis in case.unknown
    ):
        return "opset: sizes computed in the graph"
    return None


@dataclass(frozen=True, slots=True)
class Promise:
    """What section 3's table says of a strategy.

    `refuses`: why it may refuse a case with a kernel as pruned; `eliminates`: it leaves no dilation above the allowed
    one; `phases`: it computes sizes in the graph where an extent is unknown; `quantized`: it takes quantised sites.
    """

    refuses: Callable[[Any, Case, Ints], str | None]
    eliminates: bool = True
    phases: bool = False
    quantized: bool = True


def never(_strategy: Any, _case: Case, _kernel: Ints) -> str | None:
    return None


def unknown_or_large(strategy: Any, case: Case, nodes: Callable[[], int]) -> str | None:
    if case.unknown:
        return "unknown extents"
    return f"{nodes()} nodes" if nodes() > strategy.limit_nodes else None


def no_dead_end(_strategy: Any, case: Case, kernel: Ints) -> str | None:
    if kernel != case.kernel:
        return None
    # The design would have the bias expanded here; keeping the Conv is what fails where the original does.
    dead = not all(case.live(axis) for axis in range(case.rank))
    return "all taps dead, but the output's extent is unknown" if dead else "no dead tap at an end"


def overlapping(_strategy: Any, case: Case, kernel: Ints) -> str | None:
    """An axis that is not split (d' = 1, or one tap left) never overlaps."""
    for axis, (s, d) in enumerate(zip(case.strides, case.dilations, strict=True)):
        if split(case, axis, kernel[axis]) > 1 and s // math.gcd(s, d) > 1:
            return "s' > 1"
    return None


def beside(_strategy: Any, case: Case, kernel: Ints) -> bool:
    """Say whether the only axis that is split has one beside it with a single tap, stride 1 and no pads."""
    (axis, *others) = [axis for axis in range(case.rank) if split(case, axis, kernel[axis]) > 1] or [-9]
    begin, end = case.pads()
    return not others and any(
        kernel[place] == case.strides[place] == 1 and begin[place] == end[place] == 0
        for place in (axis - 1, axis + 1)
        if (axis < place or axis not in case.unknown) and 0 <= place < case.rank
    )


def many(strategy: Any, case: Case, kernel: Ints) -> str | None:
    phases = math.prod(split(case, axis, kernel[axis]) for axis in range(case.rank))
    return "many phases" if phases > strategy.limit_phases else None


def unequal(_strategy: Any, case: Case, kernel: Ints) -> str | None:
    acting = {d for k, d in zip(kernel, case.dilations, strict=True) if k > 1}
    if case.rank > 1 and 1 not in kernel:
        return "no axis with one tap"
    return "unequal dilations" if len(acting) > 1 else None


def unpadded(_strategy: Any, case: Case, kernel: Ints) -> str | None:
    if kernel != case.kernel or case.auto_pad.startswith("SAME"):
        return "pads that went with taps, or that depend on the extents"
    return None if max(case.begin + case.end) > 0 and case.auto_pad == "NOTSET" else "no pads"


def multiple(_strategy: Any, case: Case, kernel: Ints) -> str | None:
    if case.unknown:
        return "unknown extents"
    begin, end = case.pads()
    cropped = [h + min(p0, 0) + min(p1, 0) for h, p0, p1 in zip(case.extents, begin, end, strict=True)]
    if kernel != case.kernel:
        return "pads that went with taps"
    lacks = any(h % d for h, d, k in zip(cropped, case.dilations, kernel, strict=True) if k > 1)
    return None if lacks else "multiples already"


PROMISES = {
    "im2col": Promise(lambda _, case, __: "group" if case.group > 1 else None),
    "equal_dilations": Promise(unequal, eliminates=False),
    "gather_im2col": Promise(lambda _, case, __: "unknown extents" if case.unknown else None),
    "keep": Promise(never, eliminates=False),
    "lift": Promise(lambda _, case, __: "rank" if case.rank > 1 else None, eliminates=False),
    "pad_out": Promise(unpadded, eliminates=False),
    "pad_to_multiple": Promise(multiple, eliminates=False),
    "phases_apart": Promise(many, phases=True),
    "slice_to_batch": Promise(never, phases=True),
    "space_to_axis": Promise(
        lambda *given: overlapping(*given) or ("rank 3" if given[1].rank > 2 and not beside(*given) else None),
        phases=True,
    ),
    "space_to_batch": Promise(overlapping, phases=True),
    "space_to_group": Promise(overlapping, phases=True),
    "tap_prune": Promise(no_dead_end, eliminates=False),
    "tap_sum": Promise(
        lambda strategy, case, kernel: unknown_or_large(strategy, case, lambda: 4 * math.prod(kernel) + 1),
        quantized=False,
    ),
    "tap_zones": Promise(
        lambda strategy, case, _: unknown_or_large(
            strategy, case, lambda: 3 * math.prod(zone_count(case, axis) for axis in range(case.rank))
        ),
        eliminates=False,
    ),
    "zero_fill": Promise(never),
}
"""A strategy that is not here may refuse what it likes; one that is gone leaves its line without effect."""

ELIMINATING = {name for name, promise in PROMISES.items() if promise.eliminates}


def check_refusal(name: str, strategy: Any, case: Case, reason: str) -> None:
    """A refusal is allowed, and it is a sentence with a number or an operator."""
    require(reason.strip(), "the refusal says nothing")
    require(re.search(r"\d", reason) or OPERATOR.search(reason), f"no number and no operator in {reason!r}")
    require(may_refuse(name, strategy, case), f"refuses what the table says it takes: {reason}")


def there(*spelled: str) -> tuple[str, ...]:
    """Those of some strategies, with settings or without, that have not been taken out."""
    return tuple(text for text in spelled if text.partition(":")[0] in every_strategy())


# -- what is emitted ---------------------------------------------------------------------------------------------


def _attribute(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def check_structure(name: str, strategy: Any, case: Case, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The rewritten model is sound, its names are unique, and it holds nothing that devices cannot take."""
    try:
        onnx.checker.check_model(after, full_check=case.opset >= 8)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ContractError(f"the checker: {error}") from error
    require(list(after.graph.output) == list(before.graph.output), "the declared outputs changed")
    require(list(after.graph.input) == list(before.graph.input), "the declared inputs changed")
    require(list(after.opset_import) == list(before.opset_import), "the opset changed")
    require(after.ir_version == before.ir_version, "the IR version changed")
    given = {node.name for node in before.graph.node}
    names = [node.name for node in after.graph.node]
    values = [value for node in after.graph.node for value in node.output if value]
    values += [tensor.name for tensor in after.graph.initializer]
    values += [value.name for value in after.graph.input if value.name not in values]
    require(all(names) and len(set(names)) == len(names), f"node names are missing or repeat: {sorted(names)}")
    require(len(set(values)) == len(values), f"tensor names repeat: {sorted(values)}")
    for node in after.graph.node:
        if node.name in given and node.op_type != "Conv":
            continue
        require(node.domain == "", f"{node.op_type} is of domain {node.domain}")
        require(node.op_type not in BANNED, f"{node.op_type} is emitted")
        if node.op_type != "Conv":
            continue
        require(min(_attribute(node, "pads"), default=0) >= 0, f"negative Conv pads {_attribute(node, 'pads')}")
        left = [
            d for d, k in zip(_attribute(node, "dilations"), _attribute(node, "kernel_shape"), strict=True) if k > 1
        ]
        allowed = case.max_dilation if hasattr(strategy, "max_dilation") else 1
        if name in ELIMINATING:
            stays = allowed if isinstance(allowed, tuple) else range(1, allowed + 1)
            require({*left} <= {1, *stays}, f"dilations {left} are left, above {allowed}")
    inferred = onnx.shape_inference.infer_shapes(after)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        rank = len(value.type.tensor_type.shape.dim)
        require(rank <= 8, f"{value.name} has rank {rank}")


def sizes(case: Case) -> Iterator[tuple[int, Ints]]:
    """Three further (batch, extents) for a dynamic case: divisible by the dilations, not divisible, smallest valid."""
    least = smallest(case)
    divisible, uneven = list(case.extents), list(case.extents)
    for axis in case.unknown:
        d = case.dilations[axis]
        divisible[axis] = -(-(least[axis] + d) // d) * d
        uneven[axis] = divisible[axis] + max(1, d // 2)
    for batch, extents in ((2, divisible), (3, uneven), (1, least)):
        yield batch if case.unknown_batch else case.batch, tuple(extents)


def _fits(case: Case, extents: Ints) -> bool:
    begin, end = case.pads(extents)
    cropped = min(h + min(p0, 0) + min(p1, 0) for h, p0, p1 in zip(extents, begin, end, strict=True))
    return cropped >= 1 and min(case.outs(extents)) >= 1


def smallest(case: Case) -> Ints:
    """The smallest unknown extents, at least 1, that leave an output."""
    least = list(case.extents)
    for axis in case.unknown:
        least[axis] = next(
            h for h in range(1, 200) if _fits(case, (*case.extents[:axis], h, *case.extents[axis + 1 :]))
        )
    return tuple(least)


def too_small(case: Case) -> Iterator[tuple[int, Ints]]:
    """(batch, extents) at which the original has no output, one unknown axis at a time."""
    least = smallest(case)
    for axis in case.unknown:
        # every size just below, and the least: rounding of negative sizes must not make an output
        for h in sorted({least[axis] - 1, least[axis] - case.strides[axis], 1, 0}):
            extents = (*case.extents[:axis], h, *case.extents[axis + 1 :])
            begin, end = case.pads(extents)
            # A crop beyond the input has no meaning to compare with: the runtime loads no Conv with a negative pad.
            if h >= 0 and h + min(begin[axis], 0) + min(end[axis], 0) >= 0 and min(case.outs(extents)) < 1:
                yield case.batch, extents


def native_raises(case: Case, batch: int, extents: Ints) -> bool:
    """Say whether the original raises; not asked of what the runtime refuses at any size or crashes on."""
    runs = not case.auto_pad.startswith("SAME") and min(case.begin + case.end) >= 0
    if not runs:
        return min(case.outs(extents)) < 1
    x = np.ones((batch, case.in_channels, *extents), np.float32)
    try:
        _native(case).run(None, {"x": x})
    except RUN_ERRORS:
        return True
    return False


@functools.lru_cache(maxsize=8)
def _native(case: Case) -> onnxruntime.InferenceSession:
    return session(original(case)[0])


def run(live: onnxruntime.InferenceSession, x: Array) -> Array:
    try:
        (y,) = live.run(None, {"x": x})
    except RUN_ERRORS as error:
        raise ContractError(f"does not run on {x.shape}: {' '.join(str(error).split())[:400]}") from error
    return y


def equal(y: Array, wanted: Array, where: str) -> None:
    """Equal shape, type and bits."""
    require(y.shape == wanted.shape, f"{where}: shape {y.shape}, not {wanted.shape}")
    require(y.dtype == wanted.dtype, f"{where}: {y.dtype}, not {wanted.dtype}")
    differ = np.argwhere(y != wanted)
    if len(differ):
        place = tuple(int(i) for i in differ[0])
        raise ContractError(
            f"{where}: {len(differ)} of {y.size} values differ, first at {place}: {y[place]}, not {wanted[place]}"
        )


def emit(name: str, strategy: Strategy, case: Case) -> onnx.ModelProto | Refusal:
    """The rewritten model of a case, or the refusal."""
    model, found = original(case)
    site = found.sites[0]
    fragment = plan(name, strategy, site.geometry, case.opset, storage=site.storage)
    if isinstance(fragment, Refusal):
        return fragment
    return rewrite(model, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto


def check(name: str, strategy: Strategy, case: Case) -> str:
    """Hold a strategy to its promise on one case: "emitted" or "refused", or `ContractError`."""
    strategy = with_max_dilation(strategy, case.max_dilation)
    after = emit(name, strategy, case)
    if isinstance(after, Refusal):
        check_refusal(name, strategy, case, after.reason)
        return "refused"
    check_structure(name, strategy, case, original(case)[0], after)
    try:
        live = session(after)
    except RUN_ERRORS as error:
        raise ContractError(f"does not load: {' '.join(str(error).split())[:400]}") from error
    shapes = [(case.batch, case.extents)]
    if case.unknown or case.unknown_batch:
        shapes += sizes(case)
    for batch, extents in shapes:
        x, wanted = _reference(case, batch, extents)
        equal(run(live, x), wanted, f"batch {batch}, extents {extents}")
    for batch, extents in too_small(case):
        if not native_raises(case, batch, extents):
            continue
        try:
            (y,) = live.run(None, {"x": np.ones((batch, case.in_channels, *extents), np.float32)})
        except RUN_ERRORS:
            continue
        raise ContractError(f"extents {extents} are too small for the original, but this returns {y.shape}")
    if case.unknown_batch:
        # Not optimised: ONNX Runtime's ReshapeFusion makes computed sizes -1, ambiguous beside 0 (see test_contract).
        y = run(session(after, optimised=False), np.ones((0, case.in_channels, *case.extents), np.float32))
        require(y.shape == (0, case.out_channels, *case.outs()), f"zero batch gives {y.shape}")
    return "emitted"
