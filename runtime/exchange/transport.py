"""Moving rows and gradients between ranks, on torch.distributed; every message's completion is time-stamped.

`Transport` is what the executor needs: start an exchange or a sum and get a flight to wait for. `GlooTransport`
carries CPU tensors as they are and CUDA tensors through pinned host buffers; `NcclTransport` carries CUDA tensors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import Store as Store  # type: ignore[attr-defined]  # documented, not marked

from halocast.errors import RunError
from halocast.runtime.clock import Clock, DeviceClock

_GLOO_FRAME = re.compile(r"^\[[^\]]*\.(cc|h):\d+\] ")
MessageList = Sequence[tuple[int, torch.Tensor]]
"""(peer, contiguous tensor) pairs."""


class LostPeerError(RunError):
    """A peer went away or stayed silent beyond the timeout: usually the consequence of a failure over there."""


class Flight(Protocol):
    """Something under way. Completion times are monotonic ns, 0 where there was nothing to complete."""

    def wait(self, peer: int = -1) -> None:
        """Block until the messages to and from `peer` (−1: all of it) are complete."""

    def sent_ns(self, peer: int = -1) -> int: ...

    def received_ns(self, peer: int = -1) -> int: ...


class Transport(Protocol):
    """How ranks talk. All ranks call the same methods in the same order."""

    rank: int
    world_size: int

    def start_exchange(self, outgoing: MessageList, incoming: MessageList) -> Flight:
        """Start sending and receiving; tensors stay untouched until the flight is waited for."""

    def start_all_reduce(self, values: torch.Tensor) -> Flight:
        """Start summing `values` over all ranks, in place."""

    def all_reduce(self, values: torch.Tensor) -> None:
        """Sum `values` over all ranks, in place, and wait."""

    def share(self, key: str, value: Any) -> list[Any]:
        """Give every rank's JSON value to every rank, in rank order; `key` must be new."""

    def close(self) -> None: ...


@dataclass
class CompletedFlight:
    """A flight of nothing: what a single rank gets."""

    def wait(self, peer: int = -1) -> None:
        pass

    def sent_ns(self, peer: int = -1) -> int:
        return 0

    def received_ns(self, peer: int = -1) -> int:
        return 0


class LocalTransport:
    """One rank alone: nothing to exchange, sums are what they are."""

    rank, world_size = 0, 1

    def start_exchange(self, outgoing: MessageList, incoming: MessageList) -> Flight:
        return CompletedFlight()

    def start_all_reduce(self, values: torch.Tensor) -> Flight:
        return CompletedFlight()

    def all_reduce(self, values: torch.Tensor) -> None:
        pass

    def share(self, key: str, value: Any) -> list[Any]:
        return [json.loads(json.dumps(value))]

    def close(self) -> None:
        pass


@dataclass
class TimedFlight:
    """Futures per peer, each resolving to the monotonic time at which its message completed."""

    sends: Mapping[int, Future[int]]
    receives: Mapping[int, Future[int]]
    timeout_s: float
    on_landed: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What is left to do when a peer's message is here (staging: copy it to the device)."""

    def wait(self, peer: int = -1) -> None:
        for each in self._peers(peer):
            for futures, verb in ((self.receives, "receiving from"), (self.sends, "sending to")):
                if each in futures:
                    self._result(futures[each], each, verb)
            landed = self.on_landed.pop(each, None)
            if landed is not None:
                landed()

    def sent_ns(self, peer: int = -1) -> int:
        return max((self.sends[each].result() for each in self._peers(peer) if each in self.sends), default=0)

    def received_ns(self, peer: int = -1) -> int:
        return max((self.receives[each].result() for each in self._peers(peer) if each in self.receives), default=0)

    def _peers(self, peer: int) -> Iterable[int]:
        return sorted({*self.sends, *self.receives}) if peer < 0 else (peer,)

    def _result(self, future: Future[int], peer: int, verb: str) -> int:
        try:
            return future.result(timeout=self.timeout_s)
        except TimeoutError as error:
            raise LostPeerError(f"{verb} rank {peer} took longer than {self.timeout_s:.0f} s") from error
        except RuntimeError as error:
            raise LostPeerError(f"{verb} rank {peer} failed: {_first_line(error)}") from error


