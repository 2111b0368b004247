"""Reports built by hand, one of every kind, with a fixed environment and fixed times."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.compare import OutputCheck
from dilrewrite.proof.prove import Proof, Rounding
from dilrewrite.proof.verdict import CaseCheck, Verdict
from dilrewrite.reports.report import (
    CandidateReport,
    Environment,
    ExampleReport,
    ModelReport,
    RegionNode,
    RegionReport,
    Report,
    SiteReport,
    ValueReport,
)
from dilrewrite.sites import Normalisation, Skipped
from dilrewrite.targets.report import TargetNode, TargetReport
from dilrewrite.tensorrt.fidelity import Fidelity
from dilrewrite.tensorrt.layers import Layer
from dilrewrite.tensorrt.make import Tensor
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import EngineReport, OnnxSource, PrecisionReport
from dilrewrite.timing.measurement import Attempt, LayerComparison, LayerTime, Measurement
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import Comparison, Noise, Timing

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "DILREWRITE_UPDATE_GOLDEN"


def check_golden(name: str, text: str) -> None:
    """Compare `text` with a golden file; with DILREWRITE_UPDATE_GOLDEN=1 write it."""
    path = GOLDEN / name
    if os.environ.get(UPDATE):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.exists(), f"{path} is missing: run with {UPDATE}=1"
    assert text == path.read_text(encoding="utf-8"), f"{path} differs: read the difference, then run with {UPDATE}=1"


HERE = Environment(
    dilrewrite="0.1.0",
    python="3.11.7",
    system="Linux 6.1.0 x86_64",
    processor="Some Processor 9000",
    cores=8,
    threads=None,
    packages={"onnx": "1.20.0", "onnxruntime": "1.24.0", "numpy": "2.3.0"},
)


def conv(**changes: Any) -> ConvGeometry:
    plain = ConvGeometry(
        batch=1,
        in_channels=256,
        out_channels=256,
        group=1,
        extents=(28, 28),
        kernel=(3, 3),
        strides=(1, 1),
        dilations=(12, 12),
        pads_begin=(12, 12),
        pads_end=(12, 12),
        bias=True,
    )
    return replace(plain, **changes)


UNKNOWN = conv(
    batch=None,
    in_channels=None,
    out_channels=None,
    extents=(None, None),
    strides=(2, 2),
    pads_begin=(None, None),
    pads_end=(None, None),
    auto_pad="SAME_UPPER",
)

ROUNDING = Rounding(native_error=7.0e-8, new_error=8.4e-8, limit=4.0e-7, ceiling=6.9e-5, difference=1.5e-7)
PROOF = Proof(
    shapes=((1, 256, 28, 28),), elements=200704, backend="onnxruntime_cpu", native_ran=True, rounding=ROUNDING
)
CANDIDATES = (
    CandidateReport(strategy="tap_zones", multiply_adds=235_929_600, elements_moved=394_752, nodes=21, max_dilation=12),
    CandidateReport(strategy="keep", multiply_adds=462_422_016, elements_moved=0, nodes=1, max_dilation=12),
    CandidateReport(
        strategy="space_to_batch", multiply_adds=764_411_904, elements_moved=265_728, nodes=7, max_dilation=1
    ),
)
REFUSED = (
    Refusal("tap_prune", "no tap at either end of the kernel (3, 3) sees only padding"),
    Refusal("zero_fill", "a dense 25x25 kernel would take 156.2 MiB, above limit_mb=64"),
)


def site(name: str, **changes: Any) -> SiteReport:
    geometry = changes.pop("geometry", conv())
    explicit = geometry.explicit()
    share = explicit.data_share()
    plain = SiteReport(
        where="main",
        name=name,
        output=f"{name}_out",
        key=f"main/{name}_out",
        opset=17,
        geometry=geometry,
        multiply_adds=explicit.multiply_adds(),
        padding_share=None if share is None else 1 - share,
        action="rewritten",
        strategy="tap_zones",
        reason="the cheapest by estimate without dilation; not measured: --budget 0",
        max_dilation_left=12,
        proof=PROOF,
        candidates=CANDIDATES,
        refused=REFUSED,
    )
    return replace(plain, **changes)


def kept(name: str, share: float = 1.64, form: str = "space_to_batch", **changes: Any) -> SiteReport:
    return site(
        name,
        action="kept",
        strategy="keep",
        reason=f"the best other form, {form}, is {share:.2f}x slower",
        proof=None,
        **changes,
    )


BEFORE = ModelReport(
    path="models/x.onnx",
    bytes=1_153_009,
    sha256="97a03098fab111bb36f711b3b8938baf2f2b528aebb85441a11aba6752da81a5",
    ir_version=10,
    opsets={"ai.onnx": 17, "com.example": 1},
    producer="pytorch 2.9.0",
    nodes=42,
    operators={"Add": 4, "Conv": 19, "Relu": 19},
    dilated=2,
    peak_bytes=29_499_392,
    inputs=(ValueReport(name="image", element="float32", shape="[1, 3, H, W]"),),
    outputs=(ValueReport(name="logits", element="float32", shape="[1, 21, H, W]"),),
)
AFTER = replace(
    BEFORE,
    path="models/x.dilrewrite.onnx",
    bytes=1_200_123,
    sha256="dd100192e570678708a7111450d509415fd630b0c6d81a66af54fd2e72c9ebe8",
    nodes=50,
    operators={"Add": 4, "Concat": 4, "Conv": 23, "Relu": 19},
    dilated=0,
    peak_bytes=None,
)
COPY = replace(BEFORE, path="models/x.dilrewrite.onnx")

CHECK = OutputCheck(
    name="logits",
    element="float32",
    shape=(1, 21, 224, 224),
    max_abs=7.62939453125e-06,
    max_rel=0.35,
    rms=1.51e-06,
    cosine=1 - 3.7e-14,
    ulp=5193.0,
    argmax_agreement=0.99999,
    nan=(0, 0),
    inf=(0, 0),
    noise=1.14e-05,
    comparable=True,
    passed=True,
)
NO_FIGURES = replace(
    CHECK, name="labels", element="int64", shape=(), cosine=None, ulp=None, argmax_agreement=None, noise=None
)
EQUAL = Verdict(
    level="full",
    passed=True,
    backend="onnxruntime_cpu",
    cases=(CaseCheck(name="first", shapes={"image": (1, 3, 224, 224)}, outputs=(CHECK, NO_FIGURES)),),
    deterministic=True,
    tolerance="0.0001 |value| + 1e-05 max|values|",
    noise_sources=("graph optimisations on/off", "rewritten Convs disturbed by their per-site error"),
    peak_bytes=(29_499_392, None),
)


def report(status: str, **changes: Any) -> Report:
    plain = Report(
        command="optimize",
        status=status,
        before=BEFORE,
        options={"strategy": None, "eliminate": False, "max_dilation": 1, "shapes": ["x:1x3xHxW"], "dry_run": False},
        environment=HERE,
        date="2026-01-31T12:34:56Z",
        seconds={"load": 0.054, "find": 0.035, "plan and prove": 30.346, "verify": 8.715},
    )
    return replace(plain, **changes)


REWRITTEN = report(
    "rewritten",
    sites=(site("a"), site("b"), kept("c", geometry=conv(dilations=(2, 4), pads_begin=(2, 4), pads_end=(0, 4)))),
    verdict=EQUAL,
    after=AFTER,
    output="models/x.dilrewrite.onnx",
    skipped=(
        Skipped(where="main", name="up", op="ConvTranspose", dilations=(2, 2), reason="ConvTranspose is not rewritten"),
        Skipped(where="main", name="pool", op="MaxPool", dilations=(3, 3), reason="a pooling has no taps to move"),
        Skipped(where="function f", name="g", op="Conv", dilations=(), reason="its attributes refer to the function's"),
    ),
    normalised=(
        Normalisation(scope=ScopePath(), where="main", index=3, name="pointwise", dilations=(1, 1)),
        Normalisation(
            scope=ScopePath(0, ((2, "body", 0),)), where="main/loop.body", index=0, name="same", pads=(2, 2, 2, 2)
        ),
    ),
)

DIFFERENT = replace(
    CHECK,
    name="scores",
    max_abs=math.inf,
    max_rel=math.nan,
    rms=math.inf,
    cosine=math.nan,
    ulp=math.inf,
    argmax_agreement=0.25,
    nan=(0, 7),
    inf=(1, 0),
    noise=math.nan,
    passed=False,
    note="NaN or Inf in other places: 0 NaN and 1 Inf before, 7 and 0 after",
)

# -- measured --------------------------------------------------------------------------------------------------------


def timing(milliseconds: float, spread: float = 0.02, runs: int = 40) -> Timing:
    median = milliseconds / 1000
    return Timing(median_s=median, p20_s=median * (1 - spread), p80_s=median * (1 + 1.5 * spread), runs=runs)


def versus(first: float, second: float, width: float = 0.025, **changes: Any) -> Comparison:
    """Return a comparison of two medians in milliseconds, with an interval of a relative half-width."""
    plain = Comparison(
        first=timing(first),
        second=timing(second),
        ratio=second / first,
        low=second / first / (1 + width),
        high=second / first * (1 + width),
        pairs=40,
        noise=0.009,
        mode="interleaved",
    )
    return replace(plain, **changes)


def timed(outcomes: dict[str, tuple[str, Comparison | None]]) -> tuple[CandidateReport, ...]:
    """Return the candidates with an outcome and a timing by strategy; unknown strategies are added."""
    known = {candidate.strategy: candidate for candidate in CANDIDATES}
    for name in outcomes:
        known.setdefault(name, replace(CANDIDATES[2], strategy=name, multiply_adds=925_000_000))
    return tuple(
        replace(candidate, **became(outcomes.get(name, ("", None))[0]), timing=outcomes.get(name, ("", None))[1])
        for name, candidate in known.items()
    )


def became(said: str) -> dict[str, Any]:
    """Return the outcome and its cause that are told in these words; other words are a cause of their own."""
    start, _, cause = said.partition(": ")
    known = {
        "failed": Outcome.FAILED,
        "not proved": Outcome.UNPROVED,
        "not measured": Outcome.NO_TIME if cause == "budget" else Outcome.NOT_MEASURED,
    }
    if start in known:
        return {"outcome": known[start], "cause": "" if cause == "budget" else cause}
    for word, outcome in (
        ("won", Outcome.WON),
        ("lost", Outcome.LOST),
        ("no faster", Outcome.TIE),
        ("inconclusive", Outcome.INCONCLUSIVE),
        ("would be measured", Outcome.PLANNED),
    ):
        if said.startswith(word):
            return {"outcome": outcome}
    return {"outcome": Outcome.NOT_MEASURED, "cause": said} if said else {}


NOISE = Noise(ratio=1.001, low=0.994, high=1.009, pairs=40)
MEASURED = Measurement(
    backend="onnxruntime_cpu",
    device="Some Processor 9000",
    versions={"onnxruntime": "1.24.0"},
    settings={"threads": "8", "graph optimisations": "all"},
    inputs={"image": (1, 3, 224, 224)},
    budget_s=20.0,
    spent_s=14.1,
    floor_s=2.3,
    measured=31,
    recalled=12,
    profiled_s=0.0151,
    noise=NOISE,
    attempts=(
        Attempt(sites=tuple(f"main/stage{i}_out" for i in range(6)), timing=versus(14.2, 14.4)),
        Attempt(sites=tuple(f"main/stage{i}_out" for i in range(5)), timing=versus(14.2, 11.7)),
    ),
    final=versus(14.2, 11.7),
    predicted_ratio=0.81,
    load=0.42,
)

WON = timed(
    {
        "tap_zones": ("won", versus(2.31, 1.52, 0.012)),
        "space_to_batch": ("lost", versus(2.3, 3.01, 0.004, pairs=6)),
        "im2col": ("failed: the process was killed by SIGSEGV", None),
        "tap_sum": ("not measured: budget", None),
        "slice_to_batch": ("not measured: budget", None),
    }
)
PEAKS = {"tap_zones": 9_400_320, "space_to_batch": None}
WON = tuple(
    replace(one, keep_peak_bytes=6_311_936, peak_bytes=PEAKS[one.strategy]) if one.timing is not None else one
    for one in WON
)


NO_FASTER = (
    "no form is faster beyond noise: in these runs the best, space_to_batch, is as fast (1.02x slower to 1.03x faster)"
)


def lost_by(factor: float) -> tuple[CandidateReport, ...]:
    return timed(
        {
            "tap_zones": ("lost", versus(0.123, 0.123 * factor)),
            "space_to_batch": ("no faster beyond noise", versus(0.124, 0.1236)),
        }
    )


def rounding(ratio: float) -> Rounding:
    return replace(ROUNDING, new_error=ratio * ROUNDING.native_error)


def won(name: str, **changes: Any) -> SiteReport:
    plain = {
        "candidates": WON,
        "reason": "1.52x faster than the dilated Conv (1.50 to 1.54x faster)",
        "share": 0.101,
        "question": 0,
        "predicted_gain": 0.034,
    }
    return site(name, **(plain | changes))


def lost(name: str, factor: float = 1.31, **changes: Any) -> SiteReport:
    plain = {
        "geometry": conv(dilations=(2, 2)),
        "action": "kept",
        "strategy": "keep",
        "reason": f"the best other form, tap_zones, is {factor:.2f}x slower (1.02 to {factor * 1.1:.2f}x slower)",
        "proof": None,
        "candidates": lost_by(factor),
        "share": 0.012,
        "question": 1,
        "predicted_gain": 0.0,
    }
    return site(name, **(plain | changes))


def not_timed(name: str, reason: str, share: float | None, **changes: Any) -> SiteReport:
    """Return a site that was kept without a timing."""
    plain = {
        "reason": reason,
        "candidates": timed({"tap_zones": (reason, None)}),
        "share": share,
        "question": None,
        "predicted_gain": None,
    }
    return lost(name, **(plain | changes))


REWRITTEN_MEASURED = replace(
    REWRITTEN,
    sites=(
        *(
            won(f"stage{i}", predicted_gain=0.034 + i / 1000, proof=replace(PROOF, rounding=rounding(1.1 + i / 10)))
            for i in range(5)
        ),
        lost("head/a"),
        lost("head/b"),
    ),
    skipped=(),
    normalised=(),
    measurement=MEASURED,
    seconds={"load": 0.054, "find": 0.035, "profile": 0.4, "measure": 14.1, "plan and prove": 3.346, "verify": 8.715},
)

KEPT_MEASURED = report(
    "kept",
    sites=(
        lost("a", share=0.21),
        lost("b", 1.64, question=2, share=0.043),
        lost(
            "c",
            1.04,
            reason=NO_FASTER,
            question=3,
            share=0.004,
        ),
        *(
            not_timed(f"tiny{i}", f"cannot matter: 0.0{2 + i} % of the time", (2 + i) / 1e4, candidates=CANDIDATES)
            for i in range(4)
        ),
        not_timed("late", "not measured: budget", 0.01, question=4),
        not_timed("crashed", "failed: the process was killed by SIGSEGV", 0.03, question=5),
        not_timed("left", "named by --skip", 0.0, candidates=CANDIDATES),
    ),
    after=COPY,
    output="models/x.dilrewrite.onnx",
    measurement=replace(MEASURED, attempts=(), final=None, predicted_ratio=None, floor_s=0.0, recalled=0),
)

INCONCLUSIVE = replace(
    KEPT_MEASURED,
    status="inconclusive",
    sites=(
        lost("a", share=0.21, share_interval=(0.17, 0.26)),
        lost(
            "b",
            1.02,
            question=2,
            share=0.043,
            candidates=timed({"tap_zones": ("inconclusive", versus(0.123, 0.125, 0.3, noise=0.52))}),
        ),
        not_timed("late", "not measured: budget", 0.01, question=3),
    ),
    measurement=replace(
        KEPT_MEASURED.measurement or MEASURED,
        noise=None,
        form_noise=0.52,
        load=20.0,
        needed_s=41.2,
        made_up=True,
        others=("onnxruntime_cuda",),
    ),
)

LATER = ("would be measured", None)

BENCHED = report(
    "measured",
    command="bench",
    options={"budget": 20.0},
    after=replace(AFTER, path="models/y.onnx"),
    measurement=replace(
        MEASURED,
        attempts=(),
        predicted_ratio=None,
        profiled_s=None,
        floor_s=0.0,
        measured=2,
        recalled=0,
        final=versus(14.2, 14.64, 0.008),
    ),
    seconds={"load": 0.1, "measure": 14.1},
)

LOOP = conv(
    batch=None,
    in_channels=88,
    out_channels=88,
    extents=(None, None),
    dilations=(4, 4),
    pads_begin=(4, 4),
    pads_end=(4, 4),
)
LOOPED = replace(
    REWRITTEN_MEASURED,
    sites=(
        won(
            "body/conv", geometry=LOOP, where="main/loop.body", ran=((1, 88, 64, 64), (1, 88, 32, 32), (1, 88, 16, 16))
        ),
        won("enc/conv", geometry=LOOP, ran=((2, 88, 40, 40),), question=1),
    ),
)

# -- regions ---------------------------------------------------------------------------------------------------------


def chained(*nodes: str) -> tuple[RegionNode, ...]:
    """Return nodes in words: `Conv d4 0 1`: operator, dilation, and where what it reads is made."""
    return tuple(
        RegionNode(
            op=words[0],
            dilation=next((int(word[1:]) for word in words if word[0] == "d"), 1),
            reads=tuple(int(word) for word in words[1:] if word[0] != "d"),
        )
        for words in map(str.split, nodes)
    )


BLOCKS = chained(
    *("Conv -1", "Relu 0", "Conv d2 1", "Relu 2", "Conv d2 3", "Relu 4", "Add 1 5", "Relu 6"),
    *("Conv d4 7", "Relu 8", "Conv d4 9", "Relu 10", "Add 7 11", "Relu 12", "Conv 13"),
)


def region(name: str, **changes: Any) -> RegionReport:
    """Return a region that is lifted; `nodes`, `members` as of one."""
    nodes = changes.get("nodes") or BLOCKS
    operators = {op: sum(node.op == op for node in nodes) for op in sorted({node.op for node in nodes})}
    lifted = CandidateReport(
        strategy="lift_region", multiply_adds=925_000_000, elements_moved=0, nodes=17, max_dilation=4
    )
    plain = RegionReport(
        where="main",
        name=name,
        key=f"main/{name}_in:{name}_out@lift",
        block=(),
        nested=(),
        opset=17,
        operators=operators,
        members=(),
        inputs=(f"{name}_in",),
        outputs=(f"{name}_out",),
        ends=(f"'{name}_in': enters the node list", "Softmax 'classes': does not keep the layout as it stands"),
        action="rewritten",
        strategy="lift_region",
        reason="1.33x faster than the region (1.31 to 1.36x faster)",
        max_dilation_left=4,
        proof=replace(PROOF, shapes=((1, 64, 7), (3, 64, 12))),
        candidates=(replace(lifted, outcome=Outcome.WON, timing=versus(8.4, 6.3, 0.02)),),
        refused=(),
        share=0.71,
        question=0,
        predicted_gain=0.178,
        nodes=BLOCKS,
    )
    return replace(plain, **changes)


def not_taken(name: str, **changes: Any) -> RegionReport:
    """Return a region of phases that was considered and is kept."""
    phases = CandidateReport(
        strategy="phase_region", multiply_adds=925_000_000, elements_moved=65_536, nodes=31, max_dilation=1
    )
    plain = {
        "key": f"main/{name}_in:{name}_out@2",
        "block": (2,),
        "nested": ((2,),),
        "action": "kept",
        "strategy": "keep",
        "reason": "its Convs' own forms, or those of a region that shares nodes with it, are better",
        "proof": None,
        "candidates": (replace(phases, outcome=Outcome.WON, timing=versus(6.1, 5.6)),),
        "share": 0.52,
        "question": 1,
        "predicted_gain": None,
        "nodes": (),
    }
    return region(name, **(plain | changes))


LINE = conv(in_channels=64, out_channels=64, extents=(1000,), kernel=(3,), strides=(1,))


def member(name: str, dilation: int, around: str, **changes: Any) -> SiteReport:
    """Return a site that is rewritten with a region."""
    plain = {
        "geometry": replace(LINE, dilations=(dilation,), pads_begin=(dilation,), pads_end=(dilation,)),
        "strategy": "lift_region",
        "reason": f"rewritten with the region {around}",
        "max_dilation_left": dilation,
        "proof": None,
        "candidates": CANDIDATES,
        "share": 0.081,
        "question": None,
        "predicted_gain": None,
        "region": around,
    }
    return won(name, **(plain | changes))


AROUND = "main/stem_in:stem_out@lift"
MEMBERS = (
    member("b1/conv1", 2, AROUND, candidates=WON[:4], question=2),
    member("b1/conv2", 2, AROUND),
    member("b2/conv1", 4, AROUND),
    member("b2/conv2", 4, AROUND, share=0.082),
)
REGIONS = replace(
    REWRITTEN_MEASURED,
    example=ExampleReport(key=AROUND, before=BLOCKS, after=chained("Unsqueeze -1", "Conv d2 0", "Relu 1", "Squeeze 2")),
    sites=(*MEMBERS, won("head", question=3), lost("tail", question=4)),
    regions=(
        region("stem", members=tuple(site.key for site in MEMBERS)),
        not_taken("b1/conv1", members=tuple(site.key for site in MEMBERS)),
        not_taken(
            "tail",
            reason=NO_FASTER.replace("space_to_batch", "phase_region"),
            members=("main/tail_out", "main/tail2_out"),
            nested=(),
        ),
    ),
    measurement=replace(
        MEASURED,
        attempts=(
            Attempt(sites=(AROUND, "main/head_out"), timing=versus(14.2, 11.7)),
            Attempt(sites=(AROUND,), timing=versus(14.2, 12.4)),
        ),
    ),
)
LONG = chained(
    "Conv -1",
    *(
        f"{what} {reads}"
        for i in range(0, 600, 6)
        for what, reads in (
            (f"Conv d{3 ** (i // 6 % 4)}", i),
            ("Split", i + 1),
            ("Tanh", i + 2),
            ("Sigmoid", i + 2),
            ("Mul", f"{i + 3} {i + 4}"),
            ("Add", f"{i} {i + 5}"),
        )
    ),
)
ALL_INSIDE = replace(
    REGIONS,
    options={"eliminate": True},
    sites=tuple(
        replace(site, key=f"main/{i}", candidates=CANDIDATES, question=None, share=None, region=around)
        for i, (site, around) in enumerate(
            zip(MEMBERS, (AROUND, AROUND, "main/b2_in:b2_out@2", "main/b2_in:b2_out@2"), strict=True)
        )
    ),
    regions=tuple(
        replace(one, reason="the cheapest by estimate", share=None, predicted_gain=None, question=None, candidates=())
        for one in (
            region("stem", members=("main/0", "main/1"), nodes=LONG),
            not_taken(
                "b2",
                action="rewritten",
                strategy="phase_region",
                members=("main/2", "main/3"),
                nodes=BLOCKS[7:],
                proof=PROOF,
                max_dilation_left=1,
            ),
        )
    ),
    measurement=None,
)

ODD = "/enc|oder/`tick` [bold]x[/bold] *a* _b_ <i> & $m$ \\ ü日本語\n\x1b[31m\u202e:smile: ~~s~~ 1. # [l](u)"

# -- engines ---------------------------------------------------------------------------------------------------------


def layer(number: int, kind: str, *nodes: str, reads: str = "Half", tactic: str = "") -> Layer:
    return Layer(
        name=f"__myl_{kind.title()}_myl0_{number}",
        kind=kind,
        inputs=(reads,) if nodes else (),
        outputs=("Half",) if nodes else (),
        nodes=nodes,
        tactic=tactic,
    )


NO_DRIVER = (
    "not run: tensorrt-rtx builds engines here and runs none: there is no NVIDIA driver: libcuda.so.1: not found"
)
ENGINE = EngineReport(
    dilrewrite="0.1.0",
    file="x.engine",
    bytes=1_370_716,
    sha256="5da73d0db1fd2e04544e29f742163737f873e6afbc0278401660ee8fb7b96f76",
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    onnx=OnnxSource(
        file="models/x.onnx",
        sha256=BEFORE.sha256,
        built_sha256="0b6f0e2197935824effb1f87a3d255847c74dbb6004e8ebb7c1265405c45170f",
    ),
    precision=PrecisionReport(
        asked="fp16",
        built="fp16",
        converted=True,
        changes=(),
        convolutions={"Half": 19},
        fidelity=Fidelity(difference=0.000435, bound=0.00552, shapes={"image": (1, 3, 224, 224)}),
    ),
    chosen_on="the model as it was given, not measured on TensorRT",
    checked=NO_DRIVER,
    device=None,
    inputs=(Tensor(name="image", datatype="FLOAT", shape=(1, 3, 224, 224)),),
    outputs=(Tensor(name="logits", datatype="FLOAT", shape=(1, 21, 224, 224)),),
    profiles={},
    flags={"TF32": True, "REFIT": False, "STRIP_PLAN": False, "optimization_level": 3},
    build_seconds=0.351,
    memory={"max_scratch_memory_bytes": 33_169_920, "total_weights_memory_bytes": 672_640},
    layers_from="build log",
    layer_types={"correlation": 19, "kgen": 5, "signal": 4, "wait": 6},
    layers=(
        layer(0, "kgen", "graph_input_cast0", "stem", "relu", reads="Float", tactic="__myl_Cast_0xdaa954dc95381d64c6"),
        *(layer(i, "correlation", f"stage{i}", f"relu_{i}", tactic="__myelin_CASK_STUB") for i in range(1, 20)),
        *(layer(i, "kgen", f"add_{i}") for i in range(20, 24)),
        *(layer(i, "signal") for i in range(24, 28)),
        *(layer(i, "wait") for i in range(28, 34)),
    ),
    warnings=(),
    trtexec="tensorrt_rtx --onnx=x.onnx --saveEngine=x.engine --profilingVerbosity=detailed",
)
ENGINE_ON_GPU = replace(
    ENGINE,
    bytes=2_741_432,
    sha256="bf6f9c7baefff9d9cce35b177fa77d73845c0799ec08849b7445d483de78513a",
    flavour="tensorrt",
    version="10.13.3.9",
    precision=PrecisionReport(
        asked=None, built="tf32", converted=False, changes=(), convolutions={"Float": 2, "Half": 1}, fidelity=None
    ),
    chosen_on="tensorrt on NVIDIA Some GPU",
    checked="equal to ONNX Runtime within 0.005 |value| + 0.001 max|values| on NVIDIA Some GPU",
    device="NVIDIA Some GPU",
    inputs=(
        Tensor(name="image", datatype="FLOAT", shape=(-1, 3, -1, -1)),
        Tensor(name="scale", datatype="INT64", shape=()),
    ),
    outputs=(Tensor(name="logits", datatype="FLOAT", shape=(-1, 21, -1, -1)),),
    profiles={
        "image": Profile(min=(1, 3, 64, 64), opt=(1, 3, 224, 224), max=(8, 3, 512, 512)),
        "scale": Profile(min=(1,), opt=(1,), max=(1,)),
    },
    flags={
        "TF32": True,
        "REFIT": True,
        "optimization_level": 5,
        "workspace_mib": 256,
        "plugins": ["libmine.so", "libyours.so"],
    },
    build_seconds=41.2,
    memory={},
    layers_from="engine inspector",
    layer_types={"CaskConvolution": 3, "Reformat": 1},
    layers=(
        *(
            Layer(name=f"conv{i} + relu", kind="CaskConvolution", inputs=("Float",), outputs=("Float",), nodes=("a|b",))
            for i in range(3)
        ),
        Layer(name="Reformatting CopyNode", kind="Reformat", inputs=("Float", "Int32"), outputs=("Half",), nodes=()),
    ),
    warnings=tuple(f"weight {i} is a subnormal number" for i in range(5)),
    trtexec="trtexec --onnx=x.onnx --saveEngine=x.engine --stronglyTyped --minShapes=image:1x3x64x64,scale:1",
)
ENGINE_OF_REWRITTEN = replace(
    ENGINE,
    file="x.dilrewrite.engine",
    onnx=replace(ENGINE.onnx, file="models/x.dilrewrite.onnx", sha256=AFTER.sha256),
    precision=replace(
        ENGINE.precision,
        asked="bf16",
        built="bf16",
        changes=("2 Resize stay in float32", "1 Range stay in float32"),
        convolutions={"BFloat16": 1},
        fidelity=Fidelity(difference=None, bound=0.0442, shapes={}, reason="not compared: no kernel for Magic"),
    ),
    chosen_on="onnxruntime_cpu, not measured on TensorRT",
    flags={"TF32": False},
    layers=ENGINE.layers[1:2],
    layer_types={"correlation": 1},
)
BUILT = report(
    "built", command="build", options={"precision": "fp16"}, output="models/x.engine", engine=ENGINE, seconds={}
)


def layer_time(name: str, role: str, milliseconds: float, *nodes: str) -> LayerTime:
    kind = {"convolution": "correlation", "layout": "kgen"}.get(role, "wait")
    return LayerTime(name=name, kind=kind, nodes=nodes, seconds=milliseconds / 1000, role=role)


LAYERS = LayerComparison(
    runs=20,
    first=(
        *(layer_time(f"stage{i}_myl0_{i}", "convolution", 1 + i / 10, f"stage{i}", f"relu_{i}") for i in range(20)),
        layer_time("__myl_Wait_myl0_20", "other", 0.4),
    ),
    second=(
        layer_time("__myl_Tran_myl0_0", "layout", 0.31, *(f"main/stage{i}/space_to_batch/pad" for i in range(5))),
        *(layer_time(f"stage{i}_myl0_{i}", "convolution", 0.5 + i / 10, f"stage{i}") for i in range(20)),
        layer_time("__myl_Wait_myl0_20", "other", 0.4),
    ),
)


def full(found: Comparison) -> Comparison:
    """Return a comparison with all that is told of samples."""
    first, second = (replace(t, p99_s=1.2 * t.median_s, variation=0.0345) for t in (found.first, found.second))
    return replace(found, first=first, second=second)


ON_GPU = replace(
    MEASURED,
    backend="tensorrt_rtx",
    device="NVIDIA Some GPU",
    versions={"tensorrt-rtx": "1.7.1.116"},
    settings={"precision": "fp16"},
    attempts=(),
    final=full(versus(14.2, 11.7)),
    first_run_s={"before": 2.31, "after": 11.4},
    state_before={"sm_clock_mhz": 1980.0, "power_w": 231.2, "temperature_c": 41.0, "throttle_reasons": 1.0},
    state_after={
        "sm_clock_mhz": 1965.0,
        "memory_clock_mhz": 2619.0,
        "power_w": 239.8,
        "temperature_c": 47.0,
        "throttle_reasons": 36.0,
    },
    layers=LAYERS,
)

ENGINE_MODEL = ModelReport(
    path="models/x.engine",
    bytes=ENGINE.bytes,
    sha256=ENGINE.sha256,
    ir_version=0,
    opsets={},
    producer="tensorrt-rtx 1.7.1.116",
    nodes=34,
    operators=ENGINE.layer_types,
    dilated=0,
)
OTHER_ENGINE_MODEL = replace(
    ENGINE_MODEL, path="models/y.engine", sha256=ENGINE_ON_GPU.sha256, nodes=33, operators={"correlation": 33}
)


def target_node(name: str, **more: Any) -> TargetNode:
    """A node on a target: a dilated Conv that is native, unless told."""
    known = {"where": "main", "output": f"{name}/y", "op": "Conv", "dilation": 12, "fit": "native"}
    return TargetNode(name=name, **{**known, **more})


TARGET = TargetReport(
    name="rknn-2.3.2",
    title="Rockchip RKNN",
    toolchain="rknn-toolkit2 2.3.2",
    status="documented",
    read_on="2026-11-28",
    fits={"native": 12, "host": 1, "unknown": 1, "out of limits": 1},
    convs={"native": 1, "unknown": 1, "out of limits": 1},
    folded=3,
    nodes=(
        target_node("a", fit="out of limits", reasons=("pads 16 is not at most 15",), sources=("pdf",)),
        target_node("b", fit="unknown", reasons=("no source says which groups it takes",), sources=("",)),
        target_node("c", lowered="zero_fill", cost=13.4),
        target_node("wide", op="SpaceToDepth", dilation=1, fit="host", reasons=("on the CPU",), sources=("pdf",)),
    ),
    remarks=("rknn-2.3.2 runs quantised models only",),
)

REPORTS: dict[str, Report] = {
    "rewritten": REWRITTEN,
    "dry-run": replace(REWRITTEN, output=None, options={"dry_run": True}),
    "kept": report(
        "kept",
        sites=(
            *(kept(f"stage{i}/conv", 1.64 + i / 10) for i in range(5)),
            *(kept(f"stage{i}/conv", 1.64) for i in range(5, 7)),
            kept("odd", 3.0, "zero_fill"),
        ),
        after=COPY,
        output="models/x.dilrewrite.onnx",
    ),
    "kept-several-reasons": report(
        "kept",
        sites=(
            kept("a"),
            kept("b", geometry=UNKNOWN),
            replace(kept("c"), reason="named by --skip"),
            replace(kept("d"), reason="not named by --only"),
            replace(kept("e"), reason="its dilation is at most 4"),
        ),
        after=AFTER,
        output="models/x.dilrewrite.onnx",
        verdict=EQUAL,
    ),
    "nothing-to-rewrite": report(
        "nothing to rewrite",
        before=replace(BEFORE, dilated=0),
        after=replace(COPY, dilated=0),
        output="models/x.dilrewrite.onnx",
    ),
    "differs": report(
        "differs",
        sites=(
            site("a"),
            replace(
                kept("b"),
                reason="a form is wrong",
                proof=Proof(
                    shapes=((1, 256, 28, 28), (2, 256, 1, 1)),
                    elements=7,
                    backend="onnxruntime_cpu, reference",
                    native_ran=False,
                    rounding=None,
                    failure="3 of 7 elements differ by up to 12",
                ),
            ),
        ),
        verdict=replace(
            EQUAL,
            passed=False,
            failures=("output 'scores' on first: NaN or Inf in other places", "metadata differ"),
            cases=(replace(EQUAL.cases[0], outputs=(CHECK, DIFFERENT)),),
            checker_before=("Nodes in a graph must be topologically sorted, however input 'x' of node: |y| is not",),
        ),
    ),
    "not-valid": report(
        "not valid",
        sites=(site("a"), kept("b")),
        verdict=replace(EQUAL, checker_after=("Node(a) with schema(::Relu:14) has input size 2",)),
    ),
    "verify-not-valid": report(
        "equal",
        command="verify",
        after=AFTER,
        verdict=replace(EQUAL, checker_after=("'a' is declared float [1, 2], and inference says float [1, 3]",)),
    ),
    "verify-differs": report(
        "differs",
        command="verify",
        after=AFTER,
        verdict=replace(EQUAL, passed=False, failures=("outputs are ['a'], were ['b']",), cases=()),
    ),
    "dilation-left": report(
        "dilation left",
        options={"eliminate": True, "max_dilation": 2},
        sites=(site("a", max_dilation_left=1, strategy="space_to_batch"), kept("b", geometry=UNKNOWN)),
        remaining=("b: no other form applies", "up (ConvTranspose): ConvTranspose is not rewritten"),
        skipped=REWRITTEN.skipped[:1],
    ),
    "inspected": report(
        "inspected",
        command="inspect",
        options={"max_dilation": 1},
        sites=tuple(
            replace(kept(name, geometry=geometry), reason="inspected only")
            for name, geometry in (("a", conv()), ("b", conv()), ("c", UNKNOWN))
        ),
        skipped=REWRITTEN.skipped,
        seconds={},
    ),
    "inspected-target": report(
        "inspected",
        command="inspect",
        options={"max_dilation": 1, "target": "rknn"},
        sites=tuple(replace(kept(name, geometry=conv()), reason="inspected only") for name in ("a", "b", "c")),
        target=TARGET,
        seconds={},
    ),
    "for-target": report(
        "rewritten",
        options={"target": "rknn"},
        sites=(
            site("a", strategy="space_to_batch", reason="Conv: pads 16 is not at most 15 (RKNN compiler support)"),
            kept("b", geometry=conv()),
        ),
        target=TARGET,
        measurement=None,
    ),
    "fits-not": report(
        "does not fit",
        options={"target": "rknn"},
        sites=(kept("a", geometry=conv()),),
        remaining=("a: Conv: pads 16 is not at most 15 (RKNN compiler support)",),
        target=TARGET,
        measurement=None,
    ),
    "inspected-nothing": report("inspected", command="inspect", before=replace(BEFORE, dilated=0)),
    "equal": report(
        "equal", command="verify", after=AFTER, verdict=replace(EQUAL, cases=EQUAL.cases * 2, optimized=False)
    ),
    "unverified": replace(
        REWRITTEN,
        sites=tuple(replace(s, proof=None) for s in REWRITTEN.sites),
        verdict=Verdict(level="none", passed=True, skipped="--verify none: the result is unverified"),
    ),
    "not-deterministic": replace(
        REWRITTEN,
        verdict=replace(
            EQUAL,
            deterministic=False,
            cases=(
                replace(
                    EQUAL.cases[0],
                    outputs=(CHECK, replace(CHECK, name="sample", comparable=False, note="two runs of it differ")),
                ),
            ),
        ),
    ),
    "whole-model-skipped": replace(
        REWRITTEN,
        verdict=Verdict(
            level="full",
            passed=True,
            backend="onnxruntime_cpu",
            skipped="onnxruntime_cpu does not load the original: no kernel for com.example.Magic",
        ),
    ),
    "many-equal": replace(
        REWRITTEN,
        sites=tuple(
            site(f"stage{i}/rebnconv{j}/conv_s1/Conv", strategy="space_to_batch", max_dilation_left=1)
            for i in range(1, 7)
            for j in range(1, 5)
        ),
        skipped=(),
        normalised=(),
    ),
    "odd-names": replace(
        REWRITTEN,
        before=replace(BEFORE, path=f"models/{ODD}.onnx", producer=ODD, operators={ODD: 1}),
        after=replace(AFTER, operators={ODD: 2}),
        output=f"models/{ODD}.onnx",
        sites=(
            site(ODD, where=ODD, output=ODD, reason=ODD, refused=(Refusal("im2col", ODD),)),
            replace(kept("n" * 500), reason=ODD),
            site("", output=""),
        ),
        skipped=(Skipped(where=ODD, name=ODD, op=ODD, dilations=(2,), reason=ODD),),
        normalised=(Normalisation(scope=ScopePath(), where=ODD, index=3, name=ODD),),
        remaining=(ODD, "- list", "-", "===", "+ list", "12) list", "1.5 number", "# heading", "1. list"),
        verdict=replace(
            EQUAL,
            cases=(
                CaseCheck(name=ODD, shapes={ODD: (1,), "empty": ()}, outputs=(replace(CHECK, name=ODD, note=ODD),)),
            ),
            checker_before=(ODD,),
            notes=(ODD,),
            noise_sources=(ODD,),
        ),
        notes=(ODD,),
        options={ODD: ODD},
        environment=replace(HERE, processor=ODD, packages={ODD: ODD}),
        seconds={ODD: 1.0},
    ),
    "measured": REWRITTEN_MEASURED,
    "measured-same": replace(
        REWRITTEN_MEASURED,
        measurement=replace(MEASURED, final=versus(14.2, 14.1), attempts=(), recalled=43, measured=0),
    ),
    "measured-kept": KEPT_MEASURED,
    "measured-inconclusive": INCONCLUSIVE,
    "measured-kept-all": replace(KEPT_MEASURED, sites=KEPT_MEASURED.sites[:3]),
    "measured-no-version-wins": replace(
        KEPT_MEASURED,
        sites=tuple(
            won(f"s{i}", action="kept", strategy="keep", reason="the whole model is not faster beyond noise")
            for i in (0, 1)
        ),
        measurement=replace(MEASURED, attempts=MEASURED.attempts[:1], final=None, predicted_ratio=None),
    ),
    "measured-dry-run": replace(
        KEPT_MEASURED,
        sites=(
            not_timed("a", "would be measured: 3 forms", None, candidates=CANDIDATES),
            not_timed("b", "would be measured: 1 form", None, candidates=timed({"tap_zones": LATER})),
            not_timed("c", "would be measured: 2 forms", None, candidates=timed({"tap_zones": LATER, "im2col": LATER})),
            not_timed("d", "named by --skip", None, candidates=CANDIDATES),
        ),
        options={"dry_run": True},
        output=None,
        measurement=replace(
            MEASURED,
            inputs={},
            spent_s=0.0,
            floor_s=0.0,
            measured=0,
            recalled=0,
            estimated_s=11.7,
            profiled_s=None,
            noise=None,
            final=None,
            attempts=(),
            predicted_ratio=None,
            load=None,
        ),
    ),
    "measured-eliminate": replace(
        REWRITTEN_MEASURED,
        options={"eliminate": True},
        sites=tuple(
            won(
                f"s{i}",
                strategy="space_to_batch",
                reason="1.31x slower than the dilated Conv (1.30 to 1.31x slower)",
                max_dilation_left=1,
                predicted_gain=-0.12,
            )
            for i in range(2)
        ),
        measurement=replace(
            MEASURED, attempts=(), predicted_ratio=1.24, final=versus(11.7, 15.3, noise=None, mode="blocks"), noise=None
        ),
    ),
    "measured-over-budget": replace(
        REWRITTEN_MEASURED,
        measurement=replace(
            MEASURED,
            budget_s=5.0,
            spent_s=31.2,
            floor_s=26.4,
            load=9.5,
            doubts=("2 of 3 Convs run on another device", "Some nodes were not assigned to the preferred provider"),
            final=replace(versus(2140, 1763), mode="blocks"),
            attempts=(),
        ),
    ),
    "regions": REGIONS,
    "regions-alone": ALL_INSIDE,
    "regions-inspected": replace(
        REGIONS,
        command="inspect",
        status="inspected",
        output=None,
        after=None,
        verdict=None,
        measurement=None,
        sites=tuple(
            replace(
                one,
                action="kept",
                strategy="keep",
                reason="inspected only",
                proof=None,
                candidates=CANDIDATES,
                predicted_gain=None,
                region=None,
                share=None,
                question=None,
            )
            for one in REGIONS.sites
        ),
        regions=tuple(
            replace(
                one,
                action="kept",
                strategy="keep",
                reason="inspected only",
                proof=None,
                share=None,
                nodes=(),
                predicted_gain=None,
                candidates=(replace(one.candidates[0], outcome=None, timing=None),),
            )
            for one in REGIONS.regions
        ),
        seconds={},
    ),
    "measured-loop": LOOPED,
    "measured-inspected": replace(
        LOOPED,
        command="inspect",
        status="inspected",
        output=None,
        after=None,
        verdict=None,
        sites=tuple(
            replace(
                site, action="kept", reason="inspected only", proof=None, candidates=CANDIDATES, predicted_gain=None
            )
            for site in LOOPED.sites
        ),
        measurement=replace(
            MEASURED,
            noise=None,
            final=None,
            attempts=(),
            predicted_ratio=None,
            measured=0,
            recalled=0,
            spent_s=0.6,
            floor_s=0.0,
        ),
        seconds={"load": 0.054, "find": 0.035, "profile": 0.6},
    ),
    "measured-odd-names": replace(
        REWRITTEN_MEASURED,
        sites=(
            won(
                ODD,
                where=ODD,
                output=ODD,
                reason=ODD,
                candidates=(replace(WON[0], strategy=ODD), *WON[1:]),
            ),
            not_timed("-", ODD, 0.1, candidates=timed({"tap_zones": (ODD, None)})),
        ),
        measurement=replace(
            MEASURED,
            backend=ODD,
            device=ODD,
            versions={ODD: ODD},
            settings={ODD: ODD},
            inputs={ODD: ()},
            attempts=(Attempt(sites=(ODD, ""), timing=MEASURED.attempts[0].timing),),
            doubts=(ODD, "- list"),
        ),
    ),
    "bench": BENCHED,
    "bench-same": replace(
        BENCHED, measurement=replace(BENCHED.measurement, final=versus(14.2, 14.17, 0.007), budget_s=math.inf)
    ),
    "bench-one": replace(
        BENCHED,
        after=None,
        before=replace(BEFORE, peak_bytes=29_499_392),
        measurement=replace(BENCHED.measurement, final=versus(14.2, 14.22, 0.008), noise=None, measured=1),
    ),
    "built": BUILT,
    "built-on-gpu": replace(
        BUILT,
        engine=ENGINE_ON_GPU,
        verdict=replace(EQUAL, backend="onnxruntime_cpu, tensorrt", noise_sources=(), deterministic=None),
    ),
    "built-odd-names": replace(
        BUILT,
        output=ODD,
        engine=replace(
            ENGINE_ON_GPU,
            file=ODD,
            flavour=ODD,
            version=ODD,
            chosen_on=ODD,
            checked=ODD,
            device=ODD,
            onnx=OnnxSource(file=ODD, sha256=ODD, built_sha256=""),
            precision=PrecisionReport(
                asked=ODD,
                built=ODD,
                converted=True,
                changes=(ODD,),
                convolutions={ODD: 1},
                fidelity=Fidelity(difference=math.nan, bound=math.inf, shapes={}),
            ),
            inputs=(Tensor(name=ODD, datatype=ODD, shape=()),),
            outputs=(),
            profiles={ODD: Profile(min=(1,), opt=(2,), max=(3,))},
            flags={ODD: True, f"{ODD}s": [ODD]},
            memory={ODD: 1},
            layers_from=ODD,
            layer_types={ODD: 1},
            layers=(Layer(name=ODD, kind=ODD, inputs=(ODD,), outputs=(ODD,), nodes=(ODD, ""), tactic=ODD),),
            warnings=(ODD, "- list"),
            trtexec=ODD,
        ),
    ),
    "engine-of-rewritten": replace(REWRITTEN_MEASURED, engine=ENGINE_OF_REWRITTEN),
    "engine-of-kept": replace(REWRITTEN, status="kept", sites=(kept("a"),), after=COPY, engine=ENGINE),
    "measured-layers": replace(
        REWRITTEN_MEASURED,
        measurement=ON_GPU,
        engine=replace(ENGINE_OF_REWRITTEN, chosen_on="tensorrt_rtx on NVIDIA Some GPU", device="NVIDIA Some GPU"),
    ),
    "measured-layers-odd-names": replace(
        REWRITTEN_MEASURED,
        measurement=replace(
            ON_GPU,
            layers=LayerComparison(
                runs=1, first=(), second=(LayerTime(name=ODD, kind=ODD, nodes=(ODD,), seconds=0.0, role="other"),)
            ),
        ),
    ),
    "bench-engines": replace(
        BENCHED,
        before=ENGINE_MODEL,
        after=OTHER_ENGINE_MODEL,
        engine=ENGINE,
        measurement=replace(BENCHED.measurement, final=full(versus(14.2, 14.64, 0.008)), backend="tensorrt_rtx"),
    ),
    "bench-engine": replace(
        BENCHED,
        before=ENGINE_MODEL,
        after=None,
        engine=ENGINE,
        measurement=replace(ON_GPU, final=full(versus(14.2, 14.21, 0.008)), predicted_ratio=None, layers=None),
    ),
    "verify-engine": report(
        "equal",
        command="verify",
        after=ENGINE_MODEL,
        engine=ENGINE,
        verdict=replace(EQUAL, backend="onnxruntime_cpu, tensorrt_rtx", noise_sources=()),
    ),
    "nothing-known": report(
        "rewritten",
        before=replace(BEFORE, producer="", opsets={}, operators={}, peak_bytes=None, nodes=0, bytes=0),
        sites=(
            site("a", geometry=UNKNOWN, proof=None, candidates=(), refused=()),
            site(
                "b",
                geometry=conv(element="bfloat16", quantized=True, batch=8),
                multiply_adds=None,
                padding_share=math.nan,
                proof=replace(
                    PROOF,
                    shapes=(),
                    rounding=Rounding(
                        native_error=0.0, new_error=math.inf, limit=math.nan, ceiling=None, difference=math.inf
                    ),
                ),
            ),
        ),
        verdict=Verdict(level="full", passed=True),
        environment=replace(HERE, processor="", packages={}, threads=1, cores=1),
        seconds={"load": math.nan},
        options={},
    ),
}
