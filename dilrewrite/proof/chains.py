"""Proves a fragment of a region: bit for bit on whole numbers, with what lies around the data spoiled, and on reals.

**Whole numbers.** The region's nodes, cut out as a model of their own, run before and after `splice.rewrite` put the
fragment in their place, at the sizes that were seen. In both the operators that are not exact have an exact stand-in of
the same kind (`standins.py`), weights are small whole numbers, and every sum is made small again (modulo 7), so that no
sum leaves the whole numbers that float32 holds. Equal bit for bit proves the layout: what is read from where, in which
order, with which pads, cuts and masks. That a stand-in commutes exactly where the true operator does is proved once per
row of the tables, by their own tests.

**Around the data.** In phases each Conv also makes samples that no output may depend on. They are told from the others
by their values, which occur nowhere in what the original Conv makes, and replaced by NaN and by large numbers.

**Reals.** The true operators with the true weights, against float64: what a stand-in hides shows here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from onnx import TensorProto

from dilrewrite.forms.fragment import Fragment
from dilrewrite.proof.carve import Source
from dilrewrite.proof.cut import constants_of
from dilrewrite.proof.proof import Proof
from dilrewrite.proof.reals import measured
from dilrewrite.proof.region import Feeds, Region, Runs
from dilrewrite.proof.whole import Exact
from dilrewrite.runtimes import Array, CannotLoad, CannotRun
from dilrewrite.sites import Site


class ChainProver:
    """Proves fragments of regions; equal questions are asked once. `read` gives a constant's values."""

    def __init__(self, *, seed: int, threads: int | None, read: Callable[[TensorProto], Array]) -> None:
        self.runs, self.read = Runs(seed=seed, threads=threads), read
        self._known: dict[tuple[object, ...], Proof] = {}

    def prove(self, source: Source, site: Site, fragment: Fragment, seen: Sequence[Feeds]) -> Proof:
        """Return the proof of a region's fragment; `seen`: what entered the region in runs of the whole model."""
        failed = functools.partial(Proof, shapes=(), elements=0, backend="none", native_ran=False, ran=False)
        try:
            constants = constants_of(source, site, self.read)
            region = Region(self.runs, source, site, fragment, constants, seen)
        except LookupError as error:
            return failed(failure=str(error))
        key = region.outline
        if key not in self._known:
            try:
                self._known[key] = self._prove(region)
            except (LookupError, CannotLoad, CannotRun) as error:
                self._known[key] = failed(failure=str(error))
        return self._known[key]

    def _prove(self, region: Region) -> Proof:
        proof = Exact(self.runs, region).prove()
        if not proof.passed:
            return proof
        try:
            rounding = measured(self.runs, region)
        except (CannotLoad, CannotRun) as error:
            return replace(proof, failure=f"rounding: {error}", ran=False)
        failure = None
        if not rounding.passed:
            share, native, limit = rounding.new_error, rounding.native_error, rounding.limit
            failure = f"rounding: error {share:.3g} of the largest output, native {native:.3g}, limit {limit:.3g}"
        return replace(proof, rounding=rounding, failure=failure)
