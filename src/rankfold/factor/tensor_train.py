"""Tensor-train decomposition by successive truncated eigendecompositions (TT-SVD)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankfold.factor.linalg import SINGLE_ENOUGH, eigh_descending, gram, identity, pad_last, tails, wide_dtype


@dataclass(frozen=True, slots=True)
class TensorTrain:
    """A tensor and, computed on demand, the spectra of its unfoldings.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_1, ..., n_d)``.
    """

    tensor: Tensor
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def relative_error(self, ranks: tuple[int, ...]) -> float:
        """Return the bound of Oseledets (2011), theorem 2.2: the root of the sum of the bonds' squared errors.

        The first call solves one symmetric eigenvalue problem per bond, on the smaller side of its unfolding.
        """
        if "bonds" not in self._cache:
            self._cache["bonds"] = self._bonds()
        squared = sum(left[min(rank, len(left) - 1)] for left, rank in zip(self._cache["bonds"], ranks, strict=True))
        return min(1.0, squared) ** 0.5

    def cores(self, ranks: tuple[int, ...]) -> list[Tensor]:
        """Return cores ``(batch, r_{j-1}, n_j, r_j)`` with ``r_0 = r_d = 1``.

        Oseledets (2011), algorithm 1 (TT-SVD), with eigendecompositions of Gram matrices: all cores but the last are
        orthonormal. A core is padded with zeros where its rank exceeds that of the tensor truncated so far.
        """
        cores = self._chain(self.tensor, ranks)
        if self.tensor.dtype == torch.float32:
            kept, whole = torch.stack([torch.linalg.vector_norm(t) for t in (cores[-1], self.tensor)]).tolist()
            if whole**2 - kept**2 < SINGLE_ENOUGH**2 * whole**2:
                return self._chain(self.tensor.to(wide_dtype(self.tensor)), ranks)
        return cores

    def _bonds(self) -> list[list[float]]:
        """Return, for each of the d - 1 bonds, the share of the energy that every rank leaves out."""
        tensor = self.tensor.to(wide_dtype(self.tensor))
        shares = []
        for bond in range(1, tensor.ndim - 1):
            matrix = tensor.reshape(tensor.shape[0], tensor.shape[1 : bond + 1].numel(), -1)
            matrix = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
            left = tails(torch.linalg.eigvalsh(gram(matrix)).flip(-1).clamp_min(0)).sum(0)
            shares.append((left / left[0] if left[0] > 0 else left).tolist())
        return shares

    def _chain(self, rest: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
        batch, shape, previous, cores = self.tensor.shape[0], self.tensor.shape[1:], 1, []
        for size, rank in zip(shape, ranks, strict=False):
            matrix = rest.reshape(batch, previous * size, -1)
            basis, rest = self._split(matrix, rank, first=not cores, last=len(cores) == len(ranks) - 1)
            rest = pad_last(rest.mT, rank).mT
            cores.append(pad_last(basis, rank).reshape(batch, previous, size, rank))
            previous = rank
        cores.append(rest.reshape(batch, previous, shape[-1], 1))
        return cores

    def _split(self, matrix: Tensor, rank: int, *, first: bool, last: bool) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis of at most `rank` leading columns, and the matrix in it."""
        rows, columns = matrix.shape[1:]
        if rank >= min(rows, columns):  # nothing is left out
            return (identity(matrix, rows), matrix) if rows <= columns else tuple(torch.linalg.qr(matrix))
        if rows <= columns:
            basis = self._eigenvectors(matrix, first=first)[..., :rank]
            return basis, basis.mT @ matrix
        right = self._eigenvectors(matrix.mT, first=first)[..., :rank]
        product = matrix @ right  # its columns are sigma_j u_j, orthogonal up to rounding
        if last:  # this basis is not truncated any further, so rounding does no harm
            norms = product.norm(dim=1, keepdim=True)
            norms = torch.where(norms > 0, norms, torch.ones_like(norms))
            return product / norms, norms.mT * right.mT
        basis, triangle = torch.linalg.qr(product)
        return basis, triangle @ right.mT

    def _eigenvectors(self, matrix: Tensor, *, first: bool) -> Tensor:
        """Return the eigenvectors of ``M M^T``; those of the first bond, which all ranks share, are cached."""
        if not first:
            return eigh_descending(gram(matrix))[1]
        if matrix.dtype not in self._cache:
            self._cache[matrix.dtype] = eigh_descending(gram(matrix))[1]
        return self._cache[matrix.dtype]


def orthonormalized(cores: list[Tensor]) -> list[Tensor]:
    """Return cores ``(batch, r_{j-1}, n_j, r_j)`` of the same tensor, all but the last orthonormal.

    A sweep of QR decompositions passes every triangle on to the next core (Oseledets 2011, section 3), so the last core
    is as well conditioned as the tensor's last unfolding. Orthonormal refers to the columns of ``(batch, r_{j-1} * n_j,
    r_j)``; columns in excess of the rows are zero.
    """
    done: list[Tensor] = []
    rest = cores[0]
    for core in cores[1:]:
        basis, triangle = torch.linalg.qr(rest.flatten(1, 2))
        rank = rest.shape[-1]
        done.append(pad_last(basis, rank).reshape(rest.shape))
        rest = torch.einsum("gab,gbnc->ganc", pad_last(triangle.mT, rank).mT, core)
    return [*done, rest]
