"""Moves nodes between parts so that the forecast falls: what the busiest port carries and the busiest rank computes.

An epoch is as long as its busiest rank computes, and every exchange as long as its busiest port sends or receives. Both are
sums of counts (nodes, entries, rows from part to part), and a move changes them by what its node's neighbours say: part q needs
node u of another part while u has a neighbour in q, so that one table of neighbours by part [nodes, parts] tells every change,
as the gains of C. Fiduccia and R. Mattheyses (19th Design Automation Conference, 1982) do for the cut. Maxima are flat almost
everywhere; moves are chosen by the gradient of a p-norm in their place, many at once, counted exactly, and taken back where the
norm did not fall after all. The power grows from stage to stage, towards the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Assignment = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

POWERS = (32.0, 128.0)
"""Of the norms that stand for the maximum, one a stage: eight equal loads come to 7 % and 2 % more."""
SUM_SHARE = 0.02
"""What the mean over parts counts beside the maximum: moves that help no maximum yet make room for others."""
MOST_ENTRIES = 30_000
"""Neighbours of the nodes that are looked at in a round, at most: what a core's second-level cache holds of the table."""
PATIENCE = 4
"""Rounds without a move that end a stage."""
FIRST_BATCH = 64
"""Moves that the first round makes at once, at most; then as many more or fewer as prove right."""
FEW = 4
"""Moves of a batch this small that does not help are not tried again in their stage."""
HEADROOM = 1.05
"""A part may have so many times the rows of the largest one at first: cheap compute must not gather the graph in one memory."""
ALMOST_FULL = 0.995
"""Of those rows: nothing more is moved there."""
LEAST_FALL = 1e-9
"""Share of the objective that a batch must lower it by."""


@dataclass(frozen=True)
class Weights:
    """What a part's share costs, in seconds an epoch; each [parts], so that slow devices and narrow links weigh more."""

    node: Floats
    """Compute, for each node of its own."""
    entry: Floats
    """Compute, for each entry of its rows of A (the diagonal not counted)."""
    halo: Floats
    """Compute, for each halo row."""
    boundary: Floats
    """Compute, for each row to one peer."""
    row: Floats
    """Through the part's port, for each row that an exchange of all rows sends or receives; all such exchanges together."""
    labelled_row: Floats
    """The same in exchanges of rows beside training nodes only."""
    fixed: Floats
    """Compute that no partition changes."""

    def __post_init__(self) -> None:
        for name in ("entry", "halo", "boundary", "row", "labelled_row", "fixed"):
            if getattr(self, name).shape != self.node.shape:
                raise ValueError(f"weights of {name} {getattr(self, name).shape}: those of nodes are {self.node.shape}")

    @property
    def parts(self) -> int:
        return len(self.node)


@dataclass(frozen=True)
class Loads:
    """What every part has to do; counts as `PartStatistics` has them."""

    nodes: Ints
    """[parts] of its own."""
    entries: Ints
    """[parts] of its rows of A."""
    rows: Ints
    """[parts, parts] rows that one sends another in an exchange of all rows; nothing on the diagonal."""
    labelled_rows: Ints
    """[parts, parts] those of them that have a training node beside them at the receiver."""

    @property
    def held(self) -> Ints:
        """[parts] rows of its own and of its halo: what its memory grows with."""
        return np.asarray(self.nodes + self.rows.sum(axis=0))

    def compute(self, weights: Weights) -> Floats:
        """[parts] seconds."""
        halo, boundary = self.rows.sum(axis=0), self.rows.sum(axis=1)
        own = weights.fixed + weights.node * self.nodes + weights.entry * self.entries
        return np.asarray(own + weights.halo * halo + weights.boundary * boundary)

    def ports(self, weights: Weights) -> tuple[Floats, Floats]:
        """[2 × parts] seconds of every port, outward then inward, with all rows; the same of labelled rows."""
        return _both_ways(self.rows, weights.row), _both_ways(self.labelled_rows, weights.labelled_row)

    def seconds(self, weights: Weights) -> float:
        """The objective: the busiest rank's compute, the busiest port's seconds, and a little of their means over parts."""
        loads = (self.compute(weights), *self.ports(weights))
        return float(sum(each.max() + SUM_SHARE * each.mean() for each in loads))


