"""Symmetric eigenproblems, metrics and balanced products: the ground under every factorization.

Everything here is batched over leading dimensions (the groups of a convolution) and works in the data type and on the
device of its arguments; the caller chooses float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def eigh_descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (largest first, clamped at 0) and eigenvectors of symmetric positive matrices.

    Parameters
    ----------
    gram : Tensor
        ``(..., n, n)``, finite.

    Returns
    -------
    values : Tensor
        ``(..., n)``.
    vectors : Tensor
        ``(..., n, n)``, one eigenvector a column.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Return the mode unfolding ``(batch, n_mode, rest)`` of ``(batch, n_0, n_1, ...)``."""
    return tensor.movedim(mode + 1, 1).flatten(2)


def gram(matrix: Tensor) -> Tensor:
    """Return ``M M^T`` of ``(..., m, n)``."""
    return matrix @ matrix.mT


def tails(energies: Tensor) -> Tensor:
    """Return the energy that is left out when the first r entries are kept, for r = 0..n.

    Parameters
    ----------
    energies : Tensor
        ``(..., n)``, nonnegative, largest first.

    Returns
    -------
    Tensor
        ``(..., n + 1)``; entry r is the sum of ``energies[..., r:]``, added up from the small end, so that it never
        grows with r and is 0 at n.
    """
    left = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([left, torch.zeros_like(left[..., :1])], dim=-1)


@dataclass(frozen=True, slots=True)
class Metric:
    """The square root of a second moment and its inverse: the change of variables of data-aware factors.

    ``E ||(W - V) x||^2 = ||(W - V) S||_F^2`` with ``S = C^(1/2)``, ``C = E[x x^T]``.

    Parameters
    ----------
    root, inverse : Tensor
        ``(groups, n, n)``, symmetric, mutually inverse.
    """

    root: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, moment: Tensor, *, floor: float = 1e-6) -> Metric:
        """Take the root of a second moment.

        Parameters
        ----------
        moment : Tensor
            ``(groups, n, n)``, symmetric positive semidefinite.
        floor : float
            Eigenvalues are raised to at least this share of the mean one. A direction in which the data never moves
            still counts a little, so that the root can be inverted and the layer behaves on data unlike the
            calibration data.
        """
        values, vectors = eigh_descending(moment)
        mean = values.mean(-1, keepdim=True)
        values = torch.where(mean > 0, torch.maximum(values, floor * mean), torch.ones_like(values))
        root = values.sqrt().unsqueeze(-2)
        return cls((vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT)


def balanced_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite the product ``left @ right`` so that both factors share its singular values evenly.

    With ``left @ right = U diag(s) V^T`` the result is ``U diag(s)^(1/2)`` and ``diag(s)^(1/2) V^T``: the condition
    number of each factor is the square root of the product's, whatever the factors' were.

    Parameters
    ----------
    left : Tensor
        ``(..., m, r)`` with orthonormal columns.
    right : Tensor
        ``(..., r, n)``.
    """
    energies, rotation = eigh_descending(gram(right))
    values = energies.sqrt()
    largest = values[..., :1]
    # Directions that carry nothing get scale 1, not 1/0.
    scale = torch.where(values > 1e-12 * largest, values, torch.ones_like(values)).sqrt()
    return (left @ rotation) * scale.unsqueeze(-2), (rotation.mT @ right) / scale.unsqueeze(-1)


def pad_last(tensor: Tensor, size: int) -> Tensor:
    """Append zeros along the last dimension up to `size`."""
    missing = size - tensor.shape[-1]
    return tensor if missing <= 0 else torch.nn.functional.pad(tensor, (0, missing))
