#!/usr/bin/env bash
# Runs what other runtimes than ONNX Runtime promise, for real, in a virtual environment of their own in folder $1: the
# tests of the runtime protocol, `optimize` on a demo model, and TFLite's interpreter on what is written for it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
${PYTHON:-python3} -m venv "$work/venv"
"$work/venv/bin/pip" install -q -e '.[cpu,opencv,openvino,tract,test]' ai-edge-litert
"$work/venv/bin/python" -m pytest -q -n 2 tests/runtimes/test_contract.py tests/tflite
for backend in opencv openvino tract; do
  "$work/venv/bin/dilrewrite" optimize models/aspp_segmentation.onnx --backend "$backend" --budget 10 \
    -o "$work/$backend.onnx" --force
done
