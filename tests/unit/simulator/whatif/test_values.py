"""What stands behind a key of a grid."""

from __future__ import annotations

import pytest

from halocast.errors import MisuseError
from halocast.simulator.whatif.values import factor, read_bytes, read_seconds, read_values, real, whole

COUNT = whole("ranks", 1)


def counts(value: object) -> list[int]:
    return list(read_values(value, COUNT, "ranks", number=COUNT))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4, [4]),
        ("4", [4]),
        ([8, 2, 8, "4"], [8, 2, 4]),
        ("1..64 x2", [1, 2, 4, 8, 16, 32, 64]),
        ("1..100 x3", [1, 3, 9, 27, 81]),
        ("4..9 x1.5", [4, 6, 9]),
        ("10..11 x1.1", [10, 11]),  # exactly, though 10 * 1.1 is not in binary
        ("2..9 +2.0", [2, 4, 6, 8]),
        ("64..512 +64", [64, 128, 192, 256, 320, 384, 448, 512]),
        ("2..5", [2, 3, 4, 5]),
        ("7..7", [7]),
        ({"from": 1, "to": 9, "step": 4}, [1, 5, 9]),
        ({"from": 1, "to": 1000, "factor": 10}, [1, 10, 100, 1000]),
        ({"from": 3, "to": 4}, [3, 4]),
    ],
)
def test_values_lists_and_ranges(written: object, meant: list[int]) -> None:
    assert counts(written) == meant


def test_a_long_range_is_counted_without_being_written_out() -> None:
    values = read_values("1..1000000000", COUNT, "ranks", number=COUNT)
    assert len(values) == 1_000_000_000
    assert (values[0], values[123_456_789], values[-1]) == (1, 123_456_790, 1_000_000_000)


def test_fractions_have_ranges_too() -> None:
    read = real("oversubscription", 1.0)
    assert list(read_values("1..2 +0.25", read, "oversubscription", number=read)) == pytest.approx([1, 1.25, 1.5, 1.75, 2])
    times = factor("growth")
    assert list(read_values(["x1", "x2.5", 10], times, "growth", number=times)) == [1.0, 2.5, 10.0]
    assert list(read_values("x1..x100 x10", times, "growth", number=times)) == [1.0, 10.0, 100.0]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([], "an empty list leaves no scenario"),
        (0, "ranks = 0: allowed are whole numbers from 1 on"),
        (-4, "ranks = -4: allowed are whole numbers from 1 on"),
        ("-8..-2", "ranks = -8: allowed are whole numbers from 1 on"),
        ("8..2", "goes down from 8 to 2"),
        ("1..8 x1", "never ends; allowed: a factor above 1"),
        ("1..8 +0", "never ends; allowed: a step above 0"),
        ("1..8 x", "'1..8 x' is no number"),
        ("1..3 +0.5", "a range by +0.5 leaves the whole numbers; allowed: a whole step, or a list"),
        ({"from": 1, "to": 3, "step": 1.5}, "a range by +1.5 leaves the whole numbers"),
        ("2..9 x1.5", "a range by x1.5 leaves the whole numbers at 4.5; write a list"),
        ("1..1000000000 x1.0000001", "a range by x1.0000001 leaves the whole numbers at 1.0000001"),
        ("1..8 +inf", "never ends; allowed: a step above 0"),
        (10**400, "allowed are whole numbers from 1 on"),
        (2.5, "ranks = 2.5"),
        (True, "'True' is no number"),
        ("many", "'many' is no number"),
        ("1..2147483648", "allowed are whole numbers"),
        ({"from": 1, "too": 8}, "unknown key 'too' of a range; did you mean 'to'?"),
        ({"from": 1}, "a range needs 'to'"),
        ({"from": 1, "to": 8, "step": 1, "factor": 2}, "a step or a factor, not both"),
    ],
)
def test_misuse(written: object, message: str) -> None:
    with pytest.raises(MisuseError, match=r"^ranks") as caught:
        counts(written)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90min", 5400.0), ("2h", 7200.0), (" 1.5 h ", 5400.0), ("30s", 30.0), (45, 45.0), ("2d", 172_800.0)],
)
def test_times(written: object, seconds: float) -> None:
    assert read_seconds(written, "deadline") == seconds


@pytest.mark.parametrize(("written", "size"), [("80GB", 80_000_000_000), ("1.5kB", 1500), (4096, 4096), (8e10, 80_000_000_000)])
def test_sizes(written: object, size: int) -> None:
    assert read_bytes(written, "memory") == size


@pytest.mark.parametrize("written", ["soon", "5 years", "-3h", 0, True, "1.2.3h", float("inf"), [1]])
def test_no_time(written: object) -> None:
    with pytest.raises(MisuseError, match="allowed is a time such as 90min"):
        read_seconds(written, "deadline")
