"""What operations cost: one readable file of fitted models, their residuals, and the range they were fitted on.

A cost is a sum of non-negative coefficients times terms of the operation's work (a constant, rows × width, nonzeros × width,
flops, bytes), so that more work never costs less. An operation is priced by the most particular model that knows it:

1. its *class* (kind, detail, direction, part, dims) on the graph and number of ranks asked for: what fits a cache on eight
   ranks may not on two,
2. the class on the graph,
3. the class on any graph,
4. its *kind* and detail with any dims: marked extrapolated.

Operations on encoded messages have a class for each width, and one for all widths that comes after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halocast.errors import MisuseError
from halocast.simulator.cores import Scheduling
from halocast.traces.operations import Exchange, Operation, Wait, Work

COSTS_VERSION = 2
TERMS = ("constant", "row_values", "edge_values", "flops", "bytes", "rows", "messages")
Floats = npt.NDArray[np.float64]
UNKNOWN_DIMS, OUTSIDE = "its dims were not calibrated", "work outside the calibrated range"
"""Why a price is extrapolated."""
SLACK = 0.05
"""How far outside what was seen (a share of the bounds) still counts as seen."""


class UncalibratedError(MisuseError):
    """Nothing like the operation was in any calibration run."""


class Record(BaseModel):
    """Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def terms(work: Work, messages: int = 0) -> tuple[float, ...]:
    """The terms that a cost is a sum of, in the order of `TERMS`: counts and bytes."""
    width = max(work.dim_in, work.dim_out, 1)
    return (
        1.0,
        float(work.rows * width),
        float(work.nnz * max(work.dim_out, 1)),
        float(work.flops),
        float(work.bytes_out + work.bytes_in),
        float(work.rows),
        float(messages),
    )


def class_of(operation: Operation, *, any_bits: bool = False) -> str:
    """Operations that may be told apart by how much they do alone; `any_bits`: whatever the width of their messages."""
    work = operation.work
    bits = f" {work.bits} bits" if work.bits and not any_bits else ""
    dims = f" {work.dim_in}x{work.dim_out}" if work.dim_in or work.dim_out else ""
    return f"{kind_of(operation)} {operation.direction} {operation.part}{dims}{bits}"


def kind_of(operation: Operation) -> str:
    """Its type and detail: what it does, on whatever."""
    return f"{type(operation).__name__} {operation.detail}".rstrip()


def keys_of(operation: Operation, fingerprint: str, ranks: int) -> tuple[str, ...]:
    """What the models that can price the operation are called, the most particular first."""
    graph = fingerprint[:12]
    names = [class_of(operation)]
    if 0 < operation.work.bits < 32:  # encoding: messages of mixed widths (0 bits) are priced by those of one
        names.append(class_of(operation, any_bits=True))
    of_class = [key for name in names for key in (f"{graph}/{ranks}/{name}", f"{graph}/{name}")]
    return tuple(dict.fromkeys((*of_class, *names, kind_of(operation))))


class LinearCost(Record):
    """Seconds as a sum of non-negative coefficients times terms."""

    coefficients: dict[str, float]
    """By term; absent ones are 0."""
    residual: float
    """Standard deviation of log(measured / fitted) over the samples' means."""
    noise: float
    """Standard deviation of log(measurement / mean of its repeats): what no model could explain."""
    samples: int
    """Distinct pieces of work that were fitted."""
    low: dict[str, float]
    """Least value of each term that was seen."""
    high: dict[str, float]

    def seconds(self, values: Mapping[str, float]) -> float:
        return sum(coefficient * values[term] for term, coefficient in self.coefficients.items())

    def covers(self, values: Mapping[str, float], slack: float = SLACK) -> bool:
        """Whether the terms lie within what was seen (a little slack: shares of the range)."""
        return all(
            self.low[term] * (1.0 - slack) <= value <= self.high[term] * (1.0 + slack)
            for term, value in values.items()
            if term in self.low
        )


class Price(Record):
    """What an operation is predicted to cost."""

    seconds: float
    """CPU (or device) time alone on its core."""
    spread: float
    """Standard deviation of its logarithm."""
    extrapolated: str = ""
    """Why this is beyond what was calibrated; empty where it is not."""


