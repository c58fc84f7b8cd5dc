"""Lines through measured times: exact where samples lie on one, never negative, sensible where they say little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from halocast.errors import MisuseError
from halocast.runtime.bits.links import DEFAULT_COST, LinkCost, fit_link_costs

ON_A_LINE = [(size, 2e-9 * size + 3e-5) for size in (1e3, 1e4, 1e6)]


def fit(samples: list[tuple[float, float]]) -> LinkCost:
    return fit_link_costs({(0, 1): samples})[0, 1]


def test_samples_on_a_line_give_it() -> None:
    cost = fit(ON_A_LINE)
    assert cost.seconds_per_byte == pytest.approx(2e-9, rel=1e-9)
    assert cost.seconds == pytest.approx(3e-5, rel=1e-9)
    assert cost.time(5e5) == pytest.approx(2e-9 * 5e5 + 3e-5)


@given(st.lists(st.tuples(st.floats(1.0, 1e3), st.floats(1.0, 1e3)), min_size=2, max_size=12))
def test_it_is_the_best_line_that_is_nowhere_negative(samples: list[tuple[float, float]]) -> None:
    size, seconds = np.array(samples).T
    if np.ptp(size) < 1.0:
        return
    cost = fit(samples)
    columns = np.stack([size, np.ones_like(size)], axis=1)
    best = lsq_linear(columns, seconds, bounds=(0, np.inf), method="bvls").x
    residual = ((columns @ [cost.seconds_per_byte, cost.seconds] - seconds) ** 2).sum()
    assert residual <= ((columns @ best - seconds) ** 2).sum() * (1 + 1e-6) + 1e-6


def test_neither_part_is_negative() -> None:
    falling = fit([(1e3, 3e-4), (1e6, 1e-4)])
    assert falling.seconds_per_byte == 0.0
    assert falling.seconds == pytest.approx(2e-4)
    steep = fit([(1e5, 1e-4), (1e6, 2e-3)])
    assert steep.seconds == 0.0
    assert steep.seconds_per_byte > 0.0


def test_a_link_without_samples_gets_the_line_of_all() -> None:
    costs = fit_link_costs({(0, 1): ON_A_LINE, (1, 0): []})
    assert costs[1, 0] == costs[0, 1]


def test_a_link_with_one_size_gets_the_latency_of_all() -> None:
    costs = fit_link_costs({(0, 1): ON_A_LINE * 100, (1, 0): [(1e5, 1e-3), (1e5, 3e-3)]})
    assert costs[1, 0].time(1e5) == pytest.approx(2e-3)
    assert 0.0 < costs[1, 0].seconds < 2e-3
    assert costs[1, 0].seconds_per_byte > costs[0, 1].seconds_per_byte


def test_one_size_alone_is_put_down_to_bytes() -> None:
    cost = fit([(1000.0, 1e-4)])
    assert cost.seconds_per_byte == pytest.approx(1e-7)
    assert cost.seconds == 0.0


def test_nothing_measured_gives_the_default() -> None:
    assert fit_link_costs({(0, 1): [], (1, 0): []}) == {(0, 1): DEFAULT_COST, (1, 0): DEFAULT_COST}
    assert fit_link_costs({}) == {}


def test_samples_that_cannot_be_are_left_out() -> None:
    broken = [(np.nan, 1.0), (1.0, np.inf), (0.0, 1.0), (1e3, 0.0), (1e3, -1.0), (-5.0, 1.0)]
    assert fit([*broken, *ON_A_LINE]) == fit(ON_A_LINE)
    assert fit(broken) == DEFAULT_COST


def test_the_order_of_samples_and_links_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    samples = [(float(size), float(1e-9 * size * rng.uniform(0.5, 2))) for size in rng.uniform(1e3, 1e6, 50)]
    costs = fit_link_costs({(0, 1): samples[:30], (1, 0): samples[30:], (0, 2): []})
    again = fit_link_costs({(0, 2): [], (1, 0): samples[:29:-1], (0, 1): samples[29::-1]})
    assert costs == again


@pytest.mark.parametrize("values", [(-1.0, 0.0), (0.0, -1.0), (np.nan, 0.0), (0.0, np.inf)])
def test_costs_are_finite_and_not_negative(values: tuple[float, float]) -> None:
    with pytest.raises(MisuseError, match="link cost"):
        LinkCost(*values)
