"""Relations and features of a made graph's edges, in the order of their keys and by seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.runtime.graph.edges import EntryData, entry_data, relation_names

EDGE_BLOCK = 1 << 14  # rows of features made at once


@dataclass(frozen=True)
class GeneratedEdges:
    """What the edges u < v of a made graph carry."""

    edges: int
    relations: int
    """Of u -> v, drawn evenly; 0: untyped."""
    dim: int
    """Standard normal features; 0: none."""
    type_seed: tuple[int, ...]
    feature_seed: tuple[int, ...]

    def types(self) -> npt.NDArray[np.int32]:
        """[edges]"""
        return _random(self.type_seed).integers(self.relations, size=self.edges, dtype=np.int32)

    def feature_blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """float32 [rows, dim], block after block; one even without edges."""
        random = _random(self.feature_seed)
        for at in range(0, max(self.edges, 1), EDGE_BLOCK):
            yield random.standard_normal((min(EDGE_BLOCK, self.edges - at), self.dim), dtype=np.float32)

    def on_entries(self, keys: npt.NDArray[np.int64], nodes: int) -> EntryData:
        """As a graph of these edges holds it; `keys` [edges] are u * nodes + v, ascending."""
        return entry_data(
            *(*np.divmod(keys, nodes), nodes, "generated graph"),
            features=np.concatenate(list(self.feature_blocks())) if self.dim else None,
            types=self.types() if self.relations else None,
            relations=relation_names(self.relations) if self.relations else None,
        )

    def members(self) -> dict[str, Any]:
        """As a file of edges stored once holds it (layout of `npz`); features are made as they are written."""
        found: dict[str, Any] = {}
        if self.dim:
            found["edge_attr"] = (((self.edges, self.dim), False, np.dtype(np.float32)), self.feature_blocks())
        if self.relations:
            found["edge_type"] = self.types()
            found["relations"] = np.array(relation_names(self.relations), dtype=np.str_)
        return found


def _random(seed: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
