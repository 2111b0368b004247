"""The three flavours of TensorRT behind one face: the only file that imports `tensorrt` or `tensorrt_rtx`.

Capabilities are probed for, never concluded from version numbers: 10, 11 and 1 (for RTX) are no series. The library
says "failed" by None and False and tells why in its log, in the parser's errors, and for some parts on file
descriptor 2: `Library` gathers all three.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast, final

from dilrewrite.errors import MissingError, UsageError, one_line
from dilrewrite.tensorrt.protocols import INetworkDefinition, Module, OnnxParser

FLAVOURS = ("tensorrt", "tensorrt-rtx")
"""Flavours by the names of their packages; a hyphen becomes an underscore in the module's name."""

INSTALL = {flavour: f"pip install 'dilrewrite[{flavour}]'" for flavour in FLAVOURS}

_KEPT = re.compile(r"^Layers:|Memory: \d+ bytes")
"""Which messages below a warning are kept: a verbose log of a large model has hundreds of megabytes."""

_NOISE = re.compile(r"^\s*$|^\[W\]|UserWarning|no version information available")


def probe(thing: Any, attribute: str) -> Any:
    """Return an attribute that not every flavour has, or None. `attribute` is "Class.name", of TensorRT's class."""
    return getattr(thing, attribute.partition(".")[2], None)


def put(thing: Any, attribute: str, value: Any) -> None:
    """Set an attribute that not every flavour has; `thing` has it. `attribute` is as for `probe`."""
    name = attribute.partition(".")[2]
    assert hasattr(thing, name), attribute
    setattr(thing, name, value)


def module_name(flavour: str) -> str:
    """Return the name of a flavour's module, which is the name of its backend too."""
    return flavour.replace("-", "_")


def installed(flavour: str) -> bool:
    """Say whether the flavour's module is there, without importing it."""
    try:
        return importlib.util.find_spec(module_name(flavour)) is not None
    except (ImportError, ValueError):  # None in sys.modules
        return False


def version(flavour: str) -> str:
    """Return the flavour's version, without importing it; empty when nothing tells."""
    for package in (module_name(flavour), f"{module_name(flavour)}_cu13", f"{module_name(flavour)}_cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return ""


def missing(flavour: str) -> str | None:
    """Return None when the flavour's module can be imported, else why not and how to install it; imports it."""
    if not installed(flavour):
        return f"{flavour} is not installed: {INSTALL[flavour]}"
    try:
        _import(flavour)
    except (ImportError, OSError, AttributeError) as error:
        return f"{flavour} is installed and cannot be imported ({one_line(error)}): {INSTALL[flavour]}"
    return None


def choose(flavour: str) -> str:
    """Return the flavour that is meant: `auto` is TensorRT where it can be imported, else TensorRT for RTX.

    Raises UsageError for an unknown one and MissingError when it, or for `auto` none, is there.
    """
    if flavour == "auto":
        ready = next((known for known in FLAVOURS if missing(known) is None), None)
        if ready is None:
            install = f"{INSTALL['tensorrt']}, or {INSTALL['tensorrt-rtx']} for RTX GPUs"
            raise MissingError("no TensorRT is installed", hint=install)
        return ready
    if flavour not in FLAVOURS:
        raise UsageError(f"--flavour {flavour}: not one of auto, {', '.join(FLAVOURS)}")
    if (why := missing(flavour)) is not None:
        raise MissingError(why)
    return flavour


def _import(flavour: str) -> Module:
    return cast("Module", importlib.import_module(module_name(flavour)))


def load(flavour: str, *, tell: Callable[[str], None] | None = None) -> Library:
    """Import a flavour (a name out of `FLAVOURS`); `tell` gets every message of its log."""
    module = _import(flavour)
    return Library(flavour, module, Log(module, tell))


@final
class Log:
    """TensorRT's log. `handle` is the logger that the library writes to; what matters is kept in `messages`."""

    def __init__(self, module: Module, tell: Callable[[str], None] | None = None) -> None:
        self.messages: list[str] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []
        base = module.ILogger

        def log(_self: Any, severity: Any, message: str) -> None:
            if tell is not None and not message.startswith("Layers:"):
                tell(message)
            if severity in (base.INTERNAL_ERROR, base.ERROR):
                self.errors.append(message)
            elif severity == base.WARNING:
                self.warnings.append(message)
            elif _KEPT.search(message):
                self.messages.append(message)

        self.handle: Any = type("DilrewriteLog", (base,), {"log": log})()

    def clear(self) -> None:
        """Forget what was said."""
        for said in (self.messages, self.errors, self.warnings):
            said.clear()


@dataclass(frozen=True, slots=True)
class Library:
    """A flavour that is loaded, and its log."""

    flavour: str
    module: Module
    log: Log
    noise: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Return the library's version."""
        return self.module.__version__

    def clear(self) -> None:
        """Forget what it said."""
        self.log.clear()
        self.noise.clear()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the library writes past its log, on file descriptor 2, in `noise`."""
        with captured_stderr() as said:
            try:
                yield
            finally:
                self.noise.extend(line for line in said() if not _NOISE.search(line))

    def reasons(self, parser: OnnxParser | None = None) -> str:
        """Return in one line why something failed: the parser's words, the log's, and those on file descriptor 2."""
        said: list[str] = []
        for error in map(parser.get_error, range(parser.num_errors)) if parser is not None else ():
            node = f"{error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""
            said.append(node + _shortened(error.desc()))
        told = [message for message in self.log.errors if not (said and message.startswith("ModelImporter.cpp:"))]
        said += [_shortened(message) for message in (*told, *self.noise)]
        reasons: list[str] = []
        for entry in filter(None, said):
            if not any(entry in reason for reason in reasons):
                reasons.append(entry)
        return "; ".join(reasons[:4]) or "it says nothing of why"

    def parse(self, network: INetworkDefinition, model: bytes, path: str) -> tuple[bool, OnnxParser]:
        """Read ONNX into a network; `path` is absolute, and says where external data lie."""
        parser = self.module.OnnxParser(network, self.log.handle)
        with self.listening():
            return bool(parser.parse(model, path)), parser


def _shortened(text: str) -> str:
    """Return a message of the library in one line, without the places in its own sources."""
    line = " ".join(text.split())
    # Error 35 is no driver, 100 no GPU: a build needs neither, and what does says so elsewhere too.
    line = re.sub(r" ?\[checkMacros\.cpp::catchCudaError.*\(cudaError (35|100): .*$", "", line)
    line = re.sub(r"\(In \w+ at /_src/[\w./]+:\d+ \((.*)\)\)", r"(\1)", line)
    line = re.sub(r" *In \w+ at /_src/[\w./]+:\d+|^\[[\w.]+::[\w.]+::\d+\] |/_src/[\w./]+:\d+ ?", "", line)
    return line if len(line) <= 400 else line[:397] + "..."


_descriptor = threading.Lock()


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], list[str]]]:
    """Send file descriptor 2 to a file; the value yielded returns the lines written so far.

    What this process itself writes to standard error meanwhile is in there too. Not for two threads at a time: the
    second one waits.
    """
    with _descriptor, tempfile.TemporaryFile() as file:
        if sys.stderr is not None:
            with contextlib.suppress(ValueError, OSError):
                sys.stderr.flush()

        def said() -> list[str]:
            place = file.seek(0, os.SEEK_END)
            file.seek(0)
            text = file.read(place).decode(errors="replace")
            return [" ".join(line.split()) for line in text.split("\n") if line.strip()]

        try:
            saved = os.dup(2)
        except OSError:  # closed
            yield said
            return
        try:
            os.dup2(file.fileno(), 2)
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
