"""The assignment problem of one layer and direction: what every choice of widths costs, in variance and in time.

AdaQP (Wan, Zhao and Wu, MLSys 2023, section 4): variance = Σ over groups of Σβ / (2^b − 1)²; time = Σ over the rounds
r = 1..K − 1 of the slowest of the pairs (i → (i + r) mod K). The objective is λ · variance + (1 − λ) · time, each term
normalised to 0 at its better and 1 at its worse end between all messages narrowest and all widest.

Here the objective is kept round by round: rounds share no message, so each is a problem of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.runtime.bits.links import Link, LinkCost
from halocast.traces.wire import CODED_WIDTHS, HEADER_BYTES, record_bytes

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pair:
    """The groups of messages that one rank sends another; no groups: it sends nothing, which takes no time."""

    sender: int
    receiver: int
    group_variance: Floats
    """float64 [groups]: sum of β over a group's messages."""
    group_rows: Indices
    """int64 [groups]: messages in a group."""

    def __post_init__(self) -> None:
        if self.group_variance.shape != self.group_rows.shape or self.group_variance.ndim != 1:
            raise MisuseError(
                f"bits: pair {self.sender} → {self.receiver} has {self.group_variance.size} sums of β "
                f"for {self.group_rows.size} groups"
            )
        if not (np.isfinite(self.group_variance).all() and (self.group_variance >= 0.0).all()):
            raise MisuseError(f"bits: pair {self.sender} → {self.receiver} has a sum of β that is negative or not finite")
        if (self.group_rows < 1).any():
            raise MisuseError(f"bits: pair {self.sender} → {self.receiver} has a group without messages")

    @property
    def link(self) -> Link:
        """(sender, receiver)."""
        return self.sender, self.receiver


@dataclass(frozen=True, eq=False)
class Round:
    """One round's part of the objective, normalised and measured from its ideal: least variance in least time is 0.

    An assignment of choice c(g) to each group g costs
    Σ gain[g] · excess[c(g)] + max over pairs (fixed[p] + rate[p] · Σ of p's groups rows[g] · record_bytes[c(g)]).
    """

    pairs: Indices
    """int64 [P]: positions of the round's pairs in the problem."""
    owner: Indices
    """int64 [G]: the pair, 0..P-1, of each group; ascending."""
    rows: Indices
    """int64 [G]: messages of each group."""
    gain: Floats
    """float64 [G]: λ · Σβ, normalised."""
    rate: Floats
    """float64 [P]: (1 − λ) · θ, normalised."""
    fixed: Floats
    """float64 [P]: (1 − λ) · (γ + θ · header), normalised, less the time of the round with all messages narrowest."""
    excess: Floats
    """float64 [C]: 1 / (2^b − 1)² less that of the widest choice."""
    record_bytes: Indices
    """int64 [C]: bytes of one message."""

    @cached_property
    def length(self) -> Floats:
        """float64 [G]: what a group's time grows by with each byte of a message."""
        return self.rate[self.owner] * self.rows

    def finish(self, choice: Indices) -> Floats:
        """When each pair is done under choices int64 [G], float64 [P]; 0: the round with all messages narrowest."""
        size = np.bincount(self.owner, weights=self.rows * self.record_bytes[choice], minlength=self.fixed.size)
        return self.fixed + self.rate * size

    def objective(self, choice: Indices) -> float:
        """The round's share of the objective."""
        return float(self.gain @ self.excess[choice] + self.finish(choice).max())


@dataclass(frozen=True)
class Measure:
    """Both terms of one assignment, in their own units."""

    variance: float
    """Σβ / (2^b − 1)²."""
    seconds: float
    """Sum over rounds of the slowest pair."""


