"""Every operator that dilates: how many sites are found, how many every form rewrites, and what the results differ by.

Run `python benchmarks/operators.py [FOLDER ...]`; results go to benchmarks/results/operators.json and .md. Small models
of every operator (`_operators.py`) get every form and `--eliminate`; the models in folders (default: those of this
repository) get `--eliminate` and, where they hold sandwiches, `fold`. Nothing is timed. `--only REGEX`: the models that
it is found in; the rows of others stay as they are.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _common import RESULTS, circumstances, heading, table, write
from _operators import CONTRIB, models
from onnx import ModelProto

import dilrewrite
from dilrewrite.errors import DilrewriteError
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.strategies import PLAIN_CONV, strategies
from dilrewrite.model.load import load
from dilrewrite.model.walk import DEFAULT_DOMAINS, all_nodes
from dilrewrite.reports.report import Report, SiteReport
from dilrewrite.runtimes import timed_backends
from dilrewrite.sites.find import find

OWN = Path(__file__).parents[1] / "models"
FILE = RESULTS / "operators.json"
SANDWICH = "sandwich"
SIZES = {"splice_sites": ["sequence:1x4x2000"], "causal_tcn": ["roll:1x88x400"], "hifigan_vocoder": ["mel:1x80x20"]}
"""What the models of this repository run on: short, as nothing is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[OWN])
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    about = circumstances(timed_backends()["onnxruntime_cpu"], None)
    for name, model, every in _every(options.folders):
        if re.search(options.only, name):
            made = list(_rows(name, model(), every))
            print("\n".join(" | ".join(_cells(row)) for row in made), flush=True)
            known = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []
            rows = [*(row for row in known if row["model"] != name), *made]
            write("operators", {"about": about, "rows": rows}, page(about, rows))


def _every(folders: Iterable[Path]) -> Iterator[tuple[str, Callable[[], ModelProto], bool]]:
    """Yield the name of each model, what makes it, and whether it gets every form."""
    yield from ((name, make, True) for name, make in models())
    for path in (path for folder in folders for path in sorted(folder.glob("*.onnx"))):
        yield path.stem, functools.partial(_loaded, path), False


def _loaded(path: Path) -> ModelProto:
    return load(path).proto


def _rows(name: str, model: ModelProto, every: bool) -> Iterator[dict[str, Any]]:
    """Yield what became of each operator of one model."""
    called, own = _Operators(model), {"shapes": SIZES.get(name, []), "budget": 0}
    eliminated = _run(model, eliminate=True, **own)
    if isinstance(eliminated, str):
        yield {"model": name, "operator": "-", "sites": 0, "forms": {}, "left": eliminated}
        return
    pools = any(isinstance(site.geometry, PoolGeometry) for site in eliminated.sites)
    names = ["phase_pools"] if pools else [form for form in strategies() if form != "keep"]
    if any(site.geometry.transposed for site in eliminated.sites if not pools):
        names.append(PLAIN_CONV)
    forms = {form: _run(model, strategy=form, **own) for form in names if every and eliminated.sites}
    for operator in dict.fromkeys(map(called.of, eliminated.sites)):
        yield _row(name, operator, eliminated, forms, called)
    if find(model, sandwiches=True).sandwiches:
        folded = _run(model, strategy="fold", **own)
        assert isinstance(folded, Report)
        yield {**_row(name, SANDWICH, folded, {"fold": folded}, called), "eliminate": None}
    for op, reason in dict.fromkeys((node.op, node.reason) for node in eliminated.skipped):
        yield {"model": name, "operator": op, "sites": 0, "forms": {}, "left": reason}


def _run(model: ModelProto, **options: Any) -> Report | str:
    """The report of the tool, or the error that it ends with."""
    try:
        return dilrewrite.optimize(model, **options)
    except DilrewriteError as error:
        return str(error)


class _Operators:
    """What sites are in the file, by the names of their nodes."""

    def __init__(self, proto: ModelProto) -> None:
        self.kinds: dict[str, str] = {}
        for node in all_nodes(proto):
            kind = node.op_type + (f" of {CONTRIB}" if node.domain == CONTRIB else "")
            if node.domain not in (*DEFAULT_DOMAINS, CONTRIB):
                kind = "Conv in a function"
            self.kinds |= dict.fromkeys(filter(None, (node.name, *node.output)), kind)

    def of(self, site: SiteReport) -> str:
        if site.sandwich:
            return SANDWICH
        kind = self.kinds.get(site.node) or self.kinds.get(site.output) or "Conv"
        where = " in a function" if site.where.startswith("function") else ""
        return f"{kind}{where}{' in QDQ' if kind == 'Conv' and site.geometry.quantized else ''}"


