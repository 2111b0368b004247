"""Frozen dataclasses from plain data, by their type hints: what JSON files and the cache hold."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_hints = functools.cache(get_type_hints)


def read(kind: Any, value: Any, where: str) -> Any:
    """Return plain data, as `json.loads(json.dumps(dataclasses.asdict(x)))` gives them, as a value of the type `kind`.

    Dataclasses, tuples, mappings with texts as names, enumerations, literals, unions with None, and numbers, texts and
    booleans are known. Raises TypeError, naming the place, when the data are something else; `where` is the outermost.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None and NoneType in inner else read(inner[0], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(read(one, part, f"{where}[{place}]") for place, (one, part) in pairs)
    if origin is Mapping and isinstance(value, dict):
        return {key: read(inner[1], part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        lacking = [name for name in hints if name not in value]
        if lacking:
            raise TypeError(f"{where} has no {lacking[0]!r}")
        return kind(**{name: read(hint, value[name], name) for name, hint in hints.items()})
    if isinstance(kind, enum.EnumMeta) and isinstance(value, str) and value in kind._value2member_map_:
        return kind(value)
    if (origin is Literal and value in inner) or type(value) is kind or (kind is float and type(value) is int):
        return value
    raise TypeError(f"{where} is {json.dumps(value)[:100]}")
