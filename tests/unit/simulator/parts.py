"""Small consistent statistics of parts, for programs that no graph stands behind."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload


def layer(dim_in: int, dim_out: int, *, last: bool = False) -> LayerSpec:
    return LayerSpec(dim_in, dim_out, self_loop=True, activation=not last, parameters=dim_in * dim_out + dim_out)


def workload(
    rows: np.ndarray,
    *,
    own: int = 100,
    dims: tuple[int, ...] = (16, 16, 4),
    exact: ExactSavings | None = None,
    overlap: bool = True,
) -> Workload:
    """`rows` [ranks, ranks]: how many rows rank i sends rank j; every rank owns `own` nodes, half of them marginal."""
    ranks = len(rows)
    parts = tuple(
        PartStatistics(
            central=own - own // 2,
            marginal=own // 2,
            nnz_central=4 * own,
            nnz_marginal=3 * own + int(rows[:, rank].sum()),
            nnz_halo_from=tuple(int(value) for value in np.maximum(rows[:, rank], rows[rank])),
            halo_from=tuple(int(value) for value in rows[:, rank]),
            boundary_to=tuple(int(value) for value in rows[rank]),
            labelled=own // 2,
            labelled_halo_from=tuple(int(value) for value in rows[:, rank] // 2),
            labelled_boundary_to=tuple(int(value) for value in rows[rank] // 2),
            feature_dim=dims[0],
        )
        for rank in range(ranks)
    )
    layers = tuple(layer(a, b, last=index == len(dims) - 2) for index, (a, b) in enumerate(pairwise(dims)))
    return Workload(layers, parts, exact or ExactSavings.none(), overlap=overlap)


def all_to_all(ranks: int, rows: int) -> np.ndarray:
    """Every rank sends every other as many rows."""
    return rows * (1 - np.eye(ranks, dtype=int))
