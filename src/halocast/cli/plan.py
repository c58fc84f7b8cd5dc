"""``halocast plan``: choose bits, partition, savings and method by forecast, and write down what training should do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from halocast.cli.console import Console, human_bytes
from halocast.errors import MisuseError, nearest

if TYPE_CHECKING:
    from halocast.simulator.planner.search import Answer, Option

Flag = Annotated[bool, Parameter(negative=())]
METHOD_NAMES = ("full", "adaqp", "sar")
SHOWN = 12
"""Rows of the table of candidates."""


def plan(
    costs: Path,
    *,
    data: str,
    ranks: int | None = None,
    max_ranks: int | None = None,
    link: str | None = None,
    model: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
    method: str | None = None,
    risk: float | None = None,
    epoch_seconds: float | None = None,
    variance: float | None = None,
    exchange_bytes: float | None = None,
    memory: str | None = None,
    price_per_hour: float | None = None,
    partitions: int = 5,
    device: str | None = None,
    network: str | None = None,
    inside: str | None = None,
    ranks_per_host: int | None = None,
    transport: str | None = None,
    hardware: Path | None = None,
    speeds: str | None = None,
    links: str | None = None,
    strict: Flag = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    out: Path | None = None,
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Choose widths, partition, savings and method by forecast; ``halocast train --plan`` does what the plan says.

    What it is to reach is said in one of four ways; by default: as fast as possible with at most 0.3 points of accuracy at
    risk.

    Parameters
    ----------
    costs:
        A cost file of ``halocast calibrate``.
    data:
        A graph, as ``halocast train`` takes it, or a run file (.toml) whose keys the flags override.
    ranks:
        Processes that share the graph.
    max_ranks:
        Consider 1, 2, 4, ... ranks up to this many.
    link:
        Rate of each rank's link, such as 200mbit; unshaped for the machine's own loopback.
    model:
        Layer: gcn, sage, sage-max, gin, gat or gatv2.
    layers:
        Number of layers.
    hidden:
        Width of the hidden layers.
    epochs:
        Of the training planned for; widths are renewed every fifth of it.
    method:
        full, adaqp or sar: consider this one only, beside plain training.
    risk:
        Points of accuracy that may be at risk: as fast as possible with no more.
    epoch_seconds:
        A time budget: the least variance in so many seconds an epoch.
    variance:
        A variance budget: as fast as possible with at most this relative variance of the weights' gradient.
    exchange_bytes:
        A byte budget: the least variance in so many bytes exchanged an epoch, over all ranks.
    memory:
        What a rank has, such as 2GB: what may need more is not planned, and sar is considered where plain training does not
        fit.
    price_per_hour:
        Of a rank; adds the cost of an hour to what candidates are compared by.
    partitions:
        Partitions to consider.
    device:
        A device of the catalogue for each rank.
    network:
        What joins hosts: a name in the catalogue, or a rate.
    inside:
        What joins the ranks of one host.
    ranks_per_host:
        Ranks on each host.
    transport:
        gloo or nccl: the catalogue's costs of messages.
    hardware:
        A TOML file, or a folder of them, with hardware of one's own.
    speeds:
        By rank, where they differ: 1,1,0.5,1; slower ranks get less of the graph.
    links:
        Rate of each rank's link, where they differ: 200mbit,200mbit,50mbit,200mbit.
    strict:
        Refuse whatever is extrapolated.
    set_:
        Any key of the run file: --set partition.objective=volume.
    out:
        The folder to write the plan to; by default plans/GRAPH-RANKS.
    force:
        Overwrite a plan there.
    json:
        One JSON document on standard output.
    """
    from halocast.cli.planning import make_plan, save
    from halocast.cli.scenario import resolve_flags
    from halocast.simulator.costs import Costs
    from halocast.simulator.placement import Hardware
    from halocast.simulator.planner.risk import DEFAULT_POINTS
    from halocast.simulator.planner.rowmodel import RowModel, rows_beside
    from halocast.simulator.planner.search import Goal
    from halocast.simulator.whatif.values import read_bytes

    console = Console(as_json=json)
    if method is not None and method not in METHOD_NAMES:
        raise MisuseError(f"--method {method} cannot be planned{nearest(method, METHOD_NAMES)}")
    if out is not None and out.exists() and not force:
        raise MisuseError(f"{out} exists; choose another --out, or overwrite a plan with --force")
    budgets = {
        "--risk": risk, "--epoch-seconds": epoch_seconds, "--variance": variance, "--exchange-bytes": exchange_bytes
    }  # fmt: skip
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise MisuseError(f"{' and '.join(given)} are different goals: give one of them")
    for name, value in {**budgets, "--price-per-hour": price_per_hour}.items():
        if value is not None and not value >= 0.0:
            raise MisuseError(f"{name} {value} is out of range; allowed: 0 or more")
    limit = None if memory is None else read_bytes(memory, "--memory")
    if ranks is not None and max_ranks is not None:
        raise MisuseError("--ranks and --max-ranks both say how many: give one of them")
    if network is not None and link is not None:
        raise MisuseError("--network and --link both say what joins the ranks: give one of them")
    from halocast.cli.scenario import parse_speeds
    from halocast.simulator.forecast import check_one_a_rank
    from halocast.simulator.observations import parse_link

    if links is not None and (link is not None or network is not None or inside is not None):
        raise MisuseError("--links says what joins the ranks: leave --link, --network and --inside out")
    known = Costs.load(costs)
    own_speeds = parse_speeds(speeds)
    own_links = () if links is None else tuple(parse_link(each.strip()) for each in links.split(","))
    hosts = None if link is None else "local" if link in ("unshaped", "local") else f"shaped:{link.removeprefix('shaped:')}"
    flags = {
        "ranks": ranks, "hosts": hosts, "model.layer": model, "model.layers": layers, "model.hidden": hidden,
        "training.epochs": epochs,
    }  # fmt: skip
    config = resolve_flags(data, flags, set_ or [])
    check_one_a_rank(config.ranks, own_speeds, own_links)
    counts = _powers(max_ranks) if max_ranks is not None else (config.ranks,)
    from halocast.runtime.config import RunConfig

    assert isinstance(config, RunConfig)
    goal = Goal(
        epoch_seconds, variance, exchange_bytes, DEFAULT_POINTS if risk is None else risk, limit, price_per_hour, strict
    )
    placed = Hardware(device, network, link, inside, ranks_per_host, transport=transport, catalogue=hardware)
    planned = make_plan(
        config,
        known,
        RowModel.load(rows_beside(costs)),
        goal,
        placed=placed,
        ranks=counts,
        methods=considered(method, limited=limit is not None),
        partitions=partitions,
        speeds=own_speeds,
        links=own_links,
        report=lambda text: console.note(f"{text} ..."),
    )
    answer = planned.answer
    folder = out or Path("plans") / f"{planned.plan.graph.name}-{planned.plan.world_size}"
    planned = save(planned, folder)
    console.document(
        {
            "plan": planned.plan.model_dump(mode="json"),
            "candidates": [_row(each, answer) for each in answer.options],
            "files": {"plan": str(folder)},
        }
    )
    show(console, planned.plan, answer, placed.title if placed.is_cluster else planned.plan.hosts)
    console.closing({"plan": str(folder)}, f"halocast train --plan {folder}")
    return 0


