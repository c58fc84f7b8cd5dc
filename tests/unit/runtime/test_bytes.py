"""What travels equals the closed formula, to the byte, per layer, direction and peer."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tests.support.graphs import CLASSES, FEATURES, Case, random_case
from tests.support.sessions import run_config, train_one_epoch

from halocast.runtime.programs.full import FullGraph
from halocast.traces.buffers import walk
from halocast.traces.operations import Exchange

SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
PARTS, HIDDEN, LAYERS = 4, 12, 3


def boundary_rows(case: Case, owner: int, reader: int, *, labelled: bool) -> int:
    """Nodes of `owner` with a neighbour (`labelled`: a training one) in `reader`, counted edge by edge."""
    nodes = set()
    for u, v in case.edges.T:
        for here, there in ((u, v), (v, u)):
            if (
                case.assignment[here] == owner
                and case.assignment[there] == reader
                and (not labelled or case.graph.train_mask[there])
            ):
                nodes.add(int(here))
    return len(nodes)


def expected_dims(savings: dict[str, bool]) -> list[tuple[int, int]]:
    """(forward, backward) width of each layer's exchange, 0 for none, from the definition of the savings."""
    widths = [FEATURES, HIDDEN, HIDDEN, CLASSES]
    dims = []
    for layer in range(LAYERS):
        narrow = savings["transform_first"] and widths[layer + 1] < widths[layer]
        dim = widths[layer + 1] if narrow else widths[layer]
        forward, backward = dim, dim
        if layer == 0:
            backward = dim if narrow else 0  # features need no gradient
            if savings["aggregate_features_once"] or savings["keep_halo_features"]:
                forward = backward = 0
        if layer == 1 and savings["aggregate_features_once"] and savings["keep_halo_features"]:
            forward = backward = 0
        dims.append((forward, backward))
    return dims


@pytest.mark.parametrize("switches", list(product([False, True], repeat=4)))
@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_exchanged_bytes_equal_the_formula(layer: str, switches: tuple[bool, ...], tmp_path: Path) -> None:
    savings = dict(zip(SAVINGS, switches, strict=True))
    case = random_case(PARTS)
    config = run_config(PARTS, model={"layer": layer, "layers": LAYERS, "hidden": HIDDEN}, method={"exact": savings})
    answers, hub = train_one_epoch(case, config, tmp_path / "shards")
    expected: dict[tuple[int, str, int, int], int] = {}
    for number, (forward, backward) in enumerate(expected_dims(savings)):
        for owner, reader in product(range(PARTS), repeat=2):
            if owner == reader:
                continue
            expected[number, "forward", owner, reader] = 4 * forward * boundary_rows(case, owner, reader, labelled=False)
            labelled = savings["labelled_gradients_only"] and number == LAYERS - 1
            expected[number, "backward", reader, owner] = 4 * backward * boundary_rows(case, owner, reader, labelled=labelled)
    found: dict[tuple[int, str, int, int], int] = {}
    for rank, answer in enumerate(answers):
        for operation in walk(FullGraph().epoch(answer.session.view)):
            if isinstance(operation, Exchange):
                for message in operation.outgoing:
                    found[operation.layer, operation.direction, rank, message.peer] = message.bytes
                mirror = {message.peer: message.bytes for message in operation.incoming}
                for peer, size in mirror.items():
                    assert size == expected[operation.layer, operation.direction, peer, rank]
    assert found == {key: size for key, size in expected.items() if size}
    # and what really went through the transport in training (set-up and evaluation send forward rows only)
    assert sum(size for _, _, size in hub.sent_bytes) >= sum(expected.values())


@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_a_two_layer_model_with_all_savings_exchanges_nothing(layer: str, tmp_path: Path) -> None:
    case = random_case(PARTS)
    config = run_config(PARTS, model={"layer": layer, "layers": 2, "hidden": HIDDEN})
    answers, _ = train_one_epoch(case, config, tmp_path / "shards")
    for answer in answers:
        operations = walk(FullGraph().epoch(answer.session.view))
        assert not [operation for operation in operations if isinstance(operation, Exchange)]
        assert np.isfinite(answer.loss)


def test_what_the_transport_carries_is_what_the_program_says(tmp_path: Path) -> None:
    """One epoch, no evaluation, no set-up exchange: the transport's bytes per pair equal the operations'."""
    case = random_case(PARTS)
    savings = dict.fromkeys(SAVINGS, False)
    config = run_config(PARTS, model={"layer": "gcn", "layers": LAYERS, "hidden": HIDDEN}, method={"exact": savings})
    answers, hub = train_one_epoch(case, config, tmp_path / "shards")
    said: dict[tuple[int, int], int] = {}
    for rank, answer in enumerate(answers):
        method = FullGraph()
        for program in (method.epoch(answer.session.view), method.evaluation(answer.session.view)):
            for operation in walk(program):
                if isinstance(operation, Exchange):
                    for message in operation.outgoing:
                        said[rank, message.peer] = said.get((rank, message.peer), 0) + message.bytes
    sent: dict[tuple[int, int], int] = {}
    for sender, receiver, size in hub.sent_bytes:
        sent[sender, receiver] = sent.get((sender, receiver), 0) + size
    assert sent == said
