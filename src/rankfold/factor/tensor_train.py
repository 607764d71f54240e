"""Tensor-train decomposition by successive truncated eigendecompositions (TT-SVD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import eigh_descending, gram, pad_last, tails


@dataclass(frozen=True, slots=True)
class TensorTrain:
    """A tensor and the spectra of its unfoldings.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_1, ..., n_d)``.
    left_out : tuple of Tensor
        One ``(k + 1,)`` tensor for each of the d - 1 bonds: squared error of every rank at this bond, summed over the
        batch.
    total : float
        Squared norm.
    """

    tensor: Tensor
    left_out: tuple[Tensor, ...]
    total: float

    @classmethod
    def of(cls, tensor: Tensor) -> TensorTrain:
        """Prepare ``(batch, n_1, ..., n_d)``: one symmetric eigenvalue problem a bond, on its smaller side."""
        shape = tensor.shape[1:]
        left_out = []
        for bond in range(1, len(shape)):
            matrix = tensor.flatten(1, bond) if bond > 1 else tensor
            matrix = matrix.flatten(2)
            matrix = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
            values = torch.linalg.eigvalsh(gram(matrix)).flip(-1).clamp_min(0)
            left_out.append(tails(values).sum(0))
        return cls(tensor, tuple(left_out), float(tensor.square().sum()))

    def relative_error(self, ranks: tuple[int, ...]) -> float:
        """Return the bound of Oseledets (2011), theorem 2.2: root of the sum of the bonds' errors squared."""
        if self.total <= 0:
            return 0.0
        squared = sum(float(t[min(r, len(t) - 1)]) for t, r in zip(self.left_out, ranks, strict=True))
        return min(1.0, max(0.0, squared / self.total) ** 0.5)

    def cores(self, ranks: tuple[int, ...]) -> list[Tensor]:
        """Return cores ``(batch, r_{j-1}, n_j, r_j)`` with ``r_0 = r_d = 1``; all but the last are orthonormal.

        Oseledets (2011), algorithm 1 (TT-SVD), with eigendecompositions of Grams. A rank above what the unfolding of
        the already truncated rest has is filled with zeros.
        """
        batch, shape = self.tensor.shape[0], self.tensor.shape[1:]
        rest, previous, cores = self.tensor, 1, []
        for size, rank in zip(shape, ranks, strict=False):
            matrix = rest.reshape(batch, previous * size, -1)
            basis = _left_basis(matrix)[..., :rank]
            rest = pad_last((basis.mT @ matrix).mT, rank).mT
            cores.append(pad_last(basis, rank).reshape(batch, previous, size, rank))
            previous = rank
        cores.append(rest.reshape(batch, previous, shape[-1], 1))
        return cores


def _left_basis(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis ``(batch, m, min(m, n))`` of the range of ``(batch, m, n)``, largest first."""
    if matrix.shape[1] <= matrix.shape[2]:
        return eigh_descending(gram(matrix))[1]
    right = eigh_descending(gram(matrix.mT))[1]
    return torch.linalg.qr(matrix @ right).Q
