"""Compares two protobuf messages field by field: tells which fields differ where their bytes do."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet


class Change(NamedTuple):
    """One field that differs: its path (`graph.node[3].attribute[0].i`) and both values, `None` for an absent one."""

    path: str
    before: Any
    after: Any


def diff(before: Message, after: Message, path: str = "") -> list[Change]:
    """Return every difference of two messages of one type, in field order; repeated fields are compared by place.

    Absent and present-but-default differ. Fields that this version of the schema does not know are compared too.
    """
    assert before.DESCRIPTOR is after.DESCRIPTOR, f"{path}: {before.DESCRIPTOR.name} and {after.DESCRIPTOR.name}"
    found: list[Change] = []
    for field in before.DESCRIPTOR.fields:
        here = f"{path}.{field.name}" if path else field.name
        old, new = getattr(before, field.name), getattr(after, field.name)
        if _repeated(field):
            for place in range(max(len(old), len(new))):
                one = old[place] if place < len(old) else None
                other = new[place] if place < len(new) else None
                found += _values(one, other, f"{here}[{place}]")
        else:
            found += _values(
                old if before.HasField(field.name) else None, new if after.HasField(field.name) else None, here
            )
    unknown = _unknown(before), _unknown(after)
    if unknown[0] != unknown[1]:
        found.append(Change(f"{path}.?" if path else "?", *unknown))
    return found


def _repeated(field: Any) -> bool:
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == field.LABEL_REPEATED)  # protobuf before 6.31


def _values(before: Any, after: Any, path: str) -> list[Change]:
    if isinstance(before, Message) and isinstance(after, Message):
        return diff(before, after, path)
    # repr tells -0.0 from 0.0 and holds nan equal to itself
    return [] if before is after or repr(before) == repr(after) else [Change(path, before, after)]


def _unknown(message: Message) -> list[tuple[int, int, str]]:
    return [(field.field_number, field.wire_type, repr(field.data)) for field in UnknownFieldSet(message)]
