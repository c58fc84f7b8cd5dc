"""``halocast train``: traced full-graph training on local ranks, or as one rank of torchrun or srun."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from halocast.cli.console import Console, human_bytes
from halocast.errors import MisuseError
from halocast.words import byte_count

if TYPE_CHECKING:
    from halocast.cli.memory import Fitted

CHECK_FAILED = 3
Flag = Annotated[bool, Parameter(negative=())]


def train(
    run: str = "",
    *,
    plan: Path | None = None,
    method: str | None = None,
    bits: str | None = None,
    ranks: int | None = None,
    model: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    hosts: str | None = None,
    device: str | None = None,
    memory: str | None = None,
    costs: Path | None = None,
    symmetrise: Flag = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    out: Path | None = None,
    resume: Flag = False,
    force: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Train on a whole graph and leave a run folder: configuration, metrics, checkpoints, trace.

    Parameters
    ----------
    run:
        A run file (.toml) or a graph: a known name (see ``halocast datasets``), an .npz or .csv path, pyg:NAME, ogb:NAME or
        generated:KEY=VALUE,... Not needed with --resume or --plan.
    plan:
        Folder of a plan (``halocast plan``): graph, model, ranks, method, partition and widths as it says, where nothing else
        is asked for; the run ends with what came of its forecast.
    method:
        Training method: full (rows sent as they are), adaqp (quantised messages) or sar (one part after another, least memory).
    bits:
        Widths of adaqp's messages, or sar's: 1 to 6, 8, 16, 32; random; adaptive; or an .npz with a width a message.
    ranks:
        Processes that share the graph.
    model:
        Layer: gcn, sage, sage-max, gin, gat, gatv2, rgcn, or your own as package.module:Class.
    layers:
        Number of layers.
    hidden:
        Width of the hidden layers.
    epochs:
        Passes over the graph.
    seed:
        Of parameters and dropout.
    hosts:
        local, or shaped:RATE (such as shaped:200mbit): each rank in a network namespace behind a link of that rate.
    device:
        cpu or cuda.
    memory:
        What a rank may take besides its interpreter and libraries, such as 2GB: full or sar, and what sar's layers keep, as
        fits; with --method, that one.
    costs:
        A cost file of ``halocast calibrate`` that --memory tells time and memory by.
    symmetrise:
        Add the missing direction of one-way edges instead of refusing the graph.
    set_:
        Any key of the run file: --set training.learning_rate=0.003 --set method.exact.transform_first=false.
    out:
        Run folder; by default a new one under runs/.
    resume:
        Go on from the newest checkpoint in --out.
    force:
        Overwrite the run folder in --out.
    dry_run:
        Print memory and bytes per rank, and train nothing.
    json:
        One JSON document on standard output.
    """
    console = Console(as_json=json)
    if resume and out is None:
        raise MisuseError("--resume needs --out, the run folder to go on with")
    flags = {
        "plan": None if plan is None or resume else str(plan),
        "method.name": method,
        "method.bits": bits,
        "ranks": ranks,
        "model.layer": model,
        "model.layers": layers,
        "model.hidden": hidden,
        "training.epochs": epochs,
        "seed": seed,
        "hosts": hosts,
        "device": device,
        "memory": None if resume else memory,
        "symmetrise": symmetrise or None,
    }
    if memory is not None and (resume or plan is not None):
        raise MisuseError(f"{'--resume goes on' if resume else '--plan trains'} as was chosen: leave --memory out")
    document, origin = _document(run, out if resume else None, plan)

    from halocast.runtime.config import override, resolve
    from halocast.runtime.launch_context import detect_launch_environment

    context = detect_launch_environment()
    if context is not None and ranks is None:
        flags["ranks"] = context.world_size
    for key, value in flags.items():
        if value is not None:
            document = override(document, [f"{key}={_toml(value)}"])
    document = override(document, set_ or [])
    if context is not None:
        document = {"hosts": "local", **document}  # the ranks are where the launcher put them, wherever was planned
    config = resolve(_planned(document), origin)
    if costs is not None and (resume or not config.memory):
        raise MisuseError("--costs tell --memory what fits: give --memory, or leave --costs out")
    fitted = None
    if config.memory and not resume:
        from halocast.cli.memory import fit, refuse_where_others_start_ranks

        if context is not None:
            refuse_where_others_start_ranks(config, context.launcher)
        given = "name" in document.get("method", {})
        fitted = fit(config, method_is_given=given, costs=costs, report=lambda text: console.note(f"{text} ..."))
        config = fitted.config
        console.note(fitted.words)

    if dry_run:
        return _dry_run(config, console, fitted)
    if context is not None:
        return _train_as_rank(config, out, context, console, resume=resume, force=force)

    from halocast.runtime.run import add_to_result
    from halocast.runtime.run import train as train_locally

    with console.training(config.training.epochs) as progress:
        result = train_locally(config, out, resume=resume, force=force, emit=progress)
    if fitted is not None:
        result = add_to_result(Path(result["run"]), {"memory": {**fitted.document(), **result["memory"]}})
    console.document(result)
    report_result(console, result)
    within = result.get("memory", {"within": True})["within"]
    if fitted is not None:
        console.result(f"  {fitted.words}, measured {byte_count(max(result['peak_bytes']))}")
    if not within:
        console.result(f"  more than the limit of {byte_count(result['memory']['limit_bytes'])}")
    return 0 if within else CHECK_FAILED


