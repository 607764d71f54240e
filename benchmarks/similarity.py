"""Strategy similarity on one- and three-dimensional convolutions, its memory, and the time of listing its settings.

    python benchmarks/similarity.py [--loops m5 voxnet] [--memory] [--settings] [--smoke]

``--loops``: M5 on waveforms and VoxNet on voxel grids are trained from random weights and compressed with
``accuracy_drop<=1.5%``. The data is generated: eight modulations of a carrier of random frequency (2,000 samples at
8 kHz, with noise), and eight solids of random size, position and rotation (32x32x32, with flipped voxels). Accuracy is
that on samples that no training has seen.

``--memory``: peak memory of a process that compresses VGG-16 for CIFAR-10 with 1,000 calibration samples in two rounds
(random weights and images, a few batches of fine-tuning), and of a process that only holds the model and Adam's state.

``--settings``: CPU seconds until the settings of all layers of this VGG-16 are listed.

Each part is added to the result file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import _harness
import rankfold as rf
from rankfold.api.options import search_of
from rankfold.api.planning import Planner
from rankfold.strategies.ladder import Ladders
from rankfold.tune import FROM_SCRATCH

BATCH = 32
BUDGET = "accuracy_drop<=1.5%"
MEMORY = "vgg16_bn_cifar10"
SEARCHES: dict[str, dict[str, Any]] = {
    "tucker+svd, 3 settings per 5 %": {"methods": ("tucker", "svd"), "step_size": 0.05, "max_sol": 3},
    "tt+svd, 3 settings per 2 %": {"methods": ("tt", "svd"), "step_size": 0.02, "max_sol": 3},
    "tt+svd, 10 settings per 2 %": {"methods": ("tt", "svd"), "step_size": 0.02, "max_sol": 10},
}

Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("similarity", __doc__)
    parser.add_argument("--loops", nargs="*", default=[], choices=list(TASKS), help="networks to compress")
    parser.add_argument("--memory", action="store_true", help="peak memory")
    parser.add_argument("--settings", action="store_true", help="time of listing the settings")
    parser.add_argument("--samples", type=int, default=1600, help="training samples")
    parser.add_argument("--epochs", type=int, default=12, help="of training from random weights")
    parser.add_argument("--finetune-epochs", type=int, default=3, help="of each round")
    parser.add_argument("--smoke", action="store_true", help="few samples and epochs")
    parser.add_argument("--child", choices=["model", "loop"], help="measure the memory of this process")
    args = parser.parse_args()
    _harness.start(args)
    if args.smoke:
        args.samples, args.epochs, args.finetune_epochs = 64, 1, 1
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    results: dict[str, Any] = _harness.stored(args) or {}
    for name in args.loops:
        results.setdefault("loops", {})[name] = compressed(name, args)
        _harness.save("similarity", results, args)
    for part, measure in (("memory", memory), ("settings", settings)):
        if getattr(args, part):
            results[part] = measure(args)
            _harness.save("similarity", results, args)
    print(json.dumps(results, indent=2))


def compressed(name: str, args: Any) -> dict[str, Any]:
    """Train a network, compress it, and return what was left of its parameters and accuracy."""
    network, sample = TASKS[name]
    train, held = (batches(sample, count, args.seed + i) for i, count in enumerate((args.samples, args.samples // 2)))
    model = rf.zoo.create(network, num_classes=CLASSES, seed=args.seed)
    start = time.perf_counter()
    recipe = replace(FROM_SCRATCH, data=train, epochs=args.epochs, lr=1e-3, keep="best", seed=args.seed)
    model = rf.finetune(model, recipe, metric=rf.top1(held)).model.eval()
    trained = time.perf_counter()
    result = rf.compress(
        model, train[0][0][:1], calibration=[x for x, _ in train], evaluate=rf.top1(held), strategy="similarity",
        finetune=rf.FineTune(data=train, epochs=args.finetune_epochs, seed=args.seed), budget=BUDGET, seed=args.seed,
    )  # fmt: skip
    report, rounds = result.report, result.report.rounds
    convs = [row for row in report.layers if row.layer.startswith("Conv")]
    before, after = (sum(getattr(row, side).params for row in convs) for side in ("before", "after"))
    return {
        "network": network,
        "top1": report.metrics[0].dense,
        "top1_compressed": report.metrics[0].reloaded,
        "params": report.before.params,
        "params_compressed": report.after.params,
        "conv_params": before,
        "conv_params_compressed": after,
        "conv_params_removed": 1 - after / before,
        "macs_removed": 1 - report.after.macs / report.before.macs,
        "rounds": len(rounds),
        "drops": [row.drop for row in rounds],
        "settings": dict(rounds[-1].settings),
        "train_s": round(trained - start, 1),
        "compress_s": round(time.perf_counter() - trained, 1),
    }


def batches(sample: Callable[[int, torch.Generator], Tensor], count: int, seed: int) -> Batches:
    """Return generated data; every class has the same number of samples."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % CLASSES
    inputs = torch.stack([sample(label, generator) for label in target.tolist()])
    order = torch.randperm(count, generator=generator)
    return list(zip(inputs[order].split(BATCH), target[order].split(BATCH), strict=True))


