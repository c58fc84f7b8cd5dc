"""What ranks send each other: bytes by sender and receiver, and the widths of messages by exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from halocast.reports.document import Basis, Column, Picture, Table
from halocast.reports.figures import INK, INK_ON_COLOUR, MUTED, PAPER, headline, new_figure, style
from halocast.reports.page import boxes_of
from halocast.reports.widths import draw_widths, mean_bits
from halocast.traces.operations import Direction
from halocast.traces.trace import TRAIN, Trace
from halocast.words import byte_count

MATRIX, EXCHANGES = "bytes-matrix", "exchanges"
"""Identities of tables."""
MOST_NUMBERED = 16
"""Ranks; the cells of more are too small for numbers."""
LIGHTEST, DARKEST = "#dce9f2", "#00659f"
"""None of the colours that a dark page replaces: a scale must stay one."""
CELL, LARGEST, TITLE = 0.44, 6.5, 1.3
"""Inches: of a rank's row, of the whole matrix, of title and axis."""


@dataclass(frozen=True)
class ExchangeWidths:
    """What one exchange (layer and direction) sends in an epoch, all ranks together."""

    layer: int
    direction: Direction
    histogram: dict[int, int]
    """Messages by width in bits."""
    bytes: float
    messages: float


def sent_bytes(trace: Trace, epochs: Sequence[int]) -> npt.NDArray[np.float64]:
    """[sender, receiver] bytes of an epoch's exchanges, mean over `epochs`."""
    world = trace.manifest.world_size
    messages = of_epochs(trace, epochs)
    matrix = np.zeros((world, world))
    np.add.at(matrix, (messages["rank"].to_numpy(), messages["peer"].to_numpy()), messages["bytes_out"].to_numpy())
    return matrix / max(1, len(epochs))


def of_epochs(trace: Trace, epochs: Sequence[int]) -> pd.DataFrame:
    messages = trace.messages
    return messages[(messages["phase"] == TRAIN) & messages["epoch"].isin(epochs) & (messages["peer"] >= 0)]


