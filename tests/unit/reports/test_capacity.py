"""The capacity report: its sentence, figures and tables beside what the rows of a what-if folder say."""

import json
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from documents import block, column, identities
from pages import Page
from whatif_folder import DEVICES, NETWORKS, scenario_table, ten_thousand, write_folder

from halocast.reports.capacity import capacity_document
from halocast.reports.capacity_figures import evenly, scaling_figure
from halocast.reports.capacity_view import View, describe, grouped, kind_of, with_interval
from halocast.reports.document import Picture, Questions, Table, Tiles
from halocast.reports.render import as_json, csv_of, html, markdown, render_table, table_document
from halocast.simulator.whatif import read_whatif

HOUR = 3600.0


def whatif_of(folder, table, **changes):
    return read_whatif(write_folder(folder / "whatif", table, **changes))


def document_of(folder, table, **changes):
    return capacity_document(whatif_of(folder, table, **changes), "capacity")


def cheapest(table):
    """The reference: by a scan of the rows."""
    return min((row for _, row in table.iterrows() if row["feasible"]), key=lambda row: row["cost"])


@pytest.fixture(scope="module")
def table():
    return scenario_table()


@pytest.fixture(scope="module")
def document(table, tmp_path_factory):
    return document_of(tmp_path_factory.mktemp("capacity"), table)


def test_the_verdict_names_the_cheapest_with_its_interval(document, table):
    best = cheapest(table)
    hours = [best[name] / HOUR for name in ("training_seconds", "training_low", "training_high")]
    assert document.verdict == (
        f"{best['ranks']} × {best['device']} on {best['network']} train debian_packages in {hours[0]:#.3g} h "
        f"[{hours[1]:#.3g}, {hours[2]:#.3g}] for EUR {best['cost']:.2f}: the cheapest within 4 h."
    )


def test_one_rank_is_singular_and_the_fastest_is_called_so(tmp_path):
    one = {"devices": ("H100",), "networks": ("ethernet-25g",), "methods": (("full", ""),), "hidden": (64,)}
    rows = scenario_table(ranks=(1, 2), deadline=None, **one)
    rows.loc[rows["ranks"] == 1, "cost"] = 1e-3
    assert " trains debian_packages in " in document_of(tmp_path, rows, deadline=None).verdict
    unpriced = scenario_table(prices=False)
    assert document_of(tmp_path / "b", unpriced).verdict.endswith(": the fastest within 4 h.")


def test_tiles_say_what_is_forecast_and_what_is_assumed(document, table):
    best = cheapest(table)
    facts = {fact.name: fact for tiles in document.blocks(Tiles) for fact in tiles.facts}
    assert facts["cost of a training"].text == f"EUR {best['cost']:.2f}"
    assert "assumed" in facts["cost of a training"].qualified
    assert facts["memory a rank, peak"].text == f"{best['peak_bytes'] / 1e9:#.3g} GB"
    assert all(fact.basis == "forecast" and fact.rows == "top" for fact in facts.values())


def test_the_ten_best_come_by_cost_and_the_recommended_one_stands_out(document, table):
    top = block(document, "top")
    expected = table[table["feasible"]].sort_values("cost")["scenario"].head(10).tolist()
    assert column(top, "scenario") == expected
    assert top.emphasised == {0}


def test_of_scenarios_alike_only_the_first_is_among_the_best(tmp_path):
    rows = scenario_table(
        ranks=(1,), devices=("H100",), networks=tuple(NETWORKS), methods=(("full", ""),), hidden=(64,), deadline=None
    )
    assert len(rows) == 5
    assert len(block(document_of(tmp_path, rows, deadline=None), "top").rows) == 1


def test_answers_are_linked_to_the_rows_they_are_about(document, table):
    questions = [each for asked in document.blocks(Questions) for each in asked.questions]
    assert [bool(each.rows) for each in questions] == [True, False]
    answered = block(document, "answered")
    assert column(answered, "scenario") == [cheapest(table)["scenario"]]
    assert column(answered, "question") == [1]


