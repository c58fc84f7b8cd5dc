"""What-if folders with realistic numbers, made from a small model of its own: fixtures of the capacity report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halocast.simulator.whatif.table import COLUMNS

DEVICES: Mapping[str, tuple[float, float, int]] = {
    "H100": (1.0, 3.20, 80),
    "A100": (2.1, 1.90, 80),
    "L40S": (3.0, 1.10, 48),
    "V100": (5.5, 0.80, 16),
}
"""Name: (time of the same work, price of an hour, memory in GB)."""
NETWORKS: Mapping[str, float] = {
    "ethernet-10g": 1.25e9,
    "ethernet-25g": 3.1e9,
    "ethernet-100g": 1.25e10,
    "infiniband-hdr": 2.5e10,
    "infiniband-ndr": 5e10,
}
METHODS = (("full", ""), ("adaqp", "8"), ("adaqp", "4"), ("adaqp", "2"))
EPOCHS = 10_000
COMPONENTS = ("compute", "quantise", "exchange_exposed", "all_reduce_exposed", "posting_messages", "wait")
BINDS = ("compute", "quantise", "exchange", "all-reduce", "posting", "between operations")


def scenario_table(
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16),
    devices: Sequence[str] = ("H100", "A100"),
    networks: Sequence[str] = ("ethernet-25g", "ethernet-100g"),
    methods: Sequence[tuple[str, str]] = METHODS[:2],
    hidden: Sequence[int] = (256,),
    layers: Sequence[int] = (3,),
    partitions: Sequence[str] = ("metis/cut",),
    deadline: float | None = 4 * 3600.0,
    prices: bool = True,
    graph: str = "debian_packages",
    memory_share: float = 1.0,
) -> pd.DataFrame:
    """All combinations, as the contract's columns."""
    grid = itertools.product(devices, networks, methods, partitions, hidden, layers, ranks)
    rows = [
        one_scenario(number, *each, deadline=deadline, prices=prices, graph=graph, share=memory_share)
        for number, each in enumerate(grid)
    ]
    table = pd.DataFrame(rows)
    series = ["device", "network", "method", "bits", "partition", "hidden", "layers"]
    first = table.sort_values("ranks").groupby(series)[["ranks", "epoch_seconds"]].transform("first")
    table["efficiency"] = first["ranks"] * first["epoch_seconds"] / (table["ranks"] * table["epoch_seconds"])
    return with_front(table)


