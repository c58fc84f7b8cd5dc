"""Record the runs of the validation study: `python -m benchmarks.validation_runs --data ../shared/data --out RUNS`.

3 graphs × ranks {2, 4, 8} × links {100 mbit, 200 mbit, 1 gbit}, two of {plain, AdaQP at 8, 4, 2 bits} in every cell, so that
each width meets each graph, rank count and link, and both METIS objectives. Two graphs have dense features and no
lossless saving (every layer exchanges); the third keeps its sparse features, aggregated once. All configurations are run
once before any is repeated, in an order shuffled anew, so that the machine's moods spread over all of them. A run that is
there already is left alone: an interrupted study goes on where it stopped. Keep the machine quiet meanwhile.

    halocast validate RUNS --out reports/validation

With `--sequential` it records sequential aggregation instead: 2 graphs × ranks {2, 4} × links × GAT that fetches twice or
keeps, GraphSAGE with mean and with maximum.

With `--samples` it records the small runs that the repository carries instead, on a made graph:
`python -m benchmarks.validation_runs --samples --out traces/samples --repeats 2 --epochs 6`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adaqp import NO_SAVINGS, with_dense_features

RANKS = (2, 4, 8)
LINKS = ("100mbit", "200mbit", "1gbit")
METHODS = ("plain", "8", "4", "2")
OBJECTIVES = ("cut", "volume")
HIDDEN = 64
DENSE = ("github_social", "debian_packages")
SPARSE = "coauthor_physics"
SAMPLE, SAMPLE_GRAPH = "generated", "generated:nodes=12000,degree=16,features=64,community_mixing=0.1"
SEQUENTIAL = {
    "gat-remat": ["--method", "sar", "--model", "gat"],
    "gat-keep": ["--method", "sar", "--model", "gat", "--set", "method.keep=true"],
    "sage": ["--method", "sar", "--model", "sage"],
    "sage-max": ["--method", "sar", "--model", "sage-max"],
}
SEQUENTIAL_LINKS = ("local", "200mbit")
SPARSE_SAVINGS = ["--set", "method.exact.keep_halo_features=false", "--set", "method.exact.transform_first=false"]


@dataclass(frozen=True)
class Configuration:
    graph: str
    ranks: int
    link: str
    method: str
    objective: str

    @property
    def name(self) -> str:
        method = {"plain": "full"}.get(self.method, self.method if self.method in SEQUENTIAL else f"adaqp{self.method}")
        return f"{self.graph}-{self.ranks}-{self.link}-{method}-{self.objective}"

    def arguments(self) -> list[str]:
        if self.method in SEQUENTIAL:
            link = ["--hosts", "local" if self.link == "local" else f"shaped:{self.link}"]
            return ["--ranks", str(self.ranks), *link, "--hidden", str(HIDDEN), *SEQUENTIAL[self.method], *NO_SAVINGS]
        arguments = ["--ranks", str(self.ranks), "--hosts", f"shaped:{self.link}", "--hidden", str(HIDDEN)]
        arguments += ["--set", f"partition.objective={self.objective}"]
        arguments += ["--method", "full"] if self.method == "plain" else ["--method", "adaqp", "--bits", self.method]
        if self.graph == SPARSE:
            return [*arguments, "--model", "sage", *SPARSE_SAVINGS]
        return [*arguments, "--model", "gcn", "--set", "model.norm=layer", *NO_SAVINGS]


def configurations() -> Iterator[Configuration]:
    for g, graph in enumerate((*DENSE, SPARSE)):
        for i, ranks in enumerate(RANKS):
            for j, link in enumerate(LINKS):
                first = (g + i + j) % 4
                second = (first + 1 + (i + 2 * j + g) % 3) % 4
                for number, method in enumerate((first, second)):
                    yield Configuration(graph, ranks, link, METHODS[method], OBJECTIVES[(g + i + j + number) % 2])


def samples() -> Iterator[Configuration]:
    """Eight configurations of a small made graph."""
    cells = [(ranks, link) for ranks in (2, 4) for link in LINKS[:2]]
    for number, (ranks, link) in enumerate(cells):
        for method in (METHODS[number % 4], METHODS[(number + 2) % 4]):
            yield Configuration(SAMPLE, ranks, link, method, "cut")


def sequential() -> Iterator[Configuration]:
    """Every layer and mode in every cell of ranks and links, on one graph and the other by turns."""
    cells = [(ranks, link) for ranks in (2, 4) for link in SEQUENTIAL_LINKS]
    for number, (ranks, link) in enumerate(cells):
        for place, method in enumerate(SEQUENTIAL):
            yield Configuration(DENSE[(number + place + number // 2) % 2], ranks, link, method, "cut")


def record(configuration: Configuration, graph: Path | str, epochs: int, target: Path) -> None:
    """One traced run; it appears under its name only when it is complete."""
    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    command = [
        sys.executable, "-m", "halocast", "train", str(graph), "--epochs", str(epochs), "--out", str(building), "--json",
        "--set", "training.evaluate_every=0", "--set", "training.checkpoint_every=0", *configuration.arguments(),
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{configuration.name}: {finished.stderr.strip().splitlines()[-1]}")
    for leftover in ("checkpoints", "logs"):
        shutil.rmtree(building / leftover, ignore_errors=True)
    (building / "job.json").unlink(missing_ok=True)
    result = building / "result.json"
    result.write_text(result.read_text().replace(f"{Path.cwd()}/", "").replace(building.name, target.name))
    building.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the graphs' .npz files")
    parser.add_argument("--samples", action="store_true", help="the small runs that the repository carries")
    parser.add_argument("--sequential", action="store_true", help="sequential aggregation")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    graphs: dict[str, Path | str] = {SAMPLE: SAMPLE_GRAPH}
    if not arguments.samples:
        if arguments.data is None:
            parser.error("--data is needed for the study (or give --samples)")
        graphs[SPARSE] = arguments.data / f"{SPARSE}.npz"
    for name in () if arguments.samples else DENSE:
        folder = arguments.out / "graphs"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.npz"
        graphs[name] = path if path.is_file() else with_dense_features(str(arguments.data / f"{name}.npz"), HIDDEN, folder)
    study = samples if arguments.samples else sequential if arguments.sequential else configurations
    chosen = [each for each in study() if arguments.only in each.name]
    for repeat in range(arguments.repeats):
        order = list(chosen)
        random.Random(repeat).shuffle(order)
        for number, configuration in enumerate(order):
            target = arguments.out / configuration.name / str(repeat)
            if target.exists():
                continue
            target.parent.mkdir(exist_ok=True)
            started = time.monotonic()
            record(configuration, graphs[configuration.graph], arguments.epochs, target)
            print(f"{repeat} {number:3d}/{len(order)} {configuration.name} {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
