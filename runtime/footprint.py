"""How much memory this process holds, as the kernel counts it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.state_dict_saver import save


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident bytes of one rank's process; `peak` and `before_training` are above the interpreter and its libraries."""

    interpreter: int
    before_training: int
    peak: int
    device_peak: int = 0
    """Most bytes that torch had allocated on the GPU."""

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class FootprintMeter:
    """Take one when everything is imported and nothing loaded; it first makes libraries load what they load lazily."""

    def __init__(self) -> None:
        _use_libraries_once()
        self._interpreter = resident_bytes()
        self._before_training = 0

    def training_starts(self) -> None:
        """Give back what the set-up has freed, and forget its peak: what is reported is the peak of training."""
        with contextlib.suppress(OSError, AttributeError):  # glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before_training = resident_bytes() - self._interpreter
        with contextlib.suppress(OSError):  # without the right to reset it, the peak is that of the whole life
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> Footprint:
        device_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return Footprint(self._interpreter, self._before_training, peak_resident_bytes() - self._interpreter, device_peak)


def _use_libraries_once() -> None:
    """torch's optimisers import its compiler, its checkpoints and Parquet their writers, all on first use: some 50 MB."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()
    pq.write_table(pa.table({"a": [0]}), io.BytesIO())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"a": torch.zeros(1)}, checkpoint_id=folder, no_dist=True)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The high-water mark of resident memory (VmHWM); the present value where the system keeps none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident_bytes()
