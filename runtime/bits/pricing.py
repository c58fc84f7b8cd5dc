"""Renewing a plan's widths during a run: at the plan's prices, for no more than it cost, but for rows as they are by then.

Beside the widths a plan's arrays hold what a byte of each exchange costs on its way from one rank to another, and how much of
an exchange's rounding reaches the gradient (`traces.plan`). All messages of all ranks are offered the same trade: along the
lower convex hull of its widths' (cost, variance) a message is widened as long as a unit of cost takes away enough variance, and
*enough* is the threshold at which the budget is used up (the linear relaxation of a multiple-choice knapsack: P. Sinha and
A. Zoltners, Operations Research 27, 1979). Ranks agree on it by summing a histogram of their upgrades' costs.

Every message's variance is its β times what its width leaves of it, so that all of an exchange share one hull, and where a
message stands follows from one logarithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from halocast.errors import GraphError, MisuseError
from halocast.runtime.bits.assigners import MessageTable, Reassignment, changes, histogram_of, tell_receivers
from halocast.runtime.bits.variance import message_beta
from halocast.runtime.exchange.quantized import ExchangeKey, MessageWidths
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.graph.npz import NpzReader, open_npz
from halocast.traces.plan import effect_name, prices_name
from halocast.traces.wire import WIDTHS, record_bytes, variance_factor

Floats = npt.NDArray[np.float64]
Widths = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.int32]

BIN_BITS = 12
BINS = 1 << BIN_BITS
"""Of a histogram: one over all upgrades, then one inside the bin in which the budget ends."""
NOISE = np.array([variance_factor(bits) if bits else 0.0 for bits in range(33)])
"""By width: the share of β that is left as variance."""


@dataclass(frozen=True)
class Prices:
    """What a plan's arrays say of each exchange with messages."""

    seconds: Mapping[ExchangeKey, Floats]
    """[ranks, ranks] of a byte from one rank to another."""
    effect: Mapping[ExchangeKey, float]
    """The gradient's relative variance where every message leaves all of its β."""


def has_prices(path: Path) -> bool:
    """Whether widths can be renewed by the file; raises MisuseError where it cannot be read."""
    with open_npz(path) as archive:
        return any(name.endswith("_prices") for name in archive.names)


def read_prices(path: Path, table: MessageTable) -> Prices:
    """The prices of a run's exchanges. Raises MisuseError: one line on which array is missing or cannot be."""
    seconds: dict[ExchangeKey, Floats] = {}
    effect: dict[ExchangeKey, float] = {}
    try:
        with open_npz(path) as archive:
            for number, shape in enumerate(table.own):
                key = (shape.layer, shape.direction)
                messages = np.array([shapes[number].rows_out for shapes in table.shapes])
                if messages.any():
                    seconds[key] = _read_seconds(archive, prices_name(*key), messages)
                    effect[key] = _read_effect(archive, effect_name(*key))
    except GraphError as error:
        raise MisuseError(f"prices: {' '.join(str(error).splitlines())}") from error
    return Prices(seconds, effect)


def _read_seconds(archive: NpzReader, name: str, messages: npt.NDArray[np.int64]) -> Floats:
    if archive.shape(name) != messages.shape or archive.dtype(name).kind != "f":
        raise MisuseError(
            f"prices: {archive.path}: array '{name}' is {archive.dtype(name)} {list(archive.shape(name))}; "
            f"needed is float32 {list(messages.shape)}"
        )
    prices: Floats = archive.read(name).astype(np.float64)
    wrong = (messages > 0) & ~((prices > 0.0) & np.isfinite(prices))
    if wrong.any():
        sender, receiver = (int(each[0]) for each in np.nonzero(wrong))
        raise MisuseError(
            f"prices: {archive.path}: array '{name}' has {prices[sender, receiver]:g} for a byte from rank {sender} to "
            f"{receiver}; needed is a number above 0"
        )
    return prices


