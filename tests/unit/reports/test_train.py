import re
from dataclasses import replace

import numpy as np
import pytest
from pages import Page, assert_references_resolve, assert_stands_alone, headings
from runs import make_metrics, make_run
from synthetic import Scenario, synthetic_manifest, write_synthetic_run
from tests.support.simulated import simulated

from halocast.errors import MisuseError
from halocast.reports.document import Basis, Picture, Table, Tiles
from halocast.reports.figures import view_epoch
from halocast.reports.ranks import PARTS, rank_times
from halocast.reports.render import as_json, html
from halocast.reports.roofline import apart, operation_totals
from halocast.reports.train import Promise, byte_range, train_document
from halocast.simulator.costs import Ceilings
from halocast.traces.operations import Aggregate, Exchange, Step
from halocast.traces.trace import ClockOffset, TraceWriter, read_manifest, read_trace, write_manifest

NASTY = "<script>alert('x')</script><!-- & $\\frac{1}{0}$ --> \"quoted\""


@pytest.fixture
def folder(tmp_path):
    write_synthetic_run(tmp_path / "trace", Scenario(epochs=4, bytes_per_second=2e8))
    return tmp_path / "trace"


def tables(document):
    return {each.identity: each for each in document.blocks(Table)}


def facts(document):
    return {each.name: each for tiles in document.blocks(Tiles) for each in tiles.facts}


def test_the_verdict_and_the_tiles_agree_with_the_trace(folder):
    run = make_run(folder)
    document, times = train_document(run), rank_times(run.trace)
    assert document.verdict.startswith(f"{100 * times.waiting:.0f} % of an epoch of 106 ms is waiting for messages; ")
    found = facts(document)
    assert found["Epoch time"].text == "106 ms"  # of 102 to 110: the first two do not count
    assert found["Epoch time"].qualified == "median of 9 epochs; p10 103 ms, p90 109 ms"
    assert found["Sent an epoch"].text == "123 MB"
    assert found["Sent an epoch"].qualified == "120 MB of it in halo exchanges, 32.0 bits a value"
    assert found["Peak memory"].text == "812 MB"
    assert found["Accuracy on test"].text == "0.6123"
    assert found["Training loss"].text == "1"
    assert {each.basis for each in found.values()} == {Basis.MEASURED}
    assert all(each.rows for each in found.values())


def test_a_rank_that_holds_up_the_others_is_named(folder):
    run = make_run(folder)
    late = run.trace.spans.copy()
    slow = (late["rank"] == 1) & (late["op"] == "Aggregate") & (late["layer"] == 0)
    moved = late["rank"] == 1
    late.loc[slow, "wall_ns"] += 60_000_000
    late.loc[moved & ~slow, "start_ns"] += 60_000_000  # everything after its first aggregation
    messages = run.trace.messages
    trace = type(run.trace)(run.trace.folder, run.trace.manifest, late, messages)
    assert "rank 1 holds up each of the others by" in train_document(make_run(folder, trace=trace)).verdict


def test_sections_and_tables(folder):
    document = train_document(make_run(folder))
    assert [each.heading for each in document.sections] == [
        *(
            "",
            "Where each rank's time goes",
            "Stragglers and imbalance",
            f"Epoch {view_epoch(read_trace(folder)).epoch}, operation by operation",
        ),
        *("Messages", "Learning, epoch by epoch", "Memory", "Operations"),
    ]
    found = tables(document)
    assert list(found) == [
        "rank-times",
        "imbalance",
        "epoch-spans",
        "bytes-matrix",
        "exchanges",
        "epochs",
        "memory",
        "operations",
    ]
    assert [each.identity for each in found.values() if each.main] == ["rank-times"]
    for picture in document.blocks(Picture):
        assert picture.rows in found
        assert picture.basis is Basis.MEASURED
        assert len(picture.description) > 20
    assert {each.source for each in found.values()} == {"runs/one/trace", "runs/one/metrics.csv", "runs/one/result.json"}


