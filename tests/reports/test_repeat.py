"""The command line that does it again: the real parser reads from it what the report was made with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import dilrewrite
from dilrewrite.cli import _app
from dilrewrite.options import Building, CommandOptions
from dilrewrite.reports.content.repeat import command_line, given
from dilrewrite.reports.report import Report
from tests.reports.examples import AFTER, REPORTS, report

ROOT = Path(__file__).parents[2]

GIVEN: dict[str, dict[str, Any]] = {
    "optimize": {
        "strategy": "tap_sum:limit_nodes=9",
        "only": "a b|c'$d",
        "shapes": ("x:1x3x8x8", "y:1x4"),
        "threads": 2,
        "seed": 0,
        "budget": 0.0,
        "rtol": 1e-7,
        "min_gain_percent": 5.0,
        "cache": Path("some where/cache.json"),
        "verify": "sites",
        "force": True,
    },
    "bench": {"backend": "onnxruntime_cpu", "budget": 7.5, "shapes": ("x:1x3",)},
    "verify": {"rtol": 0.0, "atol": 0.5, "seed": 3},
    "inspect": {"max_dilation": 3},
}


def made(command: str, options: dict[str, Any], **changes: Any) -> Report:
    plain = CommandOptions.of(**options).plain()
    two = command in ("bench", "verify")
    return report("any", command=command, options=plain, after=AFTER if two else None, **changes)


def parsed(line: str) -> dict[str, Any]:
    """What the command line's parser makes of a line, without the options that were not given."""
    program, name, *words = shlex.split(line)
    assert program == "dilrewrite"
    group = typer.main.get_command(_app())
    context = group.commands[name].make_context(name, words)  # type: ignore[attr-defined]
    return {key: value for key, value in context.params.items() if context.get_parameter_source(key).name != "DEFAULT"}


@pytest.mark.parametrize("command", GIVEN)
def test_the_parser_reads_back_what_was_set(command: str) -> None:
    found = parsed(command_line(made(command, GIVEN[command])))
    models = {name: found.pop(name) for name in ("model", "other", "before", "after") if name in found}
    assert list(models.values()) == [Path("models/x.onnx"), *([Path(AFTER.path)] if len(models) > 1 else [])]
    assert len(models) == 1 + (command in ("bench", "verify"))
    wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in GIVEN[command].items() if k != "seed" or v}
    found.pop("profile", None)  # the options of timing are there: it was profiled
    assert found == wanted


@pytest.mark.parametrize("name", REPORTS)
def test_every_example_has_a_command_that_parses(name: str) -> None:
    if REPORTS[name].before.path.startswith("models/x") and "odd" not in name:
        assert parsed(command_line(REPORTS[name]))


def test_an_output_is_named_unless_it_is_the_usual_one_and_is_replaced() -> None:
    usual = made("optimize", {}, output="models/x.dilrewrite.onnx")
    assert command_line(usual) == "dilrewrite optimize models/x.onnx --force"
    other = replace(usual, output="y.onnx", files=("y.report/report.html",))
    assert command_line(other) == "dilrewrite optimize models/x.onnx -o y.onnx --force"
    assert command_line(replace(other, files=("r/report.html",))).endswith(" --force --report r")
    assert command_line(replace(made("inspect", {}), options={"max_dilation": 1}, files=("r/report.md",))) == (
        "dilrewrite inspect models/x.onnx --report r"
    )


def test_an_engine_is_built_again() -> None:
    building = Building(flavour="tensorrt-rtx", minima=("x:1x3",), precision="fp16", refit=True)
    built = made("optimize", {})
    built = replace(built, options={**built.options, "build_engine": building.plain()})
    found = parsed(command_line(built))
    assert (found["build_engine"], found["flavour"], found["minima"]) == (True, "tensorrt-rtx", ["x:1x3"])
    assert (found["precision"], found["refit"]) == ("fp16", True)
    plain = replace(built, command="build", options={**CommandOptions().plain(), **building.plain()})
    found = parsed(command_line(plain))
    assert (found["flavour"], found["minima"], "build_engine" in found) == ("tensorrt-rtx", ["x:1x3"], False)


def test_a_model_in_memory_has_no_command() -> None:
    held = (ROOT / "models" / "causal_tcn.onnx").read_bytes()
    assert command_line(dilrewrite.inspect(held)) == ""
    assert command_line(dilrewrite.verify(held, ROOT / "models" / "causal_tcn.onnx")) == ""


def test_nothing_that_is_the_default_is_given() -> None:
    assert given(made("optimize", {})) == {}
    assert given(made("bench", {"budget": 20.0})) == {}
    assert given(made("optimize", {"budget": 20.0})) == {"budget": 20.0}
