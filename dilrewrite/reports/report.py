"""What was found, done and proved, as frozen, versioned data; knows no format."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from dilrewrite import machine
from dilrewrite._version import __version__
from dilrewrite.errors import shown
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import Verdict
from dilrewrite.runtimes import TimeKind
from dilrewrite.sites import Normalisation, Skipped, Unfolded
from dilrewrite.sites.known import CONVOLUTIONS
from dilrewrite.targets.report import TargetReport
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.measurement import Measurement
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import VISIBLE, Comparison

SCHEMA_VERSION = 2
PACKAGES = ["onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "onnx-graphsurgeon", "tensorrt", "tensorrt-rtx", "torch"]

DONE = ("rewritten", "kept", "inconclusive", "nothing to rewrite", "equal", "inspected", "measured", "built")
EXIT_CODES = {
    **dict.fromkeys(DONE, 0),
    "not compared": 1,
    "dilation left": 1,
    "does not fit": 1,
    "differs": 3,
    "not valid": 3,
}
"""The exit code of each status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """A form that applies. Where `multiply_adds` of the site is `None`, the estimates stand on typical sizes."""

    strategy: str
    """Name of the form."""
    multiply_adds: int
    """Estimated multiply-adds of one run."""
    elements_moved: int
    """Estimated elements written by its layout operators in one run."""
    nodes: int
    """Nodes it consists of."""
    max_dilation: int
    """Largest dilation left in it; 1 for none."""
    outcome: Outcome | None = None
    """What measuring said of it, see below; `None` when nothing was to be measured."""
    cause: str = ""
    """Why it has no time, in the words of the runtime or the proof; may be empty."""
    timing: Comparison | None = None
    """This form (`second`) against the Conv as it is (`first`), with the site's neighbours; `None` when not timed."""
    keep_peak_bytes: int | None = None
    """As `peak_bytes`, of the Conv as it is."""
    peak_bytes: int | None = None
    """Most memory that this form took, with the site's neighbours, in bytes: how far the resident memory of the process
    that times rose above what it was before, while a session of the form alone was made and ran twice. Weights and
    outputs count; inputs, which are there before, do not. `None` when not measured: that is done on ONNX Runtime's CPU
    provider, on Linux with glibc.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFit:
    """How a site fits a target: `native`, `host` (the target's host runs it), `unknown` or `out of limits`."""

    before: str
    """As it stands in the model."""
    because: str
    """The rule that says so, with its source; empty where it is native."""
    after: str
    """What stands there now: as the worst of its nodes."""
    host: int
    """How many of these the target's host runs."""
    because_after: str
    """The rule that says so; empty where all are native."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """One dilated Conv, or a space-to-batch sandwich that computes one."""

    where: str
    """The graph it is in: `main`, a subgraph's path, or a function."""
    name: str
    """Its module's path where the exporter wrote it, else the node's name, or its output's when it has none."""
    output: str
    """Name of its output tensor."""
    key: str
    """`where/output`, which is unique in a model."""
    opset: int
    """Opset that applies to it."""
    geometry: ConvGeometry
    """Everything that decides how it can be rewritten."""
    multiply_adds: int | None
    """Multiply-adds of one run, padding included; `None` when a size is unknown."""
    padding_share: float | None
    """Share of them that touches only padding, 0 to 1; `None` when an extent is unknown."""
    action: str
    """`rewritten` or `kept`."""
    strategy: str
    """The form that was taken; `keep` when none was."""
    reason: str
    """Why that one."""
    max_dilation_left: int
    """Largest dilation of what stands there now; 1 for none."""
    proof: Proof | None = None
    """Proof of the form taken, or of the one that is wrong; `None` for no form to prove, or with `--verify none`."""
    candidates: tuple[CandidateReport, ...] = ()
    """The forms that apply, cheapest by estimate first."""
    refused: tuple[Refusal, ...] = ()
    """The forms that do not apply or were not proved."""
    share: float | None = None
    """Share of the model's time, 0 to 1, by each node's quickest run under the profiler; `None` when not measured."""
    share_interval: tuple[float, float] | None = None
    """The least and the most that `share` may be, by parts of those runs; `None` when not measured."""
    ran: tuple[tuple[int, ...], ...] = ()
    """Its input shapes in one run of the model, most frequent first; several in a Loop; empty when not measured."""
    node: str = ""
    """The node's own name in the file."""
    question: int | None = None
    """Sites with the same number were measured as one; `None` when there was nothing to measure."""
    predicted_gain: float | None = None
    """Share of the model's time that the form saves by the site's timings, below 0 a loss; `None` when not measured."""
    region: str | None = None
    """The key of the region that it is rewritten with; `None` when it is rewritten or kept by itself."""
    ends: tuple[str, ...] = ()
    """Where a Conv of quantised data leaves the quantised domain: what reads its real numbers, with no QuantizeLinear
    in between; empty where it stays inside, and for other Convs."""
    fit: SiteFit | None = None
    """How it fits the target of `--target`; `None` without one."""
    sandwich: bool = False
    """Whether it is a space-to-batch sandwich: several nodes that compute the dilated Conv of this geometry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionNode:
    """A node of a region, or of an example."""

    op: str
    """Operator."""
    dilation: int
    """Its largest dilation; 1 for none."""
    reads: tuple[int, ...]
    """Places in the region, from 0, of the nodes whose results it reads; below 0 what enters: -1 the first of `inputs`.
    """
    kernel: tuple[int, ...] = ()
    """Of a Conv of an example: its kernel; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleReport:
    """One rewritten place, node by node."""

    key: str
    """The key of the site or region."""
    before: tuple[RegionNode, ...]
    """Its nodes in the original."""
    after: tuple[RegionNode, ...]
    """The nodes of its form; an activation that follows it is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionReport:
    """A chain of operators around dilated Convs that can be rewritten as one. Regions may overlap."""

    where: str
    """The graph it is in, as of a site."""
    name: str
    """Its first node's name, or its output's when it has none."""
    key: str
    """What names it in a model: where, first input and output, and `@lift` or `@` and the block."""
    block: tuple[int, ...]
    """Phases along each spatial axis; empty where the chain is lifted."""
    nested: tuple[tuple[int, ...], ...]
    """The phases that some of its nodes are split into again, inside of those; mostly none."""
    opset: int
    """Opset that applies to it."""
    operators: Mapping[str, int]
    """Number of its nodes by operator."""
    members: tuple[str, ...]
    """The keys of the sites in it."""
    inputs: tuple[str, ...]
    """The tensors that enter."""
    outputs: tuple[str, ...]
    """The tensors that leave."""
    ends: tuple[str, ...]
    """What stands around it, and why that did not go along."""
    action: str
    """`rewritten` or `kept`."""
    strategy: str
    """The form that was taken; `keep` when none was."""
    reason: str
    """Why that one."""
    max_dilation_left: int
    """Largest dilation of what stands there now; 1 for none."""
    proof: Proof | None = None
    """As of a site."""
    candidates: tuple[CandidateReport, ...] = ()
    """The forms that apply, cheapest by estimate first."""
    refused: tuple[Refusal, ...] = ()
    """The forms that do not apply or were not proved."""
    share: float | None = None
    """Share of the model's time, 0 to 1, of all its nodes, as of a site; `None` when not measured."""
    question: int | None = None
    """Regions with the same number were measured as one; `None` when there was nothing to measure."""
    predicted_gain: float | None = None
    """As of a site."""
    nodes: tuple[RegionNode, ...] = ()
    """Its nodes, in an order in which they can run; empty of a region that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueReport:
    """An input or an output of a model."""

    name: str
    """Its name."""
    element: str
    """Type of its elements: `float32`; of what is no tensor, what it is."""
    shape: str
    """Its sizes, open ones by their names or `?`: `[1, 3, height, width]`; empty when none are declared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model, or an engine: that one's `ir_version` is 0."""

    path: str
    """File of the model."""
    bytes: int
    """Size in bytes, with its data files."""
    sha256: str
    """Of the file, in hexadecimal; of a rewritten model as it is before its references to data files are adapted. Equal
    in `before` and `after` when the output is a copy.
    """
    ir_version: int
    """ONNX IR version; 0 of an engine."""
    opsets: Mapping[str, int]
    """Opset version by domain; the default domain is `ai.onnx`; empty for an engine."""
    producer: str
    """The tool that made it, and its version: of an engine, the flavour of TensorRT; may be empty."""
    nodes: int
    """Nodes, in subgraphs and functions too; of an engine, layers."""
    operators: Mapping[str, int]
    """Number of nodes by operator, with its domain unless that is the default one; of an engine, layers by type."""
    dilated: int
    """Convolutions with a dilation above 1 on a kernel axis longer than 1; 0 of an engine, which does not tell."""
    peak_bytes: int | None = None
    """Most memory that the runtime took to load and run the model, in bytes; `None` when not measured. Of `bench`, as
    of a form. Of `optimize` and `verify`, how far the resident memory of a process rose that ran nothing else: on all
    inputs compared, and with what the runtime loads once.
    """
    inputs: tuple[ValueReport, ...] = ()
    """What it takes, without weights; empty for an engine."""
    outputs: tuple[ValueReport, ...] = ()
    """What it gives; empty for an engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where it ran."""

    dilrewrite: str
    """Version."""
    python: str
    """Version."""
    system: str
    """Operating system, its release and the machine type."""
    processor: str
    """Processor model; may be empty."""
    cores: int
    """Logical cores."""
    threads: int | None
    """Threads asked for; `None` leaves it to the runtime."""
    packages: Mapping[str, str]
    """Versions of the installed packages that the result depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one command."""

    schema_version: int = SCHEMA_VERSION
    """Version of this object."""
    command: str
    """`inspect`, `optimize`, `fold`, `build`, `verify` or `bench`."""
    status: str
    """The result; see the status values below."""
    before: ModelReport
    """The original; of `verify` and `bench`, the first model or engine."""
    after: ModelReport | None = None
    """The model written, or that a dry run would write; of `verify` and `bench`, the second one; `None` for none."""
    output: str | None = None
    """Path of the model written, or of `build` the engine; `None` when none was."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The command's options as used, by name; values are JSON values."""
    sites: tuple[SiteReport, ...] = ()
    """Every dilated Conv that could be rewritten, in the model's order; empty for `build`, `verify` and `bench`."""
    regions: tuple[RegionReport, ...] = ()
    """The regions that were found and came into question, in the model's order."""
    skipped: tuple[Skipped, ...] = ()
    """Dilated nodes that are never rewritten; of `verify`, those of the second model."""
    unfolded: tuple[Unfolded, ...] = ()
    """What looks like a space-to-batch sandwich and is none, each with the reason; of `fold` and `optimize`."""
    normalised: tuple[Normalisation, ...] = ()
    """Convs whose attributes change without changing the function."""
    remaining: tuple[str, ...] = ()
    """Nodes that keep a dilation above the limit although `--eliminate` asked for none, each with its reason."""
    verdict: Verdict | None = None
    """The proof that both models compute the same; `None` when nothing was compared."""
    measurement: Measurement | None = None
    """How timings were taken, and what they say of the whole model; `None` when nothing was to be measured."""
    engine: EngineReport | None = None
    """What is known of the engine written, or of the first engine timed or compared; `None` when there is none."""
    target: TargetReport | None = None
    """How the target of `--target` takes the model; `None` where none was named."""
    environment: Environment
    """Where it ran."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time per step, in seconds."""
    notes: tuple[str, ...] = ()
    """Anything else a reader should know."""
    date: str = ""
    """When it was made, in UTC: `2026-01-31T12:34:56Z`; empty when not known."""
    example: ExampleReport | None = None
    """The rewritten place that is expected to gain most, among those of at most 400 nodes; `None` for none."""
    files: tuple[str, ...] = ()
    """Paths of the report files that were written, the one for people first; empty for none."""
    _held: ModelProto | Path | None = field(default=None, compare=False)
    """The model that `optimize` made, or its file; no part of the report as data."""

    @property
    def model(self) -> ModelProto | None:
        """Return the model that `optimize` made, whole, with the values of its data files.

        One that was written is loaded from `output` at the first use. `None` of other commands and of a dry run, and
        where no model was made: `status` says why.
        """
        held = self._held
        if isinstance(held, Path):
            held = onnx.load(held)
            object.__setattr__(self, "_held", held)  # in the place of its path: the report says what it said
        return held

    @property
    def speedup(self) -> float | None:
        """Return how many times faster the model made is than the original, or with `bench` the second than the first.

        Below 1 it is slower. 1.0 where the original was kept, `None` where the two were not timed, or none was made.
        """
        timed = self.measurement is not None and self.measurement.source is TimeKind.MEASURED
        final = self.measurement.final if self.measurement is not None and timed else None
        if self.after is None or self.options.get("dry_run"):
            return None
        if self.status in ("kept", "inconclusive", "nothing to rewrite"):
            return 1.0
        return 1 / final.ratio if final is not None and final.ratio > 0 else None

    @property
    def summary(self) -> str:
        """Return the result in one line: the first of the reports, and of the command line with `-v`."""
        from dilrewrite.reports.content.answer import answer

        return answer(self)

    def __repr__(self) -> str:
        """Return what was done and how it ended; see `summary` for more."""
        rewritten = f", {self.rewritten} of {len(self.sites)} sites" if self.rewritten else ""
        speed = f", speedup {self.speedup:.3g}" if self.speedup is not None else ""
        return f"<dilrewrite.Report {self.command}: {self.status}{rewritten}{speed}>"

    def _repr_html_(self) -> str:
        """Return the answer for a notebook; the whole HTML report opens below it."""
        from dilrewrite.reports.formats.html import render

        frame = f'<iframe srcdoc="{html.escape(render(self))}" style="width: 100%; height: 40em; border: 0"></iframe>'
        return f"<details><summary>{html.escape(self.summary)}</summary>{frame}</details>"

    @property
    def exit_code(self) -> int:
        """Return what the command line ends with."""
        return EXIT_CODES[self.status]

    @property
    def rewritten(self) -> int:
        """Return the number of sites rewritten."""
        return sum(site.action == "rewritten" for site in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, as docs/report-schema.md describes it; infinities and NaN become strings."""
        return {**_plain(self), "exit_code": self.exit_code, "rewritten": self.rewritten}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value) if one.name[0] != "_"}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, Path):
        return shown(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def inconclusive(
    sites: Sequence[SiteReport], measurement: Measurement | None, cores: int, regions: Sequence[RegionReport] = ()
) -> bool:
    """Say whether measuring could have missed a gain of `VISIBLE`: of what was kept, or of the whole model.

    Above a noise of `VISIBLE` it always could; where the noise is not known, under a load that leaves a run waiting.
    """
    if measurement is None:
        return False
    if any(map(unclear, sites)) or any(map(unclear, open_regions(regions, sites))) or loudest(measurement) > VISIBLE:
        return True
    timings = [attempt.timing for attempt in measurement.attempts]
    crowded = machine.crowded(measurement.load, cores)
    return any(not timing.conclusive or (timing.noise is None and crowded) for timing in timings)


def loudest(measurement: Measurement) -> float:
    """Return the noise of the forms or of the whole model, whichever is more; 0 where neither is known."""
    return max(measurement.form_noise or 0.0, measurement.noise.level if measurement.noise is not None else 0.0)


def unclear(site: SiteReport | RegionReport) -> bool:
    """Say whether it was kept although one of its forms may be faster for all that measuring could tell."""
    return site.action == "kept" and any(form.outcome is Outcome.INCONCLUSIVE for form in site.candidates)


def open_regions(regions: Sequence[RegionReport], sites: Sequence[SiteReport]) -> list[RegionReport]:
    """Return the kept regions that hold a site that was kept too: the others' sites have forms that were preferred."""
    kept = {site.key for site in sites if site.action == "kept"}
    return [region for region in regions if region.action == "kept" and not kept.isdisjoint(region.members)]


def dilated_convolutions(sites: int, skipped: tuple[Skipped, ...]) -> int:
    """Return how many convolutions have a dilation that acts."""
    return sites + sum(node.op in CONVOLUTIONS for node in skipped)


def environment(threads: int | None) -> Environment:
    """Return what this process runs on."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return Environment(
        dilrewrite=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=machine.processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        packages=packages,
    )
