"""What the scripts of a page do, in a headless Chromium; skipped where there is none."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import chromium, drive
from runs import write_run_folder
from synthetic import Scenario, write_synthetic_run
from whatif_folder import scenario_table, write_folder

from halocast.cli.folders import read_subject
from halocast.reports.capacity import capacity_document
from halocast.reports.compare import compare_document
from halocast.reports.document import Basis, Column, Document, Picture, Section, Table
from halocast.reports.figures import new_figure
from halocast.reports.forecast import forecast_document
from halocast.reports.page import boxes_of, marks_of
from halocast.reports.render import html
from halocast.reports.train import TrainRun, train_document
from halocast.simulator.whatif import read_whatif
from halocast.traces.trace import read_trace

NASTY = "<img src=x onerror=\"document.title='hit'\">"
MANY = 900
VALIDATION = Path(__file__).resolve().parents[3] / "reports" / "validation" / "validation.json"


def page(blocks):
    return html(Document("train", "A page", "lead", "verdict", [Section("Heading", blocks)]))


def static_table():
    rows = [("b", 2.0, 10), (NASTY, None, 9), ("a", 0.5, 100)]
    return Table("static", "Rows", (Column("name"), Column("time", "seconds"), Column("count", "count")), rows, Basis.MEASURED)


def long_table(*, folded=False):
    devices = ("cpu", "H100", NASTY)
    rows = [
        (f"run {number}", devices[number % 3], float((number * 7919) % MANY), number if number % 2 else None)
        for number in range(MANY)
    ]
    columns = (Column("name"), Column("device"), Column("time", "seconds"), Column("bytes", "bytes"))
    return Table("long", "Rows", columns, rows, folded=folded)


COLUMN = "const column = (box, at) => all(`#${box} tbody tr`).map((row) => row.cells[at].textContent);"


def test_a_click_on_a_head_sorts(tmp_path):
    found = drive(
        page([static_table()]),
        COLUMN
        + """
        const heads = all("#static th");
        const states = [column("static", 2)];
        for (const head of [2, 2, 1, 1, 0]) {
          heads[head].querySelector("button").click();
          states.push(column("static", head), heads.map((each) => each.getAttribute("aria-sort")));
        }
        return { states, title: document.title };
        """,
        tmp_path,
    )
    start, *states = found["states"]
    assert start == ["10", "9", "100"]
    assert states[0::2] == [
        ["9", "10", "100"],  # as numbers
        ["100", "10", "9"],
        ["500 ms", "2.00 s", "–"],  # what is missing comes last, either way
        ["2.00 s", "500 ms", "–"],
        [NASTY, "a", "b"],
    ]
    assert states[1::2][:2] == [[None, None, "ascending"], [None, None, "descending"]]
    assert found["title"] == "A page"  # nothing of the table was run


def test_long_tables_are_paged_sorted_and_filtered(tmp_path):
    found = drive(
        page([long_table()]),
        COLUMN
        + """
        const [search] = all("#long input"), [back, forth] = all("#long .tools button"), [select] = all("#long select");
        const where = document.querySelector("#long .tools span");
        const look = (at) => (
          { where: where.textContent, cells: column("long", at), back: back.disabled, forth: forth.disabled });
        const type = (text) => { search.value = text; search.dispatchEvent(new Event("input")); };
        const states = [look(0)];
        all("#long th")[2].querySelector("button").click(); states.push(look(2));
        forth.click(); states.push(look(2));
        all("#long th")[2].querySelector("button").click(); states.push(look(2));
        type("h100 RUN"); states.push(look(1));
        type("no such row"); states.push(look(0));
        type("");
        select.value = [...select.options].map((each) => each.value)[2];
        select.dispatchEvent(new Event("change")); states.push(look(1));
        all("#long th")[3].querySelector("button").click(); states.push(look(3));
        return { states, options: [...select.options].map((each) => each.textContent), images: all("img").length };
        """,
        tmp_path,
    )
    first, ascending, second, descending, filtered, nothing, chosen, missing = found["states"]
    assert first["where"] == "1 to 25 of 900"
    assert first["cells"] == [f"run {number}" for number in range(25)]
    assert (first["back"], first["forth"]) == (True, False)
    times = sorted((number * 7919) % MANY for number in range(MANY))
    assert ascending["cells"][:3] == ["0 s", "1.00 s", "2.00 s"]
    assert second["where"] == "26 to 50 of 900"
    assert second["cells"][0] == f"{times[25]:.1f} s"
    assert descending["where"] == "1 to 25 of 900"
    assert descending["cells"][0] == "15.0 min"
    assert filtered["where"] == "1 to 25 of 300"
    assert set(filtered["cells"]) == {"H100"}
    assert nothing == {"where": "0 to 0 of 0", "cells": [], "back": True, "forth": True}
    assert len(set(chosen["cells"])) == 1
    assert "–" not in missing["cells"]
    assert found["options"][0] == "device: all"
    assert sorted(found["options"][1:]) == sorted(["cpu", "H100", NASTY])
    assert found["images"] == 0


def speaking(boxes):
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    if boxes:
        axes.barh([0, 1], [4, 8])
        axes.set_ylim(1.5, -0.5)
        marks = boxes_of(figure, axes, [0, 0], [-0.4, 0.6], [4, 8], [0.8, 0.8], ["first", NASTY])
    else:
        axes.plot([0, 1, 2], [0, 5, 1], "o")
        marks = marks_of(figure, axes, [0, 1, 2], [0, 5, 1], ["first", f"second\n{NASTY}", "third"])
    return Picture("speaks", figure, "dots", marks=marks)


POINT = """
const drawing = document.querySelector("#speaks .drawing"), svg = drawing.querySelector("svg");
const tip = document.querySelector(".tip");
const marks = JSON.parse(document.querySelector("#speaks script.marks").textContent);
const at = (place, dx = 0, dy = 0) => {
  const box = svg.getScreenCTM();
  const x = marks.x[place] + (marks.width.length ? marks.width[place] / 2 : 0);
  const y = marks.y[place] + (marks.width.length ? marks.height[place] / 2 : 0);
  point(drawing, "pointermove", box.a * x + box.e + dx, box.d * y + box.f + dy);
  return tip.hidden ? null : tip.textContent;
};
"""


@pytest.mark.parametrize("boxes", [False, True])
def test_figures_speak_under_the_pointer(tmp_path, boxes):
    found = drive(
        page([speaking(boxes)]),
        POINT
        + """
        svg.scrollIntoView();
        const states = [at(0), at(1), at(0, 3, -2), at(0, 0, -2000)];
        at(1); point(drawing, "pointerleave", 0, 0);
        const left = tip.hidden;
        const key = (name) => {
          drawing.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
          return tip.hidden ? null : tip.textContent;
        };
        const tipBox = () => { const box = tip.getBoundingClientRect(); return [box.left, box.right, innerWidth]; };
        const keys = [key("ArrowRight"), key("ArrowRight"), key("ArrowLeft"), key("Escape")];
        at(1);
        return { states, left, keys, images: all("img").length, title: document.title, box: tipBox() };
        """,
        tmp_path,
        size="420,900",
    )
    second = NASTY if boxes else f"second\n{NASTY}"
    assert found["states"] == ["first", second, "first", None]
    assert found["left"]
    assert found["keys"] == ["first", second, "first", None]
    assert (found["images"], found["title"]) == (0, "A page")
    assert found["box"][0] >= 0


def test_links_open_folded_tables(tmp_path):
    figure = Picture("figure", new_figure(1.0), "nothing", Basis.MEASURED, rows="long")
    found = drive(
        page([figure, long_table(folded=True)]),
        """
        const fold = document.querySelector("details"), before = fold.open;
        document.querySelector("figcaption a").click();
        await new Promise((done) => setTimeout(done, 200));
        return { before, opened: fold.open };
        """,
        tmp_path,
    )
    assert found == {"before": False, "opened": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_synthetic_run(folder / "trace", Scenario(world_size=4, epochs=6, bytes_per_second=2e8))
    epochs = np.arange(6)
    metrics = pd.DataFrame(
        {
            "epoch": epochs,
            "loss": 2.0 - 0.1 * epochs,
            "epoch_seconds": 0.1 + 0.01 * epochs,
            "train": 0.8,
            "val": 0.7,
            "test": 0.6,
        }
    )
    return TrainRun(
        "a run",
        "full",
        "a model",
        read_trace(folder / "trace"),
        metrics,
        10**8,
        10**8,
        (10**8,) * 4,
        {"test": 0.6},
        next_command="ls",
    )


def test_the_gantt_chart_zooms_and_moves(tmp_path, run):
    found = drive(
        html(train_document(run)),
        """
        const figure = document.querySelector("#gantt"), drawing = figure.querySelector(".drawing");
        const svg = figure.querySelector("svg");
        const data = JSON.parse(figure.querySelector("script.script-data").textContent);
        const rects = [...figure.querySelectorAll(".spans rect")];
        const [zoomIn, zoomOut, whole] = figure.querySelectorAll(".tools button");
        const wide = () => rects.map((rect) => Number(rect.getAttribute("width")));
        const where = () => figure.querySelector(".tools span").textContent;
        const ticks = () => [...figure.querySelectorAll(".ticks text")].map((text) => Number(text.textContent));
        const labels = () => figure.querySelectorAll('.labels text:not([visibility="hidden"])').length;
        const key = (name) => drawing.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
        const state = () => ({ where: where(), width: wide()[0], ticks: ticks(), labels: labels() });
        const states = { start: state() };
        zoomIn.click(); zoomIn.click(); states.zoomed = state();
        key("ArrowRight"); states.moved = state();
        whole.click(); states.whole = state();
        key("+"); states.key = state(); key("-"); key("0");
        const box = svg.getScreenCTM();
        const [x, y] = [box.a * Number(svg.dataset.left) + box.e, box.d * 40 + box.f];
        const wheel = (ctrlKey) => {
          const at = { clientX: x, clientY: y, bubbles: true, cancelable: true };
          const event = new WheelEvent("wheel", { deltaY: -100, ctrlKey, ...at });
          drawing.dispatchEvent(event);
          return event.defaultPrevented;
        };
        states.scrolls = !wheel(false); states.unmoved = state();
        states.zooms = wheel(true); states.wheel = state();
        whole.click();
        const tip = figure.querySelector(".tip");
        point(rects[3], "pointermove", ...middle(rects[3]));
        states.says = [tip.hidden, tip.textContent, data.texts[3]];
        point(drawing, "pointermove", 0, 0); states.silent = tip.hidden;
        return { states, milliseconds: data.milliseconds, count: rects.length, spans: data.start.length };
        """,
        tmp_path,
    )
    states, whole = found["states"], found["milliseconds"]
    assert found["count"] == found["spans"] > 100
    assert states["zoomed"]["width"] == pytest.approx(4 * states["start"]["width"])
    assert states["zoomed"]["labels"] > states["start"]["labels"]
    assert states["whole"] == states["start"] == states["unmoved"]
    assert states["key"]["width"] == pytest.approx(2 * states["start"]["width"])

    def bounds(state):
        first, _, last, _ = state["where"].split()
        return float(first), float(last)

    assert bounds(states["start"]) == pytest.approx((0, whole), rel=1e-3)
    assert bounds(states["zoomed"]) == pytest.approx((whole * 3 / 8, whole * 5 / 8), rel=1e-3)
    assert bounds(states["moved"]) == pytest.approx((whole * 3 / 8 + whole / 20, whole * 5 / 8 + whole / 20), rel=1e-3)
    assert bounds(states["wheel"]) == pytest.approx((0, 0.8 * whole), rel=1e-3)
    for state in (states["start"], states["zoomed"], states["moved"]):
        low, high = bounds(state)
        assert 4 <= len(state["ticks"]) <= 13
        assert all(low <= tick <= high for tick in state["ticks"])
    assert (states["scrolls"], states["zooms"]) == (True, True)
    hidden, said, expected = states["says"]
    assert not hidden
    assert said == expected
    assert states["silent"]


def axe():
    """axe-core's source, from $AXE_CORE or an npm folder; skips where there is none."""
    places = [os.environ.get("AXE_CORE", ""), "node_modules/axe-core/axe.min.js", "/usr/share/javascript/axe-core/axe.min.js"]
    found = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if found is None:
        pytest.skip("no axe-core: npm install axe-core, and AXE_CORE=.../axe-core/axe.min.js")
    return found.read_text(encoding="utf-8")


