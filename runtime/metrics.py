"""Accuracy, micro-F1 and ROC AUC of train, validation and test rows that are spread over ranks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor

from halocast.runtime.exchange.transport import Transport

SPLITS = ("train", "val", "test")
Scores = dict[str, float]
"""Metric by split; NaN where a split has no rows, or ROC AUC only one class."""


def evaluate_metric(metric: str, logits: Tensor, labels: Tensor, masks: dict[str, Tensor], transport: Transport) -> Scores:
    """The metric on every split over all ranks; every rank gets the same answer.

    logits: [own, classes]; labels: int64 [own] or uint8 [own, classes]; masks: bool [own] by split.
    """
    logits, labels = logits.cpu(), labels.cpu()
    measure = {"accuracy": _accuracy, "micro_f1": _micro_f1, "roc_auc": _roc_auc}[metric]
    return {split: measure(logits[masks[split]], labels[masks[split]], transport) for split in SPLITS}


def _accuracy(logits: Tensor, labels: Tensor, transport: Transport) -> float:
    """Share of rows whose largest logit is the label's; multi-label: share of right decisions."""
    right = (logits.argmax(1) == labels) if labels.dim() == 1 else ((logits > 0) == labels.bool())
    counts = torch.tensor([right.sum(), right.numel()], dtype=torch.float64)
    transport.all_reduce(counts)
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def _micro_f1(logits: Tensor, labels: Tensor, transport: Transport) -> float:
    """2 TP / (2 TP + FP + FN) over all decisions; for single labels the same as accuracy."""
    if labels.dim() == 1:
        return _accuracy(logits, labels, transport)
    predicted, actual = logits > 0, labels.bool()
    true_positives = (predicted & actual).sum()
    counts = torch.tensor([true_positives, predicted.sum() + actual.sum(), actual.numel()], dtype=torch.float64)
    transport.all_reduce(counts)
    if not counts[2]:
        return float("nan")
    return float(2 * counts[0] / counts[1]) if counts[1] else 0.0


def _roc_auc(logits: Tensor, labels: Tensor, transport: Transport) -> float:
    """Area under the ROC curve; multi-label: the mean over classes that have both outcomes."""
    if labels.dim() == 1:
        if logits.shape[1] != 2:
            raise ValueError("ROC AUC of single labels needs two classes")
        scores, targets = (logits[:, 1] - logits[:, 0]).unsqueeze(1), labels.unsqueeze(1)
    else:
        scores, targets = logits, labels
    table = _gather_on_first_rank(torch.cat([scores.double(), targets.double()], dim=1), transport)
    answer = torch.zeros(1, dtype=torch.float64)
    if transport.rank == 0:
        columns = table.shape[1] // 2
        areas = [_area_under_curve(table[:, column], table[:, columns + column] > 0.5) for column in range(columns)]
        known = [area for area in areas if not np.isnan(area)]
        answer[0] = float(np.mean(known)) if known else float("nan")
    transport.all_reduce(answer)
    return float(answer[0])


def _area_under_curve(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """By the rank-sum statistic, ties counted half (Hanley and McNeil, Radiology 1982)."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def _gather_on_first_rank(rows: Tensor, transport: Transport) -> npt.NDArray[np.float64]:
    """All ranks' rows [rows, dim], one below the other, on rank 0; an empty table elsewhere."""
    if transport.world_size == 1:
        return rows.numpy()
    lengths = torch.zeros(transport.world_size, dtype=torch.int64)
    lengths[transport.rank] = rows.shape[0]
    transport.all_reduce(lengths)
    if transport.rank != 0:
        if rows.shape[0]:
            transport.start_exchange([(0, rows.contiguous())], []).wait()
        return np.zeros((0, rows.shape[1]))
    received = [(peer, rows.new_empty(int(length), rows.shape[1])) for peer, length in enumerate(lengths) if peer and length]
    transport.start_exchange([], received).wait()
    return torch.cat([rows, *(block for _, block in received)]).numpy()
