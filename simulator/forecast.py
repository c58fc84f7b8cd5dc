"""What a run that never happened would have done: epoch time, its parts, bytes and memory, with what is known of the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from halocast.errors import MisuseError, nearest
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.adaqp import exchange_shapes, uniform_bits
from halocast.simulator.costs import Costs, HostCosts
from halocast.simulator.engine import Component, Machine, RankWork, Simulation, lower
from halocast.simulator.intervals import Interval, interval
from halocast.simulator.lockstep import run
from halocast.simulator.memory import peak_bytes
from halocast.simulator.network import Topology, testbed, with_ports
from halocast.simulator.observations import link_name
from halocast.simulator.transfer import MOVED_SPREAD
from halocast.traces.operations import AllReduce, Direction, Exchange, Operation
from halocast.traces.wire import BitHistogram
from halocast.traces.workload import BitAssignment, ExchangeBits, RankView, Workload


@dataclass(frozen=True)
class Scenario:
    """What a forecast is asked."""

    graph: str
    fingerprint: str
    workload: Workload
    method: str
    bits: tuple[BitAssignment | None, ...]
    """By rank; None where the method sends rows as they are."""
    link: float
    """Bytes per second of each rank's port; 0: not shaped. Without effect where `topology` or `links` are given."""
    topology: Topology | None = None
    """None: the testbed, a port a rank on one switch."""
    ranks_per_host: int | None = None
    """Ranks that share one host's cores; None: all of them, 0: every rank has a device of its own."""
    spread: float = 0.0
    """Standard deviation of the epoch time's logarithm that fitted statistics bring in."""
    assumed: tuple[str, ...] = ()
    """What the scenario itself takes for granted (statistics fitted instead of counted, moved costs), marked in the answer."""
    speeds: tuple[float, ...] = ()
    """By rank: how fast its device is beside the calibrated one; at 0.5 an operation takes twice as long. Empty: 1 for all."""
    links: tuple[float, ...] = ()
    """By rank: bytes per second of its own port; 0: not shaped. Empty: `link`, or the topology's."""

    def __post_init__(self) -> None:
        check_one_a_rank(self.ranks, self.speeds, self.links)
        if self.topology is not None and 0.0 in self.links:
            raise MisuseError("an unshaped link is the calibrated machine's own loopback: on a cluster give every rank a rate")

    @property
    def ranks(self) -> int:
        return self.workload.world_size

    def views(self) -> list[RankView]:
        return [self.workload.view(rank, self.bits[rank]) for rank in range(self.ranks)]


def check_one_a_rank(ranks: int, speeds: Sequence[float], links: Sequence[float]) -> None:
    """Raises MisuseError where there are some, but not one a rank, or a speed is not above 0."""
    for name, values in (("speeds", speeds), ("links", links)):
        if values and len(values) != ranks:
            raise MisuseError(f"{len(values)} {name} for {ranks} ranks: give one a rank")
    if not all(0.0 < speed < math.inf for speed in speeds):
        raise MisuseError(f"speeds {', '.join(f'{each:g}' for each in speeds)}: each must be a number above 0")


class Forecast(BaseModel):
    """A prediction with its interval. Seconds, bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    epoch_seconds: Interval
    breakdown: dict[str, float]
    """Seconds of an epoch, mean over ranks: compute; quantise; exchange exposed and all-reduce exposed, waiting for messages;
    posting messages, copied and handed to the transport; wait, between operations and for a core. These add up to the epoch.
    Exchange hidden runs beside them."""
    bytes_per_epoch: int
    """All ranks, a ring all-reduce included."""
    exchange_bytes_per_epoch: int
    peak_bytes: tuple[int, ...]
    """By rank; empty where no calibration run left its peaks."""
    peak_interval: tuple[float, float]
    """90 % bounds of measured over forecast peak."""
    extrapolated: tuple[str, ...]
    """Why any of this is beyond what was calibrated; empty where nothing is."""

    def to_json(self) -> dict[str, object]:
        """The keys that scripts rely on."""
        seconds = self.epoch_seconds
        return {
            "epoch_seconds": seconds.value,
            "low": seconds.low,
            "high": seconds.high,
            "breakdown": self.breakdown,
            "bytes_per_epoch": self.bytes_per_epoch,
            "exchange_bytes_per_epoch": self.exchange_bytes_per_epoch,
            "peak_bytes": list(self.peak_bytes),
            "peak_low": [round(each * self.peak_interval[0]) for each in self.peak_bytes],
            "peak_high": [round(each * self.peak_interval[1]) for each in self.peak_bytes],
            "extrapolated": list(self.extrapolated),
        }


def forecast(
    costs: Costs, scenario: Scenario, *, simulate: Callable[[Sequence[RankWork], Machine], Simulation] = run
) -> tuple[Forecast, Simulation]:
    """The forecast, and the simulated epoch behind it. Raises MisuseError for what was never calibrated at all.

    `simulate`: by default the engine that suits the machine; `engine.simulate` forces the event-driven one.
    """
    if scenario.method not in METHODS:
        raise MisuseError(f"unknown method '{scenario.method}'{nearest(scenario.method, METHODS)}")
    reasons = list(scenario.assumed)
    works = price_programs(costs, scenario, reasons)
    simulation = simulate(works, machine_of(costs, scenario))
    reasons += beyond_range(costs, scenario)
    unique = tuple(dict.fromkeys(reasons))
    seconds = interval_of(costs, scenario, simulation.epoch_seconds, extrapolated=bool(unique))
    exchanged, total = bytes_of(works)
    peaks: tuple[int, ...] = ()
    bounds = (1.0, 1.0)
    if costs.memory is not None:
        peaks = tuple(round(peak_bytes(costs.memory, view, scenario.method)) for view in scenario.views())
        bounds = (costs.memory.low, costs.memory.high)
    answer = Forecast(
        epoch_seconds=seconds,
        breakdown=breakdown(simulation),
        bytes_per_epoch=total,
        exchange_bytes_per_epoch=exchanged,
        peak_bytes=peaks,
        peak_interval=bounds,
        extrapolated=unique,
    )
    return answer, simulation


def interval_of(costs: Costs, scenario: Scenario, seconds: float, *, extrapolated: bool) -> Interval:
    """What holds the scenario's epoch nine times in ten, where it was simulated to take `seconds`."""
    shared = scenario.ranks_per_host is None or scenario.ranks_per_host > costs.host.cores
    return interval(
        seconds,
        costs.errors,
        costs.noise,
        oversubscribed=shared and scenario.ranks > costs.host.cores,
        extrapolated=extrapolated,
        spread=math.hypot(scenario.spread, MOVED_SPREAD if costs.moved else 0.0),
    )


