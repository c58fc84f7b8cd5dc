"""What operations read and write by name: buffers of the arena, and static feature rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from halocast.runtime.features import DenseRows, FeatureRows


@dataclass(frozen=True)
class Operands:
    """One rank's, by name."""

    buffers: Callable[[], Mapping[str, Tensor]]
    """Those of the phase that runs."""
    features: Mapping[str, FeatureRows]

    def dense(self, name: str) -> Tensor:
        """A buffer of the arena, or dense static features."""
        buffers = self.buffers()
        if name in buffers:
            return buffers[name]
        rows = self.features[name]
        assert isinstance(rows, DenseRows), "sparse features are only read through products"
        return rows.values

    def product(self, name: str, rows: slice, weight: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """``out (+)= name[rows] @ weight`` where `name` is a buffer or static feature rows."""
        buffers = self.buffers()
        if name not in buffers:
            self.features[name].product(rows, weight, out, accumulate=accumulate)
        elif accumulate:
            out.addmm_(buffers[name][rows], weight)
        else:
            torch.mm(buffers[name][rows], weight, out=out)

    def transposed_product(self, name: str, rows: slice, gradient: Tensor, out: Tensor) -> None:
        """``out = name[rows]ᵀ @ gradient``."""
        buffers = self.buffers()
        if name in buffers:
            torch.mm(buffers[name][rows].t(), gradient, out=out)
        else:
            self.features[name].transposed_product(rows, gradient, out)


def put(target: Tensor, value: Tensor | None, *, overwrite: bool) -> None:
    """Write or add a gradient; autograd gives None where the output does not depend on the input."""
    if overwrite:
        target.zero_() if value is None else target.copy_(value)
    elif value is not None:
        target.add_(value)
