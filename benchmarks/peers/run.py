"""Measures peers beside each other: `PEERS_PYTHON -m benchmarks.peers.run GRAPH.npz --threads 1 2 --also "CMD"`.

For each model and thread count, the commands run in turn, A B C A B C ..., so that what slows the machine down for a
while slows all of them. A ratio is the median, over the repeats, of one command's median epoch over
another's in the same repeat.

`--also` adds any command that prints the same JSON line last. It may hold {graph}, {model}, {threads}, {epochs} and
{order} (the path, or "none"). It runs once a repeat with each order, or once alone where it does not hold {order}. Let
it give a `loss` only where it starts from the peers' initial weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.measure import ALLOCATOR_SETTING

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = {
    "dgl": ("dgl_full", "int32"),
    "dgl-int64": ("dgl_full", "int64"),
    "pyg-edge-index": ("pyg_full", "edge-index"),
    "pyg-csr": ("pyg_full", "csr"),
    "pyg-gather": ("pyg_full", "gather"),
    "torch-csr": ("torch_csr", ""),
    "embedding-bag": ("embedding_bag", ""),
    "dgl-gat": ("attention", "dgl"),
    "pyg-gat": ("attention", "pyg"),
}
DEFAULT_PEERS = ("dgl", "pyg-edge-index", "pyg-csr", "torch-csr", "embedding-bag")
LOSS_TOLERANCE = 1e-3
"""Peers start from the same weights; a relative difference above this means that one computes something else."""


@dataclass(frozen=True)
class Job:
    """One command line with its environment; run once a repeat."""

    peer: str
    order: str
    malloc: str
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        return f"{self.peer} · {self.order} · {self.malloc}"


@dataclass(frozen=True)
class Result:
    """What one run of a job printed."""

    peer: str
    order: str
    malloc: str
    epoch_ms: tuple[float, ...]
    rss_before_mb: float
    peak_mb: float
    loss: float | None

    @property
    def median_ms(self) -> float:
        return statistics.median(self.epoch_ms)


@dataclass(frozen=True)
class Group:
    """All jobs of one model and thread count, with their results by repeat (None where the command failed)."""

    model: str
    threads: int
    jobs: tuple[Job, ...]
    results: tuple[tuple[Result | None, ...], ...]
    """[job][repeat]"""


def main() -> int:
    options = _parse_options()
    groups = [
        run_group(model, threads, list(_jobs(options, model, threads)), options.repeats)
        for model, threads in itertools.product(options.models, options.threads)
    ]
    print("\n\n".join(table(group, options.baseline) for group in groups))
    if options.out:
        options.out.write_text(json.dumps([_as_json(group) for group in groups], indent=1) + "\n")
    failed = any(result is None for group in groups for results in group.results for result in results)
    return 1 if failed else 0


def run_group(model: str, threads: int, jobs: Sequence[Job], repeats: int) -> Group:
    """Runs all jobs in turn, `repeats` times."""
    results: list[list[Result | None]] = [[] for _ in jobs]
    for repeat in range(repeats):
        for job, of_job in zip(jobs, results, strict=True):
            result = run_job(job)
            of_job.append(result)
            took = f"{result.median_ms:.0f} ms" if result else "failed"
            print(f"{model} · {threads} threads · repeat {repeat + 1}: {job.label}: {took}", file=sys.stderr)
    return Group(model, threads, tuple(jobs), tuple(tuple(of_job) for of_job in results))


def run_job(job: Job) -> Result | None:
    """Runs one command and reads its last line; says on stderr why there is no result."""
    try:
        run = subprocess.run(
            job.command,
            env={**os.environ, **job.environment},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        record = json.loads(run.stdout.strip().splitlines()[-1])
        return Result(
            peer=str(record["peer"]),
            order=str(record.get("order", job.order)),
            malloc=str(record.get("malloc", job.malloc)),
            epoch_ms=tuple(float(value) for value in record["epoch_ms"]),
            rss_before_mb=float(record["rss_before_mb"]),
            peak_mb=float(record["peak_mb"]),
            loss=record.get("loss"),
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
    except OSError as error:
        reason = str(error)
    except (IndexError, KeyError, ValueError) as error:
        reason = f"its last line is not the JSON that is expected ({error!r})"
    print(f"{shlex.join(job.command)}: {reason}", file=sys.stderr)
    return None


def table(group: Group, baseline: str) -> str:
    """Markdown: a row per job; a ratio column for every job of the peer `baseline`."""
    rows = _rows(group)
    against = [row for row in rows if row.names[0] == baseline and row.done]
    losses = [row.loss for row in rows if row.loss is not None]
    reference_loss = statistics.median(losses) if losses else None
    head = ["peer", "order", "malloc", "median ms", "min – max", "resident MB", "peak MB", "peak − resident", "loss"]
    head += [f"× {' · '.join(row.names)}" for row in against]
    lines = [f"**{group.model}, {group.threads} threads**", "", _markdown(head), _markdown(["---"] * len(head))]
    lines += [_markdown([*row.cells(reference_loss), *[row.ratio(other) for other in against]]) for row in rows]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Row:
    job: Job
    results: tuple[Result | None, ...]

    @property
    def done(self) -> list[Result]:
        return [result for result in self.results if result is not None]

    @property
    def names(self) -> list[str]:
        """Peer, order and allocator, as the command itself tells them where it ran."""
        told: Job | Result = self.done[0] if self.done else self.job
        return [told.peer, told.order, told.malloc]

    @property
    def loss(self) -> float | None:
        return self.done[0].loss if self.done else None

    def cells(self, reference_loss: float | None) -> list[str]:
        if not self.done:
            return [*self.names, "failed", *[""] * 5]
        medians = [result.median_ms for result in self.done]
        resident = statistics.median(result.rss_before_mb for result in self.done)
        peak = statistics.median(result.peak_mb for result in self.done)
        return [
            *self.names,
            f"{statistics.median(value for result in self.done for value in result.epoch_ms):.0f}",
            f"{min(medians):.0f} – {max(medians):.0f}",
            f"{resident:.0f}",
            f"{peak:.0f}",
            f"{peak - resident:.0f}",
            _loss_cell(self.loss, reference_loss),
        ]

    def ratio(self, other: _Row) -> str:
        ratios = [
            mine.median_ms / theirs.median_ms
            for mine, theirs in zip(self.results, other.results, strict=True)
            if mine is not None and theirs is not None
        ]
        return f"{statistics.median(ratios):.2f}" if ratios else ""


def _loss_cell(loss: float | None, reference: float | None) -> str:
    if loss is None or reference is None:
        return ""
    differs = abs(loss - reference) > LOSS_TOLERANCE * abs(reference)
    return f"{loss:.4f}{' **differs**' if differs else ''}"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _jobs(options: argparse.Namespace, model: str, threads: int) -> Iterator[Job]:
    orders: list[Path | None] = [None, *options.orders] if options.as_is else list(options.orders)
    for malloc, order in itertools.product(options.mallocs, orders):
        environment = {"OMP_NUM_THREADS": str(threads), **(ALLOCATOR_SETTING if malloc == "tuned" else {})}
        label = order.stem if order else "as-is"
        for peer in options.peers:
            yield Job(peer, label, malloc, _peer_command(options, peer, model, threads, order), environment)
    values = {"graph": options.graph, "model": model, "threads": threads, "epochs": options.epochs}
    for template in options.also:
        for order in orders if "{order}" in template else [None]:
            command = tuple(shlex.split(template.format(**values, order=order or "none")))
            label = order.stem if order else "as-is"
            yield Job(command[0], label, "default", command, {"OMP_NUM_THREADS": str(threads)})


def _peer_command(options: argparse.Namespace, peer: str, model: str, threads: int, order: Path | None) -> tuple[str, ...]:
    module, variant = PEERS[peer]
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", str(options.graph), "--model", model]
    command += ["--threads", str(threads), "--epochs", str(options.epochs)]
    command += ["--variant", variant] if variant else []
    command += ["--order", str(order)] if order else []
    return tuple(command)


def _as_json(group: Group) -> dict[str, object]:
    return {
        "model": group.model,
        "threads": group.threads,
        "jobs": [
            {
                **dict(zip(("peer", "order", "malloc"), row.names, strict=True)),
                "command": shlex.join(row.job.command),
                "repeats": [vars(result) if result else None for result in row.results],
            }
            for row in _rows(group)
        ],
    }


def _rows(group: Group) -> list[_Row]:
    return [_Row(job, results) for job, results in zip(group.jobs, group.results, strict=True)]


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=_existing, help=".npz")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=DEFAULT_PEERS)
    parser.add_argument("--also", action="append", default=[], metavar="CMD", help="another command; may be repeated")
    parser.add_argument("--models", nargs="+", choices=("gcn", "sage", "gat"), default=("gcn", "sage"))
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--orders", nargs="*", type=_existing, default=(), help=".npy permutations, beside the order as is")
    parser.add_argument("--as-is", action=argparse.BooleanOptionalAction, default=True, help="the order of the file too")
    parser.add_argument("--mallocs", nargs="+", choices=("default", "tuned"), default=("default",))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--baseline", default="dgl", help="the peer that ratios are taken against")
    parser.add_argument("--out", type=Path, help="JSON with every epoch's time")
    return parser.parse_args()


def _existing(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path


if __name__ == "__main__":
    sys.exit(main())
