"""Persistent buffers: every `Keep` of a program gets a fixed place in one arena, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from halocast.runtime import kernels
from halocast.traces.buffers import ArenaPlan, Placement


class Arena:
    """The memory itself, allocated once; buffers are views of it. A new plan that fits takes the same memory."""

    def __init__(self, plan: ArenaPlan, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.buffers: tuple[dict[str, Tensor], ...] = ()
        self.install(plan)

    def install(self, plan: ArenaPlan) -> None:
        """Lay the plan's buffers out; what the old ones held is lost."""
        if plan.size > self._memory.numel():
            self._memory = torch.empty(plan.size, dtype=torch.uint8, device=self._device)
            kernels.advise_huge_pages(self._memory)  # gathered rows then miss the page table less: a sixth off an aggregation
        self.buffers = tuple(
            {name: _view(self._memory, placement, self._dtype) for name, placement in placements.items()}
            for placements in plan.placements
        )


def _view(memory: Tensor, placement: Placement, dtype: torch.dtype) -> Tensor:
    if placement.is_wire:
        return memory[placement.offset : placement.offset + placement.rows * placement.dim]
    values = placement.rows * placement.dim
    part = memory[placement.offset : placement.offset + values * dtype.itemsize]
    return part.view(dtype).view(placement.rows, placement.dim)
