"""The inputs of a scenario that a grid may vary: what each is called, in what unit, and what it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from halocast.errors import MisuseError, nearest
from halocast.runtime.programs import METHODS
from halocast.simulator.catalogue import Catalogue
from halocast.simulator.observations import parse_link
from halocast.simulator.whatif.values import factor, read_values, real, whole
from halocast.traces.wire import WIDTHS
from halocast.traces.workload import ExactSavings

SAVINGS = tuple(field.name for field in fields(ExactSavings))
PARTITIONS = {"metis": ("cut", "volume"), "random": (), "contiguous": ()}
"""Objectives by method of partitioning."""
CALIBRATED = "calibrated"
"""What a grid calls the machine that the costs are of, where it could name a device or a transport."""


@dataclass(frozen=True)
class Axis:
    """One input, as a grid writes it."""

    name: str
    table: str
    label: str
    unit: str = ""
    has_range: bool = True
    """Values are numbers that can be counted through."""


AXES = {
    axis.name: axis
    for axis in (
        Axis("ranks", "cluster", "ranks"),
        Axis("hosts", "cluster", "hosts"),
        Axis("devices_per_host", "cluster", "devices a host"),
        Axis("device", "cluster", "device", has_range=False),
        Axis("network", "cluster", "network between hosts", has_range=False),
        Axis("link", "cluster", "link", has_range=False),
        Axis("inside", "cluster", "link inside a host", has_range=False),
        Axis("hosts_per_switch", "cluster", "hosts a switch"),
        Axis("oversubscription", "cluster", "oversubscription", ": 1"),
        Axis("transport", "cluster", "transport", has_range=False),
        Axis("all_reduce", "cluster", "all-reduce", has_range=False),
        Axis("method", "training", "method", has_range=False),
        Axis("bits", "training", "width of messages", "bits", has_range=False),
        Axis("keep", "training", "layers that keep remote blocks", has_range=False),
        Axis("prefetch", "training", "rounds fetched ahead"),
        Axis("savings", "training", "lossless savings", has_range=False),
        Axis("partition", "training", "partition", has_range=False),
        Axis("layer", "model", "layer", has_range=False),
        Axis("layers", "model", "layers"),
        Axis("hidden", "model", "hidden width"),
        Axis("nodes", "growth", "growth of nodes", "times"),
        Axis("edges", "growth", "growth of edges", "times"),
    )
}
TABLES = tuple(dict.fromkeys(axis.table for axis in AXES.values()))
PRICE = Axis("price_per_hour", "prices", "price of a device", "an hour")
"""Varies where a device has several prices."""


@dataclass(frozen=True)
class Names:
    """What can be named."""

    catalogue: Catalogue
    layers: Sequence[str]
    """Layers that can be forecast without building them."""


def read_axis(name: str, value: object, names: Names, origin: str) -> Sequence[Any]:
    """The values of one key of a grid. Raises MisuseError naming it, what is allowed and the nearest match."""
    where = f"{origin}: {AXES[name].table}.{name}"
    number = _numbers(name, where)
    return read_values(value, number or _names(name, names, where), where, number=number)


def _numbers(name: str, where: str) -> Callable[[object], Any] | None:
    match name:
        case "ranks" | "hosts" | "devices_per_host" | "layers" | "hidden":
            return whole(where, 1)
        case "hosts_per_switch" | "prefetch":
            return whole(where, 0)
        case "oversubscription":
            return real(where, 1.0)
        case "nodes" | "edges":
            return factor(where)
    return None


def _names(name: str, names: Names, where: str) -> Callable[[object], Any]:
    catalogue = names.catalogue
    match name:
        case "device":
            return lambda value: _own_or_known(value, catalogue.devices, where)
        case "network":
            return lambda value: _network(value, catalogue, where)
        case "inside":
            return lambda value: "" if value in ("", "none") else _network(value, catalogue, where)
        case "link":
            return lambda value: _link(value, where)
        case "transport":
            return lambda value: _own_or_known(value, catalogue.transports, where)
        case "all_reduce":
            return lambda value: _known(value, ("ring", "tree"), where)
        case "method":
            return lambda value: _known(value, METHODS, where)
        case "bits":
            return lambda value: _bits(value, where)
        case "keep":
            return lambda value: read_keep(value, where)
        case "savings":
            return lambda value: read_savings(value, where)
        case "partition":
            return lambda value: _partition(value, where)
        case "layer":
            return lambda value: _known(value, names.layers, where)
    raise KeyError(name)


def _known(value: object, allowed: Any, where: str) -> str:
    """One of the names, in its own spelling; capitals do not matter."""
    by_name = {str(each).lower(): str(each) for each in allowed}
    text = str(value)
    if text.lower() not in by_name:
        raise MisuseError(f"{where}: unknown '{text}'{nearest(text.lower(), by_name)}")
    return by_name[text.lower()]


def _own_or_known(value: object, allowed: Iterable[str], where: str) -> str:
    """One of the names, or "" for what was calibrated."""
    found = _known(value, (CALIBRATED, *allowed), where)
    return "" if found == CALIBRATED else found


def _network(value: object, catalogue: Catalogue, where: str) -> str:
    """A name in the catalogue, or a rate."""
    text = str(value)
    if text.lower().endswith("bit") and text not in catalogue.networks:
        return _link(text, where)
    return _known(text, catalogue.networks, where)


def _link(value: object, where: str) -> str:
    text = str(value).removeprefix("shaped:")
    try:
        parse_link(text)
    except MisuseError as error:
        raise MisuseError(f"{where}: {error}") from error
    return "unshaped" if text == "local" else text


def _bits(value: object, where: str) -> int:
    text = str(value).removeprefix("uniform:")
    if not text.isdigit() or int(text) not in WIDTHS:
        raise MisuseError(f"{where} = {value}: no width; allowed: {', '.join(map(str, WIDTHS))}")
    return int(text)


def read_keep(value: object, where: str) -> str:
    """ "all", "none", or numbers of layers joined by "+", ascending; true and false, or a list of numbers, say the same."""
    if isinstance(value, bool):
        return "all" if value else "none"
    if value in ("all", "none"):
        return str(value)
    numbers = [str(each) for each in value] if isinstance(value, list | tuple) else str(value).split("+")
    if not all(each.isdecimal() for each in numbers):
        raise MisuseError(f"{where} = {value!r}: allowed are all, none, or numbers of layers joined by +, as in 0+2")
    return "+".join(map(str, sorted({int(each) for each in numbers}))) or "none"


def kept_of(text: str, layers: int) -> tuple[int, ...]:
    """What `read_keep` gave, as the programs take it."""
    return tuple(range(layers)) if text == "all" else () if text == "none" else tuple(int(each) for each in text.split("+"))


def read_savings(value: object, where: str) -> str:
    """ "all", "none", or names joined by "+", each once, in the order of `SAVINGS`."""
    if value in ("all", "none"):
        return str(value)
    wanted = {_known(each, SAVINGS, where) for each in (value if isinstance(value, list) else str(value).split("+"))}
    return "all" if len(wanted) == len(SAVINGS) else "+".join(each for each in SAVINGS if each in wanted) or "none"


def savings_of(text: str) -> ExactSavings:
    """What `read_savings` gave, as the programs take it."""
    wanted = SAVINGS if text == "all" else () if text == "none" else text.split("+")
    return ExactSavings(**{name: name in wanted for name in SAVINGS})


def name_savings(exact: ExactSavings) -> str:
    """The reverse."""
    return read_savings([name for name in SAVINGS if getattr(exact, name)], "savings")


def _partition(value: object, where: str) -> str:
    method, _, objective = str(value).partition("/")
    method = _known(method, PARTITIONS, where)
    objectives = PARTITIONS[method]
    if not objectives:
        return method
    return f"{method}/{_known(objective or objectives[0], objectives, where)}"
