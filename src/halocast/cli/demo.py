"""``halocast demo``: the whole loop on the graph that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from halocast.cli.console import Console

EPOCHS = 40
LINK = "shaped:200mbit"
RUN = {
    "graph": "debian",
    "ranks": 2,
    "model": {"layer": "sage", "layers": 3, "hidden": 128, "norm": "layer", "dropout": 0.5},
    "training": {"epochs": EPOCHS, "learning_rate": 0.01, "evaluate_every": 5, "checkpoint_every": 0},
}


def demo(*, out: Path | None = None, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Trace plain training, calibrate, plan, train with the plan, and draw forecast beside measurement.

    GraphSAGE on the Debian package graph over 2 ranks: behind links of 200 Mbit/s where that is possible (Linux, as root), on
    the loopback otherwise.

    Parameters
    ----------
    out:
        Folder for everything; by default a new one under runs/.
    json:
        One JSON document on standard output.
    """
    from halocast.cli.tune import Tuning, finish, new_folder
    from halocast.errors import MisuseError
    from halocast.runtime.config import resolve
    from halocast.runtime.testbed import require_testbed
    from halocast.simulator.planner.search import Goal

    console = Console(as_json=json)
    hosts = LINK
    try:
        require_testbed(int(str(RUN["ranks"])))
    except MisuseError as error:
        console.note(f"on the loopback, not behind links of 200 Mbit/s: {error}")
        hosts = "local"
    config = resolve({**RUN, "hosts": hosts}, "demo")
    loop = Tuning(config, Goal(), out or new_folder(config), console, whole_baseline=True)
    return finish(console, loop.run())
