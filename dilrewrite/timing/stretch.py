"""Builds what is timed for a region: its nodes as a model, on inputs of the sizes that they had in the profiled run.

Values play no part, so regions of equal operators, sizes and types are one question. Sizes that the model does not know
stay unknown in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from dilrewrite.forms.chain import Chain
from dilrewrite.model.elements import NUMBERED
from dilrewrite.model.light import Typed
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.carve import Source
from dilrewrite.proof.cut import constants_of, cut
from dilrewrite.proof.inputs import random_values
from dilrewrite.runtimes import Array, Io
from dilrewrite.sites import Site
from dilrewrite.splice.editor import Reader
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.profiling import Profiled

Types = Mapping[tuple[ScopePath, str], Typed]
"""Element types and shapes of a model's tensors, by scope and name."""


def ask(source: Source, site: Site, profiled: Profiled, types: Types, read: Reader) -> Question:
    """Return the question of a region of `source`, whose tensors' values `read` returns.

    Raises LookupError when the type or size of a tensor that enters is not known.
    """
    feeds: dict[str, Array] = {}
    elements: dict[str, str] = {}
    for name in site.inputs:
        element, _ = types.get((site.scope, name), (0, None))
        shape = profiled.tensors.get((site.scope, name))
        if shape is None or element not in NUMBERED:
            raise LookupError(f"the size or type of {name!r}, which enters, is not known")
        elements[name] = NUMBERED[element].name
        io = Io(name=name, element=elements[name], shape=shape)
        feeds[name] = random_values(io, shape, np.random.default_rng(len(feeds)))
    nodes = source.scope(site.scope).nodes
    alone = cut(site, [nodes[place] for place in site.nodes], constants_of(source, site, read), elements)
    assert isinstance(site.meaning, Chain)
    text = repr((site.meaning.text(), site.opset, [(each.shape, each.dtype) for each in feeds.values()]))
    key = hashlib.sha256(f"region {text}".encode()).hexdigest()
    return Question(key=key, model=alone.model, site=alone.site, feeds=feeds, neighbours=())
