"""Whatever a user gets wrong ends in one line (what, where, what to do), the right exit code, and untouched folders."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import models_for_tests as tiny
from tests.contract import there
from tests.models_for_tests import build, cli, conv1d, conv_node, listing, save, save_external, values

PHASES = ("--strategy", "space_to_batch")


@dataclass(frozen=True)
class Place:
    """Where a case works: `models` holds its inputs, `out` is for outputs."""

    models: Path
    out: Path


@dataclass(frozen=True)
class Bad:
    """A command line that must fail, and words that its message must hold."""

    arguments: Sequence[object]
    words: Sequence[object]
    code: int = 2


Case = Callable[[Place], Bad]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    tiny.in_process(monkeypatch)
    found = Place(tmp_path / "models", tmp_path / "out")
    found.models.mkdir()
    found.out.mkdir()
    (found.out / ".kept").write_text("what was there before")
    return found


def check(place: Place, capsys: pytest.CaptureFixture[str], bad: Bad) -> None:
    before = listing(place.models.parent)
    outcome = cli(capsys, *bad.arguments)
    assert outcome.err.endswith("\n"), outcome
    lines = outcome.err[:-1].split("\n")
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("dilrewrite: ")
    assert outcome.out == ""
    assert outcome.code == bad.code, lines[0]
    for word in bad.words:
        assert str(word) in lines[0]
    assert listing(place.models.parent) == before


def cases(found: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", found.values(), ids=found.keys())


# -- models that are none ------------------------------------------------------------------------------------------


def missing_file(place: Place) -> tuple[Path, str]:
    return place.models / "m.onnx", "does not exist"


def folder(place: Place) -> tuple[Path, str]:
    path = place.models / "m.onnx"
    path.mkdir()
    return path, "is a folder"


def empty(place: Place) -> tuple[Path, str]:
    path = place.models / "m.onnx"
    path.touch()
    return path, "is empty"


def text(place: Place) -> tuple[Path, str]:
    path = place.models / "m.onnx"
    path.write_text("This is not a model, but a letter.\n" * 20)
    return path, "is not an ONNX model"


def random_bytes(place: Place) -> tuple[Path, str]:
    path = place.models / "m.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path, "is not an ONNX model"


def truncated(place: Place) -> tuple[Path, str]:
    path = save(tiny.aspp(), place.models / "m.onnx")
    path.write_bytes(path.read_bytes()[:-500])
    return path, "cut off"


def pointer(place: Place) -> tuple[Path, str]:
    path = place.models / "m.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path, "git-lfs"


def old_opset(place: Place) -> tuple[Path, str]:
    return save(conv1d(opset=6), place.models / "m.onnx"), "opset 6"


def old_ir(place: Place) -> tuple[Path, str]:
    return save(conv1d(ir=2), place.models / "m.onnx"), "IR version 2"


def no_opset(place: Place) -> tuple[Path, str]:
    model = conv1d()
    del model.opset_import[:]
    return save(model, place.models / "m.onnx"), "imports no ai.onnx opset"


def data_missing(place: Place) -> tuple[Path, str]:
    path = save_external(conv1d(), place.models / "m.onnx")
    (place.models / "m.0.bin").unlink()
    return path, 'm.0.bin" does not exist'


def data_short(place: Place) -> tuple[Path, str]:
    path = save_external(conv1d(), place.models / "m.onnx")
    (place.models / "m.0.bin").write_bytes(b"short")
    return path, "which has only 5 bytes"


def data_at(place: Place, location: str) -> Path:
    model = conv1d()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (place.models.parent / "w.bin").write_bytes(values(2, 2, 3).tobytes())
    return save(model, place.models / "m.onnx")


def data_above(place: Place) -> tuple[Path, str]:
    return data_at(place, "../w.bin"), "leaves the model's folder"


def data_absolute(place: Place) -> tuple[Path, str]:
    return data_at(place, str(place.models.parent / "w.bin")), "is an absolute path"


def data_linked_away(place: Place) -> tuple[Path, str]:
    path = data_at(place, "link.bin")
    (place.models / "link.bin").symlink_to(place.models.parent / "w.bin")
    return path, "outside of the model's folder"


def saved(name: str, words: str, model: Callable[[], Any]) -> Any:
    """A case of a model that is damaged so; `words` say how."""

    def make(place: Place) -> tuple[Path, str]:
        return save(model(), place.models / "m.onnx"), words

    make.__name__ = name
    return make


def with_node(*nodes: Any, before: bool = False) -> Any:
    """The one-Conv model with more nodes."""
    model = conv1d()
    conv = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *conv] if before else [*conv, *nodes])
    return model


def reads(name: str) -> Any:
    """The one-Conv model, whose Conv reads another tensor, which an Add makes from the Conv's result."""
    model = with_node(helper.make_node("Add", ["x", "y"], ["a"], name="add"))
    model.graph.node[0].input[0] = name
    return model


