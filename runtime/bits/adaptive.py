"""AdaQP's adaptive assignment of widths: one mixed-integer problem for each layer and direction, solved with HiGHS.

After "Adaptive Message Quantization and Parallelization for Distributed Full-graph GNN Training" (Wan, Zhao and Wu,
MLSys 2023), section 4. In order: `group_messages` for every pair of ranks, `fit_link_costs`, `solve`, `spread`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds as VariableBounds
from scipy.optimize import LinearConstraint, milp

from halocast.errors import MisuseError, RunError
from halocast.runtime.bits.grouping import Groups, default_group_size, group_messages, spread
from halocast.runtime.bits.links import DEFAULT_COST, Link, LinkCost, fit_link_costs
from halocast.runtime.bits.plans import DEFAULT_PLAN_LIMIT, Plans, enumerate_plans
from halocast.runtime.bits.problem import Indices, Pair, Problem, Round
from halocast.runtime.bits.relaxation import Bounds, bound_round

__all__ = [
    "DEFAULT_CHOICES",
    "DEFAULT_COST",
    "Assignment",
    "Groups",
    "LinkCost",
    "Pair",
    "Report",
    "default_group_size",
    "fit_link_costs",
    "group_messages",
    "solve",
    "spread",
]

DEFAULT_CHOICES = (2, 4, 8)
DEFAULT_VARIANCE_WEIGHT = 0.5
SCALE = 1000.0
"""The room between a round's bounds, in the units handed to HiGHS: far above its absolute tolerances of 1e-6."""
COST_LIMIT = 1e6
"""The largest cost handed to HiGHS, far below what it takes for infinite."""


@dataclass(frozen=True)
class Report:
    """How good an assignment is, and what it took."""

    objective: float
    """λ · normalised_variance + (1 − λ) · normalised_time."""
    normalised_variance: float
    """0: as if all messages were widest; 1: narrowest. 0 where that makes no difference."""
    normalised_time: float
    """0: as if all messages were narrowest; 1: widest. 0 where that makes no difference."""
    variance: float
    """Σβ / (2^b − 1)²."""
    seconds: float
    """Predicted time of the exchange: the sum over its rounds of the slowest pair."""
    bound: float
    """No assignment's objective is lower."""
    relaxation: float
    """The linear relaxation's objective, a weaker bound."""
    binaries: int
    """Variables of HiGHS' problems, over all rounds; 0: the bounds alone decided."""
    solve_seconds: float = field(compare=False)
    """Wall time of `solve`."""

    @property
    def gap(self) -> float:
        """(objective − bound) / objective; 0 for an objective of 0."""
        return (self.objective - self.bound) / self.objective if self.objective > 0.0 else 0.0


@dataclass(frozen=True, eq=False)
class Assignment:
    """The widths of all groups."""

    widths: tuple[npt.NDArray[np.uint8], ...]
    """uint8 [groups] for each pair, in the order the pairs were given."""
    report: Report


def solve(
    pairs: Sequence[Pair],
    dim: int,
    *,
    one_sided: bool,
    costs: Mapping[Link, LinkCost],
    world_size: int,
    choices: Sequence[int] = DEFAULT_CHOICES,
    variance_weight: float = DEFAULT_VARIANCE_WEIGHT,
    plan_limit: int = DEFAULT_PLAN_LIMIT,
) -> Assignment:
    """Choose the width of every group: minimise λ · variance + (1 − λ) · time, each normalised (`problem`).

    Rounds of the ring share no message, so each is solved alone. Its linear relaxation has a closed form (`relaxation`);
    what costs more there than a greedy assignment is in no better one and is left out. The rest is enumerated as plans of
    whole pairs (`plans`), few because groups are of equal size, and HiGHS chooses among them by when the round is to end.

    The answer is optimal, and a function of the arguments alone, whatever the order of pairs: no clock and no gap stops
    the search. Only where groups differ in size so much that a pair has more than `plan_limit` plans are the least
    promising left out; the answer is then still no worse than the greedy one, and `Report.gap`, which holds either way,
    says by how much it may miss the optimum.

    Within a pair, of two groups with as many messages the one with more variance is never the narrower. At λ = 0 all are
    narrowest; at any λ above, pairs that finish before their round's slowest use up the time they have. At λ = 1 all groups
    with a β above 0 are widest. Where widths of a message take equally many bytes (few values), the widest of them stands
    for the narrowest. A term that the widths do not change (all β 0, or all θ 0) counts as 0.

    Args:
        pairs: what each rank sends each other one; pairs that send nothing may be left out.
        dim: values of one message.
        one_sided: whether its records carry no offset (`halocast.traces.wire.record_bytes`).
        costs: of each pair's link.
        world_size: ranks, which decide the rounds: pair (i, j) is in round (j − i) mod world_size.
        choices: widths to choose from, any of `CODED_WIDTHS`.
        variance_weight: λ, 0 to 1.
        plan_limit: most plans of one pair, at least 1.

    Raises:
        MisuseError: an argument is out of range, a link has no cost, or two pairs are the same.
        RunError: HiGHS failed.
    """
    began = time.perf_counter()
    if not 0.0 <= variance_weight <= 1.0:
        raise MisuseError(f"bits: variance weight {variance_weight} is out of range; allowed: 0 to 1")
    if plan_limit < 1:
        raise MisuseError(f"bits: plan limit {plan_limit} must be at least 1")
    problem = Problem.of(pairs, dim, one_sided=one_sided, costs=costs, choices=choices, world_size=world_size)
    rounds = problem.rounds(variance_weight)
    bounds = [bound_round(part) for part in rounds]
    relaxation = sum(each.lower for each in bounds)
    outcomes = [_solve_round(part, each, plan_limit) for part, each in zip(rounds, bounds, strict=True)]
    choice = [np.zeros(pair.group_rows.size, dtype=np.int64) for pair in pairs]
    for part, outcome in zip(rounds, outcomes, strict=True):
        for position, index in enumerate(part.pairs):
            choice[index] = outcome.choice[part.owner == position]
    widths = np.array(problem.choices, dtype=np.uint8)
    return Assignment(
        widths=tuple(widths[each] for each in choice),
        report=_report(problem, choice, variance_weight, relaxation, outcomes, began),
    )


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A round's assignment, and what no other can be below."""

    choice: Indices
    bound: float
    binaries: int


