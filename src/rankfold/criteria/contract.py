"""The contract of pruning criteria, and the filters that they score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from rankfold._registry import Registry
from rankfold.factor.canonical import Canonical
from rankfold.factor.linalg import double
from rankfold.methods import FilterwiseCP, check_finite, to_canonical
from rankfold.methods.sharing import shared
from rankfold.records import LayerInfo


class Filters:
    """The filters of one layer.

    A filter of a linear layer is a row of its weight. Filters of different groups of a convolution have different
    inputs, so they are orthogonal.

    Parameters
    ----------
    weight : Tensor
        In torch's layout (`LayerInfo.weight_shape`).
    layer : LayerInfo
        The layer.
    rank : int
        Rank of the filter-wise CP decomposition; at ranks beyond the largest useful one, the filters are exact.
    seed : int
        Random seed.

    Attributes
    ----------
    weight : Tensor
        ``(out, in / groups, *kernel)`` in float64. Its largest magnitude is 1, or 0.

    Raises
    ------
    InvalidWeight
        If the weight contains NaN or infinity.
    """

    def __init__(self, weight: Tensor, layer: LayerInfo, *, rank: int = 1, seed: int = 0) -> None:
        check_finite(weight, layer)
        canonical = to_canonical(double(weight.detach()), layer).flatten(0, 1)
        largest = canonical.abs().max() if canonical.numel() else canonical.new_zeros(())
        self.weight = canonical / torch.where(largest > 0, largest, 1.0)
        self.layer, self.rank, self.seed = layer, rank, seed
        self._given = weight.detach()

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def flat(self) -> Tensor:
        """The filters as rows ``(out, in / groups * kernel positions)``."""
        return self.weight.flatten(1)

    @cached_property
    def factors(self) -> list[Tensor]:
        """CP factors of every filter: the head ``(out, in / groups, rank)``, then ``(out, size, rank)`` per dimension.

        Columns of one term have the same norm in all modes. For a linear layer, the head is the filter.
        """
        if self.weight.ndim == 2:
            return [self.weight.unsqueeze(2)]
        method = FilterwiseCP()
        # The fits of one rank are starts for others: within `sharing_prepared`, ranks of one layer share them.
        fits = shared(self.layer.name, "criteria", self._given, None, lambda: Canonical(self.weight))
        return fits.factors(min(self.rank, *method.max_ranks(self.layer)), method)

    @cached_property
    def same_group(self) -> Tensor | None:
        """Whether two filters have the same inputs, ``(out, out)``; None without groups."""
        if self.layer.groups == 1:
            return None
        group = torch.arange(len(self), device=self.weight.device) // self.layer.group_out
        return group.unsqueeze(0) == group.unsqueeze(1)


class Criterion(ABC):
    """A pruning criterion, which scores the filters of one layer.

    A subclass is a frozen dataclass whose fields are the criterion's options, registered under its `name`. The order in
    which filters are removed follows from the scores alone: the lowest first, of equal scores the earlier filter.
    Scores are compared within a layer; their unit does not matter.

    Attributes
    ----------
    name : str
        The name in plans and in the interface.
    seeded : bool
        Whether the scores depend on the seed.
    """

    __slots__ = ()

    name: str
    seeded: bool = False

    @abstractmethod
    def scores(self, filters: Filters) -> Tensor:
        """Return the importance of each filter, ``(out,)`` in float64, finite and nonnegative."""


registry: Registry[Criterion] = Registry("criterion")
"""All criteria by name."""

get = registry.get
"""Return a criterion by name, with options, or a criterion object as it is; see `Registry.get`."""
