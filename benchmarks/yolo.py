"""Compress YOLOv5n and YOLOv5s, random weights, to half of their parameters, and use the results in every way.

    pip install ultralytics yolov5 "setuptools<81"    # one of the two packages is enough
    python benchmarks/yolo.py [--networks ultralytics/yolov5n ...] [--strategy energy]

Neither package is a dependency of rankfold: mind their licences. ``ultralytics`` builds the architecture with its own
head, ``yolov5`` with the original anchors. Nothing is downloaded, and settings go to a temporary folder.

The weights are random; batch statistics are those of random images, as with zero means and unit variances the
activations of a random network of this depth vanish. For each network: coverage, processor seconds, what is left;
whether head, routes between layers and the outputs' structure are those of the dense network in eval and train mode;
whether every factor gets a finite gradient; save and load; `fuse` (folding of batch norms) before and after
compression; export.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _harness
import rankfold as rf
from rankfold._tensors import tensors_of
from rankfold.surgery import factored_layers

NETWORKS = ["ultralytics/yolov5n", "ultralytics/yolov5s", "yolov5/yolov5n", "yolov5/yolov5s"]
TOLERANCE = 1e-4


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("yolo", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="default: those whose package is installed")
    parser.add_argument("--budget", default="params<=50%")
    parser.add_argument("--strategy", help="default: the library's")
    parser.add_argument("--calibration", type=int, default=8, help="number of random images of 160 x 160; 0 for none")
    args = parser.parse_args()
    args.networks = _available(parser, args.networks)
    with tempfile.TemporaryDirectory() as folder:
        # Documented switches of ultralytics: no network, no installing, settings here and not in the home folder.
        os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=folder, YOLO_VERBOSE="false")
        _harness.start(args)
        rows = []
        for name in args.networks:
            rows.append({**one(name, args, Path(folder)), "commit": _harness.commit()})
            print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    print(_harness.save("yolo", merged(args.out, rows), args))


def merged(file: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and those of other networks that the result file has: networks may be measured one by one."""
    found = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else []
    by_name = {row["network"]: row for row in (*found, *rows)}
    return [by_name[name] for name in NETWORKS if name in by_name]


def one(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compress one network, use it, and return a row."""
    model = create(name, args.seed)
    images = _images(4, 320, args.seed + 1)
    x = images[:1]
    data = list(_images(args.calibration, 160, args.seed + 2).split(4)) if args.calibration else None
    row: dict[str, Any] = {
        "network": name,
        "images": args.calibration,
        "coverage": round(rf.inspect(model, x).coverage[0], 4),
    }
    start = time.process_time()
    options = {} if args.strategy is None else {"strategy": args.strategy}
    plan = rf.plan(model, x, budget=args.budget, calibration=data, seed=args.seed, **options)
    row["plan_cpu_seconds"] = round(time.process_time() - start, 1)
    start = time.process_time()
    small = rf.apply(model, plan, calibration=data)
    row["apply_cpu_seconds"] = round(time.process_time() - start, 1)
    before, after = _params(model), _params(small)
    row |= {"strategy": plan.provenance.strategy, "params": before, "params_after": after, "left": after / before}
    row["factored"] = len(plan.factored)
    row["head"] = intact(model, small)
    row["outputs"] = same_outputs(model, small, images)
    row["backward"] = backward(small, images)
    row["save_load"] = save_load(small, model, images, folder / name.replace("/", "-"))
    row["fuse_then_compress"] = _tried(lambda: fused_first(model, plan, images))
    row["compress_then_fuse"] = _tried(lambda: fused_after(small, x))
    row["export"] = _tried(lambda: exported(small, x)) if _tried(lambda: exported(model, x)) == "ok" else "dense fails"
    return row


def create(name: str, seed: int) -> Any:
    """Return a network with random weights, in eval mode."""
    package, _, architecture = name.partition("/")
    torch.manual_seed(seed)
    if package == "ultralytics":
        model: Any = importlib.import_module("ultralytics.nn.tasks").DetectionModel(
            f"{architecture}.yaml", verbose=False
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages it imports
            module = importlib.import_module("yolov5.models.yolo")
        logging.getLogger("yolov5").setLevel(logging.WARNING)
        model = module.DetectionModel(str(Path(module.__file__ or "").with_name(f"{architecture}.yaml")))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average over all batches
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in _images(16, 160, seed + 3).split(8):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def intact(model: Any, small: Any) -> str:
    """Return "ok" if head, routes and what decodes the outputs are those of the dense network."""
    old, new = model.model[-1], small.model[-1]
    problems = [] if type(old) is type(new) else [f"the head is a {type(new).__name__}"]
    problems += [f"{k} differs" for k in ("stride", "anchors", "nc", "no", "nl") if not _equal(old, new, k)]
    for a, b in zip(model.model, small.model, strict=True):
        problems += [f"layer {a.i}: {k} differs" for k in ("i", "f", "type", "np") if getattr(a, k) != getattr(b, k)]
    layers = {n: m for n, m in old.named_modules() if isinstance(m, nn.Conv2d)}
    factored = factored_layers(new)
    for n, layer in layers.items():
        twin = new.get_submodule(n)
        if n not in factored and not (type(twin) is type(layer) and torch.equal(twin.weight, layer.weight)):
            problems.append(f"{n} was neither factored nor kept")
    frozen = [n for n, p in old.named_parameters() if not p.requires_grad]
    problems += [f"{n} is no longer frozen" for n in frozen if new.get_parameter(n).requires_grad]
    return "; ".join(problems) or f"ok: {len(factored)} of {len(layers)} factored"


def same_outputs(model: nn.Module, small: nn.Module, images: Tensor) -> str:
    """Return "ok" if the outputs have the dense network's structure and shapes, image by image, in both modes."""
    for training in (False, True):
        one_, two = copy.deepcopy(model).train(training), copy.deepcopy(small).train(training)
        for image in images.split(1):
            with torch.no_grad():
                wanted, got = one_(image), two(image)
            if _structure(got) != _structure(wanted):
                return f"other structure (train={training})"
            if not all(bool(t.isfinite().all()) for t in tensors_of(got)):
                return f"not finite (train={training})"
    return "ok"


def backward(small: nn.Module, images: Tensor) -> str:
    """Run forward and backward in train mode; every factor must get a finite gradient that is not zero."""
    twin = copy.deepcopy(small).train()
    sum(t.square().mean() for t in tensors_of(twin(images))).backward()  # type: ignore[union-attr]
    count = 0
    for name, layer in factored_layers(twin).items():
        for part, p in layer.named_parameters():
            if p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any()):
                return f"{name}.{part} has no gradient"
            count += 1
    return f"ok: {count} tensors" if count else "no factors"


