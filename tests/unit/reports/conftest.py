"""Puts the synthetic runs of ``tests/golden``, and what all pages are read with, within reach of the tests here."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1] / "golden"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
