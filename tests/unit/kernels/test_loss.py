"""Losses and their gradients against torch's own, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from halocast.errors import MisuseError
from halocast.runtime import kernels

ROWS = 3000


def near(dtype: torch.dtype) -> dict[str, Any]:
    return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 47, 121])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_cross_entropy(path: str, dtype: torch.dtype, classes: int, spread: float) -> None:
    torch.manual_seed(classes)
    logits = (torch.randn(ROWS, classes, dtype=dtype) * spread).double().requires_grad_()
    targets = torch.randint(0, classes, (ROWS,))
    rows = torch.randperm(ROWS)[:2100]
    targets[torch.ones(ROWS, dtype=torch.bool).index_fill_(0, rows, False)] = -1  # unlisted labels are never read
    expected = functional.cross_entropy(logits[rows], targets[rows], reduction="sum")
    torch.autograd.backward(expected / 7)
    plain = logits.detach().to(dtype)
    grad = torch.full_like(plain, 5.0)
    assert kernels.cross_entropy(plain, targets, rows, grad, scale=1 / 7) == pytest.approx(
        expected.item(), rel=near(dtype)["rtol"], abs=1e-9
    )
    torch.testing.assert_close(grad.double(), logits.grad, **near(dtype))
    kernels.cross_entropy(plain, targets, rows, plain, scale=1 / 7)  # in place
    torch.testing.assert_close(plain, grad, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [1, 3, 16, 121])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_bce(path: str, dtype: torch.dtype, classes: int, spread: float) -> None:
    torch.manual_seed(classes)
    logits = (torch.randn(ROWS, classes, dtype=dtype) * spread).double().requires_grad_()
    targets = torch.randint(0, 2, (ROWS, classes), dtype=torch.uint8)
    rows = torch.randperm(ROWS)[:2100]
    expected = functional.binary_cross_entropy_with_logits(logits[rows], targets[rows].double(), reduction="sum")
    torch.autograd.backward(expected / 7)
    plain = logits.detach().to(dtype)
    grad = torch.full_like(plain, 5.0)
    assert kernels.bce(plain, targets, rows, grad, scale=1 / 7) == pytest.approx(expected.item(), rel=near(dtype)["rtol"])
    torch.testing.assert_close(grad.double(), logits.grad, **near(dtype))
    kernels.bce(plain, targets, rows, plain, scale=1 / 7)  # in place
    torch.testing.assert_close(plain, grad, rtol=0, atol=0)


def test_no_listed_rows_give_no_loss_and_no_gradient(path: str) -> None:
    none, logits, grad = torch.zeros(0, dtype=torch.int64), torch.rand(5, 3), torch.ones(5, 3)
    assert kernels.cross_entropy(logits, torch.zeros(5, dtype=torch.int64), none, grad) == 0.0
    assert torch.equal(grad, torch.zeros(5, 3))
    assert kernels.bce(logits, torch.zeros(5, 3, dtype=torch.uint8), none, grad.fill_(1.0)) == 0.0
    assert torch.equal(grad, torch.zeros(5, 3))


def test_extreme_logits(path: str) -> None:
    """Certain and impossible classes give exact zeros and ones, never NaN; NaN stays visible."""
    infinity = float("inf")
    logits = torch.tensor([[300.0, -300.0, -infinity], [0.0, float("nan"), 0.0]])
    grad = torch.empty_like(logits)
    all_rows, targets = torch.arange(2), torch.tensor([0, 0])
    assert kernels.cross_entropy(logits, targets, all_rows[:1], grad) == 0.0
    assert grad[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.tensor(kernels.cross_entropy(logits, targets, all_rows, grad)).isnan()
    assert grad[1].isnan().all()
    sure = torch.tensor([[200.0, -200.0]])
    assert kernels.bce(sure, torch.tensor([[1, 0]], dtype=torch.uint8), all_rows[:1], grad[:1, :2]) == 0.0
    assert grad[0, :2].tolist() == [0.0, 0.0]
    assert kernels.bce(sure, torch.tensor([[0, 1]], dtype=torch.uint8), all_rows[:1], grad[:1, :2]) == 400.0
    assert grad[0, :2].tolist() == [1.0, -1.0]


def test_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    logits, rows = torch.randn(ROWS * 3, 20), torch.randperm(ROWS * 3)
    classes, labels = torch.randint(0, 20, (ROWS * 3,)), torch.randint(0, 2, (ROWS * 3, 20), dtype=torch.uint8)
    for measure, targets in ((kernels.cross_entropy, classes), (kernels.bce, labels)):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(measure(logits, targets, rows, torch.empty_like(logits)))
        assert results[0] == results[1] == results[2]


def test_bad_target_names_its_row(path: str) -> None:
    logits, rows = torch.rand(5, 3), torch.arange(5)
    for bad in (3, -1):
        targets = torch.tensor([0, 1, 2, bad, 0])
        with pytest.raises(MisuseError, match=rf"row 3 has target {bad}, which is not one of the 3 classes \(0 to 2\)"):
            kernels.cross_entropy(logits, targets, rows, torch.empty(5, 3))


def test_bad_arguments_get_one_clear_line() -> None:
    logits, targets = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    for rows, words in (
        ([0, 1, 0], r"rows\[2\] is 0, a repeat"),
        ([0, 5], r"rows\[1\] is 5"),
        ([-1], r"rows\[0\] is -1"),
    ):
        with pytest.raises(MisuseError, match=words):
            kernels.cross_entropy(logits, targets, torch.tensor(rows), torch.empty(5, 3))
    with pytest.raises(MisuseError, match=r"targets must be int64 \[5\]"):
        kernels.cross_entropy(logits, targets.int(), torch.arange(5), torch.empty(5, 3))
    with pytest.raises(MisuseError, match=r"targets must be uint8 \[5, 3\]"):
        kernels.bce(logits, torch.zeros(5, 3), torch.arange(5), torch.empty(5, 3))
    with pytest.raises(MisuseError, match="logits have no columns"):
        kernels.cross_entropy(torch.rand(5, 0), targets, torch.arange(5), torch.empty(5, 0))
