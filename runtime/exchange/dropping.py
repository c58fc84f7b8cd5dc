"""Width 0: which messages an epoch leaves out, and what the others are scaled by so that sums stay right in the mean.

A pair of ranks that has messages of width 0 in an exchange draws, in every epoch, which of its *droppable* messages are left
out: those of width 0 and those of its narrowest other width, as many as have width 0. So the bytes and all buffers are the
same in every epoch. Each droppable message is left out equally often; where it is not, its receiver scales it by one over
the share that is kept. docs/bits.md has the variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from halocast.runtime import kernels
from halocast.traces.wire import DROPPED

PURPOSE_DROPPING = 4
"""Of the random words' streams (`kernels.Stream.purpose`)."""
RANK_BITS = 20
"""Of a rank, in the number of a pair: sender and receiver together fill a node's 40."""

Widths = npt.NDArray[np.uint8]


def all_dropped(widths: Widths, rows: Sequence[int]) -> int | None:
    """The first peer whose messages are all of width 0, of an exchange's widths, peer after peer; None where there is none."""
    ends = np.cumsum(rows)
    for peer, (count, end) in enumerate(zip(rows, ends, strict=True)):
        if count and not (widths[end - count : end] != DROPPED).any():
            return peer
    return None


@dataclass(frozen=True, eq=False)
class DroppingPair:
    """The messages of one rank to another in one exchange, some of which each epoch leaves out. Both ends hold it."""

    sender: int
    receiver: int
    widths: Widths
    """[messages], droppable ones at the width they are sent at."""
    droppable: npt.NDArray[np.int64]
    """Which messages may be left out, ascending."""
    dropped: int
    """How many of them are."""

    @classmethod
    def of(cls, widths: Widths, sender: int, receiver: int) -> DroppingPair | None:
        """widths: [messages], not all 0. None where no width is 0."""
        dropped = int((widths == DROPPED).sum())
        if not dropped:
            return None
        narrowest = widths[widths != DROPPED].min()
        droppable = np.flatnonzero((widths == DROPPED) | (widths == narrowest))
        sent = np.where(widths == DROPPED, narrowest, widths)
        return cls(sender, receiver, sent, droppable, dropped)

    @property
    def factors(self) -> npt.NDArray[np.float32]:
        """What each message is scaled by where it is kept, [messages]: 1 / p of droppable ones."""
        factors = np.ones(len(self.widths), dtype=np.float32)
        factors[self.droppable] = len(self.droppable) / (len(self.droppable) - self.dropped)
        return factors

    def draw(self, seed: int, epoch: int, layer: int, direction: int) -> Widths:
        """The widths of an epoch, [messages]; a function of the arguments alone, so that both ends agree without a word.

        Those with the smallest random words are left out: of the stream with purpose 4, droppable message k has word k of the
        pair, which has the place of a node. (Words have 32 bits: of 100,000 messages one or two have another's, and
        there the earlier goes first.)
        """
        stream = kernels.Stream(seed, epoch, layer, direction, PURPOSE_DROPPING)
        pair = torch.tensor([self.sender << RANK_BITS | self.receiver])
        words = kernels.philox(stream, pair, len(self.droppable))[0].numpy()
        order = words << 31 | np.arange(len(words))  # no two are alike, so that any way to find the smallest gives the same
        widths = self.widths.copy()
        widths[self.droppable[np.argpartition(order, self.dropped)[: self.dropped]]] = DROPPED
        return widths
