"""Checkpoints appear whole, are of one run, and bring everything back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from halocast.errors import MisuseError, RunError
from halocast.runtime.checkpoint import (
    KEPT,
    Progress,
    RunIdentity,
    checkpoints,
    initialize_optimizer,
    load_state,
    optimizer_tensors,
    read_progress,
    save_checkpoint,
)

IDENTITY = RunIdentity("abc", 2, {"layer": "gcn"}, {"name": "full"}, {"method": "metis"}, {"optimizer": "adam"}, 0, "float32")


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"network": dict(model.state_dict()), "optimizer": optimizer_tensors(optimizer)}


def train(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1)) * parameter.detach().sign()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_parameters_and_optimiser_come_back_bit_for_bit(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    options: dict[str, float] = {"lr": 0.1, "weight_decay": 0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), **options)  # type: ignore[arg-type]
    train(model, optimizer, 3)
    path = save_checkpoint(tmp_path, IDENTITY, Progress(epoch=3), state_of(model, optimizer), rank=0)

    other = torch.nn.Linear(3, 2)
    restored = kind(other.parameters(), **options)  # type: ignore[arg-type]
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    initialize_optimizer(restored)
    assert restored.param_groups[0]["lr"] == 0.1
    assert restored.param_groups[0]["weight_decay"] == 0.01
    load_state(path, state_of(other, restored))
    train(model, optimizer, 4)
    train(other, restored, 4)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    for epoch in range(1, KEPT + 3):
        save_checkpoint(
            tmp_path, IDENTITY, Progress(epoch=epoch, losses=[0.5] * epoch), {"network": {"w": torch.ones(2)}}, rank=0
        )
    assert [path.name for path in checkpoints(tmp_path)] == [f"epoch-{epoch:06d}" for epoch in (KEPT + 1, KEPT + 2)]
    progress = read_progress(checkpoints(tmp_path)[-1], IDENTITY)
    assert progress.epoch == KEPT + 2
    assert progress.losses == [0.5] * (KEPT + 2)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, IDENTITY, Progress(epoch=1), {"network": {"w": torch.ones(2)}}, rank=0)
    other = replace(IDENTITY, seed=1, world_size=4)
    with pytest.raises(MisuseError, match=r"another run \(world_size 2 → 4; seed 0 → 1\)"):
        read_progress(path, other)


def test_unfinished_and_damaged_checkpoints(tmp_path: Path) -> None:
    (tmp_path / ".epoch-000009.building").mkdir()
    (tmp_path / "epoch-000008").mkdir()
    assert checkpoints(tmp_path) == []
    path = save_checkpoint(tmp_path, IDENTITY, Progress(epoch=1), {"network": {"w": torch.ones(2)}}, rank=0)
    (path / "checkpoint.json").write_text(json.dumps({"identity": {}}))
    with pytest.raises(MisuseError, match=r"cannot be read .*remove it to resume from the one before"):
        read_progress(path, IDENTITY)
    for file in path.glob("*.distcp"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match="cannot be loaded"):
        load_state(path, {"network": {"w": torch.zeros(2)}})


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, IDENTITY, Progress(epoch=1), {"network": {"w": torch.ones(2)}}, rank=0)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halocast.runtime.checkpoint.save", full)
    with pytest.raises(RunError, match="no space left on the disk"):
        save_checkpoint(tmp_path, IDENTITY, Progress(epoch=2), {"network": {"w": torch.ones(2)}}, rank=0)
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-000001"]
    assert len(list(tmp_path.iterdir())) == 1
