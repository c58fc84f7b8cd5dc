"""What may stand behind a key of a grid: one value, a list, or a range; and amounts of time and memory in words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from halocast.errors import MisuseError, nearest

Number = int | float
LARGEST = 2**31 - 1
"""The largest whole number that the table holds."""
RANGE = re.compile(r"^\s*x?([^\s.]+(?:\.\d+)?)\s*\.\.\s*x?(\S+?)(?:\s+([x+])\s*(\S+))?\s*$")
AMOUNT = r"^\s*(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*"
TIME = re.compile(AMOUNT + r"(ms|s|sec|min|h|d|)\s*$")
SIZE = re.compile(AMOUNT + r"(B|kB|MB|GB|TB|)\s*$")
SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
RANGE_KEYS = ("from", "to", "step", "factor")


@dataclass(frozen=True)
class Steps(Sequence[Number]):
    """`length` numbers, each `step` more than the last: a range that is never written out."""

    start: Number
    step: Number
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(self.length)))
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return self.start + self.step * (index % self.length)


Read = Callable[[object], Any]


def read_values(value: object, read: Read, where: str, *, number: Read | None) -> Sequence[Any]:
    """All values that `value` stands for, each as `read` makes it out; where the key is a `number` it may be a range.

    Raises MisuseError, beginning with `where`, for an empty list, a range that goes nowhere, and what `read` refuses.
    """
    if isinstance(value, list):
        if not value:
            raise MisuseError(f"{where} = []: an empty list leaves no scenario; give a value, or leave the key out")
        return tuple(dict.fromkeys(read(each) for each in value))
    limits = _range_of(value, where)
    if limits is None:
        return (read(value),)
    if number is None:
        raise MisuseError(f"{where} = {value!r}: names have no range; write a list")
    first, last, kind, step = limits
    return _steps(number(first), number(last), kind, step, where)


def _range_of(value: object, where: str) -> tuple[object, object, str, Number | None] | None:
    """(first, last, "x" or "+", step) of what is written as a range."""
    if isinstance(value, dict):
        return _range_of_table(value, where)
    match = RANGE.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    first, last, kind, step = match.groups()
    return first, last, kind or "+", None if step is None else _number(step, where)


def _range_of_table(value: dict[str, object], where: str) -> tuple[object, object, str, Number | None]:
    for key in value:
        if key not in RANGE_KEYS:
            raise MisuseError(f"{where}: unknown key '{key}' of a range{nearest(key, RANGE_KEYS)}")
    if missing := [key for key in ("from", "to") if key not in value]:
        raise MisuseError(f"{where}: a range needs '{missing[0]}'")
    if "step" in value and "factor" in value:
        raise MisuseError(f"{where}: a range has a step or a factor, not both")
    if "factor" in value:
        return value["from"], value["to"], "x", _number(value["factor"], where)
    return value["from"], value["to"], "+", _number(value["step"], where) if "step" in value else None


def _steps(first: Number, last: Number, kind: str, step: Number | None, where: str) -> Sequence[Number]:
    step = 1 if step is None else step
    least, allowed = (1, "a factor above 1") if kind == "x" else (0, "a step above 0")
    if last < first:
        raise MisuseError(f"{where}: the range goes down from {first:g} to {last:g}; write it upwards, or as a list")
    if not least < step < math.inf:
        raise MisuseError(f"{where}: a range by {kind}{step:g} never ends; allowed: {allowed}")
    if kind == "+":
        count = int((last - first) / step * (1 + 1e-12)) + 1
        return Steps(first, _whole_step(step, where) if isinstance(first, int) and count > 1 else step, count)
    if first <= 0:
        raise MisuseError(f"{where}: a range by a factor cannot begin with {first:g}")
    count = int(math.log(last / first) / math.log(step) * (1 + 1e-12)) + 1
    if isinstance(first, int):
        return tuple(_whole_growth(first, step, count, where))
    return tuple(first * step**power for power in range(count))


def _whole_step(step: Number, where: str) -> int:
    if isinstance(step, float) and not step.is_integer():
        raise MisuseError(f"{where}: a range by +{step:g} leaves the whole numbers; allowed: a whole step, or a list")
    return int(step)


def _whole_growth(first: int, factor: Number, count: int, where: str) -> Iterator[int]:
    exact = Fraction(str(factor))
    for power in range(count):
        value = first * exact**power
        if value.denominator != 1:
            raise MisuseError(f"{where}: a range by x{factor} leaves the whole numbers at {float(value):.9g}; write a list")
        yield int(value)


def _number(value: object, where: str) -> Number:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise MisuseError(f"{where}: '{value}' is no number") from error


def whole(where: str, least: int) -> Callable[[object], int]:
    """Reads whole numbers from `least` on."""

    def read(value: object) -> int:
        number = _number(value, where)
        if not least <= number <= LARGEST or not float(number).is_integer():
            raise MisuseError(f"{where} = {value}: allowed are whole numbers from {least} on")
        return int(number)

    return read


def real(where: str, least: float) -> Callable[[object], float]:
    """Reads numbers from `least` on."""

    def read(value: object) -> float:
        number = float(_number(value, where))
        if not least <= number < math.inf:
            raise MisuseError(f"{where} = {value}: allowed are numbers from {least:g} on")
        return number

    return read


def factor(where: str) -> Callable[[object], float]:
    """Reads how many times as much: ``x10``, or 10."""

    def read(value: object) -> float:
        text = value.strip().removeprefix("x") if isinstance(value, str) else value
        number = float(_number(text, where))
        if not 1.0 <= number < math.inf:
            raise MisuseError(f"{where} = {value}: allowed are factors from x1 on")
        return number

    return read


def read_seconds(value: object, where: str) -> float:
    """``90min``, ``2h``; a bare number is seconds. Raises MisuseError."""
    return _amount(value, where, TIME, SECONDS, "a time such as 90min, 2h or 3600 (seconds)")


def read_bytes(value: object, where: str) -> int:
    """``80GB``; a bare number is bytes. Raises MisuseError."""
    return int(_amount(value, where, SIZE, BYTES, "a size such as 80GB or 80000000000 (bytes)"))


def _amount(value: object, where: str, pattern: re.Pattern[str], units: dict[str, Any], allowed: str) -> float:
    match = pattern.match(str(value))
    number = 0.0 if isinstance(value, bool) or match is None else float(match[1]) * float(units[match[2]])
    if not 0.0 < number < math.inf:
        raise MisuseError(f"{where} = {value!r}: allowed is {allowed}")
    return number
