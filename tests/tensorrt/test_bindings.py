"""Which flavours are there and what they say: missing and broken modules, the log, and file descriptor 2."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dilrewrite.errors import MissingError, UsageError
from dilrewrite.tensorrt import bindings
from dilrewrite.tensorrt.bindings import FLAVOURS, INSTALL, Library, Log, captured_stderr, probe, put

# -- stand-ins -------------------------------------------------------------------------------------------------------


class Logger:
    """TensorRT's ILogger, as far as `Log` uses it."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.ready = True


def stand_in() -> Any:
    return SimpleNamespace(ILogger=Logger, __version__="1.2.3")


class ParserStandIn:
    """A parser with errors: (operator, node, description)."""

    def __init__(self, *errors: tuple[str, str, str]) -> None:
        self.errors = errors
        self.num_errors = len(errors)

    def get_error(self, index: int) -> Any:
        operator, node, text = self.errors[index]
        return SimpleNamespace(node_operator=lambda: operator, node_name=lambda: node, desc=lambda: text)


def gone(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Python's own way of saying that a module cannot be imported."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Put modules of these texts in place of the flavours' modules; what is not named is not there."""

    def place(**texts: str) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        for flavour in FLAVOURS:
            name = bindings.module_name(flavour)
            if name in texts:
                (tmp_path / f"{name}.py").write_text(texts[name])
                monkeypatch.delitem(sys.modules, name, raising=False)
            else:
                monkeypatch.setitem(sys.modules, name, None)
        importlib.invalidate_caches()

    before = {name: sys.modules.get(name) for name in map(bindings.module_name, FLAVOURS)}
    yield place  # type: ignore[misc]
    for name, module in before.items():  # what the texts were imported to
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


# -- is it there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_not_installed(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    gone(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert not bindings.installed(flavour)
    assert bindings.missing(flavour) == f"{flavour} is not installed: {INSTALL[flavour]}"
    with pytest.raises(MissingError, match=f"^{flavour} is not installed: pip install") as caught:
        bindings.choose(flavour)
    assert caught.value.exit_code == 4


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that no finder knows, rather than one that is forbidden."""
    monkeypatch.setattr(bindings, "module_name", lambda flavour: f"no_such_{flavour}".replace("-", "_"))
    assert bindings.missing("tensorrt") == f"tensorrt is not installed: {INSTALL['tensorrt']}"
    assert bindings.version("tensorrt") == ""


def test_auto_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(MissingError) as caught:
        bindings.choose("auto")
    assert "no TensorRT is installed" in str(caught.value)
    assert all(command in str(caught.value) for command in INSTALL.values())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flavour", ["tensorrt_rtx", "TensorRT", "", "cuda"])
def test_unknown_flavour(flavour: str) -> None:
    with pytest.raises(UsageError, match="not one of auto, tensorrt, tensorrt-rtx"):
        bindings.choose(flavour)


BROKEN = {
    "import error": "raise ImportError('libnvinfer.so.11: cannot open\\n  shared object file')",
    "a library that is not there": "import ctypes\nctypes.CDLL('libno_such_thing.so.7')",
    "no file": "raise FileNotFoundError('Could not find: libnvinfer.so.11')",
    "a part of another version": "import sys\nsys.no_such_attribute",
    "it imports what is not there": "import no_such_package_anywhere",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_broken(only: Callable[..., None], text: str) -> None:
    only(tensorrt=text)
    assert bindings.installed("tensorrt")
    why = bindings.missing("tensorrt")
    assert why is not None
    assert "\n" not in why
    assert why.startswith("tensorrt is installed and cannot be imported (")
    assert why.endswith(f"): {INSTALL['tensorrt']}")
    with pytest.raises(MissingError, match=r"^tensorrt is installed and cannot be imported"):
        bindings.choose("tensorrt")
    with pytest.raises(MissingError, match="no TensorRT is installed"):
        bindings.choose("auto")


def test_words_of_what_is_broken(only: Callable[..., None]) -> None:
    only(tensorrt=BROKEN["import error"])
    assert "(libnvinfer.so.11: cannot open shared object file)" in str(bindings.missing("tensorrt"))


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        ({"tensorrt": "", "tensorrt_rtx": ""}, "tensorrt"),
        ({"tensorrt": ""}, "tensorrt"),
        ({"tensorrt_rtx": ""}, "tensorrt-rtx"),
        ({"tensorrt": "raise ImportError('x')", "tensorrt_rtx": ""}, "tensorrt-rtx"),
    ],
    ids=["both", "tensorrt", "rtx", "broken tensorrt"],
)
def test_auto(only: Callable[..., None], texts: dict[str, str], chosen: str) -> None:
    only(**texts)
    assert bindings.choose("auto") == chosen
    assert bindings.missing(chosen) is None
    assert bindings.choose(chosen) == chosen


