"""Halo and cut statistics as functions of the number of parts K: what a forecast of 128 parts needs, without partitioning.

A few real partitions of one graph are fitted; `PartitionScaling.statistics` then makes up K parts that have the fitted totals,
the fitted imbalance and the fitted shape of who needs how much of whom, and that are as consistent as parts of a real graph.

Every total is a share of the graph, fitted by one of three laws, whichever predicts left-out partitions best:

- *power*: ``exp(level) K^slope``;
- *growth*: ``exp(level) (K^slope - 1) / slope`` (Box and Cox, J. R. Stat. Soc. B 26(2), 1964): nothing at one part; the
  logarithm at slope 0, √K less a constant for planar meshes (slope ½), and saturating below 0;
- *logistic*: the logit, linear in log K, of the share of what a random partition would have (`at_random`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, minimize
from scipy.special import expit, logit, ndtri

from halocast.errors import MisuseError
from halocast.simulator.costs import Record
from halocast.traces.workload import PartStatistics

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Form = Literal["zero", "constant", "power", "growth", "logistic"]
Quantity = Literal["halo", "cut", "marginal", "share", "ratio", "largest", "deviation"]

GROWING: tuple[Form, ...] = ("growth", "logistic", "power")
STEADY: tuple[Form, ...] = ("constant", "power")
SPREADING: tuple[Form, ...] = ("constant", "growth", "power")
SLOPES = np.linspace(-1.5, 1.0, 251)
"""Of *growth*. At 1 each part needs the same share of the graph, whatever K: no halo grows faster."""
SLOPE_OF_ONE = 0.5
"""Of *growth* fitted to a single K: a planar mesh's."""
LEAST_SHARE = 1e-6
"""Keeps logits finite."""
STRETCH = 20.0
"""Profiles are raised to powers between 1 / STRETCH and STRETCH."""
BALANCING_ROUNDS = 60
VALUE_KINDS = ("feature", "aggregated")

TOTALS: Mapping[str, tuple[Quantity, tuple[Form, ...]]] = MappingProxyType(
    {
        "halo": ("halo", GROWING),  # rows a node of the graph
        "cut": ("cut", GROWING),  # share of the entries
        "marginal": ("marginal", GROWING),  # share of the nodes
        "inner": ("marginal", GROWING),  # share of the entries inside parts that are in marginal rows
        "labelled_halo": ("share", STEADY),  # share of the halo rows
        # stored values of a marginal or halo row, over those of any row:
        "feature_marginal": ("ratio", STEADY),
        "feature_halo": ("ratio", STEADY),
        "aggregated_marginal": ("ratio", STEADY),
        "aggregated_halo": ("ratio", STEADY),
    }
)


def at_random(quantity: Quantity, parts: Floats, degree: float) -> Floats:
    """What a random partition of a graph with that degree everywhere has: more, than of a skewed one or a good partition."""
    if quantity == "halo":
        return (parts - 1) * (1 - (1 - 1 / parts) ** degree)
    if quantity == "marginal":
        return 1 - parts**-degree
    return 1 - 1 / parts


LIMITS: Mapping[Quantity, Callable[[Floats, float], Floats]] = MappingProxyType(
    {
        "halo": lambda parts, degree: np.minimum(parts - 1, degree),
        "cut": lambda parts, _: np.minimum(parts - 1, 1.0),
        "marginal": lambda parts, _: np.minimum(parts - 1, 1.0),
        "share": lambda parts, _: np.ones_like(parts),
        "ratio": lambda parts, _: np.full_like(parts, np.inf),
        "largest": lambda parts, _: parts - 1,
        "deviation": lambda parts, _: np.sqrt(parts - 1),
    }
)
"""What no partition exceeds; with one part there is no halo and no imbalance."""


