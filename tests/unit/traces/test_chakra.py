"""Chakra files against a decoder of protobuf's wire format written here, with the field numbers of et_def.proto."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import Scenario, synthetic_manifest, write_synthetic_run
from tests.support.simulated import simulated

from halocast.errors import MisuseError, RunError
from halocast.traces.epochs import one_epoch
from halocast.traces.export.chakra import check_chakra, export_chakra, read_chakra
from halocast.traces.operations import Aggregate, AllReduce, Dequantize, Exchange, Loss, Part, PeerMessage, Step, Wait, Work
from halocast.traces.trace import TraceWriter, read_trace, write_manifest

COMPUTE, SEND, RECEIVE, COLLECTIVE = 4, 5, 6, 7
SAMPLES = Path(__file__).resolve().parents[3] / "traces" / "samples"
MS = 1_000_000


def varint(content, position):
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def fields(content):
    """(number, value) of a message: integers of varints, bytes of what has a length; nothing else is written."""
    position = 0
    while position < len(content):
        key, position = varint(content, position)
        if key & 7 == 0:
            value, position = varint(content, position)
        else:
            assert key & 7 == 2
            length, position = varint(content, position)
            value, position = content[position : position + length], position + length
        yield key >> 3, value


def numbers(value):
    """Of a repeated field: packed."""
    position, found = 0, []
    while position < len(value):
        number, position = varint(value, position)
        found.append(number)
    return found


def decode(path):
    """The version, and nodes as dictionaries."""
    content, position, messages = path.read_bytes(), 0, []
    while position < len(content):
        length, position = varint(content, position)
        messages.append(content[position : position + length])
        position += length
    assert position == len(content)
    nodes = []
    for message in messages[1:]:
        node = {"id": 0, "deps": [], "start": 0, "duration": 0, "attributes": {}}
        names = {1: "id", 2: "name", 3: "type", 6: "start", 7: "duration"}
        for number, value in fields(message):
            if number == 5:
                node["deps"] = numbers(value)
            elif number == 10:
                attribute = dict(fields(value))
                (kind,) = attribute.keys() - {1}
                node["attributes"][attribute[1].decode()] = (kind, attribute[kind])
            else:
                node[names[number]] = value
        nodes.append(node)
    return dict(fields(messages[0])), nodes


def write_pair(folder):
    """Two ranks: an exchange under which one computes, an all-reduce that is waited for at the end. Times in ms."""
    write_manifest(folder, synthetic_manifest(Scenario(world_size=2)))
    for rank, (out, into, offset) in enumerate([(1000, 600, 0), (600, 1000, 1_234_567)]):
        peer = 1 - rank
        with TraceWriter(folder, rank) as writer:

            def span(index, operation, start, wall, stream="compute", peer=-1, writer=writer, offset=offset):
                writer.span("train", 0, index, operation, stream, start * MS + offset, wall * MS, 0, 0, peer=peer)

            central = Aggregate(0, part=Part.CENTRAL, work=Work(rows=10, dim_in=8, dim_out=8, flops=1280))
            span(0, Loss(0), 1, 2)
            sent = Exchange(0, work=Work(rows=9, bytes_out=out, bytes_in=into))
            span(1, sent, 3, 1)
            span(1, sent, 3, 9, stream="communication")
            span(2, central, 4, 5)
            span(3, Wait(0, peer=peer), 9, 3, peer=peer)
            span(4, Dequantize(0, peer=peer), 12, 1, peer=peer)
            total = AllReduce(0, work=Work(bytes_out=64, bytes_in=64))
            span(5, total, 13, 1)
            span(5, total, 13, 6, stream="communication")
            span(6, Wait(0), 14, 5)
            span(7, Step(), 19, 1)
            landed = [time * MS + offset for time in (3, 8, 12)]
            messages = PeerMessage(peer, 1, out), PeerMessage(peer, 1, into)
            writer.message("train", 0, 1, 0, sent.direction, *messages, *landed)
    return read_trace(folder)


def test_waits_become_dependencies_and_what_overlapped_still_does(tmp_path):
    trace = write_pair(tmp_path / "trace")
    paths = export_chakra(trace, tmp_path / "et")
    assert [path.name for path in paths] == ["trace.0.et", "trace.1.et"]
    version, nodes = decode(paths[0])
    assert version == {1: b"0.0.4"}
    told = [(node["id"], node["type"], node["deps"], node["start"], node["duration"]) for node in nodes]
    assert told == [
        (0, COMPUTE, [], 0, 2000),  # loss
        (1, SEND, [0], 2000, 5000),
        (2, RECEIVE, [0], 2000, 9000),
        (3, COMPUTE, [0], 2000, 1000),  # posting the exchange
        (4, COMPUTE, [3], 3000, 5000),  # central rows, while messages fly
        (5, COMPUTE, [4, 2], 11000, 1000),  # dequantise, after the message
        (6, COLLECTIVE, [5], 12000, 6000),
        (7, COMPUTE, [5], 12000, 1000),  # posting the sum
        (8, COMPUTE, [7, 6], 18000, 1000),  # step, after the sum
    ]


def test_attributes_are_those_that_the_feeder_reads(tmp_path):
    paths = export_chakra(write_pair(tmp_path / "trace"), tmp_path / "et")
    int32, int64, uint64, boolean = 7, 9, 13, 27
    for rank, (out, into) in enumerate([(1000, 600), (600, 1000)]):
        nodes = decode(paths[rank])[1]
        assert all(node["attributes"]["is_cpu_op"] == (boolean, 0) for node in nodes)
        send, receive, total = (next(n["attributes"] for n in nodes if n["type"] == t) for t in (SEND, RECEIVE, COLLECTIVE))
        there, back = {"comm_src": rank, "comm_dst": 1 - rank}, {"comm_src": 1 - rank, "comm_dst": rank}
        for attributes, ends, size in ((send, there, out), (receive, back, into)):
            assert attributes["comm_size"] == (int64, size)
            assert {name: attributes[name] for name in ends} == {name: (int32, end) for name, end in ends.items()}
        assert send["comm_tag"] == receive["comm_tag"]
        assert (total["comm_type"], total["comm_size"]) == ((int64, 0), (int64, 64))
        central = nodes[4]["attributes"]
        assert (central["num_ops"], central["tensor_size"]) == ((int64, 1280), (uint64, 10 * 16 * 4))


def waking_micros(epoch, rank):
    """From when what a rank waits for has landed to the end of its wait, as cores were busy; one exchange a place."""
    own, place = epoch.spans[epoch.spans["rank"] == rank], ["layer", "direction"]
    received = epoch.messages.loc[epoch.messages["rank"] == rank, [*place, "peer", "receive_done_ns"]]
    sums = own[(own["op"] == "AllReduce") & (own["stream"] == "communication")].assign(peer=-1)
    sums["receive_done_ns"] = sums["start_ns"] + sums["wall_ns"]
    landed = pd.concat([received, sums[received.columns]])
    waits = own[own["op"] == "Wait"].merge(landed, on=[*place, "peer"], validate="one_to_one")
    begun = waits["start_ns"].clip(lower=waits["receive_done_ns"])
    return (waits["start_ns"] + waits["wall_ns"] - begun).sum() / 1e3


@pytest.mark.parametrize("run", ["generated-2-100mbit-full-cut", "generated-4-200mbit-adaqp2-cut"])
def test_a_recorded_epoch_replays_as_it_ran(run, tmp_path):
    """Each rank replayed with every message as long as it took: the epoch, less the time between operations and to wake."""
    trace = read_trace(SAMPLES / run / "0")
    paths = export_chakra(trace, tmp_path)
    assert check_chakra(trace, paths) == []
    epoch = one_epoch(trace).aligned()
    sizes, taken = defaultdict(int), defaultdict(int)
    for rank, path in enumerate(paths):
        spans = epoch.spans[(epoch.spans["rank"] == rank) & (epoch.spans["stream"] == "compute")].sort_values("start_ns")
        ends = spans["start_ns"] + spans["wall_ns"]
        between = (spans["start_ns"].iloc[1:].to_numpy() - ends.iloc[:-1].to_numpy()).sum() / 1e3
        measured = (ends.max() - spans["start_ns"].min()) / 1e3
        finished = []
        _, nodes = decode(path)
        for node in nodes:
            finished.append(max((finished[d] for d in node["deps"]), default=0) + node["duration"])
            attributes = {name: value for name, (_, value) in node["attributes"].items()}
            if node["type"] in (SEND, RECEIVE):
                sums = sizes if node["type"] == SEND else taken
                sums[attributes["comm_src"], attributes["comm_dst"], attributes["comm_tag"]] += attributes["comm_size"]
        assert measured - between - waking_micros(epoch, rank) - len(nodes) <= finished[-1] <= measured + len(nodes)
    assert sizes == taken
    assert len(sizes) == len(epoch.messages)
    assert sum(sizes.values()) == epoch.messages["bytes_out"].sum()


@pytest.mark.parametrize(("batch_norm", "bits"), [(False, 0), (True, 0), (False, 4)])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("ranks", [3, 4])
def test_rounds_in_flight_at_once_are_each_depended_on(tmp_path, ranks, prefetch, batch_norm, bits):
    """Method sar: what follows a wait depends on what that round's giver sent, as the program says."""
    trace, simulation = simulated(tmp_path / "trace", ranks, prefetch=prefetch, batch_norm=batch_norm, bits=bits)
    paths = export_chakra(trace, tmp_path / "et")
    assert check_chakra(trace, paths) == []
    for path, work in zip(paths, simulation.work, strict=True):
        _, nodes = decode(path)
        taken = {}  # (exchange, sender): the operation that follows the wait
        for index, flight in work.flights.items():
            senders = {message.peer for message in getattr(work.operations[flight], "incoming", ())}
            if work.operations[index].peer in senders:
                following = next(i for i in range(index, len(work.operations)) if not isinstance(work.operations[i], Wait))
                taken[flight, work.operations[index].peer] = following
        steps = [index for index, each in enumerate(work.operations) if not isinstance(each, Wait)]
        operation_of = dict(zip((node["id"] for node in nodes if node["type"] == COMPUTE), steps, strict=True))
        posts = [index for index in steps if isinstance(work.operations[index], Exchange)]
        receives = {}  # node: (exchange, sender); a round's come right before what it costs to post it
        for node in (node for node in nodes if node["type"] == RECEIVE):
            posted = next(operation_of[each] for each in sorted(operation_of) if each > node["id"])
            assert posted in posts
            receives[node["id"]] = posted, node["attributes"]["comm_src"][1]
        depended = {}
        for node in reversed(nodes):
            depended |= {receives[each]: operation_of.get(node["id"]) for each in node["deps"] if each in receives}
        assert depended == taken
        assert len(depended) == len(receives) > 0
        if batch_norm:
            assert_sums_are_depended_on(nodes, work, operation_of)


