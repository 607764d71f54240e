"""``rene``: ranks by gradient descent on softmax coefficients, without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rankfold import methods
from rankfold._config import config_to_dict, is_integer, is_number, require, spelled
from rankfold._progress import track
from rankfold.candidates import DEFAULT_TRAIN
from rankfold.errors import ConfigError, InfeasibleBudget, ModelError, UnknownNameError
from rankfold.factor.linalg import double
from rankfold.factor.moments import output_energy
from rankfold.records import Bound, Budget, Candidate, Cost, Plan, Ranks
from rankfold.strategies.coefficients import RankLoss, expected_loss, nested_loss, optimize, padded
from rankfold.strategies.contract import Need, Strategy, advice, check_reachable, make_plan, registry
from rankfold.strategies.mixtures import Axis, Mixtures, composed
from rankfold.strategies.problem import Problem

Objective = Literal["decomposition", "validation"]
Factors = Literal["fixed", "sgd"]

CLOSE = 0.99
"""Share of a bound that the budget mode reaches."""
SCALES = (2.0**-12, 2.0**12)
"""Scales of the rank loss between which the budget mode searches."""
TRIALS = 14
"""Scales that it tries at most."""
ATTEMPTS = 4
"""Learning rates that are tried if the training of factors diverges."""
NOISE = 1e-12
"""Squared relative error of rounding: below it, a candidate counts as exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RENE(Strategy):
    """Rank selection by gradient (RENE, Aghababaei-Harandi & Amini 2024).

    The candidates of a layer are factorizations of different ranks r, all ranks of the method equal to r (or to the
    method's limit, if that is smaller). Softmax coefficients mix them; factors and coefficients descend the product of
    the decomposition loss and the rank loss (eq. 4 to 9). The rank with the largest coefficient wins. The next
    stage starts over with candidates that are closer together around this rank, until they are 1 apart (Algorithm 1,
    section 4.3). Each layer takes the first of the search's methods that supports it.

    Choices where the paper is ambiguous or silent:

    - **Interval.** The next candidates lie within one step on either side of the winner. Figure 3 shows half a step,
      which can lose the optimum: of 200 and 300, only 300 holds a layer of rank 240 exactly, and 240 is not in
      250..350. Ends are clipped to the space of the first stage, and per layer to the ranks with fewer parameters and
      no more MACs than the layer; a layer without such a rank is kept.
    - **Loops.** Algorithm 1 loops over layers and ranks outside of the updates, but eq. 6 couples all layers: here
      every update is one of all layers and ranks. The step shrinks once per stage, after all layers.
    - **Sums.** The losses are summed over the layers before they are multiplied, as in eq. 6, so layers compete: ranks
      are spent where they reduce the error of the whole network most.
    - **Weights.** The factors of each rank start at a truncation of one decomposition. With ``factors="fixed"`` they
      stay there: each candidate is then an approximation of its rank, whose error is measured once, and the squared
      error of a mixture is a quadratic form of the coefficients, so that hundreds of updates take milliseconds. It is
      exact for nested truncations (``svd``), and close for others: for ``tt`` and ``tt3`` on a ResNet-20, it deviates
      by at most 0.5 % of the weight's energy. Iterated factors (``cp``) of large weights are measured after fewer
      sweeps than a plan's factors get (`Method.quick`). Training the factors (``factors="sgd"``, as in the paper) lets
      several candidates add up to an approximation of a higher rank than any of them has.
    - **Gradient.** With fixed weights, the logarithm of the product is descended, which has the same minima for
      weights of any scale. ``factors="sgd"`` descends the product itself.

    The product has no interior minimum for most trained weights: unless a layer has low rank, its error falls faster
    than its rank loss grows, and the search ends near the largest ranks. With a budget, which the paper does not have:

    - **Scale.** The logarithm of the rank loss is scaled until the plan uses 99 to 100 % of the tightest bound, by
      bisection.
    - **Cost.** Cost replaces rank in eq. 5: the sum over the bounds of a candidate's share of the bound.
    - **Mixture.** With ``factors="fixed"`` and the decomposition loss, the coefficients mix the candidates' losses
      instead of their weights. A mixture of nested weights shrinks the singular values gradually and has a smaller
      error than any candidate of the same cost. Its coefficients spread over all ranks, and the largest ones are often
      those of the smallest and of the largest rank. A plan has one candidate per layer, for which both are equal.

    Parameters
    ----------
    rank_min, rank_max, step : int
        The space of the first stage: `rank_min` and every multiple of `step` up to `rank_max`. The paper uses 10, 100
        and 10 for CIFAR-10, and 50, 850 and 100 for ImageNet.
    shrink : int
        The step of each stage is the previous one divided by this number, rounded down, but at least 1.
    gamma, beta : float
        Hyperparameters of the rank loss, eq. 5. `gamma` has no influence on the plan unless ``factors="sgd"``, where it
        scales the learning rate. A smaller `beta` makes rank cheaper.
    objective : {"decomposition", "validation"}
        What the coefficients minimize: the decomposition loss, without data, or the cross-entropy on labeled
        calibration data (eq. 7).
    factors : {"fixed", "sgd"}
        Whether the factors stay at the truncations ("fixed") or are trained with the coefficients ("sgd", as in the
        paper).
    iterations, warm_iterations : int
        Updates per stage; with ``factors="sgd"``, `warm_iterations` updates of the
        factors alone come first.
    learning_rate : float
        Learning rate of the coefficients, and of the factors if they are trained.
    free : bool
        Whether the ranks of a method with several ranks may differ: after the search with equal ranks, each position
        is searched with the others fixed.
    """

    name = "rene"
    default_methods = DEFAULT_TRAIN

    rank_min: int = 1
    rank_max: int = 100
    step: int = 10
    shrink: int = 10
    gamma: float = 0.4
    beta: float = 0.8
    objective: Objective = "decomposition"
    factors: Factors = "fixed"
    iterations: int = 100
    warm_iterations: int = 20
    learning_rate: float = 0.001
    free: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("objective", get_args(Objective)), ("factors", get_args(Factors))):
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, str(getattr(self, name)), choices)
        for name, least in (("rank_min", 1), ("step", 1), ("shrink", 2), ("iterations", 1), ("warm_iterations", 0)):
            value = getattr(self, name)
            require(is_integer(value) and value >= least, name, value, f"an integer >= {least}")
        ordered = is_integer(self.rank_max) and self.rank_max >= self.rank_min
        require(ordered, "rank_max", self.rank_max, f"an integer >= rank_min ({self.rank_min})")
        for name in ("gamma", "beta"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1, name, value, "in (0, 1]")
        rate = self.learning_rate
        require(is_number(rate) and rate > 0, "learning_rate", rate, "a number above 0")
        require(isinstance(self.free, bool), "free", self.free, "true or false")

    @property
    def needs(self) -> frozenset[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Labeled calibration data for the validation loss; otherwise nothing."""
        return frozenset({"labels"}) if self.objective == "validation" else frozenset()

    def needs_by(self, need: Need) -> str:
        """Return the option that needs labels."""
        return spelled("objective", self.objective) if need == "labels" else ""

    def plan(self, problem: Problem) -> Plan:
        """Return the plan of the winning ranks.

        Raises
        ------
        ConfigError
            If the space is above the break-even rank of every layer.
        InfeasibleBudget
            If the smallest ranks exceed the budget.
        ModelError
            If the search diverges for a layer, even with smaller steps.
        """
        axes, reasons, useless = self._axes(problem)
        if not axes:
            if useless and max(self.rank_min, problem.rank_multiple) > 1:
                smaller = "rank_min" if problem.rank_multiple == 1 else "rank_min or rank_multiple"
                above = useless[0]
                raise ConfigError(
                    f"strategy 'rene' has no candidates. Layer {above!r}: {reasons[above]}. Use a smaller {smaller}."
                )
            check_reachable(problem, problem.table())
            return make_plan(problem, self, {}, reasons=reasons)
        search = _Search(self, problem, axes)
        chosen, scale = search.unbounded() if problem.budget is None else search.bounded()
        plan = make_plan(problem, self, chosen, reasons=reasons)
        found = {"scale": scale, "loss": search.loss_of(chosen), "stages": search.stages}
        return replace(plan, provenance=replace(plan.provenance, search=found))

    def _axes(self, problem: Problem) -> tuple[list[Axis], dict[str, str], list[str]]:
        """Return the ranks to search in each layer, why other layers are kept, and those without a useful rank."""
        axes, reasons, useless, unit = list[Axis](), dict[str, str](), list[str](), problem.rank_multiple
        given = [methods.get(name, problem.options.get(name)) for name in problem.methods]
        for layer in problem.inventory:
            if layer.skip is not None or layer.name in problem.fixed:
                reasons[layer.name] = layer.skip or "decided by an override"
                continue
            if problem.budget is not None and not _is_bounded(problem.budget, problem.inventory.costs[layer.name]):
                reasons[layer.name] = "it costs nothing that the budget bounds"
                continue
            refusals = {method.name: method.supports(layer) for method in given}
            method = next((method for method in given if refusals[method.name] is None), None)
            if method is None:
                reasons[layer.name] = "; ".join(sorted({str(reason) for reason in refusals.values()}))
                continue
            limits = method.max_ranks(layer)
            high = min(self.rank_max, max(limits))
            while high >= self.rank_min and not problem.pricing.is_useful(
                problem.pricing.candidate(layer, method, tuple(min(high, most) for most in limits))
            ):
                high -= 1
            low, most = -(-self.rank_min // unit) * unit, max(limits)
            if high < self.rank_min or (high < low and high < most):
                what = "rank" if unit == 1 else f"multiple of {unit}"
                useless.append(layer.name)
                reasons[layer.name] = (
                    f"no {what} from {self.rank_min} to {self.rank_max} of {method.name} makes it "
                    f"{problem.pricing.gain}{f'; its largest rank is {most}' if most < self.rank_min else ''}"
                )
                continue
            axes.append(Axis(layer=layer, method=method, limits=limits, low=min(low, high), high=high))
        return axes, reasons, useless


class _Search:
    """The search of one problem; what was measured is kept for other scales of the rank loss."""

    def __init__(self, config: RENE, problem: Problem, axes: Sequence[Axis]) -> None:
        self.config, self.problem, self.axes = config, problem, axes
        self.stages = 0
        self._energies: dict[str, float] = {}
        self._prepared: tuple[str, methods.Prepared] | None = None
        self._known: dict[tuple[str, Ranks], float] = {}
        self._bounds = () if problem.budget is None else problem.budget.additive

    def unbounded(self) -> tuple[dict[str, Candidate], float]:
        """Return the winners without a budget, and the scale of the rank loss."""
        return self._candidates(self.winners(1.0)), 1.0

    def bounded(self) -> tuple[dict[str, Candidate], float]:
        """Return winners that use `CLOSE` to all of the budget, and the scale of the rank loss.

        Raises
        ------
        InfeasibleBudget
            If the smallest ranks exceed the budget.
        """
        assert self.problem.budget is not None
        least = {axis.layer.name: axis.ranks(axis.low) for axis in self.axes}
        if self._exceeds(least):
            cost = self._cost(least)
            smaller = "Use a smaller rank_min. " if self.config.rank_min > 1 else ""
            raise InfeasibleBudget(
                f"budget {str(self.problem.budget)!r} cannot be met by strategy 'rene' with ranks of at least "
                f"{self.config.rank_min}. {smaller}{advice(self.problem)}",
                self.problem.budget.rows(self.problem.inventory.total, cost.get),
            )
        best, (low, high), scale = least, (math.log2(SCALES[0]), math.log2(SCALES[1])), SCALES[1]
        for _ in track(range(TRIALS), "scaling the rank loss"):
            middle = (low + high) / 2
            winners = self.winners(2.0**middle)
            if self._exceeds(winners):
                low = middle
                continue
            high = middle
            if self._used(winners) >= self._used(best):
                best, scale = winners, 2.0**middle
            if self._used(best) >= CLOSE:
                break
        return self._candidates(self._filled(best)), scale

    def winners(self, scale: float) -> dict[str, Ranks]:
        """Return the ranks of the largest coefficients after all stages (Algorithm 1)."""
        axes = self.axes
        found = self._stages(axes, scale)
        winners = {axis.layer.name: axis.ranks(value) for axis, value in zip(axes, found, strict=True)}
        for position in range(max(len(axis.limits) for axis in axes) if self.config.free else 0):
            free = [axis.at(position, winners[axis.layer.name]) for axis in axes if len(axis.limits) > max(position, 1)]
            for axis, value in zip(free, self._stages(free, scale), strict=True):
                winners[axis.layer.name] = axis.ranks(value)
        return winners

    def _stages(self, axes: Sequence[Axis], scale: float) -> list[int]:
        """Return the winning value of each layer: coarse to fine around the winner of the stage before."""
        unit = self.problem.rank_multiple
        step = max(unit, self.config.step // unit * unit)
        values = [_first(axis, step) for axis in axes]
        best = [row[0] for row in values]
        for self.stages in count(1):
            best = self._stage(axes, values, scale)
            if step == unit:
                break
            reach, step = step, max(unit, step // self.config.shrink // unit * unit)
            values = [_around(axis, value, step, reach) for axis, value in zip(axes, best, strict=True)]
        return best

    def _stage(self, axes: Sequence[Axis], values: Sequence[Sequence[int]], scale: float) -> list[int]:
        """Return the winning value of each layer in one stage, which an interrupted search has stored."""

        def winners() -> list[int]:
            coefficients = self._coefficients(axes, values, scale)
            return [row[int(p.argmax())] for row, p in zip(values, coefficients, strict=True)]

        if self.problem.estimator is None:
            return winners()
        layers = [[a.layer.name, repr(a.method), a.position, a.others] for a in axes]
        facts = {
            "what": "stage of rene", "config": config_to_dict(self.config), "bounded": bool(self._bounds),
            "layers": layers, "values": values, "loads": self._loads(axes, values).tolist(), "scale": scale,
            "task": self._task_loss,
        }  # fmt: skip
        data = self._task_loss is not None
        return [int(value) for value in self.problem.estimator.recall(facts, len(axes), winners, data=data)]

    @cached_property
    def _task_loss(self) -> float | None:
        """The validation loss of the original on the first batch, which tells task losses apart; None without one."""
        bench = self.problem.workbench
        if self.config.objective != "validation" or bench is None:
            return None
        return float(bench.loss({}, next(iter(bench.batches()))))

    def _coefficients(self, axes: Sequence[Axis], values: Sequence[Sequence[int]], scale: float) -> Tensor:
        """Return the coefficients of one stage."""
        config = self.config
        rank_loss = RankLoss(loads=self._loads(axes, values), gamma=config.gamma, beta=config.beta, scale=scale)
        if config.factors == "sgd":
            return self._trained(axes, values, rank_loss)
        if config.objective == "validation":
            loss = Mixtures(self.problem, axes, values).validation
        else:
            errors = [self._errors(axis, row) for axis, row in zip(axes, values, strict=True)]
            mixed = expected_loss if self._bounds else nested_loss
            loss = mixed(errors, floor=NOISE * sum(map(self._energy, axes)))
        return optimize(loss, rank_loss, iterations=config.iterations, lr=config.learning_rate)

    def _trained(self, axes: Sequence[Axis], values: Sequence[Sequence[int]], rank_loss: RankLoss) -> Tensor:
        """Train factors and coefficients in turn; restart with smaller steps if that diverges.

        Raises
        ------
        ModelError
            If it diverges again and again.
        """
        config, lr, mixtures = self.config, self.config.learning_rate, None
        for attempt in range(ATTEMPTS):
            mixtures = Mixtures(self.problem, axes, values, lr=lr, norm=None if attempt == 0 else 1.0)
            loss = mixtures.validation if config.objective == "validation" else mixtures.decomposition

            def update(number: int, fixed: Tensor, factor: float, mixtures: Mixtures = mixtures) -> bool:
                mixtures.train(fixed, factor)
                return number >= config.warm_iterations and mixtures.diverged() is None

            coefficients = optimize(
                loss,
                rank_loss,
                iterations=config.warm_iterations + config.iterations,
                lr=lr,
                logarithmic=False,
                before=update,
            )
            if mixtures.diverged() is None and bool(coefficients.isfinite().all()):
                return coefficients
            lr /= 10
        assert mixtures is not None
        axis = mixtures.diverged() or axes[0]
        raise ModelError(
            f"the search diverges for {axis.layer.title} by {axis.method.name!r}: its factors are not finite after "
            f"{ATTEMPTS} attempts. Set {spelled('learning_rate')} below {config.learning_rate:g}, or use "
            f"{spelled('factors', 'fixed')} or another method."
        )

    def _errors(self, axis: Axis, values: Sequence[int]) -> Tensor:
        """Return the squared errors of the candidates: of the outputs, if there is calibration data to judge by."""
        errors = [self._error(axis, axis.ranks(value)) for value in values]
        return torch.tensor(errors, dtype=torch.float64)

    def _loads(self, axes: Sequence[Axis], values: Sequence[Sequence[int]]) -> Tensor:
        """Return the rank of each candidate relative to the layer's largest (eq. 5), or its cost to that of any."""
        if not self._bounds:
            return padded([torch.tensor(row, dtype=torch.float64) / max(row) for row in values])
        costs = [[self._amount(axis, axis.ranks(v)) for v in row] for axis, row in zip(axes, values, strict=True)]
        return padded([torch.tensor(row, dtype=torch.float64) / max(map(max, costs)) for row in costs])

    def _amount(self, axis: Axis, ranks: Ranks) -> float:
        """Return the cost of a candidate in shares of the bounds, added up."""
        cost = self.problem.pricing.candidate(axis.layer, axis.method, ranks).cost
        total = self.problem.inventory.total
        return sum(cost.get(bound.resource) / max(bound.limit(total), 1) for bound in self._bounds)

    def _counts(self, axis: Axis, resource: str) -> bool:
        return self.problem.inventory.costs[axis.layer.name].get(resource) > 0

    def _candidates(self, winners: Mapping[str, Ranks]) -> dict[str, Candidate]:
        return {
            axis.layer.name: self.problem.candidate(axis.layer, axis.method.name, winners[axis.layer.name])
            for axis in self.axes
        }

    def _cost(self, winners: Mapping[str, Ranks]) -> Cost:
        pricing = self.problem.pricing
        costs = {name: candidate.cost for name, candidate in self.problem.fixed.items()}
        costs |= {a.layer.name: pricing.candidate(a.layer, a.method, winners[a.layer.name]).cost for a in self.axes}
        return pricing.total_with(costs)

    def _exceeds(self, winners: Mapping[str, Ranks]) -> bool:
        budget, total = self.problem.budget, self.problem.inventory.total
        return budget is not None and bool(budget.exceeded(self._cost(winners), total))

    def _used(self, winners: Mapping[str, Ranks]) -> float:
        """Return the share of the tightest bound that is used."""
        return max(self._shares(winners).values(), default=1.0)

    def _shares(self, winners: Mapping[str, Ranks]) -> dict[Bound, float]:
        """Return the used share of each bound."""
        cost, total = self._cost(winners), self.problem.inventory.total
        return {bound: cost.get(bound.resource) / bound.limit(total) for bound in self._bounds}

    def _filled(self, winners: dict[str, Ranks]) -> dict[str, Ranks]:
        """Raise ranks one by one, where the error falls most per cost, until every bound is used (`CLOSE`)."""
        winners, closed = dict(winners), set[str]()
        while True:
            full = [bound.resource for bound, share in self._shares(winners).items() if share >= CLOSE]
            closed |= {a.layer.name for a in self.axes if any(self._counts(a, resource) for resource in full)}
            steps = {a.layer.name: r for a in self.axes if (r := self._next(a, winners[a.layer.name])) is not None}
            gains = {
                axis.layer.name: self._gain(axis, winners[axis.layer.name], steps[axis.layer.name])
                for axis in self.axes
                if axis.layer.name in steps and axis.layer.name not in closed
            }
            if not gains:
                break
            name = max(gains, key=lambda layer: gains[layer])
            raised = {**winners, name: steps[name]}
            if self._exceeds(raised):
                closed.add(name)
            else:
                winners = raised
        return winners

    def _next(self, axis: Axis, ranks: Ranks) -> Ranks | None:
        """Return the setting after this one, all ranks one unit larger; None at the end of the space."""
        unit = self.problem.rank_multiple
        larger = tuple(min(rank + unit, limit) for rank, limit in zip(ranks, axis.limits, strict=True))
        return larger if larger != ranks and max(larger) <= axis.high else None

    def _gain(self, axis: Axis, ranks: Ranks, larger: Ranks) -> float:
        """Return by how much the squared error falls per cost."""
        price = self._amount(axis, larger) - self._amount(axis, ranks)
        return (self._error(axis, ranks) - self._error(axis, larger)) / price if price > 0 else math.inf

    def _error(self, axis: Axis, ranks: Ranks) -> float:
        """Return the squared error of a candidate."""
        name = axis.layer.name
        if (name, ranks) not in self._known:
            if axis.method.iterative or len(ranks) > 1:
                self._known[name, ranks] = self._measured(axis, ranks)
            else:  # all at once, so that the layer is prepared once and nothing but numbers is kept
                energy = self._energy(axis)
                prepared = self.problem.prepared(axis.layer, axis.method)
                for value in {*ranks, *range(axis.low, axis.high + 1)}:
                    self._known[name, (value,)] = energy * prepared.error((value,)) ** 2
        return self._known[name, ranks]

    def _measured(self, axis: Axis, ranks: Ranks) -> float:
        """Return the squared error of factors, of which `Prepared.error` is only a bound."""
        moments, method = self.problem.moments(axis.layer.name), axis.method.quick(axis.layer)

        def measure() -> list[float]:
            weight = self.problem.weight(axis.layer.name)
            if self._prepared is None or self._prepared[0] != axis.layer.name:  # one at a time: a layer may be large
                self._prepared = axis.layer.name, methods.prepare(method, weight, axis.layer, moments)
            prepared = self._prepared[1]
            rest = double(weight) - double(composed(axis, ranks, prepared.factorize(ranks)))
            return [float(output_energy(methods.to_canonical(rest, axis.layer), moments))]

        if self.problem.estimator is None:
            return measure()[0]
        facts = {
            "what": "squared error", "layer": axis.layer.name, "method": repr(method), "ranks": ranks,
        }  # fmt: skip
        return self.problem.estimator.recall(facts, 1, measure)[0]

    def _energy(self, axis: Axis) -> float:
        """Return the squared error of a layer without any rank."""
        name = axis.layer.name
        if name not in self._energies:
            weight = methods.to_canonical(double(self.problem.weight(name)), axis.layer)
            self._energies[name] = float(output_energy(weight, self.problem.moments(name)))
        return self._energies[name]

    def loss_of(self, chosen: Mapping[str, Candidate]) -> float:
        """Return the decomposition loss of a plan: the sum of all squared errors."""
        return sum(self._error(axis, chosen[axis.layer.name].ranks) for axis in self.axes)


def _is_bounded(budget: Budget, dense: Cost) -> bool:
    """Return whether a layer of this cost counts in a bound, if there are some on resources that add up over layers."""
    return not budget.additive or any(dense.get(bound.resource) for bound in budget.additive)


def _first(axis: Axis, step: int) -> list[int]:
    """Return the values of the first stage: the smallest one, and the multiples of the step."""
    return [axis.low, *range((axis.low // step + 1) * step, axis.high + 1, step)]


def _around(axis: Axis, value: int, step: int, reach: int) -> list[int]:
    """Return the values within `reach` of a value, `step` apart, in the space."""
    around = range(value - reach // step * step, value + reach + 1, step)
    return [v for v in around if axis.low <= v <= axis.high]


registry.register(RENE, summary="ranks by gradient descent on softmax coefficients, without data")