def _document(run: str, resumed: Path | None, plan: Path | None) -> tuple[dict[str, Any], str]:
    """The run file's content, or a document that only names the graph, if that; and what to call it in errors."""
    from halocast.runtime.config import read_run_file

    if resumed is not None:
        path = resumed / "config.toml"
        if not path.is_file():
            raise MisuseError(f"--resume: {resumed} is not a run folder (it has no config.toml)")
        document = read_run_file(path)
        if run and run != document.get("graph"):
            raise MisuseError(
                f"--resume goes on with {path}, which trains on '{document.get('graph')}', not '{run}'; leave '{run}' out"
            )
        followed = document.get("plan", "")
        if plan is not None and (not followed or Path(followed).absolute() != plan.absolute()):
            follows = f"the plan {followed}" if followed else "no plan"
            raise MisuseError(f"--resume goes on with {path}, which follows {follows}, not {plan}; leave --plan out")
        return document, str(path)
    if not run and plan is not None:
        return {}, str(plan)
    if not run:
        raise MisuseError("name a graph or a run file: halocast train debian (see halocast datasets)")
    if run.endswith(".toml"):
        return read_run_file(Path(run)), run
    return {"graph": run}, "command line"


def _planned(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with what its plan says (if it follows one) wherever it says nothing itself."""
    folder = document.get("plan")
    if not folder or not isinstance(folder, str):
        return document

    from halocast.runtime.planned import follow
    from halocast.traces.plan import read_plan

    return follow(document, read_plan(Path(folder)), folder)


def _toml(value: str | int | bool) -> str:
    import json

    return json.dumps(value)  # a JSON string, integer or boolean is a TOML one


def _train_as_rank(config: Any, out: Path | None, context: Any, console: Console, *, resume: bool, force: bool) -> int:
    from halocast.errors import HalocastError, RunError
    from halocast.runtime.run import train_as_rank

    if out is None:
        raise MisuseError(f"under {context.launcher} name the run folder with --out, on a disk that every rank sees")
    if config.ranks != context.world_size:
        raise MisuseError(f"ranks = {config.ranks}, but {context.launcher} started {context.world_size}; leave --ranks out")

    def leave(error: HalocastError) -> None:
        console.error(f"rank {context.rank}: {error}")
        sys.stdout.flush()
        os._exit(error.exit_code)  # do not wait for threads that wait for a peer

    try:
        with ExitStack() as stack:
            emit = stack.enter_context(console.training(config.training.epochs)) if context.rank == 0 else _silent
            result = train_as_rank(config, out, context, resume=resume, force=force, emit=emit, leave=leave)
        if result is not None:
            console.document(result)
            report_result(console, result)
    except BaseException as error:  # noqa: BLE001 - one line for whatever it is, then leave at once
        leave(error if isinstance(error, HalocastError) else RunError(f"{type(error).__name__}: {error}"))
    return 0


def _silent(event: dict[str, Any]) -> None:
    pass


def _dry_run(config: Any, console: Console, fitted: Fitted | None) -> int:
    from halocast.runtime.run import estimate, estimate_document

    estimates = estimate(config, console.note)
    chosen = {} if fitted is None else {"memory": fitted.document()}
    console.document({"graph": config.graph, "method": config.method.name, "ranks": estimate_document(estimates), **chosen})
    console.table(
        f"{config.graph}, {config.model.layers} × {config.model.layer} of {config.model.hidden}, method {config.method.name}",
        ["rank", "own", "halo", "structure", "features", "buffers", "weights", "memory", "exchange", "all-reduce"],
        [
            [
                str(each.rank),
                f"{each.own:,}",
                f"{each.halo:,}",
                human_bytes(each.structure),
                human_bytes(each.features),
                human_bytes(each.buffers),
                human_bytes(each.parameters),
                human_bytes(each.memory),
                human_bytes(each.exchange_per_epoch),
                human_bytes(each.reduce_per_epoch),
            ]
            for each in estimates
        ],
    )
    console.result("exchange and all-reduce: bytes sent an epoch. memory: above the interpreter and its libraries; sockets,")
    console.result("trace and allocator take some 20 MB a rank more. Nothing was trained.")
    if any(each.edge_data for each in estimates):
        sizes = ", ".join(human_bytes(each.edge_data) for each in estimates)
        loaded = any(each.loaded_edge_data for each in estimates)
        use = "in memory above, block by block" if loaded else "not in memory above: only a layer that uses it loads it"
        console.result(f"edge data: {sizes} a rank, {use}.")
    return 0


def report_result(console: Console, result: dict[str, Any]) -> None:
    """The verdict of a run, its files and the next command."""
    seconds = result["epoch_seconds"]
    scores = "  ".join(f"{split} {score:.4f}" for split, score in result["accuracy"].items() if score is not None)
    loss = "none" if result["loss"] is None else f"{result['loss']:.4f}"
    console.result(
        f"{result['graph']}: {result['epochs']} epochs of {result['method']} on {result['ranks']} ranks, "
        f"{1000 * seconds['median']:.1f} ms an epoch (p10 {1000 * seconds['p10']:.1f}, p90 {1000 * seconds['p90']:.1f})"
    )
    console.result(f"  loss {loss}  {result['metric'].replace('_', ' ')}: {scores}")
    console.result(
        f"  {human_bytes(result['exchange_bytes_per_epoch'])} exchanged an epoch, "
        f"{human_bytes(result['bytes_per_epoch'])} with the all-reduce; "
        f"peak {', '.join(human_bytes(size) for size in result['peak_bytes'])} a rank"
    )
    if "verdict" in result:
        console.result(f"  {result['verdict']}")
    page = Path(result["run"]) / "report.html"
    following = f"halocast report {result['run']} --out {page}" if "trace" in result["files"] else "halocast --help"
    console.closing(result["files"], following)
