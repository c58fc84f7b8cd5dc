"""One epoch of a trace as MLCommons Chakra execution traces, a file a rank, for ASTRA-sim and others that replay them.

A node an operation, except that waits become dependencies: what follows a wait depends on the receives that it waited
for, so that whoever replays the nodes on another network sees what hides under what. Attributes are named and typed as
Chakra's feeder reads them (src/feeder/et_feeder_node.cpp). Node files: a varint before each message, the
``GlobalMetadata`` first.

    compute operation   COMP_NODE       after the compute node before it, and what was waited for in between
    posting a flight    COMP_NODE       the same: what starting an exchange or a sum costs the rank
    message sent        COMM_SEND_NODE  after what the exchange came after; tags agree at both ends
    message received    COMM_RECV_NODE  the same
    all-reduce          COMM_COLL_NODE  the same

Times between operations are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from halocast.errors import MisuseError, RunError
from halocast.traces.epochs import one_epoch
from halocast.traces.export.chakra_schema import (
    ALL_REDUCE,
    COMM_COLL_NODE,
    COMM_RECV_NODE,
    COMM_SEND_NODE,
    COMP_NODE,
    SCHEMA_VERSION,
    ChakraMessages,
    chakra_messages,
    read_delimited,
    write_delimited,
)
from halocast.traces.export.perfetto import COMMUNICATION_KERNELS
from halocast.traces.flights import pair_ends, waits_with_flights
from halocast.traces.trace import COMMUNICATION, COMPUTE, Trace

NAME = "trace"
"""Files are called ``trace.{rank}.et``; ASTRA-sim is given ``FOLDER/trace``."""
VALUE_TYPES = {
    "is_cpu_op": "bool_val",
    "num_ops": "int64_val",
    "tensor_size": "uint64_val",
    "comm_type": "int64_val",
    "comm_size": "int64_val",
    "comm_src": "int32_val",
    "comm_dst": "int32_val",
    "comm_tag": "int32_val",
    "pg_name": "string_val",
}
"""Which member of the attribute's ``oneof`` Chakra's feeder reads."""


@dataclass(frozen=True)
class ChakraNode:
    """A node as it is in the file; times in µs from the epoch's first start."""

    id: int
    name: str
    type: int
    data_deps: tuple[int, ...]
    start_micros: int
    duration_micros: int
    attributes: dict[str, Any]


def export_chakra(trace: Trace, folder: Path, epoch: int | None = None) -> list[Path]:
    """Write one epoch (by default the median one) as ``trace.{rank}.et`` into `folder`; returns the files.

    Raises MisuseError for an epoch that is not there or that some rank did not finish, RunError where writing fails.
    """
    messages = chakra_messages()
    chosen = one_epoch(trace, epoch).aligned()
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rank, nodes in enumerate(chakra_nodes(chosen)):
            path = folder / f"{NAME}.{rank}.et"
            with open(path, "wb") as file:
                write_delimited(file, messages.metadata(version=SCHEMA_VERSION))
                for node in nodes:
                    write_delimited(file, _encode(messages, node))
            paths.append(path)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    return paths


def read_chakra(path: Path) -> list[ChakraNode]:
    """The nodes of one rank's file. Raises MisuseError for what is none."""
    from google.protobuf.message import DecodeError

    messages = chakra_messages()
    try:
        version, *parts = read_delimited(path.read_bytes())
        if messages.metadata.FromString(version).version != SCHEMA_VERSION:
            raise ValueError(f"its schema is not {SCHEMA_VERSION}")
        return [_decode(messages.node.FromString(part)) for part in parts]
    except OSError as error:
        raise MisuseError(f"{path}: {error.strerror or error}") from error
    except (ValueError, DecodeError) as error:
        raise MisuseError(f"{path} is no Chakra execution trace as halocast writes them: {error}") from error


def chakra_nodes(epoch: Trace) -> list[list[ChakraNode]]:
    """The nodes of every rank; `epoch` holds one epoch, its times aligned.

    Raises MisuseError where messages lack their other end: some rank did not finish the epoch.
    """
    ends = _ends_with_tags(epoch)
    origin = int(epoch.spans["start_ns"].min())
    waits = waits_with_flights(epoch.spans, epoch.messages)
    flights = {(rank, index): flight for rank, index, flight in waits[["rank", "index", "flight"]].itertuples(index=False)}
    sent, received = (dict(list(ends.groupby(side))) for side in ("sender", "receiver"))
    nothing = ends.iloc[:0]
    return [
        _RankNodes(
            rank, origin, epoch.manifest.value_bytes, flights, sent.get(rank, nothing), received.get(rank, nothing)
        ).walk(epoch.spans[epoch.spans["rank"] == rank])
        for rank in range(epoch.manifest.world_size)
    ]


