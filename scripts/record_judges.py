"""Asks the judges anew what tests need of them, and writes their answers down: `python scripts/record_judges.py`.

Each answer has the command, the judge's version and the digest of what it was asked about. Needs the judges:
`dilrewrite targets install-judge ethos-u-vela`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dilrewrite.runtimes import _vela as vela  # noqa: E402
from dilrewrite.runtimes.ethos_u import JUDGE  # noqa: E402
from tests.runtimes.judged import ACCELERATORS, MODELS, RECORDED  # noqa: E402


def main() -> None:
    answers = [
        json.loads(vela.ask(JUDGE, written, accelerator, 600.0).text())
        for written in (make() for make in MODELS.values())
        for accelerator in ACCELERATORS
    ]
    RECORDED.parent.mkdir(exist_ok=True)
    lines = ",\n".join(map(json.dumps, answers))
    RECORDED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
