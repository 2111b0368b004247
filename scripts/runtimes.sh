#!/usr/bin/env bash
# Runs what other runtimes than ONNX Runtime promise, for real, in a virtual environment of their own in folder $1: the
# tests of the runtime protocol, `optimize` on a demo model, TFLite's interpreter and Vela on what is written for them. ONNX
# Runtime Web has its turn where npm and node are installed, ncnn where it and pnnx install.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
${PYTHON:-python3} -m venv "$work/venv"
"$work/venv/bin/pip" install -q -e '.[cpu,opencv,openvino,tract,test]' 'opencv-python-headless<5' ai-edge-litert
"$work/venv/bin/python" -m pytest -q -n 2 tests/tflite tests/devices/test_ssh_runtimes.py \
  tests/runtimes/test_{contract,installed,opencv_dnn,openvino_cpu}.py

# Vela, Arm's compiler for Ethos-U, answers as it is on record.
export DILREWRITE_JUDGES="$work/judges"
"$work/venv/bin/python" -c 'from dilrewrite.judges import install; install("ethos-u-vela")'
"$work/venv/bin/python" -m pytest -q -n 2 tests/runtimes/test_ethos_u.py tests/runtimes/test_contract.py -k ethos_u

# RKNN-Toolkit2, Rockchip's compiler, in half a minute and 710 MB: only for those who accept its licence, the RKNN SDK License.
if [ -n "${ACCEPT_RKNN_LICENSE:-}" ]; then
  "$work/venv/bin/python" -c 'from dilrewrite.judges import install; install("rknn-toolkit2")'
  "$work/venv/bin/python" -m pytest -q -n 2 tests/runtimes/test_rknn.py tests/runtimes/test_contract.py -k rknn
else
  echo "rknn is not tried: ACCEPT_RKNN_LICENSE is not set"
fi

for backend in opencv openvino tract; do
  "$work/venv/bin/dilrewrite" optimize models/aspp_segmentation.onnx --backend "$backend" --budget 10 \
    -o "$work/$backend.onnx" --force
done

# ONNX Runtime Web comes from npm, and runs under node 20 or later.
if command -v npm > /dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2> /dev/null &&
  timeout 120 npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$work/npm" onnxruntime-web; then
  export NODE_PATH="$work/npm/node_modules"
  "$work/venv/bin/python" -m pytest -q -n 2 tests/runtimes/test_onnxruntime_web.py tests/runtimes/test_contract.py -k web
  "$work/venv/bin/dilrewrite" optimize models/aspp_segmentation.onnx --backend onnxruntime_web --budget 5 \
    -o "$work/web.onnx" --force
else
  echo "onnxruntime_web is not tried: npm, or node 20 or later, is not installed, or did not install it"
fi

# ncnn, with pnnx, of which only the program is used: it asks for torch, which is left out.
if timeout 120 "$work/venv/bin/pip" install -q -e '.[ncnn]' &&
  timeout 120 "$work/venv/bin/pip" install -q --no-deps 'pnnx>=20261020'; then
  "$work/venv/bin/python" -m pytest -q -n 2 tests/runtimes/test_ncnn.py tests/runtimes/test_contract.py -k ncnn
  "$work/venv/bin/dilrewrite" optimize models/causal_tcn.onnx --backend ncnn --threads 1 --budget 10 \
    -o "$work/ncnn.onnx" --force
else
  echo "ncnn is not tried: it or pnnx did not install within two minutes"
fi

# OpenCV 5 has the name of OpenCV 4, so it has an environment of its own: both engines, and what the new one computes wrongly.
${PYTHON:-python3} -m venv "$work/opencv5"
"$work/opencv5/bin/pip" install -q -e '.[cpu,opencv,test]' 'opencv-python-headless>=5'
"$work/opencv5/bin/python" -m pytest -q -n 2 tests/runtimes/test_opencv_dnn.py tests/runtimes/test_contract.py -k opencv