@dataclass(frozen=True)
class Refined:
    """What refinement made of a partition."""

    assignment: Assignment
    """[nodes] the part of each."""
    moves: int
    """Nodes in another part than before."""
    before: float
    """The objective, in seconds (`Loads.seconds`); never below `after`."""
    after: float


def refine(
    indptr: Ints,
    indices: npt.NDArray[np.integer],
    assignment: Assignment,
    weights: Weights,
    *,
    train_mask: Mask,
    rounds: int = 200,
    most_moves: int | None = None,
    most_rows: int | None = None,
    seed: int = 0,
) -> Refined:
    """Move nodes to other parts while the objective of `Loads.seconds` falls; no part becomes empty.

    The same arguments give the same answer. Takes nodes × parts × 8 bytes beside the graph.

    Args:
        indptr: int64 [N + 1] and `indices` [nnz]: the symmetric structure, without self loops, each edge both ways.
        assignment: int32 [N] in 0..parts-1; it is left as it is.
        train_mask: [N] training nodes.
        rounds: batches of moves that are tried, at most.
        most_moves: moves that are made, at most; None: no limit.
        most_rows: own and halo rows of a part, at most, beyond what the largest has already; None: `HEADROOM` times that.
        seed: of the nodes that are looked at first.

    Raises ValueError for an assignment of more parts than there are weights for.
    """
    if assignment.max(initial=0) >= weights.parts:
        raise ValueError(f"an assignment to {int(assignment.max()) + 1} parts with weights for {weights.parts}")
    state = _State(indptr, indices, assignment, weights.parts, train_mask)
    before = state.loads.seconds(weights)
    if weights.parts == 1 or not before > 0.0:
        return Refined(assignment.copy(), 0, before, before)
    best, after = assignment.copy(), before
    largest = int(state.loads.held.max())
    limit = int(HEADROOM * largest) if most_rows is None else max(most_rows, largest)
    search = _Search(state, weights, limit, np.random.default_rng(seed))
    left = len(assignment) if most_moves is None else most_moves
    stage = idle = 0
    for _ in range(rounds):
        moved = search.step(POWERS[stage], left)
        left -= moved
        idle = 0 if moved else idle + 1
        if moved and (now := state.loads.seconds(weights)) < after:
            best, after = state.assignment.copy(), now
        if left <= 0:
            break
        if idle == PATIENCE:
            stage, idle = stage + 1, 0
            if stage == len(POWERS):
                break
            search.unlock()
    return Refined(best, int(np.count_nonzero(best != assignment)), before, after)


@dataclass(frozen=True)
class Step:
    """One partition that `refine_by_forecast` tried."""

    seconds: float
    """Its forecast."""
    moves: int
    """Nodes that it has in other parts than the best one before it."""
    kept: bool


@dataclass(frozen=True)
class Chosen:
    """The partition with the lowest forecast that was found."""

    assignment: Assignment
    before: float
    """Forecast of the first partition, in seconds."""
    after: float
    steps: Sequence[Step]


def refine_by_forecast(
    indptr: Ints,
    indices: npt.NDArray[np.integer],
    assignment: Assignment,
    forecast_of: Callable[[Assignment], tuple[float, Weights]],
    *,
    train_mask: Mask,
    tries: int = 6,
    rounds: int = 200,
    most_rows: int | None = None,
    seed: int = 0,
) -> Chosen:
    """Refine by what a forecast says of the partition, forecast again, and go on from there while the forecast falls.

    `forecast_of` gives an epoch's seconds and what the parts' shares cost in it (`halocast.simulator.planner.weights`). The
    weights hold near the partition they come from: where the forecast rises, a quarter of the moves is tried. `tries`
    partitions are forecast, beside the first. The other arguments are those of `refine`.
    """
    first, weights = forecast_of(assignment)
    if most_rows is None:  # of the first partition: attempts must not grow on each other
        held = _State(indptr, indices, assignment, weights.parts, train_mask).loads.held
        most_rows = int(HEADROOM * held.max())
    best, lowest, most_moves = assignment.copy(), first, None
    steps: list[Step] = []
    for attempt in range(tries):
        found = refine(
            indptr, indices, best, weights, train_mask=train_mask, rounds=rounds, most_moves=most_moves,
            most_rows=most_rows, seed=seed + attempt,
        )  # fmt: skip
        if not found.moves:
            break
        seconds, now = forecast_of(found.assignment)
        kept = seconds < lowest
        steps.append(Step(seconds, found.moves, kept))
        if kept:
            best, lowest, weights = found.assignment, seconds, now
        else:
            most_moves = found.moves // 4
            if not most_moves:
                break
    return Chosen(best, first, lowest, tuple(steps))


