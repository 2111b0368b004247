"""ONNX Runtime Web: where node and the npm package are looked for, what goes to JavaScript and back, and how it ends.

What starts node runs where the package is installed: scripts/runtimes.sh installs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from dilrewrite.cli import main
from dilrewrite.model.elements import NAMED
from dilrewrite.runtimes import CannotLoad, CannotRun, Crashed, Options, Runnable, TimedOut, prepared, timed_backend
from dilrewrite.runtimes.onnxruntime_web import NEEDED, OnnxRuntimeWeb
from tests.models_for_tests import conv1d
from tests.runtimes.test_contract import MODELS, check_fused

OPTIONS = Options(threads=1, timeout_s=120)


def program(place: Path, prints: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\necho {prints}\n")
    place.chmod(0o755)


def package(folder: Path, version: str = "1.30.0", script: str = "") -> Path:
    """A package as npm installs it below a folder, without its WebAssembly."""
    place = folder / "onnxruntime-web"
    (place / "dist").mkdir(parents=True)
    (place / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))
    for name in (*NEEDED, "ort.wasm.min.mjs", "ort.webgpu.min.mjs"):
        (place / "dist" / name).write_text(script)
    return place


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, on a computer with node and npm and no package."""
    program(tmp_path / "bin" / "node", "v20.20.2")
    program(tmp_path / "bin" / "npm", str(tmp_path / "global"))
    (tmp_path / "project" / "below").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("NODE_PATH", raising=False)
    monkeypatch.chdir(tmp_path / "project" / "below")
    return tmp_path


