"""Vendors' compilers that are asked what they make of a model, each in a virtual environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dilrewrite import machine
from dilrewrite.errors import FailedError, UsageError, choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A compiler: its package and version, what is installed beside it, and what it is for.

    `name`: what users call it: that of the package, with the version where it is not the newest. `backend`: the runtime
    that asks it, as `--backend` takes it. `licence`: of the package, by its own words. `about_mb`: the size of the
    environment, about. `alone`: the package is installed without what it asks for, for that is `beside`, where it is
    needed.
    """

    name: str
    version: str
    package: str
    backend: str
    title: str
    licence: str
    about_mb: int
    beside: tuple[str, ...] = ()
    alone: bool = False

    @property
    def requirements(self) -> tuple[str, ...]:
        """Return what pip installs."""
        return (f"{self.package}=={self.version}", *self.beside)

    @property
    def folder(self) -> Path:
        """Return where its environment is, or would be. Raises UsageError where there is no place for it.

        That is $DILREWRITE_JUDGES, or `judges` in the folder of the tool in the user's cache folder.
        """
        given, cache = os.environ.get("DILREWRITE_JUDGES"), machine.cache_folder()
        if not given and cache is None:
            raise UsageError("there is no folder for judges: no home folder", hint="name one in $DILREWRITE_JUDGES")
        root = Path(given) if given else Path(cache or "", "judges")
        return root.absolute() / f"{self.package}-{self.version}"

    @property
    def python(self) -> Path:
        """Return the Python of its environment."""
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    @property
    def command(self) -> str:
        """Return the command that installs it."""
        return f"dilrewrite targets install-judge {self.name}"

    def missing(self) -> str | None:
        """Return None when it is installed, else what is missing and the command that installs it."""
        if (self.folder / INSTALLED).is_file():
            return None
        return f"{self.package} {self.version} is not installed: {self.command}"


INSTALLED = "installed.txt"
"""A file in a judge's environment: it is written last, with what was installed."""

_VELA = Judge(
    name="ethos-u-vela",
    package="ethos-u-vela",
    version="5.2.0",
    backend="ethos_u",
    title="Vela, Arm's compiler for Ethos-U: operators, cycles and memory by its estimate",
    licence="Apache-2.0",
    about_mb=110,
)
_RKNN = Judge(
    name="rknn-toolkit2",
    package="rknn-toolkit2",
    version="2.5.0",
    backend="rknn",
    title="RKNN-Toolkit2, Rockchip's compiler: operators, cycles and memory by its estimate",
    licence="RKNN SDK License, Rockchip's own: for applications on its chips; installing it accepts it",
    about_mb=710,
    alone=True,  # it asks for PyTorch, of which it uses nothing here
    beside=(
        *("setuptools<81", "numpy==1.26.4", "onnx==1.18.0", "protobuf==4.25.4", "opencv-python-headless<4.12"),
        *("onnxruntime<1.24", "fast-histogram", "psutil", "ruamel.yaml", "scipy", "tqdm"),
    ),
)

JUDGES = {
    judge.name: judge
    for judge in (
        _VELA,
        replace(
            _VELA,
            name="ethos-u-vela-3.10.0",
            version="3.10.0",
            backend="ethos_u:compiler=3.10.0",
            about_mb=140,
            beside=("numpy==1.26.4",),
        ),
        _RKNN,
        replace(_RKNN, name="rknn-toolkit2-2.3.2", version="2.3.2", backend="rknn:toolkit=2.3.2"),
    )
}
"""The judges that there are, by the names of their packages."""


def versions(package: str) -> dict[str, Judge]:
    """Return the judges of a package by version, the newest first."""
    return {judge.version: judge for judge in JUDGES.values() if judge.package == package}


def judge(name: str) -> Judge:
    """Return a judge. Raises UsageError for an unknown one."""
    if name not in JUDGES:
        raise UsageError(f"there is no judge {name!r}", hint=choices(name, sorted(JUDGES), "known are"))
    return JUDGES[name]


def install(name: str, say: Callable[[str], None] = print) -> Path:
    """Make the environment of a judge, or make it anew, and return its folder; `say` is told what is done.

    Raises UsageError for an unknown judge, FailedError where pip cannot install it.
    """
    found = judge(name)
    folder = found.folder
    say(f"{found.title} ({found.licence})")
    say(f"installs {', '.join(found.requirements)}, about {found.about_mb} MB, into {folder}")
    pip = [str(found.python), "-m", "pip", "--disable-pip-version-check"]
    (folder / INSTALLED).unlink(missing_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], found)
    first, *beside = found.requirements
    if found.alone:
        _run([*pip, "install", "--quiet", "--no-deps", first], found)
    _run([*pip, "install", "--quiet", *([] if found.alone else [first]), *beside], found)
    listed = _run([*pip, "freeze"], found)
    (folder / INSTALLED).write_text(listed, encoding="utf-8")
    say(f"installed: {', '.join(listed.split())}")
    return folder


def _run(command: list[str], found: Judge) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise FailedError(
            f"{found.name} cannot be installed: {said[-1] if said else f'exit code {done.returncode}'}",
            hint=f"the command was: {' '.join(command)}",
        )
    return done.stdout