def _both_ways(rows: Ints, seconds: Floats) -> Floats:
    return np.concatenate([rows.sum(axis=1) * seconds, rows.sum(axis=0) * seconds])


@dataclass(frozen=True)
class _Moves:
    """Nodes to move, none twice, the best first."""

    nodes: Ints
    targets: Assignment

    def first(self, count: int) -> _Moves:
        return _Moves(self.nodes[:count], self.targets[:count])


@dataclass(frozen=True)
class _Before:
    """What a batch of moves changed."""

    loads: Loads
    moved: Ints
    parts: Assignment
    touched: Ints
    neighbours: Counts
    labelled: Counts


class _State:
    """A partition, what its parts have to do, and the neighbours by part that say how moves change that."""

    def __init__(
        self, indptr: Ints, indices: npt.NDArray[np.integer], assignment: Assignment, parts: int, train_mask: Mask
    ) -> None:
        self.indptr, self.indices, self.parts, self.train_mask = indptr, indices, parts, train_mask
        self.assignment = assignment.astype(np.int32, copy=True)
        self.degrees = np.diff(indptr)
        nodes = len(self.degrees)
        source = np.repeat(np.arange(nodes), self.degrees)
        cell = source * parts + self.assignment[indices]
        self.neighbours = np.bincount(cell, minlength=nodes * parts).reshape(nodes, parts).astype(np.int32)
        """[nodes, parts]"""
        cell = cell[train_mask[indices]]
        self.labelled = np.bincount(cell, minlength=nodes * parts).reshape(nodes, parts).astype(np.int32)
        """[nodes, parts] training nodes among them."""
        self.loads = Loads(
            nodes=np.bincount(self.assignment, minlength=parts),
            entries=np.bincount(self.assignment, self.degrees, parts).astype(np.int64),
            rows=self._rows(self.assignment, self.neighbours),
            labelled_rows=self._rows(self.assignment, self.labelled),
        )

    def edges(self, nodes: Ints) -> tuple[Ints, Ints]:
        """(degree of each, their neighbours one node after the other)."""
        degrees = self.degrees[nodes]
        offsets = np.arange(int(degrees.sum())) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        return degrees, self.indices[np.repeat(self.indptr[nodes], degrees) + offsets].astype(np.int64)

    def move(self, moves: _Moves) -> _Before:
        """Make the moves; the answer takes them back."""
        nodes, targets = moves.nodes, moves.targets
        degrees, beside = self.edges(nodes)
        touched = np.unique(np.concatenate([nodes, beside]))
        loads, parts = self.loads, self.assignment[nodes]
        before = _Before(loads, nodes, parts, touched, self.neighbours[touched], self.labelled[touched])
        old = self.assignment[touched]
        place = np.searchsorted(touched, beside) * self.parts
        gone, come = place + np.repeat(parts, degrees), place + np.repeat(targets, degrees)
        is_training = np.repeat(self.train_mask[nodes], degrees)
        for table, seen in ((self.neighbours, slice(None)), (self.labelled, is_training)):
            change = np.bincount(come[seen], minlength=touched.size * self.parts)
            change -= np.bincount(gone[seen], minlength=touched.size * self.parts)
            table[touched] += change.reshape(-1, self.parts).astype(np.int32)
        self.assignment[nodes] = targets
        new = self.assignment[touched]
        moved_entries = np.bincount(targets, degrees, self.parts) - np.bincount(parts, degrees, self.parts)
        self.loads = Loads(
            nodes=loads.nodes + np.bincount(targets, minlength=self.parts) - np.bincount(parts, minlength=self.parts),
            entries=loads.entries + moved_entries.astype(np.int64),
            rows=loads.rows + self._rows(new, self.neighbours[touched]) - self._rows(old, before.neighbours),
            labelled_rows=loads.labelled_rows + self._rows(new, self.labelled[touched]) - self._rows(old, before.labelled),
        )
        return before

    def take_back(self, before: _Before) -> None:
        self.loads = before.loads
        self.assignment[before.moved] = before.parts
        self.neighbours[before.touched], self.labelled[before.touched] = before.neighbours, before.labelled

    def _rows(self, owners: Assignment, neighbours: Counts) -> Ints:
        """[parts, parts] nodes of one part with a neighbour in another."""
        node, part = np.nonzero(neighbours)
        cells = np.bincount(owners[node] * np.int64(self.parts) + part, minlength=self.parts**2)
        rows: Ints = cells.reshape(self.parts, self.parts).astype(np.int64)
        np.fill_diagonal(rows, 0)
        return rows


