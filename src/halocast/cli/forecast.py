"""``halocast forecast``: what a run would do, from calibrated costs, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console, human_bytes
from halocast.errors import MisuseError, nearest

Flag = Annotated[bool, Parameter(negative=())]


def forecast(
    costs: Path,
    *,
    data: str,
    ranks: int | None = None,
    method: str | None = None,
    bits: str | None = None,
    bits_from: Path | None = None,
    link: str | None = None,
    links: str | None = None,
    speeds: str | None = None,
    model: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    partitions: str = "real",
    device: str | None = None,
    network: str | None = None,
    inside: str | None = None,
    ranks_per_host: int | None = None,
    hosts_per_switch: int | None = None,
    oversubscription: float | None = None,
    transport: str | None = None,
    all_reduce: str | None = None,
    hardware: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    out: Path | None = None,
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Forecast epoch time, bytes and memory of a run that never happened: a value, a 90 % interval, and what is extrapolated.

    Parameters
    ----------
    costs:
        A cost file of ``halocast calibrate``.
    data:
        A graph, as ``halocast train`` takes it, or a run file (.toml) whose keys the flags override.
    ranks:
        Processes that share the graph.
    method:
        full, adaqp or sar (with --set method.keep=true, or method.prefetch=2).
    bits:
        Width of adaqp's messages, or sar's: 1 to 6, 8, 16, 32.
    bits_from:
        A recorded run of quantised messages: take its shares of widths.
    link:
        Rate of each rank's link, such as 200mbit; unshaped for the machine's own loopback.
    links:
        The same where they differ, one a rank: 200mbit,200mbit,50mbit,200mbit.
    speeds:
        How fast each rank's device is beside the calibrated one, one a rank: 1,1,0.5,1 (at 0.5 operations take twice as long).
    model:
        Layer: gcn, sage, sage-max, gin, gat or gatv2.
    layers:
        Number of layers.
    hidden:
        Width of the hidden layers.
    partitions:
        real: partition the graph for so many ranks; fitted: foretell halo sizes from partitions into 2, 4, 8, 16 ...
        parts (to an eighth of the ranks, 64 at most).
    device:
        A device of the catalogue for each rank (H100, A100, ...): costs are moved there by what it and the calibrated machine
        can do at most.
    network:
        What joins hosts: a name in the catalogue (ethernet-100g, infiniband-ndr, ...) or a rate. Ranks are on
        hosts of their own.
    inside:
        What joins the ranks of one host: nvlink-4, pcie-5, ... or a rate.
    ranks_per_host:
        Ranks on each host; 1 by default.
    hosts_per_switch:
        Hosts on each switch; one switch for all by default.
    oversubscription:
        By how much a switch's hosts could send more than its trunk carries.
    transport:
        gloo or nccl: take the catalogue's costs of messages, not the calibrated ones.
    all_reduce:
        ring or tree; by default as calibrated.
    hardware:
        A TOML file, or a folder of them, with devices, networks and transports of one's own.
    set_:
        Any key of the run file: --set partition.objective=volume.
    out:
        Folder for the simulated epoch as a trace (for ``halocast export``) and the forecast as JSON.
    force:
        Overwrite it.
    json:
        One JSON document on standard output.
    """
    from halocast.cli.scenario import build_scenario, parse_speeds, resolve_flags
    from halocast.simulator.costs import Costs
    from halocast.simulator.forecast import check_one_a_rank
    from halocast.simulator.forecast import forecast as predict
    from halocast.simulator.observations import parse_link
    from halocast.simulator.placement import Hardware, on_hardware, threads_of

    console = Console(as_json=json)
    if out is not None and out.exists() and not force:
        raise MisuseError(f"{out} exists; choose another --out, or overwrite it with --force")
    if all_reduce not in (None, "ring", "tree"):
        raise MisuseError(f"--all-reduce {all_reduce} is unknown{nearest(all_reduce, ('ring', 'tree'))}")
    if network is not None and link is not None:
        raise MisuseError("--network and --link both say what joins the ranks: give one of them")
    rates = () if links is None else tuple(each.strip() for each in links.split(","))
    if rates:
        refuse_beside_links({"--link": link, "--network": network, "--inside": inside}, ranks_per_host)
    own_links, own_speeds = tuple(parse_link(rate) for rate in rates), parse_speeds(speeds)
    known = Costs.load(costs)
    hosts = None if link is None else "local" if link in ("unshaped", "local") else f"shaped:{link.removeprefix('shaped:')}"
    flags = {
        "ranks": ranks, "method.name": method, "method.bits": bits, "hosts": hosts, "model.layer": model,
        "model.layers": layers, "model.hidden": hidden,
    }  # fmt: skip
    config = resolve_flags(data, flags, set_ or [])
    check_one_a_rank(config.ranks, own_speeds, own_links)
    placed = Hardware(
        device,
        network,
        link,
        inside,
        ranks_per_host,
        hosts_per_switch,
        oversubscription,
        transport,
        all_reduce,
        links=rates,
        catalogue=hardware,
    )
    moved, placement = on_hardware(known, config.ranks, placed)
    threads = threads_of(known, config.ranks, placed, config.threads)
    asked = build_scenario(
        config, bits_from=bits_from, threads=threads, partitions=partitions, report=lambda text: console.note(f"{text} ...")
    )
    known, scenario = moved, replace(placement.of(asked.scenario), links=own_links, speeds=own_speeds)
    joined = ", ".join(rates) or config.hosts
    where = placed.title if placed.is_cluster else joined
    if speeds is not None:
        where = f"{where}; speeds {speeds}"
    answer, simulation = predict(known, scenario)
    files: dict[str, str] = {}
    if out is not None:
        import json as serializer
        import shutil

        from halocast.simulator.timeline import write_timeline

        shutil.rmtree(out / "trace", ignore_errors=True)
        trace = out / "trace"
        write_timeline(
            trace,
            known,
            scenario,
            simulation,
            nodes=asked.nodes,
            edges=asked.edges,
            config=config.model_dump(mode="json"),
        )
        path = out / "forecast.json"
        path.write_text(serializer.dumps(answer.to_json(), indent=1) + "\n")
        files = {"forecast": str(path), "trace": str(trace)}
    document = {
        "graph": scenario.graph, "method": scenario.method, "ranks": scenario.ranks, "link": joined, "hardware": where,
        "forecast": answer.to_json(), "files": files,
    }  # fmt: skip
    console.document(document)
    seconds = answer.epoch_seconds
    console.result(
        f"{scenario.graph}: {scenario.method} on {scenario.ranks} ranks, {where}: "
        f"{1e3 * seconds.value:.1f} ms an epoch (90 % between {1e3 * seconds.low:.1f} and {1e3 * seconds.high:.1f})"
    )
    console.table(
        "where it goes, mean over ranks",
        ["part", "ms", "share"],
        [[name, f"{1e3 * part:.1f}", f"{100 * part / seconds.value:.0f} %"] for name, part in answer.breakdown.items()],
    )
    lowest, highest = min(answer.peak_bytes, default=0), max(answer.peak_bytes, default=0)
    peaks = f"{human_bytes(lowest)} to {human_bytes(highest)}" if answer.peak_bytes else "not calibrated:"
    console.result(
        f"  {human_bytes(answer.exchange_bytes_per_epoch)} exchanged an epoch, {human_bytes(answer.bytes_per_epoch)} with the "
        f"all-reduce; peak {peaks} a rank"
    )
    if highest * answer.peak_interval[1] > known.memory_bytes:
        console.result(f"  that may be more than the {human_bytes(known.memory_bytes)} of {known.device}")
    if not placed.is_cluster and scenario.ranks > known.host.cores:
        console.result(
            f"  all {scenario.ranks} ranks share the {known.host.cores} cores of one machine; "
            "--ranks-per-host 1 puts each on a host of its own"
        )
    for reason in grouped(answer.extrapolated):
        console.result(f"  extrapolated: {reason}")
    following = (
        f"halocast export {out} --to perfetto" if out is not None else "the same with --out forecast, for a trace of the epoch"
    )
    console.closing(files, following)
    return 0


def grouped(reasons: Sequence[str]) -> list[str]:
    """One line for all operations of which the same is said."""
    by_text: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, text = reason.rpartition(": ")
        by_text.setdefault(text, []).append(name)
    return [
        ": ".join(filter(None, (f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0], text)))
        for text, names in by_text.items()
    ]


def refuse_beside_links(others: Mapping[str, str | None], ranks_per_host: int | None) -> None:
    """Raises MisuseError for flags that say something else of what joins the ranks than ``--links`` does."""
    for flag, value in others.items():
        if value is not None:
            raise MisuseError(f"--links and {flag} both say what joins the ranks: give one of them")
    if ranks_per_host not in (None, 0, 1):
        raise MisuseError(f"--links gives each rank a port of its own: not with {ranks_per_host} ranks a host")
