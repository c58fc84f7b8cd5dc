"""Layers by blocks, with plain and sequential training: the gradients of one dense process, and the bytes of the paper."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tests.reference import dense_adjacency
from tests.reference_layers import DenseEdges, dense_epoch
from tests.support.graphs import Case, chain_case, random_case, with_edge_data
from tests.support.sessions import EPOCH, RankAnswer, largest_relative_error, network_of, run_config, shards_of, train_one_epoch
from torch import Tensor

from halocast.runtime.config import RunConfig
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.network import GraphNetwork
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.holdings import holdings
from halocast.runtime.session import build_network, build_view
from halocast.traces.buffers import walk
from halocast.traces.operations import Exchange, Free, Keep

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
    "gat with edge features": ("gat", {"heads": 2, "edge_features": True, "attention_dropout": 0.2}),
    "gat with edge features, without loops": ("gat", {"heads": 2, "edge_features": True, "self_loops": False}),
    "rgcn": ("rgcn", {}),
    "rgcn of some relations, with bases": ("rgcn", {"relations": ["inverse of a", "b", "a"], "bases": 2}),
}


def edge_case(parts: int, **options: Any) -> Case:
    """A random graph whose edges carry features and relations, whether a layer looks at them or not."""
    return with_edge_data(random_case(parts, **options))


def sequential(**method: Any) -> dict[str, Any]:
    return {"name": "sar", "exact": NONE, **method}


def reference(case: Case, config: RunConfig, dtype: torch.dtype = torch.float64) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the dense model with the run's first parameters."""
    network, graph, model = network_of(case, config), case.graph, config.model
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
        DenseEdges.of(graph, dtype),
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
    if config.dtype == "float32" and (config.model.layer == "gin" or config.model.options.get("edge_features", False)):
        # unscaled sums over a hub, and the target's attention, whose terms all but cancel: about as good as torch's own float32
        dense = reference(case, config, torch.float32)[1]
        tolerance = max(tolerance, 3 * largest_relative_error(dense, gradients))
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
    assert_exact(edge_case(parts), tmp_path, parts, model=model, method=chosen, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ["gat", "gatv2"])