def one_scenario(
    number: int,
    device: str,
    network: str,
    method: tuple[str, str],
    partition: str,
    hidden: int,
    layers: int,
    ranks: int,
    *,
    deadline: float | None,
    prices: bool,
    graph: str,
    share: float,
) -> dict[str, Any]:
    """One row. Compute falls with the ranks, the exchange with rate and bits; what is all-reduced grows."""
    slow, price, memory = DEVICES[device]
    name, bits = method
    width = int(bits or 32) / 32
    volume = int(4e9 * width * (1 - 1 / ranks) * hidden / 256 * layers / 3 * (0.9 if partition.endswith("volume") else 1.0))
    parts = {
        "compute": 3.0 * slow / ranks * hidden / 256 * layers / 3,
        "quantise": 0.06 * slow / ranks if bits and ranks > 1 else 0.0,
        "exchange_exposed": volume / ranks / NETWORKS[network] + 0.002 * layers * np.log2(ranks),
        "all_reduce_exposed": 0.003 * np.log2(ranks),
        "posting_messages": 0.001 * (ranks - 1),
        "wait": 0.04 * slow / ranks if ranks > 1 else 0.0,
    }
    epoch = float(sum(parts.values()))
    training = EPOCHS * epoch
    spread = 1.2 if ranks <= 8 else 1.35
    cost = training / 3600 * ranks * price if prices else None
    peak = int(share * 90e9 / ranks * hidden / 256)
    reasons = []
    if peak * 1.1 > memory * 1e9:
        reasons.append(f"may need more memory than there is: {peak * 1.1 / 1e9:.3g} GB of {memory} GB")
    if deadline is not None and training > deadline:
        reasons.append(f"misses the deadline: {training / 3600:.1f} h of {deadline / 3600:g} h")
    extrapolated = [f"{ranks} ranks: calibrated from 1 to 8"] if ranks > 8 else []
    if device != "A100":
        extrapolated.append(f"Aggregate 0 forward: costs moved to {device}")
        extrapolated.append(f"Transform 1 forward: costs moved to {device}")
    return {
        "scenario": number,
        "name": f"{ranks} x {device}, {network}, {name}{f' {bits} bits' if bits else ''}",
        "graph": graph,
        "nodes_factor": 1.0,
        "edges_factor": 1.0,
        "nodes": 2_000_000,
        "edges": 40_000_000,
        "ranks": ranks,
        "hosts": ranks,
        "devices_per_host": 1,
        "device": device,
        "network": network,
        "network_rate": NETWORKS[network],
        "inside": "",
        "hosts_per_switch": 0,
        "oversubscription": 1.0,
        "transport": "nccl",
        "all_reduce": "ring",
        "method": name,
        "bits": bits,
        "keep": "none",
        "prefetch": 1,
        "savings": "all",
        "partition": partition,
        "layer": "gcn",
        "layers": layers,
        "hidden": hidden,
        "price_per_hour": price if prices else None,
        "epoch_seconds": epoch,
        "low": epoch / spread,
        "high": epoch * spread,
        **parts,
        "exchange_hidden": 0.01,
        "bytes_per_epoch": volume + 1_000_000,
        "exchange_bytes_per_epoch": volume,
        "peak_bytes": peak,
        "peak_high": int(peak * 1.1),
        "memory_bytes": memory * 10**9,
        "training_seconds": training,
        "training_low": training / spread,
        "training_high": training * spread,
        "cost": cost,
        "cost_low": cost / spread if cost else None,
        "cost_high": cost * spread if cost else None,
        "binds": BINDS[int(np.argmax(list(parts.values())))],
        "extrapolated": extrapolated,
        "feasible": not reasons,
        "reason": "; ".join(reasons),
        "on_front": False,
    }


def with_front(table: pd.DataFrame) -> pd.DataFrame:
    """Marks those that no other feasible one beats in both: by a scan in order of time."""
    against = "cost" if table["cost"].notna().any() else "ranks"
    best, front = np.inf, []
    for index, row in table[table["feasible"]].sort_values(["training_seconds", against]).iterrows():
        if row[against] < best:
            best = row[against]
            front.append(index)
    return table.assign(on_front=table.index.isin(front))


def answers_of(table: pd.DataFrame, deadline: float | None) -> dict[str, Any]:
    """Answers in the contract's shape, told from the rows."""
    feasible = table[table["feasible"]]
    prices = bool(table["cost"].notna().any())
    if feasible.empty:
        none = [{"question": "Which is the cheapest?", "answer": "None: every scenario misses a filter.", "scenarios": []}]
        return {"sentences": none, "recommended": None, "tornado": [], "upgrades": [], "knees": []}
    chosen = feasible.sort_values("cost" if prices else "training_seconds").iloc[0]
    seconds, cost = float(chosen["training_seconds"]), chosen["cost"]

    def scaled(input_name: str, label: str, low: str, high: str, faster: float, slower: float) -> dict[str, Any]:
        return {
            "input": input_name,
            "label": label,
            "low": low,
            "high": high,
            "seconds_low": seconds * faster,
            "seconds_high": seconds * slower,
            "cost_low": cost * faster if prices else None,
            "cost_high": cost * slower if prices else None,
        }

    knees = feasible[feasible["efficiency"] < 0.5].sort_values("ranks").head(3)
    within = f" within {deadline / 3600:g} h" if deadline else ""
    return {
        "sentences": [
            {
                "question": f"Which is the cheapest{within}?" if prices else f"Which is the fastest{within}?",
                "answer": f"{chosen['name']}: {seconds / 3600:.2f} h a training.",
                "scenarios": [int(chosen["scenario"])],
            },
            {"question": "What binds?", "answer": f"{chosen['binds']}, in the recommended scenario.", "scenarios": []},
        ],
        "recommended": int(chosen["scenario"]),
        "tornado": [
            scaled("device_speed", "speed of the device", "0.8 ×", "1.2 ×", 1.19, 0.87),
            scaled("network_rate", "rate of a host's port", "10 GB/s", "15 GB/s", 1.06, 0.96),
            scaled("edges", "edges of the graph", "32,000,000", "48,000,000", 0.88, 1.13),
        ],
        "upgrades": [
            {
                "scenario": int(feasible["scenario"].iloc[-1]),
                "link": "network",
                "from": str(chosen["network"]),
                "to": "infiniband-ndr",
                "seconds_from": seconds,
                "seconds_to": 0.9 * seconds,
                "cost_from": cost if prices else None,
                "cost_to": 0.9 * cost if prices else None,
            }
        ],
        "knees": [
            {
                "series": f"{row['device']}, {row['network']}",
                "ranks": int(row["ranks"]),
                "efficiency": float(row["efficiency"]),
                "scenarios": [int(row["scenario"])],
            }
            for _, row in knees.iterrows()
        ],
    }


