"""Where the model's time goes: one profiled run gives every dilated Conv its share of it, and the shapes it ran with.

Two profiles: one run of ONNX Runtime on the CPU with graph optimisations off, in which every node runs as it stands and
tells its shapes (in Loop bodies too), and some runs of the runtime to time on, which tell the time.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.walk import Container, ScopePath, copied, scopes, subgraphs
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import (
    Array,
    Options,
    Profile,
    Runnable,
    RuntimeFailure,
    TimedBackend,
    TimedOut,
    profiled,
    timed_backends,
)
from dilrewrite.sites import Place, Site
from dilrewrite.sites.operators import operator_of

PARTS = 3
"""How many parts the timed runs are divided into: shares that each part tells alone are the spread of a share."""

FEWEST_RUNS, MOST_RUNS, RUNS_S = PARTS, 10 * PARTS, 3.0
"""How many runs are timed, besides one to warm up: as many as fit into some seconds, within limits."""

EVENTS = 30_000
"""How many runs of nodes are timed in all, about."""

_TOKEN = re.compile(r"dilrewrite_(\d+)_")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRun:
    """How a site ran: its share of the model's time (`None`: not told), its input shapes, how often it ran in one run.

    `interval`: the least and the most that the share may be, by parts of the runs. `shapes` are the distinct ones, most
    frequent first; none when it did not run at all.
    """

    share: float | None
    shapes: tuple[Shape, ...]
    times: int
    interval: tuple[float, float] | None = None


UNSEEN = SiteRun(share=None, shapes=(), times=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """A profiled model: seconds of one run, how every site ran by its key, and shapes of tensors by scope and name."""

    seconds: float
    sites: Mapping[str, SiteRun]
    tensors: Mapping[tuple[ScopePath, str], Shape]


def traced(proto: ModelProto) -> tuple[ModelProto, list[Place]]:
    """Return a copy in which every node has a name of its own, and the node that each number in a name stands for."""
    copy = copied(proto)
    places: list[Place] = []
    for path, container in scopes(copy):
        for index, node in enumerate(container.node):
            node.name = f"dilrewrite_{len(places)}_"
            places.append((path, index))
    return copy, places


def runs(run_s: float, nodes: int = 1, within_s: float = math.inf) -> int:
    """Return how many runs of a model that takes `run_s` seconds, about, are timed: as many in each part.

    The runtime writes a line for every run of each of the `nodes`, which takes its time too. 0: the fewest, and one to
    warm up, take longer than `within_s`.
    """
    if (FEWEST_RUNS + 1) * run_s > within_s:
        return 0
    fit = int(min(RUNS_S / run_s, MOST_RUNS, EVENTS // max(nodes, 1))) if run_s > 0 else FEWEST_RUNS
    return max(FEWEST_RUNS, fit - fit % PARTS)


def profile(
    backend: TimedBackend,
    subject: Subject,
    sites: Sequence[Site],
    options: Options,
    feeds: Mapping[str, Array],
    within_s: float = math.inf,
) -> Profiled:
    """Profile a model on `feeds`: one run, and where they fit into `within_s` seconds some more that tell the time.

    Raises CannotLoad, CannotRun or Crashed when it does not run, TimedOut when one run is too slow under the profiler.
    Where only the run without optimisations fails, shapes stay unknown.
    """
    copy, places = traced(subject.proto)
    runnable = Runnable(model=copy.SerializeToString(), folder=subject.folder)
    try:
        cpu = timed_backends()["onnxruntime_cpu"]
        plain = profiled(cpu, runnable, replace(options, optimize=False), feeds, 0)
    except RuntimeFailure:
        plain = Profile(seconds=(), nodes=())
    try:
        timed = profiled(backend, runnable, options, feeds, 0)
    except RuntimeFailure as error:
        raise type(error)(_given(str(error), subject.proto, places)) from error
    count = runs(sum(timed.seconds), len(places), within_s)
    if count:
        with contextlib.suppress(TimedOut):
            timed = profiled(backend, runnable, options, feeds, count)
    return digest(copy, places, sites, plain, timed)


def _given(words: str, proto: ModelProto, places: Sequence[Place]) -> str:
    """Return a runtime's words about a `traced` copy with the names that the nodes have in the model."""
    containers = dict(scopes(proto))

    def name(found: re.Match[str]) -> str:
        place = _place(found.group(), places)
        return found.group() if place is None else containers[place[0]].node[place[1]].name

    return _TOKEN.sub(name, words)


