"""Keeps what was timed: the model of each site and region before and after each form, with data, for a bug report."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, shape_inference

from dilrewrite._version import __version__
from dilrewrite.choice.decision import Decision
from dilrewrite.choice.tune import Tuning
from dilrewrite.commands.run import failure
from dilrewrite.errors import UsageError, clean, shown
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.reports import units
from dilrewrite.reports.content.forms import said
from dilrewrite.reports.content.sites import Entry
from dilrewrite.reports.report import CandidateReport, Report
from dilrewrite.runtimes import CannotRun, RuntimeFailure
from dilrewrite.staging import Staging
from dilrewrite.timing.measure import baseline, rewritten
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import Outcome

BEFORE = "00-before.onnx"
DATA = "inputs.npz"

MANY = 20
"""So many sites of one folder are named."""

NAME_LENGTH = 40
"""So many letters of a node's name are in the name of its folder."""

README = """\
Parts of {model} as models of their own, for a bug report. Written by dilrewrite {version}.

Each folder holds a site (a dilated Conv, or a space-to-batch sandwich that computes one, with its neighbours) or a
region (a chain of operators around dilated Convs).
{before} is the original. Every other model is the same part in another form, which gives the same outputs up to
rounding. {data} holds the inputs that all models of the folder run on, by name.

The weights of a site are made up. A region has the weights of {model}: look at it before you pass it on.
{special}
{timed}

Run the models of a folder with ONNX Runtime (pip install onnxruntime numpy):

    import pathlib, time
    import numpy as np
    import onnxruntime as ort

    folder = pathlib.Path("{folder}")
    data = dict(np.load(folder / "{data}"))
    for path in sorted(folder.glob("*.onnx")):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        session.run(None, data)
        start = time.perf_counter()
        outputs = session.run(None, data)
        print(path.name, f"{{1000 * (time.perf_counter() - start):.3f}} ms", [float(abs(y).sum()) for y in outputs])

Time two of them in pairs, and compare what they compute:

    dilrewrite bench {folder}/{before} {folder}/{other} --inputs {folder}/{data}
    dilrewrite verify {folder}/{before} {folder}/{other} --inputs {folder}/{data}

The folders, and what was measured here:

{parts}
"""

SPECIAL = """
NumPy reads data of types that it does not know, as bfloat16, as raw bytes: view them as the type of ml_dtypes.
"""


@dataclass
class _Part:
    """Sites, or regions, that are one question: what was decided about each, and the forms to keep."""

    decisions: list[Decision] = field(default_factory=list)
    forms: dict[str, Fragment] = field(default_factory=dict)


def stage(
    report: Report, decisions: Sequence[Decision], made: Callable[[], Tuning], folder: Path, staging: Staging
) -> list[str]:
    """Stage the models and data of every site and region that was measured or rewritten, and a README.txt.

    `decisions`: about all of them. `made` gives what measures. Returns what was left out, and why, a line each.
    """
    parts = _parts(decisions)
    if not parts:
        return [f"nothing was measured or rewritten: {shown(folder)} was not made"]
    tuning = made()
    why = _sizes(tuning)
    if why:
        return [f"the original did not run, so nothing was kept in {shown(folder)}: {why}"]
    left: list[str] = []
    texts: list[str] = []
    facts = {"folder": "", "other": "", "special": ""}
    numbers = {"region": 0, "site": 0}
    for part in parts:
        site = part.decisions[0].site
        kind = "region" if isinstance(site.meaning, Chain) else "site"
        try:
            question = tuning.question(site, bare=tuning.was_bare(part.decisions[0]))
        except LookupError as error:
            left.append(f"{shown(folder)} lacks {site.key}: {error.args[0]}")
            continue
        if not texts:
            staging.make_folder(folder)
        numbers[kind] += 1
        name = f"{kind}-{numbers[kind]:03d}{_safe(site.name)}"
        staging.make_folder(folder / name)
        staging.add_bytes(folder / name / DATA, _npz(question))
        files = {}
        for file, strategy, proto in _models(part, question, tuning):
            staging.add_bytes(folder / name / file, proto.SerializeToString())
            files[strategy] = file
        if not texts:
            facts |= {"folder": name, "other": [*files.values()][-1]}
        if any(np.asarray(value).dtype.kind == "V" for value in question.feeds.values()):
            facts["special"] = SPECIAL
        texts.append("\n".join([name, *_about(part, files, question, report)]))
    if texts:
        facts |= {"model": clean(Path(report.before.path).name), "version": __version__, "before": BEFORE, "data": DATA}
        text = README.format(timed=_timed(report), parts="\n\n".join(texts), **facts)
        staging.add_text(folder / "README.txt", text)
    return left


