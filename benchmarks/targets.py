"""Every target x every model: what the device takes before and after, and whether anything written breaks a rule.

Run `python benchmarks/targets.py [FOLDER ...]` (default: the models of this repository); results go to
benchmarks/results/targets.json and .md, row after row: a run that was stopped goes on where it was. A row is one
`dilrewrite optimize --target` in a process of its own. No device is asked, and nothing timed but the CPU's seconds.

Models for targets that run quantised models only are quantised by ONNX Runtime's quantiser on random inputs, once, into
`--work`. What is written is held to the profile twice: by the tool's judge, which knows no form, and by `_reader.py`,
which knows nothing of the tool. `--again REGEX`: rows, as `TARGET MODEL`, that are made anew; `--forms` computes the
table of forms; `--table` copies what is on record into docs/devices.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
from _common import RESULTS, circumstances, heading, into_docs, marked, table, write
from _reader import FACTS, violations
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite.cli
from dilrewrite.choice.fits import Fitter
from dilrewrite.model.light import with_sizes
from dilrewrite.runtimes import CannotLoad, timed_backends
from dilrewrite.sites.find import find
from dilrewrite.targets import Fit, Judgement, Profile, judge, profiles
from dilrewrite.tflite import quantize

OWN = Path(__file__).parents[1] / "models"
FIRST = (
    *(
        "ethos-u-vela-5.2",
        "ethos-u-vela-3.10",
        "rknn-2.3.2",
        "rknn-2.5.0",
        "nvidia-dla",
        "rdk-x3",
        "rdk-x5",
        "rdk-ultra",
    ),
    *("axera-ax650", "axera-ax620e", "mediatek-mdla2", "amd-dpu", "ti-tidl"),
)
THEN = ("deepx", "nxp-neutron", "ascend", "furiosa", "coral-edgetpu")
LIMIT_S = 120.0
SIZES = {
    "causal_tcn": {"roll": (1, 88, 256)},
    "hifigan_vocoder": {"mel": (1, 80, 32)},
    "splice_sites": {"sequence": (1, 4, 2000)},
}
"""Of models that leave sizes open; a folder's index.jsonl has those of others."""
TRACEBACK = "Traceback (most recent call last)"


@dataclasses.dataclass(frozen=True)
class Given:
    """A model of the table: its file, and the sizes of its inputs where it leaves some open."""

    path: Path
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return self.path.stem


def models(folders: Sequence[Path]) -> Iterator[Given]:
    """Every model of the folders, with the sizes that run."""
    for folder in folders:
        index = folder / "index.jsonl"
        lines = index.read_text(encoding="utf-8").splitlines() if index.exists() else []
        listed = {one["file"]: one["run_inputs"] for one in map(json.loads, lines)}
        for path in sorted(folder.glob("*.onnx")):
            sizes = SIZES.get(path.stem) or listed.get(path.name, {})
            yield Given(path, {name: tuple(shape) for name, shape in sizes.items() if shape})


def wants_int8(profile: Profile) -> bool:
    """Whether a target runs quantised models only."""
    return any(rule.limit == "required" for rule in profile.tensors.get("quantised", ()))


def quantised(given: Given, work: Path) -> Given:
    """The model in QDQ of int8, made once. Raises CannotLoad."""
    proto = onnx.load(given.path)
    if quantize.is_quantised(proto):
        return given
    made = Given(work / f"{given.name}.int8.onnx", {})
    if not made.path.exists():
        fixed = in_float32(with_sizes(proto, given.sizes))
        with tempfile.TemporaryDirectory() as folder:
            before = Path(folder, "before.onnx")
            old = next(one.version for one in fixed.opset_import if one.domain in ("", "ai.onnx")) < 13
            onnx.save(onnx.version_converter.convert_version(fixed, 13) if old else fixed, before)
            _quantise(before, made.path, fixed)
    return made


