"""``halocast train --method adaqp`` as a user runs it: real processes, files, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.integration.training.test_train import GRAPH, SMALL, halocast
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from halocast.traces.rows import read_rows
from halocast.traces.trace import read_trace

NO_SAVINGS = [
    argument
    for name in ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
    for argument in ("--set", f"method.exact.{name}=false")
]
COMMON = ["train", GRAPH, *SMALL, *NO_SAVINGS, "--ranks", "2", "--json"]


def test_fewer_bits_move_fewer_bytes_and_the_trace_says_which(tmp_path: Path) -> None:
    full = json.loads(halocast(*COMMON, "--epochs", "4", "--out", "full", cwd=tmp_path).stdout)
    four = json.loads(
        halocast(*COMMON, "--epochs", "4", "--method", "adaqp", "--bits", "4", "--out", "four", cwd=tmp_path).stdout
    )
    assert four["method"] == "adaqp"
    assert set(four["bits"]) == {"4"}
    assert four["exchange_bytes_per_epoch"] < 0.25 * full["exchange_bytes_per_epoch"]
    assert four["loss"] == pytest.approx(full["loss"], rel=0.2)
    trace = read_trace(tmp_path / "four" / "trace")
    training = trace.messages[trace.messages["phase"] == "train"]
    assert {bits for histogram in training["bits_out"] for bits, _ in histogram} == {4}
    evaluation = trace.messages[trace.messages["phase"] == "evaluate"]
    assert {bits for histogram in evaluation["bits_out"] for bits, _ in histogram} == {32}
    spans = trace.spans[(trace.spans["phase"] == "train") & (trace.spans["epoch"] == 3) & (trace.spans["stream"] == "compute")]
    assert {(op, direction) for op, direction in zip(spans["op"], spans["direction"], strict=True) if "uantize" in op} == {
        (op, direction) for op in ("Quantize", "Dequantize") for direction in ("forward", "backward")
    }
    sent = training[training["epoch"] == 3]["bytes_out"].sum()
    assert sent == four["exchange_bytes_per_epoch"]


def test_an_adaptive_run_resumes_bit_for_bit_with_the_widths_it_had(tmp_path: Path) -> None:
    adaptive = ["--method", "adaqp", "--set", "method.reassign_every=3", "--set", "method.adaptive.group_size=20"]
    every = ["--set", "training.checkpoint_every=3", *adaptive]
    whole = halocast(*COMMON, "--epochs", "10", "--out", "whole", *every, cwd=tmp_path)
    assert "widths from epoch 3 on" in whole.stderr
    halocast(*COMMON, "--epochs", "6", "--out", "broken", *every, cwd=tmp_path)
    resumed = halocast("train", "--out", "broken", "--resume", "--epochs", "10", "--json", cwd=tmp_path)
    assert "resumed after epoch 6" in resumed.stderr
    tables = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "broken")]
    assert tables[0]["loss"].tolist() == tables[1]["loss"].tolist()
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "broken")]
    assert results[0]["bits"] == results[1]["bits"]
    assert len(results[0]["bits"]) > 1
    assert [each["epoch"] for each in results[0]["assignments"]] == [3, 6, 9]


def test_a_run_whose_periods_are_shares_of_it_cannot_be_extended(tmp_path: Path) -> None:
    halocast(*COMMON, "--epochs", "5", "--method", "adaqp", "--out", "run", cwd=tmp_path)
    refused = halocast("train", "--out", "run", "--resume", "--epochs", "8", cwd=tmp_path, check=2)
    assert "epochs 5 → 8" in refused.stderr.strip().splitlines()[-1]


def test_recording_rows_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    adaptive = ["--method", "adaqp", "--epochs", "4", "--set", "method.reassign_every=2", "--set", "trace.flush_seconds=60"]
    plain = json.loads(halocast(*COMMON, *adaptive, "--out", "plain", cwd=tmp_path).stdout)
    finished = halocast(*COMMON, *adaptive, "--set", "trace.rows=true", "--out", "rows", cwd=tmp_path)
    assert "recording what messages look like" in finished.stderr
    recorded = json.loads(finished.stdout)
    measured = {"run", "epoch_seconds", "peak_bytes", "footprint", "files", "assignments"}
    assert {key: recorded[key] for key in recorded.keys() - measured} == {key: plain[key] for key in plain.keys() - measured}
    ours, theirs = (load_checkpoint(max((tmp_path / name / "checkpoints").glob("epoch-*"))) for name in ("rows", "plain"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    traces = [read_trace(tmp_path / name / "trace") for name in ("rows", "plain")]
    assert len(traces[0].spans) == len(traces[1].spans)
    assert set(traces[0].spans["epoch"]) == set(traces[1].spans["epoch"])
    rows = read_rows(tmp_path / "rows")
    assert rows is not None
    assert {int(rank) for each in rows.exchanges for rank in each.sender} == {0, 1}
    assert read_rows(tmp_path / "plain") is None


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whatever its shape."""
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in FileSystemReader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_dry_run_knows_the_bytes_of_quantised_messages(tmp_path: Path) -> None:
    arguments = [*COMMON, "--method", "adaqp", "--bits", "random"]
    foretold = json.loads(halocast(*arguments, "--dry-run", cwd=tmp_path).stdout)
    result = json.loads(halocast(*arguments, "--epochs", "1", "--out", "run", cwd=tmp_path).stdout)
    assert sum(rank["exchange_per_epoch"] for rank in foretold["ranks"]) == result["exchange_bytes_per_epoch"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "adaqp", "--bits", "7"], "7"),
        (["--method", "adaqp", "--bits", "adaptiv"], "adaptive"),
        (["--method", "adaq"], "adaqp"),
        (["--method", "adaqp", "--bits", "0", "--set", "method.dropping=true"], "with every message dropped none is left"),
        (["--bits", "4"], "method full sends rows as they are"),
        (["--method", "adaqp", "--set", "dtype=float64"], "adaqp sends float32 rows"),
        (["--method", "adaqp", "--set", "method.adaptive.choices=[2,7]"], "width 7 is unknown"),
        (["--method", "adaqp", "--bits", "nowhere.npz"], "nowhere.npz"),
        (["--set", "trace.rows=true"], "method full has none: use --method adaqp"),
        (["--method", "adaqp", "--set", "trace.rows=true", "--set", "trace.enabled=false"], "rows are kept in the trace"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(arguments: list[str], line: str, tmp_path: Path) -> None:
    refused = halocast(*COMMON, *arguments, "--out", "run", cwd=tmp_path, check=2)
    assert line in refused.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_width_array_of_the_wrong_length_names_the_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "widths.npz", layer0_forward_rank0=np.full(3, 4, np.uint8))
    refused = halocast(*COMMON, "--method", "adaqp", "--bits", "widths.npz", "--out", "run", cwd=tmp_path, check=2)
    assert "layer0_forward_rank0" in refused.stderr.strip().splitlines()[-1]


