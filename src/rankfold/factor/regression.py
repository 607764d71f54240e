"""Tucker-2 fitted to a layer's output, by reduced-rank regression on the projected patches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankfold.errors import RankfoldError
from rankfold.factor.linalg import FLOOR, Metric, eigh_descending, gram


@dataclass(frozen=True, slots=True)
class TuckerRegression:
    """The best core and output projection for every rank, given nested input subspaces.

    Fix an orthonormal basis Q of the input channels, of which rank r_i uses the first r_i directions. Minimizing
    ``E ||(W - V) p||^2`` over the patches p is then a reduced-rank regression from the projected patches, which has a
    closed-form solution (Izenman 1975). With the patch moment in the basis, ``C = L L^T`` (Cholesky), and ``M = W L``,
    the leading columns of M describe the projected patches of every rank r_i, so one factorization serves all ranks:
    the energy that ranks (r_o, r_i) keep is the sum of the r_o largest eigenvalues of ``M_r M_r^T``, which never
    decreases when a rank grows.

    Parameters
    ----------
    basis_in : Tensor
        Q, ``(groups, i, i)``, orthonormal columns, most important first.
    lower : Tensor
        L, ``(groups, i * K, i * K)``, channel first, then kernel position.
    seen : Tensor
        M, ``(groups, o, i * K)``.
    total : float
        The layer's output energy.
    """

    basis_in: Tensor
    lower: Tensor
    seen: Tensor
    total: float
    _kept: dict[int, list[float]] = field(default_factory=dict, repr=False)
    _last: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, weight: Tensor, channel: Tensor, patch: Tensor, *, floor: float = FLOOR) -> TuckerRegression:
        """Prepare a weight with its second moments.

        Parameters
        ----------
        weight : Tensor
            ``(groups, o, i, *kernel)``.
        channel, patch : Tensor
            Second moments, as in `rankfold.factor.moments.Moments`.
        floor : float
            The share of the mean second moment that `damped_cholesky` adds to every direction.
        """
        groups, o, i = weight.shape[:3]
        flat = weight.flatten(3)
        k = flat.shape[-1]
        metric = Metric.of(channel)
        important = eigh_descending(torch.einsum("gij,gojk,golk,glm->gim", metric.root, flat, flat, metric.root))[1]
        basis = torch.linalg.qr(metric.inverse @ important).Q  # nested subspaces, as those of the whitened directions
        rotated = torch.einsum("goik,gij->gojk", flat, basis).reshape(groups, o, i * k)
        moment = patch.reshape(groups, i, k, i, k)
        moment = torch.einsum("gab,gakcl,gcd->gbkdl", basis, moment, basis).reshape(groups, i * k, i * k)
        lower = damped_cholesky(moment, floor)
        seen = rotated @ lower
        return cls(basis, lower, seen, float(seen.square().sum()))

    def relative_error(self, rank_out: int, rank_in: int) -> float:
        """Return the relative error of the layer's output, 0..1, which the factors attain."""
        if self.total <= 0:
            return 0.0
        if rank_in not in self._kept:
            energies = torch.linalg.eigvalsh(self._gram(rank_in)).flip(-1).clamp_min(0).sum(0)
            self._kept[rank_in] = [0.0, *energies.cumsum(0).tolist()]
        return max(0.0, 1 - self._kept[rank_in][rank_out] / self.total) ** 0.5

    def factors(self, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return orthonormal ``(groups, o, r_o)``, the core ``(groups, r_o, r_i, K)``, and ``(groups, r_i, i)``."""
        out = eigh_descending(self._gram(rank_in))[1][..., :rank_out]
        n = rank_in * self._kernel
        target = out.mT @ self.seen[..., :n]
        core = torch.linalg.solve_triangular(self.lower[:, :n, :n], target, upper=False, left=False)
        return out, core.unflatten(-1, (rank_in, self._kernel)), self.basis_in[..., :rank_in].mT

    @property
    def _kernel(self) -> int:
        return self.lower.shape[-1] // self.basis_in.shape[-1]

    def _gram(self, rank_in: int) -> Tensor:
        """Return ``M_r M_r^T``, updated from the last one if that had a smaller rank, as planners request them."""
        known = max((rank for rank in self._last if rank <= rank_in), default=0)
        product = gram(self.seen[..., known * self._kernel : rank_in * self._kernel])
        if known:
            product = product + self._last[known]
        self._last.clear()
        self._last[rank_in] = product
        return product


def damped_cholesky(moment: Tensor, floor: float) -> Tensor:
    """Return the Cholesky factor of second moments with a share of their mean, `floor`, added to the diagonal.

    Moments of few samples, summed in single precision, can be indefinite by more than `floor`; the share is then
    multiplied by ten until the factorization exists.

    Raises
    ------
    RankfoldError
        If a share of 1 is not enough, so the matrices are not second moments.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    scale = torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    while floor <= 1:
        lower, info = torch.linalg.cholesky_ex(moment + floor * scale * identity)
        if not bool(info.any()):
            return lower
        floor *= 10
    raise RankfoldError(
        "the second moments of a layer's input are not positive semidefinite, although those of data are. Collect them "
        "again from the calibration data."
    )