def _quantise(before: Path, after: Path, proto: ModelProto) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    feeds = [quantize.inputs(proto)]

    class Once(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return feeds.pop() if feeds else None

    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    part = after.with_suffix(".part")
    try:
        quantize_static(before, part, Once(), quant_format=QuantFormat.QDQ, **kinds)
    except Exception as error:  # of many kinds; the reason is one line
        raise CannotLoad(f"ONNX Runtime's quantiser: {' '.join(str(error).split())[:200]}") from error
    part.rename(after)


def in_float32(proto: ModelProto) -> ModelProto:
    """A model of float16 in float32, which the quantiser takes; in place."""
    for tensor in (*proto.graph.initializer, *(a.t for n in proto.graph.node for a in n.attribute if a.HasField("t"))):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    return proto


# -- a row -----------------------------------------------------------------------------------------------------------


def row(given: Given, profile: Profile, work: Path) -> dict[str, Any]:
    """What becomes of a model for a target."""
    told: dict[str, Any] = {"target": profile.name, "model": given.name, "kind": "as it is"}
    proto = onnx.load(given.path)
    if wants_int8(profile) and not quantize.is_quantised(proto):
        try:
            given = quantised(given, work)
        except CannotLoad as error:
            told["not quantised"] = str(error)
        else:
            told["kind"], proto = "quantised", onnx.load(given.path)
    told["sizes"] = {name: list(shape) for name, shape in given.sizes.items()}
    with tempfile.TemporaryDirectory() as folder:
        return {**told, **asked(given, told["kind"], proto, profile, Path(folder))}


@dataclasses.dataclass(frozen=True)
class Done:
    """How a process ended: its exit code (None: past its limit), seconds of CPU time, and what it wrote."""

    code: int | None
    seconds: float
    stdout: str
    stderr: str


def called(words: Sequence[str], folder: Path) -> Done:
    """Call the tool in a child, which has loaded it already."""
    out, err = folder / "stdout", folder / "stderr"
    child = os.fork()
    if not child:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT_S), int(LIMIT_S) + 5))
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            code = dilrewrite.cli.main(words)
            sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    over = code in (-signal.SIGXCPU, -signal.SIGKILL)
    return Done(None if over else code, used.ru_utime + used.ru_stime, out.read_text(), err.read_text())


def asked(given: Given, kind: str, proto: ModelProto, profile: Profile, folder: Path) -> dict[str, Any]:
    """What `optimize --target` does with a model, and what is wrong with that.

    Where a quantised model's outputs differ by quanta in the end, nothing is written (exit code 3); that is no fault.
    """
    written = folder / "after.onnx"
    shapes = [f"{name}:{'x'.join(map(str, shape))}" for name, shape in given.sizes.items()]
    words = ["optimize", str(given.path), "-o", str(written), "--json", "--target", profile.name]
    words += [word for shape in shapes for word in ("--shape", shape)]
    done = called(words, folder)
    if done.code is None:
        return {"exit": None, "seconds": LIMIT_S, "said": f"no end within {LIMIT_S:g} s of CPU time", "faults": []}
    told: dict[str, Any] = {"exit": done.code, "seconds": round(done.seconds, 1)}
    report = json.loads(done.stdout) if done.stdout.startswith("{") else None
    faults = [f"exit code {done.code}"] if done.code not in (0, 1, 3) else []
    faults += ["a traceback"] if TRACEBACK in done.stderr else []
    if report is None:
        return {**told, "said": done.stderr.strip()[-400:], "faults": faults or ["no report"]}
    before = judge(proto, profile, given.sizes)
    told |= {"status": report["status"], "sites": len(report["sites"]), "before": standing(report, "before", before)}
    told["forms"] = dict(sorted(Counter(site["strategy"] for site in report["sites"]).items()))
    faults += differing(proto, profile, given, before)
    if written.exists() != (done.code == 0):
        faults.append(f"exit code {done.code}, and {'a' if written.exists() else 'no'} model is written")
    if not written.exists():
        differs = (report["verdict"] or {}).get("failures", [])
        left = differs or report["remaining"]
        told["said"] = "; ".join(left)
        faults += [one for one in differs if not one.startswith("output ") or kind != "quantised"]
        return {**told, "faults": faults if left else [*faults, "nothing is written, and no reason given"]}
    result = onnx.load(written)
    after = judge(result, profile, given.sizes)
    told["after"] = standing(report, "after", after)
    told["violations"] = broken(proto, result, before, after, profile, given)
    faults += [f"it breaks a rule: {one}" for one in told["violations"]]
    faults += differing(result, profile, given, after)
    if not report["rewritten"] and written.read_bytes() != given.path.read_bytes():
        faults.append("nothing was rewritten, and other bytes written")
    if told["after"]["native"] < told["before"]["native"]:
        faults.append("fewer sites are native than before")
    return {**told, "faults": faults}


def standing(report: Mapping[str, Any], when: str, judgement: Judgement) -> dict[str, Any]:
    """How the sites of a model fit, before or after, and which operators of the whole model its host runs."""
    fits = Counter(site["fit"][when] for site in report["sites"])
    hosted = Counter(node.op for node in judgement.at(Fit.HOST))
    out = Counter(node.op for node in judgement.at(Fit.OUT))
    return {
        **{str(fit): fits[str(fit)] for fit in Fit},
        "host operators": dict(sorted(hosted.items())),
        "nodes out of limits": dict(sorted(out.items())),
    }


