"""``halocast datasets``: the graphs that can be named."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console


def datasets(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List the graphs that ``halocast train`` knows by name.

    Parameters
    ----------
    json:
        One JSON document on standard output.
    """
    from dataclasses import asdict

    from halocast.runtime.graph.datasets import known_datasets, search_path

    console = Console(as_json=json)
    known = known_datasets()
    console.document({"datasets": [asdict(each) for each in known]})
    edge_data = any(each.edge_dim or each.relations for each in known)
    columns = ["name", "metric", "where", "nodes", "edges", "features", "classes"]
    if edge_data:
        columns += ["edge features", "relations"]
    console.table(
        "Graphs known by name (edges are undirected)",
        columns,
        [
            [
                each.name,
                each.metric.replace("_", " "),
                "ships with halocast" if each.embedded else each.path,
                *(f"{count:,}" if count >= 0 else "?" for count in (each.nodes, each.edges, each.features, each.classes)),
                *((f"{each.edge_dim:,}", f"{each.relations:,}") if edge_data else ()),
            ]
            for each in known
        ],
        text_columns=3,
    )
    folders = ", ".join(str(folder) for folder in search_path())
    console.result(f"others: .npz files in {folders} (more folders in $HALOCAST_DATA), a path ending in .npz or .csv,")
    console.result("        pyg:NAME, ogb:NAME, generated:nodes=100000,degree=30")
    console.result("next: halocast train debian --ranks 2")
    return 0
