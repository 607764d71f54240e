"""Second moments of a layer's input: what data-aware factorization needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments ``E[x x^T]`` of a layer's input, averaged over samples and positions, float64.

    Parameters
    ----------
    channel : Tensor
        Of the channel vector at one position, ``(groups, in / groups, in / groups)``.
    patch : Tensor or None
        Of the patch that the kernel sees, ``(groups, n, n)`` with ``n = in / groups * prod(kernel)``, indexed like a
        row of the weight reshaped to ``(out, n)`` (channel first, then kernel position). None where it would be too
        large, or has no meaning (transposed convolutions).
    count : int
        How many vectors the channel moment averages.
    """

    channel: Tensor
    patch: Tensor | None
    count: int

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments that there are, by name."""
        return {"channel": self.channel} | ({} if self.patch is None else {"patch": self.patch})


def output_energy(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return ``E ||W x||^2`` of a canonical weight ``(groups, o, i, *kernel)``; the squared norm without moments.

    With the patch moment this is exact; with the channel moment, every kernel position is taken to see it
    independently.
    """
    if moments is None:
        return weight.square().sum()
    flat = weight.flatten(3) if weight.ndim > 3 else weight.unsqueeze(-1)
    if moments.patch is not None and flat.shape[-1] > 1:
        matrix = flat.flatten(2)
        return torch.einsum("gon,gnm,gom->", matrix, moments.patch.to(matrix), matrix)
    return torch.einsum("goik,gij,gojk->", flat, moments.channel.to(flat), flat)
