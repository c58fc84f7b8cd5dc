"""Timing operations without disturbing them: the thread's clocks on a CPU, events on a GPU, read when all is done."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

import torch


class Timing(NamedTuple):
    """When an operation started, how long it took, and the CPU time of the driving thread (or device time) in it."""

    start_ns: int
    wall_ns: int
    cpu_ns: int


class Clock(Protocol):
    """Stamps are cheap and opaque; `timing` may only be asked after `settle`."""

    def stamp(self) -> Any: ...

    def settle(self) -> None:
        """Wait until every stamp of the epoch can be read."""

    def next_epoch(self) -> None:
        """Everything stamped so far has been read."""

    def timing(self, before: Any, after: Any) -> Timing: ...


class ThreadClock:
    """CPU operations run when they are called: monotonic and thread-CPU time around the call."""

    def stamp(self) -> tuple[int, int]:
        return time.monotonic_ns(), time.thread_time_ns()

    def settle(self) -> None:
        pass

    def next_epoch(self) -> None:
        pass

    def timing(self, before: tuple[int, int], after: tuple[int, int]) -> Timing:
        return Timing(before[0], after[0] - before[0], after[1] - before[1])


class DeviceClock:
    """CUDA operations are queued: events in the stream bracket them, and one wait an epoch makes all readable.

    Device times are put on the host's clock by a reference event whose completion the host saw. It is renewed at every
    `settle`: elapsed times are single-precision milliseconds, too coarse over a whole run.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._reference = self.stamp()
        self._reference.synchronize()
        self._reference_ns = time.monotonic_ns()

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def settle(self) -> None:
        torch.cuda.synchronize()

    def next_epoch(self) -> None:
        self._renew()

    def host_ns(self, event: torch.cuda.Event) -> int:
        """When a completed event happened, in monotonic ns."""
        return self._reference_ns + int(self._reference.elapsed_time(event) * 1e6)

    def timing(self, before: torch.cuda.Event, after: torch.cuda.Event) -> Timing:
        device_ns = int(before.elapsed_time(after) * 1e6)
        return Timing(self.host_ns(before), device_ns, device_ns)


def clock_of(device: torch.device) -> ThreadClock | DeviceClock:
    """The clock for operations on `device`."""
    return DeviceClock() if device.type == "cuda" else ThreadClock()
