"""What the ONNX Runtime backends share. The only file that knows ONNX Runtime's Python interface."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np

from dilrewrite.errors import one_line
from dilrewrite.model.elements import ELEMENTS, Element, pack, unpack
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Io,
    NodeRun,
    Options,
    Profile,
    Runnable,
    Runner,
    Session,
    TimedBackend,
    fits,
)

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

_SPECIAL = {element.name: element for element in ELEMENTS if element.dtype.isbuiltin != 1}
"""What ONNX Runtime holds and its NumPy interface does not take or give: the types of ml_dtypes."""

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def conflict(install: str) -> str | None:
    """Return None, or which distributions of ONNX Runtime overwrite each other, and how to keep one."""
    installed = distributions()
    if len(installed) < 2:
        return None
    return (
        f"{' and '.join(installed)} are installed and overwrite each other: "
        f"pip uninstall -y {' '.join(installed)}, then only one of them: {install}"
    )


def missing(install: str, package: str = "onnxruntime") -> str | None:
    """Return None when `import onnxruntime` will work; else what is wrong, and how to `install` the `package`."""
    twice, spec = conflict(install), importlib.util.find_spec("onnxruntime")
    if twice is not None or (spec is not None and spec.origin is not None):
        return twice
    if spec is None:
        return f"{package} is not installed: {install}"
    left = " ".join(distributions() or ["onnxruntime"])
    return f"the installation of onnxruntime is broken: pip uninstall -y {left}, then {install}"


def distributions() -> list[str]:
    """Return the installed distributions of ONNX Runtime, without those that one further up Python's path hides."""
    installed = []
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            installed.append(name)
    spec = importlib.util.find_spec("onnxruntime") if len(installed) > 1 else None
    if spec is None or spec.origin is None:
        return installed
    home = Path(spec.origin).resolve().parent.parent
    folders = {name: _folder(name) for name in installed}
    return [name for name in installed if folders[name] in (None, home)] if home in folders.values() else installed


def _folder(name: str) -> Path | None:
    """Return the folder that a distribution is installed in, where it says so."""
    try:
        return Path(str(importlib.metadata.distribution(name).locate_file(""))).resolve()
    except importlib.metadata.PackageNotFoundError:
        return None


def reason(error: BaseException) -> str:
    """Return an error of ONNX Runtime in one line, without places in its C++ sources."""
    text = one_line(error) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", text)
    while place := re.search(r"(?:\S*/)?\w+\.(?:cc|h|hpp|cpp|cu)(?::\d+)? ", text):
        text = text[: place.start()] + _after_signature(text[place.end() :])
    text = re.sub(
        r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message:", r"\1 '\2':", text
    )
    return text.strip()


