"""What a trained network's messages look like, and how much of their rounding would reach its gradient.

Widths are planned from this (`traces.rows`). It is measured in epochs that are not learnt from: one with all messages as they
are, which gives ranges, energies and the exact gradient, then one for each exchange with the messages of that one rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halocast.runtime.bits.assigners import MessageTable
from halocast.runtime.bits.variance import message_beta
from halocast.runtime.exchange.codec import Rounding
from halocast.runtime.exchange.quantized import ExchangeKey, MessageWidths
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.executor import Executor
from halocast.runtime.programs.adaqp import ExchangeShape
from halocast.runtime.session import RankSession, message_coefficients
from halocast.traces.rows import ExchangeRows, RowStatistics
from halocast.traces.wire import ROTATED_WIDTH_LIMIT

EXACT_BITS = 32
PROBE_BITS = 2
"""Narrow, so that rounding stands out from the arithmetic's own errors."""


def record_rows(session: RankSession, table: MessageTable, transport: Transport, epoch: int) -> RowStatistics:
    """The messages that this rank sends in `epoch` with the parameters as they are; all ranks call it together.

    Parameters, the optimiser's state, the widths and the layers' own buffers stay as they are.
    """
    executor, messages = session.executor, session.executor.messages
    assert messages is not None, "method sends rows as they are"
    coefficients = message_coefficients(table, executor.data.adjacency, session.network, transport)
    keys = [(shape.layer, shape.direction) for shape in table.own]
    if not keys:
        return RowStatistics(epoch, ())
    with _put_back(executor):
        messages.traces_ranges = messages.traces_energies = True
        exact = _gradient(executor, table, {}, epoch)
        messages.traces_ranges = messages.traces_energies = False
        beta = {
            key: message_beta(messages.ranges(key), shape.dim, coefficients[key])
            for key, shape in zip(keys, table.own, strict=True)
        }
        energy = {key: coefficients[key] ** 2 * messages.energies(key) for key in keys}
        sums = torch.tensor([[beta[key].sum(), energy[key].sum()] for key in keys], dtype=torch.float64)
        transport.all_reduce(sums)
        bits = ROTATED_WIDTH_LIMIT + 1 if messages.rounding is Rounding.ROTATED else PROBE_BITS  # β is not of rotated rows
        noise = [
            _gradient_noise(_gradient(executor, table, {key: bits}, epoch), exact) if beta_sum > 0.0 else np.nan
            for key, (beta_sum, _) in zip(keys, sums.tolist(), strict=True)
        ]
    return RowStatistics(
        epoch,
        tuple(
            ExchangeRows(
                layer=shape.layer,
                direction=shape.direction,
                dim=shape.dim,
                one_sided=shape.one_sided,
                sensitivity=_sensitivity(each, beta_sum, energy_sum, bits),
                sender=np.full(sum(shape.rows_out), table.rank, dtype=np.int32),
                receiver=np.repeat(np.arange(table.world_size, dtype=np.int32), shape.rows_out),
                node=table.sent_nodes[key],
                beta=beta[key].astype(np.float32),
                energy=energy[key].astype(np.float32),
            )
            for key, shape, each, (beta_sum, energy_sum) in zip(keys, table.own, noise, sums.tolist(), strict=True)
        ),
    )


def _sensitivity(noise: float, beta_sum: float, energy_sum: float, bits: int) -> float:
    """Relative variance of the gradient for each unit of the messages' (variance / energy)."""
    if not beta_sum > 0.0 or not energy_sum > 0.0:
        return float("nan")
    return noise / (beta_sum / (2.0**bits - 1.0) ** 2 / energy_sum)


def _gradient_noise(gradient: Tensor, exact: Tensor) -> float:
    """‖gradient − exact‖² / ‖exact‖²; NaN where the exact one is 0."""
    error, size = float((gradient - exact).square().sum()), float(exact.square().sum())
    return error / size if size > 0.0 else float("nan")


def _gradient(executor: Executor, table: MessageTable, bits: Mapping[ExchangeKey, int], epoch: int) -> Tensor:
    """The network's gradient over all ranks, float64, where all exchanges but those of `bits` are exact."""
    executor.install_widths(_uniform(table, bits))
    executor.probe_epoch(epoch)
    return executor.buckets.gradient().double()


def _uniform(table: MessageTable, bits: Mapping[ExchangeKey, int]) -> MessageWidths:
    def width_of(shape: ExchangeShape, peer: int, sent: bool) -> npt.NDArray[np.uint8]:
        rows = (shape.rows_out if sent else shape.rows_in)[peer]
        return np.full(rows, bits.get((shape.layer, shape.direction), EXACT_BITS), dtype=np.uint8)

    return table.fill(width_of)


@contextmanager
def _put_back(executor: Executor) -> Iterator[None]:
    """Leave widths and the network's buffers (running means of a user's layer) as they were."""
    assert executor.messages is not None
    widths = executor.messages.widths
    kept = [(buffer, buffer.clone()) for buffer in executor.network.buffers()]
    yield
    executor.install_widths(widths)
    for buffer, value in kept:
        buffer.copy_(value)
