"""The operations a training method is made of: the one vocabulary that the runtime executes and the simulator prices.

A *program* is a generator that yields these, one rank's epoch in order. Every operation carries its *work*, computed
from the shard's statistics and never read off a tensor, and names the buffers it reads and writes. Buffers live in
one row space per rank, ``[central | marginal | halo by peer]``.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

NO_LAYER = -1


class Direction(StrEnum):
    """Which way values flow: layer inputs going forward, gradients coming back."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Part(StrEnum):
    """A contiguous range of a rank's rows."""

    CENTRAL = "central"
    MARGINAL = "marginal"
    OWN = "own"
    HALO = "halo"
    ALL = "all"


class Stage(StrEnum):
    """What a `Transform` does. A layer is ``finish(aggregate(project(h)))`` or ``whole(aggregate(h))``."""

    PROJECT = "project"  # p = h W_neighbour, before the aggregation
    FINISH = "finish"  # z = aggregated p + h W_self + bias, then norm, activation, dropout; of merged rows: what follows them
    WHOLE = "whole"  # z = aggregated h W_neighbour + h W_self + bias, then norm, activation, dropout
    ACTIVATION = "activation"  # backward through dropout, activation, norm and bias, in place
    INPUTS = "inputs"  # gradient of the matrix product's left side
    SELF_INPUTS = "self_inputs"  # the self connection's share of the input gradient, accumulated
    WEIGHTS = "weights"  # gradients of the layer's matrices
    SUMS = "sums"  # batch norm: column sums of z; backward: of g and g x̂
    SQUARES = "squares"  # batch norm: column sums of z − mean and of its square
    NORMALIZE = "normalize"  # batch norm, activation, dropout; backward: through batch norm alone, in place