def save_load(small: nn.Module, model: nn.Module, images: Tensor, folder: Path) -> str:
    """Save, load onto the dense architecture, and compare the outputs."""
    rf.save(small, folder)
    return _compare(rf.load(folder, copy.deepcopy(model)), small.eval(), images[:1], 0.0)


def fused_first(model: Any, plan: rf.Plan, images: Tensor) -> str:
    """Fold the dense network's batch norms, apply the plan (without data, for time), and compare the structure."""
    fused = fuse(copy.deepcopy(model))
    with torch.no_grad():
        wanted = _structure(fused(images[:1]))
        small = rf.apply(fused, plan)
        got = small(images[:1])
    finite = all(bool(t.isfinite().all()) for t in tensors_of(got))
    return "ok" if _structure(got) == wanted and finite and factored_layers(small) else "other outputs"


def fused_after(small: Any, x: Tensor) -> str:
    """Fold the compressed network's batch norms: compare the outputs, and say if layers are no longer factored."""
    twin = fuse(copy.deepcopy(small))
    kept = len(factored_layers(twin)) == len(factored_layers(small))
    result = _compare(twin, small, x, TOLERANCE)
    return result if result != "ok" or kept else "ok, but dense again"


def fuse(model: Any) -> Any:
    """Call the package's `fuse`."""
    with torch.no_grad():
        return model.eval().fuse()


def exported(model: nn.Module, x: Tensor) -> str:
    """Export, run the exported program, and compare."""
    program = torch.export.export(copy.deepcopy(model).eval(), (x,))
    return _compare(program.module(), model, x, TOLERANCE)


def _compare(one_: Callable[..., Any], two: Callable[..., Any], x: Tensor, tolerance: float) -> str:
    with torch.no_grad():
        got, wanted = tensors_of(one_(x)), tensors_of(two(x))
    worst = max(float((g - w).abs().max() / w.abs().max().clamp_min(1e-9)) for g, w in zip(got, wanted, strict=True))
    return "ok" if worst <= tolerance else f"differs by {worst:.1e}"


def _structure(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return tuple(outputs.shape)
    if isinstance(outputs, dict):
        return {key: _structure(value) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return type(outputs).__name__, [_structure(value) for value in outputs]
    return type(outputs).__name__


def _equal(old: Any, new: Any, name: str) -> bool:
    a, b = getattr(old, name, None), getattr(new, name, None)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def _tried(work: Callable[[], str]) -> str:
    try:
        return work()
    except Exception as error:  # whatever the exporter raises is the result
        return f"fails: {type(error).__name__}"


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _images(count: int, size: int, seed: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _available(parser: argparse.ArgumentParser, wanted: list[str] | None) -> list[str]:
    """Return the networks whose package is installed; end with a message if one that was asked for is not."""
    missing = {p for p in ("ultralytics", "yolov5") if importlib.util.find_spec(p) is None}
    chosen = [n for n in wanted or NETWORKS if wanted or n.partition("/")[0] not in missing]
    lacking = sorted({n.partition("/")[0] for n in chosen} & missing) or ([] if chosen else sorted(missing))
    if lacking:
        parser.error(
            f"{' and '.join(lacking)}: not installed. Neither is a dependency of rankfold; install one with\n"
            '    pip install ultralytics            # or: pip install yolov5 "setuptools<81"'
        )
    return chosen


if __name__ == "__main__":
    sys.exit(main())