def _read_effect(archive: NpzReader, name: str) -> float:
    if archive.shape(name) != () or archive.dtype(name).kind != "f":
        raise MisuseError(
            f"prices: {archive.path}: array '{name}' is {archive.dtype(name)} {list(archive.shape(name))}; needed is float64 []"
        )
    effect = float(archive.read(name))
    if not (effect >= 0.0 and np.isfinite(effect)):
        raise MisuseError(f"prices: {archive.path}: array '{name}' is {effect:g}; needed is a number from 0 up")
    return effect


# -- the trade ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hull:
    """The widths worth having, whatever a byte costs and a message's β is, from the fewest bytes on."""

    widths: Widths
    """[levels]"""
    more: Floats
    """[levels - 1] bytes of each upgrade."""
    gain: Floats
    """[levels - 1] log of the noise that a byte of it takes away: falling."""
    size: Floats
    """[33] bytes of a record, by width."""

    @classmethod
    def of(cls, dim: int, *, one_sided: bool, rotated: bool = False) -> Hull:
        """Of rows of `dim` values."""
        size = np.zeros(33)
        for bits in WIDTHS:
            size[bits] = record_bytes(bits, dim, one_sided=one_sided, rotated=rotated)
        hull: list[int] = []
        for bits in sorted(WIDTHS, key=lambda width: (size[width], NOISE[width])):
            if hull and NOISE[bits] >= NOISE[hull[-1]]:
                continue
            while len(hull) > 1 and _slope(hull[-2], hull[-1], size) <= _slope(hull[-1], bits, size):
                hull.pop()
            hull.append(bits)
        gain = np.log([_slope(before, after, size) for before, after in pairwise(hull)])
        return cls(np.array(hull, dtype=np.uint8), np.diff(size[hull]), gain, size)


def _slope(before: int, after: int, size: Floats) -> float:
    """Noise that each further byte takes away."""
    return float((NOISE[before] - NOISE[after]) / (size[after] - size[before]))


@dataclass(frozen=True, eq=False)
class Offers:
    """One rank's messages of one exchange."""

    hull: Hull
    price: Floats
    """[messages] seconds a byte, above 0."""
    variance: Floats
    """[messages] of the gradient, if all of β were left."""

    def cost(self, widths: Widths) -> float:
        """Seconds of all messages at those widths."""
        return float((self.price * self.hull.size[widths]).sum())

    def left(self, widths: Widths) -> float:
        """Variance that those widths leave."""
        return float((self.variance * NOISE[widths]).sum())

    @property
    def narrowest(self) -> Widths:
        return np.full(len(self.price), self.hull.widths[0], dtype=np.uint8)

    @cached_property
    def useful(self) -> npt.NDArray[np.int64]:
        """Messages that it is of use to widen; rows that are all alike lose nothing in rounding."""
        return np.flatnonzero(self.variance > 0.0)

    @cached_property
    def worth(self) -> Floats:
        """[useful] log of the variance for each unit of cost that an upgrade takes away, but for the hull's gain."""
        worth: Floats = np.log(self.variance[self.useful]) - np.log(self.price[self.useful])
        return worth

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest log(gain / cost) of an upgrade; (inf, -inf) where there is none."""
        if not self.useful.size or not self.hull.gain.size:
            return np.inf, -np.inf
        return float(self.worth.min() + self.hull.gain[-1]), float(self.worth.max() + self.hull.gain[0])

    def keys(self, low: float, high: float) -> list[Keys]:
        """For each step along the hull, [useful]: 0 at `high` to BINS² - 1 at `low`; never falling from step to step."""
        scale = BINS * BINS / (high - low) if high > low else 0.0
        return [np.minimum((high - (self.worth + gain)) * scale, BINS * BINS - 1).astype(np.int32) for gain in self.hull.gain]


def choose_widths(offers: Sequence[Offers], budget: float, transport: Transport) -> list[Widths]:
    """The widths with the least variance within a budget of all ranks, uint8 [messages] for each exchange.

    All ranks call it together, with the same exchanges in the same order. The threshold is met to a part in BINS² of the
    logarithms' range; upgrades that differ by less are bought rank after rank, message after message, until the budget ends.
    """
    least = sum(each.cost(each.narrowest) for each in offers)
    bounds = [each.bounds() for each in offers]
    everyones = _everyones(
        transport, [least, min((low for low, _ in bounds), default=np.inf), max((high for _, high in bounds), default=-np.inf)]
    )
    left, low, high = max(0.0, budget - everyones[:, 0].sum()), everyones[:, 1].min(), everyones[:, 2].max()
    if low > high:
        return [each.narrowest for each in offers]
    keys = [each.keys(low, high) for each in offers]
    coarse, left = _used_up(_costs_by_bin(offers, keys, transport), left)
    fine, left = _used_up(_costs_by_bin(offers, keys, transport, coarse), left)
    threshold = coarse * BINS + fine
    levels = [_steps_below(threshold, each, steps) for each, steps in zip(offers, keys, strict=True)]
    _buy_ties(offers, keys, levels, threshold, left, transport)
    chosen = [each.narrowest for each in offers]
    for each, widths, level in zip(offers, chosen, levels, strict=True):
        widths[each.useful] = each.hull.widths[level]
    return chosen


def _steps_below(threshold: int, offers: Offers, keys: list[Keys]) -> npt.NDArray[np.int64]:
    """[useful] steps along the hull that are worth more than the threshold."""
    levels = np.zeros(len(offers.useful), dtype=np.int64)
    for step in keys:
        levels += step < threshold
    return levels


def _everyones(transport: Transport, values: Sequence[float]) -> Floats:
    """Each rank's values, [ranks, values]."""
    table = torch.zeros(transport.world_size, len(values), dtype=torch.float64)
    table[transport.rank] = torch.tensor(values, dtype=torch.float64)
    if values:
        transport.all_reduce(table)
    everyones: Floats = table.numpy()
    return everyones


