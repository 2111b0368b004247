"""benchmarks/targets.py and judges.py: their results are about all models, and no rule is broken."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.runtimes import CannotLoad, Runnable, ethos_u
from dilrewrite.targets import Fit, find, judge, profiles

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA: dict[str, Any] = json.loads((RESULTS / "targets.json").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = DATA["rows"]
JUDGED: dict[str, Any] = json.loads((RESULTS / "ethos_u.json").read_text(encoding="utf-8"))
MODELS = sorted(path.stem for path in (ROOT / "models").glob("*.onnx"))


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # for what the scripts share
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return script("targets")


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    return script("_reader")


# -- the results -----------------------------------------------------------------------------------------------------


def test_every_model_has_a_row_for_every_target(targets: ModuleType) -> None:
    known = {(row["target"], row["model"]) for row in ROWS}
    assert len(known) == len(ROWS)
    every = {*targets.FIRST, *targets.THEN}
    assert {(target, model) for target in every for model in MODELS} <= known, "run `python benchmarks/targets.py`"
    assert {*DATA["forms"]} == every <= {*profiles()}


def test_nothing_written_breaks_a_rule_and_no_exit_code_lies() -> None:
    for row in ROWS:
        name = row["target"], row["model"]
        assert row["faults"] == [], name
        if row["exit"] == 0:
            assert row["violations"] == [], name
            assert row["after"]["out of limits"] == 0, name
            assert row["after"]["native"] >= row["before"]["native"], name
        else:
            assert row["exit"] in ((1, 3, None) if row["kind"] == "quantised" else (1, None)), name
            assert row["said"], name


def test_int8_targets_got_quantised_models(targets: ModuleType) -> None:
    for row in ROWS:
        if row["model"] in MODELS:
            wanted = "quantised" if targets.wants_int8(find(row["target"])) else "as it is"
            assert row["kind"] == wanted, (row["target"], row["model"])


def test_the_pages_are_those_of_the_data(targets: ModuleType) -> None:
    made = "\n".join(targets.page(DATA)).rstrip("\n") + "\n"
    assert (RESULTS / "targets.md").read_text(encoding="utf-8") == made
    judges = script("judges")
    told = "\n".join(judges.page(JUDGED, JUDGED["singles"], JUDGED["models"])).rstrip("\n") + "\n"
    assert (RESULTS / "ethos_u.md").read_text(encoding="utf-8") == told


def test_the_forms_that_fit_are_those_of_today(targets: ModuleType) -> None:
    assert targets.fitting(find("nvidia-dla")) == DATA["forms"]["nvidia-dla"], (
        "run `python benchmarks/targets.py --forms --table`"
    )


# -- the second reader -----------------------------------------------------------------------------------------------


def conv(d: int, *, p: Any = None, group: int = 1, channels: int = 8, batch: int = 1, **more: Any) -> onnx.ModelProto:
    """A 3x3 Conv, 64x64; SAME where no pads are said."""
    pads = {} if "auto_pad" in more else {"pads": [d] * 4 if p is None else p}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="site", dilations=[d, d], group=group, **pads, **more)
    shape = [batch, channels, 64, 64]
    weight = numpy_helper.from_array(np.ones((channels, channels // group, 3, 3), np.float32), "w")
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph([node], "one", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CASES = {
    "rknn's pads": ("rknn-2.3.2", conv(15), conv(16)),
    "rknn's dilation, no pads": ("rknn-2.3.2", conv(31, p=[0] * 4), conv(32, p=[0] * 4)),
    "rknn's depthwise": ("rknn-2.3.2", conv(32, p=[0] * 4, group=8), conv(31, p=[0, 0, 0, 16], group=8)),
    "a set": ("mediatek-mdla2", conv(8), conv(7)),
    "no groups": ("mediatek-mdla2", conv(2, group=8), conv(2, group=4)),
    "powers of two": ("rdk-x3", conv(16), conv(12)),
    "pads alike": ("rdk-x3", conv(2), conv(2, p=[0, 0, 4, 4])),
    "pads below the kernel": ("nvidia-dla", conv(2), conv(3)),
    "SAME pads": ("nvidia-dla", conv(2, auto_pad="SAME_UPPER"), conv(3, auto_pad="SAME_UPPER")),
    "extents of a multiple": ("rdk-x5", conv(4), conv(5)),
    "a product": ("amd-dpu", conv(8, p=[8] * 4, channels=512), conv(9, p=[9] * 4, channels=512)),
    "one image": ("coral-edgetpu", conv(2), conv(2, batch=4)),
    "a kernel with its gaps": ("ethos-u-vela-3.10", conv(31), conv(32)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_second_reader_knows_the_limit_and_what_is_beyond(reader: ModuleType, case: str) -> None:
    """And the tool's judge, which it is held against, says the same."""
    target, inside, beyond = CASES[case]
    for model, broken in ((inside, False), (beyond, True)):
        assert bool(reader.violations(model, target, {})) is broken
        (node,) = judge(model, find(target)).nodes
        told = [one for one in node.findings if one.fit is Fit.OUT and one.rule is not None]
        assert bool([one for one in told if one.rule.place.startswith(("conv.", "tensors.batch"))]) is broken  # type: ignore[union-attr]


