"""``rankfold analyze``: how many ways there are to make each layer smaller, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import rankfold as rf
from rankfold._options import Flag
from rankfold.api.analyzing import resolve
from rankfold.cli._command import Given, command
from rankfold.cli._loading import given_source, open_work
from rankfold.cli._options import FLAGS
from rankfold.cli._session import Output
from rankfold.cli._writing import check_file
from rankfold.errors import ConfigError
from rankfold.reporting.exploration import Analysis

_NETWORK_ONLY = ("include", "exclude", "weights", "data", "input_size", "num_classes", "device")
"""Flags that make no sense with layers by shape."""


@command(
    "rankfold analyze --layer conv:3x3x512x512 --layer linear:400x120 --html spaces.html",
    "model", "layer", "methods", "steps", "tolerance", "random", "cores", "useful", "time", "html", "weights",
    "include", "exclude", "input_size", "num_classes", "data", "device", "seed",
    model=replace(FLAGS["model"], kind=str | None, default=None),
    layer=Flag(
        kind=list[str] | None, names=("--layer", "-l"), metavar="SHAPE",
        help="Layer by shape instead of a network: conv:K1x...xIxO or linear:IxO, then ,stride=2 ,padding=1 "
        ",dilation=2 ,groups=4 ,size=28 ,bias; may be repeated.",
    ),
    methods=Flag(
        kind=str | None, metavar="NAMES",
        help="Factorizations such as svd,tucker, or all. By default the six of the similarity paper: tucker, cp, tt "
        "for convolutions, svd, qr, ttm for matrices.",
    ),
    steps=Flag(
        kind=str, default="85%,60%,25%", metavar="SHARES",
        help="Shares of the parameters to remove, such as 85%,60%,25%, or every=5%.",
    ),
    tolerance=Flag(
        kind=str, default="0.5%", metavar="SHARE",
        help="A setting belongs to a step if it removes a share within this of it.",
    ),
    random=Flag(kind=int, default=0, least=0, help="Random solutions of each step."),
    cores=Flag(kind=int, default=3, least=2, help="Most cores of the tensor shapes of ttm."),
    useful=Flag(kind=bool, default=False, help="Leave out settings with a rank that another one makes useless."),
    time=Flag(kind=bool, default=False, help="Also measure decomposition times at each step."),
    html=Flag(kind=str | None, metavar="FILE", help="Write tables and plots to this page."),
)  # fmt: skip
def analyze(given: Given, out: Output) -> None:
    """Count every layer's valid rank settings and show what they cost, of a network or of layers by shape.

    For each factorization: how many rank settings have fewer parameters and fewer MACs than the layer, and for each
    compression step the solutions of fewest MACs, most MACs, equal ranks and some random ones. Nothing is listed or
    built, so this takes seconds. Weights are not needed; they only matter for --time.
    """
    layers = given.layer or []
    if (given.model is None) == (not layers):
        raise ConfigError("analyze takes a network, or layers with --layer: one of the two.")
    shares = parse_steps(given.steps)
    width = _share(given.tolerance.strip())
    if width is None or not 0 < width <= Fraction(1, 2):
        raise ConfigError(f"--tolerance must be a share in (0, 50%], such as 0.5%. Got {given.tolerance!r} instead.")
    resolve(given.methods)
    file = None if given.html is None else check_file(given.html, (".html",), flag="--html")
    options: dict[str, Any] = {name: getattr(given, name) for name in ("methods", "random", "seed", "cores", "useful")}
    options |= {"steps": shares, "tolerance": float(width), "time": given.time}
    if given.model is None:
        for name in _NETWORK_ONLY:
            if getattr(given, name) not in (None, "auto"):
                raise ConfigError(f"--{name.replace('_', '-')} goes with a network. Leave it out with --layer.")
        analysis = rf.analyze(layers, **options, title=", ".join(layers))
    else:
        work = open_work(given_source(given), given, tests=False)
        analysis = rf.analyze(
            work.dense, work.example, **options, include=given.include or None, exclude=given.exclude or None,
            title=given.model,
        )  # fmt: skip
    out.show(analysis.print)
    if given.quiet:
        out.result(_summary(analysis))
    files: dict[str, str] = {}
    if file is not None:
        analysis.save(file)
        files["page"] = str(file)
        out.say(f"page: {file}")
    out.document({"command": "analyze", "files": files, "analysis": analysis.to_dict()})


def parse_steps(text: str) -> tuple[float, ...]:
    """Return ``(0.85, 0.6)`` for ``"85%,60%"``, and every multiple below 100 % for ``"every=5%"``.

    Raises
    ------
    ConfigError
        If the text is neither.
    """
    wanted = "--steps must be shares such as 85%,60%,25% or 0.85,0.6, or every=5%"
    every = text.strip().removeprefix("every=")
    shares = [_share(part.strip()) for part in ([every] if every != text.strip() else text.split(","))]
    if any(share is None or not 0 < share < 1 for share in shares):
        raise ConfigError(f"{wanted}. Got {text!r} instead.")
    found = [share for share in shares if share is not None]
    if every == text.strip():
        return tuple(float(share) for share in found)
    if found[0] < Fraction(1, 1000):
        raise ConfigError(f"{wanted}, in steps of at least 0.1%. Got {text!r} instead.")
    return tuple(float(found[0] * k) for k in range(1, 1000) if found[0] * k < 1)


def _share(text: str) -> Fraction | None:
    """Return ``"85%"`` or ``"0.85"`` as an exact share."""
    try:
        return Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return None


def _summary(analysis: Analysis) -> str:
    """Say in one line what was counted."""
    settings = sum(space.size for layer in analysis.layers for space in layer.spaces)
    layers = len(analysis.layers)
    return f"{settings:,} valid rank settings of {layers} layer{'s' if layers != 1 else ''}"