def broken(
    proto: ModelProto, result: ModelProto, before: Judgement, after: Judgement, profile: Profile, given: Given
) -> list[str]:
    """What breaks a rule in a written model and was not so in the given one, or has a dilation; by judge and reader."""
    stood = {(node.key, node.op) for node in before.at(Fit.OUT)}
    told = [
        f"{node.key}: {node.op}: {node.because.text if node.because else ''}"
        for node in after.at(Fit.OUT)
        if (node.key, node.op) not in stood or node.dilation > 1
    ]
    had = violations(proto, profile.name, given.sizes)
    for name, rules in violations(result, profile.name, given.sizes).items():
        if had.get(name) != rules:
            told.append(f"{name}: {'; '.join(rules)} (second reader)")
    return told


def differing(proto: ModelProto, profile: Profile, given: Given, judgement: Judgement) -> list[str]:
    """The convolutions of which one reader says that a rule is broken and the other one does not."""
    seen = {name for name, rules in violations(proto, profile.name, given.sizes).items() if rules}
    read = {node.output for node in judgement.nodes if any(_is_read(node.op, one) for one in node.findings)}
    return [f"only {'the judge' if name in read else 'the second reader'} objects to {name}" for name in seen ^ read]


def _is_read(op: str, finding: Any) -> bool:
    """Whether a finding is of a rule that the second reader knows."""
    if finding.fit is not Fit.OUT or finding.rule is None:
        return False
    section, _, field = finding.rule.place.rpartition(".")
    own = section == f"operators.{op}" and field in (
        "where",
        *(["dilation"] if "Conv" not in op[:4] or "T" in op else []),
    )
    return own or (section == "conv" and field in FACTS)


# -- which forms fit -------------------------------------------------------------------------------------------------

GEOMETRIES: Mapping[str, dict[str, Any]] = {
    "dense 3x3, d=2": {"d": (2, 2)},
    "dense 3x3, d=5": {"d": (5, 5)},
    "dense 3x3, d=12": {"d": (12, 12)},
    "dense 3x3, d=24": {"d": (24, 24)},
    "depthwise 3x3, d=5": {"d": (5, 5), "group": 32},
    "1-D, 3 taps, d=12": {"d": (12,)},
    "1-D, 3 taps, d=12, causal": {"d": (12,), "pads": (24, 0)},
    "3-D, 3x3x3, d=2": {"d": (2, 2, 2)},
}
"""One Conv each, of 32 channels, stride 1, SAME where nothing else is said; 64 places along each axis, 16 in 3-D."""
LETTERS = {Fit.NATIVE: "N", Fit.HOST: "h", Fit.UNKNOWN: "?", Fit.OUT: "x"}


