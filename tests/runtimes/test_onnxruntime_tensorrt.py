# ruff: noqa: ARG001, ARG002, ARG005 - fixtures that are only wanted to be there, stand-ins with another's names
import contextlib
import ctypes
import importlib.machinery
import importlib.util
import json
import os
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.runtimes import (
    CannotLoad,
    CannotRun,
    Crashed,
    NodeRun,
    Options,
    Profile,
    Runnable,
    TimedOut,
    artifact,
    backends,
    profiled,
    timed_backend,
)
from dilrewrite.runtimes._onnxruntime import TIMED
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND as CPU_BACKEND
from dilrewrite.runtimes.onnxruntime_cuda import PROVIDER_OPTIONS as CUDA_OPTIONS
from dilrewrite.runtimes.onnxruntime_tensorrt import BACKEND, PROVIDER, placement
from dilrewrite.tensorrt import bindings
from tests.runtimes import test_onnxruntime_cuda as gpu

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
MODULE = "dilrewrite.runtimes.onnxruntime_tensorrt"
X = gpu.X
FEEDS = {"x": X}
IN_PROCESS = gpu.IN_PROCESS
ENGINE = "TRTKernel_graph_g_6811262395420391386_0"
INSTALL = "pip install 'tensorrt>=10,<11'"


# -- stand-ins --------------------------------------------------------------------------------------------------------


class Libraries:
    """Stands for what `ctypes.CDLL` finds: cuDNN and TensorRT in one."""

    @staticmethod
    def cudnnGetVersion():  # noqa: N802
        return 91402

    @staticmethod
    def getInferLibVersion():  # noqa: N802
        return 101601


def libraries(monkeypatch, driver, lacks=()):
    """Let `ctypes.CDLL` find the driver and any library but those named in `lacks`; return what was asked for."""
    asked = []
    gpu.libraries(monkeypatch, driver, lacks)
    find = ctypes.CDLL

    def load(name):
        asked.append(name)
        found = find(name)
        return found if found is driver else Libraries()

    monkeypatch.setattr(ctypes, "CDLL", load)
    return asked


@pytest.fixture
def package(tmp_path):
    """The folder of an installed onnxruntime-gpu."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll"):
        (folder / "capi" / name).touch()
    for name in ("libonnxruntime_providers_tensorrt.so", "onnxruntime_providers_tensorrt.dll"):
        (folder / "capi" / name).write_bytes(b"\x7fELF\0libcublas.so.13\0libnvinfer.so.10\0libcudnn.so.9\0")
    (folder / "capi" / "build_and_package_info.py").write_text("cuda_version = '13.0'\n")
    return folder


@pytest.fixture
def driver(monkeypatch):
    fake = gpu.FakeDriver()
    fake.asked = libraries(monkeypatch, fake)
    return fake


@pytest.fixture
def ort(monkeypatch, package, driver):
    fake = gpu.FakeRuntime(gives=(TENSORRT, CUDA, CPU), events=events(engine(1010)))
    fake.module = fake.install(monkeypatch, package / "__init__.py")
    fake.module.GraphOptimizationLevel = types.SimpleNamespace(ORT_DISABLE_ALL=0)
    for variable in ("CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(variable, raising=False)
    gpu.distributions(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setattr(bindings, "version", lambda flavour: "")
    return fake


@pytest.fixture
def environment(monkeypatch):
    """Bring back the variables that a profile sets."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return os.environ


def event(name, op, provider, start, length=50):
    arguments = {"op_name": op, "provider": provider, "node_index": "0", "thread_scheduling_stats": ""}
    arguments["input_type_shape"] = arguments["output_type_shape"] = [{"float": [1, 6]}]
    return gpu.event("Node", f"{name}_kernel_time", start, length, **arguments)


def engine(start, number=0):
    return event(f"{PROVIDER}_{ENGINE}_{number}", ENGINE, TENSORRT, start)


def events(*nodes):
    """A recorded profile of one run."""
    begin = gpu.event("Session", "session_initialization", 3, 900000)
    return (begin, gpu.event("Session", "model_run", 1000, 400), *nodes)


def options_of(ort, number=-1):
    """What the TensorRT provider of a session was given."""
    ((name, options), *_) = ort.the("session")[number][0]
    assert name == TENSORRT
    return options


