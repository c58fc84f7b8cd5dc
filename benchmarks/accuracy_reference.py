"""Test metrics that PyG reaches with halocast's model: `python -m benchmarks.accuracy_reference --out FILE`.

A hidden layer is convolution, optional LayerNorm (eps 1e-5), ReLU, dropout; the last layer is the convolution alone;
nothing is dropped from the inputs. Convolutions:

- gcn:  D^-1/2 (A + I) D^-1/2 X W + b
- sage: X W_self + D^-1 A X W_neighbour + b

Glorot-uniform weights, zero biases, Adam with its L2 penalty on all parameters, cross-entropy as the mean over training
nodes (multi-label: binary cross-entropy as the mean over training nodes and classes). After each step the model is
evaluated without dropout; what counts is the test metric at the first epoch with the highest validation metric.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch_geometric
from benchmarks.peers.graph import PlainGraph, load_graph
from benchmarks.peers.pyg_full import BoundConvolution, EdgeIndexGCNConv, EdgeIndexSAGEConv, pyg_structure
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

SPARSE_DENSITY = 0.05
"""Features with fewer non-zeros than this are multiplied as a sparse matrix: the same product, without its zeros."""


@dataclass(frozen=True)
class Settings:
    """What is trained on one data set, and how."""

    model: str = "gcn"
    layers: int = 2
    hidden: int = 64
    layer_norm: bool = False
    dropout: float = 0.5
    epochs: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    metric: str = "accuracy"
    """accuracy, micro_f1 or roc_auc"""


DATASETS = {
    "cora": Settings(),
    "pubmed": Settings(),
    "amazon_photo": Settings(),
    "coauthor_physics": Settings(),
    "tolokers": Settings(
        layers=3,
        hidden=128,
        layer_norm=True,
        dropout=0.2,
        epochs=120,
        learning_rate=3e-3,
        weight_decay=0.0,
        metric="roc_auc",
    ),
    "debian_packages": Settings(
        model="sage", layers=3, hidden=128, layer_norm=True, epochs=100, learning_rate=3e-3, weight_decay=0.0
    ),
    "deezer_hu": Settings(model="sage", epochs=100, weight_decay=0.0, metric="micro_f1"),
}
DEFAULT_DATASETS = ("cora", "pubmed", "amazon_photo", "coauthor_physics", "tolokers", "debian_packages")


@dataclass(frozen=True)
class Inputs:
    """A graph as PyG takes it."""

    features: Tensor
    """float32 [nodes, feature_dim], dense or sparse CSR"""
    adjacency: Tensor
    """EdgeIndex sorted by column"""
    edge_weights: Tensor | None
    """float32 [directed edges and self loops] in a GCN"""
    labels: Tensor
    """int64 [nodes] or float32 [nodes, classes]"""
    train: Tensor
    """int64, ids of the training nodes; so too the next two"""
    val: Tensor
    test: Tensor
    classes: int

    @property
    def multilabel(self) -> bool:
        return self.labels.dim() == 2


@dataclass(frozen=True)
class Outcome:
    """One seed's result: metrics in [0, 1], the loss of the last epoch, and the seconds that it took."""

    seed: int
    test: float
    validation: float
    best_epoch: int
    last_loss: float
    seconds: float


