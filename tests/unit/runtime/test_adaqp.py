"""AdaQP's program on ranks in threads: exact where it must be, quantised in both directions, loud where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import EPOCH, RankAnswer, run_config, shards_of, train_one_epoch
from tests.support.threads import ThreadTransport, run_ranks

from halocast.errors import MisuseError, RunError
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.quantized import MessageWidths
from halocast.runtime.programs.adaqp import AdaQP, exchange_shapes, uniform_bits
from halocast.runtime.programs.full import FullGraph
from halocast.runtime.session import RankSession, build_session
from halocast.traces.buffers import walk
from halocast.traces.operations import Aggregate, Dequantize, Direction, Exchange, Operation, Part, Quantize, Wait
from halocast.traces.wire import WIDTHS, message_bytes

SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
NO_SAVINGS = dict.fromkeys(SAVINGS, False)
ALL_SAVINGS = dict.fromkeys(SAVINGS, True)
HIDDEN = 12


def config_of(
    parts: int,
    *,
    layer: str = "sage",
    exact: dict[str, bool] | None = None,
    training: dict[str, Any] | None = None,
    **method: Any,
) -> RunConfig:
    model = {"layer": layer, "layers": 3, "hidden": HIDDEN, "dropout": 0.3, "norm": "layer"}
    return run_config(parts, model=model, method={"exact": exact or NO_SAVINGS, **method}, training=training or {})


def assert_same(ours: list[RankAnswer], theirs: list[RankAnswer]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.loss == other.loss
        assert mine.gradients.keys() == other.gradients.keys()
        assert all(torch.equal(mine.gradients[name], value) for name, value in other.gradients.items())
        assert torch.equal(mine.logits, other.logits)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("exact", [NO_SAVINGS, {**NO_SAVINGS, "transform_first": True}, ALL_SAVINGS])
@pytest.mark.parametrize("layer", ["gcn", "sage", "tests.support.layers:OpaqueSAGE"])
@pytest.mark.parametrize("make_case", [lambda: random_case(3), lambda: chain_case(4), lambda: random_case(1)])
def test_at_32_bits_it_is_plain_training_bit_for_bit(
    make_case: Callable[[], Case], layer: str, exact: dict[str, bool], overlap: bool, tmp_path: Path
) -> None:
    case = make_case()
    parts = int(case.assignment.max()) + 1
    answers = [
        train_one_epoch(case, config_of(parts, layer=layer, exact=exact, overlap=overlap, **method), tmp_path / method["name"])[
            0
        ]
        for method in ({"name": "full"}, {"name": "adaqp", "bits": 32})
    ]
    assert_same(*answers)


@pytest.mark.parametrize("bits", ["uniform:4", "random", "adaptive", 1])
def test_two_runs_are_identical(bits: str | int, tmp_path: Path) -> None:
    config = config_of(3, name="adaqp", bits=bits, training={"epochs": 6}, reassign_every=2)

    def run(folder: Path) -> list[list[float]]:
        return [losses for losses, _ in train_epochs(random_case(3), config, folder, 6)]

    first, second = run(tmp_path / "first"), run(tmp_path / "second")
    assert first == second
    assert all(each == first[0] for each in first)


def train_epochs(
    case: Case, config: RunConfig, folder: Path, epochs: int, after: Callable[[int, RankSession], None] | None = None
) -> list[tuple[list[float], RankSession]]:
    """Losses of some epochs, widths re-assigned as the trainer does it; `after` runs after each epoch, on every rank."""
    shards = shards_of(case, folder)

    def work(transport: ThreadTransport) -> tuple[list[float], RankSession]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        losses = []
        executor, assigner = session.executor, session.assigner
        assert executor.messages is not None
        assert assigner is not None
        for epoch in range(epochs):
            executor.messages.traces_ranges = assigner.wants_ranges(epoch)
            losses.append(executor.train_epoch(epoch))
            assigned = assigner.next(epoch + 1, executor.messages.widths, executor.messages.ranges)
            if assigned is not None:
                executor.install_widths(assigned[0])
            if after is not None:
                after(epoch, session)
        return losses, session

    return run_ranks(shards.parts, work)[0]


def test_eight_bits_are_close_to_exact_and_fewer_bits_less_so(tmp_path: Path) -> None:
    case = random_case(3)

    def gradient(folder: str, **method: Any) -> torch.Tensor:
        # without dropout or norm, and wide: a pre-activation near 0 that changes sides jumps, but is one of many
        config = run_config(3, model={"layers": 3, "hidden": 64, "dropout": 0.0}, method={"exact": NO_SAVINGS, **method})
        answers, _ = train_one_epoch(case, config, tmp_path / folder)
        assert all(answer.loss == answers[0].loss for answer in answers)
        return torch.cat([value.flatten() for value in answers[0].gradients.values()])

    exact = gradient("full", name="full")
    errors = [float((gradient(str(bits), name="adaqp", bits=bits) - exact).norm() / exact.norm()) for bits in (16, 8, 4, 2, 1)]
    assert max(errors[:2]) < 0.03
    assert all(earlier < later for earlier, later in pairwise(errors[1:]))


def test_evaluation_sends_rows_as_they_are(tmp_path: Path) -> None:
    case = random_case(3)

    def logits(**method: Any) -> list[torch.Tensor]:
        shards = shards_of(case, tmp_path / method["name"])

        def work(transport: ThreadTransport) -> torch.Tensor:
            session = build_session(config_of(3, **method), shards, transport, device=torch.device("cpu"))
            return session.executor.evaluate(0).clone()

        return run_ranks(3, work)[0]

    for ours, theirs in zip(logits(name="adaqp", bits=1), logits(name="full"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8, 16, 32, "random"])
@pytest.mark.parametrize("exact", [NO_SAVINGS, {**NO_SAVINGS, "transform_first": True, "labelled_gradients_only": True}])
@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
def test_bytes_equal_the_closed_formula(bits: int | str, exact: dict[str, bool], rounding: str, tmp_path: Path) -> None:
    case = random_case(4)
    config = config_of(4, name="adaqp", bits=bits, exact=exact, rounding=rounding)
    answers, hub = train_one_epoch(case, config, tmp_path / "shards")
    sent = 0
    for answer in answers:
        view, messages = answer.session.view, answer.session.executor.messages
        assert messages is not None
        shapes = {(shape.layer, shape.direction): shape for shape in exchange_shapes(view)}
        for operation in walk(AdaQP().epoch(view)):
            if not isinstance(operation, Exchange):
                continue
            key = (operation.layer, operation.direction)
            shape, widths = shapes[key], messages.widths.outgoing[key]
            start = 0
            for peer, rows in enumerate(shape.rows_out):
                each = widths[start : start + rows]
                start += rows
                histogram = [(int(width), int((each == width).sum())) for width in np.unique(each)]
                if rows:
                    expected = message_bytes(histogram, shape.dim, one_sided=shape.one_sided, rotated=rounding == "rotated")
                    assert {message.peer: message.bytes for message in operation.outgoing}[peer] == expected
                    sent += expected
            assert start == len(widths)
    training = sent + sum(_evaluation_bytes(answer) for answer in answers)
    assert sum(size for _, _, size in hub.sent_bytes) == training + _setup_bytes(answers)
    one_sided = {key: shape.one_sided for key, shape in shapes.items()}
    assert one_sided[1, Direction.FORWARD]
    assert not one_sided[0, Direction.FORWARD]
    assert not any(value for (_, direction), value in one_sided.items() if direction is Direction.BACKWARD)


def _evaluation_bytes(answer: RankAnswer) -> int:
    return sum(each.work.bytes_out for each in walk(AdaQP().evaluation(answer.session.view)) if isinstance(each, Exchange))


def _setup_bytes(answers: list[RankAnswer]) -> int:
    return 0  # no saving is on that sends features, and neither rule sends a word


def test_a_reassignment_changes_nothing_but_widths(tmp_path: Path) -> None:
    """Three epochs at 4 bits, then one at other widths: the same as taking those parameters to a fresh session."""
    case = random_case(3)
    saved: dict[int, tuple[dict[str, torch.Tensor], MessageWidths]] = {}

    def swap(epoch: int, session: RankSession) -> None:
        messages = session.executor.messages
        assert messages is not None
        if epoch == 2:
            rng = np.random.default_rng(session.view.rank)
            widths = agree(messages.widths, session, rng)
            session.executor.install_widths(widths)
            saved[session.view.rank] = (
                {name: value.clone() for name, value in session.network.state_dict().items()},
                widths,
            )

    # plain SGD, so that parameters are all the state there is
    config = config_of(3, name="adaqp", bits=4, training={"optimizer": "sgd", "momentum": 0.0})
    straight = train_epochs(case, config, tmp_path / "straight", 5, swap)
    shards = shards_of(case, tmp_path / "fresh")

    def fresh(transport: ThreadTransport) -> list[float]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        state, widths = saved[transport.rank]
        session.network.load_state_dict(state)
        session.executor.install_widths(widths)
        return [session.executor.train_epoch(epoch) for epoch in (3, 4)]

    for (losses, session), resumed in zip(straight, run_ranks(3, fresh)[0], strict=True):
        assert losses[3:] == resumed
        assert session.executor.messages is not None
        assert session.executor.messages.widths.same_as(saved[session.view.rank][1])


def agree(widths: MessageWidths, session: RankSession, rng: np.random.Generator) -> MessageWidths:
    """New widths that both ends can tell without a word: by the pair of ranks."""
    rank = session.view.rank
    choices = (2, 8, 3, 16, 32, 1, 5, 6, 4)

    def of(sender: int, receiver: int, layer: int) -> int:
        return choices[(5 * sender + 3 * receiver + layer) % len(choices)]

    outgoing, incoming = {}, {}
    for shape in exchange_shapes(session.view):
        key = (shape.layer, shape.direction)
        sent = [np.full(rows, of(rank, peer, shape.layer), np.uint8) for peer, rows in enumerate(shape.rows_out)]
        received = [np.full(rows, of(peer, rank, shape.layer), np.uint8) for peer, rows in enumerate(shape.rows_in)]
        outgoing[key], incoming[key] = np.concatenate(sent), np.concatenate(received)
    assert outgoing.keys() == widths.outgoing.keys()
    return MessageWidths(outgoing, incoming)


def test_an_adaptive_assignment_agrees_on_both_ends_and_follows_the_ranges(tmp_path: Path) -> None:
    config = config_of(4, name="adaqp", bits="adaptive", training={"epochs": 6}, reassign_every=2, adaptive={"group_size": 3})
    sessions = [session for _, session in train_epochs(random_case(4), config, tmp_path, 4)]
    shapes = [{(shape.layer, shape.direction): shape for shape in exchange_shapes(session.view)} for session in sessions]
    seen = set()
    for sender, receiver in product(range(4), repeat=2):
        for key in shapes[0]:
            out, into = shapes[sender][key], shapes[receiver][key]
            sent, received = sessions[sender].executor.messages, sessions[receiver].executor.messages
            assert sent is not None
            assert received is not None
            first, start = sum(out.rows_out[:receiver]), sum(into.rows_in[:sender])
            ours = sent.widths.outgoing[key][first : first + out.rows_out[receiver]]
            theirs = received.widths.incoming[key][start : start + into.rows_in[sender]]
            assert ours.tolist() == theirs.tolist()
            seen |= set(ours.tolist())
    assert seen <= {2, 4, 8}
    assert len(seen) > 1


@pytest.mark.parametrize("layer", ["gcn", "sage"])
def test_measured_links_assign_too(layer: str, tmp_path: Path) -> None:
    adaptive = {"links": "measured", "variance_weight": 0.3}
    config = config_of(3, layer=layer, name="adaqp", reassign_every=1, adaptive=adaptive)
    for losses, session in train_epochs(random_case(3), config, tmp_path, 2):
        assert np.isfinite(losses).all()
        assert session.executor.messages is not None
        assert {width for array in session.executor.messages.widths.outgoing.values() for width in array.tolist()} <= {2, 4, 8}


def test_a_single_rank_needs_no_codec(tmp_path: Path) -> None:
    answers, hub = train_one_epoch(random_case(1), config_of(1, name="adaqp"), tmp_path)
    assert not hub.sent_bytes
    assert answers[0].session.executor.messages is None


# -- the program ----------------------------------------------------------------------------------------------------


def operations_of(tmp_path: Path, **method: Any) -> list[Operation]:
    answers, _ = train_one_epoch(random_case(4), config_of(4, name="adaqp", bits=4, **method), tmp_path)
    return walk(AdaQP().epoch(answers[0].session.view))


def test_both_directions_are_quantised_and_marginal_work_starts_peer_by_peer(tmp_path: Path) -> None:
    operations = operations_of(tmp_path)
    for direction in Direction:
        assert any(isinstance(each, Quantize) and each.direction is direction for each in operations)
        assert any(isinstance(each, Dequantize) and each.direction is direction for each in operations)
    start = next(index for index, each in enumerate(operations) if isinstance(each, Exchange))
    described = [
        (type(each).__name__, getattr(each, "peer", -1), str(getattr(each, "columns", "")), str(each.part))
        for each in operations[start + 1 :]
        if isinstance(each, Wait | Dequantize | Aggregate)
    ]
    assert described[:2] == [("Aggregate", -1, "all", "central"), ("Aggregate", -1, "own", "marginal")]
    ring = [
        step
        for peer in (3, 2, 1)
        for step in (("Wait", peer, "", "own"), ("Dequantize", peer, "", "own"), ("Aggregate", peer, "halo", "marginal"))
    ]
    assert described[2:11] == ring


def test_without_overlap_nothing_runs_before_all_messages_are_here(tmp_path: Path) -> None:
    operations = operations_of(tmp_path, overlap=False)
    for start, operation in enumerate(operations):
        if isinstance(operation, Exchange):
            following = operations[start + 1 : start + 1 + 3 * len(operation.incoming)]
            computed = [each for each in following if not isinstance(each, Wait | Dequantize)]
            waits = [index for index, each in enumerate(following) if isinstance(each, Wait)]
            assert len(waits) == len(operation.incoming)
            assert all(index > waits[-1] for index, each in enumerate(following) if each in computed)


def test_work_adds_up_to_the_undivided_aggregation(tmp_path: Path) -> None:
    answers, _ = train_one_epoch(random_case(4), config_of(4, name="full"), tmp_path)
    view = answers[0].session.view
    marginal = [
        each
        for each in walk(FullGraph().epoch(view))
        if isinstance(each, Aggregate) and each.part is Part.MARGINAL and each.layer == 1
    ]
    assert sum(each.work.nnz for each in marginal) == view.part.nnz(Part.MARGINAL)
    assert [each.peer for each in marginal] == [-1, 3, 2, 1]


def test_a_view_without_widths_is_refused_and_uniform_ones_can_be_made_up(tmp_path: Path) -> None:
    answers, _ = train_one_epoch(random_case(2), config_of(2, name="adaqp", bits=4), tmp_path)
    view = answers[0].session.view
    assert uniform_bits(view, 4) == view.bits


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_corrupt_message_names_peer_layer_and_direction(tmp_path: Path) -> None:
    shards = shards_of(random_case(2), tmp_path)
    config = config_of(2, name="adaqp", bits=4)

    def work(transport: ThreadTransport) -> None:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        if transport.rank == 1:
            put = transport.start_exchange

            def tamper(outgoing: Any, incoming: Any) -> Any:
                for _, tensor in outgoing:
                    tensor.view(torch.uint8)[5] ^= 1
                return put(outgoing, incoming)

            transport.start_exchange = tamper  # type: ignore[method-assign]
        session.executor.train_epoch(0)

    with pytest.raises(RunError, match=r"layer 0 forward, epoch 0: the message of rank 1 is broken: "):
        run_ranks(2, work)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38])
def test_a_value_that_cannot_be_sent_names_layer_and_node(value: float, tmp_path: Path) -> None:
    case = random_case(2)
    node = next(int(u) for u, v in case.edges.T if case.assignment[u] != case.assignment[v])
    assert isinstance(case.graph.features, np.ndarray)
    case.graph.features[node, 3] = value
    with pytest.raises(RunError, match=rf"layer 0 forward, epoch {EPOCH}: the row of node {node} cannot be sent"):
        train_one_epoch(case, config_of(2, name="adaqp", bits=4), tmp_path)


def test_widths_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    answers, _ = train_one_epoch(random_case(2), config_of(2, name="adaqp", bits=4), tmp_path / "adaqp")
    executor = answers[0].session.executor
    assert executor.messages is not None
    before = executor.messages.widths
    key = (1, Direction.BACKWARD)
    count = len(before.outgoing[key])

    def with_array(array: np.ndarray) -> MessageWidths:
        return MessageWidths({**before.outgoing, key: array}, before.incoming)

    with pytest.raises(MisuseError, match=rf"widths of layer 1 backward, sent: {count - 1} widths for {count} messages"):
        executor.install_widths(with_array(before.outgoing[key][1:]))
    with pytest.raises(MisuseError, match="width 7 is unknown; allowed: 1, 2, 3, 4, 5, 6, 8, 16, 32"):
        executor.install_widths(with_array(np.full(count, 7, np.uint8)))
    assert executor.messages.widths is before
    full, _ = train_one_epoch(random_case(2), config_of(2, name="full"), tmp_path / "full")
    with pytest.raises(MisuseError, match="method full sends rows as they are"):
        full[0].session.executor.install_widths(before)
    assert 7 not in WIDTHS


def test_a_width_file_is_read_and_its_errors_say_what_is_wrong(tmp_path: Path) -> None:
    case = random_case(3)
    config = config_of(3, name="adaqp", bits=4)
    sessions = [answer.session for answer in train_one_epoch(case, config, tmp_path / "shards")[0]]
    rng = np.random.default_rng(0)
    arrays = {
        f"layer{shape.layer}_{shape.direction}_rank{rank}": rng.choice([1, 2, 4, 8], sum(shape.rows_out)).astype(np.uint8)
        for rank, session in enumerate(sessions)
        for shape in exchange_shapes(session.view)
    }
    path = tmp_path / "widths.npz"
    np.savez(path, **arrays)
    answers, _ = train_one_epoch(case, config_of(3, name="adaqp", bits=str(path)), tmp_path / "again")
    messages = answers[1].session.executor.messages
    assert messages is not None
    assert messages.widths.outgoing[1, Direction.FORWARD].tolist() == arrays["layer1_forward_rank1"].tolist()
    arrays["layer1_forward_rank1"] = arrays["layer1_forward_rank1"][:-1]
    np.savez(path, **arrays)
    with pytest.raises(MisuseError, match="layer1_forward_rank1"):
        train_one_epoch(case, config_of(3, name="adaqp", bits=str(path)), tmp_path / "once_more")