class NetworkCosts(Record):
    """What a message costs beside its share of the links' rate."""

    efficiency: float = 1.0
    """Payload bytes over the bytes that a link's rate counts."""
    reduce_efficiency: float = 1.0
    """The same of all-reduces, which wait for each other's segments."""
    latency: float = 1e-4
    """Seconds from both ends being ready to the first byte."""
    send_seconds: float = 5e-5
    """CPU time that a message costs its sender's transport."""
    receive_seconds: float = 5e-5
    """CPU time that a message costs its receiver's transport before it counts as landed."""
    byte_seconds: float = 5e-10
    """CPU time a byte costs, at each end."""
    all_reduce: Literal["ring", "tree"] = "ring"
    """How all-reduces go: 2 (K − 1) steps around a ring, or up and down a tree (NCCL's choice for many ranks)."""
    reduce_step_seconds: float = 1e-4
    """Seconds of CPU time for each of an all-reduce's steps on a rank: 2 (K − 1) of a ring, 2 of a tree."""
    send_buffer_bytes: float = 4e6
    """A longer message counts as sent only when it has arrived; a shorter one when the transport has taken it."""
    post_seconds: float = 0.0
    """Seconds, off its core, that posting a message keeps a rank: the transport's locks."""
    wake_seconds: float = 3e-5
    """CPU time of a rank that waited in vain, until it goes on."""
    unshaped_rate: float = 1.5e9
    """Bytes per second of a port where links are not shaped (the loopback)."""


class HostCosts(Record):
    """What the machine adds to the operations themselves."""

    cores: int = Field(ge=1)
    gap_seconds: float = 0.0
    """CPU time between two operations: the program's and the executor's own."""
    epoch_seconds: float = 0.0
    """CPU time between two epochs, on every rank (recording, the loop)."""
    first_rank_seconds: float = 0.0
    """The same on rank 0 besides, outside what an epoch's time counts (metrics, messages)."""
    idleness: float = 0.0
    """How much more CPU time the same work takes on an idle host than on a busy one, as a logarithm (clock rate, caches
    gone cold): times exp(idleness × (reference_utilisation − utilisation))."""
    reference_utilisation: float = 0.5
    slowness: float = 1.0
    """CPU time over that of the cost models: 1 for the machine as it usually was, more while something else slows it."""
    slowness_spread: float = 0.0
    """Standard deviation of log(slowness) between calibration runs: neighbours on the same host, clock rates."""
    slice_seconds: float = 3e-3
    balance_seconds: float = 1e-3
    shared: float = 0.0
    stall_rate: float = 0.0
    """Stalls a second of computing: a thread kept from its core by something else (it woke on a busy one, an interrupt)."""
    stall_seconds: float = 2e-3
    """Mean length of a stall; lengths are exponential."""

    def inflation(self, utilisation: float) -> float:
        """CPU time at that utilisation (of all cores, by the ranks' own operations) over the cost models'."""
        return self.slowness * float(np.exp(self.idleness * (self.reference_utilisation - min(max(utilisation, 0.0), 1.0))))

    @property
    def scheduling(self) -> Scheduling:
        return Scheduling(self.slice_seconds, self.balance_seconds, self.shared)


class MemoryCosts(Record):
    """A rank's peak as a sum of what its program and shard hold; see `memory.memory_terms`."""

    constant: float
    """Bytes."""
    per_arena_byte: float
    per_static_byte: float
    per_wire_byte: float
    quantising: float
    """Bytes more where messages are quantised: the codec's own."""
    per_unpacked_byte: float
    first_rank: float
    """Bytes more on rank 0."""
    per_message: float = 0.0
    """Bytes more for each message of an epoch."""
    by_reduction: dict[str, float] = {}
    """Bytes more where messages merge, by how they do: what kernels and autograd hold of such layers."""
    low: float
    """5th percentile of measured over forecast peaks in calibration."""
    high: float
    """95th."""


class Provenance(Record):
    """One run that was calibrated on."""

    run: str
    graph: str
    fingerprint: str
    ranks: int
    method: str
    bits: str
    link: str
    device: str
    date: str
    halocast: str


class CalibratedRange(Record):
    """What the inputs of a forecast may be without its being an extrapolation."""

    graphs: dict[str, str]
    """Name by fingerprint."""
    ranks: tuple[int, ...]
    widths: tuple[int, ...]
    links: tuple[float, ...]
    """Port rates in bytes per second; 0 for unshaped."""
    methods: tuple[str, ...]
    threads: tuple[int, ...]


