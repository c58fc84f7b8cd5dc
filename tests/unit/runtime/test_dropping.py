"""Messages of width 0: drawn fairly and alike on both ends, unbiased, of the documented variance, and refused unasked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.reference import philox_words
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import run_config, shards_of
from tests.support.threads import Hub, ThreadTransport, run_ranks

from halocast.errors import MisuseError, RunError
from halocast.runtime import kernels
from halocast.runtime.bits.rules import array_name
from halocast.runtime.bits.variance import dropping_variance, exact_variance
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.dropping import DroppingPair
from halocast.runtime.exchange.quantized import MessageRows, MessageWidths, QuantizedMessages
from halocast.runtime.programs.adaqp import AdaQP, ExchangeShape, exchange_shapes
from halocast.runtime.session import RankSession, build_session
from halocast.traces.buffers import walk
from halocast.traces.operations import Direction, Exchange
from halocast.traces.wire import DROPPED, WIDTHS, message_bytes

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
CPU = torch.device("cpu")
SEED = 0x9E3779B97F4A7C15
Widths = npt.NDArray[np.uint8]

# -- the draw -------------------------------------------------------------------------------------------------------


def pair_of(messages: int = 90, sender: int = 5, receiver: int = 3) -> tuple[DroppingPair, Widths]:
    """A pair with about 2 of 6 messages at width 0, 2 at the narrowest other, and its widths as they were given."""
    widths = np.random.default_rng(1).choice(np.array([0, 0, 2, 2, 4, 16], np.uint8), messages)
    pair = DroppingPair.of(widths, sender, receiver)
    assert pair is not None
    return pair, widths


def test_an_epoch_drops_as_many_droppable_messages_as_have_width_0() -> None:
    pair, given = pair_of()
    for epoch in range(50):
        drawn = pair.draw(SEED, epoch, 1, 0)
        assert (drawn == DROPPED).sum() == (given == DROPPED).sum() == pair.dropped
        assert (given[drawn == DROPPED] <= 2).all()
        kept = drawn != DROPPED
        assert drawn[kept].tolist() == np.where(given == DROPPED, 2, given)[kept].tolist()
        assert np.bincount(drawn).tolist() == np.bincount(given).tolist()


def test_each_droppable_message_is_dropped_equally_often() -> None:
    pair, given = pair_of()
    draws = 4000
    drops = np.sum([pair.draw(SEED, epoch, 2, 1) == DROPPED for epoch in range(draws)], axis=0)
    droppable = given <= 2
    assert not drops[~droppable].any()
    count, share = droppable.sum(), pair.dropped / droppable.sum()
    assert pair.factors.tolist() == np.where(droppable, np.float32(1 / (1 - share)), 1).tolist()
    # with a fixed number of drops in each draw the sum of squares has count − 1 degrees of freedom, once scaled
    chi_squared = ((drops[droppable] - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (count - 1) / count
    assert abs(chi_squared - (count - 1)) < 4 * np.sqrt(2 * (count - 1))


def test_messages_are_dropped_independently_of_each_other_but_for_their_number() -> None:
    pair, _ = pair_of(30)
    draws = 6000
    dropped = np.stack([pair.draw(SEED, epoch, 2, 1)[pair.droppable] == DROPPED for epoch in range(draws)]).astype(float)
    count = len(pair.droppable)
    correlation = np.corrcoef(dropped.T)[np.triu_indices(count, 1)]
    assert correlation.mean() == pytest.approx(-1.0 / (count - 1), abs=0.002)
    assert np.abs(correlation + 1.0 / (count - 1)).max() < 5.0 / np.sqrt(draws)


@pytest.mark.parametrize(
    "other",
    [
        (SEED + 1, 4, 1, 0, 5, 3), (SEED, 5, 1, 0, 5, 3), (SEED, 4, 2, 0, 5, 3), (SEED, 4, 1, 1, 5, 3), (SEED, 4, 1, 0, 3, 5),
        (SEED, 4, 1, 0, 5, 2), (SEED, 4, 1, 0, 6, 3),
    ],
    ids=["seed", "epoch", "layer", "direction", "the way back", "receiver", "sender"],
)  # fmt: skip
def test_every_argument_gives_another_draw(other: tuple[int, int, int, int, int, int]) -> None:
    pair, given = pair_of(6000)
    *arguments, sender, receiver = other
    again = pair_of(6000, sender, receiver)[0].draw(*arguments)
    droppable = given <= 2
    both = ((pair.draw(SEED, 4, 1, 0) == DROPPED) & (again == DROPPED))[droppable].mean()
    assert both == pytest.approx((pair.dropped / droppable.sum()) ** 2, abs=0.025)


def test_those_with_the_smallest_documented_words_are_dropped() -> None:
    pair, given = pair_of(200)
    words = philox_words(SEED, 7, 5, np.array([5 << 20 | 3]), len(pair.droppable), purpose=4)[0]
    expected = given.copy()
    expected[given == DROPPED] = 2
    expected[np.flatnonzero(given <= 2)[np.argsort(words, kind="stable")[: pair.dropped]]] = DROPPED
    assert pair.draw(SEED, 7, 5, 0).tolist() == expected.tolist()


def test_without_width_0_there_is_nothing_to_draw() -> None:
    assert DroppingPair.of(np.array([2, 4], np.uint8), 0, 1) is None


# -- what arrives ---------------------------------------------------------------------------------------------------


def config_of(parts: int, *, dropping: bool = True, training: dict[str, Any] | None = None, **method: Any) -> RunConfig:
    exact = dict.fromkeys(SAVINGS, False)
    model = {"layer": "sage", "layers": 3, "hidden": 12, "dropout": 0.3, "norm": "layer"}
    method = {"name": "adaqp", "bits": 4, "exact": exact, "dropping": dropping, **method}
    return run_config(parts, model=model, method=method, training=training or {})


def sessions_of(case: Case, config: RunConfig, folder: Path) -> list[RankSession]:
    shards = shards_of(case, folder)

    def work(transport: ThreadTransport) -> RankSession:
        return build_session(config, shards, transport, device=CPU)

    return run_ranks(shards.parts, work)[0]


def messages_of(session: RankSession) -> QuantizedMessages:
    assert session.executor.messages is not None
    return session.executor.messages


def drawn_widths(sender: int, receiver: int, shape: ExchangeShape, count: int, choices: tuple[int, ...]) -> Widths:
    """Any of the choices, the first message's above 0; both ends make the same."""
    key = (sender, receiver, shape.layer, int(shape.direction is FORWARD))
    widths = np.random.default_rng(key).choice(np.array(choices, np.uint8), count)
    widths[:1] = max(choices)
    return widths


