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

    from halocast.runtime.graph.datasets import known_datasets

    console = Console(as_json=json)
    known = known_datasets()
    console.document({"datasets": [asdict(each) for each in known]})
    return show(console, known)
