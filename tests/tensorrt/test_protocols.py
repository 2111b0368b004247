"""The contract with TensorRT's bindings: what dilrewrite names of them is in the record of all three flavours.

The record, `trt_bindings.json`, is read off the real bindings by scripts/record_trt_bindings.py. Everything here reads
source texts: nothing of TensorRT needs to be installed, but for the last test.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dilrewrite

PACKAGE = Path(str(dilrewrite.__file__)).parent
RECORD: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("trt_bindings.json").read_text(encoding="utf-8")
)
PROTOCOLS = "tensorrt/protocols.py"
BINDINGS = "tensorrt/bindings.py"

Texts = Mapping[str, str]
Record = Mapping[str, Mapping[str, Any]]


@functools.cache
def texts() -> dict[str, str]:
    """All of the package's files, by path."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """All nodes of a text's syntax tree; nobody changes them."""
    return tuple(ast.walk(ast.parse(text)))


def holds_objects(text: str) -> bool:
    """Whether a file has to do with TensorRT's objects: it imports their types, or the file that makes them."""
    froms = [node for node in nodes(text) if isinstance(node, ast.ImportFrom)]
    modules = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {n.module for n in froms}
    return bool(modules & {"dilrewrite.tensorrt.bindings", "dilrewrite.tensorrt.protocols"})


# -- what dilrewrite names of TensorRT -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arguments:
    """The positional parameters that we pass, without self: their names, and how many of them always."""

    names: tuple[str, ...]
    required: int


Members = dict[str, dict[str, Arguments | None]]
"""By class and member; None for what is no method."""


def arguments(function: ast.FunctionDef) -> Arguments:
    names = [parameter.arg for parameter in (*function.args.posonlyargs, *function.args.args)][1:]
    assert not function.args.kwonlyargs, f"{function.name}: TensorRT has no parameters that are keywords only"
    return Arguments(tuple(names), len(names) - len(function.args.defaults))


def members(text: str) -> Members:
    """The members of every class of `protocols.py`, without dunders."""
    found: Members = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            assert any(ast.unparse(base) == "Protocol" for base in node.bases), f"{node.name} is no Protocol"
            inside = found.setdefault(node.name, {})
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef):
                    inside[statement.name] = arguments(statement)
                elif isinstance(statement, ast.AnnAssign):
                    inside[ast.unparse(statement.target)] = None
    return {name: {m: a for m, a in inside.items() if not m.startswith("__")} for name, inside in found.items()}


def named(sources: Texts) -> Iterator[tuple[str, str | None]]:
    """Where `probe` or `put` is called, and "Class.name" there; None for what is no literal."""
    for file, text in sources.items():
        for node in nodes(text) if holds_objects(text) or file == BINDINGS else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("bindings.") in ("probe", "put"):
                second = node.args[1] if len(node.args) > 1 else None
                literal = isinstance(second, ast.Constant) and isinstance(second.value, str)
                yield f"{file}:{node.lineno}", second.value if literal else None  # type: ignore[union-attr, misc]


def implemented(sources: Texts) -> Iterator[tuple[str, str, str, Arguments]]:
    """What TensorRT calls of ours: `base = module.IClass`, and `{"method": function}` in the same function."""
    for file, text in sources.items():
        for outer in nodes(text):
            if not isinstance(outer, ast.FunctionDef):
                continue
            own = {node.name: node for node in outer.body if isinstance(node, ast.FunctionDef)}
            bases = [
                node.value.attr
                for node in outer.body
                if isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Attribute)
                and [ast.unparse(target) for target in node.targets] == ["base"]
            ]
            for node in ast.walk(outer) if bases else ():
                for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Name) and value.id in own:
                        name = str(key.value)
                        if not name.startswith("__"):
                            yield f"{file}:{value.lineno}", bases[0], name, arguments(own[value.id])


# -- what the record says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overload:
    """One signature of a method, without self; a parameter that TensorRT does not name is empty."""

    names: tuple[str, ...]
    required: int

    def takes(self, given: Arguments, count: int) -> bool:
        """Whether it can be called with the first `count` of our arguments, by position or by name."""
        pairs = zip(self.names, given.names[:count], strict=False)
        return self.required <= count <= len(self.names) and all(own in ("", ours) for own, ours in pairs)


