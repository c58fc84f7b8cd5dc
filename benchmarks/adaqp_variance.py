"""What rounding does to real messages: variance beside its formula and bounds, error and bias of the codecs, cost of tracing.

    python -m benchmarks.adaqp_variance GRAPH.npz ... --models gcn sage --out benchmarks/results

The rows are those that every exchange of the last of some training epochs sent (3 layers, LayerNorm and ReLU, dropout; ranks
are threads that take turns, as in benchmarks.adaqp_accuracy): forward the inputs of a layer, in the first layer raw features or
their projections, and backward the gradients. Of each exchange at most `--rows` rows are looked at, drawn over all ranks.

1. Variance: ‖x̂ − x‖², the mean over `--streams` independent streams of random bits, beside
   `halocast.runtime.bits.variance.exact_variance`, once summed over all rows, once as the mean of the rows' own ratios (which
   the large rows do not outweigh); then the exact variance over the published D·range²/6/(2^b−1)² and over the bound D·s²/4,
   and how many rows are above either.
2. Codecs: the error E‖x̂ − x‖² / ‖x‖² and the squared bias ‖E x̂ − x‖² / ‖x‖² of stochastic rounding, to nearest, and after
   rotation, on the same rows and on 256 wide reference rows, beside the published expression.
3. The time of an epoch that records the rows' ranges over one that does not, taking turns within one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.adaqp_accuracy import Results, Run, cut, footer, run_ranks, savings_section
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.support.threads import ThreadTransport
from torch import Tensor

from halocast.reports import figures
from halocast.runtime import kernels
from halocast.runtime.bits.variance import bound, exact_variance, published_bound
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.codec import Rounding
from halocast.runtime.exchange.quantized import DIRECTION_WORDS, ExchangeKey, MessageRows
from halocast.runtime.graph.shard import ShardSet
from halocast.runtime.session import RankSession, build_session, use_threads
from halocast.traces.operations import Direction
from halocast.traces.wire import CODED_WIDTHS, ROTATED_WIDTH_LIMIT, record_bytes

FloatArray = npt.NDArray[np.float64]

NAME = "adaqp-variance"
TRAINED_BITS = 8
"""Width of the messages in the epochs that the rows are taken from: that of an adaptive run's first period."""
RATIO_TOLERANCE = 0.10
CLEAR_SHARE = 1e-3
"""A row's own ratio counts where its variance is at least this share of its bound: below, single draws decide."""
REFERENCE_DIM = 256
REFERENCES = {"gaussian": 0.59, "gaussian after ReLU": 0.28, "laplace": 1.15}
"""Normalised error of min–max stochastic rounding at 2 bits."""
ROTATED_REFERENCE = 0.13
"""The same of unbiased rounding after rotation, whatever the distribution."""
REFERENCE_BITS = 2
NOTES = (
    "± is one standard error over the streams. D·s²/4 is `variance.bound`, with the transmitted scale s. The published "
    "expression is the mean over values that lie anywhere within a step, with equal chance: a bound only for rows that are no "
    "worse than that.",
    "Errors and squared biases are over ‖x‖². The mean of finitely many draws is off by chance; what is left without that is "
    "the codec's own bias, and scatters around 0 where there is none, more so where few large rows make up most of ‖x‖². The "
    "references are those of min–max rounding as published: rows after ReLU do better here, as 0 is a level.",
    "Ranges are recorded in one epoch of each period of an adaptive run: what that costs a run is the ratio's excess over 1, "
    "divided by the epochs of a period. Times are those of thread ranks that take turns: the computing of all ranks together.",
)
DIRECTIONS = {str(direction): direction for direction in Direction}


# -- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentRows:
    """What one exchange sends: float32 [rows, dim], and the rows' global nodes, int64 [rows]."""

    rows: Tensor
    nodes: Tensor
    one_sided: bool

    def sample(self, count: int) -> SentRows:
        """At most `count` of the rows, always the same ones."""
        if len(self.rows) <= count:
            return self
        chosen = torch.from_numpy(np.sort(np.random.default_rng(0).choice(len(self.rows), count, replace=False)))
        return SentRows(self.rows[chosen].contiguous(), self.nodes[chosen].contiguous(), self.one_sided)


