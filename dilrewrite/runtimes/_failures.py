"""What a runtime says about one model: an error, or only a recorded reason, as the caller decides."""

from __future__ import annotations


class RuntimeFailure(Exception):  # noqa: N818 - it reads as what it says
    """Any of what follows."""


class CannotLoad(RuntimeFailure):
    """The runtime refuses the model; the reason is one line."""


class CannotRun(RuntimeFailure):
    """The runtime failed on these inputs; the reason is one line."""


class Crashed(RuntimeFailure):
    """The process of an isolated session died; the reason names the signal."""


class Lost(Crashed):
    """The connection to the machine of a session ended; it may be made again."""


class TimedOut(RuntimeFailure):
    """An isolated session did not answer in time and was stopped."""
