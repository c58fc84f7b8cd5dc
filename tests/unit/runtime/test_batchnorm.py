"""Batch normalization over the nodes of all ranks: gradients and running statistics of torch's in one dense process."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import aggregation_matrix, dense_adjacency
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import (
    EPOCH,
    RankAnswer,
    largest_relative_error,
    reference_epoch,
    run_config,
    shards_of,
    train_one_epoch,
)
from tests.support.threads import ThreadTransport, run_ranks
from tests.unit.runtime.test_blockwise import reference as blockwise_reference
from torch import Tensor, nn
from torch.nn import functional

from halocast.errors import MisuseError
from halocast.runtime.batchnorm import CHUNK_ROWS, BatchNormalization
from halocast.runtime.config import RunConfig
from halocast.runtime.programs import METHODS
from halocast.runtime.session import build_network, build_session
from halocast.traces.buffers import walk
from halocast.traces.operations import AllReduce, Direction, Wait

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
NONE = dict.fromkeys(SAVINGS, False)


def model_of(layer: str, **changes: Any) -> dict[str, Any]:
    return {"layer": layer, "layers": 3, "hidden": 12, "dropout": 0.4, "norm": "batch", **changes}


def fresh_statistics(config: RunConfig) -> dict[int, tuple[Tensor, Tensor]]:
    hidden = [torch.zeros(config.model.hidden, dtype=torch.float64)] * (config.model.layers - 1)
    return {index: (zeros.clone(), zeros + 1.0) for index, zeros in enumerate(hidden)}


def compare_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, hidden: int) -> None:
    """A bias before batch normalization has no gradient: exactly none here, rounding in the reference."""
    silent = {f"layers.{index}.bias" for index in range(hidden)}
    for name in silent:
        assert not actual[name].any()
        assert expected[name].abs().max() < 1e-15
    one, other = ({name: value for name, value in each.items() if name not in silent} for each in (actual, expected))
    assert largest_relative_error(one, other) <= tolerance


def assert_exact(case: Case, folder: Path, parts: int, **sections: Any) -> list[RankAnswer]:
    config = run_config(parts, **sections)
    answers, _ = train_one_epoch(case, config, folder / "shards")
    running = fresh_statistics(config)
    loss, gradients = reference_epoch(case, config, running)
    tolerance = TOLERANCE[config.dtype]
    for answer in answers:
        assert answer.loss == pytest.approx(loss, rel=tolerance)
        compare_gradients(answer.gradients, gradients, tolerance, config.model.layers - 1)
        state, first = answer.session.network.state_dict(), answers[0].session.network.state_dict()
        for index, expected in running.items():
            for name, value in zip(("running_mean", "running_var"), expected, strict=True):
                found = state[f"norms.{index}.{name}"]
                assert torch.equal(found, first[f"norms.{index}.{name}"])
                torch.testing.assert_close(found.double(), value, rtol=tolerance, atol=tolerance)
            assert int(state[f"norms.{index}.num_batches_tracked"]) == 1
    return answers


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_is_one_dense_process(parts: int, layer: str, dtype: str, tmp_path: Path) -> None:
    assert_exact(random_case(parts), tmp_path, parts, model=model_of(layer), dtype=dtype)


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("switches", list(product([False, True], repeat=4)))
def test_no_saving_changes_a_gradient(switches: tuple[bool, ...], layer: str, tmp_path: Path) -> None:
    """With aggregated and kept features the first layer's halo rows are normalized here as well, and not counted."""
    exact = dict(zip(SAVINGS, switches, strict=True))
    model = model_of(layer, hidden=9, residual=True)
    assert_exact(random_case(3), tmp_path, 3, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["full", "sar"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_methods_and_overlap(parts: int, overlap: bool, method: str, dtype: str, tmp_path: Path) -> None:
    how = {"name": method, "exact": NONE, "overlap": overlap}
    assert_exact(random_case(parts), tmp_path, parts, model=model_of("sage"), method=how, dtype=dtype)


@pytest.mark.parametrize("switches", list(product([False, True], repeat=4)))
def test_savings_of_sequential_aggregation(switches: tuple[bool, ...], tmp_path: Path) -> None:
    exact = dict(zip(SAVINGS, switches, strict=True))
    method = {"name": "sar", "exact": exact}
    assert_exact(random_case(3), tmp_path, 3, model=model_of("gcn", hidden=9), method=method, dtype="float64")


@pytest.mark.parametrize("savings", [True, False])
@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_empty_peer_pairs_and_parts_without_training_nodes(layer: str, savings: bool, tmp_path: Path) -> None:
    method = {"exact": dict.fromkeys(SAVINGS, savings)}
    assert_exact(chain_case(4), tmp_path, 4, model=model_of(layer), method=method, dtype="float64")


@pytest.mark.parametrize("method", ["full", "sar"])
def test_a_part_without_any_node(method: str, tmp_path: Path) -> None:
    case = random_case(3)
    assignment = case.assignment.copy()
    assignment[assignment == 1] = 0
    emptied = replace(case, assignment=assignment)
    assert_exact(emptied, tmp_path, 3, model=model_of("gcn"), method={"name": method}, dtype="float64")


@pytest.mark.parametrize("savings", [True, False])
def test_the_kernels_of_other_devices(savings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, run here: the pure-torch kernels instead of the native ones."""
    monkeypatch.setattr("halocast.runtime.kernels.is_native", lambda tensor: False)
    method = {"exact": dict.fromkeys(SAVINGS, savings)}
    assert_exact(random_case(3), tmp_path, 3, model=model_of("sage", residual=True), method=method, dtype="float64")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("savings", [True, False])
def test_gradients_on_a_gpu(savings: bool, parts: int, tmp_path: Path) -> None:
    config = run_config(parts, model=model_of("gcn"), method={"exact": dict.fromkeys(SAVINGS, savings)})
    case = random_case(parts)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards", "cuda")
    loss, gradients = reference_epoch(case, config)
    assert answers[0].loss == pytest.approx(loss, rel=1e-4)
    compare_gradients(answers[0].gradients, gradients, 1e-4, config.model.layers - 1)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_an_opaque_layer(parts: int, residual: bool, tmp_path: Path) -> None:
    """Its own bias, which the runtime knows nothing of, gets what rounding leaves of nothing."""
    model = model_of("tests.support.layers:OpaqueSAGE", residual=residual)
    config = run_config(parts, model=model, dtype="float64")
    case = random_case(parts)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    same = config.model_copy(update={"model": config.model.model_copy(update={"layer": "sage"})})
    loss, gradients = reference_epoch(case, same)
    assert answers[0].loss == pytest.approx(loss, rel=1e-12)
    assert answers[0].gradients.keys() == gradients.keys()
    largest = max(float(value.abs().max()) for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(answers[0].gradients[name], value, rtol=1e-11, atol=1e-13 * largest)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "sar"}, {"name": "sar", "keep": True}, {"overlap": False}])
@pytest.mark.parametrize("layer", ["gat", "gatv2", "sage-max", "gin"])
def test_layers_by_blocks(layer: str, method: dict[str, Any], residual: bool, tmp_path: Path) -> None:
    """Attention's merged rows are themselves what is normalized, and its backward pass reads them after."""
    model = model_of(layer, residual=residual, options={"heads": 3} if layer.startswith("gat") else {})
    config = run_config(4, model=model, method={"exact": NONE, **method}, dtype="float64")
    case = random_case(4)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    loss, gradients = blockwise_reference(case, config)
    for answer in answers:
        assert answer.loss == pytest.approx(loss, rel=1e-12)
        compare_gradients(answer.gradients, gradients, 1e-12, config.model.layers - 1)
        assert answer.logits.isfinite().all()


@pytest.mark.parametrize("parts", [2, 5])
def test_encoded_messages_at_full_width(parts: int, tmp_path: Path) -> None:
    """Method adaqp runs the same steps around its codec, which passes rows of 32 bits through."""
    how = {"name": "adaqp", "bits": 32, "exact": NONE}
    assert_exact(random_case(parts), tmp_path, parts, model=model_of("gcn"), method=how)


# -- several epochs, evaluation ---------------------------------------------------------------------------------


class DenseGCN(nn.Module):
    """GCN with torch's own BatchNorm1d, on a dense matrix."""

    def __init__(self, config: RunConfig, case: Case) -> None:
        super().__init__()
        network = build_network(config, case.graph.feature_dim, case.graph.classes)
        state = network.state_dict()
        self.weights = nn.ParameterList(state[f"layers.{index}.weight"].double() for index in range(config.model.layers))
        self.biases = nn.ParameterList(state[f"layers.{index}.bias"].double() for index in range(config.model.layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(config.model.hidden).double() for _ in range(config.model.layers - 1))

    def forward(self, matrix: Tensor, hidden: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = matrix @ hidden @ weight + bias
            if index < len(self.norms):
                hidden = self.norms[index](hidden).relu()
        return hidden


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epochs_and_evaluation_are_those_of_torchs_batch_norm(optimizer: str, parts: int, tmp_path: Path) -> None:
    """Parameters, running statistics, and the logits that follow from them, over eight epochs."""
    config = run_config(
        parts,
        model=model_of("gcn", dropout=0.0),
        dtype="float64",
        training={"optimizer": optimizer, "weight_decay": 0.01, "learning_rate": 0.05},
    )
    case = random_case(parts)
    shards = shards_of(case, tmp_path / "shards")

    def work(transport: ThreadTransport) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        for epoch in range(8):
            session.executor.train_epoch(epoch)
        ids = torch.from_numpy(np.array(shards.open(transport.rank).global_ids[: session.view.part.own]))
        return ids, session.executor.evaluate(8).clone(), dict(session.network.state_dict())

    answers, _ = run_ranks(parts, work)

    dense = DenseGCN(config, case)
    kinds = {"sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01)}
    kinds["adam"] = lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01)
    steps = kinds[optimizer](dense.parameters())
    matrix = aggregation_matrix(dense_adjacency(case.graph.nodes, case.edges), "gcn")
    features, labels = torch.from_numpy(np.asarray(case.graph.features)).double(), torch.from_numpy(case.graph.labels)
    mask = torch.from_numpy(case.graph.train_mask)
    for _ in range(8):
        steps.zero_grad()
        functional.cross_entropy(dense(matrix, features)[mask], labels[mask]).backward()
        for bias in dense.biases[:-1]:  # normalized away: rounding leaves 1e-17 of it, which Adam would scale up to a step
            assert bias.grad is not None
            bias.grad.zero_()
        steps.step()
    expected = dense.eval()(matrix, features)
    for ids, logits, state in answers:
        torch.testing.assert_close(logits, expected[ids].detach(), rtol=1e-11, atol=1e-11)
        for index, norm in enumerate(dense.norms):
            for name, value in norm.state_dict().items():
                torch.testing.assert_close(state[f"norms.{index}.{name}"], value, rtol=1e-11, atol=1e-11)


def test_evaluation_and_probes_leave_running_statistics_alone(tmp_path: Path) -> None:
    config = run_config(1, model=model_of("gcn"))
    shards = shards_of(random_case(1), tmp_path / "shards")

    def work(transport: ThreadTransport) -> None:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        session.executor.train_epoch(EPOCH)
        before = {name: value.clone() for name, value in session.network.state_dict().items()}
        session.executor.probe_epoch(EPOCH)
        session.executor.evaluate(EPOCH)
        for name, value in session.network.state_dict().items():
            assert torch.equal(value, before[name]), name

    run_ranks(1, work)


# -- numerics ---------------------------------------------------------------------------------------------------


def one_pass_variance(rows: Tensor) -> Tensor:
    """E[z²] − E[z]², as SAR's published batch normalization has it."""
    return (rows * rows).mean(0) - rows.mean(0) ** 2


@pytest.mark.parametrize("nodes", [300, 2 * CHUNK_ROWS + 77])
def test_a_mean_far_beyond_the_deviation_keeps_its_digits(nodes: int) -> None:
    """Mean 10,000, deviation 1, float32: one pass has no digit of the variance, two passes have five."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(nodes, 6, generator=generator, dtype=torch.float64) + 1e4
    rows = exact.float()
    exact = rows.double()  # what float32 holds of it
    wrong = (one_pass_variance(rows).double() / exact.var(0, unbiased=False) - 1.0).abs().max()
    assert wrong > 0.5

    normalization = BatchNormalization(nn.BatchNorm1d(6), None, nodes=nodes, own=nodes)
    total, moments, out = torch.empty(1, 6), torch.empty(2, 6), torch.empty_like(rows)
    with torch.no_grad():
        normalization.sum_rows(rows, total)
        normalization.sum_squares(rows, total, moments)
        out += normalization.normalize(rows, out, moments)
        normalization.update_running_statistics()
    norm = nn.BatchNorm1d(6).double()
    expected = norm(exact).detach()
    torch.testing.assert_close(out.double(), expected, rtol=0.0, atol=2e-6 * float(expected.abs().max()))
    assert normalization._norm.running_var is not None
    assert norm.running_var is not None
    torch.testing.assert_close(normalization._norm.running_var.double(), norm.running_var, rtol=1e-6, atol=0.0)


def test_features_far_from_zero_train_exactly_in_float32(tmp_path: Path) -> None:
    """The same through two ranks: a column of 1,000 in the features shifts every pre-activation, and changes no output."""
    case = random_case(2)
    shifted = np.array(case.graph.features)
    shifted[:, 0] = 1000.0
    moved = replace(case, graph=replace(case.graph, features=shifted))
    config = run_config(2, model=model_of("sage", dropout=0.0, layers=2), method={"exact": NONE})
    answers, _ = train_one_epoch(moved, config, tmp_path / "shards")
    loss, gradients = reference_epoch(moved, config)
    assert answers[0].loss == pytest.approx(loss, rel=1e-4)  # float32 pre-activations have lost three digits themselves
    for name in ("norms.0.weight", "norms.0.bias", "layers.1.weight"):
        assert largest_relative_error({name: answers[0].gradients[name]}, {name: gradients[name]}) < 1e-3


def test_constant_columns_and_one_node(tmp_path: Path) -> None:
    """A variance of zero divides by √ε; of one node there is none."""
    normalization = BatchNormalization(nn.BatchNorm1d(3), None, nodes=50, own=50)
    rows, total, moments = torch.full((50, 3), 7e7), torch.empty(1, 3), torch.empty(2, 3)
    with torch.no_grad():
        normalization.sum_rows(rows, total)
        normalization.sum_squares(rows, total, moments)
        out = torch.empty_like(rows)
        out += normalization.normalize(rows, out, moments)
    assert out.abs().max() < 1e-2
    with pytest.raises(MisuseError, match=r"model.norm = 'batch' needs 2 or more nodes, this graph has 1; use 'layer'"):
        BatchNormalization(nn.BatchNorm1d(3), None, nodes=1, own=1)


# -- the program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "sar"])
@pytest.mark.parametrize("parts", [1, 3])
def test_three_small_all_reduces_a_hidden_layer(parts: int, method: str, tmp_path: Path) -> None:
    """Sum; rest and squares; then Σg and Σg·x̂: 5 vectors beside the buckets, each waited for at once; one rank has none."""
    config = run_config(parts, model=model_of("gcn"), method={"name": method})
    answers, _ = train_one_epoch(random_case(parts), config, tmp_path / "shards")
    for answer in answers:
        operations = walk(METHODS[method].epoch(answer.session.view))
        small = [(place, each) for place, each in enumerate(operations) if isinstance(each, AllReduce) and each.source]
        places = [(each.layer, each.direction, each.work.bytes_out // 4) for _, each in small]
        forward = [(layer, Direction.FORWARD, values) for layer in (0, 1) for values in (12, 24)]
        backward = [(layer, Direction.BACKWARD, 24) for layer in (1, 0)]
        assert places == ([*forward, *backward] if parts > 1 else [])
        for place, each in small:
            assert operations[place + 1] == Wait(each.layer, each.direction)
        evaluation = walk(METHODS[method].evaluation(answer.session.view))
        assert not [each for each in evaluation if isinstance(each, AllReduce)]
