"""The shapes of the built-in models' layers, without torch: what programs need to know of a network that nobody builds."""

from __future__ import annotations

from itertools import pairwise

from halocast.runtime.config import ModelConfig
from halocast.traces.workload import LayerSpec

SELF_LOOP = {"gcn": True, "sage": False}
SELF_WEIGHT = {"gcn": False, "sage": True}


def built_in_specs(model: ModelConfig, dim_in: int, classes: int) -> tuple[LayerSpec, ...] | None:
    """What `GraphNetwork.specs` gives for a model of built-in layers; None for a layer of one's own."""
    if model.layer not in SELF_LOOP:
        return None
    widths = [dim_in, *[model.hidden] * (model.layers - 1), classes]
    specs = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        last = index == model.layers - 1
        norm = not last and model.norm != "none"
        matrices = 2 if SELF_WEIGHT[model.layer] else 1
        specs.append(
            LayerSpec(
                dim_in=width_in,
                dim_out=width_out,
                self_loop=SELF_LOOP[model.layer],
                self_weight=SELF_WEIGHT[model.layer],
                norm=norm,
                batch_norm=norm and model.norm == "batch",
                activation=not last,
                dropout=0.0 if last else model.dropout,
                residual=model.residual and index > 0 and width_in == width_out,
                parameters=matrices * width_in * width_out + width_out + (2 * width_out if norm else 0),
            )
        )
    return tuple(specs)
