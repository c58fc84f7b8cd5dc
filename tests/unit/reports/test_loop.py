import dataclasses
import re
import struct

import numpy as np
import pandas as pd
import pytest
from pages import Page, assert_references_resolve, assert_stands_alone
from synthetic import Scenario, synthetic_manifest, write_synthetic_run

from halocast.errors import MisuseError, RunError
from halocast.reports.comparison import seconds_done
from halocast.reports.loop import (
    Epochs,
    LoopRun,
    Stage,
    by_reason,
    curves,
    loop_picture,
    network_words,
    render_page,
    seconds_range,
    tiles,
    timelines,
    write_loop_report,
)
from halocast.reports.pareto import Candidate
from halocast.reports.train import TrainRun
from halocast.traces.operations import Aggregate, Direction, Loss
from halocast.traces.plan import Baseline, Plan, PlannedExchange, PlannedForecast, PlannedGraph
from halocast.traces.trace import TraceWriter, read_manifest, read_trace, write_manifest

NASTY = "<script>alert('x')</script><!-- & $\\frac{1}{0}$ --> \"quoted\""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Traces of a plain run, of the forecast of 4 bits and of 4 bits as measured."""
    place = tmp_path_factory.mktemp("loop")
    for name, scenario in {
        "plain": Scenario(epochs=4, bytes_per_second=2e8),
        "forecast": Scenario(epochs=1, bytes_per_second=2e8, bits=4, noise=0.0),
        "planned": Scenario(epochs=4, bytes_per_second=2e8, bits=4, seed=3),
    }.items():
        write_synthetic_run(place / name, scenario)
    return place


def make_metrics(epochs, seconds, *, evaluated=True):
    index = np.arange(epochs)
    known = (index % 2 == 1) & evaluated
    return pd.DataFrame(
        {
            "epoch": index,
            "loss": 2.0 / (1 + index),
            "epoch_seconds": seconds + 0.001 * index,
            "train": np.where(known, 0.8, np.nan),
            "val": np.where(known, 0.7, np.nan),
            "test": np.where(known, 0.6, np.nan),
        }
    )


def make_train_run(trace, seconds, **changes):
    run = {
        "name": "debian, closed loop",
        "method": "full",
        "model": "GraphSAGE, 3 layers of 128",
        "trace": trace,
        "metrics": make_metrics(4, seconds),
        "bytes_per_epoch": 98_700_000,
        "exchange_bytes_per_epoch": 87_600_000,
        "peak_bytes": (812_000_000, 798_400_000),
        "accuracy": {"train": 0.8, "val": 0.7, "test": 0.6111},
    }
    return TrainRun(**{**run, **changes})


def make_plan(**changes):
    exchanges = (
        PlannedExchange(
            layer=0, direction=Direction.FORWARD, effect=0.5, variance=0.0123, bytes=2_345_000, histogram={2: 700, 8: 300}
        ),
        PlannedExchange(
            layer=2, direction=Direction.BACKWARD, effect=0.5, variance=0.00456, bytes=612_000, histogram={4: 1250}
        ),
    )
    plan = {
        "halocast": "0.1.0",
        "graph": PlannedGraph(name="debian", fingerprint="0123456789abcdef", nodes=63_666, spec="debian"),
        "world_size": 2,
        "model": {},
        "method": {"name": "adaqp"},
        "partition": {},
        "hosts": "shaped:200mbit",
        "exchanges": exchanges,
        "variance": 0.01686,
        "forecast": PlannedForecast(
            epoch_seconds=0.123, low=0.117, high=0.131, bytes_per_epoch=12_300_000, exchange_bytes_per_epoch=2_957_000,
            peak_bytes=(765_000_000, 765_000_000), extrapolated=("Quantize forward: too many rows", "2 ranks were not seen"),
        ),
        "baseline": Baseline(epoch_seconds=0.4, measured=True),
        "why": "The fastest of 3 whose variance stays below 2 %.",
        "notes": ("transform_first does not pay in layer 1", "runner-up: 8 bits everywhere"),
    }  # fmt: skip
    return Plan(**{**plan, **changes})


CANDIDATES = (
    Candidate("widths by price, cut", 0.123, 0.117, 0.131, 0.01686, 765_000_000, is_front=True, is_chosen=True),
    Candidate("8 bits everywhere", 0.15, 0.14, 0.16, 0.0002, 766_000_000, is_front=True),
    Candidate("32 bits", 0.3, 0.28, 0.33, 0.0, 0),
)
STAGES = (
    Stage("tracing", 2.5, is_head_start=True),
    Stage("planning", 1.5, is_head_start=True),
    Stage("training", 12.0),
)


def make_loop(folders, **changes):
    loop = {
        "plain": make_train_run(read_trace(folders / "plain"), 0.4),
        "planned": make_train_run(
            read_trace(folders / "planned"), 0.125, method="adaqp", accuracy={"train": 0.79, "val": 0.69, "test": 0.6086}
        ),
        "forecast_trace": read_trace(folders / "forecast"),
        "plan": make_plan(),
        "verdict": "Forecast 123 ms, measured 127 ms: 3.15 times faster than plain.",
        "plain_seconds": 0.4,
        "measured_seconds": 0.127,
        "candidates": CANDIDATES,
        "stages": STAGES,
        "history": ((0, {8: 2250}), (2, {2: 700, 4: 1250, 8: 300})),
        "files": {"plan": "runs/loop/plan", "planned run": "runs/loop/planned"},
        "next_command": "halocast train debian --plan runs/loop/plan",
    }
    return LoopRun(**{**loop, **changes})


def page_of(loop):
    return render_page(loop, Epochs(loop))


@pytest.fixture(scope="module")
def document(folders):
    """The page with nothing missing."""
    return page_of(make_loop(folders))


def words(document):
    """What a reader sees, blanks run together."""
    return " ".join("".join(Page(document).text).split())


def rows_of(document):
    """Cells of every table row."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", document, flags=re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL) for row in rows]