def test_where_the_package_is_looked_for(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the documented order: each place that is added is in front of those before it."""
    runtime = OnnxRuntimeWeb()
    assert runtime.folder() is None
    assert runtime.missing() == "onnxruntime-web is not installed: npm install onnxruntime-web"
    for place in ("global", "project/node_modules", "project/below/node_modules", "named"):
        found = package(computer / place)
        if place == "named":
            monkeypatch.setenv("NODE_PATH", os.pathsep.join([str(computer / "nothing"), str(computer / "named")]))
        assert runtime.folder() == found
        assert runtime.missing() is None
        assert runtime.versions() == {"onnxruntime-web": "1.30.0", "node": "20.20.2"}
    mine = package(computer / "mine" / "node_modules", "1.22.0")
    for given in (mine, mine.parent, mine.parent.parent, "../../mine"):
        assert OnnxRuntimeWeb(package=str(given)).versions()["onnxruntime-web"] == "1.22.0"
    assert OnnxRuntimeWeb(package="nowhere").folder() is None, "no other place is asked"


def drop(name: str) -> Callable[[Path], object]:
    return lambda here: (here / name).unlink()


def node(version: str) -> Callable[[Path], object]:
    return lambda here: program(here / "bin" / "node", version)


def about(text: str) -> Callable[[Path], object]:
    return lambda here: (here / "global" / "onnxruntime-web" / "package.json").write_text(text)


OLD = '{"name": "onnxruntime-web", "version": "1.18.0"}'
UPDATE = "(HERE/global/onnxruntime-web), and 1.19 or later is needed: npm install onnxruntime-web@latest"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("bin/node"), "node is not installed: install Node.js 20 or later, then npm install onnxruntime-web"),
        (node("v18.1.0"), "node is 18.1.0 (HERE/bin/node), and 20 or later is needed"),
        (node(""), "node is broken (HERE/bin/node), and 20 or later is needed"),
        (drop("bin/npm"), "onnxruntime-web is not installed: npm install onnxruntime-web"),
        (about(OLD), f"onnxruntime-web is 1.18.0 {UPDATE}"),
        (about("{"), f"onnxruntime-web is broken {UPDATE}"),
        (
            drop(f"global/onnxruntime-web/dist/{NEEDED[2]}"),
            f"onnxruntime-web is broken (HERE/global/onnxruntime-web/dist/{NEEDED[2]} is missing): "
            "npm install onnxruntime-web",
        ),
    ],
)
def test_what_is_missing_is_one_line(computer: Path, change: Callable[[Path], object], told: str) -> None:
    package(computer / "global")
    change(computer)
    assert OnnxRuntimeWeb().missing() == told.replace("HERE", str(computer))


def test_a_setting_counts_for_what_is_missing(computer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place that is named is asked, and it alone, whether the package is installed elsewhere or not."""
    assert timed_backend(f"web:package={package(computer / 'mine')}").missing() is None
    package(computer / "global")
    onnx.save_model(conv1d(), "m.onnx")
    assert main(["optimize", "m.onnx", "--backend", "web:package=a"]) == 4
    told = "dilrewrite: backend onnxruntime_web: onnxruntime-web is not in a: npm install onnxruntime-web\n"
    assert capsys.readouterr().err == told
    assert [file.name for file in Path().iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("backend", "code", "told"),
    [
        ("web:provider=cuda", 2, "--backend web:provider=cuda: provider=cuda is neither wasm nor webgpu"),
        (
            "web:provider=webgpu",
            2,
            "--backend web:provider=webgpu: provider=webgpu needs a browser: add browser=chromium",
        ),
        (
            "web:browser=chromium",
            4,
            "backend onnxruntime_web: chromium is no browser here: install one like Chromium "
            "(on Debian: apt-get install chromium)",
        ),
    ],
)
def test_settings_of_the_browser(
    computer: Path, capsys: pytest.CaptureFixture[str], backend: str, code: int, told: str
) -> None:
    package(computer / "global")
    onnx.save_model(conv1d(), "m.onnx")
    assert main(["optimize", "m.onnx", "--backend", backend]) == code
    assert capsys.readouterr().err == f"dilrewrite: {told}\n"


# -- with node and the package ----------------------------------------------------------------------------------------


@pytest.fixture
def runtime() -> OnnxRuntimeWeb:
    found = OnnxRuntimeWeb()
    missing = found.missing()
    if missing is not None:
        pytest.skip(missing)
    return found


def same(element: str, shape: tuple[int, ...]) -> bytes:
    """A model that gives back what it gets."""
    values = [helper.make_tensor_value_info(name, NAMED[element].number, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def numbers(element: str, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape))
    if element == "string":
        return np.array([f"{place} ß\n" for place in range(count)], object).reshape(shape)
    step = 2**60 + 1 if element.endswith("int64") else 1
    return (np.arange(count) * step).astype(NAMED[element].dtype).reshape(shape)


def test_every_type_comes_back_as_it_was(runtime: OnnxRuntimeWeb) -> None:
    elements = [
        *[f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)],
        "float16",
        "float32",
        "float64",
    ]
    with contextlib.closing(runtime.bench(OPTIONS)) as bench:
        for element in (*elements, "bool", "string"):
            for shape in ((2, 3), (), (0, 2)):
                feeds = {"x": numbers(element, shape)}
                bench.add("m", prepared(runtime, Runnable(model=same(element, shape)), feeds), feeds)
                found = bench.outputs("m")["y"]
                assert found.dtype == feeds["x"].dtype
                assert found.shape == shape
                assert np.array_equal(found, feeds["x"])
        for given, told in ((np.zeros(2, ml_dtypes.bfloat16), "bfloat16"), ([np.zeros(2)], "a sequence")):
            feeds = {"x": given}
            with pytest.raises(CannotRun, match=f"^input 'x' is {told}, which onnxruntime-web does not take$"):
                bench.add("m", prepared(runtime, Runnable(model=same("float32", (2,))), feeds), feeds)


def test_threads_are_those_that_are_asked_for(runtime: OnnxRuntimeWeb) -> None:
    counts, feeds = [], {"x": numbers("float32", (2,))}
    for threads in (1, 3):
        options = Options(threads=threads, timeout_s=120)
        assert runtime.settings(options)["threads"] == str(threads)
        with contextlib.closing(runtime.bench(options)) as bench:
            bench.add("m", prepared(runtime, Runnable(model=same("float32", (2,))), feeds), feeds)
            bench.open(["m"], runs=1)
            tasks = Path(f"/proc/{bench._child.process.pid}/task")  # type: ignore[attr-defined]
            counts.append(len(list(tasks.iterdir())))
    assert counts[1] >= counts[0] + 2


WRONG = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
export const InferenceSession = { create: async () => ({ run: async () => { %s }, release: async () => {} }) };
"""


@pytest.mark.parametrize(
    ("script", "failure", "told"),
    [
        ("throw new Error('a reason')", CannotRun, "^a reason$"),
        (
            "throw new Error('failed to call OrtRun(). ERROR_CODE: 2, ERROR_MESSAGE: /a/b.cc:12 std::f() why')",
            CannotRun,
            "^why$",
        ),
        ("throw new Error('std::bad_alloc')", CannotRun, "no more than 4 GB of memory"),
        ("throw 5", CannotRun, "^5$"),
        ("throw new WebAssembly.RuntimeError('out of\\nbounds')", Crashed, "exit code 70: out of bounds$"),
        ("throw new WebAssembly.RuntimeError('Aborted(OOM)')", Crashed, r"Aborted\(OOM\)"),
        ("setTimeout(() => { throw new Error('later') }); await new Promise(() => {})", Crashed, "exit code 70: later"),
        ("process.kill(process.pid, 'SIGKILL')", Crashed, "SIGKILL"),
        ("process.exit(3)", Crashed, "exit code 3"),
        ("await new Promise(() => {})", TimedOut, "no answer within 3 s"),
        ("console.log('printed'); return { y: new Tensor('int4', new Uint8Array(1), [2]) }", CannotRun, "'y' is int4"),
    ],
)
@pytest.mark.usefixtures("runtime")
def test_what_goes_wrong_in_javascript_is_a_reason(
    tmp_path: Path, temporary: Path, script: str, failure: Any, told: str
) -> None:
    """And nothing is left of the process and its folder."""
    mine, feeds = OnnxRuntimeWeb(package=str(package(tmp_path, script=WRONG % script))), {"x": numbers("float32", (2,))}
    with contextlib.closing(mine.bench(Options(threads=1, timeout_s=3))) as bench:
        pid = bench._child.process.pid  # type: ignore[attr-defined]
        bench.add("m", prepared(mine, Runnable(model=same("float32", (2,))), feeds), feeds)
        with pytest.raises(failure, match=told):
            bench.outputs("m")
        if failure is CannotRun:
            bench.drop("m")  # it goes on
    assert not Path(f"/proc/{pid}").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("runtime")
def test_a_package_that_cannot_be_imported(tmp_path: Path) -> None:
    mine = OnnxRuntimeWeb(package=str(package(tmp_path, script="import 'nothing';")))
    with pytest.raises(CannotLoad, match=r"^onnxruntime-web cannot be imported: [^\n]*nothing[^\n]*$"):
        mine.bench(OPTIONS)


# -- with a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(runtime: OnnxRuntimeWeb) -> OnnxRuntimeWeb:
    found = dataclasses.replace(runtime, browser="chromium")
    missing = found.missing()
    if missing is not None:
        pytest.skip(missing)
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def processes(folder: Path) -> dict[int, str]:
    """The processes whose temporary files lie there, and those of their groups, with their commands."""
    groups, own, found = {}, set(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                groups[int(entry.name)] = int(group)
                if bytes(folder) in (entry / "environ").read_bytes():
                    own.add(int(entry.name))
    shared = {groups[pid] for pid in own} - {os.getpgrp()}
    for pid, group in groups.items():
        if pid in own or group in shared:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return found


def check_nothing_is_left(folder: Path, were: Iterable[int]) -> None:
    until = time.monotonic() + 10
    while (left := processes(folder).keys() | (set(were) & running())) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == set()
    assert list(folder.iterdir()) == []


def running() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if "State:\tZ" not in status(entry)}


def status(entry: Path) -> str:
    with contextlib.suppress(OSError):
        return (entry / "status").read_text()
    return "State:\tZ"


def test_a_browser_computes_and_profiles_as_node_does(
    runtime: OnnxRuntimeWeb, browser: OnnxRuntimeWeb, temporary: Path
) -> None:
    proto, feeds = MODELS["three nodes"]
    outputs = []
    for backend in (runtime, browser):
        with contextlib.closing(backend.bench(Options(threads=2, timeout_s=120))) as bench:
            bench.add("m", prepared(backend, Runnable(model=proto.SerializeToString()), feeds), feeds)
            outputs.append(bench.outputs("m")["y"])
            assert bench.open(["m"], runs=1)[0].run_s > 0
            assert all(seconds > 0 for seconds in bench.run(["m", "m"]))
            were = processes(temporary)
    assert np.array_equal(*outputs)
    check_fused(browser)
    assert browser.settings(OPTIONS)["browser"] == "chromium"
    assert browser.versions().keys() == {*runtime.versions(), "chromium"}
    assert any("--type=renderer" in command for command in were.values())
    check_nothing_is_left(temporary, were)


PAGE = WRONG.replace("%s", "if (globalThis.document) { %s }")


@pytest.mark.parametrize(
    ("script", "failure", "told"),
    [
        ("throw new Error('a reason')", CannotRun, "^a reason$"),
        ("throw new WebAssembly.RuntimeError('out of\\nbounds')", Crashed, "exit code 70: out of bounds$"),
        ("setTimeout(() => { throw new Error('later') }); await new Promise(() => {})", Crashed, "later"),
        ("await new Promise(() => {})", TimedOut, "no answer within 2 s"),
        ("renderer", Crashed, r"exit code 70: the page crashed \(perhaps out of memory\)$"),
        ("node", Crashed, "SIGKILL"),
    ],
)
def test_what_goes_wrong_in_a_page_is_a_reason(
    browser: OnnxRuntimeWeb, tmp_path: Path, temporary: Path, script: str, failure: Any, told: str
) -> None:
    """And nothing is left of the browser and its files."""
    place = package(tmp_path, script=PAGE % script)
    (place / "dist" / "ort.wasm.min.mjs").write_text(
        PAGE % (script if " " in script else "await new Promise(() => {})")
    )
    mine, feeds = dataclasses.replace(browser, package=str(place)), {"x": numbers("float32", (2,))}
    with contextlib.closing(mine.bench(Options(threads=1, timeout_s=120))) as bench:
        bench.add("m", prepared(mine, Runnable(model=same("float32", (2,))), feeds), feeds)
        if failure is TimedOut:
            bench._child.timeout_s = 2  # type: ignore[attr-defined]
        were = processes(temporary)
        for pid, command in were.items():
            if {"renderer": "--type=renderer", "node": "onnxruntime_web.mjs"}.get(script, "\0\0") in command:
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(failure, match=told):
            bench.outputs("m")
    check_nothing_is_left(temporary, were)


def test_webgpu_needs_a_device(browser: OnnxRuntimeWeb) -> None:
    gpu = dataclasses.replace(browser, provider="webgpu")
    missing = gpu.missing()
    if missing is None:
        assert gpu.device() not in ("", browser.device())
    else:
        assert re.fullmatch(r"provider=webgpu: the browser has no WebGPU device here.*", missing)


WRAPPED = """
import * as real from '%s';
export const { env, Tensor } = real;
export const InferenceSession = {
  async create(data, options) {
    const session = await real.InferenceSession.create(data, options);
    if (!Buffer.from(data).includes('Reshape')) return session;
    return {
      async run(feeds) {
        const found = await session.run(feeds);
        for (const { data } of Object.values(found)) data[0] += 1;
        return found;
      },
      endProfiling: () => session.endProfiling(),
      release: () => session.release(),
    };
  },
};
"""


@pytest.mark.measures
def test_wrong_numbers_are_seen(runtime: OnnxRuntimeWeb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The package computes models with a Reshape otherwise: such a form is not chosen, and no model is written."""
    folder = runtime.folder()
    assert folder is not None
    wrong = package(tmp_path / "wrong", script=WRAPPED % (folder / "dist" / NEEDED[0]).as_uri())
    model, output = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save_model(conv1d(), model)
    command = ["optimize", str(model), "-o", str(output), "--backend", f"web:package={wrong}", "--budget", "2"]
    assert main([*command, "--strategy", "space_to_batch"]) == 3
    assert "computes something else on onnxruntime_web" in " ".join(capsys.readouterr().out.split())
    assert not output.exists()
    assert main(command) == 0
    assert "Reshape" not in {node.op_type for node in onnx.load_model(output).graph.node}


@pytest.mark.measures
def test_a_model_is_chosen_on_it(runtime: OnnxRuntimeWeb, tmp_path: Path) -> None:
    onnx.save_model(conv1d(), tmp_path / "m.onnx")
    said = tmp_path / "r"
    assert main(["optimize", str(tmp_path / "m.onnx"), "--backend", "web", "--budget", "2", "--report", str(said)]) == 0
    told = json.loads((said / "report.json").read_text())["measurement"]
    assert told["backend"] == "onnxruntime_web"
    assert told["versions"] == runtime.versions()
    assert told["settings"] == {"threads": "default", "provider": "wasm", "simd": "on", "browser": "none"}
