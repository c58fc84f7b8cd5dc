"""One epoch as a Gantt chart to look into: an SVG of real text and page colours, which its script zooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

import pandas as pd
from markupsafe import Markup

from halocast.reports.document import Basis, Column, Picture, Table
from halocast.reports.figures import (
    COMPUTE_HEIGHT,
    DARK,
    IDLE,
    INK_ON_COLOUR,
    OPERATION_COLOURS,
    PAPER,
    UNKNOWN_COLOUR,
    EpochView,
    place_lanes,
)
from halocast.reports.page import THEME_COLOURS, page_template
from halocast.traces.trace import COMPUTE
from halocast.words import byte_count, duration

WIDTH, LEFT, RIGHT, TOP = 1000, 64, 8, 20
"""Pixels of the drawing: all of it, and beside and above the lanes."""
AXIS_HEIGHT, LEGEND_ROW = 38, 20
RANK_HEIGHT, LEAST_RANK_HEIGHT, TALLEST = 46, 9, 900
"""Pixels of a rank's lanes, and of all of them: many ranks get thinner ones."""
LABEL_WIDTH, LABEL_HEIGHT = 20, 11
"""Least pixels of a span that shows its layer."""
TICKS = 12
LEGEND_LETTER, LEGEND_GAP = 6.6, 34
SPANS = "epoch-spans"
"""Identity of the table of what the chart draws."""


@dataclass(frozen=True)
class Bar:
    """A span as it is drawn: place in ms, size in pixels."""

    x: float
    y: float
    width: float
    height: float
    style: Markup
    ink: str
    """Of its label."""
    label: str
    labelled: bool
    """Whether there is room for the label before zooming."""


@dataclass(frozen=True)
class Entry:
    """An entry of the legend."""

    x: float
    y: float
    style: Markup
    text: str


@dataclass(frozen=True)
class Tick:
    x: float
    text: str


def gantt(view: EpochView, basis: Basis, identity: str = "gantt", rows: str = SPANS) -> Picture:
    """The epoch: for each rank what it computes, and below that its messages in flight."""
    height = max(LEAST_RANK_HEIGHT, min(RANK_HEIGHT, TALLEST / view.world_size))
    placed = place_lanes(view.slices)
    bars = bars_of(placed, view.milliseconds, height, identity)
    legend = legend_of(sorted(set(placed["op"])), TOP + height * view.world_size + AXIS_HEIGHT, identity)
    every = max(1, round(13 / height))
    description = (
        f"Gantt chart of epoch {view.epoch}, {duration(view.milliseconds)} on {view.world_size} "
        f"rank{'s' * (view.world_size > 1)}: {100 * view.waiting:.0f} % of the ranks' time is waiting"
    )
    losses = view.slices[view.slices["op"] == "Loss"]
    turn = None if losses.empty else float((losses["left"] + losses["width"]).max())
    svg = page_template("gantt.svg.j2").render(
        identity=identity,
        description=description,
        width=WIDTH,
        height=legend[-1].y + LEGEND_ROW if legend else TOP + height * view.world_size + AXIS_HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=TOP + height * view.world_size,
        ranks=[(rank, TOP + height * (rank + COMPUTE_HEIGHT / 2)) for rank in range(0, view.world_size, every)],
        bars=bars,
        ticks=[Tick(across(each, view.milliseconds), f"{each:g}") for each in ticks(view.milliseconds)],
        turn=None if turn is None else across(turn, view.milliseconds),
        legend=legend,
    )
    return Picture(
        identity,
        Markup(svg),
        description,
        basis,
        caption=f"Epoch {view.epoch}{', the one of median time' if view.is_median else ''}: above what a rank computes, "
        "below its messages in flight; waiting is hatched. Zoom with the buttons, + and −, a double click, or Ctrl and the "
        "wheel; drag, or use the arrow keys, to move.",
        rows=rows,
        script="gantt.js",
        script_data={
            "milliseconds": round(view.milliseconds, 4),
            "turn": turn,
            "start": placed["left"].round(4).tolist(),
            "width": placed["width"].round(4).tolist(),
            "texts": span_texts(placed),
        },
    )


def bars_of(placed: pd.DataFrame, extent: float, height: float, identity: str) -> list[Bar]:
    """One a span, in the table's order."""
    bars = []
    columns = (placed[name].tolist() for name in ("op", "stream", "layer", "left", "width", "top", "height"))
    for op, stream, layer, left, width, top, share in zip(*columns, strict=True):
        colour = OPERATION_COLOURS.get(op, UNKNOWN_COLOUR)
        tall, wide = height * share, (WIDTH - RIGHT - LEFT) * width / extent
        labelled = tall >= LABEL_HEIGHT and layer >= 0 and op != "Wait" and stream == COMPUTE
        bars.append(
            Bar(
                x=across(left, extent),
                y=TOP + height * top,
                width=wide,
                height=tall,
                style=fill(op, identity),
                ink=PAPER if colour in DARK else INK_ON_COLOUR,
                label=f"L{layer}" if labelled else "",
                labelled=wide >= LABEL_WIDTH,
            )
        )
    return bars


