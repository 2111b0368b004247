"""The examples of the pages for contributors: their source, and how they are plugged in, as a file or installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from dilrewrite import discover
from tests.test_discover import installed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = PAGE + (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Example:
    """A plug-in: the folder where its file would stand, its name, the constant, the entry point group, the source."""

    folder: str
    name: str
    constant: str
    group: str
    source: str

    def install(self, place: Path) -> None:
        """Put it into a folder of sys.path, as another distribution does."""
        (place / f"their_{self.name}.py").write_text(self.source, encoding="utf-8")
        installed(place, f"their-{self.name}", self.group, {self.name: f"their_{self.name}:{self.constant}"})

    @contextmanager
    def dropped(self, place: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Put its file into a folder where files of its kind are looked for, in this process."""
        package = importlib.import_module(self.folder.rstrip("/").replace("/", "."))
        place.mkdir()
        (place / f"{self.name}.py").write_text(self.source, encoding="utf-8")
        patch.setattr(package, "__path__", [*package.__path__, str(place)])
        patch.delitem(sys.modules, f"{package.__name__}.{self.name}", raising=False)
        importlib.invalidate_caches()
        forget(package)
        yield
        forget(package)


def forget(package: ModuleType) -> None:
    """Have plug-ins looked for anew."""
    discover._foreign.cache_clear()
    for value in vars(package).values():
        if hasattr(value, "cache_clear") and value.__module__ == package.__name__:
            value.cache_clear()


def _examples() -> dict[str, Example]:
    block = r"^```python\n# (dilrewrite/[\w/]+/)(\w+)\.py\n(.*?)^```"
    row = r"^\| an? ([\w ]+) \| `(dilrewrite/[\w/]+/)` \| `(\w+) = ...` \| `([\w.]+)` \|$"
    blocks, rows = re.findall(block, PAGES, re.MULTILINE | re.DOTALL), re.findall(row, PAGE, re.MULTILINE)
    written = {folder: (name, source) for folder, name, source in blocks}
    return {
        kind: Example(folder, written[folder][0], constant, group, written[folder][1])
        for kind, folder, constant, group in rows
    }


EXAMPLES = _examples()
"""By what CONTRIBUTING.md calls them."""


def passed(folder: Path, *arguments: str) -> int:
    """How many tests of these pass with what is installed in the folder; none fails."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    given["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
        env=given,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (count,) = re.findall(r"(\d+) passed", done.stdout)
    return int(count)
