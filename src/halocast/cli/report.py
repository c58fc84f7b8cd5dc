"""``halocast report``: runs, forecasts, what-ifs and validations as one page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.cli.folders import FORECAST, VALIDATION, Kind, kind_of, names_of, read_document, read_run, read_subject
from halocast.errors import MisuseError, nearest

if TYPE_CHECKING:
    from halocast.reports.document import Document
    from halocast.simulator.costs import Ceilings

Flag = Annotated[bool, Parameter(negative=())]
KINDS = ("train", "forecast", "capacity", "compare")
BESIDE = ("forecast", "../forecast")
"""Where, seen from a run, its forecast may stand: as ``halocast tune`` leaves it."""


def report(
    *folders: Path,
    out: Path,
    format_: Annotated[str, Parameter(name="--format")] = "",
    kind: str = "",
    costs: Path | None = None,
    reference: str = "",
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Write what there is to say of runs, forecasts, what-ifs and validations: a page, Markdown, JSON or CSV.

    One run makes a train report, two or more runs or forecasts are compared, a what-if folder makes a capacity report, a
    validation folder (or a run with its forecast) a forecast report.

    Parameters
    ----------
    folders:
        Of runs (``halocast train``), forecasts (``halocast forecast --out``), a what-if or a validation.
    out:
        The file; a page needs nothing beside it. With csv one more for each further table.
    format_:
        html, md, json or csv; by default as the file's name ends.
    kind:
        train, forecast, capacity or compare, where it is not to be told from the folders.
    costs:
        A cost file of ``halocast calibrate``: draws the machine's ceilings into a train report's roofline.
    reference:
        The folder that the others are compared with; by default the first.
    force:
        Overwrite what is there.
    json:
        One JSON document on standard output: files and verdict.
    """
    console = Console(as_json=json)
    form = format_ or format_of(out)
    if form == "csv" and out.suffix.lower() != ".csv":
        raise MisuseError(f"--format csv writes tables, {out} among them: let its name end in .csv")
    chosen = kind or kind_for(folders)
    check(folders, chosen, costs, reference)
    document = BUILDERS[chosen](folders, costs, reference)

    from halocast.reports.page import write_files
    from halocast.reports.render import render

    contents = render(document, form, out)
    refuse_existing(contents, force)
    write_files(contents)
    files = {("report" if path == out else path.stem): str(path) for path in contents}
    following = document.next_command or f"open {out} in a browser"
    console.document(
        {
            "report": document.kind,
            "title": document.title,
            "verdict": document.verdict,
            "notes": list(document.notes),
            "files": files,
        }
    )
    console.result(document.verdict)
    for note in document.notes:
        console.result(f"  {note}")
    console.closing(files, following)
    return 0


def format_of(out: Path) -> str:
    """The format that a file's name asks for. Raises MisuseError where it asks for none."""
    from halocast.reports.render import FORMATS

    for name, suffix in FORMATS.items():
        if out.suffix.lower() == suffix:
            return name
    raise MisuseError(f"--out {out}: its name must end in {', '.join(FORMATS.values())}, or --format must say what it is")


def kind_for(folders: Sequence[Path]) -> str:
    """The report that folders ask for by what they hold. Raises MisuseError where they do not go together."""
    if not folders:
        raise MisuseError("name at least one folder to report on: of a run, forecast, what-if or validation")
    kinds = [kind_of(folder) for folder in folders]
    single = {Kind.WHATIF: "capacity", Kind.VALIDATION: "forecast"}
    if Kind.WHATIF not in kinds and pairs_in([kind for kind in kinds if kind is not Kind.VALIDATION]):
        return "forecast"
    for place, found in enumerate(kinds):
        if found in single and len(folders) > 1:
            raise MisuseError(
                f"{folders[place]} is a {found} folder, which makes a {single[found]} report by itself; leave the others out"
            )
    if len(folders) > 1:
        return "compare"
    return {**single, Kind.FORECAST: "train", Kind.RUN: "forecast" if forecast_beside(folders[0]) else "train"}[kinds[0]]


def pairs_in(kinds: Sequence[Kind]) -> bool:
    """Whether each run is followed by its forecast, and nothing else is there."""
    runs, forecasts = kinds[::2], kinds[1::2]
    return len(runs) == len(forecasts) > 0 and set(runs) == {Kind.RUN} and set(forecasts) == {Kind.FORECAST}


