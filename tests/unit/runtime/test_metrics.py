"""Metrics over ranks equal scikit-learn's over all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from tests.support.threads import ThreadTransport, run_ranks

from halocast.runtime.metrics import evaluate_metric

ROWS = 240


def over_ranks(
    metric: str, logits: torch.Tensor, labels: torch.Tensor, masks: dict[str, torch.Tensor], ranks: int
) -> list[dict[str, float]]:
    pieces = torch.tensor_split(torch.arange(len(logits)), ranks)

    def work(transport: ThreadTransport) -> dict[str, float]:
        rows = pieces[transport.rank]
        mine = {split: mask[rows] for split, mask in masks.items()}
        return evaluate_metric(metric, logits[rows], labels[rows], mine, transport)

    return run_ranks(ranks, work)[0]


def masks_of(rows: int) -> dict[str, torch.Tensor]:
    split = torch.arange(rows) % 3
    return {name: split == number for number, name in enumerate(("train", "val", "test"))}


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_accuracy(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(ROWS, 4, generator=generator), torch.randint(0, 4, (ROWS,), generator=generator)
    masks = masks_of(ROWS)
    for answer in over_ranks("accuracy", logits, labels, masks, ranks):
        for split, mask in masks.items():
            assert answer[split] == pytest.approx(accuracy_score(labels[mask], logits[mask].argmax(1)))


@pytest.mark.parametrize("ranks", [1, 3])
def test_micro_f1_of_multi_label(ranks: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(ROWS, 6, generator=generator)
    labels = torch.randint(0, 2, (ROWS, 6), generator=generator).to(torch.uint8)
    masks = masks_of(ROWS)
    for answer in over_ranks("micro_f1", logits, labels, masks, ranks):
        for split, mask in masks.items():
            assert answer[split] == pytest.approx(f1_score(labels[mask], (logits[mask] > 0).numpy(), average="micro"))


@pytest.mark.parametrize("ranks", [1, 4])
def test_roc_auc_with_ties(ranks: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randint(-3, 4, (ROWS, 2), generator=generator).float()
    labels = torch.randint(0, 2, (ROWS,), generator=generator)
    masks = masks_of(ROWS)
    for answer in over_ranks("roc_auc", logits, labels, masks, ranks):
        for split, mask in masks.items():
            scores = logits[mask, 1] - logits[mask, 0]
            assert answer[split] == pytest.approx(roc_auc_score(labels[mask], scores))


def test_multi_label_roc_auc_leaves_out_classes_with_one_outcome() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(ROWS, 3, generator=generator)
    labels = torch.randint(0, 2, (ROWS, 3), generator=generator).to(torch.uint8)
    labels[:, 1] = 1
    masks = masks_of(ROWS)
    answer = over_ranks("roc_auc", logits, labels, masks, 2)[0]
    for split, mask in masks.items():
        areas = [roc_auc_score(labels[mask, column], logits[mask, column]) for column in (0, 2)]
        assert answer[split] == pytest.approx(np.mean(areas))


def test_an_empty_split_is_not_a_number() -> None:
    masks = {**masks_of(9), "val": torch.zeros(9, dtype=torch.bool)}
    for metric, columns in (("accuracy", 3), ("roc_auc", 2)):
        answer = over_ranks(metric, torch.randn(9, columns), torch.arange(9) % columns, masks, 2)[0]
        assert np.isnan(answer["val"])
        assert not np.isnan(answer["train"])
