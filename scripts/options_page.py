"""Writes docs/options.md from the options themselves: `python scripts/options_page.py > docs/options.md`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

from dilrewrite.cli import COMMANDS
from dilrewrite.options import every_option

START = """# Every command and option

This page is made from the code by `scripts/options_page.py`: every option is here, in the groups of `--help`.

- `-h` works everywhere. `dilrewrite --install-completion` lets the shell complete commands, options and names.
- In names `-` stands for `_`: `--strategy space-to-batch`. Backends have short names: `cpu`, `cuda`, `trt`, `trt-rtx`.
- Sizes are written `x:1x3x64x64` or `x:1,3,64,64`. A model with one input needs no name: `1x3x64x64`.
- The Python functions take the same options as keywords, by the names in the last column.
"""


def pages() -> Iterator[str]:
    """The page of each command."""
    keywords = every_option()
    for name in COMMANDS:
        run = importlib.import_module(f"dilrewrite.cli.{name}").run
        yield f"## dilrewrite {name}\n\n{' '.join(run.__doc__.split())}\n"
        lines = [line for purpose, arguments in run.examples for line in (f"# {purpose}", f"dilrewrite {arguments}")]
        yield "\n".join(["```sh", *lines, "```", ""])
        groups: dict[str, list[str]] = {}
        for keyword, option in run.options.items():
            group = option.group if option.flags else "Arguments"
            groups.setdefault(group, []).append(row(option, keyword if keyword in keywords else ""))
        for group, rows in groups.items():
            yield "\n".join(
                [f"### {group}\n", "| option | value | what it says | Python |", "|---|---|---|---|", *rows, ""]
            )


def row(option: Any, keyword: str) -> str:
    """An option as a row of a table."""
    flags, value = ", ".join(option.flags.split()), (option.metavar or "").replace("|", ", ")
    shown = option.default not in (None, False, ()) and option.flags
    help_text = f"{option.help} [default: {option.default}]" if shown else option.help
    cells = (f"`{flags or value}`", value if flags else "", help_text, f"`{keyword}`" if keyword and flags else "")
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    return "\n".join([START, *pages()]).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
