"""Reports of measured runs, built by hand: what the charts of the HTML page are tested and looked at with."""

from __future__ import annotations

import math
from dataclasses import replace

from dilrewrite.forms.strategies import Refusal
from dilrewrite.reports.report import CandidateReport, ExampleReport, RegionNode, Report, SiteReport
from dilrewrite.timing.measurement import Attempt, Measurement
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import Comparison, Noise, Timing
from tests.reports.examples import (
    AFTER,
    ENGINE,
    EQUAL,
    LAYERS,
    ODD,
    PROOF,
    REWRITTEN,
    UNKNOWN,
    became,
    conv,
    kept,
    layer,
    layer_time,
    report,
    site,
)


def timing(median_ms: float, spread: float = 0.03, runs: int = 40) -> Timing:
    """Return a timing whose percentiles lie `spread` below and twice that above the median."""
    median = median_ms / 1000
    return Timing(median_s=median, p20_s=median * (1 - spread), p80_s=median * (1 + 2 * spread), runs=runs)


def comparison(first_ms: float, second_ms: float, width: float = 0.02, spread: float = 0.03) -> Comparison:
    ratio = second_ms / first_ms
    return Comparison(
        first=timing(first_ms, spread),
        second=timing(second_ms, spread),
        ratio=ratio,
        low=ratio * (1 - width),
        high=ratio * (1 + width),
        pairs=40,
        noise=0.012,
        mode="interleaved",
    )


def form(
    strategy: str, outcome: str, timed: Comparison | None = None, nodes: int = 7, left: int = 1
) -> CandidateReport:
    return CandidateReport(
        strategy=strategy,
        multiply_adds=462_422_016 + nodes,
        elements_moved=1_000 * nodes,
        nodes=nodes,
        max_dilation=left,
        **became(outcome),
        timing=timed,
    )


WON = (
    form("space_to_batch", "won", comparison(9.85, 4.12)),
    form("slice_to_batch", "lost", comparison(9.91, 5.56), 9),
    form("tap_zones", "lost", comparison(9.79, 7.5, spread=0.08), 21, 12),
    form("keep", "", None, 1, 12),
    form("tap_sum", "failed: [ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation", None, 19),
    form("im2col", "lost", comparison(9.8, 120.6, 0.05), 12),
    form("space_to_axis", "not measured: budget", None, 5),
)
LOST = (
    form("keep", "", None, 1, 6),
    form("space_to_batch", "lost", comparison(1.204, 1.3, 0.01)),
    form("slice_to_batch", "lost", comparison(1.199, 2.93, 0.03), 9),
)
EVEN = (
    form("keep", "", None, 1, 2),
    form("tap_zones", "no clear difference", comparison(0.0412, 0.0409, 0.03, 0.1), 9, 2),
)
UNMEASURED = (
    form("space_to_batch", "not measured: budget"),
    form("keep", "", None, 1, 2),
)

SIX = conv(dilations=(6, 6), pads_begin=(6, 6), pads_end=(6, 6), in_channels=64, out_channels=64)
TWO = conv(dilations=(2, 2), pads_begin=(2, 2), pads_end=(2, 2), in_channels=32, out_channels=32, extents=(56, 56))

NOISE = Noise(ratio=1.003, low=0.995, high=1.012, pairs=24)
FINAL = comparison(41.73, 26.42, 0.015, 0.02)
MEASUREMENT = Measurement(
    backend="onnxruntime_cpu",
    device="Some Processor 9000",
    versions={"onnxruntime": "1.24.0"},
    settings={"graph optimisations": "all", "threads": "8"},
    inputs={"image": (1, 3, 224, 224), "scale": ()},
    budget_s=120.0,
    spent_s=97.31,
    floor_s=11.25,
    measured=14,
    recalled=3,
    profiled_s=0.04231,
    noise=NOISE,
    attempts=(
        Attempt(sites=("main/aspp.0_out", "main/aspp.1_out", "main/aspp.2_out"), timing=FINAL),
        Attempt(sites=("main/aspp.0_out",), timing=comparison(41.7, 36.1)),
    ),
    final=FINAL,
    predicted_ratio=0.597,
    load=0.31,
    doubts=("the clock frequency fell during the run: 3.1 to 2.7 GHz",),
)


def taken(name: str, share: float | None, **changes: object) -> SiteReport:
    return replace(
        site(
            name,
            strategy="space_to_batch",
            reason="measured at 0.42x of the dilated Conv [0.41, 0.43]",
            max_dilation_left=1,
            candidates=WON,
            question=1,
            share=share,
            ran=((1, 256, 28, 28),),
            predicted_gain=None if share is None else share * 0.58,
        ),
        **changes,  # type: ignore[arg-type]
    )


SITES = (
    taken("aspp.0", 0.2312),
    taken("aspp.1", 0.2291),
    taken("aspp.2", 0.2305),
    replace(
        kept("layer3/conv1", geometry=SIX),
        reason="no form is faster; the best other one, space_to_batch, is 1.08x slower",
        candidates=LOST,
        question=2,
        share=0.0285,
        ran=((1, 64, 28, 28), (1, 64, 14, 14)),
        predicted_gain=0.0,
    ),
    replace(
        kept("layer2/conv1", geometry=TWO),
        reason="no form is clearly faster",
        candidates=EVEN,
        refused=(Refusal("space_to_batch", "a phase would be empty"),),
        question=3,
        share=0.00031,
        predicted_gain=0.0,
    ),
    replace(
        kept("branch/then/conv", geometry=UNKNOWN),
        reason="not measured: did not run on these inputs",
        candidates=UNMEASURED,
        share=None,
    ),
)