@pytest.mark.parametrize("parts", [1, 4])
def test_what_activation_left_serves_the_backward_pass(parts: int, layer: str, dtype: str, tmp_path: Path) -> None:
    """Without a norm the merged rows become the output in place; biases far from zero must not cost precision."""
    case, config = random_case(parts), run_config(parts, model=model_of(layer), method=sequential(), dtype=dtype)
    plain = build_network

    def biased(config: RunConfig, dim_in: int, classes: int, edges: EdgeShape) -> GraphNetwork:
        network = plain(config, dim_in, classes, edges)
        for layer in network.layers:
            layer.bias.data.copy_(torch.linspace(-0.5, 0.5, layer.bias.numel()))
        return network

    with patch("halocast.runtime.session.build_network", biased), patch("tests.support.sessions.build_network", biased):
        answers, _ = train_one_epoch(case, config, tmp_path / "shards")
        loss, gradients = reference(case, config)
        dense = reference(case, config, torch.float32)[1]
    tolerance = max(TOLERANCE[dtype], 2 * largest_relative_error(dense, gradients) if dtype == "float32" else 0.0)
    assert float(answers[0].gradients["layers.0.bias"].abs().max()) > 0.0
    assert answers[0].loss == pytest.approx(loss, rel=TOLERANCE[dtype])
    assert largest_relative_error(answers[0].gradients, gradients) <= tolerance  # at most twice torch's own float32 error


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("switches", list(product([False, True], repeat=2)))
def test_savings_change_no_gradient(switches: tuple[bool, ...], layer: str, name: str, tmp_path: Path) -> None:
    exact = {**NONE, **dict(zip(SAVINGS[2:], switches, strict=True))}
    method = {"name": name, "exact": exact}
    assert_exact(edge_case(3), tmp_path, 3, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("method", [{"prefetch": 0}, {"prefetch": 2}, {"prefetch": 9}, {"overlap": False}, {"keep": [1]}])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_order_of_rounds_changes_no_gradient(layer: str, method: dict[str, Any], tmp_path: Path) -> None:
    exact = {**NONE, "labelled_gradients_only": True}
    model = model_of(layer, residual=True)
    assert_exact(edge_case(5), tmp_path, 5, model=model, method=sequential(exact=exact, **method), dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_empty_blocks_and_parts_without_training_nodes(layer: str, name: str, tmp_path: Path) -> None:
    method = {"name": name, "exact": NONE}
    assert_exact(with_edge_data(chain_case(4)), tmp_path, 4, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_part_without_any_node(layer: str, name: str, tmp_path: Path) -> None:
    case = edge_case(3)
    assignment = case.assignment.copy()
    assignment[assignment == 1] = 0
    emptied = Case(case.graph, case.edges, assignment)
    method = {"name": name, "exact": NONE}
    assert_exact(emptied, tmp_path, 3, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("layer", LAYERS)
def test_sparse_features(layer: str, name: str, tmp_path: Path) -> None:
    method = {"name": name, "exact": NONE}
    assert_exact(edge_case(3, sparse=True), tmp_path, 3, model=model_of(layer), method=method, dtype="float64")


def sent_by_program(answers: list[RankAnswer]) -> int:
    planned = [each for answer in answers for each in walk(METHODS["sar"].epoch(answer.session.view))]
    return sum(each.work.bytes_out for each in planned if isinstance(each, Exchange))


@pytest.mark.parametrize(("keep", "times"), [(False, 3), (True, 2)])
@pytest.mark.parametrize("layer", ["gat", "gatv2", "gat with edge features, without loops"])
@pytest.mark.parametrize("parts", [2, 4, 7])
def test_a_block_crosses_three_times_or_two(parts: int, layer: str, keep: bool, times: int, tmp_path: Path) -> None:
    """Case 2 costs 3 V, or 2 V where blocks are kept: V = the sum over layers of 4 F Σ|B(q→r)|, F the packed message.

    Edge features are not in it: they never travel.
    """
    case = edge_case(parts)
    config = run_config(parts, model=model_of(layer), method=sequential(keep=keep))
    answers, hub = train_one_epoch(case, config, tmp_path / "shards")
    boundary = sum(answer.session.view.part.boundary for answer in answers)
    heads = LAYERS[layer][1]["heads"]
    widths = [12, 12, heads * case.graph.classes]
    once = 4 * boundary * sum(width + (0 if layer == "gatv2" else heads) for width in widths)
    assert sent_by_program(answers) == times * once
    assert sum(size for _, _, size in hub.sent_bytes) == times * once + once  # `train_one_epoch` evaluates as well


@pytest.mark.parametrize("layer", ["sage-max", "gated", "gin", "rgcn"])
def test_static_features_are_not_sent_back(layer: str, tmp_path: Path) -> None:
    """The first layer's messages are features, which want no gradient; only learnt messages meet them again."""
    case = edge_case(4)
    config = run_config(4, model=model_of(layer), method=sequential())
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    boundary = sum(answer.session.view.part.boundary for answer in answers)
    features, hidden = case.graph.feature_dim, 12
    again = {"sage-max": (1, 3), "gated": (2, 3), "gin": (1, 2), "rgcn": (1, 2)}[layer]
    assert sent_by_program(answers) == 4 * boundary * (again[0] * features + again[1] * 2 * hidden)


@pytest.mark.parametrize("keep", [False, True, [1]])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("layer", ["gat", "sage-max", "gin", "gat with edge features", "rgcn"])
@pytest.mark.parametrize("parts", [2, 7])
def test_few_remote_blocks_are_alive_at_any_time(parts: int, layer: str, prefetch: int, keep: Any, tmp_path: Path) -> None:
    """At most d + 2, and those of the layers that keep theirs."""
    config = run_config(parts, model=model_of(layer), method=sequential(prefetch=prefetch, keep=keep))
    case = edge_case(parts)
    shards, network = shards_of(case, tmp_path / "shards"), network_of(case, config)
    kept = () if layer in ("gin", "rgcn") or keep is False else (0, 1, 2) if keep is True else (1,)
    stay = tuple(f"block{index}." for index in kept)
    for rank in range(parts):
        alive: set[str] = set()
        most = 0
        for operation in walk(METHODS["sar"].epoch(build_view(config, network, shards, rank))):
            if isinstance(operation, Keep) and operation.name.startswith(("block", "gradient_block")):
                alive.add(operation.name)
            elif isinstance(operation, Free):
                alive.discard(operation.name)
            passing = {name for name in alive if name.endswith(".again") or not name.startswith(stay)}
            most = max(most, len(passing))
        assert not alive
        assert most <= min(prefetch + 2, 2 * (parts - 1))
        assert most > 0 or len(kept) == 3


@pytest.mark.parametrize("layer", LAYERS)
def test_sequential_evaluation_is_that_of_plain_training(layer: str, tmp_path: Path) -> None:
    logits = []
    for method in (sequential(), {"name": "full", "exact": NONE}):
        config = run_config(4, model=model_of(layer, norm="layer"), method=method, dtype="float64")
        answers, _ = train_one_epoch(edge_case(4), config, tmp_path / method["name"])
        logits.append([answer.logits for answer in answers])
    for here, there in zip(*logits, strict=True):
        assert largest_relative_error({"logits": here}, {"logits": there}) <= 1e-12


@pytest.mark.parametrize("name", ["full", "sar"])
@pytest.mark.parametrize("bases", [None, 3])
def test_a_relation_without_edges_in_most_parts(bases: int | None, name: str, tmp_path: Path) -> None:
    """One relation within part 0 alone, one between parts alone, one nowhere; its matrix has a gradient of zero."""
    case = edge_case(4)
    graph = case.graph
    target = case.assignment[np.repeat(np.arange(graph.nodes), np.diff(graph.indptr))]
    source = case.assignment[graph.indices]
    types = np.select([target != source, target == 0], [0, 1], 2).astype(np.int32)
    typed = Case(replace(graph, edge_types=types), case.edges, case.assignment)
    model = model_of("rgcn", options={} if bases is None else {"bases": bases})
    answers = assert_exact(typed, tmp_path, 4, model=model, method={"name": name, "exact": NONE}, dtype="float64")
    if bases is None:
        assert not answers[0].gradients["layers.1.weight"][3].any()
        assert answers[0].gradients["layers.1.weight"][1].any()


@pytest.mark.parametrize("layer", ["gat with edge features", "rgcn of some relations, with bases"])
def test_edge_data_is_loaded_for_layers_that_read_it_alone(layer: str, tmp_path: Path) -> None:
    case = edge_case(3)
    for name in (layer, "gat"):
        config = run_config(3, model=model_of(name), method=sequential())
        answers, _ = train_one_epoch(case, config, tmp_path / name)
        for answer in answers:
            adjacency, spec = answer.session.executor.data.adjacency, answer.session.view.layers[0]
            own = adjacency.own_edges(self_loops=spec.self_loop)
            assert (own.features is not None) == (name == "gat with edge features")
            assert (own.relations is not None) == (name == "rgcn of some relations, with bases")
            assert (holdings(answer.session.view, METHODS["sar"]).edge_data > 0) == (name != "gat")


@pytest.mark.parametrize("layer", ["gat with edge features", "rgcn"])
def test_edge_data_takes_the_bytes_that_are_counted(layer: str, tmp_path: Path) -> None:
    """What the blocks of edges hold beyond those of a graph without edge data, to the byte."""
    config = run_config(3, model=model_of(layer), method=sequential())
    answers, _ = train_one_epoch(edge_case(3), config, tmp_path / "shards")
    for rank, answer in enumerate(answers):
        adjacency, spec = answer.session.executor.data.adjacency, answer.session.view.layers[0]
        own = adjacency.own_edges(self_loops=spec.self_loop)
        blocks = [own, *(adjacency.peer_edges(peer) for peer in range(3) if peer != rank)]
        tensors = [each.edges.entry for each in blocks]
        if layer != "rgcn":
            tensors += [own.edges.begin, own.edges.sources, own.edges.source_begin, own.edges.targets]
        for each in blocks:
            tensors += [] if each.features is None else [each.features]
            if each.relations is not None:
                of = each.relations
                tensors += [of.target_indptr, of.sources, of.source_indptr, of.targets, of.share]
        storages = [each.untyped_storage() for each in tensors]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        assert sum(held.values()) == holdings(answer.session.view, METHODS["sar"]).edge_data


def test_ties_of_a_maximum_across_parts(tmp_path: Path) -> None:
    """Features of few values: neighbours in several parts share a maximum, and its gradient."""
    case = edge_case(4)
    features = np.round(np.asarray(case.graph.features)).clip(-1, 1)
    tied = Case(replace(case.graph, features=features), case.edges, case.assignment)
    assert_exact(tied, tmp_path, 4, model=model_of("sage-max", dropout=0.0), method=sequential(), dtype="float64")


@pytest.mark.parametrize("name", ["full", "sar"])
def test_a_message_that_ignores_its_target(name: str, tmp_path: Path) -> None:
    """An elementwise weight that learns, against the same layer on one rank."""
    model = {"layer": "tests.support.messages:Plain", "layers": 3, "hidden": 12, "dropout": 0.4}
    found = []
    for parts in (1, 4):
        config = run_config(parts, model=model, method={"name": name, "exact": NONE}, dtype="float64")
        answers, _ = train_one_epoch(edge_case(parts), config, tmp_path / str(parts))
        found.append(answers[0].gradients)
    assert float(found[0]["layers.0.edge_weight"].abs().max()) > 0.0
    assert largest_relative_error(found[1], found[0]) <= 1e-12


def test_quantised_plain_training_runs_layers_by_blocks(tmp_path: Path) -> None:
    """32 bits on the wire are plain training, bit for bit."""
    answers = []
    for method in ({"name": "adaqp", "bits": 32, "exact": NONE}, {"name": "full", "exact": NONE}):
        config = run_config(3, model=model_of("gat"), method=method)
        answers.append(train_one_epoch(edge_case(3), config, tmp_path / method["name"])[0][0])
    for name, gradient in answers[0].gradients.items():
        assert torch.equal(gradient, answers[1].gradients[name])


@pytest.mark.parametrize("name", ["full", "sar"])
def test_one_weight_without_a_bias_learns(name: str, tmp_path: Path) -> None:
    """A first layer whose only parameter is in its messages, and whose inputs want no gradient."""
    model = {"layer": "tests.support.messages:Scaled", "layers": 2, "hidden": 11, "dropout": 0.0}
    found = []
    for parts in (1, 3):
        config = run_config(parts, model=model, method={"name": name, "exact": NONE}, dtype="float64")
        answers, _ = train_one_epoch(random_case(parts), config, tmp_path / str(parts))
        found.append(answers[0].gradients)
    assert float(found[0]["layers.0.scale"].abs()) > 0.0
    assert largest_relative_error(found[1], found[0]) <= 1e-12
