"""The loop of the strategy ``similarity`` (Kokhazadeh et al. 2025, section 5.1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from rankfold._progress import say, track
from rankfold.errors import InfeasibleBudget
from rankfold.records import ACCURACY, Candidate, Cost, Plan
from rankfold.strategies.contract import Strategy, advice, make_plan
from rankfold.strategies.problem import Problem
from rankfold.strategies.workbench import Handle, Workbench

LEAST = 0.1
"""Share of the layers that is raised if all of them have reached their thresholds."""
ROUNDING = 1e-9
"""The difference of two metrics is not exactly the decimal that it reads as."""

DONE = "its feature maps agree with the original's only without factors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When the loop ends and which layers it raises.

    Parameters
    ----------
    allowed : float
        Largest drop of the metric.
    thresholds : mapping of str to float
        By target layer, the lowest similarity at which it keeps its ranks.
    objective : str
        The resource to minimize.
    samples : int
        Calibration samples on which feature maps are compared.
    carry, one_shot : bool
        As for `rankfold.strategies.Similarity`.
    """

    allowed: float
    thresholds: Mapping[str, float]
    objective: str
    samples: int
    carry: bool
    one_shot: bool

    def preference(self, outcome: Outcome) -> tuple[bool, float]:
        """Return a key that sorts results: the smallest within the drop first, else that with the least drop."""
        missed = outcome.drop > self.allowed + ROUNDING
        return missed, outcome.drop if missed else outcome.amount


