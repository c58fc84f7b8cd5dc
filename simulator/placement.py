"""Other hardware: costs moved to a device of the catalogue, ranks placed on the hosts of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from halocast.errors import MisuseError
from halocast.simulator.catalogue import Catalogue, build_topology, load_catalogue
from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario
from halocast.simulator.network import Topology
from halocast.simulator.observations import parse_link
from halocast.simulator.transfer import move_costs


@dataclass(frozen=True)
class Hardware:
    """What was asked for, as named on the command line; None where it was not."""

    device: str | None = None
    network: str | None = None
    """A name in the catalogue, or a rate."""
    link: str | None = None
    """A rate; alone it says nothing of hosts."""
    inside: str | None = None
    ranks_per_host: int | None = None
    hosts_per_switch: int | None = None
    oversubscription: float | None = None
    transport: str | None = None
    all_reduce: str | None = None
    catalogue: Path | None = None
    """The user's own TOML file, or a folder of them."""
    links: tuple[str, ...] = ()
    """Rates of ranks' own ports, in place of `link`."""

    @property
    def is_cluster(self) -> bool:
        """Whether ranks are on hosts of their own, and not all on the calibrated machine behind the testbed's links."""
        shape = (self.device, self.network, self.inside, self.ranks_per_host, self.hosts_per_switch, self.oversubscription)
        return any(each is not None for each in shape)

    @property
    def between(self) -> str:
        """What joins hosts, by name or rate."""
        return self.network or self.link or ", ".join(self.links)

    @property
    def title(self) -> str:
        """One line for people."""
        per_host = self.ranks_per_host or 1
        parts = [
            f"{self.device or 'hosts as calibrated'}, {per_host} a host",
            self.between,
        ]
        if self.inside is not None:
            parts.append(f"{self.inside} inside")
        if self.hosts_per_switch is not None:
            parts.append(f"{self.hosts_per_switch} hosts a switch, oversubscribed {self.oversubscription or 1:g} : 1")
        if self.transport is not None:
            parts.append(self.transport)
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Placement:
    """Where the ranks are, and what that takes for granted."""

    topology: Topology | None
    ranks_per_host: int | None
    assumed: tuple[str, ...]

    def of(self, scenario: Scenario) -> Scenario:
        """The scenario, placed."""
        if self.topology is not None:
            scenario = replace(scenario, topology=self.topology, ranks_per_host=self.ranks_per_host)
        return replace(scenario, assumed=(*self.assumed, *scenario.assumed))


def on_hardware(costs: Costs, ranks: int, asked: Hardware) -> tuple[Costs, Placement]:
    """The costs on other hardware and where `ranks` are on it.

    Raises MisuseError for unknown names, and settings that lack something or contradict each other.
    """
    catalogue = load_catalogue(asked.catalogue)
    moved, assumed = costs_on(costs, asked, catalogue)
    return moved, place(catalogue, ranks, asked, assumed)


def costs_on(costs: Costs, asked: Hardware, catalogue: Catalogue) -> tuple[Costs, tuple[str, ...]]:
    """The costs of operations and messages there, and what is taken for granted about them.

    Raises MisuseError for unknown names, and for costs that cannot be moved.
    """
    assumed = list(catalogue.notes)
    if asked.device is not None:
        before = len(costs.notes)
        costs = move_costs(costs, catalogue.device(asked.device))
        assumed += [costs.moved, *costs.notes[before:]]
        assumed.append(
            f"the {1e6 * costs.host.gap_seconds:.0f} µs between operations, and memory, are those of {costs.machine}"
        )
    if asked.transport is not None:
        costs = costs.model_copy(update={"network": catalogue.transport(asked.transport).network_costs()})
        assumed.append(f"what {asked.transport}'s messages cost is the catalogue's: none was calibrated")
    elif asked.device is not None:
        assumed.append(f"messages cost what they did on {costs.machine}; --transport nccl takes the catalogue's figures")
    if asked.all_reduce is not None and asked.all_reduce != costs.network.all_reduce:
        costs = costs.model_copy(update={"network": costs.network.model_copy(update={"all_reduce": asked.all_reduce})})
        assumed.append(f"all-reduces in a {asked.all_reduce} were not calibrated")
    return costs, tuple(assumed)


def place(catalogue: Catalogue, ranks: int, asked: Hardware, assumed: tuple[str, ...] = ()) -> Placement:
    """Where `ranks` are; `assumed` goes first. Raises MisuseError for unknown names, and settings that lack something."""
    if not asked.is_cluster:
        return Placement(None, None, assumed)
    # hosts' ports are as fast as the fastest of ranks' own: those are the limit
    joined = asked.network or asked.link or max(asked.links, key=parse_link, default=None)
    if joined is None:
        raise MisuseError("hosts of their own need what joins them: --network ethernet-100g, or --link 25gbit")
    topology = build_topology(
        catalogue,
        ranks,
        joined,
        ranks_per_host=1 if asked.ranks_per_host is None else asked.ranks_per_host,
        inside=asked.inside,
        hosts_per_switch=asked.hosts_per_switch or 0,
        oversubscription=1.0 if asked.oversubscription is None else asked.oversubscription,
    )
    per_host = 0 if asked.device is not None else asked.ranks_per_host or 1
    return Placement(topology, per_host, (*assumed, f"network {asked.between} was not calibrated"))


def threads_of(costs: Costs, ranks: int, asked: Hardware, wanted: int = 0) -> int:
    """Threads a rank has: as calibrated on a device of its own, else those `wanted`, or its host's cores shared out."""
    if asked.device is not None:
        return costs.calibrated.threads[0]
    sharing = asked.ranks_per_host or 1 if asked.is_cluster else ranks
    return wanted or max(1, costs.host.cores // sharing)
