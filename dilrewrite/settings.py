"""Plug-ins with settings: frozen dataclasses whose fields are what `NAME:key=value,...` sets, read and spelled here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from dilrewrite.errors import UsageError, choices, folded

T = TypeVar("T")

MOST_DIGITS = 18
"""A longer number is no setting: the fields of an ONNX file hold no larger ones."""


def named(name: str, plugins: Mapping[str, object]) -> str | None:
    """Return the plug-in's name that a user means: `-` is `_`, and a plug-in may have an `alias`; `None` for none."""
    known = {folded(own): own for own in plugins}
    known |= {alias: own for own, plugin in plugins.items() if (alias := getattr(plugin, "alias", ""))}
    return name if name in plugins else known.get(folded(name))


def parse(text: str, plugins: Mapping[str, T], option: str, unknown: str) -> tuple[str, T]:
    """Return the name and the plug-in that `NAME[:key=value,...]` says, with the settings given.

    `option` is named in errors, `unknown` says that there is no plug-in of a name. Raises `UsageError` for an unknown
    name, an unknown setting, or a value of the wrong type.
    """
    given, _, settings = text.partition(":")
    name = named(given, plugins)
    if name is None:
        raise UsageError(f"{unknown} {given!r}", hint=choices(given, sorted(plugins)))
    default = plugins[name]
    offered = {field.name: getattr(default, field.name) for field in _fields(default)}
    values: dict[str, object] = {}
    for part in filter(None, settings.split(",")):
        given, _, value = part.partition("=")
        key = named(given, offered)
        if key is None:
            listed = ", ".join(f"{key}={value}" for key, value in offered.items()) or "none"
            raise UsageError(f"{option} {text}: {name} has no setting {given!r}", hint=f"its settings: {listed}")
        values[key] = value
        if isinstance(offered[key], int):
            several = key in _limits(default) and "/" in value
            numbers = value.split("/") if several else [value]
            if not all(one.isascii() and one.isdigit() and len(one) <= MOST_DIGITS and int(one) for one in numbers):
                what = "list of whole numbers above 0, as 1/2/4" if several else "whole number above 0"
                raise UsageError(f"{option} {text}: {key}={value!r} is no {what}")
            values[key] = tuple(map(int, numbers)) if several else int(value)
    try:
        return name, cast("T", dataclasses.replace(cast("Any", default), **values)) if values else default
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def spelled(name: str, plugin: object, default: object) -> str:
    """Return what `parse` makes a plug-in of: its name, and the settings that are not the default ones."""
    values = {field.name: getattr(plugin, field.name) for field in _fields(plugin)}
    changed = {key: value for key, value in values.items() if value != getattr(default, key)}
    words = {key: "/".join(map(str, v)) if isinstance(v, tuple) else v for key, v in changed.items()}
    settings = ",".join(f"{key}={value}" for key, value in words.items())
    return f"{name}:{settings}" if settings else name


def _limits(plugin: object) -> list[str]:
    """Return the settings that are a largest number or a list of numbers, which their annotation calls `Limit`."""
    return [field.name for field in _fields(plugin) if field.type == "Limit"]


def _fields(plugin: object) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast("Any", plugin)) if dataclasses.is_dataclass(plugin) else ()
