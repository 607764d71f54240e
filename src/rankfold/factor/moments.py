"""Second moments of a layer's input: all that data-aware factorization needs to know about the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments ``E[x x^T]`` of a layer's input x, averaged over samples and positions, in float64.

    The mean squared change of the layer's output under a change D of its weight is ``tr(D E[x x^T] D^T)``, so these
    matrices say how much every direction of the weight matters on the data.

    Parameters
    ----------
    channel : Tensor
        Moment of the channel vector at one position, ``(groups, in / groups, in / groups)``.
    patch : Tensor or None
        Moment of the patch that the kernel sees, ``(groups, n, n)`` with ``n = in / groups * prod(kernel)``, indexed
        like a row of the weight reshaped to ``(out, n)`` (channel first, then kernel position). None if it would be too
        large, and for transposed convolutions, for which it has no meaning.
    count : int
        Number of vectors that the channel moment averages.
    patches : int
        Number of vectors that the patch moment averages.
    """

    channel: Tensor
    patch: Tensor | None
    count: int
    patches: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments that are present, by name."""
        return {"channel": self.channel} | ({} if self.patch is None else {"patch": self.patch})

    def without(self, part: Moments) -> Moments | None:
        """Return the moments without the vectors that `part` averages; None if no vectors remain."""
        count, patches = self.count - part.count, self.patches - part.patches
        if count <= 0:
            return None
        channel, patch = (self.channel * self.count - part.channel * part.count) / count, None
        if self.patch is not None and part.patch is not None and patches > 0:
            patch = (self.patch * self.patches - part.patch * part.patches) / patches
        return Moments(channel=channel, patch=patch, count=count, patches=0 if patch is None else patches)


def output_energy(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return ``E ||W x||^2`` of a canonical weight ``(groups, o, i, *kernel)``; the squared norm without moments.

    With the patch moment this is exact; with the channel moment alone, kernel positions are treated as independent.
    """
    if moments is None:
        return weight.square().sum()
    flat = weight.flatten(3) if weight.ndim > 3 else weight.unsqueeze(-1)
    if moments.patch is not None and flat.shape[-1] > 1:
        matrix = flat.flatten(2)
        return torch.einsum("gon,gnm,gom->", matrix, moments.patch.to(matrix), matrix)
    return torch.einsum("goik,gij,gojk->", flat, moments.channel.to(flat), flat)
