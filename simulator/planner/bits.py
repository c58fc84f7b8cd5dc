"""Widths of all messages against epoch time: at one price over layers, directions, pairs and messages.

Rounding a message to b bits adds β / (2^b - 1)² of variance, and the weights' gradient notices it in the measure of its
exchange's *effect*. An exchange takes as long as the busiest resource of the network that its bytes cross (a port, a trunk),
and only what exceeds its window, the work that goes on meanwhile, lasts. So for each exchange and each time that it might
take there is a least variance; its multipliers are prices of a byte between any two ranks (next to nothing where nothing is
full: those bytes are free). Which time each exchange gets is then the same question again, seconds for bytes, and has the same
answer: every step that takes away more variance a second than the price. All prices together make a path from the fastest
widths to the widest; the simulator says what epoch each of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.simulator.planner.timing import ExchangeKey, WireTimes, exposed
from halocast.simulator.planner.widths import Choices, at_price, convex_hull, within_bytes
from halocast.traces.operations import Direction
from halocast.traces.wire import HEADER_BYTES, WIDTHS, record_bytes, variance_factor
from halocast.traces.workload import BitAssignment, ExchangeBits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Widths = npt.NDArray[np.uint8]

BINS = 48
"""Messages of a pair are told apart by β as finely as this while prices are sought."""
TIMES = 24
"""Durations that are tried for each exchange."""
ROUNDS = 60
"""Of adjusting a duration's prices."""
LEAST_SHARE = 1e-6
"""Of the highest price: what a byte costs at least where nothing is full, so that widening stops when something is."""


@dataclass(frozen=True, eq=False)
class Messages:
    """One exchange's, over all ranks, in the order of their senders' wire buffers."""

    layer: int
    direction: Direction
    dim: int
    one_sided: bool
    effect: float
    """Relative variance of the weights' gradient if every message had variance β."""
    ranks: int
    sender: Ints
    """[messages]"""
    receiver: Ints
    """[messages]"""
    beta: Floats
    """[messages]; only their ratios count."""

    @property
    def key(self) -> ExchangeKey:
        return self.layer, self.direction

    @cached_property
    def pair(self) -> Ints:
        """[messages] sender × ranks + receiver."""
        return self.sender * self.ranks + self.receiver

    @cached_property
    def weight(self) -> Floats:
        """[messages] relative variance of the gradient at factor 1."""
        total = float(self.beta.sum())
        return self.beta * (self.effect / total) if total > 0.0 else np.zeros(len(self.beta))

    def sizes(self, widths: Sequence[int]) -> Floats:
        """[widths] bytes of a message."""
        return np.array([float(record_bytes(bits, self.dim, one_sided=self.one_sided)) for bits in widths])

    def variance(self, widths: Widths) -> float:
        """Relative variance of the gradient at widths [messages]."""
        factor = np.zeros(256)
        factor[list(WIDTHS)] = [variance_factor(bits) for bits in WIDTHS]
        return float(self.weight @ factor[widths])

    def sent(self, widths: Widths) -> Floats:
        """[ranks²] bytes between each two ranks, headers included."""
        size = np.zeros(256)
        size[list(WIDTHS)] = self.sizes(WIDTHS)
        sent = np.bincount(self.pair, weights=size[widths], minlength=self.ranks**2)
        return sent + HEADER_BYTES * (np.bincount(self.pair, minlength=self.ranks**2) > 0)

    def at_prices(self, prices: Floats, allowed: Sequence[int]) -> Widths:
        """Each message's best width where a byte between two ranks costs `prices` [ranks²] of variance."""
        factor = np.array([variance_factor(bits) for bits in allowed])
        steps = _steps(self.sizes(allowed), factor)
        # the widths of all messages have one hull but for scale: a step is taken where weight × its gain a byte beats the price
        ratio = np.divide(self.weight, prices[self.pair], out=np.full(len(self.weight), np.inf), where=prices[self.pair] > 0.0)
        ratio[self.weight == 0.0] = 0.0
        thresholds = np.array([size / gain for _, size, gain in steps[1:]])
        taken = np.searchsorted(thresholds, ratio, side="right")
        widths: Widths = np.array([allowed[index] for index, _, _ in steps], dtype=np.uint8)[taken]
        return widths


