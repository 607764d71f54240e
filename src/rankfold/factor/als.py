"""Alternating least squares for CP decompositions of a batch of tensors, with several starts, momentum and a bound.

One sweep solves for the factor of every mode in turn. Its two large products are shared among the modes (a dimension
tree of depth one; Phan, Tichavsky & Cichocki 2013, "Fast alternating LS algorithms for high order CANDECOMP/PARAFAC
tensor factorizations", section III). Between sweeps, the factors are extrapolated along their last change with
Nesterov's momentum, which restarts when the error increases (Mitchell, Ye & De Sterck 2020, "Nesterov acceleration of
alternating least squares for canonical tensor decomposition", section 3). On random and on decaying weights, 30 sweeps
reach the error of 100 plain ones.

CP has degenerate sequences, whose terms grow without bound and cancel. While the energy of a tensor's terms exceeds a
limit, its least-squares problems are damped, more with every sweep, and its iterates are not accepted (in the spirit of
Phan et al. 2020, "Stable low-rank tensor decomposition for compression of convolutional neural network"). The returned
factors are therefore always within the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rankfold.factor.linalg import SINGLE_ENOUGH, single_is_whole

# Tensors of at least SINGLE elements are first iterated in float32, where products take half the time.
SINGLE = 2**17
# After TRIAL sweeps a quarter of the starts (at least four) remain. Progress is measured over WINDOW sweeps.
TRIAL, WINDOW = 30, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Stopping criteria and bounds of the iterations.

    Parameters
    ----------
    iterations : int
        Maximum number of sweeps.
    tolerance : float
        Stop when the last 20 sweeps lowered the relative error by less than this share of it.
    target : float
        Stop as soon as the relative error is at most this.
    norm_limit : float
        Bound on the energy of the rank-one terms, ``sum_r ||term_r||^2 / ||tensor||^2``. The energy is 1 for orthogonal
        terms that add up to the tensor.
    starts : int
        Maximum number of starts. Small tensors have many local optima and cheap sweeps; a large tensor gets one start.
    """

    iterations: int = 500
    tolerance: float = 1e-3
    target: float = 0.0
    norm_limit: float = 100.0
    starts: int = 32


def khatri_rao(factors: list[Tensor]) -> Tensor:
    """Return the columnwise Kronecker product ``(batch, n_0 n_1 ..., rank)`` of factors ``(batch, n_j, rank)``."""
    return reduce(lambda product, factor: (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1, 2), factors)


def reconstruct(factors: list[Tensor]) -> Tensor:
    """Return the tensor ``(batch, n_0, n_1, ...)`` of CP factors ``(batch, n_j, rank)``."""
    flat = factors[0] @ khatri_rao(factors[1:]).mT
    return flat.reshape(flat.shape[0], *(f.shape[1] for f in factors))


def terms_energy(factors: list[Tensor]) -> Tensor:
    """Return the sum of the squared norms of the rank-one terms, ``(batch,)``."""
    return torch.stack([f.square().sum(1) for f in factors]).prod(0).sum(1)


def even_out(factors: list[Tensor]) -> list[Tensor]:
    """Give column r of every mode the same norm, without changing their product."""
    squares = [f.square().sum(1) for f in factors]
    return [f * scale for f, scale in zip(factors, _evening(squares), strict=True)]


def _evening(squares: list[Tensor]) -> list[Tensor]:
    """Return the scales ``(batch, 1, rank)`` that even out columns of these squared norms ``(batch, rank)``."""
    tiny = torch.finfo(squares[0].dtype).tiny
    stacked = torch.stack(squares)
    logs = stacked.clamp_min(tiny).log()
    alive = (stacked > tiny).all(0)
    return list(((logs.mean(0) - logs).mul(0.5).exp() * alive).unsqueeze(2))


