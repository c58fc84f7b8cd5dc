"""What is one number a run: bytes, widths, memory, loss, accuracy, each beside the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from halocast.reports.document import Column, Picture, Table, Value
from halocast.reports.figures import BLUE, INK, MUTED, headline, new_figure, style
from halocast.reports.subjects import Group
from halocast.reports.widths import mean_bits, together
from halocast.reports.words import byte_unit
from halocast.words import byte_count

TOTALS = "totals"
"""Identity of the table."""


def totals_picture(groups: Sequence[Group]) -> Picture:
    """Bytes sent and memory held by each group, in bars that start at 0."""
    figure = new_figure(min(12.0, 1.1 + 0.34 * max(2, len(groups))))
    sent, held = figure.subplots(1, 2, sharey=True)
    peaks = [each.peak if isinstance(each.peak, float) else 0.0 for each in groups]
    draw_bytes(sent, "Sent an epoch", "all ranks, the all-reduce of gradients in it", [each.sent for each in groups])
    draw_bytes(held, "Peak memory", "of the rank that needs most, above Python and its libraries", peaks)
    sent.set_yticks(range(len(groups)), [each.name for each in groups], parse_math=False)
    sent.set_ylim(len(groups) - 0.5, -0.5)
    words = "; ".join(
        f"{each.name} sends {byte_count(each.sent)} an epoch and holds {byte_count(peak)}"
        for each, peak in zip(groups, peaks, strict=True)
    )
    return Picture(f"{TOTALS}-picture", figure, f"Bytes and memory: {words}", rows=TOTALS)


def draw_bytes(axes: Axes, title: str, subtitle: str, sizes: Sequence[float]) -> None:
    """A bar a group, the reference's grey, its size behind it; where it is not known there is none."""
    unit, name = byte_unit(max(sizes))
    axes.barh(range(len(sizes)), np.array(sizes) / unit, 0.6, color=[MUTED, *[BLUE] * (len(sizes) - 1)])
    for row, size in enumerate(sizes):
        text = byte_count(size) if size else "not known"
        axes.annotate(text, (size / unit, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_xlim(0, 1.25 * max(max(sizes) / unit, 1e-9))
    style(axes, xlabel=name, grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(axes, title, subtitle)


def totals_table(groups: Sequence[Group]) -> Table:
    """Everything that is one number a group, with ratios to the first."""
    base = groups[0]
    metric = base.first.metric.replace("_", " ")

    def over(value: Value, other: Value) -> float | None:
        return value / other if isinstance(value, int | float) and isinstance(other, int | float) and other else None

    rows: list[Sequence[Value]] = []
    for each in groups:
        widths = together([exchange for member in each.members for exchange in member.exchanges])
        rows.append(
            (
                each.name,
                str(each.basis),
                each.first.world_size,
                each.sent or None,
                over(each.sent, base.sent),
                each.exchanged or None,
                over(each.exchanged, base.exchanged),
                mean_bits(widths) or None,
                each.peak,
                over(each.peak, base.peak),
                each.loss,
                *(each.score(split) for split in ("train", "val", "test")),
            )
        )
    return Table(
        TOTALS,
        f"Each beside the reference, {base.name}",
        (
            Column("name"),
            Column("basis"),
            Column("ranks", "count"),
            Column("sent an epoch", "bytes", key="bytes_per_epoch"),
            Column("sent, ratio", "ratio", key="bytes_ratio"),
            Column("exchanged", "bytes", key="exchange_bytes_per_epoch"),
            Column("exchanged, ratio", "ratio", key="exchange_ratio"),
            Column("mean width, bits", "bits", key="mean_bits"),
            Column("peak of a rank", "bytes", key="peak_bytes"),
            Column("peak, ratio", "ratio", key="peak_ratio"),
            Column("training loss", "number", key="loss"),
            Column(f"{metric} on training", "number", key="train"),
            Column("on validation", "number", key="val"),
            Column("on test", "number", key="test"),
        ),
        rows,
    )
