"""Sums over pairs of a layer's input in the compressed network and what its output lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankfold.calibration.gram import CHUNK, magnitude, power_of_two, scaled, upper_product, work_dtype
from rankfold.calibration.patches import channel_vectors, data_positions, patch_vectors, with_batch
from rankfold.factor.linalg import double
from rankfold.factor.refit import PairMoments
from rankfold.inventory.padding import Padding, zeroed
from rankfold.records import LayerInfo


class PairSums:
    """The accumulated sums of one layer, in float64.

    In the *exact* form the layer lacks a part of its output, and its input is what its weight is multiplied by (the
    patches of a convolution, the vectors of a linear layer). For patches larger than `max_patch` and for transposed
    convolutions, both are channels at the input positions: the layer lacks a part of its input.
    """

    def __init__(self, layer: LayerInfo, *, max_patch: int, max_positions: int) -> None:
        self.layer = layer
        self.max_positions = max_positions
        n = layer.group_in * layer.kernel_numel
        self.exact = not layer.transposed and (layer.kernel_numel == 1 or n <= max_patch)
        self.samples = 0
        self.padded = False
        """Whether padded positions were counted as data."""
        self.total = 0.0  # energy of the target
        self._folds = (_Fold(), _Fold())  # alternating samples, for cross-validation

    @property
    def count(self) -> int:
        """The number of pairs."""
        return sum(fold.count for fold in self._folds)

    def add(self, wanted: Tensor, actual: Tensor, given: Tensor, padding: Padding | None = None) -> bool:
        """Add one call of the layer; return False, without adding anything, if the shapes do not correspond.

        Parameters
        ----------
        wanted, actual : Tensor
            Target and actual output (exact form) or input.
        given : Tensor
            The input in the compressed network.
        padding : Padding or None
            The padding of the batch; padded positions of a linear layer are left out.

        Raises
        ------
        DataError
            If a tensor contains NaN or infinity.
        """
        name = self.layer.name
        wanted, actual, given = (with_batch(t.detach(), self.layer) for t in (wanted, actual, given))
        if wanted.shape != actual.shape or len(wanted) != len(given):
            return False
        if not given.numel():
            return True
        data = None if padding is None else self._data(given, padding)
        if data is not None:
            data, transposed = data
            tensors = (t.transpose(0, 1) if transposed else t for t in (wanted, actual, given))
            wanted, actual, given = (zeroed(t, data) for t in tensors)
        side = "output" if self.exact else "input"
        sizes = [
            magnitude(wanted, f"the {side} of layer {name!r}"),
            magnitude(actual, f"the {side} of layer {name!r} in the compressed network"),
            magnitude(given, f"the input of layer {name!r} in the compressed network"),
        ]
        with torch.autocast(given.device.type, enabled=False):
            dtype = work_dtype(given)
            up, across = (0, 0) if dtype == torch.float64 else (power_of_two(max(sizes[:2])), power_of_two(sizes[2]))
            for i, fold in enumerate(self._folds):
                turn = slice((self.samples + i) % 2, None, 2)
                parts = [t[turn] for t in (wanted, actual, given)]
                if data is not None:
                    parts = [data_positions(t, data[turn], self.max_positions) for t in parts]
                if not self._fill(fold, *parts, dtype, up, across):
                    return False
        self.samples += len(given)
        return True

    def _data(self, given: Tensor, padding: Padding) -> tuple[Tensor, bool] | None:
        """Return `Padding.data` for an input; None, after a note, if padded positions cannot be told."""
        data = padding.data(given) if self.layer.kind == "linear" else None
        self.padded |= data is None and not padding.is_per_sample(given)
        return data

    def folds(self) -> list[PairMoments]:
        """Return the averages over each half of the samples that has any."""
        return [_average([fold]) for fold in self._folds if fold.count]

    def moments(self) -> PairMoments:
        """Return the averages over all samples."""
        return _average([fold for fold in self._folds if fold.count])

    def _fill(
        self, fold: _Fold, wanted: Tensor, actual: Tensor, given: Tensor, dtype: torch.dtype, up: int, across: int
    ) -> bool:
        """Add samples to a fold, one chunk at a time, divided by powers of two."""
        if not len(given):
            return True
        layer, most = self.layer, self.max_positions
        given_vectors = patch_vectors if self.exact and layer.kind == "conv" else channel_vectors
        step = max(1, CHUNK // max(1, given_vectors(given[:1].to(dtype), layer, most).numel()))
        for y, z, x in zip(wanted.split(step), actual.split(step), given.split(step), strict=True):
            whole, part = (channel_vectors(scaled(t.to(dtype), up), layer, most) for t in (y, z))
            columns = given_vectors(scaled(x.to(dtype), across), layer, most)
            if columns.shape[-1] != whole.shape[-1]:
                return False
            self.total += _energy(whole) * 4.0**up
            fold.add(whole - part, columns, 2.0**up, 2.0**across)
        return True


class _Fold:
    """The sums over one half of the samples."""

    def __init__(self) -> None:
        self.count = 0
        self.energy = 0.0
        self.sums: list[Tensor] = []  # given x given (upper half), lacking x given, lacking, given

    def add(self, lacking: Tensor, given: Tensor, up: float, across: float) -> None:
        """Add one chunk; `lacking` was divided by `up`, `given` by `across`."""
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
