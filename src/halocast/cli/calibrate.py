"""``halocast calibrate``: fit what operations, messages and cores cost, from recorded runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError

Flag = Annotated[bool, Parameter(negative=())]


def calibrate(*runs: Path, out: Path, force: Flag = False, jobs: int = 0, json: Flag = False) -> int:
    """Fit costs to recorded runs of one machine.

    Runs that differ in bits, ranks, links and partition say more than many alike; repeats of one configuration say how far
    single runs scatter.

    Parameters
    ----------
    runs:
        Run folders, or folders that hold run folders.
    out:
        The cost file to write (JSON).
    force:
        Overwrite it.
    jobs:
        Processes that simulate at once; 0: one a core.
    json:
        One JSON document on standard output.
    """
    from halocast.simulator.calibrate import calibrate as fit
    from halocast.simulator.observations import find_runs, observe_all
    from halocast.simulator.planner.rowmodel import row_model, rows_beside
    from halocast.simulator.transfer import measure_ceilings

    console = Console(as_json=json)
    if out.exists() and not force:
        raise MisuseError(f"{out} exists; choose another --out, or overwrite it with --force")
    folders = find_runs(runs)
    console.note(f"reading {len(folders)} runs ...")
    observations = observe_all(folders)
    console.note("fitting ...")
    calibration = fit(observations, jobs=jobs or os.cpu_count() or 1)
    console.note("measuring what this machine can do at most ...")
    ceilings = measure_ceilings(threads=max(calibration.costs.calibrated.threads))
    costs = calibration.costs.model_copy(update={"ceilings": ceilings})
    costs.save(out)
    rows = row_model(observations)
    files = {"costs": str(out)}
    if rows.recorded or rows.risk.measured:
        rows.save(rows_beside(out))
        files["rows"] = str(rows_beside(out))
    errors = sorted(abs(each.log_ratio) for each in costs.errors)
    middle = errors[len(errors) // 2]
    document = {
        "runs": len(observations),
        "configurations": len(errors),
        "models": len(costs.operations),
        "median_error": middle,
        "worst_error": errors[-1],
        "noise": costs.noise,
        "notes": list(costs.notes),
        "files": files,
    }
    console.document(document)
    console.result(
        f"{len(observations)} runs of {len(errors)} configurations on {costs.machine}: {len(costs.operations)} models of operations"  # noqa: E501
    )
    console.result(
        f"  left out one by one, configurations are forecast to {100 * middle:.1f} % (median), {100 * errors[-1]:.1f} % at worst; "  # noqa: E501
        f"repeats scatter by {100 * costs.noise:.1f} %"
    )
    console.result(
        f"  ceilings of {ceilings.machine}, {ceilings.threads} threads: memory {ceilings.memory_rate / 1e9:.1f} GB/s, "
        f"matrix products {ceilings.gemm_rate / 1e9:.0f} Gflop/s"
    )
    for note in costs.notes:
        console.result(f"  note: {note}")
    example = folders[0] / "config.toml"
    data = str(example) if example.is_file() else next(iter(costs.calibrated.graphs.values()))
    console.closing(files, f"halocast forecast {out} --data {data} --ranks 4 --method adaqp --bits 4 --link 200mbit")
    return 0
