"""A what-if folder on disk: its manifest, its table, whole or so far, and its answers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from halocast.errors import MisuseError
from halocast.simulator.whatif.table import COLUMNS, to_table

WHATIF_VERSION = 1
MANIFEST, TABLE, ANSWERS, PARTS = "whatif.json", "scenarios.parquet", "answers.json", "parts"


class Document(BaseModel):
    """Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GraphEntry(Document):
    name: str
    nodes: int
    edges: int
    fingerprint: str


class AxisEntry(Document):
    name: str
    """A column of the table."""
    label: str
    unit: str
    values: tuple[Any, ...]


class CostsEntry(Document):
    path: str
    machine: str
    device: str
    digest: str
    """Of what was calibrated: a sweep goes on with the same costs only."""


class PriceEntry(Document):
    value: float
    """An hour, in the currency; the first where there are several."""
    source: str


class Manifest(Document):
    """What was asked, and of what."""

    schema_version: int = WHATIF_VERSION
    halocast: str
    date: str
    graph: GraphEntry
    grid: dict[str, Any]
    """The resolved document."""
    sample: int | None
    """Scenarios drawn at random; None for all of them."""
    seed: int
    axes: tuple[AxisEntry, ...]
    """Columns with more than one value."""
    fixed: dict[str, Any]
    """The other inputs, by column."""
    epochs: int
    """Of one training: deadline, budget and cost are of a training."""
    currency: str | None
    deadline_seconds: float | None
    budget: float | None
    memory_bytes: int | None
    """Bytes, where the filter is not what the device has."""
    costs: CostsEntry
    digest: str
    """Of the catalogue, and of whatever of the run file no axis varies: a sweep goes on with the same only."""
    scenarios: int
    """How many rows there are, or will be."""
    finished: bool
    assumed: tuple[str, ...]
    """What holds for the whole grid."""
    prices: dict[str, PriceEntry]


class Sentence(Document):
    question: str
    answer: str
    scenarios: tuple[int, ...]


class Swing(Document):
    """A bar of the tornado: one input, 20 % less and 20 % more."""

    input: str
    label: str
    low: str
    high: str
    """The input's values."""
    seconds_low: float
    seconds_high: float
    """What a training then takes."""
    cost_low: float | None
    cost_high: float | None


class Upgrade(Document):
    """Another link for the recommended scenario, all else equal."""

    scenario: int
    link: str
    """Which: "network" or "inside"."""
    from_: str
    to: str
    seconds_from: float
    seconds_to: float
    cost_from: float | None
    cost_to: float | None

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.rstrip("_"), populate_by_name=True)


class Knee(Document):
    """Where a series falls below half its efficiency."""

    series: str
    ranks: int
    efficiency: float
    scenarios: tuple[int, ...]


class Answers(Document):
    sentences: tuple[Sentence, ...]
    recommended: int | None
    tornado: tuple[Swing, ...]
    upgrades: tuple[Upgrade, ...]
    knees: tuple[Knee, ...]


@dataclass(frozen=True, eq=False)
class WhatIf:
    """A what-if folder, read."""

    folder: Path
    manifest: Manifest
    table: pd.DataFrame
    """All scenarios, or those that are there so far."""
    answers: Answers | None
    """None while the sweep is unfinished."""


def read_whatif(folder: Path) -> WhatIf:
    """Read a folder, finished or not. Raises MisuseError for what is none, and for one of a newer layout."""
    manifest = read_manifest(folder)
    if not manifest.finished:
        return WhatIf(folder, manifest, read_parts(folder).to_pandas(), None)
    try:
        table = pq.read_table(folder / TABLE)
        answers = Answers.model_validate_json((folder / ANSWERS).read_bytes())
    except (OSError, pa.ArrowException, ValidationError) as error:
        raise MisuseError(f"{folder}: {_first_line(error)}; make it again with `halocast whatif`") from error
    return WhatIf(folder, manifest, table.to_pandas(), answers)


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise MisuseError(f"{folder} is no what-if folder: {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise MisuseError(f"{folder} is no what-if folder: {path.name} is not JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != WHATIF_VERSION:
        raise MisuseError(
            f"{folder}: what-if of schema {version}; this halocast reads {WHATIF_VERSION}: make it again with `halocast whatif`"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise MisuseError(f"{path}: {_first_line(error)}") from error


def read_parts(folder: Path) -> pa.Table:
    """The rows that are there so far, by scenario, each once. Raises MisuseError for a part that cannot be read."""
    found = [_read_part(path) for path in sorted((folder / PARTS).glob("*.parquet"))]
    table = pa.concat_tables(found) if found else COLUMNS.empty_table()
    _, first = np.unique(table["scenario"].to_numpy(), return_index=True)  # a part may have been written twice
    return table.take(first)


def _read_part(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise MisuseError(
            f"{path} cannot be read ({_first_line(error)}): remove it, and go on with `halocast whatif --resume`"
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return str(error).splitlines()[0]


class Writer:
    """Writes a folder: rows as they come, then all of them. Every file appears whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        self._next = 1 + max((int(path.stem) for path in (folder / PARTS).glob("[0-9]*.parquet")), default=0)

    def part(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some more rows."""
        self._write_table(self.folder / PARTS / f"{self._next:05d}.parquet", to_table(rows))
        self._next += 1

    def manifest(self, manifest: Manifest) -> None:
        self._write(self.folder / MANIFEST, manifest.model_dump_json(indent=1))

    def finish(self, table: pa.Table, answers: Answers, manifest: Manifest) -> None:
        """The whole table, its answers, and a manifest that says so; then the parts may go."""
        self._write_table(self.folder / TABLE, table)
        self._write(self.folder / ANSWERS, answers.model_dump_json(indent=1, by_alias=True))
        self.manifest(manifest.model_copy(update={"finished": True}))
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        _replace(path, lambda temporary: temporary.write_text(text + "\n"))

    def _write_table(self, path: Path, table: pa.Table) -> None:
        _replace(path, lambda temporary: pq.write_table(table, temporary))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)
