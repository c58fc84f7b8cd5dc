#!/usr/bin/env bash
# Everything that needs a GPU, in under fifteen minutes: correctness, the codec of quantised messages (its bytes, accesses, speed),
# attention (its results, accesses, speed), several ranks on one GPU over gloo with pinned staging, one rank over NCCL, traces with
# device times and memory peaks. Results go to $OUT (default benchmarks/results), dated, the device named.
#   benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
PY=${PYTHON:-.venv/bin/python}
STAMP=$(date +%F)
DEVICE=$($PY -c 'import torch; print(torch.cuda.get_device_name(0).replace(" ", "-") if torch.cuda.is_available() else "")')
if [ -z "$DEVICE" ]; then
  echo "gpu.sh: torch sees no GPU here; nothing was measured" >&2
  exit 3
fi
mkdir -p "$OUT"
LOG="$OUT/gpu-$DEVICE-$STAMP.txt"
exec > >(tee "$LOG") 2>&1
echo "device $DEVICE, $STAMP"
$PY -m halocast doctor

echo "== gradients on the GPU against the dense reference"
$PY -m pytest -q tests/unit/runtime/test_exactness.py -k gpu

echo "== the CUDA codec against the CPU's, bit for bit"
CODEC_TESTS=tests/unit/kernels/test_codec_cuda.py
timeout 90 $PY -m pytest -q "$CODEC_TESTS" -k gpu
SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
if [ -n "$SANITIZER" ]; then
  for tool in memcheck racecheck; do
    echo "== the CUDA codec under compute-sanitizer, $tool"
    timeout 75 "$SANITIZER" --tool "$tool" --error-exitcode 9 $PY -m pytest -q "$CODEC_TESTS" -k "gpu and mixed_widths and 33" |
      tail -n 15
  done
else
  echo "compute-sanitizer was not found: accesses of the CUDA codec go unchecked"
fi
echo "== the CUDA codec's speed"
timeout 120 $PY -m benchmarks.codec_gpu --out "$OUT"

echo "== CUDA attention against the CPU's, within rounding; extremes bit for bit"
ATTEND_TESTS=tests/unit/kernels/test_attend_cuda.py
timeout 60 $PY -m pytest -q "$ATTEND_TESTS" -k gpu
if [ -n "$SANITIZER" ]; then
  for tool in memcheck racecheck; do
    echo "== CUDA attention under compute-sanitizer, $tool"
    timeout 60 "$SANITIZER" --tool "$tool" --error-exitcode 9 $PY -m pytest -q "$ATTEND_TESTS" -k "gpu and (3-33 or extremes) and float32" |
      tail -n 15
  done
fi
echo "== CUDA attention's speed"
timeout 100 $PY -m benchmarks.attend_gpu --out "$OUT"

RUNS=$(mktemp -d)
GRAPH="generated:nodes=100000,degree=30"
one() { # NAME ARGUMENTS...
  local name=$1
  shift
  echo "== $name"
  timeout 120 $PY -m halocast train "$GRAPH" --epochs 30 --out "$RUNS/$name" --set training.checkpoint_every=0 "$@" --json \
    > "$OUT/gpu-$name-$STAMP.json" && $PY - "$OUT/gpu-$name-$STAMP.json" <<'P'
import json, sys
run = json.load(open(sys.argv[1]))
print({key: run[key] for key in ("ranks", "loss", "epoch_seconds", "peak_bytes", "exchange_bytes_per_epoch")})
P
}
one cpu-1 --ranks 1
one cuda-1 --ranks 1 --device cuda
one cuda-1-nccl --ranks 1 --device cuda --set backend=nccl
one cuda-2-gloo --ranks 2 --device cuda --set backend=gloo
one cuda-4-gloo --ranks 4 --device cuda --set backend=gloo
one cuda-4-gloo-plain --ranks 4 --device cuda --set backend=gloo --set method.exact.keep_halo_features=false \
  --set method.exact.aggregate_features_once=false

echo "== loss of the last epoch, GPU against CPU"
$PY - "$OUT" "$STAMP" <<'P'
import json, pathlib, sys
folder, stamp = pathlib.Path(sys.argv[1]), sys.argv[2]
runs = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"gpu-c*-{stamp}.json"))}
reference = runs[f"gpu-cpu-1-{stamp}.json"]["loss"]
for name, run in runs.items():
    print(f"{name:<40} {run['loss']:.6f} {run['loss'] / reference - 1:+.2e}")
P
rm -rf "$RUNS"
