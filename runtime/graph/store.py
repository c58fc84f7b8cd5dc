"""From a graph's name to its shards on disk, cut once and found again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halocast.errors import MisuseError, RunError
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import locality_order, partition_graph
from halocast.runtime.graph.shard import MANIFEST, ShardSet, open_shards, write_shards
from halocast.runtime.models.shapes import ATTENTION
from halocast.runtime.planned import plan_of, refuse_another_graph

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig

Report = Callable[[str], None]
LINES_OF_PROGRESS = 8
"""Of one partition, at most."""


def shard_cache() -> Path:
    """Where shards are kept: ``$HALOCAST_CACHE/shards``, by default under the user's cache folder."""
    root = os.environ.get("HALOCAST_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "halocast"
    return base / "shards"


def prepare_shards(
    spec: str,
    parts: int,
    *,
    method: str,
    objective: str,
    balance: str,
    seed: int,
    shares: Sequence[float] = (),
    symmetrise: bool = False,
    folder: Path | None = None,
    report: Report = lambda text: None,
    accept: Callable[[Graph], None] = lambda graph: None,
) -> ShardSet:
    """The shards of a graph's partition, made if they are not in `folder` (by default the cache) yet.

    `accept` looks at the graph first and may raise. Raises MisuseError for a bad graph or more parts than nodes, RunError where
    the disk is full.
    """
    report(f"loading {spec}")
    graph = load_graph(spec, symmetrise=symmetrise)
    accept(graph)
    if parts > graph.nodes:
        raise MisuseError(f"{parts} ranks for the {graph.nodes} nodes of '{graph.name}': allowed are 1 to {graph.nodes}")
    description: dict[str, object] = {
        "method": method,
        "objective": objective,
        "balance": balance,
        "seed": seed,
        "file": _file_key(method),
    }
    if shares:  # only then: shards cut before there were shares are found again
        description["shares"] = list(shares)
    key = hashlib.sha256("\n".join(map(str, description.values())).encode()).hexdigest()[:10]
    target = folder or shard_cache() / f"{graph.name}-{graph.fingerprint[:12]}" / f"{parts}-{method_name(method)}-{key}"
    if (target / MANIFEST).is_file():
        shards = _matching(target, graph, parts, description)
        if shards is not None:
            return shards
        if folder is not None:
            raise MisuseError(f"{folder} holds the shards of another partition; choose another folder or remove it")
        shutil.rmtree(target, ignore_errors=True)  # the cache's own, written by another version
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MisuseError(f"{folder} exists and holds no shards; choose a new or empty folder")
    return _cut(graph, parts, description, shares, target, report)


def _matching(folder: Path, graph: Graph, parts: int, description: dict[str, object]) -> ShardSet | None:
    """The shards in `folder` if they are these."""
    try:
        shards = open_shards(folder)
    except MisuseError:
        return None
    found = (shards.fingerprint, shards.parts, shards.manifest["partition"])
    return shards if found == (graph.fingerprint, parts, description) else None


def method_name(method: str) -> str:
    """ "metis", "random", "contiguous", or "file" for a path."""
    return method if method in {"metis", "random", "contiguous"} else "file"


def _file_key(method: str) -> str:
    """A digest of the partition file, if there is one: a changed file is a different partition."""
    path = Path(method)
    return hashlib.sha256(path.read_bytes()).hexdigest() if method_name(method) == "file" and path.is_file() else ""


def _cut(
    graph: Graph, parts: int, description: dict[str, object], shares: Sequence[float], target: Path, report: Report
) -> ShardSet:
    report(f"partitioning {graph.nodes:,} nodes and {graph.edges:,} edges into {parts}")
    seed = int(str(description["seed"]))
    assignment = partition_graph(
        graph,
        parts,
        method=str(description["method"]),
        objective=str(description["objective"]),
        balance=str(description["balance"]),
        seed=seed,
        shares=shares or None,
    )
    report("ordering rows by locality")
    position = locality_order(graph, assignment, seed=seed)
    step = -(-parts // LINES_OF_PROGRESS)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_shards(
            graph,
            assignment,
            position,
            target,
            partition=description,
            on_part=lambda part: report(f"writing shard {part + 1} of {parts}") if (part + 1) % step == 0 else None,
        )
    except OSError as error:
        raise RunError(
            f"cannot write shards to {target}: {error.strerror or error}; set HALOCAST_CACHE to a folder with space"
        ) from error


def find_shards(config: RunConfig, report: Report, *, parts: int | None = None) -> ShardSet:
    """A run's shards, or its graph in so many other parts, cut now if need be.

    Raises MisuseError where the run follows a plan for another graph, or attends to neighbours that nobody has.
    """
    partition, plan = config.partition, plan_of(config)

    def accept(graph: Graph) -> None:
        if graph.edges == 0 and config.model.layer in ATTENTION:
            raise MisuseError(
                f"model.layer '{config.model.layer}' attends to neighbours, and graph '{graph.name}' has no edges: "
                "give a graph with edges, or use --model sage, whose rows also count by themselves"
            )
        if plan is not None:
            refuse_another_graph(plan, config.plan, graph)

    return prepare_shards(
        config.graph,
        config.ranks if parts is None else parts,
        method=partition.method,
        objective=partition.objective,
        balance=partition.balance,
        seed=partition.seed,
        shares=partition.shares if parts is None or parts == config.ranks else (),
        symmetrise=config.symmetrise,
        report=report,
        accept=accept,
    )
