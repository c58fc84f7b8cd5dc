"""Widths at a price, against brute force, HiGHS' bound and the planner's own; shared out among ranks; and renewed in a run."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.graphs import Case, random_case
from tests.support.plans import price_arrays, tables_of, width_arrays
from tests.support.sessions import run_config, shards_of
from tests.support.threads import ThreadTransport, run_ranks

from halocast.errors import MisuseError
from halocast.runtime.bits.assigners import Reassignment
from halocast.runtime.bits.pricing import Hull, Offers, choose_widths
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.quantized import MessageWidths
from halocast.runtime.exchange.transport import LocalTransport
from halocast.runtime.graph.shard import ShardSet
from halocast.runtime.session import RankSession, build_session
from halocast.simulator.planner.widths import Choices, within_bytes
from halocast.traces.operations import Direction
from halocast.traces.plan import effect_name, prices_name, widths_name
from halocast.traces.wire import WIDTHS, record_bytes

NO_SAVINGS = dict.fromkeys(
    ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features"), False
)
FORWARD = Direction.FORWARD


def noise(bits: int) -> float:
    return 0.0 if bits == 32 else 1.0 / (2.0**bits - 1.0) ** 2


def random_offers(seed: int, sizes: tuple[int, ...], dims: tuple[int, ...] = (64, 602, 33)) -> list[Offers]:
    """An exchange for each size: prices of three peers, and β over orders of magnitude, some of it 0."""
    random = np.random.default_rng(seed)
    offers = []
    for number, size in enumerate(sizes):
        hull = Hull.of(dims[number % len(dims)], one_sided=bool(number % 2))
        beta = random.lognormal(0.0, 2.0, size) * (random.random(size) > 0.1)
        offers.append(Offers(hull, random.choice(random.uniform(0.5, 2.0, 3), size), random.uniform(0.1, 3.0) * beta))
    return offers


def table_of(offers: list[Offers]) -> Choices:
    """The same messages as the planner takes them; cost for bytes."""
    cost, variance = [], []
    for each in offers:
        for price, weight in zip(each.price.tolist(), each.variance.tolist(), strict=True):
            cost.append([price * each.hull.size[bits] for bits in WIDTHS])
            variance.append([weight * noise(bits) for bits in WIDTHS])
    return Choices(WIDTHS, np.array(cost), np.array(variance))


def totals(offers: list[Offers], widths: list[np.ndarray]) -> tuple[float, float]:
    """(cost, variance) message by message."""
    cost = variance = 0.0
    for each, chosen in zip(offers, widths, strict=True):
        for price, weight, bits in zip(each.price, each.variance, chosen.tolist(), strict=True):
            cost += price * each.hull.size[bits]
            variance += weight * noise(bits)
    return cost, variance


def budget_of(table: Choices, share: float) -> float:
    least, most = table.bytes.min(axis=1).sum(), table.bytes.max(axis=1).sum()
    return float(least + share * (most - least))


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 3, 7, 16, 64, 602])
def test_a_hull_has_the_widths_that_are_best_at_some_price(dim: int, one_sided: bool) -> None:
    hull = Hull.of(dim, one_sided=one_sided)
    points = {bits: (record_bytes(bits, dim, one_sided=one_sided), noise(bits)) for bits in WIDTHS}
    for price in np.logspace(-14, 2, 400):
        best = min(WIDTHS, key=lambda bits: (points[bits][1] + price * points[bits][0], points[bits][1]))
        assert best in hull.widths.tolist()
    sizes, left = (np.array([points[bits][axis] for bits in hull.widths.tolist()]) for axis in (0, 1))
    assert (np.diff(sizes) > 0).all()
    assert all(earlier > later for earlier, later in pairwise(-np.diff(left) / np.diff(sizes)))
    np.testing.assert_allclose(np.exp(hull.gain), -np.diff(left) / np.diff(sizes))


@pytest.mark.parametrize("seed", range(8))
def test_brute_force_is_not_better_by_more_than_one_upgrade(seed: int) -> None:
    offers = random_offers(seed, (3, 2))
    table = table_of(offers)
    budget = budget_of(table, np.random.default_rng(seed).uniform(0.02, 0.6))
    cost, variance = totals(offers, choose_widths(offers, budget, LocalTransport()))
    assert cost <= budget * (1 + 1e-12)
    each = np.arange(5)
    best = min(
        float(table.variance[each, picked].sum())
        for picked in map(list, product(range(len(WIDTHS)), repeat=5))
        if table.bytes[each, picked].sum() <= budget
    )
    assert best <= variance <= best + table.upgrades.gain.max()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.9, 1.0])
def test_many_messages_are_as_good_as_the_planners_optimum(seed: int, share: float) -> None:
    offers = random_offers(seed, (400, 0, 700, 300))
    table = table_of(offers)
    budget = budget_of(table, share)
    cost, variance = totals(offers, choose_widths(offers, budget, LocalTransport()))
    found = within_bytes(table, budget)
    assert cost <= budget * (1 + 1e-12)
    # a threshold leaves less than one upgrade of the budget unused
    slack = found.price * table.upgrades.bytes.max(initial=0.0)
    assert found.bound * (1 - 1e-9) <= variance <= found.variance + slack + 1e-15


def test_messages_that_are_all_alike_share_the_budget_out() -> None:
    hull = Hull.of(64, one_sided=False)
    offers = [Offers(hull, np.ones(1000), np.ones(1000))]
    budget = offers[0].cost(np.full(1000, 4, np.uint8)) - 7.0
    (widths,) = choose_widths(offers, budget, LocalTransport())
    assert set(widths.tolist()) == {3, 4}
    assert budget - 8.0 < offers[0].cost(widths) <= budget


def test_rows_without_range_stay_narrow_and_nothing_at_all_is_no_matter() -> None:
    hull = Hull.of(64, one_sided=False)
    flat = Offers(hull, np.ones(5), np.zeros(5))
    assert choose_widths([flat], 1e9, LocalTransport())[0].tolist() == [1] * 5
    mixed = Offers(hull, np.ones(2), np.array([0.0, 1.0]))
    assert choose_widths([mixed], 1e9, LocalTransport())[0].tolist() == [1, 32]
    assert choose_widths([], 1.0, LocalTransport()) == []


@pytest.mark.parametrize("parts", [2, 4])
def test_ranks_choose_as_one_would_for_all(parts: int) -> None:
    offers = random_offers(3, (800, 500))
    budget = budget_of(table_of(offers), 0.1)
    alone = choose_widths(offers, budget, LocalTransport())
    owner = [np.random.default_rng(9).integers(0, parts, len(each.price)) for each in offers]
    owner[1][owner[1] == parts - 1] = 0  # the last rank sends nothing in one exchange

    def work(transport: ThreadTransport) -> list[np.ndarray]:
        own = [
            Offers(each.hull, each.price[ranks == transport.rank], each.variance[ranks == transport.rank])
            for each, ranks in zip(offers, owner, strict=True)
        ]
        return choose_widths(own, budget, transport)

    together = run_ranks(parts, work)[0]
    for number, (widths, ranks) in enumerate(zip(alone, owner, strict=True)):
        for rank in range(parts):
            differing = together[rank][number] != widths[ranks == rank]
            assert differing.sum() <= 1  # the upgrade in which the budget ends


# -- in a run -------------------------------------------------------------------------------------------------------


def priced_file(case: Case, config: RunConfig, folder: Path, **changes: Any) -> tuple[Path, ShardSet]:
    shards = shards_of(case, folder / "shards")
    tables = tables_of(config, shards)
    path = folder / "arrays.npz"
    np.savez(path, **{**width_arrays(tables, (2, 4, 8)), **price_arrays(tables), **changes})
    return path, shards


def config_of(parts: int, bits: int | str = 4, **method: Any) -> RunConfig:
    model = {"layer": "sage", "layers": 3, "hidden": 12, "dropout": 0.3}
    return run_config(parts, model=model, method={"name": "adaqp", "bits": bits, "exact": NO_SAVINGS, **method})


Renewal = tuple[MessageWidths, Reassignment]


def train(config: RunConfig, shards: ShardSet, epochs: int) -> list[tuple[list[float], list[Renewal], RankSession]]:
    """Losses, renewals and session of each rank."""

    def work(transport: ThreadTransport) -> tuple[list[float], list[Renewal], RankSession]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        executor, assigner = session.executor, session.assigner
        assert executor.messages is not None
        assert assigner is not None
        losses, renewals = [], []
        for epoch in range(epochs):
            executor.messages.traces_ranges = assigner.wants_ranges(epoch)
            losses.append(executor.train_epoch(epoch))
            renewed = assigner.next(epoch + 1, executor.messages.widths, executor.messages.ranges)
            if renewed is not None:
                executor.install_widths(renewed[0])
                renewals.append(renewed)
        return losses, renewals, session

    return run_ranks(shards.parts, work)[0]


@pytest.mark.parametrize("parts", [2, 4])
def test_renewals_stay_within_the_plans_cost_agree_on_both_ends_and_repeat(parts: int, tmp_path: Path) -> None:
    case = random_case(parts)
    path, shards = priced_file(case, config_of(parts), tmp_path)
    config = config_of(parts, str(path), reassign_every=2)
    ranks = train(config, shards, 4)
    tables = tables_of(config, shards)
    with np.load(path) as arrays:
        prices = {name: array.astype(np.float64) for name, array in arrays.items() if name.endswith("_prices")}
        planned = {name: array for name, array in arrays.items() if "_rank" in name}

    def cost(widths_of: Any) -> float:
        total = 0.0
        for rank, table in enumerate(tables):
            for shape in table.own:
                widths = widths_of(rank, shape.layer, shape.direction)
                size = [record_bytes(int(bits), shape.dim, one_sided=shape.one_sided) for bits in widths]
                receiver = np.repeat(np.arange(parts), shape.rows_out)
                total += float((prices[prices_name(shape.layer, shape.direction)][rank, receiver] * size).sum())
        return total

    budget = cost(lambda rank, layer, direction: planned[widths_name(layer, direction, rank)])
    for number in range(2):
        renewals = [renewals[number] for _, renewals, _ in ranks]
        spent = cost(lambda rank, layer, direction, now=renewals: now[rank][0].outgoing[layer, direction])
        assert 0.99 * budget < spent <= budget * (1 + 1e-12)
        for _, report in renewals:
            (solution,) = report.solutions
            assert solution["budget"] == pytest.approx(budget)
            assert solution["cost"] == pytest.approx(spent)
            assert solution["variance"] <= solution["variance_before"]
            assert solution == renewals[0][1].solutions[0]
    first = ranks[0][1][0][1]
    assert first.solutions[0]["variance"] < 0.8 * first.solutions[0]["variance_before"]  # the file's were drawn
    assert sum(renewals[0][1].changed for _, renewals, _ in ranks) > 0
    for sender, receiver in product(range(parts), repeat=2):
        for number, shape in enumerate(tables[sender].own):
            key, into = (shape.layer, shape.direction), tables[receiver].own[number]
            sent, received = (ranks[rank][2].executor.messages for rank in (sender, receiver))
            assert sent is not None
            assert received is not None
            start, other = sum(shape.rows_out[:receiver]), sum(into.rows_in[:sender])
            ours = sent.widths.outgoing[key][start : start + shape.rows_out[receiver]]
            assert ours.tolist() == received.widths.incoming[key][other : other + into.rows_in[sender]].tolist()
    again = train(config, shards, 4)
    assert [losses for losses, _, _ in again] == [losses for losses, _, _ in ranks]
    assert all(ours[1][1][0].same_as(theirs[1][1][0]) for ours, theirs in zip(again, ranks, strict=True))


def test_widths_that_are_best_already_stay(tmp_path: Path) -> None:
    """Ranges as they were: what a renewal chose, a renewal keeps, though another threshold could do no better."""
    path, shards = priced_file(random_case(2), config_of(2), tmp_path)
    config = config_of(2, str(path), reassign_every=1)

    def work(transport: ThreadTransport) -> tuple[Renewal, Renewal]:
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        messages, assigner = session.executor.messages, session.assigner
        assert messages is not None
        assert assigner is not None
        messages.traces_ranges = True
        session.executor.train_epoch(0)
        first = assigner.next(1, messages.widths, messages.ranges)
        assert first is not None
        second = assigner.next(2, first[0], messages.ranges)
        assert second is not None
        return first, second

    for (widths, report), (kept, later) in run_ranks(2, work)[0]:
        assert report.changed > 0
        assert later.changed == 0
        assert kept.same_as(widths)
        assert later.solutions[0]["variance"] == pytest.approx(report.solutions[0]["variance"])


@pytest.mark.parametrize(
    ("name", "array", "line"),
    [
        (prices_name(1, FORWARD), np.ones((3, 3), np.float32), r"_prices' is float32 \[3, 3\]; needed is float32 \[2, 2\]"),
        (prices_name(1, FORWARD), np.ones((2, 2), np.int64), r"'layer1_forward_prices' is int64"),
        (prices_name(1, FORWARD), np.zeros((2, 2), np.float32), r"has 0 for a byte from rank 0 to 1; needed is a number above"),
        (effect_name(1, FORWARD), np.ones(2), r"'layer1_forward_effect' is float64 \[2\]; needed is float64 \[\]"),
        (effect_name(1, FORWARD), np.array(-1.0), r"'layer1_forward_effect' is -1; needed is a number from 0 up"),
    ],
)
def test_prices_that_cannot_be_are_one_line(name: str, array: np.ndarray, line: str, tmp_path: Path) -> None:
    path, shards = priced_file(random_case(2), config_of(2), tmp_path, **{name: array})
    with pytest.raises(MisuseError, match=line):
        train(config_of(2, str(path), reassign_every=2), shards, 1)


def test_a_missing_effect_is_named(tmp_path: Path) -> None:
    path, shards = priced_file(random_case(2), config_of(2), tmp_path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name != effect_name(2, FORWARD)}
    np.savez(path, **arrays)
    with pytest.raises(MisuseError, match="array 'layer2_forward_effect' is missing"):
        train(config_of(2, str(path), reassign_every=2), shards, 1)
