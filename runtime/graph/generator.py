"""Made graphs of any size: the degree skew, communities and label homophily asked for, by seed, streaming.

The model is a degree-corrected stochastic block model (Karrer and Newman, Phys. Rev. E 83, 016107, 2011): the edges
between nodes u and v are Poisson with mean ``rate[kind] * weight[u] * weight[v]``, weights are a power law, and the
four kinds say whether u and v share their community and their class. Nodes are laid out by community, then class; an
edge belongs to its earlier node, so every kind's partners are one contiguous range of the layout and repeats of an
edge are found among one node's own. That is what makes the stream possible: memory is O(nodes + chunk), and the
edges do not depend on the chunk's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.errors import MisuseError
from halocast.runtime.graph.adjacency import index_dtype, structure_from_keys
from halocast.runtime.graph.generated_edges import GeneratedEdges
from halocast.runtime.graph.graph import Graph, default_metric, random_split
from halocast.runtime.graph.npz import write_npz

CHUNK_EDGES = 1 << 20
FEATURE_BLOCK = 1 << 14  # rows of features made at once
LEAST_DISTINCT = 0.25  # below this share of first draws the asked edges hardly fit
STRUCTURE, EDGES, FEATURES, EDGE_TYPES, EDGE_FEATURES = range(5)  # independent random streams of one seed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GeneratorSettings:
    """What a made graph is like.

    Attributes:
        nodes: N.
        average_degree: undirected neighbours per node, on average.
        degree_exponent: γ of the degree distribution's tail, P(k) ~ k^-γ; above 2.
        communities: groups of nodes that edges prefer; sizes vary up to about threefold.
        community_mixing: fraction of edges that leave their community.
        homophily: fraction of edges whose ends share a class.
        classes: C. A community's nodes are of one class (of several where there are more classes than communities).
        label_noise: fraction of nodes whose class is drawn at random instead.
        features: F.
        feature_signal: length of a class's mean feature vector, in units of the noise's standard deviation.
        seed: same seed, same graph.
        relations: relations from the lower to the higher id of an edge, drawn evenly; with their inverses the graph has
            twice as many. 0: untyped.
        edge_dim: standard normal features of each edge. 0: none.
    """

    nodes: int
    average_degree: float
    degree_exponent: float = 2.7
    communities: int = 64
    community_mixing: float = 0.25
    homophily: float = 0.7
    classes: int = 16
    label_noise: float = 0.1
    features: int = 128
    feature_signal: float = 1.0
    seed: int = 0
    relations: int = 0
    edge_dim: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "nodes": (2, 2**31 - 1),
            "average_degree": (0, self.nodes / 2),
            "degree_exponent": (2.05, 100),
            "communities": (1, self.nodes),
            "community_mixing": (0, 1),
            "homophily": (0, 1),
            "classes": (1, self.nodes),
            "label_noise": (0, 1),
            "features": (1, 2**31 - 1),
            "feature_signal": (0, float("inf")),
            "seed": (0, 2**63 - 1),
            "relations": (0, 10_000),
            "edge_dim": (0, 2**31 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise MisuseError(f"generated graph: {name} = {value} is out of range; allowed: {low} to {high}")

    def random(self, stream: int) -> np.random.Generator:
        """One of the seed's independent random streams."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, stream])))


def generate_graph(nodes: int, average_degree: float, *, chunk_edges: int = CHUNK_EDGES, **settings: Any) -> Graph:
    """Make a graph in memory; keywords are the fields of `GeneratorSettings`. The split is a random 60/20/20.

    Raises:
        MisuseError: a setting out of range, or settings that cannot hold together.
    """
    asked = GeneratorSettings(nodes, average_degree, **settings)
    layout = _Layout(asked)
    keys = _sorted_keys(layout, chunk_edges)
    indptr, indices = structure_from_keys(keys, nodes)
    edges = _edges(asked, keys.size).on_entries(keys, nodes)
    train, val, test = random_split(layout.labels, asked.seed)
    return Graph(
        name="generated",
        indptr=indptr,
        indices=indices,
        features=np.concatenate(list(_feature_blocks(layout))),
        labels=layout.labels,
        train_mask=train,
        val_mask=val,
        test_mask=test,
        classes=asked.classes,
        multilabel=False,
        metric=default_metric(layout.labels),
        meta={"generator": asdict(asked), "split": f"random 60/20/20, seed {asked.seed}"},
        edge_features=edges.features,
        edge_types=edges.types,
        relations=edges.relations,
    )


