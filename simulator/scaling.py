"""Statistics of a partition into K parts that nobody made, from a few coarser partitions of the same graph.

Four totals grow with K: halo rows, entries between parts, marginal nodes, and the entries inside parts that lie in marginal
rows. One law fits each, as a share of the graph:

    1 / share = 1 / (level (K^slope - 1) / slope) + 1 / limit

Nothing at one part; log K at slope 0, √K less a constant for planar meshes (slope ½), K - 1 at slope 1; and never more than the
graph has: a halo row an entry (`limit` is the mean degree), or all entries, or all nodes (`limit` is 1). The growth is that of
G. Box and D. Cox, J. R. Stat. Soc. B 26(2), 1964. How parts differ from their mean is taken from the finest partition; the
excess of the largest part over the mean grows with √K, as the scatter of anything counted in samples of nodes / K does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.traces.workload import PartStatistics

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLOPES = np.linspace(-1.5, 1.0, 251)
"""At 1 every part needs the same share of the graph, whatever K: no halo grows faster."""
EVEN = 0.05
"""Excess of the largest part over the mean up to which the partitioner balances a measure: that does not grow with K."""
STEEPEST = 16.0
"""The largest power that a profile is raised to."""
LEAST_LOOSE_ROWS = 0.5
"""`PartitionScaling.loose_rows` where every pair is connected, which says nothing of finer partitions: about the
median of the benchmark's graphs."""
BALANCING_ROUNDS = 40
ERROR_PER_DOUBLING = 0.11
"""Standard deviation of log(epoch on real parts / on these) for every doubling beyond the finest partition that was fitted,
where halo rows are most of the epoch; benchmarks/results/partition-scaling-*.md."""
GROWTH_ERROR_PER_DOUBLING = 0.1
"""The same for every doubling of the graph itself; assumed. Halo rows are up to 20 % too many for every doubling of the mean
degree, and within 3 % where it stays."""


@dataclass(frozen=True)
class Growth:
    """A share of the graph as a function of the number of parts."""

    level: float
    slope: float
    limit: float

    def at(self, parts: int) -> float:
        grown = self.level * float(_grown(np.array([self.slope]), np.array([float(parts)]))[0, 0])
        return grown / (1.0 + grown / self.limit)

    @classmethod
    def fit(cls, parts: Floats, shares: Floats, limit: float) -> Growth:
        """Least squares on logarithms, weighted by K: the finest partition says most of those beyond it."""
        some = shares > 0.0  # zeros have no logarithm
        if not some.any():
            return cls(0.0, 0.5, limit)
        parts, shares = parts[some], np.minimum(shares[some], 0.999 * limit)
        offsets = np.log(shares / (1.0 - shares / limit)) - np.log(_grown(SLOPES, parts))
        means = offsets @ parts / parts.sum()
        best = int((((offsets - means[:, None]) ** 2) @ parts).argmin())
        return cls(float(np.exp(means[best])), float(SLOPES[best]), limit)


def _grown(slopes: Floats, parts: Floats) -> Floats:
    """[slopes, parts] (K^slope - 1) / slope."""
    safe = np.where(np.abs(slopes) < 1e-9, 1e-9, slopes)[:, None]
    return np.asarray(np.expm1(safe * np.log(parts)) / safe, dtype=np.float64)


