"""The codec beside plain copying: `python -m benchmarks.codec [--quick] [--out DIR]`, one table of medians and ratios.

For each dim, width and kind of row (one-sided: after ReLU, no offset; two-sided: normal): packing contiguous rows beside
copying them, packing rows by index (a random permutation, the worst case) beside `index_select` of them into a warm
buffer, unpacking beside filling the rows with a constant. The arrays are larger than the caches. Contenders take turns
within each repetition, so a change of the machine's mood hits all of them; figures are medians, ratios those of medians.
"× eager" is the time of the same bytes from plain torch operations over ours, on a sixteenth of the rows; "prepack" is
torch's quantized::embedding_bag_*_prepack of the rows (nearest rounding, output allocated by torch).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch
from benchmarks.aggregate import elapsed, medians, processor

from halocast.runtime import kernels, kernels_torch
from halocast.runtime.exchange import codec
from halocast.traces.wire import WIDTHS

DIMS = (32, 64, 100, 128, 256, 602)
PREPACK = {8: "embedding_bag_byte_prepack", 4: "embedding_bag_4bit_prepack", 2: "embedding_bag_2bit_prepack"}
PAIRS = {"pack": "copy", "gathered pack": "index_select", "unpack": "fill"}
EAGER_SHARE = 16
STREAM = kernels.Stream(seed=1, epoch=7, layer=1, direction=0, purpose=kernels.PURPOSE_ROUNDING)


def measure(dim: int, width: int, one_sided: bool, megabytes: int, repeats: int, *, eager: bool) -> dict[str, Any]:
    """Median milliseconds of every contender for rows of one dim and width."""
    count = megabytes * (1 << 20) // (4 * dim)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, dim, generator=generator)
    if one_sided:
        rows.relu_()
    out = torch.empty_like(rows).copy_(rows)
    order = torch.randperm(count, generator=generator)
    nodes = torch.arange(count) * 7
    layout = codec.Layout.of(torch.full((count,), width, dtype=torch.uint8), [(0, count)], dim, one_sided=one_sided)
    wire = torch.zeros(layout.bytes, dtype=torch.uint8)
    ways = {
        "copy": lambda: out.copy_(rows),
        "pack": lambda: codec.pack(rows, wire, layout, STREAM, nodes),
        "index_select": lambda: torch.index_select(rows, 0, order, out=out),
        "gathered pack": lambda: codec.pack(rows, wire, layout, STREAM, nodes, index=order),
        "fill": lambda: out.fill_(1.0),
        "unpack": lambda: codec.unpack(wire, layout, 0, STREAM, nodes, out),
    }
    if width in PREPACK and dim % (8 // width) == 0:  # torch packs whole bytes only
        prepack = getattr(torch.ops.quantized, PREPACK[width])
        ways["prepack"] = lambda: prepack(rows)
    taken: dict[str, Any] = medians(ways, repeats, 2)
    taken |= {f"{way} ratio": taken[way] / taken[against] for way, against in PAIRS.items()}
    if eager:
        taken["eager ratio"] = eager_ratio(rows[: count // EAGER_SHARE], width, one_sided)
    return {"dim": dim, "width": width, "one_sided": one_sided, **taken}


def eager_ratio(rows: torch.Tensor, width: int, one_sided: bool) -> float:
    """Time of plain torch operations over ours, for the same rows."""
    count, dim = rows.shape
    nodes = torch.arange(count)
    layout = codec.Layout.of(torch.full((count,), width, dtype=torch.uint8), [(0, count)], dim, one_sided=one_sided)
    wire = torch.zeros(layout.bytes, dtype=torch.uint8)
    codec.pack(rows, wire, layout, STREAM, nodes)
    ours = sorted(elapsed(lambda: codec.pack(rows, wire, layout, STREAM, nodes)) for _ in range(5))[2]
    theirs = min(elapsed(lambda: kernels_torch.pack(rows, wire, layout, STREAM, nodes, None, None)) for _ in range(2))
    return theirs / ours


def table(results: list[dict[str, Any]]) -> str:
    head = ["threads", "dim", "width", "rows", "copy ms", "pack ms", "ratio", "index_select ms", "pack ms", "ratio", "fill ms",
            "unpack ms", "ratio", "× eager", "prepack ms"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for case in results:
        cells = [str(case["threads"]), str(case["dim"]), str(case["width"]), "one-sided" if case["one_sided"] else "two-sided"]
        for way, against in PAIRS.items():
            cells += [f"{case[against]:.2f}", f"{case[way]:.2f}", f"{case[f'{way} ratio']:.2f}"]
        cells += [f"{case[key]:{form}}" if key in case else "" for key, form in (("eager ratio", ".0f"), ("prepack", ".1f"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(results: list[dict[str, Any]]) -> str:
    """How many cells keep the limits, and what two threads gain."""
    lines = []
    for threads in sorted({case["threads"] for case in results}):
        for way, against in PAIRS.items():
            cells = [case for case in results if case["threads"] == threads]
            missed = [case for case in cells if case[f"{way} ratio"] > 1.2]
            worst = max(cells, key=lambda case: case[f"{way} ratio"])
            lines.append(
                f"* {threads} thread(s), {way} ≤ 1.2 × {against}: {len(cells) - len(missed)} of {len(cells)} cells; "
                f"worst {worst[f'{way} ratio']:.2f} (dim {worst['dim']}, width {worst['width']})"
            )
    by_cell = {(case["dim"], case["width"], case["one_sided"], case["threads"]): case for case in results}
    for way in (*PAIRS, "copy", "index_select", "fill"):
        gains = [
            by_cell[dim, width, side, 1][way] / case[way]
            for (dim, width, side, threads), case in by_cell.items()
            if threads == 2 and (dim, width, side, 1) in by_cell
        ]
        if gains:
            lines.append(f"* {way}: two threads {sorted(gains)[len(gains) // 2]:.2f} × one (median; least {min(gains):.2f})")
    eager = [case["eager ratio"] for case in results if "eager ratio" in case]
    if eager:
        lines.append(f"* eager torch takes {min(eager):.0f} to {max(eager):.0f} × our time (one thread)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=int, default=128, help="of rows")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three dims, three widths, smaller arrays")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()
    if options.quick:
        options.dims, options.widths, options.megabytes, options.repeats = [32, 128, 602], [2, 4, 8], 64, 5
    results = []
    for threads, dim in itertools.product(options.threads, options.dims):
        torch.set_num_threads(threads)
        for width, one_sided in itertools.product(options.widths, (True, False)):
            eager = threads == 1 and width in (2, 4, 8)
            results.append(
                {"threads": threads, **measure(dim, width, one_sided, options.megabytes, options.repeats, eager=eager)}
            )
            print(table(results[-1:]).splitlines()[-1], flush=True)
    setting = {
        "date": datetime.date.today().isoformat(),
        "isa": kernels.isa(),
        "torch": torch.__version__,
        "processor": processor(),
        "megabytes": options.megabytes,
        "repeats": options.repeats,
        "load average": [round(load, 2) for load in os.getloadavg()],
    }
    text = f"# Codec, {setting['date']}\n\n{setting}\n\n{verdicts(results)}\n\n{table(results)}\n"
    print(verdicts(results))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"codec-{setting['date']}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")


if __name__ == "__main__":
    main()
