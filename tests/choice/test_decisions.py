"""Decisions on disk: they make the same model again without measuring, for the same model only, proved as ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.choice import decisions, whole
from dilrewrite.choice.reason import Reason
from dilrewrite.errors import FailedError, UsageError
from dilrewrite.reports.report import Report
from dilrewrite.sites import Found
from dilrewrite.sites.find import find
from tests import models_for_tests as tiny
from tests.models_for_tests import build, cli, conv1d, conv_node, listing, save, save_external, two_convs, values
from tests.mutants import MUTANTS, TARGETS
from tests.words import says, words

pytestmark = pytest.mark.usefixtures("in_process")

Capsys = pytest.CaptureFixture[str]
Make = Callable[[], ModelProto]

NEW = ("--budget", "60")
"""What would measure, if anything did."""


@pytest.fixture(autouse=True)
def _sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first step towards measuring."""

    def measures(*_: Any, **__: Any) -> Any:
        pytest.fail("it measures")

    for name in ("Meter", "Tuning", "Device", "open_cache"):
        monkeypatch.setattr(whole, name, measures)


# -- models --------------------------------------------------------------------------------------------------------


def equally_named() -> ModelProto:
    model = two_convs()
    for node in model.graph.node:
        node.name = "same"
    return model


def looped(*, outer: str = "", dilation: int = 2) -> ModelProto:
    """Two Loops, by default without names, whose bodies have the same names inside; a Conv after them too."""

    def body() -> onnx.GraphProto:
        return helper.make_graph(
            [
                conv_node("a", "b", name="", dilations=[dilation], pads=[dilation] * 2),
                helper.make_node("Identity", ["go"], ["on"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2, 16]),
            ],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2, 16]),
            ],
        )

    return build(
        [
            helper.make_node("Loop", ["times", "", "x"], ["c"], name=outer, body=body()),
            helper.make_node("Loop", ["times", "", "c"], ["d"], name=outer, body=body()),
            conv_node("d", "y", name="", dilations=[3], pads=[3, 3]),
        ],
        {"x": [1, 2, 16], "times": []},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=30) / 4},
        types={"times": TensorProto.INT64},
    )


def in_functions() -> ModelProto:
    """Two functions of the same name in different domains, each with a Conv of the same name, called twice."""

    def function(domain: str, dilation: int) -> onnx.FunctionProto:
        weight = onnx.numpy_helper.from_array(values(2, 2, 3, seed=31))
        nodes = [
            helper.make_node("Constant", [], ["b"], value=weight),
            conv_node("a", "c", "b", name="inner", dilations=[dilation], pads=[dilation] * 2),
        ]
        return helper.make_function(domain, "Atrous", ["a"], ["c"], nodes, [helper.make_opsetid("", 17)])

    return build(
        [
            helper.make_node("Atrous", ["x"], ["p"], domain="one"),
            helper.make_node("Atrous", ["p"], ["q"], domain="two"),
            helper.make_node("Atrous", ["q"], ["y"], domain="two"),
        ],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        domains=["one", "two"],
        functions=[function("one", 2), function("two", 3)],
    )


def branched() -> ModelProto:
    branch = helper.make_graph(
        [conv_node("x", "b", name="deep")], "branch", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    return build(
        [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)],
        {"x": [1, 2, 16], "flag": []},
        {"y": None},
        {"w": values(2, 2, 3)},
        types={"flag": TensorProto.BOOL},
    )


def deep() -> ModelProto:
    """A dilation of 8, of which settings may leave some."""
    return conv1d(length=64, dilations=[8], pads=[8, 8])


MODELS: dict[str, Make] = {
    "unnamed nodes": tiny.unnamed_nodes,
    "equally named nodes": equally_named,
    "unnamed Loops": looped,
    "equally named Loops": lambda: looped(outer="loop"),
    "functions": in_functions,
    "branches": branched,
    "quantised": tiny.quantized,
    "unknown sizes": lambda: conv1d(batch="batch", length="time"),
    "SAME pads": tiny.same_upper,
    "SAME pads of unknown length": tiny.same_upper_of_unknown_length,
    "a dilation without effect": lambda: tiny.no_op_dilation(beside=True),
    "dead taps": tiny.aspp,
    "nothing to rewrite": tiny.plain,
    "an unknown operator": tiny.custom_operator,
}


