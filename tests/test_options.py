"""Every option is written once: the command line, the Python functions and the reports say the same of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import dilrewrite
from dilrewrite import cli, keywords
from dilrewrite.errors import UsageError
from dilrewrite.keywords import in_python
from dilrewrite.options import FLAVOURS, STAGES, Building, CommandOptions, Proving, Scope, every_option, sizes
from tests import models_for_tests as tiny

COMMANDS = ("inspect", "optimize", "fold", "verify", "bench", "build")

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
    with pytest.raises(TypeError, match=r"; did you mean 'budget'[?]$"):
        dilrewrite.optimize("a", bugdet_s=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^verify\(\) missing a required argument"):
        dilrewrite.verify("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^build_engine is 'x', no bool and no mapping"):
        dilrewrite.optimize("a", build_engine="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"budget": "x"}, "budget='x': a number or None is needed"),
        ({"only": ["a"]}, r"only=\['a'\]: text or None is needed"),
        ({"threads": 1.5}, "threads=1.5: a whole number or None is needed"),
        ({"max_dilation": True}, "max_dilation=True: a whole number is needed"),
        ({"eliminate": "yes"}, "eliminate='yes': True or False is needed"),
        ({"inputs": 3}, "inputs=3: a path or None is needed"),
        ({"shapes": {"x": (1, 4)}}, r"shapes={'x': \(1, 4\)}: a list of texts is needed"),
        ({"shapes": [1]}, r"shapes=\(1,\): a list of texts is needed"),
        ({"custom_op_library": [1]}, r"custom_op_library=\(1,\): a list of paths is needed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_another_kind_is_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        dilrewrite.optimize("a", **keywords)


def test_one_text_is_a_list_of_one() -> None:
    assert Proving.of({"shapes": "1x4x64"}).shapes == ("1x4x64",)
    assert Proving.of({"shapes": (text for text in ("x:1", "y:2"))}).shapes == ("x:1", "y:2")


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
        *("strategy", "eliminate", "max_dilation", "target", "allow_requantised", "lift_all", "only", "skip"),
        "decisions",
        *("shapes", "inputs", "verify", "rtol", "atol", "seed", "threads", "custom_op_library"),
        *("external_data", "dry_run", "force", "save_decisions", "keep_micro"),
        *("backend", "budget", "min_gain_percent", "cache", "no_cache"),
    ]


ROOT = Path(__file__).parents[1]


def sections(page: str) -> dict[str, str]:
    """What stands under each heading of a `--help`."""
    parts = re.split(r"^(\S.*):$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (" ".join(part.split()) for part in parts[2::2]), strict=True))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_stands_in_its_group(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With all of its help. The groups come from the options, and no option is left over."""
    assert cli.main([command, "--help"]) == 0
    shown = sections(capsys.readouterr().out)
    run = importlib.import_module(f"dilrewrite.cli.{command}").run
    flags: set[str] = {"--help"}
    for option in run.options.values():
        assert bool(option.group) == bool(option.flags), option
        assert option.help.rstrip(".") in shown[option.group or "Arguments"]
        for flag in option.flags.split():
            assert re.search(rf"(^| ){flag}( |,)", shown[option.group]), flag
            flags.add(flag)
    groups = {text for name, text in shown.items() if name != "Examples"}
    assert {flag for text in groups for flag in re.findall(r"(?<=[ ^])--[a-z][a-z-]+(?= [A-Z0-9])", text)} <= flags