def manifest_of(table: pd.DataFrame, deadline: float | None, *, finished: bool = True) -> dict[str, Any]:
    prices = bool(table["cost"].notna().any())
    labels = {"device": "device", "network": "network", "ranks": "ranks", "method": "method", "hidden": "hidden width"}
    axes = [
        {
            "name": name,
            "label": label,
            "unit": "",
            "values": [each.item() if hasattr(each, "item") else each for each in values],
        }
        for name, label in labels.items()
        if len(values := table[name].unique()) > 1
    ]
    return {
        "schema_version": 1,
        "halocast": "0.1.0",
        "date": "2026-02-03",
        "graph": {"name": str(table["graph"].iloc[0]), "nodes": 2_000_000, "edges": 40_000_000, "fingerprint": "0123abcd"},
        "grid": {"epochs": EPOCHS},
        "axes": axes,
        "fixed": {"layer": "gcn", "layers": 3},
        "epochs": EPOCHS,
        "currency": "EUR" if prices else None,
        "deadline_seconds": deadline,
        "budget": None,
        "memory_bytes": None,
        "sample": None,
        "seed": 0,
        "costs": {"path": "costs.json", "machine": "a measured machine", "device": "A100", "digest": "feed"},
        "digest": "beef",
        "scenarios": len(table),
        "finished": finished,
        "assumed": ["the network's rates are those of its catalogue entry"],
        "prices": {
            name: {"value": DEVICES.get(name, DEVICES["A100"])[1], "source": "the grid file"}
            for name in sorted(set(table["device"]))
        }
        if prices
        else {},
    }


def write_folder(folder: Path, table: pd.DataFrame, *, deadline: float | None = 4 * 3600.0, finished: bool = True) -> Path:
    """A folder as ``halocast whatif`` leaves it, or, unfinished, as it is while that runs."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (folder / "whatif.json").write_text(json.dumps(manifest_of(table, deadline, finished=finished)))
    if finished:
        table.to_parquet(folder / "scenarios.parquet", schema=COLUMNS, index=False)
        (folder / "answers.json").write_text(json.dumps(answers_of(table, deadline)))
    else:
        table.to_parquet(folder / "parts" / "00001.parquet", schema=COLUMNS, index=False)
    return folder


def ten_thousand(**others: Any) -> pd.DataFrame:
    """10,000 scenarios of one task: 4 devices, 5 networks, 4 methods, 5 partitions, 25 numbers of ranks."""
    return scenario_table(
        ranks=range(1, 26),
        devices=tuple(DEVICES),
        networks=tuple(NETWORKS),
        methods=METHODS,
        partitions=("metis/cut", "metis/volume", "random", "contiguous", "mine.npz"),
        **others,
    )
