"""Gauge fixing of a blueprint: which stage of each bond holds the identity block, by shapes alone.

A product ``B A`` of rank r equals ``(B T^-1)(T A)`` for every invertible T, so r^2 of its numbers are redundant. Fixing
T so that r rows of B (or columns of A) become the identity leaves ``r (O + I - r)`` parameters, and as many MACs per
position.
"""

from __future__ import annotations

from dataclasses import replace

from rankfold.records.blueprint import Blueprint, ConvSpec, GaugedSpec, LinearSpec, Stage


def gauge_blueprint(blueprint: Blueprint) -> Blueprint:
    """Return the blueprint with as many bonds gauged as possible, each by an identity block in one of its two stages.

    The block is placed in a pointwise stage if the bond has one; of two, in the one that moves fewer numbers (inputs
    gathered before it, or outputs after it). Between two kernel stages, it is placed in the first, as a pointwise stage
    over the kernel's shifted copies of the input. Some bonds are not gauged: those at a reshape or a bias, those of
    single channels (rank 1, or a depthwise stage on either side, where the gauge is only a scale), and those of two
    kernel stages of which the first is transposed or has too few inputs. No stage gets more parameters or MACs.

    Examples
    --------
    >>> from rankfold.records import Blueprint, LinearSpec, gauge_blueprint
    >>> first = LinearSpec(name="input", in_features=64, out_features=16)
    >>> plain = Blueprint((first, LinearSpec(name="output", in_features=16, out_features=48)))
    >>> plain.params, gauge_blueprint(plain).params
    (1792, 1536)
    """
    stages: list[Stage] = list(blueprint.stages)
    for bond in range(len(stages) - 1):
        left, right = blueprint.stages[bond : bond + 2]
        if _obstacle(left, right) is not None:
            continue
        options = [
            (not spec.base.pointwise, _moved(spec), at, spec)
            for at, spec in _holders(left, right, bond)
            if not isinstance(stages[at], GaugedSpec)  # a stage has room for one identity block
        ]
        if options:
            *_, at, spec = min(options, key=lambda option: option[:3])
            stages[at] = spec
    return replace(blueprint, stages=tuple(stages))


def gauge_obstacle(blueprint: Blueprint) -> str | None:
    """Return why no bond of a blueprint can be gauged, or None if one can."""
    if gauge_blueprint(blueprint).gauged:
        return None
    kernels = "both stages at the bond have kernels, and the first is transposed or has too few inputs"
    bonds = zip(blueprint.stages, blueprint.stages[1:], strict=False)
    reasons = [_obstacle(left, right) or kernels for left, right in bonds]
    return "; ".join(dict.fromkeys(reasons)) or "it has a single stage, without a bond"


def _obstacle(left: Stage, right: Stage) -> str | None:
    """Return why the bond of two stages has no gauge, or None if it has one."""
    single = "the bond joins single channels"
    if isinstance(left, ConvSpec) and isinstance(right, ConvSpec):
        if left.groups != right.groups:
            return single
        rank = left.out_channels // left.groups
    elif isinstance(left, LinearSpec) and isinstance(right, LinearSpec):
        rank = left.out_features
    else:
        return "the stages are joined by a reshape"
    if left.bias:
        return "there is a bias at the bond"
    return single if rank == 1 else None


def _holders(left: Stage, right: Stage, bond: int) -> list[tuple[int, GaugedSpec]]:
    """Return the gauged stages that could hold the identity block of a bond, with their positions."""
    assert isinstance(left, ConvSpec | LinearSpec)
    assert isinstance(right, ConvSpec | LinearSpec)
    out = []
    first = GaugedSpec(base=left, side="input")
    if not (isinstance(left, ConvSpec) and left.transposed) and first.rank <= first.size:
        out.append((bond, first))
    second = GaugedSpec(base=right, side="output")
    if right.pointwise and second.rank <= second.size:
        out.append((bond + 1, second))
    return out


def _moved(spec: GaugedSpec) -> int:
    """Return how many numbers per position the stage gathers and adds in addition to its multiplications."""
    if spec.side == "input":
        return spec.groups * (spec.size + spec.rank)
    return spec.groups * spec.size * (3 if spec.base.bias else 2)