# -- what it says of itself -------------------------------------------------------------------------------------------


def test_it_is_found_by_its_name_and_never_taken_by_auto(monkeypatch):
    assert backends()["onnxruntime_tensorrt"] is BACKEND
    assert BACKEND.name == "onnxruntime_tensorrt"
    assert BACKEND.rank < 0
    assert BACKEND.trial in backends()
    assert BACKEND.source == "measured"
    monkeypatch.setattr(type(BACKEND), "missing", lambda self: None)
    monkeypatch.setattr(type(backends()["onnxruntime_cuda"]), "missing", lambda self: "no GPU")
    assert timed_backend("auto") is CPU_BACKEND
    assert timed_backend("onnxruntime_tensorrt") is BACKEND


def test_versions(ort):
    wanted = {"onnxruntime-gpu": "1.31.1", "CUDA": "13.0", "cuDNN": "9.14.2", "TensorRT": "10.16.1"}
    assert BACKEND.versions() == wanted
    assert ort.names() == ["preload_dlls"]


@pytest.mark.parametrize("lacks", ["cublas", "cudnn", "nvinfer.so", "nvonnxparser"])
def test_versions_name_the_library_that_is_not_there(ort, driver, monkeypatch, lacks):
    libraries(monkeypatch, driver, lacks=[lacks])
    with pytest.raises(OSError, match=lacks):
        BACKEND.versions()


def test_versions_of_a_runtime_without_tensorrt(ort):
    ort.gives = (CUDA, CPU)
    with pytest.raises(ImportError, match="has no TensorrtExecutionProvider"):
        BACKEND.versions()


