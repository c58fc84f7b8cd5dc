"""Names beside points of a figure, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from halocast.reports.figures import INK, PAPER

OFFSETS = (
    (10, 8),
    (10, -8),
    (-10, 8),
    (-10, -8),
    (0, 15),
    (0, -15),
    (16, 22),
    (-16, -22),
    (16, -22),
    (-16, 22),
    (30, 36),
    (-30, -36),
)
"""Points of 1/72 inch, tried in this order."""

CLEARANCE = 7.0
"""Between a name and the middle of a point that it must not cover: the radius of a ring."""


@dataclass(frozen=True)
class Name:
    """A text for a point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str = INK
    bold: bool = False


def name_points(figure: Figure, axes: Axes, names: Sequence[Name], avoided: Sequence[tuple[float, float]]) -> int:
    """Write each name where it covers neither another nor an `avoided` point; returns how many found a place.

    Names come in order of weight: where there is no room, the later ones go without. Layouts must be settled after this only
    by what stands outside the axes.
    """
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    points = axes.transData.transform(np.asarray(avoided, dtype=float).reshape(-1, 2))
    taken: list[Bbox] = []
    for each in names:
        for across, up in OFFSETS:
            text = axes.annotate(
                each.text,
                (each.x, each.y),
                (across, up),
                textcoords="offset points",
                ha="center" if across == 0 else "left" if across > 0 else "right",
                va="bottom" if up > 0 else "top",
                fontsize=8.5,
                fontweight="bold" if each.bold else "normal",
                color=each.colour,
                parse_math=False,
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
                arrowprops=None if abs(up) < 20 else {"arrowstyle": "-", "color": each.colour, "linewidth": 0.6, "shrinkB": 4},
                zorder=6,
            )
            box = text.get_window_extent().padded(2)
            around = box.padded(CLEARANCE * figure.dpi / 72)
            covers = ((points > around.min) & (points < around.max)).all(axis=1).any()
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not covers and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
    return len(taken)
