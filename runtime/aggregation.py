"""Aggregation as a torch operator, ``halocast::aggregate``, for layers that rely on autograd.

``torch.compile``, ``torch.library.opcheck`` and double backward work: the backward pass of the operator is the operator
itself on the transposed structure. Gradients flow to the features only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels


@dataclass(frozen=True)
class Neighbours:
    """A sparse matrix ``[rows, columns]`` by rows, and its transpose: what :func:`aggregate` sums over and back."""

    indptr: Tensor
    """int64 ``[rows + 1]``."""
    indices: Tensor
    """int32 ``[nnz]``, columns."""
    transposed_indptr: Tensor
    """int64 ``[columns + 1]``."""
    transposed_indices: Tensor
    """int32 ``[nnz]``, rows."""
    values: Tensor | None = None
    """``[nnz]`` in the order of ``indices``; ones if ``None``."""
    transposed_values: Tensor | None = None
    """``[nnz]`` in the order of ``transposed_indices``; given if and only if ``values`` is."""

    def __post_init__(self) -> None:
        if (self.values is None) != (self.transposed_values is None):
            raise MisuseError("neighbours: give values and transposed_values together, or neither")

    @classmethod
    def from_csr(cls, indptr: Tensor, indices: Tensor, columns: int, values: Tensor | None = None) -> Neighbours:
        """Check a CSR matrix and add its transpose (a stable sort of the nnz entries; the rows come out ascending)."""
        kernels.check_neighbours(indptr[:-1], indptr[1:], indices, columns)
        rows = torch.repeat_interleave(torch.arange(indptr.numel() - 1, device=indptr.device), indptr.diff())
        order = torch.sort(indices, stable=True).indices
        counts = torch.bincount(indices, minlength=columns)
        transposed_indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        transposed_values = None if values is None else values[order]
        return cls(indptr, indices, transposed_indptr, rows[order].int(), values, transposed_values)


def aggregate(
    neighbours: Neighbours, features: Tensor, *, row_scale: Tensor | None = None, column_scale: Tensor | None = None
) -> Tensor:
    """Differentiable ``row_scale · (A @ (column_scale · features))``: features ``[columns, dim]`` to ``[rows, dim]``.

    row_scale: ``[rows]``; column_scale: ``[columns]``. Raises MisuseError on a mismatch, and in the backward pass if a
    gradient for values or scales is asked for.
    """
    n = neighbours
    result: Tensor = torch.ops.halocast.aggregate(
        n.indptr,
        n.indices,
        features,
        n.transposed_indptr,
        n.transposed_indices,
        n.values,
        n.transposed_values,
        row_scale,
        column_scale,
    )
    return result


@torch.library.custom_op("halocast::aggregate", mutates_args=())
def _operator(
    indptr: Tensor,
    indices: Tensor,
    features: Tensor,
    transposed_indptr: Tensor,
    transposed_indices: Tensor,
    values: Tensor | None,
    transposed_values: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
) -> Tensor:
    if transposed_indptr.numel() != features.shape[0] + 1:
        raise MisuseError(
            f"aggregate: features have {features.shape[0]} rows, the structure has {transposed_indptr.numel() - 1} columns"
        )
    return kernels.aggregate(
        indptr[:-1],
        indptr[1:],
        indices,
        features.contiguous(),
        values=values,
        row_scale=row_scale,
        column_scale=column_scale,
    )


@_operator.register_fake
def _fake(
    indptr: Tensor,
    indices: Tensor,
    features: Tensor,
    transposed_indptr: Tensor,
    transposed_indices: Tensor,
    values: Tensor | None,
    transposed_values: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
) -> Tensor:
    return features.new_empty((indptr.shape[0] - 1, features.shape[1]))


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    indptr, indices, _, transposed_indptr, transposed_indices, values, transposed_values, row_scale, column_scale = inputs
    ctx.save_for_backward(
        transposed_indptr, transposed_indices, indptr, indices, transposed_values, values, column_scale, row_scale
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # (D_r A D_c)ᵀ = D_c Aᵀ D_r: the same operator with the two structures and the two scales exchanged.
    if any(ctx.needs_input_grad[5:]):
        raise MisuseError("aggregate: gradients for values and scales are not defined; detach them")
    indptr, indices, transposed_indptr, transposed_indices, values, transposed_values, row, column = ctx.saved_tensors
    back = None
    if ctx.needs_input_grad[2]:
        back = torch.ops.halocast.aggregate(
            indptr, indices, grad, transposed_indptr, transposed_indices, values, transposed_values, row, column
        )
    return None, None, back, None, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_save)
