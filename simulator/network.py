"""The network as a fluid: flows share ports, links inside a host and trunks max–min fairly.

A *resource* is anything with a capacity in bytes per second: a rank's port (one for each way), a host's port, a trunk. A
flow crosses up to `HOPS` of them. Rates are max–min fair: all flows grow alike until a resource is full, which fixes the
flows across it; the others grow on. Bertsekas and Gallager, Data Networks, section 6.5.2.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import simpy

HOPS = 6
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Topology:
    """Which resources lie between any two ranks."""

    capacity: Floats
    """[resources] bytes per second; the last one is nobody's and without limit."""
    burst: Floats
    """[resources] bytes that pass at once after a pause (a token bucket's)."""
    outward: Ints
    """[ranks, 3] what a rank's messages cross on their way to another host: its port, its host's, a trunk."""
    inward: Ints
    """[ranks, 3] what messages from another host cross on their way in."""
    inside: Ints
    """[ranks, 2] the ports (out, in) that messages between ranks of one host cross instead."""
    host: Ints
    """[ranks] the host a rank is on."""
    switch: Ints | None = None
    """[ranks] the switch a rank's host is on; messages within one cross no trunk. None: one switch."""
    latency: float = 0.0
    """Seconds a message takes beside its transfer, between hosts."""
    latency_inside: float = 0.0
    """The same within a host."""
    queue_seconds: float = 0.0
    """The longest queue of a port, in seconds at its rate: what a small message may have to wait for others'."""

    @property
    def ranks(self) -> int:
        return len(self.host)

    def path(self, source: int, target: int) -> tuple[int, ...]:
        """Resources between two ranks, `HOPS` of them, filled up with the one without limit."""
        return tuple(self.paths(np.array([source]), np.array([target]))[0])

    def paths(self, source: Ints, target: Ints) -> Ints:
        """[flows, HOPS] for flows between these ranks."""
        nobody = len(self.capacity) - 1
        same = self.host[source] == self.host[target]
        paths = np.full((len(source), HOPS), nobody, dtype=np.int64)
        paths[~same, :3], paths[~same, 3:] = self.outward[source[~same]], self.inward[target[~same]]
        if self.switch is not None:
            near = ~same & (self.switch[source] == self.switch[target])
            paths[near, 2] = paths[near, 3] = nobody
        paths[same, 0], paths[same, 1] = self.inside[source[same], 0], self.inside[target[same], 1]
        return paths

    def latencies(self, source: Ints, target: Ints) -> Floats:
        """[flows] seconds beside the transfer."""
        return np.where(self.host[source] == self.host[target], self.latency_inside, self.latency)


def star(
    ranks: int, rate: float | Floats, *, latency: float = 0.0, burst: float | Floats = 0.0, queue_seconds: float = 0.0
) -> Topology:
    """Every rank behind a port of `rate` bytes per second either way, on a switch that is never the limit.

    `rate` and `burst` (bytes) are of all ports, or [ranks] of each.
    """
    nobody = 2 * ranks
    ports = np.arange(ranks)
    none = np.full(ranks, nobody)
    return Topology(
        capacity=_of_ports(ranks, rate, np.inf),
        burst=_of_ports(ranks, burst, 0.0),
        outward=np.stack([ports, none, none], axis=1),
        inward=np.stack([none, none, ranks + ports], axis=1),
        inside=np.stack([ports, ranks + ports], axis=1),
        host=ports,
        latency=latency,
        queue_seconds=queue_seconds,
    )


def _of_ports(ranks: int, value: float | Floats, nobody: float) -> Floats:
    """[resources] of a star: the same for both ways of a port."""
    each = np.broadcast_to(value, ranks)
    return np.concatenate([each, each, [nobody]])


BURST_SECONDS, LEAST_BURST, QUEUE_SECONDS = 1e-3, 65_536.0, 0.05
"""The testbed's token buckets: what they hold, and how long a packet may queue before one."""


def testbed(ranks: int, link: float | Sequence[float], unshaped_rate: float) -> Topology:
    """Ranks of one machine: behind shaped links of `link` bytes per second (of all, or of each), or (0) on its loopback."""
    rate = np.asarray(link, dtype=np.float64)
    is_shaped = rate > 0.0
    if not is_shaped.any():
        return star(ranks, unshaped_rate)
    burst = np.where(is_shaped, np.maximum(LEAST_BURST, rate * BURST_SECONDS), 0.0)
    return star(ranks, np.where(is_shaped, rate, unshaped_rate), burst=burst, queue_seconds=QUEUE_SECONDS)


