"""``halocast report``: which report which folders make, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import write_forecast_folder, write_run_folder

from halocast.cli import run
from halocast.cli.folders import Kind, kind_of, read_run
from halocast.cli.report import kind_for
from halocast.errors import MisuseError
from halocast.simulator.costs import CalibratedRange, Ceilings, Costs, HostCosts, NetworkCosts
from halocast.traces.trace import read_manifest, write_manifest


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, another, a forecast, and the names of a what-if and a validation."""
    monkeypatch.chdir(tmp_path)
    write_run_folder("one", start=0.1)
    write_run_folder("two", start=0.2, config={"method": {"name": "adaqp"}})
    write_forecast_folder("said")
    for folder, name in (("plans", "whatif.json"), ("table", "validation.json")):
        Path(folder).mkdir()
        Path(folder, name).write_text("{}")


def test_one_run_makes_a_train_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "one", "--out", "one.html"]) == 0
    printed = capsys.readouterr().out
    assert " % of an epoch of 106 ms is waiting for messages" in printed
    assert printed.splitlines()[-1] == "next: halocast export one --to perfetto"
    assert "<h2>Stragglers and imbalance</h2>" in Path("one.html").read_text()


def test_json_is_one_document_of_files_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "one", "two", "--out", "both.csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "compare"
    assert found["verdict"].startswith("two is 1.94 × slower")
    assert found["files"]["report"] == "both.csv"
    assert all(Path(path).is_file() for path in found["files"].values())
    assert Path("both-totals.csv").is_file()


@pytest.mark.parametrize(
    ("name", "flags", "begins"),
    [("r.md", [], "# debian on 2 ranks"), ("r.json", [], "{"), ("r", ["--format", "html"], "<!doctype html>")],
)
def test_the_name_or_the_flag_says_the_format(name: str, flags: list[str], begins: str) -> None:
    assert run(["report", "one", "--out", name, *flags]) == 0
    assert Path(name).read_text().startswith(begins)


def test_files_are_overwritten_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("both-totals.csv").write_text("mine")
    assert run(["report", "one", "two", "--out", "both.csv"]) == 2
    assert "both-totals.csv exists; choose another --out, or overwrite it with --force" in capsys.readouterr().err
    assert not Path("both.csv").exists()
    assert run(["report", "one", "two", "--out", "both.csv", "--force"]) == 0
    assert Path("both-totals.csv").read_text() != "mine"


def test_what_folders_are() -> None:
    kinds = {name: kind_of(Path(name)) for name in ("one", "said", "plans", "table")}
    assert kinds == {"one": Kind.RUN, "said": Kind.FORECAST, "plans": Kind.WHATIF, "table": Kind.VALIDATION}
    Path("one/result.json").unlink()
    assert kind_of(Path("one")) is Kind.RUN


def test_which_report_folders_make() -> None:
    def asked(*names: str) -> str:
        return kind_for([Path(name) for name in names])

    assert [asked("one"), asked("one", "two"), asked("said", "one"), asked("said")] == ["train", "compare", "compare", "train"]
    assert [asked("plans"), asked("table")] == ["capacity", "forecast"]
    assert [asked("one", "said"), asked("table", "one", "said")] == ["forecast", "forecast"]
    assert asked("one", "two", "said") == "compare"
    write_forecast_folder("one/forecast")
    assert asked("one") == "forecast"
    with pytest.raises(MisuseError, match="plans is a what-if folder, which makes a capacity report by itself"):
        asked("one", "plans")


def test_a_forecast_folder_is_reported_as_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "said", "--out", "said.html"]) == 0
    assert "this is a simulated epoch" in capsys.readouterr().out


def test_a_run_with_its_forecast_makes_a_forecast_report(capsys: pytest.CaptureFixture[str]) -> None:
    write_forecast_folder("one/forecast", seconds=0.1, low=0.09, high=0.12)
    assert run(["report", "one", "--out", "one.html"]) == 0
    assert capsys.readouterr().out
    assert run(["report", "one", "--out", "train.html", "--kind", "train"]) == 0
    assert "is waiting for messages" in capsys.readouterr().out


