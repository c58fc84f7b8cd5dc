"""What all pages have in common: a template that stands alone, figures that follow its light or dark, files written whole."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halocast.errors import RunError
from halocast.reports import figures
from halocast.reports.document import Marks

PNG_DPI = 160
SVG_PIXELS = 72.0
"""Of matplotlib's SVG, to an inch."""
THEME_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        figures.INK: "var(--ink)",
        figures.MUTED: "var(--muted)",
        figures.GRID: "var(--line)",
        figures.IDLE: "var(--idle)",
        figures.BLUE: "var(--blue)",
        figures.PLUM: "var(--plum)",
    }
)
"""Colours of a figure that the page's style sets, for light and dark."""


def page_template(name: str) -> jinja2.Template:
    """A template of this package; what is put into it is escaped, and a name it does not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halocast.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def page_asset(name: str) -> Markup:
    """A script of this package, to stand in a page as it is."""
    return Markup(resources.files("halocast.reports").joinpath("templates", name).read_text(encoding="utf-8"))


def marks_of(figure: Figure, axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, texts: Sequence[str]) -> Marks:
    """What a finished figure says at points of its axes, in data coordinates; texts may have several lines."""
    figure.draw_without_rendering()  # layouts are settled in drawing
    across, up = axes.transData.transform(np.column_stack([np.asarray(x, float), np.asarray(y, float)])).T
    height = figure.get_figheight()
    scale = SVG_PIXELS / figure.dpi
    return Marks(x=(across * scale).tolist(), y=(SVG_PIXELS * height - up * scale).tolist(), texts=texts)


def boxes_of(
    figure: Figure,
    axes: Axes,
    left: npt.ArrayLike,
    top: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    texts: Sequence[str],
) -> Marks:
    """The same for boxes, in data coordinates of axes that run down (as those of bars and matrices do)."""
    x, y = np.asarray(left, float), np.asarray(top, float)
    corners = marks_of(figure, axes, x, y, texts)
    opposite = marks_of(figure, axes, x + np.asarray(width, float), y + np.asarray(height, float), texts)
    return Marks(
        x=corners.x,
        y=corners.y,
        texts=texts,
        width=np.subtract(opposite.x, corners.x).tolist(),
        height=np.subtract(opposite.y, corners.y).tolist(),
    )


def png(figure: Figure) -> bytes:
    """The figure as it stands in a README."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=PNG_DPI)
    return picture.getvalue()


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write each file, making its folder. Raises RunError: one line on what could not be written."""
    for path, content in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error


def inline_svg(figure: Figure, identity: str, description: str) -> Markup:
    """A figure as an SVG element to stand in a page: scaled by it, coloured by its style, ids its own."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": identity, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = re.sub(r'href="#', f'href="#{identity}-', svg)
    svg = re.sub(r"url\(#", f"url(#{identity}-", svg)
    svg = re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', svg)  # hatches: only a style may name a variable
    for colour, variable in THEME_COLOURS.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    svg = svg.replace(f"stroke: {figures.PAPER}", "stroke: var(--paper)")  # the text on dark spans stays white
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", label, 1))
