"""Seeded damage to ONNX files, and a child process that runs the command line on it within bounds.

A mutation never lands in the weights: they are 99 % of a file, and any bytes are valid there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import AttributeProto, ModelProto, TensorProto, helper

SECONDS = 60  # of the processor, for one file
BEFORE = ""  # what a test of this file makes the child do first
HANGS = 5  # times as long by the clock is a hang, whatever else the machine does
MEMORY_BYTES = 8 << 30  # of addresses, the mapped libraries among them
# fmt: off
WEIGHTS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
INTS = (0, 1, -1, 2, 3, 7, 255, 16384, 2**31 - 1, 2**31, -(2**31), 2**32 + 1, 2**53, 2**62, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "../w.bin", "ai.onnx", "other.domain", "\x1b[31mred\x1b[0m\n", "a" * 3000, "SAME_UPPER", "9" * 99)
OPERATORS = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "MaxPool", "AveragePool", "Relu", "Clip",
    "LeakyRelu", "Constant", "Identity", "QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "Reshape", "Cast",
    "Transpose", "Concat", "Split", "Resize", "Pad", "Slice", "Gather", "ConstantOfShape", "Expand", "NoSuchOperator",
)
OFTEN = {"graph": 12, "node": 8, "attribute": 4, "initializer": 3, "input": 2, "type": 3, "tensor_type": 3, "shape": 3}
# fmt: on


# -- damage --------------------------------------------------------------------------------------------------------


def mutated(data: bytes, seed: int) -> bytes:
    """Return the file `data` of a model with one to three things changed."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return _bytes_changed(data, rng)
    model = ModelProto()
    model.CopyFrom(_parsed(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_KINDS)(model, rng)
    return model.SerializeToString()


@functools.lru_cache(maxsize=16)
def _parsed(data: bytes) -> ModelProto:
    return ModelProto.FromString(data)


@functools.lru_cache(maxsize=16)
def outside(data: bytes) -> tuple[tuple[int, int, str], ...]:
    """Return (start, stop, kind) of all parts of the file outside the weights; kind is "text" or "other"."""
    return tuple(_outside(data, 0, len(data), ModelProto.DESCRIPTOR))


def _outside(data: bytes, at: int, stop: int, kind: Any) -> Iterator[tuple[int, int, str]]:
    while at < stop:
        start = at
        tag, at = _varint(data, at)
        field, wire = kind.fields_by_number.get(tag >> 3), tag & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            length, at = _varint(data, at)
            yield start, at, "other"
            if field is not None and field.message_type is not None:
                yield from _outside(data, at, at + length, field.message_type)
            elif field is not None and field.name not in WEIGHTS:
                yield at, at + length, "text"
            at += length
            continue
        if field is None or field.name not in WEIGHTS:
            yield start, at, "other"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            return value, at


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    parts, found = outside(data), bytearray(data)
    texts = [part for part in parts if part[2] == "text" and part[1] > part[0]]
    start, stop, _ = rng.choice(texts if rng.random() < 0.5 else parts)
    at = rng.randrange(start, max(stop, start + 1))
    kind = rng.randrange(6)
    if kind == 0:
        found[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        found[at] = rng.choice((0, 1, 127, 128, 255))
    elif kind == 2:
        found[start:stop] = rng.randbytes(stop - start)
    elif kind == 3:
        found[at] = 0xFF  # no UTF-8 holds it
    elif kind == 4:
        del found[at : at + rng.choice((1, 2, 8))]
    else:
        found = found[:at]
    return bytes(found)


def _any_field(model: ModelProto, rng: random.Random) -> None:
    """Change a field of some message."""
    message: Any = model
    while True:
        below = [
            (field, value)
            for field, value in message.ListFields()
            if field.message_type is not None and field.name not in WEIGHTS
        ]
        if not below or rng.random() < 0.15:
            break
        field, value = rng.choices(below, [OFTEN.get(f.name, 1) for f, _ in below])[0]
        message = value if not _repeated(field) else rng.choice(value)
    fields = [field for field in message.DESCRIPTOR.fields if field.name not in WEIGHTS]
    present = [field for field, _ in message.ListFields() if field.name not in WEIGHTS]
    _change(message, rng.choice(present if present and rng.random() < 0.8 else fields), rng)


def _repeated(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)
    return bool(repeated) if repeated is not None else field.label == field.LABEL_REPEATED


def _change(message: Any, field: Any, rng: random.Random) -> None:
    if not _repeated(field):
        if field.message_type is not None:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _value(field, rng))
        return
    values, kind = getattr(message, field.name), rng.randrange(5)
    if not values or kind == 0:
        if field.message_type is None:
            values.append(_value(field, rng))
        else:
            values.add()
        return
    at = rng.randrange(len(values))
    if kind == 1:
        del values[at]
    elif kind == 2:
        message.ClearField(field.name)
    elif field.message_type is not None:
        values.add().CopyFrom(values[at])
    else:
        values[at] = _value(field, rng)


def _value(field: Any, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice(list(field.enum_type.values_by_number))
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    number = rng.choice(INTS)
    if kind == field.CPPTYPE_INT32:
        return max(-(2**31), min(number, 2**31 - 1))
    if kind == field.CPPTYPE_UINT64:
        return abs(number)
    return number if kind == field.CPPTYPE_INT64 else bool(number)


def _node(model: ModelProto, rng: random.Random) -> Any:
    """Return a node, more often a convolution."""
    nodes = list(model.graph.node) or [model.graph.node.add()]
    convs = [node for node in nodes if node.op_type == "Conv"]
    return rng.choice(convs if convs and rng.random() < 0.6 else nodes)


def _rewired(model: ModelProto, rng: random.Random) -> None:
    """Let a node read another tensor: its own, a later one, none."""
    node = _node(model, rng)
    others = [name for other in model.graph.node for name in (*other.input, *other.output)]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*node.output, rng.choice(others or [""]), "", "lost"))


