"""Values of models as JSON and blobs: arrays are a type, a shape and bytes, texts are texts. Both ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dilrewrite.model.elements import ELEMENTS

_NAMES = {element.dtype: element.name for element in reversed(ELEMENTS) if element.numpy != "object"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def pack(values: Mapping[str, Any], keep: Callable[[bytes], Any]) -> dict[str, Any]:
    """Return arrays, and lists of them, as plain data; `keep` takes an array's bytes and returns what names them."""
    return {name: _packed(value, keep) for name, value in values.items()}


def unpack(plain: Any, blob: Callable[[Any], bytes]) -> dict[str, Any]:
    """Return what was packed; `blob` returns the bytes of a name. Raises TypeError for what nothing packs."""
    if not isinstance(plain, dict):
        raise TypeError("no values")
    return {str(name): _unpacked(value, blob) for name, value in plain.items()}


def _packed(value: Any, keep: Callable[[bytes], Any]) -> Any:
    if isinstance(value, list):
        return {"list": [_packed(one, keep) for one in value]}
    array = np.asarray(value, order="C")
    if array.dtype.kind in "OSU":
        return {"texts": [_text(one) for one in array.ravel().tolist()], "shape": array.shape}
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.isbuiltin == 1 else array
    return {"type": _NAMES[array.dtype], "shape": array.shape, "bytes": keep(little.tobytes())}


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _unpacked(plain: Any, blob: Callable[[Any], bytes]) -> Any:
    try:
        if "list" in plain:
            return [_unpacked(one, blob) for one in plain["list"]]
        shape = tuple(map(int, plain["shape"]))
        if "texts" in plain:
            texts: NDArray[Any] = np.empty(len(plain["texts"]), object)
            texts[:] = list(map(str, plain["texts"]))
            return texts.reshape(shape)
        dtype = _TYPES[plain["type"]]
        kept = dtype.newbyteorder("<") if dtype.isbuiltin == 1 else dtype
        return np.frombuffer(bytearray(blob(plain["bytes"])), kept).astype(dtype, copy=False).reshape(shape)
    except (KeyError, ValueError, AttributeError) as error:
        raise TypeError(f"no value: {error}") from None


def blobs_of(sent: Sequence[bytes]) -> Callable[[Any], bytes]:
    """Return what finds the blobs of a message by their place in it."""

    def blob(place: Any) -> bytes:
        if type(place) is not int or not 0 <= place < len(sent):
            raise TypeError("no such blob")
        return sent[place]

    return blob
