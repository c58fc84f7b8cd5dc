"""Where each rank's time goes and who kept whom waiting, told from a trace: the same for a measured and a simulated epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from halocast.reports.figures import BLUE, GRID, IDLE, MARKS, ORANGE, PURPLE, SKY, VERMILION
from halocast.traces.epochs import steady_epochs
from halocast.traces.flights import peers_flights, rounds, waits_with_flights
from halocast.traces.trace import COMMUNICATION, COMPUTE, TRAIN, Trace

PART_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "compute": BLUE,
        "quantise": PURPLE,
        "posting messages": SKY,
        "exchange exposed": ORANGE,
        "all-reduce exposed": VERMILION,
        "wait for late ranks": IDLE,
        "between operations": GRID,
    }
)
"""Parts of a rank's epoch in the order they are stacked; together they are the epoch."""
PARTS = tuple(PART_COLOURS)
WAITS = PARTS[3:6]
"""Those in which a rank does nothing but wait for others."""
HIDDEN = "exchange hidden"
"""Messages in flight while the rank does something else: beside the parts, not one of them."""
FULL_WIDTH = 32
"""Bits."""
POSTS = ("Exchange", "Fetch", "AllToAll", "AllReduce", "Upload")
PLACE = ["epoch", "layer", "direction"]
"""What the ranks' sides of the all-reduces, or of the exchanges, of all rounds have in common."""


@dataclass(frozen=True)
class RankTimes:
    """Times of the epochs that count, in seconds."""

    epochs: tuple[int, ...]
    parts: pd.DataFrame
    """Index rank; columns `PARTS` and `HIDDEN`: of one epoch, mean over epochs."""
    waits: pd.DataFrame
    """A row a wait: rank, epoch, layer, direction, op ("Exchange" or "AllReduce"), culprit, late, seconds."""

    @property
    def epoch_seconds(self) -> float:
        """Of an epoch, from a rank's own start to its own end: mean over ranks and epochs."""
        return float(self.parts[list(PARTS)].sum(axis=1).mean())

    @property
    def shares(self) -> pd.Series:
        """Of the parts in all ranks' time, by name."""
        whole = self.parts[list(PARTS)].sum()
        return whole / whole.sum()

    @property
    def waiting(self) -> float:
        """Share of the ranks' time in which they did nothing but wait for others."""
        return float(self.shares[list(WAITS)].sum())

    @property
    def holdups(self) -> pd.Series:
        """By rank: seconds of an epoch that the others waited, in the mean, for it to send."""
        others = max(1, len(self.parts) - 1)
        late = self.waits.groupby("culprit")["late"].sum() / (others * len(self.epochs))
        return late.reindex(self.parts.index, fill_value=0.0)


def rank_times(trace: Trace) -> RankTimes | None:
    """Times of every rank over the steady epochs; None where no epoch was finished by all ranks."""
    epochs = steady_epochs(trace)
    if not epochs:
        return None
    spans = trace.aligned().spans
    spans = spans[(spans["phase"] == TRAIN) & spans["epoch"].isin(epochs) & ~spans["op"].isin(MARKS)]
    own, flights = spans[spans["stream"] == COMPUTE], spans[spans["stream"] == COMMUNICATION]
    seconds = own_seconds(own)  # of each rank: no barrier ends an epoch, so that ranks may be in different ones
    messages = trace.messages[(trace.messages["phase"] == TRAIN) & trace.messages["epoch"].isin(epochs)]
    waits = told_apart(waits_with_flights(own, messages), flights, peers_flights(messages))
    working = own[own["op"] != "Wait"]
    busy = (working["wall_ns"] / 1e9).groupby([working["rank"], kinds(working)]).sum().unstack()
    parts = busy.reindex(index=range(trace.manifest.world_size), columns=list(PARTS), fill_value=0.0).fillna(0.0)
    exposed = waits["seconds"] - waits["late"]
    for op, name in (("Exchange", "exchange exposed"), ("AllReduce", "all-reduce exposed")):
        parts[name] = exposed[waits["op"] == op].groupby(waits["rank"]).sum().reindex(parts.index, fill_value=0.0)
    parts["wait for late ranks"] = waits["late"].groupby(waits["rank"]).sum().reindex(parts.index, fill_value=0.0)
    parts /= len(epochs)
    parts["between operations"] = (seconds.reindex(parts.index, fill_value=0.0) - parts[list(PARTS[:-1])].sum(axis=1)).clip(
        lower=0.0
    )
    parts[HIDDEN] = hidden(spans) / len(epochs)
    return RankTimes(epochs, parts, waits)


def kinds(working: pd.DataFrame) -> pd.Series:
    """The part that each span counts to.

    Plain training gathers and adds rows at 32 bits: copying, not quantising. Width 0 stands for rows of different widths.
    """
    moves, narrow = working["op"].isin(("Quantize", "Dequantize")), working["bits"] < FULL_WIDTH
    found = pd.Series("compute", index=working.index, name="part")
    found = found.mask(working["op"].isin(POSTS) | (moves & ~narrow), "posting messages")
    return found.mask(moves & narrow, "quantise")


