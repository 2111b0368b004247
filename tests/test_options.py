"""Every option is written once: the command line, the Python functions and the reports say the same of it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import dilrewrite
from dilrewrite import cli, keywords
from dilrewrite.options import STAGES, Building, CommandOptions, Scope, every_option

COMMANDS = ("inspect", "optimize", "verify", "bench", "build")

CLI_ONLY = {"as_json", "quiet", "no_report", "verbose"}
PYTHON_ONLY = {"progress", "tell"}


def command_line(command: str) -> dict[str, inspect.Parameter]:
    module = __import__(f"dilrewrite.cli.{command}", fromlist=["run"])
    return dict(inspect.signature(module.run).parameters)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line_and_python_have_the_same_options(command: str) -> None:
    python = dict(inspect.signature(getattr(dilrewrite, command)).parameters)
    shell = command_line(command)
    building = set(Building.options()) if command == "optimize" else set()
    assert set(shell) - CLI_ONLY - building == set(python) - PYTHON_ONLY
    for name in set(shell) & set(python):
        assert (shell[name].default or ()) == (python[name].default or ()), name


@pytest.mark.parametrize("command", COMMANDS)
def test_keywords_are_options_of_their_types(command: str) -> None:
    """What a type checker sees takes in what the option holds."""
    kinds = get_type_hints(getattr(keywords, command.capitalize()))
    for name, kind in kinds.items():
        if name in PYTHON_ONLY | {"build_engine"}:
            continue
        held = str(every_option()[name].kind)
        assert ("None" in held) == (type(None) in get_args(kind)) or (command, name) == ("bench", "budget"), name
        assert ("Path" in held) == ("PathLike" in str(kind)), name
        assert held.startswith("tuple") == ("Sequence" in str(kind)), name


def test_stages_are_small_and_share_no_name() -> None:
    names = [name for stage in STAGES.values() for name in stage.options()]
    assert len(names) == len(set(names))
    for stage in STAGES.values():
        assert len(dataclasses.fields(stage)) <= 15  # type: ignore[arg-type]
        assert set(stage.options()) == {one.name for one in dataclasses.fields(stage)}  # type: ignore[arg-type]


def test_flags_are_unique_in_a_command() -> None:
    for command in COMMANDS:
        flags = [flag for one in command_line(command).values() for flag in flags_of(one)]
        assert len(flags) == len(set(flags))


def flags_of(parameter: inspect.Parameter) -> tuple[str, ...]:
    return tuple(parameter.annotation.__metadata__[0].param_decls or ())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dilrewrite.verify("a", "b", strategy="keep"), "strategy"),  # type: ignore[call-arg]
        (lambda: dilrewrite.bench("a", patience=1), "patience"),  # type: ignore[call-arg]
        (lambda: dilrewrite.optimize("a", build_engine={"speed": 1}), "speed"),
    ],
    ids=["of another command", "unknown", "unknown of an engine"],
)
def test_an_unknown_keyword(call: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        call()


def test_a_wrong_call_names_the_function() -> None:
    with pytest.raises(TypeError, match=r"^optimize\(\) got an unexpected keyword argument 'bugdet'"):
        dilrewrite.optimize("a", bugdet=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^verify\(\) missing a required argument"):
        dilrewrite.verify("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^build_engine is 'x', no bool and no mapping"):
        dilrewrite.optimize("a", build_engine="x")  # type: ignore[arg-type]


def test_strings_become_paths_and_sequences_tuples() -> None:
    options = CommandOptions.of(inputs="a.npz", shapes=["x:1"], custom_op_library=["l.so"], cache=None)
    assert options.proving.inputs == Path("a.npz")
    assert options.proving.shapes == ("x:1",)
    assert options.proving.custom_op_library == (Path("l.so"),)
    assert options.measuring.cache is None
    assert options.scope == Scope()


def test_what_a_report_tells() -> None:
    """Everything but places of files that have their own field, and what is built, which is told apart."""
    assert list(CommandOptions().plain()) == [
        *("strategy", "eliminate", "max_dilation", "lift_all", "only", "skip", "decisions"),
        *("shapes", "inputs", "verify", "rtol", "atol", "seed", "threads", "custom_op_library"),
        *("external_data", "dry_run", "force", "save_decisions", "keep_micro"),
        *("backend", "budget", "min_gain_percent", "cache", "no_cache"),
    ]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option is on the page of each command that takes it, with its help."""
    for command in COMMANDS:
        assert cli.main([command, "--help"]) == 0
        page = " ".join(capsys.readouterr().out.split())
        for parameter in command_line(command).values():
            for flag in flags_of(parameter):
                assert flag in page
            assert parameter.annotation.__metadata__[0].help.split()[0] in page