def test_a_forecast_of_another_run_is_not_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    write_forecast_folder("one/forecast")
    assert kind_for([Path("one")]) == "forecast"
    manifest = read_manifest(Path("one/forecast/trace"))
    method = {**manifest.config["method"], "name": "adaqp", "bits": 4}
    write_manifest(Path("one/forecast/trace"), manifest.model_copy(update={"config": {**manifest.config, "method": method}}))
    assert kind_for([Path("one")]) == "train"  # what lies beside it by chance is not shown as its forecast
    assert run(["report", "one", "one/forecast", "--out", "named.html"]) == 2
    said = capsys.readouterr().err
    assert "the forecast is of another run: method adaqp, not full" in said
    assert "--kind compare" in said
    other = manifest.model_copy(update={"graph": manifest.graph.model_copy(update={"fingerprint": "0" * 16})})
    write_manifest(Path("one/forecast/trace"), other)
    assert kind_for([Path("one")]) == "train"
    assert run(["report", "one", "one/forecast", "--out", "named.html"]) == 2
    assert "of another run: graph" in capsys.readouterr().err


def test_a_killed_run_makes_an_unfinished_report(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one/result.json").unlink()
    write_manifest(Path("one/trace"), read_manifest(Path("one/trace")).model_copy(update={"finished": False}))
    cut = Path("one/metrics.csv").read_text()
    Path("one/metrics.csv").write_text(cut[: cut.rindex("\n", 0, -1) + 4])  # killed while it wrote the last line
    assert run(["report", "one", "--out", "one.html"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Unfinished: ")
    assert "the run did not finish" in printed
    found = read_run(Path("one"))
    assert found.exchange_bytes_per_epoch > 0
    assert found.accuracy == {"train": 0.8, "val": 0.7, "test": 0.6}


def test_ceilings_come_from_costs_that_hold_them(capsys: pytest.CaptureFixture[str]) -> None:
    ceilings = Ceilings(memory_rate=20e9, gemm_rate=100e9, date="2026-01-01", machine="a processor")
    costs = Costs(
        machine="a processor",
        device="cpu",
        memory_bytes=1,
        host=HostCosts(cores=2),
        network=NetworkCosts(),
        memory=None,
        operations={},
        errors=(),
        noise=0.0,
        noise_at_speed=0.0,
        calibrated=CalibratedRange(graphs={}, ranks=(), widths=(), links=(), methods=(), threads=()),
        runs=(),
    )
    costs.save(Path("bare.json"))
    assert run(["report", "one", "--out", "one.html", "--costs", "bare.json"]) == 2
    assert "bare.json holds no ceilings; calibrate again" in capsys.readouterr().err
    costs.model_copy(update={"ceilings": ceilings}).save(Path("costs.json"))
    assert run(["report", "one", "--out", "one.html", "--costs", "costs.json"]) == 0
    assert "--costs COSTS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.html"], "name at least one folder"),
        (["nowhere", "--out", "x.html"], "nowhere is no folder"),
        (["one/result.json", "--out", "x.html"], "one/result.json is a file, not a folder"),
        (["one/trace", "--out", "x.html"], "give the folder around it: one"),
        (["empty", "--out", "x.html"], "empty holds nothing to report"),
        (["one", "--out", "x.pdf"], "its name must end in .html, .md, .json, .csv"),
        (["one", "--out", "x.html", "--format", "htm"], "--format htm is unknown; did you mean 'html'?"),
        (["one", "--out", "x.html", "--kind", "trian"], "--kind trian is unknown; did you mean 'train'?"),
        (["one", "two", "--out", "x.html", "--kind", "train"], "a train report is of one folder, not 2"),
        (["one", "two", "--out", "x.html", "--costs", "c.json"], "--costs draws the ceilings of a train report"),
        (["one", "--out", "x.html", "--reference", "one"], "--reference belongs to a compare report"),
        (["one", "two", "--out", "x.html", "--reference", "oen"], "did you mean 'one'?"),
        (["one", "./one", "--out", "x.html"], "one is given twice"),
        (["one", "--out", "x.html", "--kind", "compare"], "nothing to be compared with"),
        (["one", "--out", "x.html", "--kind", "forecast"], "one has no forecast beside it"),
        (["one", "damaged", "--out", "x.html"], "damaged/result.json cannot be read"),
        (["untraced", "--out", "x.html"], "untraced has no trace"),
        (["newer", "two", "--out", "x.html"], "trace of schema 99; this halocast reads up to"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    write_run_folder("untraced", traced=False)
    write_run_folder("damaged")
    Path("damaged/result.json").write_text('{"run": ')
    write_run_folder("newer")
    manifest = json.loads(Path("newer/trace/manifest.json").read_text())
    Path("newer/trace/manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    assert run(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(Path.cwd().glob("x.*"))


def test_reports_never_import_torch() -> None:
    program = (
        "import sys; from halocast.cli import run; code = run(['report', 'one', '--out', 'one.html']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
