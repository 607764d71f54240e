"""One option per layer, the least damage within every limit: the multiple-choice knapsack, solved exactly.

The integer program is SciPy's HiGHS. What is here makes it small, makes it exact, and settles ties:

1. *Dominated* options (another of the layer does no more damage and costs no more of anything; of equal ones the
   later) go, and those that fit no choice within the limits, counted in int64.
2. The linear relaxation's duals λ give a *Lagrangian bound* LB = Σ_l min_i (d_li + λ·c_li) − λ·limits, true for any
   λ >= 0, and every option a reduced cost r_li >= 0: a choice that takes it has damage >= LB + r_li. A first program
   over the options of small r (the *core*) gives an upper bound U; an option with r_li > U − LB is in no optimum. A
   second program over the rest asks for another choice that does no more damage than U, until there is none: that
   proves the least damage, and where it is one choice's alone.
3. HiGHS works in floats to a tolerance of 1e-6. Costs and damages are counted from each layer's least, rows and
   objective are scaled to 1e6, so the tolerance is 1e-12 of a limit and of the damage. Every answer is counted again
   in int64; one that breaks a limit is cut off by name (Σ x over its options <= layers − 1) and the program solved
   again, so no answer is over a limit and none within the limits is lost.
4. *Ties.* Choices within a relative 1e-9 of the least damage are equal. Where the last program of step 2 found an
   equal one, further programs with the damage as a row find that of the least sum of cost shares, and, among those of
   that share (again 1e-9), the first in the order of layers and options: they minimise the options' positions, a few
   layers at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rankfold.errors import RankfoldError
from rankfold.strategies._stdout import prints_to_stderr

if TYPE_CHECKING:
    from scipy.sparse import csr_array

T = TypeVar("T", np.float64, np.int64)

# Choices whose damages, or whose sums of cost shares, differ by less than this part of them are equal.
TIE = 1e-9
# What a limit, and the damage, is scaled to: HiGHS' tolerances are 1e-6 of a unit. Limits below stay whole numbers.
SCALE = 1e6
# Relative slack on sums of floats, far above their rounding (about 1e-16 a term) and far below TIE.
ROUNDING = 1e-12
# Options per layer in the first core, on average: enough to hold the optimum of most tables.
CORE = 15
# Relative gap to which the core is solved: its answer is only the first upper bound.
CORE_GAP = 1e-3
# Positions that one objective can order: whole numbers far above HiGHS' absolute gap of 1e-6.
POSITIONS = 10_000
# Answers outside the limits by tolerance alone that are cut off before the search gives up.
CUTS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one layer, of which exactly one is taken.

    Parameters
    ----------
    damage : ndarray of float64, shape (options,)
        What is minimised, added over the layers; finite, >= 0.
    costs : ndarray of int64, shape (options, resources)
        What each option takes of every resource; >= 0.
    """

    damage: NDArray[np.float64]
    costs: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.damage.ndim != 1 or self.damage.size == 0 or self.damage.dtype != np.float64:
            raise ValueError(f"damage must be a float64 array (options,), got {self.damage.dtype} {self.damage.shape}")
        if self.costs.ndim != 2 or len(self.costs) != len(self.damage) or self.costs.dtype != np.int64:
            raise ValueError(
                f"costs must be an int64 array (options, resources) with {len(self.damage)} rows, "
                f"got {self.costs.dtype} {self.costs.shape}"
            )
        if not np.isfinite(self.damage).all() or (self.damage < 0).any():
            raise ValueError("damage must be finite and not negative")
        if (self.costs < 0).any():
            raise ValueError("costs must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best choice.

    Parameters
    ----------
    picks : tuple of int
        For each layer the index of the option taken.
    damage : float
        Sum of the picks' damages.
    bound : float
        Proven lower bound on the damage of every choice within the limits; at most `damage`.
    """

    picks: tuple[int, ...]
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """Return the relative optimality gap, (damage − bound) / damage; 0 within the tolerance of a tie."""
        missing = self.damage - self.bound
        return 0.0 if missing <= 2 * TIE * self.damage else missing / self.damage


def solve(layers: Sequence[Options], limits: Sequence[int], *, time_limit_s: float = 600.0) -> Solution | None:
    """Return the choice of least damage within every limit, or None where nothing fits.

    Parameters
    ----------
    layers : sequence of Options
        All with the same resources.
    limits : sequence of int
        Upper bound on the sum of each resource. A negative one can be met by nothing.
    time_limit_s : float
        Seconds after which one integer program is given up, with an error.

    Returns
    -------
    Solution or None
        Among choices of equal damage (relative 1e-9) the one with the least sum of cost / limit over layers and
        resources, then the first: with the smallest index in the first layer, then in the second, and so on. A
        dominated option is never taken. The same input gives the same answer.

    Raises
    ------
    ValueError
        If the layers and limits disagree on the number of resources, or costs overflow int64.
    RankfoldError
        If HiGHS ends without an answer.

    References
    ----------
    Kellerer, Pferschy & Pisinger 2004, *Knapsack Problems*: chapter 11 (multiple choice; dominance 11.2.1, bounds and
    cores 11.3) and 9 (several resources).
    """
    bounds = [int(limit) for limit in limits]
    if any(layer.costs.shape[1] != len(bounds) for layer in layers):
        raise ValueError(f"every layer needs costs in {len(bounds)} resources, one for each limit")
    if not math.isfinite(sum(float(layer.damage.max()) for layer in layers)):
        raise ValueError("the sum of the largest damages is not finite")
    for k in range(len(bounds)):
        if sum(int(layer.costs[:, k].max()) for layer in layers) >= 2**62:
            raise ValueError(f"the costs of resource {k} are too large to be added")
    if any(limit < 0 for limit in bounds):
        return None
    if not layers:
        return Solution(picks=(), damage=0.0, bound=0.0)
    # A limit beyond all costs bounds nothing: as good as the largest sum that int64 holds here.
    limit = np.array([min(bound, 2**62) for bound in bounds], dtype=np.int64)
    table = _table(layers, limit)
    if table is None:
        return None
    with prints_to_stderr():
        optimum = _optimum(table, time_limit_s)
        if optimum is None:
            return None
        best = optimum.picks if optimum.unique else _settle_ties(optimum.table, optimum.picks, time_limit_s)
    picks = tuple(best.tolist())
    damage = math.fsum(float(layer.damage[i]) for layer, i in zip(layers, picks, strict=True))
    return Solution(picks=picks, damage=damage, bound=min(max(optimum.lower, 0.0), damage))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The options of all layers in one array, sorted by layer, then index."""

    layer: NDArray[np.int64]
    index: NDArray[np.int64]
    damage: NDArray[np.float64]
    costs: NDArray[np.int64]
    share: NDArray[np.float64]
    limits: NDArray[np.int64]
    starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        changes = np.flatnonzero(np.diff(self.layer, prepend=-1))
        object.__setattr__(self, "starts", changes)

    def take(self, mask: NDArray[np.bool_]) -> _Table:
        """Return the table of the options where `mask` holds; every layer must keep one."""
        return _Table(
            layer=self.layer[mask],
            index=self.index[mask],
            damage=self.damage[mask],
            costs=self.costs[mask],
            share=self.share[mask],
            limits=self.limits,
        )

    def above_least(self, values: NDArray[T]) -> NDArray[T]:
        """Return `values` less the least of each option's layer."""
        return values - np.minimum.reduceat(values, self.starts)[self.layer]

    def least(self, values: NDArray[np.float64]) -> float:
        """Return the sum over the layers of the least of `values`, rounded once."""
        return math.fsum(np.minimum.reduceat(values, self.starts).tolist())

    def most(self, values: NDArray[np.float64]) -> float:
        """Return the sum over the layers of the largest of `values`, rounded once."""
        return math.fsum(np.maximum.reduceat(values, self.starts).tolist())

    def room(self) -> NDArray[np.int64]:
        """Return what the limits leave when every layer takes its least of each resource."""
        return self.limits - np.minimum.reduceat(self.costs, self.starts).sum(0)

    def taken(self, picks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which options a choice takes."""
        return self.index == picks[self.layer]

    def total(self, values: NDArray[np.float64], picks: NDArray[np.int64]) -> float:
        """Return the sum of `values` over a choice, rounded once."""
        return math.fsum(values[self.taken(picks)].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A bound on the sum of `values`, one for each option of a table, over a choice."""

    values: NDArray[np.float64]
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Optimum:
    """A choice of least damage, a lower bound on the damage, and a table with every choice of equal damage."""

    table: _Table
    picks: NDArray[np.int64]
    lower: float
    unique: bool


def _table(layers: Sequence[Options], limits: NDArray[np.int64]) -> _Table | None:
    """Return the options that are not dominated and fit some choice as far as each limit alone says."""
    kept = [np.flatnonzero(~_dominated(layer)) for layer in layers]
    costs = np.concatenate([layer.costs[keep] for layer, keep in zip(layers, kept, strict=True)])
    table = _Table(
        layer=np.repeat(np.arange(len(layers)), [len(keep) for keep in kept]),
        index=np.concatenate(kept),
        damage=np.concatenate([layer.damage[keep] for layer, keep in zip(layers, kept, strict=True)]),
        costs=costs,
        share=(costs / np.maximum(limits, 1)).sum(1),
        limits=limits,
    )
    while True:
        # Taking an option away can raise its layer's least cost in another resource: until nothing changes.
        fits: NDArray[np.bool_] = np.logical_and.reduce(table.above_least(table.costs) <= table.room(), axis=1)
        if fits.all():
            return table
        if len(np.unique(table.layer[fits])) < len(layers):
            return None
        table = table.take(fits)


def _dominated(layer: Options) -> NDArray[np.bool_]:
    """Return which options another one makes useless: no worse in anything, and better or earlier."""
    no_worse = layer.damage[:, None] <= layer.damage[None]
    for cost in layer.costs.T:
        no_worse &= cost[:, None] <= cost[None]
    earlier = np.triu(np.ones_like(no_worse), 1)
    return np.any(no_worse & (~no_worse.T | earlier), axis=0)


def _optimum(table: _Table, time_limit_s: float) -> _Optimum | None:
    """Return a choice of least damage, or None where nothing fits."""
    scale = table.most(table.damage)
    lagrangian, reduced = _reduced_costs(table, scale)
    count = min(CORE * len(table.starts), len(reduced)) - 1
    core = table.take(reduced <= np.partition(reduced, count)[count])
    found = _minimise(core, core.damage, scale, gap=CORE_GAP, time_limit_s=time_limit_s)
    if found is None and len(core.layer) < len(table.layer):
        found = _minimise(table, table.damage, scale, gap=CORE_GAP, time_limit_s=time_limit_s)
    if found is None:
        return None
    while True:
        # Is there another choice as good? The last answer is no, or a tie: both prove the least damage.
        picks = found[0]
        damage = table.total(table.damage, picks)
        most = _equal(damage)
        table, reduced = table.take(keep := (reduced <= most - lagrangian) | table.taken(picks)), reduced[keep]
        row = _Row(values=table.damage, most=most)
        found = _minimise(table, table.damage, damage, rows=[row], without=picks, time_limit_s=time_limit_s)
        if found is None:
            return _Optimum(table=table, picks=picks, lower=damage, unique=True)
        if table.total(table.damage, found[0]) >= damage:
            return _Optimum(table=table, picks=picks, lower=min(damage, found[1]), unique=False)


def _equal(value: float) -> float:
    """Return the largest value that counts as equal to this least one."""
    return value * (1 + TIE)


def _reduced_costs(table: _Table, scale: float) -> tuple[float, NDArray[np.float64]]:
    """Return the Lagrangian bound at the linear relaxation's duals, and each option's reduced cost (>= 0).

    Both hold for any duals: those of a relaxation solved badly, or of one that has no solution (all 0), only make the
    core larger.
    """
    from scipy.optimize import linprog

    damage, base = table.above_least(table.damage), table.least(table.damage)
    room = table.room()
    binding = room > 0
    shares = table.above_least(table.costs)[:, binding] / room[binding]
    duals = np.zeros(shares.shape[1])
    if scale > 0 and len(duals):
        relaxed = linprog(
            damage / scale,
            A_ub=shares.T,
            b_ub=np.ones(len(duals)),
            A_eq=_one_each(table),
            b_eq=np.ones(len(table.starts)),
        )
        if relaxed.status == 0:
            duals = np.maximum(-relaxed.ineqlin.marginals, 0) * scale
    value = damage + shares @ duals
    least = table.least(value)
    bound = base + least - float(duals.sum())
    rounding = ROUNDING * (base + least + float(duals.sum()))
    return bound - rounding, table.above_least(value)


def _one_each(table: _Table) -> csr_array:
    """Return the rows that take one option of each layer."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(table.layer)), (table.layer, np.arange(len(table.layer)))))


def _minimise(
    table: _Table,
    values: NDArray[np.float64],
    scale: float,
    *,
    rows: Sequence[_Row] = (),
    without: NDArray[np.int64] | None = None,
    gap: float = 0.0,
    time_limit_s: float,
) -> tuple[NDArray[np.int64], float] | None:
    """Return the choice with the least sum of `values` within the limits and rows, and a lower bound on that sum.

    To 1e-12 of `scale`. `without` is a choice that does not count. None where there is no choice.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    within = np.ones(len(table.layer), dtype=np.bool_)
    for row in rows:
        within &= table.above_least(row.values) <= row.most - table.least(row.values) + ROUNDING * row.most
    if len(np.unique(table.layer[within])) < len(table.starts):
        return None
    rows = [_Row(values=row.values[within], most=row.most) for row in rows]
    table, values = table.take(within), values[within]

    matrix, most = _scaled(table, rows)
    one_each = LinearConstraint(_one_each(table), 1, 1)
    cuts = [] if without is None else [table.taken(without)]
    unit = scale / SCALE if scale > 0 else 1.0
    for _ in range(CUTS):
        # At most all but one of the options of a choice that does not count.
        barred = np.array([*matrix, *cuts], dtype=np.float64).reshape(-1, len(values))
        bound = np.array([*most, *(len(table.starts) - 1.0 for _ in cuts)])
        constraints = [one_each]
        if len(bound):
            # SciPy's stubs know only a float as the upper side.
            constraints.append(LinearConstraint(barred, -np.inf, cast("float", bound)))
        result = milp(
            table.above_least(values) / unit,
            integrality=np.ones(len(values)),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options={"mip_rel_gap": gap, "time_limit": time_limit_s},
        )
        if result.status == 2:
            return None
        if result.status != 0 or result.x is None:
            raise RankfoldError(
                f"HiGHS found no proven best plan of {len(table.starts)} layers with {len(values)} candidates left: "
                f"{result.message} (status {result.status}). Use fewer candidates or limits, or give it more time."
            )
        taken = result.x > 0.5
        picks = table.index[taken]
        if len(picks) == len(table.starts) and _counts(table, taken, rows):
            lower = table.least(values) + (result.mip_dual_bound - 2e-6) * unit
            return picks, lower
        cuts.append(taken)
    raise RankfoldError(
        f"HiGHS gave {CUTS} plans in turn that break a limit by less than its tolerance. Round the limits: "
        f"{', '.join(str(limit) for limit in table.limits.tolist())}"
    )


def _scaled(table: _Table, rows: Sequence[_Row]) -> tuple[list[NDArray[np.float64]], list[float]]:
    """Return the limits and rows, counted from each layer's least, in units in which HiGHS' tolerance is harmless."""
    matrix: list[NDArray[np.float64]] = []
    most: list[float] = []
    for cost, room in zip(table.above_least(table.costs).T, table.room().tolist(), strict=True):
        factor = min(1.0, SCALE / room) if room else 1.0
        matrix.append(cost * factor)
        most.append(room * factor)
    for row in rows:
        factor = SCALE / row.most if row.most > 0 else 1.0
        matrix.append(table.above_least(row.values) * factor)
        most.append((row.most - table.least(row.values)) * factor)
    return matrix, most


def _counts(table: _Table, taken: NDArray[np.bool_], rows: Sequence[_Row]) -> bool:
    """Return whether a choice keeps every limit, in whole numbers, and every row."""
    kept = (table.costs[taken].sum(0) <= table.limits).all()
    return bool(kept) and all(math.fsum(row.values[taken].tolist()) <= row.most for row in rows)


def _settle_ties(table: _Table, picks: NDArray[np.int64], time_limit_s: float) -> NDArray[np.int64]:
    """Return, of the choices as good as `picks`, that of the least sum of shares, and of those the first."""
    damage = _Row(values=table.damage, most=_equal(table.total(table.damage, picks)))
    while True:
        total = table.total(table.share, picks)
        share = _Row(values=table.share, most=_equal(total))
        other = _minimise(table, table.share, total, rows=(damage, share), without=picks, time_limit_s=time_limit_s)
        if other is None:
            return picks
        if table.total(table.share, other[0]) >= total * (1 - TIE):
            return _first(table, picks, (damage, share), time_limit_s)
        picks = other[0]


def _first(table: _Table, picks: NDArray[np.int64], rows: Sequence[_Row], time_limit_s: float) -> NDArray[np.int64]:
    """Return the first choice within the limits and rows, of which `picks` is one."""
    sizes = np.diff(table.starts, append=len(table.layer))
    settled = 0
    while settled < len(sizes):
        # The layers whose positions, read as digits of one number, fit into one objective.
        end, span = settled + 1, int(sizes[settled])
        while end < len(sizes) and span * sizes[end] <= POSITIONS:
            span *= int(sizes[end])
            end += 1
        weight = np.zeros(len(sizes))
        weight[settled:end] = np.cumprod(sizes[settled:end][::-1])[::-1] / sizes[settled:end]
        number = (np.arange(len(table.layer)) - table.starts[table.layer]) * weight[table.layer]
        if number[table.taken(picks)].any():
            fixed = (table.layer >= settled) | table.taken(picks)
            rest = table.take(fixed)
            left = [_Row(values=row.values[fixed], most=row.most) for row in rows]
            found = _minimise(rest, number[fixed], SCALE, rows=left, time_limit_s=time_limit_s)
            if found is None:
                raise RankfoldError("HiGHS lost a plan that it had found. Please report this with the candidate table.")
            picks = found[0]
        settled = end
    return picks
