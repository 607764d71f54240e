"""Images, waveforms and voxels in memory as a dataset of normalized float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rankfold.errors import DataError

Sample = tuple[Tensor, Tensor]

# The value that becomes 1.
_SCALES = {torch.uint8: 255, torch.int16: 32768}


@dataclass(frozen=True, slots=True)
class SampleArray:
    """Inputs and int64 labels ``(N,)`` of one split.

    Inputs are images ``(N, C, H, W)``, uint8 in [0, 255] or float; waveforms ``(N, C, T)``, int16; or voxels
    ``(N, C, D, H, W)``, bool.
    """

    inputs: Tensor
    labels: Tensor


@dataclass(slots=True)
class Preparation:
    """Prepares a batch of inputs for the network.

    Attributes
    ----------
    mean, std : tuple of float or None
        Per-channel normalization of values in [0, 1] (waveforms: [-1, 1]); None leaves them there.
    augment : bool
        Random crops of the image padded by an eighth of its height and, for color images, horizontal flips (digits
        must not be mirrored). For images only.
    generator : torch.Generator
        Source of randomness in the main process. A worker process uses its own, which the loader seeds from this one.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augment: bool
    generator: torch.Generator
    _in_worker: bool = field(default=False, init=False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return a batch of inputs (`SampleArray`) as float32."""
        if self.augment:
            inputs = self._augmented(inputs)
        out = inputs.to(torch.float32)
        if inputs.dtype in _SCALES:
            out = out.div_(_SCALES[inputs.dtype])
        if self.mean is None or self.std is None:
            return out
        if len(self.mean) != inputs.shape[1]:
            raise DataError(
                f"the inputs have {inputs.shape[1]} channels, the normalization has "
                f"{len(self.mean)}. Use data for this network, or normalize=None."
            )
        channels = (-1, *[1] * (inputs.ndim - 2))
        mean = torch.tensor(self.mean, device="cpu").view(channels)
        std = torch.tensor(self.std, device="cpu").view(channels)
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
    """Samples in memory; each batch is prepared as a whole."""

    def __init__(self, data: SampleArray, prepare: Preparation) -> None:
        self.data = data
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> Sample:
        """Return ``(input, label)``, without a batch dimension."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of one batch; called by torch's loaders and subsets."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        inputs = self.prepare(self.data.inputs[chosen])
        # A list of samples, as collate functions and subsets expect.
        return list(zip(inputs.unbind(0), self.data.labels[chosen].unbind(0), strict=True))
