"""The layers of a built engine, from the builder's log or from the engine inspector: the only file that reads either.

Both are texts of the library without a promise. The log's form was read off TensorRT for RTX 1.7, the inspector's off
the documentation of TensorRT 10 (`Bindings`, `Format/Datatype`) and 11 (`I/O Tensors`, `Datatype`, `Format`). Fields
that are not known are passed over; a list without a single layer is an error, never "no layers".
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto

from dilrewrite.errors import FAULTS, FailedError

BUILD_LOG = "build log"
INSPECTOR = "engine inspector"

_FIELD = re.compile(r"(?:^|, )([A-Za-z][A-Za-z /_]*?): ")
_HEAD = re.compile(r"Name: (.*?), LayerType: (\w+)(?=, Inputs: )")
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$|,? ?\[[A-Z][A-Za-z ]*: )")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_CONVOLVES = re.compile(r"correlation|deconv|conv", re.IGNORECASE)
_MAY_HOLD_ONE = re.compile(r"fusion|myelin|foreign", re.IGNORECASE)
_MEMORY = re.compile(r"(Max Scratch Memory|Total Activation Memory|Total Weights Memory): (\d+) bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of an engine."""

    name: str
    """Its name."""
    kind: str
    """Its type."""
    inputs: tuple[str, ...]
    """Element types that it reads, e.g. `Half`."""
    outputs: tuple[str, ...]
    """Element types that it writes."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it stands for; may be empty."""
    tactic: str = ""
    """Name of the kernel that computes it; may be empty."""

    def convolves(self, convolutions: Collection[str]) -> bool:
        """Say whether it computes a convolution; `convolutions` are the names of the ONNX nodes that are some."""
        if _CONVOLVES.search(self.kind):
            return True
        return bool(_MAY_HOLD_ONE.search(self.kind)) and any(entry_of(node, convolutions) for node in self.nodes)

    def hides_types(self, convolutions: Collection[str]) -> bool:
        """Say whether it tells no types of a convolution in it: a generated kernel for several nodes may hold Casts."""
        return not self.convolves(convolutions) and len(self.nodes) > 1

    def reads(self, convolutions: Collection[str]) -> str:
        """Return the element type that a convolution in it reads, or makes where all is constant, or "unknown"."""
        types = () if self.hides_types(convolutions) else self.inputs or self.outputs
        return types[0] if types else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The layers of an engine in order, where they were read, and the memory that the builder states, in bytes."""

    source: str
    layers: tuple[Layer, ...]
    memory: Mapping[str, int]

    def kinds(self) -> dict[str, int]:
        """Return how many layers there are of each type, sorted by it."""
        return dict(sorted(Counter(layer.kind for layer in self.layers).items()))

    def convolutions(self, names: Collection[str]) -> tuple[Layer, ...]:
        """Return the layer of every convolution, in order; `names` are those of the ONNX nodes that are some.

        A layer that holds two is there twice. Of several layers that name a node, one counts: those of a convolution
        first (a ConvTranspose with groups has one per group), a generated kernel where there is no other.
        """
        places: dict[str, list[int]] = {}
        found: list[int] = []
        for place, layer in enumerate(self.layers):
            entries = [node for node in layer.nodes if entry_of(node, names)]
            for entry in entries:
                places.setdefault(entry, []).append(place)
            if not entries and layer.convolves(names):
                found.append(place)
        times = Counter(names)
        for entry, holders in places.items():
            sure = [place for place in holders if self.layers[place].convolves(names)]
            found += (sure or holders)[: times[entry_of(entry, names)]]
        return tuple(self.layers[place] for place in sorted(found))

    def datatypes(self, names: Collection[str]) -> dict[str, int]:
        """Return how many convolutions read data of each element type; "unknown" where none is told."""
        return dict(sorted(Counter(layer.reads(names) for layer in self.convolutions(names)).items()))


def parsed_name(node: NodeProto) -> str:
    """Return what TensorRT's parser calls an ONNX node."""
    return node.name or (f"node_of_{node.output[0]}" if node.output else "")


def entry_of(entry: str, names: Collection[str]) -> str:
    """Return which of some ONNX nodes an entry of a layer means, "" for none of them.

    A node of a function or a branch is entered as `NAME | CALL (FUNCTION)`, with a part for every level.
    """
    while entry and entry not in names:
        entry = entry.rpartition(" | ")[0]
    return entry