def _sizes(tuning: Tuning) -> str:
    """Find the sizes that everything runs with, unless they are known; return why that cannot be, or nothing."""
    try:
        if tuning.original.profiled is None and tuning.failure is None:
            tuning.start()
    except (UsageError, RuntimeFailure) as error:
        return str(error)
    finally:
        tuning.close()
    return failure(tuning) if tuning.original.profiled is None else ""


def _parts(decisions: Sequence[Decision]) -> list[_Part]:
    """Return the sites and regions that were measured or rewritten, those of one question together."""
    parts: dict[object, _Part] = {}
    for decision in decisions:
        site, measured, entry = decision.site, decision.measured, decision.considered
        fragments = {one.strategy: one.fragment for one in (*entry.offered, *entry.wanted)}
        untried = (Outcome.NO_TIME, Outcome.PLANNED)
        forms = {name: fragments[name] for name, form in measured.timings.items() if form.outcome not in untried}
        if decision.candidate is not None:
            forms[decision.candidate.strategy] = decision.candidate.fragment
        if forms:
            alike = (site.meaning, site.opset, site.storage, measured.run.shapes)
            part = parts.setdefault((isinstance(site.meaning, Chain), measured.question or alike), _Part())
            part.decisions.append(decision)
            part.forms |= forms
    return list(parts.values())


def _models(part: _Part, question: Question, tuning: Tuning) -> Iterator[tuple[str, str, ModelProto]]:
    """Yield the models of a part: file name, form, model; as it is first, then in every form."""
    try:
        before = baseline(question, tuning.meter.backend)
    except CannotRun:  # nothing was measured then
        before = question.model
    yield BEFORE, "keep", _valid(before)
    for number, (strategy, fragment) in enumerate(part.forms.items(), 1):
        yield f"{number:02d}{_safe(strategy)}.onnx", strategy, _valid(rewritten(question, fragment))


def _valid(proto: ModelProto) -> ModelProto:
    """Return a model with the types of its outputs, which what is timed does without."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(shape_inference.infer_shapes(proto).graph.output)
    return copy


def _safe(name: str) -> str:
    """Return what any file system takes of a name, after a `-`; empty when nothing is left."""
    word = re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:NAME_LENGTH].strip("-.")
    return f"-{word}" if word else ""


def _npz(question: Question) -> bytes:
    """Return the data of a question as an .npz file."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in question.feeds.items()}
    np.savez(file, **arrays)
    return file.getvalue()


# -- what the README.txt says ------------------------------------------------------------------------------------------


def _timed(report: Report) -> str:
    """Return where the forms were timed."""
    measurement = report.measurement
    if measurement is None:
        return "None of them was timed."
    where = units.joined(measurement.backend, units.pairs(measurement.versions.items()))
    return f"Timed on {where}; {measurement.device}; settings: {units.pairs(measurement.settings.items())}."


def _about(part: _Part, files: Mapping[str, str], question: Question, report: Report) -> Iterator[str]:
    """Yield lines: where a part stands in the original, its inputs, and what was measured of each model."""
    keys = [decision.site.key for decision in part.decisions]
    entries: tuple[Entry, ...] = (*report.sites, *report.regions)
    told = next(entry.candidates for entry in entries if entry.key == keys[0])
    candidates = {candidate.strategy: candidate for candidate in told}
    yield f"    stands for: {clean(units.listed(keys, MANY))}"
    yield f"    inputs: {units.pairs((clean(name), units.dims(value.shape)) for name, value in question.feeds.items())}"
    for strategy, file in files.items():
        result = "the original" if file == BEFORE else _result(candidates.get(strategy))
        yield f"    {file}: {result}"


def _result(candidate: CandidateReport | None) -> str:
    if candidate is None or candidate.outcome is None:
        return "not timed"
    memory = (candidate.keep_peak_bytes, candidate.peak_bytes)
    peaks = "" if None in memory else f"peak memory {' -> '.join(map(units.size, memory))}"
    return units.joined(said(candidate) if candidate.timing is None else units.versus(candidate.timing), peaks)
