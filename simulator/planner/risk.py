"""How much accuracy a variance of the gradient puts at risk, from runs that were trained to their end.

Rounding that adds less than some share to the gradient's variance changes nothing that can be told from the seed's own
scatter; beyond it every tenfold costs about so many points. Both are fitted where runs say so, and measured once for all where
they do not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from halocast.simulator.forecast import width_shares
from halocast.simulator.observations import Observation
from halocast.traces.rows import RowStatistics
from halocast.traces.wire import variance_factor

if TYPE_CHECKING:
    from halocast.simulator.planner.rowmodel import RowModel

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


LEAST_EPOCHS = 30
"""Shorter runs were recorded for their times; their accuracy says nothing yet."""


def trained_runs(observations: Sequence[Observation], rows: RowModel, *, least_epochs: int = LEAST_EPOCHS) -> list[TrainedRun]:
    """Quantised runs beside plain ones of the same graph, model, seed and training, where both left their accuracy.

    What variance a run had follows from its widths and the rows that were recorded of its graph and model.
    """
    plain = {_what_was_trained(each): _accuracy(each) for each in observations if each.configuration.method == "full"}
    found = []
    for each in observations:
        configuration = each.configuration
        before, after = plain.get(_what_was_trained(each)), _accuracy(each)
        recorded, _ = rows.find(configuration.fingerprint, configuration.model, configuration.ranks)
        if each.trace.manifest.config["training"]["epochs"] < least_epochs:
            continue
        if configuration.method == "full" or before is None or after is None or recorded is None:
            continue
        found.append(TrainedRun(_variance(each, recorded), 100.0 * (before - after)))
    return found


def _what_was_trained(observation: Observation) -> tuple[Any, ...]:
    """What two runs must share for their accuracies to be compared."""
    config = observation.trace.manifest.config
    return (
        observation.configuration.fingerprint,
        json.dumps([config.get("model"), config.get("training"), config.get("seed")], sort_keys=True),
    )


def _accuracy(observation: Observation) -> float | None:
    try:
        score = json.loads((observation.folder / "result.json").read_text())["accuracy"]["test"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return None if score is None else float(score)


def _variance(observation: Observation, recorded: RowStatistics) -> float:
    """Of the run's widths, messages of an exchange taken as alike."""
    effects = {}
    for each in recorded.exchanges:
        energy = float(each.energy.sum(dtype=np.float64))
        if energy > 0.0 and math.isfinite(each.sensitivity):
            effects[each.key] = each.sensitivity * float(each.beta.sum(dtype=np.float64)) / energy
    shares = width_shares(observation.bits)
    return sum(
        effect * sum(share * variance_factor(bits) for bits, share in shares.get(key, {}).items())
        for key, effect in effects.items()
    )


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
