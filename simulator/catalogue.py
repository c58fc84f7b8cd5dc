"""What devices, networks and transports can do: a catalogue in TOML that users extend, and topologies built from it.

Figures are those of public data sheets, each with its source; what no data sheet says is marked as assumed. A user's own TOML
file, or a folder of them, is laid over ours (simulator/hardware): an entry of the same name replaces ours.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from halocast.errors import MisuseError, nearest
from halocast.simulator.costs import NetworkCosts, Record
from halocast.simulator.network import Topology, cluster, star
from halocast.simulator.observations import parse_link

Entry = TypeVar("Entry")


class Figure(Record):
    """A number, and who says so."""

    value: float = Field(ge=0.0, allow_inf_nan=False)
    """SI units: bytes, seconds, flop/s, bytes per second."""
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    """How much of it programs reach."""
    share_source: str = ""
    """Where the share comes from; "assumed: ..." where nobody measured it."""
    source: str = Field(min_length=1)
    """A public data sheet or its address; "assumed: ..." where there is none."""
    date: str = Field(pattern=r"^\d{4}(-\d{2}){0,2}$")
    """Of the source, or when it was assumed."""

    @property
    def achievable(self) -> float:
        return self.value * self.share

    @model_validator(mode="after")
    def _has_reason_for_share(self) -> Figure:
        if self.share < 1.0 and not self.share_source:
            raise ValueError(f"share = {self.share:g} needs a share_source")
        return self


def _above_zero(figure: Figure) -> Figure:
    if figure.value == 0.0:
        raise ValueError("value = 0 is not allowed here")
    return figure


PositiveFigure = Annotated[Figure, AfterValidator(_above_zero)]


class Device(Record):
    """What a rank computes on: one GPU, or one host with all its cores."""

    title: str
    kind: Literal["cpu", "gpu"]
    memory_rate: PositiveFigure
    """Bytes per second, read and written."""
    gemm_rate: PositiveFigure
    """Single-precision flop/s of matrix products without tensor cores."""
    gemm_rate_tf32: PositiveFigure | None = None
    """flop/s with TF32 inputs; None where the device has none."""
    copy_rate: PositiveFigure
    """Bytes per second between host and device, one way."""
    memory_bytes: PositiveFigure
    launch_seconds: Figure | None = None
    """Seconds a kernel takes to start; None on a CPU, which launches nothing."""
    price_per_hour: Figure | None = None
    """In the user's currency; ours have none."""

    @model_validator(mode="after")
    def _launches_if_gpu(self) -> Device:
        if self.kind == "gpu" and self.launch_seconds is None:
            raise ValueError("a gpu needs launch_seconds")
        return self


class Network(Record):
    """A network between hosts, or a link inside one."""

    title: str
    rate: PositiveFigure
    """Bytes per second of one port, each way."""
    latency_seconds: Figure
    """What the hardware takes to hand over the first byte; software's share is the transport's."""


FIGURES = tuple(name for name in NetworkCosts.model_fields if name != "all_reduce")
"""What a transport gives a figure of."""


class Transport(Record):
    """What messages cost where nothing was calibrated."""

    title: str
    network: dict[str, Figure]
    """By field of `NetworkCosts`."""

    @field_validator("network")
    @classmethod
    def _names_fields(cls, network: dict[str, Figure]) -> dict[str, Figure]:
        for name in network:
            if name not in FIGURES:
                raise ValueError(f"unknown field '{name}'{nearest(name, FIGURES)}")
        return network

    def network_costs(self) -> NetworkCosts:
        """Stands in for calibrated ones; `uncalibrated` says so and has to go where the answer goes."""
        return NetworkCosts.model_validate({name: figure.achievable for name, figure in self.network.items()})

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """One line for each field of `network_costs`: its value and where that comes from."""
        lines = []
        for name in FIGURES:
            value = getattr(self.network_costs(), name)
            source = self.network[name].source if name in self.network else "assumed: halocast's default"
            lines.append(f"{self.title}: {name} = {value:g} is not calibrated ({source})")
        return tuple(lines)


class Catalogue(Record):
    """Everything by name."""

    devices: dict[str, Device] = Field(default_factory=dict)
    networks: dict[str, Network] = Field(default_factory=dict)
    transports: dict[str, Transport] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Entries of ours that a user's replaced, one line each."""

    def device(self, name: str) -> Device:
        """Raises MisuseError for an unknown name."""
        return _entry("device", self.devices, name)

    def network(self, name: str) -> Network:
        """Raises MisuseError for an unknown name."""
        return _entry("network", self.networks, name)

    def transport(self, name: str) -> Transport:
        """Raises MisuseError for an unknown name."""
        return _entry("transport", self.transports, name)

    def rate_and_latency(self, network: str) -> tuple[float, float]:
        """Bytes per second and seconds of a network by name, or of a rate, which adds no latency of its own."""
        if network not in self.networks and network.lower().endswith("bit"):
            return parse_link(network), 0.0
        entry = self.network(network)
        return entry.rate.achievable, entry.latency_seconds.value


