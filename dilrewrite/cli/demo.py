"""dilrewrite demo [NAME]: writes a small model with dilated Convs, to try the other commands on."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from dilrewrite.cli._options import SCREEN, command
from dilrewrite.errors import UsageError, choices
from dilrewrite.options import Option
from dilrewrite.settings import named

DEMOS = {
    "aspp_segmentation": ("DeepLabV3 on a narrow ResNet, 2-D", ""),
    "causal_tcn": ("causal residual blocks, 1-D", "roll:1x88x1024"),
    "hifigan_vocoder": ("HiFi-GAN generator, 1-D", "mel:1x80x64"),
    "meshnet3d": ("MeshNet with 16 filters, 3-D", ""),
    "resnet_stage_os8": ("two stages of a dilated ResNet, 2-D", ""),
    "splice_sites": ("SpliceAI-10k with one unit of each kind, 1-D", "sequence:1x4x10000"),
}
"""The models by name: what each one is, and the sizes to give where its own are unknown."""

FIRST = "splice_sites"

OWN = {
    "name": Option("", f"Which model. [default: {FIRST}]", "[NAME]", kind=str, default=FIRST),
    "listed": Option("--list", "List the models.", group=SCREEN),
}


EXAMPLES = [
    ("a model to try the other commands on", "demo"),
    ("another one, in a folder", "demo causal-tcn -o models"),
]


@command(
    "name output force listed quiet",
    EXAMPLES,
    OWN,
    output={"help": "The folder to write to. [default: here]", "metavar": "DIR"},
)
def run(name: str, output: Path | None, *, listed: bool, force: bool, quiet: bool) -> int:
    """Write a demo model, with random weights, and say how to optimize it."""
    from dilrewrite.staging import Staging

    if listed:
        for each, (what, _) in DEMOS.items():
            typer.echo(f"{each:<20} {what}")
        return 0
    given, name = name, named(name, DEMOS) or ""
    if not name:
        raise UsageError(f"{given}: no demo model", hint=choices(given, DEMOS, "give one of"))
    folder = output or Path()
    path = folder / f"{name}.onnx"
    with Staging(force=force) as staging:
        staging.make_folder(folder)
        staging.add_bytes(path, (models() / path.name).read_bytes())
        staging.commit()
    if not quiet:
        what, shape = DEMOS[name]
        typer.echo(f"{path}: {what}, random weights")
        typer.echo(f"next: dilrewrite optimize {shlex.quote(str(path))}{shape and f' --shape {shape}'}")
    return 0


def models() -> Path:
    """Return the folder of the models: in an installed package, or `models/` of a clone."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "demos", package.parent / "models") if folder.is_dir())
