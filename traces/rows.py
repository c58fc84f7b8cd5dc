"""What the rows of a run's exchanges looked like: the material that widths are planned from.

    trace/rows-r00003.npz       of the messages that rank 3 sent in one epoch

A message's `beta` over (2^bits - 1)² is the variance that rounding it adds to what its receiver sums up (AdaQP, section 4);
its `energy` is the square of what it adds. How much of the one reaches the weights' gradient is measured too:
`sensitivity` is the gradient's relative variance for each unit of the exchange's (sum of variance / sum of energy).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.traces.operations import Direction

ROWS_VERSION = 1
FILE_NAME = re.compile(r"rows-r(?P<rank>\d{5,})\.npz")
COLUMNS = {"receiver": np.int32, "node": np.int64, "beta": np.float32, "energy": np.float32}


@dataclass(frozen=True, eq=False)
class ExchangeRows:
    """The messages of one exchange (layer and direction) in one epoch."""

    layer: int
    direction: Direction
    dim: int
    one_sided: bool
    """Records carry no offset (`wire.record_bytes`)."""
    sensitivity: float
    """Relative variance of the weights' gradient for each unit of variance / energy; NaN where it was not measured."""
    sender: npt.NDArray[np.int32]
    """[messages]"""
    receiver: npt.NDArray[np.int32]
    """[messages]"""
    node: npt.NDArray[np.int64]
    """[messages] global id."""
    beta: npt.NDArray[np.float32]
    """[messages]"""
    energy: npt.NDArray[np.float32]
    """[messages]"""

    @property
    def key(self) -> tuple[int, Direction]:
        return self.layer, self.direction


@dataclass(frozen=True)
class RowStatistics:
    """All exchanges of a run's recorded epoch, by (layer, direction), ascending."""

    epoch: int
    exchanges: tuple[ExchangeRows, ...]


def write_rows(folder: Path, rank: int, statistics: RowStatistics) -> Path:
    """Write what `rank` sent (all messages of `statistics` are its own) by atomic rename; returns the file."""
    arrays: dict[str, Any] = {
        "version": np.array(ROWS_VERSION),
        "epoch": np.array(statistics.epoch),
    }
    for each in statistics.exchanges:
        name = _name(each)
        arrays[f"{name}_shape"] = np.array([each.dim, each.one_sided], dtype=np.int64)
        arrays[f"{name}_sensitivity"] = np.array(each.sensitivity)
        for column, kind in COLUMNS.items():
            arrays[f"{name}_{column}"] = getattr(each, column).astype(kind)
    path = folder / f"rows-r{rank:05d}.npz"
    temporary = folder / f".{path.name}.part"
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)
    return path


def read_rows(folder: Path) -> RowStatistics | None:
    """The rows of a run (its folder or its trace's), all ranks together; None where none were recorded.

    Raises MisuseError for a file that is damaged or of another version.
    """
    place = folder / "trace" if (folder / "trace").is_dir() else folder
    files = sorted(
        (int(found["rank"]), path) for path in place.glob("rows-r*.npz") if (found := FILE_NAME.fullmatch(path.name))
    )
    if not files:
        return None
    epoch = 0
    heads: dict[str, tuple[int, Direction, int, bool, float]] = {}
    parts: dict[str, dict[str, list[npt.NDArray[Any]]]] = {}
    for rank, path in files:
        try:
            with np.load(path, allow_pickle=False) as archive:
                if int(archive["version"]) != ROWS_VERSION:
                    raise MisuseError(
                        f"{path}: rows of version {int(archive['version'])}; this halocast reads {ROWS_VERSION}: record again"
                    )
                epoch = int(archive["epoch"])
                for name in (key.removesuffix("_shape") for key in archive.files if key.endswith("_shape")):
                    layer, direction = name.removeprefix("layer").split("_")
                    dim, one_sided = archive[f"{name}_shape"].tolist()
                    heads[name] = (
                        int(layer),
                        Direction(direction),
                        dim,
                        bool(one_sided),
                        float(archive[f"{name}_sensitivity"]),
                    )
                    columns = parts.setdefault(name, {column: [] for column in ("sender", *COLUMNS)})
                    for column in COLUMNS:
                        columns[column].append(archive[f"{name}_{column}"])
                    columns["sender"].append(np.full(len(columns["node"][-1]), rank, dtype=np.int32))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise MisuseError(f"{path} is damaged ({' '.join(str(error).split())}); record the run again") from error
    exchanges = []
    for name, columns in parts.items():
        whole: dict[str, Any] = {column: np.concatenate(values) for column, values in columns.items()}
        exchanges.append(ExchangeRows(*heads[name], **whole))
    return RowStatistics(epoch, tuple(sorted(exchanges, key=lambda each: each.key)))


def _name(rows: ExchangeRows) -> str:
    return f"layer{rows.layer}_{rows.direction}"
