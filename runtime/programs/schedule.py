"""Where each layer's rows come from: the decisions that the lossless savings and the model's shape imply."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from halocast.traces.operations import Part
from halocast.traces.workload import LayerSpec, RankView


class Order(StrEnum):
    """Which half of a linear layer runs first."""

    AGGREGATE_FIRST = "aggregate_first"
    TRANSFORM_FIRST = "transform_first"
    AGGREGATED_ONCE = "aggregated_once"  # the aggregation ran before the first epoch
    BLOCKWISE = "blockwise"  # neighbours' messages are merged block by block
    OPAQUE = "opaque"  # the layer aggregates by itself


@dataclass(frozen=True, slots=True)
class LayerSchedule:
    """How one layer runs on every rank."""

    order: Order
    rows: Part
    """Rows the layer computes: OWN, or ALL where the halo's rows are recomputed here instead of received."""
    sends_forward: bool
    """Whether its forward pass exchanges rows."""
    sends_backward: bool
    """Whether its backward pass exchanges gradients of those rows."""
    needs_input_gradient: bool
    labelled_only: bool
    """Whether its backward exchange carries only halo rows that have a labelled neighbour."""
    exchanges_projected: bool
    """Whether what travels has been multiplied with the layer's matrix, or is the layer's input."""

    def exchange_dim(self, layer: LayerSpec) -> int:
        """Width of the rows the layer's exchanges carry."""
        if self.order is Order.BLOCKWISE:
            return layer.message_dim
        return layer.dim_out if self.order is Order.TRANSFORM_FIRST else layer.dim_in


def schedule_layers(view: RankView) -> tuple[LayerSchedule, ...]:
    """Decide every layer's order and exchanges; the same on every rank.

    The first layer reads static features. With `aggregate_features_once` only its dense half is left. With
    `keep_halo_features` the static inputs of halo rows are on this rank: aggregated ones let it compute the halo's
    first hidden row itself, so that layer 1 exchanges nothing in either direction (the halo rows' share of the
    weight gradient is linear, and the all-reduce sums it); raw ones make the exchange of layer 0 vanish.
    """
    exact, distributed = view.exact, view.world_size > 1
    last = len(view.layers) - 1
    schedules: list[LayerSchedule] = []
    for index, layer in enumerate(view.layers):
        narrows = layer.dim_out < layer.dim_in
        sparse_input = index == 0 and view.part.features_sparse
        if layer.is_blockwise:
            order = Order.BLOCKWISE
        elif not layer.linear_aggregation:
            order = Order.OPAQUE
        elif index == 0 and exact.aggregate_features_once:
            order = Order.AGGREGATED_ONCE
        elif (exact.transform_first and narrows) or sparse_input:
            order = Order.TRANSFORM_FIRST
        else:
            order = Order.AGGREGATE_FIRST

        static_halo = index == 0 and exact.keep_halo_features
        recomputed_halo = index == 1 and schedules[0].rows is Part.ALL
        halo_is_here = not distributed or order is Order.AGGREGATED_ONCE or static_halo or recomputed_halo
        recomputes = order is Order.AGGREGATED_ONCE and exact.keep_halo_features and distributed and last > 0
        needs_input_gradient = index > 0
        exchanges_projected = order is Order.TRANSFORM_FIRST or (order is Order.BLOCKWISE and layer.projects)
        schedules.append(
            LayerSchedule(
                order=order,
                rows=Part.ALL if recomputes else Part.OWN,
                sends_forward=not halo_is_here,
                sends_backward=not halo_is_here and (needs_input_gradient or exchanges_projected),
                needs_input_gradient=needs_input_gradient,
                labelled_only=index == last and exact.labelled_gradients_only,
                exchanges_projected=exchanges_projected,
            )
        )
    return tuple(schedules)
