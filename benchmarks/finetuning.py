"""Fine-tuning of a ResNet-20 at 27.5 % of its parameters: the recipe of the RENE paper and the default one.

    RANKFOLD_DATA=... python benchmarks/finetuning.py --threads 1 --folder DIR [--recipes default] [--epochs 15]

`rankfold compress` with the plan of `rene` (tensor trains) nearest to the TT row of the paper's Table 1, once for each
recipe: ``default`` distils the outputs of the original, ``paper`` minimizes eq. 11 (labels, and weights and outputs of
the factored layers). Artifacts and checkpoints are written to the folder. A run that was stopped resumes, and an
artifact that exists is not made again. The result has top-1 on the 10,000 test images before and after, and loss,
learning rate and seconds of each epoch; the seconds include those in which the machine was busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import _harness

COMMON = (
    "--strategy rene --methods tt3,svd --no-data-aware --budget params<=27.72% --budget macs<=90% "
    "--reconstruct sequential --augment --checkpoint-every 50 --finetune-option channels_last=true"
)
RECIPES = {
    "default": "",
    "paper": "--loss task+layer --finetune-option layer_scale=mean --lr 1e-5 --finetune-option weight_decay=0 "
    "--finetune-option warmup=0 --finetune-option max_grad_norm=none",
}


def main() -> None:
    """Fine-tune what is missing, and save the figures of all artifacts."""
    parser = _harness.parser("finetuning", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="artifacts and checkpoints")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, help="recipes to run")
    parser.add_argument("--epochs", type=int, default=15, help="of each recipe")
    args = parser.parse_args()
    _harness.start(args)
    data = _harness.data_folder(parser)
    rows = []
    for recipe in args.recipes:
        options = " ".join(f"{COMMON} {RECIPES[recipe]} --epochs {args.epochs} --seed {args.seed}".split())
        artifact, known = args.folder / recipe, args.folder / f"{recipe}.txt"
        if known.exists() and known.read_text(encoding="utf-8") != options:
            parser.error(f"{artifact} was made with other options, which {known} has. Use another folder.")
        args.folder.mkdir(parents=True, exist_ok=True)
        known.write_text(options, encoding="utf-8")
        if not (artifact / "report.json").exists():
            compress(options, artifact, data, args)
        rows.append({"recipe": recipe, "options": options, **figures(artifact)})
        print(json.dumps(rows[-1]), flush=True)
    _harness.save("finetuning", rows, args)


def compress(options: str, artifact: Path, data: Path, args: argparse.Namespace) -> None:
    """Run the command with the options of a recipe; it resumes from its checkpoint."""
    command = [
        sys.executable, "-m", "rankfold", "compress", "resnet20_cifar10",
        "--weights", str(data / "weights" / "resnet20_cifar10.safetensors"), "--data", f"cifar10:{data / 'cifar10'}",
        *shlex.split(options), "--checkpoint", str(artifact.with_suffix(".pt")), "--out", str(artifact),
    ]  # fmt: skip
    threads = {} if args.threads is None else {"OMP_NUM_THREADS": str(args.threads)}
    subprocess.run(command, check=True, env={**os.environ, **threads})


def figures(artifact: Path) -> dict[str, Any]:
    """Return what the report of an artifact states."""
    report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
    (metric,) = report["metrics"]
    return {
        "parameters": report["after"]["params"],
        **{f"{cost}_removed": 1 - report["after"][cost] / report["before"][cost] for cost in ("params", "macs")},
        **{f"top1_{when}": metric[when] for when in ("dense", "compressed", "tuned", "reloaded")},
        "history": report["history"],
        "created": report["created"],
    }


if __name__ == "__main__":
    main()
