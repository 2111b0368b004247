"""Engines of rewritten models against the original's: layers by type, datatypes, size, build time. Needs no GPU.

Run `python benchmarks/engines.py [MODEL.onnx ...] [--zoo DIR] [--models LIST.json] [--precision fp16]`: the models of
this repository and those given are built as they are and with every strategy that does not refuse, all sites at once;
so is one dilated Conv alone. Results go to benchmarks/results/engines-FLAVOUR.json and .md. With `--regions` instead
these models and the chains of `_chains.py` are built Conv by Conv and as regions, in two precisions; results go to
engines-regions-FLAVOUR.json and .md, and the table into docs/backends.md. Exits with 1 when a rewritten model fails
whose original builds. What is built here is not proved here: tests and `optimize` do that.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _chains import CHAINS
from _common import heading, into_docs, marked, retyped, table, write
from _versions import AT_ONCE, region_versions, versions
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite import machine
from dilrewrite.errors import DilrewriteError, MissingError
from dilrewrite.model.load import load
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import all_nodes
from dilrewrite.options import Building
from dilrewrite.proof.inputs import parse_shapes
from dilrewrite.reports.report import environment
from dilrewrite.runtimes._nvidia import NoGpuError, gpu
from dilrewrite.sites.find import find
from dilrewrite.tensorrt import bindings, profiles, sidecar
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.layers import parsed_name
from dilrewrite.tensorrt.make import build
from dilrewrite.tensorrt.precision import prepare
from dilrewrite.tensorrt.profiles import Asked, Shape
from models import OWN

ROOT = Path(__file__).parent.parent

BUDGET = "not run: budget"

WAITS = ("signal", "wait")
"""Layers that only order what runs at the same time; no figure here counts them as layers."""

LENGTHS = {1: 1024, 2: 128, 3: 32}
OTHER_LENGTH = 16

SIZES = (
    f"Unknown sizes of inputs: 1 for the first axis, {', '.join(map(str, LENGTHS.values()))} for the others of inputs "
    f"with 1, 2, 3 spatial axes, {OTHER_LENGTH} for other inputs, where the list of models names none; the profile "
    "reaches from half of that to twice, except on the first axis."
)


# -- models and the sizes that they are built for --------------------------------------------------------------------


def sizes(proto: ModelProto, given: Mapping[str, Shape]) -> Asked:
    """The profile of every input with unknown sizes: `given`, or by the rule that `SIZES` states."""
    asked: tuple[dict[str, Shape], dict[str, Shape], dict[str, Shape]] = ({}, {}, {})
    for name, declared in profiles.declared(proto).items():
        if declared is None or None not in declared:
            continue
        length = LENGTHS.get(len(declared) - 2, OTHER_LENGTH)
        best = [given[name][i] if name in given else 1 if i == 0 else length for i in range(len(declared))]
        for kind, factor in zip(asked, (0.5, 1, 2), strict=True):
            kind[name] = tuple(
                size if size is not None else best[i] if i == 0 else max(int(factor * best[i]), 1)
                for i, size in enumerate(declared)
            )
    return dict(zip(profiles.KINDS, asked, strict=True))


# -- one engine ------------------------------------------------------------------------------------------------------


def engine(
    library: Library, proto: ModelProto, precision: str | None, given: Mapping[str, Shape], where: str, folder: Path
) -> dict[str, Any]:
    """Build one engine; what is known of it as plain data. Raises DilrewriteError."""
    prepared = prepare(proto, precision, where)
    shapes = profiles.settle(prepared.proto, sizes(prepared.proto, given), where)
    profiles.check(prepared.proto, shapes, where)
    built = build(
        library, prepared.proto, Building(), profiles=shapes, folder=folder, tf32=prepared.precision != "fp32"
    )
    names = [parsed_name(node) for node in all_nodes(prepared.proto) if node.op_type in ("Conv", "ConvTranspose")]
    kinds = built.layers.kinds()
    return {
        "precision": prepared.precision,
        "layers": sum(count for kind, count in kinds.items() if kind not in WAITS),
        "waits": sum(kinds.get(kind, 0) for kind in WAITS),
        "convolutions": len(built.layers.convolutions(names)),
        "kinds": kinds,
        "datatypes": sidecar.check_precision(prepared, built.layers, names, where),
        "bytes": len(built.plan),
        "memory": dict(built.layers.memory),
        "build_seconds": round(built.seconds, 2),
        "profiles": {name: dataclasses.asdict(profile) for name, profile in shapes.items()},
    }


def attempt(make: Callable[[], dict[str, Any]], place: Path | None = None) -> dict[str, Any]:
    """What `make` returns, or why it fails in one line, without the folder that `place` lies in."""
    try:
        return {"status": "built", **make()}
    except DilrewriteError as error:
        text = error.message
        if place is not None:
            text = text.replace(str(place), place.name).replace(f"{place.parent}/", "")
        return {"status": "refused", "reason": re.sub(r"; ModelImporter\.cpp.*$", "", text)}


def given_sizes(entry: Mapping[str, Any]) -> dict[str, Shape]:
    """The sizes that a list of models names."""
    words = entry.get("arguments", [])
    return dict(parse_shapes([words[i + 1] for i, word in enumerate(words) if word == "--shape"], ()))


def of_model(
    library: Library, entry: Mapping[str, Any], precision: str | None, late: Callable[[], bool]
) -> list[dict[str, Any]]:
    """The rows of one model: its original, and each version."""
    path = Path(entry["path"])
    given = given_sizes(entry)
    if late():
        return [{"model": path.name, "variant": "original", "status": BUDGET}]
    try:
        model = load(path)
        found = find(model.proto)
    except DilrewriteError as error:
        reason = error.message.replace(str(path), path.name)
        return [{"model": path.name, "variant": "original", "status": "refused", "reason": reason}]
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for variant in versions(model, found, refused, AT_ONCE):
        row: dict[str, Any] = {
            "model": path.name,
            "variant": variant.name,
            "sites": len(found.sites),
            "rewritten": variant.rewritten,
        }
        if late():
            rows.append({**row, "status": BUDGET})
            continue
        made = attempt(
            lambda proto=variant.proto: engine(library, proto, precision, given, path.name, model.folder), path
        )
        if made["status"] == "refused" and rows:
            made["status"] = "FAILED"
        rows.append({**row, **made})
        if rows[0]["status"] != "built":
            break
    rows[0]["strategies_that_refuse"] = refused
    return rows


# -- one dilated Conv alone ------------------------------------------------------------------------------------------

CHANNELS = 32
DILATION = 4
EXTENTS = {True: {1: 256, 2: 32, 3: 16}, False: {1: 250, 2: 30, 3: 15}}
"""By rank: whole multiples of the dilation, and others, for which forms that split an axis into phases pad it first."""

PLACES = ("edges", "middle")
ELEMENTS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "QDQ": "float32"}

ALONE = (
    f"{CHANNELS} channels, kernel 3 and dilation {DILATION} on every axis, same padding, a bias, in 1-D, 2-D and 3-D "
    f"with extents of {', '.join(map(str, EXTENTS[True].values()))}, which the dilation divides, and of "
    f"{', '.join(map(str, EXTENTS[False].values()))}, which it does not"
)


TOLD = ("status", "reason", "layers", "extra_layers", "waits", "kinds", "datatypes")
"""What results keep of an engine of one Conv."""


def alone(rank: int, place: str, kind: str, *, divides: bool) -> ModelProto:
    """One dilated Conv between input and output, or between two plain ones; inputs and outputs in its own type."""
    rng = np.random.default_rng(0)
    quantized = kind == "QDQ"
    nodes, tensors = [], []
    last = "x"

    def hold(name: str, values: Any) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def quantize(source: str, name: str) -> str:
        scale, zero = hold(f"{name}_scale", np.float32(0.05)), hold(f"{name}_zero", np.int8(0))
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"], name=f"{name}_q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_r"], name=f"{name}_r"))
        return f"{name}_r"

    if quantized:
        last = quantize("x", "x")
    dilations = (DILATION,) if place == "edges" else (1, DILATION, 1)
    for number, dilation in enumerate(dilations):
        name = f"conv{number}"
        shape = (CHANNELS, CHANNELS, *(3,) * rank)
        if quantized:
            weight = hold(f"{name}_w_q", rng.integers(-127, 128, shape).astype(np.int8))
            scale = hold(f"{name}_w_scale", np.full(CHANNELS, 0.01, np.float32))
            zero = hold(f"{name}_w_zero", np.zeros(CHANNELS, np.int8))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [weight, scale, zero], [f"{name}_w"], name=f"{name}_dequantize", axis=0
                )
            )
            bias = hold(f"{name}_b_q", rng.integers(-100, 101, CHANNELS).astype(np.int32))
            scale = hold(f"{name}_b_scale", np.full(CHANNELS, 0.05 * 0.01, np.float32))
            nodes.append(
                helper.make_node("DequantizeLinear", [bias, scale], [f"{name}_b"], name=f"{name}_bias", axis=0)
            )
        else:
            hold(f"{name}_w", rng.standard_normal(shape, dtype=np.float32) / math.sqrt(CHANNELS * 3**rank))
            hold(f"{name}_b", rng.standard_normal(CHANNELS, dtype=np.float32))
        out = "y" if number == len(dilations) - 1 and not quantized else f"{name}_out"
        nodes.append(
            helper.make_node(
                "Conv",
                [last, f"{name}_w", f"{name}_b"],
                [out],
                name=name,
                dilations=[dilation] * rank,
                pads=[dilation] * (2 * rank),
                kernel_shape=[3] * rank,
            )
        )
        last = quantize(out, f"{name}_y") if quantized else out
    if quantized:
        nodes[-1].output[0] = "y"
    size = [1, CHANNELS, *[EXTENTS[divides][rank]] * rank]
    graph = helper.make_graph(
        nodes,
        "alone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, size)],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return retyped(proto, ELEMENTS[kind]) if ELEMENTS[kind] != "float32" else proto


def of_one_conv(library: Library, late: Callable[[], bool]) -> list[dict[str, Any]]:
    """The rows of one dilated Conv alone, each with the layers that the form has more than the Conv."""
    rows: list[dict[str, Any]] = []
    for divides, rank, place, kind in itertools.product(EXTENTS, EXTENTS[True], PLACES, ELEMENTS):
        proto = alone(rank, place, kind, divides=divides)
        model = Model(proto=proto, path=None, folder=ROOT, external_files=(), file_bytes=0)
        common = {"rank": rank, "place": place, "kind": kind, "divides": divides}
        refused: dict[str, str] = {}
        first: dict[str, Any] = {}
        for variant in versions(model, find(proto), refused, AT_ONCE):
            if late():
                rows.append({**common, "variant": variant.name, "status": BUDGET})
                continue
            made = attempt(lambda proto=variant.proto: engine(library, proto, None, {}, "one Conv", ROOT))
            if first.get("status") == "built":
                if made["status"] == "refused":
                    made["status"] = "FAILED"
                else:
                    made["extra_layers"] = made["layers"] - first["layers"]
            first = first or made
            rows.append({**common, "variant": variant.name, **{key: made[key] for key in TOLD if key in made}})
        rows += [{**common, "variant": name, "status": "refuses", "reason": reason} for name, reason in refused.items()]
    return rows


# -- regions ---------------------------------------------------------------------------------------------------------

PER_SITE = ("space_to_batch", "lift")
PRECISIONS = {"fp32": None, "fp16": "fp16"}
"""float32 as the models have it (with TF32), and converted."""


def as_regions(
    library: Library, name: str, model: Model, given: Mapping[str, Shape], late: Callable[[], bool]
) -> list[dict[str, Any]]:
    """The rows of one model: its layers as it is, with a form at every site, and with its regions in another layout."""
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    by_site = (
        each for each in versions(model, find(model.proto), refused, AT_ONCE) if each.name in ("original", *PER_SITE)
    )
    for version in (*by_site, *region_versions(model, refused, AT_ONCE)):
        for precision, asked in PRECISIONS.items():
            row = {
                "model": name,
                "variant": version.name,
                "precision": precision,
                "rewritten": version.rewritten,
                "regions": version.regions,
                "left": len(find(version.proto).sites),
            }
            if late():
                rows.append({**row, "status": BUDGET})
                continue
            made = attempt(
                lambda proto=version.proto, asked=asked: engine(library, proto, asked, given, name, model.folder)
            )
            first = next((each for each in rows if each["precision"] == precision), None)
            if made["status"] == "refused" and first is not None and first["status"] == "built":
                made["status"] = "FAILED"
            rows.append({**row, **{key: made[key] for key in (*TOLD, "build_seconds", "bytes") if key in made}})
    return rows


def layers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of layers of whole models, as docs/backends.md has it."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        phases = [row for row in own if row["variant"].startswith("phase_region")]
        kinds = [
            *([row for row in own if row["variant"] == form] for form in ("original", *PER_SITE, "lift_region")),
            [row for row in phases if row["left"]],
            [row for row in phases if not row["left"]],
        ]
        if kinds[0][0]["status"] == "built" and any(kinds[3:]):
            lines.append((name, *(" / ".join(dict.fromkeys(_fewest(kind))) for kind in kinds)))
    columns = ("", "#native", *(f"#`{form}`" for form in PER_SITE), "#lifted", "#phases", "#phases, none left")
    return table(columns, lines)


def _fewest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest layers in each precision; "-" where nothing is built."""
    counts = [[row["layers"] for row in rows if row["precision"] == each and "layers" in row] for each in PRECISIONS]
    return [str(min(some)) if some else "-" for some in counts]


