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
from torch import Tensor

from halocast.runtime import kernels
from halocast.traces.wire import DROPPED

PURPOSE_DROPPING = 4
"""Of the random words' streams (`kernels.Stream.purpose`)."""

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
    """The messages of one sender to one receiver in one exchange, some of which each epoch leaves out. Both ends hold it."""

    receiver: int
    widths: Widths
    """[messages], droppable ones at the width they are sent at."""
    droppable: npt.NDArray[np.int64]
    """Which messages may be left out, ascending."""
    nodes: Tensor
    """int64 [droppable] on the CPU: their global ids."""
    dropped: int
    """How many of them are."""

    @classmethod
    def of(cls, widths: Widths, nodes: Tensor, receiver: int) -> DroppingPair | None:
        """widths: [messages], not all 0. nodes: int64 [messages] on the CPU, global ids. None where no width is 0."""
        dropped = int((widths == DROPPED).sum())
        if not dropped:
            return None
        narrowest = widths[widths != DROPPED].min()
        droppable = np.flatnonzero((widths == DROPPED) | (widths == narrowest))
        sent = np.where(widths == DROPPED, narrowest, widths)
        return cls(receiver, sent, droppable, nodes[torch.from_numpy(droppable)], dropped)

    @property
    def keep_probability(self) -> float:
        """Of a droppable message."""
        return 1.0 - self.dropped / len(self.droppable)

    @property
    def factors(self) -> npt.NDArray[np.float32]:
        """What each message is scaled by where it is kept, [messages]."""
        factors = np.ones(len(self.widths), dtype=np.float32)
        factors[self.droppable] = len(self.droppable) / (len(self.droppable) - self.dropped)
        return factors

    def draw(self, seed: int, epoch: int, layer: int, direction: int) -> Widths:
        """The widths of an epoch, [messages]; a function of the arguments alone, so that both ends agree without a word.

        Those with the smallest random words are left out: the first word of each message's node, in a stream whose key is the
        seed with the receiver in its upper half. (Words of 32 bits tell 100,000 messages apart but for one or two; there
        the earlier message goes first.)
        """
        stream = kernels.Stream(seed ^ self.receiver << 32, epoch, layer, direction, PURPOSE_DROPPING)
        words = kernels.philox(stream, self.nodes, 1)[:, 0].numpy()
        order = words << 31 | np.arange(len(words))  # one number a message: all differ, so any way of partitioning is alike
        widths = self.widths.copy()
        widths[self.droppable[np.argpartition(order, self.dropped)[: self.dropped]]] = DROPPED
        return widths
