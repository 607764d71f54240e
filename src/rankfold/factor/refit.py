"""Ridge least squares: weights whose inputs have changed, or lose some entries, and the choice of the ridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.factor.regression import damped_cholesky


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMoments:
    """Averages over pairs (d, x): d is what a layer's output lacks, x is the layer's input.

    Parameters
    ----------
    second : Tensor
        ``E[x x^T]``, ``(groups, n, n)``.
    cross : Tensor
        ``E[d x^T]``, ``(groups, o, n)``.
    lacking, given : Tensor
        ``E[d]``, ``(groups, o)``, and ``E[x]``, ``(groups, n)``.
    scale : Tensor
        ``E ||x||^2 / n``, ``(groups,)``.
    energy : float
        ``E ||d||^2``, over all groups.
    count : int
        Number of pairs.
    """

    second: Tensor
    cross: Tensor
    lacking: Tensor
    given: Tensor
    scale: Tensor
    energy: float
    count: int

    def centered(self) -> PairMoments:
        """Return the moments about the means; the means and the scale are kept."""
        x = self.given.unsqueeze(-2)
        return replace(
            self,
            second=self.second - x.mT * x,
            cross=self.cross - self.lacking.unsqueeze(-1) * x,
            energy=self.energy - float(self.lacking.square().sum()),
        )

    def residual(self, correction: Tensor) -> float:
        """Return ``E ||d - D x||^2`` of a correction D; at least 0."""
        return max(0.0, self.energy + float((correction * (correction @ self.second - 2 * self.cross)).sum()))


def ridge_correction(pairs: PairMoments, ridge: float) -> Tensor:
    """Return the D that minimizes ``E ||d - D x||^2 + ridge * c * ||D||^2``, where c is the scale of x.

    With ``d = W x0 - W x``, the difference of a weight's outputs on x0 and x, ``W + D`` is the ridge solution
    ``(E[W x0 x^T] + ridge c W) (E[x x^T] + ridge c I)^-1``. Sums over the differences d keep the digits that sums over
    the outputs would lose: if the inputs have not changed, D is 0. Without the pull towards 0, directions in which the
    data hardly varies would be fitted to noise. The scale is not taken about the mean, because nearly constant inputs
    have only rounding errors there.

    Parameters
    ----------
    pairs : PairMoments
        The averages over the data.
    ridge : float
        Above 0. It is increased until ``E[x x^T] + ridge c I`` is positive definite.

    Raises
    ------
    RankfoldError
        If ``E[x x^T]`` is not a second moment.
    """
    return _solved(damped(pairs, ridge), pairs.cross)


def damped(pairs: PairMoments, ridge: float) -> Tensor:
    """Return ``E[x x^T] + ridge * c * I``, ``(groups, n, n)``: the metric of the objective of `ridge_correction`.

    For any other correction V, such as one of lower rank, the objective exceeds that of D by ``||V - D||^2`` in this
    metric.
    """
    identity = torch.eye(pairs.second.shape[-1], dtype=pairs.second.dtype, device=pairs.second.device)
    return pairs.second + ridge * pairs.scale[:, None, None] * identity


def restricted(weight: Tensor, moment: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Return the weight on some entries of an input that best replaces a weight on all of them.

    V minimizes ``E ||W x - V x_k||^2 + ridge * c * ||V - W_k||^2``, where ``x_k`` are the kept entries and c is their
    mean second moment. With ``W_r`` for the columns that are removed and ``S = E[x x^T]``, that is
    ``V = W_k + W_r S_rk (S_kk + ridge c I)^-1``.

    Parameters
    ----------
    weight : Tensor
        W, ``(o, n)``.
    moment : Tensor
        S, ``(n, n)``.
    kept : Tensor
        Indices of the kept entries, ``(m,)``, ascending.
    ridge : float
        At least 0.

    Returns
    -------
    Tensor
        V, ``(o, m)``, in the data type of the moment.

    Raises
    ------
    RankfoldError
        If S is not a second moment.
    """
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=moment.device)
    gone[kept] = False
    weight, rows = weight.to(moment), moment[kept]
    second = rows[:, kept]
    second.diagonal().add_(ridge * second.diagonal().mean())
    return weight[:, kept] + _solved(second[None], weight[None, :, gone] @ rows[:, gone].mT)[0]


def _solved(moment: Tensor, cross: Tensor) -> Tensor:
    """Return the V with ``V moment = cross``, ``(groups, o, n)``, for damped second moments ``(groups, n, n)``."""
    return torch.cholesky_solve(cross.mT, damped_cholesky(moment, 1e-14)).mT


def choose_ridge(folds: Sequence[PairMoments], ridges: Sequence[float]) -> float:
    """Return the ridge with the smallest cross-validation error: fitted to each fold in turn, measured on the others.

    Parameters
    ----------
    folds : sequence of PairMoments
        Averages over disjoint parts of the data; with fewer than two, the largest ridge is returned.
    ridges : sequence of float
        The candidates; ties go to the largest.
    """
    if len(folds) < 2:
        return max(ridges)

    def error(ridge: float) -> float:
        corrections = [ridge_correction(fold, ridge) for fold in folds]
        return sum(
            held.count * held.residual(correction)
            for i, correction in enumerate(corrections)
            for j, held in enumerate(folds)
            if i != j
        )

    return min(sorted(ridges, reverse=True), key=error)