def run_config(arguments: argparse.Namespace, graph: Path, model: str) -> RunConfig:
    document = {
        "graph": str(graph),
        "ranks": arguments.ranks,
        "threads": 1,
        "model": {
            "layer": model,
            "layers": arguments.layers,
            "hidden": arguments.hidden,
            "dropout": arguments.dropout,
            "norm": "layer",
        },
        "method": {"name": "adaqp", "bits": TRAINED_BITS, "exact": savings_section(False)},
        "training": {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate},
        "trace": {"enabled": False},
    }
    return resolve(document, model)


def capture_rows(config: RunConfig, shards: ShardSet) -> dict[ExchangeKey, SentRows]:
    """Train, and keep what every exchange of the last epoch sends, rank after rank."""

    def work(transport: ThreadTransport) -> dict[ExchangeKey, SentRows]:
        use_threads(1)
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        for epoch in range(config.training.epochs - 1):
            session.executor.train_epoch(epoch)
        sent = record_packed_rows(session)
        session.executor.train_epoch(config.training.epochs - 1)
        return sent

    ranks = run_ranks(shards.parts, work)
    return {
        key: SentRows(
            torch.cat([rank[key].rows for rank in ranks]),
            torch.cat([rank[key].nodes for rank in ranks]),
            ranks[0][key].one_sided,
        )
        for key in ranks[0]
    }


def record_packed_rows(session: RankSession) -> dict[ExchangeKey, SentRows]:
    """Have the session's `messages.pack` leave a copy of the rows that it is given to send, by exchange."""
    messages, data = session.executor.messages, session.executor.data
    assert messages is not None
    boundary = data.boundary.cpu().numpy()
    chosen = {
        (shape.layer, shape.direction): torch.from_numpy(MessageRows.of(shape, session.view.part, boundary).outgoing)
        for shape in messages.shapes
    }
    one_sided = {(shape.layer, shape.direction): shape.one_sided for shape in messages.shapes}
    sent: dict[ExchangeKey, SentRows] = {}
    pack = messages.pack

    def pack_and_keep(layer: int, direction: Direction, epoch: int, rows: Tensor, wire: Tensor) -> None:
        key = (layer, direction)
        sent[key] = SentRows(rows[chosen[key]].clone(), data.adjacency.global_ids[chosen[key]], one_sided[key])
        pack(layer, direction, epoch, rows, wire)

    messages.pack = pack_and_keep  # type: ignore[method-assign]
    return sent


def reference_rows(name: str, count: int) -> SentRows:
    """Independent values of one distribution, [count, 256]."""
    random = np.random.default_rng(1)
    draw = random.laplace if name == "laplace" else random.standard_normal
    values = draw(size=(count, REFERENCE_DIM)).astype(np.float32)
    one_sided = name.endswith("ReLU")
    rows = torch.from_numpy(np.maximum(values, 0) if one_sided else values)
    return SentRows(rows, torch.arange(count), one_sided)


# -- what the codec does to them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Squared errors of many decodings of the same rows."""

    by_stream: FloatArray
    """[streams], summed over all rows."""
    by_row: FloatArray
    """[rows], mean over the streams."""
    ratio_by_stream: FloatArray
    """[streams], mean over the rows of the squared error over the row's exact variance, where that is clear of 0."""
    squared_bias: float
    """‖mean decoding − rows‖²."""
    chance: float
    """What the draws' variance leaves in `squared_bias`."""


