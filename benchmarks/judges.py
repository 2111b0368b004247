"""Cycles by a device's own compiler, before and after: single Convs form by form, and the models of this repository.

Run `python benchmarks/judges.py` where Vela is installed (`dilrewrite targets install-judge ethos-u-vela`), and
`python benchmarks/judges.py --backend rknn` where RKNN-Toolkit2 is; results go to benchmarks/results/ethos_u.json and
.md, or rknn.json and .md. Every figure is the compiler's estimate, and the same each time. `--zoo FOLDER` takes the
models of a folder too, whose index.jsonl names a shape that each runs on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))

from _common import RESULTS, circumstances, heading, into_docs, marked, table, write

import dilrewrite
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import parse, plan
from dilrewrite.runtimes import CannotLoad, Runnable, RuntimeFailure, timed_backend
from dilrewrite.runtimes import _rknn as kit
from dilrewrite.runtimes import _vela as vela
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite

ACCELERATORS = ("ethos-u55-128", "ethos-u65-512", "ethos-u85-512")
DILATIONS = (2, 3, 5, 8, 12, 24, 31)
FORMS = (
    "im2col",
    "slice_to_batch:max_dilation=2",
    "phases_apart:limit_phases=256",
    "phases_apart:max_dilation=2,limit_phases=256",
)
MODELS = Path(__file__).parents[1] / "models"
SIZES = {"causal_tcn": "roll:1x88x256", "hifigan_vocoder": "mel:1x80x32", "splice_sites": "sequence:1x4x2000"}
CHANNELS, EXTENT = 32, 64
PLATFORM, TOOLKITS, SECONDS = "rk3588", ("2.5.0", "2.3.2"), 120
BUDGET_S = 900.0


def single(d: int, group: int) -> ModelProto:
    """A 3x3 Conv, SAME, 32 channels, 64x64."""
    kernel = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS // group, 3, 3)).astype(np.float32) / 10
    shape = [1, CHANNELS, EXTENT, EXTENT]
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="site", dilations=[d, d], pads=[d] * 4, group=group)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([conv], "single", values[:1], values[1:], [numpy_helper.from_array(kernel, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def versions(proto: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """The Conv as it is and in its forms."""
    yield "keep", proto
    found = find(proto)
    for text in FORMS:
        name, strategy = parse(text)
        for site in found.sites:
            fragment = plan(name, strategy, site.geometry, site.opset)
            if isinstance(fragment, Fragment):
                yield text, rewrite(proto, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto


def answer(proto: ModelProto, accelerator: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What Vela says of a model."""
    backend = timed_backend(f"ethos_u:accelerator={accelerator}")
    try:
        said = vela.Answer.read(backend.prepare(Runnable(model=proto.SerializeToString()), shapes).content()[0])
    except CannotLoad as error:
        return {"accelerator": accelerator, "reason": str(error)}
    return {
        "accelerator": accelerator,
        "cycles": said.cycles,
        "on_the_cpu": list(said.hosted),
        "memory_bytes": said.memory_bytes,
        "digest": said.digest,
    }


def singles() -> list[dict[str, Any]]:
    """Every form of every single Conv, undilated ones too; Vela is asked by two threads."""
    asked = [
        (kind, d, form, accelerator, proto)
        for group, kind in ((1, "dense"), (CHANNELS, "depthwise"))
        for d in (1, *DILATIONS)
        for form, proto in (versions(single(d, group)) if d > 1 else [("keep", single(d, group))])
        for accelerator in ACCELERATORS
    ]

    def row(kind: str, d: int, form: str, accelerator: str, proto: ModelProto) -> dict[str, Any]:
        return {"kind": kind, "d": d, "form": form, **answer(proto, accelerator, {})}

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda each: row(*each), asked))