class Curve(Record):
    """One quantity as a function of the number of parts."""

    quantity: Quantity
    form: Form
    level: float = 0.0
    slope: float = 0.0
    degree: float = 0.0
    """Entries of the graph a node."""
    error: float = 0.0
    """Root mean square of log(predicted / measured) over partitions left out of the fit."""

    def at(self, parts: int) -> float:
        return float(self.over(np.array([float(parts)]))[0])

    def over(self, parts: Floats) -> Floats:
        """Values at each of several numbers of parts."""
        limit = LIMITS[self.quantity](parts, self.degree)
        return np.minimum(self._unlimited(parts), limit)

    def _unlimited(self, parts: Floats) -> Floats:
        if self.form == "zero":
            return np.zeros_like(parts)
        if self.form == "logistic":
            return at_random(self.quantity, parts, self.degree) * expit(self.level + self.slope * np.log(parts))
        if self.form == "growth":
            return np.exp(self.level) * grown(parts, np.array([self.slope]))[0]
        return np.exp(self.level + self.slope * np.log(parts))


def grown(parts: Floats, slopes: Floats) -> Floats:
    """``(K^slope - 1) / slope``, [slopes, parts]; log K at slope 0."""
    exponents = slopes[:, None] * np.log(parts)
    safe = np.where(slopes == 0, 1.0, slopes)[:, None]
    return np.where(slopes[:, None] == 0, np.log(parts)[None, :], np.expm1(exponents) / safe)


def fit_curve(parts: Floats, values: Floats, quantity: Quantity, forms: Sequence[Form], degree: float) -> Curve:
    """The form that predicts each left-out value best, fitted to all. Zeros, which have no logarithm, are left out."""
    some = values > 0
    if not some.any():
        return Curve(quantity=quantity, form="zero")
    parts, values = parts[some], values[some]
    fitted = [_fit_form(parts, values, quantity, form, degree) for form in forms]
    if parts.size == 1:
        return fitted[0]
    errors = [_left_out_error(parts, values, quantity, form, degree) for form in forms]
    best = int(np.argmin(errors))
    return fitted[best].model_copy(update={"error": errors[best]})


def _fit_form(parts: Floats, values: Floats, quantity: Quantity, form: Form, degree: float) -> Curve:
    """Least squares on the logarithm (on the logit for *logistic*)."""
    level, slope = 0.0, 0.0
    if form == "growth":
        offsets = np.log(values) - np.log(grown(parts, SLOPES))
        chosen = int(offsets.var(axis=1).argmin()) if parts.size > 1 else int(np.abs(SLOPES - SLOPE_OF_ONE).argmin())
        level, slope = float(offsets[chosen].mean()), float(SLOPES[chosen])
    else:
        target = np.log(values)
        if form == "logistic":
            share = values / at_random(quantity, parts, degree)
            target = logit(np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE))
        if form == "constant" or parts.size == 1:
            level = float(target.mean())
        else:
            slope, level = (float(each) for each in np.polyfit(np.log(parts), target, 1))
    return Curve(quantity=quantity, form=form, level=level, slope=slope, degree=degree)


def _left_out_error(parts: Floats, values: Floats, quantity: Quantity, form: Form, degree: float) -> float:
    errors = []
    for index in range(parts.size):
        rest = np.arange(parts.size) != index
        curve = _fit_form(parts[rest], values[rest], quantity, form, degree)
        errors.append(np.log(max(curve.at(int(parts[index])), LEAST_SHARE) / values[index]))
    return root_mean_square(errors)


def root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


class Connections(Record):
    """Whether two parts are neighbours: the logit, linear in the logarithm of the rows that a mean pair exchanges."""

    level: float = 0.0
    slope: float = 1.0

    def share(self, rows: float) -> float:
        """Of all pairs, those that exchange anything, where the mean over all pairs is `rows`."""
        return float(expit(self.level + self.slope * np.log(rows))) if rows > 0 else 0.0


class ScalingError(Record):
    """Relative errors, forecast / measured - 1."""

    halo: float
    """Of the halo rows of all parts."""
    largest: float
    """Of the largest part's halo rows."""


