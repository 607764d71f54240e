"""The exploration space of a method on a layer: counted and solved, never listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankfold import methods
from rankfold._config import is_integer, is_number, require
from rankfold._options import boolean, check_options, document, integer, option
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
"""Most cores of the tensor shapes that are counted for ``ttm``."""


def _steps(name: str, value: Any) -> None:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    require(listed, name, value, "a sequence of shares of the parameters to remove, such as (0.85, 0.6)")
    for share in value:
        require(is_number(share) and 0 < share < 1, name, share, "shares between 0 and 1, such as 0.85")
    require(len(set(value)) == len(value), name, list(value), "different shares")


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
        "A setting belongs to a step if the share that it removes lies in [step - tolerance, step + tolerance): with "
        "the default it rounds to the step's whole per cent.",
        check=_tolerance,
    )
    random: int = option(0, "Random solutions of each step, all different.", check=integer(0))
    seed: int = option(0, "Random seed.", check=integer(0))
    cores: int = option(CORES, "Most cores of the tensor shapes that are counted for ttm.", check=integer(2))
    useful: bool = option(
        False,
        "Leave out settings with a rank that another one makes useless: of two ranks of one factor, one beyond n times "
        "the other if the factor has n elements for each pair of their values. r2 > K1 * r1 of a tt is such: a smaller "
        "r2 does the same for less. The paper's counts are without it.",
        check=boolean,
    )
    bins: int | None = option(
        None, "Bins on each axis of the histogram over parameter and MAC reduction; None leaves it out.", check=_bins
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
    """Count the valid rank settings of a method on a layer and choose the solutions of each compression step.

    Valid is a setting with fewer parameters *and* fewer MACs than the layer, biases included, and with ranks in
    ``1..max_ranks(layer)``: the channels of a group for ``tucker`` and ``tt3``; for ``tt`` and ``ttm`` the smaller
    side of each bond's unfolding; the smaller side of the matrix for ``svd``, ``qr`` and ``spatial_svd``; for ``cp``
    and ``filterwise_cp`` the rank from which on their start is exact. For ``ttm`` the settings of all tensor shapes
    are counted: every pair of an ordered factorization of the outputs and one of the inputs into 2 to `cores` factors
    of at least 2 (only the given shape if `options` have ``cores``, ``out_shape`` or ``in_shape``).

    The costs are polynomials in the ranks, affine in each, whose coefficients are found by pricing a few blueprints.
    All ranks but one are laid out as arrays, and the interval of the last one is solved for in integers; so the time
    grows with the number of settings divided by the largest limit, and the memory does not grow.

    Parameters
    ----------
    layer : LayerInfo
        With the calls that MACs and feature maps are counted for.
    method : str
        A registered factorization.
    exploration : Exploration, optional
        Steps, tolerance, random solutions and what is counted.
    options : mapping, optional
        Options of the method.

    Returns
    -------
    Space

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
            f"{layer.title} has no calls, so its MACs are not known. Inspect its model, or say its input."
        )
    dense = dense_cost(layer)
    parts = list(pieces(method, layer, options, how.cores, useful=how.useful))
    pickers = [Picker(Target.of(share, how.tolerance, dense.params)) for share in how.steps]
    plane = None if how.bins is None else Plane(how.bins, dense)
    size, extents = 0, _Extents(dense)
    for rows in valid_rows(parts, dense):
        size += int((rows.last - rows.first + 1).sum())
        extents.see(rows)
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
        params=extents.params if size else None,
        macs=extents.macs if size else None,
        memory=extents.memory if size else None,
        formulas=formulas(parts[0]) if parts else {},
        stages=stages(method, layer, parts[0]) if parts else (),
        histogram=None if plane is None else plane.histogram,
    )


class _Extents:
    """The least and the most of every resource, over the rows so far."""

    def __init__(self, dense: Cost) -> None:
        self._dense = {"params": dense.params, "macs": dense.macs, "memory": dense.memory}
        self._found: dict[str, tuple[int, int]] = {}

    def see(self, rows: Rows) -> None:
        """Take the next chunk: costs grow with every rank, so the ends of each row's interval tell."""
        coefficients = {
            "params": (rows.params0, rows.params1),
            "macs": (rows.macs0, rows.macs1),
            "memory": (rows.params0 + rows.fm0, rows.params1 + rows.fm1),
        }
        for name, (constant, slope) in coefficients.items():
            least = int((constant + slope * rows.first).min())
            most = int((constant + slope * rows.last).max())
            low, high = self._found.get(name, (least, most))
            self._found[name] = min(low, least), max(high, most)

    def _extent(self, name: str) -> Extent:
        least, most = self._found[name]
        return Extent(dense=self._dense[name], least=least, most=most)

    @property
    def params(self) -> Extent:
        return self._extent("params")

    @property
    def macs(self) -> Extent:
        return self._extent("macs")

    @property
    def memory(self) -> Extent:
        return self._extent("memory")


def _step(method: str, layer: LayerInfo, parts: Sequence[Piece], picker: Picker, drawn: Sequence[Place]) -> Step:
    def solution(place: Place | None) -> Solution | None:
        return None if place is None else _solution(method, layer, parts, place)

    fewest, most, equal = (solution(place) for place in picker.places)
    return Step(
        reduction=picker.target.reduction,
        count=picker.count,
        fewest_macs=fewest,
        most_macs=most,
        equal_ranks=equal,
        random=tuple(_solution(method, layer, parts, place) for place in drawn),
    )


def _solution(method: str, layer: LayerInfo, parts: Sequence[Piece], place: Place) -> Solution:
    number, index, x = place
    part = parts[number]
    ranks = ranks_of(part, index, x)
    return Solution(ranks=ranks, cost=price(methods.get(method, part.options), layer, ranks), options=part.options)


def _limits(parts: Sequence[Piece]) -> tuple[int, ...]:
    length = max((len(part.highs) for part in parts), default=0)
    return tuple(max(part.highs[i] for part in parts if len(part.highs) > i) for i in range(length))
