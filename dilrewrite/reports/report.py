"""What was found, done and proved, as frozen, versioned data; knows no format."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from dilrewrite import machine
from dilrewrite._version import __version__
from dilrewrite.choice.choose import Candidate
from dilrewrite.choice.decision import Decision
from dilrewrite.errors import shown
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import DEFAULT_DOMAINS, all_nodes, tensors
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import Verdict
from dilrewrite.reports import reasons
from dilrewrite.sites import Normalisation, Skipped
from dilrewrite.sites.known import CONVOLUTIONS
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.measurement import Measurement
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.stopwatch import VISIBLE, Comparison

SCHEMA_VERSION = 2

EXIT_CODES = {
    "rewritten": 0,
    "kept": 0,
    "inconclusive": 0,
    "nothing to rewrite": 0,
    "equal": 0,
    "not compared": 1,
    "inspected": 0,
    "measured": 0,
    "built": 0,
    "dilation left": 1,
    "differs": 3,
    "not valid": 3,
}
"""The exit code of each status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """A form that applies: estimated multiply-adds and elements moved, nodes, and the dilation it leaves.

    `outcome`: what measuring said of it, `None` when nothing was to be measured; `cause`: why it has no time, in the
    words of the runtime or the proof. `timing`: the form (second) against the Conv as it is (first), both with the
    site's neighbours.
    """

    strategy: str
    multiply_adds: int
    elements_moved: int
    nodes: int
    max_dilation: int
    outcome: Outcome | None = None
    cause: str = ""
    timing: Comparison | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """One dilated Conv. `action`: `rewritten` or `kept`; `padding_share`: of the multiply-adds, on padding only.

    `share`: of the model's time, as profiled, and the interval in which it is. `ran`: the input shapes that the model
    gave it in one run, most frequent first; more than one in a Loop whose sizes change. `question`: sites with the same
    number were measured as one. `predicted_gain`: of the model's time, by what measuring says of the form taken, below
    0 for a loss.
    """

    where: str
    name: str
    output: str
    key: str
    opset: int
    geometry: ConvGeometry
    multiply_adds: int | None
    padding_share: float | None
    action: str
    strategy: str
    reason: str
    max_dilation_left: int
    proof: Proof | None = None
    candidates: tuple[CandidateReport, ...] = ()
    refused: tuple[Refusal, ...] = ()
    share: float | None = None
    share_interval: tuple[float, float] | None = None
    ran: tuple[tuple[int, ...], ...] = ()
    question: int | None = None
    predicted_gain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model: `bytes` counts its data files too; `dilated` the convolutions with a dilation above 1 that acts.

    Of an engine (its path tells), `nodes` and `operators` count layers by their type, and there are no opsets.

    `sha256` is of the .onnx file; of a rewritten model, as it is before references to data files are adapted.
    """

    path: str
    bytes: int
    sha256: str
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    nodes: int
    operators: Mapping[str, int]
    dilated: int
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where it ran: versions of what the result depends on, processor, cores and threads."""

    dilrewrite: str
    python: str
    system: str
    processor: str
    cores: int
    threads: int | None
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one command.

    `status`: `rewritten`, `kept` (dilated Convs found, none rewritten), `inconclusive` (none rewritten, and a gain of
    `timing.VISIBLE` could have been missed), `nothing to rewrite`, `differs`, `not valid` (the ONNX checker finds
    something in the rewritten model alone), `dilation left`, `equal` or `not compared` (of `verify`), `inspected`,
    `measured` (of `bench`), `built` (of `build`). `remaining` names the nodes that keep a dilation above the limit
    asked for. `output` is the file written, `None` when there is none. `engine`: what is known of the engine written,
    as in its side-car.
    """

    schema_version: int = SCHEMA_VERSION
    command: str
    status: str
    before: ModelReport
    after: ModelReport | None = None
    output: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sites: tuple[SiteReport, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    normalised: tuple[Normalisation, ...] = ()
    remaining: tuple[str, ...] = ()
    verdict: Verdict | None = None
    measurement: Measurement | None = None
    engine: EngineReport | None = None
    environment: Environment
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        plain = _plain(self)
        assert isinstance(plain, dict)
        plain["exit_code"] = self.exit_code
        plain["rewritten"] = self.rewritten
        return plain


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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


def describe_site(decision: Decision, backend: str = "") -> SiteReport:
    """Return what is known and what was decided of a site; `backend`: what was measured on."""
    site, measured = decision.site, decision.measured
    explicit = site.geometry.explicit()
    share = explicit.data_share()
    return SiteReport(
        where=site.where,
        name=site.name,
        output=site.output,
        key=site.key,
        opset=site.opset,
        geometry=site.geometry,
        multiply_adds=explicit.multiply_adds(),
        padding_share=None if share is None else 1 - share,
        action="kept" if decision.fragment is None else "rewritten",
        strategy=decision.strategy,
        reason=reasons.of(decision, backend),
        max_dilation_left=decision.max_dilation,
        proof=decision.proof,
        candidates=tuple(
            _candidate(candidate, measured.timings.get(candidate.strategy), backend)
            for candidate in decision.considered.offered
        ),
        refused=(*decision.considered.refused, *decision.unproved),
        share=measured.run.share,
        share_interval=measured.run.interval,
        ran=measured.run.shapes,
        question=measured.question,
        predicted_gain=decision.gain,
    )


def _candidate(candidate: Candidate, form: FormTiming | None, backend: str) -> CandidateReport:
    return CandidateReport(
        strategy=candidate.strategy,
        multiply_adds=candidate.multiply_adds,
        elements_moved=candidate.elements_moved,
        nodes=candidate.fragment.node_count,
        max_dilation=candidate.fragment.max_dilation,
        outcome=form.outcome if form is not None else None,
        cause=reasons.cause(form, backend) if form is not None else "",
        timing=form.timing if form is not None else None,
    )


def describe_model(
    model: Model, proto: ModelProto, *, dilated: int, path: str | None = None, **more: Any
) -> ModelReport:
    """Return a model's figures; `proto` may be an edited version, whose size and hash are those of its own message."""
    original = proto is model.proto
    if original:
        size, digest = model.file_bytes, _digest(model)
    else:
        serialized = proto.SerializeToString()
        size, digest = len(serialized) + _external_bytes(model, proto), hashlib.sha256(serialized).hexdigest()
    operators = Counter(_operators(proto))
    return ModelReport(
        path=path or (shown(model.path) if model.path is not None else ""),
        bytes=size,
        sha256=digest,
        ir_version=proto.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        producer=" ".join(filter(None, (proto.producer_name, proto.producer_version))),
        nodes=sum(operators.values()),
        operators=dict(sorted(operators.items())),
        dilated=dilated,
        **more,
    )


