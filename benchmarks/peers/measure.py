"""What every peer shares: one command line, one set of initial weights, one way to time, one JSON line.

The model is three layers of 128, ReLU between them, biases, no dropout, no normalisation of activations:

- gcn:  H' = D^-1/2 (A + I) D^-1/2 H W + b
- sage: H' = H W_self + D^-1 A H W_neighbour + b

and an epoch is forward, cross-entropy on the training nodes, backward and one Adam step. All peers start from the same
weights, so the losses that they print must agree: a peer that computes something else shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from benchmarks.peers.graph import PlainGraph, load_graph

LEARNING_RATE = 0.01
ALLOCATOR_SETTING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Makes glibc keep what it freed, so that large tensors are not mapped afresh in every epoch."""


@dataclass(frozen=True)
class Options:
    """The command line of a peer."""

    graph: Path
    model: str
    variant: str
    threads: int
    epochs: int
    warmup: int
    order: Path | None
    layers: int
    hidden: int
    seed: int


@dataclass(frozen=True)
class LayerWeights:
    """Initial weights of one layer, [dim_in, dim_out]; `own` is None in a GCN. Biases start at zero."""

    neighbour: npt.NDArray[np.float32]
    own: npt.NDArray[np.float32] | None


def parse_options(description: str | None, variants: Sequence[str] = ("",), models: Sequence[str] = ("gcn", "sage")) -> Options:
    """Reads the command line and starts the process anew where OMP_NUM_THREADS differs: OpenMP reads it when loaded."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help=".npz")
    parser.add_argument("--model", choices=models, default=models[0])
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=7, help="timed epochs, after the warm-up")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--order", type=Path, help=".npy: entry i is the id of the node that row i shall hold")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = Options(**vars(parser.parse_args()))
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return options


def load_single_label_graph(options: Options) -> PlainGraph:
    """The graph in the order asked for; the peers train on cross-entropy only."""
    graph = load_graph(options.graph, options.order)
    if graph.multilabel:
        raise SystemExit(f"{options.graph}: multi-label; the peers take graphs with one label a node")
    return graph


def layer_dims(graph: PlainGraph, options: Options) -> list[tuple[int, int]]:
    """(dim_in, dim_out) of each layer."""
    dims = [graph.feature_dim, *[options.hidden] * (options.layers - 1), graph.classes]
    return list(itertools.pairwise(dims))


def initial_weights(graph: PlainGraph, options: Options) -> list[LayerWeights]:
    """Glorot-uniform weights, the same for every peer with the same seed."""
    generator = np.random.default_rng(options.seed)

    def glorot(dim_in: int, dim_out: int) -> npt.NDArray[np.float32]:
        bound = (6.0 / (dim_in + dim_out)) ** 0.5
        return generator.uniform(-bound, bound, (dim_in, dim_out)).astype(np.float32)

    return [
        LayerWeights(neighbour=glorot(*dims), own=glorot(*dims) if options.model == "sage" else None)
        for dims in layer_dims(graph, options)
    ]


def measure(peer: str, options: Options, epoch: Callable[[], float]) -> None:
    """Times `epoch`, which trains one epoch and returns its loss, and prints the JSON line."""
    resident = _resident_mb()
    _reset_peak()
    for _ in range(options.warmup):
        epoch()
    epoch_ms: list[float] = []
    loss = float("nan")
    for _ in range(options.epochs):
        start = time.perf_counter_ns()
        loss = epoch()
        epoch_ms.append((time.perf_counter_ns() - start) / 1e6)
    print(
        json.dumps(
            {
                "peer": peer,
                "model": options.model,
                "threads": options.threads,
                "order": options.order.stem if options.order else "as-is",
                "malloc": malloc_setting(),
                "epoch_ms": [round(value, 2) for value in epoch_ms],
                "median_ms": round(statistics.median(epoch_ms), 2),
                "rss_before_mb": round(resident, 1),
                "peak_mb": round(_peak_mb(), 1),
                "loss": loss,
            }
        ),
        flush=True,
    )


def malloc_setting() -> str:
    """`tuned` where this process runs under ALLOCATOR_SETTING, else `default`."""
    tuned = all(os.environ.get(name) == value for name, value in ALLOCATOR_SETTING.items())
    return "tuned" if tuned else "default"


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def _reset_peak() -> None:
    """Loading the graph must not count; where the kernel refuses, the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
