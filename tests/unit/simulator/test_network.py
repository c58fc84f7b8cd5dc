"""Fluid rates and transfer times against arithmetic; max–min fairness by its definition."""

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from halocast.simulator.network import Fabric, Topology, cluster, max_min_rates, star, testbed

testbed.__test__ = False  # a function of the network, not a test


def transfer(topology: Topology, flows: list[tuple[int, int, float, float]]) -> list[float]:
    """When flows (source, target, bytes, start) end."""
    environment = simpy.Environment()
    fabric = Fabric(environment, topology)
    ends = [0.0] * len(flows)

    def send(number: int, source: int, target: int, size: float, start: float):
        yield environment.timeout(start)
        yield fabric.send(source, target, size)
        ends[number] = environment.now

    for number, flow in enumerate(flows):
        environment.process(send(number, *flow))
    environment.run()
    return ends


def test_one_message_takes_its_bytes_over_the_rate():
    assert transfer(star(2, 100.0), [(0, 1, 500.0, 1.0)]) == [pytest.approx(6.0)]


def test_opposite_ways_do_not_disturb_each_other():
    assert transfer(star(2, 100.0), [(0, 1, 500.0, 0.0), (1, 0, 300.0, 0.0)]) == [pytest.approx(5.0), pytest.approx(3.0)]


def test_two_messages_out_of_one_port_share_it_until_one_ends():
    ends = transfer(star(3, 100.0), [(0, 1, 100.0, 0.0), (0, 2, 300.0, 0.0)])
    assert ends == [pytest.approx(2.0), pytest.approx(4.0)]  # 50 each until 2 s, then 100 for the 200 left


def test_a_late_message_slows_down_one_under_way():
    ends = transfer(star(3, 100.0), [(0, 1, 200.0, 0.0), (0, 2, 100.0, 1.0)])
    assert ends == [pytest.approx(3.0), pytest.approx(3.0)]


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_symmetric_all_to_all_is_the_port_bound(ranks):
    flows = [(a, b, 100.0, 0.0) for a in range(ranks) for b in range(ranks) if a != b]
    assert max(transfer(star(ranks, 100.0), flows)) == pytest.approx(ranks - 1)


def test_a_slow_port_is_what_its_messages_wait_for():
    topology = star(3, 100.0)
    topology.capacity[0] = 10.0  # out of rank 0
    ends = transfer(topology, [(0, 1, 100.0, 0.0), (2, 1, 100.0, 0.0)])
    assert ends == [pytest.approx(10.0), pytest.approx(100.0 / 90.0)]


def test_an_oversubscribed_trunk_bounds_what_leaves_its_switch():
    topology = cluster(
        4, 1, port_rate=100.0, inside_rate=1e6, latency=0.0, latency_inside=0.0, hosts_per_switch=2, oversubscription=4.0
    )
    between = transfer(topology, [(0, 2, 100.0, 0.0), (1, 3, 100.0, 0.0)])
    assert between == [pytest.approx(200.0 / 50.0)] * 2  # a trunk of 2 × 100 / 4
    within = transfer(topology, [(0, 1, 100.0, 0.0)])
    assert within == [pytest.approx(1.0)]


def test_ranks_of_one_host_use_its_inner_links_and_share_its_port():
    topology = cluster(4, 2, port_rate=100.0, inside_rate=1000.0, latency=0.0, latency_inside=0.0)
    assert transfer(topology, [(0, 1, 1000.0, 0.0)]) == [pytest.approx(1.0)]
    assert transfer(topology, [(0, 2, 100.0, 0.0), (1, 3, 100.0, 0.0)]) == [pytest.approx(2.0)] * 2


def test_a_token_bucket_lets_its_content_pass_at_once_and_fills_while_idle():
    topology = star(2, 100.0, burst=50.0)
    ends = transfer(topology, [(0, 1, 150.0, 0.0), (0, 1, 60.0, 1.2), (0, 1, 60.0, 100.0)])
    assert ends[0] == pytest.approx(1.0)  # 50 at once, 100 at the rate
    assert ends[1] == pytest.approx(1.2 + 0.4)  # 20 earned in 0.2 s, 40 at the rate
    assert ends[2] == pytest.approx(100.1)


def test_a_small_message_goes_behind_the_one_before_it_on_its_connection():
    environment = simpy.Environment()
    fabric = Fabric(environment, star(3, 100.0))
    ends = {}
    fabric.send(0, 1, 200.0)
    fabric.send(0, 2, 50.0)  # shares the port until 1.0; then the first goes on twice as fast and ends at 2.5

    def follow(source, target):
        yield environment.timeout(0.5)
        yield fabric.follow(source, target, 10.0)
        ends[source, target] = environment.now

    for pair in ((0, 1), (1, 0)):
        environment.process(follow(*pair))
    environment.run()
    assert ends[0, 1] == pytest.approx(2.5 + 0.1)
    assert ends[1, 0] == pytest.approx(0.5 + 0.1)


def test_what_is_queued_before_a_port_is_not_overtaken():
    environment = simpy.Environment()
    fabric = Fabric(environment, star(3, 100.0))
    ends = {}

    def send(source, target, size, turn):
        yield fabric.send(source, target, size, turn)
        ends[source, target] = environment.now

    for flow in ((0, 1, 200.0, 0), (0, 2, 50.0, 1), (2, 1, 100.0, 1)):
        environment.process(send(*flow))
    environment.run()
    assert ends[0, 1] == pytest.approx(2.0)
    assert ends[0, 2] == pytest.approx(2.5)
    assert ends[2, 1] == pytest.approx(3.0)


def test_the_testbed_has_a_bucket_a_port_and_none_on_the_loopback():
    shaped, loopback = testbed(2, 12.5e6, 1e9), testbed(2, 0.0, 1e9)
    assert shaped.burst.max() == 65_536.0
    assert shaped.capacity[0] == 12.5e6
    assert loopback.burst.max() == 0.0
    assert loopback.capacity[0] == 1e9


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rates_are_max_min_fair(data):
    resources = data.draw(st.integers(1, 6))
    flows = data.draw(st.integers(1, 12))
    capacity = np.array([*data.draw(st.lists(st.floats(1.0, 100.0), min_size=resources, max_size=resources)), np.inf])
    paths = np.array(
        [data.draw(st.lists(st.integers(0, resources - 1), min_size=2, max_size=2, unique=resources > 1)) for _ in range(flows)]
    )
    rates = max_min_rates(paths, capacity)
    used = np.bincount(paths.ravel(), weights=np.repeat(rates, 2), minlength=resources + 1)
    assert (used[:-1] <= capacity[:-1] * (1 + 1e-9)).all()
    for flow in range(flows):  # a flow's bottleneck: a full resource on which no other flow is faster
        bottlenecks = [
            resource
            for resource in paths[flow]
            if used[resource] >= capacity[resource] * (1 - 1e-9)
            and all(rates[other] <= rates[flow] * (1 + 1e-9) for other in range(flows) if resource in paths[other])
        ]
        assert bottlenecks


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(1.0, 1000.0), st.floats(0.0, 5.0)), min_size=1, max_size=8
    )
)
def test_more_bandwidth_is_never_slower(flows):
    flows = [(source, target, size, start) for source, target, size, start in flows if source != target]
    if flows:
        slow, fast = transfer(star(4, 100.0), flows), transfer(star(4, 150.0), flows)
        assert max(fast) <= max(slow) * (1 + 1e-9) + 1e-4
