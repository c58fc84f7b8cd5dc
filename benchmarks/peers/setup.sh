#!/usr/bin/env bash
# Makes the environment of the peers, apart from halocast's own: setup.sh [FOLDER]
set -euo pipefail

folder="${1:-${HALOCAST_PEERS:-$HOME/.cache/halocast/peers}}"
python="${PYTHON:-python3.11}" # DGL 1.1.3 has no wheels for Python 3.12 and later

"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet "torch==2.13.0"
"$folder/bin/pip" install --quiet "torch_geometric==2.8.1" scipy scikit-learn pandas psutil "pymetis==2025.2.2"
# DGL imports packaging without asking for it
"$folder/bin/pip" install --quiet packaging "dgl==1.1.3"

DGLBACKEND=pytorch "$folder/bin/python" -W ignore -c '
import dgl, torch, torch_geometric
print("torch", torch.__version__, "· dgl", dgl.__version__, "· torch_geometric", torch_geometric.__version__)'
echo "made $folder; next: $folder/bin/python -m benchmarks.peers.run GRAPH.npz"
