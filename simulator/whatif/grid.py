"""A grid: the document that says which scenarios are asked about, checked once, counted before anything is made of it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from halocast.errors import MisuseError, nearest
from halocast.simulator.catalogue import Catalogue
from halocast.simulator.whatif.axes import AXES, CALIBRATED, TABLES, Names, read_axis
from halocast.simulator.whatif.values import read_bytes, read_seconds

TOP_KEYS = ("data", "epochs", "partitions", "hardware")
FILTERS = ("memory", "deadline", "budget")


@dataclass(frozen=True)
class Filters:
    """What a scenario must meet to be feasible; None where it was not asked."""

    memory: int | Literal["device"] | None = None
    """Bytes, or "device": what the device has."""
    deadline_seconds: float | None = None
    """Of a training."""
    budget: float | None = None
    """Of a training, in the currency."""


@dataclass(frozen=True)
class Price:
    """What a device costs an hour."""

    values: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Prices:
    """Prices by device; the calibrated host is called "calibrated"."""

    currency: str | None = None
    by_device: Mapping[str, Price] = field(default_factory=dict)
    default: Price | None = None
    """Of whatever has no price of its own."""

    def of(self, device: str) -> Price | None:
        return self.by_device.get(device or CALIBRATED, self.default)


@dataclass(frozen=True)
class Grid:
    """Axes, what is asked of every scenario, and what a training is."""

    document: Mapping[str, Any]
    """As it was written, with nothing left out."""
    data: str
    epochs: int
    """Of one training."""
    partitions: str
    """real, or fitted for more than 16 ranks, as `halocast forecast --partitions` has it."""
    hardware: Path | None
    axes: Mapping[str, Sequence[Any]]
    """Values by name, in the order of the document."""
    prices: Prices
    filters: Filters

    @property
    def count(self) -> int:
        """Scenarios before combinations that are the same are told once."""
        return math.prod(len(values) for values in self._radices())

    def resolved(self) -> dict[str, Any]:
        """The document with what it left open filled in: it says the same when it is read again."""
        tables: dict[str, dict[str, Any]] = {}
        for name in self.axes:
            written = self.document.get(AXES[name].table, {})
            values = [_written(name, value) for value in self.axes[name]] if name not in written else written[name]
            tables.setdefault(AXES[name].table, {})[name] = values
        top = {"data": self.data, "epochs": self.epochs, "partitions": self.partitions}
        rest = {name: self.document[name] for name in ("hardware", "prices", "filters") if name in self.document}
        return {**top, **tables, **rest}

    def refuse_many(self, most: int, origin: str) -> None:
        """Raises MisuseError, with the count and how to thin it, for more than `most` scenarios."""
        if self.count <= most:
            return
        longest = sorted(self.axes, key=lambda name: -len(self.axes[name]))
        axes = " × ".join(f"{name} {len(self.axes[name]):,}" for name in longest if len(self.axes[name]) > 1)
        example = f', such as {longest[0]} = "1..64 x2"' if AXES[longest[0]].has_range else " to fewer of its values"
        raise MisuseError(
            f"{origin} asks for {self.count:,} scenarios ({axes}): at most {most:,} (--most); thin {longest[0]}{example}, "
            f"or take some at random with --sample {min(most, 10_000)}"
        )

    def points(self, sample: int | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Every combination, the last axis running fastest; or `sample` of them at random, in the same order."""
        names, radices, count = [*self.axes], self._radices(), self.count
        lengths = [len(values) for values in radices]
        for index in range(count) if sample is None or sample >= count else _sample(count, sample, seed):
            point, rest = {}, index
            for name, values, length in zip(reversed(names), reversed(radices), reversed(lengths), strict=True):
                rest, place = divmod(rest, length)
                point[name] = values[place]
            device, price = point["device"]
            yield {**{name: point[name] for name in names}, "device": device, "price_per_hour": price}

    def _radices(self) -> list[Sequence[Any]]:
        """Values by axis; those of the device with its prices."""
        return [self._devices() if name == "device" else values for name, values in self.axes.items()]

    def _devices(self) -> tuple[tuple[str, float | None], ...]:
        found: list[tuple[str, float | None]] = []
        for device in self.axes["device"]:
            price = self.prices.of(device)
            found += [(device, None)] if price is None else [(device, value) for value in price.values]
        return tuple(found)


