"""The operators of attention: opcheck, finite differences, and torch_geometric's own layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.unit.kernels.attention_reference import edges_of
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import attention, kernels
from halocast.runtime.attention_types import AttentionDropout, Edges, GatLogits, Gatv2Logits

DROPOUT = kernels.Dropout(0.3, kernels.Stream(2**64 - 1, 2, 1, purpose=kernels.PURPOSE_ATTENTION))


def pattern() -> Tensor:
    """9 targets, 7 sources; a target and a source without edges."""
    drawn = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    drawn[4], drawn[:, 2] = False, False
    return drawn


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def case(kind: str) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
    """Inputs, and the operator as a function of them."""
    torch.manual_seed(1)
    edges = edges_of(pattern())
    dropout = AttentionDropout(DROPOUT, torch.arange(9), torch.arange(7))
    if kind == "gat":
        return (leaf(7, 6), leaf(7, 2), leaf(9, 2)), lambda z, s, t: attention.attend(edges, z, GatLogits(s, t))
    if kind == "gat with edges and dropout":
        return (leaf(7, 6), leaf(7, 2), leaf(9, 2), leaf(edges.sources.numel(), 2)), lambda z, s, t, e: attention.attend(
            edges, z, GatLogits(s, t, e, slope=0.1), dropout=dropout
        )
    if kind == "gatv2":
        return (leaf(7, 6), leaf(9, 6), leaf(2, 3)), lambda z, t, w: attention.attend(
            edges, z, Gatv2Logits(t, w), dropout=dropout
        )
    return (leaf(7, 6),), lambda x: attention.extreme(edges, x, minimum=kind == "minimum")


@pytest.mark.parametrize("kind", ["gat", "gat with edges and dropout", "gatv2", "maximum", "minimum"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    inputs, run = case(kind)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("kind", ["gat", "gatv2"])
def test_opcheck(kind: str) -> None:
    edges, nodes = edges_of(pattern()), [torch.arange(9), torch.arange(7)]
    structure = attention._structure(edges)
    stream = attention._stream_numbers(DROPOUT.stream)
    target, source, edge, weight = (leaf(9, 2), leaf(7, 2), leaf(edges.sources.numel(), 2), None)
    if kind == "gatv2":
        target, source, edge, weight = (leaf(9, 6), None, None, leaf(2, 3))
    arguments = (leaf(7, 6), target, source, edge, weight, 0.2, structure, nodes, 0.3, stream)
    torch.library.opcheck(torch.ops.halocast.attend.default, arguments)


def test_opcheck_of_extremes() -> None:
    torch.library.opcheck(torch.ops.halocast.extreme.default, (leaf(7, 6), attention._structure(edges_of(pattern())), False))


@pytest.mark.parametrize("edge_features", [False, True])
def test_equals_the_gat_layer_of_torch_geometric(edge_features: bool) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(2)
    edges, index = edges_of(pattern()), pattern().nonzero().t().flip(0)
    layer = geometric.GATConv(
        (5, 4), 8, heads=3, add_self_loops=False, bias=False, edge_dim=2 if edge_features else None
    ).double()
    x_source, x_target, features = leaf(7, 5), leaf(9, 4), leaf(index.shape[1], 2)
    given = features if edge_features else None
    expected = layer((x_source, x_target), index, edge_attr=given)
    z = layer.lin_src(x_source)
    half = {
        "source": (z.view(7, 3, 8) * layer.att_src).sum(2),
        "target": (layer.lin_dst(x_target).view(9, 3, 8) * layer.att_dst).sum(2),
        "edge": (layer.lin_edge(features).view(-1, 3, 8) * layer.att_edge).sum(2) if edge_features else None,
    }
    out = attention.attend(edges, z, GatLogits(**half))
    compare(out, expected, [x_source, x_target, *([features] if edge_features else []), *layer.parameters()])


def test_equals_the_gatv2_layer_of_torch_geometric() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(3)
    edges, index = edges_of(pattern()), pattern().nonzero().t().flip(0)
    layer = geometric.GATv2Conv((5, 4), 8, heads=3, add_self_loops=False, bias=False).double()
    x_source, x_target = leaf(7, 5), leaf(9, 4)
    expected = layer((x_source, x_target), index)
    out = attention.attend(edges, layer.lin_l(x_source), Gatv2Logits(layer.lin_r(x_target), layer.att[0]))
    compare(out, expected, [x_source, x_target, *layer.parameters()])


def compare(out: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    theirs = torch.autograd.grad(expected, leaves, grad, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_errors_reach_the_caller() -> None:
    edges = Edges.from_csr(torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32), 1)
    with pytest.raises(MisuseError, match="values have 5 columns, which 2 heads do not divide"):
        attention.attend(edges, torch.zeros(1, 5), GatLogits(torch.zeros(1, 2), torch.zeros(1, 2)))
    with pytest.raises(MisuseError, match=r"a matrix \[rows, dim\] is needed"):
        attention.extreme(edges, torch.zeros(3))
