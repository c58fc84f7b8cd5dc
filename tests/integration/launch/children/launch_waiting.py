"""A launcher to be killed: starts `wait` ranks, on the hosts named by its second argument."""

import signal
import sys
from pathlib import Path

from halocast.runtime.launch import launch_local
from halocast.runtime.testbed import HostSpec

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in its background has it ignored
folder = Path(sys.argv[1])
try:
    launch_local("wait", [str(folder)], ranks=2, hosts=HostSpec.parse(sys.argv[2]), threads=1, log_folder=folder, timeout_s=60)
except KeyboardInterrupt:
    sys.exit(130)
