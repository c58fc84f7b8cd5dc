"""How much memory this process may take, and sizes as people write them.

A cap is the least of ``ulimit -v`` (RLIMIT_AS), ``ulimit -d`` (RLIMIT_DATA) and the memory limits of the process's control
groups, version 2 (``memory.max``) or 1 (``memory.limit_in_bytes``), its ancestors' included.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from halocast.errors import MisuseError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?|)b?", re.IGNORECASE)
_UNLIMITED = 1 << 60
"""Version 1 control groups say 2⁶³ less a page for none; nobody means an exbibyte."""


@dataclass(frozen=True, slots=True)
class MemoryCap:
    """The most bytes this process may take, and by whose word."""

    size: int
    source: str


def parse_size(text: str) -> int:
    """Bytes of ``2GB``, ``400 MB``, ``1.5GiB``, ``1g`` or a plain number; decimal units, binary ones with an i.

    Raises MisuseError for what is no size, and for less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise MisuseError(
            f"'{text}' is no memory size: write a number above 0 with B, kB, MB, GB, TB, KiB, MiB or GiB, such as 2GB"
        )
    return size


def human_size(size: float) -> str:
    """``812 MB``, ``1.2 GB``: decimal units, two or three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.5 and unit != "B" else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def limits_here(root: Path = Path("/")) -> MemoryCap | None:
    """The tightest cap on this process's memory, None where it has none; `root`: where /proc and /sys are."""
    caps = [*_resource_caps(), *_group_caps(root)]
    return min(caps, key=lambda cap: cap.size, default=None)


def oom_kills(root: Path = Path("/")) -> int:
    """Processes of this one's control group that the kernel has killed for want of memory so far; 0 where it does not count."""
    for name in ("memory.events", "memory.oom_control"):
        for folder in _groups(root):
            counts = dict(line.split()[:2] for line in _read(folder / name).splitlines() if len(line.split()) >= 2)
            if counts.get("oom_kill", "").isdigit():
                return int(counts["oom_kill"])
    return 0


def _resource_caps() -> Iterator[MemoryCap]:
    for kind, source in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield MemoryCap(soft, source)


def _group_caps(root: Path) -> Iterator[MemoryCap]:
    for folder in _groups(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            if text.isdigit() and int(text) < _UNLIMITED:
                yield MemoryCap(int(text), f"cgroup {name}")


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that count this process's memory, its own first, then their ancestors'."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # In a container the mount may show its own group as the root of all: then the path does not exist there.
        own = Path(path.lstrip("/"))
        yield from (mount / each for each in (own, *own.parents) if (mount / each).is_dir())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