def matrix_picture(matrix: npt.NDArray[np.float64], basis: Basis) -> Picture:
    """Who sends how much to whom: senders down, receivers across."""
    world = len(matrix)
    side = min(LARGEST, max(1.3, CELL * world))
    figure = new_figure(side + TITLE)
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("bytes", (LIGHTEST, DARKEST))
    highest = max(matrix.max(initial=0.0), 1.0)
    edges = np.arange(world + 1) - 0.5
    sent = np.ma.masked_equal(matrix, 0.0)  # nothing was sent, and nothing is drawn
    axes.pcolormesh(edges, edges, sent, cmap=colours, vmin=0.0, vmax=highest, edgecolor=PAPER, linewidth=0.6)
    axes.set_ylim(world - 0.5, -0.5)
    senders, receivers = (each.ravel() for each in np.indices(matrix.shape))
    if world <= MOST_NUMBERED:
        for sender, receiver in zip(senders.tolist(), receivers.tolist(), strict=True):
            size = matrix[sender, receiver]
            if size:
                ink = PAPER if size > 0.6 * highest else INK_ON_COLOUR
                axes.text(receiver, sender, byte_count(size), ha="center", va="center", fontsize=8, color=ink)
    every = max(1, -(-world // 32))
    names = [f"rank {rank}" if world <= MOST_NUMBERED else str(rank) for rank in range(0, world, every)]
    style(axes, xlabel="receives", grid="x")
    axes.grid(visible=False)
    axes.set_xticks(np.arange(0, world, every), names)
    axes.set_yticks(np.arange(0, world, every), names)
    axes.set_ylabel("sends", fontsize=8.5, color=MUTED)
    axes.tick_params(length=0, labelcolor=INK)
    headline(
        axes, f"{byte_count(matrix.sum())} an epoch, rank to rank", "halo exchanges; the all-reduce of gradients is not in it"
    )
    texts = [
        f"rank {sender} to rank {receiver}\n{byte_count(matrix[sender, receiver])} an epoch"
        for sender, receiver in zip(senders.tolist(), receivers.tolist(), strict=True)
    ]
    ones = np.ones(len(senders))
    most_from, most_to = divmod(int(matrix.argmax()), world)
    return Picture(
        f"{MATRIX}-picture",
        figure,
        f"Heat map of bytes, rank to rank: {byte_count(matrix.sum())} an epoch; most goes from rank {most_from} to {most_to}, "
        f"{byte_count(matrix[most_from, most_to])}",
        basis,
        marks=boxes_of(figure, axes, receivers - 0.5, senders - 0.5, ones, ones, texts),
        rows=MATRIX,
    )


def matrix_table(matrix: npt.NDArray[np.float64], basis: Basis, source: str) -> Table:
    """A row a pair of ranks that exchange anything."""
    senders, receivers = np.nonzero(matrix)
    return Table(
        MATRIX,
        "Bytes from rank to rank in an epoch's exchanges",
        (Column("from rank", "count"), Column("to rank", "count"), Column("bytes", "bytes", key="bytes")),
        [
            (int(sender), int(receiver), float(matrix[sender, receiver]))
            for sender, receiver in zip(senders, receivers, strict=True)
        ],
        basis,
        source,
        folded=True,
    )


def exchange_widths(trace: Trace, epochs: Sequence[int]) -> list[ExchangeWidths]:
    """What each exchange sent, by layer and direction, forward first; messages by width as of the last epoch."""
    messages = of_epochs(trace, epochs)
    found = []
    for _, group in messages.groupby(["layer", "direction"]):
        histogram: dict[int, int] = {}
        for pairs in group.loc[group["epoch"] == group["epoch"].max(), "bits_out"]:
            for bits, rows in pairs:
                histogram[int(bits)] = histogram.get(int(bits), 0) + int(rows)
        totals = group[["bytes_out", "rows_out"]].sum() / len(epochs)
        found.append(
            ExchangeWidths(
                int(group["layer"].iloc[0]),
                Direction(group["direction"].iloc[0]),
                dict(sorted(histogram.items())),
                float(totals["bytes_out"]),
                float(totals["rows_out"]),
            )
        )
    return sorted(found, key=lambda each: (each.direction != Direction.FORWARD, each.layer))


def widths_picture(exchanges: Sequence[ExchangeWidths], basis: Basis) -> Picture:
    """Shares of each exchange's messages by width."""
    figure = new_figure(1.35 + 0.4 * max(2, len(exchanges)))
    draw_widths(figure.add_subplot(), exchanges)
    return Picture(
        f"{EXCHANGES}-picture",
        figure,
        "Messages by width, for each exchange: "
        + "; ".join(f"layer {each.layer} {each.direction} {mean_bits(each.histogram):.2f} bits" for each in exchanges),
        basis,
        rows=EXCHANGES,
    )


def exchanges_table(exchanges: Sequence[ExchangeWidths], last: pd.DataFrame, basis: Basis, source: str) -> Table:
    """A row an exchange; `last` says which rank was the last to send in each epoch's."""

    def most_often(each: ExchangeWidths) -> tuple[int | None, float | None]:
        own = last.loc[(last["layer"] == each.layer) & (last["direction"] == each.direction), "rank"]
        counts = own.value_counts(normalize=True).sort_index().sort_values(ascending=False, kind="stable")
        return (int(counts.index[0]), float(counts.iloc[0])) if len(counts) else (None, None)

    return Table(
        EXCHANGES,
        "Exchanges of an epoch, all ranks together",
        (
            Column("layer", "count"),
            Column("direction"),
            Column("messages", "count"),
            Column("bytes", "bytes", key="bytes"),
            Column("mean width, bits", "bits", key="mean_bits"),
            Column("messages by width"),
            Column("most often last to send, rank", "count", key="last_rank"),
            Column("how often", "percent", key="last_share"),
        ),
        [
            (
                each.layer,
                str(each.direction),
                each.messages,
                each.bytes,
                mean_bits(each.histogram) if each.histogram else None,
                ", ".join(f"{rows:,} at {bits}" for bits, rows in each.histogram.items()) or None,
                *most_often(each),
            )
            for each in exchanges
        ],
        basis,
        source,
    )