def test_all_scenarios_are_the_main_table(document, table):
    main = block(document, "scenarios")
    assert main.main
    assert column(main, "scenario") == table["scenario"].tolist()
    np.testing.assert_allclose(column(main, "training_seconds"), table["training_seconds"], rtol=1e-5)
    standing = pd.Series(column(main, "standing"))
    assert (standing == "on the front").sum() == table["on_front"].sum()
    assert set(standing[~table["feasible"]]) == set(table.loc[~table["feasible"], "reason"])
    lines = csv_of(main).decode().splitlines()
    assert len(lines) == len(table) + 1
    assert lines[0].startswith(
        "scenario,training_seconds,cost,peak_bytes,ranks,hosts,device,network,method,bits,epoch_seconds,low,"
    )


def test_inputs_that_another_implies_are_left_out_unless_they_vary_alone(tmp_path):
    rows = scenario_table()
    assert "network_rate" not in View(whatif_of(tmp_path, rows)).varying
    rows.loc[3, "network_rate"] = 1.0
    assert "network_rate" in View(whatif_of(tmp_path / "b", rows)).varying


def test_every_point_of_the_front_figure_speaks_where_it_lies(document, table):
    picture = block(document, "pareto")
    marks, known = picture.marks, table.reset_index(drop=True)
    assert len(marks.texts) == len(table)
    assert (np.argsort(marks.x, kind="stable") == np.argsort(known["training_seconds"], kind="stable")).all()
    assert (np.argsort(marks.y, kind="stable") == np.argsort(-known["cost"], kind="stable")).all()
    width, height = picture.figure.get_size_inches() * 72
    assert 0 < min(marks.x) < max(marks.x) < width
    assert 0 < min(marks.y) < max(marks.y) < height
    assert marks.texts[5].startswith(known["name"][5])


def test_names_on_the_front_do_not_cover_each_other(document):
    figure = block(document, "pareto").figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if " x " in text.get_text()]
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert any(text.get_text().startswith("recommended: ") for text in axes.texts)


def test_curves_are_the_recommended_series_and_those_one_input_away(tmp_path, table):
    view = View(whatif_of(tmp_path, table))
    best = cheapest(table)
    inputs = ("device", "network", "method")
    shown = [series.rows.iloc[0] for series in view.series[:4]]
    assert view.series[0].is_reference
    assert [sum(row[name] != best[name] for name in inputs) for row in shown] == [0, 1, 1, 1]
    assert len({next(name for name in inputs if row[name] != best[name]) for row in shown[1:]}) == 3
    assert len(view.series) == 8


def test_the_curves_rows_say_where_ranks_stop_paying(tmp_path):
    rows = scenario_table(ranks=(1, 4, 16, 64), networks=("ethernet-10g",), devices=("H100",), methods=(("full", ""),))
    curves = block(document_of(tmp_path, rows), "scaling-rows")
    pays = ["yes" if value >= 0.5 else "no" for value in rows.sort_values("ranks")["efficiency"]]
    assert column(curves, "pays") == pays
    assert {"yes", "no"} == set(pays)


def test_the_ideal_line_halves_with_twice_the_ranks(tmp_path, table):
    view = View(whatif_of(tmp_path, table))
    axes = scaling_figure(view).axes[0]
    first = view.series[0].rows.iloc[0]
    dashed = next(line for line in axes.lines if line.is_dashed())
    np.testing.assert_allclose(dashed.get_ydata(), first["epoch_seconds"] * first["ranks"] / dashed.get_xdata())
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_cells_of_ranks_by_link_say_the_time_of_their_scenario(document, table):
    heat, best = block(document, "heat"), cheapest(table)
    same = table[(table["device"] == best["device"]) & (table["method"] == best["method"])]
    assert len(heat.marks.texts) == len(same) == 10
    axes = heat.figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ethernet-25g", "ethernet-100g"]
    places = {(round(x), round(y)): text for x, y, text in zip(heat.marks.x, heat.marks.y, heat.marks.texts, strict=True)}
    by_place = [text for _, text in sorted(places.items(), key=lambda each: (each[0][1], each[0][0]))]
    slower, faster = same[same["network"] == "ethernet-25g"], same[same["network"] == "ethernet-100g"]
    names = [*slower.sort_values("ranks")["name"], *faster.sort_values("ranks")["name"]]
    assert [text.split("\n")[0] for text in by_place] == names


