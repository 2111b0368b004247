"""Builds an engine from a prepared model: the only file that calls TensorRT's builder."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from dilrewrite._compat import warnings_ignored
from dilrewrite.errors import FailedError, UsageError, one_line
from dilrewrite.keywords import Progress, silent
from dilrewrite.options import Building
from dilrewrite.tensorrt.bindings import Library, probe, put
from dilrewrite.tensorrt.layers import Layers, from_log
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.protocols import Builder, IBuilderConfig, IHostMemory, INetworkDefinition

CURRENT = "current"

TIMING_CACHE = "timing.cache"
"""Where a command keeps the timings of its builds, in its scratch folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    """Its name."""
    datatype: str
    """Element type in TensorRT's words, e.g. `FLOAT`."""
    shape: tuple[int, ...]
    """Its sizes; -1 for one that is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine, and what is known of it without running it. `seconds`: reading the model and building."""

    plan: bytes
    layers: Layers
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flags: Mapping[str, Any]
    seconds: float
    warnings: tuple[str, ...]
    timing_cache: bytes | None = None


def build(
    library: Library,
    model: ModelProto,
    options: Building,
    *,
    profiles: Mapping[str, Profile] | None = None,
    folder: Path | None = None,
    tf32: bool = True,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> Built:
    """Build an engine of `model`, whose external data lie in `folder`.

    Ctrl-C cancels the build at its next step. `timing_cache`: what an earlier build returned.
    Raises UsageError for what the flavour lacks or refuses of the model, FailedError when the build fails; both with
    the library's own words.
    """
    start = time.perf_counter()
    library.clear()
    builder, network = _parsed(library, model, options, folder)
    config = builder.create_builder_config()
    config.profiling_verbosity = library.module.ProfilingVerbosity.DETAILED
    used = _configure(library, config, options, tf32=tf32)
    if profiles:
        _add_profiles(library, builder, config, profiles)
    cache = _use_timing_cache(library, config, timing_cache) if timing_cache or options.timing_cache else False
    plan = _run(library, builder, network, config, progress)
    return Built(
        plan=bytes(plan),
        layers=from_log(library.log.messages),
        inputs=tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs)),
        flags=used,
        seconds=time.perf_counter() - start,
        warnings=tuple(dict.fromkeys(map(one_line, library.log.warnings))),
        timing_cache=_timings(config) if cache else None,
    )


def _parsed(
    library: Library, model: ModelProto, options: Building, folder: Path | None
) -> tuple[Builder, INetworkDefinition]:
    """Return a builder, and the network that the model becomes in it."""
    module = library.module
    try:
        builder: Builder = module.Builder(library.log.handle)
    except TypeError as error:  # the bindings' word for a constructor that failed
        raise FailedError(f"{library.flavour} makes no builder: {library.reasons()}") from error
    flags = probe(module, "Module.NetworkDefinitionCreationFlag")
    strongly = probe(flags, "NetworkDefinitionCreationFlag.STRONGLY_TYPED")
    network = builder.create_network(1 << int(strongly) if strongly else 0)
    if options.plugins:
        _load_plugins(library, builder, network, options.plugins)
    path = str((folder or Path.cwd()).absolute() / "model.onnx")
    parsed, parser = library.parse(network, model.SerializeToString(), path)
    if not parsed:
        raise UsageError(
            f"{library.flavour} {library.version} does not take the model: {library.reasons(parser)}",
            hint="see docs/backends.md for what it refuses",
        )
    return builder, network


def _tensor(tensor: Any) -> Tensor:
    return Tensor(
        name=str(tensor.name),
        datatype=str(tensor.dtype).rpartition(".")[2],
        shape=tuple(int(size) for size in tensor.shape),
    )


# -- configuration ---------------------------------------------------------------------------------------------------


def _configure(library: Library, config: IBuilderConfig, options: Building, *, tf32: bool) -> dict[str, Any]:
    """Set what was asked for; return all of it as plain data, TensorRT's own defaults included where they are known."""
    module = library.module
    flags = module.BuilderFlag
    used: dict[str, Any] = {}
    for name, flag, on in (
        ("TF32", flags.TF32, tf32),
        ("REFIT", flags.REFIT, options.refit),
        ("STRIP_PLAN", flags.STRIP_PLAN, options.strip_plan),
        ("VERSION_COMPATIBLE", flags.VERSION_COMPATIBLE, options.version_compatible),
        ("WEIGHT_STREAMING", flags.WEIGHT_STREAMING, options.weight_streaming),
    ):
        if on:
            config.set_flag(flag)
        elif config.get_flag(flag):
            config.clear_flag(flag)
        used[name] = bool(config.get_flag(flag))
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        used["workspace_mib"] = options.workspace_mib
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    used["optimization_level"] = int(config.builder_optimization_level)
    if options.compute_capabilities:
        used["compute_capabilities"] = _set_compute_capabilities(library, config, options.compute_capabilities)
    if options.plugins:
        config.plugins_to_serialize = [str(plugin.absolute()) for plugin in options.plugins]
        used["plugins"] = [plugin.name for plugin in options.plugins]
    return used


