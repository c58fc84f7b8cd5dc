"""A run that follows a plan: what the plan says of it, what may not contradict it, and how the forecast turned out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.errors import MisuseError
from halocast.traces.plan import ARRAYS, Plan, read_plan

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig
    from halocast.runtime.graph.graph import Graph

UNMEASURED_EPOCHS = 2
"""The first ones of a run fill caches and buffers: they are not what was forecast."""
FINGERPRINT_DIGITS = 12
IN_SECONDS_FROM = 0.1
"""Shorter epochs are told in milliseconds."""


def follow(document: Mapping[str, Any], plan: Plan, folder: str) -> dict[str, Any]:
    """A run's document with what the plan says wherever the document says nothing."""
    arrays = str(Path(folder) / ARRAYS)
    method = {**plan.method, "reassign_every": plan.reassign_every}
    if plan.exchanges:
        method["bits"] = arrays
    planned = {
        "graph": plan.graph.spec,
        "symmetrise": plan.graph.symmetrise,
        "ranks": plan.world_size,
        "hosts": plan.hosts,
        "plan": folder,
        "model": plan.model,
        "method": method,
        "partition": {"method": arrays},
    }
    return _filled(document, planned)


def _filled(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **document}
    for key, value in document.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            filled[key] = _filled(value, defaults[key])
    return filled


def plan_of(config: RunConfig) -> Plan | None:
    """The plan that a run follows; raises MisuseError where it cannot be read, or where the run contradicts it."""
    if not config.plan:
        return None
    plan = read_plan(Path(config.plan))
    asked, planned = _leaves(config.model_dump(mode="json")), _leaves({"model": plan.model})
    planned |= {"ranks": plan.world_size, "method.name": plan.method.get("name")}
    for key, value in sorted(planned.items()):
        if asked.get(key) != value:
            raise MisuseError(
                f"{key} = {_text(asked.get(key))}, but the plan in {config.plan} is for {_text(value)}: leave it out, or make "
                f"a plan for {_text(asked.get(key))} with `halocast plan`"
            )
    return plan


def refuse_another_graph(plan: Plan, folder: str, graph: Graph) -> None:
    """Raises MisuseError naming both graphs where the plan is for another one."""
    if graph.fingerprint != plan.graph.fingerprint:
        raise MisuseError(
            f"the plan in {folder} is for graph '{plan.graph.name}' ({plan.graph.fingerprint[:FINGERPRINT_DIGITS]}), and this "
            f"is '{graph.name}' ({graph.fingerprint[:FINGERPRINT_DIGITS]}): train on the former ({plan.graph.spec}), or make "
            "a plan for the latter with `halocast plan`"
        )


def compare_with_plan(
    plan: Plan, config: RunConfig, epoch_seconds: Mapping[int, float], accuracy: Mapping[str, float | None]
) -> dict[str, Any]:
    """What a run's result says of its plan: `plan`, `forecast`, `error` (forecast / measured − 1) and `verdict`.

    Args:
        epoch_seconds: by epoch. Measured is the median of those after the first two.
        accuracy: by split.
    """
    forecast = plan.forecast
    seconds = [value for epoch, value in epoch_seconds.items() if epoch >= UNMEASURED_EPOCHS]
    measured = statistics.median(seconds) if seconds else None
    return {
        "plan": config.plan,
        "forecast": {
            "epoch_seconds": forecast.epoch_seconds,
            "low": forecast.low,
            "high": forecast.high,
            "peak_bytes": list(forecast.peak_bytes),
            "bytes_per_epoch": forecast.bytes_per_epoch,
        },
        "error": None if measured is None else forecast.epoch_seconds / measured - 1.0,
        "verdict": "; ".join(_clauses(plan, config, measured, accuracy.get("test"))),
    }


def _clauses(plan: Plan, config: RunConfig, measured: float | None, accuracy: float | None) -> Iterable[str]:
    forecast, baseline = plan.forecast, plan.baseline
    scale, unit = (1.0, "s") if forecast.epoch_seconds >= IN_SECONDS_FROM else (1e3, "ms")
    expected, low, high = (f"{scale * each:.3g}" for each in (forecast.epoch_seconds, forecast.low, forecast.high))
    times = [f"forecast {expected} {unit} [{low}, {high}]"]
    if measured is None:
        times.append(f"not measured: that takes more than {UNMEASURED_EPOCHS} epochs")
    else:
        error = f"{100.0 * (forecast.epoch_seconds / measured - 1.0):+.1f} %".replace("-", "−")
        times.append(f"measured {scale * measured:.3g} {unit} ({error})")
        if baseline is not None:
            times.append(f"{baseline.epoch_seconds / measured:.1f} × plain{'' if baseline.measured else ' as forecast'}")
    yield ", ".join(times)
    if baseline is not None and baseline.accuracy is not None and accuracy is not None:
        yield f"accuracy {accuracy:.3f} against {baseline.accuracy:.3f}"
    if config.hosts != plan.hosts:
        yield f"planned for {plan.hosts}"
    changed = _not_as_planned(plan, config)
    if changed:
        yield f"not as planned: {', '.join(changed)}"


def _not_as_planned(plan: Plan, config: RunConfig) -> list[str]:
    """Keys of method and partition in which the user has overruled the plan."""
    asked = _leaves(config.model_dump(mode="json"))
    planned = _leaves(follow({}, plan, config.plan))
    return sorted(
        key for key, value in planned.items() if key.startswith(("method.", "partition.")) and asked.get(key) != value
    )


def _leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in document.items():
        leaves.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return leaves


def _text(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
