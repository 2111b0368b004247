import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from dilrewrite import runtimes as backends
from dilrewrite.errors import MissingError, UsageError
from dilrewrite.model.elements import dtype
from dilrewrite.runtimes import Backend, backend


def test_every_backend_is_found_by_its_file_name():
    found = backends.backends()
    assert {"onnxruntime_cpu", "reference"} <= found.keys()
    assert all(known.name == name for name, known in found.items())


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'cuda'; known are .*onnxruntime_cpu, .*reference"):
        backend("cuda")


def test_a_backend_that_is_not_ready_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"onnxruntime_cpu: onnxruntime is not installed: pip install"):
        backend("onnxruntime_cpu")


def test_a_ready_backend_is_returned_with_its_versions():
    known: Backend = backend("reference")
    assert known.missing() is None
    assert known.versions().keys() == {"onnx", "numpy"}


def test_the_folder_loads_no_runtime():
    loads = (
        "import sys, dilrewrite.runtimes.onnxruntime_cpu; print({'onnx', 'onnxruntime'} & set(sys.modules));"
        "dilrewrite.runtimes.backends(); print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "False"]


@pytest.mark.parametrize(
    ("element", "wanted"),
    [
        ("float32", np.float32),
        ("bfloat16", ml_dtypes.bfloat16),
        ("bool", np.bool_),
        ("string", object),
        ("uint8", np.uint8),
        ("int4", ml_dtypes.int4),
        ("float8e5m2", ml_dtypes.float8_e5m2),
    ],
)
def test_dtype(element: str, wanted: type):
    assert dtype(element) == np.dtype(wanted)


def test_no_dtype_for_a_sequence():
    with pytest.raises(KeyError):
        dtype("other:seq(tensor(float))")
