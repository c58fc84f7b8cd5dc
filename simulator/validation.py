"""Is the simulator right? Every configuration is forecast from the others and compared with what it did.

Protocol (docs/simulator.md): leave one configuration out; leave out all of one link, or of one number of ranks; three
baselines forecast the same configurations from the same operations' costs. Errors are of one configuration's mean; they
cannot be smaller than the noise of repeats, which is stated beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.simulator.calibrate import (
    COMPONENTS,
    Calibration,
    calibrate,
    fit_operations,
    fit_pauses,
    install,
    measured_components,
    model_keys,
    resimulate,
    simulated_components,
    slowness_of,
    work_of,
)
from halocast.simulator.costs import EpochError, HostCosts, NetworkCosts
from halocast.simulator.engine import RankWork, Simulation
from halocast.simulator.forecast import bytes_of
from halocast.simulator.intervals import Interval, interval
from halocast.simulator.memory import fit_memory, peak_bytes
from halocast.simulator.observations import Configuration, Observation
from halocast.traces.operations import AllReduce, Exchange

Floats = npt.NDArray[np.float64]
BASELINES = ("port bound", "line per pair", "uniform all-to-all")
FEWEST = 4


@dataclass
class Forecasts:
    """What was forecast of a configuration, in seconds an epoch."""

    seconds: float
    """From all other configurations."""
    baselines: dict[str, float] = field(default_factory=dict)
    interval: Interval | None = None
    held_out_link: float | None = None
    """From configurations with other links."""
    held_out_ranks: float | None = None
    """From configurations with other numbers of ranks."""


@dataclass
class Row:
    """One configuration: what it did and what was forecast of it."""

    configuration: Configuration
    runs: list[float]
    """Epoch seconds of its repeats."""
    slowness: list[float]
    """Of the machine in each of them, from CPU times alone."""
    oversubscribed: bool
    usual: Forecasts
    """The machine taken to be as fast as it usually was."""
    at_speed: Forecasts
    """The machine taken to be as fast as it was in these runs."""
    measured_components: Floats = field(default_factory=lambda: np.zeros(3))
    forecast_components: Floats = field(default_factory=lambda: np.zeros(3))
    """At speed."""
    bytes_traced: int = 0
    bytes_forecast: int = 0
    peaks: list[tuple[float, float]] = field(default_factory=list)
    """(measured, forecast from the others) bytes, by rank; means over repeats."""

    @property
    def measured(self) -> float:
        """Geometric mean of the repeats, in seconds."""
        return float(np.exp(np.mean(np.log(self.runs))))

    @property
    def machine(self) -> float:
        """Geometric mean of the slowness."""
        return float(np.exp(np.mean(np.log(self.slowness))))

    def error(self, forecast: float) -> float:
        """Signed relative error."""
        return forecast / self.measured - 1.0


@dataclass(frozen=True)
class Validation:
    """The whole comparison."""

    calibration: Calibration
    rows: tuple[Row, ...]

    @property
    def noise(self) -> float:
        """Standard deviation of log(run / mean of its configuration)."""
        return self.calibration.costs.noise

    @property
    def noise_at_speed(self) -> float:
        """What the machine's speed in each run leaves of it."""
        return self.calibration.costs.noise_at_speed


