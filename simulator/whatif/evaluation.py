"""What one scenario of a grid comes to: a row of the table, with everything that scenarios share kept between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from halocast.errors import MisuseError, nearest
from halocast.simulator.costs import Costs, UncalibratedError
from halocast.simulator.forecast import Scenario, assign_uniform, beyond_range, breakdown, interval_of, machine_of
from halocast.simulator.network import star
from halocast.simulator.observations import link_name, parse_link
from halocast.simulator.placement import Hardware, costs_on, place, threads_of
from halocast.simulator.whatif.axes import AXES, CALIBRATED, PRICE, Names, kept_of, read_axis, savings_of
from halocast.simulator.whatif.change import UNCHANGED, Change
from halocast.simulator.whatif.grid import Grid, refuse_contradictions
from halocast.simulator.whatif.points import PartKey, Point, resolve
from halocast.simulator.whatif.structure import Structure
from halocast.simulator.whatif.table import PARTS
from halocast.simulator.whatif.values import real
from halocast.traces.workload import LayerSpec, PartStatistics, Workload
from halocast.words import money, round_span, time_span

MISSES_MEMORY, MISSES_DEADLINE = "may need more memory than there is", "misses the deadline"
MISSES_BUDGET, MISSES_PRICE = "is over the budget", "has no price, so its cost is unknown"
SECONDS_AN_HOUR = 3600.0
INSTEAD = {"ranks": "hosts", "network": "link", "link": "network"}
"""Inputs that take the place of a grid's other one."""
KEPT_STRUCTURES = 16
"""Programs that are kept for the next scenario that shares them: some 30 MB each at 64 ranks."""
KEPT_FORECASTS = 4096
"""Epochs that are kept for the next scenario that differs in its price only."""
BINDS = {
    "compute": "compute",
    "quantise": "quantise",
    "exchange_exposed": "exchange",
    "all_reduce_exposed": "all-reduce",
    "posting_messages": "posting",
    "wait": "between operations",
}
"""What an epoch is bound by, by the column that is largest; `wait` is what is left: between operations, and for a core."""


@dataclass(frozen=True)
class Parted:
    """Statistics of a partition, counted or foretold."""

    parts: tuple[PartStatistics, ...]
    spread: float = 0.0
    """Standard deviation of the epoch time's logarithm that foretelling brings in."""
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """The graph and whatever of the run file no axis varies."""

    name: str
    fingerprint: str
    nodes: int
    edges: int
    value_bytes: int
    overlap: bool
    threads: int
    """Of a rank; 0: its host's cores shared out."""
    hosts: str
    """What joins ranks of one machine where the grid says nothing: "local", or "shaped:RATE"."""
    balance: str
    """What parts of a partition have equally much of."""
    seed: int
    """Of partitions."""


class Source(Protocol):
    """Where statistics come from: whoever can load the graph."""

    @property
    def subject(self) -> Subject: ...

    def layers(self, layer: str, layers: int, hidden: int) -> tuple[LayerSpec, ...]:
        """The model's layers on the graph's features and classes."""

    def parted(self, key: PartKey) -> Parted:
        """The graph's partition. Raises MisuseError where there can be none."""


@dataclass(frozen=True)
class Epoch:
    """A forecast of one epoch, without what it costs."""

    seconds: float
    low: float
    high: float
    breakdown: Mapping[str, float]
    bytes_per_epoch: int
    exchange_bytes_per_epoch: int
    peak_bytes: int | None
    peak_high: int | None
    extrapolated: tuple[str, ...]


