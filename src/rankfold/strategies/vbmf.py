"""``vbmf``: ranks by empirical variational Bayesian matrix factorization."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankfold import methods
from rankfold._config import is_number, require
from rankfold.errors import ConfigError
from rankfold.factor.linalg import double
from rankfold.factor.vbmf import evbmf_rank
from rankfold.methods import Method
from rankfold.records import Candidate, CandidateTable, LayerInfo, Plan, Ranks
from rankfold.strategies.contract import Strategy, make_plan, mildest, registry
from rankfold.strategies.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class VBMF(Strategy):
    """Ranks by EVBMF of a method's unfoldings: two for ``tucker``, one for ``svd``.

    Each layer is factored by the supported method with the most ranks: ``tucker`` for kernels larger than 1, else
    ``svd``.

    Nakajima et al. (2013); Kim et al. (2016), section 3.2; the baseline of Kokhazadeh et al. (2025). Ranks are at
    least 1 and at most break-even (the largest that make the layer smaller); the plan's notes record each change. If
    the analytic ranks exceed the budget, all ranks are scaled down evenly.

    Parameters
    ----------
    weaken : float
        Factor w of rank weakening (Gusak et al. 2019, MUSCO): the rank is ``full - w * (full - VBMF's)``. 1 uses VBMF's
        ranks, which tend to be too small; a smaller factor compresses less, and 0 uses full ranks.
    min_rank : int
        Minimum rank.
    """

    name = "vbmf"

    weaken: float = 1.0
    min_rank: int = 1

    def __post_init__(self) -> None:
        require(is_number(self.weaken) and 0 <= self.weaken <= 1, "weaken", self.weaken, "a number in [0, 1]")
        require(isinstance(self.min_rank, int) and self.min_rank >= 1, "min_rank", self.min_rank, "an integer >= 1")

    def plan(self, problem: Problem) -> Plan:
        """Return a plan of analytic ranks, clamped and, if necessary, scaled down to meet the budget."""
        supported = [entry.plugin.name for entry in methods.registry if issubclass(entry.plugin, methods.Unfolds)]
        if not set(supported) & set(problem.methods):
            raise ConfigError(
                f"strategy 'vbmf' supports the methods {' and '.join(supported)}. "
                f"Got methods {', '.join(problem.methods)} instead."
            )
        problem = replace(problem, methods=tuple(m for m in problem.methods if m in supported))
        ranks: dict[str, tuple[Method, Ranks]] = {}
        notes: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for layer in problem.inventory.compressible:
            if layer.name in problem.fixed:
                continue
            method, reason = _method(problem, layer)
            if method is None:
                reasons[layer.name] = reason
                continue
            analytic = self._analytic(problem, layer, method)
            clamped, note = self._clamp(problem, layer, method, analytic)
            if clamped is None:
                reasons[layer.name] = note or ""
                continue
            ranks[layer.name] = (method, clamped)
            if note:
                notes[layer.name] = note

        def select(level: float) -> dict[str, Candidate]:
            return {
                name: problem.pricing.candidate(
                    problem.inventory.layer(name),
                    method,
                    self._scaled(problem, full, 1 - level),
                    options=problem.options.get(method.name),
                )
                for name, (method, full) in ranks.items()
            }

        chosen = select(0.0)
        if problem.budget is not None:
            strongest = select(1.0)
            table = CandidateTable(
                rows={name: (chosen[name], strongest[name]) for name in ranks},
                dense=problem.inventory.costs,
                total=problem.inventory.total,
                fixed=problem.fixed,
            )
            chosen, _ = mildest(problem, table, select, strategy=self.name)
        chosen = {n: problem.candidate(problem.inventory.layer(n), c.method, c.ranks) for n, c in chosen.items()}
        return make_plan(problem, self, chosen, reasons=reasons, notes=notes)

    def _analytic(self, problem: Problem, layer: LayerInfo, method: Method) -> Ranks:
        stored = problem.weight(layer.name)
        methods.check_finite(stored, layer)
        weight = double(methods.to_canonical(stored, layer))
        limits = method.max_ranks(layer)
        assert isinstance(method, methods.Unfolds)
        ranks = [max(map(evbmf_rank, matrix)) for matrix in method.unfoldings(weight)]
        return tuple(round(limit - self.weaken * (limit - rank)) for limit, rank in zip(limits, ranks, strict=True))

    def _rounded(self, problem: Problem, rank: float, limit: int) -> int:
        """Return the nearest multiple of `rank_multiple` of at least `min_rank`, or the limit if that is exceeded."""
        multiple = problem.rank_multiple
        least = -(-self.min_rank // multiple) * multiple
        return limit if rank >= limit else min(max(least, round(rank / multiple) * multiple), limit)

    def _scaled(self, problem: Problem, ranks: Ranks, scale: float) -> Ranks:
        return tuple(self._rounded(problem, scale * rank, rank) for rank in ranks)

    def _clamp(
        self, problem: Problem, layer: LayerInfo, method: Method, analytic: Ranks
    ) -> tuple[Ranks | None, str | None]:
        """Clamp ranks to [least, break-even]; return them, or None, and a note about the change."""
        limits = method.max_ranks(layer)

        def at(scale: float) -> Ranks:
            pairs = zip(analytic, limits, strict=True)
            return tuple(self._rounded(problem, scale * rank, limit) for rank, limit in pairs)

        def cheaper(ranks: Ranks) -> bool:
            return problem.pricing.is_useful(problem.pricing.candidate(layer, method, ranks))

        nearest = at(1.0)
        if cheaper(nearest):
            if nearest == analytic:
                return nearest, None
            how = "raised" if max(analytic) < max(nearest) else "rounded"
            return nearest, f"VBMF found rank {list(analytic)}; {how} to {list(nearest)}"
        for ranks in dict.fromkeys(at(1 - step / 1000) for step in range(1, 1001)):
            if cheaper(ranks):
                return ranks, f"VBMF found rank {list(analytic)}; lowered to break-even {list(ranks)}"
        return None, f"VBMF found rank {list(analytic)}; no rank makes the layer {problem.pricing.gain}"


def _method(problem: Problem, layer: LayerInfo) -> tuple[Method | None, str]:
    """Return the method with the most ranks that supports the layer, or None and the reason."""
    given = [methods.get(name, problem.options.get(name)) for name in problem.methods]
    fitting = [method for method in given if method.supports(layer) is None]
    if fitting:
        return max(fitting, key=lambda method: len(method.max_ranks(layer))), ""
    return None, "; ".join(sorted({method.supports(layer) or "" for method in given}))


registry.register(VBMF, summary="analytic ranks by empirical variational Bayes (EVBMF)")