def decide(model: ModelProto, folder: Path, **options: Any) -> tuple[Report, Path, Path]:
    """The report, the model written, and the decisions written."""
    path = save(model, folder / "m.onnx")
    kept = folder / "d.json"
    report = dilrewrite.optimize(path, folder / "one.onnx", save_decisions=kept, **options)
    assert report.exit_code == 0
    return report, folder / "one.onnx", kept


def replay(folder: Path, kept: Path, name: str = "two.onnx", **options: Any) -> tuple[Report, Path]:
    report = dilrewrite.optimize(folder / "m.onnx", folder / name, decisions=kept, budget=60, **options)
    return report, folder / name


def content(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def done(report: Report) -> list[tuple[str, str, str, int]]:
    return [(site.key, site.action, site.strategy, site.max_dilation_left) for site in report.sites]


def check_replay(model: ModelProto, folder: Path, **options: Any) -> Report:
    """Decide and replay; the models must be equal byte for byte, and so must be what is done to each site."""
    first, one, kept = decide(model, folder, **options)
    again, two = replay(folder, kept)
    assert one.read_bytes() == two.read_bytes()
    assert done(first) == done(again)
    assert again.status == first.status
    assert again.measurement is None
    assert all(says(site.reason, Reason.DECIDED) for site in again.sites)
    return again


# -- the same again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"eliminate": True}, {"strategy": "slice_to_batch"}, {"strategy": "keep"}, {}])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.grid(6)
def test_the_same_bytes_again(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    again = check_replay(MODELS[name](), tmp_path, **options)
    if "eliminate" in options and again.sites:
        assert again.rewritten == len(again.sites)
    if not options:
        assert again.rewritten == 0


@pytest.mark.parametrize(
    ("strategy", "spelling"),
    [
        ("space_to_batch:max_dilation=4", "space_to_batch:max_dilation=4"),
        ("space_to_batch:max_dilation=1", "space_to_batch"),
        ("slice_to_batch:max_dilation=2", "slice_to_batch:max_dilation=2"),
        ("space_to_group:max_dilation=2,limit_mb=3", "space_to_group:max_dilation=2,limit_mb=3"),
        ("space_to_group:limit_mb=3,max_dilation=2", "space_to_group:max_dilation=2,limit_mb=3"),
        ("tap_sum:limit_nodes=99", "tap_sum:limit_nodes=99"),
        ("im2col", "im2col"),
        ("tap_sum:limit_nodes=2", "keep"),  # it refuses, and so the Conv stays
    ],
)
def test_settings_of_a_strategy(tmp_path: Path, strategy: str, spelling: str) -> None:
    again = check_replay(deep(), tmp_path, strategy=strategy)
    assert [site["strategy"] for site in content(tmp_path / "d.json")["sites"]] == [spelling]
    assert again.sites[0].strategy == spelling.partition(":")[0]


@pytest.mark.parametrize("limit", [2, 3, 4])
def test_max_dilation_is_in_the_file(tmp_path: Path, limit: int) -> None:
    """It is given once: the replay needs no --max-dilation, and leaves as much."""
    again = check_replay(two_convs(first=2, second=8), tmp_path, eliminate=True, max_dilation=limit)
    left = [site.max_dilation_left for site in again.sites]
    assert max(left) <= limit
    assert left[0] == (2 if limit >= 2 else 1)


def test_some_rewritten_and_some_kept(tmp_path: Path) -> None:
    again = check_replay(tiny.aspp(), tmp_path, strategy="im2col", only="near")
    assert done(again) == [("main/far", "kept", "keep", 24), ("main/near", "rewritten", "im2col", 1)]


def test_a_different_form_for_each(tmp_path: Path) -> None:
    """As measuring may decide: the file says what each site gets."""
    _, _, kept = decide(two_convs(), tmp_path)
    data = content(kept)
    for site, strategy in zip(data["sites"], ("space_to_group", "im2col"), strict=True):
        site["strategy"] = strategy
    kept.write_text(json.dumps(data))
    report, written = replay(tmp_path, kept)
    assert [site.strategy for site in report.sites] == ["space_to_group", "im2col"]
    assert report.verdict is not None
    assert report.verdict.passed
    assert tiny.dilations(written) == [1, 1]


def test_external_data(tmp_path: Path) -> None:
    path = save_external(conv1d(channels=8), tmp_path / "m.onnx")
    kept = tmp_path / "d.json"
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert dilrewrite.optimize(path, one, strategy="im2col", save_decisions=kept).exit_code == 0
    assert dilrewrite.optimize(path, two, decisions=kept).exit_code == 0
    a, b = (onnx.load(written) for written in (one, two))
    assert a.SerializeToString() == b.SerializeToString()


def test_other_weights_are_the_same_model(tmp_path: Path) -> None:
    """Decisions outlive a training run."""
    decide(two_convs(), tmp_path, strategy="im2col")
    model = two_convs()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values(2, 2, 3, seed=99), "w"))
    save(model, tmp_path / "m.onnx")
    report, written = replay(tmp_path, tmp_path / "d.json")
    assert (report.exit_code, report.rewritten) == (0, 2)
    feeds = {"x": values(1, 2, 20)}
    np.testing.assert_allclose(tiny.run(written, feeds)["y"], tiny.run(tmp_path / "m.onnx", feeds)["y"], rtol=1e-4)