def regions_page(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The page of results of regions."""
    lines = heading("Engines of models as regions", about)
    lines += [
        "Layers of the engines, without those that only signal or wait, of models and of chains of dilated Convs as "
        "networks hold them: as they are, with a form at every Conv that takes it, and with chains in one layout. "
        f"fp32: with TF32. {SIZES} No layer of these engines has run.",
        "",
        "The fewest layers of each kind, fp32 / fp16 where they differ:",
        "",
        *marked("regions", layers(rows)),
        "",
    ]
    columns = ("model", "version", "#regions", "#Convs", "#dilation left", "precision", "#layers", "#KiB", "#build, s")
    lines += table(
        columns,
        [
            (
                row["model"],
                f"`{row['variant']}`",
                str(row["regions"] or "-"),
                str(row["rewritten"] or "-"),
                str(row["left"]),
                row["precision"],
                str(row["layers"]) if row["status"] == "built" else _why(row),
                f"{row['bytes'] / 1024:.0f}" if "bytes" in row else "-",
                f"{row['build_seconds']:.1f}" if "build_seconds" in row else "-",
            )
            for row in rows
        ],
    )
    return lines


def _why(row: Mapping[str, Any]) -> str:
    reason = f": {shortened(row['reason'])}" if "reason" in row else ""
    return f"{row['status']}{reason}".replace("|", "\\|")


# -- the page --------------------------------------------------------------------------------------------------------


def about_here(library: Library) -> dict[str, Any]:
    """The machine, the library and the date."""
    try:
        device = gpu()[0]
    except NoGpuError:
        device = "no GPU"
    load_now = machine.load()
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "backend": bindings.module_name(library.flavour),
        "device": f"{machine.processor()}, {machine.cores()} cores, {device}",
        "versions": {library.flavour: library.version},
        "load_before": None if load_now is None else round(load_now, 2),
        "environment": dataclasses.asdict(environment(None)),
    }


def shortened(reason: str) -> str:
    """The first words of a reason: the library's own may be many."""
    return reason if len(reason) <= 240 else f"{reason[:237]}..."


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _model_row(row: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[str, ...]:
    sites = f"{row['rewritten']} of {row['sites']}" if row.get("rewritten") else "-"
    start = (row["model"].removesuffix(".onnx"), row["variant"], sites)
    if row["status"] != "built":
        return (*start, "-", "-", "-", "-", "-", "-", "-", _why(row))
    more = f" ({row['layers'] - first['layers']:+d})" if row is not first else ""
    others = {
        kind: count
        for kind, count in row["kinds"].items()
        if kind not in WAITS and kind not in ("correlation", "deconv", "kgen")
    }
    return (
        *start,
        f"{row['layers']}{more}",
        str(row["convolutions"]),
        str(row["kinds"].get("kgen", 0)),
        str(row["waits"]),
        _counted(row["datatypes"]) or "-",
        f"{row['bytes'] / 1024:.0f}",
        f"{row['build_seconds']:.2f}",
        _counted(others),
    )


def fragment(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of extra layers, as docs/backends.md has it."""
    columns = ["form", "rank", *(f"#{kind}, {place}" for kind in ELEMENTS for place in PLACES)]
    known = {(row["variant"], row["rank"], row["kind"], row["place"], row["divides"]): row for row in rows}
    lines = []
    for name in sorted({row["variant"] for row in rows} - {"original"}):
        for rank in EXTENTS[True]:
            cells = []
            for kind, place in itertools.product(ELEMENTS, PLACES):
                both = [_extra(known.get((name, rank, kind, place, divides))) for divides in EXTENTS]
                cells.append(" / ".join(dict.fromkeys(both)))
            if set(cells) != {"-"}:
                lines.append((f"`{name}`", f"{rank}-D", *cells))
    return table(columns, lines)


def _extra(row: Mapping[str, Any] | None) -> str:
    if row is None or row["status"] == "refuses":
        return "-"
    if "extra_layers" in row:
        return f"{row['extra_layers']:+d}" if row["extra_layers"] else "0"
    return "?" if row["status"] == BUDGET else str(row["status"])


def page(
    about: dict[str, Any], rows: Sequence[dict[str, Any]], single: Sequence[dict[str, Any]], asked: str
) -> list[str]:
    """The page of results."""
    failed = [row for row in (*rows, *single) if row["status"] == "FAILED"]
    told = "No rewritten model fails whose original builds."
    if failed:
        told = f"**{len(failed)} rewritten models FAILED whose original builds**, those of one Conv counted."
    lines = heading("Engines of rewritten models", about)
    lines += [
        "Every strategy at all sites at once, against the original; sites that it refuses keep their Conv. Layers are "
        "those of the engine, read from the build log, without those that only signal or wait; *convolutions* those "
        "that compute one, alone or in a fusion; *kgen* the library's generated kernels, which move data or compute "
        f"elementwise; *computes in* what the convolutions read. Precision: {asked}. {SIZES} Build seconds depend on "
        "what else the machine does; no layer of these engines has run. " + told,
        "",
    ]
    firsts = {row["model"]: row for row in reversed(rows)}  # each model's first row is its original
    lines += table(
        (
            "model",
            "version",
            "sites",
            "#layers",
            "#convolutions",
            "#kgen",
            "#signal, wait",
            "computes in",
            "#engine, KiB",
            "#build, s",
            "other layers, or why not",
        ),
        [_model_row(row, firsts[row["model"]]) for row in rows],
    )
    lines += ["Strategies that refuse every dilated Conv of a model:", ""]
    for name, first in firsts.items():
        some = first.get("strategies_that_refuse")
        if some and first.get("sites"):
            lines.append(f"- {name.removesuffix('.onnx')}: {', '.join(f'`{strategy}`' for strategy in some)}")
    lines += [
        "",
        "## Layers that a form adds to one dilated Conv",
        "",
        f"One dilated Conv ({ALONE}): between the network's input and output (*edges*), and between two plain Convs of "
        "the same size (*middle*). Inputs and outputs are in the network's own type; QDQ: symmetric int8 with float32 "
        f"around it. Layers that only signal or wait are left out; {about['backend']} "
        f"{next(iter(about['versions'].values()))}. Where two figures stand, the first is for extents that the "
        "dilation divides. `-`: the form refuses.",
        "",
        "<!-- for docs/backends.md: from here -->",
        *fragment(single),
        "<!-- for docs/backends.md: to here -->",
    ]
    if failed:
        lines += ["", "## What FAILED", ""]
        lines += [f"- {', '.join(where)}: {reason}" for reason, where in by_reason(failed).items()]
    return lines


def by_reason(failed: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Where rewritten models fail, by the reason without the names of tensors in it."""
    found: dict[str, list[str]] = {}
    for row in failed:
        reason = shortened(re.sub(r"\(\w+\)", "(...)", row["reason"]))
        where = found.setdefault(reason, [])
        place = row["model"] if "model" in row else f"{row['rank']}-D {row['kind']}"
        told = f"`{row['variant']}` ({place})"
        if told not in where:
            where.append(told)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--zoo", type=Path, metavar="DIR", help="a folder: all of its .onnx files")
    parser.add_argument("--models", type=Path, metavar="LIST.json", help="a list as models.py takes it")
    parser.add_argument("--regions", action="store_true", help="regions instead of every strategy")
    parser.add_argument("--flavour", default="tensorrt-rtx", choices=("auto", *bindings.FLAVOURS))
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"), help="default: the models' own")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="S", help="seconds; what is left is not run")
    parser.add_argument("--only", default="", help="models whose file name contains this")
    options = parser.parse_args()
    try:
        library = bindings.load(bindings.choose(options.flavour))
    except MissingError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    about = about_here(library)
    entries: list[Mapping[str, Any]] = [{**entry, "path": ROOT / entry["path"]} for entry in OWN]
    if options.models:
        entries += json.loads(options.models.read_text(encoding="utf-8"))
    entries += [{"path": path} for path in (*options.paths, *sorted(options.zoo.glob("*.onnx") if options.zoo else ()))]
    start = time.monotonic()

    def late() -> bool:
        return time.monotonic() - start > options.budget

    entries = [entry for entry in entries if options.only in Path(entry["path"]).name]
    if options.regions:
        failed = _regions(library, about, entries, options, late)
    else:
        failed = _strategies(library, about, entries, options, late)
    for reason, where in by_reason(failed).items():
        print(f"FAILED: {', '.join(where)}: {reason}", flush=True)
    sys.exit(1 if failed else 0)


def _strategies(
    library: Library,
    about: dict[str, Any],
    entries: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    late: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Build every model with every strategy, write the page, and return the rows that failed."""
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    for entry in entries:
        began = time.monotonic()
        some = of_model(library, entry, options.precision, late)
        rows += some
        _tell(some, began)
    single = of_one_conv(library, late)
    print(f"one Conv: {len(single)} rows, {time.monotonic() - start:.0f} s in all", flush=True)
    asked = options.precision or "the model's own (float32: with TF32)"
    data = {"about": about, "precision": asked, "models": rows, "one_conv": single}
    suffix = f"-{options.precision}" if options.precision else ""
    _write(f"engines-{about['backend']}{suffix}", data, page(about, rows, single, asked), options)
    return [row for row in (*rows, *single) if row["status"] == "FAILED"]


def _regions(
    library: Library,
    about: dict[str, Any],
    entries: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    late: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Build every model and every chain as regions, write the page, and return the rows that failed."""
    rows: list[dict[str, Any]] = []
    models = [(Path(entry["path"]).stem, load(entry["path"]), given_sizes(entry)) for entry in entries]
    models += [
        (name, Model(proto=make(), path=None, folder=ROOT, external_files=(), file_bytes=0), {})
        for name, make in CHAINS.items()
        if options.only in name
    ]
    for name, model, given in models:
        began = time.monotonic()
        some = as_regions(library, name, model, given, late)
        rows += some
        _tell(some, began)
    name = f"engines-regions-{about['backend']}"
    _write(name, {"about": about, "rows": rows}, regions_page(about, rows), options)
    if not options.only:
        into_docs("backends.md", f"{name}.md", "regions")
    return [row for row in rows if row["status"] == "FAILED"]


def _tell(rows: Sequence[Mapping[str, Any]], began: float) -> None:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("built", "refused", "FAILED")}
    told = _counted({status: count for status, count in counts.items() if count})
    print(f"{rows[0]['model']}: {told} ({time.monotonic() - began:.1f} s)", flush=True)


def _write(name: str, data: dict[str, Any], lines: Sequence[str], options: argparse.Namespace) -> None:
    if options.only:
        print("\n".join(lines))
    else:
        write(name, data, lines)


if __name__ == "__main__":
    main()