def forecast_beside(run: Path) -> Path | None:
    """The folder of a run's own forecast, with the trace of the simulated epoch; one of another run is none."""
    return next((run / name for name in BESIDE if (run / name / FORECAST).is_file() and is_of(run / name, run)), None)


def is_of(forecast: Path, run: Path) -> bool:
    """Whether the traces are of one graph, number of ranks and method."""
    from halocast.traces.trace import MANIFEST, read_manifest

    folders = (forecast / "trace", run / "trace")
    if not all((folder / MANIFEST).is_file() for folder in folders):
        return False
    said, measured = (read_manifest(folder) for folder in folders)
    same = said.graph.fingerprint == measured.graph.fingerprint and said.world_size == measured.world_size
    return same and said.config.get("method", {}).get("name") == measured.config.get("method", {}).get("name")


def check(folders: Sequence[Path], kind: str, costs: Path | None, reference: str) -> None:
    """Raises MisuseError for flags that the report does not take."""
    if kind not in KINDS:
        raise MisuseError(f"--kind {kind} is unknown{nearest(kind, KINDS)}")
    if kind in ("train", "capacity") and len(folders) != 1:
        raise MisuseError(f"a {kind} report is of one folder, not {len(folders)}; leave --kind out to compare them")
    if costs is not None and kind != "train":
        raise MisuseError(f"--costs draws the ceilings of a train report; this is a {kind} report: leave it out")
    if reference and kind != "compare":
        raise MisuseError(f"--reference belongs to a compare report; this is a {kind} report: leave it out")


def refuse_existing(contents: dict[Path, bytes], force: bool) -> None:
    there = [path for path in contents if path.exists()]
    if there and not force:
        raise MisuseError(f"{there[0]} exists; choose another --out, or overwrite it with --force")


def train_report(folders: Sequence[Path], costs: Path | None, reference: str) -> Document:
    from halocast.reports.train import train_document

    return train_document(read_run(folders[0]), None if costs is None else ceilings_of(costs))


def ceilings_of(costs: Path) -> Ceilings:
    """Raises MisuseError where the cost file holds none."""
    from halocast.simulator.costs import Costs

    ceilings = Costs.load(costs).ceilings
    if ceilings is None:
        raise MisuseError(f"{costs} holds no ceilings; calibrate again with `halocast calibrate`")
    return ceilings


def compare_report(folders: Sequence[Path], costs: Path | None, reference: str) -> Document:
    from halocast.reports.compare import compare_document

    repeated = [
        folder for place, folder in enumerate(folders) if folder.resolve() in {each.resolve() for each in folders[:place]}
    ]
    if repeated:
        raise MisuseError(f"{repeated[0]} is given twice; name each folder once")
    subjects = [read_subject(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]
    return compare_document(subjects, reference)


def capacity_report(folders: Sequence[Path], costs: Path | None, reference: str) -> Document:
    from halocast.reports.capacity import capacity_document
    from halocast.simulator.whatif import read_whatif

    return capacity_document(read_whatif(folders[0]), str(folders[0]))


def forecast_report(folders: Sequence[Path], costs: Path | None, reference: str) -> Document:
    """Of a validation folder, or of runs with the forecasts beside them."""
    tables = [folder for folder in folders if kind_of(folder) is Kind.VALIDATION]
    if len(tables) > 1:
        raise MisuseError(f"{tables[1]} is a second validation folder; report one at a time")
    others = [folder for folder in folders if folder not in tables]
    paired = pairs_in([kind_of(folder) for folder in others])
    runs = list(zip(others[::2], others[1::2], strict=True)) if paired else [(folder, beside(folder)) for folder in others]

    from halocast.reports.forecast import ForecastPair, forecast_document
    from halocast.traces.trace import read_trace

    pairs = [
        ForecastPair(read_run(run), read_document(said / FORECAST), read_trace(said / "trace"), name)
        for (run, said), name in zip(runs, names_of([run for run, _ in runs]), strict=True)
    ]
    validation = read_document(tables[0] / VALIDATION) if tables else None
    return forecast_document(pairs, validation, ", ".join(map(str, folders)))


def beside(run: Path) -> Path:
    """The folder of a run's forecast. Raises MisuseError where there is none."""
    found = forecast_beside(run)
    if found is None:
        own = run / "forecast"
        raise MisuseError(
            f"{run} has no forecast beside it; name it after the run, or make it with halocast forecast ... --out {own}, "
            "or report the run with --kind train"
        )
    return found


BUILDERS = {"train": train_report, "compare": compare_report, "capacity": capacity_report, "forecast": forecast_report}
