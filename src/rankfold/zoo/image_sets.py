"""Images in memory as a dataset of normalised float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rankfold.errors import DataError

Sample = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class ImageArray:
    """Images ``(N, C, H, W)``, uint8 in [0, 255] or float, and int64 labels ``(N,)`` of one split."""

    images: Tensor
    labels: Tensor


@dataclass(slots=True)
class Preparation:
    """Prepares a batch of images for the network.

    Attributes
    ----------
    mean, std : tuple of float or None
        Per-channel normalisation of pixels in [0, 1]; None leaves them in [0, 1].
    augment : bool
        Random crops of the image padded by an eighth of its height and, for colour images, horizontal flips (digits
        must not be mirrored).
    generator : torch.Generator
        Source of randomness in the main process. A worker process uses its own, which the loader seeds from this one.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augment: bool
    generator: torch.Generator
    _in_worker: bool = field(default=False, init=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the float32 batch ``(N, C, H, W)`` of images of the same shape, uint8 or float."""
        if self.augment:
            images = self._augmented(images)
        out = images.to(torch.float32)
        if images.dtype == torch.uint8:
            out = out.div_(255)
        if self.mean is None or self.std is None:
            return out
        if len(self.mean) != images.shape[1]:
            raise DataError(
                f"the images have {images.shape[1]} channels, the normalisation has "
                f"{len(self.mean)}. Use data for this network, or normalize=None."
            )
        mean = torch.tensor(self.mean, device="cpu").view(1, -1, 1, 1)
        std = torch.tensor(self.std, device="cpu").view(1, -1, 1, 1)
        return (out - mean).div_(std)

    def _augmented(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        pad = height // 8
        draw = self._generator()
        top = torch.randint(0, 2 * pad + 1, (count, 1), generator=draw, device="cpu")
        left = torch.randint(0, 2 * pad + 1, (count, 1), generator=draw, device="cpu")
        mirror = torch.rand((count, 1), generator=draw, device="cpu") < 0.5
        rows = top + torch.arange(height, device="cpu")
        columns = left + torch.arange(width, device="cpu")
        if channels == 3:
            columns = torch.where(mirror, columns.flip(1), columns)
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        picture = torch.arange(count, device="cpu")[:, None, None, None]
        channel = torch.arange(channels, device="cpu")[None, :, None, None]
        return padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _generator(self) -> torch.Generator:
        worker = get_worker_info()
        if worker is not None and not self._in_worker:
            # Workers start with copies of one state and would all draw the same numbers.
            self.generator = torch.Generator().manual_seed(worker.seed)
            self._in_worker = True
        return self.generator


class ArrayDataset(Dataset[Sample]):
    """Images in memory; each batch is prepared as a whole."""

    def __init__(self, data: ImageArray, prepare: Preparation) -> None:
        self.data = data
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> Sample:
        """Return ``(image (C, H, W), label)``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of one batch; called by torch's loaders and subsets."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        images = self.prepare(self.data.images[chosen])
        # A list of samples, as collate functions and subsets expect.
        return list(zip(images.unbind(0), self.data.labels[chosen].unbind(0), strict=True))
