"""The forecast report: runs beside their forecasts, and what a validation says of forecasts."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from documents import block, column, identities
from pages import Page
from synthetic import Scenario, write_synthetic_run

from halocast.errors import MisuseError
from halocast.reports.document import Tiles
from halocast.reports.forecast import ForecastPair, forecast_document
from halocast.reports.forecast_figures import Point, scatter_figure
from halocast.reports.forecast_validation import read_validation
from halocast.reports.render import as_json, html
from halocast.reports.train import TrainRun
from halocast.traces.trace import read_trace

VALIDATION = Path(__file__).parents[3] / "reports" / "validation" / "validation.json"
SECONDS = (0.9, 0.8, 0.2, 0.21, 0.25)
"""Epochs of a run; the first two warm up."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    write_synthetic_run(folder / "run", Scenario(world_size=2, epochs=5))
    write_synthetic_run(folder / "simulated", Scenario(world_size=2, epochs=1, noise=0.0))
    return read_trace(folder / "run"), read_trace(folder / "simulated")


def make_pair(traces, name="a run", **said):
    metrics = pd.DataFrame({"epoch": range(5), "loss": 1.0, "epoch_seconds": SECONDS, "train": 0.5, "val": 0.5, "test": 0.5})
    run = TrainRun(name, "full", "GCN", traces[0], metrics, 3_000_000, 2_000_000, [10_000_000, 8_000_000])
    forecast = {
        "epoch_seconds": 0.22, "low": 0.18, "high": 0.26, "bytes_per_epoch": 3_000_000, "exchange_bytes_per_epoch": 2_000_000,
        "peak_bytes": [9_000_000, 8_000_000], "extrapolated": [],
    }  # fmt: skip
    return ForecastPair(run, {**forecast, **said}, traces[1], name)


@pytest.fixture(scope="module")
def validation():
    return json.loads(VALIDATION.read_text())


def measured(configuration):
    return math.prod(configuration["runs"]) ** (1 / len(configuration["runs"]))


def test_one_run_inside_its_interval(traces):
    document = forecast_document([make_pair(traces)], None, "runs/1")
    assert document.verdict == "a run: 220 ms an epoch forecast, 210 ms measured: +4.8 %, inside the 90 % interval."
    assert document.data["runs"][0]["error"] == pytest.approx(0.22 / 0.21 - 1)
    assert {"epochs-1", "components-1", "amounts-1", "pairs"} <= identities(document)
    assert "scatter" not in identities(document)


def test_one_run_outside_and_beyond_what_was_calibrated(traces):
    pair = make_pair(traces, low=0.215, extrapolated=["8 ranks: calibrated to 4", "2 bits"])
    document = forecast_document([pair], None, "runs/1")
    assert document.verdict.endswith("outside the 90 % interval.")
    assert document.notes == ["a run: the forecast goes beyond what was calibrated: 8 ranks: calibrated to 4 and 1 more."]
    assert column(block(document, "pairs"), "inside") == ["no"]


def test_several_runs_are_summed_up(traces):
    pairs = [make_pair(traces, "one"), make_pair(traces, "two", epoch_seconds=0.25, low=0.24, high=0.26)]
    document = forecast_document(pairs, None, "runs")
    assert document.verdict == "2 runs forecast with a median error of 12 %; 1 of 2 were inside their 90 % interval."
    assert {"epochs-1", "epochs-2", "scatter"} <= identities(document)


def test_components_are_told_from_both_traces(traces):
    table = block(forecast_document([make_pair(traces)], None, "runs/1"), "components-1")
    parts, seconds = column(table, "part"), column(table, "measured_seconds")
    assert parts[-1] == "epoch"
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1])
    bounds = traces[0].epoch_bounds()
    durations = ((bounds["end_ns"] - bounds["start_ns"]) / 1e9).tolist()
    assert seconds[-1] == pytest.approx(sorted(durations)[2])
    simulated = traces[1].epoch_bounds()
    assert column(table, "forecast_seconds")[-1] == pytest.approx(
        float((simulated["end_ns"] - simulated["start_ns"]).iloc[0]) / 1e9
    )
    shares = column(table, "share_of_epoch")
    assert sum(shares[:-1]) == pytest.approx(shares[-1])


def test_bytes_and_memory_are_compared(traces):
    table = block(forecast_document([make_pair(traces)], None, "runs/1"), "amounts-1")
    assert column(table, "measured_bytes") == [2_000_000, 3_000_000, 10_000_000, 8_000_000]
    assert column(table, "error") == pytest.approx([0.0, 0.0, -0.1, 0.0])
    assert [each.basis for each in table.columns] == [None, "measured", "forecast", None]


def test_the_two_epochs_share_one_time_scale(traces):
    figure = block(forecast_document([make_pair(traces)], None, "runs/1"), "epochs-1").figure
    above, below = figure.axes[:2]
    assert above.get_xlim() == below.get_xlim()
    assert above.get_xlim()[1] >= 260.0, "the interval's upper end is on the axis"


def test_a_run_that_was_never_timed_is_refused(traces):
    pair = make_pair(traces)
    pair.run.metrics["epoch_seconds"] = np.nan
    with pytest.raises(MisuseError, match="a run: no epoch of this run was timed"):
        forecast_document([pair], None, "runs/1")


