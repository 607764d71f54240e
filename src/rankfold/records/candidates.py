"""Candidates: the possible factorizations of each layer, with cost and error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankfold.errors import BudgetError
from rankfold.records.cost import Cost, replaced
from rankfold.records.layer import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One factorization of one layer.

    Parameters
    ----------
    cost : Cost
        Cost of the factored layer on the example input.
    error : float
        Predicted relative error, 0..1: the Frobenius norm of the error of the weight, or of the layer's output if there
        is calibration data, relative to the original's norm.
    options : mapping
        Options of the method, by name.
    gauge : bool
        Whether the cost is that of gauged factors, which compute the same function with fewer parameters.
    ram : int or None
        Peak activation memory while the factored layer runs, in bytes; None if RAM is not bounded.
    """

    layer: str
    method: str
    ranks: Ranks
    cost: Cost
    error: float
    options: Mapping[str, Any] = field(default_factory=dict)
    gauge: bool = False
    ram: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRAM:
    """Peak activation memory without candidates, in bytes.

    `dense` is that of the dense model, `floor` that of everything that no candidate changes (other operations, layers
    without candidates, overrides), and `kept` that of each layer with candidates if it is kept.
    """

    dense: int
    floor: int
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTable:
    """Every candidate of every compressible layer: fewer parameters and no more MACs than the layer.

    Parameters
    ----------
    rows : dict of str to tuple of Candidate
        Candidates by layer name, in order of definition.
    dense : dict of str to Cost
        Dense costs of the layers in `rows` and `fixed`.
    total : Cost
        Cost of the whole dense model.
    reasons : dict of str to str
        Why a layer has no candidate.
    fixed : dict of str to Candidate
        Overrides; part of every cost.
    ram : PeakRAM or None
        Peak RAM without candidates; None if RAM is not bounded.
    required : frozenset of str
        Layers that must be factored, because their dense form exceeds a bound on RAM.
    """

    rows: Mapping[str, tuple[Candidate, ...]]
    dense: Mapping[str, Cost]
    total: Cost
    reasons: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Candidate] = field(default_factory=dict)
    ram: PeakRAM | None = None
    required: frozenset[str] = frozenset()

    def cost(self, chosen: Iterable[Candidate]) -> Cost:
        """Return the cost of the model with these and the fixed candidates; all other layers are kept."""
        layers = {candidate.layer: candidate.cost for candidate in (*self.fixed.values(), *chosen)}
        return replaced(self.total, self.dense, layers)

    def share(self, cost: Cost, resources: Iterable[str]) -> float:
        """Return a cost's shares of the whole model, summed over some resources."""
        return sum(cost.get(r) / max(self.total.get(r), 1) for r in resources)

    def least(self, resource: str) -> int:
        """Return the least possible amount of one resource."""
        total = self.cost(()).get(resource)
        for layer, candidates in self.rows.items():
            dense = self.dense[layer].get(resource)
            kept = [] if layer in self.required else [dense]
            total -= dense - min([*kept, *(c.cost.get(resource) for c in candidates)])
        return total

    def peak_ram(self, chosen: Iterable[Candidate]) -> int:
        """Return the peak activation memory with these candidates, in bytes; all other layers are kept."""
        takes = {**self.peaks.kept, **{c.layer: c.ram or 0 for c in chosen}}
        return max([self.peaks.floor, *takes.values()])

    @property
    def peaks(self) -> PeakRAM:
        """The peak RAM without candidates; raises `BudgetError` if the table has none."""
        if self.ram is None:
            raise BudgetError(
                "the candidates were priced without RAM. Plan with rankfold.plan or rankfold.compress, and bound ram "
                "in the budget."
            )
        return self.ram
