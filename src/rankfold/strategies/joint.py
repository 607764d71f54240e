"""Widths and factors of all layers in one integer program: pruning, factoring and keeping compete for one budget.

Every channel group has a few widths. Every layer has settings at each combination of the widths of its groups: dense,
or factored by some method and ranks. A setting has the exact cost of the narrow layer. The program selects one width
for each group, and for each layer one setting at the selected widths, so the sum over the layers is the cost of the
model, although layers share their widths.

At full width, the loss of a setting is the one that the proxy predicts. At other widths it is read from a curve through
these losses: the loss of the layer as a function of the relative squared error of its output (without data, of its
weight). That error is ``1 - (1 - e^2) * (1 - r)``: r is the share of the energy of the remaining outputs that is lost
with the removed inputs, after the layer is refitted to the remaining ones; e is the relative error of the factors of
the narrow layer. Removed channels count in the layers that read them, as the network sees nothing else of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankfold import methods
from rankfold.cost import Pricing
from rankfold.errors import InfeasibleBudget, RankfoldError
from rankfold.factor.moments import Moments, output_energy
from rankfold.inventory.narrowing import narrowed_moments, narrowed_weight, refitted, widened_weight
from rankfold.methods import to_canonical
from rankfold.records import Candidate, ChannelGroup, Cost, LayerInfo, Narrowing, Ranks, narrowed_layer
from rankfold.records.narrowing import Removed
from rankfold.strategies._stdout import without_c_prints
from rankfold.strategies.channels import Channels
from rankfold.strategies.problem import Problem

POINTS = 12
"""Approximate number of values of each rank."""

TIME_LIMIT_S, GAP = 120.0, 1e-3
"""Time limit of the integer program, and the relative gap between its solution and the bound at which it ends."""

Losses = Mapping[str, Mapping[tuple[str, Ranks], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A layer at some widths, dense or factored; `widths` holds the number of the width of each of its groups."""

    layer: str
    widths: Mapping[str, int]
    candidate: Candidate | None
    cost: Cost
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """The result of the search; `bound` is a lower bound on the loss of every selection within the budget."""

    narrowing: Narrowing
    chosen: Mapping[str, Candidate]
    loss: float
    bound: float


class JointSearch:
    """The widths and settings of one problem.

    Parameters
    ----------
    problem : Problem
        The problem, with a budget.
    channels : Channels
        The channel groups, with the order in which channels are removed.
    shares : sequence of float
        Shares of the channels that a group may lose; 0 is always tried.
    losses : mapping
        Losses of the candidates of the layers at full width (`Estimator.single`).
    """

    def __init__(self, problem: Problem, channels: Channels, shares: Sequence[float], losses: Losses) -> None:
        self.problem, self.channels, self._losses = problem, channels, losses
        self.groups = _separable(channels.groups)
        self.narrow: dict[str, list[ChannelGroup]] = {}
        for group in self.groups:
            cuts = [next(iter(channels.narrowing({group.name: share})), group) for share in shares]
            self.narrow[group.name] = [group, *{cut.removed: cut for cut in cuts if cut.removed}.values()]
        self._own: dict[str, list[str]] = defaultdict(list)
        for group in self.groups:
            for name in dict.fromkeys(axis.name for axis in group.axes):
                self._own[name].append(group.name)
        table = problem.table()
        self._curves = {name: _Curve.of(losses[name], row) for name, row in table.rows.items()}
        steep = [curve.slope for curve in self._curves.values()]
        self._other = _Curve(slope=sum(steep) / max(len(steep), 1))  # of layers without candidates

    def solve(self, limits: Mapping[str, int]) -> Joint:
        """Return the selection of least loss within limits on the whole model, by resource.

        Raises
        ------
        InfeasibleBudget
            If there is none.
        RankfoldError
            If the solver finds no selection in time.
        """
        resources = tuple(limits)
        settings = [s for layer in self.problem.inventory for s in self._settings(layer, resources)]
        program = _Program(self, settings, resources)
        solved = program.solve(np.array([s.loss for s in settings]), list(limits.values()))
        if solved is None:
            budget, total = self.problem.budget, self.problem.inventory.total
            assert budget is not None
            raise InfeasibleBudget(
                f"budget {str(budget)!r} cannot be met with these widths and methods. Loosen it, or allow smaller "
                "widths or more methods.",
                budget.rows(total, program.least),
            )
        taken, widths, bound = solved
        narrowing = Narrowing(tuple(self.narrow[name][number] for name, number in widths.items()))
        chosen = {s.layer: s.candidate for s in (settings[i] for i in taken) if s.candidate is not None}
        loss = sum(settings[i].loss for i in taken)
        return Joint(narrowing=narrowing, chosen=chosen, loss=loss, bound=min(bound, loss))

    def outside(self, group: str, number: int) -> Cost:
        """Return what the model costs outside of its layers at one width of a group."""
        inventory = self.problem.pricing.narrowed(Narrowing((self.narrow[group][number],))).inventory
        return inventory.total - sum(inventory.costs.values(), start=Cost())

    def _settings(self, layer: LayerInfo, resources: Sequence[str]) -> Iterator[Setting]:
        """Yield the settings of a layer that no other at the same widths dominates."""
        own = self._own.get(layer.name, [])
        for numbers in itertools.product(*(range(len(self.narrow[name])) for name in own)):
            widths = dict(zip(own, numbers, strict=True))
            narrowing = Narrowing(tuple(self.narrow[name][number] for name, number in widths.items()))
            pricing = self.problem.pricing.narrowed(narrowing)
            scored = [
                Setting(layer=layer.name, widths=widths, candidate=c, cost=cost, loss=loss)
                for c, cost, loss in self._scored(layer, narrowing, pricing)
            ]
            yield from _undominated(scored, resources)

    def _scored(
        self, layer: LayerInfo, narrowing: Narrowing, pricing: Pricing
    ) -> Iterator[tuple[Candidate | None, Cost, float]]:
        """Yield the dense layer and its candidates at some widths, with cost and loss."""
        fixed = self.problem.fixed.get(layer.name)
        if fixed is not None:  # its groups are whole
            yield fixed, fixed.cost, 0.0
            return
        gone, moments = narrowing.removed().get(layer.name, {}), self.problem.moments(layer.name)
        weight, narrow = self.problem.weight(layer.name), pricing.inventory.layer(layer.name)
        curve, lost = self._curves.get(layer.name, self._other), 0.0
        if gone:
            left, remaining = refitted(weight, layer, gone, moments)
            lost = _lost_energy(weight, left, layer, gone, moments)
            weight, moments = left, remaining
        yield None, pricing.inventory.costs[layer.name], curve.loss(lost)
        if not gone:
            for candidate in self.problem.table().rows.get(layer.name, ()):
                yield candidate, candidate.cost, self._losses[layer.name][candidate.method, candidate.ranks]
            return
        if layer.skip is not None:
            return
        for name in self.problem.methods:
            options = self.problem.options.get(name)
            method = methods.get(name, options)
            if method.supports(narrow) is not None:
                continue
            grid = method.rank_grid(narrow, multiple=self.problem.rank_multiple, points=POINTS)
            useful = list(filter(pricing.is_useful, pricing.candidates(narrow, method, grid, options)))
            prepared = methods.prepare(method, weight, narrow, moments) if useful else None
            for candidate in useful:
                assert prepared is not None
                error = prepared.error(candidate.ranks)
                yield replace(candidate, error=error), candidate.cost, curve.loss(1 - (1 - error**2) * (1 - lost))


