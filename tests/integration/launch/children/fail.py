"""Rank 1 fails in the way named by the first argument; the others lose their peer, as gloo would tell them."""

import os
import sys
import time

from halocast.errors import MisuseError
from halocast.runtime.supervise import report_exception

way, rank = sys.argv[1], int(os.environ["RANK"])
LOST = "[pair.cc:534] Connection closed by peer [127.0.0.1]:4242"

if way == "raises" and rank == 1:
    raise ValueError("no such weather")
if way == "exits" and rank == 1:
    sys.exit(7)
if way in ("reports", "misuse"):
    # The consequence is reported before the cause.
    time.sleep(0.4 if rank == 1 else 0.0)
    error: Exception = RuntimeError(LOST)
    if rank == 1:
        error = ValueError("the cause\nwith a stack trace") if way == "reports" else MisuseError("K is above the nodes")
    report_exception(error)
    sys.exit(error.exit_code if isinstance(error, MisuseError) else 1)
time.sleep(300)
