"""Static int8 quantization of captured models, by torchao's PT2E."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from rankfold.batches import arguments
from rankfold.errors import RankfoldError
from rankfold.exporters.int8 import Int8, failed, nothing_quantized
from rankfold.exporters.program import Capture
from rankfold.inventory import PRODUCTS, on_device_of, operator_name, quiet

MATRIX_PRODUCTS = PRODUCTS | {"aten::einsum", "aten::scaled_dot_product_attention"}
"""Convolutions and matrix products, also those without a weight."""
ACTIVATIONS = ("aten::relu", "aten::relu_", "aten::hardtanh", "aten::hardtanh_", "aten::clamp")
"""What the runtime computes together with a product."""


def quantized(
    program: torch.export.ExportedProgram, batches: Iterable[Any], quantizer: Any, capture: Capture, *, narrow: bool
) -> tuple[torch.export.ExportedProgram, Int8]:
    """Return a program whose weights and activations are int8, and what it computes in int8.

    Parameters
    ----------
    program : ExportedProgram
        The captured model; it is left unchanged.
    batches : iterable
        Calibration data: inputs of the sizes that the program accepts.
    quantizer : Quantizer
        Which operations the runtime computes in int8, and how.
    capture : callable
        Captures the quantized graph with the inputs and dynamic dimensions of the program.
    narrow : bool
        Whether the quantizer's weights have 7 bits.

    Raises
    ------
    ModelError
        If torchao cannot quantize the model, or nothing in it is quantized.
    """
    tools = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    try:
        with quiet(), torch.no_grad():
            prepared = tools.prepare_pt2e(program.module(), quantizer)
            for batch in batches:
                args, kwargs = arguments(on_device_of(prepared, batch))
                prepared(*args, **kwargs)
            done = capture(tools.convert_pt2e(prepared))
    except RankfoldError:
        raise
    except Exception as error:
        raise failed("torchao", error) from error
    products = [node for node in done.graph.nodes if is_product(node)]
    kept = tuple(described(node) for node in products if not in_int8(node))
    if len(kept) == len(products):
        raise nothing_quantized(kept)
    return done, Int8(products=len(products) - len(kept), kept=kept, reduce_range=narrow)


def is_product(node: fx.Node) -> bool:
    """Return whether a node is a convolution or a matrix product."""
    return operator_name(node) in MATRIX_PRODUCTS


def in_int8(node: fx.Node) -> bool:
    """Return whether a product has a quantized input, constant weight and output, and is computed in int8.

    The graph multiplies dequantized numbers; the runtime replaces this pattern by int8 arithmetic.
    """
    inputs = node.all_input_nodes[:2]
    if len(inputs) < 2 or not all(map(_dequantized, inputs)) or inputs[1].all_input_nodes[0].op == "call_function":
        return False
    users = list(node.users)
    after = [user for first in users if operator_name(first) in ACTIVATIONS for user in first.users]
    return any(operator_name(user).startswith("quantized_decomposed::quantize") for user in users + after)


def described(node: fx.Node) -> str:
    """Return the operator, and the module that it belongs to, or its name."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{operator_name(node).rpartition('::')[2]} {paths[-1] if paths else node.name!r}"


def _dequantized(node: fx.Node) -> bool:
    return operator_name(node).startswith("quantized_decomposed::dequantize")