MEASURED = report(
    "rewritten",
    sites=SITES,
    verdict=EQUAL,
    after=AFTER,
    output="models/x.dilrewrite.onnx",
    skipped=REWRITTEN.skipped,
    measurement=MEASUREMENT,
    seconds={"load": 0.054, "find": 0.035, "measure": 97.31, "prove": 3.346, "verify": 8.715},
)

SLOWER = replace(
    MEASURED,
    measurement=replace(
        MEASUREMENT, final=comparison(26.42, 41.73, 0.015, 0.02), predicted_ratio=0.9, attempts=(), doubts=()
    ),
)
UNDECIDED = replace(
    MEASURED,
    status="kept",
    sites=tuple(replace(s, action="kept", strategy="keep") for s in SITES),
    measurement=replace(MEASUREMENT, final=comparison(41.7, 41.5, 0.02), predicted_ratio=None, attempts=()),
)


def _many() -> Report:
    """Return 300 sites in 60 questions, of which every third was rewritten."""
    sites = []
    for i in range(300):
        number = i % 60
        won = number % 3 == 0
        dilation = 2 + number
        geometry = conv(
            dilations=(dilation,) * 2, pads_begin=(dilation,) * 2, pads_end=(dilation,) * 2, extents=(56, 56)
        )
        base = taken(f"stage{i // 60}/block{number}/conv", None) if won else kept(f"stage{i // 60}/block{number}/conv")
        share = (60 - number) / 60 / 600
        sites.append(
            replace(
                base,
                geometry=geometry,
                candidates=tuple(
                    replace(c, timing=comparison(2.0 + number / 10, (0.9 if won else 1.2) * (2.0 + number / 10)))
                    if c.timing is not None
                    else c
                    for c in (WON if won else LOST)
                ),
                question=number + 1,
                share=share,
                predicted_gain=share * 0.1 if won else 0.0,
            )
        )
    return replace(MEASURED, sites=tuple(sites))


MANY = _many()

SPLIT = (
    *(RegionNode(op="Slice", dilation=1, reads=(-1,)) for _ in range(4)),
    RegionNode(op="Concat", dilation=1, reads=(0, 1, 2, 3)),
    RegionNode(op="Conv", dilation=1, reads=(4,), kernel=(3, 3)),
    RegionNode(op="Shape", dilation=1, reads=(-1,)),
    RegionNode(op="Gather", dilation=1, reads=(6,)),
    RegionNode(op="Reshape", dilation=1, reads=(5, 7)),
)
DRAWN = replace(
    MEASURED,
    example=ExampleReport(
        key="main/aspp.1_out",
        before=(RegionNode(op="Conv", dilation=12, reads=(-1,), kernel=(3, 3)),),
        after=SPLIT,
    ),
)

STRANGE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u202e\x00\ud800</title>--><!--"

_BAD = Timing(median_s=math.nan, p20_s=math.nan, p80_s=math.inf, runs=0)
HOSTILE = replace(
    MEASURED,
    date=STRANGE,
    example=ExampleReport(
        key=f"main/{'n' * 500}_out",
        before=(RegionNode(op=STRANGE, dilation=12, reads=(-1,)),),
        after=(RegionNode(op=ODD, dilation=1, reads=(-1,)), RegionNode(op=STRANGE, dilation=1, reads=(0,))),
    ),
    command="optimize",
    before=replace(MEASURED.before, path=f"{STRANGE}.onnx"),
    after=replace(AFTER, path=f"{ODD}{STRANGE}"),
    output=STRANGE,
    notes=(STRANGE, ODD),
    options={STRANGE: STRANGE},
    remaining=(STRANGE,),
    sites=(
        replace(
            taken(STRANGE, 0.5),
            where=STRANGE,
            output=STRANGE,
            reason=STRANGE,
            refused=(Refusal(STRANGE, STRANGE),),
            candidates=(
                *(replace(c, strategy=STRANGE, outcome=Outcome.NOT_MEASURED, cause=STRANGE) for c in WON[:2]),
                form("x" * 300, ODD, replace(comparison(1, 1), second=_BAD, ratio=math.nan, low=0.0, high=math.inf)),
            ),
        ),
        taken("n" * 500, math.nan, proof=replace(PROOF, failure=STRANGE), predicted_gain=math.inf),
        taken("نموذج/التفاف", -0.25, predicted_gain=-0.01, candidates=(form("keep", "won"),)),
        taken("", 1.5, output="", geometry=conv(element=STRANGE), question=7),
    ),
    measurement=replace(
        MEASUREMENT,
        backend=STRANGE,
        device=ODD,
        versions={STRANGE: STRANGE},
        settings={STRANGE: STRANGE},
        inputs={STRANGE: (1, 2)},
        attempts=(Attempt(sites=(STRANGE,), timing=FINAL),),
        doubts=(STRANGE,),
        noise=replace(NOISE, low=0.0, high=math.inf),
        load=math.nan,
        predicted_ratio=math.nan,
        layers=replace(LAYERS, first=(layer_time(STRANGE, "convolution", 1.0, STRANGE),)),
    ),
    engine=replace(
        ENGINE,
        file=STRANGE,
        checked=STRANGE,
        trtexec=STRANGE,
        warnings=(STRANGE,),
        layers=(layer(1, STRANGE, STRANGE),),
    ),
)


EXAMPLES: dict[str, Report] = {
    "charts": DRAWN,
    "charts-slower": SLOWER,
    "charts-undecided": UNDECIDED,
    "charts-many": MANY,
    "charts-hostile": HOSTILE,
}