def _after_signature(text: str) -> str:
    """Cut the C++ function with which `text` starts, if it does: `std::vector<int> onnxruntime::F(const X&) const `."""
    start = re.match(r"[^()]*::[^()\s]*(?=\()", text)
    if start is None:
        return text
    depth = 0
    for place in range(start.end(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            rest = text[place + 1 :]
            if rest.startswith("::<lambda("):
                return _after_signature(rest)
            return re.sub(r"^>?( const)?( \[with [^\]]*\])?\s+", "", rest)
    return text


def _failures() -> tuple[type[BaseException], ...]:
    """Return what ONNX Runtime raises: its own errors have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, MemoryError)


Provider = tuple[str, Mapping[str, str]]
"""An execution provider with its options."""

CPU: tuple[Provider, ...] = (("CPUExecutionProvider", {}),)

TIMED = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
"""Session configuration entries of what is timed: waiting threads burn their core, as in production, until a run ends.

So several sessions can be timed in turn.
"""

UNTIMED = {"session.intra_op.allow_spinning": "0"}
"""Those of sessions that run beside others."""


def _load(
    runnable: Runnable,
    options: Options,
    providers: Sequence[Provider],
    *,
    timed: bool,
    severity: int = 4,
    profile: str = "",
) -> Any:
    """Return an InferenceSession on exactly the given providers. `profile`: prefix of the file to write one to."""
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        raise CannotLoad(f"onnxruntime cannot be imported: {reason(error)}") from error
    settings = ort.SessionOptions()
    settings.log_severity_level = severity
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    for key, value in (TIMED if timed else UNTIMED).items():
        settings.add_session_config_entry(key, value)
    if not options.optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    model = str(runnable.model) if isinstance(runnable.model, Path) else runnable.model
    if runnable.folder is not None and isinstance(model, bytes):
        folder = str(runnable.folder.absolute())
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        for library in options.custom_op_library:
            settings.register_custom_ops_library(str(library))
        # Without fallback: it prints to standard output and goes on with other providers.
        asked = [(name, dict(told)) if told else name for name, told in providers]
        session = ort.InferenceSession(model, settings, providers=asked, enable_fallback=0)
    except _failures() as error:
        raise CannotLoad(reason(error)) from error
    names = [name for name, _ in providers]
    given = session.get_providers()
    if given[: len(names)] != names:
        raise CannotLoad(f"ONNX Runtime uses {', '.join(given)} instead of {', '.join(names)}")
    return session


@final
class InProcess(Session):
    """A session in this process, on exactly the given execution providers."""

    def __init__(self, runnable: Runnable, options: Options, providers: Sequence[Provider] = CPU) -> None:
        self._session: Any = _load(runnable, options, providers, timed=False)  # what goes wrong comes as an exception
        self._failures = _failures()
        scalars = _scalars(runnable.model, [*self._session.get_inputs(), *self._session.get_outputs()])
        self.inputs: tuple[Io, ...] = tuple(_io(value, scalars) for value in self._session.get_inputs())
        self.outputs: tuple[Io, ...] = tuple(_io(value, scalars) for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        assert self._session is not None, "the session is closed"
        names = [output.name for output in self.outputs] if outputs is None else list(outputs)
        elements = {output.name: output.element for output in self.outputs}
        inputs = {name: _plain(value) for name, value in feeds.items()}
        special = any(elements.get(name) in _SPECIAL for name in names) or any(
            isinstance(value, np.ndarray) and _special(value) is not None for value in inputs.values()
        )
        try:
            if not special:
                return dict(zip(names, self._session.run(names, inputs), strict=True))
            values = {name: _ort_value(name, value) for name, value in inputs.items()}
            results = self._session.run_with_ort_values(names, values)
            return {name: _array(name, value) for name, value in zip(names, results, strict=True)}
        except self._failures as error:
            raise CannotRun(reason(error)) from error

    def close(self) -> None:
        self._session = None


def _io(value: Any, scalars: frozenset[str]) -> Io:
    tensor = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if tensor is None:
        return Io(name=value.name, element=f"other:{value.type}", shape=None)
    element = {"float": "float32", "double": "float64"}.get(tensor[1], tensor[1])
    shape = tuple(value.shape) if value.shape or value.name in scalars else None
    return Io(name=value.name, element=element, shape=shape)


def _scalars(model: bytes | Path, values: Sequence[Any]) -> frozenset[str]:
    """Return the names declared as scalars; ONNX Runtime says [] for them and for an unknown rank alike."""
    if all(value.shape or not value.type.startswith("tensor(") for value in values):
        return frozenset()
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto = onnx.ModelProto()
    with contextlib.suppress(DecodeError):  # a model in ONNX Runtime's own format
        proto.ParseFromString(model.read_bytes() if isinstance(model, Path) else model)
    declared = [*proto.graph.input, *proto.graph.output]
    tensors = {value.name: value.type.tensor_type for value in declared}
    return frozenset(name for name, t in tensors.items() if t.HasField("shape") and not t.shape.dim)


def _plain(value: Array) -> Array:
    """Return the array in C order and in this machine's byte order; a sequence stays as it is."""
    if isinstance(value, list):
        return value
    array = np.asarray(value, order="C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _special(value: Array) -> Element | None:
    """Return the type of an array that only the OrtValue interface takes."""
    return next((element for element in _SPECIAL.values() if element.dtype == value.dtype), None)


def _ort_value(name: str, value: Array) -> Any:
    import onnxruntime as ort

    if isinstance(value, list):
        raise CannotRun(f"input {name!r} is a sequence: not possible beside bfloat16, float8 or 4-bit tensors")
    element = _special(value)
    if element is None:
        return ort.OrtValue.ortvalue_from_numpy(value)
    if element.per_byte > 1:  # packed at the front of the memory; the array keeps its shape
        packed = pack(value, element)
        value = np.pad(packed, (0, value.size - packed.size)).reshape(value.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value, element.number)


def _array(name: str, value: Any) -> Array:
    tensor = re.fullmatch(r"tensor\((\w+)\)", value.data_type())
    if tensor is None:
        why = "not possible beside bfloat16, float8 or 4-bit tensors"
        raise CannotRun(f"output {name!r} is {value.data_type()}: {why}")
    if tensor[1] not in _SPECIAL:
        return cast("Array", value.numpy())
    element, shape = _SPECIAL[tensor[1]], tuple(value.shape())
    if 0 in shape:
        return np.empty(shape, element.dtype)
    # The OrtValue's own numpy() refuses these types.
    memory = np.frombuffer(bytearray(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())), np.uint8)
    return unpack(memory, element, shape)


@final
class BoundRunner:
    """A session with its inputs bound where its nodes want them, and outputs left on the device: a run copies nothing.

    What cannot be bound, strings and what is no tensor, is given with each run. `profile`: prefix of the file to write
    a profile to.
    """

    def __init__(
        self,
        runnable: Runnable,
        options: Options,
        feeds: Mapping[str, Array],
        providers: Sequence[Provider] = CPU,
        device: str = "cpu",
        profile: str = "",
    ) -> None:
        severity = 2 if device != "cpu" else 4
        self.first_s: float | None = None
        self._session: Any = _load(runnable, options, providers, timed=True, severity=severity, profile=profile)
        self._failures = _failures()
        self._feeds: dict[str, Array] | None = None
        # Are there outputs of a shape that the model does not declare? Where a run left one, ONNX Runtime refuses the
        # next run into it: then outputs are bound anew each time.
        self._undeclared: bool | None = None
        plain = {name: _plain(value) for name, value in feeds.items()}
        kinds = {value.name: value.type for value in self._session.get_inputs()}
        outputs = self._session.get_outputs()
        try:
            if "tensor(string)" in kinds.values() or any(
                not kind.startswith("tensor(") for kind in [*kinds.values(), *(out.type for out in outputs)]
            ):
                self._feeds = plain
                return
            self._binding = self._session.io_binding()
            for name, value in plain.items():
                # Binding copies a value, this once, to the device of the nodes that read it; sizes stay on the host.
                self._binding.bind_ortvalue_input(name, _ort_value(name, value))
            self._outputs = {out.name: "cpu" if out.type == "tensor(string)" else device for out in outputs}
            self._declared = [out.shape for out in outputs]
            self._bind_outputs()
            self._binding.synchronize_inputs()
        except self._failures as error:
            raise CannotRun(reason(error)) from error

    def _bind_outputs(self) -> None:
        for name, device in self._outputs.items():
            self._binding.bind_output(name, device)

    def run(self) -> None:
        """Run once and wait until the outputs are there."""
        try:
            if self._feeds is not None:
                self._session.run(None, self._feeds)
                return
            if self._undeclared:
                self._bind_outputs()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            if self._undeclared is None:
                shapes = [value.shape() if value.is_tensor() else [] for value in self._binding.get_outputs()]
                self._undeclared = not all(map(fits, shapes, self._declared))
        except self._failures as error:
            raise CannotRun(reason(error)) from error

    def outputs(self) -> dict[str, Array]:
        try:
            if self._feeds is not None:
                names = [output.name for output in self._session.get_outputs()]
                values = dict(zip(names, self._session.run(names, self._feeds), strict=True))
                return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
            self.run()
            if "cpu" in self._outputs.values():
                return {n: _array(n, v) for n, v in zip(self._outputs, self._binding.get_outputs(), strict=True)}
            return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))
        except self._failures as error:
            raise CannotRun(reason(error)) from error

    def end_profiling(self) -> Path:
        """Write the profile; return its file."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._binding = None
        self._session = None


def profile(
    runnable: Runnable,
    options: Options,
    feeds: Mapping[str, Array],
    runs: int,
    providers: Sequence[Provider] = CPU,
    device: str = "cpu",
) -> Profile:
    """Run a model with ONNX Runtime's profiler: once to warm up, then `runs` times (0: that one run is the profile).

    Nodes inside Loop, If and Scan appear as often as they ran. A fused node keeps the name of one of its parts; a Conv
    in the blocked layout has its output's name and `_nchwc`.
    """
    with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder:
        runner = BoundRunner(runnable, options, feeds, providers, device, str(Path(folder) / "profile"))
        try:
            return profiled(runner, runs)
        finally:
            runner.close()


def profiled(runner: BoundRunner, runs: int) -> Profile:
    """Run a runner that writes a profile as `profile` does, and read it; afterwards it runs on without a profile."""
    for _ in range(runs + 1):
        runner.run()
    try:
        return read_profile(runner.end_profiling().read_text(encoding="utf-8", errors="replace"), runs)
    except OSError as error:  # a full disk, for one
        raise CannotRun(f"the runtime's profile cannot be read: {error}") from error


def read_profile(text: str, runs: int) -> Profile:
    """Return what ONNX Runtime's profile says of `runs` runs after one to warm up (0: that one run is the profile)."""
    try:
        events = json.loads(text)
    except ValueError as error:
        raise CannotRun(f"the runtime's profile cannot be read: {error}") from error
    whole = [event for event in events if event.get("cat") == "Session" and event.get("name") == "model_run"]
    whole.sort(key=lambda event: int(event["ts"]))
    whole = whole[1:] if runs else whole
    starts = [int(event["ts"]) for event in whole]
    nodes = [
        NodeRun(
            name=(name := str(event["name"]).removesuffix("_kernel_time")),
            stands_for=plain_name(name),
            op=str(event["args"].get("op_name", "")),
            seconds=int(event["dur"]) / 1e6,
            inputs=_shapes(event["args"].get("input_type_shape")),
            outputs=_shapes(event["args"].get("output_type_shape")),
            provider=str(event["args"].get("provider", "")),
            run=max(bisect.bisect(starts, int(event["ts"])) - 1, 0),
        )
        for event in events
        if event.get("cat") == "Node"
        and str(event.get("name", "")).endswith("_kernel_time")
        and int(event["ts"]) >= min(starts, default=0)
    ]
    return Profile(seconds=tuple(int(event["dur"]) / 1e6 for event in whole), nodes=tuple(nodes))


