"""What is taken for memory that ran out, how it is said, and what a run adds that was killed or found no room."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from halocast import cli
from halocast.runtime import memory_limit, out_of_memory, run
from halocast.runtime.config import resolve
from halocast.runtime.launch import RankFailure
from halocast.runtime.memory_limit import MemoryCap
from halocast.runtime.out_of_memory import OutOfMemoryError, describe, is_out_of_memory

TOO_MUCH = 1 << 60
GRAPH = "generated:nodes=60,degree=4,features=8,classes=3,seed=1"


def raised(allocate: Any) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: torch.empty(TOO_MUCH, dtype=torch.uint8)),
        raised(lambda: np.empty(TOO_MUCH, dtype=np.uint8)),
        raised(lambda: bytearray(TOO_MUCH)),
        pa.lib.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        OutOfMemoryError("ran out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_libraries_ways_to_say_it(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert str(out_of_memory.out_of_memory(error)).startswith("ran out of memory")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "No space left"), ValueError("out of memory")]
)
def test_what_is_not_about_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_the_line_says_what_was_asked_held_and_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "limits_here", lambda: MemoryCap(1_500_000_000, "ulimit -d"))
    monkeypatch.setattr(out_of_memory, "held_bytes", lambda cap: 812_000_000)
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1200000000 bytes. Error code 12")
    assert str(out_of_memory.out_of_memory(error)) == (
        "ran out of memory: 1.2 GB more were asked for with 812 MB held; the cap is 1.5 GB (ulimit -d)"
    )
    assert describe(5_000_000, None, None) == (
        "ran out of memory: no more could be had with 5.0 MB held; there is no cap but the machine's memory"
    )


def test_address_space_counts_under_its_own_limit() -> None:
    resident = out_of_memory.held_bytes(MemoryCap(1, "cgroup memory.max"))
    assert out_of_memory.held_bytes(MemoryCap(1, "ulimit -v")) > resident > 1_000_000


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def control_group(root: Path, kills: int) -> None:
    for name, text in {
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": "64000000\n",
        "sys/fs/cgroup/job/memory.events": f"oom {kills}\noom_kill {kills}\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("kills", "starved"), [(4, True), (3, False)])
def test_a_rank_that_the_kernel_killed_for_memory(
    kills: int, starved: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    control_group(here, 3)

    def killed(*arguments: Any, **settings: Any) -> None:
        control_group(here, kills)
        raise RankFailure(1, "was killed by signal 9 (SIGKILL)", killed_by=9)

    monkeypatch.setattr(run, "launch_local", killed)
    monkeypatch.setattr(run, "oom_kills", lambda: memory_limit.oom_kills(here))
    monkeypatch.setattr(run, "limits_here", lambda: memory_limit.limits_here(here))
    config = resolve({"graph": GRAPH, "ranks": 2}, "test")
    with pytest.raises(RankFailure) as caught:
        run.train(config, here / "run")
    assert caught.value.exit_code == 1
    said = str(caught.value)
    if not starved:
        assert said.startswith("rank 1 was killed by signal 9 (SIGKILL); logs in ")
        return
    estimates = run.estimate(config)
    largest = max(estimates, key=lambda each: each.memory)
    assert said.startswith(
        "rank 1 was killed by the kernel, out of memory: the cap is 64.0 MB (cgroup memory.max); "
        f"rank {largest.rank} needs about {memory_limit.human_size(largest.memory)} beside what Python and torch take "
        "(--dry-run): use more --ranks, or --method sar; logs in "
    )


def test_the_advice_names_only_what_can_be_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve({"graph": GRAPH, "ranks": 2, "method": {"name": "sar"}}, "test")
    shards = run.find_shards(config, lambda text: None)
    assert run.memory_advice(config, shards).endswith(": use more --ranks")

    def no_room(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(run, "estimate_of_shards", no_room)
    assert run.memory_advice(config, shards) == "; use more --ranks (halocast train --dry-run says what a rank needs)"


def test_no_room_for_the_whole_graph_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*arguments: Any, **settings: Any) -> Any:
        return np.empty(TOO_MUCH, dtype=np.uint8)

    monkeypatch.setattr(run, "find_shards", no_room)
    assert cli.run(["train", GRAPH, "--ranks", "2", "--json"]) == 1
    said = capsys.readouterr()
    line = said.err.strip().splitlines()[-1]
    assert line.startswith(f"halocast: loading and cutting '{GRAPH}' ran out of memory: no more could be had with ")
    assert "lift the cap" in line
    assert not said.out


def test_any_other_command_says_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_room(*arguments: Any, **settings: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(cli, "app", no_room)
    assert cli.run(["partition", GRAPH]) == 1
    assert capsys.readouterr().err.startswith("halocast: ran out of memory: ")