def mixed(session: RankSession, choices: tuple[int, ...] = (0, 0, 2, 4, 8)) -> MessageWidths:
    """Widths of what a rank sends and receives, some of them 0, as the other ranks have them too."""
    rank = session.view.rank
    outgoing, incoming = {}, {}
    for shape in exchange_shapes(session.view):
        key = (shape.layer, shape.direction)
        sent = [drawn_widths(rank, peer, shape, count, choices) for peer, count in enumerate(shape.rows_out)]
        received = [drawn_widths(peer, rank, shape, count, choices) for peer, count in enumerate(shape.rows_in)]
        outgoing[key], incoming[key] = np.concatenate(sent), np.concatenate(received)
    return MessageWidths(outgoing, incoming)


def write_widths(path: Path, sessions: list[RankSession], choices: tuple[int, ...] = (0, 0, 2, 4, 8)) -> Path:
    """The file of those widths."""
    np.savez(
        path,
        **{  # type: ignore[arg-type]
            array_name(*key, session.view.rank): widths
            for session in sessions
            for key, widths in mixed(session, choices).outgoing.items()
        },
    )
    return path


class Line:
    """Everything that rank 0 sends rank 1 in one exchange, over and over."""

    def __init__(self, folder: Path, layer: int, direction: Direction, nodes: int = 150) -> None:
        sessions = sessions_of(random_case(2, nodes=nodes), config_of(2), folder)
        for session in sessions:
            session.executor.install_widths(mixed(session))
        self.layer, self.direction = layer, direction
        self.sender, self.receiver = (messages_of(session) for session in sessions)
        shapes = [
            next(s for s in exchange_shapes(each.view) if (s.layer, s.direction) == (layer, direction)) for each in sessions
        ]
        self.shape = shapes[0]
        sent, received = (
            MessageRows.of(shape, each.view.part, each.executor.data.boundary.numpy())
            for shape, each in zip(shapes, sessions, strict=True)
        )
        self.sent, self.received = sent.outgoing, received.incoming
        given = self.sender.widths.outgoing[layer, direction]
        self.droppable = given <= 2
        self.dropped = int((given == DROPPED).sum())
        self.widths = np.where(given == DROPPED, 2, given).astype(np.uint8)
        total = [each.view.part.own + each.view.part.halo for each in sessions]
        rows = np.random.default_rng(3).standard_normal((total[0], self.shape.dim)).astype(np.float32)
        self.rows = torch.from_numpy(np.maximum(rows, 0) if self.shape.one_sided else rows)
        self._there = torch.full((total[1], self.shape.dim), 0.0 if direction is BACKWARD else torch.nan)
        histogram = Counter(given.tolist()).items()
        size = message_bytes(histogram, self.shape.dim, one_sided=self.shape.one_sided)
        self._wire = torch.zeros(size, dtype=torch.uint8)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """What should arrive, [messages, dim]."""
        return self.rows[self.sent].double().numpy()

    @property
    def keep_probability(self) -> npt.NDArray[np.float64]:
        share = self.dropped / self.droppable.sum()
        return np.where(self.droppable, 1.0 - share, 1.0)

    def carry(self, epoch: int, wire: torch.Tensor | None = None) -> npt.NDArray[np.float64]:
        """What arrives in an epoch, [messages, dim]."""
        wire = self._wire if wire is None else wire
        self.sender.pack(self.layer, self.direction, epoch, self.rows, wire)
        there = self._there.clone()
        self.receiver.unpack(self.layer, self.direction, epoch, 0, wire, there)
        return there[self.received].double().numpy()


