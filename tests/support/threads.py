"""Several ranks in one process: a thread each, messages through queues. Exactness needs no sockets.

Ranks take turns: one runs until it has to wait for another.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from halocast.runtime.exchange.transport import MessageList

Answer = TypeVar("Answer")
PATIENCE_S = 60
POLLS_A_SECOND = 20


class Hub:
    """What the ranks share."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        ranks = range(world_size)
        # made here: two ranks that reach for a missing one at once would each make their own, and lose a message
        self.mail: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {
            (sender, receiver): queue.Queue() for sender in ranks for receiver in ranks
        }
        self.posted: dict[tuple[int, int], deque[torch.Tensor]] = defaultdict(deque)
        self.shared: dict[str, dict[int, Any]] = defaultdict(dict)
        self.sums: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
        self.sent_bytes: list[tuple[int, int, int]] = []  # (from, to, bytes)
        self.turn = threading.Lock()  # one rank runs at a time: NumPy's loader and torch's generator are not thread-safe
        self.barrier = threading.Barrier(world_size)

    def receive(self, sender: int, receiver: int) -> torch.Tensor:
        self.turn.release()
        try:
            for _ in range(PATIENCE_S * POLLS_A_SECOND):
                with contextlib.suppress(queue.Empty):
                    return self.mail[sender, receiver].get(timeout=1 / POLLS_A_SECOND)
                if self.barrier.broken:  # a rank failed: nobody will write
                    raise threading.BrokenBarrierError
            raise TimeoutError(f"rank {receiver} waited in vain for rank {sender}")
        finally:
            self.turn.acquire()

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.turn.release()
        try:
            self.barrier.wait(PATIENCE_S)
        finally:
            self.turn.acquire()


class ThreadFlight:
    """Messages are taken from the queue when waited for, and land where the receives were posted, in that order; sends are
    copied when started."""

    def __init__(self, hub: Hub, rank: int, incoming: MessageList) -> None:
        self._hub, self._rank, self._incoming = hub, rank, dict(incoming)
        for peer, target in incoming:
            hub.posted[peer, rank].append(target)

    def wait(self, peer: int = -1) -> None:
        for each in sorted(self._incoming) if peer < 0 else [peer]:
            target = self._incoming.pop(each, None)
            posted = self._hub.posted[each, self._rank]
            while target is not None and any(target is waiting for waiting in posted):
                message = self._hub.receive(each, self._rank)
                posted.popleft().copy_(message)

    def sent_ns(self, peer: int = -1) -> int:
        return time.monotonic_ns()

    received_ns = sent_ns


class ThreadSum(ThreadFlight):
    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish: Callable[[], None] | None = finish

    def wait(self, peer: int = -1) -> None:
        if self._finish is not None:
            self._finish()
        self._finish = None


class ThreadTransport:
    """One rank's end of a hub."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self._hub, self.rank, self.world_size = hub, rank, hub.world_size
        self._sums = 0

    def start_exchange(self, outgoing: MessageList, incoming: MessageList) -> ThreadFlight:
        for peer, tensor in outgoing:
            assert tensor.is_contiguous()
            assert tensor.numel() > 0, "an empty message was sent"
            self._hub.sent_bytes.append((self.rank, peer, tensor.numel() * tensor.element_size()))
            self._hub.mail[self.rank, peer].put(tensor.clone())
        return ThreadFlight(self._hub, self.rank, incoming)

    def start_all_reduce(self, values: torch.Tensor) -> ThreadSum:
        number, self._sums = self._sums, self._sums + 1
        self._hub.sums[number][self.rank] = values

        def finish() -> None:
            self._hub.meet()
            shares = self._hub.sums[number]  # summed in the order of ranks, whoever came first
            total = torch.stack([shares[rank] for rank in range(self.world_size)]).sum(0)
            self._hub.meet()
            values.copy_(total)

        return ThreadSum(finish)

    def all_reduce(self, values: torch.Tensor) -> None:
        self.start_all_reduce(values).wait()

    def share(self, key: str, value: Any) -> list[Any]:
        self._hub.shared[key][self.rank] = json.loads(json.dumps(value))
        self._hub.meet()
        return [self._hub.shared[key][peer] for peer in range(self.world_size)]

    def close(self) -> None:
        pass


def run_ranks(world_size: int, work: Callable[[ThreadTransport], Answer]) -> tuple[list[Answer], Hub]:
    """Run `work` once a rank; the first exception of any rank is raised here."""
    hub = Hub(world_size)
    answers: dict[int, Answer] = {}
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        with hub.turn:
            try:
                answers[rank] = work(ThreadTransport(hub, rank))
            except BaseException as error:  # noqa: BLE001 - raised again by run_ranks
                errors.append(error)
                hub.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        causes = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        raise (causes or errors)[0]
    return [answers[rank] for rank in range(world_size)], hub
