"""Engines that a board builds, for itself: TensorRT there, and what is known of the engine here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dilrewrite import record
from dilrewrite.devices._install import NAME, lacking
from dilrewrite.errors import FailedError, MissingError
from dilrewrite.options import Building
from dilrewrite.runtimes import CannotLoad, RuntimeFailure

if TYPE_CHECKING:
    from onnx import ModelProto

    from dilrewrite.devices._far import Board
    from dilrewrite.tensorrt.engines import Elsewhere
    from dilrewrite.tensorrt.make import Built
    from dilrewrite.tensorrt.profiles import Profile


def built_there(board: Board, building: Building) -> Elsewhere:
    """Return what builds on a board. Raises MissingError where TensorRT is not there."""
    from dilrewrite.tensorrt.engines import Elsewhere

    told, _ = _asked(board, {"do": "flavour", "name": building.flavour})
    try:
        flavour, version = record.read(tuple[str, str], told, "the board's answer")
    except TypeError as error:
        raise MissingError(f"{board.on}: {error}") from None

    def build(model: ModelProto, sizes: Mapping[str, Profile], tf32: bool) -> Built:
        from dilrewrite.tensorrt.make import Built

        name = board.line().put(model.SerializeToString())
        options = {key: value for key, value in dataclasses.asdict(building).items() if key not in PLACES}
        profiles = {key: dataclasses.asdict(one) for key, one in sizes.items()}
        request = {"do": "build", "flavour": flavour, "model": name, "options": options, "profiles": profiles}
        answer, blobs = _asked(board, {**request, "tf32": tf32})
        try:
            built: Built = record.read(Built, {**answer, "plan": blobs[0]}, "the board's answer")
            return built
        except (TypeError, IndexError) as error:
            raise FailedError(f"{board.on}: {error}") from None

    return Elsewhere(on=board.on, flavour=flavour, version=version, build=build)


PLACES = ("plugins", "timing_cache", "device")
"""Options that name something of this machine."""


def _asked(board: Board, request: dict[str, Any]) -> tuple[Any, list[bytes]]:
    worker = board.line().session(None)
    try:
        return worker.ask(request)
    except RuntimeFailure as error:
        hint = f"install it in the Python there, or {NAME}" if isinstance(error, CannotLoad) else ""
        raise MissingError(f"{board.on}: {error}", hint=hint) from None
    except MissingError as error:
        raise lacking(board.on, str(error).removeprefix(f"{board.on}: "), board.line().address.python) from None
    finally:
        worker.close()