@dataclass(frozen=True, slots=True)
class Work:
    """What an operation costs, in the units of the trace's columns (counts and bytes)."""

    rows: int = 0
    nnz: int = 0
    dim_in: int = 0
    dim_out: int = 0
    flops: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class PeerMessage:
    """What one exchange moves between this rank and one peer, in one direction.

    `bytes` is the length of the wire buffer, side information included.
    """

    peer: int
    rows: int
    bytes: int
    bit_histogram: tuple[tuple[int, int], ...] = ()  # (bits, rows) pairs, ascending bits


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a program. Operand names do not take part in equality: two runs agree when their work agrees."""

    layer: int = NO_LAYER
    direction: Direction = Direction.FORWARD
    part: Part = Part.OWN
    work: Work = Work()

    @property
    def detail(self) -> str:
        """A qualifier of the operation's kind for the trace, such as a `Transform`'s stage."""
        return ""


@dataclass(frozen=True, slots=True)
class Aggregate(Operation):
    """``target[part] = A[part, columns] source`` forward, ``Aᵀ`` backward.

    Marginal rows may be summed in steps, forward: first over their OWN columns, then, adding to that, over the HALO
    columns of one `peer` after another, as its rows land. Backward, the HALO rows of one `peer` go to a block of their own.
    """

    columns: Part = Part.ALL
    peer: int = -1
    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)
    in_place: bool = field(default=True, compare=False)  # `source` has all rows; False: only the halo rows of `peer`

    @property
    def detail(self) -> str:
        return "" if self.columns is Part.ALL else f"{self.columns.value} columns"


@dataclass(frozen=True, slots=True)
class Transform(Operation):
    """The dense, row-wise half of a layer on the rows of `part`; `stage` says which step of it."""

    stage: Stage = Stage.WHOLE
    reduction: str = ""  # of a layer by blocks, whose projection and finish are its own: see `Merge`
    source: str = field(default="", compare=False)  # h, the layer's input rows
    aggregated: str = field(default="", compare=False)  # A h
    preactivation: str = field(default="", compare=False)  # what bias, norm and activation are applied to
    output: str = field(default="", compare=False)  # the layer's output rows
    gradient: str = field(default="", compare=False)  # gradient of the pre-activation, or of the projected rows
    target: str = field(default="", compare=False)  # what the stage writes
    queries: str = field(default="", compare=False)  # this and the next two: see `Merge`
    state: str = field(default="", compare=False)
    context: str = field(default="", compare=False)
    input_target: str = field(default="", compare=False)  # gradient of the layer's input rows
    query_target: str = field(default="", compare=False)  # where the blocks will add the queries' gradient
    accumulate: bool = field(default=False, compare=False)  # add to `input_target`

    @property
    def detail(self) -> str:
        return f"{self.stage.value}, {self.reduction}" if self.reduction else self.stage.value


@dataclass(frozen=True, slots=True)
class Merge(Operation):
    """One block of neighbours' messages, merged into the running result of each own row that has neighbours in it.

    `columns` says whose messages the block holds: OWN ones, or the HALO rows of one `peer`. Backward the block's messages
    are met once more, and get their gradient. `reduction` says how messages merge: a sum, a maximum, attention.
    """

    columns: Part = Part.OWN
    peer: int = -1
    reduction: str = ""
    messages: str = field(default="", compare=False)  # the block's rows
    queries: str = field(default="", compare=False)  # what own rows bring to their side of an edge
    reduced: str = field(default="", compare=False)  # the running result
    state: str = field(default="", compare=False)  # what it takes to go on with it
    gradient: str = field(default="", compare=False)  # of the finished result
    context: str = field(default="", compare=False)  # what own rows bring to every block of the backward pass
    target: str = field(default="", compare=False)  # gradient of the messages; may be `messages` itself
    query_target: str = field(default="", compare=False)  # gradient of the queries, added to
    entries: str = field(default="", compare=False)  # what merging makes of the block's edges, while it lasts
    in_place: bool = field(default=True, compare=False)  # the block is a part of a buffer of all rows; False: all of one
    accumulate: bool = field(default=False, compare=False)  # add to `target`
    labelled: bool = field(default=False, compare=False)  # only the peer's first rows, those beside a labelled one

    @property
    def detail(self) -> str:
        return f"{self.reduction}, {self.columns.value} columns"


@dataclass(frozen=True, slots=True)
class Apply(Operation):
    """A whole opaque layer (a user's own, a PyG convolution) on the rows of `part`, under autograd."""

    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Quantize(Operation):
    """Gather the rows an exchange sends into one wire buffer per peer, encoded at `work.bits` bits.

    `work.bits` is 0 where rows differ in width; the messages' histograms say how many rows have which. Plain training
    gathers rows as they are. With a `peer` only its rows are gathered.
    """

    peer: int = -1
    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Dequantize(Operation):
    """Decode what one peer sent into the halo rows it belongs to (forward), or add it to own rows (gradients)."""

    peer: int = -1
    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Exchange(Operation):
    """Start all messages of one layer and direction. Does not block; the value sent back is a flight for `Wait`."""

    outgoing: tuple[PeerMessage, ...] = ()
    incoming: tuple[PeerMessage, ...] = ()
    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)
    in_place: bool = field(default=True, compare=False)  # halo rows are in a buffer of all rows; False: in a peer's block


@dataclass(frozen=True, slots=True)
class AllReduce(Operation):
    """Start summing over all ranks: the layer's bucket of gradients, or the buffer `source`. Does not block; the value sent
    back is a flight.
    """

    source: str = field(default="", compare=False)

    @property
    def detail(self) -> str:
        return "statistics" if self.source else ""


@dataclass(frozen=True, slots=True)
class Wait(Operation):
    """Block until a flight has landed: one peer's messages of an exchange, or (peer −1) everything of it."""

    peer: int = -1
    flight: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Loss(Operation):
    """The training loss of the labelled own rows and its gradient, written to `target` (zero on the other rows)."""

    source: str = field(default="", compare=False)
    target: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Step(Operation):
    """One optimiser step on the replicated parameters."""


@dataclass(frozen=True, slots=True)
class Keep(Operation):
    """A buffer comes to life: `work.rows` × `work.dim_out` values, `work.bytes_out` bytes.

    `is_wire`: a buffer of encoded messages, plain bytes.
    """

    is_wire: bool = False
    name: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Free(Operation):
    """A buffer's last use has passed; its memory may serve the next `Keep`."""

    name: str = field(default="", compare=False)


Program = Generator[Operation, Any, Any]
"""A method's epoch on one rank: yields operations, is sent their (opaque) values back."""
