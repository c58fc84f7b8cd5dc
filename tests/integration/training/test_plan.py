"""``halocast train --plan DIR`` as a user runs it: what the plan says is done, and the run ends with what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.integration.training.test_train import halocast
from tests.support.plans import make_plan

from halocast.traces.operations import Direction
from halocast.traces.plan import widths_name

pytestmark = pytest.mark.timeout(300)  # several runs a test
SPEC = "generated:nodes=300,degree=8,features=12,classes=4,communities=6,seed=3"
QUICK = ["--set", "timeout_seconds=60", "--epochs", "4"]


def test_a_plan_alone_is_trained_and_judged(tmp_path: Path) -> None:
    plan, arrays = make_plan(tmp_path / "plan", SPEC)
    result = json.loads(halocast("train", "--plan", "plan", *QUICK, "--out", "run", "--json", cwd=tmp_path).stdout)
    assert result["ranks"] == 2
    assert result["fingerprint"] == plan.graph.fingerprint
    sent = np.concatenate([array for name, array in arrays.items() if name.endswith("_rank0")])
    assert result["bits"] == {str(bits): int((sent == bits).sum()) for bits in np.unique(sent)}
    assert result["plan"] == "plan"
    assert result["forecast"]["epoch_seconds"] == 0.412
    seconds = pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch_seconds"]
    assert result["error"] == pytest.approx(0.412 / seconds[2:].median() - 1.0)
    assert result["verdict"].startswith("forecast 0.412 s [0.398, 0.431], measured ")
    assert f"accuracy {result['accuracy']['test']:.3f} against 0.701" in result["verdict"]
    # a run file that names it does the same, and a person reads the verdict before the files
    (tmp_path / "run.toml").write_text('plan = "plan"\n[training]\nepochs = 4\n')
    lines = halocast("train", "run.toml", "--out", "again", cwd=tmp_path).stdout.splitlines()
    verdict = next(number for number, line in enumerate(lines) if "forecast 0.412 s" in line)
    assert lines[verdict + 1].split()[0] == "config"
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].tolist() for name in ("run", "again")]
    assert losses[0] == losses[1]


def test_widths_are_renewed_at_the_plans_prices_and_a_broken_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    make_plan(tmp_path / "plan", SPEC, priced=True, reassign_every=2)
    common = ["--plan", "plan", "--set", "timeout_seconds=60"]
    whole = json.loads(halocast("train", *common, "--epochs", "7", "--out", "whole", "--json", cwd=tmp_path).stdout)
    assert [each["epoch"] for each in whole["assignments"]] == [2, 4, 6]
    assert whole["assignments"][0]["changed"] > 0
    for each in whole["assignments"]:
        (solution,) = each["problems"]
        assert solution["cost"] <= solution["budget"] * (1 + 1e-12)
        assert solution["variance"] <= solution["variance_before"]
    halocast("train", *common, "--epochs", "3", "--out", "broken", cwd=tmp_path)
    resumed = halocast("train", *common, "--out", "broken", "--resume", "--epochs", "7", "--json", cwd=tmp_path)
    assert "resumed after epoch 3" in resumed.stderr
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].tolist() for name in ("whole", "broken")]
    assert losses[0] == losses[1]
    result = json.loads(resumed.stdout)
    assert result["bits"] == whole["bits"]
    assert result["verdict"].startswith("forecast 0.412 s")
    refused = halocast("train", "--plan", "other", "--out", "broken", "--resume", cwd=tmp_path, check=2)
    assert "which follows the plan plan, not other; leave --plan out" in refused.stderr
    make_plan(tmp_path / "plan", SPEC, priced=True, reassign_every=2, choices=(4,))
    refused = halocast("train", "--out", "broken", "--resume", "--epochs", "9", cwd=tmp_path, check=2)
    assert "method.bits_sha256" in refused.stderr


def test_widths_cannot_be_renewed_without_prices(tmp_path: Path) -> None:
    make_plan(tmp_path / "plan", SPEC, reassign_every=2)
    refused = halocast("train", "--plan", "plan", "--out", "run", cwd=tmp_path, check=2)
    assert "arrays.npz has no prices to renew widths by" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ranks", "3"], "ranks = 3, but the plan in plan is for 2"),
        ([SPEC.replace("seed=3", "seed=4")], "the plan in plan is for graph 'generated"),
        (["--set", "plan=nowhere"], "no plan in nowhere"),
    ],
)
def test_what_contradicts_the_plan_is_refused_before_anything_is_written(
    arguments: list[str], line: str, tmp_path: Path
) -> None:
    make_plan(tmp_path / "plan", SPEC)
    refused = halocast("train", "--plan", "plan", *arguments, "--out", "run", cwd=tmp_path, check=2)
    assert line in refused.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda widths: np.full_like(widths, 7), "gives message 0 7 bits"),
        (lambda widths: widths[:-1], "was it made for this graph, partition and model?"),
    ],
)
def test_widths_that_do_not_fit_are_one_line(change: Any, line: str, tmp_path: Path) -> None:
    name = widths_name(1, Direction.FORWARD, 1)
    _, arrays = make_plan(tmp_path / "plan", SPEC)
    make_plan(tmp_path / "plan", SPEC, arrays={name: change(arrays[name])})
    refused = halocast("train", "--plan", "plan", *QUICK, "--out", "run", cwd=tmp_path, check=2)
    last = refused.stderr.strip().splitlines()[-1]
    assert line in last
    assert f"'{name}'" in last


def test_a_dry_run_knows_the_plan(tmp_path: Path) -> None:
    make_plan(tmp_path / "plan", SPEC)
    foretold = json.loads(halocast("train", "--plan", "plan", "--dry-run", "--json", cwd=tmp_path).stdout)
    result = json.loads(halocast("train", "--plan", "plan", "--epochs", "1", "--json", cwd=tmp_path).stdout)
    assert sum(rank["exchange_per_epoch"] for rank in foretold["ranks"]) == result["exchange_bytes_per_epoch"]
