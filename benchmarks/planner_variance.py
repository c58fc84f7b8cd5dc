"""Variance at equal bytes: widths by one price beside AdaQP's groups, on the rows that training sends.

    python -m benchmarks.planner_variance ../shared/data/github_social.npz ... --out benchmarks/results

Each graph is trained for some epochs at 8 bits; the ranges of the last epoch's rows give each message's β, what a width of b
bits adds to the variance being β / (2^b − 1)². AdaQP solves one problem for each layer and direction, in groups, with widths
2, 4 and 8, at several weights of variance against time. The bytes that this takes are then the budget of widths chosen by a
price in that layer and direction: for AdaQP's groups, for each message from the same three, and from all integer widths.
AdaQP's own choice trades against the slowest pair of a round, not against bytes, and is generous to the other pairs: at equal
bytes its groups by price are the fair comparison. Layers and directions are compared one by one, as β does not say how much
the variance of one matters beside another's; the table has medians.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.adaqp_accuracy import cut, footer, run_ranks, savings_section
from tests.support.threads import ThreadTransport

from halocast.runtime.bits import adaptive
from halocast.runtime.bits.assigners import AdaptiveAssigner, segment
from halocast.runtime.bits.grouping import Groups, default_group_size, group_messages
from halocast.runtime.bits.links import DEFAULT_COST
from halocast.runtime.bits.problem import Pair
from halocast.runtime.bits.variance import message_beta
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.exchange.quantized import ExchangeKey
from halocast.runtime.session import build_session, use_threads
from halocast.simulator.planner.widths import Choices, within_bytes
from halocast.traces.wire import CODED_WIDTHS, record_bytes

ADAQP_WIDTHS = (2, 4, 8)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sent:
    """One exchange of one rank."""

    dim: int
    one_sided: bool
    rows: tuple[int, ...]
    """By peer."""
    beta: Floats
    """[messages] peer after peer."""


def run_config(graph: Path, arguments: argparse.Namespace) -> RunConfig:
    document = {
        "graph": str(graph),
        "ranks": arguments.ranks,
        "threads": 1,
        "model": {"layer": "gcn", "layers": arguments.layers, "hidden": arguments.hidden, "norm": "layer"},
        "method": {"name": "adaqp", "exact": savings_section(False)},
        "training": {"epochs": arguments.epochs},
        "trace": {"enabled": False},
    }
    return resolve(document, "planner_variance")


def capture(config: RunConfig, graph: Path) -> list[dict[ExchangeKey, Sent]]:
    """By rank: β of every message of the last epoch."""
    shards = cut(graph, config)

    def work(transport: ThreadTransport) -> dict[ExchangeKey, Sent]:
        use_threads(1)
        session = build_session(config, shards, transport, device=torch.device("cpu"))
        messages, assigner = session.executor.messages, session.assigner
        assert messages is not None
        assert isinstance(assigner, AdaptiveAssigner)
        for epoch in range(config.training.epochs):
            messages.traces_ranges = epoch == config.training.epochs - 1
            session.executor.train_epoch(epoch)
        found = {}
        for shape in assigner.table.own:
            key = (shape.layer, shape.direction)
            beta = message_beta(messages.ranges(key), shape.dim, assigner.coefficients[key])
            found[key] = Sent(shape.dim, shape.one_sided, tuple(shape.rows_out), beta)
        return found

    return run_ranks(config.ranks, work)


Link = tuple[int, int]


def grouped(ranks: Sequence[dict[ExchangeKey, Sent]], key: ExchangeKey) -> dict[Link, Groups]:
    """AdaQP's groups of every pair that has messages in an exchange."""
    size = default_group_size(sum(sum(rank[key].rows) for rank in ranks))
    return {
        (sender, receiver): group_messages(rank[key].beta[segment(rank[key].rows, receiver)], size)
        for sender, rank in enumerate(ranks)
        for receiver, count in enumerate(rank[key].rows)
        if count
    }


