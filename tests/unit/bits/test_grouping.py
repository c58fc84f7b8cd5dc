"""Groups hold every message once, by falling β; widths find their way back to the messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halocast.errors import MisuseError
from halocast.runtime.bits.adaptive import default_group_size, group_messages, spread

betas = st.lists(st.sampled_from([0.0, 1.0, 2.5, 1e-300, 1e300]) | st.floats(0, 1e12), max_size=60)


@given(betas, st.integers(1, 70))
def test_groups_hold_every_message_once_by_falling_beta(values: list[float], size: int) -> None:
    groups = group_messages(np.array(values), size)
    assert sorted(groups.order.tolist()) == list(range(len(values)))
    ordered = [values[index] for index in groups.order]
    assert ordered == sorted(values, reverse=True)
    assert all(rows == size for rows in groups.rows[:-1])
    assert all(1 <= rows <= size for rows in groups.rows[-1:])
    assert groups.rows.sum() == len(values)
    parts = [ordered[start : start + size] for start in range(0, len(values), size)]
    np.testing.assert_allclose(groups.variance, [np.sum(part) for part in parts], rtol=1e-12)


def test_equal_betas_keep_their_order() -> None:
    assert group_messages(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 2).order.tolist() == [1, 3, 0, 2, 4]


@given(betas, st.integers(1, 70))
def test_each_message_gets_the_width_of_its_group(values: list[float], size: int) -> None:
    groups = group_messages(np.array(values), size)
    chosen = np.arange(1, len(groups.rows) + 1, dtype=np.uint8)
    widths = spread(chosen, groups)
    assert widths.dtype == np.uint8
    assert [widths[index] for index in groups.order] == [1 + position // size for position in range(len(values))]


def test_no_messages_no_groups() -> None:
    groups = group_messages(np.zeros(0), 100)
    assert (groups.rows.tolist(), groups.variance.tolist(), groups.boundaries.tolist()) == ([], [], [0])
    assert spread(np.zeros(0, dtype=np.uint8), groups).tolist() == []


@pytest.mark.parametrize(
    ("messages", "size"),
    [(0, 100), (1, 100), (100_000, 100), (101_000, 101), (654_321, 654), (2_000_000, 2000), (10**9, 2000)],
)
def test_default_group_size_grows_with_the_messages(messages: int, size: int) -> None:
    assert default_group_size(messages) == size


@pytest.mark.parametrize(
    ("beta", "size", "expected"),
    [([1.0], 0, "group size 0"), ([0.0, -1.0], 5, "message 1 is -1"), ([np.nan], 5, "nan"), ([np.inf], 5, "inf")],
)
def test_what_cannot_be_grouped(beta: list[float], size: int, expected: str) -> None:
    with pytest.raises(MisuseError, match=expected):
        group_messages(np.array(beta), size)


def test_widths_must_fit_the_groups() -> None:
    with pytest.raises(MisuseError, match="2 widths for 1 groups"):
        spread(np.array([2, 4]), group_messages(np.ones(3), 5))
