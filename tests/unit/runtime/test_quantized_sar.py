"""Sequential aggregation with quantised messages: exact where it must be, the same bits on a second fetch, few blocks alive."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.graphs import Case, chain_case, random_case
from tests.support.sessions import RankAnswer, largest_relative_error, run_config, shards_of, train_one_epoch
from tests.support.threads import ThreadTransport, run_ranks
from torch import Tensor

from halocast.errors import MisuseError, RunError
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.quantized import MessageWidths
from halocast.runtime.exchange.separate import SeparateMessages
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.adaqp import exchange_shapes, uniform_bits
from halocast.runtime.run import _check_method
from halocast.runtime.session import RankSession, build_session
from halocast.traces.buffers import plan_arena, walk
from halocast.traces.operations import Dequantize, Direction, Exchange, Free, Keep, Operation, Quantize
from halocast.traces.wire import message_bytes

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
NONE = dict.fromkeys(SAVINGS, False)
LABELLED = {**NONE, "labelled_gradients_only": True}
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gcn": ("gcn", {}),
    "sage": ("sage", {}),
    "gat": ("gat", {"heads": 3}),
    "sage-max": ("sage-max", {}),
}
GATED = ("tests.support.messages:Gated", {"mean": True})


def config_of(
    parts: int,
    layer: str = "sage",
    *,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **method: Any,
) -> RunConfig:
    name, options = {**LAYERS, "gated": GATED}[layer]
    shape = {"layer": name, "options": options, "layers": 3, "hidden": 12, "dropout": 0.3, "norm": "layer", **(model or {})}
    return run_config(parts, model=shape, method={"name": "sar", "exact": NONE, **method}, training=training or {})


def epoch_of(session: RankSession) -> list[Operation]:
    return walk(METHODS["sar"].epoch(session.view))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_at_32_bits_it_is_rows_as_they_are_bit_for_bit(
    parts: int, layer: str, prefetch: int, keep: bool, tmp_path: Path
) -> None:
    assert_same_as_plain(random_case(parts), tmp_path, parts, layer, prefetch=prefetch, keep=keep)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("exact", [LABELLED, dict.fromkeys(SAVINGS, True)])
@pytest.mark.parametrize("method", [{}, {"keep": [1]}, {"overlap": False}, {"model": {"norm": "batch"}}])
def test_at_32_bits_savings_and_kept_layers_change_nothing_either(
    method: dict[str, Any], exact: dict[str, bool], layer: str, tmp_path: Path
) -> None:
    assert_same_as_plain(random_case(4), tmp_path, 4, layer, exact=exact, **method)


@pytest.mark.parametrize("layer", LAYERS)
def test_empty_blocks_and_parts_without_training_nodes(layer: str, tmp_path: Path) -> None:
    assert_same_as_plain(chain_case(4), tmp_path, 4, layer, exact=LABELLED)


def assert_same_as_plain(case: Case, folder: Path, parts: int, layer: str, **method: Any) -> None:
    plain, quantised = (
        train_one_epoch(case, config_of(parts, layer, **method, **bits), folder / str(len(bits)))[0]
        for bits in ({}, {"bits": 32})
    )
    for mine, other in zip(quantised, plain, strict=True):
        assert isinstance(mine.session.executor.messages, SeparateMessages) == (parts > 1)
        assert other.session.executor.messages is None
        assert mine.loss == other.loss
        assert all(torch.equal(mine.gradients[name], value) for name, value in other.gradients.items())
        assert torch.equal(mine.logits, other.logits)


@pytest.mark.parametrize("bits", [4, "random"])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_the_same_messages_received_all_at_once(layer: str, bits: int | str, tmp_path: Path) -> None:
    """Sums run in another order, so they differ by rounding errors, and by nothing as large as a step of the codec."""
    case = random_case(4)
    answers = [
        train_one_epoch(case, config_of(4, layer, bits=bits, exact=LABELLED, name=name), tmp_path / name)[0]
        for name in ("sar", "adaqp")
    ]
    for here, there in zip(*answers, strict=True):
        assert here.loss == pytest.approx(there.loss, rel=1e-6)
        assert largest_relative_error(here.gradients, there.gradients) <= 1e-5


@pytest.mark.parametrize("exact", [NONE, LABELLED])
@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
@pytest.mark.parametrize("bits", [2, "random"])
@pytest.mark.parametrize("layer", ["gat", "sage-max", "gated"])
def test_a_block_that_is_fetched_again_is_bit_for_bit_what_it_was(
    layer: str, bits: int | str, rounding: str, exact: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decoded_blocks(monkeypatch)
    case = random_case(4)
    answers, _ = train_one_epoch(case, config_of(4, layer, bits=bits, rounding=rounding, exact=exact), tmp_path)
    assert seen
    shorter = 0
    for (rank, index, peer), blocks in seen.items():
        again_in = fetched_again(answers, rank, index, peer, labelled_only=exact is LABELLED)
        if not again_in:
            assert len(blocks) == 1
            continue
        first, again = blocks
        assert len(again) == again_in
        shorter += len(again) < len(first)
        assert torch.equal(first[: len(again)], again)
    assert bool(shorter) == (exact is LABELLED)


def decoded_blocks(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int, int], list[Tensor]]:
    """By (rank, layer, peer): the rows of each block that is decoded from now on, going forward, in order."""
    seen: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
    unpack = SeparateMessages.unpack_from

    def spy(
        self: SeparateMessages, peer: int, layer: int, way: Direction, epoch: int, wire: Tensor, count: int, rows: Tensor
    ) -> None:
        unpack(self, peer, layer, way, epoch, wire, count, rows)
        if way is FORWARD:
            seen[self._rank, layer, peer].append(rows[:count].clone())

    monkeypatch.setattr(SeparateMessages, "unpack_from", spy)
    return seen


def fetched_again(answers: list[RankAnswer], rank: int, layer: int, peer: int, *, labelled_only: bool) -> int:
    """Rows of a block that the backward pass of a layer needs once more."""
    view = answers[rank].session.view
    spec = view.layers[layer]
    if spec.reduction in ("", "sum") or (layer == 0 and not spec.merge_parameters and not spec.projects):
        return 0  # case 1; or neither messages nor parameters get a gradient: maxima of features
    part, is_last = view.part, layer == len(view.layers) - 1
    return (part.labelled_halo_from if labelled_only and is_last else part.halo_from)[peer]


@pytest.mark.parametrize("layer", ["gcn", "gat", "sage-max", "gated"])
@pytest.mark.parametrize("keep", [False, True, (0, 2)])
@pytest.mark.parametrize("exact", [NONE, LABELLED])
@pytest.mark.parametrize(
    ("bits", "rounding"), [(8, "stochastic"), ("random", "stochastic"), (2, "rotated"), (32, "stochastic")]
)
def test_bytes_equal_the_closed_formula(
    bits: int | str, rounding: str, exact: dict[str, bool], keep: Any, layer: str, tmp_path: Path
) -> None:
    """Case 1: each message once. Case 2: forward ones of layers that are not kept twice, the second time what is needed."""
    config = config_of(4, layer, bits=bits, rounding=rounding, exact=exact, keep=keep)
    answers, hub = train_one_epoch(random_case(4), config, tmp_path)
    expected = planned = evaluated = 0
    for rank, answer in enumerate(answers):
        messages, kept = answer.session.executor.messages, config.method.kept_layers(3)
        assert messages is not None
        for shape in exchange_shapes(answer.session.view):
            widths = messages.widths.outgoing[shape.layer, shape.direction]
            for peer, rows in enumerate(shape.rows_out):
                start, times = sum(shape.rows_out[:peer]), [rows]
                if shape.direction is FORWARD and shape.layer not in kept:
                    times.append(fetched_again(answers, peer, shape.layer, rank, labelled_only=exact is LABELLED))
                for count in filter(None, times):
                    values, counts = np.unique(widths[start : start + count], return_counts=True)
                    histogram = zip(values.tolist(), counts.tolist(), strict=True)
                    rotated = rounding == "rotated"
                    expected += message_bytes(histogram, shape.dim, one_sided=shape.one_sided, rotated=rotated)
        planned += sum(each.work.bytes_out for each in epoch_of(answer.session) if isinstance(each, Exchange))
        evaluation = walk(METHODS["sar"].evaluation(answer.session.view))
        evaluated += sum(each.work.bytes_out for each in evaluation if isinstance(each, Exchange))
    assert planned == expected
    assert sum(size for _, _, size in hub.sent_bytes) == expected + evaluated


@pytest.mark.parametrize(("keep", "most"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("layer", ["sage", "gat"])
def test_one_block_is_decoded_at_a_time_and_nothing_is_left(
    layer: str, prefetch: int, keep: bool, most: int, tmp_path: Path
) -> None:
    answers, _ = train_one_epoch(random_case(4), config_of(4, layer, bits=4, prefetch=prefetch, keep=keep), tmp_path)
    for answer in answers:
        decoded: set[str] = set()
        encoded: set[str] = set()
        largest = 0
        for operation in epoch_of(answer.session):
            if isinstance(operation, Keep) and (operation.is_wire or operation.name.startswith(("block", "gradient_block"))):
                (encoded if operation.is_wire else decoded).add(operation.name)
            elif isinstance(operation, Free):
                decoded.discard(operation.name)
                encoded.discard(operation.name)
            if layer == "sage" or not keep:
                assert len(decoded) <= 1
            pushed = min(prefetch, 1) + 1
            assert len(encoded) <= 2 * (prefetch + 1) + 2 * pushed  # what goes and what comes, of the rounds in flight
            largest = max(largest, len(decoded))
        assert not decoded
        assert not encoded
        if layer == "gat" and keep:
            assert largest == 3 * most  # three peers' in each of three layers


@pytest.mark.parametrize("layer", ["sage", "gat"])
def test_encoded_blocks_take_less_memory_than_rows(layer: str, tmp_path: Path) -> None:
    config = config_of(4, layer, bits=4, prefetch=2, model={"hidden": 48})
    answers, _ = train_one_epoch(random_case(4), config, tmp_path)
    for answer in answers:
        plain = replace(answer.session.view, bits=None)
        assert plan_arena([epoch_of(answer.session)]).peak_bytes < plan_arena([walk(METHODS["sar"].epoch(plain))]).peak_bytes


# -- rounding -------------------------------------------------------------------------------------------------------


PASSES = 300
DEVIATIONS = 6.0


def assert_unbiased(samples: Tensor, exact: Tensor, deviation: Tensor) -> None:
    """samples: [passes, ...]. A mean lies within some standard errors of what it estimates."""
    samples, exact = samples.double(), exact.double()
    assert (samples.std(0) > 0).any()
    error, rounding = samples.mean(0) - exact, 1e-5 * exact.abs().max()
    assert (error.abs() <= DEVIATIONS * deviation.double() / len(samples) ** 0.5 + rounding).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layer", ["sage", "gat"])
def test_blocks_are_unbiased_over_epochs(layer: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = decoded_blocks(monkeypatch)
    shards = shards_of(random_case(2), tmp_path)
    config = config_of(2, layer, bits=bits, keep=True, model={"layers": 2, "dropout": 0.0})

    def work(transport: ThreadTransport) -> None:
        executor = build_session(config, shards, transport, device=torch.device("cpu")).executor
        assert executor.messages is not None
        widths = executor.messages.widths
        executor.install_widths(one_width(widths, dict.fromkeys(widths.outgoing, 32)))
        executor.probe_epoch(0)
        executor.install_widths(widths)
        for epoch in range(PASSES):
            executor.probe_epoch(epoch)

    run_ranks(2, work)
    for (_, index, _), (exact, *passes) in seen.items():
        if index == 0:  # its rows are the same in all epochs
            assert len(passes) == PASSES
            step = 1.02 * (exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)) / (2**bits - 1)  # a bfloat16 of that
            assert_unbiased(torch.stack(passes), exact, step / 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layer", ["sage", "gat"])
def test_gradients_are_unbiased_over_epochs(layer: str, bits: int, tmp_path: Path) -> None:
    """Backward is linear in its messages, so where only those are rounded the mean gradient is the exact one."""
    shards = shards_of(random_case(3), tmp_path)
    config = config_of(3, layer, bits=32, model={"dropout": 0.0})

    def work(transport: ThreadTransport) -> tuple[Tensor, Tensor]:
        executor = build_session(config, shards, transport, device=torch.device("cpu")).executor
        assert executor.messages is not None
        executor.probe_epoch(0)
        exact = executor.buckets.gradient().clone()
        widths = executor.messages.widths
        executor.install_widths(one_width(widths, {key: bits if key[1] is BACKWARD else 32 for key in widths.outgoing}))
        passes = []
        for epoch in range(PASSES):
            executor.probe_epoch(epoch)
            passes.append(executor.buckets.gradient().clone())
        return exact, torch.stack(passes)

    for exact, passes in run_ranks(3, work)[0]:
        assert_unbiased(passes, exact, passes.std(0))


def one_width(widths: MessageWidths, bits: dict[Any, int]) -> MessageWidths:
    return MessageWidths(
        *({key: np.full_like(array, bits[key]) for key, array in way.items()} for way in (widths.outgoing, widths.incoming))
    )


# -- widths ---------------------------------------------------------------------------------------------------------


def losses_of(case: Case, config: RunConfig, folder: Path, epochs: int) -> tuple[list[list[float]], list[MessageWidths]]:
    """By rank: losses of some epochs, widths re-assigned as the trainer does it, and the last widths."""
    shards = shards_of(case, folder)

    def work(transport: ThreadTransport) -> tuple[list[float], MessageWidths]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        executor, assigner, losses = session.executor, session.assigner, []
        assert executor.messages is not None
        assert assigner is not None
        for epoch in range(epochs):
            executor.messages.traces_ranges = assigner.wants_ranges(epoch)
            losses.append(executor.train_epoch(epoch))
            assigned = assigner.next(epoch + 1, executor.messages.widths, executor.messages.ranges)
            if assigned is not None:
                executor.install_widths(assigned[0])
        return losses, executor.messages.widths

    answers = run_ranks(shards.parts, work)[0]
    return [losses for losses, _ in answers], [widths for _, widths in answers]


@pytest.mark.parametrize("bits", ["uniform:4", "random", "adaptive"])
@pytest.mark.parametrize("layer", ["gat", "sage-max"])
def test_runs_that_fetch_again_are_those_that_keep(layer: str, bits: str, tmp_path: Path) -> None:
    """Bit for bit, over re-assignments of widths: a second fetch disturbs no range, and agrees with the first."""
    method = {"bits": bits, "reassign_every": 2, "adaptive": {"group_size": 3}, "exact": LABELLED}
    found = [
        losses_of(random_case(3), config_of(3, layer, keep=keep, training={"epochs": 6}, **method), tmp_path / str(keep), 6)
        for keep in (False, True)
    ]
    assert found[0][0] == found[1][0]
    assert all(mine.same_as(other) for mine, other in zip(found[0][1], found[1][1], strict=True))
    widths = {int(bits) for each in found[0][1] for array in each.outgoing.values() for bits in array}
    assert len(widths) == (1 if bits == "uniform:4" else 3)


def test_a_width_file_serves_both_methods(tmp_path: Path) -> None:
    case = random_case(3)
    sessions = [
        answer.session for answer in train_one_epoch(case, config_of(3, "gat", name="adaqp", bits=4), tmp_path / "first")[0]
    ]
    rng = np.random.default_rng(0)
    arrays = {
        f"layer{shape.layer}_{shape.direction}_rank{rank}": rng.choice([1, 2, 4, 8], sum(shape.rows_out)).astype(np.uint8)
        for rank, session in enumerate(sessions)
        for shape in exchange_shapes(session.view)
    }
    path = str(tmp_path / "widths.npz")
    np.savez(path, **arrays)
    widths = {}
    for name in ("adaqp", "sar"):
        answers, _ = train_one_epoch(case, config_of(3, "gat", name=name, bits=path), tmp_path / name)
        widths[name] = [answer.session.executor.messages.widths for answer in answers]
    assert all(mine.same_as(other) for mine, other in zip(widths["sar"], widths["adaqp"], strict=True))
    assert widths["sar"][1].outgoing[1, FORWARD].tolist() == arrays["layer1_forward_rank1"].tolist()


@pytest.mark.parametrize("exact", [NONE, LABELLED])
def test_uniform_widths_can_be_made_up(exact: dict[str, bool], tmp_path: Path) -> None:
    answers, _ = train_one_epoch(random_case(3), config_of(3, "gat", bits=4, exact=exact), tmp_path)
    for answer in answers:
        assert uniform_bits(answer.session.view, 4) == answer.session.view.bits


def test_energies_are_recorded_message_by_message(tmp_path: Path) -> None:
    """As of all messages at once: what widths are planned from does not depend on the method."""
    found = {}
    for name, layer in product(("sar", "adaqp"), ("gat", "gcn")):
        shards = shards_of(random_case(3), tmp_path / f"{name} {layer}")
        config = config_of(3, layer, name=name, bits=32, model={"dropout": 0.0})

        def work(transport: ThreadTransport, config: RunConfig = config, shards: Any = shards) -> dict[Any, Any]:
            executor = build_session(config, shards, transport, device=torch.device("cpu")).executor
            assert executor.messages is not None
            executor.messages.traces_ranges = executor.messages.traces_energies = True
            executor.probe_epoch(0)
            keys = executor.messages.widths.outgoing
            return {key: (executor.messages.ranges(key), executor.messages.energies(key)) for key in keys}

        found[name, layer] = run_ranks(3, work)[0]
    for layer in ("gat", "gcn"):
        for mine, other in zip(found["sar", layer], found["adaqp", layer], strict=True):
            assert mine.keys() == other.keys()
            for key, arrays in mine.items():
                assert arrays[0].any()
                for array, expected in zip(arrays, other[key], strict=True):
                    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-9)


# -- the program, and what goes wrong ---------------------------------------------------------------------------------


def test_each_part_is_encoded_and_decoded_by_itself_in_both_directions(tmp_path: Path) -> None:
    answers, _ = train_one_epoch(random_case(4), config_of(4, bits=4), tmp_path)
    operations = epoch_of(answers[0].session)
    for direction in Direction:
        encoded = [each.peer for each in operations if isinstance(each, Quantize) and each.direction is direction]
        decoded = [each.peer for each in operations if isinstance(each, Dequantize) and each.direction is direction]
        layers = 3 if direction is FORWARD else 2  # nobody wants the features' gradient
        assert encoded == [1, 2, 3] * layers
        assert decoded == [3, 2, 1] * layers
    assert {each.work.bits for each in operations if isinstance(each, Quantize | Dequantize)} == {4}


def test_evaluation_sends_rows_as_they_are(tmp_path: Path) -> None:
    case = random_case(3)

    def logits(folder: str, **method: Any) -> list[Tensor]:
        shards = shards_of(case, tmp_path / folder)

        def work(transport: ThreadTransport) -> Tensor:
            session = build_session(config_of(3, "gat", **method), shards, transport, device=torch.device("cpu"))
            return session.executor.evaluate(0).clone()

        return run_ranks(3, work)[0]

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits("1", bits=1), logits("plain"), strict=True))


def test_a_corrupt_message_names_peer_layer_and_direction(tmp_path: Path) -> None:
    shards = shards_of(random_case(2), tmp_path)

    def work(transport: ThreadTransport) -> None:
        session = build_session(config_of(2, bits=4), shards, transport, device=torch.device("cpu"))
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


def test_a_value_that_cannot_be_sent_names_layer_and_node(tmp_path: Path) -> None:
    case = random_case(2)
    node = next(int(u) for u, v in case.edges.T if case.assignment[u] != case.assignment[v])
    assert isinstance(case.graph.features, np.ndarray)
    case.graph.features[node, 3] = float("nan")
    with pytest.raises(RunError, match=rf"layer 0 forward, epoch 3: the row of node {node} cannot be sent \(NaN\)"):
        train_one_epoch(case, config_of(2, bits=4), tmp_path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dtype": "float64", "method": {"name": "sar", "bits": 8}}, "method sar sends float32 rows, not float64"),
        ({"method": {"name": "sar", "bits": 8, "dropping": True}}, "method sar drops no messages"),
        ({"method": {"name": "sar"}, "trace": {"rows": True}}, "method sar has none: give it --bits"),
        ({"method": {"name": "full", "bits": 8}}, r"leave method.bits out, or use --method adaqp \(or sar\)"),
        ({"method": {"name": "sar", "bits": "nowhere.npz"}}, "there is no file nowhere.npz"),
        ({"method": {"name": "sar", "bits": 7}}, "7"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        _check_method(run_config(2, **sections))
