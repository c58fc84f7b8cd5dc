"""From runs to costs: operations by regression on their work, the network and the cores by simulating the runs again.

What an operation costs alone is read off its thread-CPU (or device) time. What no table shows alone (a message's CPU time in
the transport, how cores slow each other down, the links' efficiency) is found as the values with which the simulated runs
take as long as the measured ones, epoch and component: non-linear least squares on logarithms, with weak priors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed
from scipy.optimize import nnls

from halocast.errors import MisuseError
from halocast.simulator.costs import (
    TERMS,
    CalibratedRange,
    Costs,
    EpochError,
    HostCosts,
    LinearCost,
    NetworkCosts,
    Provenance,
    class_of,
    is_priced,
    keys_of,
    messages_of,
    terms,
)
from halocast.simulator.engine import Machine, RankWork, Simulation, simulate
from halocast.simulator.memory import fit_memory
from halocast.simulator.network import testbed
from halocast.simulator.observations import Configuration, Observation, link_name
from halocast.traces.operations import Wait

Floats = npt.NDArray[np.float64]
ENOUGH_WORKS = (0, 4, 2)
"""Distinct pieces of work that a class needs to have a model: at all, of one graph, of a graph on one number of ranks."""
ENOUGH_RUNS = 4
"""Fewer say nothing of idleness."""
LEAST_SPREAD = 0.05
"""Runs that are all equally busy say nothing of idleness."""
SHORT_S = 20e-6
"""Errors of operations shorter than this count as if they took this long: clocks, not work."""


@dataclass(frozen=True)
class _Sample:
    values: tuple[float, ...]
    seconds: float


@cache
def busy_seconds(observation: Observation) -> float:
    """CPU time of all ranks' operations in an epoch."""
    return sum(float(seconds.sum()) for seconds in observation.cpu_seconds)


def utilisation(observation: Observation) -> float:
    """Share of the host's cores that the ranks' operations keep busy."""
    return busy_seconds(observation) / observation.seconds / observation.trace.manifest.machine.cores


def fit_speed(observations: Sequence[Observation]) -> tuple[HostCosts, dict[Observation, float]]:
    """How a run's CPU times compare with what the same work costs in all runs: (host, slowness by run).

    CPU time is not a constant of the work. Part of the difference is the run's own: hosts that mostly wait compute more slowly
    (`idleness`, the slope over utilisation). The rest is the machine's at that hour (`slowness`, geometric mean 1).
    """
    busy = np.array([utilisation(each) for each in observations])
    host = HostCosts(cores=observations[0].trace.manifest.machine.cores, reference_utilisation=float(busy.mean()))
    slowness = dict.fromkeys(observations, 1.0)
    for _ in range(4):  # the common model, the slope and the runs' own factors settle together
        models = fit_operations(observations, host, slowness)
        own = np.log([slowness_of(each, host, models) for each in observations])
        if len(observations) >= ENOUGH_RUNS and busy.std() >= LEAST_SPREAD:
            slope = float(np.polyfit(busy, own, 1)[0])
            idleness = max(0.0, host.idleness - slope)
            own += (idleness - host.idleness) * (busy - host.reference_utilisation)
            host = host.model_copy(update={"idleness": idleness})
        slowness = dict(zip(observations, np.exp(own - own.mean()).tolist(), strict=True))
    return host.model_copy(update={"slowness_spread": float(np.std(np.log(list(slowness.values()))))}), slowness


def slowness_of(observation: Observation, host: HostCosts, operations: Mapping[str, LinearCost]) -> float:
    """CPU time of a run's operations over that of the models, on a host as busy as its was."""
    predicted = sum(float(work.seconds.sum()) for work in work_of(observation, operations))
    return busy_seconds(observation) / predicted / host.inflation(utilisation(observation))


