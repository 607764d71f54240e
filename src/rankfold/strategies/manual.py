"""``manual``: explicit methods and ranks, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rankfold import methods
from rankfold._config import Code, require, spelled
from rankfold._documents import parse_json, read_text
from rankfold.errors import ConfigError, CorruptArtifact, DataError, InfeasibleBudget, NoMatchingLayer
from rankfold.records import Candidate, Choice, LayerInfo, Plan
from rankfold.strategies.contract import Strategy, make_plan, registry
from rankfold.strategies.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Manual(Strategy):
    """Explicit choices, which are checked: layers must exist, ranks must be in range, and the budget must be met.

    Parameters
    ----------
    layers : mapping of str to choice
        Choices by layer name or shell pattern, of which the first match applies. A choice is ``(method, ranks)``,
        ``(method, share)`` with a share of the layer's parameters as a float, a mapping as in a plan file, or None to
        keep the layer.
    file : str or None
        A JSON file with such a mapping, or a plan; `layers` takes precedence.
    """

    name = "manual"

    layers: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.layers, Mapping), "layers", self.layers, "a mapping of layer names to choices")
        require(self.file is None or isinstance(self.file, str), "file", self.file, "a path as a string")
        if not self.layers and self.file is None:
            raise ConfigError(
                f"strategy 'manual' needs choices. Pass {spelled('file', 'ranks.json')} or "
                f"{spelled('layers', Code('{...}'))}."
            )

    def plan(self, problem: Problem) -> Plan:
        """Return a plan with the given choices; all other layers are kept."""
        wanted = {**self.layers, **{k: v for k, v in self._from_file().items() if k not in self.layers}}
        chosen = resolve(problem, wanted, owner="strategy 'manual'")
        reasons = {
            layer.name: layer.skip or ("by hand" if layer.name in chosen else "not named")
            for layer in problem.inventory
        }
        factored = {name: candidate for name, candidate in chosen.items() if candidate is not None}
        _check_budget(problem, {**factored, **problem.fixed})
        return make_plan(problem, self, factored, reasons=reasons)

    def _from_file(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        path = Path(self.file)
        try:
            data = parse_json(read_text(path, kind="rank file", hint="Check the path."), source=str(path))
        except CorruptArtifact as error:
            raise DataError(str(error)) from error
        if isinstance(data, dict) and isinstance(data.get("layers"), dict):
            data = data["layers"]
        if not isinstance(data, dict):
            raise DataError(f"the rank file {self.file!r} must contain an object with layer names and choices.")
        return data


def resolve(problem: Problem, wanted: Mapping[str, Any], *, owner: str) -> dict[str, Candidate | None]:
    """Return the candidates of the layers that match choices like `Manual.layers`; None keeps a layer.

    `owner` is the source of the choices in messages. Raises `NoMatchingLayer` if a pattern matches no layer.
    """
    require(isinstance(wanted, Mapping), owner, wanted, "a mapping of layer names to choices")
    for pattern in wanted:
        require(isinstance(pattern, str), f"layer name in {owner}", pattern, "a string")
    unused = set(wanted)
    chosen: dict[str, Candidate | None] = {}
    for layer in problem.inventory:
        names = layer.paths
        matching = [pattern for pattern in wanted if any(fnmatchcase(name, pattern) for name in names)]
        unused.difference_update(matching)
        if matching:
            choice = _read(matching[0], wanted[matching[0]])
            chosen[layer.name] = None if choice is None else _candidate(problem, layer, *choice)
    if unused:
        names = [repr(layer.name) for layer in problem.inventory.layers]
        listed = ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])])
        raise NoMatchingLayer(f"pattern {sorted(unused)[0]!r} of {owner} matches no layer. Layers: {listed}.")
    return chosen


def with_overrides(problem: Problem, overrides: Mapping[str, Any]) -> Problem:
    """Return a problem with overrides applied: fixed candidates, and a skip reason for each kept layer."""
    chosen = resolve(problem, overrides, owner=spelled("overrides"))
    layers = tuple(
        replace(layer, skip=layer.skip or "kept by an override")
        if layer.name in chosen and chosen[layer.name] is None
        else layer
        for layer in problem.inventory
    )
    pricing = replace(problem.pricing, inventory=replace(problem.inventory, layers=layers))
    fixed = {name: candidate for name, candidate in chosen.items() if candidate is not None}
    return replace(problem, pricing=pricing, fixed=fixed)


def _read(pattern: str, value: Any) -> tuple[str, Any, Mapping[str, Any] | None, bool] | None:
    """Return method, ranks or share, options, and whether to gauge; None keeps the layer."""
    if value is None:
        return None
    if isinstance(value, Choice):
        value = value.to_dict()
    if isinstance(value, Mapping):
        choice = Choice.from_dict(pattern, {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()})
        return None if choice.method is None else (choice.method, choice.ranks, choice.options, choice.gauge)
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str):
        ranks = value[1]
        if isinstance(ranks, bool) or not isinstance(ranks, int | float | list | tuple):
            raise ConfigError(
                f"ranks of {pattern!r} must be an integer, integers, or a share of parameters. Got {ranks!r} instead."
            )
        if isinstance(ranks, list | tuple):
            if not all(isinstance(r, int) and not isinstance(r, bool) for r in ranks):
                raise ConfigError(f"ranks of {pattern!r} must be integers. Got {list(ranks)} instead.")
            return value[0], tuple(ranks), None, False
        return value[0], (ranks,) if isinstance(ranks, int) else ranks, None, False
    raise ConfigError(f"the choice for {pattern!r} must be (method, ranks), a mapping or None. Got {value!r} instead.")


def _candidate(
    problem: Problem, layer: LayerInfo, name: str, ranks: Any, options: Mapping[str, Any] | None, gauge: bool
) -> Candidate:
    """Return the candidate of an explicit choice; `gauge` applies even if it is not beneficial."""
    options = problem.options.get(name, {}) if options is None else options
    method = methods.get(name, options)
    if isinstance(ranks, float):
        methods.check_supported(method, layer)
    else:
        methods.check_choice(layer, Choice(method=name, ranks=ranks, options=options, gauge=gauge))
    prepared = problem.prepared(layer, method)
    if isinstance(ranks, float):
        ranks = problem.pricing.ranks_within(layer, method, ranks, prepared.error, multiple=problem.rank_multiple)
    candidate = problem.pricing.candidate(layer, method, ranks, options=options, gauge=gauge)
    return replace(candidate, error=prepared.error(ranks))


def _check_budget(problem: Problem, chosen: Mapping[str, Candidate]) -> None:
    if problem.budget is None:
        return
    total = problem.inventory.total
    after = problem.pricing.total_with({name: candidate.cost for name, candidate in chosen.items()})
    missed = [row for row in problem.budget.rows(total, after.get) if row[2] > row[1]]
    if missed:
        raise InfeasibleBudget(
            f"the ranks set by hand exceed budget {str(problem.budget)!r}. Lower them or loosen the budget.",
            missed,
        )


registry.register(Manual, summary="explicit methods and ranks, or those of a file")
