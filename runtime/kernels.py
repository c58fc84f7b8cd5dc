"""Kernels on tensors: checked wrappers over the native module, and the pure-torch path for every other device.

The wrappers own the interface and the wording of errors; ``cpp/`` sees only pointers and sizes. float32 and float64 CPU
tensors run natively on ``torch.get_num_threads()`` threads (on torch's own OpenMP pool, so that two pools never
compete); tensors on any other device run in :mod:`halocast.runtime.kernels_torch`, with the same counter-based random
bits. So do CPU tensors where the native module was built for another machine and cannot be loaded
(:func:`why_not_native`): far slower, and said in every run and by ``halocast doctor``.

Every result is the same, bit for bit, for any number of threads. Matrices are ``[rows, dim]`` with unit stride along
``dim``; rows may be strided (a slice of columns is fine). Structure tensors (begin, end, indices) are *trusted*: run
:func:`check_neighbours` once where a structure is built, the kernels do not look again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from halocast.errors import MisuseError, RunError
from halocast.runtime import kernels_torch

PURPOSE_DROPOUT = 0
PURPOSE_ROUNDING = 1
PURPOSE_ATTENTION = 5

_SEED_LIMIT = 1 << 64
_WORD_LIMIT = 1 << 32


@dataclass(frozen=True)
class Stream:
    """Names one stream of random words: the Philox4x32-10 key and the part of the counter shared by all nodes."""

    seed: int
    """0 to 2^64 − 1; the key is (low word, high word)."""
    epoch: int
    """0 to 2^32 − 1."""
    layer: int
    """0 to 65,535."""
    direction: int = 0
    """0 forward, 1 backward; 0 to 15."""
    purpose: int = PURPOSE_DROPOUT
    """0 dropout, 1 stochastic rounding, 2 a layer of the user's own, 3 random widths, 4 dropped messages, 5 dropout of
    attention; 0 to 15."""

    def __post_init__(self) -> None:
        limits = {"seed": _SEED_LIMIT, "epoch": _WORD_LIMIT, "layer": 1 << 16, "direction": 1 << 4, "purpose": 1 << 4}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise MisuseError(f"random stream: {name} {getattr(self, name)} is out of range; allowed: 0 to {limit - 1}")

    @property
    def tag(self) -> int:
        """The fourth counter word without the node's high byte: (purpose << 28) | (direction << 24) | (layer << 8)."""
        return self.purpose << 28 | self.direction << 24 | self.layer << 8


@dataclass(frozen=True)
class Dropout:
    """Dropout whose mask depends on the seed, epoch, layer, direction, global node and element, and on nothing else."""

    probability: float
    """Chance that an element becomes zero, 0 ≤ p < 1; the others are scaled by 1 / (1 − p)."""
    stream: Stream

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise MisuseError(f"dropout probability {self.probability} is out of range; allowed: 0 up to, not including, 1")

    @property
    def threshold(self) -> int:
        """An element is kept if its word is at least this: ⌈p · 2^32⌉."""
        return math.ceil(self.probability * _WORD_LIMIT)

    @property
    def scale(self) -> float:
        """1 / (1 − p)."""
        return 1.0 / (1.0 - self.probability)


@dataclass(frozen=True)
class Normalization:
    """What LayerNorm needs and saves for one block of rows; a backward pass takes the same object."""

    gamma: Tensor
    """``[dim]``."""
    beta: Tensor
    """``[dim]``."""
    mean: Tensor
    """``[rows]``, written by the forward pass and read by the backward pass."""
    rstd: Tensor
    """``[rows]``, 1 / sqrt(variance + eps); written by the forward pass and read by the backward pass."""
    eps: float = 1e-5


@dataclass(frozen=True)
class EpilogueGradients:
    """Where the backward epilogue puts the column sums; ``None`` skips one."""

    bias: Tensor | None = None
    """``[dim]``."""
    gamma: Tensor | None = None
    """``[dim]``; only with a normalization."""
    beta: Tensor | None = None
    """``[dim]``; only with a normalization."""
    accumulate: bool = True
    """Add to what is there (so that blocks of rows can be done one after the other), or overwrite."""


