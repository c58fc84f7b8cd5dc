"""The search over partitions, savings, methods and widths, on costs calibrated from the repository's samples."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from halocast.cli.plan import considered
from halocast.cli.planning import correct_by_trial, describe, make_plan, partitions_of, prepare, save
from halocast.errors import MisuseError
from halocast.runtime.config import resolve
from halocast.runtime.planned import follow
from halocast.simulator.placement import Hardware
from halocast.simulator.planner.risk import RiskCurve
from halocast.simulator.planner.rowmodel import RowModel
from halocast.simulator.planner.search import Goal, Search, pareto_front
from halocast.traces.plan import PARTITION, prices_name, read_plan, widths_name
from halocast.traces.workload import ExactSavings


@pytest.fixture(scope="module")
def config(samples):
    """A recorded run's own graph and model, behind slow links."""
    document = dict(samples[0].trace.manifest.config)
    document.update(ranks=4, hosts="shaped:100mbit")
    document["method"] = {"name": "full"}
    return resolve(_filled(document), "test")


def _filled(document):
    return {key: _filled(value) if isinstance(value, dict) else value for key, value in document.items() if value is not None}


@pytest.fixture(scope="module")
def asked(config, calibration):
    costs, asked = prepare(config, calibration.costs, RowModel(), Hardware())
    return costs, asked, partitions_of(asked, tried=2, report=lambda text: None)


def explored(asked, goal, **changes):
    costs, _, partitions = asked
    search = Search(costs, goal, RiskCurve(), **changes)
    search.explore(partitions)
    return search


@pytest.fixture(scope="module")
def search(asked):
    return explored(asked, Goal())


def test_the_answer_is_on_the_front_and_beats_plain_training(search):
    answer = search.answer()
    assert answer.chosen.seconds < answer.baseline.seconds
    assert answer.baseline.scenario.workload.exact == ExactSavings.none()
    assert answer.chosen.variance <= search.variance_limit
    assert answer.runner_up is not answer.chosen
    assert answer.chosen.label in answer.why


def test_no_point_of_the_front_is_beaten(search):
    answer = search.answer()
    front = [each.measures(None) for each in answer.front]
    for mine in front:
        assert not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in (each.measures(None) for each in answer.options)
        )
    for option in answer.options:
        mine = option.measures(None)
        assert any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in front)


def test_an_option_that_is_worse_in_everything_is_on_no_front(search):
    best = search.answer().chosen
    worse = replace(best, variance=best.variance + 1.0)
    assert pareto_front([best, worse]) == [best]


def test_a_time_budget_gives_the_least_variance_in_it(search, asked):
    fastest = min(each.seconds for each in search.options)
    slowest = max(each.seconds for each in search.options if each.widths is not None)
    budget = (fastest + slowest) / 2
    found = explored(asked, Goal(seconds=budget)).answer()
    assert found.chosen.seconds <= budget
    assert all(each.variance >= found.chosen.variance for each in found.options if each.seconds <= budget)
    tighter = explored(asked, Goal(seconds=fastest * 1.02)).answer()
    assert tighter.chosen.variance >= found.chosen.variance


def test_a_budget_that_nobody_can_meet_names_the_nearest(asked):
    with pytest.raises(MisuseError, match=r"no plan takes 0\.001 ms.*the fastest takes .* ms .*bound by"):
        explored(asked, Goal(seconds=1e-6)).answer()
    with pytest.raises(MisuseError, match="no candidate fits in 1 MB a rank: the one that needs least"):
        explored(asked, Goal(memory_bytes=1e6)).answer()


def test_a_byte_budget_is_kept(asked, search):
    quantised = [each.forecast.exchange_bytes_per_epoch for each in search.options if each.widths is not None]
    budget = float(np.mean([min(quantised), max(quantised)]))
    chosen = explored(asked, Goal(exchange_bytes=budget)).answer().chosen
    assert chosen.forecast.exchange_bytes_per_epoch <= budget
    with pytest.raises(MisuseError, match="too few"):
        explored(asked, Goal(exchange_bytes=10.0)).answer()


def test_less_risk_means_less_variance(asked):
    careful = explored(asked, Goal(variance=1e-4)).answer().chosen
    bold = explored(asked, Goal(variance=1.0)).answer().chosen
    assert careful.variance <= 1e-4
    assert bold.seconds <= careful.seconds


def test_strict_uses_calibrated_widths_only(asked):
    costs, _, _ = asked
    strict = explored(asked, Goal(strict=True))
    assert not any(each.forecast.extrapolated for each in strict.answer().options)
    assert any(each.forecast.extrapolated for each in strict.options)  # no rows were recorded: what is rounded is assumed
    search = Search(costs, Goal(strict=True))
    assert set(search.allowed) <= set(costs.calibrated.widths)


def test_plain_training_alone_may_be_asked_for(asked):
    answer = explored(asked, Goal(), methods=("full",)).answer()
    assert answer.chosen.widths is None
    assert answer.chosen.variance == 0.0


