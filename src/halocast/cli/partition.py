"""``halocast partition``: cut a graph into parts, store the shards, show what each part holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console

Flag = Annotated[bool, Parameter(negative=())]


def partition(
    graph: str,
    *,
    parts: int,
    method: str = "metis",
    objective: str = "cut",
    balance: str = "nodes",
    seed: int = 0,
    symmetrise: Flag = False,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Partition a graph and store one memory-mapped shard a part.

    Parameters
    ----------
    graph:
        A known name, an .npz or .csv path, pyg:NAME, ogb:NAME or generated:KEY=VALUE,...
    parts:
        Number of parts, one a rank.
    method:
        metis, random, contiguous, or a file with one part number a node (.npy or .txt).
    objective:
        What METIS minimises: cut (edges between parts) or volume (rows sent).
    balance:
        What every part gets the same share of: nodes, edges or train (training nodes).
    seed:
        Of METIS, and of the random partition.
    symmetrise:
        Add the missing direction of one-way edges instead of refusing the graph.
    out:
        Folder for the shards; by default the cache, where ``halocast train`` finds them.
    json:
        One JSON document on standard output.
    """
    from halocast.runtime.config import PartitionConfig, resolve
    from halocast.runtime.graph.store import prepare_shards

    console = Console(as_json=json)
    sections = {"method": method, "objective": objective, "balance": balance, "seed": seed}
    config = resolve({"graph": graph, "ranks": parts, "partition": sections}, "command line").partition
    shards = prepare_shards(
        graph,
        parts,
        method=config.method,
        objective=config.objective,
        balance=config.balance,
        seed=config.seed,
        symmetrise=symmetrise,
        folder=out,
        report=lambda text: console.note(f"{text} ..."),
    )
    statistics = [shards.statistics(part) for part in range(shards.parts)]
    rows = [
        {
            "part": part,
            "nodes": each.own,
            "central": each.central,
            "marginal": each.marginal,
            "halo": each.halo,
            "boundary": each.boundary,
            "nonzeros": each.nnz_central + each.nnz_marginal,
            "train": each.labelled,
            "max_send": max(each.boundary_to),
        }
        for part, each in enumerate(statistics)
    ]
    totals = {
        "halo_rows": sum(each.halo for each in statistics),
        "cut_edges": sum(each.nnz_halo for each in statistics) // 2,
        "max_send": max(each.boundary for each in statistics),
    }
    files = {"shards": str(shards.folder)}
    console.document({"graph": shards.graph, "partition": sections, "parts": rows, "totals": totals, "files": files})
    console.table(
        f"{shards.graph['name']} in {parts} parts ({method}, {objective}, balanced on {balance})",
        ["part", "nodes", "central", "marginal", "halo", "boundary", "nonzeros", "train", "max to a peer"],
        [[f"{value:,}" for value in row.values()] for row in rows],
    )
    console.result(
        f"{totals['halo_rows']:,} halo rows in all ({totals['halo_rows'] / shards.graph['nodes']:.3f} a node), "
        f"{totals['cut_edges']:,} edges cut, at most {totals['max_send']:,} rows sent by one part"
    )
    if shards.graph["edge_dim"] or shards.graph["relations"]:
        console.result(
            f"edges: {shards.graph['edge_dim']} features, {len(shards.graph['relations'])} relations (inverses counted)"
        )
    defaults = PartitionConfig()
    differing = {key: value for key, value in sections.items() if value != getattr(defaults, key)}
    flags = "".join(f" --set partition.{key}={value}" for key, value in differing.items())
    console.closing(files, f"halocast train {graph} --ranks {parts}{' --symmetrise' if symmetrise else ''}{flags}")
    return 0
