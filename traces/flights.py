"""Which exchange a traced wait waits for, and which exchange of a peer's it meets.

A place (layer and direction) may have several exchanges, some in flight at once: method sar has K − 1 of them, called
rounds. Spans say where a wait is and for which peer, not for which exchange; the order of a program says it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

PLACE = ["phase", "epoch", "layer", "direction"]
"""What the two ends of a message have in common."""
RUN = ["rank", "phase", "epoch"]
"""Of one program on one rank: within it an operation has an index of its own."""
NO_FLIGHT = -1
"""Index of the flight of a wait that no exchange in the trace explains."""


def waits_with_flights(spans: pd.DataFrame, messages: pd.DataFrame) -> pd.DataFrame:
    """The waits of `spans`, each with the index of the exchange or all-reduce that it waits for as ``flight``.

    A wait for a peer is for the earliest exchange of its place, not yet waited for, with a message to or from that peer.
    A wait for no peer (−1) is for the earliest all-reduce of its place that is still open, or else for a whole exchange.
    """
    waits = spans[spans["op"] == "Wait"]
    sums = spans[spans["op"] == "AllReduce"].drop_duplicates([*RUN, "index"]).assign(peer=-1)
    flights = _in_turn(waits, pd.concat([messages, sums]), ["rank", *PLACE, "peer"])
    unexplained = waits[(flights == NO_FLIGHT) & (waits["peer"] < 0)]
    whole = _in_turn(unexplained, messages.drop_duplicates([*RUN, "index"]), ["rank", *PLACE])
    return waits.assign(flight=whole.reindex(waits.index).fillna(flights).astype("int64"))


def _in_turn(waits: pd.DataFrame, flights: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """For each wait the index of the earliest of the flights with its key, begun before it, that no wait before it took."""
    columns = [*key, "index"]
    events = pd.concat([flights[columns].assign(change=1, wait=-1), waits[columns].assign(change=-1, wait=waits.index)])
    events["key"] = events.groupby(list(key)).ngroup()
    events = events.sort_values(["key", "index"], kind="stable", ignore_index=True)
    lowest = events.groupby("key")["change"].cumsum().groupby(events["key"]).cummin().clip(upper=0)
    before = lowest.groupby(events["key"]).shift(fill_value=0)
    taken = events[lowest == before]  # a wait that finds nothing under way brings the balance to a new low
    taken = taken.assign(turn=taken.groupby(["key", "change"]).cumcount())
    begun, ended = taken[taken["change"] > 0], taken[taken["change"] < 0]
    pairs = ended.merge(begun, on=["key", "turn"], suffixes=("", "_begun")).set_index("wait")
    return pairs["index_begun"].reindex(waits.index, fill_value=NO_FLIGHT)


def pair_ends(messages: pd.DataFrame) -> pd.DataFrame:
    """Both ends of every message: the k-th sent of a place in the epoch is the k-th that the peer received there.

    Columns phase, epoch, layer, direction, turn (k), sender, receiver, the exchanges' index and receiver_index, bytes (as
    sent), bytes_in, send_done_ns and receive_done_ns. A message without its other end is left out.
    """
    sent = messages.loc[messages["bytes_out"] > 0, [*PLACE, "rank", "peer", "index", "bytes_out", "send_done_ns"]].rename(
        columns={"rank": "sender", "peer": "receiver", "bytes_out": "bytes"}
    )
    received = messages.loc[messages["bytes_in"] > 0, [*PLACE, "rank", "peer", "index", "bytes_in", "receive_done_ns"]].rename(
        columns={"rank": "receiver", "peer": "sender", "index": "receiver_index"}
    )
    ends = [*PLACE, "sender", "receiver"]
    sent["turn"] = sent.groupby(ends).cumcount()
    received["turn"] = received.groupby(ends).cumcount()
    return sent.merge(received, on=[*ends, "turn"])


def peers_flights(messages: pd.DataFrame) -> pd.DataFrame:
    """A row an exchange of a rank and a peer in it: which exchange of the peer's it meets.

    Columns rank, phase, epoch, flight (the rank's index), peer and peer_flight.
    """
    ends = pair_ends(messages)
    names = ["rank", "peer", "flight", "peer_flight"]
    sides = [
        ends[["phase", "epoch", *columns]].set_axis(["phase", "epoch", *names], axis=1)
        for columns in (["receiver", "sender", "receiver_index", "index"], ["sender", "receiver", "index", "receiver_index"])
    ]
    return pd.concat(sides, ignore_index=True).drop_duplicates([*RUN, "flight", "peer"])


def rounds(exchanges: pd.DataFrame) -> pd.Series:
    """How many exchanges (or all-reduces) of a span's rank and place came before it in the epoch; ranks meet in the same one.

    `exchanges`: spans of Exchange, or of AllReduce, a row each.
    """
    return exchanges.sort_values("index").groupby(["rank", *PLACE]).cumcount().reindex(exchanges.index)
