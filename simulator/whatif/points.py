"""One scenario's inputs: what a grid's combination comes to, once what makes no difference is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from halocast.simulator.placement import Hardware

TASK = ("layer", "layers", "hidden", "nodes_factor", "edges_factor")
"""Inputs, and columns of the table, that say what is to be trained: the model and how large the graph has become."""


COUNTED = ("ranks", "price_per_hour")
SPREAD = ("devices_per_host", "inside")


@dataclass(frozen=True)
class Point:
    """Inputs of one scenario; names as in the catalogue, "" for as calibrated or as the run file has it."""

    ranks: int
    devices_per_host: int | None
    """None: all ranks on the calibrated machine, or one a host where a device or a network is named."""
    device: str
    network: str
    link: str
    inside: str
    hosts_per_switch: int
    oversubscription: float
    transport: str
    all_reduce: str
    method: str
    bits: int
    """0 where the method quantises nothing."""
    keep: str
    """Layers that keep remote blocks: all, none, or numbers joined by +; "none" where the method is not sequential."""
    prefetch: int
    """Rounds fetched ahead; 1 where the method is not sequential."""
    savings: str
    partition: str
    layer: str
    layers: int
    hidden: int
    nodes_factor: float
    edges_factor: float
    price_per_hour: float | None

    @property
    def is_cluster(self) -> bool:
        """Whether ranks are on hosts of their own, and not all on the calibrated machine."""
        return self.hardware().is_cluster

    @property
    def ranks_per_host(self) -> int:
        return self.devices_per_host or 1 if self.is_cluster else self.ranks

    @property
    def hosts(self) -> int:
        return -(-self.ranks // self.ranks_per_host)

    @property
    def series(self) -> tuple[Any, ...]:
        """All inputs but how many ranks there are, and what they cost."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name not in COUNTED)

    @property
    def scaling(self) -> tuple[Any, ...]:
        """The same, however ranks are spread over hosts: a host of four has no fewer than four to be compared with."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name not in (*COUNTED, *SPREAD))

    @property
    def task(self) -> tuple[Any, ...]:
        """What is to be trained: given to whoever has to choose, where all other inputs are the choice."""
        return tuple(getattr(self, name) for name in TASK)

    @property
    def parted(self) -> PartKey:
        """What the graph's partition depends on."""
        aggregated = self.savings == "all" or "aggregate_features_once" in self.savings
        growth = (self.nodes_factor, self.edges_factor)
        return PartKey(self.ranks, self.partition, self.layer if aggregated else "", *growth)

    @property
    def structure(self) -> tuple[Any, ...]:
        """What the programs depend on."""
        return (
            self.parted,
            self.layer,
            self.layers,
            self.hidden,
            self.savings,
            self.method,
            self.bits,
            self.keep,
            self.prefetch,
        )

    def hardware(self, catalogue: Path | None = None) -> Hardware:
        """As the flags of `halocast forecast` would say it."""
        switches = self.hosts_per_switch or None
        return Hardware(
            device=self.device or None,
            network=self.network or None,
            link=self.link or None,
            inside=self.inside or None,
            ranks_per_host=self.devices_per_host,
            hosts_per_switch=switches,
            oversubscription=self.oversubscription if switches else None,
            transport=self.transport or None,
            all_reduce=self.all_reduce or None,
            catalogue=catalogue,
        )

    def impossible(self, nodes: int) -> str:
        """Why nothing can be like this, "what: details"; empty where something can."""
        if self.keep not in ("all", "none") and (last := int(self.keep.split("+")[-1])) >= self.layers:
            return f"no such layer: keep {last} of layers 0 to {self.layers - 1}"
        if self.ranks > nodes * self.nodes_factor:
            return f"more ranks than nodes: {self.ranks} for {nodes * self.nodes_factor:.0f}"
        if self.devices_per_host and self.ranks % self.devices_per_host:
            return f"hosts are not full: ranks {self.ranks} on hosts of {self.devices_per_host}"
        if self.is_cluster and not (self.network or self.link):
            return "nothing joins the hosts: give a network"
        if (self.devices_per_host or 1) > 1 and not self.inside:
            return f"nothing joins the devices of a host: give inside, for {self.devices_per_host} of them"
        return ""


@dataclass(frozen=True)
class PartKey:
    """Which statistics of a partition a scenario needs."""

    ranks: int
    partition: str
    aggregated_for: str
    """The layer whose aggregation of sparse features is counted; empty where features are not aggregated once."""
    nodes_factor: float
    edges_factor: float


DEFAULTS: Mapping[str, Any] = {
    "devices_per_host": None, "device": "", "network": "", "link": "", "inside": "", "hosts_per_switch": 0,
    "oversubscription": 1.0, "transport": "", "all_reduce": "", "bits": 0, "keep": "none", "prefetch": 1, "nodes": 1.0,
    "price_per_hour": None,
}  # fmt: skip
"""Of inputs that a grid does not name."""


def resolve(combination: Mapping[str, Any]) -> Point:
    """A grid's combination as a point. What has no effect there is left out, so that it is the same point as without it."""
    given = {**DEFAULTS, **combination}
    hosts, per_host = given.get("hosts"), given["devices_per_host"]
    ranks = given["ranks"] if hosts is None else hosts * per_host
    has_switches = bool(given["hosts_per_switch"])
    return Point(
        ranks=ranks,
        devices_per_host=per_host,
        device=given["device"],
        network=given["network"],
        link=given["link"],
        inside=given["inside"] if per_host is None or per_host > 1 else "",
        hosts_per_switch=given["hosts_per_switch"],
        oversubscription=float(given["oversubscription"]) if has_switches else 1.0,
        transport=given["transport"],
        all_reduce=given["all_reduce"],
        method=given["method"],
        bits=given["bits"] if given["method"] == "adaqp" else 0,
        keep=given["keep"] if given["method"] == "sar" else "none",
        prefetch=given["prefetch"] if given["method"] == "sar" else 1,
        savings=given["savings"],
        partition=given["partition"],
        layer=given["layer"],
        layers=given["layers"],
        hidden=given["hidden"],
        nodes_factor=float(given["nodes"]),
        edges_factor=float(given.get("edges", given["nodes"])),  # the mean degree stays
        price_per_hour=given["price_per_hour"],
    )


def distinct(combinations: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Every point once, in the order in which it is first met."""
    return list(dict.fromkeys(resolve(each) for each in combinations))