@dataclass(slots=True, kw_only=True)
class State:
    """The progress of a loop, as saved after each round.

    Parameters
    ----------
    positions : dict of str to int
        The setting of each layer; the number of its settings if the layer is kept.
    final : list of str
        Layers that keep their ranks.
    rounds : list of dict
        The log.
    done : bool
        Whether the loop has ended.
    """

    positions: dict[str, int]
    final: list[str] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The last model of a loop.

    Parameters
    ----------
    label : str
        The factorizations.
    positions : mapping of str to int
        The setting of each layer.
    selection : mapping of str to Candidate
        The settings of the factored layers.
    reasons : mapping of str to str
        Why target layers are kept.
    model : Handle
        The fine-tuned model.
    value, drop : float
        Its metric, and by how much that is worse than the original's.
    amount : int
        Its cost in the objective.
    rounds : sequence of dict
        The log.
    """

    label: str
    positions: Mapping[str, int]
    selection: Mapping[str, Candidate]
    reasons: Mapping[str, str]
    model: Handle
    value: float
    drop: float
    amount: int
    rounds: Sequence[Mapping[str, Any]]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {"label": self.label, "amount": self.amount, "drop": self.drop, "rounds": len(self.rounds)}

    def log(self) -> list[dict[str, Any]]:
        """Return the rounds as JSON-ready values; the last one, of the result, has the costs of its layers."""
        rows = [
            {"run": self.label, "number": i, **{k: v for k, v in entry.items() if k != "positions"}}
            for i, entry in enumerate(self.rounds, 1)
        ]
        rows[-1]["costs"] = {name: [c.cost.params, c.cost.macs] for name, c in self.selection.items()}
        return rows


class Raising:
    """One run of the loop.

    Parameters
    ----------
    problem : Problem
        The strategy's input, with a workbench.
    strategy : Strategy
        The strategy, for plans.
    rules : Rules
        When the loop ends and which layers it raises.
    ladders : mapping of str to list of Candidate
        The settings of each target layer, at least one, from the strongest compression to the mildest.
    label : str
        The factorizations; also the name under which the loop is saved.
    retrain : bool
        Whether a first model that is not good enough is fine-tuned once more, before any layer is raised.
    """

    def __init__(
        self,
        problem: Problem,
        strategy: Strategy,
        rules: Rules,
        ladders: Mapping[str, list[Candidate]],
        *,
        label: str,
        retrain: bool = False,
    ) -> None:
        assert problem.workbench is not None
        self.problem, self.strategy, self.rules, self.label = problem, strategy, rules, label
        self.ladders, self.retrain = ladders, retrain
        self.bench: Workbench = problem.workbench
        self.rest = None if problem.budget is None else problem.budget.without(ACCURACY)
        self.seconds: dict[str, float] = {}

    def run(
        self, *, positions: Mapping[str, int] | None = None, like: Handle | None = None, limit: int | None = None
    ) -> Outcome:
        """Raise ranks until the model is good enough.

        Parameters
        ----------
        positions : mapping of str to int, optional
            The first setting of each layer; by default rank 1.
        like : Handle, optional
            A model whose values the first model continues from.
        limit : int, optional
            The loop ends as soon as the model costs this much in the objective.

        Raises
        ------
        InfeasibleBudget
            If the bounds of the budget cannot be met together.
        """
        saved = self.bench.recall(self.label)
        if saved is None or not self._is_own(State(**saved[0])):
            state, model = State(positions=dict(positions or dict.fromkeys(self.ladders, 0))), like
        else:
            state, model = State(**saved[0]), saved[1]
            say(f"{self.label}: resuming after round {len(state.rounds)}")
        for _ in track(count(), f"raising ranks of {self.label}"):
            if state.done or self._is_over(state, limit):
                break
            model = self._round(state, model)
            self.bench.remember(self.label, asdict(state), model)
        assert model is not None
        return self._outcome(state, model)

    def _is_own(self, state: State) -> bool:
        """Return whether the rounds of a saved loop tried these settings: another version may have chosen others."""
        fits = all(state.positions.get(name, -1) in range(len(row) + 1) for name, row in self.ladders.items())
        return fits and all(entry["settings"] == _texts(self._selection(entry["positions"])) for entry in state.rounds)

    def _round(self, state: State, like: Handle | None) -> Handle:
        """Make, train and measure the next model; log it and move the layers that must be raised."""
        self.seconds = {}
        selection = self._selection(state.positions)
        model = self._trained(selection, like)
        with self._timed("evaluate"):
            drop = self.bench.drop(model)
            if drop > self.rules.allowed + ROUNDING and self.retrain and not state.rounds:
                self._finetune(model)
                drop = self.bench.drop(model)
            value = self.bench.evaluate(model)
        state.done = drop <= self.rules.allowed + ROUNDING
        similar: Mapping[str, float] = {}
        raised: list[str] = []
        entry: dict[str, Any] = {
            "positions": dict(state.positions),
            "settings": _texts(selection),
            "amount": self._cost(selection).get(self.rules.objective),
            "metric": value,
            "drop": drop,
        }
        if not state.done:
            with self._timed("compare"):
                similar = self.bench.similarity(model, list(selection), samples=self.rules.samples)
            raised = self._raised(state, similar)
            for name in raised:
                state.positions[name] += 1
        state.rounds.append({**entry, "similarity": dict(similar), "raised": raised, "seconds": dict(self.seconds)})
        return model

    def _trained(self, selection: Mapping[str, Candidate], like: Handle | None) -> Handle:
        """Return the fine-tuned model of a selection: trained once, or after each layer."""
        parts = [selection]
        if not self.rules.one_shot:
            names = list(selection)
            parts = [{name: selection[name] for name in names[: i + 1]} for i in range(len(names))]
        model = like if self.rules.carry else None
        for part in parts:
            with self._timed("apply"):
                model = self.bench.apply(self._plan(part), like=model)
            self._finetune(model)
        assert model is not None
        return model

    def _finetune(self, model: Handle) -> None:
        with self._timed("finetune"):
            self.bench.finetune(model)

    def _raised(self, state: State, similar: Mapping[str, float]) -> list[str]:
        """Return the layers that take their next setting; the others become final.

        They are the layers below their thresholds. If there are none, they are the `LEAST` of the layers that lack most
        in similarity, compared with their thresholds.
        """
        factored = [name for name, settings in self.ladders.items() if state.positions[name] < len(settings)]
        short = {name: self.rules.thresholds[name] - similar[name] for name in factored}
        below = [name for name in factored if name not in state.final and short[name] > 0]
        if not below:
            below = sorted(factored, key=lambda name: -short[name])[: max(1, int(LEAST * len(factored)))]
        state.final = [name for name in factored if name not in below]
        return below

    def _is_over(self, state: State, limit: int | None) -> bool:
        """Return whether the loop ends before the next model; raise if the budget cannot be met."""
        selection = self._selection(state.positions)
        budget, drop = self.problem.budget, state.rounds[-1]["drop"] if state.rounds else None
        if not selection:
            raise InfeasibleBudget(
                f"strategy {self.strategy.name!r} cannot keep the drop of the metric within {self.rules.allowed:g}: "
                f"it is {drop:.4g} with the mildest compression of the target layers. Allow a larger drop, train "
                "longer, or use other methods."
            )
        cost, total = self._cost(selection), self.problem.inventory.total
        if limit is not None and cost.get(self.rules.objective) >= limit:
            return bool(state.rounds)
        if self.rest is None or not self.rest.exceeded(cost, total, ram=self._ram(selection)):
            return False
        if drop is None or (budget is not None and budget.get(ACCURACY)):
            found = "" if drop is None else f" The last model within the other bounds has a drop of {drop:.4g}."
            raise InfeasibleBudget(
                f"strategy {self.strategy.name!r} cannot meet budget {str(budget)!r} with {self.label} on "
                f"{len(self.ladders)} target layers.{found} {advice(self.problem)}",
                self.rest.rows(total, cost.get),
            )
        return True

    def _outcome(self, state: State, model: Handle) -> Outcome:
        last = state.rounds[-1]
        selection = self._selection(last["positions"])
        return Outcome(
            label=self.label, positions=last["positions"], selection=selection,
            reasons={name: DONE for name in self.ladders if name not in selection}, model=model,
            value=last["metric"], drop=last["drop"], amount=last["amount"], rounds=state.rounds,
        )  # fmt: skip

    def _selection(self, positions: Mapping[str, int]) -> dict[str, Candidate]:
        return {name: row[positions[name]] for name, row in self.ladders.items() if positions[name] < len(row)}

    def _cost(self, selection: Mapping[str, Candidate]) -> Cost:
        chosen = {**self.problem.fixed, **selection}
        return self.problem.pricing.total_with({name: candidate.cost for name, candidate in chosen.items()})

    def _ram(self, selection: Mapping[str, Candidate]) -> tuple[int, int] | None:
        """Return the peak RAM of a selection and of the original; None if the budget does not bound it."""
        peaks = self.problem.pricing.peaks(self.ladders, self.problem.fixed.values())
        if peaks is None:
            return None
        takes = {**peaks.kept, **{name: candidate.ram or 0 for name, candidate in selection.items()}}
        return max([peaks.floor, *takes.values()]), peaks.dense

    def _plan(self, selection: Mapping[str, Candidate]) -> Plan:
        return make_plan(self.problem, self.strategy, selection, reasons={})

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _texts(selection: Mapping[str, Candidate]) -> dict[str, str]:
    """Return the settings as they are logged."""
    return {name: f"{c.method} {', '.join(map(str, c.ranks))}" for name, c in selection.items()}
