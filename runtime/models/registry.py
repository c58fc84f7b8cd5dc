"""Layers by name: the built-in ones, and those of the user or of PyG."""

from __future__ import annotations

import importlib
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from halocast.errors import MisuseError, nearest
from halocast.runtime.models.attention import GAT, GATv2
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape
from halocast.runtime.models.layers import GCN, GraphSAGE, PyGLayer
from halocast.runtime.models.reductions import GIN, GraphSAGEMax
from halocast.runtime.models.relational import RGCN
from halocast.runtime.models.shapes import ATTENTION

BUILT_IN: dict[str, type[nn.Module]] = {
    "gcn": GCN,
    "sage": GraphSAGE,
    "sage-max": GraphSAGEMax,
    "gin": GIN,
    "gat": GAT,
    "gatv2": GATv2,
    "rgcn": RGCN,
}
"""By the name that ``--model`` takes."""
MEETING_EDGES = {"gat", "gatv2", "rgcn"}
"""Those that are told what the graph's edges carry."""


def build_layer(
    name: str,
    dim_in: int,
    dim_out: int,
    options: dict[str, Any],
    *,
    last: bool = False,
    edges: EdgeShape | None = NO_EDGE_DATA,
) -> nn.Module:
    """A built-in layer by name, or ``package.module:Class`` called as ``Class(dim_in, dim_out, **options)``.

    last: it is the network's last layer. edges: what the graph's edges carry; None: whatever the layer wants. Raises
    MisuseError for an unknown name, a module that does not import, or options the class does not take.
    """
    if name in BUILT_IN:
        _check_options(name, options)
        given = {**({"average": last} if name in ATTENTION else {}), **({"edges": edges} if name in MEETING_EDGES else {})}
        return BUILT_IN[name](dim_in, dim_out, **given, **options)
    if ":" not in name:
        raise MisuseError(f"unknown layer '{name}'{nearest(name, BUILT_IN)} (or your own, as package.module:Class)")
    module_name, _, class_name = name.partition(":")
    try:
        layer_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        remedy = "; pip install torch_geometric" if module_name.startswith("torch_geometric") else ""
        raise MisuseError(f"model.layer '{name}' cannot be imported: {error}{remedy}") from error
    try:
        layer = layer_class(dim_in, dim_out, **options)
    except TypeError as error:
        raise MisuseError(f"model.layer '{name}' does not take ({dim_in}, {dim_out}, {options}): {error}") from error
    except Exception as error:  # whatever a user's constructor raises
        raise MisuseError(f"model.layer '{name}' raised {type(error).__name__}: {error}") from error
    if not _is_pyg_convolution(layer):
        module: nn.Module = layer
        return module
    if getattr(layer, "add_self_loops", False):
        raise MisuseError(
            f"model.layer '{name}' would add self loops between unrelated rows; use --set model.options.add_self_loops=false"
        )
    return PyGLayer(layer)


def check_layer(
    name: str,
    dim_in: int,
    dim_out: int,
    options: dict[str, Any],
    *,
    last: bool = False,
    edges: EdgeShape | None = NO_EDGE_DATA,
) -> type[nn.Module]:
    """The type of what `build_layer` gives; raises what it raises. A built-in layer takes no memory."""
    with shapes_alone(name):
        return type(build_layer(name, dim_in, dim_out, options, last=last, edges=edges))


def shapes_alone(name: str) -> AbstractContextManager[object]:
    """Within it, layers called `name` are built without memory for parameters, where only types and shapes are asked for.

    Those of the user's own get theirs: a constructor may read values, or keep tensors for layers to come.
    """
    return torch.device("meta") if name in BUILT_IN else nullcontext()


def _check_options(name: str, options: dict[str, Any]) -> None:
    allowed = [key for key in _options(BUILT_IN[name]) if key not in ("average", "edges")]
    for key in options:
        if not allowed:
            raise MisuseError(f"model.options: layer '{name}' takes no options, got {', '.join(sorted(options))}")
        if key not in allowed:
            raise MisuseError(f"model.options.{key}: layer '{name}' has no such option{nearest(key, allowed)}")


def _options(layer: type[nn.Module]) -> list[str]:
    """Keyword-only parameters of the constructor, its bases' where it passes them on."""
    return [
        parameter.name
        for kind in layer.__mro__
        if "__init__" in vars(kind) and kind.__module__.startswith("halocast.")
        for parameter in inspect.signature(vars(kind)["__init__"]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def _is_pyg_convolution(layer: object) -> bool:
    return any(
        base.__module__.startswith("torch_geometric.") and base.__name__ == "MessagePassing" for base in type(layer).__mro__
    )
