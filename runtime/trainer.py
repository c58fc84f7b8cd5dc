"""The training loop of one rank: epochs, evaluation, metrics, checkpoints, trace."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from halocast.errors import RunError
from halocast.runtime.bits.assigners import Reassignment
from halocast.runtime.checkpoint import (
    Progress,
    RunIdentity,
    checkpoints,
    initialize_optimizer,
    load_state,
    optimizer_tensors,
    read_progress,
    save_checkpoint,
)
from halocast.runtime.config import RunConfig, TrainingConfig
from halocast.runtime.exchange.quantized import ExchangeKey, MessageWidths, WidthArray
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.metrics import Scores, evaluate_metric
from halocast.runtime.session import RankSession
from halocast.runtime.supervise import heartbeat
from halocast.traces.trace import TraceWriter

METRICS_COLUMNS = ["epoch", "loss", "epoch_seconds", "learning_rate", "train", "val", "test"]
Event = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def trace(self) -> Path:
        return self.path / "trace"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def learning_rate(training: TrainingConfig, epoch: int) -> float:
    """The rate of one epoch (from 0), a pure function so that a resumed run needs no scheduler state."""
    rate = training.learning_rate
    if epoch < training.warmup_epochs:
        return rate * (0.1 + 0.9 * epoch / training.warmup_epochs)
    if training.schedule == "cosine":
        span = max(training.epochs - training.warmup_epochs, 1)
        return rate * 0.5 * (1.0 + math.cos(math.pi * (epoch - training.warmup_epochs) / span))
    if training.schedule == "step":
        return float(rate * 0.1 ** ((epoch - training.warmup_epochs) // training.step_epochs))
    return rate


class Trainer:
    """Runs a session's epochs and keeps the run folder; rank 0 writes, every rank traces."""

    def __init__(
        self,
        config: RunConfig,
        session: RankSession,
        transport: Transport,
        folder: RunFolder,
        identity: RunIdentity,
        metric: str,
        *,
        trace: TraceWriter | None,
        emit: Callable[[Event], None],
    ) -> None:
        self.config, self.session, self.transport, self.folder = config, session, transport, folder
        self.identity, self.metric, self.trace, self.emit = identity, metric, trace, emit
        self.progress = Progress()
        self.rows: list[dict[str, float]] = []
        self.scores: Scores = {}
        self.assignments: list[Reassignment] = []
        self._widths: dict[str, torch.Tensor] = {}

    def resume(self) -> None:
        """Continue from the newest checkpoint, or from the start where there is none yet."""
        found = checkpoints(self.folder.checkpoints)
        if not found:
            return
        self.progress = read_progress(found[-1], self.identity)
        initialize_optimizer(self.session.optimizer)
        load_state(found[-1], self._state())
        if self._widths:
            self.session.executor.install_widths(self._loaded_widths())
        if self.folder.metrics.exists():
            # read the digits as they were written: the rows are written back
            table = pd.read_csv(self.folder.metrics, float_precision="round_trip")
            kept = table[table["epoch"] < self.progress.epoch].drop_duplicates("epoch", keep="last")
            self.rows = [{str(key): value for key, value in row.items()} for row in kept.to_dict("records")]
        self.emit({"event": "resumed", "epoch": self.progress.epoch, "checkpoint": found[-1].name})

    def train(self) -> None:
        """All epochs left to do. Raises RunError where the loss stops being a number."""
        training = self.config.training
        self._rewrite_metrics()
        stopped = self._patience_is_over()
        while self.progress.epoch < training.epochs and not stopped:
            self._train_one_epoch()
            stopped = self._patience_is_over()
            done = stopped or self.progress.epoch == training.epochs
            if done or _due(self.progress.epoch, training.checkpoint_every):
                save_checkpoint(self.folder.checkpoints, self.identity, self.progress, self._state(), self.transport.rank)
        if not self.scores:  # nothing was left to do, or no epoch was asked for
            self.scores = self._evaluate()

    def _train_one_epoch(self) -> None:
        training, progress = self.config.training, self.progress
        epoch = progress.epoch
        rate = learning_rate(training, epoch)
        for group in self.session.optimizer.param_groups:
            group["lr"] = rate
        self._trace_ranges(epoch)
        started = time.perf_counter()
        loss = self.session.executor.train_epoch(epoch)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise RunError(
                f"the training loss is {loss} in epoch {epoch}: lower training.learning_rate ({rate:g}) or check the features"
            )
        progress.epoch = epoch + 1
        progress.losses.append(loss)
        row = {"epoch": epoch, "loss": loss, "epoch_seconds": seconds, "learning_rate": rate}
        if progress.epoch == training.epochs or _due(progress.epoch, training.evaluate_every):
            self.scores = self._evaluate()
            self._note_validation(self.scores["val"])
            row.update(self.scores)
        self._append_metrics(row)
        self.emit({"event": "epoch", **row})
        heartbeat()
        self._assign_widths(progress.epoch)
        if self.trace is not None:
            self.trace.flush_if_due()

    def _trace_ranges(self, epoch: int) -> None:
        session = self.session
        if session.assigner is not None and session.executor.messages is not None:
            session.executor.messages.traces_ranges = session.assigner.wants_ranges(epoch)

    def _assign_widths(self, epoch: int) -> None:
        """Before `epoch` begins (and before a checkpoint is written, which thus holds the widths to go on with)."""
        assigner, executor = self.session.assigner, self.session.executor
        if assigner is None or executor.messages is None:
            return
        if epoch == self.config.training.epochs and not self.config.method.reassign_every:
            return  # the end; a run whose periods do not depend on its length may yet be extended
        started = time.perf_counter()
        assigned = assigner.next(epoch, executor.messages.widths, executor.messages.ranges)
        if assigned is not None:
            widths, assignment = assigned
            executor.install_widths(widths)
            assignment = replace(assignment, seconds=time.perf_counter() - started)
            self.assignments.append(assignment)
            self.emit({"event": "assignment", **assignment.to_json()})
            heartbeat()

    def _evaluate(self) -> Scores:
        logits = self.session.executor.evaluate(self.progress.epoch)
        return evaluate_metric(self.metric, logits, self.session.labels, self.session.masks, self.transport)

    def _note_validation(self, score: float) -> None:
        progress = self.progress
        if math.isnan(score):  # no validation rows: nothing to be patient about
            return
        if progress.best_validation is None or score > progress.best_validation:
            progress.best_validation, progress.best_epoch = score, progress.epoch - 1
            progress.evaluations_without_gain = 0
        else:
            progress.evaluations_without_gain += 1

    def _patience_is_over(self) -> bool:
        patience = self.config.training.patience
        return patience > 0 and self.progress.evaluations_without_gain >= patience

    def _state(self) -> dict[str, Any]:
        self._widths = self._width_tensors()
        return {
            "network": dict(self.session.network.state_dict()),
            "optimizer": optimizer_tensors(self.session.optimizer),
            **({"widths": self._widths} if self._widths else {}),
        }

    def _width_tensors(self) -> dict[str, torch.Tensor]:
        """This rank's widths under names of its own; a checkpoint loads into them."""
        messages = self.session.executor.messages
        if messages is None:
            return {}
        ways = (("sent", messages.widths.outgoing), ("received", messages.widths.incoming))
        return {
            f"rank{self.transport.rank}.layer{layer}.{direction}.{way}": torch.from_numpy(widths.copy())
            for way, arrays in ways
            for (layer, direction), widths in arrays.items()
            if widths.size
        }

    def _loaded_widths(self) -> MessageWidths:
        messages = self.session.executor.messages
        assert messages is not None

        def one_way(way: str, arrays: Mapping[ExchangeKey, WidthArray]) -> dict[ExchangeKey, WidthArray]:
            rank = self.transport.rank
            return {
                (layer, direction): self._widths[f"rank{rank}.layer{layer}.{direction}.{way}"].numpy()
                if widths.size
                else widths
                for (layer, direction), widths in arrays.items()
            }

        return MessageWidths(one_way("sent", messages.widths.outgoing), one_way("received", messages.widths.incoming))

    def _rewrite_metrics(self) -> None:
        """Start the table, without rows that a killed run wrote after its last checkpoint."""
        if self.transport.rank == 0:
            pd.DataFrame(self.rows, columns=METRICS_COLUMNS).to_csv(self.folder.metrics, index=False)

    def _append_metrics(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.transport.rank == 0:
            pd.DataFrame([row], columns=METRICS_COLUMNS).to_csv(self.folder.metrics, mode="a", header=False, index=False)


def _due(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0


def write_json(path: Path, document: object) -> None:
    """Write by atomic rename."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write by atomic rename."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def cuda_or_cpu(config: RunConfig, local_rank: int) -> torch.device:
    """The rank's device: GPUs are dealt round, so that several ranks may share one."""
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError("device = 'cuda', but torch sees no GPU here; use --set device=cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
