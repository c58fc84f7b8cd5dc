"""Checkpoints: torch.distributed.checkpoint folders that appear whole or not at all.

``checkpoint.json`` beside the tensors names the run; it is read, and must match, before anything else is opened.
"""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from halocast.errors import MisuseError, RunError

IDENTITY = "checkpoint.json"
KEPT = 2
"""Older checkpoints are removed: the last one, and the one before it in case of a disk that lies."""


@dataclass(frozen=True)
class RunIdentity:
    """What must agree for a checkpoint to continue a run: change one of these and the losses are another run's."""

    graph: str
    """Fingerprint."""
    world_size: int
    model: Mapping[str, Any]
    method: Mapping[str, Any]
    partition: Mapping[str, Any]
    optimization: Mapping[str, Any]
    seed: int
    dtype: str

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """``name theirs → ours`` for each setting that differs."""
        ours, theirs = _leaves(json.loads(json.dumps(asdict(self)))), _leaves(other)
        return [
            f"{name} {theirs.get(name)!r} → {ours.get(name)!r}"
            for name in {**theirs, **ours}
            if theirs.get(name) != ours.get(name)
        ]


@dataclass
class Progress:
    """Where training stands, besides parameters and optimiser state."""

    epoch: int = 0
    """Epochs completed."""
    best_validation: float | None = None
    best_epoch: int = 0
    evaluations_without_gain: int = 0
    losses: list[float] = field(default_factory=list)


def save_checkpoint(folder: Path, identity: RunIdentity, progress: Progress, state: dict[str, Any], rank: int) -> Path:
    """Write ``folder/epoch-NNNNNN``; all ranks call it together. Raises RunError where the disk is full."""
    final = folder / f"epoch-{progress.epoch:06d}"
    building = folder / f".epoch-{progress.epoch:06d}.building"
    distributed = dist.is_initialized()
    try:
        if rank == 0:
            shutil.rmtree(building, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        if distributed:
            dist.barrier()  # nobody may start to write while rank 0 still clears away what a killed run left
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a missing process group, which one rank does not need
            save(state, checkpoint_id=building, no_dist=not distributed)
        if rank == 0:
            document = {"identity": asdict(identity), "progress": asdict(progress)}
            (building / IDENTITY).write_text(json.dumps(document))
            shutil.rmtree(final, ignore_errors=True)
            building.rename(final)
            for old in checkpoints(folder)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise RunError(f"cannot write checkpoint {final}: {_cause(error)}") from error
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("epoch-*") if (path / IDENTITY).is_file())


def read_progress(path: Path, identity: RunIdentity) -> Progress:
    """The progress a checkpoint holds; raises MisuseError if it belongs to another run, saying what differs."""
    try:
        document = json.loads((path / IDENTITY).read_text())
        theirs, progress = document["identity"], Progress(**document["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MisuseError(f"checkpoint {path} cannot be read ({error}); remove it to resume from the one before") from error
    differences = identity.differences(theirs)
    if differences:
        raise MisuseError(f"checkpoint {path} is of another run ({'; '.join(differences)}); use another --out")
    return progress


def load_state(path: Path, state: dict[str, Any]) -> None:
    """Fill `state` in place with the checkpoint's tensors; all ranks call it together."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    except (OSError, CheckpointException, RuntimeError) as error:
        raise RunError(
            f"checkpoint {path} cannot be loaded: {_cause(error)}; remove it to resume from the one before"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as a flat mapping of tensors, keyed by parameter number and name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {}
    for number, parameter in enumerate(parameters):
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
    return tensors


def initialize_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimiser's state without moving a parameter, so that there is something to load into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    optimizer.step()
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group["lr"], group["weight_decay"] = rate, decay


def _leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in document.items():
        leaves.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return leaves


def _cause(error: BaseException) -> str:
    """One line: what went wrong underneath, where torch wraps it."""
    if isinstance(error, CheckpointException):
        error = next((failure[0] for failure in error.failures.values()), error)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
        return "no space left on the disk"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
