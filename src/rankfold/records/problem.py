"""What a strategy is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rankfold.records.budget import Budget
from rankfold.records.candidates import Candidate, CandidateTable
from rankfold.records.inventory import Inventory
from rankfold.records.layer import Ranks


class Judge(Protocol):
    """Tells the damage of candidates by a proxy, whose options are its own."""

    def check(self, config: Any, *, together: bool = False) -> None:
        """Raise `ConfigError` if what the proxy needs, or measuring layers together, is not there."""
        ...

    def proxy(self, config: Any) -> str:
        """Return the name of the proxy that is used."""
        ...

    def alone(self, config: Any) -> Mapping[str, Mapping[tuple[str, Ranks], float]]:
        """Return the damage of every candidate if only it is applied, by layer, method and ranks."""
        ...

    def unmeasured(self, config: Any) -> Sequence[str]:
        """Return the layers of which `alone` could measure nothing, as no sample reaches them."""
        ...

    def around(
        self,
        config: Any,
        picks: Mapping[str, Candidate | None],
        nearby: Mapping[str, Sequence[Candidate | None]],
    ) -> Mapping[str, Sequence[float]]:
        """Return the damage of the picks together, one layer's replaced by each of some others."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The question a strategy answers with a plan.

    Parameters
    ----------
    inventory : Inventory
        The model's layers.
    table : callable
        Returns the candidate table; computed on the first call, so a strategy that needs none does not pay for it.
    budget : Budget or None
        The bounds that the plan has to meet.
    seed : int
        The one seed for everything random.
    methods : tuple of str
        The methods that may be used.
    options : mapping of str to mapping
        Options of methods, by method name.
    rank_multiple : int
        Ranks are to be multiples of this.
    gauge : bool
        Whether factors are gauged where that makes them smaller.
    deploy_dtype : str or None
        Data type in which weights are going to be stored, which bytes count; None is the model's own.
    weight : callable
        ``weight(layer_name)`` returns the layer's weight in torch's layout, detached.
    fixed : mapping of str to Candidate
        Decisions made beforehand, by layer name; the strategy leaves them as they are.
    judge : Judge or None
        Tells the damage of candidates (`rankfold.candidates.Judge`).
    apply, finetune, evaluate : callable or None
        For strategies that loop: apply a plan, fine-tune a model, measure a model.
    """

    inventory: Inventory
    table: Callable[[], CandidateTable]
    weight: Callable[[str], Any]
    budget: Budget | None = None
    seed: int = 0
    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rank_multiple: int = 1
    gauge: bool = False
    deploy_dtype: str | None = None
    fixed: Mapping[str, Candidate] = field(default_factory=dict)
    judge: Judge | None = None
    apply: Callable[..., Any] | None = None
    finetune: Callable[..., Any] | None = None
    evaluate: Callable[..., float] | None = None
