"""How much accuracy a variance of the gradient puts at risk, from runs that were trained to their end.

Rounding that adds less than some share to the gradient's variance changes nothing that can be told from the seed's own
scatter; beyond it every tenfold costs about so many points. Both are fitted where runs say so, and measured once for all where
they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_POINTS = 0.3
"""Points of accuracy at risk that a plan may accept when nothing is said."""


@dataclass(frozen=True)
class TrainedRun:
    """A run beside plain training of the same seed."""

    variance: float
    """Relative, that rounding added to the weights' gradient."""
    points_lost: float
    """Accuracy of plain training less this run's, in points (hundredths); below 0 where it was better."""


@dataclass(frozen=True)
class RiskCurve:
    """Points at risk: 0 up to `threshold`, then `slope` for every factor of ten."""

    threshold: float = 1e-5
    slope: float = 0.27
    measured: bool = False
    """False: the most that any of the benchmark's graphs lost (benchmarks/results/planner-risk-*.md), not from runs of this."""

    def points(self, variance: float) -> float:
        return self.slope * max(0.0, math.log10(variance / self.threshold)) if variance > 0.0 else 0.0

    def variance(self, points: float) -> float:
        """The largest that puts no more than so many points at risk."""
        return float(self.threshold * 10.0 ** (max(points, 0.0) / self.slope))


LEAST_RUNS = 6
"""Fewer do not tell a loss from the scatter of seeds."""


def fit_risk(runs: Sequence[TrainedRun]) -> RiskCurve:
    """The curve of least squares over runs, its threshold among their variances; the default where they are too few."""
    known = [each for each in runs if each.variance > 0.0]
    if len(known) < LEAST_RUNS or len({each.variance for each in known}) < 3:
        return RiskCurve()
    logs = np.array([math.log10(each.variance) for each in known])
    lost = np.array([each.points_lost for each in known])
    best, least = RiskCurve(float(10.0 ** logs.max()), RiskCurve.slope, measured=True), float((lost**2).sum())
    for threshold in np.unique(logs)[:-1].tolist():
        beyond = np.maximum(0.0, logs - threshold)
        slope = float(beyond @ lost / (beyond @ beyond))
        error = float(((lost - slope * beyond) ** 2).sum())
        if slope > 0.0 and error < least:
            best, least = RiskCurve(float(10.0**threshold), slope, measured=True), error
    return best