def fit_operations(
    observations: Sequence[Observation],
    host: HostCosts,
    slowness: Mapping[Observation, float],
    *,
    only: Container[str] | None = None,
) -> dict[str, LinearCost]:
    """Models by the keys of `costs.keys_of`; samples are medians over a run's epochs, by rank and operation.

    Times are those at the host's reference utilisation and usual speed. `only` says which models are wanted (all by default).
    """
    samples: dict[str, list[_Sample]] = defaultdict(list)
    for observation in observations:
        factor = host.inflation(utilisation(observation)) * slowness[observation]
        for keys, values, seconds in _measured_operations(observation):
            sample = _Sample(values, seconds / factor)
            for key in keys:
                if only is None or key in only:
                    samples[key].append(sample)
    models = {}
    for key, found in samples.items():
        model = fit_linear(found)
        if model.samples >= ENOUGH_WORKS[key.count("/")]:
            models[key] = model
    return models


def model_keys(observation: Observation) -> set[str]:
    """Every model that could price the run's operations."""
    return {key for keys, _, _ in _measured_operations(observation) for key in keys}


@cache
def _measured_operations(observation: Observation) -> list[tuple[tuple[str, ...], tuple[float, ...], float]]:
    """(models' keys, terms, seconds of CPU time) of every priced operation of every rank, medians over epochs."""
    configuration = observation.configuration
    measured = []
    for operations, seconds in zip(observation.operations, observation.cpu_seconds, strict=True):
        for operation, each in zip(operations, seconds.tolist(), strict=True):
            if is_priced(operation):
                keys = keys_of(operation, configuration.fingerprint, configuration.ranks)
                measured.append((keys, terms(operation.work, messages_of(operation)), each))
    return measured


def fit_linear(samples: Sequence[_Sample]) -> LinearCost:
    """Non-negative least squares on relative errors; samples of equal work are repeats of one."""
    groups: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for sample in samples:
        groups[sample.values].append(sample.seconds)
    values = np.array(list(groups))
    means = np.array([float(np.mean(seconds)) for seconds in groups.values()])
    weight = np.sqrt([len(seconds) for seconds in groups.values()]) / np.maximum(means, SHORT_S)
    used = [index for index in range(len(TERMS)) if values[:, index].any()]
    scale = values[:, used].max(axis=0)
    solution, _ = nnls(values[:, used] / scale * weight[:, None], means * weight)
    coefficients = {TERMS[index]: float(each / s) for index, each, s in zip(used, solution, scale, strict=True) if each > 0.0}
    fitted = values[:, used] / scale @ solution
    logs = np.log(np.maximum(means, SHORT_S) / np.maximum(fitted, SHORT_S))
    repeats = [
        np.log(np.maximum(np.array(seconds), SHORT_S) / max(float(np.mean(seconds)), SHORT_S)) for seconds in groups.values()
    ]
    spread = np.concatenate(repeats)
    freedom = max(1, len(spread) - len(repeats))
    return LinearCost(
        coefficients=coefficients,
        residual=float(np.sqrt(np.mean(logs**2))),
        noise=float(np.sqrt((spread**2).sum() / freedom)) if len(spread) > len(repeats) else 0.0,
        samples=len(groups),
        low={TERMS[index]: float(values[:, index].min()) for index in used},
        high={TERMS[index]: float(values[:, index].max()) for index in used},
    )


def fit_pauses(observations: Sequence[Observation], host: HostCosts, slowness: Mapping[Observation, float]) -> HostCosts:
    """What lies between operations and between epochs, at the host's usual speed."""
    pauses = np.array([_pauses(each) for each in observations])
    factors = [host.inflation(utilisation(each)) * slowness[each] for each in observations]
    gap, recording, others, first = np.median(pauses / np.array(factors)[:, None], axis=0).tolist()
    return host.model_copy(
        update={"gap_seconds": gap, "epoch_seconds": max(0.0, recording), "first_rank_seconds": max(0.0, first - others)}
    )


@cache
def _pauses(observation: Observation) -> tuple[float, float, float, float]:
    """Seconds between two operations, of an epoch after rank 0's last one, and between epochs on other ranks and on rank 0."""
    spans = observation.spans.sort_values(["rank", "epoch", "index"])
    end = spans["start_ns"] + spans["wall_ns"]
    groups = [spans["rank"], spans["epoch"]]
    inside = (spans["start_ns"] - end.groupby(groups).shift()) / 1e9
    # of each place in the program the median: what preempted a rank once is not the program's; then the mean over places
    gap = float(inside.groupby([spans["rank"], spans["index"]]).median().mean())
    extent = pd.DataFrame({"start": spans["start_ns"].groupby(groups).min(), "end": end.groupby(groups).max()}) / 1e9
    between = (extent["start"].groupby("rank").shift(-1) - extent["end"]).dropna()
    recording = observation.epoch_seconds - (extent["end"] - extent["start"]).loc[0].loc[list(observation.epochs)].to_numpy()
    is_first = between.index.get_level_values("rank") == 0

    def median(values: pd.Series[float]) -> float:
        return float(values.median()) if len(values) else 0.0

    return gap, float(np.median(recording)), median(between[~is_first]), median(between[is_first])


