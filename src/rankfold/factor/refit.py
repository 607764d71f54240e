"""Ridge least squares: the weight that gives wanted outputs on inputs that have changed."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.factor.regression import damped_cholesky


def ridge_refit(weight: Tensor, cross: Tensor, second: Tensor, *, ridge: float) -> Tensor:
    """Return the weight that minimises ``E ||y - V x||^2 + ridge * c * ||V - W||^2``.

    The solution is ``V = (T + ridge c W) (C + ridge c I)^-1``, computed as ``W + (T - W C) (C + ridge c I)^-1``: where
    the inputs have not changed, ``T = W C``, and rounding leaves the weight alone. Without the pull towards W the
    directions in which the data hardly moves would be fitted to noise.

    Parameters
    ----------
    weight : Tensor
        W, ``(groups, o, n)``.
    cross : Tensor
        ``T = E[y x^T]``, ``(groups, o, n)``.
    second : Tensor
        ``C = E[x x^T]``, ``(groups, n, n)``; c is its mean eigenvalue, a group at a time.
    ridge : float
        Above 0. Where C is not positive definite even so, the share grows tenfold until it is.

    Raises
    ------
    RankfoldError
        If C is no second moment.
    """
    lower = damped_cholesky(second, ridge)
    return weight + torch.cholesky_solve((cross - weight @ second).mT, lower).mT


def refit_residual(weight: Tensor, cross: Tensor, second: Tensor, energy: float) -> float:
    """Return ``E ||y - V x||^2``, with ``energy = E ||y||^2`` and moments as for `ridge_refit`; at least 0."""
    fitted = float((weight * (weight @ second - 2 * cross)).sum())
    return max(0.0, energy + fitted)
