"""The sentences, numbers and groups that the report formats for people share; knows neither boxes nor Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from dilrewrite.geometry import ConvGeometry
from dilrewrite.prove import Proof
from dilrewrite.report import ModelReport, Report, SiteReport
from dilrewrite.verdict import CaseCheck, OutputCheck, Verdict

UNKNOWN = "?"
"""Stands for a size that is known at run time only."""

NOTHING = "-"
"""Stands for a figure that there is none of."""

T = TypeVar("T")

# -- text and numbers ------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return `text` on one line, with what does not print (control characters, direction marks) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(text: str, length: int) -> str:
    """Return `text` with its middle left out when it is longer than `length`."""
    if len(text) <= length:
        return text
    kept = length - 3
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def count(number: int, noun: str) -> str:
    """Return `1 site`, `2 sites`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; infinities and NaN by name."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.{digits}g}"


def amount(number: int | None) -> str:
    """Return a large whole number with a decimal prefix: `21.7 M`; `?` when unknown."""
    if number is None:
        return UNKNOWN
    value = float(number)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{number}" if not prefix else f"{value:#.3g}".rstrip(".") + f" {prefix}"
        value /= 1000
    return f"{value:.0f} P"


def size(number: int | None) -> str:
    """Return a number of bytes with a binary prefix."""
    if number is None:
        return NOTHING
    value = float(number)
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(value) < 1023.5:
            digits = f"{number}" if not prefix else f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")
            return f"{digits} {prefix}B"
        value /= 1024
    return f"{value:.2f} TiB"


def percent(share: float | None) -> str:
    """Return a share as a percentage that reads 0 % or 100 % only when it is."""
    if share is None:
        return UNKNOWN
    if not math.isfinite(share) or share in (0, 1):
        return f"{100 * share:.0f} %"
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def change(before: int, after: int) -> str:
    """Return how much a size grew or shrank."""
    if before == after:
        return "0"
    return f"{after - before:+d}" if not before else f"{100 * (after / before - 1):+.1f} %"


def seconds(value: float) -> str:
    """Return a duration in seconds."""
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def dims(shape: Iterable[int | None]) -> str:
    """Return `1x3x224x224`, `scalar` without dimension."""
    return "x".join(UNKNOWN if size is None else str(size) for size in shape) or "scalar"


def listed(items: Sequence[str], most: int) -> str:
    """Return the first `most` items and how many more there are."""
    more = len(items) - most
    return ", ".join(items) if more <= 0 else f"{', '.join(items[:most])} and {more} more"


# -- geometry --------------------------------------------------------------------------------------------------------


def _short(values: Sequence[int | None]) -> str:
    """Return one number when all axes agree, otherwise all of them."""
    return dims(values[:1]) if len(set(values)) == 1 else dims(values)


def geometry(conv: ConvGeometry) -> str:
    """Return a Conv in short: `3x3 d12 s1 g1 256->256 28x28 p12`.

    Kernel, dilation, stride, group, channels, input extents, pads (`begin:end` where they differ); what is not the
    usual case follows: batch, element type, quantised. `?` is known at run time only.
    """
    begin, end = conv.pads_begin, conv.pads_end
    if conv.auto_pad == "NOTSET":
        pads = _short(begin) if begin == end else f"{_short(begin)}:{_short(end)}"
    else:
        pads = f" {conv.auto_pad}"
    parts = [
        dims(conv.kernel),
        f"d{_short(conv.dilations)}",
        f"s{_short(conv.strides)}",
        f"g{conv.group}",
        f"{dims([conv.in_channels])}->{dims([conv.out_channels])}",
        dims(conv.extents),
        f"p{pads}" if not pads.startswith(" ") else pads[1:],
    ]
    if conv.batch != 1:
        parts.append(f"n{dims([conv.batch])}")
    if conv.element != "float32":
        parts.append(conv.element)
    if conv.quantized:
        parts.append("quantised")
    return " ".join(parts)


GEOMETRY_KEY = (
    "kernel, d dilation, s stride, g group, channels in->out, input extents, p pads (begin:end where they differ); "
    "n batch when it is not 1; ? is known at run time only"
)
"""How to read `geometry`."""


# -- sites -----------------------------------------------------------------------------------------------------------


def site_name(site: SiteReport) -> str:
    """Return where a site is, and its node's name."""
    return clean(f"{site.where}/{site.name or site.output}")


def form(site: SiteReport) -> str:
    """Return what was done at a site."""
    if site.action != "rewritten":
        return site.action
    left = f" (leaves d{site.max_dilation_left})" if site.max_dilation_left > 1 else ""
    return f"{site.strategy}{left}"


def rounding_ratio(proof: Proof) -> str:
    """Return the rounding error of the new form against the native one's."""
    rounding = proof.rounding
    if rounding is None:
        return NOTHING
    if rounding.native_error == 0 or not math.isfinite(rounding.native_error):
        return f"{figure(rounding.new_error)} (native {figure(rounding.native_error)})"
    ratio = rounding.new_error / rounding.native_error
    return f"{ratio:.1f}x native" if ratio < 1000 else f"{figure(ratio)}x native"


def proof(site: SiteReport) -> str:
    """Return a site's proof in short: `exact (1 shape), rounding 1.2x native`."""
    found = site.proof
    if found is None:
        return "not proved" if site.action == "rewritten" else NOTHING
    if found.failure is not None:
        return f"FAILED: {clean(found.failure)}"
    parts = [f"exact ({count(len(found.shapes), 'shape')})"]
    if found.rounding is not None:
        parts.append(f"rounding {rounding_ratio(found)}")
    if not found.native_ran:
        parts.append("native not run")
    if "reference" in found.backend:
        parts.append(f"on {found.backend}")
    return ", ".join(parts)


def groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items in groups of equal key, in the order of their first members."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def assumed(site: SiteReport) -> bool:
    """Say whether a site's estimates stand on assumed sizes."""
    return site.multiply_adds is None and bool(site.candidates)


# -- reasons ---------------------------------------------------------------------------------------------------------


def merged(reasons: Sequence[str], names: Iterable[str] = ()) -> list[tuple[str, int]]:
    """Return reasons that differ in numbers and in `names` only as one sentence each, and how many they are.

    Numbers become a range, names a choice: "tap_prune or im2col, is estimated at 1.2 to 3.4x".
    """
    words = "|".join(re.escape(name) for name in sorted(set(names), key=len, reverse=True))
    pattern = re.compile(
        r"((?<![\w.])\d+(?:\.\d+)?(?=x?(?![\w.]*\w))" + (rf"|(?<!\w)(?:{words})(?!\w)" if words else "") + ")"
    )
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for reason in reasons:
        parts = pattern.split(reason)
        kinds = ("number" if part[0].isdigit() else "name" for part in parts[1::2])
        found.setdefault((*parts[::2], *kinds), []).append(parts)
    return [
        ("".join(_spread([parts[i] for parts in some]) for i in range(len(some[0]))), len(some))
        for some in found.values()
    ]


def _spread(values: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return distinct[0]
    if all(value[0].isdigit() for value in distinct):
        ordered = sorted(distinct, key=float)
        return f"{ordered[0]} to {ordered[-1]}"
    return f"{', '.join(distinct[:-1])} or {distinct[-1]}"


def strategy_names(report: Report) -> set[str]:
    """Return the strategies that a report speaks of."""
    names = {candidate.strategy for site in report.sites for candidate in site.candidates}
    return names | {refusal.strategy for site in report.sites for refusal in site.refused}


def why_kept(report: Report) -> str:
    """Return why sites were kept, in one sentence, the most common reason first."""
    reasons = [site.reason for site in report.sites if site.action != "rewritten"]
    found = sorted(merged(reasons, strategy_names(report)), key=lambda pair: -pair[1])
    if len(found) == 1:
        return clean(found[0][0])
    shown = [f"{clean(reason)} ({number} of {len(reasons)})" for reason, number in found[:3]]
    if len(found) > 3:
        shown.append("other reasons below")
    return "; ".join(shown)


# -- the answer ------------------------------------------------------------------------------------------------------


def compared(verdict: Verdict) -> tuple[int, int]:
    """Return how many outputs could be compared, and how many there are (per case)."""
    checks = [check for case in verdict.cases for check in case.outputs]
    return sum(check.comparable for check in checks), len(checks)


def equality(report: Report) -> str:
    """Return in a few words what is known about the models being equal."""
    verdict = report.verdict
    if verdict is None:
        return "not verified"
    if not verdict.passed:
        return "results differ"
    if verdict.level == "none":
        return "UNVERIFIED"
    if verdict.skipped is not None or not verdict.cases:
        reason = f": {shorten(clean(verdict.skipped), 160)}" if verdict.skipped and verdict.level != "sites" else ""
        rewritten = [site for site in report.sites if site.action == "rewritten"]
        proved = bool(rewritten) and all(site.proof is not None and site.proof.passed for site in rewritten)
        return f"{'every form proved, ' if proved else ''}whole model not run{reason}"
    able, total = compared(verdict)
    sets = count(len(verdict.cases), "input set")
    if not total:
        return f"runs on {sets}, no output to compare"
    if not able:
        return f"no output could be compared on {sets}: two runs of the original differ"
    if able < total:
        return f"equal on {sets} in {able} of {total} outputs (the others differ between two runs of the original)"
    return f"equal on {sets}"


def _dilated_convs(report: Report) -> int:
    return len(report.sites) + sum(node.convolution for node in report.skipped)


def identical(report: Report) -> bool:
    """Say whether the output is the input, byte for byte."""
    return report.after is not None and report.after.sha256 == report.before.sha256


def _destination(report: Report) -> str:
    if report.output is None:
        return "dry run: nothing written" if report.options.get("dry_run") else "nothing written"
    return clean(report.output)


def _output(report: Report) -> str:
    """Return what the output is of a model without any rewritten Conv."""
    if report.output is None:
        return _destination(report)
    if identical(report):
        return f"{_destination(report)} is a byte-identical copy"
    same_nodes = report.after is not None and report.after.operators == report.before.operators
    how = "differs in attributes only" if same_nodes else "differs only in how pads are given"
    return f"{_destination(report)} {how}; {equality(report)}"


def outcome(report: Report) -> str:
    """Return the answer in one line."""
    total, sites = _dilated_convs(report), len(report.sites)
    convs = count(total, "dilated Conv")
    match report.status:
        case "rewritten":
            verb = "rewrote" if report.output is not None else "would rewrite"
            return f"{verb} {report.rewritten} of {convs}; {equality(report)}; {_destination(report)}"
        case "kept":
            kept = f"all {total}" if total > 1 else "the only dilated Conv"
            others = f" ({total - sites} of them cannot be rewritten)" if total > sites else ""
            return f"kept {kept}{others}: {why_kept(report)}; {_output(report)}"
        case "nothing to rewrite":
            what = "no dilated Conv" if not total else f"none of {convs} can be rewritten"
            tail = _output(report).replace(f"{_destination(report)} ", "the output ", 1)
            return f"nothing to rewrite: {what}; {tail}"
        case "differs" if report.command == "verify":
            after = report.after.path if report.after is not None else "the other model"
            return f"RESULTS DIFFER: {clean(after)} does not compute what {clean(report.before.path)} does"
        case "differs":
            return "RESULTS DIFFER: no model written"
        case "dilation left":
            limit = report.options.get("max_dilation", 1)
            above = f" above {limit}" if isinstance(limit, int) and limit > 1 else ""
            return f"DILATION LEFT: {len(report.remaining)} of {convs} keep a dilation{above}; no model written"
        case "equal":
            after = report.after.path if report.after is not None else "the other model"
            return f"{equality(report)}: {clean(report.before.path)} and {clean(after)}"
        case "not compared":
            after = report.after.path if report.after is not None else "the other model"
            both = f"{clean(report.before.path)} and {clean(after)}"
            return f"NOT COMPARED: {both} have the same interface; {equality(report)}"
        case "inspected" if not total:
            return f"no dilated Conv in {clean(report.before.path)}"
        case "inspected":
            return f"{convs} in {clean(report.before.path)}{_padding(report)}"
        case _:
            return clean(report.status)


def _padding(report: Report) -> str:
    """Return how much of the work touches padding only, over the sites of known size."""
    known = [
        (site.multiply_adds, site.padding_share)
        for site in report.sites
        if site.multiply_adds is not None and site.padding_share is not None
    ]
    work = sum(multiply_adds for multiply_adds, _ in known)
    if not work:
        return ""
    share = sum(multiply_adds * share for multiply_adds, share in known) / work
    where = "" if len(known) == len(report.sites) else f" in the {len(known)} of known size"
    return f"; {amount(work)} multiply-adds{where}, {percent(share)} of them on padding only"


# -- models and verdicts ---------------------------------------------------------------------------------------------


def model(report: ModelReport) -> str:
    """Return a model in one line."""
    opsets = ", ".join(
        f"opset {number}" if domain == "ai.onnx" else f"{clean(domain)} {number}"
        for domain, number in report.opsets.items()
    )
    parts = [count(report.nodes, "node"), opsets or "no opset", f"IR {report.ir_version}", size(report.bytes)]
    if report.producer:
        parts.append(f"by {clean(report.producer)}")
    return f"{clean(report.path)}: {', '.join(parts)}"


def model_rows(before: ModelReport, after: ModelReport, *, everything: bool = False) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, change) rows; operators that did not change only when `everything`."""
    rows = [
        ("nodes", str(before.nodes), str(after.nodes), f"{after.nodes - before.nodes:+d}"),
        ("dilated Convs", str(before.dilated), str(after.dilated), f"{after.dilated - before.dilated:+d}"),
        ("file size", size(before.bytes), size(after.bytes), change(before.bytes, after.bytes)),
        (
            "peak memory",
            size(before.peak_bytes),
            size(after.peak_bytes),
            NOTHING
            if before.peak_bytes is None or after.peak_bytes is None
            else change(before.peak_bytes, after.peak_bytes),
        ),
    ]
    for operator in sorted({*before.operators, *after.operators}):
        old, new = before.operators.get(operator, 0), after.operators.get(operator, 0)
        if everything or old != new:
            rows.append((clean(operator), str(old), str(new), f"{new - old:+d}"))
    return [(what, a, b, "0" if change in ("+0", "+0.0 %", "-0.0 %") else change) for what, a, b, change in rows]


def case_name(case: CaseCheck) -> str:
    """Return a set of inputs in one line."""
    shapes = ", ".join(f"{clean(name)} {dims(shape)}" for name, shape in case.shapes.items())
    return f"{clean(case.name)}: {shapes or 'no input'}"


def one_minus(cosine: float | None) -> str:
    """Return a cosine's distance from 1, which its first digits do not show."""
    return NOTHING if cosine is None else figure(1 - cosine)


def nonfinite(pair: tuple[int, int]) -> str:
    """Return a count before and after."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}->{pair[1]}"


def agreement(check: OutputCheck) -> str:
    """Return the share of positions with the same largest channel."""
    return NOTHING if check.argmax_agreement is None else percent(check.argmax_agreement)


def result(check: OutputCheck) -> str:
    """Return what was decided about one output."""
    word = "not compared" if not check.comparable else "equal" if check.passed else "DIFFERS"
    return f"{word}: {clean(check.note)}" if check.note else word


def how_verified(verdict: Verdict) -> list[str]:
    """Return how the comparison was made, a sentence each."""
    lines = []
    if verdict.cases:
        on = "on" if verdict.optimized else "off (their fusions move quantised values by a quantum)"
        lines.append(f"ran on {clean(verdict.backend)}, graph optimisations {on}")
        noise = f", or the model's own noise ({'; '.join(map(clean, verdict.noise_sources))})"
        within = f"|difference| <= {clean(verdict.tolerance)}" if verdict.tolerance else "no tolerance"
        lines.append(f"allowed: {within}{noise if verdict.noise_sources else ''}")
    return lines


def notes(report: Report) -> list[str]:
    """Return what a reader should know besides the figures, most important first."""
    found = []
    verdict = report.verdict
    if verdict is not None:
        if verdict.level == "none":
            found.append("UNVERIFIED: nothing was proved or run (--verify none)")
        elif verdict.skipped is not None:
            found.append(f"whole models were not compared: {clean(verdict.skipped)}")
        if verdict.deterministic is False:
            names = {c.name: None for case in verdict.cases for c in case.outputs if not c.comparable}
            which = f": {', '.join(map(clean, names))}" if names else ""
            found.append(f"the original is not deterministic; outputs that differ between two runs of it{which}")
        found += [clean(note) for note in verdict.notes]
    if any(assumed(site) for site in report.sites):
        found.append("some sizes are known at run time only: estimates there stand on typical sizes")
    found += [clean(note) for note in report.notes]
    if verdict is not None:
        found += [f"as delivered, the original has this finding: {clean(text)}" for text in verdict.checker_before]
    return list(dict.fromkeys(found))


def normalised(dilations: Sequence[int] | None, pads: Sequence[int] | None) -> str:
    """Return what changed in a Conv's attributes."""
    parts = []
    if dilations is not None:
        parts.append(f"dilations become {list(dilations)} (an axis with kernel 1 has none)")
    if pads is not None:
        parts.append(f"auto_pad becomes pads {list(pads)}")
    return "; ".join(parts) or "nothing"


def environment(report: Report) -> str:
    """Return what ran where, in one line."""
    here = report.environment
    threads = "default threads" if here.threads is None else count(here.threads, "thread")
    packages = ", ".join(f"{clean(name)} {clean(version)}" for name, version in here.packages.items())
    parts = [f"dilrewrite {here.dilrewrite}, Python {here.python}"]
    parts += [packages] if packages else []
    parts += [f"{clean(here.processor) or 'unknown processor'}, {count(here.cores, 'core')}, {threads}"]
    return "; ".join([*parts, clean(here.system)])


def times(spent: Mapping[str, float]) -> str:
    """Return the seconds per step in one line."""
    if not spent:
        return "not measured"
    steps = ", ".join(f"{clean(step)} {seconds(value)}" for step, value in spent.items())
    return f"{steps}; together {seconds(sum(spent.values()))}"
