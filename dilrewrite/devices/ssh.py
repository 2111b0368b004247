"""ssh: a board or server that ssh reaches, with Python, NumPy and the runtime on it. Nothing is installed there."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, final
from urllib.parse import parse_qsl, unquote

from dilrewrite import settings
from dilrewrite.devices import Device, Scheme
from dilrewrite.devices._build import built_there
from dilrewrite.devices._far import far
from dilrewrite.devices._install import NAME, lacking
from dilrewrite.devices._line import Address, Line
from dilrewrite.errors import MissingError, UsageError, choices
from dilrewrite.options import Building, masked
from dilrewrite.runtimes import CannotLoad, Lost, RuntimeFailure, TimedBackend, backend, timed_backends

if TYPE_CHECKING:
    from dilrewrite.tensorrt.engines import Elsewhere

AGAIN_S = (0.0, 1.0, 3.0)
"""Pauses before each try to make a connection again that was lost."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_V6 = re.compile(r"[0-9A-Fa-f:.]+(%[\w.-]+)?")


@final
class Ssh:
    """`ssh://[user@]host[:port][?python=/path&lock=/path]`; the host may be an alias of ssh's configuration."""

    def open(self, text: str) -> Device:
        """Return the device. Raises UsageError for a text that names none."""
        return SshDevice(address(text))


def address(text: str) -> Address:
    """Return what a text names. Raises UsageError, without what could be a secret, where it names nothing."""
    on = masked(text)
    rest, _, query = text.removeprefix("ssh://").partition("?")
    user, at, place = rest.rstrip("/").rpartition("@")
    hint = "as ssh://[user@]host[:port], for example ssh://board"
    if not text.startswith("ssh://") or (at and not user):
        raise UsageError(f"--on {on}: not an address", hint=hint)
    if ":" in user:
        raise UsageError(f"--on {on}: a password stands in it", hint="leave it out, and let ssh know a key")
    bracket = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", place)
    host, colon, port = place.partition(":")
    if bracket:
        host, colon, port = bracket[1], "" if bracket[2] is None else ":", bracket[2] or ""
    if not (_V6 if bracket else _NAME).fullmatch(host) or (at and not _NAME.fullmatch(user)):
        raise UsageError(f"--on {on}: not an address", hint=hint)
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        raise UsageError(f"--on {on}: the port is no number from 1 to 65535", hint=hint)
    told = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in told.items():
        if name not in ("python", "lock"):
            raise UsageError(f"--on {on}: no setting {name!r}", hint=choices(name, ("python", "lock")))
        if not value or (name == "lock" and not value.startswith("/")) or not value.isprintable():
            raise UsageError(f"--on {on}: {name} is no path")
    return Address(host=unquote(host), user=user, port=int(port) if colon else None, on=on.partition("?")[0], **told)


@final
class SshDevice(Device):
    """A board that ssh reaches: connected when a backend is first asked for, and again when that was lost."""

    def __init__(self, place: Address) -> None:
        self.address, self.on = place, place.on
        self._line: Line | None = None
        self._backends: dict[str, TimedBackend] = {}
        self._runtimes: tuple[str, ...] = ()

    def backend(self, text: str) -> TimedBackend:
        """Return a backend as it is there."""
        if text not in self._backends:
            backend("onnxruntime_cpu")  # finds data, and proves, on this machine
            self._backends[text] = self._found(text)
        return self._backends[text]

    def _found(self, text: str) -> TimedBackend:
        known = {name: one for name, one in timed_backends().items() if one.portable}
        if text == "auto":
            offered = [one for one in known.values() if one.rank >= 0]
        else:
            offered = [settings.parse(text, known, "--backend", f"--backend {text}: on {self.on} there can be no")[1]]
        self._runtimes = tuple(sorted({*self._runtimes, *(one.name for one in offered)}))
        line = self.line()
        why = self._missing(line, [one.name for one in offered])
        for one in offered:
            if why[one.name] is None:
                return far(one, self, line)
        raise lacking(self.on, f"backend {offered[-1].name}: {why[offered[-1].name]}", self.address.python)

    def builder(self, building: Building) -> Elsewhere | None:
        """Return what builds engines there."""
        for name in ("device", "plugins", "timing_cache"):
            if getattr(building, name) not in (None, ()):
                flag = Building.options()[name].flag
                raise UsageError(f"{flag} with --on: it is of this machine", hint="leave one of them out")
        self._runtimes = tuple(sorted({*self._runtimes, "tensorrt", "tensorrt_rtx"}))
        return built_there(self, building)

    def _missing(self, line: Line, names: list[str]) -> dict[str, str | None]:
        """Return what each runtime lacks there; asked of a process that ends then."""
        worker, told = line.session(120.0), {}
        try:
            for name in names:
                answer, _ = worker.ask({"do": "offer", "name": name})
                told[name] = None if answer is None else str(answer)
                if answer is None:
                    break
        except RuntimeFailure as error:
            hint = f"install it in the Python there, or {NAME}" if isinstance(error, CannotLoad) else ""
            raise MissingError(f"{self.on}: {error}", hint=hint) from None
        finally:
            worker.close()
        return told

    def line(self) -> Line:
        """Return the connection, made again where it was lost; the models are sent again then.

        Raises MissingError where it cannot be made.
        """
        if self._line is not None and self._line.alive and set(self._runtimes) <= set(self._line.runtimes):
            return self._line
        pauses = (0.0,) if self._line is None else AGAIN_S
        self.close()
        for pause in pauses[:-1]:
            time.sleep(pause)
            with suppress(MissingError, Lost):
                self._line = Line(self.address, self._runtimes)
                return self._line
        time.sleep(pauses[-1])
        try:
            self._line = Line(self.address, self._runtimes)
        except Lost as error:
            raise MissingError(
                str(error), hint="run it again: what is in the cache of timings is not taken anew"
            ) from None
        return self._line

    def close(self) -> None:
        """End the connection; what it left there goes with it."""
        if self._line is not None:
            self._line.close()


SCHEME: Scheme = Ssh()