def test_the_libraries_that_pip_installed_are_taken_before_others(ort, driver, tmp_path, monkeypatch):
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    for name in ("__init__.py", "libnvinfer.so.10"):
        (folder / name).touch()
    spec = importlib.machinery.ModuleSpec("tensorrt_libs", None, origin=str(folder / "__init__.py"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "tensorrt_libs" else find(name))
    BACKEND.versions()
    assert [name for name in driver.asked if "nv" in name] == [
        str(folder / "libnvinfer.so.10"),
        "libnvonnxparser.so.10",
    ]
    del driver.asked[:]
    BACKEND.session(gpu.runnable(), IN_PROCESS).close()
    wanted = [str(folder / "libnvinfer.so.10"), "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]
    assert driver.asked == wanted, "before the session is made"


def test_the_version_of_tensorrt_is_the_one_that_the_provider_is_linked_with(ort, driver, package):
    for library in (package / "capi").glob("*tensorrt*"):
        library.write_bytes(b"libnvinfer.so.12\0")
    BACKEND.versions()
    assert driver.asked[-2:] == ["libnvinfer.so.12", "libnvonnxparser.so.12"]


def test_device_and_state_are_those_of_the_gpu(driver):
    assert BACKEND.device() == "NVIDIA L4, driver for CUDA 13.2"
    assert BACKEND.state() == backends()["onnxruntime_cuda"].state()


# -- missing ----------------------------------------------------------------------------------------------------------


class Ready:
    """Stands for a child process that could load the runtime."""

    def __init__(self, options):
        assert options.timeout_s is not None

    def close(self):
        pass


def lacking(error):
    class Lacking(Ready):
        def __init__(self, options):
            raise error

    return Lacking


def test_all_is_there(ort, monkeypatch):
    monkeypatch.setattr(type(BACKEND), "bench", Ready)
    assert BACKEND.missing() is None
    assert ort.calls == [], "no runtime is loaded in this process"


@pytest.mark.parametrize(
    ("lost", "installed", "wanted"),
    [
        (
            "*providers*",
            "onnxruntime",
            "onnxruntime-gpu is not installed: pip uninstall -y onnxruntime, then pip install 'dilrewrite[gpu]'",
        ),
        (
            "*providers*",
            "onnxruntime-gpu",
            "the installed onnxruntime-gpu is one without CUDA: "
            "pip uninstall -y onnxruntime-gpu, then pip install 'dilrewrite[gpu]'",
        ),
        (
            "*providers_tensorrt*",
            "onnxruntime-gpu",
            "the installed onnxruntime-gpu is one without TensorRT: "
            "pip uninstall -y onnxruntime-gpu, then pip install 'dilrewrite[gpu]'",
        ),
    ],
    ids=["cpu", "no_cuda", "no_tensorrt"],
)
def test_a_provider_is_not_installed(ort, package, monkeypatch, lost, installed, wanted):
    monkeypatch.setattr(type(BACKEND), "bench", lacking(AssertionError("a runtime is loaded")))
    gpu.distributions(monkeypatch, installed)
    for library in (package / "capi").glob(lost):
        library.unlink()
    assert BACKEND.missing() == wanted


def test_both_packages_are_installed(ort, monkeypatch):
    gpu.distributions(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    assert BACKEND.missing() == BACKEND.conflict()
    assert "overwrite each other" in str(BACKEND.conflict())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (None, "there is no NVIDIA driver: libcuda"),
        ({"count": 0}, "there is no CUDA device"),
        ({"version": 12080}, "the NVIDIA driver supports CUDA 12.8, and the installed onnxruntime-gpu needs CUDA 13.0"),
    ],
    ids=["driver", "device", "old"],
)
def test_without_a_gpu_no_runtime_is_loaded(ort, monkeypatch, changes, wanted):
    monkeypatch.setattr(type(BACKEND), "bench", lacking(AssertionError("a runtime is loaded")))
    libraries(monkeypatch, None if changes is None else gpu.FakeDriver(**changes))
    assert str(BACKEND.missing()).startswith(wanted)
    assert ort.calls == []


GONE = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("said", "installed", "wanted"),
    [
        (
            f"libcudnn.so.9: {GONE}",
            "",
            f"CUDA's libraries cannot be loaded (libcudnn.so.9: {GONE}): pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
        (
            f"libnvinfer.so.10: {GONE}",
            "",
            "TensorRT 10, which onnxruntime-gpu is linked with, cannot be loaded "
            f"(libnvinfer.so.10: {GONE}): {INSTALL}",
        ),
        (
            f"libnvinfer.so.10: {GONE}",
            "11.4.0.106",
            "TensorRT 10, which onnxruntime-gpu is linked with, cannot be loaded "
            f"(libnvinfer.so.10: {GONE}; installed is TensorRT 11.4.0.106): {INSTALL}",
        ),
        (
            f"libnvonnxparser.so.10: {GONE}",
            "",
            "TensorRT 10, which onnxruntime-gpu is linked with, cannot be loaded "
            f"(libnvonnxparser.so.10: {GONE}): {INSTALL}",
        ),
    ],
    ids=["cudnn", "none", "too_new", "parser"],
)
def test_a_library_is_not_there(ort, monkeypatch, said, installed, wanted):
    monkeypatch.setattr(bindings, "version", lambda flavour: installed)
    refused = CannotLoad(f"{BACKEND.name} cannot be imported: {said}")
    monkeypatch.setattr(type(BACKEND), "bench", lacking(refused))
    assert BACKEND.missing() == wanted


@pytest.mark.parametrize("error", [Crashed("the process was killed by SIGSEGV"), TimedOut("no answer within 60 s")])
def test_a_child_that_dies_is_a_reason(ort, monkeypatch, error):
    monkeypatch.setattr(type(BACKEND), "bench", lacking(error))
    assert str(error) in str(BACKEND.missing())


def test_the_child_says_what_is_not_there():
    """For real: here there is no TensorRT, or the tests marked gpu run."""
    if BACKEND.missing() is None:
        pytest.skip("TensorRT is there")
    with pytest.raises(CannotLoad, match=r"^onnxruntime_tensorrt cannot be imported: ") as caught:
        BACKEND.session(gpu.runnable(), Options())
    assert "\n" not in str(caught.value)


# -- providers and options --------------------------------------------------------------------------------------------

OFF = {
    "trt_fp16_enable": "False",
    "trt_bf16_enable": "False",
    "trt_int8_enable": "False",
    "trt_cuda_graph_enable": "False",
    "trt_detailed_build_log": "False",
    "trt_timing_cache_enable": "False",
    "trt_engine_cache_enable": "False",
}


@pytest.mark.parametrize("optimize", [False, True])
def test_a_session_names_its_providers_and_options_in_order(ort, optimize):
    with BACKEND.session(gpu.runnable(), Options(isolated=False, optimize=optimize)) as session:
        assert session.run(FEEDS).keys() == {"y"}
    ((providers, fallback, _),) = ort.the("session")
    assert providers == [(TENSORRT, OFF), (CUDA, CUDA_OPTIONS), CPU]
    assert fallback == 0
    assert ort.names().index("preload_dlls") < ort.names().index("session")


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [
        ("fp16", "trt_fp16_enable"),
        ("bf16", "trt_bf16_enable"),
        ("int8-qdq", "trt_int8_enable"),
        ("fp32", None),
        ("tf32", None),
        (None, None),
    ],
)
def test_a_precision_is_allowed_and_no_other(ort, precision, allowed):
    BACKEND.building(precision).session(gpu.runnable(), Options(isolated=False)).close()
    assert options_of(ort) == OFF | ({} if allowed is None else {allowed: "True"})


def of_type(kind):
    proto = ModelProto.FromString(gpu.runnable().model)
    weight = numpy_helper.to_array(proto.graph.initializer[0]).astype(kind)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = proto.graph.initializer[0].data_type
    if kind is ml_dtypes.bfloat16:  # which Conv has since opset 22
        proto.opset_import[0].version, proto.ir_version = 22, 10
    return proto


def quantized():
    proto = of_type(np.float32)
    proto.graph.node[0].input[0] = "d"
    scale = [numpy_helper.from_array(np.array(1, np.float32), "s"), numpy_helper.from_array(np.array(0, np.int8), "z")]
    proto.graph.initializer.extend(scale)
    proto.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]))
    proto.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]))
    return proto


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize(
    ("proto", "allowed"),
    [
        (of_type(np.float16), "trt_fp16_enable"),
        (of_type(ml_dtypes.bfloat16), "trt_bf16_enable"),
        (quantized(), "trt_int8_enable"),
    ],
    ids=["fp16", "bf16", "qdq"],
)
def test_without_a_precision_the_types_that_a_model_holds_are_allowed(ort, tmp_path, proto, allowed, as_file):
    model = proto.SerializeToString()
    if as_file:
        (tmp_path / "m.onnx").write_bytes(model)
        model = tmp_path / "m.onnx"
    BACKEND.session(Runnable(model=model), IN_PROCESS).close()
    assert options_of(ort) == OFF | {allowed: "True"}


@pytest.mark.parametrize("model", [b"\xff no model", Path("not_there.onnx")], ids=["broken", "no_file"])
def test_what_cannot_be_read_is_left_to_onnx_runtime(ort, tmp_path, model):
    def refuses(*_, **__):
        raise RuntimeError("INVALID_PROTOBUF")

    ort.module.InferenceSession = refuses
    with pytest.raises(CannotLoad, match="INVALID_PROTOBUF"):
        BACKEND.session(Runnable(model=model), Options(isolated=False, scratch=tmp_path))


def test_caches_lie_in_the_scratch_folder(ort, tmp_path):
    scratch = tmp_path / "scratch"
    BACKEND.runner(gpu.runnable(), Options(isolated=False, scratch=scratch), FEEDS).close()
    options = options_of(ort)
    assert options["trt_timing_cache_enable"] == options["trt_engine_cache_enable"] == "True"
    assert options["trt_timing_cache_path"] == str(scratch)
    assert Path(options["trt_engine_cache_path"]).parent == scratch
    assert Path(options["trt_engine_cache_path"]).is_dir()


def test_engines_of_different_models_shapes_and_precisions_lie_apart(ort, tmp_path):
    """The provider tells two models apart by the names of their tensors only."""
    scratch = tmp_path / "scratch"
    feeds = {"x": X}
    for _ in range(2):
        BACKEND.runner(gpu.runnable(dilation=2), Options(isolated=False, scratch=scratch), feeds).close()
    BACKEND.runner(gpu.runnable(dilation=3), Options(isolated=False, scratch=scratch), feeds).close()
    BACKEND.runner(gpu.runnable(), Options(isolated=False, scratch=scratch), {"x": X[:, :3]}).close()
    BACKEND.building("fp16").runner(gpu.runnable(), Options(isolated=False, scratch=scratch), feeds).close()
    file = tmp_path / "m.onnx"
    for dilation in (2, 30):
        file.write_bytes(gpu.runnable(dilation=dilation).model)
        os.utime(file, ns=(dilation, dilation))
        BACKEND.runner(Runnable(model=file), Options(isolated=False, scratch=scratch), feeds).close()
    folders = [options_of(ort, number)["trt_engine_cache_path"] for number in range(7)]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 6
    assert len({options_of(ort, number)["trt_timing_cache_path"] for number in range(7)}) == 1


def test_all_options_are_in_the_settings(ort, monkeypatch, tmp_path):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    options = Options(isolated=False, threads=3, scratch=tmp_path)
    half = BACKEND.building("fp16")
    settings = half.settings(options)
    half.runner(gpu.runnable(), options, FEEDS).close()
    ((providers, _, _),) = ort.the("session")
    given = dict(providers[0][1])
    for path in ("trt_timing_cache_path", "trt_engine_cache_path"):
        assert str(tmp_path) in given.pop(path)
        assert "engines are kept" in settings[path] or "in it" in settings[path]
    assert given.items() <= settings.items()
    assert CUDA_OPTIONS.items() <= settings.items()
    assert dict(ort.the("entry")).items() <= settings.items()
    assert TIMED.items() <= settings.items()
    assert settings["intra_op_num_threads"] == "3"
    assert settings["precision"] == "fp16"
    assert settings["NVIDIA_TF32_OVERRIDE"] == "0"
    assert str(tmp_path) not in str(settings), "a timing is known again in another command"


def test_settings_without_a_precision_and_with_float32(ort):
    settings = BACKEND.settings(Options())
    assert settings["precision"] == "the model's own"
    assert settings["trt_fp16_enable"] == settings["trt_int8_enable"] == "as the model's types need it"
    assert settings["trt_engine_cache_enable"] == "False"
    assert "trt_engine_cache_path" not in settings
    settings = BACKEND.building("fp32").settings(Options())
    assert {settings[name] for name in ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")} == {"False"}
    assert settings["TF32"].startswith("as the provider has it")


# -- sessions that are not what they shall be -------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["session", "runner", "profile"])
@pytest.mark.parametrize("gives", [(CPU,), (CUDA, CPU), (TENSORRT, CPU)], ids=["cpu", "cuda", "no_cuda"])
def test_a_silent_fall_back_is_an_error(ort, driver, environment, monkeypatch, make, gives):
    ort.gives = gives
    arguments = {"session": (), "runner": (FEEDS,), "profile": (FEEDS, 1)}[make]
    words = f"^ONNX Runtime uses {', '.join(gives)} instead of {TENSORRT}, {CUDA}, {CPU}"
    with pytest.raises(CannotLoad, match=f"{words}$"):
        getattr(BACKEND, make)(gpu.runnable(), IN_PROCESS, *arguments)
    libraries(monkeypatch, driver, lacks=["providers_tensorrt"])
    with pytest.raises(CannotLoad, match=f"{words}: .*providers_tensorrt.*: cannot open shared object file"):
        getattr(BACKEND, make)(gpu.runnable(), IN_PROCESS, *arguments)


def test_what_onnx_runtime_says_without_tensorrt_is_explained(ort, driver, monkeypatch):
    libraries(monkeypatch, driver, lacks=["providers_tensorrt", "nvinfer"])

    def refuses(*_, **__):
        raise RuntimeError(
            "/s/onnxruntime_pybind_state.cc:729 void onnxruntime::python::Register(PySessionOptions&) Please install "
            "TensorRT libraries as mentioned in the GPU requirements page."
        )

    ort.module.InferenceSession = refuses
    with pytest.raises(
        CannotLoad, match=r"^Please install TensorRT libraries .* page: .*providers_tensorrt\S+: cannot open"
    ):
        BACKEND.session(gpu.runnable(), IN_PROCESS)


def test_other_reasons_stay_as_they_are(ort, driver, monkeypatch):
    libraries(monkeypatch, driver, lacks=["providers_tensorrt"])

    def refuses(*_, **__):
        raise RuntimeError("EP_FAIL : could not build engine for fused node")

    ort.module.InferenceSession = refuses
    with pytest.raises(CannotLoad, match=r"^EP_FAIL : could not build engine for fused node$"):
        BACKEND.session(gpu.runnable(), IN_PROCESS)


# -- where nodes run --------------------------------------------------------------------------------------------------

MIXED = events(
    engine(1010),
    event("the_nms", "NonMaxSuppression", CUDA, 1100),
    event("Memcpy_token_1", "MemcpyToHost", CUDA, 1160),
    event("the_unique", "Unique", CPU, 1220),
    engine(1300, number=1),
    gpu.event("Node", "the_unique_fence_before", 1219, 1, op_name="Unique"),
)


def test_placement_counts_node_runs_by_provider():
    nodes = [NodeRun(name=str(number), op="Conv", seconds=0.0, provider=CUDA) for number in range(3)]
    nodes.append(NodeRun(name="t", op=ENGINE, seconds=0.0, provider=TENSORRT))
    assert placement(Profile(seconds=(0.0,), nodes=tuple(nodes))) == {CUDA: 3, TENSORRT: 1}
    assert placement(Profile(seconds=(0.0,), nodes=())) == {}


def test_placement_of_a_recorded_profile(ort, environment):
    ort.events = MIXED
    found = BACKEND.profile(gpu.runnable(), IN_PROCESS, FEEDS, 0)
    assert placement(found) == {TENSORRT: 2, CUDA: 2, CPU: 1}
    assert found.nodes[0] == NodeRun(
        name=f"{PROVIDER}_{ENGINE}_0",
        op=ENGINE,
        seconds=50e-6,
        stands_for=f"{PROVIDER}_{ENGINE}_0",
        inputs=((1, 6),),
        outputs=((1, 6),),
        provider=TENSORRT,
    )


def test_a_runner_runs_once_with_the_profiler_and_then_without(ort, capfd):
    runner = BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS)
    ((_, _, severity),) = ort.the("session")
    assert severity == 2, "warnings are what `doubts` looks for"
    assert ort.the("output") == [("y", "cuda")]
    assert ort.names()[-2:] == ["run_with_iobinding", "synchronize_outputs"]
    del ort.calls[:]
    runner.run()
    assert ort.names() == ["run_with_iobinding", "synchronize_outputs"]
    runner.close()
    assert capfd.readouterr() == ("", ""), "all nodes are TensorRT's"


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        (events(), "no node ran at all"),
        (events(event("c", "Conv", CUDA, 1010)), f"{CUDA} ran 1"),
        (
            events(event("c", "Conv", CUDA, 1010), event("r", "Relu", CUDA, 1100), event("u", "Unique", CPU, 1200)),
            f"{CUDA} ran 2, {CPU} ran 1",
        ),
    ],
    ids=["empty", "one", "several"],
)
def test_a_runner_refuses_what_tensorrt_runs_nothing_of(ort, capfd, happened, words):
    ort.events = happened
    with pytest.raises(CannotRun, match=f"^TensorRT runs no node of the model: {words}$"):
        BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS)
    assert capfd.readouterr().err == ""