def decode_repeatedly(
    sent: SentRows, key: ExchangeKey, bits: int, rounding: Rounding, streams: int, exact: FloatArray | None = None
) -> Draws:
    """Through the codec and back, once for each of `streams` epochs. exact: [rows], the rows' variance (0: left out)."""
    layer, direction = key
    rows, count = sent.rows, len(sent.rows)
    widths = torch.full((count,), bits, dtype=torch.uint8)
    layout = codec.Layout.of(widths, [(0, count)], rows.shape[1], one_sided=sent.one_sided, rounding=rounding)
    wire, decoded = torch.empty(layout.bytes, dtype=torch.uint8), torch.empty_like(rows)
    truth = rows.double()
    error, squares, total = torch.empty_like(truth), torch.zeros(count, dtype=torch.float64), torch.zeros_like(truth)
    counted = np.flatnonzero(exact) if exact is not None else np.zeros(0, dtype=np.int64)
    by_stream, ratios = np.zeros(streams), np.full(streams, np.nan)
    for epoch in range(streams):
        stream = kernels.Stream(0, epoch, layer, DIRECTION_WORDS[direction], kernels.PURPOSE_ROUNDING)
        codec.pack(rows, wire, layout, stream, sent.nodes)
        codec.unpack(wire, layout, 0, stream, sent.nodes, decoded)
        torch.sub(decoded, truth, out=error)
        total += error
        of_rows = error.square_().sum(1)
        squares += of_rows
        by_stream[epoch] = float(of_rows.sum())
        if exact is not None and counted.size:
            ratios[epoch] = (of_rows.numpy()[counted] / exact[counted]).mean()
    bias = total / streams
    squared_bias = float(bias.square().sum())
    mean_square = float(by_stream.mean())
    chance = max(mean_square - squared_bias, 0.0) / max(streams - 1, 1)
    return Draws(by_stream, squares.numpy() / streams, ratios, squared_bias, chance)


def mean_and_error(values: FloatArray) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def measure_variance(sent: SentRows, key: ExchangeKey, bits: int, streams: int) -> dict[str, Any]:
    """One row of the first table."""
    rows = np.ascontiguousarray(sent.rows.numpy())
    widths = _filled(rows, bits)
    exact = exact_variance(rows, widths, one_sided=sent.one_sided)
    sharp = bound(rows, widths, one_sided=sent.one_sided)
    published = published_bound(ranges_of(sent), widths, rows.shape[1])
    clear = np.where(exact >= CLEAR_SHARE * sharp, exact, 0.0)
    draws = decode_repeatedly(sent, key, bits, Rounding.STOCHASTIC, streams, clear)
    empirical, error = mean_and_error(draws.by_stream)
    row_ratio, row_ratio_error = mean_and_error(draws.ratio_by_stream)
    energy = float((rows.astype(np.float64) ** 2).sum())
    return {
        "bits": bits,
        "empirical": empirical,
        "standard_error": error,
        "exact": float(exact.sum()),
        "published": float(published.sum()),
        "sharp": float(sharp.sum()),
        "energy": energy,
        "ratio": empirical / float(exact.sum()),
        "ratio_error": error / float(exact.sum()),
        "row_ratio": row_ratio,
        "row_ratio_error": row_ratio_error,
        "exact_over_published": float(exact.sum() / published.sum()),
        "exact_over_sharp": float(exact.sum() / sharp.sum()),
        "rows_above_published": float((exact > published).mean()),
        "rows_above_sharp": float((exact > sharp * (1 + 1e-9)).mean()),
    }


def ranges_of(sent: SentRows) -> npt.NDArray[np.float32]:
    """max − min of each row, or max where the minimum is known to be 0, as `codec.pack` records it."""
    rows: npt.NDArray[np.float32] = sent.rows.numpy()
    ranges: npt.NDArray[np.float32] = rows.max(axis=1) - (np.float32(0) if sent.one_sided else rows.min(axis=1))
    return ranges


def _filled(rows: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.uint8]:
    """One width for all rows."""
    return np.full(len(rows), bits, dtype=np.uint8)