def test_the_tornado_shows_what_the_answers_say(document, tmp_path, table):
    rows = block(document, "tornado-rows")
    seconds = cheapest(table)["training_seconds"]
    assert column(rows, "seconds_low")[0] == pytest.approx(1.19 * seconds)
    texts = [text.get_text() for axes in block(document, "tornado").figure.axes for text in axes.texts]
    assert {"+19.0 %", "−13.0 %", "−4.0 %"} <= set(texts)
    assert column(block(document, "upgrades"), "speed_up") == [pytest.approx(1 / 0.9)]


def test_the_front_table_adds_up_to_its_epochs(document, table):
    front = block(document, "front")
    expected = table[table["on_front"]].sort_values("training_seconds")
    assert column(front, "scenario") == expected["scenario"].tolist()
    parts = ("compute", "quantise", "exchange_exposed", "all_reduce_exposed", "posting_messages", "wait")
    totals = np.sum([column(front, part) for part in parts], axis=0)
    np.testing.assert_allclose(totals, expected["epoch_seconds"])
    bars = [patch for patch in block(document, "binding").figure.axes[0].patches if patch.get_height() < 1]
    shares = pd.Series([bar.get_width() for bar in bars]).groupby([round(bar.get_y(), 3) for bar in bars]).sum()
    np.testing.assert_allclose(shares, 1.0)


def test_reasons_are_counted_by_kind(document, table):
    found = dict(
        zip(column(block(document, "infeasible"), "reason"), column(block(document, "infeasible"), "scenarios"), strict=True)
    )
    assert found["misses the deadline"] == table["reason"].str.contains("deadline").sum()
    assert sum(found.values()) == table["reason"].str.split("; ").explode().ne("").sum()


def test_a_sentence_on_why_there_is_no_forecast_stays_whole(tmp_path):
    table = scenario_table(deadline=None)
    without = table["ranks"] == 16
    table.loc[without, table.columns[table.columns.get_loc("epoch_seconds") : table.columns.get_loc("extrapolated")]] = None
    reason = "no calibrated cost for Attend: the runs never did it; calibrate on others"
    table.loc[without, ["feasible", "on_front", "reason"]] = [False, False, reason]
    found = block(document_of(tmp_path, table, deadline=None), "infeasible")
    row = next(row for row in found.rows if "Attend" in row[0])
    assert row[:3] == [reason, without.sum(), reason]
    assert not any(row[0].startswith("calibrate on") for row in found.rows)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Aggregate 0 forward: costs moved to H100", "costs moved to H100"),
        ("16 ranks: calibrated from 1 to 8", "… ranks: calibrated from … to …"),
        ("needs 95.2 GB of 80 GB", "needs … GB of … GB"),
        ("network infiniband-ndr was not calibrated", "network infiniband-ndr was not calibrated"),
        ("Intel(R) Xeon(R)", "Intel(R) Xeon(R)"),
    ],
)
def test_a_kind_of_reason_has_no_numbers_but_those_of_names(reason, kind):
    assert kind_of(reason) == kind


def test_one_of_a_kind_keeps_its_numbers():
    found = grouped(
        pd.Series([1, 2, 3]), pd.Series([["4 ranks: no"], ["4 ranks: no", "5 bits: no", "6 bits: no"], []]), kind_of
    )
    assert [(each.text, each.scenarios) for each in found] == [("4 ranks: no", 2), ("… bits: no", 1)]