def aggregate(
    begin: Tensor,
    end: Tensor,
    indices: Tensor,
    features: Tensor,
    out: Tensor | None = None,
    *,
    values: Tensor | None = None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    rows: tuple[int, int] | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Sum neighbours: ``out[i] (+)= row_scale[i] · Σ_e values[e] · column_scale[indices[e]] · features[indices[e]]``.

    The sum runs over ``begin[i] ≤ e < end[i]`` for every i of ``rows``. For a CSR matrix pass ``indptr[:-1],
    indptr[1:]``; any other pair selects a part of each row (local neighbours only, say).

    begin, end: int64 ``[N]``. indices: int32 ``[nnz]``. features: ``[M, dim]``. out: ``[N, dim]``, made (zero outside
    ``rows``) if ``None``; it must not share memory with features. values: ``[nnz]``. row_scale: ``[N]``. column_scale:
    ``[M]``. rows: first and past-last row, all by default; other rows of ``out`` are untouched. accumulate: add to
    ``out``. An empty neighbour list gives a row of zeros. inf and NaN pass through. Raises MisuseError on any mismatch.
    """
    features = check_matrix("aggregate", "features", features)
    count, dim = begin.numel(), features.shape[1]
    check_vector("aggregate", "begin", begin, torch.int64, count, features.device)
    check_vector("aggregate", "end", end, torch.int64, count, features.device)
    check_vector("aggregate", "indices", indices, torch.int32, indices.numel(), features.device)
    check_optional("aggregate", "values", values, features, indices.numel())
    check_optional("aggregate", "row_scale", row_scale, features, count)
    check_optional("aggregate", "column_scale", column_scale, features, features.shape[0])
    first, last = rows if rows is not None else (0, count)
    if not 0 <= first <= last <= count:
        raise MisuseError(f"aggregate: rows ({first}, {last}) do not lie within the {count} rows of the structure")
    if out is None:
        out = features.new_zeros((count, dim))
    check_like("aggregate", "out", out, features, (count, dim))
    if not is_native(features):
        kernels_torch.aggregate(begin, end, indices, features, out, values, row_scale, column_scale, (first, last), accumulate)
        return out
    native().aggregate(
        features.dtype == torch.float64, begin.data_ptr(), end.data_ptr(), indices.data_ptr(), address(values),
        address(row_scale), address(column_scale), *place(features), *place(out), first, last, dim,
        accumulate, torch.get_num_threads(),
    )  # fmt: skip
    return out


def epilogue_forward(
    z: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    normalization: Normalization | None = None,
    relu: bool = False,
    dropout: Dropout | None = None,
    nodes: Tensor | None = None,
) -> Tensor:
    """Finish a layer: ``out = dropout(relu(layer_norm(z + bias)))``, each step optional, in one pass over the rows.

    z, out: ``[rows, dim]``; they may be the same tensor, but a backward pass with a normalization reads ``z`` again, so
    keep the two apart there. bias: ``[dim]``. nodes: int64 ``[rows]``, global node of each row, needed with dropout.
    The normalization's ``mean`` and ``rstd`` are written. Blocks of rows are done by slicing: ``z[a:b]``,
    ``nodes[a:b]``. Returns ``out``.
    """
    name = "epilogue_forward"
    z = check_matrix(name, "z", z)
    count, dim = z.shape
    check_like(name, "out", out, z, (count, dim))
    check_optional(name, "bias", bias, z, dim)
    _check_normalization(name, normalization, z)
    _check_nodes(name, dropout, nodes, z)
    if not is_native(z):
        kernels_torch.epilogue_forward(z, out, bias, normalization, relu, dropout, nodes)
        return out
    norm = normalization
    native().epilogue_forward(
        z.dtype == torch.float64, *place(z), *place(out), count, dim, address(bias),
        address(norm.gamma if norm else None), address(norm.beta if norm else None),
        address(norm.mean if norm else None), address(norm.rstd if norm else None), norm.eps if norm else 0.0,
        relu, *dropout_words(dropout), address(nodes), torch.get_num_threads(),
    )  # fmt: skip
    return out


def epilogue_backward(
    grad: Tensor,
    *,
    out: Tensor | None = None,
    z: Tensor | None = None,
    bias: Tensor | None = None,
    normalization: Normalization | None = None,
    relu: bool = False,
    dropout: Dropout | None = None,
    nodes: Tensor | None = None,
    gradients: EpilogueGradients | None = None,
) -> Tensor:
    """Turn the gradient of the epilogue's output into the gradient of its ``z``, in place, and add up the column sums.

    grad: ``[rows, dim]``, overwritten. out: the saved output, needed with relu: an element is live where ``out > 0``,
    which covers the dropout mask as well. Without relu the mask is made again from ``dropout`` and ``nodes``. z, bias:
    as given to the forward pass, needed with a normalization, whose ``mean`` and ``rstd`` are read. gradients: where
    the sums for bias, gamma and beta go (float64 or pairwise sums in blocks of 1,024 rows, taken in order). Returns
    ``grad``.
    """
    name = "epilogue_backward"
    grad = check_matrix(name, "grad", grad)
    count, dim = grad.shape
    gradients = gradients or EpilogueGradients()
    if relu:
        check_like(name, "out (the saved output, needed with relu)", out, grad, (count, dim))
    else:
        _check_nodes(name, dropout, nodes, grad)
    check_optional(name, "bias", bias, grad, dim)
    if normalization is not None:
        check_like(name, "z (needed with a normalization)", z, grad, (count, dim))
    elif gradients.gamma is not None or gradients.beta is not None:
        raise MisuseError(f"{name}: gradients for gamma or beta need a normalization")
    _check_normalization(name, normalization, grad)
    for label in ("bias", "gamma", "beta"):
        check_optional(name, f"gradients.{label}", getattr(gradients, label), grad, dim)
    if not is_native(grad):
        kernels_torch.epilogue_backward(grad, out, z, bias, normalization, relu, dropout, nodes, gradients)
        return grad
    norm = normalization
    native().epilogue_backward(
        grad.dtype == torch.float64, *place(grad), *place(out if relu else None), *place(z if norm else None), count,
        dim, address(bias), address(norm.gamma if norm else None), address(norm.mean if norm else None),
        address(norm.rstd if norm else None), *dropout_words(dropout), address(nodes), address(gradients.bias),
        address(gradients.gamma), address(gradients.beta), gradients.accumulate, torch.get_num_threads(),
    )  # fmt: skip
    return grad


def gather_rows(source: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Copy ``out[k] = source[index[k]]``. source ``[M, dim]``; index int64 or int32 ``[K]``; out ``[K, dim]``."""
    source = check_matrix("gather_rows", "source", source)
    _row_index("gather_rows", index, source)
    shape = (index.numel(), source.shape[1])
    if out is None:
        out = source.new_empty(shape)
    check_like("gather_rows", "out", out, source, shape)
    if not is_native(source):
        return out.copy_(source.index_select(0, index))
    native().gather_rows(
        source.dtype == torch.float64, index.dtype == torch.int64, *place(source), index.data_ptr(),
        index.numel(), shape[1], *place(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def scatter_add_rows(source: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Add ``out[index[k]] += source[k]``. source ``[K, dim]``; index int64 or int32 ``[K]``, trusted, *without
    repeats*.
    """
    source = check_matrix("scatter_add_rows", "source", source)
    _row_index("scatter_add_rows", index, source)
    if index.numel() != source.shape[0]:
        raise MisuseError(f"scatter_add_rows: index has {index.numel()} entries for the {source.shape[0]} rows of source")
    check_like("scatter_add_rows", "out", out, source, (out.shape[0] if out.dim() == 2 else -1, source.shape[1]))
    if not is_native(source):
        return out.index_add_(0, index, source)
    native().scatter_add_rows(
        source.dtype == torch.float64, index.dtype == torch.int64, *place(source), index.data_ptr(),
        index.numel(), source.shape[1], *place(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def column_sum(source: Tensor, out: Tensor | None = None, *, accumulate: bool = False) -> Tensor:
    """Sum over rows, ``out[j] (+)= Σ_i source[i, j]``, in blocks of 1,024. source ``[rows, dim]``; out ``[dim]``."""
    source = check_matrix("column_sum", "source", source)
    count, dim = source.shape
    if out is None:
        out = source.new_zeros(dim)
    check_optional("column_sum", "out", out, source, dim)
    if not is_native(source):
        total = source.sum(0)
        return out.add_(total) if accumulate else out.copy_(total)
    native().column_sum(
        source.dtype == torch.float64, *place(source), count, dim, out.data_ptr(), accumulate,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def cross_entropy(logits: Tensor, targets: Tensor, rows: Tensor, grad: Tensor, *, scale: float = 1.0) -> float:
    """Softmax cross-entropy over the listed rows: returns the *sum* of the losses, writes ``scale`` times its gradient.

    logits, grad: ``[N, classes]``; they may be the same tensor. targets: int64 ``[N]``, read at the listed rows only.
    rows: int64 ``[K]``, without repeats. ``grad[r] = (softmax(logits[r]) − onehot(targets[r])) · scale`` for listed
    rows, zero elsewhere (so ``scale = 1 / number of training nodes`` gives the mean's gradient). Raises MisuseError for
    a target outside the classes, naming the row.
    """
    name = "cross_entropy"
    logits = check_matrix(name, "logits", logits)
    count, classes = logits.shape
    check_like(name, "grad", grad, logits, (count, classes))
    check_vector(name, "targets", targets, torch.int64, count, logits.device)
    check_vector(name, "rows", rows, torch.int64, rows.numel(), logits.device)
    if classes == 0 and rows.numel() > 0:
        raise MisuseError(f"{name}: logits have no columns; give at least one class")
    if is_native(logits):
        with _listed_rows(name, rows, count):
            total, offender = native().cross_entropy(
                logits.dtype == torch.float64, *place(logits), targets.data_ptr(), rows.data_ptr(),
                rows.numel(), count, classes, *place(grad), scale, torch.get_num_threads(),
            )  # fmt: skip
    else:
        total, offender = kernels_torch.cross_entropy(logits, targets, rows, grad, scale)
    if offender >= 0:
        raise MisuseError(
            f"{name}: row {offender} has target {int(targets[offender])}, which is not one of the {classes} classes "
            f"(0 to {classes - 1}); leave unlabelled nodes out of the listed rows"
        )
    return float(total)


def bce(logits: Tensor, targets: Tensor, rows: Tensor, grad: Tensor, *, scale: float = 1.0) -> float:
    """Binary cross-entropy with logits over the listed rows: returns the *sum*, writes ``scale`` times its gradient.

    logits, grad: ``[N, classes]``; they may be the same tensor. targets: uint8 ``[N, classes]`` of 0 and 1, trusted.
    rows: int64 ``[K]``, without repeats. ``grad[r] = (sigmoid(logits[r]) − targets[r]) · scale`` for listed rows, zero
    elsewhere.
    """
    name = "bce"
    logits = check_matrix(name, "logits", logits)
    count, classes = logits.shape
    check_like(name, "grad", grad, logits, (count, classes))
    if targets.dtype != torch.uint8 or targets.shape != logits.shape or targets.device != logits.device:
        raise MisuseError(
            f"{name}: targets must be uint8 {[count, classes]} on {logits.device}, "
            f"not {_kind(targets.dtype)} {list(targets.shape)} on {targets.device}"
        )
    if not targets.is_contiguous():
        raise MisuseError(f"{name}: targets must be contiguous; call .contiguous() once when they are loaded")
    check_vector(name, "rows", rows, torch.int64, rows.numel(), logits.device)
    if not is_native(logits):
        return kernels_torch.bce(logits, targets, rows, grad, scale)
    with _listed_rows(name, rows, count):
        total = native().bce(
            logits.dtype == torch.float64, *place(logits), targets.data_ptr(), rows.data_ptr(),
            rows.numel(), count, classes, *place(grad), scale, torch.get_num_threads(),
        )  # fmt: skip
    return float(total)


def philox(stream: Stream, nodes: Tensor, dim: int) -> Tensor:
    """The random words behind dropout and rounding: int64 ``[rows, dim]`` of values 0 to 2^32 − 1 (Philox4x32-10).

    Word (i, j) is lane ``j % 4`` of the block with key (seed low, seed high) and counter (j // 4, node & 0xffffffff,
    epoch, tag | (node >> 32 & 0xff)), where node is ``nodes[i]`` (int64 ``[rows]``, below 2^40). Source: J. Salmon et
    al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    check_vector("philox", "nodes", nodes, torch.int64, nodes.numel(), nodes.device)
    if dim < 0:
        raise MisuseError(f"philox: dim {dim} is negative")
    if not is_native(nodes):
        return kernels_torch.philox(stream, nodes, dim)
    out = torch.empty((nodes.numel(), dim), dtype=torch.int64)
    native().philox(
        stream.seed,
        stream.epoch,
        stream.tag,
        nodes.data_ptr(),
        nodes.numel(),
        dim,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def check_neighbours(begin: Tensor, end: Tensor, indices: Tensor, columns: int) -> None:
    """Check once what :func:`aggregate` trusts: 0 ≤ begin ≤ end ≤ nnz and 0 ≤ index < columns. Raises MisuseError."""
    bad_rows = torch.nonzero((begin < 0) | (begin > end) | (end > indices.numel()))
    if bad_rows.numel():
        row = int(bad_rows[0])
        raise MisuseError(
            f"structure: row {row} spans entries {int(begin[row])} to {int(end[row])}; "
            f"allowed: ascending, within 0 to {indices.numel()}"
        )
    bad_entries = torch.nonzero((indices < 0) | (indices >= columns))
    if bad_entries.numel():
        entry = int(bad_entries[0])
        raise MisuseError(f"structure: entry {entry} points at row {int(indices[entry])}; allowed: 0 to {columns - 1}")


def advise_huge_pages(tensor: Tensor) -> bool:
    """Ask for 2 MB pages behind a CPU tensor; call it on a large persistent buffer *before* it is first written.

    Aggregation reads rows all over its input, and with 4 KB pages looking up their addresses costs up to a quarter of
    its time. Returns False, having changed nothing, for other devices and where the system does not offer such pages.
    """
    if not is_native(tensor):
        return False
    return bool(native().advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size()))


def isa() -> str:
    """The instruction set in use: ``portable``, ``avx2`` or ``avx512``."""
    return str(native().isa())


def available_isas() -> list[str]:
    """The instruction sets that this processor and operating system can run, slowest first."""
    return list(native().available_isas())


def set_isa(name: str) -> None:
    """Use another instruction set from now on (tests, comparisons); the variable HALOCAST_ISA does so at load."""
    try:
        native().set_isa(name)
    except ValueError as error:
        raise MisuseError(str(error)) from None


@functools.cache
def has_cuda_kernels() -> bool:
    """Whether the native module holds CUDA kernels, of the codec and of attention (it was built where nvcc was found)."""
    return why_not_native() is None and hasattr(native(), "cuda_codec")


@functools.cache
def why_not_native() -> str | None:
    """Why the native module cannot be loaded here, or ``None``. MisuseError on a bad HALOCAST_ISA."""
    try:
        native()
    except RunError as error:
        return str(error)
    return None


@functools.cache
def native() -> ModuleType:
    """The native module, attached to torch's OpenMP pool. RunError if not built, MisuseError on a bad HALOCAST_ISA."""
    try:
        from halocast import _kernels
    except ImportError as error:
        reason = str(error).splitlines()[0]
        if "HALOCAST_ISA" in reason:
            raise MisuseError(reason) from None
        raise RunError(f"the native kernels cannot be loaded ({reason}); build them with `make build`") from None
    # GOMP_parallel comes from the very library that torch loaded: another copy would have a second pool of threads.
    runtime = _loaded_openmp()
    if runtime is not None:
        entry = ctypes.cast(ctypes.CDLL(runtime).GOMP_parallel, ctypes.c_void_p).value
        _kernels.attach_openmp(entry or 0)
    return _kernels


def _loaded_openmp() -> str | None:
    """Path of the GNU OpenMP library in this process, or ``None`` (then the native module uses threads of its own)."""
    torch.get_num_threads()  # makes sure that torch has loaded it
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    mapped = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    paths = [path for path in sorted(mapped, key=lambda path: "torch" not in path) if Path(path).exists()]
    return paths[0] if paths else None


def is_native(tensor: Tensor) -> bool:
    """Whether the native module works on this tensor; otherwise plain torch operations do."""
    return tensor.device.type == "cpu" and why_not_native() is None


def address(tensor: Tensor | None) -> int:
    """Where the native module finds a tensor; 0 leaves it out."""
    return 0 if tensor is None else tensor.data_ptr()


def place(matrix: Tensor | None) -> tuple[int, int]:
    """(address, row stride in elements)."""
    return (0, 0) if matrix is None else (matrix.data_ptr(), matrix.stride(0))


def dropout_words(dropout: Dropout | None) -> tuple[int, float, int, int, int]:
    """(threshold, scale, seed, epoch, tag) as the native module takes them; a threshold of 0 keeps everything."""
    if dropout is None:
        return 0, 1.0, 0, 0, 0
    return dropout.threshold, dropout.scale, dropout.stream.seed, dropout.stream.epoch, dropout.stream.tag


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_matrix(where: str, what: str, tensor: Tensor) -> Tensor:
    """Check a matrix that sets the dtype and device of a call."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise MisuseError(f"{where}: {what} is {_kind(tensor.dtype)}; allowed: float32, float64")
    if tensor.dim() != 2:
        raise MisuseError(f"{where}: {what} has shape {list(tensor.shape)}; a matrix [rows, dim] is needed")
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise MisuseError(f"{where}: {what} has stride {tensor.stride(1)} along dim, not 1; call .contiguous() first")
    return tensor


def check_like(where: str, what: str, tensor: Tensor | None, pattern: Tensor, shape: tuple[int, int]) -> None:
    """Check a matrix against the one that sets the call's dtype and device."""
    if tensor is None:
        raise MisuseError(f"{where}: {what} is missing; a {_kind(pattern.dtype)} matrix {list(shape)} is needed")
    if tensor.dtype != pattern.dtype or tensor.device != pattern.device or tuple(tensor.shape) != shape:
        raise MisuseError(
            f"{where}: {what} must be {_kind(pattern.dtype)} {list(shape)} on {pattern.device}, "
            f"not {_kind(tensor.dtype)} {list(tensor.shape)} on {tensor.device}"
        )
    if shape[1] > 1 and tensor.stride(1) != 1:
        raise MisuseError(f"{where}: {what} has stride {tensor.stride(1)} along dim, not 1; call .contiguous() first")
    if shape[0] > 1 and tensor.stride(0) < shape[1]:
        raise MisuseError(f"{where}: {what} has overlapping rows (expanded?); give it memory of its own")


def check_vector(where: str, what: str, tensor: Tensor, dtype: torch.dtype, count: int, device: torch.device) -> None:
    """Check a contiguous vector."""
    if tensor.dtype != dtype or tensor.device != device or tuple(tensor.shape) != (count,):
        raise MisuseError(
            f"{where}: {what} must be {_kind(dtype)} [{count}] on {device}, "
            f"not {_kind(tensor.dtype)} {list(tensor.shape)} on {tensor.device}"
        )
    if count > 1 and tensor.stride(0) != 1:
        raise MisuseError(f"{where}: {what} is not contiguous; call .contiguous() first")


def check_optional(where: str, what: str, tensor: Tensor | None, pattern: Tensor, count: int) -> None:
    """Check a vector that may be left out against the matrix that sets the call's dtype and device."""
    if tensor is not None:
        check_vector(where, what, tensor, pattern.dtype, count, pattern.device)


def _row_index(where: str, index: Tensor, pattern: Tensor) -> None:
    if index.dtype not in (torch.int32, torch.int64):
        raise MisuseError(f"{where}: index is {_kind(index.dtype)}; allowed: int32, int64")
    check_vector(where, "index", index, index.dtype, index.numel(), pattern.device)


@contextlib.contextmanager
def _listed_rows(where: str, rows: Tensor, count: int) -> Iterator[None]:
    """Word the native module's complaint about an entry of ``rows``, which comes as its position."""
    try:
        yield
    except IndexError as error:
        position = int(str(error))
        raise MisuseError(
            f"{where}: rows[{position}] is {int(rows[position])}, a repeat or outside 0 to {count - 1}; list each row once"
        ) from None


def _check_normalization(where: str, norm: Normalization | None, pattern: Tensor) -> None:
    if norm is None:
        return
    count, dim = pattern.shape
    for what, length in (("gamma", dim), ("beta", dim), ("mean", count), ("rstd", count)):
        check_vector(where, f"normalization.{what}", getattr(norm, what), pattern.dtype, length, pattern.device)


def _check_nodes(where: str, dropout: Dropout | None, nodes: Tensor | None, pattern: Tensor) -> None:
    if dropout is None:
        return
    if nodes is None:
        raise MisuseError(f"{where}: dropout needs nodes, the int64 global node of each of the {pattern.shape[0]} rows")
    check_vector(where, "nodes", nodes, torch.int64, pattern.shape[0], pattern.device)