def test_the_name_of_the_node_plays_no_part(tmp_path: Path) -> None:
    decide(two_convs(), tmp_path, strategy="im2col")
    save(tiny.unnamed_nodes(), tmp_path / "m.onnx")
    assert replay(tmp_path, tmp_path / "d.json")[0].rewritten == 2


def test_what_the_file_holds(tmp_path: Path) -> None:
    report, _, kept = decide(two_convs(), tmp_path, strategy="im2col", only="late")
    data = content(kept)
    assert data["dilrewrite_decisions"] == decisions.FORMAT
    assert data["model_sha256"] == report.before.sha256
    assert dilrewrite.__version__ in data["made_by"]
    assert [(site["site"], site["node"], site["strategy"]) for site in data["sites"]] == [
        ("main/a", "early", "keep"),
        ("main/y", "late", "im2col"),
    ]
    digests = [site["geometry"] for site in data["sites"]]
    assert len(set(digests)) == 2, "their dilations differ"


def test_names_beyond_ascii(tmp_path: Path) -> None:
    model = two_convs()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = 'a "ü"\n\\ 卷积'
    check_replay(model, tmp_path, eliminate=True)


def test_saving_what_was_replayed(tmp_path: Path) -> None:
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col", only="late")
    report, _ = replay(tmp_path, kept, save_decisions=tmp_path / "again.json")
    assert report.exit_code == 0
    again, before = (content(file)["sites"] for file in (tmp_path / "again.json", kept))
    assert {site.pop("why") for site in again} == {words(Reason.DECIDED)}
    assert {site.pop("why") for site in before} == {words(Reason.FORCED), words(Reason.NOT_NAMED)}
    assert again == before


def test_a_dry_run_saves_nothing(tmp_path: Path) -> None:
    path = save(two_convs(), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, strategy="im2col", dry_run=True, save_decisions=tmp_path / "d.json")
    assert report.rewritten == 2
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_a_dry_run_follows_them(tmp_path: Path) -> None:
    decide(two_convs(), tmp_path, strategy="im2col")
    before = listing(tmp_path)
    report, _ = replay(tmp_path, tmp_path / "d.json", dry_run=True)
    assert (report.rewritten, report.output) == (2, None)
    assert listing(tmp_path) == before


# -- from the command line -----------------------------------------------------------------------------------------


def test_command_line(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.aspp(), tmp_path / "m.onnx")
    one, two, kept = tmp_path / "one.onnx", tmp_path / "two.onnx", tmp_path / "d.json"
    first = cli(capsys, "optimize", path, "-o", one, "--eliminate", "--save-decisions", kept, "--json", "--no-report")
    again = cli(capsys, "optimize", path, "-o", two, "--decisions", kept, *NEW, "--json", "--no-report")
    assert (first.code, again.code, again.err) == (0, 0, "")
    assert one.read_bytes() == two.read_bytes()
    assert again.report["measurement"] is None
    assert again.report["verdict"]["passed"]
    assert all(site["proof"]["failure"] is None for site in again.report["sites"])
    assert sorted(listing(tmp_path)) == ["d.json", "m.onnx", "one.onnx", "two.onnx"]


