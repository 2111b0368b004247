"""A region on whole numbers: before and after it is rewritten, equal bit for bit (see `chains.py`)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment, Kept, Node
from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import copied
from dilrewrite.proof.carve import tensor
from dilrewrite.proof.cut import cut
from dilrewrite.proof.numbers import whole_numbers
from dilrewrite.proof.proof import Proof, differs
from dilrewrite.proof.region import Feeds, Region, Runs
from dilrewrite.proof.standins import (
    OVER_SPACE,
    REACH,
    STAND_INS,
    STEPPING,
    SUMMING,
    WIDTHS,
    Twin,
    attributes_of,
    is_float,
)
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Session
from dilrewrite.splice.rewrite import rewrite

MODULUS = 7
"""What sums of whole numbers are taken modulo: a wrong addend, unless a multiple of it, still shows."""

SPOILS = (np.nan, 1009.0, -1009.0)
"""What is written around the data: one that spreads, two that no maximum or minimum hides."""

UNKNOWN = re.compile(r"NOT_IMPLEMENTED|alloc")
"""What a runtime says where it is not the form's fault."""

SPOIL_WORK = 2**25
"""Samples around the data are spoiled in cases of no more multiplications than this, or in the smallest."""
MOST_CASES = 4
"""At so many sizes that were seen a region is proved."""
MORE_WORK = 2**29
"""Further sizes are made up as long as these together come to no more multiplications than this."""


