"""Layers by blocks, with plain and sequential training: the gradients of one dense process, and the bytes of the paper."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tests.reference import dense_adjacency
from tests.reference_layers import dense_epoch
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import EPOCH, RankAnswer, largest_relative_error, run_config, train_one_epoch
from torch import Tensor

from halocast.runtime.config import RunConfig
from halocast.runtime.session import build_network

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
NONE = dict.fromkeys(SAVINGS, False)
GATED = "tests.support.messages:Gated"
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gat": ("gat", {"heads": 3}),
    "gat without loops, with dropout": ("gat", {"heads": 2, "self_loops": False, "attention_dropout": 0.3}),
    "gatv2": ("gatv2", {"heads": 3, "attention_dropout": 0.2}),
    "sage-max": ("sage-max", {}),
    "gin": ("gin", {}),
    "gated": (GATED, {"mean": True}),
}


def sequential(**method: Any) -> dict[str, Any]:
    return {"name": "sar", "exact": NONE, **method}


def reference(case: Case, config: RunConfig, dtype: torch.dtype = torch.float64) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the dense model with the run's first parameters."""
    network, graph, model = build_network(config, case.graph.feature_dim, case.graph.classes), case.graph, config.model
    named = {name: value.detach().to(dtype).requires_grad_() for name, value in network.named_parameters()}
    parameters: list[dict[str, Tensor]] = [{} for _ in range(model.layers)]
    for name, value in named.items():
        kind, index, key = name.split(".")
        parameters[int(index)][{"weight": "gamma", "bias": "beta"}[key] if kind == "norms" else key] = value
    features = graph.features.toarray() if sp.issparse(graph.features) else graph.features
    loss = dense_epoch(
        model.layer,
        parameters,
        torch.from_numpy(np.asarray(features)).to(dtype),
        torch.from_numpy(graph.labels),
        torch.from_numpy(graph.train_mask),
        dense_adjacency(graph.nodes, case.edges).to(dtype),
        options=model.options,
        dropout=model.dropout,
        norm=model.norm,
        residual=model.residual,
        seed=config.seed,
        epoch=EPOCH,
    )
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(named[name]) if value is None else value for name, value in zip(named, found, strict=True)
    }
    return float(loss.detach()), gradients


def assert_exact(case: Case, folder: Path, parts: int, **sections: Any) -> list[RankAnswer]:
    config = run_config(parts, **sections)
    answers, _ = train_one_epoch(case, config, folder / "shards")
    loss, gradients = reference(case, config)
    tolerance = TOLERANCE[config.dtype]
    if config.model.layer == "gin" and config.dtype == "float32":  # unscaled sums over a hub: as good as torch's own float32
        dense = reference(case, config, torch.float32)[1]
        tolerance = max(tolerance, 2 * largest_relative_error(dense, gradients))
    for answer in answers:
        assert answer.loss == pytest.approx(loss, rel=TOLERANCE[config.dtype])
        assert largest_relative_error(answer.gradients, gradients) <= tolerance
    return answers


def model_of(layer: str, **more: Any) -> dict[str, Any]:
    name, options = LAYERS[layer]
    return {"layer": name, "options": options, "layers": 3, "hidden": 12, "dropout": 0.4, **more}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["full", "remat", "keep"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_gradients_are_those_of_one_dense_process(parts: int, layer: str, method: str, dtype: str, tmp_path: Path) -> None:
    chosen = {"name": "full", "exact": NONE} if method == "full" else sequential(keep=method == "keep")
    model = model_of(layer, norm="layer", residual=True)
    assert_exact(random_case(parts), tmp_path, parts, model=model, method=chosen, dtype=dtype)


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("switches", list(product([False, True], repeat=2)))
def test_savings_change_no_gradient(switches: tuple[bool, ...], layer: str, name: str, tmp_path: Path) -> None:
    exact = {**NONE, **dict(zip(SAVINGS[2:], switches, strict=True))}
    method = {"name": name, "exact": exact}
    assert_exact(random_case(3), tmp_path, 3, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("method", [{"prefetch": 0}, {"prefetch": 2}, {"prefetch": 9}, {"overlap": False}, {"keep": [1]}])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_order_of_rounds_changes_no_gradient(layer: str, method: dict[str, Any], tmp_path: Path) -> None:
    exact = {**NONE, "labelled_gradients_only": True}
    model = model_of(layer, residual=True)
    assert_exact(random_case(5), tmp_path, 5, model=model, method=sequential(exact=exact, **method), dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_empty_blocks_and_parts_without_training_nodes(layer: str, name: str, tmp_path: Path) -> None:
    method = {"name": name, "exact": NONE}
    assert_exact(chain_case(4), tmp_path, 4, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_part_without_any_node(layer: str, name: str, tmp_path: Path) -> None:
    case = random_case(3)
    assignment = case.assignment.copy()
    assignment[assignment == 1] = 0
    emptied = Case(case.graph, case.edges, assignment)
    method = {"name": name, "exact": NONE}
    assert_exact(emptied, tmp_path, 3, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_sparse_features(layer: str, name: str, tmp_path: Path) -> None:
    method = {"name": name, "exact": NONE}
    assert_exact(random_case(3, sparse=True), tmp_path, 3, model=model_of(layer), method=method, dtype="float64")
