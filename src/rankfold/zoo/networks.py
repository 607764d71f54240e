"""The zoo's own networks for small images; weights are initialized randomly."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from rankfold._config import require

# Configurations A, D and E: convolutions with 64, 128, 256, 512 and 512 channels.
_VGG_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class LeNet5(nn.Module):
    """LeNet-5 for 28x28 digits: two convolutions and three linear layers.

    Layer sizes follow LeCun et al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE
    86(11), 1998, section II.B. As in most current versions, ReLU replaces scaled tanh, max pooling replaces trainable
    subsampling, a linear layer replaces the radial basis functions, and the second convolution is dense. A padding of 2
    accounts for images that are 28 instead of 32 pixels wide. All widths but the last are divided by `divide`, which
    makes a student for distillation.
    """

    def __init__(self, num_classes: int = 10, *, divide: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6 // divide, 5, padding=2)
        self.conv2 = nn.Conv2d(6 // divide, 16 // divide, 5)
        self.fc1 = nn.Linear(16 // divide * 5 * 5, 120 // divide)
        self.fc2 = nn.Linear(120 // divide, 84 // divide)
        self.fc3 = nn.Linear(84 // divide, num_classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, 1, 28, 28)``."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(x.flatten(1)))
        return self.fc3(self.relu(self.fc2(x)))


class CifarVGG16(nn.Module):
    """VGG-16 with BatchNorm for 32x32 images.

    The convolutions are those of configuration D in table 1 of Simonyan & Zisserman, "Very deep convolutional networks
    for large-scale image recognition", ICLR 2015. Five pooling layers reduce a 32x32 image to one pixel, so a single
    linear layer replaces the three of the ImageNet network, as is usual on CIFAR.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = vgg_features(16, norm=True)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, 3, 32, 32)``."""
        return self.classifier(self.features(x).flatten(1))


def vgg_features(depth: int, *, norm: bool) -> nn.Sequential:
    """Return the convolutions of VGG-11, 16 or 19 with ReLU (and BatchNorm, with `norm`), and the five poolings."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in zip((64, 128, 256, 512, 512), _VGG_STAGES[depth], strict=True):
        for _ in range(count):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
            layers += [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class PadShortcut(nn.Module):
    """Parameter-free shortcut (option A): stride 2 in both directions, with zeros for `new_channels` new channels.

    Half of the zero channels come before and half after the existing ones, as in the code that the public weights were
    trained with. The paper does not specify their position.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.pad = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C + new_channels, ceil(H/2), ceil(W/2))``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut; halves the resolution if the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32x32 images with three stages of 16, 32 and 64 channels; `depth` is 6n + 2, such as 20 or 56.

    See He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2 and table 6. The shortcuts are
    those of option A (section 3.3).
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        fits = depth >= 8 and depth % 6 == 2
        require(fits, "depth of a CIFAR ResNet", depth, "8, 14, 20 or another 6n + 2")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, 3, 32, 32)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs), *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))
