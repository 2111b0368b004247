"""Says how the forms of a site fit a target: the nodes that each writes are held to the target's profile.

A form is written into a model of the site alone, of the sizes that it has in the whole one, and judged there. So no
form says anything of a target, and no profile of a form.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.choice import choose
from dilrewrite.choice.fitted import Fitted, fitted
from dilrewrite.choice.reason import Reason, Why
from dilrewrite.errors import UsageError
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import Limit, divisors
from dilrewrite.forms.pools import PoolGeometry, pool_forms
from dilrewrite.forms.regions._inner import with_forms
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.forms.strategies import (
    FOLD,
    Refusal,
    Strategy,
    _fold,
    every_strategy,
    parse,
    spelled,
    with_layout,
    with_max_dilation,
)
from dilrewrite.forms.strategies._phases import LAYOUTS
from dilrewrite.forms.strategies.lift import BETWEEN, Lift
from dilrewrite.model.elements import NUMBERED
from dilrewrite.model.light import graph_shapes, with_sizes, without_weights
from dilrewrite.model.shapes import believed
from dilrewrite.model.walk import scopes
from dilrewrite.proof.carve import Source
from dilrewrite.runtimes import TimedBackend, TimeKind, timed_backends
from dilrewrite.sites import Site, Skipped
from dilrewrite.splice.editor import Reader
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.targets import Fit, Judgement, NodeFit, Profile, facts, judge
from dilrewrite.timing import neighbourhood
from dilrewrite.timing.profiling import Profiled, Shape, SiteRun

Sizes = Mapping[str, Shape]


def no_judge(backend: TimedBackend, profile: Profile) -> str | None:
    """Return why a backend does not say what a target's compiler makes of a model; `None` where it does."""
    if backend.source is not TimeKind.ESTIMATED:
        return f"{backend.name} times models, and {profile.name} names a device that is not here"
    asked, wanted = backend.versions(), profile.toolchain
    if wanted.includes(asked.get(wanted.name, "")):
        return None
    told = ", ".join(" ".join(one) for one in asked.items())
    return f"{backend.name} asks {told}, and {profile.name} is of {wanted or 'no compiler with a name'}"


def judge_of(profile: Profile) -> str | None:
    """Return the backend that asks a target's own compiler, installed or not; `None` where none does."""
    if profile.toolchain.judge is not None:
        return profile.toolchain.judge.backend
    estimating = (one for one in timed_backends().values() if one.source is TimeKind.ESTIMATED)
    return next((one.name for one in estimating if no_judge(one, profile) is None), None)


def check_judge(backend: TimedBackend, profile: Profile) -> None:
    """Raise `UsageError` for a backend that does not ask the target's own compiler."""
    problem, known = no_judge(backend, profile), judge_of(profile)
    if problem is not None:
        hint = f"its judge is --backend {known}" if known else "leave --backend out: no judge of it is known"
        raise UsageError(f"--target with --backend: {problem}", hint=hint)


@dataclass(frozen=True, slots=True)
class _Alone:
    """A site as a model of its own: the model, the site in it, the sizes of its inputs, how its nodes fit by output."""

    model: ModelProto
    site: Site
    shapes: Sizes
    nodes: Mapping[str, NodeFit]

    def made(self) -> set[str]:
        """Return the names of what the site's nodes make."""
        every = Source(self.model).scope(self.site.scope).nodes
        return {name for index in self.site.nodes for name in every[index].output}


