"""What the rows of recorded runs say about messages that were never sent: other partitions, other numbers of ranks.

A message that was recorded between the same two ranks is taken as it was; one of a node that was recorded otherwise as the
mean (of logarithms) of that node's; one of a node that never was on a boundary as the median of recorded nodes of like degree.
Widths are renewed from a run's own rows as it goes, so that this decides its first epochs only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.simulator.observations import Observation
from halocast.simulator.planner.bits import Messages
from halocast.simulator.planner.risk import RiskCurve, fit_risk, trained_runs
from halocast.simulator.planner.timing import ExchangeKey
from halocast.traces.operations import Direction
from halocast.traces.rows import ExchangeRows, RowStatistics, read_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FILE_VERSION = 1
TINY = 1e-30
DEFAULT_EFFECT = 0.01
"""Relative variance of the gradient at factor 1, where no run has measured an exchange: above most that were
(benchmarks/results/planner-risk-*.md)."""


@dataclass(frozen=True)
class RowKey:
    """Which run's rows these are."""

    fingerprint: str
    model: str
    """As `observations.Configuration.model`: layer, dims, savings."""
    ranks: int


@dataclass(frozen=True)
class RowModel:
    """Rows of recorded runs."""

    recorded: dict[RowKey, RowStatistics] = field(default_factory=dict)
    risk: RiskCurve = field(default_factory=RiskCurve)
    """Accuracy that their rounding cost, where enough of them were trained to the end beside plain runs."""

    def find(self, fingerprint: str, model: str, ranks: int) -> tuple[RowStatistics | None, str]:
        """The recorded rows closest to a run's, and what is different about them ('' if nothing)."""
        of_graph = {key: rows for key, rows in self.recorded.items() if key.fingerprint == fingerprint}
        if not of_graph:
            return None, "rows of this graph were never recorded: all messages of an exchange are taken as alike"
        dims, savings = _split(model)
        alike = {key: rows for key, rows in of_graph.items() if _split(key.model)[0] == dims}
        if not alike:
            return None, "rows of this model were never recorded: all messages of an exchange are taken as alike"
        best = min(alike, key=lambda key: (_split(key.model)[1] != savings, abs(key.ranks - ranks)))
        return alike[best], ""

    def save(self, path: Path) -> None:
        """Write by atomic rename, beside the costs."""
        arrays: dict[str, Any] = {}
        head: list[dict[str, Any]] = []
        for number, (key, rows) in enumerate(self.recorded.items()):
            entry: dict[str, Any] = {
                "fingerprint": key.fingerprint,
                "model": key.model,
                "ranks": key.ranks,
                "epoch": rows.epoch,
            }
            entry["exchanges"] = []
            for place, each in enumerate(rows.exchanges):
                entry["exchanges"].append([each.layer, str(each.direction), each.dim, each.one_sided, float(each.sensitivity)])
                for column in _COLUMNS:
                    arrays[f"{number}_{place}_{column}"] = getattr(each, column)
            head.append(entry)
        arrays["head"] = np.array(json.dumps({"version": FILE_VERSION, "recorded": head, "risk": asdict(self.risk)}))
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> RowModel:
        """Nothing where there is no such file; MisuseError where it is damaged."""
        if not path.is_file():
            return cls()
        recorded = {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                head = json.loads(str(archive["head"]))
                if head["version"] != FILE_VERSION:
                    raise MisuseError(f"{path}: rows of version {head['version']}; calibrate again")
                for number, entry in enumerate(head["recorded"]):
                    exchanges = []
                    for place, (layer, direction, dim, one_sided, sensitivity) in enumerate(entry["exchanges"]):
                        columns = [archive[f"{number}_{place}_{column}"] for column in _COLUMNS]
                        exchanges.append(ExchangeRows(layer, Direction(direction), dim, one_sided, sensitivity, *columns))
                    key = RowKey(entry["fingerprint"], entry["model"], entry["ranks"])
                    recorded[key] = RowStatistics(entry["epoch"], tuple(exchanges))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise MisuseError(f"{path} is damaged ({' '.join(str(error).split())}); calibrate again") from error
        return cls(recorded, RiskCurve(**head["risk"]))


_COLUMNS = ("sender", "receiver", "node", "beta", "energy")


def rows_beside(costs: Path) -> Path:
    """Where the rows of the runs are that a cost file was calibrated on."""
    return costs.with_suffix(".rows.npz")


def _split(model: str) -> tuple[str, str]:
    dims, _, savings = model.partition(" exact ")
    return dims, savings


def predict_messages(
    recorded: ExchangeRows | None,
    key: ExchangeKey,
    dim: int,
    *,
    one_sided: bool,
    ranks: int,
    sender: Ints,
    receiver: Ints,
    node: Ints,
    degrees: Ints,
) -> Messages:
    """One exchange of a partition, its β from what was recorded.

    Args:
        recorded: the same exchange in a recorded run; None: all messages are alike.
        sender, receiver, node: [messages].
        degrees: [nodes] of the whole graph.
    """
    if recorded is None or not len(recorded.node) or recorded.dim != dim:
        effect = DEFAULT_EFFECT
        beta = np.ones(len(node))
    else:
        beta = predict_beta(recorded, ranks, sender, receiver, node, degrees)
        energy = float(recorded.energy.sum(dtype=np.float64))
        # the gradient's variance is in proportion to what is added to it, however many messages add it
        effect = recorded.sensitivity * float(beta.sum()) / energy if energy > 0.0 else 0.0
        effect = effect if np.isfinite(effect) else DEFAULT_EFFECT
    return Messages(key[0], key[1], dim, one_sided, effect, ranks, sender, receiver, beta)


def predict_beta(recorded: ExchangeRows, ranks: int, sender: Ints, receiver: Ints, node: Ints, degrees: Ints) -> Floats:
    """[messages] β of messages between these ranks."""
    logs = np.log(np.maximum(recorded.beta.astype(np.float64), TINY))
    beta = np.exp(_of_node(recorded.node, logs, node, degrees))
    if int(max(recorded.sender.max(), recorded.receiver.max())) >= ranks:
        return beta
    nodes = len(degrees)
    known = (recorded.sender.astype(np.int64) * ranks + recorded.receiver) * nodes + recorded.node
    order = np.argsort(known)
    asked = (sender * ranks + receiver) * nodes + node
    place = np.minimum(np.searchsorted(known[order], asked), len(known) - 1)
    same = known[order][place] == asked
    beta[same] = recorded.beta[order][place][same]
    return beta


def _of_node(recorded: Ints, logs: Floats, node: Ints, degrees: Ints) -> Floats:
    """[messages] mean of the node's logarithms, or the median of nodes of like degree, or of all."""
    nodes, index = np.unique(recorded, return_inverse=True)
    means = np.bincount(index, weights=logs) / np.bincount(index)
    place = np.minimum(np.searchsorted(nodes, node), len(nodes) - 1)
    known = nodes[place] == node
    values = np.full(len(node), float(np.median(means)))
    bucket_of = np.log2(1.0 + degrees).astype(np.int64)
    recorded_bucket, asked_bucket = bucket_of[nodes], bucket_of[node]
    for bucket in np.unique(asked_bucket[~known]).tolist():
        alike = means[recorded_bucket == bucket]
        if len(alike):
            values[asked_bucket == bucket] = float(np.median(alike))
    values[known] = means[place[known]]
    return values


def row_model(observations: Sequence[Observation]) -> RowModel:
    """What these runs recorded of their rows, and what rounding cost them; a later run replaces an earlier one alike."""
    rows = merge_rows(rows_of(observations))
    return replace(rows, risk=fit_risk(trained_runs(observations, rows)))


def merge_rows(found: Sequence[tuple[RowKey, RowStatistics]]) -> RowModel:
    """Of several runs; a later one replaces an earlier one of the same key."""
    return RowModel(dict(found))


def rows_of(observations: Sequence[Observation]) -> list[tuple[RowKey, RowStatistics]]:
    """The rows that these runs recorded, where they did."""
    found = []
    for each in observations:
        rows = read_rows(each.folder)
        if rows is not None:
            configuration = each.configuration
            found.append((RowKey(configuration.fingerprint, configuration.model, configuration.ranks), rows))
    return found
