"""``halocast export``: a run's trace for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError

if TYPE_CHECKING:
    from halocast.traces.trace import Trace

DEFAULT_NAMES = {
    "perfetto": "trace.perfetto.json.gz",
    "hta": "hta",
    "chakra": "chakra",
    "csv": "tables-csv",
    "parquet": "tables-parquet",
}
ONE_RUN_EACH = ("hta", "chakra")
CHECK_FAILED = 3


def export(
    *runs: Path,
    to: Literal["perfetto", "hta", "chakra", "csv", "parquet"] = "perfetto",
    epoch: int | None = None,
    out: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write traces in another tool's format.

    Parameters
    ----------
    runs:
        Run, forecast or trace folders. Several go into one file, measured above forecast: one epoch each for perfetto,
        starting together; whole tables with a column "run" for csv and parquet.
    to:
        perfetto: one JSON file for ui.perfetto.dev; hta: a folder for Holistic Trace Analysis; chakra: a folder of MLCommons
        Chakra execution traces (.et) of one epoch; csv, parquet: whole tables.
    epoch:
        Only this training epoch (counted from 0). Where one epoch is written it is by default the one of median time; a
        forecast has one only.
    out:
        File or folder to write; by default inside the (first) run folder.
    force:
        Overwrite what is there.
    json:
        One JSON document on standard output.
    """
    from halocast.traces.trace import read_trace

    console = Console(as_json=json)
    if not runs:
        raise MisuseError("nothing to export: give a run folder, or several")
    if len(runs) > 1 and to in ONE_RUN_EACH:
        raise MisuseError(f"--to {to} takes one run, {len(runs)} were given; perfetto, csv and parquet take several")
    target = out or runs[0] / DEFAULT_NAMES[to]
    if target.exists() and not force:
        raise MisuseError(f"{target} exists; choose another --out, or overwrite it with --force")
    traces = labelled([read_trace(run) for run in runs])
    written, problems = write(traces, to, target, epoch)
    for trace in traces.values():
        for note in trace.notes:
            console.note(note)
    for problem in problems:
        console.error(f"read back, {target} differs from the trace: {problem}")
    folders = [str(trace.folder) for trace in traces.values()]
    console.document(
        {
            **({"trace": folders[0]} if len(folders) == 1 else {"traces": dict(zip(traces, folders, strict=True))}),
            "spans": sum(len(trace.spans) for trace in written.values()),
            "notes": [note for trace in traces.values() for note in trace.notes],
            "problems": problems,
            "files": {to: str(target)},
        }
    )
    console.closing({to: str(target)}, following(to, target))
    return CHECK_FAILED if problems else 0


def write(traces: dict[str, Trace], to: str, target: Path, epoch: int | None) -> tuple[dict[str, Trace], list[str]]:
    """Write them; returns what of them was written and what a check of the files found wrong."""
    from halocast.traces.epochs import one_epoch
    from halocast.traces.export import (
        check_chakra,
        export_chakra,
        export_hta,
        export_perfetto,
        export_side_by_side,
        export_tables,
    )

    several = len(traces) > 1
    if epoch is not None or to == "chakra" or (to == "perfetto" and several):
        traces = {
            label: one_epoch(trace, None if several and trace.manifest.is_forecast else epoch)
            for label, trace in traces.items()
        }
    (first, *_) = traces.values()
    if to == "perfetto" and several:
        export_side_by_side(traces, target)
    elif to == "perfetto":
        export_perfetto(first, target)
    elif to == "hta":
        export_hta(first, target)
    elif to == "chakra":
        return traces, check_chakra(first, export_chakra(first, target))
    else:
        export_tables(traces if several else first, target, to)
    return traces, []


def labelled(traces: list[Trace]) -> dict[str, Trace]:
    """Measured before forecast, in the order given; called so, with the run's folder where there are several of a kind."""
    kinds = ["forecast" if trace.manifest.is_forecast else "measured" for trace in traces]
    names: dict[str, Trace] = {}
    for kind in ("measured", "forecast"):
        own = [trace for trace, other in zip(traces, kinds, strict=True) if other == kind]
        for trace in own:
            folder = trace.folder.resolve()
            label = kind if len(own) == 1 else f"{kind} {folder.parent.name if folder.name == 'trace' else folder.name}"
            repeat = sum(name == label or name.startswith(f"{label} (") for name in names)
            names[f"{label} ({repeat + 1})" if repeat else label] = trace
    return names


def following(to: str, target: Path) -> str:
    """What to do with the file."""
    return {
        "perfetto": "open https://ui.perfetto.dev and drop the file into it",
        "hta": f"python -c \"from hta.trace_analysis import TraceAnalysis; TraceAnalysis(trace_dir='{target}')\"",
        "chakra": f"give ASTRA-sim --workload-configuration={target}/trace",
    }.get(to, f"python -c \"import pandas; print(pandas.read_{to}('{target}/spans.{to}'))\"")
