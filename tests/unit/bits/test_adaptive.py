"""Assignments are optimal by brute force and by the program of the paper, bounded by the relaxation, and deterministic."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bits.assignment_reference import (
    Case,
    best_by_brute_force,
    best_by_textbook_program,
    objective,
    random_case,
    terms,
    uniform,
)

from halocast.errors import MisuseError
from halocast.runtime.bits import adaptive
from halocast.runtime.bits.adaptive import Assignment, LinkCost, Pair, group_messages
from halocast.runtime.bits.problem import Problem
from halocast.runtime.bits.relaxation import bound_round


def solve(case: Case, **options: int) -> Assignment:
    return adaptive.solve(case.pairs, case.dim, **case.arguments(), **options)  # type: ignore[arg-type]


def lists(answer: Assignment) -> list[list[int]]:
    return [each.tolist() for each in answer.widths]


def single(variance: list[float], rows: list[int], **changes: object) -> Case:
    pair = Pair(0, 1, np.array(variance), np.array(rows, dtype=np.int64))
    return replace(Case([pair], {(0, 1): LinkCost(1e-9, 1e-6)}, 2), **changes)  # type: ignore[arg-type]


def large_case(seed: int = 0, world_size: int = 8, groups: int = 40) -> Case:
    rng = np.random.default_rng(seed)
    pairs, costs = [], {}
    for link in itertools.permutations(range(world_size), 2):
        each = group_messages(rng.lognormal(0, 2, groups * 50 - int(rng.integers(50))), 50)
        pairs.append(Pair(*link, each.variance, each.rows))
        costs[link] = LinkCost(float(rng.uniform(0.5, 2) * 1e-9), 1e-5)
    return Case(pairs, costs, world_size, dim=128)


weights = st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.8, 0.97, 1.0])


@given(st.integers(0, 2**32), st.integers(2, 3), weights, st.booleans(), st.sampled_from([(2, 4, 8), (1, 3), (8, 4, 2), (5,)]))
@settings(max_examples=60, deadline=None)
def test_no_assignment_is_better(seed: int, world_size: int, weight: float, equal: bool, choices: tuple[int, ...]) -> None:
    case = random_case(seed, world_size, 6 // world_size, weight=weight, equal_rows=equal, choices=choices)
    if sum(pair.group_rows.size for pair in case.pairs) > 8:
        case = replace(case, pairs=case.pairs[:2])
    answer = solve(case)
    reached = objective(case, lists(answer))
    assert reached == pytest.approx(best_by_brute_force(case), abs=1e-9)
    assert answer.report.objective == pytest.approx(reached, abs=1e-12)
    assert answer.report.gap <= 1e-9


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("equal", [True, False])
def test_the_program_of_the_paper_finds_nothing_better(seed: int, equal: bool) -> None:
    case = random_case(seed, 3, 12, weight=(0.2, 0.5, 0.8)[seed % 3], equal_rows=equal)
    reached = solve(case).report.objective
    assert reached == pytest.approx(best_by_textbook_program(case, gap=1e-7), rel=1e-5)


@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_closed_form_is_the_linear_relaxation(seed: int, world_size: int, weight: float, equal: bool) -> None:
    case = random_case(seed, world_size, 10, weight=weight, equal_rows=equal)
    if not any(pair.group_rows.size for pair in case.pairs):
        return
    assert solve(case).report.relaxation == pytest.approx(best_by_textbook_program(case, relaxed=True), abs=1e-8)


def test_large_problems_are_solved_to_the_optimum_between_relaxation_and_greedy() -> None:
    case = large_case()
    answer = solve(case)
    report = answer.report
    problem = Problem.of(case.pairs, case.dim, one_sided=True, costs=case.costs, choices=case.choices, world_size=8)
    bounds = [bound_round(part) for part in problem.rounds(0.5)]
    assert sum(each.lower for each in bounds) == pytest.approx(report.relaxation)
    assert report.relaxation <= report.bound <= report.objective <= sum(each.upper for each in bounds)
    assert report.gap <= 1e-9
    assert report.objective <= 1.02 * report.relaxation
    assert report.objective == pytest.approx(objective(case, lists(answer)), abs=1e-12)
    assert report.binaries > 0
    assert report.objective < min(objective(case, uniform(case, bits)) for bits in case.choices)


def test_reduced_costs_bound_what_a_choice_costs() -> None:
    """Fixing any group at any width: the best assignment left is no better than the lower bound plus the reduced cost."""
    case = single([90.0, 50.0, 7.0, 1.0], [52, 10, 31, 5], variance_weight=0.4)
    problem = Problem.of(case.pairs, case.dim, one_sided=True, costs=case.costs, choices=case.choices, world_size=2)
    (part,) = problem.rounds(0.4)
    bounds = bound_round(part)
    for group, choice in itertools.product(range(4), range(3)):
        best = min(
            objective(case, [list(widths)])
            for widths in itertools.product(case.choices, repeat=4)
            if widths[group] == case.choices[choice]
        )
        assert best >= bounds.lower + bounds.reduced_cost[group, choice] - 1e-12


def test_report_has_both_terms_in_their_units_and_normalised() -> None:
    case = random_case(1, 3, 5)
    answer = solve(case)
    variance, seconds = terms(case, lists(answer))
    (high, fast), (low, slow) = terms(case, uniform(case, 2)), terms(case, uniform(case, 8))
    assert answer.report.variance == pytest.approx(variance, rel=1e-12)
    assert answer.report.seconds == pytest.approx(seconds, rel=1e-12)
    assert answer.report.normalised_variance == pytest.approx((variance - low) / (high - low), rel=1e-9)
    assert answer.report.normalised_time == pytest.approx((seconds - fast) / (slow - fast), rel=1e-9)


def test_more_weight_on_variance_never_gives_more_of_it() -> None:
    case = random_case(2, 4, 8)
    reports = [solve(replace(case, variance_weight=weight)).report for weight in np.linspace(0, 1, 21)]
    variances = [report.normalised_variance for report in reports]
    times = [report.normalised_time for report in reports]
    assert (np.diff(variances) <= 1e-12).all()
    assert (np.diff(times) >= -1e-12).all()
    assert (variances[0], times[0]) == (1.0, 0.0)
    assert (variances[-1], times[-1]) == (0.0, 1.0)


def test_at_the_ends_all_are_narrowest_or_widest() -> None:
    case = random_case(3, 4, 8)
    assert lists(solve(replace(case, variance_weight=0.0))) == uniform(case, 2)
    assert lists(solve(replace(case, variance_weight=1.0))) == uniform(case, 8)


def test_a_pair_that_waits_anyway_uses_wider_widths() -> None:
    """Nearly all weight is on time: the slow link stays narrowest; the fast one of its round has room for 8 bits."""
    variance, rows = np.array([3.0, 2.0, 1.0]), np.full(3, 100)
    pairs = [Pair(0, 1, variance, rows), Pair(1, 2, variance, rows)]
    case = Case(pairs, {(0, 1): LinkCost(1e-8), (1, 2): LinkCost(1e-9)}, 3, variance_weight=1e-6)
    assert lists(solve(case)) == [[2, 2, 2], [8, 8, 8]]
    other_round = [Pair(0, 1, variance, rows), Pair(2, 1, variance, rows)]
    case = Case(other_round, {(0, 1): LinkCost(1e-8), (2, 1): LinkCost(1e-9)}, 3, variance_weight=1e-6)
    assert lists(solve(case)) == [[2, 2, 2], [2, 2, 2]]


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_more_variance_never_gets_the_narrower_width(seed: int, weight: float) -> None:
    case = random_case(seed, 3, 10, weight=weight)
    for pair, widths in zip(case.pairs, solve(case).widths, strict=True):
        alike = pair.group_rows == 50
        order = np.argsort(-pair.group_variance[alike], kind="stable")
        assert (np.diff(widths[alike][order].astype(int)) <= 0).all()


def test_the_order_of_pairs_does_not_matter_and_answers_repeat() -> None:
    case = random_case(4, 4, 8)
    answer = solve(case)
    assert lists(solve(case)) == lists(answer)
    assert solve(case).report == answer.report
    order = np.random.default_rng(0).permutation(len(case.pairs))
    shuffled = solve(replace(case, pairs=[case.pairs[index] for index in order]))
    assert lists(shuffled) == [answer.widths[index].tolist() for index in order]


def test_ties_are_broken_alike_every_time() -> None:
    """Equal groups and equal links everywhere: many optima, one answer."""
    variance, rows = np.ones(4), np.full(4, 10)
    pairs = [Pair(*link, variance, rows) for link in itertools.permutations(range(3), 2)]
    case = Case(pairs, {pair.link: LinkCost(1e-9) for pair in pairs}, 3, variance_weight=0.9)
    answers = [lists(solve(case)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len({tuple(each) for each in answers[0]}) == 1
    assert answers[0][0] == sorted(answers[0][0], reverse=True)


def test_nothing_to_assign() -> None:
    empty = Pair(0, 1, np.zeros(0), np.zeros(0, dtype=np.int64))
    for case in (Case([], {}, 1), Case([empty], {(0, 1): LinkCost(1.0)}, 2)):
        answer = solve(case)
        assert lists(answer) == [[] for _ in case.pairs]
        assert (answer.report.objective, answer.report.gap, answer.report.seconds) == (0.0, 0.0, 0.0)


def test_one_message() -> None:
    case = single([1.0], [1])
    assert objective(case, lists(solve(case))) == pytest.approx(best_by_brute_force(case), abs=1e-12)


def test_pairs_that_send_nothing_cost_no_time() -> None:
    case = single([5.0, 1.0], [10, 10])
    empty = Pair(1, 0, np.zeros(0), np.zeros(0, dtype=np.int64))
    wider = replace(case, pairs=[*case.pairs, empty], costs={(0, 1): case.costs[0, 1], (1, 0): LinkCost(1e-3, 10.0)})
    assert solve(wider).report.seconds == solve(case).report.seconds


def test_no_variance_anywhere_leaves_all_narrowest() -> None:
    case = random_case(6, 3, 6)
    case = replace(case, pairs=[replace(pair, group_variance=0.0 * pair.group_variance) for pair in case.pairs])
    answer = solve(case)
    assert lists(answer) == uniform(case, 2)
    assert answer.report.objective == 0.0


def test_a_group_without_variance_stays_narrowest_where_time_counts_for_nothing() -> None:
    assert lists(solve(single([2.0, 0.0], [5, 5], variance_weight=1.0))) == [[8, 2]]


def test_links_whose_time_does_not_depend_on_bytes_leave_all_widest() -> None:
    case = random_case(7, 3, 6)
    answer = solve(replace(case, costs={link: LinkCost(0.0, 1e-3) for link in case.costs}))
    assert lists(answer) == uniform(case, 8)
    assert answer.report.objective == 0.0


def test_one_choice_is_taken() -> None:
    case = random_case(8, 3, 6, choices=(3,))
    answer = solve(case)
    assert lists(answer) == uniform(case, 3)
    assert answer.report.objective == 0.0


def test_where_bytes_are_equal_the_widest_is_free() -> None:
    """One value takes one byte at 2, 4 and 8 bits alike."""
    case = single([2.0, 1.0], [5, 5], dim=1, variance_weight=0.01)
    assert lists(solve(case)) == [[8, 8]]


@pytest.mark.parametrize("scale", [1e-290, 1e-30, 1.0, 1e30, 1e280])
@pytest.mark.parametrize("speed", [1e-15, 1.0, 1e12])
def test_the_units_of_variance_and_time_do_not_matter(scale: float, speed: float) -> None:
    case = random_case(9, 3, 6)
    scaled = replace(
        case,
        pairs=[replace(pair, group_variance=scale * pair.group_variance) for pair in case.pairs],
        costs={link: LinkCost(speed * cost.seconds_per_byte, speed * cost.seconds) for link, cost in case.costs.items()},
    )
    assert solve(scaled).report.objective == pytest.approx(solve(case).report.objective, rel=1e-9)


def test_too_many_plans_are_cut_and_the_gap_says_so() -> None:
    """Sizes drawn at random make every sum of bytes different."""
    rng = np.random.default_rng(0)
    pairs = [Pair(*link, rng.lognormal(0, 1, 30), rng.integers(1, 10_000, 30)) for link in itertools.permutations(range(3), 2)]
    case = Case(pairs, {pair.link: LinkCost(float(rng.uniform(1, 2)) * 1e-9) for pair in pairs}, 3)
    full, cut = solve(case), solve(case, plan_limit=5)
    assert full.report.gap <= 1e-9
    assert full.report.objective <= cut.report.objective
    assert cut.report.bound == pytest.approx(cut.report.relaxation, rel=1e-12)
    assert 0.0 < cut.report.gap < 0.01
    assert cut.report.bound <= full.report.objective


def test_arguments_out_of_range() -> None:
    case = random_case(10, 3, 4)
    pair = Pair(0, 1, np.ones(1), np.ones(1, dtype=np.int64))
    for changed, expected in (
        (replace(case, variance_weight=1.5), r"variance weight 1\.5"),
        (replace(case, variance_weight=float("nan")), "variance weight nan"),
        (replace(case, choices=()), "choices"),
        (replace(case, choices=(2, 7)), "1, 2, 3, 4, 5, 6, 8"),
        (replace(case, choices=(8, 16)), "not allowed"),
        (replace(case, costs={}), "has no cost"),
        (replace(case, pairs=[pair, pair]), "two entries"),
        (replace(case, pairs=[replace(pair, receiver=3)]), "0 → 3 between 3 ranks"),
        (replace(case, pairs=[replace(pair, receiver=0)]), "no link 0 → 0"),
    ):
        with pytest.raises(MisuseError, match=expected):
            solve(changed)
    with pytest.raises(MisuseError, match="plan limit 0"):
        solve(case, plan_limit=0)


@pytest.mark.parametrize(
    ("variance", "rows", "expected"),
    [
        ([1.0], [1, 1], "1 sums of β for 2 groups"),
        ([-1.0], [1], "negative"),
        ([np.nan], [1], "finite"),
        ([1.0], [0], "without"),
    ],
)
def test_pairs_that_cannot_be(variance: list[float], rows: list[int], expected: str) -> None:
    with pytest.raises(MisuseError, match=expected):
        Pair(0, 1, np.array(variance), np.array(rows))
