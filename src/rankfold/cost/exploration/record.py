"""Records of a method's exploration space on one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankfold.records import Cost, Ranks, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """One valid rank setting, with its cost and options of the method (the tensor shape of ``ttm``)."""

    ranks: Ranks
    cost: Cost
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One compression step: the valid rank settings that remove about a given share of the layer's parameters.

    Parameters
    ----------
    reduction : float
        Share of the parameters to remove, 0..1.
    count : int
        Number of valid rank settings.
    fewest_macs, most_macs : Solution or None
        The extremes, in case of a tie the first in the order of counting; None if there is no valid setting.
    equal_ranks : Solution or None
        The setting with the least difference of largest and smallest rank, in case of a tie nearest to `reduction`.
    random : tuple of Solution
        Different solutions, drawn uniformly from the others.
    prepare_s, factorize_s : float or None
        Time of preparing the layer, and of factoring it at `equal_ranks`, in seconds; None if not measured.
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
        """The selected solutions without duplicates: fewest MACs, most MACs, equal ranks, random ones."""
        solutions: list[Solution] = []
        for solution in (self.fewest_macs, self.most_macs, self.equal_ranks, *self.random):
            if solution is not None and solution not in solutions:
                solutions.append(solution)
        return tuple(solutions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Amounts of one resource: of the dense layer, and the least and the most over all valid rank settings."""

    dense: int
    least: int
    most: int

    @property
    def best(self) -> float:
        """The largest reduction, 1 − least ÷ dense."""
        return 1 - self.least / self.dense

    @property
    def worst(self) -> float:
        """The smallest reduction, 1 − most ÷ dense; negative if the resource grows."""
        return 1 - self.most / self.dense

    @property
    def coverage(self) -> float:
        """Best minus worst reduction (Kokhazadeh et al. 2025, Table 6)."""
        return self.best - self.worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Numbers of valid rank settings in the plane of parameters and MACs (Kokhazadeh et al. 2025, Fig. 2).

    Bin k of each axis holds reductions in ``(k / bins, (k + 1) / bins]``; ``counts[p][m]`` is the number of settings
    with the parameter reduction in bin p and the MAC reduction in bin m.
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
        The largest rank in each position, over all tensor shapes.
    shapes : int
        Number of tensor shapes; 1 except for ``ttm``.
    settings : int
        Number of rank settings within the limits, over all shapes.
    size : int
        Number of valid rank settings.
    steps : tuple of Step
        The requested compression steps.
    params, macs, memory : Extent or None
        Extents over the valid settings, None if there are none; `memory` is weights plus feature maps, in elements.
    formulas : mapping of str to str
        Parameters (``"P"``), MACs (``"M"``) and feature-map elements (``"FM"``) of this layer as polynomials in the
        ranks, for the first shape.
    stages : tuple of str
        Descriptions of the stages in order of execution, with ranks in place of numbers.
    histogram : Histogram or None
        The histogram, if requested.
    seconds : float or None
        Time of counting and selection; None if not measured.
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
        """Mean over the steps of the seconds to prepare the layer and factor it once; None if not measured."""
        times = [step.decomposition_s for step in self.steps if step.decomposition_s is not None]
        return sum(times) / len(times) if times else None

    def step(self, reduction: float) -> Step:
        """Return the step of this reduction; raise ``KeyError`` if there is none."""
        return {step.reduction: step for step in self.steps}[reduction]
