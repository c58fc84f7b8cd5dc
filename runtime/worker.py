"""A rank's process: join the others, build the session, train, leave the result. ``python -m halocast.runtime.worker JOB``."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import halocast
from halocast.errors import HalocastError
from halocast.runtime.bits.assigners import histogram_of
from halocast.runtime.bits.rules import AdaptiveRule, FileRule, RandomRule
from halocast.runtime.checkpoint import RunIdentity
from halocast.runtime.clock import Clock, clock_of
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.clocks import measure_clock_offset
from halocast.runtime.exchange.transport import LocalTransport, LostPeerError, Store, Transport, connect
from halocast.runtime.footprint import FootprintMeter
from halocast.runtime.graph.shard import ShardSet, open_shards
from halocast.runtime.launch_context import LaunchContext, detect_launch_environment
from halocast.runtime.out_of_memory import is_out_of_memory, out_of_memory
from halocast.runtime.planned import compare_with_plan, plan_of
from halocast.runtime.recording import record_rows
from halocast.runtime.session import RankSession, build_session, message_table, use_threads, width_rule
from halocast.runtime.supervise import heartbeat, report_exception, report_failure
from halocast.runtime.trainer import Event, RunFolder, Trainer, cuda_or_cpu, write_json
from halocast.traces.buffers import ProgramSummary, summarize, walk
from halocast.traces.plan import Plan
from halocast.traces.rows import write_rows
from halocast.traces.trace import ClockOffset, Machine, TracedGraph, TraceManifest, TraceWriter, cpu_name, write_manifest
from halocast.traces.workload import PartStatistics, Workload

Emit = Callable[[Event], None]


def main(arguments: list[str]) -> int:
    """Entry of a launched rank; its failure is reported to the launcher in one line."""
    meter = FootprintMeter()
    job = json.loads(Path(arguments[0]).read_text())
    config, folder = RunConfig.model_validate(job["config"]), RunFolder(Path(job["folder"]))
    try:
        place = take_place(config, detect_launch_environment())
        shards = open_shards(Path(job["shards"]))
        emit = print_event if place.transport.rank == 0 else _silent
        run_rank(config, folder, shards, place, meter, resume=job["resume"], emit=emit)
    except LostPeerError as error:
        report_failure(str(error), primary=False)
        return 1
    except BaseException as error:
        if is_out_of_memory(error):
            report_failure(str(out_of_memory(error)), out_of_memory=True)
            return 1
        if isinstance(error, OSError):
            report_failure(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            return 1
        report_exception(error)
        if isinstance(error, HalocastError):
            return error.exit_code
        raise
    return 0


def print_event(event: Event) -> None:
    """One JSON line on standard output, which the launcher reads."""
    print(json.dumps(event), flush=True)


def _silent(event: Event) -> None:
    pass


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its connection to the others, its device, the device's clock, ranks on this machine."""

    transport: Transport
    device: torch.device
    clock: Clock
    local_ranks: int


def take_place(config: RunConfig, context: LaunchContext | None, store: Store | None = None) -> Place:
    """Join the process group of `store`, or the launcher's; one rank alone needs none, unless a back end is asked for."""
    backend = None if config.backend == "auto" else config.backend
    if context is None:
        device = cuda_or_cpu(config, 0)
        return Place(LocalTransport(), device, clock_of(device), 1)
    if config.device == "cuda" and backend is None and context.world_size > 1:
        one_gpu_each = torch.cuda.device_count() >= context.local_world_size
        backend = "nccl" if one_gpu_each else "gloo"  # NCCL refuses two ranks on one GPU
    device = cuda_or_cpu(config, context.local_rank)
    clock = clock_of(device)
    os.environ.update(context.variables)
    transport = connect(
        context.world_size, context.rank, device, clock, backend=backend, timeout_s=patience_s(config), store=store
    )
    return Place(transport, device, clock, context.local_world_size)


def patience_s(config: RunConfig) -> float:
    """Longer than the launcher's: it knows which rank hangs, while the others only know whom they wait for."""
    return 1.5 * config.timeout_seconds + 10.0


