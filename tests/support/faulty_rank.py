"""A rank in which communication fails on purpose: ``python -m tests.support.faulty_rank JOB`` or ``... train GRAPH ...``.

FAULT names what happens, FAULT_RANK to which rank, FAULT_AFTER after how many of its exchanges or sums, FAULT_FILE a file that
is made at that moment. The other ranks are untouched.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from halocast.runtime import run, worker
from halocast.runtime.exchange.transport import GlooTransport

FAULTS = ("exchange", "all-reduce", "sockets", "killed", "sharing", "joining")
INJECTED = "the cable is out"


def fail(fault: str) -> None:
    Path(os.environ["FAULT_FILE"]).touch()
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault != "sockets":
        raise RuntimeError(INJECTED)
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            connection = socket.socket(fileno=os.dup(int(descriptor)))
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.shutdown(socket.SHUT_RDWR)


def inject(fault: str, after: int) -> None:
    """Make this process fail; `joining`: before it has met the others."""
    if fault == "joining":

        def refuse(*arguments: Any, **settings: Any) -> Any:
            fail(fault)

        run.check = worker.take_place = refuse
        return
    name = {"all-reduce": "start_all_reduce", "sharing": "share"}.get(fault, "start_exchange")
    after = 1 if fault == "sharing" else after
    original, calls = getattr(GlooTransport, name), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += fault != "sharing" or arguments[1] == "manifest"  # the last of the set-up, whoever launched the rank
        if calls == after:
            fail(fault)
        return original(*arguments)

    setattr(GlooTransport, name, counted)


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ["FAULT_RANK"]:
        inject(os.environ["FAULT"], int(os.environ["FAULT_AFTER"]))
    if sys.argv[1] == "train":
        from halocast.cli import main

        main(sys.argv[1:])
    code = worker.main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