def describe_engine(engine: EngineReport, path: str) -> ModelReport:
    """Return an engine's figures; nodes and operators are its layers and their types."""
    return ModelReport(
        path=path,
        bytes=engine.bytes,
        sha256=engine.sha256,
        ir_version=0,
        opsets={},
        producer=f"{engine.flavour} {engine.version}",
        nodes=len(engine.layers),
        operators=dict(engine.layer_types),
        dilated=0,
    )


def _digest(model: Model) -> str:
    if model.path is None:
        return hashlib.sha256(model.proto.SerializeToString()).hexdigest()
    with model.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _external_bytes(model: Model, proto: ModelProto) -> int:
    """Return the size of the data files that an edited model still refers to."""
    used = {entry.value for tensor in tensors(proto) for entry in tensor.external_data if entry.key == "location"}
    return sum((model.folder / location).stat().st_size for location in used)


def _operators(proto: ModelProto) -> list[str]:
    return [
        f"{node.domain}.{node.op_type}" if node.domain not in DEFAULT_DOMAINS else node.op_type
        for node in all_nodes(proto)
    ]


def inconclusive(sites: Sequence[SiteReport], measurement: Measurement | None, cores: int) -> bool:
    """Say whether measuring could have missed a gain of `VISIBLE`: of a site that was kept, or of the whole model.

    Above a noise of `VISIBLE` it always could; where the noise is not known, under a load that leaves a run waiting.
    """
    if measurement is None:
        return False
    if any(unclear(site) for site in sites):
        return True
    noises = (measurement.form_noise, measurement.noise.level if measurement.noise is not None else None)
    if any(noise is not None and noise > VISIBLE for noise in noises):
        return True
    timings = [attempt.timing for attempt in measurement.attempts]
    crowded = machine.crowded(measurement.load, cores)
    return any(not timing.conclusive or (timing.noise is None and crowded) for timing in timings)


def unclear(site: SiteReport) -> bool:
    """Say whether a site was kept although one of its forms may be faster for all that measuring could tell."""
    return site.action == "kept" and any(form.outcome is Outcome.INCONCLUSIVE for form in site.candidates)


def dilated_convolutions(sites: int, skipped: tuple[Skipped, ...]) -> int:
    """Return how many convolutions have a dilation that acts."""
    return sites + sum(node.op in CONVOLUTIONS for node in skipped)


def environment(threads: int | None) -> Environment:
    """Return what this process runs on."""
    packages = {}
    for name in (
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "numpy",
        "onnx-graphsurgeon",
        "tensorrt",
        "tensorrt-rtx",
        "torch",
    ):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        dilrewrite=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=machine.processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        packages=packages,
    )