def _written(name: str, value: Any) -> Any:
    """A value as a document has it."""
    return CALIBRATED if name in ("device", "transport") and value == "" else value


def _sample(count: int, wanted: int, seed: int) -> list[int]:
    """Different whole numbers below `count`, ascending."""
    random = np.random.default_rng(seed)
    if count <= 2**20 or wanted > count // 2:
        return sorted(random.permutation(count)[:wanted].tolist())
    if count > 2**62:
        raise MisuseError(f"{count:,} scenarios are too many to draw from: shorten the longest axis")
    found: set[int] = set()
    while len(found) < wanted:
        found |= set(random.integers(0, count, wanted - len(found)).tolist())
    return sorted(found)


def read_document(path: Path) -> dict[str, Any]:
    """The TOML document at `path`. Raises MisuseError with the line where it is malformed."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise MisuseError(f"cannot read grid {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MisuseError(f"grid {path} is not valid TOML: {error}") from error


def check_keys(document: Mapping[str, Any], origin: str) -> None:
    """Raises MisuseError for an unknown key or table, with the nearest match."""
    allowed = (*TOP_KEYS, *TABLES, "prices", "filters")
    for key, value in document.items():
        if key not in allowed:
            home = AXES[key].table if key in AXES else None
            hint = f": it belongs in [{home}]" if home else nearest(key, allowed)
            raise MisuseError(f"{origin}: unknown key '{key}'{hint}")
        if key in TOP_KEYS:
            continue
        if not isinstance(value, dict):
            raise MisuseError(f"{origin}: {key} is a table: write [{key}]")
        inside = FILTERS if key == "filters" else [axis.name for axis in AXES.values() if axis.table == key]
        for name in value if key != "prices" else ():
            if name not in inside:
                home = AXES[name].table if name in AXES else None
                hint = f": it belongs in [{home}]" if home else nearest(name, inside)
                raise MisuseError(f"{origin}: unknown key '{key}.{name}'{hint}")
    if "data" not in document:
        raise MisuseError(f"{origin}: key 'data' is missing: a graph, or a run file, as `halocast forecast --data` takes it")


def read_grid(document: Mapping[str, Any], names: Names, defaults: Mapping[str, Any], origin: str) -> Grid:
    """Check a document whose keys are known; what it leaves open is as in `defaults` (of the run file, by axis).

    Raises MisuseError naming the key, what is allowed and the nearest match.
    """
    written: dict[str, object] = {name: value for table in TABLES for name, value in document.get(table, {}).items()}
    refuse_contradictions(written, origin)
    axes = {name: read_axis(name, value, names, origin) for name, value in written.items()}
    axes = {name: axes[name] for name in AXES if name in axes} | {
        name: (value,) for name, value in defaults.items() if name not in axes
    }
    axes.setdefault("device", ("",))
    if "hosts" in axes:
        axes.pop("ranks", None)
    if "network" in axes:
        axes.pop("link", None)
    if "adaqp" in axes["method"] and "bits" not in axes:
        raise MisuseError(f"{origin}: training.bits is missing: adaqp's messages need a width, such as bits = [2, 4, 8]")
    epochs = _epochs(document.get("epochs", defaults.get("epochs")), origin)
    partitions = document.get("partitions", "real")
    if partitions not in ("real", "fitted"):
        raise MisuseError(f"{origin}: partitions = {partitions!r} is unknown{nearest(str(partitions), ('real', 'fitted'))}")
    prices = _read_prices(document.get("prices", {}), names.catalogue, axes["device"], origin)
    hardware = document.get("hardware")
    return Grid(
        document=dict(document),
        data=str(document["data"]),
        epochs=epochs,
        partitions=str(partitions),
        hardware=None if hardware is None else Path(str(hardware)),
        axes={name: axes[name] for name in (*AXES,) if name in axes},
        prices=prices,
        filters=_read_filters(document.get("filters", {}), prices, origin),
    )


def refuse_contradictions(written: Collection[str], origin: str) -> None:
    """Raises MisuseError for keys that say the same thing twice, or half of it."""
    if "ranks" in written and "hosts" in written:
        raise MisuseError(f"{origin}: ranks and hosts both say how many: give hosts and devices_per_host, or ranks")
    if "hosts" in written and "devices_per_host" not in written:
        raise MisuseError(f"{origin}: hosts needs devices_per_host: ranks are their product")
    if "network" in written and "link" in written:
        raise MisuseError(f"{origin}: network and link both say what joins the ranks: give one of them")


def _epochs(value: object, origin: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MisuseError(f"{origin}: epochs = {value!r}: allowed are whole numbers from 1 on (of one training)")
    return value


def _read_filters(table: Mapping[str, Any], prices: Prices, origin: str) -> Filters:
    asked = table.get("memory")
    memory: int | Literal["device"] | None = "device" if asked == "device" else None
    if asked is not None and memory is None:
        memory = read_bytes(asked, f"{origin}: filters.memory")
    deadline, budget = table.get("deadline"), table.get("budget")
    if budget is not None:
        budget = read_budget(budget, prices, f"{origin}: filters.budget")
    return Filters(memory, None if deadline is None else read_seconds(deadline, f"{origin}: filters.deadline"), budget)


def read_budget(value: object, prices: Prices, where: str) -> float:
    """An amount of money, with or without its currency. Raises MisuseError, without prices too."""
    text = str(value).strip()
    if prices.currency is None:
        raise MisuseError(f"{where} = {text}: without [prices] nothing costs anything; give prices, or leave the budget out")
    text = text.removesuffix(prices.currency).removeprefix(prices.currency).strip()
    try:
        amount = float(text)
    except ValueError as error:
        raise MisuseError(f"{where} = {value!r}: allowed is an amount such as 500, in {prices.currency}") from error
    if not 0.0 < amount < math.inf:
        raise MisuseError(f"{where} = {value!r}: allowed is an amount above 0")
    return amount


def _read_prices(table: Mapping[str, Any], catalogue: Catalogue, devices: Sequence[str], origin: str) -> Prices:
    """The grid's own, and the hardware file's where the grid has none."""
    if not table:
        return Prices()
    currency = table.get("currency")
    if not isinstance(currency, str) or not currency:
        raise MisuseError(f'{origin}: prices.currency is missing: what prices are in, such as currency = "EUR"')
    known = {each.lower(): each for each in (CALIBRATED, "default", *catalogue.devices)}
    found: dict[str, Price] = {}
    for name, value in table.items():
        if name == "currency":
            continue
        if name.lower() not in known:
            raise MisuseError(f"{origin}: prices.{name}: unknown device{nearest(name.lower(), known)}")
        found[known[name.lower()]] = Price(_amounts(value, f"{origin}: prices.{name}"), origin)
    for device in devices:
        entry = catalogue.devices.get(device)
        if device and device not in found and entry is not None and entry.price_per_hour is not None:
            figure = entry.price_per_hour
            found[device] = Price((figure.value,), f"{figure.source}, {figure.date}")
    return Prices(currency, {name: price for name, price in found.items() if name != "default"}, found.get("default"))


def _amounts(value: object, where: str) -> tuple[float, ...]:
    values: list[Any] = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0.0 <= each < math.inf:
            raise MisuseError(f"{where} = {each!r}: allowed are amounts from 0 on, an hour")
    if not values:
        raise MisuseError(f"{where} = []: an empty list leaves no scenario; give a price, or leave the key out")
    return tuple(float(each) for each in values)
