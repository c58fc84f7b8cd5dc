"""What to say when memory runs out: who held how much, what the cap was, and what would help."""

from __future__ import annotations

import errno
import re

import psutil

from halocast.errors import RunError
from halocast.runtime.memory_limit import MemoryCap, human_size, limits_here

# torch's CPU and CUDA allocators, C++, NumPy, Arrow, the dynamic linker, and what Python prints of a MemoryError
_WORDS = re.compile(
    r"can(no|')t allocate memory|not enough memory|unable to allocate|\bbad_alloc\b|\bMemoryError\b|out of memory"
    r"|failed to map segment",
    re.IGNORECASE,
)
_ASKED = re.compile(r"tried to allocate (\d+) bytes")


class OutOfMemoryError(RunError):
    """An allocation failed; the message begins with "ran out of memory"."""


def says_out_of_memory(text: str) -> bool:
    """Whether a message, or a log's last line, is about memory that could not be had."""
    return _WORDS.search(text) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, in any of the libraries' ways."""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def out_of_memory(error: BaseException) -> OutOfMemoryError:
    """`error` as one line with what this process holds and may hold; to be called in the process that ran out."""
    if isinstance(error, OutOfMemoryError):
        return error
    cap = limits_here()
    asked = _ASKED.search(str(error))
    return OutOfMemoryError(describe(held_bytes(cap), cap, int(asked[1]) if asked else None))


def describe(held: int, cap: MemoryCap | None, asked: int | None) -> str:
    """ "ran out of memory: 1.2 GB more were asked for with 812 MB held; the cap is 1.5 GB (ulimit -v)"."""
    holding = f"{human_size(held)} held"
    what = f"{human_size(asked)} more were asked for with {holding}" if asked else f"no more could be had with {holding}"
    return f"ran out of memory: {what}; {describe_cap(cap)}"


def describe_cap(cap: MemoryCap | None) -> str:
    return f"the cap is {human_size(cap.size)} ({cap.source})" if cap else "there is no cap but the machine's memory"


def held_bytes(cap: MemoryCap | None) -> int:
    """What counts towards `cap`: address space under ``ulimit -v``, else resident memory."""
    memory = psutil.Process().memory_info()
    return int(memory.vms if cap is not None and cap.source == "ulimit -v" else memory.rss)
