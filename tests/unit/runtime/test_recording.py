"""What is recorded of messages, against the rows themselves and the dense gradient; and that recording changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.graphs import chain_case, random_case
from tests.support.sessions import run_config, shards_of
from tests.support.threads import ThreadTransport, run_ranks

from halocast.runtime.checkpoint import optimizer_tensors
from halocast.runtime.config import RunConfig
from halocast.runtime.recording import record_rows
from halocast.runtime.session import RankSession, build_session, message_table
from halocast.traces.operations import Direction
from halocast.traces.rows import ExchangeRows, RowStatistics, read_rows, write_rows

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
NO_SAVINGS = dict.fromkeys(
    ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features"), False
)
PARTS = 3


def config_of(**method: Any) -> RunConfig:
    model = {"layer": "sage", "layers": 3, "hidden": 48, "dropout": 0.3, "norm": "layer"}
    return run_config(PARTS, model=model, method={"name": "adaqp", "exact": NO_SAVINGS, **method})


class Spans:
    """A recorder that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def span(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1

    message = span


def recorded(folder: Path, config: RunConfig, *, record: bool = True) -> list[tuple[RankSession, RowStatistics | None, Spans]]:
    """Two epochs, what is recorded then, and two more epochs."""
    shards = shards_of(random_case(PARTS), folder)

    def work(transport: ThreadTransport) -> tuple[RankSession, RowStatistics | None, Spans]:
        spans = Spans()
        session = build_session(config, shards, transport, device=torch.device("cpu"), recorder=spans)
        table = message_table(config, session.network, shards, transport.rank)
        for epoch in (0, 1):
            session.executor.train_epoch(epoch)
        statistics = record_rows(session, table, transport, 2) if record else None
        for epoch in (2, 3):
            session.executor.train_epoch(epoch)
        return session, statistics, spans

    return run_ranks(PARTS, work)[0]


@pytest.mark.parametrize("bits", ["random", 4])
def test_recording_changes_nothing(bits: str | int, tmp_path: Path) -> None:
    plain = recorded(tmp_path / "plain", config_of(bits=bits), record=False)
    probed = recorded(tmp_path / "probed", config_of(bits=bits))
    for (ours, _, our_spans), (theirs, _, their_spans) in zip(probed, plain, strict=True):
        states = [session.network.state_dict() for session in (ours, theirs)]
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
        tensors = [optimizer_tensors(session.optimizer) for session in (ours, theirs)]
        assert tensors[0]
        assert all(torch.equal(tensors[0][name], value) for name, value in tensors[1].items())
        assert ours.executor.messages is not None
        assert theirs.executor.messages is not None
        assert ours.executor.messages.widths.same_as(theirs.executor.messages.widths)
        assert ours.view == theirs.view
        assert our_spans.count == their_spans.count > 0


def test_first_layer_rows_are_the_features(tmp_path: Path) -> None:
    """The messages of layer 0 going forward are rows of the graph: β and energy from their definition, edge by edge."""
    case = random_case(PARTS)
    features = np.asarray(case.graph.features, dtype=np.float64)
    both = np.concatenate([case.edges, case.edges[::-1]], axis=1)
    degrees = np.bincount(both[0], minlength=case.graph.nodes)
    total = 0
    for rank, (_, statistics, _) in enumerate(recorded(tmp_path, config_of(bits=4))):
        assert statistics is not None
        assert statistics.epoch == 2
        rows = by_key(statistics)[0, FORWARD]
        assert set(rows.sender.tolist()) == {rank}
        assert (case.assignment[rows.node] == rank).all()
        for receiver, node, beta, energy in zip(rows.receiver, rows.node, rows.beta, rows.energy, strict=True):
            neighbours = both[1][both[0] == node]
            coefficient = (1.0 / degrees[neighbours[case.assignment[neighbours] == receiver]]).sum()
            assert coefficient > 0.0
            row = features[node]
            assert beta == pytest.approx(coefficient**2 * row.size * np.ptp(row) ** 2 / 6.0, rel=1e-5)
            assert energy == pytest.approx(coefficient**2 * (row**2).sum(), rel=1e-5)
        total += len(rows.node)
    cut = {(int(u), int(case.assignment[v])) for u, v in both.T if case.assignment[u] != case.assignment[v]}
    assert total == len(cut)


def test_sensitivity_foretells_the_noise_at_another_width(tmp_path: Path) -> None:
    """Measured with an exchange at 2 bits, it says how far the gradient is off with the same exchange at 3."""
    # without dropout or norm, and wide: a pre-activation near 0 that changes sides jumps, but is one of many
    model = {"layers": 3, "hidden": 64, "dropout": 0.0}
    config = run_config(PARTS, model=model, method={"name": "adaqp", "exact": NO_SAVINGS, "bits": 32})
    shards = shards_of(random_case(PARTS), tmp_path)

    def work(transport: ThreadTransport) -> tuple[RowStatistics, dict[tuple[int, Direction], float]]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        messages = session.executor.messages
        assert messages is not None
        statistics = record_rows(session, message_table(config, session.network, shards, transport.rank), transport, 0)
        exact = messages.widths

        def gradient(epoch: int) -> torch.Tensor:
            session.executor.probe_epoch(epoch)
            return session.executor.buckets.gradient().double()

        noise = {}
        for key in exact.outgoing:
            squares = []
            for epoch in range(8):  # the mean of several draws: rounding is random
                session.executor.install_widths(exact)
                reference = gradient(epoch)
                narrow = [{**arrays, key: np.full_like(arrays[key], 3)} for arrays in (exact.outgoing, exact.incoming)]
                session.executor.install_widths(type(exact)(*narrow))
                squares.append(float((gradient(epoch) - reference).square().sum() / reference.square().sum()))
            noise[key] = float(np.mean(squares))
        return statistics, noise

    answers = run_ranks(PARTS, work)[0]
    assert {key for key, _ in answers[0][1].items()} == {(layer, way) for layer in (0, 1, 2) for way in Direction} - {
        (0, BACKWARD)
    }
    for key, noise in answers[0][1].items():
        rows = [by_key(statistics)[key] for statistics, _ in answers]
        assert len({each.sensitivity for each in rows}) == 1
        variance = sum(float(each.beta.sum()) for each in rows) / 7**2
        energy = sum(float(each.energy.sum()) for each in rows)
        # backward, the gradient is linear in what is rounded; forward, a ReLU's input that changes sides makes a jump, so
        # that the noise falls more slowly than the variance
        most = 1.4 if key[1] is BACKWARD else 3.0
        ratio = noise / (rows[0].sensitivity * variance / energy)
        assert 0.7 < ratio < most, (key, ratio)


@pytest.mark.parametrize("rounding", ["nearest", "rotated"])
def test_other_codecs_are_measured_too(rounding: str, tmp_path: Path) -> None:
    for _, statistics, _ in recorded(tmp_path, config_of(bits=4, rounding=rounding)):
        assert statistics is not None
        assert all(each.sensitivity > 0.0 for each in statistics.exchanges)


def test_ranks_that_send_nothing_and_files_read_back(tmp_path: Path) -> None:
    case = chain_case(4)
    config = run_config(4, model={"layers": 2, "hidden": 8}, method={"name": "adaqp", "bits": 8, "exact": NO_SAVINGS})
    shards = shards_of(case, tmp_path / "shards")

    def work(transport: ThreadTransport) -> RowStatistics:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        table = message_table(config, session.network, shards, transport.rank)
        return record_rows(session, table, transport, 0)

    answers = run_ranks(4, work)[0]
    assert not any(len(each.node) for each in answers[3].exchanges)
    for rank, statistics in enumerate(answers):
        write_rows(tmp_path, rank, statistics)
    read = read_rows(tmp_path)
    assert read is not None
    for rows in read.exchanges:
        ours = [by_key(statistics)[rows.key] for statistics in answers]
        for column in ("sender", "receiver", "node", "beta", "energy"):
            assert getattr(rows, column).tolist() == np.concatenate([getattr(each, column) for each in ours]).tolist()
        assert rows.sensitivity == ours[0].sensitivity


def by_key(statistics: RowStatistics) -> dict[tuple[int, Direction], ExchangeRows]:
    return {rows.key: rows for rows in statistics.exchanges}
