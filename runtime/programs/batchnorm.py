"""Batch normalization over the nodes of the whole graph: statistics of every rank's own rows, summed over ranks.

Two passes over the rows, each followed by a small all-reduce: the sum, then the sums of what is left once the mean is taken
away and of its square. Var z = E[z²] − E[z]² in one pass loses all digits where the mean is large beside the deviation. The
second pass's plain sum corrects what rounding left of the mean (Chan, Golub and LeVeque, The American Statistician 37, 1983,
eq. 1.7). Halo rows that a rank computes itself are normalized with the same statistics and never counted in them.

The backward pass, g ↦ γ/σ (g − Σg/N − x̂ Σ(g x̂)/N), is linear in g: a rank's share of the gradient of halo rows enters both
sums, and what the sums take away is taken away from own rows alone, once for each node.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from halocast.traces.operations import AllReduce, Direction, Free, Keep, Operation, Part, Stage, Transform, Wait, Work

if TYPE_CHECKING:
    from halocast.runtime.programs.full import LayerProgram

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
Steps = Generator[Operation, Any, None]


def normalize_forward(layer: LayerProgram, *, training: bool) -> Steps:
    """From the pre-activation of all rows to the layer's output; in evaluation by the running statistics alone."""
    if not training:
        yield _transform(layer, Stage.NORMALIZE, FORWARD, layer.schedule.rows)
        return
    total, moments = f"total{layer.index}", f"moments{layer.index}"
    yield _keep(layer, FORWARD, total, 1)
    yield _transform(layer, Stage.SUMS, FORWARD, Part.OWN, target=total)
    yield from _sum_over_ranks(layer, FORWARD, total, 1)
    yield _keep(layer, FORWARD, moments, 2)
    yield _transform(layer, Stage.SQUARES, FORWARD, Part.OWN, source=total, target=moments)
    yield Free(layer.index, FORWARD, name=total)
    yield from _sum_over_ranks(layer, FORWARD, moments, 2)
    yield _transform(layer, Stage.NORMALIZE, FORWARD, layer.schedule.rows, source=moments)
    yield Free(layer.index, FORWARD, name=moments)


def normalize_backward(layer: LayerProgram) -> Steps:
    """From the gradient of what was normalized, which activation and dropout have let through, to the pre-activation's."""
    sums = f"gradient_sums{layer.index}"
    yield _keep(layer, BACKWARD, sums, 2)
    yield _transform(layer, Stage.SUMS, BACKWARD, layer.schedule.rows, target=sums)
    yield from _sum_over_ranks(layer, BACKWARD, sums, 2)
    yield _transform(layer, Stage.NORMALIZE, BACKWARD, layer.schedule.rows, source=sums)
    yield Free(layer.index, BACKWARD, name=sums)


def _sum_over_ranks(layer: LayerProgram, direction: Direction, name: str, rows: int) -> Steps:
    """The next operation needs the sum: nothing of this layer can run meanwhile."""
    if layer.view.world_size == 1:
        return
    values = rows * layer.spec.dim_out
    size = values * layer.view.value_bytes
    flight = yield AllReduce(layer.index, direction, work=Work(rows=values, bytes_out=size, bytes_in=size), source=name)
    yield Wait(layer.index, direction, flight=flight)


def _keep(layer: LayerProgram, direction: Direction, name: str, rows: int) -> Keep:
    dim = layer.spec.dim_out
    return Keep(
        layer.index, direction, work=Work(rows=rows, dim_out=dim, bytes_out=rows * dim * layer.view.value_bytes), name=name
    )


def _transform(
    layer: LayerProgram, stage: Stage, direction: Direction, part: Part, *, source: str = "", target: str = ""
) -> Transform:
    """`source` and `target` are statistics; rows are read and written where the layer keeps them."""
    dim = layer.spec.dim_out
    return Transform(
        layer.index,
        direction,
        part,
        Work(rows=layer.view.part.rows(part), dim_in=dim, dim_out=dim),
        stage=stage,
        source=source,
        preactivation=layer.preactivation,
        output=layer.output,
        gradient=layer.gradient,
        target=target,
    )
