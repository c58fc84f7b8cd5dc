"""Every rank makes a few steps; rank 1 stops before the last, and the others wait for it."""

import os
import time

from halocast.runtime.supervise import heartbeat

for step in range(4):
    if os.environ["RANK"] == "1" and step == 3:
        time.sleep(300)
    heartbeat()
    time.sleep(0.1)
time.sleep(300)
