"""ONNX Runtime Web, ONNX Runtime in WebAssembly, under node or in a browser: onnxruntime_web.mjs is its other end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dilrewrite.errors import one_line
from dilrewrite.runtimes import (
    Array,
    Artifact,
    Bench,
    CannotLoad,
    CannotRun,
    Crashed,
    Opened,
    Options,
    Pace,
    Profile,
    RuntimeFailure,
    TimedBackend,
    TimedOut,
    warmed,
)
from dilrewrite.runtimes._installed import numbers, spelled
from dilrewrite.runtimes._onnxruntime import read_profile, reason, refuses
from dilrewrite.runtimes._worker import Child, Whole

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

PACKAGE = "onnxruntime-web"
INSTALL = f"npm install {PACKAGE}"

OLDEST_NODE, OLDEST = (20,), (1, 19)
"""The oldest versions of node and of the package that run here."""

NEEDED = ("ort.node.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of the package that are used, in its `dist`."""

TYPES = frozenset(
    ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
"""The element types that go to JavaScript and back, besides texts."""

FLAGS = {"wasm": ("--disable-gpu",), "webgpu": ("--enable-unsafe-webgpu", "--enable-features=Vulkan")}
"""What Chromium is told besides, by provider: on Linux it needs a word before it offers WebGPU."""


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeWeb(TimedBackend):
    """ONNX Runtime Web's WebAssembly under node, or in a `browser`: Chromium, or one like it, by its command or file.

    `package`: the folder of the npm package, or one that holds it. `provider`: wasm, or in a browser webgpu.
    """

    name: ClassVar = "onnxruntime_web"
    alias: ClassVar = "web"
    portable: ClassVar = False
    dilation_costs: ClassVar = False
    pace: ClassVar = Pace(warm_s=0.2)  # until V8 has compiled the kernels for good

    package: str = ""
    browser: str = "none"
    provider: str = "wasm"

    def __post_init__(self) -> None:
        if self.provider not in FLAGS:
            raise ValueError(f"provider={self.provider} is neither wasm nor webgpu")
        if self.provider == "webgpu" and self.browser == "none":
            raise ValueError("provider=webgpu needs a browser: add browser=chromium")

    def missing(self) -> str | None:
        """Return None when node, the package and the browser are there, in versions that run here, and the device."""
        node = shutil.which("node")
        if node is None:
            return f"node is not installed: install Node.js {OLDEST_NODE[0]} or later, then {INSTALL}"
        version = _node_version(node)
        if numbers(version) < OLDEST_NODE:
            return f"node is {version or 'broken'} ({node}), and {OLDEST_NODE[0]} or later is needed"
        folder = self.folder()
        if folder is None:
            return f"{PACKAGE} is not {f'in {self.package}' if self.package else 'installed'}: {INSTALL}"
        version = str(_about(folder).get("version", ""))
        if numbers(version) < OLDEST:
            oldest = spelled(OLDEST)
            return f"{PACKAGE} is {version or 'broken'} ({folder}), and {oldest} or later is needed: {INSTALL}@latest"
        for name in (*NEEDED, *(() if self.browser == "none" else (f"ort.{self.provider}.min.mjs",))):
            if not (folder / "dist" / name).is_file():
                return f"{PACKAGE} is broken ({folder / 'dist' / name} is missing): {INSTALL}"
        if self.browser != "none" and not _version_of(self.browser):
            return f"{self.browser} is no browser here: install one like Chromium (on Debian: apt-get install chromium)"
        return _webgpu(self)[1] if self.provider == "webgpu" else None

    def folder(self) -> Path | None:
        """Return the folder of the npm package: the first of the places where node and npm look for it."""
        return next((place for place in _places(self.package) if _about(place).get("name") == PACKAGE), None)

    def versions(self) -> dict[str, str]:
        """Return the versions of the package, of node and of the browser."""
        folder, node = self.folder(), shutil.which("node")
        assert folder is not None, "it is asked of what is ready"
        assert node is not None
        found = {PACKAGE: _about(folder)["version"], "node": _node_version(node)}
        return found if self.browser == "none" else {**found, Path(self.browser).name: _version_of(self.browser)}

    def device(self) -> str:
        """Return the processor, or the device that the browser names."""
        return _webgpu(self)[0] if self.provider == "webgpu" else TimedBackend.device(self)

    def settings(self, options: Options) -> dict[str, str]:
        """Return the threads, and how it runs."""
        return {
            **TimedBackend.settings(self, options),
            "provider": self.provider,
            "simd": "on",
            "browser": self.browser,
        }

    def refuses(self, geometry: ConvGeometry) -> str | None:
        """Return why it does not run a Conv as it is: it is the same code as ONNX Runtime on the CPU."""
        return refuses(geometry)

    def bench(self, options: Options) -> Bench:
        """Return a process of node, where the clock is read too, or in a page of the browser that it starts."""
        return _NodeBench(self, options)


def _places(package: str) -> Iterator[Path]:
    """Yield the folders where the npm package may be, in order; where `package` names one, there alone."""
    if package:
        given = Path(package).absolute()
        yield from (given, given / PACKAGE, given / "node_modules" / PACKAGE)
        return
    for entry in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        yield Path(entry).absolute() / PACKAGE
    with contextlib.suppress(OSError):  # the current folder may be gone
        here = Path.cwd()
        for folder in (here, *here.parents):
            yield folder / "node_modules" / PACKAGE
    if (npm := shutil.which("npm")) and (root := _said(npm, "root", "-g")):
        yield Path(root) / PACKAGE


def _about(folder: Path) -> dict[str, Any]:
    """Return what a package says of itself; of one that is not there, or says nothing that can be read, nothing."""
    try:
        told = json.loads((folder / "package.json").read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return {"name": folder.name}
    return told if isinstance(told, dict) else {"name": folder.name}


@functools.cache
def _said(*command: str) -> str:
    """Return what a program prints, without white space around it; "" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version_of(browser: str) -> str:
    """Return the version of a browser; "" for what is none."""
    place = shutil.which(browser)
    found = re.search(r"\d+(\.\d+)+", _said(place, "--version")) if place else None
    return found[0] if found else ""


@functools.cache
def _webgpu(backend: OnnxRuntimeWeb) -> tuple[str, str | None]:
    """Return the device that a browser runs WebGPU on, and why there is none."""
    try:
        child = _Node(backend, Options(timeout_s=120))
    except RuntimeFailure as failure:
        return "", f"provider=webgpu: {failure}"
    child.close()
    return child.told[0]["device"], None


def _place(program: str) -> str:
    """Return where a program is, for a process that starts in another folder."""
    place = shutil.which(program)
    return program if place is None else str(Path(place).absolute())


def _node_version(node: str) -> str:
    return _said(node, "--version").removeprefix("v")


class _Node(Child):
    """node with onnxruntime_web.mjs, seen from here. A request is a header and blobs, and so is an answer."""

    def __init__(self, backend: OnnxRuntimeWeb, options: Options) -> None:
        folder = backend.folder()
        if folder is None:
            raise CannotLoad(f"{PACKAGE} is gone: {INSTALL}")
        self._in_browser = backend.browser != "none"
        if self._in_browser:
            self.patience_s, self.starts_others = 5.0, True  # it ends the browser first
        browser = [_place(backend.browser), *FLAGS[backend.provider]] if self._in_browser else []
        # Answers have a descriptor of their own: WebAssembly prints to standard output.
        shell = ["sh", "-c", 'exec "$0" "$@" 3>&1 1>&2', _place("node")]
        super().__init__(
            options.timeout_s,
            {"request": "hello", "threads": options.threads, "provider": backend.provider},
            command=[*shell, str(Path(__file__).with_suffix(".mjs")), str(folder), *browser],
        )

    def _stop(self) -> None:
        if self._in_browser:
            self._late = True
            self.process.terminate()
        else:
            super()._stop()

    def _exchange(self, request: tuple[object, ...]) -> tuple[str, Any]:
        assert self.process.stdin is not None
        header, *blobs = request
        _write(Whole(self.process.stdin), cast("dict[str, Any]", header), cast("list[bytes]", blobs))
        told, answered = _read(self._answers)
        kind = told["kind"]
        if kind == "done":
            return kind, (told, answered)
        return kind, told["text"] if kind == "bug" else _reason(told["text"])


def _write(stream: Whole, header: dict[str, Any], blobs: Sequence[bytes | memoryview]) -> None:
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(len(text).to_bytes(4, "little") + text)
    for blob in blobs:
        stream.write(blob)


def _read(stream: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Read a message; raises EOFError where it ends early."""

    def whole(size: int) -> bytes:
        data: bytes = stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    header = json.loads(whole(int.from_bytes(whole(4), "little")))
    return header, [whole(size) for size in header["sizes"]]


def _reason(text: str) -> str:
    """Return an error of ONNX Runtime Web in one line."""
    text = re.sub(r"^(Can't create a session|failed to call OrtRun\(\))\. ERROR_CODE: \d+, ERROR_MESSAGE: ", "", text)
    text = reason(RuntimeError(text))
    return f"{text} (it has no more than 4 GB of memory)" if re.search("bad_alloc|Integer overflow", text) else text


@final
class _NodeBench(Bench):
    """Models in a process of node."""

    def __init__(self, backend: OnnxRuntimeWeb, options: Options) -> None:
        self._optimize = options.optimize
        self._held: dict[str, tuple[str, Mapping[str, Array]]] = {}
        self._child = _Node(backend, options)
        self._tells_nodes = backend.provider == "wasm"

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        held = self._held.get(key)
        if held is not None and held[0] == artifact.digest and held[1] is feeds:
            return
        try:
            model, files = artifact.content()
        except (OSError, DecodeError) as error:
            raise CannotLoad(one_line(error)) from error
        headers, blobs = zip(*map(_tensor, feeds, feeds.values()), strict=True) if feeds else ((), ())
        header = {"request": "add", "key": key, "files": list(files), "feeds": headers, "optimize": self._optimize}
        self._child.ask(header, model, *files.values(), *blobs)
        self._held[key] = artifact.digest, feeds

    def drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self._ask("drop", key=key)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        self._ask("open", keys=list(keys))

        def opened(key: str) -> Opened:
            return Opened(run_s=warmed(lambda times: self.run([key] * times), warm_s, runs))

        return list(map(opened, keys))

    def shut(self) -> None:
        with contextlib.suppress(Crashed, TimedOut):  # a dead process has freed its models
            self._ask("shut")

    def run(self, order: Sequence[str]) -> list[float]:
        return cast("list[float]", self._ask("run", order=list(order))[0]["seconds"])

    def profile(self, key: str, runs: int) -> Profile:
        header, (text,) = self._ask("profile", key=key, runs=runs)
        if self._tells_nodes:
            return read_profile(text.decode(errors="replace"), runs)
        return Profile(seconds=tuple(header["seconds"][1 if runs else 0 :]), nodes=())  # nodes are queued on a GPU

    def outputs(self, key: str) -> dict[str, Array]:
        header, blobs = self._ask("outputs", key=key)
        return {told["name"]: _array(told, blob) for told, blob in zip(header["outputs"], blobs, strict=True)}

    def warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._child.close()

    def _ask(self, request: str, **more: object) -> tuple[dict[str, Any], list[bytes]]:
        return cast("tuple[dict[str, Any], list[bytes]]", self._child.ask({"request": request, **more}))


def _tensor(name: str, value: Array) -> tuple[dict[str, Any], bytes]:
    """Return an input as it is sent. Raises CannotRun for what is no tensor of JavaScript."""
    if isinstance(value, list):
        raise CannotRun(f"input {name!r} is a sequence, which {PACKAGE} does not take")
    array = np.asarray(value)
    told = {"name": name, "dims": array.shape}
    if array.dtype.kind in "OSU":
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in array.ravel().tolist()]
        return {**told, "type": "string", "texts": texts}, b""
    if array.dtype.name not in TYPES:
        raise CannotRun(f"input {name!r} is {array.dtype.name}, which {PACKAGE} does not take")
    return {**told, "type": array.dtype.name}, array.astype(array.dtype.newbyteorder("<")).tobytes()


def _array(told: Mapping[str, Any], blob: bytes) -> Array:
    """Return an output as it was sent."""
    if told["type"] == "string":
        flat: Array = np.array(told["texts"], object)
    else:
        flat = np.frombuffer(blob, np.dtype(told["type"]).newbyteorder("<"))
    return flat.reshape(tuple(told["dims"]))


BACKEND: TimedBackend = OnnxRuntimeWeb()
