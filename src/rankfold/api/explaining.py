"""``gradcam``: whether compressed networks look at the same parts of an image as the original."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from rankfold._config import require
from rankfold._turns import in_grad_turn
from rankfold.errors import DataError
from rankfold.evaluation.heat_maps import feature_layer, grad_cam, heat_maps, predicted, similarity
from rankfold.inventory import check_model
from rankfold.reporting.heat_maps import HeatMapLevel, HeatMaps

LARGEST = 128
"""Longest side of a picture in a document, in pixels."""


@in_grad_turn
def gradcam(
    model: nn.Module, compressed: Mapping[str, nn.Module], images: Tensor, *, layer: str | None = None, name: str = ""
) -> HeatMaps:
    """Compare the Grad-CAM heat maps of compressed networks with the original's.

    All maps of an image explain the class that the original predicts.

    Parameters
    ----------
    model : Module
        The original, a classifier; left untouched.
    compressed : mapping of str to Module
        Compressed networks by name, such as their budgets; left untouched.
    images : Tensor
        ``(N, 1 or 3, height, width)``, normalized as the networks expect them.
    layer : str, optional
        Path of the convolution, or of the block, whose feature map is weighted. By default the last convolution.
    name : str
        The model's name, for the page.

    Returns
    -------
    HeatMaps
        A document: ``print``, or ``save("maps.html")``. Pictures are scaled to between their least and largest value.

    Raises
    ------
    MissingExtra
        If the package ``grad-cam`` is not installed (``pip install "rankfold[cam]"``).
    NoMatchingLayer
        If a network has no such layer.
    ConfigError
        If the model has no convolution, or the layer returns no feature map.
    DataError
        If the images are not such a tensor.
    """
    good = isinstance(compressed, Mapping) and len(compressed) > 0
    require(good, "compressed", compressed, "compressed networks by name, such as {'half': small}")
    for one in (model, *compressed.values()):
        check_model(one)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"images must be a tensor (N, 1 or 3, height, width). Got {what} instead.")
    grad_cam()
    chosen = feature_layer(model, images, layer)
    classes = predicted(model, images)
    original, pictures = heat_maps(model, images, chosen, classes), _pictures(images)
    levels: list[HeatMapLevel] = []
    for title, network in compressed.items():
        maps = heat_maps(network, images, chosen, classes)
        levels.append(
            HeatMapLevel(
                name=str(title),
                params=sum(p.numel() for p in network.parameters()),
                similarity=tuple(similarity(maps, original).tolist()),
                predicted=tuple(predicted(network, images).tolist()),
                overlays=_overlays(pictures, maps),
            )
        )
    pairs = [similarity(original[i : i + 1], original[j : j + 1]) for i, j in combinations(range(len(images)), 2)]
    return HeatMaps(
        layer=chosen,
        params=sum(p.numel() for p in model.parameters()),
        predicted=tuple(classes.tolist()),
        images=tuple(map(_png, pictures)),
        overlays=_overlays(pictures, original),
        levels=tuple(levels),
        unrelated=float(torch.cat(pairs).mean()) if pairs else None,
        model_name=name or type(model).__name__,
        created=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    )


def _pictures(images: Tensor) -> np.ndarray:
    """Return images as ``(N, height, width, 3)`` between 0 and 1."""
    flat = images.detach().float().cpu().flatten(1)
    low, high = flat.min(1).values[:, None], flat.max(1).values[:, None]
    scaled = ((flat - low) / (high - low).clamp_min(1e-9)).view(images.shape)
    return scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def _overlays(pictures: np.ndarray, maps: Tensor) -> tuple[str, ...]:
    """Return each picture under its map."""
    show = grad_cam().utils.image.show_cam_on_image
    pairs = zip(pictures, maps.numpy(), strict=True)
    return tuple(_png(show(picture, heat, use_rgb=True)) for picture, heat in pairs)


def _png(picture: np.ndarray) -> str:
    """Return a picture ``(height, width, 3)``, 0..1 or bytes, as a PNG file in base64."""
    from PIL import Image

    pixels = picture if picture.dtype == np.uint8 else np.uint8(255 * picture)
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LARGEST, LARGEST))
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