class PartitionScaling(Record):
    """How the partitions of one graph by one method change with the number of parts; written as one JSON document."""

    nodes: int
    entries: int
    """Of the adjacency matrix: two an edge."""
    feature_dim: int
    features_sparse: bool
    aggregated_sparse: bool
    labelled: int
    """Training nodes."""
    values: dict[str, int]
    """Stored values of all nodes' rows, "feature" and "aggregated"."""
    parts: tuple[int, ...]
    """Numbers of parts that were fitted, ascending."""
    totals: dict[str, Curve]
    """Sums over parts, by the names of `TOTALS`."""
    largest: dict[str, Curve]
    """Largest part over the mean, less 1, by measure (`measure`)."""
    deviation: dict[str, Curve]
    """Standard deviation over the mean."""
    profiles: dict[str, tuple[float, ...]]
    """Each measure over its mean, in the parts of the finest partition, ascending in halo rows: which goes with which."""
    connections: Connections
    pair_spread: Curve
    """Standard deviation of the logarithm of the rows that a part needs of each of its peers."""
    left_out: dict[int, ScalingError]
    """Errors of predicting each fitted number of parts from the others."""

    @property
    def error(self) -> ScalingError:
        """Root mean square over the numbers of parts left out one at a time."""
        errors = self.left_out.values()
        return ScalingError(
            halo=root_mean_square([each.halo for each in errors]), largest=root_mean_square([each.largest for each in errors])
        )

    def covers(self, parts: int) -> bool:
        """Whether that number of parts is within what was fitted; beyond it statistics are extrapolated."""
        return self.parts[0] <= parts <= self.parts[-1]

    def statistics(self, parts: int) -> list[PartStatistics]:
        """Made-up statistics of a partition into that many parts: the same each time. MisuseError outside 1 to the nodes."""
        if not 1 <= parts <= self.nodes:
            raise MisuseError(f"{parts} parts for {self.nodes} nodes: allowed are 1 to {self.nodes}")
        random = np.random.default_rng(parts)
        order = random.permutation(parts)
        shapes = {name: self._shape(name, parts)[order] for name in self.profiles}
        own = allocate(shapes["own"], self.nodes, np.ones(parts), np.full(parts, self.nodes))
        halo = self._halo_rows(own, shapes, random)
        cut = self._cut_entries(halo, shapes)
        marginal = allocate(
            shapes["marginal"],
            round(self.totals["marginal"].at(parts) * self.nodes),
            halo.max(axis=0),
            np.minimum(own, halo.sum(axis=0)),
        )
        central = own - marginal
        nnz_central, nnz_marginal = self._entries(central, marginal, cut.sum(axis=1), shapes)
        labelled = allocate(shapes["labelled"], self.labelled, np.zeros(parts), own)
        labelled_halo = self._labelled_halo(halo, labelled, shapes)
        stored = {kind: self._stored(kind, central, marginal, halo.sum(axis=1), shapes) for kind in VALUE_KINDS}
        return [
            PartStatistics(
                central=int(central[rank]),
                marginal=int(marginal[rank]),
                nnz_central=int(nnz_central[rank]),
                nnz_marginal=int(nnz_marginal[rank]),
                nnz_halo_from=tuple(cut[rank].tolist()),
                halo_from=tuple(halo[rank].tolist()),
                boundary_to=tuple(halo[:, rank].tolist()),
                labelled=int(labelled[rank]),
                labelled_halo_from=tuple(labelled_halo[rank].tolist()),
                labelled_boundary_to=tuple(labelled_halo[:, rank].tolist()),
                feature_dim=self.feature_dim,
                features_sparse=self.features_sparse,
                feature_nnz=stored["feature"][rank],
                aggregated_sparse=self.aggregated_sparse,
                aggregated_nnz=stored["aggregated"][rank],
            )
            for rank in range(parts)
        ]

    def _shape(self, name: str, parts: int) -> Floats:
        """[parts] a measure over its mean, ascending in halo rows, with the fitted largest value and deviation."""
        known = np.array(self.profiles[name])
        places, asked = (np.arange(known.size) + 0.5) / known.size, (np.arange(parts) + 0.5) / parts
        return stretched(np.interp(asked, places, known), self.largest[name].at(parts), self.deviation[name].at(parts))

    def _halo_rows(self, own: Ints, shapes: Mapping[str, Floats], random: np.random.Generator) -> Ints:
        """[part, owner] rows of each owner that each part needs."""
        parts = own.size
        total = round(self.totals["halo"].at(parts) * self.nodes)
        halo = np.zeros((parts, parts), dtype=np.int64)
        if total == 0:
            return halo
        weights = self._pair_weights(total, shapes["peers"], random)
        connected = weights > 0
        weights = balanced(weights, shapes["halo"], shapes["boundary"])[connected]
        halo[connected] = allocate(weights, total, np.ones(weights.size), np.broadcast_to(own, halo.shape)[connected])
        if 2 * np.triu(np.maximum(halo, halo.T)).sum() <= self.entries:
            return halo
        # Nearly every entry is a halo row of its own, which leaves none for a difference between the two ways.
        upper, lower = np.nonzero(np.triu(connected))
        both = allocate(
            halo[upper, lower] + halo[lower, upper], total // 2, np.zeros(upper.size), np.minimum(own[upper], own[lower])
        )
        halo[upper, lower] = halo[lower, upper] = both
        return halo

    def _pair_weights(self, total: int, peers: Floats, random: np.random.Generator) -> Floats:
        """[parts, parts] symmetric: how much a pair exchanges, log-normal over a part's peers; 0 for who are no neighbours.

        Parts sit on a ring in random order and know those around them, so that all find about as many peers as they
        should; who is near exchanges more.
        """
        parts = peers.size
        pairs = parts * (parts - 1)
        wanted = min(self.connections.share(total / max(pairs, 1)) * pairs, total)
        known = allocate(peers, round(wanted), np.where(peers > 0, 1, 0), np.full(parts, parts - 1))
        place = random.permutation(parts)
        gap = np.abs(place[:, None] - place)
        gap = np.minimum(gap, parts - gap)
        jitter = np.triu(random.random((parts, parts)), 1)
        # Two parts are equally far, one each way, but for the one opposite: the nearness rank, drawn within its pair.
        rank = 2 * gap - 2 + (jitter + jitter.T) * np.where(2 * gap == parts, 1, 2)
        reach = np.where(np.minimum(known[:, None], known) > 0, (known[:, None] + known) / 2, 0.0)
        connected = (gap > 0) & (rank < reach)
        quantile = 1 - (np.floor(rank) + 0.5) / np.maximum(np.ceil(reach), 1.0)
        spread = self.pair_spread.at(parts)
        return np.where(connected, np.exp(spread * ndtri(np.where(connected, quantile, 0.5))), 0.0)

    def _cut_entries(self, halo: Ints, shapes: Mapping[str, Floats]) -> Ints:
        """[part, peer] symmetric: entries between two parts, at least one a halo row."""
        cut = np.zeros_like(halo)
        first, second = np.nonzero(np.triu(halo))
        there, back = halo[first, second], halo[second, first]
        weights = balanced(np.sqrt(halo * halo.T), shapes["cut"], shapes["cut"])
        weights = np.sqrt(weights * weights.T)[first, second]
        total = round(self.totals["cut"].at(len(halo)) * self.entries / 2)
        cut[first, second] = allocate(weights, total, np.maximum(there, back), there * back)
        return cut + cut.T

    def _entries(self, central: Ints, marginal: Ints, cut: Ints, shapes: Mapping[str, Floats]) -> tuple[Ints, Ints]:
        """Entries of each part's central and marginal rows; all of the graph's in all."""
        inside = self.entries - int(cut.sum())
        share = self.totals["inner"].at(central.size) if central.any() else 1.0
        none = np.zeros(central.size)
        inner = allocate(shapes["inner"], round(share * inside), none, np.where(marginal > 0, inside, 0))
        rest = allocate(shapes["central"], inside - int(inner.sum()), none, np.where(central > 0, inside, 0))
        return rest, inner + cut

    def _labelled_halo(self, halo: Ints, labelled: Ints, shapes: Mapping[str, Floats]) -> Ints:
        """[part, owner] halo rows beside a training row of the part."""
        shares = shapes["labelled_halo"] / np.maximum(shapes["halo"], LEAST_SHARE)
        high = halo * (labelled > 0)[:, None]
        total = round(self.totals["labelled_halo"].at(len(halo)) * halo.sum())
        rows = allocate((halo * shares[:, None]).ravel(), total, np.zeros(halo.size), high.ravel())
        return rows.reshape(halo.shape)

    def _stored(
        self, kind: str, central: Ints, marginal: Ints, halo: Ints, shapes: Mapping[str, Floats]
    ) -> list[tuple[int, int, int]]:
        """By part: stored values of its central, marginal and halo rows; zeros where rows are dense."""
        total, parts = self.values[kind], central.size
        if f"{kind}_halo" not in shapes:
            return [(0, 0, 0)] * parts
        none = np.zeros(parts)

        def values(rows: Ints, name: str, count: float) -> Ints:
            return allocate(shapes[f"{kind}_{name}"], round(count), none, self.feature_dim * rows)

        per_row = total / self.nodes
        expected = self.totals[f"{kind}_marginal"].at(parts) * per_row * int(marginal.sum())
        in_marginal = values(marginal, "marginal", min(max(expected, total - self.feature_dim * int(central.sum())), total))
        in_central = values(central, "central", total - int(in_marginal.sum()))
        in_halo = values(halo, "halo", self.totals[f"{kind}_halo"].at(parts) * per_row * int(halo.sum()))
        return list(zip(in_central.tolist(), in_marginal.tolist(), in_halo.tolist(), strict=True))


