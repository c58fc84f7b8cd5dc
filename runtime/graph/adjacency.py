"""Lists of node pairs checked at the border and turned into the symmetric CSR structure that a `Graph` holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from halocast.errors import GraphError

INT32_LIMIT = 2**31 - 1
NODE_LIMIT = 3_037_000_499  # the largest N whose pair key u·N + v fits 63 bits
SYMMETRISE = "to take every edge as undirected pass symmetrise=True (--symmetrise)"

IntArray = npt.NDArray[np.integer]
Structure = tuple[npt.NDArray[np.int64], IntArray]


def index_dtype(nodes: int) -> type[np.int32] | type[np.int64]:
    """The integer type that holds a node's id."""
    return np.int32 if nodes <= INT32_LIMIT else np.int64


def check_id_width(pairs: int, nodes: int, itemsize: int, source: str) -> None:
    """Refuse 4-byte node ids where a graph of so many `pairs` and `nodes` is past what 32 bits count.

    Raises:
        GraphError: both directions of the pairs, or the nodes, exceed 2³¹ − 1; or the nodes exceed any key we can sort.
    """
    if itemsize <= 4 and 2 * pairs > INT32_LIMIT:
        raise GraphError(
            f"{source}: {pairs} edges are {2 * pairs} entries in both directions, more than 32 bits count "
            f"({INT32_LIMIT}); store edge_index as int64"
        )
    if itemsize <= 4 and nodes > INT32_LIMIT:
        raise GraphError(f"{source}: {nodes} nodes do not fit int32 ids (at most {INT32_LIMIT}); store edge_index as int64")
    if nodes > NODE_LIMIT:
        raise GraphError(f"{source}: {nodes} nodes are more than the {NODE_LIMIT} supported")


def check_range(first: IntArray, second: IntArray, nodes: int, source: str) -> None:
    """Refuse the first pair that names a node outside ``0..nodes-1``; GraphError says which pair it is."""
    wrong = (first < 0) | (first >= nodes) | (second < 0) | (second >= nodes)
    if wrong.any():
        at = int(wrong.argmax())
        raise GraphError(
            f"{source}: edge {at} is ({int(first[at])}, {int(second[at])}), but node ids run from 0 to {nodes - 1} "
            f"({int(wrong.sum())} such edges)"
        )


def is_symmetric(first: IntArray, second: IntArray, nodes: int) -> bool:
    """Whether a list has the reverse of every pair."""
    return not _without_reverse(first, second, nodes).any()


def check_symmetric(first: IntArray, second: IntArray, nodes: int, source: str, remedy: str = SYMMETRISE) -> None:
    """Refuse a list that has a pair without its reverse; GraphError names the first one and the way out."""
    missing = _without_reverse(first, second, nodes)
    if missing.any():
        at = int(missing.argmax())
        u, v = int(first[at]), int(second[at])
        raise GraphError(
            f"{source}: edges are not symmetric: {u} -> {v} (edge {at}) has no {v} -> {u} "
            f"({int(missing.sum())} such edges of {first.size}); {remedy}"
        )


def _without_reverse(first: IntArray, second: IntArray, nodes: int) -> npt.NDArray[np.bool_]:
    """Which pairs [pairs] lack their reverse."""
    forward = first.astype(np.int64) * nodes + second
    backward = second.astype(np.int64) * nodes + first
    known = np.unique(forward)
    place = np.minimum(np.searchsorted(known, backward), max(known.size - 1, 0))
    return known[place] != backward if known.size else np.zeros(0, dtype=np.bool_)


def undirected_pairs(
    edge_index: IntArray, nodes: int, source: str, *, each_once: bool = False, symmetrise: bool = False
) -> tuple[IntArray, IntArray]:
    """Check an edge list from outside and return its two columns, without self loops.

    Args:
        edge_index: [2, pairs] integer node ids.
        nodes: N, the ids being 0..N-1.
        source: what the message of an error starts with.
        each_once: whether the format stores an undirected edge once, as u < v; such a list needs no reverse.
        symmetrise: take every pair as undirected instead of refusing an asymmetric list.

    Raises:
        GraphError: wrong shape or type, ids out of range, sizes past the ids' width, an asymmetric list.
    """
    edges = np.asarray(edge_index)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise GraphError(f"{source}: edge_index has shape {list(edges.shape)}, needed is [2, edges]")
    if edges.dtype.kind not in "iu":
        raise GraphError(f"{source}: edge_index has type {edges.dtype}, needed are integers")
    check_id_width(edges.shape[1], nodes, edges.dtype.itemsize, source)
    first, second = edges
    check_range(first, second, nodes, source)
    proper = first != second
    if not proper.all():
        first, second = first[proper], second[proper]
    if not symmetrise and not (each_once and bool((first < second).all())):
        check_symmetric(first, second, nodes, source)
    return first, second


def structure_from_keys(keys: npt.NDArray[np.int64], nodes: int) -> Structure:
    """Symmetric CSR of undirected edges given as ascending unique keys ``u * nodes + v`` with u < v.

    Linear in the edges: the upper triangle is the keys themselves, the lower its transpose, and in each row the
    lower columns come first.

    Returns:
        (indptr int64 [nodes + 1], indices [2 * keys.size]), columns ascending in each row.
    """
    u, v = np.divmod(keys, max(nodes, 1))
    upper = np.concatenate([[0], np.cumsum(np.bincount(u, minlength=nodes), dtype=np.int64)])
    triangle = sparse.csr_array((np.ones(keys.size, dtype=np.bool_), v, upper), shape=(nodes, nodes)).tocsc()
    lower = triangle.indptr.astype(np.int64)
    indices = np.empty(2 * keys.size, dtype=index_dtype(nodes))
    counted = np.arange(keys.size, dtype=np.int64)
    indices[counted + np.repeat(upper[:-1], np.diff(lower))] = triangle.indices
    indices[counted + lower[u + 1]] = v
    return upper + lower, indices


def symmetric_structure(first: IntArray, second: IntArray, nodes: int) -> Structure:
    """Symmetric CSR of any list of pairs: self loops dropped, repeats and reverses merged.

    Args:
        first: [pairs] ids in 0..nodes-1, and `second` likewise.

    Returns:
        (indptr int64 [nodes + 1], indices int32 or int64 [nnz]), columns ascending in each row.
    """
    low = np.minimum(first, second).astype(np.int64)
    keys = low * nodes + np.maximum(first, second)
    return structure_from_keys(np.unique(keys[np.not_equal(first, second)]), nodes)
