"""What is known of a method's exploration space on one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankfold.records import Cost, Ranks, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """One valid rank setting.

    Parameters
    ----------
    ranks : tuple of int
        In the method's order.
    cost : Cost
        Of the factored layer, as `rankfold.cost.blueprint_cost` counts it.
    options : mapping
        Options of the method that belong to it: the tensor shape of ``ttm``.
    """

    ranks: Ranks
    cost: Cost
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One compression step: the valid rank settings that remove about this share of the layer's parameters.

    Parameters
    ----------
    reduction : float
        The share that is removed, 0..1.
    count : int
        Valid rank settings of the step.
    fewest_macs, most_macs : Solution or None
        The extremes among them; of several with the same MACs the first in the order of counting. None without any.
    equal_ranks : Solution or None
        The one whose largest and smallest rank differ least; of several, the one nearest to `reduction`.
    random : tuple of Solution
        Drawn uniformly from the step's other solutions, all different.
    prepare_s, factorize_s : float or None
        Measured seconds of preparing the layer, and of factoring it at `equal_ranks`; None if not measured.
    """

    reduction: float
    count: int
    fewest_macs: Solution | None = None
    most_macs: Solution | None = None
    equal_ranks: Solution | None = None
    random: tuple[Solution, ...] = ()
    prepare_s: float | None = None
    factorize_s: float | None = None

    @property
    def decomposition_s(self) -> float | None:
        """Seconds to prepare the layer and factor it once; None if not measured."""
        return None if self.prepare_s is None or self.factorize_s is None else self.prepare_s + self.factorize_s

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The chosen solutions, each once: fewest MACs, most MACs, equal ranks, random ones."""
        named = [s for s in (self.fewest_macs, self.most_macs, self.equal_ranks) if s is not None]
        found: list[Solution] = []
        for solution in (*named, *self.random):
            if solution not in found:
                found.append(solution)
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The least and the most that valid rank settings leave of one resource.

    Parameters
    ----------
    dense : int
        Of the layer as it is.
    least, most : int
        Over all valid rank settings.
    """

    dense: int
    least: int
    most: int

    @property
    def best(self) -> float:
        """The largest reduction, 1 − least ÷ dense."""
        return 1 - self.least / self.dense

    @property
    def worst(self) -> float:
        """The smallest reduction, 1 − most ÷ dense; negative where the resource grows."""
        return 1 - self.most / self.dense

    @property
    def coverage(self) -> float:
        """Best minus worst reduction (Kokhazadeh et al. 2025, Table 6)."""
        return self.best - self.worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many valid rank settings lie where in the plane of parameters and MACs (Kokhazadeh et al. 2025, Fig. 2).

    Parameters
    ----------
    bins : int
        Per axis; bin k holds reductions in ``(k / bins, (k + 1) / bins]``.
    counts : tuple of tuple of int
        ``counts[p][m]``: settings with parameter reduction in bin p and MAC reduction in bin m.
    """

    bins: int
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All rank settings of one method on one layer that have fewer parameters and fewer MACs than the layer.

    Parameters
    ----------
    method : str
        The factorization.
    limits : tuple of int
        The largest rank in each position; with several tensor shapes, the largest of any.
    shapes : int
        Tensor shapes that are counted: 1, but for ``ttm``.
    settings : int
        Rank settings within the limits, over all shapes, valid or not.
    size : int
        Valid ones.
    steps : tuple of Step
        The compression steps, as asked for.
    params, macs, memory : Extent or None
        What valid settings leave of each; `memory` is weights plus feature maps, in elements. None if none is valid.
    formulas : mapping of str to str
        Parameters (``"P"``), MACs (``"M"``) and feature-map elements (``"FM"``) in the ranks, with this layer's
        numbers; with several shapes, those of the first.
    stages : tuple of str
        What the factored layer is made of, in order of execution, in words with ranks for numbers.
    histogram : Histogram or None
        If asked for.
    seconds : float or None
        Time of counting and choosing; None if not measured.
    """

    method: str
    limits: Size
    shapes: int
    settings: int
    size: int
    steps: tuple[Step, ...]
    params: Extent | None = None
    macs: Extent | None = None
    memory: Extent | None = None
    formulas: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    histogram: Histogram | None = None
    seconds: float | None = None

    @property
    def decomposition_s(self) -> float | None:
        """Seconds to prepare the layer and factor it once, as a mean over the steps; None if not measured."""
        times = [step.decomposition_s for step in self.steps if step.decomposition_s is not None]
        return sum(times) / len(times) if times else None

    def step(self, reduction: float) -> Step:
        """Return the step of this reduction; raise ``KeyError`` if there is none."""
        for step in self.steps:
            if step.reduction == reduction:
                return step
        raise KeyError(reduction)