# -- simulating what was measured -------------------------------------------------------------------------------


def work_of(observation: Observation, costs: Mapping[str, LinearCost]) -> list[RankWork]:
    """The run's programs, priced."""
    configuration = observation.configuration
    priced: dict[tuple[str, tuple[float, ...]], float] = {}
    works = []
    for work in observation.unpriced:
        seconds = np.zeros(len(work.operations))
        for index, operation in enumerate(work.operations):
            if isinstance(operation, Wait):
                continue
            name, values = class_of(operation), terms(operation.work, messages_of(operation))
            price = priced.get((name, values))
            if price is None:
                keys = keys_of(operation, configuration.fingerprint, configuration.ranks)
                model = next(costs[key] for key in keys if key in costs)
                price = priced[name, values] = model.seconds(dict(zip(TERMS, values, strict=True)))
            seconds[index] = price
        works.append(replace(work, seconds=seconds))
    return works


def resimulate(configuration: Configuration, work: Sequence[RankWork], host: HostCosts, network: NetworkCosts) -> Simulation:
    """Simulate a run as it was made: all ranks on one machine's cores."""
    machine = Machine(
        testbed(configuration.ranks, configuration.link, network.unshaped_rate), host, network, hosts=[0] * configuration.ranks
    )
    return simulate(work, machine)


@dataclass(frozen=True)
class Parameter:
    """One number that only whole runs show, found on a logarithmic scale."""

    name: str
    section: str
    start: float
    low: float
    high: float
    prior: float
    """Standard deviation of the prior on its logarithm, around `start`."""


PARAMETERS = (
    Parameter("efficiency", "network", 0.95, 0.8, 1.05, 0.03),
    Parameter("reduce_efficiency", "network", 0.9, 0.7, 1.05, 0.03),
    Parameter("latency", "network", 1.5e-4, 1e-6, 1e-2, 0.7),
    Parameter("send_seconds", "network", 1e-4, 1e-6, 5e-3, 0.7),
    Parameter("receive_seconds", "network", 1e-4, 1e-6, 5e-3, 0.7),
    Parameter("byte_seconds", "network", 4e-10, 1e-12, 2e-8, 0.7),
    Parameter("reduce_step_seconds", "network", 3e-4, 1e-6, 1e-2, 0.5),
    Parameter("post_seconds", "network", 2.5e-4, 1e-6, 5e-3, 0.7),
    Parameter("wake_seconds", "network", 1e-4, 1e-6, 5e-3, 0.7),
    Parameter("shared", "host", 0.05, 1e-3, 1.0, 0.7),
    Parameter("slice_seconds", "host", 4e-3, 2e-4, 2e-2, 0.5),
    Parameter("balance_seconds", "host", 2e-3, 1e-5, 1e-2, 0.7),
)
ERROR_SCALE = 0.03
"""An epoch's relative error that weighs as much as a parameter one standard deviation off its prior."""
COMPONENT_WEIGHT = 0.5
"""How much a component's error counts beside the epoch's: a sum that is right for wrong reasons forecasts nothing."""


def install(host: HostCosts, network: NetworkCosts, logs: Floats) -> tuple[HostCosts, NetworkCosts]:
    """The models with parameters exp(`logs`)."""
    updates: dict[str, dict[str, float]] = {"host": {}, "network": {}}
    for parameter, value in zip(PARAMETERS, np.exp(logs).tolist(), strict=True):
        updates[parameter.section][parameter.name] = value
    return host.model_copy(update=updates["host"]), network.model_copy(update=updates["network"])


COMPONENTS = ("compute", "exchange", "all-reduce")
"""What an epoch's time is spent on, as ranks see it: not waiting, waiting for messages, waiting for an all-reduce."""


