"""Where a program's buffers would lie: every `Keep` gets a fixed place in one arena, planned before the first epoch.

The runtime allocates the arena that this plans; the simulator reads off it what a rank will hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halocast.traces.operations import AllReduce, Exchange, Free, Keep, Operation, Program

ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads like


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one buffer lives, in bytes from the arena's start, and its shape."""

    offset: int
    rows: int
    dim: int
    is_wire: bool


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Places for all buffers of some programs. Buffers alive at the same time do not overlap."""

    size: int
    placements: tuple[dict[str, Placement], ...]
    """One mapping a program."""
    peak_bytes: int
    """Most bytes alive at once; `size` exceeds it by what fragmentation costs."""


def walk(program: Program) -> list[Operation]:
    """All operations of a program, without executing any (values sent back are opaque to it)."""
    operations: list[Operation] = []
    try:
        operation = next(program)
        while True:
            operations.append(operation)
            operation = program.send(None)
    except StopIteration:
        return operations


@dataclass(frozen=True, slots=True)
class _Lifetime:
    name: str
    size: int
    start: int
    end: int
    rows: int
    dim: int
    is_wire: bool


def plan_arena(programs: Sequence[Iterable[Operation]]) -> ArenaPlan:
    """Place every buffer, largest first, at the lowest offset free for its whole life (one arena for all programs).

    Raises ValueError for a program that keeps a name twice or frees an unknown one.
    """
    placements, size, peak = [], 0, 0
    for program in programs:
        lifetimes = _lifetimes(program)
        placed: list[tuple[_Lifetime, int]] = []
        for lifetime in sorted(lifetimes, key=lambda each: (-each.size, each.start)):
            offset = _lowest_free_offset(lifetime, placed)
            placed.append((lifetime, offset))
            size = max(size, offset + lifetime.size)
        placements.append({each.name: Placement(offset, each.rows, each.dim, each.is_wire) for each, offset in placed})
        peak = max(peak, _peak(lifetimes))
    return ArenaPlan(size, tuple(placements), peak)


def _lifetimes(program: Iterable[Operation]) -> list[_Lifetime]:
    alive: dict[str, tuple[int, Keep]] = {}
    lifetimes: dict[str, _Lifetime] = {}
    clock = 0

    def end_life(name: str) -> None:
        start, keep = alive.pop(name)
        size = -(-keep.work.bytes_out // ALIGNMENT) * ALIGNMENT
        lifetimes[name] = _Lifetime(name, size, start, clock, keep.work.rows, keep.work.dim_out, keep.is_wire)

    for clock, operation in enumerate(program):
        if isinstance(operation, Keep):
            if operation.name in alive or operation.name in lifetimes:
                raise ValueError(f"buffer '{operation.name}' is kept twice in one program")
            alive[operation.name] = (clock, operation)
        elif isinstance(operation, Free):
            if operation.name not in alive:
                raise ValueError(f"buffer '{operation.name}' is freed but not alive")
            end_life(operation.name)
    clock += 1
    for name in list(alive):
        end_life(name)
    return list(lifetimes.values())


def _lowest_free_offset(lifetime: _Lifetime, placed: list[tuple[_Lifetime, int]]) -> int:
    neighbours = sorted(
        (offset, offset + other.size) for other, offset in placed if other.start < lifetime.end and lifetime.start < other.end
    )
    offset = 0
    for start, end in neighbours:
        if offset + lifetime.size <= start:
            break
        offset = max(offset, end)
    return offset


def _peak(lifetimes: list[_Lifetime]) -> int:
    changes = sorted([(each.start, each.size) for each in lifetimes] + [(each.end, -each.size) for each in lifetimes])
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


@dataclass(frozen=True, slots=True)
class ProgramSummary:
    """What a program will move and hold, known before anything runs."""

    exchange_bytes: int
    """Sent by this rank in exchanges."""
    reduce_bytes: int
    """Handed to all-reduces by this rank."""
    peak_bytes: int
    """Most bytes of buffers alive at once."""


def summarize(operations: Sequence[Operation]) -> ProgramSummary:
    """Bytes on the wire and in buffers of one rank's program."""
    exchanged = sum(each.work.bytes_out for each in operations if isinstance(each, Exchange))
    reduced = sum(each.work.bytes_out for each in operations if isinstance(each, AllReduce))
    return ProgramSummary(exchanged, reduced, plan_arena([operations]).peak_bytes)
