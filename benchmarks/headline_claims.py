"""Three headline claims of the literature as what-ifs: `python -m benchmarks.headline_claims --out benchmarks/results`.

AdaQP's speed-up on two machines of four V100, SAR's memory from 32 to 128 machines, and how much pipelining as PipeGCN's can
gain at most; beside each published number ours, the ratio, and all that is assumed. Costs are calibrated from the recorded
runs in traces/samples (--costs takes others) and moved to the papers' devices; no number here is fitted to a published one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.headline_assumptions import ASSUMED
from benchmarks.headline_figure import draw
from benchmarks.headline_graphs import AMAZON, MIXING, PAPERS, PRODUCTS, REDDIT, YELP, PublishedGraph, stand_in
from benchmarks.headline_report import page, summary
from benchmarks.headline_sar import SarMemory, sar_memory, sar_view

from halocast.runtime.config import ModelConfig
from halocast.runtime.models.shapes import built_in_specs
from halocast.runtime.programs.adaqp import exchange_shapes
from halocast.simulator.calibrate import calibrate
from halocast.simulator.costs import Ceilings, Costs
from halocast.simulator.forecast import Forecast, Scenario, assign_shares, assign_uniform, forecast
from halocast.simulator.observations import find_runs, observe_all
from halocast.simulator.placement import Hardware, Placement, on_hardware
from halocast.simulator.planner.timing import without_network
from halocast.simulator.transfer import MOVED_SPREAD, measure_ceilings
from halocast.traces.workload import BitAssignment, ExactSavings, Workload

NAME = "headline-claims"
SAMPLES = Path("traces/samples")
EXTRA_DEVICES = Path(__file__).with_name("headline_hardware.toml")
CEILING_MEASUREMENTS = 15
NORMAL_90 = 1.645
"""Standard deviations either side that hold 90 %."""
MADE_NODES = 24_000
COMMUNITIES = 16
MIXINGS = (0.05, MIXING)

ADAQP = 3.01
ADAQP_EPOCHS = ((1.1635, 0.8469), (1.0919, 0.7889))
"""Seconds of plain epochs and of their messages, Reddit, GCN, 4 workers on one machine: what AdaQP's README shows."""
ADAQP_RANKS, ADAQP_PER_HOST = 8, 4
ADAQP_WIDTHS = (2, 4, 8)
ADAQP_MODEL = ModelConfig(layer="gcn", layers=3, hidden=256, dropout=0.5, norm="layer")
NETWORKS = ("ethernet-10g", "ethernet-25g", "ethernet-100g")

SAR_GB = {32: 95.0, 64: 47.5, 128: 25.0}
SAR_MODEL = ModelConfig(layer="sage", layers=3, hidden=256, dropout=0.0, norm="layer")
SAR_NODES, SAR_COMMUNITIES = 200_000, 512

PIPEGCN = (1.7, 28.5)
PIPEGCN_SECONDS = 0.266
"""A pipelined epoch of Reddit on 2 GPUs: what PipeGCN's README shows."""

INPUTS, SELF_INPUTS = "Transform inputs", "Transform self_inputs"
"""Kinds of operations, as costs call them."""


@dataclass(frozen=True)
class Setting:
    """One configuration of a paper, on a stand-in of its graph."""

    graph: PublishedGraph
    ranks: int
    model: ModelConfig
    hardware: Hardware
    exact: ExactSavings
    mixing: float

    def workload(self, *, overlap: bool) -> Workload:
        layers = built_in_specs(self.model, self.graph.features, self.graph.classes)
        assert layers is not None
        parts = stand_in(self.graph, self.ranks, MADE_NODES, COMMUNITIES, self.mixing)
        return Workload(layers, parts, self.exact, overlap=overlap)


@dataclass(frozen=True)
class Machine:
    """Costs moved to a setting's devices, and where its ranks are."""

    costs: Costs
    placement: Placement

    @classmethod
    def of(cls, costs: Costs, setting: Setting) -> Machine:
        return cls(*on_hardware(costs, setting.ranks, setting.hardware))

    def ask(
        self, setting: Setting, method: str, *, overlap: bool, bits: Sequence[BitAssignment] | None = None, speed: float = 1.0
    ) -> Forecast:
        scenario = Scenario(
            graph=setting.graph.name,
            fingerprint="",
            workload=setting.workload(overlap=overlap),
            method=method,
            bits=tuple(bits) if bits else (None,) * setting.ranks,
            link=0.0,
            speeds=() if speed == 1.0 else (speed,) * setting.ranks,
        )
        return forecast(self.costs, self.placement.of(scenario))[0]

    def without_messages(self) -> Machine:
        """The same devices where messages take no time."""
        free = dict.fromkeys(("latency", "send_seconds", "receive_seconds", "byte_seconds", "reduce_step_seconds"), 0.0)
        free |= dict.fromkeys(("post_seconds", "wake_seconds"), 0.0)
        topology = self.placement.topology
        assert topology is not None
        network = self.costs.network.model_copy(update=free)
        return Machine(
            self.costs.model_copy(update={"network": network}), replace(self.placement, topology=without_network(topology))
        )


