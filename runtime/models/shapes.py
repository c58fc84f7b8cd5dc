"""The shapes of the built-in models' layers, without torch: what programs need to know of a network that nobody builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from halocast.errors import MisuseError
from halocast.runtime.config import ModelConfig
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape, attention_edge_dim, chosen_bases, chosen_relations
from halocast.traces.workload import LayerSpec

SELF_LOOP = {"gcn": True, "sage": False}
SELF_WEIGHT = {"gcn": False, "sage": True}
ATTENTION = ("gat", "gatv2")
"""Built-in layers that weigh neighbours against each other; their last layer averages its heads."""
MOST_HEADS = 64
HEADS = 4
"""Of attention, where the run does not say."""


def built_in_specs(
    model: ModelConfig, dim_in: int, classes: int, edges: EdgeShape = NO_EDGE_DATA
) -> tuple[LayerSpec, ...] | None:
    """What `GraphNetwork.specs` gives for a model of built-in layers; None for a layer of one's own.

    edges: what the graph's edges carry, by default nothing. Raises MisuseError for layers that want more than that.
    """
    if model.layer not in LAYERS:
        return None
    widths = [dim_in, *[model.hidden] * (model.layers - 1), classes]
    specs = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        last = index == model.layers - 1
        fields, parameters = LAYERS[model.layer](width_in, width_out, model.options, last, edges)
        specs.append(
            layer_spec(
                width_in,
                width_out,
                fields,
                last=last,
                norm=model.norm,
                dropout=model.dropout,
                residual=model.residual and index > 0,
                parameters=parameters + (2 * width_out if not last and model.norm != "none" else 0),
            )
        )
    return tuple(specs)


def layer_spec(
    dim_in: int,
    dim_out: int,
    fields: Mapping[str, Any],
    *,
    last: bool,
    norm: str,
    dropout: float,
    residual: bool,
    parameters: int,
) -> LayerSpec:
    """A layer of the network; `fields` are its own, the rest is what surrounds it."""
    spec = LayerSpec(
        dim_in=dim_in,
        dim_out=dim_out,
        norm=norm != "none" and not last,
        batch_norm=norm == "batch" and not last,
        activation=not last,
        dropout=0.0 if last else dropout,
        residual=residual and dim_in == dim_out,
        parameters=parameters,
        **fields,
    )
    if spec.is_blockwise and spec.residual:  # the inputs are added after the merged rows, which backward may read
        return replace(spec, finishes=True, finish_reads_inputs=True)
    return spec


def attention_shape(name: str, dim_in: int, dim_out: int, *, heads: int, average: bool, edge_dim: int = 0) -> dict[str, Any]:
    """Attention's fields of `LayerSpec`: values and half-logits travel together, maximum and sum are kept by head.

    Edge features stay where their edge ends: each block's make a logit a head, which lasts as long as the block.

    Raises MisuseError for heads that do not divide the width.
    """
    if not isinstance(heads, int) or not 1 <= heads <= MOST_HEADS:
        raise MisuseError(f"model.options.heads = {heads!r} is out of range; allowed: 1 to {MOST_HEADS}")
    if not average and dim_out % heads:
        near = min((each for each in range(1, MOST_HEADS + 1) if dim_out % each == 0), key=lambda each: abs(each - heads))
        raise MisuseError(
            f"model.options.heads = {heads} does not divide the width {dim_out} of layer '{name}'; "
            f"the nearest that does is {near}"
        )
    width = heads * dim_out if average else dim_out
    second = name == "gatv2"
    return {
        "linear_aggregation": False,
        "bias": True,
        "reduction": "attention v2" if second else "attention",
        "projects": True,
        "message_dim": width if second else width + heads,
        "query_dim": width if second else heads,
        "reduced_dim": width,
        "state_dim": 2 * heads,
        "context_dim": 4 * heads,
        "refetches": True,
        "merge_parameters": second or edge_dim > 0,
        "backward_reads_output": True,
        "finishes": average and heads > 1,
        "finish_flops": width if average and heads > 1 else 0,
        "merge_flops": 4 * width if second else 2 * width + 8 * heads + 2 * edge_dim * heads,
        "edge_dim": edge_dim,
        "entry_dim": heads if edge_dim else 0,
    }


def maximum_shape(dim_in: int, dim_out: int) -> dict[str, Any]:
    """GraphSAGE-max's fields of `LayerSpec`: plain rows travel, and how many neighbours tie is kept by column."""
    return {
        "linear_aggregation": False,
        "bias": True,
        "reduction": "maximum",
        "message_dim": dim_in,
        "reduced_dim": dim_in,
        "state_dim": dim_in,
        "refetches": True,
        "merge_reads_reduced": True,
        "finishes": True,
        "finish_reads_inputs": True,
        "finish_flops": 4 * dim_in * dim_out,
        "merge_flops": dim_in,
    }


