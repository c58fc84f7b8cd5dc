"""Small ranks for the launcher's tests, and the eyes to see what is left of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import halocast
from halocast.runtime import launch, testbed

SOURCES = Path(halocast.__file__).parent.parent
CHILDREN = Path(__file__).parent / "children"
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(SOURCES), str(CHILDREN)])}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., list[str]]:
    """Launch the child `module` and return rank 0's lines."""

    def run(module: str, *arguments: str, ranks: int = 2, hosts: str = "local", **settings: Any) -> list[str]:
        lines: list[str] = []
        defaults: dict[str, Any] = {"timeout_s": 20.0, "on_line": lines.append, "log_folder": tmp_path}
        environment = ENVIRONMENT | settings.pop("environment", {})
        launch.launch_local(
            module,
            arguments,
            ranks=ranks,
            hosts=testbed.HostSpec.parse(hosts),
            environment=environment,
            **defaults | settings,
        )
        return lines

    return run


@pytest.fixture
def shaped() -> None:
    """Skip where no shaped hosts can be had."""
    reason = testbed.testbed_available()
    if reason is not None:
        pytest.skip(reason)


def told(folder: Path, ranks: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """Return what the ranks of the child `wait` told in `folder`, once all have."""
    files = [folder / f"pids-{rank}" for rank in range(ranks)]
    eventually(lambda: all(file.exists() for file in files), "the ranks did not start", timeout_s)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def alive(processes: Iterable[int]) -> list[int]:
    """Return those of `processes` that run: neither gone nor waiting to be reaped."""
    return [process for process in processes if _state(process) not in ("", "Z", "X")]


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(parent: int) -> list[int]:
    """Return the processes that `parent` has started itself."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def networks(processes: Iterable[int] | None = None) -> set[str]:
    """Return the network namespaces that any of `processes` is in; None: any process at all."""
    folders = Path("/proc").glob("[0-9]*") if processes is None else (Path(f"/proc/{process}") for process in processes)
    found = set()
    for folder in folders:
        with suppress(OSError):
            found.add(os.readlink(folder / "ns" / "net"))
    return found


def eventually(condition: Callable[[], bool], complaint: str, timeout_s: float = 5.0) -> None:
    """Wait until `condition` holds; fail with `complaint` where it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)