def test_rank_times_are_the_parts(folder):
    run = make_run(folder)
    times, table = rank_times(run.trace), tables(train_document(run))["rank-times"]
    names = [column.name for column in table.columns]
    for rank, row in enumerate(table.rows):
        values = dict(zip(names, row, strict=True))
        assert values["rank"] == rank
        assert [values[part] for part in PARTS] == pytest.approx(times.parts.loc[rank, list(PARTS)].tolist())
        assert values["epoch"] == pytest.approx(sum(values[part] for part in PARTS))


def test_the_imbalance_table_is_the_trace(folder):
    run = make_run(folder)
    table = tables(train_document(run))["imbalance"]
    names = [column.name for column in table.columns]
    spans = run.trace.spans
    spans = spans[(spans["stream"] == "compute") & spans["epoch"].isin((2, 3))]
    for rank, row in enumerate(table.rows):
        values = dict(zip(names, row, strict=True))
        own = spans[spans["rank"] == rank]
        assert values["sends"] == own.loc[own["op"] == "Exchange", "bytes_out"].sum() / 2
        assert values["device"] == "cpu"
        assert values["own rows"] is None  # the synthetic trace does not say
    assert sum(row[names.index("last to send")] for row in table.rows) == pytest.approx(1.0)
    assert np.mean([row[names.index("of the mean")] for row in table.rows]) == pytest.approx(1.0)


def test_messages_by_pair_and_exchange(folder):
    found = tables(train_document(make_run(folder)))
    messages = read_trace(folder).messages
    last = messages[messages["epoch"] == 3]
    pairs = last.groupby(["rank", "peer"])["bytes_out"].sum()
    assert [(sender, receiver, size) for (sender, receiver), size in pairs.items()] == list(found["bytes-matrix"].rows)
    by_exchange = {(row[0], row[1]): row for row in found["exchanges"].rows}
    for (layer, direction), group in last.groupby(["layer", "direction"]):
        _, _, rows, size, bits, words, last_rank, share = by_exchange[layer, direction]
        assert (rows, size, bits) == (group["rows_out"].sum(), group["bytes_out"].sum(), 32.0)
        assert words == f"{group['rows_out'].sum():,} at 32"
        starts = messages[(messages["layer"] == layer) & (messages["direction"] == direction) & messages["epoch"].isin((2, 3))]
        begun = starts.assign(start=starts["start_ns"] - starts["rank"].map({0: 0, 1: 1_234_567}))
        latest = begun.sort_values("start").groupby("epoch")["rank"].last().tolist()
        assert share == latest.count(last_rank) / 2 >= 0.5


def test_epochs_that_stand_out_are_named(folder):
    document = train_document(make_run(folder, metrics=make_metrics(30, slow=(7, 19))))
    assert tables(document)["epochs"].emphasised == {7, 19}
    assert "Far slower than the others: epochs 7 (1.07 s), 19 (1.19 s)." in html(document)
    assert "Far slower" not in html(train_document(make_run(folder, metrics=make_metrics(30))))


def test_a_promise_is_beside_what_came_of_it(folder):
    said = Promise(0.120, 0.100, 0.140, (800_000_000, 790_000_000))
    document = train_document(make_run(folder, promise=said))
    fact = facts(document)["Epoch time, as planned"]
    assert (fact.text, fact.basis) == ("120 ms", Basis.FORECAST)
    assert fact.qualified == "90 % between 100 ms and 140 ms, which holds what was measured; off by +13.2 %"
    memory = [
        dict(zip([column.name for column in tables(document)["memory"].columns], row, strict=True))
        for row in tables(document)["memory"].rows
    ]
    assert [row["all but Python, as forecast"] for row in memory] == [800_000_000, 790_000_000]
    assert memory[0]["off by"] == pytest.approx(800 / 812 - 1)
    data = as_json(document)
    assert data["error"] == pytest.approx(0.120 / 0.106 - 1)
    missed = facts(train_document(make_run(folder, promise=Promise(0.3, 0.2, 0.4))))["Epoch time, as planned"]
    assert "which misses" in missed.qualified


