"""``halocast whatif``: a folder, its answers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.unit.simulator.whatif.grids import GRID, REPOSITORY, RUN_FILE, command

from halocast.cli import run
from halocast.errors import MisuseError
from halocast.simulator.costs import Costs
from halocast.simulator.whatif import Evaluator, WhatIf, read_whatif
from halocast.simulator.whatif.table import COLUMNS


@pytest.fixture(scope="module")
def result(folder: Path) -> WhatIf:
    return read_whatif(folder)


def test_every_combination_has_a_row(result: WhatIf) -> None:
    table = result.table
    assert len(table) == 5 * 2 * 2 * 3 == result.manifest.scenarios
    assert table["scenario"].tolist() == list(range(60))
    assert list(table.columns) == COLUMNS.names
    assert table.loc[table["ranks"] > 1, "name"].is_unique
    assert set(table.loc[table["ranks"] == 1, "name"]) == {"1 x A100", "1 x H100"}  # nothing is sent, whatever the network
    assert "4 x H100, ethernet-10g, adaqp 2 bits" in set(table["name"])
    manifest = result.manifest
    assert [axis.name for axis in manifest.axes] == ["ranks", "device", "network", "method", "bits"]
    assert manifest.fixed["partition"] == "metis/cut"
    assert (manifest.currency, manifest.deadline_seconds, manifest.budget, manifest.epochs) == ("EUR", 4.5, 0.01, 1000)
    assert {name: price.value for name, price in manifest.prices.items()} == {"A100": 2.0, "H100": 4.5}
    assert manifest.graph.nodes == 12_000


def test_rows_are_the_evaluators(result: WhatIf, movable: Costs, evaluator: Callable[..., Evaluator]) -> None:
    import tomllib

    document = tomllib.loads(GRID)
    alone = evaluator(**{name: document[name] for name in ("cluster", "training", "prices", "filters")}, epochs=1000)
    for scenario in (7, 20, 41):
        row = result.table.iloc[scenario]
        point = {name: row[name] for name in ("ranks", "device", "network", "method")}
        expected = alone.row(point | ({"bits": row["bits"]} if row["bits"] else {}))
        for name in ("name", "epoch_seconds", "low", "high", "cost", "training_seconds", "binds", "reason", "peak_bytes"):
            assert row[name] == expected[name], name
        assert list(row["extrapolated"]) == expected["extrapolated"]


def test_impossible_rows_say_why_and_have_no_forecast(result: WhatIf) -> None:
    bad = result.table[result.table["ranks"] == 20_000]
    assert set(bad["reason"]) == {"more ranks than nodes: 20000 for 12000"}
    assert bad[["epoch_seconds", "cost", "efficiency", "peak_bytes"]].isna().all().all()
    assert not bad["feasible"].any()


def test_parts_add_up_to_the_epoch(result: WhatIf, movable: Costs) -> None:
    known = result.table.dropna(subset=["epoch_seconds"])
    parts = known[["compute", "quantise", "exchange_exposed", "all_reduce_exposed", "posting_messages", "wait"]]
    # an epoch is as rank 0 measures it; all others wait for what rank 0 does between two of them
    between = (parts.sum(axis=1) - known["epoch_seconds"]) / movable.host.first_rank_seconds
    assert (between > -0.01).all()
    assert (between < 1.01).all()
    words = {
        "exchange_exposed": "exchange",
        "all_reduce_exposed": "all-reduce",
        "posting_messages": "posting",
        "wait": "between operations",
    }
    assert known["binds"].tolist() == [words.get(name, name) for name in parts.idxmax(axis=1)]


def test_efficiency_is_of_the_series(result: WhatIf) -> None:
    known = result.table.dropna(subset=["epoch_seconds"])
    for _, series in known.groupby(["device", "network", "method", "bits"]):
        base = series[series["ranks"] == 1].iloc[0]
        expected = base["epoch_seconds"] / series["epoch_seconds"] / series["ranks"]
        assert np.allclose(series["efficiency"], expected)


def test_hosts_of_many_are_compared_with_the_fewest_ranks_there_are(movable_file: Path, tmp_path: Path) -> None:
    """Four ranks a host have no fewer than four to begin with, and yet are no 100 % of one."""
    path = tmp_path / "grid.toml"
    path.write_text(
        f'data = "{RUN_FILE}"\nepochs = 10\n[cluster]\nranks = [1, 4, 8]\ndevice = "H100"\nnetwork = "ethernet-25g"\n'
        'devices_per_host = [1, 4]\ninside = "nvlink-4"\n[prices]\ncurrency = "EUR"\nH100 = [2, 3]\n'
    )
    assert run(command(path, movable_file, tmp_path / "out")) == 0
    found = read_whatif(tmp_path / "out")
    known = found.table.dropna(subset=["epoch_seconds"])
    (alone,) = set(known.loc[known["ranks"] == 1, "epoch_seconds"])
    assert np.allclose(known["efficiency"], alone / known["epoch_seconds"] / known["ranks"])
    assert set(known.loc[known["devices_per_host"] == 4, "ranks"]) == {4, 8}
    front = found.table[found.table["on_front"]]
    assert not front.duplicated(["training_seconds", "cost"]).any()
    assert found.answers is not None
    assert len({each.series for each in found.answers.knees}) == len(found.answers.knees)  # two prices are one curve


def test_answers_are_what_a_search_of_the_table_finds(result: WhatIf) -> None:
    assert result.answers is not None
    known = result.table.dropna(subset=["epoch_seconds"])
    said = [each.scenarios for each in result.answers.sentences]
    in_time, affordable = known[known["training_seconds"] <= 4.5], known[known["cost"] <= 0.01]
    assert 0 < len(in_time) < len(known)
    assert said[0] == (in_time.sort_values("cost")["scenario"].iloc[0],)
    assert said[1] == (affordable.sort_values("training_seconds")["scenario"].iloc[0],)
    both = in_time[in_time["cost"] <= 0.01]
    assert result.answers.recommended == both.sort_values("cost")["scenario"].iloc[0]
    infeasible = int((~result.table["feasible"]).sum())
    assert result.answers.sentences[5].answer.startswith(f"{infeasible} of 60.")
    assert "more ranks than nodes: 12" in result.answers.sentences[5].answer


def test_a_graph_that_grows_is_another_task(movable_file: Path, tmp_path: Path) -> None:
    """No answer for ten times the graph is that one should train the small one."""
    path = tmp_path / "grid.toml"
    path.write_text(
        f'data = "{RUN_FILE}"\nepochs = 10\n[cluster]\nranks = [2, 4]\ndevice = ["A100", "H100"]\nnetwork = "ethernet-25g"\n'
        '[growth]\nnodes = [1, 10]\n[prices]\ncurrency = "EUR"\nA100 = 1\nH100 = 4\n'
    )
    assert run(command(path, movable_file, tmp_path / "out")) == 0
    found = read_whatif(tmp_path / "out")
    table = found.table.set_index("scenario")
    for factor, rows in table.groupby("nodes_factor"):
        times = rows["training_seconds"].to_numpy()
        prices = rows["cost"].to_numpy()
        better = (times[None, :] <= times[:, None]) & (prices[None, :] < prices[:, None])
        better |= (times[None, :] < times[:, None]) & (prices[None, :] <= prices[:, None])
        assert rows["on_front"].tolist() == (~better.any(axis=1)).tolist(), factor
    assert found.answers is not None
    assert table.loc[found.answers.recommended, "nodes_factor"] == 1.0
    others = [each for each in found.answers.sentences if "What would others need?" in each.question]
    assert [each.question for each in others] == ["The answers above are for 1 x the nodes. What would others need?"]
    (grown,) = others[0].scenarios
    of_ten = table[table["nodes_factor"] == 10.0]
    assert grown == of_ten["training_seconds"].idxmin()  # without a deadline the fastest is recommended
    assert others[0].answer.startswith(f"10 x the nodes: {of_ten.loc[grown, 'name']}: ")


def test_knees_are_the_first_ranks_below_half(result: WhatIf) -> None:
    assert result.answers is not None
    known = result.table.dropna(subset=["epoch_seconds"])
    expected = {}
    for _, series in known.groupby(["device", "network", "method", "bits"]):
        below = series[series["efficiency"] < 0.5].sort_values("ranks")
        if len(below):
            expected[tuple(series.sort_values("ranks")["scenario"])] = int(below["ranks"].iloc[0])
    assert {each.scenarios: each.ranks for each in result.answers.knees} == expected
    assert expected


def test_upgrades_differ_in_the_link_alone(result: WhatIf) -> None:
    assert result.answers is not None
    table, recommended = result.table, result.answers.recommended
    assert recommended is not None
    base = table.loc[recommended]
    same = ["ranks", "device", "method", "bits"]
    others = table[(table[same] == base[same]).all(axis=1) & (table["network"] != base["network"])]
    assert [each.scenario for each in result.answers.upgrades] == others.sort_values("training_seconds")["scenario"].tolist()
    (upgrade,) = result.answers.upgrades
    assert (upgrade.seconds_from, upgrade.seconds_to) == (base["training_seconds"], others["training_seconds"].iloc[0])


def test_the_tornado_is_simulated(result: WhatIf) -> None:
    assert result.answers is not None
    row = result.table.loc[result.answers.recommended]
    bars = {bar.input: bar for bar in result.answers.tornado}
    assert bars["epochs"].seconds_low == pytest.approx(0.8 * row["training_seconds"])
    assert bars["epochs"].cost_high == pytest.approx(1.2 * row["cost"])
    assert (bars["epochs"].low, bars["epochs"].high) == ("800 epochs", "1200 epochs")
    price = bars["price"]
    assert (price.seconds_low, price.seconds_high) == (row["training_seconds"],) * 2
    assert price.cost_high == pytest.approx(1.2 * row["cost"])
    assert bars["compute_speed"].seconds_low > row["training_seconds"] > bars["compute_speed"].seconds_high
    assert row["ranks"] == 1
    assert set(bars) == {"compute_speed", "gap", "price", "epochs"}  # nothing is sent
    *others, last = result.answers.tornado
    assert last.input == "epochs"  # 20 % whatever the scenario is
    swings = [abs(bar.seconds_high - bar.seconds_low) for bar in others]
    assert swings == sorted(swings, reverse=True)


def test_finished_folders_hold_no_parts(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["answers.json", "scenarios.parquet", "whatif.json"]


def test_one_document_for_scripts(
    grid: Path, movable_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command(grid, movable_file, tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["scenarios"], document["without_forecast"]) == (60, 12)
    assert document["files"]["scenarios"] == str(tmp_path / "out" / "scenarios.parquet")
    assert document["answers"] == json.loads((folder / "answers.json").read_text())


def test_a_sample_is_rows_of_the_whole(grid: Path, movable_file: Path, result: WhatIf, tmp_path: Path) -> None:
    assert run(command(grid, movable_file, tmp_path / "out", "--sample", "20", "--seed", "4")) == 0
    some = read_whatif(tmp_path / "out").table
    whole = result.table.groupby("name").first()
    assert 10 <= len(some) <= 20  # combinations without sense are told once
    assert some["epoch_seconds"].to_numpy() == pytest.approx(whole.loc[some["name"], "epoch_seconds"].to_numpy(), nan_ok=True)


def test_a_sample_of_a_billion(movable_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(f'data = "{RUN_FILE}"\nepochs = 1\n[cluster]\nranks = "1..1000000000"\nnetwork = "1gbit"\n')
    assert run(command(path, movable_file, tmp_path / "out", "--sample", "5")) == 0
    found = read_whatif(tmp_path / "out")
    (ranks,) = found.manifest.axes
    assert list(ranks.values) == found.table["ranks"].tolist()
    assert len(ranks.values) == 5
    assert not found.table["feasible"].any()  # more ranks than nodes, nearly all of a billion
    assert found.answers is not None
    assert found.answers.recommended is None
    assert found.answers.sentences[-1].answer == "5 of 5. more ranks than nodes: 5."


@pytest.mark.parametrize("backend", ["threading", "loky", "dask"])
def test_backends_agree(backend: str, grid: Path, movable_file: Path, folder: Path, tmp_path: Path) -> None:
    if backend == "dask":
        pytest.importorskip("distributed")
    arguments = ["whatif", str(grid), "--costs", str(movable_file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert run([*arguments, "--backend", backend]) == 0
    assert pq.read_table(tmp_path / "out" / "scenarios.parquet").equals(pq.read_table(folder / "scenarios.parquet"))


def test_nothing_meets_a_filter(grid: Path, movable_file: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text(GRID.replace('deadline = "4.5s"', 'memory = "1kB"\ndeadline = "1ms"'))
    assert run(command(strict, movable_file, tmp_path / "out")) == 0
    found = read_whatif(tmp_path / "out")
    assert found.answers is not None
    assert found.answers.recommended is None
    assert not found.table["feasible"].any()
    assert not found.table["on_front"].any()
    assert found.answers.sentences[0].answer.startswith("None.")
    assert "may need more memory than there is: 48" in found.answers.sentences[5].answer


def test_without_prices_ranks_stand_for_cost(movable_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.toml"
    plain.write_text(f'data = "{RUN_FILE}"\nepochs = 10\n[cluster]\nranks = [1, 2, 4]\ndevice = "A100"\nnetwork = "1gbit"\n')
    assert run(command(plain, movable_file, tmp_path / "out")) == 0
    assert capsys.readouterr().out.count("no prices were given") == 1
    found = read_whatif(tmp_path / "out")
    assert found.table["cost"].isna().all()
    assert (found.manifest.currency, found.manifest.prices) == (None, {})
    order = found.table.sort_values("training_seconds")
    assert order["on_front"].tolist() == (order["ranks"] < order["ranks"].cummin().shift(fill_value=99)).tolist()


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ('data = "debian"\nepochs = 1\n[cluster]\nranks = "1..1000000000"\n', [], "asks for 1,000,000,000 scenarios"),
        ('data = "debain"\n', [], "debain"),
        ("data = \n", [], "is not valid TOML"),
        ("[cluster]\nranks = 2\n", [], "key 'data' is missing"),
        (GRID, ["--backend", "daks"], "--backend daks is unknown; did you mean 'dask'?"),
        (GRID, ["--cluster", "tcp://somewhere:8786"], "--cluster tcp://somewhere:8786 needs --backend dask or ray"),
        (GRID, ["--most", "0"], "--most 0 is out of range; allowed: 1 or more"),
        (GRID, ["--sample", "0"], "--sample 0 is out of range; allowed: 1 or more"),
        (GRID, ["--most", "10"], "asks for 80 scenarios"),
        (GRID, ["--most", "10", "--sample", "20"], "--sample 20 is more than --most 10"),
    ],
)
def test_misuse(
    text: str, flags: list[str], message: str, movable_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    assert run(command(path, movable_file, tmp_path / "out", *flags)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("halocast: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_costs_of_another_version_are_refused(
    grid: Path, movable_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({**json.loads(movable_file.read_text()), "version": 1}))
    assert run(command(grid, old, tmp_path / "out")) == 2
    assert "costs of version 1; this halocast reads 2: calibrate again" in capsys.readouterr().err


def test_the_example_runs(movable_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    example = Path("examples/capacity.toml")
    assert run(command(example, movable_file, tmp_path / "out", "--sample", "40")) == 0
    found = read_whatif(tmp_path / "out")
    assert found.manifest.graph.nodes == 12_000
    assert set(found.table["nodes"]) == {12_000_000}
    assert any("larger graphs have the communities" in line for line in found.manifest.assumed)
    assert found.table["feasible"].any()


def test_devices_need_costs_with_ceilings(
    grid: Path, calibration: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration.costs.save(tmp_path / "bare.json")
    assert run(command(grid, tmp_path / "bare.json", tmp_path / "out")) == 2
    assert "calibrate again with `halocast calibrate`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_hardware_of_ones_own_brings_its_price(movable_file: Path, tmp_path: Path) -> None:
    own, path = tmp_path / "own.toml", tmp_path / "grid.toml"
    figure = '{{ value = {}, source = "own", date = "2026" }}'.format
    own.write_text(
        f'[devices.Slate]\ntitle = "slate"\nkind = "cpu"\nmemory_rate = {figure(1e9)}\ngemm_rate = {figure(1e9)}\n'
        f"copy_rate = {figure(1e9)}\nmemory_bytes = {figure(1e9)}\nprice_per_hour = {figure(7.0)}\n"
    )
    path.write_text(
        f'data = "{RUN_FILE}"\nepochs = 10\nhardware = "{own}"\n[cluster]\ndevice = "slate"\nnetwork = "1gbit"\n'
        '[prices]\ncurrency = "EUR"\n'
    )
    assert run(command(path, movable_file, tmp_path / "out")) == 0
    found = read_whatif(tmp_path / "out")
    (row,) = found.table.to_dict("records")
    assert (row["device"], row["price_per_hour"], row["memory_bytes"]) == ("Slate", 7.0, 1_000_000_000)
    assert row["cost"] == pytest.approx(row["training_seconds"] * 2 * 7.0 / 3600)
    assert found.manifest.prices["Slate"].source == "own, 2026"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "whatif.json").unlink(), "is no what-if folder"),
        (lambda folder: (folder / "whatif.json").write_text("{"), "is not JSON"),
        (lambda folder: _edit(folder, schema_version=2), "what-if of schema 2; this halocast reads 1"),
        (lambda folder: _edit(folder, colour="red"), "colour"),
        (lambda folder: _edit(folder, digest=None), "digest"),
        (lambda folder: (folder / "scenarios.parquet").write_bytes(b"no"), "make it again with `halocast whatif`"),
        (lambda folder: (folder / "answers.json").write_text("{}"), "make it again with `halocast whatif`"),
    ],
)
def test_what_is_no_folder_is_refused(damage: Callable[[Path], Any], message: str, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    damage(copied)
    with pytest.raises(MisuseError, match=message):
        read_whatif(copied)


def _edit(folder: Path, **values: object) -> None:
    path = folder / "whatif.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
