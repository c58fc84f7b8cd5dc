"""What a program knows about its rank: the shape of the model and the statistics of the rank's shard.

Everything here is plain integers, so that the same view drives the runtime (with a real shard behind it) and the
simulator (with the statistics of a partition that was never materialised).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from halocast.traces.operations import Direction, Part
from halocast.traces.wire import BitHistogram


@dataclass(frozen=True, slots=True)
class ExactSavings:
    """The lossless savings of a plan; each changes what is sent or recomputed, never a gradient."""

    aggregate_features_once: bool = True
    """ÂX is constant: aggregate the raw features before the first epoch, not in every one."""
    transform_first: bool = True
    """Where a layer narrows the row, multiply first: A(HW) = (AH)W moves the shorter row."""
    labelled_gradients_only: bool = True
    """In the last layer only halo rows beside a labelled row have a gradient: send those."""
    keep_halo_features: bool = True
    """Keep each halo node's static first-layer input, so that its first hidden row is computed here, not received."""

    @classmethod
    def none(cls) -> ExactSavings:
        """Every saving off: full-graph training as the literature runs it."""
        return cls(False, False, False, False)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The shape of one layer, as far as its cost and its data flow depend on it."""

    dim_in: int
    dim_out: int
    linear_aggregation: bool = True
    """True: the layer is a fixed linear aggregation and a dense transform. False: opaque, run whole under autograd."""
    self_loop: bool = False
    """The aggregation includes the row itself (GCN)."""
    self_weight: bool = False
    """A second matrix multiplies the row itself (GraphSAGE)."""
    bias: bool = True
    norm: bool = False
    batch_norm: bool = False
    """The norm is batch normalization: its statistics are over the rows of all ranks."""
    activation: bool = True
    dropout: float = 0.0
    residual: bool = False
    parameters: int = 0
    """Values in the layer's gradient bucket."""
    reduction: str = ""
    """How messages merge, block by block, where they do ("attention", "maximum", ...); empty for all other layers."""
    projects: bool = False
    """Messages are rows of the layer's input times a matrix; otherwise they are these rows."""
    message_dim: int = 0
    """Values of a message."""
    query_dim: int = 0
    """Values that a row brings to its own side of an edge, made by the same projection."""
    reduced_dim: int = 0
    """Values of a row's merged result."""
    state_dim: int = 0
    """Values that a row needs besides to go on merging."""
    context_dim: int = 0
    """Values that a row brings to every block of the backward pass."""
    refetches: bool = False
    """The backward pass reads messages again."""
    merge_parameters: bool = False
    """Merging itself has parameters."""
    merge_reads_reduced: bool = False
    """The backward pass of a block reads the merged result."""
    backward_reads_output: bool = False
    """Where nothing but bias, ReLU and dropout follow the merged rows, the backward pass can do with what these leave."""
    finishes: bool = False
    """Row-wise operations of the layer's own follow the merged result."""
    finish_reads_inputs: bool = False
    """They read the layer's input rows too."""
    finish_flops: int = 0
    """Theirs, a row."""
    merge_flops: int = 0
    """An entry's."""
    edge_dim: int = 0
    """Features of an entry that merging reads."""
    entry_dim: int = 0
    """Values that merging makes of an entry's features, for one block at a time; backward their gradients besides."""
    relations: int = 0
    """Relations whose entries merge apart from each other."""

    @property
    def is_blockwise(self) -> bool:
        """Whether the layer meets its neighbours' messages block by block, in any order."""
        return bool(self.reduction)

    @property
    def uses_edge_data(self) -> bool:
        """Whether merging reads more of an entry than its two ends."""
        return self.edge_dim > 0 or self.relations > 0

    @property
    def reads_plain_inputs(self) -> bool:
        """Whether input rows are read one by one, and not through products alone (which sparse features suffice for)."""
        if self.is_blockwise:
            return self.finish_reads_inputs or not self.projects
        return not self.linear_aggregation

    @property
    def has_epilogue(self) -> bool:
        """Whether anything follows the matrix product besides the bias."""
        return self.norm or self.activation or self.dropout > 0.0


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Workload statistics of one part; rows are counted in the order ``[central | marginal | halo by peer]``."""

    central: int
    marginal: int
    nnz_central: int
    """Entries of the central rows of A, without the diagonal."""
    nnz_marginal: int
    """Entries of the marginal rows of A over own and halo columns, without the diagonal."""
    nnz_halo_from: tuple[int, ...]
    """Those of them in the halo columns of each peer: also the entries of those halo rows of Aᵀ."""
    halo_from: tuple[int, ...]
    """Rows received from each peer in a forward exchange."""
    boundary_to: tuple[int, ...]
    """Rows sent to each peer in a forward exchange."""
    labelled: int
    """Own training rows."""
    labelled_halo_from: tuple[int, ...]
    """Halo rows of each peer that have a training row among their neighbours here."""
    labelled_boundary_to: tuple[int, ...]
    """Own rows that have a training row among their neighbours at each peer."""
    feature_dim: int
    features_sparse: bool = False
    feature_nnz: tuple[int, int, int] = (0, 0, 0)
    """Stored values of the raw feature rows, (central, marginal, halo), where they are sparse."""
    aggregated_sparse: bool = False
    aggregated_nnz: tuple[int, int, int] = (0, 0, 0)
    """The same of the aggregated feature rows; they depend on the model, so the runtime fills them in."""
    edge_dim: int = 0
    """Features of every entry of A; 0 where edges have none."""
    relations: int = 0
    """Types that an entry of A may have, inverses included; 0 where edges have none."""

    @property
    def own(self) -> int:
        return self.central + self.marginal

    @property
    def halo(self) -> int:
        return sum(self.halo_from)

    @property
    def nnz_halo(self) -> int:
        """Entries of the marginal rows in halo columns."""
        return sum(self.nnz_halo_from)

    @property
    def boundary(self) -> int:
        """Rows sent over all peers; a row that two peers need counts twice."""
        return sum(self.boundary_to)

    def rows(self, part: Part) -> int:
        """Rows of a part of the row space."""
        return {
            Part.CENTRAL: self.central,
            Part.MARGINAL: self.marginal,
            Part.OWN: self.own,
            Part.HALO: self.halo,
            Part.ALL: self.own + self.halo,
        }[part]

    def nnz(self, part: Part, *, backward: bool = False, self_loop: bool = False) -> int:
        """Entries of A (or of Aᵀ going backward) in the rows of `part`; `self_loop` adds the diagonal of own rows."""
        if backward:
            own = self.nnz_central + self.nnz_marginal - self.nnz_halo
            entries = {Part.HALO: self.nnz_halo, Part.OWN: own, Part.ALL: own + self.nnz_halo}[part]
            return entries + (self.own if self_loop and part is not Part.HALO else 0)
        entries = {
            Part.CENTRAL: self.nnz_central,
            Part.MARGINAL: self.nnz_marginal,
            Part.OWN: self.nnz_central + self.nnz_marginal,
        }[part]
        return entries + (self.rows(part) if self_loop else 0)

    def stored_values(self, part: Part, *, aggregated: bool) -> int:
        """Stored values of the (raw or aggregated) sparse feature rows of `part`."""
        central, marginal, halo = self.aggregated_nnz if aggregated else self.feature_nnz
        return {
            Part.CENTRAL: central,
            Part.MARGINAL: marginal,
            Part.OWN: central + marginal,
            Part.HALO: halo,
            Part.ALL: central + marginal + halo,
        }[part]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartStatistics:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ExchangeBits:
    """Rows of each width in one rank's messages of one layer and direction; one histogram a peer."""

    outgoing: tuple[BitHistogram, ...]
    incoming: tuple[BitHistogram, ...]
    again_outgoing: tuple[BitHistogram, ...] = ()
    """Where sequential aggregation sends only the first of these rows a second time: those."""
    again_incoming: tuple[BitHistogram, ...] = ()