def measure_codecs(sent: SentRows, key: ExchangeKey, streams: int) -> list[dict[str, Any]]:
    """The second table's rows: every codec at every width (after rotation only where that is another codec)."""
    energy = float(sent.rows.double().square().sum())
    rows = sent.rows.numpy()
    answers = []
    for rounding in Rounding:
        for bits in CODED_WIDTHS:
            rotated = rounding is Rounding.ROTATED
            if rotated and bits > ROTATED_WIDTH_LIMIT:
                continue
            draws = decode_repeatedly(sent, key, bits, rounding, 1 if rounding is Rounding.NEAREST else streams)
            mean, error = float(draws.by_stream.mean()), 0.0
            if len(draws.by_stream) > 1:
                mean, error = mean_and_error(draws.by_stream)
            answers.append(
                {
                    "rounding": str(rounding),
                    "bits": bits,
                    "bytes": record_bytes(bits, sent.rows.shape[1], one_sided=sent.one_sided, rotated=rotated),
                    "error": mean / energy,
                    "published": float(published_bound(ranges_of(sent), _filled(rows, bits), rows.shape[1]).sum()) / energy,
                    "standard_error": error / energy,
                    "squared_bias": draws.squared_bias / energy,
                    "chance": draws.chance / energy if len(draws.by_stream) > 1 else 0.0,
                }
            )
    return answers


def measure_exchange(sent: SentRows, key: ExchangeKey, arguments: argparse.Namespace) -> Run:
    """Everything about one exchange's rows."""
    sampled = sent.sample(arguments.rows)
    began = time.perf_counter()
    variance = [measure_variance(sampled, key, bits, arguments.streams) for bits in CODED_WIDTHS]
    return {
        "rows": len(sampled.rows),
        "of_rows": len(sent.rows),
        "dim": sent.rows.shape[1],
        "one_sided": sent.one_sided,
        "variance": variance,
        "codecs": measure_codecs(sampled, key, arguments.streams),
        "seconds": round(time.perf_counter() - began, 1),
    }


# -- the cost of tracing ranges -------------------------------------------------------------------------------------


def measure_tracing(config: RunConfig, shards: ShardSet, pairs: int) -> Run:
    """Milliseconds of epochs with and without recorded ranges; each pair's order is the other way round than the last's."""

    def work(transport: ThreadTransport) -> list[tuple[float, float]]:
        use_threads(1)
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        messages = session.executor.messages
        assert messages is not None

        def epoch_ms(epoch: int, traces_ranges: bool) -> float:
            assert messages is not None
            messages.traces_ranges = traces_ranges
            transport.all_reduce(torch.zeros(1))  # so that the clock of one rank measures all
            began = time.perf_counter()
            session.executor.train_epoch(epoch)
            transport.all_reduce(torch.zeros(1))
            return 1e3 * (time.perf_counter() - began)

        for epoch in range(2):
            epoch_ms(epoch, traces_ranges=True)
        times = []
        for pair in range(pairs):
            order = (True, False) if pair % 2 else (False, True)
            measured = {traced: epoch_ms(2 + 2 * pair + position, traced) for position, traced in enumerate(order)}
            times.append((measured[True], measured[False]))
        return times

    times = np.array(run_ranks(shards.parts, work)[0])
    ratios = times[:, 0] / times[:, 1]
    return {
        "traced_ms": float(np.median(times[:, 0])),
        "plain_ms": float(np.median(times[:, 1])),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": [float(value) for value in np.quantile(ratios, [0.25, 0.75])],
        "times_ms": [[round(value, 3) for value in pair] for pair in times.tolist()],
    }


# -- tables and figures ---------------------------------------------------------------------------------------------


def title_of(run: Mapping[str, Any]) -> str:
    return f"{run['graph']}, {run['model']}"


def exchange_of(run: Mapping[str, Any]) -> str:
    return f"{run['layer']} {run['direction']}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A table whose first `texts` columns are words."""
    marks = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows]) + "\n"


def is_within(cell: Mapping[str, Any]) -> bool:
    """Whether what was measured is what the formula says."""
    return all(abs(cell[key] - 1) <= RATIO_TOLERANCE for key in ("ratio", "row_ratio"))


def emphasised(value: float, bold: bool) -> str:
    return f"**{value:.3f}**" if bold else f"{value:.3f}"


