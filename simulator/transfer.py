"""Costs that were measured on one device, moved to another by the ratio of what the two can do at most.

Each term of a cost is bound by something: rows, values and bytes by the memory, floating-point operations by matrix products,
constants and messages by how long a kernel takes to start. S. Williams, A. Waterman, D. Patterson, Roofline: an insightful
visual performance model, CACM 52(4), 2009. What comes out was measured nowhere, and every price says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import numpy as np

from halocast.errors import MisuseError, RunError
from halocast.simulator.catalogue import Device
from halocast.simulator.costs import Ceilings, Costs, LinearCost
from halocast.traces.trace import cpu_name

MEMORY_TERMS = ("row_values", "edge_values", "rows", "bytes")
MOVED_SPREAD = 0.5
"""Standard deviation of log(true / moved) that is taken for granted: nobody has measured it."""
COPIED_BYTES = 256_000_000
PRODUCT_SIZE = 2048
REPEATS = 5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What BLAS libraries take their number of threads from, once, when they are loaded."""


def move_costs(costs: Costs, target: Device) -> Costs:
    """What the operations would cost a rank that has a whole `target` to itself.

    Host, network and memory costs stay the source's. Raises MisuseError for costs without ceilings and for moved ones.
    """
    if costs.moved:
        raise MisuseError(f"these costs were {costs.moved} already: move them from where they were measured")
    if costs.ceilings is None:
        raise MisuseError(
            f"these costs hold no ceilings of {costs.machine} to move them by: calibrate again with `halocast calibrate`"
        )
    source = costs.ceilings
    moved = f"moved from {costs.machine} to {target.title} by ceilings"
    return costs.model_copy(
        update={
            "device": target.title,
            "memory_bytes": int(target.memory_bytes.value),
            "operations": {name: move_cost(name, cost, source, target) for name, cost in costs.operations.items()},
            "notes": (*costs.notes, *_notes(costs, source)),
            "moved": moved,
        }
    )


def move_cost(name: str, cost: LinearCost, source: Ceilings, target: Device) -> LinearCost:
    """One model: coefficients by what their terms are bound by, the residual widened by `MOVED_SPREAD`.

    Matrix products (`Transform`) go by their flops; whatever else counts flops, as Aggregate does, waits for the memory.
    """
    memory, gemm = source.memory_rate / target.memory_rate.achievable, source.gemm_rate / target.gemm_rate.achievable
    is_product = name.rpartition("/")[2].startswith("Transform")
    factors = {"flops": gemm if is_product else memory, **dict.fromkeys(MEMORY_TERMS, memory)}
    coefficients = {term: value * factors.get(term, 1.0) for term, value in cost.coefficients.items()}
    if target.kind == "gpu" and target.launch_seconds is not None:
        coefficients["constant"] = target.launch_seconds.value
        if "messages" in coefficients:
            coefficients["messages"] = target.launch_seconds.value
    return cost.model_copy(update={"coefficients": coefficients, "residual": float(np.hypot(cost.residual, MOVED_SPREAD))})


def _notes(costs: Costs, source: Ceilings) -> list[str]:
    """What a moved forecast takes for granted besides."""
    notes = [f"the standard deviation of moving, {MOVED_SPREAD:g} of a logarithm, is assumed"]
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
    print(json.dumps({"memory_rate": 2.0 * copy_rate(threads), "gemm_rate": gemm_rate()}))  # a copy reads and writes


def copy_rate(threads: int, size: int = COPIED_BYTES) -> float:
    """Bytes per second of copying `size` bytes, a share on each thread."""
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
