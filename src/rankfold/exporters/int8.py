"""Static int8 quantization of ONNX files, by ONNX Runtime's quantizer."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankfold.errors import ModelError, RankfoldError
from rankfold.exporters.slim import save_slim
from rankfold.inventory import quiet

FLOAT_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INT8_PRODUCTS = ("QLinearConv", "QGemm", "QLinearMatMul")

CPU_INFO = Path("/proc/cpuinfo")

Feed = Mapping[str, Any]
"""NumPy arrays by name of input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """What the quantized file computes in int8.

    Parameters
    ----------
    products : int
        Convolutions and matrix products in int8.
    kept : tuple of str
        Those that stay in float: the operator, and its output or module.
    reduce_range : bool
        Whether weights have 7 bits.
    """

    products: int
    kept: tuple[str, ...]
    reduce_range: bool


def saturates() -> bool:
    """Return whether int8 products may saturate on this machine: on x86 without VNNI instructions.

    ONNX Runtime then adds pairs of products in 16 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return False
    return not (CPU_INFO.exists() and "vnni" in CPU_INFO.read_text("utf-8", "replace"))


def failed(tool: str, error: Exception) -> ModelError:
    """Return the error about a model that a tool cannot quantize."""
    return ModelError(
        f"the model cannot be quantized. {tool} raised {type(error).__name__}: {error}\n"
        "Export it in float, or check that the calibration data has the form of the example input."
    )


def nothing_quantized(kept: Sequence[str]) -> ModelError:
    """Return the error about a model whose convolutions and matrix products all stay in float."""
    found = f"these stay in float: {', '.join(kept[:5])}" if kept else "it has no convolution or matrix product"
    return ModelError(f"nothing in the model is quantized: {found}. Export it in float.")


def quantize(source: Path, target: Path, feeds: Iterable[Feed], *, reduce_range: bool) -> Int8:
    """Write a quantized copy of an ONNX file: weights per output channel, activations per tensor.

    The ranges of the activations are the extremes over the calibration data. Names in the graph are shortened.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot quantize the model, or nothing in it is quantized.
    """
    tools = importlib.import_module("onnxruntime.quantization")
    prepared = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    folded = source.with_name(f"{source.name}.folded")
    try:
        with quiet():
            prepared.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
            tools.quantize_static(
                str(folded), str(target), Reader(), quant_format=tools.QuantFormat.QOperator, per_channel=True,
                reduce_range=reduce_range, activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
            )  # fmt: skip
    except RankfoldError:  # about the calibration data, which ONNX Runtime iterates over
        raise
    except Exception as error:
        raise failed("ONNX Runtime", error) from error
    finally:
        folded.unlink(missing_ok=True)
    model = importlib.import_module("onnx_ir").load(target)
    operators = [(node.op_type, node.outputs[0].name) for node in model.graph]
    done = sum(operator in INT8_PRODUCTS for operator, _ in operators)
    kept = tuple(f"{operator} {output!r}" for operator, output in operators if operator in FLOAT_PRODUCTS)
    if not done:
        raise nothing_quantized(kept)
    save_slim(model, target, names=False)
    return Int8(products=done, kept=kept, reduce_range=reduce_range)
