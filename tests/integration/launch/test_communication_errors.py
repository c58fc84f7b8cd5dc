"""An error in one rank's communication ends all ranks, and all say whose it was; also without a launcher of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.communication_errors import VICTIM, measure
from tests.support.faulty_rank import INJECTED

RANKS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path / "cache"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("full", "exchange"),  # a rank raises as it sends
        ("sar", "all-reduce"),  # in a sum
        ("full", "sharing"),  # in the set-up, where the others wait for the store
        ("full", "joining"),  # before it has met the others, which wait in gloo's set-up
    ],
)
def test_ranks_on_their_own_learn_who_failed(method: str, fault: str) -> None:
    row = measure("ranks alone", method, fault, RANKS)
    assert row["seconds"] is not None, "ranks were left waiting"
    others = [line for rank, line in enumerate(row["said"]) if rank != VICTIM]
    cause = f"rank {VICTIM} failed: RuntimeError: {INJECTED}"
    assert others == [f"halocast: rank {rank}: stopped, because {cause}" for rank in (0, 2)]
    assert row["said"][VICTIM] == f"halocast: rank {VICTIM}: RuntimeError: {INJECTED}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("method", "fault"), [("full", "killed"), ("sar", "sockets")])
def test_a_rank_that_ends_without_a_word_is_missed(method: str, fault: str) -> None:
    row = measure("ranks alone", method, fault, RANKS)
    assert row["seconds"] is not None, "ranks were left waiting"
    for rank in (0, 2):
        assert row["said"][rank].startswith(f"halocast: rank {rank}: stopped, because rank {VICTIM} ended without a word (")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("method", "fault"), [("sar", "exchange"), ("full", "sharing")])
def test_the_launcher_says_it_once(method: str, fault: str) -> None:
    row = measure("halocast", method, fault, RANKS)
    assert row["seconds"] is not None
    [line] = row["said"]
    assert line.startswith(f"rank {VICTIM} failed: RuntimeError: {INJECTED}; logs in ")
