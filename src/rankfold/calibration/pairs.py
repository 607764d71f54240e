"""Sums over pairs: what a layer is to put out, and what it is given now."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.calibration.gram import CHUNK, double, magnitude, power_of_two, scaled, upper_product, work_dtype
from rankfold.calibration.patches import channel_vectors, even_steps, patch_vectors
from rankfold.records import LayerInfo


class PairSums:
    """The growing sums of one layer, in float64.

    In the *exact* form the wanted vectors are outputs and the seen ones what the weight is multiplied with (patches of
    a convolution, vectors of a linear layer). Where patches are too large, and for transposed convolutions, both are
    the channels at the input positions: wanted are those of the original network.

    Parameters
    ----------
    layer : LayerInfo
        The layer.
    max_patch : int
        Largest size of a patch for the exact form, ``in / groups * prod(kernel)``.
    max_positions : int
        Of each sample at most so many positions enter, on an even grid.
    """

    def __init__(self, layer: LayerInfo, *, max_patch: int, max_positions: int) -> None:
        self.layer = layer
        self.max_positions = max_positions
        n = layer.group_in * layer.kernel_numel
        self.exact = not layer.transposed and (layer.kernel_numel == 1 or n <= max_patch)
        self.count = 0
        self.energy = 0.0
        self._sums: list[Tensor] = []  # of seen by seen (upper half), wanted by seen, wanted, seen

    def add(self, wanted: Tensor, seen: Tensor) -> bool:
        """Add one call of the layer; return False, with nothing added, if the two do not belong together.

        Raises
        ------
        DataError
            If either holds NaN or infinity.
        """
        layer = self.layer
        wanted, seen = (self._batched(t.detach()) for t in (wanted, seen))
        if len(wanted) != len(seen) or not (self.exact or wanted.shape == seen.shape):
            return False
        if not seen.numel():
            return True
        sizes = [
            magnitude(wanted, f"the {'output' if self.exact else 'input'} of layer {layer.name!r}"),
            magnitude(seen, f"the input of layer {layer.name!r} in the compressed network"),
        ]
        with torch.autocast(seen.device.type, enabled=False):
            dtype = work_dtype(seen)
            shifts = [0 if dtype == torch.float64 else power_of_two(size) for size in sizes]
            step = max(1, CHUNK // max(1, self._seen_vectors(seen[:1].to(dtype)).numel()))
            for a, b in zip(wanted.split(step), seen.split(step), strict=True):
                columns = self._wanted_vectors(scaled(a.to(dtype), shifts[0]))
                patches = self._seen_vectors(scaled(b.to(dtype), shifts[1]))
                if columns.shape[-1] != patches.shape[-1]:
                    return False
                self._accumulate(columns, patches, *(2.0**shift for shift in shifts))
        return True

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return averages: ``C`` of the seen, ``T`` wanted by seen, and both means, ``(groups, n)`` each."""
        second, cross, wanted, seen = (total / self.count for total in self._sums)
        return second.triu() + second.triu(1).mT, cross, wanted, seen

    def _batched(self, x: Tensor) -> Tensor:
        """Add the batch dimension that a single sample comes without."""
        single = x.ndim == (1 if self.layer.kind == "linear" else len(self.layer.kernel) + 1)
        return x.unsqueeze(0) if single else x

    def _seen_vectors(self, x: Tensor) -> Tensor:
        patches = self.exact and self.layer.kind == "conv"
        return (patch_vectors if patches else channel_vectors)(x, self.layer, self.max_positions)

    def _wanted_vectors(self, y: Tensor) -> Tensor:
        if not self.exact:
            return channel_vectors(y, self.layer, self.max_positions)
        if self.layer.kind == "linear":
            y = y.movedim(-1, 1)
        for axis, (start, step) in enumerate(even_steps(y.shape[2:], self.max_positions)):
            y = y[(slice(None),) * (2 + axis) + (slice(start, None, step),)]
        return y.unflatten(1, (self.layer.groups, self.layer.group_out)).movedim(0, 2).flatten(2)

    def _accumulate(self, wanted: Tensor, seen: Tensor, up: float, across: float) -> None:
        """Add one chunk, whose values were divided by `up` and `across`."""
        parts = [
            double(upper_product(seen)) * across * across,
            double(wanted @ seen.mT) * up * across,
            double(wanted.sum(-1)) * up,
            double(seen.sum(-1)) * across,
        ]
        self.energy += float(double(wanted.square().sum(-1)).sum()) * up * up
        self._sums = [a.add_(b) for a, b in zip(self._sums, parts, strict=True)] if self._sums else parts
        self.count += seen.shape[-1]