def from_log(messages: Iterable[str]) -> Layers:
    """Return the layers that a builder at full verbosity logged.

    Raises FailedError when it listed none that can be read.
    """
    messages = list(messages)
    lists = [message.split("\n")[1:] for message in messages if message.startswith("Layers:")]
    lines = [line for lines in lists for line in _first_section(lines) if line.startswith("Name: ")]
    layers = [_layer(_fields(line), _DATATYPE.findall) for line in lines]
    if not layers:
        why = "lists no layers" if not lists else "has a list of layers that cannot be read"
        raise FailedError(
            f"the build log {why}",
            hint=f"this version of TensorRT writes it differently: {FAULTS} says how to report it",
        )
    told = filter(None, map(_MEMORY.search, messages))
    memory = {match[1].lower().replace(" ", "_") + "_bytes": int(match[2]) for match in told}
    return Layers(source=BUILD_LOG, layers=tuple(layers), memory=memory)


def _first_section(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines before the next section, which is of the engine's own inputs and outputs."""
    return itertools.takewhile(lambda line: line.startswith(("Name: ", " ")) or not line.strip(), lines)


def _layer(fields: Mapping[str, Any], types: Callable[[Any], Iterable[str]]) -> Layer:
    """Return a layer of what is told of it; `types` reads the element types of its inputs or outputs."""
    return Layer(
        name=str(fields.get("Name", "")),
        kind=str(fields.get("LayerType", "unknown")),
        inputs=tuple(types(fields.get("Inputs", ""))),
        outputs=tuple(types(fields.get("Outputs", ""))),
        nodes=onnx_nodes(str(fields.get("Metadata", ""))),
        tactic=str(fields.get("TacticName", "")),
    )


def _fields(line: str) -> dict[str, str]:
    """Return the fields of a line; where a name holds half a bracket or a field, those behind it."""
    found = _outer_fields(line)
    head = _HEAD.match(line)
    if "LayerType" not in found and head:
        found = {**_outer_fields(line[head.end() :]), "Name": head[1], "LayerType": head[2]}
    return found


def _outer_fields(line: str) -> dict[str, str]:
    """Return the fields of `Name: a, LayerType: b, Inputs: [ { Name: ... }], ...`: those outside of any bracket."""
    fields: list[re.Match[str]] = []
    depth = 0
    head, separator, tail = line.partition(", Metadata: ")  # ends the line, and names may hold brackets
    for place, character in enumerate(head):
        depth = max(depth + (character in "[{") - (character in "]}"), 0)
        if depth == 0 and (place == 0 or character == ",") and (match := _FIELD.match(head, place)):
            fields.append(match)
    ends = [match.start() for match in fields[1:]] + [len(head)]
    found = {match[1]: head[match.end() : end] for match, end in zip(fields, ends, strict=True)}
    return {**found, "Metadata": tail} if separator else found


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Return the names of the ONNX nodes in a layer's metadata, each once."""
    return tuple(dict.fromkeys(_ONNX.findall(metadata)))


def from_inspector(text: str) -> Layers:
    """Return the layers of the engine inspector's JSON.

    Raises FailedError when it tells none: the engine was built with too little profiling verbosity.
    """
    hint = "build the engine with detailed profiling verbosity, as `dilrewrite build` does"
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise FailedError(f"the engine inspector's text is no JSON: {error}", hint=hint) from error
    entries = plain.get("Layers", []) if isinstance(plain, dict) else []
    layers = tuple(_layer(entry, _inspected_types) for entry in entries if isinstance(entry, dict))
    if not layers:
        raise FailedError("the engine inspector tells no layers in detail", hint=hint)
    return Layers(source=INSPECTOR, layers=layers, memory={})


_FORMATS = {
    "bfloat16": "BFloat16",
    "bf16": "BFloat16",
    "fp32": "Float",
    "fp16": "Half",
    "int8": "Int8",
    "fp8": "FP8",
    "int32": "Int32",
    "half": "Half",
    "float": "Float",
}
"""The element type in TensorRT 10's `Format/Datatype`: prose ("Row major linear FP32"), or a word ("Half")."""


def _inspected_types(entries: Any) -> Iterator[str]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            prose = str(entry.get("Format/Datatype", "")).lower()
            told = next((word for key, word in _FORMATS.items() if key in prose), "unknown")
            yield told if entry.get("Datatype") is None else str(entry["Datatype"])
