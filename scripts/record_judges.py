"""Asks the judges anew what tests need of them, and writes their answers down: `python scripts/record_judges.py`.

Each answer has the command, the judge's version and the digest of what it was asked about. Needs the judges
(`dilrewrite targets install-judge ethos-u-vela`, and so on); one that is not installed is left out, and said.
`record_judges.py NAME ...` asks about some of them only: ethos_u, ethos_u_target, rknn, and profiles that have a judge.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dilrewrite.runtimes import RuntimeFailure, ethos_u  # noqa: E402
from dilrewrite.runtimes import _rknn as kit  # noqa: E402
from dilrewrite.runtimes import _vela as vela  # noqa: E402
from dilrewrite.runtimes.rknn import TOOLKITS  # noqa: E402
from dilrewrite.targets import profiles  # noqa: E402
from tests.runtimes import judged, judged_rknn, judged_target  # noqa: E402
from tests.targets import limits  # noqa: E402


def vela_answers() -> Iterator[dict[str, Any]]:
    for make in judged.MODELS.values():
        for version, accelerator in judged.ASKED:
            yield json.loads(vela.ask(ethos_u.COMPILERS[version], make(), accelerator, 600.0).text())


def target_answers() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        yield from judged_target.answers(Path(folder))


def rknn_answers() -> Iterator[dict[str, Any]]:
    for name, (make, platforms) in judged_rknn.MODELS.items():
        for judge in TOOLKITS.values():
            for platform in platforms:
                try:
                    said = json.loads(kit.ask(judge, make(), platform, 600.0).text())
                except RuntimeFailure as error:
                    said = {"refused": str(error), "version": judge.version, "digest": kit.digest(make())}
                yield {"model": name, "platform": platform, **said}


def limits_of(name: str) -> Iterator[dict[str, Any]]:
    profile = profiles()[name]
    for case in limits.cases(profile):
        yield dataclasses.asdict(limits.ask(profile, case))


def main() -> None:
    runtimes = {"ethos_u": (ethos_u.COMPILERS["5.2.0"], judged.RECORDED, vela_answers)}
    runtimes["ethos_u_target"] = (ethos_u.COMPILERS["5.2.0"], judged_target.RECORDED, target_answers)
    runtimes["rknn"] = (TOOLKITS["2.5.0"], judged_rknn.RECORDED, rknn_answers)
    for name, judge in limits.JUDGED.items():
        runtimes[name] = (judge, limits.RECORDED / f"{name}.json", functools.partial(limits_of, name))
    for name in sys.argv[1:] or runtimes:
        judge, file, answers = runtimes[name]
        if judge.missing() is not None:
            print(f"{name}: {judge.missing()}")
            continue
        lines = ",\n".join(map(json.dumps, answers()))
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(f"{name}: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
