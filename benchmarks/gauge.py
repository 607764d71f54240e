"""Gauge fixing on whole networks: same outputs, fewer parameters by exactly what was predicted, ONNX, latency.

    [RANKFOLD_DATA=...] python benchmarks/gauge.py [--images 1000] [--threads 1]

ResNet-56 (CIFAR-10; trained weights if RANKFOLD_DATA is set) and an encoder block of torchvision's vit_b_16, each
compressed to half of its parameters by strategy ``energy`` and then gauged with `rankfold.gauge`: the same factors,
twice, without training or data. A second plan, made with ``gauge=True``, spends what the gauge saves on higher ranks
within the same budget; with data both are filled with data-aware factors and measured. Both forms are exported to ONNX
and run by onnxruntime on the CPU. Latency is of the forward pass, models in turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _harness
import rankfold as rf
from rankfold.cost import gauged_cost
from rankfold.methods import get
from rankfold.records import Cost, Inventory, Plan
from rankfold.surgery.gauged import Gauged

BUDGET = "params<=50%"
TOLERANCE = 1e-4


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("gauge", __doc__)
    parser.add_argument("--images", type=int, default=1000, help="test images for the accuracy of ResNet-56")
    parser.add_argument("--calibration", type=int, default=256, help="unlabeled training images")
    parser.add_argument("--repeats", type=int, default=20, help="rounds of timing")
    args = parser.parse_args()
    _harness.start(args)
    data = Path(os.environ["RANKFOLD_DATA"]) if "RANKFOLD_DATA" in os.environ else None
    rows = {}
    for title, methods in (("default methods", None), ("tt", "tt")):
        model, example, metric, images = resnet56(data, args)
        rows[f"resnet56_cifar10, {title}"] = measure(model, example, methods, args, metric=metric, images=images)
    rows["vit_b_16 encoder block, svd"] = measure(vit_block(), torch.randn(8, 197, 768), "svd", args)
    _harness.table({name: {k: v for k, v in row.items() if not isinstance(v, dict)} for name, row in rows.items()})
    print(_harness.save("gauge", rows, args))


def resnet56(data: Path | None, args: Any) -> tuple[nn.Module, Tensor, Callable[[nn.Module], float] | None, Any]:
    """Return the network, a batch of 32, and what to measure and to calibrate with where there is data."""
    name = "resnet56_cifar10"
    weights = None if data is None else data / "weights" / f"{name}.safetensors"
    model = rf.zoo.create(name, weights=weights).eval()
    example = torch.randn(32, 3, 32, 32)
    if data is None:
        return model, example, None, None
    spec, entry = f"cifar10:{data / 'cifar10'}", rf.zoo.entry(name)
    test = rf.zoo.data(spec, split="test", normalize=entry, batch_size=500, limit=args.images)
    calibration = rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.calibration, seed=args.seed)
    return model, next(iter(test))[0][:32], rf.top1(test), calibration


def vit_block() -> nn.Module:
    """Return one encoder block of vit_b_16 with random weights whose singular values fall as trained ones do."""
    from torchvision.models.vision_transformer import EncoderBlock

    block = EncoderBlock(num_heads=12, hidden_dim=768, mlp_dim=3072, dropout=0.0, attention_dropout=0.0).eval()
    with torch.no_grad():
        for parameter in (p for p in block.parameters() if p.ndim == 2):
            left, values, right = torch.linalg.svd(parameter, full_matrices=False)
            parameter.copy_((left * (values[0] * torch.logspace(0, -1.5, len(values)))) @ right)
    return block


def measure(
    model: nn.Module,
    example: Tensor,
    methods: str | None,
    args: Any,
    *,
    metric: Callable[[nn.Module], float] | None = None,
    images: Any = None,
) -> dict[str, Any]:
    """Compress, gauge, compare."""
    inventory = rf.inspect(model, example)
    plan = rf.plan(model, example, strategy="energy", budget=BUDGET, methods=methods, seed=args.seed)
    predicted = saving(inventory, plan)
    plain = rf.apply(model, plan)
    start = time.perf_counter()
    gauged = rf.gauge(plain)
    seconds = time.perf_counter() - start
    higher = rf.plan(model, example, strategy="energy", budget=BUDGET, methods=methods, seed=args.seed, gauge=True)
    with torch.no_grad():
        expected, found = plain(example), gauged(example)
    difference = float((found - expected).norm() / expected.norm())
    before, after = (rf.inspect(m, example).total for m in (plain, gauged))
    assert difference <= TOLERANCE, difference
    assert before.params - after.params == predicted.params
    assert before.macs - after.macs == predicted.macs
    models = {"dense": model, "plain": plain, "gauged": gauged}
    times = rf.compare_latency(models, example, repeats=args.repeats)
    one = rf.compare_latency(models, example[:1], repeats=args.repeats)
    row: dict[str, Any] = {
        "dense_params": inventory.total.params,
        "plain_params": before.params,
        "gauged_params": after.params,
        "predicted_saving": predicted.params,
        "saved_share_of_plain": predicted.params / before.params,
        "gauged_bonds": sum(isinstance(m, Gauged) for m in gauged.modules()),
        "plain_macs": before.macs,
        "gauged_macs": after.macs,
        "plain_bytes": before.weight_bytes,
        "gauged_bytes": after.weight_bytes,
        "gauge_seconds": round(seconds, 3),
        "output_difference": difference,
        "largest_output_difference": float((found - expected).abs().max() / expected.abs().max()),
        "onnx": onnx({"plain": plain, "gauged": gauged}, example, args.repeats),
        f"latency_ms_batch_{len(example)}": {name: round(t.median_ms, 3) for name, t in times.items()},
        "latency_ms_batch_1": {name: round(t.median_ms, 3) for name, t in one.items()},
        "same_budget": {
            "plain_worst_predicted_error": max(c.error or 0.0 for c in plan.factored.values()),
            "gauged_worst_predicted_error": max(c.error or 0.0 for c in higher.factored.values()),
        },
    }
    if metric is not None:
        pair = {"plain": rf.apply(model, plan, images), "gauged": rf.apply(model, higher, images)}
        row["same_budget"] |= {f"{k}_params": rf.inspect(m, example).total.params for k, m in pair.items()}
        row["same_budget"] |= {f"{k}_top1": rf.evaluate(m, metric) for k, m in pair.items()}
        lossless = {"plain": pair["plain"], "gauged": rf.gauge(pair["plain"])}
        row["top1"] = {"dense": rf.evaluate(model, metric)}
        row["top1"] |= {name: rf.evaluate(m, metric) for name, m in lossless.items()}
    return row


def saving(inventory: Inventory, plan: Plan) -> Cost:
    """Return what gauging a plan's layers saves, from their shapes alone."""
    total = Cost()
    for name, choice in plan.factored.items():
        layer = inventory.layer(name)
        blueprint = get(choice.method or "", choice.options).blueprint(layer, choice.ranks)
        total = total + gauged_cost(blueprint, layer, gauge=False)[0] - gauged_cost(blueprint, layer)[0]
    return total


def onnx(models: dict[str, nn.Module], example: Tensor, repeats: int) -> dict[str, Any]:
    """Export each model, run it by onnxruntime on one thread, and return differences and times, in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sessions, out = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
            assert program is not None
            path = Path(folder) / f"{name}.onnx"
            program.save(str(path))
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            feed = {sessions[name].get_inputs()[0].name: example.numpy()}
            with torch.no_grad():
                expected = model(example)
            found = torch.from_numpy(sessions[name].run(None, feed)[0])
            out[f"{name}_difference"] = float((found - expected).norm() / expected.norm())
            out[f"{name}_nodes"] = len(program.model.graph)
        runs: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(repeats):
            for name, session in sessions.items():
                feed = {session.get_inputs()[0].name: example.numpy()}
                start = time.perf_counter()
                session.run(None, feed)
                runs[name].append(1000 * (time.perf_counter() - start))
    assert all(out[f"{name}_difference"] <= TOLERANCE for name in models), out
    return out | {f"{name}_latency_ms": round(statistics.median(r), 3) for name, r in runs.items()}


if __name__ == "__main__":
    main()
