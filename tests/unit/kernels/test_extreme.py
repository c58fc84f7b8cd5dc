"""Maximum and minimum over neighbours, by blocks, against torch.scatter_reduce and its autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kernels.attention_reference import edges_of
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime.attention_kernels import extremes_backward, finish_extremes, merge_extremes, share_among_ties
from halocast.runtime.attention_types import ExtremeState


def reference(pattern: Tensor, features: Tensor, grad: Tensor, minimum: bool) -> tuple[Tensor, Tensor]:
    x = features.double().requires_grad_()
    target, source = pattern.nonzero().unbind(1)
    index = target[:, None].expand(-1, x.shape[1])
    # torch takes what was there for one more tie, even where it is not included: let no feature equal it
    unlike = torch.full((pattern.shape[0], x.shape[1]), 1e9, dtype=torch.float64)
    out = unlike.scatter_reduce(0, index, x[source], "amin" if minimum else "amax", include_self=False)
    out = torch.where(pattern.any(1)[:, None], out, 0.0)
    (gradient,) = torch.autograd.grad(out, x, grad.double())
    return out.detach(), gradient


def run(pattern: Tensor, features: Tensor, grad: Tensor, minimum: bool, cuts: list[int]) -> tuple[Tensor, Tensor]:
    state = ExtremeState.start(pattern.shape[0], features.shape[1], features, minimum=minimum)
    bounds = [0, *cuts, pattern.shape[1]]
    parts = [(edges_of(pattern[:, a:b]), slice(a, b)) for a, b in itertools.pairwise(bounds)]
    for edges, part in parts:
        merge_extremes(edges, state, features[part])
    out = finish_extremes(state).clone()
    share, gradient = share_among_ties(state, grad), torch.full_like(features, torch.nan)
    for edges, part in parts:
        extremes_backward(edges, state, share, features[part], gradient[part])
    return out, gradient


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_equals_scatter_reduce_in_any_number_of_blocks(path: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Features of few values tie often; the value is exact, the gradient's sums are not."""
    draw = data.draw
    targets, sources, dim = draw(st.integers(1, 15)), draw(st.integers(0, 40)), draw(st.integers(1, 140))
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    pattern = torch.rand(targets, sources) < draw(st.floats(0, 1))
    features = torch.randint(-2, 3, (sources, dim)).to(dtype)
    grad, minimum = torch.randn(targets, dim, dtype=dtype), draw(st.booleans())
    cuts = sorted(draw(st.lists(st.integers(0, sources), max_size=4)))
    out, gradient = run(pattern, features, grad, minimum, cuts)
    expected, expected_gradient = reference(pattern, features, grad, minimum)
    assert torch.equal(out.double(), expected)
    rounding = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(gradient.double(), expected_gradient, **rounding)


def test_rows_without_neighbours_are_zero_and_infinities_are_values(path: str) -> None:
    pattern = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    features = torch.tensor([[-torch.inf, 1.0], [-torch.inf, -3.0], [torch.inf, -3.0]])
    out, gradient = run(pattern, features, torch.ones(3, 2), False, [1])
    assert out.tolist() == [[-torch.inf, 1.0], [0.0, 0.0], [torch.inf, -3.0]]
    assert gradient.tolist() == [[0.5, 1.0], [0.5, 0.5], [1.0, 0.5]]


@pytest.mark.parametrize("cuts", [[], [1], [2]])
@pytest.mark.parametrize("minimum", [False, True])
def test_nan_wins_whichever_block_it_comes_in(path: str, cuts: list[int], minimum: bool) -> None:
    pattern = torch.ones(1, 3, dtype=torch.bool)
    out, _ = run(pattern, torch.tensor([[1.0, torch.nan], [torch.nan, 2.0], [3.0, 4.0]]), torch.ones(1, 2), minimum, cuts)
    assert out.isnan().all()


def test_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    pattern, features = torch.rand(400, 300) < 0.2, torch.randint(0, 50, (300, 70)).float()
    grad, results = torch.randn(400, 70), []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        results.append(run(pattern, features, grad, False, [100]))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_strided_features_and_accumulation(path: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pattern, wide = torch.rand(20, 30) < 0.3, torch.rand(30, 50, dtype=dtype)
    features, edges, grad = wide[:, 3:40], edges_of(pattern), torch.randn(20, 37, dtype=dtype)
    state = ExtremeState.start(20, 37, features)
    merge_extremes(edges, state, features)
    out = finish_extremes(state)
    expected, expected_gradient = reference(pattern, features, grad, False)
    assert torch.equal(out.double(), expected)
    back = torch.ones_like(wide)
    extremes_backward(edges, state, share_among_ties(state, grad), features, back[:, 3:40], accumulate=True)
    torch.testing.assert_close(back[:, 3:40].double(), expected_gradient + 1, rtol=1e-5, atol=1e-6)
    assert (back[:, :3] == 1).all()
    assert (back[:, 40:] == 1).all()


def test_bad_arguments_get_one_clear_line() -> None:
    edges = edges_of(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(MisuseError, match="the edges leave 3 sources, the matrix has 4 rows"):
        merge_extremes(edges, ExtremeState.start(2, 5, torch.zeros(0)), torch.zeros(4, 5))
    with pytest.raises(MisuseError, match=r"state.value must be float32 \[2, 5\]"):
        merge_extremes(edges, ExtremeState.start(2, 4, torch.zeros(0)), torch.zeros(3, 5))
    with pytest.raises(MisuseError, match=r"grad must be float32 \[2, 4\]"):
        share_among_ties(ExtremeState.start(2, 4, torch.zeros(0)), torch.zeros(2, 3))
