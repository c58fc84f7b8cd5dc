"""One epoch of a trace: which one stands for the run, and a trace of it alone."""

from __future__ import annotations

from dataclasses import replace

from halocast.errors import MisuseError
from halocast.traces.trace import TRAIN, Trace


def median_epoch(trace: Trace) -> int:
    """The training epoch of median time (the lower one of two), among those that every rank took to the end.

    Raises MisuseError where no training epoch was traced.
    """
    bounds = trace.epoch_bounds()
    if bounds.empty:
        raise MisuseError(f"{trace.folder}: no spans of a training epoch in this trace")
    spans = trace.spans[trace.spans["phase"] == TRAIN]
    operations = spans.groupby(["epoch", "rank"]).size().unstack(fill_value=0)
    complete = (operations == operations.max()).all(axis=1)
    durations = (bounds["end_ns"] - bounds["start_ns"])[complete if complete.any() else slice(None)]
    return int(durations.sort_values(kind="stable").index[(len(durations) - 1) // 2])


def one_epoch(trace: Trace, epoch: int | None = None) -> Trace:
    """The same trace with the spans and messages of one training epoch only, by default the median one.

    Raises MisuseError where the trace has no (such) epoch.
    """
    chosen = median_epoch(trace) if epoch is None else epoch
    epochs = trace.epoch_bounds().index
    if chosen not in epochs:
        there = f"it has {epochs.min()} to {epochs.max()}" if len(epochs) else "it has none"
        raise MisuseError(f"{trace.folder}: no training epoch {chosen} in this trace; {there}")
    spans, messages = (
        table[(table["phase"] == TRAIN) & (table["epoch"] == chosen)].reset_index(drop=True)
        for table in (trace.spans, trace.messages)
    )
    return replace(trace, spans=spans, messages=messages)
