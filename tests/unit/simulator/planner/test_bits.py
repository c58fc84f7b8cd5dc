"""Widths against epoch time: as good as linear programming says is possible, and never past what they were given."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from halocast.simulator.network import cluster, star
from halocast.simulator.planner.bits import (
    DurationSolver,
    Messages,
    assignments,
    mean_bits,
    trades,
    uniform_option,
    within_total_bytes,
)
from halocast.simulator.planner.timing import WireTimes
from halocast.traces.operations import Direction
from halocast.traces.wire import HEADER_BYTES, WIDTHS, variance_factor

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def wire(ranks, rate=1e6, *, handling=0.0, topology=None):
    topology = topology or star(ranks, rate)
    source, target = np.divmod(np.arange(ranks * ranks), ranks)
    return WireTimes(topology.paths(source, target), topology.capacity.copy(), np.where(source == target, 0.0, handling))


def messages(count, ranks, *, seed=0, layer=1, direction=FORWARD, dim=32, effect=1.0, spread=1.5):
    random = np.random.default_rng(seed)
    sender = np.sort(random.integers(0, ranks, count))
    receiver = (sender + random.integers(1, ranks, count)) % ranks
    order = np.lexsort((receiver, sender))
    beta = np.exp(random.normal(0.0, spread, count))
    return Messages(layer, direction, dim, False, effect, ranks, sender[order], receiver[order], beta)


def linear_bound(each, network, seconds):
    """The least variance within `seconds` on every resource, fractions of messages allowed: no widths have less."""
    widths = list(WIDTHS)
    size, factor = each.sizes(widths), np.array([variance_factor(bits) for bits in widths])
    count, kinds = len(each.beta), len(widths)
    cost = (each.weight[:, None] * factor[None, :]).ravel()
    crossing = network.paths[each.pair]
    used = [resource for resource in range(len(network.capacity)) if np.isfinite(network.capacity[resource])]
    rows, limits = [], []
    for resource in used:
        mine = (crossing == resource).any(axis=1)
        rows.append((mine[:, None] * size[None, :]).ravel())
        headers = HEADER_BYTES * len(np.unique(each.pair[mine]))
        limits.append(network.capacity[resource] * seconds - headers)
    one_each = sparse.kron(sparse.eye(count), np.ones((1, kinds)))
    result = linprog(cost, A_ub=np.array(rows), b_ub=limits, A_eq=one_each, b_eq=np.ones(count), bounds=(0, 1))
    assert result.status == 0
    return result.fun


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("share", [0.15, 0.4, 0.8])
def test_a_duration_has_nearly_the_least_variance_that_linear_programming_allows(ranks, share):
    each, network = messages(240, ranks), wire(ranks)
    solver = DurationSolver(each, network, WIDTHS)
    least, most = solver.bounds()
    seconds = least + share * (most - least)
    found, _ = solver.solve(seconds)
    assert found.seconds <= seconds * (1 + 1e-6)
    bound = linear_bound(each, network, seconds)
    widest = each.variance(np.full(240, 1, dtype=np.uint8))
    # one message of 240 is a large step: what is left of the room is worth about a width of one message a port
    assert found.variance <= 2.0 * bound + 1e-9 * widest


def test_many_messages_come_close_to_the_bound():
    each, network = messages(3000, 3, seed=4), wire(3)
    solver = DurationSolver(each, network, WIDTHS)
    least, _ = solver.bounds()
    found, _ = solver.solve(3.5 * least)
    widths = each.at_prices(found.prices, WIDTHS)
    bound = linear_bound(each, network, 3.5 * least)
    assert found.variance <= 1.12 * bound
    assert each.variance(widths) <= 1.12 * bound  # message by message, not by bins of them
    assert network.loads(each.sent(widths)).max() <= 3.5 * least * 1.03


def test_what_crosses_a_full_trunk_is_narrower_than_what_does_not():
    topology = cluster(
        4, 1, port_rate=1e7, inside_rate=1e9, latency=0.0, latency_inside=0.0, hosts_per_switch=2, oversubscription=8.0
    )
    each = messages(2000, 4, spread=0.1)
    found, _ = DurationSolver(each, wire(4, topology=topology), WIDTHS).solve(0.02)
    widths = each.at_prices(found.prices, WIDTHS)
    crossing = each.sender // 2 != each.receiver // 2
    assert widths[crossing].mean() + 2 < widths[~crossing].mean()


def test_the_path_trades_time_for_variance_and_beats_uniform_widths():
    exchanges = [messages(4000, 4), messages(2000, 4, seed=1, layer=2), messages(500, 4, seed=2, layer=2, direction=BACKWARD)]
    network = wire(4)
    path = trades(exchanges, network, {})
    seconds, variance = [each.exchange_seconds for each in path], [each.variance for each in path]
    assert seconds == sorted(seconds)
    assert variance == sorted(variance, reverse=True)
    assert variance[-1] == 0.0
    for bits in (2, 4, 8):
        uniform = uniform_option(exchanges, bits)
        time = sum(float(network.loads(each.sent(uniform.widths[each.key])).max()) for each in exchanges)
        as_fast = [each.widths() for each in path if each.exchange_seconds <= time]
        assert min(each.variance for each in as_fast) < 0.7 * uniform.variance


def test_an_exchange_that_hides_in_its_window_is_widened_until_it_fills_it():
    hidden, open_ = messages(1000, 3), messages(1000, 3, seed=1, layer=2)
    network = wire(3)
    _, most = DurationSolver(hidden, network, WIDTHS).bounds()
    fastest = trades([hidden, open_], network, {hidden.key: 0.5 * most})[0].widths()
    assert mean_bits({0: fastest.widths[hidden.key]}) > 10
    assert mean_bits({0: fastest.widths[open_.key]}) < 3
    assert network.loads(hidden.sent(fastest.widths[hidden.key])).max() == pytest.approx(0.5 * most, rel=0.05)


def test_an_exchange_with_more_effect_gets_more_bits():
    weak, strong = messages(1000, 3, effect=0.01), messages(1000, 3, seed=1, layer=2, effect=10.0)
    for trade in trades([weak, strong], wire(3), {})[5:-5]:
        chosen = trade.widths()
        assert mean_bits({0: chosen.widths[strong.key]}) >= mean_bits({0: chosen.widths[weak.key]}) - 0.5
    middle = trades([weak, strong], wire(3), {})[20].widths()
    assert mean_bits({0: middle.widths[strong.key]}) > mean_bits({0: middle.widths[weak.key]}) + 2.0


def test_only_allowed_widths_are_used():
    exchanges = [messages(500, 3)]
    for trade in trades(exchanges, wire(3), {}, allowed=(2, 8)):
        assert set(np.unique(trade.widths().widths[exchanges[0].key])) <= {2, 8}


def test_messages_without_variance_stay_narrowest():
    each = messages(300, 3)
    quiet = Messages(1, FORWARD, 32, False, 1.0, 3, each.sender, each.receiver, np.where(np.arange(300) < 50, 0.0, each.beta))
    for trade in trades([quiet], wire(3), {}):
        assert (trade.widths().widths[quiet.key][:50] == 1).all()


def test_a_byte_budget_is_kept_over_all_exchanges():
    exchanges = [messages(800, 3), messages(800, 3, seed=1, layer=2, effect=5.0)]
    uniform = uniform_option(exchanges, 4)
    budget = sum(float(each.sent(uniform.widths[each.key]).sum()) for each in exchanges)
    found = within_total_bytes(exchanges, budget)
    assert sum(float(each.sent(found.widths[each.key]).sum()) for each in exchanges) <= budget
    assert found.variance < 0.5 * uniform.variance


def test_programs_see_how_many_messages_of_each_pair_have_which_width():
    each = messages(100, 3)
    widths = np.where(each.beta > 1.0, 8, 2).astype(np.uint8)
    bits = assignments([each], {each.key: widths}, 3)
    for rank in range(3):
        for peer in range(3):
            mine = widths[(each.sender == rank) & (each.receiver == peer)]
            expected = tuple(
                (int(value), int(count)) for value, count in zip(*np.unique(mine, return_counts=True), strict=True)
            )
            assert bits[rank].exchanges[each.key].outgoing[peer] == expected
            assert bits[peer].exchanges[each.key].incoming[rank] == expected
