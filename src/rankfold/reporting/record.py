"""The rows of a report, as plain frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from rankfold.records import Cost, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One metric before and after compression.

    Parameters
    ----------
    name : str
        Such as ``"top-1 accuracy"``.
    dense : float
        Of the uncompressed model.
    compressed : float or None
        Right after the plan was applied, before any training.
    tuned : float or None
        After fine-tuning.
    reloaded : float or None
        Measured again on the saved and reloaded model.
    higher_is_better : bool
        The direction of the metric.
    percent : bool or None
        Whether the values are fractions, shown in per cent. None: they are if they lie in 0..1 and
        higher is better.
    samples : int or None
        The number of samples that each value was measured on; None if the metric does not count them.
    """

    name: str
    dense: float
    compressed: float | None = None
    tuned: float | None = None
    reloaded: float | None = None
    higher_is_better: bool = True
    percent: bool | None = None
    samples: int | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """The values that are known, in the order in which they were measured."""
        known = (self.dense, self.compressed, self.tuned, self.reloaded)
        return tuple(v for v in known if v is not None)

    @property
    def final(self) -> float:
        """The value of the model that the user gets: the last one measured."""
        return self.values[-1]

    @property
    def in_percent(self) -> bool:
        """Whether the values are fractions that read better in per cent."""
        if self.percent is not None:
            return self.percent
        return self.higher_is_better and all(0 <= v <= 1 for v in self.values)

    @property
    def change(self) -> float | None:
        """Final minus dense; None as long as only the dense model has been measured."""
        return self.final - self.dense if len(self.values) > 1 else None

    @property
    def drop(self) -> float | None:
        """How much worse the final value is than the dense model's; negative where it is better."""
        return None if self.change is None else -self.change if self.higher_is_better else self.change

    @property
    def worse(self) -> bool:
        """Whether the final value is worse than the dense model's."""
        return self.drop is not None and not self.drop <= 0

    @property
    def reload_differs(self) -> bool:
        """Whether the reloaded model measures other than the model that was saved."""
        saved = self.tuned if self.tuned is not None else self.compressed
        return self.reloaded is not None and saved is not None and self.reloaded != saved


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """One epoch of fine-tuning: mean training loss, last learning rate, metric, seconds."""

    epoch: int
    loss: float
    lr: float | None = None
    metric: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """What became of one layer.

    Parameters
    ----------
    name : str
        Dotted path in the model.
    layer : str
        The layer in words, such as ``Conv2d 16->32 3x3 s2 g1``.
    method : str or None
        The factorization; None if the layer was kept.
    ranks : tuple of int
        In the order that the method documents.
    before, after : Cost
        Of the dense and of the factored layer; equal for a kept one.
    error : float or None
        Predicted relative error, 0..1.
    measured_error : float or None
        Relative error measured on the compressed model, 0..1.
    reason : str or None
        Why the layer was kept, or why its ranks are not what was asked.
    note : str or None
        What else is to be known of the layer (shared, tied, never called).
    """

    name: str
    layer: str
    before: Cost
    after: Cost
    method: str | None = None
    ranks: Ranks = ()
    error: float | None = None
    measured_error: float | None = None
    reason: str | None = None
    note: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the layer is as it was."""
        return self.method is None

    @property
    def label(self) -> str:
        """The name as shown: a model that is itself a layer has no path."""
        return self.name or "(the model)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRow:
    """One bound of the budget, and what came out.

    Parameters
    ----------
    resource : str
        The resource's name in budgets, such as ``"params"``.
    text : str
        The bound as asked, such as ``"params<=25%"``.
    limit, value, dense : float or None
        The greatest amount allowed, the compressed model's and the dense model's; None where this
        is not known, as for a bound that is not on a cost.
    """

    resource: str
    text: str
    limit: float | None = None
    value: float | None = None
    dense: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None if it cannot be told from the report's numbers."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit
