import importlib
import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.runtimes import CannotLoad, CannotRun, Crashed, Io, Options, Runnable, TimedOut
from dilrewrite.runtimes._onnxruntime import distributions, reason
from dilrewrite.runtimes._worker import IsolatedSession
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND, OnnxRuntimeCpu

pytestmark = pytest.mark.filterwarnings("error")

BOTH = pytest.mark.parametrize("isolated", [False, True], ids=["in_process", "isolated"])
FLOAT = TensorProto.FLOAT
X = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[2, 2], name="c")


def model(nodes, inputs, outputs, initializers=(), opset=17, ir=8):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def conv_model(**attributes):
    weight = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", **attributes)
    shape = ["N", 4, None, 9]
    return model([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], [numpy_helper.from_array(weight, "w")])


def crashing_model():
    """A Conv with negative end pads whose rank shape inference does not see: a segmentation fault in the NCHWc form."""
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], dilations=[4, 4], pads=[-8, -8, -8, -8])
    return model([node], [("x", FLOAT, None)], [("y", FLOAT, None)], [weight])


def slow_model(count):
    """A loop that takes about `count` * 20 us."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Sin", ["v"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
    )
    count = numpy_helper.from_array(np.array(count, np.int64), "n")
    return model(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        [("x", FLOAT, None)],
        [("y", FLOAT, None)],
        [count],
    )


def session(proto, isolated=False, threads=1, **options):
    runnable = proto if isinstance(proto, Runnable) else Runnable(model=proto.SerializeToString())
    return BACKEND.session(runnable, Options(isolated=isolated, threads=threads, **options))


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@BOTH
def test_interface_and_result(isolated):
    with session(conv_model(dilations=[2, 2], pads=[2, 2, 2, 2]), isolated) as run:
        assert run.inputs == (Io(name="x", element="float32", shape=("N", 4, None, 9)),)
        assert [(o.name, o.element) for o in run.outputs] == [("y", "float32")]
        (y,) = run.run({"x": X}).values()
        assert y.shape == X.shape
        assert run.run({"x": X}, ["y"]).keys() == {"y"}
        peak = run.peak_bytes()
        assert (peak is not None and 0 <= peak < 200_000_000) if isolated else peak is None


@pytest.mark.parametrize("optimize", [False, True])
def test_isolated_is_bit_for_bit_in_process(optimize):
    proto = conv_model(dilations=[2, 2], pads=[2, 1, 2, 0])
    results = []
    for isolated in (False, True):
        with session(proto, isolated, optimize=optimize) as run:
            results.append(run.run({"x": X})["y"])
    assert results[0].tobytes() == results[1].tobytes()


def test_peak_counts_the_run():
    size = 64 * 1024 * 1024
    proto = model([helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceSum", ["e"], ["y"])],
                  [("x", FLOAT, [1]), ("s", TensorProto.INT64, [1])], [("y", FLOAT, None)])  # fmt: skip
    with session(proto, True) as run:
        before = run.peak_bytes()
        run.run({"x": np.ones(1, np.float32), "s": np.array([size // 4])})
        assert size * 0.9 < run.peak_bytes() - before < size * 2


@BOTH
def test_scalar_and_unknown_rank_differ(isolated):
    inputs = [("a", FLOAT, []), ("b", FLOAT, None)]
    proto = model([helper.make_node("Add", ["a", "b"], ["y"])], inputs, [("y", FLOAT, None)])
    with session(proto, isolated) as run:
        assert [i.shape for i in run.inputs] == [(), None]
        y = run.run({"a": np.array(1, np.float32), "b": np.array(2, np.float32)})["y"]
        assert y.shape == ()


@BOTH
@pytest.mark.parametrize("how", ["path", "relative path", "bytes"])
def test_external_data(isolated, how, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onnx.save_model(
        conv_model(dilations=[2, 2]),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    if how == "bytes":
        runnable = Runnable(model=(tmp_path / "m.onnx").read_bytes(), folder=tmp_path)
    elif how == "path":
        runnable = Runnable(model=tmp_path / "m.onnx")
    else:
        monkeypatch.chdir(tmp_path)
        runnable = Runnable(model=Path("m.onnx"))
    with session(conv_model(dilations=[2, 2])) as whole, session(runnable, isolated) as run:
        np.testing.assert_array_equal(run.run({"x": X})["y"], whole.run({"x": X})["y"])


def test_external_data_without_a_folder_cannot_load(tmp_path: Path):
    onnx.save_model(conv_model(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(CannotLoad, match=r"External data path|cannot get file size"):
        session(Runnable(model=(tmp_path / "m.onnx").read_bytes()))


@pytest.mark.parametrize(
    ("isolated", "element", "kind"),
    [
        (False, "float16", np.float16),
        (False, "bfloat16", ml_dtypes.bfloat16),
        (True, "bfloat16", ml_dtypes.bfloat16),
        (True, "float8e4m3fn", ml_dtypes.float8_e4m3fn),
        (False, "float64", np.float64),
        (False, "int32", np.int32),
        (False, "bool", np.bool_),
    ],
)
def test_element_types(isolated, element, kind):
    opset = 19
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    node = helper.make_node("Identity", ["x"], ["y"])
    values = np.array([[1, 0, 3], [1, 2, 0]]).astype(kind)
    with session(model([node], [("x", number, None)], [("y", number, None)], opset=opset, ir=9), isolated) as run:
        assert run.inputs[0].element == run.outputs[0].element == element
        for given in (values, values[:, ::-1], values[:0], values[0, 0].reshape(())):
            y = run.run({"x": given})["y"]
            assert y.dtype == np.dtype(kind)
            assert y.shape == given.shape
            np.testing.assert_array_equal(y.astype(np.float64), given.astype(np.float64))


@BOTH
@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4])
def test_four_bits(isolated, kind):
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    constants = [
        numpy_helper.from_array(np.array(1, np.float32), "s"),
        helper.make_tensor("z", number, [], [0]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["f"]),
        helper.make_node("Add", ["f", "s"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["y"]),
    ]
    proto = model(nodes, [("x", number, [3])], [("y", number, None), ("g", FLOAT, None)], constants, opset=21, ir=10)
    low = 0 if kind is ml_dtypes.uint4 else -8
    with session(proto, isolated) as run:
        result = run.run({"x": np.array([low, 3, 5]).astype(kind)})
        assert result["y"].dtype == np.dtype(kind)
        assert result["y"].astype(int).tolist() == result["g"].tolist() == [low + 1, 4, 6]


@BOTH
def test_strings_and_sequences(isolated):
    nodes = [
        helper.make_node("Identity", ["s"], ["t"]),
        helper.make_node("SplitToSequence", ["x"], ["q"], axis=0, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("s", TensorProto.STRING, [2]),
            helper.make_tensor_value_info("x", FLOAT, [2, 2]),
        ],
        [
            helper.make_tensor_value_info("t", TensorProto.STRING, [2]),
            helper.make_tensor_sequence_value_info("q", FLOAT, None),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with session(proto, isolated) as run:
        assert [o.element for o in run.outputs] == ["string", "other:seq(tensor(float))"]
        result = run.run({"s": np.array(["a", "é"], object), "x": np.eye(2, dtype=np.float32)})
        assert result["t"].tolist() == ["a", "é"]
        assert [part.tolist() for part in result["q"]] == [[1, 0], [0, 1]]


def test_foreign_byte_order_is_turned():
    with session(conv_model()) as run:
        np.testing.assert_array_equal(run.run({"x": X.astype(">f4")})["y"], run.run({"x": X})["y"])


@pytest.mark.parametrize(
    ("feeds", "outputs", "words"),
    [
        ({}, None, r"Required inputs \(\['x'\]\) are missing"),
        ({"x": X[:, :3]}, None, "INVALID_ARGUMENT: Got invalid dimensions for input: x .*Got: 3 Expected: 4"),
        ({"x": X.astype(np.float64)}, None, r"INVALID_ARGUMENT: Unexpected input data type.*double"),
        ({"x": X.astype(ml_dtypes.bfloat16)}, None, "INVALID_ARGUMENT: Unexpected input data type.*bfloat16"),
        ({"x": X}, ["z"], "INVALID_ARGUMENT: Invalid output name:z"),
        ({"x": X[:, :, :1]}, None, r"INVALID_ARGUMENT: Conv '\w+': Invalid input shape: \{1,9\}"),
    ],
    ids=["missing", "extent", "float64", "bfloat16", "output", "too_small"],
)
def test_cannot_run_and_goes_on(feeds, outputs, words):
    with session(conv_model()) as run:
        with pytest.raises(CannotRun, match=f"^{words}"):
            run.run(feeds, outputs)
        assert run.run({"x": X})["y"].shape == (1, 4, 7, 7)


@BOTH
def test_same_with_dilation_cannot_run(isolated):
    words = r"^INVALID_ARGUMENT: Conv '\w+': Dilation not supported for AutoPadType"
    with (
        session(conv_model(auto_pad="SAME_UPPER", dilations=[2, 2]), isolated) as run,
        pytest.raises(CannotRun, match=words),
    ):
        run.run({"x": X})


@BOTH
@pytest.mark.parametrize(
    ("kind", "opset"), [(TensorProto.DOUBLE, 17), (TensorProto.BFLOAT16, 22)], ids=["float64", "bfloat16"]
)
def test_conv_types_that_it_lacks_cannot_load(isolated, kind, opset):
    proto = model([CONV], [("x", kind, None), ("w", kind, None)], [("y", kind, None)], opset=opset, ir=10)
    with pytest.raises(CannotLoad, match=r"^NOT_IMPLEMENTED: Could not find an implementation for Conv\(\d+\) node"):
        session(proto, isolated)


@BOTH
@pytest.mark.parametrize(
    ("runnable", "words"),
    [
        (Runnable(model=b"no model"), "INVALID_PROTOBUF: "),
        (Runnable(model=Path("/no/such.onnx")), "NO_SUCHFILE: "),
    ],
    ids=["bytes", "path"],
)
def test_what_is_no_model_cannot_load(isolated, runnable, words):
    with pytest.raises(CannotLoad, match=f"^{words}"):
        session(runnable, isolated)


def test_a_custom_op_library_that_is_none_cannot_load(tmp_path: Path):
    with pytest.raises(CannotLoad, match=r"nothing\.so"):
        session(conv_model(), custom_op_library=(tmp_path / "nothing.so",))


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::"
            "Model(onnx::ModelProto&&, const onnxruntime::PathString&, const logging::Logger&) Unsupported model IR\n",
            "FAIL: Unsupported model IR",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'r' Status "
            "Message: /onnxruntime_src/reshape_helper.h:84 onnxruntime::ReshapeHelper::ReshapeHelper(const "
            "onnxruntime::TensorShape&, bool) size != 0 && (input % size) == 0 was false. Input shape:{1}",
            "FAIL: Reshape 'r': size != 0 && (input % size) == 0 was false. Input shape:{1}",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : a/b.h:46 void onnxruntime::F(const std::unordered_map<std::__cxx11::"
            "basic_string<char>, int>&, void (*)(int)) const [with T = float] Opset 99",
            "FAIL: Opset 99",
        ),
        (
            "/s/b.cc:291 onnxruntime::python::add(pybind11::module&)::<lambda(pybind11::array&, int32_t)> Items size",
            "Items size",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : concatbase.h:133 Prepare Non concat axis", "FAIL: Prepare Non concat axis"),
        ("", "ValueError"),
    ],
)
def test_reasons_are_short(message, wanted):
    assert reason(ValueError(message)) == wanted


def test_a_crash_is_an_exception_that_names_the_signal():
    with session(crashing_model(), True) as run:
        with pytest.raises(Crashed, match="SIGSEGV"):
            run.run({"x": np.ones((1, 16, 33, 33), np.float32)})
        assert gone(run.pid)
        assert run.peak_bytes() is None
        with pytest.raises(Crashed):
            run.run({"x": np.ones((1, 16, 33, 33), np.float32)})


@pytest.mark.parametrize("pads", [[-1, -1, -1, -1], [2, 2, -2, -2], [-8, -8, 8, 8], [-2, 0, 0, -1]])
@pytest.mark.parametrize("optimize", [False, True])
def test_negative_pads_give_a_result_or_an_exception(pads, optimize):
    proto = crashing_model()
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.append(helper.make_attribute("pads", pads))
    with session(proto, True, optimize=optimize) as run:
        try:
            y = run.run({"x": np.ones((1, 16, 33, 33), np.float32)})["y"]
        except (CannotRun, Crashed):
            pass
        else:
            assert y.shape == (1, 16, 31 + pads[0] + pads[2], 31 + pads[1] + pads[3])


def test_a_killed_child_is_a_crash_with_its_last_words():
    with session(conv_model(), True) as run:
        os.kill(run.pid, signal.SIGABRT)
        with pytest.raises(Crashed, match="killed by SIGABRT"):
            run.run({"x": X})


def test_the_last_line_of_the_child_is_in_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2; echo out of luck >&2; exit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Crashed, match=r"exit code 3: out of luck$"):
        session(conv_model(), True)


def test_timeout_stops_the_child():
    pid, started = None, time.monotonic()
    with (  # noqa: PT012 - on a busy machine the session itself may be late
        pytest.raises(TimedOut, match="3 s"),
        session(slow_model(10**9), True, timeout_s=3) as run,
    ):
        pid = run.pid
        run.run({"x": X})
    assert time.monotonic() - started < 20
    assert pid is None or gone(pid)


def test_large_arrays_pass_the_pipe():
    values = np.arange(30_000_000, dtype=np.float32)
    proto = model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, None)], [("y", FLOAT, None)])
    with session(proto, True) as run:
        np.testing.assert_array_equal(run.run({"x": values})["y"], -values)


def test_interrupted_while_sending_to_a_child_that_hangs():
    run = session(conv_model(), True)
    os.kill(run.pid, signal.SIGSTOP)
    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run({"x": np.zeros((1, 4, 1000, 1000), np.float32)})
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert gone(run.pid)


def test_close_is_quick_even_when_the_child_is_busy():
    run = session(conv_model(), True)
    os.kill(run.pid, signal.SIGSTOP)
    started = time.monotonic()
    run.close()
    assert time.monotonic() - started < 10
    assert gone(run.pid)
    run.close()


def test_a_forgotten_session_leaves_no_child():
    run = session(conv_model(), True)
    pid = run.pid
    del run
    assert gone(pid)


SCRIPT = """
import sys, os, time
sys.path[:0] = {paths!r}
from pathlib import Path
from dilrewrite.runtimes import Options, Runnable, backend
run = backend("onnxruntime_cpu").session(Runnable(model=Path({model!r})), Options())
print(run.pid, flush=True)
import numpy as np
y = run.run(dict(x=np.ones((1, 4, 9, 9), np.float32)))["y"]
print(y.shape, flush=True)
"""


def script(tmp_path: Path, proto):
    onnx.save(proto, tmp_path / "m.onnx")
    # the package lies in a folder that only sys.path knows, and the script has no __main__ guard
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "dilrewrite").symlink_to(Path(dilrewrite.__file__).parent)
    text = textwrap.dedent(SCRIPT).format(paths=[str(tmp_path / "lib")], model=str(tmp_path / "m.onnx"))
    (tmp_path / "s.py").write_text(text)
    return [sys.executable, str(tmp_path / "s.py")]


def test_from_a_script_in_another_folder(tmp_path: Path):
    (tmp_path / "numpy.py").write_text("raise ImportError('the wrong one')")  # in the working folder of the child
    folder = tmp_path / "there"
    folder.mkdir()
    done = subprocess.run(script(folder, conv_model()), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1:] == ["(1, 4, 7, 7)", ""]
    assert done.stderr == ""


def test_ctrl_c_leaves_no_child(tmp_path: Path):
    with subprocess.Popen(
        script(tmp_path, slow_model(10**9)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, errors = parent.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


def test_noise_stays_off_standard_output(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text("print('noise from the start-up')")
    monkeypatch.syspath_prepend(tmp_path)
    for isolated in (False, True):
        with session(conv_model(), isolated) as run:
            run.run({"x": X})
            with pytest.raises(CannotRun):
                run.run({"x": X[:, :, :1]})
    with pytest.raises(Crashed), session(crashing_model(), True) as run:
        run.run({"x": np.ones((1, 16, 33, 33), np.float32)})
    assert capfd.readouterr() == ("", "")


class Foreign(OnnxRuntimeCpu):
    """One whose module the child does not find."""

    __slots__ = ()

    def __reduce__(self):
        return importlib.import_module, ("dilrewrite.no_such_runtime",)


def test_a_bug_in_the_worker_shows_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)in the worker process:.*ModuleNotFoundError"):
        IsolatedSession(Foreign(), Runnable(model=b""), Options())


def test_a_profile_names_the_provider_of_each_node():
    runnable = Runnable(model=conv_model(dilations=[2, 2]).SerializeToString())
    found = BACKEND.profile(runnable, Options(isolated=False, optimize=False), {"x": X}, 1)
    assert [(node.name, node.provider) for node in found.nodes] == [("c", "CPUExecutionProvider")]


def test_versions():
    assert BACKEND.versions() == {"onnxruntime": importlib.metadata.version("onnxruntime")}


def test_ready():
    assert BACKEND.missing() is None


def test_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert BACKEND.missing() == "onnxruntime is not installed: pip install 'dilrewrite[cpu]'"
    with pytest.raises(CannotLoad, match="cannot be imported"):
        session(conv_model())


def test_two_installed(monkeypatch: pytest.MonkeyPatch):
    def version(name):
        if name in ("onnxruntime", "onnxruntime-gpu"):
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    text = BACKEND.missing()
    assert text.startswith("onnxruntime and onnxruntime-gpu are installed and overwrite each other: ")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then only one of them: pip install 'dilrewrite[cpu]'" in text


def test_one_that_hides_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In a folder further up Python's path: nothing is overwritten, and the first one counts."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    about = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert distributions() == ["onnxruntime-gpu"]
    assert BACKEND.missing() is None


def test_broken_installation(monkeypatch: pytest.MonkeyPatch):
    left_over = importlib.util.spec_from_loader("onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: left_over)
    assert "broken: pip uninstall -y onnxruntime, then pip install 'dilrewrite[cpu]'" in BACKEND.missing()