def considered(method: str | None, *, limited: bool) -> tuple[str, ...]:
    """The methods that the search is for: sequential aggregation where it was asked for, or memory is limited."""
    if method is not None:
        return tuple(dict.fromkeys(("full", method)))
    return METHOD_NAMES if limited else METHOD_NAMES[:2]


def _powers(limit: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the limit itself."""
    if limit < 1:
        raise MisuseError(f"--max-ranks {limit} is out of range; allowed: 1 or more")
    return tuple(sorted({2**power for power in range(limit.bit_length()) if 2**power <= limit} | {limit}))


def _row(option: Option, answer: Answer) -> dict[str, Any]:
    """One candidate, for scripts."""
    seconds = option.forecast.epoch_seconds
    return {
        "label": option.label,
        "ranks": option.scenario.ranks,
        "method": option.scenario.method,
        "epoch_seconds": seconds.value,
        "low": seconds.low,
        "high": seconds.high,
        "variance": option.variance,
        "peak_bytes": option.peak_bytes,
        "exchange_bytes_per_epoch": option.forecast.exchange_bytes_per_epoch,
        "front": any(option is each for each in answer.front),
        "chosen": option is answer.chosen,
    }


def show(console: Console, plan: Any, answer: Answer, where: str) -> None:
    """The recommendation, the front it is on, and what was decided on the way."""
    chosen = answer.chosen
    seconds = chosen.forecast.epoch_seconds
    console.result(
        f"{plan.graph.name}, {plan.world_size} ranks, {where}: {1e3 * seconds.value:.1f} ms an epoch "
        f"(90 % between {1e3 * seconds.low:.1f} and {1e3 * seconds.high:.1f}), "
        f"{answer.baseline.seconds / chosen.seconds:.1f} × plain"
    )
    console.result(f"  {plan.why}")
    shown = sorted({id(each): each for each in [*answer.front, answer.baseline]}.values(), key=lambda each: each.seconds)
    console.table(
        "the Pareto front (epoch time, variance, memory), and plain training",
        ["candidate", "ms", "low", "high", "variance", "exchanged", "peak", ""],
        [
            [
                each.label,
                f"{1e3 * each.seconds:.1f}",
                f"{1e3 * each.forecast.epoch_seconds.low:.1f}",
                f"{1e3 * each.forecast.epoch_seconds.high:.1f}",
                f"{each.variance:.2g}",
                human_bytes(each.forecast.exchange_bytes_per_epoch),
                human_bytes(each.peak_bytes),
                "chosen" if each is chosen else "runner-up" if each is answer.runner_up else "",
            ]
            for each in shown[:SHOWN]
        ],
    )
    for exchange in plan.exchanges:
        bits = ", ".join(f"{count:,} at {width}" for width, count in exchange.histogram.items())
        console.result(f"  layer {exchange.layer} {exchange.direction}: {bits} bits; variance {exchange.variance:.2g}")
    for note in plan.notes:
        console.result(f"  {note}")
    from halocast.cli.forecast import grouped

    for reason in grouped(plan.forecast.extrapolated):
        console.result(f"  extrapolated: {reason}")
