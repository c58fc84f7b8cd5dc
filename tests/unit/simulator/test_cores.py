"""Timelines of jobs on shared cores, against arithmetic."""

import pytest
import simpy

from halocast.simulator.cores import OwnCore, Scheduling, SharedCores


def run_jobs(cores: int, jobs: list[tuple[float, float]], **scheduling: float) -> list[tuple[float, float]]:
    """(first on a core, end) of jobs (arrival, seconds), each a thread of its own."""
    environment = simpy.Environment()
    host = SharedCores(environment, cores, Scheduling(**scheduling))
    log: list[tuple[float, float]] = [(0.0, 0.0)] * len(jobs)

    def job(number: int, arrival: float, seconds: float):
        thread = host.thread()
        yield environment.timeout(arrival)
        first = yield host.run(thread, seconds)
        log[number] = (first, environment.now)

    for number, (arrival, seconds) in enumerate(jobs):
        environment.process(job(number, arrival, seconds))
    environment.run()
    return log


def test_a_job_alone_takes_its_time():
    assert run_jobs(2, [(1.0, 0.5)]) == [(1.0, 1.5)]


def test_as_many_jobs_as_cores_do_not_wait():
    assert run_jobs(2, [(0.0, 0.5), (0.0, 0.7)]) == [(0.0, 0.5), (0.0, 0.7)]


def test_two_jobs_on_one_core_take_turns_of_a_slice():
    (first, first_end), (second, second_end) = run_jobs(1, [(0.0, 2.0), (0.0, 2.0)], slice_seconds=1.0)
    assert (first, first_end) == (0.0, pytest.approx(3.0))  # 0–1, 2–3
    assert (second, second_end) == (pytest.approx(1.0), pytest.approx(4.0))  # 1–2, 3–4


def test_a_short_job_waits_for_the_rest_of_a_slice_and_not_for_the_whole_job():
    (_, long_end), (started, short_end) = run_jobs(1, [(0.0, 10.0), (0.25, 0.1)], slice_seconds=1.0)
    assert started == pytest.approx(1.0)
    assert short_end == pytest.approx(1.1)
    assert long_end == pytest.approx(10.1)


def test_all_work_is_done_and_no_sooner_than_the_cores_allow():
    jobs = [(0.0, 0.9), (0.0, 0.8), (0.1, 0.7), (0.2, 0.6), (0.2, 0.5)]
    ends = [end for _, end in run_jobs(2, jobs, slice_seconds=0.05, balance_seconds=0.0)]
    assert max(ends) >= sum(seconds for _, seconds in jobs) / 2
    assert max(ends) == pytest.approx(sum(seconds for _, seconds in jobs) / 2, rel=0.1)


def test_an_idle_core_takes_a_queued_job_only_after_a_while():
    # thread 0 and 2 live on core 0, thread 1 on core 1
    environment = simpy.Environment()
    host = SharedCores(environment, 2, Scheduling(slice_seconds=10.0, balance_seconds=0.3))
    ends = {}

    def job(name: int, thread, seconds: float):
        yield host.run(thread, seconds)
        ends[name] = environment.now

    threads = [host.thread() for _ in range(3)]
    for number, seconds in enumerate((5.0, 1.0, 1.0)):
        environment.process(job(number, threads[number], seconds))
    environment.run()
    assert ends == {0: 5.0, 1: 1.0, 2: pytest.approx(1.0 + 0.3 + 1.0)}


def test_a_thread_that_goes_on_at_once_keeps_its_core():
    environment = simpy.Environment()
    host = SharedCores(environment, 1, Scheduling(slice_seconds=10.0))
    order = []

    def worker(name: str):
        thread = host.thread()
        for step in range(2):
            yield host.run(thread, 1.0)
            order.append((name, step, environment.now))

    environment.process(worker("a"))
    environment.process(worker("b"))
    environment.run()
    assert order == [("a", 0, 1.0), ("a", 1, 2.0), ("b", 0, 3.0), ("b", 1, 4.0)]


def test_busy_neighbours_slow_a_job_down():
    assert run_jobs(2, [(0.0, 1.0), (0.0, 1.0)], shared=0.25)[1] == (0.0, pytest.approx(1.25))


def test_a_device_of_its_own_never_waits():
    environment = simpy.Environment()
    device = OwnCore(environment)
    ends = []

    def job(seconds: float):
        first = yield device.run(device.thread(), seconds)
        ends.append((first, environment.now))

    environment.process(job(1.0))
    environment.process(job(2.0))
    environment.run()
    assert ends == [(0.0, 1.0), (0.0, 2.0)]
