"""Puts the synthetic runs of ``tests/golden`` within reach of the tests here."""

import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
if str(GOLDEN) not in sys.path:
    sys.path.insert(0, str(GOLDEN))
