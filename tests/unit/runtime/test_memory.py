"""Placing buffers: never two live ones in one place, and never more than a simple bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halocast.runtime.memory import Arena
from halocast.traces.buffers import ALIGNMENT, plan_arena, summarize
from halocast.traces.operations import Free, Keep, Operation, Work


def keep(name: str, rows: int, dim: int = 16) -> Keep:
    return Keep(name=name, work=Work(rows=rows, dim_out=dim, bytes_out=rows * dim * 4))


@st.composite
def programs(draw: st.DrawFn) -> list[Operation]:
    """Random lives: names are kept once, freed at most once, in any interleaving."""
    operations: list[Operation] = []
    alive: list[str] = []
    for number in range(draw(st.integers(1, 25))):
        operations.append(keep(f"b{number}", draw(st.integers(0, 40))))
        alive.append(f"b{number}")
        while alive and draw(st.booleans()):
            operations.append(Free(name=alive.pop(draw(st.integers(0, len(alive) - 1)))))
    return operations


@given(programs())
def test_live_buffers_never_share_memory(program: list[Operation]) -> None:
    plan = plan_arena([program])
    alive: dict[str, tuple[int, int]] = {}
    for operation in program:
        if isinstance(operation, Keep):
            place = plan.placements[0][operation.name]
            start, end = place.offset, place.offset + operation.work.bytes_out
            assert start % ALIGNMENT == 0
            assert end <= plan.size
            for other_start, other_end in alive.values():
                assert end <= other_start or other_end <= start
            if end > start:
                alive[operation.name] = (start, end)
        elif isinstance(operation, Free):
            alive.pop(operation.name, None)


@given(programs())
def test_the_arena_is_no_smaller_than_the_peak_and_no_larger_than_the_sum(program: list[Operation]) -> None:
    plan = plan_arena([program])
    sizes = [-(-each.work.bytes_out // ALIGNMENT) * ALIGNMENT for each in program if isinstance(each, Keep)]
    assert plan.peak_bytes <= plan.size <= sum(sizes)


def test_a_stack_of_buffers_needs_exactly_its_peak() -> None:
    program = [keep("a", 10), keep("b", 20), Free(name="b"), keep("c", 20), Free(name="c"), Free(name="a")]
    assert plan_arena([program]).size == 30 * 64


def test_programs_share_one_arena() -> None:
    plan = plan_arena([[keep("a", 10)], [keep("a", 30), keep("b", 5)]])
    assert plan.size == 35 * 64
    arena = Arena(plan, torch.float32, torch.device("cpu"))
    assert [set(buffers) for buffers in arena.buffers] == [{"a"}, {"a", "b"}]
    assert arena.buffers[1]["a"].shape == (30, 16)


@pytest.mark.parametrize("program", [[keep("a", 1), keep("a", 1)], [keep("a", 1), Free(name="a"), keep("a", 1)]])
def test_a_name_kept_twice_is_an_error(program: list[Operation]) -> None:
    with pytest.raises(ValueError, match="'a' is kept twice"):
        plan_arena([program])


def test_freeing_what_is_not_alive_is_an_error() -> None:
    with pytest.raises(ValueError, match="'a' is freed but not alive"):
        plan_arena([[Free(name="a")]])


def test_the_summary_counts_bytes() -> None:
    summary = summarize([keep("a", 2), keep("b", 3)])
    assert (summary.exchange_bytes, summary.reduce_bytes, summary.peak_bytes) == (0, 0, 5 * 64)