def overload(signature: str) -> Overload:
    """Read what the record has, as "(self, name: str, index: SupportsInt = 0) -> list[Dims]"."""
    depth, parts = 0, [""]
    for character in signature:
        depth += {"(": 1, "[": 1, "<": 1, ")": -1, "]": -1, ">": -1}.get(character, 0)
        if depth == 0:
            break
        if character == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += character
    parts[0] = parts[0].removeprefix("(")
    own = [part.strip() for part in parts if part.strip() and part.strip() != "self"]
    names = [part.partition(":")[0].strip() for part in own]
    names = ["" if name.startswith("arg") and name[3:].isdigit() else name for name in names]
    return Overload(tuple(names), sum(" = " not in part for part in own))


def signatures(flavour: Mapping[str, Any], owner: str, name: str) -> list[str]:
    """The recorded signatures of a method, or of a class of the module; none where none are recorded."""
    key = f"{name}.__init__" if owner == "Module" else f"{owner}.{name}"
    found = flavour["signatures"].get(key, [])
    return [found] if isinstance(found, str) else list(found)


def names_of(flavour: Mapping[str, Any], owner: str) -> list[str] | None:
    """The recorded names of a class, of the module itself for `Module`; None for a class that is not recorded."""
    found: list[str] | None = flavour["names"] if owner == "Module" else flavour["classes"].get(owner)
    return found


def only_in_some(record: Record) -> set[str]:
    """The names of attributes that a flavour lacks, and the names of classes that one lacks."""
    found: set[str] = set()
    for one in record.values():
        for other in record.values():
            found |= set(one["names"]) - set(other["names"])
            for owner, names in one["classes"].items():
                if owner in other["classes"]:
                    found |= set(names) - set(other["classes"][owner])
                else:
                    found |= set(names) - {"name", "value", "serialize", "deserialize", "reset"}
    return found


# -- the comparison --------------------------------------------------------------------------------------------------


def problems(sources: Texts, record: Record) -> list[str]:
    """All that does not fit between the package's texts and the record."""
    declared = members(sources[PROTOCOLS])
    others = {file: text for file, text in sources.items() if file != PROTOCOLS}
    return [
        *wrong_members(declared, record),
        *wrong_names(others, record),
        *wrong_methods(others, record),
        *stale_members(declared, others),
        *unprobed_names(others, record),
    ]


def wrong_members(declared: Members, record: Record) -> Iterator[str]:
    """What a Protocol has and a flavour lacks, or takes other arguments for."""
    for key, flavour in record.items():
        for owner, inside in declared.items():
            names = names_of(flavour, owner)
            if names is None:
                yield f"{key}: {owner} is not recorded"
                continue
            for name, given in inside.items():
                if name not in names:
                    yield f"{key}: {owner} has no {name}"
                elif given is not None:
                    yield from misfits(f"{key}: {owner}.{name}", signatures(flavour, owner, name), given)


def misfits(where: str, recorded: list[str], given: Arguments) -> Iterator[str]:
    overloads = [overload(text) for text in recorded]
    for count in range(given.required, len(given.names) + 1):
        if not overloads:
            yield f"{where} has no recorded signature"
            return
        if not any(one.takes(given, count) for one in overloads):
            yield f"{where} takes {' or '.join(recorded)}, not {', '.join(given.names[:count]) or 'nothing'}"


def wrong_names(others: Texts, record: Record) -> Iterator[str]:
    """What is probed for and no flavour has."""
    for place, name in named(others):
        if name is None:
            yield f"{place}: the name that is probed for is no literal"
            continue
        owner, _, attribute = name.partition(".")
        where = [key for key, flavour in record.items() if attribute in (names_of(flavour, owner) or [])]
        if not any(names_of(flavour, owner) for flavour in record.values()):
            yield f"{place}: {name}: {owner} is not recorded"
        elif not where:
            yield f"{place}: {name}: no flavour has it"


def wrong_methods(others: Texts, record: Record) -> Iterator[str]:
    """What we define for TensorRT to call, and it does not, or with other arguments."""
    for place, owner, name, given in implemented(others):
        for key, flavour in record.items():
            if name not in (names_of(flavour, owner) or []):
                yield f"{place}: {key}: {owner} has no {name}"
            else:
                found = [overload(text) for text in signatures(flavour, owner, name)]
                if not any(len(one.names) == given.required == len(given.names) for one in found):
                    yield f"{place}: {key}: {owner}.{name} is called with {found}, and ours takes {given.names}"


def stale_members(declared: Members, others: Texts) -> Iterator[str]:
    """What a Protocol has and nobody uses."""
    used = {node.attr for text in others.values() for node in nodes(text) if isinstance(node, ast.Attribute)}
    for owner, inside in declared.items():
        for name in inside:
            if name not in used:
                yield f"{owner}.{name} is used nowhere"