def svg_labels(document):
    elements = Page(document).elements
    return [attributes["aria-label"] for tag, attributes in elements if tag == "svg" and attributes.get("role") == "img"]


def test_the_verdict_and_its_numbers(folders, document):
    loop = make_loop(folders)
    assert f'<p class="verdict">{loop.verdict}</p>' in document
    assert tiles(loop) == [
        ("Forecast", "123 ms", "an epoch; 90 % between 117 and 131 ms"),
        ("Measured", "127 ms", "inside the interval; the forecast is off by −3.1 %"),
        ("Against plain", "3.15 × faster", "plain takes 400 ms an epoch"),
        ("Accuracy on test", "0.6086", "plain 0.6111, −0.0025"),
    ]


def test_a_forecast_that_missed_and_a_plan_that_does_not_pay(folders):
    found = {name: (value, text) for name, value, text in tiles(make_loop(folders, measured_seconds=0.5))}
    assert found["Measured"] == ("500 ms", "outside the interval; the forecast is off by −75.4 %")
    assert found["Against plain"] == ("1.25 × slower", "plain takes 400 ms an epoch")


@pytest.mark.parametrize(
    ("ours", "theirs", "baseline", "tile"),
    [
        ({"test": 0.61}, {}, 0.6, ("Accuracy on test", "0.6100", "plain 0.6000, +0.0100")),
        ({"test": 0.61}, {}, None, ("Accuracy on test", "0.6100", "plain was not evaluated")),
        ({"val": 0.7}, {"val": 0.7}, 0.6, ("Accuracy on validation", "0.7000", "plain 0.7000, +0.0000")),
        ({}, {"test": 0.6}, None, None),
    ],
)
def test_accuracy_is_compared_where_it_is_known(folders, ours, theirs, baseline, tile):
    loop = make_loop(folders, plan=make_plan(baseline=Baseline(epoch_seconds=0.4, measured=True, accuracy=baseline)))
    loop = dataclasses.replace(
        loop, plain=dataclasses.replace(loop.plain, accuracy=theirs), planned=dataclasses.replace(loop.planned, accuracy=ours)
    )
    assert tiles(loop)[3:] == ([tile] if tile else [])


