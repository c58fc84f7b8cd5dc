"""Local ranks: what they are given, what is said when one fails, and that none is ever left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from halocast.errors import MisuseError
from halocast.runtime import launch
from halocast.runtime.launch import RankFailure

from .conftest import CHILDREN, ENVIRONMENT, alive, eventually, told

Start = Callable[..., list[str]]
pytestmark = [pytest.mark.timeout(30), pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for temporary files, empty so far, of this process and of those it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_ranks_get_torchruns_environment_and_the_log_all_output(start: Start, tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").write_text("an earlier run\n")
    lines = start("finish", "a", "b c", ranks=3, threads=2, environment={"MARKER": "here"})
    port = json.loads(lines[0])["MASTER_PORT"]
    for rank in range(3):
        log = (tmp_path / f"rank-{rank}.log").read_text().splitlines()
        given = json.loads(next(line for line in log if '"RANK"' in line))
        assert given == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "2",
        }
        assert f"rank {rank} writes to stderr" in log
    assert json.loads(lines[1]) == {"arguments": ["a", "b c"], "marker": "here", "session": True}
    assert lines[2:] == ["last line, without its newline"]
    assert (tmp_path / "rank-0.log").read_text().startswith("an earlier run\n")


def test_lines_come_while_the_ranks_run(start: Start, tmp_path: Path) -> None:
    """An exception of the callback ends the run, which otherwise would last for minutes."""
    child = tmp_path / "talk.py"
    child.write_text("import time\nprint('first')\ntime.sleep(300)\n")

    def refuse(line: str) -> None:
        raise LookupError(line)

    with pytest.raises(LookupError, match=r"^first$"):
        start("talk", on_line=refuse, environment={"PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("way", "message", "exit_code"),
    [
        ("raises", "rank 1 failed with exit code 1: ValueError: no such weather", 1),
        ("exits", "rank 1 failed with exit code 7", 1),
        ("reports", "rank 1 failed: ValueError: the cause", 1),
        ("misuse", "rank 1 failed: K is above the nodes", 2),
    ],
)
def test_one_line_names_the_first_cause(start: Start, way: str, message: str, exit_code: int) -> None:
    with pytest.raises(RankFailure) as caught:
        start("fail", way, ranks=3)
    assert str(caught.value) == message
    assert (caught.value.rank, caught.value.exit_code) == (1, exit_code)


def test_a_module_that_is_not_there_is_named(start: Start) -> None:
    with pytest.raises(RankFailure, match=r"^rank [01] failed with exit code 1: .*No module named nowhere$"):
        start("nowhere")


@pytest.mark.parametrize("seed", range(10))
def test_a_rank_killed_at_a_random_moment_is_named_and_none_is_left(
    start: Start, tmp_path: Path, temporary: Path, seed: int
) -> None:
    chosen = random.Random(seed)
    victim, moment = chosen.randrange(3), chosen.uniform(0.0, 0.3)
    processes: list[int] = []

    def kill() -> None:
        ranks = told(tmp_path, 3)
        processes.extend(number for rank in ranks for number in (rank["rank"], rank["grandchild"]))
        time.sleep(moment)
        os.kill(ranks[victim]["rank"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RankFailure) as caught:
        start("wait", str(tmp_path), ranks=3)
    killer.join()
    assert str(caught.value) == f"rank {victim} was killed by signal 9 (SIGKILL)"
    assert caught.value.signal == signal.SIGKILL
    assert len(processes) == 6
    eventually(lambda: not alive(processes), f"left: {processes}")
    assert list(temporary.iterdir()) == []


def test_a_hung_rank_is_named_and_none_is_left(start: Start) -> None:
    with pytest.raises(RankFailure) as caught:
        start("hang", ranks=3, timeout_s=1.5)
    assert str(caught.value) == "rank 1 has not made progress for 1.5 s (others wait for it)"


def test_ranks_that_beat_outlive_the_timeout(start: Start, tmp_path: Path) -> None:
    (tmp_path / "beat.py").write_text(
        "import time\nfrom halocast.runtime.supervise import heartbeat\n"
        "for _ in range(20):\n    heartbeat()\n    time.sleep(0.1)\nprint('done')\n"
    )
    path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(tmp_path)])
    assert start("beat", timeout_s=1.0, environment={"PYTHONPATH": path}) == ["done"]


def test_a_rank_that_ignores_sigterm_is_killed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import os, pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "mine = pathlib.Path(sys.argv[1])\n"
        "if os.environ['RANK'] == '1':\n    mine.write_text(str(os.getpid()))\n    time.sleep(300)\n"
        "while not mine.exists() or not mine.read_text():\n    time.sleep(0.02)\nsys.exit(3)\n"
    )
    with pytest.raises(RankFailure, match=r"^rank 0 failed with exit code 3$"):
        start("stubborn", str(tmp_path / "pid"), environment={"PYTHONPATH": str(tmp_path)})
    assert alive([int((tmp_path / "pid").read_text())]) == []


@pytest.mark.parametrize(("number", "returncode"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_nothing_outlives_the_launcher(tmp_path: Path, temporary: Path, number: signal.Signals, returncode: int) -> None:
    command = [sys.executable, str(CHILDREN / "launch_waiting.py"), str(tmp_path), "local"]
    launcher = subprocess.Popen(command, env=os.environ | ENVIRONMENT)
    processes = [process for rank in told(tmp_path, 2) for process in (rank["rank"], rank["grandchild"])]
    assert alive(processes) == processes
    assert len(list(temporary.iterdir())) == 1
    launcher.send_signal(number)
    assert launcher.wait(10) == returncode
    eventually(lambda: not alive(processes), f"left: {processes}")
    eventually(lambda: not list(temporary.iterdir()), "its folder is left")


def test_a_port_that_is_taken_is_misuse_and_starts_nothing(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MisuseError) as caught:
            start("finish", port=port)
    assert str(caught.value) == f"port {port} cannot be used (address already in use); choose another, or none for a free one"
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_port_asked_for_is_used(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert json.loads(start("finish", port=port)[0])["MASTER_PORT"] == str(port)


def test_a_free_port_taken_meanwhile_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port found is in fact taken; gloo's store on rank 0 finds out."""
    with socket.create_server(("", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        probe = launch._probe_port
        monkeypatch.setattr(launch, "_probe_port", lambda port: next(ports, None) or probe(port))
        lines = start("all_reduce", ranks=2)
    assert json.loads(lines[-1])["interface"] == "lo"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 0}, "ranks is 0, but a run needs at least 1"),
        ({"threads": 0}, "threads is 0, but a rank needs at least 1"),
        ({"timeout_s": 0.0}, "timeout is 0.0 s, but it must be above 0 (or none, to wait forever)"),
        ({"port": 70_000}, "port is 70000, but a port lies in 1..65535"),
    ],
)
def test_impossible_settings_are_refused(start: Start, settings: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        start("finish", **settings)
    assert str(caught.value) == message


def test_gloo_reduces_over_the_loopback(start: Start) -> None:
    assert json.loads(start("all_reduce", ranks=3)[-1])["interface"] == "lo"
