"""What the benchmarks of timings share: where results go, the machine, and Markdown tables."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite import machine
from dilrewrite.model.elements import FLOATS
from dilrewrite.reports.report import environment
from dilrewrite.runtimes import TimedBackend

RESULTS = Path(__file__).parent / "results"
BUSY = 1.5
"""Above this load something else wants the cores."""
DOCS = Path(__file__).parents[1] / "docs"


def circumstances(backend: TimedBackend, threads: int | None) -> dict[str, Any]:
    """The machine, the runtime and the date."""
    load = machine.load()
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "backend": backend.name,
        "device": backend.device(),
        "versions": backend.versions(),
        "load_before": None if load is None else round(load, 2),
        "environment": dataclasses.asdict(environment(threads)),
    }


def heading(title: str, about: dict[str, Any]) -> list[str]:
    """The first lines of a page of results."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = f"; load before: {about['load_before']}" if about["load_before"] is not None else ""
    later = "".join(f" {what}: {when}." for what, when in about.get("added", {}).items())
    return [f"# {title}", "", f"{about['date']}; {about['device']}; {about['backend']}, {versions}{load}.{later}", ""]


def taken(about: dict[str, Any]) -> str:
    """When and where figures were taken, in a line; that the machine was busy where it was."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    busy = (about["load_before"] or 0) > BUSY
    load = f"; load before {about['load_before']}: **busy machine, for orientation only**" if busy else ""
    return f"{about['date']}, {about['device']}, {versions}{load}."


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; a column whose name starts with # holds numbers."""
    lines = [
        f"| {' | '.join(name.removeprefix('#') for name in columns)} |",
        f"|{'|'.join('---:' if name.startswith('#') else '---' for name in columns)}|",
    ]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def write(name: str, data: dict[str, Any], page: Sequence[str]) -> None:
    """Write results as JSON and Markdown."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(page).rstrip("\n") + "\n", encoding="utf-8")


def between(page: str, mark: str) -> re.Match[str] | None:
    """What stands between the markers `<!-- mark -->` and `<!-- /mark -->` of a page."""
    mark = re.escape(mark)
    return re.search(rf"(?<=^<!-- {mark} -->\n).*?(?=^<!-- /{mark} -->)", page, flags=re.MULTILINE | re.DOTALL)


def marked(mark: str, lines: Sequence[str]) -> list[str]:
    """Lines of a page of results between the markers by which `into_docs` finds them."""
    text = "\n".join(lines).rstrip("\n") + "\n"
    return [f"<!-- {mark} -->", *text.splitlines(), f"<!-- /{mark} -->"]


def into_docs(name: str, results: str, mark: str) -> None:
    """Copy what stands between markers in a page of results into a page of docs/, which must have them."""
    path = DOCS / name
    page = path.read_text(encoding="utf-8")
    place = between(page, mark)
    made = between((RESULTS / results).read_text(encoding="utf-8"), mark)
    if place is None or made is None:
        raise LookupError(f"docs/{name} or benchmarks/results/{results} has no markers {mark}")
    path.write_text(page[: place.start()] + made.group() + page[place.end() :], encoding="utf-8")


def retyped(model: ModelProto, element: str) -> ModelProto:
    """A copy of a model of our own with float32 replaced by `element` in values, constants and declarations."""
    twin = ModelProto()
    twin.CopyFrom(model)
    kind = FLOATS[element].number
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(FLOATS[element].dtype)
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=kind, dims=values.shape, raw_data=values.tobytes()))
    for value in (*twin.graph.input, *twin.graph.output, *twin.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for node in twin.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(attribute.t).astype(FLOATS[element].dtype)
                attribute.t.CopyFrom(TensorProto(data_type=kind, dims=values.shape, raw_data=values.tobytes()))
    return twin
