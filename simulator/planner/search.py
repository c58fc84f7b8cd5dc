"""Which partition, savings, method and widths: every candidate is forecast, none is trained.

In order: partitions are ranked by the forecast of their epoch at one width; the lossless savings are tried one by one on the
best; widths are traded against time on the best one or two; where memory binds, sequential aggregation is forecast with each
choice of layers that keep their remote blocks; what is left is a Pareto front, and one of it is recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from halocast.errors import MisuseError
from halocast.simulator.costs import Costs, UncalibratedError
from halocast.simulator.engine import RankWork, Simulation
from halocast.simulator.forecast import Forecast, Scenario, assign_uniform, forecast, machine_of, price_programs
from halocast.simulator.lockstep import run
from halocast.simulator.planner.bits import (
    Messages,
    Trade,
    WidthOption,
    assignments,
    trades,
    uniform_option,
    within_total_bytes,
)
from halocast.simulator.planner.rematerialisation import Candidate, candidates, of_scenario
from halocast.simulator.planner.risk import DEFAULT_POINTS, RiskCurve
from halocast.simulator.planner.timing import windows, wire_times, without_network
from halocast.traces.wire import WIDTHS
from halocast.traces.workload import ExactSavings

FIRST_BITS = 4
"""Width at which partitions and savings are compared."""
TRIED_TRADES = 5
"""Points of the path from the fastest to the widest widths that are simulated; more where a budget lies between two."""
NEAR = 0.02
"""Widths are traded on a second partition too where its epoch is no longer than the best one's by more than this share."""
AS_FAST = 0.01
"""Epochs that differ by less than this share count as equally long: the one with less variance is better."""
PAYS = 0.005
"""Of the epoch: what a saving must be worth to be called one."""
BETTER = 0.05
"""Of the epoch."""
SAVINGS = {
    "aggregate_features_once": "aggregating the features once",
    "transform_first": "transforming first where it narrows",
    "labelled_gradients_only": "sending last-layer gradients of labelled rows only",
    "keep_halo_features": "keeping the halo's aggregated features",
}


class Partitioned(Protocol):
    """A partition that could be trained on."""

    @property
    def name(self) -> str: ...

    @property
    def ranks(self) -> int: ...

    def scenario(self, method: str, exact: ExactSavings) -> Scenario:
        """Of that method on it; widths are filled in here."""

    def messages(self, scenario: Scenario) -> tuple[list[Messages], list[str]]:
        """All exchanges' messages that may be given widths, and what about them was assumed."""


@dataclass(frozen=True)
class Goal:
    """What the user asked for; with nothing said, as fast as possible with at most `points` of accuracy at risk."""

    seconds: float | None = None
    """Of an epoch: the least variance in that time."""
    variance: float | None = None
    """Relative, of the gradient: the shortest epoch with at most that."""
    exchange_bytes: float | None = None
    """All ranks', an epoch: the least variance in so many."""
    points: float = DEFAULT_POINTS
    memory_bytes: float | None = None
    """A rank's; a plan whose peak may exceed it is none."""
    cost_per_hour: float | None = None
    """Of a rank, in any currency."""
    strict: bool = False
    """Refuse what is extrapolated."""

    def in_words(self) -> str:
        if self.seconds is not None:
            return f"least variance in {1e3 * self.seconds:g} ms an epoch"
        if self.variance is not None:
            return f"fastest with a relative variance of the gradient of at most {self.variance:g}"
        if self.exchange_bytes is not None:
            return f"least variance in {self.exchange_bytes / 1e6:g} MB exchanged an epoch"
        return f"as fast as possible with at most {self.points:g} points of accuracy at risk"