def seconds(answer: Forecast) -> float:
    return answer.epoch_seconds.value


# -- 1: AdaQP ---------------------------------------------------------------------------------------------------


def adaqp_claim(costs: Costs) -> list[dict[str, Any]]:
    """A row a data set, model, network and mixing: AdaQP's epoch over the plain one without overlap."""
    rows = []
    for graph in (REDDIT, YELP, PRODUCTS, AMAZON):
        for layer in ("gcn", "sage"):
            for network in NETWORKS:
                hardware = Hardware(device="V100", network=network, inside="pcie-3", ranks_per_host=ADAQP_PER_HOST)
                model = ADAQP_MODEL.model_copy(update={"layer": layer})
                for mixing in MIXINGS:
                    setting = Setting(graph, ADAQP_RANKS, model, hardware, ExactSavings.none(), mixing)
                    rows.append(adaqp_row(Machine.of(costs, setting), setting))
    return rows


def adaqp_row(machine: Machine, setting: Setting) -> dict[str, Any]:
    """`low` and `high`: the ratio with all operations slower and faster by what moving costs leaves open."""
    workload = setting.workload(overlap=True)
    mixed = assign_shares(workload, thirds(workload))
    plain, quantised = machine.ask(setting, "full", overlap=False), machine.ask(setting, "adaqp", overlap=True, bits=mixed)
    apart = math.exp(NORMAL_90 * MOVED_SPREAD)
    others = [
        seconds(machine.ask(setting, "full", overlap=False, speed=speed))
        / seconds(machine.ask(setting, "adaqp", overlap=True, bits=mixed, speed=speed))
        for speed in (1 / apart, apart)
    ]
    ratio = seconds(plain) / seconds(quantised)
    uniform = {
        bits: seconds(plain)
        / seconds(machine.ask(setting, "adaqp", overlap=True, bits=assign_uniform(setting.workload(overlap=True), bits)))
        for bits in ADAQP_WIDTHS
    }
    return {
        "graph": setting.graph.name,
        "layer": setting.model.layer,
        "network": setting.hardware.network,
        "mixing": setting.mixing,
        "marginal": sum(part.marginal for part in workload.parts) / sum(part.own for part in workload.parts),
        "halo": sum(part.halo for part in workload.parts) / sum(part.own for part in workload.parts),
        "plain_seconds": seconds(plain),
        "adaqp_seconds": seconds(quantised),
        "exchange_share": plain.breakdown["exchange exposed"] / seconds(plain),
        "bytes_ratio": plain.exchange_bytes_per_epoch / quantised.exchange_bytes_per_epoch,
        "ratio": ratio,
        "low": min(ratio, *others),
        "high": max(ratio, *others),
        **{f"uniform_{bits}": value for bits, value in uniform.items()},
        "extrapolated": list(quantised.extrapolated),
    }