EXCHANGES = [(1, FORWARD), (1, BACKWARD), (0, FORWARD), (2, BACKWARD)]


@pytest.mark.parametrize(("layer", "direction"), EXCHANGES)
def test_sums_are_unbiased_and_of_the_documented_variance(layer: int, direction: Direction, tmp_path: Path) -> None:
    line, draws = Line(tmp_path, layer, direction), 900
    arrived = np.stack([line.carry(epoch) for epoch in range(draws)])
    values = line.values
    rounding = exact_variance(values.astype(np.float32), line.widths, one_sided=line.shape.one_sided)
    energies = (values**2).sum(axis=1)
    kept = int(line.droppable.sum()) - line.dropped
    expected = np.where(line.droppable, dropping_variance(rounding, energies, kept, line.dropped), rounding)

    measured = arrived.var(axis=0, ddof=1).sum(axis=1)
    for part in (line.droppable, ~line.droppable):
        assert measured[part].sum() == pytest.approx(expected[part].sum(), rel=0.03)
    some = energies > 0.5 * energies.mean()
    np.testing.assert_allclose(measured[line.droppable & some], expected[line.droppable & some], rtol=0.25)
    # errors of the mean are as large as the variance says, within four standard deviations, as if a row's values erred
    # together: a bias of 4 % of a standard deviation would show
    error = ((arrived.mean(axis=0) - values) ** 2).sum(axis=1)
    for part in (line.droppable, ~line.droppable):
        assert error[part].sum() < (expected[part].sum() + 4 * np.sqrt(2 * (expected[part] ** 2).sum())) / draws

    # what a receiver sums up with coefficients: the messages are independent but for the fixed number of drops
    coefficients = np.random.default_rng(1).uniform(0.2, 1.0, len(values))
    sums = (coefficients[None, :, None] * arrived).sum(axis=1)
    weighted = coefficients[:, None] * values
    odds, count = line.dropped / kept, kept + line.dropped
    together = weighted[line.droppable].sum(axis=0)
    covariance = -odds / (count - 1) * ((together**2).sum() - (weighted[line.droppable] ** 2).sum())
    variance = np.where(
        line.droppable,
        dropping_variance(rounding, energies, kept, line.dropped, coefficients),
        coefficients**2 * rounding,
    ).sum()
    assert sums.var(axis=0, ddof=1).sum() == pytest.approx(variance + covariance, rel=0.1)
    assert ((sums.mean(axis=0) - weighted.sum(axis=0)) ** 2).sum() < 2.5 * (variance + covariance) / draws