def test_the_table_compares_plain_forecast_and_measured(document):
    rows = {row[0]: row[1:] for row in rows_of(document) if len(row) == 4}
    assert rows["Epoch time"] == ["400 ms", "123 ms (117 to 131 ms)", "127 ms"]
    assert rows["Exchanged per epoch"] == ["87.6 MB", "2.96 MB", "87.6 MB"]
    assert rows["Sent per epoch, all-reduce included"] == ["98.7 MB", "12.3 MB", "98.7 MB"]
    assert rows["Peak memory per rank"] == ["798 MB to 812 MB", "765 MB", "798 MB to 812 MB"]
    assert rows["Training loss at the end"] == ["0.5", "", "0.5"]
    assert rows["Accuracy on test"] == ["0.6111", "", "0.6086"]


def test_every_exchange_has_its_histogram(document):
    rows = rows_of(document)
    assert ["layer 0 forward", "1,000", "3.80", "700 at 2, 300 at 8", "2.35 MB", "0.0123"] in rows
    assert ["layer 2 backward", "1,250", "4.00", "1,250 at 4", "612 kB", "0.00456"] in rows
    assert "0.0169 of the whole epoch" in words(document)
    assert "Messages of the plan by width, for each exchange" in svg_labels(document)


def test_why_what_it_cost_and_what_is_next(document):
    text = words(document)
    for said in (
        "The fastest of 3 whose variance stays below 2 %.",
        "transform_first does not pay in layer 1",
        "runner-up: 8 bits everywhere",
        "extrapolated: too many rows: Quantize forward",
        "extrapolated: 2 ranks were not seen",
        "links of 200mbit",
        "a processor, 2 cores",
        "63,666 nodes",
        "runs/loop/planned",
        "halocast train debian --plan runs/loop/plan",
    ):
        assert said in text
    rows = rows_of(document)
    assert ["tracing", "2.50 s", "16 %", "before the plan&#39;s first epoch"] in rows
    assert ["training", "12.0 s", "75 %", ""] in rows
    assert ["all", "16.0 s", "", "4.00 s before the plan&#39;s first epoch"] in rows


def test_candidates_are_listed_in_the_planners_order(document):
    rows = [row for row in rows_of(document) if row[0] in {each.label for each in CANDIDATES}]
    assert rows == [
        ["widths by price, cut", "123 ms", "117 to 131 ms", "0.0169", "765 MB", "chosen, front"],
        ["8 bits everywhere", "150 ms", "140 to 160 ms", "0.0002", "766 MB", "runner-up, front"],
        ["32 bits", "300 ms", "280 to 330 ms", "0, exact", "", ""],
    ]


def test_more_candidates_than_fit_a_table_are_counted(folders):
    many = [dataclasses.replace(CANDIDATES[1], label=f"number {number}") for number in range(45)]
    text = words(page_of(make_loop(folders, candidates=many)))
    assert "number 39" in text
    assert "number 40" not in text
    assert "and 5 more, drawn above" in text


def test_the_three_epochs_share_one_time_scale(folders):
    loop = make_loop(folders)
    epochs = Epochs(loop)
    shown = timelines(loop, epochs)
    assert [each.title for each in shown] == [
        "Plain, measured: 400 ms",
        "The plan, forecast: 123 ms",
        "The plan, measured: 127 ms",
    ]
    assert [each.forecast for each in shown] == [None, (117.0, 123.0, 131.0), (117.0, 123.0, 131.0)]
    axes = loop_picture(loop, epochs).axes
    assert {each.get_xlim() for each in axes[:3]} == {(0.0, 1.01 * epochs.plain.milliseconds)}
    assert epochs.plain.milliseconds > epochs.measured.milliseconds > 100
    assert axes[2].get_xlabel() == "ms from the epoch's start"
    assert [each.get_xlabel() for each in axes[3:]] == [
        "epoch",
        "seconds, everything counted",
        "share of the exchange's messages",
    ]


