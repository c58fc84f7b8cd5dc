"""What is compared: runs and forecasts, and groups of those that are repeats of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from halocast.reports.document import Basis, Value
from halocast.reports.estimates import Estimate, Scatter, epoch_estimate
from halocast.reports.ranks import HIDDEN, PARTS, rank_times
from halocast.reports.traffic import ExchangeWidths, exchange_widths
from halocast.traces.epochs import steady_epochs
from halocast.traces.trace import Trace

NOT_CONFIGURATION = ("seed", "port", "timeout_seconds", "forecast", "trace.", "training.checkpoint_every", "threads")
"""Keys in which repeats of one configuration may differ; a dot at the end stands for a section."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One run, or one forecast."""

    name: str
    basis: Basis
    config: Mapping[str, Any]
    """The resolved run configuration."""
    graph: str
    fingerprint: str
    machine: str
    """The processor, or what was forecast for; empty where not known."""
    world_size: int
    seconds: npt.NDArray[np.float64]
    """[epochs] that count, as rank 0 measured them; empty for forecasts."""
    said: Estimate | None
    """Of a forecast: the epoch time with its 90 % interval, in seconds."""
    metrics: pd.DataFrame
    """Columns epoch, loss, epoch_seconds, train, val, test; no rows for forecasts."""
    trace: Trace | None
    bytes_per_epoch: int
    exchange_bytes_per_epoch: int
    peak_bytes: Sequence[int]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    metric: str = "accuracy"
    unfinished: str = ""
    source: str = ""
    extrapolated: Sequence[str] = ()

    @cached_property
    def settings(self) -> dict[str, str]:
        """The configuration as ``section.key`` and text, without what repeats may differ in."""
        flat = flattened(self.config)
        return {key: text for key, text in flat.items() if not is_left_out(key)}

    @cached_property
    def parts(self) -> pd.Series | None:
        """Seconds of an epoch by part, mean over ranks; None without a trace."""
        times = None if self.trace is None else rank_times(self.trace)
        return None if times is None else times.parts[[*PARTS, HIDDEN]].mean()

    @cached_property
    def exchanges(self) -> list[ExchangeWidths]:
        return [] if self.trace is None else exchange_widths(self.trace, steady_epochs(self.trace))


@dataclass(frozen=True, eq=False)
class Group:
    """Repeats of one configuration, or a single run or forecast."""

    name: str
    members: Sequence[Subject]

    @property
    def first(self) -> Subject:
        return self.members[0]

    @property
    def basis(self) -> Basis:
        return self.first.basis

    @property
    def runs(self) -> list[npt.NDArray[np.float64]]:
        """Epoch times by run."""
        return [each.seconds for each in self.members if len(each.seconds)]

    def estimate(self, scatter: Scatter | None) -> Estimate | None:
        """Of the epoch time: of forecasts as they say."""
        if self.first.said is not None:
            return self.first.said
        return epoch_estimate(self.runs, scatter) if self.runs else None

    @property
    def parts(self) -> pd.Series | None:
        known = [each.parts for each in self.members if each.parts is not None]
        return sum(known[1:], known[0]) / len(known) if known else None

    def mean_of(self, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    @property
    def peak(self) -> Value:
        """Of the rank that needs most."""
        return self.mean_of([float(max(each.peak_bytes)) if each.peak_bytes else None for each in self.members])

    @property
    def sent(self) -> float:
        return float(np.mean([each.bytes_per_epoch for each in self.members]))

    @property
    def exchanged(self) -> float:
        return float(np.mean([each.exchange_bytes_per_epoch for each in self.members]))

    def score(self, split: str) -> float | None:
        return self.mean_of([each.accuracy.get(split) for each in self.members])

    @property
    def loss(self) -> float | None:
        losses = [each.metrics["loss"].dropna() for each in self.members]
        return self.mean_of([float(each.iloc[-1]) if len(each) else None for each in losses])


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"model": {"layers": 3}}`` as ``{"model.layers": "3"}``."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "" if value is None else str(value)
    return flat


def is_left_out(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in NOT_CONFIGURATION)


def grouped(subjects: Sequence[Subject]) -> list[Group]:
    """Runs of one configuration, graph and machine together, in the order of their first ones; a forecast for itself."""
    found: dict[object, list[Subject]] = {}
    for place, subject in enumerate(subjects):
        alone = place if subject.basis is Basis.FORECAST else -1
        key = (alone, subject.fingerprint, subject.machine, subject.world_size, tuple(sorted(subject.settings.items())))
        found.setdefault(key, []).append(subject)
    return [
        Group(members[0].name if len(members) == 1 else f"{members[0].name} ({len(members)} runs)", members)
        for members in found.values()
    ]


def differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ, with each group's; graph, ranks and machine first."""
    rows = [
        ("graph", [f"{each.first.graph} {each.first.fingerprint}" for each in groups]),
        ("machine", [each.first.machine for each in groups]),
    ]
    keys = dict.fromkeys(key for group in groups for key in group.first.settings)
    rows += [(key, [each.first.settings.get(key, "") for each in groups]) for key in keys if key != "graph"]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
