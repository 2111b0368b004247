"""ncnn on the CPU, of models that pnnx converts. It takes models of fixed sizes with float32 inputs and outputs."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from dilrewrite.errors import one_line, printable
from dilrewrite.runtimes import (
    Array,
    Artifact,
    CannotLoad,
    CannotRun,
    NodeRun,
    Options,
    Profile,
    Runnable,
    Runner,
    TimedBackend,
    artifact,
    fixed,
    repeated,
)
from dilrewrite.runtimes._installed import Package

if TYPE_CHECKING:
    from onnx import ModelProto

INSTALL = "pip install 'dilrewrite[ncnn]' && pip install --no-deps 'pnnx>=20261020'"
"""pnnx asks for torch, and its program, which is all that is used here, runs without."""

_PACKAGES = tuple(
    Package(module=name, distributions=(name,), install=INSTALL, least=least)
    for name, least in (("ncnn", (1, 0, 20261020)), ("pnnx", (20261020,)))
)
"""In the first versions that keep a batch."""

CONVERT_S = 300.0
"""Seconds that pnnx has for one model."""

PRECISIONS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

AXES = ("2", "1", "")
"""With 1 behind them the numbers of a Conv's kernel sizes in ncnn's files, with 2 those of its dilations."""

_FLOATS = (0, 1)  # of onnx.TensorProto: a part of a model may leave the type of what it makes open
_BOUND = re.compile(r'ex\.(input|extract)\("(\w+)"')
_BATCH = re.compile(r"\b(in\d+|out\d+)\.numpy\((?:\), )?batch_index=(\d+)\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@final
@dataclass(frozen=True, slots=True)
class Ncnn(TimedBackend):
    """ncnn on the CPU (https://github.com/Tencent/ncnn), by its Python package; pnnx converts.

    Its 3x3 Convs are slower where they are dilated, and it has no batch axis: phases gain by that in Convs of their own
    only (`phases_apart`), from some hundred channels on. In 1-D the layout costs more than ten times the Conv.

    `precision`: what it may store and compute float32 in; its own default is f16. `winograd`, `sgemm`: whether Convs
    may run by Winograd's method and by a matrix product, as they may unless told otherwise.
    """

    name: ClassVar = "ncnn"
    layout_ranks: ClassVar = frozenset({1, 2})
    layout: ClassVar = "axes"
    forms: ClassVar = (
        "tap_prune",
        "lift",
        "tap_zones",
        "phases_apart:layout=axes",
    )  # first, as most others do not load
    dilation_costs: ClassVar = False

    precision: str = "f32"
    winograd: str = "on"
    sgemm: str = "on"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}")
        for name in ("winograd", "sgemm"):
            if getattr(self, name) not in ("on", "off"):
                raise ValueError(f"{name}={getattr(self, name)} is neither on nor off")

    def missing(self) -> str | None:
        """Return None when ncnn and pnnx are installed in versions that it runs with."""
        for package in _PACKAGES:
            if (told := package.missing()) is not None:
                return told
        return None if _program().is_file() else f"pnnx has no program for this system in {_program().parent}"

    def versions(self) -> dict[str, str]:
        """Return the versions of ncnn and of what converts."""
        return {package.module: importlib.metadata.version(package.module) for package in _PACKAGES}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the threads, the precision, and what Convs may run by."""
        own = {"precision": self.precision, "winograd": self.winograd, "sgemm": self.sgemm}
        return {**TimedBackend.settings(self, options), **own}

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - a setting of its own
        """Return the element type of the precision."""
        return PRECISIONS[self.precision]

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        """Return what pnnx makes of the model with the sizes of its inputs fixed."""
        proto = fixed(model, shapes)
        return artifact(Runnable(model=_converted(proto.SerializeToString(deterministic=True)), engine=True))

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a converted model and set its inputs."""
        return _Net(self, runnable, options, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Have ncnn compute one layer after the other, and take the time of each; a Conv goes by the node's name."""
        net = _Net(self, runnable, options, feeds)
        return repeated(net.stepwise, net.layers, runs)


def _program() -> Path:
    """Return pnnx' program, which lies in its package; the package itself, which may import torch, is not loaded."""
    spec = importlib.util.find_spec("pnnx")
    folder = next(iter(spec.submodule_search_locations or ()), "") if spec else ""
    return Path(folder, "pnnx.exe" if os.name == "nt" else "pnnx")


@functools.lru_cache(maxsize=4)
def _converted(model: bytes) -> bytes:
    """Return what pnnx makes of a model: a line of JSON (see `_Net`), and ncnn's weights. Raises CannotLoad."""
    import onnx

    proto = onnx.load_model_from_string(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    for value in (*inputs, *proto.graph.output):
        if value.type.tensor_type.elem_type not in _FLOATS:
            raise CannotLoad(f"ncnn runs here on float32 inputs and outputs only, and {value.name!r} is none")
    with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder:
        (Path(folder) / "model.onnx").write_bytes(model)
        said = _convert(folder)
        try:
            param, script = ((Path(folder) / name).read_text() for name in ("model.ncnn.param", "model_ncnn.py"))
            blobs = (Path(folder) / "model.ncnn.bin").read_bytes()
        except OSError:
            raise CannotLoad(f"pnnx makes no ncnn model of it: {said}") from None
    batches = {name: int(place) for name, place in _BATCH.findall(script)}
    bound: dict[str, list[tuple[str, str, int | None]]] = {}
    for way, values in (("input", inputs), ("extract", proto.graph.output)):
        names = [name for how, name in _BOUND.findall(script) if how == way]
        if len(names) != len(values):
            raise CannotLoad(f"pnnx kept {len(names)} of {len(values)} {'in' if way == 'input' else 'out'}puts")
        bound[way] = [(value.name, name, batches.get(name)) for value, name in zip(values, names, strict=True)]
    about = {**bound, "nodes": _nodes(proto, param), "param": param}
    return json.dumps(about).encode() + b"\n" + blobs


def _convert(folder: str) -> str:
    """Run pnnx on model.onnx in a folder; return the last line that it said. Raises CannotLoad."""
    command = [str(_program()), "model.onnx", "fp16=0"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CONVERT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotLoad(f"pnnx converts for more than {CONVERT_S:g} s, and was stopped") from None
    except OSError as error:
        raise CannotLoad(f"pnnx does not start: {one_line(error)}") from error
    lines = [line for line in _COLOUR.sub("", done.stdout.decode(errors="replace")).splitlines() if line.strip()]
    said = printable(lines[-1])[:300] if lines else "it says nothing"
    if done.returncode:
        code = done.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise CannotLoad(f"pnnx {how}: {said}")
    return said


def _layers(param: str) -> Iterator[tuple[str, str, list[str], dict[str, str]]]:
    """Yield the layers of ncnn's .param file: type, name, what they make, parameters by number.

    The format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure.
    """
    for line in param.splitlines()[2:]:
        kind, name, bottoms, tops, *rest = line.split()
        places = int(bottoms), int(bottoms) + int(tops)
        values = dict(part.split("=", 1) for part in rest[places[1] :])
        yield kind, name, rest[slice(*places)], values


def _nodes(proto: ModelProto, param: str) -> dict[str, str]:
    """Return the node that each Conv of ncnn stands for, by their names.

    pnnx renames nodes and keeps their order: of the Convs of one size and dilation, the first is the first. Where their
    numbers differ, it made something else of one, and none is told.
    """
    ours: dict[Hashable, list[str]] = defaultdict(list)
    theirs: dict[Hashable, list[str]] = defaultdict(list)
    for name, key in _convs(proto):
        ours[key].append(name)
    for kind, name, _, values in _layers(param):
        if kind.startswith(("Convolution", "Deconvolution")):
            rank = 1 if kind.endswith("1D") else 3 if kind.endswith("3D") else 2
            sizes = [tuple(int(values.get(f"{axis}{what}", values[what])) for axis in AXES[-rank:]) for what in "12"]
            theirs[_key(kind, int(values["0"]), *sizes)].append(name)
    same = [key for key in ours if len(ours[key]) == len(theirs.get(key, ()))]
    return {layer: node for key in same for layer, node in zip(theirs[key], ours[key], strict=True)}


def _key(kind: str, *sizes: Hashable) -> Hashable:
    return kind[0], sizes


def _convs(proto: ModelProto) -> Iterable[tuple[str, Hashable]]:
    """Yield the name of each Conv and ConvTranspose, its output channels, kernel and dilations."""
    from onnx import helper

    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        values = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in values:
            shapes[node.output[0]] = tuple(values["value"].t.dims)
        if node.op_type in ("Conv", "ConvTranspose") and (shape := shapes.get(node.input[1])):
            given = {name: helper.get_attribute_value(value) for name, value in values.items()}
            kernel = tuple(shape[2:])
            channels = shape[0] if node.op_type == "Conv" else shape[1] * given.get("group", 1)
            dilations = tuple(given.get("dilations", [1] * len(kernel)))
            yield node.name, _key("C" if node.op_type == "Conv" else "D", channels, kernel, dilations)


class _Net:
    """A model that pnnx converted, with its inputs.

    In front of the weights is a line of JSON: `input` and `extract`, with the name in the model, ncnn's name, and the
    axis that is the batch, `nodes` (see `_nodes`), and `param`, the text of ncnn's .param file.
    """

    first_s: float | None = None

    def __init__(self, backend: Ncnn, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise CannotLoad(f"ncnn cannot be imported: {one_line(error)}") from error
        assert isinstance(runnable.model, bytes), "what `prepare` made"
        head, _, blobs = runnable.model.partition(b"\n")
        about = json.loads(head)
        self._nodes: dict[str, str] = about["nodes"]
        self._outputs: list[tuple[str, str, int | None]] = about["extract"]
        self._layers = [layer for layer in _layers(about["param"]) if layer[0] != "Input"]
        unknown = sorted({kind for kind, *_ in self._layers if ncnn.layer_to_index(kind) < 0})
        if unknown:
            raise CannotLoad(f"ncnn has no layer for what pnnx leaves of it: {', '.join(map(printable, unknown))}")
        self._net: Any = ncnn.Net()
        _set(self._net.opt, backend, options)
        with tempfile.TemporaryDirectory() as folder:
            for name, data, load in (
                ("param", about["param"].encode(), self._net.load_param),
                ("bin", blobs, self._net.load_model),
            ):
                (Path(folder) / name).write_bytes(data)
                if code := load(str(Path(folder) / name)):
                    raise CannotLoad(f"ncnn does not load what pnnx made of the model: its {name} file, code {code}")
        self._inputs = [(name, _mat(ncnn, feeds[own], batch)) for own, name, batch in about["input"]]
        self._took: list[float] = []

    def _extractor(self) -> Any:
        extractor = self._net.create_extractor()
        for name, value in self._inputs:
            if code := extractor.input(name, value):
                raise CannotRun(f"ncnn does not take input {name}: code {code}")
        return extractor

    def run(self) -> float:
        """Run once; return the seconds."""
        start = time.perf_counter()
        self._forward()
        return time.perf_counter() - start

    def outputs(self) -> dict[str, Array]:
        values = zip(self._outputs, self._forward(), strict=True)
        return {name: np.array(_numpy(value, batch)) for (name, _, batch), value in values}

    def _forward(self) -> list[Any]:
        extractor = self._extractor()
        return [_extract(extractor, name) for _, name, _ in self._outputs]

    def stepwise(self) -> float:
        """Have one layer after the other computed, in ncnn's own layout; return the seconds of all."""
        extractor = self._extractor()
        extractor.set_light_mode(False)  # what a layer makes stays for those behind it
        self._took = []
        for _, _, tops, _ in self._layers:
            start = time.perf_counter()
            _extract(extractor, tops[0], 1)
            self._took.append(time.perf_counter() - start)
        return sum(self._took)

    def layers(self, run: int) -> Iterator[NodeRun]:
        """Yield what each layer took, the last time."""
        for (kind, name, *_), seconds in zip(self._layers, self._took, strict=True):
            yield NodeRun(name=self._nodes.get(name, name), op=kind, seconds=seconds, run=run)

    def close(self) -> None:
        self._inputs = []
        self._net = None


def _set(opt: Any, backend: Ncnn, options: Options) -> None:
    """Set what a net runs with, before it is loaded."""
    for kind in ("packed", "storage", "arithmetic"):
        setattr(opt, f"use_fp16_{kind}", backend.precision == "f16")
    for kind in ("packed", "storage"):
        setattr(opt, f"use_bf16_{kind}", backend.precision == "bf16")
    opt.use_winograd_convolution = backend.winograd == "on"
    opt.use_sgemm_convolution = backend.sgemm == "on"
    opt.use_vulkan_compute = False
    if options.threads is not None:
        opt.num_threads = options.threads


def _mat(ncnn: Any, value: Array, batch: int | None) -> Any:
    """Return an array as ncnn's own; its clone, for the first refers to the array's memory. Raises CannotRun."""
    array = np.ascontiguousarray(value, np.float32)
    axes = array.ndim - (batch is not None)
    if axes > 4 or array.size == 0:
        raise CannotRun(f"ncnn takes no input of shape {'x'.join(map(str, array.shape))}: at most 4 axes and a batch")
    return (ncnn.Mat(array) if batch is None else ncnn.Mat(array, batch_index=batch)).clone()


def _numpy(value: Any, batch: int | None) -> Any:
    return value.numpy() if batch is None else value.numpy(batch_index=batch)


def _extract(extractor: Any, name: str, layout: int = 0) -> Any:
    code, value = extractor.extract(name, layout)
    if code:
        raise CannotRun(f"ncnn fails with code {code} where it computes {name}")
    return value


BACKEND: TimedBackend = Ncnn()
