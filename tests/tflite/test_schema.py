"""The numbers of TFLite's schema, held to the classes that ai-edge-litert ships."""

from __future__ import annotations

import inspect
import re

import pytest

from dilrewrite.tflite import schema


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def test_the_numbers_are_those_of_the_published_classes() -> None:
    published = pytest.importorskip(
        "ai_edge_litert.schema_py_generated", reason="scripts/runtimes.sh has ai-edge-litert"
    )

    for name, number in schema.OPERATORS.items():
        assert getattr(published.BuiltinOperator, name) == number, name
    for name, number in schema.OPTIONS.items():
        assert getattr(published.BuiltinOptions, name) == number, name
    for kinds, own in (
        (published.TensorType, schema.TYPES),
        (published.Padding, schema.PADDING),
        (published.ActivationFunctionType, schema.ACTIVATIONS),
    ):
        assert {name: getattr(kinds, name) for name in own} == own
    text = inspect.getsource(published)
    for table, fields in schema.FIELDS.items():
        for name, (number, kind) in fields.items():
            added = re.search(rf"def {table}Add{camel(name)}\(builder.*\n.*Prepend(\w+)Slot\((\d+), .*, (\S+)\)", text)
            assert added is not None, (table, name)
            of = "UOffsetTRelative" if kind[0] in "[TS" or kind == "Bytes" else kind
            assert (added[1], int(added[2])) == (of, number), (table, name)
            if of == kind and table != "OperatorCode":  # whose version is always written
                assert float(added[3].replace("False", "0")) == schema.DEFAULTS.get(name, 0), (table, name)
