"""How far the recommended scenario's time and cost go up and down with each input: simulated again at 20 % less and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from halocast.simulator.whatif.change import MESSAGE_COSTS, Change
from halocast.simulator.whatif.evaluation import Evaluator
from halocast.simulator.whatif.folder import Swing
from halocast.simulator.whatif.points import Point

SWING = 0.2
"""Each way, as a share of the input."""
EPOCHS = "epochs"


@dataclass(frozen=True)
class Input:
    """One bar."""

    name: str
    label: str
    change: Callable[[float], Change]
    value: Callable[[Evaluator, Point, float], str]
    """The input times a factor, as text."""
    applies: Callable[[Point], bool]


def tornado(evaluator: Evaluator, point: Point) -> tuple[Swing, ...]:
    """One bar an input that the scenario has, the widest in seconds first (then in cost); some make no difference.

    Epochs come last: a training of 20 % more of them takes 20 % longer whatever the scenario is.
    """
    bars = [_bar(evaluator, point, each) for each in INPUTS if each.applies(point)]
    return tuple(
        sorted(bars, key=lambda bar: (bar.input == EPOCHS, -abs(bar.seconds_high - bar.seconds_low), -_cost_swing(bar)))
    )


def _bar(evaluator: Evaluator, point: Point, each: Input) -> Swing:
    less, more = (evaluator.evaluate(point, each.change(factor)) for factor in (1.0 - SWING, 1.0 + SWING))
    return Swing(
        input=each.name,
        label=each.label,
        low=each.value(evaluator, point, 1.0 - SWING),
        high=each.value(evaluator, point, 1.0 + SWING),
        seconds_low=less["training_seconds"],
        seconds_high=more["training_seconds"],
        cost_low=less["cost"],
        cost_high=more["cost"],
    )


def _cost_swing(bar: Swing) -> float:
    return 0.0 if bar.cost_low is None or bar.cost_high is None else abs(bar.cost_high - bar.cost_low)


def _always(point: Point) -> bool:
    return True


def _sends(point: Point) -> bool:
    return point.ranks > 1


def _is_priced(point: Point) -> bool:
    return point.price_per_hour is not None


def _relative(evaluator: Evaluator, point: Point, factor: float) -> str:
    return f"{100 * factor:.0f} %"


def _link_rate(evaluator: Evaluator, point: Point, factor: float) -> str:
    return f"{8 * evaluator.evaluate(point)['network_rate'] * factor / 1e9:.4g} Gbit/s"


def _latency(evaluator: Evaluator, point: Point, factor: float) -> str:
    scenario = evaluator.scenario(point)
    network = 0.0 if scenario.topology is None else scenario.topology.latency
    return f"{1e6 * factor * (evaluator.costs_of(point).network.latency + network):.4g} µs"


def _message_costs(evaluator: Evaluator, point: Point, factor: float) -> str:
    network = evaluator.costs_of(point).network
    return f"{1e6 * factor * sum(getattr(network, name) for name in MESSAGE_COSTS[:3]):.4g} µs a message"


def _gap(evaluator: Evaluator, point: Point, factor: float) -> str:
    return f"{1e6 * factor * evaluator.costs_of(point).host.gap_seconds:.4g} µs"


def _message_bytes(evaluator: Evaluator, point: Point, factor: float) -> str:
    return f"{factor * evaluator.evaluate(point)['exchange_bytes_per_epoch'] / 1e6:.4g} MB an epoch"


def _price(evaluator: Evaluator, point: Point, factor: float) -> str:
    price = point.price_per_hour
    return "none" if price is None else f"{factor * price:.4g} {evaluator.grid.prices.currency} an hour"


def _epochs(evaluator: Evaluator, point: Point, factor: float) -> str:
    return f"{factor * evaluator.grid.epochs:.4g} epochs"


INPUTS = (
    Input("compute_speed", "speed of the device", lambda by: Change(compute_speed=by), _relative, _always),
    Input("link_rate", "rate of the links", lambda by: Change(link_rate=by), _link_rate, _sends),
    Input("latency", "latency of messages", lambda by: Change(latency=by), _latency, _sends),
    Input("message_costs", "time a message takes the transport", lambda by: Change(message_costs=by), _message_costs, _sends),
    Input("message_bytes", "bytes of the halo exchange", lambda by: Change(message_bytes=by), _message_bytes, _sends),
    Input("gap", "time between operations", lambda by: Change(gap=by), _gap, _always),
    Input("price", "price of a device", lambda by: Change(price=by), _price, _is_priced),
    Input(EPOCHS, "epochs of a training", lambda by: Change(epochs=by), _epochs, _always),
)
