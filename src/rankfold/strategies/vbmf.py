"""``vbmf``: ranks by empirical variational Bayesian matrix factorization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankfold import methods
from rankfold._config import is_number, require
from rankfold.cost import blueprint_cost
from rankfold.factor.vbmf import evbmf_rank
from rankfold.methods import Method
from rankfold.records import Candidate, CandidateTable, Cost, LayerInfo, Plan, Problem, Ranks
from rankfold.strategies._base import make_plan, mildest, registry


@dataclass(frozen=True, slots=True, kw_only=True)
class VBMFConfig:
    """Options of ``vbmf``.

    Parameters
    ----------
    weaken : float
        How much of the reduction that VBMF proposes is taken: 1 takes its ranks, 0 the full ones. VBMF is known to
        compress too strongly (Gusak et al. 2019, MUSCO).
    min_rank : int
        No rank falls below this.
    """

    weaken: float = 1.0
    min_rank: int = 1

    def __post_init__(self) -> None:
        require(is_number(self.weaken) and 0 <= self.weaken <= 1, "weaken", self.weaken, "in [0, 1]")
        require(isinstance(self.min_rank, int) and self.min_rank >= 1, "min_rank", self.min_rank, "an integer >= 1")


class VBMF:
    """EVBMF on the two mode unfoldings gives the ranks of ``tucker``, on the matrix that of ``svd``.

    Nakajima et al. (2013); Kim et al. (2016), section 3.2; the baseline of Kokhazadeh et al. (2025). Ranks are clamped
    to 1..break-even and the plan's notes say where. A budget that the analytic ranks exceed scales all of them down
    evenly.
    """

    name = "vbmf"

    def __init__(self, config: VBMFConfig) -> None:
        self.config = config

    def plan(self, problem: Problem) -> Plan:
        """Return a plan of analytic ranks, clamped and, if a budget asks for it, scaled down."""
        ranks: dict[str, tuple[Method, Ranks]] = {}
        notes: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for layer in problem.inventory.compressible:
            if layer.name in problem.fixed:
                continue
            method = methods.get("svd") if layer.kernel_numel == 1 else methods.get("tucker")
            reason = method.supports(layer)
            if reason is not None:
                reasons[layer.name] = reason
                continue
            found = self._analytic(problem, layer, method)
            clamped, note = _clamp(problem.inventory.costs[layer.name], layer, method, found, self.config.min_rank)
            if clamped is None:
                reasons[layer.name] = note or ""
                continue
            ranks[layer.name] = (method, clamped)
            if note:
                notes[layer.name] = note

        def pick(level: float) -> dict[str, Candidate]:
            return {
                name: _candidate(problem.inventory.layer(name), method, _scaled(full, 1 - level, self.config.min_rank))
                for name, (method, full) in ranks.items()
            }

        chosen = pick(0.0)
        if problem.budget is not None:
            dense = {name: problem.inventory.costs[name] for name in (*ranks, *problem.fixed)}
            strongest = pick(1.0)
            table = CandidateTable(
                rows={name: (chosen[name], strongest[name]) for name in ranks},
                dense=dense,
                total=problem.inventory.total,
                fixed=problem.fixed,
            )
            chosen = mildest(problem, table, pick, strategy=self.name)
        return make_plan(problem, self, self._with_errors(problem, chosen), reasons=reasons, notes=notes)

    def _analytic(self, problem: Problem, layer: LayerInfo, method: Method) -> Ranks:
        weight = methods.to_canonical(problem.weight(layer.name), layer).double()
        limits = method.max_ranks(layer)
        if method.name == "svd":
            found: Ranks = (max(evbmf_rank(group) for group in weight.flatten(2)),)
        else:
            outs = weight.flatten(2)
            ins = weight.movedim(2, 1).flatten(2)
            found = (max(map(evbmf_rank, outs)), max(map(evbmf_rank, ins)))
        keep = self.config.weaken
        return tuple(round(limit - keep * (limit - rank)) for limit, rank in zip(limits, found, strict=True))

    def _with_errors(self, problem: Problem, chosen: Mapping[str, Candidate]) -> dict[str, Candidate]:
        out = {}
        for name, c in chosen.items():
            prepared = methods.prepare(methods.get(c.method), problem.weight(name), problem.inventory.layer(name))
            out[name] = Candidate(
                layer=name, method=c.method, ranks=c.ranks, cost=c.cost, error=prepared.error(c.ranks)
            )
        return out


def _candidate(layer: LayerInfo, method: Method, ranks: Ranks) -> Candidate:
    cost = blueprint_cost(method.blueprint(layer, ranks), layer)
    return Candidate(layer=layer.name, method=method.name, ranks=ranks, cost=cost, error=1.0)


def _scaled(ranks: Ranks, scale: float, least: int) -> Ranks:
    return tuple(max(min(least, rank), round(scale * rank)) for rank in ranks)


def _clamp(dense: Cost, layer: LayerInfo, method: Method, found: Ranks, least: int) -> tuple[Ranks | None, str | None]:
    """Bring ranks into [least, break-even]; say so in the note, or why there is no rank in between."""
    limits = method.max_ranks(layer)
    low = tuple(min(max(rank, least), limit) for rank, limit in zip(found, limits, strict=True))
    note = None if low == found else f"VBMF found rank {list(found)}; raised to {list(low)}"

    def cheaper(ranks: Ranks) -> bool:
        cost = blueprint_cost(method.blueprint(layer, ranks), layer)
        return cost.params < dense.params and cost.macs <= dense.macs

    if cheaper(low):
        return low, note
    if not cheaper(tuple(min(least, limit) for limit in limits)):
        return None, f"VBMF found rank {list(found)}; no rank makes the layer cheaper"
    for step in range(1, 1001):
        ranks = tuple(min(rank, max(least, int(rank * (1 - step / 1000)))) for rank in low)
        if cheaper(ranks):
            return ranks, f"VBMF found rank {list(found)}; lowered to break-even {list(ranks)}"
    raise AssertionError("unreachable: the least ranks are cheaper")


registry.register("vbmf", VBMF, config=VBMFConfig, summary="analytic ranks by empirical variational Bayes (EVBMF)")
