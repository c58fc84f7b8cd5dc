"""The picture of `benchmarks.headline_claims`: published beside forecast, claim by claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halocast.reports.figures import BLUE, INK, MUTED, ORANGE, VERMILION, headline, style

NETWORK_COLOURS = {"ethernet-10g": BLUE, "ethernet-25g": ORANGE, "ethernet-100g": VERMILION}
MARKERS = ("o", "s")
"""By share of edges that leave their community, smaller first."""


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(13, 5.2), layout="constrained", facecolor="white")
    adaqp, sar, pipegcn = figure.subplots(1, 3, width_ratios=(1.7, 1.0, 1.0))
    draw_adaqp(adaqp, results)
    draw_sar(sar, results)
    draw_pipegcn(pipegcn, results)
    figure.savefig(path, dpi=110)


def draw_adaqp(axes: Axes, results: dict[str, Any]) -> None:
    rows = results["adaqp"]
    cases = list(dict.fromkeys((row["graph"], row["layer"]) for row in rows))
    mixings = sorted({row["mixing"] for row in rows})
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for row in rows:
        place = 2 * networks.index(row["network"]) + mixings.index(row["mixing"])
        x = cases.index((row["graph"], row["layer"])) + 0.13 * (place - 2.5)
        errors = [[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]]
        axes.errorbar(
            x, row["ratio"], errors, color=NETWORK_COLOURS[row["network"]], marker=MARKERS[mixings.index(row["mixing"])],
            markersize=4, linewidth=1, linestyle="none",
        )  # fmt: skip
    published = results["published"]["adaqp"]
    axes.axhline(published, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"published: up to {published} ×", (len(cases) - 0.5, published), (0, 3), textcoords="offset points", ha="right", fontsize=8)  # noqa: E501 # fmt: skip
    for network in networks:
        axes.plot([], [], color=NETWORK_COLOURS[network], marker="o", linestyle="none", label=network)
    for marker, mixing in zip(MARKERS, mixings, strict=True):
        axes.plot([], [], color=MUTED, marker=marker, linestyle="none", label=f"{mixing:.0%} of edges leave")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", ncols=2)
    axes.set_xticks(range(len(cases)), [f"{short(graph)}\n{layer}" for graph, layer in cases], fontsize=7.5)
    axes.set_ylim(0, 1.25 * max(row["high"] for row in rows))
    axes.set_ylabel("plain epoch / AdaQP's (×)", fontsize=9)
    style(axes, xlabel="", grid="y")
    headline(axes, "AdaQP, 8 V100 on 2 machines", "forecast; bars: costs of operations ± 2.3 × (90 %)")


def draw_sar(axes: Axes, results: dict[str, Any]) -> None:
    rows = results["sar"]
    machines = [row["machines"] for row in rows]
    for key, colour, label in (("published_gb", INK, "published"), ("total_gb", BLUE, "forecast, as counted")):
        values = [row[key] for row in rows]
        axes.plot(machines, values, color=colour, marker="o", label=label)
        axes.plot(machines, [values[0] * machines[0] / each for each in machines], color=MUTED, linewidth=1, linestyle=":")
        for x, y in zip(machines, values, strict=True):
            axes.annotate(f"{y:.3g}", (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axes.plot([], [], color=MUTED, linewidth=1, linestyle=":", label="1/K")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(machines, [str(each) for each in machines])
    axes.set_yticks([10, 30, 100], ["10", "30", "100"])
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False)
    axes.set_ylabel("GB a machine", fontsize=9)
    style(axes, xlabel="machines", grid="y")
    headline(axes, "SAR's memory, GraphSAGE", "111 M nodes, 3.2 B edges")


def draw_pipegcn(axes: Axes, results: dict[str, Any]) -> None:
    rows = results["pipegcn"]
    for x, row in enumerate(rows):
        errors = [[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]]
        axes.errorbar(x, row["ratio"], errors, color=BLUE, marker="o", linestyle="none")
        axes.annotate(f"{row['ratio']:.2f}", (x, row["ratio"]), (6, 0), textcoords="offset points", va="center", fontsize=8)
    lowest = results["published"]["pipegcn"][0]
    axes.axhline(lowest, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"published: from {lowest} ×", (len(rows) - 0.5, lowest), (0, 3), textcoords="offset points", ha="right", fontsize=8)  # noqa: E501 # fmt: skip
    labels = [f"{short(row['graph'])}\n{row['ranks']} GPUs\n{row['mixing']:.0%} leave" for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=7.5)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0.9, 2.1)
    axes.set_ylabel("most that pipelining can gain (×)", fontsize=9)
    style(axes, xlabel="", grid="y")
    headline(axes, "PipeGCN, as a bound", "forecast; at most 2 by its form")


def short(graph: str) -> str:
    """``ogbn-products`` as products, ``amazonProducts`` as amazon."""
    return graph.removeprefix("ogbn-").removesuffix("Products")
