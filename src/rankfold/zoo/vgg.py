"""VGG-16 with BatchNorm for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

# Configuration D: output channels of the 3x3 convolutions of each of the five stages.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVGG16(nn.Module):
    """VGG-16-BN with one linear layer behind its 13 convolutions, 14,728,266 parameters.

    Five poolings leave one pixel of 512 channels of a 32x32 image, so the two hidden linear layers
    of the ImageNet network have nothing to do and are left out, as usual on CIFAR.

    Parameters
    ----------
    num_classes : int
        Number of outputs.

    References
    ----------
    K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015, table 1, configuration D.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in _STAGES:
            for outputs in stage:
                conv = nn.Conv2d(inputs, outputs, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, 3, 32, 32)``."""
        return self.classifier(self.features(x).flatten(1))
