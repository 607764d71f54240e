"""Sums over pairs: what a layer's output lacks, and what the layer is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankfold.calibration.gram import CHUNK, magnitude, power_of_two, scaled, upper_product, work_dtype
from rankfold.calibration.patches import channel_vectors, even_steps, patch_vectors
from rankfold.factor.linalg import double
from rankfold.factor.refit import PairMoments
from rankfold.records import LayerInfo


class PairSums:
    """The growing sums of one layer, in float64.

    In the *exact* form the layer lacks a part of its output, and is given what its weight is multiplied with (patches
    of a convolution, vectors of a linear layer). Where patches are too large, and for transposed convolutions, both are
    channels at the input positions: the layer lacks a part of its input.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    max_patch : int
        Largest size of a patch for the exact form, ``in / groups * prod(kernel)``.
    max_positions : int
        The most positions of each sample that are taken, on an even grid.
    """

    def __init__(self, layer: LayerInfo, *, max_patch: int, max_positions: int) -> None:
        self.layer = layer
        self.max_positions = max_positions
        n = layer.group_in * layer.kernel_numel
        self.exact = not layer.transposed and (layer.kernel_numel == 1 or n <= max_patch)
        self.samples = 0
        self.total = 0.0  # energy of what should be there
        self._folds = (_Fold(), _Fold())  # samples in turn, for cross-validation

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return sum(fold.count for fold in self._folds)

    def add(self, wanted: Tensor, found: Tensor, given: Tensor) -> bool:
        """Add one call of the layer; return False, with nothing added, if the tensors do not belong together.

        Parameters
        ----------
        wanted, found : Tensor
            Outputs that should be and that are (exact form), or inputs.
        given : Tensor
            The input.

        Raises
        ------
        DataError
            If there is NaN or infinity.
        """
        name = self.layer.name
        wanted, found, given = (self._batched(t.detach()) for t in (wanted, found, given))
        if wanted.shape != found.shape or len(wanted) != len(given):
            return False
        if not given.numel():
            return True
        side = "output" if self.exact else "input"
        sizes = [
            magnitude(wanted, f"the {side} of layer {name!r}"),
            magnitude(found, f"the {side} of layer {name!r} in the compressed network"),
            magnitude(given, f"the input of layer {name!r} in the compressed network"),
        ]
        with torch.autocast(given.device.type, enabled=False):
            dtype = work_dtype(given)
            up, across = (0, 0) if dtype == torch.float64 else (power_of_two(max(sizes[:2])), power_of_two(sizes[2]))
            for i, fold in enumerate(self._folds):
                turn = slice((self.samples + i) % 2, None, 2)
                if not self._fill(fold, wanted[turn], found[turn], given[turn], dtype, up, across):
                    return False
        self.samples += len(given)
        return True

    def folds(self) -> list[PairMoments]:
        """Return the averages over either half of the samples, if there are any."""
        return [_average([fold]) for fold in self._folds if fold.count]

    def moments(self) -> PairMoments:
        """Return the averages over everything."""
        return _average([fold for fold in self._folds if fold.count])

    def _fill(
        self, fold: _Fold, wanted: Tensor, found: Tensor, given: Tensor, dtype: torch.dtype, up: int, across: int
    ) -> bool:
        """Add samples to a fold, a chunk at a time, divided by powers of two."""
        if not len(given):
            return True
        step = max(1, CHUNK // max(1, self._given_vectors(given[:1].to(dtype)).numel()))
        for y, z, x in zip(wanted.split(step), found.split(step), given.split(step), strict=True):
            whole, part = (self._lacking_vectors(scaled(t.to(dtype), up)) for t in (y, z))
            columns = self._given_vectors(scaled(x.to(dtype), across))
            if columns.shape[-1] != whole.shape[-1]:
                return False
            self.total += _energy(whole) * 4.0**up
            fold.add(whole - part, columns, 2.0**up, 2.0**across)
        return True

    def _batched(self, x: Tensor) -> Tensor:
        """Add the batch dimension that a single sample comes without."""
        single = x.ndim == (1 if self.layer.kind == "linear" else len(self.layer.kernel) + 1)
        return x.unsqueeze(0) if single else x

    def _given_vectors(self, x: Tensor) -> Tensor:
        patches = self.exact and self.layer.kind == "conv"
        return (patch_vectors if patches else channel_vectors)(x, self.layer, self.max_positions)

    def _lacking_vectors(self, y: Tensor) -> Tensor:
        if not self.exact:
            return channel_vectors(y, self.layer, self.max_positions)
        if self.layer.kind == "linear":
            y = y.movedim(-1, 1)
        for axis, (start, step) in enumerate(even_steps(y.shape[2:], self.max_positions)):
            y = y[(slice(None),) * (2 + axis) + (slice(start, None, step),)]
        return y.unflatten(1, (self.layer.groups, self.layer.group_out)).movedim(0, 2).flatten(2)


class _Fold:
    """The sums over one part of the samples."""

    def __init__(self) -> None:
        self.count = 0
        self.energy = 0.0
        self.sums: list[Tensor] = []  # of given by given (upper half), lacking by given, lacking, given

    def add(self, lacking: Tensor, given: Tensor, up: float, across: float) -> None:
        """Add one chunk, whose values were divided by `up` and `across`."""
        parts = [
            double(upper_product(given)) * across * across,
            double(lacking @ given.mT) * up * across,
            double(lacking.sum(-1)) * up,
            double(given.sum(-1)) * across,
        ]
        self.sums = [a.add_(b) for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.energy += _energy(lacking) * up * up
        self.count += given.shape[-1]


def _average(folds: Sequence[_Fold]) -> PairMoments:
    count = sum(fold.count for fold in folds)
    second, cross, lacking, given = (
        torch.stack(parts).sum(0) / count for parts in zip(*(f.sums for f in folds), strict=True)
    )
    return PairMoments(
        second=second.triu() + second.triu(1).mT,
        cross=cross,
        lacking=lacking,
        given=given,
        scale=second.diagonal(dim1=-2, dim2=-1).mean(-1),
        energy=sum(fold.energy for fold in folds) / count,
        count=count,
    )


def _energy(columns: Tensor) -> float:
    return float(double(columns.square().sum(-1)).sum())
