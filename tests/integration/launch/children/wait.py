"""Starts a grandchild, tells both process ids and its network namespace, and stays until it is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from halocast.runtime.supervise import heartbeat

grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
told = {"rank": os.getpid(), "grandchild": grandchild.pid, "network": os.readlink("/proc/self/ns/net")}
folder = Path(sys.argv[1])
temporary = folder / f".pids-{os.environ['RANK']}"
temporary.write_text(json.dumps(told), encoding="utf-8")
temporary.replace(folder / f"pids-{os.environ['RANK']}")
while True:
    heartbeat()
    time.sleep(0.05)