@dataclass(frozen=True, eq=False)
class Option:
    """Something that training could do, and what it would be like."""

    partition: Partitioned
    scenario: Scenario
    forecast: Forecast
    simulation: Simulation
    variance: float
    """Relative, that rounding adds to the weights' gradient; 0 without rounding."""
    widths: WidthOption | None
    messages: Sequence[Messages] = ()
    label: str = ""

    @property
    def seconds(self) -> float:
        return self.forecast.epoch_seconds.value

    @property
    def peak_bytes(self) -> int:
        """Of the rank that needs most, as forecast."""
        return max(self.forecast.peak_bytes, default=0)

    @property
    def highest_peak(self) -> float:
        """The upper bound of its 90 % interval."""
        return self.peak_bytes * self.forecast.peak_interval[1]

    def measures(self, cost_per_hour: float | None) -> tuple[float, ...]:
        """What a Pareto front is made of: epoch time, variance, peak memory, cost of an hour; less is better."""
        money = (self.scenario.ranks * cost_per_hour,) if cost_per_hour is not None else ()
        return (self.seconds, self.variance, float(self.peak_bytes), *money)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the search found."""

    chosen: Option
    runner_up: Option | None
    baseline: Option
    """Plain training as the literature runs it: no savings, 32 bits, on the first partition."""
    options: Sequence[Option]
    front: Sequence[Option]
    why: str
    notes: Sequence[str] = field(default_factory=list)


Rule = Callable[[Sequence[Messages]], WidthOption]
Simulate = Callable[[Sequence[RankWork], Any], Simulation]


@dataclass
class Search:
    """Forecasts candidates, and remembers them."""

    costs: Costs
    goal: Goal
    risk: RiskCurve = field(default_factory=RiskCurve)
    allowed: tuple[int, ...] = WIDTHS
    methods: tuple[str, ...] = ("full", "adaqp")
    report: Callable[[str], None] = lambda text: None
    simulate: Simulate = run
    rules: tuple[Rule, ...] = ()
    """Other ways to choose widths, to compare with."""
    incumbent: str = ""
    """Name of the partition that was tried already: another must be forecast to be faster by `BETTER` to take its place,
    since the best of many forecasts is the one that errs most."""
    options: list[Option] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baselines: list[Option] = field(default_factory=list)
    """Plain training without savings, for each number of ranks."""
    _plain: dict[tuple[Partitioned, ExactSavings], Option] = field(default_factory=dict)
    _rounded: dict[tuple[Partitioned, ExactSavings, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.goal.strict:
            self.allowed = tuple(bits for bits in self.allowed if bits in self.costs.calibrated.widths)
            if not self.allowed and "adaqp" in self.methods:
                raise MisuseError("--strict: no width was calibrated; record a run with --method adaqp, or leave --strict out")

    @property
    def variance_limit(self) -> float:
        """What the goal leaves to rounding."""
        if self.goal.variance is not None:
            return self.goal.variance
        if self.goal.seconds is not None or self.goal.exchange_bytes is not None:
            return float("inf")
        return self.risk.variance(self.goal.points)

    # -- one candidate -------------------------------------------------------------------------------------------

    def option(
        self,
        partition: Partitioned,
        scenario: Scenario,
        label: str,
        *,
        widths: WidthOption | None = None,
        messages: Sequence[Messages] = (),
        notes: Sequence[str] = (),
    ) -> Option:
        """Forecast it; `widths` of its messages where it rounds them."""
        if widths is not None:
            bits = assignments(messages, widths.widths, scenario.ranks)
            scenario = replace(scenario, bits=bits, assumed=(*scenario.assumed, *notes))
        answer, simulation = forecast(self.costs, scenario, simulate=self.simulate)
        variance = 0.0 if widths is None else widths.variance
        return Option(partition, scenario, answer, simulation, variance, widths, messages, label)

    def plain(self, partition: Partitioned, exact: ExactSavings) -> Option:
        key = (partition, exact)
        if key not in self._plain:
            self._plain[key] = self._forecast_plain(partition, exact)
        return self._plain[key]

    def _forecast_plain(self, partition: Partitioned, exact: ExactSavings) -> Option:
        return self.option(partition, partition.scenario("full", exact), f"full, {partition.name}{_unsaved(exact)}")

    def rounded(self, partition: Partitioned, exact: ExactSavings, bits: int) -> float:
        """Epoch seconds with every message `bits` wide: for comparing partitions and savings, not to be chosen."""
        key = (partition, exact, bits)
        if key not in self._rounded:
            scenario = partition.scenario("adaqp", exact)
            scenario = replace(scenario, bits=assign_uniform(scenario.workload, bits))
            self._rounded[key] = forecast(self.costs, scenario, simulate=self.simulate)[0].epoch_seconds.value
        return self._rounded[key]

    # -- the search ----------------------------------------------------------------------------------------------

    def explore(
        self,
        partitions: Sequence[Partitioned],
        refine: Callable[[Partitioned, Option], Partitioned | None] = lambda partition, option: None,
    ) -> None:
        """Forecast what can be done on these partitions into one number of ranks; the first is the baseline's.

        `refine` makes a better one of the best, if it can.
        """
        baseline = self.plain(partitions[0], ExactSavings.none())
        self.baselines.append(baseline)
        every = self.calibrated_savings(partitions[0])
        best = self._rank(partitions, every)
        self.report("trying the lossless savings")
        exact = self._savings(best[0], every)
        if not self.incumbent:
            self.report(f"refining {best[0].name}")
            refined = refine(best[0], self._likely(best[0], exact))
            if refined is not None:
                best = [refined, *best[1:]]
        self.options += [baseline, *(self.plain(each, exact) for each in best[:3])]
        if "adaqp" in self.methods:
            fastest = self._best_seconds(best[0], exact)
            near = [each for each in best[1:2] if self._best_seconds(each, exact) <= fastest * (1.0 + NEAR)]
            for partition in (best[0], *near):
                self.report(f"trading widths against time on {partition.name}")
                self._trade(partition, exact)
        if "sar" in self.methods and self._memory_binds(best[0], exact):
            self.report(f"visiting one part after another on {best[0].name}")
            self._sequence(best[0], exact)

    def _memory_binds(self, partition: Partitioned, exact: ExactSavings) -> bool:
        """Whether plain training may need more than there is; without a limit whoever names the method wants it forecast."""
        limit = self.goal.memory_bytes
        return limit is None or self.plain(partition, exact).highest_peak > limit

    def _sequence(self, partition: Partitioned, exact: ExactSavings) -> None:
        """Sequential aggregation: which layers keep blocks, how many rounds ahead, with the halo's features and without."""
        for savings in dict.fromkeys((exact, replace(exact, keep_halo_features=False))):
            plain = partition.scenario("full", savings)
            for candidate in candidates(plain.workload.view(0), ("sar",)):
                try:
                    self.options.append(self.sequential(partition, savings, candidate))
                except UncalibratedError as error:
                    self.notes.append(f"method sar, {_without(savings)}: {error}")
                    break

    def sequential(self, partition: Partitioned, exact: ExactSavings, candidate: Candidate) -> Option:
        """Forecast sequential aggregation that way."""
        scenario = of_scenario(candidate, partition.scenario("full", exact))
        return self.option(partition, scenario, f"{candidate.words}, {partition.name}{_unsaved(exact)}")

    def _likely(self, partition: Partitioned, exact: ExactSavings) -> Option:
        """What is likely to be done on it: rounding, where that is faster."""
        plain = self.plain(partition, exact)
        bits = FIRST_BITS if FIRST_BITS in self.allowed else max(self.allowed, default=32)
        if "adaqp" not in self.methods or plain.seconds <= self.rounded(partition, exact, bits):
            return plain
        return replace(plain, scenario=partition.scenario("adaqp", exact))

    def calibrated_savings(self, partition: Partitioned) -> ExactSavings:
        """As many as can be forecast: some make operations that no calibration run may have done."""
        for count in range(len(SAVINGS), 0, -1):
            for names in combinations(SAVINGS, count):
                exact = ExactSavings(**{name: name in names for name in SAVINGS})
                try:
                    self._best_seconds(partition, exact)
                except UncalibratedError as error:
                    reason = str(error)
                    continue
                if count < len(SAVINGS):
                    self.notes.append(f"{_without(exact)}: {reason}")
                return exact
        self.notes.append(f"lossless savings are not considered: {reason}")
        return ExactSavings.none()

    def _rank(self, partitions: Sequence[Partitioned], exact: ExactSavings) -> list[Partitioned]:
        """The fastest first, at one width (at 32 bits where nothing may be rounded)."""
        self.report(f"forecasting {len(partitions)} partitions")
        bits = FIRST_BITS if FIRST_BITS in self.allowed else max(self.allowed, default=32)
        seconds = {}
        for each in partitions:
            seconds[id(each)] = self.rounded(each, exact, bits) if "adaqp" in self.methods else self.plain(each, exact).seconds
        if self.incumbent in {each.name for each in partitions}:
            handicap = {id(each): 1.0 if each.name == self.incumbent else 1.0 + BETTER for each in partitions}
            ranked = sorted(partitions, key=lambda each: seconds[id(each)] * handicap[id(each)])[:1]
        else:
            ranked = sorted(partitions, key=lambda each: seconds[id(each)])
        first, last = seconds[id(ranked[0])], seconds[id(ranked[-1])]
        if len(ranked) > 1:
            self.notes.append(
                f"partition {ranked[0].name} of {len(ranked)}: {1e3 * first:.1f} ms an epoch at {bits} bits, "
                f"against {1e3 * last:.1f} ms on {ranked[-1].name}"
            )
        return ranked

    def _savings(self, partition: Partitioned, every: ExactSavings) -> ExactSavings:
        """Those of `every` that pay, tried by leaving one out."""
        whole = self._best_seconds(partition, every)
        kept = every
        for name, words in SAVINGS.items():
            without = replace(every, **{name: False})
            if without == every:
                continue
            try:
                seconds = self._best_seconds(partition, without)
            except UncalibratedError:
                continue
            with_it, without_it = (self.plain(partition, exact) for exact in (every, without))
            more = with_it.peak_bytes - without_it.peak_bytes
            memory = f", for {more / 1e6:.1f} MB more a rank" if more > 0 else ""
            limit = self.goal.memory_bytes
            if limit is not None and with_it.highest_peak > limit >= without_it.highest_peak:
                kept = replace(kept, **{name: False})
                self.notes.append(f"{words} is left out: with it a rank may need more than {limit / 1e6:.0f} MB")
            elif seconds < whole * (1.0 - PAYS):
                kept = replace(kept, **{name: False})
                self.notes.append(f"{words} does not pay: {1e3 * (whole - seconds):.1f} ms an epoch less without it{memory}")
            elif seconds > whole * (1.0 + PAYS):
                self.notes.append(f"{words} saves {1e3 * (seconds - whole):.1f} ms an epoch{memory}")
            else:
                self.notes.append(f"{words} makes no difference to the epoch{memory}")
        if kept != every and self._best_seconds(partition, kept) > whole:
            fits = self.goal.memory_bytes is None
            return every if fits else kept
        return kept

    def _best_seconds(self, partition: Partitioned, exact: ExactSavings) -> float:
        seconds = [self.plain(partition, exact).seconds]
        if "adaqp" in self.methods:
            bits = FIRST_BITS if FIRST_BITS in self.allowed else max(self.allowed)
            seconds.append(self.rounded(partition, exact, bits))
        return min(seconds)

    def _trade(self, partition: Partitioned, exact: ExactSavings) -> None:
        """Widths from the fastest to the widest on one partition, some of them forecast."""
        scenario = partition.scenario("adaqp", exact)
        messages, notes = partition.messages(scenario)
        messages = [each for each in messages if len(each.beta)]
        if not messages:
            return

        def tried(widths: WidthOption) -> Option:
            found = self.option(
                partition, scenario, f"adaqp {widths.label}, {partition.name}", widths=widths, messages=messages, notes=notes
            )
            self.options.append(found)
            return found

        for bits in self.allowed:
            if bits in (2, 4, 8):
                tried(uniform_option(messages, bits))
        if not self.goal.strict:
            for rule in self.rules:
                tried(rule(messages))
        if self.goal.exchange_bytes is not None:
            tried(within_total_bytes(messages, self.goal.exchange_bytes, allowed=self.allowed))
            return
        path = self._path(scenario, messages)
        places = sorted({round(place) for place in np.linspace(0, len(path) - 1, TRIED_TRADES)})
        meeting = next((place for place, each in enumerate(path) if each.variance <= self.variance_limit), None)
        if meeting is not None:
            places = sorted({*places, *range(max(0, meeting - 1), min(len(path), meeting + 3))})
        found = {place: tried(path[place].widths()) for place in places}
        if self.goal.seconds is not None:
            self._close_in(path, found, tried)

    def _close_in(self, path: Sequence[Trade], found: dict[int, Option], tried: Callable[[WidthOption], Option]) -> None:
        """Between the widest widths that meet the time and the next that do not, halve until nothing is left between."""
        assert self.goal.seconds is not None
        while True:
            fast = [place for place, option in found.items() if option.seconds <= self.goal.seconds]
            if not fast:
                return
            low = max(fast)
            slow = [place for place in found if place > low]
            if not slow or min(slow) - low <= 1:
                return
            middle = (low + min(slow)) // 2
            found[middle] = tried(path[middle].widths())

    def _path(self, scenario: Scenario, messages: Sequence[Messages]) -> list[Trade]:
        bits = assign_uniform(scenario.workload, FIRST_BITS)
        works = price_programs(self.costs, replace(scenario, bits=bits), [])
        machine = machine_of(self.costs, scenario)
        fast = self.simulate(works, replace(machine, topology=without_network(machine.topology)))
        return trades(messages, wire_times(self.costs, scenario), windows(fast), allowed=self.allowed)

    # -- the answer ----------------------------------------------------------------------------------------------

    def answer(self) -> Answer:
        """The best of all that was explored. Raises MisuseError where nothing meets the goal, with the nearest that would."""
        options = [each for each in self.options if not (self.goal.strict and each.forecast.extrapolated)]
        if not options:
            reasons = "; ".join(self.options[0].forecast.extrapolated[:2])
            raise MisuseError(
                f"--strict: every candidate is extrapolated ({reasons}); record such a run, or leave --strict out"
            )
        limit = self.goal.memory_bytes
        fitting = [each for each in options if limit is None or each.highest_peak <= limit]
        if not fitting:
            least = min(options, key=lambda each: each.highest_peak)
            raise MisuseError(
                f"no candidate fits in {limit_text(limit)} a rank: the one that needs least may need "
                f"{least.highest_peak / 1e6:.0f} MB ({least.label}); use more ranks or a larger limit"
            )
        chosen = self._choose(fitting)
        others = [each for each in fitting if not _same_plan(each, chosen)]
        runner_up = self._choose(others, raises=False) if others else None
        baseline = next(each for each in self.baselines if each.scenario.ranks == chosen.scenario.ranks)
        money = self.goal.cost_per_hour
        return Answer(
            chosen,
            runner_up,
            baseline,
            options,
            pareto_front(options, money),
            self._why(chosen, runner_up, baseline),
            self.notes,
        )

    def _choose(self, options: Sequence[Option], *, raises: bool = True) -> Option:
        """The best by the goal."""
        goal = self.goal
        if goal.seconds is not None:
            met = [each for each in options if each.seconds <= goal.seconds]
            if met:
                return min(met, key=lambda each: (each.variance, each.seconds))
            best = min(options, key=lambda each: each.seconds)
            if raises:
                raise MisuseError(
                    f"no plan takes {1e3 * goal.seconds:g} ms an epoch: the fastest takes {1e3 * best.seconds:.1f} ms "
                    f"({best.label}), bound by {binding(best.forecast)}"
                )
            return best
        if goal.exchange_bytes is not None:
            met = [each for each in options if each.forecast.exchange_bytes_per_epoch <= goal.exchange_bytes]
            if met:
                return min(met, key=lambda each: (each.variance, each.seconds))
            best = min(options, key=lambda each: each.forecast.exchange_bytes_per_epoch)
            if raises:
                raise MisuseError(
                    f"no plan exchanges {goal.exchange_bytes:.0f} bytes an epoch: the least is "
                    f"{best.forecast.exchange_bytes_per_epoch} ({best.label})"
                )
            return best
        quiet = [each for each in options if each.variance <= self.variance_limit]
        fastest = min(each.seconds for each in quiet)  # plain training is always among them
        return min(
            (each for each in quiet if each.seconds <= fastest * (1.0 + AS_FAST)),
            key=lambda each: (each.variance, each.seconds),
        )

    def _why(self, chosen: Option, runner_up: Option | None, baseline: Option) -> str:
        text = (
            f"{chosen.label}: {self.goal.in_words()}; {1e3 * chosen.seconds:.1f} ms an epoch, "
            f"{baseline.seconds / chosen.seconds:.1f} × plain without savings ({1e3 * baseline.seconds:.1f} ms)"
        )
        if runner_up is not None:
            difference = runner_up.seconds / chosen.seconds - 1.0
            text += (
                f"; runner-up {runner_up.label}, {1e3 * runner_up.seconds:.1f} ms "
                f"({100 * difference:+.1f} %), variance {runner_up.variance:.2g} against {chosen.variance:.2g}"
            )
        return text


