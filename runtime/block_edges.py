"""The edges from one block of messages, a rank's own or one peer's, into own rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halocast.runtime.attention_types import Edges


@dataclass(frozen=True)
class RelationEdges:
    """A block's edges by relation, each relation's by target and by source."""

    target_indptr: Tensor
    """int64 [relations · targets + 1]: offsets into `sources`, relation after relation."""
    sources: Tensor
    """int32 [entries]"""
    source_indptr: Tensor
    """int64 [relations · sources + 1]: offsets into `targets`."""
    targets: Tensor
    """int32 [entries]"""
    share: Tensor
    """[relations, targets] 1 / the target's neighbours under the relation, in all blocks together."""

    @classmethod
    def of(cls, edges: Edges, targets: Tensor, sources: Tensor, relations: Tensor, share: Tensor) -> RelationEdges:
        """From every edge of a block: its ends and its relation, int64 [entries] each, by target."""
        count = share.shape[0]
        by_target = torch.argsort(relations, stable=True)
        by_source = torch.argsort(relations * edges.source_count + sources, stable=True)
        return cls(
            _indptr(relations * edges.target_count + targets, count * edges.target_count),
            sources[by_target].int(),
            _indptr(relations * edges.source_count + sources, count * edges.source_count),
            targets[by_source].int(),
            share,
        )

    @property
    def count(self) -> int:
        return self.share.shape[0]

    def by_target(self, relation: int) -> tuple[Tensor, Tensor]:
        """(begin, end) of each target's entries in `sources`."""
        targets = self.share.shape[1]
        return _ranges(self.target_indptr, relation * targets, targets)

    def by_source(self, relation: int, first: int) -> tuple[Tensor, Tensor]:
        """(begin, end) of the entries in `targets` of the block's first rows."""
        sources = (self.source_indptr.numel() - 1) // self.count
        return _ranges(self.source_indptr, relation * sources, first)


@dataclass(frozen=True)
class BlockEdges:
    """What merging one block of messages needs to know of the graph."""

    edges: Edges
    """Targets count from the first of `targets`, sources from the block's first row."""
    targets: slice
    """The own rows that may have neighbours in the block."""
    target_nodes: Tensor
    """int64, global ids of the targets."""
    source_nodes: Tensor
    """int64, global ids of the block's rows."""
    features: Tensor | None = None
    """[entries, E] in the order of `edges.sources`, whose every entry is some target's then; a row's own entry has zeros.
    None where no layer reads them."""
    relations: RelationEdges | None = None
    """None where no layer tells relations apart."""

    def first_sources(self, count: int) -> BlockEdges:
        """The edges from the block's first `count` rows alone; `relations` stay those of the whole block."""
        edges = self.edges
        if count == edges.source_count:
            return self
        wanted = edges.sources < count
        before = torch.cat([wanted.new_zeros(1, dtype=torch.int64), wanted.cumsum(0)])
        source_end = edges.source_end[:count]
        entries = int(source_end[-1]) if count else 0
        return BlockEdges(
            Edges(
                before[edges.begin],
                before[edges.end],
                edges.sources[wanted],
                edges.source_begin[:count],
                source_end,
                edges.targets[:entries],
                before[edges.entry[:entries]],
            ),
            self.targets,
            self.target_nodes,
            self.source_nodes[:count],
            None if self.features is None else self.features[wanted],
            self.relations,
        )


def _indptr(keys: Tensor, count: int) -> Tensor:
    """[count + 1] where each key's entries begin, once sorted."""
    entries = torch.bincount(keys, minlength=count)
    return torch.cat([entries.new_zeros(1), entries.cumsum(0)])


def _ranges(indptr: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    return indptr[first : first + count], indptr[first + 1 : first + count + 1]
