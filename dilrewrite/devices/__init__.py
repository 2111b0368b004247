"""Where models are timed, by the text of `--on`: this machine, or another one. One file per scheme.

A scheme is a module of this folder that defines `SCHEME`; its name is what stands before the colon of `--on`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import TYPE_CHECKING, ClassVar, Protocol

from dilrewrite._compat import Self
from dilrewrite.errors import UsageError, choices
from dilrewrite.runtimes import TimedBackend, timed_backend

if TYPE_CHECKING:
    from dilrewrite.options import Building
    from dilrewrite.tensorrt.engines import Elsewhere

_ALIAS = re.compile(r"([\w.-]+@)?\w[\w.-]*")
"""A host in the user's configuration of ssh, which needs no scheme."""


class Device:
    """Where models are timed; by default this machine. Closed by `close()` or by leaving its `with` block.

    `on`: what reports and messages call it, without names of users; empty for this machine.
    `otherwise`: what helps a user where a model does not run there.
    """

    on: str = ""
    otherwise: ClassVar[str] = "choose another --backend"

    def content(self) -> str:
        """Return a digest of the files of this machine that `--on` names; empty where it names none."""
        return ""

    def backend(self, text: str) -> TimedBackend:
        """Return what `--backend` names, ready there, whose benches stand there; `auto` is the best that is ready.

        Raises UsageError for one that is unknown or cannot be timed there, MissingError when it, or the device, is not
        ready.
        """
        return timed_backend(text)

    def builder(self, building: Building) -> Elsewhere | None:  # noqa: ARG002 - another machine may build
        """Return what builds engines there; `None` where that is this machine.

        Raises UsageError for what cannot be asked for there, MissingError when TensorRT, or the device, is not ready.
        """
        if self.on:
            raise UsageError(f"--on {self.on}: it builds no engines", hint="only ssh:// does")
        return None

    def close(self) -> None:
        """Leave nothing there; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Scheme(Protocol):
    """A kind of device."""

    def open(self, text: str) -> Device:
        """Return the device that a text of `--on` names; it is reached when a backend is asked for.

        Raises UsageError for a text that names none.
        """


def device(text: str | None) -> Device:
    """Return the device that a text of `--on` names, `SCHEME:...` or an alias of ssh; `None` is this machine.

    Raises UsageError for a text that names none.
    """
    if text is None:
        return Device()
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    name, colon, _ = text.partition(":")
    if not colon and _ALIAS.fullmatch(text):
        name, text = "ssh", f"ssh://{text}"
    if name not in names:
        hint = choices(name, [f"{one}:" for one in names])
        if name == "dask":
            hint = "a scheduler of Dask is for `dilrewrite sweep`: --on dask://HOST:PORT"
        raise UsageError("--on: it names no kind of device", hint=hint)
    scheme: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return scheme.open(text)