def _row(
    name: str, operator: str, eliminated: Report, forms: dict[str, Report | str], called: _Operators
) -> dict[str, Any]:
    def told(report: Report | str) -> dict[str, Any]:
        if isinstance(report, str):
            return {"error": report, "rewritten": 0}
        some = [one for one in report.sites if called.of(one) == operator]
        sites = [one for one in some if one.action == "rewritten"]
        keys = {one.key for one in sites}
        around = [one for one in report.regions if one.action == "rewritten" and keys.intersection(one.members)]
        proofs = [one.proof for one in (*sites, *around) if one.proof is not None]
        cases = report.verdict.cases if report.verdict is not None else ()
        return {
            "rewritten": len(sites),
            "by": sorted({one.strategy for one in sites}),
            "status": report.status,
            "exit": report.exit_code,
            "proofs": len(proofs),
            "passed": sum(proof.passed for proof in proofs),
            "input sets": len(cases),
            "kept": sorted({one.reason for one in some if one.action == "kept"}),
            "difference": max((output.max_abs for case in cases for output in case.outputs), default=None),
        }

    sites = [site for site in eliminated.sites if called.of(site) == operator]
    return {
        "model": name,
        "operator": operator,
        "sites": len(sites),
        "dilations": sorted({site.geometry.max_dilation for site in sites}),
        "forms": {form: told(report) for form, report in forms.items()},
        "eliminate": told(eliminated),
        "left": "; ".join(eliminated.remaining),
    }


# -- the page --------------------------------------------------------------------------------------------------------


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    forms, gone = row["forms"], row.get("eliminate")
    some = [one for one in (*forms.values(), gone) if one and one["rewritten"] and one["exit"] == 0]
    differences = [one["difference"] for one in some if one.get("difference") is not None]
    proofs = f"{sum(one['passed'] for one in some)} of {sum(one['proofs'] for one in some)}" if some else ""
    eliminated = f"{gone['rewritten']} ({', '.join(gone['by'])})" if gone else ""
    return (
        row["model"],
        row["operator"],
        str(row["sites"]),
        _by_form(forms, row["sites"]),
        eliminated,
        proofs,
        f"{max(differences):.2g}" if differences else "",
        row["left"],
    )


def _by_form(forms: dict[str, Any], sites: int) -> str:
    """How many sites each form rewrites: forms that do all, then others."""
    written = {form: one["rewritten"] for form, one in forms.items() if one.get("exit") == 0}
    whole = [f"`{form}`" for form, number in written.items() if number == sites]
    part = [f"`{form}` {number}" for form, number in written.items() if 0 < number < sites]
    differ = [f"`{form}`" for form, one in forms.items() if one.get("exit") == 3]
    none = [f"`{form}`" for form, one in forms.items() if not one["rewritten"]]
    words = [f"all: {', '.join(whole)}" if whole else "", f"some: {', '.join(part)}" if part else ""]
    words.append(f"no model, outputs differ: {', '.join(differ)}" if differ else "")
    return "; ".join(filter(None, [*words, f"refused: {', '.join(none)}" if none else ""]))


def page(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = (
        *("model", "operator", "#sites", "rewritten by form", "rewritten by `--eliminate`", "#proofs passed"),
        *("#largest difference", "left, and why"),
    )
    return [
        *heading("Every operator that dilates", about),
        "Each form alone (`--strategy`), then `--eliminate`. A proof holds a site to the original bit for bit "
        "on whole numbers; a region has one proof. The largest difference is that of an output of the whole "
        "model over all forms and sets of random inputs; of integers it is 0. Where a forced form of a QDQ "
        "Conv passes its proof and the whole models differ by more than they may, no model is written (exit "
        "code 3). Why a form refuses is in operators.json.",
        "",
        *table(columns, (_cells(row) for row in rows)),
    ]


if __name__ == "__main__":
    main()
