"""How long a quantised message is: the closed formula that the codec, the programs and the simulator share.

One message buffer holds one peer's rows of one exchange: a header, then one record a row, in row order. A record is
the row's side information and its codes. docs/wire-format.md describes every byte.
"""

from __future__ import annotations

from collections.abc import Iterable

HEADER_BYTES = 32
CODED_WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""Bits of an integer code."""
WIDTHS = (*CODED_WIDTHS, 16, 32)
"""All widths a row may have on the wire: codes, bfloat16, and float32 as it is."""
DROPPED = 0
"""The width of a message that is not sent. Not one of `WIDTHS`: it has no record, and is refused unless asked for."""
ROTATED_WIDTH_LIMIT = 2
"""Rows at most this wide use the rotated codec where it is asked for."""

BitHistogram = tuple[tuple[int, int], ...]
"""(bits, rows) pairs, ascending bits."""


def variance_factor(bits: int) -> float:
    """Variance over β of a message that wide; bfloat16 is taken for 16 bits of code, and 32 bits are exact."""
    return 0.0 if bits == 32 else 1.0 / (2.0**bits - 1.0) ** 2


def record_bytes(bits: int, dim: int, *, one_sided: bool, rotated: bool = False) -> int:
    """Bytes of one row of `dim` values at `bits`.

    A one-sided row (its minimum is known to be 0) and a row of the rotated codec send a scale and no offset; a dropped row
    sends nothing.
    """
    if bits == DROPPED:
        return 0
    if bits in (16, 32):
        return dim * bits // 8
    side_information = 2 if one_sided or (rotated and bits <= ROTATED_WIDTH_LIMIT) else 4
    return side_information + -(-dim * bits // 8)


def message_bytes(histogram: Iterable[tuple[int, int]], dim: int, *, one_sided: bool, rotated: bool = False) -> int:
    """Bytes of a message with that many rows of each width, header included."""
    records = (rows * record_bytes(bits, dim, one_sided=one_sided, rotated=rotated) for bits, rows in histogram)
    return HEADER_BYTES + sum(records)