def compare_page(folder, run):
    write_run_folder(folder / "plain")
    write_run_folder(folder / "quick", config={"method": {"name": "adaqp", "bits": "4"}}, start=0.05)
    return compare_document([read_subject(folder / name, name) for name in ("plain", "quick")])


DOCUMENTS = {
    "train": lambda folder, run: train_document(run),
    "compare": compare_page,
    "capacity": lambda folder, run: capacity_document(read_whatif(write_folder(folder / "whatif", scenario_table())), "whatif"),
    "forecast": lambda folder, run: forecast_document([], json.loads(VALIDATION.read_text()), "validation"),
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", ["1280,900", "390,800"])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_axe_finds_nothing_serious(tmp_path, run, kind, dark, size):
    chromium()
    library = axe()
    found = drive(
        html(DOCUMENTS[kind](tmp_path, run)),
        """
        all("details").forEach((fold) => { fold.open = true; });
        const found = await axe.run(document);
        const violations = found.violations.map((each) => [each.impact, each.id, each.nodes[0].html]);
        return { passes: found.passes.length, violations };
        """,
        tmp_path,
        libraries=[library],
        dark=dark,
        size=size,
        milliseconds=60_000,
    )
    assert found["passes"] > 20
    assert [each for each in found["violations"] if each[0] in ("serious", "critical")] == []
