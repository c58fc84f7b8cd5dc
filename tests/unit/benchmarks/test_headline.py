"""The program and the stand-ins behind the headline claims: what is alive by hand, what is sent at both ends."""

from dataclasses import replace

import pytest
from benchmarks.headline_graphs import PublishedGraph, grown, stand_in
from benchmarks.headline_sar import METHOD, sar_memory, sar_view

from halocast.traces.buffers import walk
from halocast.traces.operations import Exchange, Free, Keep
from halocast.traces.workload import LayerSpec, PartStatistics

ROWS, HALO = 6_400, 640
WIDE, NARROW = 128, 32
LAYERS = (LayerSpec(64, WIDE, parameters=10), LayerSpec(WIDE, NARROW, parameters=5))
GRAPH = PublishedGraph("made up", 400_000, 4_000_000, 24, 7, "nowhere")


def view_of(ranks, rows=ROWS, halo=HALO, rank=0):
    peers = tuple(0 if peer == rank else halo for peer in range(ranks))
    part = PartStatistics(
        central=0, marginal=rows, nnz_central=0, nnz_marginal=10 * rows, nnz_halo_from=peers,
        halo_from=peers, boundary_to=peers, labelled=rows, labelled_halo_from=peers, labelled_boundary_to=peers, feature_dim=64,
    )  # fmt: skip
    return sar_view(rank, ranks, LAYERS, part)


def test_memory_of_one_machine_by_hand():
    memory = sar_memory(view_of(1))
    # Backward through the last layer: what the first one aggregated and gave (64 and 128 values a row), and the gradients
    # of the output, of the multiplied rows (32 each) and of the input (128).
    assert memory.buffers == 4 * ROWS * (64 + 2 * WIDE + 2 * NARROW)
    assert memory.features == 4 * 64 * ROWS
    assert memory.adjacency == 48 * 10 * ROWS
    assert memory.other == 11 * ROWS + 4 * 4 * 15


def test_rows_of_two_peers_at_most_are_held_however_many_there_are():
    # With so many rows the peak is while the first layer's come: of two peers, 64 values a row, to and from.
    few, many = (sar_memory(view_of(ranks, halo=30_000)).buffers for ranks in (3, 9))
    assert few == many == 4 * (ROWS * (64 + WIDE) + 4 * 30_000 * 64)
    one = sar_memory(view_of(2, halo=30_000)).buffers
    assert one < many


def test_memory_falls_with_the_number_of_machines_on_a_graph_where_all_touch_all():
    totals = {ranks: sar_memory(view_of(ranks, rows=64_000 // ranks, halo=64_000 // ranks)) for ranks in (8, 16, 32)}
    for ranks, memory in totals.items():
        assert memory.buffers * ranks == pytest.approx(totals[8].buffers * 8, rel=1e-3)


def test_every_buffer_is_kept_once_and_freed():
    operations = list(walk(METHOD.epoch(view_of(4))))
    kept = [each.name for each in operations if isinstance(each, Keep)]
    freed = [each.name for each in operations if isinstance(each, Free)]
    assert len(kept) == len(set(kept))
    assert sorted(freed) == sorted(kept)


@pytest.fixture(scope="module")
def parts():
    return stand_in(GRAPH, 4, 4_000, 8)


def test_a_stand_in_has_the_published_size_and_ends_that_agree(parts):
    assert sum(part.own for part in parts) == pytest.approx(GRAPH.nodes, rel=1e-3)
    assert sum(part.nnz_central + part.nnz_marginal for part in parts) == pytest.approx(GRAPH.entries, rel=0.02)
    for rank, part in enumerate(parts):
        assert part.feature_dim == GRAPH.features
        for peer, other in enumerate(parts):
            assert part.halo_from[peer] == other.boundary_to[rank]
            assert part.nnz_halo_from[peer] == other.nnz_halo_from[rank]


def test_what_a_rank_sends_is_what_its_peer_expects(parts):
    sent, taken = {}, {}
    for rank, part in enumerate(parts):
        for operation in walk(METHOD.epoch(replace(view_of(4, rank=rank), part=part))):
            if isinstance(operation, Exchange):
                place = operation.layer, operation.direction
                sent |= {(rank, message.peer, *place): message.bytes for message in operation.outgoing}
                taken |= {(message.peer, rank, *place): message.bytes for message in operation.incoming}
    assert sent == taken
    assert len(sent) == 4 * 3 * 3  # ordered pairs; two exchanges forward, one backward


def test_growing_by_one_changes_nothing_but_the_features(parts):
    assert grown(parts[0], 1.0, GRAPH.features) == parts[0]
