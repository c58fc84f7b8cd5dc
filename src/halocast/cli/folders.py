"""What reports read: a folder's kind, and runs, forecasts and costs from their files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.errors import MisuseError

if TYPE_CHECKING:
    import pandas as pd

    from halocast.reports.subjects import Subject
    from halocast.reports.train import Promise, TrainRun
    from halocast.traces.trace import Trace

RESULT, FORECAST, WHATIF, VALIDATION, METRICS = "result.json", "forecast.json", "whatif.json", "validation.json", "metrics.csv"
MODEL_NAMES = {"sage": "GraphSAGE", "gcn": "GCN"}
COLUMNS = ("epoch", "loss", "epoch_seconds", "train", "val", "test")


class Kind(StrEnum):
    """What a folder holds."""

    RUN = "run"
    FORECAST = "forecast"
    WHATIF = "what-if"
    VALIDATION = "validation"


def kind_of(folder: Path) -> Kind:
    """Raises MisuseError for a folder that is none of these."""
    if not folder.is_dir():
        reason = "is a file, not a folder" if folder.exists() else "is no folder"
        raise MisuseError(f"{folder} {reason}; give the folder of a run, forecast, what-if or validation")
    for name, kind in ((WHATIF, Kind.WHATIF), (VALIDATION, Kind.VALIDATION), (FORECAST, Kind.FORECAST)):
        if (folder / name).is_file():
            return kind
    if (folder / RESULT).is_file() or (folder / "trace" / "manifest.json").is_file() or (folder / METRICS).is_file():
        return Kind.RUN
    if (folder / "manifest.json").is_file():
        raise MisuseError(f"{folder} is a trace, without its run; give the folder around it: {folder.parent}")
    raise MisuseError(f"{folder} holds nothing to report: no {RESULT} or trace/ (a run), {FORECAST}, {WHATIF} or {VALIDATION}")


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MisuseError where it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read ({' '.join(str(error).split())}); write it again") from error
    if not isinstance(document, dict):
        raise MisuseError(f"{path} is damaged: no JSON object; write it again")
    return document


def read_run(folder: Path) -> TrainRun:
    """A traced run, finished or not, with what there is.

    Raises MisuseError where it was not traced, and for files that are damaged or of a newer schema.
    """
    from halocast.traces.trace import read_trace

    result = read_document(folder / RESULT) if (folder / RESULT).is_file() else {}
    if not (folder / "trace" / "manifest.json").is_file():
        raise MisuseError(
            f"{folder} has no trace, which this report is made of; train with --set trace.enabled=true, or compare runs"
        )
    return train_run(folder, result, read_trace(folder / "trace"))


def train_run(folder: Path, result: Mapping[str, Any], trace: Trace, *, method: str = "") -> TrainRun:
    """A run as reports take it; what an empty `result` lacks is told from trace and metrics."""
    from halocast.reports.train import TrainRun

    config = trace.manifest.config
    metrics = read_metrics(folder)
    exchanged, total = (int(result.get(key, 0)) for key in ("exchange_bytes_per_epoch", "bytes_per_epoch"))
    if not result:
        exchanged, total = traced_bytes(trace)
    metric = str(result.get("metric", "accuracy"))
    return TrainRun(
        name=f"{trace.manifest.graph.name} on {trace.manifest.world_size} rank{'s' * (trace.manifest.world_size > 1)}",
        method=method or method_words(config),
        model=model_words(config),
        trace=trace,
        metrics=metrics,
        bytes_per_epoch=total,
        exchange_bytes_per_epoch=exchanged,
        peak_bytes=result.get("peak_bytes", ()),
        accuracy=scores_of(result, metrics),
        metric=metric,
        next_command=f"halocast export {folder} --to perfetto",
        source=str(folder),
        unfinished=unfinished_words(result, trace, metrics),
        footprint=result.get("footprint", ()),
        promise=promise_of(result),
    )


def read_metrics(folder: Path) -> pd.DataFrame:
    """The epochs so far; no rows where there is no such file, nor any whole line of it."""
    import pandas as pd

    path = folder / METRICS
    empty = pd.DataFrame({name: pd.Series(dtype="int64" if name == "epoch" else "float64") for name in COLUMNS})
    if not path.is_file():
        return empty
    try:
        table = pd.read_csv(path)
        table = table[table["epoch"].notna()].reindex(columns=list(COLUMNS))
        return table.astype({name: "int64" if name == "epoch" else "float64" for name in COLUMNS})
    except pd.errors.EmptyDataError:
        return empty
    except (ValueError, KeyError) as error:
        raise MisuseError(
            f"{path} is damaged ({' '.join(str(error).split())}); move it away to report the trace alone"
        ) from error


def traced_bytes(trace: Trace) -> tuple[int, int]:
    """(exchanged, all) bytes of the last whole epoch over all ranks; a ring all-reduce sends 2 (K − 1) / K of its bucket."""
    from halocast.traces.epochs import steady_epochs

    epochs = steady_epochs(trace)
    if not epochs:
        return 0, 0
    spans = trace.spans
    own = spans[(spans["phase"] == "train") & (spans["epoch"] == epochs[-1]) & (spans["stream"] == "compute")]
    sent = own.groupby("op")["bytes_out"].sum()
    world = trace.manifest.world_size
    exchanged = int(sent.get("Exchange", 0))
    return exchanged, exchanged + 2 * (world - 1) * int(sent.get("AllReduce", 0)) // world


def scores_of(result: Mapping[str, Any], metrics: pd.DataFrame) -> dict[str, float]:
    """The metric by split: the result's, or the last one that was evaluated."""
    if "accuracy" in result:
        return {split: score for split, score in result["accuracy"].items() if score is not None}
    known = {split: metrics[split].dropna() for split in ("train", "val", "test")}
    return {split: float(scores.iloc[-1]) for split, scores in known.items() if len(scores)}


