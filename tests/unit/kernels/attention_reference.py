"""Attention over a dense matrix of edges, by torch's own softmax and autograd in float64; and how the kernels are run on it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from halocast.runtime.attention_kernels import attend, attend_backward, finish_attention, pack_targets
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gatv2Logits,
    Gradients,
    Logits,
)
from halocast.runtime.kernels import Dropout


@dataclass(frozen=True)
class Problem:
    """A pattern of edges and everything that attention reads, in float64."""

    pattern: Tensor
    """bool ``[targets, sources]``."""
    values: Tensor
    """``[sources, heads, dim]``."""
    source: Tensor
    """``[sources, heads]``."""
    target: Tensor
    """``[targets, heads]``."""
    edge: Tensor
    """``[targets, sources, heads]``."""
    target_values: Tensor
    """``[targets, heads, dim]``, GATv2's."""
    weight: Tensor
    """``[heads, dim]``, GATv2's."""
    grad: Tensor
    """``[targets, heads, dim]``, of the output."""
    slope: float = 0.2

    @classmethod
    def random(cls, targets: int, sources: int, heads: int, dim: int, density: float, seed: int, slope: float = 0.2) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        pattern = torch.rand(targets, sources, generator=generator) < density
        if targets > 2:
            pattern[targets // 2] = False
        return cls(
            pattern, normal(sources, heads, dim), normal(sources, heads), normal(targets, heads),
            normal(targets, sources, heads), normal(targets, heads, dim), normal(heads, dim) / dim**0.5,
            normal(targets, heads, dim), slope,
        )  # fmt: skip

    def to(self, device: str) -> Problem:
        return Problem(**{name: each.to(device) if isinstance(each, Tensor) else each for name, each in vars(self).items()})


Result = dict[str, Tensor]
ROWS = ("out", "values")


def reference(problem: Problem, kind: str, mask: Tensor | None = None) -> Result:
    """Output and gradients; mask: dropout's factors ``[targets, sources, heads]``. kind: gat, gat with edges, gatv2."""
    p = problem
    names = {
        "gat": ("values", "source", "target"),
        "gat with edges": ("values", "source", "target", "edge"),
        "gatv2": ("values", "target_values", "weight"),
    }[kind]
    leaves = {name: getattr(p, name).clone().requires_grad_() for name in names}
    if kind == "gatv2":
        inner = leaky_relu(leaves["values"][None] + leaves["target_values"][:, None], p.slope)
        logit = (inner * leaves["weight"]).sum(3)
    else:
        total = leaves["source"][None] + leaves["target"][:, None]
        logit = leaky_relu(total + leaves["edge"] if "edge" in leaves else total, p.slope)
    attention = logit.masked_fill(~p.pattern[:, :, None], -torch.inf).softmax(1)
    attention = torch.where(p.pattern[:, :, None], attention, 0.0)  # rows without neighbours
    if mask is not None:
        attention = attention * mask
    out = torch.einsum("ijh,jhd->ihd", attention, leaves["values"])
    gradients = torch.autograd.grad(out, list(leaves.values()), p.grad, allow_unused=True)
    result = {name: torch.zeros_like(leaves[name]) if g is None else g for name, g in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), **result}


def run(
    problem: Problem,
    kind: str,
    dtype: torch.dtype,
    cuts: list[int] | None = None,
    dropout: Dropout | None = None,
    nodes: tuple[Tensor, Tensor] | None = None,
) -> Result:
    """The same by the kernels, the sources cut into blocks at `cuts`; nodes: global nodes of targets and of sources."""
    p = problem
    targets, heads, dim = p.grad.shape
    bounds = [0, *(cuts or []), p.pattern.shape[1]]
    like = torch.zeros(0, dtype=dtype, device=p.values.device)
    state = AttentionState.start(targets, heads, dim, like)
    blocks = []
    for first, last in itertools.pairwise(bounds):
        block = slice(first, last)
        edges, values, logits = prepare(p, kind, dtype, block)
        drop = AttentionDropout(dropout, nodes[0], nodes[1][block].clone()) if dropout and nodes else None
        attend(edges, state, values, logits, dropout=drop)
        blocks.append((edges, values, logits, drop, block))
    finish_attention(state)
    grad = p.grad.flatten(1).to(dtype)
    result = {"out": state.out.unflatten(1, (heads, dim)).clone(), "values": like.new_empty(p.values.shape)}
    shapes = {"source": p.source, "target": p.target, "edge": p.edge, "target_values": p.target_values, "weight": p.weight}
    result |= {name: like.new_zeros(each.shape) for name, each in shapes.items()}
    for edges, values, logits, drop, block in blocks:
        to_values = torch.full_like(values, torch.nan)
        gradients: Gradients
        if isinstance(logits, GatLogits):
            to_edge = None if logits.edge is None else torch.full_like(logits.edge, torch.nan)
            gradients = GatGradients(to_values, result["source"][block], result["target"], to_edge)
        else:
            gradients = Gatv2Gradients(to_values, result["target_values"].flatten(1), result["weight"])
        packed = pack_targets(state, grad, logits)
        attend_backward(edges, packed, grad, values, logits, gradients, dropout=drop)
        result["values"][block] = to_values.unflatten(1, (heads, dim))
        if isinstance(gradients, GatGradients) and gradients.edge is not None:
            result["edge"][:, block][p.pattern[:, block]] = gradients.edge
    return result


def prepare(p: Problem, kind: str, dtype: torch.dtype, block: slice) -> tuple[Edges, Tensor, Logits]:
    """Edges, values and logits of the sources in `block`."""
    pattern = p.pattern[:, block]
    values = p.values[block].flatten(1).to(dtype)
    if kind == "gatv2":
        logits: Logits = Gatv2Logits(p.target_values.flatten(1).to(dtype), p.weight.to(dtype), p.slope)
    else:
        edge = p.edge[:, block][pattern].to(dtype) if kind == "gat with edges" else None
        logits = GatLogits(p.source[block].to(dtype), p.target.to(dtype), edge, p.slope)
    return edges_of(pattern), values, logits


def edges_of(pattern: Tensor) -> Edges:
    counts = pattern.sum(1)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Edges.from_csr(indptr, pattern.nonzero()[:, 1].int(), pattern.shape[1])


def worst_error(result: Result, problem: Problem, expected: Result) -> float:
    """The largest difference, relative to the largest element, or to the largest term of the sums where that is larger.

    Gradients of logits are sums of a_ij (e_i · z_j − e_i · o_i), which cancel: with slope 1 those of targets are zero.
    """
    products = torch.einsum("ihd,jhd->ijh", problem.grad, problem.values).abs()
    term = float(products.max()) if products.numel() else 1.0
    return max(
        float((result[name].double() - each).abs().max()) / max(float(each.abs().max()), 1.0 if name in ROWS else term)
        if each.numel()
        else 0.0
        for name, each in expected.items()
    )
