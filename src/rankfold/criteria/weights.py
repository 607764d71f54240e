"""Criteria that look at the filters themselves: ``l1``, ``l2``, ``geometric_median`` and ``random``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.criteria.contract import Criterion, Filters, registry


@dataclass(frozen=True, slots=True, kw_only=True)
class L1(Criterion):
    """The sum of the magnitudes of a filter (Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1)."""

    name = "l1"

    def scores(self, filters: Filters) -> Tensor:
        """Return the norms."""
        return filters.flat.abs().sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class L2(Criterion):
    """The Euclidean norm of a filter."""

    name = "l2"

    def scores(self, filters: Filters) -> Tensor:
        """Return the norms."""
        return torch.linalg.vector_norm(filters.flat, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricMedian(Criterion):
    """The sum of the Euclidean distances to all other filters.

    He et al. (2019), "Filter pruning via geometric median for deep neural networks acceleration", equation 6: the
    filters closest to the geometric median are the most replaceable.
    """

    name = "geometric_median"

    def scores(self, filters: Filters) -> Tensor:
        """Return the sums of distances."""
        products = filters.flat @ filters.flat.mT
        if filters.same_group is not None:
            products = products * filters.same_group
        squares = products.diagonal()
        distances = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * products).clamp_min(0).sqrt()
        return distances.fill_diagonal_(0).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(Criterion):
    """A random order, the control of every comparison."""

    name = "random"
    seeded = True

    def scores(self, filters: Filters) -> Tensor:
        """Return a permutation that depends on the seed alone."""
        generator = torch.Generator().manual_seed(filters.seed)
        return torch.randperm(len(filters), generator=generator).to(filters.weight)


registry.register(L1, summary="L1 norm of the filter")
registry.register(L2, summary="L2 norm of the filter")
registry.register(GeometricMedian, summary="distance from the geometric median of the filters")
registry.register(Random, summary="random order")
