"""One input of a scenario, a little more or less: what sensitivity is measured by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario

MESSAGE_COSTS = ("send_seconds", "receive_seconds", "post_seconds", "wake_seconds", "reduce_step_seconds")
"""What a message costs whatever its length, and each step of an all-reduce."""


@dataclass(frozen=True)
class Change:
    """Factors on inputs; 1 leaves them as they are."""

    compute_speed: float = 1.0
    """Of the device; pauses between operations stay."""
    link_rate: float = 1.0
    """Of every port, link and trunk."""
    latency: float = 1.0
    """Of a message, the transport's and the network's."""
    message_costs: float = 1.0
    """Time that the transport takes for a message, whatever its length."""
    message_bytes: float = 1.0
    """Of the halo exchange; computing stays."""
    gap: float = 1.0
    """Between two operations."""
    price: float = 1.0
    epochs: float = 1.0

    @property
    def without_money(self) -> Change:
        """What an epoch's time depends on."""
        return replace(self, price=1.0, epochs=1.0)

    def of_costs(self, costs: Costs) -> Costs:
        """Costs of messages and pauses, changed; those of operations are changed by speed."""
        if self.latency == self.message_costs == self.gap == self.link_rate == 1.0:
            return costs
        network = costs.network
        factors = {"latency": self.latency, "unshaped_rate": self.link_rate, **dict.fromkeys(MESSAGE_COSTS, self.message_costs)}
        return costs.model_copy(
            update={
                "network": network.model_copy(update={name: getattr(network, name) * by for name, by in factors.items()}),
                "host": costs.host.model_copy(update={"gap_seconds": costs.host.gap_seconds * self.gap}),
            }
        )

    def of_network(self, scenario: Scenario) -> Scenario:
        """The scenario with its links changed."""
        topology = scenario.topology
        if topology is not None:
            topology = replace(
                topology,
                capacity=topology.capacity * self.link_rate,
                latency=topology.latency * self.latency,
                latency_inside=topology.latency_inside * self.latency,
            )
        return replace(scenario, topology=topology, link=scenario.link * self.link_rate)


UNCHANGED = Change()
