# ruff: noqa: ARG001, ARG002, ARG005, N802 - fixtures that are only wanted to be there, stand-ins with another's names
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.runtimes import (
    CannotLoad,
    CannotRun,
    Options,
    Runnable,
    artifact,
    backends,
    profiled,
    timed_backend,
)
from dilrewrite.runtimes._onnxruntime import TIMED
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND as CPU_BACKEND
from dilrewrite.runtimes.onnxruntime_cuda import BACKEND, OnnxRuntimeCuda

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
X = np.arange(6, dtype=np.float32).reshape(1, 6)
IN_PROCESS = Options(isolated=False)
MODULE = "dilrewrite.runtimes.onnxruntime_cuda"


def runnable(size=64, dilation=2):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-3, 4, (8, 8, 3, 3)).astype(np.float32), "w")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[dilation] * 2, pads=[dilation] * 4, name="the_conv")
    relu = helper.make_node("Relu", ["y"], ["z"], name="the_relu")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, size, size]) for name in "xz"]
    graph = helper.make_graph([conv, relu], "g", info[:1], info[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Runnable(model=proto.SerializeToString())


# -- an ONNX Runtime that writes down what is asked of it -------------------------------------------------------------


@dataclass
class Value:
    name: str
    type: str = "tensor(float)"
    shape: tuple[int, ...] = (1, 6)


@dataclass
class FakeRuntime:
    """Stands for the module; `calls` is what happened, in order."""

    gives: tuple[str, ...] = (CUDA, CPU)
    inputs: tuple[Value, ...] = (Value("x"),)
    outputs: tuple[Value, ...] = (Value("y"),)
    events: tuple[dict, ...] = ()
    run_error: Exception | None = None
    calls: list = field(default_factory=list)

    def install(self, monkeypatch, origin):
        fake = self

        class SessionOptions:
            def add_session_config_entry(self, key, value):
                fake.calls.append(("entry", key, value))

        class InferenceSession:
            def __init__(self, model, settings, providers, enable_fallback):
                self.prefix = getattr(settings, "profile_file_prefix", "")
                fake.calls.append(("session", providers, enable_fallback, settings.log_severity_level))
                fake.calls.append(("waits", os.environ.get("CUDA_LAUNCH_BLOCKING")))

            def get_providers(self):
                return list(fake.gives)

            def get_inputs(self):
                return list(fake.inputs)

            def get_outputs(self):
                return list(fake.outputs)

            def io_binding(self):
                return Binding()

            def run_with_iobinding(self, binding):
                fake.calls.append(("run_with_iobinding",))
                if fake.run_error is not None:
                    raise fake.run_error

            def run(self, names, feeds):
                fake.calls.append(("run", names, sorted(feeds)))
                return [X]

            def end_profiling(self):
                path = f"{self.prefix}_1.json"
                Path(path).write_text(json.dumps(list(fake.events)))
                return path

        class Binding:
            def bind_ortvalue_input(self, name, value):
                fake.calls.append(("input", name, value))

            def bind_output(self, name, device):
                fake.calls.append(("output", name, device))

            def synchronize_inputs(self):
                fake.calls.append(("synchronize_inputs",))

            def get_outputs(self):
                shapes = [out.shape for out in fake.outputs]
                return [
                    types.SimpleNamespace(is_tensor=lambda: True, shape=lambda shape=shape: shape) for shape in shapes
                ]

            def synchronize_outputs(self):
                fake.calls.append(("synchronize_outputs",))

        def preload_dlls():
            fake.calls.append(("preload_dlls",))
            print("Failed to load libnothing.so")

        module = types.ModuleType("onnxruntime")
        module.__spec__ = importlib.util.spec_from_file_location("onnxruntime", origin)
        module.__version__, module.cuda_version = "1.31.1", "13.0"
        module.get_available_providers = lambda: list(fake.gives)
        module.preload_dlls = preload_dlls
        module.SessionOptions, module.InferenceSession = SessionOptions, InferenceSession
        module.OrtValue = types.SimpleNamespace(
            ortvalue_from_numpy=lambda value: ("host", value.dtype.name),
            ortvalue_from_numpy_with_onnx_type=lambda _, number: ("host", number),
        )
        module.capi = types.ModuleType("onnxruntime.capi")
        module.capi.onnxruntime_pybind11_state = types.ModuleType("onnxruntime.capi.onnxruntime_pybind11_state")
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.setitem(sys.modules, "onnxruntime.capi", module.capi)
        monkeypatch.setitem(
            sys.modules, "onnxruntime.capi.onnxruntime_pybind11_state", module.capi.onnxruntime_pybind11_state
        )
        return module

    def names(self):
        return [call[0] for call in self.calls]

    def the(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def package(tmp_path):
    """The folder of an installed onnxruntime-gpu."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "capi" / "libonnxruntime_providers_cuda.so").touch()
    (folder / "capi" / "onnxruntime_providers_cuda.dll").touch()
    (folder / "capi" / "build_and_package_info.py").write_text(
        "package_name = 'onnxruntime-gpu'\n__version__ = '1.31.1'\ncuda_version = '13.0'\n"
    )
    return folder


@pytest.fixture
def ort(monkeypatch, package):
    fake = FakeRuntime()
    fake.module = fake.install(monkeypatch, package / "__init__.py")
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    distributions(monkeypatch, "onnxruntime-gpu")
    return fake


def distributions(monkeypatch, *names):
    def version(name):
        if name in names:
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


# -- a driver ---------------------------------------------------------------------------------------------------------


@dataclass
class FakeDriver:
    """Stands for libcuda.so.1."""

    count: int = 1
    status: int = 0
    version: int = 13020
    started: bool = False

    def cuInit(self, flags):
        self.started = self.started or self.status == 0
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, ordinal):
        return 0 if ordinal < self.count else 101

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA L4"
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuGetErrorName(self, status, word):
        if status != 803:
            return 1
        word._obj.value = b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
        return 0

    def cuDevicePrimaryCtxGetState(self, device, flags, active):
        return 0 if self.started else 3


class CuDnn:
    @staticmethod
    def cudnnGetVersion():
        return 91402


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    libraries(monkeypatch, fake)
    return fake


def libraries(monkeypatch, driver, lacks=()):
    """Let `ctypes.CDLL` find the driver (None: not even that) and any library but those named in `lacks`."""

    def load(name):
        if name in ("libcuda.so.1", "nvcuda.dll"):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file:\n No such file or directory")
            return driver
        if any(part in name for part in lacks):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return CuDnn()

    monkeypatch.setattr(ctypes, "CDLL", load)


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_it_is_found_by_its_name_and_preferred():
    assert backends()["onnxruntime_cuda"] is BACKEND
    assert BACKEND.name == "onnxruntime_cuda"
    assert BACKEND.rank > CPU_BACKEND.rank


def test_auto_takes_it_where_it_is_ready(monkeypatch):
    monkeypatch.setattr(OnnxRuntimeCuda, "missing", lambda self: None)
    assert timed_backend("auto") is BACKEND
    monkeypatch.setattr(OnnxRuntimeCuda, "missing", lambda self: "no GPU")
    assert timed_backend("auto") is not BACKEND


def test_a_session_names_its_providers_and_options(ort):
    with BACKEND.session(runnable(), IN_PROCESS) as session:
        assert session.run({"x": X}).keys() == {"y"}
    ((providers, fallback, _),) = ort.the("session")
    assert [name if isinstance(name, str) else name[0] for name in providers] == [CUDA, CPU]
    assert fallback == 0
    options = providers[0][1]
    assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert options["use_tf32"] == "1"
    assert ort.names().index("preload_dlls") < ort.names().index("session")


def test_all_options_are_in_the_settings(ort, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    options = Options(isolated=False, threads=3)
    settings = BACKEND.settings(options)
    BACKEND.runner(runnable(), options, {"x": X}).close()
    ((providers, _, _),) = ort.the("session")
    assert providers[0][1].items() <= settings.items()
    assert dict(ort.the("entry")).items() <= settings.items()
    assert TIMED.items() <= settings.items()
    assert settings["intra_op_num_threads"] == "3"
    assert settings["NVIDIA_TF32_OVERRIDE"] == "0"
    assert "CUDA_LAUNCH_BLOCKING" not in settings
    assert BACKEND.settings(Options())["intra_op_num_threads"] == "default"


def test_the_older_runtime_without_preloading(ort):
    del ort.module.preload_dlls
    BACKEND.session(runnable(), IN_PROCESS).close()
    assert "preload_dlls" not in ort.names()


def test_nothing_is_printed(ort, capfd):
    BACKEND.session(runnable(), IN_PROCESS).close()
    assert "preload_dlls" in ort.names()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", ["session", "runner", "profile"])
@pytest.mark.parametrize("gives", [(CPU,), (CPU, CUDA)])
def test_a_silent_fall_back_to_the_cpu_is_an_error(ort, driver, monkeypatch, make, gives):
    ort.gives = gives
    arguments = {"session": (), "runner": ({"x": X},), "profile": ({"x": X}, 1)}[make]
    words = f"^ONNX Runtime uses {', '.join(gives)} instead of {CUDA}, {CPU}"
    with pytest.raises(CannotLoad, match=f"{words}$"):
        getattr(BACKEND, make)(runnable(), IN_PROCESS, *arguments)
    libraries(monkeypatch, driver, lacks=["providers_cuda"])
    with pytest.raises(CannotLoad, match=f"{words}: .*providers_cuda.*: cannot open shared object file"):
        getattr(BACKEND, make)(runnable(), IN_PROCESS, *arguments)


def test_other_reasons_stay_as_they_are(ort, driver, monkeypatch):
    libraries(monkeypatch, driver, lacks=["providers_cuda"])

    def refuses(*_, **__):
        raise RuntimeError("NOT_IMPLEMENTED: Conv")

    ort.module.InferenceSession = refuses
    with pytest.raises(CannotLoad, match=r"^NOT_IMPLEMENTED: Conv$"):
        BACKEND.session(runnable(), IN_PROCESS)


def test_without_onnxruntime_a_session_cannot_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CannotLoad, match="onnxruntime cannot be imported"):
        BACKEND.session(runnable(), IN_PROCESS)


# -- runners ----------------------------------------------------------------------------------------------------------


def test_a_runner_leaves_outputs_on_the_gpu_and_waits_for_them(ort):
    ort.inputs = (Value("x"), Value("shape", "tensor(int64)", (2,)), Value("b", "tensor(bfloat16)"))
    ort.outputs = (Value("y"), Value("words", "tensor(string)"))
    feeds = {"x": X, "shape": np.array([2, 3]), "b": X.astype("bfloat16")}
    runner = BACKEND.runner(runnable(), IN_PROCESS, feeds)
    # ONNX Runtime copies a bound input once to where its nodes read it, which for sizes is the host.
    assert ort.the("input") == [("x", ("host", "float32")), ("shape", ("host", "int64")), ("b", ("host", 16))]
    assert ort.the("output") == [("y", "cuda"), ("words", "cpu")]
    assert ort.names()[-1] == "synchronize_inputs"
    ((_, _, severity),) = ort.the("session")
    assert severity == 2, "warnings are what `doubts` looks for"
    del ort.calls[:]
    runner.run()
    assert ort.names() == ["run_with_iobinding", "synchronize_outputs"]
    ort.run_error = RuntimeError("out of memory")
    with pytest.raises(CannotRun, match="out of memory"):
        runner.run()
    runner.close()


@pytest.mark.parametrize("kind", ["tensor(string)", "seq(tensor(float))"])
def test_what_cannot_be_bound_is_given_with_each_run(ort, kind):
    ort.inputs = (Value("x", kind),)
    runner = BACKEND.runner(runnable(), IN_PROCESS, {"x": np.array(["a"], object)})
    runner.run()
    assert ort.the("run") == [(None, ["x"])]
    assert "run_with_iobinding" not in ort.names()
    runner.close()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "2026 [W:onnxruntime:Default, conv.cc:425 UpdateState] OP Conv(c) running in Fallback mode. May be slow.",
            True,
        ),
        ("[W:onnxruntime:, transformer_memcpy.cc:111] 2 Memcpy nodes are added to the graph g for CUDA", True),
        ("[W:onnxruntime:, session_state.cc:1280] Some nodes were not assigned to the preferred providers", False),
    ],
)
def test_doubts(line, wanted, monkeypatch):
    monkeypatch.setattr("dilrewrite.runtimes._worker.Child.said", lambda self: [line])
    monkeypatch.setattr(type(CPU_BACKEND), "doubts", BACKEND.doubts)
    with contextlib.closing(CPU_BACKEND.bench(Options())) as bench:
        assert bench.warnings() == ((line,) if wanted else ())


# -- the profile ------------------------------------------------------------------------------------------------------


def event(kind, name, start, length, **arguments):
    return {"cat": kind, "name": name, "ts": start, "dur": length, "args": arguments}


def conv(start):
    shapes = {"input_type_shape": [{"float": [1, 6]}], "output_type_shape": [{"float": [1, 6]}]}
    return event("Node", "c_kernel_time", start, 60, op_name="Conv", **shapes)


EVENTS = (
    event("Session", "model_run", 0, 900),
    conv(10),
    event("Session", "model_run", 1000, 100),
    event("Node", "c_fence_before", 1009, 1, op_name="Conv"),
    conv(1010),
)


@pytest.fixture
def environment(monkeypatch):
    """Bring back the variables that a profile sets."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return os.environ


def test_a_profile_waits_for_each_kernel(ort, driver, environment):
    ort.events = EVENTS
    found = BACKEND.profile(runnable(), IN_PROCESS, {"x": X}, 1)
    assert ort.the("waits") == [("1",)]
    assert ort.the("output") == [("y", "cuda")]
    assert ort.names().count("run_with_iobinding") == 2
    assert found.seconds == (100e-6,)
    (node,) = found.nodes
    assert (node.name, node.op, node.seconds, node.inputs, node.outputs) == ("c", "Conv", 60e-6, ((1, 6),), ((1, 6),))
    assert BACKEND.profile(runnable(), IN_PROCESS, {"x": X}, 1) == found, "the driver still waits"


@pytest.mark.parametrize("before", [None, "0"])
def test_a_profile_gives_no_shares_where_cuda_was_started_before(ort, driver, environment, before):
    environment.update({} if before is None else {"CUDA_LAUNCH_BLOCKING": before})
    BACKEND.device()
    ort.events = EVENTS
    found = BACKEND.profile(runnable(), IN_PROCESS, {"x": X}, 1)
    assert ort.the("waits") == [(before,)]
    assert found.seconds == (0,)
    assert [node.inputs for node in found.nodes] == [((1, 6),)]


def test_a_profile_without_a_driver_cannot_load(ort, monkeypatch, environment):
    libraries(monkeypatch, None)
    ort.gives = (CPU,)
    with pytest.raises(CannotLoad, match="instead of"):
        BACKEND.profile(runnable(), IN_PROCESS, {"x": X}, 1)


# -- missing ----------------------------------------------------------------------------------------------------------


def test_nothing_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    distributions(monkeypatch)
    assert BACKEND.missing() == "onnxruntime-gpu is not installed: pip install 'dilrewrite[gpu]'"


@pytest.mark.parametrize("installed", ["onnxruntime", "onnxruntime-directml"])
def test_another_package_is_installed(ort, package, monkeypatch, installed):
    distributions(monkeypatch, installed)
    for library in (package / "capi").glob("*providers*"):
        library.unlink()
    wanted = f"onnxruntime-gpu is not installed: pip uninstall -y {installed}, then pip install 'dilrewrite[gpu]'"
    assert BACKEND.missing() == wanted


def test_a_gpu_package_without_cuda(ort, package):
    for library in (package / "capi").glob("*providers*"):
        library.unlink()
    assert BACKEND.missing().startswith("the installed onnxruntime-gpu is one without CUDA: pip uninstall -y ")


def test_both_packages_are_installed(ort, monkeypatch):
    distributions(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    text = "pip uninstall -y onnxruntime onnxruntime-gpu, then only one of them: pip install 'dilrewrite[gpu]'"
    assert text in BACKEND.missing()
    assert BACKEND.missing() == BACKEND.conflict()


def test_a_broken_installation(monkeypatch):
    left_over = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: left_over)
    distributions(monkeypatch, "onnxruntime-gpu")
    mended = "pip uninstall -y onnxruntime-gpu, then pip install 'dilrewrite[gpu]'"
    assert BACKEND.missing() == f"the installation of onnxruntime is broken: {mended}"


def test_there_is_no_driver(ort, monkeypatch):
    libraries(monkeypatch, None)
    text = BACKEND.missing()
    assert text.startswith("there is no NVIDIA driver: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "visible", "wanted"),
    [
        ({"status": 100}, None, "there is no CUDA device"),
        ({"count": 0}, None, "there is no CUDA device"),
        ({"status": 100}, "", "there is no CUDA device; CUDA_VISIBLE_DEVICES is ''"),
        ({"status": 803}, None, "the NVIDIA driver does not work: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"status": 12345}, None, "the NVIDIA driver does not work: error 12345"),
        (
            {"version": 12080},
            None,
            "the NVIDIA driver supports CUDA 12.8, and the installed onnxruntime-gpu needs CUDA 13.0: "
            "update the driver",
        ),
    ],
    ids=["none", "zero", "hidden", "mismatch", "unknown", "old"],
)
def test_the_gpu_cannot_be_used(ort, driver, monkeypatch, changes, visible, wanted):
    libraries(monkeypatch, replace(driver, **changes))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert BACKEND.missing() == wanted
    assert "preload_dlls" not in ort.names(), "no runtime is loaded"


class Ready:
    """Stands for a child process that could load the runtime."""

    def __init__(self, options):
        assert options.timeout_s is not None

    def close(self):
        pass


def test_all_is_there(ort, driver, monkeypatch, package):
    monkeypatch.setattr(type(BACKEND), "bench", Ready)
    assert BACKEND.missing() is None
    (package / "capi" / "build_and_package_info.py").unlink()
    assert BACKEND.missing() is None, "the driver's version is held against nothing"
    assert ort.calls == []


def test_a_library_is_not_there(ort, driver, monkeypatch):
    class Lacking(Ready):
        def __init__(self, options):
            raise CannotLoad(f"{BACKEND.name} cannot be imported: libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(type(BACKEND), "bench", Lacking)
    assert BACKEND.missing() == (
        "CUDA's libraries cannot be loaded (libcudnn.so.9: cannot open shared object file): "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_the_child_says_what_is_not_there():
    """For real: here there is no CUDA, or the tests marked gpu run."""
    if BACKEND.missing() is None:
        pytest.skip("CUDA is there")
    with pytest.raises(CannotLoad, match=r"^onnxruntime_cuda cannot be imported: ") as caught:
        BACKEND.session(runnable(), Options())
    assert "\n" not in str(caught.value)


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_versions(ort, driver):
    assert BACKEND.versions() == {"onnxruntime-gpu": "1.31.1", "CUDA": "13.0", "cuDNN": "9.14.2"}
    assert ort.names() == ["preload_dlls"]


@pytest.mark.parametrize("lacks", ["cublas", "cudnn"])
def test_versions_name_the_library_that_is_not_there(ort, driver, monkeypatch, lacks):
    libraries(monkeypatch, driver, lacks=[lacks])
    with pytest.raises(OSError, match=lacks):
        BACKEND.versions()


def test_versions_of_a_runtime_without_cuda(ort):
    ort.gives = (CPU,)
    with pytest.raises(ImportError, match="has no CUDAExecutionProvider"):
        BACKEND.versions()


def test_device(driver):
    assert BACKEND.device() == "NVIDIA L4, driver for CUDA 13.2"


def test_the_cpu_runs_with_the_package_for_gpus(ort):
    assert CPU_BACKEND.missing() is None
    ort.gives = (CPU,)
    CPU_BACKEND.session(runnable(), IN_PROCESS).close()
    ((providers, _, _),) = ort.the("session")
    assert providers == [CPU]
    assert "preload_dlls" not in ort.names()


# -- on a GPU ---------------------------------------------------------------------------------------------------------

MISSING = BACKEND.missing()


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(MISSING is not None, reason=str(MISSING))(test))


@on_gpu
def test_on_a_gpu_results_are_those_of_the_cpu():
    x = np.random.default_rng(1).integers(-3, 4, (1, 8, 64, 64)).astype(np.float32)
    results = []
    for backend in (CPU_BACKEND, BACKEND):
        with backend.session(runnable(), Options()) as session:
            results.append(session.run({"x": x})["z"])
    np.testing.assert_array_equal(*results)


@on_gpu
def test_on_a_gpu_runs_are_timed_and_profiled():
    size = 1024
    x = np.zeros((1, 8, size, size), np.float32)
    with contextlib.closing(BACKEND.bench(Options())) as bench:
        for key, dilation in (("a", 1), ("b", 4)):
            bench.add(key, artifact(runnable(size, dilation)), {"x": x})
        bench.open(["a", "b"])
        assert min(bench.run(["a", "b", "b", "a"])) > 0
        assert bench.warnings() == ()
    found = profiled(BACKEND, runnable(size), Options(), {"x": x}, 3)
    assert found.runs == 3
    assert 0.5 < sum(node.seconds for node in found.nodes) / sum(found.seconds) <= 1
    assert {node.inputs[0] for node in found.nodes if node.op in ("Conv", "FusedConv")} == {(1, 8, size, size)}