def assert_sums_are_depended_on(nodes, work, operation_of):
    """What follows the wait for an all-reduce, of statistics or of gradients, depends on that one."""
    sums = [node["id"] for node in nodes if node["type"] == COLLECTIVE]
    posted = [index for index, each in enumerate(work.operations) if isinstance(each, AllReduce)]
    waits = {flight: wait for wait, flight in work.flights.items()}
    for node, index in zip(sums, posted, strict=True):
        following = next(i for i in range(waits[index], len(work.operations)) if not isinstance(work.operations[i], Wait))
        first = next(each["id"] for each in nodes if node in each["deps"] and each["id"] in operation_of)
        assert operation_of[first] == following
    assert len(sums) == 3 + 2 * 3


def test_the_check_finds_a_receive_that_nothing_depends_on(tmp_path):
    trace = write_pair(tmp_path / "trace")
    forgetful = replace(trace, spans=trace.spans[(trace.spans["op"] != "Wait") | (trace.spans["peer"] < 0)])
    paths = export_chakra(forgetful, tmp_path / "et")
    said = "1 receives are not what the operation after their wait depends on, such as Receive from"
    assert check_chakra(trace, paths) == [f"rank {rank}: {said} {1 - rank} layer 0 forward" for rank in range(2)]


def test_the_median_epoch_or_the_one_asked_for(tmp_path):
    write_synthetic_run(tmp_path / "trace", Scenario(epochs=3, noise=0.5))
    trace = read_trace(tmp_path / "trace")
    median = decode(export_chakra(trace, tmp_path / "median")[0])[1]
    each = [decode(export_chakra(trace, tmp_path / str(epoch), epoch)[0])[1] for epoch in range(3)]
    assert median in each
    assert each[0] != each[1] != each[2]
    with pytest.raises(MisuseError, match="no training epoch 7 in this trace; it has 0 to 2"):
        export_chakra(trace, tmp_path / "none", 7)


