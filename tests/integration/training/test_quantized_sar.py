"""``halocast train --method sar --bits`` as a user runs it: real processes, and traces that programs explain."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.integration.training.test_train import GRAPH, SMALL, halocast

from halocast.simulator.observations import observe
from halocast.traces.rows import read_rows
from halocast.traces.trace import read_trace

SAVINGS = [
    argument
    for name in ("aggregate_features_once", "transform_first", "keep_halo_features")
    for argument in ("--set", f"method.exact.{name}=false")
]
"""All but one are off: gradients of labelled rows only, so that a part of the last layer's messages is fetched again."""
COMMON = ["train", GRAPH, *SMALL, *SAVINGS, "--method", "sar", "--json"]


@pytest.mark.parametrize(
    ("model", "bits", "method"),
    [
        ("sage", "4", ["--set", "method.prefetch=2"]),
        ("gat", "random", []),
        ("gat", "2", ["--set", "method.rounding=rotated", "--set", "method.keep=[1]"]),
        ("sage-max", "adaptive", ["--set", "method.reassign_every=4", "--set", "method.adaptive.group_size=20"]),
    ],
)
def test_what_was_traced_is_what_is_simulated(model: str, bits: str, method: list[str], tmp_path: Path) -> None:
    chosen = ["--model", model, "--bits", bits, *method, "--ranks", "3", "--epochs", "6"]
    result = json.loads(halocast(*COMMON, *chosen, "--out", "run", cwd=tmp_path).stdout)
    observation = observe(tmp_path / "run")  # refuses a trace whose operations are not those of the program
    assert observation.configuration.bits == bits
    assert all(each is not None for each in observation.bits)
    epoch = observation.epochs[-1]
    simulated = [each for rank in observation.operations for each in rank if type(each).__name__ == "Exchange"]
    assert sum(each.work.bytes_out for each in simulated) == result["exchange_bytes_per_epoch"]
    messages = read_trace(tmp_path / "run").messages
    sent = messages[(messages["phase"] == "train") & (messages["epoch"] == epoch)]
    assert sent["bytes_out"].sum() == result["exchange_bytes_per_epoch"]


def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    chosen = ["--model", "gat", "--bits", "adaptive", "--ranks", "2", "--set", "training.checkpoint_every=3"]
    chosen += ["--set", "method.reassign_every=2", "--set", "method.adaptive.group_size=20"]
    halocast(*COMMON, *chosen, "--epochs", "7", "--out", "whole", cwd=tmp_path)
    halocast(*COMMON, *chosen, "--epochs", "3", "--out", "broken", cwd=tmp_path)
    halocast("train", "--out", "broken", "--resume", "--epochs", "7", "--json", cwd=tmp_path)
    tables = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    assert tables[0]["loss"].tolist() == tables[1]["loss"].tolist()


def test_rows_are_recorded_for_widths_to_be_planned_from(tmp_path: Path) -> None:
    chosen = ["--model", "sage", "--bits", "8", "--ranks", "2", "--epochs", "3", "--set", "trace.rows=true"]
    halocast(*COMMON, *chosen, "--out", "run", cwd=tmp_path)
    recorded = read_rows(tmp_path / "run")
    assert recorded is not None