@dataclass(frozen=True)
class Target:
    """What a simulated configuration is compared with: means over its repeats, in seconds."""

    configuration: Configuration
    work: Sequence[RankWork]
    epoch: float
    components: Floats
    """[`COMPONENTS`] mean over ranks."""
    slowness: float
    """Of the machine while it was measured."""


def targets(
    observations: Sequence[Observation], operations: Mapping[str, LinearCost], slowness: Mapping[Observation, float]
) -> list[Target]:
    """One target a configuration."""
    grouped: dict[Configuration, list[Observation]] = defaultdict(list)
    for observation in observations:
        grouped[observation.configuration].append(observation)
    found = []
    for configuration, repeats in grouped.items():
        components = np.mean([measured_components(each) for each in repeats], axis=0)
        epoch, slow = (
            float(np.exp(np.mean(np.log(values))))
            for values in zip(*((each.seconds, slowness[each]) for each in repeats), strict=True)
        )
        found.append(Target(configuration, work_of(repeats[0], operations), epoch, components, slow))
    return found


def measured_components(observation: Observation) -> Floats:
    """[`COMPONENTS`] seconds of an epoch, mean over epochs and ranks."""
    spans = observation.spans
    end = spans["start_ns"] + spans["wall_ns"]
    keys = [spans["rank"], spans["epoch"]]
    extent = float((end.groupby(keys).max() - spans["start_ns"].groupby(keys).min()).sum())
    waits = spans[spans["op"] == "Wait"]
    exchange = float(waits.loc[waits["peer"] >= 0, "wall_ns"].sum())
    reduce = float(waits.loc[waits["peer"] < 0, "wall_ns"].sum())
    count = len(observation.epochs) * observation.workload.world_size
    return np.array([extent - exchange - reduce, exchange, reduce]) / 1e9 / count


def simulated_components(simulation: Simulation) -> Floats:
    """The same of a simulated epoch."""
    total = np.zeros(3)
    for work, timeline in zip(simulation.work, simulation.ranks, strict=True):
        waits = np.array([0 if not isinstance(each, Wait) else 1 if each.peer >= 0 else 2 for each in work.operations])
        exchange, reduce = (float(timeline.wall[waits == kind].sum()) for kind in (1, 2))
        extent = float((timeline.start + timeline.wall).max() - timeline.start.min())
        total += (extent - exchange - reduce, exchange, reduce)
    return total / len(simulation.work)


def errors_of(target: Target, host: HostCosts, network: NetworkCosts) -> Floats:
    """[1 + components] log of simulated over measured epoch time, then each component's error as a share of the epoch."""
    host = host.model_copy(update={"slowness": target.slowness})
    simulation = resimulate(target.configuration, target.work, host, network)
    epoch = float(np.log(simulation.epoch_seconds / target.epoch))
    return np.concatenate([[epoch], (simulated_components(simulation) - target.components) / target.epoch])


@dataclass(frozen=True)
class WholeRunFit:
    """Where the search for `PARAMETERS` ended, and how the residuals change with them there."""

    logs: Floats
    residuals: Floats
    """[configurations, 1 + components] weighted."""
    jacobian: Floats
    """[configurations, 1 + components, parameters] of the weighted residuals."""

    def without(self, index: int) -> Floats:
        """The parameters that the fit without one configuration ends at: one Gauss–Newton step from here."""
        kept = np.arange(len(self.residuals)) != index
        jacobian, residuals = self.jacobian[kept].reshape(-1, len(self.logs)), self.residuals[kept].ravel()
        start, prior = _prior()
        normal = jacobian.T @ jacobian + np.diag(prior**-2.0)
        step = np.linalg.solve(normal, jacobian.T @ residuals + (self.logs - start) / prior**2)
        low, high = _bounds()
        return np.asarray(np.clip(self.logs - np.clip(step, -LARGEST_STEP, LARGEST_STEP), low, high), dtype=np.float64)


LARGEST_STEP = 0.3
"""Of a logarithm, in one step without a configuration: beyond that the linearisation says nothing."""
DIFFERENCE = 0.25
"""Of a prior's standard deviation, to both sides, for derivatives: simulated times are only piecewise smooth."""