def variance_table(runs: Sequence[Run]) -> str:
    head = [
        *("exchange", "rows", "dim", "bits", "empirical / ‖x‖²", "empirical / exact", "row by row", "within 10 %"),
        *("exact / published", "rows above it", "exact / D·s²/4", "rows above it"),
    ]
    rows = [
        [
            f"{exchange_of(run)}{', one-sided' if run['one_sided'] else ''}",
            *(str(run["rows"]), str(run["dim"]), str(each["bits"])),
            f"{each['empirical'] / each['energy']:.3e}",
            f"{each['ratio']:.4f} ± {each['ratio_error']:.4f}",
            f"{each['row_ratio']:.4f} ± {each['row_ratio_error']:.4f}",
            "yes" if is_within(each) else "**no**",
            emphasised(each["exact_over_published"], each["exact_over_published"] > 1),
            f"{each['rows_above_published']:.1%}",
            f"{each['exact_over_sharp']:.3f}",
            f"{each['rows_above_sharp']:.1%}",
        ]
        for run in runs
        for each in run["variance"]
    ]
    return markdown(head, rows, 1)


def verdict_table(runs: Sequence[Run]) -> str:
    """What the table of variances comes to, by kind of rows."""
    head = [
        *("rows", "measured", "empirical / exact", "row by row", "within 10 %"),
        *("exact / published at most", "of them above 1", "at which bits", "exact / D·s²/4 at most", "rows above it"),
    ]
    kinds = {
        "one-sided": [run for run in runs if run["one_sided"]],
        "two-sided, forward": [run for run in runs if not run["one_sided"] and run["direction"] == "forward"],
        "backward": [run for run in runs if run["direction"] == "backward"],
    }
    rows = []
    for kind, members in kinds.items():
        cells = [each for run in members for each in run["variance"]]
        if not cells:
            continue
        above = [each["bits"] for each in cells if each["exact_over_published"] > 1]
        within = sum(is_within(each) for each in cells)
        rows.append(
            [
                *(kind, str(len(cells))),
                *(f"{min(e[key] for e in cells):.4f} to {max(e[key] for e in cells):.4f}" for key in ("ratio", "row_ratio")),
                f"{within} of {len(cells)}",
                f"{max(each['exact_over_published'] for each in cells):.3f}",
                f"{len(above)} of {len(cells)}",
                ", ".join(str(bits) for bits in sorted(set(above))),
                f"{max(each['exact_over_sharp'] for each in cells):.3f}",
                f"{max(each['rows_above_sharp'] for each in cells):.1%}",
            ]
        )
    return markdown(head, rows, 1)


def codec_table(runs: Sequence[Run]) -> str:
    """A row an exchange and width; after rotation there is nothing of its own above 2 bits."""
    names = [str(rounding) for rounding in Rounding]
    head = [
        *("rows", "bits", "bytes a row", "rotated", *(f"error, {name}" for name in names), "published", "reference"),
        *("squared bias, nearest", "stochastic: left", "of chance", "rotated: left", "of chance"),
    ]
    rows = []
    for run in runs:
        cells = {(each["rounding"], each["bits"]): each for each in run["codecs"]}
        for bits in CODED_WIDTHS:
            stochastic, nearest, rotated = (cells.get((name, bits)) for name in names)
            assert stochastic is not None
            assert nearest is not None
            reference = ""
            if run["kind"] == "reference" and bits == REFERENCE_BITS:
                reference = f"{REFERENCES[run['layer']]:.2f}, rotated {ROTATED_REFERENCE:.2f}"
            rows.append(
                [
                    run["layer"] if run["kind"] == "reference" else exchange_of(run),
                    *(str(bits), str(stochastic["bytes"]), str(rotated["bytes"]) if rotated else ""),
                    *(error_of(each) for each in (stochastic, nearest, rotated)),
                    f"{stochastic['published']:.4g}",
                    reference,
                    f"{nearest['squared_bias']:.3g}",
                    *bias_of(stochastic),
                    *bias_of(rotated),
                ]
            )
    return markdown(head, rows, 1)


def error_of(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['error']:.4g} ± {cell['standard_error']:.1g}" if cell["standard_error"] else f"{cell['error']:.4g}"


