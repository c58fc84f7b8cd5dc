"""The CUDA codec against a copy of the same rows, and against the wire format written in Triton: GB/s in one run.

    python -m benchmarks.codec_gpu                       the table on the screen
    python -m benchmarks.codec_gpu --out benchmarks/results
                                                         also a dated Markdown and JSON file
    python -m benchmarks.codec_gpu --quick               fewer dims and repetitions

A rate counts the bytes that must move: a copy reads and writes every row, packing reads the rows and writes the messages,
unpacking the other way round (adding reads what is there, too). Every share is a rate divided by that of the copy, which
takes its turns with the others within each repetition; "gathered" is measured against index_select of the same rows, the
other rows against Tensor.copy_. Times come from CUDA events, and the figure is the median. "checked" is the public
function, which waits for the kernel to learn whether some row could not be sent. Without a GPU nothing is measured, and
the exit code is 3.
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
from benchmarks import triton_codec
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.exchange import codec

DIMS = (32, 64, 100, 128, 256, 602)
WIDTHS = (2, 4, 8)
AIM = 0.8
"""Share of the copy's rate."""
CHECKED_ROWS = 2_000
"""Rows compared with the CPU's codec, bit for bit, before anything is timed."""

Contender = Callable[[], object]
Result = dict[str, Any]