def write_widths_with_zeros(folder: Path, ranks: int) -> dict[str, int]:
    """A width file for the run in `folder`/probe, a third of each pair's messages at 0; {exchange: dropped messages}."""
    messages = read_trace(folder / "probe" / "trace").messages
    sent = messages[(messages["phase"] == "train") & (messages["epoch"] == 0) & messages["bytes_out"].gt(0)]
    arrays, dropped = {}, {}
    for (rank, layer, direction), rows in sent.sort_values("peer").groupby(["rank", "layer", "direction"]):
        counts = [sum(count for _, count in histogram) for histogram in rows["bits_out"]]
        # of each pair's messages, every third, but never all
        widths = [np.where(np.arange(count) % 3 == 1, 0, np.where(np.arange(count) % 2, 8, 2)) for count in counts]
        arrays[f"layer{layer}_{direction}_rank{rank}"] = np.concatenate(widths).astype(np.uint8)
        name = f"{layer} {direction}"
        dropped[name] = dropped.get(name, 0) + sum(int((each == 0).sum()) for each in widths)
    assert len(arrays) == ranks * len(dropped)
    np.savez(folder / "widths.npz", **arrays)  # type: ignore[arg-type]
    return dropped


def dropping_run(folder: Path, ranks: int) -> tuple[list[str], dict[str, int]]:
    """Arguments of a run that drops messages, and how many it drops; by exchange."""
    every = ["--method", "adaqp", "--set", "training.checkpoint_every=4", "--json"]
    common = ["train", GRAPH, *SMALL, *NO_SAVINGS, "--ranks", str(ranks), *every]
    halocast(*common, "--bits", "2", "--epochs", "1", "--out", "probe", cwd=folder)
    dropped = write_widths_with_zeros(folder, ranks)
    exchanges = {f"{layer} {direction}" for layer in range(3) for direction in ("forward", "backward")}
    assert set(dropped) == exchanges - {"0 backward"}
    return [*common, "--bits", "widths.npz", "--set", "method.dropping=true"], dropped


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_run_that_drops_messages_learns_and_sends_the_same_bytes_in_every_epoch(ranks: int, tmp_path: Path) -> None:
    arguments, dropped = dropping_run(tmp_path, ranks)
    result = json.loads(halocast(*arguments, "--epochs", "12", "--out", "run", cwd=tmp_path).stdout)
    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"].tolist()
    assert losses[-1] < 0.7 * losses[0]
    assert set(result["bits"]) == {"0", "2", "8"}
    trace = read_trace(tmp_path / "run" / "trace").messages
    training = trace[trace["phase"] == "train"]
    assert training["epoch"].nunique() == 12
    for _, epoch in training.groupby("epoch"):
        assert epoch["bytes_out"].sum() == result["exchange_bytes_per_epoch"]
        for name, count in dropped.items():
            layer, direction = name.split()
            rows = epoch[(epoch["layer"] == int(layer)) & (epoch["direction"] == direction)]
            assert sum(dict(histogram).get(0, 0) for histogram in rows["bits_out"]) == count


def test_a_run_that_drops_messages_resumes_bit_for_bit(tmp_path: Path) -> None:
    arguments, _ = dropping_run(tmp_path, 2)
    halocast(*arguments, "--epochs", "12", "--out", "run", cwd=tmp_path)
    whole = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"].tolist()
    for path in (tmp_path / "run" / "checkpoints").glob("epoch-000012*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = halocast("train", "--out", "run", "--resume", "--json", cwd=tmp_path)
    assert "resumed after epoch 8" in resumed.stderr
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"].tolist() == whole


def test_dry_run_knows_that_dropped_messages_have_no_bytes(tmp_path: Path) -> None:
    arguments, _ = dropping_run(tmp_path, 2)
    foretold = json.loads(halocast(*arguments, "--dry-run", cwd=tmp_path).stdout)
    result = json.loads(halocast(*arguments, "--epochs", "1", "--out", "run", cwd=tmp_path).stdout)
    assert sum(rank["exchange_per_epoch"] for rank in foretold["ranks"]) == result["exchange_bytes_per_epoch"]