def bias_of(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """The squared bias without what chance puts there, and that part."""
    return ("", "") if cell is None else (f"{cell['squared_bias'] - cell['chance']:+.1e}", f"{cell['chance']:.1e}")


def tracing_table(runs: Sequence[Run]) -> str:
    head = ["graph", "model", "epoch with ranges, ms", "without, ms", "ratio", "quartiles of the ratio", "pairs"]
    rows = [
        [
            *(run["graph"], run["model"]),
            *(f"{run[key]:.1f}" for key in ("traced_ms", "plain_ms")),
            f"{run['ratio']:.4f}",
            " to ".join(f"{value:.3f}" for value in run["ratio_quartiles"]),
            str(len(run["times_ms"])),
        ]
        for run in runs
    ]
    return markdown(head, rows, 2)


def draw_variance(runs: Sequence[Run]) -> Figure:
    """Variance over ‖x‖² against the width, a panel an exchange: the draws, the formula, the two bounds."""
    columns = sorted({run["layer"] for run in runs})
    directions = [direction for direction in DIRECTIONS if any(run["direction"] == direction for run in runs)]
    figure = figures.new_figure(3.0 * len(directions))
    for run in runs:
        place = directions.index(run["direction"]) * len(columns) + columns.index(run["layer"]) + 1
        axes = figure.add_subplot(len(directions), len(columns), place)
        bits = [each["bits"] for each in run["variance"]]

        def plot(key: str, label: str, *, on: Axes = axes, of: Run = run, **look: Any) -> None:
            values = [each[key] / each["energy"] for each in of["variance"]]
            on.plot([each["bits"] for each in of["variance"]], values, label=label, **look)

        plot("sharp", "bound D·s²/4", color=figures.MUTED, linewidth=1.0, linestyle=(0, (1, 1.5)))
        plot("published", "published D·range²/6/(2^b−1)²", color=figures.ORANGE, linewidth=1.0, linestyle=(0, (4, 3)))
        plot("exact", "exact_variance", color=figures.BLUE, linewidth=1.2)
        plot("empirical", "measured", color=figures.VERMILION, linestyle="", marker="o", markersize=3.5)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(bits)
        sides = "one-sided" if run["one_sided"] else "two-sided"
        figures.headline(axes, f"Layer {run['layer']} {run['direction']}", f"{run['rows']} rows of {run['dim']}, {sides}")
        figures.style(axes, xlabel="bits", grid="y")
        if run is runs[0]:
            axes.legend(frameon=False, fontsize=7, labelcolor=figures.INK, title=title_of(run), title_fontsize=7)
    return figure


def draw_codecs(runs: Sequence[Run]) -> Figure:
    """Normalised error of every codec against the width, a panel a distribution."""
    looks = {"stochastic": (figures.BLUE, "o"), "nearest": (figures.ORANGE, "s"), "rotated": (figures.VERMILION, "D")}
    figure = figures.new_figure(3.4)
    for index, run in enumerate(runs):
        axes = figure.add_subplot(1, len(runs), index + 1)
        for rounding, (colour, marker) in looks.items():
            points = [(each["bits"], each["error"]) for each in run["codecs"] if each["rounding"] == rounding]
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=rounding)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(list(CODED_WIDTHS))
        figures.headline(axes, figures.sentence_case(run["layer"]), f"E‖x̂ − x‖² / ‖x‖², rows of {run['dim']}")
        figures.style(axes, xlabel="bits", grid="y")
        if index == 0:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=figures.INK)
    return figure