@dataclass(frozen=True)
class _Prices:
    """How fast the norm grows with what a part has to do: its gradient; each [parts]."""

    node: Floats
    entry: Floats
    into: Floats
    """A row into the part."""
    out: Floats
    """A row out of it."""
    labelled_into: Floats
    labelled_out: Floats


class _Search:
    """Chooses moves, makes them, and learns how many at once."""

    def __init__(self, state: _State, weights: Weights, most_rows: int, random: np.random.Generator) -> None:
        self.state, self.weights, self.most_rows, self.random = state, weights, most_rows, random
        self.batch = FIRST_BATCH
        self.rank = np.full(len(state.assignment), len(state.assignment), dtype=np.int64)
        self.locked = np.zeros(len(state.assignment), dtype=bool)

    def unlock(self) -> None:
        """Try again what did not help."""
        self.locked[:] = False

    def step(self, power: float, most: int) -> int:
        """Make the best of some moves at once, fewer where the norm does not fall; how many were made."""
        norm, prices = self.norm(power)
        moves = self._best_moves(prices, norm)
        count = min(self.batch, most, len(moves.nodes))
        while count:
            before = self.state.move(moves.first(count))
            loads = self.state.loads
            fits = loads.nodes.all() and loads.held.max() <= self.most_rows
            if fits and self.norm(power)[0] < norm * (1.0 - LEAST_FALL):
                self.batch = max(2 * count, 2)
                return count
            self.state.take_back(before)
            if count <= FEW:
                self.locked[moves.nodes[:count]] = True
            count //= 4
        self.batch = max(self.batch // 4, 2)
        return 0

    def norm(self, power: float) -> tuple[float, _Prices]:
        """The objective with p-norms for maxima, and its gradient."""
        weights, loads = self.weights, self.state.loads
        ports, labelled_ports = loads.ports(weights)
        seconds, compute = _norm(loads.compute(weights), power)
        all_rows, port = _norm(ports, power)
        labelled_rows, labelled_port = _norm(labelled_ports, power)
        parts = weights.parts
        return seconds + all_rows + labelled_rows, _Prices(
            node=compute * weights.node,
            entry=compute * weights.entry,
            into=port[parts:] * weights.row + compute * weights.halo,
            out=port[:parts] * weights.row + compute * weights.boundary,
            labelled_into=labelled_port[parts:] * weights.labelled_row,
            labelled_out=labelled_port[:parts] * weights.labelled_row,
        )

    def _best_moves(self, prices: _Prices, norm: float) -> _Moves:
        """Moves that lower the norm, no two of neighbours: a neighbour's move changes what a node's own is worth."""
        state = self.state
        nodes = self._candidates(prices)
        if not nodes.size:
            return _Moves(nodes, np.zeros(0, dtype=np.int32))
        degrees, beside = state.edges(nodes)
        change = self._changes(nodes, degrees, beside, prices)
        change[:, state.loads.held >= ALMOST_FULL * self.most_rows] = np.inf
        target = change.argmin(axis=1)
        least = change[np.arange(len(nodes)), target]
        order = np.argsort(least, kind="stable")
        order = order[: int(np.searchsorted(least[order], -1e-12 * norm))]
        self.rank[nodes[order]] = np.arange(len(order))
        nearest = np.minimum.reduceat(self.rank[beside], np.cumsum(degrees) - degrees)
        order = order[nearest[order] > self.rank[nodes[order]]]
        self.rank[nodes] = len(self.rank)
        return _Moves(nodes[order], target[order].astype(np.int32))

    def _candidates(self, prices: _Prices) -> Ints:
        """Some of the nodes with neighbours in other parts, in or beside a part whose load counts now."""
        state = self.state
        compute = prices.node + prices.entry * float(state.degrees.mean())
        hot = np.zeros(state.parts, dtype=bool)
        for heat in (compute, prices.into + prices.out, prices.labelled_into + prices.labelled_out):
            hot |= heat >= max(0.1 * float(heat.max()), np.finfo(np.float64).tiny)
        here = state.neighbours > 0
        here[np.arange(len(here)), state.assignment] = False
        chosen = np.flatnonzero((here.any(axis=1) & hot[state.assignment] | here[:, hot].any(axis=1)) & ~self.locked)
        chosen = self.random.permutation(chosen)
        return np.sort(chosen[: int(np.searchsorted(np.cumsum(state.degrees[chosen]), MOST_ENTRIES)) + 1])

    def _changes(self, nodes: Ints, degrees: Ints, beside: Ints, prices: _Prices) -> Floats:
        """[nodes, parts] by how much the norm would grow, to first order; infinite where a node has no neighbours."""
        state = self.state
        own, each = state.assignment[nodes], np.arange(len(nodes))
        change = prices.node + state.degrees[nodes, None] * prices.entry
        change = change - change[each, own][:, None]
        change += _own_rows(state.neighbours[nodes], own, prices.into, prices.out)
        change += _own_rows(state.labelled[nodes], own, prices.labelled_into, prices.labelled_out)
        change += _neighbours_rows(state.neighbours[beside], state.assignment[beside], own, degrees, prices.into, prices.out)
        training = state.train_mask[nodes]
        if training.any() and prices.labelled_into.any():
            seen = beside[np.repeat(training, degrees)]
            change[training] += _neighbours_rows(
                state.labelled[seen], state.assignment[seen], own[training], degrees[training], prices.labelled_into,
                prices.labelled_out,
            )  # fmt: skip
        change[state.neighbours[nodes] == 0] = np.inf
        change[each, own] = np.inf
        return change


def _norm(loads: Floats, power: float) -> tuple[float, Floats]:
    """(p-norm of loads and a little of their mean, its gradient)."""
    largest = float(loads.max())
    if largest <= 0.0:
        return 0.0, np.zeros(len(loads))
    relative = loads / largest
    total = float((relative**power).sum())
    value = largest * total ** (1.0 / power) + SUM_SHARE * float(loads.mean())
    return value, relative ** (power - 1.0) * total ** (1.0 / power - 1.0) + SUM_SHARE / len(loads)


def _own_rows(neighbours: Counts, own: Assignment, into: Floats, out: Floats) -> Floats:
    """[nodes, parts] what a node's own row to others costs more at each part than where it is."""
    each, needed = np.arange(len(own)), neighbours > 0
    elsewhere = needed.sum(axis=1, keepdims=True) - needed  # parts besides this one that need the row
    cost = elsewhere * out - needed * into  # a part receives it no more once it owns it,
    return np.asarray(cost - cost[each, own][:, None])  # and the one it leaves does then


def _neighbours_rows(
    neighbours: Counts, owners: Assignment, own: Assignment, degrees: Ints, into: Floats, out: Floats
) -> Floats:
    """[nodes, parts] what the rows of a node's neighbours cost more with it at each part than where it is.

    `neighbours` [entries, parts] and `owners` [entries] are of the neighbours, one node's after another's.
    """
    left, each = np.repeat(own, degrees), np.arange(len(owners))
    freed = (into[left] + out[owners]) * ((neighbours[each, left] == 1) & (owners != left))
    price = (into + out[owners][:, None]) * (neighbours == 0)
    price[each, owners] = 0.0
    starts = np.cumsum(degrees) - degrees
    return np.asarray(np.add.reduceat(price, starts) - np.add.reduceat(freed, starts)[:, None])
