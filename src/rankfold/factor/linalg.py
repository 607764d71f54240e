"""Symmetric eigenproblems, metrics and balanced products: the building blocks of every factorization.

All functions are batched over leading dimensions (the groups of a convolution) and work in the data type and on the
device of their arguments.

**Precision.** Spectra, from which errors are predicted, are always computed in `wide_dtype`, usually float64. Bases are
computed in the weight's own data type if the truncation itself costs more than `SINGLE_ENOUGH`, otherwise in float64.
A basis from a single-precision Gram matrix ``G + E`` (``||E||`` is a few times ``eps ||G||`` for the sizes of layers;
Higham 2002, section 3.5) captures at most ``2 r ||E||`` less energy than the best one of rank r (Ky Fan's theorem,
applied to G and to G + E), in practice about 1e-6 of the total. This adds less than 2e-5 to an error of at least 3 %,
but it would make an error of 1e-5 impossible.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

NO_DOUBLE = ("mps",)
"""Types of devices without float64 and most decompositions of `torch.linalg`."""

SINGLE_ENOUGH = 0.03
"""Relative error above which a truncation may be computed in single precision."""

FLOOR = 1e-6
"""Minimum weight of every direction of an input, as a share of the mean second moment."""

FEW_COLUMNS = 32
"""Number of columns from which orthonormalizing by matrix products is faster than by Householder's QR."""


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64; float32 for tensors above a gibibyte."""
    return torch.float32 if tensor.numel() > 2**27 else torch.float64


def double(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU if its device has no float64."""
    return (tensor.cpu() if tensor.device.type in NO_DOUBLE else tensor).double()


def single_is_whole() -> bool:
    """Return whether torch multiplies float32 in full precision, not in TF32 or bfloat16 as a user may have set."""
    return torch.get_float32_matmul_precision() == "highest"


def eigh_descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(..., n)``, largest first and at least 0, and eigenvectors ``(..., n, n)`` as columns."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        # Divide and conquer may fail on finite matrices; the SVD is another algorithm.
        vectors, values, _ = torch.linalg.svd(gram)
        return values, vectors
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Return the mode unfolding ``(batch, n_mode, rest)`` of ``(batch, n_0, n_1, ...)``."""
    return tensor.movedim(mode + 1, 1).flatten(2)


def gram(matrix: Tensor) -> Tensor:
    """Return ``M M^T`` of ``(..., m, n)``; for large m, only the lower blocks are multiplied."""
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
    """Return identity matrices ``(batch, size, size)`` with the batch size, data type and device of a tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(like.shape[0], size, size)


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal bases of the spans of columns; the first r of them span what the first r columns span.

    The columns are divided by the Cholesky factor of their Gram matrix and corrected by one Newton-Schulz step (Bjorck
    & Bowie 1971, "An iterative algorithm for computing the best estimate of an orthogonal matrix"), which consists
    almost entirely of matrix products. The first basis loses orthogonality with the square of the columns' condition
    number (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015, "Roundoff error analysis of the CholeskyQR2 algorithm"),
    and the step squares this loss: up to a loss of the root of the rounding error, the result is orthonormal to
    rounding (and nested to its root). Beyond that, and for few columns, Householder's QR is used.

    Parameters
    ----------
    columns : Tensor
        ``(batch, m, r)`` with ``r <= m``, of any norms including zero.
    """
    if columns.shape[-1] >= FEW_COLUMNS:
        rows = columns.mT
        triangle, _ = torch.linalg.cholesky_ex(torch.bmm(rows, columns))
        basis = torch.linalg.solve_triangular(triangle, rows, upper=False)
        lost = torch.baddbmm(identity(rows, rows.shape[1]), basis, basis.mT, beta=-1)
        # After a failed decomposition, the loss is far larger, or NaN.
        if torch.linalg.vector_norm(lost).item() <= torch.finfo(rows.dtype).eps ** 0.5:
            return torch.baddbmm(basis, lost, basis, alpha=-0.5).mT
    return torch.linalg.qr(columns).Q


def leading_left(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first left singular vectors ``(batch, m, rank)`` of a tall matrix, and the energy they capture."""
    energies, right = eigh_descending(gram(matrix.mT))
    return orthonormal(matrix @ right[..., :rank]), energies[..., :rank].sum()


