"""Puts forms of single Convs into a lifted chain: its other operators stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import FILL, CoreConv, Fragment, Node, Refusal, Step, X, reads
from dilrewrite.forms.strategies import plan
from dilrewrite.forms.strategies.lift import Lift, lifted


def with_forms(fragment: Fragment, chain: Chain, forms: Mapping[int, Lift]) -> Fragment | Refusal:
    """Return a lifted chain in which Convs have forms: `forms` by the place of the Conv among those of the chain.

    Refuses a form of several Convs, and one that fills with a zero point: the proof of regions knows neither.
    """
    steps: list[Step] = []
    constants = dict(fragment.constants)
    for step in fragment.steps:
        if not isinstance(step, CoreConv) or step.of not in forms:
            steps.append(step)
            continue
        geometry = lifted([*chain.convs.values()][step.of])
        name, strategy = forms[step.of].inner()
        inner = plan(name, strategy, geometry, fragment.opset)
        if isinstance(inner, Refusal):
            return inner
        if len(inner.core) != 1 or any(FILL in reads(one) for one in inner.steps):
            return Refusal(name, f"{len(inner.core)} Convs in the place of one in a chain")
        constants |= {f"{step.output}_{word}": values for word, values in inner.constants.items()}
        steps += _renamed(inner, step)
    return replace(fragment, steps=tuple(steps), constants=constants, region=True)


def _renamed(inner: Fragment, conv: CoreConv) -> Iterator[Step]:
    """Yield the steps of a form between what a Conv reads and what it makes, with names of their own."""

    def name(own: str) -> str:
        return {X: conv.source, inner.results[0]: conv.output, "": ""}.get(own, f"{conv.output}_{own}")

    for step in inner.steps:
        if isinstance(step, Node):
            inputs, outputs = tuple(map(name, step.inputs)), tuple(map(name, step.outputs))
            yield replace(step, inputs=inputs, outputs=outputs)
        elif isinstance(step, CoreConv):
            weight = (*conv.weight, *step.weight)
            source, output = name(step.source), name(step.output)
            yield replace(step, source=source, output=output, weight=weight, of=conv.of)
