"""The analysis of exploration spaces: values by layer, and their averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, get_args

from rankfold.cost.exploration import METRICS, Extent, Space, scores
from rankfold.errors import NoMatchingLayer
from rankfold.records import Cost
from rankfold.reporting.codec import encode
from rankfold.reporting.document import Document

Group = Literal["convolutions", "matrices"]
GROUPS: tuple[Group, ...] = get_args(Group)
EXTENTS = ("params", "macs", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpaces:
    """The exploration spaces of one layer.

    Parameters
    ----------
    name : str
        Path in the model, or the text that describes the layer.
    layer : str
        A description of the layer.
    group : {"convolutions", "matrices"}
        Matrices are linear layers and 1x1 convolutions.
    dense : Cost
        Of the original layer, over its calls.
    spaces : tuple of Space
        One per method, in the requested order.
    reasons : mapping of str to str
        Why other methods do not fit, by method.
    """

    name: str
    layer: str
    group: Group
    dense: Cost
    spaces: tuple[Space, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The displayed name."""
        return self.name or "(the model)"

    def space(self, method: str) -> Space | None:
        """Return the space of a method, or None if it does not fit."""
        return next((space for space in self.spaces if space.method == method), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Means over the layers of a group that have a valid setting (Kokhazadeh et al. 2025, Figs 6 and 7).

    Parameters
    ----------
    group, method : str
        The group of layers, and the method.
    layers : int
        Number of layers.
    size : float
        Number of valid rank settings.
    best_params, worst_params, best_macs, worst_macs, best_memory, worst_memory : float
        Reductions, 1 − compressed ÷ dense; negative for an increase.
    params_coverage, macs_coverage : float
        Best minus worst reduction.
    seconds : float or None
        Time to prepare and factor once, averaged over the steps; None if not measured.
    scores : mapping of str to float
        Mean score of each metric of Table 6, 1..5, where available.
    """

    group: Group
    method: str
    layers: int
    size: float
    best_params: float
    worst_params: float
    best_macs: float
    worst_macs: float
    best_memory: float
    worst_memory: float
    params_coverage: float
    macs_coverage: float
    seconds: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Analysis(Document):
    """The exploration spaces of a network's layers (Kokhazadeh et al. 2025, section 4).

    `rankfold.analyze` returns it.

    Parameters
    ----------
    layers : tuple of LayerSpaces
        Every analyzed layer.
    methods : tuple of str
        The requested methods.
    steps : tuple of float
        Compression steps: shares of the parameters that are removed.
    tolerance : float
        Largest difference between a step and the reduction of its settings.
    random : int
        Number of random solutions per step.
    seed : int
        Random seed of these solutions.
    cores : int
        Largest number of cores in the tensor shapes of ``ttm``.
    useful : bool
        Whether settings with a rank that another rank makes useless are excluded.
    kept : mapping of str to str
        Layers that are not analyzed, with the reason.
    title : str
        The title.
    """

    KIND: ClassVar[str] = "analysis"

    layers: tuple[LayerSpaces, ...]
    methods: tuple[str, ...]
    steps: tuple[float, ...]
    tolerance: float
    random: int
    seed: int
    cores: int
    useful: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def __repr__(self) -> str:
        return f"<Analysis: {len(self.layers)} layers>"

    def layer(self, name: str) -> LayerSpaces:
        """Return the layer with this name; raise `NoMatchingLayer` if it does not exist."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise NoMatchingLayer.of("the analysis", name, [layer.name for layer in self.layers])

    @property
    def averages(self) -> tuple[Average, ...]:
        """Means of every method over the convolutions, and over the linear and 1x1 layers."""
        means = [average(self.layers, group, method) for group in GROUPS for method in self.methods]
        return tuple(mean for mean in means if mean is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values, with reductions, coverage, scores and averages."""
        data = Document.to_dict(self)
        for layer, entry in zip(self.layers, data["layers"], strict=True):
            for space, row in zip(layer.spaces, entry["spaces"], strict=True):
                for name in EXTENTS:
                    extent: Extent | None = getattr(space, name)
                    if extent is not None:
                        row[name] |= {"best": extent.best, "worst": extent.worst, "coverage": extent.coverage}
                row["scores"] = scores(space)
        return {**data, "averages": encode(self.averages)}


def average(layers: tuple[LayerSpaces, ...], group: Group, method: str) -> Average | None:
    """Return the means of one method over one group of layers, or None without a valid setting."""
    inside = [layer.space(method) for layer in layers if layer.group == group]
    spaces = [space for space in inside if space is not None and space.params and space.macs and space.memory]
    if not spaces:
        return None
    means = {
        name: fmean(getattr(getattr(space, resource), end) for space in spaces)
        for name, resource, end in (
            *((f"{end}_{resource}", resource, end) for end in ("best", "worst") for resource in EXTENTS),
            *((f"{resource}_coverage", resource, "coverage") for resource in ("params", "macs")),
        )
    }
    times = [seconds for space in spaces if (seconds := space.decomposition_s) is not None]
    graded = [scores(space) for space in spaces]
    grades = {metric: [value for table in graded if (value := table[metric]) is not None] for metric in METRICS}
    return Average(
        group=group,
        method=method,
        layers=len(spaces),
        size=fmean(space.size for space in spaces),
        seconds=fmean(times) if times else None,
        scores={metric: fmean(values) for metric, values in grades.items() if values},
        **means,
    )
