"""How far each rank's monotonic clock is from rank 0's: the midpoint rule of NTP over the fastest of many round trips."""

from __future__ import annotations

import time

import torch

from halocast.runtime.exchange.transport import Transport
from halocast.traces.trace import ClockOffset

ROUND_TRIPS = 20


def measure_clock_offset(transport: Transport) -> ClockOffset:
    """Exchange time stamps with rank 0; all ranks must call it together (rank 0 serves one peer after the other)."""
    if transport.rank == 0:
        for peer in range(1, transport.world_size):
            for _ in range(ROUND_TRIPS):
                _receive(transport, peer)
                _send(transport, peer)
        return ClockOffset()
    best = ClockOffset(uncertainty_ns=2**62)
    for _ in range(ROUND_TRIPS):
        departed = time.monotonic_ns()
        _send(transport, 0)
        reference = _receive(transport, 0)
        arrived = time.monotonic_ns()
        if (arrived - departed) // 2 < best.uncertainty_ns:
            middle = (departed + arrived) // 2
            best = ClockOffset(offset_ns=middle - reference, uncertainty_ns=(arrived - departed) // 2)
    return best


def _send(transport: Transport, peer: int) -> None:
    transport.start_exchange([(peer, torch.tensor([time.monotonic_ns()]))], []).wait()


def _receive(transport: Transport, peer: int) -> int:
    stamp = torch.zeros(1, dtype=torch.int64)
    transport.start_exchange([], [(peer, stamp)]).wait()
    return int(stamp.item())
