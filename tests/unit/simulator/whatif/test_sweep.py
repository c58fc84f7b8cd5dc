"""How a sweep is cut into tasks, and what is said of who it runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from halocast.errors import MisuseError
from halocast.simulator.whatif.evaluation import Evaluator
from halocast.simulator.whatif.points import Point, distinct
from halocast.simulator.whatif.sweep import TASK_SECONDS, check_backend, plan_tasks, seconds_of_epoch, seconds_of_programs


@pytest.fixture(scope="module")
def points(evaluator: Callable[..., Evaluator]) -> list[Point]:
    grid = evaluator(
        cluster={"ranks": "2..64 x2", "device": ["A100", "H100"], "network": [f"{rate}gbit" for rate in range(1, 41)]},
        training={"method": ["full", "adaqp"], "bits": [2, 4]},
        prices={"currency": "EUR", "default": [1.0, 2.0]},
    ).grid
    return distinct(grid.points())


def test_every_scenario_is_in_one_task(points: list[Point]) -> None:
    tasks = plan_tasks(enumerate(points), jobs=2)
    assert Counter(number for task in tasks for number, _ in task.scenarios) == Counter(range(len(points)))
    assert all(points[number] == point for task in tasks for number, point in task.scenarios)
    assert len(tasks) >= 8
    weights = [task.weight for task in tasks]
    assert weights == sorted(weights, reverse=True)


def test_what_is_shared_is_made_in_few_tasks(points: list[Point]) -> None:
    tasks = plan_tasks(enumerate(points), jobs=2)
    for structure in {point.structure for point in points}:
        using = [task for task in tasks if any(point.structure == structure for _, point in task.scenarios)]
        own = {point for point in points if point.structure == structure}
        epochs = sum(seconds_of_epoch(point) for point in own) / 2  # two prices an epoch
        assert len(using) <= 2 + 2 * epochs / TASK_SECONDS
    where = {point: place for place, task in enumerate(tasks) for _, point in task.scenarios}
    for point in points:
        cheap = next(each for each in points if each.structure == point.structure and each == _at(point, 1.0))
        assert where[cheap] == where[_at(point, 2.0)]


def test_few_scenarios_are_shared_out_all_the_same(points: list[Point]) -> None:
    large = [(number, point) for number, point in enumerate(points) if point.ranks == 64 and point.method == "full"]
    assert seconds_of_programs(large[0][1]) > 1.0
    assert len(plan_tasks(large, jobs=4)) >= 2
    assert plan_tasks([], jobs=2) == []


def _at(point: Point, price: float) -> Point:
    return Point(**{**{name: getattr(point, name) for name in Point.__dataclass_fields__}, "price_per_hour": price})


def test_what_is_not_installed_says_how_to_get_it() -> None:
    if find_spec("ray"):
        pytest.skip("ray is installed here")
    with pytest.raises(MisuseError, match=r"--backend ray needs ray: pip install 'halocast\[ray\]'"):
        check_backend("ray", None)
