"""Which width every message gets: widened where that lowers the variance most per byte, at one price for all of them.

A message's widths are points (bytes, variance). On their lower convex hull each step to a wider one, an *upgrade*, is worth
less a byte than the one before it, so that all upgrades worth more than a price are the best there is at that price, whatever
exchange they are in: water-filling, and the linear relaxation of a multiple-choice knapsack (P. Sinha and A. Zoltners,
Operations Research 27, 1979). A budget is met by the price at which it is used up. What the last upgrade
leaves of it is used by trying the messages whose upgrades are closest to that price in all combinations that could still win
(D. Pisinger, European Journal of Operational Research 83, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 1 << 16
"""Prices are sorted into so many bins first; only the one in which the budget ends is sorted for good."""
CLOSE_ENOUGH = 1e-4
"""Of the variance: a gap to the bound that is not worth another combination."""
MOST_STATES = 200_000
"""Combinations kept at once."""


@dataclass(frozen=True)
class Choices:
    """What messages may be sent at; a row is a message, or several that are treated alike."""

    widths: tuple[int, ...]
    """Bits, ascending."""
    bytes: Floats
    """[messages, widths] on the wire."""
    variance: Floats
    """[messages, widths] what rounding adds to the gradient's variance, weighted."""

    def __post_init__(self) -> None:
        shape = (self.bytes.shape[0], len(self.widths))
        if self.bytes.shape != shape or self.variance.shape != shape:
            raise ValueError(f"bytes {self.bytes.shape} and variance {self.variance.shape} for {shape}: [messages, widths]")

    @cached_property
    def upgrades(self) -> Upgrades:
        """Steps along every message's hull."""
        return _upgrades(self)

    def total(self, picked: Ints) -> tuple[float, float]:
        """(bytes, variance) of an index into `widths` for each message."""
        each = np.arange(len(picked))
        return float(self.bytes[each, picked].sum()), float(self.variance[each, picked].sum())


@dataclass(frozen=True)
class Upgrades:
    """Steps along hulls, message after message, each one's in the order in which they are taken."""

    message: Ints
    """[upgrades]"""
    to: Ints
    """[upgrades] index of the wider width."""
    bytes: Floats
    """[upgrades] more."""
    gain: Floats
    """[upgrades] less variance."""
    price: Floats
    """[upgrades] gain a byte; not ascending along a message."""
    start: Ints
    """[messages] index of the width with the fewest bytes."""


@dataclass(frozen=True)
class Picked:
    """A width for each message."""

    index: Ints
    """[messages] into `Choices.widths`."""
    bytes: float
    variance: float
    price: float
    """Variance that the next byte would take away."""
    bound: float
    """No widths within the budget have less variance."""

    @property
    def gap(self) -> float:
        """(variance − bound) / variance: how far from the optimum it may be; 0 for a variance of 0."""
        return max(0.0, (self.variance - self.bound) / self.variance) if self.variance > 0.0 else 0.0


def _upgrades(choices: Choices) -> Upgrades:
    more, gain = np.diff(choices.bytes, axis=1), -np.diff(choices.variance, axis=1)
    price = np.divide(gain, more, out=np.zeros_like(gain), where=more > 0.0)
    is_convex: npt.NDArray[np.bool_] = np.logical_and.reduce(
        [(np.diff(price, axis=1) <= 0.0).all(axis=1), (more > 0.0).all(axis=1), (gain >= 0.0).all(axis=1)]
    )
    messages, steps = price.shape
    kept = (gain > 0.0) & is_convex[:, None]
    message, column = np.divmod(np.flatnonzero(kept.ravel()), max(steps, 1))
    start = np.zeros(messages, dtype=np.int64)
    others: list[tuple[int, int, float, float]] = []
    for row in np.flatnonzero(~is_convex).tolist():  # few values: whole bytes, and side information that 16 bits do without
        hull = convex_hull(choices.bytes[row], choices.variance[row])
        start[row] = hull[0]
        size, variance = choices.bytes[row, hull], choices.variance[row, hull]
        others += zip([row] * len(hull), hull[1:], np.diff(size).tolist(), (-np.diff(variance)).tolist(), strict=False)
    rows, to, extra, less = (np.array(each) for each in zip(*others, strict=True)) if others else (np.zeros(0),) * 4
    message = np.concatenate([message, rows]).astype(np.int64)
    order = np.argsort(message, kind="stable")
    more, gain = np.concatenate([more[kept], extra])[order], np.concatenate([gain[kept], less])[order]
    return Upgrades(message[order], np.concatenate([column + 1, to])[order].astype(np.int64), more, gain, gain / more, start)