def run_rank(
    config: RunConfig,
    folder: RunFolder,
    shards: ShardSet,
    place: Place,
    meter: FootprintMeter,
    *,
    resume: bool,
    emit: Emit,
    before_leaving: Callable[[], None] = lambda: None,
) -> None:
    """Everything one rank does once it has joined the others; `before_leaving` is called before rank 0 may go."""
    transport, device = place.transport, place.device
    use_threads(threads_per_rank(config, place.local_ranks))
    plan = plan_of(config) if transport.rank == 0 else None  # now: what comes of the forecast is said when all is done
    offset = measure_clock_offset(transport)
    writer = None
    if config.trace.enabled:
        writer = TraceWriter(folder.trace, transport.rank, flush_seconds=config.trace.flush_seconds)

    def on_step(text: str) -> None:
        heartbeat()
        emit({"event": "step", "text": text})

    session = build_session(config, shards, transport, device=device, clock=place.clock, recorder=writer, on_step=on_step)
    identity = run_identity(config, shards)
    metric = str(shards.graph["metric"])
    trainer = Trainer(config, session, transport, folder, identity, metric, trace=writer, emit=emit)
    if resume:
        trainer.resume()
    manifest = trace_manifest(config, shards, session, transport, offset, device) if writer is not None else None
    if manifest is not None and transport.rank == 0:
        write_manifest(folder.trace, manifest)
    meter.training_starts()
    try:
        trainer.train()
    finally:  # a failure too leaves what was recorded up to it
        if writer is not None:
            writer.close()
    footprints = transport.share("footprint", meter.read().to_json())
    summaries = transport.share("bytes", _wire_bytes(session.executor.view.world_size, _summarize(config, session)))
    if transport.rank == 0:
        if manifest is not None:
            write_manifest(folder.trace, manifest.model_copy(update={"finished": True}))
        write_json(folder.result, run_result(config, folder, shards, trainer, footprints, summaries, plan))
    if config.trace.rows and session.executor.messages is not None:  # with the result safe, and none of its numbers changed
        on_step("recording what messages look like")
        table = message_table(config, session.network, shards, transport.rank)
        write_rows(folder.trace, transport.rank, record_rows(session, table, transport, trainer.progress.epoch))
    if transport.rank:
        before_leaving()
    transport.close()