def _costs_by_bin(
    offers: Sequence[Offers], keys: Sequence[list[Keys]], transport: Transport, coarse: int | None = None
) -> Floats:
    """What all ranks' upgrades cost, [BINS]: by the coarse bin, or inside one of those."""
    costs = np.zeros(BINS)
    for each, steps in zip(offers, keys, strict=True):
        price = each.price[each.useful]
        for step, more in zip(steps, each.hull.more, strict=True):
            if coarse is None:
                costs += more * np.bincount(step >> BIN_BITS, weights=price, minlength=BINS)
            else:
                inside = np.flatnonzero(step >> BIN_BITS == coarse)
                costs += more * np.bincount(step[inside] & (BINS - 1), weights=price[inside], minlength=BINS)
    summed = torch.from_numpy(costs)
    transport.all_reduce(summed)
    return costs


def _used_up(costs: Floats, left: float) -> tuple[int, float]:
    """The bin in which a budget ends (BINS: in none), and what is left of it there."""
    used = np.cumsum(costs)
    last = int(np.searchsorted(used, left, side="right"))
    return last, left - (float(used[last - 1]) if last else 0.0)


def _buy_ties(
    offers: Sequence[Offers],
    keys: Sequence[list[Keys]],
    levels: Sequence[npt.NDArray[np.int64]],
    threshold: int,
    left: float,
    transport: Transport,
) -> None:
    """Take upgrades at the threshold itself, as far as what is left reaches after the ranks before this one; fills `levels`."""
    tied = [
        (number, np.flatnonzero(step == threshold), float(more))
        for number, (each, steps) in enumerate(zip(offers, keys, strict=True))
        for step, more in zip(steps, each.hull.more, strict=True)
    ]
    costs = [more * offers[number].price[offers[number].useful[index]] for number, index, more in tied]
    before = _everyones(transport, [sum(float(each.sum()) for each in costs)])[: transport.rank].sum()
    allowance = left - float(before)
    for (number, index, _), cost in zip(tied, costs, strict=True):  # a message's steps in order
        used = np.cumsum(cost)
        count = int(np.searchsorted(used, allowance, side="right"))
        levels[number][index[:count]] += 1
        if count < len(index):
            return
        allowance -= float(used[-1]) if count else 0.0