def fit_scaling(partitions: Mapping[int, Sequence[PartStatistics]], *, nodes: int, entries: int) -> PartitionScaling:
    """Fit partitions of one graph, made by one method, by their number of parts.

    Args:
        partitions: statistics of all parts, by the number of parts; at least two numbers above 1.
        nodes: of the graph.
        entries: of its adjacency matrix, without the diagonal: two an edge.

    Raises:
        MisuseError: too few partitions, or not of this graph.
    """
    _check(partitions, nodes, entries)
    counts = sorted(parts for parts in partitions if parts > 1)
    measures = [measure(partitions[parts]) for parts in counts]
    shares = [_shares(each, nodes, entries) for each in measures]
    parts = np.array(counts, dtype=np.float64)
    degree = entries / nodes

    def total(name: str) -> Curve:
        quantity, forms = TOTALS[name]
        return fit_curve(parts, np.array([each[name] for each in shares]), quantity, forms, degree)

    def spread(name: str, quantity: Quantity) -> Curve:
        statistic = {"largest": excess, "deviation": deviation}[quantity]
        return fit_curve(parts, np.array([statistic(each[name]) for each in measures]), quantity, SPREADING, degree)

    first, finest = partitions[counts[0]][0], measures[-1]
    ascending = np.argsort(finest["halo"], kind="stable")
    return PartitionScaling(
        nodes=nodes,
        entries=entries,
        feature_dim=first.feature_dim,
        features_sparse=first.features_sparse,
        aggregated_sparse=first.aggregated_sparse,
        labelled=int(finest["labelled"].sum()),
        values={kind: _own_values(finest, kind) for kind in VALUE_KINDS},
        parts=tuple(counts),
        totals={name: total(name) for name in TOTALS if name in shares[0]},
        largest={name: spread(name, "largest") for name in finest},
        deviation={name: spread(name, "deviation") for name in finest},
        profiles={name: tuple(relative(values)[ascending].tolist()) for name, values in finest.items()},
        connections=_fit_connections([partitions[count] for count in counts]),
        pair_spread=fit_curve(parts, np.array([_pair_spread(partitions[count]) for count in counts]), "ratio", STEADY, degree),
        left_out=_left_out(parts, measures, nodes, degree),
    )