def unwanted(values: Tensor, rank: int) -> tuple[float, float]:
    """Return the interval of all eigenvalues ``(batch, n)``, largest first, except the first `rank`.

    It is at least as wide as the rounding error, because a filter for a matrix of lower rank would overflow otherwise.
    """
    low, high, largest = torch.stack([values[..., -1].min(), values[..., rank].max(), values.max()]).tolist()
    return low, max(high, low + torch.finfo(values.dtype).eps * largest)


def filtered(gram_matrix: Tensor, basis: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Improve a basis of the leading eigenvectors by one step of filtered subspace iteration.

    The Chebyshev polynomial of degree 2 for the interval of the unwanted eigenvalues is small inside it and grows fast
    above (Zhou, Saad, Tiago & Chelikowsky 2006, "Self-consistent-field calculations using Chebyshev-filtered subspace
    iteration"). From a good start, one step equals a handful of power steps, and for few columns it costs a fraction of
    a full eigendecomposition.

    Parameters
    ----------
    gram_matrix : Tensor
        ``(batch, n, n)``.
    basis : Tensor
        ``(batch, n, r)``, orthonormal columns, most important first.
    low, high : float
        The interval, ``0 <= low < high``, from `unwanted` of a similar matrix; the more accurate, the sharper the
        filter. The whole batch shares it: a matrix much smaller than the others gains nothing and may lose, so accept a
        step only by the energy it captures.

    Returns
    -------
    basis : Tensor
        ``(batch, n, r)``, orthonormal columns.
    captured : Tensor
        The energy it captures, ``tr(Q^T G Q)``, summed over the batch.
    """
    center, radius = (high + low) / 2, (high - low) / 2
    once = torch.baddbmm(basis, gram_matrix, basis, beta=-center / radius, alpha=1 / radius)
    twice = torch.baddbmm(once, gram_matrix, once, beta=-2 * center / radius, alpha=2 / radius) - basis
    basis = orthonormal(twice)
    return basis, (gram_matrix @ basis).mul_(basis).sum()


def balanced_columns(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite ``left @ right`` so that column j of the left and row j of the right factor have the same norm.

    For singular vectors (orthonormal columns, orthogonal rows) this is `balanced_product` without its decomposition.
    """
    scale = torch.linalg.vector_norm(right, dim=-1, keepdim=True).sqrt_()
    torch.threshold_(scale, 0, 1)  # rows of zeros stay unchanged
    return left * scale.mT, right / scale


def tails(energies: Tensor) -> Tensor:
    """Return the sums ``(..., n + 1)`` of ``energies[..., r:]`` for r = 0..n, the energy that rank r leaves out.

    The energies ``(..., n)`` are nonnegative, largest first, and added up from the small end, so the result never grows
    with r and is 0 at n.
    """
    left = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([left, torch.zeros_like(left[..., :1])], dim=-1)


def mean_share(moment: Tensor) -> Tensor:
    """Return `FLOOR` times the mean eigenvalue of second moments ``(groups, n, n)``, ``(groups, 1, 1)``; 1 for zeros.

    Added to every eigenvalue, it has the effect of the floor in `Metric.of`.
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
        """Return the metric of second moments ``(groups, n, n)``, symmetric positive semidefinite.

        Eigenvalues are raised to at least `FLOOR` times their mean. Directions in which the data does not vary thus
        keep a small weight, so the root can be inverted and the layer stays usable on data unlike the calibration data.
        """
        values, vectors = eigh_descending(moment)
        mean = values.mean(-1, keepdim=True)
        values = torch.where(mean > 0, torch.maximum(values, FLOOR * mean), torch.ones_like(values))
        root = values.sqrt().unsqueeze(-2)
        return cls((vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT)


def balanced_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite the product ``left @ right`` so that both factors share its singular values evenly.

    With ``left @ right = U diag(s) V^T``, the result is ``U diag(s)^(1/2)`` and ``diag(s)^(1/2) V^T``: the condition
    number of each factor is the square root of the product's, independently of the given factors.

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
    # Directions without energy get scale 1, not 1/0.
    scale = torch.where(values > 1e-12 * largest, values, torch.ones_like(values)).sqrt()
    return (left @ rotation) * scale.unsqueeze(-2), (rotation.mT @ right) / scale.unsqueeze(-1)


def pad_last(tensor: Tensor, size: int) -> Tensor:
    """Append zeros along the last dimension up to `size`."""
    return torch.nn.functional.pad(tensor, (0, max(0, size - tensor.shape[-1])))