def single(d: Sequence[int], group: int = 1, pads: Sequence[int] = ()) -> ModelProto:
    """One Conv, in QDQ of int8."""
    rank, channels = len(d), 32
    shape = [1, channels, *[16 if rank == 3 else 64] * rank]
    held = {
        "w": np.ones((channels, channels // group, *[3] * rank), np.int8),
        "b": np.zeros(channels, np.int32),
        "s": np.float32(2.0**-4),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["k"]),
        helper.make_node("DequantizeLinear", ["b", "s"], ["c"]),
        helper.make_node("Conv", ["r", "k", "c"], ["a"], dilations=d, pads=pads or [*d, *d], group=group),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "single", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fitting(profile: Profile) -> dict[str, dict[str, str]]:
    """By geometry: the fit of every form that applies to it."""
    told: dict[str, dict[str, str]] = {}
    for name, geometry in GEOMETRIES.items():
        proto = single(**geometry)
        (site,) = find(proto).sites
        fitter = Fitter(profile, proto, {}, numpy_helper.to_array)
        fits = {"as it is": str(fitter.own(site).fit)}
        taken, refused = fitter.candidates(site)
        source = {source.title for source in profile.sources.values()}
        for one in refused:
            if any(one.reason.endswith(f"({title})") for title in source):
                fits[one.strategy] = str(Fit.OUT)
        fits |= {one.strategy.partition(":")[0]: str(one.fitted.fit) for one in taken if one.fitted is not None}
        told[name] = {form: fit for form, fit in fits.items() if form != "keep"}
    return told


def forms_page(forms: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """A row for each target, a column for each form, in a cell a letter for each geometry."""
    names = sorted({form for one in forms.values() for fits in one.values() for form in fits} - {"as it is"})
    letters = {str(fit): letter for fit, letter in LETTERS.items()}
    body = []
    for target, one in forms.items():
        cells = (
            "".join(letters.get(fits.get(form, ""), "-") for fits in one.values()) for form in ("as it is", *names)
        )
        body.append([f"`{target}`", *(f"`{cell}`" if cell.strip("-") else "" for cell in cells)])
    return table(["target", "as it is", *(f"`{name}`" for name in names)], body)


# -- the pages -------------------------------------------------------------------------------------------------------


def total(rows: Sequence[Mapping[str, Any]], when: str, what: str) -> int:
    return sum(one[when][what] for one in rows if when in one)


def hosted(rows: Sequence[Mapping[str, Any]], when: str) -> int:
    return sum(sum(one[when]["host operators"].values()) for one in rows if when in one)


def short(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each target: all models together."""
    body = []
    for target in dict.fromkeys(one["target"] for one in rows):
        every = [one for one in rows if one["target"] == target]
        done = [one for one in every if one["exit"] == 0]
        sites = sum(one.get("sites", 0) for one in every)
        left = Counter(
            "over 2 minutes" if one["exit"] is None else f"exit {one['exit']}" for one in every if one["exit"] != 0
        )
        after = ", ".join(f"{total(done, 'after', str(fit))} {fit}" for fit in Fit if total(done, "after", str(fit)))
        body.append([
            f"`{target}`", str(len(every)), str(sites), str(total(every, "before", "native")), str(len(done)), after,
            f"{hosted(done, 'before')} -> {hosted(done, 'after')}",
            str(sum(len(one["violations"]) for one in done)),
            ", ".join(f"{number} {what}" for what, number in sorted(left.items())),
        ])  # fmt: skip
    columns = ("target", "#models", "#sites", "#native before", "#models written", "sites in them after")
    return table([*columns, "operators on the host", "#rules broken", "not written"], body)


def page(data: Mapping[str, Any]) -> list[str]:
    rows, forms = data["rows"], data["forms"]
    lines = heading("Models for named targets", data["about"])
    lines += [
        "Counts of `dilrewrite optimize --target`; nothing ran on a device. docs/devices.md explains the columns.",
        "",
    ]
    lines += [*marked("models by target", short(rows)), "", "## Which forms fit", ""]
    lines += [*(f"{place}. {name}" for place, name in enumerate(GEOMETRIES, 1)), ""]
    lines += [*marked("forms by target", forms_page(forms)), ""]
    for target in dict.fromkeys(one["target"] for one in rows):
        body = [_cells(one) for one in rows if one["target"] == target]
        columns = ("model", "kind", "#exit", "#s", "#sites", "#native before", "#native after", "after, else", "forms")
        lines += [f"## {target}", "", *table([*columns, "on the host before", "after", "why not"], body)]
    return lines


def _cells(one: Mapping[str, Any]) -> list[str]:
    after, before = one.get("after"), one.get("before")
    other = (
        ", ".join(f"{after[str(fit)]} {fit}" for fit in Fit if fit is not Fit.NATIVE and after[str(fit)])
        if after
        else ""
    )
    hosts = [
        " ".join(f"{n} {op}" for op, n in state["host operators"].items()) if state else "" for state in (before, after)
    ]
    forms = ", ".join(f"`{form}` {number}" for form, number in one.get("forms", {}).items())
    said = [*one.get("faults", []), one.get("said", ""), one.get("not quantised", "")]
    return [
        one["model"], one["kind"], "-" if one["exit"] is None else str(one["exit"]), f"{one['seconds']:.0f}",
        str(one.get("sites", "")), str(before["native"]) if before else "", str(after["native"]) if after else "",
        other, forms if after else "", *hosts, _plain("; ".join(filter(None, said))),
    ]  # fmt: skip


def _plain(text: str) -> str:
    short = text if len(text) <= 300 else f"{text[:300]}..."
    return short.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[OWN])
    parser.add_argument("--targets", nargs="+", default=[*FIRST, *THEN])
    parser.add_argument("--again", default="(?!)", help="rows to make anew: a pattern of 'TARGET MODEL'")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "dilrewrite-targets"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # the quantiser's advice
    file, known = RESULTS / "targets.json", profiles()
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": [], "forms": {}}

    def save() -> None:
        places = {name: place for place, name in enumerate((*FIRST, *THEN))}
        data["rows"].sort(key=lambda one: (places.get(one["target"], 99), one["model"]))
        made = {"about": {**circumstances(timed_backends()["onnxruntime_cpu"], None), "load_before": None}, **data}
        write("targets", made, page(made))

    if options.forms:
        data["forms"] = {name: fitting(known[name]) for name in (*FIRST, *THEN)}
        save()
    elif not options.table:
        for target in options.targets:
            for given in models(options.folders):
                had = [one for one in data["rows"] if (one["target"], one["model"]) == (target, given.name)]
                if had and not re.search(options.again, f"{target} {given.name}"):
                    continue
                made = row(given, known[target], options.work)
                data["rows"] = [*(one for one in data["rows"] if one not in had), made]
                print(" | ".join([target, *_cells(made)]), flush=True)
                save()
    if options.table:
        save()
        into_docs("devices.md", "targets.md", "models by target")
        into_docs("devices.md", "targets.md", "forms by target")


if __name__ == "__main__":
    main()