def measure(statistics: Sequence[PartStatistics]) -> dict[str, Floats]:
    """What is counted in each part, [parts] a name; stored values only where rows are sparse."""
    columns = {
        "own": [each.own for each in statistics],
        "halo": [each.halo for each in statistics],
        "boundary": [each.boundary for each in statistics],
        "peers": [int(np.count_nonzero(each.halo_from)) for each in statistics],
        "cut": [each.nnz_halo for each in statistics],
        "marginal": [each.marginal for each in statistics],
        "inner": [each.nnz_marginal - each.nnz_halo for each in statistics],
        "central": [each.nnz_central for each in statistics],
        "labelled": [each.labelled for each in statistics],
        "labelled_halo": [sum(each.labelled_halo_from) for each in statistics],
    }
    for kind, sparse in zip(VALUE_KINDS, (statistics[0].features_sparse, statistics[0].aggregated_sparse), strict=True):
        for index, rows in enumerate(("central", "marginal", "halo") if sparse else ()):
            values = [(each.feature_nnz if kind == "feature" else each.aggregated_nnz)[index] for each in statistics]
            columns[f"{kind}_{rows}"] = values
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def relative(values: Floats) -> Floats:
    """Over the mean; ones where all are zero."""
    mean = values.mean()
    return values / mean if mean > 0 else np.ones_like(values)


