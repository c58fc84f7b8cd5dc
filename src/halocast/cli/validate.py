"""``halocast validate``: forecast every configuration from the others and say how wrong that is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console

Flag = Annotated[bool, Parameter(negative=())]


def validate(
    *runs: Path, out: Path = Path("reports/validation"), hold_out_values: bool = True, jobs: int = 0, json: Flag = False
) -> int:
    """Compare forecasts with what runs did, each configuration left out of its own calibration.

    Parameters
    ----------
    runs:
        Run folders; folders that hold run folders; several runs of one configuration are repeats.
    out:
        Folder for the table (Markdown), the figures (JSON) and the scatter (PNG).
    hold_out_values:
        Also forecast all configurations of one link, and of one number of ranks, from the rest.
    jobs:
        Processes that simulate at once; 0: one a core.
    json:
        One JSON document on standard output.
    """
    from halocast.reports.validation import regimes, validation_document, write_validation
    from halocast.simulator.observations import find_runs, observe_all
    from halocast.simulator.validation import coverage, summarise
    from halocast.simulator.validation import validate as compare

    console = Console(as_json=json)
    folders = find_runs(runs)
    console.note(f"reading {len(folders)} runs ...")
    observations = observe_all(folders)
    validation = compare(observations, jobs=jobs or os.cpu_count() or 1, hold_out_values=hold_out_values, report=console.note)
    paths = {kind: str(path) for kind, path in write_validation(validation, out).items()}
    console.document({**validation_document(validation), "files": paths})
    for regime, rows in regimes(validation.rows).items():
        found = summarise(rows, lambda row: row.usual.seconds)
        at_speed = summarise(rows, lambda row: row.at_speed.seconds)
        if found is not None and at_speed is not None:
            console.result(
                f"{regime}: {found.configurations} configurations, error {100 * found.median:.1f} % median, "
                f"{100 * found.p95:.1f} % 95th percentile, {100 * found.worst:.1f} % worst; "
                f"{100 * at_speed.median:.1f} %, {100 * at_speed.p95:.1f} %, {100 * at_speed.worst:.1f} % at their speed"
            )
    held, total = coverage(validation.rows, lambda row: row.usual)
    console.result(
        f"  repeats scatter by {100 * validation.noise:.1f} % ({100 * validation.noise_at_speed:.1f} % at their own speed); "
        f"the 90 % intervals hold {held} of {total} runs"
    )
    console.closing(paths, f"halocast calibrate {runs[0]} ... --out costs.json")
    return 0
