"""Export every method on every kind of layer, and a compressed ResNet-20 in int8.

    python benchmarks/exporting.py [--matrix] [--int8]

The first part needs no data: small layers with random weights, factored at half of their ranks, written in every
format whose packages are installed; the table has the relative differences of the outputs in the format's runtime, or
the refusal. The second part needs ``RANKFOLD_DATA``: a ResNet-20 at half of its parameters, in float and in int8, with
the sizes of the files and the accuracy on the 10,000 test images of CIFAR-10, in ONNX Runtime and, if it is installed,
in ExecuTorch. A further process without torch and rankfold compares predictions of ONNX files on 1,000 images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import _harness
import rankfold as rf
from rankfold import exporters, methods, zoo
from rankfold.inventory import static_inventory
from rankfold.testing.cases import LAYER_ZOO

KINDS = (
    "conv1d", "conv1d-groups", "conv1d-transposed", "conv2d", "conv2d-stride", "conv2d-groups", "conv2d-circular",
    "conv2d-1x1", "conv2d-transposed", "conv2d-transposed-groups", "conv3d", "conv3d-groups", "conv3d-transposed",
    "linear", "linear-leading-2",
)  # fmt: skip
NETWORK = "resnet20_cifar10"
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["rankfold"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name, x = session.get_inputs()[0].name, numpy.load(sys.argv[2])
print(json.dumps([int(c) for i in range(0, len(x), 100) for c in session.run(None, {name: x[i:i+100]})[0].argmax(1)]))
"""


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("exporting", __doc__)
    parser.add_argument("--matrix", action="store_true", help="only the layers")
    parser.add_argument("--int8", action="store_true", help="only the network in int8")
    args = parser.parse_args()
    _harness.start(args)
    known = _harness.stored(args) or {}
    both = args.matrix == args.int8
    with tempfile.TemporaryDirectory() as folder:
        if args.matrix or both:
            known["layers"] = [row for kind in KINDS for row in layer(kind, Path(folder))]
        if args.int8 or both:
            known["int8"] = network(Path(folder), _harness.data_folder(parser), args.seed)
    print(_harness.save("exporting", known, args))


def layer(kind: str, folder: Path) -> list[dict[str, Any]]:
    """Return the difference of each format, for each method that supports a layer."""
    case = next(case for case in LAYER_ZOO if case.id == kind)
    dense, x = case.layer().eval(), case.input()
    info = static_inventory(dense)[0]
    rows = []
    for entry in methods.registry:
        method = methods.get(entry.plugin.name)
        if method.supports(info) is not None:
            continue
        ranks = tuple(max(1, most // 2) for most in method.max_ranks(info))
        small = rf.apply(dense, rf.plan(dense, x, strategy=rf.Manual(layers={info.name: (method.name, ranks)})))
        row: dict[str, Any] = {"layer": kind, "method": method.name}
        for name in exporters.registry.names():
            if not all(map(find_spec, exporters.get(name).packages)):
                continue
            path = folder / f"layer{exporters.get(name).suffix}"
            try:
                row[name] = rf.export(small, path, x, to=name).difference
            except rf.RankfoldError as error:  # what a format does not support
                row[name] = str(error).splitlines()[0]
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        rows.append(row)
    return rows


def network(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """Return sizes and accuracies of a compressed network in float and in int8."""
    info = zoo.entry(NETWORK)
    spec = f"cifar10:{data / 'cifar10'}"
    dense = zoo.create(NETWORK, weights=str(data / "weights" / f"{NETWORK}.safetensors")).eval()
    x = zoo.example_input(NETWORK)
    calibration = zoo.data(spec, split="calibration", normalize=info, batch_size=128, limit=1024, seed=seed)
    test = zoo.data(spec, split="test", normalize=info, batch_size=500)
    metric = rf.top1(test)
    plan = rf.plan(dense, x, budget="params<=50%", calibration=calibration, seed=seed)
    small = rf.apply(dense, plan, calibration, reconstruct="sequential")
    files = {name: folder / f"{name}.onnx" for name in ("dense", "float", "int8")}
    original = rf.export(dense, files["dense"], x)
    plain = rf.export(small, files["float"], x, check=test, evaluate=metric)
    quantized = rf.export(small, files["int8"], x, int8=calibration, check=test, evaluate=metric)
    in_torch = exporters.Exported(exporters.get("onnx").open(files["int8"]))
    several = next(iter(test))[0][:100]  # the largest batch of a file of ExecuTorch
    mobile = {
        name: rf.export(small, folder / f"{name}.pte", several, check=test, evaluate=metric, int8=data)
        for name, data in (("float", None), ("int8", calibration))
        if find_spec("executorch")
    }
    assert plain.metric is not None
    assert quantized.metric is not None
    assert quantized.int8 is not None
    return {
        "params": sum(p.numel() for p in small.parameters()),
        "bytes": {"dense": original.bytes, "float": plain.bytes, "int8": quantized.bytes},
        "dense_over_int8": original.bytes / quantized.bytes,
        "top1": {"dense": rf.evaluate(dense, metric), "float": plain.metric.final, "int8": quantized.metric.final},
        "difference": {"float": plain.difference, "int8": quantized.difference},
        "graph": asdict(quantized.int8),
        "same_without_torch": without_torch(small, files["float"], test, folder),
        "int8_same_without_torch": without_torch(in_torch, files["int8"], test, folder),
        "executorch": {
            name: {
                "bytes": export.bytes,
                "top1": export.metric and export.metric.final,
                "difference": export.difference,
                "graph": export.int8 and asdict(export.int8),
            }
            for name, export in mobile.items()
        },
    }


def without_torch(model: nn.Module, file: Path, test: Any, folder: Path) -> float:
    """Return the share of 1,000 images on which a process without torch predicts what the model predicts."""
    images = torch.cat([batch[0] for batch, _ in zip(test, range(2), strict=False)])[:1000]
    np.save(folder / "x.npy", images.numpy())
    command = [sys.executable, "-c", WITHOUT_TORCH, str(file), str(folder / "x.npy")]
    there = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with torch.no_grad():
        here = torch.cat([model(part).argmax(1) for part in images.split(100)]).tolist()
    return sum(a == b for a, b in zip(here, there, strict=True)) / len(here)


if __name__ == "__main__":
    main()
