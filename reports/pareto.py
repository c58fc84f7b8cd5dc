"""What a planner compared: epoch time against variance, the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from halocast.reports.figures import BLUE, GRID, INK, MUTED, PAPER, VERMILION, headline, style

LABEL_LENGTH = 46
WIDE = 3.0
"""Epoch times that differ by more than this factor are drawn on a logarithmic axis."""
FEWEST_DECADES = 2
"""Below so many the axis names its ends, too: powers of ten alone would leave it bare."""


@dataclass(frozen=True)
class Candidate:
    """One way to train that the planner compared."""

    label: str
    epoch_seconds: float
    low: float
    high: float
    """Of the 90 % interval, seconds."""
    variance: float
    """Relative variance that rounding adds to the weights' gradient; 0: nothing is rounded."""
    peak_bytes: int = 0
    """Of the rank that needs most; 0: not known."""
    is_front: bool = False
    """No other is both faster and more exact."""
    is_chosen: bool = False


def runner_up(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first that was not chosen: candidates come in the planner's order, best first."""
    return next((each for each in candidates if not each.is_chosen), None)


def draw_candidates(axes: Axes, candidates: Sequence[Candidate]) -> None:
    """Each candidate with its 90 % interval; the front joined, the chosen one and the runner-up named."""
    times = np.array([1e3 * each.epoch_seconds for each in candidates])
    variances, ground = on_a_logarithm([each.variance for each in candidates])
    for each, height in zip(candidates, variances, strict=True):
        axes.hlines(height, 1e3 * each.low, 1e3 * each.high, color=GRID, linewidth=2.2, zorder=1)
    front = sorted(
        (time, height) for time, height, each in zip(times.tolist(), variances, candidates, strict=True) if each.is_front
    )
    if front:
        front_times, front_heights = zip(*front, strict=True)
        axes.step(front_times, front_heights, where="post", color=BLUE, linewidth=1.2, zorder=2)
        axes.scatter(front_times, front_heights, s=34, color=BLUE, linewidths=0, zorder=4, label="Pareto front")
    others = [index for index, each in enumerate(candidates) if not each.is_front]
    if others:
        heights = np.array(variances)[others]
        axes.scatter(times[others], heights, s=24, color=MUTED, linewidths=0, zorder=3, label="other candidates")
    style(axes, xlabel="epoch as forecast, ms; bars: 90 % interval", grid="x")
    axes.set_yscale("log")
    axes.margins(x=0.06, y=0.14)
    if times.max() > WIDE * times.min():
        show_times_on_a_logarithm(axes)
    axes.set_ylabel("relative variance of the gradient", fontsize=8.5, color=MUTED)
    show_variances(axes, variances, ground)
    name_candidates(axes, candidates, times.tolist(), variances)
    headline(axes, "What the planner compared", f"{len(candidates)} candidates, {len(front)} of them on the Pareto front")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper right", handletextpad=0.3)


def name_candidates(axes: Axes, candidates: Sequence[Candidate], times: Sequence[float], heights: Sequence[float]) -> None:
    """Ring and name the chosen one above its point, the runner-up below, each towards the middle of the axes."""
    left, right = axes.get_xlim()
    middle = sqrt(left * right) if axes.get_xscale() == "log" else (left + right) / 2
    second = runner_up(candidates)
    for each, time, height in zip(candidates, times, heights, strict=True):
        if not (each.is_chosen or each is second):
            continue
        colour = VERMILION if each.is_chosen else INK
        axes.scatter([time], [height], s=95, facecolors="none", edgecolors=colour, linewidths=1.5, zorder=5)
        text = each.label if len(each.label) <= LABEL_LENGTH else f"{each.label[: LABEL_LENGTH - 1]}…"
        axes.annotate(
            f"{'chosen' if each.is_chosen else 'runner-up'}: {text}",
            (time, height),
            (9 if time <= middle else -9, 8 if each.is_chosen else -8),
            textcoords="offset points",
            ha="left" if time <= middle else "right",
            va="bottom" if each.is_chosen else "top",
            fontsize=8.5,
            fontweight="bold" if each.is_chosen else "normal",
            color=colour,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
            zorder=6,
        )


def on_a_logarithm(variances: Sequence[float]) -> tuple[list[float], float | None]:
    """The variances with a place for 0 below all others, and that place; None where none is 0."""
    positive = [each for each in variances if each > 0.0]
    if len(positive) == len(variances):
        return list(variances), None
    ground = 10.0 ** floor(log10(min(positive)) - 0.7) if positive else 1.0
    return [each if each > 0.0 else ground for each in variances], ground


def show_times_on_a_logarithm(axes: Axes) -> None:
    """1, 2 and 5 of every decade as ticks."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def show_variances(axes: Axes, heights: Sequence[float], ground: float | None) -> None:
    """Powers of ten as ticks, few of them, and "0" where nothing is rounded."""
    positive = [each for each in heights if each != ground]
    ticks: list[float] = []
    if positive:
        low, high = min(positive), max(positive)
        first, last = ceil(log10(low)), floor(log10(high))
        ticks = [10.0**power for power in range(first, last + 1, max(1, (last - first) // 6 + 1))]
        if len(ticks) < FEWEST_DECADES:
            ticks = sorted({low, high})
    labels = [f"{tick:.0e}".replace("e-0", "e-").replace("e+00", "") if _is_decade(tick) else f"{tick:.2g}" for tick in ticks]
    if ground is not None:
        ticks, labels = [ground, *ticks], ["0, exact", *labels]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter(labels))
    axes.yaxis.set_minor_locator(NullLocator())


def _is_decade(value: float) -> bool:
    return value == 10.0 ** round(log10(value))
