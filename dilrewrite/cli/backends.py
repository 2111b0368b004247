"""dilrewrite backends: what is ready here, and how to install what is not."""

from __future__ import annotations

import json

import typer

from dilrewrite.cli._options import command


@command("as_json")
def run(*, as_json: bool) -> int:
    """List the runtimes: ready with versions, or what is missing and the command that installs it."""
    from dilrewrite.runtimes import backends

    found = []
    for name, backend in backends().items():
        missing = backend.missing()
        found.append({"name": name, "missing": missing, "versions": backend.versions() if missing is None else {}})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return 0
    for entry in found:
        versions = entry["versions"]
        assert isinstance(versions, dict)
        ready = "ready: " + ", ".join(f"{package} {version}" for package, version in versions.items())
        typer.echo(f"{entry['name']:<20} {ready if entry['missing'] is None else entry['missing']}")
    return 0
