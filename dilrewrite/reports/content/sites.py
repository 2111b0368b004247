"""The dilated Convs: where they are, what they are, what was done with them, and their proofs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.strategies import FOLD
from dilrewrite.model.elements import FLOATS
from dilrewrite.proof.proof import Proof, Requantised, Rounding
from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.reasons import placed
from dilrewrite.reports.report import RegionReport, Report, SiteReport
from dilrewrite.reports.units import NOTHING, count, dims, figure, numberless, percent

MANY_ROWS = 40  # a longer table or list is folded
MANY_BARS = 15  # so many sites' shares are in sight, the largest; the others are folded
NAME_LENGTH = 60  # a longer name loses its middle in charts and in the headings of groups, not in tables
SITE_NAMES = 3  # how many sites of a group are named
RAN_SHAPES = 8  # how many of the shapes that a Conv ran on are shown; in brief reports 2; report.json has all
GEOMETRY_KEY = (
    "kernel, d dilation, s stride, g group, channels in->out, input extents, p pads (begin:end where they differ); "
    "n batch when it is not 1; ? is known at run time only"
)


def geometry(conv: ConvGeometry) -> str:
    """Return a Conv as `GEOMETRY_KEY` says, then what is unusual of it: `3x3 d12 s1 g1 256->256 28x28 p12 float16`."""

    def short(values: Sequence[int | None]) -> str:
        return dims(values[:1]) if len(set(values)) == 1 else dims(values)

    (begin, end), strides = conv.own_pads, conv.spread if conv.transposed is not None else conv.strides
    more = conv.transposed.output_padding if conv.transposed is not None else ()
    pads = f"p{short(begin)}{'' if begin == end else f':{short(end)}'}"
    return units.joined(
        {"max": "MaxPool", "mean": "AveragePool", "norm": "LpPool"}[conv.kind]
        if isinstance(conv, PoolGeometry)
        else "",
        f"{dims(conv.kernel)} d{short(conv.dilations)} s{short(strides)} g{conv.group}",
        f"{dims([conv.in_channels])}->{dims([conv.out_channels])} {dims(conv.extents)}",
        pads if conv.auto_pad == "NOTSET" else conv.auto_pad,
        f"n{dims([conv.batch])}" if conv.batch != 1 else "",
        "transposed" if conv.transposed is not None else "",
        f"output_padding {short(more)}" if any(more) else "",
        conv.element if conv.element != "float32" else "",
        _quantised(conv) if conv.quantized else "",
        by=" ",
    )


def _quantised(conv: ConvGeometry) -> str:
    """Return what of a quantised Conv is in integers: its data, or all of it by the operator's name."""
    if conv.element in FLOATS:
        return "quantised"
    return "ConvInteger" if conv.element == "int32" else "QLinearConv"


def ran(site: SiteReport, most: int = 2) -> str:
    """Return the input shapes of a Conv whose sizes are known at run time only: `ran on 1x88x320`; may be empty."""
    unknown = None in (site.geometry.batch, site.geometry.in_channels, *site.geometry.extents)
    return f"ran on {units.listed([dims(shape) for shape in site.ran], most)}" if site.ran and unknown else ""


def shape(site: SiteReport, most: int = 2) -> str:
    """Return a site's geometry, the sizes it ran on where the model does not tell them, and who reads real numbers."""
    leaves = f"leaves the quantised domain at {units.listed(site.ends, most)}" if site.ends else ""
    return units.joined(geometry(site.geometry), ran(site, most), leaves)


def work(site: SiteReport) -> tuple[int | None, float | None]:
    """Return a site's multiply-adds and the share of them on padding only, at the sizes it ran on if need be."""
    if site.multiply_adds is not None or not site.ran:
        return site.multiply_adds, site.padding_share
    known = site.geometry
    if len(site.ran[0]) == known.rank + 2:
        batch, channels, *extents = site.ran[0]
        known = replace(known, batch=batch, in_channels=channels, extents=tuple(extents)).explicit()
    share = known.data_share()
    return known.multiply_adds(), site.padding_share if share is None else 1 - share


Entry = SiteReport | RegionReport


def site_name(site: Entry) -> str:
    """Return what a site, or the first node of a region, is called."""
    return placed(site.where, site.name or (site.output if isinstance(site, SiteReport) else ""))


def short_name(site: SiteReport) -> doc.Span:
    """Return a site's name for where room is scarce."""
    return doc.code(units.shorten(units.clean(site_name(site)), NAME_LENGTH))


