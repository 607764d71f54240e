"""Faster, Mask and Keypoint R-CNN with compressed ResNet-50 backbones: frames per second, a training step, reloading.

    python benchmarks/detection.py [--networks fasterrcnn ...] [--strategies norton ...] [--threads 1]

torchvision's detectors with random weights, on generated images. Strategies plan for half of the parameters of the
ResNet-50 inside the detector (``params(backbone.body.*)<=50%``), without data. ``classifier`` instead compresses a
ResNet-50 classifier with ``norton`` and builds the detector around it. Frames per second are from one run in which
both detectors alternate, per second of processor time, so that other load on the machine does not matter. With random
weights, the number of objects that pass the threshold is chance, and the heads of masks and keypoints run on each of
them. Therefore the threshold is 0, every detector has 100 proposals per image, and the 10 best detections are kept.
Networks may be measured one by one: rows of others stay in the result file.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import _harness
import rankfold as rf

NETWORKS = ("fasterrcnn", "maskrcnn", "keypointrcnn")
STRATEGIES = ("norton", "compressnas", "joint", "classifier")
BODY = "backbone.body"
STAGES = ("layer1", "layer2", "layer3", "layer4")
EQUAL_WORK = {"rpn_post_nms_top_n_test": 100, "box_score_thresh": 0.0, "box_detections_per_img": 10}


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("detection", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--side", type=int, default=256, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=5, help="forward passes of each detector")
    args = parser.parse_args()
    _harness.start(args)
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for network in args.networks:
        for strategy in args.strategies:
            done = next((r for r in rows if (r["network"], r["strategy"]) == (network, strategy)), None)
            if done is None:
                rows.append(one(network, strategy, args))
                print(rows[-1], flush=True)
                _harness.save("detection", rows, args)


def create(network: str, args: Any, seed: int) -> Any:
    """Return a detector with random weights."""
    torch.manual_seed(seed)
    function = getattr(detection, f"{network}_resnet50_fpn")
    sizes = {"min_size": args.side, "max_size": args.side}
    return function(weights=None, weights_backbone=None, **sizes, **EQUAL_WORK).eval()


def around(body: nn.Module, widths: list[int], network: str, args: Any, seed: int) -> Any:
    """Return a detector with random weights around a ResNet whose stages have (or will have) these widths."""
    model = create(network, args, seed)
    layers = {stage: str(i) for i, stage in enumerate(STAGES)}
    model.backbone = BackboneWithFPN(body, layers, widths, 256, extra_blocks=LastLevelMaxPool()).eval()
    return model


def stage_widths(body: Any, args: Any) -> list[int]:
    """Return the channels of the outputs of the four stages of a ResNet."""
    x, widths = torch.zeros(1, 3, args.side, args.side), list[int]()
    with torch.no_grad():
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        for stage in STAGES:
            x = getattr(body.eval(), stage)(x)
            widths.append(x.shape[1])
    return widths


def images(args: Any, seed: int) -> list[Tensor]:
    """Return an image."""
    return [torch.rand(3, args.side, args.side, generator=torch.Generator().manual_seed(seed))]


def one(network: str, strategy: str, args: Any) -> dict[str, Any]:
    """Compress one backbone, use the detector, and return a row."""
    small: Any
    x, dense = images(args, args.seed), create(network, args, args.seed)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if strategy == "classifier":
            classifier = resnet50(weights=None).eval()
            example = torch.rand(1, 3, args.side, args.side)
            body: Any = rf.compress(classifier, example, budget="params<=50%", strategy="norton", seed=args.seed).model
            seconds, widths = time.process_time() - start, stage_widths(body, args)
            small = around(body, widths, network, args, args.seed)
            fresh = around(resnet50(weights=None), widths, network, args, 1)  # runs only after loading
            rf.save(small, Path(folder) / "small")
        else:
            options: dict[str, Any] = {"joint": rf.CompressNAS(proxy="weight", widths=(0.75, 0.5))}
            result = rf.compress(
                dense, x, budget=f"params({BODY}.*)<=50%", strategy=options.get(strategy, strategy), seed=args.seed,
                output=Path(folder) / "small",
            )  # fmt: skip
            seconds = time.process_time() - start
            small, fresh = result.model, create(network, args, 1)
        loaded = rf.load(Path(folder) / "small", fresh)
        same = equal(loaded, small, x)
    with torch.no_grad():
        found = [len(model.eval()(x)[0]["boxes"]) for model in (dense, small)]
    fps, fps_after = frames_per_second(dense, small, x, args.rounds)
    return {
        "network": network,
        "strategy": strategy,
        "params": count(dense),
        "params_after": count(small),
        "body_params": count(dense.backbone.body),
        "body_params_after": count(small.backbone.body),
        "compress_cpu_s": round(seconds),
        "detections": found,
        "fps": round(fps, 3),
        "fps_after": round(fps_after, 3),
        "training_loss": training_step(network, small, args),
        "reloaded_equal": same,
    }


def count(model: Any) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def equal(one: Any, other: Any, x: list[Tensor]) -> bool:
    """Return whether two detectors return the same detections."""
    with torch.no_grad():
        ours, theirs = one.eval()(x)[0], other.eval()(x)[0]
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def frames_per_second(dense: Any, small: Any, x: list[Tensor], rounds: int) -> tuple[float, float]:
    """Return images per second of processor time of two detectors that alternate: medians after one round."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(rounds + 1):
            for model, times in zip((dense, small), seconds, strict=True):
                start = time.process_time()
                model.eval()(x)
                times.append(time.process_time() - start)
    first, second = (1 / statistics.median(times[1:]) for times in seconds)
    return first, second


def training_step(network: str, model: Any, args: Any) -> float:
    """Make a step of SGD on two images; return the loss before it, after checking the gradients of the body."""
    target: dict[str, Tensor] = {"boxes": torch.tensor([[20.0, 30.0, 150.0, 160.0]]), "labels": torch.tensor([1])}
    if network == "maskrcnn":
        target["masks"] = torch.ones(1, args.side, args.side, dtype=torch.uint8)
    if network == "keypointrcnn":
        target["keypoints"] = torch.tensor([[[60.0 + i, 70.0 + i, 1.0] for i in range(17)]])
    model = copy.deepcopy(model).train()
    losses = model(images(args, 1) + images(args, 2), [target, target])
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    grads = [p.grad for p in model.backbone.body.parameters() if p.requires_grad]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads), f"{network}: a gradient is missing"
    torch.optim.SGD(model.parameters(), 1e-3).step()
    return round(float(loss.detach()), 4)


if __name__ == "__main__":
    main()
