"""``halocast export``: a run's trace for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError

DEFAULT_NAMES = {"perfetto": "trace.perfetto.json.gz", "hta": "hta", "csv": "tables-csv", "parquet": "tables-parquet"}


def export(
    run: Path,
    *,
    to: Literal["perfetto", "hta", "csv", "parquet"] = "perfetto",
    out: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write a trace in another tool's format.

    Parameters
    ----------
    run:
        A run folder, or a trace folder.
    to:
        perfetto: one JSON file for ui.perfetto.dev; hta: a folder for Holistic Trace Analysis; csv, parquet: whole tables.
    out:
        File or folder to write; by default inside the run folder.
    force:
        Overwrite what is there.
    json:
        One JSON document on standard output.
    """
    from halocast.traces.export import export_hta, export_perfetto, export_tables
    from halocast.traces.trace import read_trace

    console = Console(as_json=json)
    folder = run / "trace" if (run / "trace").is_dir() else run
    trace = read_trace(folder)
    target = out or run / DEFAULT_NAMES[to]
    if target.exists() and not force:
        raise MisuseError(f"{target} exists; choose another --out, or overwrite it with --force")
    if to == "perfetto":
        export_perfetto(trace, target)
    elif to == "hta":
        export_hta(trace, target)
    else:
        export_tables(trace, target, to)
    for note in trace.notes:
        console.note(note)
    following = {
        "perfetto": "open https://ui.perfetto.dev and drop the file into it",
        "hta": f"python -c \"from hta.trace_analysis import TraceAnalysis; TraceAnalysis(trace_dir='{target}')\"",
    }.get(to, f"python -c \"import pandas; print(pandas.read_{to}('{target}/spans.{to}'))\"")
    console.document({"trace": str(folder), "spans": len(trace.spans), "notes": list(trace.notes), "files": {to: str(target)}})
    console.closing({to: str(target)}, following)
    return 0
