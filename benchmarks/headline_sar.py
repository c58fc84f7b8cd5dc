"""What a rank holds under sequential aggregation and rematerialisation (SAR): for memory alone.

H. Mostafa, "Sequential Aggregation and Rematerialization: Distributed Full-batch Training of Graph Neural Networks on Large
Graphs", MLSys 2022. The program is halocast's own (`halocast.runtime.programs.sar`): neighbours' rows are fetched from one
peer after another, added up and dropped, while those of the next peer arrive; going backward the gradients of a peer's rows
are pushed to it and nothing is fetched again. The adjacency and the optimiser are as SAR's authors ran it, in DGL and
PyTorch (github.com/IntelLabs/SAR).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from halocast.runtime.programs import METHODS
from halocast.traces.buffers import plan_arena, walk
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, RankView

METHOD = METHODS["sar"]
SAVINGS = replace(ExactSavings.none(), transform_first=True)
"""As DGL's SAGEConv: where a layer narrows the row, multiply before aggregating."""
PREFETCH = 1
"""Rounds under way beside the one that is added up."""
INDEX_BYTES = 8
"""DGL's default integers."""
FORMATS = 6
"""Integers an edge: source and target (COO), neighbour and edge id by row (CSR) and by column (CSC), as DGL makes for
aggregating in both directions."""
NODE_BYTES = 8 + 3
"""A label and three masks a node."""
OPTIMISER_COPIES = 4
"""Parameters, gradients and Adam's two moments."""


@dataclass(frozen=True)
class SarMemory:
    """Bytes a rank holds at its worst moment."""

    buffers: int
    """Alive at once: activations, gradients, rows under way."""
    features: int
    adjacency: int
    other: int

    @property
    def total(self) -> int:
        return self.buffers + self.features + self.adjacency + self.other


def sar_view(rank: int, ranks: int, layers: tuple[LayerSpec, ...], part: PartStatistics) -> RankView:
    """What the program is told: SAR's order of operations, and none of halocast's further savings."""
    return RankView(rank, ranks, layers, part, SAVINGS, overlap=True, prefetch=PREFETCH)


def sar_memory(view: RankView) -> SarMemory:
    part, value = view.part, view.value_bytes
    entries = part.nnz_central + part.nnz_marginal
    parameters = sum(layer.parameters for layer in view.layers)
    return SarMemory(
        buffers=plan_arena([walk(METHOD.epoch(view))]).peak_bytes,
        features=value * part.own * part.feature_dim,
        adjacency=INDEX_BYTES * FORMATS * entries,
        other=NODE_BYTES * part.own + OPTIMISER_COPIES * value * parameters,
    )
