"""Bounds of one round of the assignment problem, in closed form: its linear relaxation, and the best prefix greedy.

A group's choices lie on a convex curve of variance over bytes, the same for all groups up to scale, so a pair that has
to be done by time Z does best to take its *steps* (one group to its next wider choice) in the order of variance saved
per second. The least variance by time Z is then convex and piecewise linear in Z, and so is a round's objective:
its minimum lies where the pairs' slopes add up to the price of time, 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from halocast.runtime.bits.problem import Floats, Indices, Round

TOLERANCE = 1e-12
"""Times closer than this, in parts of a round's span, are one."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of a round before any search."""

    choice: Indices
    """int64 [G]: a good assignment, the best of those that take each pair's first so many steps."""
    upper: float
    """Its objective."""
    lower: float
    """The linear relaxation's objective: no assignment is below."""
    reduced_cost: Floats
    """float64 [G, C]: an assignment with this choice for this group costs at least `lower` + this."""


def bound_round(part: Round) -> Bounds:
    """Solve the relaxation of `part` and round it; time O(P · G log G)."""
    curves = _Curves(part)
    candidates = curves.candidate_times()
    relaxed, prefixes = curves.relaxed_objective(candidates), curves.prefix_objective(candidates)
    price = curves.price_at(float(candidates[relaxed.argmin()]))
    choice = curves.prefix_at(float(candidates[prefixes.argmin()]))
    cost = part.gain[:, None] * part.excess + (price[part.owner] * part.length)[:, None] * part.record_bytes
    cheapest = cost.min(axis=1)
    return Bounds(
        choice=choice,
        upper=part.objective(choice),
        # The Lagrangian bound holds for any prices; it is the relaxation's value for the right ones.
        lower=float(cheapest.sum() + price @ part.fixed),
        reduced_cost=cost - cheapest[:, None],
    )


def convex_choices(record_bytes: Indices, excess: Floats) -> list[int]:
    """Positions of the choices on the lower convex hull of variance over bytes, from the fewest bytes on.

    Of choices of equal bytes the widest is kept.
    """
    hull: list[int] = []
    for new in range(record_bytes.size):
        if hull and record_bytes[new] == record_bytes[hull[-1]]:
            hull.pop()
        while len(hull) > 1 and not _turns_up(hull[-2], hull[-1], new, record_bytes, excess):
            hull.pop()
        hull.append(new)
    return hull


def _turns_up(first: int, middle: int, last: int, x: Indices, y: Floats) -> bool:
    return bool((y[middle] - y[first]) * (x[last] - x[middle]) < (y[last] - y[middle]) * (x[middle] - x[first]))


@dataclass(frozen=True, eq=False)
class _Steps:
    """One pair's steps in the order they are taken."""

    group: Indices
    """int64 [S]: whose step it is."""
    start: float
    """When the pair is done without any step."""
    ends: Floats
    """float64 [S]: when it is done with all steps up to each."""
    saved: Floats
    """float64 [S + 1]: variance saved by the first so many."""

    @cached_property
    def slopes(self) -> Floats:
        """Variance saved per second: float64 [S + 2], infinite before the start and 0 after the last."""
        lengths = np.diff(self.ends, prepend=self.start)
        with np.errstate(divide="ignore"):
            inner = np.diff(self.saved) / lengths
        return np.concatenate([[np.inf], inner, [0.0]])

    def slope(self, time: float) -> float:
        """The slope just after `time` where no step ends at it exactly."""
        knots = np.concatenate([[self.start], self.ends])
        return float(self.slopes[np.searchsorted(knots, time, side="right")])


class _Curves:
    """The convex curves of a round's pairs."""

    def __init__(self, part: Round) -> None:
        self.part = part
        self.hull = np.array(convex_choices(part.record_bytes, part.excess))
        base = part.finish(np.full(part.owner.size, self.hull[0]))
        self.unsaved = float(part.gain.sum() * part.excess[self.hull[0]])
        self.earliest = float(base.max())
        edges = np.searchsorted(part.owner, np.arange(base.size + 1))
        self.steps = [self._steps(edges[index], edges[index + 1], float(base[index])) for index in range(base.size)]
        latest = max(float(each.ends[-1]) if each.ends.size else self.earliest for each in self.steps)
        self.tolerance = TOLERANCE * max(latest - self.earliest, self.earliest - float(base.min()), 0.0)

    def _steps(self, begin: int, end: int, start: float) -> _Steps:
        gain, length = self.part.gain[begin:end], self.part.length[begin:end]
        saved = np.outer(gain, -np.diff(self.part.excess[self.hull])).ravel()
        longer = np.outer(length, np.diff(self.part.record_bytes[self.hull])).ravel()
        group = np.repeat(np.arange(begin, end), self.hull.size - 1)
        worth = saved > 0.0  # a step that saves nothing is never taken: ties go to fewer bytes
        saved, longer, group = saved[worth], longer[worth], group[worth]
        with np.errstate(divide="ignore"):
            order = np.argsort(-saved / longer, kind="stable")  # stable: a group's own steps stay in order
        return _Steps(
            group=group[order],
            start=start,
            ends=start + np.cumsum(longer[order]),
            saved=np.concatenate([[0.0], np.cumsum(saved[order])]),
        )

    def candidate_times(self) -> Floats:
        """Every time at which the round could be done without waiting within a step, ascending."""
        ends = np.concatenate([each.ends for each in self.steps])
        return np.unique(np.append(ends[ends > self.earliest], self.earliest))

    def relaxed_objective(self, times: Floats) -> Floats:
        """The objective where steps may be taken in part."""
        total = self.unsaved + times
        for each in self.steps:
            total -= np.interp(times, np.concatenate([[each.start], each.ends]), each.saved)
        return total

    def prefix_objective(self, times: Floats) -> Floats:
        """The objective where steps are taken whole and in order."""
        total = self.unsaved + times
        for each in self.steps:
            total -= each.saved[np.searchsorted(each.ends, times + self.tolerance, side="right")]
        return total

    def prefix_at(self, time: float) -> Indices:
        """The choices when every pair takes the steps that fit."""
        taken = np.zeros(self.part.owner.size, dtype=np.int64)
        for each in self.steps:
            fits = np.searchsorted(each.ends, time + self.tolerance, side="right")
            np.add.at(taken, each.group[:fits], 1)
        return self.hull[taken]

    def price_at(self, time: float) -> Floats:
        """Multipliers that make `time` optimal: between each pair's slope after and before it, and 1 in total."""
        near = max(self.tolerance, 4 * np.spacing(abs(time)))
        after = np.array([each.slope(time + near) for each in self.steps])
        before = np.array([each.slope(time - near) for each in self.steps])
        price = np.where(np.isfinite(after), after, 0.0)
        missing = 1.0 - price.sum()
        for index in np.flatnonzero(before > after):
            added = min(max(missing, 0.0), float(before[index] - price[index]))
            price[index] += added
            missing -= added
        # What rounding has left over goes to all alike.
        return price / price.sum() if price.sum() > 0.0 else np.full(price.size, 1.0 / price.size)