def test_an_unfinished_run_is_marked(traces):
    pair = make_pair(traces)
    pair = replace(pair, run=replace(pair.run, unfinished="5 of 100 epochs", source="runs/1"))
    document = forecast_document([pair], None, "runs/1")
    assert document.notes == ["a run is unfinished: 5 of 100 epochs."]
    assert block(document, "components-1").source == "runs/1/trace"


def test_nothing_at_all_is_refused():
    with pytest.raises(MisuseError, match="neither a run with its forecast nor a validation"):
        forecast_document([], None, "empty")


def test_a_validation_alone(validation):
    document = forecast_document([], validation, "reports/validation")
    errors = [abs(each["usual"]["forecast"] / measured(each) - 1) for each in validation["configurations"]]
    held = [
        each["usual"]["low"] <= run <= each["usual"]["high"] for each in validation["configurations"] for run in each["runs"]
    ]
    assert document.verdict == (
        f"{len(errors)} configurations, each forecast from the others: median error {100 * np.median(errors):.1f} %, "
        f"{sum(error <= 0.1 for error in errors)} within 10 %; 90 % intervals held {sum(held)} of {len(held)} runs "
        f"({100 * np.mean(held):.0f} %)."
    )
    assert identities(document) == {"scatter", "configurations", "coverage", "components", "component-errors", "accuracy"}
    assert (sum(held), len(held)) == tuple(validation["usual"]["coverage"].values()), "as the validation itself counted"


def test_coverage_by_regime_adds_up(validation):
    table = block(forecast_document([], validation, "reports/validation"), "coverage")
    by_row = {(row[0], row[1]): (row[2], row[3]) for row in table.rows}
    for speed, key in (("machine at its usual speed", "usual"), ("at the machine's speed in those runs", "at_speed")):
        few, many, every = (by_row[speed, regime] for regime in ("ranks ≤ cores", "ranks > cores", "all"))
        assert (few[0] + many[0], few[1] + many[1]) == every
        assert every == tuple(validation[key]["coverage"].values())


def test_errors_by_component_are_shares_of_the_measured_epoch(validation):
    table = block(forecast_document([], validation, "reports/validation"), "component-errors")
    few = [each for each in validation["configurations"] if each["ranks"] <= validation["cores"]]
    exchange = [(each["components"]["forecast"][1] - each["components"]["measured"][1]) / measured(each) for each in few]
    row = next(row for row in table.rows if row[:2] == ["exchange", "ranks ≤ cores"])
    assert row[2:] == [
        len(few),
        *map(pytest.approx, (np.median(exchange), np.median(np.abs(exchange)), np.abs(exchange).max())),
    ]


def test_accuracy_repeats_the_validations_own_figures(validation):
    table = block(forecast_document([], validation, "reports/validation"), "accuracy")
    said = validation["usual"]["epoch_time"]["baseline: port bound"]["all"]
    row = next(row for row in table.rows if row[:3] == ["machine at its usual speed", "baseline: port bound", "all"])
    assert row[3:] == [said["configurations"], said["median"], said["p95"], said["worst"], said["signed"]]


def test_runs_and_a_validation_together(traces, validation):
    document = forecast_document([make_pair(traces)], validation, "reports/validation")
    assert {"epochs-1", "pairs", "configurations", "scatter", "coverage"} <= identities(document)
    assert len(block(document, "scatter").marks.texts) == len(validation["configurations"]) + 1
    assert block(document, "configurations").main
    assert document.verdict.startswith("a run: ")
    facts = {fact.name for tiles in document.blocks(Tiles) for fact in tiles.facts}
    assert {"error", "median error, validation", "intervals that held"} <= facts


def test_the_scatter_has_the_ten_percent_band_and_the_intervals():
    points = [Point("a", "ranks ≤ cores", 1.0, 1.05, 0.9, 1.2), Point("b", "ranks > cores", 2.0, 3.0, math.nan, math.nan)]
    figure, marks = scatter_figure(points)
    axes = figure.axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    left = band[:, 0].min()
    assert sorted({round(y / left, 6) for x, y in band if x == left}) == [0.9, 1.1]
    assert "1 of 2 within 10 %" in [text.get_text() for text in axes.texts][1]
    assert marks.texts[0].startswith("a\nmeasured 1.00 s, forecast 1.05 s [900 ms, 1.20 s]: +5.0 %")
    assert "[" not in marks.texts[1]
    assert marks.y[0] > marks.y[1], "a longer forecast is higher up"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("cores"), "cores: field required"),
        (lambda found: found["configurations"][3].pop("usual"), "configurations.3.usual: field required"),
        (lambda found: found.update(configurations=[]), "a validation of no configurations"),
    ],
)
def test_what_is_no_validation_is_refused_in_one_line(validation, change, message):
    broken = copy.deepcopy(validation)
    change(broken)
    with pytest.raises(MisuseError, match=re.escape(message)):
        read_validation(broken, "here")


def test_the_page_is_in_order_and_markup_is_text(traces, validation):
    bad = "<script>alert(1)</script>"
    found = copy.deepcopy(validation)
    found["configurations"][0]["graph"] = bad
    found["machine"] = bad
    page = html(forecast_document([make_pair(traces, bad)], found, bad))
    assert "<script>alert" not in page
    headings = [int(tag[1]) for tag, _ in Page(page).elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}
    json.dumps(as_json(forecast_document([make_pair(traces)], validation, "x")), allow_nan=False)