def write_generated(
    path: Path | str, nodes: int, average_degree: float, *, chunk_edges: int = CHUNK_EDGES, **settings: Any
) -> None:
    """Make a graph straight into an ``.npz`` file (layout of `npz`): holds 8 bytes an edge, and no features.

    Raises:
        MisuseError: a setting out of range, or settings that cannot hold together.
    """
    asked = GeneratorSettings(nodes, average_degree, **settings)
    layout = _Layout(asked)
    keys = _sorted_keys(layout, chunk_edges)
    starts = range(0, keys.size, chunk_edges)
    ids = np.dtype(index_dtype(2 * keys.size))
    columns = (half(keys[at : at + chunk_edges], nodes) for half in (np.floor_divide, np.remainder) for at in starts)
    train, val, test = random_split(layout.labels, asked.seed)
    meta = {
        "name": Path(path).stem,
        "classes": asked.classes,
        "metric": default_metric(layout.labels),
        "generator": asdict(asked),
        "split": f"random 60/20/20, seed {asked.seed}",
    }
    write_npz(
        path,
        {
            "edge_index": (((2, keys.size), False, ids), columns),
            **_edges(asked, keys.size).members(),
            "x": (((nodes, asked.features), False, np.dtype(np.float32)), _feature_blocks(layout)),
            "y": layout.labels,
            "train_mask": train,
            "val_mask": val,
            "test_mask": test,
            "meta": np.array(json.dumps(meta, sort_keys=True)),
        },
        compress=False,
    )


