"""What is known of an engine, and what its layers take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports.units import NOTHING, count, dims, figure, listed, milliseconds, pairs, percent, seconds, size
from dilrewrite.tensorrt.make import Tensor
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import EngineReport, PrecisionReport
from dilrewrite.timing.measurement import LayerComparison, LayerTime

SLOWEST = 15  # so many layers of an engine are shown, the slowest
BRIEF_SLOWEST = 5  # so many of them in a brief report
LAYER_NODES = 2  # so many ONNX nodes of a layer are named in a brief report
WARNINGS = 3  # so many warnings of an engine's builder are shown in a brief report
ROLES = {
    "convolution": "convolutions",
    "layout": "data moved for a form (pads, slices, reshapes)",
    "other": "all others",
}
COMMAND = "TensorRT's command"
ENGINE_DIGEST, ONNX_DIGEST, BUILT_DIGEST = "engine's SHA-256", "ONNX file's SHA-256", "SHA-256 as built"
VERBATIM = (COMMAND, ENGINE_DIGEST, ONNX_DIGEST, BUILT_DIGEST)  # in `rows` for programs rather than people


def short(engine: EngineReport) -> str:
    """Return an engine in short: `tensorrt-rtx 1.7.1.116, fp16 (19 convolutions in Half), 34 layers, 1.31 MiB`."""
    reads = convolved(engine.precision)
    precision = f"{engine.precision.built}{f' ({reads})' if reads else ''}"
    return f"{library(engine)}, {precision}, {count(len(engine.layers), 'layer')}, {size(engine.bytes)}"


def library(engine: EngineReport) -> str:
    """Return the flavour and the version of TensorRT."""
    return f"{engine.flavour} {engine.version}"


def convolved(precision: PrecisionReport) -> str:
    """Return what an engine's convolutions read: `19 convolutions in Half`; empty where it has none."""
    total, reads = sum(precision.convolutions.values()), _reads(precision)
    if len(precision.convolutions) == 1:
        return f"{count(total, 'convolution')} in {next(iter(precision.convolutions))}"
    return f"{count(total, 'convolution')}: {reads}" if reads else ""


def _reads(precision: PrecisionReport) -> str:
    return ", ".join(f"{number} in {kind}" for kind, number in precision.convolutions.items())


def rows(engine: EngineReport, warnings: int | None = None) -> list[tuple[str, str]]:
    """Return all that is known of an engine but its list of layers, as (what, text) rows; so many `warnings`."""
    precision = engine.precision
    types = "converted from float32" if precision.converted else "the model's own types"
    how = f"as asked, {types}" if precision.asked == precision.built else types
    on = [name for name, value in engine.flags.items() if value is True]
    limits = [(name, _limit(value)) for name, value in engine.flags.items() if not isinstance(value, bool)]
    memory = [(name.removesuffix("_bytes").replace("_", " "), size(n)) for name, n in engine.memory.items()]
    kinds = sorted(engine.layer_types.items(), key=lambda item: -item[1])
    layers = ", ".join(f"{number} {kind}" for kind, number in kinds)
    shown = engine.warnings[:warnings]
    facts = [
        ("file", f"{engine.file}, {size(engine.bytes)} ({engine.bytes} bytes)"),
        ("built by", f"{library(engine)}, dilrewrite {engine.dilrewrite}, in {seconds(engine.build_seconds)}"),
        ("precision", f"{precision.built}: {how}"),
        ("convolutions", _reads(precision) or "none"),
        ("changed for it", "; ".join(precision.changes)),
        ("conversion", _fidelity(precision)),
        ("forms chosen on", engine.chosen_on),
        ("checked", engine.checked),
        ("GPU", engine.device or "none to run it on"),
        ("inputs", _tensors(engine.inputs)),
        ("outputs", _tensors(engine.outputs)),
        ("profile", pairs(((name, _profile(sizes)) for name, sizes in engine.profiles.items()), "; ")),
        ("flags", f"{', '.join(on)} on" if on else "none on"),
        ("limits", pairs(limits)),
        ("memory", pairs(memory)),
        ("layers", f"{len(engine.layers)}{f': {layers}' if layers else ''} (from the {engine.layers_from})"),
        *(("warning", text) for text in shown),
        ("warnings", f"{len(engine.warnings) - len(shown)} more" if len(shown) < len(engine.warnings) else ""),
        ("ONNX file", engine.onnx.file or "none: a model in memory"),
        (ONNX_DIGEST, engine.onnx.sha256),
        (BUILT_DIGEST, engine.onnx.built_sha256),
        (ENGINE_DIGEST, engine.sha256),
        (COMMAND, engine.trtexec),
    ]
    return [(what, text) for what, text in facts if text]


