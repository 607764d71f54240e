"""Canonical polyadic (CP) decompositions of a batch of tensors: an error bound for every rank, starts, and factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankfold.factor.als import Effort, even_out, reconstruct, refine, sweep_each, terms_energy
from rankfold.factor.linalg import eigh_descending, gram, unfold
from rankfold.factor.pencil import pencil

# The number of starts times the elements of the tensor is at most STARTED.
STARTED = 2**16
# Small tensors are fitted in advance at up to KNOTS ranks from up to TRIES starts, with up to SWEEPS sweeps, until ten
# sweeps lower the relative error by less than PROGRESS. WORK limits the number of fits times the square of the largest
# rank; a tensor is small if at least FEWEST ranks are within this limit.
KNOTS, FEWEST, TRIES, SWEEPS, PROGRESS, WORK = 12, 4, 8, 100, 0.005, 2**14
# If WORK does not suffice for all ranks, each rank is fitted by CLIMB sweeps from the fit of the rank before. PRODUCTS
# limits the total number of multiplications.
CLIMB, PRODUCTS = 8, 2**33


@dataclass(frozen=True, slots=True)
class _Fit:
    """A decomposition that can be extended to higher ranks by the largest terms of the slices of its residual."""

    rank: int
    factors: list[Tensor]
    residual: Tensor
    left_out: list[float]

    def error(self, rank: int) -> float:
        """Return the squared error of the extension to `rank`."""
        return self.left_out[min(rank - self.rank, len(self.left_out) - 1)] if rank >= self.rank else math.inf

    def extended(self, rank: int) -> list[Tensor]:
        """Return the factors of the extension to `rank`."""
        more = _Slices(self.residual).largest(rank - self.rank)
        pairs = zip(self.factors, more, strict=True)
        return [torch.cat([one, other], dim=2) for one, other in pairs] if self.rank else more


@dataclass(frozen=True, slots=True)
class _Fits:
    """Fits with one effort: those of several starts, those of the climb so far, and the ranks it has not reached."""

    compared: list[_Fit]
    climbed: list[_Fit]
    ahead: list[int]


class Canonical:
    """CP decompositions of tensors, with an error bound that is known in advance: the error of the start.

    Tensors are first fitted at some ranks, with a few sweeps. Every other rank starts from one of these fits, extended
    by the largest terms of the slices of its residual. For large tensors only low ranks are fitted, or none; then the
    start consists of terms of the tensor's own slices. The predicted error is that of the start, and the iterations can
    only lower it.

    A mode larger than the product of all others is compressed to that product without loss (CANDELINC; Carroll,
    Pruzansky & Kruskal 1980): convolution filters with thousands of elements become tensors with a few dozen. Modes of
    size 1 are dropped, and the others sorted, because slices that span the two largest modes are the fewest.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_0, n_1, n_2, ...)``, at least two modes.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._shape = tensor.shape[1:]
        order = sorted(range(tensor.ndim - 1), key=lambda mode: -self._shape[mode])
        self._modes = [mode for place, mode in enumerate(order) if place < 2 or self._shape[mode] > 1]
        left_out = [mode + 1 for mode in order if mode not in self._modes]
        sizes = [tensor.shape[0], *(self._shape[mode] for mode in self._modes)]
        permuted = tensor.permute(0, *(mode + 1 for mode in self._modes), *left_out).reshape(sizes)
        self._places, permuted = _sorted_by_norm(permuted)
        self.tensor, self._spans = _compress(permuted)
        self.total = float(tensor.square().sum())
        self._fits: dict[Effort, _Fits] = {}

    @cached_property
    def _plain(self) -> _Fit:
        """The fit without terms; its extensions are terms of the slices of the tensor."""
        return _Fit(0, [], self.tensor, _Slices(self.tensor).left_out.sum(0).tolist())

    @property
    def max_rank(self) -> int:
        """The smallest rank at which the slices are exact."""
        return len(self._plain.left_out) - 1

    def relative_error(self, rank: int, effort: Effort | None = None) -> float:
        """Return the relative error of the start of `rank`, 0..1, an upper bound for `factors` with this effort.

        It never grows with the rank. Without an effort, it is the error of the slices alone.
        """
        if self.total <= 0:
            return 0.0
        fits = [self._plain] if effort is None else self._known(rank, effort)
        return min(1.0, max(0.0, min(fit.error(rank) for fit in fits) / self.total)) ** 0.5

    def factors(self, rank: int, effort: Effort) -> list[Tensor]:
        """Return factors ``(batch, n_j, rank)`` by alternating least squares, with columns of even norm in all modes.

        Their error is at most `relative_error`. Small tensors are iterated from several starts: the one that
        `relative_error` measures, the slices, and (seeded) random ones.
        """
        plain = self._plain.extended(rank)
        best = min(self._known(rank, effort), key=lambda fit: fit.error(rank))
        residue = self.relative_error(rank, effort)
        start = even_out(best.extended(rank))
        exact = self.tensor.ndim == 3 or residue <= 1e-10
        if not exact and effort.iterations > 0 and residue > effort.target:
            others = [even_out(plain)] if best.rank else []
            algebraic = pencil(self.tensor, rank, residue=min(0.1, residue / 2))
            if algebraic is not None:
                start = self._better(even_out(algebraic), start, effort.norm_limit)
            count = max(1, min(effort.starts, STARTED // self.tensor.numel()))
            others += [_random_start(self.tensor, plain, number) for number in range(1, count)]
            refined = refine(self.tensor, [start, *others[: count - 1]], effort)
            start = self._better(refined, start, effort.norm_limit)
        large = [f if span is None else span @ f for span, f in zip(self._spans, start[:2], strict=True)]
        return even_out(self._restored([*large, *start[2:]]))

    def _restored(self, factors: list[Tensor]) -> list[Tensor]:
        """Return factors in the order of the original tensor's modes, with ones for the modes that were dropped."""
        batch, _, rank = factors[0].shape
        unsorted = [f[:, place] for f, place in zip(factors, self._places, strict=True)]
        by_mode = dict(zip(self._modes, unsorted, strict=True))
        return [by_mode.get(mode, factors[0].new_ones(batch, 1, rank)) for mode in range(len(self._shape))]

    def _known(self, rank: int, effort: Effort) -> list[_Fit]:
        """Return the fits that the start of a rank can be made from.

        They are those up to this rank, which are computed when first needed. It is only the plain one for matrices,
        large tensors, and ranks at which it is exact; and with a target, because fits in advance would go beyond it.
        """
        pointless = self.total <= 0 or self.tensor.ndim == 3 or rank >= self.max_rank
        if pointless or effort.iterations == 0 or effort.norm_limit < 2 or effort.target > 0:
            return [self._plain]
        # Terms of the residual add at most the energy of the tensor to that of a fit.
        limited = replace(effort, norm_limit=effort.norm_limit - 1)
        if effort not in self._fits:
            self._fits[effort] = self._fitted(limited)
        fits = self._fits[effort]
        while fits.ahead and fits.ahead[0] <= rank:
            fits.climbed.append(self._climb(fits.climbed[-1], fits.ahead.pop(0), limited))
        return [*fits.climbed, *fits.compared]

    def _fitted(self, effort: Effort) -> _Fits:
        """Return fits at evenly spaced ranks, from the lowest up to the highest that is affordable."""
        shape = self.tensor.shape[1:]
        exact = next(r for r in range(self.max_rank + 1) if self.relative_error(r) <= 1e-6)
        # Nearly all tensors have the rank at which the number of free parameters reaches the number of elements.
        generic = min(exact, 1 + math.ceil(shape.numel() / (sum(shape) - len(shape) + 1)))
        affordable = WORK // (self.tensor.shape[0] * generic * max(generic, 20))
        compared, ahead = list[_Fit](), list[int]()
        if affordable < min(KNOTS, generic - 1):
            sweep = 4 * self.tensor.numel() * min(CLIMB, effort.iterations)  # multiplications per rank
            ahead = _spaced(generic, KNOTS, exact)
            ahead = [r for r, total in zip(ahead, accumulate(ahead), strict=True) if sweep * total <= PRODUCTS]
        if affordable >= min(FEWEST, generic - 1):
            compare = replace(effort, iterations=min(SWEEPS, effort.iterations), tolerance=PROGRESS)
            compared = self._compared(_spaced(generic, min(KNOTS, affordable), exact), affordable, compare)
        return _Fits(compared, [self._plain], ahead)

    def _climb(self, before: _Fit, rank: int, effort: Effort) -> _Fit:
        """Return the fit that starts from the one before, extended."""
        effort = replace(effort, iterations=min(CLIMB, effort.iterations), tolerance=0)
        extended, plain = (even_out(fit.extended(rank)) for fit in (before, self._plain))
        start = self._better(extended, plain, effort.norm_limit)
        return self._fit(sweep_each(self.tensor, [start], effort)[0])

    def _compared(self, ranks: list[int], most: int, effort: Effort) -> list[_Fit]:
        """Return the best fits of several starts, `most` of them over all ranks."""
        if not ranks:
            return []
        tries = min(TRIES, effort.starts, most // len(ranks))
        starts = list[list[Tensor]]()
        for rank in ranks:
            plain = self._plain.extended(rank)
            several = [plain, *(_random_start(self.tensor, plain, number) for number in range(1, tries))]
            algebraic = pencil(self.tensor, rank, residue=0.1)
            if algebraic is not None:
                several[-1] = algebraic
            # Columns of zeros up to the largest rank; they stay zero in every sweep.
            starts += [[pad(f, (0, ranks[-1] - rank)) for f in even_out(start)] for start in several]
        swept = sweep_each(self.tensor, starts, effort)
        fits = list[_Fit]()
        for number, rank in enumerate(ranks):
            several = swept[number * tries : (number + 1) * tries]
            best = several[0]
            for other in several[1:]:
                best = self._better(other, best, effort.norm_limit)
            fits.append(self._fit([f[..., :rank] for f in best]))
        return fits

    def _fit(self, factors: list[Tensor]) -> _Fit:
        residual = self.tensor - reconstruct(factors)
        return _Fit(factors[0].shape[-1], factors, residual, _Slices(residual).left_out.sum(0).tolist())

    def _better(self, one: list[Tensor], other: list[Tensor], norm_limit: float) -> list[Tensor]:
        """Return, for each tensor, the factors of smaller error; `other` if `one` exceeds the limit."""
        energy = self.tensor.flatten(1).square().sum(1)
        bounded = terms_energy(one) <= 1.001 * norm_limit * energy  # False for NaN
        better = (_squared_errors(self.tensor, one) < _squared_errors(self.tensor, other)) & bounded
        return [torch.where(better[:, None, None], a, b) for a, b in zip(one, other, strict=True)]


class _Slices:
    """Tensors cut into matrix slices along their trailing modes, which give a CP decomposition of every rank.

    After the trailing modes are rotated into their eigenbases, every singular triple of every slice ``tensor[..., t]``
    is a rank-one term. All terms are mutually orthogonal, so the error of the R largest ones, a CP decomposition of
    rank R, follows from their energies.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def left_out(self) -> Tensor:
        """Squared error of the k largest terms for k = 0..all, ``(batch, all + 1)``."""
        energies = torch.linalg.eigvalsh(self._grams).clamp_min(0).flatten(1)
        return pad(energies.sort(dim=-1).values.cumsum(-1), (1, 0)).flip(1)

    def largest(self, rank: int) -> list[Tensor]:
        """Return the `rank` largest singular triples of all slices as factors."""
        first, second, energies = self._triples
        chosen = energies.argsort(dim=-1, descending=True, stable=True)[:, :rank]
        factors = [side.gather(2, chosen.unsqueeze(1).expand(-1, side.shape[1], -1)) for side in (first, second)]
        index = chosen // min(self._slices.shape[2:])
        for basis in reversed(self._bases):
            size = basis.shape[-1]
            factors.insert(2, basis.gather(2, (index % size).unsqueeze(1).expand(-1, size, -1)))
            index = index // size
        return [pad(f, (0, rank - f.shape[-1])) for f in factors]

    @cached_property
    def _bases(self) -> list[Tensor]:
        """Eigenbases ``(batch, n_j, n_j)`` of the trailing modes."""
        return [eigh_descending(gram(unfold(self.tensor, mode)))[1] for mode in range(2, self.tensor.ndim - 1)]

    @cached_property
    def _slices(self) -> Tensor:
        """``(batch, S, n_0, n_1)``, S the product of the trailing sizes."""
        rotated = self.tensor
        for mode, basis in enumerate(self._bases, 3):
            spread = basis.reshape(basis.shape[0], *(1,) * (rotated.ndim - 3), *basis.shape[1:])
            rotated = (rotated.movedim(mode, -1) @ spread).movedim(-1, mode)
        return rotated.flatten(3).movedim(-1, 1).contiguous() if rotated.ndim > 3 else rotated.unsqueeze(1)

    @cached_property
    def _grams(self) -> Tensor:
        """Gram matrices of the slices on their smaller side m, ``(batch, S, m, m)``."""
        return gram(self._slices if self._slices.shape[2] <= self._slices.shape[3] else self._slices.mT)

    @cached_property
    def _triples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular triples of all slices: vectors ``(batch, n, S * m)`` of both sides, energies ``(batch, S * m)``."""
        energies, vectors = eigh_descending(self._grams)
        small_first = self._slices.shape[2] <= self._slices.shape[3]
        others = (self._slices.mT if small_first else self._slices) @ vectors
        first, second = (vectors, others) if small_first else (others, vectors)
        return first.movedim(1, 2).flatten(2), second.movedim(1, 2).flatten(2), energies.flatten(1)


def _spaced(most: int, count: int, exact: int) -> list[int]:
    """Return up to `count` evenly spaced ranks up to `most`, without that of an exact decomposition."""
    return sorted({round(most * k / count) for k in range(1, count + 1)} - {0, exact})


def _random_start(tensor: Tensor, start: list[Tensor], number: int) -> list[Tensor]:
    """Return a start whose trailing factors have noise of their own size added (odd numbers), or an all-random one."""
    generator = torch.Generator().manual_seed(number)
    noise = [torch.randn(f.shape[1:], generator=generator, dtype=torch.float64).to(f) for f in start]
    if number % 2:
        shaken = [f + f.norm(dim=1, keepdim=True) * e / f.shape[1] ** 0.5 for f, e in zip(start, noise, strict=True)]
        return [*start[:2], *shaken[2:]]
    size = float(tensor.square().mean()) ** (0.5 / len(noise))
    return [(e * size).expand_as(f) for f, e in zip(start, noise, strict=True)]


def _sorted_by_norm(tensor: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the place of every index of every mode, and the tensor in that order, largest slices first.

    This makes fits with seeded starts independent of the order of channels.
    """
    places = list[Tensor]()
    for mode in range(1, tensor.ndim):
        others = [m for m in range(tensor.ndim) if m != mode]
        order = tensor.square().sum(others).argsort(descending=True, stable=True)
        tensor = tensor.index_select(mode, order)
        places.append(order.argsort())
    return places, tensor


def _compress(tensor: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Return a core and bases ``(batch, n, m)`` of the first two modes, None where m = n; m <= the rest's size."""
    core, spans = tensor, list[Tensor | None]()
    for mode in (0, 1):
        flat = unfold(core, mode)
        size, rest = flat.shape[1:]
        if size <= rest:
            spans.append(None)
            continue
        # Faster than QR for many thin matrices. Directions without energy are left out of the core.
        energies, rotation = eigh_descending(gram(flat.mT))
        root = energies.sqrt()
        inverse = torch.where(root > 1e-12 * root[:, :1], 1 / root, torch.zeros_like(root))
        others = [n for m, n in enumerate(core.shape[1:]) if m != mode]
        core = (root.unsqueeze(2) * rotation.mT).unflatten(2, others).movedim(1, mode + 1).contiguous()
        spans.append(flat @ (rotation * inverse.unsqueeze(1)))
    return core, spans


def _squared_errors(tensor: Tensor, factors: list[Tensor]) -> Tensor:
    """Return the squared error of each tensor, computed from the residual to avoid cancellation."""
    return (tensor - reconstruct(factors)).flatten(1).square().sum(-1)
