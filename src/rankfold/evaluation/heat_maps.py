"""Grad-CAM: where in an image a network sees a class (Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2).

The maps come from the package ``grad-cam``, an extra.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold._config import spelled
from rankfold.errors import ConfigError, DataError, MissingExtra, NoMatchingLayer
from rankfold.inventory import find_module, quiet, undisturbed
from rankfold.inventory.kinds import CONVS, stock_base
from rankfold.outputs import class_scores


def grad_cam() -> Any:
    """Return the package ``pytorch_grad_cam``; raise `MissingExtra` if it is not installed."""
    try:
        with quiet():  # the packages that it imports warn
            import pytorch_grad_cam
    except ImportError as error:
        raise MissingExtra("Grad-CAM", "cam", "grad-cam") from error
    return pytorch_grad_cam


def heat_maps(model: nn.Module, images: Tensor, layer: str, classes: Tensor) -> Tensor:
    """Return the Grad-CAM of each image for a class at one module.

    Parameters
    ----------
    model : Module
        A classifier; left unchanged.
    images : Tensor
        ``(N, channels, height, width)``.
    layer : str
        Path of a module that returns a feature map ``(N, channels, height, width)``.
    classes : Tensor
        ``(N,)`` class indices.

    Returns
    -------
    Tensor
        ``(N, height, width)`` on the CPU, each map between 0 and 1, bilinearly enlarged to the image.

    Raises
    ------
    MissingExtra
        If the package ``grad-cam`` is not installed.
    NoMatchingLayer, ConfigError
        As `feature_layer`.
    """
    package = grad_cam()
    module = find_module(model, feature_layer(model, images, layer))
    target = package.utils.model_targets.ClassifierOutputTarget
    with undisturbed(model), torch.enable_grad():
        before = [(p, p.grad) for p in model.parameters()]  # the package clears gradients
        scores = _Scores(model)
        with package.GradCAM(model=scores, target_layers=[module]) as cam:
            x = images.detach().clone().to(next(model.parameters())).requires_grad_()
            maps = cam(input_tensor=x, targets=[target(int(c)) for c in classes])
        for parameter, grad in before:
            parameter.grad = grad
    return torch.from_numpy(maps).float()


def feature_layer(model: nn.Module, images: Tensor, layer: str | None) -> str:
    """Return the path of a module that returns a feature map: the named one, or the convolution that runs last.

    Raises
    ------
    NoMatchingLayer
        If the model has no such module.
    ConfigError
        If the module does not run, or returns something else; or if no convolution runs.
    """
    called: list[str] = []
    hooks: list[Any] = []

    def recorder(path: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor) and output.ndim == 4:
                called.append(path)

        return record

    modules = {path: module for path, module in model.named_modules() if path}
    if layer is None:
        wanted = {path: module for path, module in modules.items() if stock_base(module) in CONVS}
    elif layer in modules:
        wanted = {layer: modules[layer]}
    else:
        raise NoMatchingLayer.of("the model", layer, list(modules))
    try:
        hooks += [module.register_forward_hook(recorder(path)) for path, module in wanted.items()]
        with undisturbed(model):
            model(images[:1].to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    if called:
        return called[-1]
    if layer is None:
        raise ConfigError(
            "Grad-CAM needs a feature map, and the model has no 2-D convolution that returns one. Name a module that "
            f"returns a tensor (batch, channels, height, width), such as {spelled('layer', 'features')}."
        )
    raise ConfigError(
        f"Grad-CAM needs a feature map, but layer {layer!r} ({type(modules[layer]).__name__}) returns no tensor "
        "(batch, channels, height, width) when the model runs. Name a convolution, or a block of convolutions."
    )


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class with the highest score of each image, ``(N,)`` on the CPU."""
    with undisturbed(model):
        scores = class_scores(model(images.to(next(model.parameters()))))
    if scores.ndim != 2:
        raise DataError(
            f"Grad-CAM needs one score per class and image. Got scores of shape {tuple(scores.shape)} instead. "
            "Pass a classifier."
        )
    return scores.argmax(1).cpu()


def similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the cosine similarity of each pair of maps, ``(N,)``: 1 for proportional maps; 1 for two empty maps."""
    ours, theirs = ours.flatten(1).double(), theirs.flatten(1).double()
    norms = ours.norm(dim=1) * theirs.norm(dim=1)
    tiny = torch.finfo(norms.dtype).tiny
    empty = (ours.norm(dim=1) == 0) & (theirs.norm(dim=1) == 0)
    return torch.where(empty, 1.0, ((ours * theirs).sum(1) / norms.clamp_min(tiny)).clamp_max(1.0))


class _Scores(nn.Module):
    """A model that returns the scores in its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return class_scores(self.model(x))
