"""dilrewrite backends: what is ready here, and how to install what is not."""

from __future__ import annotations

import json

import typer

from dilrewrite.cli._options import command


@command("as_json", [("what is ready here, and how to install the rest", "backends")])
def run(*, as_json: bool) -> int:
    """List the runtimes: ready with versions, or what is missing and the command that installs it."""
    from dilrewrite.runtimes import backends

    found = [(name, backend, backend.missing()) for name, backend in backends().items()]
    versions = {name: backend.versions() for name, backend, missing in found if missing is None}
    if as_json:
        listed = [{"name": name, "missing": missing, "versions": versions.get(name, {})} for name, _, missing in found]
        typer.echo(json.dumps(listed, indent=2))
        return 0
    for name, _, missing in found:
        ready = ", ".join(f"{package} {version}" for package, version in versions.get(name, {}).items())
        typer.echo(f"{name:<20} {missing if missing is not None else f'ready: {ready}'}")
    return 0
