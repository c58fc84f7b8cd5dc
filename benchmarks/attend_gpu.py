"""The CUDA kernels of attention and extremes against a gathered copy of the same rows, and against torch operators: one run.

    python -m benchmarks.attend_gpu --out benchmarks/results     the table, also as dated Markdown and JSON
    python -m benchmarks.attend_gpu --quick                      one shape, few repetitions: a minute for everything

A gathered copy (index_select, a row for each edge) is the ceiling for anything that reads a row for each edge: a kernel's
rate is the bytes of the rows that its walks over edges read, over its time, and its share that of the copy's rate, in which
the rows written count too. A forward pass reads one row an edge. A backward pass walks twice, over targets and over
sources, and reads one row an edge in each; GATv2 two over sources, extremes two in their only walk. "torch" are the
operators that serve where the module was built without CUDA. Times come from CUDA events; figures are medians.

Before anything is timed, results on a smaller graph are compared with the CPU's: attention within rounding, extremes bit for
bit, and both with themselves, run again. Without a GPU nothing is measured, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.aggregate import community_graph
from torch import Tensor

from halocast.runtime import attention_kernels, attention_torch, kernels
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    ExtremeState,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gatv2Logits,
    Gradients,
    Logits,
)

KINDS = ("gat", "gat, dropout", "gatv2", "max")
SHAPES = ("4x32", "8x8", "1x64", "8x64")
CHECKED_NODES = 3_000
TOLERANCE = 2e-5
"""Of the largest element, float32 against the CPU's float32: sums of some tens of terms in another order."""
COPIED_EDGES = 1 << 22
"""Rows that a gathered copy moves at most: 2 GB of 128 columns."""

Step = Callable[[], object]
Result = dict[str, Any]


class AttentionCase:
    """Everything that attention over a graph's edges needs, and what it leaves behind."""

    def __init__(self, kind: str, edges: Edges, heads: int, dim: int, device: str) -> None:
        torch.manual_seed(0)
        nodes, width = edges.target_count, heads * dim
        self.edges = edges
        values, other, self.grad = (torch.randn(nodes, width).to(device) for _ in range(3))
        source, target = (torch.randn(nodes, heads).to(device) for _ in range(2))
        weight = torch.randn(heads, dim).to(device)
        self.values = values
        self.gradients: Gradients
        self.logits: Logits
        if kind == "gatv2":
            self.logits = Gatv2Logits(other, weight)
            self.gradients = Gatv2Gradients(torch.empty_like(values), torch.zeros_like(other), torch.zeros_like(weight))
        else:
            self.logits = GatLogits(source, target)
            self.gradients = GatGradients(torch.empty_like(values), torch.empty_like(source), torch.zeros_like(target))
        stream = kernels.Stream(seed=1, epoch=3, layer=1, purpose=kernels.PURPOSE_ATTENTION)
        named = torch.arange(nodes, device=device)
        self.dropout = AttentionDropout(kernels.Dropout(0.4, stream), named, named) if "dropout" in kind else None
        self.state = AttentionState.start(nodes, heads, dim, values)
        self.rows_read = {"forward": 1, "backward": 3 if kind == "gatv2" else 2}

    def restart(self) -> None:
        self.state.maximum.fill_(-torch.inf)
        self.state.sum.zero_()
        self.state.out.zero_()

    def forward(self) -> None:
        self.restart()
        attention_kernels.attend(self.edges, self.state, self.values, self.logits, dropout=self.dropout)
        attention_kernels.finish_attention(self.state)

    def backward(self) -> None:
        packed = attention_kernels.pack_targets(self.state, self.grad, self.logits)
        attention_kernels.attend_backward(
            self.edges, packed, self.grad, self.values, self.logits, self.gradients, dropout=self.dropout
        )

    def forward_torch(self) -> None:
        self.restart()
        attention_torch.attend(self.edges, self.state, self.values, self.logits, self.dropout)
        attention_torch.finish_attention(self.state)

    def backward_torch(self) -> None:
        packed = attention_kernels.pack_targets(self.state, self.grad, self.logits)
        attention_torch.attend_backward(
            self.edges, packed, self.grad, self.values, self.logits, self.gradients, self.dropout, False
        )

    def results(self) -> dict[str, Tensor]:
        """Output and gradients of a first pass."""
        for name in ("target", "weight"):
            if hasattr(self.gradients, name):
                getattr(self.gradients, name).zero_()
        self.forward()
        self.backward()
        given = {name: each for name, each in vars(self.gradients).items() if each is not None}
        return {name: each.clone() for name, each in {"out": self.state.out, **given}.items()}


class ExtremeCase:
    """The same of a maximum over neighbours; features of few values, so that there are ties."""

    def __init__(self, edges: Edges, width: int, device: str) -> None:
        torch.manual_seed(0)
        nodes = edges.target_count
        self.edges, self.rows_read = edges, {"forward": 1, "backward": 2}
        self.values = torch.randint(-9, 10, (nodes, width)).float().to(device)
        self.grad = torch.randn(nodes, width).to(device)
        self.to = torch.empty_like(self.grad)
        self.state = ExtremeState.start(nodes, width, self.values)

    def restart(self) -> None:
        self.state.value.fill_(-torch.inf)
        self.state.ties.zero_()

    def forward(self) -> None:
        self.restart()
        attention_kernels.merge_extremes(self.edges, self.state, self.values)

    def backward(self) -> None:
        attention_kernels.extremes_backward(self.edges, self.state, self.grad, self.values, self.to)

    def forward_torch(self) -> None:
        self.restart()
        attention_torch.merge_extremes(self.edges, self.state, self.values)

    def backward_torch(self) -> None:
        attention_torch.extremes_backward(self.edges, self.state, self.grad, self.values, self.to, False)

    def results(self) -> dict[str, Tensor]:
        self.forward()
        self.backward()
        given = {"value": self.state.value, "ties": self.state.ties, "gradient": self.to}
        return {name: each.clone() for name, each in given.items()}


