"""Which part owns each node, in what order a part keeps its rows, and what an assignment costs to communicate."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pymetis
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from halocast.errors import GraphError, MisuseError, nearest
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.npz import open_npz
from halocast.traces.plan import PARTITION

Objective = Literal["cut", "volume"]
Balance = Literal["nodes", "edges", "train"]
METHODS = ("metis", "random", "contiguous")
CLUSTER_SIZE = 2048  # rows of 128 floats: 1 MiB, about a core's second-level cache
RECURSIVE_PARTS = 8  # up to here METIS' recursive bisection cuts no more than its k-way method and balances better
STANDARD_OUTPUT = 1  # the file descriptor, which C code writes to past sys.stdout
VOLUME_TRIES = 4  # partitions METIS makes to keep the best of: one alone often ends in a poor volume
METIS_NODES_PER_PART = 8  # below this METIS leaves parts empty

Assignment = npt.NDArray[np.int32]
Weights = npt.NDArray[np.int64]
Portions = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]


def partition_graph(
    graph: Graph,
    parts: int,
    *,
    method: str = "metis",
    objective: str = "cut",
    balance: str = "nodes",
    seed: int = 0,
    imbalance: float | None = None,
    shares: Sequence[float] | None = None,
) -> Assignment:
    """Assign every node to one of `parts` parts, none of them empty; the same arguments give the same answer.

    Args:
        parts: 1 to the number of nodes.
        method: "metis", "random", "contiguous" (ranges of node ids), or the path of a file (`read_assignment`).
        objective: what METIS minimises: "cut" (edges between parts) or "volume" (`communication_volume`, and never
            more of it than "cut" gives).
        balance: what every part gets its share of: "nodes", "edges" (stored rows' entries, 1 + degree), or "train".
        seed: of METIS and of "random".
        imbalance: the largest part over the average that METIS may make, such as 1.05; by default METIS' own.
        shares: by part, how much of `balance` it gets beside the others (only their ratios count); None: all as much.

    Returns:
        int32 [N] in 0..parts-1.

    Raises:
        MisuseError: an unknown name, or a number out of range. GraphError: a file that does not fit the graph.
    """
    if not 1 <= parts <= graph.nodes:
        raise MisuseError(f"{parts} parts for the {graph.nodes} nodes of '{graph.name}': allowed are 1 to {graph.nodes}")
    if objective not in get_args(Objective):
        raise MisuseError(f"partition objective '{objective}' is unknown{nearest(objective, get_args(Objective))}")
    if balance not in get_args(Balance):
        raise MisuseError(f"partition balance '{balance}' is unknown{nearest(balance, get_args(Balance))}")
    if imbalance is not None and not 1.001 <= imbalance <= 100:
        raise MisuseError(f"partition imbalance {imbalance} is out of range; allowed: 1.001 to 100")
    portions = None if shares is None else _portions(shares, parts, method)
    if method not in METHODS:
        return _from_file(method, graph, parts)
    weights = balance_weights(graph, balance)
    if method == "metis" and graph.nnz and graph.nodes >= METIS_NODES_PER_PART * parts:
        if np.count_nonzero(weights) < METIS_NODES_PER_PART * parts:
            # So few weigh anything that METIS would empty parts: let the others count, all together as much.
            weights = 1 + weights * (graph.nodes // np.count_nonzero(weights))
        structure = pymetis.CSRAdjacency(graph.indptr, _metis_ids(graph.indices))
        candidates = [
            fill_empty_parts(_metis(structure, parts, goal, weights, seed, imbalance, portions), parts, graph.degrees)
            for goal in (("cut",) if objective == "cut" else ("volume", "cut"))
        ]
        # METIS' volume refinement can end above the volume of its own cut partition: measure, keep the lower.
        return candidates[0] if objective == "cut" else min(candidates, key=lambda each: communication_volume(graph, each))
    order = np.random.default_rng(seed).permutation(graph.nodes) if method == "random" else np.arange(graph.nodes)
    assignment = np.empty(graph.nodes, dtype=np.int32)
    assignment[order] = even_ranges(weights[order], parts, portions)
    return assignment


def _portions(shares: Sequence[float], parts: int, method: str) -> Portions:
    """[parts] shares that add up to 1. Raises MisuseError where they are too many, too few or not positive."""
    if method not in METHODS:
        raise MisuseError(f"partition shares: '{method}' is one partition already; shares need a method ({', '.join(METHODS)})")
    if len(shares) != parts:
        raise MisuseError(f"{len(shares)} partition shares for {parts} parts: give one a part")
    portions = np.asarray(shares, dtype=np.float64)
    if not (np.isfinite(portions).all() and (portions > 0.0).all()):
        raise MisuseError(f"partition shares {', '.join(f'{each:g}' for each in shares)}: each must be a number above 0")
    return np.asarray(portions / portions.sum())


def balance_weights(graph: Graph, balance: str) -> Weights:
    """What each node counts towards its part's share, int64 [N]."""
    if balance == "edges":
        return graph.degrees + 1
    if balance == "train" and graph.train_mask.any():
        return graph.train_mask.astype(np.int64)
    return np.ones(graph.nodes, dtype=np.int64)


def even_ranges(weights: Weights, parts: int, portions: Portions | None = None) -> Assignment:
    """Cut a sequence into `parts` consecutive non-empty runs of about equal weight; the run of each item, int32.

    With `portions` [parts], which add up to 1, a run's weight is about its portion of the whole.
    """
    size = weights.size
    total = np.cumsum(weights)
    wanted = total[-1] * (np.arange(1, parts) / parts if portions is None else np.cumsum(portions)[:-1])
    ends = np.searchsorted(total, wanted, side="left") + 1
    step = np.arange(1, parts)
    ends = np.maximum.accumulate(ends - step) + step  # at least one item each from the left,
    ends = np.minimum(ends, size - parts + step)  # and from the right
    return np.repeat(np.arange(parts, dtype=np.int32), np.diff(ends, prepend=0, append=size))


def fill_empty_parts(assignment: Assignment, parts: int, degrees: npt.NDArray[np.int64]) -> Assignment:
    """Give each empty part one node: the least connected, lowest-numbered one of the then largest part."""
    counts = np.bincount(assignment, minlength=parts)
    filled = assignment.copy()
    for part in np.flatnonzero(counts == 0):
        donors = np.flatnonzero(filled == counts.argmax())
        node = donors[degrees[donors].argmin()]
        counts[filled[node]] -= 1
        counts[part] += 1
        filled[node] = part
    return filled


def read_assignment(path: Path | str) -> npt.NDArray[np.int64]:
    """Read one part number a node: a ``.npy`` array, `partition` of an ``.npz``, or text, one integer a line (METIS' output).

    Raises:
        GraphError: the file is missing, damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"partition file {path} does not exist; methods are {', '.join(METHODS)} or a .npy, .npz or .txt file")
    try:
        numbers = _read_numbers(path)
    except (ValueError, OSError, EOFError) as error:
        raise GraphError(f"partition file {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise GraphError(f"partition file {path} must hold one integer a node, in one dimension")
    return numbers.astype(np.int64)


def _read_numbers(path: Path) -> npt.NDArray[Any]:
    if path.suffix == ".npz":
        with open_npz(path) as archive:
            return archive.read(PARTITION)
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    return np.loadtxt(path, dtype=np.int64, ndmin=1)


def _from_file(method: str, graph: Graph, parts: int) -> Assignment:
    path = Path(method)
    if not path.is_file() and path.suffix not in {".npy", ".npz", ".txt"}:
        raise MisuseError(f"partition method '{method}' is unknown and no such file exists{nearest(method, METHODS)}")
    numbers = read_assignment(path)
    if numbers.size != graph.nodes:
        raise GraphError(f"partition file {path} has {numbers.size} entries for the {graph.nodes} nodes of '{graph.name}'")
    wrong = (numbers < 0) | (numbers >= parts)
    if wrong.any():
        node = int(wrong.argmax())
        raise GraphError(
            f"partition file {path} puts node {node} in part {int(numbers[node])}, but parts run from 0 to {parts - 1}"
        )
    empty = np.flatnonzero(np.bincount(numbers, minlength=parts) == 0)
    if empty.size:
        raise GraphError(f"partition file {path} leaves part {int(empty[0])} of {parts} empty")
    return numbers.astype(np.int32)


def locality_order(graph: Graph, assignment: Assignment, cluster_size: int = CLUSTER_SIZE, seed: int = 0) -> Order:
    """A position for every node, such that sorting a part's nodes by it puts neighbours near each other.

    Each part is cut by METIS into clusters of about `cluster_size` nodes, so that a cluster's rows stay in cache while
    they are aggregated; METIS numbers neighbouring clusters near each other. Parts too small for that are ordered by
    reverse Cuthill–McKee.

    Returns:
        int64 [N], a permutation of 0..N-1; positions of one part are consecutive.
    """
    if cluster_size < 1:
        raise MisuseError(f"cluster size {cluster_size} must be at least 1")
    parts = int(assignment.max(initial=0)) + 1
    entries = np.ones(graph.nnz, dtype=np.bool_)
    whole = sparse.csr_array((entries, graph.indices, graph.indptr), shape=(graph.nodes, graph.nodes))
    ordered = []
    for part in range(parts):
        nodes = np.flatnonzero(assignment == part)
        inside = whole if nodes.size == graph.nodes else whole[nodes][:, nodes]
        ordered.append(nodes[_locality(inside, cluster_size, seed)])
    position = np.empty(graph.nodes, dtype=np.int64)
    position[np.concatenate(ordered)] = np.arange(graph.nodes)
    return position


def _locality(structure: sparse.csr_array, cluster_size: int, seed: int) -> Order:
    """The rows of one part's own structure in locality order."""
    nodes = structure.shape[0]
    clusters = nodes // max(cluster_size, METIS_NODES_PER_PART)
    if clusters < 2 or structure.nnz == 0:
        return reverse_cuthill_mckee(sparse.csr_matrix(structure), symmetric_mode=True).astype(np.int64)
    adjacency = pymetis.CSRAdjacency(_metis_ids(structure.indptr), _metis_ids(structure.indices))
    cluster = _metis(adjacency, clusters, "cut", np.ones(nodes, dtype=np.int64), seed, None)
    return np.argsort(cluster, kind="stable")


def _metis(
    structure: pymetis.CSRAdjacency,
    parts: int,
    objective: str,
    weights: Weights,
    seed: int,
    imbalance: float | None,
    portions: Portions | None = None,
) -> Assignment:
    """METIS (Karypis and Kumar, SIAM J. Sci. Comput. 20(1), 1998); only its k-way method knows the volume objective."""
    if parts == 1:
        return np.zeros(len(structure.adj_starts) - 1, dtype=np.int32)
    options = pymetis.Options(seed=seed % 2**31)
    if objective == "volume":
        options.objtype = int(pymetis.ObjType.VOL)
        options.ncuts = VOLUME_TRIES
    if imbalance is not None:
        options.ufactor = round(1000 * (imbalance - 1))
    even = bool((weights == weights[0]).all())
    with _standard_output_kept():
        result = pymetis.part_graph(
            parts,
            structure,
            recursive=objective == "cut" and parts <= RECURSIVE_PARTS,
            vweights=None if even else weights.astype(pymetis.zero_copy_dtype()),
            tpwgts=None if portions is None else portions.tolist(),
            options=options,
        )
    return np.asarray(result.vertex_part, dtype=np.int32)


@contextmanager
def _standard_output_kept() -> Iterator[None]:
    """Drop what C code prints: METIS remarks on parts it leaves empty, but standard output is for results."""
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    library.fflush(None)
    kept, nowhere = os.dup(STANDARD_OUTPUT), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STANDARD_OUTPUT)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, STANDARD_OUTPUT)
        os.close(kept)
        os.close(nowhere)