def convex_hull(size: Floats, variance: Floats) -> list[int]:
    """Indices of the lower convex hull, from the smallest on, as far as it falls; of points of one size the lowest."""
    hull: list[int] = []
    for each in np.lexsort((variance, size)).tolist():
        if hull and variance[each] >= variance[hull[-1]]:
            continue
        while len(hull) > 1:
            last, before = hull[-1], hull[-2]
            steep = (variance[before] - variance[last]) * (size[each] - size[last])
            if steep > (variance[last] - variance[each]) * (size[last] - size[before]):
                break
            hull.pop()
        hull.append(each)
    return hull


def at_price(choices: Choices, price: float) -> Picked:
    """Every upgrade that takes away at least `price` of variance a byte."""
    upgrades = choices.upgrades
    taken = upgrades.price >= price
    index = _after(choices, taken)
    size, variance = choices.total(index)
    return Picked(index, size, variance, price, variance)


def within_bytes(choices: Choices, budget: float) -> Picked:
    """Least variance in `budget` bytes. Raises MisuseError for a budget below that of the narrowest widths."""
    upgrades = choices.upgrades
    least, _ = choices.total(upgrades.start)
    if budget < least:
        raise MisuseError(f"{budget:.0f} bytes are too few: at the narrowest widths messages take {least:.0f}")
    order, taken, price = _used_up(upgrades, budget - least)
    index = _after(choices, taken)
    size, variance = choices.total(index)
    bound = variance - price * (budget - size)
    greedy = Picked(index, size, variance, price, bound)
    if price == 0.0 or greedy.gap <= CLOSE_ENOUGH:
        return greedy
    return _combine(choices, greedy, budget, order)


def within_variance(choices: Choices, budget: float) -> Picked:
    """Fewest bytes, to an upgrade, with at most `budget` variance. Raises MisuseError for less than the widest widths have."""
    upgrades = choices.upgrades
    least, most = float(choices.variance.min(axis=1).sum()), choices.total(upgrades.start)[1]
    if budget < least * (1.0 - 1e-12):
        raise MisuseError(f"a variance of {budget:.3g} cannot be met: at the widest widths it is {least:.3g}")
    order = np.argsort(-upgrades.price, kind="stable")
    needed = int(np.searchsorted(np.cumsum(upgrades.gain[order]), (most - budget) * (1.0 - 1e-12)))
    count = 0 if budget >= most else min(needed + 1, len(order))
    taken = np.zeros(len(order), dtype=bool)
    taken[order[:count]] = True
    index = _after(choices, taken)
    size, variance = choices.total(index)
    price = float(upgrades.price[order[count - 1]]) if count else float(upgrades.price.max(initial=0.0))
    return Picked(index, size, variance, price, variance)


def _after(choices: Choices, taken: npt.NDArray[np.bool_]) -> Ints:
    """[messages] the width that the last upgrade taken leads to; a message's are taken from its first on."""
    upgrades = choices.upgrades
    messages = len(upgrades.start)
    first = np.searchsorted(upgrades.message, np.arange(messages))
    count = np.bincount(upgrades.message[taken], minlength=messages)
    index = upgrades.start.copy()
    index[count > 0] = upgrades.to[(first + count - 1)[count > 0]]
    return index


