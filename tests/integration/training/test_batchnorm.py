"""`model.norm = "batch"` from a run file: processes over gloo, the trace they leave, a run that goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.integration.training.test_train import GRAPH, halocast

from halocast.simulator.calibrate import calibrate
from halocast.simulator.forecast import Scenario, bytes_of, forecast
from halocast.simulator.observations import observe, structure, traced_structure
from halocast.traces.export.chakra import check_chakra, export_chakra

RUN = f"""
graph = "{GRAPH}"
ranks = RANKS
seed = 4
dtype = "float64"
timeout_seconds = 60

[model]
layer = "sage"
layers = 3
hidden = 16
dropout = 0.3
norm = "batch"

[method]
name = "METHOD"
exact = {{keep_halo_features = false}}

[training]
epochs = 8
evaluate_every = 2
checkpoint_every = 3
"""


def train(folder: Path, ranks: int, *, out: str, method: str = "full", check: int = 0) -> dict[str, Any]:
    (folder / f"{out}.toml").write_text(RUN.replace("RANKS", str(ranks)).replace("METHOD", method))
    finished = halocast("train", f"{out}.toml", "--out", out, "--json", cwd=folder, check=check)
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def network_of(folder: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    checkpoint = max((folder / "checkpoints").glob("epoch-*"))
    _load_state_dict(state, dcp.FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    network: dict[str, torch.Tensor] = state["network"]
    return network


@pytest.mark.parametrize("method", ["full", "sar"])
def test_two_ranks_train_and_evaluate_as_one_does(method: str, tmp_path: Path) -> None:
    results = [train(tmp_path, ranks, out=f"run{ranks}", method=method) for ranks in (1, 2)]
    tables = [pd.read_csv(tmp_path / f"run{ranks}" / "metrics.csv") for ranks in (1, 2)]
    np.testing.assert_allclose(tables[1]["loss"], tables[0]["loss"], rtol=1e-9)
    assert tables[0]["loss"].iloc[-1] < tables[0]["loss"].iloc[0]
    assert results[1]["accuracy"] == pytest.approx(results[0]["accuracy"])
    one, two = (network_of(tmp_path / f"run{ranks}") for ranks in (1, 2))
    for name in ("norms.0.running_mean", "norms.1.running_var", "norms.1.weight"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-8, atol=1e-10)
    assert int(one["norms.0.num_batches_tracked"]) == 8


def test_resume_reproduces_the_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    """Running statistics are in the checkpoint: losses, metrics by running statistics and the statistics themselves."""
    for name in ("whole", "broken"):
        train(tmp_path, 2, out=name)
    for path in (tmp_path / "broken" / "checkpoints").glob("epoch-000008*"):
        shutil.rmtree(path)  # as a run that was killed in epoch 7 leaves it
    finished = halocast("train", "--out", "broken", "--resume", "--json", cwd=tmp_path)
    assert "resumed after epoch 6" in finished.stderr
    whole, broken = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "broken"))
    columns = ["loss", "train", "val", "test"]
    pd.testing.assert_frame_equal(whole[columns], broken[columns], check_exact=True)
    states = [network_of(tmp_path / name) for name in ("whole", "broken")]
    assert states[0].keys() == states[1].keys()
    assert {"norms.0.running_mean", "norms.0.running_var"} <= states[0].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("method", ["full", "sar"])
def test_the_simulator_follows(method: str, tmp_path: Path) -> None:
    """Simulated operations are the traced ones, bytes the run's own, every operation gets a price, and exports check out."""
    result = train(tmp_path, 2, out="run", method=method)
    run = observe(tmp_path / "run")
    for rank, operations in enumerate(run.operations):
        for epoch in run.epochs:
            assert traced_structure(run.spans, rank, epoch) == structure(operations)
        assert sum(each.detail == "statistics" for each in operations) == 3 * 2
    assert bytes_of(run.unpriced) == (result["exchange_bytes_per_epoch"], result["bytes_per_epoch"])
    costs = calibrate([run], jobs=1).costs
    for operations in run.operations:
        for each in operations:
            if type(each).__name__ != "Wait":
                assert costs.price(each, run.configuration.fingerprint, 2).seconds >= 0.0
    assert check_chakra(run.trace, export_chakra(run.trace, tmp_path / "et")) == []
    scenario = Scenario(run.configuration.graph, run.configuration.fingerprint, run.workload, method, run.bits, 0.0)
    told, simulation = forecast(costs, scenario)
    assert told.bytes_per_epoch == result["bytes_per_epoch"]
    assert [structure(each.operations) for each in simulation.work] == [structure(each) for each in run.operations]
