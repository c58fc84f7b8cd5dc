"""What the simulator walks is what the runtime executes, operation by operation: methods, layers by blocks, and their modes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.graphs import Case, random_case, with_edge_data
from tests.support.sessions import run_config, shards_of
from tests.support.threads import ThreadTransport, run_ranks

from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.shapes import LAYERS, built_in_specs
from halocast.runtime.programs import METHODS
from halocast.runtime.session import build_session
from halocast.simulator.engine import lower
from halocast.simulator.observations import structure
from halocast.traces.operations import Direction, Exchange, Operation
from halocast.traces.workload import BitAssignment, Workload

PARTS = 3
MODEL = {"layers": 3, "hidden": 8, "dropout": 0.2}


class Executed:
    """A recorder that notes down what was executed, in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def span(self, phase: str, epoch: int, index: int, operation: Operation, stream: str, *_: object, **__: object) -> None:
        if stream == "compute":
            self.operations.append(operation)

    def message(self, *_: object) -> None:
        pass


@lru_cache
def case() -> Case:
    return with_edge_data(random_case(PARTS))


def executed(folder: Path, method: Mapping[str, Any], model: Mapping[str, Any]) -> list[tuple[list[Operation], Any]]:
    """By rank: the operations of one epoch of training, and the widths of its messages."""
    config = run_config(PARTS, model={**MODEL, **model}, method=method)
    shards = shards_of(case(), folder)

    def work(transport: ThreadTransport) -> tuple[list[Operation], Any]:
        recorder = Executed()
        session = build_session(config, shards, transport, device=torch.device("cpu"), recorder=recorder)
        session.executor.train_epoch(0)
        return recorder.operations, session.view.bits

    return run_ranks(PARTS, work)[0]


def simulated(folder: Path, method: Mapping[str, Any], model: Mapping[str, Any], bits: list[BitAssignment | None]) -> list[Any]:
    """By rank: the operations that a forecast of the same run prices; no torch module is built for it."""
    config, graph = run_config(PARTS, model={**MODEL, **model}, method=method), case().graph
    shards = shards_of(case(), folder)
    layers = built_in_specs(config.model, graph.feature_dim, graph.classes, EdgeShape(graph.edge_dim, graph.relations))
    assert layers is not None
    load = Workload(
        layers,
        tuple(shards.statistics(part) for part in range(PARTS)),
        config.method.exact.savings(),
        overlap=config.method.overlap,
        prefetch=config.method.prefetch,
        kept_layers=config.method.kept_layers(config.model.layers),
    )
    program = METHODS[config.method.name]
    return [lower(program.epoch(load.view(rank, bits[rank])), lambda _: 0.0).operations for rank in range(PARTS)]


def assert_alike(folder: Path, method: Mapping[str, Any], model: Mapping[str, Any]) -> list[list[Operation]]:
    found = executed(folder / "run", method, model)
    expected = simulated(folder / "forecast", method, model, [bits for _, bits in found])
    for (operations, _), priced in zip(found, expected, strict=True):
        assert structure(operations) == structure(priced)
    return [operations for operations, _ in found]


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("keep", [False, True], ids=["remat", "keep"])
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_sequential_aggregation_is_what_was_simulated(layer: str, keep: bool, prefetch: int, tmp_path: Path) -> None:
    method = {"name": "sar", "keep": keep, "prefetch": prefetch}
    ranks = assert_alike(tmp_path, method, {"layer": layer})
    for operations in ranks:  # blocks are fetched a second time only where nothing keeps them and gradients depend on them
        losses = next(place for place, each in enumerate(operations) if type(each).__name__ == "Loss")
        again = [each for each in operations[losses:] if isinstance(each, Exchange) and each.direction is Direction.FORWARD]
        assert bool(again) == (not keep and layer in ("gat", "gatv2", "sage-max"))


@pytest.mark.parametrize("method", ["full", "adaqp"])
@pytest.mark.parametrize("layer", ["gat", "sage-max"])
def test_plain_and_quantised_training_of_layers_by_blocks(method: str, layer: str, tmp_path: Path) -> None:
    assert_alike(tmp_path, {"name": method, **({"bits": 4} if method == "adaqp" else {})}, {"layer": layer})


def test_one_layer_that_keeps_its_blocks(tmp_path: Path) -> None:
    assert_alike(tmp_path, {"name": "sar", "keep": [1]}, {"layer": "gat", "options": {"heads": 2, "edge_features": True}})