def test_the_second_reader_sees_refused_operators_and_inside_of_nodes(reader: ModuleType) -> None:
    inner = helper.make_graph(
        [helper.make_node("DepthToSpace", ["x"], ["z"], blocksize=2), *conv(7).graph.node],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    model = conv(2)
    model.graph.node.append(helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node[-1].attribute[0].g.node[-1].output[0] = "inside"
    assert reader.violations(model, "deepx", {}).keys() == {"z"}
    assert reader.violations(model, "coral-edgetpu", {})["z"] == ["DepthToSpace is refused"]
    assert reader.violations(model, "mediatek-mdla2", {}).keys() >= {"inside"}


def test_the_second_reader_imports_nothing_of_the_tool() -> None:
    text = (ROOT / "benchmarks" / "_reader.py").read_text(encoding="utf-8")
    assert "import dilrewrite" not in text
    assert "from dilrewrite" not in text


# -- what Vela said of the models --------------------------------------------------------------------------------------


def test_every_model_reaches_vela_or_what_stands_in_the_way_is_named() -> None:
    """On each accelerator; none that was chosen has more cycles, or more operators on the CPU."""
    rows = {(row["model"], row["accelerator"], row["version"]): row for row in JUDGED["models"]}
    accelerators = {row["accelerator"] for row in JUDGED["singles"]}
    assert len(accelerators) == 3
    for model in MODELS:
        for accelerator in accelerators:
            before = rows[model, accelerator, "as it is"]
            if "cycles" not in before:
                assert before["reason"].startswith("Conv 'body.0.0': 3 spatial axes"), model
                continue
            after = rows.get((model, accelerator, "chosen"), before)
            assert after["cycles"] <= before["cycles"], (model, accelerator)
            assert len(after["on_the_cpu"]) <= len(before["on_the_cpu"]), (model, accelerator)
    assert len([row for row in rows.values() if row["version"] == "chosen" and row["forms"]]) >= 9
    assert [model for model in MODELS if "cycles" not in rows[model, min(accelerators), "as it is"]] == ["meshnet3d"]


SHAPES = {"causal_tcn": {"roll": (1, 88, 24)}, "hifigan_vocoder": {"mel": (1, 80, 4)}, "splice_sites": {}}


@pytest.mark.parametrize("name", ["causal_tcn", "meshnet3d", "resnet_stage_os8"])
def test_a_model_is_written_for_vela_as_the_record_says(name: str) -> None:
    """The file that Vela is asked about is there, or the operator is named that stands in the way."""
    proto = onnx.load(ROOT / "models" / f"{name}.onnx")
    asked = ethos_u._Asked(Runnable(model=proto.SerializeToString()), SHAPES.get(name, {}))
    (row, *_) = [row for row in JUDGED["models"] if row["model"] == name]
    if "cycles" in row:
        assert asked.tflite()[4:8] == b"TFL3"
    else:
        with pytest.raises(CannotLoad) as told:
            asked.tflite()
        assert str(told.value) == row["reason"]