def _steps(size: Floats, factor: Floats) -> list[tuple[int, float, float]]:
    """(index of the width, bytes more, factor less) along the lower convex hull, its start first; gain a byte falls."""
    hull = convex_hull(size, factor)
    later = ((each, float(size[each] - size[before]), float(factor[before] - factor[each])) for before, each in pairwise(hull))
    return [(hull[0], 0.0, 0.0), *later]


@dataclass(frozen=True, eq=False)
class Duration:
    """The least variance of an exchange that takes at most so long."""

    seconds: float
    variance: float
    prices: Floats
    """[ranks²] variance that a byte between two ranks must take away."""
    sent: Floats
    """[ranks²] bytes."""


@dataclass(frozen=True, eq=False)
class _Binned:
    """An exchange's messages by pair and β, without their order."""

    pairs: Ints
    """[P] the pairs that have messages."""
    rows: Floats
    """[P, BINS]"""
    weight: Floats
    """[P, BINS] mean of the messages'."""

    @classmethod
    def of(cls, messages: Messages) -> _Binned:
        pairs, index = np.unique(messages.pair, return_inverse=True)
        weight = messages.weight
        logs = np.log(np.maximum(weight, max(float(weight.max(initial=0.0)), 1e-300) * 1e-12))
        low, high = float(logs.min(initial=0.0)), float(logs.max(initial=0.0))
        bins = np.minimum(((logs - low) * (BINS / max(high - low, 1e-9))).astype(np.int64), BINS - 1)
        place, shape = index * BINS + bins, (len(pairs), BINS)
        rows = np.bincount(place, minlength=len(pairs) * BINS).reshape(shape).astype(np.float64)
        sums = np.bincount(place, weights=weight, minlength=len(pairs) * BINS).reshape(shape)
        return cls(pairs, rows, np.divide(sums, rows, out=np.zeros(shape), where=rows > 0.0))