def _prior() -> tuple[Floats, Floats]:
    return np.log([each.start for each in PARAMETERS]), np.array([each.prior for each in PARAMETERS])


def _bounds() -> tuple[Floats, Floats]:
    return np.log([each.low for each in PARAMETERS]), np.log([each.high for each in PARAMETERS])


def fit_whole_runs(
    found: Sequence[Target], host: HostCosts, network: NetworkCosts, *, jobs: int = 1, steps: int = 2
) -> WholeRunFit:
    """Find `PARAMETERS`: damped Gauss–Newton on epoch and component errors, outliers weighing less (Huber)."""
    start, prior = _prior()
    low, high = _bounds()
    weights = np.array([1.0, *[COMPONENT_WEIGHT] * len(COMPONENTS)]) / ERROR_SCALE
    pool = Parallel(n_jobs=jobs)

    def errors(points: Sequence[Floats]) -> Floats:
        models = [install(host, network, point) for point in points]
        flat = pool(delayed(errors_of)(target, *model) for model in models for target in found)
        return np.array(flat).reshape(len(points), len(found), -1) * weights

    def cost(residuals: Floats, point: Floats) -> float:
        return float((huber(residuals) ** 2 * residuals**2).sum() + (((point - start) / prior) ** 2).sum())

    point = start.copy()
    residuals = errors([point])[0]
    best = cost(residuals, point)
    jacobian = np.zeros((*residuals.shape, len(point)))
    for _ in range(steps):
        moved = [np.clip(point + sign * each, low, high) for sign in (1.0, -1.0) for each in np.diag(DIFFERENCE * prior)]
        outcomes, apart = errors(moved), 2.0 * DIFFERENCE * prior
        jacobian = np.moveaxis(outcomes[: len(point)] - outcomes[len(point) :], 0, -1) / apart
        weighted = jacobian * huber(residuals)[..., None]
        flat, target = weighted.reshape(-1, len(point)), (huber(residuals) * residuals).ravel()
        normal = flat.T @ flat + np.diag(prior**-2.0)
        gradient = flat.T @ target + (point - start) / prior**2
        step = -np.linalg.solve(normal, gradient)
        step *= min(1.0, 1.0 / float(np.abs(step).max()))
        candidates = [np.clip(point + length * step, low, high) for length in (1.0, 0.6, 0.3, 0.1)]
        outcomes = errors(candidates)
        costs = [cost(outcome, candidate) for outcome, candidate in zip(outcomes, candidates, strict=True)]
        chosen = int(np.argmin(costs))
        if costs[chosen] >= best * (1.0 - 1e-3):
            break
        point, residuals, best = candidates[chosen], outcomes[chosen], costs[chosen]
    return WholeRunFit(point, residuals, jacobian)


def huber(residuals: Floats, bend: float = 2.0) -> Floats:
    """Square roots of the weights that make squares grow linearly beyond `bend`."""
    return np.sqrt(np.minimum(1.0, bend / np.maximum(np.abs(residuals), 1e-12)))


def calibrate(observations: Sequence[Observation], *, jobs: int = 1) -> Calibration:
    """Fit everything. Raises MisuseError for runs that cannot be calibrated together."""
    _check_graphs(observations)
    host, slowness = fit_speed(observations)
    host = fit_pauses(observations, host, slowness)
    operations = fit_operations(observations, host, slowness)
    found = targets(observations, operations, slowness)
    whole = fit_whole_runs(found, host, NetworkCosts(), jobs=jobs)
    errors = left_out_errors(found, whole, host)
    host, network = install(host, NetworkCosts(), whole.logs)
    costs = Costs(
        machine=observations[0].trace.manifest.machine.cpu,
        device=observations[0].configuration.device,
        memory_bytes=observations[0].trace.manifest.machine.memory_bytes,
        host=host,
        network=network,
        memory=fit_memory(observations),
        operations=operations,
        errors=tuple(errors),
        noise=repeat_noise(observations),
        noise_at_speed=slowness_noise(observations, slowness, found, host, network),
        calibrated=_range_of(observations),
        runs=tuple(_provenance(each) for each in observations),
        notes=tuple(_notes(observations)),
    )
    return Calibration(costs, tuple(found), whole, slowness)


