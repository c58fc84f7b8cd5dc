"""A layout says without shards what shards of the same partition hold."""

import numpy as np
import pytest

from halocast.runtime.config import ModelConfig
from halocast.runtime.exchange.quantized import MessageRows
from halocast.runtime.graph.aggregated import count_stored
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.layout import PartitionLayout
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.store import prepare_shards
from halocast.runtime.models.shapes import built_in_specs
from halocast.runtime.programs.adaqp import exchange_shapes
from halocast.traces.workload import ExactSavings, RankView

SPEC = "generated:nodes=600,degree=8,seed=3,features=12,classes=4"


@pytest.fixture(scope="module", params=[2, 5])
def pair(request, tmp_path_factory):
    graph = load_graph(SPEC)
    shards = prepare_shards(
        SPEC, request.param, method="metis", objective="cut", balance="nodes", seed=0, folder=tmp_path_factory.mktemp("shards")
    )
    return PartitionLayout(graph, partition_graph(graph, request.param)), shards


def test_statistics_are_those_of_the_shards(pair):
    layout, shards = pair
    assert list(layout.statistics) == [shards.statistics(part) for part in range(shards.parts)]


@pytest.mark.parametrize("exact", [ExactSavings.none(), ExactSavings()], ids=["no savings", "all"])
def test_messages_are_in_the_order_of_the_wire(pair, exact):
    layout, shards = pair
    layers = built_in_specs(ModelConfig(layer="gcn", layers=3, hidden=8), 12, 4)
    views = [RankView(rank, shards.parts, layers, shards.statistics(rank), exact) for rank in range(shards.parts)]
    shapes = [exchange_shapes(view) for view in views]
    found = layout.messages(shapes)
    assert found
    for rank in range(shards.parts):
        shard = shards.open(rank)
        for shape in shapes[rank]:
            rows = MessageRows.of(shape, shard.statistics, np.asarray(shard.boundary))
            mine = found[shape.layer, shape.direction].sender == rank
            nodes = found[shape.layer, shape.direction]
            assert np.array_equal(nodes.node[mine], np.asarray(shard.global_ids)[rows.outgoing])
            assert np.array_equal(nodes.receiver[mine], np.repeat(np.arange(shards.parts), shape.rows_out))


def test_dense_features_have_no_stored_values(pair):
    layout, _ = pair
    assert count_stored(layout.graph, self_loop=True) is None
    assert layout.with_aggregated(None) == layout.statistics
