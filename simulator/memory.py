"""How much memory a rank will need: what its program keeps, what its shard holds, and what the allocator adds.

A rank's peak is the sum of a constant (the runtime's own pages), the arena that its program's Keep and Free plan, the static
arrays of its shard, what messages under way hold in the transport and what handling each takes, what quantising
them takes besides, what autograd holds of layers by blocks, and what rank 0 keeps for all; each with a factor fitted to
measured peaks. A byte of the arena and of a static array is a byte unless runs say otherwise: a few small ones cannot tell
it from a constant. The fit
is moved up until no calibrated rank lies more than `LARGEST_SHORTFALL` above it: a forecast that is too low is the unsafe one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from halocast.runtime.programs import METHODS
from halocast.runtime.programs.holdings import holdings
from halocast.simulator.costs import MemoryCosts, messages_of
from halocast.simulator.observations import Configuration, Observation
from halocast.traces.buffers import plan_arena, walk
from halocast.traces.operations import Dequantize, Direction, Exchange, Operation
from halocast.traces.workload import RankView

Floats = npt.NDArray[np.float64]
LARGEST_SHORTFALL = 0.02
"""Measured over forecast peak, minus 1, that calibration tolerates on its own runs."""


TERMS = (
    "constant", "per_arena_byte", "per_static_byte", "per_wire_byte", "quantising", "per_unpacked_byte", "first_rank",
    "per_message",
)  # fmt: skip
"""What each of `memory_terms` is multiplied with: fields of `MemoryCosts`."""
REDUCTIONS = ("attention", "attention v2", "maximum", "sum", "other")
"""Kinds of layers by blocks that hold something of their own; then `MemoryCosts.by_reduction` of each."""
COUNTED = ("per_arena_byte", "per_static_byte")
"""Those that are 1 by what they count."""
NAMES = (*TERMS, *REDUCTIONS)
CONFIDENCE = 0.3
"""In that: a factor that is off by 1 counts as much as a peak that is off by this share."""


def memory_terms(view: RankView, method: str, epoch: Sequence[Operation] | None = None) -> Floats:
    """[13] by `TERMS` and `REDUCTIONS`: 1, bytes of the arena, of static arrays, and of the largest exchange's messages at this
    rank; where messages are quantised 1 and the bytes of the largest exchange's rows once unpacked; 1 on rank 0; messages of an
    epoch; 1 for each kind of layers by blocks that there is."""
    program = METHODS[method]
    epoch = walk(program.epoch(view)) if epoch is None else epoch
    arena = plan_arena([epoch, walk(program.evaluation(view))]).size
    exchanges = [each for each in epoch if isinstance(each, Exchange)]
    wire = max((each.work.bytes_out + each.work.bytes_in for each in exchanges), default=0)
    unpacked: dict[tuple[int, Direction], int] = {}
    for each in epoch:
        if isinstance(each, Dequantize) and 0 < each.work.bits < 32:
            key = each.layer, each.direction
            unpacked[key] = unpacked.get(key, 0) + each.work.rows * each.work.dim_out * view.value_bytes
    return np.array(
        [
            1.0, float(arena), float(static_bytes(view, method)), float(wire), float(bool(unpacked)),
            float(max(unpacked.values(), default=0)), float(view.rank == 0), float(sum(map(messages_of, exchanges))),
            *reductions_of(view),
        ]
    )  # fmt: skip


def static_bytes(view: RankView, method: str) -> int:
    """Bytes of what a rank loads once: adjacency, edge data, features, labels, parameters and their optimiser state."""
    return holdings(view, METHODS[method]).total


def reductions_of(view: RankView) -> list[float]:
    """1 for each of `REDUCTIONS` that a layer has."""
    met = {layer.reduction if layer.reduction in REDUCTIONS else "other" for layer in view.layers if layer.is_blockwise}
    return [float(each in met) for each in REDUCTIONS]


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
    counted = CONFIDENCE * np.array([np.where([name == each for name in NAMES], 1.0 / scale, 0.0) for each in COUNTED])
    shares = np.vstack([values / scale / measured[:, None], counted])
    solution, _ = nnls(shares, np.concatenate([np.ones(len(measured)), np.full(len(COUNTED), CONFIDENCE)]))
    coefficients = solution / scale
    ratio = measured / (values @ coefficients)
    lift = max(1.0, float(ratio.max()) / (1.0 + LARGEST_SHORTFALL))
    logs = np.log(ratio / lift)
    found_by_name = dict(zip(NAMES, (coefficients * lift).tolist(), strict=True))
    return MemoryCosts(
        **{name: found_by_name[name] for name in TERMS},
        by_reduction={name: found_by_name[name] for name in REDUCTIONS if values[:, NAMES.index(name)].any()},
        low=float(np.exp(np.quantile(logs, 0.05))),
        high=float(np.exp(np.quantile(logs, 0.95))),
    )


def peak_bytes(costs: MemoryCosts, view: RankView, method: str) -> float:
    """Forecast of a rank's peak, in bytes above its interpreter (on a GPU: allocated there)."""
    return float(peaks_of(costs, memory_terms(view, method)))


def peaks_of(costs: MemoryCosts, terms: Floats) -> Floats:
    """[...] the same of `memory_terms` [..., 13]; of layers that no run had, as much as of those that hold most."""
    most = max(costs.by_reduction.values(), default=0.0)
    factors = [*(getattr(costs, name) for name in TERMS), *(costs.by_reduction.get(name, most) for name in REDUCTIONS)]
    return np.asarray(terms @ np.array(factors))