class Exact:
    """Both models of a region on whole numbers."""

    def __init__(self, runs: Runs, region: Region) -> None:
        self.runs, self.region = runs, region
        self.rng = np.random.default_rng(runs.seed)
        nodes = region.nodes
        split = {number for number in range(len(nodes)) if number not in region.kept or _over_space(region, number)}
        self.rounds = any(nodes[number].op_type in STAND_INS and region.floats[number] for number in split)
        opset = region.site.opset
        modulo = opset >= 10 and not self.rounds
        twin = Twin(opset=opset, rng=self.rng, as_they_are=frozenset(split), dense=modulo)
        for number, node in enumerate(nodes):
            own = {place: values for (of, place), values in region.constants.items() if of == number}
            twin.add(node, own, floats=region.floats[number])
        inputs = {name: "float32" if element in FLOATS else element for name, element in region.elements.items()}
        whole = cut(region.site, twin.nodes, twin.constants, inputs)
        after = rewrite(whole.model, [(whole.site, self._fitted(twin))], (), numpy_helper.to_array).proto
        sums = {
            str(number)
            for number, node in enumerate(twin.nodes)
            if region.floats[number] and node.op_type in SUMMING and number in region.kept
        }
        small = _modulo if modulo else functools.partial(_clipped, opset=opset)
        self.before, self.after = (_behind(model, sums, small) for model in (whole.model, after))

    def _fitted(self, twin: Twin) -> Fragment:
        """Return the fragment with the steps of stand-ins as these take them, in float32."""
        region, steps = self.region, []
        for step in region.fragment.steps:
            if isinstance(step, Kept) and step.of < len(twin.nodes):
                node, true = twin.nodes[step.of], region.nodes[step.of]
                if node.op_type != true.op_type:
                    known = attributes_of(node.op_type, twin.opset)
                    given = STAND_INS[true.op_type].inputs
                    count = len(true.input) if given is None else given
                    step = replace(
                        step,
                        attributes={key: value for key, value in step.attributes.items() if key in known},
                        sources={place: name for place, name in step.sources.items() if place < count},
                        edits={place: edits for place, edits in step.edits.items() if place < count},
                    )
            elif isinstance(step, Node) and step.op == "Cast" and step.attributes.get("to") in WIDTHS:
                step = replace(step, attributes={"to": int(TensorProto.FLOAT)})
            steps.append(step)
        return replace(region.fragment, steps=tuple(steps))

    def _whole(self, feeds: Feeds) -> Feeds:
        return {
            name: whole_numbers(self.rng, values.shape, -REACH, REACH).astype(np.float32)
            if is_float(values)
            else values
            for name, values in feeds.items()
        }

    def prove(self) -> Proof:
        """Run both and compare."""
        runtime = f"{self.runs.runtime.name}{'' if self.region.element == 'float32' else ' (float32 twin)'}"
        inputs, wanted = self._original()
        shapes = tuple(next(iter(feeds.values())).shape for feeds in inputs)
        done = functools.partial(Proof, shapes=shapes, backend=runtime, native_ran=True)
        try:
            with self.runs.opened(self.after) as session:
                got = [session.run(feeds) for feeds in inputs]
        except (CannotLoad, CannotRun) as error:  # what the original does not do: it is no model, or its sizes clash
            return done(elements=0, failure=f"it does not run: {error}", ran=not UNKNOWN.search(str(error)))
        failure = self._compared(inputs, wanted, got)
        if failure is None and self.region.chain.block and not self.rounds:
            few = [place for place, feeds in enumerate(inputs) if self.region.work(feeds) <= SPOIL_WORK] or [0]
            chosen = {few[-1 - place * (len(few) - 1) // 3] for place in range(4)}
            failure = self._spoiled([(inputs[place], wanted[place]) for place in sorted(chosen)])
        elements = sum(values.size for outputs in got for values in outputs.values())
        doubtful = self.rounds and any(node.op_type in STEPPING for node in self.region.nodes)
        return done(elements=elements, failure=failure, ran=failure is None or not doubtful)

    def _original(self) -> tuple[list[Feeds], list[dict[str, Array]]]:
        """Return what the original runs on, the smallest first, and what it gives."""
        inputs: list[Feeds] = []
        results: list[dict[str, Array]] = []
        why = "it runs on nothing"

        def run(session: Session, feeds: Feeds) -> None:
            nonlocal why
            try:
                results.append(session.run(feeds))
                inputs.append(feeds)
            except CannotRun as error:
                why = str(error)

        with self.runs.opened(self.before) as session:
            for feeds in self.region.cases():
                if len(inputs) < MOST_CASES:
                    run(session, self._whole(feeds))
            if not inputs:
                raise CannotRun(f"the original by itself: {why}")
            known = {_shapes(each) for each in inputs}
            room = MORE_WORK
            for feeds in self.region.more(inputs[0]):
                room -= self.region.work(feeds)
                if _shapes(feeds) not in known and room >= 0:
                    run(session, self._whole(feeds))
        return inputs, results

    def _compared(
        self, inputs: Sequence[Feeds], wanted: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]]
    ) -> str | None:
        for feeds, before, after in zip(inputs, wanted, got, strict=True):
            for name, values in before.items():
                problem = (_differs_much if self.rounds else differs)(after[name], values)
                if problem:
                    return f"output {name!r} on {_shapes(feeds)}: {problem}"
        return None

    def _spoiled(self, runs: Sequence[tuple[Feeds, Mapping[str, Array]]]) -> str | None:
        """Write something else into what the Convs make around the data; say what it changes."""
        convs = {str(number) for number in self.region.chain.convs}
        made = []
        for model in (self.before, self.after):
            with self.runs.opened(_telling(model, convs)) as session:
                made.append([session.run(feeds) for feeds, _ in runs])
        for (feeds, wanted), own, phased in zip(runs, *made, strict=True):
            masks = {tag: around(own[f"told/{tag}"], phased[f"told/{tag}"]) for tag in convs}
            found = {tag: mask for tag, mask in masks.items() if mask is not None and mask.any()}
            for value in SPOILS if found else ():
                spoiled = _behind(self.after, found, functools.partial(_spoil, around=found, value=value))
                with self.runs.opened(spoiled) as session:
                    failure = self._compared([feeds], [wanted], [session.run(feeds)])
                if failure is not None:
                    return f"with {value:g} around the data: {failure}"
        return None