def _separable(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Return the groups of which no layer has two on the same side, as after a concatenation."""
    count: dict[tuple[str, object], int] = defaultdict(int)
    for group in groups:
        for place in {(axis.name, axis.side) for axis in group.axes}:
            count[place] += 1
    return [group for group in groups if all(count[axis.name, axis.side] == 1 for axis in group.axes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """The loss of a layer as a function of its relative squared error: piecewise linear, then with a constant slope."""

    squares: tuple[float, ...] = (0.0,)
    losses: tuple[float, ...] = (0.0,)
    slope: float = 1.0

    @classmethod
    def of(cls, losses: Mapping[tuple[str, Ranks], float], row: Sequence[Candidate]) -> _Curve:
        """Return the curve through the losses of the candidates of a layer, which never falls."""
        pairs = sorted((c.error**2, losses[c.method, c.ranks]) for c in row if c.error > 0)
        if not pairs:
            return cls()
        squares, values = (0.0, *(square for square, _ in pairs)), [0.0, *(loss for _, loss in pairs)]
        rising = tuple(np.maximum.accumulate(values).tolist())
        return cls(squares=squares, losses=rising, slope=rising[-1] / squares[-1])

    def loss(self, square: float) -> float:
        """Return the loss at a squared error."""
        beyond = max(square - self.squares[-1], 0.0)
        return float(np.interp(square, self.squares, self.losses)) + self.slope * beyond


def _lost_energy(weight: Tensor, narrow: Tensor, layer: LayerInfo, gone: Removed, moments: Moments | None) -> float:
    """Return the share of the energy of a layer's remaining outputs that is lost with its inputs, 0..1.

    `narrow` is the weight of the remaining inputs. Of grouped convolutions, which lose inputs together with outputs, it
    is the lost share of the energy of all outputs.
    """
    if not gone.get("inputs"):
        return 0.0
    outputs: Removed = {side: ids for side, ids in gone.items() if side == "outputs" and layer.groups == 1}
    left = None if moments is None else narrowed_moments(moments, layer, outputs)

    def energy(of: Tensor) -> float:
        part = narrowed_weight(of.double(), layer, outputs)
        return float(output_energy(to_canonical(part, narrowed_layer(layer, outputs)), left))

    whole = energy(weight)
    return min(energy(weight - widened_weight(narrow, layer, gone)) / whole, 1.0) if whole > 0 else 0.0


def _undominated(settings: Sequence[Setting], resources: Sequence[str]) -> list[Setting]:
    """Return the settings than which no other has a smaller or equal loss and cost in all resources."""
    kept: list[Setting] = []
    for one in sorted(settings, key=lambda s: (s.loss, [s.cost.get(r) for r in resources])):
        costs = [one.cost.get(r) for r in resources]
        if not any(all(other.cost.get(r) <= c for r, c in zip(resources, costs, strict=True)) for other in kept):
            kept.append(one)
    return kept


class _Program:
    """The integer program: one variable for each setting, then one for each width of each group."""

    def __init__(self, search: JointSearch, settings: Sequence[Setting], resources: Sequence[str]) -> None:
        self.settings, self.resources = settings, resources
        self.widths = [(group, number) for group, cuts in search.narrow.items() for number in range(len(cuts))]
        inventory = search.problem.inventory
        base = inventory.total - sum(inventory.costs.values(), start=Cost())
        outside = [search.outside(group, number) - base for group, number in self.widths]
        costs = [*(setting.cost for setting in settings), *outside]
        self.costs: NDArray[np.int64] = np.array([[c.get(r) for r in resources] for c in costs], dtype=np.int64)
        self.base: NDArray[np.int64] = np.array([base.get(r) for r in resources], dtype=np.int64)

    def solve(
        self, losses: NDArray[np.float64], limits: Sequence[int]
    ) -> tuple[list[int], dict[str, int], float] | None:
        """Return the selected settings, the number of the width of each group, and a lower bound on the loss."""
        objective = np.concatenate([losses, np.zeros(len(self.widths))])
        room = np.array(limits, dtype=np.int64) - self.base
        for _ in range(10):
            result = self._minimize(objective, room)
            if result is None:
                return None
            taken, bound = result
            over = self.costs[taken].sum(0) + self.base - np.array(limits)
            if (over <= 0).all():
                break
            room = room - np.maximum(over, 0)  # the solver's tolerance is relative
        else:
            raise RankfoldError("the solver HiGHS exceeded a limit by its tolerance. Change the budget slightly.")
        numbers = np.flatnonzero(taken)
        count = len(self.settings)
        widths = dict(self.widths[i - count] for i in numbers[numbers >= count].tolist())
        return numbers[numbers < count].tolist(), widths, bound

    def least(self, resource: str) -> int:
        """Return the least possible amount of a resource."""
        at = self.resources.index(resource)
        result = self._minimize(self.costs[:, at].astype(float), None)
        assert result is not None
        return int(self.costs[result[0], at].sum() + self.base[at])

    def _minimize(
        self, objective: NDArray[np.float64], room: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.bool_], float] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, right = self._equations()
        # SciPy's stubs only allow floats as bounds.
        constraints = [LinearConstraint(matrix, cast("float", right), cast("float", right))]
        if room is not None:
            scale = np.maximum(room, 1)
            constraints.append(LinearConstraint(self.costs.T / scale[:, None], -np.inf, cast("float", room / scale)))
        unit = float(np.abs(objective).max()) or 1.0
        with without_c_prints():
            result = milp(
                objective / unit,
                integrality=np.ones(len(objective)),
                bounds=Bounds(0.0, 1.0),
                constraints=constraints,
                options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT_S},
            )
        if result.status == 2:
            return None
        if result.x is None:
            raise RankfoldError(
                f"the solver HiGHS found no plan in {TIME_LIMIT_S:.0f} s (status {result.status}: {result.message}). "
                "Use fewer widths or methods."
            )
        return result.x > 0.5, float(result.mip_dual_bound) * unit

    def _equations(self) -> tuple[Any, NDArray[np.float64]]:
        """Return the equations: one setting for each layer, at the selected widths, and one width for each group."""
        from scipy.sparse import csr_array

        rows: dict[object, dict[int, float]] = defaultdict(dict)
        count = len(self.settings)
        for i, setting in enumerate(self.settings):
            if not setting.widths:
                rows[setting.layer][i] = 1.0
            for group, number in setting.widths.items():
                rows[setting.layer, group, number][i] = 1.0
        right = [1.0 if isinstance(key, str) else 0.0 for key in rows]
        place = {width: count + i for i, width in enumerate(self.widths)}
        for key, row in rows.items():
            if isinstance(key, tuple):
                row[place[key[1], key[2]]] = -1.0
        for group in dict.fromkeys(group for group, _ in self.widths):
            rows["group", group] = {i: 1.0 for (name, _), i in place.items() if name == group}
            right.append(1.0)
        entries = [(r, i, value) for r, row in enumerate(rows.values()) for i, value in row.items()]
        r, i, values = zip(*entries, strict=True)
        return csr_array((values, (r, i)), shape=(len(rows), count + len(place))), np.array(right)
