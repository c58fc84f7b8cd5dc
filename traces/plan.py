"""A plan on disk: what training should do, and what was forecast of it.

    plan/plan.json      what it is for, what it says, what was forecast and why it was chosen
    plan/arrays.npz     partition                       int32 [nodes]: the part that owns each node
                        layer{l}_{direction}_rank{r}    uint8: a width for each message rank r sends, peer after peer
                        layer{l}_{direction}_prices     float32 [ranks, ranks]: seconds that a byte from one rank to another
                                                        costs the epoch, above 0; widths are renewed by it during a run
                        layer{l}_{direction}_effect     float64 []: the exchange's `effect` in plan.json, beside its prices

A plan without quantised messages has a partition only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halocast.errors import MisuseError
from halocast.traces.operations import Direction

PLAN_SCHEMA_VERSION = 1
PLAN, ARRAYS = "plan.json", "arrays.npz"
PARTITION = "partition"


class Record(BaseModel):
    """Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PlannedGraph(Record):
    """Which graph the plan is for; a plan for another one is refused."""

    name: str
    fingerprint: str
    nodes: int = Field(ge=1)
    spec: str
    """As `halocast train` takes it."""
    symmetrise: bool = False


class PlannedForecast(Record):
    """Seconds and bytes of an epoch, with the 90 % interval."""

    epoch_seconds: float = Field(gt=0.0)
    low: float = Field(gt=0.0)
    high: float = Field(gt=0.0)
    bytes_per_epoch: int = Field(ge=0)
    exchange_bytes_per_epoch: int = Field(ge=0)
    peak_bytes: tuple[int, ...] = ()
    """By rank; empty where memory was not calibrated."""
    extrapolated: tuple[str, ...] = ()


class PlannedExchange(Record):
    """The widths of one exchange (layer and direction)."""

    layer: int = Field(ge=0)
    direction: Direction
    effect: float = Field(ge=0.0)
    """Relative variance of the weights' gradient if (2^bits - 1)² were 1 for every message."""
    variance: float = Field(ge=0.0)
    """Relative variance of the weights' gradient that the widths add."""
    bytes: int = Field(ge=0)
    """Of all ranks' messages in an epoch."""
    histogram: dict[int, int]
    """Messages by width."""


class Baseline(Record):
    """Plain training as the literature runs it (no savings, 32 bits), which the plan is to beat."""

    epoch_seconds: float = Field(gt=0.0)
    measured: bool
    """False: forecast."""
    accuracy: float | None = None
    """On the test nodes, where it was trained to the end."""


class Plan(Record):
    """What training should do; `arrays` of the folder go with it."""

    schema_version: int = PLAN_SCHEMA_VERSION
    halocast: str
    graph: PlannedGraph
    world_size: int = Field(ge=1)
    model: dict[str, Any]
    """The run file's [model]."""
    method: dict[str, Any]
    """The run file's [method]: name, exact, overlap, rounding; widths are in the arrays."""
    partition: dict[str, Any]
    """How the partition was made: method, objective, balance, seed, refined."""
    hosts: str
    """The link that was planned for, as the run file's `hosts`."""
    exchanges: tuple[PlannedExchange, ...] = ()
    reassign_every: int = Field(default=0, ge=0)
    """Epochs after which widths are renewed from the rows as they are then; 0: never."""
    variance: float = Field(default=0.0, ge=0.0)
    """Relative variance that rounding adds to the weights' gradient in an epoch."""
    forecast: PlannedForecast
    baseline: Baseline | None = None
    why: str
    """One sentence: why this one."""
    notes: tuple[str, ...] = ()
    """Savings that do not pay, limits that bind, the runner-up."""
    arrays_sha256: str = ""
    """Of arrays.npz: a plan whose arrays were changed says so."""


Arrays = Mapping[str, npt.NDArray[Any]]


def widths_name(layer: int, direction: Direction, rank: int) -> str:
    return f"layer{layer}_{direction}_rank{rank}"


def prices_name(layer: int, direction: Direction) -> str:
    return f"layer{layer}_{direction}_prices"


def effect_name(layer: int, direction: Direction) -> str:
    return f"layer{layer}_{direction}_effect"


def write_plan(folder: Path, plan: Plan, arrays: Arrays) -> Plan:
    """Write both files, complete or not at all, in place of a plan that is there; returns the plan with its arrays' digest."""
    building = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    np.savez(building / ARRAYS, **dict[str, Any](arrays))
    digest = hashlib.sha256((building / ARRAYS).read_bytes()).hexdigest()
    written = plan.model_copy(update={"arrays_sha256": digest})
    (building / PLAN).write_text(json.dumps(written.model_dump(mode="json"), indent=1) + "\n")
    if folder.exists():
        if not (folder / PLAN).is_file():
            shutil.rmtree(building)
            raise MisuseError(f"{folder} exists and is no plan; choose another folder, or remove it yourself")
        shutil.rmtree(folder)
    building.replace(folder)
    return written


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`. Raises MisuseError: one line on what is wrong with it and where."""
    path = folder / PLAN
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise MisuseError(f"no plan in {folder}: {error.strerror}; make one with `halocast plan`") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MisuseError(f"{path} is not valid JSON ({error}); make the plan again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != PLAN_SCHEMA_VERSION:
        raise MisuseError(f"{path} has schema {version}; this halocast reads {PLAN_SCHEMA_VERSION}: make the plan again")
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MisuseError(f"{path}: {where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    arrays = folder / ARRAYS
    try:
        digest = hashlib.sha256(arrays.read_bytes()).hexdigest()
    except OSError as error:
        raise MisuseError(f"the plan in {folder} has no {ARRAYS}: {error.strerror}; make the plan again") from error
    if plan.arrays_sha256 and digest != plan.arrays_sha256:
        raise MisuseError(f"{arrays} is not the one that {path} was written with; make the plan again")
    return plan