def _over_space(region: Region, number: int) -> bool:
    """Say whether an operator sums over what phases take apart, for all that is known."""
    link, chain = region.chain.links[number], region.chain
    if not chain.block or not link.op.startswith("Reduce"):
        return bool(chain.block) and link.op in OVER_SPACE
    axes = link.attributes.get("axes") or (chain.integers.get(link.inputs[1]) if len(link.inputs) > 1 else None)
    return axes not in ((1,), (-1 - len(chain.block),))


def _shapes(feeds: Feeds) -> str:
    return ", ".join(str(list(values.shape)) for values in feeds.values())


def _differs_much(got: Array, wanted: Array) -> str | None:
    """Compare what was rounded: a mean over whole numbers is none."""
    if got.shape != wanted.shape or not is_float(wanted):
        return differs(got, wanted)
    scale = float(np.max(np.abs(wanted), initial=1.0))
    near = np.abs(got - wanted) <= 1e-4 * scale
    return None if near.all() else differs(np.where(near, wanted, got), wanted)


Small = Callable[[ModelProto, str, NodeProto, str, str], None]
"""Appends to a model what makes the tensor of the last name of the one before it, behind a node with that tag."""


def _behind(model: ModelProto, tags: Mapping[str, object] | set[str], small: Small) -> ModelProto:
    """Return a model with something behind the first output of each node whose tag is named."""
    result = copied(model)
    nodes = [copied(node) for node in result.graph.node]
    del result.graph.node[:]
    for node in nodes:
        result.graph.node.append(node)
        if node.doc_string in tags:
            name = node.output[0]
            raw = result.graph.node[-1].output[0] = f"{name}/{len(result.graph.node)}"
            small(result, node.doc_string, node, raw, name)
    return result


def _modulo(model: ModelProto, _: str, __: NodeProto, raw: str, name: str) -> None:
    if all(each.name != "modulus" for each in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.array(MODULUS, np.float32), "modulus"))
    model.graph.node.append(helper.make_node("Mod", [raw, "modulus"], [name], fmod=1))


def _clipped(model: ModelProto, _: str, __: NodeProto, raw: str, name: str, *, opset: int) -> None:
    if opset < 11:
        model.graph.node.append(helper.make_node("Clip", [raw], [name], min=-float(REACH), max=float(REACH)))
        return
    for word, value in (("low", -REACH), ("high", REACH)):
        if all(each.name != word for each in model.graph.initializer):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), word))
    model.graph.node.append(helper.make_node("Clip", [raw, "low", "high"], [name]))


def _spoil(
    model: ModelProto, tag: str, _: NodeProto, raw: str, name: str, *, around: Mapping[str, Array], value: float
) -> None:
    for word, values in ((f"around/{tag}", around[tag]), (f"spoil/{tag}", np.array(value, np.float32))):
        initializer = tensor(values)
        initializer.name = word
        model.graph.initializer.append(initializer)
    model.graph.node.append(helper.make_node("Where", [f"around/{tag}", f"spoil/{tag}", raw], [name]))


def _telling(model: ModelProto, tags: set[str]) -> ModelProto:
    """Return a model that gives what the nodes of these tags make, too."""
    result = copied(model)
    for node in model.graph.node:
        if node.doc_string in tags:
            told = f"told/{node.doc_string}"
            result.graph.node.append(helper.make_node("Identity", node.output[:1], [told]))
            result.graph.output.append(ValueInfoProto(name=told))
    return result


def around(own: Array, phased: Array) -> Array | None:
    """Return where the values of a Conv in phases, over all channels, occur nowhere in what the original one makes."""
    if own.ndim < 3 or phased.ndim < 3 or own.shape[1] != phased.shape[1]:
        return None
    names = np.random.default_rng(0).integers(1, 2**62, own.shape[1])

    def named(values: Array) -> Array:
        return np.asarray(np.moveaxis(values, 1, -1).astype(np.int64) @ names)

    return np.expand_dims(~np.isin(named(phased), named(own)), 1)
