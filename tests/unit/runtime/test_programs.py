"""The program interface: a second, trivial method needs one class, runs at once, and agrees with the first."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.support.graphs import random_case
from tests.support.sessions import largest_relative_error, run_config, train_one_epoch

from halocast.runtime.programs import METHODS
from halocast.runtime.programs.full import FullGraph, LayerProgram, describe_layers
from halocast.traces.buffers import walk
from halocast.traces.operations import Direction, Exchange, Loss, Operation, Part, Program, Stage, Step, Wait, Work
from halocast.traces.workload import ExactSavings, PartStatistics, RankView


class Synchronous:
    """Full-graph training without overlap: send, wait, then compute all rows; gradients the same way."""

    name = "synchronous"

    def epoch(self, view: RankView) -> Program:
        layers = describe_layers(view)
        for layer in layers:
            yield from self.forward(layer)
        last = layers[-1]
        width = last.spec.dim_out
        yield last.keep(last.gradient, Part.OWN, width)
        work = Work(rows=view.part.labelled, dim_in=width, dim_out=width)
        yield Loss(last.index, work=work, source=last.output, target=last.gradient)
        for layer in reversed(layers):
            flight = yield from layer.backward()
            yield Wait(layer.index, Direction.BACKWARD, flight=flight)
        yield Step()

    def evaluation(self, view: RankView) -> Program:
        for layer in describe_layers(view):
            yield from self.forward(layer)

    def forward(self, layer: LayerProgram) -> Generator[Operation, Any, None]:
        yield layer.keep(layer.output, layer.output_rows, layer.spec.dim_out)
        yield layer.keep(layer.aggregated, Part.OWN, layer.spec.dim_in)
        flight = yield from layer.send_boundary(layer.source)
        yield from layer.receive_halo(flight)
        yield layer.aggregate(Direction.FORWARD, Part.OWN, layer.source, layer.aggregated)
        yield layer.transform(Stage.WHOLE, Direction.FORWARD, Part.OWN)


def test_a_second_program_trains_at_once_and_agrees_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, Synchronous.name, Synchronous())
    switches = dict.fromkeys(
        ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features"), False
    )
    model = {"layer": "sage", "layers": 3, "hidden": 9, "dropout": 0.3}
    case = random_case(3)
    answers = {}
    for name in ("full", Synchronous.name):
        config = run_config(3, model=model, method={"name": name, "exact": switches}, dtype="float64")
        answers[name], _ = train_one_epoch(case, config, tmp_path / name)
    for ours, theirs in zip(answers["full"], answers[Synchronous.name], strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-13)
        assert largest_relative_error(theirs.gradients, ours.gradients) <= 1e-12
    view = answers["full"][0].session.view
    assert walk(FullGraph().epoch(view)) != walk(Synchronous().epoch(view))


def view_of(part: PartStatistics, exact: ExactSavings, rank: int = 0) -> RankView:
    import torch

    from halocast.runtime.models.network import GraphNetwork, NetworkShape

    network = GraphNetwork(NetworkShape("gcn", 3, 16), part.feature_dim, 4, seed=0, dtype=torch.float32)
    return RankView(rank, len(part.halo_from), network.specs(), part, exact)


PART = PartStatistics(
    central=10,
    marginal=6,
    nnz_central=40,
    nnz_marginal=44,
    nnz_halo_from=(0, 8, 4),
    halo_from=(0, 5, 3),
    boundary_to=(0, 4, 2),
    labelled=7,
    labelled_halo_from=(0, 2, 0),
    labelled_boundary_to=(0, 1, 0),
    feature_dim=32,
)


def test_central_rows_are_computed_while_messages_fly() -> None:
    operations = walk(FullGraph().epoch(view_of(PART, ExactSavings.none())))
    for start, operation in enumerate(operations):
        if isinstance(operation, Exchange) and operation.direction is Direction.FORWARD:
            after = operations[start + 1 :]
            first_wait = next(index for index, each in enumerate(after) if isinstance(each, Wait))
            # central rows, and what marginal rows need of their own columns
            assert {(each.part, getattr(each, "columns", Part.ALL)) for each in after[:first_wait]} == {
                (Part.CENTRAL, Part.ALL),
                (Part.MARGINAL, Part.OWN),
            }
            last_wait = max(
                index
                for index, each in enumerate(after)
                if isinstance(each, Wait) and (each.layer, each.direction) == (operation.layer, operation.direction)
            )
            assert after[last_wait + 1].part is Part.MARGINAL or type(after[last_wait + 1]).__name__ == "Free"


def test_peers_are_waited_for_in_ring_order() -> None:
    view = view_of(PART, ExactSavings.none())
    assert view.peers_in_ring_order == (2, 1)
    waits = [each for each in walk(FullGraph().epoch(view)) if isinstance(each, Wait) and each.layer == 1]
    assert [each.peer for each in waits if each.direction is Direction.FORWARD] == [2, 1]


def test_a_layers_all_reduce_starts_before_the_layer_below_runs_backward() -> None:
    names = [type(each).__name__ for each in walk(FullGraph().epoch(view_of(PART, ExactSavings())))]
    layers = [
        each.layer for each in walk(FullGraph().epoch(view_of(PART, ExactSavings()))) if type(each).__name__ == "AllReduce"
    ]
    assert layers == [2, 1, 0]
    first = names.index("AllReduce")
    assert "Transform" in names[first:]
    assert names[-1] == "Step"


def test_programs_import_neither_torch_nor_simpy() -> None:
    import subprocess
    import sys

    code = "import sys, halocast.runtime.programs; print({'torch', 'simpy', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert found.strip() == "set()"
