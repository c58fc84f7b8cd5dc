"""The fused epilogue against torch's own operators and autograd; the mask comes from the Philox reference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.kernels.philox_reference import reference_words
from torch import Tensor
from torch.nn import functional

from halocast.errors import MisuseError
from halocast.runtime import kernels

STREAM = kernels.Stream(seed=0x1234_5678_9ABC, epoch=3, layer=1)
STEPS = list(itertools.product([False, True], repeat=4))
ROWS = 67


def nodes(count: int) -> Tensor:
    return torch.arange(count) * 1_000_003 + 5


def mask(dropout: kernels.Dropout, count: int, dim: int) -> Tensor:
    words = reference_words(dropout.stream, nodes(count).tolist(), dim)
    return torch.from_numpy(words >= dropout.probability * 2.0**32)


def reference(
    z: Tensor, bias: Tensor | None, affine: tuple[Tensor, Tensor] | None, relu: bool, dropout: kernels.Dropout | None
) -> Tensor:
    t = z if bias is None else z + bias
    if affine is not None:
        t = functional.layer_norm(t, t.shape[1:], *affine, eps=1e-5)
    if relu:
        t = functional.relu(t)
    if dropout is not None:
        t = t * mask(dropout, *t.shape) / (1 - dropout.probability)
    return t


def normalization(count: int, gamma: Tensor, beta: Tensor) -> kernels.Normalization:
    return kernels.Normalization(gamma, beta, torch.zeros(count, dtype=gamma.dtype), torch.zeros(count, dtype=gamma.dtype))


@pytest.mark.parametrize("dim", [1, 3, 17, 128, 602])
@pytest.mark.parametrize(("with_bias", "with_norm", "relu", "drop"), STEPS)
def test_forward_and_backward_equal_autograd(
    path: str, dtype: torch.dtype, dim: int, with_bias: bool, with_norm: bool, relu: bool, drop: bool
) -> None:
    torch.manual_seed(dim)
    z = torch.randn(ROWS, dim, dtype=dtype)
    bias, gamma, beta = (torch.nn.Parameter(torch.randn(dim, dtype=dtype)) for _ in range(3))
    grad = torch.randn(ROWS, dim, dtype=dtype)
    dropout = kernels.Dropout(0.3, STREAM) if drop else None
    norm = normalization(ROWS, gamma, beta) if with_norm else None
    out = torch.full_like(z, 9.0)
    kernels.epilogue_forward(
        z, out, bias=bias if with_bias else None, normalization=norm, relu=relu, dropout=dropout, nodes=nodes(ROWS)
    )

    wide = [t.detach().double().clone().requires_grad_() for t in (z, bias, gamma, beta)]
    affine = (wide[2], wide[3]) if with_norm else None
    expected = reference(wide[0], wide[1] if with_bias else None, affine, relu, dropout)
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(out.double(), expected.detach(), **near)

    # Gradients only compare where both agree on which units are live.
    assert ((out > 0) == (expected > 0)).all()
    torch.autograd.backward(expected, grad.double())
    bias_sum, gamma_sum, beta_sum = torch.full((3, dim), 0.5, dtype=dtype)
    sums = kernels.EpilogueGradients(bias_sum, *((gamma_sum, beta_sum) if with_norm else ()))
    kernels.epilogue_backward(
        grad, out=out, z=z, bias=bias if with_bias else None, normalization=norm, relu=relu, dropout=dropout,
        nodes=nodes(ROWS), gradients=sums,
    )  # fmt: skip
    if with_norm and dim == 1:  # the true gradient is 0 and both sides are round-off times rstd (up to 316)
        near = {"rtol": 0.0, "atol": 1e-2 if dtype == torch.float32 else 1e-10}
    torch.testing.assert_close(grad.double(), wide[0].grad, **near)
    near["atol"] *= 20  # sums over the rows
    if with_bias:
        torch.testing.assert_close(bias_sum.double() - 0.5, wide[1].grad, **near)
    if with_norm:
        torch.testing.assert_close(gamma_sum.double() - 0.5, wide[2].grad, **near)
        torch.testing.assert_close(beta_sum.double() - 0.5, wide[3].grad, **near)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.25, 0.5, 0.999, 1 - 1e-12])
def test_mask_and_scale(path: str, probability: float) -> None:
    dropout = kernels.Dropout(probability, STREAM)
    out = torch.empty(50, 77, dtype=torch.float64)
    kernels.epilogue_forward(torch.ones_like(out), out, dropout=dropout, nodes=nodes(50))
    expected = mask(dropout, 50, 77).double() / (1 - probability)
    torch.testing.assert_close(out, expected, rtol=1e-15, atol=0)


def test_in_place_and_strided(path: str) -> None:
    torch.manual_seed(0)
    wide = torch.randn(40, 90)
    z, bias = wide[:, 10:75], torch.randn(65)
    expected = torch.relu(z + bias)
    before = wide.clone()
    kernels.epilogue_forward(z, z, bias=bias, relu=True)
    torch.testing.assert_close(z, expected, rtol=0, atol=0)
    assert torch.equal(wide[:, :10], before[:, :10])
    assert torch.equal(wide[:, 75:], before[:, 75:])


def test_blocks_of_rows_make_the_whole(path: str) -> None:
    torch.manual_seed(0)
    z, gamma, beta = torch.randn(30, 20), torch.randn(20), torch.randn(20)
    dropout, whole, parts = kernels.Dropout(0.5, STREAM), torch.empty(30, 20), torch.empty(30, 20)
    norm = normalization(30, gamma, beta)
    kernels.epilogue_forward(z, whole, normalization=norm, dropout=dropout, nodes=nodes(30))
    for first, last in ((0, 11), (11, 11), (11, 30)):
        rows = slice(first, last)
        block = kernels.Normalization(gamma, beta, norm.mean[rows], norm.rstd[rows])
        kernels.epilogue_forward(z[rows], parts[rows], normalization=block, dropout=dropout, nodes=nodes(30)[rows])
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_infinity_and_nan_pass_through(path: str) -> None:
    z = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0, -1.0]])
    out = kernels.epilogue_forward(z, torch.empty_like(z), relu=True)
    torch.testing.assert_close(out, torch.relu(z), equal_nan=True)
    grad = kernels.epilogue_backward(torch.ones_like(z), out=out, relu=True)
    assert grad.tolist() == [[1.0, 1.0, 0.0, 1.0, 0.0]]


def test_sums_are_written_or_added(path: str) -> None:
    grad = torch.ones(5, 3)
    bias = torch.full((3,), 10.0)
    kernels.epilogue_backward(grad.clone(), gradients=kernels.EpilogueGradients(bias=bias, accumulate=False))
    assert bias.tolist() == [5.0] * 3
    kernels.epilogue_backward(grad.clone(), gradients=kernels.EpilogueGradients(bias=bias))
    assert bias.tolist() == [10.0] * 3
    kernels.epilogue_backward(torch.ones(0, 3), gradients=kernels.EpilogueGradients(bias=bias, accumulate=False))
    assert bias.tolist() == [0.0] * 3


def test_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    count, dim = 5000, 33
    z, gamma, beta, bias, grad = (torch.randn(s) for s in ((count, dim), (dim,), (dim,), (dim,), (count, dim)))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        norm, sums = normalization(count, gamma, beta), torch.zeros(3, dim)
        steps: dict[str, Any] = {
            "bias": bias,
            "normalization": norm,
            "relu": True,
            "dropout": kernels.Dropout(0.5, STREAM),
        }
        out = kernels.epilogue_forward(z, torch.empty_like(z), nodes=nodes(count), **steps)
        back = kernels.epilogue_backward(grad.clone(), out=out, z=z, gradients=kernels.EpilogueGradients(*sums), **steps)
        results.append([out, back, sums])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_same_mask_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    z, dropout, before = torch.ones(200, 130), kernels.Dropout(0.4, STREAM), kernels.isa()
    kept = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        kept.append(kernels.epilogue_forward(z, torch.empty_like(z), dropout=dropout, nodes=nodes(200)))
    kernels.set_isa(before)
    monkeypatch.setattr(kernels, "is_native", lambda tensor: False)
    kept.append(kernels.epilogue_forward(z, torch.empty_like(z), dropout=dropout, nodes=nodes(200)))
    assert all(torch.equal(kept[0], other) for other in kept[1:])
    assert np.isclose((kept[0] > 0).float().mean().item(), 0.6, atol=0.02)


def test_bad_arguments_get_one_clear_line() -> None:
    z, dropout = torch.rand(4, 3), kernels.Dropout(0.5, STREAM)
    with pytest.raises(MisuseError, match=r"probability 1\.0 is out of range"):
        kernels.Dropout(1.0, STREAM)
    with pytest.raises(MisuseError, match="dropout needs nodes"):
        kernels.epilogue_forward(z, z, dropout=dropout)
    with pytest.raises(MisuseError, match=r"nodes must be int64 \[4\]"):
        kernels.epilogue_forward(z, z, dropout=dropout, nodes=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(MisuseError, match=r"bias must be float32 \[3\]"):
        kernels.epilogue_forward(z, z, bias=torch.rand(4))
    with pytest.raises(MisuseError, match=r"needed with relu.* is missing"):
        kernels.epilogue_backward(z, relu=True)
    with pytest.raises(MisuseError, match=r"needed with a normalization.* is missing"):
        kernels.epilogue_backward(z, normalization=normalization(4, torch.rand(3), torch.rand(3)))
    with pytest.raises(MisuseError, match="gradients for gamma or beta need a normalization"):
        kernels.epilogue_backward(z, gradients=kernels.EpilogueGradients(gamma=torch.rand(3)))
    with pytest.raises(MisuseError, match=r"normalization\.mean must be float32 \[4\]"):
        kernels.epilogue_forward(z, z, normalization=normalization(5, torch.rand(3), torch.rand(3)))
