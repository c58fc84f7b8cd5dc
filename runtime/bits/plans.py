"""What a pair of ranks can sensibly do in a round: whole assignments of its groups, one of which the solver picks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halocast.runtime.bits.problem import Floats, Indices, Round
from halocast.runtime.bits.relaxation import Bounds

DEFAULT_PLAN_LIMIT = 2000


@dataclass(frozen=True, eq=False)
class Plans:
    """Assignments of one pair's groups, each slower than the one before and of less variance."""

    choice: Indices
    """int64 [plans, groups of the pair]."""
    finish: Floats
    """float64 [plans]: when the pair is done, not falling."""
    variance: Floats
    """float64 [plans]: Σ gain · excess of the pair's groups, falling."""
    complete: bool
    """Whether every assignment better than the greedy one follows one of these plans; not if there were too many."""


def enumerate_plans(part: Round, bounds: Bounds, pair: int, limit: int) -> Plans:
    """The plans of a pair whose reduced cost leaves room for improvement on the greedy assignment.

    Groups are added one by one; of equal bytes the least variance is kept, and nothing of a reduced cost above the room
    between the bounds. Groups from `group_messages` have the same number of messages, so few sums of bytes are possible: in
    practice some dozens of plans remain of 3^groups. Were there more than `limit`, those of the least reduced cost are kept.
    """
    room = max(bounds.upper - bounds.lower, 0.0) * (1.0 + 1e-9)
    groups = np.flatnonzero(part.owner == pair)
    size, cost, variance = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1)
    choice = np.zeros((1, groups.size), dtype=np.int64)
    complete = True
    for position, group in enumerate(groups):
        options = np.flatnonzero(bounds.reduced_cost[group] <= room)
        origin, option = np.tile(np.arange(size.size), options.size), np.repeat(options, size.size)
        size = size[origin] + part.rows[group] * part.record_bytes[option]
        cost = cost[origin] + bounds.reduced_cost[group, option]
        variance = variance[origin] + part.gain[group] * part.excess[option]
        kept = np.arange(size.size)
        if options.size > 1:
            kept = _frontier(size, variance, cost <= room)
        if kept.size > limit:
            kept = np.sort(kept[np.argsort(cost[kept], kind="stable")[:limit]])
            complete = False
        size, variance, cost, choice = size[kept], variance[kept], cost[kept], choice[origin[kept]]
        choice[:, position] = option[kept]
    finish = part.fixed[pair] + part.rate[pair] * size
    return Plans(choice, finish, variance, complete)


def _frontier(size: Indices, variance: Floats, allowed: npt.NDArray[np.bool_]) -> Indices:
    """Positions, by ascending size, of the allowed ones with less variance than all that are no larger."""
    positions = np.flatnonzero(allowed)
    order = positions[np.lexsort((variance[positions], size[positions]))]
    best = np.minimum.accumulate(variance[order])
    better: Indices = order[np.append(True, best[1:] < best[:-1])]
    return better
