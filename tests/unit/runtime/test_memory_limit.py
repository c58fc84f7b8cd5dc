"""Sizes as people write them, and the caps of a process from resource limits and (fake) control groups."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from halocast.errors import MisuseError
from halocast.runtime.memory_limit import MemoryCap, human_size, limits_here, oom_kills, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("400MB", 400_000_000),
        ("400 mb", 400_000_000),
        ("1.5GiB", 1_610_612_736),
        (".5g", 500_000_000),
        ("1T", 10**12),
        ("64KiB", 65_536),
        ("1kB", 1000),
        ("123456", 123_456),
        (" 7B ", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "two GB", "-1GB", "0", "0.4", "2 PB", "1e9", "2GBs", "nan", "2,5GB"])
def test_what_is_no_size_is_one_line_with_an_example(text: str) -> None:
    with pytest.raises(MisuseError, match=rf"^'{text}' is no memory size: .*such as 2GB$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (999, "999 B"),
        (1500, "1.5 kB"),
        (99_960_000, "100 MB"),
        (812_345_678, "812 MB"),
        (999_600_000, "1.0 GB"),
        (3.2e12, "3.2 TB"),
    ],
)
def test_sizes_are_read_back(size: float, text: str) -> None:
    assert human_size(size) == text


def groups(root: Path, lines: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": lines, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def no_resource_limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The limits that `getrlimit` tells: none until a test sets one."""
    limits: dict[int, int] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), resource.RLIM_INFINITY))
    return limits


VERSION_1 = "9:name=systemd:/\n4:memory,hugetlb:/job/step\n1:cpu:/\n0::/\n"


@pytest.mark.parametrize(
    ("lines", "files", "cap"),
    [
        (
            "0::/job/step\n",
            {"job/step/memory.max": "max\n", "job/memory.max": "5000000\n"},
            MemoryCap(5_000_000, "cgroup memory.max"),
        ),
        ("0::/job/step\n", {"job/step/memory.max": "900\n", "job/memory.max": "1000\n"}, MemoryCap(900, "cgroup memory.max")),
        ("0::/out/of/sight\n", {"memory.max": "1000\n"}, MemoryCap(1000, "cgroup memory.max")),  # in a container
        ("0::/job\n", {"job/memory.max": "max\n"}, None),
        (
            VERSION_1,
            {"memory/job/step/memory.limit_in_bytes": "4096\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
            MemoryCap(4096, "cgroup memory.limit_in_bytes"),
        ),
        (VERSION_1, {"memory/job/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", {}, None),
        ("broken\n", {}, None),
    ],
)
def test_the_tightest_control_group_counts(lines: str, files: dict[str, str], cap: MemoryCap | None, tmp_path: Path) -> None:
    assert limits_here(groups(tmp_path, lines, files)) == cap


def test_a_process_without_control_groups_has_no_cap(tmp_path: Path) -> None:
    assert limits_here(tmp_path) is None


def test_the_tightest_of_all_counts(no_resource_limits: dict[int, int], tmp_path: Path) -> None:
    root = groups(tmp_path, "0::/job\n", {"job/memory.max": "3000\n"})
    no_resource_limits[resource.RLIMIT_AS] = 4000
    assert limits_here(root) == MemoryCap(3000, "cgroup memory.max")
    no_resource_limits[resource.RLIMIT_AS] = 2000
    assert limits_here(root) == MemoryCap(2000, "ulimit -v")
    no_resource_limits[resource.RLIMIT_DATA] = 1000
    assert limits_here(root) == MemoryCap(1000, "ulimit -d")


@pytest.mark.parametrize(
    ("lines", "files", "kills"),
    [
        ("0::/job\n", {"job/memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2),
        (VERSION_1, {"memory/job/step/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"}, 7),
        ("0::/job\n", {}, 0),
        ("", {}, 0),
    ],
)
def test_what_the_kernel_has_killed_is_counted(lines: str, files: dict[str, str], kills: int, tmp_path: Path) -> None:
    assert oom_kills(groups(tmp_path, lines, files)) == kills