def own_seconds(own: pd.DataFrame) -> pd.Series:
    """By rank: from its first operation of an epoch to the end of its last one, mean over epochs."""
    epochs = own.assign(end_ns=own["start_ns"] + own["wall_ns"]).groupby(["rank", "epoch"])
    lengths = (epochs["end_ns"].max() - epochs["start_ns"].min()) / 1e9
    return lengths.groupby("rank").mean()


def told_apart(waits: pd.DataFrame, flights: pd.DataFrame, met: pd.DataFrame) -> pd.DataFrame:
    """Each wait in two: until the rank that was waited for had sent (``late``, in seconds), and while its message flew.

    An exchange is waited for peer by peer, and its messages fly once the peer has come to the same one (`met`, see
    `peers_flights`); an all-reduce (peer -1) has begun when the last rank has joined it.
    """
    exchanges = flights.loc[flights["op"] != "AllReduce", ["epoch", "rank", "index", "start_ns"]]
    exchanges = exchanges.rename(columns={"rank": "culprit", "index": "peer_flight"})
    sums = flights[flights["op"] == "AllReduce"]
    sums = sums.assign(round=rounds(sums))
    reduces = sums.sort_values("start_ns").groupby([*PLACE, "round"], as_index=False).last()
    reduces = reduces[[*PLACE, "round", "rank", "start_ns"]].rename(columns={"rank": "culprit"})
    own_sums = sums[["rank", *PLACE, "index", "round"]].rename(columns={"index": "flight"})
    waits = waits[["rank", *PLACE, "flight", "peer", "start_ns", "wall_ns"]].rename(columns={"start_ns": "began"})
    of_peers = waits[waits["peer"] >= 0].merge(met, how="left", on=["rank", "epoch", "flight", "peer"])
    of_peers = of_peers.rename(columns={"peer": "culprit"}).merge(exchanges, how="left", on=["epoch", "culprit", "peer_flight"])
    of_all = waits[waits["peer"] < 0].merge(own_sums, how="left", on=["rank", *PLACE, "flight"])
    of_all = of_all.merge(reduces, how="left", on=[*PLACE, "round"])
    columns = ["rank", *PLACE, "culprit", "began", "start_ns", "wall_ns"]
    found = pd.concat([of_peers[columns].assign(op="Exchange"), of_all[columns].assign(op="AllReduce")], ignore_index=True)
    late = (found["start_ns"] - found["began"]).clip(lower=0).fillna(0.0)
    late = late.where(late < found["wall_ns"], found["wall_ns"]).where(found["culprit"] != found["rank"], 0.0)
    return found.assign(late=late / 1e9, seconds=found["wall_ns"] / 1e9)


def hidden(spans: pd.DataFrame) -> pd.Series:
    """Seconds, by rank, in which messages of exchanges flew and the rank did not wait for one."""
    flights = spans[(spans["stream"] == COMMUNICATION) & (spans["op"] != "AllReduce")]
    waits = spans[(spans["op"] == "Wait") & (spans["peer"] >= 0)]
    ranks = sorted(spans["rank"].unique().tolist())
    flying = {rank: covered(group) for rank, group in flights.groupby("rank")}
    waited = waits.groupby("rank")["wall_ns"].sum() / 1e9
    return pd.Series({rank: max(0.0, flying.get(rank, 0.0) - float(waited.get(rank, 0.0))) for rank in ranks})


def covered(spans: pd.DataFrame) -> float:
    """Length of the union of the spans, in seconds."""
    ordered = spans.sort_values("start_ns")
    left = ordered["start_ns"].to_numpy(dtype=np.int64)
    right = np.maximum.accumulate(left + ordered["wall_ns"].to_numpy(dtype=np.int64))
    reached = np.concatenate([left[:1], right[:-1]])
    return float(np.clip(right - np.maximum(left, reached), 0, None).sum()) / 1e9


def last_to_send(trace: Trace, epochs: Sequence[int]) -> pd.DataFrame:
    """A row an exchange of an epoch: epoch, layer, direction, round, and the rank that was the last to send."""
    spans = trace.aligned().spans
    own = spans[
        (spans["phase"] == TRAIN) & spans["epoch"].isin(epochs) & (spans["stream"] == COMPUTE) & (spans["op"] == "Exchange")
    ]
    own = own.assign(round=rounds(own)).sort_values("start_ns")
    return own.groupby([*PLACE, "round"])["rank"].last().reset_index()


def last_shares(last: pd.DataFrame, ranks: int) -> pd.Series:
    """By rank: the share of those exchanges in which it was the last."""
    return last["rank"].value_counts(normalize=True).reindex(range(ranks), fill_value=0.0)