def _entry(kind: str, entries: Mapping[str, Entry], name: str) -> Entry:
    known = next((each for each in entries if each.lower() == name.lower()), None)
    if known is None:
        closest = nearest(name.lower(), [each.lower() for each in entries])
        known_ones = "" if "allowed" in closest else f"known: {', '.join(entries)}; "
        raise MisuseError(f"unknown {kind} '{name}'{closest} ({known_ones}add your own with --hardware FILE)")
    return entries[known]


# -- reading ----------------------------------------------------------------------------------------------------

SECTIONS: dict[str, type[Record]] = {"devices": Device, "networks": Network, "transports": Transport}


def load_catalogue(extra: Path | None = None) -> Catalogue:
    """Our catalogue, and over it the user's file or folder. Raises MisuseError naming the file and the entry at fault."""
    ours = resources.files("halocast.simulator").joinpath("hardware")
    catalogue = Catalogue()
    for page in sorted(ours.iterdir(), key=lambda each: each.name):
        if page.name.endswith(".toml"):
            catalogue = _merge(catalogue, _parse(page.name, page.read_text(encoding="utf-8")), page.name)
    for path in _files(extra) if extra is not None else ():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise MisuseError(f"cannot read hardware file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise MisuseError(f"{path} is not TOML: {error}") from error
        catalogue = _merge(catalogue, _parse(str(path), text), str(path))
    return catalogue


def _files(extra: Path) -> Iterable[Path]:
    if not extra.is_dir():
        return [extra]
    files = sorted(extra.glob("*.toml"))
    if not files:
        raise MisuseError(f"no hardware file in {extra}: put .toml files there")
    return files


def _merge(catalogue: Catalogue, page: Catalogue, path: str) -> Catalogue:
    notes = list(catalogue.notes)
    for section in SECTIONS:
        replaced = getattr(catalogue, section).keys() & getattr(page, section).keys()
        notes += [f"{path}: {section}.{name} replaces an earlier entry of that name" for name in sorted(replaced)]
    return Catalogue(
        devices=catalogue.devices | page.devices,
        networks=catalogue.networks | page.networks,
        transports=catalogue.transports | page.transports,
        notes=tuple(notes),
    )


def _parse(path: str, text: str) -> Catalogue:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MisuseError(f"{path} is not TOML: {error}") from error
    for key in document:
        if key not in SECTIONS:
            raise MisuseError(f"{path}: unknown section '{key}'{nearest(key, SECTIONS)}")
    try:
        return Catalogue.model_validate(document)
    except ValidationError as error:
        # a misspelt key is missing as well: the unknown one says more
        first: Any = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = [str(each) for each in first["loc"]]
        if first["type"] == "extra_forbidden":
            allowed = SECTIONS[where[0]] if len(where) == 3 else Figure
            raise MisuseError(f"{path}: {'.'.join(where)}: unknown key{nearest(where[-1], allowed.model_fields)}") from error
        raise MisuseError(f"{path}: {'.'.join(where)}: {first['msg'].removeprefix('Value error, ')}") from error


# -- topologies -------------------------------------------------------------------------------------------------


def build_topology(
    catalogue: Catalogue,
    ranks: int,
    network: str,
    *,
    ranks_per_host: int = 1,
    inside: str | None = None,
    hosts_per_switch: int = 0,
    oversubscription: float = 1.0,
) -> Topology:
    """What lies between the ranks of a cluster.

    `network` (a port for each host) and `inside` (links between the ranks of a host) are names in the catalogue, or rates
    such as 200mbit and 25gbit, which add no latency of their own. `hosts_per_switch`: switches of so many hosts, joined by
    trunks that carry 1 / `oversubscription` of what their hosts could send; 0: one switch for all, never the limit.
    Raises MisuseError for unknown names and settings without sense.
    """
    _check_shape(ranks, ranks_per_host, inside, hosts_per_switch, oversubscription)
    rate, latency = catalogue.rate_and_latency(network)
    if ranks_per_host == 1 and inside is None and hosts_per_switch == 0:
        return star(ranks, rate, latency=latency)
    # a rank alone on its host has no links but its host's port
    inside_rate, latency_inside = (rate, 0.0) if inside is None else catalogue.rate_and_latency(inside)
    return cluster(
        ranks,
        ranks_per_host,
        port_rate=rate,
        inside_rate=inside_rate,
        latency=latency,
        latency_inside=latency_inside,
        hosts_per_switch=hosts_per_switch,
        oversubscription=oversubscription,
    )


def _check_shape(ranks: int, ranks_per_host: int, inside: str | None, hosts_per_switch: int, oversubscription: float) -> None:
    for name, count, least in (
        ("ranks", ranks, 1),
        ("ranks_per_host", ranks_per_host, 1),
        ("hosts_per_switch", hosts_per_switch, 0),
    ):
        if count < least:
            raise MisuseError(f"{name} = {count} is not allowed: {least} or more")
    if not 1.0 <= oversubscription < math.inf:
        raise MisuseError(f"oversubscription = {oversubscription:g} is not allowed: 1 (none) or more")
    if oversubscription > 1.0 and hosts_per_switch == 0:
        raise MisuseError(f"--oversubscription {oversubscription:g} needs --hosts-per-switch, such as 4: trunks join switches")
    if ranks_per_host > 1 and inside is None:
        raise MisuseError(
            f"{ranks_per_host} ranks a host need --inside, what joins them: nvlink-4, pcie-5 or a rate as in 25gbit"
        )
