"""Canonical polyadic (CP) decompositions of a batch of tensors: a bound for every rank, starts, and the best found."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from rankfold.factor.als import Effort, even_out, reconstruct, refine, terms_energy
from rankfold.factor.linalg import eigh_descending, gram, unfold
from rankfold.factor.pencil import pencil

# As many starts as make up so many elements.
STARTED = 2**16


class Canonical:
    """Tensors cut into matrix slices along their trailing modes: a CP decomposition of every rank for free.

    Rotate the trailing modes into their eigenbases; every singular triple of every slice ``tensor[..., t]`` is a
    rank-one term, all of them are mutually orthogonal, and the R largest make a CP decomposition of rank R whose error
    is known at once. It bounds the best error from above and is where the iterations start.

    A mode larger than the product of all others is compressed to that product first, which loses nothing (CANDELINC;
    Carroll, Pruzansky & Kruskal 1980): the filters of a convolution, of thousands of elements, become tensors of a few
    dozen.

    Parameters
    ----------
    tensor : Tensor
        ``(batch, n_0, n_1, n_2, ...)``, at least two modes; the two large ones first.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._spans = _compress(tensor)
        self.total = float(tensor.square().sum())

    @property
    def max_rank(self) -> int:
        """The rank from which on the decomposition is exact."""
        return self._slices.shape[1] * min(self._slices.shape[2:])

    def relative_error(self, rank: int) -> float:
        """Return an upper bound of the relative error of `rank`, 0..1: that of the start, before any iteration."""
        if self.total <= 0:
            return 0.0
        return min(1.0, max(0.0, self._left_out[min(rank, self.max_rank)] / self.total)) ** 0.5

    def factors(self, rank: int, effort: Effort) -> list[Tensor]:
        """Return factors ``(batch, n_j, rank)`` by alternating least squares, columns of even norm in all modes.

        Never worse than `relative_error` says. Small tensors are iterated from several starts, the pooled slices and
        (seeded) random ones.
        """
        start, residue = self._start(rank)
        start = even_out(start)
        exact = self.tensor.ndim == 3 or residue <= 1e-10
        if not exact and effort.iterations > 0 and residue > effort.target:
            algebraic = pencil(self.tensor, rank, residue=min(0.1, residue / 2))
            if algebraic is not None:
                start = self._better(even_out(algebraic), start, effort.norm_limit)
            count = max(1, min(effort.starts, STARTED // self.tensor.numel()))
            others = [self._random_start(start, number) for number in range(1, count)]
            found = refine(self.tensor, [start, *others], effort)
            start = self._better(found, start, effort.norm_limit)
        large = [f if span is None else span @ f for span, f in zip(self._spans, start[:2], strict=True)]
        return even_out([*large, *start[2:]])

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
        """``(batch, S, m, m)``, Grams of the slices on their smaller side m."""
        return gram(self._slices if self._slices.shape[2] <= self._slices.shape[3] else self._slices.mT)

    @cached_property
    def _left_out(self) -> list[float]:
        """Squared error of the start of every rank 0..max_rank, summed over the batch."""
        energies = torch.linalg.eigvalsh(self._grams).clamp_min(0).flatten(1)
        return [*energies.sort(dim=-1).values.cumsum(-1).sum(0).flip(0).tolist(), 0.0]

    @cached_property
    def _triples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular triples of all slices: vectors ``(batch, n, S * m)`` of both sides, energies ``(batch, S * m)``."""
        energies, vectors = eigh_descending(self._grams)
        small_first = self._slices.shape[2] <= self._slices.shape[3]
        others = (self._slices.mT if small_first else self._slices) @ vectors
        first, second = (vectors, others) if small_first else (others, vectors)
        return first.movedim(1, 2).flatten(2), second.movedim(1, 2).flatten(2), energies.flatten(1)

    def _better(self, one: list[Tensor], other: list[Tensor], norm_limit: float) -> list[Tensor]:
        """Return for each tensor the factors of less error; the other ones where the first break the limit."""
        energy = self.tensor.flatten(1).square().sum(1)
        bounded = terms_energy(one) <= 1.001 * norm_limit * energy  # False for NaN
        better = (_squared_errors(self.tensor, one) < _squared_errors(self.tensor, other)) & bounded
        return [torch.where(better[:, None, None], a, b) for a, b in zip(one, other, strict=True)]

    def _start(self, rank: int) -> tuple[list[Tensor], float]:
        """Return the `rank` largest singular triples of all slices as factors, and their relative error."""
        first, second, energies = self._triples
        order = energies.argsort(dim=-1, descending=True, stable=True)
        chosen = order[:, :rank]
        left_out = float(energies.gather(1, order[:, rank:]).sum())
        factors = [side.gather(2, chosen.unsqueeze(1).expand(-1, side.shape[1], -1)) for side in (first, second)]
        index = chosen // min(self._slices.shape[2:])
        for basis in reversed(self._bases):
            size = basis.shape[-1]
            factors.insert(2, basis.gather(2, (index % size).unsqueeze(1).expand(-1, size, -1)))
            index = index // size
        padded = [torch.nn.functional.pad(f, (0, rank - f.shape[-1])) for f in factors]
        return padded, (left_out / self.total) ** 0.5 if self.total > 0 else 0.0

    def _random_start(self, start: list[Tensor], number: int) -> list[Tensor]:
        """Return the start with its trailing factors disturbed by as much as they are (odd numbers), or all random."""
        generator = torch.Generator().manual_seed(number)
        noise = [torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f) for f in start]
        if number % 2:
            shaken = [
                f + f.norm(dim=1, keepdim=True) * e / f.shape[1] ** 0.5 for f, e in zip(start, noise, strict=True)
            ]
            return [*start[:2], *shaken[2:]]
        return [e * (self.total / self.tensor.numel()) ** (0.5 / len(noise)) for e in noise]


def _compress(tensor: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Return a core and bases ``(batch, n, m)`` of the first two modes, ``m = min(n, product of rest)``.

    A basis is None where it would be the identity.
    """
    core, spans = tensor, list[Tensor | None]()
    for mode in (0, 1):
        flat = unfold(core, mode)
        size, rest = flat.shape[1:]
        if size <= rest:
            spans.append(None)
            continue
        # Not by QR: many thin matrices are faster as one product. Directions without energy stay out of the core.
        energies, rotation = eigh_descending(gram(flat.mT))
        root = energies.sqrt()
        inverse = torch.where(root > 1e-12 * root[:, :1], 1 / root, torch.zeros_like(root))
        others = [n for m, n in enumerate(core.shape[1:]) if m != mode]
        core = (root.unsqueeze(2) * rotation.mT).unflatten(2, others).movedim(1, mode + 1).contiguous()
        spans.append(flat @ (rotation * inverse.unsqueeze(1)))
    return core, spans


def _squared_errors(tensor: Tensor, factors: list[Tensor]) -> Tensor:
    """Return the squared error of each member of the batch, measured on the residual (no cancellation)."""
    return (tensor - reconstruct(factors)).flatten(1).square().sum(-1)
