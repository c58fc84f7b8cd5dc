"""The parts of each rank's epoch as stacked bars, and who holds up whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from halocast.reports.document import Basis, Column, Picture, Table
from halocast.reports.figures import (
    DARK,
    GRID,
    IDLE,
    INK,
    INK_ON_COLOUR,
    MUTED,
    ORANGE,
    PAPER,
    headline,
    legend_below,
    new_figure,
    style,
)
from halocast.reports.page import boxes_of
from halocast.reports.ranks import HIDDEN, PART_COLOURS, PARTS, RankTimes, last_shares, last_to_send
from halocast.traces.trace import COMPUTE, TRAIN, Trace
from halocast.traces.workload import Workload
from halocast.words import duration, three_digits

BREAKDOWN, IMBALANCE = "rank-times", "imbalance"
"""Identities of tables."""
LABELLED_SHARE = 0.045
"""A part shows its milliseconds when it takes this share of the axis."""
BAR_HEIGHT, MARGINS, TALLEST = 0.42, 1.5, 12.0
"""Inches: of a bar, of title, axis and legend, of all of it."""
CAPTION = (
    "Exchange exposed: waiting while messages are on their way. Wait for late ranks: waiting for a rank that has not sent yet. "
    "Forecasts count both as exchange (or all-reduce) exposed. Bars are means, each rank's epoch from its first operation to "
    "its last; the epoch time elsewhere is the median of what rank 0 timed."
)
MOST_LABELLED = 24
"""Bars; more are too thin for numbers."""
THICK, THIN = 0.6, 0.16
"""Shares of a row: of the stacked bar, and of what is hidden, below it."""


def breakdown_picture(names: Sequence[str], parts: pd.DataFrame, basis: Basis | None, title: str, rows: str) -> Picture:
    """One stacked bar a row of `parts` (seconds; columns `PARTS` and `HIDDEN`), all on one scale."""
    milliseconds = 1e3 * parts[[*PARTS, HIDDEN]].reset_index(drop=True)
    bars = len(milliseconds)
    figure = new_figure(min(TALLEST, MARGINS + BAR_HEIGHT * max(2, bars)))
    axes = figure.add_subplot()
    stacked = milliseconds[list(PARTS)].to_numpy()
    lefts = np.cumsum(stacked, axis=1) - stacked
    extent = 1.1 * max(stacked.sum(axis=1).max(initial=0.0), 1e-6)
    for place, colour in enumerate(PART_COLOURS.values()):
        is_wait = colour == IDLE
        axes.barh(
            np.arange(bars), stacked[:, place], THICK, left=lefts[:, place], color=colour,
            edgecolor=MUTED if is_wait else PAPER, linewidth=0.4, hatch="//////" if is_wait else None, hatch_linewidth=0.35,
        )  # fmt: skip
    axes.barh(
        np.arange(bars) + (THICK + THIN) / 2,
        milliseconds[HIDDEN],
        THIN,
        color=ORANGE,
        alpha=0.55,
        edgecolor=PAPER,
        linewidth=0.3,
    )
    if bars <= MOST_LABELLED:
        label_parts(axes, stacked, lefts, extent)
    for row, total in enumerate(stacked.sum(axis=1)):
        axes.annotate(duration(total), (total, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    every = max(1, -(-bars // 40))
    axes.set_yticks(np.arange(bars)[::every], list(names)[::every], parse_math=False)
    axes.set_xlim(0, extent)
    axes.set_ylim(bars - 0.4, -0.55)
    style(axes, xlabel="ms of an epoch", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(axes, title, "below each bar, thin: messages in flight while the rank did something else")
    legend_below(figure, [*legend_entries(), Patch(facecolor=ORANGE, alpha=0.55, label=HIDDEN)], columns=4)
    words = "; ".join(
        f"{name}: {', '.join(f'{part} {duration(row[part])}' for part in (*PARTS, HIDDEN) if row[part] >= 0.005 * extent)}"
        for name, row in zip(names, milliseconds.to_dict("records"), strict=True)
    )
    return Picture(
        f"{rows}-picture",
        figure,
        f"{title}. {words}" if bars <= MOST_LABELLED else f"{title}: stacked bars, one for each of {bars}",
        basis,
        caption=CAPTION,
        marks=part_marks(figure, axes, names, stacked, lefts),
        rows=rows,
    )


def part_marks(figure: Figure, axes: Any, names: Sequence[str], stacked: Any, lefts: Any) -> Any:
    """What each part of each bar says under the pointer."""
    rows, places = (each.ravel() for each in np.indices(stacked.shape))
    totals = stacked.sum(axis=1)
    texts = [
        f"{names[row]}: {PARTS[place]}\n{duration(stacked[row, place])}, "
        f"{100 * stacked[row, place] / totals[row]:.1f} % of the epoch"
        if totals[row]
        else str(names[row])
        for row, place in zip(rows.tolist(), places.tolist(), strict=True)
    ]
    return boxes_of(figure, axes, lefts.ravel(), rows - THICK / 2, stacked.ravel(), np.full(rows.shape, THICK), texts)


def label_parts(axes: Any, stacked: Any, lefts: Any, extent: float) -> None:
    """Write its milliseconds into every part that is wide enough."""
    for row, place in zip(*np.nonzero(stacked >= LABELLED_SHARE * extent), strict=True):
        colour = PART_COLOURS[PARTS[place]]
        ink = INK if colour in (GRID, IDLE) else PAPER if colour in DARK else INK_ON_COLOUR
        text = axes.text(
            lefts[row, place] + stacked[row, place] / 2, row, three_digits(stacked[row, place]),
            ha="center", va="center_baseline", fontsize=8, color=ink,
        )  # fmt: skip
        if colour == IDLE:
            text.set_bbox({"facecolor": IDLE, "edgecolor": "none", "pad": 1.0})


def legend_entries() -> list[Patch]:
    return [
        Patch(
            facecolor=colour, label=part, linewidth=0.4, edgecolor=MUTED if colour == IDLE else colour,
            hatch="//////" if colour == IDLE else None, hatch_linewidth=0.35,
        )
        for part, colour in PART_COLOURS.items()
    ]  # fmt: skip


def breakdown_table(times: RankTimes, basis: Basis, source: str) -> Table:
    """The parts by rank, in seconds of an epoch."""
    columns = [Column("rank", "count"), *(Column(name, "seconds", key=f"{key_of(name)}_seconds") for name in (*PARTS, HIDDEN))]
    return Table(
        BREAKDOWN,
        f"Where each rank's time goes: one epoch, mean over {epochs_words(times.epochs)}",
        [*columns, Column("epoch", "seconds", key="epoch_seconds")],
        [
            (
                rank,
                *parts.tolist(),
                float(parts[: len(PARTS)].sum()),
            )
            for rank, parts in enumerate(times.parts[[*PARTS, HIDDEN]].to_numpy(dtype=np.float64))
        ],
        basis,
        source,
        main=True,
    )


def key_of(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


def epochs_words(epochs: Sequence[int]) -> str:
    """``epoch 4``, ``epochs 2 to 39``, ``17 of epochs 2 to 39``."""
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    whole = f"epochs {epochs[0]} to {epochs[-1]}"
    return whole if len(epochs) == epochs[-1] - epochs[0] + 1 else f"{len(epochs)} of {whole}"


def imbalance_table(trace: Trace, times: RankTimes, devices: Sequence[str], basis: Basis, source: str) -> Table:
    """What each rank has to do beside the mean, and how much the others wait for it."""
    compute = times.parts["compute"] + times.parts["quantise"]
    own = trace.spans[(trace.spans["phase"] == TRAIN) & trace.spans["epoch"].isin(times.epochs)]
    traffic = own[(own["stream"] == COMPUTE) & (own["op"] == "Exchange")].groupby("rank")[["bytes_out", "bytes_in"]].sum()
    traffic = traffic.reindex(times.parts.index, fill_value=0) / len(times.epochs)
    parts = workload_parts(trace)
    last = last_shares(last_to_send(trace, times.epochs), len(times.parts))
    holdups = times.holdups
    rows = []
    for rank in times.parts.index.tolist():
        part = parts[rank] if rank < len(parts) else None
        rows.append(
            (
                rank,
                devices[rank] if rank < len(devices) else None,
                float(compute[rank]),
                float(compute[rank] / compute.mean()) if compute.mean() else None,
                *((None,) * 3 if part is None else (part.own, part.nnz_central + part.nnz_marginal, part.halo)),
                *traffic.loc[rank].tolist(),
                float(last[rank]),
                float(holdups[rank]),
                float(holdups[rank] / times.epoch_seconds),
            )
        )
    slowest = int(holdups.to_numpy().argmax())
    return Table(
        IMBALANCE,
        f"Stragglers and imbalance, an epoch, mean over {epochs_words(times.epochs)}",
        (
            Column("rank", "count"),
            Column("device"),
            Column("computing", "seconds", key="compute_seconds"),
            Column("of the mean", "ratio", key="compute_over_mean"),
            Column("own rows", "count"),
            Column("nonzeros", "count"),
            Column("halo rows", "count"),
            Column("sends", "bytes", key="bytes_out"),
            Column("receives", "bytes", key="bytes_in"),
            Column("last to send", "percent", key="last_share"),
            Column("holds up each other rank by", "seconds", key="holdup_seconds"),
            Column("of the epoch", "percent", key="holdup_share"),
        ),
        rows,
        basis,
        source,
        emphasised=frozenset({slowest} if len(rows) > 1 and holdups.iloc[slowest] > 0 else ()),
    )


def workload_parts(trace: Trace) -> Sequence[Any]:
    """The statistics of each rank's part; none where the trace does not say."""
    try:
        return Workload.from_json(trace.manifest.workload).parts
    except (KeyError, TypeError):
        return ()


def imbalance_words(table: Table) -> list[str]:
    """Largest over mean of what ranks compute, hold and send: one line."""
    if len(table.rows) < 2:
        return []
    words = []
    for name in ("computing", "own rows", "nonzeros", "halo rows", "sends"):
        place = next(at for at, column in enumerate(table.columns) if column.name == name)
        values = [float(row[place]) for row in table.rows if isinstance(row[place], int | float)]  # type: ignore[arg-type]
        if values and sum(values):
            words.append(f"{name} {three_digits(max(values) * len(values) / sum(values))}")
    return [f"The most loaded rank over the mean: {', '.join(words)}."] if words else []
