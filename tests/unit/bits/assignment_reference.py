"""The assignment problem as AdaQP states it, written plainly: its objective, all assignments, and the textbook program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from halocast.runtime.bits.adaptive import LinkCost, Pair
from halocast.traces.wire import message_bytes


@dataclass(frozen=True)
class Case:
    """The arguments of `adaptive.solve`."""

    pairs: list[Pair]
    costs: Mapping[tuple[int, int], LinkCost]
    world_size: int
    dim: int = 24
    one_sided: bool = True
    choices: tuple[int, ...] = (2, 4, 8)
    variance_weight: float = 0.5

    def arguments(self) -> dict[str, object]:
        return {
            "one_sided": self.one_sided,
            "costs": self.costs,
            "world_size": self.world_size,
            "choices": self.choices,
            "variance_weight": self.variance_weight,
        }


def random_case(
    seed: int,
    world_size: int,
    groups: int,
    *,
    weight: float = 0.5,
    equal_rows: bool = True,
    choices: tuple[int, ...] = (2, 4, 8),
) -> Case:
    """Pairs of 0 to `groups` groups (some pairs absent), links of different speed, skewed variances."""
    rng = np.random.default_rng(seed)
    pairs, costs = [], {}
    for sender, receiver in itertools.permutations(range(world_size), 2):
        costs[sender, receiver] = LinkCost(float(rng.uniform(0.3, 3) * 1e-9), float(rng.uniform(0, 2) * 1e-6))
        count = int(rng.integers(0, groups + 1))
        if rng.random() < 0.1:
            continue
        rows = np.full(count, 50) if equal_rows else rng.integers(1, 100, count)
        rows[-1:] = rng.integers(1, 51)
        pairs.append(Pair(sender, receiver, np.sort(rng.lognormal(0, 2, count) * rows)[::-1].copy(), rows))
    return Case(pairs, costs, world_size, variance_weight=weight, choices=choices)


def terms(case: Case, widths: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Variance and seconds."""
    variance = 0.0
    slowest: dict[int, float] = {}
    for pair, chosen in zip(case.pairs, widths, strict=True):
        if not len(chosen):
            continue
        variance += sum(beta / (2.0 ** int(bits) - 1) ** 2 for beta, bits in zip(pair.group_variance, chosen, strict=True))
        histogram = [(int(bits), int(rows)) for bits, rows in zip(chosen, pair.group_rows, strict=True)]
        cost = case.costs[pair.sender, pair.receiver]
        seconds = cost.seconds_per_byte * message_bytes(histogram, case.dim, one_sided=case.one_sided) + cost.seconds
        turn = (pair.receiver - pair.sender) % case.world_size
        slowest[turn] = max(slowest.get(turn, 0.0), seconds)
    return variance, sum(slowest.values())


def uniform(case: Case, bits: int) -> list[list[int]]:
    return [[bits] * pair.group_rows.size for pair in case.pairs]


def objective(case: Case, widths: Sequence[Sequence[int]]) -> float:
    variance, seconds = terms(case, widths)
    (high, fast), (low, slow) = terms(case, uniform(case, min(case.choices))), terms(case, uniform(case, max(case.choices)))
    return case.variance_weight * (variance - low) / (high - low or 1.0) + (1 - case.variance_weight) * (seconds - fast) / (
        slow - fast or 1.0
    )


def best_by_brute_force(case: Case) -> float:
    """The least objective of all assignments."""
    counts = [pair.group_rows.size for pair in case.pairs]
    edges = np.cumsum([0, *counts])
    return min(
        objective(case, [list(flat[a:b]) for a, b in itertools.pairwise(edges)])
        for flat in itertools.product(case.choices, repeat=int(edges[-1]))
    )


def best_by_textbook_program(case: Case, *, relaxed: bool = False, gap: float = 0.0) -> float:
    """The program of the paper, a binary for each group and width and one Z a round, all in one piece."""
    groups = [(p, g) for p, pair in enumerate(case.pairs) for g in range(pair.group_rows.size)]
    turns = sorted({(pair.receiver - pair.sender) % case.world_size for pair in case.pairs if pair.group_rows.size})
    (high, fast), (low, slow) = terms(case, uniform(case, min(case.choices))), terms(case, uniform(case, max(case.choices)))
    width_count = len(case.choices)
    columns = len(groups) * width_count + len(turns)
    cost = np.zeros(columns)
    cost[len(groups) * width_count :] = (1 - case.variance_weight) * 1e-6 / (slow - fast)  # Z in microseconds
    one = np.zeros((len(groups), columns))
    used = [p for p, pair in enumerate(case.pairs) if pair.group_rows.size]
    times, constants = np.zeros((len(used), columns)), np.zeros(len(used))
    for row, p in enumerate(used):
        pair = case.pairs[p]
        link = case.costs[pair.sender, pair.receiver]
        times[row, len(groups) * width_count + turns.index((pair.receiver - pair.sender) % case.world_size)] = 1.0
        constants[row] = 1e6 * (link.seconds + link.seconds_per_byte * message_bytes([], case.dim, one_sided=True))
    for number, (p, g) in enumerate(groups):
        pair = case.pairs[p]
        link = case.costs[pair.sender, pair.receiver]
        for position, bits in enumerate(case.choices):
            column = number * width_count + position
            one[number, column] = 1.0
            cost[column] = case.variance_weight * pair.group_variance[g] / (2.0**bits - 1) ** 2 / (high - low)
            size = message_bytes([(bits, int(pair.group_rows[g]))], case.dim, one_sided=case.one_sided) - 32
            times[used.index(p), column] = -1e6 * link.seconds_per_byte * size
    upper = np.concatenate([np.ones(columns - len(turns)), np.full(len(turns), np.inf)])
    offset = -case.variance_weight * low / (high - low) - (1 - case.variance_weight) * fast / (slow - fast)
    scale = 1e4  # so that HiGHS' absolute tolerances are no excuse
    if relaxed:
        limits = [(0.0, float(high_end)) for high_end in upper]
        answer = linprog(scale * cost, A_ub=-times, b_ub=-constants, A_eq=one, b_eq=np.ones(len(groups)), bounds=limits)
        return float(answer.fun) / scale + offset
    answer = milp(
        scale * cost,
        integrality=np.concatenate([np.ones(columns - len(turns)), np.zeros(len(turns))]),
        bounds=Bounds(0, upper),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(times, constants, np.inf)],
        options={"mip_rel_gap": gap},
    )
    return float(answer.fun) / scale + offset
