"""The whole loop of ``similarity`` on trained networks for one- and three-dimensional inputs, on generated data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.tune import FROM_SCRATCH

CLASSES = 4


def waveforms(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return tones, rising and falling chirps and tremolos of random frequency and phase, with noise: ``(N, 1, 160)``.

    The mean at each position is the same for all classes, so that no linear classifier can tell them apart.
    """
    generator, label = torch.Generator().manual_seed(seed), torch.arange(count) % CLASSES
    time, random = torch.linspace(0, 1, 160), torch.rand(4, count, 1, generator=generator)
    bend = torch.tensor([0.0, 8.0, -4.0, 0.0])[label, None] * time**2
    depth = torch.tensor([0.0, 0.0, 0.0, 1.0])[label, None]
    envelope = 1 + depth * torch.sin(2 * torch.pi * (6 * time + random[0]))
    wave = envelope * torch.sin(2 * torch.pi * ((8 + 8 * random[1]) * time + bend + random[2]))
    return (wave + 0.1 * torch.randn(wave.shape, generator=generator)).unsqueeze(1), label


def solids(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return spheres, cubes, rods and tori of random size and position, with flipped voxels: ``(N, 1, 12, 12, 12)``.

    Every other one of a class is a cavity, for the same reason as above.
    """
    generator, label = torch.Generator().manual_seed(seed), torch.arange(count) % CLASSES
    axis, random = torch.arange(12.0) - 5.5, torch.rand(count, 4, 1, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    x, y, z = ((grid - 2 * random[:, :3] + 1) / (3 + 2 * random[:, 3:])).unbind(1)
    ring, highest = (x**2 + y**2).sqrt(), torch.stack([x.abs(), y.abs(), z.abs()]).amax(0)
    rod, torus = (ring < 0.5) & (z.abs() < 1), (ring - 0.7) ** 2 + z**2 < 0.1
    inside = torch.stack([x**2 + y**2 + z**2 < 1, highest < 0.8, rod, torus], 1)[torch.arange(count), label]
    cavity = (torch.arange(count) // CLASSES % 2 == 1)[:, None, None, None]
    flipped = torch.rand(inside.shape, generator=generator) < 0.02
    return (inside ^ cavity ^ flipped).float().unsqueeze(1), label


def m5() -> nn.Module:
    """Return a small network with the structure of M5."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((1, 24, 16), (24, 24, 3), (24, 32, 3)):
        wide = kernel > 3
        conv = nn.Conv1d(inputs, outputs, kernel, stride=4 if wide else 1, padding=0 if wide else 1)
        layers += [conv, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def voxnet() -> nn.Module:
    """Return a small network with the structure of VoxNet."""
    convs = (nn.Conv3d(1, 16, 3, stride=2), nn.LeakyReLU(0.1), nn.Conv3d(16, 16, 3, padding=1), nn.LeakyReLU(0.1))
    return nn.Sequential(
        *convs, nn.MaxPool3d(2), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, CLASSES)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("network", "data"), [(m5, waveforms), (voxnet, solids)], ids=["m5", "voxnet"])
def test_most_parameters_of_the_convolutions_go(
    network: Callable[[], nn.Module], data: Callable[[int, int], tuple[Tensor, Tensor]]
) -> None:
    x, label = data(512, 0)
    train, accuracy = list(zip(x.split(32), label.split(32), strict=True)), rf.top1([data(256, 1)])
    recipe = replace(FROM_SCRATCH, data=train, epochs=10, lr=4e-3)
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), CLASSES))
    assert rf.evaluate(rf.finetune(flat, recipe, metric=accuracy).model, accuracy) < 0.6, "the task needs depth"
    model = rf.finetune(network(), recipe, metric=accuracy).model.eval()
    dense = rf.evaluate(model, accuracy)
    assert dense > 0.95
    result = rf.compress(
        model, x[:1], budget="accuracy_drop<=1.5%", evaluate=accuracy, calibration=[x for x, _ in train],
        strategy="similarity", finetune=rf.FineTune(data=train, epochs=2),
    )  # fmt: skip
    convs = [row for row in result.report.layers if row.layer.startswith("Conv")]
    before, after = sum(row.before.params for row in convs), sum(row.after.params for row in convs)
    assert after <= 0.4 * before
    assert rf.evaluate(result.model, accuracy) >= dense - 0.015 - 1e-9
    assert result.report.rounds[0].drop > 0.015, "rank 1 is not enough"
    assert len(result.report.rounds) > 2
