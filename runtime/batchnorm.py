"""Batch normalization on tensors: what one rank does between the all-reduces that `programs.batchnorm` asks for.

Statistics are of the rows before the bias is added, which moves the mean and nothing else: the bias enters the running mean,
and its own gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from halocast.errors import MisuseError
from halocast.runtime import kernels

CHUNK_ROWS = 4096
"""Rows that are held a second time, without their mean, for as long as it takes to sum them."""


class BatchNormalization:
    """One layer's normalization on one rank; gamma, beta and the running statistics are the module's."""

    def __init__(self, norm: nn.BatchNorm1d, bias: Tensor | None, *, nodes: int, own: int) -> None:
        """`nodes`: of the whole graph; `own`: of this rank; `bias`: of the layer, not part of the rows given here.

        Raises MisuseError for a graph of one node: a variance needs two.
        """
        if nodes < 2:
            raise MisuseError(f"model.norm = 'batch' needs 2 or more nodes, this graph has {nodes}; use 'layer' or 'none'")
        self._norm, self._bias, self._nodes, self._own = norm, bias, nodes, own
        self._mean, self._variance, self._offset, self._inverse_deviation = (torch.zeros_like(norm.weight) for _ in range(4))

    def sum_rows(self, rows: Tensor, total: Tensor) -> None:
        """First pass: the own rows' sum. rows ``[own, dim]``; total ``[1, dim]``."""
        kernels.column_sum(rows, total[0])

    def sum_squares(self, rows: Tensor, total: Tensor, moments: Tensor) -> None:
        """Second pass: own rows' sums of what is left without the mean, and of its square.

        rows ``[own, dim]``; total ``[1, dim]`` over all ranks; moments ``[2, dim]``.
        """
        torch.div(total[0], self._nodes, out=self._mean)
        sums = torch.zeros_like(moments, dtype=torch.float64)
        for chunk in _chunks(rows):
            centred = chunk - self._mean
            sums[0] += kernels.column_sum(centred)
            sums[1] += kernels.column_sum(centred.square_())
        moments.copy_(sums)

    def normalize(self, rows: Tensor, out: Tensor, moments: Tensor) -> Tensor:
        """Scale rows without their mean into `out`; returns the vector ``[dim]`` that is left to add."""
        torch.div(moments[0], self._nodes, out=self._offset)
        torch.div(moments[1], self._nodes, out=self._variance)
        self._variance.addcmul_(self._offset, self._offset, value=-1.0).clamp_(min=0.0)
        torch.rsqrt(self._variance + self._norm.eps, out=self._inverse_deviation)
        scale = self._norm.weight * self._inverse_deviation
        torch.sub(rows, self._mean, out=out)
        out.mul_(scale)
        return self._norm.bias - self._offset * scale

    def normalize_by_running_statistics(self, rows: Tensor, out: Tensor) -> Tensor:
        """The same of rows as they are, in evaluation."""
        mean, variance = self._running()
        torch.sub(rows, mean if self._bias is None else mean - self._bias, out=out)
        out.mul_(self._norm.weight * (variance + self._norm.eps).rsqrt())
        return self._norm.bias.detach()

    def sum_gradients(self, gradient: Tensor, rows: Tensor, beta: Tensor, gamma: Tensor, sums: Tensor) -> None:
        """Σg and Σg·x̂ over the rank's rows, halo rows too: its shares of the gradients of beta (given) and gamma.

        gradient, rows ``[rows, dim]``; beta, gamma ``[dim]``; sums ``[2, dim]``.
        """
        products = torch.zeros_like(beta, dtype=torch.float64)
        for chunk, of_chunk in zip(_chunks(rows), _chunks(gradient), strict=True):
            products += kernels.column_sum((chunk - self._mean).mul_(of_chunk))
        gamma.copy_((products - self._offset * beta) * self._inverse_deviation)
        sums[0].copy_(beta)
        sums[1].copy_(gamma)

    def propagate(self, gradient: Tensor, rows: Tensor, sums: Tensor) -> None:
        """Turn the gradient of the normalized rows into that of the rows before, in place. sums ``[2, dim]`` over all ranks."""
        scale = self._norm.weight * self._inverse_deviation
        slope = scale * self._inverse_deviation * sums[1] / self._nodes
        level = slope * self._offset - scale * sums[0] / self._nodes
        gradient.mul_(scale)
        for chunk, of_chunk in zip(_chunks(rows[: self._own]), _chunks(gradient[: self._own]), strict=True):
            of_chunk.sub_((chunk - self._mean).mul_(slope).sub_(level))

    def update_running_statistics(self) -> None:
        """As torch does: the exponential average of the mean and of the unbiased variance."""
        mean, variance = self._running()
        assert self._norm.momentum is not None
        assert self._norm.num_batches_tracked is not None
        now = self._mean + self._offset
        mean.lerp_(now if self._bias is None else now + self._bias, self._norm.momentum)
        variance.lerp_(self._variance * (self._nodes / (self._nodes - 1)), self._norm.momentum)
        self._norm.num_batches_tracked += 1

    def _running(self) -> tuple[Tensor, Tensor]:
        assert self._norm.running_mean is not None
        assert self._norm.running_var is not None
        return self._norm.running_mean, self._norm.running_var


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    """Views of some rows at a time: their products need memory."""
    for first in range(0, rows.shape[0], CHUNK_ROWS):
        yield rows[first : first + CHUNK_ROWS]
