"""A document as a file: one HTML page that stands alone, Markdown, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from markupsafe import Markup

from halocast.errors import MisuseError, nearest
from halocast.reports.document import Block, Column, Document, Marks, Picture, Questions, Table, Text, Tiles, Value
from halocast.reports.page import inline_svg, page_asset, page_template
from halocast.reports.words import written

FORMATS = MappingProxyType({"html": ".html", "md": ".md", "json": ".json", "csv": ".csv"})
MOST_STATIC = 200
"""Rows of a table that stand in the page as they are."""
SHOWN_FIRST = 25
"""Rows of a longer one that stand there before its script runs."""
SORTABLE_FROM = 3
REPEATING = 0.5
"""A column with at most this share of different values is embedded as those, and where each row has which."""
ROOM = ((80, "much"), (24, "long"), (12, "some"))
"""More letters than this in a column of texts need so much room: it would fold them into towers."""
MOST_MARKDOWN = 50
"""Rows of a table in Markdown."""


@dataclass(frozen=True)
class Cell:
    text: str
    value: str | None
    """What it is sorted by; None where it is not there."""
    is_text: bool


@dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    emphasised: bool


@dataclass(frozen=True)
class RenderedTable:
    rows: Sequence[Row]
    paged: bool
    sortable: bool
    data: Markup
    room: Sequence[str]
    """By column: which of `ROOM` its texts need, or ""."""


def render(document: Document, form: str, out: Path) -> dict[Path, bytes]:
    """The files of a document: `out`, and in CSV one more for each table but the main one.

    Raises MisuseError for an unknown format.
    """
    if form == "html":
        return {out: html(document).encode()}
    if form == "md":
        return {out: markdown(document).encode()}
    if form == "json":
        return {out: (json.dumps(as_json(document), indent=1, allow_nan=False) + "\n").encode()}
    if form == "csv":
        return csv_files(document, out)
    raise MisuseError(f"--format {form} is unknown{nearest(form, FORMATS)}")


# -- HTML -------------------------------------------------------------------------------------------------------


def html(document: Document, *, template: str = "document.html.j2", **more: object) -> str:
    """A page that needs nothing else: no network, no file beside it; its script only sorts, filters and points.

    `template`: one that extends it and knows what is in `more`.
    """
    pictures = document.blocks(Picture)
    return page_template(template).render(
        document=document,
        kind=lambda block: type(block).__name__,
        tables={each.identity: render_table(each) for each in document.blocks(Table)},
        svgs={each.identity: svg_of(each) for each in pictures},
        marks={each.identity: None if each.marks is None else embedded(marks_document(each.marks)) for each in pictures},
        script_data={each.identity: embedded(dict(each.script_data)) for each in pictures if each.script},
        scripts=[page_asset(name) for name in ("page.js", *sorted({each.script for each in pictures if each.script}))],
        **more,
    )


def svg_of(picture: Picture) -> Markup:
    if isinstance(picture.figure, Markup):
        return picture.figure
    return inline_svg(picture.figure, f"{picture.identity}-drawing", picture.description)


def render_table(table: Table) -> RenderedTable:
    paged = len(table.rows) > MOST_STATIC
    shown = table.rows[:SHOWN_FIRST] if paged else table.rows
    rows = [
        Row(
            [render_cell(column, value, table.currency) for column, value in zip(table.columns, row, strict=True)],
            emphasised=place in table.emphasised,
        )
        for place, row in enumerate(shown)
    ]
    data = embedded(table_document(table)) if paged else Markup()
    longest = [
        max((len(text) for row in table.rows if isinstance(text := row[place], str)), default=0)
        for place in range(len(table.columns))
    ]
    room = [next((name for letters, name in ROOM if each > letters), "") for each in longest]
    return RenderedTable(rows, paged, sortable=paged or len(table.rows) >= SORTABLE_FROM, data=data, room=room)


def render_cell(column: Column, value: Value, currency: str) -> Cell:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return Cell(written(value, column.form, currency), None if missing else str(value), column.form == "text")


def table_document(table: Table) -> dict[str, Any]:
    """All rows by column, values and texts; texts that are the values themselves are left out."""
    columns = []
    for place, column in enumerate(table.columns):
        values = [clean(row[place]) for row in table.rows]
        levels = list(dict.fromkeys(values))
        repeats = len(levels) <= REPEATING * len(values)
        listed = levels if repeats else values
        texts = [written(value, column.form, table.currency) for value in listed]
        is_plain = all(value is None or str(value) == text for value, text in zip(listed, texts, strict=True))
        places = {value: number for number, value in enumerate(levels)}
        at = [places[value] for value in values] if repeats else None
        columns.append({"values": listed, "texts": None if is_plain else texts, "at": at})
    return {"columns": columns, "emphasised": sorted(table.emphasised)}


def marks_document(marks: Marks) -> dict[str, Any]:
    """Places to a tenth of a pixel."""

    def rounded(values: Sequence[float]) -> list[float]:
        return [round(float(each), 1) for each in values]

    return {
        "x": rounded(marks.x),
        "y": rounded(marks.y),
        "width": rounded(marks.width),
        "height": rounded(marks.height),
        "texts": list(marks.texts),
    }


def embedded(data: object) -> Markup:
    """JSON that may stand in a script element: nothing in it can end that, or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# -- Markdown ---------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """Text and tables; figures are named by what they show."""
    lines = [f"# {plain(document.title)}", "", plain(document.lead), "", f"**{plain(document.verdict)}**", ""]
    lines += [f"- {plain(note)}" for note in document.notes] + [""] * bool(document.notes)
    for section in document.sections:
        if section.heading:
            lines += [f"## {plain(section.heading)}", ""]
        for block in section.blocks:
            lines += [*markdown_block(block), ""]
    if document.next_command:
        lines += [f"Next: {code(document.next_command)}", ""]
    return "\n".join([*lines, plain(document.footer), ""])