def excess(values: Floats) -> float:
    """The largest over the mean, less 1."""
    return float(relative(values).max() - 1)


def deviation(values: Floats) -> float:
    """The standard deviation over the mean."""
    return float(relative(values).std())


def allocate(weights: npt.NDArray[np.number], total: float, low: npt.ArrayLike, high: npt.ArrayLike) -> Ints:
    """Integers between `low` and `high` in proportion to `weights`, that sum to `total`, or to the nearest the bounds allow."""
    least, most = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    most = np.maximum(least, most)
    if not weights.size:
        return np.zeros(0, dtype=np.int64)
    top = float(weights.max())
    weight = np.maximum(weights / top, 1e-9) if top > 0 else np.ones(weights.size)
    target = min(max(float(total), float(least.sum())), float(most.sum()))
    small, large = 0.0, float((most / weight).max())
    for _ in range(200):  # the sum rises with the scale
        middle = (small + large) / 2
        if middle in (small, large):
            break
        small, large = (middle, large) if np.clip(middle * weight, least, most).sum() < target else (small, middle)
    exact = np.clip(large * weight, least, most)
    whole = np.floor(exact)
    # Carrying the fractions along keeps every run of entries, a part's row for one, within 1 of what it should be.
    carried = np.floor(np.cumsum(exact - whole) + 0.5)
    return (whole + np.diff(carried, prepend=0.0)).astype(np.int64)


def balanced(weights: Floats, rows: Floats, columns: Floats) -> Floats:
    """Scale rows and columns of a non-negative matrix until they sum to these shares (Sinkhorn and Knopp, 1967); rows last."""
    for _ in range(BALANCING_ROUNDS):
        weights = weights * _quotient(columns, weights.sum(axis=0))
        weights = weights * _quotient(rows, weights.sum(axis=1))[:, None]
    return weights


def stretched(profile: Floats, largest: float, spread: float) -> Floats:
    """Raise what is above and below the mean to powers, so that the mean is 1, the largest 1 + `largest` and the deviation fits.

    A profile that is the same everywhere stays so.
    """
    profile = relative(profile)
    if np.ptp(profile) == 0 or largest <= 0:
        return np.ones_like(profile)

    def shape(logarithms: Floats) -> Floats:
        above, below = np.exp(logarithms)
        return relative(np.where(profile > 1, profile**above, profile**below))

    def miss(logarithms: Floats) -> Floats:
        values = shape(logarithms)
        # the largest part is what an epoch waits for: it counts most
        return np.array([3 * np.log(values.max() / (1 + largest)), values.std() - spread])

    reach = float(np.log(STRETCH))
    return shape(least_squares(miss, np.zeros(2), bounds=(-reach, reach)).x)


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def _shares(measures: Mapping[str, Floats], nodes: int, entries: int) -> dict[str, float]:
    """One partition's totals as the shares that `TOTALS` describes."""
    sums = {name: float(values.sum()) for name, values in measures.items()}

    def share(numerator: float, denominator: float) -> float:
        return numerator / denominator if denominator > 0 else 0.0

    shares = {
        "halo": sums["halo"] / nodes,
        "cut": share(sums["cut"], entries),
        "marginal": sums["marginal"] / nodes,
        "inner": share(sums["inner"], entries - sums["cut"]),
        "labelled_halo": share(sums["labelled_halo"], sums["halo"]),
    }
    for kind in VALUE_KINDS:
        for rows in ("marginal", "halo"):
            if f"{kind}_{rows}" in sums:
                per_row = share(sums[f"{kind}_{rows}"], sums[rows])
                shares[f"{kind}_{rows}"] = share(per_row, _own_values(measures, kind) / nodes)
    return shares


def _own_values(measures: Mapping[str, Floats], kind: str) -> int:
    return int(sum(measures[f"{kind}_{rows}"].sum() for rows in ("central", "marginal") if f"{kind}_{rows}" in measures))


