"""A rank whose messages land late: `python -m benchmarks.delayed_rank JOB`, with HALOCAST_DELAY_MS in its environment.

What each exchange brings counts as landed no sooner than so long after it was started, at no cost to anybody's core.
"""

from __future__ import annotations

import os
import sys
import time

from halocast.runtime.exchange import transport
from halocast.runtime.exchange.transport import Flight, GlooTransport
from halocast.runtime.worker import main


class LateFlight(Flight):
    """Another flight, waited for until it is due."""

    def __init__(self, flight: Flight, due: float) -> None:
        self._flight, self._due = flight, due

    def wait(self, peer: int = -1) -> None:
        self._flight.wait(peer)
        left = self._due - time.monotonic()
        if left > 0.0:
            time.sleep(left)

    def sent_ns(self, peer: int = -1) -> int:
        return self._flight.sent_ns(peer)

    def received_ns(self, peer: int = -1) -> int:
        return max(self._flight.received_ns(peer), int(self._due * 1e9))


DELAY_S = float(os.environ.get("HALOCAST_DELAY_MS", "0")) / 1e3


class LateTransport(GlooTransport):
    """Gloo, whose exchanges take at least `DELAY_S`."""

    def start_exchange(self, outgoing: transport.MessageList, incoming: transport.MessageList) -> Flight:
        return LateFlight(super().start_exchange(outgoing, incoming), time.monotonic() + DELAY_S)


if __name__ == "__main__":
    transport.GlooTransport = LateTransport  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
