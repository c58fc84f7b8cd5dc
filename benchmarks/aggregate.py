"""Neighbour aggregation, ours beside torch's: one table of medians and ratios, measured in one run.

    python benchmarks/aggregate.py                       the table on the screen
    python benchmarks/aggregate.py --out benchmarks/results
                                                         also a dated Markdown and JSON file
    python benchmarks/aggregate.py --graph FILE.npz      a graph of your own (keys: indptr, indices)

Every contender computes out[i] = Σ_e values[e] · features[indices[e]] in float32 over the same edges. Contenders take
turns within each repetition, so a change of the machine's mood hits all of them; the figure is the median of each.
"ours, scaled" has a factor for each row and column instead of each edge; "2 MB" has its features (and our output) on
huge pages, which persistent buffers can ask for.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pymetis
import torch

from halocast.runtime import kernels

Contender = Callable[[], torch.Tensor]
Case = dict[str, Any]

LOCALITY_PARTS = 256
"""Parts of the METIS order: enough that a part's rows fit the caches."""


def community_graph(nodes: int, degree: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric power-law graph with communities, as (indptr, indices) with the nodes in random order.

    Nodes draw a weight from a Pareto law (shape 1.5, cut at 100 times the least); 90 % of the edges join two nodes of
    one of nodes / 400 communities and the rest any two, both ends with a chance proportional to their weights.
    """
    generator = np.random.default_rng(seed)
    communities = max(1, nodes // 400)
    community = np.sort(generator.integers(0, communities, nodes))
    weight = np.minimum(1 + generator.pareto(1.5, nodes), 100)
    heap = np.cumsum(weight)
    first = np.searchsorted(community, np.arange(communities + 1))
    heap_at = np.concatenate([[0.0], heap])
    count = nodes * degree // 2
    drawn = 3 * count // 2  # repeats and self-loops fall away
    source = np.searchsorted(heap, generator.random(drawn) * heap[-1])
    local = generator.random(drawn) < 0.9
    low = np.where(local, heap_at[first[community[source]]], 0.0)
    high = np.where(local, heap_at[first[community[source] + 1]], heap[-1])
    target = np.minimum(np.searchsorted(heap, low + generator.random(drawn) * (high - low)), nodes - 1)
    pairs = np.unique(np.minimum(source, target) * nodes + np.maximum(source, target))
    pairs = generator.permutation(pairs[pairs // nodes != pairs % nodes])[:count]
    name = generator.permutation(nodes)
    left, right = name[pairs // nodes], name[pairs % nodes]
    return compress(np.concatenate([left, right]), np.concatenate([right, left]), nodes)


def compress(rows: np.ndarray, columns: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) pairs, none twice, as (indptr int64, indices int32)."""
    pairs = np.sort(rows.astype(np.int64) * nodes + columns)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs // nodes, minlength=nodes))])
    return indptr.astype(np.int64), (pairs % nodes).astype(np.int32)


def metis_order(indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same graph with its nodes renumbered part by part."""
    nodes = indptr.size - 1
    _, part = pymetis.part_graph(min(LOCALITY_PARTS, nodes), pymetis.CSRAdjacency(indptr, indices))
    name = np.empty(nodes, dtype=np.int64)
    name[np.argsort(part, kind="stable")] = np.arange(nodes)
    rows = np.repeat(np.arange(nodes), np.diff(indptr))
    return compress(name[rows], name[indices], nodes)


def contenders(indptr: np.ndarray, indices: np.ndarray, dim: int, seed: int) -> dict[str, Contender]:
    """Each way of aggregating, ready to run; buffers are made here, except where an operator insists on its own."""
    torch.manual_seed(seed)
    nodes, edges = indptr.size - 1, indices.size
    pointer, index = torch.from_numpy(indptr), torch.from_numpy(indices)
    begin, end, wide_index = pointer[:-1], pointer[1:], index.long()
    offsets, lengths = begin.int(), end - begin
    rows = torch.repeat_interleave(torch.arange(nodes), lengths)
    features, values = torch.randn(nodes, dim), torch.rand(edges)
    out, scale = torch.empty(nodes, dim), torch.rand(nodes)
    huge_features, huge_out = torch.empty_like(features), torch.empty_like(out)
    kernels.advise_huge_pages(huge_features)
    kernels.advise_huge_pages(huge_out)
    huge_features.copy_(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = torch.sparse_csr_tensor(pointer, wide_index, values, (nodes, nodes))

    def index_add() -> torch.Tensor:
        return out.zero_().index_add_(0, rows, features[wide_index] * values[:, None])

    def segment_reduce() -> torch.Tensor:
        return torch.segment_reduce(features[wide_index] * values[:, None], "sum", lengths=lengths, axis=0, unsafe=True)

    def embedding_bag(source: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(index, source, offsets, mode="sum", per_sample_weights=values)

    return {
        "sparse_csr": lambda: matrix @ features,
        "index_add": index_add,
        "segment_reduce": segment_reduce,
        "embedding_bag": lambda: embedding_bag(features),
        "ours": lambda: kernels.aggregate(begin, end, index, features, out, values=values),
        "ours, scaled": lambda: kernels.aggregate(begin, end, index, features, out, row_scale=scale, column_scale=scale),
        "embedding_bag, 2 MB": lambda: embedding_bag(huge_features),
        "ours, 2 MB": lambda: kernels.aggregate(begin, end, index, huge_features, huge_out, values=values),
    }


def check(ways: dict[str, Contender]) -> None:
    """All contenders must agree before any is timed (the scaled one computes something else)."""
    results = [run().clone() for name, run in ways.items() if name != "ours, scaled"]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


def medians(ways: dict[str, Contender], repeats: int, slow_repeats: int) -> dict[str, float]:
    """Median milliseconds of each contender, taken in turns; those over ten times the fastest get fewer turns."""
    warm = {name: elapsed(run) for name, run in ways.items()}
    limit = 10 * min(warm.values())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, run in ways.items():
            if warm[name] < limit or turn < slow_repeats:
                times[name].append(elapsed(run))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def ratios(taken: dict[str, float]) -> dict[str, float]:
    """How many times as long embedding_bag takes, on pages of either size."""
    pairs = {"ratio": ("embedding_bag", "ours"), "ratio_huge_pages": ("embedding_bag, 2 MB", "ours, 2 MB")}
    return {key: taken[theirs] / taken[ours] for key, (theirs, ours) in pairs.items() if {theirs, ours} <= taken.keys()}


def elapsed(run: Contender) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def table(results: list[Case], names: list[str]) -> str:
    """Markdown: a row for each case, milliseconds, and ours against embedding_bag."""
    head = ["order", "threads", "dim", *(f"{name} ms" for name in names), "embedding_bag / ours", "the same, 2 MB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case in results:
        cells = [str(case["order"]), str(case["threads"]), str(case["dim"])]
        cells += [f"{case[name]:.2f}" if name in case else "–" for name in names]
        cells += [f"{case[key]:.2f}" if key in case else "–" for key in ("ratio", "ratio_huge_pages")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=int, default=30)
    parser.add_argument("--graph", type=Path, help=".npz with indptr and indices, instead of the generated graph")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 32, 64, 100, 128, 256, 602])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--orders", nargs="+", choices=["random", "metis"], default=["metis", "random"])
    parser.add_argument("--contenders", nargs="+", help="only these (default: all)")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--slow-repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()

    if options.graph:
        with np.load(options.graph, allow_pickle=False) as stored:
            graph = stored["indptr"].astype(np.int64), stored["indices"].astype(np.int32)
    else:
        graph = community_graph(options.nodes, options.degree, options.seed)
    orders: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "random": lambda: graph,
        "metis": lambda: metis_order(*graph),
    }

    results: list[Case] = []
    names: list[str] = []
    for order in options.orders:
        indptr, indices = orders[order]()
        for dim, threads in itertools.product(options.dims, options.threads):
            torch.set_num_threads(threads)
            ways = contenders(indptr, indices, dim, options.seed)
            if dim * indices.size > 1 << 29:  # the gathered edges would take over 2 GB, twice
                del ways["index_add"], ways["segment_reduce"]
            if options.contenders:
                ways = {name: run for name, run in ways.items() if name in options.contenders}
            check(ways)
            names = names or list(ways)
            taken = medians(ways, options.repeats, options.slow_repeats)
            results.append({"order": order, "threads": threads, "dim": dim, **taken, **ratios(taken)})
            print(table(results[-1:], names).splitlines()[-1], flush=True)

    setting = {
        "date": datetime.date.today().isoformat(),
        "nodes": indptr.size - 1,
        "edges": indices.size,
        "isa": kernels.isa(),
        "torch": torch.__version__,
        "processor": processor(),
        "repeats": options.repeats,
        "load average": [round(load, 2) for load in os.getloadavg()],
    }
    text = f"# Aggregation, {setting['date']}\n\n{setting}\n\n{table(results, names)}\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"aggregate-{setting['date']}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
