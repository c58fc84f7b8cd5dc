"""Sequential aggregation: gradients and bytes of plain training, and no more than a block or two of others' rows."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import largest_relative_error, reference_epoch, run_config, train_one_epoch
from tests.unit.simulator.parts import all_to_all, workload

from halocast.runtime.programs import METHODS
from halocast.traces.buffers import walk
from halocast.traces.operations import Aggregate, Exchange, Free, Keep, Part

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
NONE = dict.fromkeys(SAVINGS, False)


def sequential(**method: Any) -> dict[str, Any]:
    return {"name": "sar", "exact": NONE, **method}


def assert_exact(case: Case, folder: Path, parts: int, **sections: Any) -> None:
    config = run_config(parts, **sections)
    answers, _ = train_one_epoch(case, config, folder / "shards")
    loss, gradients = reference_epoch(case, config)
    for answer in answers:
        assert answer.loss == pytest.approx(loss, rel=TOLERANCE[config.dtype])
        assert largest_relative_error(answer.gradients, gradients) <= TOLERANCE[config.dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_gradients_are_those_of_one_dense_process(parts: int, layer: str, dtype: str, tmp_path: Path) -> None:
    model = {"layer": layer, "layers": 3, "hidden": 12, "dropout": 0.4, "norm": "layer", "residual": True}
    assert_exact(random_case(parts), tmp_path, parts, model=model, method=sequential(), dtype=dtype)


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("switches", list(product([False, True], repeat=4)))
def test_savings_change_no_gradient(switches: tuple[bool, ...], layer: str, tmp_path: Path) -> None:
    exact = dict(zip(SAVINGS, switches, strict=True))
    model = {"layer": layer, "layers": 3, "hidden": 9, "dropout": 0.3, "norm": "layer"}
    assert_exact(random_case(3), tmp_path, 3, model=model, method=sequential(exact=exact), dtype="float64")


@pytest.mark.parametrize("method", [{"prefetch": 0}, {"prefetch": 2}, {"prefetch": 9}, {"overlap": False}])
def test_rounds_ahead_change_no_gradient(method: dict[str, Any], tmp_path: Path) -> None:
    model = {"layer": "sage", "layers": 3, "hidden": 9, "dropout": 0.3}
    exact = {**NONE, "transform_first": True, "labelled_gradients_only": True}
    assert_exact(random_case(5), tmp_path, 5, model=model, method=sequential(exact=exact, **method), dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_empty_blocks_and_parts_without_training_nodes(layer: str, tmp_path: Path) -> None:
    model = {"layer": layer, "layers": 3, "hidden": 10, "dropout": 0.5}
    assert_exact(chain_case(4), tmp_path, 4, model=model, method=sequential(), dtype="float64")


def test_a_part_without_any_node(tmp_path: Path) -> None:
    case = random_case(3)
    assignment = case.assignment.copy()
    assignment[assignment == 1] = 0
    emptied = Case(case.graph, case.edges, assignment)
    assert_exact(emptied, tmp_path, 3, model={"layer": "gcn", "layers": 3, "hidden": 7}, method=sequential(), dtype="float64")


@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_evaluation_is_that_of_plain_training(layer: str, tmp_path: Path) -> None:
    model = {"layer": layer, "layers": 3, "hidden": 9, "dropout": 0.3, "norm": "layer"}
    logits = []
    for method in (sequential(), {"name": "full", "exact": NONE}):
        config = run_config(4, model=model, method=method, dtype="float64")
        answers, _ = train_one_epoch(random_case(4), config, tmp_path / method["name"])
        logits.append([answer.logits for answer in answers])
    for here, there in zip(*logits, strict=True):
        assert largest_relative_error({"logits": here}, {"logits": there}) <= 1e-12


@pytest.mark.parametrize("layer", ["gcn", "sage"])
@pytest.mark.parametrize("parts", [2, 4, 7])
def test_every_row_crosses_once_in_each_direction(parts: int, layer: str, tmp_path: Path) -> None:
    """Case 1 costs 2 V less the first layer's gradients, which nobody needs: V = the sum over layers of 4 F Σ|B(q→r)|."""
    config = run_config(parts, model={"layer": layer, "layers": 3, "hidden": 12}, method=sequential())
    case = random_case(parts)
    answers, hub = train_one_epoch(case, config, tmp_path / "shards")
    boundary = sum(answer.session.view.part.boundary for answer in answers)
    widths = [case.graph.feature_dim, 12, 12]
    expected = 4 * boundary * (sum(widths) + sum(widths[1:]))
    planned = [each for answer in answers for each in walk(METHODS["sar"].epoch(answer.session.view))]
    assert sum(each.work.bytes_out for each in planned if isinstance(each, Exchange)) == expected
    evaluated = 4 * boundary * sum(widths)  # `train_one_epoch` evaluates as well
    assert sum(size for _, _, size in hub.sent_bytes) == expected + evaluated


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("parts", [2, 5, 8])
def test_few_remote_blocks_are_alive_at_any_time(parts: int, prefetch: int, tmp_path: Path) -> None:
    model = {"layer": "sage", "layers": 3, "hidden": 12}
    config = run_config(parts, model=model, method=sequential(prefetch=prefetch))
    answers, _ = train_one_epoch(random_case(parts), config, tmp_path / "shards")
    for answer in answers:
        assert answer.session.view.prefetch == prefetch
        alive: set[str] = set()
        most = 0
        for operation in walk(METHODS["sar"].epoch(answer.session.view)):
            if isinstance(operation, Keep) and operation.name.startswith(("block", "gradient_block")):
                alive.add(operation.name)
            elif isinstance(operation, Free):
                alive.discard(operation.name)
            most = max(most, len(alive))
        assert not alive
        assert 0 < most <= min(prefetch + 2, parts - 1)


@pytest.mark.parametrize("overlap", [False, True])
def test_operations_say_whether_halo_rows_are_in_place(overlap: bool) -> None:
    """Plain training has them behind the own rows; here they are blocks of their own."""
    load = workload(all_to_all(3, 5), overlap=overlap)
    for name, in_place in (("full", True), ("sar", False)):
        operations = walk(METHODS[name].epoch(load.view(0)))
        from_halo = [each for each in operations if isinstance(each, Aggregate) and each.columns is Part.HALO]
        exchanges = [each for each in operations if isinstance(each, Exchange)]
        assert exchanges
        assert {each.in_place for each in exchanges} == {in_place}
        assert {each.in_place for each in from_halo} <= {in_place}
        assert from_halo or (name == "full" and not overlap)


def test_layers_that_are_not_sums_are_refused_with_the_way_out(tmp_path: Path) -> None:
    from halocast.errors import MisuseError
    from halocast.runtime.run import _check_method

    config = run_config(2, model={"layer": "tests.support.layers:OpaqueSAGE"}, method={"name": "sar"})
    with pytest.raises(
        MisuseError, match=r"use --method full, or derive it from halocast\.runtime\.models\.blockwise\.MessageLayer"
    ):
        _check_method(config)
