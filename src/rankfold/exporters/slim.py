"""Smaller ONNX files that compute exactly the same."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
CONVOLUTION_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}
"""ONNX states these defaults in words: the value along every axis."""

LARGEST_SHARED = 2**20
"""Elements of the largest initializers that are compared with each other."""


def save_slim(model: Any, path: Path, *, names: bool) -> None:
    """Write an ``onnx_ir.Model`` without what no runtime needs: a tenth of the int8 file of a small network.

    The file has one copy of equal initializers, and neither metadata, documentation, shapes of intermediate tensors,
    unused operator sets nor attributes at their defaults. The model is changed.

    Parameters
    ----------
    model : onnx_ir.Model
        The model.
    path : path
        The file.
    names : bool
        Whether intermediate tensors, weights and nodes keep their names. Otherwise they get short ones.
    """
    ir = importlib.import_module("onnx_ir")
    onnx = importlib.import_module("onnx")
    passes = importlib.import_module("onnx_ir.passes.common")
    passes.DeduplicateInitializersPass(size_limit=LARGEST_SHARED)(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    for node in model.graph.all_nodes():
        _drop_defaults(node, model.opset_imports[node.domain])
    if not names:
        _shorten_names(model.graph)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))


def _drop_defaults(node: Any, version: int) -> None:
    """Remove the attributes of a node that have their default value."""
    defs, ir = importlib.import_module("onnx.defs"), importlib.import_module("onnx_ir")
    if not defs.has(node.op_type, node.domain):  # an operator of ONNX Runtime
        return
    schema = defs.get_schema(node.op_type, version, node.domain)
    in_words = CONVOLUTION_DEFAULTS if node.op_type in CONVOLUTIONS else {}
    for name, attribute in list(node.attributes.items()):
        default = schema.attributes[name].default_value
        if default.name:
            same = ir.from_proto(default).value == attribute.value
        else:
            same = name in in_words and set(attribute.value) == {in_words[name]}
        if same:
            node.attributes.pop(name)


def _shorten_names(graph: Any) -> None:
    """Give short names to all tensors except inputs and outputs, and none to nodes."""
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    produced = [value for node in graph.all_nodes() for value in node.outputs]
    values = [value for value in (*graph.initializers.values(), *produced) if value.name and value.name not in fixed]
    taken = fixed | {value.name for value in values}
    free = (name for name in (f"t{index}" for index in itertools.count()) if name not in taken)
    for value in values:
        value.name = next(free)
    for node in graph.all_nodes():
        node.name = ""