def _nodes_swapped(model: ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    if len(nodes) > 1:
        i, j = rng.sample(range(len(nodes)), 2)
        first = type(nodes[i])()
        first.CopyFrom(nodes[i])
        nodes[i].CopyFrom(nodes[j])
        nodes[j].CopyFrom(first)


def _renamed(model: ModelProto, rng: random.Random) -> None:
    """Give a node's output the name of another tensor."""
    node, other = _node(model, rng), rng.choice(model.graph.node)
    if node.output and other.output:
        node.output[0] = rng.choice((*other.output, *other.input))


def _another_operator(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).op_type = rng.choice(OPERATORS)


def _another_attribute(model: ModelProto, rng: random.Random) -> None:
    """Give a node an attribute of odd values."""
    names = ("dilations", "pads", "strides", "kernel_shape", "group", "auto_pad", "axis", "block_size", "value")
    numbers = [rng.choice(INTS) for _ in range(rng.randrange(1, 7))]
    made = helper.make_attribute(rng.choice(names), rng.choice((numbers, rng.choice(INTS), rng.choice(TEXTS), 0.5)))
    node = _node(model, rng)
    kept = [attribute for attribute in node.attribute if attribute.name != made.name]
    if rng.random() < 0.3:
        made.type = rng.choice(AttributeProto.AttributeType.values())
    del node.attribute[:]
    node.attribute.extend([*kept, made])


def _another_number(model: ModelProto, rng: random.Random) -> None:
    """Change one number of a convolution's attributes."""
    numbers = [a for a in _node(model, rng).attribute if a.ints or a.type == AttributeProto.INT]
    if numbers:
        attribute = rng.choice(numbers)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTS)
        else:
            attribute.i = rng.choice(INTS)


def _another_dim(model: ModelProto, rng: random.Random) -> None:
    """Change a dim of an input, an output or a tensor."""
    graph = model.graph
    tensors = list(graph.initializer)
    if tensors and rng.random() < 0.5:
        tensor = rng.choice(tensors)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTS)
        return
    values = [v for v in (*graph.input, *graph.output, *graph.value_info) if v.type.tensor_type.shape.dim]
    if values:
        rng.choice(rng.choice(values).type.tensor_type.shape.dim).dim_value = rng.choice(INTS)


def _quantised(model: ModelProto, rng: random.Random) -> None:
    """Put a QuantizeLinear or DequantizeLinear without all it needs before or behind a node."""
    node = _node(model, rng)
    op = rng.choice(("QuantizeLinear", "DequantizeLinear"))
    if node.input and rng.random() < 0.5:
        place = rng.randrange(len(node.input))
        made = helper.make_node(op, [node.input[place], *["x"] * rng.randrange(3)], ["made"])
        node.input[place] = "made"
    elif node.output:
        made = helper.make_node(op, [node.output[0], *["x"] * rng.randrange(3)], ["made"])
    else:
        return
    model.graph.node.add().CopyFrom(made)


def _external(model: ModelProto, rng: random.Random) -> None:
    """Move a tensor to a data file that is not there, or not so."""
    tensors = list(model.graph.initializer)
    if tensors:
        tensor = rng.choice(tensors)
        tensor.data_location = TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            value = rng.choice(("model.onnx", "9" * 5000, "-1", "0", "1e3", "\x00", "."))
            tensor.external_data.add(key=key, value=value)


def _in_a_body(model: ModelProto, rng: random.Random) -> None:
    """Hang a copy of the graph, or of a part, into an attribute of a node."""
    nodes = list(model.graph.node)
    body = helper.make_graph(nodes[: rng.randrange(1, 9)], "body", [], list(model.graph.output)[: rng.randrange(2)])
    node = _node(model, rng)
    node.attribute.append(helper.make_attribute(rng.choice(("then_branch", "else_branch", "body")), body))
    if rng.random() < 0.7:
        node.op_type = rng.choice(("If", "Loop", "Scan"))


def _in_a_function(model: ModelProto, rng: random.Random) -> None:
    """Let a node call a function that is odd: recursive, of other inputs, without an opset."""
    node = _node(model, rng)
    names = [rng.choice(TEXTS) for _ in range(rng.randrange(3))]
    inner = helper.make_node("F", names, ["b"], domain="odd") if rng.random() < 0.5 else node
    imports = [helper.make_opsetid("", rng.choice(INTS))] if rng.random() < 0.7 else []
    model.functions.append(helper.make_function("odd", "F", names, ["b"], [inner], imports))
    if rng.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("odd", 1))
    node.op_type, node.domain = "F", "odd"


