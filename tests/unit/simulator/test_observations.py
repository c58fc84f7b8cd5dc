"""Recorded runs against the programs they ran; what does not belong together is refused in one line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.simulator.conftest import SAMPLES

from halocast.errors import MisuseError
from halocast.simulator.calibrate import calibrate, fit_speed, work_of
from halocast.simulator.observations import find_runs, observe, observe_all, parse_link, structure, traced_structure


@pytest.fixture
def copied(samples, tmp_path):
    """Two sample runs that may be damaged."""
    folders = []
    for number, observation in enumerate(samples[:2]):
        folders.append(tmp_path / str(number))
        shutil.copytree(observation.folder, folders[-1])
    return folders


def edit_manifest(folder, change):
    path = folder / "trace" / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_every_rank_of_every_sample_executed_its_program_exactly(samples):
    assert {each.configuration.ranks for each in samples} == {2, 4}
    assert {each.configuration.bits for each in samples} == {"", "8", "4", "2"}
    for observation in samples:
        for rank, operations in enumerate(observation.operations):
            for epoch in observation.epochs:
                assert traced_structure(observation.spans, rank, epoch) == structure(operations)


def test_the_simulated_bytes_are_the_traced_ones(samples, calibration):
    for observation in samples:
        spans = observation.spans
        traced = spans[(spans["op"] == "Exchange") & (spans["epoch"] == observation.epochs[-1])]["bytes_out"].sum()
        work = work_of(observation, calibration.costs.operations)
        assert traced == sum(
            each.work.bytes_out for rank in work for each in rank.operations if type(each).__name__ == "Exchange"
        )


def test_repeats_are_one_configuration(samples):
    assert len({each.configuration for each in samples}) < len(samples)


def test_runs_are_found_below_a_folder():
    assert find_runs([SAMPLES]) == sorted(find_runs([SAMPLES]))
    with pytest.raises(MisuseError, match="no such folder"):
        find_runs([SAMPLES / "none"])


def test_a_folder_without_runs_says_so(tmp_path):
    with pytest.raises(MisuseError, match="no run folder in it"):
        find_runs([tmp_path])
    with pytest.raises(MisuseError, match="no run folders given"):
        observe_all([])


def test_runs_of_two_machines_are_refused(copied):
    edit_manifest(copied[1], lambda document: document["machine"].update(cores=96))
    with pytest.raises(MisuseError, match=r"with 96 cores.*calibrate each machine by itself"):
        observe_all(copied)


def test_runs_of_two_devices_are_refused(copied):
    edit_manifest(copied[1], lambda document: document["machine"].update(devices=["cuda:0 NVIDIA H200"] * 4))
    with pytest.raises(MisuseError, match=r"NVIDIA H200.*calibrate each device by itself"):
        observe_all(copied)


def test_two_graphs_of_one_name_are_refused(copied):
    edit_manifest(copied[1], lambda document: document["graph"].update(fingerprint="0" * 64))
    with pytest.raises(MisuseError, match="two different graphs, both called"):
        calibrate(observe_all(copied))


def test_a_newer_schema_is_refused(copied):
    edit_manifest(copied[0], lambda document: document.update(schema_version=99))
    with pytest.raises(MisuseError, match="schema 99"):
        observe(copied[0])


def test_a_trace_without_its_workload_is_refused(copied):
    edit_manifest(copied[0], lambda document: document.update(workload={"statistics": []}))
    with pytest.raises(MisuseError, match="record the run again"):
        observe(copied[0])


def test_a_trace_of_another_program_is_refused(copied):
    def widen(document):
        document["workload"]["layers"][1]["dim_in"] += 1

    edit_manifest(copied[0], widen)
    with pytest.raises(MisuseError, match="not of this version's program"):
        observe(copied[0])


def test_a_trace_cut_before_its_third_epoch_is_refused(copied):
    for part in (copied[0] / "trace").glob("spans-r00000-*.parquet"):
        part.unlink()
    with pytest.raises(MisuseError, match="no whole epoch after the first 2"):
        observe(copied[0])


@pytest.mark.parametrize(("text", "rate"), [("shaped:200mbit", 25e6), ("1gbit", 1.25e8), ("local", 0.0), ("unshaped", 0.0)])
def test_links_are_read(text, rate):
    assert parse_link(text) == rate


@pytest.mark.parametrize("text", ["fast", "mbit", "-1gbit", "200"])
def test_an_unreadable_link_says_what_is_allowed(text):
    with pytest.raises(MisuseError, match="as in 200mbit"):
        parse_link(text)


def slowed(observation, factor):
    """The same run with its operations' CPU times `factor` as long."""
    changed = replace(observation)
    vars(changed)["cpu_seconds"] = [seconds * factor for seconds in observation.cpu_seconds]
    return changed


def test_a_run_on_a_slower_machine_is_told_from_its_work(samples):
    _, before = fit_speed(samples)
    changed = [slowed(samples[0], 1.5), *samples[1:]]
    host, after = fit_speed(changed)
    ratios = np.array([after[new] / before[old] for new, old in zip(changed, samples, strict=True)])
    ratios /= np.median(ratios[1:])
    # a part of it goes to the models of its work, and to the slope over utilisation, which it moves as well
    assert 1.25 < ratios[0] < 1.8
    assert (np.abs(np.log(ratios[1:])) < 0.2).all()
    assert np.mean(np.log(list(after.values()))) == pytest.approx(0.0, abs=1e-9)
    assert host.slowness_spread > 0.0
