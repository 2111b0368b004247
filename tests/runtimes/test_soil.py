"""New memory holds large numbers where outputs are compared, each time others, and only there."""

from __future__ import annotations

import contextlib
import platform

import numpy as np
import pytest

from dilrewrite.runtimes import Options, Runnable, artifact
from dilrewrite.runtimes._soil import soiled
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND
from tests.models_for_tests import conv2d, values

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc fills memory")


@GLIBC
def test_new_memory_is_filled() -> None:
    held = []
    for _ in range(3):
        with soiled():
            held.append(np.empty(2**20, np.float32))
    numbers = [float(memory[2**19]) for memory in held]
    assert all(1e36 < number < 1e38 for number in numbers)
    assert len(set(numbers)) == 3
    assert not np.any(np.zeros(2**20, np.float32)), "what is asked for as zeros is zeros"


@GLIBC
def test_what_was_filled_before_is_not_any_more() -> None:
    with contextlib.suppress(KeyError), soiled():
        raise KeyError
    assert float(np.empty(2**24, np.float32)[2**23]) == 0, "so large a piece comes fresh from the system"


def test_a_runtime_that_writes_what_it_reads_computes_the_same() -> None:
    feeds = {"x": values(1, 2, 12, 12)}
    with contextlib.closing(BACKEND.bench(Options(threads=1, timeout_s=60))) as bench:
        bench.add("m", artifact(Runnable(model=conv2d().SerializeToString())), feeds)
        found = [bench.outputs("m")["y"] for _ in range(4)]
    assert all((one == found[0]).all() for one in found)
