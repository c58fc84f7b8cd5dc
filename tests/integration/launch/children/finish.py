"""Prints where this rank stands and ends well."""

import json
import os
import sys

names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
print(json.dumps({name: os.environ[name] for name in names}))
print(json.dumps({"arguments": sys.argv[1:], "marker": os.environ.get("MARKER"), "session": os.getsid(0) == os.getpid()}))
print(f"rank {os.environ['RANK']} writes to stderr", file=sys.stderr)
print("last line, without its newline", end="")
