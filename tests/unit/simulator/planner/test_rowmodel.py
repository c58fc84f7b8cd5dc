"""What recorded rows say about messages of other partitions."""

import numpy as np
import pytest

from halocast.errors import MisuseError
from halocast.simulator.planner.rowmodel import DEFAULT_EFFECT, RowKey, RowModel, merge_rows, predict_beta, predict_messages
from halocast.traces.operations import Direction
from halocast.traces.rows import ExchangeRows, RowStatistics

NODES = 50
DEGREES = np.where(np.arange(NODES) < 25, 2, 30)


def recorded(ranks=3, count=60, seed=0, sensitivity=0.5):
    random = np.random.default_rng(seed)
    node = random.permutation(np.repeat(np.arange(40), 2))[:count]
    sender = (node % ranks).astype(np.int32)
    receiver = ((sender + 1 + np.arange(count) % (ranks - 1)) % ranks).astype(np.int32)
    beta = (DEGREES[node] * random.uniform(0.9, 1.1, count)).astype(np.float32)
    return ExchangeRows(
        1, Direction.FORWARD, 16, False, sensitivity, sender, receiver, node.astype(np.int64), beta, beta * np.float32(0.5)
    )


def test_messages_that_were_recorded_are_taken_as_they_were():
    rows = recorded()
    found = predict_beta(rows, 3, rows.sender.astype(int), rows.receiver.astype(int), rows.node, DEGREES)
    triples = {}
    for place, key in enumerate(zip(rows.sender, rows.receiver, rows.node, strict=True)):
        triples.setdefault(key, []).append(float(rows.beta[place]))
    for value, key in zip(found, zip(rows.sender, rows.receiver, rows.node, strict=True), strict=True):
        assert any(value == pytest.approx(each) for each in triples[key])


def test_nodes_that_were_never_recorded_are_like_others_of_their_degree():
    rows = recorded()
    node = np.array([45, 49])  # of degree 30, and not among the recorded
    found = predict_beta(rows, 3, np.array([0, 0]), np.array([1, 1]), node, DEGREES)
    assert found == pytest.approx([30.0, 30.0], rel=0.1)
    few = predict_beta(rows, 3, np.array([0]), np.array([1]), np.array([24]), DEGREES)
    assert few == pytest.approx([2.0], rel=0.12)


def test_the_effect_grows_with_what_is_added():
    rows = recorded()
    ends = np.zeros(len(rows.node), dtype=int)
    arguments = {"one_sided": False, "ranks": 4, "sender": ends, "receiver": ends + 3, "degrees": DEGREES}
    whole = predict_messages(rows, (1, Direction.FORWARD), 16, node=rows.node, **arguments)
    assert whole.effect == pytest.approx(0.5 * whole.beta.sum() / rows.energy.sum())
    half = {**arguments, "sender": ends[::2], "receiver": ends[::2] + 3}
    part = predict_messages(rows, (1, Direction.FORWARD), 16, node=rows.node[::2], **half)
    assert part.effect / whole.effect == pytest.approx(part.beta.sum() / whole.beta.sum())


@pytest.mark.parametrize("rows", [None, recorded()], ids=["nothing", "other dim"])
def test_without_a_recorded_exchange_all_messages_are_alike(rows):
    ends = np.zeros(3, dtype=int)
    found = predict_messages(
        rows, (1, Direction.FORWARD), 8, one_sided=False, ranks=2, sender=ends, receiver=ends + 1, node=ends, degrees=DEGREES
    )
    assert (found.beta == 1.0).all()
    assert found.effect == DEFAULT_EFFECT


def test_rows_are_found_by_graph_and_model_savings_and_ranks_nearest():
    rows = {name: RowStatistics(number, (recorded(),)) for number, name in enumerate(("none", "all", "eight"))}
    model = merge_rows(
        [
            (RowKey("g", "gcn 16x8 exact 0000", 4), rows["none"]),
            (RowKey("g", "gcn 16x8 exact 1111", 4), rows["all"]),
            (RowKey("g", "gcn 16x8 exact 1111", 8), rows["eight"]),
        ]
    )
    assert model.find("g", "gcn 16x8 exact 1111", 8) == (rows["eight"], "")
    assert model.find("g", "gcn 16x8 exact 1111", 3)[0] is rows["all"]
    assert model.find("g", "gcn 16x8 exact 0000", 8)[0] is rows["none"]
    assert "never recorded" in model.find("other", "gcn 16x8 exact 1111", 8)[1]
    assert "model" in model.find("g", "gcn 16x32 exact 1111", 8)[1]


def test_rows_survive_their_file(tmp_path):
    model = merge_rows([(RowKey("g", "gcn exact 1111", 4), RowStatistics(7, (recorded(),)))])
    model.save(tmp_path / "costs.rows.npz")
    ((key, rows),) = RowModel.load(tmp_path / "costs.rows.npz").recorded.items()
    assert key == RowKey("g", "gcn exact 1111", 4)
    assert rows.epoch == 7
    assert np.array_equal(rows.exchanges[0].beta, recorded().beta)
    assert rows.exchanges[0].key == (1, Direction.FORWARD)


def test_a_damaged_file_is_one_line_and_a_missing_one_nothing(tmp_path):
    assert RowModel.load(tmp_path / "none.npz").recorded == {}
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(MisuseError, match="damaged"):
        RowModel.load(tmp_path / "bad.npz")