def _metis_ids(ids: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Ids in METIS' own integer type, so that it copies nothing more; GraphError where they do not fit."""
    width = pymetis.zero_copy_dtype()
    if ids.size > np.iinfo(width).max:
        raise GraphError(f"{ids.size} edge entries are more than this METIS counts ({np.iinfo(width).max})")
    return ids.astype(width, copy=False)


def edge_cut(graph: Graph, assignment: Assignment) -> int:
    """Undirected edges whose ends are in different parts."""
    own = np.repeat(assignment, graph.degrees)
    return int(np.count_nonzero(own != assignment[graph.indices])) // 2


def communication_volume(graph: Graph, assignment: Assignment) -> int:
    """Rows that one exchange sends in all: Σ over nodes of the remote parts they touch = Σ over parts of halo rows."""
    parts = int(assignment.max(initial=0)) + 1
    entries, owners = np.ones(graph.nnz, dtype=np.bool_), np.ones(graph.nodes, dtype=np.bool_)
    structure = sparse.csr_array((entries, graph.indices, graph.indptr), shape=(graph.nodes, graph.nodes))
    owned = sparse.csr_array((owners, assignment, np.arange(graph.nodes + 1)), shape=(graph.nodes, parts))
    touched = (structure @ owned).tocoo()
    return int(np.count_nonzero(touched.col != assignment[touched.row]))
