"""Records the public names of TensorRT's Python bindings, so that tests know every flavour without installing one.

    python scripts/record_trt_bindings.py [--wheels DIR] [--check]

The names are read off the real bindings. Their libraries (gigabytes, and useless without a GPU) are replaced by
stubs: the bindings declare all classes and signatures while they are imported, and call nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

RECORD = Path(__file__).resolve().parents[1] / "tests" / "tensorrt" / "trt_bindings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One release of the bindings: the module it becomes, the wheel it comes in, and the libraries it asks for."""

    module: str
    version: str
    wheel: str
    libraries: tuple[str, ...]

    @property
    def name(self) -> str:
        """The key in the record."""
        return f"{self.module} {self.version}"

    @property
    def package(self) -> str:
        """What the wheel unpacks to; the module of the plain name is another wheel that imports all of this one."""
        return f"{self.module}_bindings"


FLAVOURS = (
    Flavour(
        module="tensorrt",
        version="10.16.1.11",
        wheel="tensorrt_cu13_bindings",
        libraries=("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    ),
    Flavour(
        module="tensorrt",
        version="11.4.0.106",
        wheel="tensorrt_cu13_bindings",
        libraries=("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    ),
    Flavour(
        module="tensorrt_rtx",
        version="1.7.1.116",
        wheel="tensorrt_rtx_cu13_bindings",
        libraries=("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
)

# What the bindings link to in these libraries. None of it is called during the import.
STUBS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

# The classes that building and running an engine touches; of all others only the name is recorded.
CLASSES = (
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInspector",
    "EngineValidity",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "ILogger.Severity",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
)


class CannotRecord(Exception):  # noqa: N818 (it reads as a sentence where it is raised)
    """Something is missing that reading the bindings needs; one line that says what and what to do."""


# ---- In a child process: one flavour, read off the module. ----


def describe(package: str, folder: Path) -> dict[str, Any]:
    """Version, names, classes and signatures of the bindings unpacked in `folder`."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module(package)
    classes: dict[str, list[str]] = {}
    signatures: dict[str, str | list[str]] = {}
    for name in CLASSES:
        cls: Any = module
        for part in name.split("."):
            cls = getattr(cls, part, None)
        if cls is None:
            continue
        classes[name] = sorted(public(cls))
        if hasattr(cls, "__members__"):  # the constructor of an enum takes a number, as all of them do
            continue
        for method in (*classes[name], "__init__"):
            found = signatures_of(getattr(cls, method), method)
            if found:
                signatures[f"{name}.{method}"] = found if len(found) > 1 else found[0]
    # Modules are what the bindings import for themselves, such as os.
    names = sorted(name for name in public(module) if not isinstance(getattr(module, name), ModuleType))
    return {"version": module.__version__, "names": names, "classes": classes, "signatures": signatures}


def public(thing: Any) -> list[str]:
    """Attributes without a leading underscore, which leaves out all that comes from `object`."""
    return [name for name in dir(thing) if not name.startswith("_")]


def signatures_of(method: Any, name: str) -> list[str]:
    """The signatures that pybind11 writes into the docstring, one for each overload; none for what is no method."""
    lines = (getattr(method, "__doc__", None) or "").splitlines() if callable(method) else []
    if not lines or not lines[0].startswith(f"{name}("):
        return []
    if lines[1:2] != ["Overloaded function."]:
        return [normal(lines[0].removeprefix(name))]
    numbered = re.compile(rf"\d+\. {re.escape(name)}(\(.*)")
    return [normal(match[1]) for match in map(numbered.fullmatch, lines) if match]


def normal(signature: str) -> str:
    """A signature without the type of self, the modules and namespaces of types, and addresses in memory.

    >>> normal("(self: tensorrt_bindings.tensorrt.Logger, sizes: collections.abc.Sequence[int]) -> nvinfer1::Dims")
    '(self, sizes: Sequence[int]) -> Dims'
    """
    signature = re.sub(r"\b(?:[a-z]\w*(?:\.|::))+(?=[A-Za-z_])", "", signature)
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    return re.sub(r"^\(self: [\w.]+", "(self", signature)


# ---- Wheels, stubs and the child process. ----


def record(wheels: Path | None) -> str:
    """The text of the record, from the wheels in a folder or else from downloaded ones."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        raise CannotRecord(
            f"the wheels of the bindings are for CPython 3.11 on Linux, and this is "
            f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}; "
            "run the script with Python 3.11"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stubs = compile_stubs(folder / "stubs")
        if wheels is None:
            wheels = folder / "wheels"
            for flavour in FLAVOURS:
                download(flavour, wheels)
        flavours = {}
        for flavour in FLAVOURS:
            unpacked = folder / flavour.name.replace(" ", "-")
            unpack(find_wheel(flavour, wheels), unpacked)
            flavours[flavour.name] = read(flavour, unpacked, stubs)
    return json.dumps(flavours, indent=1, sort_keys=True) + "\n"


def compile_stubs(folder: Path) -> Path:
    """A folder with a stub under the name of every library that any flavour asks for."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotRecord("there is no C compiler `cc` for the stub libraries; install gcc or clang")
    folder.mkdir()
    source, stub = folder / "stub.c", folder / "stub.so"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in STUBS), encoding="utf-8")
    run([compiler, "-shared", "-fPIC", "-nostdlib", "-o", str(stub), str(source)], "compiling the stub libraries")
    for flavour in FLAVOURS:
        for library in flavour.libraries:
            shutil.copy(stub, folder / library)
    return folder


def download(flavour: Flavour, folder: Path) -> None:
    """The wheel of one flavour, without what it depends on."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    which = ["--only-binary=:all:", "--python-version", "3.11", f"{flavour.wheel}=={flavour.version}"]
    run([*pip, *which, "-d", str(folder)], f"downloading {flavour.wheel} {flavour.version}")


def find_wheel(flavour: Flavour, folder: Path) -> Path:
    """The one wheel of a flavour for this machine."""
    pattern = f"{flavour.wheel}-{flavour.version}-cp311-*linux*_{platform.machine()}.whl"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise CannotRecord(f"{folder} should hold one wheel {pattern}, and it holds {len(found)}")
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """The files of a wheel, in a new folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CannotRecord(f"{wheel} is damaged ({error}); download it again") from None


def read(flavour: Flavour, unpacked: Path, stubs: Path) -> dict[str, Any]:
    """What `describe` finds in a process that sees neither installed packages nor TensorRT's own libraries."""
    libraries = os.pathsep.join(filter(None, [str(stubs), os.environ.get("LD_LIBRARY_PATH")]))
    command = [sys.executable, "-I", "-S", __file__, "--describe", flavour.package, str(unpacked)]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    found = json.loads(run(command, f"importing the bindings of {flavour.name}", environment))
    version = found.pop("version")
    if version != flavour.version:
        raise CannotRecord(f"the wheel {flavour.wheel} {flavour.version} holds bindings that say {version}")
    return {"module": flavour.module, **found}


def run(command: list[str], purpose: str, environment: dict[str, str] | None = None) -> str:
    """Standard output of a command; if it fails, the last line of what it complains of."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        how = f"exit code {done.returncode}" if done.returncode > 0 else signal.Signals(-done.returncode).name
        complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CannotRecord(": ".join([f"{purpose} failed", how, *complaint]))
    return done.stdout


# ---- The record. ----


def write(text: str) -> None:
    """Puts the record in place, whole or not at all."""
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    unfinished = RECORD.with_suffix(".json.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(RECORD)
    finally:
        unfinished.unlink(missing_ok=True)


def difference(text: str) -> str | None:
    """One line that says how the committed record differs from `text`, or None if it has the same bytes."""
    name = RECORD.relative_to(RECORD.parents[2])
    if not RECORD.is_file():
        return f"{name} is missing"
    committed = RECORD.read_bytes()
    if committed == text.encode():
        return None
    try:
        old = set(leaves(json.loads(committed)))
    except ValueError:
        return f"{name} is no JSON"
    new = set(leaves(json.loads(text)))
    parts = [
        f"{len(only)} only in {where}: {', '.join(sorted(only)[:3])}{', ...' if len(only) > 3 else ''}"
        for only, where in ((old - new, "the file"), (new - old, "the wheels"))
        if only
    ]
    return f"{name} differs; {'; '.join(parts) or 'the same names in other bytes'}"


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Every text in nested dicts and lists, after the keys that lead to it."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}{key}/")
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, path)
    else:
        yield f"{path}{value}"


def main() -> int:
    """Writes the record, or compares it; 0 done, 1 the record differs, 4 something is missing."""
    parser = argparse.ArgumentParser(description="Record the public names of TensorRT's Python bindings.")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="where the wheels lie (default: download them)")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the record differs")
    parser.add_argument("--describe", nargs=2, help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    if arguments.describe:
        package, folder = arguments.describe
        print(json.dumps(describe(package, Path(folder))))
        return 0
    try:
        text = record(arguments.wheels)
    except CannotRecord as missing:
        print(missing, file=sys.stderr)
        return 4
    if arguments.check:
        differs = difference(text)
        if differs:
            print(differs, file=sys.stderr)
        return 1 if differs else 0
    write(text)
    print(f"{RECORD}: {len(text) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
