"""Plans: one choice per layer, stored as a readable and editable JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rankfold._config import is_integer, is_number
from rankfold._documents import parse_document, read_text
from rankfold._files import write_text
from rankfold._printable import printable, quoted
from rankfold.errors import CorruptArtifact, NoMatchingLayer, PlanMismatch
from rankfold.records.candidates import Candidate
from rankfold.records.deploy import DEPLOY_DTYPES
from rankfold.records.display import Shown
from rankfold.records.layer import Ranks
from rankfold.records.narrowing import Narrowing

FORMAT = "rankfold-plan"
VERSION = 2  # 1 has no narrowing
_CHOICE_KEYS = ("method", "ranks", "options", "gauge", "error", "note", "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decision for one layer: factor it, or keep it.

    Parameters
    ----------
    method : str or None
        A registered method; None keeps the layer.
    ranks : tuple of int
        Ranks in the order that the method documents.
    options : mapping
        Options of the method, by name.
    reason : str or None
        Why the layer is kept, or why a rank was changed, such as a clamped VBMF rank.
    error : float or None
        Predicted relative error, 0..1.
    gauge : bool
        Whether the factors are gauged: the same function with r^2 fewer parameters at every bond of rank r.
    """

    method: str | None = None
    ranks: Ranks = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    error: float | None = None
    gauge: bool = False

    @classmethod
    def of(cls, candidate: Candidate, *, reason: str | None = None) -> Choice:
        """Return the choice of a candidate."""
        return cls(
            method=candidate.method, ranks=candidate.ranks, options=candidate.options, reason=reason,
            error=candidate.error, gauge=candidate.gauge,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON-ready values, without empty fields."""
        if self.method is None:
            return {"keep": self.reason or "by hand"}
        out: dict[str, Any] = {"method": self.method, "ranks": list(self.ranks)}
        if self.options:
            out["options"] = dict(self.options)
        if self.gauge:
            out["gauge"] = True
        if self.error is not None:
            out["error"] = self.error
        if self.reason:
            out["note"] = self.reason
        return out

    @classmethod
    def from_dict(cls, layer: str, data: Any) -> Choice:
        """Read a choice; `layer` is the layer's name in messages."""

        def check(valid: bool, what: str, value: object) -> None:
            if not valid:
                raise CorruptArtifact(f"plan, layer {quoted(layer)}: {what}. Got {quoted(value)} instead.")

        check(isinstance(data, Mapping), "expected an object with 'method' or 'keep'", data)
        unknown = sorted(map(str, set(data) - set(_CHOICE_KEYS)))
        if unknown:
            keys = ", ".join(map(repr, _CHOICE_KEYS))
            raise CorruptArtifact(
                f"plan, layer {quoted(layer)}: unknown key {quoted(unknown[0])}. The keys are {keys}."
            )
        if "keep" in data:
            if "method" in data:
                raise CorruptArtifact(f"plan, layer {quoted(layer)}: has both 'method' and 'keep'. Remove one of them.")
            return cls(reason=str(data["keep"]))
        method, ranks, options = data.get("method"), data.get("ranks"), data.get("options", {})
        gauge, error, note = data.get("gauge", False), data.get("error"), data.get("note")
        check(isinstance(method, str), "'method' must be a name", method)
        check(isinstance(ranks, list) and all(map(is_integer, ranks)), "'ranks' must be a list of integers", ranks)
        check(isinstance(options, Mapping), "'options' must be an object", options)
        check(isinstance(gauge, bool), "'gauge' must be true or false", gauge)
        number = is_number(error) and math.isfinite(error) and error >= 0
        check(error is None or number, "'error' must be a nonnegative number", error)
        return cls(
            method=method, ranks=tuple(ranks), options=dict(options), reason=None if note is None else str(note),
            error=error, gauge=gauge,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Origin of a plan.

    Parameters
    ----------
    strategy, config, budget, methods, seed, deploy_dtype
        Settings of the search.
    errors : {"outputs", "weights"} or None
        Whether the predicted errors are those of outputs or of weights.
    reconstruct : {"weights", "data", "sequential"} or None
        How the factors were computed; None before the plan is applied.
    options : mapping
        Options of the search that differ from their defaults.
    search : mapping
        Results of the search. For ``compressnas``: the proxy, the predicted loss, a proven lower bound on it, and the
        loss measured in each round.
    weights_hash : str or None
        Hash of the original model's weights.
    versions : mapping
        Versions of rankfold, torch and Python.
    """

    strategy: str = "manual"
    config: Mapping[str, Any] = field(default_factory=dict)
    budget: str | None = None
    methods: tuple[str, ...] = ()
    seed: int = 0
    errors: str | None = None
    reconstruct: str | None = None
    deploy_dtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    weights_hash: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the provenance as JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
        return {**values, "methods": list(self.methods)}

    @classmethod
    def from_dict(cls, data: Any) -> Provenance:
        """Read a provenance; unknown keys are ignored, because newer versions may add some."""
        if not isinstance(data, Mapping):
            raise CorruptArtifact(f"plan: 'provenance' must be an object. Got {quoted(data)} instead.")
        values = {k: data[k] for k in cls.__dataclass_fields__ if data.get(k) is not None}
        for key, kinds in _PROVENANCE.items():
            if key in values and (not isinstance(values[key], kinds) or isinstance(values[key], bool)):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise CorruptArtifact(f"plan, provenance: {key!r} must be {wanted}. Got {quoted(values[key])} instead.")
        if values.get("deploy_dtype", DEPLOY_DTYPES[0]) not in DEPLOY_DTYPES:
            raise CorruptArtifact(
                f"plan, provenance: 'deploy_dtype' must be one of {', '.join(DEPLOY_DTYPES)}. "
                f"Got {quoted(values['deploy_dtype'])} instead."
            )
        values["methods"] = tuple(map(str, values.get("methods", ())))
        return cls(**values)


_PROVENANCE: dict[str, tuple[type, ...]] = {
    "strategy": (str,), "config": (dict,), "budget": (str,), "methods": (list, tuple), "seed": (int,),
    "errors": (str,), "reconstruct": (str,), "deploy_dtype": (str,), "options": (dict,), "weights_hash": (str,),
    "versions": (dict,), "search": (dict,),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(Shown):
    """The channels that one model loses, and a choice for every layer.

    Parameters
    ----------
    layers : dict of str to Choice
        Choices by layer name, in order of definition. They are made for the layers that the narrowing leaves.
    fingerprint : dict of str to str
        `LayerInfo.fingerprint` of each layer of the original model; `apply` rejects a model with different layers.
    provenance : Provenance
        Strategy, budget, seed, versions, and hash of the original weights.
    narrowing : Narrowing
        The channels that are removed, before the layers are factored.
    """

    layers: Mapping[str, Choice]
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    narrowing: Narrowing = field(default_factory=Narrowing)

    def __repr__(self) -> str:
        return f"<Plan: {self.headline()}>"

    def headline(self) -> str:
        """Return one line with the number of factored layers and removed channels, the strategy and the budget."""
        origin = self.provenance
        parts = [f"{len(self.factored)} of {len(self.layers)} layers factored"]
        if self.narrowing:
            parts.append(self.narrowing.headline())
        parts.append(f"strategy {origin.strategy}")
        parts += [f"budget {origin.budget}"] if origin.budget else []
        return printable(", ".join(parts))

    @property
    def factored(self) -> dict[str, Choice]:
        """The choices of the factored layers."""
        return {name: c for name, c in self.layers.items() if c.method is not None}

    @property
    def kept(self) -> dict[str, str]:
        """The reasons of the kept layers."""
        return {name: c.reason or "by hand" for name, c in self.layers.items() if c.method is None}

    @property
    def decisions(self) -> dict[str, Any]:
        """What the plan does to a model, as JSON values: two plans of a model with the same decisions are the same."""
        layers: dict[str, Any] = {name: choice.to_dict() for name, choice in self.layers.items()}
        return layers | ({"removed channels": {g.name: g.removed for g in self.narrowing}} if self.narrowing else {})

    @property
    def decisions_text(self) -> str:
        """`decisions` as text, by which plans of one model with the same decisions are recognized."""
        return json.dumps(self.decisions, default=str)

    def override(self, choices: Mapping[str, Choice | None]) -> Plan:
        """Return a plan with some choices replaced; None keeps a layer. Unknown layers raise `NoMatchingLayer`."""
        missing = [name for name in choices if name not in self.layers]
        if missing:
            raise NoMatchingLayer.of("the plan", missing[0], list(self.layers))
        new = {k: v if v is not None else Choice(reason="by hand") for k, v in choices.items()}
        return replace(self, layers={**self.layers, **new})

    def then(self, later: Plan) -> Plan:
        """Return the plan for this plan's model that does what both do.

        `later` was made for the model that this plan leaves; this plan must not factor any layer. The choices and the
        provenance are those of `later`. Raises `PlanMismatch` if one plan does not continue the other.
        """
        if self.factored:
            raise PlanMismatch(
                f"the first plan factors layer {next(iter(self.factored))!r}; only a plan that factors no layer can be "
                "continued. Remove channels first, then factor."
            )
        if set(self.layers) != set(later.layers):
            name = min(set(self.layers) ^ set(later.layers))
            raise PlanMismatch(
                f"only one of the two plans has layer {name!r}. Plan on the model that the first leaves."
            )
        narrowing = self.narrowing.then(later.narrowing)
        return replace(later, fingerprint=self.fingerprint, narrowing=narrowing)

    def to_json(self) -> str:
        """Return the plan as JSON text, one layer per line."""
        lines = [f"    {json.dumps(n)}: {json.dumps(c.to_dict(), default=str)}" for n, c in self.layers.items()]
        prints = [f"    {json.dumps(n)}: {json.dumps(f)}" for n, f in self.fingerprint.items()]
        provenance = json.dumps(self.provenance.to_dict(), indent=2, default=str).replace("\n", "\n  ")
        groups = f'  "narrowing": [\n{self.narrowing.to_json("    ")}\n  ],\n' if self.narrowing else ""
        return (
            f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION if groups else 1},\n' + groups +
            '  "layers": {\n' + ",\n".join(lines) + '\n  },\n'
            '  "fingerprint": {\n' + ",\n".join(prints) + '\n  },\n'
            f'  "provenance": {provenance}\n}}\n'
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str, *, source: str = "plan") -> Plan:
        """Read a plan from JSON text.

        Raises
        ------
        CorruptArtifact
            If the text is not JSON, not a plan, of a newer version, or contains a malformed layer.
        """
        data = parse_document(text, kind="plan", format=FORMAT, version=VERSION, source=source)
        layers = data.get("layers")
        fingerprint = data.get("fingerprint", {})
        if not isinstance(layers, Mapping) or not isinstance(fingerprint, Mapping):
            raise CorruptArtifact(f"{source}: 'layers' and 'fingerprint' must be objects.")
        return cls(
            layers={name: Choice.from_dict(name, c) for name, c in layers.items()},
            fingerprint={k: str(v) for k, v in fingerprint.items()},
            provenance=Provenance.from_dict(data.get("provenance", {})),
            narrowing=Narrowing.from_list(data.get("narrowing", [])),
        )

    def save(self, path: str | Path) -> Path:
        """Write the plan to a JSON file atomically, and return its path."""
        return write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file, or from ``plan.json`` in an artifact folder."""
        path = Path(path)
        file = path / "plan.json" if os.path.isdir(path) else path
        hint = "Pass a file written by Plan.save, or an artifact folder."
        text = read_text(file, kind="plan", hint=hint)
        return cls.from_json(text, source=str(file))
