"""The exploration space of a method on a layer: counted and solved, never listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankfold import methods
from rankfold._config import is_integer, is_number, require
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


def explore(
    layer: LayerInfo,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    steps: Sequence[float] = PAPER_STEPS,
    tolerance: float = 0.005,
    random: int = 0,
    seed: int = 0,
    cores: int = CORES,
    useful: bool = False,
    bins: int | None = None,
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
    options : mapping, optional
        Options of the method.
    steps : sequence of float
        Shares of the layer's parameters to remove, each in (0, 1).
    tolerance : float
        A setting belongs to a step if its parameter reduction lies in ``[step - tolerance, step + tolerance)``: with
        the default it rounds to the step's whole per cent.
    random : int
        Solutions of each step to draw beside the named ones, uniformly, all different.
    seed : int
        Of the draw.
    cores : int
        Most cores of a tensor shape, at least 2.
    useful : bool
        Leave out settings with a rank that another one makes useless: of two ranks of one factor, one beyond n times
        the other if the factor has n elements for each pair of their values. ``r2 > K1 * r1`` of a ``tt`` is such:
        a smaller ``r2`` does the same for less. The paper's counts are without it, and so is the default.
    bins : int, optional
        Also count the histogram over parameter and MAC reduction, with so many bins an axis.

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
    options = dict(options or {})
    check_steps(steps, tolerance, random, seed, cores, bins)
    methods.check_supported(methods.get(method, options), layer)
    if not layer.calls:
        raise ConfigError(
            f"{layer.title} has no calls, so its MACs are not known. Inspect its model, or say its input."
        )
    dense = dense_cost(layer)
    parts = list(pieces(method, layer, options, cores, useful=useful))
    pickers = [Picker(Target.of(share, tolerance, dense.params)) for share in steps]
    plane = None if bins is None else Plane(bins, dense)
    size, extents = 0, _Extents(dense)
    for rows in valid_rows(parts, dense):
        size += int((rows.last - rows.first + 1).sum())
        extents.see(rows)
        for picker in pickers:
            picker.see(rows)
        if plane is not None:
            plane.see(rows)
    drawn = draw(pickers, lambda: valid_rows(parts, dense), random, f"{seed}/{layer.describe()}/{method}")
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


def check_steps(steps: Sequence[float], tolerance: float, random: int, seed: int, cores: int, bins: int | None) -> None:
    """Raise `ConfigError` for an option of `explore` that is out of range, whatever the layer."""
    fine = isinstance(steps, Sequence) and not isinstance(steps, str) and len(steps) > 0
    require(fine, "steps", steps, "a sequence of shares of the parameters to remove, such as (0.85, 0.6)")
    for share in steps:
        require(is_number(share) and 0 < share < 1, "steps", share, "shares between 0 and 1, such as 0.85")
    require(len(set(steps)) == len(steps), "steps", list(steps), "different shares")
    require(is_number(tolerance) and 0 < tolerance <= 0.5, "tolerance", tolerance, "a number in (0, 0.5]")
    require(is_integer(random) and random >= 0, "random", random, "an integer of at least 0")
    require(is_integer(seed) and seed >= 0, "seed", seed, "an integer of at least 0")
    require(is_integer(cores) and cores >= 2, "cores", cores, "an integer of at least 2")
    require(bins is None or (is_integer(bins) and 1 <= bins <= 200), "bins", bins, "an integer in 1..200, or None")


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