def _used_up(upgrades: Upgrades, budget: float) -> tuple[Ints, npt.NDArray[np.bool_], float]:
    """(upgrades by how close they are to the price, which of them fit in order of price, the price of the first that does not).

    The second is in the upgrades' own order.
    """
    price = upgrades.price
    if not len(price) or float(upgrades.bytes.sum()) <= budget:
        return np.zeros(0, dtype=np.int64), np.ones(len(price), dtype=bool), 0.0
    logs = np.log(np.maximum(price, np.finfo(np.float64).tiny))
    low, high = float(logs.min()), float(logs.max())
    bins = np.minimum(((high - logs) * (BINS / max(high - low, 1e-300))).astype(np.int64), BINS - 1)  # the dearest first
    used = np.cumsum(np.bincount(bins, weights=upgrades.bytes, minlength=BINS))
    last = int(np.searchsorted(used, budget, side="right"))
    taken = bins < last
    inside = np.flatnonzero(bins == last)
    inside = inside[np.argsort(-price[inside], kind="stable")]
    left = budget - (float(used[last - 1]) if last else 0.0)
    fitting = int(np.searchsorted(np.cumsum(upgrades.bytes[inside]), left, side="right"))
    taken[inside[:fitting]] = True
    first_left_out = float(price[inside[fitting]]) if fitting < len(inside) else float(price[~taken].max())
    distance = np.abs(logs - np.log(max(first_left_out, np.finfo(np.float64).tiny)))
    near = np.argpartition(distance, min(len(distance) - 1, 4 * _CORE))[: 4 * _CORE]
    return near[np.argsort(distance[near], kind="stable")], taken, first_left_out


_CORE = 256
"""Messages that are tried in combinations, at most."""


def _combine(choices: Choices, greedy: Picked, budget: float, near: Ints) -> Picked:
    """Try other widths of the messages whose upgrades are closest to the price, and keep what could still be better.

    At the price, no other widths of the messages left have less variance + price × bytes than those picked: a combination
    is out when even so it cannot be better than the best one found.
    """
    core = list(dict.fromkeys(choices.upgrades.message[near].tolist()))[:_CORE]
    size, variance = np.array([greedy.bytes]), np.array([greedy.variance])
    best, best_bytes = greedy.variance, greedy.bytes
    trace: list[tuple[Ints, Ints]] = []  # by message: (state before, width)
    best_state = (0, 0)
    for depth, message in enumerate(core, 1):
        now = int(greedy.index[message])
        steps_bytes = choices.bytes[message] - choices.bytes[message, now]
        steps_variance = choices.variance[message] - choices.variance[message, now]
        all_bytes = (size[:, None] + steps_bytes[None, :]).ravel()
        all_variance = (variance[:, None] + steps_variance[None, :]).ravel()
        fits = all_bytes <= budget
        if fits.any():
            least = int(np.argmin(np.where(fits, all_variance, np.inf)))
            if all_variance[least] < best * (1.0 - 1e-15):
                best, best_bytes, best_state = float(all_variance[least]), float(all_bytes[least]), (depth, least)
        hopeful = np.flatnonzero(all_variance + greedy.price * (all_bytes - budget) < best * (1.0 - CLOSE_ENOUGH / 10.0))
        hopeful = hopeful[np.lexsort((all_variance[hopeful], all_bytes[hopeful]))]
        falling = all_variance[hopeful]
        undominated = hopeful[falling < np.concatenate([[np.inf], np.minimum.accumulate(falling)[:-1]])]
        if best_state[0] == depth and best_state[1] not in undominated:
            undominated = np.append(undominated, best_state[1])
        if len(undominated) > MOST_STATES:
            undominated = undominated[
                np.argsort(all_variance[undominated] + greedy.price * all_bytes[undominated])[:MOST_STATES]
            ]
        before, width = np.divmod(undominated, len(choices.widths))
        trace.append((before, width))
        if best_state[0] == depth:
            best_state = (depth, int(np.flatnonzero(undominated == best_state[1])[0]))
        size, variance = all_bytes[undominated], all_variance[undominated]
        if not len(undominated) or (best - greedy.bound) <= CLOSE_ENOUGH * best:
            break
    index = greedy.index.copy()
    depth, state = best_state
    for place in range(depth - 1, -1, -1):
        before, width = trace[place]
        index[core[place]] = width[state]
        state = int(before[state])
    return Picked(index, best_bytes, best, greedy.price, greedy.bound)
