"""Which layers keep their remote blocks, and how many rounds ahead they are fetched: the fastest that fits in memory.

Plain training holds its whole halo. Sequential aggregation holds a block or two of it, and what `kept_layers` leave until
backward; each layer that keeps nothing crosses the network once more. The choice is one function, `choose`, of outcomes that
either a forecast from calibrated costs gives (`forecasting`) or, without any, programs and shards alone (`foreseeing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil

from halocast.errors import MisuseError
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.holdings import holdings
from halocast.runtime.programs.schedule import schedule_layers
from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario, forecast
from halocast.traces.buffers import plan_arena, walk
from halocast.traces.operations import Exchange
from halocast.traces.workload import RankView

PREFETCHES = (1, 0)
"""Rounds in flight while another is computed that are worth trying: one hides a round, more hold more."""
MOST_CHOOSING = 5
"""Layers of which every subset is tried; of more layers, those with the smallest blocks keep theirs first."""
ALLOWANCE = 48e6
"""Bytes of a rank beside its buffers and static arrays where no run was measured: transport, autograd's pieces, trace."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to train whose gradients are plain training's."""

    method: str
    prefetch: int = 1
    kept_layers: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """Short, for people."""
        if self.method != "sar":
            return self.method
        kept = f"layers {'+'.join(map(str, self.kept_layers))} kept" if self.kept_layers else "nothing kept"
        return f"sar {kept} {self.prefetch} ahead"

    def of(self, view: RankView) -> RankView:
        """What its program sees of a rank."""
        return replace(view, prefetch=self.prefetch, kept_layers=self.kept_layers)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate is expected to need and to take."""

    candidate: Candidate
    peak_bytes: tuple[float, ...]
    """By rank: what it may need at most."""
    exchange_bytes: int
    """Of an epoch, all ranks."""
    seconds: float | None = None
    """Of an epoch; None without costs."""

    @property
    def peak(self) -> float:
        """Of the rank that needs most."""
        return max(self.peak_bytes)

    @property
    def slowness(self) -> tuple[float, ...]:
        """Less is faster: seconds; without them bytes exchanged, then rounds that nothing hides (plain training has none)."""
        if self.seconds is not None:
            return (self.seconds, self.peak)
        is_sequential = self.candidate.method == "sar"
        return (self.exchange_bytes, float(is_sequential), float(is_sequential and self.candidate.prefetch == 0), self.peak)


Assess = Callable[[Candidate], Outcome]


def candidates(view: RankView, methods: Sequence[str] = ("full", "sar")) -> list[Candidate]:
    """All that is worth assessing: plain training, and sequential aggregation for each choice of layers that keep blocks."""
    found = [Candidate(method) for method in methods if method != "sar"]
    if "sar" in methods:
        found += [Candidate("sar", ahead, kept) for kept in kept_choices(view) for ahead in PREFETCHES]
    return found


def kept_choices(view: RankView) -> list[tuple[int, ...]]:
    """Which layers may keep their blocks, by how many do: only those that would fetch them a second time have a choice."""
    schedules = schedule_layers(view)
    choosing = [
        index
        for index, (spec, schedule) in enumerate(zip(view.layers, schedules, strict=True))
        if spec.refetches and schedule.sends_forward
    ]
    if len(choosing) <= MOST_CHOOSING:
        return [kept for count in range(len(choosing) + 1) for kept in combinations(choosing, count)]
    smallest = sorted(choosing, key=lambda index: view.layers[index].message_dim)
    return [tuple(sorted(smallest[:count])) for count in range(len(smallest) + 1)]


def choose(outcomes: Iterable[Outcome], limit: float) -> Outcome:
    """The fastest whose every rank stays within `limit` bytes.

    Raises MisuseError saying the least that any needs where none does.
    """
    found = list(outcomes)
    fitting = [each for each in found if each.peak <= limit]
    if not fitting:
        least = min(found, key=lambda each: each.peak)
        raise MisuseError(
            f"no way of training fits in {limit / 1e6:.0f} MB a rank: the one that needs least may need "
            f"{ceil(least.peak / 1e6)} MB ({least.candidate.words}); use more ranks or a larger limit"
        )
    return min(fitting, key=lambda each: each.slowness)


def assess_all(view: RankView, assess: Assess, methods: Sequence[str] = ("full", "sar")) -> list[Outcome]:
    """The outcomes of all candidates; `view`: of any rank."""
    return [assess(each) for each in candidates(view, methods)]


def foreseeing(views: Sequence[RankView], *, allowance: float = ALLOWANCE) -> Assess:
    """Outcomes without costs: buffers as they are placed, static arrays, and an `allowance` of bytes for all else."""

    def assess(candidate: Candidate) -> Outcome:
        method = METHODS[candidate.method]
        peaks, exchanged = [], 0
        for view in map(candidate.of, views):
            epoch = walk(method.epoch(view))
            arena = plan_arena([epoch, walk(method.evaluation(view))]).size
            peaks.append(float(arena + holdings(view, method).total) + allowance)
            exchanged += sum(each.work.bytes_out for each in epoch if isinstance(each, Exchange))
        return Outcome(candidate, tuple(peaks), exchanged)

    return assess


def forecasting(costs: Costs, scenario: Scenario) -> Assess:
    """Outcomes from calibrated costs; memory is the upper bound of its interval, or as foreseen where no peaks were measured.

    Assessing raises UncalibratedError for operations that no calibration run did.
    """
    foreseen = foreseeing(scenario.views())

    def assess(candidate: Candidate) -> Outcome:
        answer, _ = forecast(costs, of_scenario(candidate, scenario))
        peaks = tuple(each * answer.peak_interval[1] for each in answer.peak_bytes) or foreseen(candidate).peak_bytes
        return Outcome(candidate, peaks, answer.exchange_bytes_per_epoch, answer.epoch_seconds.value)

    return assess


def of_scenario(candidate: Candidate, scenario: Scenario) -> Scenario:
    """The scenario trained that way."""
    workload = replace(scenario.workload, prefetch=candidate.prefetch, kept_layers=candidate.kept_layers)
    return replace(scenario, workload=workload, method=candidate.method, bits=(None,) * scenario.ranks)