@dataclass(frozen=True, slots=True)
class BitAssignment:
    """The widths of a rank's quantised messages, as far as a program needs them: how many rows have which width."""

    exchanges: Mapping[tuple[int, Direction], ExchangeBits]
    """By (layer, direction)."""
    rotated: bool = False
    """Whether rows of 1 and 2 bits use the rotated codec."""


@dataclass(frozen=True, slots=True)
class RankView:
    """All that a program may ask about the rank it runs on."""

    rank: int
    world_size: int
    layers: tuple[LayerSpec, ...]
    part: PartStatistics
    exact: ExactSavings = ExactSavings()
    value_bytes: int = 4
    """Bytes of one value in memory and, unquantised, on the wire."""
    overlap: bool = True
    """Compute central rows while messages fly, and marginal ones peer by peer; False: wait for all messages first."""
    bits: BitAssignment | None = None
    """Widths of quantised messages; None where the method sends rows as they are."""
    prefetch: int = 1
    """Rounds of sequential aggregation that are in flight while another is computed."""
    kept_layers: tuple[int, ...] = ()
    """Layers whose remote messages sequential aggregation keeps until backward, instead of fetching them again."""

    @property
    def peers_in_ring_order(self) -> tuple[int, ...]:
        """The other ranks, nearest predecessor first: the fixed order in which messages are waited for."""
        return tuple((self.rank - step) % self.world_size for step in range(1, self.world_size))


@dataclass(frozen=True, slots=True)
class Workload:
    """What all ranks of a run work on: enough to walk every rank's program again, without its tensors."""

    layers: tuple[LayerSpec, ...]
    parts: tuple[PartStatistics, ...]
    """One a rank."""
    exact: ExactSavings = ExactSavings()
    value_bytes: int = 4
    overlap: bool = True
    threads: int = 1
    """Of each rank's compute operations."""
    prefetch: int = 1
    """Rounds of sequential aggregation that are in flight while another is computed."""
    kept_layers: tuple[int, ...] = ()
    """Layers whose remote messages sequential aggregation keeps until backward, instead of fetching them again."""

    @property
    def world_size(self) -> int:
        return len(self.parts)

    def view(self, rank: int, bits: BitAssignment | None = None) -> RankView:
        """What programs see of `rank`, whose messages are `bits` wide where the method quantises them."""
        return RankView(
            *(rank, self.world_size, self.layers, self.parts[rank], self.exact, self.value_bytes, self.overlap, bits),
            prefetch=self.prefetch,
            kept_layers=self.kept_layers,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "layers": [asdict(layer) for layer in self.layers],
            "parts": [part.to_json() for part in self.parts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        """Raises KeyError or TypeError for a document of another layout."""
        return cls(
            layers=tuple(LayerSpec(**layer) for layer in data["layers"]),
            parts=tuple(PartStatistics.from_json(part) for part in data["parts"]),
            exact=ExactSavings(**data["exact"]),
            value_bytes=data["value_bytes"],
            overlap=data["overlap"],
            threads=data["threads"],
            prefetch=data.get("prefetch", 1),  # traces of older programs do not say
            kept_layers=tuple(data.get("kept_layers", ())),
        )
