"""Run by the Python of RKNN-Toolkit2's environment: compiles the models of folders, each in a process of its own.

A line of its input is `PLATFORM FOLDER`. What the toolkit says of model.onnx there goes to said.txt, and the exit code
of the process is the answer, a line. PyTorch, which the toolkit imports for models of PyTorch and for quantising by
gradients, is not installed there: where it is missing, an empty package has its place, which says so when it is used.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import Any


class _Anything(type):
    """Has every name, which is itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_Anything):
    """What an empty package has by any name: a class to inherit from, or a decorator that changes nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, given: object, *_: object, **__: object) -> object:
        return given

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("the toolkit needs PyTorch for this model: install torch in its environment")


class _Empty:
    """Finds `torch` and what is in it."""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        mine = name.partition(".")[0] == "torch"
        return importlib.machinery.ModuleSpec(name, cls(), is_package=True) if mine else None  # type: ignore[arg-type]

    def create_module(self, _: object) -> None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: getattr(_Nothing, name)  # type: ignore[method-assign]


def main() -> None:
    """Answer until the input ends. The toolkit is imported once, and never used here: that may crash."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if importlib.util.find_spec("torch") is None:
        sys.meta_path.append(_Empty)  # type: ignore[arg-type]
    import rknn.api  # noqa: F401 - each process has it

    for line in sys.stdin:
        platform, _, folder = line.rstrip("\n").partition(" ")
        child = os.fork()
        if not child:
            os._exit(_compiled(platform, folder))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _compiled(platform: str, folder: str) -> int:
    """Compile the model of a folder; return 0, or 1 where it fails, having said why."""
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from rknn.api import RKNN

    toolkit: Any = RKNN
    try:
        kit = toolkit(verbose=True)
        steps = (
            lambda: kit.config(target_platform=platform),
            lambda: kit.load_onnx("model.onnx"),
            lambda: kit.build(do_quantization=False),
        )
        return int(any(step() != 0 for step in steps))  # type: ignore[no-untyped-call]
    except BaseException:  # the toolkit raises, and exits: this process ends either way
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what the compiler's C++ said


if __name__ == "__main__":
    main()
