"""Where an epoch goes, told from its trace: the same parts for a measured epoch and a simulated one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes

from halocast.reports.figures import (
    BLUE,
    DARK,
    GRID,
    INK,
    INK_ON_COLOUR,
    ORANGE,
    PAPER,
    PURPLE,
    VERMILION,
    EpochView,
    headline,
    legend_below,
    style,
)
from halocast.traces.trace import COMPUTE
from halocast.words import duration, three_digits

PART_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "compute": BLUE,
        "quantise": PURPLE,
        "exchange exposed": ORANGE,
        "all-reduce exposed": VERMILION,
        "other": GRID,
    }
)
"""Parts of an epoch in the order they are stacked; together they are the epoch. "Exposed" is what ranks waited for;
"other" is copying rows and posting messages, and the time between operations."""
FULL_WIDTH = 32
"""Bits."""
LABELLED_SHARE = 0.055
"""A part shows its milliseconds when it takes this share of the axis."""


def epoch_parts(view: EpochView) -> dict[str, float]:
    """Milliseconds of the epoch by part, mean over ranks."""
    own = view.slices[view.slices["stream"] == COMPUTE]
    waits = own["op"] == "Wait"
    moves = own["op"].isin(("Quantize", "Dequantize"))
    # Plain training gathers and adds rows at 32 bits: copying, not quantising. Width 0 stands for rows of different widths.
    quantises = moves & (own["bits"] < FULL_WIDTH)
    posts = (moves & ~quantises) | own["op"].isin(("Exchange", "Fetch", "AllToAll", "AllReduce", "Upload"))
    kinds = {
        "compute": ~(waits | quantises | posts),
        "quantise": quantises,
        "exchange exposed": waits & (own["peer"] >= 0),
        "all-reduce exposed": waits & (own["peer"] < 0),
    }
    parts = {name: float(own.loc[chosen, "width"].sum()) / view.world_size for name, chosen in kinds.items()}
    return {**parts, "other": max(0.0, view.milliseconds - sum(parts.values()))}


def draw_breakdown(axes: Axes, bars: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """One stacked bar a (name, parts in ms), the first on top, its total behind it."""
    names = [name for name, _ in bars]
    totals = [sum(parts.values()) for _, parts in bars]
    extent = 1.12 * max(totals, default=1.0)
    rows = np.arange(len(bars))
    left = np.zeros(len(bars))
    for part, colour in PART_COLOURS.items():
        widths = np.array([parts[part] for _, parts in bars])
        axes.barh(rows, widths, 0.62, left=left, color=colour, edgecolor=PAPER, linewidth=0.4, label=part)
        for row, start, width in zip(rows.tolist(), left.tolist(), widths.tolist(), strict=True):
            if width >= LABELLED_SHARE * extent:
                ink = INK if colour == GRID else PAPER if colour in DARK else INK_ON_COLOUR
                middle = start + width / 2
                axes.text(middle, row, three_digits(width), ha="center", va="center_baseline", fontsize=8, color=ink)
        left += widths
    for row, total in zip(rows.tolist(), totals, strict=True):
        axes.annotate(duration(total), (total, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(rows, names)
    axes.set_xlim(0, extent)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    style(axes, xlabel="ms of the epoch, mean over ranks", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(
        axes,
        "Where the epoch goes",
        "exposed: what ranks waited for; other: copying and posting messages, and between operations",
    )
    legend_below(axes.figure, axes.get_legend_handles_labels()[0])
