"""Prices of many operations at once: what `Costs.price` says of each, for costs that differ while the programs do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from halocast.simulator.costs import OUTSIDE, SLACK, TERMS, UNKNOWN_DIMS, Costs, LinearCost, class_of, messages_of, terms
from halocast.traces.operations import Operation, Wait

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OperationTable:
    """Operations by class, and the work of each."""

    count: int
    """Of all operations, waits included, which cost nothing."""
    classes: tuple[Operation, ...]
    """One operation of each class."""
    members: tuple[Ints, ...]
    """By class: which operations."""
    work: tuple[Floats, ...]
    """By class: [members, TERMS]."""

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> OperationTable:
        found: dict[tuple[object, ...], tuple[Operation, list[int]]] = {}
        for index, operation in enumerate(operations):
            if isinstance(operation, Wait):
                continue
            work = operation.work
            key = (
                type(operation), operation.detail, operation.direction, operation.part, work.dim_in, work.dim_out, work.bits
            )  # fmt: skip
            found.setdefault(key, (operation, []))[1].append(index)
        return cls(
            count=len(operations),
            classes=tuple(operation for operation, _ in found.values()),
            members=tuple(np.array(indices) for _, indices in found.values()),
            work=tuple(
                np.array([terms(operations[index].work, messages_of(operations[index])) for index in indices])
                for _, indices in found.values()
            ),
        )

    def price(self, costs: Costs, fingerprint: str, ranks: int) -> tuple[Floats, tuple[str, ...]]:
        """[operations] seconds alone on a device, and why any is extrapolated, in the order of the operations.

        Raises UncalibratedError for an operation of a kind that no run did.
        """
        seconds = np.zeros(self.count)
        reasons: list[tuple[int, str]] = []
        for operation, members, work in zip(self.classes, self.members, self.work, strict=True):
            model, of_class = costs.models_of(operation, fingerprint, ranks)
            for term, coefficient in model.coefficients.items():
                seconds[members] += coefficient * work[:, TERMS.index(term)]
            if not of_class:
                reasons.append((int(members[0]), f"{class_of(operation)}: {UNKNOWN_DIMS}"))
                continue
            outside = ~np.any([_covers(each, work) for each in of_class], axis=0)
            if outside.any():
                reasons.append((int(members[outside.argmax()]), f"{class_of(operation)}: {OUTSIDE}"))
        moved = (costs.moved,) if costs.moved else ()
        return seconds, (*moved, *(text for _, text in sorted(reasons)))


def _covers(model: LinearCost, work: Floats) -> npt.NDArray[np.bool_]:
    """[members] as `LinearCost.covers` says of each."""
    inside = np.ones(len(work), dtype=bool)
    for column, term in enumerate(TERMS):
        if term in model.low:
            values = work[:, column]
            inside &= (model.low[term] * (1.0 - SLACK) <= values) & (values <= model.high[term] * (1.0 + SLACK))
    return inside