@pytest.mark.parametrize(("layer", "direction"), EXCHANGES)
def test_a_dropped_row_is_zero_and_a_kept_one_has_its_sign(layer: int, direction: Direction, tmp_path: Path) -> None:
    line = Line(tmp_path, layer, direction)
    for epoch in range(20):
        arrived = line.carry(epoch)
        empty = ~arrived.any(axis=1)
        assert (empty & line.droppable).sum() >= line.dropped
        assert not (empty & ~line.droppable & (np.abs(line.values).max(axis=1) > 0)).any()
        assert np.isfinite(arrived).all()
        if line.shape.one_sided:
            assert (arrived >= 0).all()


def test_what_is_scaled_is_one_over_the_share_that_is_kept(tmp_path: Path) -> None:
    """At 32 bits nothing is rounded: values arrive as they are, as 0, or times the inverse of the share."""
    line = Line(tmp_path, 1, BACKWARD)
    choices = (0, 32)
    for rank, messages in enumerate((line.sender, line.receiver)):
        shapes = {(shape.layer, shape.direction): shape for shape in messages.shapes}
        messages.install(
            MessageWidths(
                {key: drawn_widths(rank, 1 - rank, shape, sum(shape.rows_out), choices) for key, shape in shapes.items()},
                {key: drawn_widths(1 - rank, rank, shape, sum(shape.rows_in), choices) for key, shape in shapes.items()},
            )
        )
    given = line.sender.widths.outgoing[1, BACKWARD]
    factor = np.float32(len(given) / (given != DROPPED).sum())
    wire = torch.zeros(40_000, dtype=torch.uint8)
    arrived = line.carry(3, wire)
    kept = arrived.any(axis=1)
    assert kept.sum() == (given != DROPPED).sum()
    assert (arrived[kept] == (line.values.astype(np.float32) * factor)[kept]).all()


