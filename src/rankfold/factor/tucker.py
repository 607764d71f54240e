"""Tucker-2 of a convolution weight: truncated HOSVD, refined by HOOI; and its sequential (TT-SVD) form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.factor.linalg import Metric, eigh_descending, gram, unfold


@dataclass(frozen=True, slots=True)
class Tucker2:
    """A weight rotated into the eigenbases of its output and input mode Grams.

    Parameters
    ----------
    tensor : Tensor
        ``(groups, o, i, K)`` in the metric (input mode multiplied by the metric's root), kernel positions flattened.
    basis_out, basis_in : Tensor
        ``(groups, o, o)`` and ``(groups, i, i)``, eigenvectors, largest eigenvalue first.
    kept : Tensor
        ``(o + 1, i + 1)``; entry (a, b) is the energy of the first a x b channels of the rotated weight, summed over
        groups and kernel positions.
    metric : Metric or None
        The metric of the input mode.
    """

    tensor: Tensor
    basis_out: Tensor
    basis_in: Tensor
    kept: Tensor
    metric: Metric | None

    @classmethod
    def of(cls, weight: Tensor, metric: Metric | None = None) -> Tucker2:
        """Prepare ``(groups, o, i, *kernel)``: two eigendecompositions and one rotation.

        With a metric the weight's input mode must have been multiplied by its root already.
        """
        tensor = weight.flatten(3)
        basis_out = eigh_descending(gram(unfold(tensor, 0)))[1]
        basis_in = eigh_descending(gram(unfold(tensor, 1)))[1]
        rotated = _project(tensor, basis_out, basis_in)
        energy = rotated.square().sum((0, 3))
        kept = torch.nn.functional.pad(energy.cumsum(0).cumsum(1), (1, 0, 1, 0))
        return cls(tensor, basis_out, basis_in, kept, metric)

    def relative_error(self, rank_out: int, rank_in: int) -> float:
        """Return the relative error of the truncated HOSVD, 0..1: exact for it, an upper bound after HOOI.

        The squared error is ``||W||^2`` minus a prefix sum of the squared core (De Lathauwer et al. 2000, section 4).
        """
        total = self.kept[-1, -1]
        if total <= 0:
            return 0.0
        return float((1 - self.kept[rank_out, rank_in] / total).clamp(0, 1).sqrt())

    def hooi(self, rank_out: int, rank_in: int, *, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors by higher-order orthogonal iteration from the truncated HOSVD.

        De Lathauwer, De Moor & Vandewalle (2000), "On the best rank-1 and rank-(R1, ..., RN) approximation of
        higher-order tensors". The error never grows over the iterations; they stop when the captured energy grows by
        less than `tolerance` of itself.

        Returns
        -------
        out : Tensor
            ``(groups, o, rank_out)``, orthonormal columns.
        core : Tensor
            ``(groups, rank_out, rank_in, K)``.
        inn : Tensor
            ``(groups, rank_in, i)``, orthonormal rows.
        """
        basis_out, basis_in = self.basis_out[..., :rank_out], self.basis_in[..., :rank_in]
        captured = float(self.kept[rank_out, rank_in])
        full = rank_out == self.basis_out.shape[-1] and rank_in == self.basis_in.shape[-1]
        for _ in range(0 if full else iterations):
            half = torch.einsum("goik,gib->gobk", self.tensor, basis_in)
            basis_out = eigh_descending(gram(half.flatten(2)))[1][..., :rank_out]
            half = torch.einsum("goik,goa->gaik", self.tensor, basis_out)
            energies, vectors = eigh_descending(gram(unfold(half, 1)))
            basis_in = vectors[..., :rank_in]
            now = float(energies[..., :rank_in].sum())
            if now <= captured * (1 + tolerance):
                break
            captured = now
        return self._unwhiten(basis_out, basis_in)

    def sequential(self, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors by TT-SVD of ``(i, K, o)``: truncate the input mode, then the output mode of the rest.

        Oseledets (2011), algorithm 1, on RENE's three cores (Aghababaei-Harandi & Amini, eq. 3). The output basis is
        optimal for the truncated rest, so the error is at most `relative_error`. Shapes as for `hooi`.
        """
        basis_in = self.basis_in[..., :rank_in]
        half = torch.einsum("goik,gib->gobk", self.tensor, basis_in)
        basis_out = eigh_descending(gram(half.flatten(2)))[1][..., :rank_out]
        return self._unwhiten(basis_out, basis_in)

    def _unwhiten(self, basis_out: Tensor, basis_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        core = _project(self.tensor, basis_out, basis_in)
        if self.metric is None:
            return basis_out, core, basis_in.mT
        # x -> basis_in^T S^-1 x is badly conditioned; its triangular part belongs into the core.
        orthonormal, triangle = torch.linalg.qr(self.metric.inverse @ basis_in)
        return basis_out, torch.einsum("gabk,gcb->gack", core, triangle), orthonormal.mT


@dataclass(frozen=True, slots=True)
class HOOI:
    """`Tucker2.hooi` with its options, for every rank."""

    tucker: Tucker2
    iterations: int
    tolerance: float

    def relative_error(self, rank_out: int, rank_in: int) -> float:
        """Return the error of the start, an upper bound."""
        return self.tucker.relative_error(rank_out, rank_in)

    def factors(self, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors after the iterations."""
        return self.tucker.hooi(rank_out, rank_in, iterations=self.iterations, tolerance=self.tolerance)


@dataclass(frozen=True, slots=True)
class Sequential:
    """`Tucker2.sequential` for every rank."""

    tucker: Tucker2

    def relative_error(self, rank_out: int, rank_in: int) -> float:
        """Return the error of the truncated HOSVD, an upper bound."""
        return self.tucker.relative_error(rank_out, rank_in)

    def factors(self, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors of the one pass."""
        return self.tucker.sequential(rank_out, rank_in)


def _project(tensor: Tensor, basis_out: Tensor, basis_in: Tensor) -> Tensor:
    half = torch.einsum("goik,goa->gaik", tensor, basis_out)
    return torch.einsum("gaik,gib->gabk", half, basis_in)
