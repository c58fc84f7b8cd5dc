"""All-reduces a vector over gloo; every rank checks the sum elementwise, rank 0 tells its traffic and interface."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

COUNT = 200_000

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
values = torch.arange(COUNT, dtype=torch.float64) * (rank + 1)
dist.all_reduce(values)
expected = torch.arange(COUNT, dtype=torch.float64) * (world * (world + 1) // 2)
assert torch.equal(values, expected)
if rank == 0:
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    # /proc/net is of this process's own namespace; /sys shows the one it was mounted in.
    counters = dict(line.split(":") for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    sent = int({name.strip(): row for name, row in counters.items()}[interface].split()[8])
    print(json.dumps({"interface": interface, "sent": sent, "vector_bytes": 8 * COUNT}))
dist.destroy_process_group()