def digest(
    proto: ModelProto, places: Sequence[Place], sites: Sequence[Site], plain: Profile, timed: Profile
) -> Profiled:
    """Return what two profiles of a `traced` model say: `plain` of the shapes, `timed` of the time."""
    containers = dict(scopes(proto))
    tensors: dict[tuple[ScopePath, str], Counter[Shape]] = defaultdict(Counter)
    ran: dict[Place, Counter[Shape]] = defaultdict(Counter)
    for run in plain.nodes:
        place = _place(run.name, places)
        if place is None:
            continue
        node = containers[place[0]].node[place[1]]
        for names, shapes in ((node.input, run.inputs), (node.output, run.outputs)):
            present = [name for name in names if name]
            if len(present) != len(shapes):
                continue
            for name, shape in zip(present, shapes, strict=True):
                if shape is not None:
                    tensors[place[0], name][shape] += 1
        if run.inputs and run.inputs[0] is not None:
            ran[place][run.inputs[0]] += 1
    times = _Times.of(containers, places, sites, timed)
    found = {}
    for site in sites:
        counts = ran[site.scope, site.part.index]
        folds = isinstance(site.meaning, Sandwich)
        entered = tensors[site.scope, site.inputs[0]] if folds else ran[site.scope, site.nodes[0]]
        share, interval = times.share([(site.scope, index) for index in site.nodes])
        if plain.nodes and not counts:
            share, interval = 0.0, (0.0, 0.0)
        found[site.key] = SiteRun(
            share=share,
            interval=interval,
            shapes=() if isinstance(site.meaning, Chain) else tuple(shape for shape, _ in entered.most_common()),
            times=sum(counts.values()),
        )
    return Profiled(
        seconds=sorted(timed.seconds)[timed.runs // 2] if timed.runs else 0.0,
        sites=found,
        tensors={key: counts.most_common(1)[0][0] for key, counts in tensors.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """Seconds of every node by run, and what the model takes: by all runs, and the most by one of the `parts` of them.

    What holds up a run (another process, an interrupt) can only make a node slower. So each node stands with its
    quickest run, and the model with the sum of these and the least time outside of nodes: no load moves that much.
    """

    nodes: Mapping[Place | str, Mapping[int, float]]
    parts: Sequence[Sequence[int]]
    whole: float
    longest: float

    @classmethod
    def of(
        cls, containers: Mapping[ScopePath, Container], places: Sequence[Place], sites: Sequence[Site], timed: Profile
    ) -> _Times:
        """Return the times of a profile; nodes that hold graphs are left out, as the nodes inside have that time."""
        by_output, wanted = _outputs(containers, sites), {(site.scope, site.part.index) for site in sites}
        nodes: dict[Place | str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        outside = dict(enumerate(timed.seconds))
        for run in timed.nodes:
            place = _place(run.name, places, wanted)
            if place not in wanted:
                place = by_output.get(run.stands_for or run.name, place)
            if run.run not in outside or (place and any(subgraphs(containers[place[0]].node[place[1]]))):
                continue
            nodes[place or run.name][run.run] += run.seconds
            outside[run.run] -= run.seconds

        def whole(runs: Sequence[int]) -> float:
            return sum(_least(times, runs) or 0.0 for times in nodes.values()) + max(_least(outside, runs) or 0.0, 0.0)

        parts = [range(part, len(outside), PARTS) for part in range(min(PARTS, len(outside)))]
        return cls(
            nodes=nodes, parts=parts, whole=whole(range(len(outside))), longest=max(map(whole, parts), default=0)
        )

    def share(self, places: Sequence[Place]) -> tuple[float | None, tuple[float, float] | None]:
        """Return the share of the model's time of some nodes, and its interval; `None` where no profile tells of one.

        A node of several that is not told of is part of another.
        """
        quickest = [[_least(self.nodes.get(place, {}), part) for place in places] for part in self.parts]
        known = [sum(filter(None, seconds)) for seconds in quickest if seconds != [None] * len(places)]
        if not known or self.whole <= 0:
            return None, None
        least, most = min(known), max(known)
        return min(least / self.whole, 1.0), (min(least / self.longest, 1.0), min(most / self.whole, 1.0))


def _least(times: Mapping[int, float], runs: Sequence[int]) -> float | None:
    """Return the least of the runs in which something ran."""
    return min((times[run] for run in runs if run in times), default=None)


def _place(name: str, places: Sequence[Place], wanted: Collection[Place] = ()) -> Place | None:
    """Return the node that a name stands for; of several fused into one, the first that is `wanted`, or the first."""
    found = [places[int(number)] for number in _TOKEN.findall(name) if int(number) < len(places)]
    return next((place for place in found if place in wanted), found[0] if found else None)


def _outputs(containers: Mapping[ScopePath, Container], sites: Sequence[Site]) -> dict[str, Place]:
    """Return the tensors after which a runtime may name a site's Conv: its output, and what is fused into it.

    A name that two sites could have, or that is made in two places, stands for none.
    """
    made = Counter(name for container in containers.values() for node in container.node for name in node.output)
    readers: dict[tuple[ScopePath, str], list[int]] = defaultdict(list)
    for scope in {site.scope for site in sites}:
        for index, node in enumerate(containers[scope].node):
            for name in node.input:
                readers[scope, name].append(index)
    found: dict[str, Place | None] = {}
    for site in sites:
        if isinstance(site.meaning, Chain):
            continue
        container = containers[site.scope]
        name = container.node[site.part.index].output[0]
        for _ in range(5):
            found[name] = None if name in found or made[name] > 1 else (site.scope, site.part.index)
            following = [container.node[index] for index in readers.get((site.scope, name), ())]
            if len(following) != 1 or operator_of(following[0]) or len(following[0].output) != 1:
                break
            name = following[0].output[0]
    return {name: place for name, place in found.items() if place is not None}
