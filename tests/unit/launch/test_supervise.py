"""What a rank tells its launcher, and which of many deaths is called the cause."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from halocast.errors import GraphError, RunError
from halocast.runtime import supervise
from halocast.runtime.supervise import Death, Report, choose_cause, heartbeat, read_report, report_exception

KILLED = Death(2, -9, 500)
PRIMARY = Death(1, 1, 400, Report(1, "ValueError: the cause", 2, primary=True))
SILENT = Death(4, 3, 300, None, "ValueError: unreported")
ABORTED = Death(3, -6, 200)
SECONDARY = Death(0, 1, 100, Report(0, "RuntimeError: Connection closed by peer", 1, primary=False))
LOST = Death(5, 1, 150, None, "RuntimeError: [pair.cc:534] Connection reset by peer")
STARVED = Death(5, 1, 300, Report(5, "ran out of memory: no more could be had", out_of_memory=True))
BAD_ALLOC = Death(6, -6, 300, None, "what():  std::bad_alloc")


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error"
    monkeypatch.setenv("HALOCAST_ERROR_FILE", str(path))
    monkeypatch.setenv("RANK", "3")
    return path


@pytest.mark.parametrize(
    ("deaths", "message", "exit_code"),
    [
        ([SECONDARY, ABORTED, SILENT, PRIMARY, KILLED], "rank 2 was killed by signal 9 (SIGKILL)", 1),
        ([SECONDARY, LOST, ABORTED, PRIMARY], "rank 1 failed: ValueError: the cause", 2),
        ([SECONDARY, ABORTED, SILENT], "rank 4 failed with exit code 3: ValueError: unreported", 1),
        ([SECONDARY, LOST, ABORTED], "rank 3 was killed by signal 6 (SIGABRT)", 1),
        ([LOST, SECONDARY], "rank 0 failed: RuntimeError: Connection closed by peer", 1),
        ([Death(7, 4, 1)], "rank 7 failed with exit code 4", 1),
        ([Death(7, -63, 1)], "rank 7 was killed by signal 63 (unnamed)", 1),
        ([STARVED, SECONDARY, ABORTED], "rank 5 ran out of memory: no more could be had", 1),
        ([BAD_ALLOC, SECONDARY, ABORTED], "rank 6 ran out of memory: what():  std::bad_alloc", 1),
        ([Death(7, -9, 5, None, "MemoryError")], "rank 7 was killed by signal 9 (SIGKILL)", 1),
        ([Death(6, -9, 20), Death(7, -11, 10)], "rank 7 was killed by signal 11 (SIGSEGV)", 1),
    ],
)
def test_the_first_cause_is_chosen_in_whatever_order_deaths_come(deaths: list[Death], message: str, exit_code: int) -> None:
    for order in itertools.permutations(deaths):
        failure = choose_cause(order)
        assert (str(failure), failure.exit_code) == (message, exit_code)


def test_a_failure_carries_what_it_says() -> None:
    failure = choose_cause([KILLED])
    assert isinstance(failure, RunError)
    assert (failure.rank, failure.signal, failure.cause) == (2, 9, "was killed by signal 9 (SIGKILL)")


@pytest.mark.parametrize(
    ("error", "message", "exit_code", "primary"),
    [
        (ValueError("wrong\n  at frame 1"), "ValueError: wrong", 1, True),
        (KeyboardInterrupt(), "KeyboardInterrupt", 1, True),
        (RunError("disk full"), "disk full", 1, True),
        (GraphError("no training nodes"), "no training nodes", 2, True),
        (RuntimeError("\n[gloo/pair.cc:534] Connection closed by peer [::1]:80"), None, 1, False),
        (RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote"), None, 1, False),
        (BrokenPipeError(32, "Broken pipe"), None, 1, False),
        (ValueError("connection reset"), "ValueError: connection reset", 1, True),  # not what torch raises for one
    ],
)
def test_an_exception_is_reported_in_one_line(
    error_file: Path, error: BaseException, message: str | None, exit_code: int, primary: bool
) -> None:
    report_exception(error)
    text = error_file.read_text()
    assert text.count("\n") == 1
    fields = json.loads(text)
    assert set(fields) == {"rank", "message", "exit_code", "primary", "out_of_memory"}
    assert (fields["rank"], fields["exit_code"], fields["primary"]) == (3, exit_code, primary)
    assert message is None or fields["message"] == message
    assert read_report(error_file) == Report(3, fields["message"], exit_code, primary)
    assert list(error_file.parent.iterdir()) == [error_file]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 1}', '{"rank": "x", "message": "", "exit_code": 1}'])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "error"
    path.write_text(text)
    assert read_report(path) is None
    assert read_report(tmp_path / "nowhere") is None


def test_a_report_says_what_it_is_about(error_file: Path) -> None:
    supervise.report_failure("ran out of memory: no more could be had", out_of_memory=True)
    report = read_report(error_file)
    assert report == Report(3, "ran out of memory: no more could be had", out_of_memory=True)
    assert choose_cause([Death(3, 1, 1, report)]).out_of_memory
    assert choose_cause([BAD_ALLOC]).out_of_memory
    assert not choose_cause([PRIMARY]).out_of_memory


def test_without_a_launcher_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALOCAST_ERROR_FILE", raising=False)
    monkeypatch.delenv("HALOCAST_HEARTBEAT_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    supervise.report_failure("alone")
    heartbeat()
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heartbeat"
    path.touch()
    os.utime(path, ns=(1, 1))
    monkeypatch.setenv("HALOCAST_HEARTBEAT_FILE", str(path))
    heartbeat()
    assert path.stat().st_mtime_ns > 1
    path.unlink()  # the launcher has gone
    heartbeat()
    assert not path.exists()
