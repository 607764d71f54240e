"""Candidates: what could be done with each layer, at what cost and error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankfold.records.cost import Cost, replaced
from rankfold.records.layer import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to factor one layer.

    Parameters
    ----------
    cost : Cost
        Of the factored layer, on the example input.
    options : mapping
        Options of the method, by name.
    error : float
        Predicted relative error, 0..1: Frobenius norm of the weight's error over the weight's norm, or of the layer's
        output where calibration data was given.
    gauge : bool
        Whether the cost is that of gauged factors, which compute the same with fewer parameters.
    ram : int or None
        Peak activation memory while the factored layer runs, in bytes; None where RAM is not bounded.
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
    """Peak activation memory outside of candidates, in bytes.

    Parameters
    ----------
    dense : int
        Of the dense model.
    floor : int
        Of everything that no candidate changes: other operations, layers without candidates, overrides.
    kept : mapping of str to int
        While each layer with candidates runs as it is.
    """

    dense: int
    floor: int
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTable:
    """Every candidate of every compressible layer.

    No candidate costs more than its layer: a table holds only those with fewer parameters and no more MACs.

    Parameters
    ----------
    rows : dict of str to tuple of Candidate
        By layer name, in order of definition.
    dense : dict of str to Cost
        The cost of each of these and the fixed layers as it is.
    total : Cost
        The cost of the whole dense model.
    reasons : dict of str to str
        Why a layer has no candidate.
    fixed : dict of str to Candidate
        Decisions made beforehand (overrides); part of every cost.
    ram : PeakRAM or None
        Peak RAM outside of candidates; None where RAM is not bounded.
    required : frozenset of str
        Layers that may not be kept, because as they are they break a bound on RAM.
    """

    rows: Mapping[str, tuple[Candidate, ...]]
    dense: Mapping[str, Cost]
    total: Cost
    reasons: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Candidate] = field(default_factory=dict)
    ram: PeakRAM | None = None
    required: frozenset[str] = frozenset()

    def cost(self, chosen: Iterable[Candidate]) -> Cost:
        """Return the cost of the model with these and the fixed candidates applied, every other layer kept."""
        layers = {candidate.layer: candidate.cost for candidate in (*self.fixed.values(), *chosen)}
        return replaced(self.total, self.dense, layers)

    def share(self, cost: Cost, resources: Iterable[str]) -> float:
        """Return the sum of a cost's shares of the whole model, in some resources."""
        return sum(cost.get(r) / max(self.total.get(r), 1) for r in resources)

    def least(self, resource: str) -> int:
        """Return the least amount of one resource that any choice of candidates reaches."""
        total = self.cost(()).get(resource)
        for layer, candidates in self.rows.items():
            dense = self.dense[layer].get(resource)
            kept = [] if layer in self.required else [dense]
            total -= dense - min([*kept, *(c.cost.get(resource) for c in candidates)])
        return total

    def peak_ram(self, chosen: Iterable[Candidate]) -> int:
        """Return the peak activation memory, in bytes, with these candidates applied and every other layer kept."""
        if self.ram is None:
            raise ValueError("the table was built without RAM")
        takes = {**self.ram.kept, **{c.layer: c.ram or 0 for c in chosen}}
        return max([self.ram.floor, *takes.values()])
