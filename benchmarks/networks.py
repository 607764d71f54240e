"""Compress networks of torchvision and timm to half of their parameters, and use the results in every way.

    python benchmarks/networks.py [--networks torchvision/resnet18 ...]

Random weights, example input only. For each network: coverage, seconds, what is left, and whether the compressed one
runs forward and backward, under torch.compile, autocast, DistributedDataParallel, and survives deepcopy and a pickled
state dict with the same outputs.
"""

from __future__ import annotations

import copy
import io
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import _harness
import rankfold as rf
from rankfold._tensors import tensors_of
from rankfold.batches import call_model
from rankfold.surgery import factored_layers

NETWORKS = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/densenet121",
    "torchvision/googlenet",
    "torchvision/vit_b_16",
    "torchvision/fasterrcnn_resnet50_fpn",
    "timm/convnext_tiny",
]


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("networks", __doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--budget", default="params<=50%")
    args = parser.parse_args()
    _harness.start(args)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    dist.init_process_group("gloo", rank=0, world_size=1)
    rows = []
    for name in args.networks:
        row = one(name, args.budget, args.seed)
        rows.append(row)
        print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
    dist.destroy_process_group()
    print(_harness.save("networks", rows, args))


def one(name: str, budget: str, seed: int) -> dict[str, Any]:
    """Compress one network, use it, and return a row."""
    model, inputs = rf.zoo.create(name, seed=seed), rf.zoo.example_input(name)
    start = time.perf_counter()
    result = rf.compress(model, inputs, budget=budget, seed=seed)
    seconds = time.perf_counter() - start
    small, report = result.model.eval(), result.report
    params, macs = rf.inspect(model, inputs).coverage
    row: dict[str, Any] = {
        "network": name,
        "coverage_params": params,
        "coverage_macs": macs,
        "seconds": round(seconds, 1),
        "params_left": report.after.params / report.before.params,
        "macs_left": report.after.macs / report.before.macs,
        "factored": len(result.plan.factored),
    }
    with torch.no_grad():
        wanted = tensors_of(call_model(small, inputs))
    backward(small, name, inputs)
    row["backward"] = "ok"
    row["deepcopy"] = same(copy.deepcopy(small), inputs, wanted, 0.0)
    fresh = copy.deepcopy(small)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    row["state_dict"] = same(fresh, inputs, wanted, 0.0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        call_model(small, inputs)
    row["autocast"] = "ok"
    backward(DistributedDataParallel(small, find_unused_parameters=True), name, inputs)
    row["ddp"] = "ok"
    torch.compiler.reset()
    row["compile"] = same(torch.compile(small), inputs, wanted, 1e-3)
    return row


def backward(model: nn.Module, name: str, inputs: Any) -> None:
    """Run forward and backward; every factor on the way to the output must get a finite gradient."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if "rcnn" in name:
        model.train()
        targets = [{"boxes": torch.tensor([[10.0, 10.0, 100.0, 100.0]]), "labels": torch.tensor([1])}]
        outputs: Any = model(inputs, targets)
    else:
        model.eval()
        outputs = call_model(model, inputs)
    sum(t.float().square().mean() for t in tensors_of(outputs)).backward()  # type: ignore[union-attr]
    model.eval()
    grads = [p.grad for layer in factored_layers(inner).values() for p in layer.parameters() if p.grad is not None]
    assert grads, f"{name}: no factor got a gradient"
    assert all(bool(torch.isfinite(g).all()) for g in grads), f"{name}: a gradient is not finite"
    inner.zero_grad()


def same(model: Callable[..., Any], inputs: Any, wanted: list[Tensor], tolerance: float) -> str:
    """Return "ok" if the outputs agree within a relative tolerance, else how far they are apart."""
    with torch.no_grad():
        got = tensors_of(model(*inputs) if isinstance(inputs, tuple) else model(inputs))
    if [g.shape for g in got] != [w.shape for w in wanted]:
        return "other shapes"
    worst = 0.0
    for g, w in zip(got, wanted, strict=True):
        if w.numel():
            worst = max(worst, float((g.float() - w.float()).abs().max() / w.float().abs().max().clamp_min(1e-9)))
    return "ok" if worst <= tolerance else f"differs by {worst:.1e}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    main()
