"""Reading models with all their bad forms, and writing files so that all appear or none."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import DilrewriteError, FailedError, UsageError
from dilrewrite.model import load as module
from dilrewrite.model import save as saving
from dilrewrite.model.elements import ELEMENTS
from dilrewrite.model.load import load
from dilrewrite.model.save import stage_model
from dilrewrite.model.tensors import Model, inline_bytes, read_tensor
from dilrewrite.model.valid import check
from dilrewrite.model.walk import tensors
from dilrewrite.sites.find import find
from dilrewrite.staging import Staging

N = 4
VALUES = np.arange(N, dtype=np.float32)


def external(name: str, location: str, *, offset: int | None = None, length: int | None = 4 * N) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[N], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def adds(*weights: TensorProto, opset: int = 17, ir_version: int = 8) -> ModelProto:
    """Return x + w0 + w1 + ... as a model."""
    nodes, last = [], "x"
    for i, weight in enumerate(weights):
        nodes.append(helper.make_node("Add", [last, weight.name], [f"s{i}"], name=f"add_{i}"))
        last = f"s{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [N]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def inline(name: str, array: Any = VALUES) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def write(path: Path, proto: ModelProto) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def two_files(folder: Path) -> Path:
    """Return a model with weights in w.bin (at 16) and sub/v.bin, and one inline."""
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(bytes(16) + VALUES.tobytes())
    (folder / "sub/v.bin").write_bytes((10 * VALUES).tobytes())
    weights = external("w", "w.bin", offset=16), external("v", "sub/v.bin"), inline("u", 100 * VALUES)
    weights[0].external_data.add(key="checksum", value="0123")
    return write(folder / "model.onnx", adds(*weights))


def run(path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> Any:
    """Run a model in ONNX Runtime from another working directory."""
    import onnxruntime

    path = path.absolute()
    monkeypatch.chdir(elsewhere)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(N, np.float32)})[0]


# -- what is no fault ----------------------------------------------------------------------------------------------


def unsorted() -> ModelProto:
    model = adds(inline("w"), inline("v"))
    model.graph.node.reverse()
    return model


def branches(name: str) -> ModelProto:
    """Return x, or twice x, from branches whose results have the same name, which a node behind them makes too."""
    value = helper.make_tensor_value_info
    each = [
        helper.make_graph(
            [helper.make_node("Add", ["x", other], [name])], "b", [], [value(name, TensorProto.FLOAT, [N])]
        )
        for other in ("x", "zero")
    ]
    nodes = [
        helper.make_node("If", ["c"], ["z"], name="if", then_branch=each[0], else_branch=each[1]),
        helper.make_node("Identity", ["z"], ["t"]),
        helper.make_node("Identity", ["t"], ["y"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, [N]), value("c", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, [N])], [inline("zero", 0 * VALUES)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def untyped() -> ModelProto:
    model = adds(inline("w"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].doc_string = "Falt"
    return model


NO_FAULTS: dict[str, Callable[[], ModelProto]] = {
    "nodes in any order": unsorted,
    "branches with names of their own": lambda: branches("s"),
    "branches that shadow what is made behind them": lambda: branches("t"),
    "an input without a shape": untyped,
    "no values": lambda: adds(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[0, 7])),
    "values in another field": lambda: adds(helper.make_tensor("w", TensorProto.FLOAT16, [N], [1.0] * N)),
    "packed values": lambda: adds(helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])),
    "complex values": lambda: adds(helper.make_tensor("w", TensorProto.COMPLEX64, [2], [1j, 2j])),
    "texts": lambda: adds(helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"])),
}


@pytest.mark.parametrize("make", NO_FAULTS.values(), ids=NO_FAULTS.keys())
def test_no_fault(tmp_path: Path, make: Callable[[], ModelProto]) -> None:
    model = make()
    assert load(write(tmp_path / "m.onnx", model)).proto == model


def test_comments_need_not_be_utf8(tmp_path: Path) -> None:
    model = adds(inline("w"))
    model.graph.node[0].doc_string = "Faltung"
    path = write(tmp_path / "m.onnx", model)
    path.write_bytes(path.read_bytes().replace(b"Faltung", b"F\xe4ltung"))
    assert find(load(path).proto).sites == ()


def test_many_nodes_are_checked_in_linear_time() -> None:
    def seconds(count: int) -> float:
        model = adds(*[inline(f"w{i}") for i in range(count)])
        times = []
        for _ in range(3):
            start = time.process_time()
            check(model, "m.onnx")
            times.append(time.process_time() - start)
        return min(times)

    few, many = seconds(500), seconds(5000)
    assert many < 30 * few
    assert many < 2


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(call: Callable[[], object], *words: str, kind: type[DilrewriteError] = UsageError) -> None:
    """Check that a call is refused in one line with these words, and with a hint."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Give a folder, and take root's rights away until the end."""
    folder = Path(tempfile.mkdtemp(prefix="dilrewrite-test-"))
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        if not os.access(folder, os.X_OK, effective_ids=True):
            pytest.skip("the temporary folder is private to root")
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


# ---- load: what it gives ------------------------------------------------------------------------------------------


def test_loads_without_external_weights(tmp_path: Path) -> None:
    path = two_files(tmp_path)
    model = load(path)
    assert model.path == path
    assert model.folder == tmp_path
    assert model.external_files == ("w.bin", "sub/v.bin")
    assert model.file_bytes == path.stat().st_size + 32 + 16
    assert (model.opset, model.ir_version) == (17, 8)
    assert [t.HasField("raw_data") for t in model.proto.graph.initializer] == [False, False, True]
    assert model.proto.SerializeToString() == path.read_bytes()


