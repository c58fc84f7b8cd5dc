"""How much memory a rank will need: what its program keeps, what its shard holds, and what the allocator adds.

A rank's peak is the sum of a constant (the runtime's own pages), the arena that its program's Keep and Free plan, the static
arrays of its shard, what messages under way hold in the transport, what quantising them takes besides, and what rank 0 keeps
for all; each with a factor fitted to measured peaks. The fit
is moved up until no calibrated rank lies more than `LARGEST_SHORTFALL` above it: a forecast that is too low is the unsafe one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from halocast.runtime.programs import METHODS
from halocast.runtime.programs.merging import edge_data_bytes
from halocast.runtime.programs.schedule import Order, schedule_layers
from halocast.simulator.costs import MemoryCosts
from halocast.simulator.observations import Configuration, Observation
from halocast.traces.buffers import plan_arena, walk
from halocast.traces.operations import Dequantize, Direction, Exchange, Operation, Part
from halocast.traces.workload import RankView

Floats = npt.NDArray[np.float64]
LARGEST_SHORTFALL = 0.02
"""Measured over forecast peak, minus 1, that calibration tolerates on its own runs."""


TERMS = ("constant", "per_arena_byte", "per_static_byte", "per_wire_byte", "quantising", "per_unpacked_byte", "first_rank")
"""What each of `memory_terms` is multiplied with: fields of `MemoryCosts`."""


def memory_terms(view: RankView, method: str, epoch: Sequence[Operation] | None = None) -> Floats:
    """[7] by `TERMS`: 1, bytes of the arena, of static arrays, and of the largest exchange's messages at this rank; where
    messages are quantised 1 and the bytes of the largest exchange's rows once unpacked; 1 on rank 0."""
    program = METHODS[method]
    epoch = walk(program.epoch(view)) if epoch is None else epoch
    arena = plan_arena([epoch, walk(program.evaluation(view))]).size
    wire = max((each.work.bytes_out + each.work.bytes_in for each in epoch if isinstance(each, Exchange)), default=0)
    unpacked: dict[tuple[int, Direction], int] = {}
    for each in epoch:
        if isinstance(each, Dequantize) and 0 < each.work.bits < 32:
            key = each.layer, each.direction
            unpacked[key] = unpacked.get(key, 0) + each.work.rows * each.work.dim_out * view.value_bytes
    return np.array(
        [
            1.0, float(arena), float(static_bytes(view)), float(wire), float(bool(unpacked)),
            float(max(unpacked.values(), default=0)), float(view.rank == 0),
        ]
    )  # fmt: skip


def static_bytes(view: RankView) -> int:
    """Bytes of what a rank loads once: adjacency, edge data, features, labels, parameters and their optimiser state."""
    part, value = view.part, view.value_bytes
    own, rows = part.own, part.own + part.halo
    nnz = part.nnz_central + part.nnz_marginal
    adjacency = 4 * (own + nnz) + 16 * own + 4 * part.nnz_halo + 8 * part.halo + 4 * part.boundary
    identity = 16 * rows + 11 * own  # node ids and degrees; labels and three masks
    parameters = sum(layer.parameters for layer in view.layers)
    return adjacency + identity + _feature_bytes(view) + 4 * value * parameters + edge_data_bytes(view)


def _feature_bytes(view: RankView) -> int:
    """Static inputs of the first layer, as the schedule needs them."""
    part, value, first = view.part, view.value_bytes, schedule_layers(view)[0]
    total = 0
    if first.order is Order.AGGREGATED_ONCE:
        stored = part.stored_values(first.rows, aggregated=True)
        total += 2 * (4 + value) * stored if part.aggregated_sparse else value * part.rows(first.rows) * part.feature_dim
        if not view.layers[0].self_weight:
            return total
    rows = Part.OWN if first.sends_forward else Part.ALL
    if part.features_sparse and not view.layers[0].reads_plain_inputs:
        return total + 2 * (4 + value) * part.stored_values(rows, aggregated=False)
    return total + value * part.rows(rows) * part.feature_dim


@cache
def _observed_terms(observation: Observation) -> list[Floats]:
    """By rank: `memory_terms` of a run. Validation fits it anew for every configuration that it leaves out."""
    return [memory_terms(view, observation.configuration.method) for view in observation.views()]


def fit_memory(observations: Sequence[Observation]) -> MemoryCosts | None:
    """Fit measured peaks; None where no run left any."""
    found: dict[tuple[Configuration, int], tuple[Floats, list[float]]] = {}
    for observation in observations:
        for rank, (terms, peak) in enumerate(zip(_observed_terms(observation), observation.peak_bytes, strict=False)):
            found.setdefault((observation.configuration, rank), (terms, []))[1].append(float(peak))
    if not found:
        return None
    values = np.array([terms for terms, _ in found.values()])
    measured = np.array([np.mean(peaks) for _, peaks in found.values()])
    scale = values.max(axis=0)
    scale[scale == 0.0] = 1.0
    solution, _ = nnls(values / scale / measured[:, None], np.ones(len(measured)))
    coefficients = solution / scale
    ratio = measured / (values @ coefficients)
    lift = max(1.0, float(ratio.max()) / (1.0 + LARGEST_SHORTFALL))
    logs = np.log(ratio / lift)
    return MemoryCosts(
        **dict(zip(TERMS, (coefficients * lift).tolist(), strict=True)),
        low=float(np.exp(np.quantile(logs, 0.05))),
        high=float(np.exp(np.quantile(logs, 0.95))),
    )


def peak_bytes(costs: MemoryCosts, view: RankView, method: str) -> float:
    """Forecast of a rank's peak, in bytes above its interpreter (on a GPU: allocated there)."""
    return float(peaks_of(costs, memory_terms(view, method)))


def peaks_of(costs: MemoryCosts, terms: Floats) -> Floats:
    """[...] the same of `memory_terms` [..., 7]."""
    return np.asarray(terms @ np.array([getattr(costs, name) for name in TERMS]))
