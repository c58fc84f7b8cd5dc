"""Synthetic traced runs: K ranks of a GraphSAGE-like model in virtual time, for tests and for working on pictures.

Straight-line code with made-up but plausible costs. It knows nothing of the runtime, the programs and the simulator,
so that what is tested with it does not depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halocast.traces.operations import (
    Aggregate,
    AllReduce,
    Dequantize,
    Direction,
    Exchange,
    Loss,
    Operation,
    Part,
    PeerMessage,
    Quantize,
    Stage,
    Step,
    Transform,
    Wait,
    Work,
)
from halocast.traces.trace import ClockOffset, Machine, TracedGraph, TraceManifest, TraceWriter, write_manifest

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
EPOCH_START_NS = 5_000_000_000
LATENCY_NS = 150_000
FLIGHT_START_NS = 40_000


@dataclass(frozen=True)
class Scenario:
    """Sizes and speeds of a synthetic run."""

    world_size: int = 2
    layers: int = 3
    epochs: int = 5
    rows: int = 32_000
    marginal: float = 0.25
    dim: int = 128
    bytes_per_second: float = 1.0e9
    bits: int = 32
    clock_offsets_ns: tuple[int, ...] = (0, 1_234_567, -7_654_321, 99)
    noise: float = 0.04
    seed: int = 0


@dataclass
class SyntheticRank:
    """One rank's virtual clock; `now` is true time, what is written is true time plus the rank's clock offset."""

    rank: int
    offset_ns: int
    writer: TraceWriter
    random: np.random.Generator
    noise: float
    now: int = EPOCH_START_NS
    epoch: int = 0
    index: int = 0
    live_bytes: int = 40_000_000

    def run(self, operation: Operation, milliseconds: float, *, keep: int = 0, peer: int = -1) -> None:
        """A compute operation."""
        wall = int(milliseconds * 1e6 * (1 + self.noise * self.random.standard_exponential()))
        self.live_bytes += keep
        self.record(operation, self.next_index(), "compute", self.now, wall, int(0.95 * wall), peer)
        self.now += wall + 3_000

    def wait(self, operation: Operation, until: int, peer: int = -1) -> None:
        """Block until the true time `until`."""
        wall = max(until - self.now, 0) + 2_000
        self.record(operation, self.next_index(), "compute", self.now, wall, 2_000, peer)
        self.now += wall

    def next_index(self) -> int:
        self.index += 1
        return self.index - 1

    def start_flight(self, operation: Operation, landed: int) -> int:
        """A communication operation: a span of its start and one of its flight, under one index, which it returns."""
        index, start = self.next_index(), self.now
        self.record(operation, index, "compute", start, FLIGHT_START_NS, FLIGHT_START_NS, -1)
        self.record(operation, index, "communication", start, landed - start, 0, -1)
        self.now += FLIGHT_START_NS
        return index

    def record(self, operation: Operation, index: int, stream: str, start: int, wall: int, cpu: int, peer: int) -> None:
        live_bytes = self.live_bytes if stream == "compute" else 0
        self.writer.span(
            *("train", self.epoch, index, operation, stream, start + self.offset_ns, wall, cpu),
            *(live_bytes, peer),
        )


def write_synthetic_run(folder: Path, scenario: Scenario | None = None, *, finished: bool = True) -> TraceManifest:
    """Write a trace of `scenario` into `folder`, one part a rank; returns its manifest."""
    scenario = scenario or Scenario()
    manifest = synthetic_manifest(scenario, finished=finished)
    write_manifest(folder, manifest)
    ranks = [
        SyntheticRank(
            rank,
            manifest.clock_offsets[rank].offset_ns,
            TraceWriter(folder, rank),
            np.random.default_rng([scenario.seed, rank]),
            scenario.noise,
        )
        for rank in range(scenario.world_size)
    ]
    for epoch in range(scenario.epochs):
        run_epoch(scenario, ranks, epoch)
    for rank in ranks:
        rank.writer.close()
    return manifest


def synthetic_manifest(scenario: Scenario, *, finished: bool = True) -> TraceManifest:
    return TraceManifest(
        halocast="0.1.0",
        versions={"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.0"},
        machine=Machine(cpu="a processor", cores=2, memory_bytes=8 << 30, devices=("cpu",) * scenario.world_size),
        config={"method": "full", "model": {"kind": "sage", "layers": scenario.layers, "hidden": scenario.dim}},
        seed=scenario.seed,
        world_size=scenario.world_size,
        graph=TracedGraph(name="debian", fingerprint="0123456789abcdef", nodes=63_666, edges=322_726),
        workload={},
        clock_offsets=tuple(
            ClockOffset(offset_ns=offset, uncertainty_ns=20_000 if rank else 0)
            for rank, offset in enumerate(scenario.clock_offsets_ns[: scenario.world_size])
        ),
        date="2026-11-21",
        finished=finished,
    )


def run_epoch(scenario: Scenario, ranks: list[SyntheticRank], epoch: int) -> None:
    for rank in ranks:
        rank.epoch, rank.index = epoch, 0
    for layer in range(scenario.layers):
        forward_layer(scenario, ranks, layer)
    for rank in ranks:
        rank.run(Loss(scenario.layers - 1, work=Work(rows=scenario.rows, dim_in=16, dim_out=16)), 1.6)
    reduces = []
    for layer in reversed(range(scenario.layers)):
        backward_layer(scenario, ranks, layer)
        reduces.append((layer, start_reduce(scenario, ranks, layer)))
    for layer, landed in reduces:
        for rank in ranks:
            rank.wait(Wait(layer, BACKWARD), landed)
    for rank in ranks:
        rank.run(Step(work=Work(rows=3 * scenario.dim * scenario.dim)), 0.5)
        rank.now += 200_000


def forward_layer(scenario: Scenario, ranks: list[SyntheticRank], layer: int) -> None:
    central, marginal, boundary = split_rows(scenario)
    size = boundary * (len(ranks) - 1) * scenario.dim * 4
    for rank in ranks:
        work = Work(rows=boundary, dim_in=scenario.dim, dim_out=scenario.dim, bits=scenario.bits)
        rank.run(Quantize(layer, FORWARD, work=work), 1.2, keep=size)
    landed = exchange(scenario, ranks, layer, FORWARD)
    for rank in ranks:
        rank.run(Aggregate(layer, FORWARD, Part.CENTRAL, Work(rows=central, nnz=10 * central)), 11)
        rank.run(Transform(layer, FORWARD, Part.CENTRAL, Work(rows=central), stage=Stage.WHOLE), 6)
        for peer in peers(rank, ranks):
            rank.wait(Wait(layer, FORWARD, peer=peer.rank), landed[peer.rank, rank.rank], peer.rank)
        rank.run(Aggregate(layer, FORWARD, Part.MARGINAL, Work(rows=marginal, nnz=14 * marginal)), 6)
        rank.run(Transform(layer, FORWARD, Part.MARGINAL, Work(rows=marginal), stage=Stage.WHOLE), 2.4, keep=-size)


def backward_layer(scenario: Scenario, ranks: list[SyntheticRank], layer: int) -> None:
    central, marginal, boundary = split_rows(scenario)
    own = central + marginal
    if layer == 0:
        for rank in ranks:
            rank.run(Transform(layer, BACKWARD, Part.OWN, Work(rows=own), stage=Stage.WEIGHTS), 7)
        return
    for rank in ranks:
        rank.run(Transform(layer, BACKWARD, Part.MARGINAL, Work(rows=marginal), stage=Stage.INPUTS), 2)
        rank.run(Aggregate(layer, BACKWARD, Part.HALO, Work(rows=boundary, nnz=6 * boundary)), 3)
    landed = exchange(scenario, ranks, layer, BACKWARD)
    for rank in ranks:
        rank.run(Aggregate(layer, BACKWARD, Part.OWN, Work(rows=own, nnz=11 * own)), 14)
        rank.run(Transform(layer, BACKWARD, Part.OWN, Work(rows=own), stage=Stage.WEIGHTS), 6)
        for peer in peers(rank, ranks):
            rank.wait(Wait(layer, BACKWARD, peer=peer.rank), landed[peer.rank, rank.rank], peer.rank)
            rank.run(Dequantize(layer, BACKWARD, work=Work(rows=boundary), peer=peer.rank), 1.1, peer=peer.rank)


def exchange(scenario: Scenario, ranks: list[SyntheticRank], layer: int, direction: Direction) -> dict[tuple[int, int], int]:
    """Start an exchange on every rank, each where it is; returns when (sender, receiver)'s message landed."""
    boundary = split_rows(scenario)[2]
    size = boundary * scenario.dim * scenario.bits // 8
    seconds = size * (len(ranks) - 1) / scenario.bytes_per_second
    landed = {
        (sender.rank, receiver.rank): max(sender.now, receiver.now) + LATENCY_NS + int(seconds * 1e9)
        for sender in ranks
        for receiver in peers(sender, ranks)
    }
    for rank in ranks:
        messages = tuple(PeerMessage(peer.rank, boundary, size, ((scenario.bits, boundary),)) for peer in peers(rank, ranks))
        total = size * len(messages)
        work = Work(rows=boundary * len(messages), bytes_out=total, bytes_in=total, bits=scenario.bits)
        operation = Exchange(layer, direction, Part.HALO, work, outgoing=messages, incoming=messages)
        start = rank.now
        index = rank.start_flight(operation, max(landed[peer.rank, rank.rank] for peer in peers(rank, ranks)))
        for message in messages:
            rank.writer.message(
                *("train", rank.epoch, index, layer, direction, message, message, start + rank.offset_ns),
                landed[rank.rank, message.peer] + rank.offset_ns,
                landed[message.peer, rank.rank] + rank.offset_ns,
            )
    return landed


def start_reduce(scenario: Scenario, ranks: list[SyntheticRank], layer: int) -> int:
    """Start an all-reduce on every rank; returns when it is through, the same time for all."""
    size = 2 * scenario.dim * scenario.dim * 4
    done = max(rank.now for rank in ranks) + LATENCY_NS + int(2 * size / scenario.bytes_per_second * 1e9) + 900_000
    for rank in ranks:
        work = Work(rows=size // 4, bytes_out=size, bytes_in=size)
        rank.start_flight(AllReduce(layer, BACKWARD, work=work), done)
    return done


def split_rows(scenario: Scenario) -> tuple[int, int, int]:
    """Central, marginal and (to each peer) boundary rows."""
    marginal = int(scenario.rows * scenario.marginal)
    return scenario.rows - marginal, marginal, marginal


def peers(rank: SyntheticRank, ranks: list[SyntheticRank]) -> list[SyntheticRank]:
    return [other for other in ranks if other is not rank]