def across(milliseconds: float, extent: float) -> float:
    """Pixels from the drawing's left edge."""
    return LEFT + (WIDTH - RIGHT - LEFT) * milliseconds / extent if extent else float(LEFT)


def fill(op: str, identity: str) -> Markup:
    """A span's style; waiting is hatched."""
    colour = OPERATION_COLOURS.get(op, UNKNOWN_COLOUR)
    if colour == IDLE:
        return Markup("fill: url(#{}-hatch)").format(identity)
    return Markup("fill: {}").format(THEME_COLOURS.get(colour, colour))


def ticks(extent: float) -> list[float]:
    """Round numbers from 0 to `extent`, at most `TICKS` of them after the first."""
    if extent <= 0:
        return [0.0]
    power = 10.0 ** floor(log10(extent / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * TICKS >= extent)
    return [step * place for place in range(int(extent / step) + 1)]


def legend_of(present: Sequence[str], top: float, identity: str) -> list[Entry]:
    """One entry a colour, in as many rows as it takes."""
    names: dict[str, list[str]] = {}
    for kind in [*OPERATION_COLOURS, *sorted(set(present) - set(OPERATION_COLOURS))]:
        if kind in present:
            names.setdefault(OPERATION_COLOURS.get(kind, UNKNOWN_COLOUR), []).append(kind)
    entries, x, y = [], float(LEFT), top
    for kinds in names.values():
        text = ", ".join(kinds)
        width = LEGEND_LETTER * len(text) + LEGEND_GAP
        if x + width > WIDTH:
            x, y = float(LEFT), y + LEGEND_ROW
        entries.append(Entry(x, y, fill(kinds[0], identity), text))
        x += width
    return entries


def span_texts(spans: pd.DataFrame) -> list[str]:
    """What each span says under the pointer, in lines."""
    columns = (
        spans[name].tolist()
        for name in (
            "rank",
            "op",
            "detail",
            "layer",
            "direction",
            "part",
            "peer",
            "stream",
            "left",
            "width",
            "bytes_out",
            "bytes_in",
        )
    )
    texts = []
    for rank, op, detail, layer, direction, part, peer, stream, left, width, sent, received in zip(*columns, strict=True):
        lines = [" ".join(filter(None, (f"rank {rank}: {op}", detail, "in flight" * (stream != COMPUTE))))]
        lines.append(f"layer {layer} {direction}, {part} rows" if layer >= 0 else str(direction))
        lines.append(f"{duration(width)}, from {duration(left)} on")
        if peer >= 0:
            lines.append(f"of rank {peer}")
        if sent or received:
            lines.append(f"{byte_count(sent)} out, {byte_count(received)} in")
        texts.append("\n".join(lines))
    return texts


def spans_table(view: EpochView, basis: Basis, source: str, identity: str = SPANS) -> Table:
    """The spans of the epoch, in order of rank and start."""
    spans = view.slices.sort_values(["rank", "left"], kind="stable")
    names = ("rank", "op", "detail", "layer", "direction", "part", "peer", "stream")
    rows = zip(
        *(spans[name].tolist() for name in names),
        (spans["left"] / 1e3).tolist(),
        (spans["width"] / 1e3).tolist(),
        (spans["cpu_ns"] / 1e9).tolist(),
        *(spans[name].tolist() for name in ("rows", "flops", "bytes_out", "bytes_in", "bits")),
        strict=True,
    )
    return Table(
        identity,
        f"Every operation of epoch {view.epoch}",
        (
            Column("rank", "count"),
            Column("operation"),
            Column("detail"),
            Column("layer", "count"),
            Column("direction"),
            Column("rows of"),
            Column("peer", "count"),
            Column("stream"),
            Column("start", "seconds", key="start_seconds"),
            Column("time", "seconds", key="wall_seconds"),
            Column("on its core", "seconds", key="cpu_seconds"),
            Column("rows", "count"),
            Column("flop", "prefixed", key="flops"),
            Column("bytes out", "bytes"),
            Column("bytes in", "bytes"),
            Column("bits", "bits"),
        ),
        [tuple(None if value == -1 else value for value in row) for row in rows],
        basis,
        source,
        folded=True,
    )
