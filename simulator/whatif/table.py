"""The table of a what-if folder: its columns, and those that rest on more than one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from halocast.simulator.forecast import COMPONENTS
from halocast.simulator.whatif.points import Point

Floats = npt.NDArray[np.float64]
STOPS_PAYING = 0.5
"""Efficiency below which adding ranks does not pay."""
PARTS: Mapping[str, str] = MappingProxyType({name.replace("-", "_").replace(" ", "_"): name for name in COMPONENTS.values()})
"""Columns that together are an epoch, with their names in `Forecast.breakdown`."""
COLUMNS = pa.schema(
    [
        ("scenario", pa.int64()),
        ("name", pa.string()),
        ("graph", pa.string()),
        ("nodes_factor", pa.float64()),
        ("edges_factor", pa.float64()),
        ("nodes", pa.int64()),
        ("edges", pa.int64()),
        ("ranks", pa.int32()),
        ("hosts", pa.int32()),
        ("devices_per_host", pa.int32()),
        ("device", pa.string()),  # "": as calibrated
        ("network", pa.string()),
        ("network_rate", pa.float64()),  # bytes per second of a host's port
        ("inside", pa.string()),
        ("hosts_per_switch", pa.int32()),  # 0: one switch for all
        ("oversubscription", pa.float64()),
        ("transport", pa.string()),  # "": as calibrated
        ("all_reduce", pa.string()),
        ("method", pa.string()),
        ("bits", pa.string()),  # "": the method quantises nothing
        ("keep", pa.string()),  # layers that keep remote blocks
        ("prefetch", pa.int32()),
        ("savings", pa.string()),
        ("partition", pa.string()),
        ("layer", pa.string()),
        ("layers", pa.int32()),
        ("hidden", pa.int32()),
        ("price_per_hour", pa.float64()),  # of one device
        # null from here to efficiency where there is no forecast; seconds, mean over ranks
        ("epoch_seconds", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("compute", pa.float64()),
        ("quantise", pa.float64()),
        ("exchange_exposed", pa.float64()),
        ("all_reduce_exposed", pa.float64()),
        ("posting_messages", pa.float64()),
        ("wait", pa.float64()),
        ("exchange_hidden", pa.float64()),
        ("bytes_per_epoch", pa.int64()),
        ("exchange_bytes_per_epoch", pa.int64()),
        ("peak_bytes", pa.int64()),  # of the rank that needs most
        ("peak_high", pa.int64()),
        ("memory_bytes", pa.int64()),  # that a rank has
        ("training_seconds", pa.float64()),
        ("training_low", pa.float64()),
        ("training_high", pa.float64()),
        ("cost", pa.float64()),  # of a training, in the currency
        ("cost_low", pa.float64()),
        ("cost_high", pa.float64()),
        ("efficiency", pa.float64()),
        ("binds", pa.string()),
        ("extrapolated", pa.list_(pa.string())),
        ("feasible", pa.bool_()),
        ("reason", pa.string()),
        ("on_front", pa.bool_()),
    ]
)


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as columns; what a row leaves out is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=COLUMNS)


def finished(rows: Sequence[Mapping[str, Any]], points: Sequence[Point]) -> pa.Table:
    """All rows by scenario, with efficiencies and the front; `points` by scenario."""
    ordered = sorted(rows, key=lambda row: int(row["scenario"]))
    table = to_table(ordered)
    seconds, ranks = _floats(table, "training_seconds"), _floats(table, "ranks")
    scenarios = [int(row["scenario"]) for row in ordered]
    scaling = pd.factorize(pd.Series([points[scenario].scaling for scenario in scenarios], dtype=object))[0]
    cost = _floats(table, "cost")
    feasible = table["feasible"].to_numpy(zero_copy_only=False).astype(bool)
    price = ranks if np.isnan(cost).all() else cost  # a row without a price has no place beside rows with one
    tasks = pd.factorize(pd.Series([points[scenario].task for scenario in scenarios], dtype=object))[0]
    on_front = np.zeros(len(tasks), dtype=bool)
    for task in np.unique(tasks):
        on_front |= front(seconds, price, feasible & (tasks == task))  # a smaller graph is no better way to train a larger one
    columns = {
        "efficiency": pa.array(efficiency(scaling, ranks, seconds), pa.float64(), from_pandas=True),
        "on_front": pa.array(on_front & ~alike(seconds, price, on_front, _floats(table, "network_rate"))),
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), COLUMNS.field(name), values)
    return table


def alike(seconds: Floats, price: Floats, on_front: npt.NDArray[np.bool_], rate: Floats) -> npt.NDArray[np.bool_]:
    """[rows] whether another row of the front is equal in both, with a lesser link or an earlier number: one stands for all."""
    rows = pd.DataFrame({"seconds": seconds, "price": price, "rate": rate})[on_front].sort_values("rate", kind="stable")
    repeated = np.zeros(len(seconds), dtype=bool)
    repeated[rows.index[rows.duplicated(["seconds", "price"])]] = True
    return repeated


def efficiency(series: npt.NDArray[np.intp], ranks: Floats, seconds: Floats) -> Floats:
    """[rows] speed-up a rank over the fewest ranks of the row's series that have a forecast (of several such rows the fastest);
    NaN where there is none."""
    spent = pd.DataFrame({"series": series, "ranks": ranks, "spent": ranks * seconds}).dropna()
    base = spent.sort_values(["ranks", "spent"], kind="stable").groupby("series")["spent"].first()
    found = spent["series"].map(base) / spent["spent"]
    return np.asarray(found.reindex(range(len(series))), dtype=np.float64)


def front(seconds: Floats, price: Floats, feasible: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[rows] whether no feasible row is as good in one and better in the other; rows without either are on no front."""
    on_front = np.zeros(len(seconds), dtype=bool)
    allowed = np.flatnonzero(feasible & ~np.isnan(seconds) & ~np.isnan(price))
    order = allowed[np.lexsort((price[allowed], seconds[allowed]))]
    least, at = np.inf, -1.0
    for row in order.tolist():
        equals_last = price[row] == least and seconds[row] == at
        if price[row] < least or equals_last:
            on_front[row], least, at = True, price[row], seconds[row]
    return on_front


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_pandas(), dtype=np.float64)