def price_programs(costs: Costs, scenario: Scenario, reasons: list[str]) -> list[RankWork]:
    """Every rank's program with its operations' costs; why a price is extrapolated is added to `reasons`."""
    method = METHODS[scenario.method]

    def price(operation: Operation) -> float:
        found = costs.price(operation, scenario.fingerprint, scenario.ranks)
        if found.extrapolated:
            reasons.extend(found.extrapolated.split("; "))
        return found.seconds

    works = [lower(method.epoch(view), price) for view in scenario.views()]
    if not scenario.speeds:
        return works
    return [replace(work, seconds=work.seconds / speed) for work, speed in zip(works, scenario.speeds, strict=True)]


def machine_of(costs: Costs, scenario: Scenario) -> Machine:
    """Cores and network of the scenario."""
    ranks, per_host = scenario.ranks, scenario.ranks_per_host
    topology = scenario.topology or testbed(ranks, scenario.links or scenario.link, costs.network.unshaped_rate)
    if scenario.topology is not None and scenario.links:
        topology = with_ports(topology, scenario.links)
    host: HostCosts = costs.host
    if per_host == 0:
        return Machine(topology, host.model_copy(update={"idleness": 0.0}), costs.network, hosts=None)
    hosts = [0] * ranks if per_host is None else [rank // per_host for rank in range(ranks)]
    return Machine(topology, host, costs.network, hosts=hosts)


def beyond_range(costs: Costs, scenario: Scenario) -> list[str]:
    """Which inputs lie outside what was calibrated, one line each."""
    known, reasons = costs.calibrated, []
    if scenario.fingerprint not in known.graphs:
        names = ", ".join(sorted(set(known.graphs.values())))
        reasons.append(f"graph '{scenario.graph}' was not calibrated (calibrated: {names})")
    if not min(known.ranks) <= scenario.ranks <= max(known.ranks):
        reasons.append(f"{scenario.ranks} ranks: calibrated from {min(known.ranks)} to {max(known.ranks)}")
    if scenario.method not in known.methods:
        reasons.append(f"method {scenario.method} was not calibrated")
    if scenario.workload.threads not in known.threads:
        reasons.append(f"{scenario.workload.threads} threads a rank: calibrated with {', '.join(map(str, known.threads))}")
    asked = [] if scenario.topology is not None else sorted(set(scenario.links or (scenario.link,)))
    if outside := [link_name(link) for link in asked if not _is_within(link, known.links)]:
        rates = ", ".join(link_name(link) for link in known.links)
        reasons.append(f"links of {', '.join(outside)}: calibrated with {rates}")
    if others := sorted({speed for speed in scenario.speeds if speed != 1.0}):
        reasons.append(f"ranks at {', '.join(f'{each:g}' for each in others)} times the calibrated speed")
    widths = {
        bits
        for assignment in scenario.bits
        if assignment is not None
        for exchange in assignment.exchanges.values()
        for histogram in (*exchange.outgoing, *exchange.incoming)
        for bits, _ in histogram
    }
    unknown = sorted(widths - set(known.widths))
    if unknown:
        seen = ", ".join(map(str, known.widths)) or "none"
        reasons.append(f"messages of {', '.join(map(str, unknown))} bits: calibrated with {seen}")
    return reasons


def _is_within(link: float, known: Sequence[float]) -> bool:
    """Between two calibrated rates; unshaped links only where they were calibrated."""
    shaped = [each for each in known if each > 0.0]
    return link in known or (link > 0.0 and bool(shaped) and min(shaped) <= link <= max(shaped))


COMPONENTS = {
    Component.COMPUTE: "compute",
    Component.QUANTISE: "quantise",
    Component.EXCHANGE_EXPOSED: "exchange exposed",
    Component.REDUCE_EXPOSED: "all-reduce exposed",
    Component.POSTING: "posting messages",
    Component.WAIT: "wait",
}


WAITED = (Component.EXCHANGE_EXPOSED, Component.REDUCE_EXPOSED)


def breakdown(simulation: Simulation) -> dict[str, float]:
    """Where an epoch's time goes, mean over ranks, in seconds; see `Forecast.breakdown`.

    An epoch is what rank 0 measures. What it does between two of them (metrics, messages to the user) the others wait for, in
    the epoch that follows: no part of one, that is left out of their waiting.
    """
    shares, hidden = np.zeros(len(Component)), 0.0
    for work, timeline in zip(simulation.work, simulation.ranks, strict=True):
        own = np.bincount(work.components, weights=timeline.wall, minlength=len(Component))
        flying = sum(
            max(0.0, done - float(timeline.start[index]))
            for index, done in timeline.done.items()
            if isinstance(work.operations[index], Exchange)
        )
        hidden += max(0.0, flying - own[Component.EXCHANGE_EXPOSED])
        own[Component.WAIT] = max(0.0, (timeline.end - timeline.begin) - own.sum())
        surplus = max(0.0, own.sum() - simulation.epoch_seconds)
        for part in WAITED:
            surplus -= (cut := min(surplus, own[part]))
            own[part] -= cut
        shares += own
    ranks = len(simulation.work)
    return {name: float(shares[part]) / ranks for part, name in COMPONENTS.items()} | {"exchange hidden": hidden / ranks}


def bytes_of(works: Sequence[RankWork]) -> tuple[int, int]:
    """(exchanged, all) bytes that all ranks send in an epoch; a ring all-reduce sends 2 (K − 1) / K of its bucket."""
    exchanged = total = 0
    world = len(works)
    for work in works:
        mine = sum(each.work.bytes_out for each in work.operations if isinstance(each, Exchange))
        reduced = sum(each.work.bytes_out for each in work.operations if isinstance(each, AllReduce))
        exchanged += mine
        total += mine + 2 * (world - 1) * reduced // world
    return exchanged, total


# -- widths of messages that were never sent --------------------------------------------------------------------


def assign_uniform(workload: Workload, bits: int) -> tuple[BitAssignment, ...]:
    """Every message at one width."""
    return tuple(uniform_bits(workload.view(rank), bits) for rank in range(workload.world_size))


def assign_shares(workload: Workload, shares: Mapping[tuple[int, Direction], Mapping[int, float]]) -> tuple[BitAssignment, ...]:
    """Widths in given shares of each exchange's rows (a run's, for example), the same for every pair of ranks."""
    assignments = []
    for rank in range(workload.world_size):
        exchanges = {}
        for shape in exchange_shapes(workload.view(rank)):
            share = shares.get((shape.layer, shape.direction)) or {8: 1.0}
            exchanges[shape.layer, shape.direction] = ExchangeBits(
                *(
                    tuple(_split(count, share) for count in rows)
                    for rows in (shape.rows_out, shape.rows_in, shape.again_out, shape.again_in)
                )
            )
        assignments.append(BitAssignment(exchanges))
    return tuple(assignments)


def width_shares(bits: Sequence[BitAssignment | None]) -> dict[tuple[int, Direction], dict[int, float]]:
    """By exchange: which share of all ranks' rows has which width."""
    counts: dict[tuple[int, Direction], dict[int, float]] = {}
    for assignment in bits:
        for key, exchange in ({} if assignment is None else assignment.exchanges).items():
            table = counts.setdefault(key, {})
            for histogram in exchange.outgoing:
                for width, rows in histogram:
                    table[width] = table.get(width, 0.0) + rows
    return {key: {width: rows / sum(table.values()) for width, rows in table.items()} for key, table in counts.items() if table}


def _split(rows: int, shares: Mapping[int, float]) -> BitHistogram:
    """`rows` in these shares, by largest remainder, so that both ends of a message agree."""
    if rows == 0:
        return ()
    exact = {bits: rows * share for bits, share in shares.items()}
    counts = {bits: int(value) for bits, value in exact.items()}
    left = rows - sum(counts.values())
    for bits in sorted(exact, key=lambda each: (counts[each] - exact[each], each))[:left]:
        counts[bits] += 1
    return tuple((bits, counts[bits]) for bits in sorted(counts) if counts[bits])
