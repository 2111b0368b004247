"""Recalls and keeps what was measured, under all that it depends on: numbers, shapes, and what a runtime said."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dilrewrite import record
from dilrewrite._compat import Self
from dilrewrite.runtimes import Array, Options, TimedBackend, spelled
from dilrewrite.sites import Site
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.profiling import Profiled, Shape, SiteRun
from dilrewrite.timing.stopwatch import VISIBLE, Comparison, Noise

CACHE_VERSION = 5
"""Of what is kept in the cache; raised when timings are taken in another way."""

T = TypeVar("T")


@dataclass
class Ledger:
    """The cache as one backend sees it with the options of its sessions; counts what was measured and recalled."""

    backend: TimedBackend
    options: Options
    cache: Cache
    measured: int = 0
    recalled: int = 0

    @functools.cached_property
    def circumstances(self) -> Mapping[str, Any]:
        """Return everything besides the question that a timing depends on, as plain data."""
        return {
            "cache_version": CACHE_VERSION,
            "backend": spelled(self.backend),
            "versions": self.backend.versions(),
            "device": self.backend.device(),
            "settings": self.backend.settings(self.options),
            "libraries": [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.options.custom_op_library],
        }

    def recall(self, key: Mapping[str, Any], kind: type[T], fits: Callable[[T], bool] = lambda _: True) -> T | None:
        """Return the record that the cache holds under `key`; None where it holds none that is whole and `fits`."""
        plain = self.cache.get({**key, **self.circumstances})
        if plain is None:
            return None
        with contextlib.suppress(TypeError):
            value: T = record.read(kind, plain, "the cache")
            if fits(value):
                self.recalled += 1
                return value
        return None

    def keep(self, key: Mapping[str, Any], value: Any, timing: Comparison | None = None) -> None:
        """Count what was measured, and put the record into the cache if it lasts."""
        self.measured += 1
        if lasting(timing):
            self.cache.put({**key, **self.circumstances}, dataclasses.asdict(value))


def lasting(comparison: Comparison | None) -> bool:
    """Say whether a result is kept: what a noisy machine told, or could not tell, is measured again another day."""
    return comparison is None or (comparison.conclusive and (comparison.noise or 0.0) <= VISIBLE)


def feeds_digest(feeds: Mapping[str, Array]) -> str:
    """Return a digest of names, types, shapes and values."""
    text = hashlib.sha256()
    for name, value in sorted(feeds.items()):
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            text.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        else:
            text.update(f"{name} {value!r}".encode())
    return text.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRecord:
    """A comparison of whole models as it is kept, with the noise of the original."""

    timing: Comparison
    noise: Noise | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRecord:
    """What a runtime computes otherwise than another one of the original (`None`: nothing) as it is kept."""

    said: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """A profile as it is kept: of some sites in order, and of the tensors in their scopes, which have numbers."""

    seconds: float
    sites: tuple[SiteRun, ...]
    tensors: tuple[tuple[int, str, Shape], ...]

    @classmethod
    def of(cls, profiled: Profiled, sites: Sequence[Site]) -> Self:
        """Return what is kept of a profile."""
        scopes = list(dict.fromkeys(site.scope for site in sites))
        tensors = profiled.tensors.items()
        return cls(
            seconds=profiled.seconds,
            sites=tuple(profiled.sites[site.key] for site in sites),
            tensors=tuple((scopes.index(scope), name, shape) for (scope, name), shape in tensors if scope in scopes),
        )

    def fits(self, sites: Sequence[Site]) -> bool:
        """Say whether it may be of these sites."""
        scopes = {site.scope for site in sites}
        return len(self.sites) == len(sites) and all(0 <= number < len(scopes) for number, *_ in self.tensors)

    def profile(self, sites: Sequence[Site]) -> Profiled:
        """Return the profile of the same sites."""
        scopes = list(dict.fromkeys(site.scope for site in sites))
        return Profiled(
            seconds=self.seconds,
            sites=dict(zip((site.key for site in sites), self.sites, strict=True)),
            tensors={(scopes[number], name): shape for number, name, shape in self.tensors},
        )
