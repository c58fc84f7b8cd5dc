"""What a part's share costs in a simulated epoch: from the seconds of its operations and the rates of its ports."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from halocast.runtime.programs.schedule import schedule_layers
from halocast.simulator.costs import Costs
from halocast.simulator.engine import Simulation
from halocast.simulator.forecast import Scenario, machine_of
from halocast.simulator.network import Topology
from halocast.simulator.planner.refine import Weights
from halocast.traces.operations import (
    Aggregate,
    AllReduce,
    Apply,
    Dequantize,
    Direction,
    Exchange,
    Loss,
    Merge,
    Operation,
    Part,
    Quantize,
    Step,
    Wait,
)
from halocast.traces.workload import PartStatistics

Floats = npt.NDArray[np.float64]


def weights_of(costs: Costs, scenario: Scenario, simulation: Simulation) -> Weights:
    """Seconds for each node, entry and row, means over the simulated epoch of `scenario`; by rank as its speed and port are.

    What operations cost whatever their work is counts to their rows as well: the weights hold near this partition. Ranks that
    share cores are taken to compute side by side.
    """
    views, slowness = scenario.views(), costs.host.slowness
    speeds = np.array(scenario.speeds or (1.0,) * scenario.ranks)
    spent: dict[str, float] = defaultdict(float)
    fixed = np.zeros(scenario.ranks)
    for rank, (view, work) in enumerate(zip(views, simulation.work, strict=True)):
        fixed[rank] = slowness * costs.host.gap_seconds * len(work.operations)
        for operation, seconds in zip(work.operations, (slowness * work.seconds).tolist(), strict=True):
            for share, name in shares_of(operation, view.part):
                if name == "fixed":
                    fixed[rank] += seconds
                else:
                    spent[name] += share * seconds * speeds[rank]
    parts = scenario.workload.parts
    counts = {
        "node": sum(part.own for part in parts),
        "entry": sum(part.nnz_central + part.nnz_marginal for part in parts),
        "halo": sum(part.halo for part in parts),
        "boundary": sum(part.boundary for part in parts),
    }
    each = {name: spent[name] / count / speeds if count else np.zeros(scenario.ranks) for name, count in counts.items()}
    machine = machine_of(costs, scenario)
    # A message's bytes cross the port and, before and after, a transport thread: one after the other, the slowest counts.
    seconds_a_byte = np.maximum(
        1.0 / (port_rates(machine.topology) * costs.network.efficiency), slowness * costs.network.byte_seconds
    )
    row, labelled_row = bytes_a_row(scenario, simulation)
    return Weights(
        node=each["node"], entry=each["entry"], halo=each["halo"], boundary=each["boundary"],
        row=row * seconds_a_byte, labelled_row=labelled_row * seconds_a_byte, fixed=fixed,
    )  # fmt: skip


def shares_of(operation: Operation, part: PartStatistics) -> tuple[tuple[float, str], ...]:
    """What an operation's time grows with: (share of the time, field of Weights)."""
    forward = operation.direction is Direction.FORWARD
    match operation:
        case Aggregate() | Merge() | Apply():
            return ((1.0, "entry"),)
        case Quantize():
            return ((1.0, "boundary" if forward else "halo"),)
        case Dequantize():
            return ((1.0, "halo" if forward else "boundary"),)
        case Exchange() | AllReduce() | Wait() | Loss() | Step():
            return ((1.0, "fixed"),)
    if operation.part is Part.HALO:
        return ((1.0, "halo"),)
    if operation.part is Part.ALL:
        halo = part.halo / max(part.rows(Part.ALL), 1)
        return ((1.0 - halo, "node"), (halo, "halo"))
    return ((1.0, "node"),)


def bytes_a_row(scenario: Scenario, simulation: Simulation) -> tuple[float, float]:
    """Bytes that a row adds to an epoch's exchanges of all rows, and to those of rows beside training nodes."""
    labelled_only = [layer.labelled_only for layer in schedule_layers(scenario.workload.view(0))]
    sent: dict[tuple[int, Direction], list[int]] = defaultdict(lambda: [0, 0])
    for work in simulation.work:
        for operation in work.operations:
            if isinstance(operation, Exchange):
                total = sent[operation.layer, operation.direction]
                total[0] += sum(message.bytes for message in operation.outgoing)
                total[1] += sum(message.rows for message in operation.outgoing)
    all_rows = labelled_rows = 0.0
    for (layer, direction), (size, rows) in sent.items():
        each = size / rows if rows else 0.0
        if direction is Direction.BACKWARD and labelled_only[layer]:
            labelled_rows += each
        else:
            all_rows += each
    return all_rows, labelled_rows


def port_rates(topology: Topology) -> Floats:
    """[ranks] bytes per second that a rank's messages to other hosts have when all ranks send; of one host, those inside.

    What several ranks' messages cross is shared out evenly.
    """
    if (topology.host == topology.host[0]).all():
        ways = (topology.inside[:, :1], topology.inside[:, 1:])
    else:
        ways = (topology.outward, topology.inward)
    shares = []
    for way in ways:
        users = np.bincount(way.ravel(), minlength=len(topology.capacity))
        shares.append((topology.capacity / np.maximum(users, 1))[way].min(axis=1))
    return np.asarray(np.minimum(*shares))