def refine(tensor: Tensor, starts: list[list[Tensor]], effort: Effort) -> list[Tensor]:
    """Return the best CP factors found by the iterations, for every tensor of a batch.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_0, n_1, n_2, ...)``, at least three modes, the two large ones first.
    starts : list of list of Tensor
        Initial factors ``(batch, n_j, rank)``, one list per start.
    effort : Effort
        Stopping criteria.

    Returns
    -------
    list of Tensor
        ``(batch, n_j, rank)``, columns of even norm, in the data type of `tensor`: for each tensor, the factors of the
        smallest error over all sweeps and starts within `Effort.norm_limit`, or the first start if there were none.
    """
    single = tensor.dtype == torch.float64 and tensor.numel() >= SINGLE and single_is_whole()
    scale, share = _scale(tensor)
    root = scale ** (1 / (tensor.ndim - 1))
    history: list[float] = []
    with torch.inference_mode():  # small tensors spend a fifth of the time on what gradients would need
        members = _members(tensor, starts, effort, torch.float32 if single else tensor.dtype)
        for sweep in range(1, effort.iterations + 1):
            members.step()
            error = float((members.least() * share).sum().clamp_min(0).sqrt())
            history.append(members.typical(share))
            if members.work == torch.float32 and error < SINGLE_ENOUGH:  # float32 can hardly tell better from worse
                members.widen((tensor / _columns(scale, tensor)).double())
                continue
            if error <= effort.target or error < 1e-11:
                break
            if sweep == TRIAL:
                members.keep_best(max(4, members.starts // 4))
            gained = history[-1 - WINDOW] - history[-1] if sweep >= TRIAL + WINDOW // 2 else math.inf
            if gained <= effort.tolerance * history[-1] < math.inf:  # infinite while a tensor is beyond the limit
                break
        members.keep_best(1)
    return [f.to(tensor.dtype) * _columns(root, f) for f in members.best]


def sweep_each(tensor: Tensor, starts: list[list[Tensor]], effort: Effort) -> list[list[Tensor]]:
    """Return the result of some sweeps from each start: for each tensor, the best factors within the limit.

    The sweeps end when ten of them lowered the relative error, averaged over the starts, by less than
    `Effort.tolerance`.
    """
    scale, share = _scale(tensor)
    root = scale ** (1 / (tensor.ndim - 1))
    error = math.inf
    with torch.inference_mode():
        members = _members(tensor, starts, effort, tensor.dtype)
        for sweep in range(1, effort.iterations + 1):
            members.step()
            if sweep % 10 == 0:
                before, error = error, members.typical(share)
                if before - error < effort.tolerance:
                    break
    results = zip(*(f.chunk(len(starts)) for f in members.best), strict=True)
    return [[f * _columns(root, f) for f in factors] for factors in results]


def _scale(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the divisor of each tensor, its norm (1 if that is 0), and its share of the batch's squared norm."""
    norms = tensor.flatten(1).norm(dim=1)
    share = norms.double().square() / norms.double().square().sum()
    return torch.where(norms > 0, norms, torch.ones_like(norms)), share


def _members(tensor: Tensor, starts: list[list[Tensor]], effort: Effort, work: torch.dtype) -> _Members:
    """Return the iterations of tensors of norm 1 in the data type `work`."""
    scale, _ = _scale(tensor)
    root = scale ** (1 / (tensor.ndim - 1))
    factors = [torch.cat([f / _columns(root, f) for f in mode]).to(work) for mode in zip(*starts, strict=True)]
    return _Members((tensor / _columns(scale, tensor)).to(work), even_out(factors), len(starts), effort.norm_limit)


class _Members:
    """All tensors times all starts, start by start, as one batch of iterations.

    The tensors ``(batch, n_0, n_1, ...)`` have norm 1 or 0, the factors are ``(starts * batch, n_j, rank)``. The states
    of the iterations hold the factors of all modes in one tensor ``(starts * batch, n_0 + n_1 + ..., rank)``.
    """

    def __init__(self, tensor: Tensor, factors: list[Tensor], starts: int, norm_limit: float) -> None:
        self.batch, self.starts, self.norm_limit = tensor.shape[0], starts, norm_limit
        self.work = tensor.dtype
        self._sizes = [f.shape[1] for f in factors]
        self._set_tensor(tensor)
        count = factors[0].shape[0]
        self._previous = self._ahead = self._best = torch.cat(factors, dim=1)
        zeros = torch.zeros(count, dtype=torch.float64, device=tensor.device)
        self.error = zeros + math.inf
        self.best_error = zeros + math.inf
        self.run = zeros.clone()  # sweeps since the last restart of the momentum
        self.damping = zeros.clone()
        self.proximity = zeros + self._proximity

    @property
    def best(self) -> list[Tensor]:
        """The best factors of every start."""
        return list(self._best.split(self._sizes, dim=1))

    @property
    def _proximity(self) -> float:
        return 1e-6 if self.work == torch.float32 else 1e-12

    def _set_tensor(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.energy = tensor.double().square().flatten(1).sum(1).repeat(self.starts)
        repeated = tensor.repeat(self.starts, *(1,) * (tensor.ndim - 1)) if self.starts > 1 else tensor
        self.matrix = repeated.flatten(2)

    def widen(self, tensor: Tensor) -> None:
        """Continue in float64."""
        self.work = torch.float64
        self._set_tensor(tensor)
        self._previous, self._ahead, self._best = (x.double() for x in (self._previous, self._ahead, self._best))
        self.error = self.error + math.inf  # to be measured again
        exact = (reconstruct(self.best).flatten(2) - self.matrix).square().sum((1, 2))
        self.best_error = torch.where(self.best_error.isfinite(), exact, self.best_error)
        self.proximity = torch.full_like(self.proximity, self._proximity)

    def least(self) -> Tensor:
        """Return the squared relative error ``(batch,)`` of each tensor's best start."""
        return self._best_errors().amin(0).clamp_min(0)

    def typical(self, share: Tensor) -> float:
        """Return the relative error of the batch, averaged over the starts, which changes while any of them does."""
        return float((self._best_errors().clamp_min(0) @ share).sqrt().mean())

    def _best_errors(self) -> Tensor:
        """Return the best squared errors as ``(starts, batch)``."""
        return self.best_error.unflatten(0, (self.starts, self.batch))

    def keep_best(self, starts: int) -> None:
        """Drop all but the best starts of each tensor."""
        if starts >= self.starts:
            return
        order = self._best_errors().argsort(dim=0, stable=True)[:starts]
        index = (order * self.batch + torch.arange(self.batch, device=order.device)).flatten()
        self.starts = starts
        self._set_tensor(self.tensor)
        for name in ("_previous", "_ahead", "_best", "error", "best_error", "run", "damping", "proximity"):
            setattr(self, name, getattr(self, name)[index])

    def step(self) -> None:
        """Sweep from the extrapolated factors; accept the result unless it is worse; extrapolate."""
        factors, error, energy = self._sweep(list(self._ahead.split(self._sizes, dim=1)))
        error = error + self.energy
        over = energy > self.norm_limit * self.energy
        self.damping = torch.where(over, (4 * self.damping).clamp_min(1e-7), 0.7 * self.damping)
        worse = ~((error <= self.error) | over) | ~error.isfinite()
        # If a plain step increases the error, that is rounding: stay closer to the last factors.
        stuck = worse & (self.run == 0)
        self.proximity = torch.where(stuck, (10 * self.proximity).clamp_max(1e-2), self.proximity)
        factors = torch.where(_columns(worse, factors), self._previous, factors)
        self.error = torch.where(worse, self.error, error)
        better = (error < self.best_error) & ~(over | worse)
        self._best = torch.where(_columns(better, factors), factors, self._best)
        self.best_error = torch.where(better, error, self.best_error)
        self.run = torch.where(worse | over, 0, self.run + 1)
        # Nesterov's sequence (k - 1) / (k + 2), started at its eighth element.
        momentum = torch.where(self.run > 0, (self.run + 6) / (self.run + 9), 0).to(self.work)
        self._ahead = torch.lerp(self._previous, factors, 1 + _columns(momentum, factors))
        self._previous = factors

    def _sweep(self, factors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return new factors of all modes, their squared error minus the tensor's energy, and their terms' energy."""
        new = list(factors)
        n1, trailing = self.tensor.shape[2], self.tensor.shape[3:]
        grams = [new[0]] + [f.mT @ f for f in new[1:]]  # the first is a placeholder until its mode is solved for
        positions = khatri_rao(new[2:])
        failed = self._solve(self.matrix @ khatri_rao([new[1], positions]), new, grams, 0)
        half = (self.matrix.mT @ new[0]).unflatten(1, (n1, -1))  # shared by all other modes
        failed = failed + self._solve((half * positions.unsqueeze(1)).sum(2), new, grams, 1)
        small = (half * new[1].unsqueeze(2)).sum(1).unflatten(1, trailing)
        target = small
        for mode in range(2, len(new)):
            target = small.movedim(mode - 1, 1)
            for other in range(len(new) - 1, 1, -1):
                if other != mode:
                    target = (target * new[other].unflatten(0, (-1, *(1,) * (target.ndim - 3)))).sum(-2)
            failed = failed + self._solve(target, new, grams, mode)
        inner = (target.double() * new[-1].double()).sum((1, 2))
        product = reduce(torch.mul, grams).double()
        scales = _evening([g.diagonal(dim1=1, dim2=2) for g in grams])
        evened = torch.cat([f * scale for f, scale in zip(new, scales, strict=True)], dim=1)
        bad = failed > 0
        error = (product.sum((1, 2)) - 2 * inner).masked_fill(bad, math.nan)
        return evened, error, product.diagonal(dim1=1, dim2=2).sum(1).masked_fill(bad, math.nan)

    def _solve(self, target: Tensor, factors: list[Tensor], grams: list[Tensor], mode: int) -> Tensor:
        """Solve for the factor of one mode, close to its old value (proximity) and damped towards zero (damping).

        Returns a number above 0 for each member whose equations are singular.
        """
        product = reduce(torch.mul, [g for m, g in enumerate(grams) if m != mode])
        diagonal = product.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean(1).clamp_min(torch.finfo(self.work).tiny)
        near = self.proximity.to(self.work) * mean
        diagonal += (near + self.damping.to(self.work) * mean).unsqueeze(1)
        lower, failed = torch.linalg.cholesky_ex(product)
        right = target + _columns(near, target) * factors[mode]
        factors[mode] = torch.cholesky_solve(right.mT, lower).mT
        grams[mode] = factors[mode].mT @ factors[mode]
        return failed


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """Return a view of ``(batch,)`` that broadcasts against ``(batch, ...)``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