def test_the_page_of_the_docs_has_every_option() -> None:
    """Run `python scripts/options_page.py > docs/options.md` when it differs."""
    script = ROOT / "scripts" / "options_page.py"
    spec = importlib.util.spec_from_file_location("options_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page
    for command in cli.COMMANDS:
        part = page.partition(f"## dilrewrite {command}\n")[2].partition("\n## ")[0]
        run = importlib.import_module(f"dilrewrite.cli.{command}").run
        for option in run.options.values():
            group = part.partition(f"### {option.group or 'Arguments'}\n")[2].partition("\n### ")[0]
            spelled = ", ".join(option.flags.split()) or option.metavar
            assert f"\n| `{spelled}" in group


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_examples_are_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is a command line of its command whose options pass all checks that need no model."""
    run = importlib.import_module(f"dilrewrite.cli.{command}").run
    assert run.examples
    for purpose, arguments in run.examples:
        assert len(purpose) < 78
        assert len(arguments) < 78 - len("dilrewrite ")
        assert arguments.split()[0] == command
        code = cli.main([*shlex.split(arguments), "--help"])
        assert (code, capsys.readouterr().err) == (0, "")
    if command not in ("optimize", "verify", "bench", "build"):
        return
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(dilrewrite, command, lambda *_, **options: given.append(options) or (_ for _ in ()).throw(Stop))
    for _, arguments in run.examples:
        with pytest.raises(Stop):
            cli.main(shlex.split(arguments))
        options = given[-1]
        for name in ("progress", "tell", "build_engine"):
            options.pop(name, None)
        CommandOptions.of(**options | ({"report": None} if options.get("report") == "beside" else {})).check()


class Stop(Exception):  # noqa: N818 - no error
    """Ends a command before its work."""


def test_names_are_read_as_they_were_meant() -> None:
    options = CommandOptions.of(precision="INT8_QDQ", flavour="tensorrt_rtx", external_data="Copy")
    assert options.building is not None
    assert (options.building.precision, options.building.flavour) == ("int8-qdq", FLAVOURS[2])
    assert options.places.external_data == "copy"
    with pytest.raises(UsageError, match=r"^--verify sitse: not one of full, sites, none; did you mean sites[?]$"):
        CommandOptions.of(verify="sitse").check()
    with pytest.raises(UsageError, match=r"^--verify x: not one of full, sites, none$"):
        CommandOptions.of(verify="x").check()


def test_sizes() -> None:
    assert sizes("min", ["x:1x3", "y:2,4", "5"], ["only"]) == {"x": (1, 3), "y": (2, 4), "only": (5,)}
    assert sizes("min", ["1,3"]) == {"": (1, 3)}
    for text in ("x:0x3", "x:", "", ":1", "x:1x", "x:" + "9" * 11):
        with pytest.raises(UsageError, match=r"not NAME:SIZExSIZE... of sizes from 1 up; for example --min x:1x3"):
            sizes("min", [text])


@pytest.mark.parametrize(
    ("typed", "spoken"),
    [
        ("--rtol -1.0: a finite number is needed", "rtol=-1.0: a finite number is needed"),
        ("--verify bogus: not one of full", 'verify="bogus": not one of full'),
        ("--verify none works only with --strategy", 'verify="none" works only with strategy'),
        (
            "give --force to replace it or -o for another place",
            "give force=True to replace it or output for another place",
        ),
        ("for example --shape input:1x3x224x224", 'for example shapes=["input:1x3x224x224"]'),
        (
            "give it with --inputs FILE.npz, or sizes with --shape",
            'give it with inputs="FILE.npz", or sizes with shapes',
        ),
        (
            "nothing was measured: without --budget 0 every form is timed",
            "nothing was measured: without budget=0 every form is timed",
        ),
        ("ask for one with --build-engine", "ask for one with build_engine=True"),
        ("trtexec takes --stronglyTyped and --what-else", "trtexec takes --stronglyTyped and --what-else"),
        ("a --b-o c", "a --b-o c"),
    ],
)
def test_messages_speak_python(typed: str, spoken: str) -> None:
    assert in_python(typed) == spoken


def test_python_hears_keywords_and_the_shell_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.onnx"
    with pytest.raises(UsageError, match=r"^min_gain_percent=200: a percentage"):
        dilrewrite.optimize(model, min_gain_percent=200)
    assert cli.main(["optimize", str(model), "--min-gain", "200"]) == 2
    assert capsys.readouterr().err.startswith("dilrewrite: --min-gain 200: a percentage")
    assert "--" not in (dilrewrite.optimize.__doc__ or "")


def test_notes_of_a_report_name_what_the_caller_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save(tiny.conv1d(), tmp_path / "m.onnx")
    report = dilrewrite.optimize(model, dry_run=True, skip="none")
    assert report.notes == ("skip none matches no dilated node",)
    assert cli.main(["optimize", str(model), "--dry-run", "--skip", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["--skip none matches no dilated node"]
    assert dilrewrite.optimize(model, dry_run=True, skip="none").notes == report.notes, "the command line has ended"
