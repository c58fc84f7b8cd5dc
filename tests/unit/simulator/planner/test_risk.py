"""Accuracy at risk: nothing up to a threshold, so much for every tenfold beyond it."""

import math

import numpy as np
import pytest

from halocast.simulator.planner.risk import RiskCurve, TrainedRun, fit_risk, trained_runs
from halocast.simulator.planner.rowmodel import RowKey, merge_rows
from halocast.traces.rows import ExchangeRows, RowStatistics


def test_points_and_variance_are_inverse_beyond_the_threshold():
    curve = RiskCurve(0.1, 0.4)
    assert curve.points(0.05) == 0.0
    assert curve.points(curve.variance(0.3)) == pytest.approx(0.3)
    assert curve.variance(0.0) == 0.1


def test_a_curve_is_found_again_in_scattered_runs():
    random = np.random.default_rng(0)
    truth = RiskCurve(0.2, 1.5)
    runs = [
        TrainedRun(variance, truth.points(variance) + random.normal(0.0, 0.1))
        for variance in np.repeat(np.geomspace(1e-3, 20.0, 12), 5)
    ]
    found = fit_risk(runs)
    assert found.measured
    assert math.log10(found.threshold / 0.2) == pytest.approx(0.0, abs=0.35)
    assert found.slope == pytest.approx(1.5, rel=0.25)


def test_runs_that_lose_nothing_allow_all_that_they_had():
    runs = [TrainedRun(variance, 0.0) for variance in (0.01, 0.1, 1.0) for _ in range(3)]
    assert fit_risk(runs).threshold == pytest.approx(1.0)


def test_too_few_runs_leave_the_default():
    assert fit_risk([TrainedRun(0.1, 0.0)] * 3) == RiskCurve()


def test_runs_that_were_trained_beside_plain_ones_are_found(samples):
    """The samples' quantised runs have plain partners of the same training; rows are made up for their graph."""
    rounded = [each for each in samples if each.configuration.method == "adaqp"]
    keys = {key for each in rounded for key in each.bits[0].exchanges}
    ones, none = np.ones(4, dtype=np.float32), np.zeros(4, dtype=np.int64)
    exchanges = tuple(ExchangeRows(*key, 8, False, 0.5, none, none + 1, none, ones, ones) for key in sorted(keys))
    configuration = rounded[0].configuration
    rows = merge_rows(
        [(RowKey(configuration.fingerprint, configuration.model, configuration.ranks), RowStatistics(0, exchanges))]
    )
    found = trained_runs(samples, rows, least_epochs=1)
    alike = [each for each in rounded if each.configuration.fingerprint == configuration.fingerprint]
    assert 0 < len(found) <= len(alike)
    expected = {round(len(keys) * 0.5 / (2.0 ** int(each.configuration.bits) - 1) ** 2, 9) for each in alike}
    assert {round(each.variance, 9) for each in found} <= expected
    assert trained_runs(samples, merge_rows([]), least_epochs=1) == []
    assert trained_runs(samples, rows) == []  # six epochs say nothing of accuracy
