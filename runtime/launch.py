"""Start the ranks of a run on this machine, watch them, and stop all of them when one fails, hangs or is left alone.

Each rank is a process in a session of its own with the environment that torchrun would give it. It dies with the
launcher, be that killed (`bootstrap`); so does all it has started (`guard`).
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, BinaryIO, Self

from halocast.errors import MisuseError, RunError
from halocast.runtime import testbed
from halocast.runtime.bootstrap import GO, READY
from halocast.runtime.launch_context import LaunchContext, detect_launch_environment
from halocast.runtime.supervise import (
    ERROR_FILE,
    HEARTBEAT_FILE,
    Death,
    RankFailure,
    choose_cause,
    heartbeat,
    read_report,
)
from halocast.runtime.testbed import HostSpec

__all__ = ["HostSpec", "LaunchContext", "RankFailure", "detect_launch_environment", "heartbeat", "launch_local"]

POLL_S = 0.05
COLLECT_S = 1.0  # after the first death, for the others to report theirs
GRACE_S = 2.0  # between SIGTERM and SIGKILL
PORT_ATTEMPTS = 3
TESTBED_PORT = 29_500  # torchrun's default: always free in a namespace of one's own
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_LOG_TAIL_BYTES = 4096


def launch_local(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    hosts: HostSpec | None = None,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    log_folder: Path,
    timeout_s: float | None = None,
    on_line: Callable[[str], None] | None = None,
    port: int | None = None,
) -> None:
    """Run ``python -m MODULE ARGUMENTS`` as `ranks` local processes and wait for all of them.

    Args:
        hosts: where they run; None is the machine's loopback.
        threads: OMP_NUM_THREADS of each rank.
        environment: variables added to this process's own, for every rank.
        log_folder: gets ``rank-N.log`` with what rank N writes, appended.
        timeout_s: seconds without a `heartbeat` of any rank after which the run counts as hung; None waits forever.
        on_line: called in this thread with each line that rank 0 writes to its standard output, as it comes.
        port: MASTER_PORT; None takes a free one, and another one if that is taken meanwhile.

    Raises:
        MisuseError: impossible settings, a port that is taken, or shaped hosts where there can be none.
        RankFailure: one line naming the rank that failed first and why; no process of the run is left.
        KeyboardInterrupt: on SIGINT and SIGTERM (in the main thread); no process of the run is left.
    """
    hosts = hosts or HostSpec()
    _check(ranks, threads, timeout_s, port, hosts)
    log_folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *arguments]
    attempts = PORT_ATTEMPTS if port is None and not hosts.shaped else 1
    with _sigterm_interrupts():
        for attempt in range(1, attempts + 1):
            variables = _variables(ranks, threads, environment or {}, hosts, port)
            try:
                with _Run(log_folder, on_line) as run:
                    run.start(command, variables, hosts)
                    run.supervise(timeout_s)
                return
            except RankFailure as failure:
                if attempt == attempts or not _PORT_TAKEN.search(failure.cause):
                    raise


def _check(ranks: int, threads: int, timeout_s: float | None, port: int | None, hosts: HostSpec) -> None:
    if ranks < 1:
        raise MisuseError(f"ranks is {ranks}, but a run needs at least 1")
    if threads < 1:
        raise MisuseError(f"threads is {threads}, but a rank needs at least 1")
    if timeout_s is not None and not timeout_s > 0:
        raise MisuseError(f"timeout is {timeout_s} s, but it must be above 0 (or none, to wait forever)")
    if port is not None and not 0 < port < 65_536:
        raise MisuseError(f"port is {port}, but a port lies in 1..65535")
    if hosts.shaped:
        testbed.require_testbed(ranks)
    elif port is not None:
        _probe_port(port)


def _probe_port(port: int) -> int:
    """Bind `port` (0: any free one) on all interfaces, as rank 0 will, let it go, and return its number."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise MisuseError(f"port {port} cannot be used ({reason}); choose another, or none for a free one") from None
        return int(probe.getsockname()[1])


