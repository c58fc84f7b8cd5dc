"""What is answered where prices, links or ranks are missing, and of scenarios that are as good as equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from halocast.simulator.whatif.answers import Questions
from halocast.simulator.whatif.evaluation import BINDS, Evaluator
from halocast.simulator.whatif.points import Point, distinct
from halocast.simulator.whatif.table import finished

NETWORKS = ["ethernet-10g", "ethernet-100g", "infiniband-ndr"]
PRICES = {"currency": "EUR", "A100": 2.0}
Times = Callable[[Point], float]


@pytest.fixture
def asked(evaluator: Callable[..., Evaluator]) -> Callable[..., Questions]:
    """Questions about a grid whose trainings take what `times` says; of `kept` scenarios only, where they are a sample."""

    def make(times: Times, *, kept: Callable[[Point], bool] = lambda point: True, **tables: Any) -> Questions:
        asker = evaluator(**tables)
        points = [point for point in distinct(asker.grid.points()) if kept(point)]
        rows = [row_of(asker, point, times(point)) | {"scenario": number} for number, point in enumerate(points)]
        return Questions(asker.grid, finished(rows, points).to_pandas(), points)

    return make


def row_of(asker: Evaluator, point: Point, seconds: float) -> dict[str, Any]:
    """A row whose epoch was told, not simulated; money and filters are the evaluator's."""
    hourly = asker.hourly(point)
    outputs = {
        "training_seconds": seconds,
        "training_low": 0.9 * seconds,
        "training_high": 1.1 * seconds,
        "epoch_seconds": seconds / asker.grid.epochs,
        "cost": None if hourly is None else hourly * seconds / 3600,
        "cost_low": None if hourly is None else 0.9 * hourly * seconds / 3600,
        "cost_high": None if hourly is None else 1.1 * hourly * seconds / 3600,
        "peak_high": None,
        "memory_bytes": 10**9,
        **dict.fromkeys(BINDS, seconds / len(BINDS)),
    }
    missed = asker._missed(outputs)
    return asker._inputs(point) | outputs | {"feasible": not missed, "reason": "; ".join(missed)}


def cluster(**others: Any) -> dict[str, Any]:
    return {"ranks": 4, "device": "A100", "network": "ethernet-10g", **others}


def said(questions: Questions) -> list[str]:
    return [each.answer for each in questions.answers(()).sentences]


def names(questions: Questions, scenarios: Sequence[int | None]) -> list[str]:
    return ["" if each is None else str(questions.table.loc[each, "name"]) for each in scenarios]


# -- prices for only some devices -------------------------------------------------------------------------------


def by_device(point: Point) -> float:
    return {"A100": 100.0, "H100": 50.0}[point.device]


def test_what_has_no_price_comes_after_what_has_one(asked: Callable[..., Questions]) -> None:
    questions = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES, filters={"deadline": "75s"})
    found = questions.answers(())
    assert questions.table["feasible"].tolist() == [False, True]
    assert found.recommended == 1  # the only one that meets the deadline
    assert found.sentences[0].scenarios == (1,)
    assert found.sentences[0].answer.startswith("4 x H100, ethernet-10g, full: 50.0 s")
    assert "cost unknown (no price is given)" in found.sentences[0].answer
    both = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES, filters={"deadline": "1h"})
    assert both.recommended() == both.cheapest() == 0
    assert both.fastest() == 1


def test_what_has_no_price_is_on_no_front_of_a_priced_grid(asked: Callable[..., Questions]) -> None:
    """Also where all that is feasible has none: what the front is against is one thing for the table."""
    questions = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES, filters={"deadline": "75s"})
    assert not questions.table["on_front"].any()
    usual = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES)
    assert usual.table["on_front"].tolist() == [True, False]
    free = asked(by_device, cluster=cluster(device=["A100", "H100"]))
    assert free.table["on_front"].tolist() == [False, True]


