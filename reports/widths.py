"""The bits of a plan: which share of each exchange's messages has which width, and how that changed when it was renewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from halocast.reports.figures import INK, INK_ON_COLOUR, MUTED, PAPER, headline, legend_below, style

WIDTH_COLOURS: Mapping[int, str] = MappingProxyType(
    {
        1: "#fde725",
        2: "#b5de2b",
        3: "#6ece58",
        4: "#35b779",
        5: "#1f9e89",
        6: "#26828e",
        8: "#3a6f9e",
        16: "#5a4f9c",
        32: "#7a3b8f",
    }
)
"""Few bits are light, many dark, and none so dark that it is lost on a dark page (after matplotlib's viridis)."""
DARK_FROM = 8
"""Widths whose colour carries white text."""
LABELLED_SHARE = 0.06

Histogram = Mapping[int, int]
"""Messages by width in bits."""


class Exchange(Protocol):
    """What is drawn of an exchange, planned or traced."""

    @property
    def layer(self) -> int: ...
    @property
    def direction(self) -> str: ...
    @property
    def histogram(self) -> Histogram: ...


def mean_bits(histogram: Histogram) -> float:
    """Of a message, in bits; 0 without messages."""
    messages = sum(histogram.values())
    return sum(bits * count for bits, count in histogram.items()) / messages if messages else 0.0


def together(exchanges: Sequence[Exchange]) -> dict[int, int]:
    """The histogram of all exchanges' messages, by ascending width."""
    total: dict[int, int] = {}
    for exchange in exchanges:
        for bits, count in exchange.histogram.items():
            total[bits] = total.get(bits, 0) + count
    return dict(sorted(total.items()))


def draw_widths(axes: Axes, exchanges: Sequence[Exchange]) -> None:
    """A bar an exchange, layer 0 on top: shares of its messages by width, and beside it how many there are."""
    style(axes, xlabel="share of the exchange's messages", grid="x")
    everything = together(exchanges)
    for row, exchange in enumerate(exchanges):
        messages = sum(exchange.histogram.values())
        left = 0.0
        for bits, count in sorted(exchange.histogram.items()):
            share = count / messages if messages else 0.0
            axes.barh(row, share, 0.66, left=left, color=colour_of(bits), edgecolor=PAPER, linewidth=0.4)
            if share >= LABELLED_SHARE:
                ink = PAPER if bits >= DARK_FROM else INK_ON_COLOUR
                axes.text(left + share / 2, row, str(bits), ha="center", va="center_baseline", fontsize=8, color=ink)
            left += share
    names = [f"layer {each.layer} {each.direction}\n{sum(each.histogram.values()):,} messages" for each in exchanges]
    axes.set_yticks(range(len(exchanges)), names)
    axes.set_ylim(len(exchanges) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks((0.0, 0.5, 1.0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    headline(axes, "Messages by width", f"{mean_bits(everything):.2f} bits in the mean")
    draw_width_legend(axes, list(everything))


def draw_renewals(axes: Axes, history: Sequence[tuple[int, Histogram]], epochs: int) -> None:
    """Shares of all messages by width, from each renewal's epoch until the next one's, or the run's end at `epochs`."""
    ends = [epoch for epoch, _ in history[1:]] + [max(epochs, history[-1][0] + 1)]
    for (epoch, histogram), end in zip(history, ends, strict=True):
        messages, reached = max(1, sum(histogram.values())), 0.0
        for bits, count in sorted(histogram.items()):
            share, colour = count / messages, colour_of(bits)
            axes.bar(epoch, share, end - epoch, reached, align="edge", color=colour, edgecolor=PAPER, linewidth=0.3)
            reached += share
    first, last = (mean_bits(history[which][1]) for which in (0, -1))
    style(axes, xlabel="epoch", grid="y")
    axes.set(xlim=(history[0][0], ends[-1]), ylim=(0, 1))
    axes.set_ylabel("share of all messages", fontsize=8.5, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    times = f"{len(history) - 1} time{'s' * (len(history) != 2)}"
    headline(axes, "Widths as they were renewed", f"{times}; {first:.2f} bits a message at first, {last:.2f} at the end")
    draw_width_legend(axes, sorted({bits for _, histogram in history for bits in histogram}))


def colour_of(bits: int) -> str:
    """A width outside the codec's takes the colour of the next one it has."""
    return WIDTH_COLOURS[min((each for each in WIDTH_COLOURS if each >= bits), default=32)]


def draw_width_legend(axes: Axes, widths: Sequence[int]) -> None:
    """One entry a width; the unit stands at the first one, for want of room."""
    units = [f"{bits} bit{'s' * (bits > 1)}" if place == 0 else str(bits) for place, bits in enumerate(widths)]
    legend_below(
        axes.figure, [Patch(facecolor=colour_of(bits), label=unit) for bits, unit in zip(widths, units, strict=True)], columns=5
    )