@dataclass
class CollectiveFlight:
    """An all-reduce; it completes for all peers at once."""

    future: Future[int]
    timeout_s: float
    on_landed: Callable[[], None] = lambda: None

    def wait(self, peer: int = -1) -> None:
        try:
            self.future.result(timeout=self.timeout_s)
        except TimeoutError as error:
            raise LostPeerError(f"an all-reduce took longer than {self.timeout_s:.0f} s") from error
        except RuntimeError as error:
            raise LostPeerError(f"an all-reduce failed: {_first_line(error)}") from error
        self.on_landed()

    def sent_ns(self, peer: int = -1) -> int:
        return self.future.result()

    def received_ns(self, peer: int = -1) -> int:
        return self.future.result()


def _first_line(error: BaseException) -> str:
    """What went wrong, without the line of gloo's source before it and its advice after."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _GLOO_FRAME.sub("", line).partition(". This is typically caused by")[0]


class GlooTransport:
    """gloo point-to-point messages and all-reduce.

    isend/irecv pairs, not all_to_all: gloo's list form rejects uneven sizes, and its single-tensor form was ten times
    slower on the loopback. One thread per peer and way waits for completions, so that each message's own time is
    known whatever the main thread is doing.
    """

    def __init__(self, timeout_s: float, *, stage: bool = False) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._timeout_s = timeout_s
        self._stage = stage
        self._channels: dict[tuple[str, int], ThreadPoolExecutor] = {}

    def start_exchange(self, outgoing: MessageList, incoming: MessageList) -> Flight:
        landed: dict[int, Callable[[], None]] = {}
        if self._stage:
            incoming, landed = self._stage_incoming(incoming)
            outgoing = [(peer, _to_host(tensor)) for peer, tensor in outgoing]
            if any(tensor.is_pinned() for _, tensor in outgoing):
                torch.cuda.current_stream().synchronize()  # the copies out must be whole before gloo reads them
        try:
            # receives first: a message that finds its buffer waiting is not copied twice
            receives = {peer: self._timed("receive", peer, dist.irecv(tensor, peer)) for peer, tensor in incoming}
            sends = {peer: self._timed("send", peer, dist.isend(tensor, peer)) for peer, tensor in outgoing}
        except RuntimeError as error:
            raise LostPeerError(f"an exchange could not start: {_first_line(error)}") from error
        return TimedFlight(sends, receives, self._timeout_s, landed)

    def start_all_reduce(self, values: torch.Tensor) -> Flight:
        host = _to_host(values) if self._stage else values
        if host.is_pinned():
            torch.cuda.current_stream().synchronize()
        try:
            work = dist.all_reduce(host, async_op=True)
        except RuntimeError as error:
            raise LostPeerError(f"an all-reduce could not start: {_first_line(error)}") from error
        future = self._timed("reduce", -1, work)
        if host is values:
            return CollectiveFlight(future, self._timeout_s)
        return CollectiveFlight(future, self._timeout_s, lambda: _copy(host, values))

    def all_reduce(self, values: torch.Tensor) -> None:
        self.start_all_reduce(values).wait()

    def share(self, key: str, value: Any) -> list[Any]:
        return _share(key, value, self.rank, self.world_size)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.shutdown(wait=False, cancel_futures=True)
        _leave(self.rank, self.world_size)

    def _stage_incoming(self, incoming: MessageList) -> tuple[MessageList, dict[int, Callable[[], None]]]:
        staged = [(peer, _host_like(tensor)) for peer, tensor in incoming]
        pairs = zip(incoming, staged, strict=True)
        return staged, {peer: _copier(host, tensor) for (peer, tensor), (_, host) in pairs}

    def _timed(self, way: str, peer: int, work: Any) -> Future[int]:
        channel = self._channels.get((way, peer))
        if channel is None:
            channel = ThreadPoolExecutor(1, thread_name_prefix=f"{way}-{peer}")
            self._channels[way, peer] = channel
        return channel.submit(_completion_ns, work)


def _completion_ns(work: Any) -> int:
    work.wait()
    return time.monotonic_ns()


def _host_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A host copy for gloo to read (pinned, and copied without blocking, where the tensor is on a GPU)."""
    return _host_like(tensor).copy_(tensor, non_blocking=True)


