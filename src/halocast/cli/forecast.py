"""``halocast forecast``: what a run would do, from calibrated costs, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console, human_bytes
from halocast.errors import MisuseError

Flag = Annotated[bool, Parameter(negative=())]
SHOWN_REASONS = 6


def forecast(
    costs: Path,
    *,
    data: str,
    ranks: int | None = None,
    method: str | None = None,
    bits: str | None = None,
    bits_from: Path | None = None,
    link: str | None = None,
    model: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
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
        full or adaqp.
    bits:
        Width of adaqp's messages: 1 to 6, 8, 16, 32.
    bits_from:
        A recorded adaqp run: take its shares of widths.
    link:
        Rate of each rank's link, such as 200mbit; unshaped for the machine's own loopback.
    model:
        Layer: gcn or sage.
    layers:
        Number of layers.
    hidden:
        Width of the hidden layers.
    set_:
        Any key of the run file: --set partition.objective=volume.
    out:
        Folder for the simulated epoch as a trace (for ``halocast export``) and the forecast as JSON.
    force:
        Overwrite it.
    json:
        One JSON document on standard output.
    """
    from halocast.cli.scenario import build_scenario, resolve_flags
    from halocast.simulator.costs import Costs
    from halocast.simulator.forecast import forecast as predict

    console = Console(as_json=json)
    if out is not None and out.exists() and not force:
        raise MisuseError(f"{out} exists; choose another --out, or overwrite it with --force")
    known = Costs.load(costs)
    hosts = None if link is None else "local" if link in ("unshaped", "local") else f"shaped:{link.removeprefix('shaped:')}"
    flags = {
        "ranks": ranks, "method.name": method, "method.bits": bits, "hosts": hosts, "model.layer": model,
        "model.layers": layers, "model.hidden": hidden,
    }  # fmt: skip
    config = resolve_flags(data, flags, set_ or [])
    threads = config.threads or max(1, known.host.cores // config.ranks)
    asked = build_scenario(config, bits_from=bits_from, threads=threads, report=lambda text: console.note(f"{text} ..."))
    answer, simulation = predict(known, asked.scenario)
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
            asked.scenario,
            simulation,
            nodes=asked.nodes,
            edges=asked.edges,
            config=config.model_dump(mode="json"),
        )
        path = out / "forecast.json"
        path.write_text(serializer.dumps(answer.to_json(), indent=1) + "\n")
        files = {"forecast": str(path), "trace": str(trace)}
    document = {
        "graph": asked.scenario.graph, "method": asked.scenario.method, "ranks": asked.scenario.ranks, "link": config.hosts,
        "forecast": answer.to_json(), "files": files,
    }  # fmt: skip
    console.document(document)
    seconds = answer.epoch_seconds
    console.result(
        f"{asked.scenario.graph}: {asked.scenario.method} on {asked.scenario.ranks} ranks, {config.hosts}: "
        f"{1e3 * seconds.value:.1f} ms an epoch (90 % between {1e3 * seconds.low:.1f} and {1e3 * seconds.high:.1f})"
    )
    console.table(
        "where it goes, mean over ranks",
        ["part", "ms", "share"],
        [[name, f"{1e3 * part:.1f}", f"{100 * part / seconds.value:.0f} %"] for name, part in answer.breakdown.items()],
    )
    peaks = ", ".join(human_bytes(each) for each in answer.peak_bytes) or "not calibrated"
    console.result(
        f"  {human_bytes(answer.exchange_bytes_per_epoch)} exchanged an epoch, {human_bytes(answer.bytes_per_epoch)} with the "
        f"all-reduce; peak {peaks} a rank"
    )
    for reason in answer.extrapolated[:SHOWN_REASONS]:
        console.result(f"  extrapolated: {reason}")
    if len(answer.extrapolated) > SHOWN_REASONS:
        console.result(f"  extrapolated: {len(answer.extrapolated) - SHOWN_REASONS} more (see --json)")
    following = (
        f"halocast export {out} --to perfetto" if out is not None else f"halocast forecast {costs} --data {data} --out forecast"
    )
    console.closing(files, following)
    return 0
