"""The exact variance against sampled rounding written from the wire format with integers and fractions, and the bounds."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halocast.errors import MisuseError
from halocast.runtime.bits.variance import bound, exact_variance, message_beta, published_bound
from halocast.traces.wire import CODED_WIDTHS, WIDTHS

ONE = np.float32


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def float_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def grid(row: np.ndarray, width: int, one_sided: bool) -> tuple[float, float]:
    """Offset and scale, by search among the values that the two formats have."""
    low = 0.0
    if not one_sided and min(row) != 0.0:
        bits = bits_of(float(min(row)))
        low = min(float_of(bits & 0xFFFF0000), float_of((bits & 0xFFFF0000) + 0x10000), key=lambda x: (x > min(row), -x))
    ideal = float((ONE(max(row)) - ONE(low)) / ONE(2**width - 1))
    if ideal == 0.0:
        return low, 0.0
    scale = float_of(bits_of(ideal) >> 15 << 15)
    if scale < ideal:
        scale = float_of((bits_of(ideal) >> 15) + 1 << 15)
    return low, max(scale, 2.0**-111)


def variance_by_fractions(row: np.ndarray, width: int, one_sided: bool) -> float:
    """Mean and mean square of the decoded value over all 65,536 random numbers, in exact arithmetic."""
    low, scale = grid(row, width, one_sided)
    if scale == 0.0:
        return 0.0
    inverse = ONE(65536) / ONE(scale)
    total = Fraction(0)
    for value in row:
        position = int(np.rint((ONE(value) - ONE(low)) * inverse))
        below, part = divmod(position, 65536)
        up = Fraction(part, 65536) if below < 2**width - 1 else Fraction(0)
        total += up * (1 - up)
    return float(total * Fraction(scale) ** 2)


finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32)


@given(st.lists(finite, min_size=1, max_size=12), st.sampled_from(CODED_WIDTHS), st.booleans())
@settings(max_examples=300, deadline=None)
def test_it_is_the_variance_in_exact_arithmetic(values: list[float], width: int, one_sided: bool) -> None:
    row = np.array([abs(value) for value in values] if one_sided else values, dtype=np.float32)
    reached = exact_variance(row[None], np.array([width], np.uint8), one_sided=one_sided)
    assert reached[0] == pytest.approx(variance_by_fractions(row, width, one_sided), rel=1e-12, abs=0.0)


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("width", CODED_WIDTHS)
def test_sampled_rounding_has_this_variance(width: int, one_sided: bool) -> None:
    rng = np.random.default_rng(width)
    row = rng.normal(size=40).astype(np.float32)
    row = np.maximum(row, 0) if one_sided else row
    low, scale = grid(row, width, one_sided)
    position = np.rint((row - ONE(low)) * (ONE(65536) / ONE(scale))).astype(np.int64)
    samples = 40_000
    codes = np.minimum(position + rng.integers(0, 65536, (samples, 40)) >> 16, 2**width - 1)
    decoded = low + scale * codes.astype(np.float64)
    squares = ((decoded - row) ** 2).sum(axis=1)
    exact = exact_variance(row[None], np.array([width], np.uint8), one_sided=one_sided)[0]
    # The mean is within 2^-17 of a step of the value, so the mean squared error is the variance.
    assert abs(squares.mean() - exact) < 5 * squares.std() / np.sqrt(samples) + 40 * (scale / 2**16) ** 2
    np.testing.assert_allclose(decoded.mean(axis=0), row, atol=5 * scale * 0.5 / np.sqrt(samples) + scale / 2**16)


def test_rows_of_different_widths_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 17)).astype(np.float32)
    widths = rng.choice(WIDTHS, 50).astype(np.uint8)
    whole = exact_variance(rows, widths, one_sided=False)
    alone = [exact_variance(rows[i : i + 1], widths[i : i + 1], one_sided=False)[0] for i in range(50)]
    np.testing.assert_array_equal(whole, alone)
    assert (whole[widths == 32] == 0).all()


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32)
    widths = np.full(50, 4, np.uint8)
    whole = exact_variance(rows, widths, one_sided=False)
    monkeypatch.setattr("halocast.runtime.bits.variance.BLOCK_VALUES", 40)
    np.testing.assert_array_equal(exact_variance(rows, widths, one_sided=False), whole)


def test_sixteen_bits_have_the_squared_error_of_bfloat16() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    rounded = torch.from_numpy(rows).to(torch.bfloat16).to(torch.float64).numpy()
    expected = ((rows.astype(np.float64) - rounded) ** 2).sum(axis=1)
    np.testing.assert_allclose(exact_variance(rows, np.full(20, 16, np.uint8), one_sided=False), expected, rtol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_on_the_grid_have_none(width: int) -> None:
    rows = np.array([[0, 0, 0], [3, 3, 3], [0, 2.0**width - 1, 1]], dtype=np.float32)
    if width >= 16:
        rows[2] = [0, 64, 1]
    for one_sided in (True, False):
        skipped = 1 if one_sided and width < 16 else None  # 3 alone is no multiple of the one-sided scale's rounding
        reached = np.delete(exact_variance(rows, np.full(3, width, np.uint8), one_sided=one_sided), skipped or [])
        assert (reached == 0).all()


@pytest.mark.parametrize("dim", [0, 1])
def test_few_values(dim: int) -> None:
    rows = np.full((4, dim), 0.3, dtype=np.float32)
    for width in WIDTHS:
        widths = np.full(4, width, np.uint8)
        exact = exact_variance(rows, widths, one_sided=False)
        assert (exact <= bound(rows, widths, one_sided=False)).all()
    assert exact_variance(rows[:0], np.zeros(0, np.uint8), one_sided=True).tolist() == []


@given(st.lists(finite, min_size=1, max_size=12), st.sampled_from(WIDTHS), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_bound_holds(values: list[float], width: int, one_sided: bool) -> None:
    rows = np.array([[abs(value) for value in values] if one_sided else values], dtype=np.float32)
    widths = np.array([width], np.uint8)
    exact = exact_variance(rows, widths, one_sided=one_sided)[0]
    assert exact <= bound(rows, widths, one_sided=one_sided)[0] * (1 + 1e-12)


def test_the_bound_is_reached_where_all_values_lie_in_the_middle_of_a_step() -> None:
    rows = np.array([[0.0, 3.0, *[0.5] * 98]], dtype=np.float32)
    widths = np.array([2], np.uint8)
    assert exact_variance(rows, widths, one_sided=True)[0] == pytest.approx(98 / 4)
    assert bound(rows, widths, one_sided=True)[0] == pytest.approx(100 / 4)


def test_the_published_formula_is_the_mean_over_values_anywhere_in_a_step() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 1, (200, 256)).astype(np.float32)
    ranges = rows.max(axis=1) - rows.min(axis=1)
    for width in (2, 4, 8):
        widths = np.full(200, width, np.uint8)
        exact = exact_variance(rows, widths, one_sided=False).mean()
        assert published_bound(ranges, widths, 256).mean() == pytest.approx(exact, rel=0.05)
    assert published_bound(ranges, np.full(200, 16, np.uint8), 256).tolist() == [0.0] * 200


def test_beta_and_the_published_formula_agree() -> None:
    ranges, coefficients = np.array([1.0, 3.0]), np.array([2.0, 0.5])
    np.testing.assert_allclose(message_beta(ranges, 12, coefficients), [8.0, 4.5])
    np.testing.assert_allclose(
        message_beta(ranges, 12, 1.0) / 15**2, published_bound(ranges, np.array([4, 4], np.uint8), 12), rtol=1e-14
    )


def test_what_has_no_variance() -> None:
    rows = np.zeros((2, 3), dtype=np.float32)
    for arguments, expected in (
        ((rows.astype(np.float64), np.full(2, 2, np.uint8)), "float64"),
        ((rows[0], np.full(2, 2, np.uint8)), r"float32 \[3\]"),
        ((rows, np.full(3, 2, np.uint8)), "3 widths for 2 rows"),
        ((rows, np.full(2, 7, np.uint8)), "7 is not a width"),
    ):
        for function in (exact_variance, bound):
            with pytest.raises(MisuseError, match=expected):
                function(*arguments, one_sided=True)
