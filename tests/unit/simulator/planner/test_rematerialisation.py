"""Which layers keep their remote blocks: the choice, and what it is made from."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simulator.parts import all_to_all, with_model, workload

from halocast.errors import MisuseError
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.planner.rematerialisation import (
    MOST_CHOOSING,
    Candidate,
    Outcome,
    assess_all,
    candidates,
    choose,
    forecasting,
    foreseeing,
    kept_choices,
)
from halocast.traces.workload import ExactSavings

PLAIN, KEPT, HALF, FETCHED = (
    Candidate("full"), Candidate("sar", 1, (1, 2)), Candidate("sar", 1, (1,)), Candidate("sar"),
)  # fmt: skip


def load(layer="gat", *, rows=2000, exact=None, **model):
    return with_model(workload(all_to_all(4, rows), own=400, exact=exact or ExactSavings.none()), layer, **model)


def views(*arguments, **options):
    made = load(*arguments, **options)
    return [made.view(rank) for rank in range(made.world_size)]


def test_only_layers_that_would_fetch_again_have_a_choice():
    assert kept_choices(views("gat")[0]) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    static = replace(ExactSavings.none(), keep_halo_features=True)  # layer 0 exchanges nothing
    assert kept_choices(views("gat", exact=static)[0]) == [(), (1,), (2,), (1, 2)]
    for layer in ("gcn", "sage", "gin"):
        assert kept_choices(views(layer)[0]) == [()]


def test_of_many_layers_those_with_the_smallest_blocks_keep_theirs_first():
    view = views("sage-max", layers=MOST_CHOOSING + 2, hidden=32)[0]  # messages are input rows: 16 wide in layer 0
    kept = kept_choices(view)
    assert [len(each) for each in kept] == list(range(MOST_CHOOSING + 3))
    assert kept[1] == (0,)
    assert all(set(fewer) < set(more) for fewer, more in pairwise(kept))


def test_one_rank_has_nothing_to_keep():
    single = with_model(workload(all_to_all(1, 0)), "gat")
    assert candidates(single.view(0)) == [Candidate("full"), Candidate("sar", 1), Candidate("sar", 0)]


def test_without_costs_memory_and_bytes_are_those_of_the_programs():
    assess = foreseeing(views(), allowance=0.0)
    plain, kept, fetched = (assess(each) for each in (PLAIN, Candidate("sar", 1, (0, 1, 2)), FETCHED))
    assert fetched.exchange_bytes == 1.5 * kept.exchange_bytes  # three crossings for two
    assert kept.exchange_bytes == plain.exchange_bytes
    assert fetched.peak < 0.7 * kept.peak < kept.peak < plain.peak
    assert [each + 5e6 for each in fetched.peak_bytes] == list(foreseeing(views(), allowance=5e6)(FETCHED).peak_bytes)


def test_the_fastest_that_fits_is_chosen():
    outcomes = [
        Outcome(PLAIN, (90.0, 100.0), 10), Outcome(KEPT, (80.0, 70.0), 10), Outcome(HALF, (60.0, 50.0), 12),
        Outcome(FETCHED, (40.0, 30.0), 15),
    ]  # fmt: skip
    for limit, expected in ((100, PLAIN), (99, KEPT), (79, HALF), (59, FETCHED), (40, FETCHED)):
        assert choose(outcomes, limit).candidate == expected
    with pytest.raises(
        MisuseError, match=r"no way of training fits in 30 MB a rank.*may need 40 MB \(sar nothing kept 1 ahead\)"
    ):
        choose([replace(each, peak_bytes=tuple(1e6 * peak for peak in each.peak_bytes)) for each in outcomes], 30e6)


def test_seconds_go_before_bytes_where_they_are_known():
    outcomes = [Outcome(KEPT, (70.0,), 10, seconds=2.0), Outcome(FETCHED, (40.0,), 15, seconds=1.0)]
    assert choose(outcomes, 100).candidate == FETCHED


def test_of_as_many_bytes_rounds_that_hide_behind_another_are_faster():
    hidden, exposed = Outcome(Candidate("sar", 1), (50.0,), 10), Outcome(Candidate("sar", 0), (40.0,), 10)
    assert choose([exposed, hidden], 60) == hidden
    assert choose([exposed, hidden], 45) == exposed


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["gat", "gatv2", "sage-max", "gin", "sage"]), st.integers(50, 3000))
def test_a_larger_limit_is_never_slower(layer, rows):
    made = views(layer, rows=rows)
    outcomes = assess_all(made[0], foreseeing(made, allowance=0.0))
    limits = sorted({each.peak for each in outcomes})
    chosen = [choose(outcomes, limit) for limit in limits]
    assert all(more.slowness <= less.slowness for less, more in pairwise(chosen))
    assert all(each.peak <= limit for each, limit in zip(chosen, limits, strict=True))
    assert len({each.candidate for each in chosen}) > 1  # or nothing was tested


def test_with_costs_an_outcome_is_its_forecast(samples, calibration):
    run = samples[0]
    scenario = Scenario("a sample", run.configuration.fingerprint, run.workload, "full", (None,) * 2, 25e6)
    outcome = forecasting(calibration.costs, scenario)(Candidate("sar", 0))
    asked = replace(scenario, method="sar", workload=replace(run.workload, prefetch=0))
    answer, _ = forecast(calibration.costs, asked)
    assert outcome.seconds == answer.epoch_seconds.value
    assert outcome.exchange_bytes == answer.exchange_bytes_per_epoch
    assert outcome.peak == pytest.approx(max(answer.peak_bytes) * answer.peak_interval[1])