def test_keys_that_scripts_rely_on(folder):
    found = as_json(train_document(make_run(folder)))
    assert (found["method"], found["ranks"], found["epochs"], found["finished"]) == ("full", 2, 11, True)
    assert found["epoch_seconds"] == pytest.approx({"median": 0.106, "p10": 0.1028, "p90": 0.1092})
    assert found["bytes_per_epoch"] == 123_456_789
    assert found["accuracy"]["test"] == 0.61234
    assert found["epochs_counted"] == [2, 3]
    assert sum(found["shares"].values()) == pytest.approx(1.0)


def test_memory_has_a_capacity(folder):
    footprint = [
        {"interpreter": 400_000_000, "before_training": 300_000_000, "peak": peak} for peak in (812_000_000, 798_400_000)
    ]
    document = train_document(make_run(folder, footprint=footprint))
    rows = tables(document)["memory"].rows
    assert rows[0][1:] == [400_000_000, 300_000_000, 512_000_000, 1_212_000_000, (8 << 30) // 2]
    (picture,) = [each for each in document.blocks(Picture) if each.identity == "memory-picture"]
    assert "28 % of 4.29 GB, an equal share of the machine's 8.59 GB" in picture.description


def test_memory_of_a_gpu_is_by_its_data_sheet(folder):
    manifest = read_manifest(folder)
    machine = manifest.machine.model_copy(update={"devices": ("cuda:0 NVIDIA H100 80GB HBM3",) * 2})
    write_manifest(folder, manifest.model_copy(update={"machine": machine}))
    table = tables(train_document(make_run(folder)))["memory"]
    assert {row[5] for row in table.rows} == {80_000_000_000}
    assert table.columns[5].basis is Basis.ASSUMED


def test_numbers_on_the_roofline_do_not_touch():
    points = np.array([[0.0, 0.0], [0.01, 0.01], [0.05, 0.3], [0.5, 0.0], [0.51, 0.05]])
    assert apart(points) == [0, 2, 3]
    assert apart(points[:0]) == []


def test_the_roofline_with_and_without_ceilings(folder):
    spans = read_trace(folder).spans
    run = make_run(folder)
    counted = spans.assign(flops=np.where(spans["op"] == "Aggregate", 2 * spans["nnz"] * 128, 0), dim_out=128, dim_in=128)
    run = make_run(folder, trace=type(run.trace)(run.trace.folder, run.trace.manifest, counted, run.trace.messages))
    bare = train_document(run)
    assert any("--costs" in note for note in bare.notes)
    ceilings = Ceilings(memory_rate=20e9, gemm_rate=100e9, date="2026-01-01", machine="a processor", threads=2)
    document = train_document(run, ceilings)
    assert not any("--costs" in note for note in document.notes)
    (picture,) = [each for each in document.blocks(Picture) if each.identity == "roofline"]
    assert "20.0 GB/s and 100 Gflop/s, measured on a processor, 2 threads" in picture.description
    roof = picture.figure.axes[0].lines[0].get_xydata()
    assert roof[:, 1].max() == pytest.approx(100)
    assert roof[0, 1] == pytest.approx(20 * roof[0, 0])
    rows = {row[1]: row for row in tables(document)["operations"].rows}
    aggregate = counted[
        (counted["op"] == "Aggregate")
        & (counted["layer"] == 0)
        & (counted["direction"] == "forward")
        & counted["epoch"].isin((2, 3))
    ]
    row = rows["Aggregate, layer 0 forward"]
    moved = (4 * (aggregate["nnz"] + aggregate["rows"]) * 128 + 4 * aggregate["nnz"]).sum() / 2
    assert row[4] == pytest.approx(aggregate["cpu_ns"].sum() / 2e9)
    assert row[7] == pytest.approx(moved)
    assert row[8] == pytest.approx(aggregate["flops"].sum() / 2 / moved)
    assert row[9] == pytest.approx(aggregate["flops"].sum() / aggregate["cpu_ns"].sum() * 1e9)
    assert rows["Wait, layer 0 forward"][5] is None
    assert sum(row[5] for row in rows.values() if row[5] is not None) == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "value_bytes"), [("float32", 4), ("float64", 8)])
