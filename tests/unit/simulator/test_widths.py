"""Widths of messages against brute force, mixed-integer programming, and what a price means."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from halocast.errors import MisuseError
from halocast.simulator.planner.widths import Choices, at_price, within_bytes, within_variance
from halocast.traces.wire import WIDTHS, record_bytes


def choices(messages: int, seed: int, widths: tuple[int, ...] = WIDTHS) -> Choices:
    """Messages of random lengths, dims and ranges, as AdaQP's variance has it."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 400, messages)
    dims = random.choice([2, 16, 33, 64, 602], messages)
    beta = random.lognormal(0.0, 2.0, messages) * rows
    size = np.array(
        [
            [n * record_bytes(bits, d, one_sided=False) for bits in widths]
            for n, d in zip(rows.tolist(), dims.tolist(), strict=True)
        ]
    )
    error = np.array([0.0 if bits == 32 else 1.0 / (2.0**bits - 1.0) ** 2 for bits in widths])
    return Choices(widths, size.astype(float), beta[:, None] * error[None, :])


def optimum(table: Choices, budget: float) -> float:
    """Least variance within a budget, by HiGHS."""
    messages, widths = table.bytes.shape
    one_each = sparse.kron(sparse.eye(messages), np.ones((1, widths)))
    constraints = [LinearConstraint(one_each, 1.0, 1.0), LinearConstraint(table.bytes.reshape(1, -1), -np.inf, budget)]
    scale = table.variance.max()
    found = milp(
        table.variance.ravel() / scale, constraints=constraints, integrality=np.ones(messages * widths),
        bounds=Bounds(0.0, 1.0), options={"mip_rel_gap": 1e-7},
    )  # fmt: skip
    assert found.success
    return float(found.fun * scale)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_optimum_is_met_within_a_thousandth(seed, share):
    table = choices(40, seed)
    least, most = table.bytes.min(axis=1).sum(), table.bytes[:, -1].sum()
    budget = least + share * (most - least)
    found, best = within_bytes(table, budget), optimum(table, budget)
    assert found.bytes <= budget
    assert found.variance <= best * 1.001 + 1e-12 * table.variance.max()
    assert found.bound <= best * (1 + 1e-6)
    assert (found.bytes, found.variance) == pytest.approx(table.total(found.index))


@pytest.mark.parametrize("seed", range(20))
def test_few_messages_are_solved_as_trying_everything_does(seed):
    table = choices(5, seed, (1, 2, 4, 8))
    size = table.bytes.sum(axis=0)
    budget = float(np.random.default_rng(seed).uniform(size[0], size[-1]))
    best = min(
        variance
        for pick in product(range(4), repeat=5)
        for total, variance in [table.total(np.array(pick))]
        if total <= budget
    )  # fmt: skip
    assert within_bytes(table, budget).variance == pytest.approx(best, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_at_a_price_no_single_change_is_better(messages, seed, place):
    table = choices(messages, seed)
    prices = np.sort(table.upgrades.price)
    price = float(prices[int(place * (len(prices) - 1))]) if len(prices) else 1.0
    found = at_price(table, price)
    worth = table.variance + price * table.bytes
    chosen = worth[np.arange(messages), found.index]
    assert (chosen <= worth.min(axis=1) * (1 + 1e-9)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_a_variance_budget_is_kept_and_costs_about_what_the_bytes_say(messages, seed, share):
    table = choices(messages, seed)
    budget = float(share * table.variance[:, 0].sum())
    found = within_variance(table, budget)
    assert found.variance <= budget * (1 + 1e-9) + 1e-11 * table.variance[:, 0].sum()  # sums in another order
    # with so many bytes nothing better is possible than what they can buy
    assert within_bytes(table, found.bytes).variance <= found.variance * (1 + 1e-9)


def test_more_bytes_are_never_worse():
    table = choices(300, 3)
    budgets = np.linspace(table.bytes.min(axis=1).sum(), table.bytes[:, -1].sum(), 30)
    variances = [within_bytes(table, budget).variance for budget in budgets]
    assert all(later <= earlier * (1 + 2e-4) for earlier, later in pairwise(variances))
    assert variances[-1] == 0.0


def test_widths_that_are_never_worth_it_are_passed_over():
    table = Choices((2, 4, 8), np.array([[10.0, 30.0, 40.0]]), np.array([[9.0, 8.5, 1.0]]))  # 4 bits lie above the hull
    assert table.upgrades.to.tolist() == [2]
    assert within_bytes(table, 40.0).index.tolist() == [2]
    assert within_bytes(table, 35.0).variance == pytest.approx(8.5)  # what the hull passes over may still use up a budget


def test_a_wider_width_of_as_many_bytes_is_free():
    table = Choices((1, 2, 4), np.array([[10.0, 10.0, 20.0]]), np.array([[9.0, 1.0, 0.1]]))
    assert within_bytes(table, 10.0).index.tolist() == [1]


def test_messages_of_equal_values_stay_narrow():
    table = Choices((2, 4, 8), np.array([[10.0, 20.0, 40.0]] * 2), np.array([[0.0] * 3, [9.0, 1.0, 0.1]]))
    assert within_bytes(table, 80.0).index.tolist() == [0, 2]


def test_many_messages_take_little_time_to_a_bound():
    table = choices(20_000, 1)
    budget = float(table.bytes[:, 2].sum())
    found = within_bytes(table, budget)
    assert found.gap < 1e-4
    assert found.bytes <= budget


def test_budgets_that_cannot_be_met_say_what_can():
    table = choices(10, 0)
    with pytest.raises(MisuseError, match="at the narrowest widths messages take"):
        within_bytes(table, 1.0)
    with pytest.raises(MisuseError, match="at the widest widths it is"):
        within_variance(Choices((2, 4), table.bytes[:, 1:3], table.variance[:, 1:3]), 1e-9)


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="messages, widths"):
        Choices((2, 4), np.zeros((3, 3)), np.zeros((3, 2)))
