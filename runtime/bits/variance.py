"""The variance that rounding adds to messages: exactly, and by the bounds that widths are assigned by.

The arithmetic is that of the wire format (docs/wire-format.md), written here in NumPy, independently of the codec.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.traces.wire import CODED_WIDTHS, WIDTHS

Rows = npt.NDArray[np.float32]
Widths = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FRACTION_UNITS = 65536
"""Parts of a step that 16 random bits can tell."""
SMALLEST_SCALE_BITS = 0x08000000
"""2^-111 as float32: 65536 divided by it is finite."""
BLOCK_VALUES = 1 << 20
"""Values looked at together: their temporaries take some tens of megabytes."""
BFLOAT16_ROUNDING = 2.0**-8
"""Largest relative error of a value rounded to bfloat16, above the subnormal ones."""
BFLOAT16_SMALLEST_ERROR = 2.0**-134
"""Half a step of the subnormal ones."""


def message_beta(ranges: npt.ArrayLike, dim: int, coefficients: npt.ArrayLike) -> Floats:
    """AdaQP's β of each message, float64 [messages]: coefficient² · dim · range² / 6.

    The variance that a message at b bits adds to what its receiver sums up is about β / (2^b − 1)² (Wan, Zhao and Wu, MLSys
    2023, theorem 1 and section 4).

    Args:
        ranges: [messages], max − min of each row.
        dim: values of a row.
        coefficients: [messages], sum of the coefficients with which the receiver aggregates the row; 1 for gradients.
    """
    return np.asarray(coefficients, np.float64) ** 2 * dim * np.asarray(ranges, np.float64) ** 2 / 6.0


def exact_variance(rows: Rows, widths: Widths, *, one_sided: bool) -> Floats:
    """The summed variance of each row's decoded values, float64 [rows].

    At integer widths (stochastic codec): Σ_j s² f_j (1 − f_j), with s the transmitted scale and f_j the part of a step, in
    65,536ths, by which value j lies above the code below it. At 16 bits, where rounding is not random, the squared error of
    bfloat16; at 32 bits 0.

    Args:
        rows: float32 [rows, dim]; values that the codec can send.
        widths: uint8 [rows], any of `WIDTHS`.
        one_sided: whether the rows are known to have no value below 0 and are sent without an offset.

    Raises:
        MisuseError: rows or widths of another type or shape, or an unknown width.
    """
    _check(rows, widths)
    variance = np.zeros(len(rows))
    block = max(BLOCK_VALUES // max(rows.shape[1], 1), 1)
    for bits in np.unique(widths[widths != 32]):
        alike = np.flatnonzero(widths == bits)
        for begin in range(0, alike.size, block):
            chosen = alike[begin : begin + block]
            part = rows[chosen]
            variance[chosen] = _bfloat16_error(part) if bits == 16 else _rounding_variance(part, int(bits), one_sided)
    return variance


def bound(rows: Rows, widths: Widths, *, one_sided: bool) -> Floats:
    """The least upper bound of `exact_variance` that knows a row's scale only, float64 [rows]: dim · s² / 4.

    At 16 bits the squared error is bounded by (2^-8 |x|)² a value; at 32 bits 0. Raises as `exact_variance`.
    """
    _check(rows, widths)
    limit = np.zeros(len(rows))
    for bits in np.unique(widths[widths != 32]):
        alike = np.flatnonzero(widths == bits)
        if bits == 16:
            magnitude = np.abs(rows[alike].astype(np.float64))
            limit[alike] = (np.maximum(magnitude * BFLOAT16_ROUNDING, BFLOAT16_SMALLEST_ERROR) ** 2).sum(axis=1)
        elif rows.shape[1]:
            _, scale = _grid(rows[alike], int(bits), one_sided)
            limit[alike] = rows.shape[1] * scale.astype(np.float64) ** 2 / 4.0
    return limit


def published_bound(ranges: npt.ArrayLike, widths: Widths, dim: int) -> Floats:
    """AdaQP's theorem 1, float64 [rows]: dim · (range / (2^b − 1))² / 6.

    It is the mean over values that lie anywhere in a step with equal chance, not a bound: `bound` is at most half as much
    again (and the rounding-up of the scale). 0 at 16 and 32 bits, of which it says nothing.

    Args:
        ranges: [rows], max − min of each row.
        widths: uint8 [rows].
        dim: values of a row.
    """
    bits = np.asarray(widths, dtype=np.int64)
    steps = np.where(np.isin(bits, CODED_WIDTHS), 2.0**bits - 1.0, np.inf)
    return dim * (np.asarray(ranges, np.float64) / steps) ** 2 / 6.0


def dropping_variance(
    variance: npt.ArrayLike, energies: npt.ArrayLike, kept: int, dropped: int, coefficients: npt.ArrayLike = 1.0
) -> Floats:
    """The variance of droppable messages that are left out at random and scaled where they are not, float64 [messages].

    A message of energy ‖x‖² that is kept with probability p = kept / (kept + dropped), rounded with variance v and scaled by
    1 / p, arrives as the mean x with variance v / p + (1 / p − 1) · ‖x‖², by the law of total variance (rounding is unbiased
    where the message is kept). With a coefficient, both terms are multiplied by its square.

    The number of messages that a pair leaves out is fixed, so that two of its m = kept + dropped are not independent: what
    arrives of x and y has the covariance −(1 / p − 1) / (m − 1) · x·y, which matters only where few of them are summed up.

    Args:
        variance: [messages], of rounding at the width that the message has where it is kept: `exact_variance`.
        energies: [messages], Σ of the squared values of each row.
        kept: droppable messages of the pair that an epoch keeps.
        dropped: those it leaves out: as many as have width 0.
        coefficients: [messages], sum of the coefficients with which the receiver aggregates the row; 1 for gradients.

    Raises:
        MisuseError: none is kept, or a count is negative.
    """
    if kept < 1 or dropped < 0:
        raise MisuseError(f"variance: {kept} messages kept and {dropped} dropped; at least one must be kept")
    inverse = (kept + dropped) / kept
    rounding, energy = np.asarray(variance, np.float64), np.asarray(energies, np.float64)
    arriving: Floats = np.asarray(coefficients, np.float64) ** 2 * (inverse * rounding + (inverse - 1.0) * energy)
    return arriving


def _check(rows: Rows, widths: Widths) -> None:
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise MisuseError(f"variance: rows are {rows.dtype} {list(rows.shape)}; needed is float32 [rows, dim]")
    if widths.shape != rows.shape[:1]:
        raise MisuseError(f"variance: {widths.size} widths for {len(rows)} rows")
    unknown = np.setdiff1d(widths, WIDTHS)
    if unknown.size:
        raise MisuseError(f"variance: {int(unknown[0])} is not a width; allowed: {', '.join(map(str, WIDTHS))}")


def _rounding_variance(rows: Rows, bits: int, one_sided: bool) -> Floats:
    if not rows.shape[1]:
        return np.zeros(len(rows))
    offset, scale = _grid(rows, bits, one_sided)
    inverse = np.divide(np.float32(FRACTION_UNITS), scale, out=np.zeros_like(scale), where=scale > 0)
    position = np.rint((rows - offset[:, None]) * inverse[:, None]).astype(np.int64)
    above = (position & (FRACTION_UNITS - 1)).astype(np.float64) / FRACTION_UNITS
    above[position >= (2**bits - 1) * FRACTION_UNITS] = 0.0  # the clamp leaves one code to draw
    variance: Floats = scale.astype(np.float64) ** 2 * (above * (1.0 - above)).sum(axis=1)
    return variance


def _grid(rows: Rows, bits: int, one_sided: bool) -> tuple[Rows, Rows]:
    """The transmitted offset and scale of each row, float32 [rows]."""
    offset = np.zeros(len(rows), dtype=np.float32) if one_sided else _bfloat16_down(rows.min(axis=1))
    scale = (rows.max(axis=1) - offset) / np.float32(2**bits - 1)
    raised = np.maximum(scale.view(np.uint32), np.uint32(SMALLEST_SCALE_BITS))
    rounded = ((raised + np.uint32(0x7FFF)) >> np.uint32(15) << np.uint32(15)).view(np.float32)
    return offset, np.where(scale > 0, rounded, np.float32(0))


def _bfloat16_down(values: Rows) -> Rows:
    """Towards −∞; both zeros become +0."""
    bits = values.view(np.uint32)
    below = (bits >> np.uint32(31) != 0) & (bits & np.uint32(0xFFFF) != 0)
    down = ((bits >> np.uint32(16)) + below.astype(np.uint32)) << np.uint32(16)
    return np.where(values == 0, np.float32(0), down.view(np.float32))


def _bfloat16_error(rows: Rows) -> Floats:
    """Squared error of rounding to nearest even, summed over each row."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    tie = bits >> np.uint32(16) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + tie) & np.uint32(0xFFFF0000)).view(np.float32)
    error: Floats = ((rows.astype(np.float64) - rounded.astype(np.float64)) ** 2).sum(axis=1)
    return error
