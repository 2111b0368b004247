"""Random 1-D networks of whole numbers: every operator of the lift table that is exact on them, wired at random."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper


class Net:
    """A network that grows node by node; `live` are the tensors [2, C, L] that may be read: {name: (C, L)}."""

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.live: dict[str, tuple[int, int]] = {}

    def name(self) -> str:
        return f"t{len(self.nodes)}"

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def whole(self, *shape: int) -> str:
        """Return a constant of few small whole numbers."""
        return self.constant(self.numbers.integers(-1, 2, shape) * (self.numbers.random(shape) < 0.4))

    def weights_of(self, *shape: int) -> str:
        """Return weights, at times quantised."""
        if self.rng.random() < 0.8:
            return self.whole(*shape)
        values = self.numbers.integers(-1, 2, shape) * (self.numbers.random(shape) < 0.4)
        channels = self.rng.random() < 0.5
        scale, zero = (np.ones(shape[0]), np.zeros(shape[0])) if channels else (1.0, 2)
        operands = [self.constant(values + (0 if channels else 2), np.int8), self.constant(scale)]
        output = self.name()
        inputs = [*operands, self.constant(zero, np.int8)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], axis=0))
        return output

    def node(self, op: str, inputs: list[str], channels: int, length: int, **attributes: Any) -> str:
        output = self.name()
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        self.live[output] = (channels, length)
        return output

    def pick(self) -> tuple[str, int, int]:
        names = list(self.live)
        name = self.rng.choice(names[-4:] if self.rng.random() < 0.8 else names)
        return name, *self.live[name]

    def alike(self, name: str) -> str:
        """Return a tensor of the same sizes, which may be the same."""
        return self.rng.choice([other for other, sizes in self.live.items() if sizes == self.live[name]])

    # -- what may come next --------------------------------------------------------------------------------------

    def conv(self) -> None:
        x, c, length = self.pick()
        k, d, s = self.rng.randint(1, 4), self.rng.choice((1, 1, 2, 3, 4)), self.rng.choice((1, 1, 1, 2))
        group = self.rng.choice([1, 1, c])
        outputs = c if group == c else self.rng.choice((2, 4))
        pads = [self.rng.randint(0, 4), self.rng.randint(0, 4)]
        out = (length + sum(pads) - d * (k - 1) - 1) // s + 1
        if out < 1:
            return
        bias = [self.whole(outputs)] if self.rng.random() < 0.5 else []
        attributes: dict[str, Any] = {"dilations": [d], "strides": [s], "pads": pads, "group": group}
        if self.rng.random() < 0.5:
            attributes["kernel_shape"] = [k]
        self.bounded(self.node("Conv", [x, self.weights_of(outputs, c // group, k), *bias], outputs, out, **attributes))

    def chomp(self) -> None:
        """A causal Conv as it is often exported: padded on both sides, then the end cut off."""
        x, c, length = self.pick()
        k, d, s = self.rng.randint(2, 3), self.rng.choice((1, 2, 3, 4)), self.rng.choice((1, 1, 1, 2))
        p = d * (k - 1)
        out = (length + p - 1) // s + 1
        cut = self.rng.choice((p, p, p + 1, 1)) // s
        if not 0 < cut < out:
            return
        y = self.node("Conv", [x, self.whole(4, c, k)], 4, out, dilations=[d], strides=[s], pads=[p, p])
        if self.rng.random() < 0.8:
            del self.live[y]
        ints = [self.constant([each], np.int64) for each in (0, -cut, self.rng.choice((2, -1)))]
        self.bounded(self.node("Slice", [y, *ints], 4, out - cut))

    def transposed(self) -> None:
        x, c, length = self.pick()
        k, s, more = self.rng.randint(1, 4), self.rng.choice((1, 2)), 0
        if length > 40:
            return
        d = 1 + len(self.nodes) % 3
        attributes: dict[str, Any] = {"strides": [s], "dilations": [d]}
        if s > 1:
            attributes["output_padding"] = [more := self.rng.randint(0, 1)]
        out = s * (length - 1) + d * (k - 1) + 1 + more
        self.bounded(self.node("ConvTranspose", [x, self.whole(c, 4, k)], 4, out, **attributes))

    def bounded(self, x: str) -> None:
        low, high = self.constant(-3.0), self.constant(3.0)
        self.node("Clip", [x, low, high], *self.live[x])

    def pointwise(self) -> None:
        x, c, length = self.pick()
        self.node(self.rng.choice(("Relu", "Neg", "Abs", "Sign", "Identity", "Floor")), [x], c, length)

    def two(self) -> None:
        x, c, length = self.pick()
        y = self.node(self.rng.choice(("Add", "Sub", "Max", "Min")), [x, self.alike(x)], c, length)
        self.bounded(y)

    def operand(self) -> None:
        x, c, length = self.pick()
        shape = self.rng.choice([(), (1,), (c, 1), (1, c, 1), (length,), (c, length), (2, 1, 1)])
        pair = [x, self.whole(*shape)]
        op = self.rng.choice(("Add", "Mul", "Sub", "PRelu", "Max"))
        if op == "PRelu":
            if shape == (2, 1, 1):
                return
        else:
            self.rng.shuffle(pair)
        self.bounded(self.node(op, pair, c, length))

    def choose(self) -> None:
        x, c, length = self.pick()
        test = self.constant(self.numbers.random((c, 1)) < 0.5, np.bool_)
        self.node("Where", [test, x, self.alike(x)], c, length)

    def join(self) -> None:
        x, c, length = self.pick()
        others = [name for name, sizes in self.live.items() if sizes[1] == length]
        y = self.rng.choice(others)
        if c + self.live[y][0] <= 12:
            self.node(
                "Concat",
                [x, y],
                c + self.live[y][0],
                length,
                axis=self.rng.choice((1, -2 if isinstance(length, int) else -3)),
            )

    def cut(self) -> None:
        x, c, length = self.pick()
        if self.rng.random() < 0.5 and c % 2 == 0:
            first, second = self.name(), f"{self.name()}b"
            self.nodes.append(helper.make_node("Split", [x], [first, second], axis=1, name=f"Split_{first}"))
            self.live[first] = self.live[second] = (c // 2, length)
        elif length > 4:
            begin, end = self.rng.randint(0, 2), self.rng.randint(1, 2)
            ints = [self.constant([each], np.int64) for each in (begin, -end, self.rng.choice((2, -1)))]
            self.node("Slice", [x, *ints], c, length - begin - end)

    def resized(self) -> None:
        x, c, length = self.pick()
        if length < 20:
            scales = [self.constant(each) for each in ([], [1.0, 1.0, 2.0])]
            corners = self.rng.choice(("half_pixel", "asymmetric", "align_corners"))
            given = {"mode": "nearest", "coordinate_transformation_mode": corners}
            self.node("Resize", [x, *scales], c, 2 * length, **given)

    def places(self) -> None:
        """Some channels, in another order, or some samples."""
        x, c, length = self.pick()
        axis = self.rng.choice((1, 2, -1))
        count = self.rng.randint(1, 4)
        size = c if axis == 1 else length
        indices = self.constant([self.rng.randrange(-size, size) for _ in range(count)], np.int64)
        self.node("Gather", [x, indices], *((count, length) if axis == 1 else (c, count)), axis=axis)

    def repeated(self) -> None:
        x, c, length = self.pick()
        if self.rng.random() < 0.5:
            sizes = self.rng.choice(([1, c, 1], [length], [2, 1, 1]))
            self.node("Expand", [x, self.constant(sizes, np.int64)], c, length)
        elif c < 8 and length < 20:
            times = self.rng.choice(([1, 2, 1], [1, 1, 2]))
            self.node("Tile", [x, self.constant(times, np.int64)], c * times[1], length * times[2])

    def folded(self) -> None:
        """Channels apart and, in another order, together again."""
        x, c, length = self.pick()
        if c % 2 == 0:
            apart = self.node("Reshape", [x, self.constant([0, 2, c // 2, -1], np.int64)], c, length)
            turned = self.node("Transpose", [apart], c, length, perm=[0, 2, 1, 3])
            self.node("Reshape", [turned, self.constant([0, c, length or -1], np.int64)], c, length)
            del self.live[apart], self.live[turned]

    def quantized(self) -> None:
        """Through integers and back, with scales of 1."""
        x, c, length = self.pick()
        channels = self.rng.random() < 0.5
        scale, zero = ([1.0] * c, [0] * c) if channels else (1.0, 3)
        operands = [self.constant(scale), self.constant(zero, np.int8)]
        integers = self.node("QuantizeLinear", [x, *operands], c, length, axis=1)
        self.node("DequantizeLinear", [integers, *operands], c, length, axis=1)
        del self.live[integers]

    def pad(self) -> None:
        x, c, length = self.pick()
        begin, end = self.rng.randint(0, 3), self.rng.randint(0, 3)
        mode = self.rng.choice(("constant", "edge", "reflect") if length > 3 else ("constant",))
        pads = self.constant([0, 0, begin, 0, 0, end], np.int64)
        self.node("Pad", [x, pads], c, length + begin + end, mode=mode)

    def pool(self) -> None:
        x, c, length = self.pick()
        k = self.rng.randint(1, 3)
        if length >= k:
            s = self.rng.choice((1, 2))
            self.node("MaxPool", [x], c, (length - k) // s + 1, kernel_shape=[k], strides=[s])

    def turned(self) -> None:
        """Something over channels, done behind a transposition."""
        x, c, length = self.pick()
        there = self.node("Transpose", [x], c, length, perm=[0, 2, 1])
        del self.live[there]
        op = self.rng.choice(("Hardmax", "Mul", "MatMul"))
        operand = {"Hardmax": [], "Mul": [self.whole(c)], "MatMul": [self.whole(c, c)]}[op]
        done = self.node(op, [there, *operand], c, length)
        del self.live[done]
        self.bounded(self.node("Transpose", [done], c, length, perm=[0, 2, 1]))

    def gate(self) -> None:
        """A gate from a reduction over time or over channels."""
        x, c, length = self.pick()
        axes, keep = self.rng.choice(((2, 1), (2, 0), (1, 1)))
        small = self.node("ReduceMax", [x], c, length, axes=[axes], keepdims=keep)
        del self.live[small]
        if not keep:
            wide = self.node("Unsqueeze", [small, self.constant([2], np.int64)], c, length)
            del self.live[wide]
            small = wide
        self.bounded(self.node("Add", [x, small], c, length))

    def outside(self) -> None:
        """An operator that is in no table."""
        x, c, length = self.pick()
        self.node("Einsum", [x], c, length, equation="abc->abc")

    def sizes(self, length: int) -> Any:
        return length

    steps_more = (
        "operand",
        "operand",
        "transposed",
        "choose",
        "chomp",
        "chomp",
        "resized",
        "places",
        "repeated",
        "folded",
        "quantized",
        "join",
        "cut",
        "pad",
        "pool",
        "turned",
        "gate",
        "outside",
    )

    def model(self, size: int, *, unknown: bool) -> ModelProto:
        """Return a network of about `size` operators, its batch and length unknown or not."""
        channels, length = self.rng.choice((2, 4)), self.rng.randint(5, 24)
        self.live = {"x": (channels, self.sizes(length))}
        if self.rng.random() < 0.3:
            self.live["z"] = self.live["x"]
        inputs = dict(self.live)
        steps = [self.conv] * 6 + [self.pointwise, self.two] * 2 + [getattr(self, name) for name in self.steps_more]
        while len(self.nodes) < size:
            self.rng.choice(steps)()
        read = {name for node in self.nodes for name in node.input}
        outputs = [name for name in self.live if name not in read and name not in inputs]
        inner = [name for name in self.live if name in read and name not in inputs]
        outputs += self.rng.sample(inner, min(len(inner), self.rng.choice((0, 0, 1))))
        return self.finished(inputs, outputs, unknown=unknown)

    def finished(self, inputs: Iterable[str], outputs: Iterable[str] = (), *, unknown: bool) -> ModelProto:
        """Return the network with these inputs and outputs (none: the last tensor)."""

        def value(name: str, given: bool) -> onnx.ValueInfoProto:
            c, length = self.live[name]
            spatial = length if isinstance(length, tuple) else (length,)
            shape = ["N", c, *(f"T{axis}" for axis in range(len(spatial)))] if unknown else [2, c, *spatial]
            if not given:
                shape = [f"{name}_0", c, *(f"{name}_{axis + 2}" for axis in range(len(spatial)))]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "net",
            [value(name, True) for name in inputs],
            [value(name, False) for name in outputs or [self.nodes[-1].output[0]]],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def within(self, model: ModelProto) -> ModelProto:
        """Return the network as both branches of an If, its weights outside."""
        outputs = [value.name for value in model.graph.output]
        branches = []
        for branch in ("then_branch", "else_branch"):
            graph = helper.make_graph(model.graph.node, branch, [], model.graph.output)
            own = {name: f"{branch}_{name}" for node in graph.node for name in node.output}
            for node in graph.node:
                node.input[:] = [own.get(name, name) for name in node.input]
                node.output[:] = [own[name] for name in node.output]
            for value in graph.output:
                value.name = own[value.name]
            branches.append(graph)
        test = numpy_helper.from_array(np.bool_(self.rng.random() < 0.5), "test")
        node = helper.make_node("If", ["test"], outputs, then_branch=branches[0], else_branch=branches[1])
        around = helper.make_graph(
            [node], "net", model.graph.input, model.graph.output, [*model.graph.initializer, test]
        )
        return helper.make_model(around, opset_imports=model.opset_import, ir_version=8)

    def feeds(self, model: ModelProto) -> dict[str, Any]:
        """Return whole numbers for the inputs."""
        return {
            value.name: self.numbers.integers(-2, 3, np.hstack([2, *self.live[value.name]])).astype(np.float32)
            for value in model.graph.input
        }


class Flat(Net):
    """A network for phases, of 1 to 3 spatial axes: dilated Convs of all kinds of pads, and what may stand between."""

    def __init__(self, seed: int, rank: int = 2, opset: int = 17) -> None:
        super().__init__(seed, opset)
        self.rank = rank

    def few(self, least: int, most: int) -> list[int]:
        """Return a number for each axis."""
        return [self.rng.randint(least, most) for _ in range(self.rank)]

    def conv(self) -> None:
        x, c, size = self.pick()
        k, d = self.few(1, 3), [self.rng.choice((1, 2, 2, 2, 4, 3)) for _ in range(self.rank)]
        if self.rng.random() < 0.7:
            d = [self.rng.choice((2, 4))] * self.rank
        group = self.rng.choice((1, 1, 1, c))
        outputs = c if group == c else self.rng.choice((2, 4))
        reach = [a * (b - 1) for a, b in zip(d, k, strict=True)]
        kind, none = self.rng.choice(("same", "same", "valid", "causal", "any")), [0] * self.rank
        begin, end = {
            "same": ([r // 2 for r in reach], [r - r // 2 for r in reach]),
            "valid": (none, none),
            "causal": (reach, none),
            "any": (self.few(0, 3), self.few(0, 3)),
        }[kind]
        out = tuple(n + a + b - r for n, a, b, r in zip(size, begin, end, reach, strict=True))
        if min(out) < 1:
            return
        bias = [self.whole(outputs)] if self.rng.random() < 0.5 else []
        attributes = {"dilations": d, "pads": [*begin, *end], "kernel_shape": k, "group": group}
        crops = [r - pad for r, pad in zip(reach * 2, [*begin, *end], strict=True)]
        if len(self.nodes) % 4 == 1 and min(crops) >= 0:  # the same sizes, made by a ConvTranspose
            weights = self.whole(c, outputs // group, *k)
            self.bounded(self.node("ConvTranspose", [x, weights, *bias], outputs, out, **{**attributes, "pads": crops}))
            return
        self.bounded(self.node("Conv", [x, self.whole(outputs, c // group, *k), *bias], outputs, out, **attributes))

    def operand(self) -> None:
        x, c, size = self.pick()
        shape = self.rng.choice([(), (c, *(1,) * self.rank), (1, c, *(1,) * self.rank)])
        self.bounded(self.node(self.rng.choice(("Add", "Mul", "Sub", "PRelu")), [x, self.whole(*shape)], c, size))

    def gate(self) -> None:
        """One value for each image and channel: a reduction over space, and it goes back to where it came from."""
        x, c, size = self.pick()
        op, axes = self.rng.choice(("ReduceMax", "ReduceMin", "ReduceSum", "GlobalMaxPool")), range(2, self.rank + 2)
        given = [self.constant([*axes], np.int64)] if op == "ReduceSum" else []
        attributes = {"axes": [*axes]} if op in ("ReduceMax", "ReduceMin") else {}
        small = self.node(op, [x, *given], c, size, **attributes)
        del self.live[small]
        self.bounded(self.node(self.rng.choice(("Add", "Mul", "Max")), [self.alike(x), small], c, size))

    def above(self) -> None:
        """Zero does not stay zero."""
        x, c, size = self.pick()
        self.node("Clip", [x, self.constant(1.0), self.constant(3.0)], c, size)

    def choose(self) -> None:
        x, c, size = self.pick()
        test = self.constant(self.numbers.random((c, *(1,) * self.rank)) < 0.5, np.bool_)
        self.node("Where", [test, x, self.alike(x)], c, size)

    def channels(self) -> None:
        x, c, size = self.pick()
        if c % 2 == 0:
            first, second = self.name(), f"{self.name()}b"
            self.nodes.append(helper.make_node("Split", [x], [first, second], axis=1, name=f"Split_{first}"))
            self.live[first] = self.live[second] = (c // 2, size)

    def cut(self) -> None:
        x, c, size = self.pick()
        if min(size) > 5:
            begin, end = self.rng.randint(0, 3), self.rng.randint(0, 2)
            axis = self.rng.randrange(2, self.rank + 2)
            ints = [self.constant([each], np.int64) for each in (begin, -end or 2**40, axis)]
            out = tuple(n - begin - end if place + 2 == axis else n for place, n in enumerate(size))
            self.node("Slice", [x, *ints], c, out)

    def chomp(self) -> None:
        """A Conv padded on both sides whose end is cut off again."""
        x, c, size = self.pick()
        n = self.rank
        y = self.node(
            "Conv", [x, self.whole(c, c, *(2,) * n)], c, tuple(m + 2 for m in size), dilations=[2] * n, pads=[2] * 2 * n
        )
        ints = [self.constant([each] * n, np.int64) for each in (0, -2)]
        self.bounded(self.node("Slice", [y, *ints, self.constant([*range(2, n + 2)], np.int64)], c, size))

    def pad(self) -> None:
        x, c, size = self.pick()
        begin, end, more = self.few(0, 3), self.few(0, 3), self.rng.choice((0, 0, 1)) if c < 8 else 0
        pads = self.constant([0, 0, *begin, 0, more, *end], np.int64)
        out = tuple(n + a + b for n, a, b in zip(size, begin, end, strict=True))
        value = [self.constant(0.0)] if self.rng.random() < 0.5 else []
        self.node("Pad", [x, pads, *value], c + more, out)

    def join(self) -> None:
        x, c, size = self.pick()
        y = self.rng.choice([name for name, sizes in self.live.items() if sizes[1] == size])
        if c + self.live[y][0] <= 12:
            self.node("Concat", [x, y], c + self.live[y][0], size, axis=self.rng.choice((1, -1 - self.rank)))

    def pool(self) -> None:
        x, c, size = self.pick()
        if min(size) > 2:
            self.node("MaxPool", [x], c, tuple(n - 1 for n in size), kernel_shape=[2] * self.rank)

    def sizes(self, length: int) -> tuple[int, ...]:
        most = 24 if self.rank < 3 else 9
        return tuple(min(each, most) for each in (length, *self.few(3, most)))[: self.rank]

    steps_more = ("operand", "cut", "chomp", "pad", "pool", "join", "gate", "above", "choose", "channels")
