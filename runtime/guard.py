"""Started as a script beside a local run: outlives a killed launcher just long enough to leave nothing behind.

``python -I -S guard.py FOLDER [network]``. Reads ``+GROUP`` and ``-GROUP`` lines (process groups that live and have been
dealt with) on standard input. At its end, however the launcher came to it, the groups that are left are killed and
FOLDER is removed. With `network` it holds the unnamed network namespace of the testbed's bridge. Writes one line when
ready: ``ready``, or why not.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys


def hold_network() -> str:
    """Enter a network namespace of its own; return ``ready`` or the kernel's reason."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from bootstrap import enter_new_network

    try:
        enter_new_network()
    except OSError as error:
        return str(error)
    return "ready"


def watch() -> set[int]:
    """Return the process groups that are left when standard input ends."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    return groups


def main(arguments: list[str]) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    folder, *network = arguments
    print(hold_network() if network else "ready", flush=True)
    for group in watch():
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
