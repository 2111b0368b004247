#!/usr/bin/env bash
# Builds the documentation into site/ (or the folder named); every warning is an error, a link that leads nowhere too.
# Needs `pip install -e '.[docs]'`; PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export NO_MKDOCS_2_WARNING=1
site=$(realpath -m "${1:-site}")
"${PYTHON:-python}" -m mkdocs build --strict --site-dir "$site"
if grep -rnoE '<(script|link|img|iframe)[^>]+(src|href)="?https?:[^ ]*' "$site" --include='*.html'; then
  echo "pages load nothing from other hosts, these do"
  exit 1
fi