class ReferenceModel(nn.Module):
    """The stack of convolutions that the module's docstring describes."""

    def __init__(self, settings: Settings, inputs: Inputs) -> None:
        super().__init__()
        dims = [inputs.features.shape[1], *[settings.hidden] * (settings.layers - 1), inputs.classes]
        self.dropout = settings.dropout
        self.convolutions = nn.ModuleList(
            BoundConvolution(_convolution(settings.model, *pair), inputs.adjacency, inputs.edge_weights)
            for pair in itertools.pairwise(dims)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-5) if settings.layer_norm else nn.Identity() for dim in dims[1:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits [nodes, classes]."""
        rows = features
        for convolution, norm in zip(self.convolutions[:-1], self.norms, strict=True):
            rows = norm(convolution(rows)).relu()
            rows = functional.dropout(rows, self.dropout, self.training)
        logits: Tensor = self.convolutions[-1](rows)
        return logits


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse CS[RC] tensor support is in beta")
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=DEFAULT_DATASETS, help="names in the table, default: the six")
    parser.add_argument("--data", type=Path, default=_data_folder(), help="folder of the .npz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    unknown = [name for name in options.datasets if name not in DATASETS]
    if unknown:
        parser.error(f"no settings for {', '.join(unknown)}; there are some for {', '.join(DATASETS)}")
    torch.set_num_threads(options.threads)

    results = []
    for name in options.datasets:
        results.append(run_dataset(name, options.data / f"{name}.npz", range(options.seeds)))
        report = {"versions": _versions(), "results": results}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def run_dataset(name: str, path: Path, seeds: Sequence[int]) -> dict[str, object]:
    """Trains every seed on one data set and prints a line of progress."""
    settings = DATASETS[name]
    inputs = _inputs(load_graph(path), settings)
    outcomes = [train(settings, inputs, seed) for seed in seeds]
    tests = [outcome.test for outcome in outcomes]
    mean, deviation = statistics.fmean(tests), statistics.stdev(tests) if len(tests) > 1 else 0.0
    seconds = sum(outcome.seconds for outcome in outcomes)
    score = f"{100 * mean:6.2f} ± {100 * deviation:.2f}"
    print(f"{name:18} {settings.model:4} {settings.metric:8} {score}  {seconds:.0f} s", flush=True)
    return {
        "dataset": name,
        "settings": asdict(settings),
        "test_mean": mean,
        "test_std": deviation,
        "seeds": [asdict(outcome) for outcome in outcomes],
    }


def train(settings: Settings, inputs: Inputs, seed: int) -> Outcome:
    """Trains one model and keeps the test metric of its best validation epoch."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = ReferenceModel(settings, inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best = (-1.0, float("nan"), -1)
    loss = torch.tensor(float("nan"))
    for epoch in range(settings.epochs):
        model.train()
        optimizer.zero_grad()
        loss = _loss(model(inputs.features)[inputs.train], inputs.labels[inputs.train])
        torch.autograd.backward(loss)
        optimizer.step()

        model.eval()
        with torch.no_grad():
            logits = model(inputs.features)
        validation = evaluate(settings.metric, logits[inputs.val], inputs.labels[inputs.val])
        if validation > best[0]:
            best = (validation, evaluate(settings.metric, logits[inputs.test], inputs.labels[inputs.test]), epoch)
    validation, test, best_epoch = best
    return Outcome(seed, test, validation, best_epoch, loss.item(), round(time.perf_counter() - start, 1))


def evaluate(metric: str, logits: Tensor, labels: Tensor) -> float:
    """The metric in [0, 1] of logits [rows, classes]; labels as in Inputs."""
    if metric == "accuracy":
        return (logits.argmax(dim=1) == labels).double().mean().item()
    if metric == "micro_f1":
        return float(f1_score(labels.numpy(), (logits > 0).numpy(), average="micro", zero_division=0.0))
    if metric == "roc_auc":
        return float(roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))
    raise ValueError(f"metric {metric!r}: accuracy, micro_f1 or roc_auc")


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.cross_entropy(logits, labels)


def _convolution(model: str, dim_in: int, dim_out: int) -> nn.Module:
    if model == "gcn":
        return EdgeIndexGCNConv(dim_in, dim_out, normalize=False)  # normalised once, in the edge weights
    convolution = EdgeIndexSAGEConv(dim_in, dim_out, aggr="mean")
    # SAGEConv draws Kaiming-uniform weights and biases by default
    nn.init.xavier_uniform_(convolution.lin_l.weight)
    nn.init.xavier_uniform_(convolution.lin_r.weight)
    nn.init.zeros_(convolution.lin_l.bias)
    return convolution


def _inputs(graph: PlainGraph, settings: Settings) -> Inputs:
    features = torch.from_numpy(graph.features)
    # SAGEConv aggregates its inputs first and so takes dense rows only
    if settings.model == "gcn" and np.count_nonzero(graph.features) < SPARSE_DENSITY * graph.features.size:
        features = features.to_sparse_csr()
    adjacency, edge_weights = pyg_structure(graph, settings.model, "edge-index")
    labels = torch.from_numpy(graph.labels)
    return Inputs(
        features=features,
        adjacency=adjacency,
        edge_weights=edge_weights,
        labels=labels.float() if graph.multilabel else labels.long(),
        train=torch.from_numpy(np.flatnonzero(graph.train_mask)),
        val=torch.from_numpy(np.flatnonzero(graph.val_mask)),
        test=torch.from_numpy(np.flatnonzero(graph.test_mask)),
        classes=graph.classes,
    )


def _data_folder() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("HALOCAST_DATA", beside))


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "torch_geometric": torch_geometric.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    main()