def unprobed_names(others: Texts, record: Record) -> Iterator[str]:
    """What only some flavours have, used without `probe` or `put` in a file that holds TensorRT's objects."""
    some = only_in_some(record)
    for file, text in others.items():
        for node in nodes(text) if holds_objects(text) else ():
            if isinstance(node, ast.Attribute) and node.attr in some:
                yield f"{file}:{node.lineno}: {ast.unparse(node)}: only some flavours have it, and it is not probed for"


# -- the contract ----------------------------------------------------------------------------------------------------


def test_the_record_has_three_flavours() -> None:
    assert [key.rpartition(".")[0] for key in sorted(RECORD)] == [
        "tensorrt 10.16.1",
        "tensorrt 11.4.0",
        "tensorrt_rtx 1.7.1",
    ]


def test_every_name_is_in_the_bindings() -> None:
    assert problems(texts(), RECORD) == []


def test_enough_is_compared() -> None:
    """That nothing is wrong must not come from nothing being read."""
    declared = members(texts()[PROTOCOLS])
    assert sum(map(len, declared.values())) > 70
    assert sum(given is not None for inside in declared.values() for given in inside.values()) > 35
    assert {name for _, name in named(texts()) if name} >= {
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
        "INetworkDefinition.add_plugin_v3",
        "IPluginRegistry.load_library",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "Module.ComputeCapability",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    }
    assert {f"{owner}.{name}" for _, owner, name, _ in implemented(texts())} == {
        "ILogger.log",
        "IProfiler.report_layer_time",
        "IProgressMonitor.phase_finish",
        "IProgressMonitor.phase_start",
        "IProgressMonitor.step_complete",
    }


def calls_of(file: str) -> list[str]:
    return [ast.unparse(node.func) for node in nodes(texts()[file]) if isinstance(node, ast.Call)]


def test_no_name_is_made_at_run_time() -> None:
    """Attributes of TensorRT's objects are asked for and set by name in `probe` and `put` only, which take literals."""
    for file, text in texts().items():
        modules = {node.module for node in nodes(text) if isinstance(node, ast.ImportFrom)}
        if "dilrewrite.tensorrt.protocols" in modules and file != BINDINGS:
            assert not set(calls_of(file)) & {"getattr", "setattr", "hasattr"}, file
    assert sorted(call for call in calls_of(BINDINGS) if call.endswith("attr")) == ["getattr", "hasattr", "setattr"]


# -- the test of the test --------------------------------------------------------------------------------------------


def mutated(file: str, old: str, new: str) -> dict[str, str]:
    """The package's texts with one place changed."""
    text = texts()[file]
    assert text.count(old) == 1, f"{file} has {text.count(old)} x {old!r}"
    return {**texts(), file: text.replace(old, new)}


PARSE = "def parse(self, model: bytes, path: str | None = None) -> bool: ..."

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "one more method": (PROTOCOLS, PARSE, f"{PARSE}\n    def serialize(self) -> bytes: ...", "OnnxParser has no seri"),
    "one more attribute": (PROTOCOLS, "num_errors: int", "num_errors: int\n    shape: int", "OnnxParser has no shape"),
    "only in one flavour": (
        PROTOCOLS,
        "    def create_runtime_config(self",
        "    device_memory_size: int\n    def create_runtime_config(self",
        "11.4.0.106: ICudaEngine has no device_memory_size",
    ),
    "one more class": (PROTOCOLS, "class ITensor(", "class INo(Protocol):\n    pass\n\n\nclass ITensor(", "INo is not"),
    "one more of the module": (PROTOCOLS, "__version__: str", "__version__: str\n    IGraph: Any", "Module has no IG"),
    "one more argument": (PROTOCOLS, PARSE, PARSE.replace("path", "log: Any, path"), "not model, log"),
    "another name": (PROTOCOLS, PARSE, PARSE.replace("path", "place"), "not model, place"),
    "an argument less": (PROTOCOLS, "def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool)",
                         "def set_timing_cache(self, cache: ITimingCache)", "not cache"),
    "a stale member": (PROTOCOLS, "num_errors: int", "num_errors: int\n    def clear_errors(self) -> None: ...",
                       "OnnxParser.clear_errors is used nowhere"),
    "a constructor with one more": (PROTOCOLS, "def Runtime(self, logger: Any)", "def Runtime(self, logger: Any, a=0)",
                                    "Module.Runtime takes"),
    "probe for nothing": ("tensorrt/make.py", '"Module.ComputeCapability"', '"Module.Capability"', "no flavour has it"),
    "probe of a class that is not recorded": (
        "tensorrt/make.py", '"IPluginRegistry.load_library"', '"Registry.load_library"', "Registry is not recorded"),
    "probe without a literal": (
        "tensorrt/make.py", '"IPluginRegistry.load_library"', "NAMES[0]", "is no literal"),
    "put of nothing": (
        "tensorrt/make.py", '"IBuilderConfig.num_compute', '"IBuilderConfig.compute', "no flavour has it"
    ),
    "past the probe": (
        "tensorrt/make.py", 'probe(config, "IBuilderConfig.set_compute_capability")', "config.set_compute_capability",
        "config.set_compute_capability: only some flavours have it"),
    "a method that is never called": (
        "tensorrt/make.py", '"phase_finish": phase_finish', '"phase_end": phase_finish', "has no phase_end"),
    "a method with one argument more": (
        "tensorrt/make.py", "def step_complete(_self: Any, name: str, step: int)",
        "def step_complete(_self: Any, name: str, step: int, steps: int)", "IProgressMonitor.step_complete is called"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "words"), MUTANTS.values(), ids=MUTANTS.keys())
