"""The whole way: load, find, plan, prove, choose, substitute, verify, report, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto

from dilrewrite import choose, report
from dilrewrite.backends import backend, backends
from dilrewrite.decide import Decider, Decision, OptimizeOptions, described, matches, remaining
from dilrewrite.errors import UsageError, shown
from dilrewrite.find import Found, Site, find
from dilrewrite.fragment import Fragment
from dilrewrite.inputs import load_inputs, parse_shapes
from dilrewrite.load import Model, load, read_tensor, stage_model
from dilrewrite.prove import runs_natively
from dilrewrite.report import Report
from dilrewrite.reports import check_report_folder, write_reports
from dilrewrite.staging import ELSEWHERE, Staging, check_destination, same_file
from dilrewrite.strategies import plan, strategies
from dilrewrite.substitute import Rewritten, disturb, mark, rewrite
from dilrewrite.verdict import Settings, Subject, Verdict, verify

Progress = Callable[[str, int, int], None]
"""Called with the step, how many parts of it are done, and how many there are."""


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 3)


# -- inspect -------------------------------------------------------------------------------------------------------


def inspect(path: Path, *, max_dilation: int = 1, report_folder: Path | None = None) -> Report:
    """Return every dilated Conv of the model at `path`, with the forms that apply and why others refuse."""
    clock = _Clock()
    with clock("load"):
        model = load(path)
    with clock("find"):
        found = find(model.proto)
    with clock("plan"):
        sites = []
        planner = choose.Planner(strategies(), max_dilation)
        for site in found.sites:
            offered, refused = planner.candidates(site)
            sites.append(
                report.describe_site(
                    site,
                    action="kept",
                    strategy="keep",
                    reason="inspected only",
                    max_dilation_left=site.geometry.max_dilation,
                    candidates=described(offered),
                    refused=tuple(refused),
                )
            )
    result = Report(
        command="inspect",
        status="inspected",
        before=report.describe_model(model, model.proto, dilated=_dilated(found)),
        options={"max_dilation": max_dilation},
        sites=tuple(sites),
        skipped=found.skipped,
        normalised=found.normalisations,
        environment=report.environment(None),
        seconds=clock.seconds,
    )
    _write(result, report_folder)
    return result


def _write(result: Report, folder: Path | None) -> None:
    if folder is not None:
        with Staging(force=True) as staging:
            write_reports(result, folder, staging)
            staging.commit()


def _dilated(found: Found) -> int:
    return report.dilated_convolutions(len(found.sites), found.skipped)


# -- optimize ------------------------------------------------------------------------------------------------------


def optimize(
    path: Path,
    output: Path | None,
    options: OptimizeOptions,
    *,
    report_folder: Path | None = None,
    report_beside: bool = False,
    progress: Progress = silent,
) -> Report:
    """Rewrite the model at `path`, prove it, and write it to `output` (`None`: `<stem>.dilrewrite.onnx` beside it).

    `report_folder`: where the reports go. `report_beside`: without one, to `<output stem>.report` beside the output,
    except when dilation is left that should go: then nothing at all is written. Returns the report; when results
    differ or dilation is left, no model is written and `report.exit_code` says so.
    """
    options.check()
    clock = _Clock()
    decider = Decider(options)
    with clock("load"):
        model = load(path)
    target = output or path.with_name(f"{path.stem}.dilrewrite.onnx")
    asked = report_folder is not None
    if report_beside and not asked:
        report_folder = target.with_name(f"{target.stem}.report")
    if not options.dry_run:
        data_files = [model.folder / location for location in model.external_files]
        if any(same_file(target, file) for file in data_files):
            raise UsageError(f"{shown(target)} is a data file of the input", hint=ELSEWHERE)
        check_destination(target, force=options.force, source=path)
        if report_folder is not None:
            check_report_folder(report_folder, others=[path, target, *data_files])
    settings = _settings(model, options)
    with clock("find"):
        found = find(model.proto)
    decisions: list[Decision] = []
    for number, site in enumerate(found.sites):
        progress("prove", number, len(found.sites))
        with clock("plan and prove"):
            decisions.append(decider.decide(site, model.ir_version))
    progress("prove", len(found.sites), len(found.sites))
    wrong = [f"{decision.site.key}: {decision.wrong}" for decision in decisions if decision.wrong]
    edits = [(d.site, d.fragment) for d in decisions if d.fragment is not None]
    kept = [(d.site, d.explicit) for d in decisions if d.explicit is not None]
    with clock("substitute"):
        rewritten = rewrite(
            model.proto, [*edits, *kept], found.normalisations, lambda tensor: read_tensor(model, tensor)
        )
    changed = bool(edits or kept or found.normalisations)
    if options.verify == "none" and changed:
        mark(rewritten.proto, "unverified")
    left = remaining(decisions, found, options) if options.eliminate else ()
    verdict: Verdict | None = None
    if wrong:
        verdict = Verdict(level=options.verify, passed=False, failures=tuple(wrong), skipped="a form is wrong")
    elif left:
        verdict = None  # nothing will be written
    elif options.verify == "none":
        verdict = Verdict(level="none", passed=True, skipped="--verify none: the result is unverified")
    elif changed and options.verify == "full":
        progress("verify", 0, 1)
        with clock("verify"):
            verdict = _verify(model, found, rewritten, decisions, settings, options.seed)
        progress("verify", 1, 1)
    elif changed:
        verdict = Verdict(level="sites", passed=True, skipped="--verify sites: the whole model was not run")
    result = _report(model, found, decisions, rewritten, changed, verdict, left, target, options, clock)
    if options.dry_run:
        return result
    with Staging(force=options.force) as staging:
        if result.output is not None:
            spill = _spill(model, rewritten)
            stage_model(model, rewritten.proto, target, staging, external_data=options.external_data, spill=spill)
        if report_folder is not None and (asked or result.status != "dilation left"):
            write_reports(result, report_folder, staging)
        staging.commit()
    return result


def _verify(
    model: Model,
    found: Found,
    rewritten: Rewritten,
    decisions: Sequence[Decision],
    settings: Settings,
    seed: int,
) -> Verdict:
    """Compare the rewritten model with the original, and the original with itself disturbed."""
    backend(settings.backend.name)  # an error when it is not ready
    baseline = _runnable(model, model.proto)
    errors = [
        (decision.site, decision.reported.proof.rounding.difference)
        for decision in decisions
        if decision.fragment is not None
        and decision.reported.proof is not None
        and decision.reported.proof.rounding is not None
    ]
    verdict = verify(
        Subject(model.proto, model.folder, model.path),
        Subject(rewritten.proto, model.folder),
        settings,
        runnable_before=Subject(baseline, model.folder),
        runnable_after=Subject(_runnable(model, rewritten.proto), model.folder),
        disturbed=Subject(disturb(model.proto, errors, seed), model.folder)
        if errors and baseline is model.proto
        else None,
        step=_step(found),
    )
    if baseline is not model.proto:
        verdict = replace(verdict, notes=(*verdict.notes, AWKWARD))
    return verdict


def _settings(model: Model, options: OptimizeOptions) -> Settings:
    """Return how to compare whole models; raises `UsageError` for shapes and data that do not fit the model."""
    shapes = parse_shapes(options.shapes)
    data = load_inputs(options.inputs) if options.inputs else {}
    known = [value.name for value in model.proto.graph.input]
    for option, names in (("--shape", shapes), ("--inputs", data)):
        for name in names:
            if name not in known:
                raise UsageError(f"{option}: the model has no input {name!r}", hint=f"its inputs: {', '.join(known)}")
    for library in options.custom_op_library:
        if not library.is_file():
            raise UsageError(f"--custom-op-library {shown(library)}: no such file")
    return Settings(
        backend=backends()["onnxruntime_cpu"],
        fallback=backends()["reference"],
        rtol=options.rtol,
        atol=options.atol,
        shapes=shapes,
        inputs=data,
        seed=options.seed,
        threads=options.threads,
        custom_op_library=options.custom_op_library,
    )


AWKWARD = (
    "ONNX Runtime does not run some of the original's Convs (SAME_* with dilation, negative pads); "
    "the comparison is with the same Convs behind explicit pads, a Pad or a Slice"
)


def _runnable(model: Model, proto: ModelProto) -> ModelProto:
    """Return `proto` with the Convs that ONNX Runtime does not run made explicit; itself when there is none."""
    found = find(proto)
    awkward: list[tuple[Site, Fragment]] = []
    for site in found.sites:
        if not runs_natively(site.geometry):
            fragment = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
            if isinstance(fragment, Fragment):
                awkward.append((site, fragment))
    if not awkward:
        return proto
    return rewrite(proto, awkward, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto


def _step(found: Found) -> int:
    """Return what lengths are a multiple of in one case and not in another: all dilations, within reason."""
    return min(max(math.lcm(*(d for site in found.sites for d in site.geometry.dilations)), 2), 256)


def _spill(model: Model, rewritten: Rewritten) -> list[str]:
    """Return new weights that go to a data file: all of 1 KiB and more, when the model keeps its weights outside."""
    if not model.external_files:
        return []
    added = set(rewritten.added_tensors)
    return [t.name for t in rewritten.proto.graph.initializer if t.name in added and len(t.raw_data) >= 1024]


def _report(
    model: Model,
    found: Found,
    decisions: Sequence[Decision],
    rewritten: Rewritten,
    changed: bool,
    verdict: Verdict | None,
    remaining: tuple[str, ...],
    target: Path,
    options: OptimizeOptions,
    clock: _Clock,
) -> Report:
    edits = sum(decision.fragment is not None for decision in decisions)
    if verdict is not None and not verdict.passed:
        status = "differs"
    elif remaining:
        status = "dilation left"
    elif edits:
        status = "rewritten"
    elif found.sites:
        status = "kept"
    else:
        status = "nothing to rewrite"
    written = status not in ("differs", "dilation left")
    left = sum(decision.reported.max_dilation_left > 1 for decision in decisions)
    after = None
    peaks = verdict.peak_bytes if verdict is not None else (None, None)
    if written:
        after = report.describe_model(
            model,
            rewritten.proto if changed else model.proto,
            path=shown(target),
            dilated=report.dilated_convolutions(left, found.skipped),
            peak_bytes=peaks[1],
        )
    return Report(
        command="optimize",
        status=status,
        before=report.describe_model(model, model.proto, dilated=_dilated(found), peak_bytes=peaks[0]),
        after=after,
        output=shown(target) if written and not options.dry_run else None,
        options=options.plain(),
        sites=tuple(decision.reported for decision in decisions),
        skipped=found.skipped,
        normalised=found.normalisations,
        remaining=remaining,
        verdict=verdict,
        environment=report.environment(options.threads),
        seconds=clock.seconds,
        notes=_notes(found, options),
    )


def _notes(found: Found, options: OptimizeOptions) -> tuple[str, ...]:
    """Return what the user may have meant otherwise."""
    named = [(site.where, site.name, site.output) for site in found.sites]
    named += [(node.where, node.name, "") for node in found.skipped]
    return tuple(
        f"{option} {pattern} matches no dilated node"
        for option, pattern in (("--only", options.only), ("--skip", options.skip))
        if pattern is not None and not any(matches(pattern, *names) for names in named)
    )


# -- verify --------------------------------------------------------------------------------------------------------


def verify_files(before: Path, after: Path, options: OptimizeOptions, *, report_folder: Path | None = None) -> Report:
    """Compare two models as wholes; see `dilrewrite.verify`."""
    options.check()
    clock = _Clock()
    with clock("load"):
        first, second = load(before), load(after)
    found, found_after = find(first.proto), find(second.proto)
    settings = _settings(first, options)
    backend(settings.backend.name)  # an error when it is not ready
    with clock("verify"):
        baseline, other = _runnable(first, first.proto), _runnable(second, second.proto)
        verdict = verify(
            Subject(first.proto, first.folder, first.path),
            Subject(second.proto, second.folder, second.path),
            settings,
            runnable_before=None if baseline is first.proto else Subject(baseline, first.folder),
            runnable_after=None if other is second.proto else Subject(other, second.folder),
            step=_step(found),
        )
        if baseline is not first.proto or other is not second.proto:
            verdict = replace(verdict, notes=(*verdict.notes, AWKWARD))
    result = Report(
        command="verify",
        status="differs" if not verdict.passed else "not compared" if verdict.skipped else "equal",
        before=report.describe_model(first, first.proto, dilated=_dilated(found), peak_bytes=verdict.peak_bytes[0]),
        after=report.describe_model(
            second, second.proto, dilated=_dilated(found_after), peak_bytes=verdict.peak_bytes[1]
        ),
        options=options.plain(),
        skipped=found_after.skipped,
        verdict=verdict,
        environment=report.environment(options.threads),
        seconds=clock.seconds,
    )
    _write(result, report_folder)
    return result