def test_beyond_the_calibration_is_said_by_kind(document, table):
    found = block(document, "extrapolated")
    moved = column(found, "reason").index("costs moved to H100")
    assert column(found, "scenarios")[moved] == (table["device"] == "H100").sum()


def test_prices_are_assumed_and_have_their_source(document):
    prices = block(document, "prices")
    assert prices.basis == "assumed"
    assert prices.rows == [[name, DEVICES[name][1], "the grid file"] for name in ("A100", "H100")]


def test_without_prices_cost_is_left_out_and_that_is_said_once(tmp_path):
    document = document_of(tmp_path, scenario_table(prices=False))
    assert sum("No prices" in note for note in document.notes) == 1
    identifiers = {each.identifier for table in document.blocks(Table) for each in table.columns}
    assert not {"cost", "cost_low", "cost_from"} & identifiers
    assert "prices" not in identities(document)
    page = html(document)
    assert "EUR" not in page
    assert "ranks against training time" in page.lower()


def test_a_device_without_a_price_has_no_cost_and_no_place_in_the_figure(tmp_path):
    table = scenario_table()
    unpriced = table["device"] == "H100"
    table.loc[unpriced, ["price_per_hour", "cost", "cost_low", "cost_high", "on_front"]] = [None, None, None, None, False]
    document = document_of(tmp_path, table)
    assert len(block(document, "pareto").marks.texts) == (~unpriced).sum()
    costs = dict(zip(column(block(document, "scenarios"), "device"), column(block(document, "scenarios"), "cost"), strict=True))
    assert costs["H100"] is None
    assert costs["A100"] > 0
    page = html(document)
    assert "nan" not in page[page.index("<main>") : page.index("<figure")].lower()


def test_an_unfinished_folder_is_reported_and_marked(tmp_path):
    table = scenario_table()
    part = table.assign(on_front=None, efficiency=None).iloc[::2]
    document = document_of(tmp_path, part, finished=False)
    assert any(note.startswith("Unfinished: 20 of 20 scenarios so far") for note in document.notes)
    assert document.verdict.endswith("the cheapest within 4 h so far.")
    known = part[part["feasible"]]
    expected = [
        row["scenario"]
        for _, row in known.iterrows()
        if not ((known["cost"] <= row["cost"]) & (known["training_seconds"] < row["training_seconds"])).any()
        and not ((known["cost"] < row["cost"]) & (known["training_seconds"] <= row["training_seconds"])).any()
    ]
    assert sorted(document.data["front"]) == sorted(expected)
    assert not document.blocks(Questions)
    html(document)


def test_where_nothing_is_feasible_the_fastest_is_shown_with_its_reason(tmp_path):
    table = scenario_table(deadline=10.0)
    document = document_of(tmp_path, table, deadline=10.0)
    fastest = table.sort_values("training_seconds").iloc[0]
    assert document.verdict.startswith(
        f"None of 40 scenarios meets what was asked; the fastest, {fastest['name']}, would train"
    )
    assert fastest["reason"] in document.verdict
    assert any(note.startswith("Nothing is recommended") for note in document.notes)
    assert {"pareto", "scaling", "heat", "infeasible"} <= identities(document)
    html(document)


def test_where_nothing_has_a_forecast_the_reasons_remain(tmp_path):
    table = scenario_table()
    outputs = table.columns[table.columns.get_loc("epoch_seconds") : table.columns.get_loc("feasible")]
    table[outputs] = None
    table = table.assign(
        efficiency=None, feasible=False, on_front=False, reason="no calibrated cost for Attend", extrapolated=None
    )
    document = document_of(tmp_path, table)
    assert document.verdict == "No scenario has a forecast: no calibrated cost for Attend."
    assert identities(document) == {"infeasible", "scenarios"}
    html(document)


