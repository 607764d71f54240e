"""Static int8 quantisation of captured models, by torchao's PT2E."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from rankfold.batches import arguments
from rankfold.errors import ModelError, RankfoldError
from rankfold.exporters.int8 import Int8
from rankfold.exporters.program import Capture
from rankfold.inventory import quiet

PRODUCTS = ("conv", "linear", "mm", "matmul", "addmm", "bmm", "baddbmm", "scaled_dot_product_attention")
"""Names of torch's convolutions and matrix products; all those of convolutions contain the first."""


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
        Captures the quantised graph with the inputs and dynamic dimensions of the program.
    narrow : bool
        Whether the quantizer's weights have 7 bits.

    Raises
    ------
    ModelError
        If torchao cannot quantise the model, or nothing in it is quantised.
    """
    tools = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    try:
        with quiet(), torch.no_grad():
            prepared = tools.prepare_pt2e(program.module(), quantizer)
            for batch in batches:
                args, kwargs = arguments(batch)
                prepared(*args, **kwargs)
            done = capture(tools.convert_pt2e(prepared))
    except RankfoldError:  # about the calibration data
        raise
    except Exception as error:
        raise ModelError(
            f"the model cannot be quantised. torchao raised {type(error).__name__}: {error}\n"
            "Export it in float, or check that the calibration data has the form of the example input."
        ) from error
    products = [node for node in done.graph.nodes if is_product(node)]
    kept = tuple(described(node) for node in products if not in_int8(node))
    if len(kept) == len(products):
        raise ModelError(
            "nothing in the model is quantised: it has no convolution or matrix product with a weight. "
            "Export it in float."
        )
    return done, Int8(products=len(products) - len(kept), kept=kept, reduce_range=narrow)


def is_product(node: fx.Node) -> bool:
    """Return whether a node is a convolution or a matrix product."""
    name = _name(node)
    return "conv" in name or name in PRODUCTS


def in_int8(node: fx.Node) -> bool:
    """Return whether a product multiplies dequantised tensors only, which the runtime replaces by int8 arithmetic."""
    operands = [source for source in node.all_input_nodes if source.meta.get("val") is not None]
    sources = [_name(source) for source in operands if source.op == "call_function" or source.meta["val"].ndim > 1]
    return len(sources) > 1 and all("dequantize" in name for name in sources[:2])


def described(node: fx.Node) -> str:
    """Return the operator, and the module that it belongs to, or its name."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{_name(node)} {paths[-1] if paths else node.name!r}"


def _name(node: fx.Node) -> str:
    """Return the name of a node's operator without namespace and overload, such as ``"conv2d"``."""
    name = getattr(getattr(node.target, "_schema", None), "name", None) or getattr(node.target, "__name__", "")
    return str(name).rpartition("::")[2]
