"""Epochs that the simulator made up, as traces: any method on any number of ranks, in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from halocast.runtime.programs import METHODS
from halocast.runtime.programs.adaqp import uniform_bits
from halocast.simulator.costs import Costs, HostCosts, NetworkCosts
from halocast.simulator.engine import Machine, RankWork, Simulation, lower, simulate
from halocast.simulator.forecast import Scenario
from halocast.simulator.network import star
from halocast.simulator.timeline import write_timeline
from halocast.traces.operations import AllReduce, Exchange, Operation
from halocast.traces.trace import Trace, read_trace
from halocast.traces.workload import ExactSavings, RankView
from tests.unit.simulator.parts import workload

SAVINGS = replace(ExactSavings.none(), labelled_gradients_only=True)
LINK = 1e6
"""Bytes per second of a port."""


def simulated(
    folder: Path, ranks: int, method: str = "sar", *, overlap: bool = True, prefetch: int = 1, bits: int = 0, seed: int = 0,
    batch_norm: bool = False,
) -> tuple[Trace, Simulation]:  # fmt: skip
    """An epoch of ranks that differ in rows and speed: some rows go one way only where gradients are the labelled ones'.

    `bits`: of quantised messages; 0: 4 of adaqp's, and sar's as they are.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(1, 40, (ranks, ranks)) * (1 - np.eye(ranks, dtype=int))
    rows[0, ranks - 1] = 1  # none of them labelled
    load = workload(rows, dims=(16, 8, 8, 4), exact=SAVINGS, overlap=overlap, batch_norm=batch_norm)
    load = replace(load, prefetch=prefetch)
    views = [load.view(rank) for rank in range(ranks)]
    if bits or method == "adaqp":
        views = [load.view(view.rank, uniform_bits(view, bits or 4)) for view in views]
    network = NetworkCosts(
        efficiency=1.0, latency=1e-5, send_seconds=1e-5, receive_seconds=1e-5, byte_seconds=0.0, reduce_step_seconds=1e-5,
        post_seconds=1e-5, wake_seconds=1e-5,
    )  # fmt: skip
    host = HostCosts(cores=1)
    simulation = simulate([_lower(view, method, random) for view in views], Machine(star(ranks, LINK), host, network))
    scenario = Scenario("made up", "", load, method, tuple(view.bits for view in views), LINK)
    costs = Costs.model_construct(machine="a processor", device="cpu", memory_bytes=1 << 30, host=host, network=network)
    write_timeline(folder, costs, scenario, simulation, nodes=100 * ranks, edges=1000, config={})
    return read_trace(folder), simulation


def _lower(view: RankView, method: str, random: np.random.Generator) -> RankWork:
    """Operations of about 0.3 ms, a fixed 0.01 ms to start an exchange."""

    def price(operation: Operation) -> float:
        return 1e-5 if isinstance(operation, Exchange | AllReduce) else 3e-4 * float(random.lognormal())

    return lower(METHODS[method].epoch(view), price)