def test_bytes_moved_are_of_the_values_that_were_computed_with(folder, dtype, value_bytes):
    run = make_run(folder)
    manifest = run.trace.manifest
    manifest = manifest.model_copy(update={"config": {**manifest.config, "dtype": dtype}})
    (whole,) = operation_totals(replace(run.trace, manifest=manifest, spans=one_span(run, "Transform", rows=10)), (2,))
    assert whole.moved == value_bytes * (10 * (3 + 5) + 3 * 5)
    (summed,) = operation_totals(replace(run.trace, manifest=manifest, spans=one_span(run, "Aggregate", rows=10, nnz=40)), (2,))
    assert summed.moved == value_bytes * (40 + 10) * 5 + 4 * 40  # indices have 4 bytes


def one_span(run, op, **work):
    spans = run.trace.spans
    first = spans[(spans["op"] == op) & (spans["epoch"] == 2) & (spans["stream"] == "compute")].iloc[:1]
    return first.assign(**{"nnz": 0, **work}, dim_in=3, dim_out=5)


@pytest.mark.parametrize("ranks", [3, 4])
def test_a_run_of_rounds_counts_each_of_them(tmp_path, ranks):
    """Method sar: an exchange of a layer and direction is K − 1 rounds, and each has a rank that was the last."""
    trace, simulation = simulated(tmp_path, ranks)
    document = train_document(make_run(tmp_path, trace=trace, metrics=make_metrics(0)))
    work = simulation.work[0]
    exchanges = [each for each in work.operations if isinstance(each, Exchange)]
    names = [column.key or column.name for column in tables(document)["imbalance"].columns]
    rows = [dict(zip(names, row, strict=True)) for row in tables(document)["imbalance"].rows]
    counts = [row["last_share"] * len(exchanges) for row in rows]
    assert counts == pytest.approx([round(count) for count in counts])
    assert sum(counts) == pytest.approx(len(exchanges))
    worst = max(rows, key=lambda row: row["holdup_seconds"])
    assert f"rank {worst['rank']} holds up each of the others by {100 * worst['holdup_share']:.0f} %" in document.verdict
    places = {(each.layer, each.direction) for each in exchanges}
    assert len(exchanges) == (ranks - 1) * len(places)
    assert len(tables(document)["exchanges"].rows) == len(places)


def test_unfinished_runs_say_so(folder, tmp_path):
    write_manifest(folder, read_manifest(folder).model_copy(update={"finished": False}))
    document = train_document(make_run(folder, unfinished="11 of 40 epochs are done", peak_bytes=()))
    assert document.verdict.startswith("Unfinished: 11 of 40 epochs are done. ")
    assert document.notes[0].startswith("unfinished: 11 of 40 epochs are done")
    assert "memory" not in tables(document)
    assert not as_json(document)["finished"]
    write_manifest(tmp_path / "bare", synthetic_manifest(Scenario(), finished=False))
    early = train_document(make_run(tmp_path / "bare", unfinished="11 epochs are done"))
    assert "No epoch was traced to its end" in early.verdict
    assert list(tables(early)) == ["epochs", "memory"]
    with pytest.raises(MisuseError, match="no epoch was finished"):
        train_document(make_run(tmp_path / "bare", metrics=make_metrics(0)))


def test_a_trace_alone_is_reported(folder):
    document = train_document(make_run(folder, metrics=make_metrics(0), accuracy={}, peak_bytes=()))
    assert facts(document)["Epoch time"].qualified == "epochs 2 to 3"
    Page(html(document))


