import csv
import html as html_text
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from pages import Page, assert_references_resolve, assert_stands_alone, headings

from halocast.errors import MisuseError
from halocast.reports.document import (
    Basis,
    Column,
    Document,
    Fact,
    Picture,
    Question,
    Questions,
    Section,
    Table,
    Text,
    Tiles,
)
from halocast.reports.figures import headline, new_figure
from halocast.reports.page import marks_of
from halocast.reports.render import MOST_MARKDOWN, MOST_STATIC, as_json, embedded, html, markdown, plain, render

GLYPHS = ("path", "use", "g")
"""What matplotlib draws letters with."""
NASTY = "</script><script>alert('x')</script><!-- & $\\frac{1}{0}$ --> \"quoted\" | `code` ]]> {{ 7 * 7 }}"


def drawn(text):
    """A figure with the text in it, and what it says under the pointer."""
    figure = new_figure(2.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1])
    headline(axes, text, text)
    return figure, marks_of(figure, axes, [0, 1], [0, 1], [text, f"{text}\nsecond line"])


def make_document(text="plain text", rows=4):
    figure, marks = drawn(text)
    long = [(f"{text} {number}", number / 7, None if number % 5 == 0 else number) for number in range(MOST_STATIC + 40)]
    return Document(
        kind="train",
        title=text,
        lead=text,
        verdict=text,
        sections=[
            Section("", [Tiles([Fact(text, text, Basis.MEASURED, text, "short"), Fact("b", "2 s", Basis.FORECAST)])]),
            Section(
                text,
                [
                    Text(text, [text, text]),
                    Questions([Question(text, text, Basis.ASSUMED, "short")]),
                    Picture("figure", figure, text, Basis.FORECAST, text, marks, "short"),
                    Picture(
                        "own",
                        Markup('<svg id="own-svg"></svg>'),
                        text,
                        rows="long",
                        script="gantt.js",
                        script_data={"texts": [text], "x": 1},
                    ),
                ],
            ),
            Section(
                "Tables",
                [
                    Table(
                        "short",
                        text,
                        (Column(text), Column("time", "seconds", Basis.ASSUMED, key="time_seconds")),
                        [(text, 0.5 * row) for row in range(rows)],
                        Basis.MEASURED,
                        text,
                        emphasised=frozenset({1}),
                        main=True,
                    ),
                    Table(
                        "long", text, (Column("name"), Column("share", "percent"), Column("count", "count")), long, folded=True
                    ),
                ],
            ),
        ],
        notes=[text],
        data={"epoch_seconds": {"median": np.float64(0.5)}, "names": (text,), "missing": float("nan")},
        footer=text,
        next_command=text,
    )


class Everything(Page):
    """What a browser shows, and what scripts read, kept apart."""

    def __init__(self, document):
        self.data, self.shown = [], []
        super().__init__(document)

    def handle_data(self, data):
        (self.data if self.open and self.open[-1] == "script" else self.shown).append(data)


def test_names_are_text_wherever_they_stand():
    clean, nasty = html(make_document("plain text")), html(make_document(NASTY))
    found = Everything(nasty)
    outside = [[tag for tag, _ in page.elements if tag not in GLYPHS] for page in (Page(clean), found)]
    assert outside[0] == outside[1]  # not one element more
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in Page(clean).elements}
    assert "<!--" not in nasty
    assert "49" not in "".join(found.shown)  # nothing is rendered as a template
    assert sum(NASTY in text for text in found.shown) >= 20
    labels = [attributes["aria-label"] for _, attributes in found.elements if "aria-label" in attributes]
    assert sum(NASTY in label for label in labels) >= 4
    for element in re.findall(r"<script[^>]*>(.*?)</script>", nasty, flags=re.DOTALL):
        assert "<!--" not in element


def test_what_scripts_read_is_what_was_given():
    document = make_document(NASTY)
    data = [json.loads(text) for text in Everything(html(document)).data if text.lstrip().startswith("{")]
    marks, figure, table = (next(each for each in data if key in each) for key in ("y", "texts", "columns"))
    assert marks["texts"] == [NASTY, f"{NASTY}\nsecond line"]
    assert figure is marks
    assert {"texts": [NASTY], "x": 1} in data
    assert table["columns"][0]["values"][3] == f"{NASTY} 3"
    assert table["columns"][1]["texts"][7] == "100 %"
    assert table["columns"][2]["values"][5] is None
    assert [column["texts"] is None for column in table["columns"]] == [True, False, True]  # counts below 1,000 are themselves


