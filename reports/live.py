"""The capacity page with controls: what `halocast serve` sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from halocast.reports.capacity_bars import PART_COLOURS
from halocast.reports.document import Document, Picture
from halocast.reports.page import marks_of, page_asset
from halocast.reports.render import embedded, html


def live_page(document: Document, live: Mapping[str, Any]) -> str:
    """The page of a capacity report with the controls of `live` on top; its scripts ask the server that it came from."""
    scale = pareto_scale(document)
    return html(
        document,
        template="live.html.j2",
        live=live,
        live_data=embedded({**live, "scale": scale}),
        live_script=page_asset("live.js"),
        part_colours=list(PART_COLOURS.values()),
    )


def live_scripts(document: Document) -> list[str]:
    """The scripts that `live_page` puts into the page, as they stand in their elements."""
    of_pictures = sorted({each.script for each in document.blocks(Picture) if each.script})
    return [f"\n{page_asset(name)}\n" for name in ("page.js", *of_pictures, "live.js")]


def pareto_scale(document: Document) -> dict[str, Any] | None:
    """Where times and costs lie in the Pareto figure: the ends of both axes, in data and in pixels."""
    picture = next((each for each in document.blocks(Picture) if each.identity == "pareto"), None)
    if picture is None or not isinstance(picture.figure, Figure):
        return None
    axes = picture.figure.axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    corners = marks_of(picture.figure, axes, [left, right], [bottom, top], ["", ""])
    return {
        "x": {"data": [left, right], "pixels": list(corners.x), "log": axes.get_xscale() == "log"},
        "y": {"data": [bottom, top], "pixels": list(corners.y), "log": axes.get_yscale() == "log"},
        "against": "cost" if document.data.get("currency") else "ranks",
    }