def _ends_with_tags(epoch: Trace) -> pd.DataFrame:
    """A row a message, with both ends' times and a tag that no other message between its ranks has."""
    ends = pair_ends(epoch.messages)
    sent, received = ((epoch.messages[column] > 0).sum() for column in ("bytes_out", "bytes_in"))
    if not len(ends) == sent == received:
        number = int(epoch.spans["epoch"].iloc[0])
        raise MisuseError(
            f"{epoch.folder}: epoch {number} was not finished by every rank, so messages lack an end; choose another --epoch"
        )
    return ends.assign(tag=ends.groupby(["direction", "layer", "turn"], sort=True).ngroup())


@dataclass
class _RankNodes:
    """Walks one rank's epoch in program order and collects its nodes."""

    rank: int
    origin: int
    value_bytes: int
    flights: Mapping[tuple[int, int], int]
    """The exchange or all-reduce that a wait is for, by rank and index."""
    sent: pd.DataFrame
    received: pd.DataFrame
    nodes: list[ChakraNode] = field(default_factory=list)
    after: tuple[int, ...] = ()
    """What the next node comes after: the compute node before it, and what was waited for since."""
    under_way: dict[int, dict[int, int]] = field(default_factory=dict)
    """Receives not yet waited for, by the index of their exchange, then by peer; of an all-reduce, the sum as peer −1."""

    def walk(self, spans: pd.DataFrame) -> list[ChakraNode]:
        flights = spans[spans["stream"] == COMMUNICATION].set_index("index")
        compute = spans[spans["stream"] == COMPUTE].sort_values("index")
        records: list[Any] = compute.to_dict("records")
        for span in records:
            before = self.after
            match span["op"]:
                case "Wait":
                    self.after = (*self.after, *self._waited_for(self.flights[self.rank, span["index"]], span["peer"]))
                    continue
                case "Exchange":
                    self.under_way[span["index"]] = self._exchange(span, before)
                case "AllReduce":
                    self.under_way[span["index"]] = {-1: self._all_reduce(span, flights.loc[span["index"]], before)}
            self.after = (self._compute(span, before),)
        return self.nodes

    def _waited_for(self, flight: int, peer: int) -> list[int]:
        """Waiting for a peer is waiting for its message, if it sends one; for no peer, for a sum or for all messages."""
        receives = self.under_way.get(flight, {})
        if peer >= 0:
            return [receives.pop(peer)] if peer in receives else []
        every = list(receives.values())
        receives.clear()
        return every

    def _compute(self, span: dict[str, Any], after: tuple[int, ...]) -> int:
        size = span["rows"] * (span["dim_in"] + span["dim_out"]) * self.value_bytes  # what it reads and writes by row
        if span["op"] in COMMUNICATION_KERNELS:
            size = span["bytes_out"]
        label = " ".join(word for word in (span["op"], span["detail"], span["part"]) if word)
        return self._add(
            f"{label} {_where(span)}",
            COMP_NODE,
            after,
            span["start_ns"],
            span["start_ns"] + span["wall_ns"],
            num_ops=span["flops"],
            tensor_size=size,
        )

    def _exchange(self, span: dict[str, Any], after: tuple[int, ...]) -> dict[int, int]:
        """Sends before receives: a replayer with one queue for both must not wait for a receive before it sends."""
        start = span["start_ns"]
        for message in self.sent[self.sent["index"] == span["index"]].to_dict("records"):
            peer = message["receiver"]
            ends = (start, max(start, message["send_done_ns"]))
            self._message(f"Send to {peer} {_where(span)}", COMM_SEND_NODE, after, ends, self.rank, peer, message)
        return {
            message["sender"]: self._message(
                f"Receive from {message['sender']} {_where(span)}",
                COMM_RECV_NODE,
                after,
                (start, max(start, message["receive_done_ns"])),
                message["sender"],
                self.rank,
                message,
            )
            for message in self.received[self.received["receiver_index"] == span["index"]].to_dict("records")
        }

    def _message(
        self, name: str, kind: int, after: tuple[int, ...], ends: tuple[int, int], source: int, target: int, message: Any
    ) -> int:
        size = message["bytes"] if kind == COMM_SEND_NODE else message["bytes_in"]
        places = {"comm_src": source, "comm_dst": target, "comm_tag": message["tag"]}
        return self._add(name, kind, after, *ends, comm_size=size, **places)

    def _all_reduce(self, span: dict[str, Any], flight: Any, after: tuple[int, ...]) -> int:
        ends = (int(flight["start_ns"]), int(flight["start_ns"] + flight["wall_ns"]))
        attributes = {"comm_type": ALL_REDUCE, "comm_size": span["bytes_out"]}
        return self._add(f"All-reduce {_where(span)}", COMM_COLL_NODE, after, *ends, **attributes)

    def _add(self, name: str, kind: int, after: tuple[int, ...], start_ns: int, end_ns: int, **attributes: Any) -> int:
        """Edges are rounded to the nearest µs, so that durations of operations that touch add up."""
        start, end = ((time - self.origin + 500) // 1000 for time in (start_ns, end_ns))
        # An accelerator's: Chakra's replayers run what a processor does as computing, messages too.
        node = ChakraNode(len(self.nodes), name, kind, after, start, end - start, {"is_cpu_op": False, **attributes})
        self.nodes.append(node)
        return node.id


def _where(span: dict[str, Any]) -> str:
    return f"layer {span['layer']} {span['direction']}" if span["layer"] >= 0 else span["direction"]


def _encode(messages: ChakraMessages, node: ChakraNode) -> Any:
    return messages.node(
        id=node.id,
        name=node.name,
        type=node.type,
        data_deps=node.data_deps,
        start_time_micros=node.start_micros,
        duration_micros=node.duration_micros,
        attr=[{"name": name, VALUE_TYPES[name]: value} for name, value in node.attributes.items()],
    )


def _decode(message: Any) -> ChakraNode:
    return ChakraNode(
        id=message.id,
        name=message.name,
        type=message.type,
        data_deps=tuple(message.data_deps),
        start_micros=message.start_time_micros,
        duration_micros=message.duration_micros,
        attributes={attribute.name: getattr(attribute, attribute.WhichOneof("value")) for attribute in message.attr},
    )


def check_chakra(trace: Trace, paths: list[Path], epoch: int | None = None) -> list[str]:
    """Read the files back and hold them against the trace: what differs, a line each; empty where all is well."""
    chosen = one_epoch(trace, epoch).aligned()
    ranks = [read_chakra(path) for path in paths]
    return [*_check_nodes(chosen, ranks), *_check_messages(chosen, ranks), *_check_waits(chosen, ranks)]


def _check_nodes(epoch: Trace, ranks: list[list[ChakraNode]]) -> Iterator[str]:
    if len(ranks) != epoch.manifest.world_size:
        yield f"{len(ranks)} files for {epoch.manifest.world_size} ranks"
    for rank, nodes in enumerate(ranks):
        spans = epoch.spans[epoch.spans["rank"] == rank]
        compute = spans[(spans["stream"] == COMPUTE) & (spans["op"] != "Wait")]
        sums = spans[(spans["op"] == "AllReduce") & (spans["stream"] == COMPUTE)]
        yield from _compare(rank, "compute nodes", sum(node.type == COMP_NODE for node in nodes), len(compute))
        yield from _compare(rank, "flops", _total(nodes, COMP_NODE, "num_ops"), int(compute["flops"].sum()))
        yield from _compare(rank, "all-reduces", sum(node.type == COMM_COLL_NODE for node in nodes), len(sums))
        yield from _compare(rank, "bytes summed", _total(nodes, COMM_COLL_NODE, "comm_size"), int(sums["bytes_out"].sum()))
        micros = sum(node.duration_micros for node in nodes if node.type == COMP_NODE)
        measured = compute["wall_ns"].sum() / 1e3
        if abs(micros - measured) > max(1, len(compute)):  # each edge is rounded
            yield f"rank {rank}: {micros} µs of computing, {measured:.0f} in the trace"
        if any(dependency >= node.id for node in nodes for dependency in node.data_deps):
            yield f"rank {rank}: a node depends on a later one"


def _check_messages(epoch: Trace, ranks: list[list[ChakraNode]]) -> Iterator[str]:
    """Every message has both ends with one size and tag, and each pair's bytes are those of the trace."""
    sent, received = (_ends(ranks, kind) for kind in (COMM_SEND_NODE, COMM_RECV_NODE))
    if sent != received:
        odd = sorted(set(sent.items()) ^ set(received.items()))
        yield f"messages whose ends differ (source, target, tag), bytes: {odd[:3]}"
    if len(sent) != sum(node.type == COMM_SEND_NODE for nodes in ranks for node in nodes):
        yield "two messages between two ranks have one tag"
    found: dict[tuple[int, int], int] = defaultdict(int)
    for (source, target, _), size in sent.items():
        found[source, target] += size
    messages = epoch.messages[epoch.messages["bytes_out"] > 0]
    traced = {pair: int(size) for pair, size in messages.groupby(["rank", "peer"])["bytes_out"].sum().items()}
    if dict(found) != traced:
        yield f"bytes by pair of ranks differ: {dict(found)}, {traced} in the trace"
    sides = ((COMM_SEND_NODE, "send_done_ns", "bytes_out"), (COMM_RECV_NODE, "receive_done_ns", "bytes_in"))
    for kind, done, column in sides:
        own = epoch.messages[epoch.messages[column] > 0]
        under_way = (own[done] - own["start_ns"]).clip(lower=0).sum() / 1e3
        micros = sum(node.duration_micros for nodes in ranks for node in nodes if node.type == kind)
        if abs(micros - under_way) > len(own) + 1:
            yield f"messages took {micros} µs by {done}, {under_way:.0f} in the trace"


def _check_waits(epoch: Trace, ranks: list[list[ChakraNode]]) -> Iterator[str]:
    """The first node that depends on a receive is the one that follows its wait."""
    following = _after_waits(epoch)
    for rank, nodes in enumerate(ranks):
        steps = {node.id: step for step, node in enumerate(node for node in nodes if node.type == COMP_NODE)}
        first = {dependency: steps.get(node.id) for node in reversed(nodes) for dependency in node.data_deps}
        odd = [
            node.name
            for node in nodes
            if node.type == COMM_RECV_NODE
            and (first.get(node.id) is None or first[node.id] != following.get((rank, *_place_of(node))))
        ]
        if odd:
            yield f"rank {rank}: {len(odd)} receives are not what the operation after their wait depends on, such as {odd[0]}"


def _after_waits(epoch: Trace) -> dict[tuple[int, int, int], int]:
    """By receiver, sender and tag of a message: how many operations that are no waits come before its wait."""
    compute = epoch.spans[epoch.spans["stream"] == COMPUTE].sort_values(["rank", "index"])
    steps = (compute["op"] != "Wait").groupby(compute["rank"]).cumsum()
    waits = waits_with_flights(compute, epoch.messages).assign(step=steps)
    waits = waits.rename(columns={"rank": "receiver", "flight": "receiver_index"})[
        ["receiver", "receiver_index", "peer", "step"]
    ]
    pairs = _ends_with_tags(epoch).merge(waits, on=["receiver", "receiver_index"])
    pairs = pairs[(pairs["peer"] == pairs["sender"]) | (pairs["peer"] < 0)]
    rows = pairs[["receiver", "sender", "tag", "step"]].itertuples(index=False)
    return {(receiver, sender, tag): step for receiver, sender, tag, step in rows}


def _place_of(receive: ChakraNode) -> tuple[int, int]:
    return receive.attributes["comm_src"], receive.attributes["comm_tag"]


def _ends(ranks: list[list[ChakraNode]], kind: int) -> dict[tuple[int, int, int], int]:
    nodes = [node.attributes for nodes in ranks for node in nodes if node.type == kind]
    return {(node["comm_src"], node["comm_dst"], node["comm_tag"]): node["comm_size"] for node in nodes}


def _total(nodes: list[ChakraNode], kind: int, attribute: str) -> int:
    return sum(node.attributes[attribute] for node in nodes if node.type == kind)


def _compare(rank: int, what: str, found: int, expected: int) -> Iterator[str]:
    if found != expected:
        yield f"rank {rank}: {found} {what}, {expected} in the trace"
