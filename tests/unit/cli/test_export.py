"""``halocast export``: which runs, in which order, in which files; the formats themselves are tested beside their writers."""

import gzip
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from tests.support.chrome_trace import import_chrome_trace

from halocast.cli import run
from halocast.traces.export import chakra
from halocast.traces.trace import write_manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden"))
from synthetic import Scenario, write_synthetic_run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs():
    """A measured run of three epochs and a forecast of one."""
    write_synthetic_run(Path("run/trace"), Scenario(epochs=3, noise=0.5))
    manifest = write_synthetic_run(Path("forecast/trace"), Scenario(epochs=1, bits=4))
    write_manifest(Path("forecast/trace"), manifest.model_copy(update={"config": {**manifest.config, "forecast": True}}))


def processes(path):
    imported = import_chrome_trace(gzip.decompress(Path(path).read_bytes()).decode())
    assert imported.problems == []
    return imported, [imported.processes[process] for process in sorted(imported.order, key=imported.order.get)]


@pytest.mark.parametrize("order", [["run", "forecast"], ["forecast", "run"]])
def test_measured_is_above_forecast_whatever_the_order_given(runs, capsys, order):
    assert run(["export", *order, "--to", "perfetto", "--out", "both.json.gz", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["traces"] == {"measured": "run/trace", "forecast": "forecast/trace"}
    imported, names = processes("both.json.gz")
    assert names == ["measured: rank 0", "measured: rank 1", "forecast: rank 0", "forecast: rank 1"]
    assert len(imported.slices) == document["spans"]
    assert {slice_.args["epoch"] for slice_ in imported.slices if slice_.process > 1} == {0}
    assert len({slice_.args["epoch"] for slice_ in imported.slices if slice_.process < 2}) == 1


def test_the_epoch_asked_for_is_of_the_measured_runs(runs):
    assert run(["export", "run", "forecast", "--epoch", "2", "--out", "both.json.gz"]) == 0
    imported, _ = processes("both.json.gz")
    assert {(slice_.process // 2, slice_.args["epoch"]) for slice_ in imported.slices} == {(0, 2), (1, 0)}


def test_runs_of_a_kind_are_called_by_their_folder(runs):
    write_synthetic_run(Path("other/run/trace"), Scenario(epochs=1))
    assert run(["export", "run", "other/run", "forecast", "--out", "three.json.gz"]) == 0
    _, names = processes("three.json.gz")
    assert names[::2] == ["measured run: rank 0", "measured run (2): rank 0", "forecast: rank 0"]


def test_one_run_keeps_all_its_epochs_unless_one_is_asked_for(runs):
    assert run(["export", "run"]) == 0
    assert {slice_.args["epoch"] for slice_ in processes("run/trace.perfetto.json.gz")[0].slices} == {0, 1, 2}
    assert run(["export", "run", "--epoch", "1", "--force"]) == 0
    assert {slice_.args["epoch"] for slice_ in processes("run/trace.perfetto.json.gz")[0].slices} == {1}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_several_runs_say_which(runs, kind):
    assert run(["export", "forecast", "run", "--to", kind, "--out", "tables"]) == 0
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    for table in ("spans", "messages"):
        frame = read(f"tables/{table}.{kind}")
        assert frame.columns[0] == "run"
        assert frame.groupby("run")["epoch"].nunique().to_dict() == {"measured": 3, "forecast": 1}


def test_chakra_is_read_back(runs, capsys):
    assert run(["export", "run", "--to", "chakra", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == []
    assert sorted(path.name for path in Path("run/chakra").iterdir()) == ["trace.0.et", "trace.1.et"]


def test_a_file_that_differs_from_the_trace_is_exit_code_3(runs, capsys, monkeypatch):
    write = chakra.write_delimited

    def losing_the_step(file, message):
        if not (hasattr(message, "id") and message.name.startswith("Step")):
            write(file, message)

    monkeypatch.setattr(chakra, "write_delimited", losing_the_step)
    assert run(["export", "run", "--to", "chakra"]) == 3
    found = re.search(r"differs from the trace: rank 0: (\d+) compute nodes, (\d+) in the trace", capsys.readouterr().err)
    assert int(found[1]) == int(found[2]) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to export: give a run folder, or several"),
        (["run", "forecast", "--to", "hta"], "--to hta takes one run, 2 were given; perfetto, csv and parquet take several"),
        (["run", "forecast", "--to", "chakra"], "--to chakra takes one run"),
        (["run", "--epoch", "3"], "no training epoch 3 in this trace; it has 0 to 2"),
        (["run", "--to", "chakra", "--out", "forecast"], "forecast exists; choose another --out, or overwrite it with --force"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, arguments, message):
    assert run(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
