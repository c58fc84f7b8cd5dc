"""Rows moved and summed, against torch's indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halocast.errors import MisuseError
from halocast.runtime import kernels


@pytest.mark.parametrize("dim", [1, 3, 17, 128, 602])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_gather_and_scatter(path: str, dtype: torch.dtype, dim: int, index_dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    source = torch.randn(300, dim + 5, dtype=dtype)[:, 2 : dim + 2]
    index = torch.randint(0, 300, (1000,)).to(index_dtype)
    torch.testing.assert_close(kernels.gather_rows(source, index), source[index.long()], rtol=0, atol=0)
    unique = torch.randperm(300)[:120].to(index_dtype)
    addend, out = torch.randn(120, dim, dtype=dtype), torch.randn(300, dim, dtype=dtype)
    expected = out.clone()
    expected[unique.long()] += addend
    torch.testing.assert_close(kernels.scatter_add_rows(addend, unique, out), expected, rtol=0, atol=0)


def test_moving_nothing(path: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert kernels.gather_rows(torch.rand(4, 3), none).shape == (0, 3)
    out = torch.rand(4, 3)
    assert torch.equal(kernels.scatter_add_rows(torch.rand(0, 3), none, out.clone()), out)


@pytest.mark.parametrize("rows", [0, 1, 31, 1024, 1025, 5000])
def test_column_sum(path: str, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    source = torch.rand(rows, 37, dtype=dtype)
    expected = source.double().sum(0).numpy()
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    np.testing.assert_allclose(kernels.column_sum(source).numpy(), expected, rtol=tolerance)
    out = torch.full((37,), 2.0, dtype=dtype)
    np.testing.assert_allclose(kernels.column_sum(source, out, accumulate=True).numpy(), expected + 2, rtol=tolerance)


def test_column_sum_has_the_same_bits_for_any_number_of_threads() -> None:
    source = torch.randn(9000, 40)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(kernels.column_sum(source))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_bad_arguments_get_one_clear_line() -> None:
    source = torch.rand(4, 3)
    with pytest.raises(MisuseError, match="index is float32; allowed: int32, int64"):
        kernels.gather_rows(source, torch.rand(2))
    with pytest.raises(MisuseError, match=r"out must be float32 \[2, 3\]"):
        kernels.gather_rows(source, torch.tensor([0, 1]), torch.rand(2, 4))
    with pytest.raises(MisuseError, match="index has 2 entries for the 4 rows of source"):
        kernels.scatter_add_rows(source, torch.tensor([0, 1]), torch.rand(9, 3))
    with pytest.raises(MisuseError, match=r"out must be float32 \[3\]"):
        kernels.column_sum(source, torch.rand(4))
