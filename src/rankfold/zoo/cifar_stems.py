"""torchvision's ResNets, GoogLeNet, SqueezeNet and DenseNet with a stem for 32x32 images."""

from __future__ import annotations

from torch import nn

from rankfold.zoo.external import torchvision_models

# The first convolution, and the poolings before the first block.
_STEMS = {
    "resnet18": ("conv1", ("maxpool",)),
    "resnet34": ("conv1", ("maxpool",)),
    "resnet50": ("conv1", ("maxpool",)),
    "googlenet": ("conv1.conv", ("maxpool1", "maxpool2")),
    "squeezenet1_1": ("features.0", ("features.2",)),
    "densenet121": ("features.conv0", ("features.pool0",)),
}


def with_cifar_stem(network: str, num_classes: int) -> nn.Module:
    """Return a network of torchvision for images ``(N, 3, 32, 32)``, with random weights.

    The stems of ImageNet networks reduce the resolution by four or more. Here the first convolution is 3x3 with a
    stride of 1, and there is no pooling before the first block, as in Chen et al., "A simple framework for contrastive
    learning of visual representations", ICML 2020, section B.9. Everything else is torchvision's: ResNet (He et al.,
    CVPR 2016, table 1), GoogLeNet with BatchNorm and without auxiliary classifiers (Szegedy et al., CVPR 2015, table
    1), SqueezeNet 1.1 (Iandola et al. 2016) and DenseNet-121 (Huang et al., CVPR 2017, table 1).

    Raises
    ------
    MissingExtra
        If torchvision is not installed.
    """
    options = {"aux_logits": False, "init_weights": True} if network == "googlenet" else {}
    net = torchvision_models().get_model(network, weights=None, num_classes=num_classes, **options)
    name, poolings = _STEMS[network]
    wide = net.get_submodule(name)
    conv = nn.Conv2d(3, wide.out_channels, 3, padding=1, bias=wide.bias is not None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(name, conv)
    for pooling in poolings:
        net.set_submodule(pooling, nn.Identity())
    return net