def _copy(host: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(host, non_blocking=True)


def _copier(host: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    return lambda: _copy(host, target)


@dataclass
class DeviceFlight:
    """NCCL work. Waiting orders the current stream behind it; its completion is an event on a stream of its own."""

    clock: DeviceClock
    done: torch.cuda.Event

    def wait(self, peer: int = -1) -> None:
        torch.cuda.current_stream().wait_event(self.done)

    def sent_ns(self, peer: int = -1) -> int:
        """Known once the device has passed it; NCCL completes an exchange for all peers at once."""
        self.done.synchronize()
        return self.clock.host_ns(self.done)

    received_ns = sent_ns


class NcclTransport:
    """NCCL: one grouped launch per exchange, sums on NCCL's own stream."""

    def __init__(self, device: torch.device, clock: DeviceClock) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._clock = clock
        self._watch = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        dist.all_reduce(torch.zeros(1, device=device))  # NCCL wants every rank in a group's first operation

    def start_exchange(self, outgoing: MessageList, incoming: MessageList) -> Flight:
        operations = [dist.P2POp(dist.irecv, tensor, peer) for peer, tensor in incoming]
        operations += [dist.P2POp(dist.isend, tensor, peer) for peer, tensor in outgoing]
        if not operations:
            return CompletedFlight()
        return self._flight(dist.batch_isend_irecv(operations))

    def start_all_reduce(self, values: torch.Tensor) -> Flight:
        return self._flight([dist.all_reduce(values, async_op=True)])

    def _flight(self, works: Sequence[Any]) -> DeviceFlight:
        with torch.cuda.stream(self._watch):
            for work in works:
                work.wait()
            return DeviceFlight(self._clock, self._clock.stamp())

    def all_reduce(self, values: torch.Tensor) -> None:
        dist.all_reduce(values)

    def share(self, key: str, value: Any) -> list[Any]:
        return _share(key, value, self.rank, self.world_size)

    def close(self) -> None:
        _leave(self.rank, self.world_size)


def _share(key: str, value: Any, rank: int, world_size: int) -> list[Any]:
    store = dist.distributed_c10d._get_default_store()
    try:
        store.set(f"share/{key}/{rank}", json.dumps(value))
        return [json.loads(store.get(f"share/{key}/{peer}")) for peer in range(world_size)]
    except RuntimeError as error:
        raise LostPeerError(f"sharing '{key}' failed: {_first_line(error)}") from error


def _leave(rank: int, world_size: int) -> None:
    """Leave together: rank 0 holds the store, so it goes last, when nobody asks it anything any more."""
    store = dist.distributed_c10d._get_default_store()
    try:
        if rank == 0:
            store.wait([f"left/{peer}" for peer in range(1, world_size)])
        else:
            store.set(f"left/{rank}", "")
    except RuntimeError as error:
        raise LostPeerError(f"a rank vanished at the end of the run: {_first_line(error)}") from error
    dist.destroy_process_group()


def connect(
    world_size: int,
    rank: int,
    device: torch.device,
    clock: Clock,
    *,
    backend: str | None,
    timeout_s: float,
    store: Store | None = None,
) -> Transport:
    """Join the process group of `store`, or that the environment describes (MASTER_ADDR, MASTER_PORT as torchrun sets them)."""
    if world_size == 1 and backend is None:
        return LocalTransport()
    backend = backend or "gloo"
    backends = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend  # set-up and metrics are CPU tensors
    try:
        patience = timedelta(seconds=timeout_s)
        dist.init_process_group(backends, rank=rank, world_size=world_size, timeout=patience, store=store)
    except (RuntimeError, ValueError) as error:
        raise LostPeerError(f"cannot join the other {world_size - 1} ranks: {_first_line(error)}") from error
    if backend == "nccl":
        assert isinstance(clock, DeviceClock)
        return NcclTransport(device, clock)
    return GlooTransport(timeout_s, stage=device.type == "cuda")
