"""A run from its configuration to its result: shards, run folder, launch. The entry of the command line and of scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch

from halocast.errors import HalocastError, MisuseError, RunError
from halocast.runtime import kernels
from halocast.runtime.bits.pricing import has_prices
from halocast.runtime.bits.rules import FileRule
from halocast.runtime.checkpoint import checkpoints, read_progress
from halocast.runtime.config import MethodConfig, RunConfig, without_none
from halocast.runtime.exchange.alarm import Alarm, StoppedError, open_store
from halocast.runtime.exchange.transport import Store
from halocast.runtime.footprint import FootprintMeter
from halocast.runtime.graph.aggregated import DENSE_FROM
from halocast.runtime.graph.shard import ShardSet, open_shards
from halocast.runtime.graph.store import find_shards
from halocast.runtime.launch import HostSpec, RankFailure, launch_local
from halocast.runtime.launch_context import LaunchContext
from halocast.runtime.memory_limit import human_size, limits_here, oom_kills
from halocast.runtime.models.blockwise import BlockwiseLayer
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.layers import LinearAggregation
from halocast.runtime.models.registry import check_layer, shapes_alone
from halocast.runtime.models.shapes import built_in_specs
from halocast.runtime.out_of_memory import OutOfMemoryError, describe_cap, is_out_of_memory, out_of_memory
from halocast.runtime.planned import plan_of
from halocast.runtime.programs.holdings import ADAM, holdings
from halocast.runtime.programs.schedule import Order, schedule_layers
from halocast.runtime.session import build_network, build_view, find_method, width_rule, with_first_bits
from halocast.runtime.testbed import require_testbed
from halocast.runtime.trainer import Event, RunFolder, write_json, write_text
from halocast.runtime.worker import patience_s, run_identity, run_rank, take_place, threads_per_rank
from halocast.traces.buffers import summarize, walk
from halocast.traces.operations import Part
from halocast.traces.wire import CODED_WIDTHS
from halocast.traces.workload import RankView

Emit = Callable[[Event], None]


def train(
    config: RunConfig,
    folder: Path | None,
    *,
    resume: bool = False,
    force: bool = False,
    emit: Emit = lambda event: None,
) -> dict[str, Any]:
    """Train on local ranks; returns the result document (also in ``result.json``).

    Raises MisuseError for impossible settings (nothing is written then), RankFailure naming the rank that failed.
    """
    hosts = check(config)
    warn_of_slow_kernels(emit)
    run_folder = open_run_folder(config, folder, resume=resume, force=force)
    shards = _shards_of(config, emit)
    prepare_run_folder(run_folder, config, shards, resume=resume)
    killed_before = oom_kills()
    try:
        launch_local(
            "halocast.runtime.worker",
            [str(run_folder.job)],
            ranks=config.ranks,
            hosts=hosts,
            threads=threads_per_rank(config, config.ranks),
            environment=allocator_environment(),
            log_folder=run_folder.logs,
            timeout_s=config.timeout_seconds,
            on_line=lambda line: _forward(line, emit),
            port=config.port or None,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{_way_out(run_folder)}") from None
    except RankFailure as error:
        if error.exit_code == MisuseError.exit_code:
            raise
        cause, starved = error.cause, error.out_of_memory
        if error.signal == signal.SIGKILL and oom_kills() > killed_before:
            cause, starved = f"was killed by the kernel, out of memory: {describe_cap(limits_here())}", True
        advice = memory_advice(config, shards) if starved else ""
        raise RankFailure(error.rank, f"{cause}{advice}{_way_out(run_folder)}", error.exit_code, error.signal) from error
    return read_result(run_folder)


def _shards_of(config: RunConfig, emit: Emit) -> ShardSet:
    """The run's shards; raises OutOfMemoryError where there is no room for the whole graph, which this takes, MisuseError
    where the layers want more of its edges than these have."""
    try:
        shards = find_shards(config, lambda text: emit({"event": "step", "text": text}))
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"loading and cutting '{config.graph}' {out_of_memory(error)}; one process holds the whole graph for it: "
            "lift the cap, or give it a machine with more memory"
        ) from error
    built_in_specs(config.model, int(shards.graph["feature_dim"]), int(shards.graph["classes"]), EdgeShape.of(shards.graph))
    return shards


def train_as_rank(
    config: RunConfig,
    folder: Path,
    context: LaunchContext,
    *,
    resume: bool = False,
    force: bool = False,
    emit: Emit = lambda event: None,
    leave: Callable[[StoppedError], None],
) -> dict[str, Any] | None:
    """One rank under torchrun or srun; rank 0 prepares folder and shards for all. Returns the result on rank 0.

    `leave` is called from another thread where another rank has failed: it should end this process, whatever that waits for.
    Raises StoppedError where this rank learns of another's failure by itself.
    """
    meter = FootprintMeter()
    train_here = partial(_train_here, config, folder, context, meter, resume=resume, force=force, emit=emit)
    if context.world_size == 1:
        return train_here(None, lambda: None)
    store = open_store(context, patience_s(config))
    alarm = Alarm(store, context.rank, context.world_size, leave)
    try:
        return train_here(store, alarm.close)
    except BaseException as error:
        raise alarm.settle(error) from error
    finally:
        alarm.close()


def _train_here(
    config: RunConfig,
    folder: Path,
    context: LaunchContext,
    meter: FootprintMeter,
    store: Store | None,
    before_leaving: Callable[[], None],
    *,
    resume: bool,
    force: bool,
    emit: Emit,
) -> dict[str, Any] | None:
    if check(config).shaped:
        raise MisuseError(f"hosts = '{config.hosts}' is for ranks that halocast starts; under {context.launcher} leave it out")
    place = take_place(config, context, store)
    warn_of_slow_kernels(emit)
    message: dict[str, Any] = {}
    if context.rank == 0:
        try:
            run_folder = open_run_folder(config, folder, resume=resume, force=force)
            shards = _shards_of(config, emit)
            prepare_run_folder(run_folder, config, shards, resume=resume)
            message = {"shards": str(shards.folder)}
        except HalocastError as error:
            message = {"error": str(error), "exit_code": error.exit_code}
        except OSError as error:  # the others must not wait for rank 0 in vain
            message = {"error": str(error), "exit_code": RunError.exit_code}
    message = place.transport.share("prepared", message)[0]
    if "error" in message:
        raise (MisuseError if message["exit_code"] == MisuseError.exit_code else RunError)(message["error"])
    run_folder = RunFolder(folder)
    shards = open_shards(Path(message["shards"]))
    try:
        run_rank(config, run_folder, shards, place, meter, resume=resume, emit=emit, before_leaving=before_leaving)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{out_of_memory(error)}{memory_advice(config, shards)}") from error
    return read_result(run_folder) if context.rank == 0 else None


def warn_of_slow_kernels(emit: Emit) -> None:
    """Say so where training must do without the native kernels."""
    reason = kernels.why_not_native()
    if reason is not None:
        emit({"event": "step", "text": f"{reason}; until then torch operations stand in, many times slower"})


def check(config: RunConfig) -> HostSpec:
    """What can be refused before anything is loaded or written."""
    hosts = HostSpec.parse(config.hosts)
    find_method(config.method.name)
    plan_of(config)
    _check_method(config)
    if hosts.shaped:
        require_testbed(config.ranks)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise MisuseError("device = 'cuda', but torch sees no GPU here; use --set device=cpu")
    if config.backend == "nccl" and config.device != "cuda":
        raise MisuseError("backend = 'nccl' carries GPU tensors only; use --set device=cuda, or backend=gloo")
    if config.partition.method not in {"metis", "random", "contiguous"} and not Path(config.partition.method).is_file():
        raise MisuseError(
            f"partition.method '{config.partition.method}' is neither metis, random, contiguous nor a file that exists"
        )
    return hosts


def _check_method(config: RunConfig) -> None:
    method = config.method
    model = config.model
    layer = check_layer(model.layer, model.hidden, model.hidden, model.options, last=model.layers == 1, edges=None)
    if method.name == "sar" and not issubclass(layer, LinearAggregation | BlockwiseLayer):
        raise MisuseError(
            f"method sar visits one part after another, and model.layer '{model.layer}' wants all its neighbours at "
            "once: use --method full, or derive it from halocast.runtime.models.blockwise.MessageLayer"
        )
    if method.keep is not False and method.name != "sar":
        raise MisuseError(f"method.keep is for method sar, which else fetches blocks twice: leave it out of {method.name}")
    unknown = [each for each in method.kept_layers(config.model.layers) if each >= config.model.layers]
    if unknown:
        raise MisuseError(f"method.keep: there is no layer {unknown[0]}; layers are 0 to {config.model.layers - 1}")
    if not method.quantises:
        if method.bits is not None:
            raise MisuseError(
                f"method {method.name} sends rows as they are: leave method.bits out, or use --method adaqp (or sar)"
            )
        if config.trace.rows:
            way = "give it --bits" if method.name == "sar" else "use --method adaqp"
            raise MisuseError(f"trace.rows records quantised messages, and method {method.name} has none: {way}")
        return
    if method.dropping and method.name == "sar":
        raise MisuseError("method sar drops no messages: leave method.dropping out, or use --method adaqp")
    rule = width_rule(config)
    if isinstance(rule, FileRule) and not rule.path.is_file():
        raise MisuseError(f"method.bits: there is no file {rule.path}; give a width, random, adaptive or an .npz")
    if isinstance(rule, FileRule) and method.reassign_every and not has_prices(rule.path):
        raise MisuseError(
            f"method.reassign_every = {method.reassign_every}, but {rule.path} has no prices to renew widths by; leave it out"
        )
    if config.dtype != "float32":
        way = "leave dtype out" if method.name == "adaqp" else "leave dtype or method.bits out"
        raise MisuseError(f"method {method.name} sends float32 rows, not {config.dtype}: {way}")
    unknown = sorted(set(method.adaptive.choices) - set(CODED_WIDTHS))
    if unknown or not method.adaptive.choices:
        what = f"width {unknown[0]} is unknown" if unknown else "no width to choose from"
        raise MisuseError(f"method.adaptive.choices: {what}; allowed: {', '.join(map(str, CODED_WIDTHS))}")


# -- the run folder ---------------------------------------------------------------------------------------------


def open_run_folder(config: RunConfig, folder: Path | None, *, resume: bool, force: bool) -> RunFolder:
    """The folder to write to; raises MisuseError where that would overwrite something, or there is nothing to resume."""
    if folder is None:
        return RunFolder(_new_folder(f"{short_name(config.graph)}-{config.method.name}-{config.ranks}"))
    run_folder = RunFolder(folder)
    if resume:
        if not run_folder.config.is_file():
            raise MisuseError(f"--resume: {folder} is not a run folder (it has no config.toml)")
        return run_folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise MisuseError(f"run folder {folder} exists; choose another --out, --resume it, or overwrite it with --force")
        if not run_folder.config.is_file():
            raise MisuseError(f"--force: {folder} is not a run folder (it has no config.toml); remove it yourself")
    return run_folder


def short_name(graph: str) -> str:
    """A graph's name in that of a folder, without what a shell would quote: of ``pyg:Planetoid/Cora`` Cora."""
    scheme, _, rest = graph.partition(":")
    name = scheme if scheme == "generated" or not rest else rest
    return re.sub(r"[^A-Za-z0-9_.]+", "-", Path(name.partition("+")[0]).stem)[:40] or "graph"


