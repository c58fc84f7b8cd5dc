"""Static first-layer inputs: raw or aggregated feature rows, dense or sparse, prepared once before the first epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.graph.aggregated import DENSE_FROM
from halocast.runtime.graph.shard import Shard
from halocast.traces.operations import Part

PIECE = 4096
"""Rows converted at a time."""


@dataclass(frozen=True)
class DenseRows:
    """Feature rows [rows, dim] as one tensor."""

    values: Tensor

    def product(self, rows: slice, weight: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """``out (+)= values[rows] @ weight``."""
        if accumulate:
            out.addmm_(self.values[rows], weight)
        else:
            torch.mm(self.values[rows], weight, out=out)

    def transposed_product(self, rows: slice, gradient: Tensor, out: Tensor) -> None:
        """``out = values[rows]ᵀ @ gradient``."""
        torch.mm(self.values[rows].t(), gradient, out=out)


@dataclass(frozen=True)
class SparseRows:
    """Feature rows as CSR, and as CSC for the weights' gradient."""

    begin: Tensor
    end: Tensor
    columns: Tensor
    values: Tensor
    column_begin: Tensor
    column_end: Tensor
    column_own_end: Tensor
    """Past each column's last entry in an own row."""
    column_rows: Tensor
    column_values: Tensor

    @classmethod
    def from_scipy(cls, matrix: sp.csr_matrix, own: int, dtype: torch.dtype, device: torch.device) -> SparseRows:
        """Rows [own, then halo] of a CSR matrix."""
        by_column = matrix.tocsc()
        own_entries = np.bincount(matrix.indices[: matrix.indptr[own]], minlength=matrix.shape[1])

        def pointers(values: npt.NDArray[np.integer]) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        def entries(each: sp.csr_matrix | sp.csc_matrix) -> tuple[Tensor, Tensor]:
            indices = torch.from_numpy(each.indices.astype(np.int32)).to(device)
            return indices, torch.from_numpy(np.array(each.data)).to(device, dtype)

        by_row_pointers, by_column_pointers = pointers(matrix.indptr), pointers(by_column.indptr)
        column_begin = by_column_pointers[:-1]
        return cls(
            by_row_pointers[:-1],
            by_row_pointers[1:],
            *entries(matrix),
            column_begin,
            by_column_pointers[1:],
            column_begin + pointers(own_entries),
            *entries(by_column),
        )

    def product(self, rows: slice, weight: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """``out (+)= values[rows] @ weight``."""
        begin, end = self.begin[rows], self.end[rows]
        kernels.aggregate(begin, end, self.columns, weight, out, values=self.values, accumulate=accumulate)

    def transposed_product(self, rows: slice, gradient: Tensor, out: Tensor) -> None:
        """``out = values[rows]ᵀ @ gradient``; `rows` are all rows, or the own ones."""
        end = self.column_end if rows.stop == self.begin.numel() else self.column_own_end
        kernels.aggregate(self.column_begin, end, self.column_rows, gradient, out, values=self.column_values)


FeatureRows = DenseRows | SparseRows


def raw_features(
    shard: Shard, part: Part, rows: int, dtype: torch.dtype, device: torch.device, *, dense: bool = False
) -> FeatureRows:
    """The raw rows of `part` (OWN or ALL); a dense result has space for `rows` rows, for an exchange to fill.

    `dense` stores sparse features densely, as a layer that wants plain rows needs them.
    """
    features = shard.features()
    known = shard.statistics.rows(part)
    if sp.issparse(features) and not dense:
        return SparseRows.from_scipy(features[:known], shard.statistics.own, dtype, device)
    values = torch.zeros(rows, shard.statistics.feature_dim, dtype=dtype, device=device)
    for start in range(0, known, PIECE):
        piece = features[start : min(start + PIECE, known)]
        plain = piece.toarray() if sp.issparse(piece) else np.asarray(piece)
        values[start : start + len(plain)] = torch.from_numpy(plain).to(device, dtype)
    return DenseRows(values)


def aggregated_features(
    shard: Shard,
    scales: tuple[Tensor, Tensor | None],
    *,
    self_loop: bool,
    part: Part,
    transport: Transport,
    dtype: torch.dtype,
    device: torch.device,
) -> FeatureRows:
    """ÂX of `part`: own rows computed from this shard, halo rows (with ALL) received from their owners.

    `scales` are [own + halo] (row, column) factors of Â on the CPU. Sparse features stay sparse while ÂX stores fewer
    than `DENSE_FROM` of its values over all ranks.
    """
    own = shard.statistics.own
    row_scale, column_scale = scales
    features = shard.features()
    if not sp.issparse(features):
        begin = torch.from_numpy(shard.indptr[:-1]) + (0 if self_loop else 1)
        values = torch.empty(shard.statistics.rows(part), shard.statistics.feature_dim, dtype=dtype)
        kernels.aggregate(
            begin,
            torch.from_numpy(shard.indptr[1:]),
            torch.from_numpy(shard.indices),
            torch.from_numpy(np.asarray(features)).to(dtype),
            values[:own],
            row_scale=row_scale[:own].contiguous(),
            column_scale=column_scale,
        )
        if part is Part.ALL:
            _exchange_dense(values, shard, transport)
        return DenseRows(values.to(device))

    adjacency = _scaled_adjacency(shard, row_scale.numpy(), None if column_scale is None else column_scale.numpy(), self_loop)
    if _share_of_stored_values(adjacency, features, transport) >= DENSE_FROM:
        values = torch.empty(shard.statistics.rows(part), shard.statistics.feature_dim, dtype=dtype)
        for start in range(0, own, PIECE):  # in pieces: the sparse product is larger than what it is stored into
            rows = slice(start, min(start + PIECE, own))
            values[rows] = torch.from_numpy((adjacency[rows] @ features).toarray()).to(dtype)
        if part is Part.ALL:
            _exchange_dense(values, shard, transport)
        return DenseRows(values.to(device))
    aggregated = sp.csr_matrix(adjacency @ features)
    if part is Part.ALL:
        aggregated = sp.vstack([aggregated, *_exchange_sparse(aggregated, shard, transport)], format="csr")
    return SparseRows.from_scipy(aggregated, own, dtype, device)


def _scaled_adjacency(
    shard: Shard, row_scale: npt.NDArray[np.floating], column_scale: npt.NDArray[np.floating] | None, self_loop: bool
) -> sp.csr_matrix:
    indptr, indices = np.asarray(shard.indptr), np.asarray(shard.indices)
    own, columns = shard.statistics.own, len(row_scale)
    if not self_loop:
        keep = np.ones(len(indices), dtype=bool)
        keep[indptr[:-1]] = False
        indices, indptr = indices[keep], indptr - np.arange(own + 1)
    values = np.repeat(row_scale[:own], np.diff(indptr))
    if column_scale is not None:
        values = values * column_scale[indices]
    return sp.csr_matrix((values, indices, indptr), shape=(own, columns))


def _share_of_stored_values(adjacency: sp.csr_matrix, features: sp.csr_matrix, transport: Transport) -> float:
    """Stored values of ÂX over its size, from evenly spaced rows of every rank; the same answer on all ranks."""
    own = adjacency.shape[0]
    sample = np.unique(np.linspace(0, own - 1, min(own, 512)).astype(np.int64)) if own else np.zeros(0, dtype=np.int64)
    stored = (adjacency[sample] @ features).nnz * own / max(len(sample), 1)
    total = torch.tensor([float(stored), float(own * features.shape[1])], dtype=torch.float64)
    transport.all_reduce(total)
    return float(total[0] / total[1].clamp(min=1.0))


def _peer_slices(counts: tuple[int, ...]) -> list[tuple[int, slice]]:
    ends = np.cumsum(counts)
    return [
        (peer, slice(int(end) - count, int(end))) for peer, (count, end) in enumerate(zip(counts, ends, strict=True)) if count
    ]


def _exchange_dense(values: Tensor, shard: Shard, transport: Transport) -> None:
    """Send own boundary rows, receive the halo's, in place."""
    statistics = shard.statistics
    boundary = torch.from_numpy(shard.boundary)
    halo = values[statistics.own :]
    outgoing = [(peer, kernels.gather_rows(values, boundary[rows])) for peer, rows in _peer_slices(statistics.boundary_to)]
    incoming = [(peer, halo[rows]) for peer, rows in _peer_slices(statistics.halo_from)]
    transport.start_exchange(outgoing, incoming).wait()


def _exchange_sparse(rows: sp.csr_matrix, shard: Shard, transport: Transport) -> list[sp.csr_matrix]:
    """Send own boundary rows as CSR: first their lengths, then columns and values; returns the halo rows by peer."""
    statistics = shard.statistics
    boundary = np.asarray(shard.boundary)
    outgoing = [(peer, rows[boundary[part]]) for peer, part in _peer_slices(statistics.boundary_to)]
    halo = _peer_slices(statistics.halo_from)
    lengths = [(peer, torch.zeros(part.stop - part.start, dtype=torch.int64)) for peer, part in halo]
    transport.start_exchange(
        [(peer, torch.from_numpy(np.diff(block.indptr).astype(np.int64))) for peer, block in outgoing], lengths
    ).wait()
    received = [
        (peer, counts, torch.zeros(int(counts.sum()), dtype=torch.int32), torch.zeros(int(counts.sum()), dtype=torch.float64))
        for peer, counts in lengths
    ]
    for column in (True, False):
        transport.start_exchange(
            [
                (peer, torch.from_numpy(block.indices.astype(np.int32) if column else block.data.astype(np.float64)))
                for peer, block in outgoing
                if block.nnz
            ],
            [(peer, columns if column else values) for peer, _, columns, values in received if columns.numel()],
        ).wait()
    return [
        sp.csr_matrix(
            (values.numpy(), columns.numpy(), np.concatenate([[0], np.cumsum(counts.numpy())])),
            shape=(len(counts), rows.shape[1]),
        )
        for _, counts, columns, values in received
    ]
