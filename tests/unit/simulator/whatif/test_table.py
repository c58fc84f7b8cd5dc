"""Efficiencies and the front, against a definition spelled out pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from halocast.simulator.whatif.table import COLUMNS, efficiency, front, to_table


def dominated(seconds: np.ndarray, price: np.ndarray, row: int, others: np.ndarray) -> bool:
    """Whether another row is no worse in both and better in one."""
    return any(
        seconds[other] <= seconds[row]
        and price[other] <= price[row]
        and (seconds[other] < seconds[row] or price[other] < price[row])
        for other in others
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_dominates(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    seconds, price = random.integers(1, 12, (2, count)).astype(float)  # many ties
    seconds[random.random(count) < 0.1] = np.nan
    price[random.random(count) < 0.1] = np.nan
    feasible = random.random(count) < 0.8
    allowed = np.flatnonzero(feasible & ~np.isnan(seconds + price))
    expected = [row in allowed and not dominated(seconds, price, row, allowed) for row in range(count)]
    assert front(seconds, price, feasible).tolist() == expected


def test_efficiency_is_over_the_fewest_ranks_with_a_forecast() -> None:
    series = np.array([0, 0, 0, 1, 1, 1, 2])
    ranks = np.array([4.0, 1.0, 2.0, 2.0, 4.0, 8.0, 2.0])
    seconds = np.array([4.0, 8.0, 4.0, np.nan, 6.0, 4.0, np.nan])
    found = efficiency(series, ranks, seconds)
    # 8 rank-seconds at 1 rank; series 1 begins at 4 ranks with 24 rank-seconds
    assert found[:3].tolist() == [0.5, 1.0, 1.0]
    assert np.isnan(found[3])
    assert found[4:6].tolist() == [1.0, 0.75]
    assert np.isnan(found[6])


def test_what_a_row_leaves_out_is_null() -> None:
    table = to_table([{"scenario": 3, "name": "x", "feasible": False, "reason": "no"}])
    assert table.schema == COLUMNS
    assert table["epoch_seconds"].to_pylist() == [None]
    assert table["cost"].to_pylist() == [None]