def write_reports(results: Results, *, with_figures: bool = False) -> None:
    """The tables of all runs so far; figures where everything is there."""
    exchanges = [run for run in results.runs if run["kind"] == "exchange"]
    references = [run for run in results.runs if run["kind"] == "reference"]
    tracing = [run for run in results.runs if run["kind"] == "tracing"]
    pairs = {title_of(run): (run["graph"], run["model"]) for run in exchanges}
    text = [f"# What rounding does to messages, {results.day}\n", "## Variance\n", verdict_table(exchanges)]
    text += [f"### {title}\n\n{variance_table(_of(exchanges, *pair))}" for title, pair in pairs.items()]
    text += ["## Codecs\n", f"### Reference rows of {REFERENCE_DIM}\n", codec_table(references)]
    text += [f"### {title}\n\n{codec_table(_of(exchanges, *pair))}" for title, pair in pairs.items()]
    text += ["## Cost of recording ranges\n", tracing_table(tracing)]
    results.write_table("\n".join([*text, footer(results.settings, *NOTES)]))
    if with_figures:
        for graph, model in pairs.values():
            results.write_figure(draw_variance(_of(exchanges, graph, model)), f"{graph}-{model}")
        if references:
            results.write_figure(draw_codecs(references), "codecs")


def _of(runs: Sequence[Run], graph: str, model: str) -> list[Run]:
    """One graph's and model's exchanges, forward ones first."""
    return sorted(
        (run for run in runs if (run["graph"], run["model"]) == (graph, model)),
        key=lambda run: (list(DIRECTIONS).index(run["direction"]), run["layer"]),
    )


# -- the command ----------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["gcn", "sage"])
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--rows", type=int, default=2048, help="rows of an exchange that are looked at")
    parser.add_argument("--epochs", type=int, default=10, help="of training before the rows are taken")
    parser.add_argument("--pairs", type=int, default=60, help="of epochs with and without recorded ranges")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1, help="of the codec; epochs run on one")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results in --out")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    skipped = {"graphs", "models", "threads", "resume", "out"}
    settings = {key: value for key, value in vars(arguments).items() if key not in skipped}
    results = Results.open(NAME, arguments.out, settings, resume=arguments.resume)

    def record(measure: Callable[[], Run], **key: Any) -> None:
        if results.find(**key) is None:
            use_threads(arguments.threads)
            run = measure()
            results.add(run, **key)
            write_reports(results)
            print(f"{' '.join(str(value) for value in key.values())}: {brief(run)}", flush=True)

    for name in REFERENCES:
        key: dict[str, Any] = {"kind": "reference", "layer": name}
        record(lambda name=name: measure_reference(name, arguments), **key)  # type: ignore[misc]
    for graph in arguments.graphs:
        for model in arguments.models:
            config = run_config(arguments, graph, model)
            shards = cut(graph, config)
            for (layer, direction), sent in capture_rows(config, shards).items():
                key = {"kind": "exchange", "graph": graph.stem, "model": model, "layer": layer, "direction": str(direction)}
                record(lambda sent=sent, at=(layer, direction): measure_exchange(sent, at, arguments), **key)  # type: ignore[misc]
            key = {"kind": "tracing", "graph": graph.stem, "model": model}
            record(lambda config=config, shards=shards: measure_tracing(config, shards, arguments.pairs), **key)  # type: ignore[misc]
    write_reports(results, with_figures=True)


def measure_reference(name: str, arguments: argparse.Namespace) -> Run:
    """The codecs on rows of one distribution."""
    sent = reference_rows(name, arguments.rows)
    codecs = measure_codecs(sent, (0, Direction.FORWARD), arguments.streams)
    return {"rows": len(sent.rows), "dim": REFERENCE_DIM, "one_sided": sent.one_sided, "codecs": codecs}


def brief(run: Run) -> str:
    """A result in a line of progress."""
    if "variance" in run:
        ratios = [each["ratio"] for each in run["variance"]]
        rows = f"{run['rows']} rows of {run['dim']}"
        return f"{rows}, measured / exact {min(ratios):.4f} to {max(ratios):.4f}  {run['seconds']} s"
    if "codecs" in run:
        errors = {each["rounding"]: each["error"] for each in run["codecs"] if each["bits"] == REFERENCE_BITS}
        return f"at {REFERENCE_BITS} bits: " + ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    return f"with ranges {run['traced_ms']:.1f} ms, without {run['plain_ms']:.1f} ms, ratio {run['ratio']:.4f}"


if __name__ == "__main__":
    main()
