"""One rank of the transport test: the same messages as they are, and through host staging; prints nothing if all is well."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist

from halocast.runtime.exchange.clocks import measure_clock_offset
from halocast.runtime.exchange.transport import GlooTransport


def main() -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    for stage in (False, True):
        transport = GlooTransport(20.0, stage=stage)
        peers = [peer for peer in range(world_size) if peer != rank]
        for length in (1, 1000, 300_000):
            before = time.monotonic_ns()
            outgoing = [(peer, torch.full((length, 3), float(10 * rank + peer))) for peer in peers]
            incoming = [(peer, torch.zeros(length, 3)) for peer in peers]
            flight = transport.start_exchange(outgoing, incoming)
            for peer in peers:
                flight.wait(peer)
            after = time.monotonic_ns()
            for peer, rows in incoming:
                assert (rows == 10 * peer + rank).all()
                assert before <= flight.received_ns(peer) <= after
                assert before <= flight.sent_ns(peer) <= after
        values = torch.arange(5, dtype=torch.float64) + rank
        sum_flight = transport.start_all_reduce(values)
        sum_flight.wait()
        assert (values == world_size * torch.arange(5) + sum(range(world_size))).all()
        assert sum_flight.received_ns() > 0
        assert transport.share(f"ranks-{stage}", {"rank": rank}) == [{"rank": peer} for peer in range(world_size)]
        offset = measure_clock_offset(transport)
        assert abs(offset.offset_ns) <= offset.uncertainty_ns + 1_000_000  # one machine, one clock
        assert offset.uncertainty_ns < 5_000_000_000
        one_sided = transport.start_exchange(
            [(1, torch.ones(4))] if rank == 0 else [], [(0, torch.zeros(4))] if rank == 1 else []
        )
        one_sided.wait()
        transport.share(f"over-{stage}", True)


if __name__ == "__main__":
    main()