class DurationSolver:
    """Least variance of one exchange for any duration."""

    def __init__(self, messages: Messages, wire: WireTimes, allowed: Sequence[int]) -> None:
        self.messages, self.wire, self.allowed = messages, wire, tuple(allowed)
        self._binned = _Binned.of(messages)
        self._factor = np.array([variance_factor(bits) for bits in self.allowed])
        self._size = messages.sizes(self.allowed)
        self._steps = _steps(self._size, self._factor)
        self._thresholds = np.array([size / gain for _, size, gain in self._steps[1:]])
        self._hull = np.array([index for index, _, _ in self._steps])

    def evaluate(self, prices: Floats) -> tuple[float, Floats]:
        """(variance, [ranks²] bytes) of the widths at prices [ranks²]."""
        binned = self._binned
        price = prices[binned.pairs][:, None]
        ratio = np.divide(binned.weight, price, out=np.full(binned.weight.shape, np.inf), where=price > 0.0)
        ratio[binned.weight == 0.0] = 0.0
        picked = self._hull[np.searchsorted(self._thresholds, ratio, side="right")]
        variance = float((binned.rows * binned.weight * self._factor[picked]).sum())
        sent = np.zeros(self.wire.ranks**2)
        sent[binned.pairs] = (binned.rows * self._size[picked]).sum(axis=1) + HEADER_BYTES
        return variance, sent

    def bounds(self) -> tuple[float, float]:
        """Seconds at the narrowest and at the widest widths."""
        least = self.evaluate(np.full(self.wire.ranks**2, np.inf))[1]
        most = self.evaluate(np.zeros(self.wire.ranks**2))[1]
        return float(self.wire.loads(least).max()), float(self.wire.loads(most).max())

    def solve(self, seconds: float, start: Floats | None = None) -> tuple[Duration, Floats]:
        """The answer and the multipliers [resources], to start the next duration from."""
        wire = self.wire
        rows = max(1.0, float(self._binned.rows.sum()))
        scale = float((self._binned.rows * self._binned.weight).sum()) / (rows * max(1, self.messages.dim))
        multipliers = np.full(len(wire.capacity), max(scale, 1e-300)) if start is None else start.copy()
        multipliers[~np.isfinite(wire.capacity)] = 0.0
        finite = np.isfinite(wire.capacity)
        values = 8.0 / max(1, self.messages.dim)

        def prices_of(multipliers: Floats) -> Floats:
            per_second = float((multipliers * np.where(finite, wire.capacity, 0.0)).sum())
            prices = multipliers[wire.paths].sum(axis=1) + per_second * wire.handling
            raised: Floats = np.maximum(prices, LEAST_SHARE * float(prices.max(initial=0.0)))
            return raised

        for turn in range(ROUNDS):
            _, sent = self.evaluate(prices_of(multipliers))
            share = wire.loads(sent) / seconds
            bits = values * float(sent.sum()) / rows
            # one bit more or less is a factor of 4 in variance, and so in the price: what this load asks for, both ends a half
            needed = np.log(4.0) * np.clip(bits * (1.0 - 1.0 / np.maximum(share, 1e-3)), -4.0, 4.0)
            damping = 0.6 if turn < ROUNDS // 2 else 0.25
            multipliers = np.where(finite, multipliers * np.exp(damping * np.maximum(needed, -3.0)), 0.0)
            top = float(multipliers.max())
            multipliers = np.where(finite, np.maximum(multipliers, 1e-9 * top), 0.0)
        multipliers = self._fit(multipliers, prices_of, seconds)
        prices = prices_of(multipliers)
        variance, sent = self.evaluate(prices)
        return Duration(float(wire.loads(sent).max()), variance, prices, sent), multipliers

    def _fit(self, multipliers: Floats, prices_of: Callable[[Floats], Floats], seconds: float) -> Floats:
        """Raise or lower all alike until the exchange just fits."""

        def fits(exponent: float) -> bool:
            _, sent = self.evaluate(prices_of(multipliers * np.exp(exponent)))
            return float(self.wire.loads(sent).max()) <= seconds * (1.0 + 1e-9)

        low, high = -1.0, 1.0
        while not fits(high) and high < 60.0:
            high *= 2.0
        while fits(low) and low > -60.0:
            low *= 2.0
        for _ in range(24):
            middle = (low + high) / 2.0
            low, high = (low, middle) if fits(middle) else (middle, high)
        return np.asarray(multipliers * np.exp(high), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class WidthOption:
    """Widths of all messages, and what they are."""

    widths: Mapping[ExchangeKey, Widths]
    """[messages] by exchange."""
    prices: Mapping[ExchangeKey, Floats]
    """[ranks²] by exchange, in one unit over all; empty where widths were not found by price."""
    variance: float
    """Relative, of the weights' gradient in an epoch."""
    exchange_seconds: float
    """What the exchanges add to the epoch, before the simulator has said."""
    label: str


@dataclass(frozen=True, eq=False)
class Trade:
    """A duration for each exchange; `widths` says which widths that means."""

    exchanges: Sequence[Messages]
    durations: Sequence[Duration]
    allowed: tuple[int, ...]
    exchange_seconds: float
    """What the exchanges add to the epoch."""

    @property
    def variance(self) -> float:
        """As its prices were found, a little above that of the widths."""
        return sum(each.variance for each in self.durations)

    def widths(self) -> WidthOption:
        widths = {
            messages.key: messages.at_prices(found.prices, self.allowed)
            for messages, found in zip(self.exchanges, self.durations, strict=True)
        }
        return WidthOption(
            widths,
            {messages.key: found.prices for messages, found in zip(self.exchanges, self.durations, strict=True)},
            sum(messages.variance(widths[messages.key]) for messages in self.exchanges),
            self.exchange_seconds,
            f"{mean_bits(widths):.1f} bits by price",
        )


def trades(
    exchanges: Sequence[Messages],
    wire: WireTimes,
    windows: Mapping[ExchangeKey, float],
    *,
    allowed: Sequence[int] = WIDTHS,
    times: int = TIMES,
) -> list[Trade]:
    """From the fastest widths to the widest, every trade of epoch time against variance that is the best at some price.

    Args:
        exchanges: those that have messages and may be given widths.
        windows: seconds that each may take unnoticed; 0 where missing.
        allowed: widths to choose from, ascending.
    """
    durations: list[list[Duration]] = []
    seconds = []
    for messages in exchanges:
        window = windows.get(messages.key, 0.0)
        found = _durations(DurationSolver(messages, wire, allowed), window, times)
        durations.append(found)
        handled = np.array([float(wire.handling @ each.sent) for each in found])
        seconds.append(exposed([each.seconds for each in found], window) + handled)
    variance = [[each.variance for each in found] for found in durations]
    choices = Choices(tuple(range(times + 2)), np.array(seconds), np.array(variance))
    places = {
        tuple(at_price(choices, price).index.tolist()): None
        for price in (np.inf, *sorted(set(choices.upgrades.price.tolist()), reverse=True))
    }
    return [
        Trade(
            exchanges,
            [found[index] for found, index in zip(durations, place, strict=True)],
            tuple(allowed),
            sum(float(each[index]) for each, index in zip(seconds, place, strict=True)),
        )
        for place in places
    ]


def _durations(solver: DurationSolver, window: float, times: int) -> list[Duration]:
    """`times` + 2 of them, from the shortest possible on; that of the window among them, where it is one."""
    least, most = solver.bounds()
    most = max(most, least * (1.0 + 1e-6))
    grid = np.geomspace(max(least, 1e-9) * (1.0 + 1e-6), most, times + 1)
    grid = np.sort(np.append(grid, np.clip(window, grid[0], grid[-1])))
    found: list[Duration] = []
    multipliers: Floats | None = None
    for seconds in grid.tolist():
        duration, multipliers = solver.solve(seconds, multipliers)
        if found and duration.variance > found[-1].variance:  # what fits a shorter time fits a longer one
            duration = found[-1]
        found.append(duration)
    return found


def uniform_option(exchanges: Sequence[Messages], bits: int) -> WidthOption:
    """Every message at one width."""
    widths = {each.key: np.full(len(each.beta), bits, dtype=np.uint8) for each in exchanges}
    variance = sum(each.variance(widths[each.key]) for each in exchanges)
    return WidthOption(widths, {}, variance, 0.0, f"{bits} bits")


def within_total_bytes(exchanges: Sequence[Messages], budget: float, *, allowed: Sequence[int] = WIDTHS) -> WidthOption:
    """Least variance where all messages of an epoch take at most `budget` bytes: one price for a byte, wherever it goes.

    Raises MisuseError for fewer bytes than the narrowest widths take.
    """
    headers = sum(float(HEADER_BYTES * np.unique(each.pair).size) for each in exchanges)
    least = headers + sum(float(each.sizes(allowed).min()) * len(each.beta) for each in exchanges)
    if budget < least:
        raise MisuseError(f"{budget:.0f} bytes are too few: at the narrowest widths an epoch exchanges {least:.0f}")
    factor = np.array([variance_factor(bits) for bits in allowed])
    choices = Choices(
        tuple(allowed),
        np.concatenate([np.tile(each.sizes(allowed), (len(each.beta), 1)) for each in exchanges]),
        np.concatenate([each.weight[:, None] * factor[None, :] for each in exchanges]),
    )
    picked = within_bytes(choices, budget - headers)
    table, begin, widths, prices = np.array(allowed, dtype=np.uint8), 0, {}, {}
    for each in exchanges:
        widths[each.key] = table[picked.index[begin : begin + len(each.beta)]]
        prices[each.key] = np.full(each.ranks**2, max(picked.price, 1e-300))
        begin += len(each.beta)
    return WidthOption(widths, prices, picked.variance, 0.0, f"{mean_bits(widths):.1f} bits by price")


def mean_bits(widths: Mapping[ExchangeKey, Widths]) -> float:
    """Over all messages."""
    every = np.concatenate([*widths.values(), np.zeros(0, dtype=np.uint8)])
    return float(every.mean()) if every.size else 32.0


def assignments(exchanges: Sequence[Messages], widths: Mapping[ExchangeKey, Widths], ranks: int) -> tuple[BitAssignment, ...]:
    """What programs see of the widths: how many messages of each pair have which, by rank."""
    counts = {
        each.key: np.bincount(each.pair * 256 + widths[each.key], minlength=ranks * ranks * 256).reshape(ranks, ranks, 256)
        for each in exchanges
    }

    def histogram(of_pair: Ints) -> tuple[tuple[int, int], ...]:
        return tuple((int(bits), int(of_pair[bits])) for bits in np.flatnonzero(of_pair))

    return tuple(
        BitAssignment(
            {
                key: ExchangeBits(
                    tuple(histogram(table[rank, peer]) for peer in range(ranks)),
                    tuple(histogram(table[peer, rank]) for peer in range(ranks)),
                )
                for key, table in counts.items()
            }
        )
        for rank in range(ranks)
    )