Case = AttentionCase | ExtremeCase


def case_of(kind: str, edges: Edges, heads: int, dim: int, device: str) -> Case:
    return ExtremeCase(edges, heads * dim, device) if kind == "max" else AttentionCase(kind, edges, heads, dim, device)


def edges_of(nodes: int, degree: int, device: str) -> Edges:
    indptr, indices = community_graph(nodes, degree, 0)
    return Edges.from_csr(torch.from_numpy(indptr).to(device), torch.from_numpy(indices).to(device), nodes)


def check(kind: str, heads: int, dim: int, degree: int) -> float:
    """Raise unless the GPU agrees with the CPU, and with itself; returns the largest difference of any result."""
    expected, ours, again = (
        case_of(kind, edges_of(CHECKED_NODES, degree, device), heads, dim, device).results()
        for device in ("cpu", "cuda", "cuda")
    )
    worst = 0.0
    for name, cpu in expected.items():
        if not torch.equal(ours[name], again[name]):
            raise RuntimeError(f"{kind}, {heads} × {dim}: {name} differs from one run to the next")
        if kind == "max" and not torch.equal(ours[name].cpu(), cpu):
            raise RuntimeError(f"{kind}, {heads} × {dim}: {name} differs from the CPU's")
        worst = max(worst, float((ours[name].cpu() - cpu).abs().max() / cpu.abs().max().clamp(min=1.0)))
    if worst > TOLERANCE:
        raise RuntimeError(f"{kind}, {heads} × {dim}: {worst:.1e} from the CPU's results; allowed: {TOLERANCE:.0e}")
    return worst


def milliseconds(run: Step) -> float:
    """On the GPU, from the first kernel's start to the last one's end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Milliseconds of each contender, taken in turns, and rates against the gathered copy's."""
    sources = case.edges.sources[:COPIED_EDGES]
    row_bytes = case.values.shape[1] * 4
    copied = torch.empty(sources.numel(), case.values.shape[1], device="cuda")
    ways: dict[str, Step] = {
        "gathered copy": lambda: torch.index_select(case.values, 0, sources, out=copied),
        "forward": case.forward,
        "backward": case.backward,
        "torch forward": case.forward_torch,
        "torch backward": case.backward_torch,
    }
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(milliseconds(run))
    taken = {name: statistics.median(each) for name, each in times.items()}
    rates = {"gathered copy": 2 * sources.numel() * row_bytes / taken["gathered copy"] / 1e6}
    for name, rows in case.rows_read.items():
        rates[name] = rows * case.edges.sources.numel() * row_bytes / taken[name] / 1e6
    shares = {f"{name}, share": rates[name] / rates["gathered copy"] for name in case.rows_read}
    return (
        {f"{name} ms": each for name, each in taken.items()} | {f"{name} GB/s": each for name, each in rates.items()} | shares
    )


def table(results: list[Result]) -> str:
    names = ["kind", "heads × dim", "copy GB/s"]
    names += [name for way in ("forward", "backward") for name in (f"{way} ms", "GB/s (share)", "torch ms")]
    lines = ["| " + " | ".join([*names, "from CPU"]) + " |", "|---" * (len(names) + 1) + "|"]
    for each in results:
        cells = [each["kind"], each["shape"].replace("x", " × "), f"{each['gathered copy GB/s']:.0f}"]
        for name in ("forward", "backward"):
            cells += [f"{each[f'{name} ms']:.2f}", f"{each[f'{name} GB/s']:.0f} ({each[f'{name}, share']:.0%})"]
            cells += [f"{each[f'torch {name} ms']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{each['difference']:.1e}"]) + " |")
    return "\n".join(lines)


def unavailable() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    if not kernels.has_cuda_kernels():
        return "the kernels were built without CUDA: put nvcc on the path and build again"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=400_000, help="whose rows exceed the GPU's cache")
    parser.add_argument("--degree", type=int, default=30)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="heads x dim of one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="shape 4x32, 3 repetitions")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()
    reason = unavailable()
    if reason:
        print(f"attend_gpu: {reason}; nothing was measured", file=sys.stderr)
        return 3
    if options.quick:
        options.shapes, options.repeats = ("4x32",), 3

    results: list[Result] = []
    edges = edges_of(options.nodes, options.degree, "cuda")
    for shape, kind in itertools.product(options.shapes, options.kinds):
        heads, dim = map(int, shape.split("x"))
        difference = check(kind, heads, dim, options.degree)
        figures = measure(case_of(kind, edges, heads, dim, "cuda"), options.repeats)
        results.append({"kind": kind, "shape": shape, "difference": difference, **figures})
        print(table(results[-1:]).splitlines()[-1], flush=True)

    setting = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "nodes": options.nodes,
        "edges": edges.sources.numel(),
        "repeats": options.repeats,
    }
    text = f"# CUDA attention, {setting['date']}\n\n{setting}\n\n{table(results)}\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"attend-gpu-{setting['device'].replace(' ', '-')}-{setting['date']}"
        Path(f"{stem}.md").write_text(text)
        Path(f"{stem}.json").write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