def _fidelity(precision: PrecisionReport) -> str:
    """Return how far a conversion is from float32; may be empty."""
    fidelity = precision.fidelity
    if fidelity is None:
        return ""
    allowed = f"at most {figure(fidelity.bound)} is allowed"
    if fidelity.difference is None:
        return f"{fidelity.reason or 'not compared'}; {allowed}"
    shapes = pairs((name, dims(shape)) for name, shape in fidelity.shapes.items())
    on = f", on {shapes}" if shapes else ""
    return f"differs from float32 by {figure(fidelity.difference)} of the outputs' size, {allowed}{on}"


def _profile(profile: Profile) -> str:
    if profile.min == profile.opt == profile.max:
        return f"{dims(profile.opt)} only"
    return f"min {dims(profile.min)}, opt {dims(profile.opt)}, max {dims(profile.max)}"


def _tensors(tensors: Iterable[Tensor]) -> str:
    shapes = ((t, dims(None if extent < 0 else extent for extent in t.shape)) for t in tensors)
    return pairs(((t.name, f"{t.datatype} {shape}") for t, shape in shapes), "; ")


def _limit(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def engine_blocks(engine: EngineReport, brief: bool) -> Iterator[doc.Block]:
    """Yield what is known of an engine, and its layers in their order; in brief, how many there are of each type."""
    facts = rows(engine, WARNINGS if brief else None)
    yield doc.Facts("The engine", tuple((what, doc.code(text) if what in VERBATIM else text) for what, text in facts))
    if engine.layers and not brief:
        title = "Layers of the engine"
        layers = doc.table(
            title,
            enumerate(engine.layers, 1),
            ("##", lambda item: str(item[0])),
            ("layer", lambda item: doc.code(item[1].name)),
            ("type", lambda item: item[1].kind),
            ("reads", lambda item: ", ".join(item[1].inputs) or NOTHING),
            ("writes", lambda item: ", ".join(item[1].outputs) or NOTHING),
            ("~ONNX nodes", lambda item: doc.codes(item[1].nodes) or NOTHING),
            ("tactic", lambda item: doc.code(item[1].tactic) if item[1].tactic else NOTHING),
        )
        yield doc.Fold(title, (layers,), (f"all {len(engine.layers)} in their order",))


def how(layers: LayerComparison) -> str:
    """Return how the times of layers were taken, and what they are good for."""
    runs = count(layers.runs, "profiled run")
    return f"Medians of {runs}. Profiling slows every layer down: these times are shares of a run, and no timings."


def sums(layers: LayerComparison) -> list[tuple[str, ...]]:
    """Return (what, original ms, its share, rewritten ms, its share, difference in ms) by role, and of all layers."""
    roles = [(what, layers.seconds(False, role), layers.seconds(True, role)) for role, what in ROLES.items()]
    whole = sum(first for _, first, _ in roles), sum(second for _, _, second in roles)
    return [
        (
            *(what, milliseconds(first), _share(first, whole[0]), milliseconds(second), _share(second, whole[1])),
            f"{'+' if second > first else ''}{milliseconds(second - first)}",
        )
        for what, first, second in (*roles, ("all layers", *whole))
    ]


def slowest(layers: Sequence[LayerTime], most: int = SLOWEST) -> list[tuple[LayerTime, str, str]]:
    """Return the layers that take longest, each with its milliseconds and its share of all layers' time."""
    whole = sum(layer.seconds for layer in layers)
    ordered = sorted(layers, key=lambda layer: -layer.seconds)[:most]
    return [(layer, milliseconds(layer.seconds), _share(layer.seconds, whole)) for layer in ordered]


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole > 0 else NOTHING


def layer_blocks(layers: LayerComparison, brief: bool) -> Iterator[doc.Block]:
    """Yield what the layers of both engines take, by role, and the slowest of each."""

    def nodes(layer: LayerTime) -> doc.Inline:
        return (listed(layer.nodes, LAYER_NODES) if brief else doc.codes(layer.nodes)) or NOTHING

    yield doc.Paragraph(doc.muted(how(layers)))
    names = ("layers", "#original ms", "#share", "#rewritten ms", "#share", "#difference ms")
    yield doc.grid("Layers by role", names, sums(layers))
    for name, some in (("original", layers.first), ("rewritten", layers.second)):
        if some:
            title = f"Slowest layers of the {name} model, of {len(some)} in all"
            layer_table = doc.table(
                title,
                slowest(some, BRIEF_SLOWEST if brief else SLOWEST),
                ("layer", lambda row: doc.code(row[0].name)),
                ("^type", lambda row: row[0].kind),
                ("role", lambda row: row[0].role),
                ("~ONNX nodes", lambda row: nodes(row[0])),
                ("#ms", lambda row: row[1]),
                ("#share", lambda row: row[2]),
            )
            yield doc.Fold(title, (layer_table,), shown=True)
