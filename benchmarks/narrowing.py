"""Prune networks to 70 % of their parameters, factor the result to 40 %, and use it in every way.

    python benchmarks/narrowing.py [--networks resnet18 ...]

Random weights; nothing is downloaded. YOLOv5n needs the package ``ultralytics``, which is not a dependency of rankfold:
mind its licence. Channels of least norm go, the same share of every group. For each network: whether the counts of the
reloaded network are those predicted from shapes, forward and backward, whether the artifact gives the same outputs on a
new instance of the original architecture in a process that cannot import Torch-Pruning, and the export to ONNX.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _harness
import rankfold as rf
from rankfold._tensors import float_tensors
from rankfold.cost import Pricing
from rankfold.inventory import layer_weight
from rankfold.records import ChannelGroup, ChannelGroups, Choice, Inventory, Narrowing, Plan

NETWORKS = (
    "resnet18", "densenet121", "googlenet", "mobilenet_v2", "resnext50_32x4d", "vit_b_16", "convnext_atto",
    "ultralytics/yolov5n",
)  # fmt: skip
PRUNED, FACTORED = 0.7, 0.4
TOLERANCE = 1e-3
"""Of the outputs in ONNX Runtime, relative to the largest."""


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("narrowing", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # the process that reloads an artifact
    args = parser.parse_args()
    if args.load is not None:
        reload(args.networks[0], args.load, args.seed)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=folder, YOLO_VERBOSE="false")
        _harness.start(args)
        for name in args.networks:
            if name.startswith("ultralytics") and importlib.util.find_spec("ultralytics") is None:
                print(f"{name}: skipped, ultralytics is not installed")
                continue
            rows.append({**one(name, args.seed, Path(folder)), "commit": _harness.commit()})
            print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    print(_harness.save("narrowing", merged(args.out, rows), args))


def merged(file: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and those of other networks that the result file has: networks may be measured one by one."""
    known = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else []
    by_name = {row["network"]: row for row in (*known, *rows)}
    return [by_name[name] for name in NETWORKS if name in by_name]


def create(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights in eval mode, and an input."""
    torch.manual_seed(seed)
    size = {"ultralytics/yolov5n": 160, "vit_b_16": 224}.get(name, 64)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed + 1))
    if name.startswith("ultralytics"):
        import yolo

        return yolo.create(name, seed).eval(), x
    if name.startswith("convnext"):
        import timm

        return timm.create_model(name, pretrained=False).eval(), x
    import torchvision

    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**options).eval()
    if name.startswith("vit"):
        nn.init.normal_(model.heads.head.weight, std=0.02)  # zero by default, as are then all outputs
    return with_statistics(model, size), x


def with_statistics(model: nn.Module, size: int) -> nn.Module:
    """Return a network with the batch statistics of random images, without which deep random networks vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average over all batches
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            model(torch.randn(8, 3, size, size))
    return model.eval()


def one(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Prune and factor one network, use it, and return a row."""
    model, x = create(name, seed)
    inventory = rf.inspect(model, x)
    dense = inventory.total.params
    start = time.perf_counter()
    groups = rf.channel_groups(model, x)
    row: dict[str, Any] = {
        "network": name,
        "groups": len(groups),
        "groups_seconds": round(time.perf_counter() - start, 1),
    }
    pruned = prune(model, inventory, groups)
    first = rf.realize(model, x, pruned)
    second = rf.plan(first.model, x, budget=f"params<={int(FACTORED * dense)}", strategy="uniform", seed=seed)
    both = pruned.then(replace(second, provenance=replace(second.provenance, budget=None)))
    artifact = folder / name.replace("/", "-")
    result = rf.realize(model, x, both, output=artifact)
    cost, built = Pricing.of_plan(inventory, both).plan_cost(both), rf.inspect(result.model, x).total
    row |= {
        "dense_params": dense,
        "pruned_params": first.report.after.params,
        "params": built.params,
        "dense_macs": inventory.total.macs,
        "pruned_macs": first.report.after.macs,
        "macs": built.macs,
        "pruned_as_predicted": Pricing.of_plan(inventory, pruned).plan_cost(pruned) == first.report.after,
        "as_predicted": cost == built == result.report.after,
        "channels_removed": sum(r.before - r.after for r in result.report.widths),
    }
    row |= {"backward": backward(result.model, x), "reloaded": reloads(name, result.model, x, artifact, seed)}
    return row | {"onnx_error": onnx_error(result.model, x, folder)}


def prune(model: nn.Module, inventory: Inventory, groups: ChannelGroups) -> Plan:
    """Return the plan that removes the smallest share of each group with which at most `PRUNED` parameters remain."""
    pricing = Pricing.of(inventory)
    orders = {group.name: norms(model, group).argsort().tolist() for group in groups}

    def narrowing(share: float) -> Narrowing:
        return groups.narrowing({g.name: orders[g.name][: min(int(share * g.width), g.width - 1)] for g in groups})

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = pricing.narrowed(narrowing(middle)).inventory.total.params <= PRUNED * inventory.total.params
        low, high = (low, middle) if fits else (middle, high)
    kept = {layer.name: Choice(reason="not factored") for layer in inventory}
    prints = {layer.name: layer.fingerprint for layer in inventory}
    return Plan(layers=kept, fingerprint=prints, narrowing=narrowing(high))


def norms(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the norm of each channel's filters in the layer that names the group."""
    axis = group.axes[0]
    weight = layer_weight(model, axis.name)
    of_filters = (
        weight.flatten(1).norm(dim=1) if weight.shape[0] > max(axis.at(group.width - 1)) else weight.norm(dim=0)
    )
    return torch.stack([of_filters[list(axis.at(c))].norm() for c in range(group.width)])


def backward(model: nn.Module, x: Tensor) -> bool:
    """Return whether every parameter that the output depends on gets a finite gradient of its own shape."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sum(t.float().square().mean() for t in float_tensors(model(x)) if t.requires_grad).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return len(grads) > 0 and all(bool(grad.isfinite().all()) for grad in grads)


def reloads(name: str, model: nn.Module, x: Tensor, artifact: Path, seed: int) -> bool:
    """Return whether a process without Torch-Pruning gets the same outputs from the artifact."""
    with torch.no_grad():
        torch.save([t.clone() for t in float_tensors(model(x))], artifact.with_suffix(".pt"))
    script = [sys.executable, __file__, "--networks", name, "--load", str(artifact), "--seed", str(seed)]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr)
    return done.returncode == 0


def reload(name: str, artifact: Path, seed: int) -> None:
    """Load an artifact onto a new instance with other weights, and compare the outputs."""
    sys.modules["torch_pruning"] = None  # type: ignore[assignment] # importing it raises
    fresh, _ = create(name, seed + 1)
    _, x = create(name, seed)
    model = rf.load(artifact, fresh, example_input=x)
    with torch.no_grad():
        outputs = float_tensors(model(x))
    wanted = torch.load(artifact.with_suffix(".pt"))
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))


def onnx_error(model: nn.Module, x: Tensor, folder: Path) -> float:
    """Return the largest difference of the first output in ONNX Runtime, relative to the largest value."""
    import onnxruntime

    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    output: Any = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        wanted = float_tensors(model(x))[0]
    error = float((torch.from_numpy(output) - wanted).abs().max() / wanted.abs().max())
    assert error <= TOLERANCE, f"ONNX Runtime differs by {error:.2e}"
    return float(f"{error:.1e}")


if __name__ == "__main__":
    main()