def left_out_errors(found: Sequence[Target], whole: WholeRunFit, host: HostCosts) -> list[EpochError]:
    """Each configuration's error with the parameters that the others alone give; its operations' costs stay."""
    errors = []
    for index, target in enumerate(found):
        models = install(host, NetworkCosts(), whole.without(index))
        usual, at_speed = (-float(errors_of(each, *models)[0]) for each in (replace(target, slowness=1.0), target))
        errors.append(EpochError(oversubscribed=target.configuration.ranks > host.cores, log_ratio=usual, at_speed=at_speed))
    return errors


def slowness_noise(
    observations: Sequence[Observation],
    slowness: Mapping[Observation, float],
    found: Sequence[Target],
    host: HostCosts,
    network: NetworkCosts,
) -> float:
    """`repeat_noise` without what the machine's speed explains: each configuration's elasticity is simulated."""
    step = 1.15
    squares, freedom = 0.0, 0
    for target in found:
        runs = [each for each in observations if each.configuration == target.configuration]
        slow, fast = (
            errors_of(replace(target, slowness=target.slowness * each), host, network)[0] for each in (step, 1 / step)
        )
        elasticity = float(slow - fast) / (2.0 * np.log(step))
        left = np.log([each.seconds for each in runs]) - elasticity * np.log([slowness[each] for each in runs])
        squares += float(((left - left.mean()) ** 2).sum())
        freedom += len(runs) - 1
    return float(np.sqrt(squares / freedom)) if freedom else 0.0


@dataclass(frozen=True)
class Calibration:
    """Costs, and what they were found from."""

    costs: Costs
    targets: tuple[Target, ...]
    fit: WholeRunFit
    slowness: Mapping[Observation, float]


def repeat_noise(observations: Sequence[Observation]) -> float:
    """Standard deviation of log(a run's epoch time / the mean of its configuration's); 0 without repeats."""
    grouped: dict[Configuration, list[float]] = defaultdict(list)
    for observation in observations:
        grouped[observation.configuration].append(np.log(observation.seconds))
    squares = sum(float(((np.array(logs) - np.mean(logs)) ** 2).sum()) for logs in grouped.values())
    freedom = sum(len(logs) - 1 for logs in grouped.values())
    return float(np.sqrt(squares / freedom)) if freedom else 0.0


def _check_graphs(observations: Sequence[Observation]) -> None:
    names: dict[str, Observation] = {}
    for each in observations:
        other = names.setdefault(each.configuration.graph, each)
        if other.configuration.fingerprint != each.configuration.fingerprint:
            raise MisuseError(
                f"{each.folder} and {other.folder} trained on two different graphs, both called '{each.configuration.graph}': "
                "leave one of them out"
            )


def _range_of(observations: Sequence[Observation]) -> CalibratedRange:
    configurations = [each.configuration for each in observations]
    widths = {bits for each in observations for message in each.messages["bits_out"].head(200) for bits, _ in message}
    return CalibratedRange(
        graphs={each.fingerprint: each.graph for each in configurations},
        ranks=tuple(sorted({each.ranks for each in configurations})),
        widths=tuple(sorted(int(bits) for bits in widths)),
        links=tuple(sorted({each.link for each in configurations})),
        methods=tuple(sorted({each.method for each in configurations})),
        threads=tuple(sorted({each.threads for each in configurations})),
    )


def _provenance(observation: Observation) -> Provenance:
    configuration, manifest = observation.configuration, observation.trace.manifest
    return Provenance(
        run=str(observation.folder),
        graph=configuration.graph,
        fingerprint=configuration.fingerprint,
        ranks=configuration.ranks,
        method=configuration.method,
        bits=configuration.bits,
        link=link_name(configuration.link),
        device=configuration.device,
        date=manifest.date,
        halocast=manifest.halocast,
    )


def _notes(observations: Sequence[Observation]) -> list[str]:
    notes = []
    found = _range_of(observations)
    if len(found.widths) < 2:
        notes.append("all messages had one width: forecasts of other widths are extrapolated")
    if len(found.ranks) < 2:
        notes.append("all runs had one number of ranks: forecasts of others are extrapolated")
    if all(link == 0.0 for link in found.links):
        notes.append("no run had shaped links: what a link's rate does is extrapolated")
    return notes