def limit_text(limit: float | None) -> str:
    return "any memory" if limit is None else f"{limit / 1e6:.0f} MB"


def binding(answer: Forecast) -> str:
    """The largest part of the epoch."""
    return max((part for part in answer.breakdown if part != "exchange hidden"), key=lambda part: answer.breakdown[part])


def _same_plan(one: Option, other: Option) -> bool:
    """Alike in everything but widths."""
    return one.partition == other.partition and alike_but_for_widths(one.scenario, other.scenario)


def alike_but_for_widths(one: Scenario, other: Scenario) -> bool:
    """Whether both train the same way, on the same partition's statistics."""
    return (one.method, *_way_of(one)) == (other.method, *_way_of(other))


def _way_of(scenario: Scenario) -> tuple[object, ...]:
    """Statistics and settings that its programs depend on."""
    load = scenario.workload
    return (load.parts, load.exact, *((load.prefetch, load.kept_layers) if scenario.method == "sar" else ()))


def _unsaved(exact: ExactSavings) -> str:
    """What is left out, as the end of a label."""
    return "" if exact == ExactSavings() else f", {_without(exact)}"


def _without(exact: ExactSavings) -> str:
    off = [name for name in SAVINGS if not getattr(exact, name)]
    return "no savings" if len(off) == len(SAVINGS) else "without " + ", ".join(off)


def pareto_front(options: Sequence[Option], cost_per_hour: float | None = None) -> list[Option]:
    """Those that no other beats in one measure without being worse in another, by epoch time."""
    measures = np.array([each.measures(cost_per_hour) for each in options])
    front = []
    for place, option in enumerate(options):
        mine = measures[place]
        beaten = (measures <= mine).all(axis=1) & (measures < mine).any(axis=1)
        twin = (measures[:place] == mine).all(axis=1).any()
        if not beaten.any() and not twin:
            front.append(option)
    return sorted(front, key=lambda each: each.seconds)
