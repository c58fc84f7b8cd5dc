from pathlib import Path

import numpy as np
import pytest
from pages import Page, assert_references_resolve, assert_stands_alone
from runs import CONFIG, write_forecast_folder, write_run_folder
from synthetic import Scenario

from halocast.cli.folders import names_of, read_subject
from halocast.errors import MisuseError
from halocast.reports.compare import compare_document
from halocast.reports.document import Basis, Picture, Table
from halocast.reports.ranks import PARTS
from halocast.reports.render import as_json, html
from halocast.reports.subjects import differences, flattened, grouped

NASTY = "$x$ <script>alert('x')<|script> & \"q\""


def subjects(*folders):
    return [read_subject(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def rows(document, identity):
    (table,) = [each for each in document.blocks(Table) if each.identity == identity]
    return [dict(zip([column.identifier for column in table.columns], row, strict=True)) for row in table.rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of one configuration, a faster one of another, one without a trace, and a forecast."""
    place = tmp_path_factory.mktemp("runs")
    quick = {"method": {"name": "adaqp", "bits": "4", "exact": {"transform_first": True}}}
    write_run_folder(place / "plain-0")
    write_run_folder(
        place / "plain-1", config={"seed": 1}, start=0.110, scenario=Scenario(epochs=4, bytes_per_second=2e8, seed=1)
    )
    write_run_folder(place / "quick", config=quick, start=0.050, accuracy=0.59, bytes_per_epoch=500_000, method="adaqp")
    write_run_folder(place / "untraced", config={"model": {"layer": "gcn", "layers": 3, "hidden": 128}}, traced=False)
    write_forecast_folder(place / "said")
    return place


def test_repeats_are_grouped_and_ratios_have_intervals(folder):
    document = compare_document(subjects(folder / "plain-0", folder / "plain-1", folder / "quick"))
    plain, quick = rows(document, "times")
    assert (plain["name"], plain["runs"], plain["epochs"]) == ("plain-0 (2 runs)", 2, 18)
    assert plain["epoch_seconds"] == pytest.approx(np.sqrt(0.106 * 0.116))
    assert quick["epoch_seconds"] == pytest.approx(0.056)
    assert quick["ratio"] == pytest.approx(0.056 / np.sqrt(0.106 * 0.116))
    assert quick["ratio_low"] < quick["ratio"] < quick["ratio_high"]
    assert plain["ratio"] is None
    scatter = np.log(0.116 / 0.106) / np.sqrt(2)
    assert f"runs of one configuration scatter by {100 * scatter:.1f} %" in document.blocks(Table)[0].caption
    assert not any("epochs of these runs alone" in note for note in document.notes)


def test_single_runs_say_that_epochs_are_not_runs(folder):
    document = compare_document(subjects(folder / "plain-0", folder / "quick"))
    assert any("epochs of these runs alone" in note for note in document.notes)
    assert document.verdict.startswith("quick is 1.89 × faster (")
    assert document.verdict.endswith(" than plain-0.")
    totals = rows(document, "totals")
    assert totals[1]["bytes_ratio"] == 0.25
    assert (totals[0]["test"], totals[1]["test"]) == (0.6, 0.59)
    facts = {fact["name"]: fact for fact in as_json(document)["facts"]}
    assert facts["Bytes against the reference"]["text"] == "4.00 × fewer"
    assert facts["Accuracy on test"]["qualified"] == "−1.00 points against 0.6000"


def test_the_reference_can_be_chosen(folder):
    chosen = subjects(folder / "plain-0", folder / "plain-1", folder / "quick")
    for reference in ("quick", str(folder / "quick")):
        document = compare_document(chosen, reference)
        assert as_json(document)["reference"] == "quick"
        assert document.verdict.startswith("plain-0 (2 runs) is 1.98 × slower")
    assert as_json(compare_document(chosen, "plain-1"))["reference"] == "plain-0 (2 runs)"
    with pytest.raises(MisuseError, match=r"--reference quik is none of the folders .* did you mean 'quick'"):
        compare_document(chosen, "quik")


def test_forecasts_are_beside_measurements(folder):
    document = compare_document(subjects(folder / "plain-0", folder / "said"))
    plain, said = rows(document, "times")
    assert (plain["basis"], said["basis"]) == ("measured", "forecast")
    assert (said["epoch_seconds"], said["low_seconds"], said["high_seconds"]) == (0.05, 0.04, 0.07)
    assert said["epochs"] is None
    assert "said, as forecast, is" in document.verdict
    assert {"said is extrapolated: too far", "forecasts are beside measurements: what is forecast says so"} <= set(
        document.notes
    )
    parts = rows(document, "parts")
    assert [each["basis"] for each in parts] == ["measured", "forecast"]
    (picture,) = [each for each in document.blocks(Picture) if each.identity == "parts-picture"]
    assert picture.basis is None  # its rows say


def test_parts_are_those_of_the_traces(folder):
    both = subjects(folder / "plain-0", folder / "plain-1")
    document = compare_document([*both, *subjects(folder / "untraced")])
    found = rows(document, "parts")[0]
    mean = (both[0].parts + both[1].parts) / 2
    for part in PARTS:
        assert found[f"{part.replace(' ', '_').replace('-', '_')}_seconds"] == pytest.approx(mean[part])
    assert "Without a trace, so not shown here: untraced." in html(document)


def test_only_what_differs_is_listed(folder):
    document = compare_document(subjects(folder / "plain-0", folder / "quick"))
    assert rows(document, "differences") == [
        {"key": "method.name", "value_0": "full", "value_1": "adaqp"},
        {"key": "method.bits", "value_0": None, "value_1": "4"},
    ]
    alike = compare_document(subjects(folder / "plain-0", folder / "plain-1"))
    assert "Nothing: they were asked the same." in html(alike)
    assert alike.verdict.startswith("All are runs of one configuration: their median epochs scatter by 6.4 %")


def test_other_graphs_and_ranks_are_told_of(folder, tmp_path):
    other = Scenario(world_size=3, epochs=4)
    write_run_folder(tmp_path / "other", scenario=other, config={"ranks": 3}, graph="dblp", fingerprint="ffff")
    document = compare_document(subjects(folder / "plain-0", tmp_path / "other"))
    assert any(
        note.startswith("different graphs: dblp ffff, debian 0123456789abcdef") or "different graphs" in note
        for note in document.notes
    )
    assert any("different numbers of ranks: 2, 3" in note for note in document.notes)
    assert rows(document, "differences")[0]["key"] == "graph"


def test_intervals_that_hold_one_are_no_difference(folder, tmp_path):
    write_run_folder(tmp_path / "same", config={"method": {"name": "full", "overlap": False}}, start=0.1004)
    document = compare_document(subjects(folder / "plain-0", tmp_path / "same"))
    assert rows(document, "times")[1]["differs"] == "no"
    assert document.verdict.endswith(" than plain-0, but may be as fast: the interval holds 1.")


def test_unfinished_runs_are_marked(folder, tmp_path):
    write_run_folder(tmp_path / "cut", finished=False, config={"training": {"epochs": 40}})
    document = compare_document(subjects(folder / "plain-0", tmp_path / "cut"))
    assert "cut is unfinished: 11 of 40 epochs are done, and there is no result.json" in document.notes
    assert rows(document, "totals")[1]["bytes_per_epoch"] > 0  # told from the trace


def test_the_page_stands_alone_and_names_are_text(folder, tmp_path):
    write_run_folder(tmp_path / NASTY, config={"method": {"name": NASTY}})
    document = html(compare_document(subjects(folder / "plain-0", folder / "quick", tmp_path / NASTY, folder / "said")))
    assert_stands_alone(document, scripts=True)
    assert_references_resolve(document)
    page = Page(document)
    assert sum(tag == "script" and "type" not in attributes for tag, attributes in page.elements) == 1
    assert "".join(page.text).count(NASTY) >= 5
    assert document == html(compare_document(subjects(folder / "plain-0", folder / "quick", tmp_path / NASTY, folder / "said")))


def test_one_alone_is_refused(folder):
    with pytest.raises(MisuseError, match="nothing to be compared with"):
        compare_document(subjects(folder / "plain-0"))


def test_settings_and_groups(folder):
    assert flattened({"a": {"b": {"c": 1}, "d": None}, "e": [2, 4]}) == {"a.b.c": "1", "a.d": "", "e": "[2, 4]"}
    found = subjects(folder / "plain-0", folder / "plain-1", folder / "quick", folder / "said")
    groups = grouped(found)
    assert [[member.name for member in group.members] for group in groups] == [["plain-0", "plain-1"], ["quick"], ["said"]]
    assert "seed" not in found[0].settings
    assert set(found[0].settings) == set(flattened(CONFIG)) - {"seed"}
    assert [key for key, _ in differences(groups[:2])] == ["method.name", "method.bits"]
    assert {each.basis for each in found} == {Basis.MEASURED, Basis.FORECAST}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a/x", "a/y"), ["x", "y"]),
        (("a/run", "b/run"), ["a/run", "b/run"]),
        (("a/run", "b/run", "b/c"), ["a/run", "b/run", "b/c"]),
    ],
)
def test_names_tell_folders_apart(paths, names):
    assert names_of([Path(path) for path in paths]) == names