@dataclass(frozen=True, eq=False)
class Problem:
    """All pairs' groups with their costs and choices."""

    pairs: tuple[Pair, ...]
    costs: tuple[LinkCost, ...]
    """Of each pair's link."""
    choices: tuple[int, ...]
    """Ascending widths."""
    record_bytes: Indices
    """int64 [choices]: bytes of one message."""
    variance_factor: Floats
    """float64 [choices]: 1 / (2^b − 1)²."""
    world_size: int

    @classmethod
    def of(
        cls,
        pairs: Sequence[Pair],
        dim: int,
        *,
        one_sided: bool,
        costs: Mapping[Link, LinkCost],
        choices: Sequence[int],
        world_size: int,
    ) -> Problem:
        """Check and gather the inputs of `adaptive.solve`; raises MisuseError as described there."""
        chosen = tuple(sorted(set(choices)))
        if not chosen or not set(chosen) <= set(CODED_WIDTHS):
            raise MisuseError(
                f"bits: adaptive choices {list(choices)} are not allowed; allowed: one or more of "
                f"{', '.join(map(str, CODED_WIDTHS))}"
            )
        links = [pair.link for pair in pairs]
        for sender, receiver in links:
            if sender == receiver or not (0 <= sender < world_size and 0 <= receiver < world_size):
                raise MisuseError(f"bits: there is no link {sender} → {receiver} between {world_size} ranks")
            if (sender, receiver) not in costs:
                raise MisuseError(f"bits: the link {sender} → {receiver} has no cost")
        if len(set(links)) < len(links):
            raise MisuseError("bits: two entries for one pair of ranks")
        return cls(
            pairs=tuple(pairs),
            costs=tuple(costs[link] for link in links),
            choices=chosen,
            record_bytes=np.array([record_bytes(bits, dim, one_sided=one_sided) for bits in chosen]),
            variance_factor=np.array([1.0 / (2**bits - 1) ** 2 for bits in chosen]),
            world_size=world_size,
        )

    def measure(self, choice: Sequence[Indices]) -> Measure:
        """Variance and time of choices (positions in `choices`), int64 [groups] for each pair."""
        variance = sum(
            float(pair.group_variance @ self.variance_factor[each]) for pair, each in zip(self.pairs, choice, strict=True)
        )
        finish = [self._seconds(index, each) for index, each in enumerate(choice)]
        return Measure(variance, sum(max(finish[index] for index in members) for members in self._members))

    def _seconds(self, index: int, choice: Indices) -> float:
        size = HEADER_BYTES + float(self.pairs[index].group_rows @ self.record_bytes[choice])
        return self.costs[index].time(size)

    def extremes(self) -> tuple[Measure, Measure]:
        """All messages narrowest, and all widest."""
        lowest, highest = 0, len(self.choices) - 1
        narrowest, widest = (
            self.measure([np.full(pair.group_rows.size, end) for pair in self.pairs]) for end in (lowest, highest)
        )
        return narrowest, widest

    def rounds(self, variance_weight: float) -> list[Round]:
        """The problem's rounds that have messages; their objectives sum to the problem's."""
        narrowest, widest = self.extremes()
        per_variance = _over(variance_weight, narrowest.variance - widest.variance)
        per_second = _over(1.0 - variance_weight, widest.seconds - narrowest.seconds)
        return [self._round(members, per_variance, per_second) for members in self._members]

    @cached_property
    def _members(self) -> list[list[int]]:
        """Positions of the pairs of each round, by sender, without those that send nothing."""
        members: dict[int, list[int]] = {}
        for index in sorted(range(len(self.pairs)), key=lambda index: self.pairs[index].link):
            pair = self.pairs[index]
            if pair.group_rows.size:
                members.setdefault((pair.receiver - pair.sender) % self.world_size, []).append(index)
        return [members[step] for step in sorted(members)]

    def _round(self, members: list[int], per_variance: float, per_second: float) -> Round:
        pairs, costs = [self.pairs[index] for index in members], [self.costs[index] for index in members]
        owner = np.repeat(np.arange(len(pairs)), [pair.group_rows.size for pair in pairs])
        rate = per_second * np.array([cost.seconds_per_byte for cost in costs])
        fixed = per_second * np.array([cost.time(HEADER_BYTES) for cost in costs])
        narrowest = fixed + rate * [pair.group_rows.sum() * self.record_bytes[0] for pair in pairs]
        return Round(
            pairs=np.array(members),
            owner=owner,
            rows=np.concatenate([pair.group_rows for pair in pairs]),
            gain=per_variance * np.concatenate([pair.group_variance for pair in pairs]),
            rate=rate,
            fixed=fixed - narrowest.max(),
            excess=self.variance_factor - self.variance_factor[-1],
            record_bytes=self.record_bytes,
        )


def _over(weight: float, span: float) -> float:
    """`weight` / `span`; a term that is the same whatever the widths counts for nothing."""
    return weight / span if span > np.finfo(np.float64).tiny else 0.0
