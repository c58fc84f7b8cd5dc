"""How long an exchange may take before anybody notices, and what its bytes cost: what widths are traded against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halocast.simulator.costs import Costs
from halocast.simulator.engine import RankWork, Simulation
from halocast.simulator.forecast import Scenario, machine_of
from halocast.simulator.network import Topology, star
from halocast.traces.operations import Direction, Exchange, Wait

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ExchangeKey = tuple[int, Direction]
FAST = 1e13
"""Bytes per second of a network that is never waited for."""


@dataclass(frozen=True)
class WireTimes:
    """What a byte from one rank to another costs, as far as it does not depend on the others' bytes."""

    paths: Ints
    """[ranks², hops] resources of the network between each two ranks, sender by sender."""
    capacity: Floats
    """[resources] bytes of messages per second."""
    handling: Floats
    """[ranks²] seconds of an epoch that a byte costs its ends' processors; 0 where they have time to spare."""

    @property
    def ranks(self) -> int:
        return math.isqrt(len(self.paths))

    def loads(self, sent: Floats) -> Floats:
        """[resources] seconds each is busy with `sent` [ranks²] bytes; the longest is how long the exchange takes."""
        flat = np.bincount(self.paths.ravel(), weights=np.repeat(sent, self.paths.shape[1]), minlength=len(self.capacity))
        return flat / self.capacity


def wire_times(costs: Costs, scenario: Scenario) -> WireTimes:
    """Of the scenario's network; processors are charged where its ranks share them, and outnumber them."""
    machine = machine_of(costs, scenario)
    ranks = scenario.ranks
    source, target = np.divmod(np.arange(ranks * ranks), ranks)
    crowded = machine.hosts is not None and ranks > machine.host.cores
    per_byte = 2.0 * costs.network.byte_seconds / machine.host.cores if crowded else 0.0
    return WireTimes(
        machine.topology.paths(source, target),
        machine.topology.capacity * costs.network.efficiency,
        np.where(source == target, 0.0, per_byte),
    )


def without_network(topology: Topology) -> Topology:
    """The same ranks behind links that nobody ever waits for."""
    return star(topology.ranks, FAST)


def windows(simulation: Simulation) -> dict[ExchangeKey, float]:
    """Seconds that each exchange may take unnoticed: from its start to the last wait for it, mean over ranks.

    `simulation`: of an epoch whose messages arrive at once (`without_network`), so that all that passes is work.
    """
    spans: dict[ExchangeKey, list[float]] = {}
    for work, timeline in zip(simulation.work, simulation.ranks, strict=True):
        last = last_waits(work)
        for index, operation in enumerate(work.operations):
            if isinstance(operation, Exchange):
                wait = last.get(index)
                span = 0.0 if wait is None else float(timeline.start[wait] - timeline.start[index])
                spans.setdefault((operation.layer, operation.direction), []).append(max(0.0, span))
    return {key: float(np.mean(values)) for key, values in spans.items()}


def last_waits(work: RankWork) -> dict[int, int]:
    """The last Wait for each Exchange, by their indices."""
    return {flight: wait for wait, flight in sorted(work.flights.items()) if isinstance(work.operations[wait], Wait)}


def exposed(seconds: Floats | Sequence[float], window: float) -> Floats:
    """What of exchanges that long is not hidden."""
    return np.maximum(0.0, np.asarray(seconds, dtype=np.float64) - window)