def form(site: Entry) -> str:
    """Return what was done at a site, or with a region."""
    if site.action != "rewritten":
        return site.action
    if isinstance(site, SiteReport) and site.strategy == FOLD:
        return f"{FOLD} to d{site.max_dilation_left}"
    return f"{site.strategy}{f' (leaves d{site.max_dilation_left})' if site.max_dilation_left > 1 else ''}"


def was_measured(site: Entry) -> bool:
    """Say whether a form of it was timed."""
    return any(candidate.timing is not None for candidate in site.candidates)


def assumed(site: Entry) -> bool:
    """Say whether a site's estimates stand on assumed sizes."""
    return isinstance(site, SiteReport) and site.multiply_adds is None and bool(site.candidates)


def share(site: SiteReport) -> str:
    """Return a site's share of the model's time, and the interval in which it is: `38.2 % (37.9 to 38.6 %)`."""
    if site.share is None:
        return NOTHING
    low, high = map(percent, site.share_interval or (site.share, site.share))
    between = f" ({low.removesuffix(' %')} to {high})" if low != high else ""
    return f"{percent(site.share)}{between}"


def _rounding(errors: Rounding) -> str:
    """Return the rounding error of the form taken against that of keep."""
    if errors.native_error == 0 or not math.isfinite(errors.native_error):
        return f"rounding {figure(errors.new_error)} (keep {figure(errors.native_error)})"
    ratio = errors.new_error / errors.native_error
    return f"rounding {f'{ratio:.1f}' if ratio < 1000 else figure(ratio)}x keep"


def proof(site: Entry) -> str:
    """Return a proof in short: `exact (1 shape), rounding 1.2x keep`."""
    proof = site.proof
    if proof is None:
        return "not proved" if site.action == "rewritten" else NOTHING
    if proof.failure is not None:
        return f"FAILED: {proof.failure}"
    error = proof.requantised
    return units.joined(
        f"exact ({count(len(proof.shapes), 'shape')})" if error is None or error.exact else requantised([error]),
        f"as sums stay below 2^24: up to {figure(error.largest_sum)}" if error is not None and error.exact else "",
        _rounding(proof.rounding) if proof.rounding is not None else "",
        "" if proof.native_ran else "keep not run",
        f"on {proof.backend}" if "reference" in proof.backend else "",
    )


def requantised(errors: Sequence[Requantised]) -> str:
    """Return how far forms in float32 are from integers: `within one quantum (3 of 65,536 outputs differ)`."""
    quanta = all(error.quantum for error in errors)
    within = "one quantum" if quanta else "the rounding of sums in float32"
    differing, most = sum(error.differing for error in errors), max(error.max_error for error in errors)
    far = f" by up to {most:g}" if differing else ""
    share = (
        f", {figure(max(error.relative_error for error in errors))} of the largest" if differing and not quanta else ""
    )
    return f"within {within} ({differing:,} of {sum(error.elements for error in errors):,} outputs differ{far}{share})"


def in_floats(report: Report) -> list[Requantised]:
    """Return the errors of the forms that were taken and are not the same bit for bit."""
    proofs = [site.proof for site in report.sites if site.proof is not None and site.action == "rewritten"]
    errors = [proof.requantised for proof in proofs if proof.requantised is not None and proof.passed]
    return [error for error in errors if not error.exact]


Group = Sequence[tuple[int, SiteReport]]
"""Sites that read the same, with their numbers."""


def alone(report: Report) -> list[tuple[int, SiteReport]]:
    """Return the sites that are not rewritten with a region, with their numbers."""
    return [item for item in enumerate(report.sites, 1) if item[1].region is None]


def _groups(report: Report) -> Sequence[Group]:
    """Return these sites in groups that read the same; with a measurement, shares and numbers in texts may differ."""

    def key(item: tuple[int, SiteReport]) -> tuple[object, ...]:
        site = item[1]
        if report.command == "inspect":
            return (shape(site), work(site), _applicable(site), repr(site.refused))
        texts = (site.reason, proof(site))
        if report.measurement is None:
            return (shape(site), work(site), form(site), *texts)
        question = site.question if was_measured(site) else None
        return (question, shape(site), work(site), form(site), *map(numberless, texts))

    return units.groups(alone(report), key)


def _one(texts: Iterable[str]) -> str:
    """Return texts that differ in numbers only as one."""
    ((text, _number),) = units.merged(list(texts))
    return text


def _proved(some: Group) -> doc.Inline:
    return toned(_one(proof(site) for _, site in some))


