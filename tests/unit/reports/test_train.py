import re
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, assert_references_resolve, assert_stands_alone
from synthetic import Scenario, write_synthetic_run

from halocast.errors import RunError
from halocast.reports.figures import view_epoch
from halocast.reports.train import TrainRun, covered, facts, rank_rows, render_page, write_train_report
from halocast.reports.words import byte_count
from halocast.traces.trace import read_manifest, read_trace, write_manifest


@pytest.fixture
def folder(tmp_path):
    write_synthetic_run(tmp_path / "trace", Scenario(epochs=3, bytes_per_second=2e8))
    return tmp_path / "trace"


def make_run(folder, **changes):
    epochs = np.arange(11)
    metrics = pd.DataFrame(
        {
            "epoch": epochs,
            "loss": 2.0 - 0.1 * epochs,
            "epoch_seconds": (100 + epochs) / 1000,
            "train": np.where(epochs % 2, 0.8, np.nan),
            "val": np.where(epochs % 2, 0.7, np.nan),
            "test": np.where(epochs % 2, 0.6, np.nan),
        }
    )
    run = {
        "name": "debian-sage",
        "method": "full",
        "model": "GraphSAGE, 3 layers of 128",
        "trace": read_trace(folder),
        "metrics": metrics,
        "bytes_per_epoch": 123_456_789,
        "exchange_bytes_per_epoch": 120_000_000,
        "peak_bytes": (812_000_000, 798_400_000),
        "accuracy": {"train": 0.8, "val": 0.7, "test": 0.61234},
        "next_command": "halocast export run --to perfetto",
    }
    return TrainRun(**{**run, **changes})


def test_facts(folder):
    assert dict(facts(make_run(folder))) == {
        "Graph": "debian: 63,666 nodes, 322,726 edges",
        "Model": "GraphSAGE, 3 layers of 128",
        "Method": "full",
        "Ranks": "2",
        "Epochs": "11",
        "Epoch time": "105 ms median, 101 ms p10, 109 ms p90",
        "Sent per epoch": "123 MB, 120 MB of it in halo exchanges",
        "Peak memory per rank": "798 MB to 812 MB",
        "Training loss": "1 in the last epoch",
        "Accuracy": "0.8000 training, 0.7000 validation, 0.6123 test",
    }


def test_facts_that_are_not_known_are_left_out(folder):
    run = make_run(folder, peak_bytes=(), accuracy={}, metrics=make_run(folder).metrics.iloc[:0])
    assert [name for name, _ in facts(run)] == ["Graph", "Model", "Method", "Ranks", "Epochs", "Sent per epoch"]
    Page(render_page(run))


def test_rank_table(folder):
    run = make_run(folder, peak_bytes=(5_000, 6_000_000))
    view = view_epoch(run.trace)
    spans = run.trace.spans[run.trace.spans["epoch"] == view.epoch]
    rows = rank_rows(run, view)
    assert [(row.rank, row.device, row.peak) for row in rows] == [(0, "cpu", "5.00 kB"), (1, "cpu", "6.00 MB")]
    for row in rows:
        own = spans[spans["rank"] == row.rank]
        waiting = own.loc[own["op"] == "Wait", "wall_ns"].sum() / 1e6
        computing = own.loc[own["stream"] == "compute", "wall_ns"].sum() / 1e6 - waiting
        assert row.waiting == f"{waiting:,.1f}"
        assert row.computing == f"{computing:,.1f}"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=20))
def test_covered_is_the_length_of_the_union(intervals):
    slices = pd.DataFrame(intervals, columns=["left", "width"], dtype=np.float64)
    points = {point for left, width in intervals for point in range(left, left + width)}
    assert covered(slices) == len(points)


def test_the_page_stands_alone(folder):
    document = render_page(make_run(folder))
    assert_stands_alone(document)


def test_ids_are_unique_and_references_resolve(folder):
    document = render_page(make_run(folder))
    assert_references_resolve(document)


def test_figures_follow_the_theme(folder):
    document = render_page(make_run(folder))
    assert "prefers-color-scheme: dark" in document
    assert "@media print" in document
    svg = "".join(re.findall(r"<svg.*?</svg>", document, flags=re.DOTALL))
    for colour in ("#1f2328", "#59636e", "#d5dae0", "#e9ecef"):
        assert colour not in svg
    for name in set(re.findall(r"var\((--\w+)\)", document)):
        assert document.count(f"{name}: #") == 2  # a light and a dark value
    svgs = [attributes for tag, attributes in Page(document).elements if tag == "svg"]
    assert [attributes["role"] for attributes in svgs] == ["img", "img"]
    assert svgs[0]["aria-label"] == f"Gantt chart of epoch {view_epoch(make_run(folder).trace).epoch} over 2 ranks"
    assert not any("width" in attributes or "height" in attributes for attributes in svgs)


NASTY = "<script>alert('x')</script><!-- & $\\frac{1}{0}$ --> \"quoted\""


def test_markup_in_names_is_text(folder):
    manifest = read_manifest(folder)
    graph = manifest.graph.model_copy(update={"name": NASTY, "fingerprint": NASTY})
    machine = manifest.machine.model_copy(update={"cpu": NASTY, "devices": (NASTY, NASTY)})
    nasty = {"graph": graph, "machine": machine, "date": NASTY, "versions": {NASTY: NASTY}, "halocast": NASTY}
    write_manifest(folder, manifest.model_copy(update=nasty))
    run = make_run(folder, name=NASTY, method=NASTY, model=NASTY, metric=NASTY, next_command=NASTY)
    document = render_page(run)
    page = Page(document)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<!--" not in document
    text = "".join(page.text)
    assert text.count(NASTY) >= 10


def test_notes_of_the_trace_are_shown(folder):
    assert 'class="notes"' not in render_page(make_run(folder))
    write_manifest(folder, read_manifest(folder).model_copy(update={"finished": False}))
    assert "<li>the run did not finish: its last seconds are missing</li>" in render_page(make_run(folder))


def test_the_same_run_gives_the_same_page(folder):
    assert render_page(make_run(folder)) == render_page(make_run(folder))


def test_both_files_are_written(folder, tmp_path):
    run = make_run(folder)
    png, html = write_train_report(run, tmp_path / "out" / "train.png", tmp_path / "out" / "train.html")
    assert html.read_text() == render_page(run)
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width == 1600
    assert 800 < height < 1200


def test_a_file_in_the_way_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write") as raised:
        write_train_report(make_run(folder), tmp_path / "file" / "train.png", tmp_path / "train.html")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (999_600, "1.00 MB"), (5e15, "5000 TB")],
)
def test_byte_counts(size, text):
    assert byte_count(size) == text