def test_load(only: Callable[..., None]) -> None:
    severities = "INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)"
    only(tensorrt_rtx=f"__version__ = '1.9'\nclass ILogger:\n    {severities}\n")
    heard: list[str] = []
    library = bindings.load("tensorrt-rtx", tell=heard.append)
    assert (library.flavour, library.version) == ("tensorrt-rtx", "1.9")
    library.log.handle.log(library.module.ILogger.ERROR, "no")
    assert heard == library.log.errors == ["no"]


def test_installed_imports_nothing(only: Callable[..., None]) -> None:
    only(tensorrt="raise SystemExit('imported')", tensorrt_rtx="raise SystemExit('imported')")
    assert all(bindings.installed(flavour) for flavour in FLAVOURS)
    assert all(isinstance(bindings.version(flavour), str) for flavour in FLAVOURS)


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"])
def test_version_by_any_of_its_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def version(name: str) -> str:
        if name == package:
            return "1.7.1.116"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert bindings.version("tensorrt-rtx") == "1.7.1.116"
    assert bindings.version("tensorrt") == ""


# -- probing ---------------------------------------------------------------------------------------------------------


def test_probe() -> None:
    thing = SimpleNamespace(known=0)
    assert probe(thing, "IThing.known") == 0
    assert probe(thing, "IThing.unknown") is None
    assert probe(None, "IThing.part") is None
    put(thing, "IThing.known", 7)
    assert thing.known == 7
    with pytest.raises(AssertionError, match=r"IThing\.unknown"):
        put(thing, "IThing.unknown", 7)


# -- the log ---------------------------------------------------------------------------------------------------------


CHATTER = (
    "Layers:\nName: a, LayerType: correlation",
    "Max Scratch Memory: 8388608 bytes",
    "Total Weights Memory: 12 bytes",
    "Trying to load shared library",
    "Applying generic optimizations to the graph",
)


def test_log_keeps_what_matters() -> None:
    log = Log(stand_in())
    assert log.handle.ready, "the base class was initialised"
    assert isinstance(log.handle, Logger)
    for severity, text in (
        (Logger.INTERNAL_ERROR, "worst"),
        (Logger.ERROR, "bad"),
        (Logger.WARNING, "odd"),
        *((severity, text) for severity in (Logger.INFO, Logger.VERBOSE) for text in CHATTER),
    ):
        log.handle.log(severity, text)
    assert log.errors == ["worst", "bad"]
    assert log.warnings == ["odd"]
    assert log.messages == [*CHATTER[:3], *CHATTER[:3]]
    log.clear()
    assert (log.errors, log.warnings, log.messages) == ([], [], [])


def test_log_tells_all_but_the_long_list() -> None:
    heard: list[str] = []
    log = Log(stand_in(), heard.append)
    for text in CHATTER:
        log.handle.log(Logger.VERBOSE, text)
    log.handle.log(Logger.ERROR, "bad")
    assert heard == [*CHATTER[1:], "bad"]


# -- file descriptor 2 -----------------------------------------------------------------------------------------------


