"""What to do about what a board lacks: a runtime's commands are for its own machine, and dilrewrite is not there."""

from __future__ import annotations

import importlib.metadata
import re
import shlex

from dilrewrite.errors import MissingError

NAME = "name another with ?python=/path"

BESIDE = ("torch", "nvidia-ml-py")
"""What extras of dilrewrite hold besides a runtime. Where it is needed there, the runtime asks for it by its name."""


def lacking(on: str, said: str, python: str) -> MissingError:
    """Return the error of a board whose `python` lacks something, in the words of a runtime there.

    Their commands for pip are written as they are typed there, with the packages of an extra of dilrewrite.
    """
    told = re.sub(r"'dilrewrite\[([\w-]+)\]'", lambda found: _packages(found[1]) or found[0], said)
    told = re.sub(r"\bpip (?=install|uninstall)", lambda _: f"{shlex.quote(python)} -m pip ", told)
    return MissingError(f"{on}: {told}", hint=f"run that there, or {NAME}" if told != said else "")


def _packages(extra: str) -> str:
    """Return the packages of an extra, quoted for a shell; empty where nothing tells them."""
    try:
        needed = importlib.metadata.requires("dilrewrite") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    held = [one.partition(";")[0].strip() for one in needed if re.search(rf"extra == [\"']{extra}[\"']", one)]
    return " ".join(shlex.quote(one) for one in held if not one.startswith(BESIDE))
