"""A shard's edge data as layers use it: the entries of one block after another, loaded when the block is first met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halocast.runtime.attention_types import Edges
from halocast.runtime.block_edges import BlockEdges, RelationEdges
from halocast.runtime.graph.shard import Shard


@dataclass(frozen=True)
class EdgeUse:
    """What a network's layers read of edge data."""

    dtype: torch.dtype = torch.float32
    """Of features and shares."""
    features: bool = False
    relations: tuple[int, ...] = ()
    """Types of the relations that are told apart, in the layers' order."""

    @property
    def any(self) -> bool:
        return self.features or bool(self.relations)


class EdgeData:
    """What a shard keeps of its entries besides their columns. `places` number the entries of `Shard.indices`."""

    def __init__(self, shard: Shard, use: EdgeUse, device: torch.device) -> None:
        self._shard, self._use, self._device = shard, use, device
        self._share = self._neighbour_shares() if use.relations else None

    def own_block(self, own: BlockEdges, places: Tensor) -> BlockEdges:
        """The own block with its data. `places`, int64 [entries]: of its edges, row after row.

        With features the structure is made anew over these entries alone: theirs need not be those of the reverse entries.
        """
        counts = own.edges.end - own.edges.begin
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sources = own.edges.sources[places]
        edges = Edges.from_csr(indptr, sources, counts.numel()) if self._use.features else own.edges
        relations = self._relations(own, counts, sources, places)
        return BlockEdges(edges, own.targets, own.target_nodes, own.source_nodes, self._features(places), relations)

    def peer_block(self, peer: BlockEdges, places: Tensor, by_source: slice) -> BlockEdges:
        """A peer's block with its data. `by_source`: the block's range of `Shard.halo_indices`."""
        edges = peer.edges
        if self._use.features:
            assert self._shard.halo_entry is not None
            wanted = torch.from_numpy(self._shard.halo_entry[by_source]).to(self._device)
            entry = torch.searchsorted(places, wanted)  # row after row, places ascend
            edges = Edges(edges.begin, edges.end, edges.sources, edges.source_begin, edges.source_end, edges.targets, entry)
        relations = self._relations(peer, edges.end - edges.begin, edges.sources, places)
        return BlockEdges(edges, peer.targets, peer.target_nodes, peer.source_nodes, self._features(places), relations)

    def _features(self, places: Tensor) -> Tensor | None:
        if not self._use.features:
            return None
        assert self._shard.edge_features is not None
        rows = np.ascontiguousarray(self._shard.edge_features[places.cpu().numpy()])
        return torch.from_numpy(rows).to(self._device, self._use.dtype)

    def _relations(self, block: BlockEdges, counts: Tensor, sources: Tensor, places: Tensor) -> RelationEdges | None:
        if self._share is None:
            return None
        assert self._shard.edge_types is not None
        types = torch.from_numpy(np.asarray(self._shard.edge_types[places.cpu().numpy()])).to(self._device)
        relations = self._numbers()[types.long()]
        used = relations >= 0
        targets = torch.repeat_interleave(torch.arange(counts.numel(), device=self._device), counts)
        share = self._share[:, block.targets].contiguous()
        return RelationEdges.of(block.edges, targets[used], sources[used].long(), relations[used], share)

    def _numbers(self) -> Tensor:
        """int64 [types + 1] a relation's number among those used, by type; −1 for all others and, last, for type −1."""
        numbers = torch.full((self._shard.statistics.relations + 1,), -1, dtype=torch.int64)
        numbers[list(self._use.relations)] = torch.arange(len(self._use.relations))
        return numbers.to(self._device)

    def _neighbour_shares(self) -> Tensor:
        """[relations, own] 1 / c of Schlichtkrull et al., ESWC 2018, equation 2, over own and halo columns; 0 without any."""
        assert self._shard.edge_types is not None
        count, own = len(self._use.relations), self._shard.statistics.own
        relations = self._numbers()[torch.from_numpy(np.array(self._shard.edge_types)).to(self._device).long()]
        lengths = torch.from_numpy(np.diff(self._shard.indptr)).to(self._device)
        rows = torch.repeat_interleave(torch.arange(own, device=self._device), lengths)
        used = relations >= 0
        found = torch.bincount(relations[used] * own + rows[used], minlength=count * own).view(count, own)
        return torch.where(found > 0, found.to(self._use.dtype).reciprocal(), 0.0)