@dataclass(frozen=True)
class PartitionScaling:
    """How the partitions of one graph by one method change with the number of parts."""

    fitted: tuple[int, ...]
    """Numbers of parts that were fitted, ascending."""
    nodes: int
    entries: int
    """Of the adjacency matrix: two an edge."""
    labelled: int
    totals: Mapping[str, Growth]
    """Shares of the nodes ("halo", "marginal"), of the entries ("cut"), and of those inside parts ("inner")."""
    profiles: Mapping[str, Floats]
    """[finest] each measure over its mean, parts ascending in halo rows: which goes with which."""
    loose_rows: float
    """A pair of parts is connected with odds of (rows that a mean pair exchanges) / `loose_rows`."""
    pair_spread: float
    """Standard deviation of the logarithm of the rows that a part needs of each of its peers."""
    labelled_halo: float
    """Share of halo rows that are beside a training row."""
    stored: Mapping[str, tuple[float, float, float]]
    """Stored values of a central, marginal and halo row, by field of `PartStatistics`; zeros where rows are dense."""
    sample: PartStatistics
    """Any part: what is the same for all (feature dim, sparse or not)."""
    growth: float = 1.0
    """How many times the graph is larger than the one that was partitioned."""

    def error(self, parts: int) -> float:
        """Standard deviation of log(epoch time on real parts / on these) to expect."""
        doublings = np.log2([max(parts / self.fitted[-1], 1.0), self.growth])
        return float(np.hypot(ERROR_PER_DOUBLING * doublings[0], GROWTH_ERROR_PER_DOUBLING * doublings[1]))

    def grown(self, nodes: float, edges: float) -> PartitionScaling:
        """The partitions of a graph with so many times the nodes and edges of this one, communities alike.

        Taken for granted: the share of entries between parts stays; halo rows and marginal nodes grow with the mean degree,
        up to where they saturate. Stored values of a row stay, as does the share of training nodes.
        """
        density = edges / nodes
        denser = {
            name: replace(growth, level=growth.level * density, limit=growth.limit * (density if name == "halo" else 1.0))
            if name in ("halo", "marginal", "inner")
            else growth
            for name, growth in self.totals.items()
        }
        return replace(
            self,
            nodes=round(self.nodes * nodes),
            entries=2 * round(self.entries * edges / 2),
            labelled=round(self.labelled * nodes),
            totals=denser,
            growth=max(nodes, edges),
        )

    def statistics(self, parts: int) -> list[PartStatistics]:
        """A partition into that many parts, consistent as a real one is; the same each time.

        Raises MisuseError outside 1 to the number of nodes.
        """
        if not 1 <= parts <= self.nodes:
            raise MisuseError(f"{parts} parts for {self.nodes} nodes: allowed are 1 to {self.nodes}")
        random = np.random.default_rng(parts)
        order = random.permutation(parts)
        shapes = {name: self._shape(name, parts)[order] for name in self.profiles}
        own = allocate(shapes["own"], self.nodes, np.ones(parts), np.full(parts, self.nodes))
        halo = self._halo_rows(own, shapes, random)
        cut = self._cut_entries(halo, shapes["cut"])
        boundary = halo.sum(axis=0)
        marginal = allocate(
            shapes["marginal"], self.totals["marginal"].at(parts) * self.nodes, halo.max(axis=0), np.minimum(own, boundary)
        )
        central = own - marginal
        inside = self.entries - int(cut.sum())
        inner_share = self.totals["inner"].at(parts) if central.any() else 1.0
        inner = allocate(shapes["inner"], inner_share * inside, np.zeros(parts), np.where(marginal > 0, inside, 0))
        rest = allocate(shapes["central"], inside - int(inner.sum()), np.zeros(parts), np.where(central > 0, inside, 0))
        labelled = allocate(shapes["labelled"], self.labelled, np.zeros(parts), own)
        high = (halo * (labelled > 0)[:, None]).ravel()
        likely = (halo * (labelled / own)[:, None]).ravel()
        beside = allocate(likely, self.labelled_halo * halo.sum(), np.zeros(high.size), high).reshape(halo.shape)
        rows = np.stack([central, marginal, halo.sum(axis=1)], axis=1)
        stored = {name: np.rint(rows * np.array(values)).astype(np.int64) for name, values in self.stored.items()}
        return [
            PartStatistics(
                central=int(central[part]),
                marginal=int(marginal[part]),
                nnz_central=int(rest[part]),
                nnz_marginal=int(inner[part] + cut[part].sum()),
                nnz_halo_from=tuple(cut[part].tolist()),
                halo_from=tuple(halo[part].tolist()),
                boundary_to=tuple(halo[:, part].tolist()),
                labelled=int(labelled[part]),
                labelled_halo_from=tuple(beside[part].tolist()),
                labelled_boundary_to=tuple(beside[:, part].tolist()),
                feature_dim=self.sample.feature_dim,
                features_sparse=self.sample.features_sparse,
                feature_nnz=_triple(stored["feature_nnz"][part]),
                aggregated_sparse=self.sample.aggregated_sparse,
                aggregated_nnz=_triple(stored["aggregated_nnz"][part]),
                edge_dim=self.sample.edge_dim,
                relations=self.sample.relations,
            )
            for part in range(parts)
        ]

    def _shape(self, name: str, parts: int) -> Floats:
        """[parts] a measure over its mean, parts ascending in halo rows."""
        known = self.profiles[name]
        places, asked = (np.arange(known.size) + 0.5) / known.size, (np.arange(parts) + 0.5) / parts
        excess = float(known.max()) - 1.0
        if excess > EVEN:
            excess *= float(np.sqrt(parts / known.size))
        return stretched(np.interp(asked, places, known), 1.0 + min(excess, parts - 1.0))

    def _halo_rows(self, own: Ints, shapes: Mapping[str, Floats], random: np.random.Generator) -> Ints:
        """[part, owner] rows of each owner that each part needs; where one needs another's, the other needs the one's."""
        parts = own.size
        halo = np.zeros((parts, parts), dtype=np.int64)
        total = round(self.totals["halo"].at(parts) * self.nodes)
        first, second = np.triu_indices(parts, 1)
        mean_pair = total / max(1, 2 * first.size)
        share = mean_pair / (mean_pair + self.loose_rows) if total else 0.0
        wanted = min(round(share * first.size), total // 2)
        if wanted == 0:
            return halo
        peers = np.maximum(shapes["peers"], 1e-3)
        score = random.standard_normal(first.size) + np.log(peers[first] * peers[second])
        chosen = np.sort(np.argpartition(-score, wanted - 1)[:wanted])
        first, second, score = first[chosen], second[chosen], score[chosen]
        weights = np.zeros((parts, parts))
        scale = self.pair_spread / max(float(score.std()), 1e-9)
        weights[first, second] = weights[second, first] = np.exp(scale * (score - score.mean()))
        weights = balanced(weights, shapes["halo"], shapes["boundary"])
        low, high = np.ones(first.size), np.minimum(own[first], own[second])
        both = allocate(weights[first, second] + weights[second, first], total, 2 * low, 2 * high)
        toward = weights[first, second] / np.maximum(weights[first, second] + weights[second, first], 1e-300)
        # every halo row has an entry of its own: what two parts exchange, more of one way than the other, must fit the graph
        free = self.entries // 2 - int((both - both // 2).sum())
        even = both // 2 if free < 0.1 * self.entries else np.rint(toward * both).astype(np.int64)
        there = np.clip(even, np.maximum(low, both - own[first]), np.minimum(own[second], both - 1)).astype(np.int64)
        halo[first, second], halo[second, first] = there, both - there
        return halo

    def _cut_entries(self, halo: Ints, shape: Floats) -> Ints:
        """[part, peer] symmetric: entries between two parts, at least one a halo row."""
        cut = np.zeros_like(halo)
        first, second = np.nonzero(np.triu(halo))
        there, back = halo[first, second], halo[second, first]
        weights = balanced(np.sqrt(halo * halo.T), shape, shape)
        total = self.totals["cut"].at(len(halo)) * self.entries / 2
        cut[first, second] = allocate(np.sqrt(weights * weights.T)[first, second], total, np.maximum(there, back), there * back)
        return cut + cut.T


def fit_scaling(partitions: Sequence[Sequence[PartStatistics]]) -> PartitionScaling:
    """Fit partitions of one graph, made by one method.

    Args:
        partitions: statistics of all parts of each; two or more partitions, of different numbers of parts above 1.

    Raises:
        MisuseError: fewer, or partitions of different graphs.
    """
    by_parts = {len(each): each for each in sorted(partitions, key=len) if len(each) > 1}
    if len(by_parts) < 2:
        raise MisuseError("fitting needs partitions into two or more numbers of parts above 1")
    measures = [measure(each) for each in by_parts.values()]
    sizes = [tuple(int(each[name].sum()) for name in ("own", "entries", "labelled")) for each in measures]
    if len(set(sizes)) > 1:
        raise MisuseError(f"partitions of different graphs: their nodes, entries and training nodes are {sizes}")
    nodes, entries, labelled = sizes[0]
    counts = np.array(list(by_parts), dtype=np.float64)

    def grow(whole: int | Floats, name: str, limit: float) -> Growth:
        return Growth.fit(counts, np.array([each[name].sum() for each in measures]) / np.maximum(whole, 1), limit)

    finest_parts, finest = list(by_parts.values())[-1], measures[-1]
    inside = np.array([entries - each["cut"].sum() for each in measures])
    ascending = np.argsort(finest["halo"], kind="stable")
    halo = np.array([each.halo_from for each in finest_parts])
    connected, pairs = np.count_nonzero(halo), halo.size - len(halo)
    return PartitionScaling(
        fitted=tuple(by_parts),
        nodes=nodes,
        entries=entries,
        labelled=labelled,
        totals={
            "halo": grow(nodes, "halo", max(entries / nodes, 1e-9)),
            "marginal": grow(nodes, "marginal", 1.0),
            "cut": grow(entries, "cut", 1.0),
            "inner": grow(inside, "inner", 1.0),
        },
        profiles={name: _relative(values)[ascending] for name, values in finest.items()},
        loose_rows=max(LEAST_LOOSE_ROWS, float(halo.sum() / pairs * (pairs - connected) / max(1, connected))),
        pair_spread=float(np.mean([np.log(rows[rows > 0]).std() for rows in halo if rows.any()] or [0.0])),
        labelled_halo=sum(sum(each.labelled_halo_from) for each in finest_parts) / max(1.0, float(finest["halo"].sum())),
        stored={name: _per_row(finest_parts, name) for name in ("feature_nnz", "aggregated_nnz")},
        sample=finest_parts[0],
    )


def measure(statistics: Sequence[PartStatistics]) -> dict[str, Floats]:
    """[parts] by what is counted in each."""
    columns = {
        "own": [each.own for each in statistics],
        "entries": [each.nnz_central + each.nnz_marginal for each in statistics],
        "halo": [each.halo for each in statistics],
        "boundary": [each.boundary for each in statistics],
        "peers": [np.count_nonzero(each.halo_from) for each in statistics],
        "cut": [each.nnz_halo for each in statistics],
        "marginal": [each.marginal for each in statistics],
        "inner": [each.nnz_marginal - each.nnz_halo for each in statistics],
        "central": [each.nnz_central for each in statistics],
        "labelled": [each.labelled for each in statistics],
    }
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def allocate(weights: npt.NDArray[Any], total: float, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Ints:
    """Integers between `low` and `high`, in proportion to `weights`, that sum to `total` or to the nearest the bounds allow."""
    least, most = low.astype(np.float64), np.maximum(low, high).astype(np.float64)
    if not weights.size:
        return np.zeros(0, dtype=np.int64)
    top = float(weights.max())
    weight = np.maximum(weights / top, 1e-9) if top > 0.0 else np.ones(weights.size)
    target = float(np.clip(round(total), least.sum(), most.sum()))
    small, large = 0.0, float((most / weight).max())
    for _ in range(100):  # the sum rises with the scale
        middle = (small + large) / 2
        small, large = (middle, large) if np.clip(middle * weight, least, most).sum() < target else (small, middle)
    exact = np.clip(large * weight, least, most)
    whole = np.floor(exact)
    # carrying fractions along keeps the sum of every run of items, a part's row for one, within 1 of what it should be
    carried = np.floor(np.cumsum(exact - whole) + 0.5)
    return (whole + np.diff(carried, prepend=0.0)).astype(np.int64)


def balanced(weights: Floats, rows: Floats, columns: Floats) -> Floats:
    """Scale rows and columns of a non-negative matrix until they sum to these shares (Sinkhorn and Knopp, 1967); rows last."""
    for _ in range(BALANCING_ROUNDS):
        weights = weights * _quotient(columns, weights.sum(axis=0))
        weights = weights * _quotient(rows, weights.sum(axis=1))[:, None]
    return weights


def stretched(profile: Floats, largest: float) -> Floats:
    """`profile`, raised to the power that makes its largest value `largest` times its mean; the mean becomes 1."""
    low, high = 0.0, STEEPEST
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _relative(profile**middle).max() < largest else (low, middle)
    return _relative(profile**high)


def _relative(values: Floats) -> Floats:
    """Over the mean; ones where all are zero."""
    mean = values.mean()
    return values / mean if mean > 0.0 else np.ones_like(values)


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0.0)


def _per_row(parts: Sequence[PartStatistics], field: str) -> tuple[float, float, float]:
    """Stored values of a central, marginal and halo row."""
    values = np.array([getattr(each, field) for each in parts]).sum(axis=0)
    rows = np.array([(each.central, each.marginal, each.halo) for each in parts]).sum(axis=0)
    central, marginal, halo = (values / np.maximum(rows, 1)).tolist()
    return central, marginal, halo


def _triple(values: Ints) -> tuple[int, int, int]:
    central, marginal, halo = values.tolist()
    return central, marginal, halo
