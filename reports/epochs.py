"""Epoch times one after another, and which of them stand out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from halocast.reports.document import Basis, Column, Picture, Table
from halocast.reports.figures import BLUE, INK, MUTED, VERMILION, headline, new_figure, style
from halocast.reports.page import marks_of
from halocast.words import duration, time_span

EPOCHS = "epochs"
"""Identity of the table."""
FENCE = 3.0
"""An outlier is so many quartile ranges above the upper quartile: "far out" (J. Tukey, Exploratory Data Analysis, 1977)."""
HEIGHT = 2.9
MOST_NAMED = 5

Floats = npt.NDArray[np.float64]


def outliers(seconds: Floats) -> npt.NDArray[np.bool_]:
    """Epochs that took far longer than the others."""
    known = seconds[np.isfinite(seconds)]
    if len(known) < 4:
        return np.zeros(len(seconds), dtype=bool)
    low, high = np.quantile(known, (0.25, 0.75))
    return np.asarray(seconds > high + FENCE * (high - low))


def epochs_picture(
    metrics: pd.DataFrame, warm_up: int, basis: Basis, forecast: tuple[float, float, float] | None = None
) -> Picture:
    """Epoch times over epochs; outliers are ringed, a forecast's interval is shaded.

    `forecast`: low, value and high, in seconds. `warm_up`: first epochs, which do not count.
    """
    known = metrics.dropna(subset="epoch_seconds")
    epochs, times = known["epoch"].to_numpy(), 1e3 * known["epoch_seconds"].to_numpy(dtype=np.float64)
    far = outliers(times)
    counted = times[epochs >= warm_up] if (epochs >= warm_up).any() else times
    median = float(np.median(counted))
    figure = new_figure(HEIGHT)
    axes = figure.add_subplot()
    if forecast is not None:
        low, value, high = (1e3 * each for each in forecast)
        axes.axhspan(low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=0.4)
        axes.axhline(value, color=BLUE, linewidth=1.2, zorder=0.5)
    axes.plot(epochs, times, color=MUTED, linewidth=0.6, marker="o", markersize=3, markerfacecolor=INK, markeredgewidth=0)
    axes.axhline(median, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(epochs[far], times[far], marker="o", markersize=8, markerfacecolor="none", color=VERMILION, linestyle="")
    for epoch, value in sorted(zip(epochs[far], times[far], strict=True), key=lambda each: -each[1])[:MOST_NAMED]:
        axes.annotate(f"{epoch:.0f}", (epoch, value), (7, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    style(axes, xlabel="epoch", grid="y")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms", fontsize=8.5, color=MUTED)
    shaded = "" if forecast is None else f"; forecast {duration(1e3 * forecast[1])} (line), 90 % interval shaded"
    ringed = f"; {int(far.sum())} far above the others, ringed" if far.any() else ""
    low, high = np.quantile(counted, (0.1, 0.9))
    headline(
        axes, f"Epochs take {duration(median)} in the median", f"p10 {duration(low)}, p90 {duration(high)}{ringed}{shaded}"
    )
    texts = [f"epoch {epoch:.0f}\n{duration(value)}" for epoch, value in zip(epochs, times, strict=True)]
    return Picture(
        f"{EPOCHS}-picture",
        figure,
        f"Epoch times against the epoch: {duration(median)} in the median{ringed}{shaded}",
        basis,
        caption=f"The first {warm_up} epochs warm up and do not count." if warm_up else "",
        marks=marks_of(figure, axes, epochs, times, texts),
        rows=EPOCHS,
    )


def epochs_table(metrics: pd.DataFrame, metric: str, basis: Basis, source: str) -> Table:
    """A row an epoch."""
    far = outliers(metrics["epoch_seconds"].to_numpy(dtype=np.float64))
    names = ("epoch", "loss", "epoch_seconds", "train", "val", "test")
    rows = [
        tuple(None if isinstance(value, float) and not np.isfinite(value) else value for value in row)
        for row in zip(*(metrics[name].tolist() for name in names), strict=True)
    ]
    return Table(
        EPOCHS,
        "Epochs",
        (
            Column("epoch", "count"),
            Column("training loss", "number", key="loss"),
            Column("time", "seconds", key="epoch_seconds"),
            Column(f"{metric} on training", "number", key="train"),
            Column("on validation", "number", key="val"),
            Column("on test", "number", key="test"),
        ),
        rows,
        basis,
        source,
        emphasised=frozenset(np.flatnonzero(far).tolist()),
        folded=True,
    )


def far_words(metrics: pd.DataFrame) -> str:
    """One sentence on the slowest epochs; empty where none stand out."""
    known = metrics.dropna(subset="epoch_seconds")
    seconds = known["epoch_seconds"].to_numpy(dtype=np.float64)
    far = outliers(seconds)
    if not far.any():
        return ""
    epochs = known["epoch"].to_numpy()[far]
    named = ", ".join(f"{epoch} ({time_span(value)})" for epoch, value in zip(epochs[:MOST_NAMED], seconds[far], strict=False))
    more = f" and {len(epochs) - MOST_NAMED} more" if len(epochs) > MOST_NAMED else ""
    return f"Far slower than the others: epoch{'s' * (len(epochs) > 1)} {named}{more}."
