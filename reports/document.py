"""What a report is made of, before it becomes a page, Markdown, JSON or CSV.

A report builder turns data into a `Document` and knows nothing of markup; a renderer (`halocast.reports.render`) turns a
document into a file and knows nothing of GNNs. Every number says on what it rests, and where its rows are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeVar

from markupsafe import Markup
from matplotlib.figure import Figure

Value = float | int | str | None
"""A cell as data: SI units (seconds, bytes); None where there is nothing to say."""
Form = Literal["text", "count", "number", "seconds", "bytes", "ratio", "percent", "change", "money", "bits", "prefixed"]
"""How a value is written for people; see `halocast.reports.words.written`."""
IDENTITY = re.compile(r"[a-z][a-z0-9-]*")


class Basis(StrEnum):
    """On what a number rests."""

    MEASURED = "measured"
    FORECAST = "forecast"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class Fact:
    """One number that matters, in a tile."""

    name: str
    text: str
    """The value with its unit."""
    basis: Basis
    qualified: str = ""
    """What qualifies it: an interval, a comparison."""
    rows: str = ""
    """Identity of the table that it comes from."""


@dataclass(frozen=True)
class Tiles:
    """Facts side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `points` a list after it."""

    text: str = ""
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Question:
    """A question answered in a sentence."""

    question: str
    answer: str
    basis: Basis
    rows: str = ""
    """Identity of the table that the answer comes from."""


@dataclass(frozen=True)
class Questions:
    """Questions, each with its answer."""

    questions: Sequence[Question]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    form: Form = "text"
    basis: Basis | None = None
    """Where it is not the table's."""
    key: str = ""
    """Name in JSON and CSV, such as ``epoch_seconds``; by default made of `name`."""

    @property
    def identifier(self) -> str:
        return self.key or re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class Table:
    """Rows of values. Up to `MOST_STATIC` of them stand in the page; more are paged, sorted and filtered by its script."""

    identity: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    basis: Basis | None = None
    source: str = ""
    """The file that the rows come from, as users would find it."""
    emphasised: frozenset[int] = frozenset()
    """Rows that stand out."""
    currency: str = ""
    """Of columns of the form money."""
    folded: bool = False
    """Whether it opens only when asked for: what stands behind a figure."""
    main: bool = False
    """Whether this is the table that ``--format csv`` writes to the file itself."""

    def __post_init__(self) -> None:
        assert IDENTITY.fullmatch(self.identity), self.identity
        assert all(len(row) == len(self.columns) for row in self.rows), self.identity


@dataclass(frozen=True)
class Marks:
    """What a figure says under the pointer: texts at places, in pixels of the figure's SVG (72 to the inch, from the top left).

    Made by `halocast.reports.page.marks_of`.
    """

    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str]
    width: Sequence[float] = ()
    """Empty: marks are points, and the nearest one speaks; otherwise boxes from (x, y), and the one below the pointer does."""
    height: Sequence[float] = ()


@dataclass(frozen=True)
class Picture:
    """A figure."""

    identity: str
    figure: Figure | Markup
    """Markup: an SVG element of one's own, without ids of its own outside `identity`-..."""
    description: str
    """What it shows, for those who cannot see it: what is compared, and what comes out."""
    basis: Basis | None = None
    caption: str = ""
    marks: Marks | None = None
    rows: str = ""
    """Identity of the table that it draws."""
    script: str = ""
    """A script among the templates that brings the figure to life, such as ``gantt.js``; it reads `script_data`."""
    script_data: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert IDENTITY.fullmatch(self.identity), self.identity


Block = Tiles | Text | Questions | Table | Picture
Kind = TypeVar("Kind", Tiles, Text, Questions, Table, Picture)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    kind: str
    """train, forecast, capacity or compare."""
    title: str
    lead: str
    verdict: str
    """The sentence that one would say aloud."""
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    """What a reader must know before the numbers: unfinished, extrapolated, left out."""
    data: Mapping[str, object] = field(default_factory=dict)
    """What JSON has besides the tables: keys that scripts rely on."""
    footer: str = ""
    """Versions, machine, seed, fingerprint: what would repeat it."""
    next_command: str = ""

    def blocks(self, kind: type[Kind]) -> list[Kind]:
        """All blocks of one kind, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, kind)]

    def __post_init__(self) -> None:
        names = [each.identity for each in self.blocks(Table)] + [each.identity for each in self.blocks(Picture)]
        assert len(set(names)) == len(names), "identities are used twice"
        linked = {fact.rows for tiles in self.blocks(Tiles) for fact in tiles.facts}
        linked |= {each.rows for questions in self.blocks(Questions) for each in questions.questions}
        linked |= {each.rows for each in self.blocks(Picture)}
        assert linked <= {"", *names}, f"rows that are not there: {linked - {'', *names}}"