def test_a_runner_that_fails_at_once_is_closed(ort, monkeypatch):
    closed = []
    monkeypatch.setattr("dilrewrite.runtimes._onnxruntime.BoundRunner.close", lambda self: closed.append(self))
    ort.run_error = RuntimeError("out of memory")
    with pytest.raises(CannotRun, match="out of memory"):
        BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS)
    assert len(closed) == 1


def test_a_profile_that_cannot_be_read_is_a_reason(ort, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda text: json.JSONDecoder().decode("{"))
    with pytest.raises(CannotRun, match="the runtime's profile cannot be read"):
        BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS)


def test_nodes_outside_tensorrt_are_a_doubt(ort, capfd, monkeypatch):
    ort.events = MIXED
    BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS).close()
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "[W:dilrewrite] 3 of 5 nodes run outside TensorRT: NonMaxSuppression 'the_nms' (CUDAExecutionProvider), "
        "MemcpyToHost 'Memcpy_token_1' (CUDAExecutionProvider), Unique 'the_unique' (CPUExecutionProvider)\n"
    )
    assert warnings(monkeypatch, err.rstrip()) == (err.rstrip(),)


def test_of_many_nodes_outside_tensorrt_three_are_named(ort, capfd):
    nodes = [event(f"node_{number}", "Unique", CPU, 1010 + number) for number in range(9)]
    ort.events = events(engine(1005), *nodes)
    BACKEND.runner(gpu.runnable(), IN_PROCESS, FEEDS).close()
    err = capfd.readouterr().err
    assert "9 of 10 nodes run outside TensorRT" in err
    assert "node_2" in err
    assert "node_3" not in err
    assert err.endswith(", ...\n")


