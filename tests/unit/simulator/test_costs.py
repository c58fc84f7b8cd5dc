"""Prices: fitted, non-negative, monotone; marked where they are extrapolated."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halocast.errors import MisuseError
from halocast.simulator.calibrate import _Sample, fit_linear
from halocast.simulator.costs import (
    TERMS,
    CalibratedRange,
    Costs,
    EpochError,
    HostCosts,
    LinearCost,
    NetworkCosts,
    class_of,
    kind_of,
    terms,
)
from halocast.simulator.intervals import interval, log_bounds
from halocast.traces.operations import Aggregate, Part, Transform, Work


def aggregate(rows: int, nnz: int, dim: int = 8) -> Aggregate:
    return Aggregate(0, part=Part.CENTRAL, work=Work(rows=rows, nnz=nnz, dim_in=dim, dim_out=dim, flops=2 * nnz * dim))


def model(**coefficients: float) -> LinearCost:
    low, high = dict.fromkeys(TERMS, 0.0), dict.fromkeys(TERMS, 1e6)
    return LinearCost(coefficients=coefficients, residual=0.1, noise=0.05, samples=9, low=low, high=high)


def costs(**operations: LinearCost) -> Costs:
    return Costs(
        machine="a machine", device="cpu", memory_bytes=1, host=HostCosts(cores=2), network=NetworkCosts(), memory=None,
        operations=operations, errors=(), noise=0.0, noise_at_speed=0.0,
        calibrated=CalibratedRange(graphs={"f": "g"}, ranks=(2,), widths=(4,), links=(0.0,), methods=("full",), threads=(1,)),
        runs=(),
    )  # fmt: skip


def test_a_linear_law_is_found_and_its_residual_is_nothing():
    truth = {"constant": 2e-5, "edge_values": 3e-9}
    samples = []
    for rows, nnz in ((10, 1_000), (20, 50_000), (30, 100_000), (40, 400_000), (400, 40_000)):
        values = terms(aggregate(rows, nnz).work)
        samples.append(_Sample(values, sum(truth.get(name, 0.0) * value for name, value in zip(TERMS, values, strict=True))))
    fitted = fit_linear(samples)
    assert fitted.residual < 1e-6
    values = dict(zip(TERMS, terms(aggregate(25, 70_000).work), strict=True))
    assert fitted.seconds(values) == pytest.approx(truth["constant"] + truth["edge_values"] * values["edge_values"], rel=1e-6)


def test_repeats_of_one_work_are_noise_and_not_residual():
    values = terms(aggregate(10, 10_000).work)
    fitted = fit_linear([_Sample(values, 1e-3), _Sample(values, 1.2e-3)])
    assert fitted.samples == 1
    assert fitted.residual == pytest.approx(0.0, abs=1e-9)
    assert fitted.noise == pytest.approx(np.sqrt(np.log(1 / 1.1) ** 2 + np.log(1.2 / 1.1) ** 2))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**4), st.integers(1, 10**6), st.floats(1e-4, 1e-1)), min_size=1, max_size=12),
    st.integers(1, 10**5), st.integers(1, 10**7), st.integers(0, 10**4), st.integers(0, 10**6),
)  # fmt: skip
def test_more_work_never_costs_less(samples, rows, nnz, more_rows, more_nnz):
    fitted = fit_linear([_Sample(terms(aggregate(r, n).work), seconds) for r, n, seconds in samples])
    little, much = (
        fitted.seconds(dict(zip(TERMS, terms(work.work), strict=True)))
        for work in (aggregate(rows, nnz), aggregate(rows + more_rows, nnz + more_nnz))
    )
    assert 0.0 <= little <= much * (1 + 1e-12)


def test_the_most_particular_model_prices_an_operation():
    operation = aggregate(10, 1000)
    name = class_of(operation)
    known = costs(
        **{
            f"graph/8/{name}": model(constant=0.5), f"graph/{name}": model(constant=1.0), name: model(constant=2.0),
            kind_of(operation): model(constant=3.0),
        }
    )  # fmt: skip
    assert known.price(operation, "graph", 8).seconds == 0.5
    assert known.price(operation, "graph", 2).seconds == 1.0
    assert known.price(operation, "other", 8).seconds == 2.0
    assert not known.price(operation, "graph", 8).extrapolated
    other = known.price(aggregate(10, 1000, dim=16), "graph", 8)
    assert other.seconds == 3.0
    assert "dims were not calibrated" in other.extrapolated


def test_work_beyond_the_range_is_marked():
    operation = aggregate(10, 10**9)
    assert (
        "outside the calibrated range"
        in costs(**{class_of(operation): model(constant=1.0)}).price(operation, "x", 2).extrapolated
    )


def test_work_that_another_number_of_ranks_has_seen_is_not_extrapolated():
    operation = aggregate(10, 1000)
    name = class_of(operation)
    narrow = model(constant=1.0).model_copy(update={"high": dict.fromkeys(TERMS, 1.0)})
    price = costs(**{f"graph/2/{name}": narrow, f"graph/{name}": model(constant=5.0)}).price(operation, "graph", 2)
    assert price.seconds == 1.0
    assert not price.extrapolated


def test_an_operation_that_no_run_did_is_refused():
    with pytest.raises(MisuseError, match="no calibrated cost for Transform"):
        costs(**{class_of(aggregate(1, 1)): model(constant=1.0)}).price(Transform(work=Work(rows=1)), "x", 2)


def test_costs_survive_the_file(tmp_path):
    known = costs(**{class_of(aggregate(1, 1)): model(edge_values=1e-9)})
    known.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == known


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a cost file"),
        ("[]", "costs of version None"),
        ('{"version": 99}', "costs of version 99"),
        ('{"version": 2}', "Field required"),
    ],
)
def test_a_bad_cost_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(MisuseError, match=message) as error:
        Costs.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_cost_file_says_how_to_make_one(tmp_path):
    with pytest.raises(MisuseError, match="halocast calibrate"):
        Costs.load(tmp_path / "none.json")


def test_the_file_is_readable_json(tmp_path):
    costs().save(tmp_path / "costs.json")
    assert json.loads((tmp_path / "costs.json").read_text())["host"]["cores"] == 2


def errors(values, oversubscribed=False):
    return [EpochError(oversubscribed=oversubscribed, log_ratio=float(value), at_speed=0.5 * float(value)) for value in values]


def test_an_interval_holds_nine_in_ten_of_new_errors():
    random = np.random.default_rng(0)
    held = []
    for _ in range(200):
        known, new = random.normal(0.02, 0.05, 40), random.normal(0.02, 0.05, 20)
        bounds = interval(1.0, errors(known), 0.0, oversubscribed=False)
        held += [bounds.holds(float(np.exp(each))) for each in new]
    assert 0.87 <= np.mean(held) <= 0.95


def test_errors_of_the_other_kind_are_left_out_where_there_are_enough():
    mixed = errors(np.linspace(-0.01, 0.01, 20)) + errors(np.linspace(-0.5, 0.5, 20), oversubscribed=True)
    assert log_bounds(mixed, 0.0, oversubscribed=False)[1] < 0.02
    assert log_bounds(mixed, 0.0, oversubscribed=True)[1] > 0.4


def test_extrapolation_widens_an_interval_and_few_errors_too():
    known = errors(np.linspace(-0.05, 0.05, 20))
    narrow, wide = (interval(1.0, known, 0.0, oversubscribed=False, extrapolated=flag) for flag in (False, True))
    assert wide.low < narrow.low < 1.0 < narrow.high < wide.high
    assert interval(1.0, known[:1], 0.02, oversubscribed=False).high > 1.05
