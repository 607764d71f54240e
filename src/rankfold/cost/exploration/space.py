"""The exploration space of a method on a layer, counted without enumerating it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankfold import methods
from rankfold._config import is_integer, is_number, require
from rankfold._options import SEED, Flag, boolean, check_options, document, integer, option
from rankfold.cost.exploration.picking import Picker, Place, Target, draw
from rankfold.cost.exploration.pieces import Piece, pieces, price
from rankfold.cost.exploration.plane import Plane
from rankfold.cost.exploration.record import Extent, Solution, Space, Step
from rankfold.cost.exploration.rows import Rows, ranks_of, valid_rows
from rankfold.cost.exploration.wording import formulas, stages
from rankfold.errors import ConfigError
from rankfold.records import Cost, LayerInfo
from rankfold.records.dense import dense_cost

PAPER_STEPS = (0.85, 0.6, 0.25)
"""High, medium and low compression (Kokhazadeh et al. 2025, Tables 2 and 3)."""

CORES = 3
"""Default maximum number of cores of the tensor shapes of ``ttm``."""


def _steps(name: str, value: Any) -> None:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    require(listed, name, value, "a sequence of shares of the parameters, such as (0.85, 0.6)")
    for share in value:
        require(is_number(share) and 0 < share < 1, name, share, "shares between 0 and 1, such as 0.85")
    require(len(set(value)) == len(value), name, list(value), "shares that are all different")


def _tolerance(name: str, value: Any) -> None:
    require(is_number(value) and 0 < value <= 0.5, name, value, "a number in (0, 0.5]")


def _bins(name: str, value: Any) -> None:
    require(value is None or (is_integer(value) and 1 <= value <= 200), name, value, "an integer in 1..200, or None")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Options of `explore`."""

    steps: Sequence[float] = option(PAPER_STEPS, "Shares of the layer's parameters to remove.", check=_steps)
    tolerance: float = option(
        0.005,
        "A setting belongs to a step if the share that it removes is in [step - tolerance, step + tolerance). With the "
        "default, the share rounds to the step in whole per cent.",
        check=_tolerance,
    )
    random: int = option(0, "Number of different random settings per step.", check=integer(0), flag=Flag(kind=int))
    seed: int = option(0, "Random seed.", check=SEED)
    cores: int = option(
        CORES, "Maximum number of cores in the tensor shapes of ttm.", check=integer(2), flag=Flag(kind=int)
    )
    useful: bool = option(
        False,
        "Leave out settings in which one rank makes another redundant, such as r2 > K1 * r1 of a tt. By default they "
        "are counted, as in the paper.",
        check=boolean,
        flag=Flag(kind=bool),
    )
    bins: int | None = option(
        None, "Bins per axis of the histogram over parameter and MAC reduction; None omits the histogram.", check=_bins
    )

    def __post_init__(self) -> None:
        check_options(self)


def explore(
    layer: LayerInfo,
    method: str,
    exploration: Exploration | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> Space:
    """Count the valid rank settings of a method on a layer and select solutions of each compression step.

    A setting is valid if it has fewer parameters *and* fewer MACs than the layer, including biases, and ranks in
    ``1..max_ranks(layer)``. For ``ttm``, the settings of all tensor shapes with 2 to `cores` cores are counted (see
    `TTM.variants`), unless `options` specify the shape.

    The costs are polynomials in the ranks, affine in each, whose coefficients follow from the prices of a few
    blueprints. All ranks except one are represented as arrays, and the interval of the remaining rank is solved for in
    integers. The time is therefore proportional to the number of settings divided by the largest limit, and the memory
    is constant.

    Raises
    ------
    UnsupportedLayer
        If the method cannot factor the layer.
    ConfigError
        If an option is out of range, or the layer has no calls.

    References
    ----------
    Kokhazadeh et al. (2025), section 4, "Exploration space", Tables 2-5; section 5.1 for the choice of solutions.
    """
    options, how = dict(options or {}), exploration or Exploration()
    methods.check_supported(methods.get(method, options), layer)
    if not layer.calls:
        raise ConfigError(
            f"{layer.title} has no calls, so its MACs are unknown. Inspect its model, or specify its input size."
        )
    dense = dense_cost(layer)
    parts = list(pieces(method, layer, options, how.cores, useful=how.useful))
    pickers = [Picker(Target.of(share, how.tolerance, dense.params)) for share in how.steps]
    plane = None if how.bins is None else Plane(how.bins, dense)
    size, extents = 0, dict[str, Extent]()
    for rows in valid_rows(parts, dense):
        size += int((rows.last - rows.first + 1).sum())
        extents = _extents(rows, dense, extents)
        for picker in pickers:
            picker.see(rows)
        if plane is not None:
            plane.see(rows)
    drawn = draw(pickers, lambda: valid_rows(parts, dense), how.random, f"{how.seed}/{layer.describe()}/{method}")
    chosen = [_step(method, layer, parts, picker, places) for picker, places in zip(pickers, drawn, strict=True)]
    shapes = {tuple(sorted(part.options.items())) for part in parts}
    return Space(
        method=method,
        limits=_limits(parts),
        shapes=len(shapes),
        settings=sum(part.settings for part in parts),
        size=size,
        steps=tuple(chosen),
        params=extents.get("params"),
        macs=extents.get("macs"),
        memory=extents.get("memory"),
        formulas=formulas(parts[0]) if parts else {},
        stages=stages(method, layer, parts[0]) if parts else (),
        histogram=None if plane is None else plane.histogram,
    )


def _extents(rows: Rows, dense: Cost, before: Mapping[str, Extent]) -> dict[str, Extent]:
    """Extend the extents of each resource by a chunk of rows. Costs increase with every rank."""
    coefficients = {
        "params": (rows.params0, rows.params1),
        "macs": (rows.macs0, rows.macs1),
        "memory": (rows.params0 + rows.fm0, rows.params1 + rows.fm1),
    }
    extents = {}
    for name, (constant, slope) in coefficients.items():
        least, most = int((constant + slope * rows.first).min()), int((constant + slope * rows.last).max())
        if name in before:
            least, most = min(before[name].least, least), max(before[name].most, most)
        extents[name] = Extent(dense=getattr(dense, name), least=least, most=most)
    return extents


def _step(method: str, layer: LayerInfo, parts: Sequence[Piece], picker: Picker, drawn: Sequence[Place]) -> Step:
    def solution(place: Place) -> Solution:
        number, index, x = place
        part = parts[number]
        ranks = ranks_of(part, index, x)
        return Solution(ranks=ranks, cost=price(methods.get(method, part.options), layer, ranks), options=part.options)

    fewest, most, equal = (None if place is None else solution(place) for place in picker.places)
    return Step(
        reduction=picker.target.reduction, count=picker.count, fewest_macs=fewest, most_macs=most, equal_ranks=equal,
        random=tuple(map(solution, drawn)),
    )  # fmt: skip


def _limits(parts: Sequence[Piece]) -> tuple[int, ...]:
    length = max((len(part.highs) for part in parts), default=0)
    return tuple(max(part.highs[i] for part in parts if len(part.highs) > i) for i in range(length))