def refused(capsys: Capsys, folder: Path, *arguments: object, code: int = 2) -> str:
    """The one line that a command ends with; it leaves everything as it was."""
    before = listing(folder)
    outcome = cli(capsys, "optimize", folder / "m.onnx", "-o", folder / "two.onnx", *NEW, *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert outcome.err.startswith("dilrewrite: ")
    assert len(outcome.err.splitlines()) == 1
    assert listing(folder) == before
    return outcome.err


def rename_output(model: ModelProto) -> None:
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "renamed"


def remove_site(model: ModelProto) -> None:
    for attribute in model.graph.node[0].attribute:
        attribute.ints[:] = [1] * len(attribute.ints)


def add_site(model: ModelProto) -> None:
    model.graph.node.append(conv_node("x", "z", name="new"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2, 20]))


def change_attribute(name: str, node: int, *numbers: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        found = [a for a in model.graph.node[node].attribute if a.name == name]
        if found:
            found[0].ints[:] = numbers
        else:
            model.graph.node[node].attribute.append(helper.make_attribute(name, numbers))

    return change


def fuse(model: ModelProto) -> None:
    """What follows the Conv is no longer an activation that goes into the rewritten region with it."""
    model.graph.node[1].CopyFrom(helper.make_node("Softmax", ["a"], ["b"], name="softmax"))


def compute_weight(model: ModelProto) -> None:
    """The weights are an input."""
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3]))


def longer(model: ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value = 22


def other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 18


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_attribute("dilations", 1 + 1, 3), ["main/late", "geometry"]),
        (change_attribute("pads", 0, 1, 3), ["main/early", "geometry"]),
        (change_attribute("strides", 2, 2), ["main/late", "geometry"]),
        (rename_output, ["main/early", "nothing is decided"]),
        (remove_site, ["main/a", "no dilated Conv"]),
        (add_site, ["main/new", "nothing is decided"]),
        (fuse, ["main/early"]),
        (compute_weight, ["main/early"]),
        (longer, ["main/early", "geometry"]),
        (other_opset, ["main/early"]),
    ],
    ids=[
        "another dilation",
        "other pads",
        "another stride",
        "a renamed output",
        "a site removed",
        "a site added",
        "no activation behind it",
        "weights from outside",
        "another length",
        "another opset",
    ],
)
def test_a_changed_model_is_refused(
    capsys: Capsys, tmp_path: Path, change: Callable[[ModelProto], None], words: list[str]
) -> None:
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col")
    model = two_convs()
    change(model)
    save(model, tmp_path / "m.onnx")
    said = refused(capsys, tmp_path, "--decisions", kept)
    for word in (*words, str(kept), "without --decisions"):
        assert word in said


def test_another_model_altogether(capsys: Capsys, tmp_path: Path) -> None:
    _, _, kept = decide(tiny.plain(), tmp_path)
    save(tiny.aspp(), tmp_path / "m.onnx")
    assert "nothing is decided about the node main/far" in refused(capsys, tmp_path, "--decisions", kept)
    _, _, kept = decide(tiny.aspp(), tmp_path, eliminate=True, force=True)
    save(tiny.plain(), tmp_path / "m.onnx")
    assert "the model has no dilated Conv main/far" in refused(capsys, tmp_path, "--decisions", kept)


def test_a_renamed_loop(capsys: Capsys, tmp_path: Path) -> None:
    _, _, kept = decide(looped(outer=""), tmp_path, strategy="im2col")
    save(looped(outer="loop"), tmp_path / "m.onnx")
    assert "nothing is decided about the node main/loop#0.body/b" in refused(capsys, tmp_path, "--decisions", kept)


def test_a_form_that_does_not_apply(capsys: Capsys, tmp_path: Path) -> None:
    """The file was written by a version whose form did."""
    _, _, kept = decide(conv1d(length=64, strides=[2], dilations=[3], pads=[3, 3]), tmp_path, strategy="im2col")
    data = content(kept)
    data["sites"][0]["strategy"] = "space_to_batch"
    kept.write_text(json.dumps(data))
    said = refused(capsys, tmp_path, "--decisions", kept)
    for word in ("space_to_batch does not apply to main/conv", "stride 2 and dilation 3", str(kept)):
        assert word in said


