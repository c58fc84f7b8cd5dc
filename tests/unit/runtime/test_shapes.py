"""Shapes of networks that nobody builds equal those of networks that somebody does."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tests.support.layers import Scaled

from halocast.errors import MisuseError
from halocast.runtime.config import ModelConfig
from halocast.runtime.models.network import GraphNetwork, NetworkShape
from halocast.runtime.models.registry import BUILT_IN, check_layer
from halocast.runtime.models.shapes import LAYERS, built_in_specs

WITH_OPTIONS = [
    *[(name, {}) for name in sorted(LAYERS)],
    ("gat", {"heads": 2, "self_loops": False}),
    ("gat", {"heads": 1, "slope": 0.1, "attention_dropout": 0.5}),
    ("gatv2", {"heads": 8}),
    ("gatv2", {"heads": 1, "self_loops": False}),
]


@pytest.mark.parametrize(("layer", "options"), WITH_OPTIONS)
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_built_in_specs_are_those_of_the_network(layer: str, options: dict[str, Any], layers: int) -> None:
    for norm, residual, (dim_in, hidden, classes) in product(
        ("none", "layer", "batch"), (False, True), ((12, 8, 3), (8, 8, 8))
    ):
        model: dict[str, Any] = {"layer": layer, "layers": layers, "hidden": hidden, "options": options}
        model |= {"dropout": 0.3, "norm": norm, "residual": residual}
        network = GraphNetwork(NetworkShape(**model), dim_in, classes, seed=0, dtype=torch.float32)
        assert built_in_specs(ModelConfig(**model), dim_in, classes) == network.specs(), model


def test_every_built_in_layer_has_shapes() -> None:
    assert set(LAYERS) == set(BUILT_IN)


def test_a_layer_of_ones_own_has_none() -> None:
    assert built_in_specs(ModelConfig(layer="package.module:Layer"), 8, 3) is None


def test_a_layer_of_ones_own_may_read_values_where_it_is_only_checked() -> None:
    assert check_layer("tests.support.layers:Scaled", 4, 4, {}) is Scaled
    with pytest.raises(MisuseError, match=r"model\.layer 'tests\.support\.layers:Scaled' does not take \(4, 4, "):
        check_layer("tests.support.layers:Scaled", 4, 4, {"scale": 2})
