"""A kit for a bare GPU machine without a network: packs what it lacks, and runs everything there with one command.

    python scripts/gpu_kit.py pack KIT [--python 3.12] [--limit 48]      # here: downloads, packs, and says what to do
    python KIT/part-01/gpu_kit.py run KIT --out OUT [--minutes 9] [...]  # there

The kit is a folder of parts, each no larger than the limit in MiB: the project with benchmarks and models, small
wheels, then onnxruntime-gpu, then tensorrt-rtx. Carry the parts there in any order, one at a time if need be; `run`
joins what is complete, checks it, unpacks the wheels beside the kit and starts benchmarks/gpu.py, to which further
arguments go. What did not arrive is in OUT/kit.json, and a row of the results. Needs Python alone, and there PyTorch.
`pack` needs pip and a network, unless --wheels names a folder that holds the wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LIMIT_MIB = 64.0
"""No part may be larger."""

USUAL_MIB = 48.0
"""A checkout that travels beside a part counts too."""

WHEELS = ("onnx-graphsurgeon", "typer", "onnxruntime-gpu", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
"""What a machine with PyTorch, NumPy, onnx and rich lacks, in the order of its worth; the project comes before."""

SDISTS = ("tensorrt-rtx-cu13",)
"""Of these there is no wheel to download, so one is built: Python files that load the two of WHEELS."""

PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)))

SOURCES = ("benchmarks/*.py", "models/*.onnx")

GRACE_S = 30.0
"""How long benchmarks/gpu.py may take beyond its minutes: it ends by itself well before."""


class KitError(Exception):
    """What went wrong, where, and what to do; in one line."""


# -- packing ---------------------------------------------------------------------------------------------------------


def pack(given: argparse.Namespace) -> int:
    """Make the kit, and print what it holds and how to use it."""
    if not 0 < given.limit <= LIMIT_MIB:
        raise KitError(f"--limit {given.limit:g}: a part has more than 0 and at most {LIMIT_MIB:g} MiB")
    if given.kit.exists() and any(given.kit.iterdir()):
        raise KitError(f"{given.kit} is there already and not empty: name another folder")
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as scratch:
        folder = given.wheels
        if folder is None:
            folder = Path(scratch)
            download(folder, given.python)
        wheels = in_order(folder)
        source = Path(scratch) / "source.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
                archive.write(path, path.relative_to(ROOT))
        new = Path(tempfile.mkdtemp(prefix=f"{given.kit.name}-", dir=given.kit.resolve().parent))
        try:
            held = split([source, *wheels], new, int(given.limit * (1 << 20)), given.python)
            with contextlib.suppress(FileNotFoundError):
                given.kit.rmdir()
            new.rename(given.kit)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    print("\n".join(listing(held, given.kit)))
    return 0


def download(folder: Path, python: str) -> None:
    """Fetch the wheels of a machine's Python, and build the project's."""
    pip = [sys.executable, "-m", "pip"]
    tags = ["--implementation", "cp", "--python-version", python, *(f"--platform={name}" for name in PLATFORMS)]
    commands = [[*pip, "wheel", "-q", "--no-deps", "-w", str(folder), what] for what in (str(ROOT), *SDISTS)]
    commands += [
        [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", *tags, "-d", str(folder), name] for name in WHEELS
    ]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            raise KitError(f"{' '.join(command)} failed: run it by hand, or give the wheels with --wheels DIR")


def in_order(folder: Path) -> list[Path]:
    """The wheels of a folder: small ones first, the project before all, then as WHEELS has them."""

    def worth(wheel: Path) -> tuple[int, str]:
        name = wheel.name.partition("-")[0].replace("_", "-").lower()
        return WHEELS.index(name) + 1 if name in WHEELS else 0, name

    wheels = sorted(folder.glob("*.whl"), key=worth)
    if not wheels:
        raise KitError(f"{folder} holds no wheels")
    return wheels


def split(files: Sequence[Path], kit: Path, limit: int, python: str) -> dict[str, Any]:
    """Write files as pieces into parts of at most `limit` bytes, with this script in the first; return the manifest."""
    script = Path(__file__).read_bytes()
    manifest: dict[str, Any] = {"made": time.strftime("%Y-%m-%d"), "python": python, "limit_bytes": limit, "files": []}
    margin = len(script) + 400 * (len(files) + sum(path.stat().st_size for path in files) // limit + 4)
    if margin >= limit:
        raise KitError(f"a part of {limit} bytes does not even hold this script and the list: take a larger --limit")
    part, room = 1, limit - margin
    for path in files:
        digest, pieces = hashlib.sha256(), []
        with path.open("rb") as stream:
            while True:
                if room == 0:
                    part, room = part + 1, limit
                data = stream.read(room)
                if not data:
                    break
                digest.update(data)
                piece = kit / f"part-{part:02}" / f"{path.name}.{len(pieces):03}"
                piece.parent.mkdir(parents=True, exist_ok=True)
                piece.write_bytes(data)
                room -= len(data)
                name = piece.relative_to(kit).as_posix()
                pieces.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        size = path.stat().st_size
        manifest["files"].append({"name": path.name, "bytes": size, "sha256": digest.hexdigest(), "pieces": pieces})
    first = kit / "part-01"
    (first / "gpu_kit.py").write_bytes(script)
    (first / "kit.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def listing(manifest: dict[str, Any], kit: Path) -> list[str]:
    """What the kit holds, and how to use it."""
    lines = [
        f"{kit}: for Python {manifest['python']}, parts of at most {manifest['limit_bytes'] / (1 << 20):.4g} MiB",
        "",
    ]
    for file in manifest["files"]:
        parts = list(dict.fromkeys(piece["name"].partition("/")[0] for piece in file["pieces"]))
        where = parts[0] if len(parts) == 1 else f"{parts[0]} to {parts[-1]}"
        lines.append(f"{file['bytes'] / (1 << 20):9.2f} MiB  {file['name']}  {where}")
    lines.append("")
    for part in sorted(kit.glob("part-*")):
        size = sum(path.stat().st_size for path in part.iterdir())
        lines.append(f"{size / (1 << 20):9.2f} MiB  {part.name}")
    return [
        *lines,
        "",
        f"Carry {kit.name}/part-01 there first, and run what needs no other part:",
        f"  python {kit.name}/part-01/gpu_kit.py run {kit.name} --out OUT torch chains jax --minutes 7",
        "Then the rest, on the same machine, and what needs it:",
        f"  python {kit.name}/part-01/gpu_kit.py run {kit.name} --out OUT runtimes --minutes 5",
    ]


# -- there -----------------------------------------------------------------------------------------------------------


def run(given: argparse.Namespace, more: Sequence[str]) -> int:
    """Join and unpack what arrived, run the benchmark, and leave a folder of results in any case."""
    given.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0], "arguments": [*more]}
    code = 1
    try:
        place = given.kit / "part-01" / "kit.json"
        if not place.is_file():
            raise KitError(f"{place} is not there: carry part-01 first")
        manifest = json.loads(place.read_text(encoding="utf-8"))
        report["files"] = {file["name"]: unpack(file, given.kit) for file in manifest["files"]}
        for name, said in report["files"].items():
            print(f"{name}: {said}", flush=True)
        code = report["exit_code"] = benchmark(given, more)
    except Exception as error:  # whatever breaks: the folder says so
        report["failure"] = f"{type(error).__name__}: {error}"
        print(f"gpu_kit: {error}", file=sys.stderr)
    finally:
        (given.out / "kit.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return code


def unpack(file: dict[str, Any], kit: Path) -> str:
    """Join one file and unpack it; return "ready", or what is missing or wrong."""
    target = kit / ("source" if file["name"] == "source.zip" else "site")
    mark = kit / "ready" / file["sha256"]
    if mark.exists():
        return "ready"
    try:
        whole = join(file, kit)
        with zipfile.ZipFile(whole) as archive:  # a wheel is an archive of what stands in site-packages
            archive.extractall(target)
        whole.unlink()
    except (KitError, OSError, zipfile.BadZipFile) as error:
        return f"not ready: {error}"
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    return "ready"


def join(file: dict[str, Any], kit: Path) -> Path:
    """Put the pieces of a file together again, byte for byte. Raises KitError for a piece that is missing or wrong."""
    whole = kit / "joined" / file["name"]
    whole.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for piece in file["pieces"]:
            place = kit / piece["name"]
            if not place.is_file():
                raise KitError(f"{piece['name']} did not arrive")
            data = place.read_bytes()
            if hashlib.sha256(data).hexdigest() != piece["sha256"]:
                raise KitError(f"{piece['name']} did not arrive whole: carry it again")
            digest.update(data)
            out.write(data)
    assert digest.hexdigest() == file["sha256"]
    return whole


def benchmark(given: argparse.Namespace, more: Sequence[str]) -> int:
    """Run benchmarks/gpu.py of the kit with the packages of the kit before those of the machine."""
    script = given.kit.resolve() / "source" / "benchmarks" / "gpu.py"
    if not script.is_file():
        raise KitError("source.zip is not ready: there is no benchmark to run")
    paths = [str(given.kit.resolve() / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, str(script), "--out", str(given.out.resolve()), "--minutes", str(given.minutes), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(given.minutes * 60 + GRACE_S)
    except subprocess.TimeoutExpired:
        raise KitError(f"benchmarks/gpu.py did not end within {given.minutes:g} minutes and {GRACE_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make the kit")
    packing.add_argument("kit", type=Path, metavar="KIT")
    packing.add_argument("--python", default="3.12", help="of the machine")
    packing.add_argument("--limit", type=float, default=USUAL_MIB, metavar="MIB", help="the most of one part")
    packing.add_argument("--wheels", type=Path, metavar="DIR", help="a folder with the wheels: nothing is downloaded")
    running = commands.add_parser("run", help="on the machine; further arguments go to benchmarks/gpu.py")
    running.add_argument("kit", type=Path, metavar="KIT")
    running.add_argument("--out", type=Path, required=True, metavar="DIR")
    running.add_argument("--minutes", type=float, default=9.0)
    given, more = parser.parse_known_args(arguments)
    if given.command == "pack" and more:
        parser.error(f"unknown arguments: {' '.join(more)}")
    try:
        return pack(given) if given.command == "pack" else run(given, more)
    except KitError as error:
        print(f"gpu_kit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
