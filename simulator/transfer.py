"""Costs that were measured on one device, moved to another by the ratio of what the two can do at most.

Each term of a cost is bound by something: rows, values and bytes by the memory, floating-point operations by matrix products,
constants and messages by how long a kernel takes to start. S. Williams, A. Waterman, D. Patterson, Roofline: an insightful
visual performance model, CACM 52(4), 2009. What comes out was measured nowhere, and every price says so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
from pydantic import Field

from halocast.errors import MisuseError, RunError
from halocast.simulator.catalogue import Device
from halocast.simulator.costs import Costs, EpochError, LinearCost, Price, Record
from halocast.traces.operations import Operation

MEMORY_TERMS = ("row_values", "edge_values", "rows", "bytes")
MOVED_SPREAD = 0.5
"""Standard deviation of log(true / moved) that is taken for granted: nobody has measured it."""
NORMAL_QUANTILES = (-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645)
"""The 5th, 15th, ... 95th percentile of a standard normal distribution."""
COPIED_BYTES = 256_000_000
PRODUCT_SIZE = 2048
REPEATS = 5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What BLAS libraries take their number of threads from, once, when they are loaded."""


class Ceilings(Record):
    """What a machine can do at most, as measured."""

    memory_rate: float = Field(gt=0.0, allow_inf_nan=False)
    """Bytes per second, read and written."""
    gemm_rate: float = Field(gt=0.0, allow_inf_nan=False)
    """Single-precision flop/s of matrix products."""
    copy_rate: float = Field(gt=0.0, allow_inf_nan=False)
    """Bytes per second that are copied in memory."""
    date: str
    machine: str
    threads: int = Field(default=1, ge=1)
    """On which these were reached: as many as a rank of the calibration runs had."""


class MovedCosts(Costs):
    """Costs of a device that nothing was measured on: every price is extrapolated."""

    moved: str = Field(min_length=1)
    """From where to where."""

    def price(self, operation: Operation, fingerprint: str, ranks: int) -> Price:
        """As `Costs.price`, marked."""
        price = super().price(operation, fingerprint, ranks)
        reason = f"{self.moved}; {price.extrapolated}" if price.extrapolated else self.moved
        return price.model_copy(update={"extrapolated": reason})


def move_costs(costs: Costs, source: Ceilings, target: Device) -> Costs:
    """What the operations would cost a rank that has a whole `target` to itself.

    `source` are the ceilings of the machine that `costs` were measured on. Host, network and memory costs stay the source's.
    Raises MisuseError for costs that were moved before.
    """
    if isinstance(costs, MovedCosts):
        raise MisuseError(f"costs were {costs.moved} already: move them from where they were measured")
    moved = f"moved from {source.machine} to {target.title} by measured ceilings"
    return MovedCosts(
        **{
            **dict(costs),
            "device": target.title,
            "memory_bytes": int(target.memory_bytes.value),
            "operations": {name: move_cost(cost, source, target) for name, cost in costs.operations.items()},
            "errors": _widened(costs.errors),
            "notes": (*costs.notes, *_notes(costs, source, target, moved)),
            "moved": moved,
        }
    )


def move_cost(cost: LinearCost, source: Ceilings, target: Device) -> LinearCost:
    """One model: coefficients by what their terms are bound by, the residual widened by `MOVED_SPREAD`."""
    memory, gemm = source.memory_rate / target.memory_rate.achievable, source.gemm_rate / target.gemm_rate.achievable
    factors = {"flops": gemm, **dict.fromkeys(MEMORY_TERMS, memory)}
    coefficients = {term: value * factors.get(term, 1.0) for term, value in cost.coefficients.items()}
    if target.kind == "gpu" and target.launch_seconds is not None:
        coefficients["constant"] = target.launch_seconds.value
        if "messages" in coefficients:
            coefficients["messages"] = target.launch_seconds.value
    return cost.model_copy(update={"coefficients": coefficients, "residual": float(np.hypot(cost.residual, MOVED_SPREAD))})


def _widened(errors: tuple[EpochError, ...]) -> tuple[EpochError, ...]:
    """The errors that intervals are made of, each scattered as moving may be wrong."""
    known = errors or (EpochError(oversubscribed=False, log_ratio=0.0, at_speed=0.0),)
    return tuple(
        each.model_copy(update={"log_ratio": each.log_ratio + MOVED_SPREAD * quantile})
        for each in known
        for quantile in NORMAL_QUANTILES
    )


def _notes(costs: Costs, source: Ceilings, target: Device, moved: str) -> list[str]:
    notes = [
        f"operations {moved} ({source.date}); the standard deviation of the error, {MOVED_SPREAD:g} of a logarithm, is assumed",
        f"host, network and memory costs are still those of {costs.machine}",
    ]
    if source.machine != costs.machine:
        notes.append(f"ceilings were measured on {source.machine}, operations on {costs.machine}")
    if set(costs.calibrated.threads) != {source.threads}:
        threads = ", ".join(map(str, costs.calibrated.threads))
        notes.append(f"ceilings were measured on {source.threads} threads, operations on {threads}")
    return notes


# -- measuring --------------------------------------------------------------------------------------------------


def measure_ceilings(*, threads: int = 1) -> Ceilings:
    """What this machine reaches on so many threads, by NumPy: medians of copying 256 MB and of multiplying 2048² matrices.

    Takes seconds and half a gigabyte. Raises RunError where the measuring process fails.
    """
    if threads < 1:
        raise MisuseError(f"threads = {threads} is not allowed: 1 or more")
    # BLAS reads its number of threads when it is loaded, and here it has been: measure in a process of its own
    script = f"from halocast.simulator.transfer import print_rates; print_rates({threads})"
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise RunError(f"measuring this machine's ceilings failed: {last}")
    rates = json.loads(process.stdout)
    return Ceilings(**rates, date=date.today().isoformat(), machine=cpu_name(), threads=threads)


def print_rates(threads: int) -> None:
    """What the measuring process does: the rates as JSON."""
    copied = copy_rate(threads)
    print(json.dumps({"memory_rate": 2.0 * copied, "gemm_rate": gemm_rate(), "copy_rate": copied}))


def copy_rate(threads: int, size: int = COPIED_BYTES) -> float:
    """Bytes per second of copying `size` bytes, a share on each thread. Reading and writing makes it twice as many."""
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return size / _median_seconds(lambda: list(pool.map(lambda pair: np.copyto(*pair), pieces)))


def gemm_rate(size: int = PRODUCT_SIZE) -> float:
    """flop/s of a single-precision product of two [size, size] matrices, on the threads BLAS was loaded with."""
    left, right = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    product = np.empty_like(left)
    return 2.0 * size**3 / _median_seconds(lambda: np.matmul(left, right, out=product))


def _median_seconds(act: Callable[[], object]) -> float:
    act()  # touches every page, wakes every thread
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def cpu_name() -> str:
    """As traces name the machine."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
