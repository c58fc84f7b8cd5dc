"""A rank's rows of the aggregation matrix, forward and transposed, as ranges of one structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.attention_types import Edges
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.edge_data import EdgeData, EdgeUse
from halocast.runtime.graph.shard import Shard
from halocast.runtime.models.block import Block, BlockStructure
from halocast.runtime.models.layers import LinearAggregation
from halocast.traces.operations import Part


@dataclass(frozen=True)
class RowSpace:
    """Where each part of ``[central | marginal | halo]`` begins and ends."""

    central: int
    own: int
    total: int

    def slice(self, part: Part) -> slice:
        return {
            Part.CENTRAL: slice(0, self.central),
            Part.MARGINAL: slice(self.central, self.own),
            Part.OWN: slice(0, self.own),
            Part.HALO: slice(self.own, self.total),
            Part.ALL: slice(0, self.total),
        }[part]


NO_EDGE_DATA = EdgeUse()


class Adjacency:
    """The shard's pattern on a device. Column numbers refer to the row space; see `Shard` for the order in a row."""

    def __init__(self, shard: Shard, device: torch.device, use: EdgeUse = NO_EDGE_DATA) -> None:
        """`use`: what blocks of edges should have of edge data."""
        statistics = shard.statistics
        self.rows = RowSpace(statistics.central, statistics.own, statistics.own + statistics.halo)
        indptr = torch.from_numpy(shard.indptr).to(device)
        self._begin_with_self = indptr[:-1].clone()
        self._begin = self._begin_with_self + 1
        self._end = indptr[1:].clone()
        self._own_end = torch.from_numpy(shard.own_end).to(device)
        self._indices = torch.from_numpy(shard.indices).to(device)
        halo_indptr = torch.from_numpy(shard.halo_indptr).to(device)
        self._halo_begin, self._halo_end = halo_indptr[:-1].clone(), halo_indptr[1:].clone()
        self._halo_indices = torch.from_numpy(shard.halo_indices).to(device)
        self.degrees = torch.from_numpy(shard.degrees).to(device)
        self.global_ids = torch.from_numpy(shard.global_ids).to(device)
        self._structures: dict[Part, BlockStructure] = {}
        self._edges: dict[tuple[int, bool | int], BlockEdges] = {}
        self._edge_data = EdgeData(shard, use, device) if use.any else None
        self._halo_ends = np.cumsum([self.rows.own, *statistics.halo_from]).tolist()
        self._marginal_by_peer = self._marginal_rows_by_peer(statistics.halo_from)
        kernels.check_neighbours(self._begin_with_self, self._end, self._indices, self.rows.total)
        kernels.check_neighbours(self._halo_begin, self._halo_end, self._halo_indices, self.rows.own)

    def _marginal_rows_by_peer(self, halo_from: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
        """(indptr, indices) of the marginal rows over one peer's halo columns, counted from its first.

        Copies, not ranges of `_indices`: the kernel looks ahead along the entries, across rows.
        """
        begin, end = self._own_end[self.rows.central :], self._end[self.rows.central :]
        counts = end - begin
        rows = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)
        columns = self._indices[_places(begin, end)]
        by_peer: dict[int, tuple[Tensor, Tensor]] = {}
        lowest = self.rows.own
        for peer, count in enumerate(halo_from):
            here = (columns >= lowest) & (columns < lowest + count)
            lowest += count
            if count:
                entries = torch.bincount(rows[here], minlength=counts.numel())
                by_peer[peer] = (torch.cat([entries.new_zeros(1), entries.cumsum(0)]), columns[here] - (lowest - count))
        return by_peer

    def halo_of(self, peer: int) -> slice:
        """Where one peer's rows are in the row space."""
        return slice(self._halo_ends[peer], self._halo_ends[peer + 1])

    def own_edges(self, *, self_loops: bool) -> BlockEdges:
        """Edges among own rows; the pattern is symmetric, so that they are the same by target and by source."""
        key = (-1, self_loops)
        if key not in self._edges:
            begin = self._begin_with_self if self_loops else self._begin
            entry = self._indices.new_zeros(0, dtype=torch.int64)
            edges = Edges(begin, self._own_end, self._indices, begin, self._own_end, self._indices, entry)
            nodes = self.global_ids[: self.rows.own]
            block = BlockEdges(edges, self.rows.slice(Part.OWN), nodes, nodes)
            if self._edge_data is not None:
                block = self._edge_data.own_block(block, _places(begin, self._own_end))
            self._edges[key] = block
        return self._edges[key]

    def peer_edges(self, peer: int, first: int | None = None) -> BlockEdges:
        """Edges from one peer's halo rows (the `first` of them) into marginal rows."""
        halo = self.halo_of(peer)
        total = halo.stop - halo.start
        if (peer, total) not in self._edges:
            self._edges[peer, total] = self._peer_edges(peer, halo)
        count = total if first is None else first
        if (peer, count) not in self._edges:
            self._edges[peer, count] = self._edges[peer, total].first_sources(count)
        return self._edges[peer, count]

    def _peer_edges(self, peer: int, halo: slice) -> BlockEdges:
        marginal, own = self.rows.slice(Part.MARGINAL), self.rows.own
        indptr, indices = self._marginal_by_peer[peer]
        begin, end = self._halo_begin[halo.start - own : halo.stop - own], self._halo_end[halo.start - own : halo.stop - own]
        base, last = (int(begin[0]), int(end[-1])) if begin.numel() else (0, 0)
        targets = self._halo_indices[base:last] - marginal.start
        entry = indices.new_zeros(0, dtype=torch.int64)
        edges = Edges(indptr[:-1], indptr[1:], indices, begin - base, end - base, targets, entry)
        block = BlockEdges(edges, marginal, self.global_ids[marginal], self.global_ids[halo])
        if self._edge_data is None:
            return block
        places = _places(self._own_end[marginal], self._end[marginal])
        here = (self._indices[places] >= halo.start) & (self._indices[places] < halo.stop)
        return self._edge_data.peer_block(block, places[here], slice(base, last))

    def block(self, part: Part, stream: kernels.Stream | None) -> Block:
        """What a layer sees when it computes `part` (of the own rows)."""
        if part not in self._structures:
            self._structures[part] = self._block_structure(part)
        return Block(self._structures[part], stream)

    def _block_structure(self, part: Part) -> BlockStructure:
        rows = self.rows.slice(part)
        sources = self.rows.own if part is Part.CENTRAL else self.rows.total
        counts = self._end[rows] - self._begin[rows]
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        entries = _places(self._begin[rows], self._end[rows])
        return BlockStructure(indptr, self._indices[entries], rows.start, self.degrees[:sources], self.global_ids[:sources])

    def halo_coefficients(self, layer: object) -> npt.NDArray[np.float64]:
        """Σ over own rows of the coefficients each halo row is aggregated with, float64 [halo].

        A layer that hides its aggregation is taken for a mean over neighbours.
        """
        if isinstance(layer, LinearAggregation):
            row_scale, column_scale = layer.scales(self.degrees.cpu(), torch.float64)
        else:
            row_scale, column_scale = 1.0 / self.degrees.cpu().double().clamp(min=1.0), None
        begin, end = self._halo_begin.cpu(), self._halo_end.cpu()
        halo_rows = torch.repeat_interleave(torch.arange(begin.numel()), end - begin)
        sums = torch.bincount(halo_rows, weights=row_scale[self._halo_indices.cpu().long()], minlength=begin.numel())
        if column_scale is not None:
            sums *= column_scale[self.rows.own :]
        coefficients: npt.NDArray[np.float64] = sums.numpy()
        return coefficients

    def aggregation(self, layer: LinearAggregation, dtype: torch.dtype) -> Aggregation:
        """Â of a layer on this structure."""
        row_scale, column_scale = layer.scales(self.degrees, dtype)
        return Aggregation(self, row_scale, column_scale, self_loop=layer.self_loop)


