"""Gauge fixing of a blueprint: which stage of each bond holds the identity block, from shapes alone.

A product ``B A`` of rank r is ``(B T^-1)(T A)`` for every invertible T: r^2 of its numbers say nothing. Fixing T so
that r rows of B (or columns of A) become the identity leaves ``r (O + I - r)`` parameters, and as many MACs a position.
"""

from __future__ import annotations

from dataclasses import replace

from rankfold.records.blueprint import Blueprint, ConvSpec, GaugedSpec, LinearSpec, Stage


def gauge_blueprint(blueprint: Blueprint) -> Blueprint:
    """Return the blueprint with every bond gauged that can be, each by an identity block in one of its two stages.

    A pointwise stage at the bond holds the block if there is one, of two the one that moves fewer numbers: inputs to be
    gathered before it, or outputs after it. Between two kernel stages the first one holds it, as a pointwise stage over
    the kernel's shifted copies of the input. Left as they are: bonds at a reshape or a bias, bonds of single channels
    (rank 1, or a depthwise stage on either side: the gauge is a mere scale), and those of two kernel stages of which
    the first is transposed or has too few inputs. No stage gets more parameters or MACs; a blueprint without a bond
    that can be gauged comes back as it is.

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
        if not isinstance(_joint(left, right), int):
            continue
        options = [
            (not spec.base.pointwise, _moved(spec), at, spec)
            for at, spec in _holders(left, right, bond)
            if not isinstance(stages[at], GaugedSpec)  # its own identity is in the way of a second one
        ]
        if options:
            *_, at, spec = min(options, key=lambda option: option[:3])
            stages[at] = spec
    return replace(blueprint, stages=tuple(stages))


def gauge_obstacle(blueprint: Blueprint) -> str | None:
    """Return why no bond of a blueprint can be gauged, or None if one can."""
    if gauge_blueprint(blueprint).gauged:
        return None
    reasons: list[str] = []
    for left, right in zip(blueprint.stages, blueprint.stages[1:], strict=False):
        joint = _joint(left, right)
        if isinstance(joint, str):
            reasons.append(joint)
        else:
            reasons.append("both stages at the bond are kernels, the first one transposed or with too few inputs")
    return "; ".join(dict.fromkeys(reasons)) or "it is a single stage, without a bond"


def _joint(left: Stage, right: Stage) -> int | str:
    """Return the channels of the bond in one group, or why nothing but zeros may be put between the two."""
    if isinstance(left, ConvSpec) and isinstance(right, ConvSpec):
        rank = left.out_channels // left.groups
        if left.groups != right.groups:
            return "the bond joins single channels"
    elif isinstance(left, LinearSpec) and isinstance(right, LinearSpec):
        rank = left.out_features
    else:
        return "the stages are joined by a reshape"
    if left.bias:
        return "a bias lies on the bond"
    return "the bond joins single channels" if rank == 1 else rank


def _holders(left: Stage, right: Stage, bond: int) -> list[tuple[int, GaugedSpec]]:
    """Return the gauged stages, with their positions, that could hold the identity block of a bond."""
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
    """Return how many numbers a position the stage gathers and adds in addition to its multiplications."""
    if spec.side == "input":
        return spec.groups * (spec.size + spec.rank)
    return spec.groups * spec.size * (3 if spec.base.bias else 2)