# -- in a run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PricedAssigner:
    """A plan's widths, renewed after each period at the plan's prices."""

    table: MessageTable
    transport: Transport
    coefficients: Mapping[ExchangeKey, Floats]
    """Σ of the receiver's aggregation coefficients, for each message sent."""
    widths: MessageWidths
    """The plan's."""
    prices: Prices
    hulls: Mapping[ExchangeKey, Hull]
    period: int
    budget: float
    """Seconds of all ranks' messages at the plan's widths."""

    @classmethod
    def of(
        cls,
        table: MessageTable,
        transport: Transport,
        coefficients: Mapping[ExchangeKey, Floats],
        widths: MessageWidths,
        prices: Prices,
        period: int,
        *,
        rotated: bool,
    ) -> PricedAssigner:
        """`rotated`: rows of few bits use the rotated codec. All ranks call it together."""
        hulls = {
            (shape.layer, shape.direction): Hull.of(shape.dim, one_sided=shape.one_sided, rotated=rotated)
            for shape in table.own
        }
        own = sum(
            Offers(hulls[key], price, np.zeros_like(price)).cost(widths.outgoing[key])
            for key, price in _message_prices(table, prices).items()
        )
        budget = float(_everyones(transport, [own]).sum())
        return cls(table, transport, coefficients, widths, prices, hulls, period, budget)

    def first(self) -> MessageWidths:
        return self.widths

    def wants_ranges(self, epoch: int) -> bool:
        return (epoch + 1) % self.period == 0

    def next(
        self, epoch: int, current: MessageWidths, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]
    ) -> tuple[MessageWidths, Reassignment] | None:
        if epoch % self.period:
            return None
        started = time.perf_counter()
        offers = self._offers(ranges)
        chosen = dict(zip(offers, choose_widths(list(offers.values()), self.budget, self.transport), strict=True))
        solve_seconds = time.perf_counter() - started
        renewed, kept = (self._total(offers, widths) for widths in (chosen, current.outgoing))
        widths = current
        if renewed < kept:  # the plan's own may be better than a threshold's by less than an upgrade
            outgoing = {**current.outgoing, **chosen}
            widths = MessageWidths(outgoing, tell_receivers(self.table, self.transport, current, outgoing))
        variance, cost = min(renewed, kept)
        return widths, Reassignment(
            epoch,
            time.perf_counter() - started,
            solve_seconds,
            histogram_of(widths),
            changes(current, widths),
            ({"variance": variance, "variance_before": kept[0], "cost": cost, "budget": self.budget},),
        )

    def _offers(self, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]) -> dict[ExchangeKey, Offers]:
        """The messages as they are now: a message's share of its exchange's effect is its share of β."""
        prices = _message_prices(self.table, self.prices)
        dims = {(shape.layer, shape.direction): shape.dim for shape in self.table.own}
        beta = {key: message_beta(ranges(key), dims[key], self.coefficients[key]) for key in prices}
        sums = _everyones(self.transport, [float(each.sum()) for each in beta.values()]).sum(axis=0)
        offers = {}
        for (key, price), total in zip(prices.items(), sums.tolist(), strict=True):
            share = self.prices.effect[key] / total if total > 0.0 else 0.0
            offers[key] = Offers(self.hulls[key], price, share * beta[key])
        return offers

    def _total(self, offers: Mapping[ExchangeKey, Offers], widths: Mapping[ExchangeKey, Widths]) -> tuple[float, float]:
        """(variance, cost) of all ranks' messages."""
        own = [
            sum(each.left(widths[key]) for key, each in offers.items()),
            sum(each.cost(widths[key]) for key, each in offers.items()),
        ]
        variance, cost = _everyones(self.transport, own).sum(axis=0).tolist()
        return variance, cost


def _message_prices(table: MessageTable, prices: Prices) -> dict[ExchangeKey, Floats]:
    """[messages] seconds a byte of each message this rank sends, for the exchanges that any rank sends one of."""
    shapes = {(shape.layer, shape.direction): shape for shape in table.own}
    return {key: np.repeat(seconds[table.rank], shapes[key].rows_out) for key, seconds in prices.seconds.items()}
