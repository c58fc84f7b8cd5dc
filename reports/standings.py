"""Epoch times beside a reference's: ratios, how sure they are, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halocast.reports import figures
from halocast.reports.document import Basis, Column, Picture, Table, Value
from halocast.reports.estimates import Estimate, Scatter, ratio
from halocast.reports.page import marks_of
from halocast.reports.subjects import Group
from halocast.words import duration, three_digits, time_span

TIMES = "times"
"""Identity of the table."""


@dataclass(frozen=True)
class Standing:
    """A group beside the reference."""

    group: Group
    estimate: Estimate | None
    against: Estimate | None
    """Its epoch time over the reference's; None for the reference and where a time is not known."""

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio leaves 1 out."""
        return self.against is not None and not self.against.low <= 1.0 <= self.against.high


def standings_of(groups: Sequence[Group], scatter: Scatter | None) -> list[Standing]:
    """Every group with its epoch time and how that stands to the first one's."""
    estimates = [group.estimate(scatter) for group in groups]
    base = estimates[0]
    return [
        Standing(group, estimate, ratio(estimate, base) if place and estimate is not None and base is not None else None)
        for place, (group, estimate) in enumerate(zip(groups, estimates, strict=True))
    ]


def speed_words(standing: Standing) -> str:
    """``3.4 × faster (3.1 to 3.7)``."""
    words, between = speed(standing)
    return f"{words} ({' to '.join(between)})"


def speed(standing: Standing) -> tuple[str, tuple[str, str]]:
    """``3.4 × faster``, and its bounds."""
    found = standing.against
    assert found is not None
    slower = found.value > 1.0
    value, low, high = (found.value, found.low, found.high) if slower else (1 / found.value, 1 / found.high, 1 / found.low)
    digits = three_digits
    return f"{digits(value)} × {'slower' if slower else 'faster'}", (digits(low), digits(high))


def interval_words(standing: Standing) -> str:
    assert standing.estimate is not None
    level = 90 if standing.group.basis is Basis.FORECAST else 95
    return f"{level} % between {time_span(standing.estimate.low)} and {time_span(standing.estimate.high)}"


def times_picture(standings: Sequence[Standing]) -> Picture:
    """Epoch times with their intervals, on one axis; single runs as ticks where there are several."""
    known = [each for each in standings if each.estimate is not None]
    figure = figures.new_figure(min(12.0, 1.2 + 0.42 * max(2, len(known))))
    axes = figure.add_subplot()
    texts, values = [], []
    for row, each in enumerate(known):
        assert each.estimate is not None
        value, low, high = (1e3 * number for number in (each.estimate.value, each.estimate.low, each.estimate.high))
        is_forecast = each.group.basis is Basis.FORECAST
        colour = figures.MUTED if each is standings[0] else figures.BLUE
        axes.plot((low, high), (row, row), color=colour, linewidth=6, alpha=0.4, solid_capstyle="butt")
        axes.plot(value, row, marker="D" if is_forecast else "o", markersize=7, color=colour, markerfacecolor="none" if is_forecast else colour)  # noqa: E501 # fmt: skip
        if len(each.group.runs) > 1:
            medians = [1e3 * float(np.median(run)) for run in each.group.runs]
            axes.plot(medians, [row] * len(medians), linestyle="", marker="|", markersize=11, color=figures.INK)
        axes.annotate(duration(value), (max(value, high), row), (8, 0), textcoords="offset points", va="center", fontsize=8.5, color=figures.INK)  # noqa: E501 # fmt: skip
        texts.append(f"{each.group.name}\n{duration(value)}, {interval_words(each)}")
        values.append(value)
    axes.set_yticks(range(len(known)), [each.group.name for each in known], parse_math=False)
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max(1e3 * each.estimate.high for each in known if each.estimate is not None))
    figures.style(axes, xlabel="ms of an epoch", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=figures.INK)
    figures.headline(
        axes,
        "Epoch time",
        "dots: medians; hollow: forecast; bands: 95 % of what was measured, 90 % of a forecast; strokes: single runs",
    )
    return Picture(
        "times-picture",
        figure,
        "Epoch times: " + "; ".join(text.replace("\n", " ") for text in texts),
        marks=marks_of(figure, axes, values, range(len(values)), texts),
        rows=TIMES,
    )


def times_table(standings: Sequence[Standing], scatter: Scatter | None) -> Table:
    """A row a group."""
    rows: list[Sequence[Value]] = []
    for each in standings:
        known, against = each.estimate, each.against
        rows.append(
            (
                each.group.name,
                str(each.group.basis),
                len(each.group.members),
                sum(len(run) for run in each.group.runs) or None,
                *((None,) * 3 if known is None else (known.value, known.low, known.high)),
                *((None,) * 3 if against is None else (against.value, against.low, against.high)),
                "reference" if each is standings[0] else "" if against is None else "yes" if each.differs else "no",
            )
        )
    counted = (
        "" if scatter is None else f"; runs of one configuration scatter by {100 * scatter.deviation:.1f} %, which is counted"
    )
    return Table(
        TIMES,
        f"Epoch times: 95 % intervals of measured ones, 90 % of forecasts{counted}",
        (
            Column("name"),
            Column("basis"),
            Column("runs", "count"),
            Column("epochs", "count"),
            Column("epoch", "seconds", key="epoch_seconds"),
            Column("low", "seconds", key="low_seconds"),
            Column("high", "seconds", key="high_seconds"),
            Column("of the reference's", "ratio", key="ratio"),
            Column("from", "ratio", key="ratio_low"),
            Column("to", "ratio", key="ratio_high"),
            Column("differs"),
        ),
        rows,
        main=True,
    )
