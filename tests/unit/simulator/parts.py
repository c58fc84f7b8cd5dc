"""Small consistent statistics of parts, for programs that no graph stands behind."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from halocast.runtime.config import ModelConfig
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.shapes import built_in_specs
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.adaqp import uniform_bits
from halocast.simulator.engine import RankWork, lower
from halocast.traces.operations import AllReduce, Exchange, Operation
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload


def layer(dim_in: int, dim_out: int, *, last: bool = False, batch_norm: bool = False) -> LayerSpec:
    normalized, parameters = batch_norm and not last, dim_in * dim_out + dim_out
    return LayerSpec(
        dim_in, dim_out, self_loop=True, norm=normalized, batch_norm=normalized, activation=not last,
        parameters=parameters + (2 * dim_out if normalized else 0),
    )  # fmt: skip


def workload(
    rows: np.ndarray,
    *,
    own: int = 100,
    dims: tuple[int, ...] = (16, 16, 4),
    exact: ExactSavings | None = None,
    overlap: bool = True,
    batch_norm: bool = False,
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
    last = len(dims) - 2
    layers = tuple(layer(a, b, last=index == last, batch_norm=batch_norm) for index, (a, b) in enumerate(pairwise(dims)))
    return Workload(layers, parts, exact or ExactSavings.none(), overlap=overlap)


def with_model(
    load: Workload,
    layer: str,
    *,
    layers: int = 3,
    hidden: int = 16,
    classes: int = 5,
    norm: Literal["none", "layer", "batch"] = "none",
    **options: int,
) -> Workload:
    """The same parts under a built-in model, of a graph whose edges carry what it wants."""
    model = ModelConfig(layer=layer, layers=layers, hidden=hidden, norm=norm, options=options)
    specs = built_in_specs(model, load.parts[0].feature_dim, classes, EdgeShape(3, ("a", "inverse of a")))
    assert specs is not None
    return replace(load, layers=specs)


def all_to_all(ranks: int, rows: int) -> np.ndarray:
    """Every rank sends every other as many rows."""
    return rows * (1 - np.eye(ranks, dtype=int))


def neighbourhood(ranks: int, peers: int, seed: int = 0) -> np.ndarray:
    """Random rows between each rank and its about `peers` nearest ones in a wrapped 3-D grid, as parts of a mesh have them.

    Fewer where the grid has no more; every other rank where `peers` says so.
    """
    side = max(1, round(ranks ** (1 / 3)))
    number = np.arange(ranks)
    place = np.stack([number % side, number // side % side, number // side**2])
    span = np.array([side, side, -(-ranks // side**2)])
    rng = np.random.default_rng(seed)
    rows = np.zeros((ranks, ranks), dtype=int)
    for rank in range(ranks):
        apart = np.abs(place - place[:, [rank]])
        distance = (np.minimum(apart, span[:, None] - apart) ** 2).sum(axis=0)
        nearest = np.argsort(distance, kind="stable")[1 : peers + 1]
        rows[rank, nearest] = rng.integers(20, 400, len(nearest))
    back = (rows == 0) & (rows.T > 0)  # edges go both ways
    rows[back] = rng.integers(20, 400, int(back.sum()))
    return rows


def lowered(
    load: Workload, *, bits: int = 0, sequential: bool = False, mean_seconds: float = 1e-3, spread: float = 0.3, seed: int = 0
) -> list[RankWork]:
    """Programs with random seconds; none for starting to communicate.

    `sequential`: SAR's; `bits`: of all its messages, or AdaQP's; 0: as they are.
    """
    rng = np.random.default_rng(seed)

    def price(operation: Operation) -> float:
        is_start = isinstance(operation, Exchange | AllReduce)
        return 0.0 if is_start else float(mean_seconds * np.exp(spread * rng.standard_normal()))

    views = [load.view(rank) for rank in range(load.world_size)]
    if bits:
        views = [load.view(view.rank, uniform_bits(view, bits)) for view in views]
    method = METHODS["sar" if sequential else "adaqp" if bits else "full"]
    return [lower(method.epoch(view), price) for view in views]


def exchanged_bytes(work: list[RankWork]) -> float:
    """What a rank sends in exchanges of an epoch, mean over ranks."""
    return sum(each.work.bytes_out for rank in work for each in rank.operations if isinstance(each, Exchange)) / len(work)
