"""One rank's failure reaches all others over the run's store, where no launcher of ours ends them (torchrun, srun).

A rank that waits for a healthy peer, in a sum or in gloo's set-up learns nothing from the socket that broke elsewhere. So each
rank has a thread with a connection to the store of its own, which tells that it lives and looks whether another has failed. The
first failure that is told is the one that all ranks say; one killed before it could tell is missed by its silence.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, not marked

from halocast.errors import HalocastError, RunError
from halocast.runtime.exchange.transport import LostPeerError, Store
from halocast.runtime.launch_context import LaunchContext
from halocast.runtime.supervise import first_line, is_lost_peer

POLL_S = 0.25
SETTLE_S = 1.0  # for the one that failed to say so, and for a silence to tell; several polls
_FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended the run: the rank at fault and what came of it, as in "rank 1 failed: no such file"."""

    rank: int
    cause: str
    exit_code: int = RunError.exit_code


class StoppedError(RunError):
    """This rank is well, but the run has ended at another."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"stopped, because rank {failure.rank} {failure.cause}")
        self.exit_code = failure.exit_code


def open_store(context: LaunchContext, timeout_s: float) -> Store:
    """The run's store, without waiting for the others to join; rank 0 holds it unless torchrun's agent does.

    Raises LostPeerError where it cannot be reached or held.
    """
    held_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            context.master_address,
            context.master_port,
            is_master=context.rank == 0 and not held_by_agent,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise LostPeerError(f"cannot join the other {context.world_size - 1} ranks: {first_line(str(error))}") from error
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class Alarm:
    """Watches the store until it is closed; `on_failure` is called from its thread once another rank has failed."""

    def __init__(self, store: Store, rank: int, world_size: int, on_failure: Callable[[StoppedError], None]) -> None:
        self._rank, self._world_size, self._on_failure = rank, world_size, on_failure
        # a connection serves one thread at a time
        self._told, self._watched = store.clone(), store.clone()  # type: ignore[attr-defined]  # newer than torch's stubs
        self._closed = threading.Event()
        self._leaving = threading.Lock()  # whoever holds it says why this rank ends; held for good
        self._thread = threading.Thread(target=self._watch, name="alarm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching: from now on the store may go. To be called before the other ranks are told that this one is done."""
        self._closed.set()
        self._thread.join(timeout=10 * POLL_S)

    def settle(self, error: BaseException) -> BaseException:
        """Tell the others of `error`, and return what this rank should say: of a lost peer, what became of it.

        Blocks where the watching thread is already ending this process on another rank's account.
        """
        consequence = isinstance(error, LostPeerError) or (
            isinstance(error, RuntimeError | OSError) and is_lost_peer(str(error)) and not isinstance(error, HalocastError)
        )
        if not self._leaving.acquire(timeout=2 * SETTLE_S):
            return error
        try:
            if consequence:
                failure = self._awaited() or self._tell(Failure(*self._silent(error)))
            else:
                failure = self._tell(Failure(self._rank, f"failed: {_one_line(error)}", getattr(error, "exit_code", 1)))
            self._linger(self._told, failure)
        except RuntimeError:
            failure = self._store_gone()
        return StoppedError(failure) if consequence and failure.rank != self._rank else error

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self._watched.add(f"beat/{self._rank}", 1)
                failure = _read(self._watched)
                if failure is not None:
                    self._watched.set(f"heard/{self._rank}", "")
                    self._linger(self._watched, failure)
            except RuntimeError:
                failure = self._store_gone()
            if failure is None:
                continue
            if not self._closed.is_set() and self._leaving.acquire(blocking=False):
                self._on_failure(StoppedError(failure))
            return

    def _tell(self, failure: Failure) -> Failure:
        """Make `failure` the run's unless there is one, and return the run's."""
        self._told.compare_set(_FAILURE, "", json.dumps(asdict(failure)))
        return _read(self._told) or failure

    def _linger(self, store: Store, failure: Failure) -> None:
        """Rank 0 may hold the store: it stays until all others have heard of `failure`, or seem to be gone."""
        if self._rank == 0:
            heard = [f"heard/{rank}" for rank in range(1, self._world_size) if rank != failure.rank]
            deadline = time.monotonic() + SETTLE_S
            while not store.check(heard) and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)

    def _awaited(self) -> Failure | None:
        """What another rank tells within the time to settle; None if none does."""
        self._beats = self._count_beats()
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            failure = _read(self._told)
            if failure is not None:
                return failure
            time.sleep(POLL_S / 5)
        return None

    def _silent(self, error: BaseException) -> tuple[int, str]:
        """The rank that has not shown life while this one waited to settle; this one's own error if all have."""
        for rank, (before, now) in enumerate(zip(self._beats, self._count_beats(), strict=True)):
            if rank != self._rank and before == now:
                return rank, f"ended without a word ({_one_line(error)})"
        return self._rank, f"failed: {_one_line(error)}"

    def _count_beats(self) -> list[int]:
        return [self._told.add(f"beat/{rank}", 0) for rank in range(self._world_size)]

    def _store_gone(self) -> Failure:
        return Failure(0, "ended without a word (the run's store went with it)")


def _read(store: Store) -> Failure | None:
    return Failure(**json.loads(store.get(_FAILURE))) if store.check([_FAILURE]) else None


def _one_line(error: BaseException) -> str:
    text = first_line(str(error))
    if isinstance(error, HalocastError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
