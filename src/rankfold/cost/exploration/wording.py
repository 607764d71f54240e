"""Text of a method's costs and stages on a layer, in terms of ranks (Kokhazadeh et al. 2025, Table 1 and Fig. 5)."""

from __future__ import annotations

from rankfold import methods
from rankfold.cost.exploration.pieces import Piece
from rankfold.cost.exploration.polynomial import fit
from rankfold.records import ConvSpec, LayerInfo, LinearSpec, Ranks


def formulas(piece: Piece) -> dict[str, str]:
    """Return parameters (``"P"``), MACs (``"M"``) and feature-map elements (``"FM"``) as polynomials in the ranks."""
    names = _names(piece)
    return {"P": piece.params.text(names), "M": piece.macs.text(names), "FM": piece.fm.text(names)}


def stages(name: str, layer: LayerInfo, piece: Piece) -> tuple[str, ...]:
    """Return the stages with weights, such as ``3x1 r1→r2``: kernel, input channels, output channels."""
    method = methods.get(name, piece.options)

    def layers(ranks: Ranks) -> list[ConvSpec | LinearSpec]:
        return [s for s in method.blueprint(layer, ranks).stages if isinstance(s, ConvSpec | LinearSpec)]

    def channels(ranks: Ranks) -> list[int]:
        return [n for stage in layers(ranks) for n in _channels(stage)]

    words = [polynomial.text(_names(piece)) for polynomial in fit(channels, piece.lows, piece.highs)]
    texts: list[str] = []
    for stage, inputs, outputs, groups in zip(layers(piece.lows), words[::3], words[1::3], words[2::3], strict=True):
        kernel = "" if layer.kind == "linear" or isinstance(stage, LinearSpec) else "x".join(map(str, stage.kernel))
        depthwise = "depthwise" if groups == inputs != "1" else ""
        texts.append(" ".join(part for part in (kernel, depthwise, f"{inputs}→{outputs}") if part))
    return tuple(texts)


def _names(piece: Piece) -> list[str]:
    return ["r"] if len(piece.lows) == 1 else [f"r{i + 1}" for i in range(len(piece.lows))]


def _channels(stage: ConvSpec | LinearSpec) -> tuple[int, int, int]:
    """Return inputs, outputs and groups."""
    if isinstance(stage, LinearSpec):
        return stage.in_features, stage.out_features, 1
    return stage.in_channels, stage.out_channels, stage.groups
