"""``halocast tune`` and ``halocast plan`` as a user runs them: the loop closes, and goes on where it was broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.integration.training.test_train import halocast

from halocast.traces.plan import read_plan
from halocast.traces.rows import read_rows

pytestmark = pytest.mark.timeout(400)  # the first test waits for a whole loop
SPEC = "generated:nodes=400,degree=8,features=12,classes=4,communities=6,seed=3"
TUNE = [
    "tune", SPEC, "--ranks", "2", "--hidden", "16", "--epochs", "6", "--traced-epochs", "4", "--partitions", "2",
    "--set", "timeout_seconds=60",
]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    done = halocast(*TUNE, "--baseline", "--out", "tuned", "--json", cwd=folder)
    (folder / "document.json").write_text(done.stdout)
    return folder


def test_the_loop_leaves_a_plan_a_trained_run_and_a_verdict(tuned: Path) -> None:
    document = json.loads((tuned / "document.json").read_text())
    folder = tuned / "tuned"
    plan = read_plan(folder / "plan")
    assert plan.world_size == document["ranks"] == 2
    assert plan.baseline is not None
    assert plan.baseline.measured
    assert plan.baseline.accuracy is not None
    assert document["epochs"] == 6
    assert document["forecast"]["epoch_seconds"] == plan.forecast.epoch_seconds
    assert " × plain" in document["verdict"]
    assert "accuracy" in document["verdict"]
    rows = read_rows(folder / "quantised")
    assert rows is not None
    assert all(each.sensitivity > 0 for each in rows.exchanges)
    stages = document["stages"]
    assert {"tracing plain", "tracing quantised", "calibrating", "planning", "trying", "training"} <= set(stages)
    page = (folder / "report.html").read_text()
    assert document["verdict"].split(" [")[0] in page
    assert (folder / "report.png").stat().st_size > 10_000


def test_an_interrupted_tuning_goes_on_with_what_is_on_disk(tuned: Path) -> None:
    folder = tuned / "tuned"
    kept = {name: (folder / name / "result.json").stat().st_mtime_ns for name in ("plain", "quantised", "trial-0")}
    before = json.loads((folder / "run" / "result.json").read_text())
    shutil.rmtree(folder / "run")
    done = halocast(*TUNE, "--baseline", "--out", "tuned", "--json", cwd=tuned)
    assert "going on with tuned" in done.stderr
    assert "tracing" not in done.stderr.replace("training", "")
    after = json.loads(done.stdout)
    assert after["loss"] == before["loss"]  # the same plan, the same training
    for name, stamp in kept.items():
        assert (folder / name / "result.json").stat().st_mtime_ns == stamp


def test_a_folder_of_another_tuning_is_refused(tuned: Path) -> None:
    refused = halocast(*TUNE[:-4], "--set", "model.dropout=0.1", "--out", "tuned", cwd=tuned, check=2)
    assert "tuned holds a tuning of another config (" in refused.stderr
    (tuned / "mine").mkdir()
    (tuned / "mine" / "thesis.tex").write_text("")
    assert "holds no tuning" in halocast(*TUNE, "--out", "mine", cwd=tuned, check=2).stderr


def test_a_plan_is_made_from_costs_and_trained(tuned: Path) -> None:
    done = halocast(
        "plan", "tuned/costs.json", "--data", "tuned/quantised/config.toml", "--variance", "0.001", "--out", "planned",
        "--json", cwd=tuned,
    )  # fmt: skip
    document = json.loads(done.stdout)
    plan = read_plan(tuned / "planned")
    assert document["plan"]["variance"] == plan.variance <= 0.001
    assert any(each["chosen"] for each in document["candidates"])
    assert sum(each["front"] for each in document["candidates"]) >= 1
    trained = halocast("train", "--plan", "planned", "--epochs", "3", "--out", "run", "--json", cwd=tuned)
    assert json.loads(trained.stdout)["verdict"].startswith("forecast ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch-seconds", "1e-9"], "no plan takes 1e-06 ms an epoch: the fastest takes"),
        (["--memory", "1000"], "no candidate fits in 0 MB a rank"),
        (["--exchange-bytes", "3"], "3 bytes are too few"),
        (["--risk", "0.1", "--variance", "0.1"], "--risk and --variance are different goals"),
        (["--risk", "-1"], "--risk -1.0 is out of range"),
        (["--method", "adapq"], "did you mean 'adaqp'"),
        (["--ranks", "2", "--max-ranks", "4"], "--ranks and --max-ranks both say how many"),
        (["--set", "model.layer=gnc"], "did you mean 'gcn'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(tuned: Path, arguments: list[str], message: str) -> None:
    done = halocast(
        "plan", "tuned/costs.json", "--data", "tuned/quantised/config.toml", *arguments, "--out", "never", cwd=tuned, check=2
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("halocast:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tuned / "never").exists()
