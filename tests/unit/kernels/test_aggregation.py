"""The torch operator: opcheck, gradients by finite differences and against a dense product, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime.aggregation import Neighbours, aggregate


def neighbours(*, weighted: bool) -> tuple[Neighbours, Tensor]:
    """A random 9 × 7 matrix with an empty row and an empty column; also as a dense matrix."""
    generator = np.random.default_rng(0)
    pattern = generator.random((9, 7)) < 0.4
    pattern[4], pattern[:, 2] = False, False
    dense = pattern * (generator.random((9, 7)) if weighted else 1.0)
    rows, columns = np.nonzero(pattern)
    indptr = torch.from_numpy(np.searchsorted(rows, np.arange(10)))
    values = torch.from_numpy(dense[rows, columns]) if weighted else None
    return Neighbours.from_csr(indptr, torch.from_numpy(columns.astype(np.int32)), 7, values), torch.from_numpy(dense)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_value_and_gradients_equal_the_dense_product(weighted: bool, scaled: bool) -> None:
    structure, dense = neighbours(weighted=weighted)
    row, column = (torch.rand(9, dtype=torch.float64), torch.rand(7, dtype=torch.float64)) if scaled else (None, None)
    if row is not None and column is not None:
        dense = row[:, None] * dense * column
    features = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    out = aggregate(structure, features, row_scale=row, column_scale=column)
    torch.testing.assert_close(out, dense @ features, rtol=1e-13, atol=1e-14)
    weight = torch.randn(9, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weight).sum(), features)
    torch.testing.assert_close(gradient, dense.T @ weight, rtol=1e-13, atol=1e-14)

    def run(x: Tensor) -> Tensor:
        return aggregate(structure, x, row_scale=row, column_scale=column)

    assert torch.autograd.gradcheck(run, features)
    assert torch.autograd.gradgradcheck(run, features)


def test_opcheck() -> None:
    n, _ = neighbours(weighted=True)
    features = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    structure = (n.indptr, n.indices), (n.transposed_indptr, n.transposed_indices), (n.values, n.transposed_values)
    arguments = (*structure[0], features, *structure[1], *structure[2], None, None)
    torch.library.opcheck(torch.ops.halocast.aggregate.default, arguments)


def test_gradients_that_are_not_defined_are_refused() -> None:
    structure, _ = neighbours(weighted=False)
    scale = torch.rand(9, dtype=torch.float64, requires_grad=True)
    out = aggregate(structure, torch.rand(7, 2, dtype=torch.float64), row_scale=scale)
    with pytest.raises(MisuseError, match="gradients for values and scales are not defined"):
        torch.autograd.backward(out.sum())


def test_mismatches_get_one_clear_line() -> None:
    structure, _ = neighbours(weighted=True)
    with pytest.raises(MisuseError, match="features have 8 rows, the structure has 7 columns"):
        aggregate(structure, torch.rand(8, 2, dtype=torch.float64))
    with pytest.raises(MisuseError, match="give values and transposed_values together"):
        Neighbours(
            structure.indptr,
            structure.indices,
            structure.transposed_indptr,
            structure.transposed_indices,
            structure.values,
        )
    with pytest.raises(MisuseError, match="points at row 6; allowed: 0 to 5"):
        Neighbours.from_csr(structure.indptr, structure.indices, 6)