def models(known: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Each model as it is, and as it was chosen for each accelerator by its own estimate; what is known stays.

    Yields the rows after each of them.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(MODELS.glob("*.onnx")):
        for accelerator in ACCELERATORS:
            some = [row for row in known if (row["model"], row["accelerator"]) == (path.stem, accelerator)]
            done = any(row["version"] == "chosen" or "cycles" not in row for row in some)
            rows += some if done else chosen(path, accelerator)
            yield rows


def chosen(path: Path, accelerator: str) -> list[dict[str, Any]]:
    """A model before and after, on one accelerator."""
    shapes = [SIZES[path.stem]] if path.stem in SIZES else []
    sizes = {name: tuple(map(int, each.split("x"))) for name, each in (one.split(":") for one in shapes)}
    before = answer(onnx.load(path), accelerator, sizes)
    row = {"model": path.stem, "version": "as it is", "status": "not asked", **before}
    if "cycles" not in before:
        return [row]
    with tempfile.TemporaryDirectory() as folder:
        after, backend = Path(folder, "after.onnx"), f"ethos_u:accelerator={accelerator}"
        report = dilrewrite.optimize(path, after, backend=backend, budget=BUDGET_S, shapes=shapes)
        print(f"{path.stem}, {accelerator}: {report.summary}", flush=True)
        forms = Counter(site.strategy for site in report.sites)
        told = {"status": report.status, "forms": dict(sorted(forms.items()))}
        return [row, {**row, "version": "chosen", **told, **answer(onnx.load(after), accelerator, sizes)}]


def cycles(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "cycles" not in row:
        return row["reason"]
    return f"{row['cycles'] / 1e6:.3f}{' (CPU)' if row['on_the_cpu'] else ''}"


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The version of the fewest cycles, of those without operators on the CPU."""
    return min((row for row in rows if not row.get("on_the_cpu") and "cycles" in row), key=lambda row: row["cycles"])


def page(about: dict[str, Any], rows: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[str]:
    lines = heading("Ethos-U by Vela's estimate", about)
    lines += [
        "Cycles in millions, by Vela with its default system and memory, layout operators included. Nothing was run.",
        "Float models were quantised to int8 on random inputs. `dilrewrite.tflite` wrote the TFLite files.",
        "",
    ]
    for kind in ("dense", "depthwise"):
        lines += [f"## One 3x3 Conv, {kind}, SAME, {CHANNELS} channels, {EXTENT}x{EXTENT}", ""]
        body = []
        for accelerator in ACCELERATORS:
            for d in DILATIONS:
                some = [row for row in rows if (row["kind"], row["accelerator"], row["d"]) == (kind, accelerator, d)]
                forms = {row["form"]: row for row in some}
                least = best(some)
                gain = forms["keep"]["cycles"] / least["cycles"]
                taken = [f"{gain:.2f}x", f"`{least['form']}`"]
                body.append([accelerator, str(d), *(cycles(forms.get(form)) for form in ("keep", *FORMS)), *taken])
        lines += table(["accelerator", "#d", "#as it is", *(f"#{form}" for form in FORMS), "#gain", "best"], body)
        lines.append("")
    if not whole:
        return lines
    return [*lines, "## Models of this repository", "", *marked("ethos-u models", of_models(whole))]


def of_models(rows: list[dict[str, Any]]) -> list[str]:
    """The models of this repository, each for its own accelerator."""
    body = []
    for before in (row for row in rows if row["version"] == "as it is"):
        named = [f"`{before['model']}`", before["accelerator"]]
        after = next((row for row in rows if row["version"] == "chosen" and same(row, before)), None)
        if "cycles" not in before:
            body.append([*named, "-", "-", "-", "", f"not for Vela: {before['reason']}"])
            continue
        if after is None:
            body.append([*named, cycles(before), "-", "-", str(len(before["on_the_cpu"])), "not chosen yet"])
            continue
        hosted = [len(row.get("on_the_cpu", ())) for row in (before, after)]
        forms = ", ".join(f"`{form}` {number}" for form, number in after["forms"].items())
        gain = before["cycles"] / after["cycles"]
        body.append([*named, cycles(before), cycles(after), f"{gain:.2f}x", f"{hosted[0]} -> {hosted[1]}", forms])
    return table(["model", "accelerator", "#before", "#after", "#gain", "on the CPU", "forms"], body)


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return (row["model"], row["accelerator"]) == (other["model"], other["accelerator"])


def rknn(model: Path, toolkit: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What RKNN-Toolkit2 says of a model: its cycles, and our estimate of them with what has none."""
    backend = timed_backend(f"rknn:toolkit={toolkit}")
    try:
        said = kit.Answer.read(backend.prepare(Runnable(model=model), shapes).content()[0])
    except RuntimeFailure as error:
        return {"toolkit": toolkit, "reason": str(error)}
    rate = kit.CYCLES_PER_KB[PLATFORM]
    return {
        "toolkit": toolkit,
        "cycles": said.cycles,
        "uncounted_kb": round(said.uncounted_kb, 1),
        "estimate": round(said.cycles + said.uncounted_kb * rate),
        "on_the_cpu": list(said.hosted),
        "operators": len(said.operators),
        "memory_kb": said.memory_kb,
        "doubts": list(said.doubts),
        "digest": said.digest,
    }


def zoo(folder: Path | None) -> Iterator[tuple[str, str, Path, list[str]]]:
    """The toolkit, the name, the model and the sizes of its inputs: of the models here, and of those of a folder."""
    for toolkit in TOOLKITS:
        for path in sorted(MODELS.glob("*.onnx")):
            yield toolkit, path.stem, path, [SIZES[path.stem]] if path.stem in SIZES else []
    for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines() if folder else ():
        about = json.loads(line)
        sizes = {name: "x".join(map(str, about["run_inputs"][name])) for name in about["dynamic"]}
        shapes = [f"{name}:{size}" for name, size in sizes.items()]
        yield TOOLKITS[0], f"{Path(about['file']).stem} (zoo)", folder / about["file"], shapes


def rknn_models(folder: Path | None, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each model as it is, and as it was chosen; what is known is not asked again."""
    for toolkit, name, path, shapes in zoo(folder):
        on_record = [row for row in known if (row["model"], row["before"]["toolkit"]) == (name, toolkit)]
        if on_record:
            yield on_record[0]
            continue
        sizes = {one.split(":")[0]: tuple(map(int, one.split(":")[1].split("x"))) for one in shapes}
        row: dict[str, Any] = {"model": name, "before": rknn(path, toolkit, sizes)}
        if "reason" not in row["before"]:
            with tempfile.TemporaryDirectory() as scratch:
                after, backend = Path(scratch, "after.onnx"), f"rknn:toolkit={toolkit}"
                report = dilrewrite.optimize(path, after, backend=backend, budget=SECONDS, shapes=shapes)
                row |= {"status": report.status, "forms": sorted({s.strategy for s in report.sites if s.strategy})}
                row["after"] = rknn(after, toolkit, sizes)
        print(json.dumps(row), flush=True)
        yield row


def rknn_page(about: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    lines = heading("RKNN by its toolkit's estimate", about)
    lines += [
        f"RKNN-Toolkit2 for {PLATFORM}, float16, in millions of cycles. Nothing was run. `cycles` are the toolkit's.",
        "It counts none for operators that move or add elements: `with copies` adds what these read and write, at",
        f"{kit.CYCLES_PER_KB[PLATFORM]} cycles for a KB, as it counts for a Conv. The least of that is chosen.",
        f"Not every form was asked about, within {SECONDS} s on a busy machine: what is kept may gain with more.",
        "",
    ]
    body = []
    for row in rows:
        before, after = row["before"], row.get("after", {})
        if "reason" in before:
            body.append([row["model"], before["toolkit"], before["reason"], *["-"] * 4])
            continue
        both = [f"{before[key] / 1e6:.3f} -> {after[key] / 1e6:.3f}" for key in ("cycles", "estimate")]
        hosted = [len(one["on_the_cpu"]) for one in (before, after)]
        cpu = f"{hosted[0]} -> {hosted[1]}"
        body.append(
            [
                row["model"],
                before["toolkit"],
                row["status"],
                cpu,
                *both,
                f"{before['estimate'] / after['estimate']:.2f}x",
            ]
        )
    columns = ["model", "toolkit", "status", "#on the CPU", "#cycles", "#with copies", "#gain"]
    return [*lines, *table(columns, body)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["singles", "models"], help="the other part stays as it is on record")
    parser.add_argument("--again", action="store_true", help="ask about models that are on record, too")
    parser.add_argument("--backend", choices=["ethos_u", "rknn"], default="ethos_u")
    parser.add_argument("--more", action="store_true", help="of rknn: only what is not on record")
    parser.add_argument("--zoo", type=Path, help="a folder of more models, for rknn")
    given = parser.parse_args()
    about = {**circumstances(timed_backend(given.backend), None), "load_before": None}  # an estimate hangs on no load
    file = RESULTS / f"{given.backend}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"singles": [], "models": []}
    if given.backend == "rknn":
        rows: list[dict[str, Any]] = []
        for row in rknn_models(given.zoo, known["models"] if given.more else []):
            rows.append(row)
            write("rknn", {**about, "models": rows}, rknn_page(about, rows))
        return
    rows, whole = known["singles"] if given.only == "models" else singles(), known["models"]
    steps = models([] if given.again else whole) if given.only != "singles" else iter([whole])
    for some in steps:
        write("ethos_u", {**about, "singles": rows, "models": some}, page(about, rows, some))
    into_docs("devices.md", "ethos_u.md", "ethos-u models")


if __name__ == "__main__":
    main()
