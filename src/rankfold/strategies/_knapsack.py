"""The multiple-choice knapsack, solved exactly: one option per layer, with the least loss within every limit.

1. *Dominated* options are removed (another option of the layer has no more loss and no more cost in any resource; of
   equal options, the first remains), as are options that leave too little of a limit to the other layers.
2. The rest is one integer program for SciPy's HiGHS. Its tolerances are absolute (1e-6), so the objective is measured
   in millionths of a *scale*: the value of the linear relaxation, a lower bound that is usually close to the least
   loss. If the relaxation is far below the largest loss, the scale is a thousandth of the largest loss; if the loss of
   the solution is smaller than that, options with a larger loss are removed and the program is solved again.
3. HiGHS may exceed a limit by a relative 1e-8, but excludes no choice within the limits. Every solution is verified in
   int64; a solution over a limit is excluded by a constraint, and the program is solved again.
4. *Ties*: the objective includes the cost shares, with a weight too small to outweigh 1e-9 of the least loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rankfold.errors import RankfoldError
from rankfold.strategies._stdout import without_c_prints

# Relative difference of losses below which the cost shares may decide.
TIE = 1e-9
# The scale in units of the objective. HiGHS' absolute gap of 1e-6 units is then 1e-12 of the scale.
UNITS = 1e6
# A limit in units of its row. HiGHS' tolerance of 1e-6 units is then 1e-8 of the limit.
ROW = 100.0
# The least scale, relative to the largest loss: HiGHS cannot handle a much larger range of coefficients.
SMALLEST = 1e-3
# Maximum number of solutions over a limit before the search fails.
CUTS = 1_000
# Nodes of the branch and bound after which the best selection so far is taken: equal layers can make a proof hopeless.
NODES = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one layer, of which exactly one is selected; losses and costs are finite and nonnegative."""

    loss: NDArray[np.float64]  # (options,)
    costs: NDArray[np.int64]  # (options, resources)

    def __post_init__(self) -> None:
        if self.loss.ndim != 1 or self.loss.size == 0 or self.loss.dtype != np.float64:
            raise ValueError(f"loss must be a float64 array (options,), got {self.loss.dtype} {self.loss.shape}")
        if self.costs.ndim != 2 or len(self.costs) != len(self.loss) or self.costs.dtype != np.int64:
            raise ValueError(
                f"costs must be an int64 array (options, resources) with {len(self.loss)} rows, "
                f"got {self.costs.dtype} {self.costs.shape}"
            )
        if not np.isfinite(self.loss).all() or (self.loss < 0).any():
            raise ValueError("loss must be finite and not negative")
        if (self.costs < 0).any():
            raise ValueError("costs must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best selection."""

    selection: tuple[int, ...]  # the index of the selected option of each layer
    loss: float
    bound: float  # proven lower bound on the loss of every selection within the limits

    @property
    def gap(self) -> float:
        """The relative optimality gap, (loss − bound) / loss; 0 within the tolerance of a tie."""
        missing = self.loss - self.bound
        return 0.0 if missing <= 2 * TIE * self.loss else missing / self.loss


def solve(layers: Sequence[Options], limits: Sequence[int], *, time_limit_s: float = 600.0) -> Solution | None:
    """Return the selection of least loss within every limit, or None if there is none.

    No selection within the limits has a loss that is smaller by more than a relative 1e-9, unless the branch and bound
    ends after `NODES` nodes; `Solution.gap` is then above 0. No selection of equal loss
    has a sum of cost / limit over layers and resources that is smaller by more than 0.01 per resource. Dominated
    options are never selected. The result is deterministic.

    Raises
    ------
    ValueError
        If the numbers of resources of layers and limits differ, or costs overflow int64.
    RankfoldError
        If HiGHS finds no solution, in particular if an integer program exceeds the time limit.

    References
    ----------
    Kellerer, Pferschy & Pisinger 2004, *Knapsack Problems*: chapters 11 (multiple choice; dominance 11.2.1) and 9
    (several resources).
    """
    bounds = [int(limit) for limit in limits]
    if any(layer.costs.shape[1] != len(bounds) for layer in layers):
        raise ValueError(f"every layer needs costs in {len(bounds)} resources, one per limit")
    if not math.isfinite(sum(float(layer.loss.max()) for layer in layers)):
        raise ValueError("the sum of the largest losses is not finite")
    for k in range(len(bounds)):
        if sum(int(layer.costs[:, k].max()) for layer in layers) >= 2**62:
            raise ValueError(f"the costs of resource {k} are too large to be added")
    if any(limit < 0 for limit in bounds):
        return None
    if not layers:
        return Solution(selection=(), loss=0.0, bound=0.0)
    # No sum of costs reaches 2**62.
    most = np.array([min(bound, 2**62) for bound in bounds], dtype=np.int64)
    kept = [_undominated(layer) for layer in layers]
    pairs = list(zip(layers, kept, strict=True))
    # Losses and costs are relative to each layer's minimum, which preserves precision.
    table = _Table(
        layer=np.repeat(np.arange(len(layers)), [len(keep) for keep in kept]),
        index=np.concatenate(kept),
        loss=np.concatenate([layer.loss[keep] - layer.loss.min() for layer, keep in pairs]),
        costs=np.concatenate([layer.costs[keep] - layer.costs.min(0) for layer, keep in pairs]),
        room=most - np.array([layer.costs.min(0) for layer in layers]).sum(0),
        limits=most,
        base=math.fsum(float(layer.loss.min()) for layer in layers),
    )
    table = table.take(np.logical_and.reduce(table.costs <= table.room, axis=1))
    if len(np.unique(table.layer)) < len(layers):
        return None
    while True:
        result = _minimize(table, len(layers), time_limit_s)
        if result is None:
            return None
        taken, scale, lower = result
        above = math.fsum(table.loss[taken].tolist())
        if above == 0 or table.base + above >= scale / 2:
            break
        table = table.take(table.loss <= above)
    selection = tuple(table.index[taken].tolist())
    loss = math.fsum(float(layer.loss[i]) for layer, i in zip(layers, selection, strict=True))
    return Solution(selection=selection, loss=loss, bound=min(max(lower, table.base), loss))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The options of all layers in one array; loss, costs and room are relative to each layer's minimum."""

    layer: NDArray[np.int64]
    index: NDArray[np.int64]
    loss: NDArray[np.float64]
    costs: NDArray[np.int64]
    room: NDArray[np.int64]
    limits: NDArray[np.int64]
    base: float

    def take(self, mask: NDArray[np.bool_]) -> _Table:
        """Return the table of the options where `mask` holds."""
        return replace(
            self, layer=self.layer[mask], index=self.index[mask], loss=self.loss[mask], costs=self.costs[mask]
        )


def _undominated(layer: Options) -> NDArray[np.int64]:
    """Return the options, in order, that no other option dominates; of equal options, the first."""
    # Sorted so that an option can only be dominated by earlier ones: the first remaining option is always kept.
    left = np.lexsort((*layer.costs.T[::-1], layer.loss))
    kept: list[int] = []
    while left.size:
        kept.append(int(left[0]))
        left = left[(layer.costs[left] < layer.costs[left[0]]).any(1)]
    return np.array(sorted(kept))


def _minimize(table: _Table, layers: int, time_limit_s: float) -> tuple[NDArray[np.bool_], float, float] | None:
    """Return the best selection, the scale, and a lower bound on the loss; None if there is no selection."""
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp
    from scipy.sparse import csr_array

    options, resources = table.costs.shape
    one_each = csr_array((np.ones(options), (table.layer, np.arange(options))))
    rows = table.costs.T / np.maximum(table.room, 1)[:, None] * ROW
    most = np.full(resources, ROW)

    largest = float(table.loss.max())
    scale = largest or 1.0
    with without_c_prints():
        relaxed = linprog(table.loss / scale, A_ub=rows, b_ub=most, A_eq=one_each, b_eq=np.ones(layers))
    if relaxed.status == 0:
        scale = max(table.base + relaxed.fun * scale, SMALLEST * largest) or 1.0
    # The cost shares of a selection within the limits add up to at most one per resource.
    ties = TIE / 2 * scale
    shares = (table.costs / np.maximum(table.limits, 1)).sum(1) / max(resources, 1)
    unit = scale / UNITS
    for _ in range(CUTS):
        # SciPy's stubs only allow a float as the upper bound.
        constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, cast("float", most))]
        with without_c_prints():
            result = milp(
                (table.loss + ties * shares) / unit,
                integrality=np.ones(options),
                bounds=Bounds(0.0, 1.0),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": time_limit_s, "node_limit": NODES},
            )
        if result.status == 2:
            return None
        if result.x is None or (result.status != 0 and result.mip_node_count < NODES):
            raise RankfoldError(
                f"the solver HiGHS found no proven best plan of {layers} layers with {options} candidates (status "
                f"{result.status}: {result.message}). Use fewer methods, exclude layers, or bound fewer resources."
            )
        taken = result.x > 0.5
        if _counts(table, taken, layers):
            return taken, scale, table.base + (result.mip_dual_bound - 2e-6) * unit - ties
        # Exclude this selection: at most all but one of its options.
        rows, most = np.vstack([rows, taken]), np.append(most, layers - 1.0)
    raise RankfoldError(
        f"the solver HiGHS returned {CUTS:,} plans that exceed a limit by less than its tolerance. Change the budget "
        f"slightly. The limits are {', '.join(f'{limit:,}' for limit in table.limits.tolist())}."
    )


def _counts(table: _Table, taken: NDArray[np.bool_], layers: int) -> bool:
    """Return whether one option of each layer is selected and every limit met, in integers."""
    one_each = np.bincount(table.layer[taken], minlength=layers) == 1
    return bool(one_each.all() and (table.costs[taken].sum(0) <= table.room).all())