def test_other_devices_kernels_drop_and_decode_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, run here."""
    lines = [Line(tmp_path / str(layer), layer, direction, nodes=60) for layer, direction in EXCHANGES]
    native = [[line.carry(epoch) for epoch in (0, 9)] for line in lines]
    monkeypatch.setattr(kernels, "is_native", lambda tensor: False)
    for line, expected in zip(lines, native, strict=True):
        for epoch, rows in zip((1, 0, 9), (None, *expected), strict=True):  # epoch 1: so that 0 is drawn again
            assert rows is None or np.array_equal(line.carry(epoch), rows)
            line.carry(epoch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_gpu_drops_and_decodes_alike(tmp_path: Path) -> None:
    case, config = random_case(3), config_of(3, training={"epochs": 3})
    path = write_widths(tmp_path / "widths.npz", sessions_of(case, config, tmp_path / "shards"))
    config = config_of(3, bits=str(path))
    here, there = (train(case, config, tmp_path / name, 3, device=name)[0] for name in ("cpu", "cuda"))
    assert [losses for losses, _ in there] == [pytest.approx(losses, rel=1e-4) for losses, _ in here]


def test_ranges_are_recorded_of_all_rows_dropped_or_not(tmp_path: Path) -> None:
    for layer, direction in EXCHANGES[:2]:
        line = Line(tmp_path / str(direction), layer, direction)
        line.sender.traces_ranges = True
        line.carry(2)
        values = line.values.astype(np.float32)
        expected = values.max(axis=1) - (0 if line.shape.one_sided else values.min(axis=1))
        assert line.sender.ranges((layer, direction)).tolist() == expected.tolist()


def test_ends_that_are_in_different_epochs_find_out(tmp_path: Path) -> None:
    line = Line(tmp_path, 1, FORWARD)
    wire = torch.zeros_like(line._wire)
    line.sender.pack(1, FORWARD, 4, line.rows, wire)
    wire[8] = 5  # the epoch that its header claims
    with pytest.raises(RunError, match="the message of rank 0 is broken: the widths of the rows differ"):
        line.receiver.unpack(1, FORWARD, 5, 0, wire, line._there.clone())


def test_a_row_that_cannot_be_sent_names_its_node(tmp_path: Path) -> None:
    line = Line(tmp_path, 1, FORWARD)
    line.carry(0)
    message = int(np.flatnonzero(~line.droppable)[3])
    line.rows[line.sent[message], 2] = torch.nan
    node = int(line.sender._channels[1, FORWARD].sent_nodes[message])
    with pytest.raises(RunError, match=rf"layer 1 forward, epoch 1: the row of node {node} cannot be sent \(NaN\)"):
        line.carry(1)


# -- runs -----------------------------------------------------------------------------------------------------------


def train(
    case: Case,
    config: RunConfig,
    folder: Path,
    epochs: int,
    *,
    first: int = 0,
    device: str = "cpu",
    before: Callable[[RankSession], None] = lambda session: None,
) -> tuple[list[tuple[list[float], RankSession]], Hub]:
    """Losses of some epochs, and the session; by rank."""
    shards = shards_of(case, folder)

    def work(transport: ThreadTransport) -> tuple[list[float], RankSession]:
        session = build_session(config, shards, transport, device=torch.device(device))
        before(session)
        return [session.executor.train_epoch(epoch) for epoch in range(first, first + epochs)], session

    return run_ranks(shards.parts, work)


@pytest.mark.parametrize("make_case", [lambda: random_case(2), lambda: random_case(4), lambda: chain_case(4)])
@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
def test_bytes_equal_the_closed_formula_in_every_epoch(make_case: Callable[[], Case], rounding: str, tmp_path: Path) -> None:
    case = make_case()
    parts = int(case.assignment.max()) + 1
    sessions = sessions_of(case, config_of(parts, rounding=rounding), tmp_path / "shards")
    path = write_widths(tmp_path / "widths.npz", sessions)
    ranks, hub = train(case, config_of(parts, bits=str(path), rounding=rounding), tmp_path / "again", 3)
    expected: list[tuple[int, int, int]] = []
    for losses, session in ranks:
        assert np.isfinite(losses).all()
        messages = messages_of(session)
        shapes = {(shape.layer, shape.direction): shape for shape in exchange_shapes(session.view)}
        for operation in walk(AdaQP().epoch(session.view)):
            if not isinstance(operation, Exchange):
                continue
            shape = shapes[operation.layer, operation.direction]
            widths = np.split(
                messages.widths.outgoing[operation.layer, operation.direction], np.cumsum(shape.rows_out)[:-1].astype(int)
            )
            assert {message.peer for message in operation.outgoing} == {p for p, rows in enumerate(shape.rows_out) if rows}
            for message in operation.outgoing:
                each = widths[message.peer]
                records = [int((each == bits).sum()) for bits in WIDTHS]  # a dropped message is none
                size = message_bytes(
                    zip(WIDTHS, records, strict=True), shape.dim, one_sided=shape.one_sided, rotated=rounding == "rotated"
                )
                assert message.bytes == size
                assert message.rows == len(each)
                assert (DROPPED in dict(message.bit_histogram)) == bool((each == DROPPED).any())
                expected += [(session.view.rank, message.peer, size)] * 3
    assert sorted(hub.sent_bytes) == sorted(expected)
    assert any((widths == DROPPED).any() for _, session in ranks for widths in messages_of(session).widths.outgoing.values())


def test_two_runs_are_identical_and_an_epoch_depends_on_nothing_before_it(tmp_path: Path) -> None:
    case = random_case(3)
    sgd = {"optimizer": "sgd", "momentum": 0.0}  # parameters are all the state there is
    path = write_widths(tmp_path / "widths.npz", sessions_of(case, config_of(3), tmp_path / "shards"))
    config = config_of(3, bits=str(path), training=sgd)
    first, second = (train(case, config, tmp_path / name, 6)[0] for name in ("first", "second"))
    assert [losses for losses, _ in first] == [losses for losses, _ in second]
    assert all(losses == first[0][0] for losses, _ in first)
    half = train(case, config, tmp_path / "half", 3)[0]

    def take_over(session: RankSession) -> None:
        session.network.load_state_dict(half[session.view.rank][1].network.state_dict())

    rest = train(case, config, tmp_path / "rest", 3, first=3, before=take_over)[0]
    assert [losses for losses, _ in rest] == [losses[3:] for losses, _ in first]


def test_without_zeros_the_switch_changes_nothing(tmp_path: Path) -> None:
    case = random_case(3)
    path = write_widths(tmp_path / "widths.npz", sessions_of(case, config_of(3), tmp_path / "shards"), (1, 2, 4, 8))
    runs = [
        train(case, config_of(3, bits=str(path), dropping=dropping), tmp_path / str(dropping), 3) for dropping in (False, True)
    ]
    assert sorted(runs[0][1].sent_bytes) == sorted(runs[1][1].sent_bytes)
    for (losses, session), (same_losses, same) in zip(runs[0][0], runs[1][0], strict=True):
        assert losses == same_losses
        for name, value in session.network.state_dict().items():
            assert torch.equal(value, same.network.state_dict()[name])


def test_widths_with_and_without_zeros_follow_each_other(tmp_path: Path) -> None:
    """Dropping leaves nothing behind: after it, a run at 4 bits is the same as one that never dropped, and the other way."""
    case = random_case(3)

    def losses(install: list[tuple[int, ...]], name: str) -> list[float]:
        shards = shards_of(case, tmp_path / name)

        def work(transport: ThreadTransport) -> list[float]:
            session = build_session(config_of(3, training={"learning_rate": 1e-30}), shards, transport, device=CPU)
            found = []
            for epoch, choices in enumerate(install):
                session.executor.install_widths(mixed(session, choices))
                found.append(session.executor.train_epoch(epoch))
            return found

        return run_ranks(3, work)[0][0]

    zeros, plain = (0, 0, 2, 8), (2, 4)
    turns = losses([zeros, plain, zeros, plain], "turns")
    assert turns[1::2] == losses([plain] * 4, "plain")[1::2]
    assert turns[::2] == losses([zeros] * 4, "zeros")[::2]
    assert turns != losses([plain] * 4, "again")


# -- what is refused ------------------------------------------------------------------------------------------------


def test_width_0_is_refused_without_the_switch(tmp_path: Path) -> None:
    case = random_case(3)
    path = write_widths(tmp_path / "widths.npz", sessions_of(case, config_of(3), tmp_path / "shards"))
    with pytest.raises(MisuseError, match=r"gives message \d+ 0 bits; set method.dropping = true"):
        sessions_of(case, config_of(3, bits=str(path), dropping=False), tmp_path / "again")
    session = sessions_of(case, config_of(3, dropping=False), tmp_path / "once_more")[0]
    with pytest.raises(MisuseError, match=r"width 0 drops messages; set method.dropping = true"):
        session.executor.install_widths(mixed(session))


def test_a_pair_that_would_drop_everything_is_refused(tmp_path: Path) -> None:
    session = sessions_of(random_case(3), config_of(3), tmp_path)[1]
    messages, before = messages_of(session), messages_of(session).widths
    shape = next(each for each in exchange_shapes(session.view) if (each.layer, each.direction) == (1, FORWARD))
    for way, rows, word in (("sent", shape.rows_out, "to"), ("received", shape.rows_in, "of")):
        widths = mixed(session)
        arrays = widths.outgoing if way == "sent" else widths.incoming
        arrays[1, FORWARD][rows[0] + rows[1] :] = 0
        line = rf"widths of layer 1 forward, {way}: all {rows[2]} messages {word} rank 2 have width 0, and none is left"
        with pytest.raises(MisuseError, match=line):
            session.executor.install_widths(widths)
    assert messages.widths is before


def test_variance_needs_someone_who_is_kept() -> None:
    with pytest.raises(MisuseError, match="at least one must be kept"):
        dropping_variance([1.0], [1.0], 0, 3)
    assert dropping_variance([3.0], [5.0], 7, 0).tolist() == [3.0]
    assert dropping_variance([3.0], [5.0], 1, 3, [2.0]).tolist() == [4 * (4 * 3.0 + 3 * 5.0)]
