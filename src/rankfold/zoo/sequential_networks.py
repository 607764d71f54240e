"""Networks that run their layers one after the other, for images, waveforms and voxels; weights are random."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from rankfold.zoo.networks import vgg_features


class SequentialNet(nn.Module):
    """Convolutional `features`, then linear layers as the `classifier`."""

    def __init__(self, features: Iterable[nn.Module], classifier: Iterable[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of a batch of inputs."""
        return self.classifier(self.features(x).flatten(1))


def alexnet(num_classes: int) -> SequentialNet:
    """Return AlexNet for images ``(N, 3, 32, 32)``.

    The layers are those of Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
    networks", NeurIPS 2012, section 3.5, with the channels of the version for one GPU (Krizhevsky, "One weird trick for
    parallelizing convolutional neural networks", 2014). Adapted to small images: all kernels are 3x3, the first
    convolution has a stride of 2, and pooling is 2x2.
    """
    features: list[nn.Module] = []
    inputs = 3
    for index, (outputs, pool) in enumerate(((64, True), (192, True), (384, False), (256, False), (256, True))):
        features += [nn.Conv2d(inputs, outputs, 3, stride=2 if index == 0 else 1, padding=1), nn.ReLU()]
        features += [nn.MaxPool2d(2)] if pool else []
        inputs = outputs
    return SequentialNet(features, _wide_classifier(256 * 2 * 2, num_classes))


def vgg(depth: int, num_classes: int) -> SequentialNet:
    """Return VGG-11, 16 or 19 without BatchNorm for images ``(N, 3, 32, 32)``.

    These are the configurations A, D and E in table 1 of Simonyan & Zisserman, "Very deep convolutional networks for
    large-scale image recognition", ICLR 2015, with the three linear layers. Adapted to small images: the features of a
    32x32 image are one pixel, so the first linear layer has 512 inputs instead of 25,088.
    """
    return SequentialNet(vgg_features(depth, norm=False), _wide_classifier(512, num_classes))


def _wide_classifier(features: int, num_classes: int) -> list[nn.Module]:
    """Return the linear layers and dropout that AlexNet and VGG share."""
    first, second = nn.Linear(features, 4096), nn.Linear(4096, 4096)
    return [nn.Dropout(), first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), nn.Linear(4096, num_classes)]


def traffic(num_classes: int) -> SequentialNet:
    """Return a traffic-sign network for images ``(N, 3, 48, 48)``.

    This is one column in table 1 of Cireşan et al., "Multi-column deep neural network for traffic sign classification",
    Neural Networks 32, 2012, the winner of the benchmark GTSRB. ReLU replaces scaled tanh.
    """
    features: list[nn.Module] = []
    for inputs, outputs, kernel in ((3, 100, 7), (100, 150, 4), (150, 250, 4)):
        features += [nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool2d(2)]
    return SequentialNet(features, [nn.Linear(250 * 3 * 3, 300), nn.ReLU(), nn.Linear(300, num_classes)])


def voxnet(num_classes: int) -> SequentialNet:
    """Return VoxNet for occupancy grids ``(N, 1, 32, 32, 32)``.

    See Maturana & Scherer, "VoxNet: a 3D convolutional neural network for real-time object recognition", IROS 2015,
    section IV: C(32, 5, 2)-C(32, 3, 1)-P(2)-FC(128)-FC(K). The rates of dropout are those of the authors' code.
    """
    features = (
        *(nn.Conv3d(1, 32, 5, stride=2), nn.LeakyReLU(0.1), nn.Dropout(0.2)),
        *(nn.Conv3d(32, 32, 3), nn.LeakyReLU(0.1), nn.MaxPool3d(2), nn.Dropout(0.3)),
    )
    return SequentialNet(features, [nn.Linear(32 * 6**3, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, num_classes)])


def m5(num_classes: int) -> SequentialNet:
    """Return M5 for waveforms ``(N, 1, T)`` at 8 kHz, such as one second with T = 8000.

    See Dai et al., "Very deep convolutional neural networks for raw waveforms", ICASSP 2017, table 1. The paper's
    recordings last four seconds; the average over time at the end accepts others.
    """
    features: list[nn.Module] = []
    for inputs, outputs, kernel in ((1, 128, 80), (128, 128, 3), (128, 256, 3), (256, 512, 3)):
        wide = kernel > 3
        features += [
            nn.Conv1d(inputs, outputs, kernel, stride=4 if wide else 1, padding=0 if wide else 1),
            *(nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)),
        ]
    return SequentialNet([*features, nn.AdaptiveAvgPool1d(1)], [nn.Linear(512, num_classes)])