def test_one_scenario_makes_a_page_without_comparisons(tmp_path):
    rows = scenario_table(ranks=(4,), devices=("H100",), networks=("ethernet-25g",), methods=(("full", ""),))
    document = document_of(tmp_path, rows)
    assert {"pareto", "scaling", "heat"}.isdisjoint(identities(document))
    assert block(document, "top").caption == "The only one"
    html(document)


@pytest.mark.parametrize("axis", ["ranks", "devices", "networks", "partitions"])
def test_one_axis_makes_a_sensible_page(tmp_path, axis):
    one = {"ranks": (4,), "devices": ("H100",), "networks": ("ethernet-25g",), "methods": (("full", ""),)}
    many = {"ranks": (1, 2, 4), "devices": ("H100", "A100"), "networks": tuple(NETWORKS), "partitions": ("metis/cut", "random")}
    document = document_of(tmp_path, scenario_table(**{**one, axis: many[axis]}))
    assert "pareto" in identities(document)
    assert ("scaling" in identities(document)) is (axis == "ranks")
    assert "heat" not in identities(document)
    html(document)


def test_names_are_drawn_as_they_are(tmp_path):
    """matplotlib would take what stands between dollars for mathematics, and fail on half of it."""
    table = scenario_table(ranks=(1, 2, 4), networks=("ethernet-25g", "infiniband-ndr"))
    table["device"] = table["device"].replace("A100", r"$\frac{x$")
    table["network"] = table["network"].replace("infiniband-ndr", "a$b$c")
    page = html(document_of(tmp_path, table))
    assert r"$\frac{x$" in page
    assert "a$b$c" in page


def test_another_model_is_another_task(tmp_path):
    """Training a smaller model is no cheaper way to train the larger one: figures are of one, the table has both."""
    table = scenario_table(ranks=(1, 2, 4), hidden=(256, 64))
    document = document_of(tmp_path, table)
    first = table["hidden"] == 256
    assert f"the first, {int(first.sum())} scenarios" in "".join(document.notes)
    marks = next(each for each in document.blocks(Picture) if each.identity == "pareto").marks
    assert len(marks.texts) == int(first.sum())
    assert len(block(document, "scenarios").rows) == len(table)
    listed = [row[0] for row in block(document, "top").rows]
    assert set(listed) <= set(table.loc[first, "scenario"])


def test_the_lead_says_how_large_the_graph_has_grown(tmp_path):
    table = scenario_table()
    measured = document_of(tmp_path / "measured", table)
    assert "grown" not in measured.lead
    grown = table.assign(nodes_factor=1000.0, edges_factor=1000.0, nodes=table["nodes"] * 1000, edges=table["edges"] * 1000)
    nodes, edges = (int(table[name].iloc[0]) for name in ("nodes", "edges"))
    lead = document_of(tmp_path / "grown", grown).lead
    assert f"{1000 * nodes:,} nodes, {1000 * edges:,} edges, grown from the measured {nodes:,} and {edges:,}" in lead


def test_a_page_of_ten_thousand_scenarios_is_small(tmp_path):
    table = ten_thousand()
    document = document_of(tmp_path, table)
    page = html(document)
    assert len(table) == 10_000
    assert len(page.encode()) <= 5e6
    assert page.count("<path") + page.count("<use") < 20_000, "points are drawn one by one"
    assert "Of 400 series over the ranks, 5 are drawn" in page


def test_repeating_columns_are_embedded_once_and_come_back_whole(tmp_path):
    main = block(document_of(tmp_path, ten_thousand()), "scenarios")
    assert render_table(main).paged
    found = table_document(main)["columns"]
    for place, packed in enumerate(found):
        values = packed["values"] if packed["at"] is None else [packed["values"][at] for at in packed["at"]]
        assert values == [row[place] for row in main.rows]
    names = [each.identifier for each in main.columns]
    assert len(found[names.index("device")]["values"]) == len(DEVICES)
    assert found[names.index("scenario")]["at"] is None