@given(st.text(alphabet="<>&'\"/!-\\su2028\u2028\u2029]"))
def test_embedded_json_reads_back_and_ends_no_script(text):
    found = str(embedded({"text": text}))
    assert json.loads(found) == {"text": text}
    assert not set(found) & set("<>&\u2028\u2029")


def test_the_page_stands_alone_and_its_references_resolve():
    document = html(make_document())
    assert_stands_alone(document, scripts=True)
    assert_references_resolve(document)
    assert headings(document) == [1, 2, 2, 2]
    scripts = [attributes for tag, attributes in Page(document).elements if tag == "script"]
    assert sum("type" not in attributes for attributes in scripts) == 2  # page.js and gantt.js, once each


def test_tables_stand_in_the_page_or_are_paged():
    document = html(make_document(rows=MOST_STATIC))
    short, long = re.findall(r"<tbody>(.*?)</tbody>", document, flags=re.DOTALL)
    assert short.count("<tr") == MOST_STATIC
    assert short.count('class="chosen"') == 1
    assert long.count("<tr") == 25
    assert "The first 25 of 240 rows" in document
    assert document.count("<details>") == 1
    assert html(make_document(rows=2)).count("data-sortable") == document.count("data-sortable") - 1  # two rows need no sorting


def test_every_number_says_on_what_it_rests():
    document = html(make_document())
    for basis in Basis:
        assert f'class="basis {basis}"' in document
    assert '<a class="basis measured" href="#short">measured</a>' in document
    assert '<a class="basis" href="#long">rows</a>' in document  # a figure of several bases: its rows say


def test_json_says_what_the_page_says():
    document = make_document(NASTY)
    (content,) = render(document, "json", Path("report.json")).values()
    found = json.loads(content)
    assert (found["report"], found["title"], found["verdict"], found["notes"]) == ("train", NASTY, NASTY, [NASTY])
    assert found["epoch_seconds"] == {"median": 0.5}
    assert found["missing"] is None
    assert found["facts"][0] == {"name": NASTY, "text": NASTY, "basis": "measured", "qualified": NASTY, "rows": "short"}
    assert found["questions"][0]["answer"] == NASTY
    assert found["tables"]["short"]["rows"][1]["time_seconds"] == 0.5
    assert found["tables"]["short"]["source"] == NASTY
    assert len(found["tables"]["long"]["rows"]) == MOST_STATIC + 40


def test_csv_comes_back(tmp_path):
    document = make_document(NASTY)
    files = render(document, "csv", tmp_path / "out.csv")
    assert sorted(path.name for path in files) == ["out-long.csv", "out.csv"]
    rows = list(csv.reader(io.StringIO(files[tmp_path / "out.csv"].decode())))
    assert rows[1] == [NASTY, "0.0"]
    back = pd.read_csv(io.BytesIO(files[tmp_path / "out-long.csv"]))
    table = document.blocks(Table)[1]
    assert back["name"].tolist() == [row[0] for row in table.rows]
    assert back["share"].tolist() == [row[1] for row in table.rows]  # every digit
    assert [None if math.isnan(value) else value for value in back["count"]] == [row[2] for row in table.rows]


def test_csv_needs_a_table(tmp_path):
    document = Document("train", "a", "b", "c", [Section("", [Text("words")])])
    with pytest.raises(MisuseError, match="no table"):
        render(document, "csv", tmp_path / "out.csv")


def test_markdown_cells_end_where_they_should():
    text = markdown(make_document(NASTY, rows=MOST_MARKDOWN + 3))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in tables[: MOST_MARKDOWN + 2]}
    assert bars == {3}
    assert "and 3 more rows" in text
    outside = re.sub(r"(`+) ?(.*?)(?<!`)\1(?!`)", "", text)  # a code span ends where its own number of backticks is
    assert not re.search(r"(?<!\\)<", outside)
    assert text.startswith("# ")
    assert html_text.unescape(text).count(plain(NASTY)) >= 15


def test_formats_that_are_not_there(tmp_path):
    with pytest.raises(MisuseError, match=r"--format htm is unknown; did you mean 'html'\?"):
        render(make_document(), "htm", tmp_path / "out.htm")


def test_the_same_document_gives_the_same_page():
    assert html(make_document()) == html(make_document())


def test_numpy_and_missing_values_are_plain_json():
    table = Table(
        "rows", "Rows", (Column("a", "count"), Column("b", "number")), [(np.int64(3), np.float64("nan")), (pd.NA, np.inf)]
    )
    document = Document("train", "a", "b", "c", [Section("", [table])])
    assert as_json(document)["tables"]["rows"]["rows"] == [{"a": 3, "b": None}, {"a": None, "b": None}]
    assert "nan" not in html(document).split("<tbody>")[1].split("</tbody>")[0].lower()
