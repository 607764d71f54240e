"""Empirical variational Bayesian matrix factorization: an analytic estimate of a matrix's rank."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def evbmf_rank(matrix: Tensor) -> int:
    """Return the rank that EVBMF with unknown noise variance estimates for a finite matrix ``(m, n)``.

    It is 0 for a matrix without structure, and at most ``min(m, n)``. Nakajima, Sugiyama, Babacan & Tomioka (2013),
    "Global analytic solution of fully-observed variational Bayesian matrix factorization", theorem 2 and corollary 1
    (the threshold) and equation 30 (the noise variance, which minimizes the free energy over the interval of theorem
    3).
    """
    rows, columns = sorted(matrix.shape)
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    energies = torch.linalg.eigvalsh((small @ small.mT).double()).flip(-1).clamp_min(0)
    total = float(energies.sum())
    if total <= 0:
        return 0
    energies = energies / total  # the rank does not depend on the scale
    ratio = rows / columns
    tau_bar = 2.5129 * math.sqrt(ratio)
    edge = (1 + tau_bar) * (1 + ratio / tau_bar)
    largest = min(math.ceil(rows / (1 + ratio)) - 1, rows)
    upper = float(energies.sum()) / (rows * columns)
    rest = energies[max(largest, 0) :]
    lower = max(float(rest[0]) / (columns * edge), float(rest.mean()) / columns) if len(rest) else 0.0
    lower = max(lower, upper * 1e-12)
    variance = _minimize(lambda v: _free_energies(v, energies, columns, ratio, edge), lower, upper)
    return int((energies > columns * variance * edge).sum())


def _free_energies(variances: Tensor, energies: Tensor, columns: int, ratio: float, edge: float) -> Tensor:
    """Return the free energies up to constants, as a function of the noise variances."""
    x = energies / (columns * variances.unsqueeze(1))
    shifted = x.clamp_min(edge) - (1 + ratio)
    tau = 0.5 * (shifted + (shifted.square() - 4 * ratio).clamp_min(0).sqrt())
    # The sum of x - log x over all components (without constants), plus the gain of each component above the edge.
    gain = (tau + 1).log() + ratio * (tau / ratio + 1).log() - tau
    return x.sum(1) + len(energies) * variances.log() + (gain * (x > edge)).sum(1)


def _minimize(f: Callable[[Tensor], Tensor], lower: float, upper: float, *, points: int = 64, rounds: int = 9) -> float:
    """Return the minimizer of a function on an interval: the best of a logarithmic grid, refined around it."""
    if upper <= lower:
        return lower
    low, high = math.log(lower), math.log(upper)
    for _ in range(rounds):  # each one narrows the interval by a factor of 31
        grid = torch.linspace(low, high, points, dtype=torch.float64)
        best = int(f(grid.exp()).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
    return math.exp((low + high) / 2)