def _pair_spread(statistics: Sequence[PartStatistics]) -> float:
    """Mean over parts with several peers of the deviation of log(rows needed of a peer)."""
    needed = [np.array([rows for rows in each.halo_from if rows], dtype=np.float64) for each in statistics]
    spreads = [float(np.log(rows).std()) for rows in needed if rows.size > 1]
    return float(np.mean(spreads)) if spreads else 0.0


def _fit_connections(partitions: Sequence[Sequence[PartStatistics]]) -> Connections:
    """Maximum likelihood, with a unit normal prior around "connected where a mean pair exchanges some rows"."""
    pairs, connected, rows = [], [], []
    for statistics in partitions:
        count = len(statistics) * (len(statistics) - 1)
        needed = sum(each.halo for each in statistics)
        if needed:
            pairs.append(count)
            connected.append(sum(int(np.count_nonzero(each.halo_from)) for each in statistics))
            rows.append(needed / count)
    if not pairs:
        return Connections()
    weight, hits, position = np.array(pairs) / 2, np.array(connected) / 2, np.log(rows)

    def loss(unknown: Floats) -> float:
        level, slope = unknown
        score = level + slope * position
        surprise = hits @ np.logaddexp(0, -score) + (weight - hits) @ np.logaddexp(0, score)
        return float(surprise + (level**2 + (slope - 1) ** 2) / 2)

    level, slope = minimize(loss, np.array([0.0, 1.0])).x
    return Connections(level=float(level), slope=float(slope))


def _left_out(parts: Floats, measures: Sequence[Mapping[str, Floats]], nodes: int, degree: float) -> dict[int, ScalingError]:
    """Predict each partition's halo from the others'; those without any have no relative error."""
    totals = np.array([each["halo"].sum() for each in measures])
    largest = np.array([excess(each["halo"]) for each in measures])
    errors = {}
    for index, count in enumerate(parts):
        rest = np.arange(parts.size) != index
        if totals[index] == 0:
            continue
        total = fit_curve(parts[rest], totals[rest] / nodes, "halo", GROWING, degree).at(int(count)) * nodes
        excessive = fit_curve(parts[rest], largest[rest], "largest", SPREADING, degree).at(int(count))
        ratio = float(total / totals[index])
        errors[int(count)] = ScalingError(halo=ratio - 1, largest=ratio * (1 + excessive) / float(1 + largest[index]) - 1)
    return errors


def _check(partitions: Mapping[int, Sequence[PartStatistics]], nodes: int, entries: int) -> None:
    """Raise MisuseError unless these are partitions of one graph with that many nodes and entries."""
    several = sorted(parts for parts in partitions if parts > 1)
    if len(several) < 2:
        listed = ", ".join(map(str, several)) or "none"
        raise MisuseError(
            f"scaling needs partitions into two or more numbers of parts above 1, not {listed}; record another run"
        )
    facts = {}
    for parts, statistics in sorted(partitions.items()):
        where = f"the partition into {parts} parts"
        if parts > nodes:
            raise MisuseError(f"{where} is of more parts than the graph has nodes ({nodes})")
        if len(statistics) != parts:
            raise MisuseError(f"{where} has statistics of {len(statistics)} parts")
        found = {
            "nodes": sum(each.own for each in statistics),
            "entries": sum(each.nnz_central + each.nnz_marginal for each in statistics),
        }
        for name, expected in (("nodes", nodes), ("entries", entries)):
            if found[name] != expected:
                raise MisuseError(f"{where} has {found[name]} {name}, the graph {expected}: all must be of one graph")
        facts[parts] = {
            "training nodes": sum(each.labelled for each in statistics),
            "feature dims": sorted({each.feature_dim for each in statistics}),
            "stored feature values": sum(sum(each.feature_nnz[:2]) for each in statistics if each.features_sparse),
            "stored aggregated values": sum(sum(each.aggregated_nnz[:2]) for each in statistics if each.aggregated_sparse),
        }
    reference = facts[several[0]]
    for parts, found_facts in facts.items():
        for name, value in found_facts.items():
            if value != reference[name]:
                raise MisuseError(
                    f"the partitions into {several[0]} and {parts} parts differ in {name} ({reference[name]}, {value}): "
                    "all must be of one graph and model"
                )