def with_ports(topology: Topology, rates: Sequence[float]) -> Topology:
    """The same with ranks' own ports of other `rates` [ranks], in bytes per second; hosts' ports and trunks stay."""
    capacity, each = topology.capacity.copy(), np.asarray(rates, dtype=np.float64)
    capacity[topology.inside[:, 0]] = capacity[topology.inside[:, 1]] = each
    return replace(topology, capacity=capacity)


def cluster(
    ranks: int,
    ranks_per_host: int,
    *,
    port_rate: float,
    inside_rate: float,
    latency: float,
    latency_inside: float,
    hosts_per_switch: int = 0,
    oversubscription: float = 1.0,
) -> Topology:
    """Hosts of several ranks: ranks of one host talk over `inside_rate` links, hosts over one port each, in bytes per second.

    With `hosts_per_switch`, switches of so many hosts are joined by trunks that carry 1 / `oversubscription` of what their
    hosts could send.
    """
    hosts = -(-ranks // ranks_per_host)
    host = np.arange(ranks) // ranks_per_host
    switch = host // hosts_per_switch if hosts_per_switch else np.zeros(ranks, dtype=np.int64)
    switches = int(switch.max()) + 1 if hosts_per_switch else 0
    first_port, first_trunk = 2 * ranks, 2 * ranks + 2 * hosts
    trunk_rate = port_rate * hosts_per_switch / oversubscription
    capacity = [inside_rate] * (2 * ranks) + [port_rate] * (2 * hosts) + [trunk_rate] * (2 * switches) + [np.inf]
    nobody, each = len(capacity) - 1, np.arange(ranks)
    trunk_out = first_trunk + switch if switches > 1 else np.full(ranks, nobody)
    trunk_in = first_trunk + switches + switch if switches > 1 else np.full(ranks, nobody)
    return Topology(
        capacity=np.array(capacity),
        burst=np.zeros(len(capacity)),
        outward=np.stack([each, first_port + host, trunk_out], axis=1),
        inward=np.stack([trunk_in, first_port + hosts + host, ranks + each], axis=1),
        inside=np.stack([each, ranks + each], axis=1),
        host=host,
        switch=switch if switches > 1 else None,
        latency=latency,
        latency_inside=latency_inside,
    )


def max_min_rates(paths: Ints, capacity: Floats) -> Floats:
    """[flows] max–min fair rates of flows across the resources `paths` [flows, hops], capacities in bytes per second.

    Every round fixes the flows of all resources that are the tightest for each flow across them, not of one only: the
    answer is the same and a few rounds do.
    """
    flows, resources = len(paths), len(capacity)
    rates = np.full(flows, np.inf)
    left = capacity.astype(np.float64, copy=True)
    active = np.arange(flows)
    crossed = paths
    while active.size:
        counts = np.bincount(crossed.ravel(), minlength=resources)
        share = np.divide(left, counts, out=np.full(resources, np.inf), where=counts > 0)
        limit = share[crossed].min(axis=1)
        tightest = np.full(resources, np.inf)  # the least limit of any flow across the resource
        np.minimum.at(tightest, crossed.ravel(), np.repeat(limit, crossed.shape[1]))
        full = share <= tightest * (1.0 + 1e-12)
        fixed = np.isinf(limit) | (full[crossed] & (share[crossed] <= limit[:, None] * (1.0 + 1e-12))).any(axis=1)
        rates[active[fixed]] = limit[fixed]
        taken = np.bincount(
            crossed[fixed].ravel(), weights=np.repeat(np.where(np.isinf(limit[fixed]), 0.0, limit[fixed]), crossed.shape[1]),
            minlength=resources,
        )  # fmt: skip
        left = np.maximum(left - taken, 0.0)
        active, crossed = active[~fixed], crossed[~fixed]
    return rates


@dataclass
class _Flow:
    path: tuple[int, ...]
    left: float
    done: simpy.Event
    turn: int
    rate: float = 0.0


@dataclass
class Fabric:
    """Flows under way in a simulation. Flows that start at one instant are solved for together, once."""

    environment: simpy.Environment
    topology: Topology
    _flows: list[_Flow] = field(default_factory=list)
    _since: float = 0.0
    _alarm: int = 0
    _pending: bool = False

    def __post_init__(self) -> None:
        self._credit = self.topology.burst.copy()
        self._credit_since = np.zeros(len(self._credit))
        self._has_burst = bool(self._credit.any())
        self._paths: dict[tuple[int, int], tuple[int, ...]] = {}
        self._crossing = np.zeros(len(self._credit), dtype=np.int64)

    def send(self, source: int, target: int, size: float, turn: int = 0) -> simpy.Event:
        """`size` bytes from now on; the event fires when the last of them has arrived.

        Flows of a lower `turn` go first: what is queued before a port already is not overtaken by what comes later.
        """
        path = self._paths.get((source, target))
        if path is None:
            path = self._paths[source, target] = self.topology.path(source, target)
        done = self.environment.event()
        left = float(size)
        if self._has_burst:
            left -= self._take_credit(path, left)
        if left <= 0.0:
            return done.succeed()
        self._flows.append(_Flow(path, left, done, turn))
        for resource in path:
            self._crossing[resource] += 1
        self._solve_soon()
        return done

    def follow(self, source: int, target: int, size: float) -> simpy.Event:
        """A small message that is not worth a flow; the event fires when it has arrived.

        It goes behind the flows of its own connection, waits in the ports' queues, then takes its own bytes' time.
        """
        path, capacity = self.topology.path(source, target), self.topology.capacity
        narrowest = min(capacity[resource] for resource in path)
        own = 0.0 if np.isinf(narrowest) else float(size / narrowest)
        ahead = next((flow for flow in reversed(self._flows) if flow.path == path), None)
        if ahead is None:
            return self.environment.timeout(own + self._queue(path, narrowest))
        return self.environment.process(self._behind(ahead.done, own))

    def _behind(self, ahead: simpy.Event, own: float) -> Generator[simpy.Event, None, None]:
        yield ahead
        yield self.environment.timeout(own)

    def _queue(self, path: Sequence[int], narrowest: float) -> float:
        """Seconds that a packet waits in the ports on its way: until they have drained, at most as long as they queue."""
        if not self.topology.queue_seconds or not self._flows:
            return 0.0
        self._advance()
        ports = {resource for resource in path if np.isfinite(self.topology.capacity[resource])}
        waiting = sum(flow.left for flow in self._flows if not ports.isdisjoint(flow.path)) / narrowest
        return min(waiting, self.topology.queue_seconds)

    def _take_credit(self, path: Sequence[int], size: float) -> float:
        """Bytes that pass unshaped: what the emptiest bucket on the way holds. A bucket fills while its link is idle."""
        now, topology = self.environment.now, self.topology
        shaped = [resource for resource in path if topology.burst[resource] > 0]
        for resource in shaped:
            if self._crossing[resource] == 0:
                earned = (now - self._credit_since[resource]) * topology.capacity[resource]
                self._credit[resource] = min(topology.burst[resource], self._credit[resource] + earned)
            self._credit_since[resource] = now
        taken = min([size, *(self._credit[resource] for resource in shaped)]) if shaped else 0.0
        for resource in shaped:
            self._credit[resource] -= taken
        return float(taken)

    def _solve_soon(self) -> None:
        if self._pending:
            return
        self._pending = True
        timeout = self.environment.timeout(0.0)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: self._solve())

    def _advance(self) -> None:
        now = self.environment.now
        passed = now - self._since
        if passed > 0.0:
            for flow in self._flows:
                flow.left -= flow.rate * passed
        self._since = now

    def _solve(self) -> None:
        self._pending = False
        self._advance()
        if not self._flows:
            self._alarm += 1
            return
        capacity = self.topology.capacity
        turns = sorted({flow.turn for flow in self._flows})
        for turn in turns:
            flows = [flow for flow in self._flows if flow.turn == turn]
            paths = np.array([flow.path for flow in flows])
            rates = max_min_rates(paths, capacity)
            for flow, rate in zip(flows, rates.tolist(), strict=True):
                flow.rate = rate
            if turn != turns[-1]:
                used = np.bincount(paths.ravel(), weights=np.repeat(rates, paths.shape[1]), minlength=len(capacity))
                capacity = np.maximum(capacity - used, 0.0)
                capacity[capacity < 1e-9 * self.topology.capacity] = 0.0
                capacity[-1] = np.inf
        self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm += 1
        alarm = self._alarm
        soonest = min(flow.left / flow.rate for flow in self._flows if flow.rate > 0.0)

        def ring(_: simpy.Event) -> None:
            if alarm == self._alarm:
                self._finish()

        timeout = self.environment.timeout(max(soonest, 0.0))
        assert timeout.callbacks is not None
        timeout.callbacks.append(ring)

    def _finish(self) -> None:
        """End every flow that is done, and those within a thousandth of a second's worth of bytes of it."""
        self._advance()
        kept = []
        for flow in self._flows:
            if flow.left <= max(flow.rate * FINISH_TOGETHER_S, 1e-6):
                flow.done.succeed()
                for resource in flow.path:
                    self._crossing[resource] -= 1
                    self._credit_since[resource] = self.environment.now
            else:
                kept.append(flow)
        self._flows = kept
        self._solve_soon()


FINISH_TOGETHER_S = 20e-6
"""Flows that end within so many seconds of each other end together: fewer rates to compute."""