def waveform(label: int, generator: torch.Generator) -> Tensor:
    """Return a modulated carrier ``(1, 2000)``: tone, rising and falling chirp, vibrato, tremolo, bursts, beat, hum."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    time_s = torch.arange(2000) / 8000
    carrier, turn = draw(500, 1500), 2 * torch.pi
    slow = torch.sin(turn * (draw(18, 26) * time_s + draw(0, 1)))
    bend = {1: 1000 * time_s**2, 2: -1000 * time_s**2, 3: 4 * slow / turn}.get(label, torch.zeros(()))
    wave = torch.sin(turn * (carrier * time_s + bend + draw(0, 1)))
    if label == 6:
        wave = (wave + torch.sin(turn * (1.5 * carrier * time_s + draw(0, 1)))) / 2
    if label == 7:
        wave = wave + torch.sin(turn * (carrier / 8 * time_s + draw(0, 1)))
    envelope = {4: 1 + slow, 5: (slow > 0).float() * 1.5}.get(label, torch.ones(()))
    noise = torch.randn(2000, generator=generator)
    return (draw(0.5, 1.0) * envelope * wave + 0.3 * noise).unsqueeze(0)


def solid(label: int, generator: torch.Generator) -> Tensor:
    """Return a sphere, cube, rod, cone, torus, octahedron, pipe or cross ``(1, 32, 32, 32)``, upright.

    Half of them are cavities, so that the mean of each voxel is the same for all classes.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    axis = torch.arange(32.0) - 15.5
    x, y, z = ((grid - draw(-3, 3)) for grid in torch.meshgrid(axis, axis, axis, indexing="ij"))
    angle, size = torch.tensor(draw(0, torch.pi)), draw(8, 13)
    x, y, z = (angle.cos() * x - angle.sin() * y) / size, (angle.sin() * x + angle.cos() * y) / size, z / size
    ring, highest = (x**2 + y**2).sqrt(), torch.stack([x.abs(), y.abs(), z.abs()]).amax(0)
    inside = (
        lambda: x**2 + y**2 + z**2 < 1,
        lambda: highest < 0.8,
        lambda: (ring < 0.5) & (z.abs() < 1),
        lambda: (ring < 0.45 * (1 - z)) & (z.abs() < 1),
        lambda: (ring - 0.7) ** 2 + z**2 < 0.08,
        lambda: x.abs() + y.abs() + z.abs() < 1.2,
        lambda: (ring < 0.6) & (ring > 0.35) & (z.abs() < 0.9),
        lambda: (highest < 1) & ((torch.stack([x.abs(), y.abs(), z.abs()]) < 0.25).sum(0) >= 2),
    )[label]()
    cavity = torch.rand((), generator=generator) < 0.5
    flipped = torch.rand(inside.shape, generator=generator) < 0.02
    return (inside ^ cavity ^ flipped).float().unsqueeze(0)


CLASSES = 8
TASKS: dict[str, tuple[str, Callable[[int, torch.Generator], Tensor]]] = {
    "m5": ("m5_speechcommands", waveform), "voxnet": ("voxnet_modelnet10", solid),
}  # fmt: skip


def memory(args: Any) -> dict[str, Any]:
    """Return the peak memory of both children in MiB, and the loop's above the model and its optimizer."""
    own = [sys.executable, __file__, "--seed", str(args.seed), *(["--smoke"] if args.smoke else [])]
    own += ["--threads", str(args.threads)] if args.threads else []
    held, loop = (
        json.loads(subprocess.run([*own, "--child", child], check=True, capture_output=True, text=True).stdout)
        for child in ("model", "loop")
    )
    return {"network": MEMORY, "model": held, "loop": loop, "above_mib": loop["peak_mib"] - held["peak_mib"]}


def holding(args: Any) -> dict[str, Any]:
    """Hold the model and its optimizer after one step."""
    model = rf.zoo.create(MEMORY, seed=args.seed)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {"peak_mib": _harness.peak_mib()}


def looping(args: Any) -> dict[str, Any]:
    """Run two rounds of the loop."""
    generator = torch.Generator().manual_seed(args.seed)
    model = rf.zoo.create(MEMORY, seed=args.seed)
    images = torch.randn(100 if args.smoke else 1000, 3, 32, 32, generator=generator)
    train = [(x, torch.arange(len(x)) % 10) for x in images[:256].split(64)]
    values = iter([0.9, 0.1, 0.9, 0.9, 0.9])  # of the original, of both rounds, of the result
    result = rf.compress(
        model, images[:1].clone(), calibration=list(images.split(100)), evaluate=lambda _: next(values),
        strategy="similarity", finetune=rf.FineTune(data=train, optimizer="adam", epochs=1), seed=args.seed,
    )  # fmt: skip
    rounds = result.report.rounds
    seconds = [{stage: round(value, 1) for stage, value in row.seconds.items()} for row in rounds]
    return {
        "peak_mib": _harness.peak_mib(),
        "rounds": len(rounds),
        "compared_layers": len(rounds[0].similarity),
        "seconds": seconds,
    }


CHILDREN: dict[str, Callable[[Any], dict[str, Any]]] = {"model": holding, "loop": looping}


def settings(args: Any) -> dict[str, Any]:
    """Return CPU seconds and the number of settings, by search."""
    generator = torch.Generator().manual_seed(args.seed)
    model = rf.zoo.create(MEMORY, seed=args.seed)
    images = [torch.randn(100, 3, 32, 32, generator=generator) for _ in range(1 if args.smoke else 10)]
    rows = {}
    for name, search in SEARCHES.items():
        options = search_of({"strategy": "similarity", "methods": search["methods"], "seed": args.seed})
        planner = Planner(model, images[0][:1], options, images, None, given=["metric", "recipe"])
        problem = planner.problem
        planner.moments  # noqa: B018 - measured apart
        start = time.process_time()
        ladders = Ladders(
            problem=problem, objective="params", step_size=search["step_size"], max_sol=search["max_sol"]
        )  # fmt: skip
        kernels, matrices = search["methods"]
        rungs = [ladders.of(la, matrices if la.kind == "linear" else kernels) for la in problem.inventory.compressible]
        rows[name] = {"cpu_s": round(time.process_time() - start, 1), "settings": sum(map(len, rungs))}
    return rows


if __name__ == "__main__":
    main()
