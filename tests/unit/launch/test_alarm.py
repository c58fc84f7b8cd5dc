"""The alarm between ranks: told once, heard by all, and no false one; over a store in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from halocast.errors import MisuseError, RunError
from halocast.runtime.exchange import alarm as module
from halocast.runtime.exchange.alarm import Alarm, StoppedError
from halocast.runtime.exchange.transport import LostPeerError

RANKS = 3
LOST = "receiving from rank 1 failed: Connection closed by peer"


class Ranks:
    """Alarms of all ranks, and what their threads said."""

    def __init__(self) -> None:
        store = dist.HashStore()
        self.said: dict[int, StoppedError] = {}
        self.alarms = [
            Alarm(store, rank, RANKS, lambda error, rank=rank: self.said.update({rank: error})) for rank in range(RANKS)
        ]

    def wait(self, *ranks: int) -> None:
        for rank in ranks:
            self.alarms[rank]._thread.join(timeout=20)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "SETTLE_S", 0.5)
    ranks = Ranks()
    yield ranks
    for alarm in ranks.alarms:
        alarm.close()


@pytest.mark.parametrize("error", [MisuseError("no such device"), ValueError("wrong\nstack")])
def test_a_rank_that_fails_is_named_by_all_others(ranks: Ranks, error: Exception) -> None:
    assert ranks.alarms[1].settle(error) is error
    ranks.wait(0, 2)
    cause = "no such device" if isinstance(error, MisuseError) else "ValueError: wrong"
    assert {rank: str(said) for rank, said in ranks.said.items()} == dict.fromkeys(
        (0, 2), f"stopped, because rank 1 failed: {cause}"
    )
    assert {said.exit_code for said in ranks.said.values()} == {2 if isinstance(error, MisuseError) else 1}


def test_who_loses_a_peer_says_what_became_of_it(ranks: Ranks) -> None:
    ranks.alarms[2].close()  # its thread must not be the first to speak
    ranks.alarms[1].settle(RunError("disk full"))
    settled = ranks.alarms[2].settle(LostPeerError(LOST))
    assert isinstance(settled, StoppedError)
    assert str(settled) == "stopped, because rank 1 failed: disk full"


def test_a_silent_rank_is_missed(ranks: Ranks) -> None:
    ranks.alarms[1].close()
    settled = ranks.alarms[2].settle(LostPeerError("an all-reduce failed: Connection closed by peer"))
    ranks.wait(0)
    line = "stopped, because rank 1 ended without a word (an all-reduce failed: Connection closed by peer)"
    assert str(settled) == str(ranks.said[0]) == line


def test_a_lost_connection_where_all_live_is_ones_own(ranks: Ranks) -> None:
    error = LostPeerError(LOST)
    assert ranks.alarms[2].settle(error) is error
    ranks.wait(0, 1)
    assert {str(said) for said in ranks.said.values()} == {f"stopped, because rank 2 failed: {LOST}"}


def test_the_first_failure_is_the_one_that_is_told(ranks: Ranks) -> None:
    first, second = RunError("first"), RunError("second")
    for alarm in ranks.alarms:
        alarm.close()
    assert ranks.alarms[2].settle(first) is first
    assert ranks.alarms[1].settle(second) is second  # its own error is still what it says
    assert str(ranks.alarms[0].settle(LostPeerError(LOST))) == "stopped, because rank 2 failed: first"


def test_without_a_failure_nobody_is_alarmed(ranks: Ranks) -> None:
    for alarm in ranks.alarms:
        alarm.close()
        assert not alarm._thread.is_alive()
    assert ranks.said == {}