def validate(
    observations: Sequence[Observation],
    *,
    jobs: int = 1,
    hold_out_values: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> Validation:
    """Forecast every configuration without its own runs. Raises MisuseError for fewer than `FEWEST` configurations."""
    groups: dict[Configuration, list[Observation]] = defaultdict(list)
    for each in observations:
        groups[each.configuration].append(each)
    if len(groups) < FEWEST:
        raise MisuseError(
            f"{len(groups)} configuration(s) to validate on; record {FEWEST} or more, that differ in bits, ranks or links"
        )
    report(f"calibrating on all {len(groups)} configurations")
    whole = calibrate(observations, jobs=jobs)
    rows = []
    for index, target in enumerate(whole.targets):
        own = groups[target.configuration]
        others = [each for each in observations if each.configuration != target.configuration]
        row = _leave_one_out(own, others, index, whole)
        rows.append(row)
        report(
            f"{index + 1}/{len(groups)} {row.configuration}: {100 * row.error(row.usual.seconds):+.1f} %, "
            f"at the machine's speed {100 * row.error(row.at_speed.seconds):+.1f} %"
        )
    for row in rows:
        errors = [
            EpochError(
                oversubscribed=each.oversubscribed,
                log_ratio=float(np.log(each.measured / each.usual.seconds)),
                at_speed=float(np.log(each.measured / each.at_speed.seconds)),
            )
            for each in rows
            if each is not row
        ]
        for found, noise, at_speed in (
            (row.usual, whole.costs.noise, False),
            (row.at_speed, whole.costs.noise_at_speed, True),
        ):
            found.interval = interval(found.seconds, errors, noise, oversubscribed=row.oversubscribed, at_speed=at_speed)
    if hold_out_values:
        _hold_out(rows, observations, groups, jobs, report)
    return Validation(whole, tuple(rows))


def _leave_one_out(own: Sequence[Observation], others: Sequence[Observation], index: int, whole: Calibration) -> Row:
    configuration = own[0].configuration
    # how idleness slows a host comes from the slope of all runs, which no one configuration moves; pauses from the others
    host = fit_pauses(others, whole.costs.host, whole.slowness)
    host, network = install(host, NetworkCosts(), whole.fit.without(index))
    operations = fit_operations(others, host, whole.slowness, only=model_keys(own[0]))
    work = work_of(own[0], operations)
    slowness = [slowness_of(each, host, operations) for each in own]

    def forecast(host: HostCosts) -> tuple[Forecasts, Simulation]:
        simulation = resimulate(configuration, work, host, network)
        return Forecasts(simulation.epoch_seconds, baselines(configuration, work, host, network, others)), simulation

    usual, _ = forecast(host)
    at_speed, simulation = forecast(host.model_copy(update={"slowness": float(np.exp(np.mean(np.log(slowness))))}))
    row = Row(
        configuration, [each.seconds for each in own], slowness, configuration.ranks > host.cores, usual, at_speed,
        measured_components=np.mean([measured_components(each) for each in own], axis=0),
        forecast_components=simulated_components(simulation),
        bytes_forecast=bytes_of(work)[0],
    )  # fmt: skip
    spans = own[0].spans
    sent = spans.loc[spans["op"] == "Exchange"].groupby("epoch")["bytes_out"].sum()
    row.bytes_traced = int(sent.iloc[-1]) if len(sent) else 0
    memory = fit_memory(others)
    if memory is not None and own[0].peak_bytes:
        measured = np.mean([each.peak_bytes for each in own], axis=0)
        peaks = [peak_bytes(memory, view, configuration.method) for view in own[0].views()]
        row.peaks = list(zip(measured.tolist(), peaks, strict=True))
    return row


def _hold_out(
    rows: Sequence[Row],
    observations: Sequence[Observation],
    groups: dict[Configuration, list[Observation]],
    jobs: int,
    report: Callable[[str], None],
) -> None:
    """Forecast all configurations of one link, then of one number of ranks, from the rest: nothing of the kind was seen."""
    for name in ("link", "ranks"):
        values = sorted({getattr(row.configuration, name) for row in rows})
        if len(values) < 3:
            continue
        for value in values:
            kept = [each for each in observations if getattr(each.configuration, name) != value]
            report(f"calibrating without {name} {value:g}")
            costs = calibrate(kept, jobs=jobs).costs
            for row in rows:
                if getattr(row.configuration, name) != value:
                    continue
                own = groups[row.configuration]
                work = work_of(own[0], costs.operations)
                slowness = np.log([slowness_of(each, costs.host, costs.operations) for each in own])
                for found, factor in ((row.usual, 1.0), (row.at_speed, float(np.exp(slowness.mean())))):
                    host = costs.host.model_copy(update={"slowness": factor})
                    seconds = resimulate(row.configuration, work, host, costs.network).epoch_seconds
                    setattr(found, f"held_out_{name}", seconds)


# -- what anybody would try first -------------------------------------------------------------------------------


def baselines(
    configuration: Configuration,
    work: Sequence[RankWork],
    host: HostCosts,
    network: NetworkCosts,
    others: Sequence[Observation],
) -> dict[str, float]:
    """Epoch seconds by three simpler models of the network over the same operations' costs.

    Computing is the slowest rank's, shared evenly where ranks outnumber cores; an exchange costs what its messages do
    beyond the computing that the program overlaps it with. "port bound": the busiest port's bytes at the link's rate.
    "line per pair": seconds = α + β bytes, fitted to all traced messages of this link, in ring rounds that last as long as
    their slowest pair (as AdaQP's assignment counts). "uniform all-to-all": the same volume, spread evenly over ports.
    """
    ranks = configuration.ranks
    stretch = max(1.0, ranks / host.cores) * host.slowness
    rate = (configuration.link or network.unshaped_rate) * network.efficiency
    alpha, beta = _line(configuration, rate, others)
    computing = max(float(each.seconds.sum()) + host.gap_seconds * len(each.operations) for each in work) * stretch
    exposed = dict.fromkeys(BASELINES, 0.0)
    steps = 2 * (ranks - 1)
    for exchanges in _exchanges(work).values():
        hidden = min(_overlapped(each, index) for each, index in exchanges) * stretch
        operations = [each.operations[index] for each, index in exchanges]
        outgoing = np.array([each.work.bytes_out for each in operations], dtype=np.float64)
        incoming = np.array([each.work.bytes_in for each in operations], dtype=np.float64)
        sizes = {
            (rank, message.peer): message.bytes
            for rank, each in enumerate(operations)
            if isinstance(each, Exchange)
            for message in each.outgoing
        }
        seconds = {
            "port bound": float(max(outgoing.max(), incoming.max())) / rate,
            "line per pair": sum(
                max(
                    (
                        alpha + beta * sizes[rank, (rank + step) % ranks]
                        for rank in range(ranks)
                        if (rank, (rank + step) % ranks) in sizes
                    ),
                    default=0.0,
                )
                for step in range(1, ranks)
            ),
            "uniform all-to-all": float(outgoing.sum()) / ranks / rate,
        }
        for name in BASELINES:
            exposed[name] += max(0.0, seconds[name] - hidden)
    reduced = sum(each.work.bytes_out for each in work[0].operations if isinstance(each, AllReduce))
    reducing = reduced * steps / ranks / rate
    return {name: computing + seconds + reducing for name, seconds in exposed.items()}


def _exchanges(work: Sequence[RankWork]) -> dict[tuple[int, str, int], list[tuple[RankWork, int]]]:
    """By layer, direction and round: every rank's Exchange."""
    found: dict[tuple[int, str, int], list[tuple[RankWork, int]]] = defaultdict(list)
    for each in work:
        for index, turn in each.rounds.items():
            operation = each.operations[index]
            if isinstance(operation, Exchange):
                found[operation.layer, str(operation.direction), turn].append((each, index))
    return found


def _overlapped(work: RankWork, start: int) -> float:
    """Computing between an exchange's start and the first wait for it."""
    first = next((index for index, origin in work.flights.items() if origin == start), len(work.operations))
    return float(work.seconds[start + 1 : first].sum())


def _line(configuration: Configuration, rate: float, others: Sequence[Observation]) -> tuple[float, float]:
    """(α seconds, β seconds a byte) of all messages traced on this link; the rate itself where there are none."""
    sizes, seconds = [], []
    for each in others:
        if each.configuration.link == configuration.link and each.configuration.ranks == configuration.ranks:
            table = each.messages[each.messages["bytes_in"] > 0]
            sizes.append(table["bytes_in"].to_numpy(dtype=np.float64))
            seconds.append((table["receive_done_ns"] - table["start_ns"]).to_numpy(dtype=np.float64) / 1e9)
    if not sizes:
        return 0.0, 1.0 / rate
    x, y = np.concatenate(sizes), np.concatenate(seconds)
    if np.ptp(x) == 0.0:
        return 0.0, float(np.median(y) / x[0])
    beta, alpha = np.polyfit(x, y, 1)
    return max(0.0, float(alpha)), max(0.0, float(beta))


# -- summing up -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Figures of some rows; errors are absolute and relative."""

    configurations: int
    median: float
    p95: float
    worst: float
    signed: float
    """Median of the signed errors."""


def summarise(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Summary | None:
    """Errors of one forecast of each row; None where no row has it."""
    errors = np.array([row.error(forecast) for row in rows if (forecast := value(row)) is not None])
    if errors.size == 0:
        return None
    absolute = np.abs(errors)
    return Summary(
        len(errors),
        float(np.median(absolute)),
        float(np.quantile(absolute, 0.95)),
        float(absolute.max()),
        float(np.median(errors)),
    )


Which = Callable[[Row], Forecasts]
"""Picks a row's forecasts at the machine's usual speed, or at the speed it had."""


def coverage(rows: Sequence[Row], which: Which) -> tuple[int, int]:
    """(runs within their configuration's interval, runs)."""
    held = [bounds.holds(run) for row in rows if (bounds := which(row).interval) is not None for run in row.runs]
    return sum(held), len(held)


def order_kept(rows: Sequence[Row], which: Which, noise: float) -> tuple[int, int]:
    """(pairs that the forecast orders as the measurement does, pairs that differ by more than the noise).

    Pairs of one graph and model: others nobody would compare. Two means differ when their logarithms do by more than twice
    the standard error of a difference of means.
    """
    right = total = 0
    for first, second in combinations(rows, 2):
        if (first.configuration.fingerprint, first.configuration.model) != (
            second.configuration.fingerprint,
            second.configuration.model,
        ):
            continue
        margin = 2.0 * noise * np.sqrt(1.0 / len(first.runs) + 1.0 / len(second.runs))
        difference = np.log(first.measured / second.measured)
        if abs(difference) <= margin:
            continue
        total += 1
        right += bool(np.sign(np.log(which(first).seconds / which(second).seconds)) == np.sign(difference))
    return right, total


def component_errors(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """By component: (median, median absolute) error as a share of the epoch."""
    shares = np.array([(row.forecast_components - row.measured_components) / row.measured for row in rows])
    return {
        name: (float(np.median(shares[:, index])), float(np.median(np.abs(shares[:, index]))))
        for index, name in enumerate(COMPONENTS)
    }


def memory_errors(rows: Sequence[Row]) -> Floats:
    """Signed relative errors of every rank's peak."""
    return np.array([forecast / measured - 1.0 for row in rows for measured, forecast in row.peaks])
