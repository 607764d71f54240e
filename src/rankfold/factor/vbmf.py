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
    (the threshold) and equation 30 (the noise variance, which minimises the free energy over the interval of theorem
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
    variance = _minimize(lambda v: _free_energy(v, energies, columns, ratio, edge), lower, upper)
    return int((energies > columns * variance * edge).sum())


def _free_energy(variance: float, energies: Tensor, columns: int, ratio: float, edge: float) -> float:
    """Return the free energy up to constants, as a function of the noise variance."""
    x = energies / (columns * variance)
    signal = x[x > edge]
    shifted = signal - (1 + ratio)
    tau = 0.5 * (shifted + (shifted.square() - 4 * ratio).clamp_min(0).sqrt())
    # The sum of x - log x over all components (without constants), plus the gain of each component above the edge.
    base = float(x.sum()) + len(energies) * math.log(variance)
    gain = (tau + 1).log() + ratio * (tau / ratio + 1).log() - tau
    return base + float(gain.sum())


def _minimize(f: Callable[[float], float], lower: float, upper: float, *, grid: int = 64, steps: int = 60) -> float:
    """Return the minimiser of a function on an interval: the best of a logarithmic grid, refined by golden section."""
    if upper <= lower:
        return lower
    logs = torch.linspace(math.log(lower), math.log(upper), grid, dtype=torch.float64).tolist()
    values = [f(math.exp(t)) for t in logs]
    best = min(range(grid), key=values.__getitem__)
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, grid - 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(steps):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if f(math.exp(a)) <= f(math.exp(b)):
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)