def plain_name(name: str) -> str:
    """Return a node's name without what ONNX Runtime puts around an output's name when it names a node after it."""
    return re.sub(r"^(InsertedPrecisionFreeCast_)*|(_bn|_nchwc|_token_\d+)*$", "", name)


def _shapes(entries: Any) -> tuple[tuple[int, ...] | None, ...]:
    """Return the shapes of `[{"float": [1, 3]}, ...]`."""
    if not isinstance(entries, list):
        return ()
    return tuple(tuple(map(int, next(iter(entry.values())))) if entry else None for entry in entries)


def refuses(geometry: ConvGeometry) -> str | None:
    """Return why ONNX Runtime does not run a Conv as it is; None when it does."""
    if geometry.transposed is not None:  # its own pads are never negative
        pairs = zip(geometry.transposed.output_padding, geometry.transposed.strides, strict=True)
        wide = any(more >= stride for more, stride in pairs)
        return "ONNX Runtime does not run output_padding that is no less than the stride" if wide else None
    if geometry.auto_pad.startswith("SAME"):
        return "ONNX Runtime does not run SAME_* pads with dilation"
    if min(pad or 0 for pad in (*geometry.pads_begin, *geometry.pads_end)) < 0:
        return "ONNX Runtime does not run negative pads"
    return None


# -- backends --------------------------------------------------------------------------------------------------------


class OnnxRuntime(TimedBackend):
    """What the backends on ONNX Runtime have in common: on exactly the execution `providers` that they name, in order.

    `install`: the command that installs it; `on`: where outputs are left, in ONNX Runtime's words.
    """

    __slots__ = ()

    install: ClassVar[str]
    providers: ClassVar[Sequence[Provider]] = CPU
    on: ClassVar[str] = "cpu"
    trial: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Load what the providers need, and say in a CannotLoad what of it cannot be loaded."""
        return contextlib.nullcontext()

    def conflict(self) -> str | None:
        return conflict(self.install)

    def settings(self, options: Options) -> dict[str, str]:
        return {"intra_op_num_threads": "default" if options.threads is None else str(options.threads), **TIMED}

    def refuses(self, geometry: ConvGeometry) -> str | None:
        return refuses(geometry)

    def loaded(self, runnable: Runnable, options: Options) -> Session:
        with self.explained():
            return InProcess(runnable, options, self.providers)

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        with self.explained():
            return BoundRunner(runnable, options, feeds, self.providers, self.on)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        with self.explained():
            return profile(runnable, options, feeds, runs, self.providers, self.on)