def test_the_comparison_notices(file: str, old: str, new: str, words: str) -> None:
    found = problems(mutated(file, old, new), RECORD)
    assert any(words in problem for problem in found), found


def test_signatures_are_read() -> None:
    assert overload("(self) -> None") == Overload((), 0)
    assert overload("(self, a: Sequence[tuple[int, str]], b: E = <E.A: 0>) -> dict[str, int]") == Overload(
        ("a", "b"), 1
    )
    assert overload("(self, arg0: str, arguments: int) -> None") == Overload(("", "arguments"), 2)


# -- who imports it --------------------------------------------------------------------------------------------------


def imported(text: str) -> set[str]:
    """Every package that a text imports anywhere, also by `import_module` of a literal."""
    found: set[str] = set()
    for node in nodes(text):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            first = node.args[0]
            if isinstance(first, ast.JoinedStr):  # f"dilrewrite.runtimes.{name}"
                first = first.values[0]
            found.add(str(first.value) if isinstance(first, ast.Constant) else "?")
    return {name.partition(".")[0] for name in found}


def test_one_file_imports_tensorrt() -> None:
    """`bindings.py` imports by a name that it computes; nobody imports by a literal, in a function or at the top."""
    assert [file for file, text in texts().items() if imported(text) & {"tensorrt", "tensorrt_rtx"}] == []
    computed = {file for file, text in texts().items() if "?" in imported(text)}
    others = {"__init__.py", "discover.py", "devices/__init__.py", "devices/_runner.py"}
    assert computed == {BINDINGS, *others}, "the others import parts of dilrewrite"


def test_imports_are_noticed() -> None:
    assert "tensorrt" in imported("def f():\n    import tensorrt.plugin as t")
    assert "tensorrt_rtx" in imported("if 1:\n    from tensorrt_rtx import Builder")
    assert "tensorrt" in imported("import importlib\nimportlib.import_module('tensorrt')")
    assert "?" in imported("import importlib\nimportlib.import_module(name)")
    assert "?" in imported("import importlib\nimportlib.import_module(f'{name}.Builder')")
    assert "tensorrt" in imported("import importlib\nimportlib.import_module(f'tensorrt.{name}')")
    assert "tensorrt" not in imported("import tensorrt_lean")


# -- the record, and what is installed -------------------------------------------------------------------------------


def test_the_record_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the script that made the record would describe the bindings that are installed here."""
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    key = f"tensorrt_rtx {module.__version__}"
    if key not in RECORD:
        pytest.skip(f"{key} is installed, and the record is of {', '.join(RECORD)}")
    bindings = pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    path = PACKAGE.parent / "scripts" / "record_trt_bindings.py"
    described = importlib.util.spec_from_file_location("record_trt_bindings", path)
    assert described is not None
    assert described.loader is not None
    script = importlib.util.module_from_spec(described)
    monkeypatch.setitem(sys.modules, described.name, script)
    described.loader.exec_module(script)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = script.describe(bindings.__name__, Path(str(bindings.__file__)).parents[1])
    assert found.pop("version") == module.__version__
    assert {"module": "tensorrt_rtx", **found} == RECORD[key]