def adaqp(groups: dict[Link, Groups], sent: Sent, weight: float, world_size: int) -> npt.NDArray[np.int64]:
    """[groups] AdaQP's choice among its widths, pair after pair."""
    solved = adaptive.solve(
        [Pair(*link, each.variance, each.rows) for link, each in groups.items()], sent.dim, one_sided=sent.one_sided,
        costs=dict.fromkeys(groups, DEFAULT_COST), world_size=world_size, choices=ADAQP_WIDTHS, variance_weight=weight,
    )  # fmt: skip
    return np.searchsorted(ADAQP_WIDTHS, np.concatenate(solved.widths)).astype(np.int64)


def choices(beta: Floats, rows: npt.NDArray[np.int64], sent: Sent, widths: tuple[int, ...]) -> Choices:
    """Of so many rows with Σβ each."""
    error = np.array([1.0 / (2.0**bits - 1.0) ** 2 for bits in widths])
    record = np.array([float(record_bytes(bits, sent.dim, one_sided=sent.one_sided)) for bits in widths])
    return Choices(widths, rows[:, None] * record[None, :], beta[:, None] * error[None, :])


@dataclass(frozen=True)
class Comparison:
    """One exchange at AdaQP's bytes: variance over that of a price for each message and all widths."""

    bits: float
    """Mean of AdaQP's widths."""
    adaqp: float
    """Of AdaQP's choice."""
    groups: float
    """Of its groups and widths by price."""
    same: float
    """Of each message's among the same three by price."""


def compare(ranks: Sequence[dict[ExchangeKey, Sent]], key: ExchangeKey, weight: float) -> Comparison:
    sent, beta = ranks[0][key], np.concatenate([rank[key].beta for rank in ranks])
    groups = grouped(ranks, key)
    sums, rows = (np.concatenate(each) for each in zip(*((g.variance, g.rows) for g in groups.values()), strict=True))
    table = choices(sums, rows, sent, ADAQP_WIDTHS)
    chosen = adaqp(groups, sent, weight, len(ranks))
    budget, variance = table.total(chosen)
    single = np.ones(len(beta), dtype=np.int64)
    best = within_bytes(choices(beta, single, sent, CODED_WIDTHS), budget).variance
    return Comparison(
        float(np.array(ADAQP_WIDTHS)[chosen] @ rows / rows.sum()),
        variance / best,
        within_bytes(table, budget).variance / best,
        within_bytes(choices(beta, single, sent, ADAQP_WIDTHS), budget).variance / best,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown file")
    options = parser.parse_args()
    lines = [
        "| graph | messages | weight of variance | mean bits | AdaQP | its groups by price "
        "| messages, 2, 4, 8 bits | groups, least |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for graph in options.graphs:
        ranks = capture(run_config(graph, options), graph)
        count = sum(len(sent.beta) for rank in ranks for sent in rank.values())
        for weight in options.weights:
            found = [compare(ranks, key, weight) for key in ranks[0]]
            middle = [np.median([getattr(each, name) for each in found]) for name in ("adaqp", "groups", "same")]
            lines.append(
                f"| {graph.stem} | {count:,} | {weight:g} | {np.mean([each.bits for each in found]):.2f} "
                f"| {middle[0]:.1f} | **{middle[1]:.2f}** | {middle[2]:.2f} | {min(each.groups for each in found):.2f} |"
            )
            print(lines[-1], flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        today = datetime.date.today().isoformat()
        note = (
            "Variance at AdaQP's bytes, over that of a price for each message and all integer widths; medians over exchanges."
        )
        settings = {"ranks": options.ranks, "layers": options.layers, "hidden": options.hidden, "epochs": options.epochs}
        text = [f"# Variance at equal bytes, {today}", "\n".join(lines), footer(settings, note)]
        (options.out / f"planner-variance-{today}.md").write_text("\n\n".join(text))


if __name__ == "__main__":
    main()