def _solve_round(part: Round, bounds: Bounds, plan_limit: int) -> _Outcome:
    plans = [enumerate_plans(part, bounds, pair, plan_limit) for pair in range(part.fixed.size)]
    finish, bound, binaries = _choose_finish(plans, bounds)
    picked = [each.choice[np.searchsorted(each.finish, finish, side="right") - 1] for each in plans]
    choice = np.concatenate(picked)
    if part.objective(choice) >= bounds.upper:
        choice = bounds.choice
    return _Outcome(choice, bound if all(each.complete for each in plans) else bounds.lower, binaries)


def _choose_finish(plans: Sequence[Plans], bounds: Bounds) -> tuple[float, float, int]:
    """The best time for a round to end at, HiGHS' bound of the round's objective, and the number of binaries.

    Once the end of the round is chosen, each pair follows its last plan that is done by then. With t_0 the earliest end and t_1
    < t_2 < … the later times at which some pair finishes a plan, let z_j say that the round lasts until t_j or longer:

        minimise Σ_j (t_j − t_{j−1} − variance saved by the plans that finish at t_j) · z_j,   z_j ≥ z_{j+1},   z binary.

    The matrix of these constraints is totally unimodular: the linear relaxation is integral and the search ends at its root.
    """
    start = max(float(each.finish[0]) for each in plans)
    first = [int(np.searchsorted(each.finish, start, side="right")) - 1 for each in plans]
    at_start = start + sum(float(each.variance[index]) for each, index in zip(plans, first, strict=True))
    later = np.concatenate([each.finish[index + 1 :] for each, index in zip(plans, first, strict=True)])
    if not later.size:
        return start, at_start, 0
    saved = np.concatenate([-np.diff(each.variance[index:]) for each, index in zip(plans, first, strict=True)])
    times, step = np.unique(later, return_inverse=True)
    cost = np.diff(times, prepend=start) - np.bincount(step, weights=saved)
    room = bounds.upper - bounds.lower
    scale = 1.0 / max(room / SCALE, float(np.abs(cost).max()) / COST_LIMIT, np.finfo(np.float64).tiny)
    steps = times.size
    chain = sparse.eye_array(steps, format="csr") - sparse.eye_array(steps, k=1, format="csr")  # the last row: z ≥ 0
    result = milp(
        c=scale * cost,
        integrality=np.ones(steps, dtype=np.int64),
        bounds=VariableBounds(0.0, 1.0),
        constraints=LinearConstraint(chain, 0.0, np.inf),
        options={"mip_rel_gap": 0.0},
    )
    if result.status != 0:
        raise RunError(f"bits: HiGHS did not solve the assignment of widths: {result.message}")
    taken = int(np.count_nonzero(result.x > 0.5))
    return float(times[taken - 1]) if taken else start, at_start + result.mip_dual_bound / scale, steps


def _report(
    problem: Problem,
    choice: Sequence[Indices],
    variance_weight: float,
    relaxation: float,
    outcomes: Sequence[_Outcome],
    began: float,
) -> Report:
    reached = problem.measure(choice)
    narrowest, widest = problem.extremes()
    variance = _part(reached.variance - widest.variance, narrowest.variance - widest.variance)
    seconds = _part(reached.seconds - narrowest.seconds, widest.seconds - narrowest.seconds)
    objective = variance_weight * variance + (1.0 - variance_weight) * seconds
    return Report(
        objective=objective,
        normalised_variance=variance,
        normalised_time=seconds,
        variance=reached.variance,
        seconds=reached.seconds,
        bound=min(sum(each.bound for each in outcomes), objective),
        relaxation=min(relaxation, objective),
        binaries=sum(each.binaries for each in outcomes),
        solve_seconds=time.perf_counter() - began,
    )


def _part(value: float, span: float) -> float:
    return value / span if span > np.finfo(np.float64).tiny else 0.0