# fmt: off
_KINDS = (
    _any_field, _any_field, _any_field, _rewired, _rewired, _nodes_swapped, _renamed, _another_operator,
    _another_attribute, _another_number, _another_number, _another_dim, _another_dim, _quantised, _external,
    _in_a_body, _in_a_function,
)
# fmt: on


# -- the child -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the command line made of one mutation; `problem` is empty when it is as it should be.

    `loaded` says whether the file is still a model that can be read.
    """

    model: str
    seed: int
    code: int | None
    seconds: float
    loaded: bool = False
    problem: str = ""


def run(
    models: Sequence[Path], seeds: Sequence[int], command: Sequence[str], *, seconds: int = SECONDS
) -> list[Outcome]:
    """Return the outcome of `command` on a mutation of `models[seed % len(models)]` for every seed.

    In `command`, MODEL stands for the mutated file, ORIGINAL for the model, OUT for a file to write, SITE for one of
    the model's dilated Convs, STRATEGY for a form and SEED for the seed. A child that hangs or dies is a problem of its
    seed, and another takes the rest.
    """
    found: list[Outcome] = []
    left = list(seeds)
    while left:
        done, error = _child(models, left, command, seconds)
        found += done
        left = left[len(done) :]
        if error is not None and left:
            path = models[left[0] % len(models)]
            found.append(Outcome(path.stem, left[0], None, float(seconds), problem=f"died or hung: {error}"))
            del left[0]
    return found


def _child(
    models: Sequence[Path], seeds: Sequence[int], command: Sequence[str], seconds: int
) -> tuple[list[Outcome], str | None]:
    asked = {
        "models": [str(path) for path in models],
        "seeds": list(seeds),
        "command": list(command),
        "busy_s": seconds,
        "hang_s": HANGS * seconds,
    }
    code = f"import sys; sys.path[:] = {sys.path!r}\n{BEFORE}\nfrom tests.mutations import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    lines = [line for line in ended.stdout.splitlines() if line.endswith("}")]
    done = [Outcome(**json.loads(line)) for line in lines]
    return done, None if ended.returncode == 0 else f"exit {ended.returncode}\n{ended.stderr[-3000:]}"


def main() -> None:
    """Run in the child: one line of JSON per seed."""
    import os
    import time

    import typer.main

    from dilrewrite.cli import main as command_line
    from dilrewrite.forms.strategies import strategies
    from dilrewrite.proof import hurried
    from dilrewrite.sites.find import find

    typer.main.get_command = functools.cache(typer.main.get_command)  # else half of the time goes into making it
    hurried.FALLBACK_S = 2.0  # else most of the time goes into a few models that run on the reference backend alone

    asked = json.loads(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGPROF, chain=True)  # tell where, then die of it
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ["DILREWRITE_CACHE"] = str(Path(place) / "timings.sqlite")
        contents = [Path(path).read_bytes() for path in asked["models"]]
        sites = [[site.name for site in find(_parsed(data)).sites] or ["none"] for data in contents]
        for seed in asked["seeds"]:
            which = seed % len(contents)
            Path("model.onnx").write_bytes(mutated(contents[which], seed))
            Path("out.onnx").unlink(missing_ok=True)
            words = {
                "MODEL": "model.onnx",
                "ORIGINAL": asked["models"][which],
                "OUT": "out.onnx",
                "SEED": str(seed),
                "SITE": re.escape(sites[which][seed // len(contents) % len(sites[which])]),
                "STRATEGY": sorted(strategies())[seed % len(strategies())],
            }
            arguments = [words.get(word, word) for word in asked["command"]]
            signal.setitimer(signal.ITIMER_PROF, asked["busy_s"])
            faulthandler.dump_traceback_later(asked["hang_s"], exit=True)
            start = time.process_time()
            code, problem = _outcome(command_line, arguments)
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - start
            name = Path(asked["models"][which]).stem
            answer = Outcome(name, seed, code, round(seconds, 3), code == 0 or _loads("model.onnx"), problem)
            answers.write(json.dumps({name: getattr(answer, name) for name in Outcome.__slots__}) + "\n")
            answers.flush()


def _loads(path: str) -> bool:
    from dilrewrite import UsageError
    from dilrewrite.model.load import load

    try:
        load(path)
    except UsageError:
        return False
    return True


def _outcome(command_line: Any, arguments: Sequence[str]) -> tuple[int | None, str]:
    """Return the exit code, and what is wrong with it or with what was said."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line(arguments)
    except BaseException:
        return None, traceback.format_exc()
    said = err.getvalue()
    if code not in (0, 1, 2, 3, 4):
        return code, f"exit code {code}: {said}"
    if code in (1, 2, 4) and not (said.startswith("dilrewrite: ") and said.count("\n") == 1):
        return code, f"exit code {code}, not one line: {said!r}"
    return code, ""
