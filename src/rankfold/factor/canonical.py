"""Canonical polyadic (CP) decomposition by alternating least squares, batched over groups or filters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import eigh_descending, gram, unfold


@dataclass(frozen=True, slots=True)
class Canonical:
    """Tensors cut into matrix slices along their trailing modes: a CP decomposition of every rank for free.

    Rotate the trailing modes into their eigenbases; every singular triple of every slice ``tensor[..., t]`` is a
    rank-one term, all of them are mutually orthogonal, and the R largest make a CP decomposition of rank R whose error
    is known at once. It bounds the best error from above and is where the iterations start.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_0, n_1, n_2, ...)``; the two large modes first.
    bases : tuple of Tensor
        Eigenbases ``(batch, n_j, n_j)`` of the trailing modes.
    slices : Tensor
        ``(batch, S, n_0, n_1)``, S the product of the trailing sizes.
    vectors : Tensor
        ``(batch, S, m, m)``, eigenvectors of the slices' Grams on their smaller side m.
    order : Tensor
        ``(batch, S * m)``, indices of the rank-one terms, largest first.
    left_out : Tensor
        ``(S * m + 1,)``, squared error of every rank, summed over the batch.
    total : float
        Squared norm.
    """

    tensor: Tensor
    bases: tuple[Tensor, ...]
    slices: Tensor
    vectors: Tensor
    order: Tensor
    left_out: Tensor
    total: float

    @classmethod
    def of(cls, tensor: Tensor) -> Canonical:
        """Prepare ``(batch, n_0, n_1, ...)`` with at least two modes."""
        rotated, bases = tensor, []
        for mode in range(2, tensor.ndim - 1):
            basis = eigh_descending(gram(unfold(tensor, mode)))[1]
            bases.append(basis)
            # Move the mode last, rotate it, move it back.
            rotated = (rotated.movedim(mode + 1, -1) @ _expand(basis, rotated.ndim)).movedim(-1, mode + 1)
        slices = rotated.flatten(3).movedim(-1, 1) if tensor.ndim > 3 else rotated.unsqueeze(1)
        small = slices if slices.shape[-2] <= slices.shape[-1] else slices.mT
        energies, vectors = eigh_descending(gram(small))
        pooled, order = energies.flatten(1).sort(dim=-1, descending=True, stable=True)
        left = pooled.flip(-1).cumsum(-1).flip(-1).sum(0)
        left_out = torch.cat([left, left.new_zeros(1)])
        return cls(tensor, tuple(bases), slices, vectors, order, left_out, float(tensor.square().sum()))

    @property
    def max_rank(self) -> int:
        """The rank from which on the decomposition is exact."""
        return self.order.shape[-1]

    def relative_error(self, rank: int) -> float:
        """Return an upper bound of the relative error of `rank`, 0..1: that of the start, before any iteration."""
        if self.total <= 0:
            return 0.0
        return float((self.left_out[min(rank, self.max_rank)] / self.total).clamp(0, 1).sqrt())

    def factors(self, rank: int, *, iterations: int, tolerance: float) -> list[Tensor]:
        """Return factors ``(batch, n_j, rank)`` by alternating least squares from the pooled slices.

        Every sweep solves the (slightly regularised) normal equations mode by mode and shares two large contractions
        among all modes, a dimension tree of depth one (Phan, Tichavsky & Cichocki 2013). The columns' norms are evened
        out over the modes after each sweep, which bounds them. The best sweep wins, so the error is never above
        `relative_error`. Iterations stop when the relative error falls by less than `tolerance` in a sweep.
        """
        factors = self._start(rank)
        if self.total <= 0 or float(self.left_out[min(rank, self.max_rank)]) <= 1e-20 * self.total:
            return factors
        best, best_error = list(factors), _squared_errors(self.tensor, factors)
        previous = math.inf
        for _ in range(iterations):
            factors = _even_out(_sweep(self.tensor, factors))
            errors = _squared_errors(self.tensor, factors)
            better = (errors < best_error) & errors.isfinite()
            best = [torch.where(better[:, None, None], new, old) for new, old in zip(factors, best, strict=True)]
            best_error = torch.where(better, errors, best_error)
            # A member that ran away goes on from its best state.
            factors = [
                torch.where(errors.isfinite()[:, None, None], new, old) for new, old in zip(factors, best, strict=True)
            ]
            now = float((best_error.sum() / self.total).clamp_min(0).sqrt())
            if previous - now < tolerance:
                break
            previous = now
        return best

    def _start(self, rank: int) -> list[Tensor]:
        batch, small = self.tensor.shape[0], self.vectors.shape[-1]
        chosen = self.order[:, :rank]
        which, column = chosen // small, chosen % small
        rows = torch.arange(batch, device=chosen.device).unsqueeze(-1)
        vectors = self.vectors[rows, which, :, column]  # (batch, rank, small)
        picked = self.slices[rows, which]  # (batch, rank, n_0, n_1)
        if self.slices.shape[-2] <= self.slices.shape[-1]:
            first, second = vectors, (vectors.unsqueeze(-2) @ picked).squeeze(-2)
        else:
            first, second = (picked @ vectors.unsqueeze(-1)).squeeze(-1), vectors
        factors = [first.mT, second.mT]
        sizes = [basis.shape[-1] for basis in self.bases]
        index = which
        for size, basis in zip(reversed(sizes), reversed(self.bases), strict=True):
            factors.insert(2, basis.gather(-1, (index % size).unsqueeze(-2).expand(-1, size, -1)))
            index = index // size
        padded = [torch.nn.functional.pad(f, (0, rank - f.shape[-1])) for f in factors]
        return _even_out(padded)


def reconstruct(factors: list[Tensor]) -> Tensor:
    """Return the tensor ``(batch, n_0, n_1, ...)`` of CP factors ``(batch, n_j, rank)``."""
    batch = factors[0].shape[0]
    rest = factors[1]
    for factor in factors[2:]:
        rest = (rest.unsqueeze(2) * factor.unsqueeze(1)).flatten(1, 2)
    return (factors[0] @ rest.mT).reshape(batch, *(f.shape[1] for f in factors))


def _expand(basis: Tensor, ndim: int) -> Tensor:
    return basis.reshape(basis.shape[0], *(1,) * (ndim - 3), *basis.shape[1:])


def _sweep(tensor: Tensor, factors: list[Tensor]) -> list[Tensor]:
    """One pass of alternating least squares over all modes."""
    new = list(factors)
    batch, n0, n1 = tensor.shape[:3]
    cube = tensor.reshape(batch, n0, n1, -1)
    # Mode 0: contract mode 1 first, then the small trailing modes.
    half = torch.einsum("bijs,bjr->bisr", cube, new[1])
    new[0] = _solve(torch.einsum("bisr,bsr->bir", half, _khatri_rao(new[2:], half)), new, 0)
    # All other modes share the contraction with the new mode 0.
    half = torch.einsum("bijs,bir->bjsr", cube, new[0])
    new[1] = _solve(torch.einsum("bjsr,bsr->bjr", half, _khatri_rao(new[2:], half)), new, 1)
    trailing = tensor.shape[3:]
    if trailing:
        small = torch.einsum("bjsr,bjr->bsr", half, new[1]).reshape(batch, *trailing, -1)
        for mode in range(2, len(factors)):
            others = [m for m in range(2, len(factors)) if m != mode]
            part = small.movedim(mode - 1, 1)
            for m in reversed(others):
                part = (part * new[m].reshape(batch, *(1,) * (part.ndim - 3), *new[m].shape[1:])).sum(-2)
            new[mode] = _solve(part, new, mode)
    return new


def _khatri_rao(factors: list[Tensor], like: Tensor) -> Tensor:
    """Return the columnwise Kronecker product ``(batch, S, rank)`` of the trailing factors."""
    product = like.new_ones(like.shape[0], 1, like.shape[-1])
    for factor in factors:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1, 2)
    return product


def _solve(target: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    """Solve ``X G = target`` for the factor of one mode, G the Hadamard product of the other modes' Grams."""
    product = None
    for m, factor in enumerate(factors):
        if m != mode:
            small = factor.mT @ factor
            product = small if product is None else product * small
    assert product is not None
    scale = product.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = (1e-10 * scale).clamp_min(1e-300)
    identity = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    lower, _ = torch.linalg.cholesky_ex(product + ridge[:, None, None] * identity)
    return torch.cholesky_solve(target.mT, lower).mT


def _even_out(factors: list[Tensor]) -> list[Tensor]:
    """Give the column r of every mode the same norm, their product unchanged."""
    norms = [f.norm(dim=1, keepdim=True) for f in factors]
    logs = torch.stack([n.clamp_min(1e-150).log() for n in norms]).mean(0)
    alive = torch.stack([n > 1e-150 for n in norms]).all(0)
    even = logs.exp()
    return [
        torch.where(alive, f / n.clamp_min(1e-150) * even, torch.zeros_like(f))
        for f, n in zip(factors, norms, strict=True)
    ]


def _squared_errors(tensor: Tensor, factors: list[Tensor]) -> Tensor:
    """Return the squared error of each member of the batch, measured on the residual (no cancellation)."""
    return (tensor - reconstruct(factors)).flatten(1).square().sum(-1)