class Evaluator:
    """Answers for points of one grid. Partitions, programs and moved costs are made once and kept.

    Raises MisuseError at once for costs that cannot be moved to the grid's devices.
    """

    def __init__(self, costs: Costs, grid: Grid, names: Names, source: Source) -> None:
        self.costs, self.grid, self.names, self.source = costs, grid, names, source
        self.subject = source.subject
        self.parted = lru_cache(maxsize=None)(source.parted)
        self._structure = lru_cache(maxsize=KEPT_STRUCTURES)(self._build_structure)
        self._epoch = lru_cache(maxsize=KEPT_FORECASTS)(self._forecast)
        self._costs = lru_cache(maxsize=None)(self._costs_on)
        self._priced = lru_cache(maxsize=KEPT_STRUCTURES)(self._price)
        self._beyond = lru_cache(maxsize=KEPT_STRUCTURES)(self._beyond_range)
        for device in dict.fromkeys(grid.axes["device"]):
            self._costs(device, "", "")

    def row(self, point: Mapping[str, object]) -> dict[str, Any]:
        """The table's row of one combination of the grid's axes; those that are left out are the grid's first values.

        `price_per_hour` may be given as well. What rests on other rows is empty: scenario −1, no efficiency, not on a front.
        """
        for name in point:
            if name not in AXES and name != PRICE.name:
                raise MisuseError(f"unknown input '{name}'{nearest(name, (*AXES, PRICE.name))}")
        given = {name: read_axis(name, [value], self.names, "point")[0] for name, value in point.items() if name in AXES}
        combination: dict[str, Any] = {name: values[0] for name, values in self.grid.axes.items()} | given
        for name, other in INSTEAD.items():
            if name in given:
                combination.pop(other, None)
        per_host = ["devices_per_host"] if combination.get("devices_per_host") else []
        refuse_contradictions([*given, *per_host], "point")
        price = self.grid.prices.of(combination["device"])
        combination[PRICE.name] = None if price is None else price.values[0]
        if PRICE.name in point:
            combination[PRICE.name] = real(PRICE.name, 0.0)(point[PRICE.name])
        return self.evaluate(resolve(combination))

    def evaluate(self, point: Point, change: Change = UNCHANGED) -> dict[str, Any]:
        """The table's row of a point; `change`: on inputs a little different."""
        row = self._inputs(point)
        reason = point.impossible(self.subject.nodes)
        if not reason:
            try:
                epoch = self._epoch(replace(point, price_per_hour=None), change.without_money)
            except (UncalibratedError, MisuseError) as error:
                reason = str(error).replace("; ", ", ")  # which stands between reasons
            else:
                return row | self._outputs(point, epoch, change)
        return row | {"feasible": False, "reason": reason}

    # -- inputs -------------------------------------------------------------------------------------------------

    def _inputs(self, point: Point) -> dict[str, Any]:
        subject, costs = self.subject, self._costs(point.device, point.transport, point.all_reduce)[0]
        joined = point.network or point.link or ("" if point.is_cluster else link_name(parse_link(subject.hosts)))
        return {
            "scenario": -1,
            "name": self.name_of(point),
            "graph": subject.name,
            "nodes_factor": point.nodes_factor,
            "edges_factor": point.edges_factor,
            "nodes": round(subject.nodes * point.nodes_factor),
            "edges": round(subject.edges * point.edges_factor),
            "ranks": point.ranks,
            "hosts": point.hosts,
            "devices_per_host": point.ranks_per_host,
            "device": point.device,
            "network": joined,
            "network_rate": self._rate(joined) or costs.network.unshaped_rate,
            "inside": point.inside,
            "hosts_per_switch": point.hosts_per_switch,
            "oversubscription": point.oversubscription,
            "transport": point.transport,
            "all_reduce": costs.network.all_reduce,
            "method": point.method,
            "bits": str(point.bits) if point.bits else "",
            "keep": point.keep,
            "prefetch": point.prefetch,
            "savings": point.savings,
            "partition": point.partition,
            "layer": point.layer,
            "layers": point.layers,
            "hidden": point.hidden,
            "price_per_hour": point.price_per_hour,
        }

    def _rate(self, joined: str) -> float:
        """Bytes per second of a host's port; 0 where nothing limits it."""
        return 0.0 if joined in ("", "unshaped") else self.names.catalogue.rate_and_latency(joined)[0]

    def name_of(self, point: Point) -> str:
        """Short, for people: what the grid varies, and always ranks, device, network and method.

        One rank sends nothing: neither network nor method is named.
        """
        joined = [each for each in (point.network or point.link,) if each]
        words = [f"{point.ranks} x {point.device or CALIBRATED}"]
        if point.ranks > 1:
            words += [*joined, f"{point.method} {point.bits} bits" if point.bits else point.method]
        extra = {
            "inside": f"{point.inside} inside" if point.inside else "",
            "devices_per_host": f"{point.devices_per_host} a host" if point.ranks > 1 else "",
            "hosts_per_switch": f"{point.hosts_per_switch} hosts a switch" if point.hosts_per_switch else "",
            "oversubscription": f"oversubscribed {point.oversubscription:g} : 1" if point.oversubscription > 1.0 else "",
            "transport": point.transport,
            "all_reduce": point.all_reduce,
            "keep": f"keeps {point.keep}" if point.method == "sar" else "",
            "prefetch": f"{point.prefetch} ahead" if point.method == "sar" else "",
            "savings": f"savings {point.savings}",
            "partition": point.partition,
            "layer": point.layer,
            "layers": f"{point.layers} layers",
            "hidden": f"hidden {point.hidden}",
            "nodes": f"nodes x{point.nodes_factor:g}",
            "edges": f"edges x{point.edges_factor:g}",
        }
        words += [text for name, text in extra.items() if text and len(self.grid.axes.get(name, ())) > 1]
        price = self.grid.prices.of(point.device)
        if price is not None and len(price.values) > 1 and point.price_per_hour is not None:
            words.append(f"at {money(point.price_per_hour, self.grid.prices.currency)} an hour")
        return ", ".join(words)

    # -- forecasts ----------------------------------------------------------------------------------------------

    def costs_of(self, point: Point) -> Costs:
        """On the point's device and transport."""
        return self._costs(point.device, point.transport, point.all_reduce)[0]

    def assumed_of(self, device: str, transport: str, all_reduce: str) -> tuple[str, ...]:
        """What costs there take for granted."""
        return self._costs(device, transport, all_reduce)[1]

    def scenario(self, point: Point) -> Scenario:
        """As `halocast forecast` would have it, placed."""
        structure = self._structure(*point.structure)
        _, assumed = self._costs(point.device, point.transport, point.all_reduce)
        placement = place(self.names.catalogue, point.ranks, point.hardware(), assumed)
        threads = threads_of(self.costs, point.ranks, point.hardware(), self.subject.threads)
        scenario = replace(
            structure.scenario,
            workload=replace(structure.scenario.workload, threads=threads),
            link=parse_link(point.link or self.subject.hosts),
        )
        return placement.of(scenario)

    def _forecast(self, point: Point, change: Change) -> Epoch:
        structure = self._structure(*point.structure)
        costs, _ = self._costs(point.device, point.transport, point.all_reduce)
        scenario = self.scenario(point)
        seconds, reasons = self._priced(structure, point.device)
        machine = machine_of(change.of_costs(costs), change.of_network(scenario))
        simulation = structure.simulate(seconds / change.compute_speed, machine, message_scale=change.message_bytes)
        beyond = self._beyond(structure, scenario.workload.threads, scenario.topology is not None, scenario.link)
        unique = tuple(dict.fromkeys((*scenario.assumed, *reasons, *beyond)))
        interval = interval_of(costs, scenario, simulation.epoch_seconds, extrapolated=bool(unique))
        parts = breakdown(simulation)
        exchanged, total = structure.bytes
        peak = None if costs.memory is None else structure.peak_bytes(costs.memory)
        return Epoch(
            seconds=interval.value,
            low=interval.low,
            high=interval.high,
            breakdown={column: parts[name] for column, name in {**PARTS, "exchange_hidden": "exchange hidden"}.items()},
            bytes_per_epoch=total,
            exchange_bytes_per_epoch=exchanged,
            peak_bytes=peak,
            peak_high=None if peak is None or costs.memory is None else round(peak * costs.memory.high),
            extrapolated=unique,
        )

    def _build_structure(
        self, key: PartKey, layer: str, layers: int, hidden: int, savings: str, method: str, bits: int, keep: str, prefetch: int
    ) -> Structure:
        subject, parted = self.subject, self.parted(key)
        workload = Workload(
            layers=self.source.layers(layer, layers, hidden),
            parts=parted.parts,
            exact=savings_of(savings),
            value_bytes=subject.value_bytes,
            overlap=subject.overlap,
            prefetch=prefetch,
            kept_layers=kept_of(keep, layers),
        )
        return Structure.of(
            Scenario(
                graph=subject.name,
                fingerprint=subject.fingerprint,
                workload=workload,
                method=method,
                bits=assign_uniform(workload, bits) if bits else (None,) * key.ranks,
                link=0.0,
                spread=parted.spread,
                assumed=parted.assumed,
            )
        )

    def _costs_on(self, device: str, transport: str, all_reduce: str) -> tuple[Costs, tuple[str, ...]]:
        asked = Hardware(device or None, transport=transport or None, all_reduce=all_reduce or None)
        return costs_on(self.costs, asked, self.names.catalogue)

    def _price(self, structure: Structure, device: str) -> tuple[Any, tuple[str, ...]]:
        return structure.price(self._costs(device, "", "")[0])

    def _beyond_range(self, structure: Structure, threads: int, placed: bool, link: float) -> tuple[str, ...]:
        scenario = structure.scenario
        topology = star(scenario.ranks, 1.0) if placed else None  # which one makes no difference here
        asked = replace(scenario, workload=replace(scenario.workload, threads=threads), topology=topology, link=link)
        return tuple(beyond_range(self.costs, asked))

    # -- outputs ------------------------------------------------------------------------------------------------

    def _outputs(self, point: Point, epoch: Epoch, change: Change) -> dict[str, Any]:
        epochs = self.grid.epochs * change.epochs
        seconds, low, high = (epochs * each for each in (epoch.seconds, epoch.low, epoch.high))
        hourly = self.hourly(point, change)
        cost, cost_low, cost_high = (
            None if hourly is None else hourly * each / SECONDS_AN_HOUR for each in (seconds, low, high)
        )
        outputs: dict[str, Any] = {
            "epoch_seconds": epoch.seconds,
            "low": epoch.low,
            "high": epoch.high,
            **epoch.breakdown,
            "bytes_per_epoch": epoch.bytes_per_epoch,
            "exchange_bytes_per_epoch": epoch.exchange_bytes_per_epoch,
            "peak_bytes": epoch.peak_bytes,
            "peak_high": epoch.peak_high,
            "memory_bytes": self.memory_of(point),
            "training_seconds": seconds,
            "training_low": low,
            "training_high": high,
            "cost": cost,
            "cost_low": cost_low,
            "cost_high": cost_high,
            "binds": max(BINDS.items(), key=lambda each: epoch.breakdown[each[0]])[1],
            "extrapolated": list(epoch.extrapolated),
        }
        missed = self._missed(outputs)
        return outputs | {"feasible": not missed, "reason": "; ".join(missed)}

    def hourly(self, point: Point, change: Change = UNCHANGED) -> float | None:
        """What all its devices cost an hour: one a rank, or the calibrated hosts that the ranks share."""
        if point.price_per_hour is None:
            return None
        return change.price * point.price_per_hour * (point.ranks if point.device else point.hosts)

    def memory_of(self, point: Point) -> int:
        """Bytes that a rank has: its device's, or its share of the calibrated host's."""
        costs = self._costs(point.device, "", "")[0]
        return costs.memory_bytes if point.device else costs.memory_bytes // point.ranks_per_host

    def _missed(self, outputs: Mapping[str, Any]) -> list[str]:
        """The filters that the scenario does not meet, one line each."""
        filters, missed = self.grid.filters, []
        room = outputs["memory_bytes"] if filters.memory == "device" else filters.memory
        peak, seconds, cost = (outputs[name] for name in ("peak_high", "training_seconds", "cost"))
        if room is not None and peak is not None and peak > room:
            missed.append(f"{MISSES_MEMORY}: {peak / 1e9:.3g} GB of {room / 1e9:.3g} GB")
        if filters.deadline_seconds is not None and seconds > filters.deadline_seconds:
            missed.append(f"{MISSES_DEADLINE}: {time_span(seconds)} of {round_span(filters.deadline_seconds)}")
        if filters.budget is not None and cost is None:
            missed.append(MISSES_PRICE)
        elif filters.budget is not None and cost > filters.budget:
            currency = self.grid.prices.currency
            missed.append(f"{MISSES_BUDGET}: {money(cost, currency)} of {money(filters.budget, currency)}")
        return missed


def shares_of(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What a row's epoch goes into, and how much of it, the largest first."""
    total = math.fsum(row[column] for column in BINDS) or 1.0
    return sorted(((word, row[column] / total) for column, word in BINDS.items()), key=lambda each: -each[1])
