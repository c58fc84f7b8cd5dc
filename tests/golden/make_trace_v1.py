"""Made `trace-v1` once. Run it again only for a new schema version, into a folder of that version.

python tests/golden/make_trace_v1.py tests/golden/trace-v1
"""

import sys
from pathlib import Path

from synthetic import Scenario, write_synthetic_run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder} exists: a golden trace is never written again")
    write_synthetic_run(folder, Scenario(layers=2, epochs=1, rows=1_000, dim=16, noise=0.0))
