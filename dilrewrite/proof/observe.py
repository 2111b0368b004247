"""Sees what enters the regions of a model: whole-model runs with the tensors that enter as outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dilrewrite.errors import DilrewriteError
from dilrewrite.forms.chain import Chain
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.model.walk import ScopePath, copied, resolve
from dilrewrite.proof.inputs import SMALL, Case, Chooser, Run
from dilrewrite.proof.roles import Convolutions
from dilrewrite.proof.trial import runnable
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Array, Options, Runnable, RuntimeFailure, Session
from dilrewrite.sites import Site

SOON_S = 10.0
"""No further sizes are tried after so many seconds; one that runs is always waited for."""

MOST_BYTES = 2**30
"""No more values are kept; the cases that do not fit are left out."""


class Observer:
    """What enters the regions of a model, seen when it is first asked for, in one set of runs for all regions."""

    def __init__(self, model: Model, regions: Sequence[Site], settings: Settings) -> None:
        self._model, self._settings = model, settings
        self._regions = [site for site in regions if site.scope == ScopePath() or self._loop(site) is not None]
        self._seen: list[dict[str, Array]] | None = None

    def of(self, site: Site) -> Sequence[Mapping[str, Array]]:
        """Return the values of the tensors that enter a region, one mapping for each set of inputs of the model.

        Those in the body of a Loop are of its first turn. There is none for a region further inside, in an If or in a
        function, and none where the model runs on nothing.
        """
        if site.scope != ScopePath() and self._loop(site) is None:
            return ()
        if self._seen is None:
            self._seen = self._runs()
        told, inner = self._told(site), self._inner(site)
        known = [case for case in self._seen if case.keys() >= set(told) and all(len(case[key]) for key in inner)]
        return [
            {name: case[key][0] if key in inner else case[key] for name, key in zip(site.inputs, told, strict=True)}
            for case in known
        ]

    def _loop(self, site: Site) -> int | None:
        """Return the place of the main graph's Loop that a region is in the body of."""
        path = site.scope
        if path.function is not None or len(path.steps) != 1 or path.steps[0][1] != "body":
            return None
        place = path.steps[0][0]
        return place if self._model.proto.graph.node[place].op_type == "Loop" else None

    def _told(self, site: Site) -> list[str]:
        """Return what the tensors that enter a region are called in what was seen: one of a body's own by its Loop."""
        place = self._loop(site)
        if place is None:
            return list(site.inputs)
        body = resolve(self._model.proto, site.scope)
        assert isinstance(body, GraphProto)
        own = {value.name for value in body.input} | {name for node in body.node for name in node.output}
        return [within(name, place) if name in own else name for name in site.inputs]

    def _inner(self, site: Site) -> dict[str, str]:
        """Return those that are of a body, by what they are called."""
        return {key: name for name, key in zip(site.inputs, self._told(site), strict=True) if key != name}

    def _runs(self) -> list[dict[str, Array]]:
        entering = dict.fromkeys(name for site in self._regions for name in self._told(site))
        try:
            proto = runnable(self._model, self._model.proto)
            given = {value.name for value in proto.graph.input}
            loops = self._loops() if proto is self._model.proto else {}
            made = {name for node in proto.graph.node for name in node.output}
            told = [name for name in entering if name in made]
            fixed = {
                tensor.name: read_tensor(self._model, tensor)
                for tensor in proto.graph.initializer
                if tensor.name in entering
            }
            more = [within(name, place) for place, names in loops.items() for name in names]
            data = telling(proto, told, loops).SerializeToString()
            options = Options(
                threads=self._settings.threads,
                optimize=False,
                custom_op_library=self._settings.custom_op_library,
                timeout_s=self._settings.timeout_s,
            )
            with self._settings.backend.session(Runnable(model=data, folder=self._model.folder), options) as session:
                return self._seen_in(session, proto, [*told, *more], fixed, given & set(entering))
        except (RuntimeFailure, DilrewriteError, ValueError):  # a model above 2 GB is no message: ValueError
            return []

    def _loops(self) -> dict[int, list[str]]:
        """Return which tensors of the bodies of Loops enter regions there."""
        found: dict[int, dict[str, None]] = {}
        for site in self._regions:
            place = self._loop(site)
            if place is not None:
                found.setdefault(place, {}).update(dict.fromkeys(self._inner(site).values()))
        return {place: list(names) for place, names in found.items()}

    def _seen_in(
        self, session: Session, proto: ModelProto, told: Sequence[str], fixed: Mapping[str, Array], given: set[str]
    ) -> list[dict[str, Array]]:
        names = list(told) or [value.name for value in proto.graph.output][:1]
        ran: dict[int, dict[str, Array]] = {}

        def run(feeds: Mapping[str, Array]) -> None:
            ran[id(feeds)] = session.run(feeds, names)

        seen: list[dict[str, Array]] = []
        held = 0
        for case in self._cases(session, proto, run):
            values = ran.pop(id(case.feeds))
            held += sum(array.nbytes for array in values.values())
            if held > MOST_BYTES:
                break
            own = {name: case.feeds[name] for name in given if name in case.feeds}
            seen.append({**fixed, **own, **{name: values[name] for name in told}})
        return seen

    def _cases(self, session: Session, proto: ModelProto, run: Run) -> Iterator[Case]:
        """Yield what was run on: what a verification runs on first, then some of its sizes, as long as it is quick."""
        convolutions = Convolutions(proto)
        chooser = Chooser(
            session.inputs,
            given=self._settings.shapes,
            user=self._settings.inputs,
            seed=self._settings.seed,
            roles=convolutions.roles(),
            channels=convolutions.channels(),
        )
        start = time.monotonic()
        first, sizes = chooser.first(run)
        yield first
        extents, batches = chooser.extents, chooser.batches
        base, step = max((sizes[extent] for extent in extents), default=0), self._step()
        even = max(-(-base // step), 1) * step
        lengths = {"not divisible": (even + 1, even - 1), "divisible": (even,), "smallest": SMALL} if extents else {}
        tries: list[tuple[str, Sequence[str], Sequence[int]]] = [
            *((name, extents, some) for name, some in lengths.items()),
            *([("batch", batches, (2, 3))] if batches else []),
        ]
        known = [first.shapes]
        for name, symbols, values in tries:
            if time.monotonic() - start > SOON_S:
                return
            fresh = ({**sizes, **dict.fromkeys(symbols, value)} for value in values)
            case = chooser.attempt(name, (each for each in fresh if chooser.shapes(each) not in known), run)
            if case is not None:
                known.append(case.shapes)
                yield case

    def _step(self) -> int:
        """Return what lengths are a multiple of in one case: all dilations, within reason."""
        chains = [site.meaning for site in self._regions if isinstance(site.meaning, Chain)]
        dilations = [d for chain in chains for geometry in chain.convs.values() for d in geometry.dilations]
        return min(max(math.lcm(*dilations), 2), 256)


def within(name: str, place: int) -> str:
    """Return what a tensor of a body is called outside of the Loop at this place: its values of all turns."""
    return f"{name}/{place}"


def telling(proto: ModelProto, names: Sequence[str], loops: Mapping[int, Sequence[str]]) -> ModelProto:
    """Return a copy of a model that gives these tensors, too, and those of the bodies of Loops, by their places."""
    result = copied(proto)
    graph = result.graph
    own = {value.name for value in graph.output}
    graph.output.extend(ValueInfoProto(name=name) for name in names if name not in own)
    for place, some in loops.items():
        loop = graph.node[place]
        body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
        loop.output.extend([""] * (len(body.output) - 1 - len(loop.output)))
        for name in some:
            scanned = within(name, place)
            body.node.append(helper.make_node("Identity", [name], [scanned]))
            body.output.append(ValueInfoProto(name=scanned))
            loop.output.append(scanned)
            graph.output.append(ValueInfoProto(name=scanned))
    return result
