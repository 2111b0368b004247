#!/usr/bin/env bash
# Runs the tests of the passes for other tools against these tools themselves, in an environment of its own (or the one named).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-$(mktemp -d)/venv}
[ -d "$venv" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q torch==2.13.0 -e '.[cpu,test,olive]'
"$venv/bin/python" -m pytest -q -W error tests/integrations
