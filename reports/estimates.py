"""How sure an epoch time is, and the ratio of two.

Epochs of one run are not independent runs: they share a machine's mood, and follow each other. They are resampled in blocks
(H. Künsch, Annals of Statistics 17, 1989); where several runs of one configuration are given, their scatter is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A positive value and what holds it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    """By how much runs of one configuration differ: standard deviation of the logarithm, and its degrees of freedom."""

    deviation: float
    freedom: int


def block_medians(seconds: Floats, generator: np.random.Generator) -> Floats:
    """[RESAMPLES] medians of `seconds`, resampled in blocks of n^(1/3) epochs that follow each other, around the end."""
    count = len(seconds)
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    starts = generator.integers(0, count, size=(RESAMPLES, blocks))
    places = (starts[:, :, None] + np.arange(length)) % count
    return np.asarray(np.median(seconds[places.reshape(RESAMPLES, -1)[:, :count]], axis=1))


def between_runs(groups: Sequence[Sequence[Floats]]) -> Scatter | None:
    """Scatter of the runs' medians about their group's, pooled; None where no group has two runs."""
    squares, freedom = 0.0, 0
    for runs in groups:
        logs = np.array([math.log(float(np.median(seconds))) for seconds in runs])
        if len(logs) > 1:
            squares += float(((logs - logs.mean()) ** 2).sum())
            freedom += len(logs) - 1
    return Scatter(math.sqrt(squares / freedom), freedom) if freedom else None


def epoch_estimate(runs: Sequence[Floats], scatter: Scatter | None) -> Estimate:
    """The geometric mean of the runs' median epochs, with a 95 % interval.

    With `scatter`, Student's t of it, over the root of the number of runs, is added to what resampling epochs says.
    """
    generator = np.random.default_rng(0)
    value = math.exp(float(np.mean([math.log(float(np.median(seconds))) for seconds in runs])))
    logs = np.mean([np.log(block_medians(seconds, generator)) for seconds in runs], axis=0)
    if scatter is not None:
        logs = logs + scatter.deviation / math.sqrt(len(runs)) * generator.standard_t(scatter.freedom, size=RESAMPLES)
    low, high = np.exp(np.quantile(logs, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def ratio(upper: Estimate, lower: Estimate) -> Estimate:
    """Of two values that are wrong independently: distances of their bounds, as logarithms, add as squares."""
    value = upper.value / lower.value
    down = math.hypot(math.log(upper.value / upper.low), math.log(lower.high / lower.value))
    up = math.hypot(math.log(upper.high / upper.value), math.log(lower.value / lower.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))