def _new_folder(stem: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return path


def prepare_run_folder(folder: RunFolder, config: RunConfig, shards: ShardSet, *, resume: bool) -> None:
    """Write the resolved configuration and what the ranks are to do; with everything checked, not before.

    What an earlier run left goes now (the caller has asked whether it may). Raises MisuseError where the newest checkpoint
    is of another run, RunError where the folder cannot be written.
    """
    if resume:
        for newest in checkpoints(folder.checkpoints)[-1:]:
            read_progress(newest, run_identity(config, shards))
    try:
        if not resume and folder.config.is_file():
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.config, tomli_w.dumps(without_none(config.model_dump(mode="json"))))
        folder.result.unlink(missing_ok=True)
        write_json(
            folder.job,
            {
                "config": config.model_dump(mode="json"),
                "folder": str(folder.path.absolute()),
                "shards": str(shards.folder.absolute()),
                "resume": resume,
            },
        )
    except OSError as error:
        raise RunError(f"cannot write run folder {folder.path}: {error.strerror}") from error


def add_to_result(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write more into a run's result; returns all of it."""
    run_folder = RunFolder(folder)
    result = {**read_result(run_folder), **facts}
    write_json(run_folder.result, result)
    return result


def read_result(folder: RunFolder) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(folder.result.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"the ranks of {folder.path} ended without a result; see {folder.logs}") from error
    return result


def _way_out(folder: RunFolder) -> str:
    saved = any(folder.checkpoints.glob("epoch-*")) if folder.checkpoints.is_dir() else False
    way_out = f"go on with halocast train --out {folder.path} --resume" if saved else "there was no checkpoint yet"
    return f"; logs in {folder.logs}; {way_out}"


def allocator_environment() -> dict[str, str]:
    """Make glibc give large freed blocks back at once, so that the peak of resident memory means something.

    Epochs allocate nothing large (buffers persist), so this costs no time.
    """
    names = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
    return {name: value for name, value in names.items() if name not in os.environ}


def _forward(line: str, emit: Emit) -> None:
    """Rank 0's events; other lines (a library's prints) are in its log already."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return
    if isinstance(event, dict) and "event" in event:
        emit(event)


# -- before anything starts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankEstimate:
    """What one rank will hold and send, in bytes."""

    rank: int
    own: int
    halo: int
    structure: int
    features: int
    buffers: int
    parameters: int
    exchange_per_epoch: int
    reduce_per_epoch: int
    edge_data: int = 0
    """Edge features and types, mapped from the disk."""
    loaded_edge_data: int = 0
    """What layers that use them make of them in memory; 0 for all other layers."""

    @property
    def memory(self) -> int:
        return self.structure + self.features + self.buffers + self.parameters + self.loaded_edge_data


def estimate(config: RunConfig, report: Callable[[str], None] = lambda text: None) -> list[RankEstimate]:
    """Memory and bytes per rank, from the shards' statistics and the program; nothing is trained."""
    check(config)
    return estimate_of_shards(config, find_shards(config, report))


def memory_advice(config: RunConfig, shards: ShardSet) -> str:
    """What a run that ran out of memory needs, and what needs less; begins with a semicolon."""
    ways = "use more --ranks"
    with suppress(MisuseError):
        if config.method.name != "sar":
            _check_method(config.model_copy(update={"method": MethodConfig(name="sar")}))
            ways += ", or --method sar"
    try:
        largest = max(estimate_of_shards(config, shards), key=lambda each: each.memory)
    except (HalocastError, MemoryError, RuntimeError, OSError):  # there may be no room for that either
        return f"; {ways} (halocast train --dry-run says what a rank needs)"
    needs = f"rank {largest.rank} needs about {human_size(largest.memory)} beside what Python and torch take (--dry-run)"
    return f"; {needs}: {ways}"


def estimate_of_shards(config: RunConfig, shards: ShardSet) -> list[RankEstimate]:
    """The same of shards that are there."""
    graph = shards.graph
    with shapes_alone(config.model.layer):
        network = build_network(config, int(graph["feature_dim"]), int(graph["classes"]), EdgeShape.of(graph))
    method = find_method(config.method.name)
    estimates = []
    for rank in range(shards.parts):
        view = with_first_bits(config, network, shards, build_view(config, network, shards, rank))
        summary = summarize(walk(method.epoch(view)))
        held = holdings(with_likely_aggregated(view), method, optimizer_states={"sgd": 1}.get(config.training.optimizer, ADAM))
        estimates.append(
            RankEstimate(
                rank=rank,
                own=view.part.own,
                halo=view.part.halo,
                structure=held.structure,
                features=held.features,
                buffers=summary.peak_bytes,
                parameters=held.parameters,
                exchange_per_epoch=summary.exchange_bytes,
                reduce_per_epoch=summary.reduce_bytes,
                edge_data=_edge_bytes(view),
                loaded_edge_data=held.edge_data,
            )
        )
    return estimates


def with_likely_aggregated(view: RankView) -> RankView:
    """The view with as many stored values of aggregated features as their density and the degrees let expect."""
    part = view.part
    if not part.features_sparse or schedule_layers(view)[0].order is not Order.AGGREGATED_ONCE:
        return view
    density = sum(part.feature_nnz) / max(1, part.rows(Part.ALL) * part.feature_dim)
    neighbours = (part.nnz_central + part.nnz_marginal) / max(1, part.own)
    filled = 1.0 - (1.0 - density) ** (neighbours + 1)
    if filled >= DENSE_FROM:
        return view
    central, marginal, halo = (
        round(part.rows(each) * part.feature_dim * filled) for each in (Part.CENTRAL, Part.MARGINAL, Part.HALO)
    )
    return replace(view, part=replace(part, aggregated_sparse=True, aggregated_nnz=(central, marginal, halo)))


def _edge_bytes(view: RankView) -> int:
    """float32 features and int32 types of every entry, and the int64 places of those of the halo rows."""
    part = view.part
    columns = part.edge_dim + (part.relations > 0)
    return 4 * columns * (part.nnz_central + part.nnz_marginal + part.own) + (8 * part.nnz_halo if columns else 0)


def estimate_document(estimates: list[RankEstimate]) -> list[dict[str, int]]:
    return [{**asdict(each), "memory": each.memory} for each in estimates]
