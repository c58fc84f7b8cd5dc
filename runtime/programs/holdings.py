"""What a rank holds whatever its program does: the graph's structure, features, parameters. Bytes, by the shard's statistics.

Buffers that come and go are not among it: `traces.buffers` places those.
"""

from __future__ import annotations

from dataclasses import dataclass

from halocast.runtime.programs.schedule import LayerSchedule, Order, schedule_layers
from halocast.traces.operations import Part
from halocast.traces.workload import RankView

OFFSET, COLUMN = 8, 4
"""Bytes of an entry of an array of offsets, ids or degrees; and of one of columns."""
ADAM = 2
"""Values of optimiser state a parameter, unless the optimiser has fewer."""


def receives_in_place(method: object) -> bool:
    """Whether a method's halo rows land behind the own rows of the buffer that they belong to: so, unless it says otherwise."""
    return bool(getattr(method, "receives_in_place", True))


@dataclass(frozen=True, slots=True)
class Holdings:
    """Bytes of one rank."""

    structure: int
    features: int
    parameters: int
    """With their gradients and the optimiser's state."""
    edge_data: int
    """Of what layers that read it make of it, block by block."""

    @property
    def total(self) -> int:
        return self.structure + self.features + self.parameters + self.edge_data


def holdings(view: RankView, method: object, *, optimizer_states: int = ADAM) -> Holdings:
    """What the rank holds from its first epoch to its last."""
    schedules = schedule_layers(view)
    parameters = sum(layer.parameters for layer in view.layers)
    return Holdings(
        structure=_structure(view) + _layers_own(view, schedules),
        features=_features(view, schedules[0], method),
        parameters=(2 + optimizer_states) * view.value_bytes * parameters,
        edge_data=_edge_data(view, schedules),
    )


def _structure(view: RankView) -> int:
    """The adjacency by row and the halo's turned over; the marginal rows by peer; ids, degrees, labels and masks."""
    part = view.part
    own, halo = part.own, part.halo
    entries = own + part.nnz_central + part.nnz_marginal + part.nnz_halo
    by_peer = COLUMN * part.nnz_halo + OFFSET * len(_peers(view)) * (part.marginal + 1)
    offsets = OFFSET * (5 * own + 3 * halo)
    nodes = 2 * OFFSET * (own + halo) + (OFFSET + 3) * own + COLUMN * part.boundary
    return COLUMN * entries + by_peer + offsets + nodes


def _layers_own(view: RankView, schedules: tuple[LayerSchedule, ...]) -> int:
    """What layers keep of the structure: a scale or two for each row, or the edges of each peer's block."""
    part, value = view.part, view.value_bytes
    rows = part.own + part.halo
    linear = [layer for layer in view.layers if layer.linear_aggregation]
    total = value * rows * (len(linear) + 2 * sum(layer.norm for layer in view.layers))
    if not any(layer.is_blockwise for layer in view.layers):
        return total
    total += 2 * OFFSET * part.halo + COLUMN * part.nnz_halo
    if schedules[-1].labelled_only and schedules[-1].sends_backward:  # the edges of rows that have a gradient, by themselves
        for peer in _peers(view):
            share = part.labelled_halo_from[peer] / part.halo_from[peer]
            total += 2 * OFFSET * part.marginal + round(COLUMN * part.nnz_halo_from[peer] * share)
    return total


def _edge_data(view: RankView, schedules: tuple[LayerSchedule, ...]) -> int:
    """What blocks of edges bring along; nothing where no layer reads any of it."""
    part, value = view.part, view.value_bytes
    inner = part.nnz_central + part.nnz_marginal - part.nnz_halo
    total = 0
    edge_dim = max(layer.edge_dim for layer in view.layers)
    if edge_dim:  # the own block's structure is made anew; the others' entries by source get their places
        entries = inner + (part.own if any(layer.self_loop for layer in view.layers) else 0)
        total += edge_dim * value * (entries + part.nnz_halo) + OFFSET * part.nnz_halo
        total += (2 * COLUMN + OFFSET) * entries + 2 * OFFSET * (part.own + 1)
        if schedules[-1].labelled_only and schedules[-1].sends_backward:
            for peer in _peers(view):
                share = part.labelled_halo_from[peer] / part.halo_from[peer]
                total += round((edge_dim * value + OFFSET) * part.nnz_halo_from[peer] * share)
    relations = max(layer.relations for layer in view.layers)
    if relations:  # each block by target and by source, and the shares of its targets
        targets = part.own + len(_peers(view)) * part.marginal
        offsets = relations * (targets + part.own + part.halo) + 2 * (1 + len(_peers(view)))
        total += 2 * COLUMN * (inner + part.nnz_halo) + OFFSET * offsets + relations * value * targets
    return total


def _peers(view: RankView) -> list[int]:
    return [peer for peer, rows in enumerate(view.part.halo_from) if rows]


def _features(view: RankView, first: LayerSchedule, method: object) -> int:
    """Static inputs of the first layer, as its schedule reads them."""
    part, value = view.part, view.value_bytes
    total = 0
    if first.order is Order.AGGREGATED_ONCE:
        stored = part.stored_values(first.rows, aggregated=True)
        dense = value * part.rows(first.rows) * part.feature_dim
        total += _sparse(view, stored) if part.aggregated_sparse else dense
        if not view.layers[0].self_weight:
            return total
    known = first.rows if first.order is Order.AGGREGATED_ONCE else Part.OWN if first.sends_forward else Part.ALL
    if part.features_sparse and not view.layers[0].reads_plain_inputs:
        return total + _sparse(view, part.stored_values(known, aggregated=False))
    lands = first.sends_forward and not first.exchanges_projected and receives_in_place(method)
    return total + value * part.rows(Part.ALL if lands else known) * part.feature_dim


def _sparse(view: RankView, stored: int) -> int:
    """Rows by row and by column."""
    return 2 * (COLUMN + view.value_bytes) * stored