def test_the_planned_run_starts_when_the_plan_was_made(folders):
    loop = make_loop(folders)
    plain, planned = curves(loop)
    np.testing.assert_array_equal(plain.seconds, seconds_done(loop.plain.trace, loop.plain.metrics))
    np.testing.assert_allclose(planned.seconds - seconds_done(loop.planned.trace, loop.planned.metrics), 4.0, rtol=1e-12)
    assert (plain.head_start, planned.head_start) == (0.0, 4.0)


NOTHING = PlannedForecast(epoch_seconds=0.1, low=0.09, high=0.11, bytes_per_epoch=0, exchange_bytes_per_epoch=0)


@pytest.mark.parametrize(
    ("changes", "lost", "figures"),
    [
        ({"plan": make_plan(exchanges=())}, ("messages by bits",), 5),
        ({"candidates": ()}, ("candidate",), 5),
        ({"stages": ()}, ("What the loop cost",), 6),
        ({"history": ()}, (), 5),
        ({"history": ((0, {8: 10}),)}, (), 5),
        ({"files": {}}, ("Files",), 6),
        ({"next_command": ""}, ("Next",), 6),
        ({"plan": make_plan(forecast=NOTHING, baseline=None, notes=())}, ("extrapolated",), 6),
    ],
)
def test_what_is_missing_is_left_out(folders, document, changes, lost, figures):
    found = page_of(make_loop(folders, **changes))
    for name in lost:
        assert name in words(document)
        assert name not in words(found)
    assert len(svg_labels(found)) == figures
    assert_references_resolve(found)


def test_a_plan_without_widths_says_so(folders):
    loop = make_loop(folders, plan=make_plan(exchanges=()))
    assert "The plan quantises no messages: rows are sent as they are." in words(page_of(loop))
    assert len(loop_picture(loop, Epochs(loop)).axes) == 5  # three epochs and two panels of losses


def test_runs_that_were_never_evaluated(folders):
    loop = make_loop(folders)
    bare = {"metrics": make_metrics(4, 0.2, evaluated=False), "accuracy": {}, "peak_bytes": ()}
    loop = dataclasses.replace(
        loop, plain=dataclasses.replace(loop.plain, **bare), planned=dataclasses.replace(loop.planned, **bare)
    )
    text = words(page_of(loop))
    assert "Accuracy on" not in text
    assert "Training loss at the end" in text