def toned(proved: str) -> doc.Inline:
    """Return what is said of a proof, in its tone."""
    return doc.Span("bad", proved) if proved.startswith("FAILED") else proved


def first_names(names: Sequence[str]) -> list[doc.Inline]:
    """Return the first names, and how many more there are."""
    more = [f"and {len(names) - SITE_NAMES} more"] if len(names) > SITE_NAMES else []
    return [*map(doc.code, names[:SITE_NAMES]), *more]


def site_blocks(report: Report, brief: bool) -> Iterator[doc.Block]:
    """Yield one row per site, in brief per group that reads the same; those that go with a region stand there."""
    groups: Sequence[Group] = _groups(report) if brief else [[item] for item in alone(report)]
    if groups:
        rows = site_table(groups, report, brief)
        yield doc.Fold(f"All {sum(map(len, groups))} sites", (rows,)) if len(groups) > MANY_ROWS else rows
        yield doc.Paragraph(doc.muted(f"Geometry: {GEOMETRY_KEY}."))


def site_table(groups: Sequence[Group], report: Report, brief: bool, inside: bool = False) -> doc.Table:
    """Return a table of sites; figures known for no site have no column. `inside`: those of one region."""
    sites, inspected = [site for some in groups for _, site in some], report.command == "inspect"
    known, decided = [work(site) for site in sites], not (inspected or inside)
    shares = any(site.share is not None for site in sites)
    gains = any(site.predicted_gain is not None for site in sites)

    def named(some: Group) -> doc.Inline:
        first, *rest = first_names([site_name(site) for _, site in some])
        return (first, *map(doc.line, rest))

    def ran_on(some: Group) -> str:
        return ran(some[0][1], 2 if brief else RAN_SHAPES).removeprefix("ran on ") or NOTHING

    def of_time(some: Group) -> str:
        summed = units.summed(site.share for _, site in some)
        return (NOTHING if summed is None else percent(summed)) if brief else share(some[0][1])

    def gained(some: Group) -> str:
        return units.gain(units.summed(site.predicted_gain for _, site in some))

    return doc.table(
        "Dilated Convs",
        groups,
        ("##", lambda some: str(len(some) if brief else some[0][0])),
        ("site", lambda some: named(some) if brief else doc.code(site_name(some[0][1]))),
        ("^geometry", lambda some: doc.code(geometry(some[0][1].geometry))),
        any(map(ran, sites)) and ("^ran on", ran_on),
        shares and ("#share of time", of_time),
        gains and ("#^gain" if brief else "#^predicted gain", gained),
        any(adds is not None for adds, _ in known)
        and ("#multiply-adds", lambda some: units.amount(work(some[0][1])[0])),
        any(pad is not None for _, pad in known) and ("#^padding only", lambda some: percent(work(some[0][1])[1])),
        (inspected and brief) and ("~forms that apply", lambda some: _applicable(some[0][1])),
        decided and ("form", lambda some: done(some[0][1])),
        decided and ("~^why", lambda some: _one(site.reason for _, site in some)),
        decided and ("~^proof", _proved),
        inside and ("#dilation left", lambda some: units.left(some[0][1].max_dilation_left)),
        not brief and ("output", lambda some: doc.code(some[0][1].output)),
        anchors=() if brief else [f"site-{number}" for some in groups for number, _ in some],
    )


def proved(report: Report) -> tuple[int, int]:
    """Return how many of the forms that were taken are proved, bit for bit or within a bound, of how many proofs.

    One that is wrong counts too, whether it was taken or not.
    """
    entries: list[Entry] = [*report.regions, *report.sites]
    proofs = [one.proof for one in entries if one.proof and (one.action == "rewritten" or one.proof.failure)]
    return sum(proof.failure is None for proof in proofs), len(proofs)


def done(entry: Entry) -> doc.Inline:
    """Return the form that was taken, in its tone."""
    return doc.Span("good", form(entry)) if entry.action == "rewritten" else form(entry)


def _applicable(site: SiteReport) -> str:
    return ", ".join(candidate.strategy for candidate in site.candidates) or "none"


