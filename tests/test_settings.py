"""Plug-ins by the names that users give them: with hyphens, by their short names, with settings."""

from __future__ import annotations

import pytest

from dilrewrite import settings
from dilrewrite.errors import UsageError
from dilrewrite.forms import strategies
from dilrewrite.runtimes import backends, timed_backend


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("onnxruntime-cpu", "onnxruntime_cpu"),
        ("cpu", "onnxruntime_cpu"),
        ("cuda", "onnxruntime_cuda"),
        ("trt", "tensorrt"),
        ("trt-rtx", "tensorrt_rtx"),
        ("TensorRT", "tensorrt"),
        ("auto", None),
        ("", None),
    ],
)
def test_names_of_backends(given: str, name: str | None) -> None:
    assert settings.named(given, backends()) == name


def test_no_short_name_is_taken_twice() -> None:
    short = [found.alias for found in backends().values() if found.alias]
    assert len(set(short) | set(backends())) == len(short) + len(backends())


def test_a_name_as_it_stands_comes_first() -> None:
    assert settings.named("a-b", {"a_b": None, "a-b": None}) == "a-b"


def test_hyphens_in_names_and_settings() -> None:
    assert strategies.parse("space-to-group:limit-mb=8") == strategies.parse("space_to_group:limit_mb=8")
    assert timed_backend("cpu") is timed_backend("onnxruntime-cpu")


def test_an_unknown_name_says_what_was_meant() -> None:
    near = r"no form 'space_to_bath'; did you mean space_to_batch[?] Choose one of back_to_float, equal_dilations, fold"
    with pytest.raises(UsageError, match=near):
        strategies.parse("space_to_bath")
    with pytest.raises(UsageError, match=r"no backend 'onnxruntime_cup'; did you mean onnxruntime_cpu[?] Known are "):
        timed_backend("onnxruntime_cup")