@dataclass
class Fitter:
    """Holds sites of one model and their forms to a target. `shapes`: sizes of inputs, by name; `read` reads weights.

    `judged`: a judge of the target decides between forms that fit equally well. `forms`: settings of forms that it
    wants, as `--strategy` takes them; which dilation they leave is not for them to say.

    Raises `UsageError` where the target takes static sizes only and a size of an input is not known.
    """

    profile: Profile
    proto: ModelProto
    shapes: Sizes
    read: Reader
    judged: bool = False
    forms: Sequence[str] = ()
    nodes: Mapping[str, NodeFit] = field(init=False)
    _tensors: dict[Any, Shape] = field(init=False)
    _alone: dict[str, _Alone] = field(default_factory=dict)
    _own: dict[str, Strategy] = field(init=False)
    _planned: dict[tuple[object, ...], tuple[list[choose.Candidate], list[Refusal]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Judge the model as it is, and infer the sizes of its tensors."""
        self.source = Source(self.proto)
        self.nodes = {one.key: one for one in judge(self.proto, self.profile, self.shapes).nodes}
        named = map(parse, reversed(self.forms))
        self._own = {name: with_max_dilation(strategy, 1) for name, strategy in named}
        light = with_sizes(without_weights(self.proto), self.shapes)
        self._tensors = {
            (path, name): tuple(size for size in shape if size is not None)
            for path, graph in scopes(believed(light))
            if hasattr(graph, "initializer")
            for name, (_, shape) in graph_shapes(graph).items()
            if shape is not None and None not in shape
        }

    def own(self, site: Site) -> Fitted:
        """Return how a site fits as it stands."""
        alone = self._of(site)
        made = alone.made()
        return fitted([node for name, node in alone.nodes.items() if name in made], self.profile)

    def of(self, site: Site, fragment: Fragment) -> Fitted:
        """Return how the nodes fit that a form writes in place of a site."""
        alone = self._of(site)
        if fragment.strategy.startswith("keep"):
            return self.own(site)
        written = rewrite(alone.model, [(alone.site, fragment)], (), _zeros).proto
        after = judge(written, self.profile, alone.shapes).nodes
        made = alone.made()  # a form may leave a Conv of the site as it stands, and that is its own
        return fitted([one for one in after if one.output in made or alone.nodes.get(one.output) != one], self.profile)

    def _of(self, site: Site) -> _Alone:
        if site.key not in self._alone:
            run = SiteRun(share=None, shapes=(), times=0)
            entering = self._tensors.get((site.scope, site.inputs[0]))
            if entering is not None:
                run = replace(run, shapes=(entering,), times=1)
            known = Profiled(seconds=0.0, sites={site.key: run}, tensors=self._tensors)
            try:
                if not site.fixed_weights:
                    raise LookupError("what computes its weights may be constant, and folded")
                asked = neighbourhood.ask(self.source, site, known, self.read, ())
                sizes = {name: values.shape for name, values in asked.feeds.items()}
                model, own = asked.model, asked.site
            except LookupError:  # not by itself: the whole model
                model, own, sizes = self.proto, site, dict(self.shapes)
            nodes = {one.output: one for one in judge(model, self.profile, sizes).nodes}
            self._alone[site.key] = _Alone(model, own, sizes, nodes)
        return self._alone[site.key]

    def choice(
        self, site: Site, offered: Sequence[choose.Candidate], refused: Sequence[Refusal]
    ) -> tuple[Fitted, Why, list[choose.Candidate]]:
        """Return how a site fits, and the forms that it may get, the best first, with the reason.

        What the target runs as it is stays, unless its own compiler makes more work of the dilation than a form that
        it runs, too. What is not known to run is left for what is.
        """
        own = self.own(site)
        forms = [one for one in offered if not one.strategy.startswith("keep")]
        if own.fit is Fit.NATIVE:
            stays = next((one.cost_on_target for one in offered if one.strategy.startswith("keep")), 0.0)
            native = [one for one in forms if one.fitted is not None and one.fitted.fit is Fit.NATIVE]
            native = [one for one in native if not one.holds_for]
            undone = {one.pattern for one in self.profile.refolds}
            less = [one for one in native if own.work > 1 and one.cost_on_target < stays and one.strategy not in undone]
            if self.judged:
                native = [one for one in native if not _on_request(one)]
                return own, Why(reason=Reason.NATIVE, said=self.profile.name), choose.distinct(native)
            if not less:
                return own, Why(reason=Reason.NATIVE, said=self.profile.name, factor=own.work), []
            share = less[0].cost_on_target / stays
            return own, Why(reason=Reason.CHEAPER, factor=own.work, share=share), choose.distinct(less)
        better = [one for one in forms if one.fitted is not None and one.fitted.fit.rank < own.fit.rank]
        if not better:
            others = tuple(one for one in refused if not one.strategy.startswith("keep"))
            return own, Why(reason=Reason.NO_FIT, said=own.because, refusals=others), []
        better = choose.distinct(better)
        alike = sum(one.fit_order[:2] == better[0].fit_order[:2] for one in better)
        work = max(one.fitted.work for one in better if one.fitted is not None)
        return own, Why(reason=Reason.FITS, said=own.because, number=alike, factor=work), better

    def lifted(
        self, region: Site, offered: Sequence[choose.Candidate], inside: Sequence[Site] = ()
    ) -> tuple[Fitted, Why, list[choose.Candidate]] | None:
        """Return how a region fits as it stands, and its forms that the target takes, with the reason.

        Where the target takes no dilation of one of the sites `inside`, that has a form of its own in the lifted chain.
        `None` where its sites are enough: the target takes every Conv of it that has no dilation.
        """
        nodes = self.source.scope(region.scope).nodes
        keys = [f"{region.where}/{nodes[index].output[0]}" for index in region.nodes]
        stands = [self.nodes[key] for key in keys if key in self.nodes]
        if not any(one.fit is Fit.OUT and one.is_conv and one.dilation == 1 for one in stands):
            return None
        own = fitted(stands, self.profile)
        taken = []
        for one in self._with_forms(region, offered, inside):
            written = rewrite(self.proto, [(region, one.fragment)], (), _zeros).proto
            after = judge(written, self.profile, self.shapes).nodes
            fit = fitted([one for one in after if one.key in keys or self.nodes.get(one.key) != one], self.profile)
            if fit.fit.rank < own.fit.rank:
                taken.append(replace(one, fitted=fit))
        taken.sort(key=lambda one: one.fit_order)
        return (own, Why(reason=Reason.FITS, said=own.because, number=len(taken)), taken) if taken else None

    def _with_forms(
        self, region: Site, offered: Sequence[choose.Candidate], inside: Sequence[Site]
    ) -> list[choose.Candidate]:
        """Return the forms of a region, and behind them those with other forms of Convs whose dilation is too large."""
        assert isinstance(region.meaning, Chain)
        places = {part.index: place for place, part in enumerate(region.parts)}
        forms = {}
        for site in inside:
            one = next(iter(self._lifted_forms(site, single=True)), None)
            if one is not None and not self._takes(site, site.geometry.max_dilation):
                forms[places[site.part.index]] = parse(one.spelling)[1]
        found = list(offered)
        for one in offered if forms else ():
            fragment = with_forms(one.fragment, region.meaning, cast("dict[int, Lift]", forms))
            if isinstance(fragment, Fragment):
                found.append(replace(one, fragment=fragment, covers=region.covers(fragment)))
        return found

    def after(self, proto: ModelProto, rewritten: Container[str] = ()) -> tuple[Judgement, tuple[str, ...]]:
        """Return how a rewritten model fits, and the nodes that are out of limits and should not be so, in words.

        Those are all that were not so before, and of the sites with a form, named by their keys in `rewritten`, all.
        """
        judgement = judge(proto, self.profile, self.shapes)
        broken = []
        for node in judgement.at(Fit.OUT):
            before = None if node.key in rewritten else self.nodes.get(node.key)
            if (before is None or before.fit is not Fit.OUT or before.op != node.op) and node.because is not None:
                broken.append(f"{node.key}: {node.op} is out of the limits of {self.profile.name}: {node.because.text}")
        return judgement, tuple(broken)

    def unasked(self) -> list[str]:
        """Return that the target's own compiler can be asked, where it was not."""
        known = None if self.judged else judge_of(self.profile)
        return [f"nobody asked the target's compiler: --backend {known} does, unless --budget is 0"] if known else []

    def stuck(self, skipped: Sequence[Skipped]) -> list[Skipped]:
        """Return of the dilated nodes that have no form those that the target does not take."""
        out = {(one.where, one.name) for one in self.nodes.values() if one.fit is Fit.OUT}
        return [one for one in skipped if (one.where, one.node or one.name) in out]

    # -- the forms of a site -------------------------------------------------------------------------------------------

    def candidates(self, site: Site) -> tuple[list[choose.Candidate], list[Refusal]]:
        """Return the forms of a site that the target takes in some way, the best first, and the refusals of the others.

        Of a form that may leave a dilation the best is returned of all that leave one which the target takes.
        """
        alone = self._of(site)
        key = (site.meaning, site.opset, site.storage, site.fixed_weights, *sorted(alone.shapes.items()))
        if key not in self._planned:
            self._planned[key] = self._fitting(site)
        found, refused = self._planned[key]
        return [replace(one, covers=site.covers(one.fragment)) for one in found], list(refused)

    def _fitting(self, site: Site) -> tuple[list[choose.Candidate], list[Refusal]]:
        pools, folds = isinstance(site.meaning, PoolGeometry), isinstance(site.meaning, Sandwich)
        offered: Mapping[str, Strategy] = pool_forms() if pools else every_strategy()
        if folds:  # it holds no dilated Conv that could stay
            offered = {FOLD: _fold.FORM, **{name: one for name, one in offered.items() if name != "keep"}}
        found: list[choose.Candidate] = []
        refused: dict[str, Refusal] = {}
        for name, usual in sorted(offered.items(), key=lambda item: getattr(item[1], "on_request", False)):
            strategy = self._own.get(name, usual)
            taken: list[choose.Candidate] = []
            limits = self._limits(site) if hasattr(strategy, "max_dilation") else [1]
            for limit, each in itertools.product(limits, _layouts(strategy)):
                planned, denied = choose.candidates(site, {name: each}, limit)
                refused |= {one.strategy: one for one in denied}
                for one in planned:
                    if all(one.fragment.digest() != other.fragment.digest() for other in taken):
                        taken.append(replace(one, fitted=self.of(site, one.fragment)))
            taken.sort(key=lambda one: one.fit_order)
            best = taken[0].fitted if taken else None
            if best is not None and best.fit is not Fit.OUT:
                found += self._kinds(taken)
                refused.pop(name, None)
            elif best is not None:
                refused[name] = Refusal(name, best.because)
        if not (pools or folds) and site.geometry.rank == 1 and all(one.strategy.startswith("keep") for one in found):
            found += self._lifted_forms(site)
        return sorted(found, key=lambda one: one.fit_order), list(refused.values())

    def _lifted_forms(self, site: Site, *, single: bool = False) -> list[choose.Candidate]:
        """Return the best form of a 1-D Conv that is one of the 2-D Conv that it is, where the target takes that.

        `single`: of those with one Conv.
        """
        lift, taken = every_strategy()["lift"], list[choose.Candidate]()
        for name, strategy in every_strategy().items():
            if name in ("keep", "lift") or strategy.finite_inputs_only or strategy.skips_padding:
                continue
            limits = self._limits(site) if hasattr(strategy, "max_dilation") else [1]
            for limit, each in itertools.product(limits, _layouts(strategy)):
                text = spelled(name, with_max_dilation(each, limit)).replace(":", BETWEEN).replace(",", BETWEEN)
                for one in choose.candidates(site, {"lift": replace(cast("Any", lift), form=text)})[0]:
                    fresh = one.fragment.digest() not in {other.fragment.digest() for other in taken}
                    if fresh and (not single or len(one.fragment.core) == 1):
                        taken.append(replace(one, strategy=one.spelling, fitted=self.of(site, one.fragment)))
        fitting = [one for one in taken if one.fitted is not None and one.fitted.fit is not Fit.OUT]
        return sorted(fitting, key=lambda one: one.fit_order)[:1]

    def _kinds(self, taken: Sequence[choose.Candidate]) -> list[choose.Candidate]:
        """Return of forms of one name the best, and where a judge is asked the best one that leaves no dilation."""
        best, bare = taken[0].fitted, (one for one in taken if one.fragment.max_dilation == 1)
        alike = [one for one in bare if best is not None and one.fitted is not None and one.fitted.fit is best.fit]
        return choose.told_apart([taken[0], *(alike[:1] if self.judged else ())])

    def _limits(self, site: Site) -> list[Limit]:
        """Return which dilations the forms of a site are to leave: the largest first that the target may take."""
        geometry = site.geometry
        acting = {d for k, d in zip(geometry.kernel, geometry.dilations, strict=True) if k > 1}
        every = sorted({r for d in acting for r in divisors(d)}, reverse=True)
        may_stay = tuple(r for r in every if r == 1 or self._takes(site, r))
        several: list[Limit] = [tuple(sorted(may_stay))] if len(acting) > 1 else []
        return [*several, *(r for r in may_stay if r < max(acting, default=1))] or [1]

    def _takes(self, site: Site, dilation: int) -> bool:
        """Say whether the target may take a dilation: no rule about dilations alone speaks against it."""
        g = site.geometry
        known = facts.conv(
            kernel=g.kernel, dilations=(dilation,) * g.rank, strides=g.strides, group=g.group,
            channels=(g.in_channels, g.out_channels), batch=g.batch, extents=g.extents,
        )  # fmt: skip
        found = self.profile.conv_findings(known)
        rules = (one for one in found if one.rule is not None and one.rule.field == "dilation")
        return all(one.fit is not Fit.OUT for one in rules)


def _layouts(strategy: Strategy) -> list[Strategy]:
    """Return a form with each way in which it makes phases: some devices have SpaceToDepth, others have not."""
    return [with_layout(strategy, layout) for layout in LAYOUTS] if hasattr(strategy, "layout") else [strategy]


def _on_request(candidate: choose.Candidate) -> bool:
    """Say whether a form is for what a device refuses, and none for speed."""
    name = candidate.strategy.partition(":")[0]
    return bool(getattr(every_strategy().get(name), "on_request", False))


def _zeros(tensor: TensorProto) -> Any:
    """Return what stands for weights: their values play no part."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return np.zeros(tuple(tensor.dims), NUMBERED[tensor.data_type].dtype)
    return numpy_helper.to_array(tensor)
