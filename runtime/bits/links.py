"""What sending costs: a line through measured (bytes, seconds) for each pair of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from halocast.errors import MisuseError

Link = tuple[int, int]
"""(sender, receiver)."""
Sample = tuple[float, float]
"""(bytes of a message, seconds it took)."""


@dataclass(frozen=True)
class LinkCost:
    """Seconds of one message: `seconds_per_byte` · bytes + `seconds` (θ and γ of AdaQP, equation 9)."""

    seconds_per_byte: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seconds_per_byte", "seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise MisuseError(f"link cost: {name} is {value}; needed is a finite number of at least 0")

    def time(self, size: float) -> float:
        """Seconds of a message of `size` bytes."""
        return self.seconds_per_byte * size + self.seconds


DEFAULT_COST = LinkCost(seconds_per_byte=8e-9, seconds=1e-4)
"""Where nothing was measured at all: a link of 1 Gbit/s with a tenth of a millisecond of latency."""


def fit_link_costs(samples: Mapping[Link, Sequence[Sample]]) -> dict[Link, LinkCost]:
    """Fit a line to each link's samples: least squares, with neither slope nor intercept below 0.

    Samples that are not finite, have no bytes or take no time are left out. What a link's own samples cannot tell is
    taken from the line through the samples of all links:

    * no sample: that line whole (`DEFAULT_COST` where no link has any);
    * samples of a single size: its intercept, and the slope that then meets their mean.

    Args:
        samples: (bytes, seconds) of messages, by (sender, receiver). A link may have none.

    Returns:
        One cost for each link named; the order of samples and links does not matter.
    """
    usable = {link: _usable(each) for link, each in samples.items()}
    pool = np.concatenate([*usable.values(), np.zeros((0, 2))])
    if not len(pool):
        return dict.fromkeys(samples, DEFAULT_COST)
    pooled = _fit(pool, intercept=0.0)  # with no line to go by, all of the time is put down to the bytes
    return {link: _fit(each, pooled.seconds) if len(each) else pooled for link, each in usable.items()}


def _usable(samples: Iterable[Sample]) -> npt.NDArray[np.float64]:
    table = np.array(list(samples), dtype=np.float64).reshape(-1, 2)
    return table[np.isfinite(table).all(axis=1) & (table > 0.0).all(axis=1)]


def _fit(table: npt.NDArray[np.float64], intercept: float) -> LinkCost:
    """The line through [samples, 2] of bytes and seconds; `intercept` where they have one size only."""
    size, seconds = table[np.lexsort(table.T)].T  # in one order, so that sums round in one way
    if np.ptp(size) == 0.0:
        mean = float(seconds.mean())
        intercept = min(intercept, mean)
        return LinkCost((mean - intercept) / float(size[0]), intercept)
    largest, slowest = size.max(), seconds.max()  # columns of like magnitude: a byte takes 1e-9 s
    columns = np.stack([size / largest, np.ones_like(size)], axis=1)
    (slope, constant), _ = nnls(columns, seconds / slowest)
    return LinkCost(float(slope * slowest / largest), float(constant * slowest))
