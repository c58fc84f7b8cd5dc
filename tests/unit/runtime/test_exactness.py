"""K ranks give the gradients of one dense process: every saving on and off, every corner of a partition."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from tests.support.graphs import CLASSES, Case, chain_case, random_case
from tests.support.sessions import largest_relative_error, reference_epoch, run_config, train_one_epoch

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
OPAQUE_LAYERS: dict[str, dict[str, object]] = {
    "tests.support.layers:OpaqueSAGE": {},
    "tests.support.layers:NoisyMax": {"probability": 0.25},
    "torch_geometric.nn:SAGEConv": {"aggr": "max"},
}
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")


def assert_exact(case: Case, tmp_path: Path, parts: int, **sections: object) -> None:
    config = run_config(parts, **sections)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    loss, gradients = reference_epoch(case, config)
    tolerance = TOLERANCE[config.dtype]
    for answer in answers:
        assert answer.loss == pytest.approx(loss, rel=tolerance)
        assert largest_relative_error(answer.gradients, gradients) <= tolerance


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_gradients_do_not_depend_on_the_number_of_ranks(parts: int, layer: str, dtype: str, tmp_path: Path) -> None:
    model = {"layer": layer, "layers": 3, "hidden": 12, "dropout": 0.4, "norm": "layer"}
    assert_exact(random_case(parts), tmp_path, parts, model=model, dtype=dtype)


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("switches", list(product([False, True], repeat=4)))
def test_no_saving_changes_a_gradient(switches: tuple[bool, ...], layer: str, tmp_path: Path) -> None:
    exact = dict(zip(SAVINGS, switches, strict=True))
    model = {"layer": layer, "layers": 3, "hidden": 9, "dropout": 0.3, "norm": "layer", "residual": True}
    assert_exact(random_case(3), tmp_path, 3, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage", *OPAQUE_LAYERS])
@pytest.mark.parametrize("transform_first", [False, True])
def test_waiting_for_all_messages_first_changes_no_gradient(layer: str, transform_first: bool, tmp_path: Path) -> None:
    exact = {**dict.fromkeys(SAVINGS, False), "transform_first": transform_first}
    model = {"layer": layer, "layers": 3, "hidden": 9, "dropout": 0.3, "options": OPAQUE_LAYERS.get(layer, {})}
    answers = []
    for overlap in (True, False):
        config = run_config(4, model=model, method={"exact": exact, "overlap": overlap}, dtype="float64")
        answers.append(train_one_epoch(random_case(4), config, tmp_path / str(overlap))[0][0])
    assert answers[1].loss == pytest.approx(answers[0].loss, rel=1e-12)
    assert largest_relative_error(answers[1].gradients, answers[0].gradients) <= 1e-12


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("switches", list(product([False, True], repeat=2)))
def test_sparse_and_dense_features(switches: tuple[bool, bool], layer: str, sparse: bool, tmp_path: Path) -> None:
    exact = {"aggregate_features_once": switches[0], "keep_halo_features": switches[1]}
    model = {"layer": layer, "layers": 2, "hidden": 8, "dropout": 0.5}
    case = random_case(4, sparse=sparse, degree=1.0)
    assert_exact(case, tmp_path, 4, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_aggregated_features_that_stay_sparse(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halocast.runtime.features.DENSE_FROM", 1.1)
    model = {"layer": layer, "layers": 3, "hidden": 8, "dropout": 0.5}
    assert_exact(random_case(4, sparse=True), tmp_path, 4, model=model, dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("savings", [True, False])
def test_the_kernels_of_other_devices(layer: str, savings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, run here: the pure-torch kernels instead of the native ones."""
    monkeypatch.setattr("halocast.runtime.kernels.is_native", lambda tensor: False)
    model = {"layer": layer, "layers": 3, "hidden": 8, "dropout": 0.4, "norm": "layer", "residual": True}
    exact = dict.fromkeys(SAVINGS, savings)
    assert_exact(random_case(3), tmp_path, 3, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("savings", [True, False])
def test_gradients_on_a_gpu(savings: bool, parts: int, layer: str, tmp_path: Path) -> None:
    model = {"layer": layer, "layers": 3, "hidden": 16, "dropout": 0.4, "norm": "layer"}
    config = run_config(parts, model=model, method={"exact": dict.fromkeys(SAVINGS, savings)})
    case = random_case(parts)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards", "cuda")
    loss, gradients = reference_epoch(case, config)
    assert answers[0].loss == pytest.approx(loss, rel=1e-4)
    assert largest_relative_error(answers[0].gradients, gradients) <= 1e-4


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("savings", [True, False])
def test_depths_that_narrow_and_widen(layers: int, savings: bool, tmp_path: Path) -> None:
    exact = dict.fromkeys(SAVINGS, savings)
    for hidden in (4, 24):
        model = {"layer": "gcn", "layers": layers, "hidden": hidden, "dropout": 0.2}
        assert_exact(random_case(3), tmp_path / str(hidden), 3, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("savings", [True, False])
def test_empty_peer_pairs_untrained_parts_and_parts_without_marginal_rows(layer: str, savings: bool, tmp_path: Path) -> None:
    case = chain_case(4)
    exact = dict.fromkeys(SAVINGS, savings)
    model = {"layer": layer, "layers": 3, "hidden": 10, "dropout": 0.5}
    assert_exact(case, tmp_path, 4, model=model, method={"exact": exact}, dtype="float64")


@pytest.mark.parametrize("savings", [True, False])
def test_multi_label_loss(savings: bool, tmp_path: Path) -> None:
    model = {"layer": "sage", "layers": 2, "hidden": 10, "dropout": 0.5}
    exact = dict.fromkeys(SAVINGS, savings)
    case = random_case(3, multilabel=True)
    assert_exact(case, tmp_path, 3, model=model, method={"exact": exact}, dtype="float64")


def test_a_layer_of_the_users_own_and_a_pyg_convolution(tmp_path: Path) -> None:
    """The same GraphSAGE three ways: built in, as an opaque layer, as PyG's SAGEConv; any number of ranks, any savings."""
    for layer, options in OPAQUE_LAYERS.items():
        for parts, keep in ((1, True), (3, True), (3, False)):
            model = {"layer": layer, "layers": 3, "hidden": 8, "dropout": 0.3, "norm": "layer", "options": options}
            exact = {"keep_halo_features": keep}
            config = run_config(parts, model=model, method={"exact": exact}, dtype="float64")
            case = random_case(parts)
            answers, _ = train_one_epoch(case, config, tmp_path / f"{parts}-{keep}-{layer.rpartition(':')[2]}")
            alone = run_config(1, model=model, dtype="float64")
            single = random_case(1)
            expected, _ = train_one_epoch(single, alone, tmp_path / f"single-{parts}-{keep}-{layer.rpartition(':')[2]}")
            assert answers[0].loss == pytest.approx(expected[0].loss, rel=1e-12)
            assert largest_relative_error(answers[0].gradients, expected[0].gradients) <= 1e-12


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_an_opaque_layer_on_sparse_features(keep: bool, parts: int, tmp_path: Path) -> None:
    model = {"layer": "tests.support.layers:OpaqueSAGE", "layers": 2, "hidden": 8, "dropout": 0.3}
    config = run_config(parts, model=model, method={"exact": {"keep_halo_features": keep}}, dtype="float64")
    case = random_case(parts, sparse=True)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    same = config.model_copy(update={"model": config.model.model_copy(update={"layer": "sage"})})
    loss, gradients = reference_epoch(case, same)
    assert answers[0].loss == pytest.approx(loss, rel=1e-12)
    assert largest_relative_error(answers[0].gradients, gradients) <= 1e-12


def test_frozen_and_missing_parameters(tmp_path: Path) -> None:
    """A layer without parameters, and one with a frozen one, train beside others."""
    model = {"layer": "tests.support.layers:FrozenScale", "layers": 1, "hidden": 8}
    config = run_config(2, model=model, dtype="float64")
    case = random_case(2)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    assert answers[0].gradients.keys() == {"layers.0.linear.weight"}
    assert float(answers[0].gradients["layers.0.linear.weight"].abs().sum()) > 0


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_an_opaque_layer_equals_the_built_in_one(parts: int, residual: bool, tmp_path: Path) -> None:
    """An opaque copy of GraphSAGE goes through autograd; the reference is the dense model."""
    layer, hidden = "tests.support.layers:OpaqueSAGE", CLASSES if residual else 8  # so the last layer has a skip, too
    model = {"layer": layer, "layers": 3, "hidden": hidden, "dropout": 0.3, "norm": "layer", "residual": residual}
    config = run_config(parts, model=model, dtype="float64")
    case = random_case(parts)
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    same = config.model_copy(update={"model": config.model.model_copy(update={"layer": "sage"})})
    loss, gradients = reference_epoch(case, same)
    assert answers[0].loss == pytest.approx(loss, rel=1e-12)
    assert largest_relative_error(answers[0].gradients, gradients) <= 1e-12


def test_a_part_without_any_node_still_takes_part(tmp_path: Path) -> None:
    case = random_case(3)
    assignment = case.assignment.copy()
    assignment[assignment == 1] = 0
    emptied = Case(case.graph, case.edges, assignment)
    assert_exact(emptied, tmp_path, 3, model={"layer": "gcn", "layers": 3, "hidden": 7, "dropout": 0.0}, dtype="float64")