def share_blocks(report: Report) -> Iterator[doc.Block]:
    """Yield how much of the time each dilated Conv takes, and what of that is expected to go."""
    known = [(i, s, s.share) for i, s in enumerate(report.sites, 1) if s.share is not None]
    if not known:
        return
    known.sort(key=lambda item: -item[2] if math.isfinite(item[2]) else 0.0)
    total = percent(units.summed(share for _, _, share in known))
    some = "" if len(known) == len(report.sites) else f"; {len(known)} of {len(report.sites)} are known"
    yield doc.Paragraph((doc.strong(total), f" of the time of one run goes to the dilated Convs{some}."))
    bars = tuple(_share_bar(number, site, share, report) for number, site, share in known)
    seen = {kind for bar in bars for kind in (bar.kind, "gone" if bar.gone else "")}
    looks = (("taken", "rewritten"), ("keep", "kept"), ("gone", "predicted to go"))
    legend = tuple((kind, name) for kind, name in looks if kind in seen)
    title, most = "Share of the time of one run, in percent", doc.reach(bars)
    yield doc.Chart(title, bars[:MANY_BARS], legend, most)
    if len(bars) > MANY_BARS:
        rest = units.summed(share for _, _, share in known[MANY_BARS:])
        summary = f"{count(len(bars) - MANY_BARS, 'site')} more, {percent(rest)} of the time"
        yield doc.Fold(summary, (doc.Chart(title, bars[MANY_BARS:], legend, most),))


def _share_bar(number: int, site: SiteReport, share: float, report: Report) -> doc.Bar:
    done = "" if report.command == "inspect" else form(site)
    gain = site.predicted_gain
    gained = "" if gain is None or abs(gain) < 0.0005 else f"predicted gain {units.gain(gain)}"
    says = units.joined(percent(share), done, gained)
    return doc.Bar(
        kind="taken" if site.action == "rewritten" else "keep",
        name=f"site {number}, {site_name(site)}: {says}",
        label=(link(number), " ", short_name(site)),
        says=(doc.strong(percent(share)), f" {done}", doc.line(doc.muted(gained)) if gained else ""),
        value=100 * share,
        gone=100 * min(max(gain, 0.0), share) if gain is not None and math.isfinite(gain) else 0.0,
    )


def link(number: int) -> doc.Span:
    """Return a link to a site's row."""
    return doc.Span("link", str(number), f"site-{number}")


def region_link(number: int) -> doc.Span:
    """Return a link to a region."""
    return doc.Span("link", f"region {number}", f"region-{number}")


def _in_float32(item: tuple[doc.Span, Proof]) -> str:
    """Return every figure of the error of a form of integers in float32."""
    error = item[1].requantised
    if error is None:
        return NOTHING
    ends = f"; {error.lowest:,} and {error.highest:,} outputs saturate at the ends" if error.quantum else ""
    bound = f"bound {figure(error.limit)} {'quantum' if error.quantum else 'of a sum'}"
    bound = f"{bound}, sums up to {figure(error.largest_sum)}"
    return f"{'bit for bit' if error.exact else requantised([error])}; {bound}{ends}"


def proof_blocks(report: Report) -> Iterator[doc.Block]:
    """Yield every figure of every proof."""
    whole = [(region_link(number), region.proof) for number, region in enumerate(report.regions, 1)]
    every = [*whole, *((link(number), site.proof) for number, site in enumerate(report.sites, 1))]
    proved = [(where, proof) for where, proof in every if proof is not None]
    if not proved:
        return
    hold = sum(proof.failure is None for _, proof in proved)
    whole_proved = any(region.proof is not None for region in report.regions)
    of_regions = ", of regions as shares of the largest output" if whole_proved else ""
    method = " Exact: bit for bit on whole numbers. Rounding: errors against float64, as shares of "
    holding = doc.strong(f"{hold} of {len(proved)} hold.")
    yield doc.Paragraph((holding, method, doc.code("Conv(|x|, |w|) + |b|"), f"{of_regions}."))

    def rounding(head: str, field: str = "") -> doc.Cells[tuple[doc.Span, Proof]]:
        return f"#{head}", lambda item: figure(getattr(item[1].rounding, field or head, None))

    proofs = doc.table(
        "Proofs",
        proved,
        ("##", lambda item: item[0]),
        ("input shapes", lambda item: ", ".join(map(dims, item[1].shapes)) or NOTHING),
        ("#elements", lambda item: str(item[1].elements)),
        ("ran on", lambda item: item[1].backend),
        ("keep ran", lambda item: "yes" if item[1].native_ran else "no"),
        rounding("error of keep", "native_error"),
        rounding("error of the form", "new_error"),
        *map(rounding, ("limit", "ceiling", "difference")),
        any(proof.requantised is not None for _, proof in proved) and ("error in float32", _in_float32),
        ("~result", lambda item: "holds" if item[1].failure is None else doc.Span("bad", f"FAILED: {item[1].failure}")),
    )
    yield doc.Fold("Figures of every proof", (proofs,), shown=hold < len(proved))