def _places(begin: Tensor, end: Tensor) -> Tensor:
    """int64 [entries] the places in ``begin[i] ≤ e < end[i]``, row after row."""
    counts = end - begin
    first = torch.repeat_interleave(begin - (counts.cumsum(0) - counts), counts)
    return first + torch.arange(first.numel(), device=counts.device)


@dataclass(frozen=True)
class Aggregation:
    """``Â = diag(row_scale) (A [+ I]) diag(column_scale)``; scales are [own + halo]."""

    adjacency: Adjacency
    row_scale: Tensor
    column_scale: Tensor | None
    self_loop: bool

    @property
    def _begin(self) -> Tensor:
        return self.adjacency._begin_with_self if self.self_loop else self.adjacency._begin

    def forward_from_peer(self, peer: int, source: Tensor, target: Tensor) -> None:
        """``target[marginal] += Â[marginal, halo of peer] source``, `source` being that peer's halo rows."""
        structure = self.adjacency
        rows, columns = structure.rows.slice(Part.MARGINAL), structure.halo_of(peer)
        indptr, indices = structure._marginal_by_peer[peer]
        kernels.aggregate(
            indptr[:-1],
            indptr[1:],
            indices,
            source,
            target[rows],
            row_scale=self.row_scale[rows],
            column_scale=None if self.column_scale is None else self.column_scale[columns],
            accumulate=True,
        )

    def forward(self, part: Part, source: Tensor, target: Tensor, *, own_columns: bool = False) -> None:
        """``target[part] = Â[part, :] source``; `part` is CENTRAL, MARGINAL or OWN.

        `own_columns` leaves the halo's out: what can be summed before any message has landed.
        """
        structure = self.adjacency
        rows, own = structure.rows.slice(part), structure.rows.own
        kernels.aggregate(
            self._begin,
            structure._own_end if own_columns else structure._end,
            structure._indices,
            source,
            target[:own],
            row_scale=self.row_scale[:own],
            column_scale=None if self.column_scale is None else self.column_scale[: source.shape[0]],
            rows=(rows.start, rows.stop),
        )

    def backward_to_peer(self, peer: int, source: Tensor, target: Tensor) -> None:
        """``target = Âᵀ[halo of peer, :] source`` for the first `len(target)` of that peer's halo rows."""
        structure = self.adjacency
        own, first = structure.rows.own, structure.halo_of(peer).start
        rows = slice(first - own, first - own + target.shape[0])
        kernels.aggregate(
            structure._halo_begin[rows],
            structure._halo_end[rows],
            structure._halo_indices,
            source[:own],
            target,
            row_scale=None if self.column_scale is None else self.column_scale[first : first + target.shape[0]],
            column_scale=self.row_scale[:own],
        )

    def backward(self, part: Part, source: Tensor, target: Tensor) -> None:
        """``target[part] = (Âᵀ source)[part]`` from own rows; `part` is OWN, HALO or ALL. The pattern is symmetric."""
        structure = self.adjacency
        own = structure.rows.own
        if part is not Part.HALO:
            kernels.aggregate(
                self._begin,
                structure._own_end,
                structure._indices,
                source[:own],
                target[:own],
                row_scale=None if self.column_scale is None else self.column_scale[:own],
                column_scale=self.row_scale[:own],
            )
        if part is not Part.OWN and structure.rows.total > own:
            kernels.aggregate(
                structure._halo_begin,
                structure._halo_end,
                structure._halo_indices,
                source[:own],
                target[own : structure.rows.total],
                row_scale=None if self.column_scale is None else self.column_scale[own:],
                column_scale=self.row_scale[:own],
            )
