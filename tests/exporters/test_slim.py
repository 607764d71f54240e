"""A slimmed ONNX file computes exactly the same, and holds no duplicate, default or metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import helper, numpy_helper

from rankfold.exporters.slim import save_slim

WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
INITIALIZERS = {"weight": WEIGHT, "twin": WEIGHT.copy(), "other": WEIGHT + 1}


def written(folder: Path) -> Path:
    """Return a file with equal and different weights, attributes at and off their defaults, and metadata."""
    defaults = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 1, "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["a"], "first", **defaults),
        helper.make_node("LeakyRelu", ["a"], ["t0"], alpha=0.01),
        helper.make_node("Conv", ["t0", "twin"], ["b"], **{**defaults, "pads": [1] * 4, "strides": [2, 1]}),
        helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.5),
        helper.make_node("Conv", ["c", "other"], ["y"], **{**defaults, "dilations": [2, 1]}),
    ]
    nodes[0].metadata_props.add(key="trace", value="line 1 " * 100)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 24, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, None, None])],
        [numpy_helper.from_array(array, name) for name, array in INITIALIZERS.items()],
        value_info=[helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 4, 22, 14])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def attributes(node: onnx.NodeProto) -> set[str]:
    return {attribute.name for attribute in node.attribute}


def run(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 4, 24, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_only_what_has_no_effect_is_removed(tmp_path: Path) -> None:
    path, target = written(tmp_path), tmp_path / "slim.onnx"
    save_slim(onnx_ir.load(path), target, names=True)
    slim = onnx.load(str(target))
    onnx.checker.check_model(slim)
    np.testing.assert_array_equal(run(target), run(path))
    assert target.stat().st_size < path.stat().st_size - WEIGHT.nbytes
    first, leaky, strided, steep, dilated = slim.graph.node
    assert (attributes(first), attributes(leaky)) == ({"kernel_shape"}, set())
    assert attributes(strided) == {"kernel_shape", "pads", "strides"}
    assert attributes(dilated) == {"kernel_shape", "dilations"}
    assert attributes(steep) == {"alpha"}
    assert [tensor.name for tensor in slim.graph.initializer] == ["weight", "other"]
    assert [opset.domain for opset in slim.opset_import] == [""]
    assert not slim.graph.value_info
    assert first.name == "first"


def test_short_names_are_unique(tmp_path: Path) -> None:
    path, target = written(tmp_path), tmp_path / "slim.onnx"
    save_slim(onnx_ir.load(path), target, names=False)
    slim = onnx.load(str(target))
    onnx.checker.check_model(slim)
    np.testing.assert_array_equal(run(target), run(path))
    assert [value.name for value in (*slim.graph.input, *slim.graph.output)] == ["x", "y"]
    names = [tensor.name for tensor in slim.graph.initializer] + [node.output[0] for node in slim.graph.node]
    assert len(set(names)) == len(names) == 7
    assert all(name == "y" or name.startswith("t") for name in names)
    assert not any(node.name for node in slim.graph.node)
