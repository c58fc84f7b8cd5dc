"""A simulated epoch as a trace: the format that runs are recorded in, so that both open side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import halocast
from halocast.runtime.programs import METHODS
from halocast.simulator.costs import Costs
from halocast.simulator.engine import Simulation
from halocast.simulator.forecast import Scenario
from halocast.traces.buffers import walk
from halocast.traces.operations import AllReduce, Exchange, Free, Keep, Program
from halocast.traces.trace import (
    COMMUNICATION,
    COMPUTE,
    TRAIN,
    ClockOffset,
    Machine,
    TracedGraph,
    TraceManifest,
    TraceWriter,
    write_manifest,
)

ORIGIN_NS = 1_000_000_000
"""Where simulated clocks start: a trace has no negative times."""


def write_timeline(
    folder: Path, costs: Costs, scenario: Scenario, simulation: Simulation, *, nodes: int, edges: int, config: dict[str, Any]
) -> None:
    """Write the simulated epoch to `folder`, as epoch 0 of a finished run."""
    begin = min(timeline.begin for timeline in simulation.ranks)
    method = METHODS[scenario.method]
    for rank, (view, work, timeline) in enumerate(zip(scenario.views(), simulation.work, simulation.ranks, strict=True)):
        live = _live_bytes(method.epoch(view))

        def nanoseconds(seconds: float) -> int:
            return ORIGIN_NS + round((seconds - begin) * 1e9)

        with TraceWriter(folder, rank) as writer:
            for index, operation in enumerate(work.operations):
                start, wall = nanoseconds(float(timeline.start[index])), round(float(timeline.wall[index]) * 1e9)
                cpu = round(float(work.seconds[index]) * 1e9)
                peer = getattr(operation, "peer", -1)
                writer.span(TRAIN, 0, index, operation, COMPUTE, start, wall, cpu, live[index], peer=peer)
                if not isinstance(operation, Exchange | AllReduce):
                    continue
                done = nanoseconds(timeline.done.get(index, float(timeline.start[index])))
                writer.span(TRAIN, 0, index, operation, COMMUNICATION, start, max(0, done - start), 0, 0)
                if isinstance(operation, Exchange):
                    _messages(writer, index, operation, timeline.landed, start, nanoseconds)
    write_manifest(
        folder,
        TraceManifest(
            halocast=halocast.__version__,
            machine=Machine(
                cpu=costs.machine,
                cores=costs.host.cores,
                memory_bytes=costs.memory_bytes,
                devices=(costs.device,) * scenario.ranks,
            ),
            config={**config, "forecast": True},
            seed=0,
            world_size=scenario.ranks,
            graph=TracedGraph(name=scenario.graph, fingerprint=scenario.fingerprint, nodes=nodes, edges=edges),
            workload=scenario.workload.to_json(),
            clock_offsets=(ClockOffset(),) * scenario.ranks,
            date=date.today().isoformat(),
            finished=True,
        ),
    )


def _messages(writer: TraceWriter, index: int, operation: Exchange, landed: dict[tuple[int, int], float], start: int, nanoseconds: Any) -> None:  # noqa: E501 # fmt: skip
    outgoing = {message.peer: message for message in operation.outgoing}
    incoming = {message.peer: message for message in operation.incoming}
    for peer in sorted({*outgoing, *incoming}):
        arrived = nanoseconds(landed[index, peer]) if (index, peer) in landed else 0
        writer.message(
            TRAIN, 0, index, operation.layer, operation.direction, outgoing.get(peer), incoming.get(peer), start,
            start if peer in outgoing else 0, arrived,
        )  # fmt: skip


def _live_bytes(program: Program) -> Sequence[int]:
    """By executed operation: bytes of the buffers alive after it."""
    sizes: dict[str, int] = {}
    total, live = 0, []
    for operation in walk(program):
        if isinstance(operation, Keep):
            sizes[operation.name] = operation.work.bytes_out
            total += operation.work.bytes_out
        elif isinstance(operation, Free):
            total -= sizes.pop(operation.name, 0)
        else:
            live.append(total)
    return live
