"""How a rank tells its launcher that it lives or why it failed, and how the launcher names one cause among many.

A rank holds two files, named in its environment: one it touches as it makes progress, one it writes a single line of
JSON to before it fails: ``{"rank", "message", "exit_code", "primary", "out_of_memory"}``. When one rank dies its peers fail
too, with lost connections; those reports are *secondary* and never hide the first cause.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from halocast.errors import HalocastError, RunError
from halocast.runtime.out_of_memory import says_out_of_memory

ERROR_FILE = "HALOCAST_ERROR_FILE"
HEARTBEAT_FILE = "HALOCAST_HEARTBEAT_FILE"

# What torch.distributed's gloo, NCCL and TCPStore say when the other side has gone.
_LOST_PEER = re.compile(
    r"connection (was likely )?(closed|reset|refused)|closed by peer|broken pipe|remote server shutdown|socket timeout"
    r"|timed out (waiting|after)|wait timeout after|ncclremoteerror|remote process (has )?exited",
    re.IGNORECASE,
)


class RankFailure(RunError):
    """A rank of a local run failed; `exit_code` is what it asked for (2: misuse), `signal` what killed it, if any."""

    def __init__(
        self, rank: int, cause: str, exit_code: int = 1, killed_by: int | None = None, *, out_of_memory: bool = False
    ) -> None:
        super().__init__(f"rank {rank} {cause}")
        self.rank = rank
        self.cause = cause
        self.exit_code = exit_code
        self.signal = killed_by
        self.out_of_memory = out_of_memory


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank wrote before it failed on purpose."""

    rank: int
    message: str
    exit_code: int = 1
    primary: bool = True
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Death:
    """A rank that ended badly: `returncode` as in `subprocess` (−N: signal N), `time_ns` when it was seen."""

    rank: int
    returncode: int
    time_ns: int
    report: Report | None = None
    last_words: str = ""  # last line of its log, for a rank that left no report


def heartbeat() -> None:
    """Tell the launcher that this rank makes progress; costs one system call, and nothing without a launcher."""
    path = os.environ.get(HEARTBEAT_FILE)
    if path:
        with suppress(FileNotFoundError):
            os.utime(path)


def report_failure(message: str, *, exit_code: int = 1, primary: bool = True, out_of_memory: bool = False) -> None:
    """Leave the reason of this rank's coming failure for the launcher; does nothing without one."""
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    rank = int(os.environ.get("RANK", "0"))
    line = json.dumps(asdict(Report(rank, first_line(message), exit_code, primary, out_of_memory)))
    temporary = Path(f"{path}.part")
    with suppress(OSError):  # no disk left for the reason: the launcher falls back on the log
        temporary.write_text(line + "\n", encoding="utf-8")
        temporary.replace(path)


def report_exception(error: BaseException) -> None:
    """Report `error`: halocast's own with their exit code, a lost connection to a peer as secondary."""
    if isinstance(error, HalocastError):
        report_failure(str(error), exit_code=error.exit_code)
        return
    message = first_line(str(error))
    primary = not (isinstance(error, (RuntimeError, OSError)) and is_lost_peer(message))
    report_failure(f"{type(error).__name__}: {message}" if message else type(error).__name__, primary=primary)


def read_report(path: Path) -> Report | None:
    """Return the report in `path`; None where a rank wrote none, or none that can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Report(
            int(fields["rank"]),
            str(fields["message"]),
            int(fields["exit_code"]),
            bool(fields["primary"]),
            bool(fields["out_of_memory"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_lost_peer(message: str) -> bool:
    """Whether an error message says that a peer has gone, so that the cause lies with the peer."""
    return _LOST_PEER.search(message) is not None


def first_line(text: str) -> str:
    """Return the first line of `text` that is not blank: torch appends C++ stack traces to its messages."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def choose_cause(deaths: Iterable[Death]) -> RankFailure:
    """Return the failure to show for the deaths of one run, of which there must be at least one.

    A rank killed by a signal comes first, then one that failed by itself, then one that aborted (torch aborts when a
    peer vanishes under a thread of its own), then one that lost a peer; the earliest among equals.
    """
    return _failure(min(deaths, key=lambda death: (_precedence(death), death.time_ns, death.rank)))


def _precedence(death: Death) -> int:
    if death.report is not None:
        return 1 if death.report.primary else 3
    if death.returncode < 0 and not _starved(death):
        return 2 if death.returncode == -signal.SIGABRT else 0
    return 3 if is_lost_peer(death.last_words) else 1


def _starved(death: Death) -> bool:
    """Whether a rank without a report ran out of memory: C++ aborts, and who cannot even import leaves only its log."""
    return (death.returncode > 0 or death.returncode == -signal.SIGABRT) and says_out_of_memory(death.last_words)


def _failure(death: Death) -> RankFailure:
    if death.report is not None:
        message = first_line(death.report.message)
        if death.report.out_of_memory:
            return RankFailure(death.rank, message, death.report.exit_code, out_of_memory=True)
        return RankFailure(death.rank, f"failed: {message}", death.report.exit_code)
    if _starved(death):
        return RankFailure(death.rank, f"ran out of memory: {death.last_words}", out_of_memory=True)
    if death.returncode < 0:
        number = -death.returncode
        return RankFailure(death.rank, f"was killed by signal {number} ({_signal_name(number)})", killed_by=number)
    words = f": {death.last_words}" if death.last_words else ""
    return RankFailure(death.rank, f"failed with exit code {death.returncode}{words}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unnamed"
