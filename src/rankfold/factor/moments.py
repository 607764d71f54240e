"""Second moments of a layer's input: what data-aware factorization needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments ``E[x x^T]`` of a layer's input, averaged over samples and positions, float64.

    Parameters
    ----------
    channel : Tensor
        Of the channel vector at one position, ``(groups, in / groups, in / groups)``.
    patch : Tensor or None
        Of the patch that the kernel sees, ``(groups, n, n)`` with ``n = in / groups * prod(kernel)``, indexed like a row of
        the weight reshaped to ``(out, n)`` (channel first, then kernel position). None where it would be too large, or has
        no meaning (transposed convolutions).
    count : int
        How many vectors the channel moment averages.
    """

    channel: Tensor
    patch: Tensor | None
    count: int
