"""Symmetric eigenproblems, metrics and balanced products: the ground under every factorization.

Everything here is batched over leading dimensions (the groups of a convolution) and works in the data type and on the
device of its arguments.

**Precision.** Spectra, which predicted errors are read off, are always computed in `wide_dtype`, that is float64. Bases
are found in the weight's own data type where the truncation itself costs more than `SINGLE_ENOUGH`, else in float64 as
well. The reason: a basis from a single-precision Gram matrix ``G + E`` (``||E||`` is a few times ``eps ||G||`` for the
sizes of layers; Higham 2002, section 3.5) captures at most ``2 r ||E||`` less energy than the best one of rank r (Ky
Fan's theorem, used once for G and once for G + E), in practice about 1e-6 of the total. To an error of at least 3 %
that adds less than 2e-5; but an error of 1e-5 could not be reached at all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

NO_DOUBLE = ("mps",)
"""Types of devices that have no float64, nor most decompositions of `torch.linalg`."""

SINGLE_ENOUGH = 0.03
"""Relative error from which on a truncation may be found in single precision."""

FLOOR = 1e-6
"""Share of the mean second moment that every direction of an input counts at least."""

FEW_COLUMNS = 32
"""Columns from which on matrix products make a basis sooner than Householder's QR does."""


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64; float32 for tensors above a gibibyte."""
    return torch.float32 if tensor.numel() > 2**27 else torch.float64


def double(tensor: Tensor) -> Tensor:
    """Return float64, on the CPU if the device has none."""
    return (tensor.cpu() if tensor.device.type in NO_DOUBLE else tensor).double()


def single_is_whole() -> bool:
    """Return whether torch takes products of float32 numbers in float32, not in TF32 or bfloat16 as a user may ask."""
    return torch.get_float32_matmul_precision() == "highest"


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
    """Return ``M M^T`` of ``(..., m, n)``; of a large one only the lower blocks are multiplied."""
    m = matrix.shape[-2]
    if m < 256:
        return matrix @ matrix.mT
    product = matrix.new_empty(*matrix.shape[:-1], m)
    edges = [m * k // 4 for k in range(5)]
    for start, end in itertools.pairwise(edges):
        product[..., start:end, :end] = matrix[..., start:end, :] @ matrix[..., :end, :].mT
        product[..., :start, start:end] = product[..., start:end, :start].mT
    return product


def identity(like: Tensor, size: int) -> Tensor:
    """Return identities ``(batch, size, size)`` for the batch, data type and device of a tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(like.shape[0], size, size)


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal bases of the spans of columns; the first r of them span what the first r columns span.

    Householder's QR goes column by column. Here the columns are divided by the Cholesky factor of their Gram matrix and
    put right by one Newton-Schulz step (Bjorck & Bowie 1971, "An iterative algorithm for computing the best estimate of
    an orthogonal matrix"), nearly all of it matrix products. The first basis loses orthogonality with the square of the
    columns' condition number (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015, "Roundoff error analysis of the
    CholeskyQR2 algorithm"), and the step squares what is lost: while that is the root of the rounding or less, the
    result is orthonormal to rounding (and nested to its root). Where it is more, and for few columns, Householder's QR
    takes over.

    Parameters
    ----------
    columns : Tensor
        ``(batch, m, r)``, r at most m. Columns of any norms, zeros among them.

    Returns
    -------
    Tensor
        ``(batch, m, r)``.
    """
    if columns.shape[-1] >= FEW_COLUMNS:
        rows = columns.mT
        triangle, _ = torch.linalg.cholesky_ex(torch.bmm(rows, columns))
        basis = torch.linalg.solve_triangular(triangle, rows, upper=False)
        lost = torch.baddbmm(identity(rows, rows.shape[1]), basis, basis.mT, beta=-1)
        # After a failed decomposition it is far more, or NaN.
        if torch.linalg.vector_norm(lost).item() <= torch.finfo(rows.dtype).eps ** 0.5:
            return torch.baddbmm(basis, lost, basis, alpha=-0.5).mT
    return torch.linalg.qr(columns).Q


def leading_left(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first left singular vectors ``(batch, m, rank)`` of a tall matrix, and the energy they capture."""
    energies, right = eigh_descending(gram(matrix.mT))
    return orthonormal(matrix @ right[..., :rank]), energies[..., :rank].sum()


def unwanted(values: Tensor, rank: int) -> tuple[float, float]:
    """Return the interval that holds all eigenvalues ``(batch, n)``, largest first, but the first `rank`.

    It is at least rounding wide: a filter for the spectrum of a matrix of lower rank would overflow otherwise.
    """
    low, high, largest = torch.stack([values[..., -1].min(), values[..., rank].max(), values.max()]).tolist()
    return low, max(high, low + torch.finfo(values.dtype).eps * largest)


def filtered(gram_matrix: Tensor, basis: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Improve a basis of the leading eigenvectors by one step of filtered subspace iteration.

    The Chebyshev polynomial of degree 2 of the interval of the unwanted eigenvalues is small in it and grows fast above
    (Zhou, Saad, Tiago & Chelikowsky 2006, "Self-consistent-field calculations using Chebyshev-filtered subspace
    iteration"): from a good start that is as good as a handful of power steps, at a fraction of a whole
    eigendecomposition if the columns are few.

    Parameters
    ----------
    gram_matrix : Tensor
        ``(batch, n, n)``.
    basis : Tensor
        ``(batch, n, r)``, orthonormal columns, most important first.
    low, high : float
        The interval, ``0 <= low < high``, as from `unwanted` of a matrix nearby; the filter is sharper the better it
        is known. It is one for the whole batch: a matrix much smaller than the others gains nothing and may lose, so
        accept a step by what it captures.

    Returns
    -------
    basis : Tensor
        ``(batch, n, r)``, orthonormal columns.
    captured : Tensor
        The energy it captures, ``tr(Q^T G Q)``, summed over the batch.
    """
    centre, radius = (high + low) / 2, (high - low) / 2
    once = torch.baddbmm(basis, gram_matrix, basis, beta=-centre / radius, alpha=1 / radius)
    twice = torch.baddbmm(once, gram_matrix, once, beta=-2 * centre / radius, alpha=2 / radius) - basis
    basis = orthonormal(twice)
    return basis, (gram_matrix @ basis).mul_(basis).sum()


def balanced_columns(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite ``left @ right`` so that column j of the one and row j of the other have the same norm.

    For singular vectors (orthonormal columns, orthogonal rows) this is `balanced_product` without its decomposition.
    """
    scale = torch.linalg.vector_norm(right, dim=-1, keepdim=True).sqrt_()
    torch.threshold_(scale, 0, 1)  # rows of nothing stay as they are
    return left * scale.mT, right / scale


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


def mean_share(moment: Tensor) -> Tensor:
    """Return `FLOOR` of the mean eigenvalue of second moments ``(groups, n, n)``, as ``(groups, 1, 1)``; 1 for zeros.

    Added to every eigenvalue it does what `Metric.of` does with it: directions in which the data never moves still
    count a little.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(mean > 0, FLOOR * mean, torch.ones_like(mean))[:, None, None]


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
    def of(cls, moment: Tensor) -> Metric:
        """Take the root of a second moment.

        Eigenvalues are raised to at least `FLOOR` of the mean one. A direction in which the data never moves still
        counts a little, so that the root can be inverted and the layer behaves on data unlike the calibration data.

        Parameters
        ----------
        moment : Tensor
            ``(groups, n, n)``, symmetric positive semidefinite.
        """
        values, vectors = eigh_descending(moment)
        mean = values.mean(-1, keepdim=True)
        values = torch.where(mean > 0, torch.maximum(values, FLOOR * mean), torch.ones_like(values))
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
