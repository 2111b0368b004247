"""The part of a GPU run with whole chains: as they are, Conv by Conv in a form, lifted, and as regions, in PyTorch.

As a script it is the worker (see `_gpu_plan`). An item is a version of a chain in a setting. It needs onnx and
onnx-graphsurgeon beside PyTorch. The chains are those of `_chains.py` and the stage in models/.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _gpu_plan import Row, serve, wanted
from _gpu_rows import APART, judged

STAGE = Path(__file__).parent.parent / "models" / "resnet_stage_os8.onnx"

SETTINGS: tuple[Row, ...] = ({"precision": "tf32"}, {"precision": "fp16", "layout": "last"})

SITE_FORMS = {1: ("space_to_batch", "lift", "space_to_axis"), 2: ("space_to_batch", "tap_zones")}
"""What is put at every Conv, by the number of spatial axes; the last holds for more."""


def models(options: Row) -> dict[str, Callable[[], Any]]:
    """What makes each chain."""
    import _chains
    import onnx

    if options["dry_run"]:
        found: dict[str, Callable[[], Any]] = {
            "TCN, small": lambda: _chains.tcn(4, 256),
            "DRN, small": lambda: _chains.basic_blocks(12, 4),
        }
    else:
        found = {**_chains.CHAINS, STAGE.stem: lambda: onnx.load(STAGE)}
    return {name: make for name, make in found.items() if wanted(options["only"], name)}


def versions_of(proto: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The versions of a chain as models, the original first, and why forms refuse it."""
    from _versions import AT_ONCE, region_versions, versions

    from dilrewrite.model.tensors import Model
    from dilrewrite.sites.find import find

    model = Model(proto=proto, path=None, folder=Path.cwd(), external_files=(), file_bytes=0)
    found, refused = find(proto), dict[str, str]()
    rank = max((len(site.geometry.kernel) for site in found.sites), default=1)
    forms = ("original", *SITE_FORMS[min(rank, 2)])
    some: dict[str, str] = {}
    made = {version.name: version.proto for version in versions(model, found, some, AT_ONCE) if version.name in forms}
    refused.update({form: f"refuses: {why}" for form, why in some.items() if form in forms})
    lacks: dict[str, str] = {}
    made |= {version.name: version.proto for version in region_versions(model, lacks, AT_ONCE)}
    return made, {**refused, **{form: f"refuses: {why}" for form, why in lacks.items()}}


def items(options: Row) -> list[Row]:
    """One item for a chain in a setting: its versions are known when it is read."""
    return [{"part": "chains", "model": name, **setting} for setting in SETTINGS for name in models(options)]


def begin(options: Row) -> tuple[Row, Callable[[Row], Iterator[Row]]]:
    """The device, and what does an item."""
    import _gpu_time

    device, about = _gpu_time.begin(options["dry_run"])
    clock = _gpu_time.Clock(device, options["seconds"])
    named = models(options)

    @functools.cache
    def chain(name: str) -> _Chain:
        return _Chain(named[name]())

    def work(item: Row) -> Iterator[Row]:
        names = ("precision", "layout")
        setting = _gpu_time.Setting(**{name: item[name] for name in names if name in item})
        return timed(chain(item["model"]), clock, setting)

    return about, work


class _Chain:
    """A chain: its versions, an input, and what it gives in float64 on the CPU."""

    def __init__(self, proto: Any) -> None:
        import torch
        from _gpu_graph import Graph

        self.versions, self.refused = versions_of(proto)
        shape = [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim]
        self.x = torch.randn([max(size, 1) for size in shape], generator=torch.Generator().manual_seed(0))
        self.reference = Graph(proto, lambda tensor: tensor.double()).run(self.x.double())


def timed(chain: _Chain, clock: Any, setting: Any) -> Iterator[Row]:
    """Every version against the original; `apart` is from float64 on the CPU, and so is the original's own."""
    import _gpu_time
    from _gpu_graph import Graph

    x = setting.put(chain.x, clock.device)
    with _gpu_time.cudnn(setting):
        native, noise, own = None, None, 0.0
        for name, proto in chain.versions.items():
            try:
                graph = Graph(proto, lambda tensor: setting.put(tensor, clock.device))
                run = clock.prepare(functools.partial(graph.run, x))
                apart = _gpu_time.apart(chain.reference, run.output.cpu())
                if native is None:
                    native, own = run, apart
                    row = clock.compare(native, clock.prepare(functools.partial(graph.run, x)))
                    noise = max(row["high"], 1 / row["low"]) - 1
                else:
                    row = clock.compare(native, run, noise)
            except Exception as error:
                if not _gpu_time.healthy():
                    raise
                yield {"form": name, "not_run": " ".join(str(error).split())[:200], "failed": True}
                if native is None:
                    return
                continue
            yield {"form": name, **row, **judged(apart, max(10 * own, APART[setting.precision]))}
    yield from ({"form": form, "not_run": why} for form, why in chain.refused.items())


def unready() -> str | None:
    """What is missing, or None."""
    import importlib.util

    lacks: Mapping[str, str] = {"torch": "PyTorch", "onnx": "onnx", "onnx_graphsurgeon": "onnx-graphsurgeon"}
    return next(
        (f"{name} is not installed" for module, name in lacks.items() if not importlib.util.find_spec(module)), None
    )


def main() -> None:
    """Be the worker."""

    def healthy() -> bool:
        import _gpu_time

        return _gpu_time.healthy()

    serve(begin, healthy)


if __name__ == "__main__":
    main()