def sum_shape(dim_in: int, dim_out: int) -> dict[str, Any]:
    """GIN's fields of `LayerSpec`: a plain sum of plain rows needs nothing of them in backward."""
    return {
        "linear_aggregation": False,
        "bias": True,
        "reduction": "sum",
        "message_dim": dim_in,
        "reduced_dim": dim_in,
        "finishes": True,
        "finish_reads_inputs": True,
        "finish_flops": 2 * dim_in * dim_out + 2 * dim_out * dim_out,
        "merge_flops": dim_in,
    }


def relational_shape(dim_in: int, dim_out: int, *, relations: int) -> dict[str, Any]:
    """R-GCN's fields of `LayerSpec`: plain rows travel and are averaged by relation, relations side by side."""
    return {
        "linear_aggregation": False,
        "bias": True,
        "reduction": "mean by relation",
        "message_dim": dim_in,
        "reduced_dim": relations * dim_in,
        "finishes": True,
        "finish_reads_inputs": True,
        "finish_flops": 2 * (relations + 1) * dim_in * dim_out,
        "merge_flops": 2 * dim_in,
        "relations": relations,
    }


Fields = tuple[dict[str, Any], int]
"""A layer's own fields of `LayerSpec`, and how many parameters it has."""


def _linear(name: str, dim_in: int, dim_out: int, options: Mapping[str, Any], last: bool, edges: EdgeShape | None) -> Fields:
    matrices = 2 if SELF_WEIGHT[name] else 1
    fields = {"self_loop": SELF_LOOP[name], "self_weight": SELF_WEIGHT[name]}
    return fields, matrices * dim_in * dim_out + dim_out


def check_attention_options(*, slope: object, attention_dropout: object, self_loops: object) -> None:
    """Raises MisuseError for numbers that are none or out of range, and for self_loops that are neither true nor false."""
    for name, value, below in (("slope", slope, False), ("attention_dropout", attention_dropout, True)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0.0 <= value <= 1.0 or (below and value == 1.0):  # type: ignore[operator]
            raise MisuseError(f"model.options.{name} = {value!r} is out of range; allowed: 0 to {'below ' if below else ''}1")
    if not isinstance(self_loops, bool):
        raise MisuseError(f"model.options.self_loops = {self_loops!r} is not allowed; allowed: true, false")


def _attention(name: str, dim_in: int, dim_out: int, options: Mapping[str, Any], last: bool, edges: EdgeShape | None) -> Fields:
    edge_dim = attention_edge_dim(name, options.get("edge_features", False), edges)
    fields = attention_shape(name, dim_in, dim_out, heads=options.get("heads", HEADS), average=last, edge_dim=edge_dim)
    check_attention_options(
        slope=options.get("slope", 0.2),
        attention_dropout=options.get("attention_dropout", 0.0),
        self_loops=options.get("self_loops", True),
    )
    fields["self_loop"] = options.get("self_loops", True)
    width = fields["reduced_dim"]
    of_edges = (edge_dim + 1) * width if edge_dim else 0
    return fields, (dim_in * width + 2 * width + of_edges if name == "gat" else 2 * dim_in * width + width) + dim_out


def _maximum(dim_in: int, dim_out: int, options: Mapping[str, Any], last: bool, edges: EdgeShape | None) -> Fields:
    return maximum_shape(dim_in, dim_out), 2 * dim_in * dim_out + dim_out


def _sum(dim_in: int, dim_out: int, options: Mapping[str, Any], last: bool, edges: EdgeShape | None) -> Fields:
    return sum_shape(dim_in, dim_out), dim_in * dim_out + dim_out * dim_out + 2 * dim_out + 1


def _relational(dim_in: int, dim_out: int, options: Mapping[str, Any], last: bool, edges: EdgeShape | None) -> Fields:
    relations = len(chosen_relations(options.get("relations"), edges))
    bases = chosen_bases(options.get("bases"))
    matrices = relations if bases is None else bases
    coefficients = 0 if bases is None else relations * bases
    parameters = (matrices + 1) * dim_in * dim_out + coefficients + dim_out
    return relational_shape(dim_in, dim_out, relations=relations), parameters


LAYERS: dict[str, Callable[[int, int, Mapping[str, Any], bool, EdgeShape | None], Fields]] = {
    "gcn": partial(_linear, "gcn"),
    "sage": partial(_linear, "sage"),
    "sage-max": _maximum,
    "gin": _sum,
    "gat": partial(_attention, "gat"),
    "gatv2": partial(_attention, "gatv2"),
    "rgcn": _relational,
}
"""By the name that ``--model`` takes."""
