"""Export a model's graph with ``torch.export`` and find the operations that compute each layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from rankfold._tensors import copied, detached
from rankfold.batches import arguments
from rankfold.errors import ModelError
from rankfold.inventory.running import describe, on_device_of, undisturbed
from rankfold.inventory.sharing import Range, labeled_ranges, memory_range, overlapping, storage_pointer
from rankfold.inventory.static import scan, weight_memory

PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
        "linear", "addmm", "mm", "matmul", "addmv", "mv", "bmm", "baddbmm",
    )
)  # fmt: skip
"""Operations that multiply by a layer's weight. An embedding that shares the weight does not."""


_ADVICE = (
    "A bound on ram needs the model's graph, because the peak depends on the order of all operations. Bound other "
    "resources, or remove the unsupported code from the model."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportedGraph:
    """The computation of a model on an example input.

    Parameters
    ----------
    graph : torch.fx.Graph
        ATen operations; the ``meta["val"]`` of each node is a fake tensor.
    constants : frozenset of str
        Names of the placeholders that are parameters, buffers or other constants.
    users : dict of str to tuple of str
        By node name, the layers that the node computes: one, or several input projections of an
        ``nn.MultiheadAttention`` in a single product.
    """

    graph: fx.Graph
    constants: frozenset[str]
    users: Mapping[str, tuple[str, ...]]


def export_graph(model: nn.Module, example_input: Any) -> ExportedGraph:
    """Export a model in eval mode and find its layers in the graph, by the memory of their weights.

    The model is traced once on fake tensors, without copying its weights, and left unchanged. Layers are identified by
    memory, not by name, so tied weights, repeated calls and weights computed by a parametrization are found.
    `example_input` is that of `call_example`.

    Raises
    ------
    ModelError
        If ``torch.export`` cannot trace the model.
    """
    entries, _ = scan(model)
    ranges = labeled_ranges((tensor, entries[i].info.name) for tensor, i in weight_memory(entries))
    with undisturbed(model):
        # A slice of a larger tensor would have a size that is not known.
        program = trace(model, copied(detached(on_device_of(model, example_input))), advice=_ADVICE)
        signature = program.graph_signature
        constants = [spec for spec in signature.input_specs if spec.kind is not InputKind.USER_INPUT]
        tensors: dict[str, Tensor] = {}
        for spec in constants:
            tensor = program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))
            if isinstance(tensor, Tensor):
                tensors[spec.arg.name] = tensor
        names = frozenset(spec.arg.name for spec in constants)
        return ExportedGraph(graph=program.graph, constants=names, users=_users(program.graph, names, tensors, ranges))


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block without warnings, such as those of torch's exporters about their internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace(model: nn.Module, example: Any, *, advice: str, shapes: Any = None) -> torch.export.ExportedProgram:
    """Return the program of a model on an example input, on the model's device, in the model's present mode.

    `shapes` are torch's ``dynamic_shapes``; `advice` ends the error's message.

    Raises
    ------
    ModelError
        If ``torch.export`` cannot trace the model.
    """
    args, kwargs = arguments(example)
    try:
        with quiet():
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the model's own code may raise anything on fake tensors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"the model cannot be exported on the example input, {describe(example)}: torch.export raised "
            f"{type(error).__name__}: {reason}\n{advice}"
        ) from error


def operator_name(node: fx.Node) -> str:
    """Return the name of a node's operator with its namespace, such as ``"aten::conv2d"``; "" if it has none."""
    return str(getattr(getattr(node.target, "_schema", None), "name", ""))


def _users(
    graph: fx.Graph, constants: frozenset[str], tensors: Mapping[str, Tensor], ranges: Mapping[int, list[Range]]
) -> dict[str, tuple[str, ...]]:
    """Return the layers of every product with a weight."""
    # For each node that depends on no input: the weights in its memory, or those that it is computed from.
    held: dict[fx.Node, list[Range]] = {}
    memory: dict[int, list[Range]] = {}
    users: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            if node.name in constants:
                held[node] = _placed(tensors.get(node.name), value, ranges)
                if isinstance(value, Tensor):
                    memory.setdefault(_cell(value), held[node])
        elif node.op != "output" and all(operand in held for operand in node.all_input_nodes):
            view = memory.get(_cell(value)) if isinstance(value, Tensor) else None
            held[node] = _merged(held, node.all_input_nodes) if view is None else view
        elif operator_name(node) in PRODUCTS:
            weights = (overlapping(held[x], x.meta["val"]) for x in node.all_input_nodes if x in held)
            names = [name for operand in weights for _, _, name in operand]
            if names:
                users[node.name] = tuple(dict.fromkeys(names))
    return users


def _placed(tensor: Tensor | None, value: Any, ranges: Mapping[int, list[Range]]) -> list[Range]:
    """Return the weights in a parameter's memory, as ranges of the fake tensor that stands for it."""
    if tensor is None or not isinstance(value, Tensor):
        return []
    shift = memory_range(value)[0] - memory_range(tensor)[0]
    shared = overlapping(ranges.get(storage_pointer(tensor), ()), tensor)
    return [(low + shift, high + shift, name) for low, high, name in shared]


def _merged(held: Mapping[fx.Node, list[Range]], nodes: Iterable[fx.Node]) -> list[Range]:
    """Return the weights that a tensor is computed from, as ranges of all of its memory."""
    names = dict.fromkeys(name for node in nodes for _, _, name in held[node])
    return [(0, 2**62, name) for name in names]


def _cell(value: Tensor) -> int:
    return value.untyped_storage()._cdata
