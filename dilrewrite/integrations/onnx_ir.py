"""A pass of ONNX IR, for pipelines that hold models as `onnx_ir.Model`: those of ONNX Script and of torch's exporter.

>>> import onnx_ir as ir
>>> from dilrewrite.integrations.onnx_ir import DilatedConvPass
>>> ir.passes.Sequential(DilatedConvPass(budget=30))(ir.load("model.onnx"))  # doctest: +SKIP
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

import dilrewrite
from dilrewrite import keywords
from dilrewrite.errors import DilrewriteError
from dilrewrite.integrations import check, failure
from dilrewrite.model.tensors import InMemory

if sys.version_info >= (3, 11):
    from typing import Unpack
else:  # documentation tools look for it here
    from typing_extensions import Unpack

_WEIGHTS = "weights"  # the file that all large initializers are in while the pass runs


class DilatedConvPass(ir.passes.InPlacePass):
    """Rewrites the dilated Convs of a model as `dilrewrite.optimize` does: where it is faster, and proved equal.

    A model that is kept stays as it is, and so do the tensors of one that is rewritten, unless a form edits them.
    Models can have any size, and their weights in memory or in files. While the pass runs, a temporary folder holds a
    copy of the weights.

    Raises `onnx_ir.passes.PassError` when the model cannot be used or run, when results differ, and when dilation is
    left that `eliminate` should remove. The model is as it was then. The error of dilrewrite is its `__cause__`.
    """

    report: dilrewrite.Report | None = None
    """What the last run did. `None` before the first one."""

    @keywords.listed(keywords.Pass)
    def __init__(self, **options: Unpack[keywords.Pass]) -> None:
        """Take the options of `dilrewrite.optimize`. Raises `UsageError` for wrong ones."""
        check(options)
        self._options: dict[str, Any] = dict(options)

    def __repr__(self) -> str:
        """Return its name and options, for the errors of a sequence of passes."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder:
            file = Path(folder, "model.onnx")
            ir.save(model, file, external_data=_WEIGHTS)
            try:
                source = InMemory(file.read_bytes(), "the model in memory", Path(folder))
                report = dilrewrite.optimize(source, **self._options)
                self.report = replace(report, _held=None)
                if (error := failure(report)) is not None:
                    raise error
            except DilrewriteError as error:
                raise ir.passes.PassError(str(error)) from error
            if report.status != "rewritten":
                return ir.passes.PassResult(model, modified=False)
            assert report.model is not None
            rewritten = _read(report.model, model, ir.load(file))
        _carry_meta(model, rewritten)
        _become(model, rewritten)
        return ir.passes.PassResult(model, modified=True)


def _initializers(model: ir.Model) -> list[ir.Value]:
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def _read(proto: onnx.ModelProto, model: ir.Model, saved: ir.Model) -> ir.Model:
    """Return the rewritten model, with the tensors of the original where it refers to them.

    `saved`: the original as it was saved, which says where each of its tensors is in the file of weights.
    """
    kept = {
        copy.const_value.offset: value.const_value
        for value, copy in zip(_initializers(model), _initializers(saved), strict=True)
        if isinstance(copy.const_value, ir.ExternalTensor)
    }
    rewritten = ir.from_proto(proto)
    for value in _initializers(rewritten):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = kept[value.const_value.offset]
    return rewritten


def _pairs(old: ir.Model, new: ir.Model) -> Iterator[tuple[ir.Graph, ir.Graph]]:
    """Yield the graphs that are in both, first the old one's; a function whose call was written out is gone."""
    yield from zip(old.graphs(), new.graphs(), strict=False)
    yield from (
        (old.functions[name].graph, new.functions[name].graph) for name in old.functions if name in new.functions
    )


def _carry_meta(old: ir.Model, new: ir.Model) -> None:
    """Give what is still there the `meta` that it had, which no file holds."""
    for before, after in _pairs(old, new):
        after.meta.update(before.meta)
        known = {(node.op_type, node.outputs[0].name): node for node in before if node.outputs}
        for node in after:
            same = known.get((node.op_type, node.outputs[0].name)) if node.outputs else None
            if same is not None:
                node.meta.update(same.meta)
                for mine, its in zip(node.outputs, same.outputs, strict=False):
                    mine.meta.update(its.meta)


def _become(model: ir.Model, other: ir.Model) -> None:
    """Make `model` what `other` is."""
    model.graph, model.ir_version = other.graph, other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)
    model.metadata_props.clear()
    model.metadata_props.update(other.metadata_props)
