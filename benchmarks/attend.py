"""Fused attention and extremes over neighbours beside the same composed of torch operators, forward and backward.

    python -m benchmarks.attend                       the table on the screen
    python -m benchmarks.attend --out benchmarks/results
                                                      also a dated Markdown and JSON file

Both do the same on the same graph in float32: values ``[nodes, heads · dim]`` and half-logits in, output and all
gradients out. "torch" gathers rows for each edge, applies leaky_relu, a softmax by scatter_reduce, exp and index_add, and
sums with index_add; autograd goes back. Contenders take turns within each repetition; the figures are medians, and what
each needs beyond what was resident before it (the highest of its first two turns; Linux only).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.aggregate import community_graph, elapsed, processor
from torch import Tensor
from torch.nn.functional import leaky_relu

from halocast.runtime import attention, kernels
from halocast.runtime.attention_types import Edges, GatLogits, Gatv2Logits

Step = Callable[[], tuple[Tensor, ...]]
"""Output and gradients."""


def steps(kind: str, edges: Edges, heads: int, dim: int, seed: int) -> dict[str, Step]:
    """One forward and backward pass of each contender."""
    torch.manual_seed(seed)
    nodes = edges.target_count
    source = edges.sources.long()
    target = torch.repeat_interleave(torch.arange(nodes), edges.end - edges.begin)
    values, other = torch.randn(nodes, heads * dim, requires_grad=True), torch.randn(nodes, heads * dim, requires_grad=True)
    halves = [torch.randn(nodes, heads, requires_grad=True) for _ in range(2)]
    weight, grad = torch.randn(heads, dim, requires_grad=True), torch.randn(nodes, heads * dim)
    index = target[:, None].expand(-1, heads * dim)

    def softmax_sum(logit: Tensor) -> Tensor:
        highest = logit.new_full((nodes, heads), -torch.inf).scatter_reduce(
            0, target[:, None].expand(-1, heads), logit.detach(), "amax"
        )
        share = (logit - highest[target]).exp()
        share = share / share.new_zeros(nodes, heads).index_add(0, target, share)[target]
        rows = share[:, :, None] * values[source].view(-1, heads, dim)
        return values.new_zeros(nodes, heads, dim).index_add(0, target, rows).flatten(1)

    if kind == "gat":
        leaves: list[Tensor] = [values, *halves]
        forward = {
            "torch": lambda: softmax_sum(leaky_relu(halves[0][source] + halves[1][target], 0.2)),
            "fused": lambda: attention.attend(edges, values, GatLogits(halves[0], halves[1])),
        }
    elif kind == "gatv2":
        leaves = [values, other, weight]
        forward = {
            "torch": lambda: softmax_sum(
                (leaky_relu((values[source] + other[target]).view(-1, heads, dim), 0.2) * weight).sum(2)
            ),
            "fused": lambda: attention.attend(edges, values, Gatv2Logits(other, weight)),
        }
    else:
        leaves = [values]
        forward = {
            "torch": lambda: values.new_zeros(nodes, heads * dim).scatter_reduce(
                0, index, values[source], "amax", include_self=False
            ),
            "fused": lambda: attention.extreme(edges, values),
        }

    def step(run: Callable[[], Tensor]) -> Step:
        def both() -> tuple[Tensor, ...]:
            out = run()
            return out.detach(), *torch.autograd.grad(out, leaves, grad)

        return both

    return {name: step(run) for name, run in forward.items()}


def check(ways: dict[str, Step]) -> None:
    """Both must agree before either is timed."""
    for ours, theirs in zip(*(run() for run in ways.values()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def peak_bytes(run: Step) -> int | None:
    """Highest resident memory of a run beyond what was there; ``None`` where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    except OSError:
        return None
    before = status_bytes("VmRSS")
    run()
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(ways: dict[str, Step], repeats: int) -> dict[str, Any]:
    memory = {f"{name} MB": max((peak_bytes(run) or 0 for _ in range(2)), default=0) / 1e6 for name, run in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(elapsed(run))
    medians = {f"{name} ms": float(np.median(taken)) for name, taken in times.items()}
    ratios = [theirs / ours for theirs, ours in zip(times["torch"], times["fused"], strict=True)]
    return {**medians, "ratio": float(np.median(ratios)), **memory}


def table(results: list[dict[str, Any]]) -> str:
    head = ["nodes", "kind", "heads × dim", "threads", "torch ms", "fused ms", "torch / fused", "torch MB", "fused MB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case in results:
        cells = [f"{case['nodes']:,}", case["kind"], f"{case['heads']} × {case['dim']}", str(case["threads"])]
        cells += [f"{case['torch ms']:,.0f}", f"{case['fused ms']:,.1f}", f"{case['ratio']:.1f}"]
        cells += [f"{case['torch MB']:,.0f}", f"{case['fused MB']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--degree", type=int, default=30)
    parser.add_argument("--shapes", nargs="+", default=["4x32"], help="heads x dim of one")
    parser.add_argument("--kinds", nargs="+", choices=["gat", "gatv2", "max"], default=["gat", "gatv2", "max"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()

    results: list[dict[str, Any]] = []
    for nodes in options.nodes:
        indptr, indices = community_graph(nodes, options.degree, options.seed)
        edges = Edges.from_csr(torch.from_numpy(indptr), torch.from_numpy(indices), nodes)
        for shape, kind, threads in itertools.product(options.shapes, options.kinds, options.threads):
            torch.set_num_threads(threads)
            heads, dim = (int(number) for number in shape.split("x"))
            ways = steps(kind, edges, heads, dim, options.seed)
            check(ways)
            case = {"nodes": nodes, "edges": indices.size, "kind": kind, "heads": heads, "dim": dim, "threads": threads}
            results.append({**case, **measure(ways, options.repeats)})
            print(table(results[-1:]).splitlines()[-1], flush=True)

    setting = {
        "date": datetime.date.today().isoformat(),
        "isa": kernels.isa(),
        "torch": torch.__version__,
        "processor": processor(),
        "repeats": options.repeats,
        "load average": [round(load, 2) for load in os.getloadavg()],
    }
    text = (
        f"# Attention and extremes, fused and composed of torch operators, {setting['date']}\n\n{setting}\n\n{table(results)}\n"
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"attend-{setting['date']}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")


if __name__ == "__main__":
    main()