def markdown_block(block: Block) -> list[str]:
    if isinstance(block, Tiles):
        return [
            f"- {plain(each.name)}: **{plain(each.text)}** ({', '.join(filter(None, (each.basis, plain(each.qualified))))})"
            for each in block.facts
        ]
    if isinstance(block, Questions):
        return [f"- *{plain(each.question)}* {plain(each.answer)} ({each.basis})" for each in block.questions]
    if isinstance(block, Text):
        return [plain(block.text), ""] * bool(block.text) + [f"- {plain(point)}" for point in block.points]
    if isinstance(block, Picture):
        return [f"*(figure: {plain(block.description)})*"]
    return markdown_table(block)


def markdown_table(table: Table) -> list[str]:
    basis = f" ({table.basis})" if table.basis else ""
    source = f", from {code(table.source)}" if table.source else ""
    lines = [
        f"{plain(table.caption)}{basis}{source}",
        "",
        "| " + " | ".join(plain(each.name) for each in table.columns) + " |",
        "|" + "|".join(" --- " if each.form == "text" else " ---: " for each in table.columns) + "|",
    ]
    for row in table.rows[:MOST_MARKDOWN]:
        cells = [written(value, column.form, table.currency) for column, value in zip(table.columns, row, strict=True)]
        lines.append("| " + " | ".join(plain(cell) for cell in cells) + " |")
    if len(table.rows) > MOST_MARKDOWN:
        lines += ["", f"and {len(table.rows) - MOST_MARKDOWN:,} more rows: --format csv has them all"]
    return lines


def plain(text: str) -> str:
    """Text that Markdown takes as it is: no markup of its own, no end of a cell."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for character in "|<>*_`[]":
        flat = flat.replace(character, f"\\{character}")
    return flat


def code(text: str) -> str:
    """Text as a code span: between more backticks than it has itself."""
    flat = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", flat)), default=0) + 1)
    return f"{fence}{flat}{fence}" if len(fence) == 1 else f"{fence} {flat} {fence}"


# -- JSON and CSV -----------------------------------------------------------------------------------------------


def as_json(document: Document) -> dict[str, Any]:
    """Everything that the page says, as data: values in SI units."""
    facts = [each for block in document.blocks(Tiles) for each in block.facts]
    asked = [each for block in document.blocks(Questions) for each in block.questions]
    return {
        "report": document.kind,
        "title": document.title,
        "lead": document.lead,
        "verdict": document.verdict,
        "notes": list(document.notes),
        **{key: cleaned(value) for key, value in document.data.items()},
        "facts": [
            {"name": each.name, "text": each.text, "basis": str(each.basis), "qualified": each.qualified, "rows": each.rows}
            for each in facts
        ],
        "questions": [
            {"question": each.question, "answer": each.answer, "basis": str(each.basis), "rows": each.rows} for each in asked
        ],
        "tables": {
            each.identity: {
                "caption": each.caption,
                "basis": str(each.basis) if each.basis else None,
                "source": each.source,
                "rows": [
                    {column.identifier: clean(value) for column, value in zip(each.columns, row, strict=True)}
                    for row in each.rows
                ],
            }
            for each in document.blocks(Table)
        },
    }


def csv_files(document: Document, out: Path) -> dict[Path, bytes]:
    """The main table (or the first) in `out`, and each other one beside it. Raises MisuseError where there is none."""
    tables = document.blocks(Table)
    if not tables:
        raise MisuseError(f"--format csv: a {document.kind} report of this has no table")
    main = next((each for each in tables if each.main), tables[0])
    return {
        out if table is main else out.with_name(f"{out.stem}-{table.identity}{out.suffix or '.csv'}"): csv_of(table)
        for table in tables
    }


def csv_of(table: Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([each.identifier for each in table.columns])
    writer.writerows([["" if clean(value) is None else value for value in row] for row in table.rows])
    return text.getvalue().encode()


def clean(value: Any) -> Value:
    """A cell without NaN and NumPy's own types."""
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cleaned(value: Any) -> Any:
    """The same through lists and mappings."""
    if isinstance(value, dict):
        return {str(key): cleaned(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(each) for each in value]
    return clean(value)
