"""Aggregation against SciPy's sparse product in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels

DIMS = [1, 3, 16, 17, 32, 64, 100, 128, 256, 602]


def structure(rows: int, columns: int, seed: int, *, most: int = 40) -> tuple[Tensor, Tensor]:
    """A random CSR structure with empty rows and one hub."""
    generator = np.random.default_rng(seed)
    degree = generator.integers(0, most, rows)
    degree[generator.random(rows) < 0.3] = 0
    degree[rows // 2] = 5000
    indptr = np.concatenate([[0], np.cumsum(degree)])
    return torch.from_numpy(indptr), torch.from_numpy(generator.integers(0, columns, indptr[-1]).astype(np.int32))


def product(indptr: Tensor, indices: Tensor, values: Tensor | None, features: Tensor) -> np.ndarray:
    data = np.ones(indices.numel()) if values is None else values.double().numpy()
    shape = (indptr.numel() - 1, features.shape[0])
    matrix = scipy.sparse.csr_matrix((data, indices.numpy(), indptr.numpy()), shape)
    return np.asarray(matrix @ features.double().numpy())


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_sparse_product(path: str, dtype: torch.dtype, close: dict[str, Any], dim: int, weighted: bool) -> None:
    torch.manual_seed(dim)
    indptr, indices = structure(97, 61, seed=dim)
    features, values = torch.rand(61, dim, dtype=dtype) - 0.5, torch.rand(indices.numel(), dtype=dtype)
    chosen = values if weighted else None
    out = kernels.aggregate(indptr[:-1], indptr[1:], indices, features, values=chosen)
    np.testing.assert_allclose(out.numpy(), product(indptr, indices, chosen, features), **widen(close, 10))


def test_scales_rows_range_and_accumulation(path: str, dtype: torch.dtype, close: dict[str, Any]) -> None:
    torch.manual_seed(0)
    indptr, indices = structure(50, 40, seed=1)
    features, values = torch.rand(40, 20, dtype=dtype), torch.rand(indices.numel(), dtype=dtype)
    row_scale, column_scale = torch.rand(50, dtype=dtype) / 100, torch.rand(40, dtype=dtype)
    before = torch.rand(50, 20, dtype=dtype)
    out = before.clone()
    kernels.aggregate(
        indptr[:-1], indptr[1:], indices, features, out,
        values=values, row_scale=row_scale, column_scale=column_scale, rows=(13, 37), accumulate=True,
    )  # fmt: skip
    scaled = product(indptr, indices, values, features * column_scale[:, None]) * row_scale.double().numpy()[:, None]
    expected = before.double().numpy().copy()
    expected[13:37] += scaled[13:37]
    np.testing.assert_allclose(out.numpy(), expected, **widen(close, 10))
    assert torch.equal(out[:13], before[:13])
    assert torch.equal(out[37:], before[37:])


def test_part_of_each_row(path: str, dtype: torch.dtype, close: dict[str, Any]) -> None:
    """begin and end may leave out either side of a row: two halves, one accumulated on the other, make the whole."""
    torch.manual_seed(0)
    indptr, indices = structure(60, 60, seed=2)
    middle = (indptr[:-1] + indptr[1:]) // 2
    features = torch.rand(60, 33, dtype=dtype)
    out = kernels.aggregate(indptr[:-1], middle, indices, features)
    kernels.aggregate(middle, indptr[1:], indices, features, out, accumulate=True)
    np.testing.assert_allclose(out.numpy(), product(indptr, indices, None, features), **widen(close, 10))


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_in_any_order(path: str, threads: int) -> None:
    """begin need not ascend: every row is still done once, on any number of threads."""
    torch.set_num_threads(threads)
    indptr, indices = structure(3000, 50, seed=3)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    features = torch.rand(50, 64)
    whole = kernels.aggregate(indptr[:-1], indptr[1:], indices, features)
    mixed = kernels.aggregate(indptr[:-1][order].contiguous(), indptr[1:][order].contiguous(), indices, features)
    torch.testing.assert_close(mixed, whole[order], rtol=2e-5, atol=5e-5)


def test_strided_and_misaligned_matrices(path: str, dtype: torch.dtype, close: dict[str, Any]) -> None:
    torch.manual_seed(0)
    indptr, indices = structure(30, 30, seed=4)
    wide_in, wide_out = torch.rand(30, 90, dtype=dtype), torch.full((30, 80), 7.0, dtype=dtype)
    features, out = wide_in[:, 3:40], wide_out[:, 5:42]
    kernels.aggregate(indptr[:-1], indptr[1:], indices, features, out)
    np.testing.assert_allclose(out.numpy(), product(indptr, indices, None, features), **widen(close, 10))
    assert (wide_out[:, :5] == 7).all()
    assert (wide_out[:, 42:] == 7).all()


def test_nothing_to_do(path: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    no_index = torch.zeros(0, dtype=torch.int32)
    assert kernels.aggregate(none, none, no_index, torch.rand(3, 8)).shape == (0, 8)
    zeros = torch.zeros(4, dtype=torch.int64)
    out = torch.full((4, 5), 3.0)
    kernels.aggregate(zeros, zeros, no_index, torch.rand(0, 5), out)
    assert torch.equal(out, torch.zeros(4, 5))
    kernels.aggregate(zeros, zeros, no_index, torch.rand(2, 5), out.fill_(3.0), rows=(2, 2))
    assert torch.equal(out, torch.full((4, 5), 3.0))
    assert kernels.aggregate(zeros, zeros, no_index, torch.rand(2, 0)).shape == (4, 0)


def test_infinity_and_nan_pass_through_and_stay_in_their_column(path: str) -> None:
    features = torch.ones(4, 19)
    features[1, 18], features[2, 0] = float("inf"), float("nan")
    indptr = torch.tensor([0, 2, 4, 5])
    indices = torch.tensor([0, 1, 0, 2, 3], dtype=torch.int32)
    out = kernels.aggregate(indptr[:-1], indptr[1:], indices, features)
    expected = torch.tensor([2.0, 2.0, 1.0])[:, None].repeat(1, 19)
    expected[0, 18], expected[1, 0] = float("inf"), float("nan")
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dim", [3, 128, 602])
def test_same_bits_for_any_number_of_threads(dim: int) -> None:
    indptr, indices = structure(4000, 4000, seed=5)
    features, values = torch.rand(4000, dim), torch.rand(indices.numel())
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(kernels.aggregate(indptr[:-1], indptr[1:], indices, features, values=values))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": torch.rand(5, 4, dtype=torch.float16)}, "features is float16; allowed: float32, float64"),
        ({"features": torch.rand(5)}, r"a matrix \[rows, dim\] is needed"),
        ({"features": torch.rand(4, 5).t()}, "has stride 5 along dim"),
        ({"indices": torch.zeros(2, dtype=torch.int64)}, "indices must be int32"),
        ({"begin": torch.zeros(2, dtype=torch.int32)}, "begin must be int64"),
        ({"out": torch.rand(2, 3)}, r"out must be float32 \[2, 4\]"),
        ({"out": torch.rand(1, 4).expand(2, 4)}, "overlapping rows"),
        ({"values": torch.rand(3)}, r"values must be float32 \[2\]"),
        ({"row_scale": torch.rand(2, dtype=torch.float64)}, r"row_scale must be float32 \[2\] on cpu, not float64"),
        ({"column_scale": torch.rand(10)[::2]}, "column_scale is not contiguous"),
        ({"rows": (1, 3)}, r"rows \(1, 3\) do not lie within the 2 rows"),
    ],
)
def test_bad_arguments_get_one_clear_line(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {
        "begin": torch.tensor([0, 1]),
        "end": torch.tensor([1, 2]),
        "indices": torch.zeros(2, dtype=torch.int32),
        "features": torch.rand(5, 4),
    }
    with pytest.raises(MisuseError, match=words) as caught:
        kernels.aggregate(**{**arguments, **change})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_structure_is_checked_on_request() -> None:
    begin, end = torch.tensor([0, 2]), torch.tensor([2, 3])
    indices = torch.tensor([0, 4, 1], dtype=torch.int32)
    kernels.check_neighbours(begin, end, indices, 5)
    with pytest.raises(MisuseError, match="entry 1 points at row 4; allowed: 0 to 3"):
        kernels.check_neighbours(begin, end, indices, 4)
    with pytest.raises(MisuseError, match="row 1 spans entries 2 to 4; allowed: ascending, within 0 to 3"):
        kernels.check_neighbours(begin, torch.tensor([2, 4]), indices, 5)


def widen(close: dict[str, Any], factor: float) -> dict[str, Any]:
    """The hub adds 5,000 terms."""
    return {name: factor * tolerance for name, tolerance in close.items()}