def unfinished_words(result: Mapping[str, Any], trace: Trace | None, metrics: pd.DataFrame) -> str:
    """How far a run came that left no result; empty for one that did, and for a simulated epoch."""
    config = {} if trace is None else trace.manifest.config
    if result or config.get("forecast"):
        return ""
    asked = config.get("training", {}).get("epochs")
    return f"{len(metrics)}{f' of {asked}' if asked else ''} epochs are done, and there is no {RESULT}"


def promise_of(result: Mapping[str, Any]) -> Promise | None:
    """What the run's plan had foretold."""
    from halocast.reports.train import Promise

    said = result.get("forecast")
    return None if not said else Promise(said["epoch_seconds"], said["low"], said["high"], tuple(said.get("peak_bytes", ())))


def model_words(config: Mapping[str, Any]) -> str:
    """``GraphSAGE, 3 layers of 128``."""
    model = config.get("model", {})
    layer = str(model.get("layer", ""))
    return (
        f"{MODEL_NAMES.get(layer, layer)}, {model['layers']} layers of {model['hidden']}"
        if {"layers", "hidden"} <= set(model)
        else layer
    )


def method_words(config: Mapping[str, Any]) -> str:
    """``adaqp, 4 bits``, ``full``."""
    method = config.get("method", {})
    if not isinstance(method, Mapping):
        return str(method)
    name, bits = str(method.get("name", "")), method.get("bits")
    if name == "full" or not bits:
        return name
    if str(bits).endswith(".npz"):
        return f"{name}, widths of a plan" if config.get("plan") else f"{name}, widths of a file"
    return f"{name}, {bits} bits" if str(bits).isdigit() else f"{name}, {bits} widths"


def read_subject(folder: Path, name: str) -> Subject:
    """A run, traced or not, or a forecast, as comparisons take it. Raises MisuseError for what is neither."""
    kind = kind_of(folder)
    if kind is Kind.FORECAST:
        return _forecast_subject(folder, name)
    if kind is not Kind.RUN:
        raise MisuseError(f"{folder} is a {kind} folder; only runs and forecasts are compared")
    from halocast.reports.document import Basis
    from halocast.reports.subjects import Subject
    from halocast.reports.train import counted_seconds

    result = read_document(folder / RESULT) if (folder / RESULT).is_file() else {}
    trace = _trace_of(folder)
    metrics = read_metrics(folder)
    exchanged, total = (int(result.get(key, 0)) for key in ("exchange_bytes_per_epoch", "bytes_per_epoch"))
    if not result and trace is not None:
        exchanged, total = traced_bytes(trace)
    return Subject(
        name=name,
        basis=Basis.MEASURED,
        config=_config_of(folder, trace),
        graph=str(result.get("graph", trace.manifest.graph.name if trace else "")),
        fingerprint=str(result.get("fingerprint", trace.manifest.graph.fingerprint if trace else "")),
        machine="" if trace is None else f"{trace.manifest.machine.cpu}, {trace.manifest.machine.cores} cores",
        world_size=int(result.get("ranks", trace.manifest.world_size if trace else 0)),
        seconds=counted_seconds(metrics),
        said=None,
        metrics=metrics,
        trace=trace,
        bytes_per_epoch=total,
        exchange_bytes_per_epoch=exchanged,
        peak_bytes=result.get("peak_bytes", ()),
        accuracy=scores_of(result, metrics),
        metric=str(result.get("metric", "accuracy")),
        unfinished=unfinished_words(result, trace, metrics),
        source=str(folder),
    )


def _forecast_subject(folder: Path, name: str) -> Subject:
    from halocast.reports.document import Basis
    from halocast.reports.estimates import Estimate
    from halocast.reports.subjects import Subject

    said, trace = read_document(folder / FORECAST), _trace_of(folder)
    try:
        estimate = Estimate(float(said["epoch_seconds"]), float(said["low"]), float(said["high"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MisuseError(f"{folder / FORECAST} is damaged: {error}; write it again with halocast forecast --out") from error
    manifest = None if trace is None else trace.manifest
    return Subject(
        name=name,
        basis=Basis.FORECAST,
        config=_config_of(folder, trace),
        graph="" if manifest is None else manifest.graph.name,
        fingerprint="" if manifest is None else manifest.graph.fingerprint,
        machine="" if manifest is None else f"{manifest.machine.cpu}, {manifest.machine.cores} cores",
        world_size=len(said.get("peak_bytes", ())) if manifest is None else manifest.world_size,
        seconds=read_metrics(folder)["epoch_seconds"].to_numpy(dtype="float64"),
        said=estimate,
        metrics=read_metrics(folder),
        trace=trace,
        bytes_per_epoch=int(said.get("bytes_per_epoch", 0)),
        exchange_bytes_per_epoch=int(said.get("exchange_bytes_per_epoch", 0)),
        peak_bytes=said.get("peak_bytes", ()),
        source=str(folder),
        extrapolated=said.get("extrapolated", ()),
    )


def _trace_of(folder: Path) -> Trace | None:
    from halocast.traces.trace import read_trace

    return read_trace(folder / "trace") if (folder / "trace" / "manifest.json").is_file() else None


def _config_of(folder: Path, trace: Trace | None) -> dict[str, Any]:
    """The resolved configuration, from the trace or the file beside the results."""
    if trace is not None and trace.manifest.config:
        return trace.manifest.config
    path = folder / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    if not folders:
        return []
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(set(resolved)):
            return names
    return [str(path) for path in resolved]