def _variables(
    ranks: int, threads: int, environment: Mapping[str, str], hosts: HostSpec, port: int | None
) -> list[dict[str, str]]:
    """Return the environment of each rank: this process's, then `environment`, then what only the launcher can know."""
    shared = {"PYTHONUNBUFFERED": "1"}  # a killed rank's log keeps its last line
    if hosts.shaped:
        shared |= {"MASTER_ADDR": testbed.address(0), "MASTER_PORT": str(port or TESTBED_PORT)}
        interface = {"GLOO_SOCKET_IFNAME": testbed.INTERFACE, "TP_SOCKET_IFNAME": testbed.INTERFACE}
    else:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or _probe_port(0))}
        # Otherwise gloo looks up the host's name, which fails in containers and offline.
        interface = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        interface = {name: value for name, value in interface.items() if name not in environment}
    shared |= interface | {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": str(threads)}
    return [{**os.environ, **environment, **shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that it unwinds like Ctrl-C; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass(slots=True)
class _Member:
    """One rank's process as the launcher sees it. A returncode of None: it runs."""

    rank: int
    process: subprocess.Popen[bytes]
    error_file: Path
    heartbeat_file: Path
    log: Path
    log_start: int  # bytes that were in the log before this run
    gate: socket.socket | None
    returncode: int | None = None
    ended_ns: int = 0
    beat_ns: int = 0  # the heartbeat file's own time
    beat_seen: float = 0.0  # the launcher's monotonic time when that last changed

    def last_words(self) -> str:
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self.log_start, size - _LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Run:
    """All processes of one attempt. Leaving its ``with`` block leaves none of them."""

    def __init__(self, log_folder: Path, on_line: Callable[[str], None] | None) -> None:
        self._log_folder = log_folder
        self._on_line = on_line
        self._members: list[_Member] = []
        self._output: _LineReader | None = None
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="halocast-", ignore_cleanup_errors=True)
            self._folder = Path(stack.enter_context(folder))
            self._guard = stack.enter_context(_Guard(self._folder))
            stack.callback(self._stop)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._resources.__exit__(kind, error, traceback)

    def start(self, command: list[str], variables: list[dict[str, str]], hosts: HostSpec) -> None:
        """Start one rank for each of `variables`; behind shaped links, once these are there."""
        for rank, environment in enumerate(variables):
            self._start_rank(rank, command, environment, gated=hosts.shaped)
        if hosts.rate is not None:
            try:
                self._link(hosts.rate)
            except (MisuseError, RunError, OSError):
                self._observe()
                if self._deaths():  # a rank that is gone has no namespace to link: name the rank, not the tool
                    raise choose_cause(self._deaths()) from None
                raise

    def supervise(self, timeout_s: float | None) -> None:
        """Wait until all ranks have ended well; raise RankFailure as soon as that cannot be."""
        failure = self._wait(timeout_s)
        self._stop()
        if self._output is not None:
            self._output.finish()
        if failure is not None:
            raise failure

    def _wait(self, timeout_s: float | None) -> RankFailure | None:
        """Return None once all ranks have ended well, or the failure that ends the run."""
        while self._running():
            self._observe()
            if self._deaths():
                self._collect()
                return choose_cause(self._deaths())
            hang = None if timeout_s is None else self._hang(timeout_s)
            if hang is not None:
                return hang
        return None

    def _start_rank(self, rank: int, command: list[str], environment: dict[str, str], *, gated: bool) -> None:
        error_file, heartbeat_file = self._folder / f"error-{rank}", self._folder / f"heartbeat-{rank}"
        heartbeat_file.touch()
        log_path = self._log_folder / f"rank-{rank}.log"
        watched = rank == 0 and self._on_line is not None
        with log_path.open("ab") as log:
            process, gate = _start(
                command,
                {**environment, ERROR_FILE: str(error_file), HEARTBEAT_FILE: str(heartbeat_file)},
                stdout=subprocess.PIPE if watched else log,
                stderr=log,
                gated=gated,
            )
            log_start = log.tell()
        self._guard.add(process.pid)
        member = _Member(rank, process, error_file, heartbeat_file, log_path, log_start, gate)
        member.beat_seen = time.monotonic()
        self._members.append(member)
        if process.stdout is not None and self._on_line is not None:
            self._output = self._resources.enter_context(_LineReader(process.stdout, log_path, self._on_line))

    def _link(self, rate: int) -> None:
        """Link the waiting ranks' namespaces to a bridge and let them go; a process behind a closed gate holds it."""
        holder, gate = _start([], dict(os.environ), stdout=None, stderr=None, gated=True)
        assert gate is not None
        self._resources.callback(holder.wait)
        self._resources.callback(gate.close)  # at which it ends
        gates = [member.gate for member in self._members if member.gate is not None]
        for waiting in (gate, *gates):
            answer = waiting.recv(256)
            if answer != READY:
                raise MisuseError(f"shaped hosts: the kernel refuses ({answer.decode() or 'no answer'}); use --hosts local")
        testbed.link_ranks(holder.pid, [member.process.pid for member in self._members], rate)
        for waiting in gates:
            waiting.sendall(GO)
            waiting.close()

    def _running(self) -> list[_Member]:
        return [member for member in self._members if member.returncode is None]

    def _observe(self) -> None:
        """Wait a moment, handing on rank 0's output, and note who has ended and who has made progress."""
        if self._output is not None:
            self._output.pump(POLL_S)
        else:
            time.sleep(POLL_S)
        if self._guard.ended():
            raise RunError("the guard process of this run was killed: all ranks are stopped")
        now = time.monotonic()
        for member in self._running():
            beat_ns = member.heartbeat_file.stat().st_mtime_ns
            if beat_ns != member.beat_ns:
                member.beat_ns, member.beat_seen = beat_ns, now
            if member.process.poll() is not None:
                self._bury(member)

    def _bury(self, member: _Member) -> None:
        """Note that a rank has ended, and end what it has started: at once, before the kernel uses its id again."""
        member.returncode = member.process.wait()
        member.ended_ns = time.time_ns()
        _signal_group(member.process.pid, signal.SIGKILL)
        self._guard.remove(member.process.pid)

    def _deaths(self) -> list[Death]:
        """Return the ranks that have ended badly, and those that have reported that they are about to."""
        deaths = []
        for member in self._members:
            report = read_report(member.error_file) if member.returncode != 0 else None
            if report is not None:
                time_ns = member.error_file.stat().st_mtime_ns
                deaths.append(Death(member.rank, member.returncode or report.exit_code, time_ns, report))
            elif member.returncode:
                deaths.append(Death(member.rank, member.returncode, member.ended_ns, None, member.last_words()))
        return deaths

    def _collect(self) -> None:
        """Let the others report, so that the cause can be told from its consequences."""
        deadline = time.monotonic() + COLLECT_S
        while self._running() and time.monotonic() < deadline:
            self._observe()

    def _hang(self, timeout_s: float) -> RankFailure | None:
        """Return the failure where no rank has beaten for `timeout_s`: the first to fall silent holds up the others."""
        running = self._running()
        if not running or time.monotonic() - max(member.beat_seen for member in running) <= timeout_s:
            return None
        first = min(running, key=lambda member: (member.beat_ns, member.rank))
        others = " (others wait for it)" if len(self._members) > 1 else ""
        return RankFailure(first.rank, f"has not made progress for {timeout_s:g} s{others}")

    def _stop(self) -> None:
        """End every rank that is left with all it has started: asked first, killed after a grace period."""
        try:
            for member in self._running():
                if member.gate is not None:
                    member.gate.close()
                _signal_group(member.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while any(member.process.poll() is None for member in self._running()) and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)
        finally:  # also when the user interrupts a second time
            for member in self._running():
                _signal_group(member.process.pid, signal.SIGKILL)
                self._bury(member)


def _start(
    command: list[str],
    environment: dict[str, str],
    *,
    stdout: int | BinaryIO | None,
    stderr: BinaryIO | None,
    gated: bool,
) -> tuple[subprocess.Popen[bytes], socket.socket | None]:
    """Start `command` in a session of its own, tied to this process's life, and return the gate it waits at."""
    gate, inner = socket.socketpair() if gated else (None, None)
    bootstrap = [sys.executable, "-I", "-S", str(Path(__file__).with_name("bootstrap.py")), str(os.getpid())]
    try:
        process = subprocess.Popen(
            [*bootstrap, str(inner.fileno() if inner is not None else -1), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=(inner.fileno(),) if inner is not None else (),
        )
    except OSError as error:
        raise RunError(f"cannot start a rank: {error}") from error
    finally:
        if inner is not None:
            inner.close()
    return process, gate


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Guard:
    """The process that ends the run's process groups and removes its folder, should this one be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(self._folder)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def add(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def ended(self) -> bool:
        return self._process.poll() is not None

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `ended` finds out
            self._process.stdin.write(line)
            self._process.stdin.flush()


class _LineReader:
    """Reads a rank's standard output without blocking: into its log, and line by line to a callback."""

    def __init__(self, pipe: IO[bytes], log: Path, on_line: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._log_path = log
        self._on_line = on_line
        self._partial = b""
        self._open = True

    def __enter__(self) -> Self:
        os.set_blocking(self._pipe.fileno(), False)
        self._log = self._log_path.open("ab", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        self._pipe.close()
        self._keep(self._partial)
        self._log.close()

    def pump(self, wait_s: float) -> None:
        """Wait up to `wait_s` for output and hand on what is there."""
        if not self._open:
            time.sleep(wait_s)
        elif self._selector.select(wait_s):
            self._read()

    def finish(self) -> None:
        """Hand on all that is left, once the rank has ended, the last line also without its newline."""
        while self._open and self._selector.select(0):
            self._read()
        if self._partial:
            self._on_line(self._partial.decode(errors="replace"))

    def _keep(self, text: bytes) -> None:
        with suppress(OSError):  # a full disk stops the ranks, which say so; a log line is not worth more
            self._log.write(text)

    def _read(self) -> None:
        data = os.read(self._pipe.fileno(), 65_536)
        self._open = bool(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._keep(line + b"\n")  # whole lines: the rank's standard error goes to the same file
            self._on_line(line.decode(errors="replace").rstrip("\r"))
