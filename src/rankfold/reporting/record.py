"""The rows of a report, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankfold.records import Cost, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """The values of one metric before and after compression; None if not measured."""

    name: str
    dense: float
    compressed: float | None = None  # before fine-tuning
    tuned: float | None = None
    reloaded: float | None = None  # after saving and loading
    higher_is_better: bool = True
    percent: bool | None = None  # whether the values are fractions; None decides by their range
    samples: int | None = None  # number of samples per measurement

    @property
    def values(self) -> tuple[float, ...]:
        """The measured values, in the order of measurement."""
        return tuple(v for v in (self.dense, self.compressed, self.tuned, self.reloaded) if v is not None)

    @property
    def final(self) -> float:
        """The last value that was measured: that of the resulting model."""
        return self.values[-1]

    @property
    def in_percent(self) -> bool:
        """Whether the values are fractions, shown as percentages."""
        if self.percent is not None:
            return self.percent
        return self.higher_is_better and all(0 <= v <= 1 for v in self.values)

    @property
    def change(self) -> float | None:
        """Final minus dense; None if only the dense model was measured."""
        return self.final - self.dense if len(self.values) > 1 else None

    @property
    def drop(self) -> float | None:
        """By how much the final value is worse than the dense value; negative if it is better."""
        return None if self.change is None else -self.change if self.higher_is_better else self.change

    @property
    def worse(self) -> bool:
        """Whether the final value is worse than the dense value."""
        return self.drop is not None and not self.drop <= 0

    @property
    def reload_differs(self) -> bool:
        """Whether the reloaded model has another value than the saved model."""
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
class RoundRow:
    """One round of a strategy that trains models: what was tried, how good it was, and what was raised after it.

    `amount` is the cost in the objective, `settings` has methods and ranks by layer, `similarity` the cosine similarity
    of the feature maps, `raised` the layers that took another setting, and `seconds` the time by stage. The last round
    of a run also has `costs`: the parameters and MACs of each factored layer.
    """

    run: str
    number: int
    amount: int
    metric: float
    drop: float
    settings: Mapping[str, str]
    similarity: Mapping[str, float]
    raised: tuple[str, ...]
    seconds: Mapping[str, float]
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer before and after compression."""

    name: str
    layer: str  # its description, such as "Conv2d 16->32 3x3 s2 g1"
    before: Cost
    after: Cost
    method: str | None = None  # None for a layer that is kept
    ranks: Ranks = ()  # in the order that the method documents
    error: float | None = None  # predicted relative error, 0..1
    measured_error: float | None = None
    reason: str | None = None  # why the layer is kept or has other ranks than requested
    note: str | None = None  # such as shared or tied weights
    narrowed: str | None = None  # the description without the removed channels, such as "Conv2d 12->30 3x3 s2 g1"

    @property
    def kept(self) -> bool:
        """Whether the layer is unchanged."""
        return self.method is None

    @property
    def label(self) -> str:
        """The displayed name; a model that is itself a layer has no path."""
        return self.name or "(the model)"


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRow:
    """Coupled layers that lost output channels: the first layer, its widths, and the others that compute with it."""

    layer: str
    before: int
    after: int
    coupled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRow:
    """One bound of the budget with its result; None if not available, as for a bound that is not on a cost."""

    resource: str
    text: str  # as given, such as "params<=25%"
    limit: float | None = None
    value: float | None = None  # of the compressed model
    dense: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None if the report's numbers cannot tell."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit
