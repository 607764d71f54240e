"""Compare estimates of peak RAM with the memory that ONNX Runtime takes.

    python benchmarks/ram.py

Three networks with random weights, dense and at half of their parameters, exported to ONNX. The estimate is that of
budgets (``ram``) for the batch. The measurement runs in a separate process, with one thread and without an arena: the
peak of the resident memory during one run, minus the resident memory before it. A run with one sample comes first, and
the input exists before, so its memory does not count; in these networks, no operation at the peak reads it. ONNX
Runtime fuses operations, but keeps the layout of the tensors (its extended level): other layouts need copies. Linux
only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import _harness
import rankfold as rf
from rankfold import zoo
from rankfold.cost import activation_profile
from rankfold.inventory import export_graph

NETWORKS = {
    "vgg16_bn_cifar10": (32, 3, 32, 32),
    "torchvision/resnet18": (4, 3, 224, 224),
    "torchvision/mobilenet_v2": (4, 3, 224, 224),
}
RUN = """
import sys, numpy, onnxruntime
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = options.enable_mem_pattern = False
options.intra_op_num_threads, options.log_severity_level = 1, 3
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name, x = session.get_inputs()[0].name, numpy.load(sys.argv[2])
session.run(None, {name: x[:1]})
open("/proc/self/clear_refs", "w").write("5")  # the peak starts at the present size
before = status("VmRSS")
session.run(None, {name: x})
print(status("VmHWM") - before)
"""
# Large tensors are returned to the system as soon as they are freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("ram", __doc__)
    args = parser.parse_args()
    _harness.start(args)
    rows = []
    for name, shape in NETWORKS.items():
        dense = zoo.create(name, seed=args.seed)
        x = torch.randn(shape)
        small = rf.apply(dense, rf.plan(dense, x[:1], budget="params<=50%", strategy="uniform"))
        for label, model in (("dense", dense), ("50 % of the parameters", small)):
            row = {"network": name, "batch": shape[0], "model": label, **compared(model, x)}
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            rows.append(row)
    print(_harness.save("ram", rows, args))


def compared(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Return the estimate of peak RAM, the median of three measurements, and their ratio."""
    graph = export_graph(model, x)
    estimate = activation_profile(graph.graph, graph.constants, graph.users, ()).peak
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "net.onnx", Path(folder) / "x.npy"
        rf.export(model, files[0], x[:1])
        np.save(files[1], x.numpy())
        command = [sys.executable, "-c", RUN, *map(str, files)]
        runs = [subprocess.run(command, capture_output=True, check=True, env=os.environ | MALLOC) for _ in range(3)]
    measured = sorted(json.loads(run.stdout) for run in runs)[1]
    return {"estimate": estimate, "measured": measured, "measured / estimate": measured / estimate}


if __name__ == "__main__":
    main()