def _set_compute_capabilities(library: Library, config: IBuilderConfig, wanted: tuple[str, ...]) -> list[str]:
    setter = probe(config, "IBuilderConfig.set_compute_capability")
    if not setter:
        raise UsageError(
            f"--compute-capability: {library.flavour} builds for the GPU that it runs on",
            hint="leave it out, or build with --flavour tensorrt-rtx",
        )
    known = probe(library.module, "Module.ComputeCapability")
    members = dict(known.__members__)
    legal = {f"{member[2:-1]}.{member[-1]}": member for member in members if member.startswith("SM")}
    names = []
    for text in wanted:
        bare = text.lower().removeprefix("sm")
        name = "CURRENT" if text == CURRENT else legal.get(bare, f"SM{bare}")
        if name not in members:
            raise UsageError(
                f"--compute-capability {text}: {library.flavour} {library.version} does not build for it",
                hint=f"it builds for {', '.join(legal)}, and {CURRENT} for the GPU that is there",
            )
        names.append(name)
    if "CURRENT" in names and len(names) > 1:
        raise UsageError(f"--compute-capability {CURRENT}: stands alone", hint="leave the others out")
    put(config, "IBuilderConfig.num_compute_capabilities", len(names))
    for index, name in enumerate(names):
        if not setter(members[name], index):
            raise FailedError(f"--compute-capability {wanted[index]}: refused: {library.reasons()}")
    return names


def _load_plugins(library: Library, builder: Builder, network: INetworkDefinition, plugins: tuple[Path, ...]) -> None:
    """Load libraries of plugins into the builder's registry. A flavour without them has the registry all the same."""
    loader = probe(builder.get_plugin_registry(), "IPluginRegistry.load_library")
    if not loader or not probe(network, "INetworkDefinition.add_plugin_v3"):
        raise UsageError(f"--plugins: {library.flavour} runs no plugins", hint="build with --flavour tensorrt")
    for plugin in plugins:
        with library.listening():
            handle = loader(str(plugin.absolute()))
        if handle is None:
            raise FailedError(f"--plugins {plugin}: cannot be loaded: {library.reasons()}")


def _add_profiles(library: Library, builder: Builder, config: IBuilderConfig, profiles: Mapping[str, Profile]) -> None:
    sizes = builder.create_optimization_profile()
    for name, profile in profiles.items():
        sizes.set_shape(name, profile.min, profile.opt, profile.max)
    if config.add_optimization_profile(sizes) < 0:
        raise FailedError(f"the profile is refused: {library.reasons()}", hint="each size must be min <= opt <= max")


def _use_timing_cache(library: Library, config: IBuilderConfig, data: bytes) -> bool:
    """Give the build a cache of timings; say whether it has one. A cache that does not fit begins empty."""
    with warnings_ignored():  # TensorRT for RTX has no use for it, and says so
        for content in dict.fromkeys((data, b"")):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return True
    library.log.clear()
    return False


def _timings(config: IBuilderConfig) -> bytes | None:
    """Return the cache of timings as it is after a build."""
    # TensorRT for RTX warns; as an error it would come out of a C++ frame.
    with warnings_ignored():
        cache = config.get_timing_cache()
        memory = cache.serialize() if cache is not None else None
    return bytes(memory) if memory is not None else None


# -- running the builder ---------------------------------------------------------------------------------------------


@dataclass
class _Cancel:
    """Whether the build shall end; `error` is what `progress` raised, which must not fly through the library."""

    wanted: bool = False
    error: BaseException | None = None
    phases: dict[str, int] = field(default_factory=dict)


def _run(
    library: Library, builder: Builder, network: INetworkDefinition, config: IBuilderConfig, progress: Progress | None
) -> IHostMemory:
    cancel = _Cancel()
    config.progress_monitor = _monitor(library, cancel, progress or silent)
    with _interrupts(cancel), library.listening():
        plan: IHostMemory | None = builder.build_serialized_network(network, config)
    config.progress_monitor = None
    if cancel.error is not None:
        raise cancel.error
    if cancel.wanted:
        raise KeyboardInterrupt
    if plan is None:
        why = f"{library.flavour} {library.version} builds no engine: {library.reasons()}"
        raise FailedError(why, hint=_hint(library))
    return plan


def _hint(library: Library) -> str:
    said = " ".join((*library.log.errors, *library.noise)).lower()
    if "outofmemory" in said or "out of memory" in said or "bad_alloc" in said:
        return "give smaller sizes with --max, or less --workspace"
    if any(word in said for word in ("no cuda-capable device", "cuda driver", "cudaerror 35", "== cuda_success")):
        return "this kind of build needs a GPU and its driver"
    return ""


def _monitor(library: Library, cancel: _Cancel, progress: Progress) -> Any:
    """Return TensorRT's view of our progress. Only the outermost phase is shown; each step may cancel."""
    base = library.module.IProgressMonitor

    def tell(done: int, total: int) -> None:
        if cancel.error is not None:
            return
        try:
            progress("build", done, total)
        except BaseException as error:  # raised again after the build
            cancel.error, cancel.wanted = error, True

    def phase_start(_self: Any, name: str, parent: str | None, steps: int) -> None:
        if parent is None:
            cancel.phases[name] = max(steps, 1)
            tell(0, cancel.phases[name])

    def step_complete(_self: Any, name: str, step: int) -> bool:
        total = cancel.phases.get(name)
        if total is not None:
            tell(min(step + 1, total), total)
        return not cancel.wanted

    def phase_finish(_self: Any, name: str) -> None:
        total = cancel.phases.pop(name, None)
        if total is not None:
            tell(total, total)

    body = {"phase_start": phase_start, "step_complete": step_complete, "phase_finish": phase_finish}
    return type("DilrewriteMonitor", (base,), body)()


@contextlib.contextmanager
def _interrupts(cancel: _Cancel) -> Iterator[None]:
    """Turn Ctrl-C into a cancelled build; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(_number: int, _frame: object) -> None:
        cancel.wanted = True

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