def test_a_budget_is_missed_by_what_has_no_price(asked: Callable[..., Questions]) -> None:
    questions = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES, filters={"budget": 100})
    assert questions.table["feasible"].tolist() == [True, False]
    assert questions.table["reason"].tolist() == ["", "has no price, so its cost is unknown"]
    assert questions.fastest() == questions.recommended() == 0
    assert said(questions)[-1] == "1 of 2. has no price, so its cost is unknown: 1."
    dear = asked(by_device, cluster=cluster(device=["A100", "H100"]), prices=PRICES, filters={"budget": 0.01})
    assert said(dear)[1].startswith("None. The cheapest is 4 x A100, ")
    without = asked(by_device, cluster=cluster(device="H100"), prices=PRICES, filters={"budget": 100})
    assert said(without)[1] == "None: nothing has a price, so no cost is known."
    assert not without.table["feasible"].any()


# -- as good as equal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "best"), [(0.0001, "ethernet-100g"), (0.0009, "ethernet-100g"), (0.002, "infiniband-ndr")])
@pytest.mark.parametrize("filters", [{}, {"deadline": "1h"}])
def test_a_better_link_must_earn_a_thousandth(
    gain: float, best: str, filters: dict[str, Any], asked: Callable[..., Questions]
) -> None:
    def times(point: Point) -> float:
        return {"ethernet-10g": 120.0, "ethernet-100g": 100.0, "infiniband-ndr": 100.0 * (1 - gain)}[point.network]

    for prices in ({"currency": "EUR", "A100": 2.0}, {}):
        questions = asked(times, cluster=cluster(network=NETWORKS[::-1]), prices=prices, filters=filters)
        found = (questions.recommended(), questions.cheapest(), questions.fastest())
        assert names(questions, found) == [f"4 x A100, {best}, full"] * 3


def test_of_equal_ones_over_the_same_link_that_of_fewer_ranks(asked: Callable[..., Questions]) -> None:
    free = {"currency": "EUR", "A100": 0.0}
    questions = asked(lambda point: 100.0 - point.ranks / 1000, cluster=cluster(ranks=[8, 4, 2]), prices=free)
    assert names(questions, [questions.fastest(), questions.recommended()]) == ["2 x A100, ethernet-10g, full"] * 2


def test_an_equal_time_at_another_price_is_no_tie(asked: Callable[..., Questions]) -> None:
    """The lesser link is not worth twice the cost."""
    questions = asked(
        lambda point: 100.0, cluster=cluster(ranks=[4, 8], network=NETWORKS[:2]), prices=PRICES, kept=lambda point: (
            (point.ranks, point.network) in ((8, "ethernet-10g"), (4, "ethernet-100g"))
        )
    )  # fmt: skip
    assert names(questions, [questions.fastest()]) == ["4 x A100, ethernet-100g, full"]
    ranked = asked(lambda point: 50.0 if point.network == "ethernet-100g" else 100.0, cluster=cluster(network=NETWORKS[:2]))
    assert names(ranked, [ranked.cheapest()]) == ["4 x A100, ethernet-100g, full"]  # as few ranks, half the time


# -- what there is to compare -----------------------------------------------------------------------------------


def test_nothing_to_compare_says_why(asked: Callable[..., Questions]) -> None:
    one = asked(lambda point: 100.0, cluster=cluster())
    assert said(one)[2:4] == [
        "The grid has one number of ranks: nothing to compare.",
        "The grid has one link only: nothing to compare.",
    ]
    drawn = asked(
        lambda point: 100.0 / point.ranks,
        cluster=cluster(ranks=[2, 4], network=NETWORKS[:2]),
        kept=lambda point: (point.ranks == 2) is (point.network == "ethernet-10g"),
    )
    assert said(drawn)[2:4] == [
        "No two scenarios with a forecast differ in their ranks alone: nothing to compare.",
        "No other scenario with a forecast differs in a link alone: nothing to compare.",
    ]


def test_what_is_left_of_an_epoch_is_not_called_waiting(asked: Callable[..., Questions]) -> None:
    questions = asked(lambda point: 100.0, cluster=cluster())
    questions.table.loc[0, "wait"] = 1e3
    assert said(questions)[4].startswith("Between operations: 9")