def sized(**sizes: int) -> Any:
    """The one-Conv model with other sizes of its input, output or weights: `x0`, `y0`, `w2`."""
    model = conv1d()
    for place, size in sizes.items():
        if place[0] == "w":
            model.graph.initializer[0].dims[int(place[1])] = size
        else:
            value = model.graph.input[0] if place[0] == "x" else model.graph.output[0]
            value.type.tensor_type.shape.dim[int(place[1])].dim_value = size
    return model


def negative_between() -> Any:
    model = conv1d()
    model.graph.value_info.append(helper.make_tensor_value_info("between", TensorProto.FLOAT, [-(2**31)]))
    return model


def no_element_type() -> Any:
    model = conv1d()
    model.graph.input[0].type.tensor_type.elem_type = 0
    return model


def quantized_without_scale() -> Any:
    model = with_node(helper.make_node("QuantizeLinear", ["y"], ["q"], name="quantize"))
    dequantized = helper.make_node("DequantizeLinear", ["c", "s"], ["d"], name="dequantize")
    model.graph.node.insert(0, dequantized)
    model.graph.node[1].input[0] = "d"
    return model


def calls_itself() -> Any:
    call = helper.make_node("F", ["a"], ["b"], domain="own")
    call_f, call_g = (helper.make_node(name, ["a"], ["b"], domain="own") for name in "FG")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    f = helper.make_function("own", "F", ["a"], ["b"], [call_g], opsets)
    g = helper.make_function("own", "G", ["a"], ["b"], [call_f], opsets)
    return build([call], {"a": [1]}, {"b": [1]}, domains=["own"], functions=[f, g])


def not_utf8(place: Place) -> tuple[Path, str]:
    path = save(conv1d(name="Faltung"), place.models / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"Faltung", b"F\xe4ltung"))
    return path, "which is not UTF-8"


def weights_not_utf8(place: Place) -> tuple[Path, str]:
    model = conv1d(weight="Gewicht")
    model.graph.initializer[0].name = "Gewicht"
    path = save(model, place.models / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"Gewicht", b"\xff\xfe\xc0\x80cht"))
    return path, "which is not UTF-8"


def two_locations(place: Place) -> tuple[Path, str]:
    path = save_external(conv1d(), place.models / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    path.write_bytes(model.SerializeToString())
    return path, "the external data of 'w' have two entries of one key"


def scan_of_many() -> Any:
    scan = helper.make_node("Scan", ["x"], ["y"], body=helper.make_graph([], "body", [], []), num_scan_inputs=2**62)
    return build([scan], {"x": [1, 2]}, {"y": None})


def text_not_utf8(*where: str) -> Callable[[Place], tuple[Path, str]]:
    """A text is not UTF-8, in the message that these attributes of a model lead to."""

    def make(place: Place) -> tuple[Path, str]:
        model = conv1d()
        model.graph.node.insert(
            0, helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.zeros(1)))
        )
        message: Any = model
        for name in where[:-1]:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        setattr(message, where[-1], "Beschreibung")
        path = save(model, place.models / "m.onnx")
        path.write_bytes(path.read_bytes().replace(b"Beschreibung", b"Beschreib\xfcng"))
        return path, f"{type(message).__name__}.{where[-1]} is b'Beschreib\\xfcng', which is not UTF-8"

    make.__name__ = "_".join(("not_utf8", *where))
    return make