def test_a_tried_partition_stays_unless_another_is_clearly_better(asked, search):
    _, _, partitions = asked
    first = explored(asked, Goal(), methods=("full",))
    exact = first.calibrated_savings(partitions[0])
    seconds = {each.name: first.plain(each, exact).seconds for each in partitions}
    for partition in partitions:
        kept = explored(asked, Goal(), methods=("full",), incumbent=partition.name).answer().chosen.partition
        if seconds[partition.name] <= 1.02 * min(seconds.values()):
            assert kept is partition
        else:
            assert seconds[kept.name] <= seconds[partition.name]


def test_the_plan_says_what_was_chosen(search, config, tmp_path):
    answer = search.answer()
    plan, arrays = describe(answer, config, Goal(), None)
    assert plan.forecast.epoch_seconds == answer.chosen.seconds
    assert plan.world_size == 4
    assert np.bincount(arrays[PARTITION]).size == 4
    for exchange in plan.exchanges:
        widths = [arrays[widths_name(exchange.layer, exchange.direction, rank)] for rank in range(4)]
        assert sum(len(each) for each in widths) == sum(exchange.histogram.values())
        if plan.reassign_every:
            prices = arrays[prices_name(exchange.layer, exchange.direction)]
            assert prices.shape == (4, 4)
            assert (prices > 0).all()


@pytest.fixture(scope="module")
def planned(config, calibration):
    return make_plan(config, calibration.costs, RowModel(), Goal(), partitions=1, refined=False)


def trial_of(planned, times, **changes):
    """A run of the plan that took so many times as long as forecast."""
    chosen = planned.answer.chosen
    configuration = SimpleNamespace(method=changes.get("method", chosen.scenario.method))
    return SimpleNamespace(
        configuration=configuration,
        workload=chosen.scenario.workload,
        bits=chosen.scenario.bits,
        seconds=times * chosen.seconds,
    )


def test_a_forecast_is_corrected_by_how_its_trial_came_out(planned):
    before = planned.plan.forecast
    corrected = correct_by_trial(planned, trial_of(planned, 1.44)).plan
    assert corrected.forecast.epoch_seconds == pytest.approx(1.2 * before.epoch_seconds)  # half of it, in logarithms
    assert corrected.forecast.low < corrected.forecast.epoch_seconds < corrected.forecast.high
    assert any("× 1.200" in note for note in corrected.notes)
    assert correct_by_trial(planned, trial_of(planned, 1.0)).plan.notes == planned.plan.notes


def test_adaqp_s_rule_is_among_the_candidates_and_prices_do_better(planned):
    answer = planned.answer
    (rule,) = [each for each in answer.options if "AdaQP's rule" in each.label]
    assert {int(bits) for widths in rule.widths.widths.values() for bits in np.unique(widths)} <= {2, 4, 8}
    as_fast = [each.variance for each in answer.options if each.seconds <= rule.seconds * 1.02]
    assert min(as_fast) <= rule.variance


def test_a_trial_of_something_else_corrects_nothing(planned):
    assert correct_by_trial(planned, trial_of(planned, 2.0, method="another")) is planned


def test_several_numbers_of_ranks_are_compared(config, calibration, tmp_path):
    planned = make_plan(
        config, calibration.costs, RowModel(), Goal(cost_per_hour=1.0), ranks=(1, 2, 4), partitions=2, risk=RiskCurve()
    )
    assert {each.scenario.ranks for each in planned.answer.options} == {1, 2, 4}
    assert planned.answer.baseline.scenario.ranks == planned.plan.world_size
    saved = save(planned, tmp_path / "plan")
    assert read_plan(tmp_path / "plan") == saved.plan


# -- where memory binds -----------------------------------------------------------------------------------------


def test_sequential_aggregation_is_offered_where_plain_training_does_not_fit(asked):
    free = explored(asked, Goal(), methods=("full", "sar"))
    plain, least = (
        min(each.highest_peak for each in free.options if each.scenario.method == method) for method in ("full", "sar")
    )
    assert least < plain
    bound = explored(asked, Goal(memory_bytes=(plain + least) / 2), methods=("full", "sar"))
    answer = bound.answer()
    assert answer.chosen.scenario.method == "sar"
    assert answer.chosen.highest_peak <= bound.goal.memory_bytes
    assert any(each.scenario.method == "sar" for each in answer.front)
    roomy = explored(asked, Goal(memory_bytes=1e12), methods=("full", "sar"))
    assert {each.scenario.method for each in roomy.options} == {"full"}


def test_a_plan_of_sequential_aggregation_says_what_it_keeps(asked, config):
    search = explored(asked, Goal(), methods=("full", "sar"))
    sequential = next(each for each in search.options if each.scenario.method == "sar")
    workload = replace(sequential.scenario.workload, prefetch=0, kept_layers=(1,))
    chosen = replace(sequential, scenario=replace(sequential.scenario, workload=workload))
    plan, _ = describe(replace(search.answer(), chosen=chosen), config, Goal(), None)
    followed = resolve(follow({}, plan, "plan"), "test")
    assert (followed.method.name, followed.method.prefetch, followed.method.keep) == ("sar", 0, (1,))


def test_methods_that_are_considered():
    assert considered(None, limited=False) == ("full", "adaqp")
    assert considered(None, limited=True) == ("full", "adaqp", "sar")
    assert considered("sar", limited=False) == ("full", "sar")
    assert considered("full", limited=True) == ("full",)
