"""Shapes of networks that nobody builds equal those of networks that somebody does."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tests.support.layers import Scaled

from halocast.errors import MisuseError
from halocast.runtime.config import ModelConfig
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.network import GraphNetwork, NetworkShape
from halocast.runtime.models.registry import BUILT_IN, build_layer, check_layer
from halocast.runtime.models.shapes import LAYERS, built_in_specs

EDGES = EdgeShape(3, ("cites", "follows", "inverse of cites"))
WITH_OPTIONS = [
    *[(name, {}) for name in sorted(LAYERS)],
    ("gat", {"heads": 2, "self_loops": False}),
    ("gat", {"heads": 1, "slope": 0.1, "attention_dropout": 0.5}),
    ("gat", {"heads": 2, "edge_features": True}),
    ("gatv2", {"heads": 8}),
    ("gatv2", {"heads": 1, "self_loops": False}),
    ("rgcn", {"bases": 2}),
    ("rgcn", {"relations": ["follows"], "bases": 5}),
]


@pytest.mark.parametrize(("layer", "options"), WITH_OPTIONS)
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_built_in_specs_are_those_of_the_network(layer: str, options: dict[str, Any], layers: int) -> None:
    for norm, residual, (dim_in, hidden, classes) in product(
        ("none", "layer", "batch"), (False, True), ((12, 8, 3), (8, 8, 8))
    ):
        model: dict[str, Any] = {"layer": layer, "layers": layers, "hidden": hidden, "options": options}
        model |= {"dropout": 0.3, "norm": norm, "residual": residual}
        network = GraphNetwork(NetworkShape(**model), dim_in, classes, seed=0, dtype=torch.float32, edges=EDGES)
        assert built_in_specs(ModelConfig(**model), dim_in, classes, EDGES) == network.specs(), model


def test_every_built_in_layer_has_shapes() -> None:
    assert set(LAYERS) == set(BUILT_IN)


def test_a_layer_of_ones_own_has_none() -> None:
    assert built_in_specs(ModelConfig(layer="package.module:Layer"), 8, 3) is None


def test_a_layer_of_ones_own_may_read_values_where_it_is_only_checked() -> None:
    assert check_layer("tests.support.layers:Scaled", 4, 4, {}) is Scaled
    with pytest.raises(MisuseError, match=r"model\.layer 'tests\.support\.layers:Scaled' does not take \(4, 4, "):
        check_layer("tests.support.layers:Scaled", 4, 4, {"scale": 2})


@pytest.mark.parametrize(
    ("layer", "options", "edges", "message"),
    [
        ("gat", {"edge_features": True}, EdgeShape(), "the graph's edges have no features; leave it out"),
        ("gat", {"edge_features": 3}, EDGES, "edge_features = 3; allowed: true, false"),
        ("gatv2", {"edge_features": True}, EDGES, "layer 'gatv2' has no edge part; use --model gat"),
        ("rgcn", {}, EdgeShape(3), "needs relations, and the graph's edges have no types; use gcn"),
        ("rgcn", {"relations": ["cite"]}, EDGES, "the graph has no relation 'cite'; did you mean 'cites'?"),
        ("rgcn", {"relations": "cites"}, EDGES, "relations = 'cites' is not a list of names"),
        ("rgcn", {"relations": ["cites", "cites"]}, EDGES, "one name or more, each once"),
        ("rgcn", {"relations": []}, EDGES, "one name or more, each once"),
        ("rgcn", {"bases": 0}, EDGES, "bases = 0 is out of range; allowed: 1 or more"),
        ("rgcn", {"base": 2}, EDGES, "model.options.base: layer 'rgcn' has no such option; did you mean 'bases'?"),
    ],
)
def test_edges_that_do_not_fit_the_layer(layer: str, options: dict[str, Any], edges: EdgeShape, message: str) -> None:
    with pytest.raises(MisuseError) as error:
        build_layer(layer, 8, 8, options, edges=edges)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if "base" not in options:
        with pytest.raises(MisuseError) as error:
            built_in_specs(ModelConfig(layer=layer, options=options), 8, 8, edges)
        assert message in str(error.value)


def test_a_graph_that_is_not_known_yet_has_what_a_layer_wants() -> None:
    build_layer("gat", 8, 8, {"edge_features": True}, edges=None)
    build_layer("rgcn", 8, 8, {"relations": ["x", "y"]}, edges=None)
    with pytest.raises(MisuseError, match="bases"):
        build_layer("rgcn", 8, 8, {"bases": -1}, edges=None)
