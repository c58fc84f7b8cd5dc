"""Time sharing: ranks, and the threads that move their messages, take turns on the cores of a host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import simpy


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How a host's cores are shared out."""

    slice_seconds: float = 3e-3
    """How long a job keeps its core while others queue for it."""
    balance_seconds: float = 1e-3
    """How long a core stays idle before it takes a job from another core's queue."""
    shared: float = 0.0
    """A job's extra time, as a share, while all other cores are busy too (shared caches, memory channels)."""


@dataclass(slots=True, eq=False)
class Thread:
    """Something that runs one job at a time; it comes back to the core it last ran on."""

    core: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    thread: Thread
    left: float
    """Seconds alone on a core."""
    done: simpy.Event
    first: float = -1.0
    """When it first got a core."""
    resumed: float = 0.0
    speed: float = 1.0
    turn: int = 0
    """Counts turns, so that an alarm of an earlier one is known to be stale."""


@dataclass(slots=True, eq=False)
class _Core:
    number: int
    running: _Job | None = None
    holder: Thread | None = None
    """Whose slice it is: a thread between two jobs keeps its core, if it goes on at once."""
    slice_start: float = 0.0
    queue: deque[_Job] = field(default_factory=deque)
    slicing: bool = False


class SharedCores:
    """A queue a core, round robin within it. A thread that wakes takes an idle core, or queues where it last ran.

    Processor sharing, the limit of short slices and instant balancing, would let a job of microseconds through at once and
    keep no core idle while another has a queue; a real scheduler does neither, and ranks that are late for it make others wait.
    """

    def __init__(self, environment: simpy.Environment, cores: int, scheduling: Scheduling) -> None:
        self._environment, self._scheduling = environment, scheduling
        self._cores = [_Core(number) for number in range(cores)]
        self._threads = 0

    def thread(self) -> Thread:
        """A new thread; threads start out spread over the cores."""
        self._threads += 1
        return Thread((self._threads - 1) % len(self._cores))

    def run(self, thread: Thread, seconds: float) -> simpy.Event:
        """A job that takes `seconds` alone; the event fires at its end, its value is when the job first got a core."""
        done = self._environment.event()
        if seconds <= 0.0:
            return done.succeed(self._environment.now)
        job = _Job(thread, seconds, done)
        core = self._cores[thread.core]
        if (core.holder is thread and core.running is None) or core.holder is None:
            self._start(core, job)
        else:
            idle = next((each for each in self._cores if each.holder is None), None)
            if idle is not None:
                self._start(idle, job)
            else:
                core.queue.append(job)
                self._slice(core)
        return done

    def _start(self, core: _Core, job: _Job) -> None:
        now = self._environment.now
        if core.holder is not job.thread:
            core.holder, core.slice_start = job.thread, now
        core.running, job.thread.core = job, core.number
        job.resumed = now
        job.first = now if job.first < 0.0 else job.first
        job.turn += 1
        others = sum(each.running is not None for each in self._cores) - 1
        job.speed = 1.0 / (1.0 + self._scheduling.shared * others / max(len(self._cores) - 1, 1))
        turn = job.turn

        def end(_: simpy.Event) -> None:
            if job.turn == turn:
                self._end(core, job)

        self._after(job.left / job.speed, end)
        if core.queue:
            self._slice(core)

    def _end(self, core: _Core, job: _Job) -> None:
        """The thread's next job may follow at this very instant: only then is the core free."""
        job.turn += 1
        core.running = None
        job.done.succeed(job.first)
        self._after(0.0, lambda _: self._release(core, job.thread))

    def _release(self, core: _Core, thread: Thread) -> None:
        if core.running is not None or core.holder is not thread:
            return
        core.holder = None
        if core.queue:
            self._start(core, core.queue.popleft())
        elif any(other.queue for other in self._cores):
            self._after(self._scheduling.balance_seconds, lambda _: self._steal(core))

    def _steal(self, core: _Core) -> None:
        """Take a job from the longest queue, if there still is one and this core is still idle."""
        if core.holder is not None:
            return
        longest = max(self._cores, key=lambda each: len(each.queue))
        if longest.queue:
            self._start(core, longest.queue.popleft())

    def _slice(self, core: _Core) -> None:
        if core.slicing:
            return
        core.slicing = True
        due = core.slice_start + self._scheduling.slice_seconds
        self._after(max(0.0, due - self._environment.now), lambda _: self._rotate(core))
        for other in self._cores:  # a core that was idle before the queue formed looks for work as well
            if other.holder is None:
                self._after(self._scheduling.balance_seconds, partial(self._look_for_work, other))

    def _look_for_work(self, core: _Core, _: simpy.Event) -> None:
        self._steal(core)

    def _rotate(self, core: _Core) -> None:
        """Let the head of the queue take the place of a job that has had its slice."""
        core.slicing = False
        job, now = core.running, self._environment.now
        if job is None or not core.queue:
            return
        if now - core.slice_start < self._scheduling.slice_seconds * (1.0 - 1e-9):
            self._slice(core)
            return
        job.turn += 1
        job.left = max(1e-12, job.left - (now - job.resumed) * job.speed)
        core.queue.append(job)
        core.holder = None
        self._start(core, core.queue.popleft())

    def _after(self, seconds: float, callback: Callable[[simpy.Event], None]) -> None:
        timeout = self._environment.timeout(seconds)
        assert timeout.callbacks is not None
        timeout.callbacks.append(callback)


class OwnCore:
    """A device that a rank has to itself."""

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment

    def thread(self) -> Thread:
        return Thread()

    def run(self, thread: Thread, seconds: float) -> simpy.Event:
        """A job that takes `seconds`; it begins at once."""
        return self._environment.timeout(seconds, self._environment.now)