@pytest.mark.parametrize(
    "options",
    [
        ("--strategy", "im2col"),
        ("--eliminate",),
        ("--max-dilation", 2),
        ("--only", "late"),
        ("--skip", "late"),
        ("--strategy", "im2col", "--verify", "none"),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_no_other_choice_beside_them(capsys: Capsys, tmp_path: Path, options: tuple[object, ...]) -> None:
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col")
    said = refused(capsys, tmp_path, "--decisions", kept, *options)
    assert f"--decisions says which forms to take, and {options[0]} too" in said


# -- damaged files -------------------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], bytes]:
    def damage(text: str) -> bytes:
        data = json.loads(text)
        change(data)
        return json.dumps(data).encode()

    return damage


DAMAGE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty": (lambda _: b"", "not a decisions file"),
    "text": (lambda _: b"im2col everywhere, please\n", "not a decisions file"),
    "cut off": (lambda text: text.encode()[:-40], "not a decisions file"),
    "not UTF-8": (lambda text: text.encode("utf-16"), "not a decisions file"),
    "binary": (lambda _: bytes(range(256)) * 9, "not a decisions file"),
    "nested without end": (lambda _: b"[" * 200_000, "not a decisions file"),
    "a number": (lambda _: b"1", "not a decisions file"),
    "null": (lambda _: b"null", "not a decisions file"),
    "a list": (lambda text: f"[{text}]".encode(), "not a decisions file"),
    "other JSON": (lambda _: b'{"sites": []}', "not a decisions file"),
    "a version that is text": (edited(lambda d: d.update(dilrewrite_decisions="1")), "not a decisions file"),
    "a version that is true": (edited(lambda d: d.update(dilrewrite_decisions=True)), "not a decisions file"),
    "a newer version": (edited(lambda d: d.update(dilrewrite_decisions=2)), "of format 2, this version reads 1"),
    "an older version": (edited(lambda d: d.update(dilrewrite_decisions=0)), "of format 0, this version reads 1"),
    "no sites": (edited(lambda d: d.pop("sites")), "damaged: it has no list of sites"),
    "sites by name": (edited(lambda d: d.update(sites={"main/a": "im2col"})), "damaged: it has no list of sites"),
    "a site that is text": (edited(lambda d: d.update(sites=["main/a"])), 'damaged: "main/a" is no decision'),
    "a site without name": (edited(lambda d: d["sites"][0].pop("site")), "is no decision"),
    "a site without geometry": (edited(lambda d: d["sites"][1].pop("geometry")), "is no decision"),
    "a site without form": (edited(lambda d: d["sites"][1].pop("strategy")), "is no decision"),
    "a form that is null": (edited(lambda d: d["sites"][0].update(strategy=None)), "is no decision"),
    "a very long site": (edited(lambda d: d["sites"][0].update(strategy=["x" * 10_000])), "is no decision"),
    "a site twice": (edited(lambda d: d["sites"].append(d["sites"][0])), "damaged: main/a is there twice"),
    "a site missing": (edited(lambda d: d["sites"].pop(0)), "nothing is decided about the node main/early"),
    "a geometry of another": (edited(lambda d: d["sites"][0].update(geometry="0" * 16)), "main/early"),
    "an unknown form": (edited(lambda d: d["sites"][0].update(strategy="magic")), "main/a: magic: no form 'magic'"),
    "no form": (edited(lambda d: d["sites"][0].update(strategy="")), "main/a"),
    "an unknown setting": (edited(lambda d: d["sites"][0].update(strategy="im2col:magic=1")), "no setting 'magic'"),
    "a wrong value": (edited(lambda d: d["sites"][0].update(strategy="im2col:limit_nodes=few")), "limit_nodes='few'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(capsys: Capsys, tmp_path: Path, kind: str) -> None:
    damage, word = DAMAGE[kind]
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col")
    kept.write_bytes(damage(kept.read_text(encoding="utf-8")))
    said = refused(capsys, tmp_path, "--decisions", kept)
    assert word in said
    assert f"--decisions {kept}" in said
    assert len(said) < 600


def test_no_file(capsys: Capsys, tmp_path: Path) -> None:
    save(two_convs(), tmp_path / "m.onnx")
    assert "no such file" in refused(capsys, tmp_path, "--decisions", tmp_path / "d.json")
    assert "not a decisions file" in refused(capsys, tmp_path, "--decisions", tmp_path)
    assert "not a decisions file" in refused(capsys, tmp_path, "--decisions", tmp_path / "m.onnx")


# -- where they are saved ------------------------------------------------------------------------------------------


def at_the_model(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "m.onnx", "--force"]


def at_the_model_spelled_otherwise(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "sub" / ".." / "m.onnx", "--force"]


def behind_a_link_to_the_model(folder: Path) -> list[object]:
    (folder / "link").symlink_to(folder / "m.onnx")
    return ["--save-decisions", folder / "link", "--force"]


def at_the_output(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "two.onnx"]


def at_the_output_spelled_otherwise(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "sub" / ".." / "two.onnx"]


def at_a_data_file(folder: Path) -> list[object]:
    save_external(two_convs(), folder / "m.onnx")
    return ["--save-decisions", folder / "m.0.bin", "--force"]


def at_an_existing_file(folder: Path) -> list[object]:
    (folder / "d.json").write_text("mine")
    return ["--save-decisions", folder / "d.json"]


def at_a_folder(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "sub", "--force"]


def in_no_folder(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "nowhere" / "d.json"]


def at_a_report(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "sub" / "report.json", "--report", folder / "sub"]


def at_the_cache(folder: Path) -> list[object]:
    return ["--save-decisions", folder / "t.sqlite", "--cache", folder / "sub" / ".." / "t.sqlite"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (at_the_model, "is a place for a model"),
        (at_the_model_spelled_otherwise, "is a place for a model"),
        (behind_a_link_to_the_model, "is a place for a model"),
        (at_the_output, "is a place for a model"),
        (at_the_output_spelled_otherwise, "is a place for a model"),
        (at_a_data_file, "is a place for a model"),
        (at_an_existing_file, "exists"),
        (at_a_folder, "is a folder"),
        (in_no_folder, "does not exist"),
        (at_a_report, "would replace"),
        (at_the_cache, "--cache"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_places_that_are_taken(
    capsys: Capsys, tmp_path: Path, options: Callable[[Path], list[object]], word: str
) -> None:
    """Before anything is measured."""
    save(two_convs(), tmp_path / "m.onnx")
    (tmp_path / "sub").mkdir()
    assert word in refused(capsys, tmp_path, *options(tmp_path))


def test_force_replaces(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("old")
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col", force=True)
    assert content(kept)["sites"]


# -- wrong forms, and whole or not at all --------------------------------------------------------------------------

SHOWN_BY: dict[str, Make] = {
    "front_pad_dropped": tiny.asymmetric,
    "unequal_dilations_swapped": tiny.unequal_dilations,
    "not_cut_to_ho": tiny.asymmetric,
    "group_tiling_transposed": tiny.conv2d,
    "zero_instead_of_the_zero_point": tiny.quantized,
    "taps_to_inputs_channel_major": tiny.conv2d,
    "bias_added_with_every_tap": tiny.asymmetric,
}


@pytest.mark.parametrize("mutant", [mutant for mutant in SHOWN_BY if mutant in MUTANTS])
def test_a_replay_is_proved(capsys: Capsys, tmp_path: Path, mutant: str) -> None:
    """The form was right when it was decided, and is wrong now."""
    strategy = TARGETS[mutant][0]
    _, _, kept = decide(SHOWN_BY[mutant](), tmp_path, strategy=strategy)
    before = listing(tmp_path)
    arguments = ["--decisions", kept, "--save-decisions", tmp_path / "again.json", "--no-report", *NEW, "--json"]
    with MUTANTS[mutant]():
        outcome = cli(capsys, "optimize", tmp_path / "m.onnx", "-o", tmp_path / "two.onnx", *arguments)
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert f"{strategy} is wrong" in outcome.report["verdict"]["failures"][0]
    assert listing(tmp_path) == before


def test_a_replay_is_compared_as_a_whole(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every site is proved, and the model is not what was decided on: only the whole tells."""
    _, _, kept = decide(two_convs(), tmp_path, strategy="im2col")
    before = listing(tmp_path)

    def slip(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.dims and t.data_type == TensorProto.FLOAT)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[0] += 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    tiny.spoil(monkeypatch, slip)
    arguments = ["--decisions", kept, "--save-decisions", tmp_path / "again.json", "--no-report", *NEW, "--json"]
    outcome = cli(capsys, "optimize", tmp_path / "m.onnx", "-o", tmp_path / "two.onnx", *arguments)
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert listing(tmp_path) == before


def test_nothing_is_saved_of_what_differs(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.asymmetric(), tmp_path / "m.onnx")
    options = ["--strategy", "space_to_batch", "--save-decisions", tmp_path / "d.json", "--budget", 0]
    with MUTANTS["front_pad_dropped"]():
        outcome = cli(capsys, "optimize", path, *options, "--report", tmp_path / "told", "--json")
    assert outcome.code == 3
    assert set(listing(tmp_path)) == {"m.onnx", "told", *(f"told/report.{kind}" for kind in ("html", "json", "md"))}


def test_nothing_is_saved_where_dilation_is_left(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.transposed(), tmp_path / "m.onnx")
    options = ["--eliminate", "--save-decisions", tmp_path / "d.json", "--budget", 0]
    assert cli(capsys, "optimize", path, *options).code == 1
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_whole_or_not_at_all(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report cannot be written, then the decisions cannot: neither they nor the model are left."""
    from dilrewrite.reports import formats

    class Failing:
        filename = "zzz.txt"
        default = True
        opening = ""

        def render(self, report: Any) -> str:  # noqa: ARG002
            raise FailedError("no ink")

    path = save(two_convs(), tmp_path / "m.onnx")
    options = ["--strategy", "im2col", "--save-decisions", tmp_path / "d.json", "--budget", 0]
    with monkeypatch.context() as patch:
        plug_ins = {**formats.formats(), "zzz": Failing()}
        patch.setattr(formats, "formats", lambda: plug_ins)
        outcome = cli(capsys, "optimize", path, *options)
        assert (outcome.code, outcome.err) == (1, "dilrewrite: no ink\n")
    assert list(listing(tmp_path)) == ["m.onnx"]

    def full(*_: Any) -> str:
        raise FailedError("the disk is full")

    monkeypatch.setattr(decisions, "render", full)
    outcome = cli(capsys, "optimize", path, *options)
    assert (outcome.code, outcome.err) == (1, "dilrewrite: the disk is full\n")
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_somebody_else_writes_there_meanwhile(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place was free when the work began: what stands there at the end is not replaced, and no model appears."""
    real = decisions.render

    def late(*arguments: Any) -> str:
        (tmp_path / "d.json").write_text("theirs")
        return real(*arguments)

    monkeypatch.setattr(decisions, "render", late)
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = cli(
        capsys, "optimize", path, "--strategy", "im2col", "--save-decisions", tmp_path / "d.json", "--budget", 0
    )
    assert (outcome.code, outcome.out) == (2, "")
    assert listing(tmp_path) == {"m.onnx": path.read_bytes(), "d.json": b"theirs"}


# -- the file format alone -----------------------------------------------------------------------------------------


def test_render_and_read(tmp_path: Path) -> None:
    sites = find(two_convs()).sites
    text = decisions.render(
        "0" * 64, zip(sites, ("keep", "im2col"), ("", "it is"), strict=True), {"device": "a machine"}
    )
    path = tmp_path / "d.json"
    path.write_text(text, encoding="utf-8")
    found = decisions.read(path)
    assert {key: entry.strategy for key, entry in found.items()} == {"main/a": "keep", "main/y": "im2col"}
    assert [found[site.key].digest for site in sites] == [decisions.digest(site) for site in sites]
    assert content(path)["made_on"] == {"device": "a machine"}
    decisions.check(path, found, Found(sites=sites))
    with pytest.raises(UsageError, match="main/early"):
        decisions.check(path, {}, Found(sites=sites))
    with pytest.raises(UsageError, match="no dilated Conv main/y"):
        decisions.check(path, found, Found(sites=sites[:1]))


def test_digests_tell_sites_apart() -> None:
    models = [conv1d(), conv1d(length=17), conv1d(channels=4), conv1d(dilations=[3], pads=[2, 2]), tiny.asymmetric()]
    models += [conv1d(length=None), conv1d(opset=18), tiny.quantized(), tiny.same_upper(), tiny.conv2d()]
    digests = [decisions.digest(site) for model in models for site in find(model).sites]
    assert len(set(digests)) == len(models)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)
    assert digests == [decisions.digest(site) for model in models for site in find(model).sites]