def test_a_simulated_epoch_is_forecast_everywhere(folder):
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"config": {**manifest.config, "forecast": True}}))
    document = train_document(make_run(folder, metrics=make_metrics(0)))
    assert {each.basis for each in document.blocks(Picture)} == {Basis.FORECAST}
    assert "this is a simulated epoch: nothing in it was measured" in document.notes


def test_one_rank(tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(tmp_path, 0) as writer:
        writer.span("train", 0, 0, Aggregate(0), "compute", 0, 9_000_000, 9_000_000, 0)
        writer.span("train", 0, 1, Step(), "compute", 9_000_000, 1_000_000, 1_000_000, 0)
    document = train_document(make_run(tmp_path, peak_bytes=(10**8,)))
    assert document.verdict == "One rank, nobody to wait for: 100 % of an epoch of 106 ms is computing."
    assert "bytes-matrix" not in tables(document)
    html(document)


def test_many_ranks(tmp_path):
    scenario = Scenario(world_size=40, layers=2, epochs=3, clock_offsets_ns=tuple(range(40)))
    document = train_document(make_run(tmp_path, scenario, peak_bytes=(10**8,) * 40))
    assert len(tables(document)["rank-times"].rows) == 40
    assert len(tables(document)["bytes-matrix"].rows) == 40 * 39
    html(document)


def test_clocks_that_may_be_apart_are_told_of(folder):
    manifest = read_manifest(folder)
    write_manifest(
        folder, manifest.model_copy(update={"clock_offsets": (ClockOffset(), ClockOffset(uncertainty_ns=3_000_000))})
    )
    assert any("clocks may be apart by 3.00 ms" in note for note in train_document(make_run(folder)).notes)


def test_the_page_stands_alone(folder):
    document = html(train_document(make_run(folder)))
    assert_stands_alone(document, scripts=True)
    assert_references_resolve(document)
    assert headings(document) == [1, *[2] * 8]
    assert document == html(train_document(make_run(folder)))


def test_figures_follow_the_theme(folder):
    document = html(train_document(make_run(folder)))
    assert "prefers-color-scheme: dark" in document
    assert "@media print" in document
    svg = "".join(re.findall(r"<svg.*?</svg>", document, flags=re.DOTALL))
    for colour in ("#1f2328", "#59636e", "#d5dae0", "#e9ecef"):
        assert colour not in svg
    for name in set(re.findall(r"var\((--\w+)\)", document)):
        assert document.count(f"{name}: #") == 2  # a light and a dark value


def test_markup_in_names_is_text(folder):
    manifest = read_manifest(folder)
    graph = manifest.graph.model_copy(update={"name": NASTY, "fingerprint": NASTY})
    machine = manifest.machine.model_copy(update={"cpu": NASTY, "devices": (NASTY, NASTY)})
    nasty = {"graph": graph, "machine": machine, "date": NASTY, "versions": {NASTY: NASTY}, "halocast": NASTY}
    write_manifest(folder, manifest.model_copy(update=nasty))
    names = {"name": NASTY, "method": NASTY, "model": NASTY, "metric": NASTY, "next_command": NASTY, "source": NASTY}
    page = Page(html(train_document(make_run(folder, **names))))
    assert sum(tag == "script" and "type" not in attributes for tag, attributes in page.elements) == 2
    assert "".join(page.text).count(NASTY) >= 15


@pytest.mark.parametrize(("sizes", "text"), [((5, 5), "5 B"), ((5_000, 6_000_000), "5.00 kB to 6.00 MB")])
def test_byte_ranges(sizes, text):
    assert byte_range(sizes) == text


def test_metrics_of_a_run_that_was_never_evaluated(folder):
    never = make_metrics().assign(train=np.nan, val=np.nan, test=np.nan)
    document = train_document(make_run(folder, metrics=never, accuracy={}))
    assert "Accuracy on test" not in facts(document)
    assert {row[3:] for row in tables(document)["epochs"].rows} == {(None, None, None)}