def test_one_rank(folders, tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(tmp_path, 0) as writer:
        writer.span("train", 0, 0, Aggregate(0), "compute", 0, 9_000_000, 0, 0)
        writer.span("train", 0, 1, Loss(0), "compute", 9_000_000, 1_000_000, 0, 0)
    trace = read_trace(tmp_path)
    alone = make_train_run(trace, 0.01, exchange_bytes_per_epoch=0, bytes_per_epoch=0, metrics=make_metrics(1, 0.01))
    plan = make_plan(world_size=1, exchanges=(), hosts="local", forecast=NOTHING)
    loop = make_loop(folders, plain=alone, planned=alone, forecast_trace=trace, plan=plan, history=())
    write_loop_report(loop, tmp_path / "loop.png", tmp_path / "loop.html")
    document = (tmp_path / "loop.html").read_text()
    assert "1 rank, no network between hosts" in words(document)
    assert ["compute", "10.0 ms, 100 %", "10.0 ms, 100 %", "10.0 ms, 100 %"] in rows_of(document)


def test_the_page_stands_alone(document):
    assert_stands_alone(document)
    assert_references_resolve(document)
    assert "prefers-color-scheme: dark" in document
    assert "@media print" in document
    svg = "".join(re.findall(r"<svg.*?</svg>", document, flags=re.DOTALL))
    for colour in ("#1f2328", "#59636e", "#d5dae0", "#e9ecef", "#0072b2"):
        assert colour not in svg
    assert len(svg_labels(document)) == 6
    assert all(svg_labels(document))


def test_markup_in_names_is_text(folders, tmp_path):
    write_synthetic_run(tmp_path, Scenario(epochs=1))
    manifest = read_manifest(tmp_path)
    graph = manifest.graph.model_copy(update={"name": NASTY})
    machine = manifest.machine.model_copy(update={"cpu": NASTY})
    write_manifest(tmp_path, manifest.model_copy(update={"graph": graph, "machine": machine, "date": NASTY}))
    planned = make_train_run(
        read_trace(tmp_path), 0.1, name=NASTY, method=NASTY, model=NASTY, metric="<i>R & C</i>", metrics=make_metrics(1, 0.1)
    )
    forecast = make_plan().forecast.model_copy(update={"extrapolated": (NASTY,)})
    loop = make_loop(
        folders,
        planned=planned,
        plan=make_plan(why=NASTY, notes=(NASTY,), hosts=f"shaped:{NASTY}", forecast=forecast),
        verdict=NASTY,
        candidates=[dataclasses.replace(each, label=NASTY) for each in CANDIDATES],
        stages=[Stage(NASTY, 1.0)],
        files={NASTY: NASTY},
        next_command=NASTY,
    )
    document = page_of(loop)
    page = Page(document)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<!--" not in document
    assert "i" not in {tag for tag, _ in page.elements}
    assert "".join(page.text).count(NASTY) >= 15


def test_notes_of_the_traces_are_shown(folders, document, tmp_path):
    write_synthetic_run(tmp_path, Scenario(epochs=2), finished=False)
    loop = make_loop(folders)
    assert "planned run: " not in document
    loop = dataclasses.replace(loop, planned=dataclasses.replace(loop.planned, trace=read_trace(tmp_path)))
    assert "<li>planned run: the run did not finish: its last seconds are missing</li>" in page_of(loop)


def test_both_files_are_written_and_the_same_again(folders, document, tmp_path):
    loop = make_loop(folders)
    write_loop_report(loop, tmp_path / "out" / "loop.png", tmp_path / "page" / "loop.html")
    assert (tmp_path / "page" / "loop.html").read_text() == document
    header = (tmp_path / "out" / "loop.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width == 1600
    assert 1200 < height < 1900


def test_a_file_in_the_way_is_one_line(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write") as raised:
        write_loop_report(make_loop(folders), tmp_path / "file" / "loop.png", tmp_path / "loop.html")
    assert "\n" not in str(raised.value)


def test_a_forecast_without_an_epoch_is_refused(folders, tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario()))
    with pytest.raises(MisuseError, match="no spans of a training epoch"):
        page_of(make_loop(folders, forecast_trace=read_trace(tmp_path)))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.19, 0.2151, "190 to 215 ms"),
        (0.95, 1.2, "950 ms to 1.20 s"),
        (2.0, 2.5, "2.00 to 2.50 s"),
        (9e-4, 9e-4, "0.900 to 0.900 ms"),
    ],
)
def test_ranges_name_their_unit_once(low, high, text):
    assert seconds_range(low, high) == text


@pytest.mark.parametrize(
    ("hosts", "text"),
    [("shaped:1gbit", "links of 1gbit"), ("local", "no network between hosts"), ("cluster", "cluster")],
)
def test_the_network_in_words(hosts, text):
    assert network_words(hosts) == text


def test_reasons_are_told_once():
    reasons = ("Quantize own 30x30: outside the range", "not calibrated", "Exchange: outside the range")
    assert by_reason(reasons) == ["outside the range: Quantize own 30x30, Exchange", "not calibrated"]
