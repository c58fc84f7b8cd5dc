"""What attention and extremes over blocks of neighbours are told and keep; :mod:`halocast.runtime.attention_kernels` works
on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halocast.runtime import kernels


@dataclass(frozen=True)
class Edges:
    """The edges from one block of sources into a rank's rows (targets), by target and by source; trusted."""

    begin: Tensor
    """int64 ``[targets]``: the entries of target i are ``begin[i] ≤ e < end[i]``."""
    end: Tensor
    """int64 ``[targets]``."""
    sources: Tensor
    """int32 ``[entries]``, rows of the block; entries that no target has may name anything."""
    source_begin: Tensor
    """int64 ``[sources]``: the same edges by source."""
    source_end: Tensor
    """int64 ``[sources]``."""
    targets: Tensor
    """int32 ``[entries by source]``."""
    entry: Tensor
    """int64 ``[entries by source]``: the place in ``sources`` of each edge of ``targets``. Read for edge logits only, and
    may be empty without."""

    @classmethod
    def from_csr(cls, indptr: Tensor, sources: Tensor, source_count: int) -> Edges:
        """Check a CSR structure (int64 ``[targets + 1]``, int32 ``[entries]``) and turn it over, targets ascending."""
        kernels.check_neighbours(indptr[:-1], indptr[1:], sources, source_count)
        targets = torch.repeat_interleave(torch.arange(indptr.numel() - 1, device=indptr.device), indptr.diff())
        entry = torch.sort(sources, stable=True).indices
        counts = torch.bincount(sources, minlength=source_count)
        turned = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(indptr[:-1], indptr[1:], sources, turned[:-1], turned[1:], targets[entry].int(), entry)

    @property
    def target_count(self) -> int:
        return self.begin.numel()

    @property
    def source_count(self) -> int:
        return self.source_begin.numel()


@dataclass(frozen=True)
class GatLogits:
    """``l_ij = leaky_relu(source_j + target_i + edge_ij)`` (Veličković et al., ICLR 2018, equation 3)."""

    source: Tensor
    """``[sources, heads]``, may be a slice of columns."""
    target: Tensor
    """``[targets, heads]``, may be a slice of columns."""
    edge: Tensor | None = None
    """``[entries, heads]`` in the order of ``Edges.sources``, contiguous."""
    slope: float = 0.2
    """Of leaky_relu below 0; 0 to 1."""


@dataclass(frozen=True)
class Gatv2Logits:
    """``l_ij = Σ_d weight_d · leaky_relu(values_jd + target_id)`` (Brody et al., ICLR 2022, equation 7)."""

    target: Tensor
    """``[targets, heads · dim]``, may be a slice of columns."""
    weight: Tensor
    """``[heads, dim]``, contiguous."""
    slope: float = 0.2
    """Of leaky_relu below 0; 0 to 1."""


@dataclass(frozen=True)
class GatGradients:
    """Where the backward pass puts gradients; shapes as in :class:`GatLogits` and its values."""

    values: Tensor
    """``[sources, heads · dim]``."""
    source: Tensor
    target: Tensor
    """Added to."""
    edge: Tensor | None = None
    """Overwritten for the block's entries; needed if the logits have an edge part."""


@dataclass(frozen=True)
class Gatv2Gradients:
    """Where the backward pass puts gradients; shapes as in :class:`Gatv2Logits` and its values."""

    values: Tensor
    """``[sources, heads · dim]``."""
    target: Tensor
    """Added to."""
    weight: Tensor
    """Added to."""


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of normalised attention; its mask depends on the stream, both global nodes and the head alone.

    The word is that of node ``target`` and element ``source · 4⌈heads / 4⌉ + head`` of the stream (see
    :func:`halocast.runtime.kernels.philox`), whose purpose should be ``PURPOSE_ATTENTION``.
    """

    dropout: kernels.Dropout
    targets: Tensor
    """int64 ``[targets]``, global nodes, below 2^40."""
    sources: Tensor
    """int64 ``[sources]``, global nodes, below 2^32 / ⌈heads / 4⌉."""


@dataclass(frozen=True)
class AttentionState:
    """What rows keep of the neighbours met so far: for each head the largest logit m, Σ e^(l − m) and Σ e^(l − m) z."""

    maximum: Tensor
    """``[targets, heads]``."""
    sum: Tensor
    """``[targets, heads]``."""
    out: Tensor
    """``[targets, heads · dim]``."""

    @classmethod
    def start(cls, targets: int, heads: int, dim: int, pattern: Tensor) -> AttentionState:
        """No neighbours yet; dtype and device of ``pattern``. dim is that of one head."""
        maximum = pattern.new_full((targets, heads), -torch.inf)
        return cls(maximum, pattern.new_zeros(targets, heads), pattern.new_zeros(targets, heads * dim))


@dataclass(frozen=True)
class ExtremeState:
    """What rows keep for a maximum or minimum: for each column the extreme so far, and how many neighbours have it."""

    value: Tensor
    """``[targets, dim]``."""
    ties: Tensor
    """``[targets, dim]``, of the values' dtype (float32 counts exactly to 2^24)."""
    minimum: bool = False

    @classmethod
    def start(cls, targets: int, dim: int, pattern: Tensor, *, minimum: bool = False) -> ExtremeState:
        """No neighbours yet; dtype and device of ``pattern``."""
        value = pattern.new_full((targets, dim), torch.inf if minimum else -torch.inf)
        return cls(value, torch.zeros_like(value), minimum)


Logits = GatLogits | Gatv2Logits
Gradients = GatGradients | Gatv2Gradients