def test_what_is_read_back_is_what_was_written(tmp_path):
    path = export_chakra(write_pair(tmp_path / "trace"), tmp_path / "et")[0]
    read = [(node.id, node.name.encode(), node.type, list(node.data_deps)) for node in read_chakra(path)]
    assert read == [(node["id"], node["name"], node["type"], node["deps"]) for node in decode(path)[1]]


def without_last_node(content):
    position, before = 0, 0
    while position < len(content):
        before = position
        length, position = varint(content, position)
        position += length
    return content[:before]


def test_the_check_finds_what_was_lost_or_changed(tmp_path):
    trace = write_pair(tmp_path / "trace")
    paths = export_chakra(trace, tmp_path / "et")
    whole = paths[1].read_bytes()
    paths[1].write_bytes(without_last_node(whole))
    assert check_chakra(trace, paths)[0] == "rank 1: 5 compute nodes, 6 in the trace"
    paths[1].write_bytes(whole.replace(b"\x48\xd8\x04", b"\x48\xd9\x04"))  # int64_val: 600 bytes become 601
    assert any("ends differ" in line for line in check_chakra(trace, paths))
    assert check_chakra(trace, paths[:1])[0] == "1 files for 2 ranks"


def test_bad_input(tmp_path):
    trace = write_pair(tmp_path / "trace")
    (path, _) = export_chakra(trace, tmp_path / "et")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MisuseError, match=r"trace\.0\.et is no Chakra execution trace .*ends within a message"):
        read_chakra(path)
    path.write_bytes(b"\x05hello")
    with pytest.raises(MisuseError, match="is no Chakra execution trace"):
        read_chakra(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_chakra(trace, tmp_path / "file" / "et")


def test_an_epoch_that_a_rank_did_not_finish(tmp_path):
    trace = write_pair(tmp_path / "trace")
    lost = type(trace)(trace.folder, trace.manifest, trace.spans, trace.messages.iloc[:1])
    with pytest.raises(MisuseError, match="epoch 0 was not finished by every rank"):
        export_chakra(lost, tmp_path / "et")