def test_markup_in_names_is_text(tmp_path):
    bad = "<script>alert(1)</script>&\"'"
    table = scenario_table(graph=f"g{bad}")
    for name in ("name", "device", "network", "reason"):
        table[name] = table[name] + bad
    table["extrapolated"] = [[f"{each}{bad}" for each in reasons] for reasons in table["extrapolated"]]
    folder = write_folder(tmp_path / "whatif", table)
    answers = json.loads((folder / "answers.json").read_text())
    answers["sentences"][0]["answer"] += bad
    answers["tornado"][0]["label"] += bad
    (folder / "answers.json").write_text(json.dumps(answers))
    document = capacity_document(read_whatif(folder), f"x{bad}")
    page = html(document)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    scripts = [tag for tag, _ in Page(page).elements if tag == "script"]
    assert len(scripts) == len(
        [tag for tag, _ in Page(html(document_of(tmp_path / "b", scenario_table()))).elements if tag == "script"]
    )
    assert "\\<script\\>" in markdown(document).splitlines()[0]


def test_headings_are_in_order_and_references_resolve(document):
    page = html(document)
    headings = [int(tag[1]) for tag, _ in Page(page).elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(headings))
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for tag, attributes in Page(page).elements if tag == "a" and "href" in attributes}
    assert links <= set(ids)
    assert links >= {"top", "answered", "scenarios", "tornado-rows"}


def test_json_has_what_scripts_rely_on(document, table):
    found = json.loads(json.dumps(as_json(document), allow_nan=False))
    assert found["report"] == "capacity"
    assert (found["scenarios"], found["feasible"]) == (40, int(table["feasible"].sum()))
    assert found["recommended"] == cheapest(table)["scenario"]
    assert found["front"] == table[table["on_front"]].sort_values("training_seconds")["scenario"].tolist()
    assert len(found["tables"]["scenarios"]["rows"]) == 40


def test_a_sample_is_called_one(tmp_path):
    folder = write_folder(tmp_path / "whatif", scenario_table())
    manifest = json.loads((folder / "whatif.json").read_text())
    (folder / "whatif.json").write_text(json.dumps({**manifest, "sample": 40, "seed": 7}))
    notes = capacity_document(read_whatif(folder), "capacity").notes
    assert "A sample of 40 scenarios, drawn at random with seed 7: the grid has more." in notes


@pytest.mark.parametrize(
    ("row", "names", "words"),
    [
        ({"method": "adaqp", "bits": "4"}, ["method", "bits"], "adaqp 4 bits"),
        ({"method": "full", "bits": ""}, ["method", "bits"], "full"),
        ({"bits": "4"}, ["bits"], "4 bits"),
        ({"device": "", "savings": "none"}, ["device", "savings"], "devices as calibrated, savings none"),
        ({"network_rate": 1.25e9, "nodes_factor": 2.0}, ["network_rate", "nodes_factor"], "1.25 GB/s, 2 × nodes"),
        ({"hidden": np.int32(64), "devices_per_host": 2}, ["hidden", "devices_per_host"], "hidden width 64, 2 a host"),
    ],
)
def test_inputs_in_words(row, names, words):
    assert describe(pd.Series(row), names) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((7560.0, 6480.0, 9360.0), "2.10 h [1.80, 2.60]"),
        ((0.5, 0.4, 1.2), "500 ms [400, 1200]"),
        ((90.0, 50.0, 130.0), "90.0 s [50.0, 130]"),
    ],
)
def test_an_interval_is_in_the_unit_of_its_value(seconds, words):
    assert with_interval(*seconds) == words


def test_a_few_of_many_have_the_ends():
    assert evenly(0, 5) == []
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(100, 3) == [0, 50, 99]