def warnings(monkeypatch, line):
    monkeypatch.setattr("dilrewrite.runtimes._worker.Child.said", lambda self: [line])
    monkeypatch.setattr(type(CPU_BACKEND), "doubts", BACKEND.doubts)
    with contextlib.closing(CPU_BACKEND.bench(Options())) as bench:
        return bench.warnings()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("[W:onnxruntime:Default, conv.cc:425 UpdateState] OP Conv(c) running in Fallback mode. May be slow.", True),
        ("[W:onnxruntime:, transformer_memcpy.cc:111] 2 Memcpy nodes are added to the graph g for CUDA", True),
        ("[W:onnxruntime:, session_state.cc:1280] Some nodes were not assigned to the preferred providers", False),
        ("[W:onnxruntime:Default, tensorrt_execution_provider.h:92 log] [TensorRT EP] Using default stream", False),
    ],
)
def test_doubts(line, wanted, monkeypatch):
    assert warnings(monkeypatch, line) == ((line,) if wanted else ())


# -- the profile ------------------------------------------------------------------------------------------------------


def test_a_profile_waits_for_each_kernel_and_builds_its_engines_apart(ort, environment, tmp_path):
    options = Options(isolated=False, scratch=tmp_path)
    found = BACKEND.profile(gpu.runnable(), options, FEEDS, 0)
    assert ort.the("waits") == [("1",)]
    assert found.seconds == (400e-6,)
    given = options_of(ort)
    assert given["trt_timing_cache_path"] == str(tmp_path / "profiled")
    assert Path(given["trt_engine_cache_path"]).parent == tmp_path / "profiled"


def test_a_profile_gives_no_shares_where_cuda_was_started_before(ort, environment):
    BACKEND.device()
    found = BACKEND.profile(gpu.runnable(), IN_PROCESS, FEEDS, 0)
    assert ort.the("waits") == [(None,)]
    assert found.seconds == (0,)
    assert placement(found) == {TENSORRT: 1}


# -- on a GPU ---------------------------------------------------------------------------------------------------------

MISSING = BACKEND.missing()


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(MISSING is not None, reason=str(MISSING))(test))


@on_gpu
def test_on_a_gpu_results_are_those_of_the_cpu(tmp_path):
    x = np.random.default_rng(1).integers(-3, 4, (1, 8, 64, 64)).astype(np.float32)
    for dilation in (2, 3):  # with equal names: the second must not get the first one's engine
        results = []
        for backend in (CPU_BACKEND, BACKEND):
            with backend.session(gpu.runnable(dilation=dilation), Options(scratch=tmp_path)) as session:
                results.append(session.run({"x": x})["z"])
        np.testing.assert_array_equal(*results)


@on_gpu
@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_on_a_gpu_runs_are_timed_and_profiled(tmp_path, precision):
    size = 256
    x = np.zeros((1, 8, size, size), np.float32)
    options = Options(scratch=tmp_path)
    runtime = BACKEND.building(precision)
    with contextlib.closing(runtime.bench(options)) as bench:
        for key, dilation in (("a", 1), ("b", 4)):
            bench.add(key, artifact(gpu.runnable(size, dilation)), {"x": x})
        bench.open(["a", "b"])
        assert min(bench.run(["a", "b", "b", "a"])) > 0
        assert bench.warnings() == ()
    assert len(list(tmp_path.glob("*/*.engine"))) == 2
    assert list(tmp_path.glob("*.timing"))
    found = profiled(runtime, gpu.runnable(size), options, {"x": x}, 3)
    assert found.runs == 3
    assert placement(found) == {TENSORRT: 3}
    assert "TRTKernel" in found.nodes[0].op


@on_gpu
@pytest.mark.parametrize(
    "proto", [of_type(np.float16), of_type(ml_dtypes.bfloat16), quantized()], ids=["fp16", "bf16", "qdq"]
)
def test_on_a_gpu_models_of_other_types_are_built(proto, tmp_path):
    x = np.zeros((1, 8, 64, 64), numpy_helper.to_array(proto.graph.initializer[0]).dtype)
    runnable = Runnable(model=proto.SerializeToString())
    with contextlib.closing(BACKEND.bench(Options(scratch=tmp_path))) as bench:
        bench.add("a", artifact(runnable), {"x": x})
        bench.open(["a"])
        assert min(bench.run(["a", "a"])) > 0
