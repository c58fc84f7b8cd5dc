"""How much of the graph each rank gets where devices or links are not alike: shares by which the forecast is lowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.simulator.costs import Costs
from halocast.simulator.engine import Simulation
from halocast.simulator.forecast import Scenario, machine_of
from halocast.simulator.planner.weights import port_rates
from halocast.traces.operations import Exchange

Floats = npt.NDArray[np.float64]

POWER = 0.7
"""Of mean / busy time, which a share is multiplied by. Halo rows do not fall in proportion to a part, so that 1 overshoots."""
SETTLING = 0.85
"""What the power is multiplied by whenever the forecast did not fall."""
PATIENCE = 5
"""Forecasts in a row that are not the lowest, before the search ends."""
SMALLEST = 0.02
"""Of an even share: parts do not become smaller."""
ALIKE = 0.01
"""Ranks whose busy times differ from their mean by less are even."""


@dataclass(frozen=True)
class Portioned:
    """The shares with the lowest forecast that were found."""

    shares: tuple[float, ...]
    """By rank; they add up to 1."""
    before: float
    """Forecast of the first shares, in seconds."""
    after: float
    rounds: int
    """Forecasts that were made beside the first."""


def find_shares(
    forecast_of: Callable[[tuple[float, ...]], tuple[float, Sequence[float]]],
    ranks: int,
    *,
    start: Sequence[float] | None = None,
    rounds: int = 8,
) -> Portioned:
    """Shares of the graph by which slower devices and narrower links are busy no longer than the others.

    `forecast_of` partitions the graph by shares (`partition.shares`) and gives an epoch's seconds and each rank's busy time
    (`busy_seconds`). Each share is multiplied by a power of mean / own busy time, again and again, until ranks are alike or
    `rounds` forecasts are made: also from shares that were not the best yet, for a partitioner answers a small change of shares
    with another partition altogether. `start`: by default even.

    Raises MisuseError for a `start` of other ranks, or that is not above 0.
    """
    shares = np.full(ranks, 1.0 / ranks) if start is None else np.asarray(start, dtype=np.float64)
    if shares.shape != (ranks,) or not (np.isfinite(shares).all() and (shares > 0.0).all()):
        raise MisuseError(f"shares to start from: give {ranks}, one a rank, each a number above 0")
    best = shares = shares / shares.sum()
    first, busy = forecast_of(_plain(best))
    lowest, made, best_round, power = first, 0, 0, POWER
    while made < min(rounds, best_round + PATIENCE) and not _are_even(busy):
        shares = _moved(shares, busy, power)
        seconds, busy = forecast_of(_plain(shares))
        made += 1
        if seconds < lowest:
            best, lowest, best_round = shares, seconds, made
        else:
            power *= SETTLING
    return Portioned(_plain(best), first, lowest, made)


def busy_seconds(costs: Costs, scenario: Scenario, simulation: Simulation) -> tuple[float, ...]:
    """By rank: its compute and, for every exchange, the way of its port that carries more; what it does not spend waiting."""
    machine = machine_of(costs, scenario)
    rates = port_rates(machine.topology) * costs.network.efficiency
    busy = []
    for rate, work in zip(rates.tolist(), simulation.work, strict=True):
        carried = sum(
            max(operation.work.bytes_out, operation.work.bytes_in)
            for operation in work.operations
            if isinstance(operation, Exchange)
        )
        computed = costs.host.slowness * (float(work.seconds.sum()) + costs.host.gap_seconds * len(work.operations))
        busy.append(computed + carried / rate)
    return tuple(busy)


def _moved(shares: Floats, busy: Sequence[float], power: float) -> Floats:
    seconds = np.maximum(np.asarray(busy, dtype=np.float64), 1e-12)
    wanted = shares * (seconds.mean() / seconds) ** power
    wanted = np.maximum(wanted / wanted.sum(), SMALLEST / len(shares))
    return np.asarray(wanted / wanted.sum())


def _are_even(busy: Sequence[float]) -> bool:
    seconds = np.asarray(busy, dtype=np.float64)
    return bool(np.abs(seconds - seconds.mean()).max() <= ALIKE * seconds.mean())


def _plain(shares: Floats) -> tuple[float, ...]:
    return tuple(shares.tolist())
