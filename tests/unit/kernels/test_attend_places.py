"""Where attention and extremes put their results: over what they came from, into given memory, for ranges of edges."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.unit.kernels.attention_reference import Problem, edges_of, prepare
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.attention_kernels import (
    attend,
    attend_backward,
    extremes_backward,
    finish_attention,
    finish_extremes,
    merge_extremes,
    pack_targets,
    share_among_ties,
)
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    ExtremeState,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gradients,
    Logits,
)

KINDS = ["gat", "gat with edges", "gatv2"]
DROPOUT = kernels.Dropout(0.4, kernels.Stream(seed=7, epoch=3, layer=1, purpose=kernels.PURPOSE_ATTENTION))


class Block:
    """A block whose forward pass is done; values and half-logits lie side by side in one message."""

    def __init__(
        self,
        kind: str,
        dtype: torch.dtype,
        dropout: bool,
        shape: tuple[int, int, int, int] = (60, 90, 3, 7),
        device: str = "cpu",
    ) -> None:
        targets, sources, heads, dim = shape
        problem = Problem.random(targets, sources, heads, dim, 0.3, seed=9).to(device)
        self.edges, values, self.logits = prepare(problem, kind, dtype, slice(0, sources))
        self.dropout = (
            AttentionDropout(DROPOUT, *(torch.arange(n, device=device) for n in (targets, sources))) if dropout else None
        )
        half = self.logits.source if isinstance(self.logits, GatLogits) else values[:, :0]
        self.message, self.width = torch.cat([values, half], 1), heads * dim
        self.state = AttentionState.start(targets, heads, dim, values)
        attend(self.edges, self.state, values, self.logits, dropout=self.dropout)
        finish_attention(self.state)
        self.grad = problem.grad.flatten(1).to(dtype)
        self.packed = pack_targets(self.state, self.grad, self.logits)

    def backward(self, to: Tensor, edges: Edges | None = None) -> dict[str, Tensor]:
        """Gradients; those of sources in `to`, laid out as the message is."""
        values, width, logits = self.message[:, : self.width], self.width, self.logits
        gradients: Gradients
        if isinstance(logits, GatLogits):
            logits = dataclasses.replace(logits, source=self.message[:, width:])
            edge = None if logits.edge is None else torch.full_like(logits.edge, torch.nan)
            gradients = GatGradients(to[:, :width], to[:, width:], torch.zeros_like(logits.target), edge)
        else:
            gradients = Gatv2Gradients(to[:, :width], torch.zeros_like(logits.target), torch.zeros_like(logits.weight))
        attend_backward(edges or self.edges, self.packed, self.grad, values, logits, gradients, dropout=self.dropout)
        results = {name: each for name, each in vars(gradients).items() if each is not None and name != "source"}
        return {name: each.clone() for name, each in {**results, "sources": to}.items()}


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_turns_into_its_gradient(path: str, dtype: torch.dtype, kind: str, dropout: bool) -> None:
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for shape in ((60, 90, 3, 7), (9, 12, 1, 33), (300, 400, 4, 16)):
            block = Block(kind, dtype, dropout, shape)
            apart = block.backward(torch.full_like(block.message, torch.nan))
            in_place = block.backward(block.message)
            for name, expected in apart.items():
                assert torch.equal(in_place[name], expected), name


def test_only_values_or_only_half_logits_in_place(path: str) -> None:
    for which in ("values", "source"):
        block = Block("gat", torch.float32, dropout=False)
        expected = block.backward(torch.zeros_like(block.message))["sources"]
        assert isinstance(block.logits, GatLogits)
        values, source = (each.contiguous() for each in block.message.split([block.width, 3], 1))
        logits = dataclasses.replace(block.logits, source=source)
        to = {"values": torch.zeros_like(values), "source": torch.zeros_like(source), which: vars()[which]}
        gradients = GatGradients(**to, target=torch.zeros_like(logits.target))
        attend_backward(block.edges, block.packed, block.grad, values, logits, gradients)
        assert torch.equal(torch.cat([gradients.values, gradients.source], 1), expected)


def test_what_is_read_cannot_be_added_to() -> None:
    block = Block("gat", torch.float32, dropout=False)
    assert isinstance(block.logits, GatLogits)
    values, source = (each.contiguous() for each in block.message.split([block.width, 3], 1))
    logits, target = dataclasses.replace(block.logits, source=source), torch.zeros_like(block.logits.target)
    for gradients, what in (
        (GatGradients(values, source.clone(), target), "values"),
        (GatGradients(values.clone(), source, target), "source"),
    ):
        with pytest.raises(MisuseError, match=rf"gradients\.{what} is the memory of what is read.*drop accumulate"):
            attend_backward(block.edges, block.packed, block.grad, values, logits, gradients, accumulate=True)
    wide = torch.zeros(90, 50)
    shifted = torch.as_strided(wide, (90, 21), (25, 1))
    with pytest.raises(MisuseError, match="rows of stride 25 instead of 50; give the very same matrix"):
        attend_backward(
            block.edges, block.packed, block.grad, wide[:, :21], logits, GatGradients(shifted, source.clone(), target)
        )


def ranges_of_more(edges: Edges, dtype: torch.dtype, logits: Logits) -> tuple[Edges, Logits]:
    """The same edges among entries of other blocks, whose sources this block does not have; and edge logits for all."""
    gap = 37
    counts = edges.end - edges.begin
    begin = edges.begin + gap * (1 + torch.arange(edges.target_count))
    place = torch.repeat_interleave(begin - edges.begin, counts) + torch.arange(edges.sources.numel())
    sources = torch.full((int(begin[-1] + counts[-1]) + gap,), 2**31 - 1, dtype=torch.int32)
    sources[place] = edges.sources
    entry = place[edges.entry] if getattr(logits, "edge", None) is not None else torch.empty(0, dtype=torch.int64)
    if isinstance(logits, GatLogits) and logits.edge is not None:
        wide = torch.full((sources.numel(), logits.edge.shape[1]), torch.nan, dtype=dtype)
        wide[place] = logits.edge
        logits = dataclasses.replace(logits, edge=wide)
    return dataclasses.replace(edges, begin=begin, end=begin + counts, sources=sources, entry=entry), logits


@pytest.mark.parametrize("kind", KINDS)
def test_targets_may_have_ranges_of_more_edges(path: str, dtype: torch.dtype, kind: str) -> None:
    block = Block(kind, dtype, dropout=True)
    expected = block.backward(torch.zeros_like(block.message))
    edges, logits = ranges_of_more(block.edges, dtype, block.logits)
    own = ~logits.edge.isnan()[:, 0] if isinstance(logits, GatLogits) and logits.edge is not None else None
    state = AttentionState.start(60, 3, 7, block.message)
    attend(edges, state, block.message[:, :21], logits, dropout=block.dropout)
    assert torch.equal(finish_attention(state), block.state.out)
    block.logits = logits
    result = block.backward(torch.zeros_like(block.message), edges)
    if own is not None:
        assert result["edge"][~own].isnan().all(), "gradients of other blocks' edges were written"
        result["edge"] = result["edge"][own]
    for name, each in expected.items():
        assert torch.equal(result[name], each), name


def test_entry_is_needed_for_edge_logits() -> None:
    block = Block("gat with edges", torch.float32, dropout=False)
    edges = dataclasses.replace(block.edges, entry=torch.empty(0, dtype=torch.int64))
    with pytest.raises(MisuseError, match=r"edges.entry must be int64 \[\d+\] on cpu, not int64 \[0\]"):
        block.backward(torch.zeros_like(block.message), edges)


@pytest.mark.parametrize("kind", KINDS)
def test_pack_into_given_memory_from_parts_of_one_buffer(path: str, dtype: torch.dtype, kind: str) -> None:
    block = Block(kind, dtype, dropout=False)
    flat = torch.cat([block.state.sum.flatten(), block.state.maximum.flatten()])
    state = dataclasses.replace(block.state, sum=flat[:180].view(60, 3), maximum=flat[180:].view(60, 3))
    memory = torch.full((62, 12), 5.0, dtype=dtype)
    packed = pack_targets(state, block.grad, block.logits, memory[1:61])
    assert packed.data_ptr() == memory[1:].data_ptr()
    assert torch.equal(packed, block.packed)
    assert (memory[[0, 61]] == 5.0).all()
    with pytest.raises(MisuseError, match=r"pack_targets: out must be \w+ \[60, 12\]"):
        pack_targets(state, block.grad, block.logits, memory)
    with pytest.raises(MisuseError, match="pack_targets: out is not contiguous"):
        pack_targets(state, block.grad, block.logits, memory.new_zeros(60, 13)[:, 1:])


def extremes(dtype: torch.dtype) -> dict[str, Any]:
    """A merged block of features that tie; a row and a source without edges."""
    generator = torch.Generator().manual_seed(3)
    pattern = torch.rand(50, 70, generator=generator) < 0.2
    pattern[7], pattern[:, 9] = False, False
    features = torch.randint(-2, 3, (70, 19), generator=generator).to(dtype)
    state = ExtremeState.start(50, 19, features)
    merge_extremes(edges_of(pattern), state, features)
    finish_extremes(state)
    return {"edges": edges_of(pattern), "state": state, "features": features, "grad": torch.randn(50, 19).to(dtype)}


def test_features_turn_into_their_gradient(path: str, dtype: torch.dtype) -> None:
    for threads in (1, 3):
        torch.set_num_threads(threads)
        given = extremes(dtype)
        edges, state, features = given["edges"], given["state"], given["features"]
        share, expected = share_among_ties(state, given["grad"]), torch.full_like(features, torch.nan)
        extremes_backward(edges, state, share, features, expected)
        assert (expected[9] == 0).all()
        assert expected.any()
        with pytest.raises(MisuseError, match="grad is the memory of what is read"):
            extremes_backward(edges, state, share, features, features, accumulate=True)
        extremes_backward(edges, state, share, features, features)
        assert torch.equal(features, expected)


def test_shares_go_into_given_memory(dtype: torch.dtype) -> None:
    given = extremes(dtype)
    state, grad = given["state"], given["grad"]
    expected = torch.where(state.ties == 0, 0.0, grad / state.ties)
    assert (expected[7] == 0).all()
    assert torch.equal(share_among_ties(state, grad), expected)
    other = torch.full_like(grad, torch.nan)
    assert share_among_ties(state, grad, other) is other
    assert torch.equal(other, expected)
    assert share_among_ties(state, grad, grad) is grad
    assert torch.equal(grad, expected)
    with pytest.raises(MisuseError, match=r"out must be \w+ \[50, 19\]"):
        share_among_ties(state, grad, grad[1:])
