"""Messages of one pair in groups that get one width each, as in AdaQP (Wan, Zhao and Wu, MLSys 2023, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError

Scores = npt.NDArray[np.float64]
Widths = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

MESSAGES_PER_GROUP_UNIT = 1000
SMALLEST_DEFAULT_GROUP = 100
LARGEST_DEFAULT_GROUP = 2000


@dataclass(frozen=True, eq=False)
class Groups:
    """One pair's messages, sorted by falling β and cut into groups of equal size; the last may be smaller."""

    order: Indices
    """int64 [messages]: positions of the messages, largest β first; equal ones keep their order."""
    boundaries: Indices
    """int64 [groups + 1]: group g holds `order[boundaries[g]:boundaries[g + 1]]`."""
    variance: Scores
    """float64 [groups]: sum of β over a group's messages."""

    @property
    def rows(self) -> Indices:
        """int64 [groups]: messages of each group."""
        return np.diff(self.boundaries)


def default_group_size(messages: int) -> int:
    """Messages a group where the user names no size: a thousandth of a graph's, at least 100 and at most 2,000.

    So a problem has about a thousand groups plus at most one for each pair, until groups of 2,000 make it grow again; AdaQP's
    published configurations lie between the same two ends.

    Args:
        messages: of one layer and direction, over all pairs of ranks.
    """
    return int(np.clip(messages // MESSAGES_PER_GROUP_UNIT, SMALLEST_DEFAULT_GROUP, LARGEST_DEFAULT_GROUP))


def group_messages(beta: Scores, group_size: int) -> Groups:
    """Sort one pair's messages by β and cut them into groups.

    Args:
        beta: float64 [messages], finite and not negative (`variance.message_beta`).
        group_size: messages a group, at least 1.

    Raises:
        MisuseError: a group size below 1, or a β that is negative or not finite.
    """
    if group_size < 1:
        raise MisuseError(f"bits: group size {group_size} must be at least 1")
    beta = np.asarray(beta, dtype=np.float64)
    wrong = ~(np.isfinite(beta) & (beta >= 0.0))
    if wrong.any():
        message = int(wrong.argmax())
        raise MisuseError(f"bits: β of message {message} is {beta[message]}; needed are finite values of at least 0")
    order = np.argsort(-beta, kind="stable").astype(np.int64)
    starts = np.arange(0, beta.size, group_size, dtype=np.int64)
    return Groups(
        order=order,
        boundaries=np.append(starts, np.int64(beta.size)),
        variance=np.add.reduceat(beta[order], starts) if beta.size else np.zeros(0),
    )


def spread(group_widths: npt.NDArray[np.integer], groups: Groups) -> Widths:
    """The width of each message, uint8 [messages] in the messages' own order, from one width a group.

    Raises:
        MisuseError: not one width for each group.
    """
    if len(group_widths) != len(groups.rows):
        raise MisuseError(f"bits: {len(group_widths)} widths for {len(groups.rows)} groups")
    widths = np.empty(groups.order.size, dtype=np.uint8)
    widths[groups.order] = np.repeat(np.asarray(group_widths, dtype=np.uint8), groups.rows)
    return widths
