"""``onnxruntime``: ONNX Runtime."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rankfold import exporters
from rankfold._config import spelled
from rankfold._tensors import tensors_of
from rankfold.errors import ConfigError
from rankfold.exporters.program import captured
from rankfold.inventory import copy_model
from rankfold.records import BiasSpec, Blueprint, Call, ConvSpec, GaugedSpec, LayerInfo, LinearSpec, ReshapeSpec, Stage
from rankfold.timing.contract import Run, Runtime, registry
from rankfold.timing.target import Target
from rankfold.timing.torch_runtime import processor

_OPSET = 18
_IR = 10
_PADS = {"reflect": "reflect", "replicate": "edge"}
"""torch's padding modes that are modes of the operator Pad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ONNXRuntime(Runtime):
    """ONNX Runtime.

    Layers are written as operators of ONNX from their blueprints, because an export takes seconds; whole models are
    exported.
    """

    name = "onnxruntime"

    def check(self, target: Target) -> None:
        """Raise if a package, the execution provider or the data type is missing."""
        exporters.get("onnx").check()
        if _provider(target) not in importlib.import_module("onnxruntime").get_available_providers():
            raise ConfigError(
                f"target {str(target)!r} needs the {_provider(target)} of ONNX Runtime, which this installation lacks. "
                "Install onnxruntime-gpu, or use device=cpu."
            )
        if target.dtype == "bfloat16":
            raise ConfigError(f"target {str(target)!r}: bfloat16 is not timed in ONNX Runtime. Use float32 or float16.")
        if target.memory_format == "channels_last":
            raise ConfigError(
                f"target {str(target)!r}: ONNX Runtime chooses the memory format itself. Remove memory_format."
            )

    def facts(self, target: Target) -> dict[str, Any]:
        """Return the versions of ONNX Runtime and torch's exporter, and the device."""
        versions = {name: str(importlib.import_module(name).__version__) for name in ("onnxruntime", "onnx", "torch")}
        return {"device": processor(target.device or "cpu"), **versions}

    def layer(self, layer: LayerInfo, blueprint: Blueprint | None, call: Call, target: Target) -> Run:
        """Return a run of a layer as a separate graph."""
        dtype = np.dtype(target.dtype or "float32")
        stages = (_dense_spec(layer),) if blueprint is None else blueprint.stages
        x = np.random.default_rng(0).standard_normal((call.batch, layer.in_channels, *call.in_size)).astype(dtype)
        return _run(_graph(stages, x), {"x": x}, target)

    def model(self, model: nn.Module, inputs: Any, target: Target) -> Run:
        """Return a run of the exported model."""
        copied = copy_model(model).to("cpu", target.torch_dtype).eval()
        arrays = [tensor.detach().cpu() for tensor in tensors_of(inputs)]
        exporter = exporters.get("onnx")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            exporter.write(captured(copied, inputs, dynamic_batch=False), file)
            content = file.read_bytes()
        names = [item.name for item in _session(content, target).get_inputs()]
        return _run(content, {n: a.numpy() for n, a in zip(names, arrays, strict=True)}, target)


def _provider(target: Target) -> str:
    return "CUDAExecutionProvider" if target.device == "cuda" else "CPUExecutionProvider"


def _session(content: bytes, target: Target) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = target.threads or 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if (target.threads or 1) == 1 else "1")
    return runtime.InferenceSession(content, options, providers=[_provider(target)])


def _run(content: bytes, arrays: dict[str, Any], target: Target) -> Run:
    """Return a run of a graph with inputs and outputs on the device."""
    runtime = importlib.import_module("onnxruntime")
    session = _session(content, target)
    device = target.device or "cpu"
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for item in session.get_outputs():
        binding.bind_output(item.name, device)

    def run() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - start

    return run


def _dense_spec(layer: LayerInfo) -> ConvSpec | LinearSpec:
    """Return a dense layer as a stage."""
    if layer.kind == "linear":
        return LinearSpec(name="", in_features=layer.in_channels, out_features=layer.out_channels, bias=layer.bias)
    names = ("in_channels", "out_channels", "kernel", "stride", "padding", "dilation", "output_padding", "groups")
    settings = {name: getattr(layer, name) for name in (*names, "padding_mode", "transposed", "bias")}
    return ConvSpec(name="", **settings)


def _graph(stages: Sequence[Stage], x: Any) -> bytes:
    """Return a model with one node, or two with explicit padding, per stage, and random weights."""
    onnx = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    nodes: list[Any] = []
    constants: list[Any] = []
    generator = np.random.default_rng(0)

    def constant(values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(values, f"c{len(constants)}"))
        return constants[-1].name

    def weight(*shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return constant((generator.standard_normal(shape) / fan_in**0.5).astype(x.dtype))

    def node(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"y{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    last = "x"
    for stage in stages:
        match stage:
            case ConvSpec():
                pads = _pads(stage)
                if stage.padding_mode != "zeros" and any(pads):
                    around = [0, 0, *pads[: len(stage.kernel)], 0, 0, *pads[len(stage.kernel) :]]
                    mode = _PADS.get(stage.padding_mode, "edge")  # as much memory is written for circular padding
                    last, pads = node("Pad", last, constant(np.array(around)), mode=mode), [0] * len(pads)
                shape = (stage.out_channels, stage.in_channels // stage.groups)
                more: dict[str, Any] = {}
                if stage.transposed:
                    shape = (stage.in_channels, stage.out_channels // stage.groups)
                    more = {"output_padding": list(stage.output_padding)} if stage.output_padding else {}
                inputs = [last, weight(*shape, *stage.kernel)]
                inputs += [weight(stage.out_channels)] if stage.bias else []
                last = node(
                    "ConvTranspose" if stage.transposed else "Conv", *inputs, kernel_shape=list(stage.kernel),
                    strides=list(stage.stride), pads=pads, dilations=list(stage.dilation), group=stage.groups, **more,
                )  # fmt: skip
            case LinearSpec():
                last = node("MatMul", last, weight(stage.in_features, stage.out_features))
                last = node("Add", last, weight(stage.out_features)) if stage.bias else last
            case ReshapeSpec():
                last = node("Reshape", last, constant(np.array([-1, *stage.tail])))
            case BiasSpec():
                last = node("Add", last, weight(stage.features))
            case GaugedSpec():
                raise ConfigError(f"gauged layers are not timed. Set {spelled('gauge', False)}, or leave target out.")
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info(last, kind, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    return model.SerializeToString()


def _pads(stage: ConvSpec) -> list[int]:
    """Return the padding at the start of each axis, then at the end."""
    if stage.padding == "same":
        totals = [d * (k - 1) for d, k in zip(stage.dilation, stage.kernel, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    pads = [0] * len(stage.kernel) if isinstance(stage.padding, str) else list(stage.padding)
    return pads * 2


registry.register(ONNXRuntime, summary="ONNX Runtime")
