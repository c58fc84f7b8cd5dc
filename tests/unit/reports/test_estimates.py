import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from halocast.reports.estimates import Estimate, Scatter, between_runs, block_medians, epoch_estimate, ratio


def test_blocks_are_of_epochs_that_follow_each_other():
    seconds = np.repeat([1.0, 100.0], 500)  # two halves: single epochs would always give a median between them
    found = block_medians(seconds, np.random.default_rng(0))
    assert len(found) == 2000
    assert set(np.unique(found)) <= {1.0, 50.5, 100.0}
    alike = block_medians(np.full(7, 3.0), np.random.default_rng(0))
    assert (alike == 3.0).all()


def test_the_interval_of_independent_epochs_is_that_of_scipy():
    seconds = np.random.default_rng(1).normal(100.0, 5.0, 200)
    found = epoch_estimate([seconds], None)
    known = stats.bootstrap((seconds,), np.median, random_state=0, method="percentile").confidence_interval
    assert found.value == pytest.approx(np.median(seconds))
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=0.35)


def test_intervals_hold_the_truth_where_runs_scatter():
    generator, held, trials = np.random.default_rng(2), 0, 200
    for _ in range(trials):
        groups = [[math.exp(generator.normal(0.0, 0.05)) * generator.normal(100, 2, 40) for _ in range(4)] for _ in range(2)]
        found = epoch_estimate(groups[0], between_runs(groups))
        held += found.low <= 100 <= found.high
    assert held >= 0.9 * trials  # 95 % are promised; epochs alone would hold about a third


def test_scatter_is_pooled():
    groups = [[np.array([1.0]), np.array([math.e])], [np.array([5.0])], [np.array([2.0])] * 3]
    found = between_runs(groups)
    assert found.freedom == 3
    assert found.deviation == pytest.approx(math.sqrt(0.5 / 3))
    assert between_runs([[np.array([1.0])], []]) is None


def test_more_runs_are_surer():
    seconds = np.full(20, 2.0)
    scatter = Scatter(0.1, 5)
    one, four = epoch_estimate([seconds], scatter), epoch_estimate([seconds] * 4, scatter)
    assert one.value == four.value == pytest.approx(2.0)
    assert math.log(four.high / four.low) == pytest.approx(math.log(one.high / one.low) / 2, rel=0.15)
    assert math.log(one.high / one.value) == pytest.approx(0.1 * stats.t.ppf(0.975, 5), rel=0.1)


positive = st.floats(0.1, 10.0)


@given(positive, positive, positive, positive, st.floats(0.1, 10), st.floats(0.1, 10))
def test_ratios_hold_their_value_and_turn_over(down, up, other_down, other_up, first, second):
    upper = Estimate(first, first / (1 + down), first * (1 + up))
    lower = Estimate(second, second / (1 + other_down), second * (1 + other_up))
    found, turned = ratio(upper, lower), ratio(lower, upper)
    assert found.low <= found.value <= found.high
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 / found.value, 1 / found.high, 1 / found.low))


def test_the_ratio_of_independent_normal_logarithms():
    def normal(mean, deviation):
        return Estimate(math.exp(mean), math.exp(mean - 1.96 * deviation), math.exp(mean + 1.96 * deviation))

    found = ratio(normal(1.0, 0.3), normal(0.5, 0.4))
    assert math.log(found.value) == pytest.approx(0.5)
    assert math.log(found.high / found.value) == pytest.approx(1.96 * 0.5)