def adaqp_check(costs: Costs, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The one plain epoch whose parts are published, forecast; and what the claim comes to with the published share."""
    hardware = Hardware(device="V100", network=NETWORKS[-1], inside="pcie-3", ranks_per_host=4)
    setting = Setting(REDDIT, 4, ADAQP_MODEL, hardware, ExactSavings.none(), MIXING)
    plain = Machine.of(costs, setting).ask(setting, "full", overlap=False)
    share = sum(messages for _, messages in ADAQP_EPOCHS) / sum(epoch for epoch, _ in ADAQP_EPOCHS)
    saved = max(row["bytes_ratio"] for row in rows)
    return {
        "published_seconds": sum(epoch for epoch, _ in ADAQP_EPOCHS) / len(ADAQP_EPOCHS),
        "published_share": share,
        "seconds": seconds(plain),
        "share": plain.breakdown["exchange exposed"] / seconds(plain),
        "bytes_ratio": saved,
        "at_published_share": 1.0 / (1.0 - share + share / saved),
    }


def thirds(workload: Workload) -> dict[Any, dict[int, float]]:
    """A third of the rows of every exchange at each width."""
    shapes = exchange_shapes(workload.view(0))
    return {(shape.layer, shape.direction): dict.fromkeys(ADAQP_WIDTHS, 1 / len(ADAQP_WIDTHS)) for shape in shapes}


# -- 2: SAR -----------------------------------------------------------------------------------------------------


def sar_claim() -> list[dict[str, Any]]:
    layers = built_in_specs(SAR_MODEL, PAPERS.features, PAPERS.classes)
    assert layers is not None
    rows = []
    for ranks, published in SAR_GB.items():
        parts = stand_in(PAPERS, ranks, SAR_NODES, SAR_COMMUNITIES)
        memory = [sar_memory(sar_view(rank, ranks, layers, part)) for rank, part in enumerate(parts)]
        worst: SarMemory = max(memory, key=lambda each: each.total)
        rows.append(
            {
                "machines": ranks,
                "published_gb": published,
                "total_gb": worst.total / 1e9,
                **{f"{name}_gb": value / 1e9 for name, value in asdict(worst).items()},
                "ratio": worst.total / 1e9 / published,
                "mean_gb": sum(each.total for each in memory) / ranks / 1e9,
            }
        )
    return rows


# -- 3: PipeGCN -------------------------------------------------------------------------------------------------


def pipegcn_claim(costs: Costs) -> list[dict[str, Any]]:
    """An epoch is never shorter than its computing, nor than its messages: what pipelining them can gain at most."""
    precomputed = ExactSavings(True, False, False, False)
    settings = [
        (REDDIT, 2, ModelConfig(layer="sage", layers=4, hidden=256, dropout=0.5, norm="layer")),
        (PRODUCTS, 5, ModelConfig(layer="sage", layers=3, hidden=128, dropout=0.3, norm="layer")),
    ]
    rows = []
    for graph, ranks, model in settings:
        for mixing in MIXINGS:
            hardware = Hardware(
                device="RTX2080Ti",
                network="ethernet-100g",
                inside="pcie-3",
                ranks_per_host=ranks,
                catalogue=EXTRA_DEVICES,
            )
            setting = Setting(graph, ranks, model, hardware, precomputed, mixing)
            machine = Machine.of(costs, setting)
            apart = math.exp(NORMAL_90 * MOVED_SPREAD)
            bound, low, high = (pipelined_bound(machine, setting, speed) for speed in (1.0, 1 / apart, apart))
            plain, computing = bound["plain_seconds"], bound["compute_seconds"]
            rows.append(
                {
                    "graph": graph.name,
                    "ranks": ranks,
                    "mixing": mixing,
                    "plain_seconds": plain,
                    "compute_seconds": computing,
                    "messages_seconds": plain - computing,
                    "central_rows": bound["central_rows"],
                    "ratio": bound["ratio"],
                    "low": min(each["ratio"] for each in (bound, low, high)),
                    "high": max(each["ratio"] for each in (bound, low, high)),
                }
            )
    return rows


def pipelined_bound(machine: Machine, setting: Setting, speed: float) -> dict[str, float]:
    plain = seconds(machine.ask(setting, "full", overlap=False, speed=speed))
    computing = seconds(machine.without_messages().ask(setting, "full", overlap=False, speed=speed))
    overlapped = seconds(machine.ask(setting, "full", overlap=True, speed=speed))
    return {
        "plain_seconds": plain,
        "compute_seconds": computing,
        "central_rows": plain / overlapped,
        "ratio": plain / max(computing, plain - computing),
    }


def calibrated(path: Path | None) -> tuple[Costs, str]:
    """The costs to move, and where they are from."""
    if path is not None:
        costs = Costs.load(path)
        return with_self_inputs(costs), f"{path.name}, of {costs.machine}"
    observations = observe_all(find_runs([SAMPLES]))
    costs = calibrate(observations).costs
    ceilings = highest_ceilings(max(costs.calibrated.threads))
    costs = costs.model_copy(update={"ceilings": ceilings})
    text = (
        f"{len(observations)} runs of {SAMPLES} on {costs.machine}, ceilings measured on {ceilings.machine}: memory "
        f"{ceilings.memory_rate / 1e9:.1f} GB/s, matrix products {ceilings.gemm_rate / 1e9:.0f} Gflop/s"
    )
    return with_self_inputs(costs), text


def highest_ceilings(threads: int) -> Ceilings:
    """The most that this machine reached in several measurements: other work on it makes single ones as low as half."""
    measured = [measure_ceilings(threads=threads) for _ in range(CEILING_MEASUREMENTS)]
    best = {rate: max(getattr(each, rate) for each in measured) for rate in ("memory_rate", "gemm_rate")}
    return measured[-1].model_copy(update=best)


def with_self_inputs(costs: Costs) -> Costs:
    """GraphSAGE's second matrix product backward, which no GCN does, at the price of the first: they are of one shape."""
    return costs.model_copy(update={"operations": {SELF_INPUTS: costs.operations[INPUTS], **costs.operations}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, help="costs to move, in place of those of traces/samples")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    costs, source = calibrated(arguments.costs)
    adaqp = adaqp_claim(costs)
    extrapolated = list(dict.fromkeys(reason for row in adaqp for reason in row.pop("extrapolated")))
    results = {
        "date": date.today().isoformat(),
        "costs": source,
        "published": {"adaqp": ADAQP, "sar_gb": SAR_GB, "pipegcn": PIPEGCN, "pipegcn_seconds": PIPEGCN_SECONDS},
        "adaqp": adaqp,
        "adaqp_check": adaqp_check(costs, adaqp),
        "sar": sar_claim(),
        "pipegcn": pipegcn_claim(costs),
        "assumed": ASSUMED,
        "extrapolated": extrapolated,
    }
    stem = arguments.out / f"{NAME}-{results['date']}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(results))
    draw(results, stem.with_suffix(".png"))
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
