"""A board for tests: OpenSSH's server on the loopback, under an ordinary user, in namespaces of its own.

It has its own name, its own /tmp, and a folder in which that user's virtual environment lies: Python and what a board
needs, NumPy and ONNX Runtime, which are this test environment's. Keys, host keys and configurations are made here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from dilrewrite.devices._line import CONFIGURATION

NEEDED = "DILREWRITE_NEEDS_SSHD"
"""The variable with which the tests that need sshd fail where it is not there."""

USERS = ("dilrewrite-a", "dilrewrite-b")
PACKAGES = ("numpy", "onnxruntime")
ONNX = ("numpy", "onnx", "google", "protobuf", "ml_dtypes", "typing_extensions")
BUILDS = (*ONNX, "onnxruntime", "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs", "tensorrt_rtx_cu13")
BUILDS += ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs")
OTHERS = (*ONNX, "cv2", "opencv_python_headless", "openvino", "openvino_telemetry", "tract")
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))


def lacking() -> str | None:
    """Return why there can be no board here."""
    if SSHD is None:
        return "OpenSSH's server is not installed: apt-get install openssh-server"
    if os.geteuid() != 0:
        return "only root can make users, and start a server as them"
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode:
        return "no namespaces can be made here"
    return None


def user(name: str) -> None:
    """Make an ordinary user, whose account is open for keys only."""
    command = ["useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", name]

    def there() -> bool:  # another process of tests may hold the file of users just now
        subprocess.run(command, check=False, capture_output=True)
        return subprocess.run(["id", name], capture_output=True, check=False).returncode == 0

    if not until(there):
        raise RuntimeError(f"no user {name} can be made")


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Board:
    """A server at work. `folder`: what this side has of it; on the board it is `home`, and only its user's."""

    folder: Path
    name: str
    user: str = USERS[0]
    port: int = field(default_factory=free_port)
    lines: tuple[str, ...] = ()
    """Further lines of the server's configuration."""
    mounts: tuple[str, ...] = ()
    """Further commands of the shell before the server starts."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def python(self) -> str:
        """The Python of its user's virtual environment, seen there."""
        return f"{self.home}/my venv/bin/python"

    @property
    def home(self) -> str:
        return f"/mnt/{self.name}"

    @property
    def on(self) -> str:
        """The text of --on: an alias, and the Python of the virtual environment."""
        return self.with_python(self.python)

    def with_python(self, path: str) -> str:
        """The text of --on with another Python."""
        return f"ssh://{self.name}?python={path}"

    def make(self) -> None:
        """Make keys, the server's configuration, and the virtual environment."""
        for name in USERS:
            user(name)
        self.folder.mkdir(parents=True)
        for key in ("host", "own"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True)
        (self.folder / "user").mkdir()
        shutil.chown(self.folder / "user", self.user, self.user)
        (self.folder / "tmp").mkdir()
        (self.folder / "tmp").chmod(0o1777)
        (self.folder / "authorized").write_bytes((self.folder / "own.pub").read_bytes())
        host = (self.folder / "host.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host[0]} {host[1]}\n")
        (self.folder / "sshd_config").write_text(
            "\n".join(
                [
                    f"Port {self.port}", "ListenAddress 127.0.0.1", "HostKey /mnt/etc/host",
                    "AuthorizedKeysFile /mnt/etc/authorized", "UsePAM no", "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no", "StrictModes no", "PidFile none",
                    f"SetEnv LD_LIBRARY_PATH={self.home}-python/lib", *self.lines,
                ]
            )
        )  # fmt: skip
        (self.folder / "machine-id").write_text(self.name)
        self._environment()

    def _environment(self) -> None:
        """Make virtual environments, with spaces in their paths: Python's own, and links to what a board needs."""
        self._packages = Path(metadata.distribution("numpy").locate_file(""))
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        venvs = {"my venv": PACKAGES, "numpy only": PACKAGES[:1], "nothing": (), "rtx": BUILDS, "others": OTHERS}
        for venv, held in venvs.items():
            place = self.folder / "home" / venv
            packages = place / "lib" / name / "site-packages"
            packages.mkdir(parents=True)
            (place / "bin").mkdir()
            (place / "bin" / "python").symlink_to(f"{self.home}-python/bin/{Path(sys.executable).resolve().name}")
            (place / "pyvenv.cfg").write_text(f"home = {self.home}-python/bin\ninclude-system-site-packages = false\n")
            for path in self._packages.iterdir():
                if path.name.split("-")[0].split(".")[0] in held:
                    (packages / path.name).symlink_to(f"{self.home}-packages/{path.name}")

    def other_python(self, name: str, first: str, venv: str = "my venv") -> str:
        """Make a Python that does something first; return its path there."""
        place = self.folder / "home" / name
        place.write_text(f"#!/bin/sh\nexec '{self.home}/{venv}/bin/python' -c \"{first};$2\"\n")
        place.chmod(0o755)
        return f"{self.home}/{name}"

    def start(self) -> None:
        """Start the server, in namespaces where it has a name, a /tmp and a machine's number of its own."""
        assert SSHD is not None
        binds = {
            self.folder / "home": self.home,
            self.folder / "user": f"/home/{self.user}",
            Path(sys.base_prefix).resolve(): f"{self.home}-python",
            self._packages: f"{self.home}-packages",
        }
        script = ["set -e", f"hostname {self.name}", "mount -t tmpfs tmpfs /mnt", "mkdir -p /run/sshd"]
        for source, target in binds.items():
            script += [f"mkdir -p '{target}'", f"mount --bind '{source}' '{target}'"]
        script += [
            f"mount --bind '{self.folder / 'machine-id'}' /etc/machine-id",
            f"mkdir /mnt/etc && cd '{self.folder}' && cp host authorized sshd_config /mnt/etc && cd /",
        ]
        tmp = f"mount --bind '{self.folder / 'tmp'}' /tmp"
        run = f"exec {SSHD} -D -e -f /mnt/etc/sshd_config"
        command = ["unshare", "--mount", "--uts", "sh", "-c", "\n".join([*script, tmp, *self.mounts, run])]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server and all connections at once."""
        if self.process is not None:
            for number in (*self.sessions(), self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections."""
        return [number for number, words in self.processes() if words.startswith("sshd: ") and "listener" not in words]

    def processes(self) -> list[tuple[int, str]]:
        """Every process on the board with its command line."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name = (place / "ns" / "uts").readlink()
                if self.process is not None and name == Path(f"/proc/{self.process.pid}/ns/uts").readlink():
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append((int(place.name), words))
        return sorted(found)

    def ours(self) -> list[int]:
        """The processes there that dilrewrite started, the one that serves the connection first."""
        return [number for number, words in self.processes() if "exec(i.read" in words and "bash -c" not in words]

    def shell(self, text: str) -> None:
        """Let the user's shell do something first, whenever it starts."""
        place = self.folder / "user" / ".bashrc"
        place.write_text(text)
        place.chmod(0o644)

    def left(self) -> list[str]:
        """What lies in the board's /tmp."""
        return sorted(path.name for path in (self.folder / "tmp").iterdir())

    def configuration(self, *lines: str) -> str:
        """The section of ssh's configuration that is its alias."""
        return "\n  ".join(
            [
                f"Host {self.name}", "HostName 127.0.0.1", f"Port {self.port}", f"User {self.user}",
                f"IdentityFile {self.folder / 'own'}", "IdentitiesOnly yes",
                f"UserKnownHostsFile {self.folder / 'known_hosts'}", "GlobalKnownHostsFile /dev/null", *lines,
            ]
        ) + "\n"  # fmt: skip


def until(true: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait until something holds; say whether it does."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def configure(place: Path, *sections: str) -> dict[str, str]:
    """Write a configuration of ssh; return the environment in which it is read."""
    place.write_text("\n".join(sections))
    return {CONFIGURATION: str(place)}