def stream_edges(
    nodes: int, average_degree: float, *, chunk_edges: int = CHUNK_EDGES, **settings: Any
) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the made graph's undirected edges, each once as u < v, in chunks int32 [2, at most about `chunk_edges`].

    The edges and their order are the same for any chunk size; a chunk exceeds it by at most one node's edges.

    Raises:
        MisuseError: a setting out of range, or settings that cannot hold together.
    """
    layout = _Layout(GeneratorSettings(nodes, average_degree, **settings))
    for keys in _key_chunks(layout, chunk_edges):
        yield np.stack(np.divmod(keys, nodes)).astype(np.int32)


class _Layout:
    """Nodes by position: ordered by community and then class, with their weights; ids are shuffled positions."""

    def __init__(self, asked: GeneratorSettings) -> None:
        self.asked = asked
        random = asked.random(STRUCTURE)
        self.ids = random.permutation(asked.nodes)
        self.community = _communities(asked, random)
        self.label = _classes(asked, self.community, random)
        order = np.lexsort((self.label, self.community))
        self.community, self.label = self.community[order], self.label[order]
        self.weight = _power_law(asked, random)
        self.counts_seed = random.integers(2**63)
        self.centres = random.standard_normal((asked.classes, asked.features))
        self.centres *= asked.feature_signal / np.linalg.norm(self.centres, axis=1, keepdims=True)

    @cached_property
    def labels(self) -> Ints:
        """Classes by node id, int64 [N]."""
        by_id = np.empty_like(self.label)
        by_id[self.ids] = self.label
        return by_id

    @cached_property
    def by_class(self) -> Ints:
        """Positions ordered by class and then community, int64 [N]."""
        return np.lexsort((self.community, self.label))


def _communities(asked: GeneratorSettings, random: np.random.Generator) -> Ints:
    """Ascending community of each position; sizes uniform within a factor of three, none empty."""
    shares = random.uniform(0.5, 1.5, asked.communities)
    spare = asked.nodes - asked.communities
    ends = np.floor(np.cumsum(shares) / shares.sum() * spare).astype(np.int64) + np.arange(1, asked.communities + 1)
    ends[-1] = asked.nodes
    return np.repeat(np.arange(asked.communities), np.diff(ends, prepend=0))


def _classes(asked: GeneratorSettings, community: Ints, random: np.random.Generator) -> Ints:
    """Class of each position: its community's, or drawn at random for the noisy ones."""
    own = community % asked.classes
    choices = np.maximum((asked.classes - own + asked.communities - 1) // asked.communities, 1)
    own = own + asked.communities * (random.random(asked.nodes) * choices).astype(np.int64)
    noisy = random.random(asked.nodes) < asked.label_noise
    return np.where(noisy, random.integers(asked.classes, size=asked.nodes), own)


def _power_law(asked: GeneratorSettings, random: np.random.Generator) -> Floats:
    """Node weights: Pareto with density exponent γ, cut where a node would expect √(edge ends) neighbours.

    The cut is the structural one of Boguñá, Pastor-Satorras and Vespignani, Eur. Phys. J. B 38, 205 (2004): beyond it
    a simple graph cannot keep its ends uncorrelated.
    """
    weight = (1 - random.random(asked.nodes)) ** (-1 / (asked.degree_exponent - 1))
    mean = (asked.degree_exponent - 1) / (asked.degree_exponent - 2)
    return np.minimum(weight, max(mean * np.sqrt(asked.nodes / max(asked.average_degree, 1)), 2.0))


@dataclass(frozen=True)
class _Kind:
    """One kind of edge: for each position, its later partners are ``order[begin:end]``."""

    begin: Ints
    end: Ints
    order: Ints | None  # None: positions themselves
    cumulative: Floats  # [N+1] weights along `order`
    thin_same_class: bool = False

    def partner_weight(self) -> Floats:
        """Total weight of each position's partners, [N]."""
        return self.cumulative[self.end] - self.cumulative[self.begin]


def _kinds(layout: _Layout) -> tuple[_Kind, _Kind, _Kind, _Kind]:
    """Same community and class; same community only; same class only; neither (thinned of equal classes)."""
    n = layout.asked.nodes
    later = np.arange(1, n + 1)
    plain = np.concatenate([[0.0], np.cumsum(layout.weight)])
    sorted_weight = np.concatenate([[0.0], np.cumsum(layout.weight[layout.by_class])])
    community_end = np.searchsorted(layout.community, layout.community, side="right")
    block = layout.community * layout.asked.classes + layout.label
    block_end = np.searchsorted(block, block, side="right")
    transposed = (layout.label * layout.asked.communities + layout.community)[layout.by_class]
    own = layout.label * layout.asked.communities + layout.community
    class_begin = np.searchsorted(transposed, own, side="right")
    class_end = np.searchsorted(layout.label[layout.by_class], layout.label, side="right")
    return (
        _Kind(later, block_end, None, plain),
        _Kind(block_end, community_end, None, plain),
        _Kind(class_begin, class_end, layout.by_class, sorted_weight),
        _Kind(community_end, np.full(n, n), None, plain, thin_same_class=True),
    )


def _margins(asked: GeneratorSettings, chance: Floats) -> Floats:
    """Share of edges of each kind, float64 [4]: the two margins asked for, as near to `chance` as they allow.

    Iterative proportional fitting of the 2 × 2 table (same community or not) × (same class or not).
    """
    table = chance.reshape(2, 2) / chance.sum()
    rows = np.array([1 - asked.community_mixing, asked.community_mixing])
    columns = np.array([asked.homophily, 1 - asked.homophily])
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(2000):
            table = np.nan_to_num(table * (rows / table.sum(axis=1))[:, None])
            table = np.nan_to_num(table * (columns / table.sum(axis=0))[None, :])
            if np.abs(table.sum(axis=1) - rows).max() < 1e-6:
                shares: Floats = table.ravel()
                return shares
    raise MisuseError(
        f"generated graph: community_mixing = {asked.community_mixing:g} and homophily = {asked.homophily:g} cannot both "
        f"hold with {asked.communities} communities, {asked.classes} classes and label_noise = {asked.label_noise:g}; "
        "raise label_noise or communities, or bring homophily nearer to 1 - community_mixing"
    )


def _rates(layout: _Layout, kinds: tuple[_Kind, ...]) -> list[Floats]:
    """Expected draws of each position and kind, so that the *distinct* edges number what is asked for.

    A pair is drawn Poisson(λ) times and kept once, with probability 1 − exp(−λ). The loss is averaged over partners of
    the weights' distribution, tabulated, and undone by fixed-point iteration on each kind's rate.
    """
    asked, weight = layout.asked, layout.weight
    keep = _distinct_fraction(weight)
    reach = [weight * kind.partner_weight() for kind in kinds]
    # What the last kind draws in vain: partners of its range that share the class are those of kind 2.
    useful = [*reach[:3], reach[3] - reach[2]]
    available = np.maximum([part.sum() for part in useful], 0.0)
    target = _margins(asked, available) * asked.nodes * asked.average_degree / 2
    rates = []
    for kind, part, pairs, edges in zip(kinds, useful, available, target, strict=True):
        rate = edges / pairs if edges > 0 else 0.0
        for _ in range(60):
            made = float((rate * part * keep(rate * weight)).sum())
            if made < LEAST_DISTINCT * rate * pairs:
                raise MisuseError(
                    f"generated graph: average_degree = {asked.average_degree:g} is more than {asked.communities} "
                    f"communities and {asked.classes} classes of {asked.nodes} nodes can hold; lower one of them"
                )
            if abs(made - edges) <= 1e-4 * edges:
                break
            rate *= edges / made
        rates.append(rate * weight * kind.partner_weight())
    return rates


def _distinct_fraction(weight: Floats) -> Any:
    """The function a -> E[1 − exp(−a w)] / (a E[w]), w a random weight: the share of draws that are first ones."""
    sample = np.quantile(weight, np.linspace(0.0005, 0.9995, 1000))
    sample = np.append(sample, [weight.max()])
    shares = np.append(np.full(1000, (1 - 0.5 / weight.size) / 1000), [0.5 / weight.size])
    grid = np.logspace(-9, 4, 400)
    first = -np.expm1(-grid[:, None] * sample) @ shares / (grid * (sample @ shares))
    return lambda rate: np.interp(np.log(np.maximum(rate, 1e-300)), np.log(grid), first)


def _key_chunks(layout: _Layout, chunk_edges: int) -> Iterator[Ints]:
    """Keys ``u * N + v`` (u < v, node ids) of distinct edges, in chunks that end at a position's last edge."""
    asked = layout.asked
    if chunk_edges < 1:
        raise MisuseError(f"chunk_edges = {chunk_edges} must be at least 1")
    kinds = _kinds(layout)
    random = np.random.Generator(np.random.PCG64(layout.counts_seed))
    counts = np.stack([random.poisson(rate).astype(np.int32) for rate in _rates(layout, kinds)], axis=1)
    drawn = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    uniform = asked.random(EDGES)
    begin = 0
    while begin < asked.nodes:
        end = int(np.searchsorted(drawn, drawn[begin] + chunk_edges, side="right")) - 1
        end = min(max(end, begin + 1), asked.nodes)
        keys = _draw(layout, kinds, counts[begin:end], begin, uniform)
        if keys.size:
            yield keys
        begin = end


def _draw(
    layout: _Layout, kinds: tuple[_Kind, ...], counts: npt.NDArray[np.int32], begin: int, uniform: np.random.Generator
) -> Ints:
    """The distinct edges of positions ``begin ...``, given how many partners of each kind each one draws, [m, 4]."""
    n = layout.asked.nodes
    where, kind_of = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), len(kinds))
    first = where + begin
    chance = uniform.random(first.size)
    second = np.empty_like(first)
    for number, kind in enumerate(kinds):
        chosen = np.flatnonzero(kind_of == number)
        low, high = kind.begin[first[chosen]], kind.end[first[chosen]]
        base = kind.cumulative[low]
        aim = base + chance[chosen] * (kind.cumulative[high] - base)
        place = np.clip(np.searchsorted(kind.cumulative, aim, side="right") - 1, low, high - 1)
        second[chosen] = place if kind.order is None else kind.order[place]
        if kind.thin_same_class:
            same = layout.label[second[chosen]] == layout.label[first[chosen]]
            second[chosen[same]] = -1
    pairs = np.unique((first * n + second)[second >= 0])
    a, b = layout.ids[pairs // n], layout.ids[pairs % n]
    keys: Ints = np.minimum(a, b) * n + np.maximum(a, b)
    return keys


def _sorted_keys(layout: _Layout, chunk_edges: int) -> Ints:
    """All distinct edges, ascending keys, int64 [edges]; one array, sorted in place."""
    expected = int(layout.asked.nodes * layout.asked.average_degree * 0.55) + 1024
    keys = np.empty(expected, dtype=np.int64)
    used = 0
    for chunk in _key_chunks(layout, chunk_edges):
        if used + chunk.size > keys.size:
            keys.resize(used + chunk.size + expected // 8, refcheck=False)
        keys[used : used + chunk.size] = chunk
        used += chunk.size
    keys = keys[:used]
    keys.sort()
    return keys


def _edges(asked: GeneratorSettings, count: int) -> GeneratedEdges:
    """What the graph's `count` edges carry."""
    return GeneratedEdges(count, asked.relations, asked.edge_dim, (asked.seed, EDGE_TYPES), (asked.seed, EDGE_FEATURES))


def _feature_blocks(layout: _Layout) -> Iterator[npt.NDArray[np.float32]]:
    """Features in blocks of nodes by id: the class's centre plus standard normal noise, float32 [rows, F]."""
    asked = layout.asked
    random = asked.random(FEATURES)
    centres = layout.centres.astype(np.float32)
    for at in range(0, asked.nodes, FEATURE_BLOCK):
        labels = layout.labels[at : at + FEATURE_BLOCK]
        yield random.standard_normal((labels.size, asked.features), dtype=np.float32) + centres[labels]
