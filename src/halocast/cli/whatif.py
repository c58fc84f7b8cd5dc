"""``halocast whatif``: a grid of scenarios, each forecast, and what follows for someone who has to choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError

if TYPE_CHECKING:
    from halocast.simulator.whatif.folder import WhatIf

Flag = Annotated[bool, Parameter(negative=())]
DEFAULT_MOST = 100_000
FILES = ("whatif", "scenarios", "answers")


def whatif(
    grid: Path,
    *,
    costs: Path,
    out: Path,
    sample: int | None = None,
    seed: int = 0,
    most: int = DEFAULT_MOST,
    backend: str = "loky",
    jobs: int = 0,
    cluster: str | None = None,
    resume: Flag = False,
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Forecast every scenario of a grid: what to rent or buy, how long a training takes there, and what it costs.

    Parameters
    ----------
    grid:
        A TOML file: axes (ranks, device, network, method, bits, ...), prices and filters; see examples/capacity.toml.
    costs:
        A cost file of ``halocast calibrate``.
    out:
        Folder for the scenarios and the answers.
    sample:
        Take so many scenarios at random, not all.
    seed:
        Of the sample.
    most:
        Refuse a grid of more scenarios.
    backend:
        What runs scenarios side by side: loky (processes), threading, dask, ray.
    jobs:
        Scenarios at once; 0: one a core.
    cluster:
        Address of a dask scheduler, or of a ray cluster; a local one by default.
    resume:
        Go on with the unfinished sweep in --out.
    force:
        Overwrite what is there.
    json:
        One JSON document on standard output.
    """
    import os

    from halocast.cli.capacity import open_grid
    from halocast.simulator.costs import Costs
    from halocast.simulator.whatif.folder import read_whatif
    from halocast.simulator.whatif.grid import read_document
    from halocast.simulator.whatif.run import Sweeping, open_folder, run_sweep
    from halocast.simulator.whatif.sweep import check_backend

    console = Console(as_json=json)
    for name, value, least in (("--sample", sample, 1), ("--jobs", jobs, 0), ("--most", most, 1)):
        if value is not None and value < least:
            raise MisuseError(f"{name} {value} is out of range; allowed: {least} or more")
    check_backend(backend, cluster)
    asked, names, source = open_grid(read_document(grid), str(grid))
    if sample is None:
        asked.refuse_many(most, str(grid))
    elif sample > most:
        raise MisuseError(f"--sample {sample:,} is more than --most {most:,}")
    sweeping = Sweeping(asked, names, source, Costs.load(costs), costs, sample, seed)
    open_folder(out, sweeping, resume=resume, force=force)
    with console.sweeping(f"halocast whatif {grid} --costs {costs} --out {out} --resume") as progress:
        run_sweep(sweeping, out, backend=backend, jobs=jobs or os.cpu_count() or 1, address=cluster, progress=progress)
    result = read_whatif(out)
    console.document(document_of(result))
    show(console, result)
    return 0


def document_of(result: WhatIf) -> dict[str, object]:
    """The whole answer, for scripts."""
    assert result.answers is not None
    table = result.table
    return {
        "graph": result.manifest.graph.name,
        "scenarios": len(table),
        "feasible": int(table["feasible"].sum()),
        "without_forecast": int(table["epoch_seconds"].isna().sum()),
        "on_front": int(table["on_front"].sum()),
        "answers": result.answers.model_dump(mode="json", by_alias=True),
        "files": files_of(result),
    }


def files_of(result: WhatIf) -> dict[str, str]:
    from halocast.simulator.whatif.folder import ANSWERS, MANIFEST, TABLE

    return {
        name: str(result.folder / file) for name, file in (("whatif", MANIFEST), ("scenarios", TABLE), ("answers", ANSWERS))
    }


def show(console: Console, result: WhatIf) -> None:
    """The answers in sentences, the tornado, and what to do next."""
    from halocast.words import money, time_span

    manifest, table, answers = result.manifest, result.table, result.answers
    assert answers is not None
    console.result(
        f"{manifest.graph.name}: {len(table):,} scenarios forecast of trainings of {manifest.epochs:,} epochs; "
        f"{int(table['feasible'].sum()):,} feasible, {int(table['on_front'].sum()):,} on the front"
    )
    for sentence in answers.sentences:
        console.result(f"  {sentence.question}")
        console.result(f"    {sentence.answer}")
    if answers.tornado:
        console.table(
            "the recommended training with one input 20 % less, and 20 % more",
            ["input", "from", "to", "takes", "to", "costs", "to"],
            [
                [
                    bar.label,
                    bar.low,
                    bar.high,
                    time_span(bar.seconds_low),
                    time_span(bar.seconds_high),
                    "" if bar.cost_low is None else money(bar.cost_low, manifest.currency),
                    "" if bar.cost_high is None else money(bar.cost_high, manifest.currency),
                ]
                for bar in answers.tornado
            ],
        )
    for line in manifest.assumed:
        console.result(f"  assumed: {line}")
    console.closing(files_of(result), f"halocast report {result.folder} --out {result.folder / 'report.html'}")