class Ceilings(Record):
    """What a machine can do at most, as measured; what costs are moved to another device by."""

    memory_rate: float = Field(gt=0.0, allow_inf_nan=False)
    """Bytes per second, read and written."""
    gemm_rate: float = Field(gt=0.0, allow_inf_nan=False)
    """Single-precision flop/s of matrix products."""
    date: str
    machine: str
    threads: int = Field(default=1, ge=1)
    """On which these were reached: as many as a rank of the calibration runs had."""


class EpochError(Record):
    """How wrong the simulated epoch time of one configuration was."""

    oversubscribed: bool
    """Whether its ranks outnumbered the cores."""
    log_ratio: float
    """log(measured / simulated), simulated on the machine at its usual speed."""
    at_speed: float
    """The same at the speed that the machine had while the configuration was measured."""


class Costs(Record):
    """Everything a forecast needs to know of a machine; written as one JSON file."""

    version: int = COSTS_VERSION
    machine: str
    device: str
    memory_bytes: int
    host: HostCosts
    network: NetworkCosts
    memory: MemoryCosts | None
    """None where no run left its peaks."""
    operations: dict[str, LinearCost]
    """By class, by "graph fingerprint / class", and by kind."""
    errors: tuple[EpochError, ...]
    """Of every configuration when it is left out of the calibration: what intervals are made of."""
    noise: float
    """Standard deviation of log(epoch time of a run / mean of its configuration's runs); 0 without repeats."""
    noise_at_speed: float
    """What is left of it once the machine's speed in each run is taken out."""
    calibrated: CalibratedRange
    runs: tuple[Provenance, ...]
    notes: tuple[str, ...] = ()
    ceilings: Ceilings | None = None
    """Of the machine that was calibrated; None where they were not measured."""
    moved: str = ""
    """From which device to which these costs were moved, if they were: every price says so."""

    def price(self, operation: Operation, fingerprint: str, ranks: int) -> Price:
        """Seconds alone on a core, by the most particular model; extrapolated where no model has seen such work.

        Raises UncalibratedError for an operation of a kind that no run did.
        """
        values = dict(zip(TERMS, terms(operation.work, messages_of(operation)), strict=True))
        model, of_class = self.models_of(operation, fingerprint, ranks)
        reason = ""
        if not of_class:
            reason = f"{class_of(operation)}: {UNKNOWN_DIMS}"
        elif not any(model.covers(values) for model in of_class):
            reason = f"{class_of(operation)}: {OUTSIDE}"
        reason = "; ".join(filter(None, (self.moved, reason)))
        return Price(seconds=model.seconds(values), spread=float(np.hypot(model.residual, model.noise)), extrapolated=reason)

    def models_of(self, operation: Operation, fingerprint: str, ranks: int) -> tuple[LinearCost, list[LinearCost]]:
        """The model that prices the operation, and all that have seen its class, the most particular first.

        Raises UncalibratedError for an operation of a kind that no run did.
        """
        name, kind = class_of(operation), kind_of(operation)
        known = [(key, model) for key in keys_of(operation, fingerprint, ranks) if (model := self.operations.get(key))]
        if not known:
            raise UncalibratedError(
                f"no calibrated cost for {kind}: the calibration runs never did it; "
                "calibrate on a run of this method and model as well, or ask about such a run (--data RUN/config.toml)"
            )
        return known[0][1], [model for key, model in known if key != kind or kind == name]

    def save(self, path: Path) -> None:
        """Write by atomic rename."""
        temporary = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Costs:
        """Raises MisuseError for what is no cost file."""
        try:
            document: Any = json.loads(path.read_text())
        except OSError as error:
            raise MisuseError(f"cannot read costs {path}: {error.strerror}; make them with `halocast calibrate`") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MisuseError(f"{path} is not a cost file: {error}; make one with `halocast calibrate`") from error
        version = document.get("version") if isinstance(document, dict) else None
        if version != COSTS_VERSION:
            raise MisuseError(f"{path}: costs of version {version}; this halocast reads {COSTS_VERSION}: calibrate again")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            raise MisuseError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def messages_of(operation: Operation) -> int:
    """Messages that an exchange starts at this end."""
    return len(operation.outgoing) + len(operation.incoming) if isinstance(operation, Exchange) else 0


def is_priced(operation: Operation) -> bool:
    """Whether the operation's own time is fitted; waiting is simulated."""
    return not isinstance(operation, Wait)
