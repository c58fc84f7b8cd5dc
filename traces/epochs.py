"""Epochs of a trace: which ones count, which one stands for the run, and a trace of it alone."""

from __future__ import annotations

from dataclasses import replace

from halocast.errors import MisuseError
from halocast.traces.trace import TRAIN, Trace

WARM_UP_EPOCHS = 2
"""Left out of every run: page faults, first connections."""


def steady_epochs(trace: Trace) -> tuple[int, ...]:
    """Training epochs that every rank took to the end, the first ones left out where enough remain."""
    spans = trace.spans[trace.spans["phase"] == TRAIN]
    operations = spans.groupby(["epoch", "rank"]).size().unstack(fill_value=0)
    if operations.empty:
        return ()
    ended = spans[spans["op"] == "Step"].groupby("epoch")["rank"].nunique().reindex(operations.index, fill_value=0)
    whole = (ended == trace.manifest.world_size).to_numpy()
    if not ended.any():  # a program without an optimiser step
        traced = operations.reindex(columns=range(trace.manifest.world_size), fill_value=0)
        whole = ((traced == traced.max()) & (traced > 0)).all(axis=1).to_numpy()
    epochs = [int(epoch) for epoch in operations.index[whole]]
    steady = [epoch for epoch in epochs if epoch >= WARM_UP_EPOCHS]
    return tuple(steady or epochs)


def median_epoch(trace: Trace) -> int:
    """The steady epoch of median time (the lower one of two), which stands for the run.

    Raises MisuseError where no training epoch was traced, or none to its end by every rank.
    """
    bounds = trace.epoch_bounds()
    if bounds.empty:
        raise MisuseError(f"{trace.folder}: no spans of a training epoch in this trace")
    epochs = steady_epochs(trace)
    if not epochs:
        there = ", ".join(str(epoch) for epoch in bounds.index[:5])
        raise MisuseError(
            f"{trace.folder}: no training epoch was finished by every rank, so none stands for the run; "
            f"choose one that was begun ({there}) with --epoch"
        )
    durations = (bounds["end_ns"] - bounds["start_ns"]).loc[list(epochs)]
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