def threads_per_rank(config: RunConfig, local_ranks: int) -> int:
    """The asked number, or the cores this process may use shared out."""
    return config.threads or max(1, usable_cores() // local_ranks)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_identity(config: RunConfig, shards: ShardSet) -> RunIdentity:
    """What a checkpoint must agree with; epochs and intervals may change, what shapes a loss may not."""
    flexible = {"epochs", "evaluate_every", "checkpoint_every", "patience"}
    if config.training.schedule == "cosine" or _reassigns_by_epochs(config):  # what depends on the number of epochs
        flexible.discard("epochs")
    return RunIdentity(
        graph=shards.fingerprint,
        world_size=shards.parts,
        model=config.model.model_dump(),
        method={**config.method.model_dump(), **_renewed_from(config)},
        partition=shards.manifest["partition"],
        optimization=config.training.model_dump(exclude=flexible),
        seed=config.seed,
        dtype=config.dtype,
    )


def _renewed_from(config: RunConfig) -> dict[str, str]:
    """What renewals of widths depend on: prices and budget are those of the file."""
    method = config.method
    rule = width_rule(config) if method.quantises and method.reassign_every else None
    return {"bits_sha256": hashlib.sha256(rule.path.read_bytes()).hexdigest()} if isinstance(rule, FileRule) else {}


def _reassigns_by_epochs(config: RunConfig) -> bool:
    """Whether the widths' periods are a share of the run."""
    method = config.method
    return method.quantises and not method.reassign_every and isinstance(width_rule(config), RandomRule | AdaptiveRule)


def trace_manifest(
    config: RunConfig,
    shards: ShardSet,
    session: RankSession,
    transport: Transport,
    offset: ClockOffset,
    device: torch.device,
) -> TraceManifest:
    """What a reader of the trace must know; all ranks call it together."""
    name = str(device) if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
    ranks = transport.share(
        "manifest",
        {"offset": offset.model_dump(), "statistics": session.view.part.to_json(), "device": name},
    )
    graph, view = shards.graph, session.view
    return TraceManifest(
        halocast=halocast.__version__,
        versions=versions(),
        machine=Machine(
            cpu=cpu_name(),
            cores=os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            devices=tuple(rank["device"] for rank in ranks),
        ),
        config=config.model_dump(mode="json"),
        seed=config.seed,
        world_size=shards.parts,
        graph=TracedGraph(**{key: graph[key] for key in ("name", "fingerprint", "nodes", "edges")}),
        workload=Workload(
            layers=view.layers,
            parts=tuple(PartStatistics.from_json(rank["statistics"]) for rank in ranks),
            exact=view.exact,
            value_bytes=view.value_bytes,
            overlap=view.overlap,
            threads=torch.get_num_threads(),
            prefetch=view.prefetch,
            kept_layers=view.kept_layers,
        ).to_json(),
        clock_offsets=tuple(ClockOffset(**rank["offset"]) for rank in ranks),
        date=date.today().isoformat(),
    )


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def _summarize(config: RunConfig, session: RankSession) -> ProgramSummary:
    return summarize(walk(session.executor.method.epoch(session.view)))


def _wire_bytes(world_size: int, summary: ProgramSummary) -> dict[str, int]:
    """Bytes one rank sends an epoch; a ring all-reduce sends 2 (K − 1) / K of the bucket."""
    reduced = 2 * (world_size - 1) * summary.reduce_bytes // world_size
    return {"exchange": summary.exchange_bytes, "total": summary.exchange_bytes + reduced}


def _bits_of_result(trainer: Trainer) -> dict[str, Any]:
    """For quantised messages: rank 0's widths by now, and every assignment of the run."""
    messages = trainer.session.executor.messages
    if messages is None:
        return {}
    histogram = {str(bits): count for bits, count in histogram_of(messages.widths).items()}
    return {"bits": histogram, "assignments": [each.to_json() for each in trainer.assignments]}


def _outcome_of_plan(trainer: Trainer, plan: Plan | None, accuracy: dict[str, float | None]) -> dict[str, Any]:
    if plan is None:
        return {}
    seconds = {int(row["epoch"]): row["epoch_seconds"] for row in trainer.rows}
    return compare_with_plan(plan, trainer.config, seconds, accuracy)


def run_result(
    config: RunConfig,
    folder: RunFolder,
    shards: ShardSet,
    trainer: Trainer,
    footprints: list[dict[str, int]],
    wire: list[dict[str, int]],
    plan: Plan | None = None,
) -> dict[str, Any]:
    """The document that `halocast train --json` prints."""
    accuracy = {split: None if np.isnan(score) else score for split, score in trainer.scores.items()}
    seconds = [row["epoch_seconds"] for row in trainer.rows]
    p10, median, p90 = (float(value) for value in np.percentile(seconds, [10, 50, 90])) if seconds else (None, None, None)
    peak_key = "device_peak" if config.device == "cuda" else "peak"
    files = {"config": folder.config, "metrics": folder.metrics, "checkpoints": folder.checkpoints, "logs": folder.logs}
    if config.trace.enabled:
        files["trace"] = folder.trace
    return {
        "run": str(folder.path),
        "graph": shards.graph["name"],
        "fingerprint": shards.fingerprint,
        "method": config.method.name,
        "model": config.model.layer,
        "ranks": shards.parts,
        "threads": torch.get_num_threads(),
        "epochs": trainer.progress.epoch,
        "loss": trainer.progress.losses[-1] if trainer.progress.losses else None,
        "epoch_seconds": {"median": median, "p10": p10, "p90": p90},
        "bytes_per_epoch": sum(each["total"] for each in wire),
        "exchange_bytes_per_epoch": sum(each["exchange"] for each in wire),
        "peak_bytes": [each[peak_key] for each in footprints],
        "footprint": footprints,
        "metric": trainer.metric,
        "accuracy": accuracy,
        **_bits_of_result(trainer),
        **_outcome_of_plan(trainer, plan, accuracy),
        **_outcome_of_limit(config, [each[peak_key] for each in footprints]),
        "best_validation": {"epoch": trainer.progress.best_epoch, "score": trainer.progress.best_validation},
        "versions": {"halocast": halocast.__version__, **versions()},
        "files": {name: str(path) for name, path in files.items()},
    }


def _outcome_of_limit(config: RunConfig, peaks: list[int]) -> dict[str, Any]:
    """Whether a run that was made to fit into a limit of memory did."""
    limit = config.fitted_memory
    return {"memory": {"limit_bytes": limit, "within": max(peaks) <= limit}} if limit else {}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # threads that wait for a vanished peer must not keep the process