def test_accepts_a_string_and_the_long_name_of_the_domain(tmp_path: Path) -> None:
    proto = adds(inline("w"))
    proto.opset_import[0].domain = "ai.onnx"
    proto.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))
    assert load(str(write(tmp_path / "m.onnx", proto))).opset == 17


def test_counts_a_data_file_once_whatever_its_spelling(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    path = write(tmp_path / "m.onnx", adds(external("a", "w.bin"), external("b", "./w.bin"), external("c", "w.bin")))
    model = load(path)
    assert model.external_files == ("w.bin", "./w.bin")
    assert model.file_bytes == path.stat().st_size + 16


def test_serializing_a_loaded_model_gives_the_same_bytes() -> None:
    folder = Path(onnx.__file__).parent / "backend/test/data"
    files = sorted(folder.rglob("*.onnx"))[::5]
    assert len(files) > 20
    for file in files:
        data = file.read_bytes()
        assert ModelProto.FromString(data).SerializeToString() == data, file


# ---- load: what it refuses ----------------------------------------------------------------------------------------


def no_graph(data: bytes) -> bytes:
    proto = ModelProto.FromString(data)
    proto.ClearField("graph")
    return proto.SerializeToString()


def no_opset(data: bytes) -> bytes:
    proto = ModelProto.FromString(data)
    proto.ClearField("opset_import")
    return proto.SerializeToString()


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "random": (lambda _: np.random.default_rng(0).bytes(1000), "is not an ONNX model"),
    "text": (lambda _: b"hello, this is not a model\n" * 20, "is not an ONNX model"),
    "lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "ort": (lambda _: b"\x30\0\0\0ORTM" + bytes(100), "ORT format"),
    "half": (lambda data: data[: len(data) // 2], "damaged or cut off"),
    "last byte": (lambda data: data[:-1], "damaged or cut off"),
    "cut after the first field": (lambda data: data[:2], "no graph"),
    "no graph": (no_graph, "no graph"),
    "no opset": (no_opset, "imports no ai.onnx opset"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_refuses_a_bad_file(case: str, tmp_path: Path) -> None:
    make, words = BAD_FILES[case]
    path = tmp_path / "m.onnx"
    path.write_bytes(make(adds(inline("w")).SerializeToString()))
    refused(lambda: load(path), str(path), words)


def test_a_model_cut_anywhere_is_refused_or_a_model_without_opset(tmp_path: Path) -> None:
    data = adds(inline("w")).SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        refused(lambda: load(path), str(path))


def test_refuses_a_path_that_is_no_file(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path / "none.onnx"), "does not exist")
    refused(lambda: load(tmp_path / "none/none.onnx"), "does not exist")
    (tmp_path / "file").touch()
    refused(lambda: load(tmp_path / "file/m.onnx"), "does not exist")
    refused(lambda: load(tmp_path), "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: load(tmp_path / "pipe"), "not a regular file")
    refused(lambda: load(tmp_path / ("n" * 300)), "cannot be read")
    (tmp_path / "loop").symlink_to("loop")
    refused(lambda: load(tmp_path / "loop"), "cannot be read")


def test_refuses_a_file_without_permission() -> None:
    with unprivileged() as folder:
        path = write(folder / "m.onnx", adds(inline("w")))
        path.chmod(0)
        refused(lambda: load(path), str(path), "permission denied")
        (folder / "w.bin").write_bytes(VALUES.tobytes())
        (folder / "w.bin").chmod(0)
        refused(lambda: load(write(folder / "e.onnx", adds(external("w", "w.bin")))), "w.bin", "permission denied")


def test_refuses_a_file_beyond_2_gb_before_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    os.truncate(path, 2**31)
    refused(lambda: load(path), "2 GB", "external data")


@pytest.mark.parametrize(("opset", "ir_version", "word"), [(6, 8, "opset 6"), (17, 2, "IR version 2")])
def test_refuses_old_versions(opset: int, ir_version: int, word: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", adds(inline("w"), opset=opset, ir_version=ir_version))
    refused(lambda: load(path), str(path), word)


def test_accepts_the_oldest_versions(tmp_path: Path) -> None:
    assert load(write(tmp_path / "m.onnx", adds(inline("w"), opset=7, ir_version=3))).opset == 7


# ---- load: external data ------------------------------------------------------------------------------------------


def in_initializer(tensor: TensorProto) -> ModelProto:
    return adds(tensor)


def in_constant(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    return proto


def in_tensors_attribute(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    attribute = proto.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.add().CopyFrom(tensor)
    return proto


def branch(tensor: TensorProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{tensor.name}_out", TensorProto.FLOAT, [N])
    node = helper.make_node("Add", ["x", tensor.name], [output.name])
    return helper.make_graph([node], "branch", [], [output], [tensor])


def in_branch(tensor: TensorProto) -> ModelProto:
    proto = adds()
    proto.graph.initializer.append(inline("c", np.array(True)))
    other = inline("other", -VALUES)
    node = helper.make_node("If", ["c"], ["s"], then_branch=branch(tensor), else_branch=branch(other))
    proto.graph.node.insert(0, node)
    proto.graph.node[1].input[0] = "s"
    return proto


def in_nested_branch(tensor: TensorProto) -> ModelProto:
    proto = in_branch(inline("outer"))
    inner = in_branch(tensor).graph.node[0]
    proto.graph.node[0].attribute[0].g.node.append(inner)
    return proto


def in_graphs_attribute(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    attribute = proto.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.add().CopyFrom(branch(tensor))
    return proto


def in_sparse(tensor: TensorProto, part: str) -> ModelProto:
    proto = adds(inline("w"))
    sparse = proto.graph.sparse_initializer.add(dims=[100])
    sparse.values.CopyFrom(inline("sv"))
    sparse.indices.CopyFrom(inline("si", np.arange(N)))
    getattr(sparse, part).CopyFrom(tensor)
    return proto


def in_sparse_attribute(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    for name in ("sparse_tensor", "sparse_tensors"):
        attribute = proto.graph.node[0].attribute.add(name=name)
        sparse = attribute.sparse_tensor if name == "sparse_tensor" else attribute.sparse_tensors.add()
        sparse.values.CopyFrom(tensor)
    return proto


def in_function(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    proto.functions.append(helper.make_function("f", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    return proto


def in_function_default(tensor: TensorProto) -> ModelProto:
    proto = in_function(inline("c"))
    proto.functions[0].attribute_proto.append(helper.make_attribute("default", tensor))
    return proto


def in_training(tensor: TensorProto) -> ModelProto:
    proto = adds(inline("w"))
    proto.training_info.add().algorithm.initializer.append(tensor)
    return proto


PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "initializer": in_initializer,
    "constant": in_constant,
    "tensors attribute": in_tensors_attribute,
    "branch": in_branch,
    "branch in branch": in_nested_branch,
    "graphs attribute": in_graphs_attribute,
    "sparse values": lambda tensor: in_sparse(tensor, "values"),
    "sparse indices": lambda tensor: in_sparse(tensor, "indices"),
    "sparse attributes": in_sparse_attribute,
    "function": in_function,
    "function default": in_function_default,
    "training": in_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_external_tensors_are_found_everywhere_and_travel(place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in/m.onnx", PLACES[place](external("w", "w.bin")))
    refused(lambda: load(path), '"w.bin"', '"w"', "does not exist")
    (tmp_path / "in/w.bin").write_bytes(VALUES.tobytes())
    model = load(path)
    assert model.external_files == ("w.bin",)
    found = [tensor for tensor in tensors(model.proto) if tensor.name == "w"]
    assert found
    for tensor in found:
        np.testing.assert_array_equal(read_tensor(model, tensor), VALUES)
    with Staging() as staging:
        stage_model(model, model.proto, tmp_path / "in/new.onnx", staging, external_data="copy")
        staging.commit()
    again = load(tmp_path / "in/new.onnx")
    assert again.external_files == ("new.w.bin",)


def test_tensors_yields_each_once() -> None:
    proto = in_nested_branch(external("w", "w.bin"))
    assert sorted(t.name for t in tensors(proto)) == ["c", "other", "other", "outer", "w"]


BAD_LOCATIONS = {
    "": "names no location",
    "none.bin": "does not exist",
    "/etc/passwd": "absolute",
    "C:\\w.bin": "absolute",
    "../w.bin": "leaves",
    "sub/../../w.bin": "leaves",
    "..": "leaves",
    "sub": "not a regular file",
    "escape.bin": "outside",
    "escape/w.bin": "outside",
    "loop": "does not exist",
    "dangling": "does not exist",
    "w\0.bin": "not a file name",
    "n" * 300: "does not exist",
}


@pytest.mark.parametrize("location", BAD_LOCATIONS, ids=lambda location: repr(location)[:20])
def test_refuses_a_bad_location(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    (folder / "escape.bin").symlink_to("../w.bin")
    (folder / "escape").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    path = write(folder / "m.onnx", adds(external("conv.weight", location)))
    refused(lambda: load(path), str(path), "conv.weight", BAD_LOCATIONS[location])
    model = Model(path=path, proto=adds(), folder=folder, external_files=(), file_bytes=0)
    refused(lambda: read_tensor(model, external("conv.weight", location)), BAD_LOCATIONS[location])


def test_refuses_a_location_that_is_not_utf8(tmp_path: Path) -> None:
    data = adds(external("w", "wXX.bin")).SerializeToString().replace(b"wXX", b"w\xff\xfe")
    (tmp_path / "m.onnx").write_bytes(data)
    refused(lambda: load(tmp_path / "m.onnx"), "not UTF-8")


def test_accepts_a_link_within_the_folder_and_a_linked_folder(tmp_path: Path) -> None:
    path = two_files(tmp_path / "in")
    (tmp_path / "in/link.bin").symlink_to("sub/v.bin")
    write(path, adds(external("w", "link.bin")))
    assert load(path).external_files == ("link.bin",)
    (tmp_path / "other").symlink_to("in")
    assert load(tmp_path / "other/model.onnx").folder == tmp_path / "other"


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        (4, 16, "only 16 bytes"),
        (None, 20, "need 16 bytes"),
        (None, 12, "need 16 bytes"),
        (1, None, "only 16 bytes"),
        (-4, 16, "not a byte count"),
    ],
)
def test_refuses_external_data_that_do_not_fit(
    offset: int | None, length: int | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    path = write(tmp_path / "m.onnx", adds(external("w", "w.bin", offset=offset, length=length)))
    refused(lambda: load(path), '"w"', words)


# ---- load: large files --------------------------------------------------------------------------------------------


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read like large ones, and fields of more than 8 bytes by themselves."""
    monkeypatch.setattr(module, "_LARGE_BYTES", 0)
    monkeypatch.setattr(module, "_PART_BYTES", 8)


def every_place() -> dict[str, ModelProto]:
    """Models with an inline tensor in one place each; one with values in a packed field, and demo models."""
    found = {place: PLACES[place](inline("w")) for place in sorted(PLACES)}
    packed = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[N], float_data=VALUES)
    found["packed"] = adds(packed, inline("v"), packed)
    twice = adds(inline("w"), inline("v"))  # a file may hold the graph in two parts
    unknown = twice.SerializeToString() + bytes([0xFA, 0x3E, 20, *range(20)])
    found["unknown field"] = ModelProto.FromString(unknown)
    return found


@pytest.mark.parametrize("place", sorted(every_place()))
def test_a_model_read_in_parts_is_the_model(place: str, tmp_path: Path, in_parts: None) -> None:  # noqa: ARG001
    proto = every_place()[place]
    path = write(tmp_path / "m.onnx", proto)
    found = module._read_in_parts(path, weights=True)
    assert found is not None
    whole, digest, count = found
    assert whole == proto
    assert whole.SerializeToString() == proto.SerializeToString()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert count == path.stat().st_size


@pytest.mark.parametrize("demo", ["aspp_segmentation", "hifigan_vocoder"])
def test_a_demo_model_read_in_parts_is_the_model(demo: str, in_parts: None) -> None:  # noqa: ARG001
    path = Path(__file__).parents[2] / "models" / f"{demo}.onnx"
    found = module._read_in_parts(path, weights=True)
    assert found is not None
    assert found[0].SerializeToString() == ModelProto.FromString(path.read_bytes()).SerializeToString()


def test_a_graph_in_two_parts_is_merged(tmp_path: Path, in_parts: None) -> None:  # noqa: ARG001
    first, second = adds(inline("w"), inline("v")), adds(inline("u"))
    path = tmp_path / "m.onnx"
    path.write_bytes(first.SerializeToString() + second.SerializeToString())
    found = module._read_in_parts(path, weights=True)
    assert found is not None
    assert found[0] == ModelProto.FromString(path.read_bytes())


def test_what_is_damaged_is_told_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at every place, and with a wrong byte at every place: the same model or the same words."""
    data = adds(inline("w"), inline("v")).SerializeToString()
    path = tmp_path / "m.onnx"

    def told() -> object:
        try:
            return load(path).proto.SerializeToString()
        except DilrewriteError as error:
            return str(error)

    for place in range(1, len(data)):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            path.write_bytes(damaged)
            whole = told()
            with monkeypatch.context() as patch:
                patch.setattr(module, "_LARGE_BYTES", 0)
                patch.setattr(module, "_PART_BYTES", 8)
                assert told() == whole, f"byte {place}"


@pytest.mark.parametrize("place", sorted(every_place()))
def test_values_left_in_the_file_are_read_when_asked_for(place: str, tmp_path: Path, in_parts: None) -> None:  # noqa: ARG001
    path = write(tmp_path / "m.onnx", every_place()[place])
    full, light = load(path), load(path, weights=False)
    assert (light.external_files, light.file_bytes, light.file_digest) == ((), full.file_bytes, full.file_digest)
    for one, other in zip(tensors(full.proto), tensors(light.proto), strict=True):
        np.testing.assert_array_equal(read_tensor(full, one), read_tensor(light, other))
        assert other.HasField("raw_data") == (one.HasField("raw_data") and len(one.raw_data) <= 8)


PEAK = """
import pathlib, sys
{program}
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
PROGRAMS = {
    "inspect": "import dilrewrite; dilrewrite.inspect(pathlib.Path(sys.argv[1]))",
    "load": "from dilrewrite.model.load import load; load(sys.argv[1])",
    "find": (
        "from dilrewrite.model.load import load; from dilrewrite.sites.find import find; find(load(sys.argv[1]).proto)"
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize(("program", "limit"), [("inspect", 0.3), ("load", 1.3), ("find", 1.3)])
def test_large_weights_are_in_memory_once_at_most(program: str, limit: float, tmp_path: Path) -> None:
    """The peak of a process, as a share of the 64 MiB of the file; a small file is subtracted."""

    def peak(mib: int) -> int:
        channels, count = 64, 16
        taps = mib * 2**20 // count // 4 // channels**2
        weights = [inline(f"w{i}", np.ones((channels, channels, taps), np.float32)) for i in range(count)]
        nodes = [
            helper.make_node(
                "Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"c{i}", dilations=[2], pads=[taps - 1] * 2
            )
            for i in range(count)
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, None]) for name in ("t0", "t16")]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = write(tmp_path / f"{mib}.onnx", proto)
        code = PEAK.format(program=PROGRAMS[program])
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        return int(done.stdout) // 1024

    assert peak(64) - peak(1) <= limit * 64


# ---- read_tensor --------------------------------------------------------------------------------------------------


def test_reads_only_the_tensor_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_files(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    model = load("in/model.onnx")
    monkeypatch.chdir(tmp_path / "in/sub")
    read = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda file, *a, **k: read.append((file, k)) or fromfile(file, *a, **k))
    w, v, u = model.proto.graph.initializer
    np.testing.assert_array_equal(read_tensor(model, w), VALUES)
    assert read == [(tmp_path / "in/w.bin", {"count": 16, "offset": 16})]
    np.testing.assert_array_equal(read_tensor(model, v), 10 * VALUES)
    np.testing.assert_array_equal(read_tensor(model, u), 100 * VALUES)
    assert not read_tensor(model, w).flags.writeable
    assert not w.HasField("raw_data")


KNOWN = frozenset(TensorProto.DataType.values())  # an old onnx lacks the newest
TYPES = {
    TensorProto.DataType.Name(element.number): element
    for element in ELEMENTS
    if element.bits and element.number in KNOWN
}


@pytest.mark.parametrize("place", ["raw", "field", "external"])
@pytest.mark.parametrize("type_name", TYPES)
def test_reads_every_type(type_name: str, place: str, tmp_path: Path) -> None:
    data_type = TensorProto.DataType.Value(type_name)
    dtype = TYPES[type_name].dtype
    signed = not type_name.startswith(("U", "BOOL", "FLOAT8E8M0"))
    small = [1, 0, 1, 1, 0] if type_name in ("UINT2", "INT2", "BOOL") else [1, 0, 2, 4, 6]
    small = [1, 2, 4, 8, 16] if type_name == "FLOAT8E8M0" else small  # powers of two only
    values = np.array([-1, *small] if signed else [1, *small]).astype(np.float32).astype(dtype).reshape(2, 3)
    tensor = numpy_helper.from_array(values, "w")
    assert tensor.data_type == data_type
    raw = tensor.raw_data
    model = Model(path=None, proto=adds(), folder=tmp_path, external_files=(), file_bytes=0)
    if place == "field":
        tensor = TensorProto(name="w", data_type=data_type, dims=[2, 3])
        storage = {"float_data": "f4", "double_data": "f8", "int64_data": "i8"}.get(TYPES[type_name].field)
        if storage is None:
            codes = np.frombuffer(raw, f"u{dtype.itemsize}")
            field = TYPES[type_name].field
            values_held = codes.astype(np.uint64) if field == "uint64_data" else codes.astype(np.int64)
            if field == "int32_data" and type_name.startswith("INT") and type_name not in ("INT4", "INT2"):
                values_held = np.frombuffer(raw, f"i{dtype.itemsize}").astype(np.int64)  # the sign is kept
            getattr(tensor, field).extend(values_held.tolist())
        else:
            getattr(tensor, TYPES[type_name].field).extend(np.frombuffer(raw, storage).tolist())
        assert inline_bytes(tensor) == raw
    elif place == "external":
        (tmp_path / "w.bin").write_bytes(b"abc" + raw)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", "3"), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
    array = read_tensor(model, tensor)
    assert array.dtype == dtype
    assert array.shape == values.shape
    assert array.tolist() == values.tolist()


def test_small_floats_are_ml_dtypes(tmp_path: Path) -> None:
    model = Model(path=None, proto=adds(), folder=tmp_path, external_files=(), file_bytes=0)
    array = read_tensor(model, inline("w", VALUES.astype(ml_dtypes.bfloat16)))
    assert array.dtype == ml_dtypes.bfloat16


def test_reads_scalars_empty_tensors_and_texts(tmp_path: Path) -> None:
    model = Model(path=None, proto=adds(), folder=tmp_path, external_files=(), file_bytes=0)
    assert read_tensor(model, inline("w", np.float32(3))).shape == ()
    assert read_tensor(model, inline("w", np.zeros((2, 0), np.float32))).shape == (2, 0)
    assert read_tensor(model, TensorProto(name="w", data_type=1, dims=[0])).shape == (0,)
    text = helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"])
    assert [str(item) for item in read_tensor(model, text)] in (["a", "b"], ["b'a'", "b'b'"])


def test_refuses_inline_data_that_do_not_fit_and_unknown_types(tmp_path: Path) -> None:
    model = Model(path=Path("m.onnx"), proto=adds(), folder=tmp_path, external_files=(), file_bytes=0)
    tensor = inline("w")
    tensor.dims[0] = 5
    refused(lambda: read_tensor(model, tensor), "m.onnx", '"w"', "need 20 bytes, it has 16")
    tensor.data_type = 99
    refused(lambda: read_tensor(model, tensor), "99")


def test_refuses_external_data_that_went_away(tmp_path: Path) -> None:
    model = load(two_files(tmp_path))
    tensor = model.proto.graph.initializer[0]
    os.truncate(tmp_path / "w.bin", 20)
    refused(lambda: read_tensor(model, tensor), "only 20 bytes")
    (tmp_path / "w.bin").unlink()
    refused(lambda: read_tensor(model, tensor), "does not exist")


# ---- stage_model --------------------------------------------------------------------------------------------------


def save(model: Model, path: Path, proto: ModelProto | None = None, *, force: bool = False, **options: Any) -> Path:
    """Stage an edited copy (or `proto`), commit, and check that what was passed in is as it was."""
    if proto is None:
        proto = ModelProto()
        proto.CopyFrom(model.proto)
        proto.graph.node[0].doc_string = "edited"
    before = proto.SerializeToString(), model.proto.SerializeToString()
    with Staging(force=force) as staging:
        stage_model(model, proto, path, staging, **options)
        staging.commit()
    assert (proto.SerializeToString(), model.proto.SerializeToString()) == before
    return path


def locations(path: Path) -> list[str]:
    return list(load(path).external_files)


SUM = 111 * VALUES


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_beside_the_original_the_references_stay(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_files(tmp_path / "in"))
    out = save(model, tmp_path / "in/out.onnx", external_data=mode)
    assert locations(out) == ["w.bin", "sub/v.bin"]
    assert sorted(listing(tmp_path / "in")) == ["model.onnx", "out.onnx", "sub", "sub/v.bin", "w.bin"]
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), SUM)


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_elsewhere_the_data_are_copied(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_files(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path)
    out = save(model, Path("out/new.onnx"), external_data=mode).absolute()
    assert sorted(listing(tmp_path / "out")) == ["new.onnx", "sub", "sub/v.bin", "w.bin"]
    shutil.rmtree(tmp_path / "in")
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path / "cwd"), SUM)
    changed = ModelProto.FromString(out.read_bytes())
    changed.graph.node[0].ClearField("doc_string")
    assert changed == model.proto


def test_copies_beside_the_original_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path)
    (tmp_path / "sub/w.bin").write_bytes(VALUES.tobytes())
    proto = ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[1].external_data[0].value = "sub/w.bin"
    model = load(write(path, proto))
    out = save(model, tmp_path / "new.v2.onnx", external_data="copy")
    assert locations(out) == ["new.v2.w.bin", "new.v2.w.1.bin"]
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), 102 * VALUES)
    entries = {e.key: e.value for e in ModelProto.FromString(out.read_bytes()).graph.initializer[0].external_data}
    assert entries == {"location": "new.v2.w.bin", "offset": "16", "length": "16", "checksum": "0123"}


def test_only_data_still_referenced_are_copied(tmp_path: Path) -> None:
    model = load(two_files(tmp_path / "in"))
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.initializer[1].CopyFrom(inline("v"))
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out/new.onnx", proto)
    assert sorted(listing(tmp_path / "out")) == ["new.onnx", "w.bin"]


def test_a_reference_from_a_parent_folder_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_files(tmp_path / "in"))
    out = save(model, tmp_path / "new.onnx", external_data="reference")
    assert locations(out) == ["in/w.bin", "in/sub/v.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "new.onnx"]
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path / "in"), SUM)


def test_a_reference_to_elsewhere_is_refused(tmp_path: Path) -> None:
    model = load(two_files(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    refused(
        lambda: save(model, tmp_path / "out/new.onnx", external_data="reference"),
        "w.bin",
        "outside of its folder",
        "--external-data copy",
    )
    refused(lambda: save(model, tmp_path / "out/new.onnx", external_data="sideways"), "sideways", "copy")
    assert listing(tmp_path / "out") == {}


@pytest.mark.parametrize("force", [False, True])
def test_existing_data_are_never_replaced(force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_files(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/w.bin").write_bytes(b"theirs")
    out = save(model, tmp_path / "out/new.onnx", force=force)
    name, other = locations(out)
    assert re.fullmatch(r"new-[0-9a-f]{16}\.data", name)
    assert other == "sub/v.bin"
    assert (tmp_path / "out/w.bin").read_bytes() == b"theirs"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in/w.bin").read_bytes()
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), SUM)


def test_odd_spellings_lead_to_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path / "in")
    spellings = "sub/v.bin", "./sub/v.bin", "sub/../sub/v.bin", "sub//v.bin"
    model = load(write(path, adds(*(external(f"w{i}", spelling) for i, spelling in enumerate(spellings)))))
    (tmp_path / "out").mkdir()
    out = save(model, tmp_path / "out/new.onnx")
    assert sorted(listing(tmp_path / "out")) == ["new.onnx", "sub", "sub/v.bin"]
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), 40 * VALUES)


def test_deep_subfolders_are_made(tmp_path: Path) -> None:
    path = write(tmp_path / "in/m.onnx", adds(external("w", "a/b/c/w.bin")))
    (tmp_path / "in/a/b/c").mkdir(parents=True)
    (tmp_path / "in/a/b/c/w.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "out").mkdir()
    save(load(path), tmp_path / "out/m.onnx")
    assert sorted(listing(tmp_path / "out")) == ["a", "a/b", "a/b/c", "a/b/c/w.bin", "m.onnx"]


def test_a_cache_of_links_loads_and_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and its data are links into one other folder, as in the cache of Hugging Face."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snap").mkdir()
    (tmp_path / "blobs/22").write_bytes(VALUES.tobytes())
    write(tmp_path / "blobs/11", adds(external("w", "w.bin")))
    (tmp_path / "snap/m.onnx").symlink_to("../blobs/11")
    (tmp_path / "snap/w.bin").symlink_to("../blobs/22")
    model = load(tmp_path / "snap/m.onnx")
    np.testing.assert_array_equal(read_tensor(model, model.proto.graph.initializer[0]), VALUES)
    out = save(model, tmp_path / "snap/new.onnx")
    assert locations(out) == ["new.w.bin"]
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), VALUES)
    refused(
        lambda: save(model, tmp_path / "snap/ref.onnx", external_data="reference"), "outside", "--external-data copy"
    )


def test_a_linked_subfolder_that_leaves_the_destination_is_refused(tmp_path: Path) -> None:
    model = load(two_files(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "out/sub").symlink_to("../far")
    refused(lambda: save(model, tmp_path / "out/new.onnx"), "link that leaves")
    assert sorted(listing(tmp_path / "out")) == ["sub"]
    assert listing(tmp_path / "far") == {}


def test_the_input_can_be_replaced_but_never_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path)
    model = load(path)
    refused(lambda: save(model, tmp_path / "w.bin", force=True), "data file of the input")
    refused(lambda: save(model, path), "exists")
    save(model, path, force=True)
    save(load(path), path, force=True, external_data="copy")
    assert locations(path) == ["model.w.bin", "model.v.bin"]
    np.testing.assert_array_equal(run(path, monkeypatch, tmp_path / "sub"), SUM)


def test_unchanged_bytes_stay_even_of_other_writers(tmp_path: Path) -> None:
    # The fields in reverse order: a valid file that no Python protobuf would write.
    def foreign(proto: ModelProto) -> bytes:
        parts = [ModelProto(), ModelProto()]
        parts[0].opset_import.extend(proto.opset_import)
        parts[1].CopyFrom(proto)
        parts[1].ClearField("opset_import")
        return b"".join(part.SerializeToString() for part in parts)

    path = tmp_path / "m.onnx"
    path.write_bytes(foreign(adds(inline("w"))))
    model = load(path)
    assert model.proto.SerializeToString() != path.read_bytes()
    out = save(model, tmp_path / "same.onnx", model.proto)
    assert out.read_bytes() == path.read_bytes()
    out = save(model, tmp_path / "edited.onnx")
    assert load(out).proto.graph.node[0].doc_string == "edited"

    # The model edited in place must not be taken for the original, nor the original when its file changed meanwhile.
    path.write_bytes(foreign(adds(inline("other"))))
    assert load(save(model, tmp_path / "late.onnx", model.proto)).proto == model.proto
    model = load(path)
    model.proto.graph.name = "edited"
    assert load(save(model, tmp_path / "in_place.onnx", model.proto)).proto.graph.name == "edited"


def test_an_unchanged_model_is_the_same_file(tmp_path: Path) -> None:
    model = load(two_files(tmp_path))
    out = save(model, tmp_path / "same.onnx", model.proto)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == model.file_digest


def test_a_model_made_in_memory_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = adds(inline("w"))
    model = Model(path=None, proto=proto, folder=tmp_path, external_files=(), file_bytes=0)
    np.testing.assert_array_equal(run(save(model, tmp_path / "m.onnx", proto), monkeypatch, Path("/")), VALUES)


# ---- data of a replaced output -------------------------------------------------------------------------------------


def scaled(folder: Path, factor: int) -> Path:
    """The model of `two_files` with all weights multiplied: other data under the same names."""
    path = two_files(folder)
    for name in ("w.bin", "sub/v.bin"):
        (folder / name).write_bytes((factor * np.frombuffer((folder / name).read_bytes(), np.float32)).tobytes())
    return path


def replaced(folder: Path) -> tuple[Path, Callable[[], tuple[str, ...]]]:
    """An output with copies of data and a spill, and how to replace it with one of other weights."""
    (folder / "out").mkdir()
    out = save(load(two_files(folder / "in")), folder / "out/o.onnx", spill=["u"])
    model = load(scaled(folder / "other", 2))

    def replace() -> tuple[str, ...]:
        with Staging(force=True) as staging:
            left = stage_model(model, model.proto, out, staging, spill=["u"])
            staging.commit()
        return left

    return out, replace


def test_old_data_go_with_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace = replaced(tmp_path)
    old = set(locations(out))
    assert replace() == ()
    assert len(old & set(locations(out))) == 1, "the inline weight is the same"
    assert sorted(listing(out.parent)) == sorted(["o.onnx", "sub", *locations(out)])
    np.testing.assert_array_equal(run(out, monkeypatch, tmp_path), 122 * VALUES)
    before = listing(out.parent)
    replace()
    assert listing(out.parent) == before


@pytest.mark.parametrize("where", ["out/n.onnx", "n.onnx", "out/n", "out/N.ONNX", "out/link.onnx"])
def test_data_that_another_model_names_are_left(where: str, tmp_path: Path) -> None:
    out, replace = replaced(tmp_path)
    [copied, below, spilled] = locations(out)
    place = "n.onnx" if "link" in where else where
    names = [f"out/{name}" for name in (copied, below)] if place == "n.onnx" else [copied, below]
    neighbour = write(tmp_path / place, adds(external("w", names[0]), external("v", names[1])))
    if place != where:
        (tmp_path / where).symlink_to(neighbour)
    left = replace()
    assert [Path(line.split(" is left")[0]).name for line in left] == ["v.bin", "w.bin"]
    assert len(load(neighbour).external_files) == 2
    assert (tmp_path / "out" / copied).read_bytes() == (tmp_path / "in/w.bin").read_bytes()
    assert spilled in listing(out.parent), "the new output has it too"


def test_data_that_a_link_leads_to_are_left(tmp_path: Path) -> None:
    """Another model may name the link."""
    out, replace = replaced(tmp_path)
    [copied, below, _] = locations(out)
    (tmp_path / "out/alias.bin").symlink_to(copied)
    (tmp_path / "deeper.bin").symlink_to(f"out/{below}")
    left = replace()
    assert [Path(line.split(" is left")[0]).name for line in left] == ["v.bin", "w.bin"]
    assert (tmp_path / "out/alias.bin").read_bytes() == (tmp_path / "in/w.bin").read_bytes()
    assert (tmp_path / "deeper.bin").is_file()


def test_data_under_foreign_names_and_links_are_left(tmp_path: Path) -> None:
    (tmp_path / "far.bin").write_bytes(VALUES.tobytes())
    for name in ("weights.bin", "o.onnx.data"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(VALUES.tobytes())
    (tmp_path / "out/o.link").symlink_to("../far.bin")
    names = ["weights.bin", "o.onnx.data", "o.link", "../far.bin", "/etc/passwd", "gone", "a\0b"]
    out = write(tmp_path / "out/o.onnx", adds(*(external(f"w{i}", name) for i, name in enumerate(names))))
    model = load(write(tmp_path / "m.onnx", adds(inline("w"))))
    with Staging(force=True) as staging:
        [left] = stage_model(model, model.proto, out, staging)
        staging.commit()
    assert "weights.bin is left" in left
    assert sorted(listing(tmp_path)) == ["far.bin", "m.onnx", "out", "out/o.link", "out/o.onnx", "out/weights.bin"]


def test_a_replaced_file_that_is_no_model_or_a_link_owns_nothing(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", adds(inline("w"))))
    (tmp_path / "o.bin").write_bytes(VALUES.tobytes())
    write(tmp_path / "real.onnx", adds(external("w", "o.bin")))
    (tmp_path / "o.onnx").symlink_to("real.onnx")
    (tmp_path / "p.onnx").write_bytes(b"no model")
    for name in ("o", "p"):
        save(model, tmp_path / f"{name}.onnx", force=True)
    assert (tmp_path / "o.bin").exists()


def test_an_input_that_is_replaced_keeps_its_data(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", adds(external("w", "m.onnx.data")))
    (tmp_path / "m.onnx.data").write_bytes(VALUES.tobytes())
    model = load(path)
    with Staging(force=True) as staging:
        assert stage_model(model, adds(inline("w")), path, staging) == ()
        staging.commit()
    assert sorted(listing(tmp_path)) == ["m.onnx", "m.onnx.data"]


def test_data_are_left_while_another_run_is_at_work(tmp_path: Path) -> None:
    out, replace = replaced(tmp_path)
    with Staging() as other:
        other.add_bytes(out.parent / "b", b"b")
        before = set(listing(out.parent))
        replace()
        assert set(listing(out.parent)) > before, "theirs and the old data"
        other.commit()
    load(out)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_data_of_outputs_with_odd_names(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", adds(inline("w"))))
    for name in ("n" * 240 + ".onnx", os.fsdecode(b"m\xff.onnx"), "größe" * 20 + ".onnx"):
        out = save(model, tmp_path / name, spill=["w"])
        assert re.fullmatch(r"(n{200}|m|größe(größe)*)-[0-9a-f]{16}\.data", locations(out)[0])
        np.testing.assert_array_equal(read_tensor(load(out), load(out).proto.graph.initializer[0]), VALUES)
    model = load(two_files(tmp_path / os.fsdecode(b"in\xff")))
    refused(lambda: save(model, tmp_path / "up.onnx", external_data="reference"), "not UTF-8")


# ---- spilling -----------------------------------------------------------------------------------------------------


def test_named_initializers_are_spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = in_branch(inline("w", 2 * VALUES))
    proto.graph.initializer.append(inline("big", np.arange(1500, dtype=np.float32)))
    field = helper.make_tensor("v", TensorProto.FLOAT, [N], VALUES.tolist())
    assert not field.HasField("raw_data")
    proto.graph.initializer.append(field)
    proto.graph.node.insert(2, helper.make_node("Add", ["s", "v"], ["t"]))
    proto.graph.node[1].input[0] = "t"
    proto.graph.node.append(proto.graph.node[1])
    del proto.graph.node[1]
    model = load(write(tmp_path / "m.onnx", proto))
    out = save(model, tmp_path / "new.onnx", spill=["big", "v", "w"])
    [name] = locations(out)
    assert name == f"new-{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16]}.data"
    assert locations(save(model, tmp_path / "new.onnx", spill=["big", "v", "w"], force=True)) == [name], (
        "again the same"
    )
    again = load(out)
    spilled = {t.name: t for t in tensors(again.proto) if t.data_location == TensorProto.EXTERNAL}
    assert list(spilled) == ["big", "v", "w"]
    spans = [{e.key: e.value for e in t.external_data} for t in spilled.values()]
    assert [(s["offset"], s["length"]) for s in spans] == [("0", "6000"), ("8192", "16"), ("12288", "16")]
    for tensor, values in zip(spilled.values(), (np.arange(1500), VALUES, 2 * VALUES), strict=True):
        np.testing.assert_array_equal(read_tensor(again, tensor), values)
    np.testing.assert_array_equal(run(out, monkeypatch, Path("/")), 3 * VALUES)
    onnx.checker.check_model(out)


def test_a_spill_never_lands_on_data_in_use(tmp_path: Path) -> None:
    (tmp_path / "new.onnx.data").write_bytes(VALUES.tobytes())
    model = load(write(tmp_path / "m.onnx", adds(external("w", "new.onnx.data"), inline("v"))))
    out = save(model, tmp_path / "new.onnx", spill=["v"], force=True)
    name = f"new-{hashlib.sha256(VALUES.tobytes()).hexdigest()[:16]}.data"
    assert locations(out) == ["new.onnx.data", name]
    (tmp_path / "out").mkdir()
    out = save(model, tmp_path / "out/new.onnx", spill=["v"])
    assert locations(out) == ["new.onnx.data", name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/new.onnx.data").write_bytes(b"theirs")
    out = save(model, tmp_path / "full/new.onnx", spill=["v"])
    assert locations(out) == [name], "one file for equal content"
    again = load(out)
    for tensor in again.proto.graph.initializer:
        np.testing.assert_array_equal(read_tensor(again, tensor), VALUES)


@pytest.mark.parametrize("named", [(), ("c",)])
def test_beyond_the_limit_the_largest_are_spilled(
    named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"a": 10_000, "b": 50_000, "c": 255, "d": 30_000}  # in elements of 4 bytes
    proto = adds(*(inline(name, np.full(size, 1, np.float32)) for name, size in sizes.items()))
    model = load(write(tmp_path / "m.onnx", proto))
    monkeypatch.setattr(saving, "LIMIT_BYTES", 170_000)
    out = save(model, tmp_path / "new.onnx", spill=named)
    assert out.stat().st_size <= 170_000
    again = load(out)
    gone = [t.name for t in again.proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert gone == ["b", *named]
    monkeypatch.setattr(saving, "LIMIT_BYTES", 3000)
    out = save(model, tmp_path / "small.onnx", spill=named)
    monkeypatch.undo()
    gone = [t.name for t in load(out).proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert sorted(gone) == sorted(["a", "b", "d", *named])


def test_what_cannot_be_spilled_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(write(tmp_path / "m.onnx", in_constant(inline("w", np.zeros(1000, np.float32)))))
    monkeypatch.setattr(saving, "LIMIT_BYTES", 3000)
    refused(lambda: save(model, tmp_path / "new.onnx"), "2 GB", "new.onnx", kind=FailedError)
    assert sorted(listing(tmp_path)) == ["m.onnx"]


def test_a_full_disk_while_writing_a_model_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_files(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    fsync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    refused(lambda: save(model, tmp_path / "out/new.onnx", spill=["u"]), "disk is full", kind=FailedError)
    assert listing(tmp_path / "out") == {}
