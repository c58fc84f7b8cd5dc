import pytest

from halocast.reports.document import (
    Basis,
    Column,
    Document,
    Fact,
    Marks,
    Picture,
    Question,
    Questions,
    Section,
    Table,
    Text,
    Tiles,
)
from halocast.reports.figures import new_figure
from halocast.reports.page import boxes_of, marks_of
from halocast.reports.words import written
from halocast.words import byte_count, money, time_span


def table(identity="rows", **changes):
    return Table(identity, "Rows", (Column("name"), Column("epoch time", "seconds")), [("a", 0.5)], **changes)


def document(*blocks):
    return Document("train", "Title", "lead", "verdict", [Section("Heading", blocks)])


@pytest.mark.parametrize("identity", ["", "Rows", "1-rows", 'a"b', "a b", "a<b"])
def test_identities_may_stand_in_a_link(identity):
    with pytest.raises(AssertionError):
        table(identity)
    with pytest.raises(AssertionError):
        Picture(identity, new_figure(1), "a figure")


def test_rows_have_as_many_cells_as_there_are_columns():
    with pytest.raises(AssertionError):
        Table("rows", "Rows", (Column("name"),), [("a", "b")])


def test_identities_are_unique_and_links_lead_somewhere():
    with pytest.raises(AssertionError, match="used twice"):
        document(table(), table())
    with pytest.raises(AssertionError, match="used twice"):
        document(table(), Picture("rows", new_figure(1), "a figure"))
    for block in (
        Tiles([Fact("a", "1 s", Basis.MEASURED, rows="elsewhere")]),
        Questions([Question("Why?", "Because.", Basis.ASSUMED, rows="elsewhere")]),
        Picture("figure", new_figure(1), "a figure", rows="elsewhere"),
    ):
        with pytest.raises(AssertionError, match="elsewhere"):
            document(table(), block)


def test_blocks_are_found_by_kind_in_order():
    made = document(Text("a"), table("first"), Text("b"), table("second"))
    assert [each.identity for each in made.blocks(Table)] == ["first", "second"]
    assert [each.text for each in made.blocks(Text)] == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "identifier"),
    [(Column("epoch time"), "epoch_time"), (Column("no."), "no"), (Column("peak, GB", key="peak_bytes"), "peak_bytes")],
)
def test_names_in_files(column, identifier):
    assert column.identifier == identifier


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "seconds", "–"),
        (float("nan"), "bytes", "–"),
        ("as it is", "seconds", "as it is"),
        (0, "seconds", "0 s"),
        (0.000812, "seconds", "0.812 ms"),
        (1.27, "seconds", "1.27 s"),
        (750.0, "seconds", "12.5 min"),
        (3 * 3600, "seconds", "3.00 h"),
        (4.1 * 86400, "seconds", "4.10 days"),
        (512, "bytes", "512 B"),
        (1_270_000, "bytes", "1.27 MB"),
        (3.4, "ratio", "3.40 ×"),
        (0.123, "percent", "12 %"),
        (0.0123, "percent", "1.2 %"),
        (-0.0512, "change", "−5.1 %"),
        (4.2, "money", "EUR 4.20"),
        (0.0031, "money", "EUR 0.0031"),
        (12_345.6, "money", "EUR 12,346"),
        (2.335, "bits", "2.33"),
        (8, "bits", "8"),
        (12_345.0, "count", "12,345"),
        (0.01274, "number", "0.0127"),
        (12_700.4, "number", "12,700"),
        (2_705_666_560, "prefixed", "2.71 G"),
        (12.0, "prefixed", "12.0"),
        (3e16, "prefixed", "30.0 P"),
    ],
)
def test_numbers_in_words(value, form, text):
    assert written(value, form, "EUR") == text


def test_words_that_are_not_numbers():
    assert time_span(float("inf")) == "–"
    assert byte_count(1.5e15) == "1500 TB"
    assert money(0, "") == "0.00"


def pixels(figure, axes, x, y):
    """Where matplotlib puts a point, from the top left, at 72 to the inch."""
    across, up = axes.transData.transform((x, y))
    return across * 72 / figure.dpi, figure.get_figheight() * 72 - up * 72 / figure.dpi


def test_marks_are_where_matplotlib_draws():
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    axes.plot([0, 10], [5, 50])
    marks = marks_of(figure, axes, [0, 10], [5, 50], ["low", "high"])
    assert (marks.x[1], marks.y[1]) == pytest.approx(pixels(figure, axes, 10, 50))
    assert marks.x[0] < marks.x[1]
    assert marks.y[0] > marks.y[1]  # from the top
    assert not marks.width


def test_boxes_cover_bars():
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    axes.barh([0, 1], [4, 8])
    axes.set_ylim(1.5, -0.5)
    marks = boxes_of(figure, axes, [0, 0], [-0.4, 0.6], [4, 8], [0.8, 0.8], ["first", "second"])
    right, bottom = pixels(figure, axes, 8, 1.4)
    assert (marks.x[1] + marks.width[1], marks.y[1] + marks.height[1]) == pytest.approx((right, bottom))
    assert marks.y[0] < marks.y[1]
    assert all(size > 0 for size in (*marks.width, *marks.height))
    assert isinstance(marks, Marks)
