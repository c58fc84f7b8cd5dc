"""Attention by blocks against torch's dense softmax and autograd in float64."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kernels.attention_reference import Problem, edges_of, prepare, reference, run, worst_error
from tests.unit.kernels.philox_reference import reference_words

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.attention_kernels import attend, attend_backward, finish_attention, pack_targets
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gatv2Logits,
)

KINDS = ["gat", "gat with edges", "gatv2"]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
DROPOUT = kernels.Dropout(0.4, kernels.Stream(seed=2**63 + 5, epoch=3, layer=1, purpose=kernels.PURPOSE_ATTENTION))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_equals_the_dense_softmax_in_any_number_of_blocks(
    path: str, dtype: torch.dtype, kind: str, data: st.DataObject
) -> None:
    draw = data.draw
    sources = draw(st.integers(0, 70))
    problem = Problem.random(
        draw(st.integers(0, 20)), sources, draw(st.integers(1, 8)), draw(st.integers(1, 65)), draw(st.floats(0, 1)),
        draw(st.integers(0, 1 << 30)), draw(st.sampled_from([0.0, 0.2, 1.0])),
    )  # fmt: skip
    cuts = sorted(draw(st.lists(st.integers(0, sources), max_size=4)))
    assert worst_error(run(problem, kind, dtype, cuts), problem, reference(problem, kind)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "dim"), [*itertools.product([1, 4, 8], [1, 7, 8, 16, 17, 32, 65]), (3, 100), (2, 300), (64, 2)]
)
def test_widths(path: str, dtype: torch.dtype, kind: str, heads: int, dim: int) -> None:
    problem = Problem.random(9, 80, heads, dim, 0.6, seed=heads * dim)
    assert worst_error(run(problem, kind, dtype, [33]), problem, reference(problem, kind)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_blocks_without_edges(path: str, dtype: torch.dtype, kind: str) -> None:
    problem = Problem.random(6, 10, 2, 5, 0.5, seed=1)
    problem.pattern[:, 3:7] = False
    problem.pattern[[0, 4]] = False
    result = run(problem, kind, dtype, [3, 3, 7])
    assert worst_error(result, problem, reference(problem, kind)) <= TOLERANCE[dtype]
    assert (result["out"][[0, 4]] == 0).all()
    problem.pattern[:] = False
    assert all((each == 0).all() for each in run(problem, kind, dtype, [4]).values())


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_do_not_overflow(path: str, dtype: torch.dtype, kind: str) -> None:
    """Neither within a block nor when blocks meet; the largest logit takes all, whichever block has it."""
    problem = Problem.random(8, 12, 2, 4, 0.7, seed=2)
    largest = 1e30 if dtype == torch.float32 else 1e200
    huge = {name: getattr(problem, name).float().double() * largest for name in ("source", "target", "edge", "weight")}
    problem = dataclasses.replace(problem, **huge)
    expected, result = reference(problem, kind), run(problem, kind, dtype, [5])
    assert all(torch.isfinite(each).all() for each in result.values())
    torch.testing.assert_close(result["out"].double(), expected["out"], rtol=2e-6, atol=2e-6)


def test_an_edge_logit_of_minus_infinity_leaves_its_edge_out(path: str, dtype: torch.dtype) -> None:
    problem = Problem.random(7, 20, 3, 6, 0.8, seed=3)
    closed = problem.pattern & (torch.rand(problem.pattern.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    closed[0], closed[1, :10] = problem.pattern[0], problem.pattern[1, :10]  # a whole row; all of a row's first block
    problem.edge[closed] = -torch.inf
    result = run(problem, "gat with edges", dtype, [10])
    expected = reference(dataclasses.replace(problem, pattern=problem.pattern & ~closed), "gat with edges")
    rows = {name: expected[name] for name in ("out", "values")}
    assert worst_error(result, problem, rows) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_number_of_threads(kind: str, dropout: kernels.Dropout | None) -> None:
    problem = Problem.random(600, 500, 4, 9, 0.08, seed=4)
    nodes = torch.arange(600), torch.arange(500)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(run(problem, kind, torch.float32, [200], dropout, nodes))
    for other, name in itertools.product(results[1:], results[0]):
        assert torch.equal(results[0][name], other[name]), name


@pytest.mark.parametrize("heads", [1, 4, 6])
def test_dropout_mask_is_the_documented_one_for_any_split(path: str, heads: int) -> None:
    """With values that are rows of the identity, out[i, h, j] is a_ij · M_ij."""
    targets, sources = 5, 40
    problem = Problem.random(targets, sources, heads, sources, 0.7, seed=5)
    problem = dataclasses.replace(problem, values=torch.eye(sources).double()[:, None].expand(-1, heads, -1))
    target_nodes = torch.tensor([0, 3, 2**32 + 7, 2**39, 17])
    source_nodes = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:sources]
    mask = expected_mask(target_nodes, source_nodes, heads)
    expected = reference(problem, "gat", mask)["out"]
    for cuts in ([], [7], [1, 20, 39]):
        out = run(problem, "gat", torch.float64, cuts, DROPOUT, (target_nodes, source_nodes))["out"]
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(out == 0, expected == 0)


def expected_mask(target_nodes: torch.Tensor, source_nodes: torch.Tensor, heads: int) -> torch.Tensor:
    """Dropout's factors from the transcription of Philox: element source · 4⌈heads / 4⌉ + head of node target."""
    padded = -(-heads // 4) * 4
    words = reference_words(DROPOUT.stream, target_nodes.tolist(), int(source_nodes.max() + 1) * padded)
    chosen = words.reshape(len(target_nodes), -1, padded)[:, source_nodes.numpy(), :heads]
    return torch.from_numpy((chosen >= np.ceil(0.4 * 2**32)) / 0.6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_dropout(path: str, dtype: torch.dtype, kind: str) -> None:
    problem = Problem.random(9, 50, 5, 12, 0.7, seed=6)
    nodes = torch.arange(100, 109), torch.arange(50).flip(0).contiguous()
    expected = reference(problem, kind, expected_mask(*nodes, 5))
    assert worst_error(run(problem, kind, dtype, [20], DROPOUT, nodes), problem, expected) <= TOLERANCE[dtype]


def test_features_and_half_logits_in_one_message(path: str, dtype: torch.dtype) -> None:
    """Values, half-logits and their gradients may be columns of one matrix; nothing beside them is touched."""
    problem = Problem.random(8, 30, 2, 7, 0.5, seed=7)
    edges, values, logits = prepare(problem, "gat", dtype, slice(0, 30))
    assert isinstance(logits, GatLogits)
    message = torch.cat([torch.ones(30, 1, dtype=dtype), values, logits.source, torch.ones(30, 3, dtype=dtype)], 1)
    values, logits = message[:, 1:15], dataclasses.replace(logits, source=message[:, 15:17])
    wide, grad = torch.zeros(8, 20, dtype=dtype), problem.grad.flatten(1).to(dtype)
    state = dataclasses.replace(AttentionState.start(8, 2, 7, values), out=wide[:, 3:17])
    attend(edges, state, values, logits)
    out = finish_attention(state)
    back = torch.full_like(message, 5.0)
    gradients = GatGradients(back[:, 1:15], back[:, 15:17], torch.zeros(8, 2, dtype=dtype))
    packed = pack_targets(state, grad, logits)
    attend_backward(edges, packed, grad, values, logits, gradients)
    expected = reference(problem, "gat")
    result = {"out": out.unflatten(1, (2, 7)), "values": gradients.values.unflatten(1, (2, 7)), "source": gradients.source}
    assert worst_error(result, problem, {name: expected[name] for name in result}) <= TOLERANCE[dtype]
    assert (wide[:, :3] == 0).all()
    assert (wide[:, 17:] == 0).all()
    assert (back[:, [0, 17, 18, 19]] == 5.0).all()
    before = back.clone()
    attend_backward(edges, packed, grad, values, logits, gradients, accumulate=True)
    torch.testing.assert_close(back[:, 1:17], 2 * before[:, 1:17], rtol=1e-6, atol=1e-6)


def test_exponential_is_within_two_units_in_the_last_place(path: str, dtype: torch.dtype) -> None:
    """A row that has met the logit 0 has e^x added to its sum; one that has only met x keeps 1."""
    if path == "torch":
        pytest.skip("torch's own")
    least = -87.0 if dtype == torch.float32 else -708.0
    x = torch.cat([torch.linspace(least, 0, 20_001, dtype=dtype), -torch.logspace(-8, 1, 2000, dtype=dtype)])
    rows = x.numel()
    edges = Edges.from_csr(torch.arange(rows + 1), torch.arange(rows, dtype=torch.int32), rows)
    state = dataclasses.replace(AttentionState.start(rows, 1, 1, x), maximum=torch.zeros(rows, 1, dtype=dtype))
    attend(
        edges,
        state,
        torch.ones(rows, 1, dtype=dtype),
        GatLogits(x[:, None].contiguous(), torch.zeros(rows, 1, dtype=dtype), slope=1.0),
    )
    expected = np.exp(x.numpy().astype(np.longdouble))
    unit = np.spacing(expected.astype(x.numpy().dtype))
    assert np.max(np.abs(state.sum[:, 0].numpy().astype(np.longdouble) - expected) / unit) <= 2.0


def arguments() -> dict[str, object]:
    problem = Problem.random(3, 4, 2, 5, 1.0, seed=8)
    edges, values, logits = prepare(problem, "gat", torch.float32, slice(0, 4))
    return {"edges": edges, "state": AttentionState.start(3, 2, 5, values), "values": values, "logits": logits}


def half(**changes: object) -> GatLogits:
    given = {"source": torch.zeros(4, 2), "target": torch.zeros(3, 2), **changes}
    return GatLogits(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": torch.rand(4, 9)}, "values have 9 columns, which 2 heads do not divide; give a multiple of 2"),
        ({"values": torch.rand(5, 10)}, "the edges leave 4 sources, the matrix has 5 rows"),
        ({"values": torch.rand(4, 10, dtype=torch.float16)}, "values is float16; allowed: float32, float64"),
        ({"state": AttentionState.start(3, 65, 1, torch.zeros(0))}, "65 heads; allowed: 1 to 64"),
        ({"state": AttentionState.start(2, 2, 5, torch.zeros(0))}, r"state.maximum must be float32 \[3, 2\]"),
        ({"logits": half(source=torch.zeros(4, 3))}, r"logits.source must be float32 \[4, 2\]"),
        ({"logits": half(edge=torch.zeros(8, 4)[:, ::2])}, "logits.edge has stride 2"),
        ({"logits": half(edge=torch.zeros(8, 4)[:, :2])}, "logits.edge is not contiguous"),
        ({"logits": half(slope=1.5)}, "slope 1.5 is out of range; allowed: 0 to 1"),
        ({"logits": Gatv2Logits(torch.zeros(3, 10), torch.zeros(2, 4))}, r"logits.weight must be float32 \[2, 5\]"),
        ({"dropout": AttentionDropout(DROPOUT, torch.arange(2), torch.arange(4))}, r"dropout.targets must be int64 \[3\]"),
        ({"dropout": AttentionDropout(DROPOUT, torch.arange(3), torch.arange(4) + 2**32)}, "use fewer heads"),
    ],
)
def test_bad_arguments_get_one_clear_line(change: dict[str, object], words: str) -> None:
    given = {**arguments(), **change}
    with pytest.raises(MisuseError, match=words) as caught:
        attend(given.pop("edges"), given.pop("state"), given.pop("values"), given.pop("logits"), **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_gradients_must_fit_the_logits() -> None:
    given = arguments()
    edges, values, logits, grad = given["edges"], given["values"], half(), torch.zeros(3, 10)
    assert isinstance(edges, Edges)
    assert isinstance(values, torch.Tensor)
    packed = torch.zeros(3, 8)
    other = Gatv2Gradients(values.clone(), torch.zeros(3, 10), torch.zeros(2, 5))
    with pytest.raises(MisuseError, match="Gatv2Gradients do not fit GatLogits"):
        attend_backward(edges, packed, grad, values, logits, other)
    with_edges = dataclasses.replace(logits, edge=torch.zeros(8, 2))
    gradients = GatGradients(values.clone(), torch.zeros(4, 2), torch.zeros(3, 2))
    with pytest.raises(MisuseError, match=r"give gradients\.edge if and only if the logits have edge"):
        attend_backward(edges, packed, grad, values, with_edges, gradients)


def test_turning_edges_over() -> None:
    edges = edges_of(torch.tensor([[True, False, True], [False, False, False], [True, True, False]]))
    assert edges.targets.tolist() == [0, 2, 2, 0]
    assert (edges.source_begin.tolist(), edges.source_end.tolist()) == ([0, 2, 3], [2, 3, 4])
    assert edges.entry.tolist() == [0, 2, 3, 1]
    with pytest.raises(MisuseError, match="entry 0 points at row 3"):
        Edges.from_csr(torch.tensor([0, 1]), torch.tensor([3], dtype=torch.int32), 3)