def offset_of_5000_digits(place: Place) -> tuple[Path, str]:
    path = save_external(conv1d(), place.models / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    entries["offset"].value = "9" * 5000
    return save(model, path), "is not a byte count"


def invalid_conv(name: str, node: Any, *, weight: tuple[int, ...] = (2, 2, 3), words: str, x: Any = (1, 2, 16)) -> Any:
    def make(place: Place) -> tuple[Path, str]:
        model = build([node], {"x": list(x)}, {"y": [None] * len(x)}, {"w": values(*weight)})
        return save(model, place.models / "m.onnx"), words

    make.__name__ = name
    return make


UNUSABLE = (
    missing_file,
    folder,
    empty,
    text,
    random_bytes,
    truncated,
    pointer,
    old_opset,
    old_ir,
    no_opset,
    data_missing,
    data_short,
    data_above,
    data_absolute,
    data_linked_away,
    saved("quantize", "'quantize' has no scale", quantized_without_scale),
    saved("circle", "2 nodes form a circle", lambda: reads("a")),
    saved("self_loop", "'conv' needs its own result", lambda: reads("y")),
    saved("made_twice", "makes 'y'", lambda: with_node(helper.make_node("Relu", ["x"], ["y"], name="relu"))),
    saved("calls_itself", "calls itself", calls_itself),
    saved("huge_input", "elements", lambda: sized(x2=2**40)),
    saved("huge_weights", "need", lambda: sized(w2=2**62)),
    saved("longer_weights", "dims [2, 2, 4] of FLOAT need 64 bytes, it has 48", lambda: sized(w2=4)),
    saved("negative_input", "'x' has the size -3", lambda: sized(x0=-3)),
    saved("negative_output", "'y' has the size -1", lambda: sized(y0=-1)),
    saved("negative_between", "'between' has the size -2147483648", negative_between),
    saved("no_element_type", "no known element type", no_element_type),
    saved("negative_weights", "dims [-2, 2, 3]", lambda: sized(w0=-2)),
    not_utf8,
    weights_not_utf8,
    two_locations,
    saved("scan_of_many", "has 4611686018427387904 num_scan_inputs and 1 inputs", scan_of_many),
    text_not_utf8("producer_name"),
    text_not_utf8("graph", "node", "0", "attribute", "0", "ref_attr_name"),
    text_not_utf8("graph", "node", "0", "attribute", "0", "t", "name"),
    text_not_utf8("graph", "input", "0", "type", "denotation"),
    offset_of_5000_digits,
    invalid_conv("conv_dilation_huge", conv_node(dilations=[2**62]), words="4611686018427387904 among its dilations"),
    invalid_conv("conv_pads_huge", conv_node(dilations=[2], pads=[2**62, 0]), words="among its pads"),
    invalid_conv("conv_pads_low", conv_node(dilations=[2], pads=[0, -(2**63)]), words="among its pads"),
    invalid_conv("conv_kernel_huge", conv_node(dilations=[2], kernel_shape=[2**31]), words="among its kernel_shape"),
    invalid_conv(
        "conv_undilated_dilations",
        conv_node(dilations=[1], pads=[1] * 4),
        weight=(2, 2, 3, 3),
        x=(1, 2, 9, 9),
        words="dilations has 1 values, not 2 (Attribute dilations has incorrect size)",
    ),
    invalid_conv("conv_undilated_strides", conv_node(strides=[1, 1, 1]), words="Attribute strides has incorrect size"),
    invalid_conv("conv_undilated_pads", conv_node(pads=[1]), words="Attribute pads has incorrect size"),
    invalid_conv("conv_kernel", conv_node(dilations=[2], kernel_shape=[5]), words="kernel_shape [5]"),
    invalid_conv("conv_dilations", conv_node(dilations=[2, 2]), words="dilations has 2 values"),
    invalid_conv("conv_pads", conv_node(dilations=[2], pads=[1]), words="pads has 1 values"),
    invalid_conv("conv_strides", conv_node(dilations=[2], strides=[1, 1]), words="strides has 2 values"),
    invalid_conv("conv_channels", conv_node(dilations=[2]), weight=(2, 3, 3), words="2 channels"),
    invalid_conv("conv_group", conv_node(dilations=[2], group=3), weight=(2, 2, 3), words="group 3"),
    invalid_conv("conv_rank", conv_node(dilations=[2, 2]), weight=(2, 2, 3, 3), words="its input has 3 axes"),
    invalid_conv("conv_too_small", conv_node(dilations=[9]), words="16"),
    invalid_conv("conv_auto_pad", conv_node(dilations=[2], auto_pad="SOMETIMES"), words="auto_pad is 'SOMETIMES'"),
    invalid_conv("conv_stride_zero", conv_node(dilations=[2], strides=[0]), words="strides"),
    invalid_conv(
        "conv_dilation_negative",
        conv_node(dilations=[2, -1]),
        weight=(2, 2, 3, 3),
        x=(1, 2, 16, 16),
        words="dilations",
    ),
    invalid_conv(
        "conv_no_weights", helper.make_node("Conv", ["x"], ["y"], name="conv", dilations=[2]), words="no weights"
    ),
)


@pytest.mark.parametrize("command", ["inspect", "optimize", "verify before", "verify after"])
@pytest.mark.parametrize("made", UNUSABLE, ids=lambda made: made.__name__)
def test_unusable_model(
    place: Place, capsys: pytest.CaptureFixture[str], made: Callable[[Place], tuple[Path, str]], command: str
) -> None:
    path, words = made(place)
    good = save(conv1d(), place.models / "good.onnx")
    arguments: dict[str, list[object]] = {
        "inspect": ["inspect", path, "--report", place.out / "report"],
        "optimize": ["optimize", path, "-o", place.out / "m.onnx", *PHASES],
        "verify before": ["verify", path, good, "--report", place.out / "report"],
        "verify after": ["verify", good, path, "--report", place.out / "report"],
    }
    named = ["'conv'" if made.__name__.startswith("conv") else path]
    check(place, capsys, Bad(arguments[command], [*named, words]))


# -- what is no file -----------------------------------------------------------------------------------------------


NO_FILES = ("fifo", "socket", "folder", "/dev/zero", "n" * 5000)

READ: dict[str, Sequence[object]] = {
    "inspect": ["inspect", "IT"],
    "optimize": ["optimize", "IT", "-o", "o.onnx"],
    "verify before": ["verify", "IT", "MODEL"],
    "verify after": ["verify", "MODEL", "IT"],
    "bench": ["bench", "IT"],
    "bench other": ["bench", "MODEL", "IT"],
    "build": ["build", "IT"],
    "--inputs": ["optimize", "MODEL", "-o", "o.onnx", *PHASES, "--inputs", "IT"],
    "--decisions": ["optimize", "MODEL", "-o", "o.onnx", "--decisions", "IT"],
    "--custom-op-library": ["optimize", "MODEL", "-o", "o.onnx", *PHASES, "--custom-op-library", "IT"],
    "--plugins": ["build", "MODEL", "--plugins", "IT"],
}


@pytest.mark.parametrize("kind", NO_FILES, ids=lambda kind: kind[:9])
@pytest.mark.parametrize("arguments", READ.values(), ids=READ.keys())
def test_what_is_no_file_is_not_waited_for(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[object],
    kind: str,
) -> None:
    monkeypatch.chdir(place.models)
    os.mkfifo("fifo")
    Path("folder").mkdir()
    save(conv1d(), Path("m.onnx"))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        words = {"IT": kind, "MODEL": "m.onnx"}
        check(place, capsys, Bad([words.get(str(word), word) for word in arguments], [kind]))


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_side_car_that_is_no_file(place: Place, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    engine = place.models / "m.engine"
    engine.write_bytes(b"ptrt")
    side_car = engine.with_name("m.engine.json")
    os.mkfifo(side_car) if kind == "fifo" else side_car.mkdir()
    check(place, capsys, Bad(["inspect", engine], [side_car, "not a regular file"]))


def test_a_cache_that_is_no_file_is_left_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path, cache = save(conv1d(), place.models / "m.onnx"), place.models / "cache"
    os.mkfifo(cache)
    options = ["-o", place.out / "o.onnx", "--no-report", "--cache", cache, "--budget", "1"]
    assert cli(capsys, "optimize", path, *options).code == 0
    assert cache.is_fifo()


# -- options -------------------------------------------------------------------------------------------------------


def with_options(
    *options: object, words: Sequence[object], code: int = 2, model: Any = conv1d, forced: bool = True
) -> Case:
    """`optimize` on a model with a form forced, and `options` that are wrong."""

    def make(place: Place) -> Bad:
        path = save(model(), place.models / "m.onnx")
        given = ["optimize", path, "-o", place.out / "o.onnx", *(PHASES if forced else ()), *options]
        return Bad(given, words, code)

    return make


OPTIONS: dict[str, Case] = {
    "no such option": with_options("--frobnicate", words=["--frobnicate", "--help"]),
    "no such strategy": with_options("--strategy", "magic", words=["magic", "space_to_batch"], forced=False),
    "no number": with_options("--budget", "10s", words=["--budget 10s: a number is needed; see dilrewrite optimize"]),
    "no whole number": with_options("--seed", "1.5", words=["--seed 1.5: a whole number is needed; see"]),
    "below what is possible": with_options("--threads", "0", words=["--threads 0: at least 1 is needed; see"]),
    "above what is possible": with_options("--threads", "9999", words=["--threads 9999: at most 4096 is needed; see"]),
    "no such setting": with_options("--strategy", "im2col:size=3", words=["im2col", "size"], forced=False),
    "setting is no number": with_options(
        "--strategy", "space_to_group:limit_mb=few", words=["limit_mb", "few"], forced=False
    ),
    "setting is zero": with_options("--strategy", "space_to_group:limit_mb=0", words=["limit_mb"], forced=False),
    **{
        f"setting of the wrong word, {text}": with_options("--strategy", text, words=["all, last"], forced=False)
        for text in there("tap_zones:axes=some")
    },
    "--only is no regex": with_options("--only", "(", words=["--only", "("]),
    "--skip is no regex": with_options("--skip", "*", words=["--skip", "*"]),
    "--only matches nothing": with_options("--only", "head", words=["--only head: matches no", "nodes: 'conv'"]),
    "-o is the folder": with_options("-o", ".", words=[". is a folder, not a place for a file"]),
    "--verify bogus": with_options("--verify", "bogus", words=["bogus", "full, sites, none"]),
    "--verify none alone": with_options("--verify", "none", words=["--strategy"], forced=False),
    "--max-dilation 0": with_options("--max-dilation", "0", words=["--max-dilation"]),
    "--max-dilation word": with_options("--max-dilation", "few", words=["--max-dilation"]),
    "--threads 0": with_options("--threads", "0", words=["--threads"]),
    "--seed negative": with_options("--seed", "-1", words=["--seed"]),
    "--rtol negative": with_options("--rtol", "-1", words=["--rtol"]),
    "--rtol nan": with_options("--rtol", "nan", words=["--rtol"]),
    "--external-data bogus": with_options("--external-data", "bogus", words=["bogus", "auto, reference, copy"]),
    "--shape malformed": with_options("--shape", "x=1x2x16", words=["x=1x2x16", "--shape x:1x3x224x224"]),
    "--shape without sizes": with_options("--shape", "x:axb", words=["x:axb"]),
    "--shape negative": with_options("--shape", "x:1x2x-16", words=["x:1x2x-16"]),
    "--shape of 5000 digits": with_options("--shape", "x:1x2x" + "9" * 5000, words=["--shape x:1x2x999"]),
    "--shape of 20 digits": with_options("--shape", "x:1x2x" + "9" * 20, words=["--shape x:1x2x999"]),
    "setting of 5000 digits": with_options(
        "--strategy", "im2col:limit_nodes=" + "9" * 5000, words=["limit_nodes"], forced=False
    ),
    "setting of odd digits": with_options("--strategy", "im2col:limit_nodes=²", words=["limit_nodes"], forced=False),
    "--threads of many digits": with_options("--threads", "9" * 11, words=["--threads"]),
    "--threads of 5000 digits": with_options("--threads", "9" * 5000, words=["--threads"]),
    "--min of 5000 digits": with_options("--build-engine", "--min", "x:" + "9" * 5000, words=["--min x:999"]),
    "--report too long": with_options("--report", "r" * 5000, words=["--report rrr"]),
    "--shape unknown input": with_options("--shape", "z:1x2x16", words=["'z'", "its inputs: x"]),
    "--shape clashes": with_options("--shape", "x:1x2x17", words=["'x'", "[1, 2, 17]", "[1, 2, 16]"]),
    "--shape of another rank": with_options("--shape", "x:1x2", words=["'x'", "[1, 2]", "[1, 2, 16]"]),
    "--custom-op-library missing": with_options(
        "--custom-op-library", "/nowhere/lib.so", words=["/nowhere/lib.so"], model=tiny.custom_operator
    ),
    "--custom-op-library missing, standard model": with_options(
        "--custom-op-library", "/nowhere/lib.so", words=["/nowhere/lib.so"]
    ),
}
"""Options that are wrong whatever the model is."""


@cases(OPTIONS)
def test_wrong_option(place: Place, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    check(place, capsys, case(place))


UNNOTICED: dict[str, Case] = {
    "--shape clashes, nothing better found": with_options("--shape", "x:1x2x17", words=["'x'"], forced=False),
    "--shape malformed, nothing better found": with_options("--shape", "bogus", words=["bogus"], forced=False),
    "--shape malformed, sites only": with_options("--shape", "bogus", "--verify", "sites", words=["bogus"]),
    "--inputs missing, nothing better found": with_options("--inputs", "/no.npz", words=["/no.npz"], forced=False),
    "--inputs missing, sites only": with_options("--inputs", "/no.npz", "--verify", "sites", words=["/no.npz"]),
    "no such strategy, nothing to rewrite": with_options(
        "--strategy", "magic", words=["magic"], model=tiny.plain, forced=False
    ),
    "--external-data bogus, dry run": with_options("--external-data", "bogus", "--dry-run", words=["bogus"]),
}
"""The same mistakes where the option happens not to be needed: a typing error is one all the same."""


@cases(UNNOTICED)
def test_wrong_option_that_is_not_needed(place: Place, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    check(place, capsys, case(place))


def test_missing_argument(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check(place, capsys, Bad(["optimize"], ["MODEL"]))


def test_unknown_command(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check(place, capsys, Bad(["transmogrify"], ["transmogrify"]))


# -- data ----------------------------------------------------------------------------------------------------------


def with_data(make: Callable[[Path], object], *words: object, model: Any = conv1d) -> Case:
    """`optimize --inputs` with a file that `make` writes."""

    def made(place: Place) -> Bad:
        path, data = save(model(), place.models / "m.onnx"), place.models / "data.npz"
        make(data)
        return Bad(["optimize", path, "-o", place.out / "o.onnx", *PHASES, "--inputs", data], words)

    return made


def npz(**arrays: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, values(1, 2, 16))


def broken_member(path: Path) -> None:
    np.savez_compressed(path, x=values(1, 2, 16))
    content = bytearray(path.read_bytes())
    content[80:100] = bytes(20)
    path.write_bytes(content)


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "hello")


DATA: dict[str, Case] = {
    "missing": with_data(lambda path: None, "data.npz", "no such file"),  # noqa: ARG005
    "text": with_data(lambda path: path.write_text("hello"), "data.npz", "not an .npz file"),
    "empty": with_data(lambda path: path.touch(), "data.npz", "not an .npz file"),
    "folder": with_data(lambda path: path.mkdir(), "data.npz"),
    "npy": with_data(npy, "data.npz", "not an .npz file"),
    "pickled": with_data(npz(x=np.array([{}])), "data.npz"),
    "begins like a zip": with_data(lambda path: path.write_bytes(b"PK\x03\x04garbage"), "data.npz", "not an .npz"),
    "damaged": with_data(broken_member, "data.npz"),
    "a zip of something else": with_data(no_arrays, "'x'"),
    "wrong name": with_data(npz(z=values(1, 2, 16)), "'z'", "its inputs: x"),
    "wrong dtype": with_data(npz(x=values(1, 2, 16, dtype=np.float64)), "'x'", "float64", "float32"),
    "wrong shape": with_data(npz(x=values(1, 2, 17)), "'x'", "[1, 2, 17]", "[1, 2, 16]"),
    "wrong rank": with_data(npz(x=values(2, 16)), "'x'", "[2, 16]"),
    "does not run": with_data(
        npz(x=values(1, 2, 16), index=np.array([7])), "does not run", "--inputs", model=tiny.gather
    ),
    "random index": with_data(npz(x=values(1, 2, 16)), "'index'", "int64", "--inputs", model=tiny.gather),
    "random shape": with_data(npz(x=values(32)), "'shape'", "int64", "--inputs", model=tiny.reshape_by_input),
}


@cases(DATA)
def test_unusable_data(place: Place, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    check(place, capsys, case(place))


def test_no_advice_to_trust_a_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    bad = DATA["text"](place)
    assert "pickle" not in cli(capsys, *bad.arguments).err


def test_random_data_name_only_the_suspect(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tiny.gather(), place.models / "m.onnx")
    check(place, capsys, Bad(["optimize", path, "-o", place.out / "o.onnx", *PHASES], ["'index' (int64 [1])"]))


@pytest.mark.parametrize("option", ["--shape", "--inputs"])
def test_verify_checks_its_data(place: Place, capsys: pytest.CaptureFixture[str], option: str) -> None:
    path = save(conv1d(), place.models / "m.onnx")
    check(place, capsys, Bad(["verify", path, path, option, "nothing"], ["nothing"]))


# -- places --------------------------------------------------------------------------------------------------------


def output_exists(place: Place) -> Bad:
    target = place.out / "o.onnx"
    target.write_text("mine")
    return Bad(["optimize", save(conv1d(), place.models / "m.onnx"), "-o", target, *PHASES], [target, "--force"])


def default_output_exists(place: Place) -> Bad:
    target = place.models / "m.dilrewrite.onnx"
    target.write_text("mine")
    return Bad(["optimize", save(conv1d(), place.models / "m.onnx"), *PHASES], [target, "--force"])


def output_is_input(place: Place) -> Bad:
    path = save(conv1d(), place.models / "m.onnx")
    return Bad(["optimize", path, "-o", path, *PHASES], ["is the input itself"])


def output_is_input_by_another_name(place: Place) -> Bad:
    path = save(conv1d(), place.models / "m.onnx")
    return Bad(["optimize", path, "-o", place.out / ".." / "models" / "m.onnx", *PHASES], ["is the input itself"])


def output_is_a_link_to_the_input(place: Place) -> Bad:
    path, link = save(conv1d(), place.models / "m.onnx"), place.out / "link.onnx"
    link.symlink_to(path)
    return Bad(["optimize", path, "-o", link, *PHASES], ["is the input itself"])


def output_is_data_of_the_input(place: Place) -> Bad:
    path = save_external(conv1d(), place.models / "m.onnx")
    target = place.models / "m.0.bin"
    return Bad(["optimize", path, "-o", target, "--force", *PHASES, "--verify", "sites"], [target, "data file"])


def output_folder_missing(place: Place) -> Bad:
    target = place.out / "sub" / "o.onnx"
    return Bad(["optimize", save(conv1d(), place.models / "m.onnx"), "-o", target, *PHASES], [target.parent])


def output_folder_is_a_file(place: Place) -> Bad:
    target = place.out / ".kept" / "o.onnx"
    return Bad(["optimize", save(conv1d(), place.models / "m.onnx"), "-o", target, *PHASES], ["is not a folder"])


def output_is_a_folder(place: Place) -> Bad:
    return Bad(["optimize", save(conv1d(), place.models / "m.onnx"), "-o", place.out, *PHASES], ["is a folder"])


def output_is_a_device(place: Place) -> Bad:
    return Bad(
        ["optimize", save(conv1d(), place.models / "m.onnx"), "-o", "/dev/null", "--force", *PHASES], ["/dev/null"]
    )


def decisions_folder_missing(place: Place) -> Bad:
    path, target = save(conv1d(), place.models / "m.onnx"), place.out / "sub" / "d.json"
    given = ["-o", place.out / "o.onnx", "--save-decisions", target]
    return Bad(["optimize", path, *given], [target.parent, "make the folder, or give another place with --save-dec"])


def decisions_exist(place: Place) -> Bad:
    path, target = save(conv1d(), place.models / "m.onnx"), place.out / ".kept"
    given = ["-o", place.out / "o.onnx", "--save-decisions", target]
    return Bad(["optimize", path, *given], ["give --force to replace it or --save-decisions for another place"])


def report_is_a_file(place: Place) -> Bad:
    path = save(conv1d(), place.models / "m.onnx")
    return Bad(
        ["optimize", path, "-o", place.out / "o.onnx", "--report", place.out / ".kept", *PHASES], ["is not a folder"]
    )


def report_without_parent(place: Place) -> Bad:
    path = save(conv1d(), place.models / "m.onnx")
    return Bad(["optimize", path, "-o", place.out / "o.onnx", "--report", place.out / "a" / "b", *PHASES], ["a/b"])


def report_is_the_output(place: Place) -> Bad:
    path, target = save(conv1d(), place.models / "m.onnx"), place.out / "o.onnx"
    return Bad(["optimize", path, "-o", target, "--report", target, *PHASES], [target])


def report_is_the_input(place: Place) -> Bad:
    path = save(conv1d(), place.models / "report.json")
    return Bad(["optimize", path, "-o", place.out / "o.onnx", "--report", place.models, *PHASES], ["report.json"])


def report_is_a_strangers(place: Place) -> Bad:
    (place.models / "report.md").write_text("# dilrewrite is what I write about")
    return Bad(
        ["optimize", save(conv1d(), place.models / "m.onnx"), "--report", place.models, *PHASES],
        ["report.md", "is no report of dilrewrite", "--force"],
    )


def inspect_report_is_a_strangers(place: Place) -> Bad:
    (place.models / "report.json").symlink_to("nowhere")
    return Bad(["inspect", save(conv1d(), place.models / "m.onnx"), "--report", place.models], ["report.json exists"])


def control_characters_in_a_name(place: Place) -> Bad:
    proto = conv1d()
    path = save_external(proto, place.models / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.name, tensor.external_data[0].value = "w\x1b[31mRED\x07\x9b\u202e", "gone\x1b]0;t\x07"
    return Bad(["inspect", save(proto, path)], [r"w\x1b[31mRED\x07\x9b\u202e", r"gone\x1b]0;t\x07"])


def control_characters_in_arguments(place: Place) -> Bad:
    return Bad(["inspect", place.models / "m\x1b[31m\x07.onnx"], [r"m\x1b[31m\x07.onnx does not exist"])


def control_characters_in_an_option(place: Place) -> Bad:
    return Bad(["inspect", save(conv1d(), place.models / "m.onnx"), "--x\x1b[31m"], [r"--x\x1b[31m"])


def inspect_report_is_a_file(place: Place) -> Bad:
    return Bad(
        ["inspect", save(conv1d(), place.models / "m.onnx"), "--report", place.out / ".kept"], ["is not a folder"]
    )


def data_cannot_be_referred_to(place: Place) -> Bad:
    path = save_external(conv1d(), place.models / "m.onnx")
    given = ["-o", place.out / "o.onnx", "--external-data", "reference", "--verify", "sites"]
    return Bad(["optimize", path, *given, *PHASES], ["m.0.bin", "--external-data copy"])


PLACES: tuple[Case, ...] = (
    output_exists,
    default_output_exists,
    output_is_input,
    output_is_input_by_another_name,
    output_is_a_link_to_the_input,
    output_is_data_of_the_input,
    output_folder_missing,
    output_folder_is_a_file,
    output_is_a_folder,
    output_is_a_device,
    decisions_folder_missing,
    decisions_exist,
    report_is_a_file,
    report_without_parent,
    report_is_the_output,
    report_is_the_input,
    report_is_a_strangers,
    inspect_report_is_a_strangers,
    control_characters_in_a_name,
    control_characters_in_arguments,
    control_characters_in_an_option,
    inspect_report_is_a_file,
    data_cannot_be_referred_to,
)


@pytest.mark.parametrize("case", PLACES, ids=lambda case: case.__name__)
def test_unusable_place(place: Place, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    check(place, capsys, case(place))


def test_folder_is_not_writable(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(conv1d(), place.models / "m.onnx")
    place.out.chmod(0o500)
    try:
        if os.access(place.out, os.W_OK):
            pytest.skip("chmod does not bind this user")
        check(place, capsys, Bad(["optimize", path, "-o", place.out / "o.onnx", *PHASES], ["not writable"]))
    finally:
        place.out.chmod(0o700)


def test_output_that_appears_meanwhile_is_not_replaced(place: Place) -> None:
    import dilrewrite

    target = place.out / "o.onnx"

    def meanwhile(step: str, done: int, total: int) -> None:  # noqa: ARG001
        target.write_text("mine")

    with pytest.raises(dilrewrite.UsageError, match="exists"):
        dilrewrite.optimize(
            save(conv1d(), place.models / "m.onnx"), target, strategy="space_to_batch", progress=meanwhile
        )
    assert target.read_text() == "mine"


# -- runtimes ------------------------------------------------------------------------------------------------------


def test_no_runtime(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.uninstalled(monkeypatch, "onnxruntime")
    path = save(conv1d(), place.models / "m.onnx")
    words = ["onnxruntime is not installed", "pip install 'dilrewrite[cpu]'"]
    check(place, capsys, Bad(["optimize", path, "-o", place.out / "o.onnx", *PHASES], words, 4))
    check(place, capsys, Bad(["verify", path, path], words, 4))


def test_two_runtimes_with_one_name(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0" if name.startswith("onnxruntime") else version(name)
    )
    path = save(conv1d(), place.models / "m.onnx")
    words = ["onnxruntime and onnxruntime-gpu", "overwrite each other", "pip uninstall"]
    check(place, capsys, Bad(["optimize", path, "-o", place.out / "o.onnx", *PHASES], words, 2))


@pytest.mark.parametrize("command", ["inspect", "optimize --strategy im2col --verify none", "optimize plain"])
def test_what_needs_no_runtime(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    monkeypatch.setattr(OnnxRuntimeCpu, "missing", lambda self: "gone")  # noqa: ARG005
    name, *options = command.replace("plain", "").split()
    path = save(tiny.plain() if "plain" in command else conv1d(), place.models / "m.onnx")
    assert cli(capsys, name, path, *options, "--json").code == 0
