"""Decisions on disk: which form each dilated Conv of a model gets, to be made again without measuring.

A site is named by its scope and output tensor. Its geometry is in the file as a digest: a model in which it is another
one is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dilrewrite._version import __version__
from dilrewrite.errors import UsageError, shown
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import parse
from dilrewrite.sites import Found, Site
from dilrewrite.staging import is_file

FORMAT = 1
"""Version of the file's layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the file says of a site: the digest of its geometry, and the form with its settings (`keep` for none)."""

    digest: str
    strategy: str


def digest(site: Site) -> str:
    """Return 16 hexadecimal digits for all that decides how a site can be rewritten."""
    meaning = site.meaning
    if isinstance(meaning, ConvGeometry):
        fields = dataclasses.asdict(meaning)
        if meaning.transposed is None:  # so that earlier decisions hold
            del fields["transposed"]
        geometry: object = fields
    else:
        geometry = meaning.text() if isinstance(meaning, Chain) else repr(meaning)
    data = {
        "geometry": geometry,
        "opset": site.opset,
        "storage": site.storage,
        "weight": site.fixed_weights,
        "follows": len(site.follow),
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def render(model: str, sites: Iterable[tuple[Site, str, str]], circumstances: Mapping[str, Any]) -> str:
    """Return the text of a decisions file for `sites` with the form that each got, and why.

    `model` (its SHA-256), `circumstances` and the reasons say where the decisions come from; nothing depends on them.
    """
    data = {
        "dilrewrite_decisions": FORMAT,
        "made_by": f"dilrewrite {__version__}",
        "model_sha256": model,
        "made_on": dict(circumstances),
        "sites": [
            {"site": site.key, "node": site.name, "geometry": digest(site), "strategy": strategy, "why": why}
            for site, strategy, why in sites
        ],
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def read(path: Path) -> dict[str, Decided]:
    """Return the decisions in a file by site. Raises `UsageError` when it is no such file."""

    def wrong(problem: object, hint: str = "make it again") -> UsageError:
        return UsageError(f"--decisions {shown(path)}: {problem}", hint=hint)

    other = "give a file that --save-decisions wrote"
    try:
        if path.exists() and not is_file(path):
            raise wrong("not a decisions file, not even a regular one", other)
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise wrong("no such file", "") from error
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"not a decisions file: {error}", other) from error
    version = data.get("dilrewrite_decisions") if isinstance(data, dict) else None
    if type(version) is not int:
        raise wrong("not a decisions file", other)
    if version != FORMAT:
        raise wrong(f"of format {version}, this version reads {FORMAT}")
    entries = data.get("sites")
    if not isinstance(entries, list):
        raise wrong("damaged: it has no list of sites")
    found: dict[str, Decided] = {}
    for entry in entries:
        words = [entry.get(word) for word in ("site", "geometry", "strategy")] if isinstance(entry, dict) else [None]
        if not all(isinstance(word, str) for word in words):
            text = json.dumps(entry)
            raise wrong(f"damaged: {text if len(text) <= 200 else f'{text[:200]}...'} is no decision")
        key, geometry, strategy = map(str, words)
        if key in found:
            raise wrong(f"damaged: {key} is there twice")
        try:
            parse(strategy)
        except UsageError as error:
            raise wrong(f"{key}: {error.message.removeprefix('--strategy ')}", error.hint) from error
        found[key] = Decided(digest=geometry, strategy=strategy)
    return found


def _kind(key: str) -> str:
    return "region" if "@" in key.rpartition("/")[2] else "dilated Conv"


def check(path: Path, decided: Mapping[str, Decided], found: Found) -> None:
    """Raise `UsageError`, naming the node, unless the decisions are about exactly these sites, and regions of them."""
    sites = (*found.sites, *(region for region in found.regions if region.key in decided))
    problems = [
        f"nothing is decided about the node {node}"
        if entry is None
        else f"the node {node} is not what was decided about (its geometry, types, opset, or what follows it)"
        for site in sites
        for node, entry in [(f"{site.where}/{site.name or site.output}", decided.get(site.key))]
        if entry is None or entry.digest != digest(site)
    ]
    keys = {site.key for site in sites}
    problems += [f"the model has no {_kind(key)} {key}" for key in decided if key not in keys]
    if problems:
        hint = "the model has changed: decide again, without --decisions"
        raise UsageError(f"--decisions {shown(path)}: {problems[0]}", hint=hint)
