"""Intervals from errors that were made: split-conformal quantiles of left-out errors.

A forecast was wrong by so much for configurations that it had not seen; the interval is what would have held nine in ten of
them. V. Vovk, A. Gammerman, G. Shafer, Algorithmic Learning in a Random World, 2005; J. Lei et al., JASA 113, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from halocast.simulator.costs import EpochError

LEVEL = 0.9
NINETY_PERCENT = 1.645
"""Standard deviations either way that hold nine tenths of a normal distribution."""
ENOUGH = 10
"""Errors of one kind (ranks on cores of their own, or sharing) that make an interval by themselves."""
LEAST_SPREAD = 0.03
"""Half an interval where too few errors are known: no forecast of a shared machine is surer."""
FEW_SPREAD = 0.25
"""Half an interval at most where one or two configurations are all that was calibrated."""
EXTRAPOLATION = 1.5
"""How much wider an interval is beyond the calibrated range."""


class Interval(BaseModel):
    """A value and what holds it nine times in ten."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float

    def holds(self, measured: float) -> bool:
        return self.low <= measured <= self.high

    def scaled(self, factor: float) -> Interval:
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


def log_bounds(
    errors: Sequence[EpochError], noise: float, *, oversubscribed: bool, at_speed: bool = False
) -> tuple[float, float]:
    """Bounds of log(one measurement / forecast): of errors of this kind where there are enough, of all otherwise.

    Errors are of configurations, means over repeats; a single run scatters about its configuration by `noise` (a standard
    deviation), which is added to them. `at_speed`: the machine's speed is known, and so are noise and errors without it.
    """
    alike = [each for each in errors if each.oversubscribed == oversubscribed]
    used = alike if len(alike) >= ENOUGH else errors
    chosen = np.array([each.at_speed if at_speed else each.log_ratio for each in used])
    count = len(chosen)
    if count < 3:
        # one or two configurations foretell each other badly, as each lacks most of what the other shows: that says little
        half = max(LEAST_SPREAD, 3.0 * noise, min(FEW_SPREAD, 3.0 * float(np.abs(chosen).max(initial=0.0))))
        return -half, half
    # every error with the scatter of single runs about it, as a fine grid of a normal distribution's quantiles
    grid = np.array([-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645])
    scattered = (chosen[:, None] + noise * grid[None, :]).ravel()
    level = min(1.0, LEVEL * (count + 1) / count)
    return float(np.quantile(scattered, (1.0 - level) / 2.0)), float(np.quantile(scattered, (1.0 + level) / 2.0))


def interval(
    value: float,
    errors: Sequence[EpochError],
    noise: float,
    *,
    oversubscribed: bool,
    extrapolated: bool = False,
    at_speed: bool = False,
    spread: float = 0.0,
) -> Interval:
    """The 90 % interval of one run's epoch time forecast as `value`; `spread` is the standard deviation of the logarithm of
    what else may be wrong and shows in no error (fitted statistics, moved costs)."""
    low, high = log_bounds(errors, noise, oversubscribed=oversubscribed, at_speed=at_speed)
    if extrapolated:
        middle, half = (low + high) / 2.0, (high - low) / 2.0 * EXTRAPOLATION
        low, high = middle - half, middle + half
    below, above = (float(np.hypot(each, NINETY_PERCENT * spread)) for each in (min(low, 0.0), max(high, 0.0)))
    return Interval(value=value, low=value * float(np.exp(-below)), high=value * float(np.exp(above)))
