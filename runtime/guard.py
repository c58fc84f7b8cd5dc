"""Started as a script beside a local run: outlives a killed launcher just long enough to leave nothing behind.

``python -I -S guard.py FOLDER``. Reads ``+GROUP`` and ``-GROUP`` lines (process groups that live, and that have been
dealt with) on standard input. When that ends, however the launcher came to its own end, the groups that are left are
killed and FOLDER is removed. The kernel itself kills the ranks with their launcher (`bootstrap.die_with_launcher`);
the guard also reaches what the ranks started.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys


def watch() -> set[int]:
    """Return the process groups that are left when standard input ends."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    return groups


def main(folder: str) -> None:
    for group in watch():
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