class Case:
    """Rows of one dim and width, and every buffer that the contenders need."""

    def __init__(self, dim: int, width: int, one_sided: bool, megabytes: int) -> None:
        self.count = megabytes * 2**20 // (4 * dim)
        self.stream = kernels.Stream(seed=1, epoch=3, layer=1, purpose=kernels.PURPOSE_ROUNDING)
        rows = torch.randn(self.count, dim, device="cuda")
        self.rows = rows.relu_() if one_sided else rows
        self.copy = torch.empty_like(rows)
        self.nodes = torch.randperm(self.count, device="cuda")
        self.index = torch.randperm(self.count, device="cuda").int()
        self.layout = layout_of(self.count, dim, width, one_sided, "cuda")
        self.wire = torch.empty(self.layout.bytes, dtype=torch.uint8, device="cuda")
        self.first_bad = torch.full((1,), self.count, device="cuda")

    @property
    def row_bytes(self) -> int:
        return self.rows.numel() * 4

    def pack(self, index: Tensor | None = None) -> None:
        """The kernel alone: nobody waits for what it finds."""
        layout, stream = self.layout, self.stream
        kernels.native().pack_cuda(
            *kernels.place(self.rows), False, kernels.address(index), self.wire.data_ptr(), self.wire.numel(),
            layout.widths.data_ptr(), layout.offsets.data_ptr(), len(layout), layout.dim, layout.one_sided,
            layout.rounding.code, stream.seed, stream.epoch, stream.tag, self.nodes.data_ptr(),
            layout.headers.data_ptr(), layout.header_offsets.data_ptr(), len(layout.peers), 0,
            self.first_bad.data_ptr(), torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def unpack(self, index: Tensor | None = None, accumulate: bool = False) -> None:
        layout, stream = self.layout, self.stream
        kernels.native().unpack_cuda(
            self.wire.data_ptr(), self.wire.numel(), layout.widths.data_ptr(), layout.offsets.data_ptr(), len(layout),
            layout.dim, layout.one_sided, layout.rounding.code, stream.seed, stream.epoch, stream.tag,
            self.nodes.data_ptr(), *kernels.place(self.copy), False, kernels.address(index), accumulate,
            self.first_bad.data_ptr(), torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def pack_checked(self) -> None:
        codec.pack(self.rows, self.wire, self.layout, self.stream, self.nodes)

    def check(self) -> None:
        """The first rows of the message must be the CPU's, and come back as the CPU decodes them."""
        count = min(CHECKED_ROWS, self.count)
        dim, one_sided = self.layout.dim, self.layout.one_sided
        here = layout_of(count, dim, int(self.layout.widths[0]), one_sided, "cpu")
        expected = torch.empty(here.bytes, dtype=torch.uint8)
        codec.pack(self.rows[:count].cpu(), expected, here, self.stream, self.nodes[:count].cpu())
        decoded = torch.empty(count, dim)
        codec.unpack(expected, here, 0, self.stream, self.nodes[:count].cpu(), decoded)
        self.wire.fill_(0xA5)
        self.pack()
        header = int(here.offsets[0])
        if not torch.equal(self.wire[header : here.bytes].cpu(), expected[header:]):
            raise RuntimeError(f"dim {dim}: the GPU's message differs from the CPU's")
        self.copy.fill_(float("nan"))
        self.unpack()
        if int(self.first_bad) != self.count:
            raise RuntimeError(f"dim {dim}: the GPU refuses row {int(self.first_bad)}")
        if not torch.equal(self.copy[:count].cpu(), decoded) or bool(self.copy.isnan().any()):
            raise RuntimeError(f"dim {dim}: the GPU decodes other values than the CPU")


def layout_of(count: int, dim: int, width: int, one_sided: bool, device: str) -> codec.Layout:
    """One message of rows of one width."""
    widths = torch.full((count,), width, dtype=torch.uint8)
    return codec.Layout.of(widths, [(0, count)], dim, one_sided=one_sided, device=device)


def contenders(case: Case) -> dict[str, tuple[Contender, int, str]]:
    """Name: (what to run, bytes that must move, the copy it is measured against)."""
    rows, wire = case.row_bytes, case.layout.bytes
    return {
        "copy": (lambda: case.copy.copy_(case.rows), 2 * rows, "copy"),
        "gathered copy": (lambda: torch.index_select(case.rows, 0, case.index, out=case.copy), 2 * rows, "gathered copy"),
        "pack": (case.pack, rows + wire, "copy"),
        "gathered pack": (lambda: case.pack(case.index), rows + wire, "gathered copy"),
        "pack, checked": (case.pack_checked, rows + wire, "copy"),
        "unpack": (case.unpack, rows + wire, "copy"),
        "unpack, adding": (lambda: case.unpack(case.index, accumulate=True), 2 * rows + wire, "gathered copy"),
        **triton_contenders(case),
    }


def triton_contenders(case: Case) -> dict[str, tuple[Contender, int, str]]:
    """The Triton version with the tile that suits it best, if its bytes are ours; none where Triton is missing."""
    width = int(case.layout.widths[0])
    if not triton_codec.is_available() or width not in triton_codec.WIDTHS:
        return {}
    case.pack()
    ours = case.wire.clone()

    def pack(tile: triton_codec.Tile) -> None:
        triton_codec.pack(case.rows, case.wire, case.layout, case.stream, case.nodes, tile)

    def unpack(tile: triton_codec.Tile) -> None:
        triton_codec.unpack(case.wire, case.layout, case.copy, tile)

    tiles = triton_codec.tiles_for(case.layout.dim)
    best_pack = min(tiles, key=lambda tile: statistics.median(milliseconds(lambda: pack(tile)) for _ in range(4)))
    best_unpack = min(tiles, key=lambda tile: statistics.median(milliseconds(lambda: unpack(tile)) for _ in range(4)))
    if not torch.equal(case.wire, ours):
        print(f"note: at dim {case.layout.dim}, width {width} the Triton version's bytes differ from ours", flush=True)
    moved = case.row_bytes + case.layout.bytes
    return {
        "Triton pack": (lambda: pack(best_pack), moved, "copy"),
        "Triton unpack": (lambda: unpack(best_unpack), moved, "copy"),
    }


def milliseconds(run: Contender) -> float:
    """On the GPU, from the first kernel's start to the last one's end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(case: Case, repeats: int) -> dict[str, float]:
    """GB/s of each contender and its share of a copy's, taken in turns."""
    ways = contenders(case)
    for run, _, _ in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (run, _, _) in ways.items():
            times[name].append(milliseconds(run))
    rates = {name: ways[name][1] / statistics.median(taken) / 1e6 for name, taken in times.items()}
    shares = {f"{name}, share": rates[name] / rates[against] for name, (_, _, against) in ways.items() if name != against}
    return rates | shares


def table(results: list[Result]) -> str:
    """Markdown: GB/s of the copies, and of the others with their share of a copy's."""
    every = dict.fromkeys(name for result in results for name in result)  # in the order of their first appearance
    names = [name for name in every if name not in ("dim", "width") and not name.endswith(", share")]
    lines = ["| dim | width | " + " | ".join(f"{name} GB/s" for name in names) + " |", "|---" * (len(names) + 2) + "|"]
    for result in results:
        cells = []
        for name in names:
            share = result.get(f"{name}, share")
            rate = f"{result[name]:.0f}" if name in result else "–"
            cells.append(rate if share is None else f"{rate} ({share:.0%})")
        lines.append(f"| {result['dim']} | {result['width']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def misses(results: list[Result]) -> str:
    """Which of our kernels stay below the aim."""
    below = [
        f"dim {result['dim']}, width {result['width']}: {name} {result[f'{name}, share']:.0%}"
        for result in results
        for name in ("pack", "gathered pack", "unpack", "unpack, adding")
        if result[f"{name}, share"] < AIM
    ]
    return f"below {AIM:.0%} of the copy: " + ("; ".join(below) or "none")


def unavailable() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    if not kernels.has_cuda_kernels():
        return "the kernels were built without CUDA: put nvcc on the path and build again"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--two-sided", action="store_true", help="rows with negative values (default: as after ReLU)")
    parser.add_argument("--megabytes", type=int, default=1024, help="float32 rows of one case; well beyond the GPU's cache")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="dims 64 and 602, width 4, 5 repetitions")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()
    reason = unavailable()
    if reason:
        print(f"codec_gpu: {reason}; nothing was measured", file=sys.stderr)
        return 3
    if not triton_codec.is_available():
        print("note: Triton is not installed; its columns are left out", flush=True)
    if options.quick:
        options.dims, options.widths, options.repeats = (64, 602), (4,), 5

    results: list[Result] = []
    for dim, width in itertools.product(options.dims, options.widths):
        torch.manual_seed(0)
        case = Case(dim, width, not options.two_sided, options.megabytes)
        case.check()
        results.append({"dim": dim, "width": width, **measure(case, options.repeats)})
        print(table(results[-1:]).splitlines()[-1], flush=True)
        del case

    setting = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "rows of a case, MB": options.megabytes,
        "rows": "two-sided" if options.two_sided else "one-sided",
        "repeats": options.repeats,
    }
    text = f"# CUDA codec, {setting['date']}\n\n{setting}\n\n{table(results)}\n\n{misses(results)}\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"codec-gpu-{setting['device'].replace(' ', '-')}-{setting['date']}"
        Path(f"{stem}.md").write_text(text)
        Path(f"{stem}.json").write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