@pytest.fixture
def outside(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What arrives at the real file descriptor 2 (here: pytest's)."""
    return lambda: capfd.readouterr().err


def test_descriptor_is_captured_and_restored(outside: Callable[[], str]) -> None:
    os.write(2, b"before\n")
    with captured_stderr() as said:
        assert said() == []
        os.write(2, b"Internal Error:  MyelinCheckException\n\n  CHECK(x)\xff\n")
        assert said() == ["Internal Error: MyelinCheckException", "CHECK(x)\ufffd"]
        os.write(2, b"more\n")
        assert said()[2:] == ["more"]
    os.write(2, b"after\n")
    assert outside() == "before\nafter\n"


def test_descriptor_is_restored_after_an_exception(outside: Callable[[], str]) -> None:
    def fail() -> None:
        with captured_stderr():
            os.write(2, b"inside\n")
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            fail()
    os.write(2, b"after\n")
    assert outside() == "after\n"


def test_descriptors_do_not_pile_up() -> None:
    place = Path("/proc/self/fd")
    if not place.is_dir():
        pytest.skip("only Linux lists them")
    before = len(list(place.iterdir()))
    for _ in range(20):
        with captured_stderr():
            os.write(2, b"x\n")
    assert len(list(place.iterdir())) == before


def test_two_threads_take_turns(outside: Callable[[], str]) -> None:
    heard: dict[int, list[str]] = {}

    def work(number: int) -> None:
        for turn in range(10):
            with captured_stderr() as said:
                os.write(2, f"{number}-{turn}\n".encode())
                heard.setdefault(number, []).extend(said())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {number: [f"{number}-{turn}" for turn in range(10)] for number in range(4)}
    os.write(2, b"after\n")
    assert outside() == "after\n"


def test_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with captured_stderr() as said:
        os.write(2, b"x\n")
        assert said() == ["x"]


def test_closed_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def dup(number: int) -> int:
        raise OSError(9, f"Bad file descriptor {number}")

    monkeypatch.setattr(os, "dup", dup)
    with captured_stderr() as said:
        assert said() == []


# -- reasons ---------------------------------------------------------------------------------------------------------


def library() -> Library:
    module: Any = stand_in()
    return Library(flavour="tensorrt-rtx", module=module, log=Log(module))


def test_listening_drops_noise() -> None:
    found = library()
    with found.listening():
        os.write(2, b"[W] slow\nInternal Error: x\n/usr/lib/libz: no version information available\n")

    def fail() -> None:
        with found.listening():
            os.write(2, b"said before the exception\n")
            raise ValueError("y")

    with pytest.raises(ValueError, match="y"):
        fail()
    assert found.noise == ["Internal Error: x", "said before the exception"]


def test_reasons_are_merged() -> None:
    found = library()
    found.log.handle.log(Logger.ERROR, "ModelImporter: Conv\n   is odd")
    found.log.handle.log(Logger.ERROR, "twice")
    found.noise.extend(["twice", "Internal Error: graph"])
    parser: Any = ParserStandIn(("Conv", "late", "bad  pads"), ("", "", "twice"))
    assert found.reasons(parser) == "Conv 'late': bad pads; twice; ModelImporter: Conv is odd; Internal Error: graph"
    assert found.reasons() == "ModelImporter: Conv is odd; twice; Internal Error: graph"


def test_reasons_are_few_and_short() -> None:
    found = library()
    for number in range(9):
        found.log.handle.log(Logger.ERROR, f"{number} " + "x" * 1000)
    parts = found.reasons().split("; ")
    assert [part[0] for part in parts] == ["0", "1", "2", "3"]
    assert {len(part) for part in parts} == {400}


def test_nothing_is_said() -> None:
    found = library()
    found.log.handle.log(Logger.WARNING, "only a warning")
    assert found.reasons() == "it says nothing of why"


NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient))"
)

SHORTENED = {
    "place at the end": (
        "IPluginRegistry::loadLibrary: Error Code 6: API Usage Error (Unable to load library: a.so: file too short In "
        "Impl at /_src/runtime/dispatch/libLoader.cpp:305)",
        "IPluginRegistry::loadLibrary: Error Code 6: API Usage Error (Unable to load library: a.so: file too short)",
    ),
    "place in front": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (In generateForCurrent at "
        "/_src/runtime/core/cudaDeviceProfile.cpp:221 (cudaError 35: CUDA driver is insufficient))",
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (cudaError 35: CUDA driver is insufficient)",
    ),
    "place as a head": (
        "[runtime.cpp::readHeader::765] Error Code 2: Internal Error (Assertion bufferSize >= minBufferSize failed.  "
        "In readHeader at /_src/runtime/dispatch/runtime.cpp:765)",
        "Error Code 2: Internal Error (Assertion bufferSize >= minBufferSize failed.)",
    ),
    "no driver, which no build needs": (NO_DRIVER, "it says nothing of why"),
    "out of memory, in the same place": (
        NO_DRIVER.replace("cudaError 35: CUDA driver version is insufficient", "cudaError 2: out of memory"),
        "Error Code 1: Cuda Runtime (cudaError 2: out of memory)",
    ),
}


@pytest.mark.parametrize(("said", "kept"), SHORTENED.values(), ids=SHORTENED.keys())
def test_reasons_leave_out_the_librarys_own_places(said: str, kept: str) -> None:
    found = library()
    found.log.handle.log(Logger.ERROR, said)
    assert found.reasons() == kept


def test_the_log_repeats_the_parser() -> None:
    """At length, with the whole node: only where the parser has no errors of its own."""
    found = library()
    for text in ("ModelImporter.cpp:142: --- Begin node ---\nNode name: conv", "Conv is odd"):
        found.log.handle.log(Logger.ERROR, text)
    parser: Any = ParserStandIn(("Conv", "late", "Conv is odd"))
    assert found.reasons(parser) == "Conv 'late': Conv is odd"
    assert found.reasons() == "ModelImporter.cpp:142: --- Begin node --- Node name: conv; Conv is odd"


def test_modules_are_modules() -> None:
    """What the fixtures put in place is gone: the real modules, or none."""
    for flavour in FLAVOURS:
        module = sys.modules.get(bindings.module_name(flavour))
        assert module is None or isinstance(module, ModuleType)
