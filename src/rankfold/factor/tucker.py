"""Tucker-2 of a convolution weight: truncated HOSVD refined by HOOI, and its sequential (TT-SVD) form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankfold.factor.linalg import (
    SINGLE_ENOUGH,
    Metric,
    eigh_descending,
    filtered,
    gram,
    identity,
    leading_left,
    unwanted,
    wide_dtype,
)

OUT, IN = 0, 1

FEW = 0.6
"""Share of a mode's channels up to which updating a subspace is cheaper than computing all eigenvectors."""


@dataclass(frozen=True, slots=True)
class Tucker2:
    """A weight and, computed on demand, the eigenbases of its output and input mode Grams.

    Parameters
    ----------
    tensor : Tensor
        ``(groups, o, i, *kernel)``; with a metric, the input mode is already multiplied by the metric's root.
    metric : Metric or None
        The metric of the input mode.
    """

    tensor: Tensor
    metric: Metric | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def relative_error(self, rank_out: int, rank_in: int) -> float:
        """Return the relative error of the truncated HOSVD, 0..1: exact for HOSVD, an upper bound after HOOI.

        The squared error is ``||W||^2`` minus a prefix sum of the squared core (De Lathauwer et al. 2000, section 4).
        The first call performs two eigendecompositions and one rotation in float64; later calls only look up.
        """
        if "errors" not in self._cache:
            modes = self._modes(wide_dtype(self.tensor))
            core = modes.project(modes.basis(OUT), modes.basis(IN))
            kept = torch.nn.functional.pad(core.square().sum((0, 2)).cumsum(0).cumsum(1), (1, 0, 1, 0))
            total = kept[-1, -1]
            left = (1 - kept / total).clamp(0, 1).sqrt() if total > 0 else torch.zeros_like(kept)
            self._cache["errors"] = left.tolist()
        return self._cache["errors"][rank_out][rank_in]

    def hooi(self, rank_out: int, rank_in: int, *, iterations: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors by higher-order orthogonal iteration.

        De Lathauwer, De Moor & Vandewalle (2000), "On the best rank-1 and rank-(R1, ..., RN) approximation of
        higher-order tensors", section 4, table 4.1. The iteration starts from the HOSVD's basis of the shorter mode;
        the first update of the other mode is then optimal for it (Vannieuwenhoven et al. 2012, sequentially truncated
        HOSVD), so the error never exceeds `relative_error`. It never increases; the iteration stops once the update of
        a mode lowers the relative error by less than `tolerance`.

        Returns
        -------
        out : Tensor
            ``(groups, o, rank_out)``, orthonormal columns.
        core : Tensor
            ``(groups, rank_out, rank_in, K)``.
        inn : Tensor
            ``(groups, rank_in, i)``, orthonormal rows.
        """

        def bases(modes: _Modes) -> tuple[Tensor, Tensor]:
            ranks = (rank_out, rank_in)
            if iterations == 0 or modes.full(OUT, rank_out) or modes.full(IN, rank_in):
                return modes.leading(OUT, rank_out), modes.leading(IN, rank_in)
            return _iterate(modes, ranks, iterations, tolerance)

        return self._factors(bases)

    def sequential(self, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors by TT-SVD of ``(i, K, o)``: truncate the input mode, then the output mode of the result.

        Oseledets (2011), algorithm 1, on RENE's three cores (Aghababaei-Harandi & Amini, eq. 3). The output basis is
        optimal for the truncated tensor, so the error is at most `relative_error`. Shapes as in `hooi`.
        """

        def bases(modes: _Modes) -> tuple[Tensor, Tensor]:
            if modes.full(OUT, rank_out) or modes.full(IN, rank_in):
                return modes.leading(OUT, rank_out), modes.leading(IN, rank_in)
            seen = modes.gram_behind(OUT, modes.basis(IN), rank_in)
            return eigh_descending(seen)[1][..., :rank_out], modes.leading(IN, rank_in)

        return self._factors(bases)

    def _modes(self, dtype: torch.dtype) -> _Modes:
        if dtype not in self._cache:
            self._cache[dtype] = _Modes(self.tensor.to(dtype).flatten(3).movedim(3, 2).contiguous())
        return self._cache[dtype]

    def _factors(self, bases: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return factors for the bases, in the tensor's precision if that suffices."""
        modes = self._modes(self.tensor.dtype)
        out, inn = bases(modes)
        core = modes.project(out, inn)
        if core.dtype == torch.float32 and modes.left_out(core) < SINGLE_ENOUGH**2:
            modes = self._modes(wide_dtype(self.tensor))
            out, inn = bases(modes)
            core = modes.project(out, inn)
        core = core.movedim(2, 3)
        if self.metric is None:
            return out, core, inn.mT
        # x -> inn^T S^-1 x is badly conditioned; its triangular part moves into the core.
        orthonormal, triangle = torch.linalg.qr(self.metric.inverse @ inn)
        return out, torch.einsum("gabk,gcb->gack", core, triangle), orthonormal.mT


class _Modes:
    """A tensor ``(groups, o, K, i)`` in one data type, with Grams and eigenbases of its two channel modes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._grams: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}

    def size(self, mode: int) -> int:
        """Return the mode's number of channels."""
        return self.tensor.shape[1 if mode == OUT else 3]

    def full(self, mode: int, rank: int) -> bool:
        """Return whether the mode is not truncated."""
        return rank == self.size(mode)

    def gram(self, mode: int) -> Tensor:
        """Return the mode's Gram matrix."""
        if mode not in self._grams:
            self._grams[mode] = _mode_gram(self.tensor, mode)
        return self._grams[mode]

    def basis(self, mode: int) -> Tensor:
        """Return all eigenvectors of the mode's Gram matrix, largest eigenvalue first."""
        if mode not in self._bases:
            self._bases[mode] = eigh_descending(self.gram(mode))[1]
        return self._bases[mode]

    def leading(self, mode: int, rank: int) -> Tensor:
        """Return the leading eigenvectors; for a mode that is not truncated, the unit vectors, which span the same."""
        return identity(self.tensor, rank) if self.full(mode, rank) else self.basis(mode)[..., :rank]

    def gram_behind(self, mode: int, other: Tensor, rank: int) -> Tensor:
        """Return the Gram matrix of one mode after projecting the other onto the first columns of its whole basis.

        If more than half of them are kept, subtracting the contribution of the others is cheaper.
        """
        if 2 * rank <= self.size(1 - mode) or other.shape[-1] < self.size(1 - mode):
            return _mode_gram(_onto(1 - mode, other[..., :rank], self.tensor), mode)
        return self.gram(mode) - _mode_gram(_onto(1 - mode, other[..., rank:], self.tensor), mode)

    def unfolded(self, mode: int, other: Tensor) -> Tensor:
        """Return the mode's unfolding after projecting the other mode onto a basis."""
        return _unfold(_onto(1 - mode, other, self.tensor), mode)

    def project(self, out: Tensor, inn: Tensor) -> Tensor:
        """Return the core ``(groups, r_o, K, r_i)``."""
        if out.shape[-1] * self.size(IN) <= inn.shape[-1] * self.size(OUT):
            return _onto(IN, inn, _onto(OUT, out, self.tensor))
        return _onto(OUT, out, _onto(IN, inn, self.tensor))

    def left_out(self, core: Tensor) -> float:
        """Return the share of the energy that is not in the core; 0 for a zero tensor."""
        kept, whole = torch.stack([torch.linalg.vector_norm(core), torch.linalg.vector_norm(self.tensor)]).tolist()
        return 1 - (kept / whole) ** 2 if whole > 0 else 0.0


def _onto(mode: int, basis: Tensor, tensor: Tensor) -> Tensor:
    """Project one channel mode of ``(groups, o, K, i)``, with a single matrix product and no copy."""
    groups, o, positions, i = tensor.shape
    if mode == OUT:
        return (basis.mT @ tensor.reshape(groups, o, positions * i)).reshape(groups, -1, positions, i)
    return (tensor.reshape(groups, o * positions, i) @ basis).reshape(groups, o, positions, -1)


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    """Return the unfolding ``(groups, n, rest)`` of one channel mode of ``(groups, o, K, i)``, a view."""
    return tensor.flatten(2) if mode == OUT else tensor.flatten(1, 2).mT


def _mode_gram(tensor: Tensor, mode: int) -> Tensor:
    """Return the Gram matrix ``(groups, n, n)`` of one channel mode of ``(groups, o, K, i)``."""
    return gram(_unfold(tensor, mode))


def _iterate(modes: _Modes, ranks: tuple[int, int], iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the bases after the iteration; both modes are truncated."""
    first = IN if modes.size(IN) <= modes.size(OUT) else OUT
    total = float(modes.gram(first).diagonal(dim1=-2, dim2=-1).sum())
    bases = {first: modes.basis(first)}
    intervals: dict[int, tuple[float, float]] = {}
    error = 1.0
    for step in range(2 * iterations if total > 0 else 1):
        mode = first if step % 2 else 1 - first
        rank, other, now = ranks[mode], ranks[1 - mode], 1.0
        if rank <= other * modes.tensor.shape[2] <= FEW * modes.size(mode):  # the other side is the smaller problem
            bases[mode], captured = leading_left(modes.unfolded(mode, bases[1 - mode][..., :other]), rank)
            now = _share_left(captured, total)
        else:
            seen = modes.gram_behind(mode, bases[1 - mode], other)
            if mode in intervals:
                bases[mode], captured = filtered(seen, bases[mode][..., :rank], *intervals[mode])
                now = _share_left(captured, total)
            if mode not in intervals or not now <= error:
                values, bases[mode] = eigh_descending(seen)
                now = _share_left(values[..., :rank].sum(), total)
                if rank <= FEW * modes.size(mode):  # from now on a filter is cheaper
                    intervals[mode] = unwanted(values, rank)
        if error - now < tolerance:
            break
        error = now
    return bases[OUT][..., : ranks[OUT]], bases[IN][..., : ranks[IN]]


def _share_left(captured: Tensor, total: float) -> float:
    return max(0.0, 1 - float(captured) / total) ** 0.5 if total > 0 else 0.0
