"""The algebraic CP decomposition of a tensor, if it has one, from the eigenvectors of a matrix pencil."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.factor.linalg import eigh_descending, gram, unfold


def pencil(tensor: Tensor, rank: int, *, residue: float) -> list[Tensor] | None:
    """Return CP factors from a generalized eigenvalue problem, or None if that cannot succeed.

    If a tensor is a sum of R terms ``a_r x b_r x c_r`` with independent a_r and independent b_r, two combinations of
    its slices are ``A D_1 B^T`` and ``A D_2 B^T``, so the eigenvectors of one times the inverse of the other are the
    a_r (Leurgans, Ross & Abel 1993, "A decomposition for three-way arrays", theorem 1; known as Jennrich's algorithm).
    This is a good start only for tensors close to rank R.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_0, n_1, n_2, ...)``.
    rank : int
        R.
    residue : float
        The maximum share of the norm outside of the R leading directions of each of the first two modes, which is a
        lower bound for the error of any decomposition of this rank.

    Returns
    -------
    list of Tensor or None
        ``(batch, n_j, rank)``. None if the residue is exceeded, the rank exceeds one of the first two modes, there is
        only one slice, or the slices are too close to singular.
    """
    trailing = tensor.shape[3:]
    if rank > min(tensor.shape[1:3]) or trailing.numel() < 2:
        return None
    spans = []
    for mode in (0, 1):
        energies, vectors = eigh_descending(gram(unfold(tensor, mode)))
        if float(energies[:, rank:].sum()) > residue**2 * float(energies.sum()):
            return None
        spans.append(vectors[..., :rank])
    core = torch.einsum("bijs,bip,bjq->bpqs", tensor.flatten(3), spans[0], spans[1])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(core.shape[-1], 2, generator=generator, dtype=torch.float64).to(core)
    one, two = (core @ weights).unbind(-1)
    quotient, _ = torch.linalg.solve_ex(two, one, left=False)
    if not bool(quotient.isfinite().all()):
        return None
    values, vectors = torch.linalg.eig(quotient)
    first = torch.where((values.imag < 0).unsqueeze(1), vectors.imag, vectors.real)
    terms, _ = torch.linalg.solve_ex(first, core.flatten(2))  # each row is the matrix b_r x c_r of one term
    if not bool(terms.isfinite().all()):
        return None
    terms = terms.unflatten(2, core.shape[2:])
    third = eigh_descending(gram(terms.mT))[1][..., 0]  # (batch, rank, S)
    second = (terms @ third.unsqueeze(-1)).squeeze(-1)
    return [spans[0] @ first, spans[1] @ second.mT, *_split(third, trailing)]


def _split(vectors: Tensor, sizes: torch.Size) -> list[Tensor]:
    """Return factors ``(batch, size, rank)`` of nearly optimal rank-one tensors for these vectors."""
    if len(sizes) == 1:
        return [vectors.mT]
    cubes = vectors.unflatten(2, sizes).flatten(0, 1)
    axes = [eigh_descending(gram(unfold(cubes, mode)))[1][..., 0] for mode in range(len(sizes))]
    inner = cubes
    for axis in axes:
        inner = torch.einsum("bk...,bk->b...", inner, axis)
    axes[0] = axes[0] * inner.unsqueeze(-1)
    return [axis.unflatten(0, vectors.shape[:2]).mT for axis in axes]
